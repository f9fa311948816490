"""Questions asked of the memory under several settings, and what their rankings are worth.

The unit that k counts: a turn where evidence is turns (a passage of prose takes one place too), a note where it is notes; each
once, at its first place. Questions are plain words here, as in `ask`: a data set knows nothing of filters, and its quotation marks
mean no exact phrase. Knows nothing about where the questions come from.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vaultllm import recall
from vaultllm.config import MemorySettings
from vaultllm.ledger import Ledger
from vaultllm.memory import measures, resonance
from vaultllm.memory.rephrase import Rephraser

By = Literal["uid", "path"]
Scores = dict[str, float]

LEGS = ("words", "grams", "dense")  # weights of `memory.*` that find; two halves: words with grams, and dense
EDGES = tuple(name for name in resonance.EDGES if name != "used")  # and those that lend; nothing was used in a memory just made
OTHERS = ("used", "time", "diversity")  # and those that only order what was found
WARM_UP = 3  # questions that are asked before the clock runs
MOST = 6_400  # passages are asked for at most, where many of one note crowd out the other notes
_EDGE_WEIGHT = 0.25  # of an edge that is off both in the settings and by default, when it is measured alone


@dataclass(frozen=True, slots=True)
class Asked:
    """What the memory said to one question."""

    ranking: tuple[str, ...]
    """Units, best first, each once: UIDs (`path:slot` for prose) or paths."""
    seconds: float
    """For the passages, without what was asked for again to fill the ranking."""
    confidence: float
    """How sure the memory is that the vault speaks of it, 0..1 (`memory/answerable.py`)."""


def ask(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    question: str,
    by: By,
    depth: int,
    without: Collection[str] = (),
    rephraser: Rephraser | None = None,
) -> Asked:
    """The first `depth` units for a question; passages of the notes `without` (paths) are passed over."""
    wanted = max(recall.CANDIDATES, 10 * depth)
    began = time.perf_counter()
    found = recall.ranked(ledger, folder, settings, question, wanted, plain=True, rephraser=rephraser)
    seconds = time.perf_counter() - began
    sure, _ = recall.confidence(ledger, question, [one for one in found if one.stored.path not in without], plain=True)
    while len(ranking := measures.first(units(found, by, without), depth)) < depth and len(found) >= wanted and wanted < MOST:
        wanted = min(2 * wanted, MOST)
        found = recall.ranked(ledger, folder, settings, question, wanted, plain=True, rephraser=rephraser)
    return Asked(tuple(map(str, ranking)), seconds, sure)


def units(found: Sequence[recall.Ranked], by: By, without: Collection[str] = ()) -> Iterator[str]:
    """The units of passages, in their order: their notes, or their turns; a passage of prose is a unit of its own."""
    for one in found:
        stored = one.stored
        if stored.path not in without:
            yield stored.path if by == "path" else stored.passage.uid or f"{stored.path}:{stored.slot}"


def scores(ranking: Sequence[str], evidence: Collection[str], ks: Sequence[int]) -> Scores:
    """`recall@k` and `hit@k` for each k, `ndcg@10`, `mrr` of one question."""
    found = {f"recall@{k}": measures.recall_at(ranking, evidence, k) for k in ks}
    found |= {f"hit@{k}": measures.hit_at(ranking, evidence, k) for k in ks}
    return found | {"ndcg@10": measures.ndcg_at(ranking, evidence, 10), "mrr": measures.reciprocal_rank(ranking, evidence)}


def means(rows: Sequence[Scores]) -> Scores:
    """The mean of each score over questions; {} of none."""
    return {name: round(sum(row[name] for row in rows) / len(rows), 6) for name in rows[0]} if rows else {}


def latencies(seconds: Sequence[float]) -> Scores:
    """`latency_ms_p50` and `latency_ms_p95`; {} of none."""
    return {f"latency_ms_p{q}": round(1000 * measures.percentile(seconds, q), 3) for q in (50, 95)} if seconds else {}


# -- settings with parts of them off


def only(settings: MemorySettings, legs: Collection[str], edges: Collection[str]) -> MemorySettings:
    """The settings with just these legs and edges, no reranking; one that is named but off gets its default weight."""
    fields = type(settings).model_fields
    update: dict[str, object] = {}
    for name in (*LEGS, *EDGES, *OTHERS):
        if name in fields:
            usual = getattr(settings, name) or fields[name].default or (1.0 if name in LEGS else _EDGE_WEIGHT)
            update[name] = usual if name in legs or name in edges else 0.0
    if "rerank" in fields:
        update["rerank"] = fields["rerank"].default
    # A weight that stays is not one that was set: all legs together have what was chosen for them (memory/fusion.py).
    return settings.model_copy(update={name: value for name, value in update.items() if value != getattr(settings, name)})


def halves(settings: MemorySettings) -> dict[str, MemorySettings]:
    """Name -> settings: each leg alone, the words half, the dense half, and both without resonance."""
    both = [name for name in LEGS if getattr(settings, name)]
    return {
        "stems": only(settings, ("words",), ()),
        "grams": only(settings, ("grams",), ()),
        "words": only(settings, ("words", "grams"), ()),
        "dense": only(settings, ("dense",), ()),
        "no resonance": only(settings, both, ()),
    }


def gain(before: Sequence[Scores], after: Sequence[Scores], groups: Sequence[str], measure: str) -> Mapping[str, float | int]:
    """{mean, low, high, groups}: what `after` is better by in a measure, questions in pairs, groups resampled."""
    found = measures.paired_bootstrap([row[measure] for row in before], [row[measure] for row in after], groups)
    return {"mean": round(found.mean, 6), "low": round(found.low, 6), "high": round(found.high, 6), "groups": found.groups}
