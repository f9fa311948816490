"""What the readers of transcripts in Markdown share: a message cut out of lines, and the account of what was left out.

A reader finds where messages begin and cuts them out (`Message`); `conversation` makes turns of them, counts what says nothing
or was not said by anybody (tool calls, reasoning, retrieved context), and finds the owner's own lines between them. Text stays
line by line as it stands in the file; what a reader takes out of it is left empty, so that line i of a turn's text is line
`text_line + i` of the file. Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from vaultllm.chats.times import is_unknown
from vaultllm.schema import Conversation, Lines, Note, Problem, Role, Turn

_WHAT = {
    "W-EMPTY": ("this message has no text", "messages have no text"),
    "W-TOOL": ("a tool's call or result is no talk", "tool calls or results are no talk"),
    "W-HIDDEN": ("reasoning or retrieved context is no talk", "pieces of reasoning or retrieved context are no talk"),
    "W-SERVICE": ("a line of the program itself is no talk", "lines of the program itself are no talk"),
}
_QUOTE = re.compile(r" {0,3}>[ \t]?")
_CLOCK = re.compile(r"\d{1,2}:\d{2}(?::\d{2})?")
_SUMMARY = re.compile(r"[ \t]*<details\b[^>]*>[ \t]*(?:<summary\b[^>]*>(?P<title>[^<]*))?", re.IGNORECASE)
_TITLE = re.compile(r"[ \t]*<summary\b[^>]*>(?P<title>[^<]*)", re.IGNORECASE)
_THINKING = re.compile(
    r"[^\w<]*(?:thinking|thoughts?|thought (?:process|for)\b.*|chain of thought|reasoning(?: process)?|reasoned for\b.*"
    r"|размышления|рассуждени[ея]|мысли|ход мыслей|চিন্তা)[\s.…:]*$",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class Message:
    """A message as its reader cut it out. Rows count from 0, ends are excluded."""

    start: int
    """The row of its head."""
    body: int
    """The row of `text`'s first line."""
    end: int
    """The row after its last one: that of the next head, or of the end."""
    text: Sequence[str]
    """Its lines from row `body` on, what was taken out of them empty."""
    role: Role
    """Who speaks."""
    author: str = ""
    """As written."""
    model: str = ""
    """The model that spoke."""
    at: str = ""
    """ISO 8601."""
    at_raw: str = ""
    """As written."""
    uid: str = ""
    """Its id."""
    attachments: tuple[str, ...] = ()
    """Names of what was attached."""
    tools: int = 0
    """Tool calls and results that were taken out of its text."""
    hidden: int = 0
    """Pieces of reasoning or retrieved context that were taken out of its text."""
    left_out: str = ""
    """The code of the problem under which the whole message is left out (`W-TOOL`); empty for a message that was said."""


def unquoted(line: str) -> str | None:
    """What stands behind a line's first quote mark; None when it has none."""
    if line.startswith(">"):  # as the plugin writes it
        return line[2:] if line.startswith((" ", "\t"), 1) else line[1:]
    mark = _QUOTE.match(line) if line.startswith(" ") else None
    return line[mark.end() :] if mark else None


def span_of(rows: Sequence[str]) -> tuple[int, int]:
    """First and last row of the rows that are not blank; (0, -1) when all are."""
    first = first_filled(rows, 0, len(rows))
    return (first, last_filled(rows, first, len(rows))) if first < len(rows) else (0, -1)


def first_filled(rows: Sequence[str], start: int, end: int) -> int:
    """The first row from `start` on and before `end` that is not blank; `end` when all are."""
    while start < end and not rows[start].strip():
        start += 1
    return start


def last_filled(rows: Sequence[str], start: int, end: int) -> int:
    """The last row from `start` on and before `end` that is not blank; `start - 1` when all are."""
    end -= 1
    while end >= start and not rows[end].strip():
        end -= 1
    return end


def blanked(text: str, spans: Sequence[tuple[int, int]]) -> str:
    """The text without its spans (in order, apart from each other), whose newlines stay."""
    parts: list[str] = []
    last = 0
    for start, end in spans:
        parts += (text[last:start], "\n" * text.count("\n", start, end))
        last = end
    return "".join((*parts, text[last:]))


def without_thinking(lines: Sequence[str]) -> tuple[list[str], int]:
    """The lines with `<details>` whose summary speaks of thinking emptied, and how many of them there were.

    One that is never closed stays: there is no telling where it ends. Others (`<details><summary>Code`) are text.
    """
    kept = list(lines)
    found = 0
    row = 0
    while row < len(kept):
        if _thinks(kept, row):
            depth, end = 0, row
            for end in range(row, len(kept)):
                low = kept[end].lower()
                depth += low.count("<details") - low.count("</details")
                if depth <= 0:
                    break
            if depth > 0:
                break  # no later one has an end either: theirs would be this one's
            kept[row : end + 1] = [""] * (end + 1 - row)
            found += 1
            row = end
        row += 1
    return kept, found


def _thinks(lines: Sequence[str], row: int) -> bool:
    opening = _SUMMARY.match(lines[row])
    if opening is None:
        return False
    title = opening["title"]
    if title is None and row + 1 < len(lines):
        below = _TITLE.match(lines[row + 1])
        title = below["title"] if below else None
    return title is not None and ("💭" in title or _THINKING.match(title.strip()[:200]) is not None)


def conversation(
    note: Note,
    messages: Sequence[Message],
    *,
    id: str = "",
    title: str = "",
    provider: str = "",
    created: str = "",
    first: Sequence[Turn] = (),
    open_end: bool = False,
    tail: Sequence[Problem] = (),
) -> Conversation:
    """The messages (in order, not overlapping) as one conversation; `seen` and `loose` are filled in.

    `first` are turns from elsewhere in the file; with `open_end` an empty last message of the owner's is where they would
    write next, and no message; `tail` are further problems. A heading of the first level above the messages is their title,
    and no loose text.
    """
    lines = note.text.split("\n")
    top = note.body_line - 1
    turns: list[Turn] = []
    alone: list[Problem] = []  # messages of which nothing is left, each with its line
    parts: dict[str, tuple[int, int]] = {}  # code -> (line of the first, how many)
    loose: list[Lines] = []
    row = top
    for number, message in enumerate(messages):
        loose += _own(lines, row, message.start, titled=number == 0)
        row = message.end
        one, last = span_of(message.text)
        span = (message.start + 1, message.start + 1 + max(0, span_of(lines[message.start : message.end])[1]))
        taken = {code: count for code, count in (("W-TOOL", message.tools), ("W-HIDDEN", message.hidden)) if count}
        if message.left_out or last < 0:
            if open_end and number == len(messages) - 1 and message.role == "user" and not taken and not message.left_out:
                if turns:  # its head ends the message above it
                    turns[-1] = _longer(turns[-1], span[1])
                continue
            codes = {message.left_out: 1} if message.left_out else taken or {"W-EMPTY": 1}
            alone += (left_out(code, span[0], count) for code, count in codes.items())
            continue
        for code, count in taken.items():
            line, so_far = parts.get(code, (span[0], 0))
            parts[code] = (line, so_far + count)
        turns.append(
            Turn(
                role=message.role,
                text="\n".join(message.text[one : last + 1]),
                lines=span,
                text_line=message.body + one + 1,
                author=message.author,
                model=message.model,
                at=message.at,
                at_raw=message.at_raw,
                uid=message.uid,
                attachments=tuple(dict.fromkeys(message.attachments)),
            )
        )
    loose += _own(lines, row, len(lines), titled=not messages)
    out = [*alone, *(left_out(code, line, count) for code, (line, count) in parts.items())]
    problems = (*out, *unread_times(turns), *tail)
    seen = len(first) + len(turns) + sum(problem.count for problem in out)
    bottom = max(top, last_filled(lines, top, len(lines)))
    whole = (min([note.body_line, *(turn.lines[0] for turn in first)]), max(note.body_line, bottom + 1))
    return Conversation(id, title or title_of(note, messages), provider, created, (*first, *turns), whole, tuple(loose), problems, seen)


def title_of(note: Note, messages: Sequence[Message]) -> str:
    """The note's title, unless it is a heading of one of the messages: then the file's name."""
    named = note.properties.get("title")
    top = messages[0].start + 1 if messages else len(note.text)
    above = any(block.kind == "heading" and block.level == 1 and block.title and block.lines[0] < top for block in note.blocks)
    return note.title if above or (isinstance(named, str) and named.strip()) else PurePosixPath(note.path).stem


def left_out(code: str, line: int, count: int = 1) -> Problem:
    """The problem that stands for `count` messages (or parts of them) which are left out of the talk."""
    one, many = _WHAT[code]
    what = f"{one}; it is left out" if count == 1 else f"{count} {many}; they are left out"
    return Problem(code, f"{what} of the talk and kept in the file", line, count)


def unread_times(turns: Sequence[Turn]) -> list[Problem]:
    """At most one problem: times that are written and cannot be read. A bare `21:34` says all that it knows."""
    unread = [turn for turn in turns if not turn.at and not _CLOCK.fullmatch(turn.at_raw) and not is_unknown(turn.at_raw)]
    if not unread:
        return []
    message = f"{len(unread)} of {len(turns)} times cannot be read (the first: {unread[0].at_raw[:60]!r}); they stay unknown"
    return [Problem("W-TIME", message, unread[0].lines[0])]


def _longer(turn: Turn, last: int) -> Turn:
    return Turn(**{name: getattr(turn, name) for name in Turn.__slots__} | {"lines": (turn.lines[0], last)})


def _own(lines: Sequence[str], start: int, end: int, *, titled: bool) -> list[Lines]:
    """The lines from row `start` to `end` that somebody wrote, as ranges; with `titled` between the headings that are titles."""
    found: list[Lines] = []
    rows: list[int] = []
    for row in range(start, end + 1):
        if row == end or (titled and lines[row].startswith("# ")):
            if rows:
                found.append((rows[0] + 1, rows[-1] + 1))
            rows = []
        elif lines[row].strip():
            rows.append(row)
    return found
