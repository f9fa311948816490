"""Listening: one socket on loopback, unless the user names another address. For `serve`, and for a thread of the daemon.

Knows nothing about what is asked.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vaultllm import signals
from vaultllm.api import keys
from vaultllm.api.app import application
from vaultllm.api.engine import Engine
from vaultllm.api.guard import MOST_HEADER, Rules
from vaultllm.config import Workspace
from vaultllm.errors import UsageError

HOST, PORT = "127.0.0.1", 8471
HEADER_SECONDS = 10.0  # until a request's headers are there
_MOST_CONNECTIONS = 512
_GRACE = 5  # seconds for what is being answered, when we end


class Protocol(H11Protocol):
    """uvicorn's, without endless patience: headers that trickle in, and connections beyond all need, are cut."""

    _late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """asyncio."""
        super().connection_made(transport)
        if len(self.connections) > _MOST_CONNECTIONS:
            transport.abort()
        self._watch()

    def data_received(self, data: bytes) -> None:
        """asyncio."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """uvicorn."""
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """asyncio."""
        self._rest()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The clock runs from the first byte of a request until its headers are whole, however often more of them comes."""
        waits = self.conn.their_state is h11.IDLE
        if not waits or (self.timeout_keep_alive_task is not None and not self.conn.trailing_data[0]):
            self._rest()
        elif self._late is None:
            self._late = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

    def _rest(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def serve(
    workspace: Workspace,
    host: str = HOST,
    port: int = PORT,
    *,
    max_queue: int = 8,
    idle_minutes: float = 10.0,
    told: Callable[[str, int], None] | None = None,
) -> None:
    """Listen until Ctrl-C or SIGTERM; `told` is called with address and port once we do. Port 0: any that is free.

    Raises UsageError when the port is taken or the address is not ours, ConfigError when the token is not safe.
    """
    with _listening(workspace, host, port, max_queue, idle_minutes) as (server, taken):
        if told is not None:
            told(host, taken.getsockname()[1])
        with contextlib.suppress(KeyboardInterrupt), signals.taken(_interrupt):  # uvicorn raises a signal again once all is closed
            server.run([taken])


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


@contextlib.contextmanager
def serving(
    workspace: Workspace, host: str = HOST, port: int = PORT, *, max_queue: int = 8, idle_minutes: float = 10.0
) -> Iterator[tuple[str, int]]:
    """The same in a thread, for as long as the block lasts: the daemon's form. Gives address and port. Raises as `serve`."""
    with _listening(workspace, host, port, max_queue, idle_minutes) as (server, taken):
        thread = threading.Thread(target=server.run, args=([taken],), name="vaultllm-api", daemon=True)
        thread.start()
        try:
            yield host, taken.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(2 * _GRACE)


@contextlib.contextmanager
def _listening(
    workspace: Workspace, host: str, port: int, max_queue: int, idle_minutes: float
) -> Iterator[tuple[uvicorn.Server, socket.socket]]:
    """A server and its socket; other programs are told where we are, and when we are no more."""
    rules = Rules(keys.digests(workspace.state), host)
    taken = _bound(host, port)
    try:
        engine = Engine(workspace, max_queue=max_queue, idle_minutes=idle_minutes)
        quiet: dict[str, Any] = {"log_config": None, "access_log": False, "server_header": False, "proxy_headers": False}
        limits: dict[str, Any] = {
            "timeout_keep_alive": 5,
            "timeout_graceful_shutdown": _GRACE,
            "h11_max_incomplete_event_size": 2 * MOST_HEADER,
        }
        settings = uvicorn.Config(application(engine, rules), http=Protocol, ws="none", loop="asyncio", **quiet, **limits)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # a traceback could hold a note's words; the guard tells what it may
        keys.announce(workspace.state, host, taken.getsockname()[1])
        yield uvicorn.Server(settings), taken
    finally:
        taken.close()
        keys.withdraw(workspace.state)


def _bound(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError."""
    taken = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind((host, port))
    except (OSError, OverflowError) as error:
        taken.close()
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"cannot listen on {host}, port {port} ({why}); another program may be there: choose another with --port", code="E-PORT"
        ) from error
    taken.set_inheritable(False)
    return taken
