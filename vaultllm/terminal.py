"""What every command needs of the terminal: the options that stand before it, progress, how its result is shown.

Human text on a terminal, one JSON document with `--json`. Knows nothing about what commands do.
"""

from __future__ import annotations

import contextlib
import functools
import json
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from rich.console import Console

from vaultllm import config, files, steps, views
from vaultllm.database import explained
from vaultllm.schema import Progress, to_dict


class ReaderLeft(Exception):  # noqa: N818 - what the user wanted, not an error
    """Nobody reads our standard output any more (`| head`)."""


@dataclass
class Globals:
    """The options that stand before (or anywhere after) the command."""

    vault: str | None = None
    state: str | None = None
    json: bool = False
    verbose: bool = False
    quiet: bool = False
    progress: bool = False


GLOBALS = Globals()
QUIET_SECONDS = 15.0  # between two lines of progress where there is no terminal
TOLD_SECONDS = 0.5  # the same for a program


def can_ask() -> bool:
    """Whether somebody sits there who can answer a question."""
    return not GLOBALS.json and sys.stdin.isatty() and sys.stdout.isatty()


@contextlib.contextmanager
def progress_shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line now and then for work that takes longer than a moment; `--progress`: JSON."""
    if GLOBALS.progress:
        told, last = "", 0.0

        def tell(progress: Progress) -> None:
            nonlocal told, last
            now = time.monotonic()
            if progress.phase != told or now - last > TOLD_SECONDS:
                told, last = progress.phase, now
                print(json.dumps(to_dict(progress), ensure_ascii=False), file=sys.stderr, flush=True)

        yield tell
    elif GLOBALS.quiet or GLOBALS.json:
        yield lambda progress: None
    elif sys.stderr.isatty():
        from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
        from rich.progress import Progress as Bars

        columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeElapsedColumn())
        with Bars(*columns, TextColumn("{task.fields[note]}"), console=Console(stderr=True), transient=True) as bars:
            tasks: dict[str, Any] = {}

            def show(progress: Progress) -> None:
                if progress.phase not in tasks:
                    tasks[progress.phase] = bars.add_task(progress.phase, total=1.0, note="")
                bars.update(tasks[progress.phase], completed=progress.done, note=views.progress_note(progress))

            yield show
    else:
        phase, spoken = "", 0.0

        def say(progress: Progress) -> None:
            nonlocal phase, spoken
            now = time.monotonic()
            if progress.phase != phase:
                phase, spoken = progress.phase, now - QUIET_SECONDS + 3  # what takes less than three seconds needs no line
            if now - spoken > QUIET_SECONDS and progress.done < 1:
                spoken = now
                print(f"… {phase} {progress.done:.0%}  {views.progress_note(progress)}".rstrip(), file=sys.stderr, flush=True)

        yield say


def emit(result: dict[str, Any], view: Callable[[dict[str, Any]], Any]) -> None:
    """The result as one JSON document, or as a person reads it."""
    if GLOBALS.json:
        print(json.dumps(result, ensure_ascii=False))
    elif not GLOBALS.quiet:
        console().print(view(result))


class _Output(Console):
    """rich ends the process with code 1 when its reader leaves."""

    def on_broken_pipe(self) -> None:
        raise ReaderLeft


@functools.cache
def console() -> Console:
    """Standard output; wide enough for paths when it is no terminal."""
    return _Output(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else 120)


@contextlib.contextmanager
def opened(wait: float = 30.0) -> Iterator[steps.Job]:
    """A job on the workspace that the options name."""
    workspace = config.open_workspace(GLOBALS.vault, GLOBALS.state)
    with progress_shown() as progress:
        job = steps.Job(workspace, progress=progress, wait=wait)
        try:
            yield job
        except sqlite3.Error as error:
            raise explained(error, workspace.ledger) from error
        except OSError as error:  # of a write, Python does not say where
            raise error if error.filename or error.errno is None else files.explained(error, workspace.state) from error
        finally:
            job.close()
