"""The daemon's second thread: what takes the memory long is done beside the ingests, and answers when it is done.

Knows nothing about events or notes, and logs no text of them.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
import time
from collections.abc import Callable

from vaultllm import remember, steps
from vaultllm.errors import VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.schema import Progress


class _Stopped(Exception):  # noqa: N818 - no error: the daemon ends
    """Out of long work."""


def give_back() -> None:
    """Give memory that was freed back to the system: glibc keeps it, and a daemon that read a whole vault once stays as large for ever."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


class Follower:
    """What takes the memory long (another embedder, learning from a large vault), in a thread with a ledger of its own."""

    def __init__(self, job: steps.Job, say: Callable[..., None]) -> None:
        self.job, self.say = job, say
        self.stopped = threading.Event()
        self.thread: threading.Thread | None = None
        self.not_before = 0.0  # of the monotonic clock: what failed is not tried again at every saved note
        self.trouble = ""

    def begin(self) -> None:
        """Start, if something is owed and nothing is under way."""
        if (self.thread is not None and self.thread.is_alive()) or time.monotonic() < self.not_before:
            return
        base = steps.answering_base(self.job)
        if remember.owed(self.job.ledger, self.job.workspace.settings.memory, base=base, learn=True):
            self.thread = threading.Thread(target=self.run, args=(base,), daemon=True, name="follower")
            self.thread.start()

    def run(self, base: str) -> None:
        """In the thread."""
        workspace = self.job.workspace
        try:
            with Ledger(workspace.ledger) as ledger:
                done = remember.follow(ledger, workspace.memory, workspace.settings.memory, self.progress, base=base)
                about = remember.described(ledger, workspace.settings.memory) or {}
            if done.get("refitted"):
                self.trouble = ""
                self.say("embedder", name=about.get("name"), embedded=done.get("embedded", 0), reason=about.get("reason"))
            self.failed("E-EMBED", done.get("away", ""))
        except _Stopped:
            pass
        except VaultllmError as error:
            self.failed(error.code, error.message)
        except Exception as error:  # as in _Daemon.ingest
            self.failed("E-INTERNAL", type(error).__name__)
        finally:
            give_back()
            self.not_before = time.monotonic() + self.job.workspace.settings.watch.reconcile

    def failed(self, code: str, message: str) -> None:
        """Log why, once."""
        if message and message != self.trouble:
            self.trouble = message
            self.say("problem", code=code, message=message)

    def progress(self, _: Progress) -> None:
        """The places at which it may be stopped."""
        if self.stopped.is_set():
            raise _Stopped

    def end(self) -> None:
        """Stop it; what it has done so far is kept. After a while it is left to itself: a kill loses no more."""
        self.stopped.set()
        if self.thread is not None:
            self.thread.join(timeout=3.0)
