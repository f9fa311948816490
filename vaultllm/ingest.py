"""From the vault to the ledger: which notes changed, what they hold now, what is wrong with them.

Notes are stored a batch a transaction; a kill costs at most one batch's parsing. Knows nothing about the memory's
vectors and nothing about terminals.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import hashlib
import itertools
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vaultllm import forgotten, imports, reading, vault, workers
from vaultllm.config import Workspace
from vaultllm.errors import VaultError, VaultllmError
from vaultllm.files import write_if_changed
from vaultllm.forgotten import Forgotten
from vaultllm.keywords import Statistics, statistics
from vaultllm.ledger import Change, KnownNote, Ledger, NoteRow
from vaultllm.redact import redact
from vaultllm.scene_yaml import to_yaml
from vaultllm.scenes import in_private_folder
from vaultllm.schema import Problem, Progress, Report, silent
from vaultllm.text import decode, sha

BATCH = 500  # notes per transaction, at most
MANY_GONE = 20  # notes that may vanish at once without a question
FEWEST_NOTES = 20  # below, no word is known to be common in the vault
SAMPLE_NOTES = 200  # whose words are counted, the first
SAMPLE_CHARS = 4_000  # of each
SAMPLE_BYTES = 64 * 1024  # larger ones are not in the sample
STATISTICS = "statistics"  # in the ledger's meta table
_PRIVATE = re.compile(r"^private[ \t]*:[ \t]*(?!false|no\b)\S", re.MULTILINE | re.IGNORECASE)
_RACY = 2 * 10**9  # nanoseconds: file systems count time in steps of up to so long (FAT), in which a second change leaves no trace
_LONGEST = 2_000  # bytes of a scene file's name below its folder: half of what a system takes for a whole path
BATCH_SECONDS = 2.0  # a transaction ends after so long: what a kill costs


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


def ingest(
    workspace: Workspace,
    ledger: Ledger,
    *,
    full: bool = False,
    confirm: bool = False,
    only: Collection[str] | None = None,
    progress: Report = silent,
) -> Ingested:
    """Bring the ledger and the scene files to what the vault holds. The caller holds the lock.

    `only`: the notes (vault-relative, spelt as on disk) outside which nothing has changed; all are looked at nevertheless
    where they alone cannot tell. Raises VaultError (E-VANISHED) when many notes are gone and `confirm` is not set.
    """
    ledger.take_back(workspace.runs)
    alone = None if only is None else _alone(ledger, only)
    if alone is None:
        only = None
    root = imports.root_of(workspace.state)
    unwanted = forgotten.load(workspace.state)
    if only is None:
        vault.sweep(workspace.vault, workspace.settings.own_folders)
    scan = vault.scan(workspace.vault, workspace.settings.scan, workspace.settings.own_folders, only)
    stored = imports.scan(root) if only is None else vault.Scan((), ())  # `import` itself tells of a stored talk that is new
    known = ledger.known(only)
    notes, talks = (
        _gone([path for path in known if imports.is_stored(path) == of], which) for of, which in ((False, scan), (True, stored))
    )
    if not confirm:
        _refuse_vanished(_not_moved(notes, known, scan.files), sum(not imports.is_stored(path) for path in known), workspace.vault)
        _refuse_vanished(talks, sum(imports.is_stored(path) for path in known), root)
    files = scan.files + stored.files
    about = functools.cache(lambda: alone or _statistics(workspace, ledger, files, unwanted))
    # First the notes, which imported talks mend; then these, which make scenes only of what no note holds.
    stale = imports.stale_notes(root, ledger.talks(imports.MENDED), _digests(root, stored.files, known)) if only is None else {}
    held = set() if only is None else ledger.talks_in(only)
    parsed, unchanged, change = _read_changed(workspace, ledger, scan.files, known, full, stale, about, unwanted, progress)
    for path in (*notes, *talks):
        scene_file(workspace, path).unlink(missing_ok=True)
        change += Change(removed=ledger.remove_note(path))
    dependent = ledger.talks(imports.READER, None if only is None else held | ledger.talks_in(only))
    stale = {path: now for path, name, joined in dependent if (now := _held(ledger, name)[0]) != joined}
    if only is not None and stale:
        stored = imports.scan(root)
        stored = stored._replace(files=tuple(file for file in stored.files if file.path in stale))
        known = ledger.known(stale)
    parsed_too, unchanged_too, change_too = _read_changed(workspace, ledger, stored.files, known, full, stale, about, unwanted, progress)
    _keep_problems(ledger, vault.Scan(scan.files + stored.files, scan.skipped + stored.skipped), only)
    parsed, unchanged = parsed + parsed_too, unchanged + unchanged_too
    seen = len(scan.files) + len(stored.files) if only is None else ledger.count("notes")
    return Ingested(seen, parsed, unchanged if only is None else seen - parsed, len(notes) + len(talks), change + change_too)


def behind(workspace: Workspace, ledger: Ledger) -> dict[str, int]:
    """How many notes of the vault are new, changed (by their stat) or gone since they were read. Raises VaultError as `vault.scan` does."""
    scan = vault.scan(workspace.vault, workspace.settings.scan, workspace.settings.own_folders)
    known = {path: old for path, old in ledger.known().items() if not imports.is_stored(path)}
    parser = reading.version(workspace.settings)
    there = [(file, known[file.path]) for file in scan.files if file.path in known]
    changed = sum(not _is_same(file, old._replace(ctime_ns=abs(old.ctime_ns)), parser) for file, old in there)
    return {"new": len(scan.files) - len(there), "changed": changed, "gone": len(_gone(known, scan))}


def _alone(ledger: Ledger, only: Collection[str]) -> Statistics | None:
    """The statistics for these files when they can be looked at alone: few, names that a ledger can hold, and no count over all is due."""
    try:
        "".join(only).encode()
    except UnicodeEncodeError:
        return None
    return _fitted(ledger, ledger.count("notes") + len(only)) if len(only) <= MANY_GONE else None


def _not_moved(gone: Sequence[str], known: Mapping[str, KnownNote], files: Sequence[vault.FileStat]) -> list[str]:
    """Those that have not gone elsewhere in the vault: a file that is renamed, or moved with its folder, keeps inode, size and time."""
    arrived = {(file.inode, file.size, file.mtime_ns) for file in files if file.path not in known}
    return [path for path in gone if (known[path].inode, known[path].size, known[path].mtime_ns) not in arrived]


def _refuse_vanished(gone: Sequence[str], known: int, where: Path) -> None:
    """Raises VaultError (E-VANISHED) when so many are gone that the folder is likelier to be incomplete than cleared out."""
    if len(gone) > MANY_GONE and len(gone) > known / 5:
        what = "notes" if where.name != "imports" else "imported talks"
        raise VaultError(
            f"{len(gone)} of {known} known {what} have vanished; nothing was removed. "
            "If the folder is complete, run: vaultllm ingest --confirm",
            path=str(where),
            code="E-VANISHED",
        )


def _digests(root: Path, files: Sequence[vault.FileStat], known: dict[str, KnownNote]) -> dict[str, str]:
    """Path of each stored talk -> fingerprint of its bytes, read only when it is new or touched."""
    found: dict[str, str] = {}
    for file in files:
        old = known.get(file.path)
        if old is not None and _is_same(file, old, old.parser):
            found[file.path] = old.sha256
        else:
            with contextlib.suppress(VaultllmError):
                found[file.path] = imports.fingerprint(imports.read(root, file.path))
    return found


def _held(ledger: Ledger, name: str) -> tuple[str, dict[str, frozenset[str]]]:
    """The notes of the vault that hold a stored talk (only one with an id can be held), and their fingerprint."""
    holders = {} if name.startswith(imports.BY_UID) else ledger.holders(name)
    return imports.holders_now(holders), holders


def _settled(ledger: Ledger, path: str, result: reading.Reading | Problem) -> reading.Reading | Problem:
    """A stored talk that notes of the vault hold is a copy: it makes no scenes."""
    if isinstance(result, Problem) or not imports.is_stored(path) or not result.talks:
        return result
    now, holders = _held(ledger, result.talks[0].conversation)
    result = replace(result, talks=tuple(talk._replace(joined=now) for talk in result.talks))
    return reading.as_copy(result, holders) if holders else result


def _gone(known: Iterable[str], scan: vault.Scan) -> list[str]:
    """Known notes that left the vault. One that is only unreadable now (or below a folder that is) has not left."""
    hidden = [path for path, problem in scan.skipped if problem.code not in ("W-KIND", "W-LINK")]
    present = {file.path for file in scan.files} | set(hidden)
    folders = tuple(path + "/" for path in hidden)
    return sorted(path for path in known if path not in present and not path.startswith(folders))


def _read_changed(
    workspace: Workspace, ledger: Ledger, files: Sequence[vault.FileStat], known: dict[str, KnownNote], full: bool,
    stale: Mapping[str, str], about: Callable[[], Statistics | None], unwanted: Forgotten, progress: Report,
) -> tuple[int, int, Change]:  # fmt: skip
    """Parse what changed, a batch a transaction. Returns how many were parsed, how many had not changed, and the change.

    `stale`: path -> fingerprint of the other copies of its talk, for those that changed while its own bytes did not.
    """
    parser, now = reading.version(workspace.settings), time.time_ns()
    taken_out = {file.path for file in files if unwanted.path(file.path)} if unwanted else set()
    read_before = {path for path in taken_out if path in known and known[path].sha256}  # a `forget` was killed
    # What was told of one that could not be read for a while took the place of what was told when it was: it is read again.
    again = stale.keys() | read_before | ledger.told(vault.UNREAD)
    todo = [file for file in files if full or file.path in again or not _is_same(file, known.get(file.path), parser)]
    if not todo:
        return 0, len(files), Change()
    unread: list[vault.FileStat] = []  # same bytes, other stat
    skipped: list[vault.FileStat] = []  # forgotten
    failed: dict[str, Problem] = {}

    def tasks() -> Iterator[workers.Task[tuple[vault.FileStat, str]]]:
        for file in todo:
            old = known.get(file.path)
            if file.path in taken_out:
                skipped.append(file)
                continue
            try:
                data = imports.read_known(workspace, file.path)
            except VaultllmError as error:  # what was known of it stays; the problem says why it is not newer
                failed[file.path] = Problem(error.code, error.message)
                continue
            digest = hashlib.sha256(data).hexdigest()
            if unwanted and unwanted.file(digest):
                skipped.append(file)
                continue
            if old is not None and not full and file.path not in again and old.sha256 == digest and old.parser == parser:
                unread.append(file)
            else:
                yield workers.Task((file, digest), file.path, data)

    def context() -> workers.Context:
        return workers.Context(workspace.settings, imports.root_of(workspace.state), about(), unwanted or None)

    parsed, change = 0, Change()
    batch: list[tuple[NoteRow, reading.Reading | Problem]] = []
    since = time.monotonic()
    pending = tasks()
    changed = list(itertools.islice(pending, 1))  # no child is started when none has other bytes
    with (
        _uncollected(),
        contextlib.closing(workers.read_all(itertools.chain(changed, pending), context, workers.count(len(todo)))) as results,
    ):
        for task, result in results if changed else ():
            file, digest = task.key
            result = _settled(ledger, task.path, result)
            batch.append((_row(file, digest, parser, result, now), result))
            parsed += isinstance(result, reading.Reading)
            if len(batch) >= BATCH or time.monotonic() - since > BATCH_SECONDS:
                change += _store(workspace, ledger, batch, stale)
                batch.clear()
                since = time.monotonic()
                progress(Progress("reading notes", (parsed + len(unread) + len(failed)) / len(todo)))
    for file in skipped:
        found = reading.forgotten_note(file.path, forgotten.note_problem(file.path))
        batch.append((_row(file, "", parser, found, now), found))
    change += _store(workspace, ledger, batch, stale)
    with ledger.transaction():
        for file in unread:
            if (kept := _kept(file, now)) != _known(known[file.path]):
                ledger.touch(known[file.path].id, *kept)
        ledger.set_problems({path: (problem,) for path, problem in failed.items()})
    return parsed, len(files) - len(todo) + len(unread) + len(skipped), change


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Without the collector of reference cycles: thousands of rows wait in a batch, none in a cycle, and it would go over them all."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _statistics(workspace: Workspace, ledger: Ledger, files: Sequence[vault.FileStat], unwanted: Forgotten) -> Statistics | None:
    """The vault's document frequencies, for the scenes' keywords: fitted on a sample of its notes, anew when it has doubled.

    The sample depends on the notes' paths alone. Scenes that were read keep their keywords until they are read again.
    None while there are too few notes to tell common words from rare ones.
    """
    if len(files) < FEWEST_NOTES:
        return None
    if (known := _fitted(ledger, len(files))) is not None:
        return known
    left_out = {path for path, problem in ledger.problems() if problem.code == forgotten.CODE} if unwanted else set()
    chosen = sorted(
        (sha(file.path), file.path)
        for file in files
        if file.size <= SAMPLE_BYTES and file.path not in left_out and not (unwanted and unwanted.path(file.path))
    )[:SAMPLE_NOTES]
    fitted = statistics(said for _, path in chosen if (said := _sample(workspace, path)))
    ledger.set(STATISTICS, json.dumps({"files": len(files), "statistics": fitted.to_dict()}, ensure_ascii=False))
    return fitted


def _fitted(ledger: Ledger, files: int) -> Statistics | None:
    """The statistics that were fitted, if they serve so many notes."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        known = json.loads(ledger.get(STATISTICS) or "null")
        if known is not None and files < 2 * known["files"]:
            return Statistics.from_dict(known["statistics"])
    return None


def _sample(workspace: Workspace, path: str) -> str:
    """A note's text for counting words; empty when it is private or unreadable. Not parsed: that is the children's work."""
    settings = workspace.settings
    try:
        said = decode(imports.read_known(workspace, path), settings.scan.encoding).text[:SAMPLE_CHARS]
    except VaultllmError:
        return ""
    return "" if _PRIVATE.search(said) or in_private_folder(path, settings.scan) else redact(said, settings.redact)[0]


def _is_same(file: vault.FileStat, old: KnownNote | None, parser: str) -> bool:
    return old is not None and _stat(file) == _known(old) and old.parser == parser


def _row(file: vault.FileStat, digest: str, parser: str, result: reading.Reading | Problem, now: int) -> NoteRow:
    kept = _kept(file, now)
    if isinstance(result, Problem):
        return NoteRow(file.path, PurePosixPath(file.path).stem, *kept, digest, parser, "", "")
    return NoteRow(file.path, result.title, *kept, digest, parser, result.reader, result.why, result.turns, result.turns_left)


def _stat(file: vault.FileStat) -> tuple[int, int, int, int]:
    return file.size, file.mtime_ns, file.ctime_ns, file.inode


def _known(old: KnownNote) -> tuple[int, int, int, int]:
    return old.size, old.mtime_ns, old.ctime_ns, old.inode


def _kept(file: vault.FileStat, now: int) -> tuple[int, int, int, int]:
    """What is remembered of a file's stat. One that was changed a moment ago may change again within the same tick of its file
    system's clock and look the same; its `ctime_ns` is negated, so that its bytes are compared the next time (git's "racy" entries).
    """
    size, mtime, ctime, inode = _stat(file)
    return size, mtime, -ctime if abs(now - ctime) < _RACY or abs(now - mtime) < _RACY else ctime, inode


def _store(
    workspace: Workspace, ledger: Ledger, batch: Sequence[tuple[NoteRow, reading.Reading | Problem]], stale: Mapping[str, str]
) -> Change:
    """What was read -> scene files and ledger."""
    # The files first: were they last, a kill between the two would leave a ledger that believes they were written.
    root = str(workspace.scenes)
    for row, result in batch:
        if isinstance(result, reading.Reading):
            if result.scenes:
                write_if_changed(f"{root}{os.sep}{_scene_name(row.path)}", result.yaml)
            else:
                scene_file(workspace, row.path).unlink(missing_ok=True)
    with ledger.transaction():
        change = ledger.put_notes([(row, result.scenes) for row, result in batch if isinstance(result, reading.Reading)])
        ledger.set_talks({row.path: result.talks for row, result in batch if isinstance(result, reading.Reading)})
        ledger.set_problems({row.path: (result,) if isinstance(result, Problem) else result.problems for row, result in batch})
        for row, result in batch:
            if isinstance(result, Problem):
                ledger.quarantine(row)
                if row.path in stale:
                    ledger.rejoin(row.path, stale[row.path])
    return change


def scene_file(workspace: Workspace, path: str) -> Path:
    """Where a note's scenes are written; a name too long for the file system is cut and marked with a hash.

    Where the vault has a folder that is called as a note's scene file (`x.md.yaml`), a `~` follows its name: no note's path has that.
    """
    return workspace.scenes / _scene_name(path)


def _scene_name(path: str) -> str:
    name = path + ".yaml"
    if ".yaml/" in name.lower():
        name = re.sub(r"(?i)\.yaml/", lambda found: found[0][:-1] + "~/", name)
    if len(name.encode()) > 250:
        parts = [
            part if len(part.encode()) <= 250 else part.encode()[:200].decode("utf-8", "ignore") + "~" + sha(part, digits=8) + ".yaml"
            for part in name.split("/")
        ]
        name = "/".join(parts)
        if len(name.encode()) > _LONGEST:
            name = f"~{sha(path)}.yaml"
    return name


def damaged_scene_files(workspace: Workspace, ledger: Ledger) -> list[str]:
    """The notes whose scene file is not what the ledger says; reads and makes all of them, half a second for 1,000 notes."""
    found = []
    for path in ledger.notes_with_scenes():
        try:
            whole = scene_file(workspace, path).read_bytes() == to_yaml(path, list(ledger.scenes(path))).encode("utf-8")
        except OSError:
            whole = False
        found += [] if whole else [path]
    return found


def write_scenes(workspace: Workspace, ledger: Ledger, path: str) -> None:
    """Write a note's scene file from the ledger, whatever stands in its place."""
    file = scene_file(workspace, path)
    if file.is_dir():
        shutil.rmtree(file)
    for folder in (workspace.scenes / part for part in file.relative_to(workspace.scenes).parents):
        if folder.is_file():
            folder.unlink()
    write_if_changed(file, to_yaml(path, list(ledger.scenes(path))))


def _keep_problems(ledger: Ledger, scan: vault.Scan, only: Collection[str] | None) -> None:
    """The problems of files that were skipped; those of files that are gone are dropped. `only`: those that were looked at, if not all."""
    skipped: dict[str, Sequence[Problem]] = {path: (problem,) for path, problem in scan.skipped}
    present = {file.path for file in scan.files} | set(skipped)
    gone = {path for path, _ in ledger.problems()} if only is None else set(only)
    ledger.set_problems(skipped | dict.fromkeys(gone - present, ()))
