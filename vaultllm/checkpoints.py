"""Checkpoints of a training: complete and unchanged, or not there.

Written aside, each file's SHA-256 noted, flushed, then renamed; the newest that still is what was written is gone on from.
Knows nothing about models, datasets or how a step is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vaultllm.errors import ModelError

KEEP = 2
"""The newest, and the one before it should the newest be damaged."""
STATE = "vaultllm.json"
"""What is ours in a checkpoint; `files` in it names the others with their hashes."""


def put(made: Path, root: Path, state: dict[str, Any]) -> Path:
    """Seal the folder `made` (`checkpoint-N`, written aside) and put it into `root`; older ones go. Returns where it is.

    `state` is what `read` returns later, without `files`. Raises OSError.
    """
    state = state | {"files": {path.name: _sha(path) for path in sorted(made.iterdir()) if path.name != STATE}}
    (made / STATE).write_text(json.dumps(state), encoding="utf-8")
    for path in made.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
    target = root / made.name
    shutil.rmtree(target, ignore_errors=True)
    made.rename(target)
    for old in _by_step(root.glob("checkpoint-*"))[KEEP:]:
        shutil.rmtree(old, ignore_errors=True)
    return target


def read(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint that is what was written. Raises ModelError when it is not."""
    try:
        state: dict[str, Any] = json.loads((folder / STATE).read_text(encoding="utf-8"))
        changed = [name for name, expected in state["files"].items() if _sha(folder / name) != expected]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"the checkpoint cannot be read ({error})", path=str(folder)) from error
    if changed:
        raise ModelError(f"{', '.join(changed)} of the checkpoint is not what was written", path=str(folder))
    return state


def newest(root: Path, identity: dict[str, Any]) -> Path | None:
    """The newest checkpoint of this very training that is what was written. Raises ModelError when it is of another training."""
    for folder in _by_step(root.glob("checkpoint-*")):
        try:
            theirs = read(folder)["identity"]
        except ModelError:
            continue  # damaged: the one before it
        changed = sorted(key for key in identity.keys() | theirs.keys() if identity.get(key) != theirs.get(key))
        if changed:
            raise ModelError(f"the checkpoint is of another training ({', '.join(changed)} changed); train with --new", path=str(folder))
        return folder
    return None


def _by_step(folders: Iterable[Path]) -> list[Path]:
    """Newest first; what is named otherwise is none of ours."""
    numbered = [path for path in folders if path.name.removeprefix("checkpoint-").isdecimal()]
    return sorted(numbered, key=lambda path: -int(path.name.removeprefix("checkpoint-")))


def _sha(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
