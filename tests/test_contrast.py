"""What pairs teach the vault's embedder, and that it is kept only when held-out pairs say so."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from vaultllm.memory import contrast, pairs
from vaultllm.memory.embed import VaultEmbedder
from vaultllm.memory.pairs import Pair
from vaultllm.schema import Progress

# Two halves of a vocabulary: questions use one, answers the other, and word i of the one means word i of the other.
SIZE = 40
ASKED = [f"{'бвгджзклмн'[n % 10]}о{'птрсфхцчшщ'[n // 10]}у" for n in range(SIZE)]
SAID = [f"{'bcdfghjklm'[n % 10]}e{'npqrstvwxz'[n // 10]}i" for n in range(SIZE)]


def _vault(notes: int, *, meaning: bool = True) -> tuple[list[str], list[str], list[Pair]]:
    """Passages, their notes, and pairs. Without `meaning` an answer has nothing to do with its question."""
    generator = np.random.default_rng(0)
    passages: list[str] = []
    names: list[str] = []
    found: list[Pair] = []
    for number in range(notes):
        note = f"Note {number}.md"
        for turn in range(4):
            words = generator.permutation(SIZE)[:4]
            answered = words if meaning else generator.permutation(SIZE)[:4]
            query, target = " ".join(ASKED[n] for n in words), " ".join(SAID[n] for n in answered)
            slot = 8 * number + 2 * turn
            found.append(Pair("question", query, target, note, note, (slot + 1,), (slot,)))
            passages += [query, target]
            names += [note, note]
    return passages, names, found


def _fit(passages: list[str], names: list[str], found: list[Pair]) -> VaultEmbedder:
    return VaultEmbedder.fit(passages, 32, found, names)


def test_words_that_only_pairs_join_come_to_lie_together() -> None:
    passages, names, found = _vault(120)
    plain, learnt = VaultEmbedder.fit(passages, 32), _fit(passages, names, found)
    assert learnt.verdict is not None
    assert learnt.verdict.kept == "table"
    assert learnt.verdict.mrr is not None
    assert learnt.verdict.mrr["table"] > learnt.verdict.mrr["lsa"] + 0.2

    def right(embedder: VaultEmbedder) -> float:
        queries, answers = embedder.embed(ASKED, query=True), embedder.embed(SAID)
        return float(np.mean(np.argmax(queries @ answers.T, axis=1) == np.arange(SIZE)))

    assert right(learnt) > 0.8 > 0.2 > right(plain)


def test_what_does_not_help_is_not_kept() -> None:
    passages, names, found = _vault(60, meaning=False)
    learnt = _fit(passages, names, found)
    assert learnt.verdict is not None
    assert learnt.verdict.kept == "lsa"
    assert "not surely better" in learnt.verdict.reason
    assert learnt.fingerprint == VaultEmbedder.fit(passages, 32).fingerprint


@pytest.mark.parametrize("notes", [0, 3])
def test_too_few_pairs_leave_the_lsa_and_say_so(notes: int) -> None:
    passages, names, found = _vault(notes)
    learnt = _fit(passages, names, found)
    assert learnt.fingerprint == VaultEmbedder.fit(passages, 32).fingerprint
    assert learnt.verdict is not None
    assert learnt.verdict.kept == "lsa"
    assert learnt.verdict.reason.startswith("too few pairs to learn from: ")


def test_the_trial_knows_held_out_texts_as_the_vault_does_but_neither_their_queries_nor_their_pairs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passages, names, found = _vault(60)
    fitted: list[set[str]] = []
    learnt: list[set[str]] = []
    plain = contrast.learn

    def fit(some: list[str]) -> VaultEmbedder:
        fitted.append(set(some))
        return VaultEmbedder.fit(some, 32)

    def learn(embedder: VaultEmbedder, some: list[Pair], size: contrast.Size) -> VaultEmbedder:
        learnt.append({pair.note for pair in some})
        return plain(embedder, some, size)

    monkeypatch.setattr(contrast, "learn", learn)
    done = contrast.improve(fit, passages, names, found)
    held = {name for name in names if pairs.is_held_out(name)}
    queries, targets = {pair.query for pair in found if pair.note in held}, {pair.text for pair in found if pair.note in held}
    assert held
    assert fitted[0] == set(passages) - queries
    assert targets < fitted[0]
    assert fitted[1] == set(passages)
    assert not (learnt[0] | learnt[1]) & held
    assert done.verdict is not None
    assert done.verdict.kept != "lsa"
    assert learnt[2] == set(names)  # what won is learnt from everything


def test_of_pairs_in_one_passage_one_is_judged_so_that_none_knows_the_other() -> None:
    section = Pair("heading", "x", "gamma. alpha beta", "n", "n", (1,), (1,))  # holds the sentence that the next one asks with
    sentence = Pair("sentence", "alpha beta", "gamma", "n", "n", (1,), (1,))
    linked, again = (Pair("link", query, "gamma. alpha", "m", "n", (2,), (9,), "Title") for query in ("a", "b"))
    other = dataclasses.replace(sentence, slots=(3,))
    assert contrast._one_by_passage([sentence, section, other, linked, again]) == [linked, again, section, other]


def test_the_same_input_gives_the_same_embedder() -> None:
    passages, names, found = _vault(40)
    told: list[Progress] = []
    first, second = _fit(passages, names, found), VaultEmbedder.fit(passages, 32, found, names, told.append)
    assert [one.done for one in told] == sorted(one.done for one in told)
    assert 0 < told[0].done < told[-1].done < 1
    assert first.fingerprint == second.fingerprint
    assert first.verdict is not None
    assert second.verdict is not None
    assert dataclasses.replace(first.verdict, seconds=0) == dataclasses.replace(second.verdict, seconds=0)


def test_the_verdict_is_stored_with_the_embedder(tmp_path: Path) -> None:
    passages, names, found = _vault(60)
    learnt = _fit(passages, names, found)
    learnt.save(tmp_path / "e")
    loaded = VaultEmbedder.load(tmp_path / "e")
    assert loaded.verdict == learnt.verdict
    assert loaded.fingerprint == learnt.fingerprint
    np.testing.assert_array_equal(loaded.embed(passages[:9]), learnt.embed(passages[:9]))
    about = json.loads((tmp_path / "e" / "embedder.json").read_text(encoding="utf-8"))
    assert about["verdict"]["gain"]["table"][1] > 0
    assert about["verdict"]["by_kind"]["question"]["pairs"] == about["verdict"]["judged"]


def test_notes_must_go_with_the_passages() -> None:
    passages, names, found = _vault(5)
    with pytest.raises(ValueError, match="40 passages and 39 notes"):
        _fit(passages, names[1:], found)


def test_the_gradient_is_that_of_the_loss() -> None:
    from scipy.sparse import random as sparse_random

    generator = np.random.default_rng(0)
    n, features, dims = 5, 12, 4
    texts = sparse_random(2 * n, features, density=0.6, random_state=1, format="csr", dtype=np.float64)
    rows = generator.standard_normal((features, dims))
    apart = np.zeros((n, n), bool)
    apart[1, 3] = apart[2, 2] = True  # the diagonal is never left out

    def loss(table: np.ndarray) -> float:
        units = texts @ table
        units /= np.linalg.norm(units, axis=1, keepdims=True)
        scores = units[:n] @ units[n:].T / contrast.TEMPERATURE
        scores[1, 3] = -np.inf
        own = np.diag(scores)
        wide, tall = np.log(np.exp(scores).sum(axis=1)), np.log(np.exp(scores).sum(axis=0))
        return float(np.mean(wide - own) + np.mean(tall - own)) / 2

    told = contrast._gradient(texts, rows, apart)
    for place in [(0, 0), (3, 2), (7, 1), (11, 3)]:
        step = np.zeros_like(rows)
        step[place] = 1e-6
        assert told[place] == pytest.approx((loss(rows + step) - loss(rows - step)) / 2e-6, rel=1e-3, abs=1e-6)


def test_texts_of_the_passages_in_which_a_pair_stands_are_no_rivals() -> None:
    embedder = VaultEmbedder.fit(["alpha beta gamma", "alpha beta delta", "gamma epsilon", "zeta eta theta"] * 8, 8)
    pair = Pair("sentence", "alpha beta", "gamma epsilon", "n", "n", (1,), (1,))
    holder = Pair("heading", "x", "alpha beta delta", "n", "n", (1,), (1,))  # the same passage, with the query's own words
    other = dataclasses.replace(holder, slots=(2,), source=(2,))
    pool = ["gamma epsilon", "alpha beta delta", "zeta eta theta"]
    assert contrast.ranking(embedder, [pair], pool, [pair, holder]).tolist() == [1]
    assert contrast.ranking(embedder, [pair], pool, [pair, other]).tolist() == [2]


def test_of_equal_texts_the_own_one_is_last() -> None:
    embedder = VaultEmbedder.fit(["alpha beta", "gamma delta"] * 12, 4)
    pair = Pair("question", "unknown", "alpha beta", "n", "n", (1,), (2,))
    assert contrast.ranking(embedder, [pair], ["alpha beta", "gamma delta"], [pair]).tolist() == [2]


def test_a_kind_counts_as_much_as_another_however_many_pairs_it_has() -> None:
    def pair(kind: pairs.Kind, number: int) -> Pair:
        return Pair(kind, "q", "t", f"{number}", f"{number}", (1,), (2,))

    judged = [pair("sentence", n) for n in range(90)] + [pair("question", n) for n in range(10)] + [pair("link", n) for n in range(3)]
    lsa = np.full(103, 2.0)
    better = lsa.copy()
    better[90:100] = 1.0  # questions
    worse = lsa.copy()
    worse[:90] = 4.0  # sentences
    told = contrast._verdict(judged, {"lsa": lsa, "weights": better, "table": worse})
    assert told.mrr == {"lsa": 0.5, "weights": 0.75, "table": 0.375}
    assert told.kept == "weights"
    assert told.by_kind is not None
    assert told.by_kind["link"]["pairs"] == 3
    assert (
        contrast._verdict(judged[100:], {name: rank[100:] for name, rank in (("lsa", lsa), ("weights", better), ("table", worse))}).kept
        == "lsa"
    )


def test_a_gain_that_chance_could_make_is_not_kept() -> None:
    judged = [Pair("question", "q", "t", f"{n}", f"{n}", (1,), (2,)) for n in range(20)]
    lsa = np.full(20, 2.0)
    lucky = lsa.copy()
    lucky[:2], lucky[2] = 1.0, 3.0  # two notes better, one worse
    told = contrast._verdict(judged, {"lsa": lsa, "weights": lucky, "table": lsa})
    assert told.mrr is not None
    assert told.gain is not None
    assert told.mrr["weights"] > told.mrr["lsa"]
    assert told.gain["weights"][1] <= 0 < told.gain["weights"][2]
    assert told.kept == "lsa"
    assert "not surely better" in told.reason
