"""What we write is inert, reads as it was said, and is read back by our own chat reader."""

# ruff: noqa: E501 - a payload stays on one line

from __future__ import annotations

import hashlib
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from vaultllm import chats, markdown, render
from vaultllm.config import ScanSettings
from vaultllm.inert import inert_line
from vaultllm.render import inert
from vaultllm.schema import Answer, Citation

FULL = MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"])

PAYLOADS = [
    *(f"```{name}\nLIST FROM #a\n```" for name in ("dataview", "dataviewjs", "js-engine", "query", "tasks", "templater", "button", "run-python")),
    *(f"~~~{name}\nx\n~~~" for name in ("mermaid", "DataviewJS", "meta-bind-js-view", "chart", "sqlseal", "ad-note", "python {.run}")),
    "~~~~\n```dataviewjs\nx\n```\n~~~~",
    "    ```dataviewjs\n    x\n    ```",
    "- a\n\n  ```dataviewjs\n  x\n  ```",
    "> ```dataviewjs\n> x",
    "```dataviewjs\nnever closed",
    "`$= dv.pages()`", "` = this.file.name`", "`=dv`", "``$=dv``", "`INPUT[text:a]`", "`VIEW[{a}]`", "`button-x`", "`dice: 1d6`", "`{js} x`",
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "<iframe src='https://evil.example'></iframe>", "a <b>bold</b>",
    "<!-- UID: 8db2f0f0 -->", "<!-- hidden", "<?php x ?>", "<!DOCTYPE html>", "<![CDATA[x]]>", "&lt;script&gt;x&lt;/script&gt;",
    "&#60;script>", "\\<script>", "<https://evil.example/x>", "<a@b.example>", "<svg/onload=x>", "</p>",
    "<% tp.user.x() %>", "<%* tR += 1 %>", "`<% tp %>`", "```js\n<% tp %>\n```", "<\\% x %>", "{{title}}", "```text\n{{date}}\n```", "{{{x}}}",
    "%% hidden %%", "%%\nhidden\n%%", "a %%b", "%\\%x%%",
    "![x](https://evil.example/a.png)", "![[secret]]", "![[a.png|100]]", "!\\[[x]]", "[![x](http://a.example/b)](http://c.example)",
    "[x](javascript:alert(1))", "[x](obsidian://open?vault=a)", "[x](file:///etc/passwd)", "https://evil.example/?q=1", "[[Note]]", "[[#^x]]",
    "[x][1]\n\n[1]: https://evil.example", "[1]: <javascript:x>\n\n[1]", "[a]: b", "[^1]: note\n\nx[^1]", "x^[inline]", "[[a]](b)", "[a](Note.md)",
    "---\ntags: [a]\n---\nx", "---\n", "+++\na\n+++", "\n---\nvaultllm: answer\n---", "***\n---", "a\n---\nb", "a\n===\nb",
    "> [!danger] x\n> y", ">[!nexus_user] **User** - 01.01.2025 at 6:20\n> hi\n<!-- UID: x -->", "> > [!nexus_agent] **A** - 01.01.2025 at 6:20",
    "### User, on 01.01.2025 at 6:20;\n> x", "#### ChatGPT, on 01.01.2025 at 6:20", "text\n>[!nexus_user] **User** - 1.1.2025 at 6:20\n> a",
    "- [ ] do it", "1. [x] done", "* [/] half", "- [1] not a task", "+ [ ]", "- \\[ ] x", "> - [ ] quoted", "- a\n  - [ ] nested",
    "text #tag", "#tag", "(#tag)", "##tag", "#тег/под", "#ট্যাগ", "**#tag**", "| #tag |\n|---|\n| #x |", "a\\#tag #b",
    "text ^blockid", "^blockid", "- item ^id", "| a |\n|---|\n| b |\n\n^id", "**a** ^id",
    "a:: b", "[key:: value]", "(key:: value)", "$\\href{javascript:x}{y}$", "$$\n\\href{x}{y}\n$$", "a $x$ b", "\\(x\\)",
    "a\u202eb\u2066c", "x\u200by", "\ufeff---\na: b\n---", "a\u00adb", "x\U000e0041y", "\x00\x1b[31mred", "a\rb", "a\u2028#tag", "\u2800\u3164x",
    "a | b\n--- | ---\n[[x]] | <b>", "| a\\|b | `c\\|d` |\n|---|---|\n| ![[x]] | [y](z) |", "|a|\n|-|\n|`$=x`|",
    "`" * 50, "[" * 200, "![[" * 100, ">" * 100 + " x", "*" * 99, "- " * 60 + "x", "[a](" * 50, "\\" * 33 + "<b>", "$" * 9, "{" * 9, "<" * 9 + "%",
    "User: fake\nAssistant: fake", "  \\\n  <b>", "a  \n#tag", "x\\\n#tag", "*a*#tag", "_[[x]]_", "[*a*](u)*b*", "x[_a_](u)y", "a`b\n#c`d",
]  # fmt: skip

FORBIDDEN = re.compile(r"<%|%>|\{\{|%%|!\[|\[\[|\]\(|://|<!--[ \t]*UID:|^[ \t>]*\[!|\[\^", re.MULTILINE)
INVISIBLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u034f\u115f\u1160\u200b\u200e\u200f\u2028-\u202e\u2060-\u2069\u2800\u3164\ufeff\U000e0000-\U000e0fff]"
)
TASK = re.compile(r"^[ \t>]*(?:[-*+]|\d+[.)])[ \t]+\[[^\]]\](?:[ \t]|$)", re.MULTILINE)
FENCE_OR_SPAN = re.compile(
    r"^(?:[ \t>]|[-*+][ \t]|\d{1,9}[.)][ \t])*(`{3,})[^`\n]*\n(?:.*?\n)??[ \t>]*\1|(?<![\\`])(`+)[^\n]*?(?<!`)\2(?!`)",
    re.DOTALL | re.MULTILINE,
)
LIVE_SPAN = re.compile(r"\s*(?:\$?=|INPUT|VIEW|button-|dice|\{)")


def live(text: str) -> list[str]:
    """What in a note's text could act, by our own parser, by markdown-it with HTML on, and by plain search."""
    found = []
    note = markdown.parse("x.md", f"{text}\n".encode("utf-8", "replace"))
    found += [f"link {link}" for link in note.links] + [f"tag {tag}" for tag in note.tags]
    found += [f"id {block.block_id}" for block in note.blocks if block.block_id]
    found += [f"block {block.kind}" for block in note.blocks if block.kind in ("html", "comment", "callout", "footnote", "math")]
    found += [f"property {name}" for name in note.properties]
    if markdown.mask(text).count("%") > markdown.mask(text).replace("%%", "").count("%"):
        found.append("comment")
    for token in FULL.parse(text):
        if token.type == "html_block":
            found.append(f"html {token.content!r}")
        if token.type == "fence" and token.info not in ("", "text", "js", "python"):
            found.append(f"fence {token.info}")
        for child in token.children or []:
            if child.type in ("html_inline", "link_open", "image"):
                found.append(child.type)
            if child.type == "code_inline" and LIVE_SPAN.match(child.content):
                found.append(f"span {child.content}")
    found += [f"string {match[0]!r}" for match in FORBIDDEN.finditer(FENCE_OR_SPAN.sub("code", text))]
    found += [f"string {mark}" for mark in ("<%", "%>", "{{") if mark in text]
    found += [f"invisible {match[0]!r}" for match in INVISIBLE.finditer(text)]
    found += [f"task {match[0]!r}" for match in TASK.finditer(text)]
    reader, why, _ = chats.read(note, ScanSettings(), "")
    if reader.startswith("nexus"):
        found.append(f"{reader}: {why}")
    return found


def test_the_corpus_is_live_before_it_is_made_inert() -> None:
    assert len(PAYLOADS) >= 100
    assert sum(bool(live(payload)) for payload in PAYLOADS) > 0.6 * len(PAYLOADS)


@pytest.mark.parametrize("payload", PAYLOADS)
def test_nothing_in_the_payload_is_live_and_doing_it_twice_changes_nothing(payload: str) -> None:
    for text in (payload, f"слово {payload}", f"before\n\n{payload}\n\nafter", f"- {payload}"):
        done = inert(text)
        assert live(done) == []
        assert inert(done) == done


MARKUP = st.sampled_from(
    "` ``` ~~~ $= # [ ] [[ ]] ![[ ( ) < > <% %> {{ %% * ** _ - [ ] | \\ \n \n\n $ : :: ^id --- === 1. & ; ! a б ক 5 dataviewjs http:// .".split(
        " "
    )
)


@settings(max_examples=150, deadline=None)
@given(st.lists(MARKUP | st.just(" "), max_size=25).map("".join))
def test_any_mixture_of_marks_is_inert_and_settles(text: str) -> None:
    done = inert(text)
    assert live(done) == []
    assert inert(done) == done


@pytest.mark.parametrize(
    "prose",
    [
        "Дождь идёт над рекой. Вода в колодце поднялась на 5 % — «почти до края» (так говорят).",
        "The pump starts at 32%, i.e. when 3 < 5; it costs $5 & runs C# on snake_case, 5 * 3 = 15. See [1] and [2, 3].",
        "আজ সকালে বৃষ্টি হয়েছে। নদীর জল বেড়েছে; র‍্যাব, ক্‌ষ।",
        "Первая строка\nвторая строка\n\nНовый абзац: «да»?",
        "1. первое\n2. второе\n\n- a\n- b\n\n> цитата\n\n**важно** и *тонко*, `код`",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        "## Заголовок\n\n```python\nprint(1)  # not a tag\n```",
        "Семья 👩‍👩‍👧 и ❤️.",
    ],
)  # fmt: skip
def test_plain_prose_stays_as_it_is(prose: str) -> None:
    assert inert(prose) == prose


def test_escaped_text_shows_the_same_words() -> None:
    text = "a #tag {{x}} %%y%% $a$ and $b$ <b> [[z]] &amp; 2^n"
    shown = "".join(child.content for token in FULL.parse(inert(text)) for child in token.children or [])
    assert shown == text.replace("&amp;", "&")


def test_only_wikilinks_to_allowed_notes_stay() -> None:
    done = inert("see [[Note A|там]], [[Note B]], ![[Note A]], [[Note A#H]]", allow={"Note A"})
    assert [(one.target, one.embed) for one in markdown.parse("x.md", done.encode()).links] == [("Note A", False), ("Note A", False)]


def test_numbers_become_links_in_prose_only_and_unknown_ones_go() -> None:
    done = inert("да [1], нет [7]. `a[1]`\n\n| x |\n|---|\n| y [1] |", cite=lambda n: "[[N|1]]" if n == 1 else "")
    assert done == "да [[N|1]], нет. `a[1]`\n\n| x |\n| --- |\n| y [[N\\|1]] |"


def test_a_line_that_begins_like_a_turn_is_no_turn() -> None:
    done = inert("Да.\nUser: rm\n**Ассистент:** x", plain_names=("User", "Ассистент"))
    note = markdown.parse("x.md", f"User: a\n\nAssistant: b\n\nUser: c\n\nAssistant: {done}\n".encode())
    (talk,) = chats.read(note, ScanSettings(), "")[2]
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "user", "assistant"]


@pytest.mark.parametrize(
    ("path", "kwargs", "expected"),
    [
        ("Чаты/2025/x.md", {}, "[[Чаты/2025/x|x]]"),
        ("a/Note.md", {"heading": "H1#H2"}, "[[a/Note#H1#H2|Note › H2]]"),
        ("a/Note.md", {"block": "id1", "heading": "H"}, "[[a/Note#^id1|Note]]"),
        ("a.md", {"alias": "x|y]] [[z"}, "[[a|x y z]]"),
        ("C# notes.md", {"heading": "A b"}, "[C# notes › A b](C%23%20notes.md#A%20b)"),
    ],
)
def test_a_link_jumps_to_note_heading_or_block(path: str, kwargs: dict[str, str], expected: str) -> None:
    link = render.link(path, **kwargs)
    assert link == expected
    (read,) = markdown.parse("x.md", link.encode()).links
    assert read.target.removesuffix(".md") == path.removesuffix(".md") or "#" in path  # our parser reads `%23` as `#`
    assert read.block == kwargs.get("block", "")


ANSWER = Answer(
    question="Когда включать насос?",
    text="Насос включается при сухой почве [1]. А вот это [9].",
    capable=True,
    sources=(
        Citation("Сад/Полив.md", (12, 13), "", "Насос включается, когда\nпочва суха #полив ![[x]].", "[[Сад/Полив#Насос|Полив › Насос]]"),
    ),
    model="Qwen3-0.6B, 600M parameters",
    run="20251121T103000-lora-0",
    prompt_sha="ab",
    created="2026-11-21T09:05:07+03:00",
    seconds=1.5,
)


def read_back(text: str) -> list[tuple[str, str, str, str]]:
    note = markdown.parse("x.md", text.encode())
    reader, _, (talk,) = chats.read(note, ScanSettings(), "Europe/Moscow")
    assert reader == "nexus"
    assert talk.problems == ()
    return [(turn.role, turn.text, turn.uid, turn.at) for turn in talk.turns]


def test_our_note_is_read_back_as_two_turns_with_their_time() -> None:
    name, text = render.answer_note(ANSWER, "id1")
    user, agent = read_back(text)
    assert name == "2026-11-21 Когда включать насос?"
    assert user == ("user", "Когда включать насос?", "id1-user", "2026-11-21T09:05:07+03:00")
    assert agent[0] == "assistant"
    assert agent[1] == "Насос включается при сухой почве [[Сад/Полив#Насос|1]]. А вот это."


def test_the_properties_are_flat_and_the_hash_is_of_the_body() -> None:
    _, text = render.answer_note(replace(ANSWER, question='a "b": [x] #c\n---\nd'), "id1")
    note = markdown.parse("x.md", text.encode())
    assert note.problems == ()
    assert list(note.properties) == [
        "tags", "created", "vaultllm", "vaultllm_id", "vaultllm_model", "vaultllm_run", "vaultllm_question",
        "vaultllm_sources", "vaultllm_rating", "vaultllm_sha",
    ]  # fmt: skip
    assert note.properties["vaultllm_question"] == 'a "b": [x] #c --- d'
    assert note.properties["vaultllm_sources"] == ["[[Сад/Полив#Насос|Полив › Насос]]"]
    assert note.properties["vaultllm_rating"] is None
    body = "\n".join(text.split("\n")[note.body_line - 1 :])
    assert note.properties["vaultllm_sha"] == hashlib.sha256(body.encode()).hexdigest()
    assert note.tags == ("vaultllm/answer",)


def test_every_link_of_the_note_is_one_of_ours() -> None:
    hostile = replace(ANSWER, question="[[evil]] #t <b>", text="![[evil]] [x](evil.md) [1]", model="m]] [[evil|*x*")
    for capable in (True, False):
        note = markdown.parse("x.md", render.answer_note(replace(hostile, capable=capable), "id1")[1].encode())
        assert {link.target for link in note.links} == {"Сад/Полив"}
        assert note.tags == ("vaultllm/answer",)
        assert not any(block.kind == "html" and "UID" not in block.text for block in note.blocks)


def test_a_model_that_is_not_trusted_speaks_folded_below_the_notes_words() -> None:
    _, text = render.answer_note(replace(ANSWER, capable=False, model="micro-1, 3M parameters, trained here for 4 min"), "id1")
    agent = read_back(text)[1][1]
    assert agent.startswith("Из заметок:\n\n- Насос включается, когда почва суха")
    assert agent.index("Из заметок:") < agent.index("> [!warning]- Слова самой модели (micro-1, 3M parameters, trained here for 4 min)")
    assert "не источник фактов" in agent


def test_when_nothing_was_found_or_nobody_spoke_the_note_says_so_in_the_language_of_the_question() -> None:
    empty = replace(ANSWER, sources=(), text="", capable=False, model=render.NO_MODEL)
    assert "В ваших заметках об этом ничего нет." in render.answer_note(empty, "i")[1]
    assert "`vaultllm train`" in render.answer_note(empty, "i")[1]
    assert "নোটে এ বিষয়ে কিছু নেই" in render.answer_note(replace(empty, question="নদীর জল কোথায়?"), "i")[1]
    assert "Your notes say nothing" in render.answer_note(replace(empty, question="Where?"), "i")[1]
    broken = replace(empty, model="base: E-MODEL it has no weights")
    assert "Модель не ответила: base: E-MODEL it has no weights" in render.answer_note(broken, "i")[1]
    assert "Sources" not in render.answer_note(replace(empty, question="Where?"), "i")[1]


def test_one_line_stays_one_line() -> None:
    assert inert_line("a\n# b\n---\n[[c]]") == "a # b --- \\[\\[c\\]\\]"
