"""What a machine can train: counted as torch counts it, measured in seconds, never larger than its memory."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import math
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import config, dataset, evaluate, fit, hardware, steps, train, training, training_views
from vaultllm.config import TrainSettings
from vaultllm.evaluate import Window
from vaultllm.fit import Shape
from vaultllm.hardware import Speed
from vaultllm.models import packed
from vaultllm.schema import Progress

TINY = Shape("tiny", 2, 64, 4, 2, 32, 160, 512, True)
SETTINGS = TrainSettings(rank=4, alpha=8, max_tokens=256, epochs=2.0)


def silent(progress: Progress) -> None:
    """Nobody looks."""


def built(base: Shape, device: str = "cpu") -> Any:
    """A random Qwen3 of this shape with an adapter."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config_ = Qwen3Config(
        vocab_size=base.vocabulary, hidden_size=base.width, intermediate_size=base.inner, num_hidden_layers=base.layers,
        num_attention_heads=base.heads, num_key_value_heads=base.shared, head_dim=base.head, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        model = Qwen3ForCausalLM(config_)
    model.requires_grad_(False)
    return model


def batch(base: Shape, sequence: int, rows: int) -> Any:
    ids = [random.Random(0).randrange(base.vocabulary) for _ in range(sequence)]
    return evaluate.pad([Window(ids, [False] + [True] * (sequence - 1))] * rows)


@pytest.mark.parametrize("base", hardware.BASES, ids=lambda base: base.name)
def test_parameters_are_those_of_the_model(base: Shape):
    model = built(base, "meta")
    assert base.parameters() == pytest.approx(sum(weight.numel() for weight in model.parameters()), rel=2e-3)


def test_the_named_sizes_are_what_they_are_called():
    sizes = [base.parameters() / 1e6 for base in hardware.BASES[1:]]
    assert sizes == pytest.approx([135, 600, 1700, 4000], rel=0.02)


def test_an_adapters_parameters_and_the_work_of_a_step_are_those_that_torch_counts():
    from torch.utils.flop_counter import FlopCounterMode

    for base, sequence in ((TINY, 64), (TINY._replace(layers=3, width=128, inner=96, vocabulary=2048), 128)):
        model = built(base)
        model.set_attn_implementation("eager")  # of the fused kernel torch counts nothing
        model = train.adapted(model, SETTINGS, 0).train()
        assert base.adapter(SETTINGS.rank) == sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
        with FlopCounterMode(display=False) as counter:
            evaluate.token_losses(model, *batch(base, sequence, 2))[0].mean().backward()
        assert base.flops(sequence, SETTINGS.rank) == pytest.approx(counter.get_total_flops() / (2 * sequence), rel=0.1)


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize(("device", "sequence"), [("cuda", 64), ("cpu", 64), ("cpu", 384)])
def test_what_waits_for_the_backward_pass_is_what_autograd_keeps(half: bool, device: str, sequence: int):
    import torch

    def kept(base: Shape) -> float:
        model = train.adapted(built(base).to(torch.bfloat16 if half else torch.float32), SETTINGS, 0).train()
        weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
        storages: dict[int, Any] = {}

        def pack(tensor: Any) -> Any:
            if tensor.untyped_storage().data_ptr() not in weights:
                storages[tensor.untyped_storage().data_ptr()] = tensor
            return tensor

        # On a GPU it is peft's and transformers' own layers that run, in the same way.
        layers = packed.applied(model) if device == "cpu" else contextlib.nullcontext()
        with layers, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            losses = evaluate.token_losses(model, *batch(base, sequence, 2))[0]
        assert len(losses) == 2 * (sequence - 1)
        return sum(tensor.untyped_storage().nbytes() for tensor in storages.values()) / (2 * sequence)

    shapes = [
        TINY,
        TINY._replace(width=128, shared=4),
        TINY._replace(inner=512, heads=2),
        TINY._replace(width=512),
        TINY._replace(heads=16),
    ]
    for base in shapes if sequence == 64 else shapes[:2]:
        found = kept(base._replace(layers=3)) - kept(base)
        # On a CPU our own layers keep less of long sequences; too little must not be said of any.
        assert 0.95 * found <= base.kept(half, device, sequence) <= (1.05 if device == "cuda" else 1.5) * found


def where(free_mb: int, bf16: bool = True, device: str = "cpu") -> dict[str, Any]:
    return {"device": device, "free_mb": free_mb, "bf16": bf16}


def test_a_line_says_what_a_training_would_take():
    base, settings = hardware.BASES[2], TrainSettings(max_tokens=1024)
    found = [Speed(1024, True, 512, 0.0, 1e12)]
    for free in (60_000, 4_000, 2_500, 500):
        line = hardware.row(base, settings, where(free, device="cuda"), found, 1000)
        taken = fit.choose(base, device="cuda", free_mb=free, bf16=True, sequence=1024, rank=settings.rank)
        assert (line["batch_tokens"], line["sequence"], line["memory_mb"]) == (taken.tokens, taken.sequence, taken.memory_mb)
        assert (line["checkpointing"], line["fits"], line["why"]) == (taken.checkpointing, taken.fits, list(taken.reasons))
        again = fit.RECOMPUTED if taken.checkpointing else 1.0
        assert line["tokens_per_s"] == pytest.approx(1e12 / base.flops(taken.sequence, settings.rank) / again, rel=1e-3)
    assert line["fits"] is False


def test_hours_are_passes_over_the_tokens_at_the_speed():
    base, settings = hardware.BASES[1], TrainSettings(epochs=3.0)
    found = [Speed(576, True, 512, 0.0, 1e12), Speed(1024, True, 512, 0.0, 2e12)]
    line = hardware.row(base, settings, where(64_000), found, 1_000_000)
    assert line["tokens_per_s"] == pytest.approx(1e12 / base.flops(512, 16), abs=0.05)
    assert line["hours"] == pytest.approx(3_000_000 / line["tokens_per_s"] / 3600, rel=1e-2)
    assert line["estimated"] is True
    loss = hardware.row(base, settings, where(64_000), found, 1_000_000, 1e-8)["tokens_per_s"]
    assert 1 / loss == pytest.approx(1 / line["tokens_per_s"] + 1e-8 * base.vocabulary, rel=1e-2)
    assert hardware.row(base, settings, where(64_000), found, None)["hours"] is None
    assert hardware.row(base, settings, where(100), found, 1_000_000)["hours"] is None  # how long, where it does not fit
    assert hardware.row(base, settings, where(64_000), [], 1_000_000)["tokens_per_s"] is None
    slow = hardware.row(base, settings, where(64_000, bf16=False), found, 1_000_000)
    assert (slow["dtype"], slow["tokens_per_s"]) == ("float32", None)  # bf16 says nothing about fp32
    micro = hardware.row(hardware.BASES[0], settings, where(64_000), [Speed(256, False, 512, 0.0, 1e11)], 10)
    assert (micro["dtype"], micro["estimated"]) == ("float32", False)  # what is made here is fp32, whatever is fast


def test_speed_between_measured_widths_and_beyond_them():
    found = [Speed(1000, True, 512, 0.0, 4e12), Speed(10, True, 512, 0.0, 1e12), Speed(500, False, 512, 0.0, 9e12)]
    assert hardware.flops_per_s(found, 10, True) == pytest.approx(1e12)
    assert hardware.flops_per_s(found, 100, True) == pytest.approx(2e12)
    assert hardware.flops_per_s(found, 1000, True) == pytest.approx(4e12)
    assert hardware.flops_per_s(found, 5000, True) == 4e12  # rather too little than too much
    assert hardware.flops_per_s(found, 1, True) == 1e12
    assert hardware.flops_per_s(found, 1000, False) == 9e12
    assert hardware.flops_per_s([], 1000, True) is None


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    torch.set_num_threads(1)
    middle, large = TINY._replace(name="middle", width=96), TINY._replace(name="large", width=128)
    monkeypatch.setattr(hardware, "BASES", (TINY._replace(name="micro", half=False), middle, large))


@pytest.mark.usefixtures("small")
def test_a_probe_measures_what_it_says_and_leaves_the_random_numbers_alone():
    import torch

    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    seen: list[Progress] = []
    found = hardware.probe(SETTINGS, 10_000, seen.append, seconds=1.5)
    assert torch.equal(torch.rand(3), expected)
    assert json.loads(json.dumps(found)) == found
    assert [one["width"] for one in found["measured"]] == [64, 96, 128]
    assert [one["half"] for one in found["measured"]] == [False, found["device"]["bf16"], found["device"]["bf16"]]
    for one in found["measured"]:
        assert one["tokens_per_s"] > 0
        assert 64 <= one["sequence"] <= SETTINGS.max_tokens
    for line in found["bases"]:
        assert line["fits"]
        assert line["hours"] == pytest.approx(20_000 / line["tokens_per_s"] / 3600, abs=1e-3)
    assert found["measured"][0]["sequence"] == SETTINGS.max_tokens
    assert found["bases"][0]["tokens_per_s"] == pytest.approx(found["measured"][0]["tokens_per_s"], rel=1e-2)  # measured whole
    assert 0 < hardware.logit_seconds("cpu", False) < 1e-6
    assert found["device"]["free_mb"] <= found["device"]["memory_mb"]
    assert found["seconds"] < 30
    assert [one.done for one in seen] == sorted(one.done for one in seen)


@pytest.mark.usefixtures("small")
def test_a_machine_without_the_memory_to_measure_is_told_so_without_a_traceback(monkeypatch: pytest.MonkeyPatch):
    import torch

    real = hardware._step

    def full(model: Any, optimizer: Any, base: Shape, *rest: Any) -> float:
        if base.width > 64:
            raise torch.OutOfMemoryError("out of memory")
        return real(model, optimizer, base, *rest)

    monkeypatch.setattr(hardware, "_step", full)
    found = hardware.probe(SETTINGS, 1000, silent, seconds=0.5)
    assert [one["width"] for one in found["measured"]] == [64]
    shown = {line["base"]: line["tokens_per_s"] for line in found["bases"]}
    assert shown["micro"] > 0
    if found["device"]["bf16"]:
        assert shown["large"] is None


def job_on(vault: Path, base: Path | None) -> steps.Job:
    vault.mkdir()
    for number in range(24):
        (vault / f"{number}.md").write_text(f"# Река {number}\n\n" + f"Вода поднялась на {number} сантиметров. " * 12, encoding="utf-8")
    return steps.Job(config.init_workspace(vault, str(vault.parent / "state"), None if base is None else str(base)))


@pytest.mark.usefixtures("small")
def test_doctor_shows_a_table_when_it_is_asked_to(tmp_path: Path):
    from rich.console import Console

    job = job_on(tmp_path / "vault", None)
    console = Console(width=140, record=True, file=io.StringIO())
    try:
        empty = steps.doctor(job, probe=True)
        assert empty["ok"]
        assert (empty["training"]["dataset_tokens"], empty["training"]["bases"][0]["hours"]) == (None, None)
        steps.ingest(job)
        assert "training" not in steps.doctor(job)
        result = steps.doctor(job, probe=True)
        console.print(training_views.doctor(empty))
        console.print(training_views.doctor(result))
    finally:
        job.close()
    shown = console.export_text()
    assert "nothing to train on yet" in shown
    assert result["training"]["dataset_tokens"] > 100
    assert "no base is here whose tokenizer could count" in shown
    for said in ("all is well", "micro", "middle", "large", "fits", "tokens/s", " min", f"{result['training']['dataset_tokens']:,} tokens"):
        assert said in shown
    more = {**result, "training": {**result["training"], "others_per_core": 0.9}}
    console.print(training_views.doctor(more))
    assert "kept each core 90% busy" in console.export_text()


def test_tokens_of_a_pass_are_counted_by_the_bases_tokenizer_and_a_sample_comes_near(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    job = job_on(tmp_path / "vault", models.build(tmp_path / "base", "llama"))
    try:
        steps.ingest(job)
        data = dataset.prepare(job.ledger.scenes(), job.workspace.settings.train)
        exact = training.tokens(job.workspace, job.ledger, data)
        assert exact is not None
        whole = exact["train_learnt"] + exact["train_context"]
        assert training.pass_tokens(job.workspace, job.ledger, data) == (whole, True)
        monkeypatch.setattr(training, "SAMPLE_EXAMPLES", 5)
        assert training.pass_tokens(job.workspace, job.ledger, data)[0] == pytest.approx(whole, rel=0.1)
        nothing = dataclasses.replace(data, examples=())
        assert training.pass_tokens(job.workspace, job.ledger, nothing) == (0, True)
    finally:
        job.close()


def test_doctor_alone_loads_no_torch(tmp_path: Path):
    job = job_on(tmp_path / "vault", None)
    job.close()
    code = (
        "import sys\nfrom vaultllm import config, steps\njob = steps.Job(config.open_workspace(sys.argv[1], sys.argv[2]))\n"
        "assert steps.doctor(job)['ok']\nassert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(job.workspace.vault), str(job.workspace.state)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("hours", "said"), [(None, ""), (0.0, "1 min"), (0.5, "30 min"), (0.999, "60 min"), (1.0, "1.0 h"), (47.0, "47.0 h"), (100.0, "4 days")]
)
def test_a_time_is_said_as_a_person_says_it(hours: float | None, said: str):
    assert training_views._hours(hours) == said
    assert math.isfinite(hours or 0.0)
