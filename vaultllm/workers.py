"""Notes are read in child processes: on all cores, and so that a note that crashes, hangs or eats memory costs only itself.

A child gets bytes and gives back `Reading`s, one by one; when it dies, the note it was at is to blame, and another child
goes on with the rest. Limits: CPU seconds and memory by rlimit where the system has it, and a longer time by the clock
everywhere. Results come in the order of the notes, whatever child was faster. Knows nothing about vaults and ledgers.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import pickle
import queue
import signal
import struct
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import IO, TYPE_CHECKING, Any, Generic, TypeVar, cast

from vaultllm import reading
from vaultllm.forgotten import Forgotten
from vaultllm.imports import Talk
from vaultllm.keywords import Statistics
from vaultllm.memory.bags import Bag
from vaultllm.rows import PassageRow, SceneRow
from vaultllm.schema import Problem

if TYPE_CHECKING:
    from vaultllm.config import Settings

COMMAND: tuple[str, ...] = (sys.executable, "-c", "from vaultllm.workers import serve; serve()")
CHUNK_NOTES = 32  # what a child is given at once: its answers come one by one
CHUNK_BYTES = 256 * 1024
_AHEAD_NOTES = 16 * CHUNK_NOTES  # given out before they are asked for: the children go on while the ledger writes
_AHEAD_BYTES = 16 * 2**20
_COLLECT = 1_000  # notes between two collections of reference cycles in a child
_SEND_SECONDS = 0.1  # a child's answers wait for each other so long: each would wake this process
_PIPED = 2**20  # bytes of answers, at most, that wait
_MOST = 8  # children; more would wait for the one process that writes
_READY = "ready"
_READING = tuple(item.name for item in fields(reading.Reading))
_LENGTH = struct.Struct("!I")
_PATIENCE = 3.0  # a child gets so many times its CPU limit by the clock: the machine may be busy

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class Task(Generic[Key]):
    """A note to be read."""

    key: Key
    """Given back with the result."""
    path: str
    """Vault-relative."""
    data: bytes
    """Its bytes."""


@dataclass(frozen=True, slots=True)
class Context:
    """What every note is read with."""

    settings: Settings
    """The vault's."""
    exports: Path | None = None
    """Folder of imported talks."""
    statistics: Statistics | None = None
    """The vault's document frequencies."""
    forgotten: Forgotten | None = None
    """What is left out of every note; None when nothing was forgotten."""


def count(notes: int) -> int:
    """How many children are worth starting for so many notes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _MOST, -(-notes // CHUNK_NOTES)))


def read_all(
    tasks: Iterable[Task[Key]], context: Callable[[], Context], children: int
) -> Generator[tuple[Task[Key], reading.Reading | Problem], None, None]:
    """Each task with what was read, or with why it could not be (E-BUG, E-CRASH, E-TIME, E-MEM); in the order of the tasks.

    Tasks are taken as they are needed, a few chunks ahead. `context` is asked for while the children start.
    """
    pool = [_awaited() or _Worker(), *(_Worker() for _ in range(children - 1))]
    answers: queue.SimpleQueue[tuple[int, Any]] = queue.SimpleQueue()
    work: queue.SimpleQueue[list[tuple[int, str, bytes]] | None] = queue.SimpleQueue()
    threads: list[threading.Thread] = []
    waiting: deque[Task[Key]] = deque()  # given out or answered, not yet handed on
    answered: dict[int, Any] = {}
    numbered = enumerate(tasks)
    handed = given = ahead = 0  # tasks handed on; tasks given out; bytes between the two
    ended = False
    try:
        for worker in pool:
            if worker.process is None:
                worker.launch()
        said = context()
        for worker in pool:
            worker.context = said
            threads.append(threading.Thread(target=worker.run, args=(work, answers), daemon=True))
            threads[-1].start()
        while True:
            while not ended and given - handed < _AHEAD_NOTES and ahead < _AHEAD_BYTES:
                chunk = _chunk(numbered, waiting)
                ended = not chunk
                given += len(chunk)
                ahead += sum(len(data) for _, _, data in chunk)
                if chunk:
                    work.put(chunk)
            if not waiting:
                return
            while handed not in answered:
                with contextlib.suppress(queue.Empty):
                    number, answer = answers.get(timeout=0.2)
                    if isinstance(answer, BaseException):
                        raise answer
                    answered[number] = answer
                for worker in pool:
                    worker.check()
            task = waiting.popleft()
            handed, ahead = handed + 1, ahead - len(task.data)
            yield task, answered.pop(handed - 1)
    finally:
        for _ in pool:
            work.put(None)
        for worker in pool:
            worker.stop()
        for thread in threads:
            thread.join()


_spare: _Worker | None = None  # a child that is being started before there is anything to read


def stand_by() -> None:
    """Start a child for the notes to come, unless one waits: to start it takes longer than to read a note that was just saved.

    The next `read_all` takes it; who is told that nothing comes calls `stand_down`.
    """
    global _spare
    if _spare is None:
        _spare = _Worker()
        _spare.launch()


def stand_down() -> None:
    """End the child that waits, if one does."""
    if (worker := _awaited()) is not None:
        worker.stop()


def _awaited() -> _Worker | None:
    """The child that waits, which is then nobody's; None also when it has died."""
    global _spare
    worker, _spare = _spare, None
    if worker is None or worker.process is None:
        return None
    if worker.process.poll() is not None:
        worker.stop()
        return None
    return worker


def _chunk(numbered: Iterator[tuple[int, Task[Key]]], waiting: deque[Task[Key]]) -> list[tuple[int, str, bytes]]:
    chunk: list[tuple[int, str, bytes]] = []
    size = 0
    while len(chunk) < CHUNK_NOTES and size < CHUNK_BYTES:
        number, task = next(numbered, (-1, None))
        if task is None:
            break
        waiting.append(task)
        chunk.append((number, task.path, task.data))
        size += len(task.data)
    return chunk


@dataclass
class _Worker:
    """One child and the thread that feeds it."""

    context: Context | None = None
    process: subprocess.Popen[bytes] | None = None
    is_ready: bool = False
    deadline: float = field(default=float("inf"))
    is_late: bool = False
    is_careful: bool = False
    is_stopped: bool = False

    def run(self, work: queue.SimpleQueue[Any], answers: queue.SimpleQueue[tuple[int, Any]]) -> None:
        """The thread: chunks in, answers out, until None."""
        try:
            while chunk := work.get():
                self.is_careful = False
                while chunk and not self.is_stopped:
                    chunk = self._serve(chunk, answers)
        except BaseException as error:  # whoever waits for the answers must hear of it
            answers.put((-1, error))
        finally:
            self.stop()  # a child that was just being started when everything was stopped

    def _serve(self, chunk: Sequence[tuple[int, str, bytes]], answers: queue.SimpleQueue[tuple[int, Any]]) -> Sequence[Any]:
        """Give a chunk to the child; returns what of it is still to be done, when the child died over one note.

        Answers come many at once. Those that a dying child has not sent are lost with it, and which note it died over is not
        known; so the rest is given to another one carefully: each answer is sent before the next note is begun.
        """
        process, to_child, from_child = self._started()
        self.is_late = False
        self._rewind()
        with contextlib.suppress(OSError):  # it may die while we still write: what it answered before counts
            _send(to_child, (self.is_careful, [(path, data) for _, path, data in chunk]))
        for done, (number, _, _) in enumerate(chunk):
            answer = _receive(from_child)
            if answer is None:
                self.deadline = float("inf")
                if self.is_stopped:
                    return ()
                self.process = None
                if not self.is_careful and len(chunk) - done > 1:
                    self.is_careful = True
                    _close(process)
                    process.wait()
                    return chunk[done:]
                answers.put((number, self._blame(process)))
                return chunk[done + 1 :]
            self._rewind()
            answer = _unpacked(answer)
            answers.put((number, answer))
            if _is_spent(answer):
                self.deadline = float("inf")
                self.process = None
                _close(process)
                process.wait()
                return chunk[done + 1 :]
        self.deadline = float("inf")
        return ()

    def launch(self) -> None:
        """Start the child, without waiting until it is ready."""
        root = str(Path(__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
        self.is_ready = False
        self.process = subprocess.Popen(
            COMMAND,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # a note's words could stand in what Python says of a crash
            env=os.environ | {"PYTHONPATH": path, "PYTHONUTF8": "1"},
        )

    def _started(self) -> tuple[subprocess.Popen[bytes], IO[bytes], IO[bytes]]:
        """The child, what it reads from, what it writes to."""
        if self.process is None:
            self.launch()
        process = self.process
        if process is None or process.stdin is None or process.stdout is None:
            raise RuntimeError("no child was started")
        if not self.is_ready:
            with contextlib.suppress(OSError):
                _send(process.stdin, pickle.dumps(self._said()))
            if _receive(process.stdout) != _READY and not self.is_stopped:
                raise RuntimeError(f"the process that reads notes does not start (exit {process.wait()})")
            self.is_ready = True
        return process, process.stdin, process.stdout

    def _said(self) -> Context | None:
        """The context as a child gets it: without the models of the settings, which take as long to import as all else."""
        return replace(self.context, settings=_plain(self.context.settings)) if self.context is not None else None

    def _seconds(self) -> float:
        return self.context.settings.scan.max_seconds if self.context is not None else 0.0

    def _rewind(self) -> None:
        self.deadline = time.monotonic() + _PATIENCE * self._seconds()

    def _blame(self, process: subprocess.Popen[bytes]) -> Problem:
        """Why the child died over a note."""
        _close(process)
        code = process.wait()
        late = self.is_late or code == -getattr(signal, "SIGXCPU", 0)
        if late:
            return Problem(
                "E-TIME", f"reading it took longer than scan.max_seconds = {self._seconds():g}; split the note or raise the limit"
            )
        how = f"signal {-code}" if code < 0 else f"exit {code}"
        return Problem("E-CRASH", f"reading it ended the process that read it ({how}); it is tried again when it changes; please report it")

    def check(self) -> None:
        """Kill the child when it is late."""
        if time.monotonic() > self.deadline and self.process is not None:
            self.is_late = True
            self.process.kill()

    def stop(self) -> None:
        """End the child, whatever it does."""
        self.is_stopped = True
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            _close(self.process)


def _plain(settings: Settings) -> Settings:
    """Settings that were checked, as plain attributes: whoever only reads them sees no difference."""
    values = {name: SimpleNamespace(**value) if isinstance(value, dict) else value for name, value in settings.model_dump().items()}
    return cast("Settings", SimpleNamespace(**values))


def _close(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        with contextlib.suppress(OSError):
            if pipe is not None:
                pipe.close()


# Between the processes travel plain tuples and strings, by marshal: what comes back from a process that read hostile
# text can then be data only (a pickle could name any class), and it costs a tenth.


def _packed(answer: reading.Reading | Problem) -> tuple[Any, ...]:
    if isinstance(answer, Problem):
        return (_problem(answer),)
    scenes = tuple((*scene[:-1], tuple((*passage[:-1], tuple(passage.bag)) for passage in scene.passages)) for scene in answer.scenes)
    plain = {"scenes": scenes, "problems": tuple(map(_problem, answer.problems)), "talks": tuple(map(tuple, answer.talks))}
    return tuple(plain[name] if name in plain else getattr(answer, name) for name in _READING)


def _problem(problem: Problem) -> tuple[str, str, int, int]:
    return problem.code, problem.message, problem.line, problem.count


def _unpacked(answer: Sequence[Any]) -> reading.Reading | Problem:
    if len(answer) == 1:
        return Problem(*answer[0])
    found = dict(zip(_READING, answer, strict=True))
    found["problems"] = tuple(Problem(*problem) for problem in found["problems"])
    found["scenes"] = tuple(
        SceneRow._make((*scene[:-1], tuple(PassageRow._make((*passage[:-1], Bag(*passage[-1]))) for passage in scene[-1])))
        for scene in found["scenes"]
    )
    found["talks"] = tuple(Talk._make(talk) for talk in found["talks"])
    return reading.Reading(**found)


def _send(pipe: IO[bytes], value: Any, *, now: bool = True) -> None:
    """Write a value; not `now`: with those that follow."""
    data = marshal.dumps(value)
    pipe.write(_LENGTH.pack(len(data)))
    pipe.write(data)
    if now:
        pipe.flush()


def _receive(pipe: IO[bytes]) -> Any:
    """The next value; None when the other side is gone (it never sends None)."""
    try:
        head = pipe.read(_LENGTH.size)
        if len(head) < _LENGTH.size:
            return None
        (length,) = _LENGTH.unpack(head)
        data = pipe.read(length)
        return marshal.loads(data) if len(data) == length else None
    except (OSError, ValueError, EOFError, TypeError):  # closed under our hands
        return None


# -- the child


def serve() -> None:
    """The child's life: the context, then chunks until the pipe closes; an answer for each note."""
    import gc

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; our parent ends us
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", _PIPED)
    os.dup2(2, 1)  # whatever prints must not fall into the answers
    said = _receive(source)
    if said is None:
        return
    context: Context = pickle.loads(said)
    gc.freeze()
    gc.disable()  # tokens come and go by the thousand, hardly any in cycles
    _send(sink, _READY)
    _limit_memory(context.settings.scan.max_memory_mb)
    read, sent = 0, time.monotonic()
    while (given := _receive(source)) is not None:
        is_careful, chunk = given
        read += len(chunk)
        if read >= _COLLECT:
            read = 0
            gc.collect()
        for path, data in chunk:
            _limit_time(context.settings.scan.max_seconds)
            answer = _read(path, data, context)
            begun = time.monotonic()
            now = is_careful or begun - sent > _SEND_SECONDS or _is_spent(answer)
            _send(sink, _packed(answer), now=now)
            sent = begun if now else sent
            if _is_spent(answer):
                return
        sink.flush()


def _is_spent(answer: object) -> bool:
    """Whether the child ends with this answer: after a MemoryError what is left of it is not worth much."""
    return isinstance(answer, Problem) and answer.code == "E-MEM"


def _read(path: str, data: bytes, context: Context) -> reading.Reading | Problem:
    try:
        return reading.read_note(path, data, context.settings, context.exports, context.statistics, context.forgotten)
    except MemoryError:
        most = context.settings.scan.max_memory_mb
        return Problem("E-MEM", f"reading it takes more than scan.max_memory_mb = {most}; split the note or raise the limit")
    except Exception as error:
        frame = error.__traceback__
        while frame is not None and frame.tb_next is not None:
            frame = frame.tb_next
        where = f"{Path(frame.tb_frame.f_code.co_filename).name}:{frame.tb_lineno}" if frame is not None else "?"
        return Problem("E-BUG", f"the note could not be read ({type(error).__name__} at {where}); please report this bug of ours")


def _limit_memory(most_mb: int) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
        limit = pages * resource.getpagesize() + most_mb * 2**20
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    with contextlib.suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 1, hard))
