"""Vectors in Chroma: a projection of the ledger that may be thrown away at any time. The only importer of chromadb.

`folder/gen-N/` is one Chroma directory, `folder/CURRENT` names the live one. Only ids (stable slots), vectors and
four short labels go in: what Chroma deletes stays on its disk, so no text does. One process at a time may have it
open (two writers lose vectors in silence); the caller holds the lock. Whatever Chroma raises comes out as
`MemoryBroken`, which never reaches the user: the caller rebuilds. Knows nothing about ledgers or passages.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vaultllm.files import write_whole

BATCH = 500  # records per call: Chroma takes at most 5,461, and a kill costs at most so many
_NAME = "passages"
_HNSW = {
    "space": "cosine",
    "ef_search": 200,
    "sync_threshold": 1000,  # each sync may be torn by a kill (facts: 3 of 39 at 100, 0 of 46 at 1000)
}
_importing = threading.Lock()

Records = tuple[Sequence[int], np.ndarray, Sequence[Mapping[str, str]]]


class MemoryBroken(Exception):  # noqa: N818 - a state of the directory, not of the program
    """The directory is missing, damaged, or not of this embedder; a rebuild mends it."""


def current(folder: Path) -> int:
    """The number of the live generation; 0 when there is none. Looks at names only, does not import chromadb."""
    try:
        name = (folder / "CURRENT").read_text(encoding="utf-8").strip()
        number = int(name.removeprefix("gen-"))
    except (OSError, ValueError):
        return 0
    return number if (folder / f"gen-{number}" / "chroma.sqlite3").is_file() else 0


def unclean(folder: Path) -> int:
    """How many times in a row a process died with the memory open."""
    try:
        return int((folder / "OPEN").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return 0


def whole(folder: Path) -> bool:
    """Whether the live generation looks as it was left: a few `stat`, no import of chromadb. Only opening it proves it."""
    number = current(folder)
    return bool(number) and not unclean(folder) and _is_sealed(folder / f"gen-{number}")


class ChromaMemory:
    """The live generation, opened. Use as a context manager; everything raises MemoryBroken."""

    def __init__(self, folder: Path, fingerprint: str) -> None:
        """Open the live generation if it holds vectors of this embedder."""
        self.folder = folder
        self.fingerprint = fingerprint
        self.generation = current(folder)
        if not self.generation:
            raise MemoryBroken("there is no Chroma directory")
        # A damaged index ends the process where no exception is seen: a cut `link_lists.bin` or `header.bin` is SIGSEGV
        # (seen with 1.5.9). So files that are not as we left them are not opened, and others never a third time.
        if not _is_sealed(folder / f"gen-{self.generation}"):
            raise MemoryBroken("the index was not closed, or was changed from outside")
        if unclean(folder) >= 2:
            raise MemoryBroken("the process died twice with the memory open")
        (folder / "OPEN").write_text(str(unclean(folder) + 1), encoding="utf-8")
        try:
            self._client = _client(folder / f"gen-{self.generation}")
            try:
                with _guard():
                    self._collection = self._client.get_collection(_NAME, embedding_function=None)
                    found = (self._collection.metadata or {}).get("embedder")
                if found != fingerprint:
                    raise MemoryBroken(f"Chroma holds vectors of {found}, not of {fingerprint}")
            except BaseException:
                _close(self._client)
                raise
        except MemoryBroken:
            (folder / "OPEN").unlink(missing_ok=True)
            raise

    def __enter__(self) -> ChromaMemory:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files and of chromadb's own cache of clients, so that the path can be opened afresh."""
        _close(self._client)
        _seal(self.folder / f"gen-{self.generation}")
        (self.folder / "OPEN").unlink(missing_ok=True)

    def upsert(self, slots: Sequence[int], vectors: np.ndarray, labels: Sequence[Mapping[str, str]]) -> None:
        """Store unit vectors (n, dims) float32 under their slots, in place of what was there."""
        with _guard():
            _upsert(self._collection, slots, vectors, labels)

    def delete(self, slots: Sequence[int]) -> None:
        """Take slots out; unknown ones are no error."""
        with _guard():
            for start in range(0, len(slots), BATCH):
                self._collection.delete(ids=[str(slot) for slot in slots[start : start + BATCH]])

    def query(self, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        """The nearest at most k (slot, cosine), best first; approximate (HNSW)."""
        with _guard():
            found = self._collection.query(query_embeddings=[vector.tolist()], n_results=k, include=["distances"])
            return [(int(slot), 1.0 - float(far)) for slot, far in zip(found["ids"][0], found["distances"][0], strict=True)]

    def count(self) -> int:
        """How many slots it holds."""
        with _guard():
            return int(self._collection.count())

    def probe(self, expected: int, slots: Sequence[int], vectors: np.ndarray) -> str:
        """ "" when it holds `expected` slots, and these with these vectors, and answers a query; else what is wrong."""
        count = self.count()
        if count != expected:
            return f"Chroma holds {count} vectors, the ledger {expected}"
        if not slots:
            return ""
        with _guard():
            got = self._collection.get(ids=[str(slot) for slot in slots], include=["embeddings"])
            held = {int(slot): np.asarray(vector, dtype=np.float32) for slot, vector in zip(got["ids"], got["embeddings"], strict=True)}
        for slot, vector in zip(slots, vectors, strict=True):
            if slot not in held:
                return f"Chroma has lost slot {slot}"
            if held[slot].shape != vector.shape or not np.allclose(held[slot], vector, atol=1e-3):
                return f"Chroma holds another vector for slot {slot}"
        if not self.query(vectors[0], 1):
            return "Chroma finds nothing"
        return ""


def rebuild(folder: Path, fingerprint: str, batches: Iterable[Records]) -> int:
    """Write a new generation from (slots, unit vectors, labels) batches, make it the live one, remove the others.

    Returns its number. A kill in between leaves the old one live. Nobody may have the memory open.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = 1 + max([current(folder), *(int(path.name[4:]) for path in _generations(folder))])
    path = folder / f"gen-{number}"
    path.mkdir(mode=0o700)
    try:
        client = _client(path)
        try:
            with _guard():
                collection = client.create_collection(
                    _NAME, embedding_function=None, configuration={"hnsw": _HNSW}, metadata={"embedder": fingerprint}
                )
            for slots, vectors, labels in batches:
                with _guard():
                    _upsert(collection, slots, vectors, labels)
        finally:
            _close(client)
        _seal(path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    write_whole(folder / "CURRENT", path.name + "\n")
    (folder / "OPEN").unlink(missing_ok=True)
    sweep(folder)
    return number


def sweep(folder: Path) -> None:
    """Remove every generation but the live one (a kill during a rebuild leaves one behind)."""
    live = current(folder)
    for path in _generations(folder):
        if path.name != f"gen-{live}":
            shutil.rmtree(path, ignore_errors=True)


def _index_files(path: Path) -> dict[str, list[int]]:
    """Size and mtime of the index's files: not of SQLite's, which looks after itself, and changes with every upsert."""
    found = {}
    for file in sorted(path.glob("*/*")):
        stat = file.stat()
        found[file.relative_to(path).as_posix()] = [stat.st_size, stat.st_mtime_ns]
    return found


def _seal(path: Path) -> None:
    """Note how a generation's index files look now that nobody has them open."""
    if not _is_sealed(path):
        write_whole(path / "seal.json", json.dumps(_index_files(path)))


def _is_sealed(path: Path) -> bool:
    """Whether they look as they did then: a kill while Chroma wrote them, or a cut file, shows here."""
    try:
        return bool(json.loads((path / "seal.json").read_text(encoding="utf-8")) == _index_files(path))
    except (OSError, ValueError):
        return False


def _generations(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.glob("gen-*") if path.name[4:].isdecimal())


def _upsert(collection: Any, slots: Sequence[int], vectors: np.ndarray, labels: Sequence[Mapping[str, str]]) -> None:
    for start in range(0, len(slots), BATCH):
        part = slice(start, start + BATCH)
        collection.upsert(
            ids=[str(slot) for slot in slots[part]],
            embeddings=np.ascontiguousarray(vectors[part], dtype=np.float32),
            metadatas=[dict(label) for label in labels[part]],
        )


def _client(path: Path) -> Any:
    """chromadb's client over one directory: no telemetry, no `.env` of whatever folder we were started in."""
    with _guard():
        chromadb = _chromadb()
        settings = chromadb.config.Settings(_env_file=None, anonymized_telemetry=False, is_persistent=True)
        return chromadb.PersistentClient(path=str(path), settings=settings)


def _chromadb() -> Any:
    """Import chromadb. Its settings read `.env` of the working directory at import, and a foreign one makes that fail."""
    with _importing:
        here = Path.cwd()
        away = (here / ".env").exists()
        if away:
            os.chdir(Path(__file__).parent)
        try:
            import chromadb
            import chromadb.config
        finally:
            if away:
                os.chdir(here)
    return chromadb


def _close(client: Any) -> None:
    with _guard():
        client.close()


@contextmanager
def _guard() -> Iterator[None]:
    """Chroma's errors as one: among them a panic of its Rust half, which is no Exception."""
    try:
        yield
    except (MemoryBroken, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:
        raise MemoryBroken(f"Chroma: {type(error).__name__}: {error}") from error
