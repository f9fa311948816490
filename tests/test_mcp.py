"""MCP, by the SDK's own client: over a real process and over HTTP behind the guard."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from mcp.client import Client
from mcp.client.stdio import StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from tests import served
from vaultllm import config, steps, vault

REPO = Path(__file__).resolve().parents[1]
CODE = "import sys; from vaultllm import config; from vaultllm.api import tools; tools.stdio(config.open_workspace(*sys.argv[1:]))"
BAD = "```dataviewjs\napp.vault.adapter.remove('x')\n```\n\n<% tp.system.prompt() %> ![[Bread]] Basil likes the morning sun on the sill."


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> config.Workspace:
    """A vault without a model: no process has to import torch."""
    return served.workspace(tmp_path_factory.mktemp("mcp"), model=False)


@contextlib.asynccontextmanager
async def process(opened: config.Workspace) -> AsyncIterator[Client]:
    kept = {name: value for name, value in os.environ.items() if name.startswith(("OMP", "XDG", "LANG"))}
    environment = kept | {"PYTHONPATH": str(REPO)}
    command = StdioServerParameters(
        command=sys.executable, args=["-c", CODE, str(opened.vault), str(opened.state)], env=environment, cwd=str(opened.state)
    )
    with open(os.devnull, "w", encoding="utf-8") as nowhere:
        async with Client(stdio_client(command, errlog=nowhere), read_timeout_seconds=100) as client:
            yield client


@contextlib.asynccontextmanager
async def http(here: served.Served, token: str) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {token}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=100, trust_env=False) as wire,
        Client(streamable_http_client(f"{here.url}/mcp", http_client=wire)) as client,
    ):
        yield client


async def used(client: Client, opened: config.Workspace) -> dict[str, Any]:
    """What each tool says, and what it did."""
    tools = {one.name: one for one in (await client.list_tools()).tools}
    found: dict[str, Any] = {"tools": tools}

    async def call(name: str, **arguments: Any) -> dict[str, Any]:
        result = await client.call_tool(name, arguments)
        assert not result.is_error, result
        assert result.structured_content is not None
        return result.structured_content

    found["search"] = await call("search", query="насос влажность", k=3)
    found["scene"] = await call("fetch", id=found["search"]["results"][0]["id"])
    found["note"] = await call("fetch", id="Bread.md")
    found["ask"] = await call("ask", question="Когда включается насос?")
    found["remember"] = await call("remember", text=BAD, title="Basil [[Bread]]\nvaultllm: x", tags=["herbs", "a: b", "!!"])
    found["again"] = await call("search", query="basil morning sun")
    found["recent"] = await call("recent", k=50)
    wrong: list[tuple[str, dict[str, Any]]] = [("fetch", {"id": "../outside.md"}), ("search", {"query": "x", "k": 10**9}), ("nothing", {})]
    for name, arguments in [*wrong, ("remember", {"text": "  "})]:
        found[f"bad {name}"] = await client.call_tool(name, arguments)
    return found


def check(found: dict[str, Any], opened: config.Workspace) -> None:
    tools = found["tools"]
    assert set(tools) == {"search", "fetch", "ask", "remember", "recent"}
    for name, tool in tools.items():
        hints = tool.annotations
        assert (hints.read_only_hint, hints.destructive_hint, hints.open_world_hint) == (name != "remember", False, False)
        assert tool.output_schema["type"] == "object"
        assert tool.description
    best = found["search"]["results"][0]
    assert (best["path"], best["title"].partition(" ")[0]) == ("Сад/Полив.md", "Полив")
    assert best["url"].startswith("obsidian://open?vault=vault&file=%D0%A1")
    assert "тридцати двух процентов" in best["text"]
    assert best["text"] in found["scene"]["text"]
    assert found["note"]["text"].startswith("[Bread.md, lines ")
    assert "fourteen hours" in found["note"]["text"]
    assert found["ask"]["sources"][0]["path"] == "Сад/Полив.md"
    assert found["ask"]["sources"][0]["quote"] in found["ask"]["answer"]
    path = found["remember"]["path"]
    assert path.startswith("vaultllm/Remembered/")
    text = vault.read(opened.vault, path, 10**6).decode()
    assert "\nvaultllm: remembered\n" in text
    assert 'tags: ["vaultllm/remembered", "herbs", "ab"]' in text
    assert "dataviewjs" not in text
    assert "<%" not in text.replace("\\<%", "")
    assert "![[" not in text
    assert path in {one["path"] for one in found["again"]["results"]}  # it is found again,
    assert path not in {one["path"] for one in found["recent"]["results"]}  # but is none of the user's own
    assert {one["path"] for one in found["recent"]["results"]} >= {"Bread.md", "Chats/oven.md"}
    for name in ("bad fetch", "bad search", "bad nothing", "bad remember"):
        assert found[name].is_error, name
        assert "Traceback" not in str(found[name].content)


def test_each_tool_over_a_process_of_its_own(opened: config.Workspace) -> None:
    async def talk() -> dict[str, Any]:
        async with process(opened) as client:
            return await used(client, opened)

    before = {path.relative_to(opened.vault) for path in opened.vault.rglob("*.md")}
    check(asyncio.run(talk()), opened)
    made = {path.relative_to(opened.vault) for path in opened.vault.rglob("*.md")} - before
    assert [path.parent.as_posix() for path in made] == ["vaultllm/Remembered"]


def test_what_was_remembered_is_never_learnt_nor_quoted_as_the_users_words(opened: config.Workspace) -> None:
    from vaultllm.api import tools

    job = steps.Job(opened)
    path = tools._remember(job, "The zeppelin lands at noon on the roof garden.", "", [])
    (scene,) = steps.show_scenes(job, path)["scenes"]
    assert (scene["trust"], scene["train"]) == ("generated", False)
    assert steps.search(job, "zeppelin roof garden")["hits"][0]["path"] == path
    assert path not in {one["path"] for one in steps.ask(job, "When does the zeppelin land?", write=False)["sources"]}
    job.close()


def test_each_tool_over_http_behind_the_guard(opened: config.Workspace) -> None:
    with served.open_server(opened) as here:

        async def talk() -> dict[str, Any]:
            async with http(here, here.token) as client:
                return await used(client, opened)

        check(asyncio.run(talk()), opened)

        async def stranger() -> None:
            async with http(here, "x" * 43) as client:
                await client.list_tools()

        with pytest.raises(Exception):  # noqa: B017, PT011 - whatever the SDK makes of a 401
            asyncio.run(stranger())
        asked = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        for headers, status in (
            ({"Origin": "https://evil.example"}, 403),
            ({"Authorization": "Bearer x"}, 401),
            ({"Host": "evil.example"}, 403),
        ):
            with here.client(**headers) as page:
                assert page.post("/mcp", json=asked).status_code == status
