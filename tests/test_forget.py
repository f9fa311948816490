"""Forgetting is real: no byte of a text is left in any file, nothing else is lost, and it does not come back by itself."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.test_imports import Message, note, talk, write_export
from vaultllm import answer, cli, config, conversing, forget, forgotten, importing, imports, registry, remember, steps, views
from vaultllm.errors import DataError, LockedError, UsageError, VaultError
from vaultllm.memory import embed
from vaultllm.schema import Answer, Citation, Run
from vaultllm.text import words

SECRET = "Под третьей доской лежит квазиштуковина, завёрнутая в синюю клеёнку."
PLAIN = "Ключ от дальнего сарая висит за портретом прадеда на гвозде."
NOTE = f"""---
tags: [тайник]
plan: только для своих, никому этого не показывать
---
# Где что лежит

{SECRET} {PLAIN}
См. [[Дача]] и #самоеважноеместововсёмдоме.

## Про чердак

На чердаке стоит сундук с письмами, их трогать нельзя до весны.
"""
UIDS = [f"11111111-aaaa-4000-8000-00000000000{number}" for number in range(1, 5)]
TALK: list[Message] = [
    (UIDS[0], "user", "Когда поливать огурцы в теплице, если ночью было холодно?", ""),
    (UIDS[1], "assistant", "Поливать стоит утром тёплой водой, когда теплица прогрелась.", UIDS[0]),
    (UIDS[2], "user", "Мой врач сказал принимать глицин по утрам, это не мешает полевым работам?", UIDS[1]),
    (UIDS[3], "assistant", "Обычно нет, но спросите того врача, который его назначил вам.", UIDS[2]),
]
PRIVATE, REPLY = TALK[2], TALK[3]
OTHERS = {
    "Дача.md": "# Дача\n\nНасос включается, когда влажность ниже тридцати двух процентов.\n\n## Бочка\n\nБочка на двести литров.\n",
    "Bread.md": "# Bread\n\nRye bread needs fourteen hours of cold proof and a hot oven.\n",
    "নদী.md": "# নদী\n\nআজ সকালে বৃষ্টি হয়েছে। নদীর জল বেড়েছে।\n",
}


def write(vault: Path, files: dict[str, str]) -> None:
    for path, text in files.items():
        (vault / path).parent.mkdir(parents=True, exist_ok=True)
        (vault / path).write_text(text, encoding="utf-8")


def made(root: Path, files: dict[str, str]) -> steps.Job:
    vault = root / "vault"
    vault.mkdir(parents=True)
    write(vault, files)
    job = steps.Job(config.init_workspace(vault, str(root / "state")))
    steps.ingest(job)
    return job


@pytest.fixture
def job(tmp_path: Path) -> Iterator[steps.Job]:
    files = OTHERS | {"Дом/Клад.md": NOTE, "Chats/Полив.md": note("c1", TALK, "Полив")}
    found = made(tmp_path, files)
    yield found
    found.close()


def holding(job: steps.Job, said: str) -> list[str]:
    """Files of the state folder that hold a text, by plain comparing of bytes: not the way in which `forget` looks."""
    escaped = json.dumps(said)[1:-1].encode()
    forms = (said.encode(), said.encode("utf-16-le"), said.encode("utf-16-be"), escaped)
    root = job.workspace.state
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    return [path.relative_to(root).as_posix() for path in files if any(form in path.read_bytes() for form in forms)]


def tree(root: Path) -> dict[str, str]:
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(root.rglob("*")) if path.is_file()}


def trained(job: steps.Job, name: str, dataset: str, base: str = "model", *, answers: bool) -> Run:
    """A run as a training leaves it, with an adapter's file."""
    run = Run(name, "lora", base, "f", dataset, {}, 0, "", "done", {}, {}, f"2025-01-0{name[-1]}", promoted=answers, reason="better")
    (job.workspace.runs / name / "adapter").mkdir(parents=True)
    (job.workspace.runs / name / "adapter" / "adapter_model.safetensors").write_bytes(b"weights")
    job.ledger.put_run(run)
    if answers:
        registry.let_answer(job.workspace, job.ledger, run)
    return run


def account(job: steps.Job) -> dict[str, Any]:
    """The account of notes and messages, which must add up."""
    status = steps.status(job)
    reasons = {problem["path"] for problem in status["problems"]}
    known = set(job.ledger.known())
    assert known == set(job.ledger.notes_with_scenes()) | (known & reasons)
    turns = status["turns"]
    assert turns["seen"] == turns["in_scenes"] + turns["left_out"]
    assert turns["left_out"] == sum(turns["why"].values())
    return status


def test_no_byte_of_a_note_is_left_in_any_file_and_the_vault_is_as_it_was(job: steps.Job) -> None:
    state, vault = job.workspace.state, job.workspace.vault
    frozen = steps.dataset(job)["id"]
    assert SECRET.encode() in (job.workspace.datasets / frozen / "train.jsonl").read_bytes()  # learnt, not held out
    trained(job, "run-1", "another", answers=True)
    trained(job, "run-2", frozen, answers=True)
    quotation = Citation("Дом/Клад.md", (7, 7), "", SECRET, "[[Клад]]")
    other = Citation("Дача.md", (3, 3), "", "Насос включается", "[[Дача]]")
    said = Answer("Что под доской?", f"{SECRET} [1]", True, (quotation, other), "m", "", "p", "2025-06-15T10:00:00+03:00", 1.0)
    written = answer.write(job.workspace, job.ledger, said)
    ours = job.ledger.ours()
    (state / "map.html").write_text(json.dumps(SECRET), encoding="utf-8")
    (state / "watch.log").write_text(f"started\nproblem: {SECRET}\nstopped\n", encoding="utf-8")
    (state / "scenes" / ".0a1b2c3d.tmp").write_text(SECRET, encoding="utf-16-le")
    job.ledger.db.execute("VACUUM INTO ?", (str(state / "ledger-backup.db"),))
    before = tree(vault)
    assert len(holding(job, SECRET)) >= 7  # the search finds what is there: ledger, scenes, dataset, map, log, rest, backup

    result = steps.forget(job, "Дом/Клад.md")

    for line in (SECRET, PLAIN, "На чердаке стоит сундук с письмами", "только для своих, никому этого не показывать"):
        assert holding(job, line) == []
    assert holding(job, "квазиштуковин") == []  # nor a word that nothing else says
    assert holding(job, "самоеважноеместовов") == []
    assert tree(vault) == before
    assert result["removed"] == {"notes": 1, "scenes": 1, "passages": 1, "imports": 0, "datasets": 1, "answers": 1}
    assert result["searched"]["fragments"] >= 4
    assert result["searched"]["files"] >= len([path for path in state.rglob("*") if path.is_file()]) - 3
    assert [run["id"] for run in result["runs"]] == ["run-2"]
    assert (result["current"], registry.current(job.workspace)) == ("run-1", "run-1")
    assert result["notes_that_quote_it"] == [written]
    assert (state / "watch.log").read_text(encoding="utf-8") == "started\nstopped\n"
    assert job.ledger.ours() == ours
    assert [source["path"] for source in json.loads(job.ledger.answers(1)[0][1])["sources"]] == ["Дача.md"]
    with pytest.raises(UsageError, match="revoked"):
        registry.promote(job.workspace, job.ledger, "run-2", "again", force=True)
    assert {run["id"]: run["decision"] for run in steps.runs(job)["runs"]} == {"run-1": "promoted", "run-2": "revoked"}
    assert registry.new_scenes(job.workspace, job.ledger) == job.ledger.counts()["trainable"]  # `retrain` has something to do

    status = account(job)
    (problem,) = [one for one in status["problems"] if one["code"] == "W-FORGOTTEN"]
    assert problem["path"] == "Дом/Клад.md"
    assert status["forgotten"] == {"entries": 1, "unfinished": 0}
    assert not steps.explain(job, "Дом/Клад.md")["taken"]
    steps.ingest(job, full=True)
    steps.dataset(job)
    assert holding(job, SECRET) == []
    assert steps.doctor(job)["ok"]


def test_nothing_else_is_lost(job: steps.Job, tmp_path: Path) -> None:
    steps.forget(job, "Дом/Клад.md")
    fresh = made(tmp_path / "fresh", OTHERS | {"Chats/Полив.md": note("c1", TALK, "Полив")})
    assert list(job.ledger.scenes()) == list(fresh.ledger.scenes())
    for path in fresh.ledger.notes_with_scenes():
        name = f"{path}.yaml"
        assert (job.workspace.scenes / name).read_bytes() == (fresh.workspace.scenes / name).read_bytes()

    def legs(one: steps.Job, query: str) -> list[Any]:
        index, slots = one.ledger.index, one.ledger.passages
        return [
            sorted((slots([slot])[slot].path, slots([slot])[slot].passage.ordinal, round(score, 9)) for slot, score in leg.best(20))
            for leg in (index.stems(query), index.grams(query))
        ]

    for query in ("насос влажность", "rye bread", "নদীর জল", "полив теплицы утром", "квазиштуковина"):
        assert legs(job, query) == legs(fresh, query)
        assert [hit["path"] for hit in steps.search(job, query)["hits"]][:1] == [hit["path"] for hit in steps.search(fresh, query)["hits"]][
            :1
        ]
    embedder = remember.opened(job.ledger, job.workspace.memory)
    slots, vectors = job.ledger.vectors(embedder.fingerprint)
    texts = [f"{context}\n{text}" for _, text, context in job.ledger.texts(slots)]
    assert abs(embedder.embed(texts) - vectors).max() < 1e-5  # the pruned embedder gives the very vectors that are stored
    assert set(embedder.features.tolist()) <= set(embed.features_of({word for text in texts for word in words(text)}).tolist())  # type: ignore[attr-defined]
    assert remember.check(job.ledger, job.workspace.memory, job.workspace.settings.memory) == ""
    fresh.close()


def test_a_message_goes_alone_and_is_counted(job: steps.Job) -> None:
    before = steps.status(job)["turns"]
    result = steps.forget(job, PRIVATE[0])
    assert result["kind"] == "message"
    assert holding(job, PRIVATE[2]) == holding(job, "глицин") == []
    assert holding(job, REPLY[2])
    status = account(job)
    assert status["turns"]["seen"] == before["seen"] == 4
    assert status["turns"]["why"] == {"W-FORGOTTEN": 1}
    steps.ingest(job, full=True)
    assert holding(job, PRIVATE[2]) == []
    (job.workspace.vault / "Chats/Полив.md").rename(job.workspace.vault / "Полив (старое).md")
    steps.ingest(job)
    assert holding(job, PRIVATE[2]) == []
    assert holding(job, REPLY[2])


def test_a_scene_goes_and_its_neighbours_are_a_chain(tmp_path: Path) -> None:
    long = "".join(
        f"# Глава {n}\n\n" + f"Слово номер {n} о разных вещах, которые случились той весной у реки. " * 20 + "\n\n" for n in range(3)
    )
    job = made(tmp_path, OTHERS | {"Книга.md": long, "Другая.md": "# Другая\n\nСовсем о другом и совсем коротко, но своими словами.\n"})
    first, middle, last = job.ledger.scenes("Книга.md")
    result = steps.forget(job, middle.id)
    assert (result["kind"], result["removed"]["scenes"]) == ("scene", 1)
    assert holding(job, "Слово номер 1 о разных") == []
    assert [(scene.id, scene.prev, scene.next) for scene in job.ledger.scenes("Книга.md")] == [
        (first.id, "", last.id),
        (last.id, first.id, ""),
    ]
    (problem,) = [problem for _, problem in job.ledger.problems() if problem.code == "W-FORGOTTEN"]
    assert middle.id in problem.message
    account(job)
    (job.workspace.vault / "Книга.md").rename(job.workspace.vault / "Роман.md")  # its ids change with its path
    steps.ingest(job)
    assert holding(job, "Слово номер 1 о разных") == []
    assert len(list(job.ledger.scenes("Роман.md"))) == 2
    steps.forget(job, middle.id, undo=True)
    steps.ingest(job)
    assert len(list(job.ledger.scenes("Роман.md"))) == 3
    job.close()


def test_an_imported_talk_goes_from_the_store_and_the_next_import_leaves_it_out(job: steps.Job, tmp_path: Path) -> None:
    other: list[Message] = [
        ("u-1", "user", "Какая у меня группа крови и где лежит справка?", ""),
        ("u-2", "assistant", "Справка лежит в синей папке, там же записана и группа.", "u-1"),
    ]
    export = write_export(tmp_path / "export", talk("c1", TALK), talk("c2", other))
    steps.import_(job, [export])
    assert any(path.startswith("imports/") for path in holding(job, PRIVATE[2]))
    steps.forget(job, PRIVATE[0])  # stands in a note and in the store
    assert holding(job, PRIVATE[2]) == []
    assert any(path.startswith("imports/") for path in holding(job, REPLY[2]))
    result = steps.forget(job, "c2")  # a conversation that stands in the store alone
    assert (result["kind"], result["removed"]["imports"]) == ("talk", 1)
    assert holding(job, other[0][2]) == holding(job, other[1][2]) == []
    again = steps.import_(job, [export])
    assert holding(job, PRIVATE[2]) == holding(job, other[0][2]) == []
    assert {problem["code"]: problem["count"] for problem in again["problems"]} == {"W-FORGOTTEN": 3}
    account(job)
    (job.workspace.vault / "Chats/Полив.md").unlink()  # now the store's copy makes the scenes
    steps.ingest(job)
    assert holding(job, PRIVATE[2]) == []
    assert holding(job, REPLY[2])
    account(job)
    steps.forget(job, "c2", undo=True)
    steps.import_(job, [export])
    assert holding(job, other[0][2])


def test_a_forgotten_note_takes_its_talk_out_of_the_store(job: steps.Job, tmp_path: Path) -> None:
    export = write_export(tmp_path / "export", talk("c1", TALK))
    importing.take(job.workspace, [export])
    steps.ingest(job)
    result = steps.forget(job, "Chats/Полив.md")
    assert result["removed"]["imports"] == 1
    for _, _, text, _ in TALK:
        assert holding(job, text) == []
    with pytest.raises(DataError, match="forgotten"):
        steps.import_(job, [export])
    assert not list(imports.root_of(job.workspace.state).rglob("*.json"))
    with pytest.raises(DataError, match="forgotten"):
        steps.reply(job, "Chats/Полив.md")


def test_undo_brings_it_back_with_the_next_ingest(job: steps.Job) -> None:
    before = list(job.ledger.scenes("Дом/Клад.md"))
    steps.forget(job, "Дом/Клад.md")
    with pytest.raises(DataError, match="nothing that is called so was forgotten"):
        steps.forget(job, "Дача.md", undo=True)
    assert steps.forget(job, "Дом/Клад.md", undo=True)["left"] == 0
    steps.ingest(job)
    assert list(job.ledger.scenes("Дом/Клад.md")) == before
    assert steps.search(job, "квазиштуковина")["hits"][0]["path"] == "Дом/Клад.md"
    assert not [problem for _, problem in job.ledger.problems() if problem.code == "W-FORGOTTEN"]


def test_a_renamed_note_stays_forgotten_and_the_other_of_two_copies_stays(job: steps.Job) -> None:
    vault = job.workspace.vault
    write(vault, {"Копия.md": NOTE, "Полка.md": f"# Полка\n\n{PLAIN} И ещё кое-что, о чём только здесь.\n"})
    steps.ingest(job)
    result = steps.forget(job, "Копия.md")
    assert result["said_elsewhere"] == ["Дом/Клад.md", "Полка.md"]
    assert holding(job, SECRET)  # the other one says it
    steps.forget(job, "Дом/Клад.md")
    assert holding(job, SECRET) == []
    assert holding(job, PLAIN)
    (vault / "Дом/Клад.md").rename(vault / "Совсем другое имя.md")
    steps.ingest(job)
    assert holding(job, SECRET) == []
    account(job)
    text = (vault / "Совсем другое имя.md").read_text(encoding="utf-8")
    (vault / "Совсем другое имя.md").write_text(
        text.replace("tags: [тайник]", "tags: [иное]") + "\nНовая мысль о саде.\n", encoding="utf-8"
    )
    steps.ingest(job)
    assert steps.forget(job, "Дом/Клад.md", undo=True)["undone"] == 1


def test_a_note_that_left_the_vault_goes_from_the_datasets_that_learnt_it(job: steps.Job) -> None:
    frozen = steps.dataset(job)["id"]
    (job.workspace.vault / "Дом/Клад.md").unlink()
    steps.ingest(job)
    assert holding(job, SECRET)  # in the dataset
    assert steps.forget(job, "Дом/Клад.md")["removed"]["datasets"] == 1
    assert holding(job, SECRET) == []
    assert (job.workspace.datasets / frozen / "manifest.json").is_file()


def test_a_base_that_read_it_answers_no_more_and_what_was_only_held_out_revokes_nothing(job: steps.Job) -> None:
    (scene,) = job.ledger.scenes("Дом/Клад.md")
    bases, sets = job.workspace.bases, job.workspace.datasets
    for name, scenes in (("micro-1", ["other"]), ("micro-2", [scene.id])):
        (bases / name).mkdir(parents=True)
        (bases / name / "seen.json").write_text(json.dumps({"scenes": scenes, "paths": []}), encoding="utf-8")
    example = {"scenes": [scene.id], "path": "Дом/Клад.md", "messages": [{"role": "user", "text": SECRET, "learn": True}]}
    for name, file in (("learnt", "train.jsonl"), ("held", "val.jsonl")):
        (sets / name).mkdir(parents=True)
        (sets / name / file).write_text(json.dumps(example) + "\n", encoding="utf-8")
        (sets / name / "manifest.json").write_text(json.dumps({"scenes": {scene.id: scene.sha}, "dropped": []}), encoding="utf-8")
    trained(job, "run-1", "held", answers=True)
    trained(job, "run-2", "other", str(bases / "micro-2"), answers=True)
    trained(job, "run-3", "learnt", answers=False)
    assert registry.newest_micro(job.workspace) == bases / "micro-2"
    result = steps.forget(job, "Дом/Клад.md")
    assert [run["id"] for run in result["runs"]] == ["run-2", "run-3"]
    assert (result["bases"], result["current"]) == (["micro-2"], "run-1")
    assert registry.newest_micro(job.workspace) == bases / "micro-1"
    assert not list(sets.glob("*/*.jsonl"))


POINTS = ("_drop_files", "_drop_rows", "_read_again", "_rewrite")


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def test_killed_anywhere_the_same_command_goes_on_to_the_same_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = {
        f"{number}.md": f"# Запись {number}\n\nСовершенно особая строка номер {number}{number}{number}, одна на весь мир.\n"
        for number in range(len(POINTS))
    }
    job = made(tmp_path, OTHERS | lines)
    steps.dataset(job)
    for number, point in enumerate(POINTS):
        path, line = f"{number}.md", f"Совершенно особая строка номер {number}{number}{number}"

        def dies(*args: Any, **options: Any) -> None:
            raise Killed

        with monkeypatch.context() as patch:
            patch.setattr(forget, point, dies)
            with pytest.raises(Killed):
                steps.forget(job, path)
        assert steps.status(job)["forgotten"]["unfinished"] == 1
        steps.forget(job, path)
        assert holding(job, line) == [], point
        assert steps.status(job)["forgotten"] == {"entries": number + 1, "unfinished": 0}
    account(job)
    assert len(job.ledger.notes_with_scenes()) == len(OTHERS)
    job.close()


_CHILD = """
import os, signal, sys
from vaultllm import config, forget, steps
def dies(*args, **options):
    os.kill(os.getpid(), signal.SIGKILL)
setattr(forget, sys.argv[3], dies)
steps.forget(steps.Job(config.open_workspace(sys.argv[1], sys.argv[2])), sys.argv[4])
"""


def test_a_process_that_is_killed_leaves_nothing_that_the_next_does_not_finish(job: steps.Job) -> None:
    workspace = job.workspace
    job.close()
    arguments = [str(workspace.vault), str(workspace.state), "_remember_again", "Дом/Клад.md"]
    done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], cwd=Path(__file__).parents[1], timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert holding(job, SECRET)  # in the log of the ledger, at least
    steps.forget(job, "Дом/Клад.md")
    assert holding(job, SECRET) == []


def test_an_ingest_after_a_kill_does_not_keep_what_is_on_the_list(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def dies(*args: Any, **options: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(forget, "_revoke", dies)
        with pytest.raises(Killed):
            steps.forget(job, "Дом/Клад.md")
    steps.ingest(job)
    assert not list(job.ledger.scenes("Дом/Клад.md"))


def test_a_file_that_still_holds_it_is_named_and_the_command_fails(job: steps.Job, capsys: pytest.CaptureFixture[str]) -> None:
    mine = job.workspace.state / "my notes" / "copy.txt"
    mine.parent.mkdir()
    mine.write_text(f"… {SECRET} …", encoding="utf-8")
    where = ["--vault", str(job.workspace.vault), "--state", str(job.workspace.state)]
    with pytest.raises(SystemExit) as ended:
        cli.main([*where, "forget", "Дом/Клад.md", "--yes", "--json"])
    said = capsys.readouterr().err
    assert ended.value.code == 3
    assert "E-FORGET" in said
    assert "my notes/copy.txt" in said
    assert mine.exists()
    mine.unlink()
    with pytest.raises(SystemExit) as ended:
        cli.main([*where, "forget", "Дом/Клад.md", "--yes", "--json"])
    assert ended.value.code == 0
    assert json.loads(capsys.readouterr().out)["searched"]["fragments"] > 0


def test_nobody_forgets_by_accident(job: steps.Job, capsys: pytest.CaptureFixture[str]) -> None:
    before = tree(job.workspace.state)
    where = ["--vault", str(job.workspace.vault), "--state", str(job.workspace.state)]
    for options in (["--json"], []):  # nobody can be asked
        with pytest.raises(SystemExit) as ended:
            cli.main([*where, "forget", "Дом/Клад.md", *options])
        assert ended.value.code == 2
        assert "--yes" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        cli.main([*where, "forget", "Дом/Клад.md", "--dry-run", "--json"])
    assert ended.value.code == 0
    planned = json.loads(capsys.readouterr().out)
    assert planned["removed"]["scenes"] == 1
    said = str(views.forgotten(planned))
    assert "would go: 1 notes, 1 scenes" in said
    with pytest.raises(SystemExit) as ended:
        cli.main([*where, "forget", "Нет такой.md", "--yes"])
    assert ended.value.code == 3
    assert "nothing is called so" in capsys.readouterr().err
    after = tree(job.workspace.state)
    assert {path for path in before.keys() | after.keys() if before.get(path) != after.get(path)} <= {
        str(job.workspace.state / name) for name in ("lock", "train.lock", "ledger.db-shm", "ledger.db-wal")
    }


def test_a_damaged_list_stops_everything_that_would_read(job: steps.Job) -> None:
    steps.forget(job, "Дом/Клад.md")
    (job.workspace.state / forgotten.FILE).write_text("{", encoding="utf-8")
    with pytest.raises(VaultError, match="what was forgotten is damaged"):
        steps.ingest(job)


def test_a_ledger_that_is_made_anew_does_not_read_what_was_forgotten(job: steps.Job) -> None:
    steps.forget(job, "Дом/Клад.md")
    job.close()
    job.workspace.ledger.unlink()
    shutil.rmtree(job.workspace.memory)
    steps.ingest(job)
    assert holding(job, SECRET) == []
    assert account(job)["notes"] == 5


def test_the_list_holds_no_word_and_no_path(job: steps.Job) -> None:
    steps.forget(job, "Дом/Клад.md")
    steps.forget(job, PRIVATE[0])
    text = (job.workspace.state / forgotten.FILE).read_text(encoding="utf-8")
    assert "Клад" not in json.dumps(json.loads(text), ensure_ascii=False)
    assert PRIVATE[0] not in text
    assert len(forgotten.load(job.workspace.state).entries) == 2
    assert "may be read again" in str(views.forgotten(steps.forget(job, PRIVATE[0], undo=True)))


def test_an_entry_is_undone_by_its_own_name_and_else_by_what_it_took_along() -> None:
    message = forgotten.Entry("message", "message a", "2025", frozenset({"message a"}))
    whole = forgotten.Entry("note", "path b", "2025", frozenset({"path b", "message a", "message c"}))
    found = forgotten.remembering(forgotten.Forgotten.of([message]), whole)
    assert found.entries == (message, whole)
    left, gone = forgotten.undone(found, {"message a"})
    assert (left.entries, gone) == ((whole,), (message,))
    assert forgotten.undone(found, {"path b"})[0].entries == (message,)  # the message was named by itself: it stays forgotten
    assert forgotten.undone(left, {"message c"})[1] == (whole,)
    assert forgotten.remembering(found, dataclasses.replace(whole, done=True)).entries[1].done


def test_room_that_chroma_keeps_free_holds_nothing_of_our_memory(tmp_path: Path) -> None:
    from vaultllm.memory import chroma

    vectors = np.eye(8, dtype=np.float32)
    chroma.rebuild(tmp_path, "f", [(list(range(1, 9)), vectors, ())])
    assert chroma.nearest(tmp_path, "f", vectors[2], 1)[0][0] == 3
    chroma.let_go()
    (generation,) = tmp_path.glob("gen-*")
    files = sorted(generation.glob("*/*.bin"))
    assert {path.name for path in files} >= {"data_level0.bin", "length.bin"}
    for path in files:  # as hnswlib leaves them when `malloc` gives it what we have freed
        if path.name in ("data_level0.bin", "length.bin"):
            data = path.read_bytes()
            path.write_bytes(data[:-96] + SECRET.encode()[:96].ljust(96, b"?"))
    chroma._seal(generation)
    assert not any(SECRET.encode()[:40] in path.read_bytes() for path in files)
    assert chroma.nearest(tmp_path, "f", vectors[5], 2)[0][0] == 6
    with chroma.ChromaMemory(tmp_path, "f") as memory:
        memory.upsert([20], -vectors[:1])
    assert chroma.nearest(tmp_path, "f", -vectors[0], 1)[0][0] == 20
    chroma.let_go()


def test_while_another_process_reads_the_ledger_it_says_so_and_is_not_done(job: steps.Job) -> None:
    job.ledger.db.execute("PRAGMA busy_timeout = 50")
    reader = sqlite3.connect(job.workspace.ledger, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM scenes").fetchone()  # a snapshot of before, which the log must keep
    with pytest.raises(LockedError, match="reads the ledger"):
        steps.forget(job, "Дом/Клад.md")
    assert steps.status(job)["forgotten"]["unfinished"] == 1
    reader.close()
    steps.forget(job, "Дом/Клад.md")
    assert holding(job, SECRET) == []


def test_how_our_answers_lead_to_another_note_is_no_text_of_the_forgotten_one(tmp_path: Path) -> None:
    name = "Заметки/О насосе и бочке на даче.md"
    question = ">[!nexus_user] **User**\n> Что с бочкой и насосом?\n"
    said = "Насос стоит в бочке а бочка стоит за домом"  # so long that what is looked for begins within the link behind it
    job = made(tmp_path, {name: said + "\n", "Чат.md": question})
    first = answer.ask(job.workspace, job.ledger, "где насос и бочка", progress=steps.job.silent)
    answer.write(job.workspace, job.ledger, first)
    conversing.reply(job.workspace, job.ledger, "Чат.md", progress=steps.job.silent)
    steps.ingest(job)
    assert name.removesuffix(".md") in (job.workspace.vault / "Чат.md").read_text(encoding="utf-8")
    assert first.sources[0].path == name
    assert steps.forget(job, "Чат.md")["removed"]["notes"] == 1
    kept = [json.loads(record)["sources"] for _, record in job.ledger.answers(9)]
    assert any(source["link"] == first.sources[0].link for sources in kept for source in sources)
    job.close()
