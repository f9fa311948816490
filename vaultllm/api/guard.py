"""The door: every request passes here first, whatever it is for. Nothing is open.

In this order: Host (against DNS rebinding), Origin, CORS preflight, token, body (kind, size, time, depth, numbers, letters). What is
refused gets OpenAI's error shape with our code. Knows nothing about what is behind it, and logs no word of a request.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import ipaddress
import json
import logging
import math
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

ORIGINS = ("app://obsidian.md", "capacitor://localhost")
"""Who may ask from a page: Obsidian on a desktop and on a phone."""
MOST_BYTES = 2**20  # of a body
MOST_HEADER = 16 * 1024  # bytes of all headers, and of the address
MOST_DEPTH = 64  # of JSON
MOST_AT_ONCE = 128  # requests that are inside
BODY_SECONDS = 20.0  # until a body is there
SEND_SECONDS = 30.0  # until a client takes what it is sent
PREFIX = "/key/"
"""Before the path, for clients that can be given an address but no header: `http://127.0.0.1:8471/key/TOKEN`."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})
_LOOSE = ("/api/chat", "/api/generate", "/api/embed", "/api/embeddings", "/api/show")  # Ollama's own clients name no content type
_OF_BODY = (b"content-type", b"content-length", b"transfer-encoding")
_HEADERS = re.compile(rb"[A-Za-z0-9-]+(?:[ \t]*,[ \t]*[A-Za-z0-9-]+)*")
_TOKENS = re.compile(rb'["\\\[\]{}]')
_TYPES = {400: "invalid_request_error", 401: "authentication_error", 403: "permission_error", 404: "not_found_error",
          429: "rate_limit_error"}  # fmt: skip

log = logging.getLogger("vaultllm.api")


class Refused(Exception):  # noqa: N818 - an answer, not a bug
    """A request that goes no further."""

    def __init__(self, status: int, code: str, message: str, *, wait: int = 0, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.wait, self.param = status, code, message, wait, param

    def body(self) -> bytes:
        """OpenAI's error shape."""
        return json.dumps({"error": error(self.status, self.code, self.message, self.param)}, ensure_ascii=False).encode()


def error(status: int, code: str, message: str, param: str | None = None) -> dict[str, Any]:
    """What is wrong, in OpenAI's words and with our code."""
    kind = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return {"message": message, "type": kind, "param": param, "code": code}


def bug(error: Exception) -> Refused:
    """What is told of an error that should not have been; its text could hold a note's words."""
    return Refused(500, "E-INTERNAL", f"a bug of ours ({type(error).__name__}); vaultllm doctor --bundle helps to find it")


@dataclass(frozen=True, slots=True)
class Rules:
    """Who is let in."""

    keys: tuple[bytes, ...]
    """SHA-256 of each token."""
    host: str = "127.0.0.1"
    """The address that is listened on; one that is not of loopback was named by the user."""
    origins: tuple[str, ...] = ORIGINS
    """Pages that may ask."""


class Guard:
    """An ASGI application around another."""

    def __init__(self, app: App, rules: Rules) -> None:
        self.app, self.rules, self.inside = app, rules, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
            return
        reply = _Reply(send)
        self.inside += 1
        try:
            await self.pass_on(scope, receive, reply)
        except Refused as refused:
            await reply.refuse(refused)
        except (TimeoutError, ConnectionError):  # it went away, or takes nothing
            pass
        except Exception as error:  # the text could hold a note's words
            log.error("E-INTERNAL %s", type(error).__name__)
            await reply.refuse(bug(error))
        finally:
            self.inside -= 1

    async def pass_on(self, scope: Scope, receive: Receive, reply: _Reply) -> None:
        """To the application, if nothing is wrong. Raises Refused."""
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > MOST_HEADER:
            raise Refused(414, "E-REQUEST", f"the address is longer than {MOST_HEADER} bytes")
        if sum(len(name) + len(value) for name, value in scope["headers"]) > MOST_HEADER:
            raise Refused(431, "E-REQUEST", f"the headers are longer than {MOST_HEADER} bytes")
        headers = _one_each(scope["headers"])
        self.check_host(headers.get(b"host"))
        origin = headers.get(b"origin")
        if origin is not None and origin.decode("latin-1") not in self.rules.origins:
            raise Refused(403, "E-REFUSED", "pages of this origin may not ask; Obsidian may")
        reply.origin = origin
        if origin is not None and scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            await reply.preflight(headers)
            return
        scope = self.let_in(scope, headers)
        if self.inside > MOST_AT_ONCE:
            raise Refused(429, "E-BUSY", "too many requests at once; try again soon", wait=1)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or len(length) > 18 or int(length) > MOST_BYTES:
            raise Refused(413, "E-REQUEST", f"the body is larger than {MOST_BYTES} bytes")
        body = await _body(receive)
        reply.heard = True
        if body.strip():
            _check_kind(headers, scope["path"])
            body = checked(body)
        elif scope["method"] == "POST":
            body = b"{}"
        given = [(name, value) for name, value in scope["headers"] if name not in _OF_BODY]
        given += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        told = False

        async def again() -> Message:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app({**scope, "headers": given}, again, reply.send)

    def check_host(self, host: bytes | None) -> None:
        """Raises Refused unless the name is of this computer: a page whose name was bound to 127.0.0.1 says its own."""
        if host is None:
            raise Refused(400, "E-REFUSED", "no Host header")
        name = host.decode("latin-1").strip().lower()
        name = name[1 : name.find("]")] if name.startswith("[") else name.partition(":")[0]
        ours = self.rules.host.lower()
        if name in _LOOPBACK or name == ours or (ours in ("0.0.0.0", "::") and _is_address(name)):
            return
        raise Refused(403, "E-REFUSED", "this Host is not ours; ask 127.0.0.1 or localhost")

    def let_in(self, scope: Scope, headers: dict[bytes, bytes]) -> Scope:
        """The scope, without a key in its path. Raises Refused when no key of ours is in it."""
        path, raw = scope["path"], scope.get("raw_path") or scope["path"].encode()
        shown = [b""]
        scheme, _, value = headers.get(b"authorization", b"").partition(b" ")
        if scheme.lower() == b"bearer":
            shown.append(value.strip())
        if path.startswith(PREFIX):
            key, slash, rest = path[len(PREFIX) :].partition("/")
            shown.append(key.encode("utf-8", "replace"))
            path, raw = slash + rest, b"/" + raw[len(PREFIX) :].partition(b"/")[2]
        ok = False
        for one in shown:
            digest = hashlib.sha256(one).digest()
            for key_ in self.rules.keys:
                ok = hmac.compare_digest(digest, key_) or ok  # every pair, however soon one fits
        if not ok:
            raise Refused(
                401, "E-REFUSED", "no token of ours; it stands in the file `token` of the state folder (vaultllm status names it)"
            )
        return {**scope, "path": path or "/", "raw_path": raw}


class _Reply:
    """The way out: headers for every response, and no longer patience than a client deserves."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.origin: bytes | None = None
        self.begun = self.heard = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.begun = True
            message = {**message, "headers": [*message.get("headers", []), *self.headers()]}
        async with asyncio.timeout(SEND_SECONDS):
            await self._send(message)

    def headers(self) -> list[tuple[bytes, bytes]]:
        found = [(b"cache-control", b"no-store"), (b"x-content-type-options", b"nosniff"), (b"vary", b"origin")]
        if self.origin is not None:
            found += [(b"access-control-allow-origin", self.origin), (b"access-control-expose-headers", b"retry-after, mcp-session-id")]
        return found

    async def refuse(self, refused: Refused) -> None:
        if self.begun:
            return
        body = refused.body()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if not self.heard:  # what is still to come of its body is not waited for
            headers.append((b"connection", b"close"))
        if refused.wait:
            headers.append((b"retry-after", str(refused.wait).encode()))
        if refused.status == 401:
            headers.append((b"www-authenticate", b"Bearer"))
        await self.send({"type": "http.response.start", "status": refused.status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})

    async def preflight(self, asked: dict[bytes, bytes]) -> None:
        """A browser asks before it asks; nothing of the vault is told."""
        names = asked.get(b"access-control-request-headers", b"").strip()
        headers = [(b"access-control-allow-methods", b"GET, POST, DELETE, OPTIONS"), (b"access-control-max-age", b"600")]
        if _HEADERS.fullmatch(names):
            headers.append((b"access-control-allow-headers", names))
        if asked.get(b"access-control-request-private-network") == b"true":
            headers.append((b"access-control-allow-private-network", b"true"))
        await self.send({"type": "http.response.start", "status": 204, "headers": headers})
        await self.send({"type": "http.response.body", "body": b"", "more_body": False})


def _one_each(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """The headers by name. Raises Refused when one that decides stands there twice: two readers could take two."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        if name in found and name in (b"host", b"origin", b"authorization", b"content-length", b"content-type"):
            raise Refused(400, "E-REQUEST", f"the header {name.decode('latin-1')} stands there twice")
        found[name] = value
    return found


def _is_address(name: str) -> bool:
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


async def _body(receive: Receive) -> bytes:
    """All of it. Raises Refused when it is too large or too slow; ConnectionError when the client went away."""
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            while True:
                message = await receive()
                if message["type"] != "http.request":
                    raise ConnectionResetError
                parts.append(message.get("body", b""))
                size += len(parts[-1])
                if size > MOST_BYTES:
                    raise Refused(413, "E-REQUEST", f"the body is larger than {MOST_BYTES} bytes")
                if not message.get("more_body"):
                    return b"".join(parts)
    except TimeoutError:
        raise Refused(408, "E-REQUEST", f"the body did not come within {BODY_SECONDS:g} seconds") from None


def _check_kind(headers: dict[bytes, bytes], path: str) -> None:
    """Raises Refused unless the body says that it is JSON: a page can send other kinds without asking first."""
    kind, _, rest = headers.get(b"content-type", b"").decode("latin-1").lower().partition(";")
    if kind.strip() != "application/json" and path not in _LOOSE:
        raise Refused(415, "E-REQUEST", "the body must be application/json")
    charset = re.search(r"charset=\"?([\w-]+)", rest)
    if charset and charset[1] not in ("utf-8", "utf8"):
        raise Refused(415, "E-REQUEST", "the body must be UTF-8")


def checked(body: bytes) -> bytes:
    """The JSON once more, as everybody reads it. Raises Refused: not UTF-8, not JSON, too deep, NaN or infinite, half a character."""
    if depth(body) > MOST_DEPTH:
        raise Refused(400, "E-REQUEST", f"the JSON is nested deeper than {MOST_DEPTH}")
    try:
        value = json.loads(body.decode("utf-8-sig"), parse_constant=_no_number, parse_float=_finite)
        return json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeError:  # of the bytes, or half a surrogate pair
        raise Refused(400, "E-REQUEST", "the body is not UTF-8") from None
    except (ValueError, RecursionError) as error:
        where = f" (line {error.lineno}, column {error.colno})" if isinstance(error, json.JSONDecodeError) else ""
        raise Refused(400, "E-REQUEST", f"the body is not JSON, or holds a number that is none{where}") from None


def depth(body: bytes) -> int:
    """How deep JSON is nested, without reading it; strings are passed over. Linear."""
    if body.count(b"[") + body.count(b"{") <= MOST_DEPTH:
        return 0
    now = most = skip = 0
    inside = False
    for found in _TOKENS.finditer(body):
        char, at = found[0], found.start()
        if at < skip:
            continue
        if char == b"\\":
            skip = at + 2
        elif char == b'"':
            inside = not inside
        elif not inside:
            now += 1 if char in b"[{" else -1
            most = max(most, now)
    return most


def _no_number(name: str) -> float:
    raise ValueError(name)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("infinite")
    return value
