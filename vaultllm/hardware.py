"""What this machine can train: the speed and memory of a LoRA step, measured on small random models in a few seconds.

Downloads nothing and writes nothing. What it says of a base that is not here is an estimate: shapes as published, work in
FLOPs, speed as measured on a few layers of such widths. Knows nothing about vaults, datasets or runs.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, NamedTuple

from vaultllm import evaluate, fit, power, train
from vaultllm.config import TrainSettings
from vaultllm.evaluate import Window
from vaultllm.fit import Shape
from vaultllm.models import hf, packed, plan
from vaultllm.schema import Progress, Report

SECONDS = 20.0
"""Most that a probe takes, where one step of a few layers does not take seconds itself."""
STEP = 1.5
"""Seconds that one measured step may take; a slow machine reads fewer tokens in it."""


def _micro() -> Shape:
    shape = plan.SHAPES[3]
    return Shape("micro", shape.layers, shape.width, shape.heads, shape.heads, shape.width // shape.heads, shape.inner, 4096, False)


BASES = (
    _micro(),
    Shape("135M", 30, 576, 9, 3, 64, 1536, 49_152, True),
    Shape("0.6B", 28, 1024, 16, 8, 128, 3072, 151_936, True),
    Shape("1.7B", 28, 2048, 16, 8, 128, 6144, 151_936, True),
    Shape("4B", 36, 2560, 32, 8, 128, 9728, 151_936, True),
)
"""micro: a middle size of our own; the others: SmolLM2-135M, Qwen3-0.6B, -1.7B and -4B as their configurations say."""


class Speed(NamedTuple):
    """What one model did."""

    width: int
    """Its hidden size."""
    half: bool
    """Whether in bf16."""
    sequence: int
    """Tokens of a row."""
    tokens_per_s: float
    """Of whole steps: forward, loss, backward, AdamW."""
    flops_per_s: float
    """Of the matrices: the same as work, without the time that the loss takes."""


def probe(settings: TrainSettings, tokens: int | None, progress: Report, seconds: float = SECONDS) -> dict[str, Any]:
    """Measure for about `seconds` and say for each of `BASES` whether and how fast it trains here.

    `tokens`: of one pass over what is to be learnt, context included; None: not known. Returns {device, others_per_core,
    measured, bases, dataset_tokens, epochs, seconds}; each base has {base, parameters, dtype, sequence, batch_tokens,
    tokens_per_s, memory_mb, fits, hours, estimated, quantize, checkpointing, why}.
    `hours` are for `train.epochs` passes; None where there are no tokens, or it does not fit.
    """
    began = time.monotonic()
    busy = power.Others().per_core()
    progress(Progress("measuring speed", 0.0))
    hf.quiet()
    where = fit.machine()
    half = bool(where["bf16"])
    wide = BASES[-1] if where["device"] == "cuda" else BASES[2]  # wide enough to keep a GPU busy; a CPU would take too long
    models = (BASES[0], *(one._replace(layers=4, vocabulary=8192) for one in (BASES[1], wide)))
    logit = logit_seconds(where["device"], half)
    found: list[Speed] = []
    for number, one in enumerate(models):
        left = seconds - (time.monotonic() - began)
        found += measure(one, settings, where["device"], half and one.half, left * (0.25, 0.4, 0.8)[number], logit)
        progress(Progress("measuring speed", (number + 1) / len(models)))
    return {
        "device": where,
        "others_per_core": round(busy, 2),
        "measured": [one._asdict() for one in found],
        "bases": [row(base, settings, where, found, tokens, logit) for base in BASES],
        "dataset_tokens": tokens,
        "epochs": settings.epochs,
        "seconds": round(time.monotonic() - began, 1),
    }


def logit_seconds(device: str, half: bool) -> float:
    """What the loss costs for each number of the output layer, beyond the matrix product: a tenth of a step with large vocabularies."""
    import torch

    rows, vocabulary = (256 if device == "cuda" else 32), BASES[-1].vocabulary
    ids, mask, labels = (part.to(device) for part in evaluate.pad([Window([0] * (rows + 1), [False] + [True] * rows)]))
    best = math.inf
    try:
        for _ in range(3):
            dtype = torch.bfloat16 if half else torch.float32
            logits = torch.zeros(1, rows + 1, vocabulary, dtype=dtype, device=device, requires_grad=True)
            said = SimpleNamespace(logits=logits)
            _waited(device)
            began = time.perf_counter()
            evaluate.token_losses(lambda said=said, **given: said, ids, mask, labels)[0].mean().backward()
            _waited(device)
            best = min(best, time.perf_counter() - began)
    except (torch.OutOfMemoryError, MemoryError):
        return 0.0
    return best / (rows * vocabulary)


def measure(base: Shape, settings: TrainSettings, device: str, half: bool, seconds: float, logit: float = 0.0) -> list[Speed]:
    """One LoRA training on random tokens for about `seconds`, at least two steps; empty when the memory is not enough for it.

    `logit`: seconds of `logit_seconds`, which are no work of the matrices.
    """
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=base.vocabulary, hidden_size=base.width, intermediate_size=base.inner, num_hidden_layers=base.layers,
        num_attention_heads=base.heads, num_key_value_heads=base.shared, head_dim=base.head, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    began = time.monotonic()
    sequence = fit.SHORTEST // 2
    best = math.inf
    try:
        with torch.random.fork_rng(devices=[]):  # whoever asks keeps their random numbers
            model = Qwen3ForCausalLM(config).to(torch.bfloat16 if half else torch.float32).to(device)
            model.requires_grad_(False)
            model = train.adapted(model, settings, 0).train()
        optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-6)
        _step(model, optimizer, base, sequence, 1, device)  # allocates
        warm = _step(model, optimizer, base, sequence, 1, device)
        longest = min(settings.max_tokens, 2048)
        while sequence * 2 <= longest and warm * 2 <= STEP:
            sequence, warm = sequence * 2, warm * 2
        rows = 1 if device == "cpu" else max(1, min(fit.BATCH, fit.tokens_per_pass(base.vocabulary, base.parameters(), device) // sequence))
        steps = 0
        while steps < 2 or (time.monotonic() - began + best < seconds and steps < 12):
            best = min(best, _step(model, optimizer, base, sequence, rows, device))
            steps += 1
    except (torch.OutOfMemoryError, MemoryError):
        return []
    token = best / (sequence * rows)
    matrices = max(token - logit * base.vocabulary, token / 2)  # noise must not make it fast
    return [Speed(base.width, half, sequence, round(1 / token, 1), base.flops(sequence, settings.rank) / matrices)]


def _step(model: Any, optimizer: Any, base: Shape, sequence: int, rows: int, device: str) -> float:
    """Seconds of one optimiser step as the training takes it."""
    ids = [number * 7919 % base.vocabulary for number in range(sequence)]
    batch = [part.to(device) for part in evaluate.pad([Window(ids, [False] + [True] * (sequence - 1))] * rows)]
    _waited(device)
    began = time.perf_counter()
    with packed.applied(model, packs=device == "cpu"):  # in the layers that a training has there
        evaluate.token_losses(model, *batch)[0].mean().backward()
    optimizer.step()
    optimizer.zero_grad()
    _waited(device)
    return time.perf_counter() - began


def _waited(device: str) -> None:
    """What was asked of the device is done."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()
    elif device == "mps":
        torch.mps.synchronize()


def row(
    base: Shape, settings: TrainSettings, where: dict[str, Any], found: Sequence[Speed], tokens: int | None, logit: float = 0.0
) -> dict[str, Any]:
    """One line of the table; of `where` {device, free_mb, bf16} are read; `logit`: seconds of `logit_seconds`."""
    found_fit = fit.choose(
        base, device=where["device"], free_mb=where["free_mb"], bf16=bool(where["bf16"]), sequence=settings.max_tokens,
        rank=settings.rank, quantize=settings.quantize,
    )  # fmt: skip
    rate = flops_per_s(found, base.width, found_fit.dtype == "bfloat16")
    again = fit.RECOMPUTED if found_fit.checkpointing else 1.0
    speed = 1 / (again * base.flops(found_fit.sequence, settings.rank) / rate + logit * base.vocabulary) if rate else None
    usable = speed if found_fit.fits else None
    return {
        "base": base.name,
        "parameters": base.parameters(),
        "dtype": found_fit.dtype,
        "quantize": found_fit.quantize,
        "checkpointing": found_fit.checkpointing,
        "sequence": found_fit.sequence,
        "batch_tokens": found_fit.tokens,
        "tokens_per_s": None if speed is None else round(speed, 1),
        "memory_mb": found_fit.memory_mb,
        "fits": found_fit.fits,
        "why": list(found_fit.reasons),
        "hours": None if usable is None or tokens is None else round(tokens * settings.epochs / usable / 3600, 3),
        "estimated": base != BASES[0],  # that one was measured whole
    }


def flops_per_s(found: Sequence[Speed], width: int, half: bool) -> float | None:
    """Speed at a width: between two measured widths by their logarithms, beyond them that of the nearest; None: nothing measured.

    Wider matrices use a machine better, so for wider models than were measured it says too little rather than too much.
    """
    known = sorted((one.width, one.flops_per_s) for one in found if one.half == half)
    if not known:
        return None
    for (narrow, slow), (wide, fast) in itertools.pairwise(known):
        if narrow <= width <= wide:
            share = math.log(width / narrow) / math.log(wide / narrow)
            return math.exp(math.log(slow) * (1 - share) + math.log(fast) * share)
    return known[0][1] if width < known[0][0] else known[-1][1]
