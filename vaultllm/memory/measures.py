"""How good a ranking is, and whether a difference between two is real: recall@k, hit@k, nDCG, MRR, AUROC, percentiles, bootstrap.

Pure functions of names and numbers. A ranking is a sequence of units (turns, paragraphs, notes: anything hashable), best
first; a unit that stands in it twice counts once, at its first place, and its second place is nobody's rank. Knows nothing
about what units are, where rankings come from, or how questions are averaged.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Hashable, Iterable, Sequence
from itertools import islice
from typing import NamedTuple


class Difference(NamedTuple):
    """A mean difference (after minus before) and its 95 % interval."""

    mean: float
    """As observed, over all pairs."""
    low: float
    """2.5 % of the resampled means lie below."""
    high: float
    """97.5 % lie below."""
    groups: int
    """How many independent groups (articles, notes, talks) are behind it."""


def first(ranking: Iterable[Hashable], k: int) -> list[Hashable]:
    """The first k distinct units, in order; fewer when there are fewer."""
    return list(islice(dict.fromkeys(ranking), max(0, k)))


def recall_at(ranking: Iterable[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """Share (0..1) of the relevant units that are among the first k: evidence recall, each unit counted once.

    Manning, Raghavan & Schütze 2008, chapter 8. With more than k relevant units it cannot reach 1. Raises ValueError when
    nothing is relevant.
    """
    wanted = _wanted(relevant)
    return len(wanted.intersection(first(ranking, k))) / len(wanted)


def hit_at(ranking: Iterable[Hashable], relevant: Collection[Hashable], k: int) -> float:
    """1.0 when any relevant unit is among the first k, else 0.0. Raises ValueError when nothing is relevant."""
    return float(not _wanted(relevant).isdisjoint(first(ranking, k)))


def ndcg_at(ranking: Iterable[Hashable], relevant: Collection[Hashable], k: int = 10) -> float:
    """Normalised discounted cumulative gain of the first k (0..1), gains 0 or 1, discount log2(rank + 1).

    Järvelin & Kekäläinen 2002 in the form of trec_eval's `ndcg_cut`: the ideal ranking holds min(k, relevant) relevant units
    first. Raises ValueError when nothing is relevant or k is below 1.
    """
    wanted = _wanted(relevant)
    if k < 1:
        raise ValueError("k is at least 1")
    gained = math.fsum(1 / math.log2(rank + 1) for rank, unit in enumerate(first(ranking, k), 1) if unit in wanted)
    ideal = math.fsum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(wanted)) + 1))
    return gained / ideal


def reciprocal_rank(ranking: Iterable[Hashable], relevant: Collection[Hashable]) -> float:
    """1 / rank of the first relevant unit, 0.0 when there is none; its mean over questions is MRR (Voorhees 1999).

    Raises ValueError when nothing is relevant.
    """
    wanted = _wanted(relevant)
    return next((1 / rank for rank, unit in enumerate(dict.fromkeys(ranking), 1) if unit in wanted), 0.0)


def _wanted(relevant: Collection[Hashable]) -> frozenset[Hashable]:
    if not relevant:
        raise ValueError("a question without a relevant unit has no recall")
    return frozenset(relevant)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float | None:
    """Chance that a positive scores above a negative, ties as one half: the area under the ROC curve; None when either is empty.

    By ranks, as the Mann-Whitney U (Hanley & McNeil 1982); O(n log n). Raises ValueError for a score that is no number.
    """
    if any(math.isnan(score) for score in (*positive, *negative)):
        raise ValueError("a score is not a number")
    if not positive or not negative:
        return None
    below = sorted(negative)
    won = math.fsum((bisect_left(below, score) + bisect_right(below, score)) / 2 for score in positive)
    return won / (len(positive) * len(negative))


def percentile(values: Sequence[float], q: float) -> float:
    """The q-th percentile (0..100), linear between neighbours (type 7 of Hyndman & Fan 1996, numpy's default).

    Raises ValueError without values or for a q outside 0..100.
    """
    if not values or not 0 <= q <= 100:
        raise ValueError("a percentile needs values, and q from 0 to 100")
    ordered = sorted(values)
    place = (len(ordered) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def paired_bootstrap(
    before: Sequence[float], after: Sequence[float], groups: Sequence[Hashable], *, samples: int = 2000, seed: int = 0
) -> Difference:
    """Mean difference (after minus before) of scores of the same questions, with its 95 % percentile interval.

    Paired bootstrap (Koehn 2004) that draws whole groups (Field & Welsh 2007): questions about one article or one talk are
    not independent, and with them drawn one by one the interval comes out too narrow. `groups` names each question's group.
    Raises ValueError when the three differ in length or are empty.
    """
    if not before or not len(before) == len(after) == len(groups):
        raise ValueError("before, after and groups are of one length, and not empty")
    import numpy as np

    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    member = np.array([numbers[group] for group in groups])
    gained = np.bincount(member, weights=np.asarray(after, dtype=float) - np.asarray(before, dtype=float))
    sizes = np.bincount(member).astype(float)
    # A draw counts how often each group came: (samples, groups) small integers; in parts, so that memory stays small.
    generator = np.random.default_rng(seed)
    part = max(1, 4_000_000 // len(sizes))
    means = []
    for start in range(0, samples, part):
        drawn = generator.integers(len(sizes), size=(min(part, samples - start), len(sizes)))
        means.append(gained[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    low, high = np.percentile(np.concatenate(means), [2.5, 97.5])
    return Difference(float(gained.sum() / sizes.sum()), float(low), float(high), len(sizes))
