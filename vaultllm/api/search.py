"""The small search service that Copilot for Obsidian asks when it does not search itself (`/v0`): health, folder, search, related notes.

Paths are told as its client expects them: `FOLDER/path/in/vault.md`, FOLDER being what it called the vault.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import Field

from vaultllm import recall, steps
from vaultllm.api import wire
from vaultllm.api.engine import Engine
from vaultllm.api.guard import Refused
from vaultllm.errors import DataError
from vaultllm.schema import Hit, Scene

MOST = 100  # hits: it asks for all that there are


class Filter(wire.Loose):
    """A condition; times of change are understood (`mtime`, in milliseconds), others are refused."""

    field: wire.Name
    gte: float | None = None
    lte: float | None = None
    gt: float | None = None
    lt: float | None = None


class Search(wire.Loose):
    """`POST /v0/search`."""

    query: wire.Text
    folder_name: Annotated[str, Field(max_length=4_096)] | None = None
    limit: Annotated[int, Field(ge=1, le=10**6)] = 20
    filters: Annotated[list[Filter], Field(max_length=16)] | None = None


class Related(wire.Loose):
    """`POST /v0/search/related`."""

    file_path: Annotated[str, Field(min_length=1, max_length=4_096)]
    folder_name: Annotated[str, Field(max_length=4_096)] | None = None
    limit: Annotated[int, Field(ge=1, le=10**6)] = 10


class Scan(wire.Loose):
    """`POST /v0/scan`."""

    path: Annotated[str, Field(max_length=4_096)] = ""
    force: bool = False


def routes(engine: Engine) -> APIRouter:
    """Copilot's search service."""
    router = APIRouter(prefix="/v0", responses=wire.REFUSALS)
    vault = engine.workspace.vault

    @router.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok", "service": "vaultllm"}

    @router.get("/folder")
    async def folder(path: Annotated[str, Field(max_length=4_096)]) -> dict[str, Any]:
        if not _is_ours(vault, path):
            raise Refused(404, "E-REQUEST", "this folder is not the vault that is served here", param="path")
        return {"path": path, "recursive": True}

    @router.post("/scan")
    async def scan(asked: Scan) -> dict[str, str]:
        await engine.look(lambda job: steps.ingest(job))
        return {"status": "ok", "path": asked.path}

    @router.post("/search")
    async def search(asked: Search) -> dict[str, Any]:
        def work(job: steps.Job) -> list[dict[str, Any]]:
            allowed = _allowed(job, asked.filters or [])
            memory = job.workspace.settings.memory
            found = recall.find(
                job.ledger, job.workspace.memory, memory, asked.query, min(asked.limit, MOST), allow=allowed, plain=True, judge=job.judge
            )
            known = job.ledger.known({hit.path for hit in found.hits})
            return [
                _result(hit, asked.folder_name or vault.name, known[hit.path].mtime_ns // 10**6) for hit in found.hits if hit.path in known
            ]

        return {"results": await engine.look(work)}

    @router.post("/search/related")
    async def related(asked: Related) -> dict[str, Any]:
        name = asked.folder_name or vault.name
        path = asked.file_path.removeprefix(f"{name}/")
        found = await engine.look(lambda job: related_to(job, path, min(asked.limit, MOST)))
        best: dict[str, float] = {}
        for hit in found:
            best.setdefault(hit.path, hit.score)
        return {"results": [{"path": f"{name}/{where}", "score": score} for where, score in best.items()]}

    return router


def related_to(job: steps.Job, path: str, k: int) -> list[Hit]:
    """`steps.looking.neighbours`. Raises Refused when the note is not known."""
    try:
        return steps.looking.neighbours(job, path, k)
    except DataError as error:
        raise Refused(404, error.code, str(error).removeprefix(error.code).lstrip(), param="path") from error


def _is_ours(vault: Path, named: str) -> bool:
    return named.rstrip("/\\") in (str(vault), vault.name)


def _allowed(job: steps.Job, filters: list[Filter]) -> Any:
    if not filters:
        return None
    for one in filters:
        if one.field != "mtime":
            raise Refused(400, "E-REQUEST", f"there is no filter for {one.field[:40]}; mtime is one", param="filters")
    times = {path: known.mtime_ns / 10**6 for path, known in job.ledger.known().items()}

    def allowed(scene: Scene) -> bool:
        at = times.get(scene.source.path, 0.0)
        return all(
            (one.gte is None or at >= one.gte)
            and (one.lte is None or at <= one.lte)
            and (one.gt is None or at > one.gt)
            and (one.lt is None or at < one.lt)
            for one in filters
        )

    return allowed


def _result(hit: Hit, folder: str, changed: int) -> dict[str, Any]:
    scene = hit.scene
    return {
        "id": scene.id,
        "score": round(hit.score, 4),
        "path": f"{folder}/{hit.path}",
        "title": scene.title,
        "chunk_index": hit.lines[0],
        "chunk_text": hit.text,
        "metadata": {"chunkId": f"{hit.path}#{hit.lines[0]}", "lines": list(hit.lines), "headings": list(scene.headings)},
        "mtime": changed,
        "ctime": changed,
        "created_at": scene.at or None,
        "tags": [f"#{tag}" for tag in scene.tags],
        "extension": hit.path.rpartition(".")[2],
        "nchars": len(hit.text),
    }
