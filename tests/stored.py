"""What tests share: a note put into a ledger by hand, notes read without a child, a process killed where a name is called."""

from __future__ import annotations

import itertools
import marshal
import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from vaultllm import chats, markdown, reading, remember, rows, scenes, workers
from vaultllm.config import MemorySettings, ScanSettings, Settings
from vaultllm.ledger import Ledger, NoteRow
from vaultllm.memory import chroma, live
from vaultllm.schema import Problem
from vaultllm.workers import Context, Key, Task

APART = Settings.model_validate({"vault_id": "test", "scenes": {"min_chars": 0}})  # no section is joined with the next


def put(ledger: Ledger, path: str, text: str | bytes, settings: Settings = APART) -> None:
    data = text if isinstance(text, bytes) else text.encode()
    note = markdown.parse(path, data)
    reader, why, talks = chats.read(note, ScanSettings(), "")
    cut, _ = scenes.cut(note, reader, talks, settings)
    row = NoteRow(path, note.title, len(data), 0, 0, 0, note.sha256, scenes.PARSER, reader, why)
    ledger.put_note(row, [rows.row(scene, scenes.passages(scene)) for scene in cut])


def read_here(
    tasks: Iterable[Task[Key]], context: Callable[[], Context], children: int
) -> Iterator[tuple[Task[Key], reading.Reading | Problem]]:
    """`workers.read_all` in this process: all that a child is given and gives back is packed and unpacked as it is between the two."""
    said = context()
    given: Context = pickle.loads(pickle.dumps(replace(said, settings=workers._plain(said.settings))))
    for task in tasks:
        answer = marshal.dumps(workers._packed(workers._read(task.path, task.data, given)))
        yield task, workers._unpacked(marshal.loads(answer))


def _refresh_until(root: Path, settings: MemorySettings, where: str, name: str, nth: int, told: Connection) -> None:
    remember._BATCH = 10
    owner: Any = {"Ledger": Ledger, "chroma": chroma, "live": live, "os": os, "remember": remember}[where]
    inner, calls = getattr(owner, name), itertools.count(1)

    def stop_before(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == nth:
            told.send("now")
            time.sleep(60)
        return inner(*args, **kwargs)

    setattr(owner, name, stop_before)
    remember.refresh(Ledger(root / "ledger.db"), root / "memory", settings)


def kill_refresh(root: Path, settings: MemorySettings, where: str, name: str, nth: int) -> None:
    """Refresh the memory of `root` in a process that dies (SIGKILL) before the `nth` call of `where.name`.

    All these processes are forked from one that has imported Chroma, which takes longer than what they do.
    """
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.stored", "chromadb"])
    said, told = processes.Pipe(duplex=False)
    child = processes.Process(target=_refresh_until, args=(root, settings, where, name, nth, told))
    child.start()
    told.close()
    with said:
        assert said.recv() == "now"  # EOFError when it ended before
        child.kill()
        child.join()
    assert child.exitcode == -signal.SIGKILL
    child.close()


def write_rivers(vault: Path, notes: int, sentences: int) -> None:
    """Notes that a model can learn something of: the same sentence, its numbers counted up."""
    for number in range(notes):
        body = f"# Река {number}\n\n" + " ".join(f"Вода поднялась на {number + i} сантиметров утром {i} числа." for i in range(sentences))
        (vault / f"Река {number}.md").write_text(body, encoding="utf-8")
