"""Packed rows: each sequence as if it were alone, in what is said and in what is learnt."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import evaluate, train
from vaultllm.config import TrainSettings
from vaultllm.evaluate import Window
from vaultllm.models import hf, losses, packed

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {shape: models.build(root / shape, shape, context=512) for shape in models.SHAPES}


def windows(seed: int = 0, lengths: tuple[int, ...] = (300, 5, 40, 129, 2)) -> list[Window]:
    """Some longer than a block of attention; every third token is context."""
    draw = random.Random(seed)
    return [Window([draw.randrange(300) for _ in range(n)], [i > 0 and i % 3 > 0 for i in range(n)]) for n in lengths]


def adapter(base: Path, *, dtype: str = "float32") -> Any:
    """A model with an adapter that changes something."""
    import torch

    loaded = hf.load(str(base), dtype=dtype)
    model = train.adapted(loaded.model, TrainSettings(rank=4), 0)
    torch.manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.1)
    return model.eval()


def logits(model: Any, pieces: list[Window]) -> Any:
    import torch

    with torch.no_grad():
        return model(**packed.row(*evaluate.pad(pieces)[:2]), use_cache=False).logits[0]


def gradients(model: Any, batches: list[list[Window]]) -> tuple[list[float], dict[str, Any]]:
    """Cost of each learnt token, and the gradients of their sum."""
    costs = []
    for batch in batches:
        found = evaluate.token_losses(model, *evaluate.pad(batch))[0]
        found.sum().backward()
        costs += found.tolist()
    slopes = {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return costs, slopes


@pytest.mark.parametrize("shape", models.SHAPES)
def test_logits_in_a_packed_row_are_those_of_each_example_alone(bases: dict[str, Path], shape: models.Shape):
    import torch

    model, pieces = adapter(bases[shape]), windows()
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([piece.ids]), use_cache=False).logits[0] for piece in pieces]
    with packed.applied(model):
        assert packed.on(model)
        together = logits(model, pieces)
        other = logits(model, [*windows(1)[:4], pieces[4]])
    begin = 0
    for piece, row in zip(pieces, alone, strict=True):
        assert torch.allclose(together[begin : begin + len(piece.ids)], row, atol=2e-5)
        begin += len(piece.ids)
    assert torch.equal(together[-2:], other[-2:])  # beside quite other ones: the very same bits
    assert not torch.allclose(together[:300], other[:300], atol=1e-2)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shape", models.SHAPES)
def test_losses_and_gradients_of_packed_rows_are_those_of_each_example_alone(
    bases: dict[str, Path], shape: models.Shape, checkpointing: bool
):
    import torch

    model, pieces = adapter(bases[shape]), windows()
    usual, slopes = gradients(model, [[piece] for piece in pieces])
    if checkpointing:
        hf.checkpoint_blocks(model)
        model.train()
        for part in model.modules():
            if isinstance(part, torch.nn.Dropout):
                part.p = 0.0
        model.base_model.model.config.attention_dropout = 0.0
    with packed.applied(model):
        costs, mine = gradients(model, [pieces])
    assert costs == pytest.approx(usual, abs=2e-5)
    assert mine.keys() == slopes.keys()
    for name, slope in slopes.items():
        assert torch.allclose(mine[name], slope, atol=1e-5 * max(1.0, float(slope.abs().max()))), name


def test_in_bf16_packed_rows_are_as_near_to_fp32_as_the_usual_way(bases: dict[str, Path]):
    exact, slopes = gradients(adapter(bases["qwen3"]), [windows()])
    model = adapter(bases["qwen3"], dtype="bfloat16")

    def error(batches: list[list[Window]]) -> tuple[float, float]:
        costs, found = gradients(model, batches)
        off = sum(float(((found[name].float() - slope) ** 2).sum()) for name, slope in slopes.items())
        return sum(abs(one - two) for one, two in zip(costs, exact, strict=True)), off

    usual = error([windows()])
    with packed.applied(model):
        mine = error([windows()])
    assert mine[0] < 1.5 * usual[0]
    assert mine[1] < 1.5 * usual[1]


@pytest.mark.parametrize("shape", models.SHAPES)
def test_afterwards_the_model_is_as_it_was_and_without_its_adapter_it_is_the_base(bases: dict[str, Path], shape: models.Shape):
    import torch

    model, ids = adapter(bases[shape]), torch.tensor([[5, 6, 7, 8]])
    usual = model(input_ids=ids).logits
    with evaluate.base_only(model):
        base = model(input_ids=ids).logits
    with packed.applied(model):
        with evaluate.base_only(model):
            assert torch.equal(model(input_ids=ids).logits, base)
        padded = evaluate.pad([Window([5, 6, 7, 8], [False] * 4), Window([5, 6], [False] * 2)])
        both = model(input_ids=padded[0], attention_mask=padded[1], use_cache=False).logits
        assert torch.allclose(both[0], usual[0], atol=2e-5)
        assert torch.allclose(both[1, :2], usual[0, :2], atol=2e-5)
    with pytest.raises(IndexError), packed.applied(model):
        model(input_ids=torch.tensor([[10**6]]))
    assert not packed.on(model)
    assert torch.equal(model(input_ids=ids).logits, usual)
    assert not any("forward" in part.__dict__ for part in model.modules())


def test_dropout_in_attention_reaches_no_other_sequence(bases: dict[str, Path]):
    import torch

    model = adapter(bases["gpt2"]).train()
    for name, part in model.named_modules():
        if isinstance(part, torch.nn.Dropout) and not name.endswith("attn_dropout"):
            part.p = 0.0
    found = []
    with packed.applied(model):
        for pieces in (windows(), [*windows(1)[:4], windows()[4]]):
            torch.manual_seed(0)
            found.append(logits(model, pieces))
        undisturbed = logits(model.eval(), windows())
    assert torch.equal(found[0][-2:], found[1][-2:])
    assert not torch.equal(found[0][-2:], undisturbed[-2:])  # some was dropped


def random_model(kind: str) -> Any:
    """A kind of model that packing as it is done here would get wrong."""
    import torch
    from transformers import (
        AutoModelForCausalLM,
        BloomConfig,
        Gemma2Config,
        GPTNeoXConfig,
        Lfm2Config,
        MambaConfig,
        MistralConfig,
    )

    hf.quiet()
    torch.manual_seed(0)
    ends = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
    sizes = {"vocab_size": 320, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    heads = {"num_key_value_heads": 1, "head_dim": 16}
    made: dict[str, Any] = {
        "recurrent": lambda: MambaConfig(vocab_size=320, hidden_size=32, num_hidden_layers=2, state_size=4, **ends),
        "convolutions": lambda: Lfm2Config(**sizes, num_key_value_heads=1, layer_types=["conv", "full_attention"], **ends),
        "capped attention": lambda: Gemma2Config(**sizes, **heads, attn_implementation="eager", **ends),
        "a bias for distance": lambda: BloomConfig(vocab_size=320, hidden_size=32, n_layer=2, n_head=2, **ends),
        "a short window": lambda: MistralConfig(**sizes, **heads, sliding_window=64, **ends),
        "a long window": lambda: MistralConfig(**sizes, **heads, sliding_window=4096, **ends),
        "parallel blocks": lambda: GPTNeoXConfig(**sizes, **ends),
    }
    return AutoModelForCausalLM.from_config(made[kind]()).eval()


@pytest.mark.parametrize(
    ("kind", "can"),
    [
        ("recurrent", False),
        ("convolutions", False),
        ("capped attention", False),
        ("a bias for distance", False),
        ("a short window", False),
        ("a long window", True),
        ("parallel blocks", True),
    ],
)
def test_a_model_is_packed_when_it_reads_rows_as_it_reads_sequences_alone(kind: str, can: bool):
    import torch

    model = random_model(kind)
    before = model.config._attn_implementation
    ids = [piece.ids for piece in windows()]
    assert packed.proven(model, ids) is can
    assert model.config._attn_implementation == before
    pieces = windows(lengths=(20, 9))
    alone = torch.cat([evaluate.token_losses(model, *evaluate.pad([piece]))[0] for piece in pieces])
    assert torch.allclose(evaluate.token_losses(model, *evaluate.pad(pieces))[0], alone, atol=2e-4)  # it is padded instead


def test_positions_that_do_not_begin_anew_are_found_out(bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch):
    import torch

    model, ids = hf.load(str(bases["gpt2"])).model, [piece.ids for piece in windows()]
    assert packed.proven(model, ids)
    real = packed.row
    monkeypatch.setattr(packed, "row", lambda ids, mask: real(ids, mask) | {"position_ids": torch.arange(int(mask.sum()))[None]})
    assert not packed.proven(model, ids)


def test_in_bf16_a_leak_of_the_size_of_rounding_is_found_out():
    """Beside the logits alone it looks like rounding; that a neighbour changes bits says what it is."""
    model = random_model("convolutions").bfloat16()
    assert not packed.proven(model, [piece.ids for piece in windows()])


def test_one_sequence_or_none_is_not_tried(bases: dict[str, Path]):
    model = hf.load(str(bases["llama"])).model
    assert not packed.proven(model, [])
    assert not packed.proven(model, [[1, 2, 3]])
    assert packed.proven(model, [[1, 2, 3], [4, 5]])
    assert not packed.proven(model, [[1, 2, 3], [4]])  # a single token says nothing of a position


def test_only_an_ordinary_adapter_takes_our_way(bases: dict[str, Path]):
    from peft import LoraConfig, get_peft_model

    def replaced(**options: Any) -> int:
        loaded = hf.load(str(bases["llama"]))
        with hf.library_warnings_ignored():
            model = get_peft_model(loaded.model, LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM", **options))
        with packed.applied(model):
            return sum("forward" in part.__dict__ for part in model.modules() if hasattr(part, "lora_A"))

    assert replaced() == 14
    assert replaced(lora_dropout=0.1) == replaced(use_dora=True) == 0


@pytest.mark.parametrize(("kind", "own"), [("a long window", 5), ("capped attention", 0)])
def test_a_norm_takes_our_way_when_it_says_the_same(kind: str, own: int):
    """Gemma multiplies by 1 + w."""
    import torch

    model = random_model(kind)
    for part in model.modules():
        if type(part).__name__.endswith("RMSNorm"):
            torch.nn.init.normal_(part.weight)
    model.requires_grad_(False)
    given = torch.randn(2, 7, 32, requires_grad=True)
    (usual,) = torch.autograd.grad((model.model.norm(given) ** 3).sum(), given)
    with packed.applied(model, packs=False):
        assert sum("forward" in part.__dict__ for part in model.modules()) == own
        (mine,) = torch.autograd.grad((model.model.norm(given) ** 3).sum(), given)
    assert torch.allclose(mine, usual, rtol=1e-4, atol=1e-5)


def test_packs_hold_every_index_once_in_order_within_their_bounds():
    lengths = [5, 100, 7, 3, 64, 64, 200, 9, 1, 1]
    found = evaluate.packs(lengths, tokens=128, rows=3)
    assert [i for batch in found for i in batch] == list(range(10))
    assert found == [[0, 1, 2], [3, 4], [5], [6], [7, 8, 9]]


def test_of_a_model_without_an_output_layer_nothing_is_asked():
    assert losses.plain_head(lambda **given: None) is None
    assert not packed.on(lambda **given: None)
