"""Grok's export: `prod-grok-backend.json`, conversations of responses. Times are UTC.

Where responses name their parents the talk is the branch of the newest one; else they stand in the order of time. Cards
(`<grok:render>`) are left out, the text of artifacts is kept. Generated images without a talk (Imagine) are not read.
Knows nothing about other programs' exports.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from vaultllm.chats.turns import Node, arrange, conversation, listed, make_turn, mapping, moment, name, no_conversation, raw_time, without
from vaultllm.schema import Conversation, Lines, Problem, Role, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_ROLES: dict[str, Role] = {"human": "user", "user": "user", "assistant": "assistant"}
_ARTIFACT = re.compile(r"</?xaiArtifact\b[^<>]{0,2000}>")


def takes(value: dict[str, Any]) -> bool:
    """Whether the object is a conversation of Grok."""
    return "responses" in value and isinstance(value.get("conversation"), dict)


def read(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """The conversation: the talk with its variants, all on the lines of the whole."""
    head, responses = mapping(data.get("conversation")), data.get("responses")
    if not isinstance(responses, list):
        return no_conversation(lines, Problem("E-SHAPE", "'responses' is not a list; the conversation is left out", lines[0]))
    left: Counter[str] = Counter()
    said: list[tuple[int, bool, int, str, str, Turn | None]] = []  # time, not a question, place, name, parent, turn
    for place, entry in enumerate(responses):
        response = mapping(mapping(entry).get("response", entry))
        turn = _turn(response, lines, left)
        parent = name(response.get("parent_response_id"))
        said.append(
            (
                _milliseconds(response.get("create_time")),
                turn is None or turn.role != "user",
                place,
                name(response.get("_id")),
                parent,
                turn,
            )
        )
    said.sort(key=lambda one: one[:3])
    names = {one[3] for one in said}
    tree = any(one[4] in names for one in said if one[4])
    nodes: dict[str, Node] = {}
    last = ""
    for time, _, place, key, parent, turn in said:
        key = key if key and key not in nodes else f"{key}#{place}"
        nodes[key] = Node(parent if tree and parent else "" if tree else last, turn, time / 1000)
        last = key
    created = moment(head.get("create_time"))
    return conversation(head.get("id"), head.get("title"), "grok", created, lines, arrange(nodes, last), left)


def _turn(response: dict[str, Any], lines: Lines, left: Counter[str]) -> Turn | None:
    role = _ROLES.get(name(response.get("sender")).lower())
    if role is None:
        left["E-MESSAGE"] += 1
        return None
    said = response.get("message")
    said, cards = without(said, "<grok:render", "</grok:render>") if isinstance(said, str) else ("", 0)
    left["W-BLOCKS"] += cards
    time = response.get("create_time")
    return make_turn(
        role,
        _ARTIFACT.sub("", said),
        lines,
        model=name(response.get("model")) if role == "assistant" else "",
        at=moment(time),
        at_raw=raw_time(time),
        uid=name(response.get("_id")),
        attachments=tuple(filter(None, map(name, listed(response.get("file_attachments"))))),
    )


def _milliseconds(time: object) -> int:
    """Milliseconds to sort by, from MongoDB's date; 0 for anything else."""
    value = mapping(mapping(time).get("$date")).get("$numberLong") if isinstance(time, dict) else None
    return int(value) if isinstance(value, str) and value.isdecimal() and value.isascii() and len(value) < 20 else 0
