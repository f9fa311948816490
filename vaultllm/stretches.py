"""What of a note's text is no prose: code, comments, display math; and the text without it, in the forms that readers need.

Scanners over the raw text, because the inline tokens of Markdown parsers carry no positions; each is linear. Inline math is
not told from sums of money (`$5 and $10`) here, so it stays prose. Knows nothing about blocks, links and files.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterable
from typing import Literal, NamedTuple, cast

# An id ends a block: what follows is a blank line, the end, or the start of another item, quote or heading.
_SHOWN_ID = re.compile(r"\^(?<![^ \t\n]\^)[A-Za-z0-9-]+[ \t]*+$(?=\Z|\n(?:[ \t>]*+(?:$|[-*+][ \t]|\d{1,9}[.)][ \t]|#{1,6}[ \t])|>))", re.M)
# Begins with a set of characters, which is found several times as fast as alternatives are. What is closed on its own line is
# matched whole (`code`, `comment`, but for long comments, lest a line of openings is read again and again), other openings alone.
_HOT = re.compile(
    r"[`~%<$](?:(?<=`)(?:(`?+)(?!`)[^`\n]++`\1(?!`)(?P<code>)|`*+)"
    r"|(?<=<)!--(?:[^\n-]{0,200}+(?:-(?!->)[^\n-]{0,50}+){0,20}+-->(?P<comment>))?|(?<=%)%|(?<=\$)\$|(?<=~)~~++)"
)
_LEAD = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)*")
_BREAK = re.compile(r"\n(?=[ \t>]*(?:$|[-*+][ \t]|\d{1,9}[.)][ \t]|#{1,6}[ \t]|\||```|~~~))", re.M)
_BLANK = re.compile(r"\n[ \t>]*$", re.M)
_NEWLINE = re.compile(r"\n")
_CLOSERS = {"%%": re.compile("%%"), "<!--": re.compile("-->"), "$$": re.compile(r"\$\$")}


def visible(text: str) -> str:
    """What a reader sees: without `%%comments%%`, `<!-- -->` and block ids; code untouched, as many lines as before."""
    spans = stretches(text)
    comments = [span[:2] for span in spans if span.kind == "comment"]
    if "^" not in text:
        return filled(text, comments, "")
    # Comments become blanks, so that an id before one is still at its line's end; code becomes letters, so that none is.
    probe = filled(filled(text, comments, " "), [span[:2] for span in spans if span.kind != "comment"], "x")
    ids = [(_blanks_before(probe, match.start()), match.end()) for match in _SHOWN_ID.finditer(probe)]
    return filled(text, sorted(comments + ids), "")


def _blanks_before(text: str, pos: int) -> int:
    while pos and text[pos - 1] in " \t":
        pos -= 1
    return pos


def mask(text: str) -> str:
    """The text with code (fences, inline) and comments blanked: same length, same lines."""
    return filled(text, [span[:2] for span in stretches(text) if span.kind != "math"], " ")


class Span(NamedTuple):
    """A stretch of text that is not prose."""

    start: int
    end: int
    kind: Literal["code", "comment", "math"]


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


class _Ends:
    """Where what is open must be closed, from a position that only grows."""

    def __init__(self, text: str) -> None:
        self.closers = {mark: _Ahead(pattern, text) for mark, pattern in _CLOSERS.items()}
        self.paragraph, self.blank, self.newline = _Ahead(_BREAK, text), _Ahead(_BLANK, text), _Ahead(_NEWLINE, text)
        self.runs: dict[int, list[int]] = {}
        self.known = -1  # end of the paragraph whose backtick runs are in `runs`

    def code(self, text: str, start: int, mark: str) -> int:
        """Where inline code that opens with a run of backticks ends: behind a run of that length in its paragraph; -1 if there is none."""
        limit = self.paragraph(start)
        if limit != self.known:
            self.runs, self.known = {}, limit
            for run in re.finditer("`+", text[start:limit]):
                self.runs.setdefault(len(run[0]), []).append(start + run.start())
        same = self.runs.get(len(mark), [])
        after = bisect_left(same, start + len(mark))
        return same[after] + len(mark) if after < len(same) else -1

    def comment(self, text: str, start: int, mark: str, alone: bool) -> int:
        """Where a comment ends; -1 if it never does. At a line's start it is a block and may hold blank lines."""
        close = self.closers[mark](start + len(mark))
        limit = len(text) if alone else self.blank(start)
        return close + (3 if mark == "<!--" else 2) if close < limit else -1

    def math(self, start: int, alone: bool) -> int:
        """Where display math ends; -1 if it never does. At a line's start it may be a paragraph, elsewhere it stays in its line."""
        close = self.closers["$$"](start + 2)
        return close + 2 if close < (self.blank(start) if alone else self.newline(start)) else -1


def stretches(text: str) -> list[Span]:
    """Code, comments and display math, in order and disjoint; whichever opens first wins, what never closes is text."""
    found: list[Span] = []
    ends: _Ends | None = None
    pos = 0
    while match := _HOT.search(text, pos):
        start, pos = match.span()
        kind = cast('Literal["code", "comment"] | None', match.lastgroup)
        if start and text[start - 1] == "\\" and not text.endswith("\\\\", 0, start):
            pos = start + 1
        elif kind:
            found.append(Span(start, pos, kind))
        else:
            ends = ends or _Ends(text)
            mark = match[0]
            lead = _lead(text, start) if mark != "`" else None
            if mark == "$$":
                end = ends.math(start, lead is not None)
            elif mark in ("%%", "<!--"):
                end = ends.comment(text, start, mark, lead is not None)
            elif lead is not None and len(mark) >= 3 and (mark[0] == "~" or _no_backtick(text, pos)):
                end = _fence_end(text, pos, mark, lead)
            else:
                end = ends.code(text, start, mark) if mark[0] == "`" else -1
            if end >= 0:
                found.append(Span(start, end, "math" if mark == "$$" else "code" if mark[0] in "`~" else "comment"))
                pos = max(end, pos)
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
        if end > last:
            start = max(start, last)
            parts += (text[last:start], _overwritten(text[start:end], char))
            last = end
    return "".join((*parts, text[last:])) if parts else text


def _overwritten(text: str, char: str) -> str:
    return "\n".join([char * len(line) for line in text.split("\n")])


_NOTHING_MORE = re.compile(r"[^\S\n]*+(?:\n|\Z)")  # in its line; a long line may hold thousands of comments, so none is cut out


def for_blocks(body: str, spans: list[Span]) -> str:
    """The body as the block rules should see it: `%%` comments and display math must not look like headings or lists."""
    parts: list[str] = []
    last = 0
    for start, end, kind in spans:
        if kind == "code" or body.startswith("<!--", start):
            continue
        before = body[body.rfind("\n", last, start) + 1 or last : start]
        # Blanks only where the whole line goes: blanks before text would make it indented code.
        alone = kind == "comment" and not before.strip(" \t>") and _NOTHING_MORE.match(body, end) is not None
        parts += (body[last:start], _overwritten(body[start:end], " " if alone else "x"))
        last = end
    return "".join((*parts, body[last:])) if parts else body
