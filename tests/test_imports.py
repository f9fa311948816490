"""Imported talks: stored whole and once, read as a second root, and damaged notes mended from them, in whatever order they come."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import time
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.test_cli import Shell
from tests.test_ingest import snapshot
from tests.test_views import shown
from vaultllm import chats, config, importing, imports, ingest, reading, render, steps, views
from vaultllm.chats import mend
from vaultllm.errors import DataError, UsageError, VaultError
from vaultllm.schema import Answer, Citation, Conversation, Turn

CODE = """Вот так:

```python
def узел(значение):
    if значение:
        return [значение]
    return []
```

- первый уровень
    - второй уровень
        - третий: linked list, links и symlinks



Раздел  excited о том, что cited."""

Message = tuple[str, str, str, str]  # id, role, text, id of the one before


def talk(
    identity: str, messages: list[Message], *, current: str = "", title: str = "Связный список", at: float = 1_750_000_000
) -> dict[str, Any]:
    """A conversation as ChatGPT exports it."""
    mapping: dict[str, Any] = {"root": {"id": "root", "parent": None, "children": [], "message": None}}
    for number, (uid, role, text, parent) in enumerate(messages):
        said = {
            "id": uid,
            "author": {"role": role},
            "create_time": at + 60 * number,
            "content": {"content_type": "text", "parts": [text]},
            "recipient": "all",
            "metadata": {"model_slug": "gpt-4o"} if role == "assistant" else {},
        }
        mapping[uid] = {"id": uid, "parent": parent or "root", "children": [], "message": said}
    for uid, node in mapping.items():
        if node["parent"]:
            mapping[node["parent"]]["children"].append(uid)
    head = {"title": title, "create_time": at, "conversation_id": identity, "current_node": current or messages[-1][0]}
    return head | {"mapping": mapping}


def damaged(text: str) -> str:
    """What the plugin's 1.2.0 makes of a text, written down from its description and not from our code."""
    for pattern, new in (("cite[a-zA-Z0-9_-]+", ""), ("link[a-zA-Z0-9_-]+", ""), (r"turn\d+search\d+", ""), ("[\ue000-\uf8ff]", "")):
        text = re.sub(pattern, new, text)
    while "  " in text:
        text = text.replace("  ", " ")
    while "\n\n\n" in text:
        text = text.replace("\n\n\n", "\n\n")
    return text.strip()


def note(identity: str, messages: list[Message], title: str = "Связный список") -> str:
    """The same talk as a note of the plugin's 1.2.0: every branch, in the order of time."""
    front = (
        f'---\nnexus: nexus-ai-chat-importer\nplugin_version: "1.2.0"\nprovider: chatgpt\nconversation_id: {identity}\n---\n\n'
        if identity
        else ""
    )
    parts = [front + f"# Title: {title}\n"]
    for uid, role, text, _ in messages:
        head = ">[!nexus_user] **User**" if role == "user" else ">[!nexus_agent] **Assistant**"
        body = "\n".join(f"> {line}" for line in damaged(text).split("\n"))
        parts.append(f"{head} - 15.06.2025 at 18:06\n{body}\n<!-- UID: {uid} -->\n" + ("\n---\n" if role != "user" else ""))
    return "\n\n\n".join(parts)


TALK: list[Message] = [
    ("u1", "user", "Как устроен связный список?", ""),
    ("a1", "assistant", CODE, "u1"),
    ("u2", "user", "А двусвязный?", "a1"),
    ("a2", "assistant", "Плохой ответ про дерево.", "u2"),
    ("a2b", "assistant", "У каждого узла две ссылки:\n    назад и вперёд.", "u2"),
    ("u3", "user", "Спасибо, понятно.", "a2b"),
    ("a3", "assistant", "Пожалуйста, обращайтесь.", "u3"),
]
OTHER: list[Message] = [("x1", "user", "Когда цветёт липа?", ""), ("x2", "assistant", "Липа цветёт в июле, две недели.", "x1")]


def write_export(folder: Path, *talks: dict[str, Any], name: str = "conversations.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps(talks, ensure_ascii=False), encoding="utf-8")
    return path


@pytest.fixture
def job(tmp_path: Path) -> Iterator[steps.Job]:
    vault = tmp_path / "vault"
    vault.mkdir()
    (vault / "Хлеб.md").write_text("# Хлеб\n\nХлеб пекут при двухстах градусах.\n", encoding="utf-8")
    made = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    yield made
    made.close()


def bring(job: steps.Job, *exports: Path) -> ingest.Ingested:
    """What `import` does, without the memory's vectors, which take most of its time."""
    if exports:
        importing.take(job.workspace, exports)
    return ingest.ingest(job.workspace, job.ledger)


def state_of(job: steps.Job) -> dict[str, Any]:
    """All that reading yields: scenes, problems, the account of messages, the scene files."""
    counts = job.ledger.db.execute("SELECT path, title, reader, turns, turns_left FROM notes ORDER BY path").fetchall()
    files = {name: digest for name, (_, digest) in snapshot(job.workspace.scenes).items()}
    return {"scenes": list(job.ledger.scenes()), "problems": job.ledger.problems(), "notes": counts, "files": files}


def stored_path(identity: str) -> str:
    return imports.path_of(Conversation(identity, "", "chatgpt", "", (), (1, 1)))


# -- the store


def conversation(*turns: Turn, identity: str = "c1", title: str = "t") -> Conversation:
    return Conversation(identity, title, "chatgpt", "2025-06-15", turns, (1, 1))


def said(uid: str, text: str, at: str = "", role: Any = "user", **more: Any) -> Turn:
    return Turn(role, text, (9, 9), uid=uid, at=at, **more)


def test_a_talk_is_stored_once_one_turn_a_line_and_is_private(tmp_path: Path) -> None:
    root = tmp_path / "imports"
    first = conversation(said("u1", "раз\nдва", "2025-01-01"), said("a1", "три", "2025-01-02", "assistant", model="gpt-4o"))
    assert imports.store(root, first, dry_run=True)[0] == "new"
    assert not root.exists()
    assert imports.store(root, first)[0] == "new"
    before = snapshot(root)
    assert imports.store(root, first)[0] == "same"
    assert snapshot(root) == before
    (file,) = imports.scan(root).files
    path = imports.file_of(root, file.path)
    assert path.stat().st_mode & 0o777 == 0o600
    lines = path.read_text(encoding="utf-8").split("\n")
    assert json.loads(lines[1].rstrip(",")) == {"role": "user", "text": "раз\nдва", "at": "2025-01-01", "uid": "u1"}
    assert [turn.lines for turn in imports.load(path.read_bytes()).turns] == [(2, 2), (3, 3)]


def test_no_export_takes_messages_away_and_an_older_one_changes_nothing(tmp_path: Path) -> None:
    old = conversation(said("u1", "раз", "1"), said("a1", "два", "2"), said("u2", "три", "3"))
    new = conversation(said("u1", "раз", "1"), said("a9", "четыре", "4"), title="новое имя")
    root = tmp_path / "imports"
    imports.store(root, old)
    assert imports.store(root, new)[0] == "changed"
    assert imports.store(root, old)[0] == "same"
    assert imports.store(root, new)[0] == "same"
    (file,) = imports.scan(root).files
    held = imports.load(imports.read(root, file.path))
    assert held.title == "новое имя"
    assert [(turn.uid, turn.variant_of) for turn in held.turns] == [("u1", ""), ("a1", "a9"), ("u2", "a9"), ("a9", "")]
    other = tmp_path / "other"
    imports.store(other, new)
    imports.store(other, old)
    assert imports.read(other, file.path) == imports.read(root, file.path)


def test_messages_without_ids_are_told_apart_by_what_they_say(tmp_path: Path) -> None:
    short = conversation(said("", "да"), said("", "нет"), said("", "да"))
    joined = imports.merge(short, replace(short, turns=(*short.turns, said("", "может быть"))))
    assert [turn.text for turn in joined.turns] == ["да", "нет", "да", "может быть"]
    nameless = replace(short, id="")
    assert imports.path_of(nameless) != imports.path_of(replace(nameless, turns=nameless.turns[:2]))
    assert imports.path_of(replace(short, provider="../../etc")).startswith(imports.PREFIX + "etc/")


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"format": "vaultllm talk 1"}', b'{"format": "vaultllm talk 9", "turns": []}', b"\xff", b"[" * 100_000]
)
def test_what_is_no_stored_talk_is_a_value_error(content: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - the JSON parser's own messages, and ours
        imports.load(content)


def test_a_damaged_stored_talk_is_reported_and_replaced_by_the_next_import(job: steps.Job, tmp_path: Path) -> None:
    export = write_export(tmp_path, talk("c2", OTHER))
    bring(job, export)
    path = imports.file_of(imports.root_of(job.workspace.state), stored_path("c2"))
    whole = path.read_bytes()
    path.write_bytes(whole[:100] + b"\xff")
    bring(job)
    assert [(where, problem.code) for where, problem in job.ledger.problems()] == [(stored_path("c2"), "E-IMPORT")]
    bring(job, export)
    assert path.read_bytes() == whole
    assert job.ledger.problems() == []


# -- mending


def test_the_description_of_the_damage_is_the_importers() -> None:
    samples = (CODE, "a  b\n\n\n\nc citeturn0 turn0search12 \ue200cite\ue202turn0search1\ue201", "  x  ", "linked, symlinks, wikilink", "")
    for sample in samples:
        assert mend.as_imported(sample) == damaged(sample)
    assert "return [значение]" in damaged(CODE)
    assert "    return" not in damaged(CODE)


def test_a_note_gets_exact_text_model_time_and_tree_back_in_its_own_places(job: steps.Job, tmp_path: Path) -> None:
    path = job.workspace.vault / "Чат.md"
    path.write_text(note("c1", TALK), encoding="utf-8")
    steps.ingest(job)
    before = [turn for scene in job.ledger.scenes("Чат.md") for turn in scene.turns]
    assert next(turn for turn in before if turn.uid == "a1").lossy
    assert any(problem.code == "W-LOSSY" for _, problem in job.ledger.problems())
    files = snapshot(job.workspace.vault)
    result = steps.import_(job, [write_export(tmp_path, talk("c1", TALK, current="a3"))])
    assert result["conversations"] == {"read": 1, "new": 1, "changed": 0, "same": 0, "empty": 0, "in_vault": 1}
    assert snapshot(job.workspace.vault) == files
    after = [turn for scene in job.ledger.scenes("Чат.md") for turn in scene.turns]
    exact = {uid: text for uid, _, text, _ in TALK}
    assert [turn.uid for turn in after] == [uid for uid, _, _, _ in TALK]
    for old, new in zip(before, after, strict=True):
        assert (new.text, new.lines, new.lossy) == (exact[new.uid], old.lines, False)
    by_uid = {turn.uid: turn for turn in after}
    assert (by_uid["a1"].model, by_uid["a1"].at, by_uid["a1"].parent) == ("gpt-4o", "2025-06-15T15:07:40+00:00", "u1")
    assert {uid: turn.variant_of for uid, turn in by_uid.items() if turn.variant_of} == {"a2": "a2b"}
    rows = path.read_text(encoding="utf-8").split("\n")
    assert rows[by_uid["a2b"].text_line - 1] == "> У каждого узла две ссылки:"
    assert by_uid["a1"].text_line == 0  # its empty lines were collapsed: no line of its text has a line of its own
    assert not any(problem.code in ("W-LOSSY", "W-EDITED") for _, problem in job.ledger.problems())


def test_what_the_owner_changed_in_a_message_stays_and_is_said(job: steps.Job, tmp_path: Path) -> None:
    path = job.workspace.vault / "Чат.md"
    path.write_text(note("c1", TALK).replace("> Пожалуйста, обращайтесь.", "> Не за что, сказал он мне."), encoding="utf-8")
    bring(job, write_export(tmp_path, talk("c1", TALK, current="a3")))
    texts = {turn.uid: turn for scene in job.ledger.scenes("Чат.md") for turn in scene.turns}
    assert (texts["a3"].text, texts["a1"].text) == ("Не за что, сказал он мне.", CODE)
    assert texts["a3"].model == "gpt-4o"
    (edited,) = [problem for _, problem in job.ledger.problems() if problem.code == "W-EDITED"]
    assert path.read_text(encoding="utf-8").split("\n")[edited.line].startswith("> Не за что")


def test_leftovers_of_citations_and_formulas_are_no_edits() -> None:
    exact = "Ответ \\(x^2\\) найден: OpenAI.\n\nВсё."
    left = 'Ответ $x^2$ найден: entity["company","OpenAI","lab"]. citeturn0view2\n\nВсё. cite'
    mended = mend.mend(conversation(said("a", left, lossy=True)), conversation(said("a", exact)))
    assert (mended.mended, mended.edited, mended.conversation.turns[0].text) == (1, 0, exact)
    assert mended.conversation.turns[0].text_line == 0


def test_the_tree_of_the_export_decides_what_was_abandoned_and_not_the_order_in_the_note() -> None:
    export = conversation(
        said("u1", "x"), said("a1", "да"), said("a1b", "нет", variant_of="a1"), said("u2", "y", variant_of="u3"), said("u3", "z")
    )
    guessed = conversation(said("u1", "x"), said("a1", "да", variant_of="a1b"), said("a1b", "нет"), said("u2", "y"), said("u3", "z"))
    mended = mend.mend(guessed, export)
    assert {turn.uid: turn.variant_of for turn in mended.conversation.turns if turn.variant_of} == {"a1b": "a1", "u2": "u3"}
    assert mended.variants == 2


def test_a_message_that_the_export_does_not_know_stays_as_it_was() -> None:
    mine = said("mine", "моё  слово", lossy=True, text_line=9)
    mended = mend.mend(conversation(said("a", "x"), mine), conversation(said("b", "нет в заметке"), said("a", "x")))
    assert mended.conversation.turns[1] == mine
    assert (mended.mended, mended.same, mended.edited, mended.unknown, mended.lacking) == (0, 1, 0, 1, 1)


def test_a_note_without_its_conversations_id_is_mended_by_its_messages(job: steps.Job, tmp_path: Path) -> None:
    (job.workspace.vault / "Вырезка.md").write_text(note("", TALK[:2]).partition("\n\n\n")[2], encoding="utf-8")
    bring(job)
    (scene,) = job.ledger.scenes("Вырезка.md")
    assert scene.turns[1].text != CODE
    bring(job, write_export(tmp_path, talk("c1", TALK, current="a3")))
    (scene,) = job.ledger.scenes("Вырезка.md")
    assert scene.turns[1].text == CODE
    # The cutting is no copy of the talk: all of that is read too.
    assert {turn.uid for one in job.ledger.scenes(stored_path("c1")) for turn in one.turns} == {uid for uid, _, _, _ in TALK}


def test_what_the_plugin_really_wrote_in_every_version_is_known_as_its_damage(shared: Path) -> None:
    asked = 'Привет! Посмотри:\n\n> цитата\n>> двойная\n\n```python\ndef f(x):\n    if x:\n        return {"cited": 1}\n```'
    answered = (
        "Ответ **A**.\n\n- пункт\n    - подпункт\n\nФормула: \\(x^2\\) и \\[y=1\\]\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n"
        "> [!note] вложенный callout\n> текст\n\nИсточник. See links."
    )
    said_ = {"u1": asked, "a1": answered, "a1b": "Ответ B (regenerate).", "u2": "Первый вариант вопроса", "a2": "Ответ на первый вариант"}
    said_ |= {"u2e": "Отредактированный вопрос", "a2e": "Ответ на отредактированный"}
    export = conversation(*(said(uid, text) for uid, text in said_.items()))
    notes = sorted((shared / "real" / "nexus_versions").glob("out-*.md"))
    assert len(notes) >= 15
    for path in notes:
        settings = config.Settings(vault_id="x")
        parsed = reading.parse(path.name, path.read_bytes(), settings)
        _, _, (found,) = chats.read(parsed, settings.scan, "")
        mended = mend.mend(found, export)
        assert (mended.mended, mended.same, mended.edited, mended.lacking) == (2, 5, 0, 0), path.name
        rows = parsed.text.split("\n")
        for turn in mended.conversation.turns:
            if turn.uid in said_:
                assert turn.text == said_[turn.uid]
                for number, row in enumerate(turn.text.split("\n"), turn.text_line):
                    assert damaged(row).lstrip("> ") in rows[number - 1] or row.startswith(("Формула", "Источник"))


# -- ingest


def test_whatever_comes_first_the_ledger_is_the_same(job: steps.Job, tmp_path: Path) -> None:
    export = write_export(tmp_path, talk("c1", TALK, current="a3"), talk("c2", OTHER, title="Липа"))
    path = job.workspace.vault / "Чат.md"
    text = note("c1", TALK[:-1])
    # import first, the note later
    bring(job, export)
    alone = state_of(job)
    assert {turn.uid for scene in alone["scenes"] for turn in scene.turns} >= {"a3", "x2"}
    path.write_text(text, encoding="utf-8")
    bring(job)
    both = state_of(job)
    # the account is exact: 6 messages are read from the note, 1 it lacks
    assert [(code.code, code.count) for where, code in both["problems"] if where == stored_path("c1")] == [("W-COPY", 6), ("W-MISSING", 1)]
    assert {row[0]: row[3:] for row in both["notes"]}[stored_path("c1")] == (7, 7)
    assert {row[0]: row[3:] for row in both["notes"]}["Чат.md"] == (6, 0)
    assert not list(job.ledger.scenes(stored_path("c1")))
    # an ingest with nothing new reads nothing
    assert bring(job).parsed == 0
    # the note goes: the talk is read from the store again
    path.unlink()
    bring(job)
    assert state_of(job) == alone
    # the note first, the import later; and all at once, from nothing
    for order in (("note", "import"), ("together",)):
        other = steps.Job(config.open_workspace(str(job.workspace.vault), str(tmp_path / "-".join(order))))
        path.write_text(text, encoding="utf-8")
        if order[0] == "note":
            bring(other)
        bring(other, export)
        assert state_of(other) == both
        other.close()


def test_a_note_that_is_looked_at_alone_takes_its_talk_over_from_the_store_and_gives_it_back(job: steps.Job, tmp_path: Path) -> None:
    for number in range(24):
        (job.workspace.vault / f"{number}.md").write_text(f"# {number}\n\nслово {number}\n", encoding="utf-8")
    bring(job, write_export(tmp_path, talk("c1", TALK, current="a3"), talk("c2", OTHER, title="Липа")))
    alone = state_of(job)
    path = job.workspace.vault / "Чат.md"
    path.write_text(note("c1", TALK[:-1]), encoding="utf-8")
    assert ingest.ingest(job.workspace, job.ledger, only=["Чат.md"]).parsed == 2  # the note, and the stored talk that it holds
    both = state_of(job)
    assert not list(job.ledger.scenes(stored_path("c1")))
    assert bring(job).parsed == 0
    assert state_of(job) == both
    path.unlink()
    ingest.ingest(job.workspace, job.ledger, only=["Чат.md"])
    assert state_of(job) == alone


def test_a_newer_export_mends_again_and_a_removed_talk_leaves_the_memory(job: steps.Job, tmp_path: Path) -> None:
    path = job.workspace.vault / "Чат.md"
    path.write_text(note("c1", TALK), encoding="utf-8")
    bring(job, write_export(tmp_path, talk("c1", TALK[:4], current="a2"), talk("c2", OTHER)))
    texts = {turn.uid: turn.text for scene in job.ledger.scenes("Чат.md") for turn in scene.turns}
    assert texts["a1"] == CODE
    assert texts["a2b"] != TALK[4][2]  # this export does not hold it yet
    bring(job, write_export(tmp_path / "later", talk("c1", TALK, current="a3")))
    texts = {turn.uid: turn.text for scene in job.ledger.scenes("Чат.md") for turn in scene.turns}
    assert texts["a2b"] == TALK[4][2]
    root = imports.root_of(job.workspace.state)
    for identity in ("c1", "c2"):
        imports.file_of(root, stored_path(identity)).unlink()
    assert bring(job).removed == 2
    texts = {turn.uid: turn.text for scene in job.ledger.scenes("Чат.md") for turn in scene.turns}
    assert texts["a1"] != CODE
    assert not any("Липа" in turn.text for scene in job.ledger.scenes() for turn in scene.turns)
    assert bring(job).parsed == 0


def test_a_vault_that_vanishes_is_not_hidden_by_many_imported_talks(job: steps.Job, tmp_path: Path) -> None:
    for number in range(24):
        (job.workspace.vault / f"{number}.md").write_text(f"слово {number}\n", encoding="utf-8")
    talks = [talk(f"c{i}", [(f"u{i}", "user", f"Вопрос номер {i}?", "")]) for i in range(130)]
    bring(job, write_export(tmp_path, *talks))
    for number in range(24):
        (job.workspace.vault / f"{number}.md").unlink()
    with pytest.raises(VaultError, match="24 of 25 known notes have vanished"):
        bring(job)
    ingest.ingest(job.workspace, job.ledger, confirm=True)
    shutil.rmtree(imports.root_of(job.workspace.state))
    with pytest.raises(VaultError, match="130 of 130 known imported talks have vanished"):
        bring(job)
    assert ingest.ingest(job.workspace, job.ledger, confirm=True).removed == 130


def test_every_message_is_in_a_scene_or_counted(job: steps.Job, tmp_path: Path) -> None:
    whole = talk("c1", TALK, current="a3")
    whole["mapping"]["u3"]["message"]["content"]["parts"] = [""]
    tool = {"id": "t", "author": {"role": "tool"}, "content": {"content_type": "text", "parts": ["42"]}}
    whole["mapping"]["t"] = {"id": "t", "parent": "a3", "children": [], "message": tool}
    result = steps.import_(job, [write_export(tmp_path, whole)])
    assert {one["code"]: one["count"] for one in result["problems"]} == {"W-EMPTY": 1, "W-TOOL": 1}
    ((turns, left),) = job.ledger.db.execute("SELECT turns, turns_left FROM notes WHERE path = ?", (stored_path("c1"),))
    in_scenes = sum(len(scene.turns) for scene in job.ledger.scenes(stored_path("c1")))
    assert (turns, left, in_scenes) == (8, 2, 6)


def test_the_progress_of_an_import_is_that_of_its_bytes(job: steps.Job, tmp_path: Path) -> None:
    folder = tmp_path / "exports"
    long = "Река течёт на юг, и вода в ней холодная. " * 4000
    for number in range(3):
        talks = [talk(f"c{number}-{i}", [(f"u{number}-{i}", "user", long, "")]) for i in range(8)]
        write_export(folder, *talks, name=f"conversations-{number:03}.json")
    shares: list[float] = []
    importing.take(job.workspace, [folder], dry_run=True, progress=lambda progress: shares.append(progress.done))
    assert shares == sorted(shares)
    assert (len(shares), shares[-1]) == (25, 1.0)
    for number in range(3):  # a file is read through a window of a megabyte or so
        assert number / 3 < shares[8 * number + 4] <= (number + 1) / 3 + 0.01


def test_a_stored_talk_can_be_explained_by_its_path(job: steps.Job, tmp_path: Path) -> None:
    bring(job, write_export(tmp_path, talk("c2", OTHER)))
    told = steps.explain(job, stored_path("c2"))
    assert (told["taken"], told["reader"], told["trust"], told["scenes"]) == (True, "imported", "imported", 1)
    assert not steps.explain(job, imports.PREFIX + "chatgpt/none.json")["taken"]


# -- repair


def test_repair_takes_what_the_vault_holds_and_says_what_it_mended(job: steps.Job, tmp_path: Path) -> None:
    vault = job.workspace.vault
    (vault / "Чат.md").write_text(note("c1", TALK).replace("> Пожалуйста, обращайтесь.", "> Я это переписал сам."), encoding="utf-8")
    (vault / "Вырезка.md").write_text(note("", TALK[:2]).partition("\n\n\n")[2], encoding="utf-8")
    (vault / "Другой.md").write_text(note("c9", OTHER), encoding="utf-8")
    export = write_export(tmp_path, talk("c1", [*TALK, ("u4", "user", "Ещё вопрос", "a3")]), talk("c2", [("z", "user", "Чужой", "")]))
    before = snapshot(job.workspace.state)
    files = snapshot(vault)
    planned = steps.repair(job, export, dry_run=True)
    job.close()
    assert {name for name in snapshot(job.workspace.state) if name not in before} <= {"lock"}
    result = steps.repair(job, export)
    for key, value in planned.items():
        assert result[key] == value or key in ("dry_run", "ingest"), key
    assert snapshot(vault) == files
    assert (result["notes"], result["notes_not_in_export"], result["not_in_vault"], result["variants"]) == (2, 1, 1, 1)
    # in the note a1 and a2b were damaged; in the cutting a1
    assert result["turns"] == {"mended": 3, "same": 5, "edited": 1, "not_in_export": 0, "not_in_note": 1}
    assert [(one["path"], one["code"]) for one in result["problems"]] == [("Чат.md", "W-EDITED")]
    assert [file.path for file in imports.scan(imports.root_of(job.workspace.state)).files] == [stored_path("c1")]
    assert CODE in {turn.text for scene in job.ledger.scenes("Вырезка.md") for turn in scene.turns}


def test_an_export_of_nothing_is_an_error_that_names_the_place(job: steps.Job, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file"):
        steps.import_(job, [tmp_path / "нет.json"])
    (tmp_path / "other.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(DataError) as caught:
        steps.repair(job, tmp_path / "other.json")
    assert caught.value.path == str(tmp_path / "other.json")


# -- answers


def test_a_quotation_from_an_imported_talk_is_named_and_not_linked(job: steps.Job, tmp_path: Path) -> None:
    steps.import_(job, [write_export(tmp_path, talk("c2", OTHER, title="Про [[липу]] и мёд"))])
    result = steps.ask(job, "Когда цветёт липа?")
    (source,) = [one for one in result["sources"] if one["uid"] == "x2"]
    assert source["path"] == stored_path("c2")
    assert source["lines"] == [3, 3]
    assert source["link"].endswith(" (ChatGPT, 2025-06-15)")
    text = (job.workspace.vault / result["note"]).read_text(encoding="utf-8")
    assert "Липа цветёт в июле" in text
    assert ".vaultllm" not in text
    assert not re.search(r"(?<!\\)\[\[", text)


def test_a_quotation_from_a_mended_talk_stands_in_its_note(job: steps.Job, tmp_path: Path) -> None:
    messages = [("q", "user", "Что такое граф?", ""), ("g", "assistant", "Граф — это вершины  и рёбра, не linked list вовсе.", "q")]
    (job.workspace.vault / "Граф.md").write_text(note("c5", messages), encoding="utf-8")
    steps.import_(job, [write_export(tmp_path, talk("c5", messages))])
    (source,) = steps.ask(job, "Что такое граф?", write=False)["sources"]
    rows = (job.workspace.vault / "Граф.md").read_text(encoding="utf-8").split("\n")
    assert rows[source["lines"][0] - 1] == "> Граф — это вершины и рёбра, не list вовсе."
    assert "linked list" in source["quote"]
    assert source["link"].startswith("[[Граф")


def test_a_model_that_cites_an_imported_talk_gets_a_number_and_no_broken_link() -> None:
    source = Citation(stored_path("c2"), (3, 3), "x2", "Липа цветёт в июле", render.talk_name("Липа", "chatgpt", "2025-06-15"))
    answer = Answer("Когда?", "В июле [1].", True, (source,), "m", "", "", "2026-01-01T10:00:00+00:00", 0.1)
    message = render.agent_message(answer, "id")
    assert "\\[1\\]" in message
    assert "](" not in message
    assert "**1.** «Липа» (ChatGPT, 2025-06-15)\n" in render.answer_note(answer, "id")[1]


def test_a_title_that_could_be_markup_is_inert_where_a_link_would_stand() -> None:
    assert "[[" not in render.talk_name("[[x]] %%y%%", "chatgpt", "2025-06-15T10:00:00+00:00").replace("\\[", "")
    assert render.talk_name("", "", "") == "«…»"


# -- the command line


@pytest.fixture
def shell(tmp_path: Path) -> Shell:
    made = Shell(tmp_path / "a b")
    made.here("init", ".")
    return made


def test_an_archive_is_imported_and_the_second_time_nothing_changes_on_disk(
    shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = json.dumps([talk("c1", TALK, current="a3"), talk("c2", OTHER)], ensure_ascii=False, indent=1)
    (tmp_path / "x").mkdir()
    with zipfile.ZipFile(tmp_path / "x" / "chatgpt.zip", "w") as archive:
        archive.writestr("conversations.json", broken)
        archive.writestr("user.json", "{}")
    files = snapshot(shell.vault)
    planned = shell.json_here("import", str(tmp_path / "x"), "--dry-run")
    assert planned["conversations"]["new"] == 2
    assert not (shell.state / "imports").exists()
    result = shell.json("import", str(tmp_path / "x"))
    assert result["conversations"] == {"read": 2, "new": 2, "changed": 0, "same": 0, "empty": 0, "in_vault": 0}
    assert result["turns"] == 9
    assert result["notes"]["parsed"] == 7 + 2
    monkeypatch.setattr("vaultllm.ingest._RACY", 0)  # as if the notes had been written long ago
    shell.json_here("ingest")
    before = snapshot(shell.state)
    again = shell.json_here("import", str(tmp_path / "x"))
    assert (again["conversations"]["same"], again["notes"]["parsed"]) == (2, 0)
    assert snapshot(shell.state) == before
    assert snapshot(shell.vault) == files
    assert not [path for path in shell.state.rglob("*") if path.stat().st_mode & 0o077]
    (hit,) = shell.json_here("search", "-k", "1", "когда цветёт липа")["hits"]
    row = (shell.state / "imports" / hit["path"].removeprefix(imports.PREFIX)).read_text(encoding="utf-8").split("\n")[hit["lines"][0] - 1]
    assert hit["uids"][0] in row
    assert "2 conversations with 9 messages read from 1 export\n2 new, 0 changed, 0 known" in shown(views.imported(result))
    out, _ = shell.here("repair", "--from", str(tmp_path / "x"), "--dry-run")
    assert "that are in no note" in out


def test_a_broken_export_names_its_place_and_the_rest_of_it_comes(job: steps.Job, tmp_path: Path) -> None:
    whole = json.dumps([talk("c1", TALK, current="a3"), talk("c2", OTHER)], ensure_ascii=False, indent=1)
    path = tmp_path / "conversations.json"
    path.write_text(whole[: whole.index('"c2"')], encoding="utf-8")
    result = steps.import_(job, [path])
    assert result["conversations"]["new"] == 1
    (problem,) = [one for one in result["problems"] if one["code"].startswith("E-")]
    assert problem["path"] == str(path)
    assert problem["line"] > 100
    assert f"E-JSON {path}:{problem['line']}: " in shown(views.imported(result))


def test_what_cannot_be_imported_is_one_line(shell: Shell, tmp_path: Path) -> None:
    path = tmp_path / "conversations.json"
    path.write_text("nothing", encoding="utf-8")
    _, err = shell.here("import", str(path), code=3)
    (line,) = [line for line in err.splitlines() if not line.startswith("…")]
    assert str(path) in line
    _, err = shell.here("import", "нет.json", code=2)
    assert "нет.json" in err


def test_an_import_that_is_killed_is_finished_by_the_same_command(tmp_path: Path) -> None:
    talks = [
        talk(f"c{i}", [(f"u{i}", "user", f"Вопрос номер {i} о реке?", ""), (f"a{i}", "assistant", f"Река {i} течёт на юг. " * 2, f"u{i}")])
        for i in range(300)
    ]
    export = write_export(tmp_path / "x", *talks)
    shell = Shell(tmp_path / "one")
    shell.here("init", ".")
    folder = shell.state / "imports" / "chatgpt"
    with shell.start("import", str(export), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (folder.is_dir() and len(list(folder.glob("*.json"))) >= 20):
            time.sleep(0.001)
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    there = list(folder.glob("[!.]*.json"))
    assert 20 <= len(there) < 300
    for path in there:
        assert len(imports.load(path.read_bytes()).turns) == 2
    result = shell.json_here("import", str(export))
    assert (result["conversations"]["new"], result["conversations"]["same"]) == (300 - len(there), len(there))
    assert not list(folder.glob(".*"))
    states = []
    for state in (shell.state, tmp_path / "clean"):
        job = steps.Job(config.open_workspace(str(shell.vault), str(state)))
        if state != shell.state:
            bring(job, export)
        files = {name: digest for name, (_, digest) in snapshot(state / "imports").items() if name != "uids"}
        states.append((state_of(job), files, set((state / "imports" / "uids").read_text(encoding="utf-8").split("\n"))))
        job.close()
    assert states[0] == states[1]


@pytest.mark.parametrize(
    ("case", "said"),
    [
        ("claude-code/ordinary.jsonl", "claude-code"),
        ("smart-chat/thread-of-2025.json", "smart-threads"),
        ("copilot/ordinary.md", "copilot"),
    ],
)
def test_what_only_the_vaults_readers_know_is_imported_too(shell: Shell, tmp_path: Path, case: str, said: str) -> None:
    source = Path(__file__).parent / "golden" / "chats" / case
    expected = source.with_name(source.name + ".expected.yaml").read_text(encoding="utf-8")
    assert f"reader: {said}" in expected
    shutil.copy(source, tmp_path / source.name)
    shutil.copy(source, tmp_path / f"{source.stem} again{source.suffix}")
    result = shell.json_here("import", str(tmp_path / source.name))
    assert result["conversations"]["new"] == 1
    assert result["turns"] == expected.count("\n  - role: ")
    assert shell.json_here("import", str(tmp_path / f"{source.stem} again{source.suffix}"))["conversations"]["new"] == 0
