"""Planted secrets, one vault, the whole way: nothing of them in any file of the state, in our notes, in a log or in what may be sent."""

from __future__ import annotations

import dataclasses
import functools
import json
import queue
import random
import re
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.test_imports import talk, write_export
from tests.test_redact import BENCH
from vaultllm import bundle, checkpoints, config, hands, heartbeat, pipeline, steps, training, watch
from vaultllm.errors import DataError
from vaultllm.models import micro, plan
from vaultllm.redact import KINDS

pytestmark = pytest.mark.usefixtures("one_thread", "learns_later")
LEFT_OUT = ("pin",)  # so short that it stands in any file
WORDS = {
    "ru": "Насос стоит у колодца, вода поднимается медленно. Вчера {} записал сюда, чтобы не забыть. Дождь шёл весь день.",
    "bn": "নদীর ধারে পাম্প আছে, জল ধীরে ওঠে। গতকাল {} এখানে লিখে রাখলাম। সারাদিন বৃষ্টি।",
    "en": "The pump stands by the well and the water rises slowly. Yesterday {} was written here. It rained all day.",
}


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


PLACES: dict[str, Callable[[str, str], tuple[str, str]]] = {
    "note": lambda name, text: (f"{name}.md", f"# {name}\n\n{text}\n"),
    "front matter": lambda name, text: (f"{name}.md", f"---\nsummary: {quoted(text)}\n---\n# {name}\n\nВода стояла низко.\n"),
    "title": lambda name, text: (f"{name}.md", f"---\ntitle: {quoted(text)}\n---\nВода стояла низко, насос молчал.\n"),
    "heading": lambda name, text: (f"{name}.md", f"# {name}\n\n## {text}\n\nВода стояла низко, насос молчал до вечера.\n"),
    "chat": lambda name, text: (
        f"{name}.md",
        f">[!nexus_user] **User** - 16.06.2025 at 21:34\n> {text}\n<!-- UID: {name}-1 -->\n\n"
        f">[!nexus_agent] **Assistant** - 16.06.2025 at 21:35\n> Хорошо, запомню: {text}\n<!-- UID: {name}-2 -->\n",
    ),
    "canvas": lambda name, text: (
        f"{name}.canvas",
        json.dumps({"nodes": [{"id": "a", "type": "text", "text": text, "x": 0, "y": 0, "width": 9, "height": 9}], "edges": []}),
    ),
}  # fmt: skip


def planted() -> list[tuple[str, str, str]]:
    """(kind, what is written on one line, the secret in it): one of each kind, in a sentence of one of three languages."""
    found = []
    for number, kind in enumerate(kind for kind in KINDS if kind not in LEFT_OUT):
        rng = random.Random(f"secrets {kind}")
        written, secret = BENCH.MAKERS[kind](rng)
        while BENCH.is_placeholder(secret) or len(secret) < 8:
            written, secret = BENCH.MAKERS[kind](rng)
        found.append((kind, WORDS[("ru", "bn", "en")[number % 3]].format(written), secret.split("\n")[0]))
    return found


SECRETS = planted()


def fragments(secret: str) -> list[bytes]:
    """The secret and, of a long one, its halves, as UTF-8, as JSON escapes it, and in UTF-16."""
    parts = [secret, secret[: len(secret) // 2], secret[len(secret) // 2 :]] if len(secret) >= 24 else [secret]
    return [form for part in parts for form in (part.encode(), json.dumps(part)[1:-1].encode(), part.encode("utf-16-le"))]


def leaks(*roots: Path) -> list[tuple[str, str]]:
    """(kind, file) for each secret that stands in a file below these folders; zip files are looked into."""
    found = []
    for path in (path for root in roots for path in [root, *sorted(root.rglob("*"))] if path.is_file()):
        data = path.read_bytes()
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                data += b"".join(archive.read(name) for name in archive.namelist())
        found += [(kind, path.name) for kind, _, secret in SECRETS if any(part in data for part in fragments(secret))]
    return found


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[steps.Job]:
    """A vault with a secret in each note, in turn in each kind of place; a model that is as small as can be."""
    monkeypatch.setattr(plan, "SHAPES", (plan.Shape(64, 2, 2, 160),))
    for name, value in {"CONTEXT": 64, "LONG_CONTEXT": 128, "STEP_TOKENS": 512}.items():
        monkeypatch.setattr(plan, name, value)
    monkeypatch.setattr(micro, "pretrain", functools.partial(micro.pretrain, steps=4))
    monkeypatch.setattr(training, "MEASURES", 1e-5)
    vault = tmp_path / "vault"
    vault.mkdir()
    for number, (kind, line, _) in enumerate(SECRETS):
        for turn in range(2):  # each secret in two kinds of places, all kinds of places many times
            place = list(PLACES.values())[(number + 3 * turn) % len(PLACES)]
            name, text = place(f"{kind} {turn}", line.replace("\n", " "))
            (vault / name).write_text(text, encoding="utf-8")
    made = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    yield made
    made.close()


@pytest.mark.timeout(900)  # on an idle machine a tenth of it
def test_no_secret_reaches_memory_dataset_adapter_log_report_answer_or_bundle(
    job: steps.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace = job.workspace
    assert len(SECRETS) >= 50
    with heartbeat.beating(workspace.state, workspace.vault) as heart:
        done = steps.ingest(job)
        heart.beat("watching", last={"event": "ingested", "failed": len(done["notes"]["failed"]), "notes": done["notes"]["seen"]})
        (tmp_path / "daemon.json").write_bytes((workspace.state / heartbeat.FILE).read_bytes())  # it goes when the daemon ends
    messages = [(f"u{at}", ("user", "assistant")[at % 2], line, f"u{at - 1}" if at else "") for at, (_, line, _) in enumerate(SECRETS)]
    steps.import_(job, [write_export(tmp_path / "export", talk("c1", messages, title=SECRETS[3][1]))])
    plans = tmp_path / "ask.yaml"
    plans.write_text("when: manual\nsteps:\n  - dataset\n  - status\n", encoding="utf-8")
    pipeline.run(job, pipeline.load(plans), {})
    kept: list[tuple[str, str]] = []
    put = checkpoints.put

    def searched(made: Path, *rest: Any) -> Path:
        kept.extend(leaks(made))
        seen.append(made.name)
        return put(made, *rest)

    seen: list[str] = []
    monkeypatch.setattr(checkpoints, "put", searched)
    ended = steps.train(job, minutes=0.1)
    steps.promote(job, ended["run"], force=True, reason="a test")
    for question in ("Что записано про насос у колодца?", "What was written by the well?", "পাম্পের পাশে কী লেখা আছে?"):
        said = steps.ask(job, question)
        assert said["note"]
    (tmp_path / "out").mkdir()
    bundle.write(tmp_path / "out" / "bundle.zip", workspace, job.ledger, steps.doctor(job)["problems"])
    (tmp_path / "out" / "said.json").write_text(
        json.dumps([done, ended, steps.status(job)], ensure_ascii=False, default=str), encoding="utf-8"
    )
    (tmp_path / "daemon.json").rename(tmp_path / "out" / "daemon.json")

    stored = b"".join(path.read_bytes() for path in workspace.state.rglob("*") if path.is_file())
    for word in ("Насос стоит у колодца", "নদীর ধারে পাম্প", "The pump stands by the well", "⟨email⟩", "⟨card⟩"):
        assert word.encode() in stored, "the control: what is no secret is found by the same search"
    assert leaks(workspace.vault), "the control: the vault itself holds them all"
    assert {kind for kind, _ in leaks(workspace.vault)} == {kind for kind, _, _ in SECRETS}
    there = {path.relative_to(workspace.state).parts[0] for path in workspace.state.rglob("*")}
    assert {"ledger.db", "memory", "scenes", "datasets", "bases", "runs", "imports", "pipelines.log"} <= there
    assert list(workspace.state.rglob("adapter_model.safetensors"))
    assert list(workspace.state.rglob("tokenizer.json"))
    assert ended["report"]
    assert kept == []
    # An imported talk is kept as it was said, like a note: it is a source, and what is derived from it is what counts.
    derived = [path for path in workspace.state.iterdir() if path.name != "imports"]
    assert leaks(*derived, workspace.vault / "vaultllm", tmp_path / "out") == []
    assert not seen or all(name.startswith("checkpoint") for name in seen)


def test_what_the_daemon_logs_holds_no_word_of_a_note_and_no_name_of_one_even_when_it_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    (vault / "Обелиск zither.md").write_text("---\nx: [\n---\n# Марципан\n\nкварц [[Колибри]] #тайник\n", encoding="utf-8")
    (vault / "битая.md").write_bytes(b"\xff\xfe\x00kolibri\xd8")
    (vault / "большая.md").write_bytes("слон ".encode() * 2_000_000)
    workspace = config.init_workspace(vault, str(tmp_path / "state"))
    planted = re.compile("обелиск|zither|марципан|кварц|колибри|kolibri|тайник|битая|большая|слон", re.IGNORECASE)
    logged: list[dict[str, Any]] = []
    stop = threading.Event()
    raised: list[Exception] = [
        RuntimeError("кварц колибри in 'Обелиск zither.md'"),
        DataError("cannot be read; make it readable", path="Обелиск zither.md", line=3),
        OSError(28, "No space left on device", "/vault/Обелиск zither.md"),
        ValueError("слон"),
    ]
    real = steps.ingest

    def failing(job: steps.Job, *rest: Any, **options: Any) -> dict[str, Any]:
        if raised:
            raise raised.pop(0)
        stop.set()
        return real(job, *rest, **options)

    class Here(hands.Hands):
        """The child's work in this process: what it says to the daemon is what it says through its pipe."""

        def do(self, verb: Any, beat: Any = None, **arguments: Any) -> Any:
            asked: Any = queue.SimpleQueue()
            asked.put({"verb": verb, **arguments})
            asked.put(None)
            hands._work(workspace, asked, self._answers.put, threading.Event())
            self.is_busy = True
            while (answer := self.look(1.0)) is None:
                pass
            return answer

    monkeypatch.setattr(steps, "ingest", failing)
    monkeypatch.setattr(steps, "ingest_named", failing)
    monkeypatch.setattr(watch, "Hands", Here)
    settings = workspace.settings.model_copy(
        update={"watch": workspace.settings.watch.model_copy(update={"reconcile": 0.2, "settle": 0.1})}
    )
    watch.run(steps.Job(dataclasses.replace(workspace, settings=settings)), log=logged.append, stop=stop)
    assert [line for line in logged if planted.search(json.dumps(line, ensure_ascii=False))] == []
    assert [line["event"] for line in logged].count("problem") >= 3
    assert "ingested" in [line["event"] for line in logged]


def test_the_search_for_leaks_finds_one(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(b"\0\1" + SECRETS[0][2].encode() + b"\2")
    with zipfile.ZipFile(tmp_path / "b.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x", SECRETS[5][2])
    assert {name for _, name in leaks(tmp_path)} == {"a.bin", "b.zip"}
