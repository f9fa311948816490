"""What takes away and what makes whole: forget, doctor, the canonical dump, the bundle for a report of a bug."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vaultllm.errors import VaultllmError
from vaultllm.steps import learning
from vaultllm.steps.job import Job, answering_base, relative

if TYPE_CHECKING:
    from vaultllm.forget import Derived
    from vaultllm.target import Target
    from vaultllm.unlearning import Held


def forget(
    job: Job,
    what: Annotated[str, typer.Argument(help="A note's path, a scene's id, a message's UID, or a conversation's id.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; change nothing.")] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Let it be read again, by the next ingest.")] = False,
    retrain: Annotated[bool, typer.Option("--retrain", help="Where a training saw it, train again without it, from the base.")] = False,
) -> dict[str, Any]:
    """Take it out of everything that was derived from it, and search every file to prove it; the vault stays as it is."""
    from vaultllm import forget as forgetting

    what = relative(job, what)
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
    built = learning.built_dataset(job)

    def learn() -> dict[str, Any]:
        return training.train(job.workspace, job.ledger, built, settings, job.progress, resume=True, fresh=False)

    result = unlearning.again(job.workspace, job.ledger, held, built, learn, job.progress)
    return result | (learning.reported(job, result["run"], built) if result["status"] == "done" else {})


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
    here = {"training": learning.trainable_here(job)} if probe else {}
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
