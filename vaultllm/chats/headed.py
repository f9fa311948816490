"""Transcripts in which a heading begins each message. Three forms:

- `#### You:`, `#### ChatGPT:`, `#### Plugin (name):` by the userscript chatgpt-exporter, with `<time datetime="…">` if asked for;
- `##### You said:`, `###### ChatGPT said:`: what is left of ChatGPT's page when it is copied or clipped as a whole;
- `## 1. 🧑 User — 2025-06-16T18:34:40Z`, numbered from 1, by scripts that export Claude's and others' talks.

A heading inside code begins nothing. `<details>` with the model's thinking are taken out and counted. Other texts that the page
put between the messages (buttons, names of models) cannot be told from what was said and stay.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vaultllm.chats.clipper import source, without_rule
from vaultllm.chats.fences import outside_fences
from vaultllm.chats.messages import Message, conversation, span_of, without_thinking
from vaultllm.chats.times import make_clock, read_time
from vaultllm.schema import Conversation, Note, Role
from vaultllm.text import fold

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_EXPORTED = re.compile(r"####[ \t]+(?P<author>You|ChatGPT|Plugin(?: \([^()\n]*\))?|system)[ \t]*:[ \t]*$")
_COPIED = re.compile(
    r"#{1,6}[ \t]+(?:\*\*)?(?P<author>(?:You|ChatGPT) said|Вы сказали|ChatGPT сказал|আপনি বলেছেন|ChatGPT বলেছে|您说|ChatGPT 说)[ \t]*[:：]?"
    r"(?:\*\*)?[:：]?[ \t]*$"
)
_ANSWERS = ("ChatGPT said", "ChatGPT сказал", "ChatGPT বলেছে", "ChatGPT 说")  # one of them begins each answer
_NUMBERED = re.compile(
    r"#{1,4}[ \t]+(?P<number>\d{1,6})\.[ \t]+(?P<emoji>[^\s\w]\S{0,7})[ \t]+(?P<author>[^\n—–]{1,60}?)[ \t]+[—–-][ \t]+"
    r"(?P<at>\d{4}-\d\d-\d\d[T ]\d\d:\d\d\S*)[ \t]*$"
)
_TIME = re.compile(r"[ \t]*<time\b[^>]*?\bdatetime=\"(?P<at>[^\"]*)\"[^>]*>[^<]*</time>[ \t]*$")
_ATTACHED = re.compile(r"- 📎[ \t]*(?P<name>.+?)[ \t]*$")
_TOOLS = ("🔧", "🛠", "⚙", "🔨")
_PEOPLE = ("🧑", "👤", "🙂", "👩", "👨", "🙋")


@dataclass(frozen=True, slots=True)
class _Head:
    row: int
    role: Role | None  # None: a tool
    author: str
    at_raw: str = ""


def exported_why(note: Note, settings: ScanSettings) -> str:
    """`4 headings of chatgpt-exporter`; empty unless the owner and ChatGPT both speak."""
    return _why(_exported(note, settings), "of chatgpt-exporter") if "#### You" in note.text else ""


def copied_why(note: Note, settings: ScanSettings) -> str:
    """`4 headings of ChatGPT's page`; empty unless the owner and ChatGPT both speak."""
    answered = "ChatGPT" in note.text and any(answer in note.text for answer in _ANSWERS)
    return _why(_copied(note, settings), "of ChatGPT's page") if answered else ""


def numbered_why(note: Note, settings: ScanSettings) -> str:
    """`4 numbered headings`; empty unless the owner and another one both speak."""
    return _why(_numbered(note, settings), "with numbers and times") if "# 1. " in note.text else ""


def read_exported(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of a note by chatgpt-exporter."""
    return _read(note, _exported(note, settings), timezone, "chatgpt")


def read_copied(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of a copied page of ChatGPT's; it has no times."""
    return _read(note, _copied(note, settings), timezone, "chatgpt")


def read_numbered(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation with numbered headings."""
    return _read(note, _numbered(note, settings), timezone, source(note)[0])


def _why(heads: Sequence[_Head], what: str) -> str:
    return f"{len(heads)} headings {what}" if {"user", "assistant"} <= {head.role for head in heads} else ""


def _exported(note: Note, settings: ScanSettings) -> list[_Head]:
    roles: dict[str, Role] = {"You": "user", "ChatGPT": "assistant", "system": "system"}
    return [_Head(row, roles.get(found["author"]), found["author"]) for row, found in _matches(note, _EXPORTED)]


def _copied(note: Note, settings: ScanSettings) -> list[_Head]:
    return [
        _Head(row, "assistant" if found["author"].startswith("ChatGPT") else "user", found["author"])
        for row, found in _matches(note, _COPIED)
    ]


def _numbered(note: Note, settings: ScanSettings) -> list[_Head]:
    users = {fold(label) for label in settings.labels_user}
    heads: list[_Head] = []
    for row, found in _matches(note, _NUMBERED):
        if int(found["number"]) != len(heads) + 1:
            continue  # a numbered heading of the text
        author, emoji = found["author"].strip(), found["emoji"]
        person = fold(author) in users or emoji.startswith(_PEOPLE)
        role: Role | None = "user" if person else None if emoji.startswith(_TOOLS) else "assistant"
        heads.append(_Head(row, role, author, found["at"]))
    return heads


def _matches(note: Note, pattern: re.Pattern[str]) -> list[tuple[int, re.Match[str]]]:
    """The lines of the body outside fences that match, by row."""
    lines = note.text.split("\n")
    first = note.body_line - 1
    found = {row: match for row in range(first, len(lines)) if lines[row].startswith("#") and (match := pattern.match(lines[row]))}
    return [(row, found[row]) for row in outside_fences(lines, first, list(found))]


def _read(note: Note, heads: Sequence[_Head], timezone: str, provider: str) -> list[Conversation]:
    lines = note.text.split("\n")
    ends = [*(head.row for head in heads[1:]), len(lines)]
    cut = [_cut(lines[head.row + 1 : end], head.at_raw) for head, end in zip(heads, ends, strict=True)]
    clock = make_clock([raw for _, raw, _, _ in cut], timezone=timezone)
    model = note.properties.get("model")
    messages = [
        Message(
            start=head.row,
            body=head.row + 1,
            end=end,
            text=text,
            role=head.role or "assistant",
            author=head.author,
            model=model if isinstance(model, str) and head.role == "assistant" else "",
            at=read_time(raw, clock),
            at_raw=raw,
            attachments=names,
            hidden=hidden,
            left_out="" if head.role else "W-TOOL",
        )
        for head, end, (text, raw, names, hidden) in zip(heads, ends, cut, strict=True)
    ]
    return [conversation(note, messages, id=source(note)[1], provider=provider)]


def _cut(lines: list[str], at_raw: str) -> tuple[list[str], str, tuple[str, ...], int]:
    """A message's text, its time as written, the names of its attachments, and how much thinking was taken out."""
    text = list(lines)
    first, _ = span_of(text)
    if first < len(text) and (found := _TIME.match(text[first][:1000])):
        at_raw, text[first] = at_raw or found["at"], ""
    text, hidden = without_thinking(text)
    text = without_rule(text)
    names: list[str] = []
    _, last = span_of(text)
    while last >= 0 and (found := _ATTACHED.match(text[last][:1000])):
        names.append(found["name"])
        text[last] = ""
        last -= 1
    return text, at_raw, tuple(reversed(names)), hidden
