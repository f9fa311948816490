"""Thousands of notes at once beside a real daemon: none is missed; a daemon that takes no notice of a full queue misses them."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from vaultllm.selftest import bursts

CARELESS = """
import sys
from vaultllm import cli, watch
watch._Daemon.soon = lambda self: None
cli.main(sys.argv[1:])
"""


@pytest.fixture(autouse=True)
def fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The trial is the same, the machine is shared."""
    monkeypatch.setitem(bursts._SIZES, "quick", (120, 60, 2, 240.0))


@pytest.mark.skipif(not bursts._QUEUE.exists(), reason="inotify is Linux's")
def test_none_of_a_burst_is_missed_nor_of_what_changed_while_the_queue_was_full(tmp_path: Path) -> None:
    told: list[str] = []
    found = bursts.run(tmp_path, "quick", 0, told.append)
    assert found.failures == []
    assert found.holds
    assert found.figures["overflows"] >= 1
    assert found.figures["own_notes_ingests"] == 0
    assert found.tried == 120 + 60 + found.figures["renamed_notes"] + 100 + 2
    assert len(told) == 3


@pytest.mark.skipif(not bursts._QUEUE.exists(), reason="inotify is Linux's")
def test_the_trial_finds_a_daemon_that_takes_no_notice_of_a_full_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for part in ("burst", "renamed", "ours", "saved"):
        monkeypatch.setattr(bursts._Trial, part, lambda *_: None)
    found = bursts.run(tmp_path, "quick", 0, lambda _: None, (sys.executable, "-c", CARELESS), 8.0)
    assert not found.holds
    assert len(found.failures) == 1
    assert re.search(r"60 notes while it was stopped: 60 notes are not in the state after ([89]|1\d) s", found.failures[0])


@pytest.mark.skipif(not bursts._QUEUE.exists(), reason="inotify is Linux's")
def test_a_daemon_that_does_not_live_is_told_at_once(tmp_path: Path) -> None:
    found = bursts.run(tmp_path, "quick", 0, lambda _: None, (sys.executable, "-c", "raise SystemExit(3)"))
    assert not found.holds
    assert found.seconds < 100
    assert any("the daemon ended with 3" in one for one in found.failures)


def test_where_no_queue_tells_its_length_nothing_is_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bursts, "_QUEUE", tmp_path / "no")
    found = bursts.run(tmp_path, "quick", 0, lambda _: None)
    assert (found.tried, bool(found.skipped), found.holds) == (0, True, False)
