"""LoRA: it learns by effect, only what may be learnt, within its time, and survives an interruption."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import checkpoints, evaluate, fit, loop, train
from vaultllm.config import TrainSettings
from vaultllm.dataset import Dataset
from vaultllm.errors import DataError, ModelError
from vaultllm.models import hf, packed
from vaultllm.power import Wait
from vaultllm.schema import Example, Message, Progress

pytestmark = pytest.mark.usefixtures("one_thread")
ANSWERS = ("Дождь идёт над рекой.", "The pump starts when the soil is dry.", "নদীর জল বেড়েছে।")


def example(i: int) -> Example:
    """A regular corpus: the answer follows from the question's first word."""
    kind = i % 3
    said = (Message("user", f"{('Погода', 'Pump', 'নদী')[kind]} {i}?", False), Message("assistant", ANSWERS[kind], True))
    return Example(f"{i}", (f"{i}",), f"{i}.md", "dialogue", said, "val" if i % 6 == 5 or i % 6 == 0 else "train")


def corpus(n: int = 72, extra: Sequence[Example] = ()) -> Dataset:
    examples = (*map(example, range(n)), *extra)
    return Dataset("d" * 16, examples, (), {one.id: "" for one in examples})


def settings(**changes: Any) -> TrainSettings:
    return TrainSettings(**({"minutes": 5.0, "epochs": 2.0, "rank": 8, "alpha": 16, "learning_rate": 1e-2, "max_tokens": 128} | changes))


def silent(progress: Progress) -> None:
    """Nobody looks."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {shape: models.build(root / shape, shape) for shape in models.SHAPES}


@pytest.mark.drawn
@pytest.mark.parametrize("shape", models.SHAPES)
def test_an_adapter_learns_by_effect_and_plain_peft_loads_it(bases: dict[str, Path], tmp_path: Path, shape: models.Shape):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base, data = bases[shape], corpus(96)  # 32 held-out notes: enough to decide
    untouched = hf.fingerprint(base)
    seen: list[Progress] = []
    metrics = train.train_lora(str(base), data, tmp_path / "run", settings(epochs=8.0), progress=seen.append)
    assert hf.fingerprint(base) == untouched

    held_out = data.split("val")
    plain = hf.load(str(base))
    before = evaluate.score(plain.model, plain.tokenizer, held_out, max_tokens=128)
    assert metrics["bpb_before"] == pytest.approx(evaluate.bits_per_byte(before), rel=1e-5)
    assert metrics["bpb_after"] < metrics["bpb_before"] - 0.1
    assert metrics["interval"]["decided"]
    assert metrics["verdict"].startswith("better")
    assert metrics["loss_last"] < metrics["loss_first"]

    with hf.library_warnings_ignored():
        bare = AutoModelForCausalLM.from_pretrained(base, local_files_only=True)
        theirs = PeftModel.from_pretrained(bare, str(tmp_path / "run" / "adapter")).eval()
    ours = hf.load(str(base), tmp_path / "run" / "adapter")
    after = evaluate.score(ours.model, ours.tokenizer, held_out, max_tokens=128)
    assert evaluate.bits_per_byte(after) == pytest.approx(metrics["bpb_after"], rel=1e-5)
    assert evaluate.score(theirs, ours.tokenizer, held_out, max_tokens=128) == after
    with evaluate.base_only(ours.model):
        assert evaluate.score(ours.model, ours.tokenizer, held_out, max_tokens=128) == before
    ids = evaluate.encode(ours.tokenizer, held_out[0])[0][:8]
    assert "".join(hf.generate(ours, ids, max_new_tokens=8)) != "".join(hf.generate(plain, ids, max_new_tokens=8))

    assert {one.phase for one in seen} >= {"LoRA", "measuring"}
    assert all(0 <= one.done <= 1 for one in seen)
    assert (tmp_path / "run" / "plot.png").read_bytes().startswith(b"\x89PNG")
    note = json.loads((tmp_path / "run" / "vaultllm.json").read_text())
    assert (note["base_sha"], note["dataset"], note["adapter_sha256"]) == (untouched, data.id, metrics["adapter_sha256"])
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, metrics["steps"] + 1))
    assert lines[-1].keys() == {"step", "loss", "lr", "seconds", "tokens_per_s"}
    assert lines[-1]["lr"] < 0.1 * max(line["lr"] for line in lines)
    assert not (tmp_path / "run" / "checkpoints").exists()
    adapted = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapted["target_modules"] == sorted(adapted["target_modules"])
    assert len(adapted["target_modules"]) >= 4
    assert not any(name.endswith(("lm_head", "wte", "embed_tokens")) for name in adapted["target_modules"])


@pytest.mark.drawn
def test_training_says_nothing_and_writes_only_into_its_run(
    bases: dict[str, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    train.train_lora(str(bases["qwen3"]), corpus(18), tmp_path / "run", settings(epochs=1.0), progress=silent)
    assert capfd.readouterr() == ("", "")
    assert {path.name for path in tmp_path.iterdir()} == {"here", "run"}
    assert not list((tmp_path / "here").iterdir())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        *("adapter", "metrics.jsonl", "plot.png", "reload.json", "scores.json", "vaultllm.json")
    }
    assert {path.name for path in (tmp_path / "run" / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_only_the_assistants_tokens_are_labels(bases: dict[str, Path]):
    loaded = hf.load(str(bases["qwen3"]))
    data = train._data(loaded, [example(0), example(1), example(2)], 128, 0)
    batch = loop._collator(data)(data.batches)
    assert {loaded.tokenizer.decode(row[row != -100]) for row in batch["labels"]} == {answer + "<|im_end|>" for answer in ANSWERS}
    assert int(batch["attention_mask"].sum()) == sum(len(piece.ids) for piece in data.pieces)
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        assert (labels[mask == 0] == -100).all()
        assert (ids[labels != -100] == labels[labels != -100]).all()


def test_a_long_example_is_cut_into_windows_that_lose_nothing_and_are_counted(bases: dict[str, Path]):
    loaded = hf.load(str(bases["qwen3"]))
    text = " ".join(f"word{i}" for i in range(300))
    long = Example("long", ("long",), "long.md", "prose", (Message("user", text, True),), "train")
    data = train._data(loaded, [long, example(1)], 64, 0)
    assert data.cut == 1
    learnt = sum(sum(piece.learn) for piece in data.pieces)
    assert learnt == sum(sum(evaluate.encode(loaded.tokenizer, one)[1]) for one in (long, example(1)))
    assert all(len(piece.ids) <= 64 for piece in data.pieces)
    assert sorted(i for batch in data.batches for i in batch) == list(range(len(data.pieces)))


def test_an_examples_weight_is_its_share_in_the_loss(bases: dict[str, Path], tmp_path: Path):
    """Weight zero teaches nothing: the held-out cost of that kind of answer stays, of the others it falls."""
    base = str(bases["llama"])
    prefix = [
        Example(f"w{i}", (f"w{i}",), f"w{i}.md", "prose", (Message("user", "zzz qqq", True),), "train", weight=0.0) for i in range(24)
    ]
    without = train.train_lora(base, corpus(48, prefix), tmp_path / "without", settings(epochs=4.0), progress=silent)
    full = [Example(one.id, one.scenes, one.path, one.form, one.messages, one.split) for one in prefix]
    train.train_lora(base, corpus(48, full), tmp_path / "with", settings(epochs=4.0), progress=silent)
    cost = []
    for run in ("without", "with"):
        loaded = hf.load(base, tmp_path / run / "adapter")
        cost.append(evaluate.bits_per_byte(evaluate.score(loaded.model, loaded.tokenizer, prefix[:1], max_tokens=64)))
    assert cost[1] < cost[0] - 0.3
    assert without["bpb_after"] < without["bpb_before"]


def stopping(at: int, stop: Callable[[], None]) -> Callable[[Progress], None]:
    def progress(one: Progress) -> None:
        if one.phase == "LoRA" and one.step >= at:
            stop()

    return progress


def ctrl_c() -> None:
    raise KeyboardInterrupt


def sigterm() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("stop", [ctrl_c, sigterm])
def test_an_interrupted_training_goes_on_to_the_same_adapter(
    bases: dict[str, Path], tmp_path: Path, stop: Callable[[], None], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))  # at every step
    base, data, run = str(bases["gpt2"]), corpus(36), tmp_path / "run"  # GPT-2 has dropout: the random state counts
    whole = train.train_lora(base, data, tmp_path / "whole", settings(), progress=silent)
    assert whole["steps"] > 4
    handler = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train.train_lora(base, data, run, settings(), progress=stopping(3, stop))
    assert signal.getsignal(signal.SIGTERM) is handler
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert not (run / "adapter").exists()
    random.seed()  # another process would have other random numbers
    steps = []
    metrics = train.train_lora(base, data, run, settings(), progress=lambda one: steps.append(one.step), resume=True)
    assert min(step for step in steps if step) >= 3
    assert metrics["adapter_sha256"] == whole["adapter_sha256"]
    assert metrics["tokens"] == whole["tokens"]
    assert metrics["loss_last"] == pytest.approx(whole["loss_last"])
    lines = [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert lines == list(range(1, whole["steps"] + 1))


class Small:
    """A memory for so many tokens of a pass with gradients: more of them fail, in the forward pass or halfway through the backward one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int, error: Callable[[], BaseException], *, backward: bool = False) -> None:
        self.most, self.error, self.seen, self.failed = most, error, [], 0
        real = evaluate.token_losses

        def losses(model: Any, ids: Any, mask: Any, labels: Any) -> Any:
            if not model.training:
                return real(model, ids, mask, labels)
            self.seen.append(ids.numel())
            if ids.numel() <= self.most:
                return real(model, ids, mask, labels)
            if not backward:
                self.fail()
            lowest = model.get_submodule("base_model.model.model.layers.0")
            watched = lowest.register_forward_hook(lambda layer, given, made: made.register_hook(self.fail) and None)
            found = real(model, ids, mask, labels)
            watched.remove()
            return found

        monkeypatch.setattr(evaluate, "token_losses", losses)

    def fail(self, gradient: Any = None) -> None:
        self.failed += 1
        raise self.error()


def cuda_error() -> BaseException:
    import torch

    return torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def cpu_error() -> BaseException:
    return RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")


@pytest.mark.parametrize(("error", "backward"), [(cuda_error, False), (cuda_error, True), (cpu_error, False), (MemoryError, False)])
def test_when_the_memory_is_not_enough_the_batch_is_halved_and_the_step_is_the_same(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Callable[[], BaseException], backward: bool
):
    base, data = str(bases["llama"]), corpus(36)

    def losses(run: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / run / "metrics.jsonl").read_text().splitlines()]

    whole = train.train_lora(base, data, tmp_path / "whole", settings(), progress=silent)
    most = whole["chosen"]["batch_tokens"] // 2 - 1  # one half is not enough
    memory = Small(monkeypatch, most, error, backward=backward)
    said: list[str] = []
    metrics = train.train_lora(base, data, tmp_path / "small", settings(), progress=lambda one: said.append(one.phase))
    assert losses("small") == pytest.approx(losses("whole"), rel=1e-3)
    assert metrics["bpb_after"] == pytest.approx(whole["bpb_after"], rel=1e-3)
    assert metrics["steps"] == whole["steps"]
    assert memory.failed <= 3  # after that it is known what fits
    assert memory.seen[-5:] == [size for size in memory.seen[-5:] if size <= most]
    chosen = metrics["chosen"]
    assert (chosen["out_of_memory"], whole["chosen"]["out_of_memory"]) == (True, False)
    assert 0 < chosen["batch_tokens"] <= most
    varies = {"batch_tokens": 0, "free_mb": 0}
    assert {**chosen, **varies, "out_of_memory": False} == {**whole["chosen"], **varies}
    assert any(phase.startswith("out of memory: at most ") for phase in said)
    assert (metrics["tokens"]["learnt"], metrics["tokens"]["context"]) == (whole["tokens"]["learnt"], whole["tokens"]["context"])
    assert metrics["tokens"]["padding"] <= whole["tokens"]["padding"]


def test_a_backward_pass_that_fails_halfway_leaves_no_gradients_behind(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Looked at directly: Adam would hide a gradient that was added twice."""
    import torch

    found = []
    for most in (1_000_000, 150):
        loaded = hf.load(str(bases["llama"]))
        data = train._data(loaded, [example(i) for i in range(12)], 128, 0)
        model = train.adapted(loaded.model, settings(), 0)
        for name, weight in model.named_parameters():
            if "lora_B" in name:  # else nothing would reach the other half of the adapter
                torch.nn.init.normal_(weight, std=0.1)
        job = loop.Job(tmp_path, {}, loop.Pace(60.0, 10), loop.Log(), silent, 1e-3, 0, data)
        trainer = loop._trainer(model, job)
        with monkeypatch.context() as patched:
            memory = Small(patched, most, cuda_error, backward=True)
            for batch in ([0, 1], list(range(12))):  # the second one adds to what the first one left
                trainer.training_step(model, loop._collator(data)([batch]), torch.tensor(100))
        found.append({name: weight.grad for name, weight in model.named_parameters() if weight.requires_grad})
        assert (memory.failed > 0) is (most == 150)
        assert max(memory.seen) > 150
    for name, gradient in found[0].items():
        assert gradient.abs().max() > 0
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_what_fits_is_known_after_an_interruption_too(bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    base, data = str(bases["llama"]), corpus(36)
    memory = Small(monkeypatch, 60, cuda_error)
    monkeypatch.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))
    with pytest.raises(KeyboardInterrupt):
        train.train_lora(base, data, tmp_path, settings(), progress=stopping(3, ctrl_c))
    failed = memory.failed
    assert failed
    metrics = train.train_lora(base, data, tmp_path, settings(), progress=silent, resume=True)
    assert memory.failed == failed
    assert metrics["chosen"]["out_of_memory"] is True


def test_a_sequence_that_does_not_fit_by_itself_says_what_to_do_and_other_errors_stay_what_they_are(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    Small(monkeypatch, 1, cuda_error)
    with pytest.raises(ModelError, match=r"not enough for \d+ tokens; set train.max_tokens lower .* doctor --probe"):
        train.train_lora(str(bases["llama"]), corpus(18), tmp_path / "a", settings(epochs=1.0), progress=silent)
    Small(monkeypatch, 1, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        train.train_lora(str(bases["llama"]), corpus(18), tmp_path / "b", settings(epochs=1.0), progress=silent)


def test_the_halves_of_a_batch_are_the_batch(bases: dict[str, Path]):
    said = [Message("user", "Дождь " * count, True) for count in (1, 3, 5, 7, 9)]
    examples = [Example(str(i), (str(i),), f"{i}.md", "prose", (one,), "train", weight=i / 10) for i, one in enumerate(said)]
    data = train._data(hf.load(str(bases["qwen3"])), examples, 128, 0)
    by_length = sorted(range(5), key=lambda i: len(data.pieces[i].ids))
    whole = loop._collator(data)([by_length])
    halves = loop._halves(whole)
    assert halves[0]["input_ids"].shape[1] < halves[1]["input_ids"].shape[1] == whole["input_ids"].shape[1]
    assert [len(half["input_ids"]) for half in halves] == [2, 3]
    for half in halves:
        assert half["attention_mask"].any(0).all()  # no column of padding alone
    for name in ("input_ids", "labels"):
        rows = [row[mask.bool()].tolist() for half in halves for row, mask in zip(half[name], half["attention_mask"], strict=True)]
        assert rows == [row[mask.bool()].tolist() for row, mask in zip(whole[name], whole["attention_mask"], strict=True)]
    assert [weight for half in halves for weight in half["weights"].tolist()] == whole["weights"].tolist()


def test_a_training_that_may_not_go_on_stops_with_a_reason_and_comes_to_the_same_adapter(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, data, run = str(bases["gpt2"]), corpus(36), tmp_path / "run"
    whole = train.train_lora(base, data, tmp_path / "whole", settings(), progress=silent)
    asked: list[bool] = []

    def battery_from_step_3_on() -> Wait | None:
        asked.append(True)
        return Wait("on battery", "the plug was pulled") if len(asked) > 2 else None

    train.train_lora(base, data, tmp_path / "fast", settings(), progress=silent, ask=battery_from_step_3_on)
    assert not asked  # within half a minute nobody asks
    monkeypatch.setattr(loop, "ASK_SECONDS", 0.0)
    with pytest.raises(loop.Paused, match="the plug was pulled; the next vaultllm retrain goes on at step 3") as stopped:
        train.train_lora(base, data, run, settings(), progress=silent, ask=battery_from_step_3_on)
    assert (stopped.value.wait.status, stopped.value.step, len(asked)) == ("on battery", 3, 3)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["checkpoint-3"]
    random.seed()  # another process would have other random numbers
    asked.clear()
    metrics = train.train_lora(base, data, run, settings(), progress=silent, resume=True, ask=lambda: asked.append(True))
    assert len(asked) == whole["steps"] - 4  # three are done, and after the last one there is nothing to stop
    assert metrics["adapter_sha256"] == whole["adapter_sha256"]
    assert metrics["tokens"] == whole["tokens"]


def test_a_training_that_was_killed_goes_on_from_its_last_checkpoint(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    base, data, run = str(bases["gpt2"]), corpus(36), tmp_path / "run"
    whole = train.train_lora(base, data, tmp_path / "whole", settings(), progress=silent)
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))

    def power_cut() -> None:
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        train.train_lora(base, data, run, settings(), progress=stopping(5, power_cut))
    assert sorted(path.name for path in (run / "checkpoints").iterdir()) == ["checkpoint-3", "checkpoint-4"]
    random.seed()  # another process would have other random numbers
    metrics = train.train_lora(base, data, run, settings(), progress=silent, resume=True)
    assert metrics["adapter_sha256"] == whole["adapter_sha256"]
    assert metrics["tokens"] == whole["tokens"]


def test_a_training_stopped_while_it_is_measured_need_not_train_again(bases: dict[str, Path], tmp_path: Path):
    base, data, run = str(bases["qwen3"]), corpus(18), tmp_path / "run"

    def progress(one: Progress) -> None:
        if one.phase == "measuring" and one.step:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.train_lora(base, data, run, settings(epochs=1.0), progress=progress)
    before = (run / "adapter" / "adapter_model.safetensors").read_bytes()
    seen: list[Progress] = []
    metrics = train.train_lora(base, data, run, settings(epochs=1.0), progress=seen.append, resume=True)
    assert "LoRA" not in {one.phase for one in seen}
    assert (run / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert metrics["steps"] == metrics["steps_planned"]
    assert metrics["bpb_after"] != metrics["bpb_before"]


def test_a_checkpoint_of_another_training_is_refused_and_a_torn_one_ignored(bases: dict[str, Path], tmp_path: Path):
    base, data, run = str(bases["qwen3"]), corpus(36), tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):
        train.train_lora(base, data, run, settings(), progress=stopping(2, ctrl_c))
    (made,) = (run / "checkpoints").iterdir()
    with pytest.raises(ModelError, match=r"another training \(rank changed\)"):
        train.train_lora(base, data, run, settings(rank=4), progress=silent, resume=True)
    torn = shutil.copytree(made, run / "checkpoints" / "writing.tmp" / "checkpoint-9")
    (run / "checkpoints" / "checkpoint-99").mkdir()
    assert torn.exists()
    assert checkpoints.newest(run / "checkpoints", checkpoints.read(made)["identity"]) == made
    metrics = train.train_lora(base, data, run, settings(rank=4), progress=silent)  # not resumed: begins anew
    assert metrics["steps"] == metrics["steps_planned"]


def test_training_works_outside_the_main_thread(bases: dict[str, Path], tmp_path: Path):
    found: list[Any] = []
    work = threading.Thread(
        target=lambda: found.append(train.train_lora(str(bases["qwen3"]), corpus(18), tmp_path, settings(epochs=1.0), progress=silent))
    )
    work.start()
    work.join()
    assert found[0]["steps"] > 0


def test_nothing_to_learn_is_an_error(bases: dict[str, Path], tmp_path: Path):
    base = str(bases["qwen3"])
    with pytest.raises(DataError, match="nothing to train on"):
        train.train_lora(base, Dataset("x", (), ()), tmp_path, settings(), progress=silent)
    empty = Example("e", ("e",), "e.md", "prose", (Message("user", "", True),), "train")
    with pytest.raises(DataError, match="no token to learn"):
        train.train_lora(base, Dataset("x", (empty,), ()), tmp_path, settings(), progress=silent)


def test_a_loss_that_is_no_number_ends_the_training_and_leaves_no_adapter(bases: dict[str, Path], tmp_path: Path):
    with pytest.raises(ModelError, match=r"not a number at step \d+; set train\.learning_rate below 1e\+30"):
        train.train_lora(str(bases["llama"]), corpus(36), tmp_path, settings(learning_rate=1e30), progress=silent)
    assert not (tmp_path / "adapter").exists()


def test_a_base_that_is_no_causal_model_is_refused(bases: dict[str, Path], tmp_path: Path):
    folder = shutil.copytree(bases["qwen3"], tmp_path / "bert")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["BertForMaskedLM"], "model_type": "bert"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="BertForMaskedLM is not a causal"):
        train.train_lora(str(folder), corpus(18), tmp_path / "run", settings(), progress=silent)


def test_without_held_out_notes_it_trains_and_says_that_nothing_is_decided(bases: dict[str, Path], tmp_path: Path):
    data = Dataset("x", tuple(one for one in corpus(36).examples if one.split == "train"), ())
    metrics = train.train_lora(str(bases["qwen3"]), data, tmp_path, settings(epochs=1.0), progress=silent)
    assert (metrics["bpb_before"], metrics["bpb_after"], metrics["interval"]) == (None, None, None)
    assert metrics["verdict"].startswith("not enough to decide")


def test_the_default_learning_rate_depends_on_where_the_base_comes_from(bases: dict[str, Path], tmp_path: Path):
    micro = shutil.copytree(bases["qwen3"], tmp_path / "micro")
    (micro / "micro.json").write_text("{}")
    for base, rate in ((micro, 1e-3), (bases["qwen3"], 2e-4)):
        metrics = train.train_lora(str(base), corpus(12), tmp_path / "run", settings(epochs=1.0, learning_rate=None), progress=silent)
        assert metrics["learning_rate"] == rate


class Clock:
    """Time that passes when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("step_seconds", "planned", "taken"), [(1.0, 1000, 50), (1.0, 20, 20), (7.0, 1000, 7), (60.0, 1000, 1)])
def test_a_training_ends_within_its_time_and_annealed(step_seconds: float, planned: int, taken: int):
    clock, noise = Clock(), random.Random(0)
    pace = loop.Pace(50.0, planned, clock)
    pace.start(0.0)
    shares, step = [pace.share(0)], 0
    while not pace.over(step):
        clock.now += step_seconds * noise.uniform(0.95, 1.05)
        step += 1
        pace.step()
        shares.append(pace.share(step))
    assert step == pytest.approx(taken, abs=max(1, taken * 0.08)) if taken > 1 else step == 1
    assert clock.now - 100.0 <= 50.0 + (step_seconds if taken == 1 else 0.0)
    assert shares == sorted(shares)
    if taken > 1:  # the last step that was taken had nearly no learning rate left
        assert 1 - shares[step - 1] < 2.5 / step


def test_a_training_with_time_to_spare_does_not_look_at_the_clock():
    clock = Clock()
    pace = loop.Pace(1000.0, 10, clock)
    pace.start(0.0)
    shares = []
    for step in range(10):
        shares.append(pace.share(step))
        clock.now += random.uniform(0.1, 3.0)
        pace.step()
    assert shares == [step / 10 for step in range(10)]


def test_a_training_that_does_not_fit_stops_in_time(bases: dict[str, Path], tmp_path: Path):
    metrics = train.train_lora(str(bases["gpt2"]), corpus(), tmp_path, settings(epochs=100_000.0, minutes=0.05), progress=silent)
    assert 0 < metrics["steps"] < metrics["steps_planned"]
    assert metrics["seconds"] < 15  # three, on a machine that does nothing else
    rates = [json.loads(line)["lr"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert math.isfinite(sum(rates))


@pytest.mark.parametrize("packs", [True, False])
def test_the_tokens_of_a_pass_add_up_and_are_all_learnt_in_one(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, packs: bool
):
    if not packs:  # a model that cannot
        monkeypatch.setattr(packed, "proven", lambda model, sequences: False)
    loaded = hf.load(str(bases["gpt2"]))
    asked = (Message("user", "Какое слово пропущено? ____ идёт", False), Message("assistant", "Дождь", True))
    task = Example("task", ("0",), "1.md", "task", asked, "train", 1.0, "", "cloze")
    text = " ".join(f"word{i}" for i in range(200))
    long = Example("long", ("long",), "long.md", "prose", (Message("user", text, True),), "train")
    empty = Example("empty", ("empty",), "empty.md", "prose", (Message("user", "", True),), "train")
    corpus_ = corpus(36, [task, long, empty])
    metrics = train.train_lora(str(bases["gpt2"]), corpus_, tmp_path, settings(epochs=1.0, max_tokens=64), progress=silent)
    learnt = [evaluate.encode(loaded.tokenizer, one)[1] for one in corpus_.split("train")]
    assert metrics["tokens"] == metrics["tokens_one_pass"]
    assert metrics["tokens"]["learnt"] == sum(map(sum, learnt))
    assert metrics["tokens"]["learnt"] + metrics["tokens"]["context"] >= sum(len(flags) for flags in learnt) - len(learnt)
    assert (metrics["tokens"]["padding"] > 0) is not packs
    assert metrics["chosen"]["packed"] is packs
    assert (metrics["examples"], metrics["examples_empty"], metrics["examples_cut"]) == (len(learnt), 1, 1)


def test_a_task_counts_in_the_loss_by_its_weight(bases: dict[str, Path]):
    loaded = hf.load(str(bases["qwen3"]))
    light = replace(example(1), weight=0.5)
    data = train._data(loaded, [light, example(2)], 128, 0)
    assert sorted(data.weights) == [0.5, 1.0]
    batch = loop._collator(data)(data.batches)
    rows = {
        loaded.tokenizer.decode(row[row != -100]).removesuffix("<|im_end|>"): weight
        for row, weight in zip(batch["labels"], batch["weights"].tolist(), strict=True)
    }
    assert rows == {ANSWERS[1]: 0.5, ANSWERS[2]: 1.0}


def test_the_test_part_is_neither_learnt_nor_measured(bases: dict[str, Path], tmp_path: Path):
    """Not even by a hash of anything: with other examples in it everything comes out the same, bit by bit."""
    found = []
    for name in ("one", "other"):
        hidden = [replace(example(i), id=f"{name}{i}", path=f"{name}{i}.md", split="test") for i in range(100, 140)]
        data = corpus(36, hidden if name == "one" else [])
        metrics = train.train_lora(str(bases["llama"]), data, tmp_path / name, settings(epochs=1.0), progress=silent)
        kept = ("adapter_sha256", "bpb_before", "bpb_after", "bpb_dialogue_after", "val_examples", "val_notes", "examples", "tokens")
        found.append({key: metrics[key] for key in kept})
    assert found[0] == found[1]


@pytest.mark.parametrize("shape", models.SHAPES)
def test_gradient_checkpointing_changes_no_gradient_and_keeps_less(bases: dict[str, Path], shape: models.Shape):
    import torch

    def once(checkpointing: bool) -> tuple[Any, list[Any], int]:
        loaded = hf.load(str(bases[shape]))
        model = train.adapted(loaded.model, settings(), 0).train()
        if checkpointing:
            hf.checkpoint_blocks(model)
        frozen = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        kept: dict[int, int] = {}

        def pack(tensor: Any) -> Any:
            if tensor.untyped_storage().data_ptr() not in frozen:
                kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        torch.manual_seed(0)  # GPT-2 has dropout
        ids = list(range(3, 67))
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = evaluate.token_losses(model, *evaluate.pad([evaluate.Window(ids, [False] + [True] * 63)] * 4))[0]
            held = sum(kept.values())
        losses.mean().backward()
        return losses.detach(), [weight.grad for weight in model.parameters() if weight.requires_grad], held

    (plain, exact, much), (again, found, little) = once(False), once(True)
    assert torch.equal(plain, again)
    assert len(exact) == len(found) > 8
    for one, other in zip(exact, found, strict=True):
        torch.testing.assert_close(one, other)
    assert any(bool(one.abs().sum() > 0) for one in found)
    assert little < 0.7 * much  # two blocks, and the logits, which wait in both


def test_a_training_takes_what_fits_and_an_interrupted_one_what_it_began_with(
    bases: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))
    base, data = str(bases["llama"]), corpus(24)
    real = fit.machine

    def free(megabytes: int) -> None:
        monkeypatch.setattr(fit, "machine", lambda: real() | {"free_mb": megabytes})

    free(1)  # not even the least fits: it is tried all the same
    whole = train.train_lora(base, data, tmp_path / "whole", settings(max_tokens=256), progress=silent)
    chosen = whole["chosen"]
    assert (chosen["checkpointing"], chosen["sequence"], chosen["quantize"]) == (True, fit.SHORTEST, "")
    assert chosen["batch_tokens"] <= fit.SHORTEST
    assert (chosen["free_mb"], chosen["memory_mb"] > 1) == (1, True)
    assert "may be stopped" in chosen["why"][-1]
    assert whole["loss_last"] < whole["loss_first"]

    with pytest.raises(KeyboardInterrupt):
        train.train_lora(base, data, tmp_path / "run", settings(max_tokens=256), progress=stopping(2, ctrl_c))
    free(20_000)
    again = train.train_lora(base, data, tmp_path / "run", settings(max_tokens=256), progress=silent, resume=True)
    assert again["adapter_sha256"] == whole["adapter_sha256"]
    assert not (tmp_path / "run" / train.FIT).exists()
    anew = train.train_lora(base, data, tmp_path / "new", settings(max_tokens=256), progress=silent)
    assert (anew["chosen"]["checkpointing"], anew["chosen"]["sequence"]) == (False, 256)
