"""The facts of Obsidian's metadata cache. The shapes and places here are those of caches that Obsidian itself wrote."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from tests.test_markdown import TEXTS
from tests.timing import assert_linear
from vaultllm import config, explain, markdown
from vaultllm.errors import DataError, VaultError
from vaultllm.metadata import metadata


def facts(text: str) -> dict[str, Any]:
    return metadata(markdown.parse("Note.md", text.encode()))


def place(position: dict[str, Any]) -> str:
    start, end = position["start"], position["end"]
    return f"{start['line']}:{start['col']}-{end['line']}:{end['col']}"


def places(text: str, name: str) -> list[Any]:
    """The facts of one name; positions as `line:col-line:col`."""
    return [{key: place(value) if key == "position" else value for key, value in one.items()} for one in facts(text).get(name, [])]


def values(text: str, name: str, *keys: str) -> list[Any]:
    found = facts(text).get(name, [])
    return [tuple(one.get(key) for key in keys) if len(keys) > 1 else one.get(keys[0]) for one in found]


# -- links and embeds


@pytest.mark.parametrize(
    ("written", "link", "shown"),
    [
        ("[[Сад]]", "Сад", "Сад"),
        ("[[Сад|мой сад]]", "Сад", "мой сад"),
        ("[[ Сад | мой сад ]]", "Сад", "мой сад"),
        ("[[#Глава]]", "#Глава", "Глава"),
        ("[[#a#b]]", "#a#b", "a > b"),
        ("[[Сад#a#b]]", "Сад#a#b", "Сад > a > b"),
        ("[[Сад#^id]]", "Сад#^id", "Сад > ^id"),
        ("[[#^id]]", "#^id", "^id"),
        ("[[Сад#a||b]]", "Сад#a", "|b"),
        ("[[##syntax]]", "##syntax", "syntax"),
        ("[[^^demo]]", "^^demo", "^^demo"),
        ("[t](Note.md#a#b)", "Note.md#a#b", "t"),
        ("[t](My%20note.md)", "My note.md", "t"),
        ("[t](<My note.md>)", "My note.md", "t"),
    ],
)
def test_links_have_obsidians_parts(written: str, link: str, shown: str) -> None:
    expected = {"link": link, "original": written, "displayText": shown, "position": f"0:4-0:{4 + len(written)}"}
    assert places(f"см. {written} дальше", "links") == [expected]


def test_embeds_have_their_mark_and_their_size() -> None:
    assert places("![[a.png|100x145]] ![[d.pdf#page=3]] ![alt|20](b.png) ![x](https://x.y/z.png)", "embeds") == [
        {"link": "a.png", "original": "![[a.png|100x145]]", "displayText": "100x145", "position": "0:0-0:18"},
        {"link": "d.pdf#page=3", "original": "![[d.pdf#page=3]]", "displayText": "d.pdf > page=3", "position": "0:19-0:36"},
        {"link": "b.png", "original": "![alt|20](b.png)", "displayText": "alt|20", "position": "0:37-0:53"},
    ]


def test_links_in_a_table_lose_the_backslash() -> None:
    text = "| a | b |\n|---|---|\n| [[Сад\\|мой]] | ![[i.png\\|20]] |\n"
    assert values(text, "links", "link", "displayText") == [("Сад", "мой")]
    assert values(text, "embeds", "link", "displayText", "original") == [("i.png", "20", "![[i.png\\|20]]")]


def test_obsidian_reads_links_and_tags_in_its_own_comments_only() -> None:
    text = "a %% [[b]] #c %% <!-- [[d]] #e --> `[[f]]` $$[[g]]$$\n\n%%\n#h\n%%\n\n```\n[[i]] #j\n```\n\n    [[k]]\n"
    assert values(text, "links", "link") == ["b"]
    assert values(text, "tags", "tag") == ["#c", "#h"]
    note = markdown.parse("n.md", text.encode())
    assert (note.links, note.tags) == ((), ())  # comments are for nobody's eyes: they are not learnt from


def test_tags_have_their_mark_and_their_place() -> None:
    assert places("#дача/теплица, ( #ক্ষি ) #1984 a#b #📌", "tags") == [
        {"tag": "#дача/теплица", "position": "0:0-0:13"},
        {"tag": "#ক্ষি", "position": "0:17-0:22"},
        {"tag": "#📌", "position": "0:35-0:38"},
    ]
    assert "tags" not in facts("---\ntags: [a]\n---\n")


def test_columns_and_offsets_count_utf16_units() -> None:
    text = "😀😀 [[a]] 😀 [[b]]\n😀\n[[c]]"
    assert values(text, "links", "link") == ["a", "b", "c"]
    spots = [(one["position"]["start"]["col"], one["position"]["start"]["offset"]) for one in facts(text)["links"]]
    assert spots == [(5, 5), (14, 14), (0, 23)]
    units = text.encode("utf-16-le")
    for one in facts(text)["links"]:
        start, end = (one["position"][side]["offset"] for side in ("start", "end"))
        assert units[2 * start : 2 * end].decode("utf-16-le") == one["original"]


def test_places_refer_to_the_text_with_plain_newlines_and_no_bom() -> None:
    plain = facts("# a\n\n[[b]]\n")
    assert metadata(markdown.parse("n.md", "\ufeff# a\r\n\r\n[[b]]\r\n".encode())) == plain
    assert metadata(markdown.parse("n.md", "\ufeff# a\n\n[[b]]\n".encode("utf-16-le"))) == plain


# -- headings, sections, blocks


def test_headings_are_those_of_the_note_itself() -> None:
    text = "# a [[b|c]] *d* ##\n\n> # in a quote\n\n> [!note]\n> ## in a callout\n\nSet\next\n---\n### e ^id\n####no\n"
    assert places(text, "headings") == [
        {"heading": "a [[b|c]] *d*", "level": 1, "position": "0:0-0:18"},
        {"heading": "Set ext", "level": 2, "position": "7:0-9:3"},
        {"heading": "e", "level": 3, "position": "10:0-10:9"},
    ]


def test_sections_have_obsidians_types() -> None:
    text = (
        "---\na: 1\n---\n# h\n\np\nq\n%%\nc\n%%\n<!-- c -->\n- l\n\n> q\n\n > [!x]\n > y"
        "\n\n```\n```\n\n|a|\n|-|\n\n<div>\n</div>\n\n***\n\n$$\nx\n$$\n\n[^1]: f\n"
    )
    assert [(one["type"], one["position"]) for one in places(text, "sections")] == [
        ("yaml", "0:0-2:3"),
        ("heading", "3:0-3:3"),
        ("paragraph", "5:0-6:1"),
        ("comment", "7:0-9:2"),
        ("html", "10:0-10:10"),
        ("list", "11:0-11:3"),
        ("blockquote", "13:0-13:3"),
        ("callout", "15:0-16:4"),
        ("code", "18:0-19:3"),
        ("table", "21:0-22:3"),
        ("html", "24:0-25:6"),
        ("thematicBreak", "27:0-27:3"),
        ("math", "29:0-31:2"),
        ("footnoteDefinition", "33:0-33:7"),
    ]


def test_a_comment_is_one_section_however_many_blank_lines_it_has() -> None:
    text = "a\n%%\n\n# b\n\n- c\n\n%%\n<!--\n\nd\n\n-->\n%%e%%\n%%f%%\n"
    assert [(one["type"], one["position"]) for one in places(text, "sections")] == [
        ("paragraph", "0:0-0:1"),
        ("comment", "1:0-7:2"),
        ("html", "8:0-12:3"),
        ("comment", "13:0-14:5"),
    ]
    assert "headings" not in facts(text)


def test_ids_belong_to_sections_and_to_items() -> None:
    text = "p ^One\n\n- a ^two\n- b\n  more ^three\n\n^list\n\n> q\n\n^quote\n\n```\nx ^no\n```\n"
    assert {name: place(one["position"]) for name, one in facts(text)["blocks"].items()} == {
        "one": "0:0-0:6",
        "two": "2:0-2:8",
        "three": "3:0-4:13",
        "list": "2:0-4:13",
        "quote": "8:0-8:3",
    }
    assert facts(text)["blocks"]["one"]["id"] == "One"
    assert values(text, "sections", "type", "id") == [("paragraph", "One"), ("list", "list"), ("blockquote", "quote"), ("code", None)]
    assert values(text, "listItems", "id") == ["two", "three"]


# -- list items


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # An item ends before its nested list, starts where its parent's text begins, and names its parent's line.
        (
            "- [ ] a\n    - [x] b\n      ```\n      c\n      ```\n    - d\n- e\n",
            [(-1, "0:0-0:7", " "), (0, "1:2-4:9", "x"), (0, "5:2-5:7", None), (-1, "6:0-6:3", None)],
        ),
        ("text\n\n1. a\n2. b\n   1. c\n", [(-2, "2:0-2:4", None), (-2, "3:0-3:4", None), (3, "4:3-4:7", None)]),
        ("- a\n    - b\n        - c\n", [(-1, "0:0-0:3", None), (0, "1:2-1:7", None), (1, "2:6-2:11", None)]),
        ("-  a\n    - b\n        - c\n", [(-1, "0:0-0:4", None), (0, "1:3-1:7", None), (1, "2:6-2:11", None)]),
        # Before a blank line and another item it ends at the blank line, elsewhere with its text.
        ("- a\n\n- b\n\nend\n", [(-1, "0:0-1:0", None), (-1, "2:0-2:3", None)]),
        ("x\n\n> - [ ] a\n>     - [ ] b\n", [(-2, "2:2-2:9", " "), (2, "3:4-3:13", " ")]),
        (" > [!x]+\n >> [!y]\n >>> t\n >>> - [ ] a\n >>> - [?] b\n", [(-3, "3:5-3:12", " "), (-3, "4:5-4:12", "?")]),
        # Two lists, told apart by where they begin.
        ("- a\n* b\n", [(-1, "0:0-0:3", None), (-1, "1:0-1:3", None)]),
        ("%%\n- no\n%%\n\n- yes\n", [(-4, "4:0-4:5", None)]),
        ("-\n  foo\n- - b\n", [(-1, "0:0-1:5", None), (-1, "2:0-2:5", None), (2, "2:2-2:5", None)]),
        ("- a\n\t- b\n\t\t- c\n", [(-1, "0:0-0:3", None), (0, "1:0-1:4", None), (1, "2:1-2:5", None)]),
    ],
)
def test_list_items_are_where_obsidian_sees_them(text: str, expected: list[Any]) -> None:
    assert [(one["parent"], one["position"], one.get("task")) for one in places(text, "listItems")] == expected


@pytest.mark.parametrize("mark", [" ", "x", "X", "/", "-", ">", "?", "!", "я", "📌"])
def test_a_task_may_have_any_mark(mark: str) -> None:
    assert values(f"- [{mark}] дело\n1. [{mark}] второе\n", "listItems", "task") == [mark, mark]


@pytest.mark.parametrize("text", ["- [] a", "- [xx] a", "- [x]a", "- [[a]]", "- a [x] b"])
def test_what_is_no_task(text: str) -> None:
    assert values(text, "listItems", "task") == [None]


def test_items_deeper_than_ten_levels_are_there() -> None:
    items = facts("".join("  " * depth + f"- {depth}\n" for depth in range(60)))["listItems"]
    assert [one["parent"] for one in items] == [-1, *range(59)]


# -- footnotes, reference links, properties, fields


def test_footnotes_and_their_marks() -> None:
    text = "a[^1] b[^имя] `[^no]` \\\n\nc^[inline [x] one] d\n\n[^1]: one[^2]\n[^имя]: two\n    more\n"
    found = facts(text)
    assert [(one["id"], place(one["position"])) for one in found["footnotes"]] == [
        ("[inline2", "2:3-2:17"),
        ("1", "4:0-4:13"),
        ("имя", "5:0-6:8"),
    ]
    assert [(one["id"], place(one["position"])) for one in found["footnoteRefs"]] == [
        ("1", "0:1-0:5"),
        ("имя", "0:7-0:13"),
        ("2", "4:9-4:13"),
    ]


def test_reference_links() -> None:
    assert places("[сайт]\n\n[сайт]: https://x.y/z 'T'\n[b]: <a b.md>\n", "referenceLinks") == [
        {"id": "сайт", "link": "https://x.y/z", "position": "2:0-2:25"},
        {"id": "b", "link": "a b.md", "position": "3:0-3:13"},
    ]


def test_properties_and_their_links() -> None:
    text = '---\nup: "[[A#h|b]]"\nall:\n  - "[[C]]"\n  - text [[D]]\nmd: "[t](E.md)"\nn: 1\n---\nbody\n'
    found = facts(text)
    assert found["frontmatter"] == {"up": "[[A#h|b]]", "all": ["[[C]]", "text [[D]]"], "md": "[t](E.md)", "n": 1}
    assert place(found["frontmatterPosition"]) == "0:0-7:3"
    assert found["frontmatterLinks"] == [
        {"key": "up", "link": "A#h", "original": "[[A#h|b]]", "displayText": "b"},
        {"key": "all.0", "link": "C", "original": "[[C]]", "displayText": "C"},
        {"key": "md", "link": "E.md", "original": "[t](E.md)", "displayText": "t"},
    ]
    assert "frontmatter" not in facts("body")


def test_dataview_fields() -> None:
    text = (
        "срок:: 2025-06-01\n- [ ] **цена**:: [[Сад]] руб\ntext [вес:: 3 кг] and (цвет:: белый) std::vector\n"
        "`a:: b`\n> место:: дом\nпусто::\n"
    )
    assert values(text, "inlineFields", "key", "value") == [
        ("срок", "2025-06-01"),
        ("цена", "[[Сад]] руб"),
        ("вес", "3 кг"),
        ("цвет", "белый"),
        ("место", "дом"),
        ("пусто", ""),
    ]


# -- anything


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_every_text_has_metadata_whose_places_are_in_it(text: str) -> None:
    note = markdown.parse("n.md", text.encode("utf-8", "ignore"))
    found = metadata(note)
    length = len(note.text.encode("utf-16-le")) // 2
    for value in found.values():
        for one in value if isinstance(value, list) else ():
            if "position" in one:
                start, end = one["position"]["start"], one["position"]["end"]
                assert 0 <= start["offset"] <= end["offset"] <= length
                assert (start["line"], start["col"]) <= (end["line"], end["col"])
    for one in (*found.get("links", ()), *found.get("embeds", ())):
        start, end = (one["position"][side]["offset"] for side in ("start", "end"))
        assert note.text.encode("utf-16-le")[2 * start : 2 * end].decode("utf-16-le", "replace") == one["original"]
    json.dumps(found)


@pytest.mark.parametrize(
    "unit", ["[", "^[", "[^", "a::", "(a:: ", "- [ ] ", "> - a\n", "- a\n\n", "[[a]] ", "#a ", "a :: b\n", "😀[[a]]\n", "- > "]
)
def test_time_grows_with_length_only(unit: str) -> None:
    assert_linear(lambda size: unit * (size // len(unit)), facts, 15_000)


# -- one file, looked at


@pytest.fixture
def workspace(tmp_path: Path) -> config.Workspace:
    vault = tmp_path / "vault"
    (vault / "Сад").mkdir(parents=True)
    links = "[[насос#Цена]] ![[схема.png]] [[нет]]"
    (vault / "Сад/План.md").write_text(f"# План\n\nВесной перекопать грядки. {links} key sk-proj-{'a1B2c3D4' * 6}\n")
    (vault / "Насос.md").write_text("---\nsource: https://x.y\n---\nНасос качает воду, и это записано.\n")
    (vault / "схема.png").write_bytes(b"\x89PNG")
    (vault / "old.md").write_bytes("Привет".encode("cp1251"))
    (vault / "d.excalidraw.md").write_text("x")
    return config.init_workspace(vault, str(tmp_path / "state"))


def test_links_are_resolved_beside_the_metadata(workspace: config.Workspace) -> None:
    found = explain.note_metadata(workspace, "Сад/План.md")
    assert found["resolved"] == {"насос#Цена": "Насос.md", "нет": None, "схема.png": "схема.png"}
    assert [one["heading"] for one in found["metadata"]["headings"]] == ["План"]
    with pytest.raises(VaultError):
        explain.note_metadata(workspace, "none.md")
    with pytest.raises(DataError):
        explain.note_metadata(workspace, "a.canvas")


def test_a_file_is_explained(workspace: config.Workspace) -> None:
    own = explain.explain(workspace, "Сад/План.md")
    assert (own["taken"], own["reader"], own["trust"], own["train"], own["scenes"], own["redacted"]) == (True, "", "own", True, 1, 1)
    assert own["readers"][0]["name"] == "nexus-backup"
    assert not any(one["why"] for one in own["readers"])
    clipped = explain.explain(workspace, "Насос.md")
    assert (clipped["trust"], clipped["train"], clipped["reasons"]) == ("clipped", False, {"clipped from the web": 1})
    unreadable = explain.explain(workspace, "old.md")
    assert (unreadable["taken"], unreadable["encoding"], unreadable["scenes"]) == (True, "unreadable", 0)
    assert unreadable["problems"][0]["code"] == "E-ENC"


@pytest.mark.parametrize(
    ("path", "code"), [("d.excalidraw.md", "W-KIND"), ("схема.png", "W-IGNORED"), ("none.md", "E-READ"), ("../x.md", "E-READ")]
)
def test_a_file_that_is_left_out_is_explained_too(workspace: config.Workspace, path: str, code: str) -> None:
    found = explain.explain(workspace, path)
    assert (found["taken"], [one["code"] for one in found["problems"]], bool(found["why"])) == (False, [code], True)


def test_a_chat_names_the_reader_that_took_it(workspace: config.Workspace) -> None:
    chat = ">[!nexus_user] **User** - 16.06.2025 at 21:30\n> Сколько воды качает насос?\n<!-- UID: 1 -->\n\n"
    chat += ">[!nexus_agent] **Assistant** - 16.06.2025 at 21:31\n> Сто литров в час.\n<!-- UID: 2 -->\n"
    (workspace.vault / "chat.md").write_text(chat)
    found = explain.explain(workspace, "chat.md")
    assert (found["reader"], found["trust"]) == ("nexus", "imported")
    assert [one["name"] for one in found["readers"] if one["why"]] == ["nexus"]
    assert found["because"] == found["readers"][-1]["why"]
    assert found["turns"] == {"held": 2, "in_scenes": 2, "left_out": 0}


def test_the_command_prints_both_for_a_person_and_for_a_program(workspace: config.Workspace) -> None:
    def run(*more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "vaultllm.cli", "--vault", str(workspace.vault), "--state", str(workspace.state), "scenes", *more]
        return subprocess.run(command, capture_output=True, text=True, timeout=60)

    assert "link: насос#Цена" in run("Сад/План.md", "--metadata").stdout.replace('"', "")
    assert json.loads(run("Сад/План.md", "--explain", "--json").stdout)["scenes"] == 1
    both = run("Сад/План.md", "--explain", "--metadata")
    assert (both.returncode, both.stderr.split()[1]) == (2, "E-USAGE")
