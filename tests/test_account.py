"""Nothing goes without a count and a reason: notes in = notes with scenes + notes with reasons; messages likewise."""

from __future__ import annotations

import io
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from vaultllm import chats, config, dataset, reading, splits, steps, text, training_views
from vaultllm.config import Settings, TrainSettings
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
    for learn, share in (("assistant", 0.0), ("assistant", 0.2), ("user", 0.0)):
        check_dataset(job, job.workspace.settings.train.model_copy(update={"learn": learn, "tasks": share}))
    job.close()
    return status


def check_dataset(job: steps.Job, settings: TrainSettings) -> None:
    """Every scene is used or dropped with its reason, every message of a used one read or named, and the printed sums are right."""
    job.ledger.link_duplicates()
    scenes = {(scene.source.path, scene.id): scene for scene in job.ledger.scenes()}
    built = dataset.prepare(scenes.values(), settings)
    made = {(one.path, one.scenes[-1]): one for one in built.examples if one.form != "task"}
    gone = {(one.path, one.scene): one.reason for one in built.dropped if one.whole}
    assert all(gone.values())
    assert made.keys().isdisjoint(gone)
    assert made.keys() | gone.keys() == scenes.keys()
    partly = {(one.path, one.scene) for one in built.dropped if not one.whole and not one.task}
    for key, example in made.items():
        said = "\n\n".join(message.text for message in example.messages)
        cut = [turn for turn in scenes[key].turns if turn.text.strip("\n").split("\n")[-1].strip() not in said]
        assert not cut or key in partly, (key, cut)
    counts = dataset.counts(built)
    assert (counts["used"], counts["dropped_scenes"], counts["scenes"]) == (len(made), len(gone), len(scenes))
    assert counts["dropped_scenes"] + counts["dropped_turns"] + counts["dropped_tasks"] == len(built.dropped)
    assert sum(counts[name] for name in splits.SPLITS) == len(built.examples) == sum(counts[f] for f in ("dialogue", "prose", "task"))
    learnt = sum(counts[f"{name}_characters"] for name in splits.SPLITS)
    assert learnt == sum(len(m.text) for example in built.examples for m in example.messages if m.learn) > 0
    assert set(built.scenes) == {scene for example in built.examples for scene in example.scenes}
    held_out = {text.nfc(one.path) for one in built.examples if one.split != "train"}
    assert not held_out & {text.nfc(one.path) for one in built.examples if one.split == "train"}

    result = steps.dataset(job)
    assert sum(result["dropped"].values()) == len(dataset.prepare(scenes.values(), job.workspace.settings.train).dropped)
    console = Console(width=200, file=io.StringIO())
    console.print(training_views.dataset(result))
    shown = console.file.getvalue()  # type: ignore[attr-defined]  # a StringIO
    assert "{scenes:,} scenes = {used:,} used + {dropped_scenes:,} dropped".format(**result["counts"]) in shown
    assert all(why.split()[0] in shown for why in result["dropped"])


@pytest.mark.usefixtures("learns_later")
def test_every_note_and_message_of_all_real_samples_is_accounted_for(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "real", tmp_path / "vault")
    status = check(tmp_path / "vault", tmp_path / "state")
    assert status["turns"]["seen"] > 100


@pytest.mark.usefixtures("learns_later")
def test_every_note_and_message_of_the_example_vault_is_accounted_for(tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE, tmp_path / "vault")
    assert check(tmp_path / "vault", tmp_path / "state")["turns"]["in_scenes"] > 50


@pytest.mark.parametrize("said", ["", "\n\n \n", "---\na: 1\n---\n", "%% only a comment %%\n", "---\nprivate: true\n---\nтайна\n"])
def test_a_note_without_scenes_says_why(said: str) -> None:
    found = reading.read_note("a.md", said.encode(), Settings(vault_id="a"))
    assert found.scenes == ()
    assert found.problems
    assert from_yaml(found.yaml) == ("a.md", ())
