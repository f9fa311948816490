"""QLoRA: tried before it is believed, refused with a reason, and an adapter is used on the base that it was trained on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import models
from tests.test_train import corpus, settings
from vaultllm import evaluate, train
from vaultllm.errors import ModelError
from vaultllm.models import hf, nf4, reload
from vaultllm.schema import silent

works = pytest.mark.usefixtures("does_work")


@pytest.fixture
def does_work() -> None:
    """Asked when the test begins: to ask imports torch, which not every process that collects the tests needs."""
    if why := nf4.why_not("cpu"):
        pytest.skip(why)


@pytest.fixture(autouse=True)
def tried_anew() -> Iterator[None]:
    import torch

    torch.set_num_threads(1)
    nf4.why_not.cache_clear()
    yield
    nf4.why_not.cache_clear()


def library(layer: Any) -> SimpleNamespace:
    """What bitsandbytes is asked for."""
    return SimpleNamespace(nn=SimpleNamespace(Linear4bit=layer, Params4bit=lambda weight, **how: weight))


def test_without_bitsandbytes_the_reason_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    assert 'pip install "vaultllm[nf4]"' in nf4.why_not("cpu")
    base = str(models.build(tmp_path / "base", "llama"))
    with pytest.raises(ModelError, match=r"not installed.*train\.quantize") as refused:
        hf.load(base, quantize="nf4")
    assert refused.value.code == "E-MODEL"
    with pytest.raises(ModelError, match="nf4 cannot be used here"):
        train.train_lora(base, corpus(6), tmp_path / "run", settings(quantize="nf4"), progress=silent)


def test_a_library_that_breaks_or_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch):
    import torch

    def exact(*sizes: int, **how: Any) -> Any:
        return torch.nn.Linear(128, 128, bias=False)

    def twice(*sizes: int, **how: Any) -> Any:
        layer = torch.nn.Linear(128, 128, bias=False)
        layer.register_forward_hook(lambda module, given, said: 2 * said)
        return layer

    def broken(*sizes: int, **how: Any) -> Any:
        raise AttributeError("'NoneType' object has no attribute 'cquantize_blockwise'\nmore")

    def as_parameter(layer: Any) -> SimpleNamespace:
        found = library(layer)
        found.nn.Params4bit = lambda weight, **how: torch.nn.Parameter(weight, requires_grad=False)
        return found

    for layer, reason in ((exact, ""), (twice, "computes something else on cpu"), (broken, "no attribute 'cquantize_blockwise')")):
        nf4.why_not.cache_clear()
        monkeypatch.setitem(sys.modules, "bitsandbytes", as_parameter(layer))
        found = nf4.why_not("cpu")
        assert found.endswith(reason) if reason else found == ""


def test_an_adapter_that_was_trained_in_nf4_is_not_used_on_another_base_silently(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    base = str(models.build(tmp_path / "base", "llama"))
    train.train_lora(base, corpus(12), tmp_path / "run", settings(epochs=1.0), progress=silent)
    note = tmp_path / "run" / "vaultllm.json"
    about = json.loads(note.read_text())
    assert about["quantize"] == ""
    note.write_text(json.dumps(about | {"quantize": "nf4"}))
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ModelError, match="not installed"):
        hf.load(base, tmp_path / "run" / "adapter")


@works
@pytest.mark.filterwarnings("ignore")  # bitsandbytes' own
@pytest.mark.parametrize("shape", ["qwen3", "llama"])
def test_a_base_in_4_bits_is_smaller_and_an_adapter_learns_on_it(tmp_path: Path, shape: models.Shape):
    import torch

    base = str(models.build(tmp_path / "base", shape, width=64))
    plain, small = hf.load(base), hf.load(base, quantize="nf4")
    assert small.parameters == plain.parameters
    size = [sum(weight.numel() * weight.element_size() for weight in one.model.parameters()) for one in (plain, small)]
    assert size[1] < 0.7 * size[0]  # embeddings stay as they are
    assert {weight.dtype for weight in small.model.parameters()} == {torch.uint8, torch.float32}

    metrics = train.train_lora(base, corpus(72), tmp_path / "run", settings(epochs=8.0, quantize="nf4"), progress=silent)
    assert metrics["chosen"]["quantize"] == "nf4"
    assert any(reason.startswith("nf4") for reason in metrics["chosen"]["why"])
    assert metrics["parameters"] == plain.parameters
    assert metrics["bpb_after"] < metrics["bpb_before"] - 0.1
    again = hf.load(base, tmp_path / "run" / "adapter")
    assert any(weight.dtype == torch.uint8 for weight in again.model.parameters())
    held_out = corpus(72).split("val")
    after = evaluate.score(again.model, again.tokenizer, held_out, max_tokens=128)
    assert evaluate.bits_per_byte(after) == pytest.approx(metrics["bpb_after"], rel=1e-4)
    assert reload.check(again, tmp_path / "run") == ""
