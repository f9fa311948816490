"""Questions asked of the memory under several settings, and what their rankings are worth.

The unit that k counts: a turn where evidence is turns (a section of prose takes one place too), a note where it is notes; each
once, at its first place. Knows nothing about where the questions come from.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vaultllm import recall
from vaultllm.config import MemorySettings
from vaultllm.errors import UsageError
from vaultllm.ledger import Ledger
from vaultllm.memory import measures
from vaultllm.schema import Hit, Scene

By = Literal["uid", "path"]
Scores = dict[str, float]

LEGS = ("words", "grams", "dense")  # weights of `memory.*` that find; two halves: words with grams, and dense
EDGES = ("near", "links", "tags", "terms", "heading", "named", "diversity", "used")  # and those that lend
WARM_UP = 3  # questions that are asked before the clock runs
MOST_HITS = 3_200  # asked for at most, where many scenes of one note crowd out the other notes
_EDGE_WEIGHT = 0.25  # of an edge that is off both in the settings and by default, when it is measured alone


@dataclass(frozen=True, slots=True)
class Asked:
    """What the memory said to one question."""

    ranking: tuple[str, ...]
    """Units, best first, each once: UIDs (`path:line` for prose) or paths."""
    seconds: float
    """For the first answer, without what was asked for again to fill the ranking."""
    confidence: float
    """How sure the memory is that the vault speaks of it: the score of the best hit, 0 without any."""
    problem: str = ""
    """Why the memory refused the question; empty when it did not."""


def ask(
    ledger: Ledger, folder: Path, settings: MemorySettings, question: str, by: By, depth: int, allow: Callable[[Scene], bool] | None = None
) -> Asked:
    """The first `depth` units for a question. A hit is a scene and may hold several units, and several hits one unit."""
    began = time.perf_counter()
    try:
        hits = recall.recall(ledger, folder, settings, question, depth, allow=allow)
    except UsageError as error:  # it looks like a filter that does not exist
        return Asked((), time.perf_counter() - began, 0.0, error.message)
    seconds = time.perf_counter() - began
    wanted = depth
    while len(ranking := measures.first(units(hits, by), depth)) < depth and len(hits) >= wanted and wanted < MOST_HITS:
        wanted = min(2 * wanted, MOST_HITS)
        hits = recall.recall(ledger, folder, settings, question, wanted, allow=allow)
    return Asked(tuple(map(str, ranking)), seconds, hits[0].score if hits else 0.0)


def units(hits: Sequence[Hit], by: By) -> Iterator[str]:
    """The units of the hits, best first: notes, or turns as each hit orders its own; prose without turns is one unit a hit."""
    for hit in hits:
        if by == "path":
            yield hit.path
        else:
            yield from hit.uids or (f"{hit.path}:{hit.lines[0]}",)


def scores(ranking: Sequence[str], evidence: Collection[str], ks: Sequence[int]) -> Scores:
    """`recall@k` and `hit@k` for each k, `ndcg@10`, `mrr` of one question."""
    found = {f"recall@{k}": measures.recall_at(ranking, evidence, k) for k in ks}
    found |= {f"hit@{k}": measures.hit_at(ranking, evidence, k) for k in ks}
    return found | {"ndcg@10": measures.ndcg_at(ranking, evidence, 10), "mrr": measures.reciprocal_rank(ranking, evidence)}


def means(rows: Sequence[Scores]) -> Scores:
    """The mean of each score over questions; {} of none."""
    return {name: round(sum(row[name] for row in rows) / len(rows), 6) for name in rows[0]} if rows else {}


def latencies(asked: Sequence[Asked]) -> Scores:
    """`latency_ms_p50` and `latency_ms_p95`; {} of none."""
    spent = [1000 * one.seconds for one in asked]
    return {f"latency_ms_p{q}": round(measures.percentile(spent, q), 3) for q in (50, 95)} if spent else {}


# -- settings with parts of them off


def only(settings: MemorySettings, legs: Collection[str], edges: Collection[str]) -> MemorySettings:
    """The settings with just these legs and edges, no reranking; one that is named but off gets its default weight."""
    fields = type(settings).model_fields
    update: dict[str, object] = {}
    for name in (*LEGS, *EDGES):
        if name in fields:
            usual = getattr(settings, name) or fields[name].default or (1.0 if name in LEGS else _EDGE_WEIGHT)
            update[name] = usual if name in (*legs, *edges) else 0.0
    if "rerank" in fields:
        update["rerank"] = fields["rerank"].default
    return settings.model_copy(update=update)


def edges_of(settings: MemorySettings) -> tuple[str, ...]:
    """The kinds of resonance that these settings know."""
    return tuple(name for name in EDGES if name in type(settings).model_fields)


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
