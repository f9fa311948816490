"""The time that a question speaks of is found in three languages, and not where there is none."""

from __future__ import annotations

import time
from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import spans

TODAY = date(2025, 11, 19)  # a Wednesday


def _found(said: str, today: date = TODAY) -> tuple[str, str] | None:
    span = spans.find(said, today)
    return None if span is None else (span.first.isoformat(), span.last.isoformat())


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("о чём мы говорили вчера вечером", "2025-11-18", "2025-11-18"),
        ("позавчера", "2025-11-17", "2025-11-17"),
        ("сегодняшние записи", "2025-11-19", "2025-11-19"),
        ("что было на прошлой неделе?", "2025-11-10", "2025-11-16"),
        ("на этой неделе", "2025-11-17", "2025-11-23"),
        ("что я спрашивал в июне?", "2025-06-01", "2025-06-30"),
        ("в декабре", "2024-12-01", "2024-12-31"),
        ("в июне прошлого года", "2024-06-01", "2024-06-30"),
        ("июнь 2023 года", "2023-06-01", "2023-06-30"),
        ("15 июня", "2025-06-15", "2025-06-15"),
        ("15-го июня 2024 г.", "2024-06-15", "2024-06-15"),
        ("10–15 июня", "2025-06-10", "2025-06-15"),
        ("с 10 по 15 июня", "2025-06-10", "2025-06-15"),
        ("с 15 июня", "2025-06-15", "9999-12-31"),
        ("с июня по август", "2025-06-01", "2025-08-31"),
        ("с ноября по февраль", "2024-11-01", "2025-02-28"),
        ("в 2024", "2024-01-01", "2024-12-31"),
        ("до 2024 года", "0001-01-01", "2023-12-31"),
        ("после июня", "2025-07-01", "9999-12-31"),
        ("прошлой весной", "2025-03-01", "2025-05-31"),
        ("прошлой осенью", "2024-09-01", "2024-11-30"),
        ("этой осенью", "2025-09-01", "2025-11-30"),
        ("зимой 2024", "2023-12-01", "2024-02-29"),
        ("неделю назад", "2025-11-09", "2025-11-15"),
        ("3 дня назад", "2025-11-16", "2025-11-16"),
        ("за последние три дня", "2025-11-16", "2025-11-19"),
        ("в начале июня", "2025-06-01", "2025-06-10"),
        ("в конце прошлого года", "2024-09-01", "2024-12-31"),
        ("в прошлую пятницу", "2025-11-14", "2025-11-14"),
        ("в среду", "2025-11-12", "2025-11-12"),
        ("отчёт 15.06.2025", "2025-06-15", "2025-06-15"),
    ],
)
def test_russian_times_are_read(said: str, first: str, last: str) -> None:
    assert _found(said) == (first, last)


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("what did we say yesterday?", "2025-11-18", "2025-11-18"),
        ("yesterday’s plan", "2025-11-18", "2025-11-18"),
        ("last night", "2025-11-18", "2025-11-19"),
        ("last spring", "2025-03-01", "2025-05-31"),
        ("in the autumn of 2023", "2023-09-01", "2023-11-30"),
        ("June 15", "2025-06-15", "2025-06-15"),
        ("on the 15th of June, 2024", "2024-06-15", "2024-06-15"),
        ("June 10-15, 2024", "2024-06-10", "2024-06-15"),
        ("in 2024", "2024-01-01", "2024-12-31"),
        ("in March", "2025-03-01", "2025-03-31"),
        ("early May 2025", "2025-05-01", "2025-05-10"),
        ("two weeks ago", "2025-11-02", "2025-11-08"),
        ("a couple of weeks ago", "2025-11-02", "2025-11-08"),
        ("a few days ago", "2025-11-14", "2025-11-17"),
        ("in the last two weeks", "2025-11-05", "2025-11-19"),
        ("last month", "2025-10-01", "2025-10-31"),
        ("the past week", "2025-11-12", "2025-11-19"),
        ("last weekend", "2025-11-15", "2025-11-16"),
        ("on Monday", "2025-11-17", "2025-11-17"),
        ("since June", "2025-06-01", "9999-12-31"),
        ("before last week", "0001-01-01", "2025-11-09"),
        ("between June and August", "2025-06-01", "2025-08-31"),
        ("from 2022 to 2023", "2022-01-01", "2023-12-31"),
        ("log of 2025-06-15", "2025-06-15", "2025-06-15"),
        ("2025-06", "2025-06-01", "2025-06-30"),
        ("February 29", "2024-02-29", "2024-02-29"),
    ],
)
def test_english_times_are_read(said: str, first: str, last: str) -> None:
    assert _found(said) == (first, last)


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("গতকাল কী বলেছিলাম", "2025-11-18", "2025-11-18"),
        ("জুন মাসে কী লিখেছি", "2025-06-01", "2025-06-30"),
        ("জুনে", "2025-06-01", "2025-06-30"),
        ("১৫ই জুন ২০২৪", "2024-06-15", "2024-06-15"),
        ("২০২৪ সালে", "2024-01-01", "2024-12-31"),
        ("গত সপ্তাহে", "2025-11-10", "2025-11-16"),
        ("দুই সপ্তাহ আগে", "2025-11-02", "2025-11-08"),
        ("৩ দিন আগে", "2025-11-16", "2025-11-16"),
        ("গত তিন দিনে", "2025-11-16", "2025-11-19"),
        ("জুন থেকে আগস্ট পর্যন্ত", "2025-06-01", "2025-08-31"),
        ("জুন থেকে", "2025-06-01", "9999-12-31"),
        ("জুনের আগে", "0001-01-01", "2025-05-31"),
        ("জুনের পরে", "2025-07-01", "9999-12-31"),
        ("জুনের শুরুতে", "2025-06-01", "2025-06-10"),
        ("গত বসন্তে", "2025-02-14", "2025-04-13"),
        ("সোমবারে", "2025-11-17", "2025-11-17"),
        ("জানু\u09df\u09beরিতে", "2025-01-01", "2025-01-31"),  # য় in one code point, and in two, as NFC has it
        ("জানু\u09af\u09bc\u09beরিতে", "2025-01-01", "2025-01-31"),
    ],
)
def test_bengali_times_are_read(said: str, first: str, last: str) -> None:
    assert _found(said) == (first, last)


@pytest.mark.parametrize(
    "said",
    [
        "", "🙂", "what I may have said", "this may be wrong", "march on", "the spring framework", "среда обитания", "Марта сказала",
        "строка 2024", "2048 строк", "1999 рублей", "в 1812 году", "in 7777", "next week", "99999999 дней назад", "ISO 2024-13-45",
        "версия 3.11.2", "192.168.1.1", "тел. 8-800-555", "года", "в начале", "last but not least", "আমার মেয়ে", "5 weeks", "June" * 9,
    ],
)  # fmt: skip
def test_what_only_looks_like_a_time_is_none(said: str) -> None:
    assert _found(said) is None


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ("что я спрашивал в июне?", "в июне"),
        ("записи за последние две недели о реке", "за последние две недели"),
        ("what happened in the last week or so", "in the last week"),
        ("Планы на июнь, которые я обсуждал вчера", "вчера"),  # what is told from today wins
        ("15 июня 2025 года, дождь", "15 июня 2025 года"),
        ("с 10 по 15 июня", "с 10 по 15 июня"),
    ],
)
def test_a_span_says_which_words_it_was_read_from_and_where_they_stand(said: str, words: str) -> None:
    span = spans.find(said, TODAY)
    assert span is not None
    assert span.words == words
    assert said[span.start :].startswith(words)


def test_times_are_not_joined_over_the_end_of_a_sentence() -> None:
    assert _found("Это июнь? 2023 год был другим") == ("2025-06-01", "2025-06-30")
    assert _found("Закончил 15; июня не помню") == ("2025-06-01", "2025-06-30")


@pytest.mark.parametrize(
    ("said", "first", "last"),
    [
        ("2024", "2024-01-01", "2024-12-31"),
        ("2024-06", "2024-06-01", "2024-06-30"),
        ("2024/6/15", "2024-06-15", "2024-06-15"),
        ("май", "2025-05-01", "2025-05-31"),
        ("may", "2025-05-01", "2025-05-31"),
        (" last week ", "2025-11-10", "2025-11-16"),
    ],
)
def test_a_value_is_read_as_a_time_only_when_it_is_nothing_else(said: str, first: str, last: str) -> None:
    assert spans.read(said, TODAY) == (date.fromisoformat(first), date.fromisoformat(last))
    assert spans.read(f"{said} x", TODAY) is None
    assert spans.read(f"x {said}", TODAY) is None
    assert spans.read(f"since {said}", TODAY) is None


def test_a_span_holds_the_days_from_its_first_to_its_last_and_no_unknown_one() -> None:
    span = spans.Span(date(2025, 6, 1), date(2025, 6, 30), "", 0)
    assert [span.holds(at) for at in ("2025-06-01", "2025-06-30T23:59:59+03:00", "2025-05-31T23:59", "2025-07-01", "", "june")] == [
        True, True, False, False, False, False,
    ]  # fmt: skip


WORDS = st.sampled_from(
    """вчера в на с
    по до после прошлой неделе неделю назад июня июнь 2024 15 31 29 февраля последние три дня года last next two weeks ago in
    of the since before from to may June 15th , - . গত ২০২৪ সালে জুন থেকে আগে শুরুতে
    early late конце несколько a few weekend 9999 0 ?""".split()
)


@given(st.lists(WORDS, max_size=12).map(" ".join) | st.text(max_size=60), st.dates())
def test_any_words_on_any_day_give_a_span_in_order_or_none(said: str, today: date) -> None:
    span = spans.find(said, today)
    if span is not None:
        assert span.first <= span.last
        assert said[span.start : span.start + len(span.words)] == span.words
    read = spans.read(said, today)
    assert read is None or read[0] <= read[1]


@given(st.dates(date(2000, 1, 10), date(2099, 12, 31)), st.integers(1, 9))
def test_days_ago_are_exact_and_weeks_ago_lie_around_the_day(today: date, number: int) -> None:
    assert _found(f"{number} days ago", today) == ((today - timedelta(number)).isoformat(),) * 2
    span = spans.find(f"{number} недели назад", today)
    assert span is not None
    assert span.holds((today - timedelta(7 * number)).isoformat())
    assert not span.holds((today - timedelta(7 * number + 7)).isoformat())


@pytest.mark.parametrize("piece", ["15 июня ", "in ", "2024-", "a couple of ", "с июня по ", "last ", "1"])
def test_a_long_text_costs_no_more_than_its_beginning(piece: str) -> None:
    start = time.process_time()
    spans.find(piece * (200_000 // len(piece)), TODAY)
    assert time.process_time() - start < 1.0
