"""Le Chat's (Vibe's) export: `chat-<uuid>.json`, an array of messages in no order. Times are UTC.

References and tool calls inside an answer are left out and counted. The export names no title and no parents.
Knows nothing about other programs' exports.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from vaultllm.chats.turns import conversation, listed, make_turn, mapping, moment, name, raw_time
from vaultllm.schema import Conversation, Lines, Role, Turn

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}


@dataclass(slots=True)
class _Talk:
    turns: list[Turn] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)
    lines: list[int] = field(default_factory=list)


class Talks:
    """The messages of a file, gathered into talks."""

    def __init__(self) -> None:
        self._talks: dict[str, _Talk] = {}

    def add(self, message: dict[str, Any], lines: Lines) -> None:
        """Take one message in."""
        talk = self._talks.setdefault(name(message.get("chatId")), _Talk())
        talk.lines.extend(lines)
        role = _ROLES.get(name(message.get("role")).lower())
        chunks = [mapping(chunk) for chunk in listed(message.get("contentChunks"))]
        texts = [chunk["text"] for chunk in chunks if chunk.get("type") == "text" and isinstance(chunk.get("text"), str)]
        whole = message.get("content")
        said = "".join(texts) if any(map(str.strip, texts)) else whole if isinstance(whole, str) else ""
        others = len(chunks) - len(texts)
        if role is None:
            talk.left["W-TOOL" if message.get("role") in ("tool", "system") else "E-MESSAGE"] += 1
        elif others and not said.strip():
            talk.left["W-TOOL"] += 1
        else:
            talk.left["W-BLOCKS"] += others
            time = message.get("createdAt")
            files = tuple(filter(None, (name(mapping(file).get("name")) for file in listed(message.get("files")))))
            uid = name(message.get("id"))
            turn = make_turn(role, said, lines, at=moment(time), at_raw=raw_time(time), uid=uid, attachments=files)
            talk.turns.append(turn)

    def conversations(self) -> list[Conversation]:
        """The talks, their messages in the order of time (a question before the answer of the same moment)."""
        found = []
        for key, talk in self._talks.items():
            turns = sorted(talk.turns, key=lambda turn: (turn.at, turn.at_raw, turn.role != "user"))
            created = next((turn.at for turn in turns if turn.at), "")
            found.append(conversation(key, "", "lechat", created, (min(talk.lines), max(talk.lines)), turns, talk.left))
        return found


def takes(value: dict[str, Any]) -> bool:
    """Whether the object is a message of Le Chat."""
    return "chatId" in value and "role" in value and ("content" in value or "contentChunks" in value)
