"""Signs of life: who listens hears them, who looks is not told that the dead live."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vaultllm import heartbeat


def test_a_beat_touches_the_file_and_news_are_written_into_it(tmp_path: Path) -> None:
    with heartbeat.beating(tmp_path, tmp_path / "v") as heart:
        path = tmp_path / heartbeat.FILE
        assert path.stat().st_mode & 0o777 == 0o600
        first = path.read_bytes()
        os.utime(path, (0, 0))
        heart._last = 0.0  # as if the last beat was long ago
        heart.beat()
        assert (path.read_bytes(), path.stat().st_mtime > 0) == (first, True)
        heart.beat("reading", {"event": "ingested", "read": 3})
        seen = heartbeat.look(tmp_path)
        assert seen is not None
        assert (seen["alive"], seen["doing"], seen["last"]["read"], seen["silent"] < 60) == (True, "reading", 3, True)
        path.unlink()  # somebody tidied up: it is there again with the next beat
        heart._last = 0.0
        heart.beat()
        assert heartbeat.look(tmp_path) is not None
    assert heartbeat.look(tmp_path) is None


def test_work_that_tells_of_its_progress_often_does_not_write_often(tmp_path: Path) -> None:
    with heartbeat.beating(tmp_path, tmp_path) as heart:
        heart.beat("reading")
        path = tmp_path / heartbeat.FILE
        os.utime(path, (0, 0))
        for _ in range(1000):
            heart.beat("reading")
        assert path.stat().st_mtime == 0


def test_the_dead_and_the_silent_are_not_alive(tmp_path: Path) -> None:
    with heartbeat.beating(tmp_path, tmp_path):
        path = tmp_path / heartbeat.FILE
        late = time.time() - heartbeat.LATE - 1
        os.utime(path, (late, late))
        seen = heartbeat.look(tmp_path)
        assert seen is not None
        assert (seen["alive"], seen["silent"] > heartbeat.LATE) == (False, True)
        with subprocess.Popen([sys.executable, "-c", ""]) as gone:
            pass
        path.write_text(path.read_text(encoding="utf-8").replace(f'"pid": {os.getpid()}', f'"pid": {gone.pid}'), encoding="utf-8")
        seen = heartbeat.look(tmp_path)
        assert seen is not None
        assert (seen["alive"], seen["silent"] < 60) == (False, True)
        for broken in ("", "[]", "{", '{"pid": "x"}', '{"pid": null}'):
            path.write_text(broken, encoding="utf-8")
            assert heartbeat.look(tmp_path) is None


@pytest.mark.parametrize("abstract", [False, True])
def test_what_is_told_arrives_as_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool) -> None:
    if abstract and not sys.platform.startswith("linux"):
        pytest.skip("names without a file are Linux's")
    monkeypatch.chdir(tmp_path)
    name = f"@vaultllm-{os.getpid()}" if abstract else "n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(name.replace("@", "\0"))
        heard.settimeout(2.0)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        assert heartbeat.tell("READY=1", "STATUS=видит\nREADY=0")
        assert heard.recv(4096).decode() == "READY=1\nSTATUS=видит READY=0"


def test_a_listener_that_does_not_read_holds_nobody_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as deaf:
        deaf.bind("n")
        monkeypatch.setenv("NOTIFY_SOCKET", "n")
        monkeypatch.setattr(heartbeat, "_HEARD", 0.01)
        told = [heartbeat.tell("WATCHDOG=1")]
        while told[-1] and len(told) < 1_000:  # the system keeps some for it
            told.append(heartbeat.tell("WATCHDOG=1"))
        assert told[0]
        assert not told[-1]


def test_without_a_listener_nothing_is_told_and_nothing_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not heartbeat.tell("READY=1")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not heartbeat.tell("READY=1")
