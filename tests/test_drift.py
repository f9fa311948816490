"""Drift: nothing where nothing moved, more where more did, on the same samples each time."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests import models
from vaultllm import drift, evaluate
from vaultllm.models import batched, hf
from vaultllm.models.hf import Loaded


@pytest.fixture(scope="module")
def moved(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return models.learnt(tmp_path_factory.mktemp("drift") / "base", models.TEXTS, steps=12)


@pytest.fixture(scope="module")
def still(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    return models.learnt(tmp_path_factory.mktemp("still") / "base", models.TEXTS, steps=0)


def test_an_adapter_that_changes_nothing_has_not_drifted_and_one_that_learnt_has(moved: Loaded, still: Loaded, tmp_path: Path) -> None:
    none = drift.measure(still, "sha", None, 60)
    assert none["kl_bits"] == pytest.approx(0.0, abs=1e-6)
    assert none["bpb_base"] == pytest.approx(none["bpb_trained"])
    assert none["tokens"] >= drift.TOKENS - none["samples"]
    some = drift.measure(moved, "sha", tmp_path / "samples.json", 60)
    assert some["kl_bits"] > 0.1
    assert some["bpb_trained"] > some["bpb_base"]


def test_the_divergence_is_the_sum_over_the_whole_vocabulary(moved: Loaded) -> None:
    import torch

    (row,) = drift.samples(moved, "sha", None, 60)[:1]
    far, base, trained = drift._compare(moved.model, row)
    with torch.no_grad():
        after = torch.softmax(moved.model(torch.tensor([row])).logits[0].double(), -1)
        with moved.model.disable_adapter():
            before = torch.softmax(moved.model(torch.tensor([row])).logits[0].double(), -1)
    expected = sum(float((before[i] * (before[i] / after[i]).log2()).sum()) for i in range(len(row) - 1))
    assert far == pytest.approx(expected, rel=1e-4)
    assert base == pytest.approx(-sum(math.log2(float(before[i, row[i + 1]])) for i in range(len(row) - 1)), rel=1e-5)
    assert trained == pytest.approx(-sum(math.log2(float(after[i, row[i + 1]])) for i in range(len(row) - 1)), rel=1e-5)


def test_samples_are_the_bases_own_the_same_each_time_and_kept_beside_it(moved: Loaded, still: Loaded, tmp_path: Path) -> None:
    cache = tmp_path / "samples.json"
    first = drift.samples(moved, "sha", cache, 60)
    assert first == drift.samples(still, "sha", None, 60)  # the adapter has no part in it
    assert sum(map(len, first)) >= drift.TOKENS
    assert len({tuple(row) for row in first}) > len(first) // 2
    begin = evaluate.start_of_text(moved.tokenizer)
    assert all(row[: len(begin)] == begin for row in first)
    assert json.loads(cache.read_text())["samples"] == first
    assert drift.samples(moved, "sha", cache, 60, tokens=2 * drift.TOKENS)[: len(first)] == first  # more come behind them
    longer = json.loads(cache.read_text())["samples"]
    assert longer == drift.samples(still, "sha", None, 60, tokens=2 * drift.TOKENS) != first
    assert drift.samples(moved, "sha", None, 60, seed=999)[0] != first[0]
    cache.write_text(json.dumps({"base_sha": "sha", "samples": [[1] * drift.TOKENS]}))
    assert drift.samples(moved, "sha", cache, 60) == [[1] * drift.TOKENS]
    assert drift.samples(moved, "another", cache, 60) == first
    for damaged in ("", "[]", '{"base_sha": "sha"}', '{"base_sha": "sha", "samples": [["x", "y"]]}'):
        cache.write_text(damaged)
        assert drift.samples(moved, "sha", cache, 60) == first


def test_what_time_cut_is_not_kept_and_a_base_alone_is_told_so(moved: Loaded, tmp_path: Path) -> None:
    found = drift.measure(moved, "sha", tmp_path / "cut.json", 0.0)
    assert 0 < found["tokens"] < drift.TOKENS
    assert not (tmp_path / "cut.json").exists()
    alone = Loaded(moved.model.get_base_model(), moved.tokenizer, "x", moved.folder, 1, moved.context, False)
    assert drift.measure(alone, "sha", None, 1.0) == {"skipped": "there is no adapter"}


@pytest.mark.parametrize("shape", models.SHAPES)
def test_continuations_in_a_batch_are_those_of_each_prompt_alone(shape: models.Shape, tmp_path: Path) -> None:
    loaded = hf.load(str(models.build(tmp_path / shape, shape)))
    prompts = [loaded.tokenizer(text)["input_ids"] for text in models.TEXTS]
    together = batched.continuations(loaded, prompts, 12)
    assert together == [batched.continuations(loaded, [prompt], 12)[0] for prompt in prompts]
    for prompt, ids in zip(prompts, together, strict=True):
        streamed = "".join(hf.generate(loaded, prompt, max_new_tokens=12)).replace("\ufffd", "")
        assert loaded.tokenizer.decode(ids, skip_special_tokens=True).replace("\ufffd", "") == streamed


def test_a_prompt_that_is_too_long_loses_its_beginning_and_an_empty_one_is_an_error(moved: Loaded) -> None:
    long = [5 + i % 300 for i in range(400)]
    assert batched.continuations(moved, [long], 6) == batched.continuations(moved, [long[-(moved.context - 6) :]], 6)
    assert batched.continuations(moved, [], 6) == []
    with pytest.raises(ValueError, match="empty"):
        batched.continuations(moved, [[]], 6)
