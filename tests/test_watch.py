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

from vaultllm import config, heartbeat, steps, vault, watch, workers
from vaultllm.errors import LockedError, VaultError

# watchdog's reader thread would die of this warning here, where warnings are errors; the daemon ignores it.
pytestmark = [pytest.mark.filterwarnings("ignore:Callback with id:RuntimeWarning"), pytest.mark.children]

REPO = Path(__file__).resolve().parents[1]
RESULT = {
    "notes": {"seen": 1, "parsed": 1, "unchanged": 0, "removed": 0, "failed": []},
    "scenes": {"added": 1, "changed": 0, "removed": 0, "total": 1},
    "memory": {"away": "no memory here"},
    "seconds": 0.0,
}


def until(true: Callable[[], Any], seconds: float = 5.0) -> bool:
    """Wait until something is so; False when it did not come in time."""
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


class Running:
    """A daemon in a thread; its ingest only looks at the files (the real one is tried in a process of its own)."""

    def __init__(self, workspace: config.Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
        self.workspace = workspace
        self.events: list[dict[str, Any]] = []
        self.snapshots: list[dict[str, str]] = []
        self.fail: list[Exception] = []
        self.named_only: list[tuple[str, ...] | None] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._run)
        monkeypatch.setattr(steps, "ingest", self._ingest)
        monkeypatch.setattr(steps, "ingest_named", self._ingest)
        monkeypatch.setattr(watch, "STOP_TICK", 0.05)

    def _ingest(self, job: steps.Job, only: tuple[str, ...] | None = None) -> dict[str, Any]:
        self.named_only.append(only)
        if self.fail:
            raise self.fail.pop(0)
        found = vault.scan(self.workspace.vault, self.workspace.settings.scan, self.workspace.settings.own_folders, only)
        kept = {} if only is None else {path: text for path, text in self.snapshots[-1].items() if path not in only}
        self.snapshots.append(kept | {file.path: (self.workspace.vault / file.path).read_text(encoding="utf-8") for file in found.files})
        return RESULT

    def _run(self) -> None:
        watch.run(steps.Job(self.workspace), log=self.events.append, stop=self.stop)

    def start(self) -> Running:
        self.thread.start()
        assert until(lambda: self.snapshots or self.events[1:])
        return self

    def named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.events if one["event"] == event]

    def read(self, path: str, text: str | None, seconds: float = 5.0) -> bool:
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
            daemon.thread.join(5)
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


def test_a_steady_stream_of_saves_does_not_put_the_scan_off(running):
    daemon = running(settle=0.05, reconcile=0.6).start()
    end = time.monotonic() + 2.0
    while time.monotonic() < end:
        (daemon.workspace.vault / "а.md").write_text(str(time.monotonic()), encoding="utf-8")
        time.sleep(0.1)
    assert daemon.named_only.count(None) >= 3
    assert daemon.named_only.count(("а.md",)) >= 3


def test_a_child_that_reads_starts_while_a_note_settles_and_none_waits_longer(running, monkeypatch):
    said: list[tuple[str, int]] = []
    daemon = running(settle=0.3)
    monkeypatch.setattr(workers, "stand_by", lambda: said.append(("by", len(daemon.snapshots))))
    monkeypatch.setattr(workers, "stand_down", lambda: said.append(("down", len(daemon.snapshots))))
    daemon.start()
    assert until(lambda: said[-1:] == [("down", 1)])
    (daemon.workspace.vault / "а.md").write_text("один", encoding="utf-8")
    assert daemon.read("а.md", "один")
    assert until(lambda: said[-1] == ("down", 2))
    assert ("by", 1) in said


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
    dirty = watch.Dirty("/v", ("Ответы",), 1.0)
    assert dirty.concerns(path, folder) is concerns


def test_opened_and_closed_without_writing_are_no_hints(tmp_path):
    dirty = watch.Dirty(str(tmp_path), ("",), 1.0)
    path = str(tmp_path / "a.md")
    for quiet in (events.FileOpenedEvent(path), events.FileClosedNoWriteEvent(path), events.DirModifiedEvent(str(tmp_path))):
        dirty.dispatch(quiet)
    assert dirty.wait(0.0) is None
    dirty.dispatch(events.FileMovedEvent(str(tmp_path / "a.tmp"), path))
    assert dirty.wait(0.0) is not None
    assert dirty.hint.is_set()


# -- settling, by the clock


def test_a_file_that_grows_without_events_waits_another_round(tmp_path):
    dirty = watch.Dirty(str(tmp_path), ("",), 1.0)
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
    monkeypatch.setattr(watch.time, "monotonic", lambda: clock[0])
    dirty = watch.Dirty(str(tmp_path), ("",), 1.0)
    dirty.touch(str(tmp_path / "note.md"))
    read = []
    for _ in range(40):
        clock[0] += 0.25
        dirty.touch(str(tmp_path / "restless.md"))
        if dirty.due(clock[0]):
            read.append(clock[0])
    assert read == [102.0]  # settled after 1 s, waited for the other for 1 s more
    assert dirty.wait(clock[0]) is not None


# -- lost events


@pytest.mark.parametrize("lost", [0.1, 0.5, 1.0])
def test_no_change_is_lost_when_events_are(running, monkeypatch, lost):
    chance = random.Random(7)
    dispatch = watch.Dirty.dispatch
    monkeypatch.setattr(watch.Dirty, "dispatch", lambda self, event: None if chance.random() < lost else dispatch(self, event))
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
    assert until(lambda: daemon.snapshots[-1] == want, 3.0)


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

    monkeypatch.setattr(watch.Observer, "start", refuses)
    daemon = running(reconcile=0.2).start()
    (daemon.workspace.vault / "a.md").write_text("1", encoding="utf-8")
    assert daemon.read("a.md", "1")
    count = len(daemon.snapshots)
    assert until(lambda: len(daemon.snapshots) > count + 2)
    (problem,) = daemon.named("problem")
    assert problem["code"] == "W-WATCH"
    assert "fs.inotify.max_user_watches" in problem["message"]


# -- trouble


def test_errors_are_logged_and_it_lives_on(running):
    daemon = running(reconcile=0.15)
    daemon.fail = [
        LockedError("another vaultllm (pid 1) is at work"),
        VaultError("30 of 40 known notes have vanished", code="E-VANISHED"),
        VaultError("30 of 40 known notes have vanished", code="E-VANISHED"),
        RuntimeError("the text of a note"),
    ]
    daemon.start()
    assert until(lambda: daemon.named("ingested"))
    assert [(one["event"], one.get("code")) for one in daemon.events[1:5]] == [
        ("waiting", "E-LOCKED"),
        ("problem", "E-VANISHED"),
        ("problem", "E-INTERNAL"),
        ("ingested", None),
    ]
    assert "the text of a note" not in json.dumps(daemon.events)


def test_a_scan_that_finds_nothing_new_writes_no_line(running, monkeypatch):
    daemon = running(reconcile=0.05)
    monkeypatch.setitem(RESULT, "notes", {**RESULT["notes"], "parsed": 0})
    daemon.start()
    assert until(lambda: len(daemon.snapshots) > 5)
    assert len(daemon.named("ingested")) == 1


def test_an_interrupt_ends_it_and_leaves_nothing(running, monkeypatch):
    daemon = running()

    def interrupted(job: steps.Job) -> dict[str, Any]:
        assert stat.S_IMODE((job.workspace.state / "daemon.json").stat().st_mode) == 0o600
        raise KeyboardInterrupt

    monkeypatch.setattr(steps, "ingest", interrupted)
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
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which systemd listens to a service."""
    monkeypatch.chdir(tmp_path)  # the name of such a socket is short
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("told")
        heard.setblocking(False)
        yield heard


def told(heard: socket.socket) -> list[str]:
    lines: list[str] = []
    with contextlib.suppress(BlockingIOError):
        while True:
            lines += heard.recv(4096).decode().splitlines()
    return lines


@pytest.fixture
def process(tmp_path: Path, systemd: socket.socket) -> Iterator[tuple[subprocess.Popen[str], list[dict[str, Any]]]]:
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
        assert until(lambda: any(one["event"] == "ingested" for one in log), 20.0)
        yield daemon, log
        daemon.kill()
    reader.join(5)


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_a_saved_note_is_found_within_five_seconds_and_sigterm_ends_it_within_two(process, tmp_path, systemd):
    daemon, log = process
    assert {"READY=1", "WATCHDOG=1"} <= set(told(systemd))
    assert search(tmp_path, "глубина колодца")[0]["path"] == "заметки/колодец.md"

    facts = json.loads((tmp_path / "s" / "daemon.json").read_text(encoding="utf-8"))
    assert facts["pid"] == daemon.pid
    second = subprocess.run(command(tmp_path, "watch"), cwd=REPO, capture_output=True, text=True, timeout=20)
    assert second.returncode == 75
    assert f"pid {daemon.pid}" in second.stderr
    assert (tmp_path / "s" / "daemon.json").exists()
    alive = heartbeat.look(tmp_path / "s")
    assert (alive["alive"], alive["doing"], alive["last"]["read"]) == (True, "watching", 1)

    saved = time.monotonic()
    (tmp_path / "v" / "заметки" / "Выдра.md").write_text("# Выдра\nБайдарка течёт у третьего шпангоута.\n", encoding="utf-8")
    assert until(lambda: any(hit["path"] == "заметки/Выдра.md" for hit in search(tmp_path, "где течёт байдарка")), 5.0)
    assert time.monotonic() - saved < 5.0

    time.sleep(0.5)
    if Path("/proc/self/stat").exists():
        before = cpu_seconds(daemon.pid)
        time.sleep(1.5)
        assert cpu_seconds(daemon.pid) - before <= 0.03

    stopped = time.monotonic()
    daemon.send_signal(signal.SIGTERM)
    assert daemon.wait(2.0) == 0
    assert time.monotonic() - stopped < 2.0
    assert until(lambda: log[-1]["event"] == "stopped", 2.0)
    assert told(systemd)[-1] == "STOPPING=1"
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
        assert again.wait(5) == 0
