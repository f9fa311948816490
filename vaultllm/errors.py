"""Each error that a user can act on.

The class docstring says when it is raised; `code` is what the user sees and searches for;
`exit_code` is what the process returns. One handler in `cli.py` prints them all as
`vaultllm: CODE path:line: what, why, what to do`. Knows nothing about where they are raised.

VaultllmError
├── UsageError        2   the command line itself is wrong
├── ConfigError       3   config.toml or a pipeline file is wrong
├── VaultError        3   the vault or the state folder cannot be used as named
├── ModelError        3   a base model or an adapter cannot be used
├── DataError         3   there is nothing (or nothing usable) to work on
├── OwnedNoteError    3   a note that we wanted to write is somebody else's
└── LockedError      75   another vaultllm process holds the lock
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class VaultllmError(Exception):
    """Base of every error that is shown to the user as one line."""

    code = "E-INTERNAL"
    exit_code = 3

    def __init__(self, message: str, *, path: str | None = None, line: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.path = path
        self.line = line
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        """`CODE path:line: message`, the parts that are unknown left out."""
        where = "" if self.path is None else self.path + (f":{self.line}" if self.line else "") + ": "
        return f"{self.code} {where}{self.message}"


class UsageError(VaultllmError):
    """The command line is wrong: an unknown value, a missing argument."""

    code = "E-USAGE"
    exit_code = 2


class ConfigError(VaultllmError):
    """A settings or pipeline file is wrong; the message names the file, the line and the nearest right name."""

    code = "E-CONFIG"


class VaultError(VaultllmError):
    """The vault or the state folder is missing, unreadable, or not what it was."""

    code = "E-VAULT"


class ModelError(VaultllmError):
    """A base model or adapter is missing, damaged, of the wrong kind, or not the one that was trained."""

    code = "E-MODEL"


class DataError(VaultllmError):
    """Nothing to train on or to answer from; the message says what was counted and why it was dropped."""

    code = "E-DATA"


class OwnedNoteError(VaultllmError):
    """The note that we would replace was not written by us, or was changed since; it is left alone."""

    code = "E-OWNED"


class LockedError(VaultllmError):
    """Another process works on the same state; its pid is named. Try again when it is done."""

    code = "E-LOCKED"
    exit_code = 75


def nearest(name: str, known: Iterable[str]) -> str:
    """` Did you mean 'rank'?` when a known name is close, else the list of known names."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    if close:
        return f" Did you mean '{close[0]}'?"
    return f" Known: {', '.join(names)}." if names else ""
