"""A date in words is what people write, in the language of the scene; what is no date is nothing."""

from __future__ import annotations

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import dates, text


@pytest.mark.parametrize(
    ("iso", "language", "expected"),
    [
        ("2025-06-15T06:20:00+03:00", "ru", "15 июня 2025 воскресенье"),
        ("2025-06-15T06:20:00+03:00", "en", "June 15 2025 Sunday"),
        ("2025-06-15", "bn", "১৫ জুন ২০২৫ রবিবার"),
        ("2024-02-29", "ru", "29 февраля 2024 четверг"),
        ("2025-01-01", "hi", "January 1 2025 Wednesday"),
        ("2025-01-01", "und", "January 1 2025 Wednesday"),
    ],
)
def test_a_date_is_said_in_the_language_of_the_scene_and_in_english_for_others(iso: str, language: str, expected: str) -> None:
    assert dates.words(iso, language) == expected


@pytest.mark.parametrize("iso", ["", "2025", "2025-13-01", "2025-02-30", "вчера", "yesterday was", "১৫-০৬-২০২৫"])
def test_what_is_no_date_has_no_words(iso: str) -> None:
    assert dates.words(iso, "ru") == ""
    assert dates.day(iso) is None


@given(st.dates(), st.sampled_from(["ru", "en", "bn"]))
def test_every_month_that_is_written_is_also_read_and_shares_its_stem_with_how_a_question_says_it(when: date, language: str) -> None:
    said = dates.words(when.isoformat(), language)
    months = {meaning["month"] for word in text.words(said) if "month" in (meaning := dates.meanings(word))}
    maybe = {meaning["month?"] for word in text.words(said) if "month?" in (meaning := dates.meanings(word))}
    assert months | maybe == {when.month}
    days = [meaning["weekday"] for word in text.words(said) if "weekday" in (meaning := dates.meanings(word))]
    days += [meaning["weekday?"] for word in text.words(said) if "weekday?" in (meaning := dates.meanings(word))]
    assert days == [when.weekday()]


@pytest.mark.parametrize("asked", ["в июне", "июнь", "к июню"])
def test_the_stem_of_a_month_in_a_question_is_that_of_the_date_in_words(asked: str) -> None:
    assert text.stems(asked)[-1] in text.stems(dates.words("2025-06-15", "ru"))


@pytest.mark.parametrize(
    ("word", "kind", "value"),
    [("ИЮНЕ", "month", 6), ("জুলাইয়ের", "month", 7), ("মে", "month", 5), ("১৫ই", "digits", 15), ("2nd", "digits", 2), ("২০২৪", "year", 2024)],
)
def test_a_word_says_what_it_may_mean_of_time(word: str, kind: str, value: int) -> None:
    assert dates.meanings(word)[kind] == value


@pytest.mark.parametrize("word", ["мая", "march", "may", "মেয়ে", "маяк", "", "1" * 5000, "x" * 5000])
def test_words_that_are_something_else_are_no_months(word: str) -> None:
    assert ("month" in dates.meanings(word)) == (word == "мая")
