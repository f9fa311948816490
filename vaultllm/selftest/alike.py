"""Where two states part, and the one that a clean rebuild has. Knows nothing about what is in them."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaultllm import config, forgotten, imports, steps


def rebuilt(vault: Path, state: Path, folder: Path) -> dict[str, Any]:
    """The canonical state of one process that reads the vault once, into this folder, after what only `state` knows was put there."""
    take_along(state, folder)
    with contextlib.closing(steps.Job(config.open_workspace(str(vault), str(folder)), wait=120.0)) as job:
        steps.ingest(job)
        return steps.dump(job)


def take_along(state: Path, folder: Path) -> None:
    """Make this folder anew, with what no vault tells: what was forgotten, and what was imported."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for there in (state / forgotten.FILE, imports.root_of(state)):
        if there.is_dir():
            shutil.copytree(there, folder / there.name)
        elif there.exists():
            shutil.copy2(there, folder / there.name)


def difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The first place in which two facts part, in a line; `nothing` when they are equal."""
    for key in sorted({*found, *wanted}):
        one, other = found.get(key), wanted.get(key)
        if one != other:
            if isinstance(one, dict) and isinstance(other, dict):
                return f"{key}.{difference(one, other)}"
            if isinstance(one, list) and isinstance(other, list):
                more, less = ([row for row in rows if row not in rest] for rows, rest in ((one, other), (other, one)))
                return f"{key}: {len(one)} rows for {len(other)}; more: {str(more)[:200]}; less: {str(less)[:200]}"
            return f"{key}: {str(one)[:200]} for {str(other)[:200]}"
    return "nothing"
