"""The commands beside a vault's daily ones: the memory looked at and measured, jobs that run by themselves, promises tried, others served.

As thin as those of `cli.py`, which takes them in. Knows nothing about how the process begins or ends.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from vaultllm import config, steps, training_views, views
from vaultllm.errors import UsageError, VaultllmError
from vaultllm.terminal import GLOBALS, can_ask, emit, opened, progress_shown

if TYPE_CHECKING:
    from vaultllm import schedule

schedule_app = typer.Typer(no_args_is_help=True, help="Retrain by itself, from cron, systemd or launchd.")
memory_app = typer.Typer(no_args_is_help=True, help="Look at the memory: a map of the scenes, what the vectors hold.")
bench_app = typer.Typer(no_args_is_help=True, help="Measure how well the memory finds.")
plugin_app = typer.Typer(no_args_is_help=True, help="The Obsidian plugin: put into a vault, taken away.")


def add_to(app: typer.Typer) -> None:
    """Give the program these commands."""
    app.add_typer(schedule_app, name="schedule")
    app.add_typer(memory_app, name="memory")
    app.add_typer(bench_app, name="bench")
    app.add_typer(plugin_app, name="plugin")
    for command in (related, rate, serve, mcp, selftest, demo):
        app.command()(command)
    app.command("config")(show_config)


# -- what the plugin asks, beside what everybody does


def related(
    path: Annotated[str, typer.Argument(help="A note, vault-relative.")],
    k: Annotated[int, typer.Option("--hits", "-k", min=1, max=1000, help="How many hits.")] = 8,
) -> None:
    """Find what other notes say of what a note speaks of."""
    with opened() as job:
        emit(steps.related(job, path, k), views.related)


def rate(
    answer: Annotated[str, typer.Argument(help="The note that the answer stands in, vault-relative, or its vaultllm_id.")],
    rating: Annotated[str, typer.Argument(help="good, bad, or nothing, which takes it back.")] = "",
) -> None:
    """Keep what you think of an answer, beside the answer; no note is changed."""
    with opened() as job:
        emit(steps.rate(job, answer, rating), views.rated)


def show_config() -> None:
    """Show every setting as it counts now, the file where they are changed, and when this computer retrains by itself."""
    from vaultllm import schedule

    workspace = config.open_workspace(GLOBALS.vault, GLOBALS.state)
    found = {
        "file": str(workspace.vault / config.CONFIG),
        "settings": workspace.settings.model_dump(mode="json", by_alias=True),
        "schedule": schedule.found(workspace.vault, workspace.state),
    }
    emit(found, views.settings)


# -- the memory, looked at and measured

_Plot = Annotated[Path | None, typer.Option("--plot", help="Draw it into this file (.png, .svg, .pdf).")]


def _report(result: dict[str, Any], module: Any, plot: Path | None = None) -> None:
    """Show what a module measured in its own `lines`, and draw it with its `plot`."""
    if plot is not None:
        module.plot(result, config.path_of(plot))
    emit(result, lambda one: Text("\n".join(module.lines(one))))


@memory_app.command("map")
def memory_map(
    out: Annotated[Path | None, typer.Option("--out", help="The file; default: map.html in the state folder.")] = None,
    colour: Annotated[str, typer.Option("--colour", help="What the colours mean at first: folder or time.")] = "folder",
    show: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
) -> None:
    """Draw every scene as a point of one HTML file that needs no network; near means alike."""
    from vaultllm.memory import map as maps

    if colour not in ("folder", "time"):
        raise UsageError(f"there is no colour '{colour}'; it is folder or time")
    with opened() as job:
        path = job.workspace.state / "map.html" if out is None else config.path_of(out)
        result = maps.build(job.ledger, path, vault=job.workspace.vault, colour=colour, progress=job.progress)  # type: ignore[arg-type]
    _report(result, maps)
    if show:
        import webbrowser

        webbrowser.open(Path(result["path"]).resolve().as_uri())


@memory_app.command("analyse")
def memory_analyse(plot: _Plot = None) -> None:
    """Say how much the vectors hold, and what recall costs when they are cut or stored smaller."""
    from vaultllm import remember
    from vaultllm.memory import analyse

    if plot is not None and plot.suffix.lower() not in analyse.PICTURES:
        raise UsageError(f"a plot is one of {', '.join(analyse.PICTURES)}, not {plot.suffix or 'a file without a suffix'}")
    with opened() as job:
        result = analyse.report(job.ledger, remember.opened(job.ledger, job.workspace.memory), progress=job.progress)
    _report(result, analyse, plot)


@bench_app.command("recall")
def bench_recall(
    data: Annotated[Path, typer.Argument(help="Questions with their evidence: SQuAD-shaped JSON, or JSON lines.")],
    k: Annotated[str, typer.Option("--k", "-k", help="How far down the list is looked, several with commas.")] = "1,5,10,25,50",
    halves: Annotated[bool, typer.Option("--halves", help="Measure words alone, vectors alone, and without resonance too.")] = False,
    folds: Annotated[int, typer.Option("--folds", min=0, help="Also by this many parts of the articles.")] = 0,
    plot: _Plot = None,
) -> None:
    """Ask the questions of a file and count what was found: recall@k, nDCG, MRR, latency. The vault is not touched."""
    from vaultllm import bench

    workspace = bench.workspace_of(GLOBALS.vault, GLOBALS.state)
    with progress_shown() as progress:
        result = bench.recall_bench(
            config.path_of(data), bench.ks_of(k), workspace=workspace, halves=halves, folds=folds, progress=progress
        )
    _report(result, bench, plot)


@bench_app.command("links")
def bench_links(
    k: Annotated[int, typer.Option("--k", "-k", min=1, help="How far down the list is looked.")] = 10,
    share: Annotated[float, typer.Option("--share", min=0.01, max=1.0, help="Of the links, so many are hidden.")] = 0.3,
    most: Annotated[int, typer.Option("--most", min=1, help="Hidden links at most.")] = 500,
    seed: Annotated[int, typer.Option("--seed", help="Which ones.")] = 0,
    plot: _Plot = None,
) -> None:
    """Hide some of the vault's own links in a copy and see whether their targets are found; no labels needed."""
    from vaultllm import bench

    workspace = bench.workspace_of(GLOBALS.vault, GLOBALS.state)
    if workspace is None:
        workspace = config.open_workspace(GLOBALS.vault, GLOBALS.state)  # says that there is none, and the way out
    with progress_shown() as progress:
        result = bench.links_bench(workspace, k=k, share=share, most=most, seed=seed, progress=progress)
    _report(result, bench, plot)


# -- by itself

_Kind = Annotated[str, typer.Option("--kind", help="auto (what this computer uses), cron, systemd or launchd.")]
_At = Annotated[str, typer.Option("--at", help="Time of day, HH:MM.")]
_Watch = Annotated[bool, typer.Option("--watch/--no-watch", help="Watch the vault from the start of the computer on, too.")]
_Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask; needed where nobody can be asked.")]


def _planned(kind: str, at: str, watch: bool) -> schedule.Plan:
    from vaultllm import schedule

    workspace = config.open_workspace(GLOBALS.vault, GLOBALS.state)
    return schedule.plan(kind, workspace.vault, workspace.state, at, watch=watch, only_on_ac=workspace.settings.train.only_on_ac)


def _agreed(plan: str, looking: str, question: str) -> None:
    """Show what is to be written, and go on only when the user agrees. Raises UsageError, with how to look first, where nobody is there."""
    if not can_ask():
        raise UsageError(f"nobody can be asked here; look first with {looking}, then say --yes")
    print(plan)
    typer.confirm(question, abort=True)


@schedule_app.command("print")
def schedule_print(kind: _Kind = "auto", at: _At = "03:30", watch: _Watch = True) -> None:
    """Print what `install` would put where, so that `vaultllm retrain` runs every night; write nothing."""
    from vaultllm import schedule

    plan = _planned(kind, at, watch)
    emit({"kind": plan.kind, "text": schedule.shown(plan)}, lambda result: result["text"])


@schedule_app.command("install")
def schedule_install(kind: _Kind = "auto", at: _At = "03:30", watch: _Watch = True, yes: _Yes = False) -> None:
    """Show what is to be written, and write and start it when you agree: watch the vault, retrain every night."""
    from vaultllm import schedule

    plan = _planned(kind, at, watch)
    if not yes:
        _agreed(schedule.shown(plan), "`vaultllm schedule print`", "Write and start this?")
    emit({"kind": plan.kind, "done": schedule.install(plan)}, lambda result: "\n".join(result["done"]))


@schedule_app.command("uninstall")
def schedule_uninstall(kind: _Kind = "auto") -> None:
    """Stop it, and remove exactly what `install` wrote."""
    from vaultllm import schedule

    plan = _planned(kind, "03:30", True)
    emit({"kind": plan.kind, "done": schedule.uninstall(plan)}, lambda result: "\n".join(result["done"]) or "nothing was installed")


# -- in Obsidian

_Folder = Annotated[str, typer.Option("--config-dir", help="Obsidian's folder in the vault, if there are several (.obsidian).")]


@plugin_app.command("install")
def plugin_install(
    folder: _Folder = "",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be written; write nothing.")] = False,
    yes: _Yes = False,
) -> None:
    """Show what is to be written into the vault, and write it when you agree: the Obsidian plugin. You switch it on in Obsidian."""
    from vaultllm import plugin

    plan = plugin.plan(config.find_vault(GLOBALS.vault), folder)
    if dry_run:
        emit({"folder": plan.folder, "files": plan.named(), "done": []}, lambda _: plugin.shown(plan))
        return
    if not yes:
        _agreed(plugin.shown(plan), "--dry-run", "Write this?")
    done = plugin.install(plan)
    emit({"folder": plan.folder, "files": plan.named(), "done": done}, lambda _: "\n".join([*done, plugin.SWITCH_ON]))


@plugin_app.command("uninstall")
def plugin_uninstall(folder: _Folder = "") -> None:
    """Remove what `install` wrote and nobody changed; your settings of the plugin stay."""
    from vaultllm import plugin

    removed, kept = plugin.uninstall(config.find_vault(GLOBALS.vault), folder)
    emit({"removed": removed, "kept": kept}, lambda _: "\n".join(plugin.told(removed, kept)))


# -- tried, shown, served


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
    emit(result, training_views.demo)


def selftest(
    soak: Annotated[bool, typer.Option("--soak", help="Try much more: hours.")] = False,
    only: Annotated[list[str] | None, typer.Option("--only", help="This part alone; may be given again.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.1, help="With --soak: how long the long run lasts.")] = None,
    seed: Annotated[int, typer.Option("--seed", help="Which edits, points and damages.")] = 0,
    folder: Annotated[Path | None, typer.Option("--dir", help="An empty folder to work in; default: a temporary one.")] = None,
) -> None:
    """Try our promises (docs/reliability.md) on this machine, on vaults made for it: kills, full disks, damage, crowds, hostile notes."""
    from vaultllm.selftest import table

    table.chosen(only or ())  # what is not known is said before anything is tried
    size: Any = "soak" if soak else "quick"
    with _work(folder) as work:
        found = []
        for one in table.each(work, size, seed, _told, only=only or (), minutes=minutes):
            found.append(one)
            _told(f"{one.part}: {one.status}, {one.finding.seconds:.0f} s")
    emit(table.record(found), lambda _: Text("\n".join(table.lines(found))))
    if code := table.exit_code(found):
        raise typer.Exit(code)


def _told(line: str) -> None:
    if not GLOBALS.quiet:
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def _work(folder: Path | None) -> Iterator[Path]:
    from vaultllm.selftest import table

    if folder is not None:
        yield table.emptied(config.path_of(folder))
    else:
        with tempfile.TemporaryDirectory(prefix="vaultllm-selftest-", ignore_cleanup_errors=True) as made:
            yield Path(made).resolve()


def serve(
    host: Annotated[str, typer.Option("--host", help="The address; another one lets other computers in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option("--port", min=0, max=65535, help="0: any that is free.")] = 8471,
    max_queue: Annotated[int, typer.Option("--max-queue", min=1, help="Questions that may wait.")] = 8,
    idle_minutes: Annotated[
        float, typer.Option("--idle-minutes", min=0.0, help="Without a question for so long, the model is let go.")
    ] = 10,
) -> None:
    """Answer other programs in their own protocols (OpenAI's, Ollama's, MCP), behind a token: docs/api.md. Ends on Ctrl-C."""
    from vaultllm.api import keys, server

    workspace = config.open_workspace(GLOBALS.vault, GLOBALS.state)

    def told(address: str, taken: int) -> None:
        about = {"url": f"http://{address}:{taken}", "token_file": str(workspace.state / keys.TOKEN)}
        emit(about, lambda one: f"{one['url']}/v1, token in {one['token_file']}; Ctrl-C ends it")

    server.serve(workspace, host, port, max_queue=max_queue, idle_minutes=idle_minutes, told=told)


@contextlib.contextmanager
def served(workspace: config.Workspace, log: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """The same beside something else, in a thread; that it cannot listen does not end the other.

    Where another vault's daemon has the port, any that is free is taken: the plugin reads it from `api.json`.
    """
    from vaultllm.api import server

    with contextlib.ExitStack() as stack:
        try:
            try:
                host, port = stack.enter_context(server.serving(workspace))
            except UsageError:  # the port is taken
                host, port = stack.enter_context(server.serving(workspace, port=0))
            said: dict[str, Any] = {"event": "serving", "url": f"http://{host}:{port}"}
        except VaultllmError as error:
            said = {"event": "problem", "code": error.code, "message": str(error)}
        log({"at": datetime.now().astimezone().isoformat(timespec="seconds"), **said})
        yield


def mcp() -> None:
    """Speak MCP on standard input and output: search, fetch, ask, remember, recent. For Claude, Cursor and others: docs/api.md."""
    try:
        from vaultllm.api import tools
    except ImportError as error:
        raise UsageError(f"MCP wants the extra `mcp` ({error}); run: pip install 'vaultllm[mcp]'") from error
    tools.stdio(config.open_workspace(GLOBALS.vault, GLOBALS.state))
