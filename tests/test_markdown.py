"""Markdown and front matter: nothing is lost, nothing raises, nothing takes longer than its length deserves."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import blocks, markdown, reading
from vaultllm.config import Settings
from vaultllm.schema import Link, Note

PIECES = (
    "---\n",
    "a: b\n",
    "- x\n",
    "> q\n",
    ">[!note]- T\n",
    "```\n",
    "~~~\n",
    "`",
    "%%",
    "<!--",
    "-->",
    "$$",
    "\n",
    "\n\n",
    "# H\n",
    "    ",
    "\t",
)
PIECES += (
    "[[N#H|a]]",
    "![[",
    "]]",
    "[^1]: f\n",
    "^id\n",
    "|a|b|\n",
    "|-|-|\n",
    "<div>\n",
    "\x0b",
    "\u2028",
    "\u00a0",
    "\\",
    "слово ",
    "বাংলা\n",
    "1. ",
)
TEXTS = st.one_of(st.text(max_size=300), st.lists(st.sampled_from(PIECES), max_size=40).map("".join))


def parse(text: str) -> Note:
    return markdown.parse("Folder/Note.md", text.encode("utf-8", "surrogatepass"))


def assert_covered(note: Note) -> None:
    lines = note.text.split("\n")
    owners: Counter[int] = Counter()
    for block in note.blocks:
        first, last = block.lines
        assert block.text == "\n".join(lines[first - 1 : last])
        owners.update(range(first, last + 1))
    assert max(owners.values(), default=1) == 1
    missing = [number for number, line in enumerate(lines, 1) if number >= note.body_line and line.strip() and not owners[number]]
    assert missing == []
    assert min(owners, default=note.body_line) >= note.body_line


def kinds(text: str) -> list[tuple[str, tuple[int, int]]]:
    return [(block.kind, block.lines) for block in parse(text).blocks]


def codes(text: str) -> list[str]:
    return [problem.code for problem in parse(text).problems]


# -- everything


@given(TEXTS)
@settings(max_examples=400, deadline=None)
def test_blocks_cover_every_line_of_the_body_once(text):
    note = markdown.parse("n.md", text.encode("utf-8", "ignore"))
    if "E-BINARY" not in [problem.code for problem in note.problems]:
        assert_covered(note)


@given(st.one_of(st.binary(max_size=300), TEXTS.map(lambda text: text.encode("utf-16", "surrogatepass"))))
@settings(max_examples=300, deadline=None)
def test_parse_never_raises(data):
    note = markdown.parse("n.md", data)
    assert note.text or not data.strip() or note.problems or not note.encoding or note.encoding.startswith("utf")
    markdown.plain_note("n.json", data)


@given(TEXTS)
@settings(max_examples=300, deadline=None)
def test_mask_keeps_the_length_and_visible_keeps_the_lines(text):
    masked = markdown.mask(text)
    assert len(masked) == len(text)
    assert all(now == was or (now == " " and was != "\n") for now, was in zip(masked, text, strict=True))
    assert markdown.visible(text).count("\n") == text.count("\n")


@pytest.mark.parametrize(
    "name", ["embeddings-small-llm-ru", "llm-book-notes-bn", "llm-course-ru", "nexus-learn-llm-ru", "nexus-semantic-tokens-ru"]
)
def test_the_owners_notes_lose_no_line(shared, name):
    note = markdown.parse(f"{name}.md", (shared / "real/user" / f"{name}.md").read_bytes())
    assert_covered(note)
    assert note.problems == ()


def test_the_bengali_notes_have_no_front_matter(shared):
    data = (shared / "real/user/llm-book-notes-bn.md").read_bytes()
    for top in (data, data.lstrip()):  # with its blank lines, and with the rule as the very first line
        note = markdown.parse("bn.md", top)
        assert (note.body_line, note.properties, note.problems) == (1, {}, ())
        assert note.blocks[0].kind == "rule"
        assert_covered(note)


def test_the_russian_course_has_its_tables_and_html(shared):
    note = markdown.parse("ru.md", (shared / "real/user/llm-course-ru.md").read_bytes())
    found = Counter(block.kind for block in note.blocks)
    assert found["table"] >= 4
    assert found["html"] >= 2
    assert note.blocks[0].lines[0] == 1


def test_the_example_vaults_parse(shared):
    broken = 0
    for path in sorted((shared / "real/vaults").rglob("*.md")):
        note = markdown.parse(path.name, path.read_bytes())
        assert_covered(note)
        if "{{" in note.text and note.body_line > 1 and "created: {{date}}" in note.text:
            broken += "W-FM-YAML" in [problem.code for problem in note.problems]
            assert note.properties["created"] == "{{date}}"
    assert broken > 10


def test_text_that_was_read_in_a_wrong_encoding_is_noticed(shared):
    for path in sorted((shared / "real/user_as_uploaded").glob("*.md")):
        assert "W-MOJIBAKE" in [problem.code for problem in markdown.parse(path.name, path.read_bytes()).problems], path.name
    good = "Это обычный русский текст про модели, «кавычки» — тире и ёлки, и слово за словом."
    assert codes(good) == []
    assert codes(good.encode().decode("latin-1")) == ["W-MOJIBAKE"]


# -- front matter


def test_scalars_stay_as_written_unless_plain():
    text = "---\na: no\nb: 12:30\nc: 2024-02-30\nd: 017\ne: 1_000\nf: 5\ng: 1.5\nh: true\ni:\nj: '5'\n1: x\ncontent: y\n---\nbody"
    note = parse(text)
    expected = {"a": "no", "b": "12:30", "c": "2024-02-30", "d": "017", "e": "1_000", "f": 5, "g": 1.5, "h": True, "i": None, "j": "5"}
    assert note.properties == expected | {"1": "x", "content": "y"}
    assert note.problems == ()
    assert note.body_line == 15
    assert note.blocks[0].lines == (15, 15)


def test_an_unquoted_link_is_a_link():
    note = parse("---\nup: [[A|b]]\nall: [[[A]], [[B]]]\nlist:\n  - [[C]]\nnested: [[1, 2]]\n---\n")
    assert note.properties == {"up": "[[A|b]]", "all": ["[[A]]", "[[B]]"], "list": ["[[C]]"], "nested": "[[1, 2]]"}
    assert [(link.target, link.line) for link in note.links][:4] == [("A", 2), ("A", 3), ("B", 3), ("C", 5)]


def test_the_last_of_two_equal_keys_wins_and_both_lines_are_named():
    note = parse("---\na: 1\nb: 2\na: 3\n---\n")
    assert note.properties == {"a": 3, "b": 2}
    assert note.problems[0].code == "W-FM-DUP"
    assert "2 and 4" in note.problems[0].message


def test_front_matter_that_is_no_yaml_loses_nothing():
    note = parse(
        '---\ntitle: a: b\nquote: "He said "hi""\ntags:\n  - x\n  - "y"\nnote: one\n  more\nme: @home\nlist: [a, b]\nn: 5\n---\nbody'
    )
    assert note.properties == {
        "title": "a: b",
        "quote": 'He said "hi"',
        "tags": ["x", "y"],
        "note": "one\nmore",
        "me": "@home",
        "list": ["a", "b"],
        "n": 5,
    }
    assert [(problem.code, problem.line) for problem in note.problems] == [("W-FM-YAML", 2)]
    assert (note.title, note.tags, note.body_line) == ("a: b", ("x", "y"), 13)


@pytest.mark.parametrize(
    "text",
    [
        "---\n\n## Глава\n\nтекст: да, и ещё\nдругая строка\nтретья строка\n\n---\n\nещё",
        "---\n# Heading\n---\nx",
        "---\n- a\n- b\n---\nx",
        "---\nsome text\n---\nx",
        "---\n**Тема:** текст\n---\nx",
        "---\nНачало: это мой конспект\n## Глава\nтекст\nещё текст\nи ещё\n---\n",
        "---\nНачало: мой конспект\n\n## Глава\n\n## Ещё\n\n---\n",
        "---\n",
        "---",
        "----\na: b\n----\n",
        "---\nunclosed text",
        " ---\na: b\n---\n",
        "+++\na = 1\n+++\n",
    ],
)
def test_a_rule_at_the_top_is_no_front_matter(text):
    note = parse(text)
    assert (note.body_line, note.properties) == (1, {})
    assert_covered(note)


def test_a_list_or_an_unclosed_block_at_the_top_is_text_with_a_warning():
    assert codes("---\n- a\n- b\n---\nx") == ["W-FM-YAML"]
    assert codes("---\na: 1\nb: 2\n\nBody without end") == ["W-FM-OPEN"]
    assert codes("---\n\nJust a rule: and text") == []


@pytest.mark.parametrize(
    "block",
    [
        "a: " + "[" * 30_000,
        "a: " + "{" * 30_000,
        "a: " + "- " * 30_000,
        "\n".join(" " * depth + "a:" for depth in range(300)),
        "a: &a [*a]",
        "a: &a [x, x]\n" + "\n".join(f"b{n}: &b{n} [" + f"*{'a' if n == 0 else f'b{n - 1}'}, " * 3 + "]" for n in range(16)),
        "\n".join(f"b{n}: &b{n} [1]\nc{n}: *b{n}" for n in range(60)),
        "a: \x07",
        "\n".join(f"key{n}: value" for n in range(8_000)),
        "title: {{title}}",
    ],
)
def test_hostile_front_matter_is_read_line_by_line_in_time(block):
    started = time.perf_counter()
    note = parse(f"---\n{block}\n---\nbody")
    assert time.perf_counter() - started < 3
    assert "W-FM-YAML" in [problem.code for problem in note.problems]
    assert note.properties
    assert note.blocks[-1].text == "body"


def test_yaml_tags_are_not_acted_on():
    note = parse("---\na: !!python/object/apply:os.system [ls]\nb: 1\n---\n")
    assert note.properties == {"a": ["ls"], "b": 1}
    assert note.problems[0].code == "W-FM-TAG"


def test_front_matter_is_found_behind_a_bom_and_after_crlf_and_ends_with_dots():
    assert markdown.parse("n.md", b"\xef\xbb\xbf---\r\na: 1\r\n...\r\nx").properties == {"a": 1}
    assert parse('---\n{"a": [1]}\n---\n').properties == {"a": [1]}
    assert parse("---\n---\nx").body_line == 3


# -- blocks


def test_kinds_and_lines_of_blocks():
    text = (
        "# T\n\npara\nmore\n\n- a\n\n  - b\n\n| a | b |\n|---|:-:|\n| 1 | 2 |\n\n```py x\n# no\n```\n\n> q\n\n"
        "> [!ПРИМЕЧАНИЕ]- Имя\n> x\n\n<div>\nx\n</div>\n\n---\n\n$$\n- a\n$$\n\n"
        "%%\n# c\n\n- d\n%%\n\n[^1]: f\n[^2]: g\n\n    more\n\n[ref]: /u\n"
    )
    assert kinds(text) == [
        ("heading", (1, 1)),
        ("paragraph", (3, 4)),
        ("list", (6, 8)),
        ("table", (10, 12)),
        ("code", (14, 16)),
        ("quote", (18, 18)),
        ("callout", (20, 21)),
        ("html", (23, 25)),
        ("rule", (27, 27)),
        ("math", (29, 31)),
        ("comment", (33, 34)),
        ("comment", (36, 37)),
        ("footnote", (39, 39)),
        ("footnote", (40, 42)),
        ("paragraph", (44, 44)),
    ]
    titles = {block.kind: (block.title, block.level) for block in parse(text).blocks if block.title}
    assert titles == {"heading": ("T", 1), "code": ("py", 0), "callout": ("Имя", 0)}


def test_block_ids_are_found_and_belong_to_what_they_follow():
    blocks = parse("para ^one\n\n- a\n- b\n\n^two\n\n| a |\n|---|\n^three\n\n## H ^four\n\n```\nx ^no\n```\n\nx^2\n").blocks
    assert [(block.kind, block.block_id, block.lines) for block in blocks] == [
        ("paragraph", "one", (1, 1)),
        ("list", "two", (3, 6)),
        ("table", "three", (8, 10)),
        ("heading", "four", (12, 12)),
        ("code", "", (14, 16)),
        ("paragraph", "", (18, 18)),
    ]
    assert blocks[3].title == "H"


def test_a_comment_does_not_become_structure():
    assert kinds("%%c%% # no heading") == [("paragraph", (1, 1))]
    assert kinds("# H\n\n%%\nx\n%%") == [("heading", (1, 1)), ("comment", (3, 5))]
    assert kinds("%%\n```\n%%\n\n# H") == [("comment", (1, 3)), ("heading", (5, 5))]
    assert kinds("```\n%%\n```\n\n# H\n\n%% open") == [("code", (1, 3)), ("heading", (5, 5)), ("paragraph", (7, 7))]
    assert kinds("<!-- UID: x -->") == [("comment", (1, 1))]


def test_headings_are_titled_without_marks():
    for written, title in {
        "## **Введение** ##": "Введение",
        "# a *b* `c` ==d==": "a b c d",
        "# 2 * 3 * 4": "2 * 3 * 4",
        "Set\next\n===": "Set ext",
    }.items():
        assert parse(written).blocks[0].title == title
    assert markdown.link_heading("A: [[B|c]] #d ^e %%x%%\\ **f** `g`") == "A B c d e x f g"
    assert parse("text\n# **One**\n").title == "One"
    assert parse("---\ntitle: 2024\n---\n# One").title == "2024"
    assert parse("## Two").title == "Note"


def test_an_unclosed_fence_is_reported_with_its_line():
    problems = parse("a\n\n```py\nx\n\ny [[no]]").problems
    assert [(problem.code, problem.line) for problem in problems] == [("W-FENCE", 3)]
    assert codes("~~~~\n```\n~~~\n~~~~") == []


# -- links and tags


@pytest.mark.parametrize(
    ("written", "link"),
    [
        ("[[Note]]", Link("Note", "", "", "", False, 1)),
        ("[[ a/Note#H1#H2 | as this ]]", Link("a/Note", "H1#H2", "", "as this", False, 1)),
        ("[[#H]]", Link("", "H", "", "", False, 1)),
        ("[[Note#^id-1]]", Link("Note", "", "id-1", "", False, 1)),
        ("![[f.png|100x145]]", Link("f.png", "", "", "100x145", True, 1)),
        ("| [[a\\|b]] |", Link("a", "", "", "b", False, 1)),
        ("[t](Note%20x.md#H%201)", Link("Note x.md", "H 1", "", "t", False, 1)),
        ("[t](<Note x.md>)", Link("Note x.md", "", "", "t", False, 1)),
        ('![alt|100](img/f_(1).png "title")', Link("img/f_(1).png", "", "", "alt|100", True, 1)),
        ("[[Заметка `x`|имя]]", Link("Заметка `x`", "", "", "имя", False, 1)),
        ("[![](img/a.svg)](https://x.y/#z)", Link("img/a.svg", "", "", "", True, 1)),
    ],
)
def test_links_are_read_as_obsidian_reads_them(written, link):
    assert parse(written).links == (link,)


def test_what_is_no_link():
    text = (
        "`[[a]]` \\[[b]] [[]] [[|x]] %%[[c]]%% <!-- [[d]] --> [t](https://x.y) [m](mailto:a@b) $$[[e]]$$\n\n```\n[[f]]\n```\n\n    [[g]]\n"
    )
    assert parse(text).links == ()
    assert [link.line for link in parse("---\na: 1\n---\n\n[[x]]\n\n> [[y]]\n> ```\n> [[no]]\n> ```\n\n- `` ` `` [[z]]").links] == [
        5,
        7,
        12,
    ]


def test_tags_of_text_and_properties():
    text = "---\ntags: [Один, '#два/три']\ntag: 'x, #y z'\n---\n"
    text += "#один #тег/под-тег (#c) #ক্ষ, #1984 a#no http://x/#no \\#no `#no` [[n#no]] [a](b#no)\n"
    text += "# #head\n#e/ ##no #-\n"
    assert parse(text).tags == ("Один", "два/три", "x", "y", "z", "тег/под-тег", "c", "ক্ষ", "head", "e")
    for odd in ("tags: 5", "tags:", "tags: {a: b}", "tags: [1, null, true]"):
        assert parse(f"---\n{odd}\n---\n").tags == ()


# -- the traps of other readers (each is a way in which a library or a plugin loses or invents something)


def test_trap_a_items_deeper_than_nine_levels_stay() -> None:
    text = "".join("    " * depth + f"- уровень{depth} [[Цель{depth}]]\n" for depth in range(40))
    note = parse(text)
    assert [(block.kind, block.lines) for block in note.blocks] == [("list", (1, 40))]
    assert [link.target for link in note.links] == [f"Цель{depth}" for depth in range(40)]
    assert all(f"уровень{depth} " in told(text) for depth in range(40))


def test_trap_b_links_and_tags_know_their_lines() -> None:
    text = "---\na: 1\n---\n\n`[[no]]`\n[[a]]\n\n> - [[b]] #c\n\n```\n[[no]]\n```\n[[d]]"
    assert [(link.target, link.line) for link in parse(text).links] == [("a", 6), ("b", 8), ("d", 13)]


def test_trap_c_sums_of_money_are_no_formulas() -> None:
    note = parse("цена $5 [[Сад]] and $10 #тег и $ 3 $ [[Дом]]")
    assert ([link.target for link in note.links], note.tags) == (["Сад", "Дом"], ("тег",))


@pytest.mark.parametrize(
    ("text", "body_line"),
    [("\ufeff---\na: 1\n---\nx", 4), ("----\na: 1\n----\nx", 1), ("---\na: 1\n...\nx", 4), ("---\n\nтекст\n\n---\nx", 1)],
)
def test_trap_d_front_matter_is_only_what_is_meant_as_such(text: str, body_line: int) -> None:
    note = parse(text)
    assert (note.body_line, note.properties) == ((body_line, {"a": 1}) if body_line > 1 else (1, {}))
    assert_covered(note)


@pytest.mark.parametrize(
    "comment",
    [
        "%%\n# тайна\n\n- тайна\n\n```\nтайна\n```\n%%",
        "> цитата %% тайна %%",
        "- a\n  %%\n  тайна\n\n  # тайна\n  %%\n- b",
        "слово %%тайна%% слово",
        "слово %%тайна\nтайна%% слово",
        "<!-- тайна\n\nтайна -->",
        "# Глава %%тайна%%",
        "| a %%тайна%% |\n|---|\n| b |",
        "```\nкод\n```\n%%\nтайна\n%%",
        "%% тайна %%\n%% тайна %%",
        "[^1]: сноска %%тайна%%",
        "слово `x %%` и %%тайна%% `%% y`",
    ],
)
def test_trap_e_comments_are_never_told(comment: str) -> None:
    said = told(f"Насос качает воду из колодца.\n\n{comment}\n\nВода течёт в бочку по трубе.")
    assert "тайна" not in said.lower()
    assert "Насос качает" in said
    assert "течёт в бочку" in said


def test_trap_f_a_pipe_in_a_table_ends_the_cell_unless_escaped() -> None:
    text = "| a | b |\n|---|---|\n| [[Дом|x]] | [[Сад\\|y]] `[[no|z]]` |\n\nвне [[Дом|x]]"
    assert [(link.target, link.alias) for link in parse(text).links] == [("Сад", "y"), ("Дом", "x")]
    assert kinds(text) == [("table", (1, 3)), ("paragraph", (5, 5))]


def test_trap_g_twenty_thousand_brackets_take_no_time() -> None:
    started = time.process_time()
    for unit in ("[", "![[", "]]", "[[a|", "[a](", "[^"):
        parse(unit * 20_000)
    assert time.process_time() - started < 3


def told(text: str) -> str:
    """Everything that becomes of a note: texts, titles, keywords."""
    return reading.read_note("n.md", text.encode(), Settings(vault_id="test")).yaml


# -- visible, mask


def test_visible_drops_comments_and_ids_but_no_code():
    text = "a %%b%% c ^id\n%%\nx\n\ny\n%%\n`%%k%% ^k`\n```\n%%k%% ^k\n```\n<!-- UID: 1 -->\nx ^2 + y\nE = x ^2 z\n\n- i ^j\n"
    assert markdown.visible(text) == "a  c\n\n\n\n\n\n`%%k%% ^k`\n```\n%%k%% ^k\n```\n\nx ^2 + y\nE = x ^2 z\n\n- i\n"
    assert markdown.visible("a ^id\n\nb ^c %%d%%") == "a\n\nb"
    assert markdown.visible("100 %% of it") == "100 %% of it"


def test_mask_blanks_code_and_comments():
    assert markdown.mask("a `b` %%c%% <!--d--> e") == "a " + " " * 19 + "e"
    assert markdown.mask("> ```\n> x\n> ```\ny `z") == "> " + "   \n" + "   \n" + "     \ny `z"
    assert markdown.mask("- ```\n  a\nb `c`") == "-    \n   \nb    "
    assert markdown.mask("``` not `a` fence") == "``` not     fence"


# -- time


@pytest.mark.parametrize(
    "unit",
    [
        "[",
        "![[",
        ">",
        "> ",
        "- ",
        "` `` ",
        "a %% ",
        "a <!-- ",
        "$$ ",
        "[a](",
        "[[a ",
        "[ [a] ",
        "#a ",
        "\\",
        "~~~\n",
        "<",
        "a ^b\n",
        "- > ",
        "|a|\n|-|\n",
        "*a ",
    ],
)
def test_time_grows_with_length_only(unit):
    text = unit * 80_000
    started = time.perf_counter()
    note = parse(text[:240_000])
    markdown.visible(note.text)
    assert time.perf_counter() - started < 6
    assert_covered(note)


def test_deep_nesting_keeps_the_text():
    started = time.perf_counter()
    lazy = parse("> " * 300 + "a\n" + "b\n" * 6_000)
    assert time.perf_counter() - started < 2  # 7 s when the inside of quotes is parsed
    assert [block.lines for block in lazy.blocks] == [(1, 6_001)]
    deep = parse("".join("  " * depth + "- x\n" for depth in range(300)))
    assert [(block.kind, block.lines) for block in deep.blocks] == [("list", (1, 300))]
    assert_covered(deep)
    looked_at = parse("".join("  " * depth + "- x\n" for depth in range(300)) + "lazy\n")
    assert "W-DEPTH" in [problem.code for problem in looked_at.problems]
    assert_covered(looked_at)


def test_a_failure_of_the_block_rules_costs_the_structure_only(monkeypatch):
    def broken(lines: list[str]) -> None:
        raise RecursionError

    monkeypatch.setattr(blocks, "split", broken)
    note = parse("# a\n\nb [[c]]\n")
    assert [problem.code for problem in note.problems] == ["W-DEPTH"]
    assert [(block.kind, block.lines) for block in note.blocks] == [("paragraph", (1, 3))]
    assert note.links[0].target == "c"


def test_a_plain_note_has_text_and_no_blocks():
    note = markdown.plain_note("x/conversations-1.json", b'[{"a": 1}]')
    assert (note.title, note.text, note.blocks, note.body_line) == ("conversations-1", '[{"a": 1}]', (), 1)


def test_undecodable_bytes_are_a_problem(tmp_path: Path):
    note = markdown.parse("n.md", "Привет, мир".encode("cp1251"))
    assert (note.text, note.blocks, note.problems[0].code) == ("", (), "E-ENC")


def test_a_note_that_ends_with_its_front_matter_is_read() -> None:
    note = markdown.parse("x.md", b"---\ntags: [a]\n---")
    assert (note.tags, note.blocks, note.problems) == (("a",), (), ())


def test_a_link_in_quoted_properties_is_read_without_yamls_backslashes() -> None:
    text = '---\nsources:\n  - "see [[a/the \\"best\\" one|x]]"\n  - \'[[a/b\\"c]]\'\n---\n'
    assert [link.target for link in markdown.parse("x.md", text.encode()).links] == ['a/the "best" one', 'a/b\\"c']
