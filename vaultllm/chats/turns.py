"""What the readers of exports share: values of any type as text and times, the account of messages, trees of branches.

Exports are read as hostile: a field may hold anything. Knows nothing about any program's fields.
"""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from vaultllm.chats.times import Clock, from_epoch, from_iso, read_time
from vaultllm.schema import Conversation, Lines, Problem, Role, Turn
from vaultllm.text import encodable

_WHY = {
    "W-EMPTY": "messages have no text (files or images only); they are left out",
    "W-HIDDEN": "messages were not shown in the talk (instructions, thoughts, what is hidden); they are left out",
    "W-TOOL": "messages are calls of tools or their results; they are left out",
    "W-SERVICE": "service messages (calls, joins, pins) are nobody's words; they are left out",
    "E-MESSAGE": "messages have no known shape or speaker; they are left out, look at the export there",
    "W-BLOCKS": "parts of messages (thoughts, tools) are left out; the messages' text is kept",
    "W-ATTACHMENT": "attached files have a text of their own that is not part of the talk; put the file into the vault if it matters",
}
_UNZONED = Clock({}, None)


@dataclass(frozen=True, slots=True)
class Node:
    """One message of a tree."""

    parent: str
    """Name of the node that it follows; empty for a root."""
    turn: Turn | None
    """None when it is left out; one without text is left out too."""
    time: float = 0.0
    """Seconds; orders siblings, 0 when unknown."""


def mapping(value: object) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def listed(value: object) -> list[Any]:
    """The value if it is an array, else an empty one."""
    return value if isinstance(value, list) else []


def json_object(line: str) -> dict[str, Any] | None:
    """The JSON object that a line holds; None when it is none."""
    try:
        value = json.loads(line, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def plain(value: object) -> str:
    """A string as it stands, half emoji apart; empty for anything else."""
    return encodable(value) if isinstance(value, str) else ""


def text(value: object) -> str:
    """A string's text without NUL and half emoji, newlines as `\\n`, no blank lines around; empty for anything else."""
    if not isinstance(value, str):
        return ""
    if "\r" in value or "\0" in value:
        value = value.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "")
    return (value if value.isascii() else encodable(value)).strip("\n").rstrip()


def name(value: object) -> str:
    """An id, a name or a title on one line; whole numbers are ids too; empty for anything else."""
    if isinstance(value, bool):
        return ""
    if isinstance(value, int):
        return str(value) if abs(value) < 1 << 64 else ""
    if isinstance(value, str) and value.isascii() and value.isprintable() and "  " not in value:
        return value.strip()  # the short way for nearly all of them
    return " ".join(text(value).split())


def moment(value: object) -> str:
    """A time as exports write it (ISO, seconds or milliseconds since 1970, MongoDB's `$date`) as ISO 8601; empty if it is none."""
    if isinstance(value, dict):
        value = value.get("$date")
        if isinstance(value, dict):
            value = value.get("$numberLong")
    if isinstance(value, str):
        if value.isdecimal() and value.isascii() and len(value) < 20:
            value = int(value)
        else:
            return from_iso(value) or read_time(value, _UNZONED)
    if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 1e11:
        value = value / 1000 if value < 1e18 else 0
    return from_epoch(value)


def raw_time(value: object) -> str:
    """A time as it was written, for a better reader."""
    if value is None or isinstance(value, bool):
        return ""
    if isinstance(value, dict):
        inner = value.get("$date")
        return raw_time(inner.get("$numberLong") if isinstance(inner, dict) else inner)
    return str(value) if isinstance(value, float) else name(value)


def seconds(value: object) -> float:
    """A number of seconds to sort by; 0 for anything else."""
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e12 else 0.0


def make_turn(role: Role, said: str, lines: Lines, **more: Any) -> Turn:
    """A turn whose text is cleaned."""
    return Turn(role, text(said), lines, **more)


def account(left: Mapping[str, int], line: int) -> tuple[Problem, ...]:
    """One problem for each reason for which something is left out, with how many."""
    return tuple(Problem(code, f"{count} {_WHY[code]}", line, count) for code, count in sorted(left.items()) if count)


def conversation(
    id: object, title: object, provider: str, created: str, lines: Lines, turns: Iterable[Turn], left: Counter[str], *problems: Problem
) -> Conversation:
    """A conversation of the turns that have a text; the others are counted, as is what the reader left out (`left`)."""
    every = tuple(turns)
    kept = tuple(turn for turn in every if turn.text)
    left = left + Counter({"W-EMPTY": len(every) - len(kept)})
    seen = len(kept) + sum(count for code, count in left.items() if code not in ("W-BLOCKS", "W-ATTACHMENT"))
    return Conversation(name(id), name(title), provider, created, kept, lines, (), (*account(left, lines[0]), *problems), seen)


def no_conversation(lines: Lines, problem: Problem) -> Conversation:
    """A conversation that could not be read: it carries its problem."""
    return Conversation("", "", "", "", (), lines, problems=(problem,))


def no_end(lines: Lines) -> Problem:
    """The problem of a tree without a current message."""
    return Problem("W-TREE", "the export does not say where this talk stands; its newest message is taken for the last one", lines[0])


def arrange(nodes: Mapping[str, Node], current: str) -> list[Turn]:
    """The turns of a tree: the talk (from a root to `current`), each abandoned branch right before the turn at which it parted.

    Turns of abandoned branches carry `variant_of`; each turn carries the UID of the nearest kept one above it. Circles, missing
    parents and several roots are borne: what does not hang together with the talk is an abandoned branch from its beginning.
    When nothing on the way to `current` has a text, the talk is the one that ends with the newest message that has.
    """
    order = {name: number for number, name in enumerate(nodes)}

    def age(name: str) -> tuple[float, int]:
        return nodes[name].time, order[name]

    def is_kept(name: str) -> bool:
        turn = nodes[name].turn
        return turn is not None and bool(turn.text)

    path = _way_up(nodes, current)
    if not any(map(is_kept, path)):
        path = _way_up(nodes, max(filter(is_kept, nodes), key=age, default=current))
    below: dict[str, list[str]] = {}
    for key, node in nodes.items():
        below.setdefault(node.parent if node.parent in nodes else "", []).append(key)
    for children in below.values():
        children.sort(key=age)
    found: list[Turn] = []
    waiting: list[tuple[Turn, str]] = []  # of abandoned branches, with their parents
    done = set(path)
    last = ""

    def branch(start: str, above: str) -> None:
        """What hangs at `start`, depth first, the older sibling first."""
        stack = [(start, above)]
        while stack:
            key, parent = stack.pop()
            if key in done:
                continue
            done.add(key)
            turn = nodes[key].turn
            if turn is not None and turn.text:
                waiting.append((turn, parent))
                parent = turn.uid
            stack.extend((child, parent) for child in reversed(below.get(key, ())))

    def release(turn: Turn) -> None:
        instead = turn.uid or f"line {turn.lines[0]}"
        found.extend(dataclasses.replace(one, parent=parent, variant_of=instead) for one, parent in waiting)
        waiting.clear()

    for start in below.get("", ()):
        branch(start, "")
    for key in sorted(nodes.keys() - done - _reached(below, path), key=age):
        branch(key, "")  # circles
    for place, key in enumerate(path):
        turn = nodes[key].turn
        if turn is not None and turn.text:
            release(turn)
            found.append(dataclasses.replace(turn, parent=last))
            last = turn.uid
        for child in below.get(key, ()):
            if place + 1 == len(path) or child != path[place + 1]:
                branch(child, last)
    if talk := [turn for turn in found if not turn.variant_of]:
        release(talk[-1])
    return found


def newest_leaf(nodes: Mapping[str, Node]) -> str:
    """Name of the newest message that nobody follows (the last one, where times are unknown or equal); empty when there is none."""
    followed = {node.parent for node in nodes.values()}
    leaves = [(node.time, place, name) for place, (name, node) in enumerate(nodes.items()) if name not in followed]
    return max(leaves, default=(0.0, 0, ""))[2]


def _way_up(nodes: Mapping[str, Node], current: str) -> list[str]:
    """Names from a root down to `current`."""
    path: dict[str, None] = {}
    while current in nodes and current not in path:
        path[current] = None
        current = nodes[current].parent
    return list(path)[::-1]


def _reached(below: Mapping[str, list[str]], path: list[str]) -> set[str]:
    """All names on the path and below it."""
    reached = set(path)
    stack = list(path)
    while stack:
        for child in below.get(stack.pop(), ()):
            if child not in reached:
                reached.add(child)
                stack.append(child)
    return reached


def without(said: str, opening: str, closing: str) -> tuple[str, int]:
    """The text without what stands between two marks, marks included, and how many were cut; an unclosed one runs to the end."""
    parts: list[str] = []
    place = cut = 0
    while (start := said.find(opening, place)) >= 0:
        parts.append(said[place:start])
        end = said.find(closing, start)
        place = end + len(closing) if end >= 0 else len(said)
        cut += 1
    return "".join((*parts, said[place:])), cut


def spoken(content: object) -> tuple[str, int]:
    """What a message's content says: a string, or the texts of its parts; and how many parts are none (images, calls)."""
    if isinstance(content, str):
        return content, 0
    parts = listed(content)
    texts = [part if isinstance(part, str) else mapping(part).get("text") for part in parts]
    said = [one for one in texts if isinstance(one, str)]
    return "\n".join(filter(str.strip, said)), len(parts) - len(said)
