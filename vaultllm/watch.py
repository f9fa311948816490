"""The daemon behind `vaultllm watch`: a saved note is in the memory within seconds.

The file system's events are a hint only: they get lost (a full kernel queue, a network drive, a folder that was deleted
and made again), so a full scan every `watch.reconcile` seconds is the truth. Between two scans only the files that events
named are looked at: what a saved note costs does not grow with the vault. What changed is decided by `steps.ingest`, in
this thread alone; what takes the memory long has one of its own (`follower.py`). Knows nothing about notes, scenes or how
the memory works, and logs no text of them.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from watchdog import events
from watchdog.observers import Observer

from vaultllm import remember, signals, steps, workers
from vaultllm import vault as vaults
from vaultllm.errors import LockedError, VaultllmError
from vaultllm.follower import Follower, give_back
from vaultllm.heartbeat import BEAT, Heart, beating
from vaultllm.memory import chroma, server
from vaultllm.text import nfc

Log = Callable[[dict[str, Any]], None]
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
ROOT_RETRY = 5.0  # seconds between looks at a vault folder that is gone (one stat each)
TICK = 0.1  # seconds: the shortest sleep while something is about to settle
LIMITS = "on Linux a higher limit helps: sudo sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=1024"
MANY = 100  # notes after which the memory that reading took is given back
STOP_TICK = 0.5  # seconds: how often a `stop` that was handed in is looked at


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
    _paths: dict[str, tuple[float, Seen]] = field(default_factory=dict)
    _ready: float | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def dispatch(self, event: Any) -> None:
        """Take an event of watchdog (this is the whole of its handler protocol)."""
        if type(event) not in HINTS:
            return
        for path in (event.src_path, event.dest_path):
            if path and self.concerns(os.fsdecode(path), event.is_directory):
                self.touch(os.path.join(os.fsdecode(path), "") if event.is_directory else os.fsdecode(path))

    def concerns(self, path: str, folder: bool) -> bool:
        """Whether a path may be a note, or a folder of notes, that is not ours."""
        path, vault = nfc(path), nfc(self.vault)  # macOS may name the vault's folder in another form of Unicode than we do
        if path == vault:
            return True
        if not path.startswith(vault + os.sep):
            return False
        inside = path[len(vault) + 1 :].replace(os.sep, "/")
        if any(part.startswith(".") for part in inside.split("/")) or f"{inside}/".startswith(tuple(f"{own}/" for own in self.own if own)):
            return False
        name = inside.rpartition("/")[2].lower()
        return folder or vaults.is_note(name)

    def touch(self, path: str) -> None:
        """Something happened to a path; a folder's ends with a slash."""
        seen = _seen(path)
        with self._lock:
            if not self._paths:  # one wake-up for a burst: how long to sleep then follows from the clock
                self.hint.set()
            self._paths[path] = (time.monotonic(), seen)

    def lose(self) -> None:
        """Events were lost."""
        self.lost = True
        self.hint.set()

    def wait(self, now: float) -> float | None:
        """Seconds until something can have settled; None when nothing is dirty."""
        with self._lock:
            if not self._paths:
                return None
            return max(TICK, min(last for last, _ in self._paths.values()) + self.settle - now)

    def due(self, now: float) -> tuple[str, ...]:
        """The paths to read now: all is settled, or something is and has waited long enough for the rest. Forgets what is settled."""
        with self._lock:
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


class _Overflow(logging.Handler):
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


@contextlib.contextmanager
def _heard(stop: threading.Event) -> Iterator[None]:
    """Ctrl-C and SIGTERM set `stop` too: the exception alone may be raised, and lost, within a library's callback."""

    def told(*_: object) -> None:
        stop.set()
        raise KeyboardInterrupt

    with signals.taken(told):
        yield


def run(job: steps.Job, *, log: Log, stop: threading.Event | None = None) -> None:
    """Watch the vault until `stop` is set or a KeyboardInterrupt comes (Ctrl-C; SIGTERM in our own process), then return.

    `log` gets dicts: `at` (ISO 8601), `event` (started, ingested, waiting, problem, stopped), ids and counts, no text of notes.
    Raises LockedError when a daemon watches this vault already; everything later is logged, and the watching goes on.
    """

    def say(event: str, **facts: Any) -> None:
        log({"at": datetime.now().astimezone().isoformat(timespec="seconds"), "event": event, **facts})

    # watchdog warns, a kilobyte each time, when it meets a folder twice that was just made; it is harmless.
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
    try:
        stop = stop or threading.Event()
        with job.lock("watch.lock", wait=0.0), beating(job.workspace.state, job.workspace.vault) as heart, _heard(stop):
            say("started", pid=os.getpid(), vault=str(job.workspace.vault))
            _Daemon(job, say, stop, heart).watch()
    except KeyboardInterrupt:
        pass
    say("stopped", pid=os.getpid())


class _Daemon:
    """The loop, and what it must remember between two turns."""

    def __init__(self, job: steps.Job, say: Callable[..., None], stop: threading.Event | None, heart: Heart) -> None:
        workspace = job.workspace
        job.background, job.progress, self.heart = True, lambda at: heart.beat(at.phase), heart
        self.job, self.say, self.stop = job, say, stop
        self.settings = workspace.settings.watch
        own = tuple(nfc(folder).strip().removeprefix("./").strip("/") for folder in workspace.settings.own_folders)
        self.dirty = Dirty(str(workspace.vault), own, self.settings.settle)
        self.eyes = Eyes(str(workspace.vault), self.dirty)
        self.next_scan = 0.0  # of the monotonic clock; at once
        self.trouble: tuple[str, str] | None = None
        self.failed = 0
        self.blind = ""
        self.first = True
        self.follower = Follower(job, say)

    def watch(self) -> None:
        """Until told to stop."""
        logger, overflow = logging.getLogger("watchdog"), _Overflow(self.dirty)
        logger.addHandler(overflow)
        try:
            while not (self.stop is not None and self.stop.is_set()):
                self.turn(time.monotonic())
                self.heart.beat("watching")
                self.dirty.hint.wait(self.sleep(time.monotonic()))
                self.dirty.hint.clear()
        finally:
            logger.removeHandler(overflow)
            self.eyes.close()
            workers.stand_down()
            self.follower.end()
            chroma.let_go()
            server.let_go()

    def sleep(self, now: float) -> float:
        """Seconds until there is something to do, if no event comes."""
        waits = [self.next_scan - now, BEAT]
        settling = self.dirty.wait(now)
        if settling is not None:
            waits.append(settling)
        if self.eyes.root is None:
            waits.append(ROOT_RETRY)
        if self.stop is not None:
            waits.append(STOP_TICK)
        return max(0.0, min(waits))

    def turn(self, now: float) -> None:
        """Look whether we still see, and whether there is something to read."""
        scan_now = now >= self.next_scan
        if not self.eyes.see() and (scan_now or self.eyes.observer is not None or self.eyes.here() != self.eyes.root):
            self.eyes.open()
            scan_now = True  # what happened while we were blind; without a folder, it says so
            if self.eyes.error not in ("", self.blind):
                every = f"{self.settings.reconcile:g} s"
                why = f"the file system gives no events ({self.eyes.error}): the vault is scanned every {every} instead; "
                self.say("problem", code="W-WATCH", message=why + LIMITS)
            self.blind = self.eyes.error
        if self.dirty.lost:
            self.dirty.lost = False
            self.next_scan = min(self.next_scan, now + self.settings.settle)
        if not scan_now and self.dirty.wait(now) is not None:
            workers.stand_by()  # it starts while what was saved settles
        due = () if scan_now else self.dirty.due(now)
        if scan_now or due:
            only = self.dirty.inside(due) if due else None
            settled = self.ingest(only)
            workers.stand_down()
            if not settled:  # the next scan finds what these events named
                self.next_scan = time.monotonic() + self.settings.settle
            elif only is None:
                self.next_scan = time.monotonic() + self.settings.reconcile

    def ingest(self, only: tuple[str, ...] | None) -> bool:
        """One ingest for all that happened: of these files, or of all. False when somebody else was writing: to be tried again soon."""
        try:
            result = steps.ingest(self.job) if only is None else steps.ingest_named(self.job, only)
            if self.first and not result["memory"]["away"]:
                self.check()
        except LockedError as error:
            self.say("waiting", code=error.code, message=error.message)
            return False
        except VaultllmError as error:
            self.problem(error.code, error.message)
        except Exception as error:  # a bug or a full disk in one ingest must not end the watching; the text could hold a note's words
            self.job.close()
            self.problem("E-INTERNAL", type(error).__name__)
        else:
            self.ingested(result)
            if result["notes"]["parsed"] > MANY:
                give_back()
            self.follower.begin()
        return True

    def check(self) -> None:
        """Once, at the start: all that the memory holds is looked at; what is broken is built anew from the ledger."""
        workspace = self.job.workspace
        said = remember.check(self.job.ledger, workspace.memory, workspace.settings.memory)
        if said:
            self.say("problem", code="W-MEMORY", message=f"{said}; it is built anew from the ledger")
            with self.job.lock():
                remember.rebuild(self.job.ledger, workspace.memory, workspace.settings.memory, background=True)

    def ingested(self, result: dict[str, Any]) -> None:
        """Log what changed; a scan that found nothing new is not worth a line."""
        notes, scenes = result["notes"], result["scenes"]
        failed = len(notes["failed"])
        if self.first or self.trouble or notes["parsed"] or notes["removed"] or failed != self.failed:
            done = {
                "notes": notes["seen"],
                "read": notes["parsed"],
                "removed": notes["removed"],
                "failed": failed,
                "scenes": scenes["total"],
                "scenes_added": scenes["added"],
                "scenes_changed": scenes["changed"],
                "scenes_removed": scenes["removed"],
                "seconds": result["seconds"],
            }
            self.say("ingested", **done)
            self.heart.beat(last={"event": "ingested", **done})
        self.first, self.trouble, self.failed = False, None, failed

    def problem(self, code: str, message: str) -> None:
        """Log a problem once, not at every scan."""
        if self.trouble != (code, message):
            self.trouble = (code, message)
            self.say("problem", code=code, message=message)
            self.heart.beat(last={"event": "problem", "code": code, "message": message})
