"""All that can be tried, tried one after the other, and the table of what came of it.

Nothing is printed here: results are plain data and lines of text. Knows of each part its name alone; a part that breaks is a failure
of that part, and the next one is tried.
"""

from __future__ import annotations

import importlib
import inspect
import shlex
import textwrap
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultllm.errors import UsageError, nearest
from vaultllm.selftest import Finding, Size

PARTS = {
    "histories": "the user's files under edits, renames, sync conflicts and our own writes, interleaved; against a clean rebuild",
    "limits": "notes that are bombs, and parsers that are killed",
    "crash": "commands killed, and the disk full or failing, at system calls of every kind",
    "damage": "files of the state deleted, cut off, with flipped bits, of another version",
    "crowd": "many processes at once on one vault",
    "bursts": "thousands of files that change at once, while the daemon looks and while it is stopped",
    "silence": "every command, with every socket watched",
    "synced": "two machines, and syncthing between them",
    "soak": "72 hours of a vault's life in some minutes, with clocks that leap",
}
"""What `--only` takes, and what it tries; in this order."""

_WIDTH = 100  # columns of a failure's text


@dataclass(frozen=True, slots=True)
class Tried:
    """One part, when it has ended."""

    part: str
    """Of `PARTS`."""
    finding: Finding
    """What it found."""
    again: str
    """The command that does it again."""

    @property
    def status(self) -> str:
        """`holds`, `skipped` (nothing could be tried here) or `FAILED`: something broke, or nothing was tried though it could be."""
        if self.finding.skipped and not self.finding.failures:
            return "skipped"
        return "holds" if self.finding.holds else "FAILED"


def chosen(only: Sequence[str]) -> tuple[str, ...]:
    """The parts that are named, in their order; all when none is. Raises UsageError for an unknown one."""
    for name in only:
        if name not in PARTS:
            raise UsageError(f"there is nothing called '{name}' to try.{nearest(name, PARTS)}")
    return tuple(name for name in PARTS if not only or name in only)


def emptied(folder: Path) -> Path:
    """The folder, made when it is not there. Raises UsageError when something stands in it: parts delete what they find."""
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        is_empty = not any(folder.iterdir())
    except OSError as error:
        raise UsageError(f"--dir cannot be used ({error.strerror}); name another folder", path=str(folder)) from error
    if not is_empty:
        raise UsageError("--dir is not empty; name a new folder: what is tried makes vaults there, and breaks them", path=str(folder))
    return folder.resolve()


def each(
    folder: Path, size: Size, seed: int, told: Callable[[str], None], *, only: Sequence[str] = (), minutes: float | None = None
) -> Iterator[Tried]:
    """Try the parts, each in a folder of its own below this empty one, and hand on what each found as soon as it has ended.

    `minutes` is for the parts that go on as long as they are told (soak alone). Raises UsageError for an unknown part, before any is tried.
    """
    names = chosen(only)
    return (_tried(name, folder / name, size, seed, told, minutes) for name in names)


def _tried(name: str, work: Path, size: Size, seed: int, told: Callable[[str], None], minutes: float | None) -> Tried:
    told(f"{name}: {PARTS[name]}")
    work.mkdir(mode=0o700)
    began = time.monotonic()
    again = ["vaultllm", "selftest", *(["--soak"] if size == "soak" else []), "--only", name, "--seed", str(seed)]
    try:
        run = importlib.import_module(f"vaultllm.selftest.{name}").run
        takes: dict[str, Any] = {}
        if minutes is not None and size == "soak" and "minutes" in inspect.signature(run).parameters:
            takes = {"minutes": minutes}
            again += ["--minutes", f"{minutes:g}"]
        finding = run(work, size, seed, lambda line: told(f"{name}: {line}"), **takes)
    except Exception as error:  # a part that breaks must not hide what the others find
        place = traceback.extract_tb(error.__traceback__)[-1]
        what = f"{type(error).__name__}: {error} ({Path(place.filename).name}:{place.lineno})"
        finding = Finding(PARTS[name], (), 1, (f"it could not be tried to the end: {what}",), time.monotonic() - began)
    return Tried(name, finding, shlex.join(again))


def lines(found: Sequence[Tried]) -> list[str]:
    """The table as text, and below it each failure with what does it again, each reason why something was not tried, each figure."""
    head = ("part", "what was tried", "promises", "times", "failures", "seconds", "")
    rows = [head, *(_row(one) for one in found)]
    wide = [max(len(row[column]) for row in rows) for column in range(len(head))]
    right = (3, 4, 5)
    out = [
        "  ".join(cell.rjust(w) if i in right else cell.ljust(w) for i, (cell, w) in enumerate(zip(row, wide, strict=True))) for row in rows
    ]
    for one in found:
        out += _below(one)
    return [line.rstrip() for line in out]


def _row(one: Tried) -> tuple[str, ...]:
    finding = one.finding
    counted = (f"{finding.tried:,}", f"{len(finding.failures):,}", f"{finding.seconds:.0f}")
    return (one.part, textwrap.shorten(finding.name, 60), " ".join(finding.promises), *counted, one.status)


def _below(one: Tried) -> Iterator[str]:
    finding = one.finding
    if finding.skipped:
        yield f"{one.part}: skipped: {finding.skipped}"
    if finding.figures:
        said = ", ".join(
            f"{name} {value:,}" if isinstance(value, int | float) else f"{name} {value}" for name, value in finding.figures.items()
        )
        yield from textwrap.wrap(f"{one.part}: {said}", _WIDTH, subsequent_indent="  ")
    for what in finding.failures:
        yield from textwrap.wrap(f"{one.part}: FAILED: {what}", _WIDTH, subsequent_indent="  ")
    if one.status == "FAILED":
        if not finding.failures:
            yield f"{one.part}: FAILED: nothing was tried"
        yield f"{one.part}: again: {one.again}"


def record(found: Sequence[Tried]) -> dict[str, Any]:
    """The same for `--json`."""
    return {
        "parts": [
            {
                "part": one.part,
                "what": one.finding.name,
                "promises": list(one.finding.promises),
                "tried": one.finding.tried,
                "failures": list(one.finding.failures),
                "seconds": round(one.finding.seconds, 1),
                "figures": dict(one.finding.figures),
                "skipped": one.finding.skipped,
                "status": one.status,
                "again": one.again,
            }
            for one in found
        ],
        "holds": exit_code(found) == 0,
    }


def exit_code(found: Sequence[Tried]) -> int:
    """0: nothing broke, of what could be tried here; 1, the code of our own bugs: a promise was broken, or nothing was tried at all."""
    return int(not any(one.status == "holds" for one in found) or any(one.status == "FAILED" for one in found))
