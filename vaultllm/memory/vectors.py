"""Vectors kept by Chroma, wherever it runs: one contract, what a collection is told and asked, and what may be wrong with it.

Chroma is a projection of the ledger. Only ids (stable slots) and vectors need go in, and short labels if the caller wants
them: what Chroma deletes stays on its disk, so no text does. Whatever goes wrong is `MemoryBroken`, which never reaches
the user: the caller rebuilds. Does not know chromadb, nor where a collection is kept (`chroma.py`, `server.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np

BATCH = 500  # records per call, which holds Python's lock for some 100 ms: so long another thread's question waits
# Measured (benchmarks/chroma.py): of 10,000 vectors of 256 dimensions without any structure the nearest 200 are found at
# 0.999, of 100,000 in clusters at 0.995; with Chroma's own `ef_search` (100), of 10,000, at 0.70 and 0.94. Writing costs the
# same, a question a few milliseconds more. More neighbours a node would find as much but make writing slower.
HNSW = {
    "space": "cosine",
    "max_neighbors": 16,
    "ef_construction": 100,
    "ef_search": 3000,
    "sync_threshold": 1000,  # each sync may be torn by a kill (facts: 3 of 39 at 100, 0 of 46 at 1000)
}
INDEX = "-".join(str(HNSW[name]) for name in ("space", "max_neighbors", "ef_construction", "ef_search"))
PROBE = -1  # the slot under which a probe is stored and taken out again; passages have slots from 1 on
_FOUND = 0.999  # cosine from which a vector has found itself
_TRIES = 3  # of vectors that are written to be found again

Records = tuple[Sequence[int], np.ndarray, Sequence[Mapping[str, str]]]  # slots, unit vectors (n, dims), labels (or none: ())


class MemoryBroken(Exception):  # noqa: N818 - a state of the directory, not of the program
    """The directory is missing, damaged, or not of this embedder; a rebuild mends it."""


class Store(Protocol):
    """Where vectors are kept: a `Directory`, or a server (`server.Server`). One contract, one suite of tests."""

    @property
    def folder(self) -> Path:
        """The memory's folder, of the state."""

    def live(self) -> int:
        """The number of the live generation; 0 when there is none. Looks at small local files only."""

    def whole(self) -> bool:
        """Whether the live generation looks as it was left. A few `stat`; only opening it proves it."""

    def open(self, fingerprint: str) -> Memory:
        """The live generation, to be written to. Raises MemoryBroken, LockedError."""

    def nearest(self, fingerprint: str, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        """`Memory.query` without a session: for questions, beside a rebuild too. Raises MemoryBroken, LockedError."""

    def rebuild(self, fingerprint: str, batches: Iterable[Records]) -> int:
        """Write a new generation, make it the live one, remove the others; its number. Raises MemoryBroken, OSError."""

    def sweep(self) -> None:
        """Remove what is not live. Raises MemoryBroken."""


class Memory(ABC):
    """A generation, opened. Use as a context manager; everything raises MemoryBroken."""

    generation: int
    """Its number, from 1 on."""
    _collection: Any  # chromadb's Collection, or what speaks like one
    _wrote: bool = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @abstractmethod
    def close(self) -> None:
        """Let go of it, and note how it was left."""

    @abstractmethod
    def damage(self) -> str:
        """ "" or what a look at all of its files finds. Reads them whole."""

    def upsert(self, slots: Sequence[int], vectors: np.ndarray, labels: Sequence[Mapping[str, str]] = ()) -> None:
        """Store unit vectors (n, dims) float32 under their slots, in place of what was there."""
        self._wrote = True
        with guarded():
            upsert(self._collection, slots, vectors, labels)

    def delete(self, slots: Sequence[int]) -> None:
        """Take slots out; unknown ones are no error."""
        self._wrote = True
        with guarded():
            for start in range(0, len(slots), BATCH):
                self._collection.delete(ids=[str(slot) for slot in slots[start : start + BATCH]])

    def query(self, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        """The nearest at most k (slot, cosine) of a vector (dims,), best first; approximate (HNSW). Of a zero vector: []."""
        return near(self._collection, vector, k)

    def count(self) -> int:
        """How many slots it holds."""
        with guarded():
            return int(self._collection.count())

    def probe(self, expected: int, slots: Sequence[int], vectors: np.ndarray, *, thorough: bool = False) -> str:
        """ "" when it holds `expected` slots, and these with these vectors, and finds them; else what is wrong, in a sentence.

        `thorough`, for the start of a daemon and for `doctor`: reads all files, and stores, finds and deletes a probe.
        """
        if thorough:
            if damage := self.damage():
                return damage
            self.delete([PROBE])  # of a process that died over it
        count = self.count()
        if count != expected:
            return f"Chroma holds {count} vectors, the ledger {expected}"
        if not slots:
            return ""
        with guarded():
            got = self._collection.get(ids=[str(slot) for slot in slots], include=["embeddings"])
            held = {int(slot): np.asarray(vector, dtype=np.float32) for slot, vector in zip(got["ids"], got["embeddings"], strict=True)}
        for slot, vector in zip(slots, vectors, strict=True):
            if slot not in held:
                return f"Chroma has lost slot {slot}"
            if held[slot].shape != vector.shape or not np.allclose(held[slot], vector, atol=1e-3):
                return f"Chroma holds another vector for slot {slot}"
        missed = sum(not self._finds(vector) for vector in vectors)
        if missed > len(slots) // 8:  # HNSW is approximate: about 1 of 100 may be missed
            return f"Chroma does not find {missed} of {len(slots)} vectors that it holds"
        return self._rehearse(vectors, expected) if thorough else ""

    def _finds(self, vector: np.ndarray) -> bool:
        return any(cosine >= _FOUND for _, cosine in self.query(vector, 1))

    def _rehearse(self, vectors: np.ndarray, expected: int) -> str:
        """Store, find and delete a vector that points half away from one of ours: far enough from all, near enough to be reached.

        HNSW is approximate: now and then nothing leads to a new vector, so it is tried with a few.
        """
        for number in range(_TRIES):
            vector = vectors[number % len(vectors)]
            aside = np.random.default_rng(number).standard_normal(len(vector)).astype(np.float32)
            aside /= np.linalg.norm(aside)
            turned = vector + (aside if vector @ aside > -0.9 else -aside)  # in one dimension it may point right against it
            turned /= np.linalg.norm(turned)
            self.upsert([PROBE], turned[np.newaxis])
            if self.count() != expected + 1:
                return "Chroma does not keep what is written to it"
            if any(cosine >= _FOUND for _, cosine in near(self._collection, turned, 1, probes=True)):
                break
            self.delete([PROBE])
        else:
            return "Chroma does not find what is written to it"
        self.delete([PROBE])
        return "" if self.count() == expected else "Chroma does not delete what it is told to"


def about(fingerprint: str) -> dict[str, str]:
    """What stands with a collection: which embedder's vectors it holds, and how its index was built."""
    return {"embedder": fingerprint, "index": INDEX}


def refuse_foreign(found: Mapping[str, Any], fingerprint: str) -> None:
    """Raise MemoryBroken unless a collection is of this embedder, its index built as we build it now."""
    if found.get("embedder") != fingerprint:
        raise MemoryBroken(f"Chroma holds vectors of {found.get('embedder')}, not of {fingerprint}")
    if found.get("index") != INDEX:
        raise MemoryBroken(f"Chroma's index was built with {found.get('index')}, not with {INDEX}")


def near(collection: Any, vector: np.ndarray, k: int, *, probes: bool = False) -> list[tuple[int, float]]:
    """The nearest at most k (slot, cosine), best first, without probes of other processes unless these are meant."""
    if not vector.any():
        return []
    with guarded():
        found = collection.query(query_embeddings=[vector.tolist()], n_results=k, include=["distances"])
        pairs = [(int(slot), 1.0 - float(far)) for slot, far in zip(found["ids"][0], found["distances"][0], strict=True)]
        return pairs if probes else [(slot, cosine) for slot, cosine in pairs if slot != PROBE]


def upsert(collection: Any, slots: Sequence[int], vectors: np.ndarray, labels: Sequence[Mapping[str, str]]) -> None:
    """Tell a collection, a batch at a time."""
    for start in range(0, len(slots), BATCH):
        part = slice(start, start + BATCH)
        collection.upsert(
            ids=[str(slot) for slot in slots[part]],
            embeddings=np.ascontiguousarray(vectors[part], dtype=np.float32),
            metadatas=[dict(label) for label in labels[part]] or None,
        )


@contextmanager
def guarded() -> Iterator[None]:
    """Chroma's errors as one: among them a panic of its Rust half, which is no Exception."""
    try:
        yield
    except (MemoryBroken, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise MemoryBroken(f"Chroma: {type(error).__name__}: {error}") from error
