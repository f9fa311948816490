"""What `import` and `repair` do with an export: which of its conversations are stored, and what they mend in the vault.

Reads the vault's notes and never writes one. Knows nothing about the ledger: what is stored here is ingested like a note.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from vaultllm import chats, forgotten, imports, reading, vault
from vaultllm.chats import exports, mend
from vaultllm.config import Settings, Workspace
from vaultllm.errors import DataError, UsageError, VaultError
from vaultllm.schema import Conversation, Problem, Progress, Report, silent
from vaultllm.text import is_json

_UTF16 = (b"\xff\xfe", b"\xfe\xff")


@dataclass
class Taken:
    """What was found in exports, and what became of it."""

    outcomes: Counter[str] = field(default_factory=Counter)
    """How many conversations are `new`, `changed`, `same` in the store; `empty` ones have no message to keep."""
    turns: int = 0
    """Messages of the conversations that are stored now."""
    stored: dict[str, str] = field(default_factory=dict)
    """Path of each stored talk that was read -> its conversation's id."""
    problems: list[tuple[str, Problem]] = field(default_factory=list)
    """(export, what is wrong there); messages left out of talks are one problem for each export and code."""

    @property
    def read(self) -> int:
        """Conversations that were read."""
        return sum(self.outcomes.values()) - self.outcomes["empty"]


@dataclass
class Repaired(Taken):
    """What an export mends."""

    notes: dict[str, mend.Mended] = field(default_factory=dict)
    """Each note that was joined with its conversation; of the joined talks only the problems are kept."""
    left: int = 0
    """Notes of the importer that this export does not hold."""
    not_in_vault: int = 0
    """Conversations of the export that no note holds."""


def check(files: Sequence[Path]) -> None:
    """Raises UsageError when one of the exports is not there."""
    for path in files:
        if not path.exists():
            raise UsageError(
                "there is no such file; name an export as it was downloaded: a .json, .jsonl or .zip, or a folder", path=str(path)
            )


def take(workspace: Workspace, files: Sequence[Path], *, dry_run: bool = False, progress: Report = silent) -> Taken:
    """Store every conversation of these exports. The caller holds the lock.

    Raises UsageError when an export is not there, DataError when there is no conversation in any of them.
    """
    taken = Taken()
    root = imports.root_of(workspace.state)
    for _, conversation in _talks(files, workspace, taken, progress):
        outcome, joined = imports.store(root, conversation, dry_run=dry_run)
        _count(taken, outcome, joined)
    _refuse_nothing(taken, files)
    return taken


def repair(workspace: Workspace, files: Sequence[Path], *, dry_run: bool = False, progress: Report = silent) -> Repaired:
    """Store the conversations that notes of the importer hold, so that they are mended when they are read. The caller holds the lock.

    Raises as `take` does.
    """
    check(files)
    taken = Repaired()
    held: dict[str, list[str]] = defaultdict(list)
    for path, conversation in _notes(workspace):
        if name := imports.name_of(conversation):
            held[name].append(path)
    root = imports.root_of(workspace.state)
    for _, conversation in _talks(files, workspace, taken, progress):
        names = [conversation.id, *(imports.BY_UID + turn.uid for turn in conversation.turns if turn.uid)]
        paths = {path for name in names if name for path in held.get(name, ())}
        if not paths:
            taken.outcomes["not in the vault"] += 1
            taken.not_in_vault += 1
            continue
        outcome, joined = imports.store(root, conversation, dry_run=dry_run)
        _count(taken, outcome, joined)
        for path in sorted(paths):
            for found in _heard(workspace, path):
                if imports.name_of(found) in names:
                    mended = mend.mend(found, joined)  # of a whole vault only the counts fit into memory
                    light = dataclasses.replace(mended.conversation, turns=(), loose=())
                    # A cutting that names no conversation need not hold all of it.
                    taken.notes[path] = dataclasses.replace(mended, conversation=light, lacking=mended.lacking if found.id else 0)
    for path, mended in sorted(taken.notes.items()):
        taken.problems += [(path, one) for one in mended.conversation.problems if one.code == "W-EDITED"]
    _refuse_nothing(taken, files)
    taken.left = len({path for paths in held.values() for path in paths} - taken.notes.keys())
    return taken


def _count(taken: Taken, outcome: str, joined: Conversation) -> None:
    path = imports.path_of(joined)
    taken.outcomes[outcome] += 1
    taken.turns += len(joined.turns) if path not in taken.stored else 0
    taken.stored[path] = joined.id


def _talks(files: Sequence[Path], workspace: Workspace, taken: Taken, progress: Report) -> Iterator[tuple[Path, Conversation]]:
    """The conversations of all exports that say something that was not forgotten; what is wrong is noted in `taken`."""
    check(files)
    settings, unwanted = workspace.settings, forgotten.load(workspace.state)
    reading_ = _Reading(sum(map(_size, files)))
    for path in files:
        left_out: Counter[str] = Counter()
        first: dict[str, Problem] = {}
        for one in exports.stream(path, settings.scan, settings.timezone, reading_.opened, _by_readers(settings)):
            progress(Progress("reading exports", reading_.share()))
            if isinstance(one, Problem):
                message = one.message.removeprefix(f"{path.name}: ")  # the path says it
                taken.problems.append((str(path), dataclasses.replace(one, message=message)))
                continue
            if unwanted:
                one = unwanted.without(one, whole=unwanted.path(imports.path_of(one)))
            for problem in one.problems:
                left_out[problem.code] += problem.count
                first.setdefault(problem.code, problem)
            if one.turns:
                yield path, one
            else:
                taken.outcomes["empty"] += 1
        for code, count in left_out.items():
            message = first[code].message if first[code].count == count else f"{count} in all; in the first talk: {first[code].message}"
            taken.problems.append((str(path), dataclasses.replace(first[code], message=message, count=count)))
    progress(Progress("reading exports", 1.0))


def _by_readers(settings: Settings) -> exports.Fallback:
    """The readers of the vault, for what no export looks like: transcripts of Claude Code, Smart Chat's threads, a chat as a note."""

    def read(name: str, data: bytes) -> list[Conversation]:
        return chats.read(reading.parse(name, data, settings), settings.scan, settings.timezone)[2]

    return read


class _Reading:
    """How far exports were read: by the bytes of their files on the disk, however many an archive unpacks to."""

    def __init__(self, total: int) -> None:
        self.total, self.before = max(total, 1), 0
        self.file: IO[bytes] | None = None

    def opened(self, file: IO[bytes]) -> None:
        """The next file is read; the one before it is done."""
        self.before += 0 if self.file is None else _size(Path(self.file.name))
        self.file = file

    def share(self) -> float:
        """0..1."""
        here = 0 if self.file is None else _size(Path(self.file.name)) if self.file.closed else self.file.tell()
        return min(1.0, (self.before + here) / self.total)


def _size(path: Path) -> int:
    """Bytes of a file, or of the files in a folder."""
    with contextlib.suppress(OSError):
        return sum(file.lstat().st_size for file in path.rglob("*")) if path.is_dir() else path.stat().st_size
    return 0


def _refuse_nothing(taken: Taken, files: Sequence[Path]) -> None:
    """Raises DataError, with the first thing that is wrong, when there was nothing to take."""
    if taken.read:
        return
    path, problem = min(taken.problems, key=lambda one: not one[1].code.startswith("E-"), default=(str(files[0]), None))
    if problem is None:
        raise DataError("there is no conversation with a message in it; export your data again", path=path)
    raise DataError(f"{problem.message}; nothing was imported", path=path, line=problem.line or None, code=problem.code)


def _notes(workspace: Workspace) -> Iterator[tuple[str, Conversation]]:
    """The talks of the vault's notes that the importer wrote."""
    settings = workspace.settings
    for file in vault.scan(workspace.vault, settings.scan, settings.own_folders).files:
        for conversation in _heard(workspace, file.path):
            yield file.path, conversation


def _heard(workspace: Workspace, path: str) -> list[Conversation]:
    """The talks of a note, if the importer wrote it; a note that cannot be read has none (`ingest` says why)."""
    settings = workspace.settings
    try:
        data = vault.read(workspace.vault, path, settings.scan.max_bytes)
    except VaultError:
        return []
    if is_json(path) or not (b"nexus_" in data.lower() or b"UID:" in data or data.startswith(_UTF16)):
        return []
    reader, _, conversations = chats.read(reading.parse(path, data, settings), settings.scan, settings.timezone)
    return list(conversations) if reader == imports.MENDED else []
