"""The store of imported talks: one file per conversation in the state folder, in a layout of our own, one turn a line.

A stored talk is ingested like a note, under a path that no note of a vault can have (`PREFIX`); where a note of the vault
holds the same talk, the stored one only mends it. Files are put in place whole, and only when they say something new, so
that an import that was killed is finished by running it again. A message is never lost to a newer export: what that no
longer holds stays, marked as no part of the talk as it went on.

Knows nothing about the formats of exports (`chats`), nor about scenes and the ledger.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from vaultllm import vault
from vaultllm.errors import VaultError
from vaultllm.files import write_whole
from vaultllm.schema import Conversation, Note, Problem, Turn, from_dict, to_dict
from vaultllm.text import encodable, sha
from vaultllm.vault import FileStat, Scan

if TYPE_CHECKING:
    from vaultllm.config import Workspace

PREFIX = ".vaultllm/imports/"
"""Paths of stored talks begin so: `PREFIX<provider>/<hash>.json`. Dot folders are never scanned for notes."""
READER = "imported"
"""The reader's name of a stored talk."""
MENDED = "nexus"
"""The reader whose talks a stored one mends."""

_FORMAT = "vaultllm talk 1"
_OURS_LATER = re.compile(r"vaultllm talk [1-9]\d*")  # and not `_FORMAT`
_INDEX = "uids"  # which messages stand in which file: a line each, appended before the file is written
_PROVIDER = re.compile(r"[^a-z0-9]+")
_STORED = re.compile(r"[a-z0-9-]+/[^/\\\0]+\.json")  # what follows `PREFIX`
BY_UID = "uid:"
"""Names of talks begin so that are known by a message alone (see `name_of`)."""
_NO_UID = "a later export"  # what a lost message without anything that could be named is a variant of

Outcome = Literal["new", "changed", "same"]


class Talk(NamedTuple):
    """A talk in a note or in the store, as the ledger remembers it: who depends on whom."""

    conversation: str
    """The conversation's id; `uid:` and the first UID for a note that does not name its conversation."""
    joined: str
    """Fingerprint of the other copies when it was read: of the stored talk that mended a note, of the notes that hold a stored talk."""
    uids: tuple[str, ...]
    """UIDs of its messages."""


# -- paths


def root_of(state: Path) -> Path:
    """The store's folder in a state folder."""
    return state / "imports"


def is_stored(path: str) -> bool:
    """Whether a path is that of a stored talk. One that only begins so, and then leads elsewhere (`..`), is not."""
    return path.startswith(PREFIX) and _STORED.fullmatch(path, len(PREFIX)) is not None


def file_of(root: Path, path: str) -> Path:
    """The file of a stored talk's path."""
    return root / path.removeprefix(PREFIX)


def provider_of(path: str) -> str:
    """The provider in a stored talk's path; empty when it is unknown."""
    name = path.removeprefix(PREFIX).partition("/")[0]
    return "" if name == "other" else name


def path_of(conversation: Conversation) -> str:
    """The path under which a conversation is stored: by its id; without one by its first UID; without that by all that was said."""
    provider = _PROVIDER.sub("-", conversation.provider.lower()).strip("-")[:32] or "other"
    return f"{PREFIX}{provider}/{_stem(conversation)}.json"


def _stem(conversation: Conversation) -> str:
    if conversation.id:
        return _key(conversation.id)
    first = next((turn.uid for turn in conversation.turns if turn.uid), "")
    return _key(BY_UID + first) if first else sha("said", *(part for turn in conversation.turns for part in (turn.role, turn.text)))


def _key(conversation: str) -> str:
    return sha("talk", conversation)


# -- the store


def store(root: Path, conversation: Conversation, *, dry_run: bool = False) -> tuple[Outcome, Conversation]:
    """Put a conversation into the store, joined with what is stored of it; returns what became of it and the joined talk.

    The caller holds the lock. Raises OSError when the disk is full or read-only, VaultError when the stored talk is of a newer version.
    With `dry_run` nothing is written.
    """
    path = file_of(root, path_of(conversation))
    before, old = b"", None
    try:
        before = path.read_bytes()
        old = load(before)
    except NewerError as error:
        raise VaultError(f"the imported talk was left as it is: {error}", path=str(path), code="E-IMPORT") from error
    except (FileNotFoundError, ValueError):  # damaged: what comes now is better
        pass
    joined = conversation if old is None else merge(old, conversation)
    data = dump(joined)
    joined = load(data)
    outcome: Outcome = "same" if data == before else "changed" if before else "new"
    if outcome != "same" and not dry_run:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        _note_uids(root, path, _uids(joined) - (_uids(old) if old else set()))
        write_whole(path, data)
    return outcome, joined


def merge(old: Conversation, new: Conversation) -> Conversation:
    """Two exports of one conversation as one; the later (by its last message, then by their number) says how the talk goes.

    Messages of the other that it no longer holds stay behind the message that they followed, as variants of the one that
    stands there now; at the end of the talk they go on with it. When neither is later, `new` is.
    """
    base, other = (new, old) if _reach(new) >= _reach(old) else (old, new)
    names = _names(base.turns)
    there = set(names)
    behind: dict[str, list[Turn]] = {}
    last = ""
    for name, turn in zip(_names(other.turns), other.turns, strict=True):
        if name in there:
            last = name
        else:
            behind.setdefault(last, []).append(turn)
    if not behind:
        return base
    goes_on = ""  # UID of the next message of the talk, from the end backwards
    turns: list[Turn] = []
    for place in range(len(names), -1, -1):
        for lost in reversed(behind.get(names[place - 1] if place else "", ())):
            turns.append(replace(lost, variant_of=lost.variant_of or goes_on))
        if place:
            turn = base.turns[place - 1]
            turns.append(turn)
            goes_on = goes_on if turn.variant_of else turn.uid or _NO_UID
    return replace(base, turns=tuple(reversed(turns)))


def _reach(conversation: Conversation) -> tuple[str, int]:
    """How far an export of a talk goes. Times of one provider are written alike (UTC), so they compare as text."""
    return max((turn.at for turn in conversation.turns), default=""), len(conversation.turns)


def _names(turns: Iterable[Turn]) -> list[str]:
    """What tells the messages of one conversation apart: the UID, else what was said and how often it was said before."""
    seen: dict[str, int] = {}
    names = []
    for turn in turns:
        name = turn.uid or sha(turn.role, turn.text)
        seen[name] = seen.get(name, 0) + 1
        names.append(name if seen[name] == 1 else f"{name} {seen[name]}")
    return names


def dump(conversation: Conversation) -> bytes:
    """A talk as a file: a head, then one turn a line; empty fields are left out, as are lines (they are the file's own)."""
    head: dict[str, Any] = {"format": _FORMAT} | {name: getattr(conversation, name) for name in _HEAD}
    head["problems"] = [to_dict(replace(problem, line=0)) for problem in conversation.problems]
    rows = [_json({name: value for name, value in to_dict(turn).items() if value and name not in _OURS}) for turn in conversation.turns]
    text = _json(head)[:-1] + ', "turns": [\n' + ",\n".join(rows) + "\n]}\n"
    return encodable(text).encode("utf-8")


_HEAD = ("id", "title", "provider", "created")
_OURS = ("lines", "text_line")


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False)


class NewerError(ValueError):
    """A stored talk of a newer version: not ours to read, nor to write over."""


def load(data: bytes | str) -> Conversation:
    """A stored talk; each turn's lines are its line in the file. Raises ValueError when it is not one of ours, or damaged.

    Of these NewerError when a newer version has written it.
    """
    from vaultllm.chats import LEFT_OUT  # with all the readers, which who only asks does not need

    try:
        record = json.loads(data)
        if record["format"] != _FORMAT:
            known = f"its format is {record['format']!r}, this vaultllm knows {_FORMAT!r}"
            raise NewerError(f"{known}; update vaultllm") if _OURS_LATER.fullmatch(str(record["format"])) else ValueError(known)
        turns = tuple(from_dict(Turn, {"text": "", **row, "lines": (number, number)}) for number, row in enumerate(record["turns"], 2))
        problems = tuple(from_dict(Problem, problem) for problem in record["problems"])
        left = sum(problem.count for problem in problems if problem.code in LEFT_OUT)
        identity, title, provider, created = (str(record[name]) for name in _HEAD)
        lines = (1, len(turns) + 2)
        return Conversation(identity, title, provider, created, turns, lines, problems=problems, seen=len(turns) + left)
    except (KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"it is not a stored talk ({type(error).__name__}: {error})") from error


# -- reading it as notes are read


def scan(root: Path) -> Scan:
    """All stored talks, as `vault.scan` tells of notes: paths with `PREFIX`, and what could not be taken and why."""
    files: list[FileStat] = []
    skipped: list[tuple[str, Problem]] = []
    folders = [""]
    while folders:
        folder = folders.pop()
        try:
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if not folder and entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif folder and entry.name.endswith(".json") and not entry.name.startswith("."):
                        found = entry.stat(follow_symlinks=False)
                        path = f"{PREFIX}{folder}/{entry.name}"
                        if stat.S_ISREG(found.st_mode) and is_stored(path):
                            files.append(FileStat(path, found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))
        except FileNotFoundError:
            continue
        except OSError as error:
            message = f"the imported talks cannot be listed ({error.strerror}); make the folder of the state readable"
            skipped.append(((PREFIX + folder).rstrip("/"), Problem("E-READ", message)))
    return Scan(tuple(sorted(files)), tuple(sorted(skipped)))


def read(root: Path, path: str) -> bytes:
    """The bytes of a stored talk, however many (no limit: it was in memory when it was stored). Raises VaultError (E-READ)."""
    try:
        return file_of(root, path).read_bytes()
    except OSError as error:
        message = f"the imported talk cannot be read ({error.strerror}); import its export again"
        raise VaultError(message, path=path, code="E-READ") from error


def read_known(workspace: Workspace, path: str) -> bytes:
    """The bytes of what the ledger knows by this path: a stored talk's, else a note's. Raises VaultError."""
    if is_stored(path):
        return read(root_of(workspace.state), path)
    return vault.read(workspace.vault, path, workspace.settings.scan.max_bytes)


def fingerprint(data: bytes) -> str:
    """Of a stored talk's bytes: what a mended note remembers."""
    return sha256(data).hexdigest()


# -- which talk mends which note


def name_of(conversation: Conversation) -> str:
    """How the ledger calls the talk of a note: its id, else `uid:` and its first UID; empty if it has neither."""
    first = next((turn.uid for turn in conversation.turns if turn.uid), "")
    return conversation.id or (BY_UID + first if first else "")


def find(root: Path, name: str) -> str:
    """The path of the stored talk that a note's talk of this name (`name_of`) is a copy of; empty when there is none."""
    if not name:
        return ""
    if name.startswith(BY_UID):
        index = root / _INDEX
        try:
            known = index.stat()
        except OSError:
            return ""
        stored = _index(index, known.st_size, known.st_mtime_ns).get(sha(name.removeprefix(BY_UID)), "")
        return PREFIX + stored if stored and (root / stored).is_file() else ""
    wanted = _key(name) + ".json"
    try:
        with os.scandir(root) as folders:
            found = sorted(folder.name for folder in folders if folder.is_dir() and os.path.isfile(f"{folder.path}/{wanted}"))
    except OSError:
        return ""
    return f"{PREFIX}{found[0]}/{wanted}" if found else ""


def joined(root: Path | None, reader: str, conversations: Iterable[Conversation]) -> tuple[list[Conversation], tuple[Talk, ...]]:
    """The talks of a note, those of the importer's mended by the stored ones, and what the ledger is to remember of them."""
    read_: list[Conversation] = []
    talks: list[Talk] = []
    for conversation in conversations:
        name, stamp = name_of(conversation), ""
        if root is not None and reader == MENDED and (path := find(root, name)):
            from vaultllm.chats import mend

            with contextlib.suppress(VaultError, ValueError):  # a damaged one is reported at its own path
                data = read(root, path)
                stamp = fingerprint(data)
                conversation = mend.mend(conversation, load(data)).conversation
        if name:
            talks.append(Talk(name, stamp, tuple(turn.uid for turn in conversation.turns if turn.uid)))
        read_.append(conversation)
    return read_, tuple(talks)


def as_note(note: Note) -> tuple[Note, list[Conversation]]:
    """A stored talk's file (decoded, without blocks) as a note with the talk's title, and the talk; none when it is damaged."""
    try:
        conversation = load(note.text)
    except ValueError as error:
        damaged = f"the imported talk is damaged ({error}); import its export again"
        problem = Problem("E-IMPORT", f"the imported talk is of a newer version: {error}" if isinstance(error, NewerError) else damaged)
        return replace(note, problems=(problem,)), []
    return replace(note, title=conversation.title or note.title), [conversation]


def stale_notes(root: Path, talks: Iterable[tuple[str, str, str]], digests: Mapping[str, str]) -> dict[str, str]:
    """Notes that must be read again although their bytes are the same: the stored talk that mends them came, changed or went.

    `talks` are (note's path, talk's name, fingerprint of the stored talk when it was read); `digests` the stored talks'
    fingerprints now, by path.
    """
    by_id: dict[str, str] = {}
    for stored in sorted(digests):
        by_id.setdefault(PurePosixPath(stored).stem, stored)
    found = ((note, joined, find(root, name) if name.startswith(BY_UID) else by_id.get(_key(name), "")) for note, name, joined in talks)
    return {note: now for note, joined, stored in found if (now := digests.get(stored, "")) != joined}


def holders_now(holders: Mapping[str, Collection[str]]) -> str:
    """Fingerprint of the notes that hold a stored talk (path -> UIDs): what the stored talk remembers. Empty when there are none."""
    return sha(*(part for path in sorted(holders) for part in (path, *sorted(holders[path])))) if holders else ""


def _uids(conversation: Conversation) -> set[str]:
    return {turn.uid for turn in conversation.turns}


def _note_uids(root: Path, path: Path, uids: Iterable[str]) -> None:
    """Append to the index. Each entry begins with a newline, so that one that a kill cut off does not spoil the next."""
    where = path.relative_to(root).as_posix()
    entries = "".join(f"\n{sha(uid)} {where}" for uid in sorted(uids) if uid)
    if entries:
        with open(os.open(root / _INDEX, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "w", encoding="utf-8") as file:
            file.write(entries)


@functools.lru_cache(maxsize=1)
def _index(path: Path, size: int, mtime_ns: int) -> dict[str, str]:
    """Hash of a UID -> the file it stands in, below the store's folder."""
    found: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        uid, _, where = line.partition(" ")
        if len(uid) == 16 and where.endswith(".json"):
            found[uid] = where
    return found
