"""From the vault to the ledger: which notes changed, what they hold now, what is wrong with them.

Notes are stored a batch a transaction; a kill costs at most one batch's parsing. Knows nothing about the memory's
vectors and nothing about terminals.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaultllm import reading, vault
from vaultllm.config import Workspace
from vaultllm.errors import VaultError, VaultllmError
from vaultllm.files import write_whole
from vaultllm.ledger import Change, KnownNote, Ledger, NoteRow
from vaultllm.scene_yaml import to_yaml
from vaultllm.schema import Problem, Progress, Report, silent
from vaultllm.text import sha

BATCH = 200  # notes per transaction


@dataclass(frozen=True, slots=True)
class Ingested:
    """What one ingest did."""

    seen: int
    """Notes in the vault."""
    parsed: int
    """Notes that were read anew."""
    unchanged: int
    """Notes that were not."""
    removed: int
    """Notes that left the vault."""
    change: Change
    """What became of the scenes."""


def ingest(workspace: Workspace, ledger: Ledger, *, full: bool = False, confirm: bool = False, progress: Report = silent) -> Ingested:
    """Bring the ledger and the scene files to what the vault holds. The caller holds the lock.

    Raises VaultError (E-VANISHED) when many notes are gone and `confirm` is not set.
    """
    scan = vault.scan(workspace.vault, workspace.settings.scan, workspace.settings.answers.folder)
    known = ledger.known()
    gone = _gone(known, scan)
    if not confirm and len(gone) > 20 and len(gone) > len(known) / 5:
        raise VaultError(
            f"{len(gone)} of {len(known)} known notes have vanished; nothing was removed. "
            "If the vault is complete, run: vaultllm ingest --confirm",
            path=str(workspace.vault),
            code="E-VANISHED",
        )
    parsed, unchanged, change = _read_changed(workspace, ledger, scan.files, known, full, progress)
    for path in gone:
        scene_file(workspace, path).unlink(missing_ok=True)
        change += Change(removed=ledger.remove_note(path))
    _keep_problems(ledger, scan)
    return Ingested(len(scan.files), parsed, unchanged, len(gone), change)


def _gone(known: Iterable[str], scan: vault.Scan) -> list[str]:
    """Known notes that left the vault. One that is only unreadable now (or below a folder that is) has not left."""
    hidden = [path for path, problem in scan.skipped if problem.code not in ("W-KIND", "W-LINK")]
    present = {file.path for file in scan.files} | set(hidden)
    folders = tuple(path + "/" for path in hidden)
    return sorted(path for path in known if path not in present and not path.startswith(folders))


def _read_changed(
    workspace: Workspace, ledger: Ledger, files: Sequence[vault.FileStat], known: dict[str, KnownNote], full: bool, progress: Report
) -> tuple[int, int, Change]:
    """Parse what changed, a batch a transaction. Returns how many were parsed, how many had not changed, and the change."""
    settings = workspace.settings
    parser = reading.version(settings)
    todo = []
    for file in files:
        old = known.get(file.path)
        same = old is not None and _stat(file) == (old.size, old.mtime_ns, old.ctime_ns, old.inode) and old.parser == parser
        if full or not same:
            todo.append((file, old))
    parsed, unchanged, change = 0, len(files) - len(todo), Change()
    for start in range(0, len(todo), BATCH):
        with ledger.transaction():
            for file, old in todo[start : start + BATCH]:
                try:
                    data = vault.read(workspace.vault, file.path, settings.scan.max_bytes)
                except VaultllmError as error:  # what was known of it stays; the problem says why it is not newer
                    _set_problems(ledger, file.path, (Problem(error.code, error.message),))
                    continue
                digest = hashlib.sha256(data).hexdigest()
                if old is not None and not full and old.sha256 == digest and old.parser == parser:
                    ledger.touch(old.id, *_stat(file))
                    unchanged += 1
                    continue
                try:
                    read = reading.read_note(file.path, data, settings)
                except Exception as error:  # a bug of ours in one note must not keep all others out of the memory
                    message = f"the note could not be read ({type(error).__name__}); please report this bug of ours; its last state is kept"
                    _set_problems(ledger, file.path, (Problem("E-BUG", message),))
                    continue
                change += _store(workspace, ledger, file, digest, parser, read)
                parsed += 1
        progress(Progress("reading notes", min(1.0, (start + BATCH) / len(todo))))
    return parsed, unchanged, change


def _stat(file: vault.FileStat) -> tuple[int, int, int, int]:
    return file.size, file.mtime_ns, file.ctime_ns, file.inode


def _store(workspace: Workspace, ledger: Ledger, file: vault.FileStat, digest: str, parser: str, read: reading.Reading) -> Change:
    """Scenes -> YAML and ledger."""
    # The YAML first: were it last, a kill between the two would leave a ledger that believes it was written.
    if read.scenes:
        _write_if_changed(scene_file(workspace, file.path), read.yaml)
    else:
        scene_file(workspace, file.path).unlink(missing_ok=True)
    row = NoteRow(file.path, read.title, *_stat(file), digest, parser, read.reader, read.why, read.turns, read.turns_left)
    change = ledger.put_note(row, read.scenes)
    _set_problems(ledger, file.path, read.problems)
    return change


def scene_file(workspace: Workspace, path: str) -> Path:
    """Where a note's scenes are written; a name too long for the file system is cut and marked with a hash."""
    name = path + ".yaml"
    parts = [
        part if len(part.encode()) <= 250 else part.encode()[:200].decode("utf-8", "ignore") + "~" + sha(part, digits=8) + ".yaml"
        for part in name.split("/")
    ]
    return workspace.scenes.joinpath(*parts)


def write_scenes(workspace: Workspace, ledger: Ledger, path: str) -> None:
    """Write a note's scene file from the ledger."""
    _write_if_changed(scene_file(workspace, path), to_yaml(path, list(ledger.scenes(path))))


def _write_if_changed(path: Path, content: str) -> None:
    data = content.encode("utf-8")
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def _set_problems(ledger: Ledger, path: str, problems: Sequence[Problem]) -> None:
    """Write only what is different: a scan that finds nothing new leaves the ledger's file untouched."""
    if sorted(ledger.problems_of(path), key=repr) != sorted(problems, key=repr):
        ledger.set_problems(path, problems)


def _keep_problems(ledger: Ledger, scan: vault.Scan) -> None:
    """The problems of files that were skipped; those of files that are gone are dropped."""
    skipped = dict(scan.skipped)
    for path, problem in skipped.items():
        _set_problems(ledger, path, (problem,))
    present = {file.path for file in scan.files} | set(skipped)
    for path in {path for path, _ in ledger.problems()} - present:
        ledger.set_problems(path, ())
