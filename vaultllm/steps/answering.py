"""What answers: ask writes a note, reply appends to one, rate keeps what the user thinks of it."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from typing import Annotated, Any

import typer

from vaultllm.errors import DataError, UsageError, VaultllmError, nearest
from vaultllm.schema import Answer
from vaultllm.steps.feeding import ingest
from vaultllm.steps.job import Job, relative


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
        note = relative(job, note)
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


def reply(job: Job, path: Annotated[str, typer.Argument(help="A note whose last turn is yours, vault-relative.")]) -> dict[str, Any]:
    """Answer the question at the end of a note (`> [!ask] …`, or the open turn of a chat), by appending to it."""
    from vaultllm import conversing, forgotten

    path = relative(job, path)
    if forgotten.load(job.workspace.state).path(path):
        raise DataError(f'this note was forgotten; to answer in it: vaultllm forget --undo "{path}"', path=path)
    found = conversing.reply(job.workspace, job.ledger, path, stream=job.stream, progress=job.progress, lock=job.lock, cancel=job.cancel)
    return {**_answered(found, path), "stopped": found.stopped or None, "unfinished": found.unfinished}


def rate(
    job: Job,
    answer: Annotated[str, typer.Argument(help="The note that the answer stands in, vault-relative, or its vaultllm_id.")],
    rating: Annotated[str, typer.Argument(help="good, bad, or nothing, which takes it back.")] = "",
) -> dict[str, Any]:
    """Keep what you think of an answer, beside the answer; no note is changed."""
    from vaultllm import rating as ratings

    if rating not in ("good", "bad", ""):
        raise UsageError(f"an answer is good or bad, not '{rating}'.{nearest(rating, ('good', 'bad'))}")
    with job.lock():
        return ratings.rate(job.workspace, job.ledger, answer, rating)  # type: ignore[arg-type]


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
