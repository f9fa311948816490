"""All protocols as one application behind the guard. Knows nothing about sockets (`server.py`)."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import Response
from starlette.exceptions import HTTPException
from starlette.routing import Route

from vaultllm import __version__
from vaultllm.api import ollama, openai, own, search, wire
from vaultllm.api.engine import Busy, Engine
from vaultllm.api.guard import App, Guard, Receive, Refused, Rules, Scope, Send, bug
from vaultllm.api.training import Training
from vaultllm.errors import VaultllmError

_LOOK = 15.0  # seconds between two looks whether the model is idle


def application(engine: Engine, rules: Rules) -> App:
    """The whole, as uvicorn takes it."""
    training = Training(engine.workspace)
    door = _MCP(engine)

    @contextlib.asynccontextmanager
    async def life(app: FastAPI) -> AsyncIterator[None]:
        watching = asyncio.create_task(_let_go(engine))
        try:
            yield
        finally:
            watching.cancel()
            await door.close()
            await asyncio.to_thread(training.stop)
            await asyncio.to_thread(engine.close)

    app = FastAPI(title="vaultllm", version=__version__, lifespan=life, docs_url=None, redoc_url=None, redirect_slashes=False)
    for part in (openai.routes(engine), ollama.routes(engine), search.routes(engine), own.routes(engine, training)):
        app.include_router(part)
    for kind in (VaultllmError, Busy, Refused, RequestValidationError, HTTPException):
        app.add_exception_handler(kind, _refuse)
    app.add_exception_handler(Exception, _bug)  # it is raised again, and told by the guard
    app.openapi = lambda: _described(app)  # type: ignore[method-assign]
    app.router.routes.append(Route("/mcp", endpoint=door))
    return Guard(app, rules)


async def _let_go(engine: Engine) -> None:
    while True:
        await asyncio.sleep(min(_LOOK, 30 * engine.idle_minutes))
        await asyncio.to_thread(engine.release_if_idle)


async def _refuse(request: Request, found: Exception) -> Response:
    if isinstance(found, RequestValidationError):
        first = found.errors()[0]  # never what was sent: it may be a note
        where = ".".join(str(part) for part in first["loc"][1:]) or "body"
        refused = Refused(400, "E-REQUEST", f"{where}: {first['msg']}"[:300], param=where[:100])
    elif isinstance(found, HTTPException):
        what = {404: "there is nothing at this address", 405: "not by this method"}.get(found.status_code, "refused")
        refused = Refused(found.status_code, "E-REQUEST", f"{what}; see /openapi.json")
    else:
        refused = wire.refusal(found)
    headers = {"retry-after": str(refused.wait)} if refused.wait else {}
    headers |= dict(getattr(found, "headers", None) or {})  # `allow`
    return Response(refused.body(), refused.status, headers, "application/json")


async def _bug(request: Request, found: Exception) -> Response:
    return Response(bug(found).body(), 500, media_type="application/json")


def _described(app: FastAPI) -> dict[str, Any]:
    """OpenAPI, without the 422 that fastapi would answer a wrong request with: ours is a 400, and 422 is for the vault's state."""
    if app.openapi_schema is None:
        from fastapi.openapi.utils import get_openapi

        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        schema["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{"token": []}]
        for unused in ("HTTPValidationError", "ValidationError"):
            schema["components"]["schemas"].pop(unused, None)
        app.openapi_schema = schema
    return app.openapi_schema


class _MCP:
    """MCP over HTTP at `/mcp`: its SDK, which takes a second to import, is loaded with the first request."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._manager: Any = None
        self._runs: asyncio.Task[None] | None = None
        self._end = asyncio.Event()
        self._opening = asyncio.Lock()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if importlib.util.find_spec("mcp") is None:
            raise Refused(404, "E-REQUEST", "MCP is not installed here: pip install 'vaultllm[mcp]'")
        async with self._opening:
            if self._manager is None:
                await self._open()
        await self._manager.handle_request(scope, receive, send)

    async def _open(self) -> None:
        from vaultllm.api import tools

        self._manager = tools.http_sessions(self.engine)
        ready = asyncio.Event()

        async def live() -> None:
            async with self._manager.run():
                ready.set()
                await self._end.wait()

        self._runs = asyncio.create_task(live())
        await ready.wait()

    async def close(self) -> None:
        self._end.set()
        if self._runs is not None:
            with contextlib.suppress(Exception):
                await self._runs
