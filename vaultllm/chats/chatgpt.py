"""ChatGPT's data export: `conversations.json`, since 2026 `conversations-000.json` and on.

Each conversation is a tree. The talk is the way from `current_node` up to the root; answers that were regenerated and questions
that were edited are variants of it (the export does not say which was better). Times are UTC. Kept is what people saw as words:
text, the words of voice messages, canvas blocks (`:::writing`). Knows nothing about Markdown and about other programs' exports.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

from vaultllm.chats.times import from_epoch
from vaultllm.chats.turns import (
    Node,
    arrange,
    conversation,
    listed,
    make_turn,
    mapping,
    name,
    newest_leaf,
    no_conversation,
    no_end,
    raw_time,
    seconds,
)
from vaultllm.schema import Conversation, Lines, Problem, Role, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

# Invisible marks around what the program draws: ⟦kind⟧ U+E202 ⟦argument⟧ … between U+E200 and U+E201.
_SPAN = re.compile("\ue200([^\ue200\ue201]*)\ue201")
_MARKS = re.compile("[\ue200-\ue2ff]")
_SAID = ("text", "multimodal_text")
_UNSEEN = ("thoughts", "reasoning_recap", "user_editable_context", "model_editable_context")
_ROLES: dict[str, Role] = {"user": "user", "assistant": "assistant"}


def takes(value: dict[str, Any]) -> bool:
    """Whether the object is a conversation of ChatGPT."""
    return "mapping" in value


def read(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """The conversation: the talk with its variants, all on the lines of the whole."""
    tree = data.get("mapping")
    if not isinstance(tree, dict):
        return no_conversation(lines, Problem("E-SHAPE", "'mapping' is not an object; the conversation is left out", lines[0]))
    left: Counter[str] = Counter()
    parents = _parents(tree)
    nodes: dict[str, Node] = {}
    for key, node in tree.items():
        message = mapping(node).get("message")
        turn: Turn | None = None
        if message is not None:
            turn = _turn(key, message, lines, left)
        elif node is not None and not isinstance(node, dict):
            left["E-MESSAGE"] += 1
        nodes[key] = Node(parents.get(key, ""), turn, seconds(mapping(message).get("create_time")))
    current = data.get("current_node")
    problems: list[Problem] = []
    named = [(key, mapping(node).get("parent")) for key, node in tree.items()]
    if lost := sum(isinstance(parent, str) and bool(parent) and key not in parents for key, parent in named):
        why = f"{lost} messages follow one that the export does not hold; what stands before them is taken for another branch"
        problems.append(Problem("W-TREE", why, lines[0], lost))
    if not isinstance(current, str) or current not in nodes:
        current = newest_leaf(nodes)
        if nodes:
            problems.append(no_end(lines))
    identity = name(data.get("conversation_id")) or name(data.get("id"))
    turns = arrange(nodes, current)
    return conversation(identity, data.get("title"), "chatgpt", from_epoch(data.get("create_time")), lines, turns, left, *problems)


def _parents(tree: dict[str, Any]) -> dict[str, str]:
    """Name of the parent of each node that has one; where that is missing, the node that counts it among its children."""
    parents: dict[str, str] = {}
    for key, node in tree.items():
        for child in listed(mapping(node).get("children")):
            if isinstance(child, str) and child in tree:
                parents.setdefault(child, key)
    for key, node in tree.items():
        parent = mapping(node).get("parent")
        if isinstance(parent, str) and parent in tree:
            parents[key] = parent
    return parents


def _turn(key: str, message: Any, lines: Lines, left: Counter[str]) -> Turn | None:
    """The message, if it is something that a person or the assistant said and that was shown; else it is counted."""
    author, content, metadata = (mapping(mapping(message).get(part)) for part in ("author", "content", "metadata"))
    speaker = author.get("role")
    kind = content.get("content_type")
    hidden = metadata.get("is_visually_hidden_from_conversation") or metadata.get("is_user_system_message")
    if not isinstance(message, dict) or not isinstance(speaker, str):
        left["E-MESSAGE"] += 1
    elif hidden or speaker in ("system", "developer") or kind in _UNSEEN or message.get("channel") == "analysis":
        left["W-HIDDEN"] += 1
    elif speaker == "tool" or message.get("recipient") not in ("all", None, "") or (kind is not None and kind not in _SAID):
        left["W-TOOL"] += 1
    elif speaker not in _ROLES:
        left["E-MESSAGE"] += 1
    else:
        said = _text(content)
        if said.strip():
            time = message.get("create_time")
            names = [name(mapping(file).get("name")) for file in listed(metadata.get("attachments"))]
            return make_turn(
                _ROLES[speaker],
                said,
                lines,
                model=name(metadata.get("model_slug")) if speaker == "assistant" else "",
                at=from_epoch(time),
                at_raw=raw_time(time),
                uid=name(message.get("id")) or name(key),
                attachments=tuple(dict.fromkeys(filter(None, names))),
            )
        left["W-EMPTY"] += 1
    return None


def _text(content: dict[str, Any]) -> str:
    """What the parts say (strings, the words of voice messages), without citation marks."""
    said: list[str] = []
    parts = content.get("parts")
    for part in parts if isinstance(parts, list) else [content.get("text")]:
        if isinstance(part, dict):
            part = part.get("text")
        if isinstance(part, str):
            said.append(_MARKS.sub("", _SPAN.sub(_spoken, part)))
    return "\n".join(filter(str.strip, said))


def _spoken(span: re.Match[str]) -> str:
    """The visible words of a marked span: the name of an entity, the title of a link; nothing for citations."""
    kind, _, rest = span[1].partition("\ue202")
    if kind == "url":
        return rest.partition("\ue202")[0]
    if kind == "entity":
        try:
            values = json.loads(rest)
        except (ValueError, RecursionError):
            return ""
        return str(values[1]) if isinstance(values, list) and len(values) > 1 and isinstance(values[1], str) else ""
    return ""
