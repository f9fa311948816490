"""What trains, and what decides which training answers: dataset, train, micro, retrain, report, runs, promote, rollback."""

from __future__ import annotations

import contextlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vaultllm import config
from vaultllm.errors import DataError, UsageError
from vaultllm.schema import to_dict
from vaultllm.steps.feeding import ingest
from vaultllm.steps.job import Job

if TYPE_CHECKING:
    from vaultllm.dataset import Dataset
    from vaultllm.models.plan import Sample


def dataset(
    job: Job,
    to: Annotated[Literal["jsonl", "sharegpt", "alpaca"], typer.Option("--to", help="Format of --out.")] = "jsonl",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to export to, outside the vault.")] = None,
) -> dict[str, Any]:
    """Freeze a dataset; show its counts, what was dropped, and why."""
    from vaultllm import dataset as datasets
    from vaultllm import exporting, training

    out = None if out is None else config.path_of(out)
    if out is not None and out.resolve().is_relative_to(job.workspace.vault):
        raise UsageError("--out lies in the vault, where we write no data; name a folder outside of it", path=str(out))
    with job.lock():  # else what is forgotten meanwhile would be frozen after it was forgotten
        built = built_dataset(job)
        folder = datasets.write(built, job.workspace.datasets)
    try:
        exported = [str(path) for path in exporting.export(built, to, out)] if out is not None else []
    except OSError as error:
        raise UsageError(f"--out cannot be written ({error.strerror}); name another folder", path=str(out)) from error
    why = Counter(one.reason.partition(" scene ")[0] for one in built.dropped)
    return {
        "id": built.id,
        "counts": datasets.counts(built),
        "dropped": dict(why.most_common()),
        "tokens": training.tokens(job.workspace, job.ledger, built),
        "folder": str(folder),
        "exported": exported,
    }


def built_dataset(job: Job) -> Dataset:
    from vaultllm import dataset as datasets

    job.ledger.link_duplicates()
    built = datasets.prepare(job.ledger.scenes(), job.workspace.settings.train, ours=job.ledger.ours())
    if not built.examples:
        counts = job.ledger.counts()
        raise DataError(
            f"nothing to train on: {counts['notes']} notes, {counts['scenes']} scenes, {counts['trainable']} of them may be trained on; "
            "run: vaultllm ingest, then: vaultllm status",
        )
    return built


def train(
    job: Job,
    base: Annotated[str | None, typer.Option("--base", help="`micro`, a folder, or a Hugging Face id; default: the settings.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.05, help="Time for it all; default: the settings.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of data order and initialisation.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--new", help="Go on with an interrupted training of the same data.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train the micro base again, even if there is one.")] = False,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write a note about the training into the vault.")] = True,
) -> dict[str, Any]:
    """Train an adapter (and the micro base, if there is none), measure it, promote it if it is not worse."""
    from vaultllm import processes, training

    settings = job.workspace.settings.train
    chosen: dict[str, Any] = {"base": base, "minutes": minutes, "seed": seed}
    settings = settings.model_copy(update={key: value for key, value in chosen.items() if value is not None})
    with job.lock("train.lock"), processes.joined():
        built = built_dataset(job)
        result = training.train(job.workspace, job.ledger, built, settings, job.progress, resume=resume, fresh=fresh)
        return result | (reported(job, result["run"], built) if report else {})


def reported(job: Job, run: str, built: Dataset) -> dict[str, Any]:
    """The note about a training that has just ended; that it cannot be written does not make the training fail."""
    from vaultllm import reporting

    try:
        facts = reporting.collect(job.workspace, job.ledger, run, job.progress, built)
        with job.lock():
            return {"report": reporting.write(job.workspace, job.ledger, facts)["note"]}
    except KeyboardInterrupt:
        return {"report": None, "report_error": "stopped; to write it: vaultllm report"}
    except Exception as error:  # whatever it is: the training is over, and its result must be told
        return {"report": None, "report_error": str(error) or type(error).__name__}


def micro(
    job: Job,
    minutes: float | None = None,
    seed: int | None = None,
    written: Callable[[Sample], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train the micro model anew on the vault, and measure it beside those who only count and copy; `micro.pretrain` says what it takes."""
    from vaultllm import training, yardsticks

    settings = job.workspace.settings.train
    minutes, seed = settings.minutes if minutes is None else minutes, settings.seed if seed is None else seed
    with job.lock("train.lock"):
        built = built_dataset(job)
        watched = {"written": written, "stop": stop}
        folder, _ = training.micro_base(job.workspace, built, minutes=minutes, seed=seed, progress=job.progress, fresh=True, **watched)
        about = json.loads((folder / "micro.json").read_text(encoding="utf-8"))
        others = yardsticks.measure(built.written("train"), built.split("val"), {}, seconds=10)
    return {"base": str(folder), **about, "yardsticks": others}


def retrain(
    job: Job,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.05, help="Time for it all; default: the settings.")] = None,
    min_new: Annotated[int | None, typer.Option("--min-new", min=1, help="Scenes that must be new; default: the settings.")] = None,
    report: Annotated[bool, typer.Option("--report/--no-report", help="Write a note about the training into the vault.")] = True,
) -> dict[str, Any]:
    """What cron calls: read the vault, and train if enough is new, or go on with what was stopped.

    One at a time; exit 75 when one is at work. On battery, or while others keep the computer busy, it waits for the next call:
    train.only_on_ac, train.max_load.
    """
    from vaultllm import power, processes, registry, training

    with job.lock("train.lock", wait=0.0), processes.joined():
        settings = job.workspace.settings.train
        if minutes is not None:
            settings = settings.model_copy(update={"minutes": minutes})
        ask = power.asked(settings.only_on_ac, settings.max_load)
        ingest(job)
        needed = min_new or settings.min_new
        new = registry.new_scenes(job.workspace, job.ledger)
        known = training.unfinished(job.workspace, job.ledger, settings)
        if new < needed and known is None:
            return {"status": "nothing new", "new_scenes": new, "min_new": needed}
        stopped, built = known or (None, None)
        if wait := ask():
            return {"status": wait.status, "reason": wait.reason, "run": stopped, "step": None, "new_scenes": new}
        power.step_back(settings.nice)
        from vaultllm.loop import Paused

        built = built or built_dataset(job)
        try:
            result = training.train(
                job.workspace, job.ledger, built, settings, job.progress, resume=known is not None, fresh=False, ask=ask, go_on=True
            )
        except Paused as pause:
            wait, run = pause.wait, job.ledger.runs()[-1].id
            return {"status": wait.status, "reason": wait.reason, "run": run, "step": pause.step, "new_scenes": new}
        return result | {"new_scenes": new} | (reported(job, result["run"], built) if report else {})


def report(
    job: Job,
    run: Annotated[str | None, typer.Argument(help="Id of a finished training; default: the newest that was judged.")] = None,
    again: Annotated[bool, typer.Option("--again", help="Write another note, even if there is one.")] = False,
) -> dict[str, Any]:
    """Say where the note about a training is; write it if there is none (asks the model a few questions)."""
    from vaultllm import lineage, registry, reporting

    run = run or reporting.latest(job.ledger)
    decided = registry.find(job.ledger, run)
    about = {"run": run, "decision": lineage.decision(decided), "reason": decided.reason}
    note = "" if again else reporting.known(job.workspace, job.ledger, run)
    if note:
        return {**about, "note": note, "written": False}
    facts = reporting.collect(job.workspace, job.ledger, run, job.progress)
    with job.lock():
        return {**about, **reporting.write(job.workspace, job.ledger, facts), "written": True}


def runs(job: Job) -> dict[str, Any]:
    """The trainings, oldest first, and which one answers."""
    from vaultllm import lineage, registry

    found, current = job.ledger.runs(), registry.current(job.workspace)
    records = [{**to_dict(run), "decision": lineage.decision(run), "adapter": registry.has_adapter(job.workspace, run.id)} for run in found]
    return {"runs": records, "current": current or None, "descent": lineage.descent(found, current)}


def promote(
    job: Job,
    run: Annotated[str, typer.Argument(help="Id of the run that shall answer.")],
    force: Annotated[bool, typer.Option("--force", help="Also if the gate refused it; wants --reason.")] = False,
    reason: Annotated[str, typer.Option("--reason", help="Why; kept with the run.")] = "",
) -> dict[str, Any]:
    """Let this run answer from now on, if its adapter is what was trained. One that was refused wants --force and --reason."""
    from vaultllm import registry

    with job.lock():
        before = registry.promote(job.workspace, job.ledger, run, reason, force=force)
    return {"current": run, "before": before or None}


def rollback(job: Job) -> dict[str, Any]:
    """Let the run before the current one answer again (or the base, if there was none)."""
    from vaultllm import registry

    with job.lock():
        before, now = registry.rollback(job.workspace, job.ledger)
    return {"current": now or None, "before": before}


def trainable_here(job: Job) -> dict[str, Any]:
    """What `hardware.probe` measures, for one pass over what is trained on now."""
    from vaultllm import hardware, training

    settings = job.workspace.settings.train
    tokens, counted = None, None
    with contextlib.suppress(DataError):  # nothing to train on yet: the machine can be measured all the same
        tokens, counted = training.pass_tokens(job.workspace, job.ledger, built_dataset(job))
    return {**hardware.probe(settings, tokens, job.progress), "tokens_counted": counted}
