"""Tasks made of notes: the answer is always a piece of the note, the question is asked in its language."""

from __future__ import annotations

import re
import time
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import tasks
from vaultllm.schema import Example, Scene, Source, Turn
from vaultllm.text import sha


def scene(text: str, **more: Any) -> Scene:
    fields = {"title": "Полив", "language": "ru", "kind": "prose", "trust": "own"} | more
    lines = (1, text.count("\n") + 1)
    return Scene("s1", sha(text), headings=(), turns=(Turn("user", text, lines),), source=Source("Дача/Полив.md", lines), **fields)


def made(text: str, kind: str, **more: Any) -> list[tuple[str, str]]:
    found = [example for example in tasks.of(scene(text, **more)) if example.task == kind]
    assert all([message.learn for message in example.messages] == [False, True] for example in found)
    return [(example.messages[0].text, example.messages[1].text) for example in found]


def test_a_heading_asks_for_the_text_under_it():
    text = "## Насос\n\nВключается при влажности ниже тридцати двух процентов.\n\nИ молчит ночью.\n\n## Пусто\n\n## Бочка\n\n"
    text += "Двести литров, стоит под водостоком у двери."
    assert made(text, "heading") == [
        (
            "Что написано в заметке «Полив» под заголовком «Насос»?",
            "Включается при влажности ниже тридцати двух процентов.\n\nИ молчит ночью.",
        ),
        ("Что написано в заметке «Полив» под заголовком «Бочка»?", "Двести литров, стоит под водостоком у двери."),
    ]


def test_of_a_long_section_whole_blocks_are_the_answer():
    first, second = "Вода идёт сверху вниз по шлангу. " * 20, "Потом она идёт обратно. " * 40
    ((_, answer),) = made(f"## Схема\n\n{first.strip()}\n\n{second.strip()}", "heading")
    assert answer == first.strip()
    assert not made(f"## Схема\n\n{'Вода идёт. ' * 200}", "heading")


@pytest.mark.parametrize(
    ("line", "about", "answer"),
    [
        ("- **Токен** — кусок текста, которому дан номер.", "сказано про «Токен»", "кусок текста, которому дан номер."),
        ("- **Шаг обучения** (learning rate) — на сколько крутить.", "сказано про «Шаг обучения»", "на сколько крутить."),
        ("**Ранг:** насколько она тонкая, восемь.", "сказано про «Ранг»", "насколько она тонкая, восемь."),
        ("Правило: не больше семи книг.", "сказано про «Правило»", "не больше семи книг."),
        ("1. Насос: четыре литра в минуту", "сказано про «Насос»", "четыре литра в минуту"),
        ("Гистерезис — это зазор между порогами.", "Что такое «Гистерезис»?", "это зазор между порогами."),
    ],
)
def test_a_line_that_defines_something_asks_for_what_it_says(line: str, about: str, answer: str):
    ((question, said),) = made(line, "definition")
    assert about in question
    assert said == answer


@pytest.mark.parametrize(
    "line",
    [
        "Он сказал мне вчера вечером у колодца за домом: иди уже спать.",  # a sentence, no term
        "Итог: да.",  # too short to be learnt
        "[[Полив]]: смотри там же про насос",
        "```\nkey: value of some sort\n```",
        "В 5:30 я встал и пошёл поливать.",
    ],
)
def test_ordinary_sentences_links_and_code_define_nothing(line: str):
    assert not made(line, "definition")


def test_english_and_bengali_definitions():
    for written, term in (("A rating curve", "rating curve"), ("Rating curves", "Rating curves"), ("The curve", "curve")):
        ((question, answer),) = made(f"{written} is a table that turns level into flow.", "definition", language="en", title="Flow")
        assert question == f"What is “{term}”? Answer in the words of the note “Flow”."
        assert answer == "is a table that turns level into flow."
    assert not made("It is a table that turns level into flow.", "definition", language="en")
    ((question, answer),) = made("বন্যা মানে নদীর জল পাড় ছাপিয়ে যাওয়া।", "definition", language="bn", title="শব্দ")
    assert question == "“বন্যা” কী? “শব্দ” নোটের কথাতেই উত্তর দাও।"
    assert answer == "নদীর জল পাড় ছাপিয়ে যাওয়া।"


def test_a_list_is_completed_but_not_one_of_tasks_that_are_done():
    items = [f"- вещь номер {number}" for number in range(6)]
    assert made("\n".join(items), "list") == [
        ("Продолжи этот список из заметки «Полив»:\n\n" + "\n".join(items[:3]), "\n".join(items[3:])),
    ]
    assert not made("\n".join(items[:3]), "list")
    assert not made("\n".join(item.replace("- ", "- [x] ") for item in items), "list")


def test_a_table_is_completed_below_its_head():
    rows = [f"| {number}.07 | {number} мм |" for number in range(1, 6)]
    head = "| День | Дождь |\n| --- | ---: |"
    ((question, answer),) = made(head + "\n" + "\n".join(rows), "table")
    assert question.endswith(head + "\n" + "\n".join(rows[:2]))
    assert answer == "\n".join(rows[2:])


def test_the_words_before_a_link_ask_for_its_note():
    text = "Насос включает реле, которое собрано по схеме из [[Теплица#Реле|соседней заметки]], а остальное в [[Бочка]]."
    assert made(text, "link") == [
        (
            "На какую заметку ведёт ссылка, которая стоит после этих слов в заметке «Полив»?\n\n"
            "Насос включает реле, которое собрано по схеме из",
            "Теплица",
        )
    ]
    assert not made("См. [[Теплица]]", "link")  # too few words
    assert not made("Про нашу старую теплицу и Теплица в ней всё сказано: [[Теплица]]", "link")  # it stands there already


def test_a_rare_word_is_left_out_of_its_sentence():
    text = "Утром проверил гистерезис и остался доволен им. Гистерезис и гистерезис, сколько можно о нём говорить."
    assert made(text, "cloze", field=("гистерезис",)) == [
        ("Какое слово пропущено в этом предложении из заметки «Полив»?\n\nУтром проверил ____ и остался доволен им.", "гистерезис")
    ]
    assert not made(text, "cloze", field=("порог",))


def test_a_dated_note_is_asked_for_its_day():
    text = "## Утро\n\nЗаметил туман над рекой и записал уровень воды.\n\nПаводок пришёл ночью, воды стало вдвое больше."
    assert made(text, "dated", at="2025-04-11T06:30:00+03:00", field=("паводок",)) == [
        ("Что я записал про «паводок» 11 апреля 2025?", "Паводок пришёл ночью, воды стало вдвое больше.")
    ]
    assert not made(text, "dated", field=("паводок",))
    ((question, _),) = made(text, "dated", at="2025-04-11", field=("паводок",), language="en")
    assert question == "What did I write about “паводок” on April 11 2025?"


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "dialogue"},
        {"train": False, "reason": "a template"},
        {"trust": "generated"},
        {"trust": "clipped"},
        {"trust": "imported"},
        {"title": ""},
        {"title": "Пароль ⟨password⟩"},
    ],
)
def test_only_the_owners_own_learnable_prose_makes_tasks(change: dict[str, Any]):
    text = "Гистерезис — это зазор между двумя порогами."
    assert tasks.of(scene(text))
    assert not tasks.of(replace(scene(text), **change))


def test_a_scene_in_which_something_was_redacted_makes_none():
    assert not tasks.of(scene("Гистерезис — это зазор.\n\nПароль от роутера: ⟨password⟩ и ещё два слова."))


PIECES = st.sampled_from(
    [
        "## Насос", "- **Токен** — кусок текста с номером", "- вещь", "1. шаг первый: сделать это быстро", "| a | b |", "|---|---|",
        "Паводок — это когда много воды в реке.", "Смотри всё что написано раньше в [[Теплица|там]].", "---", "```", "    код", "",
        "> цитата из книги", "Просто строка про паводок и насос утром.", "a: b\n---", "%%скрыто%%", "\ud800 половина", "**x** — $y$",
    ]
)  # fmt: skip


@given(st.lists(PIECES, max_size=25), st.sampled_from(["ru", "bn", "en", "und"]))
def test_every_answer_stands_in_the_note_letter_by_letter(pieces: list[str], language: str):
    text = "\n".join(pieces)
    one = scene(text, language=language, at="2025-04-11", field=("паводок", "насос"))
    found = tasks.of(one)
    for example in found:
        question, answer = example.messages
        assert answer.text in text
        assert answer.text.strip() == answer.text != ""
        assert answer.text not in question.text.partition("\n\n")[2]
        assert (example.form, example.scenes, example.path) == ("task", ("s1",), "Дача/Полив.md")
        assert example.task in tasks.KINDS
        assert 0 < example.weight <= 1
    assert len({example.id for example in found}) == len(found)
    assert tasks.of(one) == found


def test_all_sorts_are_asked_in_three_languages_without_a_hole():
    for language, wordings in tasks._ASKED.items():
        assert wordings.keys() == tasks._ASKED["en"].keys(), language
        assert len(set(wordings.values())) == len(wordings)
        for words in wordings.values():
            assert set(re.findall(r"\{(\w+)\}", words)) <= {"note", "about", "day"}
    assert not re.search("[a-z]", "".join(tasks._ASKED["ru"].values()).replace("{note}", "").replace("{about}", "").replace("{day}", ""))


def pile(notes: int, each: int) -> list[Example]:
    text = "\n\n".join(f"Слово{number} — это зазор номер {number} между порогами." for number in range(each))
    return [task for note in range(notes) for task in tasks.of(replace(scene(text), id=f"s{note}", source=Source(f"{note}.md", (1, 1))))]


def test_no_note_gives_more_than_its_cap_and_all_no_more_than_the_room():
    offered = pile(8, 20)
    chosen, beyond = tasks.chosen(offered, float("inf"))
    assert len(chosen) == 8 * tasks.PER_NOTE
    assert sorted(one.id for one in chosen + beyond) == sorted(one.id for one in offered)
    few, _ = tasks.chosen(offered, 300.0)
    assert 200 < sum(map(tasks.learnt_characters, few)) <= 300
    assert {one.id for one in few} < {one.id for one in chosen}
    assert tasks.chosen(offered, 0.0)[0] == []


def test_a_notes_tasks_are_of_different_sorts():
    text = "## Насос\n\nВключается при влажности ниже тридцати двух процентов.\n\n" + "\n\n".join(
        f"Слово{number} — это зазор номер {number} между порогами." for number in range(30)
    )
    chosen, _ = tasks.chosen(tasks.of(scene(text)), float("inf"))
    assert {one.task for one in chosen} == {"heading", "definition"}


@pytest.mark.parametrize(
    "unit",
    ["**", "- **a", "a: ", "X — это ", "[[", "|", "| -", "--- ", "## a\n", "- x\n", "_", "слово ", " — ", "`", "> ", "\t", "(", "X is a "],
)
def test_time_grows_with_the_length_and_not_with_its_square(unit: str):
    def seconds(times: int) -> float:
        one = scene(unit * times, field=("слово",), at="2025-04-11", language="en" if " is " in unit else "ru")
        began = time.process_time()
        tasks.of(one)
        return time.process_time() - began

    seconds(100)
    assert min(seconds(40_000 // len(unit)) for _ in range(2)) < 1.0
