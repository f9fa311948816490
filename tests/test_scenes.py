"""Scenes: ids say where and outlive edits, lines are covered once, the YAML is exact and readable."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timing import assert_linear
from vaultllm import chats, keywords, markdown, reading, scene_yaml, scenes
from vaultllm.config import RedactSettings, ScanSettings, SceneSettings, Settings
from vaultllm.schema import Block, Conversation, Link, Note, Problem, Scene, Source, Turn

SETTINGS = Settings(vault_id="test")
APART = Settings(vault_id="test", scenes=SceneSettings(min_chars=0))

NOTE = """---
tags: [дача]
date: 2025-05-01
---
# Полив

Насос включается ниже 32 %. Он молчит ночью.

## Бочка

Бочки на 200 литров хватает на три дня. ^bochka

%%никому не показывать%%

## Код

```python
def f():
    return 1
```
"""

CHAT = """>[!nexus_user] **User** - 16.06.2025 at 21:34
> Что такое токен?
<!-- UID: u1 -->




>[!nexus_agent] **Assistant** - 16.06.2025 at 21:34
> Кусок слова.
<!-- UID: a1 -->

---




[[Росток]]
>[!nexus_user] **User** - 16.06.2025 at 21:40
> А слог?
<!-- UID: u2 -->




>[!nexus_agent] **Assistant** - 16.06.2025 at 21:41
> Это другое.
<!-- UID: a2 -->
"""


def cut(path: str, body: str, settings: Settings = APART) -> tuple[Scene, ...]:
    return cut_with_problems(path, body, settings)[0]


def cut_with_problems(path: str, body: str, settings: Settings = APART) -> tuple[tuple[Scene, ...], tuple[Problem, ...]]:
    note = markdown.parse(path, body.encode())
    reader, _, talks = chats.read(note, settings.scan, "")
    return scenes.cut(note, reader, talks, settings)


def ids(found: tuple[Scene, ...]) -> list[str]:
    return [scene.id for scene in found]


def assert_covered_once(path: str, data: bytes, settings: Settings = SETTINGS) -> None:
    note = markdown.parse(path, data)
    reader, _, talks = chats.read(note, settings.scan, "")
    found, _ = scenes.cut(note, reader, talks, settings)
    rows = note.text.split("\n")
    for number in range(1, len(rows) + 1):
        owners = sum(scene.source.lines[0] <= number <= scene.source.lines[1] for scene in found)
        if number < note.body_line or not found:
            assert owners == 0
        elif rows[number - 1].strip():
            assert owners == 1, f"{path}:{number} belongs to {owners} scenes"
        else:
            assert owners <= 1


def test_a_section_is_a_scene_with_its_place() -> None:
    first, second, code = cut("Дача/Полив.md", NOTE)
    assert (first.kind, first.headings, first.at, first.tags, first.language) == ("prose", ("Полив",), "2025-05-01", ("дача",), "ru")
    assert second.source.block == "bochka"
    assert second.source.heading == "Полив#Бочка"
    assert code.kind == "code"
    assert (first.prev, first.next, second.prev) == ("", second.id, first.id)
    assert all("никому" not in turn.text for scene in (first, second, code) for turn in scene.turns)


def test_line_i_of_a_turn_is_line_text_line_plus_i_of_the_file() -> None:
    for path, body in (("n.md", NOTE), ("c.md", CHAT)):
        rows = body.split("\n")
        for scene in cut(path, body):
            for turn in scene.turns:
                for offset, row in enumerate(turn.text.split("\n")):
                    if row.strip() and "%%" not in rows[turn.text_line - 1 + offset]:
                        assert row.strip() in rows[turn.text_line - 1 + offset]


def test_ids_outlive_edited_text_and_a_line_inserted_above() -> None:
    before = cut("n.md", NOTE)
    edited = cut("n.md", NOTE.replace("ниже 32 %", "ниже 30 %"))
    moved = cut("n.md", NOTE.replace("# Полив", "\n\n# Полив"))
    assert ids(before) == ids(edited) == ids(moved)
    assert [a.sha == b.sha for a, b in zip(before, edited, strict=True)] == [False, True, True]
    assert [scene.sha for scene in before] == [scene.sha for scene in moved]


def test_a_dialogue_keeps_its_ids_when_renamed_and_prose_does_not_share_them() -> None:
    assert ids(cut("a.md", CHAT)) == ids(cut("Другая папка/b.md", CHAT))
    assert not set(ids(cut("a.md", NOTE))) & set(ids(cut("b.md", NOTE)))


def test_a_talk_is_cut_at_the_owners_turns_and_a_bare_link_belongs_to_the_scene_before_it() -> None:
    first, second = cut("c.md", CHAT)
    assert [turn.uid for turn in first.turns] == ["u1", "a1"]
    assert [turn.uid for turn in second.turns] == ["u2", "a2"]
    assert first.links == ("Росток",)
    assert (first.source.uid, first.trust, first.kind) == ("u1", "imported", "dialogue")


def test_the_owners_words_between_two_messages_are_not_lost() -> None:
    found = cut("c.md", CHAT.replace("[[Росток]]", "Проверил сам: слог короче."))
    assert any(turn.author == "note" and "слог короче" in turn.text for scene in found for turn in scene.turns)


def test_a_uid_that_stands_twice_gives_two_ids_and_a_problem() -> None:
    note = markdown.parse("c.md", CHAT.replace("UID: u2", "UID: u1").encode())
    reader, _, talks = chats.read(note, SETTINGS.scan, "")
    found, problems = scenes.cut(note, reader, talks, APART)
    assert len({scene.id for scene in found}) == 2
    assert "W-TWICE" in {problem.code for problem in problems}


@pytest.mark.parametrize(
    ("path", "body", "trust", "reason"),
    [
        ("a.md", "---\nvaultllm: answer\n---\ntext of the owner stands here", "generated", "written by vaultllm"),
        ("a.md", "---\nsource: https://example.org\n---\ntext of the owner stands here", "clipped", "clipped from the web"),
        ("Шаблоны/День.md", "text of the owner stands here", "own", "a template"),
        ("a (Conflicted copy phone 202501011200).md", "text of the owner stands here", "own", "a copy of another note"),
        ("a.md", "text of the owner stands here", "own", ""),
    ],
)
def test_what_may_not_be_trained_on_says_why(path: str, body: str, trust: str, reason: str) -> None:
    (scene,) = cut(path, body)
    assert (scene.trust, scene.reason, scene.train) == (trust, reason, not reason)


@pytest.mark.parametrize(
    "name",
    [
        "a (Conflicted copy phone 202501011200).md", "a.sync-conflict-20250101-120000-ABCDEFG.md", "a (R's conflicted copy 2025-01-01).md",
        "a (конфликтующая копия 2025-01-01).md", "a (pre-1.7.0 backup).md", "a (vaultllm conflict 20250101-120000).md", "a.bak.md",
    ],
)  # fmt: skip
def test_copies_that_sync_programs_make_are_not_learnt(name: str) -> None:
    assert cut(name, "text of the owner stands here")[0].reason == "a copy of another note"
    assert cut("a 2.md", "text of the owner stands here")[0].train  # whether this is a copy, its text tells (duplicates)


def test_an_unfinished_git_merge_is_not_learnt_and_one_that_is_shown_as_code_is() -> None:
    body = "Начало дня.\n\n<<<<<<< HEAD\nЗавтрак в восемь утра.\n=======\nЗавтрак в девять утра.\n>>>>>>> phone\n"
    assert {scene.reason for scene in cut("a.md", body)} == {"git conflict markers in it"}
    assert all(scene.train for scene in cut("a.md", f"Вот как это выглядит в файле:\n\n```\n{body}```\n"))


@pytest.mark.parametrize(
    "body",
    [
        "# Понедельник\n\n## Задачи\n\n- [ ]\n\n## Заметки\n",
        "- [[Полив]]\n- [[Хлеб|про хлеб и закваску]]\n- ![[колодец.png]]\n",
        "```dataview\nTABLE file.mtime FROM #дача WHERE готово SORT file.name LIMIT 20\n```\n",
        "https://example.org/a/very/long/address/of/something\n",
    ],
)
def test_prose_without_words_of_its_own_is_recalled_but_not_learnt(body: str) -> None:
    (scene,) = cut("День.md", body, SETTINGS)
    assert scene.reason.startswith("hardly any words of its own")


@pytest.mark.parametrize(
    "body",
    ["Купил насос в Пскове.", "- [[Полив]] — насос включается ниже тридцати процентов", "```python\nprint(water, level, pump, tank)\n```"],
)
def test_a_few_own_words_are_enough(body: str) -> None:
    assert cut("n.md", body)[0].train


def test_garbled_letters_are_not_learnt() -> None:
    note = markdown.parse("n.md", b"text of the owner stands here")
    for code, train in (("W-GARBLED", False), ("W-MOJIBAKE", True)):
        (scene,), _ = scenes.cut(dataclasses.replace(note, problems=(Problem(code, "?"),)), "", [], SETTINGS)
        assert scene.train is train


# -- private, secrets


@pytest.mark.parametrize(
    ("path", "head"),
    [
        ("a.md", "---\nprivate: true\n---\n"),
        ("a.md", "---\nprivate: yes\n---\n"),
        ("Личное/a.md", ""),
        ("x/Личное/b/a.md", ""),
        ("Work/2025/a.md", ""),
    ],
)
def test_a_private_note_has_no_scenes_and_says_so(path: str, head: str) -> None:
    settings = Settings(vault_id="test", scan=ScanSettings(private=("Личное", "Work/2025/")))
    found, problems = cut_with_problems(path, head + "Это только моё.", settings)
    assert found == ()
    assert [(problem.code, problem.count) for problem in problems] == [("W-PRIVATE", 1)]
    assert cut("Work/2024/a.md", "Это моё и не только моё.", settings)


def test_the_messages_of_a_private_talk_are_counted_as_left_out() -> None:
    read = reading.read_note("c.md", f"---\nprivate: true\n---\n{CHAT}".encode(), SETTINGS)
    assert (read.turns, read.turns_left, read.scenes) == (4, 4, ())
    assert "слог" not in read.yaml
    prose = reading.read_note("c.md", "---\nprivate: true\n---\nтекст".encode(), SETTINGS)
    assert (prose.turns, prose.turns_left) == (0, 0)


SECRET = "sk-proj-" + "Zx9Qw3Er5Ty7Ui1Op" * 3


def test_a_secret_reaches_neither_scene_nor_yaml_nor_passage() -> None:
    body = f"# Ключ {SECRET}\n\nКлюч для работы:\n{SECRET}\n\nсм. [[{SECRET}]] и ещё слова, чтобы было что читать.\n"
    found, problems = cut_with_problems("n.md", body)
    document = scene_yaml.to_yaml("n.md", found)
    assert SECRET not in document
    assert SECRET not in repr(found) + repr(problems) + repr([scenes.passages(scene) for scene in found])
    assert found[0].turns[0].text.count("\n") == 5
    (problem,) = problems
    assert (problem.code, problem.line) == ("W-SECRET", 1)
    assert scenes.redacted_kinds(problem.message) == {"openai": problem.count}
    assert "openai" not in found[0].field


def test_a_secret_in_a_talk_is_named_by_the_line_of_the_file() -> None:
    found, problems = cut_with_problems("c.md", CHAT.replace("> Это другое.", f"> Это другое.\n> {SECRET}"))
    assert SECRET not in repr(found)
    (problem,) = (one for one in problems if one.code == "W-SECRET")
    assert SECRET in CHAT.replace("> Это другое.", f"> Это другое.\n> {SECRET}").split("\n")[problem.line - 1]
    assert all(SECRET not in repr(scene) for scene in found)


def test_the_title_that_the_ledger_keeps_holds_no_secret() -> None:
    assert SECRET not in repr(reading.read_note("n.md", f"# Ключ {SECRET}\n\nи слова".encode(), SETTINGS))
    assert reading.read_note("звонок +7 912 345-67-89.md", "и слова".encode(), SETTINGS).title == "звонок +7 912 345-67-89"


def test_settings_let_a_kind_through() -> None:
    settings = Settings(vault_id="test", redact=RedactSettings(off=("openai", "token")))
    assert SECRET in cut("n.md", f"Ключ: {SECRET}", settings)[0].turns[0].text


def test_a_long_section_is_cut_at_its_blocks_and_a_bare_heading_goes_with_what_follows() -> None:
    body = "# T\n\n## Empty\n\n## Long\n\n" + "\n\n".join(f"Абзац {i}. " + "слово " * 60 for i in range(20))
    found = cut("n.md", body)
    assert found[0].source.lines[0] == 1
    assert len(found) > 4
    assert all(len(scene.turns[0].text) < 2 * APART.scenes.max_chars for scene in found)


def test_a_note_of_comments_or_rules_says_nothing() -> None:
    assert cut("n.md", "%%only a comment%%\n") == ()
    assert cut("n.md", "---\n\n***\n") == ()


def test_passages_are_short_and_name_their_lines() -> None:
    long = "\n".join(f"> строка {i} " + "слово " * 30 for i in range(40))
    body = CHAT.replace("> Это другое.", long)
    rows = body.split("\n")
    parts = scenes.passages(cut("c.md", body)[1])
    assert len(parts) > 3
    assert {part.uid for part in parts} == {"u2", "a2"}
    for part in parts:
        assert len(part.text) <= 2 * scenes.PASSAGE_CHARS
        assert part.text.split("\n")[0].strip() in rows[part.lines[0] - 1]
    assert "\n".join(part.text for part in parts if part.uid == "a2") == cut("c.md", body)[1].turns[1].text


def test_one_endless_line_becomes_many_passages() -> None:
    (scene,) = cut("n.md", "слово " * 5000)
    parts = scenes.passages(scene)
    assert len(parts) > 20
    assert {part.lines for part in parts} == {(1, 1)}


def test_keywords_join_the_forms_of_a_word_and_leave_common_ones_out() -> None:
    field = keywords.digest("Токенизация это важно. О токенизации говорят, что токенизацию любят.").field
    assert field[0] == "токенизация"
    assert "это" not in field


# -- talks

LONG = "Насос включается, когда влажность падает ниже порога, и молчит ночью, чтобы не будить соседей. " * 4


def said(*turns: tuple[str, str], **more: Any) -> Conversation:
    """A talk of an export: (role, text), each turn with a UID and, a minute after the one before, a time."""
    made = []
    for number, (role, words) in enumerate(turns):
        at = (datetime(2025, 6, 1, 9, tzinfo=UTC) + timedelta(minutes=number)).isoformat()
        made.append(Turn("user" if role == "u" else "assistant", words, (1, 1), uid=f"m{number}", at=at))
    return Conversation("c1", "Разговор", more.pop("provider", "chatgpt"), "2025-06-01", tuple(made), (1, 1), **more)


def cut_talk(talk: Conversation, settings: Settings = SETTINGS) -> tuple[Scene, ...]:
    return scenes.cut(markdown.plain_note("export.json", b"[]"), "chatgpt", [talk], settings)[0]


def uids(found: tuple[Scene, ...]) -> list[list[str]]:
    return [[turn.uid for turn in scene.turns] for scene in found]


def test_short_exchanges_are_one_scene_and_long_ones_stand_alone() -> None:
    short = [("u", "Сколько воды в бочке?"), ("a", "Двести литров."), ("u", "А на сколько хватит?"), ("a", "На три дня.")]
    assert uids(cut_talk(said(*short))) == [["m0", "m1", "m2", "m3"]]
    long = [("u", LONG), ("a", LONG), ("u", LONG), ("a", LONG)]
    assert uids(cut_talk(said(*long))) == [["m0", "m1"], ["m2", "m3"]]


def test_thanks_join_what_they_thank_for_while_there_is_room() -> None:
    thanks = [("u", LONG), ("a", LONG), ("u", "Спасибо!"), ("a", "Пожалуйста.")]
    assert len(cut_talk(said(*thanks))) == 1
    full = [("u", LONG), ("a", LONG * 5), ("u", "Спасибо!"), ("a", "Пожалуйста.")]
    assert uids(cut_talk(said(*full))) == [["m0", "m1"], ["m2", "m3"]]


def test_a_long_pause_begins_a_scene() -> None:
    talk = said(("u", "Сколько воды?"), ("a", "Двести литров."), ("u", "А теперь?"), ("a", "Сто."))
    later = [dataclasses.replace(turn, at=turn.at.replace("06-01", "06-02")) for turn in talk.turns[2:]]
    assert len(cut_talk(talk)) == 1
    assert uids(cut_talk(dataclasses.replace(talk, turns=(*talk.turns[:2], *later)))) == [["m0", "m1"], ["m2", "m3"]]
    naive = [dataclasses.replace(turn, at="2025-06-02T10:00:00") for turn in talk.turns[2:]]
    assert len(cut_talk(dataclasses.replace(talk, turns=(*talk.turns[:2], *naive)))) == 2
    broken = [dataclasses.replace(turn, at="вчера") for turn in talk.turns]
    assert len(cut_talk(dataclasses.replace(talk, turns=tuple(broken)))) == 1


def test_another_topic_begins_a_scene_and_a_question_without_words_of_its_own_does_not() -> None:
    first = [("u", "Как часто кормить ржаную закваску зимой в холодной кухне?"), ("a", "Раз в неделю, муки столько же, сколько закваски.")]
    same = ("u", "Подойдёт ли ржаная закваска из холодной кухни, если зимой кормить цельной мукой?")
    other = ("u", "Посчитай уровень воды колодца после откачки насосом вечером субботы")
    assert len(cut_talk(said(*first, same, ("a", "Да.")))) == 1
    assert len(cut_talk(said(*first, other, ("a", "Метр.")))) == 2
    assert len(cut_talk(said(*first, ("u", "А почему?"), ("a", "Так вышло.")))) == 1


TALKS = st.lists(
    st.tuples(
        st.booleans(),
        st.sampled_from(["да", "почему так?", LONG, LONG * 6, "Посчитай уровень воды колодца после откачки насосом вечером субботы"]),
        st.integers(0, 700),
        st.booleans(),
    ),
    min_size=1,
    max_size=14,
)


@given(TALKS, st.sampled_from(["chatgpt", "telegram"]))
def test_a_turn_that_is_appended_changes_the_last_scene_only(made: list[tuple[bool, str, int, bool]], provider: str) -> None:
    at = datetime(2025, 6, 1, tzinfo=UTC)
    turns: list[Turn] = []
    for number, (user, words, minutes, named) in enumerate(made):
        at += timedelta(minutes=minutes)
        turns.append(
            Turn("user" if user else "assistant", f"{words} {number}", (1, 1), uid=f"m{number}" if named else "", at=at.isoformat())
        )
    whole = Conversation("c1", "", provider, "", tuple(turns), (1, 1))
    after = cut_talk(whole)
    assert [turn for scene in after for turn in scene.turns] == turns
    if len(turns) > 1:
        before = cut_talk(dataclasses.replace(whole, turns=tuple(turns[:-1])))
        assert [(scene.id, scene.sha) for scene in before[:-1]] == [(scene.id, scene.sha) for scene in after[: len(before) - 1]]
        if before[-1].turns[0].uid:
            assert before[-1].id == after[len(before) - 1].id


def test_a_variant_stays_in_the_scene_of_its_turn_and_says_what_it_is() -> None:
    talk = said(("u", LONG), ("a", LONG), ("u", LONG), ("a", LONG))
    other = Turn("assistant", "Другой ответ.", (1, 1), uid="v1", variant_of="m1")
    lost = Turn("user", "Другой вопрос.", (1, 1), uid="v2", variant_of="nowhere")
    first, second = cut_talk(dataclasses.replace(talk, turns=(*talk.turns, other, lost)))
    assert [turn.uid for turn in first.turns] == ["m0", "m1", "v1"]
    assert [turn.uid for turn in second.turns] == ["m2", "m3", "v2"]
    assert "variant_of: m1" in scene_yaml.to_yaml("export.json", (first, second))
    assert (first.source.uid, second.source.uid) == ("m0", "m2")


def test_what_people_write_to_each_other_is_recalled_but_not_learnt() -> None:
    found = cut_talk(said(("u", LONG), ("u", LONG), ("a", LONG), provider="telegram"))
    assert {scene.reason for scene in found} == {"a talk between people"}
    assert len(found) == 3


def test_a_talk_of_questions_alone_is_not_one_endless_scene() -> None:
    assert len(cut_talk(said(*[("u", LONG)] * 40))) > 5


def test_a_damaged_turn_says_so_in_the_yaml() -> None:
    talk = said(("u", "Код?"), ("a", "Вот."))
    damaged = dataclasses.replace(talk, turns=(talk.turns[0], dataclasses.replace(talk.turns[1], lossy=True)))
    assert "    lossy: true\n" in scene_yaml.to_yaml("export.json", cut_talk(damaged))


# -- prose

DIARY = (
    """# День

Короткое начало.

## Утро

Кофе и насос.

## Вечер

Хлеб и дождь.

# Планы

"""
    + "Длинный рассказ о том, что будет дальше, и ещё немного слов о реке. " * 24
)


def test_small_sections_join_under_the_heading_they_share() -> None:
    day, plans = cut("n.md", DIARY, SETTINGS)
    assert (day.headings, day.source.lines, day.source.heading) == (("День",), (1, 11), "День")
    assert plans.headings == ("Планы",)
    assert ids((day, plans)) == [cut("n.md", DIARY)[0].id, cut("n.md", DIARY)[-1].id]  # named by where they begin


def test_a_section_that_grows_leaves_its_neighbours_their_names() -> None:
    grown = DIARY.replace("Кофе и насос.", LONG).replace("Хлеб и дождь.", LONG)
    before, after = cut("n.md", DIARY, SETTINGS), cut("n.md", grown, SETTINGS)
    assert (len(before), len(after)) == (2, 3)
    assert (before[0].id, before[-1].id) == (after[0].id, after[-1].id)


def test_small_sections_under_different_headings_stay_apart() -> None:
    body = f"# A\n\n## A1\n\n{LONG * 2}\n\n## A2\n\n{LONG * 3}\n\n# B\n\n## B1\n\nкоротко и ясно сказано\n"
    assert [scene.headings for scene in cut("n.md", body, SETTINGS)] == [("A", "A1"), ("A", "A2"), ("B", "B1")]


def test_a_huge_table_is_cut_at_its_rows_and_stays_a_table() -> None:
    rows = [f"| день {number} | насос включался {number % 7} раз | вода ушла |" for number in range(300)]
    body = "| когда | что | итог |\n|---|---|---|\n" + "\n".join(rows) + "\n"
    found = cut("n.md", body, SETTINGS)
    assert len(found) > 4
    assert {scene.kind for scene in found} == {"table"}
    assert "\n".join(scene.turns[0].text for scene in found) == body.strip()
    assert all("когда" not in scene.turns[0].text for scene in found[1:])


def test_a_huge_list_is_cut_between_its_items() -> None:
    body = (
        "\n".join(f"- пункт {number} о насосе и воде\n  и его вторая строка, чуть длиннее" for number in range(200))
        + "\n\nконец списка ^spisok\n"
    )
    found = cut("n.md", body, SETTINGS)
    assert len(found) > 4
    assert all(scene.turns[0].text.startswith("- ") for scene in found)


def test_code_is_never_cut() -> None:
    body = "```python\n" + "print('насос')\n" * 900 + "```\n"
    (scene,) = cut("n.md", body, SETTINGS)
    assert scene.kind == "code"


def test_each_node_of_a_canvas_is_a_scene() -> None:
    text = '{"nodes":[{"id":"n1","text":"Насос\\n\\nвода и [[Полив]]"},{"id":"n2","text":"Хлеб"}],"edges":[]}'
    note = dataclasses.replace(
        markdown.plain_note("План.canvas", text.encode()),
        blocks=(
            Block("paragraph", (1, 1), "Насос\n\nвода и [[Полив]]", title="Дача", block_id="n1"),
            Block("paragraph", (1, 1), "Хлеб", block_id="n2"),
        ),
        links=(Link("Полив", "", "", "", False, 1),),
    )
    (pump, bread), _ = scenes.cut(note, "", [], SETTINGS)
    assert (pump.turns[0].text, pump.headings, pump.source.block, pump.links) == ("Насос\n\nвода и [[Полив]]", ("Дача",), "n1", ("Полив",))
    assert (bread.headings, bread.links, bread.turns[0].text_line) == ((), (), 0)
    assert scenes.cut(dataclasses.replace(note, blocks=()), "", [], SETTINGS) == ((), ())


# -- YAML

TURNS = st.builds(
    Turn,
    role=st.sampled_from(["user", "assistant"]),
    text=st.text(min_size=1).filter(lambda said: "\ud800" not in said),
    lines=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    author=st.text(max_size=5),
    at=st.sampled_from(["", "2025-06-15T06:20:00+03:00"]),
    attachments=st.lists(st.text(max_size=5), max_size=2).map(tuple),
)
SCENES = st.builds(
    Scene,
    id=st.sampled_from(["4c1f09a2be77", "123456789012", "1e5000000000"]),
    sha=st.just("0123456789012345"),
    kind=st.sampled_from(["dialogue", "prose"]),
    title=st.text(),
    headings=st.lists(st.text(), max_size=2).map(tuple),
    turns=st.lists(TURNS, min_size=1, max_size=2).map(tuple),
    source=st.just(Source("n.md", (1, 2), block="b")),
    language=st.sampled_from(["ru", "no"]),
    trust=st.just("own"),
    train=st.booleans(),
    reason=st.sampled_from(["", "private: true"]),
    tags=st.lists(st.text(min_size=1, max_size=8), max_size=3).map(tuple),
    anchor=st.text(),
)


@given(st.lists(SCENES, max_size=2))
def test_the_yaml_says_exactly_what_the_scenes_say(found: list[Scene]) -> None:
    assert scene_yaml.from_yaml(scene_yaml.to_yaml("n.md", found)) == ("n.md", tuple(found))


@pytest.mark.parametrize(
    "said",
    [
        "a \nb ", "  a\nb", "\n a", "a\n", "a\n\n", "\ta\nb", "a\n\tb", "🧩 да\n🜂 нет", "a: b\n- c\n# d", "'", '"', "null", "yes", "1e-5",
        "12:30", "---\na", "...\na", "a\u2028b\nc", "a\x07b\nc", "a\r\nb", "%% x %%\n@", "\u200b\n\ufeff", "|\n|", "x" * 300,
    ],
)  # fmt: skip
def test_texts_that_yaml_libraries_stumble_over_come_back(said: str) -> None:
    (scene,) = cut("n.md", "text of the owner stands here")
    scene = dataclasses.replace(scene, turns=(dataclasses.replace(scene.turns[0], text=said),), title=said)
    assert scene_yaml.from_yaml(scene_yaml.to_yaml("n.md", [scene]))[1] == (scene,)


def test_the_yaml_is_readable() -> None:
    document = scene_yaml.to_yaml("c.md", cut("c.md", CHAT.replace("> Это другое.", "> Это 🧩 другое, \n> совсем.")))
    assert "    text: |2-\n      Это 🧩 другое, \n      совсем.\n" in document
    assert "language: ru" in document


def test_a_document_of_another_schema_is_refused() -> None:
    with pytest.raises(ValueError, match="schema"):
        scene_yaml.from_yaml("schema: 9\nnote: a\nscenes: []\n")
    with pytest.raises(ValueError, match="not YAML"):
        scene_yaml.from_yaml("a: [")


# -- what people really have


def test_real_notes_are_covered_and_come_back(shared: Path) -> None:
    count = 0
    for root in (shared / "real" / "user", shared / "real" / "nexus_versions", shared / "real" / "vaults"):
        for path in sorted(root.rglob("*.md")):
            name = str(path.relative_to(root))
            assert_covered_once(name, path.read_bytes())
            found = cut(name, path.read_bytes().decode("utf-8", "replace"))
            assert scene_yaml.from_yaml(scene_yaml.to_yaml(name, found)) == (name, found)
            count += bool(found)
    assert count > 90


def test_the_example_vault_is_covered() -> None:
    root = Path(__file__).resolve().parents[1] / "vault_example"
    for path in sorted(root.rglob("*.md")):
        assert_covered_once(str(path.relative_to(root)), path.read_bytes())


SMALL = Settings(vault_id="test", scenes=SceneSettings.model_construct(gap_minutes=360.0, max_chars=6, min_chars=3))


@given(st.text(alphabet="a#>-`|%[]\n \t*^1.а", max_size=120))
def test_any_text_is_covered_once(body: str) -> None:
    for settings in (SETTINGS, APART, SMALL):
        assert_covered_once("n.md", body.encode(), settings)


@pytest.mark.parametrize(
    "part",
    [
        "# a\n",
        "## a\n\nслово\n\n",
        "- [[x]] и\n",
        "|a|б|\n",
        "```dataview\n",
        "> [!q]\n\n",
        "[[a]] ![[b]] [c](d) ",
        "слово\n\n",
        "<<<<<<< \n",
    ],
)
def test_time_grows_with_the_note_and_not_faster(part: str) -> None:
    def cut_all(note: Note) -> None:
        found, _ = scenes.cut(note, "", [], SETTINGS)
        scene_yaml.to_yaml("n.md", found)
        assert all(scenes.passages(scene) for scene in found)

    assert_linear(lambda size: markdown.parse("n.md", (part * (size // len(part))).encode()), cut_all, 60_000)


def test_problems_of_the_reader_are_kept() -> None:
    note = markdown.parse("c.md", CHAT.replace("> Кусок слова.", "> [No content found]").encode())
    reader, _, talks = chats.read(note, SETTINGS.scan, "")
    _, problems = scenes.cut(note, reader, talks, APART)
    assert any(isinstance(problem, Problem) and problem.code == "W-EMPTY" for problem in problems)


def test_the_questions_an_importer_offers_are_not_the_owners_words() -> None:
    offered = CHAT.rstrip("\n") + "\n\n## Related Queries\n\n- Сколько стоит датчик?\n"
    found = cut("c.md", offered)
    assert all("Сколько стоит" not in turn.text for scene in found for turn in scene.turns)
    assert found[-1].source.lines[1] == len(offered.rstrip("\n").split("\n"))


def test_half_a_uid_is_not_the_owners_words() -> None:
    broken = CHAT.replace(" -->", "", 1)
    assert broken != CHAT
    assert all("UID" not in turn.text for scene in cut("c.md", broken) for turn in scene.turns)
