"""Our own protocol (`/api/vaultllm`), for the plugin: the verbs of `steps` over HTTP."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field

from vaultllm import steps
from vaultllm.api import search as service
from vaultllm.api import wire
from vaultllm.api.engine import Emit, Engine
from vaultllm.api.guard import Refused
from vaultllm.api.training import Training
from vaultllm.schema import Progress

Path = Annotated[str, Field(min_length=1, max_length=4_096)]
Hits = Annotated[int, Field(ge=1, le=1000)]


class Strict(BaseModel):
    """A request of ours: a name that we do not know is a mistake."""

    model_config = ConfigDict(extra="forbid")


class Search(Strict):
    """`POST /search`: filters in the query count, as on the command line."""

    query: wire.Text
    k: Hits = 8


class Ask(Strict):
    """`POST /ask`."""

    question: wire.Text
    note: Path | None = None
    write: bool = True
    stream: bool = False


class Reply(Strict):
    """`POST /reply`."""

    path: Path
    stream: bool = False


class Ingest(Strict):
    """`POST /ingest`."""

    full: bool = False
    confirm: bool = False


class Retrain(Strict):
    """`POST /retrain`."""

    minutes: Annotated[float, Field(ge=0.05, le=10_000)] | None = None
    min_new: Annotated[int, Field(ge=1, le=10**9)] | None = None


class Forget(Strict):
    """`POST /forget`: `yes` says that the user was asked."""

    what: Path
    dry_run: bool = False
    undo: bool = False
    yes: bool = False


class Rate(Strict):
    """`POST /rate`: of the answer that stands in a note, or of this id."""

    answer: Path
    rating: Literal["good", "bad", ""]


def routes(engine: Engine, training: Training) -> APIRouter:
    """The plugin's part of `/api`."""
    router = APIRouter(prefix="/api/vaultllm", responses=wire.REFUSALS)

    async def answered(request: Request, verb: Any, stream: bool) -> Any:
        """A step that answers, whole or as NDJSON: {progress}, {text}, at last {done}."""

        def work(job: steps.Job, emit: Emit, over: Any) -> dict[str, Any]:
            def progress(at: Progress) -> None:
                emit({"progress": at.phase, "share": at.done})

            job.progress, job.stream, job.cancel = progress, lambda piece: emit({"text": piece}), over
            result: dict[str, Any] = verb(job)
            return result

        if not stream:
            return (await wire.whole(request, engine, work))[1]
        return await wire.streamed(
            request,
            engine,
            work,
            wire.line,
            lambda result: wire.line({"done": result}),
            wrong=lambda found: wire.line({"error": found}),
            media_type="application/x-ndjson",
        )

    @router.get("/status")
    async def status() -> dict[str, Any]:
        found = await engine.look(steps.status)
        return {**found, "training": training.state()}

    @router.post("/search")
    async def search(asked: Search) -> dict[str, Any]:
        return await engine.look(lambda job: steps.search(job, asked.query, asked.k))

    @router.get("/related")
    async def related(path: Annotated[str, Query(min_length=1, max_length=4_096)], k: Annotated[int, Query(ge=1, le=1000)] = 8) -> Any:
        def work(job: steps.Job) -> list[dict[str, Any]]:
            return [steps.looking.shown(one) for one in service.related_to(job, path, k)]

        return {"path": path, "hits": await engine.look(work)}

    @router.post("/ask", response_model=None)
    async def ask(request: Request, asked: Ask) -> Response | dict[str, Any]:
        found: Response | dict[str, Any] = await answered(
            request, lambda job: steps.ask(job, asked.question, asked.note, asked.write), asked.stream
        )
        return found

    @router.post("/reply", response_model=None)
    async def reply(request: Request, asked: Reply) -> Response | dict[str, Any]:
        found: Response | dict[str, Any] = await answered(request, lambda job: steps.reply(job, asked.path), asked.stream)
        return found

    @router.post("/ingest")
    async def ingest(asked: Ingest) -> dict[str, Any]:
        return await engine.look(lambda job: steps.ingest(job, asked.full, asked.confirm))

    @router.post("/retrain", status_code=202)
    async def retrain(asked: Retrain) -> dict[str, Any]:
        return await engine.look(lambda job: training.start(asked.minutes, asked.min_new))

    @router.get("/retrain")
    async def training_state() -> dict[str, Any]:
        return training.state()

    @router.delete("/retrain")
    async def stop_training() -> dict[str, Any]:
        return await engine.look(lambda job: training.stop())

    @router.post("/forget")
    async def forget(asked: Forget) -> dict[str, Any]:
        if not (asked.yes or asked.dry_run or asked.undo):
            raise Refused(
                400, "E-REQUEST", "what is forgotten comes back only by reading it again; say yes, or look with dry_run", param="yes"
            )
        return await engine.look(lambda job: steps.forget(job, asked.what, asked.dry_run, asked.undo))

    @router.post("/rate")
    async def rate(asked: Rate) -> dict[str, Any]:
        return await engine.look(lambda job: steps.rate(job, asked.answer, asked.rating))

    @router.post("/rollback")
    async def rollback() -> dict[str, Any]:
        return await engine.look(steps.rollback)

    return router
