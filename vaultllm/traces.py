"""Whether any of many fragments of a text stands in files, whatever they are: in UTF-8, UTF-16 or escaped as JSON does it.

All fragments are looked for at once: every place of the bytes is told by tables of byte pairs, then by a hash of 24 bytes, so the
time grows with the bytes and hardly with the fragments (Rabin & Karp 1987, with NumPy). Knows nothing about notes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from vaultllm.text import sentences

if TYPE_CHECKING:
    import numpy as np

LEAST = 24  # characters of a line or sentence that is looked for
MOST = 48  # a longer one is looked for in parts: where it was cut in two, one of them is whole
LETTERS = 12  # letters and figures that it must have: a row of dashes is nobody's words
_KEY = 24  # bytes that are hashed: no fragment has fewer
_CHUNK = 2**23
_MIX = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)


def fragments(text: str) -> set[str]:
    """Every line and sentence of at least `LEAST` characters, without quotation marks of a note, in parts of at most twice `MOST`."""
    found: set[str] = set()
    for row in text.split("\n"):
        line = row.strip(" \t\r>")
        for unit in [one for one in sentences(line) if len(one) >= LEAST] or [line]:
            found.update(_parts(unit))
    return found


def _parts(unit: str) -> Iterator[str]:
    start = 0
    while len(unit) - start >= LEAST:
        end = start + MOST if len(unit) - start - MOST >= LEAST else len(unit)
        part = unit[start:end].strip()
        if len(part) >= LEAST and sum(map(str.isalnum, part)) >= LETTERS:
            yield part
        start = end


def spelled(fragment: str) -> set[bytes]:
    """The bytes that a fragment may stand as."""
    plain, escaped = (json.dumps(fragment, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True))
    forms = [(fragment, "utf-8"), (plain, "utf-8"), (escaped, "ascii"), (fragment, "utf-16-le"), (fragment, "utf-16-be")]
    return {said.encode(form, "surrogatepass") if form != "ascii" else said.encode() for said, form in forms}


class Needles:
    """Fragments, ready to be looked for."""

    def __init__(self, wanted: Iterable[str]) -> None:
        import numpy as np

        self.fragments = frozenset(wanted)
        """What is looked for."""
        self._of: dict[bytes, str] = {needle: one for one in self.fragments for needle in spelled(one)}
        self._longest = max(map(len, self._of), default=0)
        self._by_key: dict[int, list[bytes]] = {}
        self._tables = [np.zeros(2**16, bool) for _ in range(4)]
        if not self._of:
            return
        heads = np.frombuffer(b"".join(needle[:_KEY] for needle in self._of), np.uint8).reshape(-1, _KEY)
        for step, table in enumerate(self._tables):
            table[heads[:, 2 * step].astype(np.uint16) | heads[:, 2 * step + 1].astype(np.uint16) << 8] = True
        for needle, key in zip(self._of, _hashed(heads.reshape(-1), np.arange(0, heads.size, _KEY)).tolist(), strict=True):
            self._by_key.setdefault(key, []).append(needle)
        self._keys = np.array(sorted(self._by_key), np.uint64)

    def within(self, data: bytes) -> set[str]:
        """The fragments that stand in these bytes."""
        import numpy as np

        found: set[str] = set()
        if not self._of or len(data) < _KEY:
            return found
        raw = np.frombuffer(data, np.uint8)
        pairs = raw[:-1].astype(np.uint16) | raw[1:].astype(np.uint16) << 8
        places = np.flatnonzero(self._tables[0][pairs[: len(raw) - _KEY + 1]])
        for step in (1, 2, 3):
            places = places[self._tables[step][pairs[places + 2 * step]]]
        keys = _hashed(raw, places)
        at = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        there = self._keys[at] == keys
        for place, key in zip(places[there].tolist(), keys[there].tolist(), strict=True):
            for needle in self._by_key[key]:
                if data.startswith(needle, place):
                    found.add(self._of[needle])
        return found

    def within_file(self, path: Path) -> tuple[set[str], int]:
        """The fragments that stand in a file, and its bytes. Raises OSError."""
        found: set[str] = set()
        size, rest = 0, b""
        with path.open("rb") as file:
            while part := file.read(_CHUNK):
                size += len(part)
                data = rest + part
                found |= self.within(data)
                rest = data[-(self._longest - 1) :] if self._longest > 1 else b""
        return found, size

    def within_folder(self, folder: Path) -> tuple[dict[str, set[str]], int, int]:
        """Of every file below a folder (links are not followed): path below it -> fragments, where there are any; files and bytes."""
        found: dict[str, set[str]] = {}
        files = size = 0
        for path in every_file(folder):
            try:
                here, read = self.within_file(path)
            except FileNotFoundError:  # a lock's pid, a daemon's file: gone this moment
                continue
            files, size = files + 1, size + read
            if here:
                found[path.relative_to(folder).as_posix()] = here
        return found, files, size


def every_file(folder: Path) -> Iterator[Path]:
    """All plain files below a folder, links not followed."""
    for here, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(here) / name
            if path.is_file() and not path.is_symlink():
                yield path


def _hashed(raw: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A hash of the `_KEY` bytes at each place, (n,) uint64."""
    import numpy as np

    windows = np.lib.stride_tricks.sliding_window_view(raw, _KEY)[places]
    words = np.ascontiguousarray(windows).view("<u8")
    mixed = np.zeros(len(words), np.uint64)
    for column, prime in enumerate(_MIX):
        mixed = (mixed ^ words[:, column]) * np.uint64(prime)
        mixed ^= mixed >> np.uint64(29)
    return mixed
