"""Open WebUI's export: a list of chats, each a tree of messages of which `currentId` is the last one of the talk.

Thoughts, tool calls and code runs, which it folds into `<details type="…">`, are left out and counted. Times are UTC.
Knows nothing about other programs' exports.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vaultllm.chats.turns import (
    Node,
    arrange,
    conversation,
    listed,
    make_turn,
    mapping,
    moment,
    name,
    newest_leaf,
    no_end,
    raw_time,
    seconds,
    spoken,
    without,
)
from vaultllm.schema import Conversation, Lines, Problem, Role, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant", "system": "system"}
_FOLDED = ("reasoning", "tool_calls", "code_interpreter")


def takes(value: dict[str, Any]) -> bool:
    """Whether the object is a chat of Open WebUI."""
    inner = mapping(value.get("chat")) or value
    return "messages" in mapping(inner.get("history")) or ("chat" in value and isinstance(inner.get("messages"), list))


def read(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """The conversation: the talk with its variants, all on the lines of the whole."""
    inner = mapping(data.get("chat")) or data
    history = mapping(inner.get("history"))
    tree = mapping(history.get("messages"))
    left: Counter[str] = Counter()
    nodes: dict[str, Node] = {}
    problems: list[Problem] = []
    if tree:
        for key, message in tree.items():
            parent = mapping(message).get("parentId")
            nodes[key] = Node(parent if isinstance(parent, str) else "", _turn(key, message, lines, left), _time(message))
        current = history.get("currentId")
        if not isinstance(current, str) or current not in nodes:
            current = newest_leaf(nodes)
            problems.append(no_end(lines))
    else:
        current = ""
        for place, message in enumerate(listed(inner.get("messages"))):
            nodes[str(place)] = Node(current, _turn("", message, lines, left), place)
            current = str(place)
    title = name(data.get("title")) or name(inner.get("title"))
    created = moment(data.get("created_at") or inner.get("timestamp"))
    return conversation(data.get("id") or inner.get("id"), title, "openwebui", created, lines, arrange(nodes, current), left, *problems)


def _time(message: object) -> float:
    return seconds(mapping(message).get("timestamp"))


def _turn(key: str, message: object, lines: Lines, left: Counter[str]) -> Turn | None:
    data = mapping(message)
    role = _ROLES.get(name(data.get("role")))
    if role is None:
        left["W-TOOL" if data.get("role") == "tool" else "E-MESSAGE"] += 1
        return None
    said, others = spoken(data.get("content"))
    folded = 0
    for kind in _FOLDED:
        said, cut = without(said, f'<details type="{kind}"', "</details>")
        folded += cut
    if folded and not said.strip():
        left["W-HIDDEN"] += 1
        return None
    left["W-BLOCKS"] += folded + others
    time = data.get("timestamp")
    return make_turn(
        role,
        said.lstrip("\n") if folded else said,
        lines,
        model=name(data.get("model")) if role == "assistant" else "",
        at=moment(time),
        at_raw=raw_time(time),
        uid=name(data.get("id")) or name(key),
        attachments=tuple(filter(None, (name(mapping(file).get("name")) for file in listed(data.get("files"))))),
    )
