"""Keywords, anchor, language: what a text is about, by what the vault says everywhere and what it says only here."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import keywords, text

VAULT = [
    *["Насос включается утром, бочка полна, река спокойна, прогноз на неделю."] * 5,
    *["Закваска любит тепло. Хлеб сегодня вышел, прогноз на неделю хороший."] * 5,
    *["The model reads tokens and the loss goes down, прогноз на неделю."] * 5,
    *["নদীর জল আজ শান্ত, চিঠি লেখা হল, прогноз на неделю."] * 5,
    *["Маршрут вдоль берега, прогноз на неделю."] * 5,
]
KNOWN = keywords.statistics(VAULT)


def test_statistics_count_notes_and_not_words_and_forget_what_stands_in_one_note() -> None:
    counted = keywords.statistics(["насос насос насос", "насосы и бочка", "бочка", "единственный"])
    assert counted.notes == 4
    assert counted.df == {text.stem("насос"): 2, text.stem("бочка"): 2}
    assert keywords.statistics([]).to_dict() == {"notes": 0, "df": {}}


def test_statistics_do_not_depend_on_the_order_and_survive_json() -> None:
    shuffled = keywords.statistics(reversed(VAULT))
    assert shuffled.to_dict() == KNOWN.to_dict()
    assert list(shuffled.df) == list(KNOWN.df)
    assert keywords.Statistics.from_dict(json.loads(json.dumps(KNOWN.to_dict()))).to_dict() == KNOWN.to_dict()


def test_only_the_most_frequent_stems_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keywords, "MOST_STEMS", 2)
    assert len(keywords.statistics(VAULT).df) == 2


def test_what_stands_in_every_note_is_no_keyword_and_what_stands_here_is() -> None:
    said = "Прогноз на неделю: насос молчит, насос чинят, бочка пуста. Прогноз, прогноз и ещё прогноз на неделю."
    assert "прогноз" not in keywords.digest(said, KNOWN).field
    assert keywords.digest(said, KNOWN).field[0] == "насос"
    assert keywords.digest(said).field[0] == "прогноз"  # without the vault nothing else is known


def test_a_text_of_words_that_stand_everywhere_still_has_keywords() -> None:
    assert keywords.digest("прогноз на неделю", KNOWN).field


def test_a_word_of_the_title_that_the_text_says_weighs_more() -> None:
    said = "Насос молчит, бочка пуста, закваска ждёт, маршрут закрыт."
    assert keywords.digest(said, KNOWN, ("Закваска",)).field[0] == "закваска"
    assert "хлеб" not in keywords.digest(said, KNOWN, ("Хлеб",)).field


@pytest.mark.parametrize(
    ("said", "never"),
    [
        ("Это как если бы кто-то уже был там, где который раз кормят закваску", {"это", "как", "если", "уже", "там", "где", "который"}),
        ("This is what they would have been about, if the pump had not been", {"this", "what", "they", "would", "been", "about"}),
        ("এই চিঠি আমার জন্য, কিন্তু তুমি যদি পড়তে চাও তবে নদীর কথা থেকে শুরু করো", {"এই", "আমার", "জন্য", "কিন্তু", "যদি", "তবে", "থেকে"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("known", [KNOWN, None])
def test_function_words_are_no_keywords(said: str, never: set[str], known: keywords.Statistics | None) -> None:
    field = keywords.digest(said, known).field
    assert field
    assert not never & set(field)


def test_numbers_addresses_marks_of_secrets_targets_and_code_are_no_keywords() -> None:
    said = (
        "Замер 20250101 и 8db2f0f0 у колодца, см. https://example.org/pump/level и [[Папка/Имя#^blok|колодец]], пишите ⟨email⟩.\n\n"
        "```python\nfor reading in readings:\n    publish(reading, reading, reading)\n```\n\nВечером колодец полон, утром колодец пуст."
    )
    field = keywords.digest(said, KNOWN).field
    assert field[0] == "колодец"
    assert not {"20250101", "8db2f0f0", "example", "pump", "email", "blok", "папка", "reading", "publish"} & set(field)
    assert "reading" in keywords.digest("```python\nfor reading in readings:\n    publish(reading)\n```").field  # code alone is about code


def test_a_keyword_has_the_form_that_it_takes_most_often() -> None:
    assert keywords.digest("Токенизация. О токенизации говорят, токенизации учат.").field[0] == "токенизации"


def test_keywords_of_words_are_those_of_the_text() -> None:
    said = "Насос молчит, бочка пуста; насосы чинят у бочки."
    assert keywords.keywords(text.words(said), KNOWN) == keywords.digest(said, KNOWN).field


def test_the_anchor_is_the_sentence_that_holds_the_keywords_on_one_line_without_marks() -> None:
    said = (
        "# Полив\n\nНу вот и всё на сегодня.\n\n- **Насос** включается, когда\n  [[Бочка|бочка]] почти пуста.\n\nЗавтра посмотрим ещё раз."
    )
    assert keywords.anchor(said, KNOWN) == "Насос включается, когда бочка почти пуста."


def test_the_anchor_has_no_marks_of_a_callout() -> None:
    said = "> [!info]- Насос\n> Включается, когда бочка\n> > почти пуста.\n"
    assert keywords.anchor(said, KNOWN) == "Насос Включается, когда бочка почти пуста."


def test_the_anchor_of_short_sayings_is_the_first_and_of_no_words_empty_and_a_long_one_is_cut() -> None:
    assert keywords.anchor("Да. Нет.") == "Да."
    assert keywords.anchor("... --- !!!") == ""
    long = keywords.anchor("насос " * 400)
    assert len(long) <= 200
    assert long.endswith("насос…")


@pytest.mark.parametrize(
    ("said", "language"),
    [
        ("Насос и pump, но больше насос", "ru"), ("নদী আজ শান্ত", "bn"), ("The pump и насос again today", "en"),
        ("水を飲む人がいる", "ja"), ("我们喝水", "zh"), ("12:30 — 15", "und"), ("я", "und"),
    ],
)  # fmt: skip
def test_the_language_is_that_of_most_letters(said: str, language: str) -> None:
    assert keywords.digest(said).language == language


@given(st.text(max_size=300), st.sampled_from([KNOWN, None]))
def test_any_text_has_an_answer_that_stands_in_it(said: str, known: keywords.Statistics | None) -> None:
    found = keywords.digest(said, known)
    words = set(text.words(said))
    assert len(found.field) <= 6
    assert set(found.field) <= words
    assert len(found.anchor) <= 200
    assert "\n" not in found.anchor


@pytest.mark.parametrize(
    "said", ["[[" * 4000, "```\n" * 2000, "#" * 8000, "http://" * 1000, "\n" * 8000, "- " * 4000, "[a](" * 2000, "**" * 4000]
)
def test_hostile_texts_take_no_longer_than_others(said: str) -> None:
    started = time.process_time()
    keywords.digest(said * 2, KNOWN)
    assert time.process_time() - started < 0.5
