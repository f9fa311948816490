"""Transcripts as people paste them: `User: …`, `**Assistant:** …`, `> Вопрос: …`, `[21:34] You: …`.

The loosest format, so it comes last and asks for proof: a label within the first lines, at least two changes of speaker, labels
at the line's start and outside fences, most of the text inside the turns. Everything else stays an ordinary note.
Knows no times but `[21:34]`, which is kept as it is written, since the day is unknown.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass

from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Lines, Note, Role, Turn
from vaultllm.text import fold

_QUOTE = re.compile(r" {0,3}>[ \t]?")
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$")
_RULE = re.compile(r" {0,3}(?:-{3,}|\*{3,}|_{3,})[ \t]*$")
_FIRST_LINES = 5  # lines with text within which the first label must come


@dataclass(frozen=True, slots=True)
class _Label:
    """A line on which somebody begins to speak. `row` counts from 0."""

    row: int
    role: Role
    author: str
    at_raw: str
    said: str


@functools.lru_cache(maxsize=16)
def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True) if label)
    return re.compile(
        rf"(?:\[(?P<at>\d{{1,2}}:\d{{2}}(?::\d{{2}})?)\][ \t]*)?(?P<bold>\*\*|__)?(?P<label>{names})"
        r"(?:(?(bold)(?P=bold))[ \t]*[:：]|[ \t]*[:：](?(bold)(?P=bold)))[ \t]*(?P<said>.*)$",
        re.IGNORECASE,
    )


def detect(note: Note, settings: ScanSettings) -> str:
    """`12 labelled turns`; empty when the note is no transcript."""
    if note.path.lower().endswith(".json"):
        return ""
    lines = note.text.split("\n")
    labels, _ = _labels(lines, note.body_line - 1, settings)
    changes = sum(one.role != two.role for one, two in itertools.pairwise(labels))
    if changes < 2:
        return ""
    before = [line for line in lines[note.body_line - 1 : labels[0].row] if line.strip()]
    (conversation,) = read(note, settings, "")
    spoken = sum(len(line) for turn in conversation.turns for line in lines[turn.lines[0] - 1 : turn.lines[1]])
    whole = sum(len(line) for line in lines[note.body_line - 1 :])
    return f"{len(labels)} labelled turns" if len(before) < _FIRST_LINES and 2 * spoken > whole else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of a transcript: a turn runs to the next label; what is outside is loose."""
    lines = note.text.split("\n")
    first = note.body_line - 1
    labels, quoted = _labels(lines, first, settings)
    turns: list[Turn] = []
    loose: list[Lines] = []
    _add_loose(loose, lines, first, labels[0].row if labels else len(lines))
    for label, following in zip(labels, [*(label.row for label in labels[1:]), len(lines)][: len(labels)], strict=True):
        end = following
        if quoted:  # a quoted transcript ends where its quote does
            end = next((row for row in range(label.row + 1, following) if lines[row].strip() and not _QUOTE.match(lines[row])), following)
            _add_loose(loose, lines, end, following)
        text = [label.said, *((_QUOTE.sub("", line, count=1) if quoted else line) for line in lines[label.row + 1 : end])]
        rows = [row for row in range(len(text)) if text[row].strip()]
        while rows and _RULE.match(text[rows[-1]]):
            rows.pop()
        last = max((row for row in range(label.row, end) if lines[row].strip()), default=label.row)
        if rows:
            said = "\n".join(text[rows[0] : rows[-1] + 1])
            span = (label.row + 1, last + 1)
            turns.append(Turn(label.role, said, span, label.row + rows[0] + 1, label.author, at_raw=label.at_raw))
    bottom = max((row for row in range(first, len(lines)) if lines[row].strip()), default=first)
    return [Conversation("", note.title, "", "", tuple(turns), (first + 1, bottom + 1), tuple(loose))]


def _add_loose(loose: list[Lines], lines: list[str], start: int, end: int) -> None:
    rows = [row for row in range(start, end) if lines[row].strip()]
    if rows:
        loose.append((rows[0] + 1, rows[-1] + 1))


def _labels(lines: list[str], first: int, settings: ScanSettings) -> tuple[list[_Label], bool]:
    """The labels outside fences, and whether they stand in a quote (as the first one does)."""
    users = {fold(label) for label in settings.labels_user}
    pattern = _pattern((*settings.labels_user, *settings.labels_assistant))
    labels: list[_Label] = []
    quoted = False
    fence = ""
    for row in range(first, len(lines)):
        in_quote = _QUOTE.match(lines[row])
        line = lines[row][in_quote.end() :] if in_quote else lines[row]
        if mark := _FENCE.match(line):
            if not fence:
                fence = mark[1]
            elif mark[1].startswith(fence) and not mark[2].strip():
                fence = ""
            continue
        found = None if fence else pattern.match(line)
        if found is None or (labels and bool(in_quote) != quoted):
            continue
        quoted = bool(in_quote)
        role: Role = "user" if fold(found["label"]) in users else "assistant"
        labels.append(_Label(row, role, found["label"], found["at"] or "", found["said"]))
    return labels, quoted
