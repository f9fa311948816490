"""Files of the state folder: written whole or not at all.

Knows nothing about what stands in them, nor about notes, which `vault.py` alone writes.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from vaultllm.text import sha

_UNWRITTEN = re.compile(r"iostream error|PytorchStreamWriter|file write failed|unexpected pos|cannot be opened", re.IGNORECASE)


def write_if_changed(path: str | Path, content: str) -> None:
    """`write_whole`, its folder made, unless the file says just this already and no kill has left another half written beside it.

    Raises OSError.
    """
    data = content.encode("utf-8")
    if _says(path, data) and not os.path.lexists(_aside(path)):
        return
    try:
        write_whole(path, data)
    except FileNotFoundError:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        write_whole(path, data)


def _says(path: str | Path, data: bytes) -> bool:
    """Whether the file holds these bytes; what cannot be read does not."""
    try:
        if os.stat(path).st_size != len(data):
            return False
        with open(path, "rb") as file:
            return file.read() == data
    except OSError:
        return False


def _aside(path: str | Path) -> str:
    folder, name = os.path.split(path)
    return os.path.join(folder, f".{sha(name, digits=8)}.tmp")  # a name as long as a note's has no room for a suffix


def write_whole(path: str | Path, content: str | bytes, *, lasting: bool = False) -> None:
    """Put a file in place by a rename: a reader sees the old one or the new one, never a part. Readable by its owner alone.

    Its folder must exist. `lasting`: on the disk when we return, so that what is written after it can count on it.
    An empty folder that stands in its place gives way. One process at a time may write a path (the caller holds the lock). Raises OSError.
    """
    aside = _aside(path)
    data = content.encode("utf-8") if isinstance(content, str) else content
    try:
        _write(aside, data, lasting)
        try:
            os.replace(aside, path)
        except IsADirectoryError:
            os.rmdir(path)
            os.replace(aside, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(aside)
        raise explained(error, path, len(data)) from error


def _write(path: str, data: bytes, lasting: bool) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        if lasting:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def explained(error: OSError, path: str | Path, needed: int | None = None) -> OSError:
    """The error with the path that it is about and, where there is no room, the bytes that are free and `needed`. Of the same class."""
    said = error.strerror or str(error)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        with contextlib.suppress(OSError):
            said += f"; {shutil.disk_usage(os.path.dirname(path) or '.').free:,} bytes free"
            said += f", {needed:,} needed" if needed else ""
    return OSError(error.errno, said, str(path))


@contextlib.contextmanager
def saving(path: str | Path) -> Iterator[None]:
    """What torch, safetensors and tokenizers raise when they cannot write at this path, or below it, becomes an OSError that names it."""
    try:
        yield
    except OSError as error:
        raise error if error.filename else explained(error, path) from error
    except Exception as error:  # safetensors' own class cannot be named without importing it, torch has none
        found = re.search(r"os error (\d+)", str(error))
        is_theirs = type(error).__name__ == "SafetensorError" or (type(error) is Exception and found)  # the latter is tokenizers'
        if not is_theirs and not (isinstance(error, RuntimeError) and _UNWRITTEN.search(str(error))):
            raise
        number = int(found[1]) if found else errno.EIO
        raise explained(OSError(number, os.strerror(number)), path) from error
