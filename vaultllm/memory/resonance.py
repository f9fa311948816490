"""Resonance: what the passages found lend to others that are joined to them otherwise than by their words.

One step of spreading activation (Collins & Loftus 1975) over edges of several kinds, each with a weight that 0 switches off:
the turns beside, links both ways, shared rare tags, shared rare keywords, the same heading, the note or speaker that the question
names; and, as a tie-breaker, how often and how lately a passage was cited (base-level activation, Anderson & Schooler 1991).
Whatever is shared by many lends little to each. Knows nothing about how the passages were found.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vaultllm import text as texts

if TYPE_CHECKING:
    from vaultllm.config import MemorySettings
    from vaultllm.ledger import Ledger
    from vaultllm.shelf import Place, StoredPassage

EDGES = ("near", "links", "tags", "terms", "heading", "named", "used")
"""The kinds of edges, by the names of their weights in the settings."""

SEEDS = 100  # passages that lend to those beside them
_FEW = 12  # of which lend over the other edges
_NEAR = {1: 1.0, 2: 0.7, 3: 0.5}  # by the distance in the note: an answer may come a few turns after its question
_PROSE = 0.75  # what a section lends to the next one, beside what a turn does
_RARE = 30  # a tag or keyword of more passages joins nothing; a heading's first so many are looked at

Lent = dict[int, float]


def lend(
    ledger: Ledger, seeds: Mapping[int, float], question: str, settings: MemorySettings, now: datetime | None = None
) -> dict[str, Lent]:
    """Kind of edge -> passage (slot) -> what it is lent, weighed.

    `seeds`: passage -> its score, 0..1, the best first. `question`: its words, for what it names.
    """
    places = ledger.places(list(seeds)[:SEEDS])
    stored = ledger.passages(list(places))
    few = {slot: places[slot] for slot in list(places)[:_FEW]}
    ways: dict[str, Callable[[], Lent]] = {
        "near": lambda: _near(ledger, places, seeds),
        "links": lambda: _links(ledger, places, seeds),
        "tags": lambda: _shared(ledger, {slot: _tags(stored[slot].passage.context) for slot in few}, seeds),
        "terms": lambda: _shared(ledger, _keywords(ledger, few), seeds),
        "heading": lambda: _heading(ledger, few, stored, seeds),
        "named": lambda: _named(stored, seeds, question),
        "used": lambda: _used(ledger, stored, now or datetime.now(UTC)),
    }
    weights = {name: float(getattr(settings, name)) for name in EDGES}
    return {name: {slot: weights[name] * amount for slot, amount in way().items()} for name, way in ways.items() if weights[name]}


def _near(ledger: Ledger, places: Mapping[int, Place], seeds: Mapping[int, float]) -> Lent:
    """To the three passages before and after each in its note: how much less than their best neighbour they say themselves.

    Only what is missing, and of one neighbour only: where the sum of all neighbours is lent, a long note whose every section says
    a little passes a short one that says it all. This way nobody passes the one that lends, and who says it all gets nothing.
    """
    lent: dict[int, float] = {}
    for slot, place in places.items():
        beside = ledger.beside(place)
        here = beside.index(slot)
        share = 1.0 if place.is_talk else _PROSE
        for number in range(max(0, here - len(_NEAR)), min(len(beside), here + len(_NEAR) + 1)):
            other = beside[number]
            if other != slot:
                missing = share * (_NEAR[abs(number - here)] * seeds[slot] - seeds.get(other, 0.0))
                if missing > lent.get(other, 0.0):
                    lent[other] = missing
    return lent


def _links(ledger: Ledger, places: Mapping[int, Place], seeds: Mapping[int, float]) -> Lent:
    """Wikilinks both ways; shared among all that a scene is linked with, so that a note that links to everything says nothing."""
    scores: dict[int, float] = {}
    for slot, place in places.items():
        scores[place.scene] = max(scores.get(place.scene, 0.0), seeds[slot])
    linked = ledger.linked(list(scores)[: SEEDS // 2])
    degree = Counter(scene for scene, _ in linked)
    lent: defaultdict[int, float] = defaultdict(float)
    for scene, other in linked:
        lent[other] += scores[scene] / degree[scene]
    best: dict[int, int] = {}  # scene -> the passage that stands for it: the best that was found, else its first
    for slot, scene in ledger.passages_in(list(lent)):
        if scene not in best or seeds.get(slot, 0.0) > seeds.get(best[scene], 0.0):
            best[scene] = slot
    return {best[scene]: min(1.0, amount) for scene, amount in lent.items() if scene in best}


def _shared(ledger: Ledger, words: Mapping[int, Sequence[str]], seeds: Mapping[int, float]) -> Lent:
    """Passages that hold the same rare word of the index."""
    held = ledger.index.rare((word for said in words.values() for word in said), _RARE)
    lent: defaultdict[int, float] = defaultdict(float)
    for slot, said in words.items():
        for word in said:
            others = held.get(word, ())
            for other in others:
                if other != slot:
                    lent[other] += seeds[slot] / max(1, len(others) - 1)
    return {slot: min(1.0, amount) for slot, amount in lent.items()}


def _tags(context: str) -> list[str]:
    return [texts.fold(word) for word in context.split() if word.startswith("#")]


def _keywords(ledger: Ledger, places: Mapping[int, Place]) -> dict[int, Sequence[str]]:
    """Of talks, where what a turn is about was often said elsewhere; a section says its keywords itself, and the words know that."""
    scenes = ledger.scenes_at(sorted({place.scene for place in places.values() if place.is_talk}))
    return {slot: scenes[place.scene].field for slot, place in places.items() if place.scene in scenes}


def _heading(ledger: Ledger, places: Mapping[int, Place], stored: Mapping[int, StoredPassage], seeds: Mapping[int, float]) -> Lent:
    """Sections of one note that stand under the same heading."""
    lent: defaultdict[int, float] = defaultdict(float)
    for slot, place in places.items():
        path = stored[slot].passage.context.partition("\n")[0].split(" › ")
        if len(path) > 2 and not place.is_talk:
            others = [other for other in ledger.under(place.note, " › ".join(path[:-1]), _RARE) if other != slot]
            for other in others:
                lent[other] += seeds[slot] / len(others)
    return {slot: min(1.0, amount) for slot, amount in lent.items()}


def _named(stored: Mapping[int, StoredPassage], seeds: Mapping[int, float], question: str) -> Lent:
    """Passages of a note whose title, or of a speaker whose name, the question says."""
    asked = set(texts.stems(question))
    return {slot: 1.0 for slot, one in stored.items() if any(name <= asked for name in _names(one.passage.context))}


@functools.lru_cache(maxsize=2_000)
def _names(context: str) -> tuple[frozenset[str], ...]:
    """The title and the speaker, as stems; none of fewer than four letters."""
    first, *rest = context.split("\n")
    names = [first.split(" › ")[0], *(line[1:] for line in rest if line.startswith("@"))]
    return tuple(frozenset(texts.stems(name)) for name in names if sum(map(str.isalpha, name)) >= 4 and texts.words(name))


def _used(ledger: Ledger, stored: Mapping[int, StoredPassage], now: datetime) -> Lent:
    """Base-level activation ln(Σ age^-0.5), ages in hours, of what answers have cited; squashed to 0..1."""
    cited = _citations(ledger)
    lent: Lent = {}
    for slot, one in stored.items():
        first, last = one.passage.lines
        ages = [max(1.0, (now - at).total_seconds() / 3600) for at, begin, end in cited.get(one.path, ()) if begin <= last and first <= end]
        if ages:
            lent[slot] = 1 / (1 + math.exp(-math.log(sum(age**-0.5 for age in ages)) - 2))
    return lent


def _citations(ledger: Ledger) -> dict[str, list[tuple[datetime, int, int]]]:
    """Path -> when it was cited by an answer, and which lines."""
    found: dict[str, list[tuple[datetime, int, int]]] = defaultdict(list)
    for created, record in ledger.answers(500):
        at = datetime.fromisoformat(created)
        for source in json.loads(record).get("sources", ()):
            found[source["path"]].append((at if at.tzinfo else at.replace(tzinfo=UTC), *source["lines"]))
    return found
