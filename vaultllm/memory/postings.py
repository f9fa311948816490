"""Inverted lists in SQLite: under each key, which values hold it and how much.

Written as immutable sorted segments, one row each, so that adding to a large index costs what adding to a small one does;
small segments of one size are merged, large ones are left (a log-structured merge tree, O'Neil et al. 1996, of few levels). Values
that died are dropped when their segment is merged. Knows nothing about what keys and values mean; the caller holds the transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from vaultllm.errors import VaultError

FAN = 8  # segments of one size are merged when there are so many
MOST = 2**18  # postings: a merge that would make more is left, so that none takes longer than a few hundredths of a second


class DamagedIndexError(VaultError):
    """The words index is not as it was written; all of it can be made anew from the passages."""

    code = "E-WORDS"

    def __init__(self, what: str) -> None:
        super().__init__(f"the words index is damaged ({what}); mend: vaultllm doctor --repair")


@dataclass(frozen=True, slots=True, eq=False)
class Segment:
    """Postings sorted by key."""

    keys: np.ndarray
    """(k,) uint32 or uint64, rising."""
    starts: np.ndarray
    """(k + 1,) uint32: postings of `keys[i]` are at `starts[i]` to `starts[i + 1]`."""
    places: np.ndarray
    """(n,) uint32: the values themselves, or, where there is a table, where they stand in it."""
    weights: np.ndarray
    """(n,) uint8."""
    table: np.ndarray | None = None
    """(t,) uint64, rising: values that take more than 32 bits, each once, for each stands under many keys; None without such."""

    def values(self, rows: np.ndarray | slice = slice(None)) -> np.ndarray:
        """The values of postings, (r,) uint32 or uint64."""
        found: np.ndarray = self.places[rows] if self.table is None else self.table[self.places[rows]]
        return found

    def triples(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Key, value and weight of each posting."""
        return np.repeat(self.keys, np.diff(self.starts)), self.values(), self.weights

    def to_bytes(self) -> bytes:
        """As it is stored, little-endian."""
        sizes = [len(self.keys), len(self.places), self.keys.itemsize, 0 if self.table is None else len(self.table)]
        table = np.zeros(0, "<u8") if self.table is None else self.table.astype("<u8")
        parts = (self.keys.astype(f"<u{self.keys.itemsize}"), table, self.starts.astype("<u4"), self.places.astype("<u4"), self.weights)
        return b"".join(part.tobytes() for part in (np.array(sizes, "<u4"), *parts))

    @staticmethod
    def from_bytes(data: bytes) -> Segment:
        """The inverse of `to_bytes`. Raises DamagedIndexError when the bytes are something else."""
        if len(data) < 16:
            raise DamagedIndexError(f"a segment has {len(data)} bytes")
        keys, count, key, table = map(int, np.frombuffer(data, "<u4", 4))
        at = np.cumsum([16, key * keys, 8 * table, 4 * (keys + 1), 4 * count, count]).tolist()
        if key not in (4, 8) or len(data) != at[-1]:
            raise DamagedIndexError(f"a segment of {keys} keys and {count} postings has {len(data)} bytes")
        return Segment(
            np.frombuffer(data, f"<u{key}", keys, at[0]),
            np.frombuffer(data, "<u4", keys + 1, at[2]),
            np.frombuffer(data, "<u4", count, at[3]),
            np.frombuffer(data, np.uint8, count, at[4]),
            np.frombuffer(data, "<u8", table, at[1]) if table else None,
        )


def segment(keys: np.ndarray, values: np.ndarray, weights: np.ndarray) -> Segment:
    """Postings in any order as a segment; those of one key keep their order. Keys and values are uint32 or uint64."""
    order = np.argsort(keys, kind="stable")
    keys = keys[order]
    first = np.flatnonzero(np.concatenate([[True], keys[1:] != keys[:-1]])) if len(keys) else np.zeros(0, np.int64)
    starts = np.concatenate([first, [len(keys)]]).astype(np.uint32)
    table = None
    if values.itemsize > 4:
        table, values = np.unique(values, return_inverse=True)
    return Segment(keys[first], starts, values[order].astype(np.uint32), weights[order].astype(np.uint8), table)


def append(
    db: sqlite3.Connection,
    family: str,
    keys: np.ndarray,
    values: np.ndarray,
    weights: np.ndarray,
    alive: Callable[[np.ndarray], np.ndarray] | None = None,
) -> None:
    """Store postings as a segment of their own, and merge segments where enough of one size have come together.

    `alive`: of values (n,), whether each still counts (n,) bool; the dead ones leave with a merge.
    """
    if not len(keys):
        return
    _store(db, family, segment(keys, values, weights))
    while (rows := _mergeable(db, family)) is not None:
        _merge(db, family, rows, alive)


def large(db: sqlite3.Connection, family: str) -> int:
    """How many segments of a family are too large to be merged as postings come."""
    (count,) = db.execute("SELECT count(*) FROM postings WHERE family = ? AND size >= ?", (family, MOST // FAN)).fetchone()
    return int(count)


def compact(db: sqlite3.Connection, family: str, alive: Callable[[np.ndarray], np.ndarray] | None = None) -> None:
    """All segments of a family as one, without what died (see `append`)."""
    rows = [number for (number,) in db.execute("SELECT id FROM postings WHERE family = ? ORDER BY id", (family,))]
    if rows:
        _merge(db, family, rows, alive)


def _store(db: sqlite3.Connection, family: str, made: Segment) -> None:
    if len(made.places):
        db.execute("INSERT INTO postings (family, size, data) VALUES (?, ?, ?)", (family, len(made.places), made.to_bytes()))


def _mergeable(db: sqlite3.Connection, family: str) -> list[int] | None:
    """The segments of one size that are to be merged, in the order in which they came."""
    tiers: dict[int, list[tuple[int, int]]] = {}
    for number, size in db.execute("SELECT id, size FROM postings WHERE family = ? AND size < ?", (family, MOST // FAN)):
        tiers.setdefault((int(size).bit_length() - 1) // 3, []).append((int(number), int(size)))
    for _, found in sorted(tiers.items()):
        if len(found) >= FAN and sum(size for _, size in found) <= MOST:
            return sorted(number for number, _ in found)
    return None


def _merge(db: sqlite3.Connection, family: str, rows: Sequence[int], alive: Callable[[np.ndarray], np.ndarray] | None) -> None:
    parts = []
    for number in rows:
        (data,) = db.execute("SELECT data FROM postings WHERE id = ?", (number,)).fetchone()
        parts.append(Segment.from_bytes(data).triples())
    keys, values, weights = (np.concatenate(column) for column in zip(*parts, strict=True))
    if alive is not None:
        kept = alive(values)
        keys, values, weights = keys[kept], values[kept], weights[kept]
    db.executemany("DELETE FROM postings WHERE id = ?", [(number,) for number in rows])
    _store(db, family, segment(keys, values, weights))


class Reader:
    """The segments of a family, kept in memory once they were read: they never change, only come and go."""

    def __init__(self, family: str) -> None:
        self.family = family
        self._segments: dict[int, Segment] = {}

    def refresh(self, db: sqlite3.Connection) -> None:
        """Read what is new, let go of what is gone."""
        ids = [number for (number,) in db.execute("SELECT id FROM postings WHERE family = ? ORDER BY id", (self.family,))]
        known = self._segments
        self._segments = {
            number: known[number]
            if number in known
            else Segment.from_bytes(db.execute("SELECT data FROM postings WHERE id = ?", (number,)).fetchone()[0])
            for number in ids
        }

    def keys(self) -> np.ndarray:
        """All keys, (k,), rising, each once."""
        return np.unique(np.concatenate([one.keys for one in self._segments.values()] or [np.zeros(0, np.uint64)]))

    def counts(self, keys: np.ndarray) -> np.ndarray:
        """How many postings each key (q,) has, dead ones included: (q,) int64."""
        found = np.zeros(len(keys), np.int64)
        for one in self._segments.values():
            at, there = _places(one, keys)
            found[there] += np.diff(one.starts).astype(np.int64)[at[there]]
        return found

    def lists(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The postings of keys (q,): which key (n,) int64, value (n,), weight (n,) uint8, by segment and key."""
        which, values, weights = [], [], []
        for one in self._segments.values():
            at, there = _places(one, keys)
            asked = np.flatnonzero(there)
            if not len(asked):
                continue
            starts = one.starts[at[asked]].astype(np.int64)
            lengths = one.starts[at[asked] + 1].astype(np.int64) - starts
            ends = np.cumsum(lengths)
            rows = np.arange(ends[-1]) + np.repeat(starts - (ends - lengths), lengths)
            which.append(np.repeat(asked, lengths))
            values.append(one.values(rows))
            weights.append(one.weights[rows])
        if not which:
            return np.zeros(0, np.int64), np.zeros(0, np.uint32), np.zeros(0, np.uint8)
        return np.concatenate(which), np.concatenate(values), np.concatenate(weights)


def _places(one: Segment, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where keys (q,) stand in a segment, and whether they do."""
    at = np.minimum(np.searchsorted(one.keys, keys), max(0, len(one.keys) - 1))
    return at, one.keys[at] == keys if len(one.keys) else np.zeros(len(keys), bool)
