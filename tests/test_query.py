"""A question is taken apart without loss: filters, phrases, unwanted words and times, and errors only where something was meant."""

from __future__ import annotations

import contextlib
import string
import time
from datetime import date
from typing import Any

import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

from vaultllm import edits, text
from vaultllm.errors import UsageError
from vaultllm.memory import query

TODAY = date(2025, 11, 19)
SCENE: dict[str, Any] = {
    "path": "Проекты/Выдра/Журнал Ёлки.md",
    "tags": ("#Сад", "работа/план"),
    "at": "2025-06-15T06:20:00+03:00",
    "kind": "dialogue",
    "trust": "own",
    "language": "ru",
}


def _parse(said: str) -> query.Query:
    return query.parse(said, TODAY)


def _allows(said: str, **other: Any) -> bool:
    return _parse(said).filters.allows(**{**SCENE, **other})


# -- filters


@pytest.mark.parametrize(
    "said",
    [
        "path:выдра", "path:ёлки", "PATH:ЕЛКИ.md", 'path:"журнал ёлки"', "path:«журнал ёлки»", "folder:Проекты", "folder:выдра/",
        "folder:проекты/выдра", "folder:/проекты", "tag:сад", "tag:#САД", "tag:работа", "tag:работа/план", "before:2026", "after:2025",
        "after:2025-06-15", "before:2025-06-16", "after:июня", 'after:"15 июня"', "before:yesterday", "after:2025-06-15T10:00",
        "kind:dialogue",
        "kind:DIALOGUE", "trust:own", "lang:ru", "tag:нет tag:сад", "lang:en lang:ru kind:dialogue", "-tag:дача", "-lang:en", "(lang:ru)",
        "lang:ru,", "-after:2026", "",
    ],
)  # fmt: skip
def test_a_filter_lets_through_what_it_names(said: str) -> None:
    assert _allows(said)


@pytest.mark.parametrize(
    "said",
    [
        "path:дача", "folder:Журнал", "folder:про", "folder:/выдра", "tag:са", "tag:план", "tag:сад/огород", "before:2025",
        "before:2025-06-15",
        "after:2025-06-16", "after:2026", "kind:prose", "trust:clipped", "lang:en", "tag:сад lang:en", "-tag:сад", "-lang:ru",
        "tag:сад -kind:dialogue",
        "-after:2025", "-before:2026",
    ],
)  # fmt: skip
def test_a_filter_keeps_out_what_it_does_not_name(said: str) -> None:
    assert not _allows(said)


@pytest.mark.parametrize("at", ["", "когда-то", "2025"])
@pytest.mark.parametrize("said", ["before:2099", "after:1999", "-before:2000", "-after:2098"])
def test_an_unknown_time_passes_no_filter_of_time(said: str, at: str) -> None:
    assert not _allows(said, at=at)


def test_after_a_year_and_before_the_next_is_that_year_to_the_day() -> None:
    year = [f"2024-{day}" for day in ("01-01", "12-31")]
    assert [_allows("after:2024 before:2025", at=at) for at in ("2023-12-31", *year, "2025-01-01")] == [False, True, True, False]


def test_filters_leave_the_words_and_the_words_leave_no_filter() -> None:
    asked = _parse('  tag:сад как -lang:en поливать path:"мой план" огурцы?')
    assert asked.text == "как поливать огурцы?"
    assert [(one.name, one.value, one.negated) for one in asked.filters.conditions] == [
        ("tag", "сад", False), ("lang", "en", True), ("path", "мой план", False),
    ]  # fmt: skip
    assert not _parse("как поливать огурцы").filters


@pytest.mark.parametrize(
    ("said", "names"),
    [
        ("pth:x", ("'pth:'", "'path:'")),
        ("paht:x", ("'path:'",)),
        ("tags:сад", ("'tags:'", "'tag:'")),
        ("foldr:x y", ("'folder:'",)),
        ("befoer:2024", ("'before:'",)),
        ("-langs:en", ("'lang:'",)),
        ("kinds:prose", ("'kind:'",)),
        ("kind:foo", ("kind:foo", "dialogue, prose, list, table, code")),
        ("kind:pose", ("kind:pose", "Did you mean 'prose'?")),
        ("-trust:me", ("-trust:me", "own, imported, clipped, generated")),
        ("lang:russian", ("lang:russian", "ru, bn, en")),
        ("before:notadate", ("before:notadate", "2025-06-15")),
        ("after:2024-13", ("after:2024-13",)),
        ('tag:"не закрыта', ("'tag:'", "not closed")),
    ],
)
def test_a_wrong_filter_is_a_usage_error_that_names_it_and_what_is_right(said: str, names: tuple[str, ...]) -> None:
    with pytest.raises(UsageError) as caught:
        _parse(f"слово {said}")
    assert (caught.value.code, caught.value.exit_code) == ("E-FILTER", 2)
    for name in names:
        assert name in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        "http://localhost:8000/path:x", "https://ru.wikipedia.org/wiki/Выдра", "file:///home/me", "path://x", "12:30", "C:\\Users\\me",
        "std::vector",
        ":)", ":-(", ":smile:", "note: это проза", "note:x", "path: проза", "tag:", "tag:)", "а:б", "Вопрос:ответ", "tab:x", "math:sin",
        "find:it",
        "re:zero", "kind : prose", "foo:bar:baz", "mailto:me@example.org", "12:path", "x-path:y", 'foo:"не закрыта', "::", "tag::x", "рН:7",
    ],
)  # fmt: skip
def test_other_colons_are_words(said: str) -> None:
    asked = _parse(said)
    assert asked.text == said
    assert not asked.filters


def test_a_folder_from_the_top_is_named_whole() -> None:
    assert query.lies("folder", "дача/полив.md", ("/дача",))
    assert not query.lies("folder", "дачник/полив.md", ("/дач",))
    assert not query.lies("folder", "дом/дача/полив.md", ("/дача",))
    assert not query.lies("folder", "дача.md", ("дача", "/дача", "дача.md"))


# -- phrases and unwanted words


@pytest.mark.parametrize("said", ['"точная фраза"', "«точная фраза»", "“точная фраза”", "„точная фраза“", "„точная  фраза”"])
def test_a_phrase_in_any_quotes_is_looked_for_and_must_stand_so(said: str) -> None:
    asked = _parse(f"где {said}, а?")
    assert asked.phrases == ("точная фраза",)
    assert text.words(asked.text) == ["где", "точная", "фраза", "а"]
    assert asked.matches_text("Это — Точная, **фраза**!")
    assert not asked.matches_text("фраза точная")
    assert not asked.matches_text("точная фразам")


@pytest.mark.parametrize("said", ['5" диск и 6" диск', '"не закрыта', "« и всё", 'a"b"c', '"" и «»', "don't 'x y'", '"\n"', '"?!"'])
def test_quotes_that_hold_no_phrase_are_left_in_the_text(said: str) -> None:
    asked = _parse(said)
    assert asked.phrases == ()
    assert asked.text == " ".join(said.split())


def test_signs_of_a_phrase_must_stand_as_they_were_asked_for() -> None:
    assert _parse('"C++"').matches_text("пишу на c++ давно")
    assert not _parse('"C++"').matches_text("пишу на C давно")
    assert _parse('"100%"').matches_text("Это 100% так")
    assert not _parse('"100%"').matches_text("100 раз")
    assert _parse('"🙂"').matches_text("да 🙂!")
    assert not _parse('"🙂"').matches_text("да!")


def test_an_unwanted_word_or_phrase_must_be_absent_and_is_not_looked_for() -> None:
    asked = _parse('чай -Кофе -"с молоком" кто-то -5 градусов - тире -v --flag')
    assert asked.without == ("кофе", "с молоком")
    assert asked.text == "чай кто-то -5 градусов - тире -v --flag"
    assert asked.matches_text("чай с лимоном, кофейня")
    assert not asked.matches_text("чай и КОФЕ")
    assert not asked.matches_text("чай с\nмолоком")
    assert _parse("чай").matches_text("")


def test_bengali_words_are_whole_with_their_marks() -> None:
    assert _parse('"মুগ ডাল"').matches_text("আগে মুগ ডাল ভেজে নিতে হয়।")
    assert not _parse('"মুগ ডা"').matches_text("আগে মুগ ডাল ভেজে নিতে হয়।")
    assert not _parse("-ডাল খিচুড়ি").matches_text("মুগ ডাল")


# -- times


def test_the_words_of_a_time_stay_in_the_text_and_are_left_out_of_what_it_is_about() -> None:
    asked = _parse("что я спрашивал в июне о реке?")
    assert asked.when is not None
    assert (asked.when.first, asked.when.last, asked.when.words) == (date(2025, 6, 1), date(2025, 6, 30), "в июне")
    assert (asked.text, asked.about) == ("что я спрашивал в июне о реке?", "что я спрашивал о реке?")


def test_a_time_is_read_around_filters_but_never_in_phrases_filters_and_unwanted_words() -> None:
    asked = _parse('река tag:вода -лето "15 июня" path:июль вчера')
    assert asked.when is not None
    assert asked.when.words == "вчера"
    assert asked.text[asked.when.start :] == "вчера"
    assert asked.about == "река 15 июня"
    assert _parse('"15 июня" tag:июль -август').when is None
    assert _parse("15 tag:x июня").when is not None


def test_a_question_without_a_time_is_about_all_its_words() -> None:
    asked = _parse("как поливать огурцы")
    assert asked.when is None
    assert asked.about == asked.text


# -- any text at all

ODD = st.sampled_from(
    [
        "path:",
        "kind:prose",
        "tag:x",
        "-",
        '"',
        "«",
        "»",
        "“",
        "„",
        "(",
        ":",
        "вчера",
        "before:2024",
        "pth:1",
        "-слово",
        "\n",
        " ",
        "//",
        "\0",
        "#",
        "\ud800",
    ]
)


@given(st.lists(st.text(max_size=8) | ODD, max_size=14).map("".join))
@example("(")
@example("-")
@example('tag:"')
@example("[[(")
@example("path:\u200b")
def test_parsing_any_text_raises_nothing_but_the_documented_error(said: str) -> None:
    asked = None
    with contextlib.suppress(UsageError):
        asked = _parse(said)
    if asked is None:
        return
    if asked.when is not None:
        assert asked.text[asked.when.start :].startswith(asked.when.words)
    assert asked.matches_text(said) in (True, False)
    asked.filters.allows(**SCENE)


FILTERS = ["tag:сад", "-tag:x", 'path:"a b"', "before:2024", "kind:prose", "-lang:en", "after:вчера", "folder:«к н и г и»", "trust:own"]
PLAIN = st.text(st.characters(categories=("L", "N"), max_codepoint=0x2000) | st.sampled_from("-:.,!?/'’()_"), min_size=1, max_size=10)


@given(st.lists(st.tuples(PLAIN, st.sampled_from(["", *FILTERS])), min_size=1, max_size=8))
def test_all_words_that_are_no_filters_survive_in_their_order(parts: list[tuple[str, str]]) -> None:
    plain = [word for word, _ in parts if not word.startswith(("-", "(", "["))]
    assume(not any(":" in word for word in plain) and plain)
    said = " ".join(" ".join(part) for part in parts if part[0] in plain)
    asked = _parse(said)
    assert asked.text == " ".join(plain)
    assert len(asked.filters.conditions) == sum(bool(one) for word, one in parts if word in plain)


@pytest.mark.parametrize("piece", ['"', "«", "„ ", "-«", '-"a ', "(((", ': "', 'a:"', "tag:x ", "-a ", "path", "вчера ", '"a b" '])
def test_a_long_question_costs_time_in_proportion(piece: str) -> None:
    start = time.process_time()
    _parse(piece * (100_000 // len(piece)))
    assert time.process_time() - start < 2.0


def test_each_language_that_a_text_can_be_in_can_be_asked_for() -> None:
    for said in ("привет", "হ্যালো", "hello", "नमस्ते", "γειά", "مرحبا", "שלום", "こんにちは", "안녕하세요", "你好世界", "12"):
        assert _allows(f"lang:{text.language(said)}", language=text.language(said))


# -- slips of the hand


@given(st.text("abcde", max_size=8), st.text("abcde", max_size=8), st.integers(0, 4))
def test_the_banded_distance_is_the_plain_one_up_to_its_limit(one: str, other: str, most: int) -> None:
    rows = [[max(i, j) if not i or not j else 0 for j in range(len(other) + 1)] for i in range(len(one) + 1)]
    for i in range(1, len(one) + 1):
        for j in range(1, len(other) + 1):
            rows[i][j] = min(rows[i - 1][j] + 1, rows[i][j - 1] + 1, rows[i - 1][j - 1] + (one[i - 1] != other[j - 1]))
            if i > 1 and j > 1 and one[i - 1] == other[j - 2] and one[i - 2] == other[j - 1]:
                rows[i][j] = min(rows[i][j], rows[i - 2][j - 2] + 1)
    plain = rows[-1][-1]
    assert edits.distance(one, other, most) == (plain if plain <= most else None)


@pytest.mark.parametrize("word", string.ascii_lowercase)
def test_no_single_letter_is_nearly_a_filter(word: str) -> None:
    assert _parse(f"{word}:x").text == f"{word}:x"
