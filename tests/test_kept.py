from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from tests import stored
from vaultllm import config, ingest, kept, registry, steps
from vaultllm.ledger import Ledger
from vaultllm.schema import Run

RUN = Run("r1", "lora", "base", "", "", {}, 0, "", "done", {}, {}, "2025-06-15T00:00:00+00:00", True)


@pytest.fixture
def workspace(tmp_path: Path) -> config.Workspace:
    (tmp_path / "vault").mkdir()
    stored.write_rivers(tmp_path / "vault", 2, 3)
    return config.init_workspace(tmp_path / "vault", str(tmp_path / "state"))


def spoiled(workspace: config.Workspace) -> None:
    """The ledger is gone, as its owner takes it away when it is damaged."""
    for file in workspace.state.glob("ledger.db*"):
        file.unlink()


def test_a_ledger_that_is_made_anew_knows_our_notes_their_ratings_the_runs_and_the_way_back(workspace: config.Workspace) -> None:
    with Ledger(workspace.ledger) as ledger:
        ingest.ingest(workspace, ledger)
        ledger.put_answer(
            "a1", "Answers/Вода.md", "5a", "2025-06-15", {"said": "Вода поднялась.", "text": "Вода", "sources": [{"quote": "x"}]}
        )
        ledger.put_answer("a1", "Answers/Вода.md", "5a", "2025-06-15", {"said": "Вода поднялась.", "rating": "good"})
        for run in (RUN, dataclasses.replace(RUN, id="r2")):
            (workspace.runs / run.id).mkdir(parents=True)
            registry.record(workspace, ledger, run)
            registry.let_answer(workspace, ledger, run)
        before = ledger.ours(), ledger.written(), ledger.history(), [run.id for run in ledger.runs()]
    spoiled(workspace)
    with Ledger(workspace.ledger) as ledger:
        ingest.ingest(workspace, ledger)
        assert (ledger.ours(), ledger.written(), ledger.history(), [run.id for run in ledger.runs()]) == before
        ((_, record),) = ledger.answers(10)
        assert json.loads(record)["rating"] == "good"
        assert registry.check(workspace, ledger) == "the adapter of run r2 is gone; mend: vaultllm rollback"  # and it is not unknown
        assert ledger.take_back(workspace.runs) == 0
    assert before[2] == ["", "r1"]


def test_no_word_of_the_vault_is_kept_and_nobody_else_may_read_it(workspace: config.Workspace) -> None:
    with Ledger(workspace.ledger) as ledger:
        record = {"said": "тайна", "text": "тайна", "question": "тайна", "sources": [{"quote": "тайна", "path": "p"}], "model": "m"}
        ledger.put_answer("a1", "p.md", "5a", "2025", record)
    file = workspace.state / kept.FILE
    assert "тайна" not in file.read_text(encoding="utf-8")
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_torn_or_damaged_line_costs_only_itself(workspace: config.Workspace) -> None:
    for name in ("a1", "a2", "a3"):
        kept.answer(workspace.state, name, "p.md", "5a", "2025", {})
        kept.history(workspace.state, [name])
    file = workspace.state / kept.FILE
    lines = file.read_bytes().split(b"\n")
    file.write_bytes(b"\n".join([lines[1][:20], b"\xff\xfe", b"[1]", b'{"answer": 3}', b'{"history": 3}', *lines[3:6], lines[6][:9]]))
    kept.answer(workspace.state, "a4", "p.md", "5a", "2025", {})
    found = kept.read(workspace.state)
    assert list(found.answers) == ["a2", "a3", "a4"]
    assert found.history == ["a2"]


def test_damaged_records_of_runs_are_left_out(workspace: config.Workspace) -> None:
    with Ledger(workspace.ledger) as ledger:
        for name in ("r1", "r2", "r3"):
            (workspace.runs / name).mkdir(parents=True)
            registry.record(workspace, ledger, dataclasses.replace(RUN, id=name))
    (workspace.runs / "r1" / "run.json").write_bytes(b"\xff")
    (workspace.runs / "r2" / "run.json").write_text('{"id": "r2"}')
    assert [run.id for run in kept.runs(workspace.runs)] == ["r3"]


def test_a_ledger_from_before_anything_was_kept_keeps_it_at_the_next_ingest(workspace: config.Workspace) -> None:
    with Ledger(workspace.ledger) as ledger:
        ledger.put_answer("a1", "p.md", "5a", "2025", {"said": "x"})
        ledger.put_history(["", "r1"])
        (workspace.state / kept.FILE).unlink()
        ingest.ingest(workspace, ledger)
        assert (list(kept.read(workspace.state).answers), kept.read(workspace.state).history) == (["a1"], ["", "r1"])


def test_an_answer_is_known_as_ours_after_the_ledger_was_lost(workspace: config.Workspace, learns_later: None) -> None:
    job = steps.Job(workspace)
    steps.ingest(job)
    note = steps.ask(job, "на сколько поднялась вода")["note"]
    ours = job.ledger.ours()
    job.close()
    spoiled(workspace)
    job = steps.Job(workspace)
    steps.ingest(job)
    assert job.ledger.ours() == ours
    assert list(job.ledger.written().values()) == [note]
    job.close()
