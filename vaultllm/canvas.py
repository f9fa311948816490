"""A `.canvas` file (JSON Canvas 1.0, jsoncanvas.org/spec/1.0) -> Note: one block per text card, links of cards and arrows.

Cards are read group by group, each from the top, then from the left, as one reads a board. What the format does not know
(colours, `chat_role` and other keys of plugins) is left alone, and nothing is ever written back. Knows nothing about
files and scenes; does not resolve links.
"""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any, NamedTuple

from vaultllm import markdown
from vaultllm.schema import Block, Lines, Link, Note, Problem
from vaultllm.text import decode, encodable

_KNOWN = frozenset({"text", "file", "link", "group"})
_MARKS = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{}]', re.S)
_MOST_GROUPS = 100  # each card is held against each group


class _Card(NamedTuple):
    """A node with what we read of it."""

    id: str
    """Its id; empty if it has none."""
    kind: str
    """`text`, `file`, `link`, `group`."""
    box: tuple[float, float, float, float]
    """x, y, width, height."""
    node: dict[str, Any]
    """As written."""
    lines: Lines
    """Where it stands in the file."""


def parse(path: str, data: bytes, fallback: str = "") -> Note:
    """A canvas as a Note. Never raises: E-JSON when it is no JSON, W-CANVAS (counted) for what is no node as the format has it.

    Blocks: one per text card that says something: `text` is the card's Markdown, `lines` where the card stands in the file,
    `title` the label of the smallest group around it, `block_id` its id. Links: those in cards, the files of file cards as
    embeds, and the arrows between text cards and file cards as links. The note's text is the file as it is. `fallback` is the
    encoding of files that are no UTF (`text.decode`).
    """
    text, encoding, problems = decode(data, fallback)
    cards, edges, found = _read(text) if text.strip() else ([], [], ())
    groups = [card for card in cards if card.kind == "group"]
    if len(groups) > _MOST_GROUPS:
        message = f"more than {_MOST_GROUPS} groups; the cards of the others are read as if they were in none"
        found = (*found, Problem("W-CANVAS", message, groups[_MOST_GROUPS].lines[0], len(groups) - _MOST_GROUPS))
    holders = {index: _holder(card, groups[:_MOST_GROUPS]) for index, card in enumerate(cards)}
    order = sorted(range(len(cards)), key=lambda index: _place(cards[index], holders[index]))
    blocks: list[Block] = []
    links: list[Link] = []
    tags: dict[str, str] = {}
    starts = {card.id: card for card in cards if card.id and card.kind == "text"}
    ends = {card.id: card for card in cards if card.id and card.kind == "file"}
    for index in order:
        card = cards[index]
        if card.kind == "file":
            links.append(_file_link(card, True, card.lines[0]))
        elif card.kind == "text" and (said := encodable(card.node["text"])).strip():
            group = holders[index]
            label = str(group.node.get("label") or "").strip() if group else ""
            blocks.append(Block("paragraph", card.lines, said, title=encodable(label), block_id=card.id))
            inner = markdown.parse(path, said.encode())
            links += (Link(one.target, one.heading, one.block, one.alias, one.embed, card.lines[0]) for one in inner.links)
            for tag in inner.tags:
                tags.setdefault(tag.casefold(), tag)
    for edge in edges:
        one, other = edge.get("fromNode"), edge.get("toNode")
        for start, end in ((one, other), (other, one)):
            if isinstance(start, str) and isinstance(end, str) and start in starts and end in ends:
                links.append(_file_link(ends[end], False, starts[start].lines[0]))
    title, sha256 = PurePosixPath(path).stem, hashlib.sha256(data).hexdigest()
    return Note(path, title, text, 1, {}, tuple(blocks), tuple(links), tuple(tags.values()), sha256, encoding, (*problems, *found))


def _read(text: str) -> tuple[list[_Card], list[dict[str, Any]], tuple[Problem, ...]]:
    """Nodes, edges, and what was wrong."""
    try:
        board = json.loads(text)
    except RecursionError:
        return [], [], (Problem("E-JSON", "the canvas is nested too deeply to be read; nothing of it is kept; restore it", 1),)
    except ValueError as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        return [], [], (Problem("E-JSON", f"the canvas is no JSON ({why}); nothing of it can be read; restore it from a backup", line),)
    nodes, edges = (board.get(name, []) for name in ("nodes", "edges")) if isinstance(board, dict) else (board, [])
    if not isinstance(board, dict) or not isinstance(nodes, list) or not isinstance(edges, list):
        return [], [], (Problem("W-CANVAS", "the file holds no `nodes` and `edges` of a canvas; it is left out", 1),)
    places = iter(_places(text))
    cards: list[_Card] = []
    odd: list[int] = []
    for node in nodes:
        lines = next(places, (1, 1)) if isinstance(node, (dict, list)) else (1, 1)
        card = _card(node, lines)
        if card is None:
            odd.append(lines[0])
        else:
            cards.append(card)
    known = [edge for edge in edges if isinstance(edge, dict)]
    wrong = len(odd) + len(edges) - len(known)
    message = "nodes or edges of the canvas are not as the format has them (a node needs a type and its text or file); they are left out"
    return cards, known, (Problem("W-CANVAS", message, odd[0] if odd else 1, wrong),) if wrong else ()


def _card(node: Any, lines: Lines) -> _Card | None:
    """A node as a card; None when it is none. Places that are no numbers count as 0."""
    if not isinstance(node, dict) or node.get("type") not in _KNOWN:
        return None
    kind = str(node["type"])
    if kind in ("text", "file") and not isinstance(node.get(kind), str):
        return None
    x, y, width, height = (_number(node.get(name)) for name in ("x", "y", "width", "height"))
    name = node.get("id")
    return _Card(encodable(name) if isinstance(name, str) else "", kind, (x, y, width, height), node, lines)


def _number(value: Any) -> float:
    if not isinstance(value, (int, float)) or isinstance(value, bool) or not -1e15 < value < 1e15:  # NaN is outside too
        return 0.0
    return float(value)


def _holder(card: _Card, groups: list[_Card]) -> _Card | None:
    """The smallest group that a card's middle lies in."""
    if card.kind == "group":
        return None
    x, y = card.box[0] + card.box[2] / 2, card.box[1] + card.box[3] / 2
    around = [one for one in groups if one.box[0] <= x <= one.box[0] + one.box[2] and one.box[1] <= y <= one.box[1] + one.box[3]]
    return min(around, key=lambda one: one.box[2] * one.box[3], default=None)


def _place(card: _Card, holder: _Card | None) -> tuple[float, ...]:
    """Where a card is read: the cards of groups first, group by group."""
    x, y, *_ = card.box
    return (0, holder.box[1], holder.box[0], y, x) if holder else (1, y, x)


def _file_link(card: _Card, embed: bool, line: int) -> Link:
    subpath = card.node.get("subpath")
    parts = [part.strip() for part in subpath.split("#") if part.strip()] if isinstance(subpath, str) else []
    block = parts.pop()[1:].strip() if parts and parts[-1].startswith("^") else ""
    return Link(encodable(card.node["file"]), encodable("#".join(parts)), encodable(block), "", embed, line)


def _places(text: str) -> list[Lines]:
    """The lines of each element of `nodes` that is an object or a list, in order; the text is known to be JSON."""
    found: list[Lines] = []
    depth, inside, start, line, at = 0, False, 0, 1, 0
    for match in _MARKS.finditer(text):
        line += text.count("\n", at, match.start())
        at = match.start()
        mark = match[0]
        if mark in "[{":
            if inside and depth == 2:
                start = line
            depth += 1
        elif mark in "]}":
            depth -= 1
            if inside and depth == 2:
                found.append((start, line))
        elif depth == 1 and _is_key(text, match.end()):
            inside = json.loads(mark) == "nodes"
            if inside:  # of equal keys the last one counts, as it does for the reader of the JSON
                found = []
    return found


def _is_key(text: str, at: int) -> bool:
    while at < len(text) and text[at] in " \t\n\r":
        at += 1
    return text[at : at + 1] == ":"
