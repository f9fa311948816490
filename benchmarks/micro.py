"""The micro model against a plain nanoGPT-style recipe, counting letters, and `xz`: held-out bits per byte after the same CPU-minutes.

    python benchmarks/micro.py --minutes 1,5,30 [--notes vault_example] [--megabytes 0.2] [--peer 128x4@6e-3,128x4@3e-3*4096]

Every eighth note is held out. Time is the process's own CPU time with one thread, so a busy machine does not matter; each
arm has a process of its own, and its minutes cover everything but measuring: imports, tokenizer, probes, training, saving.
The peer is GPT-2's shape (learned positions, LayerNorm, GELU, tied embeddings) with AdamW (0.9, 0.99; weight decay 0.1), 5 %
warm-up, cosine to a tenth, clipping at 1, fp32, the same tokenizer, in each of the named sizes, learning rates and tokens a step
(1,024 unless said otherwise); the best of them on the held-out notes counts, which favours it. It is measured in windows that
overlap by half, so that every token has a context.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import multiprocessing
import os
import resource
import sys
import tempfile
import time
import zlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from vaultllm import evaluate, ngram, yardsticks
from vaultllm import tokenizer as bpe
from vaultllm.models import learning, micro, plan
from vaultllm.schema import Example, Message

SEED = 0
BLOCK = 128
"""The peer's window, the best of what was tried (docs/log.md)."""
WEIGHTS = [i / 20 for i in range(21)]


def examples(notes: Path, most: float) -> list[Example]:
    """Every note of a folder as prose, every eighth held out; of the others as many as hold `most` bytes, in the order of a hash."""
    found = []
    for i, path in enumerate(sorted(notes.rglob("*.md"))):
        text = path.read_text(encoding="utf-8", errors="replace")
        split: Any = "val" if i % 8 == 3 else "train"
        if text.strip():
            found.append(Example(path.name, (path.name,), str(path), "prose", (Message("user", text, True),), split))
    train = sorted((one for one in found if one.split == "train"), key=lambda one: zlib.crc32(one.messages[0].text.encode()))
    sizes = itertools.accumulate(len(one.messages[0].text.encode()) for one in train)
    kept = [one for one, size in zip(train, sizes, strict=True) if size - len(one.messages[0].text.encode()) < most]
    return kept + [one for one in found if one.split == "val"]


def peak_mb() -> float:
    """Peak resident memory of this process."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def token_bits(model: Any, tokenizer: Any, texts: Sequence[str], window: int, stride: int) -> list[list[float]]:
    """Bits of each token of each text and of its end; windows of a text overlap by `window - stride`, and each token counts once."""
    import torch

    found = []
    model.eval()
    with torch.no_grad():
        for text in texts:
            row = [tokenizer.pad_token_id, *bpe.encode_text(tokenizer, text), tokenizer.pad_token_id]
            bits: list[float] = []
            at = 0
            while len(bits) < len(row) - 1:
                ids = torch.tensor([row[at : at + window + 1]])
                logits = model(input_ids=ids[:, :-1], use_cache=False).logits[0].float()
                losses = torch.nn.functional.cross_entropy(logits, ids[0, 1:], reduction="none") / math.log(2)
                bits += losses[len(bits) - at :].tolist()
                at += stride
            found.append(bits)
    return found


def ours(notes: list[Example], folder: Path, seconds: float) -> dict[str, Any]:
    """`pretrain` as the program does it."""
    plan.time = micro.time = learning.time = SimpleNamespace(monotonic=time.process_time)  # type: ignore[attr-defined]
    import torch

    torch.set_num_threads(1)
    train = [one for one in notes if one.split == "train"]
    result = micro.pretrain(train, folder, minutes=(seconds - time.process_time()) / 60, seed=SEED, progress=lambda progress: None)
    used, memory = time.process_time(), peak_mb()
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    texts = [one.messages[0].text for one in notes if one.split == "val"]
    bits = token_bits(model, tokenizer, texts, plan.LONG_CONTEXT, plan.LONG_CONTEXT)
    about = f"{result['shape']['width']}x{result['shape']['layers']} {result['dtype']}, {result['step_tokens']} a step"
    return {
        **result,
        "about": about,
        "cpu_s": used,
        "peak_mb": memory,
        "bits": bits,
        "mixed_bits": mixed_bits(tokenizer, train, texts, bits),
    }


def peer(notes: list[Example], folder: Path, seconds: float, width: int, layers: int, rate: float, step_tokens: int) -> dict[str, Any]:
    """The loop that everybody writes first; `folder` holds our tokenizer."""
    import torch
    from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    train = plan.in_notes_order([one for one in notes if one.split == "train"], SEED)
    stream = torch.tensor(plan.pack((micro.encode_example(tokenizer, one)[0] for one in train), tokenizer.pad_token_id))
    held = [one.messages[0].text for one in notes if one.split == "val"]
    drop, rows = 0.0 if width <= 128 else 0.1, step_tokens // BLOCK
    config = GPT2Config(
        vocab_size=len(tokenizer), n_positions=BLOCK, n_embd=width, n_layer=layers, n_head=max(1, width // 32),
        resid_pdrop=drop, embd_pdrop=drop, attn_pdrop=drop, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = GPT2LMHeadModel(config).train()
    decayed = [one for one in model.parameters() if one.ndim >= 2]
    others = [one for one in model.parameters() if one.ndim < 2]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.99))
    generator = torch.Generator().manual_seed(SEED)
    looked, looks, best, step = 0.0, 1, [], 0  # as nanoGPT does: the best of a few looks at the held-out text is kept
    began = time.process_time()
    done = 0.0
    while done < 1:
        done = (time.process_time() - looked - began) / max(seconds - began, 1e-9)
        factor = min(1.0, done / 0.05) * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        for group in optimizer.param_groups:
            group["lr"] = rate * factor
        starts = torch.randint(max(1, len(stream) - BLOCK), (rows,), generator=generator)
        windows = torch.stack([stream[at : at + BLOCK + 1] for at in starts.tolist()])
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten()).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        step += 1
        if done >= looks / 5 or done >= 1:
            paused, looks = time.process_time(), looks + 1
            best.append(token_bits(model.eval(), tokenizer, held, BLOCK, BLOCK // 2))
            model.train()
            looked += time.process_time() - paused
    bits = min(best, key=lambda one: sum(map(sum, one)))
    about = f"{width}x{layers} fp32 lr {rate:g}, {step_tokens} a step"
    count = sum(one.numel() for one in model.parameters())
    size = step * BLOCK * rows
    return {
        "about": about, "cpu_s": time.process_time() - looked, "peak_mb": peak_mb(), "bits": bits, "parameters": count, "steps": step,
        "tokens_seen": size, "epochs": round(size / len(stream), 2), "tokens_per_s": size / max(seconds - began, 1e-9),
    }  # fmt: skip


def mixed_bits(tokenizer: Any, train: Sequence[Example], texts: Sequence[str], bits: Sequence[Sequence[float]]) -> list[float]:
    """Bits of each text by our model and an n-gram model over the same tokens, interpolated.

    The weight is chosen on every other text and used on those between, and the other way round.
    """

    def written(text: str) -> str:
        """Tokens as characters, for a model that counts characters."""
        return "".join(chr(i) for i in bpe.encode_text(tokenizer, text))

    counted = ngram.train([(0, written(one.messages[0].text)) for one in train], order=5)
    pairs = []
    for text, own in zip(texts, bits, strict=True):
        given = ngram.probabilities(counted, 0, written(text), end=True).tolist()
        pairs.append([(2.0**-mine, other) for mine, other in zip(own, given, strict=True)])

    def cost(pair: list[tuple[float, float]], weight: float) -> float:
        return -sum(math.log2(weight * mine + (1 - weight) * other) for mine, other in pair)

    found = [0.0] * len(pairs)
    for fold in (0, 1):
        weight = min(WEIGHTS[1:], key=lambda one: sum(cost(pair, one) for pair in pairs[fold::2]))
        for i in range(1 - fold, len(pairs), 2):
            found[i] = cost(pairs[i], weight)
    return found


def counting(notes: list[Example]) -> dict[str, dict[str, Any]]:
    """The n-gram model over characters, and `xz`."""
    train, held = ([one for one in notes if one.split == part] for part in ("train", "val"))
    began = time.process_time()
    counted = yardsticks.ngram_scores(ngram.train(yardsticks.training_text(train, yardsticks.NGRAM_CHARACTERS)), held)
    between = time.process_time()
    copied = yardsticks.xz_scores(train, held, 60.0, clock=time.process_time)[0]
    return {
        "n-gram": {"about": f"{ngram.ORDER} characters", "cpu_s": between - began, "bpb": evaluate.bits_per_byte(counted)},
        "xz, primed": {"about": "", "cpu_s": time.process_time() - between, "bpb": evaluate.bits_per_byte(copied)},
    }


def alone(function: Any, *arguments: Any) -> Any:
    """What a function returns in a process of its own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, arguments)


def told(row: dict[str, Any], n_bytes: int) -> dict[str, Any]:
    """The row; on standard error what has been measured so far."""
    print(
        f"{row['about']}, {row['cpu_s']:.0f} CPU s: {sum(map(sum, row['bits'])) / n_bytes:.4f} bits per byte", file=sys.stderr, flush=True
    )
    return row


def main() -> None:
    """Run all arms and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", default="1", help="CPU-minutes of each arm, with commas")
    parser.add_argument("--notes", type=Path, default=Path(__file__).parents[1] / "vault_example", help="folder of notes")
    parser.add_argument("--megabytes", type=float, default=math.inf, help="text to train on at most")
    parser.add_argument("--held", type=int, default=10**9, help="characters of each held-out note that are measured")
    parser.add_argument("--peer", default="128x4@6e-3", help="the peer's widths, layers and rates, with commas")
    parser.add_argument("--json", action="store_true", help="print the numbers as JSON")
    options = parser.parse_args()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "RAYON_NUM_THREADS"):
        os.environ[name] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    notes = [
        replace(one, messages=(Message("user", one.messages[0].text[: options.held], True),)) if one.split == "val" else one
        for one in examples(options.notes, options.megabytes * 1e6)
    ]
    sizes = {part: sum(len(one.messages[0].text.encode()) for one in notes if one.split == part) for part in ("train", "val")}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for minutes in map(float, options.minutes.split(",")):
            folder = Path(work) / f"micro-{minutes:g}"
            rows[f"ours, {minutes:g} min"] = told(alone(ours, notes, folder, 60 * minutes), sizes["val"])
            tried = []
            for spec in options.peer.split(","):
                shape, rate = spec.split("@")
                width, layers = map(int, shape.split("x"))
                rate, _, tokens = rate.partition("*")
                given = (width, layers, float(rate), int(tokens or 1024))
                tried.append(told(alone(peer, notes, folder, 60 * minutes, *given), sizes["val"]))
            rows[f"peer, {minutes:g} min"] = min(tried, key=lambda one: sum(map(sum, one["bits"])))
    for name, row in list(rows.items()):
        row["bpb"] = sum(map(sum, row.pop("bits"))) / sizes["val"]
        if "mixed_bits" in row:
            rows[f"{name}, with n-grams"] = {"about": "interpolated", "bpb": sum(row.pop("mixed_bits")) / sizes["val"]}
    rows |= alone(counting, notes)
    if options.json:
        print(json.dumps({"bytes": sizes, "rows": rows}, indent=1))
        return
    print(f"{sizes['train'] / 1e6:.2f} MB to train on, {sizes['val'] / 1e6:.2f} MB held out")
    print(f"{'':28}{'bits/byte':>10}{'CPU s':>8}{'peak MB':>9}{'tokens/s':>10}{'passes':>8}{'M params':>10}  ")
    for name, row in rows.items():
        cells = [f"{row[key]:{form}}" if row.get(key) is not None else "" for key, form in
                 (("cpu_s", ".0f"), ("peak_mb", ".0f"), ("tokens_per_s", ",.0f"), ("epochs", ".1f"))]  # fmt: skip
        size = f"{row['parameters'] / 1e6:.2f}" if "parameters" in row else ""
        print(f"{name:28}{row['bpb']:>10.4f}{cells[0]:>8}{cells[1]:>9}{cells[2]:>10}{cells[3]:>8}{size:>10}  {row['about']}")


if __name__ == "__main__":
    main()
