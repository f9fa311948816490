"""LoRA of Qwen3-shaped models with random weights on this device, beside Trainer's defaults in the same run.

    python benchmarks/gpu.py                                    # on a GPU: 0.6B and 7B
    python benchmarks/gpu.py --shapes 7B --quantize nf4         # QLoRA of the 7B: ours alone
    python benchmarks/gpu.py --shapes tiny --records 24         # that it works, on a CPU

Nothing is downloaded. Both arms read the same made-up records of a chat's lengths once, eight to a step, half of their tokens learnt,
with the same adapter (r16 on all linear layers), each in a process of its own, so that peak memory is its own; a few records before
that warm things up and are not counted. Tokens are those of the records: no padding. `vaultllm` is `loop.run` with what `fit.choose`
takes; `Trainer` is transformers' with its defaults, a collator that pads, and the base in the type that ours has. Share of peak: the
work of a step without what is computed twice, by what the chip is said to do in dense bf16, or, where that is not known, by what a
large product of matrices reaches here. Prints a table, and JSON with --json.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vaultllm import evaluate, fit, loop, train
from vaultllm.config import TrainSettings
from vaultllm.evaluate import Window
from vaultllm.models import hf, packed
from vaultllm.schema import silent

SHAPES = {
    "tiny": fit.Shape("tiny", 4, 128, 4, 2, 32, 384, 4096, True),
    "0.6B": fit.Shape("0.6B", 28, 1024, 16, 8, 128, 3072, 151_936, True),
    "7B": fit.Shape("7B", 32, 4096, 32, 8, 128, 11_008, 151_936, True, tied=False),
}
DENSE = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12, "4090": 165e12, "3090": 71e12}
"""FLOP/s in bf16 without sparsity, as their data sheets say; the first whose name is in the device's."""
WARM = 16
"""Records that are not counted."""
LONGEST = 1024


def records(count: int, vocabulary: int) -> list[Window]:
    """Most are short, a few fill a window; the second half is learnt."""
    draw = random.Random(0)
    found = []
    for _ in range(count):
        size = min(LONGEST, 24 + int(draw.expovariate(1 / 250)))
        found.append(Window([draw.randrange(vocabulary) for _ in range(size)], [False] * (size // 2) + [True] * (size - size // 2)))
    return found


def model_of(shape: fit.Shape, dtype: str, quantize: str, where: str, folder: Path) -> Any:
    """Random weights, made where they are used; in nf4 by way of the disk, as from_pretrained makes it."""
    import torch
    from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

    from vaultllm.models import nf4

    hf.quiet()
    config = Qwen3Config(
        vocab_size=shape.vocabulary, hidden_size=shape.width, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.shared, head_dim=shape.head, tie_word_embeddings=shape.tied,
        bos_token_id=None, eos_token_id=0, pad_token_id=0, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(getattr(torch, dtype))  # no fp32 copy first
    with torch.device(where):
        model = Qwen3ForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    if quantize:
        nf4.checked(where, shape.name)
        model.save_pretrained(folder / "base")
        del model
        if where == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        model = AutoModelForCausalLM.from_pretrained(
            folder / "base", dtype=getattr(torch, dtype), **nf4.settings(where, getattr(torch, dtype))
        )  # fmt: skip
    return model.requires_grad_(False)


def ours(model: Any, taken: fit.Fit, pieces: list[Window], folder: Path) -> None:
    """As `train.train_lora` does it, once over the records."""
    lengths = [len(piece.ids) for piece in pieces]
    packs = packed.proven(model, [piece.ids for piece in pieces])
    batches = (evaluate.packs if packs else evaluate.batches)(lengths, tokens=taken.tokens, rows=fit.BATCH)
    accumulate = max(1, round(fit.BATCH * len(batches) / len(pieces)))
    data = loop.Data(pieces, [1.0] * len(pieces), batches, accumulate, 0, sequence=LONGEST, packed=packs)
    pace = loop.Pace(1e9, -(-len(batches) // accumulate))
    loop.run(model, loop.Job(folder, {}, pace, loop.Log(), silent, 2e-4, 0, data), None)


def theirs(model: Any, pieces: list[Window], folder: Path) -> None:
    """transformers' Trainer with its defaults, once over the records."""
    import torch
    from transformers import Trainer, TrainingArguments

    def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
        ids, mask, labels = evaluate.pad([Window(row["ids"], row["learn"]) for row in rows])
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    class Records(torch.utils.data.Dataset):  # type: ignore[type-arg]
        def __len__(self) -> int:
            return len(pieces)

        def __getitem__(self, i: int) -> dict[str, Any]:
            return {"ids": pieces[i].ids, "learn": pieces[i].learn}

    arguments = TrainingArguments(
        str(folder), num_train_epochs=1, save_strategy="no", report_to="none", disable_tqdm=True, remove_unused_columns=False,
        use_cpu=hf.device() == "cpu",
    )  # fmt: skip
    Trainer(model, arguments, data_collator=padded, train_dataset=Records()).train()


def arm(name: str, shape: str, count: int, quantize: str) -> dict[str, Any]:
    """One arm in this process."""
    import torch

    settings, base = TrainSettings(max_tokens=LONGEST), SHAPES[shape]
    machine = fit.machine()
    where = machine["device"]
    taken = fit.choose(
        base, device=where, free_mb=machine["free_mb"], bf16=machine["bf16"], sequence=LONGEST, rank=settings.rank,
        quantize="nf4" if quantize else "",
    )  # fmt: skip
    pieces = records(WARM + count, base.vocabulary)
    timed = pieces[WARM:]
    with tempfile.TemporaryDirectory() as root:
        model = train.adapted(model_of(base, taken.dtype, quantize, where, Path(root)), settings, 0).train()
        if name == "vaultllm" and taken.checkpointing:
            hf.checkpoint_blocks(model)
        seconds = 0.0
        for number, some in enumerate((pieces[:WARM], timed)):
            folder = Path(root) / str(number)
            folder.mkdir()
            if where == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            if name == "vaultllm":
                ours(model, taken, some, folder)
            else:
                theirs(model, some, folder)
            if where == "cuda":
                torch.cuda.synchronize()
            seconds = time.perf_counter() - began
    read = sum(len(piece.ids) for piece in timed)
    work = sum(base.flops(len(piece.ids), settings.rank) * len(piece.ids) for piece in timed)
    return {
        "tokens_per_s": read / seconds,
        "flops_per_s": work / seconds,
        "memory_mb": torch.cuda.max_memory_allocated() // 2**20 if where == "cuda" else train.peak_rss_mb(),
        "estimated_mb": taken.memory_mb,
        "chosen": f"{taken.dtype}{' nf4' if quantize else ''}{' checkpointing' if taken.checkpointing else ''}, {taken.tokens} tokens",
    }


def peak(where: str, half: bool) -> float:
    """FLOP/s that a large product of matrices reaches; the best of ten."""
    import torch

    size = 8192 if where == "cuda" else 1024
    left = torch.randn(size, size, dtype=torch.bfloat16 if half else torch.float32, device=where)
    best = float("inf")
    for _ in range(10):
        began = time.perf_counter()
        left @ left
        if where == "cuda":
            torch.cuda.synchronize()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default="0.6B,7B", help=", ".join(SHAPES))
    parser.add_argument("--records", type=int, default=256)
    parser.add_argument("--quantize", choices=["nf4"], default="")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.arm:
        print(json.dumps(peak(**json.loads(options.arm)) if "where" in options.arm else arm(**json.loads(options.arm))))
        return

    def alone(job: dict[str, Any]) -> Any:
        done = subprocess.run([sys.executable, __file__, "--arm", json.dumps(job)], capture_output=True, text=True, check=False)
        if done.returncode:
            return {"failed": (done.stderr.strip().splitlines() or ["?"])[-1][:160]}
        return json.loads(done.stdout.splitlines()[-1])

    machine = fit.machine()
    reached = alone({"where": machine["device"], "half": bool(machine["bf16"])})
    said = next((flops for name, flops in DENSE.items() if name in machine["name"]), None)
    found: list[dict[str, Any]] = []
    for shape in options.shapes.split(","):
        for name in ("vaultllm",) if options.quantize else ("vaultllm", "Trainer"):
            found.append(
                {"shape": shape, "arm": name}
                | alone({"name": name, "shape": shape, "count": options.records, "quantize": options.quantize})
            )
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
    if options.json:
        print(json.dumps({"machine": machine, "peak_reached": reached, "peak_said": said, "arms": found}))
        return
    print(f"{machine}\npeak: {reached / 1e12:.1f} TFLOP/s reached{f', {said / 1e12:.0f} said' if said else ''}")
    print("| base | arm | tokens/s | TFLOP/s | share of peak | MB | estimated | chosen |\n|---|---|---|---|---|---|---|---|")
    for one in found:
        if "failed" in one:
            print(f"| {one['shape']} | {one['arm']} | {one['failed']} | | | | | |")
            continue
        share, mb = one["flops_per_s"] / (said or reached), f"{one['memory_mb']:,} | {one['estimated_mb']:,}"
        chosen = one["chosen"] if one["arm"] == "vaultllm" else "8 records, padded"
        speed = f"{one['tokens_per_s']:,.0f} | {one['flops_per_s'] / 1e12:.3g} | {share:.0%}"
        print(f"| {one['shape']} | {one['arm']} | {speed} | {mb} | {chosen} |")


if __name__ == "__main__":
    main()
