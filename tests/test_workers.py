"""Child processes that read notes: one that crashes, hangs, eats memory or meets a bug costs one note."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel

from vaultllm import config, reading, steps, workers
from vaultllm.config import Settings
from vaultllm.schema import Problem

pytestmark = pytest.mark.children

# A child whose parser does what the note's text says: the ways of dying are real, only their cause is planted.
PLANTED = """
import os, signal, time
from vaultllm import reading, workers
right = reading.read_note
def planted(path, data, *rest):
    if b"CRASH" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"SLEEP" in data:
        time.sleep(600)
    if b"SPIN" in data:
        while True:
            pass
    if b"EAT" in data:
        hoard = [bytearray(2**20) for _ in range(4096)]
    if b"EXIT" in data:
        os._exit(3)
    if b"BUG" in data:
        raise RecursionError("deep")
    print("whatever a library prints must not fall into the answers")
    return right(path, data, *rest)
reading.read_note = planted
workers.serve()
"""


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", PLANTED))


def context(**scan: object) -> Callable[[], workers.Context]:
    return lambda: workers.Context(Settings.model_validate({"vault_id": "w", "scan": scan}))


def tasks(*texts: str) -> Iterator[workers.Task[int]]:
    for number, text in enumerate(texts):
        yield workers.Task(number, f"{number}.md", text.encode())


def outcome(found: reading.Reading | Problem) -> str:
    return found.code if isinstance(found, Problem) else found.title


def test_results_come_in_the_order_of_the_notes_whoever_was_faster() -> None:
    texts = [f"# Заметка {number}\n\n" + "слово " * (3000 if number % 40 == 0 else 3) for number in range(200)]
    found = list(workers.read_all(tasks(*texts), context(), 2))
    assert [task.key for task, _ in found] == list(range(200))
    assert [outcome(result) for _, result in found] == [f"Заметка {number}" for number in range(200)]


def test_a_child_reads_with_the_settings_of_the_vault_though_it_gets_them_without_their_models() -> None:
    chosen = {"scan": {"labels_user": ["Хозяин"], "max_seconds": 3}, "scenes": {"min_chars": 0}, "redact": {"off": ["email"]}}
    settings = Settings.model_validate({"vault_id": "w", "timezone": "Asia/Dhaka", **chosen})
    plain = pickle.loads(pickle.dumps(workers._plain(settings)))
    for name, value in settings:
        assert (vars(getattr(plain, name)) == dict(value)) if isinstance(value, BaseModel) else (getattr(plain, name) == value), name
    text = "Хозяин: сколько воды?\n\nБот: два литра, пишите на a@example.org\n\nХозяин: хорошо\n"
    ((_, found),) = workers.read_all(tasks(text), lambda: workers.Context(settings), 1)
    assert found == reading.read_note("0.md", text.encode(), settings)
    assert isinstance(found, reading.Reading)
    assert (found.reader, "a@example.org" in found.yaml) == ("plain", True)


@pytest.mark.usefixtures("planted")
def test_each_way_of_dying_costs_one_note() -> None:
    texts = ["# a", "CRASH", "# b", "EAT", "# c", "BUG", "# d", "EXIT", "# e", "SLEEP", "# f", "SPIN", "# g"]
    found = workers.read_all(tasks(*texts), context(max_seconds=1.0, max_memory_mb=128), 2)
    assert [outcome(result) for _, result in found] == [
        "a", "E-CRASH", "b", "E-MEM", "c", "E-BUG", "d", "E-CRASH", "e", "E-TIME", "f", "E-TIME", "g",
    ]  # fmt: skip


@pytest.mark.usefixtures("planted")
def test_a_quarantined_note_is_not_tried_again_until_it_changes_and_keeps_its_scenes(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    note = vault / "a.md"
    note.write_text("слово\n", encoding="utf-8")
    (vault / "b.md").write_text("другое\n", encoding="utf-8")
    job = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    steps.ingest(job)
    note.write_text("CRASH слово\n", encoding="utf-8")
    result = steps.ingest(job)
    assert [(one["path"], one["code"]) for one in result["notes"]["failed"]] == [("a.md", "E-CRASH")]
    assert [scene.turns[0].text for scene in job.ledger.scenes()] == ["слово", "другое"]  # what was known of it stays
    again = steps.ingest(job)
    assert (again["notes"]["parsed"], again["notes"]["unchanged"], len(again["notes"]["failed"])) == (0, 2, 1)
    note.write_text("слово снова\n", encoding="utf-8")
    healed = steps.ingest(job)
    assert (healed["notes"]["parsed"], healed["notes"]["failed"]) == (1, [])
    assert [scene.turns[0].text for scene in job.ledger.scenes()] == ["слово снова", "другое"]
    job.close()


@pytest.mark.usefixtures("planted")
def test_a_note_that_was_never_read_is_known_with_its_reason(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    (vault / "a.md").write_text("BUG\n", encoding="utf-8")
    job = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    result = steps.ingest(job)
    assert (result["notes"]["seen"], result["notes"]["parsed"], [one["code"] for one in result["notes"]["failed"]]) == (1, 0, ["E-BUG"])
    assert "test_workers" not in result["notes"]["failed"][0]["message"]
    assert job.ledger.counts()["notes"] == 1
    assert list(job.ledger.scenes()) == []
    job.close()


def test_a_child_that_cannot_start_is_an_error_not_a_vault_full_of_bad_notes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", "raise SystemExit(9)"))
    with pytest.raises(RuntimeError, match="does not start"):
        list(workers.read_all(tasks("# a", "# b"), context(), 2))


def test_no_child_outlives_a_reader_that_stops_early() -> None:
    before = _children()
    results = workers.read_all(tasks(*["# a"] * 500), context(), 2)
    next(results)
    assert _children() - before
    results.close()
    assert _children() == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_a_child_that_waits_reads_the_next_notes_and_no_other_is_started() -> None:
    before = _children()
    workers.stand_by()
    workers.stand_by()
    waiting = _children() - before
    assert len(waiting) == 1
    results = workers.read_all(tasks("# a", "# b"), context(), 1)
    assert outcome(next(results)[1]) == "a"
    assert _children() - before == waiting
    assert [outcome(result) for _, result in results] == ["b"]
    assert _children() == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_a_child_that_waits_ends_when_nothing_comes_and_one_that_died_is_no_loss() -> None:
    before = _children()
    workers.stand_by()
    workers.stand_down()
    assert _children() == before
    workers.stand_by()
    (waiting,) = _children() - before
    os.kill(waiting, signal.SIGKILL)
    os.waitid(os.P_PID, waiting, os.WEXITED | os.WNOWAIT)
    assert [outcome(result) for _, result in workers.read_all(tasks("# a"), context(), 1)] == ["a"]
    assert _children() == before


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="looks at processes through /proc")
def test_no_child_outlives_a_parent_that_was_killed() -> None:
    script = (
        "import sys, time\n"
        "from vaultllm import workers\n"
        "from vaultllm.config import Settings\n"
        "tasks = (workers.Task(n, f'{n}.md', b'# a') for n in range(10**9))\n"
        "for _ in workers.read_all(tasks, lambda: workers.Context(Settings(vault_id='w')), 2):\n"
        "    print('read', flush=True)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(__file__).resolve().parents[1])}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=env) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        children = _children(parent.pid)
        assert children
        parent.send_signal(signal.SIGKILL)
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while any(_is_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(_is_alive(child) for child in children)


def _children(pid: int | None = None) -> set[int]:
    pid = pid or os.getpid()
    return {int(child) for task in Path(f"/proc/{pid}/task").iterdir() for child in (task / "children").read_text().split()}


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
