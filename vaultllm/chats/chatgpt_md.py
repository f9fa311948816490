"""Notes in which the Obsidian plugin ChatGPT MD holds a talk: parts between `<hr class="__chatgpt_plugin">`, each with `role::`.

As the plugin's loader does, the note is cut at that literal rule and at nothing else (also in code: an answer that was cut off
leaves its fence open); here it must be alone on its line, so that a sentence about it cuts nothing. A part's role stands in its
`role::` line (a heading of any level or none, the model in brackets); a part without one is the owner's. Blocks between
`=begin-chatgpt-md-comment` and `=end-chatgpt-md-comment` are no part of the talk. `system_commands` of the front matter are what
the model was told to be. The empty part at the end is where the owner writes next. The format has no times and no ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from vaultllm.chats.fences import outside_fences
from vaultllm.chats.messages import Message, blanked, conversation
from vaultllm.schema import Conversation, Note, Problem, Role, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_RULE = '<hr class="__chatgpt_plugin">'
_ROLE = re.compile(r"[ \t#>*_]*role::[ \t]*(?P<role>[^\W\d_]*)(?P<rest>.*)$", re.IGNORECASE)
_SPAN = re.compile(r"[ \t]*<span\b[^>]*>(?P<said>[^<]*)</span>[ \t]*")
_MODEL = re.compile(r"[ \t]*\((?P<model>[^()]*)\)[ \t]*")
_ROLES: tuple[tuple[str, Role], ...] = (("user", "user"), ("assistant", "assistant"), ("developer", "system"), ("system", "system"))
_BEGIN, _END = "=begin-chatgpt-md-comment", "=end-chatgpt-md-comment"


def detect(note: Note, settings: ScanSettings) -> str:
    """`3 ChatGPT MD rules`; empty when the plugin's rule stands on no line of the note."""
    if _RULE not in note.text:
        return ""
    count = sum(line.strip() == _RULE for line in note.text.split("\n")[note.body_line - 1 :])
    return f"{count} ChatGPT MD rule{'s' * (count > 1)}" if count else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of the note; it has no times."""
    lines = note.text.split("\n")
    top = note.body_line - 1
    rules = [row for row in range(top, len(lines)) if lines[row].strip() == _RULE]
    messages: list[Message] = []
    comments: list[int] = []
    unknown: list[int] = []
    starts = [(top, top), *((rule, rule + 1) for rule in rules)]
    for (start, body), end in zip(starts, [*rules, len(lines)], strict=True):
        shown, found = _without_comments(lines[body:end])
        comments += (body + row for row in found)
        for message, known in _part(shown, start, body, end):
            messages.append(message)
            if not known:
                unknown.append(message.start + 1)
    tail = []
    if comments:
        what = f"{len(comments)} comment blocks of ChatGPT MD are no part of the talk; they stay in the note"
        tail.append(Problem("W-COMMENT", what, comments[0] + 1, len(comments)))
    if unknown:
        what = f"{len(unknown)} roles are unknown to ChatGPT MD and read as the owner's, as it does; name user or assistant there"
        tail.append(Problem("W-ROLE", what, unknown[0], len(unknown)))
    return [conversation(note, messages, provider="chatgpt-md", first=_system(note, lines), open_end=True, tail=tail)]


def _part(text: list[str], start: int, body: int, end: int) -> Iterator[tuple[Message, bool]]:
    """The messages of a part (`text`, which begins on row `body`; its rule is on row `start`), and whether their role is known.

    It is one message. Where a rule was deleted, so that the role's line is not the first, what stands above is the owner's.
    """
    rows = outside_fences(text, 0, [row for row, line in enumerate(text) if _ROLE.match(line)])[:1]
    above = text[: rows[0]] if rows else text
    filled = next((row for row, line in enumerate(above) if line.strip()), None)
    if filled is not None or (not rows and body > start):
        begin = start if body > start else body + (filled or 0)
        yield Message(begin, body, body + len(above), above, "user"), True
        start = body + len(above)
    if rows and (found := _ROLE.match(text[rows[0]])):
        written, rest = found["role"], found["rest"]
        named = next((role for word, role in _ROLES if word == written.lower()), None)
        named = named or next((role for word, role in _ROLES if word in (written + rest).lower()), None)
        model = ""
        if span := _SPAN.match(rest):
            inner, rest = _MODEL.match(span["said"]), rest[span.end() :]
            model = inner["model"] if inner else ""
        elif inner := _MODEL.match(rest):
            model, rest = inner["model"], rest[inner.end() :]
        said = [rest.strip(), *text[rows[0] + 1 :]]
        begin = start if body > start or filled is not None else body + rows[0]
        yield Message(begin, body + rows[0], end, said, named or "user", written, model.strip()), named is not None


def _system(note: Note, lines: list[str]) -> list[Turn]:
    """What `system_commands` tell the model, as one turn on the lines of the front matter that hold them."""
    commands = note.properties.get("system_commands")
    told = [str(one).strip() for one in (commands if isinstance(commands, list) else [commands]) if one is not None]
    text = "\n".join(one for one in told if one)
    if not text:
        return []
    rows = range(1, note.body_line - 2)
    head = next((row for row in rows if lines[row].lstrip().startswith(("system_commands", '"system_commands', "'system_commands"))), None)
    if head is None:
        return []
    inside, end = (" ", "\t", "-", "]"), note.body_line - 2
    last = next((row for row in range(head + 1, end) if not lines[row].startswith(inside)), end)
    while not lines[last - 1].strip():
        last -= 1
    return [Turn("system", text, (head + 1, last), author="system_commands")]


def _without_comments(lines: list[str]) -> tuple[list[str], list[int]]:
    """The lines with comment blocks emptied, and the rows on which these begin. One without an end stays, as in the plugin."""
    text = "\n".join(lines)
    spans: list[tuple[int, int]] = []
    place = 0
    while (start := text.find(_BEGIN, place)) >= 0:
        end = text.find(_END, start)
        if end < 0:
            break
        place = end + len(_END)
        spans.append((start, place))
    rows: list[int] = []
    row = at = 0
    for start, _ in spans:
        row, at = row + text.count("\n", at, start), start
        rows.append(row)
    return blanked(text, spans).split("\n") if lines else [], rows
