"""HTTP to a Chroma server: one connection, its limits, its errors; and a collection there, spoken to like chromadb's own.

Not chromadb's client, because that waits without end for a server that hangs, sends vectors through a proxy that the
environment names, and takes a second to import. Knows nothing about generations (`server.py`).
"""

from __future__ import annotations

import base64
import http.client
import json
import re
import selectors
from collections.abc import Sequence
from typing import Any
from urllib.parse import quote, urlsplit

import numpy as np

from vaultllm.errors import ConfigError
from vaultllm.memory.vectors import MemoryBroken

CONNECT = 3.0  # seconds
WRITE = 120.0  # seconds: a batch on a slow machine, with a sync of a large index
QUERY = 5.0  # seconds: after that an exact scan of the ledger answers
_LARGEST = 64 << 20  # bytes of one reply
_DATABASE = "/tenants/default_tenant/databases/default_database"
_OURS = (400, 404, 409, 413, 422, 500)  # statuses that speak of what is stored, or of how: a new generation may mend it


class MemoryAway(MemoryBroken):
    """The server does not answer, or not as a Chroma server: no rebuild mends that. The outbox waits, an exact scan answers."""


class ServerDied(MemoryAway):
    """It hung up in the middle of an answer."""


def endpoint(address: str) -> tuple[bool, str, int, str]:
    """Whether it is https, the host, the port, and the path before `/api/v2`. Raises ConfigError."""
    wrong = f"memory.chroma = {address!r} is no address of a Chroma server; write it like http://127.0.0.1:8000, or leave it empty"
    try:
        parts = urlsplit(address.strip())
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise ConfigError(f"{wrong} ({error})") from error
    if parts.scheme not in ("http", "https") or not re.fullmatch(r"[\w.:%-]+", host) or parts.query or parts.fragment or port == 0:
        raise ConfigError(wrong)
    if parts.username is not None or parts.password is not None:
        raise ConfigError("memory.chroma holds a user name or a password, which Chroma servers do not know; write http://host:port")
    secure = parts.scheme == "https"
    return secure, host, port or (443 if secure else 8000), quote(parts.path.rstrip("/"), safe="/%")


def text(found: Any, key: str) -> str:
    """A string out of an answer. Raises MemoryAway where there is none."""
    if isinstance(found, dict) and isinstance(value := found.get(key), str):
        return value
    raise MemoryAway("what answers at the address of memory.chroma is no Chroma server that we know (1.x); look at the address")


class Remote:
    """A collection on a server, with those methods of chromadb's Collection that we use."""

    def __init__(self, wire: Wire, identity: str, seconds: float) -> None:
        self._wire, self._path, self._seconds = wire, f"/collections/{identity}", seconds

    def upsert(self, ids: Sequence[str], embeddings: np.ndarray, metadatas: None) -> None:
        """Vectors (n, dims) float32 under ids."""
        rows = [base64.b64encode(row.tobytes()).decode("ascii") for row in embeddings.astype("<f4")]  # a third faster than numbers
        self._ask("upsert", {"ids": ids, "embeddings": rows, "metadatas": metadatas})

    def delete(self, ids: Sequence[str]) -> None:
        """Unknown ids are no error."""
        self._ask("delete", {"ids": ids})

    def query(self, **asked: Any) -> Any:
        """`query_embeddings`, `n_results`, `include`: as chromadb's."""
        return self._ask("query", asked)

    def get(self, **asked: Any) -> Any:
        """`ids`, `include`: as chromadb's."""
        return self._ask("get", asked)

    def count(self) -> int:
        """How many ids there are."""
        return int(self._wire.call("GET", f"{self._path}/count", seconds=self._seconds))

    def _ask(self, verb: str, body: dict[str, Any]) -> Any:
        return self._wire.call("POST", f"{self._path}/{verb}", body, seconds=self._seconds)


class Wire:
    """One connection, kept, opened anew when the server closed it meanwhile. For one thread at a time."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._secure, self._host, self._port, self._base = endpoint(address)
        self._link: http.client.HTTPConnection | None = None

    def __enter__(self) -> Wire:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the next call connects again."""
        if self._link is not None:
            self._link.close()
            self._link = None

    def greet(self) -> None:
        """Raise MemoryAway unless a Chroma server answers that takes vectors as we send them."""
        status, raw = self._send("GET", f"{self._base}/api/v2/pre-flight-checks", None, QUERY)
        try:
            able = json.loads(raw).get("supports_base64_encoding") if status == 200 else None
        except (ValueError, AttributeError, RecursionError):
            able = None
        if able is not True:
            raise MemoryAway(
                f"what answers at {self.address} is no Chroma server of version 1.x; look at memory.chroma, or update the server"
            )

    def call(self, method: str, path: str, body: Any = None, *, seconds: float = WRITE, must_exist: bool = True) -> Any:
        """What the server answers; None for 404 unless it `must_exist`. Raises MemoryBroken, MemoryAway."""
        data = None if body is None else json.dumps(body).encode()
        status, raw = self._send(method, f"{self._base}/api/v2{_DATABASE}{path}", data, seconds)
        try:
            found = json.loads(raw) if raw else {}
        except (ValueError, RecursionError):
            found = None
        if 200 <= status < 300 and found is not None:
            return found
        if status == 404 and not must_exist:
            return None
        said = found.get("message") if isinstance(found, dict) else raw[:200].decode("utf-8", "replace")
        said = "".join(letter if letter.isprintable() else " " for letter in str(said))[:200]
        if status in _OURS:
            raise MemoryBroken(f"the Chroma server at {self.address} says {status}: {said}")
        raise MemoryAway(
            f"what answers at {self.address} says {status}: {said}; look at memory.chroma, and at what stands before the server"
        )

    def _send(self, method: str, path: str, data: bytes | None, seconds: float) -> tuple[int, bytes]:
        if self._link is not None and _closed(self._link):
            self.close()
        if self._link is None:
            self._link = self._connect()
        try:
            self._link.sock.settimeout(seconds)
            self._link.request(method, path, data, {"Content-Type": "application/json"})
            response = self._link.getresponse()
            raw = response.read(_LARGEST)
            if response.will_close or not response.isclosed():
                self.close()
            return response.status, raw
        except TimeoutError as error:
            self.close()
            raise MemoryAway(f"the Chroma server at {self.address} has not answered for {seconds:g} s; restart it") from error
        except (OSError, http.client.HTTPException) as error:
            self.close()
            raise ServerDied(f"the Chroma server at {self.address} hung up ({error or type(error).__name__}); restart it") from error

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        link = kind(self._host, self._port, timeout=CONNECT)
        try:
            link.connect()
        except (OSError, UnicodeError) as error:
            link.close()
            raise MemoryAway(
                f"no Chroma server answers at {self.address} ({error}); start it (chroma run --host {self._host} --port {self._port} "
                '--path FOLDER), or set memory.chroma = "" to keep the vectors on this machine'
            ) from error
        return link


def _closed(link: http.client.HTTPConnection) -> bool:
    """Whether the other side has hung up, or sent what we have not asked for: either way this connection is of no more use."""
    if link.sock is None:
        return True
    with selectors.DefaultSelector() as waiting:
        waiting.register(link.sock, selectors.EVENT_READ)
        return bool(waiting.select(0))
