"""The passages that count in the words index, what is found of them, and whether anything was written since the last look.

Knows nothing about words.
"""

from __future__ import annotations

import itertools
import sqlite3
from typing import TYPE_CHECKING, NamedTuple

from vaultllm.memory.bags import TEXT_WEIGHT

if TYPE_CHECKING:
    import numpy as np


_NEW = (
    "SELECT d.doc, d.slot, d.words, d.grams, coalesce(p.scene, -d.slot) FROM documents d LEFT JOIN passages p ON p.slot = d.slot"
    " WHERE d.doc > ? ORDER BY d.doc"
)


class Leg(NamedTuple):
    """Passages and their scores, in no order."""

    slots: np.ndarray
    """(n,) int64, distinct."""
    scores: np.ndarray
    """(n,) float64, above 0."""

    def best(self, k: int) -> list[tuple[int, float]]:
        """The best k (slot, score), best first, the smaller slot first of equals."""
        import numpy as np

        slots, scores = self
        if 0 < k < len(scores):  # to sort what cannot be among them takes the most time
            high = scores >= np.partition(scores, len(scores) - k)[-k]
            slots, scores = slots[high], scores[high]
        order = np.lexsort((slots, -scores))[: max(0, k)]
        return list(zip(slots[order].tolist(), scores[order].tolist(), strict=True))


class Seen(NamedTuple):
    """Equal from one look at a database to the next as long as nothing was written, by this connection or another."""

    others: int
    """Changes when another connection commits."""
    own: int
    """Rows that this one has changed."""
    amid: bool
    """In a transaction, whose rows may never come to be: what was kept then is not to be kept longer."""

    @staticmethod
    def now(db: sqlite3.Connection) -> Seen:
        """A look, which takes a few microseconds."""
        (others,) = db.execute("PRAGMA data_version").fetchone()
        return Seen(others, db.total_changes, db.in_transaction)


class Documents(NamedTuple):
    """The passages that count."""

    docs: np.ndarray  # (n,) int64, rising: document numbers
    slots: np.ndarray  # (n,) int64
    words: np.ndarray  # (n,) float64: length in words
    grams: np.ndarray  # (n,) float64: length in 4-grams
    scenes: np.ndarray  # (n,) int64: slots of their scenes; minus its own slot for one of none
    wholes: np.ndarray  # (n,) int64: the scenes counted from 0, so that what stands in one can be summed
    places: np.ndarray  # document number -> row, or -1 for one that counts no more

    def rows(self, docs: np.ndarray) -> np.ndarray:
        """Rows of document numbers, -1 for those that count no more."""
        found: np.ndarray = self.places[docs]
        return found

    @staticmethod
    def none() -> Documents:
        """Before anything was read."""
        import numpy as np

        numbers, lengths = np.zeros(0, np.int64), np.zeros(0)
        return Documents(numbers, numbers, lengths, lengths, numbers, numbers, numbers)

    def now(self, db: sqlite3.Connection) -> Documents:
        """As they are by now. Only what is new is read: a document never changes, it only goes."""
        import numpy as np

        last = int(self.docs[-1]) if len(self.docs) else 0
        top, count = db.execute("SELECT coalesce(max(doc), 0), (SELECT count(*) FROM documents) FROM documents").fetchone()
        (highest,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'documents'").fetchone()
        # Segments also name documents that came and went since: these have places too.
        if (top, count, highest + 1) == (last, len(self.docs), len(self.places)):
            return self
        rows = db.execute(_NEW, (last,))  # a passage never changes its scene
        new = np.fromiter(itertools.chain.from_iterable(rows), np.int64).reshape(-1, 5)
        kept = ~np.isin(self.slots, new[:, 1])  # a slot that was written again
        if int(kept.sum()) + len(new) != count:  # some are gone
            (there,) = db.execute("SELECT group_concat(doc, ' ') FROM documents").fetchone()
            kept &= np.isin(self.docs, np.fromstring(there or "", np.int64, sep=" "))
        columns = new[:, 0], new[:, 1], new[:, 2] / TEXT_WEIGHT, new[:, 3] / TEXT_WEIGHT, new[:, 4]
        docs, slots, words, grams, scenes = (np.concatenate([old[kept], more]) for old, more in zip(self[:5], columns, strict=True))
        places = np.full(highest + 1, -1, np.int64)
        places[docs] = np.arange(len(docs))
        wholes = np.unique(scenes, return_inverse=True)[1]
        return Documents(docs, slots, words, grams, scenes, wholes, places)
