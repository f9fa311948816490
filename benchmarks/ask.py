"""Milliseconds to the first word and tokens per second of an answer, against transformers' own `generate`.

    python benchmarks/ask.py [--base FOLDER] [--rounds 3] [--new 32]

Prompts of 256, 512 and 1,024 tokens (those that the model can read), greedy, end tokens off on both sides so that
both write as many tokens. Without `--base` a Qwen3-shaped model of about 10M random parameters is built in a temporary
folder. The two take turns on the same loaded model; medians. Peak memory is the whole process's. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from vaultllm import tokenizer
from vaultllm.models import hf

WORDS = "дождь река вода насос колодец хлеб мука закваска лодка весло the pump water level soil bread river rain and is in of".split()
LENGTHS = (256, 512, 1024)


def build(folder: Path) -> Path:
    """A Qwen3-shaped model of about 10M random parameters and a tokenizer."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(0)
    trained = tokenizer.train([" ".join(WORDS)] * 50, 512)
    config = Qwen3Config(
        vocab_size=4096, hidden_size=320, intermediate_size=960, num_hidden_layers=7, num_attention_heads=5, num_key_value_heads=5,
        head_dim=64, max_position_embeddings=2048, tie_word_embeddings=True, eos_token_id=None, bos_token_id=None,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save(trained, folder)
    return folder


def ours(loaded: hf.Loaded, ids: Sequence[int], new: int) -> tuple[float, float, int]:
    """(seconds to the first token, seconds in all, tokens); a token is counted when the model has made it."""
    times: list[float] = []
    step = hf._Pieces.add

    def noted(self: Any, token: int) -> str:
        times.append(time.perf_counter())
        return step(self, token)

    hf._Pieces.add = noted  # type: ignore[method-assign]
    ends = hf.end_ids
    hf.end_ids = lambda loaded: set()
    began = time.perf_counter()
    try:
        for _ in hf.generate(loaded, ids, max_new_tokens=new):
            pass
    finally:
        hf._Pieces.add, hf.end_ids = step, ends  # type: ignore[method-assign]
    return times[0] - began, time.perf_counter() - began, len(times)


def peer(loaded: hf.Loaded, ids: Sequence[int], new: int) -> tuple[float, float, int]:
    """The same by `model.generate` with a streamer."""
    import torch
    from transformers.generation.streamers import BaseStreamer

    times: list[float] = []

    class Noted(BaseStreamer):
        def put(self, value: Any) -> None:
            times.append(time.perf_counter())

        def end(self) -> None:
            pass

    feed = torch.tensor([list(ids)], device=next(loaded.model.parameters()).device)
    began = time.perf_counter()
    loaded.model.generate(
        feed, attention_mask=torch.ones_like(feed), do_sample=False, max_new_tokens=new, min_new_tokens=new, pad_token_id=0,
        streamer=Noted(),
    )  # fmt: skip
    # The streamer is given the prompt first.
    return times[1] - began, time.perf_counter() - began, len(times) - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", help="folder or hub id of a model; default: about 10M random parameters")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--new", type=int, default=32)
    args = parser.parse_args()
    import torch

    torch.set_num_threads(min(2, os.cpu_count() or 1))
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        loaded = hf.load(args.base or str(build(Path(folder) / "base")))
        load_s = time.perf_counter() - began
        found: dict[str, Any] = {
            "model": loaded.name,
            "parameters": loaded.parameters,
            "load_s": round(load_s, 2),
            "threads": torch.get_num_threads(),
        }
        text = tokenizer.encode_text(loaded.tokenizer, " ".join(WORDS * 400))
        both: dict[str, Callable[..., tuple[float, float, int]]] = {"vaultllm": ours, "transformers": peer}
        for length in (one for one in LENGTHS if one + args.new <= loaded.context):
            ids = text[:length]
            runs: dict[str, list[tuple[float, float, int]]] = {name: [] for name in both}
            for turn in range(args.rounds + 1):
                for name, measure in both.items():
                    result = measure(loaded, ids, args.new)
                    if turn:  # the first round warms up
                        runs[name].append(result)
            found[str(length)] = {
                name: {
                    "first_token_ms": round(1000 * statistics.median(first for first, _, _ in one), 1),
                    "tokens_per_s": round(statistics.median((made - 1) / (whole - first) for first, whole, made in one), 1),
                }
                for name, one in runs.items()
            }
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found["peak_rss_mb"] = round(peak / (2**20 if sys.platform == "darwin" else 1024))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
