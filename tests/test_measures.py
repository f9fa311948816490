"""Measures: what they count, against hand-made numbers, brute force and the libraries that define them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm.memory import measures

UNITS = st.lists(st.integers(0, 12), max_size=20)
WANTED = st.sets(st.integers(0, 12), min_size=1, max_size=8)
SCORES = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


def test_recall_is_the_share_of_the_evidence_within_k() -> None:
    ranking = ["a", "x", "b", "y", "c"]
    assert [measures.recall_at(ranking, {"a", "b", "c", "never"}, k) for k in (0, 1, 2, 3, 5, 50)] == [0, 0.25, 0.25, 0.5, 0.75, 0.75]


def test_a_unit_that_stands_twice_takes_one_place_and_counts_once() -> None:
    ranking = ["x", "x", "x", "a", "a", "b"]
    assert measures.recall_at(ranking, {"a", "b"}, 2) == 0.5
    assert measures.recall_at(ranking, {"a", "b"}, 3) == 1.0
    assert measures.reciprocal_rank(ranking, {"a"}) == 0.5
    assert measures.ndcg_at(ranking, {"a"}, 2) == pytest.approx(1 / math.log2(3))


def test_evidence_that_is_named_twice_counts_once() -> None:
    assert measures.recall_at(["a"], ["a", "a", "b"], 1) == 0.5
    assert measures.ndcg_at(["a"], ["a", "a"], 10) == 1.0


def test_hit_says_whether_any_evidence_is_within_k() -> None:
    assert [measures.hit_at(["x", "a", "b"], {"a", "b"}, k) for k in (1, 2, 3)] == [0.0, 1.0, 1.0]


def test_ndcg_is_one_for_the_ideal_ranking_also_with_more_evidence_than_k() -> None:
    assert measures.ndcg_at(list("abcx"), set("abc"), 10) == pytest.approx(1.0)
    assert measures.ndcg_at(list("abcdefghijkl"), set("abcdefghijkl"), 10) == pytest.approx(1.0)
    assert measures.ndcg_at(list("xyz"), {"a"}, 10) == 0.0


def test_ndcg_of_a_known_ranking() -> None:
    # relevant at ranks 1, 3 and 6 of four: (1 + 1/2 + 1/log2 7) / (1 + 1/log2 3 + 1/2 + 1/log2 5)
    expected = (1 + 0.5 + 1 / math.log2(7)) / (1 + 1 / math.log2(3) + 0.5 + 1 / math.log2(5))
    assert measures.ndcg_at(list("axbyzc"), set("abcd"), 10) == pytest.approx(expected)


def test_reciprocal_rank_is_of_the_first_evidence_only() -> None:
    assert measures.reciprocal_rank(list("xyab"), set("ab")) == pytest.approx(1 / 3)
    assert measures.reciprocal_rank(list("xy"), {"a"}) == 0.0


@pytest.mark.parametrize("measure", [measures.recall_at, measures.hit_at, measures.ndcg_at])
def test_a_question_without_evidence_has_no_score(measure) -> None:
    with pytest.raises(ValueError, match="without a relevant unit"):
        measure(["a"], set(), 5)


def test_ndcg_of_no_places_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        measures.ndcg_at(["a"], {"a"}, 0)


@given(UNITS, WANTED, st.integers(1, 15))
def test_measures_stay_within_their_bounds_and_agree_with_each_other(ranking: list[int], wanted: set[int], k: int) -> None:
    recall, hit, ndcg = (measure(ranking, wanted, k) for measure in (measures.recall_at, measures.hit_at, measures.ndcg_at))
    assert 0 <= recall <= hit <= 1
    assert 0 <= ndcg <= 1 + 1e-12
    assert (recall > 0) == (ndcg > 0) == (hit == 1)
    assert measures.recall_at(ranking, wanted, k + 1) >= recall
    rank = measures.reciprocal_rank(ranking, wanted)
    assert (rank >= 1 / k) == (hit == 1)


@given(UNITS, WANTED)
def test_every_ranking_that_puts_evidence_earlier_has_the_higher_ndcg(ranking: list[int], wanted: set[int]) -> None:
    ideal = sorted(dict.fromkeys(ranking), key=lambda unit: unit not in wanted)
    assert measures.ndcg_at(ideal, wanted, 10) >= measures.ndcg_at(ranking, wanted, 10) - 1e-12


@given(SCORES, SCORES)
def test_auroc_is_the_share_of_pairs_in_the_right_order(positive: list[float], negative: list[float]) -> None:
    pairs = [(high > low) + (high == low) / 2 for high, low in itertools.product(positive, negative)]
    assert measures.auroc(positive, negative) == pytest.approx(sum(pairs) / len(pairs))


def test_auroc_knows_perfect_useless_and_reversed_scores() -> None:
    assert measures.auroc([0.9, 0.8], [0.1, 0.7]) == 1.0
    assert measures.auroc([0.5] * 7, [0.5] * 3) == 0.5
    assert measures.auroc([0.1], [0.9]) == 0.0


def test_auroc_of_one_kind_alone_is_none() -> None:
    assert measures.auroc([], [0.5]) is None
    assert measures.auroc([0.5], []) is None


def test_auroc_refuses_what_is_no_number() -> None:
    with pytest.raises(ValueError, match="not a number"):
        measures.auroc([math.nan], [0.1])


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30), st.floats(0, 100))
def test_percentiles_are_numpys(values: list[float], q: float) -> None:
    assert measures.percentile(values, q) == pytest.approx(float(np.percentile(values, q)), rel=1e-9, abs=1e-6)


@pytest.mark.parametrize(("values", "q"), [([], 50), ([1.0], -1), ([1.0], 101)])
def test_a_percentile_of_nothing_is_refused(values: list[float], q: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        measures.percentile(values, q)


def test_bootstrap_finds_a_steady_gain_and_no_gain_where_there_is_none() -> None:
    before = [0.0, 1.0] * 50
    gained = measures.paired_bootstrap(before, [score + 0.5 for score in before], [f"note {i // 2}" for i in range(100)])
    assert (gained.mean, gained.low, gained.high, gained.groups) == (0.5, 0.5, 0.5, 50)
    nothing = measures.paired_bootstrap([0.0, 1.0] * 50, [1.0, 0.0] * 50, list(range(100)))
    assert nothing.mean == 0.0
    assert nothing.low < 0 < nothing.high


def test_questions_of_one_group_make_the_interval_wider_than_as_many_independent_ones() -> None:
    before, after = [0.0] * 200, [1.0] * 100 + [-1.0] * 20 + [0.0] * 80
    alone = measures.paired_bootstrap(before, after, list(range(200)))
    grouped = measures.paired_bootstrap(before, after, [i // 20 for i in range(200)])
    assert alone.mean == grouped.mean == pytest.approx(0.4)
    assert grouped.high - grouped.low > 1.5 * (alone.high - alone.low)
    assert grouped.groups == 10


def test_bootstrap_weighs_groups_by_their_questions_and_is_repeatable() -> None:
    before, after, groups = [0.0] * 4, [1.0, 1.0, 1.0, 0.0], ["a", "a", "a", "b"]
    once = measures.paired_bootstrap(before, after, groups, seed=3)
    assert once.mean == 0.75
    assert once == measures.paired_bootstrap(before, after, groups, seed=3)
    assert (once.low, once.high) == (0.0, 1.0)


def test_bootstrap_in_parts_draws_as_many_samples() -> None:
    rng = np.random.default_rng(1)
    before, after = rng.random(3000).tolist(), rng.random(3000).tolist()
    found = measures.paired_bootstrap(before, after, list(range(3000)))  # two parts of the 2,000 draws
    spread = float(np.std(np.array(after) - np.array(before)) / math.sqrt(3000))
    assert found.high - found.low == pytest.approx(2 * 1.96 * spread, rel=0.1)


@pytest.mark.parametrize("wrong", [([], [], []), ([1.0], [1.0, 2.0], ["a"]), ([1.0], [1.0], [])])
def test_bootstrap_refuses_scores_that_are_no_pairs(wrong) -> None:
    with pytest.raises(ValueError, match="of one length"):
        measures.paired_bootstrap(*wrong)
