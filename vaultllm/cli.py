"""The command line: a thin shell over `steps`. With `terminal.py` the only module that prints.

Human text on a terminal, one JSON document with `--json` (NDJSON for streams), errors as one line on stderr.
Knows nothing about how a step does its work.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import gc
import inspect
import json
import os
import signal
import sqlite3
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from vaultllm import __version__, commands, config, processes, signals, steps, training_views, views
from vaultllm.database import explained
from vaultllm.errors import UsageError, VaultError, VaultllmError
from vaultllm.terminal import GLOBALS, ReaderLeft, can_ask, console, emit, opened

if TYPE_CHECKING:
    pass


class Stopped(Exception):  # noqa: N818 - what the user wanted, not an error
    """Ctrl-C or SIGTERM."""


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


_IN_THE_WAY = {errno.EISDIR, errno.ENOTDIR, errno.ENOTEMPTY}
# Not our bugs: the disk's state.
_OUTSIDE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, *_IN_THE_WAY}
# Options of every command may stand after it too (`vaultllm search --json …`): name -> whether a value follows.
_ANYWHERE = {"--vault": True, "--state": True, "--json": False, "--progress": False,
             "--verbose": False, "-v": False, "--quiet": False, "-q": False}  # fmt: skip


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
    progress: Annotated[bool, typer.Option("--progress", help="Where the work stands, as lines of JSON on standard error.")] = False,
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")] = False,
) -> None:
    GLOBALS.vault, GLOBALS.state, GLOBALS.json, GLOBALS.verbose, GLOBALS.quiet = vault, state, as_json, verbose, quiet
    GLOBALS.progress = progress


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
    found = scan(workspace.vault, workspace.settings.scan, workspace.settings.own_folders)
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
    """Find scenes by words and by meaning, and say why each was found.

    Filters: path: folder: tag: before: after: kind: trust: lang:, with - before them to leave out; "exact phrase"; -word.
    """
    with opened() as job:
        if query != "-":
            emit(steps.search(job, query, k), views.search)
            return
        for line in sys.stdin:
            if line.strip():
                emit(steps.search(job, line.strip(), k), views.search)
                sys.stdout.flush()


@app.command()
def forget(
    what: Annotated[str, typer.Argument(help="A note's path, a scene's id, a message's UID, or a conversation's id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let it be read again, by the next ingest.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Where a training saw it, train again without it, from the base.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody can be asked.")] = False,
) -> None:
    """Take it out of everything that was derived from it, and search every file to prove it; the vault stays as it is."""
    asks = not (yes or dry_run or undo)
    if asks and not can_ask():
        raise UsageError("what is forgotten comes back only by reading it again; say --yes, or look first with --dry-run")
    if asks:
        with opened() as job:
            plan = steps.forget(job, what, dry_run=True)
        console().print(views.forgotten(plan))
        typer.confirm("Forget it?", abort=True)  # with no job open: its progress bar would draw over the question
    with opened() as job:
        result = steps.forget(job, what, dry_run, undo, retrain)
    emit(result, views.forgotten)


_command(steps.dataset, training_views.dataset)
_command(steps.train, training_views.train)


@app.command()
def micro(
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.05, help="Time for it all; default: the settings.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of data order and initialisation.")] = None,
) -> None:
    """Train the small model anew from your notes alone, and watch what it writes as it learns; Ctrl-C ends it and keeps it."""

    def written(sample: Any) -> None:
        if GLOBALS.json:
            print(json.dumps({"event": "sample", **sample._asdict()}, ensure_ascii=False), flush=True)
        elif not GLOBALS.quiet:
            print(training_views.sample(sample._asdict()), file=sys.stderr, flush=True)

    with opened() as job, _gently() as stop:
        result = steps.micro(job, minutes, seed, written, stop)
    emit(result, training_views.micro)


@contextlib.contextmanager
def _gently() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came: the first is only noted, the second interrupts as always."""
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True

    with signals.taken(note):
        yield lambda: asked


_command(steps.retrain, training_views.train)
_command(steps.runs, training_views.runs)
_command(steps.report, training_views.reported)
_command(steps.promote, training_views.promoted)
_command(steps.rollback, training_views.promoted)


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
def reply(path: Annotated[str, typer.Argument(help="A note whose last turn is yours, vault-relative.")]) -> None:
    """Answer the question at the end of a note (`> [!ask] …`, or the open turn of a chat), by appending to it."""
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


@app.command()
def status(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Look again every few seconds, until Ctrl-C.")] = False,
) -> None:
    """What is known, what answers, what waits, what is wrong and how to mend it; whether a daemon is alive."""
    with opened() as job:
        if not watch:
            emit(steps.status(job), views.status)
            return
        from rich.live import Live

        # On a terminal in place; elsewhere one after the other: with --json a document a line.
        live = Live(console=console(), screen=True) if sys.stdout.isatty() and not (GLOBALS.json or GLOBALS.quiet) else None
        with live or contextlib.nullcontext():
            while True:
                began = time.monotonic()
                result = steps.status(job)
                live.update(views.status(result), refresh=True) if live else emit(result, views.status)
                sys.stdout.flush()
                time.sleep(max(2.0, 9 * (time.monotonic() - began)))  # a tenth of the time at most, in a large vault too


@app.command()
def doctor(
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, from the vault and the ledger.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Measure what this machine can train, and how long it takes: 20 seconds.")] = False,
    dump: Annotated[
        bool, typer.Option("--dump", help="Print the canonical state as JSON: equal for equal vaults, however they came about.")
    ] = False,
    bundle: Annotated[
        Path | None, typer.Option("--bundle", help="Write a zip for a report of a bug; it holds no text or name of the vault.")
    ] = None,
) -> None:
    """Check the ledger, the scene files, the memory and the run that answers."""
    if dump or bundle is not None:
        with opened() as job:
            if dump:
                print(json.dumps(steps.dump(job), ensure_ascii=False, indent=None if GLOBALS.json else 1))
            if bundle is not None:
                emit(steps.bundle(job, config.path_of(bundle)), lambda result: f"{result['bundle']}: {', '.join(result['files'])}")
        return
    with opened() as job:
        result = steps.doctor(job, repair, probe)
    emit(result, training_views.doctor)
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
def watch(
    serve: Annotated[bool, typer.Option("--serve", help="Answer other programs too, as `vaultllm serve` does.")] = False,
) -> None:
    """Stay and watch the vault: a saved note is in the memory within seconds. Ends on Ctrl-C or SIGTERM."""
    from vaultllm import watch as watching

    # To be stopped is how it ends, also before it has begun.
    with (
        contextlib.suppress(KeyboardInterrupt),
        opened() as job,
        commands.served(job.workspace, _log) if serve else contextlib.nullcontext(),
    ):
        watching.run(job, log=_log)


def _log(event: dict[str, Any]) -> None:
    """One line per event: NDJSON with --json, else a sentence."""
    if GLOBALS.json:
        print(json.dumps(event, ensure_ascii=False), flush=True)
    elif not GLOBALS.quiet:
        print(views.event(event), flush=True)


commands.add_to(app)


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
    arguments = _globals_first(sys.argv[1:] if arguments is None else arguments)
    code = _guarded(functools.partial(_of_several, arguments) if processes.count() > 1 else functools.partial(_alone, arguments))
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        code = 141
    if code == 141:  # the reader left (`| head`): Python must not complain about it while it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    gc.freeze()  # or Python looks through all that is left, on its way out: half a second after a daemon's work
    sys.exit(code)


def _disk(error: OSError) -> VaultError:
    """A full disk, missing rights, or a folder where a file belongs, wherever they were met."""
    path = error.filename if isinstance(error.filename, str) else None
    way_out = "move away what stands there" if error.errno in _IN_THE_WAY else "make room on the disk, or mend the rights,"
    return VaultError(f"{error.strerror or error}; {way_out} and run it again", path=path, code="E-DISK")


@functools.cache
def parser() -> Any:
    """What typer makes of all commands: 20 ms, once in a process that runs several (and before it forks those that will)."""
    return typer.main.get_command(app)


def _alone(arguments: list[str]) -> int:
    code = parser()(args=arguments, prog_name="vaultllm", standalone_mode=False)
    return code if isinstance(code, int) else 0


def _of_several(arguments: list[str]) -> int:
    """One of the processes that a launcher started: the first is the command, the others take part in its trainings and say nothing."""
    command, rest = "", iter(arguments)
    for one in rest:
        if not one.startswith("-"):
            command = one
            break
        if _ANYWHERE.get(one):
            next(rest, None)
    leads, trains = processes.rank() == 0, command in ("train", "retrain")
    if leads and not trains:
        raise UsageError(f"{command or 'this'} runs in one process; a launcher is for train and retrain")
    if leads:
        return _alone(arguments)
    if trains:
        from vaultllm import train

        train.take_part(step_back=command == "retrain")
    return 0


def _guarded(run: Callable[[], int]) -> int:
    try:
        return run()
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
