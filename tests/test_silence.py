"""No command reaches for a network that nobody named; what would reach is caught."""

from __future__ import annotations

from pathlib import Path

import pytest

from vaultllm.selftest import silence


def quiet(line: str) -> None:
    """Nobody reads along."""


def test_no_command_reaches_for_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = silence.run(tmp_path, "quick", 0, quiet)
    assert found.failures == []
    assert found.holds
    assert found.tried >= 12
    assert found.figures["attempts"] == 0
    assert found.figures["controls"] == len(silence._CONTROLS) >= 5


def test_a_command_that_does_and_a_control_that_does_not_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))\n"
    monkeypatch.setattr(silence, "_TOGETHER", broken + silence._TOGETHER)
    monkeypatch.setattr(silence, "_QUICK", (("runs",),))
    found = silence.run(tmp_path, "quick", 0, quiet, controls={"nothing": "pass"})
    assert not found.holds
    assert any("the control was not noted: nothing" in one for one in found.failures)
    assert any("socket.sendto ('192.0.2.1', 9)" in one for one in found.failures)
