"""The daemon's child: what it does, how it dies, how it goes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultllm import config, hands
from vaultllm.errors import LockedError, VaultllmError
from vaultllm.follower import Follower
from vaultllm.ledger import Ledger

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def workspace(tmp_path: Path) -> config.Workspace:
    vault = tmp_path / "v"
    vault.mkdir()
    (vault / "колодец.md").write_text("# Колодец\n\nГлубина колодца девять метров.\n", encoding="utf-8")
    return config.init_workspace(vault, str(tmp_path / "s"))


@pytest.fixture
def made(workspace: config.Workspace) -> Iterator[hands.Hands]:
    one = hands.Hands(workspace)
    yield one
    one.end()


def speaking(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    """A child that does this instead of any work (it has read what comes first: who we are)."""
    program = ["import json, os, pickle, sys, time", "pickle.load(sys.stdin.buffer)", *lines]
    monkeypatch.setattr(hands, "COMMAND", (sys.executable, "-c", "\n".join(program)))


def test_it_ingests_and_follows_and_says_what_came_of_it(made: hands.Hands, workspace: config.Workspace) -> None:
    doing: list[str] = []
    done = made.do("ingest", doing.append, only=None, check=True)
    assert (done["notes"]["parsed"], done["scenes"]["total"], done["away"], done["mended"]) == (1, 1, "", "")
    assert done["owed"] is False
    child = made._process
    (workspace.vault / "выдра.md").write_text("# Выдра\n\nБайдарка течёт.\n", encoding="utf-8")
    done = made.do("ingest", only=["выдра.md"], check=False)
    assert (done["notes"]["parsed"], done["notes"]["seen"]) == (1, 2)
    assert made._process is child
    with Ledger(workspace.ledger) as ledger:
        assert ledger.count("passages") == ledger.count("vectors") == 2
    made.begin("follow")
    done = None
    while done is None:
        done = made.look(60.0)
    assert (done["owed"], done["away"], done["name"]) == (False, "", "vault")
    (workspace.vault / "колодец.md").rename(workspace.vault / "x.md")
    workspace.vault.rename(workspace.vault.with_name("away"))
    with pytest.raises(VaultllmError) as error:
        made.do("ingest", only=None, check=False)
    assert error.value.code == "E-VAULT"
    assert made._process is child
    made.end()
    assert child is not None
    assert child.returncode == 0


def test_whoever_holds_the_lock_is_named(made: hands.Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking(monkeypatch, "print(json.dumps({'error': {'bug': False, 'code': 'E-LOCKED', 'message': 'pid 7', 'path': '/l'}}), flush=True)")
    with pytest.raises(LockedError, match="pid 7"):
        made.do("ingest", only=None, check=False)


@pytest.mark.parametrize(
    ("does", "said"),
    [
        ("os.kill(os.getpid(), 11)", "its process ended (signal 11)"),
        ("sys.exit(3)", "its process ended (exit 3)"),
        ("print(json.dumps({'error': {'bug': True, 'message': 'ValueError'}}), flush=True); time.sleep(60)", "ValueError"),
    ],
)
def test_a_crash_is_told_and_another_child_takes_its_place(
    made: hands.Hands, monkeypatch: pytest.MonkeyPatch, does: str, said: str
) -> None:
    speaking(monkeypatch, "sys.stdin.buffer.readline()", does)
    with pytest.raises(hands.Ended) as ended:
        made.do("ingest", only=None, check=False)
    assert str(ended.value) == said
    made.end()
    speaking(monkeypatch, "print(json.dumps({'well': True}), flush=True)", "sys.stdin.read()")
    assert made.do("ingest", only=None, check=False) == {"well": True}


def test_a_child_that_died_while_nobody_asked_is_replaced(made: hands.Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking(monkeypatch, "print(json.dumps({'pid': os.getpid()}), flush=True)", "sys.stdin.read()")
    first = made.do("ingest", only=None, check=False)["pid"]
    os.kill(first, signal.SIGKILL)
    assert made._process is not None
    made._process.wait()
    assert made.do("ingest", only=None, check=False)["pid"] != first


def test_one_that_hangs_is_killed(made: hands.Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hands, "PATIENCE", 1.0)
    speaking(monkeypatch, "time.sleep(600)")
    begun = time.monotonic()
    with pytest.raises(hands.Ended, match="hung"):
        made.do("ingest", only=None, check=False)
    assert time.monotonic() - begun < 10
    assert made._process is None


def test_who_waits_can_be_told_to_stop_whatever_the_child_does(made: hands.Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking(monkeypatch, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")

    def told(_: str) -> None:
        raise KeyboardInterrupt

    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        made.do("ingest", told, only=None, check=False)
    assert made._process is None
    assert time.monotonic() - begun < hands.TICK + hands.GRACE + 3


def test_the_idle_go_and_the_busy_stay(made: hands.Hands, monkeypatch: pytest.MonkeyPatch) -> None:
    speaking(monkeypatch, "print(json.dumps({'pid': os.getpid()}), flush=True)", "sys.stdin.read()")
    made.do("ingest", only=None, check=False)
    child = made._process
    made.rest()
    assert made._process is child
    monkeypatch.setattr(hands, "IDLE", 0.0)
    made.begin("follow")
    made.rest()
    assert made._process is child
    made.is_busy = False
    made.rest()
    assert made._process is None
    assert child is not None
    assert child.returncode is not None


LEFT = """
import sys, time
from pathlib import Path
from vaultllm import config, hands
one = hands.Hands(config.open_workspace(sys.argv[1], sys.argv[2]))
one.begin("ingest", only=None, check=True)
print(one._process.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="/bin/ps is asked")
def test_a_child_does_not_outlive_a_daemon_that_was_killed(workspace: config.Workspace) -> None:
    """In the middle of work, too: who starts a new daemon must not wait for the old one's child."""
    command = [sys.executable, "-c", LEFT, str(workspace.vault), str(workspace.state)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as daemon:
        assert daemon.stdout is not None
        child = int(daemon.stdout.readline())
        daemon.kill()
    for _ in range(600):
        try:
            os.kill(child, 0)
        except ProcessLookupError:
            break
        time.sleep(0.1)
    else:
        pytest.fail("it lives on")


def test_what_is_owed_follows_beside_the_ingests_in_a_process_that_steps_back(
    workspace: config.Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[str, dict[str, object]]] = []
    woken: list[int] = []
    follower = Follower(workspace, lambda event, **facts: said.append((event, facts)), lambda: woken.append(1))
    answer = {"owed": False, "refitted": True, "embedded": 3, "away": "", "name": "vault", "reason": "r"}
    speaking(
        monkeypatch,
        "asked = json.loads(sys.stdin.buffer.readline())",
        "assert asked['verb'] == 'follow', asked",
        f"print({json.dumps(answer)!r}, flush=True)",
        "sys.stdin.read()",
    )
    follower.owed = True
    follower.begin()
    follower.begin()  # one is under way
    follower.look(60.0)
    assert woken
    assert said == [("embedder", {"name": "vault", "embedded": 3, "reason": "r"})]
    assert not follower.owed
    assert follower.hands._process is None  # its memory is given back at once
    speaking(monkeypatch, "sys.exit(1)")
    follower.begin()
    assert not follower.hands.is_busy  # not so soon again
    for _ in range(2):
        follower.not_before = 0.0
        follower.begin()
        follower.look(60.0)
    assert [event for event, _ in said[1:]] == ["problem"]  # told once
    speaking(monkeypatch, "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)")  # in linear algebra
    follower.not_before = 0.0
    follower.begin()
    begun = time.monotonic()
    follower.end()
    assert time.monotonic() - begun < hands.GRACE + 5
    assert not follower.hands.is_busy


def test_the_one_that_follows_has_the_lower_priority(workspace: config.Workspace) -> None:
    if not Path("/proc/self/stat").exists():
        pytest.skip("/proc tells the priority")
    one = hands.Hands(workspace, nice=10)
    try:
        one.do("ingest", only=None, check=False)
        assert one._process is not None
        assert os.getpriority(os.PRIO_PROCESS, one._process.pid) == 10
    finally:
        one.end()
