"""Obsidian-flavoured Markdown: text -> Note (blocks with their lines, links, tags, properties).

Blocks come from `blocks.py`; code, comments, links and tags from scanners over the raw text, because the inline tokens of
Markdown parsers carry no positions. Every scanner is linear, and runs only where its marks are. Pure: knows nothing
about files, chats or scenes, and does not resolve links.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from itertools import pairwise
from operator import itemgetter
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from vaultllm import blocks as structure
from vaultllm.blocks import Piece
from vaultllm.mojibake import mend
from vaultllm.properties import FrontMatter, front_matter
from vaultllm.schema import Block, Link, Note, Problem
from vaultllm.stretches import Span, filled, for_blocks, mask, stretches, visible
from vaultllm.text import decode, fold

__all__ = ["FrontMatter", "front_matter", "inlines", "link_heading", "mask", "parse", "plain_note", "visible"]

_CALLOUT = re.compile(r"[ \t]*>[ \t]*\[!([^\]]+)\]([+-]?)[ \t]*(.*)")
_FOOTNOTE = re.compile(r" {0,3}\[\^[^\]\s]+\]:")
_BLOCK_ID = re.compile(r"(?:^|[ \t]+)\^([A-Za-z0-9-]+)[ \t]*$")
_LONE_ID = re.compile(r"[ \t]*\^([A-Za-z0-9-]+)[ \t]*")


_WIKI = r"\[\[(?!\[)(?P<wiki>(?:[^\[\]\n]|\](?!\])|\[(?!\[)){1,2000}+)\]\]"
_INLINE = (
    r"\[(?P<text>(?:[^\[\]\\\n]|\\.|\[[^\[\]\n]{0,300}\]){0,1000}+)\]"
    r"\([ \t]*(?:<(?P<angle>[^<>\n]*)>|(?P<dest>(?:[^\s()<>\\]|\\.|\([^\s()]{0,300}\)){1,2000}+))"
    r"(?:[ \t]+(?:\"[^\"\n]*\"|'[^'\n]*'))?[ \t]*\)"
)
# Everything that cannot be in a tag: general and supplemental punctuation (not the joiners ZWNJ and ZWJ), CJK marks, ASCII marks.
_NO_TAG = r"\u2000-\u200b\u200e-\u206f\u2e00-\u2e7f\u3000-\u3003'!\"#$%&()*+,.:;<=>?@^`{|}~\[\]\\\s«»।॥，；：？！"
_TAG = rf"#(?<![^\s(>|,;*«“„]#)(?P<tag>[^{_NO_TAG}]+)"
_INLINES = re.compile(rf"\\[\\\[\]!#]|{_WIKI}|{_INLINE}|://[^\s<>]*|{_TAG}")
_WIKILINK = re.compile(_WIKI)
_CELL_END = re.compile(r"(?<!\\)\|")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")

_ATX = re.compile(r"^[ \t]*#{1,6}(?:[ \t]+|$)|(?:^|[ \t]+)#+[ \t]*$")
_EMPHASIS = re.compile(r"([*=~`](?:(?<=\*)\*{0,2}|(?<==)=|(?<=~)~|(?<=`)))(?=[^\s*=~`])([^\n]{1,200}?)(?<=[^\s*=~`])\1")
_EMPHASIZED = itemgetter(2)  # as a function it costs a third of what the template `\2` does
_BARE_HEADING = re.compile(r"#{1,6} [^#]*+")
_MARKS = re.compile(r"[*=~`]")
_UNLINKABLE = re.compile(r"%%|[#|^\[\]:*`=~\\\n]")


def parse(path: str, data: bytes, fallback: str = "") -> Note:
    """A Markdown file as a Note. Never raises: what is wrong is among its problems, and no text is dropped.

    `fallback` is the encoding of files that are no UTF (`text.decode`). Mojibake is taken back; lines stay where they are.
    """
    text, encoding, problems = decode(data, fallback)
    text, garbled = mend(text)
    front = front_matter(text)
    first = front.body_line
    lines = text.split("\n")
    rows = lines[first - 1 :]
    body = text if first == 1 else "\n".join(rows)
    spans = stretches(body)
    blocks, found = _blocks(body, rows, first, spans)
    problems += (*front.problems, *found, *garbled)

    hidden = filled(body, [span[:2] for span in spans], " ").split("\n") if spans else rows.copy()
    hide_blocks(hidden, blocks, first)
    links, tags = _links_and_tags(hidden, rows, first)
    above = [link for number, line in enumerate(lines[: first - 1], 1) if "[[" in line for link in _wikilinks(line, number)]
    distinct = _distinct([*_property_tags(front.properties), *tags])
    title = _title(front.properties, blocks, path)
    sha256 = hashlib.sha256(data).hexdigest()
    return Note(path, title, text, first, front.properties, blocks, (*above, *links), distinct, sha256, encoding, problems)


def hide_blocks(rows: list[str], blocks: Iterable[Block], first: int) -> None:
    """Take out of the rows of a body (from line `first`) what only the block rules know: in code and HTML nothing is a link or a
    tag, and in a table a `|` ends the cell and the link that it stands in, unless it is written `\\|`.
    """
    for block in blocks:
        if block.kind in ("code", "html", "table"):
            start, end = block.lines[0] - first, block.lines[1] - first + 1
            if block.kind == "table":
                rows[start:end] = [_CELL_END.sub("\n", row) if "\\" in row else row.replace("|", "\n") for row in rows[start:end]]
            else:
                rows[start:end] = [""] * (end - start)


def plain_note(path: str, data: bytes, fallback: str = "") -> Note:
    """A file that is not Markdown (a `.json` export) as a Note: its decoded text, no blocks, titled by its file name."""
    text, encoding, problems = decode(data, fallback)
    return Note(path, PurePosixPath(path).stem, text, 1, {}, (), (), (), hashlib.sha256(data).hexdigest(), encoding, problems)


def link_heading(title: str) -> str:
    """A heading as Obsidian's links want it. Characters that break a link become spaces, which Obsidian's matching ignores."""
    return " ".join(_UNLINKABLE.sub(" ", title).split())


class _Body(NamedTuple):
    """The text below the front matter, in the forms that finding its blocks needs."""

    first: int
    """The file's number of its first line."""
    lines: list[str]
    """As they stand."""
    shown: list[str]
    """With comments blanked; the same list as `lines` when there are none."""
    footnotes: bool
    """Whether a footnote may be defined in it."""
    math: bool
    """Whether display math may be in it."""


def _blocks(text: str, lines: list[str], first: int, spans: list[Span]) -> tuple[tuple[Block, ...], list[Problem]]:
    """The blocks of a body whose first line is `first`, covering each of its non-blank lines once."""
    comments = [span[:2] for span in spans if span.kind == "comment"]
    shown = filled(text, comments, " ").split("\n") if comments else lines
    body = _Body(first, lines, shown, "[^" in text, "$$" in text)
    masked = for_blocks(text, spans) if comments or body.math else text
    problems: list[Problem] = []
    try:
        pieces, too_deep = structure.split(lines if masked is text else masked.split("\n"))
    except Exception as error:  # a bug or RecursionError in the block rules must cost this note its structure only
        code = "W-DEPTH" if isinstance(error, RecursionError) else "W-PARSE"
        message = f"the structure could not be read ({type(error).__name__}); the text is kept as one paragraph"
        problems.append(Problem(code, message, first))
        pieces, too_deep = [Piece("paragraph", 0, len(lines))], False
    if too_deep:
        message = f"lists or quotes nested deeper than {structure.MAX_NESTING}; what is inside them is kept as text"
        problems.append(Problem("W-DEPTH", message, first))
    blocks: list[Block] = []
    for piece in _refined(pieces if masked is text else _covering(pieces, lines), body):
        kind, start, end = piece.kind, piece.start, piece.end
        text = lines[start] if end - start == 1 else "\n".join(lines[start:end])
        lone = _LONE_ID.fullmatch(text) if kind == "paragraph" and "^" in text else None
        if blocks and lone and blocks[-1].kind in ("list", "quote", "callout", "table", "code", "math", "html"):
            blocks[-1] = _extended(blocks[-1], lines, end, first, lone[1])
        elif blocks and kind == "code" and blocks[-1].kind == "footnote" and not piece.markup:
            blocks[-1] = _extended(blocks[-1], lines, end, first, "")
        else:
            blocks.append(_block(piece, text, body))
            if kind == "code" and piece.markup and not _closed(lines[start:end], piece.markup):
                problems.append(Problem("W-FENCE", f"the code that begins here has no closing {piece.markup}; close it", first + start))
    return tuple(blocks), problems


def _closed(lines: list[str], markup: str) -> bool:
    last = lines[-1].strip()
    return len(lines) > 1 and len(last) >= len(markup) and not last.strip(markup[0])


def _covering(pieces: Iterable[Piece], lines: list[str]) -> Iterator[Piece]:
    """The blocks, and between them what the block rules did not see (comments): stretches of non-blank lines, as paragraphs."""
    at = 0
    for piece in (*pieces, Piece("paragraph", len(lines), len(lines))):
        begin = at
        for number in range(at, piece.start + 1):
            if number == piece.start or not lines[number].strip():
                if number > begin:
                    yield Piece("paragraph", begin, number)
                begin = number + 1
        yield piece
        at = piece.end


def _refined(pieces: Iterable[Piece], body: _Body) -> Iterator[Piece]:
    """What Obsidian makes of CommonMark's blocks; without blank lines at their ends; a paragraph of footnotes is cut."""
    lines, shown = body.lines, body.shown
    for piece in pieces:
        kind, start, end = piece.kind, piece.start, piece.end
        while start < end and not lines[start].strip():
            start += 1
        while start < end and not lines[end - 1].strip():
            end -= 1
        if start == end:
            continue
        if shown is not lines and kind != "code" and not any(map(str.strip, shown[start:end])):
            yield Piece("comment", start, end)
        elif kind == "quote" and _CALLOUT.match(lines[start]):
            yield Piece("callout", start, end)
        elif kind == "paragraph" and (body.footnotes or body.math):
            cuts = [start, *(number for number in range(start + 1, end) if _FOOTNOTE.match(lines[number])), end]
            for begin, stop in pairwise(cuts):
                footnote = _FOOTNOTE.match(lines[begin])
                yield Piece("footnote" if footnote else "math" if body.math and _is_math(lines[begin:stop]) else "paragraph", begin, stop)
        else:
            yield piece if start == piece.start and end == piece.end else piece._replace(start=start, end=end)


def _is_math(lines: list[str]) -> bool:
    """Whether a paragraph is nothing but one `$$…$$`."""
    whole = "\n".join(lines).strip()
    return whole.startswith("$$") and whole.endswith("$$") and len(whole) > 3 and "$$" not in whole[2:-2]


def _block(piece: Piece, text: str, body: _Body) -> Block:
    kind, start, end, level, markup, info = piece
    title = block_id = ""
    last = body.shown[end - 1]
    if "^" in last and kind not in ("code", "comment", "math", "rule") and (found := _BLOCK_ID.search(last)):
        block_id = found[1]
    if kind == "heading":
        title = _heading_title(body.shown[start], markup) if markup[0] == "#" else _heading_title(" ".join(body.shown[start : end - 1]), "")
    elif kind == "callout" and (callout := _CALLOUT.match(text)):
        title = callout[3].strip()
    elif kind == "code":
        title = (info.split() or [""])[0]
    return Block(kind, (body.first + start, body.first + end - 1), text, level, title, block_id)


def _extended(block: Block, lines: list[str], end: int, first: int, block_id: str) -> Block:
    begin = block.lines[0]
    text = "\n".join(lines[begin - first : end])
    return Block(block.kind, (begin, first + end - 1), text, block.level, block.title, block_id or block.block_id)


def _heading_title(text: str, markup: str) -> str:
    """A heading as a reader sees it; `markup` is what it begins with, if anything."""
    text = text.strip()
    bare = text.removeprefix(markup)
    text = _ATX.sub("", text) if "#" in bare else bare
    if "^" in text:
        text = _BLOCK_ID.sub("", text.rstrip())
    text = " ".join(text.split())
    for _ in range(2):  # one may stand in the other
        if _MARKS.search(text):
            text = _EMPHASIS.sub(_EMPHASIZED, text)
    return text


def _title(properties: dict[str, Any], blocks: Iterable[Block], path: str) -> str:
    named = properties.get("title")
    if isinstance(named, (str, int, float)) and not isinstance(named, bool) and str(named).strip():
        return str(named).strip()
    heading = next((block.title for block in blocks if block.level == 1 and block.title), "")
    return heading or PurePosixPath(path).stem


def _links_and_tags(hidden: list[str], lines: list[str], first: int) -> tuple[list[Link], list[str]]:
    """Links and tags of a body, in order; `hidden` is its lines with code, comments and math blanked."""
    links: list[Link] = []
    tags: list[str] = []
    for number, (line, raw) in enumerate(zip(hidden, lines, strict=True), first):
        if "[[" in line or "](" in line or ("#" in line and not _BARE_HEADING.fullmatch(line)):
            for one in inlines(line, raw, number):
                if isinstance(one.what, Link):
                    links.append(one.what)
                else:
                    tags.append(one.what)
    return links, tags


class Inline(NamedTuple):
    """A link or a tag in a line."""

    start: int
    """Its first character, the `!` of an embed included."""
    end: int
    """After its last character."""
    what: Link | str
    """The link, or the tag without its `#`."""


def inlines(line: str, raw: str, number: int) -> Iterator[Inline]:
    """Links within the vault and tags of line `number`; `raw` is it as written, `line` with what is no prose blanked."""
    for match in _INLINES.finditer(line):
        kind = match.lastgroup
        if kind is None:  # an escaped mark, an address
            continue
        start, end = match.span()
        if kind == "tag":
            tag = match["tag"].rstrip("/")
            if _is_tag(tag):
                yield Inline(start, start + 1 + len(tag), tag)
            continue
        embed = start > 0 and line[start - 1] == "!" and line[start - 2 : start - 1] != "\\"
        if kind == "wiki":
            link = _wikilink(raw[start + 2 : end - 2], embed, number) if len(raw) == len(line) else None
            if link:
                yield Inline(start - embed, end, link)
        else:
            link = _inline_link(match, embed, number)
            if link:
                yield Inline(start - embed, end, link)
            if "![" in match["text"]:  # an image that is itself a link
                shift = match.start("text")
                for one in inlines(match["text"], match["text"], number):
                    if isinstance(one.what, Link):
                        yield Inline(one.start + shift, one.end + shift, one.what)


def _wikilinks(line: str, number: int) -> list[Link]:
    """The links in a line of properties; within double quotes a backslash stands before quotes and backslashes, as YAML has it."""
    found = []
    quotes = looked = 0
    for match in _WIKILINK.finditer(line):
        quotes += len(_QUOTE.findall(line, looked, match.start()))
        looked = match.start()
        found.append(_wikilink(_QUOTED.sub(r"\1", match["wiki"]) if quotes % 2 else match["wiki"], False, number))
    return [link for link in found if link]


_QUOTE = re.compile(r'(?<!\\)"')
_QUOTED = re.compile(r'\\(["\\])')


def _wikilink(inner: str, embed: bool, number: int) -> Link | None:
    """The link whose brackets hold this; None when it points nowhere."""
    where, bar, alias = inner.partition("|")
    if bar and where.endswith("\\"):  # `\|`, as it is written in tables
        where = where[:-1]
    target, heading, block = _address(where)
    return Link(target, heading, block, alias.strip(), embed, number) if target or heading or block else None


def _inline_link(match: re.Match[str], embed: bool, number: int) -> Link | None:
    """The link `[text](address)`; None when it points nowhere, or out of the vault."""
    written = match["angle"] if match["angle"] is not None else match["dest"]
    if _SCHEME.match(written):
        return None
    path, mark, rest = _ESCAPED.sub(r"\1", written).partition("#")
    target, heading, block = _address(unquote(path) + mark + unquote(rest))
    shown = _ESCAPED.sub(r"\1", match["text"]).strip()
    return Link(target, heading, block, shown, embed, number) if target or heading or block else None


def _address(where: str) -> tuple[str, str, str]:
    """Note, heading path and block id of a link's address."""
    target, mark, rest = where.partition("#")
    if not mark:
        return target.strip(), "", ""
    parts = [part.strip() for part in rest.split("#") if part.strip()]
    block = parts.pop()[1:].strip() if parts and parts[-1].startswith("^") else ""
    return target.strip(), "#".join(parts), block


def _is_tag(tag: str) -> bool:
    """At least one character that is no digit or mark (`#1984` and `#-` are no tags)."""
    return tag[:1].isalpha() or any(not char.isdigit() and char not in "-_/" for char in tag)


def _property_tags(properties: dict[str, Any]) -> Iterator[str]:
    for name, value in properties.items():
        if name.lower() in ("tags", "tag"):
            items = re.split(r"[,\s]+", value) if isinstance(value, str) else value if isinstance(value, list) else []
            for item in items:
                tag = str(item).strip().removeprefix("#").rstrip("/") if isinstance(item, str) else ""
                if tag and _is_tag(tag):
                    yield tag


def _distinct(tags: Iterable[str]) -> tuple[str, ...]:
    """Tags without repeats (case does not count), first spelling kept."""
    seen: dict[str, str] = {}
    for tag in tags:
        seen.setdefault(fold(tag), tag)
    return tuple(seen.values())
