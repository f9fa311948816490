"""The verbs: one function each. Its signature is the command's options, the pipeline's keys and their check.

Every step takes a `Job` (workspace, progress, how long to wait for a lock) and returns one JSON-ready dict;
`cli.py` shows it, `pipeline.py` runs it, `watch.py` calls it. Knows nothing about terminals.
"""

from __future__ import annotations

import contextlib
import functools
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from vaultllm import config, locks
from vaultllm.errors import DataError, UsageError, VaultError, VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.schema import Answer, Hit, Problem, Report, silent, to_dict
from vaultllm.text import nfc

if TYPE_CHECKING:
    from vaultllm.dataset import Dataset
    from vaultllm.forget import Derived
    from vaultllm.memory.rephrase import Rephraser
    from vaultllm.memory.rerank import Judge
    from vaultllm.models.plan import Sample
    from vaultllm.target import Target
    from vaultllm.unlearning import Held


STATUS_READS = 2_000  # scenes that `status` reads to find duplicates, about 0.2 s; after a larger change `dataset` finds them


@dataclass
class Job:
    """What every step is given."""

    workspace: config.Workspace
    """Vault, state, settings."""
    progress: Report = silent
    """Called with where the work stands."""
    stream: Callable[[str], None] | None = None
    """Called with pieces of an answer as they are made; None: nobody reads along."""
    wait: float = 30.0
    """Seconds to wait for another process that writes."""
    background: bool = False
    """Whether what takes the memory long (another embedder, learning) is left to somebody else: the daemon's own thread, a later ingest."""
    _ledger: Ledger | None = field(default=None, repr=False)

    @property
    def ledger(self) -> Ledger:
        """The open ledger."""
        if self._ledger is None:
            self._ledger = Ledger(self.workspace.ledger)
        return self._ledger

    @functools.cached_property
    def judge(self) -> Judge | None:
        """Who reorders what was found, as `memory.rerank` says; kept, for it may hold a model."""
        if not self.workspace.settings.memory.rerank:
            return None
        from vaultllm import registry

        return registry.judge(self.workspace, self.ledger)

    @functools.cached_property
    def rephraser(self) -> Rephraser | None:
        """Who writes what else to look for, as `memory.rewrite` says; kept, for it remembers what it wrote."""
        if not self.workspace.settings.memory.rewrite:
            return None
        from vaultllm import answer

        return answer.rephraser(self.workspace, self.ledger)

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    @contextlib.contextmanager
    def lock(self, name: Literal["lock", "train.lock", "watch.lock"] = "lock", wait: float | None = None) -> Iterator[None]:
        """Be the only writer. Raises LockedError naming the holder, pid and command, when it does not become free in time."""
        with locks.held(self.workspace.state / name, self.wait if wait is None else wait, waiting=self.progress):
            yield


# -- ingest


def ingest(
    job: Job,
    full: Annotated[bool, typer.Option("--full", help="Parse every note again, changed or not.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Go on even if many notes have vanished from the vault.")] = False,
    learn: Annotated[bool, typer.Option("--learn", help="Let the memory of a large vault learn from its structure now: a minute.")] = False,
) -> dict[str, Any]:
    """Scan the vault; parse what changed into scenes; bring the memory up to date."""
    return _ingest(job, full=full, confirm=confirm, learn=learn)


def ingest_named(job: Job, only: Sequence[str]) -> dict[str, Any]:
    """`ingest` by somebody who knows that no other notes than these (vault-relative, spelt as on disk) have changed."""
    return _ingest(job, only=only)


def _ingest(
    job: Job, *, full: bool = False, confirm: bool = False, learn: bool = False, only: Sequence[str] | None = None
) -> dict[str, Any]:
    from vaultllm import ingest as ingesting
    from vaultllm import remember

    started = time.perf_counter()
    workspace, ledger = job.workspace, job.ledger
    with job.lock():
        found = ingesting.ingest(workspace, ledger, full=full, confirm=confirm, only=only, progress=job.progress)
        memory = remember.refresh(
            ledger,
            workspace.memory,
            workspace.settings.memory,
            job.progress,
            base=answering_base(job),
            learn=learn,
            background=job.background,
        )
    failed = [problem_entry(path, problem) for path, problem in ledger.problems() if problem.code.startswith("E-")]
    return {
        "notes": {"seen": found.seen, "parsed": found.parsed, "unchanged": found.unchanged, "removed": found.removed, "failed": failed},
        "scenes": {
            "added": found.change.added,
            "changed": found.change.changed,
            "removed": found.change.removed,
            "total": ledger.count("scenes"),
        },
        "memory": memory,
        "seconds": round(time.perf_counter() - started, 3),
    }


def answering_base(job: Job) -> str:
    """The model that answers, for a memory whose embedder it is; else ""."""
    from vaultllm import registry
    from vaultllm.memory import live

    if not live.is_plain_model(job.workspace.settings.memory):
        return ""
    serving = registry.serving(job.workspace, job.ledger)
    return "" if serving is None else serving[0]


def problem_entry(path: str, problem: Problem) -> dict[str, Any]:
    """A problem as every `--json` shows it."""
    return {"path": path, "line": problem.line, "code": problem.code, "count": problem.count, "message": problem.message}


def import_(
    job: Job,
    files: Annotated[list[Path], typer.Argument(help="Chat exports as they were downloaded: .json, .jsonl, .zip, or folders of them.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come; write nothing.")] = False,
) -> dict[str, Any]:
    """Take the talks of chat exports into the memory; those that the vault's notes hold already mend these."""
    from vaultllm import importing

    paths = [config.path_of(path) for path in files]
    with job.lock():
        taken = importing.take(job.workspace, paths, dry_run=dry_run, progress=job.progress)
    after = {} if dry_run else ingest(job)
    known = {} if dry_run and not job.workspace.ledger.exists() else taken.stored
    counts = {
        "read": taken.read,
        **{name: taken.outcomes[name] for name in ("new", "changed", "same", "empty")},
        "in_vault": sum(bool(name and job.ledger.holders(name)) for name in known.values()),
    }
    return {
        "files": [str(path) for path in paths],
        "dry_run": dry_run,
        "conversations": counts,
        "turns": taken.turns,
        "problems": [problem_entry(path, problem) for path, problem in taken.problems],
        **after,
    }


def repair(
    job: Job,
    source: Annotated[Path, typer.Option("--from", help="The chat export that the notes came from: .json, .zip, or a folder.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be mended; write nothing.")] = False,
) -> dict[str, Any]:
    """Mend what an importer did to the chats in the vault, from their export; the notes themselves stay as they are."""
    from vaultllm import importing

    path = config.path_of(source)
    with job.lock():
        found = importing.repair(job.workspace, [path], dry_run=dry_run, progress=job.progress)
    after = {} if dry_run else ingest(job)
    mended = found.notes.values()
    return {
        "file": str(path),
        "dry_run": dry_run,
        "notes": len(found.notes),
        "notes_not_in_export": found.left,
        "turns": {
            "mended": sum(one.mended for one in mended),
            "same": sum(one.same for one in mended),
            "edited": sum(one.edited for one in mended),
            "not_in_export": sum(one.unknown for one in mended),
            "not_in_note": sum(one.lacking for one in mended),
        },
        "variants": sum(one.variants for one in mended),
        "not_in_vault": found.not_in_vault,
        "problems": [problem_entry(where, problem) for where, problem in found.problems],
        "ingest": after or None,
    }


# -- look


def show_scenes(
    job: Job,
    path: Annotated[str | None, typer.Argument(help="A note, vault-relative; all notes when left out.")] = None,
) -> dict[str, Any]:
    """Show the scenes of a note, or of the vault."""
    path = None if path is None else _relative(job, path)
    if path is not None and not job.ledger.knows(path):
        raise DataError("this note is not known; name it as it stands in the vault, or run: vaultllm ingest", path=path)
    return {"scenes": [to_dict(scene) for scene in job.ledger.scenes(path)]}


def show_metadata(job: Job, path: Annotated[str, typer.Argument(help="A note, vault-relative.")]) -> dict[str, Any]:
    """Show what Obsidian knows of a note, as it is in the file now, and which file each of its links means."""
    from vaultllm import explain as explaining

    return explaining.note_metadata(job.workspace, _relative(job, path))


def explain(job: Job, path: Annotated[str, typer.Argument(help="A file of the vault, vault-relative.")]) -> dict[str, Any]:
    """Say which reader took a file and why, what became of it, and what was wrong; for one that is left out, why."""
    from vaultllm import explain as explaining

    return explaining.explain(job.workspace, _relative(job, path))


def search(
    job: Job,
    query: Annotated[str, typer.Argument(help="What to look for; `-` reads one query per line.")],
    k: Annotated[int, typer.Option("-k", "--hits", min=1, max=1000, help="How many hits.")] = 8,
) -> dict[str, Any]:
    """Find scenes by words and by meaning, and say why each was found.

    Filters: path: folder: tag: before: after: kind: trust: lang:, with - before them to leave out; "exact phrase"; -word.
    """
    from vaultllm import recall

    started = time.perf_counter()
    memory = job.workspace.settings.memory
    found = recall.find(job.ledger, job.workspace.memory, memory, query, k, judge=job.judge, rephraser=job.rephraser)
    return {
        "query": query,
        "hits": [_hit(hit) for hit in found.hits],
        "confidence": round(found.confidence, 4),
        "answerable": found.answerable,
        "rewritten": [one.text for one in found.rephrased.queries],
        "notice": found.rephrased.notice,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "scene": hit.scene.id,
        "path": hit.path,
        "title": hit.scene.title,
        "headings": list(hit.scene.headings),
        "at": hit.scene.at,
        "lines": list(hit.lines),
        "uids": list(hit.uids),
        "text": hit.text,
        "score": round(hit.score, 4),
        "why": {name: round(part, 4) for name, part in hit.why.items()},
    }


def _relative(job: Job, path: str) -> str:
    """A note's path as the vault knows it; taken too: absolute, from the folder one stands in, in another form of Unicode."""
    vault = job.workspace.vault
    given = config.path_of(path)
    if given.is_absolute() or (not (vault / given).exists() and given.exists()):
        whole = given.resolve()
        given = whole.relative_to(vault) if whole.is_relative_to(vault) else given
    path = given.as_posix()
    if job.ledger.knows(path):
        return path
    # Also when the file is there: macOS opens a name in any form of Unicode, the ledger knows only the one on disk.
    other = next((known for known in job.ledger.known() if nfc(known) == nfc(path)), path)
    is_another = (vault / path).exists() and (vault / other).exists() and not (vault / path).samefile(vault / other)
    return path if is_another else other


def forget(
    job: Job,
    what: Annotated[str, typer.Argument(help="A note's path, a scene's id, a message's UID, or a conversation's id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let it be read again, by the next ingest.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Where a training saw it, train again without it, from the base.")] = False,
) -> dict[str, Any]:
    """Take it out of everything that was derived from it, and search every file to prove it; the vault stays as it is."""
    from vaultllm import forget as forgetting

    what = _relative(job, what)
    if undo:
        with job.lock():
            return forgetting.undo(job.workspace, job.ledger, what)
    if dry_run:
        return forgetting.plan(job.workspace, job.ledger, what)
    held: list[Held] = []

    def witness(goal: Target, found: Derived) -> None:
        from vaultllm import unlearning

        held.append(unlearning.hold(job.workspace, job.ledger, goal, found))

    with job.lock("train.lock", wait=0.0):  # to the end: nothing trains between the forgetting and what is measured of it
        with job.lock():
            base = answering_base(job)
            watched = {"witness": witness} if retrain else {}
            result = forgetting.forget(job.workspace, job.ledger, what, base=base, progress=job.progress, **watched)
        if retrain and (result["runs"] or result["bases"]):
            try:
                result["retrained"] = _unlearnt(job, held[0])
            except VaultllmError as error:  # it is forgotten all the same
                result["retrained"] = {"status": "failed", "reason": str(error)}
    return result


def _unlearnt(job: Job, held: Held) -> dict[str, Any]:
    """Train from the base without what was forgotten, and measure how well it was and is known."""
    from vaultllm import training, unlearning

    settings = job.workspace.settings.train
    built = _dataset(job)

    def learn() -> dict[str, Any]:
        return training.train(job.workspace, job.ledger, built, settings, job.progress, resume=True, fresh=False)

    result = unlearning.again(job.workspace, job.ledger, held, built, learn, job.progress)
    return result | (_reported(job, result["run"], built) if result["status"] == "done" else {})


def status(job: Job) -> dict[str, Any]:
    """What is known, what answers, what waits, what is wrong and how to mend it."""
    from vaultllm import forgotten, heartbeat, registry, remember, survey
    from vaultllm import ingest as ingesting

    counts = job.ledger.counts()
    unwanted = forgotten.load(job.workspace.state).entries
    embedder = remember.described(job.ledger, job.workspace.settings.memory)
    linked = job.ledger.link_duplicates(most=STATUS_READS)
    surveyed = survey.survey(job.ledger.db)
    current = registry.current(job.workspace)
    new = registry.new_scenes(job.workspace, job.ledger)
    behind = None
    with contextlib.suppress(VaultError):  # its disk is not mounted: what is known is known nevertheless
        behind = ingesting.behind(job.workspace, job.ledger)
    return {
        "vault": str(job.workspace.vault),
        "state": str(job.workspace.state),
        "vault_id": job.workspace.settings.vault_id,
        "daemon": heartbeat.look(job.workspace.state),
        "notes": counts["notes"],
        "behind": behind,
        "scenes": surveyed if linked is not None else {**surveyed, "duplicates": None},
        "turns": survey.turns(job.ledger.db),
        "memory": {
            "passages": counts["passages"],
            "vectors": embedder["vectors"] if embedder else 0,
            "waiting": counts["outbox"],
            "embedder": embedder,
        },
        "dataset": {"new_scenes": new, "min_new": job.workspace.settings.train.min_new},
        "current": current or None,
        "forgotten": {"entries": len(unwanted), "unfinished": sum(not entry.done for entry in unwanted)},
        "problems": [problem_entry(path, problem) for path, problem in job.ledger.problems()],
    }


# -- train


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
        built = _dataset(job)
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


def _dataset(job: Job) -> Dataset:
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
        built = _dataset(job)
        result = training.train(job.workspace, job.ledger, built, settings, job.progress, resume=resume, fresh=fresh)
        return result | (_reported(job, result["run"], built) if report else {})


def _reported(job: Job, run: str, built: Dataset) -> dict[str, Any]:
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
        built = _dataset(job)
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

        built = built or _dataset(job)
        try:
            result = training.train(
                job.workspace, job.ledger, built, settings, job.progress, resume=known is not None, fresh=False, ask=ask, go_on=True
            )
        except Paused as pause:
            wait, run = pause.wait, job.ledger.runs()[-1].id
            return {"status": wait.status, "reason": wait.reason, "run": run, "step": pause.step, "new_scenes": new}
        return result | {"new_scenes": new} | (_reported(job, result["run"], built) if report else {})


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


# -- answer


def ask(
    job: Job,
    question: Annotated[str, typer.Argument(help="The question; `-` reads it from standard input.")],
    note: Annotated[str | None, typer.Option("--note", help="The note it is asked about, vault-relative: its scenes come first.")] = None,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write the answer as a note.")] = True,
) -> dict[str, Any]:
    """Answer a question as a note: what the vault says, with links to its lines, and what the model says."""
    from vaultllm import answer, forgotten

    if not question.strip():
        raise UsageError("the question is empty")
    if note is not None:
        note = _relative(job, note)
        with contextlib.suppress(VaultllmError):  # the note as it is now; when it cannot be read, the answer says so
            job.ledger  # noqa: B018 - opened here, so that it is closed with the job
            ingest(replace(job, background=True))  # a question waits for no new embedder
    path = None
    while True:
        known = forgotten.load(job.workspace.state)
        found = answer.ask(job.workspace, job.ledger, question.strip(), note=note, stream=job.stream, progress=job.progress)
        if not write:
            break
        with job.lock():
            if forgotten.load(job.workspace.state) == known:  # else it may quote what was forgotten while the model spoke
                path = answer.write(job.workspace, job.ledger, found)
                break
    return _answered(found, path)


def reply(job: Job, path: Annotated[str, typer.Argument(help="A chat note whose last turn is yours, vault-relative.")]) -> dict[str, Any]:
    """Answer the open turn at the end of a chat note, by appending to it."""
    from vaultllm import answer, forgotten

    path = _relative(job, path)
    if forgotten.load(job.workspace.state).path(path):
        raise DataError(f'this note was forgotten; to answer in it: vaultllm forget --undo "{path}"', path=path)
    found = answer.reply(job.workspace, job.ledger, path, stream=job.stream, progress=job.progress, lock=job.lock)
    return _answered(found, path)


def _answered(found: Answer, path: str | None) -> dict[str, Any]:
    return {
        "question": found.question,
        "answer": found.text,
        "note": path,
        "sources": [
            {"path": source.path, "lines": list(source.lines), "uid": source.uid, "quote": source.quote, "link": source.link}
            for source in found.sources
        ],
        "model": found.model,
        "capable": found.capable,
        "run": found.run or None,
        "seconds": round(found.seconds, 3),
    }


# -- mend


def doctor(
    job: Job,
    repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, from the vault and the ledger.")] = False,
    probe: Annotated[bool, typer.Option("--probe", help="Measure what this machine can train, and how long it takes: 20 seconds.")] = False,
) -> dict[str, Any]:
    """Check the ledger, the scene files, the memory and the current run."""
    from vaultllm import database, health

    with job.lock():
        base = answering_base(job)
        found = health.examine(job.workspace, job.ledger, repair=repair, base=base, progress=job.progress)
        if repair and not any(one["code"] == "E-LEDGER" for one in found):  # copies of older ledgers are not needed then
            database.remove_backups(job.workspace.ledger)
        backups = [path.name for path in database.backups(job.workspace.ledger)]
    left = [one for one in found if not (repair and one["code"].startswith("W-"))]
    here = {"training": _trainable_here(job)} if probe else {}
    return {"problems": found, "repaired": len(left) < len(found), "ok": not left, "backups": backups, **here}


def dump(job: Job) -> dict[str, Any]:
    """The canonical state: the same after every way that leads to it."""
    from vaultllm import canonical

    with job.lock():
        return canonical.dump(job.workspace, job.ledger)


def bundle(job: Job, path: Path) -> dict[str, Any]:
    """Write what may be sent with a report of a bug: versions, counts, codes; no text of the vault and no names."""
    from vaultllm import bundle as bundling

    findings = doctor(job)["problems"]
    return {"bundle": str(path), "files": bundling.write(path, job.workspace, job.ledger, findings)}


def _trainable_here(job: Job) -> dict[str, Any]:
    """What `hardware.probe` measures, for one pass over what is trained on now."""
    from vaultllm import hardware, training

    settings = job.workspace.settings.train
    tokens, counted = None, None
    with contextlib.suppress(DataError):  # nothing to train on yet: the machine can be measured all the same
        tokens, counted = training.pass_tokens(job.workspace, job.ledger, _dataset(job))
    return {**hardware.probe(settings, tokens, job.progress), "tokens_counted": counted}
