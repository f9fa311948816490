"""Micro pretraining as we do it against a plain torch loop (AdamW, fp32) over the same model, text and batches.

    python benchmarks/micro.py --seconds 30 [--notes vault_example]

Each arm runs in a process of its own, so that its peak memory is its own; ours goes first and fixes the model's
shape. Tokens per second are those of the training loops alone, without starting, tokenizer, probe and saving.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from vaultllm.models import micro, plan
from vaultllm.schema import Example, Message

SEED = 0


def examples(notes: Path) -> list[Example]:
    """Every note of a folder as prose, every eighth held out."""
    found = []
    for i, path in enumerate(sorted(notes.rglob("*.md"))):
        text = path.read_text(encoding="utf-8", errors="replace")
        split: Any = "val" if i % 8 == 3 else "train"
        if text.strip():
            found.append(Example(path.name, (path.name,), str(path), "prose", (Message("user", text, True),), split))
    return found


def peak_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def ours(notes: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """`pretrain`, with the text read as often as the time allows."""
    plan.MAX_EPOCHS = float("inf")
    train = [example for example in examples(notes) if example.split == "train"]
    result = micro.pretrain(train, folder, minutes=seconds / 60, seed=SEED, progress=lambda progress: None)
    return {**result, "peak_mb": peak_mb()}


def plain(notes: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """The loop that everybody writes first."""
    import torch
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    train = plan.in_notes_order([example for example in examples(notes) if example.split == "train"], SEED)
    stream = torch.tensor(plan.pack((micro.encode_example(tokenizer, example)[0] for example in train), tokenizer.pad_token_id))
    torch.manual_seed(SEED)
    model = Qwen3ForCausalLM(Qwen3Config.from_pretrained(folder)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(SEED)
    began, step, tokens, smooth = time.monotonic(), 0, 0, 0.0
    while time.monotonic() - began < seconds:
        length = plan.LONG_CONTEXT if step % plan.LONG_EVERY == plan.LONG_EVERY - 1 else plan.CONTEXT
        length = min(length, len(stream) - 1)
        starts = torch.randint(len(stream) - length, (max(1, plan.STEP_TOKENS // length),), generator=generator)
        windows = torch.stack([stream[at : at + length] for at in starts.tolist()])
        loss = model(input_ids=windows, labels=windows).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step, tokens = step + 1, tokens + windows.numel()
        smooth = loss.item() if step == 1 else 0.9 * smooth + 0.1 * loss.item()
    rate = tokens / (time.monotonic() - began)
    return {"dtype": "fp32", "steps": step, "tokens_per_s": rate, "train_loss": smooth, "peak_mb": peak_mb()}


def main() -> None:
    """Run both arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=30.0, help="time of each arm")
    parser.add_argument("--notes", type=Path, default=Path(__file__).parents[1] / "vault_example", help="folder of notes")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, arm in (("ours", ours), ("plain", plain)):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                rows[name] = pool.apply(arm, (options.notes, Path(work) / "micro", options.seconds))
    if options.json:
        print(json.dumps(rows, indent=1))
        return
    about = rows["ours"]
    print(f"{about['parameters'] / 1e6:.2f}M parameters, vocabulary {about['vocabulary']}, {about['text_bytes'] / 1e6:.2f} MB of text")
    print(f"{'':7}{'dtype':>7}{'steps':>8}{'tokens/s':>10}{'loss':>8}{'peak MB':>9}")
    for name, row in rows.items():
        print(f"{name:7}{row['dtype']:>7}{row['steps']:>8}{row['tokens_per_s']:>10.0f}{row['train_loss']:>8.2f}{row['peak_mb']:>9.0f}")
    print("loss: nats per token on the training text, smoothed")


if __name__ == "__main__":
    main()
