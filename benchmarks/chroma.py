"""Chroma: writing, rebuilding, asking and finding, beside plain Chroma and an exact scan of the same vectors, in one run.

    python benchmarks/chroma.py [--records 10000] [--dims 256] [--rounds 3] [--server] [--json]

Plain Chroma is `collection.add` in batches with Chroma's own settings, ids and vectors alone. Ours reads the vectors from
a ledger and writes a new generation. Both from no folder to a closed one. Every measurement runs in a process of its own,
the arms in turn, so that the peak memory is its own; medians. `cpu` is records a second of processor time (of all threads,
this process alone: not the server's), `wall` of the clock. Vectors are drawn in clusters as those of notes are
(`clusters`), and without any structure, which is the worst case (`none`). `during` asks the old generation from a second
thread, some thirty times a second, while the new one is written.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from vaultllm.ledger import Ledger
from vaultllm.memory import chroma, server
from vaultllm.memory.vectors import Records, Store

BATCH = 500
QUESTIONS = 200
CHROMA = (sys.executable, "-c", "import sys, chromadb_rust_bindings as c; c.cli(sys.argv)")  # the console script, without imports


def drawn(kind: str, records: int, dims: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors to store (records, dims) and to ask with, from one distribution."""
    rng = np.random.default_rng(0)
    n = records + QUESTIONS
    vectors = rng.standard_normal((n, dims)).astype(np.float32)
    if kind == "clusters":
        centres = rng.standard_normal((max(20, records // 50), dims)).astype(np.float32)
        vectors = centres[rng.integers(0, len(centres), n)] + 0.7 * vectors
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors[:records], vectors[records:]


def from_ledger(path: Path, records: int) -> Iterator[Records]:
    """Batches as a rebuild reads them."""
    with Ledger(path) as ledger:
        for start in range(1, records + 1, BATCH):
            slots, vectors = ledger.vectors("bench", range(start, min(records + 1, start + BATCH)))
            yield slots, vectors, ()


def timed(records: int, work: Callable[[], object]) -> dict[str, float]:
    """Records a second by both clocks, and the peak memory of this process."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"cpu": records / cpu, "wall": records / wall, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def found(ask: Callable[[np.ndarray], list[int]], vectors: np.ndarray, questions: np.ndarray) -> dict[str, float]:
    """Recall against an exact scan, and milliseconds a question (after one that loads the index)."""
    ask(questions[0])
    spent, near = [], []
    for question in questions:
        began = time.perf_counter()
        near.append(ask(question))
        spent.append(1000 * (time.perf_counter() - began))
    exact = np.argsort(-(questions @ vectors.T), axis=1)
    result = {"p50_ms": float(np.percentile(spent, 50)), "p95_ms": float(np.percentile(spent, 95))}
    for k in (10, 50, 200):
        shared = [len({slot - 1 for slot in one[:k]} & set(true[:k].tolist())) / k for one, true in zip(near, exact, strict=True)]
        result[f"recall@{k}"] = float(np.mean(shared))
    return result


def plain(folder: Path, vectors: np.ndarray, questions: np.ndarray) -> dict[str, float]:
    """Chroma as it comes: cosine, everything else its own settings."""
    chroma._chromadb()  # the import is not what is measured
    folder.mkdir()

    def add() -> None:
        client = chroma._client(folder)
        collection = client.create_collection("plain", embedding_function=None, configuration={"hnsw": {"space": "cosine"}})
        for start in range(0, len(vectors), BATCH):
            part = vectors[start : start + BATCH]
            collection.add(ids=[str(start + row + 1) for row in range(len(part))], embeddings=part)
        client.close()

    def ask(question: np.ndarray) -> list[int]:
        return [int(slot) for slot in collection.query(query_embeddings=[question.tolist()], n_results=200, include=[])["ids"][0]]

    result = timed(len(vectors), add)
    client = chroma._client(folder)
    collection = client.get_collection("plain", embedding_function=None)
    result |= found(ask, vectors, questions)
    client.close()
    return result


def ours(where: Store, ledger: Path, vectors: np.ndarray, questions: np.ndarray) -> dict[str, float]:
    """A rebuild from the ledger; then questions, a session with a thorough probe, a second rebuild that is asked meanwhile."""
    if isinstance(where, chroma.Directory):
        chroma._chromadb()  # the import is not what is measured
    records = len(vectors)
    result = timed(records, lambda: where.rebuild("bench", from_ledger(ledger, records)))
    result |= found(lambda question: [slot for slot, _ in where.nearest("bench", question, 200)], vectors, questions)
    began = time.perf_counter()
    with where.open("bench") as memory:
        wrong = memory.probe(records, [1, records], vectors[[0, -1]], thorough=True)
    assert not wrong, wrong
    result["probe_ms"] = 1000 * (time.perf_counter() - began)
    spent: list[float] = []
    refused = 0
    over = threading.Event()

    def asking() -> None:
        nonlocal refused
        while not over.is_set():
            began = time.perf_counter()
            try:
                where.nearest("bench", questions[len(spent) % QUESTIONS], 50)
            except chroma.MemoryBroken:
                refused += 1
            spent.append(1000 * (time.perf_counter() - began))
            over.wait(0.03)

    thread = threading.Thread(target=asking)
    thread.start()
    where.rebuild("bench", from_ledger(ledger, records))
    over.set()
    thread.join()
    return {**result, "during_p50_ms": float(np.percentile(spent, 50)), "during_worst_ms": max(spent), "during_refused": refused}


def exact(vectors: np.ndarray, questions: np.ndarray) -> dict[str, float]:
    """One matrix-vector product over vectors that are in memory."""

    def ask(question: np.ndarray) -> list[int]:
        cosines = vectors @ question
        near = np.argpartition(-cosines, 199)[:200]
        return (1 + near[np.argsort(-cosines[near])]).tolist()

    return found(ask, vectors, questions)


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[str]:
    """`chroma run` on loopback; its address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    command = [*CHROMA, "run", "--path", str(folder), "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api/v2/heartbeat", timeout=1):
                break
            time.sleep(0.1)
        yield address
    finally:
        process.terminate()
        process.wait()


def measured(arm: str, kind: str, records: int, dims: int, folder: Path) -> dict[str, float]:
    """One arm, in this process."""
    vectors, questions = drawn(kind, records, dims)
    if arm == "plain":
        return plain(folder / "plain", vectors, questions)
    if arm == "exact":
        return exact(vectors, questions)
    with Ledger(folder / "ledger.db") as ledger:
        ledger.put_vectors("bench", range(1, records + 1), vectors)
    if arm == "ours":
        return ours(chroma.Directory(folder / "memory"), folder / "ledger.db", vectors, questions)
    with serving(folder / "server") as address:
        return ours(server.store(folder / "memory", address, "bench"), folder / "ledger.db", vectors, questions)


def main() -> None:
    """Run the arms in turn and print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--dims", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--server", action="store_true", help="also `chroma run` on loopback")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)  # arm, kind, folder: what a child measures
    options = parser.parse_args()
    if options.one:
        arm, kind, folder = options.one
        print(json.dumps(measured(arm, kind, options.records, options.dims, Path(folder))))
        return
    arms = ["plain", "ours", *(["server"] if options.server else []), "exact"]
    table: dict[str, dict[str, float]] = {}
    for kind in ("clusters", "none"):
        runs: dict[str, list[dict[str, float]]] = {arm: [] for arm in arms}
        for _ in range(options.rounds):
            for arm in arms:
                folder = Path(tempfile.mkdtemp())
                size = ["--records", str(options.records), "--dims", str(options.dims)]
                ran = subprocess.run([sys.executable, __file__, *size, "--one", arm, kind, str(folder)], stdout=subprocess.PIPE, check=True)
                runs[arm].append(json.loads(ran.stdout))
                shutil.rmtree(folder)
        for arm in arms:
            table[f"{kind}, {arm}"] = {name: statistics.median(run[name] for run in runs[arm]) for name in runs[arm][0]}
    if options.json:
        print(json.dumps(table, indent=1))
        return
    print(f"{options.records:,} vectors of {options.dims} dimensions, k = 200, medians of {options.rounds}")
    for name, row in table.items():
        print(f"{name:18}" + "  ".join(f"{key} {value:,.4f}" if "recall" in key else f"{key} {value:,.1f}" for key, value in row.items()))


if __name__ == "__main__":
    main()
