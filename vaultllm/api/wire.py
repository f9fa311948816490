"""What the protocols share: the shape of a talk, of an error, of a stream; and who goes away is noticed.

Knows nothing about models or memory beyond what `speaking.py` takes and gives.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field

from vaultllm import speaking, steps
from vaultllm.api import engine as engines
from vaultllm.api.guard import Refused, error
from vaultllm.errors import VaultllmError
from vaultllm.schema import Citation, Message
from vaultllm.speaking import Spoken, Wish

T = TypeVar("T")

MOST_MESSAGES = 2_000
_LONGEST = 2**20  # characters of a text: a body has no more bytes
_QUIET = 10.0  # seconds without a word, after which a stream shows that it lives
_STATUS = {"E-USAGE": 400, "E-FILTER": 400, "E-DATA": 422, "E-LONG": 400, "E-OUTSIDE": 400, "E-READ": 404, "E-LOCKED": 409, "E-OWNED": 409,
           "E-INTERNAL": 500}  # fmt: skip

Text = Annotated[str, Field(max_length=_LONGEST)]
Name = Annotated[str, Field(min_length=1, max_length=300)]
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]
Tokens = Annotated[int, Field(ge=1, le=10**6)]
Temperature = Annotated[float, Field(ge=0.0, le=2.0)]
TopP = Annotated[float, Field(gt=0.0, le=1.0)]
Stops = Annotated[list[Annotated[str, Field(max_length=300)]], Field(max_length=16)]


class Loose(BaseModel):
    """A request of somebody else's protocol: what we do not know is passed over."""

    model_config = ConfigDict(extra="ignore")


class ErrorDetail(BaseModel):
    """What is wrong."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorBody(BaseModel):
    """Every refusal looks like this."""

    error: ErrorDetail


REFUSALS: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": what}
    for status, what in {
        400: "the request is wrong",
        401: "no token",
        403: "Host or Origin",
        404: "there is no such thing",
        408: "the body came too slowly",
        409: "somebody else is writing; try again",
        413: "the body is too large",
        414: "the address is too long",
        415: "the body is no JSON",
        422: "the vault holds nothing to work on, or not yet",
        424: "model, vault or settings cannot be used",
        429: "too many at once; try again",
        431: "the headers are too long",
    }.items()
}


class Part(Loose):
    """A part of a message."""

    type: Name
    text: Text | None = None


class Turn(Loose):
    """A message of a talk."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(max_length=MOST_MESSAGES)] | None = None

    def said(self) -> str:
        """Its text. Raises Refused when it holds anything else."""
        if isinstance(self.content, list):
            for part in self.content:
                if part.type not in ("text", "input_text"):
                    raise Refused(400, "E-REQUEST", f"a part of type {part.type[:40]} cannot be read; only text can", param="messages")
            return "\n".join(part.text or "" for part in self.content)
        return self.content or ""


Talk = Annotated[list[Turn], Field(min_length=1, max_length=MOST_MESSAGES)]


def read(talk: Sequence[Turn]) -> list[Message]:
    """The messages as a model takes them."""
    roles: dict[str, Literal["system", "user", "assistant"]] = {"system": "system", "developer": "system", "assistant": "assistant"}
    return [Message(roles.get(turn.role, "user"), turn.said(), False) for turn in talk]


def speech(model: str, talk: Sequence[Message], wish: Wish) -> engines.Work[Spoken]:
    """The work that lets a model id answer a talk. Raises Refused when the last message is not the user's, or says nothing."""
    if talk[-1].role != "user" or not talk[-1].text.strip():
        raise Refused(400, "E-REQUEST", "the last message must be the user's, and say something", param="messages")

    def work(job: steps.Job, emit: engines.Emit, over: Any) -> Spoken:
        workspace, ledger = job.workspace, job.ledger
        if model in (engines.RAW, engines.BASE):
            which = "base" if model == engines.BASE else "current"
            made = speaking.plain(workspace, ledger, talk, wish, which=which, cancel=over)
        else:
            which = "current" if model == engines.MEMORY else model
            history = [one for one in talk[:-1] if one.role != "system"]
            made = speaking.converse(workspace, ledger, talk[-1].text, history, wish, which=which, cancel=over)
        return speaking.heard(made, lambda piece: emit(piece) if piece else None)

    return work


def citations(sources: Sequence[Citation]) -> list[dict[str, Any]]:
    """What was cited, by the numbers in the text."""
    return [
        {"number": number, "path": one.path, "lines": list(one.lines), "uid": one.uid, "quote": one.quote, "link": one.link}
        for number, one in enumerate(sources, 1)
    ]


def known(model: str, models: Sequence[Mapping[str, Any]], kind: str) -> str:
    """The id of a model as it is asked for (Ollama's clients add `:latest`). Raises Refused when there is none of this kind."""
    for name in (model, model.removesuffix(":latest")):
        if any(one["id"] == name and one["kind"] == kind for one in models):
            return name
    names = ", ".join(one["id"] for one in models if one["kind"] == kind) or "none yet: run vaultllm ingest"
    raise Refused(404, "E-REQUEST", f"there is no such model here; there are: {names}", param="model")


def refusal(found: Exception) -> Refused:
    """An error as a refusal."""
    if isinstance(found, Refused):
        return found
    if isinstance(found, engines.Busy):
        return Refused(429, "E-BUSY", "the model is busy and the queue is full; try again", wait=found.seconds)
    if isinstance(found, VaultllmError):
        status = _STATUS.get(found.code, 424)
        return Refused(status, found.code, str(found).removeprefix(found.code).lstrip(), wait=1 if status == 409 else 0)
    raise found


async def heard(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of work, unless the client goes away first: then the work is cancelled. Raises ConnectionError, and what the work does."""
    task = asyncio.ensure_future(work)

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    gone = asyncio.ensure_future(left())
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ConnectionResetError
        return task.result()
    finally:
        for one in (task, gone):
            one.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await one


async def whole(request: Request, engine: engines.Engine, work: engines.Work[T]) -> tuple[list[Any], T]:
    """All that work tells, and its result."""

    async def collect() -> tuple[list[Any], T]:
        told: list[Any] = []
        async with contextlib.aclosing(engine.speak(work)) as pieces:
            async for one in pieces:
                if isinstance(one, engines.Done):
                    return told, one.result
                told.append(one)
        raise ConnectionResetError

    return await heard(request, collect())


async def streamed(
    request: Request,
    engine: engines.Engine,
    work: engines.Work[T],
    show: Callable[[Any], str],
    last: Callable[[T], str],
    *,
    first: str = "",
    wrong: Callable[[dict[str, Any]], str],
    media_type: str,
    alive: str = "",
) -> StreamingResponse:
    """A response that grows as work tells something. What goes wrong before its first word is raised, later it is shown by `wrong`.

    `alive` is sent when nothing else is for long, where a protocol knows words that mean nothing.
    """
    pieces = engine.speak(work, _QUIET if alive else None)

    async def begin() -> Any:
        while (one := await anext(pieces)) is None:
            pass
        return one

    try:
        begun = await heard(request, begin())
    except BaseException:
        await pieces.aclose()
        raise

    async def body() -> AsyncIterator[str]:
        async with contextlib.aclosing(pieces):
            try:
                if first:
                    yield first
                one = begun
                while not isinstance(one, engines.Done):
                    yield alive if one is None else show(one)
                    one = await anext(pieces)
                yield last(one.result)
            except (VaultllmError, engines.Busy) as found:
                known = refusal(found)
                yield wrong(error(known.status, known.code, known.message))
            except (OSError, RuntimeError, ValueError, MemoryError, LookupError) as found:
                yield wrong(error(500, "E-INTERNAL", f"a bug of ours, or the disk's state ({type(found).__name__})"))

    return StreamingResponse(body(), media_type=media_type)


def line(value: Mapping[str, Any]) -> str:
    """One line of NDJSON."""
    return json.dumps(value, ensure_ascii=False) + "\n"


def event(value: Mapping[str, Any]) -> str:
    """One event of SSE."""
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"
