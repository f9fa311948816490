"""Scenes: ids say where and outlive edits, lines are covered once, the YAML is exact and readable."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import chats, keywords, markdown, scene_yaml, scenes
from vaultllm.config import SceneSettings, Settings
from vaultllm.schema import Problem, Scene, Source, Turn

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


@given(st.text(alphabet="a#>-`|%[]\n \t*^1.а", max_size=120))
def test_any_text_is_covered_once(body: str) -> None:
    assert_covered_once("n.md", body.encode())


def test_problems_of_the_reader_are_kept() -> None:
    note = markdown.parse("c.md", CHAT.replace("> Кусок слова.", "> [No content found]").encode())
    reader, _, talks = chats.read(note, SETTINGS.scan, "")
    _, problems = scenes.cut(note, reader, talks, APART)
    assert any(isinstance(problem, Problem) and problem.code == "W-EMPTY" for problem in problems)
