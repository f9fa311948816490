"""JSON files of Smart Chat (the chat of the Obsidian plugin Smart Connections), before and after its notes (`smart_chat`).

- 2023, `.smart-connections/chats/<name>.json`: a list of turns, each a list of alternative messages, the last one current.
- 2024-12 to 2025-11, `.smart-env/smart_threads/<key>.json`: `blocks` are all messages, `messages` gives the talk's order,
  `branches` what was said instead of a message and below it.

Alternatives and branches become turns with `variant_of`. Retrieved context, tool calls and tool results are counted and left
out. Messages carry no times (a thread says when it was made); the file's name stands in the ids where the file has none.
Knows nothing about the embeddings that lie beside them (`.ajson`), and not the format of the plugin of its own that followed.
"""

from __future__ import annotations

import bisect
import json
import re
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from vaultllm.chats.messages import left_out
from vaultllm.chats.times import from_epoch
from vaultllm.chats.turns import listed
from vaultllm.schema import Conversation, Lines, Note, Problem, Role, Turn
from vaultllm.text import encodable

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_TURNS = re.compile(r"\s*\[\s*\[\s*\{")
_THREAD = re.compile(r"\s*\{")
_ROLES: dict[object, Role] = {"user": "user", "assistant": "assistant", "system": "system"}


def detect(note: Note, settings: ScanSettings) -> str:
    """Which of the two a `.json` file is; empty when it is neither."""
    if not note.path.lower().endswith(".json"):
        return ""
    text = note.text
    if _TURNS.match(text) and '"role"' in text and '"content"' in text:
        return "a Smart Chat file of 2023 (turns of alternatives)"
    thread = _THREAD.match(text) and '"blocks"' in text and '"messages"' in text and '"branches"' in text
    return "a Smart Chat thread (blocks and branches)" if thread else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of the file; its turns share the file's lines."""
    lines = (1, max(1, note.text.rstrip("\n").count("\n") + 1))
    try:
        data = json.loads(note.text, strict=False)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        message = f"the JSON is broken in line {line} ({type(error).__name__}); its talk is left out, take the file from a backup"
        return [Conversation("", note.title, "smart-chat", "", (), lines, problems=(Problem("E-JSON", message, line),))]
    found = _turns(note, data, lines) if isinstance(data, list) else _thread(note, data, lines)
    return [found]


class _Account:
    """What a talk's messages become: turns, and counts of what is left out."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.turns: list[Turn] = []
        self.out: Counter[str] = Counter()
        self.broken = 0

    def add(self, message: object, uid: str, variant_of: str = "") -> bool:
        """Take a message in; whether it became a turn."""
        if not isinstance(message, dict):
            self.broken += 1
            return False
        text, names = _content(message.get("content"))
        role = _ROLES.get(message.get("role")) if isinstance(message.get("role"), str) else None
        tool = role is None or bool(message.get("tool_call_id"))
        calls = message.get("tool_calls")
        self.out["W-HIDDEN"] += sum(bool(message.get(key)) and isinstance(message.get(key), str) for key in ("context", "hyd"))
        if role == "system" and "---BEGIN" in text:
            self.out["W-HIDDEN"] += 1
        elif tool:
            self.out["W-TOOL"] += 1
        elif not text:
            self.out["W-TOOL" if calls else "W-EMPTY"] += 1
        else:
            self.out["W-TOOL"] += bool(calls)
            model = message.get("model")
            self.turns.append(
                Turn(
                    role=role or "user",
                    text=text,
                    lines=self.lines,
                    author=str(message.get("role")),
                    model=encodable(model) if isinstance(model, str) else "",
                    uid=encodable(uid),
                    attachments=names,
                    variant_of=encodable(variant_of),
                )
            )
            return True
        return False

    def conversation(self, id: str, title: str, created: str) -> Conversation:
        """What was taken in, as the file's conversation."""
        problems = [left_out(code, self.lines[0], count) for code, count in self.out.items() if count]
        if self.broken:
            message = f"{self.broken} messages of this chat are not in the file as messages; their text is lost, look into a backup"
            problems.append(Problem("E-MESSAGE", message, self.lines[0], self.broken))
        seen = len(self.turns) + sum(problem.count for problem in problems)
        return Conversation(id, title, "smart-chat", created, tuple(self.turns), self.lines, problems=tuple(problems), seen=seen)


def _turns(note: Note, data: list[Any], lines: Lines) -> Conversation:
    """The file of 2023."""
    account = _Account(lines)
    for number, alternatives in enumerate(data):
        choices = alternatives if isinstance(alternatives, list) and alternatives else [alternatives]
        current = f"{note.title}#{number}"
        kept = account.add(choices[-1], current)
        standing = current if kept else _last(account.turns)
        for choice, message in enumerate(choices[:-1]):
            account.add(message, f"{current}.{choice}", standing)
    return account.conversation("", note.title, "")


def _thread(note: Note, data: object, lines: Lines) -> Conversation:
    """The thread of 2025."""
    thread = data if isinstance(data, dict) else {}
    blocks = {_name(block): block for block in listed(thread.get("blocks")) if isinstance(block, dict)}
    key = str(thread.get("key") or note.title)
    order = _order(thread.get("messages"))
    account = _Account(lines)
    standing: list[tuple[int, str]] = []  # place -> uid of the turn of the talk
    for place, name in order:
        uid = f"{key}#{name}"
        if account.add(blocks.get(name), uid):
            standing.append((place, uid))
    used = {name for _, name in order}
    branches = thread.get("branches")
    for written, others in branches.items() if isinstance(branches, dict) else ():
        begin = int(written) if written.isascii() and written.isdecimal() and len(written) < 9 else 0
        below = bisect.bisect_left(standing, (begin, ""))
        instead = standing[min(below, len(standing) - 1)][1] if standing else ""
        for branch in listed(others):
            for _, name in _order(branch):
                used.add(name)
                account.add(blocks.get(name), f"{key}#{name}", instead)
    for name in [
        name for name in blocks if name not in used
    ]:  # neither in the talk nor in a branch: said once, and then removed by the plugin
        account.add(blocks[name], f"{key}#{name}", standing[-1][1] if standing else "")
    created = thread.get("created_at")
    when = ""
    if isinstance(created, (int, float)) and not isinstance(created, bool) and 0 < created < 1e15:
        when = from_epoch(created / 1000)
    return account.conversation(encodable(key), encodable(key), when)


def _last(turns: list[Turn]) -> str:
    return next((turn.uid for turn in reversed(turns) if not turn.variant_of), "")


def _name(block: dict[str, Any]) -> str:
    """A block's id within its thread: its key ends with it."""
    return str(block.get("id") or str(block.get("key") or "").rpartition("#")[2])


def _order(messages: object) -> list[tuple[int, str]]:
    """Ids by their place, which the file gives as numbers from 1."""
    entries = messages.items() if isinstance(messages, dict) else ()
    return sorted((place if isinstance(place, int) and not isinstance(place, bool) else 0, name) for name, place in entries)


def _content(content: object) -> tuple[str, tuple[str, ...]]:
    """A message's text, and the names of notes and images that were put into it."""
    parts: Iterable[object] = content if isinstance(content, list) else [content]
    said: list[str] = []
    names: list[str] = []
    for part in parts:
        if isinstance(part, str):
            said.append(part)
        elif isinstance(part, dict):
            text, source = part.get("text"), part.get("input")
            said.append(text if isinstance(text, str) else "")
            named = [source.get(key) for key in ("key", "image_path")] if isinstance(source, dict) else []
            names += [encodable(name) for name in named if isinstance(name, str) and name]
    return encodable("".join(said)).strip("\n").rstrip(), tuple(dict.fromkeys(names))
