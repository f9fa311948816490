"""Limits of reading: kills are survived, limits are the system's, time grows as the note does; and each of these can be seen to fail."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from vaultllm import reading, workers
from vaultllm.config import Settings
from vaultllm.ledger import Ledger
from vaultllm.schema import Problem
from vaultllm.selftest import limits

pytestmark = [pytest.mark.children, pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the system's limits are Linux's")]


def test_a_parser_that_is_killed_again_and_again_costs_its_note_alone_and_bombs_cost_what_they_weigh(tmp_path: Path) -> None:
    found = limits.run(tmp_path, "quick", 0, lambda _: None)
    assert found.failures == []
    assert found.figures["kills"] == 10
    assert 0 < float(found.figures["worst_ratio"]) < limits.LONGEST
    assert 0 < float(found.figures["worst_cpu_s_per_mb"]) < 10
    assert 0 < float(found.figures["peak_rss_mb"]) < limits.MOST_MB


def test_a_child_without_limits_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its limit of CPU time the clock ends a note that spins, three times as late; what eats memory then gets it."""
    unlimited = limits.PLANTED.replace(
        "workers.serve()", "workers._limit_memory = workers._limit_time = lambda most: None\nworkers.serve()"
    )
    monkeypatch.setattr(limits, "PLANTED", unlimited.replace("range(4096)", "range(300)"))
    failures, figures = limits.limited()
    assert failures == ["a note that spins, one that eats memory and a good one: ['E-TIME', 'read', 'read']"]
    assert float(figures["limits_s"]) >= 3.0


def test_a_note_that_takes_its_reader_along_every_time_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that forgets whom it has quarantined, and one that does not say what happened."""
    monkeypatch.setattr(Ledger, "quarantine", lambda *_: None)
    failures, _ = limits.kills(tmp_path / "a", 1, lambda _: None)
    assert failures == ["a note that kills its reader is tried again though it is the same"]
    monkeypatch.undo()
    blame = workers._Worker._blame
    monkeypatch.setattr(workers._Worker, "_blame", lambda self, process: blame(self, process) and Problem("E-BUG", "?"))
    failures, _ = limits.kills(tmp_path / "b", 1, lambda _: None)
    assert failures == ["kill 0 by FAULT: told ['E-BUG'], read 1"]


def test_a_parser_that_is_quadratic_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(path: str, data: bytes, settings: Settings, *rest: object) -> None:
        for _ in range(len(data) // 200):
            data.count(b"never there")

    monkeypatch.setattr(reading, "read_note", slow)
    monkeypatch.setattr(limits, "BOMBS", {"brackets": limits.BOMBS["brackets"]})
    monkeypatch.setattr(limits, "_peak", lambda *_: 1.0)
    _, failures = limits.bombs(100_000, lambda _: None)
    assert failures
    assert failures[0].startswith("brackets: ")
