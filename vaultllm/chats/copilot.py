"""Chats that the Obsidian plugin Copilot saves as notes (`copilot/copilot-conversations/…@20250616_213440.md`).

A message begins with `**user**: ` or `**ai**: ` at a line's start and ends with `[Context: …]` and `[Timestamp: …]`. It is split
exactly as the plugin's own loader splits: also in code, so a body line of that shape begins a message there and here. Times are
local and have no zone; `epoch` of the front matter is the first message's moment in UTC and gives the zone. Messages have no
ids: (epoch, place) stands for one. Tool calls and reasoning, which are kept in HTML comments, are taken out.

Knows nothing about the plugin's memory, projects and prompts. A note path that holds `, ` in `[Context: …]` is cut there.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vaultllm.chats.messages import Message, blanked, conversation
from vaultllm.chats.times import from_epoch, make_clock, read_time
from vaultllm.schema import Conversation, Note, Role
from vaultllm.text import fold

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_HEAD = re.compile(r"\*\*(user|ai)\*\*:(?:[ \t]|$)")
_TIME = re.compile(r"\[Timestamp: ([^\]\n]*)\][ \t]*$")
_CONTEXT = re.compile(r"\[Context: (.*)\][ \t]*$")
_LABEL = re.compile(r"[^\W\d_]+(?: [^\W\d_]+)?: ")
_TAG = "copilot-conversation"
_TOOL, _TOOL_END, _REASONING = "<!--TOOL_CALL_START:", "<!--TOOL_CALL_END", "<!--AGENT_REASONING:"
_UNKNOWN = "Unknown time"


def detect(note: Note, settings: ScanSettings) -> str:
    """`4 copilot messages`; empty when the note is none of the plugin's (its tag, or `epoch` and `modelKey`, and a head)."""
    if "**user**:" not in note.text and "**ai**:" not in note.text:
        return ""
    tagged = any(fold(tag) == _TAG for tag in note.tags) or _TAG in _names(note)
    if not (tagged or {"epoch", "modelKey"} <= note.properties.keys()):
        return ""
    count = sum(_HEAD.match(line) is not None for line in note.text.split("\n")[note.body_line - 1 :])
    return f"{count} copilot message{'s' * (count > 1)}" if count else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of the note. `timezone` is used where `epoch` does not give the zone."""
    lines = note.text.split("\n")
    heads = [row for row in range(note.body_line - 1, len(lines)) if _HEAD.match(lines[row])]
    epoch = _epoch(note)
    model = str(note.properties.get("modelKey") or "")
    cut = [_cut(lines, head, end) for head, end in zip(heads, [*heads[1:], len(lines)], strict=True)]
    raws = [raw for _, raw, _ in cut]
    first = raws[0] if raws and raws[0] != _UNKNOWN else ""
    created = from_epoch(epoch / 1000)
    clock = make_clock(raws, first, created, timezone)
    messages: list[Message] = []
    for number, (head, end, (text, raw, names)) in enumerate(zip(heads, [*heads[1:], len(lines)], cut, strict=True)):
        author = lines[head][2 : lines[head].index("**:")]
        role: Role = "user" if author == "user" else "assistant"
        said, tools, hidden = _said(text)
        messages.append(
            Message(
                start=head,
                body=head,
                end=end,
                text=said.split("\n"),
                role=role,
                author=author,
                model=model if role == "assistant" else "",
                at=read_time(raw, clock),
                at_raw="" if raw == _UNKNOWN else raw,
                uid=f"{epoch}-{number}" if epoch else "",
                attachments=names,
                tools=tools,
                hidden=hidden,
            )
        )
    session = note.properties.get("sessionId")
    topic = note.properties.get("topic")
    title = topic.strip() if isinstance(topic, str) else ""
    return [conversation(note, messages, id=str(session or epoch or ""), title=title, provider="copilot", created=created)]


def _names(note: Note) -> set[str]:
    tags = note.properties.get("tags")
    return {fold(str(tag)) for tag in tags} if isinstance(tags, list) else {fold(str(tags))}


def _epoch(note: Note) -> int:
    """The moment of the first message in ms UTC; 0 when it is not known."""
    value = note.properties.get("epoch")
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdecimal():
        value = int(value.strip()[:18])
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e17:
        return 0
    return int(value)


def _cut(lines: list[str], head: int, end: int) -> tuple[str, str, tuple[str, ...]]:
    """A message's text from its head's line on (the head taken off), its time as written, and the names of its context."""
    rows = [_HEAD.sub("", lines[head], count=1), *lines[head + 1 : end]]
    raw = ""
    names: tuple[str, ...] = ()
    last = _last(rows)
    if last >= 0 and (found := _TIME.match(rows[last])):
        raw, rows[last] = found[1].strip(), ""
        last = _last(rows)
    if last >= 0 and (found := _CONTEXT.match(rows[last])):
        names, rows[last] = _attached(found[1]), ""
    return "\n".join(rows), raw, names


def _last(rows: list[str]) -> int:
    return next((row for row in range(len(rows) - 1, -1, -1) if rows[row].strip()), -1)


def _attached(context: str) -> tuple[str, ...]:
    """`Notes: a/b.md, c.md | URLs: http://x` as names."""
    groups = (_LABEL.sub("", group.strip(), count=1) for group in context.split(" | "))
    return tuple(name.strip() for group in groups for name in group.split(", ") if name.strip())


def _said(text: str) -> tuple[str, int, int]:
    """The text without its tool calls and reasoning, and how many of each there were. What is not closed stays."""
    spans: list[tuple[int, int]] = []
    tools = hidden = place = 0
    no_end = False
    while (start := text.find("<!--", place)) >= 0:
        close = text.find("-->", start)
        if close < 0:
            break
        place = close + 3
        if text.startswith(_TOOL, start):
            end = -1 if no_end else text.find(_TOOL_END, place)
            close = text.find("-->", end) if end >= 0 else -1
            no_end = close < 0
            place = place if no_end else close + 3  # a call that never ended: its opening mark alone
            tools += 1
        elif text.startswith(_REASONING, start):
            hidden += 1
        else:
            continue
        spans.append((start, place))
    return blanked(text, spans), tools, hidden
