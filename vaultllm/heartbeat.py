"""The daemon's signs of life: a file that `status` reads, and what systemd wants to hear of a service (sd_notify(3)).

The file's time is that of the last beat; in it stands what the daemon does and what it did last, in ids and counts. Knows
nothing about notes and nothing about what the work is.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from vaultllm import locks
from vaultllm.files import write_whole

FILE = "daemon.json"
BEAT = 20.0  # seconds: the daemon is never silent for longer while it waits
_OFTEN = 1.0  # seconds: nor does it write more often while it works
_HEARD = 0.2  # seconds in which a message to systemd must find room
LATE = 180.0  # seconds of silence after which it may hang: one step of a long work may take a minute or two


class Heart:
    """Beats while a daemon lives; one per process."""

    def __init__(self, state: Path, vault: Path) -> None:
        """Tell that the daemon is there. Raises OSError."""
        self._path = state / FILE
        self._facts: dict[str, Any] = {"pid": os.getpid(), "started": _now(), "vault": str(vault), "doing": "starting", "last": None}
        self._written: dict[str, Any] = {}
        self._last = 0.0  # of the monotonic clock
        self.beat()
        tell("READY=1", f"STATUS=watching {vault}")

    def beat(self, doing: str = "", last: Mapping[str, Any] | None = None) -> None:
        """A sign of life; `doing` what it does now, `last` what it did last, if that is another thing than before."""
        self._facts |= ({"doing": doing} if doing else {}) | ({"last": {"at": _now(), **last}} if last is not None else {})
        is_news = self._facts != self._written
        if not is_news and time.monotonic() - self._last < _OFTEN:
            return
        self._last = time.monotonic()
        with contextlib.suppress(OSError):  # on a full disk it lives on, and says so elsewhere
            if is_news or not self._path.exists():
                write_whole(self._path, json.dumps(self._facts, ensure_ascii=False))
                self._written = dict(self._facts)
            else:
                os.utime(self._path)
        tell("WATCHDOG=1", *([f"STATUS={self._facts['doing']}"] if is_news else []))

    def stop(self) -> None:
        """The daemon ends."""
        tell("STOPPING=1")
        self._path.unlink(missing_ok=True)


@contextlib.contextmanager
def beating(state: Path, vault: Path) -> Iterator[Heart]:
    """A heart, until the daemon ends."""
    heart = Heart(state, vault)
    try:
        yield heart
    finally:
        heart.stop()


def look(state: Path) -> dict[str, Any] | None:
    """What the daemon of this state said last, with `silent` (seconds since) and `alive`; None when there is none.

    `alive`: its process is there and was not silent for too long. The process of another user, or that of another container, is
    judged by its silence alone.
    """
    path = state / FILE
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        silent = max(0.0, time.time() - path.stat().st_mtime)
        pid = int(found["pid"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {**found, "silent": round(silent, 1), "alive": locks.is_there(pid) and silent < LATE}


def tell(*lines: str) -> bool:
    """Say something to systemd (`READY=1`, …); False where nobody listens, or does not read, which is no error."""
    where = os.environ.get("NOTIFY_SOCKET", "")
    if not where or not hasattr(socket, "AF_UNIX"):
        return False
    address = "\0" + where[1:] if where.startswith("@") else where
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
            to.settimeout(_HEARD)  # the kernel keeps ten such messages: one who does not read them must not stop us
            to.sendto("\n".join(line.replace("\n", " ") for line in lines).encode("utf-8", "replace"), address)
    except OSError:
        return False
    return True


def _now() -> str:
    return datetime.now().astimezone().isoformat(timespec="seconds")
