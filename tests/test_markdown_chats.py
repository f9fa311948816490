"""Chats kept as Markdown or small JSON in a vault: what is read, what stays a note, and that no line goes without an account.

The traps of each format are goldens (`golden/chats`); here are the properties that all readers share.
"""

from __future__ import annotations

import gc
import itertools
import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import golden
from vaultllm import chats, reading
from vaultllm.chats.fences import outside_fences
from vaultllm.chats.messages import blanked, without_thinking
from vaultllm.config import ScanSettings, Settings
from vaultllm.schema import Conversation, Note

SETTINGS = Settings(vault_id="t")  # type: ignore[call-arg]
FOLDER = golden.FOLDER / "chats"
CASES = [path for path in golden.cases() if path.is_relative_to(FOLDER)]
OURS = {
    "copilot",
    "chatgpt-md",
    "smart-chat",
    "smart-threads",
    "claudian",
    "claudian-meta",
    "claude-code",
    "clipper",
    "chatgpt-exporter",
    "chatgpt-page",
    "numbered",
    "plain",
}
OUR_READERS = [reader for reader in chats.READERS if reader.name in OURS]
HR = '<hr class="__chatgpt_plugin">'


def note_of(text: str, path: str = "talk.md") -> Note:
    return reading.parse(path, text.encode("utf-8", "surrogatepass"), SETTINGS)


def read(text: str, path: str = "talk.md", timezone: str = "") -> tuple[str, list[Conversation]]:
    name, why, found = chats.read(note_of(text, path), SETTINGS.scan, timezone)
    assert bool(name) == bool(why)
    return name, found


def ours(note: Note) -> list[Conversation]:
    """What the first of our readers that takes the note makes of it."""
    reader = next((reader for reader in OUR_READERS if reader.detect(note, SETTINGS.scan)), None)
    return [] if reader is None else reader.read(note, SETTINGS.scan, "Europe/Moscow")


def one(text: str, reader: str, path: str = "talk.md", timezone: str = "") -> Conversation:
    name, found = read(text, path, timezone)
    assert name == reader
    (talk,) = found
    check(note_of(text, path), talk)
    return talk


def texts(talk: Conversation) -> list[tuple[str, str]]:
    return [(turn.role[0], turn.text) for turn in talk.turns]


def check(note: Note, talk: Conversation) -> None:
    """What holds for every conversation of every reader."""
    lines = note.text.split("\n")
    left = sum(problem.count for problem in talk.problems if problem.code in chats.LEFT_OUT)
    assert talk.seen == len(talk.turns) + left
    uids = {turn.uid for turn in talk.turns}
    for turn in talk.turns:
        assert turn.role in ("user", "assistant", "system")
        assert turn.text.strip()
        assert turn.text == turn.text.strip("\n")
        assert 1 <= turn.lines[0] <= turn.lines[1] <= len(lines)
        turn.text.encode("utf-8")
        assert not turn.variant_of or turn.variant_of in uids
    assert all(0 <= problem.line <= len(lines) and problem.message.strip() for problem in talk.problems)
    if note.path.endswith((".json", ".jsonl")):
        return
    for turn in talk.turns:
        if turn.lines[0] < note.body_line:
            continue  # system commands of the front matter
        assert turn.lines[0] <= turn.text_line
        for offset, said in enumerate(turn.text.split("\n")):
            written = lines[turn.text_line + offset - 1]
            assert said.strip() in written or said == written.removeprefix("\\") or _is_cut(said, written), (said, written)
        assert turn.text_line + turn.text.count("\n") <= turn.lines[1]
    account(note, talk)


def _is_cut(said: str, written: str) -> bool:
    """Whether a line is what is left of a written one after pieces were taken out of it."""
    rest = iter(written)
    return all(char in rest for char in said.strip())


def account(note: Note, talk: Conversation) -> None:
    """Each non-blank line of the body is in a turn, loose, in a message that is counted as left out, or a title above them."""
    lines = note.text.split("\n")
    spans = sorted([turn.lines for turn in talk.turns if turn.lines[0] >= note.body_line] + list(talk.loose))
    assert all(first <= last for first, last in spans)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(spans)), spans
    if not any(turn.lines[0] >= note.body_line for turn in talk.turns):
        return  # no message: there is only what stands before one
    covered = {line for first, last in spans for line in range(first, last + 1)}
    alone = {problem.line for problem in talk.problems if problem.code in chats.LEFT_OUT} - covered
    first = min({turn.lines[0] for turn in talk.turns if turn.lines[0] >= note.body_line} | alone)
    out = False
    for number in range(note.body_line, len(lines) + 1):
        line = lines[number - 1]
        out = number in alone or (out and number not in covered)
        titled = number < first and line.startswith("# ")
        assert number in covered or out or titled or not line.strip(), (number, line)


# -- the goldens


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_line_of_a_golden_is_accounted_for(path: Path) -> None:
    note = reading.parse(path.name, path.read_bytes(), golden.settings(path))
    name, _, found = chats.read(note, golden.settings(path).scan, "")
    assert (name in OURS) != ("stay-a-note" in path.name or "stays-a-note" in path.name)
    for talk in found:
        check(note, talk)


def test_every_reader_has_a_golden() -> None:
    readers = {chats.read(reading.parse(path.name, path.read_bytes(), SETTINGS), SETTINGS.scan, "")[0] for path in CASES}
    assert readers >= OURS
    assert {reader.name for reader in chats.READERS} >= OURS


INSERTED = [
    "",
    "\n",
    "```",
    "~~~\n",
    "---\n",
    "> ",
    "# ",
    "**user**: ",
    "\n**ai**: ",
    "[Timestamp: 2025/01/01 00:00:00]\n",
    "<!--TOOL_CALL_START:",
    "-->",
    HR + "\n",
    "role::assistant\n",
    "=begin-chatgpt-md-comment",
    "##### user\n",
    "```md\n",
    "```sc-context\n",
    "#### You:\n",
    "<details><summary>💭 Thinking\n",
    "</details>\n",
    "**You**\n",
    "[^1]: x\n",
    "User: ",
    "}",
    '"',
    ",{",
    "\\ud83d",
    "null",
    "9" * 400,
    "\u2028",
    "\x1c",
    "\x00",
    "১",
]
EDIT = st.tuples(st.integers(0, 3000), st.integers(0, 60), st.sampled_from(INSERTED))


@settings(max_examples=400)
@given(st.sampled_from(CASES), st.lists(EDIT, min_size=1, max_size=6))
def test_an_edited_chat_never_raises_and_its_account_holds(path: Path, edits: list[tuple[int, int, str]]) -> None:
    text = path.read_text(encoding="utf-8")
    for start, length, inserted in edits:
        start %= len(text) + 1
        text = text[:start] + inserted + text[start + length :]
    note = note_of(text, path.name)
    for talk in ours(note):
        check(note, talk)


MARKS = {
    "copilot": "---\nepoch: 1750098880000\nmodelKey: m\n---\n**user**: a\n[Timestamp: 2025/06/16 21:34:40]\n\n**ai**: ",
    "chatgpt-md": f"---\nsystem_commands: ['x']\n---\na\n\n{HR}\n\n### role::assistant\n\n",
    "smart-chat": "##### user\na\n##### assistant\n",
    "clipper": "---\nsource: https://claude.ai/chat/1\n---\n**You**\n\na\n\n---\n\n**Claude**\n\n",
    "chatgpt-exporter": "#### You:\na\n#### ChatGPT:\n",
    "chatgpt-page": "##### You said:\na\n###### ChatGPT said:\n",
    "numbered": "## 1. 🧑 User — 2025-06-16T18:34:40Z\na\n## 2. 🤖 Claude — 2025-06-16T18:34:40Z\n",
    "plain": "User: a\nAI: b\nUser: c\n",
}
LINE = st.text(alphabet="`~-#>*_[](){}<!>:|$%\\ \t\u00a0\u200bаяকি1zÅ\U0001f9d1", max_size=25)
RANDOM = st.lists(st.one_of(LINE, st.sampled_from(INSERTED), st.sampled_from([*MARKS.values()])), max_size=12).map("\n".join)


@settings(max_examples=250)
@given(st.sampled_from(list(MARKS)), RANDOM)
def test_anything_below_a_mark_is_read_without_raising(reader: str, text: str) -> None:
    note = note_of(MARKS[reader] + text)
    for talk in ours(note):
        check(note, talk)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.sampled_from(["", "user", "assistant", "text", "\ud83d", "1"])),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["text", "type", "id", "role", "key"]), inner)),
    max_leaves=6,
)


@settings(max_examples=150)
@given(
    st.lists(st.dictionaries(st.sampled_from(["type", "uuid", "parentUuid", "message", "isMeta", "timestamp", "summary"]), VALUES)), VALUES
)
def test_transcripts_with_any_values_are_read_without_raising(lines: list[dict[str, object]], value: object) -> None:
    head = {"type": "user", "uuid": "u", "parentUuid": value, "message": {"content": value, "id": value}, "timestamp": value}
    session = [{"type": "meta", "sessionId": value}, {"type": "message", "message": value}]
    thread = {
        "messages": {"a": value},
        "branches": {"1": [value, {"a": 1}]},
        "blocks": [value, {"key": "a", "role": "user", "content": value}],
    }
    for path, data in {
        "a.jsonl": [head, *lines],
        "b.jsonl": session,
        "c.jsonl": [*session, {"type": "message", "message": {"role": "user", "content": value, "timestamp": value, "id": value}}],
    }.items():
        note = note_of("\n".join(json.dumps(line) for line in data), path)
        for talk in ours(note):
            check(note, talk)
    for whole in (thread, [[{"role": value, "content": value}, value], value]):
        note = note_of(json.dumps(whole), "a.json")
        for talk in ours(note):
            check(note, talk)


# -- ordinary notes


ORDINARY = {
    "one question": "Вопрос: что такое токен?\n\nОтвет: часть слова.\n\nИ дальше мой текст.",
    "one exchange": "User: hi\nAssistant: hello\n\nThat is all they said to each other.",
    "faq by headings": "## Вопрос: как кормить закваску?\nРаз в день.\n\n## Вопрос: чем?\nМукой.\n\n## Вопрос: когда?\nУтром.",
    "faq in bold": "**Как кормить?**\nМукой.\n\n---\n\n**Когда?**\nУтром.\n\n---\n\n**Как кормить?**\nСнова мукой.",
    "faq by q and a": "Q: how?\nA: so.\n\nQ: when?\nA: now.\n\nQ: why?\nA: because.",
    "interview": "Мария: Как вы начали печь?\n\nПётр: С бабушки.\n\nМария: И давно?\n\nПётр: Тридцать лет.",
    "interview in english": "**Interviewer:** How?\n\n**Guest:** Slowly.\n\n**Interviewer:** Why?\n\n**Guest:** For taste.",
    "recipe": "# Хлеб\n\n- мука: 500 г\n- вода: 350 г\n\n1. Смешать.\n2. Ждать: 12 часов.\n\n21:30 поставить\n22:00 сложить",
    "code that prints a chat": "```\nUser: a\nAI: b\nUser: c\n```\n\n```md\n##### user\nx\n##### assistant\ny\n```",
    "code of all formats": f"```\n#### You:\n#### ChatGPT:\n{HR}x\n**user**: a\n## 1. 🧑 User — 2025-06-16T18:34:40Z\n```",
    "docs of roles": "# API\n\n##### user\nWho asks.\n\n##### assistant\nWho answers.\n\n##### system\nRules.",
    "a role in a sentence": "I write role::assistant and role::user in my prompts, between rules.\n\n---\n\nrole::user is the first.",
    "the rule in a sentence": f"ChatGPT MD parts messages by {HR} and nothing else.",
    "two definitions": "**user**: the one who asks\n\n**ai**: the one who answers\n\n**model**: what is asked",
    "epoch of something else": "---\nepoch: 1750098880000\n---\n**user**: a\n\n**ai**: b",
    "numbered sections": "## 1. 🍞 Хлеб — 2025\nтекст\n\n## 2. 🥛 Молоко — 2026\nтекст",
    "numbered days": "## 1. Monday — 2025-06-16\na\n\n## 2. Tuesday — 2025-06-17\nb",
    "clipped article": "---\nsource: https://example.org/a\n---\n**Bold**\n\ntext\n\n---\n\n**Bolder**\n\ntext\n\n---\n\n**Bold**\n\nx",
    "notes about a chat": "---\nsource: https://chatgpt.com/c/68508a3c-1111-2222\n---\nИтог.\n\n**Первое**\n\nа\n\n---\n\n**Второе**\n\nб",
    "meeting notes": "10:00 You: late again\n\n10:05 I said: let us begin, and much else that is written down here at length.",
    "bengali dialogue of a play": "রাজা: কে তুমি?\n\nমন্ত্রী: আমি মন্ত্রী।\n\nরাজা: কী চাও?\n\nমন্ত্রী: কিছু না।",
    "quoted mail": "> From: You\n> To: AI\n\nUser manual: see below.\n\nAI: a short word for a long hope.",
    "a log": "21:34 start: ok\n21:35 user: root logged in\n21:36 stop: ok",
    "a heading of the page": "### ChatGPT said:\n\nsomething that I quote here alone",
    "task list": "- [ ] User: ask\n- [x] AI: answer\n- [ ] User: ask again",
    "dataview": "user:: me\nassistant:: it\nuser:: me",
    "table": "| User: | AI: |\n|---|---|\n| User: a | AI: b |",
}


@pytest.mark.parametrize("text", ORDINARY.values(), ids=list(ORDINARY))
def test_ordinary_notes_stay_notes(text: str) -> None:
    assert read(text) == ("", [])


def test_ordinary_json_is_not_taken_by_our_readers() -> None:
    for path, text in {
        "package.json": '{"name": "x", "blocks": []}',
        "list.json": '[[{"a": 1}]]',
        "a.jsonl": '{"uuid": "1", "type": "user"}\n{"type": "meta"}',
        "data.meta.json": '{"width": 3}',
        "empty.jsonl": "",
        "empty.json": "",
    }.items():
        assert read(text, path)[0] not in OURS, path


# -- heads in code


@pytest.mark.parametrize("mark", ["```", "~~~", "````", "```text"])
@pytest.mark.parametrize("reader", [name for name in MARKS if name not in ("copilot", "clipper")])
def test_a_head_in_code_begins_no_message(reader: str, mark: str) -> None:
    closing = mark[:4] if mark == "````" else mark[:3]
    fake = {"chatgpt-md": "### role::user", "numbered": "## 3. 🧑 User — 2025-06-16T18:34:40Z"}
    head = fake.get(reader, next(line for line in MARKS[reader].split("\n") if line)).strip()
    talk = one(f"{MARKS[reader]}look:\n{mark}\n{head}\nsaid\n{closing}\nreally the end\n", reader)
    assert talk.turns[-1].text.endswith(f"{mark}\n{head}\nsaid\n{closing}\nreally the end")


def test_a_fence_that_an_answer_left_open_hides_no_head() -> None:
    lines = "h1 ```py x h2 ```py x ``` h3 ``` y ``` h4".split(" ")
    heads = [row for row, line in enumerate(lines) if line.startswith("h")]
    assert outside_fences(lines, 0, heads) == heads


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("h ``` h ``` h", "10 1"),  # one block with a head in it
        ("h ``` h h ``` h", "100 1"),
        ("h ```` h ``` h ```` h", "100 1"),  # a shorter mark closes nothing
        ("h ``` h ~~~ h ``` h", "100 1"),
        ("h ``` h", "11"),  # never closed
        ("h ``` h ``` x ``` h", "11 1"),  # what follows is whole in itself: bare, bare, and one more that is open
        ("h ```a h ```b x ``` h", "11 1"),
        ("h ``` h ``` x ```b y ``` h", "10 1"),
        ("``` h ``` h", "0 1"),
    ],
)
def test_which_heads_are_hidden(text: str, expected: str) -> None:
    lines = text.split(" ")
    heads = [row for row, line in enumerate(lines) if line == "h"]
    found = outside_fences(lines, 0, heads)
    assert "".join("1" if head in found else "0" for head in heads) == expected.replace(" ", "")


@settings(max_examples=300)
@given(st.lists(st.sampled_from(["h", "```", "```a", "````", "~~~", "x"]), max_size=14))
def test_with_one_stretch_the_rule_is_that_of_common_mark(lines: list[str]) -> None:
    """A head below a block that is closed, with no other heads about, is where CommonMark sees it."""
    head = len(lines)
    open_mark = ""
    for line in lines:
        if open_mark and line.startswith(open_mark) and not line.strip("`~"):
            open_mark = ""
        elif not open_mark and line[0] in "`~":
            open_mark = line.rstrip("a")
    if not open_mark:
        assert outside_fences([*lines, "h"], 0, [head]) == [head]


# -- what the formats promise


def test_a_zone_setting_agrees_with_the_epoch_of_copilot() -> None:
    text = MARKS["copilot"] + "b\n[Timestamp: 2025/12/16 21:34:40]\n"
    assert [turn.at[-6:] for turn in one(text, "copilot").turns] == ["+03:00", "+03:00"]
    winter = text.replace("21:34:40", "20:34:40", 1)
    assert [turn.at[-6:] for turn in one(winter, "copilot", timezone="Europe/Berlin").turns] == ["+02:00", "+01:00"]


def test_the_tag_of_copilot_without_a_message_is_a_note() -> None:
    assert read("---\ntags: [copilot-conversation]\n---\njust text\n") == ("", [])


def test_a_tool_call_of_copilot_that_never_ended_costs_only_its_mark() -> None:
    talk = one(MARKS["copilot"] + "<!--TOOL_CALL_START:a-->kept<!--TOOL_CALL_START:b-->also<!-- note", "copilot")
    assert talk.turns[-1].text == "keptalso<!-- note"
    assert [(problem.code, problem.count) for problem in talk.problems] == [("W-TOOL", 2)]


def test_the_empty_end_of_chatgpt_md_is_no_message_but_an_empty_middle_is() -> None:
    part = f"\n{HR}\n\n### role::user\n\n"
    assert one("a\n" + part, "chatgpt-md").problems == ()
    assert one("a\n" + part, "chatgpt-md").seen == 1
    assert one("a\n" + part + part, "chatgpt-md").seen == 2


def test_what_was_taken_out_of_several_messages_is_one_problem_with_their_number() -> None:
    call = "**ai**: said <!--TOOL_CALL_START:a-->x<!--TOOL_CALL_END:a-->\n\n"
    talk = one(MARKS["copilot"] + "b\n\n" + call * 3, "copilot")
    assert [(problem.code, problem.line, problem.count) for problem in talk.problems] == [("W-TOOL", 10, 3)]


def test_an_md_block_of_smart_chat_is_a_wrapper_only_around_a_whole_message() -> None:
    talk = one(MARKS["smart-chat"] + "Here:\n```md\n# Plan\n```\n", "smart-chat")
    assert talk.turns[-1].text == "Here:\n```md\n# Plan\n```"


def test_labels_of_transcripts_are_a_setting() -> None:
    text = "Мастер: а\nУченик: б\nМастер: в\n"
    assert read(text) == ("", [])
    named = ScanSettings(labels_user=("Мастер",), labels_assistant=("Ученик",))  # type: ignore[call-arg]
    assert chats.read(note_of(text), named, "")[0] == "plain"
    assert chats.read(note_of(text), ScanSettings(labels_user=(), labels_assistant=()), "")[0] == ""  # type: ignore[call-arg]


@pytest.mark.parametrize("at", ["[21:34] ", "21:34 ", "21:34:07 ", "[9:05] ", ""])
@pytest.mark.parametrize("bold", ["**{}:**", "**{}**:", "__{}__ :", "{}:", "{}："])
def test_labels_may_be_bold_and_have_a_time(at: str, bold: str) -> None:
    text = "\n".join(at + bold.format(who) + " hi" for who in ("Я", "Бот", "Я"))
    talk = one(text, "plain")
    assert texts(talk) == [("u", "hi"), ("a", "hi"), ("u", "hi")]
    assert {turn.at_raw for turn in talk.turns} == {at.strip("[] ")}


def test_thinking_is_taken_out_and_other_details_stay() -> None:
    lines = [
        "a",
        "<details>",
        "<summary>Thought for 5 seconds</summary>",
        "x",
        "</details>",
        "<details><summary>Think of it</summary>",
        "</details>",
    ]
    assert without_thinking(lines) == (["a", "", "", "", "", *lines[5:]], 1)
    assert without_thinking(["<details><summary>💭 Thinking</summary>", "x"]) == (["<details><summary>💭 Thinking</summary>", "x"], 0)


@given(st.text(alphabet="ab\n"), st.lists(st.integers(0, 30), max_size=8))
def test_blanking_keeps_every_newline(text: str, places: list[int]) -> None:
    cuts = sorted({min(place, len(text)) for place in places})
    left = blanked(text, list(zip(cuts[::2], cuts[1::2], strict=False)))
    assert left.count("\n") == text.count("\n")
    assert set(left) <= set(text)


def test_a_lone_transcript_of_a_subagent_says_what_it_left_out() -> None:
    line = {
        "type": "assistant",
        "uuid": "1",
        "parentUuid": None,
        "isSidechain": True,
        "message": {"content": [{"type": "text", "text": "x"}]},
    }
    talk = one(json.dumps(line), "claude-code", "agent-1.jsonl")
    assert talk.turns == ()
    assert talk.seen == 1


def test_a_transcript_whose_parents_go_in_a_circle_ends() -> None:
    lines = [{"type": "user", "uuid": name, "parentUuid": other, "message": {"content": name}} for name, other in ("ab", "bc", "ca")]
    talk = one("\n".join(map(json.dumps, lines)), "claude-code", "a.jsonl")
    assert [turn.variant_of for turn in talk.turns] == ["", "", ""]


# -- time


def _seconds(text: str, path: str, tries: int = 3) -> float:
    note = Note(path, "t", text, 1, {"source": "https://claude.ai/chat/1", "epoch": 1, "modelKey": "m"}, (), (), (), "", "utf-8", ())
    best = 9e9
    gc.disable()  # its pauses come where they come
    for _ in range(tries):
        start = time.process_time()
        for reader in OUR_READERS:
            if reader.detect(note, SETTINGS.scan):
                reader.read(note, SETTINGS.scan, "")
        best = min(best, time.process_time() - start)
    gc.enable()
    return best


def _transcript(n: int) -> str:
    """A comb: each message answers the first, and has a line below it."""
    line = '{"type":"user","uuid":"%d","parentUuid":"%d","message":{"content":"x"}}\n'
    return "".join(line % (number, number - 1 if number % 2 else 0) for number in range(n))


HOSTILE: dict[str, tuple[str, Callable[[int], str]]] = {
    "copilot heads": ("a.md", lambda n: "**user**: a\n**ai**: b\n[Timestamp: 2025/06/16 21:34:40]\n" * n),
    "copilot tool marks": ("a.md", lambda n: "**user**: a\n**ai**: " + "<!--TOOL_CALL_START:x-->" * 2 * n),
    "copilot context": ("a.md", lambda n: "**user**: a\n[Context: " + "Notes: a | , " * n + "]\n"),
    "chatgpt-md rules": ("a.md", lambda n: f"{HR}\nrole::user<span\n" * n),
    "chatgpt-md comments": ("a.md", lambda n: f"{HR}\n" + "=begin-chatgpt-md-comment\n" * n),
    "smart chat": ("a.md", lambda n: "##### user\n```sc-context\n##### assistant\n```a\n" * n),
    "open fences": ("a.md", lambda n: "#### You:\n```a\n#### ChatGPT:\n~~~\n" * n),
    "fences that shrink": (
        "a.md",
        lambda n: "#### You:\n#### ChatGPT:\n" + "".join("`" * k + "\n#### You:\n" for k in range(n // 40, 2, -1)) + "```x\n" * n,
    ),
    "details": ("a.md", lambda n: "#### You:\n#### ChatGPT:\n" + "<details><summary>💭\n</details>\n" * n + "<details><summary>💭\n" * n),
    "bold names": ("a.md", lambda n: "**You**\n\n---\n\n**Claude**\n\n---\n\n" * n + "[^1]: x\n" * n),
    "numbered": ("a.md", lambda n: "".join(f"## {k}. {'🧑' if k % 2 else '🤖'} U — 2025-06-16T18:34:40Z\n" for k in range(1, n))),
    "labels": ("a.md", lambda n: "> User: a\nx\n> AI: b\n```\n" * n),
    "one long line": ("a.md", lambda n: "**" + "a" * 40 * n + "\n# " + " " * 40 * n + "User" + " " * 40 * n),
    "transcript": ("a.jsonl", _transcript),
    "thread": (
        "a.json",
        lambda n: json.dumps(
            {
                "messages": {f"m{k}": k for k in range(n)},
                "branches": {str(k): [{f"b{k}": k}] for k in range(n)},
                "blocks": [{"key": f"t#{c}{k}", "role": "user", "content": "x"} for k in range(n) for c in "mb"],
            }
        ),
    ),
}


@pytest.mark.parametrize("name", list(HOSTILE))
def test_reading_is_linear(name: str) -> None:
    path, make = HOSTILE[name]
    n = 500
    while _seconds(make(n), path, 1) < 0.006 and n < 32_000:
        n *= 2
    one_, two, four = (_seconds(make(k * n), path) for k in (1, 2, 4))
    assert min(two / one_, four / two) < 2.6, (n, one_, two, four)
    assert four / one_ < 6.5, (n, one_, two, four)
