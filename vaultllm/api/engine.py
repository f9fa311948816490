"""What is behind the protocols: jobs for requests, one generation at a time with a queue before it, the model let go when idle.

One for a process. Its methods are called on the event loop; the work is done in its threads. Knows nothing about HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Generic, TypeVar

from vaultllm import answer, registry, speaking, steps
from vaultllm.config import Workspace
from vaultllm.memory import live
from vaultllm.text import words

T = TypeVar("T")

EMBED = "vaultllm-embed"
"""The model id of the memory's embedder; Smart Connections looks for `embed` in it."""
MEMORY, RAW, BASE = "vaultllm", "vaultllm:raw", "vaultllm:base"
"""Memory and the model that answers; that model alone; its base alone."""
_LOOKERS = 4  # threads for what takes no model
_WAIT = 10.0  # seconds for another process that writes
_CONTEXT = 2048  # tokens, told of a model that does not say


class Busy(Exception):  # noqa: N818 - an answer, not a bug
    """The queue before the model is full."""

    def __init__(self, seconds: int) -> None:
        super().__init__(f"{seconds} s")
        self.seconds = seconds


class Gone(Exception):  # noqa: N818 - nobody listens any more
    """Out of work that nobody waits for."""


class Done(Generic[T]):
    """The last thing that work tells: its result."""

    def __init__(self, result: T) -> None:
        self.result = result


Emit = Callable[[Any], None]
Work = Callable[[steps.Job, Emit, threading.Event], T]


class Engine:
    """The vault's memory and model, for many who ask."""

    def __init__(self, workspace: Workspace, *, max_queue: int = 8, idle_minutes: float = 10.0) -> None:
        self.workspace = workspace
        self.max_queue = max_queue
        """Questions that wait for the model, beside the one that it answers."""
        self.idle_minutes = idle_minutes
        """After so many without a question the model is let go."""
        self._voice = ThreadPoolExecutor(1, thread_name_prefix="vaultllm-voice")
        self._lookers = ThreadPoolExecutor(_LOOKERS, thread_name_prefix="vaultllm-look")
        self._lock = threading.Lock()
        self._within = 0
        self._seconds = 5.0  # that a question takes, lately
        self._used = time.monotonic()
        self._warm = False

    def close(self) -> None:
        """No more work; what runs is waited for."""
        self._voice.shutdown(cancel_futures=True)
        self._lookers.shutdown(cancel_futures=True)
        self._release()

    @contextlib.contextmanager
    def job(self) -> Iterator[steps.Job]:
        """A job of its own: a ledger belongs to one thread."""
        job = steps.Job(self.workspace, wait=_WAIT, background=True)
        try:
            yield job
        finally:
            job.close()

    async def look(self, work: Callable[[steps.Job], T]) -> T:
        """Work that needs no model that speaks, in a thread."""

        def run() -> T:
            with self.job() as job:
                return work(job)

        return await asyncio.get_running_loop().run_in_executor(self._lookers, run)

    async def speak(self, work: Work[T], quiet: float | None = None) -> AsyncGenerator[Any, None]:
        """What work with the model tells, piece by piece, then `Done`. Raises Busy when too many wait, and what the work raises.

        None is told after each `quiet` seconds without a word. Whoever stops listening ends the work at its next word.
        """
        loop, told, over = asyncio.get_running_loop(), asyncio.Queue[Any](), threading.Event()
        with self._lock:
            if self._within > self.max_queue:
                raise Busy(max(1, round(self._seconds * self._within)))
            self._within += 1

        def tell(one: Any) -> None:
            loop.call_soon_threadsafe(told.put_nowait, one)

        future = self._voice.submit(self._run, work, over, tell)

        def ended(done: Future[T]) -> None:
            with self._lock:
                self._within -= 1
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
                loop.call_soon_threadsafe(told.put_nowait, done)

        future.add_done_callback(ended)
        try:
            while True:
                try:
                    async with asyncio.timeout(quiet):
                        one = await told.get()
                except TimeoutError:
                    one = None
                if isinstance(one, Future):
                    yield Done(one.result())
                    return
                yield one
        finally:
            over.set()
            future.cancel()

    def _run(self, work: Work[T], over: threading.Event, tell: Emit) -> T:
        def emit(one: Any) -> None:
            if over.is_set():
                raise Gone
            tell(one)

        began = time.monotonic()
        self._warm = True
        try:
            if over.is_set():
                raise Gone
            with self.job() as job:
                return work(job, emit, over)
        finally:
            self._used = time.monotonic()
            self._seconds += 0.3 * (self._used - began - self._seconds)

    def release_if_idle(self) -> bool:
        """Let go of the model when nobody has asked for long; whether it was."""
        if not self._warm or self._within or time.monotonic() - self._used < 60 * self.idle_minutes:
            return False
        self._voice.submit(self._release).result()
        return True

    def _release(self) -> None:
        self._warm = False
        answer.release()
        live.release()
        gc.collect()

    # -- what can be asked

    def models(self, job: steps.Job) -> list[dict[str, Any]]:
        """Every model id: {id, kind, created, about, context}; `kind` is `chat` or `embeddings`. Loads nothing."""
        try:
            serving = registry.serving(self.workspace, job.ledger)
        except Exception:  # `current` names what is gone: memory answers, and says why
            serving = None
        context = _context(serving[0]) if serving else _CONTEXT
        created = {run.id: _seconds_of(run.created) for run in job.ledger.runs()}
        now = created.get(serving[2], 0) if serving else 0
        found = [{"id": MEMORY, "about": "memory and the model that answers", "created": now, "context": context}]
        if serving:
            found.append({"id": RAW, "about": "the model that answers, without memory", "created": now, "context": context})
            found.append({"id": BASE, "about": "its base, without memory and training", "created": 0, "context": context})
        found += [
            {"id": run.id, "about": "memory and this training", "created": created[run.id], "context": _context(run.base)}
            for run in reversed(speaking.runs(self.workspace, job.ledger))
        ]
        chat = [{**one, "kind": "chat"} for one in found]
        about = live.fitted(job.ledger)
        if about is None:
            return chat
        embedder = {"id": EMBED, "about": "the memory's embedder", "created": 0, "context": _CONTEXT, "dims": about["dims"]}
        return [*chat, {**embedder, "kind": "embeddings"}]

    def embed(self, job: steps.Job, texts: list[str]) -> tuple[list[list[float]], int]:
        """A vector for each text, and how many words they have. Raises VaultllmError when there is no embedder."""
        embedder = live.opened(job.ledger, self.workspace.memory)
        return embedder.embed(texts).tolist(), sum(len(words(text)) for text in texts)


def _context(base: str) -> int:
    with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
        config = json.loads((Path(base) / "config.json").read_text(encoding="utf-8"))
        return int(config.get("max_position_embeddings") or config.get("n_positions") or _CONTEXT)
    return _CONTEXT


def _seconds_of(created: str) -> int:
    import datetime as dt

    try:
        return int(dt.datetime.fromisoformat(created).timestamp())
    except ValueError:
        return 0
