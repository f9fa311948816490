"""The state as it is the same after every way that leads to it: killed and gone on, note by note or all at once, or from nothing.

Row numbers, times and vectors (they depend on when the embedder was made) are left out; texts are there as fingerprints.
Two states of one vault are equal when these are. Knows the ledger's tables, and changes none.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from vaultllm import remember
from vaultllm.config import Workspace
from vaultllm.ledger import Ledger
from vaultllm.text import sha

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
            [*facts, sha(record)]
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
        "files": _files(workspace.scenes),
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


def _files(folder: Path) -> dict[str, str]:
    """Path -> fingerprint of every scene file."""
    found = (path for path in sorted(folder.rglob("*.yaml")) if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in found}
