"""Claude's data export: `conversations.json` with `chat_messages`, in the order of the talk. Times are UTC.

What the assistant thought, its tool calls and their results are left out. Knows nothing about other programs' exports.
"""

from __future__ import annotations

from typing import Any

from vaultllm.chats.exports import is_export, no_conversation, read_export, with_turns
from vaultllm.chats.times import from_iso
from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Lines, Note, Problem, Role, Turn

_ROLES: dict[object, Role] = {"human": "user", "user": "user", "assistant": "assistant"}


def detect(note: Note, settings: ScanSettings) -> str:
    """Why the file is a Claude export; empty when it is none."""
    return "a Claude export (chat_messages)" if is_export(note, "chat_messages") else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The conversations of the export; each turn's lines are those of its conversation."""
    return read_export(note, "chat_messages", _conversation)


def _conversation(data: dict[str, Any], lines: Lines) -> Conversation:
    messages = data["chat_messages"]
    if not isinstance(messages, list):
        return no_conversation(lines, Problem("E-SHAPE", "'chat_messages' is not a list; the conversation is left out", lines[0]))
    turns = [turn for message in messages if isinstance(message, dict) and (turn := _turn(message, lines))]
    return with_turns(str(data.get("uuid") or ""), str(data.get("name") or ""), "claude", from_iso(data.get("created_at")), lines, turns)


def _turn(message: dict[str, Any], lines: Lines) -> Turn | None:
    sender = message.get("sender")
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        return None
    created = message.get("created_at")
    return Turn(
        role=role,
        text=_text(message),
        lines=lines,
        at=from_iso(created),
        at_raw=str(created or ""),
        uid=str(message.get("uuid") or ""),
        attachments=tuple(dict.fromkeys(_names(message.get("attachments")) + _names(message.get("files")))),
    )


def _text(message: dict[str, Any]) -> str:
    """The text blocks; `text` (which also holds placeholders for tools) only when there are none."""
    blocks = message.get("content")
    blocks = [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []
    said = [block.get("text") for block in blocks if block.get("type") == "text"]
    texts = [text for text in said if isinstance(text, str) and text.strip()]
    whole = message.get("text")
    if not texts and isinstance(whole, str):
        texts = [whole]
    return "\n\n".join(text.strip("\n").rstrip() for text in texts).strip("\n").rstrip()


def _names(files: object) -> list[str]:
    return [str(file["file_name"]) for file in files if isinstance(file, dict) and file.get("file_name")] if isinstance(files, list) else []
