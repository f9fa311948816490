"""Chat exports of any size: a `.json` or `.jsonl` file, a `.zip` of such files, a folder of them.

One line per format in `FORMATS`; an object is recognised by its keys. `detect` and `read` serve the chat readers (a file in the
vault, parsed once however many formats ask), `stream` the import of what is too large for a note. Archives are read without being
unpacked: no path in them is ever used. Knows nothing about the fields of a message.
"""

from __future__ import annotations

import functools
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from vaultllm.chats import chatgpt, claude, datasets, grok, lechat, openwebui, perplexity, telegram
from vaultllm.chats.json_items import CHUNK, LARGEST, Item, decoded, items, json_lines
from vaultllm.chats.turns import listed, mapping, name, no_conversation
from vaultllm.schema import Conversation, Lines, Note, Problem
from vaultllm.text import encodable

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

MAX_RATIO = 200
"""An archive's file that unpacks to more than so many times its size is refused: JSON shrinks 5 to 30 times."""
MAX_UNPACKED = 64 * 2**30
"""Bytes that an archive may unpack to."""
MAX_FILES = 100_000
"""Files of an archive or folder that are looked at."""

SUFFIXES = (".json", ".jsonl", ".ndjson")
"""How the names of the files end that can be exports."""
_NOTES = (".md", ".markdown")  # a talk as a note: for the fallback, where it is named itself
_LISTS = ("messages", "conversations", "chats")  # keys of the object at the top that hold talks
_HEAD = ("id", "name", "type")  # keys of a Telegram chat
_KNOWN = (*_LISTS, "left_chats", "personal_information")


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
    Format("openwebui", "an Open WebUI export (history)", openwebui.takes, openwebui.read, ('"history"', '"currentId"')),
    Format("grok", "a Grok export (responses)", grok.takes, grok.read, ('"responses"', '"sender"')),
    Format("perplexity", "a Perplexity thread", perplexity.takes, perplexity.read, ('"query_str"',)),
    Format("sharegpt", "talks of ShareGPT's shape (conversations)", datasets.takes_sharegpt, datasets.read_sharegpt),
    Format("openai", "talks of OpenAI's shape (messages)", datasets.takes_openai, datasets.read_openai),
    Format("alpaca", "instructions and outputs (Alpaca)", datasets.takes_alpaca, datasets.read_alpaca),
)
# Formats whose unit is a message: name -> how it is shown.
_GATHERED = {"lechat": "a Le Chat export (chatId)", "telegram": "a Telegram export (messages)"}


NAMES: tuple[str, ...] = (*(one.name for one in FORMATS), *_GATHERED)
"""Names of the readers, in the order in which they are asked."""


def detect(name: str, note: Note, settings: ScanSettings) -> str:
    """Why the file is an export of the format with this name; empty when it is none."""
    whole = note.path.lower().endswith(".json")
    if not note.path.lower().endswith(SUFFIXES) or (whole and note.text[:64].lstrip()[:1] not in ("[", "{")):
        return ""
    found = _found(note.text, whole)
    titles = {**{one.name: one.title for one in FORMATS}, **_GATHERED}
    return titles[name] if name == found else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The conversations of an export; what is broken is a conversation without turns that carries the problem."""
    parsed = _parsed(note.text, note.path.lower().endswith(".json"))
    found = [conversation for _, conversation in _talks(parsed, settings, timezone)]
    _parsed.cache_clear()  # a decoded file takes ten times its size
    _found.cache_clear()
    return found


@functools.lru_cache(maxsize=1)
def _parsed(text: str, whole: bool) -> tuple[Item, ...]:
    return tuple(items(iter((text,)), _is_wanted) if whole else json_lines(iter((text,)), _is_wanted))


@functools.lru_cache(maxsize=1)
def _found(text: str, whole: bool) -> str:
    """Name of the format of the first conversation that is recognised, or of the one whose keys a broken file has."""
    from vaultllm.config import ScanSettings

    parsed = _parsed(text, whole)
    for format_name, _ in _talks(parsed, ScanSettings(), ""):
        if format_name:
            return format_name
    if any(item.problem for item in parsed):
        return next((one.name for one in FORMATS if one.marks and all(mark in text for mark in one.marks)), "")
    return ""


def _is_wanted(value: Any) -> bool:
    """Whether reading can go on at this value after an error."""
    return isinstance(value, dict) and (_format(value) is not None or lechat.takes(value) or telegram.takes(value))


def _format(value: dict[str, Any]) -> Format | None:
    return next((one for one in FORMATS if one.takes(value)), None)


_Talks = Iterator[tuple[str, Conversation]]  # with the names of their formats; those that only carry a problem have none


def _talks(values: Iterable[Item], settings: ScanSettings, timezone: str) -> _Talks:
    """The conversations among the values of one file."""
    file = _File(settings, timezone)
    for item in values:
        yield from file.take(item)
    yield from file.end()


class _File:
    """What is open while the values of one file come in."""

    def __init__(self, settings: ScanSettings, timezone: str) -> None:
        self._settings, self._timezone = settings, timezone
        self._top: dict[str, Any] = {}  # the object at the top, as far as it has come
        self._chat: telegram.Chat | None = None
        self._lechat = lechat.Talks()
        self._found = False  # a conversation in this file
        self._inside = False  # a conversation within the object at the top
        self._strange, self._strange_at = 0, (1, 1)  # values that are no conversations, and where the first is
        self._held = 0  # characters of what the object at the top holds, as far as it has come

    def take(self, item: Item) -> _Talks:
        """One value; yields what is complete with it."""
        path = item.path
        if item.problem is not None:
            if path != ("messages",):
                yield from self._close_chat({})
            if not path:
                self._top, self._inside, self._held = {}, False, 0
            yield "", no_conversation(item.lines, item.problem)
        elif len(path) > 2:
            yield from self._take_chat(item)
        elif item.end:
            if not path:
                yield from self._close(item.lines)
        elif len(path) == 2:
            yield from self._take_member(item)
        elif path == ("*",) and item.value is None:
            self._is_strange(item.lines, item.times)
        elif path and path != ("*",):
            if self._hold(item):
                self._top[path[0]] = item.value
        else:
            yield from self._take_one(item.value, item.lines)

    def end(self) -> _Talks:
        """The end of the file."""
        yield from self._close_chat(self._top)
        for conversation in self._lechat.conversations():
            self._found = True
            yield "lechat", conversation
        if self._strange and self._found:
            message = f"{self._strange} elements are no conversations; they are left out"
            yield "", no_conversation(self._strange_at, Problem("E-SHAPE", message, self._strange_at[0], self._strange))

    def _take_one(self, value: Any, lines: Lines) -> _Talks:
        one = _format(value) if isinstance(value, dict) else None
        if one is not None:
            self._found = True
            yield one.name, one.read(value, lines, self._settings, self._timezone)
        elif isinstance(value, dict) and lechat.takes(value):
            self._lechat.add(value, lines)
        else:
            self._is_strange(lines)

    def _is_strange(self, lines: Lines, count: int = 1) -> None:
        self._strange_at = self._strange_at if self._strange else lines
        self._strange += count

    def _hold(self, item: Item) -> bool:
        """Whether a part of the object at the top can be kept: a conversation is not larger than the largest value."""
        self._held += item.size
        return self._held <= LARGEST

    def _take_member(self, item: Item) -> _Talks:
        """An element of `messages`, `conversations` or `chats` at the top: a conversation, or a part of the object at the top."""
        key, place = item.path
        if place == "*" and key == "messages" and (self._chat is not None or telegram.takes(item.value)):
            self._chat = self._chat or self._new_chat()
            yield from self._from_telegram(self._chat.add(item.value, item.lines))
        elif place == "*" and key != "messages" and _is_wanted(item.value) and not telegram.takes(item.value):
            self._inside = True
            yield from self._take_one(item.value, item.lines)
        elif not self._hold(item):
            pass  # said when the object ends
        elif place == "*":
            kept = self._top.setdefault(key, [])
            if isinstance(kept, list):
                kept.append(item.value)
        else:
            kept = self._top.setdefault(key, {})
            if isinstance(kept, dict):
                kept[place] = item.value

    def _take_chat(self, item: Item) -> _Talks:
        """What stands in one chat of Telegram's full export."""
        if item.end:
            yield from self._close_chat({})
        elif len(item.path) == 3:
            self._is_strange(item.lines)
        else:
            self._chat = self._chat or self._new_chat()
            if len(item.path) == 4:
                self._chat.head.update({item.path[3]: item.value} if item.path[3] in _HEAD else {})
            else:
                yield from self._from_telegram(self._chat.add(item.value, item.lines))

    def _new_chat(self) -> telegram.Chat:
        chat = telegram.Chat(self._settings, self._timezone, name(mapping(self._top.get("personal_information")).get("user_id")))
        chat.head.update((key, self._top[key]) for key in _HEAD if key in self._top)
        return chat

    def _close_chat(self, head: dict[str, Any]) -> _Talks:
        if self._chat is not None:
            chat, self._chat = self._chat, None
            chat.head.update((key, head[key]) for key in _HEAD if key in head)
            yield from self._from_telegram(chat.rest())

    def _from_telegram(self, conversations: Iterator[Conversation]) -> _Talks:
        for conversation in conversations:
            self._found = self._inside = True
            yield "telegram", conversation

    def _close(self, lines: Lines) -> _Talks:
        """The end of the object at the top: it is a conversation, or it held some."""
        top, self._top = self._top, {}
        held, self._held = self._held, 0
        if held > LARGEST:
            message = (
                f"the object that begins on line {lines[0]} is larger than {LARGEST // 2**20} million characters; it is not read whole"
            )
            yield "", no_conversation(lines, Problem("E-SIZE", message, lines[0]))
        is_chat = self._chat is not None
        yield from self._close_chat(top)
        if not self._inside and not is_chat:
            yield from self._take_one(top, lines)
        elif not is_chat:
            if strange := sum(len(listed(top.get(key))) for key in _LISTS):
                self._is_strange(lines, strange)
            beside = sorted(key for key, value in top.items() if isinstance(value, (list, dict)) and value and key not in _KNOWN)
            if beside:
                message = f"besides its chats the file holds {', '.join(beside)[:200]}; that is left out"
                yield "", no_conversation(lines, Problem("W-BESIDE", message, lines[0], len(beside)))
        self._inside = False


@functools.cache
def _unzip_errors(*more: type[Exception]) -> tuple[type[Exception], ...]:
    """What unpacking raises: an encrypted archive is a RuntimeError, an unknown compression a NotImplementedError."""
    import lzma
    import zipfile
    import zlib

    return OSError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, *more


def _unwatched(file: IO[bytes]) -> None:
    """The `opened` of those who do not ask how far the reading is."""


Fallback = Callable[[str, bytes], list[Conversation]]
"""A file's name and bytes -> its conversations, by readers that need it whole; none when they don't know it."""


class _Others:
    """Files whose format is not known here: the fallback's, or nobody's."""

    def __init__(self, fallback: Fallback | None, most: int) -> None:
        self.fallback, self.most = fallback, most
        self.names: list[str] = []

    def take(self, file: IO[bytes], shown: str) -> list[Conversation]:
        """What the fallback finds in it; its name is kept when that is nothing."""
        found: list[Conversation] = []
        if self.fallback is not None:
            file.seek(0)
            data = file.read(self.most + 1)
            found = self.fallback(shown, data) if len(data) <= self.most else []
        if not found:
            self.names.append(shown)
        return found


def stream(
    path: Path,
    settings: ScanSettings,
    timezone: str,
    opened: Callable[[IO[bytes]], None] = _unwatched,
    fallback: Fallback | None = None,
) -> Iterator[Conversation | Problem]:
    """The conversations of an export of any size (a file, an archive, a folder of them) as they are read, and what was wrong.

    Settings and the IANA name of the zone are those of `read`. In memory is one conversation at a time. `opened` gets each file of
    the disk when it is opened: its `tell()` says, between two conversations, how far it was read. `fallback` is asked about files of
    at most `scan.max_bytes` whose format is not known here. Raises nothing: a path that cannot be read is a problem too.
    """
    others = _Others(fallback, settings.max_bytes)
    try:
        if path.is_dir():
            yield from _folder(path, settings, timezone, others, opened)
        else:
            with path.open("rb") as file:
                opened(file)
                yield from _one_file(file, encodable(path.name), settings, timezone, others)
    except OSError as error:
        yield _unread(path, error)
    if names := others.names:
        message = f"no chats of a known format are in {', '.join(names[:5])}{' …' if len(names) > 5 else ''}; left out"
        yield Problem("W-EXPORT", message, 0, len(names))


def _unread(path: Path, error: OSError) -> Problem:
    return Problem("E-READ", f"{encodable(path.name)} cannot be read ({error.strerror or error}); what was not read yet is left out")


def _folder(
    path: Path, settings: ScanSettings, timezone: str, others: _Others, opened: Callable[[IO[bytes]], None]
) -> Iterator[Conversation | Problem]:
    """Every export in a folder and below, by name; links are not followed."""
    count = 0
    closed: list[OSError] = []
    for folder, folders, files in os.walk(path, onerror=closed.append):
        folders.sort()
        for file_name in sorted(files):
            if not file_name.lower().endswith((*SUFFIXES, ".zip")):
                continue
            file = Path(folder, file_name)
            count += 1
            if count > MAX_FILES:
                yield Problem("E-SIZE", f"{path.name} holds more than {MAX_FILES} files; the rest is left out, import it in parts")
                return
            try:
                if not stat.S_ISREG(file.lstat().st_mode):
                    continue
                with file.open("rb") as found:
                    opened(found)
                    yield from _one_file(found, encodable(file.relative_to(path).as_posix()), settings, timezone, others)
            except OSError as error:
                closed.append(error)
    for one in closed:
        yield _unread(Path(one.filename or path), one)


def _one_file(file: IO[bytes], shown: str, settings: ScanSettings, timezone: str, others: _Others) -> Iterator[Conversation | Problem]:
    """A file or an archive by its name; `others` gets the names of those without chats."""
    if shown.lower().endswith(_NOTES):
        yield from others.take(file, shown)
        return
    if not shown.lower().endswith(".zip"):
        yield from _plain(file, shown, settings, timezone, others)
        return
    import zipfile  # here: whoever reads notes needs no archives

    try:
        archive = zipfile.ZipFile(file)
        members = [one for one in archive.infolist() if not one.is_dir() and one.filename.lower().endswith(SUFFIXES)]
        size = file.seek(0, os.SEEK_END)
    except _unzip_errors(ValueError) as error:
        yield Problem("E-ZIP", f"{shown} is no archive that can be read ({error}); download the export again")
        return
    if len(members) > MAX_FILES or sum(one.file_size for one in members) > MAX_UNPACKED:
        yield Problem("E-BOMB", f"{shown} unpacks to more than an export can hold; it is refused")
        return
    if not members:
        others.names.append(shown)
    for one in sorted(members, key=lambda one: one.filename):
        inner = f"{shown}/{one.filename}"
        if one.file_size > MAX_RATIO * min(one.compress_size, size) + CHUNK:
            yield Problem("E-BOMB", f"{inner} unpacks to more than {MAX_RATIO} times its size; it is refused")
            continue
        try:
            opened = archive.open(one)
        except _unzip_errors() as error:
            yield Problem("E-ZIP", f"{inner} cannot be unpacked ({error}); it is left out")
            continue
        with opened:
            yield from _plain(opened, inner, settings, timezone, others)


def _plain(file: IO[bytes], shown: str, settings: ScanSettings, timezone: str, others: _Others) -> Iterator[Conversation | Problem]:
    """The conversations of one JSON or JSON Lines file."""
    bad: list[int] = []
    broken: list[str] = []
    chunks = decoded(_chunks(file, broken), bad)
    parsed = items(chunks, _is_wanted) if not shown.lower().endswith((".jsonl", ".ndjson")) else json_lines(chunks, _is_wanted)
    silent = True
    for format_name, conversation in _talks(parsed, settings, timezone):
        silent = False
        if format_name and (conversation.id or conversation.seen):
            yield conversation
        else:
            yield from (Problem(one.code, f"{shown}: {one.message}", one.line, one.count) for one in conversation.problems)
    if bad:
        message = f"{shown}: bytes that are not UTF-8, the first at byte {bad[0]}; \ufffd stands in their place"
        yield Problem("E-ENC", message, 0, len(bad))
    if broken:
        yield Problem("E-READ", f"{shown} cannot be read to its end ({broken[0]}); get the export again")
    elif silent:
        try:
            yield from others.take(file, shown)
        except _unzip_errors() as error:
            yield Problem("E-READ", f"{shown} cannot be read again ({error}); unpack the archive and import the file itself")


def _chunks(file: IO[bytes], broken: list[str]) -> Iterator[bytes]:
    """The bytes of a file; an error of the disk or the archive ends them and goes to `broken`."""
    try:
        while chunk := file.read(CHUNK):
            yield chunk
    except _unzip_errors() as error:
        broken.append(str(error))
