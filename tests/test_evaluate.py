"""Bits per byte: exact, complete, and honest about too few notes."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import models
from vaultllm import evaluate
from vaultllm.errors import DataError
from vaultllm.evaluate import Score
from vaultllm.models import hf, micro
from vaultllm.schema import Example, Message


def talk(name: str, question: str, answer: str, path: str = "a.md") -> Example:
    return Example(name, (name,), path, "dialogue", (Message("user", question, False), Message("assistant", answer, True)), "val")


def prose(name: str, text: str, path: str = "a.md") -> Example:
    return Example(name, (name,), path, "prose", (Message("user", text, True),), "val")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> hf.Loaded:
    import torch

    torch.set_num_threads(1)
    return hf.load(str(models.build(tmp_path_factory.mktemp("base") / "qwen3")))


EXAMPLES = [
    talk("a", "Что с водой?", "Дождь идёт над рекой."),
    prose("b", "The pump starts when the soil is dry and stops when it is wet. " * 4, "b.md"),
    talk("c", "নদী?", "আজ সকালে বৃষ্টি হয়েছে।", "c.md"),
    prose("d", "Rye.", "d.md"),
]


def test_a_batch_scores_like_each_example_alone(loaded: hf.Loaded):
    together = evaluate.score(loaded.model, loaded.tokenizer, EXAMPLES, max_tokens=200)
    alone = [evaluate.score(loaded.model, loaded.tokenizer, [one], max_tokens=200)[0] for one in EXAMPLES]
    assert [one.example for one in together] == ["a", "b", "c", "d"]
    for one, other in zip(together, alone, strict=True):
        assert one.bits == pytest.approx(other.bits, rel=1e-6, abs=1e-4)
        assert one.bytes == other.bytes


def test_bits_are_those_of_a_plain_forward_pass(loaded: hf.Loaded):
    import torch

    (score,) = evaluate.score(loaded.model, loaded.tokenizer, EXAMPLES[:1], max_tokens=200)
    ids, learn = evaluate.encode(loaded.tokenizer, EXAMPLES[0])
    with torch.no_grad():
        logits = torch.log_softmax(loaded.model(torch.tensor([ids])).logits[0].double(), -1)
    bits = -sum(float(logits[i - 1, ids[i]]) for i in range(1, len(ids)) if learn[i]) / math.log(2)
    assert score.bits == pytest.approx(bits, rel=1e-5)
    assert score.bytes == len("Дождь идёт над рекой.".encode())


def test_the_first_word_of_prose_is_scored_too(loaded: hf.Loaded):
    ids, learn = evaluate.encode(loaded.tokenizer, EXAMPLES[3])
    assert learn[0] is False
    assert all(learn[1:])
    assert loaded.tokenizer.decode(ids[1:]) == "Rye."


def test_a_lone_surrogate_does_not_stop_it(loaded: hf.Loaded):
    (score,) = evaluate.score(loaded.model, loaded.tokenizer, [prose("x", "half \ud800 letter")], max_tokens=64)
    assert score.bits > 0


@given(learn=st.lists(st.booleans(), max_size=300), size=st.integers(32, 64))
def test_windows_lose_no_token_and_count_none_twice(learn: list[bool], size: int):
    ids = list(range(len(learn)))
    found = evaluate.windows(ids, learn, size)
    targets = [token for window in found for token, wanted in zip(window.ids, window.learn, strict=True) if wanted]
    assert targets == [i for i in ids if learn[i] and i > 0]
    assert all(len(window.ids) <= size and not window.learn[0] for window in found)
    for window in found:  # every target but those of the beginning has a quarter of a window before it
        first = window.learn.index(True)
        assert window.ids[0] == 0 or first >= size // 4


def test_a_long_example_is_scored_whole(loaded: hf.Loaded):
    long = [EXAMPLES[1]]
    (whole,) = evaluate.score(loaded.model, loaded.tokenizer, long, max_tokens=250)
    (cut,) = evaluate.score(loaded.model, loaded.tokenizer, long, max_tokens=32)
    assert cut.bytes == whole.bytes
    assert cut.bits == pytest.approx(whole.bits, rel=0.05)  # all tokens are there, each with less before it
    assert cut.bits != whole.bits


def test_context_is_read_but_not_scored(loaded: hf.Loaded):
    plain = evaluate.score(loaded.model, loaded.tokenizer, EXAMPLES, max_tokens=200)
    context: dict[str, Any] = {"a": "Вода поднялась.", "b": "Before.", "c": [Message("user", "x", True), Message("assistant", "y", True)]}
    told = evaluate.score(loaded.model, loaded.tokenizer, EXAMPLES, max_tokens=200, context=context)
    assert [one.bytes for one in told] == [one.bytes for one in plain]
    assert [one.bits != other.bits for one, other in zip(told, plain, strict=True)] == [True, True, True, False]
    for example in EXAMPLES[:3]:
        ids, learn = evaluate.encode(loaded.tokenizer, example, context[example.id])
        before, learnt = evaluate.encode(loaded.tokenizer, example)
        assert [i for i, one in zip(ids, learn, strict=True) if one] == [i for i, one in zip(before, learnt, strict=True) if one]


def test_an_example_with_nothing_learnt_has_no_bytes(loaded: hf.Loaded):
    (score,) = evaluate.score(loaded.model, loaded.tokenizer, [prose("e", "")], max_tokens=64)
    assert (score.bits, score.bytes) == (0.0, 0)
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate.bits_per_byte([score])


def pairs(notes: int, gain: float, noise: float = 0.0) -> tuple[list[Score], list[Score]]:
    before = [Score(f"{i}", f"{i}.md", 200.0 + i, 100) for i in range(notes)]
    after = [Score(one.example, one.path, one.bits - 100 * (gain + noise * (-1) ** i), 100) for i, one in enumerate(before)]
    return before, after


def test_bits_per_byte_weighs_notes_by_their_size():
    scores = [Score("a", "a.md", 10, 10), Score("b", "b.md", 90, 30), Score("c", "b.md", 20, 20)]
    assert evaluate.bits_per_byte(scores) == 2.0
    assert evaluate.per_note(scores) == {"a.md": (10.0, 10), "b.md": (110.0, 50)}


def test_a_clear_gain_is_decided_and_a_small_or_noisy_one_is_not():
    clear = evaluate.paired_bootstrap(*pairs(40, 0.1, 0.02))
    assert clear.decided
    assert clear.low < clear.mean < clear.high < 0
    assert clear.mean == pytest.approx(-0.1, abs=1e-3)
    assert clear.words.startswith("better")
    noisy = evaluate.paired_bootstrap(*pairs(40, 0.01, 0.5))
    assert not noisy.decided
    few = evaluate.paired_bootstrap(*pairs(evaluate.MIN_NOTES - 1, 0.1))
    assert not few.decided
    assert few.words.startswith("not enough to decide")
    assert evaluate.paired_bootstrap(*pairs(40, -0.1, 0.02)).words.startswith("worse")


def test_an_interval_is_over_notes_not_over_examples():
    before, after = pairs(40, 0.01, 0.5)
    one_note = [Score(one.example, f"{int(one.example) % 2}.md", one.bits, one.bytes) for one in before]
    one_note_after = [Score(one.example, f"{int(one.example) % 2}.md", one.bits, one.bytes) for one in after]
    assert evaluate.paired_bootstrap(one_note, one_note_after).notes == 2


def test_only_the_same_examples_can_be_compared():
    before, after = pairs(10, 0.1)
    with pytest.raises(DataError, match="same examples"):
        evaluate.paired_bootstrap(before, after[1:])
    with pytest.raises(DataError, match="nothing to measure"):
        evaluate.paired_bootstrap([], [])


def test_four_arms_measure_talks_with_and_without_adapter_and_memory(loaded: hf.Loaded):
    import torch
    from peft import LoraConfig, get_peft_model

    with hf.library_warnings_ignored():
        model = get_peft_model(hf.load(str(loaded.folder)).model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.2)
    found = evaluate.arms(model, loaded.tokenizer, EXAMPLES, {"a": "Дождь " * 400}, max_tokens=64, memory_tokens=16)
    assert list(found) == ["base", "base+memory", "trained", "trained+memory"]
    assert all([one.example for one in scores] == ["a", "c"] for scores in found.values())
    base = evaluate.score(loaded.model, loaded.tokenizer, [EXAMPLES[0], EXAMPLES[2]], max_tokens=80)
    assert found["base"] == base
    assert found["trained"] != base
    assert found["base+memory"][0].bits != base[0].bits
    assert found["base+memory"][1] == base[1]  # nothing was recalled for it
    alone = evaluate.arms(loaded.model, loaded.tokenizer, EXAMPLES, {}, max_tokens=64)
    assert list(alone) == ["base", "base+memory"]


def test_batches_hold_every_index_once_within_their_bounds():
    lengths = [5, 100, 7, 3, 64, 64, 200, 9]
    found = evaluate.batches(lengths, tokens=128, rows=3)
    assert sorted(i for batch in found for i in batch) == list(range(8))
    assert all(len(batch) <= 3 and (len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= 128) for batch in found)


@pytest.mark.parametrize("shape", [*models.SHAPES, "micro"])
def test_the_logits_of_an_example_in_a_batch_are_those_of_it_alone(shape: models.Shape, tmp_path: Path):
    """Batches of similar length with padding, not packing: no example can see another."""
    import torch

    torch.set_num_threads(1)
    if shape == "micro":
        texts = [prose(f"{i}", text, f"{i}.md") for i, text in enumerate(models.TEXTS)]
        micro.pretrain(texts, tmp_path / "micro", minutes=1.0, seed=0, progress=lambda progress: None, steps=2)
        loaded = hf.load(str(tmp_path / "micro"))
    else:
        loaded = hf.load(str(models.build(tmp_path / shape, shape)))
    asked = replace(talk("q", "Насос?", "Дождь идёт."), form="task", task="cloze")
    pieces = [piece for one in (*EXAMPLES, asked) for piece in evaluate.windows(*evaluate.encode(loaded.tokenizer, one), 200)]
    assert len({len(piece.ids) for piece in pieces}) > 3
    ids, mask, labels = evaluate.pad(pieces)
    model = loaded.model.float()

    def logits(ids: Any, mask: Any) -> Any:
        with torch.no_grad():
            return model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    together = logits(ids, mask)
    others = ids.clone()
    others[1:] = (others[1:] + 7) % len(loaded.tokenizer)  # the first row beside quite other ones
    assert torch.equal(logits(others, mask)[0], together[0])
    for row, piece in enumerate(pieces):
        n = len(piece.ids)
        alone = logits(*evaluate.pad([piece])[:2])
        assert torch.allclose(together[row, :n], alone[0], atol=2e-5), (shape, row)
        assert (labels[row, :n] != -100).tolist() == piece.learn
        assert (labels[row, n:] == -100).all()
    assert not torch.allclose(together[0, : len(pieces[1].ids)], together[1, : len(pieces[1].ids)], atol=1e-2)  # rows do differ


@pytest.mark.parametrize("most", [0, 40, 120])
def test_out_of_memory_halves_what_is_measured_at_once_and_changes_nothing(loaded: hf.Loaded, monkeypatch: pytest.MonkeyPatch, most: int):
    from vaultllm.errors import ModelError

    def note(i: int) -> Example:
        return Example(f"{i}", (f"{i}",), f"{i}.md", "prose", (Message("user", f"Вода поднялась {i}. " * (1 + i % 3), True),), "val")

    notes = [note(i) for i in range(9)]
    whole = evaluate.score(loaded.model, loaded.tokenizer, notes, max_tokens=64)
    real, sizes = evaluate.token_losses, []

    def small(model: Any, ids: Any, mask: Any, labels: Any) -> Any:
        sizes.append(ids.numel())
        if ids.numel() > most:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes.")
        return real(model, ids, mask, labels)

    monkeypatch.setattr(evaluate, "token_losses", small)
    if most == 0:
        with pytest.raises(ModelError, match=r"train\.max_tokens"):
            evaluate.score(loaded.model, loaded.tokenizer, notes, max_tokens=64)
        return
    seen: list[float] = []
    again = evaluate.score(loaded.model, loaded.tokenizer, notes, max_tokens=64, progress=seen.append)
    assert [one.example for one in again] == [one.example for one in whole]
    assert [one.bits for one in again] == pytest.approx([one.bits for one in whole], rel=1e-5)
    assert sum(size > most for size in sizes) <= 4  # what fits is remembered
    assert seen == sorted(seen)
    assert seen[-1] == 1.0
