"""The n-gram model is a probability, Kneser-Ney as it is defined, and bounded; `xz` is primed, and told no answers; all on one text."""

from __future__ import annotations

import itertools
import lzma
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import evaluate, ngram, yardsticks
from vaultllm.errors import DataError
from vaultllm.evaluate import Score
from vaultllm.schema import Example, Message

RIVER = "Вода в реке поднялась на {} сантиметров, и лодка стоит у третьего причала."


def prose(name: str, text: str, path: str = "") -> Example:
    return Example(name, (name,), path or f"{name}.md", "prose", (Message("user", text, True),), "val")


def talk(name: str, *said: str, path: str = "", learnt: int = 1) -> Example:
    """A talk of alternating turns, of which the last `learnt` answers count."""
    answers = range(1, len(said), 2)
    counted = set(list(answers)[-learnt:])
    roles = itertools.cycle(("user", "assistant"))
    messages = tuple(Message(role, text, i in counted) for i, (role, text) in enumerate(zip(roles, said, strict=False)))  # type: ignore[arg-type]
    return Example(name, (name,), path or f"{name}.md", "dialogue", messages, "val")


messages = st.lists(st.tuples(st.integers(0, 3), st.text("abвгদ\n🦆", max_size=24)), max_size=6)


@settings(max_examples=30, deadline=None)
@given(messages, st.text("abвгদ\n🦆z", max_size=8), st.integers(0, 3), st.integers(2, 5))
def test_all_that_may_come_next_sums_to_one(texts: list[tuple[int, str]], before: str, kind: int, order: int) -> None:
    model = ngram.train(texts, order)
    symbols, given_, rest = ngram.following(model, kind, before)
    assert given_.min() > 0
    assert rest > 0
    assert given_.sum() + rest * (ngram.ALPHABET - len(symbols)) == pytest.approx(1.0, abs=1e-9)


def test_a_texts_probabilities_are_those_of_its_characters_one_by_one() -> None:
    model = ngram.train([(0, "abracadabra"), (1, "барабан abra"), (0, "ab")], 4)
    text = "abrak барZ"
    found = ngram.probabilities(model, 1, text, end=True)
    assert len(found) == len(text) + 1
    for i, one in enumerate([*map(ord, text), ngram.END]):
        symbols, given_, rest = ngram.following(model, 1, text[:i])
        at = np.flatnonzero(symbols == one)
        assert found[i] == pytest.approx(given_[at[0]] if len(at) else rest, rel=1e-12)


def test_it_is_interpolated_modified_kneser_ney_as_the_paper_defines_it() -> None:
    texts = [(0, "abcabdabcaeabcabfaabbccaabd"), (0, "bcabdeffab")]
    model = ngram.train(texts, 3)
    grams: Counter[tuple[int, ...]] = Counter()
    for kind, text in texts:
        row = [ngram.END + 1 + kind, *map(ord, text), ngram.END]
        grams.update(tuple(row[i : i + 3]) for i in range(len(row) - 2))
    bigrams = {
        tuple(row[i : i + 2])
        for kind, text in texts
        for row in [[ngram.END + 1 + kind, *map(ord, text), ngram.END]]
        for i in range(len(row) - 1)
    }
    begins = Counter((ngram.END + 1 + kind, ord(text[0])) for kind, text in texts)
    middle = Counter({two: sum(1 for three in grams if three[1:] == two) or begins[two] for two in bigrams})
    single = Counter(two[1] for two in bigrams)

    def discounts(counts: Counter[tuple[int, ...]] | Counter[int]) -> list[float]:
        n = [sum(1 for one in counts.values() if one == i) for i in range(5)]
        if not all(n[1:]):
            return [0, 0.5, 0.75, 1.0]
        y = n[1] / (n[1] + 2 * n[2])
        wanted = [1 - 2 * y * n[2] / n[1], 2 - 3 * y * n[3] / n[2], 3 - 4 * y * n[4] / n[3]]
        return [0, *(min(max(one, 0.05), 0.95 * i) for i, one in enumerate(wanted, 1))]

    def given_(counts: dict[int, int], taken: list[float], symbol: int, below: float) -> float:
        total = sum(counts.values())
        if not total:
            return below
        left = sum(taken[min(one, 3)] for one in counts.values()) / total
        count = counts.get(symbol, 0)
        return (count - taken[min(count, 3)]) / total + left * below

    def expected(first: str, second: str, symbol: int) -> float:
        lowest = given_(dict(single), discounts(single), symbol, 1 / ngram.ALPHABET)
        after_one = {two[1]: count for two, count in middle.items() if two[0] == ord(second)}
        two = given_(after_one, discounts(middle), symbol, lowest)
        return given_({g[2]: count for g, count in grams.items() if g[:2] == (ord(first), ord(second))}, discounts(grams), symbol, two)

    for first, second, symbol in itertools.product("ab", "abc", [*map(ord, "abcdefz"), ngram.END]):
        symbols, found, rest = ngram.following(model, 0, f"xx{first}{second}")
        at = np.flatnonzero(symbols == symbol)
        assert (found[at[0]] if len(at) else rest) == pytest.approx(expected(first, second, symbol), rel=1e-9), (first, second, symbol)

    # Nothing stands before what begins a message: it counts as often as it does so.
    opened = {two[1]: count for two, count in middle.items() if two[0] == ngram.END + 1}
    assert sum(opened.values()) == len(texts)
    for symbol in map(ord, "abc"):
        symbols, found, _ = ngram.following(model, 0, "")
        lowest = given_(dict(single), discounts(single), symbol, 1 / ngram.ALPHABET)
        assert found[np.flatnonzero(symbols == symbol)[0]] == pytest.approx(given_(opened, discounts(middle), symbol, lowest), rel=1e-9)


def test_what_it_has_read_costs_little_and_what_nobody_has_seen_costs_about_twenty_bits_a_character() -> None:
    text = " ".join(RIVER.format(i) for i in range(40))
    model = ngram.train([(0, text)])
    assert model.order == ngram.ORDER
    known = -np.log2(ngram.probabilities(model, 0, RIVER.format(7))).mean()
    new = -np.log2(ngram.probabilities(model, 0, "চাঁদ")).mean()
    assert known < 0.6
    assert 15 < new < 40


def test_time_is_looked_at_before_each_longer_gram_and_an_empty_training_side_is_no_crash() -> None:
    allowed = iter([True, False])
    assert ngram.train([(0, "abcdefgh" * 5)], 8, go_on=lambda: next(allowed)).order == 3
    nothing = ngram.train([])
    assert ngram.probabilities(nothing, 0, "a")[0] == pytest.approx(1 / ngram.ALPHABET)
    assert ngram.probabilities(nothing, 0, "").size == 0


def test_training_text_holds_each_message_once_and_no_more_than_asked() -> None:
    examples = [
        talk("a", "Что с водой?", "Поднялась."),
        talk("b", "Что с водой?", "Поднялась.", "А лодка?", "У причала."),
        prose("c", "Дождь."),
    ]
    text = yardsticks.training_text(examples, 1000)
    assert sorted(text) == [(0, "Дождь."), (1, "А лодка?"), (1, "Что с водой?"), (2, "Поднялась."), (2, "У причала.")]
    assert sum(len(one) for _, one in yardsticks.training_text(examples, 20)) <= 20


def test_ngram_scores_count_learnt_text_only_and_the_end_of_a_turn() -> None:
    model = ngram.train([(1, "Что с водой?"), (2, "Поднялась.")])
    (found,) = yardsticks.ngram_scores(model, [talk("a", "Что с водой?", "Поднялась.")])
    assert found.bytes == len("Поднялась.".encode())
    assert found.bits == pytest.approx(float(-np.log2(ngram.probabilities(model, 2, "Поднялась.", end=True)).sum()))
    (plain,) = yardsticks.ngram_scores(model, [prose("b", "Поднялась.")])
    assert plain.bits == pytest.approx(float(-np.log2(ngram.probabilities(model, 0, "Поднялась.")).sum()))


def noise(seed: int, words: int = 90) -> str:
    """Text that nobody can guess."""
    random = np.random.default_rng(seed)
    return " ".join("".join(chr(97 + one) for one in random.integers(0, 26, 6)) for _ in range(words))


def test_xz_pays_little_for_what_the_training_text_says_and_much_for_what_is_new() -> None:
    train = [prose("t", noise(0))]
    scores, fed = yardsticks.xz_scores(train, [prose("old", noise(0)), prose("new", noise(1))], 5.0)
    old, new = (one.bits / one.bytes for one in scores)
    assert old < 0.6
    assert new > 4.0
    assert fed == {"train_bytes": len(noise(0)), "groups": 2, "notes": 2}


def test_a_note_alone_adds_to_the_file_exactly_what_the_score_says() -> None:
    train, note = noise(0).encode(), noise(2).encode()
    (score,), _ = yardsticks.xz_scores([prose("t", noise(0))], [prose("n", noise(2))], 5.0)

    def size(data: bytes) -> int:
        method = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 1 << 16}
        return len(lzma.compress(data, lzma.FORMAT_RAW, filters=[method]))

    assert score.bits == 8 * (size(train + b"\n\n" + note) - size(train))


def test_xz_is_told_the_questions_and_never_the_answers_of_other_examples() -> None:
    answer, question = noise(3), noise(4)
    told = talk("a", question, answer)
    later = talk("b", question, answer, "И?", noise(5), path="a.md")  # reads the answer of `a` as context
    scores, _ = yardsticks.xz_scores([prose("t", noise(0))], [told, later], 5.0)
    assert scores[0].bits / scores[0].bytes > 4.0
    (echo,), _ = yardsticks.xz_scores([prose("t", noise(0))], [talk("c", question, question + " " + noise(6))], 5.0)
    assert echo.bits / echo.bytes < 3.2  # half of it stands in the question


def test_where_time_is_short_notes_share_groups_and_the_training_text_is_cut() -> None:
    train = [prose(f"t{i}", noise(i, 4000)) for i in range(10)]
    notes = [prose(f"n{i}", noise(100 + i)) for i in range(6)]
    ticks = itertools.count()
    scores, fed = yardsticks.xz_scores(train, notes, 3.0, clock=lambda: next(ticks) * 0.5)
    assert fed["groups"] == 2  # between two looks at the clock lies half a second: so long a file takes
    assert fed["train_bytes"] < sum(len(one.messages[0].text) for one in train)
    assert sum(one.bits for one in scores) / sum(one.bytes for one in scores) > 4.0
    assert all(one.bytes == evaluate.learnt_bytes(note) for one, note in zip(scores, notes, strict=True))


def test_everybody_is_shown_on_the_text_that_all_of_them_scored() -> None:
    examples = [prose("a", "x" * 10), talk("b", "?", "y" * 10), prose("c", "z" * 10)]
    base = [Score(one.id, one.path, 20.0, 10) for one in examples]
    current = [Score(one.id, one.path, 10.0, 10) for one in examples[:2]]
    found = yardsticks.side_by_side({"base": base, "current": current}, examples)
    assert (found["base"], found["current"], found["notes"], found["bytes"]) == (2.0, 1.0, 2, 20)
    assert found["dialogue"] == {"base": 2.0, "current": 1.0}
    assert found["intervals"]["base → current"]["mean"] == -1.0
    assert not found["intervals"]["base → current"]["decided"]
    assert yardsticks.side_by_side({"base": base, "current": [Score("q", "q.md", 1.0, 1)]}, examples) == {
        "skipped": "nothing that all of them scored"
    }


def test_all_five_are_measured_side_by_side_on_notes_with_all_ten_intervals() -> None:
    train = [prose(f"t{i}", RIVER.format(i)) for i in range(30)]
    held_out = [prose(f"v{i}", RIVER.format(100 + i)) for i in range(31)]
    scores = {
        name: [Score(one.id, one.path, 900.0 + i, evaluate.learnt_bytes(one)) for i, one in enumerate(held_out)]
        for name in yardsticks.ORDER[:3]
    }
    found = yardsticks.measure(train, held_out, scores, 2.0)
    assert len(found["intervals"]) == 10
    assert found["ngram"] < found["base"] == found["candidate"]
    assert math.isfinite(found["xz"])
    assert found["intervals"]["base → ngram"]["words"].startswith("better")
    assert found["ngram_train_bytes"] == sum(map(evaluate.learnt_bytes, train))
    assert yardsticks.measure(train, [], {}, 1.0) == {"skipped": "no note is held out"}
    with pytest.raises(DataError, match="no training text"):
        yardsticks.measure([], held_out, scores, 1.0)
