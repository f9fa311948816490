"""Whether the vault and the ledger are still as they were after the last ingest: the truth behind the events, at the price of a scan.

A folder's times do not change when a note in it is edited in place, so every note is looked at (one `stat`); nothing is opened. Knows
nothing about events, nor when somebody should look.
"""

from __future__ import annotations

import os
import sqlite3
import time
from typing import NamedTuple

from vaultllm import forgotten, imports, vault
from vaultllm.config import Workspace
from vaultllm.errors import VaultError

FRESH = 2_000_000_000  # nanoseconds: the coarsest clock of a file system (FAT) has such ticks


class Mark(NamedTuple):
    """How it all looked; equal marks of one process: nothing has changed in between."""

    files: int
    """Of every note and stored talk: path, size, times, inode; of those that cannot be read: why; and what was forgotten."""
    ledger: tuple[int, ...] | None
    """Which file it is, and what was written to it; None when that cannot be told."""
    is_fresh: bool = False
    """Whether a file changed a moment before: it may change again and look the same, for the clock of a file system has ticks."""


class Truth:
    """What is compared. For one thread."""

    def __init__(self, workspace: Workspace) -> None:
        self._workspace = workspace
        self._db: sqlite3.Connection | None = None
        self._opened = 0
        self._inode = -1
        self.notes = 0
        """How many files were looked at last."""
        self.seconds = 0.0
        """CPU time that it took."""

    def look(self) -> Mark | None:
        """How it looks now; None when the vault cannot be listed."""
        begun = time.thread_time()
        settings, state = self._workspace.settings, self._workspace.state
        try:
            found = vault.scan(self._workspace.vault, settings.scan, settings.own_folders)
            stored = imports.scan(imports.root_of(state))
        except VaultError:
            return None
        try:
            list_ = os.stat(state / forgotten.FILE)
            left_out = list_.st_mtime_ns, list_.st_size, list_.st_ino
        except OSError:
            left_out = 0, 0, 0
        self.notes = len(found.files) + len(stored.files)
        files = hash((found, stored, left_out))
        now = time.time_ns()
        is_fresh = any(abs(now - file.ctime_ns) < FRESH for part in (found, stored) for file in part.files)
        self.seconds = time.thread_time() - begun
        return Mark(files, self.written(), is_fresh)

    def written(self) -> tuple[int, ...] | None:
        """Which ledger there is, and its version: another one after every transaction of whatever process."""
        path = self._workspace.ledger
        try:
            inode = os.stat(path).st_ino
            if self._db is None or inode != self._inode:
                self.close()
                self._db = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
                self._inode, self._opened = inode, self._opened + 1
            ((version,),) = self._db.execute("PRAGMA data_version").fetchall()  # all of it: a read that goes on would hold up checkpoints
        except (OSError, sqlite3.Error):
            self.close()
            return None
        return self._opened, version

    def close(self) -> None:
        """Let go of the ledger's file."""
        if self._db is not None:
            self._db.close()
            self._db = None
