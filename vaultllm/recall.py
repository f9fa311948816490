"""One question -> ranked, explained hits.

Three legs, fused by normalised scores (rank fusion with a weak leg wrecks the result): words (BM25 over stems and over
4-grams) and vectors; then one step of resonance (`memory/resonance.py`; PageRank over the same graph was not better). What is
ranked is the passage, what is handed on the scene around it. Works with whatever is there: without vectors by words alone. Knows
nothing about prompts or models that speak.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Literal

import numpy as np

from vaultllm import remember
from vaultllm.config import MemorySettings
from vaultllm.errors import LockedError, VaultllmError
from vaultllm.hits import Ranked as Ranked
from vaultllm.hits import as_hits
from vaultllm.ledger import Ledger
from vaultllm.memory import answerable, expand, filtered, fusion, live, query, rephrase, rerank, resonance
from vaultllm.memory.documents import Leg
from vaultllm.memory.vectors import MemoryBroken, Store
from vaultllm.schema import Hit, Scene
from vaultllm.shelf import Looked
from vaultllm.text import words

Dense = Literal["auto", "chroma", "exact"]

EXACT_BELOW = 200_000  # passages: up to here a scan of all vectors is as fast as Chroma, and exact; beyond, it takes a gigabyte
CANDIDATES = 100  # passages whose scenes may be hits, at least
POOL = 300  # passages that each leg names, at least
_LARGER = (1, 8, 64)  # times so many, while too few of those that were named hold a phrase, or lack an unwanted one
_FEW = 10_000  # passages that may pass a filter: up to here their vectors are compared one by one where else Chroma is asked
_MOST_ASKED = 5_000  # neighbours that Chroma is asked for, of which a filter leaves some


@dataclass(frozen=True, slots=True)
class Found:
    """What the memory says to a question."""

    hits: list[Hit]
    """The best scenes, best first."""
    confidence: float
    """How sure it is that they speak of the question, 0..1: comparable from one question to the next."""
    answerable: bool
    """Whether that is enough; else nothing in the vault speaks of it."""
    measured: bool
    """Whether that was learnt from this vault; else weights that fit any serve."""
    rephrased: rephrase.Rephrased = rephrase.NOTHING
    """What was looked for beside the question, or why nothing was."""


def recall(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    question: str,
    k: int,
    *,
    allow: Callable[[Scene], bool] | None = None,
    dense: Dense = "auto",
    today: date | None = None,
    plain: bool = False,
) -> list[Hit]:
    """The best k scenes for a question, best first; [] when the memory is empty or holds nothing of it.

    `allow` leaves scenes out. `dense` says where near vectors are looked for: `exact` scans the ledger's, `chroma`
    asks Chroma (and scans if it is broken or another process has it open), `auto` chooses by size. `plain`: the question is only
    words; else filters in it count, and one that is wrong raises UsageError. `today`: what its times are told from.
    """
    if k < 1:
        return []
    found = ranked(ledger, folder, settings, question, max(CANDIDATES, 10 * k), dense=dense, today=today, plain=plain)
    return as_hits(ledger, found, k, allow, settings.diversity)


def find(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    question: str,
    k: int,
    *,
    allow: Callable[[Scene], bool] | None = None,
    today: date | None = None,
    plain: bool = False,
    judge: rerank.Judge | None = None,
    rephraser: rephrase.Rephraser | None = None,
) -> Found:
    """As `recall`, and whether the vault speaks of the question at all: of the question as it was asked, whatever else is looked for.

    `judge` puts the best in its own order, `rephraser` says what else to look for.
    """
    if k < 1:
        return Found([], 0.0, False, False)
    asked = _asked(question, today, plain)
    rephrased = rephraser.rephrase(asked.text) if rephraser is not None else rephrase.NOTHING
    found = _ranked(ledger, folder, settings, asked, max(CANDIDATES, 10 * k), "auto", judge, rephrased.queries)
    hits = as_hits(ledger, found, k, allow, settings.diversity)
    shown = {hit.scene.id for hit in hits}
    calibration = _calibration(ledger)
    sure = _confidence(ledger, calibration, asked, [one for one in found if one.stored.passage.scene in shown])
    return Found(hits, sure, answerable.speaks(calibration, sure), calibration.is_measured, rephrased)


def confidence(
    ledger: Ledger, question: str, found: Sequence[Ranked], *, today: date | None = None, plain: bool = False
) -> tuple[float, bool]:
    """How sure the memory is, 0..1, that passages (as `ranked` gives them) speak of a question, and whether that is enough."""
    calibration = _calibration(ledger)
    sure = _confidence(ledger, calibration, _asked(question, today, plain), found)
    return sure, answerable.speaks(calibration, sure)


def _asked(question: str, today: date | None, plain: bool) -> query.Query:
    today = today or date.today()
    return query.plain(question, today) if plain else query.parse(question, today)


def _calibration(ledger: Ledger) -> answerable.Calibration:
    about = remember.fitted(ledger)
    return answerable.load(ledger, "" if about is None else about["fingerprint"])


def _confidence(ledger: Ledger, calibration: answerable.Calibration, asked: query.Query, found: Sequence[Ranked]) -> float:
    when = "" if asked.when is None else asked.when.words
    seen = [
        answerable.Seen(
            one.stored.slot,
            # A passage of the time that the question names need not say so.
            f"{one.stored.passage.context}\n{one.stored.passage.text}" + (f"\n{when}" if "time" in one.why else ""),
            one.cosine,
        )
        for one in found[: answerable.LOOKED_AT]
    ]
    return answerable.confidence(ledger, calibration, asked.text, seen)


def ranked(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    question: str,
    most: int,
    *,
    dense: Dense = "auto",
    today: date | None = None,
    plain: bool = False,
    judge: rerank.Judge | None = None,
    rephraser: rephrase.Rephraser | None = None,
) -> list[Ranked]:
    """The best passages for a question, best first, at most `most`; the arguments are those of `recall` and `find`."""
    asked = _asked(question, today, plain)
    queries = rephraser.rephrase(asked.text).queries if rephraser is not None else ()
    return _ranked(ledger, folder, settings, asked, most, dense, judge, queries)


def _ranked(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    asked: query.Query,
    most: int,
    dense: Dense,
    judge: rerank.Judge | None,
    queries: Sequence[rephrase.Query] = (),
) -> list[Ranked]:
    among = filtered.slots(ledger, asked)
    if among is not None and not len(among):
        return []
    enough = max(POOL, most)
    about = remember.fitted(ledger)
    whose = (about["fingerprint"], about["spec"]) if about else ("", "vault")
    settings = settings.model_copy(update=fusion.weights(ledger, settings, *whose)._asdict())
    for pool in (enough * times for times in _LARGER):
        cosines: dict[int, float] = {}
        parts = _legs(ledger, folder, settings, asked.text, pool, dense, among, cosines)
        rephrase.join(
            parts, [(one.weight, _legs(ledger, folder, one.leaning(settings), one.text, pool, dense, among, {})) for one in queries]
        )
        for slot in _dated(ledger, settings, asked, among, pool):
            parts[slot]["time"] = settings.time
        base = {slot: sum(why.values()) for slot, why in parts.items()}
        order = sorted(base, key=lambda slot: (-base[slot], slot))
        allowed = _allowed(ledger, asked, order, enough)
        if len(allowed) >= enough or len(base) < pool or (among is not None and len(base) == len(among)):  # or all were named
            break
    if asked.filters and not allowed and not words(asked.about):
        return _newest(ledger, asked, among, most)
    for name, lent in resonance.lend(ledger, {slot: base[slot] for slot in allowed}, asked.about, settings).items():
        for slot, amount in lent.items():
            parts[slot][name] = amount
    fresh = [slot for slot in parts if slot not in base]
    totals = {slot: sum(parts[slot].values()) for slot in [*allowed, *_allowed(ledger, asked, fresh, len(fresh))]}
    best = sorted((slot for slot, total in totals.items() if total > 0), key=lambda slot: (-totals[slot], slot))[:most]
    whole = max([1.0, *(totals[slot] for slot in best)])
    stored = ledger.passages(best)
    found = [
        Ranked(
            stored[slot], totals[slot] / whole, {name: part / whole for name, part in parts[slot].items() if part > 0}, cosines.get(slot)
        )
        for slot in best
        if slot in stored
    ]
    ordered = sorted(found, key=lambda one: (-one.score, one.stored.path, one.stored.slot))
    return rerank.reorder(ordered, asked.text, judge) if judge is not None else ordered


def _newest(ledger: Ledger, asked: query.Query, among: np.ndarray | None, most: int) -> list[Ranked]:
    """What a question of nothing but filters asks for: of each scene that passes the first passage, the latest first."""
    first: dict[int, int] = {}
    for one in _passing(ledger, asked, ledger.latest(None if among is None else among.tolist())):
        first.setdefault(one.scene, one.slot)
        if len(first) >= most:
            break
    stored = ledger.passages(list(first.values()))
    scores = [(slot, 1.0 - place / len(first)) for place, slot in enumerate(first.values())]
    return [Ranked(stored[slot], score, {"filter": score}) for slot, score in scores if slot in stored]


def _dated(ledger: Ledger, settings: MemorySettings, asked: query.Query, among: np.ndarray | None, most: int) -> list[int]:
    """Passages of the time that a question names, the latest first."""
    if asked.when is None or not settings.time:
        return []
    found = ledger.dated(asked.when.first.isoformat(), asked.when.last.isoformat() + "~", most if among is None else -1)
    return found if among is None else np.array(found, np.int64)[np.isin(found, among)][:most].tolist()


def _legs(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    said: str,
    most: int,
    dense: Dense,
    among: np.ndarray | None,
    cosines: dict[int, float],
) -> defaultdict[int, dict[str, float]]:
    """Passage -> leg -> its share of the score: each leg's scores are divided by its best one and weighed. Fills `cosines`.

    Of each leg the best `most` of those `among` which it may look.
    """
    legs: dict[str, tuple[float, dict[int, float]]] = {}
    if settings.words or settings.grams:
        also = {variant.word: variant.weight for _, variants in expand.expand(said, ledger.index) for variant in variants}
        alike = _synonyms(ledger, folder, settings, said) | also
        for name, weight, search in (("words", settings.words, ledger.index.stems), ("grams", settings.grams, ledger.index.grams)):
            if weight:
                found = search(said, settings.k1, settings.b, alike if name == "words" else also)
                legs[name] = (weight, _relative(_within(found, among), most))
    seen = {slot for _, scores in legs.values() for slot in scores}
    if settings.dense and (near := _cosines(ledger, folder, settings, said, most, seen, dense, among)) is not None:
        legs["dense"] = (settings.dense, _relative(near, len(near.slots)))
        cosines.update(zip(near.slots.tolist(), near.scores.tolist(), strict=True))
    whole = sum(weight for weight, _ in legs.values())
    parts: defaultdict[int, dict[str, float]] = defaultdict(dict)
    for name, (weight, scores) in legs.items():
        for slot, score in scores.items():
            parts[slot][name] = weight / whole * score
    return parts


def _synonyms(ledger: Ledger, folder: Path, settings: MemorySettings, said: str) -> dict[str, float]:
    """Words that the vault uses where it uses the question's, and what they count; {} where its own embedder does not answer."""
    about = remember.fitted(ledger) if settings.synonyms else None
    if about is None or about["spec"] != "vault":
        return {}
    try:
        found = expand.synonyms(said, ledger.index, live.embedder(about, folder))
    except (ValueError, VaultllmError):  # as in `_cosines`
        return {}
    return {word: settings.synonyms * cosine for word, cosine in found.items()}


def _relative(leg: Leg, most: int) -> dict[int, float]:
    """The best of a leg, min-max over the vault: what does not match at all is 0, the best is 1."""
    best = leg.best(most)
    return {slot: score / best[0][1] for slot, score in best if score > 0} if best and best[0][1] > 0 else {}


def _within(leg: Leg, among: np.ndarray | None) -> Leg:
    """What a leg says of those that may pass."""
    if among is None:
        return leg
    kept = np.isin(leg.slots, among)
    return Leg(leg.slots[kept], leg.scores[kept])


def _cosines(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    said: str,
    k: int,
    also: Iterable[int],
    dense: Dense,
    among: np.ndarray | None,
) -> Leg | None:
    """Cosines of the nearest k passages (`among` those) and of `also`; None when the vectors cannot say anything of this question."""
    about = remember.fitted(ledger)
    if about is None or not said.strip():
        return None
    fingerprint = about["fingerprint"]
    try:
        (vector,) = live.embedder(about, folder).embed([said], query=True)
    except (ValueError, VaultllmError):  # missing, damaged, its server away: by words alone, until the next refresh
        again = remember.fitted(ledger) != about  # another has taken its place this very moment
        return _cosines(ledger, folder, settings, said, k, also, dense, among) if again else None
    if not vector.any():
        return None
    every = None
    if dense == "chroma" or (dense == "auto" and _vectors(ledger) >= EXACT_BELOW):
        if among is not None and len(among) <= _FEW:
            every = _compared(ledger, fingerprint, vector, among.tolist())
        elif (near := _ask_chroma(ledger, remember.store(ledger, folder, settings), fingerprint, vector, k, among)) is not None:
            # Once more from the ledger, exactly, for what the words found too, and for what Chroma has not heard of yet.
            found = _within(_compared(ledger, fingerprint, vector, sorted({*near, *also, *ledger.outbox()})), among)
            return found if len(found.slots) else None
    if every is None:
        every = ledger.scan.cosines(fingerprint, vector)
        if not len(every.slots) and remember.fitted(ledger) != about:
            return _cosines(ledger, folder, settings, said, k, also, dense, among)
        every = _within(every, among)
    wanted = np.isin(every.slots, list(also))
    wanted[np.argpartition(-every.scores, k)[:k] if len(every.slots) > k else slice(None)] = True
    return Leg(every.slots[wanted], every.scores[wanted])


def _compared(ledger: Ledger, fingerprint: str, vector: np.ndarray, slots: Sequence[int]) -> Leg:
    """The cosines of these passages, by their vectors in the ledger."""
    there, vectors = ledger.vectors(fingerprint, slots)
    return Leg(np.array(there, np.int64), (vectors @ vector).astype(np.float64) if there else np.zeros(0))


def _vectors(ledger: Ledger) -> int:
    """How many vectors there are; `counts` would count all else too, at every question."""
    (count,) = ledger.db.execute("SELECT count(*) FROM vectors").fetchone()
    return int(count)


def _ask_chroma(
    ledger: Ledger, where: Store, fingerprint: str, vector: np.ndarray, k: int, among: np.ndarray | None
) -> Sequence[int] | None:
    """Slots near a vector, about k of them `among` those; None when Chroma is absent, away, broken, or being written to."""
    wanted = k if among is None else min(max(k, _MOST_ASKED), 2 * k * math.ceil(_vectors(ledger) / len(among)))
    try:
        return [slot for slot, _ in where.nearest(fingerprint, vector, wanted)]
    except (LockedError, MemoryBroken):
        return None


def _allowed(ledger: Ledger, asked: query.Query, order: Sequence[int], most: int) -> list[int]:
    """The first of these passages that the question's filters and phrases let through, at most so many."""
    if not asked.filters and not asked.phrases and not asked.without:
        return list(order[:most])
    return [one.slot for one in itertools.islice(_passing(ledger, asked, order), most)]


def _passing(ledger: Ledger, asked: query.Query, order: Iterable[int]) -> Iterator[Looked]:
    """Those of these passages that the question's filters and phrases let through, in their order."""
    tags = any(one.name == "tag" for one in asked.filters.conditions)
    text = bool(asked.phrases or asked.without)
    waiting = iter(order)
    while slots := list(itertools.islice(waiting, 500)):
        for one in ledger.looked_at(slots, tags=tags, text=text):
            if asked.filters.allows(
                path=one.path, tags=one.tags, at=one.at, kind=one.kind, trust=one.trust, language=one.language
            ) and asked.matches_text(one.text):
                yield one
