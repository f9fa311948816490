"""Nothing goes without a count and a reason: notes in = notes with scenes + notes with reasons; messages likewise."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from vaultllm import chats, config, reading, steps
from vaultllm.config import Settings
from vaultllm.scene_yaml import from_yaml

EXAMPLE = Path(__file__).resolve().parents[1] / "vault_example"


def check(vault: Path, state: Path) -> dict[str, Any]:
    """Ingest a vault and hold its account against what the readers saw and what the scenes hold."""
    job = steps.Job(config.init_workspace(vault, str(state)))
    result = steps.ingest(job)
    status = steps.status(job)
    reasons = {problem["path"] for problem in status["problems"]}
    with_scenes = set(job.ledger.notes_with_scenes())
    known = set(job.ledger.known())
    assert result["notes"]["seen"] == len(known)
    assert known == with_scenes | (known & reasons), sorted(known - with_scenes - reasons)

    messages = Counter[str]()
    for path in sorted(known):
        note = reading.parse(path, (vault / path).read_bytes(), job.workspace.settings)
        _, _, conversations = chats.read(note, job.workspace.settings.scan, job.workspace.settings.timezone)
        seen = sum(one.seen for one in conversations)
        left = sum(problem.count for one in conversations for problem in one.problems if problem.code in chats.LEFT_OUT)
        turns = [turn for one in conversations for turn in one.turns]
        assert seen == len(turns) + left, path
        private = any(problem["path"] == path and problem["code"] == "W-PRIVATE" for problem in status["problems"])
        kept = [turn for scene in job.ledger.scenes(path) for turn in scene.turns]
        if conversations and not private:
            assert Counter((turn.uid, turn.lines) for turn in turns) <= Counter((turn.uid, turn.lines) for turn in kept), path
            own = [turn for turn in kept if (turn.uid, turn.lines) not in {(turn.uid, turn.lines) for turn in turns}]
            assert all(turn.author == "note" for turn in own), path
        messages.update(seen=seen, left=seen if private else left, kept=0 if private else len(turns))
    account = {"seen": messages["seen"], "in_scenes": messages["kept"], "left_out": messages["left"]}
    assert status["turns"].items() >= account.items()
    assert sum(status["turns"]["why"].values()) == messages["left"]
    assert messages["seen"] == messages["kept"] + messages["left"]
    job.close()
    return status


def test_every_note_and_message_of_all_real_samples_is_accounted_for(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "real", tmp_path / "vault")
    status = check(tmp_path / "vault", tmp_path / "state")
    assert status["turns"]["seen"] > 100


def test_every_note_and_message_of_the_example_vault_is_accounted_for(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "vault")
    assert check(tmp_path / "vault", tmp_path / "state")["turns"]["in_scenes"] > 50


@pytest.mark.parametrize("text", ["", "\n\n \n", "---\na: 1\n---\n", "%% only a comment %%\n", "---\nprivate: true\n---\nтайна\n"])
def test_a_note_without_scenes_says_why(text: str) -> None:
    found = reading.read_note("a.md", text.encode(), Settings(vault_id="a"))
    assert found.scenes == ()
    assert found.problems
    assert from_yaml(found.yaml) == ("a.md", ())
