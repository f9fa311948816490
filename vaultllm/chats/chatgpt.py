"""ChatGPT's data export: `conversations.json`, since 2026 `conversations-000.json` and on.

Each conversation is a tree; the talk is the way from `current_node` up to the root, so answers that were regenerated and
questions that were edited are left out (the export does not say which of them were better). Times are UTC.
Knows nothing about Markdown and about other programs' exports.
"""

from __future__ import annotations

import re
from typing import Any

from vaultllm.chats.exports import is_export, no_conversation, read_export, with_turns
from vaultllm.chats.times import from_epoch
from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Lines, Note, Problem, Role, Turn

_CITATION = re.compile("\ue200[^\ue200\ue201]*\ue201")
_MARKS = re.compile("[\ue200-\ue2ff]")
_SAID = ("text", "multimodal_text")


def detect(note: Note, settings: ScanSettings) -> str:
    """Why the file is a ChatGPT export; empty when it is none."""
    return "a ChatGPT export (mapping)" if is_export(note, "mapping") and '"author"' in note.text else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The conversations of the export; each turn's lines are those of its conversation."""
    return read_export(note, "mapping", _conversation)


def _conversation(data: dict[str, Any], lines: Lines) -> Conversation:
    mapping = data["mapping"]
    if not isinstance(mapping, dict):
        return no_conversation(lines, Problem("E-SHAPE", "'mapping' is not an object; the conversation is left out", lines[0]))
    turns = [turn for name in _path(mapping, data.get("current_node")) if (turn := _turn(name, mapping[name], lines))]
    identity = data.get("conversation_id") or data.get("id") or ""
    return with_turns(str(identity), str(data.get("title") or ""), "chatgpt", from_epoch(data.get("create_time")), lines, turns)


def _path(mapping: dict[str, Any], current: object) -> list[str]:
    """Node names from the root to the current node; without one, to the newest leaf."""
    if not isinstance(current, str) or current not in mapping:
        leaves = [name for name, node in mapping.items() if isinstance(node, dict) and not node.get("children")]
        current = max(leaves, key=lambda name: _time(mapping[name]), default=None)
    path: list[str] = []
    seen: set[str] = set()
    while isinstance(current, str) and current not in seen and isinstance(mapping.get(current), dict):
        seen.add(current)
        path.append(current)
        current = mapping[current].get("parent")
    return path[::-1]


def _time(node: dict[str, Any]) -> float:
    message = node.get("message")
    time = message.get("create_time") if isinstance(message, dict) else None
    return float(time) if isinstance(time, (int, float)) and abs(time) < 1e12 else 0.0


def _turn(name: str, node: dict[str, Any], lines: Lines) -> Turn | None:
    """The node's message, if it is something that a person or the assistant said and that was shown."""
    message = node.get("message")
    if not isinstance(message, dict):
        return None
    author, content, metadata = (_object(message.get(key)) for key in ("author", "content", "metadata"))
    role: Role
    if author.get("role") == "user":
        role = "user"
    elif author.get("role") == "assistant":
        role = "assistant"
    else:
        return None
    hidden = metadata.get("is_visually_hidden_from_conversation") or metadata.get("is_user_system_message")
    aside = message.get("recipient") not in ("all", None, "") or message.get("channel") == "analysis"
    if hidden or aside or content.get("content_type") not in _SAID:
        return None
    time = message.get("create_time")
    files = metadata.get("attachments")
    names = [_object(file).get("name") for file in files] if isinstance(files, list) else []
    return Turn(
        role=role,
        text=_text(content.get("parts")),
        lines=lines,
        model=str(metadata.get("model_slug") or "") if role == "assistant" else "",
        at=from_epoch(time),
        at_raw="" if time is None else str(time),
        uid=str(message.get("id") or name),
        attachments=tuple(str(name) for name in names if name),
    )


def _object(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(parts: object) -> str:
    """What the parts say: strings and the words of voice messages, without citation marks."""
    said: list[str] = []
    for part in parts if isinstance(parts, list) else []:
        if isinstance(part, dict) and part.get("content_type") == "audio_transcription":
            part = part.get("text")
        if isinstance(part, str):
            said.append(_MARKS.sub("", _CITATION.sub("", part)))
    return "\n".join(filter(str.strip, said)).strip("\n").rstrip()
