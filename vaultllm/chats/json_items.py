"""The values of a JSON file of any size, one by one, with their lines; what is broken costs only itself.

The text is read through a window that moves on: containers whose path is in `OPENED` are entered, everything else is decoded
whole by the standard library (its C scanner), so that the memory needed is that of the largest single value. After an error
the next value of the same kind is looked for. JSON Lines are decoded line by line. Telegram's invalid `\\x0B` is mended.
Knows nothing about any program's messages; knows only where the known programs keep their lists.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from vaultllm.schema import Lines, Problem

Path = tuple[str, ...]

LARGEST = 48 * 2**20
"""Characters of the largest single value that is decoded; a conversation beyond it is a problem."""
CHUNK = 2**20
"""Bytes read at a time."""

_CHATS = tuple((key, *rest) for key in ("chats", "left_chats") for rest in ((), ("list",), ("list", "*"), ("list", "*", "messages")))
OPENED: frozenset[Path] = frozenset({(), ("messages",), ("conversations",), *_CHATS})
"""Paths that are entered (`*` is an element of an array); the rest is decoded whole."""

_NEXT = re.compile(r"[\[,}]\s*(?=\{\s*\")")
_FIRST_KEY = re.compile(r"\{\s*\"([^\"\\]{0,200})\"")
_NEXT_CHAT = re.compile(
    r"(?:[\[,}]\s*)(?=\{(?:\s*\"(?:name|type|id)\"\s*:\s*(?:null|-?\d+|\"(?:[^\"\\]|\\.)*+\")\s*,){1,3}\s*\"messages\"\s*:\s*\[)"
)
_BLANK = " \t\n\r\ufeff"
_SPACE = re.compile(f"[{_BLANK}]*")
_ESCAPED = re.compile(r"(?<!\\)((?:\\\\)*+)\\x([0-9A-Fa-f]{2})")
_CUT_ESCAPE = re.compile(r"\\(?:x[0-9A-Fa-f]?)?")
_DECODER = json.JSONDecoder(strict=False)  # raw control characters in strings are met in real exports
_PATIENT = json.JSONDecoder(strict=False, parse_int=lambda digits: int(digits) if len(digits) < 400 else float("inf"))
_TOLD = 100  # broken lines that have a problem of their own
_WORK = 256 * 2**20  # characters that may be looked at in vain after errors of one file, so that a hostile file ends too


class Item(NamedTuple):
    """One value of the file, the end of an opened object (`end`), or what is broken there (`problem`)."""

    path: Path
    """Keys from the top; `*` for an element of an array."""
    value: Any
    """Decoded; None at an end or a problem."""
    lines: Lines
    """Where it stands in the file."""
    problem: Problem | None = None
    end: bool = False
    size: int = 0
    """Characters of the value."""
    times: int = 1
    """How many values it stands for: those of the top that nobody wants come as one, at the end and without a value."""


class _TooLargeError(ValueError):
    """A single value is beyond LARGEST."""


class _ShapeError(ValueError):
    """Values do not follow each other as JSON wants it. (The library's own error counts lines from the text's beginning.)"""

    def __init__(self, msg: str, pos: int) -> None:
        super().__init__(msg)
        self.msg, self.pos = msg, pos


class Window:
    """A part of the text that moves on through it; `place` is where the next value begins."""

    def __init__(self, chunks: Iterator[str]) -> None:
        self.text = ""
        self.place = 0
        self.work = _WORK
        self.ended = False  # its end was reached where something was still open, and that was reported
        self._chunks = chunks
        self._gone = 0  # characters before the window
        self._line, self._counted, self._begin = 1, 0, 0  # line at text[_counted]; absolute place where that line begins

    def grow(self) -> bool:
        """Read on, at least as much as is still open; what lies before `place` goes. False at the end of the file."""
        rest = len(self.text) - self.place
        parts = []
        got = 0
        for chunk in self._chunks:
            parts.append(chunk)
            got += len(chunk)
            if got >= rest and got:
                break
        if not got:
            return False
        self.at(self.place)
        self._gone += self.place
        self._counted = 0
        self.text = "".join((self.text[self.place :], *parts))
        self.place = 0
        return True

    def at(self, place: int) -> tuple[int, int]:
        """Line and column of a place in the text; places must be asked for in order."""
        if place <= self._counted:
            return self._line, max(1, self._gone + place - self._begin + 1)
        self._line, column = self.where(place)
        self._begin = self._gone + place - column + 1
        self._counted = place
        return self._line, column

    def where(self, place: int) -> tuple[int, int]:
        """The same, for a place ahead to which reading may not come yet."""
        line, begin = self._line, self._begin
        if place > self._counted and (found := self.text.count("\n", self._counted, place)):
            line += found
            begin = self._gone + self.text.rfind("\n", self._counted, place) + 1
        return line, max(1, self._gone + place - begin + 1)

    def charge(self, error: Exception) -> None:
        """Take what an error has cost from the work that is left."""
        if isinstance(error, json.JSONDecodeError):  # it read from `place` on, and counted the lines before
            self.work -= error.pos - self.place + error.pos // 64
        self.work -= 400_000 if isinstance(error, RecursionError) else 40_000

    def peek(self) -> str:
        """The next character that is no white space, which `place` then points at; empty at the end of the file."""
        if self.place < len(self.text) and self.text[self.place] not in _BLANK:
            return self.text[self.place]
        while True:
            match = _SPACE.match(self.text, self.place)
            self.place = match.end() if match else self.place
            if self.place < len(self.text):
                return self.text[self.place]
            if not self.grow():
                return ""

    def value(self) -> Any:
        """The value at `place`, which moves behind it. Raises ValueError or RecursionError, `place` unmoved."""
        value, self.place = self.look()
        return value

    def look(self) -> tuple[Any, int]:
        """The value at `place` and the place behind it."""
        while True:
            try:
                value, end = _decode(self.text, self.place)
            except json.JSONDecodeError as error:
                # A value that the window cuts fails at its end, or as a string that does not close.
                cut = error.pos >= len(self.text) - 16 or error.msg.startswith("Unterminated string")
                if not cut:
                    raise
                if len(self.text) - self.place > LARGEST:
                    raise _TooLargeError(f"it is larger than {LARGEST // 2**20} million characters") from error
                if not self.grow():
                    raise
                continue
            if isinstance(value, (int, float)) and end >= len(self.text) - 3 and self.grow():
                continue  # `1.` or `1e+` at the window's end may go on
            return value, end

    def skip_to(self, pattern: re.Pattern[str], wanted: Callable[[], bool]) -> bool:
        """Move to the next match's end at which `wanted` agrees; False, at the end of the file, when there is none."""
        while self.work > 0:
            found = pattern.search(self.text, self.place)
            if found is None:
                self.place = max(self.place, len(self.text) - 4096)  # a match may begin there and go on
                if not self.grow():
                    break
                continue
            self.place = found.end()
            if wanted():
                return True
        self.place = len(self.text)
        while self.work <= 0 and self.grow():  # given up: the rest is only counted
            self.place = len(self.text)
        return False


def _decode(text: str, place: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, place)
    except json.JSONDecodeError:
        raise
    except ValueError:  # an integer of thousands of digits
        return _PATIENT.raw_decode(text, place)


def items(chunks: Iterator[str], wanted: Callable[[Any], bool]) -> Iterator[Item]:
    """The values of a file: containers in OPENED are entered; after an error reading goes on at the next value that is `wanted`."""
    yield from _sifted(_elements(Window(mended(chunks)), (), wanted, ""), wanted)


def _sifted(found: Iterator[Item], wanted: Callable[[Any], bool]) -> Iterator[Item]:
    """The items, the unwanted elements at the top only counted: millions of numbers shall take no memory."""
    first: Lines = (0, 0)
    count = 0
    for item in found:
        if item.path == ("*",) and item.problem is None and not wanted(item.value):
            first, count = first if count else item.lines, count + 1
        else:
            yield item
    if count:
        yield Item(("*",), None, first, times=count)


def _elements(window: Window, path: Path, wanted: Callable[[Any], bool], closing: str) -> Iterator[Item]:
    """The elements of an array, or of the file itself (`closing` is empty: values follow each other)."""
    inner = (*path, "*") if closing else path
    chats = path[1:] == ("list",)
    resumes = chats or path in ((), ("messages",), ("conversations",))
    heads: set[str] = set()
    next_one = (_NEXT_CHAT, lambda: True) if chats else (_NEXT, lambda: _is_wanted(window, heads, wanted))
    while True:
        mark = window.peek()
        if mark == closing or window.ended:
            window.place += len(mark)
            return
        start = window.at(window.place)[0]
        beside = False
        try:
            if not mark:
                raise _ShapeError("the file ends here", window.place)
            for item in _one(window, inner, wanted):
                if item.path == inner and isinstance(item.value, dict) and item.value:
                    heads.add(next(iter(item.value)))
                yield item
            mark = window.peek()
            if mark == ",":
                window.place += 1
                if not window.peek():
                    raise _ShapeError("the file ends here", window.place)
            elif closing and mark != closing:
                beside = mark == "{"  # only the comma is missing
                raise _ShapeError(f"expecting ',' or '{closing}'", window.place)
        except (ValueError, RecursionError) as error:
            if not resumes:
                raise
            if window.ended:
                return
            window.charge(error)
            broken = error.pos if isinstance(error, (json.JSONDecodeError, _ShapeError)) else window.place
            row, column = window.where(min(broken, len(window.text)))
            if window.work <= 0:
                error = _ShapeError("one error of too many: what follows is left out too", broken)
            if not beside or window.work <= 0:  # the next one may stand before the place where the error shows (a bracket is missing)
                window.place += 1
                window.skip_to(*next_one)
            window.ended = not window.peek()
            end = window.at(window.place)[0]
            yield Item(path, None, (start, max(start, end if window.ended else end - 1)), _broken(error, row, column))


def _is_wanted(window: Window, heads: set[str], wanted: Callable[[Any], bool]) -> bool:
    """Whether the object at `place` is one of those looked for; if not, `place` moves on."""
    head = _FIRST_KEY.match(window.text, window.place)
    if heads and head is not None and head[1] not in heads:
        window.place += 1
        return False
    try:
        value, end = window.look()
    except (ValueError, RecursionError) as error:
        window.charge(error)
        window.place += 1
        return False
    if not wanted(value):
        window.place = end
        return False
    return True


def _one(window: Window, path: Path, wanted: Callable[[Any], bool]) -> Iterator[Item]:
    """The value at `place`: what is in it when its path is opened, else itself."""
    mark = window.text[window.place]
    first = window.at(window.place)[0]
    if path in OPENED and mark == "[":
        window.place += 1
        yield from _elements(window, path, wanted, "]")
    elif path in OPENED and mark == "{":
        window.place += 1
        yield from _members(window, path, wanted)
        yield Item(path, None, (first, window.at(window.place)[0]), end=True)
    else:
        value, end = window.look()
        size = end - window.place
        window.place = end
        yield Item(path, value, (first, window.at(end)[0]), size=size)


def _members(window: Window, path: Path, wanted: Callable[[Any], bool]) -> Iterator[Item]:
    """The members of an opened object, behind its brace."""
    mark = window.peek()
    while mark != "}":
        if mark != '"':
            raise _ShapeError("expecting a name in double quotes" if mark else "the file ends here", window.place)
        key = window.value()
        if window.peek() != ":":
            raise _ShapeError("expecting ':'", window.place)
        window.place += 1
        if not window.peek():
            raise _ShapeError("the file ends here", window.place)
        yield from _one(window, (*path, key), wanted)
        mark = window.peek()
        if mark == ",":
            window.place += 1
            mark = window.peek()
        elif mark != "}":
            raise _ShapeError("expecting ',' or '}'" if mark else "the file ends here", window.place)
    window.place += 1


def _broken(error: Exception, row: int, column: int) -> Problem:
    if isinstance(error, _TooLargeError):
        return Problem("E-SIZE", f"the conversation on line {row} is left out: {error}; export it alone", row)
    what = "nested too deeply" if isinstance(error, RecursionError) else getattr(error, "msg", str(error))
    return Problem("E-JSON", f"the JSON is broken at {row}:{column} ({what}); what stands there is left out, export it again", row)


def json_lines(chunks: Iterator[str], wanted: Callable[[Any], bool]) -> Iterator[Item]:
    """The values of a JSON Lines file (path `*`); a broken line costs only itself."""
    yield from _sifted(_json_lines(chunks), wanted)


def _json_lines(chunks: Iterator[str]) -> Iterator[Item]:
    broken: list[int] = []  # lines that are told together
    told = 0
    for row, line in enumerate(_lines(mended(chunks)), start=1):
        place = len(line) - len(line.lstrip(" \t\r\ufeff"))
        if place == len(line):
            continue
        try:
            if len(line) > LARGEST:
                raise _TooLargeError(f"it is larger than {LARGEST // 2**20} million characters")
            value, end = _decode(line, place)
            if line[end:].strip():
                raise _ShapeError("something follows the value", end)
            yield Item(("*",), value, (row, row))
        except (ValueError, RecursionError) as error:
            told += 1
            if told <= _TOLD:
                yield Item((), None, (row, row), _broken(error, row, getattr(error, "pos", 0) + 1))
            else:
                broken = [broken[0] if broken else row, row]
    if broken:
        message = f"{told - _TOLD} more lines, from {broken[0]} to {broken[1]}, are broken; they are left out, export the file again"
        yield Item((), None, (broken[0], broken[1]), Problem("E-JSON", message, broken[0], told - _TOLD))


def _lines(chunks: Iterator[str]) -> Iterator[str]:
    """Lines without their newline; of one that is too large only so much that it shows."""
    held: list[str] = []
    size = 0
    for chunk in chunks:
        first, *rest = chunk.split("\n")
        if size <= LARGEST:
            held.append(first)
        size += len(first)
        if rest:
            yield "".join(held)
            yield from rest[:-1]
            held, size = [rest[-1]], len(rest[-1])
    yield "".join(held)


def mended(chunks: Iterable[str]) -> Iterator[str]:
    """The chunks with Telegram Desktop's invalid escapes for control characters (`\\x0B`) as JSON has them (`\\u000B`)."""
    held = ""
    for chunk in chunks:
        text = held + chunk
        held = ""
        if "\\" in text[-3:]:  # an escape that the chunk cuts waits for the next one
            place = text.rindex("\\")
            slashes = place + 1 - len(text[: place + 1].rstrip("\\"))
            if slashes % 2 and _CUT_ESCAPE.fullmatch(text, place):
                held, text = text[place:], text[:place]
        yield _ESCAPED.sub(r"\1\\u00\2", text) if "\\x" in text else text
    yield held


def decoded(chunks: Iterable[bytes], bad: list[int]) -> Iterator[str]:
    """Bytes as text: UTF-8, or UTF-16 by its mark. Others become U+FFFD; the place of the first such one of a chunk goes to `bad`."""
    decoder: codecs.IncrementalDecoder | None = None
    gone = 0
    for chunk in chunks:
        if decoder is None:
            name = "utf-16" if chunk[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
            decoder = codecs.getincrementaldecoder(name)("strict")
        yield _decoded(decoder, chunk, gone, bad)
        gone += len(chunk)
    if decoder is not None:
        yield _decoded(decoder, b"", gone, bad)


def _decoded(decoder: codecs.IncrementalDecoder, chunk: bytes, gone: int, bad: list[int]) -> str:
    held = len(decoder.getstate()[0])
    try:
        return decoder.decode(chunk, final=not chunk)
    except UnicodeDecodeError as error:
        bad.append(gone - held + error.start)
        decoder.errors = "replace"
        text = decoder.decode(chunk, final=not chunk)
        decoder.errors = "strict"
        return text
