"""The protocols, by real clients over a real socket: what they need is there, and says what it should."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import openai
import pytest

from tests import served
from vaultllm import __version__, answer, steps
from vaultllm.api import engine as engines
from vaultllm.api import keys, server, training
from vaultllm.errors import ConfigError, UsageError
from vaultllm.models import hf

pytestmark = pytest.mark.usefixtures("one_thread")
REPO = Path(__file__).resolve().parents[1]
CONTEXT = 1024  # tokens: an answer that fills it takes seconds


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Served]:
    with served.open_server(served.workspace(tmp_path_factory.mktemp("api"), context=CONTEXT)) as running:
        yield running


@pytest.fixture(scope="module")
def ai(here: served.Served) -> Iterator[openai.OpenAI]:
    wire = httpx.Client(trust_env=False, timeout=300)
    with openai.OpenAI(base_url=f"{here.url}/v1", api_key=here.token, max_retries=0, http_client=wire) as client:
        yield client


ASKED: Any = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Когда включается насос?"}]


# -- OpenAI


def test_the_openai_package_lists_models_and_one_of_them(here: served.Served, ai: openai.OpenAI) -> None:
    names = [one.id for one in ai.models.list()]
    assert names == ["vaultllm", "vaultllm:raw", "vaultllm:base", "vaultllm-embed"]
    assert ai.models.retrieve("vaultllm:raw").owned_by == "vaultllm"
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("gpt-9")


def test_memory_answers_with_citations_in_the_text_and_as_a_field(here: served.Served, ai: openai.OpenAI) -> None:
    found = ai.chat.completions.create(model="vaultllm", messages=ASKED)
    text = found.choices[0].message.content or ""
    assert "Насос включается, когда влажность почвы ниже тридцати двух процентов." in text
    assert "[[Сад/Полив#Полив#Насос|" in text
    (first, *_) = found.model_extra["citations"]  # type: ignore[index]
    assert (first["number"], first["path"], first["lines"]) == (1, "Сад/Полив.md", [5, 5])
    assert first["quote"] in (here.workspace.vault / first["path"]).read_text(encoding="utf-8")
    assert found.usage is not None
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens > 50


def test_a_stream_says_what_the_whole_says_and_ends_with_usage(ai: openai.OpenAI) -> None:
    for model in ("vaultllm", "vaultllm:raw"):
        whole = ai.chat.completions.create(model=model, messages=ASKED, max_tokens=6)
        chunks = list(
            ai.chat.completions.create(model=model, messages=ASKED, max_tokens=6, stream=True, stream_options={"include_usage": True})
        )
        assert chunks[0].choices[0].delta.role == "assistant"
        assert "".join(one.choices[0].delta.content or "" for one in chunks if one.choices) == whole.choices[0].message.content
        assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason == "length"
        assert chunks[-1].choices == []
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 6
        assert [one.usage for one in chunks[:-1]] == [None] * (len(chunks) - 1)
        assert len({one.id for one in chunks}) == 1


def test_how_it_is_said_is_obeyed(ai: openai.OpenAI) -> None:
    def said(**options: Any) -> openai.types.chat.ChatCompletion:
        return ai.chat.completions.create(model="vaultllm:base", messages=ASKED, max_completion_tokens=12, **options)

    drawn = [said(temperature=2.0, seed=seed).choices[0].message.content for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert said(temperature=2.0, top_p=1e-6, seed=1).choices[0].message.content == said().choices[0].message.content
    text = drawn[0] or ""
    stop = text[len(text) // 2]
    cut = said(temperature=2.0, seed=1, stop=[stop]).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")


def test_what_cannot_be_answered_is_an_error_that_the_package_knows(ai: openai.OpenAI) -> None:
    create = ai.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="there are: vaultllm") as missing:
        create(model="gpt-9", messages=ASKED)
    assert (missing.value.code, missing.value.type) == ("E-REQUEST", "not_found_error")
    wrong: list[dict[str, Any]] = [
        {"messages": []},
        {"messages": [*ASKED, {"role": "assistant", "content": "no"}]},
        {"messages": [{"role": "user", "content": " "}]},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
        {"messages": ASKED, "temperature": 3},
        {"messages": ASKED, "max_tokens": 0},
        {"messages": ASKED, "n": 2},
        {"messages": ASKED, "model": "vaultllm-embed"},
        {"messages": [{"role": "user", "content": "слово " * 2000}], "model": "vaultllm:raw"},
    ]
    for options in wrong:
        with pytest.raises((openai.BadRequestError, openai.NotFoundError)) as refused:
            create(**{"model": "vaultllm", **options})
        assert refused.value.code in ("E-REQUEST", "E-LONG"), options
    with pytest.raises(openai.AuthenticationError):
        ai.with_options(api_key="x" * 43).models.list()


def test_parts_of_text_and_a_talk_are_read(ai: openai.OpenAI) -> None:
    talk: Any = [
        {"role": "user", "content": [{"type": "text", "text": "Tell me of rye bread"}]},
        {"role": "assistant", "content": "Rye bread needs fourteen hours."},
        {"role": "user", "content": [{"type": "text", "text": "rye bread proof"}, {"type": "text", "text": "how long?"}]},
    ]
    found = ai.chat.completions.create(model="vaultllm", messages=talk)
    assert "fourteen hours" in (found.choices[0].message.content or "")
    long: Any = [{"role": "user", "content": "слово " * 60}, {"role": "assistant", "content": "да"}] * 12 + [
        {"role": "user", "content": "Да?"}
    ]
    assert ai.chat.completions.create(model="vaultllm:raw", messages=long).usage.prompt_tokens < CONTEXT  # type: ignore[union-attr]


def test_embeddings_come_as_floats_and_as_base64_for_one_and_for_many(ai: openai.OpenAI) -> None:
    packed = ai.embeddings.create(model="vaultllm-embed", input=["ржаной хлеб rye bread", "насос"])  # the package asks for base64
    plain = ai.embeddings.create(model="vaultllm-embed", input="насос", encoding_format="float")
    assert [one.index for one in packed.data] == [0, 1]
    assert plain.data[0].embedding == pytest.approx(packed.data[1].embedding, abs=1e-6)
    assert any(plain.data[0].embedding)
    assert packed.usage.prompt_tokens == 5
    with pytest.raises(openai.BadRequestError, match="tokens cannot be embedded"):
        ai.embeddings.create(model="vaultllm-embed", input=[[1, 2, 3]])
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        ai.embeddings.create(model="vaultllm-embed", input="x", dimensions=4096)


# -- Ollama, LM Studio, Copilot's search


def test_smart_connections_finds_its_embedder_by_ollamas_protocol_and_by_lm_studios(here: served.Served) -> None:
    """Its adapters can be given an address, but no header; their bodies name no content type."""
    with httpx.Client(base_url=f"{here.url}/key/{here.token}", timeout=60, trust_env=False) as host:
        names = [one["name"] for one in host.get("/api/tags").json()["models"]]
        (embedder,) = [name for name in names if "embed" in name]
        shown = host.post("/api/show", content=json.dumps({"model": embedder})).json()
        (context,) = [value for key, value in shown["model_info"].items() if "context_length" in key]
        (dims,) = [value for key, value in shown["model_info"].items() if "embedding_length" in key]
        made = host.post("/api/embed", content=json.dumps({"model": embedder, "input": ["насос", "bread"]})).json()
        assert context > 0
        assert [len(vector) for vector in made["embeddings"]] == [dims, dims]
        assert host.post("/api/embeddings", json={"model": embedder, "prompt": "насос"}).json()["embedding"] == made["embeddings"][0]
        listed = host.get("/api/v0/models").json()
        (studio,) = [one["id"] for one in listed["data"] if one["type"] == "embeddings"]
        data = host.post("/api/v0/embeddings", json={"model": studio, "input": ["насос"]}).json()["data"]
        assert data[0]["embedding"] == made["embeddings"][0]
        assert host.get("/api/version").json() == {"version": __version__}


def test_ollamas_chat_and_generate_stream_lines_and_answer_whole(here: served.Served) -> None:
    with here.client() as client:
        lines = [
            json.loads(line) for line in client.post("/api/chat", json={"model": "vaultllm:latest", "messages": ASKED}).text.splitlines()
        ]
        assert [one["done"] for one in lines] == [False] * (len(lines) - 1) + [True]
        streamed = "".join(one["message"]["content"] for one in lines)
        whole = client.post("/api/chat", json={"model": "vaultllm", "messages": ASKED, "stream": False}).json()
        assert whole["message"]["content"] == streamed
        assert "тридцати двух процентов" in streamed
        assert lines[-1]["citations"] == whole["citations"] != []
        asked = {"model": "vaultllm:raw", "prompt": "Once", "system": "s", "stream": False, "options": {"num_predict": 3, "temperature": 0}}
        once = client.post("/api/generate", json=asked).json()
        assert (once["eval_count"], once["done_reason"]) == (3, "length")
        assert client.post("/api/show", json={"model": "llama3"}).status_code == 404


def test_copilots_search_service_finds_notes_by_the_name_it_gave_the_vault(here: served.Served) -> None:
    with here.client() as client:
        assert client.get("/v0/health").json()["status"] == "ok"
        assert client.get("/v0/folder", params={"path": "vault"}).status_code == 200
        assert client.get("/v0/folder", params={"path": "other"}).status_code == 404
        found = client.post("/v0/search", json={"query": "hot oven", "folder_name": "Mine", "limit": 999}).json()["results"]
        assert {one["path"] for one in found} >= {"Mine/Bread.md", "Mine/Oven.md"}
        assert all(0 <= one["score"] <= 1 and one["chunk_text"] and one["mtime"] for one in found)
        late = client.post("/v0/search", json={"query": "hot oven", "limit": 9, "filters": [{"field": "mtime", "gte": 4e12}]}).json()
        assert late == {"results": []}
        assert client.post("/v0/search", json={"query": "x", "filters": [{"field": "colour"}]}).status_code == 400
        related = client.post("/v0/search/related", json={"file_path": "vault/Oven.md", "limit": 5}).json()["results"]
        assert "vault/Bread.md" in {one["path"] for one in related}
        assert "vault/Oven.md" not in {one["path"] for one in related}


# -- our own


def test_our_own_protocol_does_what_the_command_line_does(here: served.Served) -> None:
    job = steps.Job(here.workspace)
    with here.client() as client:
        own = "/api/vaultllm"
        assert client.get(f"{own}/status").json()["notes"] == len(served.NOTES)
        told = client.post(f"{own}/search", json={"query": "tag:bread rye", "k": 3}).json()
        same = steps.search(job, "tag:bread rye", 3)
        assert told["hits"] == same["hits"] != []
        related = client.get(f"{own}/related", params={"path": "Oven.md", "k": 3}).json()["hits"]
        assert "Bread.md" in {one["path"] for one in related}
        assert set(related[0]) == set(same["hits"][0])
        assert client.get(f"{own}/related", params={"path": "None.md"}).status_code == 404
        assert client.post(f"{own}/ingest", json={}).json()["notes"]["seen"] >= len(served.NOTES)
        assert client.post(f"{own}/rollback").json()["error"]["code"] == "E-USAGE"
        assert client.post(f"{own}/search", json={"query": "nonsense:x y"}).status_code in (200, 400)
        assert client.post(f"{own}/search", json={"query": "x", "hits": 3}).status_code == 400  # not a name of ours
    job.close()


def test_an_answer_becomes_a_note_unless_asked_not_to_and_can_be_rated(here: served.Served) -> None:
    vault = here.workspace.vault
    with here.client() as client:
        quiet = client.post("/api/vaultllm/ask", json={"question": "Когда включается насос?", "write": False}).json()
        assert quiet["note"] is None
        assert quiet["sources"]
        lines = [
            json.loads(line) for line in client.post("/api/vaultllm/ask", json={"question": "rye bread?", "stream": True}).text.splitlines()
        ]
        note = lines[-1]["done"]["note"]
        assert (vault / note).is_file()
        assert any("progress" in one for one in lines)
        rated = client.post("/api/vaultllm/rate", json={"answer": note, "rating": "good"}).json()
        assert (rated["rating"], rated["before"], rated["property"]) == ("good", "", "vaultllm_rating")
        (vault / note).rename(vault / "vaultllm/Answers/moved.md")  # its id stays in it
        again = client.post("/api/vaultllm/rate", json={"answer": "vaultllm/Answers/moved.md", "rating": "bad"}).json()
        assert (again["answer"], again["before"]) == (rated["answer"], "good")
        assert client.post("/api/vaultllm/rate", json={"answer": "Bread.md", "rating": "bad"}).status_code == 422
        before = (vault / "Chats/open.md").read_text(encoding="utf-8")
        replied = client.post("/api/vaultllm/reply", json={"path": "Chats/open.md"}).json()
        assert replied["sources"][0]["path"] == "Bread.md"
        assert (vault / "Chats/open.md").read_text(encoding="utf-8").startswith(before)


def test_what_is_forgotten_needs_a_yes(here: served.Served) -> None:
    with here.client() as client:
        assert client.post("/api/vaultllm/forget", json={"what": "নদী.md"}).status_code == 400
        plan = client.post("/api/vaultllm/forget", json={"what": "নদী.md", "dry_run": True})
        assert plan.status_code == 200
        assert client.post("/api/vaultllm/search", json={"query": "নদীর জল"}).json()["hits"]
        assert client.post("/api/vaultllm/forget", json={"what": "নদী.md", "yes": True}).status_code == 200
        found = client.post("/api/vaultllm/search", json={"query": "নদীর জল"}).json()["hits"]
        assert "নদী.md" not in {one["path"] for one in found}
        assert client.post("/api/vaultllm/forget", json={"what": "নদী.md", "undo": True}).status_code == 200


CHILD = """
import json, sys, time, signal
asked = json.loads(sys.stdin.readline())
def tell(**facts):
    print(json.dumps(facts), flush=True)
tell(state="running", phase="LoRA", done=0.5, step=3, minutes=asked["minutes"])
if asked["minutes"] == 1:
    tell(state="done", result={"status": "nothing new"})
else:
    time.sleep(60)
"""


def test_a_training_runs_beside_the_answers_and_tells_how_far_it_is(here: served.Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "COMMAND", (sys.executable, "-c", CHILD))
    with here.client() as client:

        def until(state: str) -> dict[str, Any]:
            for _ in range(500):
                found: dict[str, Any] = client.get("/api/vaultllm/retrain").json()
                if found["state"] == state and found.get("phase") != "starting":
                    return found
                time.sleep(0.02)
            raise AssertionError(found)

        assert client.post("/api/vaultllm/retrain", json={"minutes": 1}).status_code == 202
        assert until("done")["result"] == {"status": "nothing new"}
        client.post("/api/vaultllm/retrain", json={"minutes": 2})
        assert until("running") == {"state": "running", "phase": "LoRA", "done": 0.5, "step": 3, "minutes": 2}
        assert client.post("/api/vaultllm/retrain", json={}).status_code == 409
        assert client.get("/api/vaultllm/status").json()["training"]["phase"] == "LoRA"
        assert client.delete("/api/vaultllm/retrain").json()["error"]["code"] == "E-STOPPED"


@pytest.mark.children
def test_the_child_that_trains_says_what_retrain_says(here: served.Served) -> None:
    asked = {"vault": str(here.workspace.vault), "state": str(here.workspace.state), "minutes": 1, "min_new": 10**6}
    environment = os.environ | {"PYTHONPATH": str(REPO)}
    done = subprocess.run(training.COMMAND, input=json.dumps(asked) + "\n", capture_output=True, text=True, timeout=100, env=environment)
    last = json.loads(done.stdout.splitlines()[-1])
    assert last["state"] == "done", done
    assert last["result"]["status"] == "nothing new"


@pytest.mark.parametrize("kind", ["sh", "python"])
def test_the_examples_of_the_document_do_what_they_say(
    here: served.Served, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if kind == "sh" and not (shutil.which("curl") and shutil.which("bash")):
        pytest.skip("no curl here")
    text = (REPO / "docs" / "api.md").read_text(encoding="utf-8")
    examples = re.findall(rf'```{kind} title="([^"]+)"\n(.*?)```', text, re.DOTALL)
    assert len(examples) >= {"sh": 8, "python": 1}[kind]
    for name, value in (("API", here.url), ("TOKEN", here.token), ("no_proxy", "*")):
        monkeypatch.setenv(name, value)
    expected = {"models": '"vaultllm-embed"', "embeddings": '"embedding"', "status": '"notes":6', "stream": "data: [DONE]"}
    for title, code in examples:
        if kind == "sh":
            said = subprocess.run(["bash", "-euc", code], capture_output=True, encoding="utf-8", timeout=100, check=True).stdout
        else:
            names: dict[str, Any] = {}
            exec(code, names)
            names["ai"].close()
            said = capsys.readouterr().out
        assert expected.get(title, "fourteen hours") in said, (title, said)


# -- many at once, and those who leave


async def _many(here: served.Served, clients: int) -> list[httpx.Response]:
    headers = {"Authorization": f"Bearer {here.token}"}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=here.url, headers=headers, timeout=100, limits=limits, trust_env=False) as client:
        asked = {"model": "vaultllm:raw", "messages": ASKED, "max_tokens": 4}
        return await asyncio.gather(*(client.post("/v1/chat/completions", json=asked) for _ in range(clients)))


def test_fifty_at_once_are_answered_or_told_to_come_again(here: served.Served) -> None:
    found = asyncio.run(_many(here, 50))
    states = [one.status_code for one in found]
    assert set(states) == {200, 429}
    assert states.count(200) >= 9  # one that is answered, eight that wait
    assert all(one.json()["usage"]["completion_tokens"] == 4 for one in found if one.status_code == 200)
    assert all(int(one.headers["retry-after"]) >= 1 and one.json()["error"]["code"] == "E-BUSY" for one in found if one.status_code == 429)
    with here.client() as client:  # the queue is free again
        assert client.post("/v1/chat/completions", json={"model": "vaultllm:raw", "messages": ASKED, "max_tokens": 1}).status_code == 200


def _leave(opened: Any, over: threading.Event) -> float:
    """Seconds until another is answered, after one who asked for thousands of tokens left at the first; 99: nobody was."""
    with served.open_server(opened, max_queue=0) as here, here.client() as client:
        endless = {"model": "vaultllm:raw", "messages": ASKED, "max_tokens": 100_000, "temperature": 0, "stream": True}
        for _ in range(5):  # on a busy machine it may have said all that fits before the other is heard
            with client.stream("POST", "/v1/chat/completions", json=endless) as response:
                next(response.iter_text())
                state = client.post("/v1/chat/completions", json={**endless, "max_tokens": 1, "stream": False}).status_code
            if state == 429:
                break
        assert state == 429
        began = time.monotonic()
        while (waited := time.monotonic() - began) < 2.5:
            if client.post("/v1/chat/completions", json={**endless, "max_tokens": 1, "stream": False}).status_code == 200:
                return waited
            time.sleep(0.05)
        over.set()
        return 99.0


def test_who_leaves_in_the_middle_frees_the_queue_at_once(here: served.Served, monkeypatch: pytest.MonkeyPatch) -> None:
    over, real = threading.Event(), hf.generate

    def slowly(*given: Any, **options: Any) -> Iterator[str]:
        for piece in real(*given, **options):
            if over.is_set():
                return
            yield piece
            time.sleep(0.02)

    monkeypatch.setattr(hf, "generate", slowly)
    monkeypatch.setattr(hf, "end_ids", lambda loaded: set())
    assert _leave(here.workspace, over) < 2.0  # one second is promised of a machine that does nothing else

    class Deaf(threading.Event):
        def set(self) -> None: ...

    monkeypatch.setattr(engines, "threading", SimpleNamespace(Event=Deaf, Lock=threading.Lock))
    assert _leave(here.workspace, over) == 99.0


def test_who_leaves_before_the_answer_is_not_waited_for(here: served.Served) -> None:
    with here.client() as client:
        with pytest.raises(httpx.ReadTimeout):
            client.post("/v1/chat/completions", json={"model": "vaultllm:raw", "messages": ASKED, "max_tokens": 200}, timeout=0.05)
        for _ in range(200):
            if client.post("/v1/chat/completions", json={"model": "vaultllm:raw", "messages": ASKED, "max_tokens": 1}).status_code == 200:
                return
    raise AssertionError("the queue stays full")


def test_an_idle_model_is_let_go_and_comes_back(here: served.Served) -> None:
    engine = engines.Engine(here.workspace, idle_minutes=0.0)

    async def ask() -> None:
        async for _ in engine.speak(lambda job, emit, over: answer.load(job.workspace.settings.train.base, None)):
            pass

    asyncio.run(ask())
    assert answer._loaded.cache_info().currsize == 1
    assert engine.release_if_idle()
    assert answer._loaded.cache_info().currsize == 0
    assert not engine.release_if_idle()
    asyncio.run(ask())
    assert answer._loaded.cache_info().currsize == 1
    engine.idle_minutes = 10.0
    assert not engine.release_if_idle()
    engine.close()


# -- listening


def test_a_port_that_is_taken_and_an_address_that_is_not_ours_are_told(here: served.Served) -> None:
    port = int(here.url.rpartition(":")[2])
    for host, number in (("127.0.0.1", port), ("192.0.2.1", 0), ("127.0.0.1", 99_999)):
        with pytest.raises(UsageError, match="cannot listen") as refused, server.serving(here.workspace, host, number):
            pass
        assert refused.value.code == "E-PORT"


def test_the_token_is_long_private_and_checked(tmp_path: Path) -> None:
    first = keys.token(tmp_path)
    assert len(first) == 43
    assert keys.token(tmp_path) == first
    path = tmp_path / keys.TOKEN
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [keys.TOKEN]
    path.write_text(f"{first}\n# Copilot's own key\nanother-key-of-mine\n", encoding="utf-8")
    assert len(keys.digests(tmp_path)) == 2
    for bad in ("", "short\n", b"\xff\xfe"):
        path.write_bytes(bad if isinstance(bad, bytes) else bad.encode())
        with pytest.raises(ConfigError):
            keys.token(tmp_path)
    path.write_text(first, encoding="utf-8")
    path.chmod(0o644)
    with pytest.raises(ConfigError, match="others may read"):
        keys.token(tmp_path)


def test_a_server_of_its_own_tells_where_it_is_and_leaves_nothing_behind(here: served.Served, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom vaultllm import config\nfrom vaultllm.api import server\n"
        "server.serve(config.open_workspace(sys.argv[1], sys.argv[2]), port=0, told=lambda host, port: print(host, port, flush=True))\n"
        "print('over', [name for name in ('torch', 'chromadb', 'mcp') if name in sys.modules])\n"
    )
    vault = tmp_path / "vault"
    (vault / ".vaultllm").mkdir(parents=True)
    (vault / ".vaultllm" / "config.toml").write_text('vault_id = "v"\n', encoding="utf-8")
    command = [sys.executable, "-c", code, str(vault), str(tmp_path / "state")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONPATH": str(REPO)}) as child:
        assert child.stdout is not None
        host, port = child.stdout.readline().split()
        about = keys.place(tmp_path / "state")
        assert about is not None
        assert (about["host"], about["port"], about["pid"]) == (host, int(port), child.pid)
        assert stat.S_IMODE((tmp_path / "state" / keys.PLACE).stat().st_mode) == 0o600
        headers = {"Authorization": f"Bearer {Path(about['token']).read_text(encoding='utf-8').strip()}"}
        with httpx.Client(base_url=f"http://{host}:{port}", headers=headers, trust_env=False, timeout=30) as client:
            assert [one["id"] for one in client.get("/v1/models").json()["data"]] == ["vaultllm"]
            said = client.post("/v1/chat/completions", json={"model": "vaultllm", "messages": ASKED}).json()
            assert "vaultllm train" in said["choices"][0]["message"]["content"]
        child.send_signal(signal.SIGTERM)
        assert child.stdout.read().strip() == "over []"
        assert child.wait(30) == 0
    assert keys.place(tmp_path / "state") is None
    assert not (tmp_path / "state" / keys.PLACE).exists()


def test_nobody_else_imports_what_listening_needs() -> None:
    for path in (REPO / "vaultllm").rglob("*.py"):
        if path.parent.name != "api":
            assert not re.search(
                r"^\s*(?:from|import) (?:fastapi|starlette|uvicorn|mcp|mcp_types)\b", path.read_text(encoding="utf-8"), re.M
            ), path
    code = "import sys\nfrom vaultllm import cli, watch\nassert not {'fastapi', 'uvicorn', 'mcp'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=100, env=os.environ | {"PYTHONPATH": str(REPO)})
