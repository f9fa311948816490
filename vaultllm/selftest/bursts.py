"""Thousands of notes at once, beside a real `vaultllm watch`: a checkout of another branch, and changes of which no event is left.

A watcher that is stopped (SIGSTOP) hears nothing while the kernel's queue of events runs full; pictures fill it here before the first
note changes, so that only the full queue itself tells that there was anything. Then single saves, whose time until they stand in the
state is taken, a folder that is renamed, and a hundred notes of our own, which nobody must read. Knows nothing about how the daemon
finds out.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from vaultllm import config, heartbeat, steps, vault
from vaultllm.selftest import Finding, Size, gauges
from vaultllm.selftest.watched import PROGRAM, Watched

_FOLDERS = 40
_QUEUE = Path("/proc/sys/fs/inotify/max_queued_events")
_CALM = 4.0  # seconds
_RECONCILE = 3600.0  # seconds between scans: what is found is found without them
_SETTINGS = "[memory]\ndims = 32\n"  # what the memory makes of so many notes is another trial's
_WORDS = ("насос", "колодец", "вода", "лодка", "река", "сад", "pump", "well", "water", "boat", "river", "garden", "নদী", "জল", "নৌকা")
_SIZES = {"quick": (1_000, 500, 3, 240.0), "soak": (20_000, 40_000, 100, 3600.0)}  # at once, while stopped, saves, patience in seconds

# Another process, as git is one: what is there is unlinked and made anew. Standard input: a path and a text a line.
_WRITER = """
import json, os, sys
for line in sys.stdin:
    path, text = json.loads(line)
    if os.path.exists(path):
        os.unlink(path)
    with open(path, "x", encoding="utf-8") as file:
        file.write(text)
"""
_FLOOD = """
import sys
for number in range(int(sys.argv[2])):
    with open(f"{sys.argv[1]}/{number % 2}.png", "wb") as file:
        file.write(b"x")
"""


def run(
    work: Path,
    size: Size,
    seed: int,
    told: Callable[[str], None],
    program: Sequence[str] = PROGRAM,
    patience: float | None = None,
) -> Finding:
    """Quick: 1,000 and 500 notes, about 10 CPU seconds. Soak: 20,000 and 40,000, up to an hour of an idle machine.

    `program`: what is started as the daemon; `patience`: seconds after which what has not been found counts as missed.
    """
    begun = time.monotonic()
    name, promises = "bursts of changes, and a watcher that was stopped", ("R4", "R11")
    if not _QUEUE.exists():
        return Finding(name, promises, 0, (), 0.0, skipped="only Linux says how long its queue of events is")
    at_once, stopped, saves, most = _SIZES[size]
    trial = _Trial(work, seed, program, most if patience is None else patience, told)
    with trial.watched.running() as daemon:
        trial.daemon, trial.is_dead = daemon.pid, lambda: daemon.poll() is not None
        try:
            trial.burst(at_once, "at_once")
            trial.stopped(stopped)
            trial.renamed()
            trial.ours(100)
            trial.saved(saves)
        finally:
            trial.watched.failures += trial.watched.ended(daemon)
    failures = [f"{one} (seed {seed})" for one in trial.watched.failures]
    return Finding(name, promises, trial.tried, failures, time.monotonic() - begun, trial.figures)


class _Trial:
    """A vault, its daemon, and what the state must come to hold."""

    def __init__(self, work: Path, seed: int, program: Sequence[str], patience: float, told: Callable[[str], None]) -> None:
        self.watched = Watched(work, program, settle=1.5, reconcile=_RECONCILE)
        with self.watched.settings.open("a", encoding="utf-8") as settings:
            settings.write(_SETTINGS)
        self.root = self.watched.vault
        self.chance, self.patience, self.told = random.Random(seed), patience, told
        self.wanted: dict[str, str] = {}  # path -> SHA-256
        self.figures: dict[str, float | int | str] = {}
        self.tried = 0
        self.daemon = 0
        self.is_dead: Callable[[], bool] = lambda: False
        for number in range(_FOLDERS):
            (self.root / f"папка {number}").mkdir()
        self.write([self.path(number) for number in range(3)])

    def path(self, number: int) -> str:
        return f"папка {number % _FOLDERS}/Запись {number}.md"

    def write(self, paths: Sequence[str]) -> None:
        """New bytes for these notes, by another process, as fast as it can."""
        texts = [f"# {self.chance.choice(_WORDS)}\n\n{' '.join(self.chance.choices(_WORDS, k=8))} {self.chance.random()}.\n" for _ in paths]
        lines = "".join(json.dumps([str(self.root / path), text]) + "\n" for path, text in zip(paths, texts, strict=True))
        subprocess.run([sys.executable, "-c", _WRITER], input=lines.encode(), check=True)
        self.wanted |= {path: hashlib.sha256(text.encode()).hexdigest() for path, text in zip(paths, texts, strict=True)}

    def missing(self, path: str = "") -> list[str]:
        """What the state does not hold as it stands in the vault, or holds and does not; of one note, if it is named."""
        with (
            contextlib.suppress(sqlite3.Error),
            contextlib.closing(sqlite3.connect(f"{(self.watched.state / 'ledger.db').as_uri()}?mode=ro", uri=True)) as db,
        ):
            if path:
                has = dict(db.execute("SELECT path, sha256 FROM notes WHERE path = ?", (path,)).fetchall())
                return [path] if has.get(path) != self.wanted[path] else []
            has = dict(db.execute("SELECT path, sha256 FROM notes").fetchall())
            return sorted(path for path in has.keys() | self.wanted.keys() if has.get(path) != self.wanted.get(path))
        return sorted(self.wanted)

    def settled(self, what: str, path: str = "") -> float:
        """Seconds until the state holds all, or this note; what it does not in the end is a failure."""
        begun = time.monotonic()
        while missing := self.missing(path):
            if self.is_dead() or time.monotonic() - begun > self.patience:
                self.watched.failures.append(
                    f"{what}: {len(missing)} notes are not in the state after {time.monotonic() - begun:.0f} s, as {missing[0]}"
                )
                break
            time.sleep(0.02 if path else max(0.5, len(self.wanted) / 10_000))  # to look costs something, too
        return time.monotonic() - begun

    def calm(self) -> int:
        """How many ingests the daemon has told of, when it has had nothing to do for longer than a note takes to settle."""
        told, since = -1, time.monotonic()
        end = since + self.patience
        while time.monotonic() - since < _CALM and time.monotonic() < end and not self.is_dead():
            now = self.watched.log.read_bytes().count(b'"ingested"')
            if now != told or (heartbeat.look(self.watched.state) or {}).get("doing") != "watching":
                told, since = now, time.monotonic()
            time.sleep(0.2)
        return told

    def cpu(self) -> float:
        """CPU seconds of the daemon and of all below it until now."""
        total = 0
        for pid in (self.daemon, *gauges.descendants(self.daemon)):
            with contextlib.suppress(OSError):
                total += sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]))
        return total / os.sysconf("SC_CLK_TCK")

    def burst(self, count: int, name: str) -> None:
        """So many notes at once."""
        self.told(f"{count:,} notes change at once")
        before = self.cpu()
        self.write([self.path(number) for number in range(count)])
        self.figures |= {f"{name}_notes": count, f"{name}_s": round(self.settled(f"{count} notes at once"), 1)}
        self.figures[f"{name}_cpu_s"] = round(self.cpu() - before, 1)
        self.tried += count

    def overflows(self) -> int:
        """How often the daemon has said that events were lost."""
        return self.watched.log.read_bytes().count(b"events of the file system were lost")

    def stopped(self, count: int) -> None:
        """So many notes change while the daemon is stopped, after the queue has run full."""
        self.told(f"{count:,} notes change while the watcher is stopped and its queue is full")
        before = self.overflows()
        if self.is_dead():
            return
        os.kill(self.daemon, signal.SIGSTOP)
        try:
            subprocess.run([sys.executable, "-c", _FLOOD, str(self.root), str(int(_QUEUE.read_text()))], check=True)
            self.write([self.path(number) for number in range(count)])
        finally:
            os.kill(self.daemon, signal.SIGCONT)
        cpu = self.cpu()
        self.figures |= {"stopped_notes": count, "stopped_s": round(self.settled(f"{count} notes while it was stopped"), 1)}
        self.figures |= {"stopped_cpu_s": round(self.cpu() - cpu, 1), "overflows": self.overflows() - before}
        if self.overflows() == before:
            self.watched.failures.append("the queue of events did not run full: nothing was tried")
        self.tried += count

    def renamed(self) -> None:
        """A folder gets another name, and one of its notes is edited there."""
        old, new = "папка 1", "переименована"
        (self.root / old).rename(self.root / new)
        moved = {path: path.replace(old + "/", new + "/") for path in self.wanted if path.startswith(old + "/")}
        self.wanted = {moved.get(path, path): digest for path, digest in self.wanted.items()}
        self.write([next(iter(moved.values()))])
        self.figures["renamed_notes"] = len(moved)
        self.settled("a folder that was renamed")
        self.tried += len(moved)

    def ours(self, rounds: int) -> None:
        """Notes of our own: nobody reads them."""
        job = steps.Job(config.open_workspace(str(self.root), str(self.watched.state)), wait=self.patience)
        before = self.calm()
        for number in range(rounds):
            with job.lock():  # as whoever writes an answer
                text = f"# answer\n\n{' '.join(self.chance.choices(_WORDS, k=8))}\n"
                vault.write_new(self.root, job.workspace.settings.answers.folder, f"answer {number}", text)
        read = self.calm() - before
        self.figures |= {"own_notes": rounds, "own_notes_ingests": read}
        if read or self.missing():
            self.watched.failures.append(f"{rounds} notes of our own woke the daemon {read} times")
        self.tried += rounds

    def saved(self, count: int) -> None:
        """Notes saved one at a time: how long until each stands in the state."""
        self.told(f"{count} notes are saved one at a time")
        took = []
        for _ in range(count):
            path = self.path(_FOLDERS * self.chance.randrange(10))
            self.write([path])
            took.append(self.settled("a note that was saved", path))
        took.sort()
        self.figures |= {
            "saved_notes": count,
            "saved_p50_s": round(statistics.median(took), 2),
            "saved_p99_s": round(took[min(count - 1, int(count * 0.99))], 2),
        }
        self.tried += count
