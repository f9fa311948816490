"""Ollama's protocol, as far as its clients ask us: models, chat, generate, embeddings; NDJSON streams."""

from __future__ import annotations

import datetime as dt
import hashlib
from typing import Annotated, Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field, model_validator

from vaultllm import __version__
from vaultllm.api import wire
from vaultllm.api.engine import Engine
from vaultllm.api.guard import Refused
from vaultllm.schema import Message
from vaultllm.speaking import Spoken, Wish

_MOST_INPUTS = 2_048


class Options(wire.Loose):
    """How it is to be said; what we do not know is passed over."""

    temperature: wire.Temperature | None = None
    top_p: wire.TopP | None = None
    seed: wire.Seed | None = None
    num_predict: Annotated[int, Field(ge=-2, le=10**6)] | None = None
    stop: Annotated[str, Field(max_length=300)] | wire.Stops | None = None

    def wish(self) -> Wish:
        """As our models take it; -1 and -2 tokens mean as many as come."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        most = self.num_predict if self.num_predict and self.num_predict > 0 else None
        return Wish(most, self.temperature, self.top_p or 1.0, self.seed, tuple(one for one in stop if one))


class OllamaChat(wire.Loose):
    """`POST /api/chat`."""

    model: wire.Name
    messages: wire.Talk
    stream: bool | None = None
    options: Options | None = None


class Generate(wire.Loose):
    """`POST /api/generate`."""

    model: wire.Name
    prompt: wire.Text
    system: wire.Text | None = None
    stream: bool | None = None
    options: Options | None = None


class Embed(wire.Loose):
    """`POST /api/embed`."""

    model: wire.Name
    input: wire.Text | Annotated[list[wire.Text], Field(max_length=_MOST_INPUTS)]


class OldEmbeddings(wire.Loose):
    """`POST /api/embeddings`, Ollama's older form."""

    model: wire.Name
    prompt: wire.Text


class Show(wire.Loose):
    """`POST /api/show`."""

    model: wire.Name | None = None
    name: wire.Name | None = None

    @model_validator(mode="after")
    def _named(self) -> Show:
        if not (self.model or self.name):
            raise ValueError("name a model")
        return self


def routes(engine: Engine) -> APIRouter:
    """Ollama's part of `/api`."""
    router = APIRouter(prefix="/api", responses=wire.REFUSALS)

    async def said(request: Request, name: str, talk: list[Message], options: Options | None, stream: bool | None, chat: bool) -> Response:
        model = wire.known(name, await engine.look(engine.models), "chat")
        work = wire.speech(model, talk, (options or Options()).wish())

        def part(text: str, **more: Any) -> dict[str, Any]:
            words = {"message": {"role": "assistant", "content": text}} if chat else {"response": text}
            return {"model": name, "created_at": _now(), **words, "done": False, **more}

        def last(spoken: Spoken, text: str = "") -> dict[str, Any]:
            counts = {"prompt_eval_count": spoken.prompt_tokens, "eval_count": spoken.tokens}
            times = dict.fromkeys(("total_duration", "load_duration", "prompt_eval_duration", "eval_duration"), 0)
            return part(text, citations=wire.citations(spoken.sources), **counts, **times) | {"done": True, "done_reason": spoken.finish}

        if stream is False:
            pieces, spoken = await wire.whole(request, engine, work)
            return JSONResponse(last(spoken, "".join(pieces)))
        return await wire.streamed(
            request,
            engine,
            work,
            lambda piece: wire.line(part(piece)),
            lambda spoken: wire.line(last(spoken)),
            wrong=lambda found: wire.line({"error": found["message"], "code": found["code"]}),
            media_type="application/x-ndjson",
        )

    @router.post("/chat", response_model=None)
    async def chat(request: Request, asked: OllamaChat) -> Response:
        return await said(request, asked.model, wire.read(asked.messages), asked.options, asked.stream, True)

    @router.post("/generate", response_model=None)
    async def generate(request: Request, asked: Generate) -> Response:
        system = [Message("system", asked.system, False)] if asked.system else []
        return await said(request, asked.model, [*system, Message("user", asked.prompt, False)], asked.options, asked.stream, False)

    @router.post("/embed")
    async def embed(asked: Embed) -> dict[str, Any]:
        vectors, count = await _vectors(engine, asked.model, [asked.input] if isinstance(asked.input, str) else asked.input)
        return {"model": asked.model, "embeddings": vectors, "total_duration": 0, "load_duration": 0, "prompt_eval_count": count}

    @router.post("/embeddings")
    async def embeddings(asked: OldEmbeddings) -> dict[str, Any]:
        vectors, _ = await _vectors(engine, asked.model, [asked.prompt])
        return {"embedding": vectors[0]}

    @router.get("/tags")
    async def tags() -> dict[str, Any]:
        return {"models": [_tag(one) for one in await engine.look(engine.models)]}

    @router.post("/show")
    async def show(asked: Show) -> dict[str, Any]:
        name = asked.model or asked.name or ""
        for one in await engine.look(engine.models):
            if one["id"] in (name, name.removesuffix(":latest")):
                info = {"general.architecture": "vaultllm", "vaultllm.context_length": one["context"]}
                info |= {"vaultllm.embedding_length": one["dims"]} if one["kind"] == "embeddings" else {}
                able = ["embedding"] if one["kind"] == "embeddings" else ["completion"]
                return {"modelfile": "", "template": "", "details": _details(one), "model_info": info, "capabilities": able}
        raise Refused(404, "E-REQUEST", "there is no such model here", param="model")

    @router.get("/version")
    async def version() -> dict[str, str]:
        return {"version": __version__}

    return router


async def _vectors(engine: Engine, name: str, texts: list[str]) -> tuple[list[list[float]], int]:
    wire.known(name, await engine.look(engine.models), "embeddings")
    return await engine.look(lambda job: engine.embed(job, texts)) if texts else ([], 0)


def _tag(one: dict[str, Any]) -> dict[str, Any]:
    digest = hashlib.sha256(one["id"].encode()).hexdigest()
    changed = dt.datetime.fromtimestamp(one["created"], dt.UTC).isoformat()
    return {"name": one["id"], "model": one["id"], "modified_at": changed, "size": 0, "digest": digest, "details": _details(one)}


def _details(one: dict[str, Any]) -> dict[str, Any]:
    return {"parent_model": "", "format": "safetensors", "family": "vaultllm", "families": ["vaultllm"], "parameter_size": "",
            "quantization_level": "", "about": one["about"]}  # fmt: skip


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat()
