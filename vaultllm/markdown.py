"""Obsidian-flavoured Markdown: text -> Note (blocks with their lines, links, tags, properties).

Blocks come from `blocks.py`; code, comments, links and tags from scanners over the raw text, because the inline tokens of
Markdown parsers carry no positions. Every scanner is linear, and runs only where its marks are. Pure: knows nothing
about files, chats or scenes, and does not resolve links.
"""

from __future__ import annotations

import functools
import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from itertools import islice, pairwise
from pathlib import PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import unquote

from vaultllm import blocks as structure
from vaultllm.blocks import Piece
from vaultllm.properties import FrontMatter, front_matter
from vaultllm.schema import Block, Link, Note, Problem
from vaultllm.text import decode, fold

__all__ = ["FrontMatter", "front_matter", "inlines", "link_heading", "mask", "parse", "plain_note", "stretches", "visible"]

_CALLOUT = re.compile(r"[ \t]*>[ \t]*\[!([^\]]+)\]([+-]?)[ \t]*(.*)")
_FOOTNOTE = re.compile(r" {0,3}\[\^[^\]\s]+\]:")
_BLOCK_ID = re.compile(r"(?:^|[ \t]+)\^([A-Za-z0-9-]+)[ \t]*$")
_LONE_ID = re.compile(r"[ \t]*\^([A-Za-z0-9-]+)[ \t]*")
# An id ends a block: what follows is a blank line, the end, or the start of another item, quote or heading.
_SHOWN_ID = re.compile(r"(?:^|[ \t]++)\^[A-Za-z0-9-]+[ \t]*+$(?=\Z|\n(?:[ \t>]*+(?:$|[-*+][ \t]|\d{1,9}[.)][ \t]|#{1,6}[ \t])|>))", re.M)
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*(`{3,}|~{3,})")

_HOT_MARKS = ("`", "%%", "<!--", "$$", "~~~")
_HOT = re.compile(r"`+|~~~+|%%|<!--|\$\$")
_LEAD = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*")
_BREAK = re.compile(r"\n(?=[ \t>]*(?:$|[-*+][ \t]|\d{1,9}[.)][ \t]|#{1,6}[ \t]|\||```|~~~))", re.M)
_BLANK = re.compile(r"\n[ \t>]*$", re.M)
_NEWLINE = re.compile(r"\n")
_CLOSERS = {"%%": re.compile("%%"), "<!--": re.compile("-->"), "$$": re.compile(r"\$\$")}
_NOT_NEWLINE = re.compile(r"[^\n]")

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
_PIPE = re.compile(r"\\?\|")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:|//")
_ESCAPED = re.compile(r"\\([!-/:-@\[-`{-~])")

_ATX = re.compile(r"^[ \t]*#{1,6}(?:[ \t]+|$)|(?:^|[ \t]+)#+[ \t]*$")
_EMPHASIS = re.compile(r"(\*{1,3}|==|~~|`)(?=[^\s*=~`])([^\n]{1,200}?)(?<=[^\s*=~`])\1")
_BARE_HEADING = re.compile(r"#{1,6} [^#]*+")
_MARKS = re.compile(r"[*=~`]")
_UNLINKABLE = re.compile(r"%%|[#|^\[\]:*`=~\\\n]")
_FOREIGN = re.compile(r"[^\x00-\x7f]{2,}")
_CP1252 = {ord(bytes([byte]).decode("cp1252", "ignore") or chr(byte)): byte for byte in range(0x80, 0xA0)}


def parse(path: str, data: bytes, fallback: str = "") -> Note:
    """A Markdown file as a Note. Never raises: what is wrong is among its problems, and no text is dropped.

    `fallback` is the encoding of files that are no UTF (`text.decode`).
    """
    text, encoding, problems = decode(data, fallback)
    front = front_matter(text)
    first = front.body_line
    lines = text.split("\n")
    rows = lines[first - 1 :]
    body = text if first == 1 else "\n".join(rows)
    spans = stretches(body)
    blocks, found = _blocks(body, rows, first, spans)
    problems += (*front.problems, *found, *_mojibake(text))

    hidden = filled(body, [span[:2] for span in spans], " ").split("\n") if spans else rows.copy()
    hide_blocks(hidden, blocks, first)
    links, tags = _links_and_tags(hidden, rows, first)
    above = [link for number, line in enumerate(lines[: first - 1], 1) for link in _wikilinks(line, number)]
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
            for number in range(block.lines[0] - first, block.lines[1] - first + 1):
                rows[number] = _CELL_END.sub("\n", rows[number]) if block.kind == "table" else ""


def plain_note(path: str, data: bytes, fallback: str = "") -> Note:
    """A file that is not Markdown (a `.json` export) as a Note: its decoded text, no blocks, titled by its file name."""
    text, encoding, problems = decode(data, fallback)
    return Note(path, PurePosixPath(path).stem, text, 1, {}, (), (), (), hashlib.sha256(data).hexdigest(), encoding, problems)


def visible(text: str) -> str:
    """What a reader sees: without `%%comments%%`, `<!-- -->` and block ids; code untouched, as many lines as before."""
    spans = stretches(text)
    comments = [span[:2] for span in spans if span.kind == "comment"]
    # Comments become blanks, so that an id before one is still at its line's end; code becomes letters, so that none is.
    probe = filled(filled(text, comments, " "), [span[:2] for span in spans if span.kind != "comment"], "x")
    ids = [match.span() for match in _SHOWN_ID.finditer(probe)] if "^" in probe else []
    return filled(text, sorted(comments + ids), "")


def mask(text: str) -> str:
    """The text with code (fences, inline) and comments blanked: same length, same lines."""
    return filled(text, [span[:2] for span in stretches(text) if span.kind != "math"], " ")


def link_heading(title: str) -> str:
    """A heading as Obsidian's links want it. Characters that break a link become spaces, which Obsidian's matching ignores."""
    return " ".join(_UNLINKABLE.sub(" ", title).split())


class Span(NamedTuple):
    """A stretch of text that is not prose."""

    start: int
    end: int
    kind: str
    """`code`, `comment` or `math`."""


class _Ahead:
    """The next match of a pattern at or after a position that only grows: any stretch of the text is searched once."""

    def __init__(self, pattern: re.Pattern[str], text: str) -> None:
        self.pattern, self.text, self.none = pattern, text, len(text) + 1
        self.at = -1

    def __call__(self, pos: int) -> int:
        """Its start; beyond the text's end when there is none."""
        if self.at < pos:
            match = self.pattern.search(self.text, pos)
            self.at = match.start() if match else self.none
        return self.at


def stretches(text: str) -> list[Span]:
    """Code, comments and display math, in order and disjoint; whichever opens first wins, what never closes is text."""
    found: list[Span] = []
    if not any(mark in text for mark in _HOT_MARKS):
        return found
    closers = {mark: _Ahead(pattern, text) for mark, pattern in _CLOSERS.items()}
    paragraph, blank, newline = _Ahead(_BREAK, text), _Ahead(_BLANK, text), _Ahead(_NEWLINE, text)
    runs: dict[int, list[int]] = {}
    known = -1  # end of the paragraph whose backtick runs are in `runs`
    pos = 0
    while match := _HOT.search(text, pos):
        start, mark = match.start(), match[0]
        if start and text[start - 1] == "\\" and not text.endswith("\\\\", 0, start):
            pos = start + 1
            continue
        lead = _lead(text, start) if mark != "`" else None
        end = -1
        kind = "comment"
        if mark[0] in "`~":
            kind = "code"
            if lead is not None and len(mark) >= 3 and (mark[0] == "~" or _no_backtick(text, match.end())):
                end = _fence_end(text, match.end(), mark, lead)
            elif mark[0] == "`":
                limit = paragraph(start)
                if limit != known:
                    runs, known = {}, limit
                    for run in re.finditer("`+", text[start:limit]):
                        runs.setdefault(len(run[0]), []).append(start + run.start())
                same = runs.get(len(mark), [])
                after = bisect_left(same, match.end())
                end = same[after] + len(mark) if after < len(same) else -1
        else:
            close = closers[mark](match.end())
            kind = "math" if mark == "$$" else "comment"
            # At a line's start it is a block (a comment's may hold blank lines); elsewhere it stays in its paragraph or line.
            alone = lead is not None
            limit = (len(text) if alone else blank(start)) if kind == "comment" else (blank(start) if alone else newline(start))
            end = close + (3 if mark == "<!--" else 2) if close < limit else -1
        if end >= 0:
            found.append(Span(start, end, kind))
        pos = max(end, match.end())
    return found


def _lead(text: str, pos: int) -> str | None:
    """What stands before a position on its line if that is only indentation, `>` and list marks; else None."""
    begin = text.rfind("\n", max(0, pos - 256), pos) + 1
    if begin == 0 and pos > 256:
        return None
    lead = text[begin:pos]
    return lead if _LEAD.fullmatch(lead) else None


def _no_backtick(text: str, pos: int) -> bool:
    end = text.find("\n", pos)
    return text.find("`", pos, end if end >= 0 else len(text)) < 0


def _fence_end(text: str, pos: int, mark: str, lead: str) -> int:
    """Where a fence that opened on this line ends: after its closing line, before its quote or item ends, or with the text."""
    line_end = text.find("\n", pos)
    if line_end < 0:
        return len(text)
    listed = any(char not in " \t>" for char in lead) or len(lead.expandtabs(4)) >= 4
    match = _fence_close(mark[0], len(mark), min(lead.count(">"), 20), listed).search(text, line_end + 1)
    if match is None:
        return len(text)
    return match.end() if match.end() > match.start() else max(match.start() - 1, line_end)


@functools.lru_cache(maxsize=256)
def _fence_close(char: str, length: int, quotes: int, listed: bool) -> re.Pattern[str]:
    pattern = rf"^[ \t{'>' if quotes else ''}]*+{char}{{{length},}}[ \t]*$"
    if quotes:
        pattern += rf"|^(?!(?:[ \t]*>){{{quotes}}})"
    elif listed:
        pattern += r"|^(?=\S)"
    return re.compile(pattern, re.M)


def filled(text: str, spans: Iterable[tuple[int, int]], char: str) -> str:
    """The text with spans (in order, may touch) overwritten by a character; newlines stay."""
    parts: list[str] = []
    last = 0
    for start, end in spans:
        parts += (text[last : max(start, last)], _NOT_NEWLINE.sub(char, text[max(start, last) : end]))
        last = max(end, last)
    return "".join((*parts, text[last:])) if parts else text


def for_blocks(body: str, spans: list[Span]) -> str:
    """The body as the block rules should see it: `%%` comments and display math must not look like headings or lists."""
    parts: list[str] = []
    last = 0
    for start, end, kind in spans:
        if kind == "code" or body.startswith("<!--", start):
            continue
        line_start, line_end = body.rfind("\n", last, start) + 1 or last, body.find("\n", end)
        before, after = body[line_start:start], body[end : line_end if line_end >= 0 else len(body)]
        # Blanks only where the whole line goes: blanks before text would make it indented code.
        alone = kind == "comment" and not before.strip(" \t>") and not after.strip()
        parts += (body[last:start], _NOT_NEWLINE.sub(" " if alone else "x", body[start:end]))
        last = end
    return "".join((*parts, body[last:]))


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
    masked = for_blocks(text, spans).split("\n") if comments or body.math else lines
    problems: list[Problem] = []
    try:
        pieces, too_deep = structure.split(masked)
    except Exception as error:  # a bug or RecursionError in the block rules must cost this note its structure only
        code = "W-DEPTH" if isinstance(error, RecursionError) else "W-PARSE"
        message = f"the structure could not be read ({type(error).__name__}); the text is kept as one paragraph"
        problems.append(Problem(code, message, first))
        pieces, too_deep = [Piece("paragraph", 0, len(lines))], False
    if too_deep:
        message = f"lists or quotes nested deeper than {structure.MAX_NESTING}; what is inside them is kept as text"
        problems.append(Problem("W-DEPTH", message, first))
    blocks: list[Block] = []
    for piece in _covering(pieces, body, masked is not lines):
        kind, start, end, *_ = piece
        text = lines[start] if end - start == 1 else "\n".join(lines[start:end])
        lone = _LONE_ID.fullmatch(text) if kind == "paragraph" and "^" in text else None
        if blocks and lone and blocks[-1].kind in ("list", "quote", "callout", "table", "code", "math", "html"):
            blocks[-1] = _extended(blocks[-1], lines, end, first, lone[1])
        elif blocks and kind == "code" and blocks[-1].kind == "footnote" and not piece.markup:
            blocks[-1] = _extended(blocks[-1], lines, end, first, "")
        else:
            blocks.append(_block(piece, text, body))
            if piece.markup and kind == "code" and not _closed(lines[start:end], piece.markup):
                problems.append(Problem("W-FENCE", f"the code that begins here has no closing {piece.markup}; close it", first + start))
    return tuple(blocks), problems


def _covering(pieces: Iterable[Piece], body: _Body, masked: bool) -> Iterator[Piece]:
    """The blocks, refined; and what the block rules did not see (comments) between them."""
    at = 0
    for piece in pieces:
        if masked:
            yield from _loose(at, piece.start, body)
        yield from _refined(piece, body)
        at = piece.end
    if masked:
        yield from _loose(at, len(body.lines), body)


def _closed(lines: list[str], markup: str) -> bool:
    last = lines[-1].strip()
    return len(lines) > 1 and len(last) >= len(markup) and not last.strip(markup[0])


def _loose(start: int, end: int, body: _Body) -> Iterator[Piece]:
    """What no block rule took, as paragraphs (or comments): the stretches of non-blank lines."""
    begin = start
    for number in range(start, end + 1):
        if number == end or not body.lines[number].strip():
            yield from _refined(Piece("paragraph", begin, number), body)
            begin = number + 1


def _refined(piece: Piece, body: _Body) -> Iterator[Piece]:
    """What Obsidian makes of a CommonMark block; without blank lines at its ends; a paragraph of footnotes is cut."""
    kind, start, end, *_ = piece
    lines = body.lines
    while start < end and not lines[start].strip():
        start += 1
    while start < end and not lines[end - 1].strip():
        end -= 1
    if start >= end:
        return
    if kind != "code" and body.shown is not lines and not any(line.strip() for line in body.shown[start:end]):
        yield Piece("comment", start, end)
    elif kind == "quote" and _CALLOUT.match(lines[start]):
        yield Piece("callout", start, end)
    elif kind == "paragraph" and (body.footnotes or body.math):
        cuts = [start, *(number for number in range(start + 1, end) if _FOOTNOTE.match(lines[number])), end]
        for begin, stop in pairwise(cuts):
            footnote = _FOOTNOTE.match(lines[begin])
            yield Piece("footnote" if footnote else "math" if body.math and _is_math(lines[begin:stop]) else "paragraph", begin, stop)
    else:
        yield piece._replace(start=start, end=end)


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
        title = _heading_title(body.shown[start:end] if markup[:1] == "#" else body.shown[start : end - 1])
    elif kind == "callout" and (callout := _CALLOUT.match(text)):
        title = callout[3].strip()
    elif kind == "code":
        title = (info.split() or [""])[0]
    return Block(kind, (body.first + start, body.first + end - 1), text, level, title, block_id)


def _extended(block: Block, lines: list[str], end: int, first: int, block_id: str) -> Block:
    begin = block.lines[0]
    text = "\n".join(lines[begin - first : end])
    return Block(block.kind, (begin, first + end - 1), text, block.level, block.title, block_id or block.block_id)


def _heading_title(lines: list[str]) -> str:
    text = _ATX.sub("", " ".join(line.strip() for line in lines))
    if "^" in text:
        text = _BLOCK_ID.sub("", text.rstrip())
    text = " ".join(text.split())
    return _EMPHASIS.sub(r"\2", _EMPHASIS.sub(r"\2", text)) if _MARKS.search(text) else text


def _title(properties: dict[str, Any], blocks: Iterable[Block], path: str) -> str:
    named = properties.get("title")
    if isinstance(named, (str, int, float)) and not isinstance(named, bool) and str(named).strip():
        return str(named).strip()
    headings = (block.title for block in blocks if block.kind == "heading" and block.level == 1 and block.title)
    return next(headings, PurePosixPath(path).stem)


def _links_and_tags(hidden: list[str], lines: list[str], first: int) -> tuple[list[Link], list[str]]:
    """Links and tags of a body, in order; `hidden` is its lines with code, comments and math blanked."""
    links: list[Link] = []
    tags: list[str] = []
    for number, (line, raw) in enumerate(zip(hidden, lines, strict=True), first):
        if "[" in line or ("#" in line and not _BARE_HEADING.fullmatch(line)):
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
        start, end = match.span()
        embed = start > 0 and line[start - 1] == "!" and line[start - 2 : start - 1] != "\\"
        if match["tag"]:
            tag = match["tag"].rstrip("/")
            if _is_tag(tag):
                yield Inline(start, start + 1 + len(tag), tag)
        elif match["wiki"] is not None and len(raw) == len(line):
            for link in _wikilink(raw[match.start("wiki") : match.end("wiki")], embed, number):
                yield Inline(start - embed, end, link)
        elif match["text"] is not None:
            for link in _inline_link(match, embed, number):
                yield Inline(start - embed, end, link)
            if "![" in match["text"]:  # an image that is itself a link
                shift = match.start("text")
                for one in inlines(match["text"], match["text"], number):
                    if isinstance(one.what, Link):
                        yield Inline(one.start + shift, one.end + shift, one.what)


def _wikilinks(line: str, number: int) -> Iterator[Link]:
    for match in _WIKILINK.finditer(line) if "[[" in line else ():
        yield from _wikilink(match["wiki"], False, number)


def _wikilink(inner: str, embed: bool, number: int) -> Iterator[Link]:
    where, *alias = _PIPE.split(inner, maxsplit=1)
    target, heading, block = _address(where)
    if target or heading or block:
        yield Link(target, heading, block, alias[0].strip() if alias else "", embed, number)


def _inline_link(match: re.Match[str], embed: bool, number: int) -> Iterator[Link]:
    written = match["angle"] if match["angle"] is not None else match["dest"]
    if _SCHEME.match(written):
        return
    path, mark, rest = _ESCAPED.sub(r"\1", written).partition("#")
    target, heading, block = _address(unquote(path) + mark + unquote(rest))
    if target or heading or block:
        yield Link(target, heading, block, _ESCAPED.sub(r"\1", match["text"]).strip(), embed, number)


def _address(where: str) -> tuple[str, str, str]:
    """Note, heading path and block id of a link's address."""
    target, _, rest = where.partition("#")
    parts = [part.strip() for part in rest.split("#") if part.strip()]
    block = parts.pop()[1:].strip() if parts and parts[-1].startswith("^") else ""
    return target.strip(), "#".join(parts), block


def _is_tag(tag: str) -> bool:
    """At least one character that is no digit or mark (`#1984` and `#-` are no tags)."""
    return any(not char.isdigit() and char not in "-_/" for char in tag)


def _property_tags(properties: dict[str, Any]) -> Iterator[str]:
    for name, value in properties.items():
        if fold(name) in ("tags", "tag"):
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


def _mojibake(text: str) -> Iterator[Problem]:
    """A problem when most words outside ASCII are UTF-8 bytes that some program read in an 8-bit encoding."""
    if text.isascii():
        return
    runs = list(islice(_FOREIGN.finditer(text), 30))
    for codec in ("latin-1", "mac-roman", "cp866", "cp1251", "koi8-r"):
        misses = (run for run in runs if not _was_utf8(run[0], codec))
        most = -(-len(runs) * 2 // 5)
        if len(runs) >= 5 and sum(1 for _ in islice(misses, most)) < most:
            message = f"the letters look like UTF-8 that was read as {codec} and saved again; restore the note from its source"
            yield Problem("W-MOJIBAKE", message, text.count("\n", 0, runs[0].start()) + 1)
            return


def _was_utf8(run: str, codec: str) -> bool:
    try:
        (run.translate(_CP1252) if codec == "latin-1" else run).encode(codec).decode("utf-8")
    except UnicodeError:
        return False
    return True
