"""What the long run measures, and that it fails when a daemon leaks, sleeps or dies; the vault between two syncthings."""

from __future__ import annotations

import datetime as dt
import itertools
import os
import random
import subprocess
import sys
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from vaultllm.selftest import gauges, soak, synced
from vaultllm.selftest.life import Life

pytestmark = pytest.mark.usefixtures("learns_later")
linux = pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="what a process takes is read from Linux' /proc")
SAMPLE = gauges.Sample(0.0, 100.0, 150.0, 14, 4, 1, 0.0, 1.0, 0.1)

# Says that it has read the vault, and never looks at it again.
SLEEPER = (
    'import time, signal, sys; signal.signal(15, lambda *_: sys.exit(0)); print(\'{"event": "ingested"}\', flush=True); time.sleep(900)'
)


def quiet(_: str) -> None:
    """Nobody listens."""


# -- gauges


def test_the_slope_of_what_does_not_grow_has_nothing_in_its_interval_but_noise_and_that_of_a_leak_is_found() -> None:
    chance = random.Random(1)
    noise = [(hour / 10, 150 + chance.gauss(0, 8)) for hour in range(720)]
    flat, leak = gauges.slope(noise), gauges.slope([(hour, mb + 1.5 * hour) for hour, mb in noise])
    assert flat is not None
    assert leak is not None
    assert flat.low < 0 < flat.high
    assert flat.high - flat.low < 0.2
    assert leak.low < 1.5 < leak.high
    assert leak.low > 1.3
    assert gauges.slope(noise[:47]) is None


def test_the_interval_holds_the_true_slope_about_nineteen_times_in_twenty() -> None:
    chance = random.Random(2)
    held = 0
    for _ in range(200):
        found = gauges.slope([(hour, 0.3 * hour + chance.gauss(0, 5)) for hour in range(160)])
        assert found is not None
        held += found.low <= 0.3 <= found.high
    assert 180 <= held <= 199


def test_what_has_grown_is_told_from_what_swings() -> None:
    assert gauges.grown([14, 16, 12] * 40) == 0
    assert gauges.grown([14] * 50 + [40] * 50) == 26
    assert gauges.grown([14, 90]) == 0


@linux
def test_a_process_is_looked_at_with_all_below_it(tmp_path: Path) -> None:
    before = gauges.sample(os.getpid(), 1.0, tmp_path / "wal", tmp_path / "log")
    (tmp_path / "wal").write_bytes(bytes(2**20))
    inner = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'input()'], stdin=0)"
    with subprocess.Popen([sys.executable, "-c", inner], stdin=subprocess.PIPE) as child, (tmp_path / "log").open("w"):
        while len(gauges.descendants(child.pid)) < 1:
            assert child.poll() is None
        after = gauges.sample(os.getpid(), 2.0, tmp_path / "wal", tmp_path / "log")
        child.communicate(b"\n")
    assert before is not None
    assert after is not None
    assert after.children >= before.children + 2
    assert after.files > before.files
    assert after.tree_mb > before.tree_mb
    assert after.wal_mb == 1.0
    assert child.returncode == 0
    assert gauges.sample(child.pid, 3.0, tmp_path / "wal", tmp_path / "log") is None


# -- the long run


def test_its_hours_pass_over_both_changes_of_the_clock_a_day_back_and_a_year_forward() -> None:
    hours = [soak.at_hour(hour) for hour in range(soak.HOURS)]
    steps = [(b - a).total_seconds() / 3600 for a, b in itertools.pairwise(hours)]
    assert min(steps) < -23
    assert max(steps) > 24 * 300
    offsets = [when.utcoffset() for when in hours]
    assert offsets[0] == dt.timedelta(hours=2)
    assert offsets[47] == dt.timedelta(hours=1)
    assert (offsets[48], offsets[71]) == (dt.timedelta(hours=1), dt.timedelta(hours=2))
    walls = [when.hour for when in hours[20:32]]
    assert walls.count(2) == 2  # in autumn an hour comes twice
    assert 2 not in [when.hour for when in hours[55:68] if when.date() == dt.date(2026, 3, 29)]  # in spring it is left out


@pytest.mark.parametrize(
    ("growing", "said"),
    [
        ({"rss_mb": 1.4}, "rss_mb grows"),
        ({"tree_mb": 1.4}, "tree_mb grows"),
        ({"files": 0.3}, "files more"),
        ({"threads": 0.3}, "threads more"),
        ({"wal_mb": 1.0}, "wal_mb rose"),
        ({"log_mb": 0.5}, "log_mb rose"),
        ({}, ""),
    ],
)
def test_a_daemon_that_takes_more_and_more_is_found(growing: dict[str, float], said: str) -> None:
    samples = []
    for number in range(720):
        at = number / 10
        more = {name: type(getattr(SAMPLE, name))(getattr(SAMPLE, name) + by * at) for name, by in growing.items()}
        samples.append(replace(SAMPLE, at=at, **more))
    found = soak._misbehaved(samples, judged=True)
    assert len(found) == (1 if said else 0)
    assert said in "".join(found)


@linux
def test_a_day_and_a_night_three_times_over_leave_the_state_of_a_clean_rebuild(tmp_path: Path) -> None:
    found = soak.run(tmp_path, "quick", 0, quiet)
    assert list(found.failures) == []
    assert found.holds
    assert found.tried > 80
    assert found.figures["forgotten"] == 1
    assert int(found.figures["edits_timed"]) > 3
    assert (found.figures["clock"] == "73 leaps") == bool(soak.library())
    assert "<svg" in (tmp_path / "soak.svg").read_text(encoding="utf-8")
    assert len((tmp_path / "samples.jsonl").read_text(encoding="utf-8").splitlines()) > 60


@linux
def test_a_daemon_that_reads_nothing_more_does_not_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak._Run, "due", lambda *_: None)
    found = soak.run(tmp_path, "quick", 0, quiet, program=(sys.executable, "-c", SLEEPER), patience=0.0)
    assert any("not that of a clean rebuild (" in what or "not that of a clean rebuild:" in what for what in found.failures)
    assert not found.holds


def test_a_file_of_the_user_that_was_changed_or_lost_is_told(tmp_path: Path) -> None:
    life = Life(tmp_path, 0)
    paths = [life.create() for _ in range(4)]
    assert life.wrong() == []
    (tmp_path / paths[0]).write_text("ours", encoding="utf-8")
    (tmp_path / paths[1]).unlink()
    (tmp_path / "new.md").write_text("whose?", encoding="utf-8")
    wrong = " ".join(life.wrong())
    for what in (f"{paths[0]} was changed", f"{paths[1]} is lost", "new.md was not written"):
        assert what in wrong


def test_the_same_seed_lives_the_same_life(tmp_path: Path) -> None:
    lives = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        life = Life(tmp_path / name, 7)
        for _ in range(6):
            life.create()
        for _ in range(5):
            for act in (life.edit, life.type, life.rename, life.conflict, life.delete):
                act()
        lives.append(life.holds)
    assert lives[0] == lives[1]


# -- two machines


def test_the_two_devices_know_each_other_alone(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.xml").write_text(
        '<configuration><device id="A"/><gui><address>127.0.0.1:8384</address></gui>'
        "<options><globalAnnounceEnabled>true</globalAnnounceEnabled><relaysEnabled>true</relaysEnabled><urAccepted>0</urAccepted>"
        "<listenAddress>default</listenAddress></options></configuration>",
        encoding="utf-8",
    )
    ours, theirs = (synced.Device(home, tmp_path, name, port, port + 1, "k") for name, port in (("A", 1001), ("B", 2001)))
    synced.joined(ours, theirs)
    root = ET.parse(home / "config.xml").getroot()
    options = {one.tag: one.text for one in root.find("options") or ()}
    assert options == {**synced._CLOSED, "listenAddress": "tcp://127.0.0.1:1001"}
    assert [one.text for one in root.iter("address")] == ["127.0.0.1:1002", "tcp://127.0.0.1:2001"]
    assert {one.get("id") for one in root.iter("device")} == {"A", "B"}


def test_a_text_that_no_file_holds_any_more_is_lost(tmp_path: Path) -> None:
    side = synced._Side(synced.Device(tmp_path, tmp_path, "A", 1, 2, "k"), "a", 0)
    path = side.life.create()
    side.written = [side.life.holds[path]]
    assert synced._missing(tmp_path, (side, side)) == []
    (tmp_path / path).write_text("the other one's", encoding="utf-8")
    assert synced._missing(tmp_path, (side,)) == ["a text that a wrote is lost"]  # type: ignore[arg-type]


def test_two_machines_that_edit_at_once_lose_nothing(tmp_path: Path) -> None:
    found = synced.run(tmp_path, "quick", 0, quiet)
    if found.skipped:
        pytest.skip(found.skipped)
    assert list(found.failures) == []
    assert found.figures["conflict_copies"] == 2
    assert found.figures["answers"] == 1


def test_without_syncthing_the_reason_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    found = synced.run(tmp_path / "work", "quick", 0, quiet)
    assert "syncthing is not installed" in found.skipped
    assert not found.holds
