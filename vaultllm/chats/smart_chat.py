"""Notes of Smart Chat (the chat of the Obsidian plugin Smart Connections) of 2024: `smart-chats/*.md`.

A message begins with a heading `##### user`, `assistant`, `system` or `tool` outside code. A message with headings in it is
wrapped in a ```` ```md ```` block, whose inner marks are escaped: both are undone, line by line. ```` ```sc-context ```` and
```` ```sc-system ```` blocks are what the plugin retrieved, not talk; a block named by one word that holds a JSON object is a tool
call of the assistant's. (The plugin takes every one-word block for a call, also ```` ```python ````; here code stays code.)
The format has no times, models and ids. The JSON files of the years before and after are read by `smart_threads`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from vaultllm.chats.fences import fence_mark, outside_fences
from vaultllm.chats.messages import Message, conversation, span_of
from vaultllm.schema import Conversation, Note, Role
from vaultllm.text import is_json

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_HEAD = re.compile(r"##### (user|assistant|system|tool)[ \t]*$")
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system", "tool": "assistant"}
_CONTEXT = ("sc-context", "sc-system")
_CODE = frozenset("json jsonc json5 js javascript ts typescript dataview dataviewjs mermaid css scss graphql latex".split())


def detect(note: Note, settings: ScanSettings) -> str:
    """`4 Smart Chat headings`; empty unless the body begins with one, and both the owner and the assistant have some."""
    if "##### user" not in note.text or is_json(note.path):
        return ""
    lines = note.text.split("\n")
    heads = _heads(lines, note.body_line - 1)
    top = next((row for row in range(note.body_line - 1, len(lines)) if lines[row].strip()), None)
    if not heads or heads[0] != top or not {"user", "assistant"} <= {lines[head][6:].strip() for head in heads}:
        return ""
    return f"{len(heads)} Smart Chat headings"


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of the note; it has no times."""
    lines = note.text.split("\n")
    heads = _heads(lines, note.body_line - 1)
    messages: list[Message] = []
    for head, end in zip(heads, [*heads[1:], len(lines)], strict=True):
        who = lines[head][6:].strip()
        text, tools, hidden = _said(lines[head + 1 : end], who == "assistant")
        left_out = "W-TOOL" if who == "tool" else ""
        messages.append(Message(head, head + 1, end, text, _ROLES[who], who, tools=tools, hidden=hidden, left_out=left_out))
    return [conversation(note, messages, provider="smart-chat")]


def _heads(lines: list[str], first: int) -> list[int]:
    return outside_fences(lines, first, [row for row in range(first, len(lines)) if _HEAD.match(lines[row])])


def _said(lines: list[str], assistant: bool) -> tuple[list[str], int, int]:
    """The text of a message, what is not said in it emptied; how many tool calls and how much retrieved context that was."""
    text = list(lines)
    first, _ = span_of(text)
    tools = hidden = 0
    row = 0
    while row < len(text):
        mark = fence_mark(text[row])
        if mark is None:
            row += 1
            continue
        end = _closing(lines, row, mark[0])
        if end is None:
            break
        name = mark[1]
        if name == "md" and row == first:
            text[row] = text[end] = ""
            text[row + 1 : end] = [line[1:] if line.startswith("\\```") else line for line in text[row + 1 : end]]
        elif name in _CONTEXT:
            text[row : end + 1] = [""] * (end + 1 - row)
            hidden += 1
        elif assistant and _calls(name, lines[row + 1 : end]):
            text[row : end + 1] = [""] * (end + 1 - row)
            tools += 1
        row = end + 1
    return text, tools, hidden


def _closing(lines: list[str], row: int, mark: str) -> int | None:
    """The row on which the block that opens on `row` ends; None when it has no end."""
    for end in range(row + 1, len(lines)):
        other = fence_mark(lines[end])
        if other and not other[1] and other[0].startswith(mark):
            return end
    return None


def _calls(name: str, body: list[str]) -> bool:
    """Whether a block is a tool call: one word names it, no language of code, and it holds a JSON object or nothing."""
    held = "\n".join(body).strip()
    return bool(name) and len(name.split()) == 1 and name.lower() not in _CODE and (not held or (held[0] == "{" and held[-1] == "}"))
