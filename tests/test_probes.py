"""Probes are made of held-out notes, never give themselves away, and are answered by who knows the text."""

from __future__ import annotations

import pytest

from tests import models
from vaultllm import evaluate, probes, text
from vaultllm.models import hf
from vaultllm.schema import Example, Message


def prose(name: str, said: str, split: str = "val") -> Example:
    return Example(name, (name,), f"{name}.md", "prose", (Message("user", said, True),), split)  # type: ignore[arg-type]


WORDS = ["колодец", "теплица", "причал", "лестница", "мельница", "пристань", "лодочник", "садовник"]
TRAIN = [prose(f"t{i}", f"Про {word}: сегодня ничего нового, всё стоит на своём месте.", "train") for i, word in enumerate(WORDS)]
SENTENCES = [
    "Вечером мы снова смотрели, как колодец выглядит после дождя.",
    "Говорят, что старая теплица простоит ещё три зимы без ремонта.",
    "Утром третий причал был белым от инея, и никто туда не пошёл.",
    "Из кухни на чердак ведёт узкая лестница с одной новой ступенью.",
    "За поворотом реки видна мельница, которую давно никто не крутит.",
]
HELD_OUT = [prose(f"v{i}", f"Заметка {word}\n\n{sentence}") for i, (word, sentence) in enumerate(zip(WORDS, SENTENCES, strict=False))]


def test_a_cloze_has_a_rare_known_word_and_three_others_alike_in_its_place() -> None:
    made = [probe for probe in probes.make(TRAIN, HELD_OUT) if probe.kind == "cloze"]
    assert len(made) >= 3
    for probe in made:
        said = [choice.messages[0].text for choice in probe.choices]
        assert said[0] in SENTENCES
        assert len(set(said)) == probes.CHOICES
        words = [({*text.words(one)} - {*text.words(said[1 - (i > 0)])}) for i, one in enumerate(said)]
        assert all(len(one) == 1 for one in words)
        lengths = [len(word) for one in words for word in one]
        assert max(lengths) - min(lengths) <= 4
        assert {text.language(word) for one in words for word in one} == {"ru"}
        assert probe.asks[0].count("…") == 1
        assert not words[0] & {*text.words(probe.asks[0])}  # what memory is asked does not hold the answer
        assert len(set(probe.asks)) == 1


def test_a_word_that_the_training_notes_do_not_know_or_all_of_them_know_is_no_cloze() -> None:
    unknown = [prose("v", "Вечером мы смотрели, как дирижабль пролетает над самой рекой.")]
    assert [one for one in probes.make(TRAIN, unknown) if one.kind == "cloze"] == []
    common = [prose(f"t{i}", f"Слово водокачка стоит в каждой заметке номер {i}.", "train") for i in range(probes.RARE + 1)]
    assert [
        one for one in probes.make(common, [prose("v", "Вечером мы смотрели, как водокачка стоит над рекой.")]) if one.kind == "cloze"
    ] == []


def test_a_heading_is_asked_with_three_others_of_its_language_and_its_sentence_does_not_hold_it() -> None:
    english = [prose(f"e{i}", f"Entry {i}\n\nNothing of note was seen on that long grey day number {i}.") for i in range(3)]
    made = [probe for probe in probes.make(TRAIN, HELD_OUT + english) if probe.kind == "headings"]
    assert len(made) == 5  # three English sections are too few for four choices
    for probe in made:
        sentences = {choice.messages[1].text for choice in probe.choices}
        assert len(sentences) == 1
        assert len(set(probe.asks)) == probes.CHOICES
        assert f"Заметка {WORDS[int(probe.path[1])]}" == probe.asks[0]
    told = prose("x", "Причал\n\nЭтот причал мы видели вчера вечером, когда шли домой.")
    assert [one for one in probes.make(TRAIN, [*HELD_OUT, told]) if one.path == "x.md" and one.kind == "headings"] == []


def test_headings_are_read_from_a_title_that_is_context_too() -> None:
    messages = (Message("user", "Дача / Колодец\n# Колодец", False), Message("user", "Воды стало больше.", True))
    assert probes.headed(Example("a", (), "a.md", "prose", messages, "val")) == ("Колодец", "Воды стало больше.")
    assert probes.headed(prose("b", "Просто текст без заголовка.")) == ("", "")
    talk = Example("c", (), "c.md", "dialogue", (Message("user", "?", False), Message("assistant", "Да\n\nнет", True)), "val")
    assert probes.headed(talk) == ("", "")


def test_the_same_notes_give_the_same_probes_and_no_more_than_asked_spread_over_notes() -> None:
    assert probes.make(TRAIN, HELD_OUT) == probes.make(TRAIN, HELD_OUT)
    few = probes.make(TRAIN, HELD_OUT, most=2)
    assert sum(probe.kind == "cloze" for probe in few) == 2
    assert len({probe.path for probe in few if probe.kind == "cloze"}) == 2


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> hf.Loaded:
    return models.learnt(tmp_path_factory.mktemp("probes") / "base", SENTENCES)


def test_who_knows_the_text_answers_and_who_does_not_guesses(loaded: hf.Loaded) -> None:
    found = probes.measure(loaded, TRAIN, HELD_OUT, None, 60)
    assert found["cloze"]["asked"] == found["cloze"]["of"] >= 3
    assert found["cloze"]["trained"] == 1.0
    assert found["cloze"]["base"] < 1.0
    assert found["cloze"]["chance"] == 0.25
    assert "base+memory" not in found["cloze"]


def test_memory_is_asked_for_each_choice_and_never_told_whose_note_it_is_but_to_leave_it_out(loaded: hf.Loaded) -> None:
    asked: list[tuple[str, str]] = []

    def recall(question: str, path: str) -> str:
        asked.append((question, path))
        return "Память говорит о реке."

    found = probes.measure(loaded, TRAIN, HELD_OUT, recall, 60)
    assert {"base", "base+memory", "trained", "trained+memory"} <= found["cloze"].keys() & found["headings"].keys()
    made = probes.make(TRAIN, HELD_OUT)
    assert set(asked) == {(ask, probe.path) for probe in made for ask in probe.asks}
    assert len(asked) == len(set(asked))


def test_what_memory_says_stands_before_every_choice(loaded: hf.Loaded) -> None:
    (probe, *_) = [one for one in probes.make(TRAIN, HELD_OUT) if one.kind == "cloze"]
    plain = evaluate.four_arms(
        loaded.model, loaded.tokenizer, probe.choices, {one.id: SENTENCES[0] for one in probe.choices}, max_tokens=200, memory_tokens=50
    )
    assert list(plain) == ["base", "base+memory", "trained", "trained+memory"]
    for one, other in zip(plain["trained"], plain["trained+memory"], strict=True):
        assert one.bits != other.bits
        assert one.bytes == other.bytes


def test_who_finds_all_choices_alike_has_not_answered(loaded: hf.Loaded, monkeypatch: pytest.MonkeyPatch) -> None:
    def alike(
        model: object, tokenizer: object, examples: list[Example], *args: object, **options: object
    ) -> dict[str, list[evaluate.Score]]:
        return {"base": [evaluate.Score(one.id, one.path, 7.0, 1) for one in examples]}

    monkeypatch.setattr(evaluate, "four_arms", alike)
    assert probes.measure(loaded, TRAIN, HELD_OUT, None, 60)["cloze"]["base"] == 0.0


def test_where_there_is_nothing_to_ask_or_no_time_it_says_so(loaded: hf.Loaded) -> None:
    found = probes.measure(loaded, TRAIN, [prose("v", "Дождь.")], None, 60)
    assert "no held-out sentence" in found["cloze"]["skipped"]
    assert "fewer than 4" in found["headings"]["skipped"]
    cut = probes.measure(loaded, TRAIN, HELD_OUT, None, 0.0)
    assert sum(part.get("asked", 0) for part in cut.values()) == 8
    assert sum(part.get("of", 0) for part in cut.values()) > 8
