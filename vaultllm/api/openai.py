"""OpenAI's protocol (`/v1`), and LM Studio's, which is the same under `/api/v0`: models, chat completions, embeddings."""

from __future__ import annotations

import base64
import secrets
import struct
import time
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from vaultllm.api import wire
from vaultllm.api.engine import EMBED, Engine
from vaultllm.api.guard import Refused
from vaultllm.speaking import Spoken, Wish

_MOST_INPUTS = 2_048  # texts to embed at once


class StreamOptions(wire.Loose):
    """What a stream ends with."""

    include_usage: bool | None = None


class Chat(wire.Loose):
    """`POST /v1/chat/completions`."""

    model: wire.Name
    messages: wire.Talk
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    stop: Annotated[str, Field(max_length=300)] | wire.Stops | None = None
    seed: wire.Seed | None = None
    temperature: wire.Temperature | None = None
    top_p: wire.TopP | None = None
    max_tokens: wire.Tokens | None = None
    max_completion_tokens: wire.Tokens | None = None
    n: Literal[1] | None = None

    def wish(self) -> Wish:
        """How it is to be said."""
        stop = [self.stop] if isinstance(self.stop, str) else self.stop or []
        most = self.max_completion_tokens or self.max_tokens
        return Wish(most, self.temperature, self.top_p or 1.0, self.seed, tuple(one for one in stop if one))


class Embeddings(wire.Loose):
    """`POST /v1/embeddings`."""

    model: wire.Name
    input: (
        wire.Text
        | Annotated[list[wire.Text], Field(min_length=1, max_length=_MOST_INPUTS)]
        | Annotated[list[int] | list[list[int]], Field(min_length=1)]
    )
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: Annotated[int, Field(ge=1, le=10**6)] | None = None


def routes(engine: Engine) -> APIRouter:
    """Both protocols."""
    router = APIRouter(responses=wire.REFUSALS)

    async def chat(request: Request, asked: Chat) -> Response:
        models = await engine.look(engine.models)
        model = wire.known(asked.model, models, "chat")
        work = wire.speech(model, wire.read(asked.messages), asked.wish())
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": model}
        if not asked.stream:
            pieces, spoken = await wire.whole(request, engine, work)
            message = {"role": "assistant", "content": "".join(pieces), "refusal": None}
            choice = {"index": 0, "message": message, "finish_reason": spoken.finish, "logprobs": None}
            return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(spoken), **_about(spoken)})
        counted = bool(asked.stream_options and asked.stream_options.include_usage)
        head |= {"object": "chat.completion.chunk"} | ({"usage": None} if counted else {})

        def chunk(delta: dict[str, Any], finish: str | None = None, **more: Any) -> str:
            return wire.event({**head, "choices": [{"index": 0, "delta": delta, "finish_reason": finish, "logprobs": None}], **more})

        def last(spoken: Spoken) -> str:
            usage = wire.event({**head, "choices": [], "usage": _usage(spoken)}) if counted else ""
            return chunk({}, spoken.finish, **_about(spoken)) + usage + "data: [DONE]\n\n"

        return await wire.streamed(
            request,
            engine,
            work,
            lambda piece: chunk({"content": piece}),
            last,
            first=chunk({"role": "assistant", "content": ""}),
            wrong=lambda found: wire.event({"error": found}),
            media_type="text/event-stream",
            alive=": the model is at work\n\n",
        )

    async def embeddings(asked: Embeddings) -> dict[str, Any]:
        models = await engine.look(engine.models)
        model = wire.known(asked.model, models, "embeddings")
        (dims,) = [one["dims"] for one in models if one["id"] == EMBED]
        texts = [asked.input] if isinstance(asked.input, str) else asked.input
        if not all(isinstance(text, str) for text in texts):
            raise Refused(400, "E-REQUEST", "tokens cannot be embedded, only texts: no tokenizer of ours is OpenAI's", param="input")
        if asked.dimensions not in (None, dims):
            raise Refused(400, "E-REQUEST", f"the vectors have {dims} dimensions; memory.dims changes that", param="dimensions")
        vectors, count = await engine.look(lambda job: engine.embed(job, [str(text) for text in texts]))
        packed = asked.encoding_format == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": _packed(vector) if packed else vector}
            for index, vector in enumerate(vectors)
        ]
        return {"object": "list", "data": data, "model": model, "usage": {"prompt_tokens": count, "total_tokens": count}}

    async def models() -> dict[str, Any]:
        found = await engine.look(engine.models)
        listed = [
            {"id": one["id"], "object": "model", "created": one["created"], "owned_by": "vaultllm", "description": one["about"]}
            for one in found
        ]
        return {"object": "list", "data": listed}

    async def model(name: str) -> dict[str, Any]:
        return _one((await models())["data"], name)

    async def studio_models() -> dict[str, Any]:
        found = await engine.look(engine.models)
        return {"object": "list", "data": [_studio(one) for one in found]}

    async def studio_model(name: str) -> dict[str, Any]:
        return _one((await studio_models())["data"], name)

    for prefix, all_, one in (("/v1", models, model), ("/api/v0", studio_models, studio_model)):
        router.add_api_route(f"{prefix}/chat/completions", chat, methods=["POST"], name=f"{prefix} chat", response_model=None)
        router.add_api_route(f"{prefix}/embeddings", embeddings, methods=["POST"], name=f"{prefix} embeddings")
        router.add_api_route(f"{prefix}/models", all_, methods=["GET"], name=f"{prefix} models")
        router.add_api_route(f"{prefix}/models/{{name}}", one, methods=["GET"], name=f"{prefix} model")
    return router


def _one(listed: list[dict[str, Any]], name: str) -> dict[str, Any]:
    for one in listed:
        if one["id"] == name:
            return one
    raise Refused(404, "E-REQUEST", "there is no such model here", param="model")


def _studio(one: dict[str, Any]) -> dict[str, Any]:
    """A model as LM Studio describes it; Smart Connections takes those of type `embeddings`."""
    kind = "embeddings" if one["kind"] == "embeddings" else "llm"
    state = {"publisher": "vaultllm", "arch": "vaultllm", "compatibility_type": "safetensors", "quantization": "none", "state": "loaded"}
    return {"id": one["id"], "object": "model", "type": kind, **state,
            "max_context_length": one["context"], "loaded_context_length": one["context"]}  # fmt: skip


def _usage(spoken: Spoken) -> dict[str, int]:
    total = spoken.prompt_tokens + spoken.tokens
    return {"prompt_tokens": spoken.prompt_tokens, "completion_tokens": spoken.tokens, "total_tokens": total}


def _about(spoken: Spoken) -> dict[str, Any]:
    """What no other server tells: what was cited, and who spoke."""
    return {"citations": wire.citations(spoken.sources), "vaultllm": {"model": spoken.model, "run": spoken.run or None}}


def _packed(vector: list[float]) -> str:
    """As the openai package asks for them: base64 of little-endian float32."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode("ascii")
