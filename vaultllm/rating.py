"""What the user thinks of an answer, kept with the answer in the ledger. Writes nothing into the vault.

An answer is named by the note that it stands in, or by its id, which its note keeps when it is renamed (`vaultllm_id`).
"""

from __future__ import annotations

import contextlib
import datetime as dt
import json
from typing import Any, Literal

from vaultllm.config import Workspace
from vaultllm.errors import DataError, VaultllmError
from vaultllm.ledger import Ledger

PROPERTY = "vaultllm_rating"
"""In an answer's note: where the user sees it."""

Rating = Literal["good", "bad", ""]


def rate(workspace: Workspace, ledger: Ledger, what: str, rating: Rating) -> dict[str, Any]:
    """Keep what the user thinks of an answer; "" takes it back. Returns {answer, note, rating, before, property}.

    Of a note with several answers the newest is meant. Raises DataError when there is no such answer.
    """
    found = _found(ledger, what)
    if found is None:
        with contextlib.suppress(VaultllmError):
            found = _found(ledger, _id_in(workspace, what))
    if found is None:
        raise DataError("this is no answer of ours; name the note that it stands in, or its vaultllm_id", path=what)
    identity, path, sha256, created, record = found
    about = json.loads(record)
    before = about.get("rating", "")
    about |= {"rating": rating, "rated": dt.datetime.now().astimezone().isoformat(timespec="seconds")}
    ledger.put_answer(identity, path, sha256, created, about)
    return {"answer": identity, "note": path, "rating": rating, "before": before, "property": PROPERTY}


def _found(ledger: Ledger, what: str) -> tuple[str, str, str, str, str] | None:
    query = "SELECT id, path, sha256, created, record FROM answers WHERE id = ? OR path = ? ORDER BY id DESC LIMIT 1"
    row: tuple[str, str, str, str, str] | None = ledger.db.execute(query, (what, what)).fetchone()
    return row


def _id_in(workspace: Workspace, path: str) -> str:
    from vaultllm import markdown, vault

    note = markdown.parse(path, vault.read(workspace.vault, path, workspace.settings.scan.max_bytes))
    return str(note.properties.get("vaultllm_id") or "")
