"""The same vectors on a Chroma server that the user names (`chroma = "http://host:port"`, started with `chroma run`).

A generation is a collection `vaultllm-NAME-N-FINGERPRINT`; the small collection `vaultllm-NAME` names the live one and
carries a stamp, which changes with every session of writing: a server that came back with older files, or a second
ledger of the same name, shows by it. NAME is the ledger's, because slots are numbers of one ledger. What a server deletes
stays in its files, which are not ours to remove: so only ids and vectors go there, no labels. `server.json` is what we
know of it. Knows nothing about ledgers or passages.
"""

from __future__ import annotations

import json
import re
import secrets
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from vaultllm import locks
from vaultllm.errors import VaultError
from vaultllm.files import write_whole
from vaultllm.memory import chroma
from vaultllm.memory.vectors import HNSW, Memory, MemoryBroken, Records, Store, about, guarded, near, refuse_foreign, upsert
from vaultllm.memory.wire import QUERY, WRITE, Remote, ServerDied, Wire, endpoint, text
from vaultllm.memory.wire import MemoryAway as MemoryAway
from vaultllm.text import sha

_PAGE = 500  # collections named by one reply
_MOST = 1_000_000  # of them are looked at
_REST = 15.0  # seconds in which a server that was silent is not asked again
_AGAIN = {"get_or_create": True}  # said twice, it is still one collection


def store(folder: Path, address: str, name: str) -> Store:
    """Where the vectors of a memory folder are kept: on the server at `address`, or in the folder itself when that is empty.

    `name` is the ledger's own, random and lasting. Raises ConfigError when the address is none, ValueError when the name
    is not of letters and digits.
    """
    if not address:
        return chroma.Directory(folder)
    endpoint(address)
    if not re.fullmatch("[0-9A-Za-z]{1,64}", name):
        raise ValueError(f"{name!r} cannot name a collection")
    return Server(folder, address.rstrip("/"), name)


@dataclass(frozen=True)
class _Record:
    """What we know of the live generation (`server.json`)."""

    address: str
    name: str
    generation: int
    collection: str  # its id
    embedder: str
    stamp: str


@dataclass(frozen=True)
class Server:
    """Generations on a Chroma server."""

    folder: Path
    """Holds `server.json` and `server.lock`; need not exist."""
    address: str
    """`http://host:port`."""
    name: str
    """Of the ledger: tells its collections from those of others."""

    def live(self) -> int:
        """See Store."""
        record = self._record()
        return record.generation if record else 0

    def whole(self) -> bool:
        """See Store."""
        record = self._record()
        return record is not None and not self._died(record)

    def open(self, fingerprint: str) -> Memory:
        """See Store. Also raises MemoryAway."""
        return ServerMemory(self, fingerprint)

    def nearest(self, fingerprint: str, vector: np.ndarray, k: int) -> list[tuple[int, float]]:
        """See Store. Also raises MemoryAway. Takes no lock: a server lets many read while one writes."""
        record = self._usable(fingerprint)
        with _asking, self._deaths(record):
            if time.monotonic() < _silent_until.get(self.address, 0.0):
                raise MemoryAway(f"the Chroma server at {self.address} was silent a moment ago")
            began = time.monotonic()
            try:
                return near(Remote(_kept(self.address), record.collection, QUERY), vector, k)
            except MemoryAway:
                if time.monotonic() - began > 1.0:  # the next questions shall not wait so long too
                    _silent_until[self.address] = time.monotonic() + _REST
                raise

    def rebuild(self, fingerprint: str, batches: Iterable[Records]) -> int:
        """See Store. Also raises MemoryAway."""
        with self._only(), Wire(self.address) as wire:
            wire.greet()
            old = wire.call("GET", f"/collections/{self._prefix}", must_exist=False)
            number = 1 + max([self.live(), *(number for number, _ in self._theirs(wire))])
            name = self._named(number, fingerprint)
            made = wire.call(
                "POST", "/collections", {"name": name, "metadata": about(fingerprint), "configuration": {"hnsw": HNSW}, **_AGAIN}
            )
            try:
                identity = text(made, "id")
                for slots, vectors, _ in batches:
                    with guarded():
                        upsert(Remote(wire, identity, WRITE), slots, vectors, ())
            except BaseException:
                with suppress(MemoryBroken):
                    wire.call("DELETE", f"/collections/{name}", seconds=QUERY, must_exist=False)
                raise
            record = _Record(self.address, self.name, number, identity, fingerprint, secrets.token_hex(8))
            for file in ("CURRENT", "OPEN"):
                (self.folder / file).unlink(missing_ok=True)
            if old is None:
                wire.call("POST", "/collections", {"name": self._prefix, "metadata": _public(record), **_AGAIN})
            else:
                wire.call("PUT", f"/collections/{text(old, 'id')}", {"new_metadata": _public(record)})
            self._write(record)
            self._sweep(wire, number)
        chroma.sweep(self.folder)
        return number

    def sweep(self) -> None:
        """See Store. Also raises MemoryAway."""
        if live := self.live():
            with self._only(), Wire(self.address) as wire:
                self._sweep(wire, live)
            chroma.sweep(self.folder)

    @property
    def _prefix(self) -> str:
        return f"vaultllm-{self.name}"

    def _named(self, number: int, fingerprint: str) -> str:
        return f"{self._prefix}-{number}-{sha(fingerprint, digits=8)}"

    def _sweep(self, wire: Wire, live: int) -> None:
        for number, name in self._theirs(wire):
            if number != live:
                wire.call("DELETE", f"/collections/{name}", must_exist=False)

    def _theirs(self, wire: Wire) -> list[tuple[int, str]]:
        """Numbers and names of the generations that the server holds."""
        names: list[str] = []
        for offset in range(0, _MOST, _PAGE):
            page = wire.call("GET", f"/collections?limit={_PAGE}&offset={offset}")
            names += [text(one, "name") for one in (page if isinstance(page, list) else [page])]
            if len(page) < _PAGE:
                break
        found = (re.fullmatch(rf"{re.escape(self._prefix)}-(\d{{1,15}})-[0-9a-f]{{8}}", name) for name in names)
        return [(int(match[1]), match[0]) for match in found if match]

    def _record(self) -> _Record | None:
        """What `server.json` says, if it speaks of this server."""
        try:
            record = _Record(**json.loads((self.folder / chroma.SERVER).read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError, RecursionError):
            return None
        same = (record.address, record.name) == (self.address, self.name) and isinstance(record.generation, int)
        return record if same and isinstance(record.collection, str) else None

    def _write(self, record: _Record) -> None:
        write_whole(self.folder / chroma.SERVER, json.dumps(asdict(record)))

    def _usable(self, fingerprint: str) -> _Record:
        record = self._record()
        if record is None:
            raise MemoryBroken(f"there is no generation on {self.address} yet")
        if record.embedder != fingerprint:
            raise MemoryBroken(f"{self.address} holds vectors of {record.embedder}, not of {fingerprint}")
        if self._died(record) >= 2:
            raise MemoryBroken(f"the server at {self.address} died twice over this generation")
        return record

    def _died(self, record: _Record) -> int:
        """How many times in a row the server died while we asked this generation."""
        try:
            died, which = (self.folder / "OPEN").read_text(encoding="utf-8").split()
            return int(died) if which == f"server-{record.generation}" else 0
        except (OSError, ValueError):
            return 0

    @contextmanager
    def _deaths(self, record: _Record) -> Iterator[None]:
        """Count them: a torn index kills a server at every touch, so after the second it is rebuilt untouched."""
        try:
            yield
        except ServerDied:
            with suppress(OSError):
                (self.folder / "OPEN").write_text(f"{self._died(record) + 1} server-{record.generation}", encoding="utf-8")
            raise
        if self._died(record):
            (self.folder / "OPEN").unlink(missing_ok=True)

    @contextmanager
    def _only(self, wait: float = 60.0) -> Iterator[None]:
        """Be the only session that writes. Raises LockedError."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = locks.take(self.folder / "server.lock", wait, "writes to the memory", poll=0.01)
        except (OSError, VaultError) as error:
            raise MemoryBroken(f"the memory cannot be locked: {error}") from error
        try:
            yield
        finally:
            lock.release()


class ServerMemory(Memory):
    """The live generation on a server, opened: one session at a time writes."""

    def __init__(self, server: Server, fingerprint: str) -> None:
        """Raises MemoryBroken, MemoryAway, LockedError."""
        self._server = server
        with ExitStack() as stack:
            stack.enter_context(server._only())
            self._record = record = server._usable(fingerprint)
            self.generation = record.generation
            self._wire = stack.enter_context(Wire(server.address))
            stack.enter_context(server._deaths(record))
            self._wire.greet()
            with guarded():
                self._pointer = self._wire.call("GET", f"/collections/{server._prefix}")
                if self._pointer["metadata"] != _public(record):
                    raise MemoryBroken(f"{server.address} came back with older files, or serves a copy of this ledger too")
                found = self._wire.call("GET", f"/collections/{server._named(record.generation, fingerprint)}")
                refuse_foreign(found["metadata"], fingerprint)
            self._collection = Remote(self._wire, record.collection, WRITE)
            self._stack = stack.pop_all()

    def __exit__(self, *exc: Any) -> None:
        self._stack.__exit__(*exc)

    def close(self) -> None:
        """Let go of the connection."""
        self._stack.close()

    def damage(self) -> str:
        """ "": its files are the server's."""
        return ""

    def upsert(self, slots: Sequence[int], vectors: np.ndarray, labels: Sequence[Mapping[str, str]] = ()) -> None:
        """See Memory; labels are left out."""
        self._stamp()
        super().upsert(slots, vectors)

    def delete(self, slots: Sequence[int]) -> None:
        """See Memory."""
        self._stamp()
        super().delete(slots)

    def _stamp(self) -> None:
        """Before the first write of a session: whoever holds an older state, the server or we, shows it from now on."""
        if not self._wrote:
            self._record = replace(self._record, stamp=secrets.token_hex(8))
            self._wire.call("PUT", f"/collections/{text(self._pointer, 'id')}", {"new_metadata": _public(self._record)})
            with guarded():
                self._server._write(self._record)


def _public(record: _Record) -> dict[str, Any]:
    """What the server's own record says of a generation."""
    return {"generation": record.generation, "collection": record.collection, "stamp": record.stamp}


_asking = threading.Lock()
_wires: dict[str, Wire] = {}  # of `Server.nearest`, by address
_silent_until: dict[str, float] = {}  # by address, on the monotonic clock


def _kept(address: str) -> Wire:
    return _wires.setdefault(address, Wire(address))


def let_go() -> None:
    """Close the connections that questions keep open in this process."""
    with _asking:
        while _wires:
            _wires.popitem()[1].close()
