"""Ranked passages -> hits: the scenes around them, one note not filling the list, what stands twice named once.

Knows nothing about how the passages were found.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from vaultllm.ledger import Ledger
from vaultllm.schema import Hit, Scene
from vaultllm.shelf import StoredPassage


@dataclass(frozen=True, slots=True)
class Ranked:
    """A passage that was found, and why."""

    stored: StoredPassage
    """With its rows."""
    score: float
    """0..1 within one answer of the memory; comparable only there."""
    why: dict[str, float]
    """What it is made of; sums to the score."""
    cosine: float | None = None
    """With the question; None when no vector was compared."""


def as_hits(ledger: Ledger, found: Sequence[Ranked], k: int, allow: Callable[[Scene], bool] | None, diversity: float) -> list[Hit]:
    """The best k scenes as hits; a scene that stands in two notes once, in the note with the smallest path.

    Of two notes with one UID that say different things (a copy that went on, a UID that is none) both are hits. `diversity`:
    each further scene of one note counts so much less (lateral inhibition), so that one note does not fill the list; but the newest
    are asked for as they come.
    """
    diversity = 0.0 if found and "filter" in found[0].why else diversity
    order = {one.stored.slot: one.score for one in found}
    best: dict[int, Ranked] = {}
    for one in found:
        best.setdefault(one.stored.scene_slot, one)
    same: dict[tuple[str, str], list[int]] = defaultdict(list)
    for scene, one in best.items():
        same[one.stored.passage.scene, one.stored.scene_sha].append(scene)
    hits: list[Hit] = []
    for twins in _spread([sorted(twins, key=lambda scene: best[scene].stored.path) for twins in same.values()], best, diversity):
        records = ledger.scenes_at(twins)
        chosen = next((scene for scene in twins if scene in records and (allow is None or allow(records[scene]))), None)
        if chosen is not None:
            top = max((best[scene] for scene in twins), key=lambda one: one.score)
            hits.append(_hit(ledger, chosen, records[chosen], best[chosen].stored, top, order))
            if len(hits) >= k:
                break
    return hits


def _spread(groups: Sequence[list[int]], best: Mapping[int, Ranked], diversity: float) -> Iterator[list[int]]:
    """Groups of equal scenes, the best first; one whose note has been named before steps back."""
    left = sorted(groups, key=lambda twins: (-max(best[scene].score for scene in twins), best[twins[0]].stored.path))
    seen: dict[str, int] = defaultdict(int)
    while left:
        # A step back never goes beyond what is a little worse: only the head of the list need be looked at.
        chosen = max(
            range(min(len(left), 50)),
            key=lambda place: (
                max(best[scene].score for scene in left[place]) / (1 + diversity * seen[best[left[place][0]].stored.path]),
                -place,
            ),
        )
        twins = left.pop(chosen)
        seen[best[twins[0]].stored.path] += 1
        yield twins


def _hit(ledger: Ledger, slot: int, scene: Scene, stored: StoredPassage, top: Ranked, order: Mapping[int, float]) -> Hit:
    """One hit, the turns of its scene by the score of their best passage, those without one after them in their own order."""
    passage = stored.passage
    rows = ledger.db.execute("SELECT slot, uid FROM passages WHERE scene = ? ORDER BY ordinal", (slot,)).fetchall()
    in_order = sorted(rows, key=lambda row: -order.get(row[0], 0.0))
    uids = dict.fromkeys([passage.uid, *(uid for _, uid in in_order), *(turn.uid for turn in scene.turns)])
    return Hit(scene, stored.path, passage.lines, passage.text, tuple(filter(None, uids)), top.score, dict(top.why))
