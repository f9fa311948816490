"""Claude's data export: `conversations.json` with `chat_messages`. Times are UTC.

Messages stand in the order of the talk; where they name their parents, the talk is the branch of the last one. Left out and counted:
what the assistant thought, its tool calls and their results. A long paste, which the program turns into a nameless attachment, is
what the person said; a named file is a file. Knows nothing about other programs' exports.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vaultllm.chats.times import from_iso
from vaultllm.chats.turns import Node, arrange, conversation, listed, make_turn, mapping, name, no_conversation, raw_time, text
from vaultllm.schema import Conversation, Lines, Problem, Role, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_ROLES: dict[object, Role] = {"human": "user", "user": "user", "assistant": "assistant"}
_PASTED = ("", "paste.txt", "pasted-text.txt")
_PLACEHOLDER = "```\nThis block is not supported on your current device yet.\n```"


def takes(value: dict[str, Any]) -> bool:
    """Whether the object is a conversation of Claude."""
    return "chat_messages" in value


def read(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """The conversation: the talk with its variants, all on the lines of the whole."""
    messages = data.get("chat_messages")
    if not isinstance(messages, list):
        return no_conversation(lines, Problem("E-SHAPE", "'chat_messages' is not a list; the conversation is left out", lines[0]))
    left: Counter[str] = Counter()
    nodes: dict[str, Node] = {}
    last = ""
    for number, message in enumerate(messages):
        message = message if isinstance(message, dict) else {}
        key = name(message.get("uuid"))
        key = key if key and key not in nodes else f"{key}#{number}"
        parent = message.get("parent_message_uuid")
        # Without a parent it follows the message before it; with an unknown one (the export's nil UUID) it is a root.
        nodes[key] = Node(parent if isinstance(parent, str) and parent else last, _turn(message, lines, left), number)
        last = key
    current = data.get("current_leaf_message_uuid")
    current = current if isinstance(current, str) and current in nodes else last
    created = from_iso(data.get("created_at"))
    return conversation(data.get("uuid"), data.get("name"), "claude", created, lines, arrange(nodes, current), left)


def _turn(message: dict[str, Any], lines: Lines, left: Counter[str]) -> Turn | None:
    sender = message.get("sender")
    role = _ROLES.get(sender) if isinstance(sender, str) else None
    if role is None:
        left["E-MESSAGE"] += 1
        return None
    said, others = _text(message)
    files = [mapping(file) for file in (*listed(message.get("attachments")), *listed(message.get("files")))]
    pasted = [text(file.get("extracted_content")) for file in files if name(file.get("file_name")) in _PASTED]
    said = "\n\n".join(filter(None, [said, *pasted]))
    if not said:
        kinds = set(others)
        left["W-EMPTY" if not kinds else "W-HIDDEN" if kinds <= {"thinking", "redacted_thinking"} else "W-TOOL"] += 1
        return None
    left["W-BLOCKS"] += len(others)
    left["W-ATTACHMENT"] += sum(bool(text(file.get("extracted_content"))) for file in files) - sum(map(bool, pasted))
    created = message.get("created_at")
    return make_turn(
        role,
        said,
        lines,
        at=from_iso(created),
        at_raw=raw_time(created),
        uid=name(message.get("uuid")),
        attachments=tuple(dict.fromkeys(filter(None, (name(file.get("file_name")) for file in files)))),
    )


def _text(message: dict[str, Any]) -> tuple[str, list[str]]:
    """The text blocks, or, when there are none, `text` without its placeholders for tools; and the kinds of the other blocks."""
    blocks = [mapping(block) for block in listed(message.get("content"))]
    texts = [text(block.get("text")) for block in blocks if block.get("type") == "text"]
    others = [name(block.get("type")) for block in blocks if block.get("type") != "text"]
    said = "\n\n".join(filter(str.strip, texts))
    return said or text(text(message.get("text")).replace(_PLACEHOLDER, "")), others
