"""Recall at size: question, saved note, cold start, words index, memory; beside bm25s, plain Chroma and an exact scan.

    python benchmarks/recall.py [--sizes 1000,10000,100000] [--queries 100] [--notes 10] [--keep FOLDER]

Scenes are generated: sections and exchanges of about 600 characters in three languages, a vocabulary of tens of thousands
of words with Zipf's frequencies (with a few dozen words every list of postings would be as long as the vault), topics that
neighbouring notes share, links between them. Each question is a few words of one scene, some with another ending or a typo.
Each measurement runs in its own process, so that the peak memory is its own. Times are wall times of a warm process unless
they say otherwise; the machine should have nothing else to do. Chroma is the embedded one, in both of its rows: ours, and
plain (its defaults, the same vectors, in batches of 500). bm25s is measured where it is installed. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

SCENES_OF_A_NOTE = 4
TOPICS = 200
TOP = 10
SYLLABLES = {
    "ru": "ба ве гри до жу за ки ло ме но пра ро сте ту фи ха цве чи шо ры ля не кла ди мо ску вы зна пе ре".split(),
    "en": "ba con der el fra gen hol in ju ker lan mo ner op per qui ron sta ter un vel wen xi yor zan tion ing ble".split(),
    "bn": "কা খি গো চা ছু জা টি ডা তু দি ধা নি পা ফু বা ভি মা রি লো শা সি হা য়া কে বি রা নো".split(),
}
ENDINGS = {"ru": ["", "а", "ы", "ой", "ам", "ами"], "en": ["", "s", "ed", "ing"], "bn": ["", "র", "টি", "তে"]}
WORD_TABLES = ("postings", "documents", "vocabulary", "stems", "grams")  # and what belongs to them


# -- the vault


def vocabulary(language: str, size: int, rng: random.Random) -> list[str]:
    """Made-up words of one to five syllables: the frequent ones short, as in a language."""
    found: dict[str, None] = {}
    while len(found) < size:
        longest = 2 if len(found) < 300 else 5
        found["".join(rng.choice(SYLLABLES[language]) for _ in range(rng.randint(1 + (longest > 2), longest)))] = None
    return list(found)


class Writer:
    """Writes words of a language: general ones by Zipf's law, and those of a topic."""

    def __init__(self, language: str, size: int, seed: int) -> None:
        self.language, self.rng = language, random.Random(seed)
        self.words = vocabulary(language, size, self.rng)
        weights = np.arange(2.7, len(self.words) + 2.7) ** -1.25
        drawn = np.random.default_rng(seed).choice(len(self.words), size=1_000_000, p=weights / weights.sum())
        self.drawn, self.at = drawn.tolist(), 0
        own = len(self.words) // TOPICS
        self.topics = [[self.words[place] for place in range(topic, own * TOPICS, TOPICS)][own // 10 :] for topic in range(TOPICS)]

    def sentence(self, topic: int) -> str:
        """Eight to fourteen words, every fourth one of the topic."""
        said = []
        for _ in range(self.rng.randint(8, 14)):
            self.at = (self.at + 1) % len(self.drawn)
            own, chance = self.topics[topic], self.rng.random()
            word = own[int(len(own) * (4 * chance) ** 3)] if chance < 0.25 else self.words[self.drawn[self.at]]
            said.append(word + (self.rng.choice(ENDINGS[self.language]) if self.rng.random() < 0.5 else ""))
        return " ".join(said).capitalize() + "."

    def paragraph(self, topic: int) -> str:
        """About 600 characters."""
        return " ".join(self.sentence(topic) for _ in range(7))


def note(number: int, count: int, writer: Writer, topic: int) -> str:
    """Four scenes: sections, or (every third note) exchanges of a nexus dialogue."""
    linked = f"[[Заметка {(number * 7 + 1) % count}]] "
    if number % 3 == 0:
        rows = [
            f"---\nnexus: nexus-ai-chat-importer\nprovider: chatgpt\nconversation_id: c{number}\n---\n\n# Title: {writer.sentence(topic)}\n"
        ]
        for turn in range(2 * SCENES_OF_A_NOTE):
            kind, name = (("user", "User"), ("agent", "Assistant"))[turn % 2]
            said = writer.sentence(topic) if turn % 2 == 0 else writer.paragraph(topic)
            uid = f"{number:08d}-0000-4000-8000-{turn:012d}"
            date = f"{1 + number % 28:02d}.{1 + turn // 2:02d}.2025"  # a month between exchanges: each is a scene
            rows.append(f">[!nexus_{kind}] **{name}** - {date} at 21:{30 + turn}\n> {said}\n<!-- UID: {uid} -->\n\n\n")
        return "\n".join(rows)
    parts = [f"---\ntags: [тема/{topic}]\ndate: 2025-{number % 12 + 1:02d}-{number % 28 + 1:02d}\n---\n# {writer.sentence(topic)}\n"]
    parts += [
        f"## {writer.sentence(topic)}\n\n{linked if section == 0 else ''}{writer.paragraph(topic)}" for section in range(SCENES_OF_A_NOTE)
    ]
    return "\n\n".join(parts) + "\n"


def make(vault: Path, scenes: int, queries: int) -> list[str]:
    """Write a vault of about so many scenes; returns questions."""
    rng = random.Random(scenes)
    writers = [Writer(language, size, scenes) for language, size in (("ru", 30_000), ("en", 20_000), ("bn", 12_000))]
    count = max(1, scenes // SCENES_OF_A_NOTE)
    asked = set(rng.sample(range(count), min(queries, count)))
    questions = []
    for number in range(count):
        writer = rng.choices(writers, [6, 3, 1])[0]
        text = note(number, count, writer, number // 5 % TOPICS)
        path = vault / f"{number % 50:02d}" / f"Заметка {number}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        if number in asked:
            questions.append(question(text, rng))
    return (questions * (queries // len(questions) + 1))[:queries]


def question(text: str, rng: random.Random) -> str:
    """Five words that stand together in a note, one with a letter lost."""
    row = max(text.split("\n"), key=len).lstrip("> ").replace(".", "").split()
    start = rng.randrange(max(1, len(row) - 5))
    words = row[start : start + 5]
    place = rng.randrange(len(words))
    words[place] = words[place][:2] + words[place][3:]
    return " ".join(words)


# -- what is measured, each in a process of its own


def percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Milliseconds."""
    return {f"p{q}": float(np.percentile(seconds, q)) * 1000 for q in (50, 95)}


def timed(ask: Callable[[Any], Any], asked: Sequence[Any]) -> tuple[dict[str, float], list[Any]]:
    """Percentiles over the questions, of CPU time too (on a busy machine it says more), and the answers; five first to warm up."""
    for one in asked[:5]:
        ask(one)
    spent, worked, answers = [], [], []
    for one in asked:
        began, before = time.perf_counter(), time.process_time()
        answers.append(ask(one))
        spent.append(time.perf_counter() - began)
        worked.append(time.process_time() - before)
    return percentiles(spent) | {f"cpu_{name}": value for name, value in percentiles(worked).items()}, answers


def worked_for() -> float:
    """Seconds of the processors that this process and its ended children took."""
    both = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in both)


def opened(vault: Path, state: Path) -> Any:
    """A job on the workspace, set up if it is not yet."""
    from vaultllm import config, steps

    return steps.Job(config.init_workspace(vault, str(state)))


def ingest(vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """The first ingest; and what it made, in scenes and bytes."""
    from vaultllm import steps

    job = opened(vault, state)
    result = steps.ingest(job)
    db = job.ledger.db
    db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    (text,) = db.execute("SELECT sum(length(CAST(text AS BLOB))) FROM passages").fetchone()
    owners = dict(db.execute("SELECT name, tbl_name FROM sqlite_master").fetchall())
    words = sum(
        size
        for name, size in db.execute("SELECT name, sum(pgsize) FROM dbstat GROUP BY name").fetchall()
        if owners.get(name, name).split("_")[0] in WORD_TABLES
    )
    counts = job.ledger.counts()
    job.close()
    return {"seconds": result["seconds"], "scenes": counts["scenes"], "notes": counts["notes"], "text": text, "words": words}


def query(vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Questions: everything on, and each half alone."""
    from vaultllm import recall
    from vaultllm.bench import asking

    job = opened(vault, state)
    memory = job.workspace.settings.memory
    found: dict[str, Any] = {}
    for name, settings in {"all": memory, **asking.halves(memory)}.items():
        found[name], answers = timed(
            lambda text, settings=settings: recall.recall(job.ledger, job.workspace.memory, settings, text, TOP, plain=True),
            options["queries"],
        )
        found[name]["empty"] = sum(not one for one in answers)
    job.close()
    return found


def save(vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Notes saved one after the other, in a process that stays as the daemon does: until another process finds them, until all is done.

    From the end of the debounce on, that is with a child that waits to read, as the daemon has one by then.
    """
    from vaultllm import steps, workers

    job = opened(vault, state)
    job.background = True
    steps.ingest(job)
    here, there = multiprocessing.Pipe()
    asker = multiprocessing.get_context("spawn").Process(target=_asks, args=(vault, state, there), daemon=True)
    asker.start()
    here.recv()
    ingested, searchable, cpu = [], [], []
    for number in range(options["notes"]):
        mark, path = f"новослово{number:04d}кря", vault / f"Новая {number}.md"
        workers.stand_by()
        here.send((mark, path.name))
        time.sleep(1.5)
        path.write_text(f"# Новая {number}\n\nЗдесь стоит {mark} среди других слов заметки.\n", encoding="utf-8")
        began, worked = time.perf_counter(), worked_for()
        steps.ingest_named(job, [path.name])  # as the daemon does when an event names it
        ingested.append(time.perf_counter() - began)
        cpu.append(worked_for() - worked)
        searchable.append(here.recv() - began)
    here.send(None)
    asker.join()
    for path in vault.glob("Новая *.md"):
        path.unlink()
    steps.ingest(job)
    job.close()
    return {"ingested": percentiles(ingested), "searchable": percentiles(searchable), "cpu_ms": 1000 * statistics.median(cpu)}


def _asks(vault: Path, state: Path, pipe: Connection) -> None:
    """In a process of its own: when something was written, ask; tell when (by the clock of the machine) a note is the best hit."""
    from vaultllm import recall

    job = opened(vault, state)
    memory, seen = job.workspace.settings.memory, -1
    recall.recall(job.ledger, job.workspace.memory, memory, "вода", TOP)
    pipe.send(None)
    while wanted := pipe.recv():
        mark, name = wanted
        while True:
            (now,) = job.ledger.db.execute("PRAGMA data_version").fetchone()
            if now == seen:
                time.sleep(0.005)
                continue
            seen = now
            hits = recall.recall(job.ledger, job.workspace.memory, memory, mark, 1)
            if hits and hits[0].path == name:
                break
        pipe.send(time.perf_counter())
    job.close()


def cold(vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """`vaultllm search` in a new process, five times."""
    code = "import sys; from vaultllm import cli; sys.exit(cli.main(sys.argv[1:]))"
    spent, worked = [], []
    for text in options["queries"][:5]:
        command = [sys.executable, "-c", code, "--vault", str(vault), "--state", str(state), "--json", "search", "--", text]
        began, before = time.perf_counter(), worked_for()
        subprocess.run(command, capture_output=True, check=True)
        spent.append(time.perf_counter() - began)
        worked.append(worked_for() - before)
    return {"seconds": statistics.median(spent), "cpu_seconds": statistics.median(worked)}


def _vectors(job: Any, queries: Sequence[str]) -> tuple[str, list[int], np.ndarray, np.ndarray]:
    """Fingerprint, slots, the vectors of the passages (n, dims) and of the questions, those without a direction left out."""
    from vaultllm import remember

    embedder = remember.opened(job.ledger, job.workspace.memory)
    fingerprint = embedder.fingerprint
    slots, vectors = job.ledger.vectors(fingerprint)
    asked = np.asarray(embedder.embed(list(queries), query=True), dtype=np.float32)
    full = vectors.any(axis=1)
    return fingerprint, [slot for slot, one in zip(slots, full, strict=True) if one], vectors[full], asked[asked.any(axis=1)]


def exact(vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """numpy over all vectors; our Chroma against it."""
    from vaultllm.memory import chroma

    job = opened(vault, state)
    fingerprint, slots, vectors, asked = _vectors(job, options["queries"])
    times, nearest = timed(lambda one: _nearest(vectors, one), asked)
    truth = [{slots[row] for row in rows} for rows in nearest]
    with chroma.ChromaMemory(job.workspace.memory, fingerprint) as memory:
        ours, found = timed(lambda one: memory.query(one, TOP), asked)
    job.close()
    kept = [len(one & {slot for slot, _ in hits}) / len(one) for one, hits in zip(truth, found, strict=True)]
    return {"exact": times, "ours": ours, "ours_recall": statistics.mean(kept), "vectors": len(slots), "dims": vectors.shape[1]}


def _nearest(vectors: np.ndarray, one: np.ndarray) -> list[int]:
    """Rows of the nearest vectors."""
    scores = vectors @ one
    best = np.argpartition(-scores, min(TOP, len(scores) - 1))[:TOP]
    return [int(row) for row in best[np.argsort(-scores[best])]]


def plain_chroma(vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Chroma as anyone would use it: one collection, cosine, its other defaults."""
    import chromadb

    job = opened(vault, state)
    _, slots, vectors, asked = _vectors(job, options["queries"])
    job.close()
    names = [str(slot) for slot in slots]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        client = chromadb.PersistentClient(folder, settings=chromadb.Settings(anonymized_telemetry=False))
        collection = client.create_collection("plain", embedding_function=None, configuration={"hnsw": {"space": "cosine"}})
        began = time.perf_counter()
        for start in range(0, len(names), 500):
            collection.add(ids=names[start : start + 500], embeddings=vectors[start : start + 500])
        rate = len(names) / (time.perf_counter() - began)
        times, found = timed(lambda one: collection.query(query_embeddings=[one], n_results=TOP, include=["distances"])["ids"][0], asked)
    kept = [len({names[row] for row in _nearest(vectors, one)} & set(ids)) / TOP for one, ids in zip(asked, found, strict=True)]
    return {**times, "rate": rate, "recall": statistics.mean(kept)}


def bm25s(vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """bm25s over the same passages, cut by its own tokenizer; indexing from texts that are in memory."""
    import bm25s

    job = opened(vault, state)
    texts = [f"{context}\n{text}" for context, text in job.ledger.db.execute("SELECT context, text FROM passages ORDER BY slot")]
    job.close()
    began = time.perf_counter()
    index = bm25s.BM25()
    index.index(bm25s.tokenize(texts, stopwords=None, show_progress=False), show_progress=False)
    seconds = time.perf_counter() - began

    def ask(text: str) -> Any:
        tokens = bm25s.tokenize([text], stopwords=None, show_progress=False)
        return index.retrieve(tokens, k=min(TOP, len(texts)), show_progress=False)

    times, _ = timed(ask, options["queries"])
    return {**times, "index_seconds": seconds}


MEASURES = {"ingest": ingest, "query": query, "save": save, "cold": cold, "exact": exact, "plain": plain_chroma, "bm25s": bm25s}


def child(what: str, vault: str, state: str) -> None:
    """One measurement, its options on standard input; prints JSON with the peak memory of this process."""
    found = MEASURES[what](Path(vault), Path(state), json.load(sys.stdin))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(json.dumps(found | {"mb": peak / (2**20 if sys.platform == "darwin" else 2**10)}))


def measure(what: str, vault: Path, state: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Run one measurement in its own process."""
    command = [sys.executable, __file__, "--child", what, str(vault), str(state)]
    done = subprocess.run(command, input=json.dumps(options), stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# -- the tables


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def _both(times: dict[str, float]) -> str:
    return f"{times['p50']:.2f} / {times['p95']:.2f}"


def ours(scenes: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """What is ours at one size."""
    first, asked, saved = found["ingest"], found["query"], found["save"]
    return [
        scenes, f"{first['text'] / 2**20:.1f}", f"{first['seconds']:.1f}",
        _both(asked["all"]), _both(asked["words"]), _both(asked["dense"]), _both(asked["no resonance"]),
        f"{found['cold']['seconds']:.2f}", _both(saved["searchable"]), _both(saved["ingested"]), f"{saved['cpu_ms']:.0f}",
        f"{first['words'] / first['text']:.2f}", f"{first['mb']:.0f}", f"{asked['mb']:.0f}", f"{saved['mb']:.0f}",
    ]  # fmt: skip


OURS = (
    "scenes", "text MB", "ingest s", "question p50 / p95 ms", "words alone", "vectors alone", "no resonance", "cold `search` s",
    "saved note found ms", "its ingest ms", "CPU ms", "words index / text", "peak MB of ingest", "of questions", "of saved notes",
)  # fmt: skip


def peers(scenes: str, found: dict[str, dict[str, Any]]) -> list[str]:
    """The same vectors and passages elsewhere."""
    scan, plain, other = found["exact"], found["plain"], found.get("bm25s")
    return [
        scenes, f"{scan['vectors']:,} x {scan['dims']}", _both(scan["exact"]), _both(scan["ours"]), f"{scan['ours_recall']:.4f}",
        _both(plain), f"{plain['recall']:.4f}", f"{plain['rate']:.0f}",
        _both(other) if other else "-", f"{other['index_seconds']:.1f}" if other else "-",
        " / ".join(f"{found[name]['mb']:.0f}" for name in ("exact", "plain", "bm25s") if name in found),
    ]  # fmt: skip


PEERS = (
    "scenes", "vectors", "exact numpy p50 / p95 ms", "our Chroma", "its recall@10 of the exact", "plain Chroma", "its recall@10",
    "its vectors/s", "bm25s", "bm25s index s", "peak MB: exact / plain / bm25s",
)  # fmt: skip


def main() -> None:
    """Print both tables, a size at a time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="1000,10000,100000", help="how many scenes to generate, one table row each")
    parser.add_argument("--queries", type=int, default=100, help="questions of each kind")
    parser.add_argument("--notes", type=int, default=10, help="notes that are saved one after the other")
    parser.add_argument("--only", default="", help="these measurements alone, as JSON: " + ", ".join(MEASURES))
    parser.add_argument("--keep", type=Path, help="keep the generated vaults and states here, and use those that are there")
    parser.add_argument("--child", nargs=3)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    wanted = [name for name in MEASURES if name != "bm25s" or importlib.util.find_spec("bm25s")]
    wanted = [name for name in wanted if name in options.only.split(",")] if options.only else wanted
    rows: dict[str, dict[str, Any]] = {}
    for size in map(int, options.sizes.split(",")):
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as made:
            folder = (options.keep or Path(made)) / str(size)
            vault, state, asked = folder / "vault", folder / "state", folder / "questions.json"
            if not asked.exists():
                vault.mkdir(parents=True)
                asked.write_text(json.dumps(make(vault, size, options.queries)), encoding="utf-8")
            given = {"queries": json.loads(asked.read_text(encoding="utf-8")), "notes": options.notes}
            found = {name: measure(name, vault, state, given) for name in wanted}
        if options.only:
            print(json.dumps({size: found}), flush=True)
            continue
        rows[f"{found['ingest']['scenes']:,}"] = found
        print(f"{size:,}: done", file=sys.stderr, flush=True)
    if rows:
        print(table(OURS, [ours(*one) for one in rows.items()]) + "\n\n" + table(PEERS, [peers(*one) for one in rows.items()]))


if __name__ == "__main__":
    main()
