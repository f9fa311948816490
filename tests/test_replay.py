"""What is learnt besides the new: which old notes, how much of the base, and that an adapter is held to it."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.test_train import corpus
from vaultllm import drift, evaluate, loop, replay, train
from vaultllm.evaluate import Window
from vaultllm.models import hf
from vaultllm.schema import Example, Message
from vaultllm.tasks import learnt_characters


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def note(number: int, before: tuple[str, ...] = ()) -> Example:
    said = (Message("user", f"{number:03} " + "слово " * (5 + number % 7), True),)
    return Example(f"e{number}", (*before, f"s{number}"), f"{number}.md", "prose", said, "train")


def test_new_and_changed_scenes_are_learnt_and_a_sample_of_the_old_ones() -> None:
    examples = [note(number) for number in range(100)]
    scenes = {f"s{number}": "now" for number in range(100)}
    learnt = {f"s{number}": "now" if number != 7 else "then" for number in range(80)}
    found = replay.chosen(examples, scenes, learnt, 0.25, "run")
    assert {one.id for one in found.new} == {"e7", *(f"e{number}" for number in range(80, 100))}
    share = sum(map(learnt_characters, found.again)) / sum(map(learnt_characters, found.new + found.again))
    assert 0.2 < share <= 0.25
    assert len(found.new) + len(found.again) + found.left == 100
    assert found == replay.chosen(list(examples), scenes, learnt, 0.25, "run")
    other = replay.chosen(examples, scenes, learnt, 0.25, "the night after")
    assert set(other.again) != set(found.again)
    assert replay.chosen(examples, scenes, learnt, 0.0, "run").again == ()
    assert set(replay.chosen(examples, scenes, learnt, 0.9, "run").again) > set(found.again)  # more of them are the same and others
    assert replay.chosen(examples, scenes, {}, 0.25, "run") == replay.Chosen(tuple(examples), (), 0)


def test_an_answer_is_not_new_because_the_scene_before_it_is() -> None:
    examples = [note(1, ("s0",)), note(2, ("s1",))]
    found = replay.chosen(examples, {"s0": "new", "s1": "a", "s2": "b"}, {"s0": "old", "s1": "a"}, 0.0, "")
    assert [one.id for one in found.new] == ["e2"]


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> hf.Loaded:
    return models.learnt(tmp_path_factory.mktemp("moved") / "base", models.TEXTS, steps=8)


def batch(loaded: hf.Loaded) -> tuple[Any, Any, Any]:
    rows = drift.samples(loaded, "sha", None, 60)[:5]
    return evaluate.pad([Window(row, [False] + [True] * (len(row) - 1)) for row in rows])


@pytest.mark.parametrize("kl", [0.0, 3.0])
def test_the_loss_and_its_gradient_are_those_of_the_plain_formula_in_parts_of_any_size(
    moved: hf.Loaded, monkeypatch: pytest.MonkeyPatch, kl: float
) -> None:
    import torch

    model = moved.model
    learnt = [(name, one) for name, one in model.named_parameters() if "lora_B" in name]
    for _, one in learnt:
        one.requires_grad_(True)
    model.zero_grad()
    ids, mask, labels = batch(moved)
    with torch.no_grad(), model.disable_adapter():
        p = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    q = model(input_ids=ids, attention_mask=mask).logits[:, :-1].log_softmax(-1)
    wanted = labels[:, 1:] != -100
    plain = -q.gather(2, ids[:, 1:, None])[..., 0] + kl * (p.exp() * (p - q)).sum(-1)
    plain[wanted].mean().backward()
    expected = {name: one.grad.clone() for name, one in learnt}
    for elements in (1, 3000, 2**23):
        monkeypatch.setattr(replay, "ELEMENTS", elements)
        model.zero_grad()
        losses, rows = replay.token_losses(model, model, ids, mask, labels, kl)
        torch.testing.assert_close(losses, plain[wanted], rtol=1e-4, atol=1e-5)
        assert rows.tolist() == wanted.nonzero()[:, 0].tolist()
        losses.mean().backward()
        for name, one in learnt:
            torch.testing.assert_close(one.grad, expected[name], rtol=1e-3, atol=1e-6)
    assert max(float(one.abs().max()) for one in expected.values()) > 1e-4


def test_what_is_held_to_the_base_on_its_samples_comes_back_to_it_on_others(moved: hf.Loaded, tmp_path: Path) -> None:
    import torch

    own = drift.samples(moved, "sha", None, 60, seed=replay.SEED, tokens=1500)
    given = evaluate.pad([Window(row, [False] + [True] * (len(row) - 1)) for row in own])
    far = []
    for kl in (0.0, 3.0):
        model = dataclasses.replace(moved, model=copy.deepcopy(moved.model))
        learnt = [one for name, one in model.model.named_parameters() if "lora_" in name or "modules_to_save" in name]
        optimizer = torch.optim.AdamW([one.requires_grad_(True) for one in learnt], lr=3e-3)
        for _ in range(10):
            replay.token_losses(model.model, model.model, *given, kl)[0].mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        far.append(drift.measure(model, "sha", None, 60)["kl_bits"])
    assert far[1] < 0.8 * far[0] < 0.8 * drift.measure(moved, "sha", None, 60)["kl_bits"]  # both help, KL most


def test_what_the_base_says_shares_no_batch_with_notes_and_is_the_same_after_an_interruption(tmp_path: Path) -> None:
    loaded = hf.load(str(models.build(tmp_path / "base", "qwen3")))
    data = train._data(loaded, corpus(36).split("train"), 128, 0)
    own = replay.own(loaded, "sha", tmp_path / "said.json", tmp_path, 300, 60.0, False)
    assert 300 <= sum(sum(piece.learn) for piece in own) < 300 + drift.LENGTH
    made = train._with_own(data, own, 256)
    first = len(made.pieces) - made.own
    assert made.own == len(own) > 0
    assert sorted(i for one in made.batches for i in one) == list(range(len(made.pieces)))
    assert {min(one) >= first for one in made.batches} == {True, False}
    assert all((min(one) >= first) == (max(one) >= first) for one in made.batches)
    assert [bool(loop._collator(made)([one])["own"].all()) for one in made.batches] == [min(one) >= first for one in made.batches]
    drift.samples(loaded, "sha", tmp_path / "said.json", 60, tokens=5000, seed=replay.SEED)  # another training wanted more
    assert replay.own(loaded, "sha", tmp_path / "said.json", tmp_path, 100, 60.0, True) == own
