"""What `doctor` looks at, and mends: the ledger, the scene files, the memory, the run that answers.

Knows nothing about how the memory heals (`remember.py`), nor about locks: the caller holds the lock of writing.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator

from vaultllm import forgotten, ingest, registry, remember
from vaultllm.config import Workspace
from vaultllm.database import WAY_OUT
from vaultllm.ledger import Ledger
from vaultllm.memory.scan import precision_of
from vaultllm.schema import Report, silent
from vaultllm.text import sha

_LENGTH = 1e-3  # by so much a unit vector's length may differ from 1
_PART = 2_000  # rows that are looked at together


def examine(
    workspace: Workspace, ledger: Ledger, *, repair: bool = False, base: str = "", progress: Report = silent
) -> list[dict[str, str]]:
    """All that is wrong, as {code, message}. What begins with W- can be mended here, and is, with `repair`.

    `base`: as in `remember.refresh`. Reads the whole ledger. The caller holds the lock. Raises VaultllmError where what is wrong
    cannot even be told.
    """
    found: list[dict[str, str]] = []

    def wrong(code: str, message: str) -> None:
        found.append({"code": code, "message": message + ("; mend: vaultllm doctor --repair" if code.startswith("W-") else "")})

    forgotten.load(workspace.state)  # a list that is damaged stops all reading, and says the way out
    (integrity,) = ledger.db.execute("PRAGMA integrity_check").fetchone()
    if integrity != "ok":
        wrong("E-LEDGER", f"the ledger is damaged: {integrity}; {WAY_OUT}")
        return found
    if said := _altered(ledger):
        wrong("W-LEDGER", said)
        if not repair:
            return found  # what stands on it cannot be looked at
        with ledger.transaction():
            _drop_altered_vectors(ledger)
        ingest.ingest(workspace, ledger, full=True, progress=progress)
    if files := ingest.damaged_scene_files(workspace, ledger):
        wrong("W-SCENES", f"{len(files)} scene files are missing or not what the ledger says")
        if repair:
            for path in files:
                ingest.write_scenes(workspace, ledger, path)
    if said := remember.check(ledger, workspace.memory, workspace.settings.memory):
        wrong("W-MEMORY", said)
        if repair:
            remember.rebuild(ledger, workspace.memory, workspace.settings.memory, progress, base=base)
    if registry.is_astray(workspace, ledger):
        wrong("W-RUN", f"`current` was changed from outside: {registry.meant(ledger) or 'the base'} was to answer")
        if repair:
            registry.set_right(workspace, ledger)
    elif said := registry.check(workspace, ledger):
        wrong("E-RUN", said)
    return found


def _altered(ledger: Ledger) -> str:
    """Which texts and vectors are not what was stored, in a sentence: SQLite itself notices no flipped bit in them."""
    try:
        texts = sum(sha(text, context) != said for text, context, said in ledger.db.execute("SELECT text, context, sha FROM passages"))
        scenes = sum(_says(record) != said for record, said in ledger.db.execute("SELECT record, sha FROM scenes"))
    except sqlite3.OperationalError as error:  # no UTF-8 any more
        return f"texts of the ledger cannot be read ({error})"
    vectors = len(list(_altered_vectors(ledger)))
    if texts or scenes or vectors:
        return f"{texts} passages, {scenes} scenes and {vectors} vectors of the ledger are not what was stored"
    return ""


def _says(record: str) -> str:
    """The `sha` of a scene's record."""
    try:
        return sha(*[part for turn in json.loads(record)["turns"] for part in (turn["role"], turn["text"])])
    except (ValueError, KeyError, TypeError):
        return ""


def _altered_vectors(ledger: Ledger) -> Iterator[int]:
    """Stamps of vectors that are no unit vectors, nor zero, nor of the length that most of their embedder have."""
    import numpy as np

    from vaultllm.memory import embed

    for name in ledger.embedders():
        query = "SELECT length(vector) FROM vectors WHERE embedder = ? GROUP BY 1 ORDER BY count(*) DESC LIMIT 1"
        (usual,) = ledger.db.execute(query, (name,)).fetchone()
        rows = ledger.db.execute("SELECT stamp, CAST(vector AS BLOB) FROM vectors WHERE embedder = ?", (name,))
        while part := rows.fetchmany(_PART):
            whole: list[tuple[int, bytes]] = [row for row in part if len(row[1]) == usual]
            yield from (stamp for stamp, vector in part if len(vector) != usual)
            lengths = np.linalg.norm(embed.unpack([vector for _, vector in whole], precision_of(name)), axis=1)
            fine = (np.abs(lengths - 1.0) < _LENGTH) | (lengths == 0.0)
            yield from (stamp for (stamp, _), is_fine in zip(whole, fine.tolist(), strict=True) if not is_fine)


def _drop_altered_vectors(ledger: Ledger) -> None:
    """The next refresh makes them again."""
    for stamp in list(_altered_vectors(ledger)):
        ledger.db.execute("DELETE FROM vectors WHERE stamp = ?", (stamp,))
