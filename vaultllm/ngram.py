"""A character n-gram model with interpolated modified Kneser-Ney smoothing: what counting alone knows of a text.

Chen & Goodman 1999, "An empirical study of smoothing techniques for language modeling", section 4.2. Its alphabet is all of
Unicode: a character that the training text lacks has its share of what smoothing leaves, so every text has a probability,
and those of all that may come next sum to one. Knows nothing about notes, tokens or other models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

ORDER = 8
"""Longest n-gram in characters. On `vault_example` 6 to 12 are within .015 bits per byte of each other."""
END = 0x110000
"""What ends a message, as if it were a character."""
ALPHABET = 0x110000 - 2048 + 1
"""Everything that may come next: Unicode's characters without halves of surrogate pairs, and `END`."""

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class _Level:
    """All n-grams of one length n; an n-gram's id is its place in `keys`."""

    keys: Array
    """(g,) int64, sorted: id of the n-1 symbols before the last, times the number of symbols, plus the last."""
    counts: Array
    """(g,) int32: how often, or (below the longest) after how many different symbols it was seen."""
    history: Array
    """(h,) id of a history of n-1 symbols -> the sum of the counts of what followed it; 0: nothing did."""
    left: Array
    """(h,) float64: the share that smoothing takes from what followed, for the level below."""
    discounts: Array
    """(4,) float64: what is taken from a count of 0, 1, 2, and 3 or more."""


@dataclass(frozen=True, slots=True)
class NGrams:
    """A trained model."""

    symbols: Array
    """(v,) int32, sorted: the code points that were seen, `END`, and above it the marks that messages begin with."""
    levels: tuple[_Level, ...]
    """For n = 1 to the order."""
    read: int
    """Characters that it was trained on."""

    @property
    def order(self) -> int:
        """Characters of its longest n-gram."""
        return len(self.levels)


Sequenced = tuple[int, str]
"""A message: a small number for the kind of text it is (who speaks), and its text."""


def train(messages: Sequence[Sequenced], order: int = ORDER, go_on: Callable[[], bool] = lambda: True) -> NGrams:
    """Count the n-grams of messages, none across two of them. Time: order x text x log text; about 80 bytes of memory a character.

    `go_on` is asked before each level: when it says no, the model has the order that it has reached (2 at least).
    """
    codes, offset = _codes(messages)
    symbols = np.unique(np.append(codes, END))
    ids = np.searchsorted(symbols, codes).astype(np.int32)
    size = len(symbols)
    # Grams by the place where they end. Level by level a gram is the id of the one before it, and one symbol more.
    grams, keys = ids, [np.arange(size, dtype=np.int64)]
    counts = [np.zeros(size, dtype=np.int32)]  # how often each symbol stands there is never asked
    for n in range(2, max(2, order) + 1):
        if n > 2 and not go_on():
            break
        ends = np.flatnonzero(offset >= n - 1).astype(np.int32)
        found, first, rank, seen = _ranked(grams[ends - 1].astype(np.int64) * size + ids[ends])
        # One level lower a gram counts by how many different symbols stand before it; where it begins a message, by how often.
        lower = np.bincount(grams[ends[first]], minlength=len(keys[-1]))
        if n > 2:
            begins = np.zeros(len(lower), dtype=bool)
            begins[grams[offset == n - 2]] = True  # its mark stands nowhere else
            lower = np.where(begins, counts[-1], lower)
        counts[-1] = lower.astype(np.int32)
        grams = np.full(len(ids), -1, dtype=np.int32)
        grams[ends] = rank
        keys.append(found)
        counts.append(seen)
    levels = [_level(keys[n], counts[n], len(keys[n - 1]) if n else 1, size) for n in range(len(keys))]
    return NGrams(symbols, tuple(levels), len(codes))


def _ranked(values: Array) -> tuple[Array, Array, Array, Array]:
    """The different values in order; where each stands first, each value's rank, and how often each stands there.

    `numpy.unique` does the same with twice the memory.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    new = np.ones(len(values), dtype=bool)
    new[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(new)
    rank = np.empty(len(values), dtype=np.int32)
    rank[order] = np.cumsum(new, dtype=np.int32) - 1
    return ordered[starts], order[starts], rank, np.diff(np.append(starts, len(values))).astype(np.int32)


def _codes(messages: Iterable[Sequenced]) -> tuple[Array, Array]:
    """Each message as its mark, its code points and `END`; and each symbol's place in its message."""
    parts: list[Array] = []
    for kind, text in messages:
        parts += [np.array([END + 1 + kind], dtype=np.int32), _points(text), np.array([END], dtype=np.int32)]
    codes = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int32)
    starts = np.flatnonzero(codes > END)
    lengths = np.diff(np.append(starts, len(codes)))
    return codes, (np.arange(len(codes)) - np.repeat(starts, lengths)).astype(np.int32)


def _points(text: str) -> Array:
    return np.frombuffer(text.encode("utf-32-le", "replace"), dtype=np.uint32).astype(np.int32)


def _level(keys: Array, counts: Array, histories: int, size: int) -> _Level:
    """Sums and discounts of one level's counts."""
    before = keys // size
    kinds = np.minimum(counts, 3)
    discounts = _discounts(np.bincount(counts[counts > 0].clip(max=5), minlength=6))
    total = np.bincount(before, weights=counts, minlength=histories).astype(np.float64)  # of nothing, numpy counts whole numbers
    taken = np.bincount(before, weights=discounts[kinds], minlength=histories).astype(np.float64)
    left = np.divide(taken, total, out=np.ones_like(taken), where=total > 0)
    return _Level(keys, counts, total, left, discounts)


def _discounts(n: Array) -> Array:
    """D1, D2 and D3+ from how many grams were counted 1, 2, 3 and 4 times; plain halves where a text is too small to say."""
    if not (n[1] and n[2] and n[3] and n[4]):
        return np.array([0.0, 0.5, 0.75, 1.0])
    y = n[1] / (n[1] + 2 * n[2])
    wanted = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
    return np.array([0.0, *(min(max(d, 0.05), 0.95 * i) for i, d in enumerate(wanted, 1))])


def probabilities(model: NGrams, kind: int, text: str, *, end: bool = False) -> Array:
    """What the model gives each character of a message, and with `end` its end, after all before it: (characters,) float64."""
    points = np.concatenate([[END + 1 + kind], _points(text), [END] if end else []])
    ids = _find(model.symbols, points)
    return _chain(model, ids, 1 / ALPHABET)[1:]


def following(model: NGrams, kind: int, text: str) -> tuple[Array, Array, float]:
    """All that may come after a text: the symbols that were seen, what each is given, and what each of the others is given.

    The given sum to one over `ALPHABET`: the seen without marks, and the rest of Unicode.
    """
    ids = _find(model.symbols, np.concatenate([[END + 1 + kind], _points(text)]))
    tail = ids[1 - model.order :]
    wanted = np.flatnonzero(model.symbols <= END)
    given = [float(_chain(model, np.append(tail, one), 1 / ALPHABET)[-1]) for one in [*wanted, -1]]
    return model.symbols[wanted], np.array(given[:-1]), given[-1]


def _find(table: Array, wanted: Array) -> Array:
    """Places of values in a sorted table; -1 for those that it lacks."""
    at = np.searchsorted(table, wanted)
    at[at == len(table)] = 0
    return np.where(table[at] == wanted, at, -1) if len(table) else np.full(len(wanted), -1)


def _chain(model: NGrams, ids: Array, floor: float) -> Array:
    """The probability of each symbol after all before it (of the first: after nothing)."""
    size = len(model.symbols)
    lowest = model.levels[0]
    given = np.full(len(ids), lowest.left[0] * floor)
    known = ids >= 0
    share = lowest.counts[ids[known]] - lowest.discounts[np.minimum(lowest.counts[ids[known]], 3)]
    if lowest.history[0]:
        given[known] += share / lowest.history[0]
    grams = ids  # of the level below, by the place where they end; -1: never seen
    for level in model.levels[1:]:
        before = np.append(-1, grams[:-1]).astype(np.int64)
        there = np.flatnonzero(before >= 0)
        there = there[level.history[before[there]] > 0]
        past = before[there]
        found = np.where(ids[there] >= 0, _find(level.keys, past * size + ids[there]), -1)
        counts = np.where(found >= 0, level.counts[found], 0)
        share = (counts - level.discounts[np.minimum(counts, 3)]) / level.history[past]
        given[there] = share + level.left[past] * given[there]
        grams = np.full(len(ids), -1, dtype=np.int64)
        grams[there] = found
    return given
