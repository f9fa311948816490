"""Chat exports of any size: a `.json` or `.jsonl` file, a `.zip` of such files, a folder of them.

One line per format in `FORMATS`; an object is recognised by its keys. `detect` and `read` serve the chat readers (a file in the
vault, parsed once however many formats ask), `stream` the import of what is too large for a note. Archives are read without being
unpacked: no path in them is ever used. Knows nothing about the fields of a message.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vaultllm.chats import chatgpt, claude
from vaultllm.chats.json_items import CHUNK, Item, decoded, items, json_lines
from vaultllm.chats.turns import no_conversation
from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Lines, Note, Problem

MAX_RATIO = 200
"""An archive's file that unpacks to more than so many times its size is refused: JSON shrinks 5 to 30 times."""
MAX_UNPACKED = 64 * 2**30
"""Bytes that an archive may unpack to."""
MAX_FILES = 100_000
"""Files of an archive or folder that are looked at."""

_SUFFIXES = (".json", ".jsonl", ".ndjson")


@dataclass(frozen=True, slots=True)
class Format:
    """A format whose unit is one object per conversation."""

    name: str
    """Its name as a reader."""
    title: str
    """How it is shown."""
    takes: Callable[[dict[str, Any]], bool]
    """Whether an object is a conversation of it."""
    read: Callable[[dict[str, Any], Lines, ScanSettings, str], Conversation]
    """Object, its lines, settings, time zone -> its conversation."""
    marks: tuple[str, ...] = ()
    """Keys that all stand in a file that is broken before its first whole conversation."""


FORMATS: tuple[Format, ...] = (
    Format("chatgpt", "a ChatGPT export (mapping)", chatgpt.takes, chatgpt.read, ('"mapping"', '"author"')),
    Format("claude", "a Claude export (chat_messages)", claude.takes, claude.read, ('"chat_messages"',)),
)


NAMES: tuple[str, ...] = tuple(one.name for one in FORMATS)
"""Names of the readers, in the order in which they are asked."""


def detect(name: str, note: Note, settings: ScanSettings) -> str:
    """Why the file is an export of the format with this name; empty when it is none."""
    if not note.path.lower().endswith(_SUFFIXES) or note.text[:64].lstrip()[:1] not in ("[", "{"):
        return ""
    found = _found(note.text, note.path.lower().endswith(".json"))
    return next((one.title for one in FORMATS if one.name == name == found), "")


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The conversations of an export; what is broken is a conversation without turns that carries the problem."""
    parsed = _parsed(note.text, note.path.lower().endswith(".json"))
    return [conversation for _, conversation in _talks(iter(parsed), settings, timezone)]


@functools.lru_cache(maxsize=1)
def _parsed(text: str, whole: bool) -> tuple[Item, ...]:
    chunks = iter((text,))
    return tuple(items(chunks, _is_conversation) if whole else json_lines(chunks))


@functools.lru_cache(maxsize=1)
def _found(text: str, whole: bool) -> str:
    """Name of the format of the first conversation that is recognised, or of the one whose keys a broken file has."""
    parsed = _parsed(text, whole)
    for name, _ in _talks(iter(parsed), ScanSettings(), ""):
        if name:
            return name
    if any(item.problem for item in parsed):
        return next((one.name for one in FORMATS if one.marks and all(mark in text for mark in one.marks)), "")
    return ""


def _is_conversation(value: Any) -> bool:
    return isinstance(value, dict) and _format(value) is not None


def _format(value: dict[str, Any]) -> Format | None:
    return next((one for one in FORMATS if one.takes(value)), None)


def _talks(values: Iterator[Item], settings: ScanSettings, timezone: str) -> Iterator[tuple[str, Conversation]]:
    """The conversations among the values of one file with the names of their formats; problems have no name."""
    top: dict[str, Any] = {}
    found = False
    strange: list[Lines] = []
    for item in values:
        if item.problem is not None:
            top = top if item.path else {}
            yield "", no_conversation(item.lines, item.problem)
            continue
        value = item.value
        if item.end:
            if item.path:
                continue
            value, top = top, {}
        elif len(item.path) == 1 and item.path != ("*",):
            top[item.path[0]] = value
            continue
        elif len(item.path) == 2:
            top.setdefault(item.path[0], []).append(value)
            continue
        one = _format(value) if isinstance(value, dict) else None
        if one is not None:
            found = True
            yield one.name, one.read(value, item.lines, settings, timezone)
        else:
            strange.append(item.lines)
    if strange and found:
        message = f"{len(strange)} elements are no conversations; they are left out"
        yield "", no_conversation(strange[0], Problem("E-SHAPE", message, strange[0][0], len(strange)))


def stream(path: Path, settings: ScanSettings, timezone: str) -> Iterator[Conversation | Problem]:
    """The conversations of an export of any size, as they are read, and what went wrong on the way."""
    with path.open("rb") as file:
        yield from _file(file, path.name, settings, timezone)


def _file(file: IO[bytes], name: str, settings: ScanSettings, timezone: str) -> Iterator[Conversation | Problem]:
    bad: list[int] = []
    chunks = decoded(iter(lambda: file.read(CHUNK), b""), bad)
    parsed = items(chunks, _is_conversation) if name.lower().endswith(".json") else json_lines(chunks)
    found = False
    for format_name, conversation in _talks(parsed, settings, timezone):
        found = found or bool(format_name)
        if format_name:
            yield conversation
        else:
            yield from (Problem(one.code, f"{name}: {one.message}", one.line, one.count) for one in conversation.problems)
    if not found:
        yield Problem("W-EXPORT", f"{name}: no chats of a known format are in it; it is left out")
