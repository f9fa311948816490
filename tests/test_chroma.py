"""Chroma as a projection: what goes in comes out, generations are swapped whole, damage is noticed and never kills twice."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from vaultllm.memory import chroma
from vaultllm.memory.chroma import ChromaMemory, MemoryBroken

LABEL = {"scene": "abc", "path": "a.md", "kind": "prose", "language": "ru"}


def unit(n: int, dims: int = 16, seed: int = 0) -> np.ndarray:
    vectors = np.random.default_rng(seed).standard_normal((n, dims)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def made(folder: Path, n: int = 40, fingerprint: str = "e1") -> np.ndarray:
    vectors = unit(n)
    chroma.rebuild(folder, fingerprint, [(range(n), vectors, [LABEL] * n)])
    return vectors


def test_a_vector_finds_itself_with_cosine_one(tmp_path: Path) -> None:
    vectors = made(tmp_path)
    with ChromaMemory(tmp_path, "e1") as memory:
        found = memory.query(vectors[7], 40)
        assert memory.count() == 40
    assert found[0] == (7, pytest.approx(1.0, abs=1e-5))
    assert dict(found) == {slot: pytest.approx(float(vectors[slot] @ vectors[7]), abs=1e-4) for slot in range(40)}


def test_changes_are_there_when_it_is_opened_again_in_the_same_process(tmp_path: Path) -> None:
    vectors = made(tmp_path)
    with ChromaMemory(tmp_path, "e1") as memory:
        memory.upsert([3, 99], vectors[[20, 21]], [LABEL, LABEL])
        memory.delete([5, 12345])
    with ChromaMemory(tmp_path, "e1") as memory:
        assert memory.probe(40, [3, 99, 0], vectors[[20, 21, 0]]) == ""
        assert 5 not in {slot for slot, _ in memory.query(vectors[5], 40)}


def test_close_lets_go_of_every_file(tmp_path: Path) -> None:
    made(tmp_path)
    ChromaMemory(tmp_path, "e1").close()
    until = time.monotonic() + 5.0
    while (held := _held(tmp_path)) and time.monotonic() < until:  # a thread of Chroma's closes them, a moment later at times
        time.sleep(0.01)
    assert held == []
    assert chroma.unclean(tmp_path) == 0


def test_probe_names_what_is_wrong(tmp_path: Path) -> None:
    vectors = made(tmp_path)
    with ChromaMemory(tmp_path, "e1") as memory:
        assert memory.probe(40, [1, 2], vectors[[1, 2]]) == ""
        assert "40" in memory.probe(41, [1], vectors[[1]])
        assert "lost slot 77" in memory.probe(40, [1, 77], vectors[[1, 2]])
        assert "another vector for slot 2" in memory.probe(40, [1, 2], vectors[[1, 3]])


def test_another_embedder_is_refused(tmp_path: Path) -> None:
    made(tmp_path)
    with pytest.raises(MemoryBroken, match="e1"):
        ChromaMemory(tmp_path, "e2")
    assert chroma.unclean(tmp_path) == 0


def test_a_rebuild_replaces_the_generation_and_its_files(tmp_path: Path) -> None:
    made(tmp_path)
    (tmp_path / "gen-9").mkdir()  # a rebuild that was killed
    assert chroma.rebuild(tmp_path, "e2", [([1], unit(1, 8), [{**LABEL, "path": "b.md"}])]) == 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "gen-10"]
    assert chroma.current(tmp_path) == 10
    assert (tmp_path / "gen-10").stat().st_mode & 0o777 == 0o700
    with ChromaMemory(tmp_path, "e2") as memory:
        assert memory.count() == 1


def test_a_rebuild_that_fails_leaves_the_old_generation(tmp_path: Path) -> None:
    vectors = made(tmp_path)

    def batches():
        yield [1], vectors[:1], [LABEL]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        chroma.rebuild(tmp_path, "e2", batches())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "gen-1"]
    with ChromaMemory(tmp_path, "e1") as memory:
        assert memory.probe(40, [1], vectors[[1]]) == ""


def test_an_empty_generation_can_be_asked(tmp_path: Path) -> None:
    chroma.rebuild(tmp_path, "e1", [])
    with ChromaMemory(tmp_path, "e1") as memory:
        assert memory.count() == 0
        assert memory.query(unit(1)[0], 5) == []
        assert memory.probe(0, [], unit(0)) == ""


@pytest.mark.parametrize("damage", ["no folder", "no CURRENT", "odd CURRENT", "no sqlite", "cut sqlite", "garbage sqlite"])
def test_damage_is_an_exception_of_ours(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "memory"
    if damage != "no folder":
        made(folder)
    sqlite = folder / "gen-1" / "chroma.sqlite3"
    if damage == "no CURRENT":
        (folder / "CURRENT").unlink()
    elif damage == "odd CURRENT":
        (folder / "CURRENT").write_text("../../elsewhere")
    elif damage == "no sqlite":
        sqlite.unlink()
    elif damage == "cut sqlite":
        sqlite.write_bytes(sqlite.read_bytes()[:5000])
    elif damage == "garbage sqlite":
        sqlite.write_bytes(b"garbage" * 1000)
    with pytest.raises(MemoryBroken):
        ChromaMemory(folder, "e1")
    assert chroma.unclean(folder) == 0


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A memory beyond Chroma's sync threshold: only then are there index files on the disk."""
    folder = tmp_path_factory.mktemp("large") / "memory"
    made(folder, 1100)
    return folder


@pytest.mark.parametrize("name", ["link_lists.bin", "header.bin", "data_level0.bin", "length.bin", "index_metadata.pickle"])
def test_a_cut_index_file_is_not_opened(large: Path, tmp_path: Path, name: str) -> None:
    folder = tmp_path / "memory"
    shutil.copytree(large, folder)  # keeps the times
    with ChromaMemory(folder, "e1") as memory:
        assert memory.probe(1100, [5], unit(1100)[[5]]) == ""
    (file,) = folder.rglob(name)
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(MemoryBroken, match="changed from outside"):  # opening it would be a segmentation fault
        ChromaMemory(folder, "e1")


def test_a_kill_after_chroma_wrote_its_index_is_noticed(tmp_path: Path) -> None:
    made(tmp_path, 10)
    code = (
        "import os, sys, pathlib; from tests.test_chroma import LABEL, unit; from vaultllm.memory.chroma import ChromaMemory;"
        "m = ChromaMemory(pathlib.Path(sys.argv[1]), 'e1');"
        "[m.upsert(range(n, n + 500), unit(500), [LABEL] * 500) for n in (0, 500, 1000)]; os.kill(os.getpid(), 9)"
    )
    root = Path(__file__).parents[1]
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=root, check=False).returncode == -9
    with pytest.raises(MemoryBroken, match="not closed"):
        ChromaMemory(tmp_path, "e1")


def test_reading_leaves_the_index_files_and_their_seal_alone(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    shutil.copytree(large, folder)
    ChromaMemory(folder, "e1").close()  # a copy has times of its own: once looked at whole, it is sealed anew

    def times() -> dict[str, int]:
        return {path.name: path.stat().st_mtime_ns for path in folder.rglob("*.*") if path.name != "chroma.sqlite3"}

    before = times()
    assert {"seal.json", "link_lists.bin"} <= set(before)
    with ChromaMemory(folder, "e1") as memory:
        memory.query(unit(1)[0], 5)
    assert times() == before
    assert chroma.whole(folder)


def test_a_memory_that_killed_two_processes_is_not_opened_again(tmp_path: Path) -> None:
    made(tmp_path)
    code = (
        "import os, sys, pathlib; from vaultllm.memory.chroma import ChromaMemory;"
        "m = ChromaMemory(pathlib.Path(sys.argv[1]), 'e1'); os.kill(os.getpid(), 9)"
    )
    for deaths in (1, 2):
        assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
        assert chroma.unclean(tmp_path) == deaths
    with pytest.raises(MemoryBroken, match="died twice"):
        ChromaMemory(tmp_path, "e1")
    chroma.rebuild(tmp_path, "e1", [])
    ChromaMemory(tmp_path, "e1").close()


def test_a_foreign_dotenv_in_the_working_directory_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("CHROMA_SERVER_HTTP_PORT=abc\nPERSIST_DIRECTORY=/nowhere\n")
    code = (
        "import os, pathlib; from vaultllm.memory import chroma;chroma.rebuild(pathlib.Path('m'), 'e1', []); print(pathlib.Path.cwd().name)"
    )
    root = Path(chroma.__file__).parents[2]
    env = {**os.environ, "PYTHONPATH": str(root)}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == tmp_path.name
    assert (tmp_path / "m" / "gen-1" / "chroma.sqlite3").is_file()


def test_no_text_goes_into_chroma(tmp_path: Path) -> None:
    made(tmp_path, n=3)
    import sqlite3

    db = sqlite3.connect(tmp_path / "gen-1" / "chroma.sqlite3")
    keys = {key for (key,) in db.execute("SELECT DISTINCT key FROM embedding_metadata")}
    documents = db.execute("SELECT count(*) FROM embedding_fulltext_search_content").fetchone()[0]
    db.close()
    assert keys == set(LABEL)
    assert documents == 0


def _held(folder: Path) -> list[str]:
    """Files below a folder that this process has open (none are known where there is no /proc)."""
    held = []
    for number in os.listdir("/proc/self/fd") if Path("/proc/self/fd").exists() else []:
        with contextlib.suppress(OSError):
            held.append(os.readlink(f"/proc/self/fd/{number}"))
    return [path for path in held if path.startswith(str(folder))]
