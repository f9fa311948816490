"""The daemon: no change is lost, nothing of ours wakes it, it ends when told to."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import random
import shutil
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from watchdog import events

from vaultllm import config, eyes, heartbeat, steps, vault, watch
from vaultllm.errors import LockedError, VaultError
from vaultllm.hands import Ended

# watchdog's reader thread would die of this warning here, where warnings are errors; the daemon ignores it.
pytestmark = [pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning"), pytest.mark.children]

REPO = Path(__file__).resolve().parents[1]
RESULT = {
    "notes": {"seen": 1, "parsed": 1, "unchanged": 0, "removed": 0, "failed": []},
    "scenes": {"added": 1, "changed": 0, "removed": 0, "total": 1},
    "away": "",
    "owed": False,
    "mended": "",
    "asked": [],
    "interrupted": [],
    "seconds": 0.0,
}


def until(true: Callable[[], Any], seconds: float = 20.0) -> bool:
    """Wait until something is so; False when it did not come in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Running:
    """A daemon in a thread; its hands only look at the files (real ones are tried in a process of their own)."""

    def __init__(self, workspace: config.Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace = workspace
        self.events: list[dict[str, Any]] = []
        self.snapshots: list[dict[str, str]] = []
        self.fail: list[Exception] = []
        self.named_only: list[tuple[str, ...] | None] = []
        self.saved: list[tuple[str, ...]] = []
        self.stood_by: list[int] = []
        self.ended: list[int] = []
        self.at: list[float] = []
        self.daemon: watch._Daemon | None = None
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        monkeypatch.setattr(watch, "Hands", lambda _: self)
        monkeypatch.setattr(watch, "STOP_TICK", 0.05)
        built = watch._Daemon.__init__

        def build(daemon: watch._Daemon, *arguments: Any) -> None:
            self.daemon = daemon
            built(daemon, *arguments)

        monkeypatch.setattr(watch._Daemon, "__init__", build)

    # what `Hands` can

    def stand_by(self) -> None:
        self.stood_by.append(len(self.snapshots))

    def rest(self) -> None: ...

    def end(self) -> None:
        self.ended.append(len(self.snapshots))

    def do(
        self, verb: str, beat: Callable[[str], None], only: tuple[str, ...] | None, check: bool, saved: tuple[str, ...]
    ) -> dict[str, Any]:
        assert (verb, check) == ("ingest", not self.snapshots)
        self.named_only.append(only)
        self.saved.append(saved)
        if self.fail:
            raise self.fail.pop(0)
        found = vault.scan(self.workspace.vault, self.workspace.settings.scan, self.workspace.settings.own_folders, only)
        kept = {} if only is None else {path: text for path, text in self.snapshots[-1].items() if path not in only}
        self.snapshots.append(kept | {file.path: (self.workspace.vault / file.path).read_text(encoding="utf-8") for file in found.files})
        self.at.append(time.monotonic())
        return RESULT

    def _run(self) -> None:
        watch.run(steps.Job(self.workspace), log=self.events.append, stop=self.stop)

    def start(self) -> Running:
        self.thread.start()
        assert until(lambda: self.snapshots or self.events[1:])
        return self

    def named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def read(self, path: str, text: str | None, seconds: float = 20.0) -> bool:
        """Whether an ingest saw this text of this note (None: that it is gone)."""
        return until(lambda: self.snapshots and self.snapshots[-1].get(path) == text, seconds)


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def make(settle: float = 0.15, reconcile: float = 1000.0) -> Running:
        (tmp_path / "vault" / ".vaultllm").mkdir(parents=True)
        (tmp_path / "vault" / ".vaultllm" / "config.toml").write_text(
            f'vault_id = "v"\n[watch]\nsettle = {settle}\nreconcile = {reconcile}\n', encoding="utf-8"
        )
        daemon = Running(config.open_workspace(str(tmp_path / "vault"), str(tmp_path / "state")), monkeypatch)
        started.append(daemon)
        return daemon

    yield make
    for daemon in started:
        daemon.stop.set()
        if daemon.thread.ident is not None:
            daemon.thread.join(20)
            assert not daemon.thread.is_alive()


# -- what is seen


def test_a_note_that_is_written_moved_and_deleted_is_read_each_time(running):
    daemon = running().start()
    root = daemon.workspace.vault
    (root / "а.md").write_text("один", encoding="utf-8")
    assert daemon.read("а.md", "один")
    aside = root / ".а.md.tmp"  # how many editors save: aside, then renamed
    aside.write_text("два", encoding="utf-8")
    aside.replace(root / "а.md")
    assert daemon.read("а.md", "два")
    (root / "а.md").rename(root / "б.md")
    assert daemon.read("б.md", "два")
    assert "а.md" not in daemon.snapshots[-1]
    (root / "б.md").unlink()
    assert daemon.read("б.md", None)


def test_only_what_events_named_is_looked_at_until_the_next_scan_or_a_folder_is_named(running):
    daemon = running().start()
    root = daemon.workspace.vault
    (root / "а.md").write_text("один", encoding="utf-8")
    assert daemon.read("а.md", "один")
    assert daemon.named_only == [None, ("а.md",)]
    (root / "папка").mkdir()
    (root / "папка" / "б.md").write_text("два", encoding="utf-8")
    assert daemon.read("папка/б.md", "два")
    assert None in daemon.named_only[2:]


def test_what_was_named_while_somebody_else_wrote_is_found_by_the_next_scan(running):
    daemon = running().start()
    daemon.fail.append(LockedError("another"))
    (daemon.workspace.vault / "а.md").write_text("один", encoding="utf-8")
    assert daemon.read("а.md", "один")
    assert daemon.named_only == [None, ("а.md",), None]


def test_what_was_saved_is_told_as_such_once_it_is_read_and_never_by_the_first_scan(running):
    daemon = running()
    root = daemon.workspace.vault
    (root / "старая.md").write_text("> [!ask] Почему?", encoding="utf-8")
    daemon.start()
    assert daemon.saved == [()]
    daemon.fail.append(LockedError("another"))
    (root / "а.md").write_text("один", encoding="utf-8")
    assert daemon.read("а.md", "один")
    assert daemon.saved == [(), ("а.md",), ("а.md",)]  # it could not be read at once; the scan that did knows that it was saved
    (root / "б.md").write_text("два", encoding="utf-8")
    assert daemon.read("б.md", "два")
    assert daemon.saved[3:] == [("б.md",)]


def test_a_scan_in_the_midst_of_a_save_takes_what_is_asked_there_as_asked_now(running):
    daemon = running(settle=0.5).start()
    (daemon.workspace.vault / "а.md").write_text("один", encoding="utf-8")
    assert until(lambda: daemon.daemon.dirty.unsettled())
    daemon.daemon.next_scan = 0.0
    daemon.daemon.dirty.hint.set()
    assert daemon.read("а.md", "один")
    assert (daemon.named_only[1], daemon.saved[1]) == (None, ("а.md",))


def test_a_steady_stream_of_saves_does_not_put_the_scan_off(running):
    daemon = running(settle=0.05, reconcile=0.6).start()
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        (daemon.workspace.vault / "а.md").write_text(str(time.monotonic()), encoding="utf-8")
        time.sleep(0.1)
    assert daemon.named_only.count(None) >= 3
    assert daemon.named_only.count(("а.md",)) >= 3


def test_the_child_starts_while_a_note_settles(running):
    daemon = running(settle=0.3).start()
    assert daemon.stood_by == []
    (daemon.workspace.vault / "а.md").write_text("один", encoding="utf-8")
    assert daemon.read("а.md", "один")
    assert set(daemon.stood_by) == {1}


def test_folders_that_are_made_moved_in_and_moved_out_are_seen(running, tmp_path):
    daemon = running().start()
    root = daemon.workspace.vault
    deep = root / "a" / "b" / "c"
    deep.mkdir(parents=True)
    (deep / "n.md").write_text("deep", encoding="utf-8")
    assert daemon.read("a/b/c/n.md", "deep")
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "m.md").write_text("in", encoding="utf-8")
    outside.rename(root / "inside")
    assert daemon.read("inside/m.md", "in")
    (root / "inside" / "m.md").write_text("later", encoding="utf-8")  # the folder that came in is watched too
    assert daemon.read("inside/m.md", "later")
    (root / "inside").rename(tmp_path / "gone")
    assert daemon.read("inside/m.md", None)


def test_a_burst_is_one_ingest(running):
    daemon = running(settle=1.0).start()
    before = len(daemon.snapshots)
    for number in range(100):
        (daemon.workspace.vault / f"{number}.md").write_text(str(number), encoding="utf-8")
    assert daemon.read("99.md", "99")
    time.sleep(1.2)
    assert len(daemon.snapshots) == before + 1
    assert len(daemon.snapshots[-1]) == 100


def test_a_note_that_is_still_being_written_is_not_read(running):
    daemon = running(settle=0.3).start()
    before = len(daemon.snapshots)
    with open(daemon.workspace.vault / "slow.md", "w", encoding="utf-8") as file:
        for _ in range(12):
            file.write("x")
            file.flush()
            time.sleep(0.08)
            assert len(daemon.snapshots) == before
    assert daemon.read("slow.md", "x" * 12)
    assert len(daemon.snapshots) == before + 1


# -- what is not


def test_answers_dot_files_other_files_and_reading_do_not_wake_it(running):
    daemon = running(settle=0.05)
    root = daemon.workspace.vault
    (root / "note.md").write_text("n", encoding="utf-8")
    (root / daemon.workspace.settings.answers.folder).mkdir(parents=True)
    daemon.start()
    time.sleep(0.3)  # what was written just before it started is not part of the test
    before = len(daemon.snapshots)
    (root / ".obsidian").mkdir()
    for number in range(100):
        vault.write_new(root, daemon.workspace.settings.answers.folder, f"answer {number}", "text")
        (root / "note.md").read_text(encoding="utf-8")
        (root / ".obsidian" / "workspace.md").write_text(str(number), encoding="utf-8")
        (root / "picture.png").write_bytes(bytes([number]))
    time.sleep(0.6)
    assert len(daemon.snapshots) == before


@pytest.mark.parametrize(
    ("path", "folder", "concerns"),
    [
        ("/v/a.md", False, True),
        ("/v/А/б.MARKDOWN", False, True),
        ("/v/conversations-001.json", False, True),
        ("/v/data.json", False, False),
        ("/v/a.md.tmp", False, False),
        ("/v/folder", True, True),
        ("/v", True, True),
        ("/v/.git/a.md", False, False),
        ("/v/x/.trash/a.md", False, False),
        ("/v/Ответы/a.md", False, False),
        ("/v/Ответы", True, False),
        ("/v/Ответы на всё/a.md", False, True),
        ("/v/Ответы.md", False, True),
        ("/v2/a.md", False, False),
        ("/v/Отве\u0442ы/И\u0306.md", False, False),
        ("/v/bad\udcff.md", False, True),
    ],
)
def test_which_paths_concern_us(path, folder, concerns):
    dirty = eyes.Dirty("/v", ("Ответы",), 1.0)
    assert dirty.concerns(path, folder) is concerns


def test_opened_and_closed_without_writing_are_no_hints(tmp_path):
    dirty = eyes.Dirty(str(tmp_path), ("",), 1.0)
    path = str(tmp_path / "a.md")
    for quiet in (events.FileOpenedEvent(path), events.FileClosedNoWriteEvent(path), events.DirModifiedEvent(str(tmp_path))):
        dirty.dispatch(quiet)
    assert dirty.wait(0.0) is None
    dirty.dispatch(events.FileMovedEvent(str(tmp_path / "a.tmp"), path))
    assert dirty.wait(0.0) is not None
    assert dirty.hint.is_set()


# -- settling, by the clock


def test_a_file_that_grows_without_events_waits_another_round(tmp_path):
    dirty = eyes.Dirty(str(tmp_path), ("",), 1.0)
    path = tmp_path / "a.md"
    path.write_text("1", encoding="utf-8")
    dirty.touch(str(path))
    now = time.monotonic()
    assert not dirty.due(now + 0.9)
    path.write_text("12", encoding="utf-8")
    assert not dirty.due(now + 1.1)
    assert not dirty.due(now + 2.0)
    assert dirty.due(now + 2.2)
    assert dirty.wait(now + 2.2) is None


def test_a_file_that_never_rests_does_not_hold_up_the_others(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(eyes.time, "monotonic", lambda: clock[0])
    dirty = eyes.Dirty(str(tmp_path), ("",), 1.0)
    dirty.touch(str(tmp_path / "note.md"))
    read = []
    for _ in range(40):
        clock[0] += 0.25
        dirty.touch(str(tmp_path / "restless.md"))
        if dirty.due(clock[0]):
            read.append(clock[0])
    assert read == [102.0]  # settled after 1 s, waited for the other for 1 s more
    assert dirty.wait(clock[0]) is not None


def test_of_a_crowd_no_path_is_kept_and_one_that_never_rests_is_looked_at_nevertheless(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(eyes.time, "monotonic", lambda: clock[0])
    dirty = eyes.Dirty(str(tmp_path), ("",), 1.0)
    for number in range(eyes.CROWD + 500):
        dirty.touch(str(tmp_path / f"{number}.md"))
    assert not dirty._paths
    assert dirty.due(100.9) == ()
    assert dirty.wait(100.5) == pytest.approx(0.5)
    assert dirty.due(101.0) == (str(tmp_path) + os.sep,)  # the whole vault
    assert dirty.inside((str(tmp_path) + os.sep,)) is None
    assert dirty.wait(101.0) is None
    looked = []
    while clock[0] < 125.0:
        clock[0] += 0.5
        for number in range(eyes.CROWD):
            dirty.touch(str(tmp_path / f"{number + clock[0]}.md"))
        looked += [clock[0]] if dirty.due(clock[0]) else []
    assert len(looked) == 2
    assert looked[1] - looked[0] <= eyes.RESTLESS + 1.0


# -- lost events


@pytest.mark.parametrize("lost", [0.1, 0.5, 1.0])
def test_no_change_is_lost_when_events_are(running, monkeypatch, lost):
    chance = random.Random(7)
    dispatch = eyes.Dirty.dispatch
    monkeypatch.setattr(eyes.Dirty, "dispatch", lambda self, event: None if chance.random() < lost else dispatch(self, event))
    daemon = running(settle=0.05, reconcile=0.4).start()
    root = daemon.workspace.vault
    want: dict[str, str] = {}
    for number in range(120):
        name = f"{chance.randrange(20)}.md"
        if name in want and chance.random() < 0.3:
            (root / name).unlink()
            del want[name]
        else:
            want[name] = f"{number}"
            (root / name).write_text(want[name], encoding="utf-8")
    assert until(lambda: daemon.snapshots[-1] == want)


def test_events_that_come_late_and_in_any_order_lead_to_what_is_there(running, monkeypatch):
    held: list[Any] = []
    dispatch = eyes.Dirty.dispatch
    monkeypatch.setattr(eyes.Dirty, "dispatch", lambda self, event: held.append((self, event)))
    daemon = running(settle=0.05).start()
    root, chance = daemon.workspace.vault, random.Random(3)
    for number in range(6):
        (root / f"п{number}").mkdir()
    for number in range(150):
        notes = sorted(root.rglob("*.md"))
        match chance.randrange(6) if notes else 0:
            case 0 | 1:
                (root / f"п{chance.randrange(6)}" / f"{number}.md").write_text(str(number), encoding="utf-8")
            case 2:
                chance.choice(notes).write_text(str(number), encoding="utf-8")
            case 3:
                chance.choice(notes).unlink()
            case 4:
                chance.choice(notes).rename(root / f"п{chance.randrange(6)}" / f"{number}.md")
            case 5:
                one, other = (root / f"п{place}" for place in chance.sample(range(6), 2))
                one.rename(root / "aside")
                other.rename(one)
                (root / "aside").rename(other)
    want = {path.relative_to(root).as_posix(): path.read_text(encoding="utf-8") for path in root.rglob("*.md")}
    assert until(lambda: len(held) > 100)
    time.sleep(0.3)
    assert len(daemon.snapshots) == 1
    events_held = list(held)
    chance.shuffle(events_held)
    for dirty, event in events_held:
        dispatch(dirty, event)
    assert until(lambda: daemon.snapshots[-1] == want)


def test_a_full_queue_of_the_kernel_brings_a_scan(running):
    daemon = running().start()
    before = len(daemon.snapshots)
    logging.getLogger("watchdog.observers.inotify").warning("Inotify queue overflowed; reconciling")
    assert until(lambda: len(daemon.snapshots) > before)


@pytest.mark.parametrize("how", ["deleted", "renamed"])
def test_a_vault_folder_that_was_replaced_is_watched_again(running, monkeypatch, tmp_path, how):
    monkeypatch.setattr(watch, "ROOT_RETRY", 0.1)
    daemon = running(reconcile=1.0 if how == "renamed" else 1000.0).start()
    root = daemon.workspace.vault
    if how == "deleted":
        shutil.rmtree(root)
        assert until(lambda: daemon.named("problem"))
        assert daemon.named("problem")[0]["code"] == "E-VAULT"
    else:
        root.rename(tmp_path / "old")
    root.mkdir()
    (root / "a.md").write_text("1", encoding="utf-8")
    assert daemon.read("a.md", "1")
    time.sleep(0.1)
    monkeypatch.setattr(watch._Daemon, "turn", only_by_events(watch._Daemon.turn))
    (root / "a.md").write_text("2", encoding="utf-8")
    assert daemon.read("a.md", "2")


def only_by_events(turn: Callable[..., None]) -> Callable[..., None]:
    def turned(self: watch._Daemon, now: float) -> None:
        self.next_scan = now + 1000.0
        turn(self, now)

    return turned


def test_without_events_it_says_so_once_and_scans(running, monkeypatch):
    def refuses(self: Any) -> None:
        raise OSError(errno.ENOSPC, "inotify watch limit reached")

    monkeypatch.setattr(eyes.Observer, "start", refuses)
    daemon = running(reconcile=0.2).start()
    (daemon.workspace.vault / "a.md").write_text("1", encoding="utf-8")
    assert daemon.read("a.md", "1")
    count = len(daemon.snapshots)
    assert until(lambda: len(daemon.snapshots) > count + 2)
    (problem,) = daemon.named("problem")
    assert problem["code"] == "W-WATCH"
    assert "fs.inotify.max_user_watches" in problem["message"]


def edit_all(root: Path, chance: random.Random, count: int) -> dict[str, str]:
    want: dict[str, str] = {}
    for number in range(count):
        name = f"{chance.randrange(20)}.md"
        want[name] = f"{number}"
        (root / name).write_text(want[name], encoding="utf-8")
    return want


def test_without_the_scan_lost_events_are_lost_edits(running, monkeypatch):
    """The control: what the tests above show is the scan's doing."""
    chance = random.Random(7)
    dispatch = eyes.Dirty.dispatch
    monkeypatch.setattr(eyes.Dirty, "dispatch", lambda self, event: None if chance.random() < 0.9 else dispatch(self, event))
    daemon = running(settle=0.05, reconcile=0.2).start()
    monkeypatch.setattr(watch._Daemon, "turn", only_by_events(watch._Daemon.turn))
    want = edit_all(daemon.workspace.vault, chance, 60)
    assert not until(lambda: daemon.snapshots[-1] == want, 2.0)


@pytest.mark.parametrize("who", ["emitter", "reader", "observer"])
def test_a_thread_of_the_watcher_that_died_is_replaced(running, monkeypatch, who):
    daemon = running(settle=0.05, reconcile=1.0).start()
    observer = daemon.daemon.eyes.observer
    if who == "emitter":
        next(iter(observer.emitters)).stop()
    elif who == "reader":
        if (reader := getattr(observer, "_inotify_fd", None)) is None:
            pytest.skip("only Linux's observer has a reader of its own")
        reader.stop()
    else:
        observer.stop()
    assert until(lambda: not daemon.daemon.eyes.see() or daemon.daemon.eyes.observer is not observer)
    (daemon.workspace.vault / "a.md").write_text("1", encoding="utf-8")
    assert daemon.read("a.md", "1")
    assert daemon.daemon.eyes.observer is not observer
    time.sleep(0.2)
    monkeypatch.setattr(watch._Daemon, "turn", only_by_events(watch._Daemon.turn))
    (daemon.workspace.vault / "a.md").write_text("2", encoding="utf-8")
    assert daemon.read("a.md", "2")


def test_a_watcher_that_is_alive_but_deaf_is_told_of_and_trusted_no_more(running, monkeypatch):
    daemon = running(settle=0.05, reconcile=0.3).start()
    with_ledger(daemon)
    assert until(lambda: daemon.daemon.known is not None and daemon.daemon.known.ledger is not None)
    monkeypatch.setattr(eyes.Dirty, "dispatch", lambda self, event: None)
    deaf = daemon.daemon.eyes.observer
    (daemon.workspace.vault / "a.md").write_text("1", encoding="utf-8")
    assert daemon.read("a.md", "1")
    assert until(lambda: daemon.daemon.eyes.observer is not deaf)
    assert until(lambda: [one["code"] for one in daemon.named("problem")] == ["W-WATCH"])
    daemon.daemon.truth.seconds = 1e6  # however much a scan costs: no longer apart than was set
    assert daemon.daemon.doubt
    assert daemon.daemon.pause() == 0.3


def test_scans_are_further_apart_where_they_cost_more_but_only_while_events_are_trusted(running):
    daemon = running(reconcile=60.0).start().daemon
    pauses = []
    for cost in (0.0, 0.1, 0.36, 100.0):
        daemon.truth.seconds = cost
        pauses.append(daemon.pause())
    assert pauses == [60.0, 60.0, pytest.approx(120.0), 600.0]
    for name, value in (("trouble", ("E", "x")), ("away", True), ("doubt", 1)):
        before = getattr(daemon, name)
        setattr(daemon, name, value)
        assert daemon.pause() == 60.0
        setattr(daemon, name, before)
    daemon.eyes.error = "no watches left"
    assert daemon.pause() == 60.0
    daemon.eyes.error = ""


def with_ledger(daemon: Running) -> sqlite3.Connection:
    """A file in the ledger's place, by whose version the daemon knows whether somebody wrote."""
    db = sqlite3.connect(daemon.workspace.ledger, isolation_level=None, check_same_thread=False)
    db.execute("PRAGMA journal_mode = WAL").fetchall()
    db.execute("CREATE TABLE t (x)")
    return db


def test_a_vault_and_a_ledger_that_are_as_they_were_cost_a_scan_and_no_ingest(running):
    daemon = running(settle=0.05, reconcile=0.1)
    db = with_ledger(daemon)
    daemon.start()
    assert until(lambda: daemon.daemon.known is not None)
    scans = count_scans(daemon)
    before = len(daemon.snapshots)
    assert until(lambda: len(scans) >= 5)
    assert len(daemon.snapshots) == before
    db.execute("INSERT INTO t VALUES (1)")  # another process: its `forget --undo`, its killed ingest
    assert until(lambda: len(daemon.snapshots) == before + 1)
    (daemon.workspace.state / "forgotten.json").write_text("{}", encoding="utf-8")
    assert until(lambda: len(daemon.snapshots) == before + 2)
    daemon.daemon.entire = -watch.ENTIRE  # an hour ago
    assert until(lambda: len(daemon.snapshots) == before + 3)
    daemon.workspace.ledger.rename(daemon.workspace.state / "old.db")  # restored from a backup
    with_ledger(daemon).close()
    assert until(lambda: len(daemon.snapshots) > before + 3)
    db.close()


def count_scans(daemon: Running) -> list[float]:
    scans: list[float] = []
    look = daemon.daemon.truth.look

    def looked() -> Any:
        scans.append(time.monotonic())
        return look()

    daemon.daemon.truth.look = looked
    return scans


def test_an_edit_in_place_that_kept_size_and_time_is_found_without_events(running, monkeypatch):
    daemon = running(settle=0.05, reconcile=0.2)
    db = with_ledger(daemon)
    note = daemon.workspace.vault / "a.md"
    note.write_text("один", encoding="utf-8")
    daemon.start()
    assert until(lambda: daemon.daemon.known is not None)
    monkeypatch.setattr(eyes.Dirty, "dispatch", lambda self, event: None)
    before = note.stat()
    note.write_text("нули", encoding="utf-8")
    os.utime(note, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (note.stat().st_size, note.stat().st_mtime_ns) == (before.st_size, before.st_mtime_ns)
    assert daemon.read("a.md", "нули")
    db.close()


@pytest.mark.parametrize("seconds", [3600.0, -86400.0])
def test_a_clock_that_jumps_brings_a_scan_and_breaks_nothing(running, monkeypatch, seconds):
    """As after a sleep of the computer: the clock of the wall went on, that of the system did not."""
    daemon = running(settle=0.05, reconcile=1000.0).start()
    before, clock = len(daemon.snapshots), time.time
    monkeypatch.setattr(time, "time", lambda: clock() + seconds)
    assert until(lambda: len(daemon.snapshots) == before + 1)
    (daemon.workspace.vault / "a.md").write_text("1", encoding="utf-8")
    assert daemon.read("a.md", "1")
    time.sleep(0.3)
    assert len(daemon.snapshots) == before + 2  # one jump, one scan


# -- its child


def test_a_child_that_read_many_notes_goes_at_once_and_another_stays(running, monkeypatch):
    daemon = running(settle=0.05).start()
    (daemon.workspace.vault / "a.md").write_text("1", encoding="utf-8")
    assert daemon.read("a.md", "1")
    assert daemon.ended == []
    monkeypatch.setitem(RESULT, "notes", {**RESULT["notes"], "parsed": watch.HEAVY + 1})
    (daemon.workspace.vault / "a.md").write_text("2", encoding="utf-8")
    assert until(lambda: daemon.ended == [3])


def test_it_beats_while_its_child_works_in_silence(running, monkeypatch):
    daemon = running()
    beats: list[float] = []

    def long(verb: str, beat: Callable[[str], None], **_: Any) -> dict[str, Any]:
        path = daemon.workspace.state / heartbeat.FILE
        os.utime(path, (1.0, 1.0))
        assert until(lambda: beat("") or path.stat().st_mtime > 1.0)
        beats.append(path.stat().st_mtime)
        daemon.stop.set()
        beat("")
        raise AssertionError("it was told to stop")

    monkeypatch.setattr(daemon, "do", long)
    daemon.thread.start()
    assert until(lambda: beats)
    assert until(lambda: daemon.named("stopped"))


# -- trouble


def test_errors_are_logged_and_it_lives_on(running):
    daemon = running(reconcile=0.15)
    daemon.fail = [
        LockedError("another vaultllm (pid 1) is at work"),
        VaultError("30 of 40 known notes have vanished", code="E-VANISHED"),
        VaultError("30 of 40 known notes have vanished", code="E-VANISHED"),
        Ended("its process ended (signal 11)"),
    ]
    daemon.start()
    assert until(lambda: daemon.named("ingested"))
    assert [(one["event"], one.get("code")) for one in daemon.events[1:5]] == [
        ("waiting", "E-LOCKED"),
        ("problem", "E-VANISHED"),
        ("problem", "E-INTERNAL"),
        ("ingested", None),
    ]
    assert daemon.named("problem")[1]["message"] == "its process ended (signal 11)"


def test_a_scan_that_finds_nothing_new_writes_no_line(running, monkeypatch):
    daemon = running(reconcile=0.05)
    monkeypatch.setitem(RESULT, "notes", {**RESULT["notes"], "parsed": 0})
    daemon.start()
    assert until(lambda: len(daemon.snapshots) > 5)
    assert len(daemon.named("ingested")) == 1


def test_an_interrupt_ends_it_and_leaves_nothing(running, monkeypatch):
    daemon = running()

    def interrupted(*_: object, **__: object) -> dict[str, Any]:
        assert stat.S_IMODE((daemon.workspace.state / "daemon.json").stat().st_mode) == 0o600
        raise KeyboardInterrupt

    monkeypatch.setattr(daemon, "do", interrupted)
    watch.run(steps.Job(daemon.workspace), log=daemon.events.append)
    assert [one["event"] for one in daemon.events] == ["started", "stopped"]
    assert not (daemon.workspace.state / "daemon.json").exists()
    assert not [thread for thread in threading.enumerate() if "inotify" in type(thread).__name__.lower()]


# -- the real process


def command(place: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "vaultllm.cli", "--vault", str(place / "v"), "--state", str(place / "s"), "--json", *arguments]


def search(place: Path, query: str) -> list[dict[str, Any]]:
    done = subprocess.run(command(place, "search", query), cwd=REPO, capture_output=True, text=True, check=True)
    hits: list[dict[str, Any]] = json.loads(done.stdout)["hits"]
    return hits


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """What systemd hears of a service."""
    monkeypatch.chdir(tmp_path)  # the name of such a socket is short
    heard: list[str] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        own.bind("told")
        own.settimeout(0.1)
        ended = threading.Event()

        def listen() -> None:
            while not ended.is_set():
                with contextlib.suppress(TimeoutError):
                    heard.extend(own.recv(4096).decode().splitlines())

        thread = threading.Thread(target=listen)
        thread.start()
        yield heard
        ended.set()
        thread.join()


@pytest.fixture
def process(tmp_path: Path, systemd: list[str]) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, Any]]]]:
    (tmp_path / "v" / "заметки").mkdir(parents=True)
    (tmp_path / "v" / "заметки" / "колодец.md").write_text("# Колодец\nГлубина колодца девять метров.\n", encoding="utf-8")
    subprocess.run(
        [sys.executable, "-m", "vaultllm.cli", "--state", str(tmp_path / "s"), "init", str(tmp_path / "v")], cwd=REPO, check=True
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "told")}
    with subprocess.Popen(command(tmp_path, "watch"), cwd=REPO, env=environment, text=True, **pipes) as daemon:
        log: list[dict[str, Any]] = []
        assert daemon.stdout is not None
        reader = threading.Thread(target=lambda: log.extend(json.loads(line) for line in daemon.stdout), daemon=True)
        reader.start()
        assert until(lambda: any(one["event"] == "ingested" for one in log), 120.0)
        yield daemon, log
        daemon.kill()
    reader.join(5)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_saved_note_is_found_and_sigterm_ends_it(process, tmp_path, systemd):
    daemon, log = process
    assert until(lambda: {"READY=1", "WATCHDOG=1"} <= set(systemd))
    assert search(tmp_path, "глубина колодца")[0]["path"] == "заметки/колодец.md"

    facts = json.loads((tmp_path / "s" / "daemon.json").read_text(encoding="utf-8"))
    assert facts["pid"] == daemon.pid
    second = subprocess.run(command(tmp_path, "watch"), cwd=REPO, capture_output=True, text=True, timeout=120)
    assert second.returncode == 75
    assert f"pid {daemon.pid}" in second.stderr
    assert (tmp_path / "s" / "daemon.json").exists()
    alive = heartbeat.look(tmp_path / "s")
    assert (alive["alive"], alive["doing"], alive["last"]["read"]) == (True, "watching", 1)

    (tmp_path / "v" / "заметки" / "Выдра.md").write_text("# Выдра\nБайдарка течёт у третьего шпангоута.\n", encoding="utf-8")
    assert until(lambda: any(hit["path"] == "заметки/Выдра.md" for hit in search(tmp_path, "где течёт байдарка")), 60.0)

    time.sleep(0.5)
    if Path("/proc/self/stat").exists():
        before = cpu_seconds(daemon.pid)
        time.sleep(1.5)
        assert cpu_seconds(daemon.pid) - before <= 0.03

    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(30.0) == 0
    assert until(lambda: log[-1]["event"] == "stopped", 10.0)
    assert until(lambda: systemd[-1] == "STOPPING=1")
    assert not (tmp_path / "s" / "daemon.json").exists()
    text = json.dumps(log, ensure_ascii=False)
    assert "метров" not in text
    assert "Байдарка" not in text
    assert "Выдра" not in text


def test_a_killed_daemon_leaves_the_lock_free(process, tmp_path):
    daemon, _ = process
    daemon.kill()
    daemon.wait(5)
    assert heartbeat.look(tmp_path / "s")["alive"] is False
    with subprocess.Popen(command(tmp_path, "watch"), cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as again:
        assert again.stdout is not None
        assert json.loads(again.stdout.readline())["event"] == "started"
        again.send_signal(signal.SIGINT)
        assert again.wait(30) == 0
