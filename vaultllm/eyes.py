"""What the file system tells of the vault: events, the paths that they name until these are settled, and whether events still come.

All of it is a hint only: events get lost (a full queue of the kernel, a network drive, a folder that was deleted and made again).
Knows nothing about notes, nor what is done with a path (`watch.py`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from watchdog import events
from watchdog.observers import Observer

from vaultllm import vault as vaults
from vaultllm.text import nfc

Seen = tuple[int, int, int] | None  # size, mtime_ns, inode; None: there is no such file

# `opened` and `closed_no_write` are left out: our own reading makes them, and we would answer ourselves for ever.
HINTS = [
    events.FileClosedEvent,
    events.FileCreatedEvent,
    events.FileDeletedEvent,
    events.FileModifiedEvent,
    events.FileMovedEvent,
    events.DirCreatedEvent,
    events.DirDeletedEvent,
    events.DirMovedEvent,
]
TICK = 0.1  # seconds: the shortest sleep while something is about to settle
CROWD = 1_000  # paths at once, from which on they are not told apart: all is scanned when they rest
RESTLESS = 10.0  # times `settle` after which a crowd that never rests is looked at nevertheless


def _seen(path: str) -> Seen:
    try:
        found = os.stat(path, follow_symlinks=False)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


@dataclass(eq=False)  # watchdog keeps its handlers in a set
class Dirty:
    """Paths that events spoke of, until they are settled. Filled by the observer's thread, emptied by the daemon's."""

    vault: str
    """The vault's folder, absolute."""
    own: tuple[str, ...]
    """The folders of our notes, vault-relative, NFC, without a final slash; an empty one stands for none."""
    settle: float
    """Seconds without an event, and with the same size and time, after which a path is taken as written."""
    hint: threading.Event = field(default_factory=threading.Event)
    """Set when there is something new to look at."""
    lost: bool = False
    """Events were lost; only a full scan can tell what changed."""
    heard: bool = False
    """Whether there was an event since somebody took this back."""
    _paths: dict[str, tuple[float, Seen]] = field(default_factory=dict)
    _ready: float | None = None
    _crowd: tuple[float, float] | None = None  # too many to tell apart: when the first came, and when the last
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        self._start = nfc(self.vault) + os.sep
        self._own = tuple(f"{own}/" for own in self.own if own)

    def dispatch(self, event: Any) -> None:
        """Take an event of watchdog (this is the whole of its handler protocol)."""
        if type(event) not in HINTS:
            return
        for path in (event.src_path, event.dest_path):
            if path and self.concerns(os.fsdecode(path), event.is_directory):
                self.touch(os.path.join(os.fsdecode(path), "") if event.is_directory else os.fsdecode(path))

    def concerns(self, path: str, folder: bool) -> bool:
        """Whether a path may be a note, or a folder of notes, that is not ours."""
        path = nfc(path)  # macOS may name the vault's folder in another form of Unicode than we do
        if path == self._start[:-1]:
            return True
        if not path.startswith(self._start):
            return False
        inside = path[len(self._start) :].replace(os.sep, "/")
        if inside.startswith(".") or "/." in inside or f"{inside}/".startswith(self._own):
            return False
        return folder or vaults.is_note(inside.rpartition("/")[2])

    def touch(self, path: str) -> None:
        """Something happened to a path; a folder's ends with a slash."""
        seen = _seen(path) if self._crowd is None else None
        now = time.monotonic()
        with self._lock:
            self.heard = True
            if not self._paths and self._crowd is None:  # one wake-up for a burst: how long to sleep then follows from the clock
                self.hint.set()
            if self._crowd is not None:
                self._crowd = (self._crowd[0], now)
                return
            self._paths[path] = (now, seen)
            if len(self._paths) > CROWD:
                self._crowd = (now, now)
                self._paths.clear()

    def unsettled(self) -> tuple[str, ...]:
        """The files that may still be written to, as `inside` names them; none when only a scan can tell."""
        with self._lock:
            paths = tuple(self._paths)
        return self.inside(paths) or ()

    def lose(self) -> None:
        """Events were lost."""
        self.lost = True
        self.hint.set()

    def wait(self, now: float) -> float | None:
        """Seconds until something can have settled; None when nothing is dirty."""
        with self._lock:
            if self._crowd is not None:
                return max(TICK, self._rested() - now)
            if not self._paths:
                return None
            return max(TICK, min(last for last, _ in self._paths.values()) + self.settle - now)

    def _rested(self) -> float:
        first, last = self._crowd or (0.0, 0.0)
        return min(last, first + (RESTLESS - 1) * self.settle) + self.settle

    def due(self, now: float) -> tuple[str, ...]:
        """The paths to read now: all is settled, or something is and has waited long enough for the rest. Forgets what is settled.

        Of a crowd it names the vault's folder alone.
        """
        with self._lock:
            if self._crowd is not None:
                if now < self._rested():
                    return ()
                self._crowd = self._ready = None
                return (os.path.join(self.vault, ""),)
            settled = []
            for path, (last, before) in self._paths.items():
                if now - last < self.settle:
                    continue
                seen = _seen(path)
                if seen == before:
                    settled.append(path)
                else:  # it changed without an event: somebody still writes
                    self._paths[path] = (now, seen)
            if not settled:
                return ()
            self._ready = now if self._ready is None else self._ready
            if len(settled) < len(self._paths) and now - self._ready < self.settle:
                return ()
            self._ready = None
            for path in settled:  # before the ingest, so that an event during it counts again
                del self._paths[path]
            return tuple(settled)

    def inside(self, paths: Collection[str]) -> tuple[str, ...] | None:
        """Vault-relative names of files, as they stand on disk; None when only a scan of the whole vault can tell: a folder is among them.

        Also for a path that does not begin as we write the vault's (macOS may name it in another form of Unicode).
        """
        start = os.path.join(self.vault, "")
        names = [path[len(start) :].replace(os.sep, "/") for path in paths if path.startswith(start) and not path.endswith(os.sep)]
        return tuple(names) if len(names) == len(paths) else None


class Overflow(logging.Handler):
    """watchdog tells of a full kernel queue in its log only."""

    def __init__(self, dirty: Dirty) -> None:
        super().__init__(logging.WARNING)
        self.dirty = dirty

    def emit(self, record: logging.LogRecord) -> None:
        """Any warning of the observer may mean lost events."""
        self.dirty.lose()


@dataclass
class Eyes:
    """The observer of the vault's folder; opened again when it has gone blind."""

    vault: str
    dirty: Dirty
    observer: Any = None
    root: tuple[int, int] | None = None
    error: str = ""
    """Why it could not be opened; empty when it could, or when there is no folder to look at."""

    def here(self) -> tuple[int, int] | None:
        """Which folder stands at the vault's path now."""
        try:
            found = os.stat(self.vault)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def see(self) -> bool:
        """Whether events still come: threads alive, and the folder they watch is the one at the vault's path.

        A deleted folder ends the emitter and leaves the observer alive; a renamed one is followed to its new name.
        """
        reader = getattr(self.observer, "_inotify_fd", None)  # Linux: without it the others live on and hear nothing
        return (
            self.observer is not None
            and self.observer.is_alive()
            and (reader is None or reader.is_alive())
            and bool(self.observer.emitters)
            and all(emitter.is_alive() for emitter in self.observer.emitters)
            and self.root == self.here()
        )

    def open(self) -> bool:
        """Look at the folder that is there now. False, with the reason in `error`, when that fails."""
        self.close()
        self.error, self.root = "", self.here()
        if self.root is None:
            return False
        try:
            self.observer = Observer()
            self.observer.schedule(self.dirty, self.vault, recursive=True, event_filter=HINTS)
            self.observer.start()
        except (OSError, RuntimeError) as error:  # inotify's limits; no threads left
            self.error = getattr(error, "strerror", None) or str(error) or type(error).__name__
            self.close()
        return self.observer is not None

    def close(self) -> None:
        """Stop looking."""
        observer, self.observer = self.observer, None
        if observer is not None:
            with contextlib.suppress(OSError, RuntimeError):
                observer.stop()
            if observer.is_alive():
                observer.join(timeout=1.0)
