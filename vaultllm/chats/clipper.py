"""Talks that Obsidian Web Clipper cut out of the pages of ChatGPT, Claude and Gemini (the extractors of defuddle).

The front matter's `source` names the page. Each message begins with its author alone on a line in bold (`**You said**`, or what
the page's language makes of it) and ends with a `---`; footnotes stand at the end of the note. Authors are told apart by their
place, not by their words: the first is the owner, the other one bears the program's name or is the one that comes most often.
A bold line within a message is text, unless it stands right below a rule and repeats one of the two names (the form itself
cannot tell these apart).
The pages give no times, models and ids of messages. Knows nothing about other pages (those stay notes, clipped from the web).
"""

from __future__ import annotations

import dataclasses
import itertools
import re
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from vaultllm.chats.fences import outside_fences
from vaultllm.chats.messages import Message, conversation, span_of
from vaultllm.schema import Conversation, Note, Problem
from vaultllm.text import fold

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_BOLD = re.compile(r"\*\*(?P<name>[^*\n]{1,60})\*\*[ \t]*$")
_RULE = re.compile(r" {0,3}(?:-[ \t]*){3,}$|(?:\*[ \t]*){3,}$|(?:_[ \t]*){3,}$")
_FOOTNOTE = re.compile(r"\[\^[^\]\s]+\]:")
_ID = re.compile(r"[0-9a-fA-F][0-9a-fA-F-]{11,}")
_HOSTS = {"chatgpt.com": "chatgpt", "chat.openai.com": "chatgpt", "claude.ai": "claude", "gemini.google.com": "gemini"}


def detect(note: Note, settings: ScanSettings) -> str:
    """`4 authors in bold, clipped from chatgpt`; empty unless the source is such a page and two authors take turns."""
    provider, _ = source(note)
    if not provider:
        return ""
    heads = _heads(note.text.split("\n"), note.body_line - 1, provider)
    return f"{len(heads)} authors in bold, clipped from {provider}" if len({name for _, name in heads}) == 2 else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of the clipping; it has no times."""
    lines = note.text.split("\n")
    provider, id = source(note)
    heads = _heads(lines, note.body_line - 1, provider)
    messages: list[Message] = []
    for (head, name), end in zip(heads, [*(row for row, _ in heads[1:]), len(lines)], strict=True):
        text = without_rule(lines[head + 1 : end])
        messages.append(Message(head, head + 1, end, text, "user" if name == heads[0][1] else "assistant", name))
    tail: list[Problem] = []
    if messages and (footnotes := _footnotes(messages[-1].text)):
        first, last = footnotes[0], messages[-1]
        text = without_rule([*last.text[:first], *[""] * (len(last.text) - first)])
        messages[-1] = dataclasses.replace(last, text=text)
        what = f"{len(footnotes)} footnotes of the page are no part of the last message; they stay in the note"
        tail.append(Problem("W-FOOTNOTE", what, last.body + first + 1, len(footnotes)))
    return [conversation(note, messages, id=id, provider=provider, tail=tail)]


def source(note: Note) -> tuple[str, str]:
    """The provider whose page the front matter's `source` (or `url`) names, and the conversation's id in it; empty if none."""
    for key in ("source", "url"):
        value = note.properties.get(key)
        if not isinstance(value, str) or not value.startswith(("http://", "https://")):
            continue
        try:
            parts = urlsplit(value.strip())
        except ValueError:
            continue
        provider = _HOSTS.get((parts.hostname or "").removeprefix("www."), "")
        last = parts.path.rstrip("/").rpartition("/")[2]
        if provider:
            return provider, last if _ID.fullmatch(last) else ""
    return "", ""


def without_rule(lines: list[str]) -> list[str]:
    """The lines with the rules at their end emptied: they part the messages."""
    kept = list(lines)
    _, last = span_of(kept)
    while last >= 0 and is_rule(kept[last]):
        kept[last] = ""
        while last >= 0 and not kept[last].strip():
            last -= 1
    return kept


def is_rule(line: str) -> bool:
    """Whether a line is a thematic break (`---`)."""
    return len(line) < 200 and _RULE.match(line) is not None


def _heads(lines: list[str], first: int, provider: str) -> list[tuple[int, str]]:
    """Rows and names of the authors' lines: bold and alone, at the top or right below a rule, and of one of the two names."""
    found: list[int] = []
    above = ""
    for row in range(first, len(lines)):
        line = lines[row]
        if not line.strip():
            continue
        # Above the first a template may have put the title.
        if line.startswith("**") and (is_rule(above) or (not found and above[:1] in ("", "#"))) and _BOLD.match(line):
            found.append(row)
        above = line
    rows = outside_fences(lines, first, found)
    named = [(row, match["name"].strip().rstrip(":").rstrip()) for row in rows if (match := _BOLD.match(lines[row]))]
    if not named:
        return []
    owner = fold(named[0][1])
    others = Counter(fold(name) for _, name in named if fold(name) != owner)
    brand = next((name for name in others if provider in name), "")
    two = {owner, brand or next((name for name, _ in others.most_common(1)), owner)}
    shown = {fold(name): name for _, name in reversed(named)}
    heads = [(row, shown[fold(name)]) for row, name in named if fold(name) in two]
    # Without the program's name in it, one change of bold lines is a note with two parts as well as a talk.
    return heads if brand or sum(one != two for (_, one), (_, two) in itertools.pairwise(heads)) >= 2 else []


def _footnotes(lines: Sequence[str]) -> list[int]:
    """The rows on which the footnotes at the end begin."""
    found: list[int] = []
    for row in range(len(lines) - 1, -1, -1):
        if _FOOTNOTE.match(lines[row]):
            found.append(row)
        elif lines[row].strip() and not lines[row].startswith(("    ", "\t")):
            break
    return found[::-1]
