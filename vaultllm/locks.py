"""One process at a time: a lock that the system frees when its holder dies, and a word on who holds it, for whoever waits.

The lock is the system's (flock, by filelock), so nothing is decided by a number that another program may have by now: `NAME.pid`
beside it says who holds it, for messages alone. Knows nothing about what is locked.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from vaultllm.errors import LockedError, VaultError
from vaultllm.files import write_whole
from vaultllm.schema import Progress, Report, silent

_POLL = 0.05  # seconds between two tries
_TOLD_AFTER = 1.0  # seconds of waiting that are worth a word
_NAMING = 0.2  # seconds that whoever has just taken a lock needs to say so, at most
_VALUED = ("--vault", "--state")  # options before a command that a value follows


@dataclass(frozen=True, slots=True)
class Lock:
    """A lock that is held."""

    path: Path
    """The file that is locked; it stays when the lock is let go of."""
    _lock: FileLock

    def release(self) -> None:
        """Let go of it. Never raises: at the end of the process it would be free too."""
        with suppress(OSError):
            _named(self.path).unlink(missing_ok=True)
        with suppress(OSError):
            self._lock.release()


@contextmanager
def held(path: Path, wait: float, work: str = "is at work on this state", waiting: Report = silent) -> Iterator[None]:
    """Hold a lock; the arguments and what it raises are those of `take`."""
    lock = take(path, wait, work, waiting)
    try:
        yield
    finally:
        lock.release()


def take(path: Path, wait: float, work: str = "is at work on this state", waiting: Report = silent, poll: float = _POLL) -> Lock:
    """Take a lock; whoever dies with it has let go of it. It counts between threads too, and for who holds it already.

    `wait`: seconds, 0 for none; after a moment `waiting` is told whom for. `work`: what the holder does, for the message. Raises
    LockedError naming the holder, and VaultError when the file is none that can be locked.
    """
    lock = FileLock(path, mode=0o600, thread_local=False)
    try:
        came = _came(lock, min(wait, _TOLD_AFTER), poll)
        if not came and wait > _TOLD_AFTER:
            waiting(Progress(f"waiting for {holder(path) or 'another vaultllm'}", 0.0))
            came = _came(lock, wait - _TOLD_AFTER, poll)
        whom = "" if came else holder(path)
        if whom or not (came or _came(lock, 0.0, poll)):  # who cannot be named has likely let go of it by now
            raise LockedError(f"{whom or 'another vaultllm'} {work}; try again when it is done", path=str(path))
    except OSError as error:
        raise VaultError(
            f"cannot be locked ({error.strerror or error}); make room on its disk, mend its rights, or remove it", path=str(path)
        ) from error
    with suppress(OSError):  # a full disk: what is to be done will say so, if it writes
        write_whole(_named(path), f"{os.getpid()} {command()}\n")
    return Lock(path, lock)


def _came(lock: FileLock, wait: float, poll: float) -> bool:
    try:
        lock.acquire(timeout=wait, poll_interval=poll)
    except Timeout:
        return False
    return True


def holder(path: Path) -> str:
    """Who holds a lock, as a person reads it: `vaultllm ingest (pid 4711)`; empty when it cannot be told."""
    until = time.monotonic() + _NAMING
    while not (name := _said(_named(path))) and time.monotonic() < until:
        time.sleep(0.01)
    return name


def at_work(folder: Path) -> str:
    """All who hold a lock of a state folder, as a person reads it; empty when nobody can be named."""
    files = sorted(path for depth in ("*.pid", "*/*.pid") for path in folder.glob(depth))
    return ", ".join(dict.fromkeys(name for path in files if (name := _said(path))))


def command() -> str:
    """What this process was started as, without what it was asked: `vaultllm search`; another program by its name."""
    program = Path(sys.argv[0] if sys.argv else "")
    if program.stem in ("__main__", "cli"):
        program = program.parent
    if program.stem != "vaultllm":
        return program.stem or "python"
    words = iter(sys.argv[1:])
    for word in words:
        if word in _VALUED:
            next(words, None)
        elif not word.startswith("-"):
            return f"vaultllm {word}"
    return "vaultllm"


def _said(path: Path) -> str:
    """Who named himself in this file; empty when he is dead: he was killed, and the lock is free, or another's who is about to say so."""
    try:
        pid, _, name = path.read_text(encoding="utf-8").strip().partition(" ")
        return f"{name or 'another vaultllm'} (pid {pid})" if is_there(int(pid)) else ""
    except (OSError, ValueError):
        return ""


def _named(path: Path) -> Path:
    """Where it stands who holds a lock: `lock.pid` beside `lock`, `train.pid` beside `train.lock`."""
    return path.with_suffix(".pid")


def is_there(pid: int) -> bool:
    """Whether there is a process of this number."""
    if pid <= 0:
        return False
    if os.name == "nt":  # there `os.kill` ends what it asks about
        import psutil

        return bool(psutil.pid_exists(pid))
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is somebody else's
        return True
    return True
