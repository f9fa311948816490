"""Telegram Desktop's export (`result.json`): one chat, or all of them.

A talk between people has no assistant: who is named in `scan.me` (or is the owner of a full export, which says so itself) speaks as
`user`, everybody else, and what was forwarded from others, as `assistant` under their own name; the provider `telegram` tells
that these are not a model's words. Messages that one sender writes in a row, each within an hour, are one turn. Times are UTC.
Knows nothing about other programs' exports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaultllm.chats.times import from_epoch, make_clock, read_time
from vaultllm.chats.turns import conversation, listed, make_turn, mapping, name, raw_time, seconds
from vaultllm.schema import Conversation, Lines, Problem, Role
from vaultllm.text import fold

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

PART = 20_000
"""Turns after which a chat goes on as another conversation (`<id>/2`), so that the memory needed stays bounded."""
_SHOWN = 5  # names of those who speak, for the message that asks which of them is the owner
_APART = 3600.0  # seconds after which the same sender begins another turn


@dataclass(slots=True)
class _Said:
    """Messages in a row of one sender."""

    sender: tuple[str, str, str]
    """Id, name, the name of whom it was forwarded from."""
    id: str
    at: str
    at_raw: str
    time: float
    lines: Lines
    texts: list[str]
    files: list[str]


class Chat:
    """One chat, taken in message by message."""

    def __init__(self, settings: ScanSettings, timezone: str, owner: str) -> None:
        """`owner` is the user id that a full export names as its own; empty if it doesn't."""
        self.head: dict[str, Any] = {}
        self._me = {fold(one) for one in settings.me if one.strip()} | ({owner, f"user{owner}"} if owner else set())
        self._clock = make_clock((), timezone=timezone)
        self._said: list[_Said] = []
        self._left: Counter[str] = Counter()
        self._names: dict[str, None] = {}
        self._span: list[int] = []  # first and last line
        self._part = 1

    def add(self, message: object, lines: Lines) -> Iterator[Conversation]:
        """Take one message in; yields a part of the chat when that is complete."""
        data = mapping(message)
        said = _text(data.get("text")) or _text(data.get("text_entities"))
        self._span = [min([lines[0], *self._span]), max([lines[1], *self._span])]
        if data.get("type") != "message":
            self._left["W-SERVICE" if data.get("type") == "service" else "E-MESSAGE"] += 1
        elif not said.strip():
            self._left["W-EMPTY"] += 1
        else:
            self._say(data, said, lines)
            if len(self._said) > PART:
                last = self._said.pop()
                self._span[-1] = self._said[-1].lines[1]
                yield self._conversation()
                self._said, self._span = [last], list(last.lines)

    def rest(self) -> Iterator[Conversation]:
        """What is left of the chat at its end."""
        if self._said or self._left:
            yield self._conversation()

    def _say(self, data: dict[str, Any], said: str, lines: Lines) -> None:
        number, who = name(data.get("from_id")), name(data.get("from"))
        sender = (number, who, name(data.get("forwarded_from")))
        stamp = data.get("date_unixtime")
        time = float(stamp) if isinstance(stamp, str) and stamp.isascii() and stamp.isdecimal() and len(stamp) < 12 else seconds(stamp)
        file = data.get("file_name") or data.get("file")
        files = [name(file).rpartition("/")[2]] if isinstance(file, str) and not file.startswith("(") else []
        last = self._said[-1] if self._said else None
        if last is not None and last.sender == sender and not (time and last.time and time - last.time > _APART):
            last.texts.append(said)
            last.files += files
            last.lines = (min(last.lines[0], lines[0]), max(last.lines[1], lines[1]))
            last.time = time
        else:
            if len(self._names) < _SHOWN:
                self._names.setdefault(f"{who or 'a deleted account'} ({number})" if number else who)
            raw = raw_time(data.get("date"))
            at = from_epoch(time) or read_time(raw, self._clock)
            self._said.append(_Said(sender, name(data.get("id")), at, raw, time, lines, [said], files))

    def _role(self, sender: tuple[str, str, str]) -> Role:
        if not self._me:
            return "user"
        names = {fold(sender[2])} if sender[2] else {fold(sender[0]), fold(sender[0]).removeprefix("user"), fold(sender[1])}
        return "user" if names & self._me else "assistant"

    def _conversation(self) -> Conversation:
        chat = name(self.head.get("id"))
        turns = [
            make_turn(
                self._role(one.sender),
                "\n".join(one.texts),
                one.lines,
                author=one.sender[2] or one.sender[1],
                at=one.at,
                at_raw=one.at_raw,
                uid=f"telegram-{chat}-{one.id}" if one.id else "",
                attachments=tuple(one.files),
            )
            for one in self._said
        ]
        lines = (self._span[0], self._span[-1])
        identity = f"telegram-{chat}" + (f"/{self._part}" if self._part > 1 else "")
        created = next((turn.at for turn in turns if turn.at), "")
        found = conversation(identity, self.head.get("name"), "telegram", created, lines, turns, self._left, *self._unknown(turns, lines))
        self._said, self._left, self._span, self._part = [], Counter(), [], self._part + 1
        return found

    def _unknown(self, turns: list[Any], lines: Lines) -> list[Problem]:
        names = ", ".join(self._names)
        if turns and not self._me:
            message = f"everybody here speaks as `user`, because nobody is named as you: set scan.me to one of {names}"
            return [Problem("W-ME", message, lines[0])]
        return []


def takes(value: object) -> bool:
    """Whether it is a message of Telegram's."""
    return isinstance(value, dict) and value.get("type") in ("message", "service") and "date" in value


def _text(value: object) -> str:
    """The text of a message: a string, or a list of strings and marked parts."""
    if isinstance(value, str):
        return value
    parts = []
    for part in listed(value):
        said = part if isinstance(part, str) else mapping(part).get("text")
        if isinstance(said, str):
            is_code = isinstance(part, dict) and part.get("type") == "pre"
            parts.append(_fenced(said, name(part.get("language"))) if is_code else said)
    return "".join(parts)


def _fenced(code: str, language: str) -> str:
    fence = "````" if "```" in code else "```"
    return f"\n{fence}{language}\n{code.strip(chr(10))}\n{fence}\n"
