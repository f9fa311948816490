"""The state as it is the same after every way that leads to it: killed and gone on, note by note or all at once, or from nothing.

Left out are row numbers, times, vectors (they depend on when the embedder was made) and the scenes' keywords and anchors (on when
the vault's words were counted: at its start, and each time it has doubled). Texts are there as fingerprints. Two states of one vault
are equal when these are. Knows the ledger's tables, and changes none.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from typing import Any

from vaultllm import ingest, remember
from vaultllm.config import Workspace
from vaultllm.errors import VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.scene_yaml import to_yaml
from vaultllm.text import sha

_COUNTED: dict[str, Any] = {"field": (), "anchor": ""}  # of a scene: what depends on when the vault's words were counted
_PASSAGES = "passages p JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note"


def dump(workspace: Workspace, ledger: Ledger) -> dict[str, Any]:
    """Notes, scenes, passages, links, problems, talks, duplicates, the scene files, and whether each passage is in every index."""

    def rows(query: str, *values: Any) -> list[list[Any]]:
        return [list(row) for row in ledger.db.execute(query, values)]

    about = remember.fitted(ledger)
    embedder = "" if about is None else about["fingerprint"]
    without = f"SELECT n.path, s.id, p.ordinal FROM {_PASSAGES} WHERE NOT EXISTS"
    return {
        "notes": rows("SELECT path, sha256, reader, parser, turns, turns_left FROM notes ORDER BY path"),
        "scenes": [
            [*facts, sha(_said(record))]
            for *facts, record in ledger.db.execute(
                "SELECT n.path, s.ordinal, s.id, s.sha, s.kind, s.language, s.trust, s.train, s.reason, s.at, s.record"
                " FROM scenes s JOIN notes n ON n.id = s.note ORDER BY n.path, s.ordinal"
            )
        ],
        "passages": rows(
            f"SELECT n.path, s.id, p.ordinal, p.first, p.last, p.uid, p.role, p.sha FROM {_PASSAGES} ORDER BY n.path, s.ordinal, p.ordinal"
        ),
        "links": rows(
            "SELECT n.path, s.id, l.written FROM links l JOIN scenes s ON s.slot = l.scene JOIN notes n ON n.id = s.note"
            " ORDER BY n.path, s.ordinal, l.written"
        ),
        "problems": rows("SELECT path, code, line, count FROM problems ORDER BY path, line, code"),
        "talks": rows("SELECT path, conversation, joined, uids FROM talks ORDER BY path, conversation, uids"),
        "files": _files(workspace, ledger),
        "without_words": rows(f"{without} (SELECT 1 FROM documents d WHERE d.slot = p.slot) ORDER BY 1, 2, 3"),
        "without_vector": rows(
            f"{without} (SELECT 1 FROM vectors v WHERE v.embedder = ? AND v.passage = p.slot) ORDER BY 1, 2, 3", embedder
        ),
        "strays": {
            "words": ledger.db.execute("SELECT count(*) FROM documents WHERE slot NOT IN (SELECT slot FROM passages)").fetchone()[0],
            "vectors": ledger.db.execute("SELECT count(*) FROM vectors WHERE passage NOT IN (SELECT slot FROM passages)").fetchone()[0],
        },
        "waiting": ledger.count("outbox"),
    }


def _said(record: str) -> str:
    """A scene's record without what is counted; as it stands where it is damaged."""
    try:
        return json.dumps(json.loads(record) | _COUNTED, ensure_ascii=False)
    except (ValueError, TypeError):
        return record


def _files(workspace: Workspace, ledger: Ledger) -> dict[str, str]:
    """Path -> fingerprint of every scene file: of what it says but for what is counted, where it is what the ledger says."""
    found = {path: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in workspace.scenes.rglob("*.yaml") if path.is_file()}
    for note in ledger.notes_with_scenes():
        path = ingest.scene_file(workspace, note)
        with contextlib.suppress(ValueError, TypeError, KeyError, VaultllmError):  # a damaged record: then no file says what it does
            scenes = list(ledger.scenes(note))
            alone = [dataclasses.replace(scene, duplicate="") for scene in scenes]  # as it was written before twins were looked for
            said = {hashlib.sha256(to_yaml(note, form).encode("utf-8", "surrogatepass")).hexdigest()[:16] for form in (scenes, alone)}
            if found.get(path) in said:
                found[path] = sha(to_yaml(note, [dataclasses.replace(scene, **_COUNTED) for scene in alone]))
    return {path.relative_to(workspace.scenes).as_posix(): found[path] for path in sorted(found)}
