"""What the user has had forgotten: fingerprints of paths, files, scenes, messages and conversations, never a word of them.

A small file of the state folder, beside the ledger and not in it: a ledger that is rebuilt from the vault must not read again what
was forgotten. Knows nothing about how a text is taken out of everything derived from it (`forget.py`).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from vaultllm.errors import VaultError
from vaultllm.files import write_whole
from vaultllm.schema import Conversation, Problem
from vaultllm.text import nfc, sha

FILE = "forgotten.json"
CODE = "W-FORGOTTEN"
_FORMAT = "vaultllm forgotten 1"

Kind = Literal["note", "scene", "message", "talk"]


def mark(kind: Literal["path", "bytes", "scene", "said", "message", "talk"], name: str) -> str:
    """The fingerprint of a name: a vault-relative path, a file's SHA-256, a scene's id or `sha`, a UID, a conversation's id."""
    return f"{kind} {sha('forgotten', kind, nfc(name), digits=24)}"


@dataclass(frozen=True, slots=True)
class Entry:
    """What one `forget` was about."""

    kind: Kind
    """What was named."""
    named: str
    """The mark of the name that was given."""
    at: str
    """When, ISO 8601."""
    marks: frozenset[str]
    """Fingerprints (`mark`) of all that it took."""
    done: bool = False
    """Whether it has gone everywhere: false after a kill, until the same command has been run again."""


@dataclass(frozen=True, slots=True)
class Forgotten:
    """The list; false when nothing was forgotten."""

    entries: tuple[Entry, ...] = ()
    """Oldest first."""
    marks: frozenset[str] = frozenset()
    """All of their marks."""

    @staticmethod
    def of(entries: Iterable[Entry]) -> Forgotten:
        """The list of these entries."""
        kept = tuple(entries)
        return Forgotten(kept, frozenset().union(*(entry.marks for entry in kept)))

    @staticmethod
    def known_by(marks: Iterable[str]) -> Forgotten:
        """What is known by these marks, listed nowhere."""
        return Forgotten((), frozenset(marks))

    def __bool__(self) -> bool:
        return bool(self.marks)

    def path(self, path: str) -> bool:
        """Whether a note of this path is not to be read."""
        return mark("path", path) in self.marks

    def file(self, digest: str) -> bool:
        """Whether a file of this SHA-256 (hex) is not to be read, wherever it lies."""
        return mark("bytes", digest) in self.marks

    def scene(self, identity: str, said: str) -> bool:
        """Whether a scene of this id, or one with this `sha`, is not to be kept."""
        return mark("scene", identity) in self.marks or mark("said", said) in self.marks

    def message(self, uid: str) -> bool:
        """Whether the message of this UID is not to be kept; one without a UID is no message that could be named."""
        return bool(uid) and mark("message", uid) in self.marks

    def talk(self, conversation: str) -> bool:
        """Whether no message of the conversation of this id is to be kept."""
        return bool(conversation) and mark("talk", conversation) in self.marks

    def without(self, conversation: Conversation, *, whole: bool = False) -> Conversation:
        """A conversation without its forgotten messages (`whole`: all are); one problem counts them. A title in their words goes too."""
        if whole or self.talk(conversation.id):
            gone = list(conversation.turns)
        else:
            gone = [turn for turn in conversation.turns if self.message(turn.uid)]
        if not gone:
            return conversation
        left = {id(turn) for turn in gone}
        uid = next((turn.uid for turn in gone if turn.uid), conversation.id)
        problem = Problem(CODE, f"{len(gone)} messages were forgotten{way_back(uid)}", gone[0].lines[0], len(gone))
        turns = tuple(turn for turn in conversation.turns if id(turn) not in left)
        title = "" if not turns or any(conversation.title in turn.text for turn in gone) else conversation.title
        return replace(conversation, title=title, turns=turns, problems=(*conversation.problems, problem))


def way_back(name: str) -> str:
    """How the message of a problem ends."""
    return f": neither learnt nor recalled; to have it so again: vaultllm forget --undo {name}"


def note_problem(path: str) -> Problem:
    """Why a forgotten note has no scenes."""
    name = f'"{path}"' if " " in path else path
    return Problem(CODE, f"forgotten, so it is not read{way_back(name)}")


def load(state: Path) -> Forgotten:
    """The list of a state folder. Raises VaultError when it is damaged: to read what was forgotten would be worse than to stop."""
    path = state / FILE
    try:
        known = path.stat()
    except FileNotFoundError:
        return Forgotten()
    except OSError as error:
        raise VaultError(f"the list of what was forgotten cannot be read ({error.strerror}); mend its rights", path=str(path)) from error
    return _read(path, known.st_size, known.st_mtime_ns, known.st_ino)


@functools.lru_cache(maxsize=2)
def _read(path: Path, size: int, mtime_ns: int, inode: int) -> Forgotten:
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != _FORMAT:
            raise ValueError(f"its format is {record['format']!r}")
        found = [
            Entry(one["kind"], str(one["named"]), str(one["at"]), frozenset(map(str, one["marks"])), bool(one["done"]))
            for one in record["entries"]
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise VaultError(
            f"the list of what was forgotten is damaged ({error}); put back an older copy, or remove it: then all of it is read again",
            path=str(path),
        ) from error
    return Forgotten.of(found)


def save(state: Path, found: Forgotten) -> None:
    """Write the list, lasting: what is done next counts on it. The caller holds the lock. Raises OSError."""
    rows = [
        {"kind": entry.kind, "named": entry.named, "at": entry.at, "done": entry.done, "marks": sorted(entry.marks)}
        for entry in found.entries
    ]
    write_whole(state / FILE, json.dumps({"format": _FORMAT, "entries": rows}, indent=1) + "\n", lasting=True)


def remembering(found: Forgotten, entry: Entry) -> Forgotten:
    """The list with an entry, in place of an older one of the same name."""
    return Forgotten.of([*(one for one in found.entries if one.named != entry.named), entry])


def undone(found: Forgotten, marks: Collection[str]) -> tuple[Forgotten, tuple[Entry, ...]]:
    """The list without what was named so; where nothing was, without what took it along. The second: the entries that went."""
    gone = tuple(entry for entry in found.entries if entry.named in marks)
    gone = gone or tuple(entry for entry in found.entries if not entry.marks.isdisjoint(marks))
    return Forgotten.of(entry for entry in found.entries if entry not in gone), gone
