"""The cost of learnt tokens: as the usual loss says, without the logits of all of them at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import evaluate
from vaultllm.models import hf, losses

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-6), ("bfloat16", 2e-2)])
@pytest.mark.parametrize("bias", [False, True])
def test_costs_and_gradients_are_those_of_cross_entropy_and_a_chunk_is_all_that_is_held(
    dtype: str, near: float, bias: bool, monkeypatch: pytest.MonkeyPatch
):
    import torch

    torch.manual_seed(0)
    monkeypatch.setattr(losses, "CHUNK", 32 * 50)
    monkeypatch.setattr(losses, "ROWS", 8)
    kind = getattr(torch, dtype)
    hidden, weight = torch.randn(100, 16).to(kind).requires_grad_(), torch.randn(50, 16).to(kind)
    shift = torch.randn(50).to(kind) if bias else None
    targets, share = torch.randint(0, 50, (100,)), torch.rand(100)
    logits = torch.nn.functional.linear(hidden, weight, shift)
    usual = torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    (slope,) = torch.autograd.grad((usual * share).sum(), hidden)

    rows, real = [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda given, *rest: rows.append(len(given)) or real(given, *rest))
    ours = losses._chunked().apply(hidden, weight, shift, targets)
    (mine,) = torch.autograd.grad((ours * share).sum(), hidden)
    assert rows == [32, 32, 32, 4]
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, usual, rtol=1e-5, atol=1e-5)
    assert torch.allclose(mine.float(), slope.float(), atol=near * float(slope.abs().max()))


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-6), ("bfloat16", 2.5e-2)])
def test_the_mean_and_both_gradients_of_a_layer_that_learns_are_those_of_cross_entropy(
    dtype: str, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    torch.manual_seed(0)
    monkeypatch.setattr(losses, "CHUNK", 16 * 50)
    monkeypatch.setattr(losses, "ROWS", 8)
    kind = getattr(torch, dtype)
    hidden, weight = (3 * torch.randn(100, 16)).requires_grad_(), torch.randn(50, 16).requires_grad_()
    targets = torch.randint(0, 50, (100,))
    with torch.no_grad():  # some are foreseen nearly for sure: what is left of their gradient must not be rounded away
        hidden[:20] = 2 * weight[targets[:20]]
    narrow, table = hidden.to(kind).float(), weight.to(kind).float()
    usual = torch.nn.functional.cross_entropy(narrow @ table.T, targets)
    wanted = torch.autograd.grad(7 * usual, (hidden, weight))

    rows, real = [], torch.nn.functional.linear
    monkeypatch.setattr(torch.nn.functional, "linear", lambda given, *rest: rows.append(len(given)) or real(given, *rest))
    ours = losses.mean(hidden, weight, targets, None if kind is torch.float32 else kind)
    found = torch.autograd.grad(7 * ours, (hidden, weight))
    assert rows == [32, 32, 32, 4]
    assert ours.dtype == torch.float32
    assert ours.item() == pytest.approx(usual.item(), rel=1e-6 if kind is torch.float32 else 2e-3)
    for mine, slope in zip(found, wanted, strict=True):
        assert mine.dtype == torch.float32
        assert torch.allclose(mine, slope, atol=near * float(slope.abs().max()))


def test_no_learnt_token_costs_nothing_and_its_gradient_is_nothing():
    import torch

    hidden = torch.randn(0, 16, requires_grad=True)
    ours = losses._chunked().apply(hidden, torch.randn(50, 16), None, torch.zeros(0, dtype=torch.long))
    ours.sum().backward()
    assert ours.shape == (0,)
    assert hidden.grad.shape == (0, 16)


def config(kind: str) -> Any:
    from transformers import Gemma2Config, GraniteConfig, LlamaConfig

    sizes = {"vocab_size": 64, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 8, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    if kind == "scaled":
        return GraniteConfig(**sizes, **heads, logits_scaling=8.0)
    if kind == "capped":
        return Gemma2Config(**sizes, **heads, final_logit_softcapping=1.0, attn_implementation="eager")
    return LlamaConfig(**sizes, **heads)


@pytest.mark.parametrize("kind", ["plain", "scaled", "capped", "trained"])
def test_a_model_that_does_more_to_its_logits_costs_what_its_own_logits_say(kind: str):
    import torch
    from transformers import AutoModelForCausalLM

    hf.quiet()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config(kind)).eval().requires_grad_(kind == "trained")
    assert (losses.plain_head(model) is not None) is (kind in ("plain", "scaled"))  # what is scaled may be scaled before
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    places, targets = torch.tensor([0, 2, 3]), torch.tensor([2, 4, 5])
    logits = model(input_ids=ids, use_cache=False).logits
    usual = torch.nn.functional.cross_entropy(logits[0, places].float(), targets, reduction="none")
    assert torch.allclose(losses.of(model, {"input_ids": ids}, places, targets), usual, atol=1e-6)
    assert torch.equal(model(input_ids=ids, use_cache=False).logits, logits)  # its output layer is back


@pytest.mark.parametrize("shape", models.SHAPES)
def test_a_training_model_is_still_in_training_when_its_head_was_looked_at(shape: models.Shape, tmp_path: Path):
    loaded = hf.load(str(models.build(tmp_path, shape)))
    model = loaded.model.train()
    batch = evaluate.pad([evaluate.Window([1, 2, 3], [False, True, True])])
    assert losses.plain_head(model) is model.get_output_embeddings()
    evaluate.token_losses(model, *batch)
    assert all(part.training for part in model.modules())
    assert "forward" not in model.get_output_embeddings().__dict__


def test_an_error_leaves_the_output_layer_in_its_place(tmp_path: Path):
    import torch

    loaded = hf.load(str(models.build(tmp_path, "llama")))
    losses.plain_head(loaded.model)
    with pytest.raises(IndexError):
        losses.of(loaded.model, {"input_ids": torch.tensor([[1, 10**6]])}, torch.tensor([0]), torch.tensor([1]))
    assert "forward" not in loaded.model.get_output_embeddings().__dict__
