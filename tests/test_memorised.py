"""What is known by heart is found, what is not is not, and the base is not blamed on the adapter."""

from __future__ import annotations

import math
import random

import pytest

from tests import models
from vaultllm import evaluate, memorised
from vaultllm.memorised import Sentence
from vaultllm.models import hf
from vaultllm.schema import Example, Message


def prose(name: str, text: str) -> Example:
    return Example(name, (name,), f"{name}.md", "prose", (Message("user", text, True),), "train")


def passages(seed: int, n: int) -> list[str]:
    """Sentences of one style that nobody can guess."""
    chosen = random.Random(seed)
    words = ["река", "лодка", "насос", "теплица", "дождь", "причал", "колодец", "хлеб", "мост", "ворота", "окно", "лестница"]
    return [" ".join(chosen.choice(words) + str(chosen.randint(10, 99)) for _ in range(13)) + "." for _ in range(n)]


KNOWN, UNKNOWN = passages(0, 10), passages(1, 20)
TRAIN = [prose(f"t{i}", text) for i, text in enumerate(KNOWN)]
HELD_OUT = [prose(f"v{i}", text) for i, text in enumerate(UNKNOWN)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> hf.Loaded:
    return models.learnt(tmp_path_factory.mktemp("learnt") / "base", KNOWN)


def test_a_model_that_knows_its_notes_by_heart_is_found_out_and_its_base_is_not(loaded: hf.Loaded) -> None:
    found = memorised.measure(loaded, TRAIN, HELD_OUT, 60)
    shown = found["exposure"]
    assert (shown["sentences"], shown["population"]) == (10, 20)
    assert shown["trained"]["auc"] > 0.95
    assert shown["trained"]["mean"] == pytest.approx(shown["trained"]["ceiling"], abs=0.3)
    assert 0.2 < shown["base"]["auc"] < 0.8
    told = found["recited"]
    assert told["passages"] == 10
    assert told["trained"] >= 8
    assert (told["base"], told["new"]) == (0, told["trained"])
    assert told["share"] == told["new"] / 10
    assert "word for word" in memorised.leaks(found, 0.1)


def test_what_it_has_not_learnt_it_does_not_recite(loaded: hf.Loaded) -> None:
    found = memorised.measure(loaded, HELD_OUT, TRAIN, 60)
    assert found["recited"]["new"] == 0
    assert found["exposure"]["trained"]["auc"] < 0.1  # the other way round: these are the unknown ones
    assert memorised.leaks(found, 0.0) == ""


def test_where_time_is_short_it_says_how_much_it_saw_and_a_base_alone_is_told_so(loaded: hf.Loaded) -> None:
    found = memorised.measure(loaded, TRAIN, HELD_OUT, 0.0)
    assert found["exposure"]["sentences"] == 10
    assert found["exposure"]["population"] == 16
    assert found["recited"]["passages"] == memorised.ROWS
    alone = hf.Loaded(loaded.model.get_base_model(), loaded.tokenizer, "x", loaded.folder, 1, loaded.context, False)
    assert memorised.measure(alone, TRAIN, HELD_OUT, 60)["recited"] == {"skipped": "there is no adapter"}
    assert "too few" in memorised.measure(alone, TRAIN[:3], HELD_OUT, 60)["exposure"]["skipped"]


def test_what_the_base_recites_too_is_not_the_adapters(loaded: hf.Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([[True, True, True, False], [True, False, False, True]])  # with the adapter, then the base
    monkeypatch.setattr(memorised, "_verbatim", lambda *args: next(answers))
    found = memorised.measure(loaded, TRAIN[:4], HELD_OUT, 60)["recited"]
    assert found == {"passages": 4, "trained": 3, "base": 2, "new": 2, "share": 0.5}


def test_exposure_is_the_rank_in_the_population() -> None:
    found = memorised.exposure([0.5, 2.5], [1.0, 2.0, 3.0])
    assert found["auc"] == pytest.approx((3 + 1) / 6)
    assert found["ceiling"] == found["max"] == 2.0
    assert found["mean"] == pytest.approx((math.log2(4 / 1) + math.log2(4 / 3)) / 2)
    assert memorised.exposure([1.0], [1.0])["auc"] == 0.5
    with pytest.raises(ValueError, match="others"):
        memorised.exposure([1.0], [])


def test_text_that_nobody_has_learnt_has_the_exposure_that_is_named_beside_it() -> None:
    chosen = random.Random(0)
    costs = [chosen.random() for _ in range(4000)]
    found = memorised.exposure(costs, [chosen.random() for _ in range(1000)])
    assert found["mean"] == pytest.approx(memorised.UNLEARNT, abs=0.08)
    assert found["auc"] == pytest.approx(0.5, abs=0.03)


def test_a_passage_is_shown_as_it_was_learnt_and_goes_on_where_it_was_cut(loaded: hf.Loaded) -> None:
    answer = "Насос включается, когда влажность ниже тридцати двух процентов, и выключается при сорока пяти, а ночью молчит. "
    answer += "Утром его видно с крыльца, а вечером слышно, как вода идёт по трубам к грядкам."
    talk = Example("a", ("a",), "a.md", "dialogue", (Message("user", "Когда насос?", False), Message("assistant", answer, True)), "train")
    ((ids, after),) = memorised.passages(loaded.tokenizer, [talk, talk], 5)
    shown = loaded.tokenizer.decode(ids)
    assert "Когда насос?" in shown
    assert answer.endswith(after)
    assert shown.endswith(answer[: len(answer) - len(after)])
    assert memorised.passages(loaded.tokenizer, [prose("b", "Дождь идёт.")], 5) == []


def test_recited_is_counted_from_the_first_character_on() -> None:
    assert memorised.recited("река и лес", "река и луг") == 8
    assert memorised.recited("", "река") == 0
    assert memorised.recited("река", "река и") == 4


@pytest.mark.parametrize(
    ("new", "of", "limit", "refused"),
    [(4, 32, 0.1, True), (3, 32, 0.1, False), (1, 1, 0.0, False), (2, 32, 0.0, True), (32, 32, 1.0, False)],
)
def test_the_gate_refuses_above_the_limit_and_never_for_one_passage(new: int, of: int, limit: float, refused: bool) -> None:
    assert bool(memorised.leaks({"recited": {"passages": of, "new": new, "share": new / of}}, limit)) == refused
    assert memorised.leaks({"recited": {"skipped": "no time"}}, 0.0) == ""
    assert memorised.leaks({"skipped": "it failed"}, 0.0) == ""


def test_one_text_is_ranked_by_what_the_adapter_changed_and_asked_for_word_for_word(loaded: hf.Loaded) -> None:
    unseen = [Sentence(f"{i // 3}.md", text, "ru") for i, text in enumerate(passages(2, 90))]
    known, unknown = ([Sentence("k.md", text, "ru") for text in several] for several in (KNOWN[:4], passages(3, 4)))
    theirs = memorised.costs(loaded, unseen)
    paid = memorised.costs(loaded, known)
    alone = hf.Loaded(loaded.model.get_base_model(), loaded.tokenizer, "x", loaded.folder, 1, loaded.context, False)
    with evaluate.base_only(loaded.model):
        base = memorised.costs(alone, known)
    both = [one.bits / one.bytes for one in memorised._scores(loaded, [(one.note, one.text) for one in known], "trained")]
    assert paid == pytest.approx([after - before for after, before in zip(both, base, strict=True)], abs=1e-5)
    found = memorised.standing(known, paid, unseen, theirs)
    assert (found["as_well"], found["unseen"]["notes"]) == (0, 30)
    assert memorised.standing(unknown, memorised.costs(loaded, unknown), unseen, theirs)["p"] > 0.05
    assert memorised.verbatim(loaded, memorised.passages(loaded.tokenizer, TRAIN, 9)) >= 7
    assert memorised.verbatim(loaded, memorised.passages(loaded.tokenizer, HELD_OUT, 9)) == 0
