"""The registry: what answers, what may answer, and how it is taken back. Real trainings of tiny models."""

from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import config, dataset, registry, rows, steps
from vaultllm.dataset import Dataset
from vaultllm.errors import UsageError
from vaultllm.ledger import Ledger, NoteRow
from vaultllm.schema import Progress, Run, Scene, Source, Turn


def nothing(progress: Progress) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("registry")
    vault = root / "vault"
    vault.mkdir()
    for number in range(24):
        body = f"# Река {number}\n\n" + " ".join(f"Вода поднялась на {number + i} сантиметров утром {i} числа." for i in range(12))
        (vault / f"Река {number}.md").write_text(body, encoding="utf-8")
    made = steps.Job(config.init_workspace(vault, str(root / "state"), str(models.build(root / "base", "llama"))))
    steps.ingest(made)
    yield made
    made.close()


def trained(job: steps.Job, **options: Any) -> dict[str, Any]:
    settings = job.workspace.settings.train.model_copy(update={"minutes": 0.15, "val": 0.3, **options})
    built = dataset.build(job.ledger.scenes(), val=0.3)
    return registry.train(job.workspace, job.ledger, built, settings, nothing, resume=False, fresh=False)


def test_only_what_is_not_worse_answers_and_it_can_be_taken_back(job: steps.Job) -> None:
    assert registry.new_scenes(job.workspace, job.ledger) == 24
    assert registry.serving(job.workspace, job.ledger) == (job.workspace.settings.train.base, None, "")
    first = trained(job)
    assert first["promoted"], first["reason"]
    assert registry.current(job.workspace) == first["run"]
    assert registry.new_scenes(job.workspace, job.ledger) == 0

    worse = trained(job, learning_rate=1e-9, seed=1)  # learns next to nothing: as good as the base, so worse than the first
    assert not worse["promoted"]
    assert "got worse" in worse["reason"]
    assert worse["metrics"]["bpb_current"] == pytest.approx(first["metrics"]["bpb_after"], rel=0.02)
    assert registry.current(job.workspace) == first["run"]
    record = json.loads((job.workspace.runs / worse["run"] / "run.json").read_text(encoding="utf-8"))
    assert (record["promoted"], record["parent"], record["status"]) == (False, first["run"], "done")

    # by hand one may; and one command takes it back, at once
    assert registry.promote(job.workspace, job.ledger, worse["run"]) == first["run"]
    begun = time.perf_counter()
    assert registry.rollback(job.workspace, job.ledger) == (worse["run"], first["run"])
    assert time.perf_counter() - begun < 1.0
    assert registry.rollback(job.workspace, job.ledger) == (first["run"], "")
    with pytest.raises(UsageError, match="nothing to roll back"):
        registry.rollback(job.workspace, job.ledger)
    registry.promote(job.workspace, job.ledger, first["run"])
    assert registry.check(job.workspace, job.ledger) == ""
    (job.workspace.runs / first["run"] / "adapter" / "adapter_model.safetensors").unlink()
    assert "vaultllm rollback" in registry.check(job.workspace, job.ledger)


def test_a_run_that_is_not_done_cannot_answer(job: steps.Job) -> None:
    run = dataclasses.replace(job.ledger.runs()[0], id="20250101T000000000-lora-0", status="interrupted")
    job.ledger.put_run(run)
    with pytest.raises(UsageError, match="interrupted"):
        registry.promote(job.workspace, job.ledger, run.id)
    with pytest.raises(UsageError, match="there is no run"):
        registry.promote(job.workspace, job.ledger, "nope")


def test_a_training_that_was_stopped_while_it_was_compared_is_compared_and_not_trained_again(
    job: steps.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(registry, "arms", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(job, seed=7)
    stopped = job.ledger.runs()[-1]
    assert (stopped.status, stopped.promoted) == ("interrupted", False)
    monkeypatch.setattr("vaultllm.train.train_lora", stop)
    settings = job.workspace.settings.train.model_copy(update={"minutes": 0.15, "val": 0.3, "seed": 7})
    built = dataset.build(job.ledger.scenes(), val=0.3)
    again = registry.train(job.workspace, job.ledger, built, settings, nothing, resume=True, fresh=False)
    assert (again["run"], again["status"]) == (stopped.id, "done")
    assert again["metrics"]["bpb_after"] == stopped.metrics["bpb_after"]
    assert "arms" in again["metrics"]


def test_an_edited_note_is_new_again(job: steps.Job) -> None:
    path = job.workspace.vault / "Река 3.md"
    path.write_text(path.read_text(encoding="utf-8") + "\n\nПотом вода ушла.\n", encoding="utf-8")
    steps.ingest(job)
    assert registry.new_scenes(job.workspace, job.ledger) == 1


def test_a_micro_base_is_used_again_until_the_text_has_doubled_and_knows_what_it_has_read(job: steps.Job, tmp_path: Path) -> None:
    built = dataset.build(job.ledger.scenes(), val=0.3)
    first, made = registry.micro_base(job.workspace, built, minutes=0.05, seed=0, progress=nothing, fresh=False)
    assert made
    assert registry.micro_base(job.workspace, built, minutes=0.05, seed=0, progress=nothing, fresh=False) == (first, False)
    about = json.loads((first / "micro.json").read_text(encoding="utf-8"))
    (first / "micro.json").write_text(json.dumps(about | {"text_bytes": about["text_bytes"] // 3}), encoding="utf-8")
    second, made = registry.micro_base(job.workspace, built, minutes=0.05, seed=0, progress=nothing, fresh=False)
    assert made
    assert second > first

    # a note that was renamed into the held-out part is not used to measure: the base has read it
    known = built.split("train")[0]
    renamed = dataclasses.replace(known, id="renamed", path="Другое имя.md", split="val")
    leaky = dataclasses.replace(built, examples=(*built.examples, renamed))
    kept, left_out = registry.unseen(second, leaky)
    assert left_out == 1
    assert "renamed" not in {example.id for example in kept.examples}


def test_the_four_arms_never_recall_the_note_that_is_measured(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    from vaultllm import recall

    asked: list[tuple[str, list[str]]] = []
    real = recall.recall

    def listening(*args: Any, **options: Any) -> Any:
        hits = real(*args, **options)
        asked.append((args[3], [hit.path for hit in hits]))
        return hits

    for number in range(6):
        turns = "\n\n".join(
            f"User: Сколько воды было {i} числа в реке {number}?\n\nAssistant: Вода поднялась на {number + i} сантиметров."
            for i in range(4)
        )
        (job.workspace.vault / f"Разговор {number}.md").write_text(turns + "\n", encoding="utf-8")
    steps.ingest(job)
    monkeypatch.setattr(recall, "recall", listening)
    result = trained(job, seed=2)
    arms = result["metrics"]["arms"]
    assert {"base", "base+memory", "trained", "trained+memory"} <= arms.keys()
    held_out = {example.path for example in dataset.build(job.ledger.scenes(), val=0.3).split("val") if example.form == "dialogue"}
    assert asked
    owners = {
        message.text: example.path
        for example in dataset.build(job.ledger.scenes(), val=0.3).split("val")
        for message in example.messages
        if message.role == "user"
    }
    for question, paths in asked:
        assert owners[question] in held_out
        assert owners[question] not in paths


def test_a_ledger_that_was_made_anew_does_not_stop_the_gate_nor_leave_a_way_back_to_nothing(tmp_path: Path) -> None:
    workspace = config.init_workspace(_empty(tmp_path), str(tmp_path / "state"))
    workspace.current.write_text("20200101-lost\n", encoding="utf-8")
    with Ledger(workspace.ledger) as ledger:
        run = Run("20250101-new", "lora", "micro", "", "d", {}, 0, "", "done", {}, {}, "2025-01-01T00:00:00+00:00")
        ledger.put_run(run)
        metrics = {"bpb_before": 2.0, "bpb_after": 1.9}
        assert registry._gate(workspace, ledger, run, Dataset("d", (), ()), metrics, lambda progress: None)[0]
        adapter = workspace.runs / run.id / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"")
        registry.promote(workspace, ledger, run.id)
        assert registry.rollback(workspace, ledger) == (run.id, "")


def test_an_edit_of_a_scene_that_stands_in_two_notes_is_new(tmp_path: Path) -> None:
    workspace = config.init_workspace(_empty(tmp_path), str(tmp_path / "state"))
    folder = workspace.datasets / "d"
    folder.mkdir(parents=True)
    dropped = [{"scene": "s", "path": "b.md", "reason": "the same text", "whole": True}]
    (folder / "manifest.json").write_text(json.dumps({"scenes": {"s": "old"}, "dropped": dropped}), encoding="utf-8")
    with Ledger(workspace.ledger) as ledger:
        ledger.put_run(Run("r", "lora", "micro", "", "d", {}, 0, "", "done", {}, {}, "2025-01-01T00:00:00+00:00"))
        turn = Turn("user", "новое", (1, 1))
        scene = Scene("s", "new", "prose", "t", (), (turn,), Source("a.md", (1, 1)), "ru", "own")
        ledger.put_note(NoteRow("a.md", "A", 1, 2, 3, 4, "00", "1", "", ""), [rows.row(scene, ())])
        assert registry.new_scenes(workspace, ledger) == 1


def _empty(root: Path) -> Path:
    (root / "vault").mkdir()
    return root / "vault"
