"""What a question asks for besides its words: filters, exact phrases, words that must not be there, a time.

`path:` `folder:` `tag:` `before:` `after:` `kind:` `trust:` `lang:`, each also with `-` before it; `"exact phrase"`, `-word`.
Filters are hard: what they say must hold. A time told in words (`вчера`, `last spring`) is a wish, to be given up when nothing lies
in it. Pure: knows nothing about the index, nor how scenes are stored.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from typing import NamedTuple, get_args

from vaultllm import dates, edits, spans
from vaultllm.errors import UsageError, nearest
from vaultllm.schema import Kind, Trust
from vaultllm.text import MARKS, fold, words

NAMES = ("tag", "folder", "path", "before", "after", "kind", "trust", "lang")
LANGUAGES = ("ru", "bn", "en", "hi", "el", "ar", "he", "ja", "ko", "zh", "und")  # what `text.language` can say
_ALLOWED: dict[str, tuple[str, ...]] = {"kind": get_args(Kind), "trust": get_args(Trust), "lang": LANGUAGES}
_LONGEST = 300  # characters of a phrase or a value: what is longer is a quotation in a pasted text, not something to be found
_WHAT = {"kind": "kind of scene", "trust": "trust", "lang": "language"}
_FORM: dict[str, Callable[[str], str]] = {
    "path": str,
    "folder": lambda value: value.rstrip("/"),
    "tag": lambda value: value.removeprefix("#").rstrip("/"),
}

_CLOSING = {'"': '"', "«": "»", "“": "”", "„": "“”"}
_NAMED = re.compile(r"(-?)([^\W\d_]{2,12}):(?=[^\s:])")
_CHUNK = re.compile(r"[«“„]*[^\s«“„]+|[«“„]+")
_VALUE = re.compile(r"\S+")
_TRAILING = ".,;!?)]}…"


class Condition(NamedTuple):
    """One filter as it was asked for."""

    name: str
    """One of `NAMES`."""
    value: str
    """As it is compared: folded; a tag without `#`, a folder without `/` at its end."""
    negated: bool
    """Whether it must not hold (`-tag:x`)."""
    day: date | None = None
    """Of `before` and `after`: the first day of the time that was named."""


class Group(NamedTuple):
    """The conditions of one name, of which one is enough; or, negated, of which none may hold."""

    name: str
    """One of `NAMES`."""
    negated: bool
    """Whether they are all negated."""
    values: tuple[str, ...]
    """As they are compared."""
    days: tuple[date, ...]
    """Of `before` and `after`."""


@dataclass(frozen=True, slots=True)
class Filters:
    """What must hold of a scene. Of one name, one is enough; each name that stands must hold; none that is negated may."""

    conditions: tuple[Condition, ...] = ()
    """In the order of the question."""

    def __bool__(self) -> bool:
        return bool(self.conditions)

    def groups(self) -> list[Group]:
        """The conditions of one name together, what costs least to look at first."""
        return _groups(self.conditions)

    def allows(self, *, path: str, tags: Sequence[str], at: str, kind: str, trust: str, language: str) -> bool:
        """Whether a scene is among those asked for.

        `path`: of its note, vault-relative. `tags`: with or without `#`. `at`: ISO 8601 or ""; a scene whose time is unknown
        passes neither `before:` nor `after:`, nor their negations. `after:` holds from the first day of what it names on,
        `before:` until the day before it, so that `after:2024 before:2025` is the year 2024. `path:` is part of the path,
        `folder:` the name of a folder that it lies in at any depth (or several, `a/b`; with `/` first, from the top),
        `tag:` also finds the tags below it (`tag:work` finds `work/plan`).
        """
        for name, negated, values, days in _groups(self.conditions):
            if days:
                when = dates.day(at)
                if when is None:
                    return False
                holds = when < max(days) if name == "before" else when >= min(days)
            elif name in ("path", "folder"):
                holds = lies(name, _folded(path), values)
            elif name == "tag":
                holds = any(tag == value or tag.startswith(f"{value}/") for tag in _tags(tuple(tags)) for value in values)
            else:
                holds = (kind if name == "kind" else trust if name == "trust" else language) in values
            if holds == negated:
                return False
        return True


def lies(name: str, path: str, values: Sequence[str]) -> bool:
    """Whether a note of this folded path passes `path:` or `folder:` (`name`) with one of these values."""
    if name == "path":
        return any(value in path for value in values)
    folders = f"/{path[: path.rfind('/') + 1]}"  # `/a/b/` of `a/b/note.md`
    return any(folders.startswith(f"{value}/") if value[0] == "/" else f"/{value}/" in folders for value in values)


@functools.lru_cache(maxsize=64)
def _groups(conditions: tuple[Condition, ...]) -> list[Group]:
    found: list[Group] = []
    for name in reversed(NAMES):
        for negated in (False, True):
            group = [one for one in conditions if one.name == name and one.negated == negated]
            if group:
                days = tuple(one.day for one in group if one.day is not None)
                found.append(Group(name, negated, tuple(one.value for one in group), days))
    return found


@functools.lru_cache(maxsize=200_000)
def _folded(path: str) -> str:
    return fold(path)


@functools.lru_cache(maxsize=200_000)
def _tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(fold(tag).removeprefix("#") for tag in tags)


@dataclass(frozen=True, slots=True)
class Query:
    """A question, taken apart."""

    text: str
    """The words to look for: the question without filters and without words that must be absent; phrases without their quotes."""
    about: str
    """`text` without the words of its time: what is to be looked for among the passages of that time."""
    phrases: tuple[str, ...] = ()
    """What must stand in a passage word for word."""
    without: tuple[str, ...] = ()
    """Words and phrases that must not."""
    filters: Filters = Filters()
    """What must hold of a scene."""
    when: spans.Span | None = None
    """The time that its words name; `start` counts in `text`."""

    def matches_text(self, text: str) -> bool:
        """Whether all phrases stand in a text and no unwanted word does: folded, whole words, whatever stands between them.

        Signs (`C++`, `100%`, an emoji) must stand as they were asked for; punctuation need not.
        """
        if not self.phrases and not self.without:
            return True
        said = _Said(text)
        return all(said.holds(phrase) for phrase in self.phrases) and not any(said.holds(phrase) for phrase in self.without)


class _Said:
    """A text in which phrases are looked for."""

    def __init__(self, text: str) -> None:
        self.text = fold(text)
        self._signs: str | None = None

    def holds(self, phrase: str) -> bool:
        sequence, signs = _phrase(phrase)
        if sequence is not None and sequence.search(self.text) is None:
            return False
        if signs and self._signs is None:
            self._signs = " ".join(self.text.split())
        return not signs or signs in (self._signs or "")


@functools.lru_cache(maxsize=256)
def _phrase(phrase: str) -> tuple[re.Pattern[str] | None, str]:
    """A phrase as a sequence of whole words, if it has any; and, when it holds signs, as it stands."""
    said = words(phrase)
    letter = rf"\w{MARKS}\u200c\u200d"  # as in `text.WORD`; what is between two words cannot be in one, so nothing is tried twice
    sequence = re.compile(f"(?<![{letter}])" + f"[^{letter}]+".join(map(re.escape, said)) + f"(?![{letter}])") if said else None
    signs = any(unicodedata.category(char)[0] == "S" or char in "#@/\\*&%" for char in phrase)
    return sequence, " ".join(fold(phrase).split()) if signs else ""


def word_of(phrase: str) -> str:
    """The one folded word that a phrase is; "" when it is more, or holds signs."""
    said = words(phrase)
    return said[0] if len(said) == 1 and not _phrase(phrase)[1] else ""


def plain(text: str, today: date) -> Query:
    """A question in which nothing is a filter or a phrase: only words, and the time that they name."""
    when = spans.find(text, today)
    return Query(text, _about(text, when), when=when)


def parse(text: str, today: date) -> Query:
    """A question as it was typed, taken apart. Any text is a question; `today` is what its times are told from.

    `name:value` with a name that nearly is a filter's, or with a value that the filter does not know, raises UsageError
    (`E-FILTER`) with what would be right. Whatever else holds a colon (`https://…`, `12:30`, `C:\\x`, `std::vector`) is a word.
    """
    reader = _Reader(text, today)
    reader.read()
    said = " ".join(piece for piece, _ in reader.pieces)
    # A phrase names no time: `"15 июня"` asks for these words. NUL is in no word, and no time goes on over it.
    when = spans.find(" ".join("\0" * len(piece) if quoted else piece for piece, quoted in reader.pieces), today)
    return Query(said, _about(said, when), tuple(reader.phrases), tuple(reader.without), Filters(tuple(reader.conditions)), when)


def _about(said: str, when: spans.Span | None) -> str:
    """A question without the words of its time."""
    return said if when is None else " ".join((said[: when.start] + said[when.start + len(when.words) :]).split())


class _Reader:
    """Goes through a question once, from left to right."""

    def __init__(self, text: str, today: date) -> None:
        self.text = text
        self.today = today
        self.place = 0
        self.pieces: list[tuple[str, bool]] = []  # what is to be looked for, and whether it was quoted
        self.phrases: list[str] = []
        self.without: list[str] = []
        self.conditions: list[Condition] = []

    def read(self) -> None:
        text = self.text
        while self.place < len(text):
            if text[self.place].isspace():
                self.place += 1
                continue
            fresh = self.place == 0 or text[self.place - 1].isspace()
            begin = self.place
            while fresh and text[self.place : self.place + 1] in ("(", "["):
                self.place += 1
            if fresh and (self._filter() or self._unwanted()):
                continue
            if (fresh or text[self.place] != '"') and (phrase := self._quoted(self.place)):
                self.pieces.append((phrase, True))
                self.phrases.append(phrase)
                continue
            chunk = _CHUNK.match(text, begin)
            if chunk is not None:  # always: this is no white space
                self.pieces.append((chunk[0], False))
                self.place = chunk.end()

    def _quoted(self, place: int) -> str:
        """The phrase that begins here, its white space as single blanks, and go on after it; "" when there is none."""
        end = self._closed(place)
        if end < 0:
            return ""
        said = self.text[place + 1 : end]
        phrase = " ".join(said.split())
        if "\n" in said or _phrase(phrase) == (None, ""):
            return ""
        self.place = end + 1
        return phrase

    def _closed(self, place: int) -> int:
        """Where the quotation that begins here is closed; -1 when none begins, or it does not end soon."""
        closing = _CLOSING.get(self.text[place : place + 1], "")
        ends = [self.text.find(mark, place + 1, place + 2 + _LONGEST) for mark in closing]
        return min([end for end in ends if end >= 0], default=-1)

    def _unwanted(self) -> bool:
        """`-word`, `-"a phrase"`; a number with a minus and a letter alone (`-v`) are words."""
        text, place = self.text, self.place
        if text[place : place + 1] != "-":
            return False
        phrase = self._quoted(place + 1)
        if not phrase:
            chunk = _CHUNK.match(text, place + 1)
            if chunk is None or not chunk[0][0].isalpha() or not (phrase := " ".join(words(chunk[0]))) or len(phrase) < 2:
                return False
            self.place = chunk.end()
        self.without.append(phrase)
        return True

    def _filter(self) -> bool:
        """`name:value`; False when it is none and nearly none."""
        named = _NAMED.match(self.text, self.place)
        if named is None or self.text.startswith("//", named.end()):
            return False
        minus, name = named[1], fold(named[2])
        value = self._value(named.end(), name)
        if value is None:
            return False
        if name not in NAMES:
            right = _meant(name)
            if right:
                asked = f"{minus}{named[2]}:{value[0]}"
                raise _wrong(f"there is no filter '{named[2]}:' ({asked}); did you mean '{right}:'? To look for the words, leave a space")
            return False
        self.conditions.append(_condition(name, value[0], bool(minus), self.today))
        self.place = value[1]
        return True

    def _value(self, place: int, name: str) -> tuple[str, int] | None:
        """The value that begins here, and where it ends; None when nothing in it could be one (`:)`)."""
        if self.text[place] in _CLOSING:
            end = self._closed(place)
            if end < 0 and name in NAMES:
                raise _wrong(f"the quote after '{name}:' is not closed; add {_CLOSING[self.text[place]][-1]}")
            value, end = self.text[place + 1 : max(end, place)].strip(), end + 1
        else:
            chunk = _VALUE.match(self.text, place)
            value = "" if chunk is None else chunk[0].rstrip(_TRAILING)
            end = place + len(value)
        return (value, end) if any(char.isalnum() or unicodedata.category(char) == "So" for char in value) else None


def _wrong(message: str) -> UsageError:
    return UsageError(message, code="E-FILTER")


def _meant(name: str) -> str:
    """The filter whose name was mistyped; "" when a name is rather a word. The first letter of a typed word is seldom wrong."""
    for right in NAMES:
        slips = edits.distance(name, right, 2 if len(right) > 5 else 1)
        swapped = name[:1] != right[:1] and len(name) == len(right) and sorted(name) != sorted(right)
        short = len(right) < 4 and len(name) == len(right) and sorted(name) != sorted(right)  # `tab:` is no `tag:`
        if slips is not None and not swapped and not short:
            return right
    return ""


def _condition(name: str, value: str, negated: bool, today: date) -> Condition:
    """A filter whose value was checked. Raises UsageError."""
    asked = f"{'-' * negated}{name}:{value}"
    if name in ("before", "after"):
        named = spans.read(value, today)
        day = dates.day(value) if named is None else named[0]  # a time of day may follow the date
        if day is None:
            raise _wrong(f"{asked}: '{value}' is no date; write it as 2025, 2025-06, 2025-06-15, yesterday or \"last week\"")
        return Condition(name, value, negated, day)
    folded = fold(value)
    if name in _ALLOWED:
        if folded not in _ALLOWED[name]:
            close = nearest(folded, _ALLOWED[name])
            hint = close if close.startswith(" Did") else ""
            raise _wrong(f"{asked}: there is no such {_WHAT[name]}; choose one of {', '.join(_ALLOWED[name])}.{hint}")
        return Condition(name, folded, negated)
    return Condition(name, _FORM[name](folded), negated)
