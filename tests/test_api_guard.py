"""The door (R21): what is wrongly let in, and what makes it fall over. Both are none."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import InvalidArgument, Unsatisfiable

from tests import served, timing
from vaultllm.api import app, engine, guard, keys, server, training

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[served.Served]:
    """Without a model: memory answers alone, and nothing waits for torch."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "start", lambda self, minutes, min_new: {"state": "running"})
        with served.open_server(served.workspace(tmp_path_factory.mktemp("guard"), model=False)) as running:
            yield running


@pytest.fixture(scope="module")
def addresses(here: served.Served) -> list[tuple[str, str]]:
    """Every method and path that there is, and some that are not."""
    with here.client() as client:
        paths = client.get("/openapi.json").json()["paths"]
    found = [(method.upper(), path.replace("{name}", "vaultllm")) for path, methods in paths.items() for method in methods]
    assert len(found) > 25
    others = [
        "/openapi.json",
        "/docs/oauth2-redirect",
        "/mcp",
        "/",
        "/docs",
        "/health",
        "/nothing",
        "/v1/models/..%2f..%2fetc%2fpasswd",
        "/api/tags/",
        "//api/tags",
    ]
    return (
        found
        + [("GET", path) for path in others]
        + [("POST", "/mcp"), ("DELETE", "/mcp"), ("HEAD", "/v1/models"), ("OPTIONS", "/v1/models")]
    )


def attacks(token: str) -> list[tuple[str, dict[str, str], str, int]]:
    """(what, headers, prefix of the path, status) of requests that must not get in."""
    mine = {"Authorization": f"Bearer {token}"}
    return [
        ("no token", {}, "", 401),
        ("an empty token", {"Authorization": "Bearer"}, "", 401),
        ("a wrong token", {"Authorization": f"Bearer {token[:-1]}x"}, "", 401),
        ("half a token", {"Authorization": f"Bearer {token[:20]}"}, "", 401),
        ("a long token", {"Authorization": f"Bearer {token * 100}"}, "", 401),
        ("another scheme", {"Authorization": f"Basic {token}"}, "", 401),
        ("a token of letters that are none", {"Authorization": "Bearer ÿþ"}, "", 401),
        ("a wrong key in the path", {}, f"/key/{token[:-1]}x", 401),
        ("no key in the path", {}, "/key/", 401),
        ("another Host", mine | {"Host": "evil.example"}, "", 403),
        ("a name that begins with ours", mine | {"Host": "localhost.evil.example"}, "", 403),
        ("a name that ends with ours", mine | {"Host": "evil.localhost"}, "", 403),
        ("an address that is not ours", mine | {"Host": "10.0.0.1"}, "", 403),
        ("a page", mine | {"Origin": "https://evil.example"}, "", 403),
        ("a page that hides", mine | {"Origin": "null"}, "", 403),
        ("a page on this computer", mine | {"Origin": "http://localhost:3000"}, "", 403),
        ("a page called like Obsidian", mine | {"Origin": "app://obsidian.md.evil"}, "", 403),
        ("a form of a page", {"Origin": "https://evil.example", "Content-Type": "text/plain"}, "", 403),
        ("a form of Obsidian's without a token", {"Origin": "app://obsidian.md", "Content-Type": "text/plain"}, "", 401),
    ]


def tried(client: httpx.Client, addresses: list[tuple[str, str]], token: str) -> tuple[int, list[str], list[str]]:
    """(requests, wrongly accepted, 5xx) of every address by every attack."""
    count, accepted, broken = 0, [], []
    for what, headers, prefix, status in attacks(token):
        for method, path in addresses:
            body = b"{}" if method in ("POST", "DELETE") else None
            with contextlib.suppress(httpx.RemoteProtocolError):
                latin = {key: value.encode("latin-1") for key, value in headers.items()}
                answer = client.request(method, prefix + path, headers=latin, content=body)
                count += 1
                if answer.status_code != status:
                    accepted.append(f"{what}: {method} {path}: {answer.status_code}")
                if answer.status_code >= 500:
                    broken.append(f"{what}: {method} {path}: {answer.status_code}")
                if method != "HEAD" and answer.status_code == status:
                    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    return count, accepted, broken


def test_nobody_gets_in_who_should_not_at_any_address(here: served.Served, addresses: list[tuple[str, str]]) -> None:
    with httpx.Client(base_url=here.url, trust_env=False, timeout=60) as client:
        count, accepted, broken = tried(client, addresses, here.token)
    assert count == len(attacks("")) * len(addresses) > 700
    assert (accepted, broken) == ([], [])


def test_without_the_guard_the_same_requests_get_in(here: served.Served, addresses: list[tuple[str, str]]) -> None:
    """The control: the matrix is able to fail."""
    behind = app.application(engine.Engine(here.workspace), guard.Rules(keys.digests(here.workspace.state))).app  # type: ignore[attr-defined]
    accepted = 0

    async def ask() -> None:
        nonlocal accepted
        async with httpx.AsyncClient(transport=httpx.ASGITransport(behind), base_url="http://evil.example") as client:
            for path in ("/v1/models", "/api/tags", "/openapi.json"):
                accepted += (await client.get(path)).status_code == 200

    asyncio.run(ask())
    assert accepted == 3


def test_who_may_gets_in_with_every_form_of_the_token(here: served.Served) -> None:
    with httpx.Client(base_url=here.url, trust_env=False, timeout=60) as client:
        ways: list[tuple[str, dict[str, str]]] = [
            ("", {"Authorization": f"Bearer {here.token}"}),
            ("", {"Authorization": f"bearer {here.token}", "Host": "localhost"}),
            ("", {"Authorization": f"Bearer {here.token}", "Host": "[::1]:8471"}),
            ("", {"Authorization": f"Bearer {here.token}", "Origin": "app://obsidian.md"}),
            (f"/key/{here.token}", {}),
            (f"/key/{here.token}", {"Authorization": "Bearer na", "Origin": "capacitor://localhost"}),
        ]
        for prefix, headers in ways:
            found = client.get(f"{prefix}/v1/models", headers=headers)
            assert found.status_code == 200, headers
            assert found.headers.get("access-control-allow-origin") == headers.get("Origin")
            assert found.headers["cache-control"] == "no-store"


def test_a_preflight_is_answered_to_obsidian_alone_and_says_nothing(here: served.Served) -> None:
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization, content-type, x-stainless-os"}
    with httpx.Client(base_url=here.url, trust_env=False, timeout=60) as client:
        for origin in guard.ORIGINS:
            found = client.options("/v1/chat/completions", headers=asked | {"Origin": origin})
            assert (found.status_code, found.content) == (204, b"")
            assert found.headers["access-control-allow-origin"] == origin
            assert found.headers["access-control-allow-headers"] == asked["Access-Control-Request-Headers"]
            assert "access-control-allow-credentials" not in found.headers
        for origin in ("https://evil.example", "null"):
            assert client.options("/v1/chat/completions", headers=asked | {"Origin": origin}).status_code == 403
        assert client.options("/v1/chat/completions", headers=asked).status_code == 401


DEEP = 100_000
BODIES: list[tuple[bytes, int]] = [
    (b"[" * DEEP, 400),
    (b'{"a":' * DEEP + b"1" + b"}" * DEEP, 400),
    (b'{"query": "' + b'[{"' * 50 + b'"}', 400),
    (b"{", 400),
    (b"nothing", 400),
    (b'"text"', 400),
    (b"null", 400),
    (b"[]", 400),
    (b'{"query": "x", "k": 1000000000}', 400),
    (b'{"query": "x", "k": ' + b"9" * 5000 + b"}", 400),
    (b'{"query": "x", "k": -1}', 400),
    (b'{"query": "x", "k": 1.5}', 400),
    (b'{"query": "x", "k": NaN}', 400),
    (b'{"query": "x", "k": Infinity}', 400),
    (b'{"query": "x", "k": 1e999}', 400),
    (b'{"query": "\xff\xfe"}', 400),
    (b'{"query": "\xed\xa0\x80"}', 400),
    (b'{"query": "\\ud800"}', 400),
    (b'{"query": {"$ne": 1}}', 400),
    (b'{"query": "x", "query": "y", "__proto__": {}}', 400),
    (b'{"query": "' + b"x" * (2**20) + b'"}', 413),
    (b'{"query": "before:whenever"}', 400),
    (b'{"query": "\\u0000 \\u202e x"}', 200),
    (b'{"query": "\'; DROP TABLE notes; -- \\""}', 200),
]


@pytest.mark.parametrize(("body", "status"), BODIES, ids=lambda value: str(value)[:30])
def test_a_body_that_is_wrong_is_told_so(here: served.Served, body: bytes, status: int) -> None:
    with here.client() as client:
        found = client.post("/api/vaultllm/search", content=body, headers={"Content-Type": "application/json"})
        assert found.status_code == status, found.text
        assert status == 200 or found.json()["error"]["code"] in ("E-REQUEST", "E-FILTER")


def test_only_json_is_read_but_where_ollamas_clients_name_nothing(here: served.Served) -> None:
    with here.client() as client:
        for kind in (
            "text/plain",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json; charset=cp1251",
        ):
            found = client.post("/v1/embeddings", content=b'{"model":"vaultllm-embed","input":"x"}', headers={"Content-Type": kind})
            assert found.status_code == 415, kind
        assert client.post("/api/embed", content=b'{"model":"vaultllm-embed","input":"x"}').status_code == 200


def test_where_a_path_leads_out_of_the_vault_nothing_is_found(here: served.Served) -> None:
    outside = here.workspace.vault.parent / "outside.md"
    outside.write_text("canary", encoding="utf-8")
    ways = (
        "../outside.md",
        "..%2foutside.md",
        str(outside),
        "%00",
        "a\0b",
        "..\\outside.md",
        "%c0%ae%c0%ae/outside.md",
        "/etc/passwd",
        "Сад",
    )
    with here.client() as client:
        for path in ways:
            for found in (
                client.get("/api/vaultllm/related", params={"path": path}),
                client.post("/api/vaultllm/reply", json={"path": path}),
                client.post("/api/vaultllm/ask", json={"question": "canary?", "note": path, "write": False}),
                client.post("/api/vaultllm/rate", json={"answer": path, "rating": "good"}),
                client.post("/v0/search/related", json={"file_path": path}),
            ):
                assert 400 <= found.status_code < 500, (path, found.url, found.text)
                assert "canary" not in found.text.replace("canary?", "")
        assert client.get("/api/vaultllm/related?path=%c0%ae%c0%ae%2foutside.md").status_code == 404
        assert client.get("/api/vaultllm/related?path=Bread.md&k=1e9").status_code == 400
        assert client.get(f"/api/vaultllm/related?path=Bread.md&k={'9' * 5000}").status_code == 400
    assert outside.read_text(encoding="utf-8") == "canary"


# -- by hand on the wire


def raw(here: served.Served, *pieces: bytes, pause: float = 0.0, patience: float = 20.0) -> bytes:
    """What comes back until the other side closes, when these pieces are sent with pauses."""
    host, port = here.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=patience) as wire:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            for piece in pieces:
                wire.sendall(piece)
                time.sleep(pause)
        found = b""
        with contextlib.suppress(ConnectionResetError):
            while part := wire.recv(65536):
                found += part
        return found


def head(here: served.Served, line: str, *headers: str) -> bytes:
    return "\r\n".join((line, "Host: 127.0.0.1", f"Authorization: Bearer {here.token}", "Connection: close", *headers, "", "")).encode(
        "latin-1"
    )


def status(found: bytes) -> int:
    return int(found.split(b" ", 2)[1]) if found.startswith(b"HTTP/1.") else 0


def test_what_is_no_request_is_refused_and_nothing_falls_over(here: served.Served) -> None:
    post = "POST /api/vaultllm/search HTTP/1.1"
    json_ = "Content-Type: application/json"
    sent: list[tuple[bytes, tuple[int, ...]]] = [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", (400,)),
        (b"GET / HTTP/9.9\r\n\r\n", (400,)),
        (b"GET /v1/models HTTP/1.0\r\n\r\n", (400,)),
        (head(here, "GET /v1/models HTTP/1.1", "Host: evil.example"), (400,)),
        (head(here, "GET /v1/models HTTP/1.1", "Authorization: Bearer x"), (400,)),
        (head(here, "GET http://evil.example/v1/models HTTP/1.1"), (404,)),
        (head(here, "TRACE /v1/models HTTP/1.1"), (405,)),
        (head(here, "CONNECT 127.0.0.1:22 HTTP/1.1"), (404, 405)),
        (head(here, "BREW /v1/models HTTP/1.1"), (405,)),
        (head(here, "GET /v1/models HTTP/1.1", "Upgrade: websocket", "Sec-WebSocket-Key: x", "Sec-WebSocket-Version: 13"), (200,)),
        (head(here, "GET /v1/models HTTP/1.1", "X-Long: " + "x" * 20_000), (431,)),
        (head(here, "GET /" + "x" * 20_000 + " HTTP/1.1"), (414,)),
        (head(here, "GET /v1/models?" + "a=b&" * 5_000 + " HTTP/1.1"), (414,)),
        (head(here, "GET /v1/models HTTP/1.1", "X-Long: " + "x" * 10**6), (0, 400, 431)),
        (head(here, "GET /v1/models HTTP/1.1", "X-Odd: \xff\xfe"), (200,)),
        (head(here, post, json_, "Content-Length: -1"), (400,)),
        (head(here, post, json_, "Content-Length: 1e3"), (400,)),
        (head(here, post, json_, "Content-Length: 10737418240"), (413,)),
        (head(here, post, json_, "Content-Length: 5", "Content-Length: 6") + b"{}", (400,)),
        (head(here, post, json_, "Transfer-Encoding: chunked") + b"ZZ\r\n{}\r\n", (0, 400)),
    ]
    for sent_, expected in sent:
        assert status(raw(here, sent_)) in expected, sent_[:80]


def test_a_body_without_end_is_cut_off(here: served.Served) -> None:
    host, port = here.url.removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=60) as wire:
        wire.sendall(head(here, "POST /api/vaultllm/search HTTP/1.1", "Content-Type: application/json", "Transfer-Encoding: chunked"))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            while sent < 2**28:
                wire.sendall(b"10000\r\n" + b"x" * 65536 + b"\r\n")
                sent += 65536
    assert sent < 64 * 2**20  # what the kernel's buffers take besides
    with here.client() as client:
        assert client.get("/v1/models").status_code == 200


def test_who_dawdles_is_cut_off(here: served.Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "HEADER_SECONDS", 0.4)
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.4)
    whole = head(here, "GET /v1/models HTTP/1.1")
    assert raw(here, *(whole[at : at + 1] for at in range(60)), pause=0.05) == b""  # three seconds of bytes, one by one
    assert raw(here) == b""  # not a byte
    slow = head(here, "POST /api/vaultllm/search HTTP/1.1", "Content-Type: application/json", "Content-Length: 100")
    assert status(raw(here, slow, b'{"query"', pause=0.1)) == 408
    first = whole.replace(b"Connection: close\r\n", b"")
    again = raw(here, first, *(whole[at : at + 1] for at in range(60)), pause=0.05)  # the second request of a connection
    assert again.count(b"HTTP/1.1 200") == 1


def test_a_bug_behind_the_door_is_told_without_a_word_of_the_vault(
    here: served.Served, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    def broken(*_: Any) -> None:
        raise LookupError("the words of a note")

    monkeypatch.setattr(engine.Engine, "models", broken)
    with here.client() as client:
        found = client.get("/v1/models")
    assert (found.status_code, found.json()["error"]["code"]) == (500, "E-INTERNAL")
    deadline = time.monotonic() + 20  # it is logged after it was answered
    while "LookupError" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "LookupError" in caplog.text
    assert "the words of a note" not in found.text + caplog.text


def test_an_address_that_is_named_is_asked_by_its_name() -> None:
    for host, good, bad in (
        ("127.0.0.1", ("127.0.0.1", "localhost:1", "[::1]:8471"), ("10.0.0.5", "", "[::2]", "nas.local")),
        ("10.0.0.5", ("10.0.0.5:8471", "localhost"), ("10.0.0.6", "evil.example")),
        ("0.0.0.0", ("10.0.0.5", "[fe80::1]:1", "localhost"), ("evil.example", "nas.local", "10.0.0.5.evil.example")),
    ):
        door = guard.Guard(lambda *_: None, guard.Rules((), host))  # type: ignore[arg-type, return-value]
        for name in good:
            door.check_host(name.encode())
        for name in bad:
            with pytest.raises(guard.Refused):
                door.check_host(name.encode())


PLAIN = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]))


@given(st.recursive(PLAIN, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30))
@settings(max_examples=15)
def test_json_that_is_right_comes_out_as_it_went_in(value: Any) -> None:
    with contextlib.suppress(guard.Refused):  # half a surrogate pair in a key
        assert json.loads(guard.checked(json.dumps(value).encode())) == value


def test_how_deep_json_is_told_in_linear_time() -> None:
    for text, deep in ((b'{"a": "' + b"[" * 200 + b'"}', 1), (b"[" * 70 + b"]" * 70, 70), (b'["\\"[[", ' + b"[]," * 70 + b"1]", 2)):
        assert guard.depth(text) == deep
    for bad in (b'"' + b'\\"', b"[", b'"['):
        timing.assert_linear(lambda size, bad=bad: bad * size, guard.depth, 2**14)  # type: ignore[misc]


# -- every operation of our OpenAPI, by schemathesis


def test_whatever_fits_or_does_not_fit_the_description_is_answered_as_described(here: served.Served) -> None:
    with here.client() as client:
        schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
        states: list[int] = []
        for result in schema.get_all_operations():
            operation = result.ok()
            described = {int(key) for key in operation.definition.raw["responses"]} | {405}
            for mode in (schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE):
                with contextlib.suppress(InvalidArgument, Unsatisfiable):  # some operations can't be asked wrongly
                    _try(operation.as_strategy(generation_mode=mode), client, here, described, states)
    assert len(states) > 80
    assert {200, 400} <= set(states)
    assert max(states) < 500


def _try(strategy: Any, client: httpx.Client, here: served.Served, described: set[int], states: list[int]) -> None:
    checks = list(HealthCheck)

    @settings(max_examples=2, deadline=None, suppress_health_check=checks, phases=[Phase.generate], derandomize=True, database=None)
    @given(strategy)
    def one(case: Any) -> None:
        asked = case.as_transport_kwargs(base_url=here.url, headers=dict(client.headers))
        with requests.Session() as session:
            session.trust_env = False
            found = session.request(**asked, timeout=300)
        states.append(found.status_code)
        assert found.status_code in described, (case.path, found.status_code, found.text)

    one()
