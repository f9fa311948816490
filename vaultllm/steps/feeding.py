"""What brings notes and chat exports into the ledger and the memory: ingest, import, repair."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from vaultllm import config, registry
from vaultllm.steps.job import Job, answering_base, problem_entry


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
        if only is None:
            registry.write_records(workspace, ledger)
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
