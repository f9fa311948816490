"""One contract for both places where vectors live: a directory here, and a real Chroma server on loopback that is killed at will."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.test_recall import put
from vaultllm import recall, remember
from vaultllm.config import MemorySettings
from vaultllm.errors import ConfigError, LockedError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.memory import chroma, server
from vaultllm.memory.server import MemoryAway, Server
from vaultllm.memory.vectors import PROBE, MemoryBroken, Store
from vaultllm.memory.wire import ServerDied, Wire, endpoint

DATABASE = "/api/v2/tenants/default_tenant/databases/default_database"


def unit(n: int, dims: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class ChromaServer:
    """`chroma run` of the chromadb that is installed here, on a free port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.address = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, command: Sequence[str] = (sys.executable, "-c", "import sys, chromadb_rust_bindings as c; c.cli(sys.argv)")) -> None:
        """What the console script `chroma` does, without its imports, which take longer than the rest."""
        self.process = subprocess.Popen(
            [*command, "run", "--path", str(self.folder), "--host", "127.0.0.1", "--port", str(self.port)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        until = time.monotonic() + 30
        while time.monotonic() < until:
            assert self.process.poll() is None, "chroma run ended at once"
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.address}/api/v2/heartbeat", timeout=1):
                return
            time.sleep(0.05)
        raise AssertionError("chroma run does not answer")

    def kill(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def restart(self) -> None:
        self.kill()
        self.start()

    def names(self) -> list[str]:
        with urllib.request.urlopen(f"{self.address}{DATABASE}/collections", timeout=5) as answer:
            return sorted(one["name"] for one in json.load(answer))


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChromaServer]:
    """One server for the tests that leave it running."""
    one = ChromaServer(tmp_path_factory.mktemp("server"))
    console_script = Path(sys.executable).parent / "chroma"
    if not console_script.exists():
        pytest.skip("chromadb has no console script here")
    one.start([str(console_script)])
    yield one
    server.let_go()
    one.kill()


names = iter(f"t{n}" for n in range(10_000))


def on(chosen: ChromaServer, folder: Path) -> Server:
    found = server.store(folder, chosen.address, next(names))
    assert isinstance(found, Server)
    return found


@pytest.fixture(params=["directory", "server"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    if request.param == "directory":
        yield server.store(tmp_path / "memory", "", "unused")
    else:
        yield on(request.getfixturevalue("running"), tmp_path / "memory")
    chroma.let_go()
    server.let_go()


def made(where: Store, n: int = 40, fingerprint: str = "e1") -> np.ndarray:
    vectors = unit(n)
    where.rebuild(fingerprint, [(range(1, n + 1), vectors, ())])
    return vectors


# -- the contract


def test_nothing_is_live_before_the_first_rebuild(where: Store) -> None:
    assert (where.live(), where.whole()) == (0, False)
    with pytest.raises(MemoryBroken):
        where.open("e1")
    with pytest.raises(MemoryBroken):
        where.nearest("e1", unit(1)[0], 5)
    where.sweep()


def test_a_vector_finds_itself_with_cosine_one(where: Store) -> None:
    vectors = made(where)
    assert (where.live(), where.whole()) == (1, True)
    with where.open("e1") as memory:
        found = memory.query(vectors[6], 40)
        assert (memory.count(), memory.generation) == (40, 1)
    assert found[0] == (7, pytest.approx(1.0, abs=1e-5))
    assert dict(found) == {slot: pytest.approx(float(vectors[slot - 1] @ vectors[6]), abs=1e-4) for slot in range(1, 41)}
    assert where.nearest("e1", vectors[6], 40) == found
    assert where.nearest("e1", np.zeros(16, dtype=np.float32), 5) == []


def test_what_is_written_is_there_for_the_next_session_and_for_questions(where: Store) -> None:
    vectors = made(where)
    assert where.nearest("e1", vectors[4], 1)[0][0] == 5  # an index that was loaded before the others wrote
    new = unit(2, seed=9)
    with where.open("e1") as memory:
        memory.upsert([3, 99], new)
        memory.delete([5, 12345])
    assert where.nearest("e1", new[1], 1)[0][0] == 99
    assert 5 not in {slot for slot, _ in where.nearest("e1", vectors[4], 60)}
    with where.open("e1") as memory:
        assert memory.probe(40, [3, 99, 1], np.stack([*new, vectors[0]])) == ""
    assert where.whole()


def test_probe_names_what_is_wrong(where: Store) -> None:
    vectors = made(where)
    with where.open("e1") as memory:
        assert memory.probe(40, [1, 2], vectors[:2], thorough=True) == ""
        assert memory.count() == 40
        assert "40" in memory.probe(41, [1], vectors[:1])
        assert "lost slot 77" in memory.probe(40, [1, 77], vectors[:2])
        assert "another vector for slot 2" in memory.probe(40, [1, 2], vectors[[0, 3]])


def test_a_probe_that_a_dead_process_left_is_no_passage(where: Store) -> None:
    vectors = made(where)
    with where.open("e1") as memory:
        memory.upsert([PROBE], -vectors[:1])
        assert PROBE not in {slot for slot, _ in memory.query(-vectors[0], 60)}
        assert memory.probe(40, [1], vectors[:1]) != ""
        assert memory.probe(40, [1], vectors[:1], thorough=True) == ""
        assert memory.probe(40, [1], vectors[:1]) == ""


def test_another_embedder_is_refused(where: Store) -> None:
    made(where)
    with pytest.raises(MemoryBroken, match="e1"):
        where.open("e2")
    with pytest.raises(MemoryBroken, match="e1"):
        where.nearest("e2", unit(1)[0], 5)
    assert where.whole()


def test_a_session_may_be_closed_by_another_thread(where: Store) -> None:
    vectors = made(where)
    closing = threading.Thread(target=where.open("e1").close)
    closing.start()
    closing.join()
    began = time.monotonic()
    with where.open("e1") as memory:
        assert memory.probe(40, [1], vectors[:1]) == ""
    assert time.monotonic() - began < 30  # whoever waits for a lock waits 60


def test_an_index_that_was_built_otherwise_is_refused(where: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    made(where)
    monkeypatch.setattr("vaultllm.memory.vectors.INDEX", "cosine-16-100-100")
    with pytest.raises(MemoryBroken, match="built with"):
        where.open("e1")


def test_an_empty_generation_can_be_asked(where: Store) -> None:
    where.rebuild("e1", [])
    with where.open("e1") as memory:
        assert memory.count() == 0
        assert memory.query(unit(1)[0], 5) == []
        assert memory.probe(0, [], unit(0), thorough=True) == ""
        memory.upsert([], unit(0))
        memory.delete([1])
    assert where.nearest("e1", unit(1)[0], 5) == []


def test_a_rebuild_takes_the_old_ones_place_and_removes_it(where: Store) -> None:
    made(where)
    assert where.rebuild("e2", [([1], unit(1, 8), ())]) == 2
    assert where.live() == 2
    with where.open("e2") as memory:
        assert memory.count() == 1
    if isinstance(where, Server):
        with Wire(where.address) as wire:
            assert [number for number, _ in where._theirs(wire)] == [2]
    else:
        assert sorted(path.name for path in where.folder.iterdir()) == ["CURRENT", "gen-2"]


def test_the_live_generation_answers_all_through_a_rebuild(where: Store) -> None:
    vectors = made(where)
    other = unit(40, seed=5)
    asked = []

    def batches():
        for start in (0, 20):
            assert where.live() == 1
            asked.append(where.nearest("e1", vectors[2], 1)[0][0])
            yield range(1 + start, 21 + start), other[start : start + 20], ()
            asked.append(where.nearest("e1", vectors[2], 1)[0][0])

    assert where.rebuild("e1", batches()) == 2
    assert asked == [3, 3, 3, 3]
    assert where.nearest("e1", other[2], 1)[0] == (3, pytest.approx(1.0, abs=1e-5))
    assert where.nearest("e1", vectors[2], 1)[0][1] < 0.99


def test_a_rebuild_that_fails_leaves_the_old_generation(where: Store) -> None:
    vectors = made(where)

    def batches():
        yield [1], vectors[:1], ()
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        where.rebuild("e2", batches())
    assert (where.live(), where.whole()) == (1, True)
    with where.open("e1") as memory:
        assert memory.probe(40, [2], vectors[[1]]) == ""


def test_moving_to_the_other_place_and_back_never_shows_what_is_out_of_date(running: ChromaServer, tmp_path: Path) -> None:
    here, there = server.store(tmp_path, "", "x"), on(running, tmp_path)
    for first, then in ((here, there), (there, here), (here, there)):
        made(first)
        assert (first.live() > 0, then.live()) == (True, 0)
        made(then)
        assert (first.live(), then.live() > 0) == (0, True)
    assert not list(tmp_path.glob("gen-*"))


WRITER = """
import pathlib, sys
import numpy as np
from tests.test_chroma_server import unit
from vaultllm.memory import server
where = server.store(pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3])
first, vectors = int(sys.argv[4]), unit(1400)
print("ready", flush=True)
sys.stdin.readline()
for start in range(0, 1400, 200):
    slots = range(start + first, start + 200, 2)
    with where.open("e1") as memory:
        memory.upsert(list(slots), vectors[list(slots)])
        memory.delete([slot for slot in slots if slot % 7 == 0])
print("done", flush=True)
if sys.stdin.readline() == "more\\n":
    with where.open("e1") as memory:
        memory.upsert([6000], -unit(1))
"""


def test_two_processes_that_write_at_once_lose_nothing_and_a_reader_sees_it(where: Store, tmp_path: Path) -> None:
    where.rebuild("e1", [([5000], unit(1), ())])
    assert [slot for slot, _ in where.nearest("e1", unit(1)[0], 9)] == [5000]
    address, name = (where.address, where.name) if isinstance(where, Server) else ("", "unused")
    command = [sys.executable, "-c", WRITER, str(tmp_path / "memory"), address, name]
    writers = [
        subprocess.Popen(
            [*command, first],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for first in "01"
    ]
    for writer in writers:
        assert writer.stdout.readline() == "ready\n"
    for writer in writers:
        writer.stdin.write("go\n")
        writer.stdin.flush()
    done = threading.Thread(target=lambda: [writer.stdout.readline() for writer in writers])
    done.start()
    while done.is_alive():
        with contextlib.suppress(LockedError):
            assert where.nearest("e1", unit(1)[0], 1)
    assert where.nearest("e1", -unit(1)[0], 1)[0][0] != 6000
    for writer, more in zip(writers, ("more\n", "no\n"), strict=True):
        said = writer.communicate(more)
        assert writer.returncode == 0, said
    assert where.nearest("e1", -unit(1)[0], 1)[0][0] == 6000  # one vector, too few for Chroma to write its index
    vectors = unit(1400)
    kept = [slot for slot in range(1400) if slot % 7]
    for slot in kept[::40]:
        assert where.nearest("e1", vectors[slot], 1)[0] == (slot, pytest.approx(1.0, abs=1e-4))
    with where.open("e1") as memory:
        assert memory.probe(len(kept) + 2, kept, vectors[kept], thorough=True) == ""


# -- the memory as a whole


def test_a_vault_remembers_on_a_server_and_loses_nothing_when_that_dies(own: ChromaServer, tmp_path: Path) -> None:
    settings = MemorySettings(dims=32, chroma=own.address)
    folder = tmp_path / "memory"

    def found() -> list[str]:
        return [hit.path for hit in recall.recall(ledger, folder, settings, "датчик влажности", 3, dense="chroma")]

    with Ledger(tmp_path / "ledger.db") as ledger:
        put(ledger, "Теплица.md", "Датчик влажности включает помпу.\n")
        put(ledger, "Хлеб.md", "Закваска и мука.\n")
        done = remember.refresh(ledger, folder, settings)
        assert (done["generation"], done["away"]) == (1, "")
        assert remember.check(ledger, folder, settings) == ""
        assert found()[0] == "Теплица.md"

        own.kill()
        put(ledger, "Новое.md", "Датчик влажности в подвале.\n")
        done = remember.refresh(ledger, folder, settings)
        assert str(own.port) in done["away"]
        assert ledger.counts()["outbox"] == 1
        assert {"Теплица.md", "Новое.md"} <= set(found())  # an exact scan of the ledger
        with pytest.raises(VaultError, match="chroma run"):
            remember.rebuild(ledger, folder, settings)

        own.start()
        done = remember.refresh(ledger, folder, settings)
        assert (done["generation"], done["upserted"], done["away"]) == (1, 1, "")
        assert remember.check(ledger, folder, settings) == ""

        own.kill()
        shutil.rmtree(own.folder)
        own.start()
        put(ledger, "Хлеб.md", "Закваска, мука и соль.\n")
        assert remember.refresh(ledger, folder, settings)["generation"] == 2
        assert remember.check(ledger, folder, settings) == ""

        home = MemorySettings(dims=32)
        remember.refresh(ledger, folder, home)
        assert remember.check(ledger, folder, home) == ""
        assert not (folder / "server.json").exists()


# -- a server that dies, hangs, comes back with less, or is none


@pytest.fixture
def own(tmp_path: Path) -> Iterator[ChromaServer]:
    """A server for one test, to be killed."""
    one = ChromaServer(tmp_path / "server")
    one.start()
    yield one
    server.let_go()
    one.kill()


def test_a_server_killed_between_operations_is_found_again_and_has_lost_nothing(own: ChromaServer, tmp_path: Path) -> None:
    where = on(own, tmp_path / "memory")
    vectors = unit(2400)
    where.rebuild("e1", [(range(1, 501), vectors[:500], ())])
    assert where.nearest("e1", vectors[3], 1)[0][0] == 4
    with where.open("e1") as memory:
        memory.upsert(range(501, 1301), vectors[500:1300])  # over Chroma's sync threshold
        own.restart()
        memory.upsert(range(1301, 2401), vectors[1300:])
        own.restart()
        assert memory.probe(2400, [1, 900, 2400], vectors[[0, 899, 2399]], thorough=True) == ""
    own.restart()
    for row in (3, 700, 1299, 1300, 2399):
        assert where.nearest("e1", vectors[row], 1)[0][0] == row + 1

    own.kill()
    for refused in (lambda: where.open("e1"), lambda: where.nearest("e1", vectors[0], 1), lambda: where.rebuild("e1", [])):
        with pytest.raises(MemoryAway, match=f"127.0.0.1:{own.port}.*chroma run --host.*memory.chroma"):
            refused()
    assert where.live() == 1  # and nothing is thrown away because of it
    assert where.whole()

    shutil.rmtree(own.folder)  # it comes back with nothing
    own.start()
    with pytest.raises(MemoryBroken) as broken:
        where.open("e1")
    assert not isinstance(broken.value, MemoryAway)
    assert where.rebuild("e1", [(range(1, 2401), vectors, ())]) == 2
    with where.open("e1") as memory:
        assert memory.probe(2400, [1, 2400], vectors[[0, 2399]]) == ""


def test_a_server_that_came_back_with_older_files_is_noticed(own: ChromaServer, tmp_path: Path) -> None:
    where = on(own, tmp_path / "memory")
    vectors = made(where)
    own.kill()
    shutil.copytree(own.folder, tmp_path / "older")
    own.start()
    with where.open("e1") as memory:
        memory.upsert([7], unit(1, seed=3))  # no other count, and one vector of forty: no sample would show it
    own.kill()
    shutil.rmtree(own.folder)
    shutil.copytree(tmp_path / "older", own.folder)
    own.start()
    with pytest.raises(MemoryBroken, match="older files"):
        where.open("e1")
    made(where)
    with where.open("e1") as memory:
        assert memory.probe(40, [7], vectors[[6]]) == ""
    assert len(own.names()) == 2


def test_an_index_that_kills_the_server_is_replaced_without_being_touched(own: ChromaServer, tmp_path: Path) -> None:
    where = on(own, tmp_path / "memory")
    vectors = made(where, 1100)
    own.kill()
    (links,) = own.folder.rglob("link_lists.bin")
    links.write_bytes(bytes(links.stat().st_size))  # SIGSEGV in chromadb 1.5.9 when it is loaded
    for _ in range(2):
        own.start()
        with pytest.raises(ServerDied, match=str(own.port)):
            where.nearest("e1", vectors[0], 5)
        own.process.wait(10)
        assert own.process.returncode == -signal.SIGSEGV
    own.start()
    with pytest.raises(MemoryBroken, match="died twice") as broken:
        where.nearest("e1", vectors[0], 5)
    assert not isinstance(broken.value, MemoryAway)
    assert not where.whole()
    made(where, 1100)
    assert where.whole()
    assert where.nearest("e1", vectors[8], 1)[0][0] == 9
    assert own.process.poll() is None


def test_a_server_that_hangs_is_waited_for_once(running: ChromaServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = on(running, tmp_path)
    vectors = made(where)
    monkeypatch.setattr(server, "QUERY", 1.1)
    running.process.send_signal(signal.SIGSTOP)
    try:
        with pytest.raises(MemoryAway, match="has not answered"):
            where.nearest("e1", vectors[0], 5)
        began = time.monotonic()
        with pytest.raises(MemoryAway, match="silent a moment ago"):
            where.nearest("e1", vectors[0], 5)
        assert time.monotonic() - began < 0.5
    finally:
        running.process.send_signal(signal.SIGCONT)
    server._silent_until.clear()
    assert where.nearest("e1", vectors[0], 1)[0][0] == 1


class _Other(http.server.BaseHTTPRequestHandler):
    """Some other server on the port."""

    status, body = 200, b""

    def do_GET(self) -> None:
        """The same to whatever is asked."""
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.body)))
        self.send_header("Location", "http://127.0.0.1:1/")
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_PUT = do_DELETE = do_GET  # noqa: N815 - names of the standard library

    def log_message(self, *args: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"<html>hello</html>"),
        (200, b""),
        (200, b"[]"),
        (200, b'{"supports_base64_encoding": true}'),
        (200, b"[" * 100_000),
        (302, b""),
        (401, b'{"message": "who \\u001b[31m are you"}'),
        (404, b"nothing"),
        (503, b"\xff\xfe"),
    ],
)
def test_what_is_no_chroma_server_is_said_and_nothing_is_thrown_away(tmp_path: Path, status: int, body: bytes) -> None:
    handler = type("Handler", (_Other,), {"status": status, "body": body})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as other:
        thread = threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        where = Server(tmp_path, f"http://127.0.0.1:{other.server_address[1]}", "t")
        with pytest.raises(MemoryAway, match=r"127\.0\.0\.1|memory\.chroma") as away:
            where.rebuild("e1", [([1], unit(1), ())])
        other.shutdown()
        thread.join()
    assert str(away.value).isprintable()
    assert where.live() == 0


@pytest.mark.parametrize(
    "address",
    [
        "localhost:8000",
        "ftp://x",
        "http://",
        "http://a b",
        "http://x:99999",
        "http://x:0",
        "http://x:y",
        "http://x/?q",
        "http://[::1",
        "8000",
    ],
)
def test_what_is_no_address_is_an_error_that_shows_one(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfigError, match=r"http://127\.0\.0\.1:8000"):
        server.store(tmp_path, address, "t")


def test_an_address_is_taken_apart() -> None:
    assert endpoint("http://127.0.0.1:8001/") == (False, "127.0.0.1", 8001, "")
    assert endpoint("https://chroma.example/a b/") == (True, "chroma.example", 443, "/a%20b")
    assert endpoint("http://[::1]:9") == (False, "::1", 9, "")
    with pytest.raises(ConfigError, match="password"):
        endpoint("http://me:secret@host")


def test_no_proxy_of_the_environment_and_no_chromadb_is_used(running: ChromaServer, tmp_path: Path) -> None:
    code = (
        "import sys, pathlib, numpy; from vaultllm.memory import server;"
        "s = server.store(pathlib.Path(sys.argv[1]), sys.argv[2], 'proxy');"
        "s.rebuild('e1', [([1], numpy.eye(4, dtype='float32')[:1], ())]); print(s.nearest('e1', numpy.eye(4)[0], 1)[0][0]);"
        "assert 'chromadb' not in sys.modules"
    )
    env = {**os.environ, "HTTP_PROXY": "http://127.0.0.1:1", "http_proxy": "http://127.0.0.1:1", "ALL_PROXY": "http://127.0.0.1:1"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path), running.address],
        cwd=Path(__file__).parents[1],
        env=env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "1\n"), done.stderr


def test_no_label_goes_to_a_server_whose_files_are_not_ours(own: ChromaServer, tmp_path: Path) -> None:
    where = on(own, tmp_path / "memory")
    label = [{"path": "Тайник.md", "scene": "verborgen"}]
    where.rebuild("e1", [([1], unit(1), label)])
    with where.open("e1") as memory:
        memory.upsert([2], unit(1), label)
    own.kill()
    held = b"".join(path.read_bytes() for path in own.folder.rglob("*") if path.is_file())
    assert b"SQLite" in held
    assert "Тайник".encode() not in held
    assert b"verborgen" not in held


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"address": 1}', "[" * 100_000, "number"])
def test_a_garbled_record_counts_as_none(running: ChromaServer, tmp_path: Path, damage: str) -> None:
    where = on(running, tmp_path)
    made(where)
    file = tmp_path / "server.json"
    if damage == "number":
        damage = json.dumps({**json.loads(file.read_text()), "generation": "one"})
    file.write_text(damage)
    assert (where.live(), where.whole()) == (0, False)
    with pytest.raises(MemoryBroken):
        where.open("e1")
    made(where)
    assert where.live() == 2
