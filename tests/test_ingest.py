"""Ingest through the steps: incremental, exact, and without a trace in the user's notes."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import unicodedata
from pathlib import Path
from typing import Any

import pytest

from vaultllm import config, scene_yaml, steps
from vaultllm import ingest as ingesting
from vaultllm.errors import VaultError
from vaultllm.memory import chroma

CHAT = """>[!nexus_user] **User** - 16.06.2025 at 21:34
> Почему отказал датчик влажности?
<!-- UID: u1 -->




>[!nexus_agent] **Assistant** - 16.06.2025 at 21:34
> Контакты окислились, ставьте ёмкостный.
<!-- UID: a1 -->
"""


def make_vault(root: Path, notes: int = 6) -> Path:
    vault = root / "мой vault"
    (vault / "Дача").mkdir(parents=True)
    (vault / "Чаты").mkdir()
    for number in range(notes):
        body = f"# Заметка {number}\n\nВода в колодце стояла на отметке {number} метров.\n\n## Ещё\n\nСлово номер {number}.\n"
        (vault / "Дача" / f"Заметка {number}.md").write_text(body, encoding="utf-8")
    (vault / "Чаты" / "датчик.md").write_text(CHAT, encoding="utf-8")
    return vault


@pytest.fixture
def job(tmp_path: Path) -> Any:
    vault = make_vault(tmp_path)
    made = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    yield made
    made.close()


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Every file's modification time and hash."""
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def in_chroma(job: steps.Job) -> set[str]:
    """Paths of everything that Chroma itself holds."""
    fingerprint = job.ledger.db.execute("SELECT DISTINCT embedder FROM vectors").fetchone()[0]
    with chroma.ChromaMemory(job.workspace.memory, fingerprint) as memory:
        slots = [int(slot) for slot in memory._collection.get(include=[])["ids"]]
    known = job.ledger.passages(slots)
    assert set(slots) == set(known)
    return {stored.path for stored in known.values()}


def found_paths(job: steps.Job, query: str) -> set[str]:
    return {hit["path"] for hit in steps.search(job, query, 20)["hits"]}


def test_the_second_ingest_parses_nothing_and_changes_nothing_on_disk(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingesting, "_RACY", 0)  # as if the notes had been written long ago
    first = steps.ingest(job)
    assert first["notes"]["parsed"] == 7
    assert first["scenes"]["added"] == first["scenes"]["total"] == 7
    job.close()
    before = snapshot(job.workspace.state)
    second = steps.ingest(job)
    job.close()
    assert (second["notes"]["parsed"], second["notes"]["unchanged"]) == (0, 7)
    assert second["memory"]["upserted"] == second["memory"]["embedded"] == 0
    assert snapshot(job.workspace.state) == before


def test_a_touched_note_is_hashed_but_not_parsed(job: steps.Job) -> None:
    steps.ingest(job)
    os.utime(job.workspace.vault / "Дача" / "Заметка 1.md")
    assert steps.ingest(job)["notes"]["parsed"] == 0


def test_a_second_edit_within_the_same_tick_of_the_clock_is_seen(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system's clock goes in steps of 4 milliseconds, on a stick of 2 seconds; within one, size and times say nothing."""
    note = job.workspace.vault / "Дача" / "Заметка 1.md"
    found = ingesting.ingest(job.workspace, job.ledger)
    stat = note.stat()
    scan = ingesting.vault.scan

    def coarse(*given: Any) -> Any:
        seen = scan(*given)
        same = {"mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}
        return seen._replace(files=tuple(file._replace(**same) if file.path.endswith(" 1.md") else file for file in seen.files))

    monkeypatch.setattr(ingesting.vault, "scan", coarse)
    assert found.parsed == 7
    note.write_text(note.read_text(encoding="utf-8").replace("отметке", "ступени"), encoding="utf-8")
    assert (note.stat().st_size, note.stat().st_ino) == (stat.st_size, stat.st_ino)
    assert ingesting.behind(job.workspace, job.ledger) == {"new": 0, "changed": 0, "gone": 0}  # nothing can be told by looking at it
    assert ingesting.ingest(job.workspace, job.ledger).parsed == 1
    monkeypatch.setattr(ingesting, "_RACY", 0)  # time goes by
    ingesting.ingest(job.workspace, job.ledger)
    monkeypatch.setattr(ingesting.imports, "read_known", None)  # now its stat is believed: nothing is read
    assert ingesting.ingest(job.workspace, job.ledger).parsed == 0


def test_an_edit_changes_exactly_its_scenes(job: steps.Job) -> None:
    steps.ingest(job)
    before = snapshot(job.workspace.scenes)
    shas = {scene.id: scene.sha for scene in job.ledger.scenes()}
    path = job.workspace.vault / "Дача" / "Заметка 2.md"
    path.write_text(path.read_text(encoding="utf-8").replace("Слово номер 2", "Фраза про гистерезис"), encoding="utf-8")
    result = steps.ingest(job)
    assert (result["notes"]["parsed"], result["scenes"]["changed"], result["scenes"]["added"], result["scenes"]["removed"]) == (1, 1, 0, 0)
    after = {scene.id: scene.sha for scene in job.ledger.scenes()}
    assert after.keys() == shas.keys()
    assert sum(after[scene] != shas[scene] for scene in shas) == 1
    changed = [name for name, state in snapshot(job.workspace.scenes).items() if state != before[name]]
    assert changed == ["Дача/Заметка 2.md.yaml"]
    assert steps.search(job, "гистерезис", 1)["hits"][0]["path"] == "Дача/Заметка 2.md"


def test_a_deleted_note_leaves_search_chroma_and_yaml(job: steps.Job) -> None:
    steps.ingest(job)
    assert "Чаты/датчик.md" in found_paths(job, "датчик влажности") & in_chroma(job)
    (job.workspace.vault / "Чаты" / "датчик.md").unlink()
    assert steps.ingest(job)["scenes"]["removed"] == 1
    assert "Чаты/датчик.md" not in found_paths(job, "датчик влажности") | in_chroma(job)
    assert not (job.workspace.scenes / "Чаты" / "датчик.md.yaml").exists()
    assert not any(scene.source.path == "Чаты/датчик.md" for scene in job.ledger.scenes())


@pytest.mark.parametrize("named", [("old", "new"), ("new", "old"), ("new",)], ids="-".join)
def test_a_renamed_dialogue_keeps_its_ids_in_whatever_order_events_name_it(job: steps.Job, named: tuple[str, ...]) -> None:
    paths = {"old": "Чаты/датчик.md", "new": "Дача/про датчик.md"}
    steps.ingest(job)
    before = [(scene.id, scene.sha) for scene in job.ledger.scenes(paths["old"])]
    assert before
    (job.workspace.vault / paths["old"]).rename(job.workspace.vault / paths["new"])
    for one in named:
        steps.ingest_named(job, [paths[one]])
    steps.ingest(job)  # the scan, which finds what no event named
    assert [(scene.id, scene.sha) for scene in job.ledger.scenes(paths["new"])] == before
    assert list(job.ledger.scenes(paths["old"])) == []


def test_a_folder_of_many_notes_that_is_renamed_has_not_vanished_and_one_that_is_gone_has(job: steps.Job) -> None:
    root = job.workspace.vault
    (root / "Было").mkdir()
    for number in range(60):
        note = CHAT.replace("u1", f"u{number}x").replace("a1", f"a{number}x") if number % 6 == 0 else f"# {number}\n\nтекст\n"
        (root / "Было" / f"n{number}.md").write_text(note, encoding="utf-8")
    steps.ingest(job)
    talks = {scene.id for scene in job.ledger.scenes() if len(scene.turns) > 1}
    assert len(talks) == 11
    (root / "Было").rename(root / "Стало")
    result = steps.ingest(job)
    assert (result["notes"]["removed"], result["notes"]["parsed"]) == (60, 60)
    assert {scene.id for scene in job.ledger.scenes() if len(scene.turns) > 1} == talks
    (root / "Стало").rename(root.parent / "away")
    with pytest.raises(VaultError) as error:
        steps.ingest(job)
    assert error.value.code == "E-VANISHED"


def test_a_renamed_dialogue_keeps_its_scenes_ids(job: steps.Job) -> None:
    steps.ingest(job)
    before = [scene.id for scene in job.ledger.scenes("Чаты/датчик.md")]
    (job.workspace.vault / "Чаты" / "датчик.md").rename(job.workspace.vault / "Дача" / "про датчик.md")
    steps.ingest(job)
    assert [scene.id for scene in job.ledger.scenes("Дача/про датчик.md")] == before
    assert found_paths(job, "датчик влажности") >= {"Дача/про датчик.md"}


def test_the_yaml_says_what_the_ledger_says(job: steps.Job) -> None:
    steps.ingest(job)
    for path in job.ledger.notes_with_scenes():
        document = (job.workspace.scenes / (path + ".yaml")).read_text(encoding="utf-8")
        assert scene_yaml.from_yaml(document) == (path, tuple(job.ledger.scenes(path)))


@pytest.mark.children
def test_incremental_equals_full(job: steps.Job, tmp_path: Path) -> None:
    steps.ingest(job)
    vault = job.workspace.vault
    (vault / "Дача" / "Заметка 0.md").unlink()
    (vault / "Дача" / "Заметка 1.md").write_text("# Другое\n\nСовсем другой текст о реке.\n", encoding="utf-8")
    (vault / "Новая.md").write_text("Новая заметка о хлебе.\n", encoding="utf-8")
    steps.ingest(job)
    other = steps.Job(config.open_workspace(str(vault), str(tmp_path / "other")))
    steps.ingest(other)
    assert list(job.ledger.scenes()) == list(other.ledger.scenes())
    assert {name: state[1] for name, state in snapshot(job.workspace.scenes).items()} == {
        name: state[1] for name, state in snapshot(other.workspace.scenes).items()
    }
    other.close()


def _state(job: steps.Job) -> dict[str, Any]:
    """All that reading yields; keywords weigh words by the notes that were there when they were counted."""
    notes = job.ledger.db.execute("SELECT path, title, size, inode, sha256, reader FROM notes ORDER BY path").fetchall()
    files = {name: digest for name, (_, digest) in snapshot(job.workspace.scenes).items()}
    return {"scenes": list(job.ledger.scenes()), "problems": job.ledger.problems(), "notes": notes, "files": files}


def test_named_notes_are_looked_at_alone_and_leave_what_a_scan_leaves(tmp_path: Path) -> None:
    vault = make_vault(tmp_path, notes=24)
    job = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    ingesting.ingest(job.workspace, job.ledger)
    names = [f"Дача/Заметка {number}.md" for number in range(30)] + ["Чаты/датчик.md", "Чаты/вниз/новая.md", ".hidden.md"]
    chance = random.Random(3)
    for step in range(40):
        named = chance.sample(names, chance.randrange(1, 4))
        for name in named:
            path = vault / name
            path.parent.mkdir(exist_ok=True)
            path.with_name(f".{path.name}.icloud").unlink(missing_ok=True)
            what = chance.randrange(6)
            if what == 0:
                path.unlink(missing_ok=True)
            elif what == 1 and path.exists():  # the cloud took it away for a while: it is not forgotten
                path.rename(path.with_name(f".{path.name}.icloud"))
            elif what == 2:
                path.write_bytes(b"\x00\x01\x02" * 50)
            else:
                path.write_text(f"# Шаг {step}\n\nЗдесь стоит слово{step} и {name}.\n", encoding="utf-8")
        found = ingesting.ingest(job.workspace, job.ledger, only=named)
        assert found.parsed <= len(named)
    after = _state(job)
    assert ingesting.ingest(job.workspace, job.ledger).parsed == 0  # a scan of all finds nothing that was missed
    assert _state(job) == after
    assert {code for _, problem in after["problems"] if (code := problem.code)} >= {"W-OFFLINE"}
    # what was not named is not looked at, until a scan; nor is anything but a scan trusted with many, or with what no ledger can name
    (vault / "Дача" / "Заметка 5.md").write_text("# Мимо\n\nЭто никто не назвал.\n", encoding="utf-8")
    assert ingesting.ingest(job.workspace, job.ledger, only=["Дача/Заметка 6.md"]).parsed == 0
    assert ingesting.ingest(job.workspace, job.ledger, only=["\udcff.md"]).parsed == 1
    (vault / "Дача" / "Заметка 5.md").write_text("# Мимо\n\nИ этого никто не назвал.\n", encoding="utf-8")
    assert ingesting.ingest(job.workspace, job.ledger, only=[f"{number}.md" for number in range(21)]).parsed == 1
    job.close()


def test_bad_notes_are_reported_and_hurt_only_themselves(job: steps.Job) -> None:
    vault = job.workspace.vault
    (vault / "кодировка.md").write_bytes("Привет из прошлого века".encode("cp1251"))
    (vault / "yaml.md").write_text('---\ntitle: "a "b" c"\n---\nТекст цел.\n', encoding="utf-8")
    (vault / "пусто.md").write_bytes(b"")
    os.mkfifo(vault / "труба.md")
    (vault / "большая.md").write_bytes(b"x" * (job.workspace.settings.scan.max_bytes + 1))
    result = steps.ingest(job)
    failed = {one["path"]: one["code"] for one in result["notes"]["failed"]}
    assert failed == {"кодировка.md": "E-ENC", "труба.md": "E-SPECIAL", "большая.md": "E-SIZE"}
    problems = {one["path"]: (one["code"], one["line"]) for one in steps.status(job)["problems"]}
    assert problems["yaml.md"] == ("W-FM-YAML", 2)
    assert found_paths(job, "Текст цел") >= {"yaml.md"}
    assert result["scenes"]["total"] == 8
    again = steps.ingest(job)
    assert again["notes"]["parsed"] == 0
    assert again["notes"]["failed"] == result["notes"]["failed"]
    (vault / "кодировка.md").unlink()
    assert "кодировка.md" not in {one["path"] for one in steps.ingest(job)["notes"]["failed"]}


def test_a_note_that_cannot_be_read_for_a_while_is_not_forgotten(job: steps.Job) -> None:
    steps.ingest(job)
    path = job.workspace.vault / "Дача" / "Заметка 3.md"
    path.unlink()
    os.mkfifo(path)
    result = steps.ingest(job)
    assert result["notes"]["removed"] == 0
    assert list(job.ledger.scenes("Дача/Заметка 3.md"))


@pytest.mark.parametrize("named", [False, True])
def test_what_was_told_of_a_note_is_told_again_when_it_can_be_read_again(job: steps.Job, named: bool) -> None:
    """Not that it is in the cloud only, which it no longer is."""
    note = job.workspace.vault / "Дача" / "Заметка 1.md"
    note.write_text("Текст до кода.\n\n```python\nprint(1)\n", encoding="utf-8")
    only = ["Дача/Заметка 1.md"] if named else None

    def told() -> list[str]:
        ingesting.ingest(job.workspace, job.ledger, only=only)
        return [problem.code for path, problem in job.ledger.problems() if path == "Дача/Заметка 1.md"]

    assert told() == ["W-FENCE"]
    there = note.rename(note.with_name(".Заметка 1.md.icloud"))
    assert told() == ["W-OFFLINE"]
    there.rename(note)
    assert told() == ["W-FENCE"]


def test_notes_that_vanish_in_numbers_are_kept_until_confirmed(tmp_path: Path) -> None:
    vault = make_vault(tmp_path, notes=40)
    job = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    steps.ingest(job)
    shutil.rmtree(vault / "Дача")
    with pytest.raises(VaultError, match="40 of 41 known notes have vanished") as caught:
        steps.ingest(job)
    assert caught.value.code == "E-VANISHED"
    assert job.ledger.counts()["notes"] == 41
    assert steps.ingest(job, confirm=True)["notes"]["removed"] == 40
    job.close()


def test_the_users_files_are_byte_identical_after_everything(job: steps.Job) -> None:
    before = snapshot(job.workspace.vault)
    steps.ingest(job)
    steps.ingest(job, full=True)
    steps.search(job, "вода", 3)
    steps.dataset(job)
    steps.doctor(job, repair=True)
    after = snapshot(job.workspace.vault)
    assert after == before


def test_a_scene_file_that_was_deleted_is_found_missing_and_written_again(job: steps.Job) -> None:
    steps.ingest(job)
    lost = job.workspace.scenes / "Чаты" / "датчик.md.yaml"
    content = lost.read_bytes()
    lost.unlink()
    assert [one["code"] for one in steps.doctor(job)["problems"]] == ["W-SCENES"]
    steps.doctor(job, repair=True)
    assert lost.read_bytes() == content
    assert steps.doctor(job)["problems"] == []


def test_a_note_whose_name_fills_the_file_system_has_a_scene_file(job: steps.Job) -> None:
    name = "я" * 125 + ".md"
    (job.workspace.vault / name).write_text("Длинное имя.", encoding="utf-8")
    steps.ingest(job)
    assert steps.doctor(job)["problems"] == []
    assert sum(1 for _ in job.ledger.scenes(name)) == 1


def test_a_folder_called_as_a_scene_file_and_a_path_as_long_as_can_be_hurt_nobody(tmp_path: Path) -> None:
    vault = tmp_path / "v"
    (vault / "x.md.yaml").mkdir(parents=True)
    (vault / "x.md").write_text("о воде\n", encoding="utf-8")
    (vault / "x.md.yaml" / "b.md").write_text("о песке\n", encoding="utf-8")
    here = os.open(vault, os.O_RDONLY)
    for _ in range(16):  # each of 240 bytes, more than a whole path may have together with the state folder's
        os.mkdir("д" * 120, dir_fd=here)
        above, here = here, os.open("д" * 120, os.O_RDONLY, dir_fd=here)
        os.close(above)
    os.close(os.open("deep.md", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=here))
    with open("deep.md", "w", encoding="utf-8", opener=lambda name, flags: os.open(name, flags, dir_fd=here)) as file:
        file.write("о глине\n")
    os.close(here)
    state = tmp_path / ("с" * 100) / ("с" * 60)  # SQLite takes 512 bytes
    with steps.Job(config.init_workspace(vault, str(state))).ledger as ledger:
        workspace = config.open_workspace(str(vault), str(state))
        assert ingesting.ingest(workspace, ledger).parsed == 3
        files = [ingesting.scene_file(workspace, path) for path in ledger.notes_with_scenes()]
        assert len(set(files)) == 3
        assert all(file.is_file() for file in files)
        assert ingesting.ingest(workspace, ledger, full=True).parsed == 3


def test_state_files_are_private(job: steps.Job) -> None:
    old = os.umask(0o077)
    try:
        steps.ingest(job)
    finally:
        os.umask(old)
    assert job.workspace.state.stat().st_mode & 0o077 == 0
    assert job.workspace.ledger.stat().st_mode & 0o077 == 0


def test_a_note_is_asked_about_as_it_is_now_by_any_of_its_names(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.ingest(job)
    path = job.workspace.vault / "Дача" / "Насос.md"
    path.write_text("# Насос\n\nНасос гудит на низкой ноте, когда бочка пуста.\n", encoding="utf-8")
    for name in (str(path), "Дача/Насос.md", unicodedata.normalize("NFD", "Дача/Насос.md")):
        result = steps.ask(job, "Когда насос гудит?", note=name, write=False)
        assert result["sources"][0]["path"] == "Дача/Насос.md"
    monkeypatch.chdir(job.workspace.vault / "Дача")
    assert steps.ask(job, "Когда насос гудит?", note="Насос.md", write=False)["sources"][0]["path"] == "Дача/Насос.md"


def test_half_an_emoji_in_an_export_or_in_properties_keeps_no_note_out(tmp_path: Path) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    said = [{"uuid": "m1", "sender": "human", "text": "насос \ud83d"}, {"uuid": "m2", "sender": "assistant", "text": "сорок \udc00"}]
    (vault / "conversations.json").write_text(json.dumps([{"uuid": "c", "name": "x \ud83d", "chat_messages": said}]), encoding="utf-8")
    (vault / "a.md").write_text('---\ntitle: "t \\ud83d"\ntags: ["x\\ud83d"]\n---\nслово\n', encoding="utf-8")
    with_job = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    result = steps.ingest(with_job)
    assert (result["notes"]["parsed"], result["notes"]["failed"]) == (2, [])
    assert "сорок ?" in steps.search(with_job, "сорок")["hits"][0]["text"]
    with_job.close()


def test_doctor_says_repaired_only_of_what_it_repaired(job: steps.Job) -> None:
    steps.ingest(job)
    job.workspace.current.write_text("nosuch\n", encoding="utf-8")
    for path in job.workspace.scenes.rglob("*.yaml"):
        path.unlink()
    result = steps.doctor(job, repair=True)
    assert ({one["code"] for one in result["problems"]}, result["repaired"], result["ok"]) == ({"W-SCENES", "E-RUN"}, True, False)
    result = steps.doctor(job, repair=True)
    assert ([one["code"] for one in result["problems"]], result["repaired"], result["ok"]) == (["E-RUN"], False, False)


def test_an_export_without_chats_is_reported(job: steps.Job) -> None:
    path = job.workspace.vault / "conversations.json"
    path.write_text('[{"title": "x", "mapping": {', encoding="utf-8")
    steps.ingest(job)
    assert [(where, problem.code) for where, problem in job.ledger.problems()] == [("conversations.json", "W-EXPORT")]
    said = {"uuid": "m", "sender": "human", "text": "Как варить кофе?"}
    path.write_text(json.dumps([{"uuid": "c", "name": "x", "chat_messages": [said]}]), encoding="utf-8")
    steps.ingest(job)
    assert not job.ledger.problems()


def test_a_setting_that_reading_looks_at_reads_every_note_again(job: steps.Job) -> None:
    steps.ingest(job)
    path = job.workspace.vault / config.CONFIG
    path.write_text(path.read_text(encoding="utf-8") + 'timezone = "Europe/Moscow"\n', encoding="utf-8")
    job.workspace = config.open_workspace(str(job.workspace.vault), str(job.workspace.state))
    assert steps.ingest(job)["notes"]["parsed"] == 7
    (scene,) = job.ledger.scenes("Чаты/датчик.md")
    assert scene.at == "2025-06-16T21:34:00+03:00"
    assert steps.ingest(job)["notes"]["parsed"] == 0
