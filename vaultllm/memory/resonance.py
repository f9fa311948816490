"""Resonance: what the passages found lend to others that are joined to them otherwise than by their words (spreading activation).

One step over edges of several kinds, each with a weight that can be switched off (Collins & Loftus 1975). Knows nothing about how
the passages were found.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vaultllm.config import MemorySettings
    from vaultllm.ledger import Ledger, Place


def lend(
    ledger: Ledger, places: Mapping[int, Place], base: Mapping[int, float], question: str, settings: MemorySettings
) -> dict[str, dict[int, float]]:
    """Kind of edge -> passage (slot) -> what it is lent, weighed.

    `places`: the passages that lend and where they stand; `base`: passage -> its score before, 0..1. What a scene lends over links
    is shared among them, so that a note that links to everything says nothing.
    """
    scores: dict[int, float] = {}
    for slot, place in places.items():
        scores[place.scene] = max(scores.get(place.scene, 0.0), base[slot])
    lent: defaultdict[int, float] = defaultdict(float)
    if settings.links:
        linked = ledger.linked(list(scores))
        degree = Counter(scene for scene, _ in linked)
        for scene, other in linked:
            lent[other] += scores[scene] / degree[scene]
    best = _passages_of(ledger, lent, base)
    return {"links": {best[scene]: settings.links * min(1.0, amount) for scene, amount in lent.items() if scene in best}}


def _passages_of(ledger: Ledger, scenes: Mapping[int, float], base: Mapping[int, float]) -> dict[int, int]:
    """Scene -> the passage that stands for it: the best that was found, else its first."""
    found: dict[int, int] = {}
    for slot, scene in ledger.passages_in(list(scenes)):
        if scene not in found or base.get(slot, 0.0) > base.get(found[scene], 0.0):
            found[scene] = slot
    return found
