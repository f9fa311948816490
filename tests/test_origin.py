"""Where a training begins: retrain goes on from the adapter that answers, or says why it does not."""

from __future__ import annotations

import dataclasses
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests import models
from tests.stored import write_rivers
from tests.test_power import on_battery_from
from vaultllm import config, dataset, forget, lineage, origin, registry, steps, training, training_views
from vaultllm.config import TrainSettings
from vaultllm.dataset import Dataset
from vaultllm.schema import Example, Message, silent

SETTINGS = '\n[train]\nbase = "{base}"\nminutes = 1.0\nmin_new = 1\nfrom = "adapter"\nepochs = 3.0\nrank = 4\nval = 0.3\nnewest = 0.0\n'


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("origin")
    vault = root / "vault"
    vault.mkdir()
    write_rivers(vault, 16, 6)
    config.init_workspace(vault, str(root / "state"))
    path = vault / config.CONFIG
    path.write_text(path.read_text() + SETTINGS.format(base=models.build(root / "base", "llama")))
    made = steps.Job(config.open_workspace(str(vault), str(root / "state")))
    steps.ingest(made)
    settings = made.workspace.settings.train
    built = dataset.prepare(made.ledger.scenes(), settings)
    training.train(made.workspace, made.ledger, built, settings, silent, resume=False, fresh=False, gate=False, go_on=True)
    registry.let_answer(made.workspace, made.ledger, made.ledger.runs()[0])
    (vault / "Снег.md").write_text("# Снег\n\n" + "Снег шёл всю ночь, а утром его убрали. " * 6, encoding="utf-8")
    edited = next(path for path in sorted(vault.glob("Река*.md")) if path.name in {Path(one).name for one in trained_on(made)})
    edited.write_text(edited.read_text(encoding="utf-8").replace("утром", "вечером"), encoding="utf-8")
    with pytest.MonkeyPatch.context() as night:  # the plug is pulled after a step
        on_battery_from(2, night)
        stopped = steps.retrain(made, report=False)
    assert (stopped["status"], stopped["step"]) == ("on battery", 1)
    made.second, made.edited = steps.retrain(made, report=False), edited.name  # type: ignore[attr-defined]
    assert made.second["run"] == stopped["run"]  # type: ignore[attr-defined]
    yield made
    made.close()


def trained_on(job: Any) -> set[str]:
    """The notes of the training side of the newest run's dataset."""
    return {one.path for one in dataset.read(job.workspace.datasets / job.ledger.runs()[-1].dataset).split("train")}


def test_retrain_goes_on_from_what_answers_and_learns_what_is_new(job: Any) -> None:
    first, second = job.ledger.runs()[:2]
    assert (first.options["continued"], first.options["continued_not"]) == ("", "no training answers yet")
    assert second.options["continued"] == first.id == second.parent
    began = job.second["metrics"]["origin"]
    assert began["run"] == first.id
    learnt, built = origin.learnt(job.workspace, second.id), dataset.read(job.workspace.datasets / second.dataset)
    changed = [one for one in built.split("train") if one.path in (job.edited, "Снег.md")]
    assert began["new"] == len(changed) > 0
    assert began["again"] > 0 < began["left"]
    assert job.second["metrics"]["examples"] == began["new"] + began["again"]
    assert learnt.items() >= built.learnt().items()  # all that its weights have seen, with the newest hashes
    assert learnt.keys() >= origin.learnt(job.workspace, first.id).keys()
    told = json.loads((job.workspace.runs / second.id / "vaultllm.json").read_text())
    assert told["parent"] == first.metrics["adapter_sha256"] != told["adapter_sha256"]
    rows = {row["run"]: row["continued"] for row in steps.runs(job)["descent"]}
    assert rows == {first.id: None, second.id: first.id}
    shown = io.StringIO()
    Console(file=shown, width=300).print(training_views.runs(steps.runs(job)), training_views.train(job.second))
    assert f"{second.id} from {first.id}" in shown.getvalue()
    assert f"from        run {first.id}: {began['new']} new examples, {began['again']} of" in shown.getvalue()


def test_it_begins_with_the_weights_of_the_parent_and_another_seed_changes_nothing_of_them(job: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    from vaultllm import train
    from vaultllm.models import hf

    parent = job.workspace.runs / job.ledger.runs()[0].id / "adapter"
    settings = job.workspace.settings.train
    saved = load_file(parent / "adapter_model.safetensors")
    for seed in (0, 5):
        made = train.adapted(hf.load(settings.base).model, settings, seed, parent)
        now = {name.replace(".default", ""): one for name, one in made.state_dict().items() if "lora_" in name}
        assert now.keys() == saved.keys()
        assert all(bool((now[name] == saved[name]).all()) for name in saved)
        assert any(weight.requires_grad for name, weight in made.named_parameters() if "lora_" in name)


def found(job: Any, settings: TrainSettings | None = None, base_sha: str = "") -> origin.Origin:
    settings = settings or job.workspace.settings.train
    built = dataset.prepare(job.ledger.scenes(), settings)
    return origin.find(job.workspace, job.ledger, settings, base_sha or job.ledger.runs()[0].base_sha, built)


def test_why_it_begins_at_the_base(job: Any) -> None:
    workspace, settings = job.workspace, job.workspace.settings.train
    run = job.ledger.runs()[0].id
    registry.promote(workspace, job.ledger, run, "for the tests", force=True)
    assert found(job).run == run
    for other, why in (({"rank": 8}, "train.rank = 4, now it is 8"), ({"learn": "user"}, "train.learn = assistant, now it is user")):
        assert found(job, settings.model_copy(update=other)) == origin.Origin(why=f"run {run} was trained with {why}")
    assert "another base, or its tokenizer or template was changed" in found(job, base_sha="x").why

    weights, kept = workspace.runs / run / "adapter" / "adapter_model.safetensors", workspace.runs / run / "scenes.json"
    for path, damage, why in ((weights, b"x", "not what was trained"), (kept, b"[", "cannot be read"), (kept, b"[1]", "cannot be read")):
        whole = path.read_bytes()
        path.write_bytes(damage)
        assert why in found(job).why
        path.unlink()
        assert why in found(job).why
        path.write_bytes(whole)

    note = workspace.vault / job.edited
    text = note.read_text(encoding="utf-8")
    note.write_text("---\nprivate: true\n---\n" + text, encoding="utf-8")
    steps.ingest(job)
    assert found(job).why == f"1 scenes that run {run} has learnt are gone or may no longer be learnt"
    note.write_text(text, encoding="utf-8")
    other = workspace.vault / next(one for one in trained_on(job) if one != job.edited and one != "Снег.md")
    other.rename(workspace.vault / "Другое имя.md")  # what says the same under another name is not gone
    steps.ingest(job)
    assert found(job).why == ""
    everything = {scene.id: scene.sha for scene in job.ledger.scenes()}
    kept.write_text(json.dumps(everything))
    assert found(job).why == f"run {run} has learnt all of it"


def test_who_went_on_from_a_training_that_saw_it_saw_it_too(job: Any) -> None:
    first, second = job.ledger.runs()[:2]
    goal = forget.target.find(job.workspace, job.ledger, job.edited, forget.forgotten.load(job.workspace.state))
    (job.workspace.runs / second.id / "scenes.json").write_text("{}")  # even where nothing else says so
    only_first = dataclasses.replace(second, dataset="gone")
    job.ledger.put_run(only_first)
    assert set(forget.derived(job.workspace, job.ledger, goal).runs) >= {first.id, second.id}


def test_held_out_notes_that_an_adapter_has_seen_are_not_measured_on() -> None:
    def of(path: str, scene: str, split: Any) -> Example:
        return Example(f"{path}{scene}", (scene,), path, "prose", (Message("user", scene, True),), split)

    examples = (of("a", "1", "train"), of("b", "2", "val"), of("b", "3", "val"), of("c", "4", "val"), of("d", "5", "test"))
    built = Dataset("x", examples, (), {str(number): f"sha{number}" for number in range(1, 6)})
    left, gone = origin.unseen(built, {"1": "sha1", "2": "before it was edited", "elsewhere": "sha5"})
    assert [one.path for one in left.examples] == ["a", "c"]  # of b one scene was seen: the unit is the note
    assert gone == 3
    assert origin.unseen(built, {}) == (built, 0)


def test_from_is_a_setting_by_its_own_name() -> None:
    assert TrainSettings(**{"from": "adapter"}).from_ == "adapter"
    with pytest.raises(ValueError, match="from_"):
        TrainSettings(**{"from_": "adapter"})
    assert "continued" in lineage.descent.__doc__
