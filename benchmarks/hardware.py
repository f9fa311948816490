"""How true `vaultllm doctor --probe` is: its estimates beside whole random models of those sizes, trained for a few steps.

    python benchmarks/hardware.py [--bases 135M,0.6B]

Each base runs in a process of its own; its memory is the process's peak. Prints a table.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from typing import Any

from vaultllm import hardware, train
from vaultllm.config import TrainSettings


def whole(name: str, half: bool, tokens: int) -> dict[str, Any]:
    """Tokens/s (wall clock, and by processor time alone) and peak memory of all layers of a base; the best of three steps."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    settings = TrainSettings()
    base = {one.name: one for one in hardware.BASES}[name]
    config = Qwen3Config(
        vocab_size=base.vocabulary, hidden_size=base.width, intermediate_size=base.inner, num_hidden_layers=base.layers,
        num_attention_heads=base.heads, num_key_value_heads=base.shared, head_dim=base.head, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.set_default_dtype(torch.bfloat16 if half else torch.float32)  # no fp32 copy first: its peak is not the training's
    model = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    where = hardware.hf.device()
    model = train.adapted(model.to(where).requires_grad_(False), settings, 0).train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)
    sequence = min(settings.max_tokens, tokens)
    wall = busy = float("inf")
    for _ in range(3):
        begun = time.process_time()
        wall = min(wall, hardware._step(model, optimizer, base, sequence, tokens // sequence, where))
        busy = min(busy, time.process_time() - begun)
    memory = torch.cuda.max_memory_allocated() // 2**20 if where == "cuda" else train.peak_rss_mb()
    return {"tokens_per_s": tokens / wall, "tokens_per_cpu_s": tokens / busy, "memory_mb": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", default="135M,0.6B")
    parser.add_argument("--whole", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.whole:
        print(json.dumps(whole(**json.loads(options.whole))))
        return
    found = hardware.probe(TrainSettings(), None, lambda progress: None)
    print(found["device"], f"others keep each core {found['others_per_core']:.0%} busy; {found['seconds']} s")
    print("| base | dtype | tokens/s estimated | whole | by processor time | MB estimated | whole |\n|---|---|---|---|---|---|---|")
    for line in found["bases"]:
        if line["base"] in options.bases.split(","):
            job = {"name": line["base"], "half": line["dtype"] == "bfloat16", "tokens": line["batch_tokens"]}
            done = subprocess.run([sys.executable, __file__, "--whole", json.dumps(job)], capture_output=True, text=True, check=True)
            real = json.loads(done.stdout.splitlines()[-1])
            print(
                f"| {line['base']} | {line['dtype']} | {line['tokens_per_s']:.0f} | {real['tokens_per_s']:.0f} | "
                f"{real['tokens_per_cpu_s']:.0f} | {line['memory_mb']:,} | {real['memory_mb']:,} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
