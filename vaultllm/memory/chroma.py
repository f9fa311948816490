"""Vectors in a Chroma directory of this machine. The only importer of chromadb.

`folder/gen-N/` is one Chroma directory, `folder/CURRENT` names the live one. One process at a time has a generation open
(two writers lose vectors in silence): its `lock` is taken here. A new generation is written beside the live one, which
goes on answering until the swap. Knows nothing about ledgers or passages, nor about servers (`server.py`).
"""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import struct
import threading
import zlib
from collections.abc import Iterable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from vaultllm import locks
from vaultllm.errors import VaultError, VaultllmError
from vaultllm.files import write_whole
from vaultllm.memory.vectors import HNSW, about, guarded, near, refuse_foreign
from vaultllm.memory.vectors import Memory as Memory
from vaultllm.memory.vectors import MemoryBroken as MemoryBroken
from vaultllm.memory.vectors import Records as Records
from vaultllm.memory.vectors import upsert as _upsert

SERVER = "server.json"  # of server.py: which generation lives on a server. Either this file or CURRENT is there, never both.
_NAME = "passages"
_HEADER = struct.Struct("<4xQQQQ")  # begin of hnswlib's header: version; offset of level 0, room, elements in use, bytes of an element
_LENGTH = 4  # bytes of an element in length.bin
_importing = threading.Lock()

# -- one directory


@dataclass(frozen=True)
class Directory:
    """Generations in a folder of this machine."""

    folder: Path
    """Holds `gen-N/` and `CURRENT`; need not exist."""

    def live(self) -> int:
        """See Store."""
        return current(self.folder)

    def whole(self) -> bool:
        """See Store."""
        return whole(self.folder)

    def open(self, fingerprint: str) -> Memory:
        """See Store."""
        return ChromaMemory(self.folder, fingerprint)

    def nearest(self, fingerprint: str, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        """See Store."""
        return nearest(self.folder, fingerprint, vector, k)

    def rebuild(self, fingerprint: str, batches: Iterable[Records]) -> int:
        """See Store."""
        return rebuild(self.folder, fingerprint, batches)

    def sweep(self) -> None:
        """See Store."""
        sweep(self.folder)


def current(folder: Path) -> int:
    """The number of the live generation; 0 when there is none. Looks at names only, does not import chromadb."""
    try:
        name = (folder / "CURRENT").read_text(encoding="utf-8").strip()
        number = int(name.removeprefix("gen-"))
    except (OSError, ValueError):
        return 0
    return number if (folder / f"gen-{number}" / "chroma.sqlite3").is_file() else 0


def unclean(folder: Path) -> int:
    """How many times in a row a process died with the live generation open."""
    try:
        died, *which = (folder / "OPEN").read_text(encoding="utf-8").split()
        return int(died) if which in ([], [f"gen-{current(folder)}"]) else 0
    except (OSError, ValueError):
        return 0


def whole(folder: Path) -> bool:
    """Whether the live generation looks as it was left: a few `stat`, no import of chromadb. Only opening it proves it."""
    number = current(folder)
    return bool(number) and not unclean(folder) and _sealed(folder / f"gen-{number}") is not None


class ChromaMemory(Memory):
    """The live generation of a folder, opened by this process alone."""

    def __init__(self, folder: Path, fingerprint: str, wait: float = 60.0) -> None:
        """Open the live generation if it holds vectors of this embedder.

        Raises MemoryBroken, and LockedError when another has it open for longer than `wait` seconds.
        """
        self.folder = folder
        self.fingerprint = fingerprint
        let_go()
        self._lock, self.generation = _hold(folder, wait)
        try:
            with guarded():
                self._client, self._collection = _open(folder, self.generation, fingerprint)
        except BaseException:
            self._lock.release()
            raise

    def close(self) -> None:
        """Let go of the files and of chromadb's own cache of clients, so that the path can be opened afresh."""
        try:
            with guarded():
                _close(self._client)
                path = self.folder / f"gen-{self.generation}"
                if self._wrote or _sealed(path) is None:
                    _seal(path)
                (self.folder / "OPEN").unlink(missing_ok=True)
        finally:
            self._lock.release()

    def damage(self) -> str:
        """ "" or what SQLite says of its file; the index's files were compared when it was opened."""
        try:
            uri = f"{(self.folder / f'gen-{self.generation}' / 'chroma.sqlite3').absolute().as_uri()}?mode=ro"
            with closing(sqlite3.connect(uri, uri=True)) as db:
                (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error as error:
            said = error
        return "" if said == "ok" else f"Chroma's SQLite file is damaged: {said}"


def _hold(folder: Path, wait: float) -> tuple[locks.Lock, int]:
    """The lock of the live generation, taken, and its number: one process at a time has its files open."""
    while number := current(folder):
        try:
            lock = locks.take(folder / f"gen-{number}" / "lock", wait, "has the memory open", poll=0.01)
        except VaultError as error:
            if current(folder) == number:
                raise MemoryBroken(f"the memory cannot be locked: {error}") from error
            continue  # it was swept away that very moment
        if current(folder) == number:
            return lock, number
        lock.release()
    raise MemoryBroken("there is no Chroma directory")


def _open(folder: Path, number: int, fingerprint: str) -> tuple[Any, Any]:
    """chromadb's client and collection of a generation whose lock we hold; OPEN counts us until it is closed."""
    # A damaged index ends the process where no exception is seen: a cut `header.bin`, a zeroed `link_lists.bin` is SIGSEGV
    # (seen with 1.5.9). So files that are not as we left them are not opened, and others never a third time.
    path = folder / f"gen-{number}"
    if not _mend_seal(path):
        raise MemoryBroken("the index was not closed, or was changed from outside")
    if unclean(folder) >= 2:
        raise MemoryBroken("the process died twice with the memory open")
    _count_open(folder, number)
    try:
        client = _client(path)
        try:
            with guarded():
                collection = client.get_collection(_NAME, embedding_function=None)
                found = collection.metadata or {}
            refuse_foreign(found, fingerprint)
            return client, collection
        except BaseException:
            _close(client)
            raise
    except MemoryBroken:
        (folder / "OPEN").unlink(missing_ok=True)
        raise


def _count_open(folder: Path, number: int) -> None:
    (folder / "OPEN").write_text(f"{unclean(folder) + 1} gen-{number}", encoding="utf-8")


def rebuild(folder: Path, fingerprint: str, batches: Iterable[Records]) -> int:
    """Write a new generation from (slots, unit vectors, labels) batches, make it the live one, remove the others.

    Returns its number. A kill in between leaves the old one live. The live generation answers meanwhile: this needs its
    lock only to remove it. The caller sees to it that no other process rebuilds, or writes what is then lost with the
    old generation. Raises MemoryBroken, OSError, and whatever `batches` raises.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = 1 + max([current(folder), *(int(path.name[4:]) for path in _generations(folder))])
    path = folder / f"gen-{number}"
    path.mkdir(mode=0o700)
    try:
        client = _client(path)
        try:
            with guarded():
                collection = client.create_collection(
                    _NAME, embedding_function=None, configuration={"hnsw": HNSW}, metadata=about(fingerprint)
                )
            for slots, vectors, labels in batches:
                with _asking:  # a question under way is answered first: Chroma holds Python's lock for a whole batch,
                    pass  # and each of its steps would wait for one
                with guarded():
                    _upsert(collection, slots, vectors, labels)
        finally:
            _close(client)
        _seal(path)
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    (folder / SERVER).unlink(missing_ok=True)
    (folder / "OPEN").unlink(missing_ok=True)
    write_whole(folder / "CURRENT", path.name + "\n")
    sweep(folder)
    return number


def sweep(folder: Path, wait: float = 5.0) -> None:
    """Remove every generation but the live one (a kill during a rebuild leaves one behind).

    One that somebody asks this very moment is waited for; after `wait` seconds it is left to the next time.
    """
    let_go()
    live = current(folder)
    for path in _generations(folder):
        if path.name != f"gen-{live}":
            with suppress(VaultllmError):
                locks.take(path / "lock", wait, poll=0.01).release()
                shutil.rmtree(path, ignore_errors=True)


# -- the index that answers questions stays open between them


@dataclass
class _Warm:
    """An index that this process has loaded: which one, how it looked then, and chromadb's objects."""

    key: tuple[Any, ...]
    client: Any
    collection: Any


_warm: _Warm | None = None
_asking = threading.Lock()


def nearest(folder: Path, fingerprint: str, vector: np.ndarray, k: int, wait: float = 0.05) -> list[tuple[int, float]]:
    """`ChromaMemory.query`, the index kept open from one question to the next (to load 60,000 vectors takes 80 ms).

    A write by whatever process, or a new generation, is seen: then it is loaded anew. Raises MemoryBroken, and
    LockedError when the live generation is being written to for longer than `wait` seconds.
    """
    with _asking:
        lock, number = _hold(folder, wait)
        try:
            with guarded():
                return _ask(folder, number, fingerprint, vector, k)
        finally:
            lock.release()


def _ask(folder: Path, number: int, fingerprint: str, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
    """Of the generation whose lock we hold, from what is loaded if that is still it."""
    global _warm
    path = folder / f"gen-{number}"
    key = (str(folder), fingerprint, number, _sealed(path))
    if _warm is not None and (_warm.key != key or key[-1] is None or unclean(folder)):
        _forget_warm()
    if _warm is None:
        client, collection = _open(folder, number, fingerprint)
        _warm = _Warm(key, client, collection)
    else:
        _count_open(folder, number)
    try:
        found = near(_warm.collection, vector, k)
    except MemoryBroken:
        _forget_warm()
        raise
    finally:
        (folder / "OPEN").unlink(missing_ok=True)
    if _sealed(path) is None:  # the first to load a small index makes its files
        _seal(path)
    _warm.key = (*key[:-1], _sealed(path))
    return found


def let_go() -> None:
    """Close the index that `nearest` keeps open in this process, if there is one."""
    with _asking:
        _forget_warm()


def _forget_warm() -> None:
    global _warm
    if _warm is not None:
        client, _warm = _warm.client, None
        with suppress(MemoryBroken):
            _close(client)


# -- how the files of an index were left


def _files(path: Path) -> dict[str, list[int]]:
    """Size and times of the index's files: not of SQLite's, which looks after itself, and changes with every upsert."""
    found = {}
    for file in sorted(path.glob("*/*")):
        stat = file.stat()
        found[file.relative_to(path).as_posix()] = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]
    return found


def _sum(path: Path) -> int:
    """CRC-32 of a file: it tells accidents from what was meant, and reads a gigabyte in a second."""
    found = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            found = zlib.crc32(part, found)
    return found


def _read_seal(path: Path) -> dict[str, Any]:
    """What `_seal` wrote; empty when that makes no sense."""
    try:
        seal = json.loads((path / "seal.json").read_text(encoding="utf-8"))
        return seal if isinstance(seal, dict) and {"writes", "files", "sums"} <= set(seal) else {}
    except (OSError, ValueError):
        return {}


def _sealed(path: Path) -> dict[str, Any] | None:
    """The seal, when the index's files have the sizes and times of then: a kill while Chroma wrote them shows, and a cut."""
    seal = _read_seal(path)
    try:
        return seal if seal and seal["files"] == _files(path) else None
    except OSError:
        return None


def _mend_seal(path: Path) -> bool:
    """Whether the index's files are those of the seal; where only their times differ (a copied folder), it is written anew."""
    if _sealed(path) is not None:
        return True
    seal = _read_seal(path)
    try:
        if not seal or seal["sums"] != {name: _sum(path / name) for name in _files(path)}:
            return False
    except OSError:
        return False
    write_whole(path / "seal.json", json.dumps({**seal, "files": _files(path)}))
    return True


def _seal(path: Path) -> None:
    """Note how a generation's index files look now that nobody writes to them, and that there was a session."""
    _wipe(path)
    old = _read_seal(path) or {"writes": 0, "files": {}, "sums": {}}
    files = _files(path)
    sums = {name: old["sums"][name] if files[name] == old["files"].get(name) else _sum(path / name) for name in files}
    write_whole(path / "seal.json", json.dumps({"writes": old["writes"] + 1, "files": files, "sums": sums}))


def _wipe(path: Path) -> None:
    """Zero what lies behind the elements in use: hnswlib reserves room, and writes it as `malloc` gave it to it.

    Whatever this process has held in memory may stand there, sentences of notes too (seen with 1.5.9).
    """
    for header in path.glob("*/header.bin"):
        told = header.read_bytes()
        if len(told) < _HEADER.size:
            continue
        _, _, used, size = _HEADER.unpack_from(told)
        for name, each in (("data_level0.bin", size), ("length.bin", _LENGTH)):
            with suppress(FileNotFoundError), open(header.with_name(name), "r+b") as file:
                file.seek(used * each)
                spare = file.read()
                if spare.strip(b"\0"):
                    file.seek(used * each)
                    file.write(bytes(len(spare)))


def _generations(folder: Path) -> Iterator[Path]:
    yield from (path for path in folder.glob("gen-*") if path.name[4:].isdecimal())


def _client(path: Path) -> Any:
    """chromadb's client over one directory: no telemetry, no `.env` of whatever folder we were started in."""
    with guarded():
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
    with guarded():
        client.close()
