"""All vectors of the ledger in memory: the exact answer to which are near, against which an index is measured.

Read once, then only what changed since: a vector that is new or was replaced has a higher stamp than any before it. An
embedder's name says how its vectors are stored. Knows nothing about Chroma.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING

from vaultllm.memory.documents import Leg, Seen

if TYPE_CHECKING:
    import numpy as np

    from vaultllm.memory.embed import Precision

INT8 = "+int8"  # ends the name of an embedder whose vectors are stored so
_BATCH = 2_000  # rows that are read at once


def precision_of(embedder: str) -> Precision:
    """How the vectors of an embedder of this name are stored."""
    return "int8" if embedder.endswith(INT8) else "float32"


class Scan:
    """The vectors of one embedder, kept for the next question."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._seen: Seen | None = None  # when the vectors were as they are here
        self._known: tuple[str, int, int] = ("", -1, 0)  # embedder, highest stamp, count
        self._slots: np.ndarray
        self._room: np.ndarray  # (more than n, d) float32: the first n rows are vectors

    def cosines(self, embedder: str, vector: np.ndarray) -> Leg:
        """The cosine of every passage with a unit vector (d,), by slot; of passages without a vector of this embedder none."""
        import numpy as np

        self._refresh(embedder)
        count = len(self._slots)
        return Leg(self._slots, (self._room[:count] @ vector).astype(np.float64) if count else np.zeros(0))

    def _refresh(self, embedder: str) -> None:
        """Read what changed. To add a vector costs the same whether there are a thousand or a hundred thousand."""
        seen = Seen.now(self.db)
        if embedder == self._known[0] and seen == self._seen:
            return
        query = "SELECT coalesce(max(stamp), 0), count(*) FROM vectors WHERE embedder = ?"
        stamp, count = self.db.execute(query, (embedder,)).fetchone()
        if embedder != self._known[0] or self._seen is None or self._seen.amid:
            self._forget()
        if (embedder, stamp, count) != self._known:
            self._read(embedder, self._known[1], count)
        self._known, self._seen = (embedder, stamp, count), seen

    def _forget(self) -> None:
        import numpy as np

        self._known = ("", -1, 0)
        self._slots, self._room = np.zeros(0, np.int64), np.zeros((0, 0), np.float32)

    def _read(self, embedder: str, after: int, count: int) -> None:
        """Read the vectors with a higher stamp, so that there are `count`; each in place of what its passage had."""
        import numpy as np

        from vaultllm.memory import embed

        rows = self.db.execute("SELECT passage, vector FROM vectors WHERE embedder = ? AND stamp > ?", (embedder, after))
        while batch := rows.fetchmany(_BATCH):
            slots = np.array([slot for slot, _ in batch], np.int64)
            vectors = embed.unpack([vector for _, vector in batch], precision_of(embedder))
            if after >= 0:  # else all are new: one passage has one vector of an embedder
                self._keep(~np.isin(self._slots, slots))
            self._append(slots, vectors, count)
        if len(self._slots) != count:  # some are gone
            (there,) = self.db.execute("SELECT group_concat(passage, ' ') FROM vectors WHERE embedder = ?", (embedder,)).fetchone()
            self._keep(np.isin(self._slots, np.fromstring(there or "", np.int64, sep=" ")))

    def _keep(self, kept: np.ndarray) -> None:
        """Of all rows only these (n,) bool; the last ones come into the holes."""
        import numpy as np

        gone = np.flatnonzero(~kept)
        if not len(gone):
            return
        count = len(kept) - len(gone)
        holes, last = gone[gone < count], count + np.flatnonzero(kept[count:])
        slots = self._slots[:count].copy()  # whoever was given the old ones keeps them
        slots[holes], self._room[holes] = self._slots[last], self._room[last]
        self._slots = slots

    def _append(self, slots: np.ndarray, vectors: np.ndarray, expected: int) -> None:
        """More rows; where there is no room, it is made for what is expected and an eighth."""
        import numpy as np

        count = len(self._slots)
        if count and vectors.shape[1] != self._room.shape[1]:
            raise ValueError("vectors of different lengths")
        if count + len(slots) > len(self._room):
            room = np.empty((max(expected, count + len(slots)) * 9 // 8, vectors.shape[1]), np.float32)
            if count:
                room[:count] = self._room[:count]
            self._room = room
        self._room[count : count + len(slots)] = vectors
        self._slots = np.concatenate([self._slots, slots])
