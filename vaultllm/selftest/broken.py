"""Parts of vaultllm made unsafe on purpose, for the control: a harness that finds nothing wrong with these would find nothing at all.

Each stands in for the function of the same name. Knows nothing about how they are tried.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def transaction(self: Any) -> Iterator[None]:
    """For `Database.transaction`: each statement for itself."""
    yield


def write_new(vault: Path, folder: str, name: str, text: str, suffix: str = ".md") -> str:
    """For `vault.write_new`: the note under its own name from the first byte on, a part at a time, as a naive program writes it."""
    (vault / folder).mkdir(parents=True, exist_ok=True)
    data = text.encode("utf-8", "replace")
    with (vault / folder / (name + suffix)).open("wb", buffering=0) as file:
        for start in range(0, len(data), 200):
            file.write(data[start : start + 200])
    return f"{folder}/{name}{suffix}"


def let_answer(workspace: Any, ledger: Any, run: Any) -> str:
    """For `registry.let_answer`: the pointer is emptied and written in place, and the way back noted last."""
    from vaultllm import registry

    before = registry.current(workspace)
    with workspace.current.open("w", encoding="utf-8", buffering=1) as file:
        file.write(run.id + "\n")
    ledger.set("promotions", f'["{before}"]')
    registry.record(workspace, ledger, run)
    return before


BROKEN: dict[str, tuple[str, dict[str, str]]] = {
    "ingest": ("pwrite64", {"vaultllm.database.Database.transaction": "transaction"}),
    "answer": ("write", {"vaultllm.vault.write_new": "write_new"}),
    "promote": ("write", {"vaultllm.registry.let_answer": "let_answer"}),
}
"""Case of `crash.py` → the calls at which it is killed, and what is put in whose place."""
