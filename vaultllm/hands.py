"""The daemon's hands: a child process that reads notes and brings the memory up to date, and goes when there is nothing left to do.

The daemon itself stays small for ever: what an ingest needs in memory (the words index, the embedder's matrices, Chroma) leaves with
the child, a crash of a library ends only the child, and so does a SIGTERM that comes in the middle of long work. Whatever it is killed
at, the next ingest converges: that is the ledger's promise, not ours. Knows nothing about events, nor when something is to be done.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import IO, Any, Literal

from vaultllm.config import Workspace
from vaultllm.errors import LockedError, VaultllmError

Verb = Literal["stand by", "ingest", "follow", "reply"]
Answer = dict[str, Any]

IDLE = 60.0  # seconds without work after which the child goes, and all of its memory with it
GRACE = 1.0  # seconds for a child that is told to stop: it closes Chroma; then it is killed
PATIENCE = 1800.0  # seconds of silence in the middle of work after which it is taken to hang
TICK = 0.5  # seconds: how often one who waits looks whether it is to stop
COMMAND: tuple[str, ...] = (sys.executable, "-c", "from vaultllm.hands import serve; serve()")


class Ended(Exception):  # noqa: N818 - told to the daemon, which says so and goes on
    """The child has died over its work, or was killed because it hung; says how."""


class Hands:
    """At most one child, started when it is needed. For one thread."""

    def __init__(self, workspace: Workspace, wake: Callable[[], object] = lambda: None, nice: int = 0, idle: float | None = None) -> None:
        """`wake` is called, in another thread, when there is an answer; `nice`: how far the child steps back (`power.step_back`).

        `idle`: seconds without work after which `rest` lets it go; None: IDLE.
        """
        self._workspace, self._wake, self._nice, self._idle = workspace, wake, nice, idle
        self._process: subprocess.Popen[bytes] | None = None
        self._answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        self._last = 0.0  # of the monotonic clock: when it was given something, or spoke
        self.is_busy = False
        """Whether an answer is awaited."""

    def stand_by(self) -> None:
        """Let the child start and load what it needs, for work that is about to come."""
        if self._process is None or self._process.poll() is not None:
            self._give("stand by")

    def do(self, verb: Verb, beat: Callable[[str], object] = lambda _: None, **arguments: Any) -> Answer:
        """Have something done, and wait; `beat` is told what is being done, and may raise what is to end it.

        Raises what was raised there if it is a VaultllmError, else Ended. Whatever else is raised here in the meantime ends the child.
        """
        self.begin(verb, **arguments)
        try:
            while (answer := self.look(TICK, beat)) is None:
                beat("")
            return answer
        except (VaultllmError, Ended):
            raise
        except BaseException:
            self.end()
            raise

    def begin(self, verb: Verb, **arguments: Any) -> None:
        """Have something done, and do not wait: `look` tells."""
        self._give(verb, **arguments)
        self.is_busy = True

    def look(self, seconds: float = 0.0, beat: Callable[[str], object] = lambda _: None) -> Answer | None:
        """What came of it, or None as long as nothing has. Raises as `do`."""
        end = time.monotonic() + seconds
        while self.is_busy:
            try:
                said = self._answers.get(timeout=max(0.0, end - time.monotonic()))
            except queue.Empty:
                if time.monotonic() - self._last < PATIENCE:
                    return None
                self.end()
                raise Ended(f"it hung for {PATIENCE:g} s") from None
            self._last = time.monotonic()
            if said is None:
                raise Ended(self._died())
            if "doing" in said:
                beat(said["doing"])
                continue
            self.is_busy = False
            if error := said.get("error"):
                if error.pop("bug"):
                    raise Ended(error["message"])
                raise (LockedError if error["code"] == LockedError.code else VaultllmError)(**error)
            return dict(said)
        return None

    def rest(self) -> None:
        """Let the child go if it had nothing to do for a while."""
        if self._process is not None and not self.is_busy and time.monotonic() - self._last > (IDLE if self._idle is None else self._idle):
            self.end()

    def end(self) -> None:
        """Stop whatever it does, within about a second."""
        process, self._process, self.is_busy = self._process, None, False
        if process is None:
            return
        if process.stdin is not None:  # it hears that we are gone: at once, in the middle of work too
            with contextlib.suppress(OSError):
                process.stdin.close()
        try:
            process.wait(GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()

    def _died(self) -> str:
        process, self._process, self.is_busy = self._process, None, False
        if process is None:
            return "it was not there"
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                process.stdin.close()
        process.kill()
        code = process.wait()
        return f"its process ended ({f'signal {-code}' if code < 0 else f'exit {code}'})"

    def _give(self, verb: Verb, **arguments: Any) -> None:
        if self._process is not None and self._process.poll() is not None:
            self._died()
        if self._process is None:
            self._launch()
        self._last = time.monotonic()
        with contextlib.suppress(OSError):  # it has died this very moment: `look` finds that
            if self._process is not None and self._process.stdin is not None:
                self._process.stdin.write(json.dumps({"verb": verb, **arguments}).encode() + b"\n")
                self._process.stdin.flush()

    def _launch(self) -> None:
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self._answers = queue.SimpleQueue()
        process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a note's words could stand in what a library says of a crash
            env=os.environ | {"PYTHONPATH": path, "PYTHONUTF8": "1"},
        )
        threading.Thread(target=self._hear, args=(process.stdout, self._answers), daemon=True, name="hands").start()
        self._process = process
        with contextlib.suppress(OSError):
            if process.stdin is not None:
                pickle.dump((self._workspace, self._nice), process.stdin)

    def _hear(self, pipe: IO[bytes], answers: queue.SimpleQueue[Answer | None]) -> None:
        """The thread: lines in, answers out, until the child is gone."""
        with pipe:
            for line in pipe:
                said = json.loads(line)
                answers.put(said)
                if "doing" not in said:
                    self._wake()
        answers.put(None)
        self._wake()


# -- the child


def serve() -> None:
    """The child's life: what is asked for, one after the other, until the pipe closes; then it ends at once."""
    from vaultllm import power

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; our parent ends us

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stopped)
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # whatever prints must not fall into the answers
    workspace, nice = pickle.load(source)  # our parent's
    power.step_back(nice)
    asked: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
    at_work = threading.Event()

    def hear() -> None:
        with contextlib.suppress(OSError, ValueError):
            for line in source:
                asked.put(json.loads(line))
        asked.put(None)
        if at_work.is_set():  # the parent has gone, or wants us to: not when this work is done, but now
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
            else:
                signal.raise_signal(signal.SIGTERM)

    def say(answer: Answer) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody listens any more
            sink.write(json.dumps(answer) + "\n")
            sink.flush()

    threading.Thread(target=hear, daemon=True).start()
    with contextlib.suppress(KeyboardInterrupt):
        _work(workspace, asked, say, at_work)
    os._exit(0)  # all is closed and written; to take libraries of this size apart in order takes a second


def _work(
    workspace: Workspace, asked: queue.SimpleQueue[dict[str, Any] | None], say: Callable[[Answer], None], at_work: threading.Event
) -> None:
    from vaultllm import steps, workers
    from vaultllm.memory import chroma, server
    from vaultllm.schema import Progress

    told = 0.0

    def progress(at: Progress) -> None:
        nonlocal told
        if time.monotonic() - told > TICK:
            told = time.monotonic()
            say({"doing": at.phase})

    job = steps.Job(workspace, progress, background=True)
    try:
        while (one := asked.get()) is not None:
            verb = one.pop("verb")
            at_work.set()
            try:
                if verb == "stand by":
                    _ready(job)
                elif verb == "ingest":
                    say(_ingest(job, **one))
                elif verb == "reply":
                    say(_reply(job, **one))
                else:
                    say(_follow(job))
            except VaultllmError as error:
                say({"error": {"bug": False, "message": error.message, "path": error.path, "code": error.code}})
            except Exception as error:  # its text could hold a note's words
                job.close()
                say({"error": {"bug": True, "message": type(error).__name__}})
            finally:
                if verb != "stand by":
                    workers.stand_down()
                at_work.clear()
    finally:
        workers.stand_down()
        chroma.let_go()
        server.let_go()
        job.close()


def _ready(job: Any) -> None:
    """Load what the next ingest of a few notes will need."""
    from vaultllm import remember, workers

    workers.stand_by()
    with contextlib.suppress(VaultllmError):
        remember.opened(job.ledger, job.workspace.memory)


def _ingest(job: Any, only: Collection[str] | None, check: bool, saved: Collection[str] = ()) -> Answer:
    """`steps.ingest`, and whether the memory owes something that takes long; `check`: all that it holds is looked at, and mended.

    Of the notes that were `saved`, those in which something is asked that was not when they were last read.
    """
    from vaultllm import asked, remember, steps

    workspace, settings = job.workspace, job.workspace.settings.memory
    fresh = asked.fresh(workspace, job.ledger, saved)
    lost: list[str] = []
    if check:
        with job.lock():
            lost = asked.interrupted(job.ledger)
    result = steps.ingest(job) if only is None else steps.ingest_named(job, tuple(only))
    mended = ""
    if check and not result["memory"]["away"] and (mended := remember.check(job.ledger, workspace.memory, settings)):
        with job.lock():
            remember.rebuild(job.ledger, workspace.memory, settings, background=True)
    owed = remember.owed(job.ledger, settings, base=steps.answering_base(job), learn=True)
    counts = {name: result[name] for name in ("notes", "scenes", "seconds")}
    return counts | {"away": result["memory"]["away"], "owed": owed, "mended": mended, "asked": fresh, "interrupted": lost}


def _reply(job: Any, path: str) -> Answer:
    """`conversing.reply`: which answer it was and why it was stopped, if it was; nothing when nothing is asked there any more."""
    from vaultllm import asked, conversing

    try:
        found = conversing.reply(job.workspace, job.ledger, path, progress=job.progress, lock=job.lock)
    except asked.NothingAsked:
        return {"answer": "", "stopped": "", "sources": 0, "seconds": 0.0}
    said = {"sources": len(found.sources), "seconds": round(found.seconds, 1)}
    return {"answer": found.id, "stopped": found.stopped, **said}


def _follow(job: Any) -> Answer:
    """`remember.follow`: whether another embedder answers now, and which."""
    from vaultllm import remember, steps

    workspace, settings = job.workspace, job.workspace.settings.memory
    base = steps.answering_base(job)
    done = remember.follow(job.ledger, workspace.memory, settings, job.progress, base=base)
    about = remember.described(job.ledger, settings) or {}
    return {
        "owed": remember.owed(job.ledger, settings, base=base, learn=True),
        "refitted": bool(done.get("refitted")),
        "embedded": done.get("embedded", 0),
        "away": done.get("away", ""),
        "name": about.get("name"),
        "reason": about.get("reason"),
    }
