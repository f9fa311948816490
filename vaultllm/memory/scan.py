"""All vectors of the ledger in memory: the exact answer to which are near, against which an index is measured.

Read once, then only what changed since: a vector that is new or was replaced has a higher stamp than any before it. An
embedder's name says how its vectors are stored. Knows nothing about Chroma.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from vaultllm.memory.words import Leg

if TYPE_CHECKING:
    import numpy as np

    from vaultllm.memory.embed import Precision

INT8 = "+int8"  # ends the name of an embedder whose vectors are stored so
_BATCH = 5_000  # rows that are read at once


def precision_of(embedder: str) -> Precision:
    """How the vectors of an embedder of this name are stored."""
    return "int8" if embedder.endswith(INT8) else "float32"


class Scan:
    """The vectors of one embedder, kept for the next question."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._known: tuple[str, int, int] = ("", -1, 0)  # embedder, highest stamp, count
        self._slots: np.ndarray
        self._vectors: np.ndarray

    def cosines(self, embedder: str, vector: np.ndarray) -> Leg:
        """The cosine of every passage with a unit vector (d,), by slot; of passages without a vector of this embedder none."""
        import numpy as np

        self._refresh(embedder)
        return Leg(self._slots, (self._vectors @ vector).astype(np.float64) if len(self._slots) else np.zeros(0))

    def _refresh(self, embedder: str) -> None:
        """Read what changed."""
        import numpy as np

        query = "SELECT coalesce(max(stamp), 0), count(*) FROM vectors WHERE embedder = ?"
        stamp, count = self.db.execute(query, (embedder,)).fetchone()
        if (embedder, stamp, count) == self._known:
            return
        if self._known[0] != embedder:
            self._known = (embedder, -1, 0)
            self._slots, self._vectors = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)
        slots, vectors = self._read(embedder, self._known[1])
        kept = ~np.isin(self._slots, slots)
        if int(kept.sum()) + len(slots) != count:  # some are gone
            there = self.db.execute("SELECT passage FROM vectors WHERE embedder = ?", (embedder,)).fetchall()
            kept &= np.isin(self._slots, np.array(there, np.int64).reshape(-1))
        if not kept.all() or not len(self._slots):
            self._slots, self._vectors = self._slots[kept], self._vectors[kept]
        if len(slots):
            self._slots = np.concatenate([self._slots, slots])
            self._vectors = np.concatenate([self._vectors, vectors]) if len(self._vectors) else vectors
        self._known = (embedder, stamp, count)

    def _read(self, embedder: str, after: int) -> tuple[np.ndarray, np.ndarray]:
        import numpy as np

        from vaultllm.memory import embed

        rows = self.db.execute("SELECT passage, vector FROM vectors WHERE embedder = ? AND stamp > ?", (embedder, after))
        slots: list[int] = []
        parts: list[np.ndarray] = []
        while batch := rows.fetchmany(_BATCH):
            slots += [slot for slot, _ in batch]
            parts.append(embed.unpack([vector for _, vector in batch], precision_of(embedder)))
        return np.array(slots, np.int64), np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
