"""The heads of the messages in a nexus note, and the comments with their ids: where each message begins and what closes it.

Lines are what Markdown makes of them: a head inside a fence, a comment, an indented block or a deeper quote is text. Rows are
indexes of lines, from 0. Linear in the text, however it nests (`_Ends`). Knows nothing about what messages say.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from vaultllm.chats.messages import unquoted
from vaultllm.chats.times import BIDI, cut_time
from vaultllm.schema import Role

_CALL = re.compile(r" {0,3}>(?P<space>[ \t]?)\[!(?:nexus_(?P<who>\w{1,40})|ask)\][+-]?[ \t]*(?P<title>.*)$", re.IGNORECASE)
OWN_MARK = re.compile(r"[ \t]*<!-- vaultllm (?P<id>\d{14}-[0-9a-f]{8}) -->[ \t]*$")
"""The first line of an answer that vaultllm writes into a note: whose words these are, however much of the rest is deleted."""
OWN_OPEN = re.compile(r"[ \t]*<!-- vaultllm \d{14}-[0-9a-f]{8}: [^<>]*-->[ \t]*$")
"""The line above it, which the owner deletes to stop the answer."""
_NAMED = re.compile(r"\*\*(?P<author>[^*\n]+?)\*\*[ \t]*(?:[-–—][ \t]*(?P<at>.*))?$")
OLD = re.compile(r"^#{3,4}[ \t]+(?P<author>User|ChatGPT|Assistant|Unknown), on (?P<at>.*\d.*)$", re.MULTILINE)
_UID = re.compile(r"[ \t]*<!--[ \t]*UID:")
_FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})(?P<info>.*)$")
_ROLES: Mapping[str, Role] = {"user": "user", "agent": "assistant", "assistant": "assistant"}
_NO_ROLES = ("attachment", "artifact", "prompt", "canvas")
_NO_UID = ("undefined", "null")  # what a missing id looks like when JavaScript writes it

Fence = tuple[str, int]  # its character, its length; a comment is ("<", 0)
Uid = tuple[str, str]  # a message's id (empty: it has none), what is written behind the comment that holds it


class Head(NamedTuple):
    """The head of a message. Rows are indexes of lines, from 0."""

    row: int
    body: int  # row at which its text begins
    shape: str  # "callout", "readme" (two lines), "old", "ask" (the owner's `[!ask]`)
    role: Role
    author: str
    model: str
    at_raw: str
    said: str = ""  # text that stands in the head's last line, behind the time or where a name was expected
    strange: str = ""  # a role that the plugin doesn't know

    @property
    def depth(self) -> int:
        """Quote marks before its text."""
        return 2 if self.shape == "old" and self.role == "assistant" else 1


def uid_of(line: str) -> Uid | None:
    """The UID of a UID line; None when the line is no UID line."""
    if "UID:" not in line:
        return None
    start = _UID.match(line)
    end = line.find("-->", start.end()) if start else -1
    if start is None or end < 0:
        return None
    uid = line[start.end() : end].strip()
    return ("" if uid in _NO_UID else uid), line[end + 3 :].strip()


class _Ends:
    """Where the fences and comments that begin outside of quotes end."""

    def __init__(self, lines: Sequence[str], first: int) -> None:
        self._fences: dict[str, tuple[list[int], list[int], list[int]]] = {char: ([], [], []) for char in "`~"}  # rows, lengths, longer
        self._comments: list[tuple[int, bool]] = []  # row, whether it closes one
        self._percents: list[int] = []
        self._marks: list[tuple[int, bool]] = []  # row of what may be a head or is a UID, whether it is a UID
        for row in range(first, len(lines)):
            line = lines[row]
            if _may_fence(line) and (mark := _FENCE.match(line)) and not mark["info"].strip():
                rows, lengths, _ = self._fences[mark["marks"][0]]
                rows.append(row)
                lengths.append(len(mark["marks"]))
            if "%%" in line:
                self._percents.append(row)
            if ("<!--" in line or "-->" in line) and unquoted(line) is None:
                opens, closes = line.rfind("<!--"), line.find("-->")
                if opens > line.rfind("-->"):
                    self._comments.append((row, False))
                elif closes >= 0 and not 0 <= line.find("<!--") < closes:
                    self._comments.append((row, True))
            is_uid = uid_of(line) is not None
            if is_uid or (", on " in line and OLD.match(line)) or ("[!" in line and _CALL.match(line)):
                self._marks.append((row, is_uid))
        for rows, lengths, longer in self._fences.values():
            longer += [len(rows)] * len(rows)
            waiting: list[int] = []
            for index, length in enumerate(lengths):
                while waiting and lengths[waiting[-1]] < length:
                    longer[waiting.pop()] = index
                waiting.append(index)

    def of(self, row: int, line: str, is_open: bool) -> int:
        """Row of the line that closes the fence or comment that opens on a row; at most `row` when nothing does or none opens.

        Between messages a fence is the owner's. Inside one (`is_open`) it is content that lost its quote marks, perhaps half of
        a pair: when the message's UID comes next, the fence only counts if it ends before.
        """
        fence = fence_after(None, line)
        end = self.fence(row, fence) if fence else self.comment(row, line)
        if end > row and is_open:
            index = bisect_right(self._marks, (row, True))
            if index < len(self._marks) and self._marks[index][0] <= end and self._marks[index][1]:
                return row
        return end

    def fence(self, row: int, fence: Fence) -> int:
        """Row of the line that closes the fence that opens on a row; -1 when none does."""
        rows, lengths, longer = self._fences[fence[0]]
        index = bisect_right(rows, row)
        while index < len(rows) and lengths[index] < fence[1]:
            index = longer[index]  # each step is at least one mark longer: no more steps than the opening line has marks
        return rows[index] if index < len(rows) else -1

    def comment(self, row: int, line: str) -> int:
        """Row of the line that closes a comment that begins a line; -1 when none begins or none of its own ends it."""
        said = line.strip()
        if said.startswith("%%") and said.count("%%") % 2:
            index = bisect_right(self._percents, row)
            return self._percents[index] if index < len(self._percents) else -1
        if said.startswith("<!--") and said.rfind("<!--") > said.rfind("-->") and not _UID.match(line):
            index = bisect_right(self._comments, (row, True))
            # Another comment begins before this one ends: somebody forgot to close it, it hides nothing.
            return self._comments[index][0] if index < len(self._comments) and self._comments[index][1] else -1
        return -1


def scan(lines: Sequence[str], first: int) -> tuple[list[Head], dict[int, Uid]]:
    """The heads of all messages, in order, and the UIDs by row; none from inside a fence, a comment or a deeper quote."""
    ends: _Ends | None = None  # most notes open no fence and no comment outside of quotes
    heads: list[Head] = []
    uids: dict[int, Uid] = {}
    hidden: Fence | None = None  # a fence or comment in the quote
    is_open = False  # a message whose UID has not come yet
    row = first
    while row < len(lines):
        line = lines[row]
        if not line:
            hidden = None
            row += 1
            continue
        inner = unquoted(line)
        if inner is None:
            hidden = None
        if hidden is None and ("[!" in line or ", on " in line) and (head := _head(lines, row, first)):
            heads.append(head)
            is_open, row = True, head.body
            continue
        if inner is not None:
            if hidden is not None or "<!--" in inner or _may_fence(inner):
                hidden = _hidden_after(hidden, inner)
        elif "<!--" in line or "%%" in line or _may_fence(line):
            if uid := uid_of(line):
                uids[row] = uid
                is_open = False
            else:
                ends = ends or _Ends(lines, first)
                row = max(row, ends.of(row, line, is_open))
        row += 1
    return heads, uids


def _may_fence(line: str) -> bool:
    """Whether a line can open or close a fence at all: most lines cannot, and this is all it costs them."""
    return "```" in line or "~~~" in line


def fence_after(fence: Fence | None, line: str) -> Fence | None:
    """The fence that is open after a line, given the one before it."""
    mark = _FENCE.match(line) if _may_fence(line) else None
    if mark is None:
        return fence
    char, length = mark["marks"][0], len(mark["marks"])
    if fence is None:
        return None if char == "`" and "`" in mark["info"] else (char, length)
    return None if char == fence[0] and length >= fence[1] and not mark["info"].strip() else fence


def _hidden_after(hidden: Fence | None, inner: str) -> Fence | None:
    """The fence or comment that is open after a line of a quote."""
    if hidden == ("<", 0):
        return None if "-->" in inner else hidden
    if hidden is None and inner.lstrip(" ").startswith("<!--") and "-->" not in inner:
        return "<", 0
    return fence_after(hidden, inner)


def _head(lines: Sequence[str], row: int, first: int) -> Head | None:
    """The head that begins on a row, if one does."""
    line = lines[row]
    if old := OLD.match(line) if line.startswith("#") else None:
        at, said = _at(lines, row + 1, old["at"].strip().removesuffix(";"))
        return Head(row, row + 1, "old", "user" if old["author"] == "User" else "assistant", old["author"], "", at, said)
    call = _CALL.match(line)
    if call is None:
        return None
    if call["who"] is None:
        below = row > first and unquoted(lines[row - 1]) is not None  # then the quote began above it, and it is text
        return None if below else Head(row, row + 1, "ask", "user", "", "", "", call["title"].strip())
    who = call["who"].lower()
    if who in _NO_ROLES:
        return None
    # A callout begins where its quote begins. The plugin writes heads without a space and body lines with one, so a
    # head without a space counts even right below a body that lost its UID.
    if call["space"] and row > first and unquoted(lines[row - 1]) is not None:
        return None
    title, body, shape = call["title"].strip(), row + 1, "callout"
    if not title and body < len(lines) and (second := unquoted(lines[body])) and _NAMED.match(second.strip()):
        title, body, shape = second.strip(), body + 1, "readme"
    named = _NAMED.match(title)
    role = _ROLES.get(who, "system")
    strange = "" if who in _ROLES else who
    if named is None:
        return None if strange else Head(row, body, shape, role, "", "", "", title)
    author, _, model = (named["author"] if named["author"].isascii() else BIDI.sub("", named["author"])).partition("·")
    at, said = _at(lines, body, (named["at"] or "").strip())
    if strange and not at:
        return None
    return Head(row, body, shape, role, author.strip(), model.strip(), at, said, strange)


def _at(lines: Sequence[str], body: int, raw: str) -> tuple[str, str]:
    """A head's time, and the text that a formatter has joined to it; one or two unknown words are part of the time."""
    at, said = cut_time(raw)
    if said and (said.count(" ") >= 2 or body >= len(lines) or unquoted(lines[body]) is None):
        return at, said
    return raw, ""
