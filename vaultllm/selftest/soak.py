"""72 hours of a vault's life in some minutes, beside a real daemon: what it takes, and whether it ends where a clean rebuild does.

The hours pass by setting the daemon's clock (libfaketime, where it is installed): an hour at a time, a day back, a year forward, over
the days on which summer time ends and begins, and after a sleep of the machine (SIGSTOP). Meanwhile notes are written, renamed, deleted
and copied, questions asked, notes forgotten, the settings broken and mended, and (in the soak) trainings are due. The whole takes
the minutes that are given, an hour else; quick: 8 s of the clock, some more until all is read, and 10 of a processor. Knows nothing
about how the daemon works.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import os
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path
from zoneinfo import ZoneInfo

from vaultllm import charts
from vaultllm.errors import VaultllmError
from vaultllm.selftest import Finding, Size, gauges
from vaultllm.selftest.life import Life
from vaultllm.selftest.watched import PROGRAM, Watched

NAME = "a long run"
PROMISES = ("R3", "R4", "R6", "R24")
HOURS = 72
ZONE = ZoneInfo("Europe/Berlin")
AUTUMN = dt.datetime(2025, 10, 25, 0, 0, tzinfo=ZONE)  # the night after, an hour comes twice
SPRING = dt.datetime(2026, 3, 28, 0, 0, tzinfo=ZONE)  # the night after, an hour is left out
MOST_WAL_MB, MOST_LOG_MB, MOST_SLOPE = 64.0, 25.0, 1.0  # the last: MB in an hour of events
_LIBRARIES = ("usr/lib/*/faketime/libfaketimeMT.so.1", "usr/lib/faketime/libfaketimeMT.so.1", "usr/local/lib/faketime/libfaketimeMT.so.1")
# libfaketime 0.9.10 makes clock_nanosleep(2) fail where the monotonic clock is left alone; waiting for an event is not what it fakes.
_SLEEP = """import threading, time
time.sleep = lambda seconds: threading.Event().wait(seconds) and None
"""


def library() -> str:
    """libfaketime, where it is installed; else ""."""
    return next((str(found) for pattern in _LIBRARIES for found in sorted(Path("/").glob(pattern))), "")


class Clock:
    """What the daemon and the commands believe the time to be."""

    def __init__(self, folder: Path, library: str) -> None:
        """Without a library it is the machine's."""
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(_SLEEP, encoding="utf-8")
        self._rc = folder / "clock.rc"
        self.library = library
        self.shift = 0.0
        self.leaps = 0
        self.to(AUTUMN)

    def to(self, when: dt.datetime) -> None:
        """Set it; it goes on from there."""
        if self.library:
            self.shift = when.timestamp() - time.time()
            self._rc.write_text(f"{self.shift:+.0f}\n", encoding="utf-8")
            self.leaps += 1

    def environment(self) -> dict[str, str]:
        """For a process that shall believe it. The monotonic clock is left alone, as it is when a machine's clock is set."""
        if not self.library:
            return {"TZ": ZONE.key}
        faked = {"LD_PRELOAD": self.library, "FAKETIME_TIMESTAMP_FILE": str(self._rc), "FAKETIME_CACHE_DURATION": "1"}
        alone = {"FAKETIME_DONT_FAKE_MONOTONIC": "1", "DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}
        return {"TZ": ZONE.key, "PYTHONPATH": str(self._rc.parent), **faked, **alone}


def at_hour(hour: int) -> dt.datetime:
    """What the clock shows in an hour of the run: two days around the end of summer time, one around its beginning; with leaps."""
    if hour >= 48:  # noon of the day before; counted in UTC, or it would be hours of the wall that pass
        return (SPRING.astimezone(dt.UTC) + dt.timedelta(hours=hour - 36)).astimezone(ZONE)
    when = AUTUMN.astimezone(dt.UTC) + dt.timedelta(hours=hour)
    return (when + dt.timedelta(days={18: -1, 34: 400}.get(hour, 0))).astimezone(ZONE)


class _Run:
    """The vault, what is known of the daemon, and what happens."""

    def __init__(self, work: Path, seed: int, program: Sequence[str], soak: bool) -> None:
        self.clock = Clock(work / "clock", library())
        reconcile = 10.0 if soak else 4.0
        self.watched = Watched(work, program, settle=0.3, reconcile=reconcile, environment=self.clock.environment())
        self.life = Life(self.watched.vault, seed)
        self.soak = soak
        self.notes = 24 if soak else 8  # to begin with, and about so many all the time
        for _ in range(self.notes):
            self.life.create()
        self.samples: list[gauges.Sample] = []
        self.late: list[float] = []
        self.waiting: dict[str, tuple[str, float]] = {}
        self.forgotten: list[str] = []
        self.trainings = 0
        self.training: subprocess.Popen[bytes] | None = None

    def happen(self) -> None:
        """One thing that a user or a sync client does."""
        self.life.shift = self.clock.shift
        kinds: list[Callable[[], str]] = [self.life.edit] * 5 + [self.life.type] * 2 + [self.life.rename, self.life.conflict]
        kinds += [self.life.create] * 3 if len(self.life.holds) < 1.5 * self.notes else [self.life.delete] * 3
        path = self.life.chance.choice(kinds)()
        if path in self.life.holds and path not in self.forgotten:
            self.waiting[path] = (sha256(self.life.holds[path]).hexdigest(), time.monotonic())

    def look(self, daemon: subprocess.Popen[bytes], hour: float) -> None:
        """A sample of the daemon, and which edits have come to the ledger."""
        found = gauges.sample(daemon.pid, hour, self.watched.state / "ledger.db-wal", self.watched.log)
        if found:
            self.samples.append(found)
        known: dict[str, str] = {}
        ledger = f"{(self.watched.state / 'ledger.db').as_uri()}?mode=ro"
        with contextlib.suppress(sqlite3.Error), contextlib.closing(sqlite3.connect(ledger, uri=True, timeout=1.0)) as db:
            known = dict(db.execute("SELECT path, sha256 FROM notes"))
        for path, (digest, since) in list(self.waiting.items()):
            if known.get(path) == digest:
                self.late.append(time.monotonic() - since)
            if known.get(path) == digest or path not in self.life.holds:
                del self.waiting[path]

    def due(self, hour: int, daemon: subprocess.Popen[bytes]) -> None:
        """What happens once, in a certain hour, besides the edits."""
        if self.soak and hour % 12 == 6:
            self.watched.command("search", self.life.sentence())
        if self.soak and hour % 8 == 3:
            self.watched.command("ask", self.life.sentence())
        if self.training is None and (hour == 44 or (self.soak and hour % 10 == 9)):  # what trains is not forgotten under
            self.forget(daemon, hour)
        if hour == 12:
            self.break_settings()
        if hour == 40:  # the lid is closed for a night
            os.killpg(daemon.pid, signal.SIGSTOP)
            self.happen()
            time.sleep(2.0)
            os.killpg(daemon.pid, signal.SIGCONT)
        self.trained(wait=0.0)
        if self.soak and hour in (25, 47, 68) and self.training is None:
            line = self.watched.line("retrain", "--minutes", "0.2", "--min-new", "1", "--no-report")
            with (self.watched.log.with_name("train.log")).open("wb") as said:
                self.training = subprocess.Popen(line, stdout=said, stderr=said, env=self.watched.environment(), start_new_session=True)

    def trained(self, wait: float) -> None:
        """Take note of a training that has ended; one that has not in so many seconds is a failure, unless there are none."""
        if self.training is None:
            return
        try:
            ended = self.training.wait(timeout=wait) if wait else self.training.poll()
        except subprocess.TimeoutExpired:
            os.killpg(self.training.pid, signal.SIGKILL)
            ended = self.training.wait()
        if ended is not None:
            self.training = None
            self.trainings += ended == 0
            if ended:
                said = self.watched.log.with_name("train.log").read_text(errors="replace")[-300:]
                self.watched.failures.append(f"retrain ended with {ended}: {said}")

    def forget(self, daemon: subprocess.Popen[bytes], hour: int) -> None:
        """A note that was read; it stays in the vault and must not come back."""
        path = self.life.some()
        deadline = time.monotonic() + 60
        while path in self.waiting and time.monotonic() < deadline:
            time.sleep(0.3)
            self.look(daemon, hour)
        if self.watched.command("forget", "--yes", path):
            self.forgotten.append(path)

    def break_settings(self) -> None:
        """The settings are edited by hand, and wrong for a while: a command says so, the daemon lives on."""
        settings = self.watched.settings
        whole = settings.read_text(encoding="utf-8")
        settings.write_text(whole + "[answers\nhits = ", encoding="utf-8")
        self.watched.command("status", fine=(3,))
        settings.write_text(whole + "[answers]\nhits = 5\n", encoding="utf-8")


def run(
    work: Path,
    size: Size,
    seed: int,
    told: Callable[[str], None],
    *,
    minutes: float | None = None,
    program: Sequence[str] = PROGRAM,
    patience: float = 240.0,
) -> Finding:
    """Live through 72 hours in so many minutes (soak: an hour, unless they are given). Leaves `soak.svg` and `samples.jsonl` in `work`.

    `program`: what is started as `vaultllm` with `watch`, for a control that must fail; `patience`: seconds after the last event in
    which it must have caught up.
    """
    if not Path("/proc/self/fd").is_dir():
        return Finding(NAME, PROMISES, 0, (), 0.0, skipped="what a process takes is read from Linux' /proc")
    began = time.monotonic()
    seconds = 60.0 * (60.0 if minutes is None else minutes) if size == "soak" else 8.0
    one = _Run(work, seed, program, size == "soak")
    failures = one.watched.failures
    with one.watched.running() as daemon:
        lived = time.monotonic()
        _live(one, daemon, seconds, told)
        lived = time.monotonic() - lived  # more than was asked for: what waits for commands is added
        if daemon.poll() is None:
            told("the last events have happened; compared with a clean rebuild")
            try:
                differs = one.watched.ended_alike(work, patience)
            except VaultllmError as error:
                differs = str(error)
            if differs:
                failures.append(f"the state is not that of a clean rebuild: {differs}")
        failures += one.watched.ended(daemon)
    failures += [f"after the run, {what}" for what in one.life.wrong()] + _misbehaved(one.samples, judged=seconds >= 600)
    _keep(work, one.samples)
    failures = [f"{what} (seed {seed})" for what in failures]
    return Finding(NAME, PROMISES, one.life.changes, failures, time.monotonic() - began, _figures(one, lived))


def _live(one: _Run, daemon: subprocess.Popen[bytes], seconds: float, told: Callable[[str], None]) -> None:
    """The hours, evenly; each has its events first, then what is due in it. Commands that take longer make the run longer, not denser."""
    each = seconds / HOURS
    busy = max(1, round(each * 1.5))  # events of an hour by day
    for hour in range(HOURS):
        start = time.monotonic()
        one.clock.to(at_hour(hour))
        asleep = (hour % 24) < 7
        for _ in range(busy if not asleep else hour % 2):
            one.happen()
            time.sleep(each / (busy + 1))
        if daemon.poll() is not None:
            break
        one.due(hour, daemon)
        while True:
            one.look(daemon, hour + min(1.0, (time.monotonic() - start) / each))
            left = start + each - time.monotonic()
            if left <= 0:
                break
            time.sleep(min(left, 2.0))
        if hour % 6 == 5:
            last = one.samples[-1] if one.samples else None
            takes = f"{last.tree_mb:.0f} MB, {last.files} files" if last else "no sample"
            told(f"hour {hour + 1} of {HOURS}: {one.life.changes} events, {takes}, {len(one.watched.failures)} failures")
    one.trained(wait=600.0)


def _misbehaved(samples: Sequence[gauges.Sample], judged: bool) -> list[str]:
    """What the daemon took too much of. The slope is judged in runs of ten minutes and more: before, it is still warming up."""
    found = []
    for name in ("rss_mb", "tree_mb"):
        grows = gauges.slope([(one.at, getattr(one, name)) for one in samples[len(samples) // 4 :]])
        if judged and grows is not None and grows.low > MOST_SLOPE:
            found.append(f"{name} grows by {grows.per:.2f} ({grows.low:.2f} to {grows.high:.2f}) in an hour of events")
    for name, most in (("files", 6), ("threads", 4), ("children", 2)):
        more = gauges.grown([getattr(one, name) for one in samples])
        if more > most:
            found.append(f"it holds {more:g} {name} more at the end than in the beginning")
    for name, limit in (("wal_mb", MOST_WAL_MB), ("log_mb", MOST_LOG_MB)):
        high = max((getattr(one, name) for one in samples), default=0.0)
        if high > limit:
            found.append(f"{name} rose to {high:.1f}")
    return found


def _keep(work: Path, samples: Sequence[gauges.Sample]) -> None:
    """The samples and their picture."""
    lines = "".join(json.dumps(dataclasses.asdict(one)) + "\n" for one in samples)
    (work / "samples.jsonl").write_text(lines, encoding="utf-8")
    points = [(one.at, one.tree_mb) for one in samples]
    picture = charts.curve(points, x="hours of events", y="memory of the daemon and its children, MB", smooth="running mean")
    (work / "soak.svg").write_text(picture, encoding="utf-8")


def _figures(one: _Run, seconds: float) -> dict[str, float | int | str]:
    samples, late = one.samples, sorted(one.late)
    steady = samples[len(samples) // 4 :]
    figures: dict[str, float | int | str] = {
        "minutes": round(seconds / 60, 1),
        "clock": f"{one.clock.leaps} leaps" if one.clock.library else "the machine's: libfaketime is not installed",
        "commands": one.watched.commands,
        "forgotten": len(one.forgotten),
        "trainings": one.trainings,
        "edits_timed": len(late),
    }
    if late:
        figures |= {"seconds_to_ledger_p50": round(late[len(late) // 2], 2), "seconds_to_ledger_p99": round(late[len(late) * 99 // 100], 2)}
    if samples:
        figures |= {
            "rss_mb_most": round(max(at.rss_mb for at in samples), 1),
            "tree_mb_most": round(max(at.tree_mb for at in samples), 1),
            "files": _range([at.files for at in steady]),
            "threads": _range([at.threads for at in steady]),
            "children": _range([at.children for at in steady]),
            "wal_mb_most": round(max(at.wal_mb for at in samples), 2),
            "log_mb": round(samples[-1].log_mb, 3),
            "cpu_s": round(samples[-1].cpu_s, 1),
        }
    faster = 3600 * HOURS / seconds  # hours of events in one of the clock
    for name in ("rss_mb", "tree_mb"):
        grows = gauges.slope([(at.at, getattr(at, name)) for at in steady])
        if grows is not None:
            ends = grows.per, grows.low, grows.high
            figures[f"{name}_per_hour_of_events"] = "{:+.3f} ({:+.3f} to {:+.3f})".format(*ends)
            figures[f"{name}_per_hour_of_clock"] = "{:+.1f} ({:+.1f} to {:+.1f})".format(*(end * faster for end in ends))
    return figures


def _range(values: Sequence[int]) -> str:
    return f"{min(values)} to {max(values)}"
