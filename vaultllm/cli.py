"""The command line: a thin shell over `steps.py`. The only module that prints.

Human text on a terminal, one JSON document with `--json` (NDJSON for streams), errors as one line on stderr.
Knows nothing about how a step does its work.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import inspect
import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from vaultllm import __version__, config, steps, views
from vaultllm.database import explained
from vaultllm.errors import UsageError, VaultError, VaultllmError
from vaultllm.schema import Progress


class Stopped(Exception):  # noqa: N818 - what the user wanted, not an error
    """Ctrl-C or SIGTERM."""


class ReaderLeft(Exception):  # noqa: N818 - the same
    """Nobody reads our standard output any more (`| head`)."""


class _Commands(TyperGroup):
    """Takes the two ends that are no errors out of typer's hands, which would exit with its own codes."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as error:
            raise Stopped from error
        except BrokenPipeError as error:
            raise ReaderLeft from error


app = typer.Typer(
    name="vaultllm",
    cls=_Commands,
    help="Your Obsidian vault becomes scenes, a memory and a model of your own; answers come back as notes.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@dataclass
class Globals:
    """The options that stand before (or anywhere after) the command."""

    vault: str | None = None
    state: str | None = None
    json: bool = False
    verbose: bool = False
    quiet: bool = False


GLOBALS = Globals()
QUIET_SECONDS = 15.0  # between two lines of progress where there is no terminal
_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO}  # not our bugs: the disk's state
# Options of every command may stand after it too (`vaultllm search --json …`): name -> whether a value follows.
_ANYWHERE = {"--vault": True, "--state": True, "--json": False, "--verbose": False, "-v": False, "--quiet": False, "-q": False}


def _version(value: bool) -> None:
    if value:
        print(f"vaultllm {__version__}")
        raise typer.Exit


@app.callback()
def _globals(
    vault: Annotated[str | None, typer.Option("--vault", help="The vault; default: found upwards from here.")] = None,
    state: Annotated[str | None, typer.Option("--state", help="The folder of derived data; default: the user's data folder.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, no summary.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    GLOBALS.vault, GLOBALS.state, GLOBALS.json, GLOBALS.verbose, GLOBALS.quiet = vault, state, as_json, verbose, quiet


# -- showing


@contextlib.contextmanager
def progress_shown() -> Iterator[Callable[[Progress], None]]:
    """A bar on a terminal; elsewhere a line now and then for work that takes longer than a moment."""
    if GLOBALS.quiet or GLOBALS.json:
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
        finally:
            job.close()


# -- commands that are steps


def _command(step: Callable[..., dict[str, Any]], view: Callable[[dict[str, Any]], Any], name: str | None = None) -> None:
    """Make a command of a step: its parameters (but the job) are the options, its docstring is the help."""
    signature = inspect.signature(step, eval_str=True)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.name != "job"]

    def run(**options: Any) -> None:
        with opened() as job:
            result = step(job, **options)
        emit(result, view)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__doc__ = step.__doc__
    app.command(name or step.__name__)(run)


@app.command()
def init(
    vault: Annotated[Path, typer.Argument(help="The vault's folder.")],
    base: Annotated[str | None, typer.Option("--base", help="`micro` or a Hugging Face model, by path or id.")] = None,
) -> None:
    """Set up a vault: write its config.toml, make the state folder, say what was found."""
    from vaultllm.vault import scan

    workspace = config.init_workspace(vault, GLOBALS.state, base)
    found = scan(workspace.vault, workspace.settings.scan, workspace.settings.answers.folder)
    result = {
        "vault": str(workspace.vault),
        "vault_id": workspace.settings.vault_id,
        "state": str(workspace.state),
        "config": str(workspace.vault / config.CONFIG),
        "notes": len(found.files),
        "bytes": sum(file.size for file in found.files),
        "skipped": len(found.skipped),
    }
    emit(result, views.init)


_command(steps.ingest, views.ingest)
_command(steps.import_, views.imported, "import")
_command(steps.repair, views.repaired)


@app.command()
def scenes(
    path: Annotated[str | None, typer.Argument(help="A note, vault-relative; all notes when left out.")] = None,
    metadata: Annotated[
        bool, typer.Option("--metadata", help="What Obsidian knows of the note: links, headings, tags, positions.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Which reader took the file and why, or why it is left out.")] = False,
) -> None:
    """Show the scenes of a note, or of the vault, as YAML (with --json: one per line)."""
    if metadata or explain:
        if path is None or (metadata and explain):
            raise UsageError("--metadata and --explain are about one note: name it, and choose one of them")
        with opened() as job:
            result = steps.show_metadata(job, path) if metadata else steps.explain(job, path)
        emit(result, views.metadata if metadata else views.explanation)
        return
    with opened() as job:
        found = steps.show_scenes(job, path)["scenes"]
    if GLOBALS.json:
        for scene in found:
            print(json.dumps(scene, ensure_ascii=False))
    else:
        for text in views.scenes_yaml(found):
            print(text, end="")


@app.command()
def search(
    query: Annotated[str, typer.Argument(help="What to look for; `-` reads one query per line.")],
    k: Annotated[int, typer.Option("-k", "--hits", min=1, max=1000, help="How many hits.")] = 8,
) -> None:
    """Find scenes by words and by meaning, and say why each was found."""
    with opened() as job:
        if query != "-":
            emit(steps.search(job, query, k), views.search)
            return
        for line in sys.stdin:
            if line.strip():
                emit(steps.search(job, line.strip(), k), views.search)
                sys.stdout.flush()


_command(steps.dataset, views.dataset)
_command(steps.train, views.train)
_command(steps.retrain, views.train)
_command(steps.runs, views.runs)
_command(steps.promote, views.promoted)
_command(steps.rollback, views.promoted)


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="The question; `-` reads it from standard input.")],
    note: Annotated[str | None, typer.Option("--note", help="The note it is asked about, vault-relative.")] = None,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write the answer as a note.")] = True,
) -> None:
    """Answer a question as a note: what the vault says, with links to its lines, and what the model says."""
    if question == "-":
        question = sys.stdin.read()
    _answer(lambda job: steps.ask(job, question, note, write))


@app.command()
def reply(path: Annotated[str, typer.Argument(help="A chat note whose last turn is yours, vault-relative.")]) -> None:
    """Answer the open turn at the end of a chat note, by appending to it."""
    _answer(lambda job: steps.reply(job, path))


def _answer(step: Callable[[steps.Job], dict[str, Any]]) -> None:
    """Run a step that answers; on a terminal the model's words appear as they are made."""
    streamed = False

    def stream(piece: str) -> None:
        nonlocal streamed
        streamed = True
        sys.stdout.write(piece)
        sys.stdout.flush()

    with opened() as job:
        if sys.stdout.isatty() and not (GLOBALS.json or GLOBALS.quiet):
            job.stream = stream
        result = step(job)
    if streamed:
        print()
    emit(result, functools.partial(views.answer, streamed=streamed))


_command(steps.status, views.status)


@app.command()
def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, from the vault and the ledger.")] = False,
) -> None:
    """Check the ledger, the scene files, the memory and the run that answers."""
    with opened() as job:
        result = steps.doctor(job, repair)
    emit(result, views.doctor)
    if not result["ok"]:
        raise typer.Exit(3)


# -- commands at the edges


@app.command()
def run(
    pipeline: Annotated[str, typer.Argument(help="A name in pipelines/, or a path to a YAML file.")],
    question: Annotated[str | None, typer.Option("--question", help="For pipelines that answer.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show the plan; do nothing.")] = False,
) -> None:
    """Run one job of pipelines/*.yaml: the same steps as these commands."""
    from vaultllm import pipeline as pipelines

    plan = pipelines.load(pipeline)
    if dry_run:
        emit(pipelines.plan(plan), views.plan)
        return
    with opened() as job:
        result = pipelines.run(job, plan, {} if question is None else {"question": question})
    emit(result, views.pipeline)


@app.command()
def watch() -> None:
    """Stay and watch the vault: a saved note is in the memory within seconds. Ends on Ctrl-C or SIGTERM."""
    from vaultllm import watch as watching

    with opened() as job:
        watching.run(job, log=_log)


def _log(event: dict[str, Any]) -> None:
    """One line per event: NDJSON with --json, else a sentence."""
    if GLOBALS.json:
        print(json.dumps(event, ensure_ascii=False), flush=True)
    elif not GLOBALS.quiet:
        print(views.event(event), flush=True)


schedule_app = typer.Typer(no_args_is_help=True, help="Retrain by itself, from cron, systemd or launchd.")
app.add_typer(schedule_app, name="schedule")


@schedule_app.command("print")
def schedule_print(
    kind: Annotated[str, typer.Option("--kind", help="cron, systemd or launchd.")],
    at: Annotated[str, typer.Option("--at", help="Time of day, HH:MM.")] = "03:30",
) -> None:
    """Print what to put where so that `vaultllm retrain` runs every night; nothing is installed."""
    from vaultllm import schedule

    workspace = config.open_workspace(GLOBALS.vault, GLOBALS.state)
    emit({"kind": kind, "text": schedule.render(kind, workspace.vault, workspace.state, at)}, lambda result: result["text"])


@app.command()
def demo(
    folder: Annotated[Path | None, typer.Argument(help="Where to put the copy of the example vault; must not exist.")] = None,
    minutes: Annotated[float, typer.Option("--minutes", min=0.2, help="Time for the training.")] = 3.0,
) -> None:
    """See the whole idea work on the example vault: ingest, train, measure, answer three questions. About 5 minutes."""
    from vaultllm import demo as demonstration

    with progress_shown() as progress:
        result = demonstration.run(
            folder, minutes, progress, say=lambda line: None if GLOBALS.json or GLOBALS.quiet else print(line, flush=True)
        )
    emit(result, views.demo)


# -- the process


def _globals_first(arguments: list[str]) -> list[str]:
    """Move the options of every command before it, wherever they stand (up to `--`)."""
    front: list[str] = []
    rest: list[str] = []
    queue = list(arguments)
    while queue:
        item = queue.pop(0)
        name = item.partition("=")[0]
        if item == "--":
            return [*front, *rest, item, *queue]
        if name not in _ANYWHERE or (item != name and not _ANYWHERE[name]):
            rest.append(item)
        elif "=" in item or not _ANYWHERE[name] or not queue:
            front.append(item)
        else:
            front += [item, queue.pop(0)]
    return front + rest


def main(arguments: list[str] | None = None) -> None:
    """The entry point: run, and turn every error into one line and the right exit code."""
    os.umask(0o077)  # what we derive from a vault is as private as the vault
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("ANONYMIZED_TELEMETRY", "False")
    # NumPy's products are small here, and its waiting threads cost up to ten times the work on a busy machine; torch has its own.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")  # LANG=C must not break Cyrillic
    signal.signal(signal.SIGTERM, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt()))
    code = _guarded(_globals_first(sys.argv[1:] if arguments is None else arguments))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141
    if code == 141:  # the reader left (`| head`): Python must not complain about it while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    sys.exit(code)


def _disk(error: OSError) -> VaultError:
    """A full disk or missing rights, wherever they were met."""
    path = error.filename if isinstance(error.filename, str) else None
    return VaultError(f"{error.strerror or error}; make room on the disk, or mend the rights, and run it again", path=path, code="E-DISK")


def _guarded(arguments: list[str]) -> int:
    try:
        code = app(args=arguments, prog_name="vaultllm", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except VaultllmError as error:
        print(f"vaultllm: {error}", file=sys.stderr)
        if GLOBALS.verbose:
            traceback.print_exc()
        return error.exit_code
    except (Stopped, KeyboardInterrupt, typer.Abort):
        print("vaultllm: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    except (ReaderLeft, BrokenPipeError):
        return 141
    except Exception as error:
        if isinstance(error, sqlite3.Error) or (isinstance(error, OSError) and error.errno in _OUTSIDE):
            if GLOBALS.verbose:
                traceback.print_exc()
            mended = explained(error) if isinstance(error, sqlite3.Error) else _disk(error)
            print(f"vaultllm: {mended}", file=sys.stderr)
            return mended.exit_code
        if getattr(error, "exit_code", None) == 2 and hasattr(error, "format_message"):  # the parser's own errors
            context = getattr(error, "ctx", None)
            where = f"; see: {context.command_path} --help" if context is not None else ""
            said = error.format_message().rstrip(".")
            if said:  # no command at all: the help that was shown says it
                print(f"vaultllm: E-USAGE {said}{where}", file=sys.stderr)
            return 2
        if GLOBALS.verbose:
            traceback.print_exc()
        what = f"{type(error).__name__}: {error}"
        print(f"vaultllm: E-INTERNAL {what}; this is our bug: please report it with the output of -v", file=sys.stderr)
        return 1


if __name__ == "__main__":
    main()
