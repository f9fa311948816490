"""One file of the vault, looked at closely: what Obsidian knows of it, and why it was read (or left out) as it was.

Reads the file as it is now, known to the ledger or not; writes nothing. Knows nothing about terminals.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections import Counter
from typing import Any

from vaultllm import chats, forgotten, imports, metadata, reading, vault, workers
from vaultllm.config import Workspace
from vaultllm.errors import DataError, VaultError
from vaultllm.links import Resolver
from vaultllm.schema import Note, Problem
from vaultllm.text import is_json


def note_metadata(workspace: Workspace, path: str) -> dict[str, Any]:
    """What Obsidian's CachedMetadata holds of a note (`metadata.metadata`), and which file each of its links means.

    {path, metadata, resolved: {link: path, or None when there is no such file}}. Raises VaultError when the file cannot be
    read, DataError when it is no Markdown.
    """
    if is_json(path) or path.lower().endswith(".canvas"):
        raise DataError("this is no Markdown file, so Obsidian has no metadata of it; try: vaultllm scenes --explain", path=path)
    data = vault.read(workspace.vault, path, workspace.settings.scan.max_bytes)
    read = _read(workspace, path, data)
    if isinstance(read, Problem):
        raise DataError(read.message, path=path, code=read.code)
    found = metadata.metadata(reading.parse(path, data, workspace.settings))
    links = [one["link"] for name in ("links", "embeds", "frontmatterLinks") for one in found.get(name, ())]
    resolver = Resolver(vault.all_files(workspace.vault)) if links else Resolver()
    return {"path": path, "metadata": found, "resolved": {link: resolver.resolve(link, path) for link in dict.fromkeys(links)}}


def explain(workspace: Workspace, path: str) -> dict[str, Any]:
    """Why a file of the vault became what it did.

    {path, taken, why (when it is left out), bytes, sha256, encoding, reader, because, readers: [{name, why}] (those that
    looked, in their order; an empty `why` declined), trust, train, reasons: {why not: scenes}, scenes, turns: {held,
    in_scenes, left_out}, redacted, problems: [{code, line, count, message}]}; for one that is left out the first three and its
    problem.
    """
    stored = imports.is_stored(path)
    skipped = None if stored else vault.left_out(workspace.vault, path, workspace.settings.scan, workspace.settings.own_folders)
    data = b""
    unwanted = forgotten.load(workspace.state)
    if skipped is None:
        try:
            data = imports.read_known(workspace, path)
            if unwanted and (unwanted.path(path) or unwanted.file(hashlib.sha256(data).hexdigest())):
                skipped = forgotten.note_problem(path)
        except VaultError as error:
            skipped = Problem(error.code, error.message)
    read = _read(workspace, path, data) if skipped is None else skipped
    if isinstance(read, Problem):
        return {"path": path, "taken": False, "why": read.message, "problems": [_entry(read)]}
    note = reading.parse(path, data, workspace.settings)
    redacted = sum(problem.count for problem in read.problems if problem.code == "W-SECRET")
    why_not = Counter(scene.reason for scene in read.scenes if not scene.train)
    return {
        "path": path,
        "taken": True,
        "why": "",
        "bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "encoding": note.encoding or "unreadable",
        "reader": read.reader,
        "because": read.why,
        "readers": _readers(workspace, path, read.reader, note),
        "trust": read.scenes[0].trust if read.scenes else "",
        "train": any(scene.train for scene in read.scenes),
        "reasons": dict(why_not.most_common()),
        "scenes": len(read.scenes),
        "turns": {"held": read.turns, "in_scenes": read.turns - read.turns_left, "left_out": read.turns_left},
        "redacted": redacted,
        "problems": [_entry(problem) for problem in read.problems],
    }


def _read(workspace: Workspace, path: str, data: bytes) -> reading.Reading | Problem:
    """Read in a child process with the limits of an ingest: a file that kills the parser kills nothing else."""
    context = workers.Context(workspace.settings, imports.root_of(workspace.state), forgotten=forgotten.load(workspace.state) or None)
    with contextlib.closing(workers.read_all([workers.Task(None, path, data)], lambda: context, 1)) as results:
        return next(results)[1]


def _readers(workspace: Workspace, path: str, took: str, note: Note) -> list[dict[str, str]]:
    """The chat readers that looked at the note, up to the one that took it, each with what it found."""
    if imports.is_stored(path):
        return [{"name": took, "why": "vaultllm import"}]
    found = []
    for reader in chats.READERS:
        why = reader.detect(note, workspace.settings.scan)
        found.append({"name": reader.name, "why": why})
        if why:
            break
    return found


def _entry(problem: Problem) -> dict[str, Any]:
    return {"code": problem.code, "line": problem.line, "count": problem.count, "message": problem.message}
