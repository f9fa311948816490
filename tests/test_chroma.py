"""Chroma in a directory: generations are swapped whole, damage is noticed and never kills twice, what is gone leaves no byte.

What holds in a directory and on a server alike is in test_chroma_server.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from vaultllm.errors import LockedError
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


DAMAGE = """
import os, pathlib, shutil, sys
import numpy as np
from tests.test_chroma import unit
from vaultllm.memory import chroma

good, work = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2])
vectors = unit(1100)
for file in sorted(path.relative_to(good) for path in good.rglob("*") if path.is_file() and path.name != "lock"):
    data = (good / file).read_bytes()
    size, page = len(data), len(data) // 4096
    damages = {
        "delete": None, "zero": bytes(size), "ff": b"\\xff" * size, "twice": data + data,
        **{f"cut at {at}": data[:at] for at in sorted({0, 1, 10, size // 2, size - 1})},
        **{f"zero at {at}": data[: at] + bytes(4096) + data[at + 4096 :] for at in range(0, page * 4096, 4096 * 9)},
        "middle": data[: size // 3] + bytes(size // 3) + data[size // 3 * 2 :],
    }
    for how, left in damages.items():
        if left == data:
            continue
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(good, work)
        if left is None:
            (work / file).unlink()
        else:
            (work / file).write_bytes(left)
        try:
            found = [chroma.nearest(work, "e1", vectors[row], 1)[0][0] for row in range(0, 1100, 100)]
            said = "right" if found == list(range(0, 1100, 100)) else f"WRONG {found}"
        except chroma.MemoryBroken:
            said = "broken"
        print(f"{file.name}|{how}|{said}", flush=True)
chroma.rebuild(work, "e1", [(range(1100), vectors, ())])
print("rebuilt", chroma.nearest(work, "e1", vectors[7], 1)[0][0])
"""


def test_no_cut_or_garbled_file_ends_the_process_or_gives_a_wrong_answer(large: Path, tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", DAMAGE, str(large), str(tmp_path / "memory")],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-200:] + ran.stderr[-2000:]
    *said, last = ran.stdout.splitlines()
    assert last == "rebuilt 7"
    found = [row.split("|") for row in said]
    assert {name for name, _, _ in found} >= {"chroma.sqlite3", "header.bin", "data_level0.bin", "link_lists.bin", "length.bin", "CURRENT"}
    assert [row for row in found if row[2] not in ("broken", "right")] == []
    assert [row for row in found if row[0].endswith((".bin", ".pickle")) and row[2] != "broken"] == []
    assert ["chroma.sqlite3", "zero", "broken"] in found


def test_a_zeroed_page_of_sqlite_is_found_by_a_thorough_probe(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    shutil.copytree(large, folder)
    vectors = unit(1100)
    with ChromaMemory(folder, "e1") as memory:
        assert memory.probe(1100, [5], vectors[[5]], thorough=True) == ""
    file = folder / "gen-1" / "chroma.sqlite3"
    with contextlib.closing(sqlite3.connect(file)) as db:
        (root,) = db.execute("SELECT rootpage FROM sqlite_master WHERE name = 'embedding_metadata'").fetchone()
    data = bytearray(file.read_bytes())
    data[(root - 1) * 4096 : root * 4096] = bytes(4096)
    file.write_bytes(data)
    with ChromaMemory(folder, "e1") as memory:
        assert memory.probe(1100, [5], vectors[[5]]) == ""
        assert "SQLite file is damaged" in memory.probe(1100, [5], vectors[[5]], thorough=True)


def test_a_file_changed_behind_its_times_is_noticed_and_a_copied_folder_is_not_rebuilt(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    shutil.copytree(large, folder)
    (links,) = folder.rglob("link_lists.bin")
    os.utime(links, ns=(1, 1))
    assert not chroma.whole(folder)
    with ChromaMemory(folder, "e1") as memory:
        assert memory.probe(1100, [5], unit(1100)[[5]]) == ""
    assert chroma.whole(folder)
    links.write_bytes(bytes(links.stat().st_size))
    os.utime(links, ns=(1, 1))
    with pytest.raises(MemoryBroken, match="changed from outside"):  # opening it would be a segmentation fault
        ChromaMemory(folder, "e1")
    with pytest.raises(MemoryBroken, match="changed from outside"):
        chroma.nearest(folder, "e1", unit(1)[0], 5)


def test_an_index_that_is_kept_open_is_not_asked_when_its_files_were_damaged(large: Path, tmp_path: Path) -> None:
    folder = tmp_path / "memory"
    shutil.copytree(large, folder)
    vectors = unit(1100)
    assert chroma.nearest(folder, "e1", vectors[9], 1)[0][0] == 9
    (file,) = folder.rglob("data_level0.bin")
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(MemoryBroken, match="changed from outside"):
        chroma.nearest(folder, "e1", vectors[9], 1)
    chroma.rebuild(folder, "e1", [(range(1100), vectors, ())])
    assert chroma.nearest(folder, "e1", vectors[9], 1)[0][0] == 9


def test_an_index_is_loaded_once_for_many_questions_and_counted_as_open_while_one_is_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vectors = made(tmp_path)
    opened, inner, near = [], chroma._client, chroma.near
    monkeypatch.setattr(chroma, "_client", lambda path: opened.append(path) or inner(path))
    monkeypatch.setattr(chroma, "near", lambda *asked: opened.append((tmp_path / "OPEN").read_text()) or near(*asked))
    for row in (3, 4, 5):
        assert chroma.nearest(tmp_path, "e1", vectors[row], 1)[0][0] == row
    assert opened == [tmp_path / "gen-1", *["1 gen-1"] * 3]
    assert chroma.unclean(tmp_path) == 0
    chroma.let_go()


def test_who_waits_too_long_for_the_generation_is_told_that_it_is_locked(tmp_path: Path) -> None:
    made(tmp_path)
    with FileLock(tmp_path / "gen-1" / "lock"):
        with pytest.raises(LockedError) as locked:
            ChromaMemory(tmp_path, "e1", wait=0.02)
        with pytest.raises(LockedError):
            chroma.nearest(tmp_path, "e1", unit(1)[0], 5)
    assert locked.value.exit_code == 75
    ChromaMemory(tmp_path, "e1").close()


def test_a_generation_that_is_still_asked_is_removed_when_the_answer_is_there(tmp_path: Path) -> None:
    made(tmp_path)
    asked = FileLock(tmp_path / "gen-1" / "lock", thread_local=False)
    asked.acquire()
    timer = threading.Timer(0.3, asked.release)
    timer.start()
    began = time.monotonic()
    chroma.rebuild(tmp_path, "e1", [])
    assert time.monotonic() - began >= 0.2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["CURRENT", "gen-2"]
    timer.join()
    (tmp_path / "gen-1").mkdir()
    with FileLock(tmp_path / "gen-1" / "lock"):
        chroma.sweep(tmp_path, wait=0.01)
        assert (tmp_path / "gen-1").is_dir()
    chroma.sweep(tmp_path)
    assert not (tmp_path / "gen-1").exists()


def test_a_rebuild_leaves_no_byte_of_what_was_forgotten(tmp_path: Path) -> None:
    vectors = unit(1100)
    labels = [{**LABEL, "path": f"Тайник {slot}.md", "scene": f"verborgen-{slot}-"} for slot in range(1100)]
    chroma.rebuild(tmp_path, "e1", [(range(1100), vectors, labels)])
    assert chroma.nearest(tmp_path, "e1", vectors[77], 1)[0][0] == 77
    with ChromaMemory(tmp_path, "e1") as memory:
        memory.delete([77])
        memory.upsert([78], unit(1, seed=4), [LABEL])
    chroma.let_go()
    marks = ["Тайник 77.md".encode(), b"verborgen-77-", vectors[77].tobytes(), "Тайник 78.md".encode(), vectors[78].tobytes()]

    def held() -> list[bytes]:
        data = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        return [mark for mark in marks if mark in data]

    assert len(held()) >= 3  # what Chroma deletes stays in its files
    keep = [slot for slot in range(1100) if slot not in (77, 78)]
    chroma.rebuild(tmp_path, "e1", [(keep, vectors[keep], [labels[slot] for slot in keep])])
    assert held() == []


def test_the_index_finds_what_an_exact_scan_finds(tmp_path: Path) -> None:
    vectors = unit(3000, dims=128)
    questions = unit(60, dims=128, seed=1)
    chroma.rebuild(tmp_path, "e1", [(range(3000), vectors, ())])
    with ChromaMemory(tmp_path, "e1") as memory:
        found = [{slot for slot, _ in memory.query(question, 50)} for question in questions]
    exact = np.argsort(-(questions @ vectors.T), axis=1)[:, :50]
    assert np.mean([len(one & set(true.tolist())) / 50 for one, true in zip(found, exact, strict=True)]) >= 0.99


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
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert chroma.unclean(tmp_path) == 1
    assert not chroma.whole(tmp_path)
    shutil.copy(tmp_path / "OPEN", tmp_path / "once")
    ChromaMemory(tmp_path, "e1").close()
    assert chroma.whole(tmp_path)
    (tmp_path / "OPEN").write_text((tmp_path / "once").read_text().replace("1", "2", 1))  # and once more
    assert chroma.unclean(tmp_path) == 2
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
