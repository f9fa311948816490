"""The registry: what answers, what may answer, and how it is taken back. Real trainings of tiny models."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.stored import write_rivers
from vaultllm import config, dataset, lineage, registry, rows, steps, training
from vaultllm.dataset import Dataset
from vaultllm.errors import ModelError, UsageError
from vaultllm.ledger import Ledger, NoteRow
from vaultllm.schema import Progress, Run, Scene, Source, Turn


def nothing(progress: Progress) -> None:
    """Nobody watches."""


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("registry")
    vault = root / "vault"
    vault.mkdir()
    write_rivers(vault, 24, 12)
    made = steps.Job(config.init_workspace(vault, str(root / "state"), str(models.build(root / "base", "llama"))))
    steps.ingest(made)
    yield made
    made.close()


def _nobody() -> Any:
    raise AssertionError("nothing is to be loaded")


def trained(job: steps.Job, **options: Any) -> dict[str, Any]:
    settings = job.workspace.settings.train.model_copy(update={"minutes": 0.15, "val": 0.3, **options})
    built = dataset.build(job.ledger.scenes(), val=0.3)
    return training.train(job.workspace, job.ledger, built, settings, nothing, resume=False, fresh=False)


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

    # by hand one may, for a reason that is kept; and one command takes it back
    with pytest.raises(UsageError, match=r"was refused: held-out notes cost .* --force --reason"):
        registry.promote(job.workspace, job.ledger, worse["run"])
    with pytest.raises(UsageError, match="--force wants a reason"):
        registry.promote(job.workspace, job.ledger, worse["run"], "  ", force=True)
    assert registry.current(job.workspace) == first["run"]
    assert registry.promote(job.workspace, job.ledger, worse["run"], "she says  it\nsounds like me", force=True) == first["run"]
    kept = json.loads((job.workspace.runs / worse["run"] / "run.json").read_text(encoding="utf-8"))
    assert (kept["promoted"], kept["metrics"]["forced"]["reason"]) == (True, "she says it sounds like me")
    assert kept["metrics"]["forced"]["refused"] == worse["reason"]
    assert worse["reason"] in kept["reason"]
    rows = {row["run"]: row for row in steps.runs(job)["descent"]}
    assert (rows[worse["run"]]["decision"], rows[worse["run"]]["answers"], rows[worse["run"]]["parent"]) == ("forced", True, first["run"])
    assert rows[first["run"]]["bpb_after"] == first["metrics"]["bpb_after"]
    assert registry.rollback(job.workspace, job.ledger) == (worse["run"], first["run"])
    assert registry.rollback(job.workspace, job.ledger) == (first["run"], "")
    with pytest.raises(UsageError, match="nothing to roll back"):
        registry.rollback(job.workspace, job.ledger)
    registry.promote(job.workspace, job.ledger, first["run"])
    assert registry.check(job.workspace, job.ledger) == ""
    assert first["metrics"]["reload"] == "equal"
    _rollback_is_instant(job)
    _only_what_was_trained_may_answer(job, first["run"])
    (job.workspace.runs / first["run"] / "adapter" / "adapter_model.safetensors").unlink()
    assert "vaultllm rollback" in registry.check(job.workspace, job.ledger)


def _rollback_is_instant(job: steps.Job) -> None:
    """In a process of its own, as a user runs it: under a second, and torch is not even imported."""
    code = (
        "import sys, time\nfrom vaultllm import cli\nbegun = time.process_time()\n"
        "try:\n    cli.main(sys.argv[1:])\nexcept SystemExit as ended:\n    assert not ended.code, ended.code\n"
        "assert time.process_time() - begun < 1.0\n"
        "assert not {'torch', 'transformers', 'chromadb'} & set(sys.modules), sorted(sys.modules)\n"
    )
    run = registry.current(job.workspace)
    arguments = ["--vault", str(job.workspace.vault), "--state", str(job.workspace.state), "--json", "rollback"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"current": None, "before": run}
    assert registry.promote(job.workspace, job.ledger, run) == ""


def _only_what_was_trained_may_answer(job: steps.Job, run: str) -> None:
    folder = job.workspace.runs / run
    base = Path(job.workspace.settings.train.base)

    def refused(path: Path, change: Any, match: str) -> None:
        whole = path.read_bytes() if path.exists() else None
        path.write_bytes(change(whole or b""))
        with pytest.raises(ModelError, match=match):
            registry.promote(job.workspace, job.ledger, run)
        path.unlink() if whole is None else path.write_bytes(whole)

    def first_logit_moved(data: bytes) -> bytes:
        about = json.loads(data)
        about["logits"][0] += 2e-5 * max(1.0, abs(about["logits"][0]))
        return json.dumps(about).encode()

    refused(folder / "reload.json", first_logit_moved, "does not say what it said")
    refused(folder / "reload.json", lambda data: data[:-40], "cannot be read")
    refused(folder / "reload.json", lambda data: data.replace(b'"ids": [', b'"ids": [7, '), "cuts text in another way")
    refused(folder / "adapter" / "adapter_model.safetensors", lambda data: data[:-1] + bytes([data[-1] ^ 1]), "not what was written")
    for name in ("tokenizer.json", "config.json", "chat_template.jinja", "model.safetensors"):
        assert (base / name).is_file()
        refused(base / name, lambda data: data + b" ", "another base|cannot be loaded")
    assert registry.verify(job.workspace, registry.find(job.ledger, run)) == ""
    whole = (folder / "reload.json").read_text(encoding="utf-8")
    elsewhere = json.dumps(json.loads(whole) | {"device": "cuda", "torch": "9.9"})
    (folder / "reload.json").write_text(elsewhere, encoding="utf-8")
    assert registry.verify(job.workspace, registry.find(job.ledger, run)).startswith(
        "its logits were recorded with device cuda, now cpu; torch 9.9"
    )
    (folder / "reload.json").write_text(whole, encoding="utf-8")
    (folder / "reload.json").rename(folder / "aside")  # an adapter from before this was recorded
    assert "not recorded" in registry.verify(job.workspace, registry.find(job.ledger, run))
    (folder / "aside").rename(folder / "reload.json")


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
        patched.setattr(training, "arms", stop)
        with pytest.raises(KeyboardInterrupt):
            trained(job, seed=7)
    stopped = job.ledger.runs()[-1]
    assert (stopped.status, stopped.promoted) == ("interrupted", False)
    monkeypatch.setattr("vaultllm.train.train_lora", stop)
    settings = job.workspace.settings.train.model_copy(update={"minutes": 0.15, "val": 0.3, "seed": 7})
    built = dataset.build(job.ledger.scenes(), val=0.3)
    again = training.train(job.workspace, job.ledger, built, settings, nothing, resume=True, fresh=False)
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
    first, made = training.micro_base(job.workspace, built, minutes=0.05, seed=0, progress=nothing, fresh=False)
    assert made
    assert training.micro_base(job.workspace, built, minutes=0.05, seed=0, progress=nothing, fresh=False) == (first, False)
    about = json.loads((first / "micro.json").read_text(encoding="utf-8"))
    (first / "micro.json").write_text(json.dumps(about | {"text_bytes": about["text_bytes"] // 3}), encoding="utf-8")
    second, made = training.micro_base(job.workspace, built, minutes=0.05, seed=0, progress=nothing, fresh=False)
    assert made
    assert second > first

    # a note that was renamed into the held-out part is not used to measure: the base has read it
    known = built.split("train")[0]
    renamed = dataclasses.replace(known, id="renamed", path="Другое имя.md", split="val")
    leaky = dataclasses.replace(built, examples=(*built.examples, renamed))
    kept, left_out = training.unseen(second, leaky)
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
    owners = {
        message.text: example.path
        for example in dataset.build(job.ledger.scenes(), val=0.3).split("val")
        for message in example.messages
        if message.role == "user"
    }
    asked = [(question, paths) for question, paths in asked if question in owners]  # the probes ask too, without their note
    assert asked
    for question, paths in asked:
        assert owners[question] in held_out
        assert owners[question] not in paths


def test_a_ledger_that_was_made_anew_does_not_stop_the_gate_nor_leave_a_way_back_to_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = config.init_workspace(_empty(tmp_path), str(tmp_path / "state"))
    workspace.current.write_text("20200101-lost\n", encoding="utf-8")
    with Ledger(workspace.ledger) as ledger:
        run = Run("20250101-new", "lora", "micro", "", "d", {}, 0, "", "done", {}, {}, "2025-01-01T00:00:00+00:00")
        ledger.put_run(run)
        metrics = {"bpb_before": 2.0, "bpb_after": 1.9}
        assert training._gate(workspace, ledger, run, _nobody, Dataset("d", (), ()), metrics, nothing)[0]
        adapter = workspace.runs / run.id / "adapter"
        adapter.mkdir(parents=True)
        (adapter / "adapter_model.safetensors").write_bytes(b"")
        monkeypatch.setattr(registry, "verify", lambda workspace, run: "")
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


def finished(run_id: str, parent: str = "", **changed: Any) -> Run:
    run = Run(run_id, "lora", "/bases/a", "", "d", {}, 0, parent, "done", {}, {}, f"2025-01-{run_id[-2:]}T00:00:00+00:00", True, "better")
    return dataclasses.replace(run, **changed)


def test_adapters_of_old_trainings_go_but_not_what_serves_nor_where_rollback_leads(tmp_path: Path) -> None:
    workspace = config.init_workspace(_empty(tmp_path), str(tmp_path / "state"))
    with Ledger(workspace.ledger) as ledger:
        for number in range(1, 10):
            run = finished(f"r{number:02}", promoted=number in (1, 2, 3, 4))
            ledger.put_run(run)
            adapter = workspace.runs / run.id / "adapter"
            adapter.mkdir(parents=True)
            (adapter / "adapter_model.safetensors").write_bytes(b"x")
            registry.record(workspace, ledger, run)
        workspace.current.write_text("r04\n", encoding="utf-8")
        ledger.set("promotions", json.dumps(["", "r01", "r02", "r03"]))
        ledger.put_run(finished("r10", status="interrupted"))
        assert registry.prune(workspace, ledger, keep=2) == ["r01", "r05", "r06", "r07"]
        left = [number for number in range(1, 10) if registry.has_adapter(workspace, f"r{number:02}")]
        assert left == [2, 3, 4, 8, 9]
        assert (workspace.runs / "r05" / "run.json").is_file()
        assert not (workspace.runs / "r05" / "adapter").exists()
        assert registry.prune(workspace, ledger, keep=2) == []
        with pytest.raises(ModelError, match="is gone"):
            registry.promote(workspace, ledger, "r01")
        # somebody deleted one by hand: it is passed over, and the way ends at the base alone
        (workspace.runs / "r03" / "adapter" / "adapter_model.safetensors").unlink()
        assert registry.rollback(workspace, ledger) == ("r04", "r02")
        assert registry.rollback(workspace, ledger) == ("r02", "")
        with pytest.raises(UsageError, match="nothing to roll back"):
            registry.rollback(workspace, ledger)


@pytest.fixture
def three(tmp_path: Path) -> Any:
    """A workspace with three runs of which none answers, and its ledger."""
    workspace = config.init_workspace(_empty(tmp_path), str(tmp_path / "state"))
    with Ledger(workspace.ledger) as ledger:
        for number in (1, 2, 3):
            ledger.put_run(finished(f"r{number:02}", promoted=False))
            adapter = workspace.runs / f"r{number:02}" / "adapter"
            adapter.mkdir(parents=True)
            (adapter / "adapter_model.safetensors").write_bytes(b"x")
        yield workspace, ledger


def test_a_promotion_that_was_killed_at_any_moment_loses_no_way_back(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, ledger = three
    registry.let_answer(workspace, ledger, registry.find(ledger, "r01"))
    registry.let_answer(workspace, ledger, registry.find(ledger, "r02"))
    point = registry._point

    def dies(*_: Any) -> None:
        raise KeyboardInterrupt

    def points_and_dies(*given: Any) -> None:
        point(*given)
        raise KeyboardInterrupt

    for there, then in ((dies, "r02"), (points_and_dies, "r03")):
        monkeypatch.setattr(registry, "_point", there)
        with pytest.raises(KeyboardInterrupt):
            registry.let_answer(workspace, ledger, registry.find(ledger, "r03"))
        assert registry.current(workspace) == then
    monkeypatch.setattr(registry, "_point", point)
    assert [registry.rollback(workspace, ledger)[1] for _ in range(3)] == ["r02", "r01", ""]


def test_a_rollback_that_was_killed_has_happened_or_not(three: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace, ledger = three
    for run_id in ("r01", "r02", "r03"):
        registry.let_answer(workspace, ledger, registry.find(ledger, run_id))
    point = registry._point

    def points_and_dies(*given: Any) -> None:
        point(*given)
        raise KeyboardInterrupt

    monkeypatch.setattr(registry, "_point", points_and_dies)
    with pytest.raises(KeyboardInterrupt):
        registry.rollback(workspace, ledger)
    monkeypatch.setattr(registry, "_point", point)
    assert registry.current(workspace) == "r02"
    assert [registry.rollback(workspace, ledger)[1] for _ in range(2)] == ["r01", ""]
    registry.let_answer(workspace, ledger, registry.find(ledger, "r01"))
    assert registry.rollback(workspace, ledger) == ("r01", "")


def test_a_training_that_met_a_full_disk_goes_on_and_a_failed_one_leaves_no_checkpoint(
    job: steps.Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vaultllm import train as lora

    def breaks(error: Exception) -> Run:
        def at_once(base: str, taught: Any, folder: Path, *_: Any, **__: Any) -> None:
            (folder / "checkpoints" / "writing.tmp").mkdir(parents=True, exist_ok=True)
            raise error

        monkeypatch.setattr(lora, "train_lora", at_once)
        with pytest.raises(type(error)):
            trained(job, seed=7)
        return job.ledger.runs()[-1]

    full = breaks(OSError(28, "No space left on device", "x"))
    assert full.status == "interrupted"
    assert "goes on" in full.reason
    failed = breaks(ModelError("the loss is not a number"))
    assert failed.status == "failed"
    registry.prune(job.workspace, job.ledger, keep=5)
    assert [(job.workspace.runs / run.id / "checkpoints").exists() for run in (full, failed)] == [True, False]


def test_a_base_whose_training_was_killed_goes_with_the_next_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vaultllm.models import micro

    workspace = config.init_workspace(_empty(tmp_path), str(tmp_path / "state"))
    for name in ("micro-1.tmp", "micro-2", "micro-3"):
        (workspace.bases / name).mkdir(parents=True)
    (workspace.bases / "micro-3" / "seen.json").write_text("{}")
    (workspace.bases / "samples-00.json").write_text("{}")
    monkeypatch.setattr(micro, "pretrain", lambda _, folder, **__: folder.mkdir())
    made, is_new = training.micro_base(workspace, Dataset("d", (), ()), minutes=1, seed=0, progress=nothing, fresh=True)
    assert is_new
    assert {path.name for path in workspace.bases.iterdir()} == {"micro-3", "samples-00.json", made.name}


def test_the_line_of_descent_is_flat_along_what_answered_and_branches_where_something_was_refused() -> None:
    runs = [
        finished("a01"),
        finished("a02", "a01", promoted=False, reason="it got worse"),
        finished("a03", "a01"),
        finished("a04", "a03", promoted=False, reason=""),
        finished("b05", "a03", base="/bases/b"),
        finished("a06", "lost", status="failed", promoted=False),
        finished("a07", "a02", metrics={"forced": {"reason": "x"}}),
    ]
    rows = lineage.descent(runs, "a03")
    assert [(row["run"], row["depth"], row["last"]) for row in rows] == [
        ("a06", 0, False), ("a01", 0, False), ("a02", 1, False), ("a07", 1, False), ("a03", 0, False), ("a04", 1, True), ("b05", 0, False)
    ]  # fmt: skip
    decided = {row["run"]: row["decision"] for row in rows}
    assert decided == {
        "a01": "promoted", "a02": "refused", "a03": "promoted", "a04": "not judged", "b05": "promoted", "a06": "failed", "a07": "forced"
    }  # fmt: skip
    assert [row["run"] for row in rows if row["answers"]] == ["a03"]
    nights = [finished(f"n{number:04}", f"n{number - 1:04}" if number else "") for number in range(3000)]
    chain = lineage.descent(nights, "")
    assert [row["run"] for row in chain] == [run.id for run in nights]
    assert {row["depth"] for row in chain} == {0}


def _empty(root: Path) -> Path:
    (root / "vault").mkdir()
    return root / "vault"


def test_a_base_reads_neither_tasks_nor_what_is_held_out(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}

    def pretrain(examples: Any, folder: Path, **options: Any) -> None:
        given.update(options, examples=examples)
        folder.mkdir(parents=True)

    monkeypatch.setattr("vaultllm.models.micro.pretrain", pretrain)
    built = dataset.build(job.ledger.scenes(), val=0.2, test=0.2, tasks_share=0.3)
    assert all(dataset.counts(built)[name] for name in ("train", "val", "test", "task"))
    base, _ = training.micro_base(job.workspace, built, minutes=0.05, seed=0, progress=nothing, fresh=True)
    assert {(one.split, one.form) for one in given["examples"]} <= {("train", "prose"), ("train", "dialogue")}
    assert {one.split for one in given["val"]} == {"val"}
    seen = json.loads((base / "seen.json").read_text(encoding="utf-8"))
    assert set(seen["scenes"]) == built.learnt().keys()
    (base / "seen.json").unlink()  # no base for the tests after this one


def test_a_run_names_the_scenes_that_it_learnt_with_their_hashes(job: steps.Job) -> None:
    run = next(run for run in job.ledger.runs() if run.status == "done")
    written = json.loads((job.workspace.runs / run.id / "scenes.json").read_text(encoding="utf-8"))
    built = dataset.read(job.workspace.datasets / run.dataset)
    assert written == built.learnt() != {}
    assert {example.split for example in built.examples} >= {"train", "val"}
    assert written.keys() < built.scenes.keys()


def test_doctor_notices_an_adapter_that_is_not_what_was_trained(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    job = steps.Job(config.init_workspace(tmp_path / "vault", str(tmp_path / "state")))
    adapter = job.workspace.runs / "r1" / "adapter"
    adapter.mkdir(parents=True)
    weights = b"weights as they were written"
    (adapter / "adapter_model.safetensors").write_bytes(weights)
    noted = {"adapter_sha256": hashlib.sha256(weights).hexdigest()}
    run = Run("r1", "lora", "a hub's id", "", "", {}, 0, "", "done", noted, {}, "2025-06-15T00:00:00+00:00", True)
    registry.record(job.workspace, job.ledger, run)
    registry.let_answer(job.workspace, job.ledger, run)
    assert steps.doctor(job)["ok"]
    (adapter / "adapter_model.safetensors").write_bytes(weights[:-1] + b"\0")
    (found,) = steps.doctor(job, repair=True)["problems"]
    assert found["code"] == "E-RUN"
    assert "adapter_model.safetensors of run r1 is not what was written after training; mend: vaultllm rollback" in found["message"]
    steps.rollback(job)
    assert steps.doctor(job)["ok"]
    job.close()


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_a_record_that_was_half_written_by_a_kill_is_written_by_the_next_start(tmp_path: Path) -> None:
    job = steps.Job(config.init_workspace(_empty(tmp_path), str(tmp_path / "state")))
    folder = job.workspace.runs / "20250615-1"
    folder.mkdir(parents=True)
    registry.record(job.workspace, job.ledger, finished("20250615-1"))
    program = (
        "import os, signal, sys; from pathlib import Path; from vaultllm import files\n"
        "os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)\n"
        "files.write_whole(Path(sys.argv[1]), '{')"
    )
    killed = subprocess.run([sys.executable, "-c", program, str(folder / "run.json")], check=False)
    assert killed.returncode == -9
    assert len(list(folder.iterdir())) == 2
    job.ledger.put_run(finished("20250615-1", reason="as good as the base"))  # the ledger had come further than the file

    steps.ingest(job)
    assert [path.name for path in folder.iterdir()] == ["run.json"]
    assert json.loads((folder / "run.json").read_text(encoding="utf-8"))["reason"] == "as good as the base"
    wrote = (folder / "run.json").stat().st_mtime_ns
    steps.ingest(job)
    assert (folder / "run.json").stat().st_mtime_ns == wrote
    job.close()
