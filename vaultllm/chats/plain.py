"""Transcripts as people paste them: `User: …`, `**Assistant:** …`, `> Вопрос: …`, `[21:34] You: …`.

The loosest format, so it comes last and asks for proof: a label within the first lines, at least two changes of speaker, labels
at the line's start and outside fences, most of the text inside the turns. Everything else stays an ordinary note.
Knows no times but `[21:34]` and `21:34`, which are kept as they are written, since the day is unknown. What it cannot know: a list
of several questions and answers under these labels reads as a talk; take the labels out of the settings if you write such notes.
"""

from __future__ import annotations

import functools
import itertools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vaultllm.chats.clipper import without_rule
from vaultllm.chats.fences import outside_fences
from vaultllm.chats.messages import Message, conversation, unquoted
from vaultllm.schema import Conversation, Note, Role
from vaultllm.text import fold, is_json

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

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
def _folded(labels: tuple[str, ...]) -> frozenset[str]:
    return frozenset(map(fold, labels))


@functools.lru_cache(maxsize=16)
def _pattern(labels: tuple[str, ...]) -> re.Pattern[str]:
    names = "|".join(re.escape(label) for label in sorted(labels, key=len, reverse=True) if label)
    return re.compile(
        r"(?:(?P<bracket>\[)?(?P<at>\d{1,2}:\d{2}(?::\d{2})?)(?(bracket)\])[ \t]*)?"
        rf"(?P<bold>\*\*|__)?(?P<label>{names or '(?!)'})"
        # `user:: me` is a field of Dataview's.
        r"(?:(?(bold)(?P=bold))[ \t]*[:：]|[ \t]*[:：](?(bold)(?P=bold)))(?!:)[ \t]*(?P<said>.*)$",
        re.IGNORECASE,
    )


def detect(note: Note, settings: ScanSettings) -> str:
    """`12 labelled turns`; empty when the note is no transcript."""
    if is_json(note.path):
        return ""
    lines = note.text.split("\n")
    labels, quoted = _labels(lines, note.body_line - 1, settings)
    changes = sum(one.role != two.role for one, two in itertools.pairwise(labels))
    if changes < 2:
        return ""
    before = [line for line in lines[note.body_line - 1 : labels[0].row] if line.strip()]
    spoken = sum(len(line) for message in _messages(lines, labels, quoted) for line in lines[message.start : message.end])
    whole = sum(len(line) for line in lines[note.body_line - 1 :])
    return f"{len(labels)} labelled turns" if len(before) < _FIRST_LINES and 2 * spoken > whole else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of a transcript: a turn runs to the next label; what is outside is loose."""
    lines = note.text.split("\n")
    labels, quoted = _labels(lines, note.body_line - 1, settings)
    return [conversation(note, _messages(lines, labels, quoted))]


def _messages(lines: list[str], labels: list[_Label], quoted: bool) -> list[Message]:
    messages: list[Message] = []
    for label, following in zip(labels, [*(label.row for label in labels[1:]), len(lines)][: len(labels)], strict=True):
        end = following
        if quoted:  # a quoted transcript ends where its quote does
            end = next((row for row in range(label.row + 1, following) if lines[row].strip() and unquoted(lines[row]) is None), following)
        below = [_bare(line) if quoted else line for line in lines[label.row + 1 : end]]
        text = without_rule([label.said, *below])
        messages.append(Message(label.row, label.row, end, text, label.role, label.author, at_raw=label.at_raw))
    return messages


def _bare(line: str) -> str:
    """The line without its first quote mark."""
    inner = unquoted(line)
    return line if inner is None else inner


def _labels(lines: list[str], first: int, settings: ScanSettings) -> tuple[list[_Label], bool]:
    """The labels outside fences, and whether they stand in a quote (as the first one does)."""
    pattern = _pattern((*settings.labels_user, *settings.labels_assistant))
    written = [row for row in range(first, len(lines)) if ":" in lines[row] or "：" in lines[row]]
    found = {row: match for row in written if (match := pattern.match(_bare(lines[row])))}
    if not found:
        return [], False
    users = _folded(settings.labels_user)
    labels: list[_Label] = []
    quoted = False
    for row in outside_fences([_bare(line) for line in lines], first, list(found)):
        is_quoted = unquoted(lines[row]) is not None
        if labels and is_quoted != quoted:
            continue
        quoted = is_quoted
        match = found[row]
        role: Role = "user" if fold(match["label"]) in users else "assistant"
        labels.append(_Label(row, role, match["label"], match["at"] or "", match["said"]))
    return labels, quoted
