"""A note, a scene or a message taken out of everything that was derived from it; the vault itself stays as it is.

First the list of what was forgotten is written (`forgotten.py`), so that nothing reads it again; then every copy goes; at last every
file of the state folder is searched for what it said. Killed anywhere, the same command goes on to the same end. Knows nothing about
terminals, and nothing about what weights remember: trainings that saw it are revoked, not measured.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import re
import shutil
import sqlite3
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultllm import forgotten, imports, ingest, registry, remember, target, vault
from vaultllm.config import Workspace
from vaultllm.database import explained, remove_backups
from vaultllm.errors import DataError, LockedError, VaultError, VaultllmError
from vaultllm.files import write_whole
from vaultllm.forgotten import Entry, Forgotten, mark
from vaultllm.ledger import Ledger
from vaultllm.memory import live
from vaultllm.schema import Progress, Report, silent
from vaultllm.target import Target
from vaultllm.text import sha, words
from vaultllm.traces import Needles, every_file

_TEMPORARY = re.compile(r"\.[0-9a-f]{8}\.tmp")  # what a kill left of `files.write_whole`
_LARGEST = 2**30  # bytes of a note of ours; the user may have written on in it
_BACKUP = re.compile(r"ledger.*(?:db|bak|backup|sqlite|old|\d)", re.IGNORECASE)


# -- what saw it


@dataclass(frozen=True, slots=True)
class Derived:
    """What holds it besides the ledger's scenes."""

    datasets: tuple[str, ...]
    """Ids of datasets with an example of it."""
    runs: tuple[str, ...]
    """Trainings on it, or on a base that read it."""
    bases: tuple[str, ...]
    """Micro bases that read it."""
    answers: tuple[str, ...]
    """Ids of our answers that quote it."""
    notes: tuple[str, ...]
    """Notes that we wrote and that quote it: the user's own, never touched."""


def derived(workspace: Workspace, ledger: Ledger, goal: Target) -> Derived:
    """Where it has gone. A training has seen what it was trained on, not what was held out to measure it."""
    wanted = Needles(goal.wanted)
    datasets: set[str] = set()
    learnt: set[str] = set()
    emptied: set[str] = set()  # their examples went with something that was forgotten before
    for file, _ in target.examples(workspace, goal.paths):
        datasets.add(file.parent.name)
        learnt |= {file.parent.name} if file.name == "train.jsonl" else set()
    for folder in target.folders(workspace.datasets):
        files = sorted(folder.glob("*.jsonl"))
        held = [file for file in files if _holds(file, goal.scenes) or wanted.within_file(file)[0]]
        if held or goal.scenes.intersection(_json(folder / "manifest.json").get("scenes", ())):
            datasets.add(folder.name)
        learnt |= {folder.name} if any(file.name == "train.jsonl" for file in held) else set()
        emptied |= {folder.name} if folder.name in datasets and not files else set()
    bases = set()
    for folder in target.folders(workspace.bases):
        seen = _json(folder / "seen.json")
        if goal.scenes.intersection(seen.get("scenes", ())) or goal.paths.intersection(seen.get("paths", ())):
            bases.add(folder.name)
    runs = []
    for run in ledger.runs():
        scenes = _json(workspace.runs / run.id / "scenes.json")  # what it learnt; an old run has no such file
        saw = not goal.scenes.isdisjoint(scenes) if scenes else run.dataset in emptied
        if not goal.scenes:  # gone from the vault since it was forgotten: its scenes are known by what they said
            saw = any(mark("said", said) in goal.marks for said in scenes.values())
        saw = saw or run.options.get("continued") in runs  # its weights began with those
        if saw or run.dataset in learnt or Path(run.base).name in bases:
            runs.append(run.id)
    answers, notes = _answers(workspace, ledger, goal, wanted)
    return Derived(tuple(sorted(datasets)), tuple(runs), tuple(sorted(bases)), answers, notes)


def _json(path: Path) -> dict[str, Any]:
    """A file of ours; empty when it is not there or damaged."""
    try:
        found = json.loads(path.read_bytes().decode("utf-8", "surrogatepass"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _holds(file: Path, scenes: frozenset[str]) -> bool:
    """Whether an example in a dataset's file was made of one of these scenes."""
    with file.open("rb") as lines:
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if not scenes.isdisjoint(json.loads(line.decode("utf-8", "surrogatepass"))["scenes"]):
                    return True
    return False


def _answers(workspace: Workspace, ledger: Ledger, goal: Target, wanted: Needles) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Ids of the answers that the ledger remembers with words of it, and the notes of the vault in which we quoted it."""
    ids: list[str] = []
    written: set[str] = set()
    for identity, path, record in ledger.db.execute("SELECT id, path, record FROM answers ORDER BY id"):
        written.add(path)
        cited = any(_is_of(source, goal) for source in json.loads(record).get("sources", ()))
        if cited or wanted.within(record.encode("utf-8", "surrogatepass")):
            ids.append(identity)
    for folder in workspace.settings.own_folders:
        written.update(path for path in vault.files_below(workspace.vault, folder) if path.endswith(".md"))
    notes: list[str] = []
    for path in sorted(written - goal.paths):
        with contextlib.suppress(VaultError):
            if wanted.within(vault.read(workspace.vault, path, _LARGEST)):
                notes.append(path)
    return tuple(ids), tuple(notes)


def _is_of(source: Mapping[str, Any], goal: Target) -> bool:
    """Whether a quotation in an answer is of it."""
    return source["path"] in goal.paths or bool(source["uid"] and mark("message", source["uid"]) in goal.marks)


# -- forgetting


def plan(workspace: Workspace, ledger: Ledger, what: str) -> dict[str, Any]:
    """What `forget` would remove; nothing is written. The entries are those of `forget`, as far as they can be known before."""
    goal = target.find(workspace, ledger, what, forgotten.load(workspace.state))
    found = derived(workspace, ledger, goal)
    return {
        "what": what,
        "kind": goal.kind,
        "dry_run": True,
        "removed": _counts(workspace, ledger, goal, found),
        "runs": _runs(workspace, ledger, found),
        "bases": list(found.bases),
        "notes_that_quote_it": list(found.notes),
        "said_elsewhere": list(goal.elsewhere),
    }


def forget(
    workspace: Workspace,
    ledger: Ledger,
    what: str,
    *,
    base: str = "",
    progress: Report = silent,
    witness: Callable[[Target, Derived], None] = lambda goal, found: None,
) -> dict[str, Any]:
    """Take it out of everything, and prove it. The caller holds the locks of writing and of training.

    `base`: as in `remember.refresh`. `witness` is told what is about to go, before anything does. Returns what, kind,
    removed (counts), runs (revoked: id, answered), bases, notes_that_quote_it, said_elsewhere (notes that stay and say some of it),
    searched {files, bytes, fragments}, current, seconds. Raises DataError when nothing is called so, VaultError (E-FORGET) naming
    the files in which some of it is left, and LockedError when another process keeps the ledger open so that its file cannot be
    written anew.
    """
    began = time.perf_counter()
    known = forgotten.load(workspace.state)
    goal = target.find(workspace, ledger, what, known)
    found = derived(workspace, ledger, goal)
    witness(goal, found)
    removed = _counts(workspace, ledger, goal, found)
    runs = _runs(workspace, ledger, found)
    entry = Entry(goal.kind, goal.named, dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), goal.marks)
    known = forgotten.remembering(known, entry)
    forgotten.save(workspace.state, known)
    progress(Progress("forgetting", 0.1))
    wanted = Needles(goal.wanted)
    current = _revoke(workspace, ledger, found)
    _drop_files(workspace, goal, found, known, wanted)
    _drop_rows(ledger, goal, found, wanted)
    late = _read_again(workspace, ledger, progress)
    progress(Progress("forgetting", 0.5))
    _prune_embedder(ledger, workspace.memory)
    late = _remember_again(workspace, ledger, base, progress) or late
    _rewrite(ledger)
    progress(Progress("searching every file", 0.8))
    left, files, size = wanted.within_folder(workspace.state)
    if left:
        named = "; ".join(f"{path} ({len(parts)})" for path, parts in sorted(left.items())[:10])
        raise VaultError(
            f"{sum(map(len, left.values()))} fragments of it are left in {len(left)} files: {named}; "
            "remove those that are yours (a backup, an export), then run the same command again",
            path=str(workspace.state),
            code="E-FORGET",
        )
    forgotten.save(workspace.state, forgotten.remembering(known, dataclasses.replace(entry, done=True)))
    if late is not None:
        raise late
    return {
        "what": what,
        "kind": goal.kind,
        "dry_run": False,
        "removed": removed,
        "runs": runs,
        "bases": list(found.bases),
        "current": current or None,
        "notes_that_quote_it": list(found.notes),
        "said_elsewhere": list(goal.elsewhere),
        "searched": {"files": files, "bytes": size, "fragments": len(wanted.fragments)},
        "seconds": round(time.perf_counter() - began, 3),
    }


def undo(workspace: Workspace, ledger: Ledger, what: str) -> dict[str, Any]:
    """Let a note, scene, message or conversation be read again, by the next ingest. Raises DataError when it was not forgotten.

    What was derived from it is not brought back, nor a revoked training; of an imported talk, import its export again.
    """
    known = forgotten.load(workspace.state)
    marks = set(target.names_of(what))
    with contextlib.suppress(VaultllmError):  # a note that was renamed since
        marks.add(mark("bytes", hashlib.sha256(imports.read_known(workspace, what)).hexdigest()))
    left, gone = forgotten.undone(known, marks)
    if not gone:
        raise DataError("nothing that is called so was forgotten; vaultllm status lists the notes (W-FORGOTTEN)", path=what)
    # First: were the list written first, a kill would leave notes that nobody reads again.
    ledger.db.execute("UPDATE notes SET parser = '' WHERE path IN (SELECT path FROM problems WHERE code = ?)", (forgotten.CODE,))
    forgotten.save(workspace.state, left)
    return {"what": what, "undone": len(gone), "kinds": sorted({entry.kind for entry in gone}), "left": len(left.entries)}


def _counts(workspace: Workspace, ledger: Ledger, goal: Target, found: Derived) -> dict[str, int]:
    scenes = passages = 0
    query = (
        "SELECT s.id, s.record, (SELECT count(*) FROM passages p WHERE p.scene = s.slot)"
        " FROM scenes s JOIN notes n ON n.id = s.note WHERE n.path IN ({})"
    )
    for identity, record, held in ledger.among(query, sorted(goal.touched)):
        scene = json.loads(record)
        if scene["source"]["path"] in goal.paths or identity in goal.scenes or target.is_in(scene, goal.marks):
            scenes += 1
            passages += held
    return {
        "notes": len(goal.paths),
        "scenes": scenes,
        "passages": passages,
        "imports": sum(imports.is_stored(path) for path in goal.touched),
        "datasets": sum(any((workspace.datasets / name).glob("*.jsonl")) for name in found.datasets),
        "answers": len(found.answers),
    }


def _runs(workspace: Workspace, ledger: Ledger, found: Derived) -> list[dict[str, Any]]:
    current = registry.current(workspace)
    return [{"id": run.id, "base": run.base, "answered": run.id == current} for run in ledger.runs() if run.id in found.runs]


def _revoke(workspace: Workspace, ledger: Ledger, found: Derived) -> str:
    """Neither runs nor bases that saw it answer any more; the run that answers now, or ""."""
    reason = f"something that it learnt was forgotten on {dt.datetime.now(dt.UTC).date()}"
    for name in found.bases:
        registry.revoke_base(workspace.bases / name, reason)
    return registry.revoke(workspace, ledger, found.runs, reason)


def _drop_files(workspace: Workspace, goal: Target, found: Derived, known: Forgotten, wanted: Needles) -> None:
    """Examples, scene files, the map, stored talks; what kills left half written; lines of logs, copies of the ledger."""
    for name in found.datasets:
        for file in (workspace.datasets / name).glob("*.jsonl"):
            file.unlink(missing_ok=True)  # the manifest stays: ids and reasons, by which a run knows what it has seen
    for path in goal.touched:
        ingest.scene_file(workspace, path).unlink(missing_ok=True)
    (workspace.state / "map.html").unlink(missing_ok=True)
    remove_backups(workspace.ledger)  # whatever stands in them: of a short text no fragment could be looked for
    root = imports.root_of(workspace.state)
    for path in filter(imports.is_stored, goal.paths):  # a damaged one too
        imports.file_of(root, path).unlink(missing_ok=True)
    for path, talk in target.stored(workspace):
        left = known.without(talk)
        if not left.turns and left is not talk:
            imports.file_of(root, path).unlink(missing_ok=True)
        elif left is not talk:
            write_whole(imports.file_of(root, path), imports.dump(left), lasting=True)
    for file in every_file(workspace.state):
        if _TEMPORARY.fullmatch(file.name):
            file.unlink(missing_ok=True)
        elif file.parent == workspace.state and file.suffix == ".log":
            _clean_log(file, wanted)
        elif file.parent == workspace.state and _is_copy(file) and wanted.within_file(file)[0]:
            file.unlink(missing_ok=True)
    for folder in (*workspace.bases.glob("*.tmp"), *workspace.runs.glob("*/checkpoints/writing.tmp")):  # of a training that was killed
        shutil.rmtree(folder, ignore_errors=True)


def _is_copy(path: Path) -> bool:
    return bool(_BACKUP.match(path.name)) and path.name not in ("ledger.db", "ledger.db-wal", "ledger.db-shm")


def _clean_log(path: Path, wanted: Needles) -> None:
    """In place, since cron or a service may have it open: only the lines that say nothing of it."""
    if wanted.within_file(path)[0]:
        kept = [line for line in path.read_bytes().splitlines(keepends=True) if not wanted.within(line)]
        with path.open("r+b") as file:
            file.writelines(kept)
            file.truncate()


def _drop_rows(ledger: Ledger, goal: Target, found: Derived, wanted: Needles) -> None:
    """Out of the ledger: notes, scenes, passages, words, vectors, problems, talks; answers keep no word but what they must be known by."""
    with ledger.transaction():
        for path in sorted(goal.touched):
            ledger.remove_note(path)
        for identity in found.answers:
            (text,) = ledger.db.execute("SELECT record FROM answers WHERE id = ?", (identity,)).fetchone()
            record = json.loads(text)
            said = record.get("said_sha") or sha(record.get("said", "").strip())
            record |= {"question": "", "text": "", "said": "", "said_sha": said}
            record["sources"] = [
                source for source in record.get("sources", ()) if not (_is_of(source, goal) or wanted.within(source["quote"].encode()))
            ]
            changed = json.dumps(record, ensure_ascii=False)
            ledger.db.execute("UPDATE answers SET record = ? WHERE id = ?", (changed, identity))
        ledger.db.execute("DELETE FROM meta WHERE key = ?", (ingest.STATISTICS,))  # counted anew, without its words


def _read_again(workspace: Workspace, ledger: Ledger, progress: Report) -> VaultllmError | None:
    """What stays of the notes that held it comes back, without it; an error that has nothing to do with it, which is told at the end."""
    try:
        ingest.ingest(workspace, ledger, progress=progress)
    except LockedError:
        raise
    except VaultllmError as error:
        return error
    return None


def _remember_again(workspace: Workspace, ledger: Ledger, base: str, progress: Report) -> VaultllmError | None:
    """The words index and Chroma written anew. A Chroma server that is away keeps vectors, no text: told at the end."""
    try:
        remember.rebuild(ledger, workspace.memory, workspace.settings.memory, progress, base=base)
    except LockedError:
        raise
    except VaultllmError as error:
        with ledger.transaction():
            ledger.index.purge()
        return error
    return None


def _prune_embedder(ledger: Ledger, folder: Path) -> None:
    """The vault's own embedder without the features (hashes) of words that no passage has now.

    No vector that is left counts on them, so all of them stay as they are; only their embedder's fingerprint changes.
    """
    import numpy as np

    from vaultllm.memory import embed

    about = live.fitted(ledger)
    if about is None or about["spec"] != "vault" or not live.usable(about, folder):
        return
    old = about["fingerprint"]
    own = embed.VaultEmbedder.load(live.embedder_folder(folder, old))
    said: set[str] = set()
    for text, context in ledger.db.execute("SELECT text, context FROM passages"):
        said.update(words(live.said(text, context)))
    keep = np.isin(own.features, embed.features_of(said))
    if keep.all():
        return
    pruned = embed.VaultEmbedder(own.features[keep], own.idf[keep], own.projection[keep], own.verdict)
    new = pruned.fingerprint + old[len(own.fingerprint) :]
    pruned.save(live.embedder_folder(folder, new))
    with ledger.transaction():
        ledger.db.execute("UPDATE vectors SET embedder = ? WHERE embedder = ?", (new, old))
        ledger.set(live.NEXT, "null")
        ledger.db.execute("UPDATE meta SET value = replace(value, ?, ?)", (old, new))  # in whatever was measured with it


def _rewrite(ledger: Ledger) -> None:
    """The database's file anew: SQLite zeroes what is deleted, but promises nothing of what it moved before. Raises LockedError."""
    try:
        ledger.db.execute("VACUUM")
        (busy, _, _) = ledger.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise explained(error, ledger.path) from error
    if busy:
        raise LockedError("another vaultllm reads the ledger, so its log cannot be emptied; run it again", path=str(ledger.path))
