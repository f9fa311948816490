"""A note of prose -> drafts of scenes: a section each, small neighbours joined, long ones cut at their blocks, rows or lines.

Knows nothing about talks.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from vaultllm import markdown, text
from vaultllm.drafts import HAS_WORD, Draft, visible
from vaultllm.schema import Block, Kind, Note, Turn

if TYPE_CHECKING:
    from vaultllm.config import SceneSettings

HUGE = 4  # a block of so many times `max_chars` is cut at its lines

_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-(\d\d)-(\d\d)(?!\d)")
_WORD_FIRST = re.compile(r"[^\w^%<]*+\w")  # a word before anything that may be hidden
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ \t]")


@dataclass(slots=True)
class _Section:
    """A heading path and blocks that stand under it, the headings themselves included."""

    path: tuple[str, ...]
    blocks: list[Block]
    size: int
    stretch: int
    """How many talks stand above it: what they part is not joined."""


def prose(note: Note, settings: SceneSettings, apart: Sequence[int] = ()) -> list[Draft]:
    """A draft per section, small neighbours joined, long ones cut; none goes on past a line of `apart` (ascending)."""
    rows = note.text.split("\n")
    date = _note_date(note)
    path = text.nfc(note.path)
    ordinals: dict[tuple[str, ...], int] = {}
    drafts: list[Draft] = []
    for group in _joined(_sections(note, rows, settings.max_chars, apart), settings):
        first = group[0]
        blocks = first.blocks if len(group) == 1 else [block for section in group for block in section.blocks]
        lines = (blocks[0].lines[0], blocks[-1].lines[1])
        said = visible("\n".join(rows[lines[0] - 1 : lines[1]]))
        bare = said.lstrip("\n")
        turn = Turn("user", bare.rstrip("\n"), lines, lines[0] + len(said) - len(bare))
        # Named by its first section alone: it keeps its name when a neighbour that was joined to it grows and leaves.
        ids = [block.block_id for block in blocks if block.block_id]
        own = next((block.block_id for block in first.blocks if block.block_id), "") if ids else ""
        key = ("block", path, own) if own else ("section", path, *first.path, str(ordinals.get(first.path, 0)))
        for section in group:
            ordinals[section.path] = ordinals.get(section.path, 0) + 1
        headings = _common([section.path for section in group])
        block_id = ids[0] if ids else ""
        drafts.append(Draft(key, _kind(blocks), note.title, headings, (turn,), lines, date, block=block_id, place=first.path))
    return drafts


def nodes(note: Note) -> Iterator[Draft]:
    """One draft per text node of a canvas: its text is a string of JSON there, so lines of the file say little."""
    date = _note_date(note)
    for ordinal, block in enumerate(note.blocks):
        said = visible(block.text).strip("\n")
        if HAS_WORD.search(said):
            key = ("block", text.nfc(note.path), block.block_id or str(ordinal))
            headings = (block.title,) if block.title else ()
            turn = Turn("user", said, block.lines)
            inner = markdown.parse(note.path, said.encode("utf-8", "replace"))
            links = tuple(dict.fromkeys(link.target for link in inner.links if link.target))
            yield Draft(key, _kind(inner.blocks), note.title, headings, (turn,), block.lines, date, block=block.block_id, links=links)


def _sections(note: Note, rows: list[str], longest: int, apart: Sequence[int]) -> list[_Section]:
    """The sections of a note or parts of them, in order; blocks that say nothing go with their neighbours."""
    path: list[tuple[int, str]] = []
    pending: list[Block] = []  # bare headings, comments and rules that wait for something to say
    section: list[Block] = []
    size = stretch = 0
    sections: list[_Section] = []

    def close() -> None:
        nonlocal section, size
        if section:
            sections.append(_Section(tuple([title for _, title in path]), section, size, stretch))
            section, size = [], 0

    def end() -> None:
        nonlocal pending
        close()
        if any(map(_speaks, pending)):  # headings with nothing under them still say something
            sections.append(_Section(tuple(title for _, title in path), pending, sum(len(block.text) for block in pending), stretch))
        elif sections and sections[-1].stretch == stretch:
            sections[-1].blocks.extend(pending)
        pending = []

    for whole in note.blocks:
        if apart and (above := bisect_left(apart, whole.lines[0])) != stretch:
            end()
            stretch = above
        if whole.kind == "heading":
            close()
            while path and path[-1][0] >= whole.level:
                path.pop()
            path.append((whole.level, whole.title))
            pending.append(whole)
        elif not _speaks(whole):
            (section or pending).append(whole)
        else:
            for block in (whole,) if len(whole.text) <= HUGE * longest else _parts_of(whole, rows, longest):
                length = len(block.text)
                if size and size + length > longest:
                    close()
                if pending:
                    section += pending
                    size += sum([len(one.text) for one in pending])
                    pending = []
                section.append(block)
                size += length
    end()
    return sections


def _speaks(block: Block) -> bool:
    """Whether a reader sees a word in it."""
    return _WORD_FIRST.match(block.text) is not None or HAS_WORD.search(visible(block.text)) is not None


def _parts_of(block: Block, rows: list[str], longest: int) -> Iterator[Block]:
    """A huge block in parts of its lines: a list at its items, a table at its rows, text at its lines; what has none, whole."""
    if block.kind not in ("paragraph", "list", "table", "quote", "callout"):
        yield block
        return
    start, size = block.lines[0], 0
    for number in range(block.lines[0], block.lines[1] + 1):
        row = rows[number - 1]
        full = size + len(row) > longest and number > start
        if full and (block.kind != "list" or _ITEM.match(row) or size > 2 * longest):
            yield Block(block.kind, (start, number - 1), "\n".join(rows[start - 1 : number - 1]))
            start, size = number, 0
        size += len(row) + 1
    yield replace(block, lines=(start, block.lines[1]), text="\n".join(rows[start - 1 : block.lines[1]]))


def _joined(sections: Sequence[_Section], settings: SceneSettings) -> Iterator[list[_Section]]:
    """Sections, the small ones with a neighbour: a sibling under the same heading, or what stands above its first child."""
    group: list[_Section] = []
    size = 0
    common: tuple[str, ...] = ()
    for section in sections:
        small = min(size, section.size) < settings.min_chars and size + section.size <= settings.max_chars
        small = small and not (group and group[-1].stretch != section.stretch)
        parent = section.path[:-1]
        if group and not (small and (parent == common[:-1] or parent[: len(common)] == common)):
            yield group
            group, size = [], 0
        common = _common([common, section.path]) if group else section.path
        group.append(section)
        size += section.size
    if group:
        yield group


def _common(paths: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The heading path that they have in common."""
    common = paths[0]
    for path in paths[1:]:
        while path[: len(common)] != common:
            common = common[:-1]
    return common


def _kind(blocks: Sequence[Block]) -> Kind:
    """What most of the characters are."""
    sizes: dict[Kind, int] = {"prose": 0, "list": 0, "table": 0, "code": 0}
    for block in blocks:
        if block.kind != "heading":
            sizes[block.kind if block.kind in ("list", "table", "code") else "prose"] += len(block.text)
    most = max(sizes, key=sizes.__getitem__)
    return most if sizes[most] > 0.6 * sum(sizes.values()) else "prose"


def _note_date(note: Note) -> str:
    """The note's own date: a property, else its file name; ISO or empty."""
    for key in ("date", "created", "create_time", "дата"):
        value = note.properties.get(key)
        found = _DATE.search(value) if isinstance(value, str) else None
        if found:
            return found[0]
    found = _DATE.search(note.path.rsplit("/", 1)[-1])
    return found[0] if found else ""
