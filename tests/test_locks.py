from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultllm import locks
from vaultllm.database import Database
from vaultllm.errors import LockedError, VaultError
from vaultllm.schema import Progress

REPO = Path(__file__).parents[1]
HOLD = """
import sys, time
from pathlib import Path
from vaultllm import locks
sys.argv = ["/usr/bin/vaultllm", "--vault", "a private name", "ask", "a private question"]
with locks.held(Path("LOCK"), 5.0):
    print("held", flush=True)
    time.sleep(60)
"""


@contextlib.contextmanager
def another(path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that holds a lock."""
    said = HOLD.replace("LOCK", str(path))
    with subprocess.Popen([sys.executable, "-c", said], cwd=REPO, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
        process.kill()


def test_who_waits_is_told_whom_for_and_who_gives_up_too(tmp_path: Path) -> None:
    said: list[Progress] = []
    with another(tmp_path / "train.lock") as process:
        whom = f"vaultllm ask (pid {process.pid})"
        assert locks.holder(tmp_path / "train.lock") == locks.at_work(tmp_path) == whom
        with pytest.raises(LockedError) as locked:
            locks.take(tmp_path / "train.lock", 1.1, waiting=said.append)
    assert [one.phase for one in said] == [f"waiting for {whom}"]
    assert locked.value.message == f"{whom} is at work on this state; try again when it is done"
    assert locked.value.exit_code == 75
    assert (tmp_path / "train.pid").stat().st_mode & 0o777 == 0o600
    assert "private" not in (tmp_path / "train.pid").read_text()


def test_a_lock_is_free_at_once_when_its_holder_is_killed_whoever_has_its_pid_by_now(tmp_path: Path) -> None:
    with another(tmp_path / "lock") as process:
        process.kill()
        process.wait()
    assert (tmp_path / "lock.pid").read_text() == f"{process.pid} vaultllm ask\n"
    assert locks.holder(tmp_path / "lock") == ""
    (tmp_path / "lock.pid").write_text(f"{os.getppid()} vaultllm ask\n")  # another program lives under this number
    began = time.monotonic()
    with locks.held(tmp_path / "lock", 0.0):
        assert f"(pid {os.getpid()})" in locks.holder(tmp_path / "lock")
    assert time.monotonic() - began < 0.5
    assert locks.at_work(tmp_path) == ""


def test_a_lock_counts_between_threads_and_for_its_holder_and_comes_when_it_is_free(tmp_path: Path) -> None:
    first = locks.take(tmp_path / "lock", 0.0)
    with pytest.raises(LockedError):
        locks.take(tmp_path / "lock", 0.0)
    threading.Timer(0.3, first.release).start()
    with locks.held(tmp_path / "lock", 30.0):
        assert (tmp_path / "lock.pid").exists()
    assert not (tmp_path / "lock.pid").exists()


@pytest.mark.parametrize("said", ["", "x", "0 vaultllm", "-1 vaultllm", "99999999999999999999 x", "4194304999 x", b"\xff\xfe"])
def test_who_does_not_say_his_name_is_another_vaultllm(tmp_path: Path, said: str | bytes) -> None:
    lock = locks.take(tmp_path / "lock", 0.0)
    (tmp_path / "lock.pid").write_bytes(said if isinstance(said, bytes) else said.encode())
    with pytest.raises(LockedError, match="another vaultllm"):
        locks.take(tmp_path / "lock", 0.0)
    lock.release()


def test_what_is_no_file_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "lock").mkdir()
    with pytest.raises(VaultError, match="remove it"):
        locks.take(tmp_path / "lock", 0.0)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        (["/usr/bin/vaultllm", "--state", "search", "-q", "ingest", "--full"], "vaultllm ingest"),
        (["/opt/vaultllm/__main__.py", "watch"], "vaultllm watch"),
        (["/opt/vaultllm/cli.py"], "vaultllm"),
        (["/usr/bin/pytest", "-q", "tests"], "pytest"),
        ([""], "python"),
        ([], "python"),
    ],
)
def test_a_process_is_named_by_its_command_without_what_it_was_asked(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], name: str
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    assert locks.command() == name


def test_who_waits_in_vain_for_sqlite_is_told_who_is_at_work(tmp_path: Path) -> None:
    from vaultllm.database import explained

    with Database(tmp_path / "ledger.db") as first, Database(tmp_path / "ledger.db") as second, locks.held(tmp_path / "lock", 0.0):
        second.db.execute("PRAGMA busy_timeout = 10")
        with first.transaction(), pytest.raises(sqlite3.OperationalError) as busy, second.transaction():
            pass
        said = explained(busy.value, tmp_path / "ledger.db")
        assert isinstance(said, LockedError)
        assert f"at work: {locks.command()} (pid {os.getpid()})" in said.message
