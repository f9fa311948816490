"""What a training that goes on from an adapter reads besides what is new, so that neither old notes nor the base are forgotten.

Old notes: a sample of them is learnt again. The base: its own samples are learnt beside the notes, and the adapter is held
to what the base says at each of their places (KL). Knows nothing about runs, nor who answers.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaultllm import drift, evaluate
from vaultllm.evaluate import Window
from vaultllm.files import write_whole
from vaultllm.models import hf
from vaultllm.schema import Example
from vaultllm.tasks import learnt_characters
from vaultllm.text import sha

SEED = 1_000_000
"""Other samples than those that drift is measured on."""
NOTED = "own.json"
"""In the folder of a run that is not over: how much the base has said."""
ELEMENTS = 2**23
"""Logits that are widened to fp32 at once: 32 MB for each of the two models."""


class Chosen(NamedTuple):
    """What is learnt of a training side."""

    new: tuple[Example, ...]
    """Not learnt yet, or changed since."""
    again: tuple[Example, ...]
    """Learnt before, learnt again."""
    left: int
    """Examples that were learnt before and are not learnt again."""


def chosen(examples: Sequence[Example], scenes: Mapping[str, str], learnt: Mapping[str, str], share: float, salt: str) -> Chosen:
    """The examples that are new since `learnt` (scene -> sha), and of the others about `share` of all that is learnt then.

    `scenes`: scene -> sha now. Which old ones are learnt again is decided by a hash with `salt`, another sample for each; both
    are in the order given. What is a scene's own text counts, not the scene before it, which is only read.
    """
    new = tuple(one for one in examples if learnt.get(one.scenes[-1]) != scenes.get(one.scenes[-1]))
    fresh = {one.id for one in new}
    old = [one for one in examples if one.id not in fresh]
    room = share / (1.0 - share) * sum(map(learnt_characters, new))
    again: set[str] = set()
    for one in sorted(old, key=lambda one: sha("replay", salt, one.id)):
        size = learnt_characters(one)
        if size <= room:  # one that is too long leaves its room to those after it
            room -= size
            again.add(one.id)
    return Chosen(new, tuple(one for one in old if one.id in again), len(old) - len(again))


def own(loaded: hf.Loaded, base_sha: str, cache: Path, folder: Path, wanted: int, seconds: float, resume: bool) -> list[Window]:
    """What the base says of itself: windows of about so many tokens as are `wanted`, fewer when `seconds` are over (`drift.samples`).

    How much it was is noted in the run's `folder`, and is the same on `resume`.
    """
    noted = folder / NOTED
    try:
        rows = int(json.loads(noted.read_text(encoding="utf-8"))["windows"]) if resume else None
    except (OSError, ValueError, KeyError, TypeError):  # it was stopped before it began to learn
        rows = None
    found = drift.samples(loaded, base_sha, cache, seconds, tokens=wanted, seed=SEED)
    if rows is None:
        ends = list(itertools.accumulate(len(row) - 1 for row in found))
        rows = next((i + 1 for i, end in enumerate(ends) if end >= wanted), len(found))
        write_whole(noted, json.dumps({"windows": rows}) + "\n", lasting=True)
    return [Window(row, [False] + [True] * (len(row) - 1)) for row in found[:rows]]


def token_losses(model: Any, bare: Any, ids: Any, mask: Any, labels: Any, kl: float) -> tuple[Any, Any]:
    """As `evaluate.token_losses`, of the base's own samples: each target's cost and `kl` times KL(base || adapter) at its place.

    `bare` is peft's wrapper, which `model` is or wraps. The base is read without dropout. The KL of the whole vocabulary is
    what the cost of one drawn token is an estimate of: it teaches the same with less noise (Hinton et al. 2015, arXiv:1503.02531).
    """
    import torch

    given, places, targets, rows = evaluate.laid(model, ids, mask, labels)
    before = None
    if kl > 0.0:
        was_training = bare.training
        bare.eval()
        with torch.no_grad(), evaluate.base_only(bare):  # first: peft takes the adapter's gradients away while it is off
            before = model(**given, use_cache=False).logits.flatten(0, 1).index_select(0, places)
        bare.train(was_training)
    after = model(**given, use_cache=False).logits.flatten(0, 1).index_select(0, places)
    return _costs()(after, before, targets, kl), rows


def _costs() -> Any:
    """The function, with its gradient: torch is imported late."""
    import torch

    class Costs(torch.autograd.Function):
        """-log q(target) + kl * KL(p || q) of each row, a few rows widened at once; p and q are given as logits (N, V)."""

        @staticmethod
        def forward(ctx: Any, after: Any, before: Any, targets: Any, kl: float) -> Any:
            ctx.save_for_backward(after, before, targets)
            ctx.kl = kl
            found = []
            for rows in _parts(after):
                q = after[rows].float().log_softmax(-1)
                cost = -q.gather(1, targets[rows, None])[:, 0]
                if before is not None:
                    p = before[rows].float().log_softmax(-1)
                    cost = cost + kl * (p.exp() * (p - q)).sum(-1)
                found.append(cost)
            return torch.cat(found) if found else after.new_zeros(0, dtype=torch.float32)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            after, before, targets = ctx.saved_tensors
            whole = torch.empty_like(after)
            for rows in _parts(after):
                q = after[rows].float().softmax(-1)
                slope = q.scatter_add(1, targets[rows, None], torch.full_like(targets[rows, None], -1, dtype=q.dtype))
                if before is not None:
                    slope = slope + ctx.kl * (q - before[rows].float().softmax(-1))
                whole[rows] = (slope * gradients[0][rows, None]).to(whole.dtype)
            return whole, None, None, None

    return Costs.apply


def _parts(logits: Any) -> list[slice]:
    """Its rows, `ELEMENTS` at once."""
    count = max(1, ELEMENTS // logits.shape[1])
    return [slice(start, start + count) for start in range(0, len(logits), count)]
