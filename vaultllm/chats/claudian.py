"""The own files of the Obsidian plugin Claudian: what it knows about its sessions, and the talks of its first versions.

`.claudian/sessions/<id>.meta.json` (`.inputs.json`, `.deleted.json`) hold a title and settings; their talk is Claude Code's
transcript outside the vault (`claude_code` reads it). The first versions kept the talk themselves, in
`.claude/sessions/<id>.jsonl`: a line `meta`, then a line `message` for each message. Tool calls in these are counted and left out.
Knows nothing about what the tools did and about the images (their names are kept).
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from vaultllm.chats.messages import left_out
from vaultllm.chats.times import from_epoch
from vaultllm.chats.turns import json_object, plain
from vaultllm.schema import Conversation, Note, Problem, Role, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_SESSION = re.compile(r"(?:^|/)\.claudian/sessions/[^/]+\.(?:meta|inputs|deleted)\.json$", re.IGNORECASE)
_META_NAME = re.compile(r"\.(?:meta|inputs|deleted)\.json$", re.IGNORECASE)
_ROLES: dict[object, Role] = {"user": "user", "assistant": "assistant"}
_MESSAGE = re.compile(r'^\s*\{\s*"type"\s*:\s*"message"', re.MULTILINE)


def meta_why(note: Note, settings: ScanSettings) -> str:
    """Why the file is one in which Claudian keeps what it knows about a talk, not the talk; empty when it is none."""
    named = _SESSION.search(note.path) is not None
    if not named and _META_NAME.search(note.path):
        named = '"sessionId"' in note.text and '"createdAt"' in note.text
    if named or (_session(note) is not None and not _MESSAGE.search(note.text)):
        return "a session of Claudian's (settings only; the talk is in ~/.claude/projects)"
    return ""


def read_none(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The conversations of a session's settings: none."""
    return []


def detect(note: Note, settings: ScanSettings) -> str:
    """`a session of Claudian's first versions`; empty when the file is none."""
    return "a session of Claudian's first versions" if _session(note) is not None else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of a session of the first versions. Times are UTC."""
    meta = _session(note) or {}
    turns: list[Turn] = []
    out: dict[str, list[int]] = {}
    broken: list[int] = []
    for number, line in enumerate(note.text.split("\n"), 1):
        record = json_object(line) if line.strip() else {}
        message = record.get("message") if record else None
        if record is None or (record.get("type") == "message" and not isinstance(message, dict)):
            broken.append(number)
            continue
        if record.get("type") != "message" or not isinstance(message, dict):
            continue
        turn, left = _turn(message, number)
        turns += [turn] if turn else []
        for code, count in left.items():
            out.setdefault(code, [number, 0])[1] += count
    problems = [left_out(code, line, count) for code, (line, count) in out.items()]
    if broken:
        what = f"{len(broken)} lines are no messages (cut off?); what was said there is lost, copy the file again"
        problems.append(Problem("E-MESSAGE", what, broken[0], len(broken)))
    seen = len(turns) + sum(problem.count for problem in problems)
    title = plain(meta.get("title")) or note.title
    span = (1, max(1, note.text.rstrip("\n").count("\n") + 1))
    created = _time(meta.get("createdAt"))
    return [Conversation(plain(meta.get("id")), title, "claudian", created, tuple(turns), span, problems=tuple(problems), seen=seen)]


def _turn(message: dict[str, Any], line: int) -> tuple[Turn | None, Counter[str]]:
    """A message as a turn (None when it says nothing), and what of it is left out."""
    calls, blocks, images = (message.get(key) for key in ("toolCalls", "contentBlocks", "images"))
    left: Counter[str] = Counter()
    left["W-TOOL"] += len(calls) if isinstance(calls, list) else 0
    for block in blocks if isinstance(blocks, list) else []:
        left["W-HIDDEN"] += isinstance(block, dict) and block.get("type") == "thinking"
    left += Counter()  # without zeros
    role = _ROLES.get(message.get("role")) if isinstance(message.get("role"), str) else None
    # What is shown is what was typed; `content` may hold the context that went with it.
    said = (plain(message.get("displayContent")) or plain(message.get("content"))).strip("\n").rstrip()
    if role is None or not said:
        return None, left or Counter({"W-EMPTY" if role else "W-SERVICE": 1})
    names = [plain(image.get("name")) for image in images if isinstance(image, dict)] if isinstance(images, list) else []
    note = plain(message.get("currentNote"))
    stamp = message.get("timestamp")
    return (
        Turn(
            role=role,
            text=said,
            lines=(line, line),
            author=str(message.get("role")),
            at=_time(stamp),
            at_raw="" if stamp is None else str(stamp)[:40],
            uid=plain(message.get("id")),
            attachments=tuple(dict.fromkeys(name for name in (note, *names) if name)),
        ),
        left,
    )


def _session(note: Note) -> dict[str, Any] | None:
    """The first line of a session of the first versions; None when the file is none."""
    if not note.path.lower().endswith(".jsonl"):
        return None
    first = note.text.lstrip()[:20_000].split("\n", 1)[0]
    data = json_object(first) if '"meta"' in first else None
    return data if data and data.get("type") == "meta" and "sessionId" in data else None


def _time(value: object) -> str:
    """Milliseconds since 1970 (seconds in the very first version) as ISO 8601."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e15:
        return ""
    return from_epoch(value / 1000 if value > 1e11 else value)
