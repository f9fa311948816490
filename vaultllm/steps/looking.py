"""What only looks: scenes, what Obsidian knows of a note, search, status. Changes nothing that answers."""

from __future__ import annotations

import contextlib
import time
from typing import Annotated, Any

import typer

from vaultllm.errors import DataError, VaultError
from vaultllm.schema import Hit, Scene, to_dict
from vaultllm.steps.job import Job, problem_entry, relative

STATUS_READS = 2_000  # scenes that `status` reads to find duplicates, about 0.2 s; after a larger change `dataset` finds them
RELATED_WORDS = 64  # of a note, that others are looked for by


def show_scenes(
    job: Job,
    path: Annotated[str | None, typer.Argument(help="A note, vault-relative; all notes when left out.")] = None,
) -> dict[str, Any]:
    """Show the scenes of a note, or of the vault."""
    path = None if path is None else relative(job, path)
    if path is not None and not job.ledger.knows(path):
        raise DataError("this note is not known; name it as it stands in the vault, or run: vaultllm ingest", path=path)
    return {"scenes": [to_dict(scene) for scene in job.ledger.scenes(path)]}


def show_metadata(job: Job, path: Annotated[str, typer.Argument(help="A note, vault-relative.")]) -> dict[str, Any]:
    """Show what Obsidian knows of a note, as it is in the file now, and which file each of its links means."""
    from vaultllm import explain as explaining

    return explaining.note_metadata(job.workspace, relative(job, path))


def explain(job: Job, path: Annotated[str, typer.Argument(help="A file of the vault, vault-relative.")]) -> dict[str, Any]:
    """Say which reader took a file and why, what became of it, and what was wrong; for one that is left out, why."""
    from vaultllm import explain as explaining

    return explaining.explain(job.workspace, relative(job, path))


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
        "hits": [shown(hit) for hit in found.hits],
        "confidence": round(found.confidence, 4),
        "answerable": found.answerable,
        "rewritten": [one.text for one in found.rephrased.queries],
        "notice": found.rephrased.notice,
        "seconds": round(time.perf_counter() - started, 3),
    }


def shown(hit: Hit) -> dict[str, Any]:
    """A hit as every `--json` shows it."""
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


def related(
    job: Job,
    path: Annotated[str, typer.Argument(help="A note, vault-relative.")],
    k: Annotated[int, typer.Option("-k", "--hits", min=1, max=1000, help="How many hits.")] = 8,
) -> dict[str, Any]:
    """Find what other notes say of what a note speaks of."""
    path = relative(job, path)
    return {"path": path, "hits": [shown(hit) for hit in neighbours(job, path, k)]}


def neighbours(job: Job, path: str, k: int) -> list[Hit]:
    """Scenes of other notes that speak of what a note speaks of, best first. Raises DataError when it has no scenes."""
    from vaultllm import recall

    scenes = list(job.ledger.scenes(path)) if job.ledger.knows(path) else []
    if not scenes:
        raise DataError("this note is not known, or holds nothing; name it as it stands in the vault, or run: vaultllm ingest", path=path)
    said = [scenes[0].title, *(word for scene in scenes for word in scene.field), *(scene.anchor for scene in scenes)]
    query = " ".join(dict.fromkeys(" ".join(said).split()[: 4 * RELATED_WORDS]))
    query = " ".join(query.split()[:RELATED_WORDS])

    def elsewhere(scene: Scene) -> bool:
        return scene.source.path != path and scene.trust != "generated"

    return recall.recall(job.ledger, job.workspace.memory, job.workspace.settings.memory, query, k, allow=elsewhere, plain=True)


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
