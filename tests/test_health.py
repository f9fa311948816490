from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from tests import stored
from tests.test_kept import RUN
from vaultllm import canonical, config, health, ingest, registry, remember
from vaultllm.ledger import Ledger


@pytest.fixture
def state(tmp_path: Path, learns_later: None) -> tuple[config.Workspace, Ledger]:
    (tmp_path / "vault" / "Реки").mkdir(parents=True)
    stored.write_rivers(tmp_path / "vault" / "Реки", 3, 3)
    workspace = config.init_workspace(tmp_path / "vault", str(tmp_path / "state"))
    ledger = Ledger(workspace.ledger)
    ingest.ingest(workspace, ledger)
    remember.refresh(ledger, workspace.memory, workspace.settings.memory)
    return workspace, ledger


DAMAGES = {
    "a passage": "UPDATE passages SET text = replace(text, 'Вода', 'Вада') WHERE slot = 1",
    "a passage that is no text": "UPDATE passages SET text = CAST(x'ff41' AS TEXT) WHERE slot = 1",
    "a scene": "UPDATE scenes SET record = replace(record, 'Вода', 'Вада') WHERE slot = 1",
    "a scene that is no JSON": "UPDATE scenes SET record = '{' WHERE slot = 1",
    "a vector": "UPDATE vectors SET vector = CAST(x'0000403f' || substr(vector, 5) AS BLOB) WHERE passage = 1",
    "a longer vector": "UPDATE vectors SET vector = substr(vector, 5) WHERE passage = 1",
    "a vector that is no vector": "UPDATE vectors SET vector = 7 WHERE passage = 1",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_sqlite_does_not_notice_is_found_and_mended(state: tuple[config.Workspace, Ledger], damage: str) -> None:
    workspace, ledger = state
    before = canonical.dump(workspace, ledger)
    assert health.examine(workspace, ledger) == []
    ledger.db.execute(DAMAGES[damage])
    assert ledger.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert "W-LEDGER" in [one["code"] for one in health.examine(workspace, ledger)]
    assert "W-LEDGER" in [one["code"] for one in health.examine(workspace, ledger, repair=True)]
    assert health.examine(workspace, ledger) == []
    assert canonical.dump(workspace, ledger) == before
    ledger.close()


def test_scene_files_are_compared_with_the_ledger_and_written_whatever_stands_in_their_place(
    state: tuple[config.Workspace, Ledger],
) -> None:
    workspace, ledger = state
    before = canonical.dump(workspace, ledger)
    first, second, third = sorted((workspace.scenes / "Реки").iterdir())
    first.write_text("garbage")
    second.unlink()
    second.mkdir()
    third.unlink()
    (found,) = health.examine(workspace, ledger, repair=True)
    assert (found["code"], found["message"][:13]) == ("W-SCENES", "3 scene files")
    assert canonical.dump(workspace, ledger) == before
    for file in (first, second, third):
        file.unlink()
    first.parent.rmdir()
    first.parent.write_text("a file in place of a folder")
    health.examine(workspace, ledger, repair=True)
    assert canonical.dump(workspace, ledger) == before
    ledger.close()


@pytest.mark.parametrize("damage", ["gone", "folder", b"", b"r9\n", b"\xff\xfe"])
def test_a_current_that_was_changed_from_outside_is_found_and_set_right(
    state: tuple[config.Workspace, Ledger], damage: str | bytes
) -> None:
    workspace, ledger = state
    adapter = workspace.runs / "r1" / "adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_model.safetensors").write_bytes(b"")
    run = dataclasses.replace(RUN, base="some/base")
    registry.record(workspace, ledger, run)
    registry.let_answer(workspace, ledger, run)
    assert health.examine(workspace, ledger) == []
    workspace.current.unlink()
    if isinstance(damage, bytes):
        workspace.current.write_bytes(damage)
    elif damage == "folder":
        workspace.current.mkdir()
    (found,) = health.examine(workspace, ledger, repair=True)
    assert (found["code"], "r1 was to answer" in found["message"]) == ("W-RUN", True)
    assert registry.current(workspace) == "r1"
    assert health.examine(workspace, ledger) == []
    registry.rollback(workspace, ledger)
    assert (registry.current(workspace), health.examine(workspace, ledger)) == ("", [])
    ledger.close()
