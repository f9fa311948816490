"""What only the ledger knows, kept beside it: which notes are ours, what was thought of them, which runs answered before.

All else a ledger that is made anew reads from the vault and the state folder. A line is appended for each change and says no word of
the vault, so `forget` has nothing to take out of it; a line that a kill has torn, or a bad disk, costs only itself. Knows nothing
about SQLite.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vaultllm.schema import Run, from_dict
from vaultllm.text import sha

FILE = "kept.jsonl"
_WORDLESS = ("kind", "run", "note", "pictures", "rating", "rated")  # of an answer's record, what says nothing of the vault


class Kept(NamedTuple):
    """What was kept."""

    answers: dict[str, tuple[str, str, str, dict[str, Any]]]
    """Id of a note of ours → its path, the hash of its bytes, when it was written, what of its record is kept."""
    history: list[str]
    """Ids of the runs that answered before, oldest first; "" is the base alone."""


def answer(folder: Path, identity: str, path: str, sha256: str, created: str, record: Mapping[str, Any]) -> None:
    """Keep that a note is ours. Raises OSError."""
    about = {key: record[key] for key in _WORDLESS if key in record}
    about["said_sha"] = record.get("said_sha") or sha(str(record.get("said", "")).strip())
    _append(folder, {"answer": identity, "path": path, "sha256": sha256, "created": created, "record": about})


def history(folder: Path, ids: Sequence[str]) -> None:
    """Keep which runs answered before. Raises OSError."""
    _append(folder, {"history": list(ids)})


def read(folder: Path) -> Kept:
    """What was kept, the latest of each. Raises OSError, but not when nothing was."""
    found = Kept({}, [])
    for row in _rows(folder / FILE):
        try:
            if "history" in row:
                found.history[:] = [str(one) for one in row["history"]]
            else:
                found.answers[str(row["answer"])] = (str(row["path"]), str(row["sha256"]), str(row["created"]), dict(row["record"]))
        except (KeyError, TypeError, ValueError):
            continue
    return found


def runs(folder: Path) -> list[Run]:
    """The trainings whose records lie in the folders of a folder, as far as they can be read."""
    found = []
    for path in sorted(folder.glob("*/run.json")):
        try:
            run = from_dict(Run, json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found += [run] if run.id == path.parent.name else []
    return found


def _append(folder: Path, row: Mapping[str, Any]) -> None:
    """On the disk when we return. Begins with the end of the line before, which may have been torn."""
    data = ("\n" + json.dumps(row, ensure_ascii=False)).encode("utf-8", "surrogatepass")
    descriptor = os.open(folder / FILE, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, data)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    try:
        lines = path.read_bytes().split(b"\n")
    except FileNotFoundError:
        return
    for line in lines:
        try:
            row = json.loads(line.decode("utf-8", "surrogatepass"))
        except ValueError:
            continue
        if isinstance(row, dict):
            yield row
