"""All measures of one training, side by side, within a time: each is cut rather than late, and says how much it saw.

Knows which measures there are; knows nothing about the ledger, the registry or what is decided by them.
"""

from __future__ import annotations

import lzma
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from vaultllm import drift, manners, memorised, probes, yardsticks
from vaultllm.errors import VaultllmError
from vaultllm.evaluate import Score
from vaultllm.models import hf
from vaultllm.schema import Example, Progress, Report

SHARES = {"yardsticks": 0.25, "memorised": 0.25, "drift": 0.1, "manners": 0.2, "probes": 0.2}
"""Of the time; what one leaves the later ones have."""


def measure(
    loaded: hf.Loaded,
    train: Sequence[Example],
    held_out: Sequence[Example],
    scores: Mapping[str, Sequence[Score]],
    seconds: float,
    *,
    base_sha: str,
    samples: Path | None,
    recall: Callable[[str, str], str] | None,
    progress: Report,
) -> dict[str, Any]:
    """Every measure by name, and `seconds` that each took: {yardsticks, memorised, drift, manners, probes, measured_seconds}.

    `loaded` wears the adapter. `held_out`: what the models' `scores` are of, at least. `samples`: where the base's own are kept.
    `recall`: as `probes.measure` wants it. A measure that fails is {skipped: why}; it never takes the training with it.
    """
    scored = {one.example for several in scores.values() for one in several}
    compared = [example for example in held_out if example.id in scored] if scored else held_out

    def yard(left: float) -> dict[str, Any]:
        return yardsticks.measure(train, compared, scores, left)

    def memory(left: float) -> dict[str, Any]:
        return memorised.measure(loaded, train, held_out, left)

    def far(left: float) -> dict[str, Any]:
        return drift.measure(loaded, base_sha, samples, left)

    def polite(left: float) -> dict[str, Any]:
        return manners.measure(loaded, held_out, left)

    def probed(left: float) -> dict[str, Any]:
        return probes.measure(loaded, train, held_out, recall, left)

    found: dict[str, Any] = {}
    took: dict[str, float] = {}
    saved = done = 0.0
    for (name, share), one in zip(SHARES.items(), (yard, memory, far, polite, probed), strict=True):
        progress(Progress(f"measuring: {name}", done))
        done += share
        started = time.monotonic()
        try:
            found[name] = one(share * seconds + saved)
        except (VaultllmError, OSError, ValueError, RuntimeError, MemoryError, lzma.LZMAError) as error:
            found[name] = {"skipped": f"it failed: {str(error).splitlines()[0] if str(error) else type(error).__name__}"[:300]}
        took[name] = round(time.monotonic() - started, 2)
        saved = max(0.0, saved + share * seconds - took[name])  # what is late takes nothing from the others
    return found | {"measured_seconds": took}
