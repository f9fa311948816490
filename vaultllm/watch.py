"""The daemon behind `vaultllm watch`: a saved note is in the memory within seconds.

The file system's events are a hint only (`eyes.py`); a scan of the whole vault now and then is the truth (`reconcile.py`): every
`watch.reconcile` seconds, less often where it would cost more than a small share of a core and events can be trusted. Between two
scans only the files that events named are looked at: what a saved note costs does not grow with the vault. What is to be done is done
by a child (`hands.py`), what takes the memory long by another (`follower.py`), and what is asked in a note is answered by a third
(`voice.py`). Knows nothing about notes, scenes or how the memory works, and logs no text of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from vaultllm import signals, steps
from vaultllm.config import Workspace
from vaultllm.errors import LockedError, VaultllmError
from vaultllm.eyes import Dirty, Eyes, Overflow
from vaultllm.follower import Follower
from vaultllm.hands import Answer, Ended, Hands
from vaultllm.heartbeat import BEAT, Heart, beating
from vaultllm.reconcile import Mark, Truth
from vaultllm.text import nfc
from vaultllm.voice import Voice

Log = Callable[[dict[str, Any]], None]

ROOT_RETRY = 5.0  # seconds between looks at a vault folder that is gone (one stat each)
LIMITS = "on Linux a higher limit helps: sudo sysctl fs.inotify.max_user_watches=524288 fs.inotify.max_user_instances=1024"
MANY = 1_000  # files after which the memory that a scan took is given back
HEAVY = 100  # notes after which the child that read them goes at once
STOP_TICK = 0.5  # seconds: how often a `stop` that was handed in is looked at
SHARE = 0.003  # of a core, at most, for the scans of a vault whose events can be trusted
SELDOM = 10.0  # times `watch.reconcile`: however large the vault, scans are no further apart
DOUBTED = 10  # scans after one that found what no event spoke of, in which events are not trusted
ENTIRE = 3600.0  # seconds: so often an ingest compares the ledger itself, whatever the scans say
JUMP = 5.0  # seconds by which two clocks drift apart when the computer slept, or somebody set one


def give_back() -> None:
    """Give memory that was freed back to the system: glibc keeps it, and a daemon that looked at 100,000 notes stays as large for ever."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


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

    `log` gets dicts: `at` (ISO 8601), `event` (started, ingested, embedder, answered, answer_stopped, interrupted, waiting, problem,
    stopped), ids and counts, no text of notes.
    Raises LockedError when a daemon watches this vault already; everything later is logged, and the watching goes on.
    """

    def say(event: str, **facts: Any) -> None:
        log({"at": datetime.now().astimezone().isoformat(timespec="seconds"), "event": event, **facts})

    # watchdog warns, a kilobyte each time, when it meets a folder twice that was just made; it is harmless.
    warnings.filterwarnings("ignore", "Callback with id", RuntimeWarning)
    try:
        tick, stop = (BEAT, threading.Event()) if stop is None else (STOP_TICK, stop)
        with job.lock("watch.lock", wait=0.0), beating(job.workspace.state, job.workspace.vault) as heart, _heard(stop):
            job.close()  # what is done to the ledger is done by our children
            say("started", pid=os.getpid(), vault=str(job.workspace.vault))
            _Daemon(job.workspace, say, stop, heart, tick).watch()
    except KeyboardInterrupt:
        pass
    say("stopped", pid=os.getpid())


class _Daemon:
    """The loop, and what it must remember between two turns."""

    def __init__(self, workspace: Workspace, say: Callable[..., None], stop: threading.Event, heart: Heart, tick: float) -> None:
        self.workspace, self.say, self.stop, self.heart = workspace, say, stop, heart
        self.tick = tick  # seconds: how often `stop` is looked at; a signal needs none of it
        self.settings = workspace.settings.watch
        own = tuple(nfc(folder).strip().removeprefix("./").strip("/") for folder in workspace.settings.own_folders)
        self.dirty = Dirty(str(workspace.vault), own, self.settings.settle)
        self.eyes = Eyes(str(workspace.vault), self.dirty)
        self.truth = Truth(workspace)
        self.known: Mark | None = None  # how all looked before the last ingest of all, which went well
        self.entire = 0.0  # of the monotonic clock: when that was
        self.next_scan = 0.0  # of the monotonic clock; at once
        self.doubt = 0  # scans to come in which events are not trusted
        self.skew = time.time() - time.monotonic()
        self.trouble: tuple[str, str] | None = None
        self.away = False  # an embedder or a server could not be asked: to be tried again
        self.failed = 0
        self.blind = ""
        self.first = True
        self.hands = Hands(workspace)
        self.follower = Follower(workspace, say, self.dirty.hint.set)
        self.voice = Voice(workspace, say, heart, self.dirty.hint.set)
        self.unread: tuple[str, ...] = ()  # notes that were saved, and could not be read when they had settled

    def watch(self) -> None:
        """Until told to stop."""
        logger, overflow = logging.getLogger("watchdog"), Overflow(self.dirty)
        logger.addHandler(overflow)
        try:
            while not self.stop.is_set():
                self.turn(time.monotonic())
                self.heart.beat("answering" if self.voice.path else "watching")
                self.dirty.hint.wait(self.sleep(time.monotonic()))
                self.dirty.hint.clear()
        finally:
            logger.removeHandler(overflow)
            self.eyes.close()
            self.hands.end()
            self.follower.end()
            self.voice.end()
            self.truth.close()

    def sleep(self, now: float) -> float:
        """Seconds until there is something to do, if no event comes."""
        waits = [self.next_scan - now, BEAT, self.tick]
        waits += [one for one in (self.dirty.wait(now), self.voice.wait(now)) if one is not None]
        if self.eyes.root is None:
            waits.append(ROOT_RETRY)
        return max(0.0, min(waits))

    def turn(self, now: float) -> None:
        """Look whether we still see, and whether there is something to read."""
        self.follower.look()
        self.hands.rest()
        skew = time.time() - time.monotonic()
        if abs(skew - self.skew) > JUMP:  # awake again: a network drive changed meanwhile, and nobody told us
            self.soon()
        self.skew = skew
        scan_now = now >= self.next_scan
        if not self.eyes.see() and (scan_now or self.eyes.observer is not None or self.eyes.here() != self.eyes.root):
            self.open()
            scan_now = True  # what happened while we were blind; without a folder, it says so
        if self.dirty.lost:
            self.dirty.lost = False
            self.say("problem", code="W-WATCH", message="events of the file system were lost (its queue was full); all notes are looked at")
            self.soon()
        if not scan_now and self.dirty.wait(now) is not None:
            self.hands.stand_by()  # it starts while what was saved settles
        due = () if scan_now else self.dirty.due(now)
        only = self.dirty.inside(due) if due else None
        if only is not None:
            if not self.ingest(only):  # the next scan finds what these events named
                self.soon()
        elif scan_now or due:
            self.reconcile()
        if self.follower.owed:
            self.follower.begin()
        self.voice.turn(time.monotonic(), self.dirty.unsettled)

    def soon(self) -> None:
        """A scan, as soon as what happens now can have settled."""
        self.next_scan = min(self.next_scan, time.monotonic() + self.settings.settle)

    def open(self) -> None:
        """Look at the folder that is there now; where there are no events, say so once."""
        self.eyes.open()
        if self.eyes.error not in ("", self.blind):
            every = f"{self.settings.reconcile:g} s"
            why = f"the file system gives no events ({self.eyes.error}): the vault is scanned every {every} instead; "
            self.say("problem", code="W-WATCH", message=why + LIMITS)
        self.blind = self.eyes.error

    def reconcile(self) -> None:
        """Look at every note; ingest if anything is not as it was, or if the last ingest left something to do."""
        heard, self.dirty.heard = self.dirty.heard, False
        mark = self.truth.look()
        if self.truth.notes > MANY:
            give_back()
        settled = True
        self.doubt = max(0, self.doubt - 1)
        if mark is None or mark.ledger is None or mark != self.known or self.away or time.monotonic() - self.entire > ENTIRE:
            unheard = not heard and not self.eyes.error and self.known is not None and mark is not None and mark.files != self.known.files
            self.known = None
            settled = self.ingest(None)
            if settled and self.trouble is None and mark is not None and not mark.is_fresh:
                self.known, self.entire = mark._replace(ledger=self.truth.written()), time.monotonic()
            if unheard and settled:
                self.missed()
                return
        self.next_scan = time.monotonic() + (self.pause() if settled else self.settings.settle)

    def missed(self) -> None:
        """A scan found what no event spoke of: we may be deaf. Look anew, and trust no event for a while."""
        if not self.doubt:
            self.say("problem", code="W-WATCH", message="notes changed without an event of the file system; the scans found them")
        self.doubt = DOUBTED
        self.open()
        self.next_scan = time.monotonic() + self.settings.settle

    def pause(self) -> float:
        """Seconds until the next scan."""
        least = self.settings.reconcile
        if self.trouble or self.away or self.eyes.error or self.doubt:
            return least
        return min(max(least, self.truth.seconds / SHARE), SELDOM * least)

    def beat(self, doing: str) -> None:
        """While our hands are at work: we live, whatever becomes of them."""
        if self.stop.is_set():
            raise KeyboardInterrupt
        self.heart.beat(doing)

    def ingest(self, only: tuple[str, ...] | None) -> bool:
        """One ingest for all that happened: of these files, or of all. False when somebody else was writing: to be tried again soon."""
        self.heart.beat("ingesting")
        # A scan may come before what was saved has settled, and read it: then it is now that what is asked there is new.
        named = only if only is not None else self.dirty.unsettled()
        saved = () if self.first else tuple(path for path in {*named, *self.unread} if path != self.voice.path)
        self.unread = saved
        try:
            result = self.hands.do("ingest", self.beat, only=only, check=self.first, saved=saved)
        except LockedError as error:
            self.say("waiting", code=error.code, message=error.message)
            return False
        except VaultllmError as error:
            self.problem(error.code, error.message)
        except Ended as error:  # a bug, a full disk, a crash: it must not end the watching
            self.problem("E-INTERNAL", str(error))
        else:
            for answer in result["interrupted"]:
                self.say("interrupted", answer=answer)
            self.ingested(result)
            self.voice.saved(saved, result["asked"])
            self.unread = ()
            self.away, self.follower.owed = bool(result["away"]), result["owed"]
            if result["notes"]["parsed"] > HEAVY:
                self.hands.end()  # what it needed for so many it would keep; the next one is small
        return True

    def ingested(self, result: Answer) -> None:
        """Log what changed; a scan that found nothing new is not worth a line."""
        notes, scenes = result["notes"], result["scenes"]
        failed = len(notes["failed"])
        if result["mended"]:
            self.say("problem", code="W-MEMORY", message=f"{result['mended']}; it was built anew from the ledger")
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
        """Log a problem once, not at every scan; what it kept from being read is tried again by the next one."""
        self.known = None
        self.next_scan = min(self.next_scan, time.monotonic() + self.settings.reconcile)
        if self.trouble != (code, message):
            self.trouble = (code, message)
            self.say("problem", code=code, message=message)
            self.heart.beat(last={"event": "problem", "code": code, "message": message})
