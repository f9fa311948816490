"""How far an adapter has moved a model from what it was: on the model's own samples, the cheapest picture of all it knew.

Forgetting goes with the Kullback-Leibler divergence between the two (Shenfeld et al. 2025, arXiv:2509.04259). Knows nothing
about notes; the samples are the base's, made once for each base and kept in a file.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

from vaultllm import evaluate
from vaultllm import tokenizer as bpe
from vaultllm.evaluate import Window
from vaultllm.files import write_whole
from vaultllm.models import batched, hf

TOKENS = 512
"""Of the samples together, at least."""
LENGTH = 64
"""Of one sample, at most: what moves far moves in its first words."""
ROWS = 8
"""Samples that are made at once."""
SEED = 20
"""The same samples for every adapter of a base."""


def samples(
    loaded: hf.Loaded, base_sha: str, cache: Path | None, seconds: float, *, tokens: int = TOKENS, seed: int = SEED
) -> list[list[int]]:
    """What the base says of itself at temperature 1, from nothing: texts as ids, what they begin with included.

    As many as hold `tokens`, or fewer when `seconds` are over. Those in `cache` that are of this base come first, what is missing
    is made and written there: always the same for a `seed`. A micro base's samples may repeat notes: keep them beside it, where
    they are deleted with it.
    """
    found = _read(cache, base_sha)
    known = whole = len(found)
    if sum(map(len, found)) >= tokens:
        return found
    start = evaluate.start_of_text(loaded.tokenizer) or bpe.encode_text(loaded.tokenizer, "\n")
    began = time.monotonic()
    most = min(LENGTH, loaded.context - len(start))
    with evaluate.base_only(loaded.model):
        while sum(map(len, found)) < tokens and (not found or time.monotonic() - began < seconds):
            left = max(seconds - (time.monotonic() - began), 0.05)
            made = batched.continuations(loaded, [start] * ROWS, most, sample=True, seed=seed + len(found), seconds=left)
            in_time = time.monotonic() - began < seconds  # else they end where the time did
            if in_time or not found:
                found += [start + ids for ids in made if ids]
            whole = len(found) if in_time else whole
            if len(found) >= 8 * ROWS and sum(map(len, found)) < ROWS * len(found):  # a base that ends at once
                break
    if cache is not None and whole > known:
        write_whole(cache, json.dumps({"base_sha": base_sha, "samples": found[:whole]}) + "\n")
    return found


def _read(cache: Path | None, base_sha: str) -> list[list[int]]:
    """The samples of this base that a file holds; [] when it holds others, or is damaged."""
    try:
        data = json.loads(cache.read_text(encoding="utf-8")) if cache is not None else {}
        found = data["samples"] if data.get("base_sha") == base_sha else []
        return [[int(one) for one in row] for row in found if len(row) > 1]
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return []


def measure(loaded: hf.Loaded, base_sha: str, cache: Path | None, seconds: float) -> dict[str, Any]:
    """The adapter on `loaded` against its base: {kl_bits, bpb_base, bpb_trained, tokens, bytes, samples}.

    `kl_bits`: KL(base || trained) in bits, mean over the tokens of the samples, each with the whole vocabulary. The two others:
    bits per byte of the samples. Without an adapter, or in less time than a sample takes, only `skipped`, which says why.
    """
    if not hasattr(loaded.model, "disable_adapter"):
        return {"skipped": "there is no adapter"}
    began = time.monotonic()
    found = samples(loaded, base_sha, cache, seconds / 2)
    kl = base = trained = 0.0
    tokens = size = seen = 0
    for row in found:
        if seen and time.monotonic() - began > seconds:
            break
        far, own, other = _compare(loaded.model, row)
        kl, base, trained = kl + far, base + own, trained + other
        tokens, seen = tokens + len(row) - 1, seen + 1
        size += len(loaded.tokenizer.decode(row[1:], skip_special_tokens=True, clean_up_tokenization_spaces=False).encode())
    if not size:
        return {"skipped": "the base says nothing by itself"}
    return {
        "kl_bits": kl / tokens,
        "bpb_base": base / size,
        "bpb_trained": trained / size,
        "tokens": tokens,
        "bytes": size,
        "samples": seen,
    }


def _compare(model: Any, row: list[int]) -> tuple[float, float, float]:
    """Sums over the tokens of one sample, in bits: KL(base || trained), what they cost the base, what they cost the other."""
    import torch

    ids, mask, labels = evaluate.pad([Window(row, [False] + [True] * (len(row) - 1))])
    where = next(model.parameters()).device
    given = {"input_ids": ids.to(where), "attention_mask": mask.to(where), "use_cache": False}
    with torch.inference_mode():
        after = model(**given).logits[0, :-1].float().log_softmax(-1)
        with evaluate.base_only(model):
            before = model(**given).logits[0, :-1].float().log_softmax(-1)
        # Summed on the CPU: MPS has no float64.
        far = float((before.exp() * (before - after)).sum(-1).cpu().double().sum())
        costs = [-float(one.gather(1, labels[0, 1:, None].to(where)).cpu().double().sum()) for one in (before, after)]
    return max(far, 0.0) / math.log(2), costs[0] / math.log(2), costs[1] / math.log(2)
