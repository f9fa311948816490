"""Who may ask: the token file in the state folder, and the file that tells other programs where we listen.

Knows nothing about HTTP.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from pathlib import Path
from typing import Any

from vaultllm import __version__, locks
from vaultllm.errors import ConfigError
from vaultllm.files import write_whole

TOKEN, PLACE = "token", "api.json"
_BYTES = 32  # of a token: 256 bits
_SHORTEST = 16  # characters of a key that the user adds by hand: some clients send one of their own


def token(state: Path) -> str:
    """Our token, made when there is none. Raises ConfigError when others may read it or it is unusable."""
    return _lines(state)[0]


def digests(state: Path) -> tuple[bytes, ...]:
    """SHA-256 of every key that is let in: our token, and the lines below it that the user added. Raises ConfigError."""
    return tuple(hashlib.sha256(line.encode()).digest() for line in _lines(state))


def _lines(state: Path) -> list[str]:
    path = state / TOKEN
    try:
        if not path.exists():
            _make(path)
        facts, text = path.stat(), path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"the token cannot be read ({error}); delete the file, another is made", path=str(path), code="E-TOKEN"
        ) from error
    if hasattr(os, "getuid") and (facts.st_mode & 0o077 or facts.st_uid != os.getuid()):
        message = "others may read or write the token; delete the file, another is made, and give that one to your programs"
        raise ConfigError(message, path=str(path), code="E-TOKEN")
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if not lines or min(map(len, lines)) < _SHORTEST:
        message = f"a line of the token file has fewer than {_SHORTEST} characters, or there is none; delete the file, another is made"
        raise ConfigError(message, path=str(path), code="E-TOKEN")
    return lines


def _make(path: Path) -> None:
    """A token where there is none; of two who make one at the same moment, both take the first's. Raises OSError."""
    aside = path.with_name(f"{TOKEN}.{secrets.token_hex(4)}")
    write_whole(aside, secrets.token_urlsafe(_BYTES) + "\n", lasting=True)
    try:
        os.link(aside, path)
    except FileExistsError:
        pass
    except OSError:  # no hard links here
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)


def announce(state: Path, host: str, port: int) -> None:
    """Tell where we listen: `api.json` with host, port, pid, version and the token's file, for the owner alone. Raises OSError."""
    about = {"host": host, "port": port, "pid": os.getpid(), "version": __version__, "token": str(state / TOKEN)}
    write_whole(state / PLACE, json.dumps(about) + "\n")


def place(state: Path) -> dict[str, Any] | None:
    """What `announce` told; None when nobody listens, or its process is gone."""
    try:
        about: dict[str, Any] = json.loads((state / PLACE).read_text(encoding="utf-8"))
        is_alive = locks.is_there(int(about["pid"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return about if is_alive else None


def withdraw(state: Path) -> None:
    """We listen no more."""
    about = place(state)
    if about is not None and about["pid"] == os.getpid():
        (state / PLACE).unlink(missing_ok=True)
