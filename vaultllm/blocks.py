"""Lines of Markdown -> its top-level blocks: kind, first line, last line. CommonMark and GFM tables.

What nearly all lines of nearly all notes are (paragraphs, headings, runs of quoted lines, simple lists, fences) is told by
a few line rules here, without looking inside; wherever a block could go on past them (lazy continuation, tables, setext
headings, HTML), markdown-it-py's block rules decide, on that block alone. A property test holds the two together.
Knows nothing about links, comments and Obsidian's own marks.
"""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

from markdown_it import MarkdownIt
from markdown_it.rules_block import StateBlock, blockquote
from markdown_it.token import Token

from vaultllm.schema import BlockKind

MAX_NESTING = 200
_LOOKS = 10  # how often, on average, a line may be looked at by the rule for quotes

_KINDS: dict[str, BlockKind] = {
    "heading_open": "heading",
    "paragraph_open": "paragraph",
    "bullet_list_open": "list",
    "ordered_list_open": "list",
    "table_open": "table",
    "fence": "code",
    "code_block": "code",
    "blockquote_open": "quote",
    "html_block": "html",
    "hr": "rule",
}

_RULE = re.compile(r"([-*_])(?:[ \t]*+\1){2,}+[ \t]*+")
_ATX = re.compile(r"(#{1,6})(?:[ \t]|$)")
_OPEN = re.compile(r"(`{3,})[^`]*|(~{3,})")
_ITEM = re.compile(r"(?:[-+*]|[0-9]{1,9}([.)])) {1,4}(?=[^ \t])")
_MARKED = re.compile(r"(?:[-+*]|[0-9]{1,9}[.)])(?:[ \t]|$)")
# What may begin another block than a paragraph, or make one of it (setext heading, table).
_OTHER = re.compile(
    r"#{1,6}(?:[ \t]|$)|[>|<]|[-+*](?:[ \t]|$)|[0-9]{1,9}[.)](?:[ \t]|$)|```|~~~|(?:[-*_][ \t]*+){3,}+$|[-=]+[ \t]*+$|:-|-[ \t]*+[-:|]"
)
_FIRST = frozenset("#>|<-+*0123456789`~_=:")  # with what `_OTHER` may begin
_DELIMITER = re.compile(r"\|(?:[ \t]*+:?-++:?[ \t]*+\|)++[ \t]*+")
# What ends a quote from outside, as the rule for quotes sees it.
_STOPS = re.compile(r"#{1,6}(?:[ \t]|$)|<!--|[-+*](?:[ \t]|$)|[0-9]{1,9}[.)](?:[ \t]|$)|```|~~~|(?:[-*_][ \t]*+){3,}+$", re.M)


class Piece(NamedTuple):
    """A top-level block."""

    kind: BlockKind
    """What CommonMark calls it (no `callout`, `comment`, `math`, `footnote`)."""
    start: int
    """Its first line, from 0."""
    end: int
    """The line after its last one."""
    level: int = 0
    """1-6 for headings."""
    markup: str = ""
    """The fence that opened a code block (empty: an indented one); `#…`, `=` or `-` for headings."""
    info: str = ""
    """What stands after an opening fence."""


def split(lines: list[str]) -> tuple[list[Piece], bool]:
    """The top-level blocks of a text's lines, in order; and whether something in it is nested deeper than MAX_NESTING.

    Lines that are in no block are blank. Time is linear in the text. May raise RecursionError (lists in quotes in lists …).
    """
    pieces: list[Piece] = []
    slow: _Slow | None = None
    count = len(lines)
    at = 0
    while at < count:
        line = lines[at]
        said = line.lstrip(" \t")
        if not said:
            at += 1
            continue
        piece = _piece(lines, at, said, 0 if said is line else _indent(line, said))
        if piece is None:
            slow = slow or _Slow(lines)
            piece = slow.at(at)
        pieces.append(piece)
        at = piece.end
    return pieces, slow is not None and slow.too_deep


def _indent(line: str, said: str) -> int:
    """Columns before the first character that is neither space nor tab."""
    lead = line[: len(line) - len(said)]
    return len(lead.expandtabs(4)) if "\t" in lead else len(lead)


def _piece(lines: list[str], at: int, said: str, indent: int) -> Piece | None:
    """The block that begins on a line that is not blank; None when only the full rules can tell."""
    if indent >= 4:
        return Piece("code", at, _code_end(lines, at))
    mark = said[0]
    if mark == ">":
        return _quote(lines, at)
    if mark not in _FIRST or not _OTHER.match(said):
        return _paragraph(lines, at)
    if mark == "#" and (atx := _ATX.match(said)):
        return Piece("heading", at, at + 1, len(atx[1]), atx[1])
    if mark == "|" and indent == 0:
        return _plain_table(lines, at)
    if mark in "-*_" and _RULE.fullmatch(said):
        return Piece("rule", at, at + 1)
    if mark in "`~" and (fence := _OPEN.fullmatch(said) or (mark == "~" and _OPEN.match(said))):
        markup = fence[1] or fence[2]
        return Piece("code", at, _fence_end(lines, at, markup), 0, markup, said[len(markup) :])
    if said.startswith("<!--") and "-->" in said:
        return Piece("html", at, at + 1)
    item = _ITEM.match(said)
    return _list(lines, at, item) if item and indent == 0 else None


def _code_end(lines: list[str], at: int) -> int:
    end = at + 1
    for number in range(at + 1, len(lines)):
        said = lines[number].lstrip(" \t")
        if said:
            if _indent(lines[number], said) < 4:
                break
            end = number + 1
    return end


def _paragraph(lines: list[str], at: int) -> Piece | None:
    number = at + 1
    while number < len(lines):
        line = lines[number]
        said = line.lstrip(" \t")
        if not said:
            break
        if said[0] in _FIRST and _OTHER.match(said) and (said is line or _indent(line, said) < 4):
            item = _ITEM.match(said) if said is line else None
            if said[0] == ">" or _ATX.match(said) or (item and (not item[1] or int(said[: item.start(1)]) == 1)):
                break
            return None
        number += 1
    return Piece("paragraph", at, number)


def _quote(lines: list[str], at: int) -> Piece | None:
    number = at + 1
    while number < len(lines):
        line = lines[number]
        if line[:1] == ">":
            number += 1
            continue
        said = line.lstrip(" \t")
        if not said:
            break
        if said is not line and _indent(line, said) >= 4:
            return None
        if said[0] != ">":
            # A line that begins another block ends the quote; any other could go on its last paragraph.
            if _ATX.match(said) or said.startswith("<!--") or _OPEN.fullmatch(said) or said.startswith("~~~"):
                break
            return None
        number += 1
    return Piece("quote", at, number)


def _plain_table(lines: list[str], at: int) -> Piece | None:
    """A table each of whose lines begins with `|` in column 0 and whose header ends with one; None for all others."""
    header, delimiter = lines[at].rstrip(" \t"), lines[at + 1] if at + 1 < len(lines) else ""
    if "\\" in header or header[-1] != "|" or not _DELIMITER.fullmatch(delimiter) or header.count("|") != delimiter.count("|"):
        return None
    number = at + 2
    while number < len(lines) and lines[number][:1] == "|":
        number += 1
    return Piece("table", at, number) if number == len(lines) or not lines[number].strip(" \t") else None


def _fence_end(lines: list[str], at: int, markup: str) -> int:
    for number in range(at + 1, len(lines)):
        said = lines[number].lstrip(" \t")
        if said.startswith(markup) and not said.rstrip(" \t").strip(markup[0]) and _indent(lines[number], said) < 4:
            return number + 1
    return len(lines)


def _list(lines: list[str], at: int, first: re.Match[str]) -> Piece | None:
    """A list whose items begin in column 0 and whose other lines stand in their items; None for all others."""
    marker = first[1] or first[0][0]
    width = first.end()
    end = at + 1
    blank = False
    for number in range(at + 1, len(lines)):
        line = lines[number]
        said = line.lstrip(" ")
        if not said or (said[0] == "\t" and not said.strip(" \t")):
            blank = True
            continue
        indent = len(line) - len(said)
        if said[0] == "\t":
            if width > 4:
                return None
        elif indent < width:
            item = _ITEM.match(said) if indent == 0 else None
            if item and (item[1] or item[0][0]) == marker:
                if marker in "-*" and _RULE.fullmatch(said):
                    return Piece("list", at, end) if blank else None
                width = item.end()
            elif not blank or _MARKED.match(said):
                # Perhaps an item indented otherwise, perhaps one that is empty, perhaps lazy text.
                return Piece("list", at, end) if blank and item else None
            else:
                break
        end = number + 1
        blank = False
    return Piece("list", at, end)


def tokens(lines: list[str]) -> list[Token]:
    """markdown-it's tokens of all blocks of a text, the inner ones too. What is nested deeper than MAX_NESTING is left out."""
    return _rules().parse("\n".join(lines))


# -- markdown-it's rules, for the rest


class _Slow:
    """markdown-it's block rules, run on one block at a time."""

    def __init__(self, lines: list[str]) -> None:
        self.md = _rules()
        self.rules = self.md.block.ruler.getRules("")
        self.state = StateBlock("\n".join(lines), self.md, {}, [])
        self.too_deep = False

    def at(self, line: int) -> Piece:
        """The block that begins on this line."""
        state = self.state
        state.line, state.tokens = line, []
        for rule in self.rules:
            if rule(state, line, state.lineMax, False):
                break
        token = next(token for token in state.tokens if token.level == 0 and token.type in _KINDS)
        self.too_deep = self.too_deep or any(token.level >= MAX_NESTING - 1 for token in state.tokens)
        kind = _KINDS[token.type]
        end = max(state.line, line + 1)
        while end > line + 1 and state.isEmpty(end - 1):
            end -= 1
        level = int(token.tag[1]) if kind == "heading" else 0
        return Piece(kind, line, end, level, token.markup if kind in ("heading", "code") else "", token.info)


@functools.cache
def _rules() -> MarkdownIt:
    """Block rules only: CommonMark and tables. Link definitions stay paragraphs, so that their text is in a block."""
    md = MarkdownIt("commonmark", {"html": True, "maxNesting": MAX_NESTING}).enable("table").disable(["inline", "text_join", "reference"])
    md.block.ruler.at("table", _table, {"alt": ["paragraph", "reference"]})
    md.block.ruler.at("blockquote", _quote_within_reason, {"alt": ["paragraph", "reference", "blockquote", "list"]})
    return md


def _table(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule: a GFM table as one token. The library's own rule makes six tokens a cell, half a gigabyte for a large table."""
    if start + 2 > end or any(state.sCount[line] < state.blkIndent or state.is_code_block(line) for line in (start, start + 1)):
        return False
    delimiter = state.src[state.bMarks[start + 1] + state.tShift[start + 1] : state.eMarks[start + 1]].strip()
    if len(delimiter) < 2 or not set(delimiter) <= set("|-: \t") or (delimiter[0] == "-" and delimiter[1] in " \t"):
        return False
    columns = delimiter.removeprefix("|").removesuffix("|").split("|")
    if not all(re.fullmatch(r"[ \t]*:?-+:?[ \t]*", column) for column in columns):
        return False
    header = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]].strip()
    if "|" not in header:
        return False
    cells = (
        len(re.findall(r"(?<!\\)\|", header)) + 1 - header.startswith("|") - (len(header) > 1 and bool(re.search(r"(?<!\\)\|$", header)))
    )
    if cells != len(columns):
        return False
    if silent:
        return True
    kept, state.parentType = state.parentType, "table"
    stops = state.md.block.ruler.getRules("blockquote")
    line = start + 2
    while line < end and state.sCount[line] >= state.blkIndent and not state.isEmpty(line) and not state.is_code_block(line):
        if any(rule(state, line, end, True) for rule in stops):
            break
        line += 1
    state.push("table_open", "table", 1).map = [start, line]
    state.push("table_close", "table", -1)
    state.parentType = kept
    state.line = line
    return True


def _quote_within_reason(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Block rule: a quote. The library's rule goes through all lines up to the quote's end as it seems from outside, at each level
    and for each quote whose inside ends sooner. When a text makes it do so too often, a quote is taken without a look inside.
    """
    src, begins, shifts = state.src, state.bMarks, state.tShift
    if not src.startswith(">", begins[start] + shifts[start]):
        return False
    if silent:
        return blockquote(state, start, end, silent)
    last = start
    while last < end and not state.isEmpty(last) and not _STOPS.match(src, begins[last] + shifts[last]):
        last += 1
    state.env["looks"] = state.env.get("looks", 0) + last - start
    if state.env["looks"] <= _LOOKS * len(begins) + 1_000:
        return blockquote(state, start, end, silent)
    level, count = state.level, len(state.tokens)
    state.level += MAX_NESTING
    found = blockquote(state, start, end, silent)
    state.level = level
    for token in state.tokens[count:]:
        token.level = level
    return found
