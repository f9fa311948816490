"""A talk within a note: what is asked now is answered there, growing; whoever edits the note is waited for, or has stopped it."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import answer, asked, chats, config, conversing, dataset, heartbeat, markdown, scenes, steps, vault
from vaultllm.chats import nexus
from vaultllm.errors import DataError, OwnedNoteError, VaultError, VaultllmError
from vaultllm.examples import is_ours
from vaultllm.models import hf
from vaultllm.schema import Answer, silent

pytestmark = pytest.mark.usefixtures("one_thread")

BREAD = "# Rye\n\nRye bread needs fourteen hours of cold proof and a hot oven.\n"
NOTE = "# Plans\n\nThe clay oven is lit on Friday evening with birch wood.\n\n> [!ask] How long does rye bread proof?\n"
SAID = "Rye bread needs fourteen hours.\n\nThe oven must be hot.\n\nThat is all of it.\n\nOne more word."


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(models.build(tmp_path_factory.mktemp("model") / "tiny", context=1024))


@pytest.fixture
def job(tmp_path: Path, base: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[steps.Job]:
    root = tmp_path / "vault"
    root.mkdir()
    (root / "Bread.md").write_text(BREAD, encoding="utf-8")
    monkeypatch.setattr("vaultllm.memory.live.LEARN_AT_ONCE", 0)
    monkeypatch.setattr(hf, "CAPABLE", 1)
    monkeypatch.setattr(conversing, "PACE", 0.0)
    monkeypatch.setattr(conversing, "LOOK", 0.0)
    workspace = config.init_workspace(root, str(tmp_path / "state"), base)
    quick = {
        "answers": workspace.settings.answers.model_copy(update={"wait": 0.03}),
        "watch": workspace.settings.watch.model_copy(update={"settle": 0.03}),
    }
    opened = steps.Job(dataclasses.replace(workspace, settings=workspace.settings.model_copy(update=quick)))
    steps.ingest(opened)
    yield opened
    opened.close()


def says(monkeypatch: pytest.MonkeyPatch, text: str = SAID, acts: dict[int, Callable[[], object]] | None = None) -> list[int]:
    """A model that says this, a word at a time; before the nth word something happens. Returns the words that it was asked for."""
    made_words: list[int] = []

    def generate(*_: Any, made: list[int] | None = None, cancel: threading.Event | None = None, **__: Any) -> Iterator[str]:
        for number, word in enumerate(text.split(" ")):
            if cancel is not None and cancel.is_set():
                return
            if acts and number in acts:
                acts.pop(number)()
            made_words.append(number)
            if made is not None:
                made.append(number)
            yield word if number == 0 else f" {word}"

    monkeypatch.setattr(hf, "generate", generate)
    return made_words


def note(job: steps.Job, text: str | bytes = NOTE, name: str = "Plans.md") -> Path:
    path = job.workspace.vault / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def reply(job: steps.Job, name: str = "Plans.md", **options: Any) -> Answer:
    return conversing.reply(job.workspace, job.ledger, name, progress=silent, **options)


def talk(job: steps.Job, path: Path) -> Any:
    read = markdown.parse(path.name, path.read_bytes())
    return chats.read(read, job.workspace.settings.scan, "")


# -- what is answered, and how it stands there


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (NOTE, "utf-8"),
        (NOTE.rstrip("\n"), "utf-8"),
        (NOTE.replace("\n", "\r\n"), "utf-8"),
        ("\ufeff" + NOTE, "utf-16-le"),
        (NOTE.replace("> [!ask] How", "> [!ASK]+\n> How"), "utf-8"),
        ("# Rye\n\n>[!nexus_user] **User**\n> How long does rye bread proof?\n", "utf-8"),
        (f"---\ntags: [a]\n---\n{NOTE}\n%% mine %%\n\nMore prose, that nobody asked about, below it.\n", "utf-8"),
    ],
)
def test_what_is_asked_in_any_note_is_answered_below_and_nothing_before_it_changes(job, monkeypatch, text, encoding):
    says(monkeypatch)
    before = text.encode(encoding)
    path = note(job, before)
    found = reply(job)
    data = path.read_bytes()
    assert data.startswith(before)
    read = data.decode(encoding)
    assert read.count("\r") == (read.count("\n") if "\r" in text else 0)
    form, _, (held,) = talk(job, path)
    assert form == ("nexus" if "nexus_user" in text else "ask")
    assert [turn.role for turn in held.turns] == ["user", "assistant"]
    assert held.turns[0].text == "How long does rye bread proof?"
    assert "fourteen hours" in held.turns[1].text
    assert held.turns[1].uid == f"{found.id}-agent"
    assert f"<!-- vaultllm {found.id}: delete this line to stop the answer -->" in read
    assert ">[!nexus_agent] **Assistant · tiny, " in read
    assert "> > [!quote]- Sources" in read
    assert "[!quote]" not in held.turns[1].text
    assert f"<!-- UID: {found.id}-agent -->" in read
    assert not found.stopped
    with pytest.raises(DataError, match="not yours"):
        reply(job)


def test_the_next_question_is_answered_with_what_was_said_before_and_the_prose_of_the_note(job, monkeypatch):
    seen: list[Any] = []
    right = answer.prompt

    def prompt(*given: Any) -> Any:
        seen.append(given)
        return right(*given)

    monkeypatch.setattr(answer, "prompt", prompt)
    says(monkeypatch)
    path = note(job)
    steps.ingest(job)
    reply(job)
    steps.ingest(job)
    path.write_text(
        path.read_text(encoding="utf-8") + "\nBetween.\n\n> [!ask]- And when is the clay oven lit\n> with birch wood?\n", "utf-8"
    )
    reply(job)
    _, _, question, hits, history = seen[1]
    assert question == "And when is the clay oven lit\nwith birch wood?"
    assert [message.role for message in history] == ["user", "assistant"]
    assert history[0].text == "How long does rye bread proof?"
    assert history[1].text.startswith("Rye bread needs fourteen hours.")
    assert any("Friday evening" in hit.text for hit in hits)
    assert all("That is all of it" not in hit.text for hit in hits)


def test_prose_stays_the_owners_and_what_a_model_said_is_neither_learnt_nor_quoted(job, monkeypatch):
    says(monkeypatch, SAID.replace("oven", "samovar"))
    path = note(job)
    path.write_text(NOTE + "\n## Later\n\nThe flour is milled in the next village, on Mondays only.\n", encoding="utf-8")
    steps.ingest(job)
    assert [(scene.kind, scene.trust) for scene in job.ledger.scenes("Plans.md")] == [
        ("prose", "own"), ("dialogue", "own"), ("prose", "own"),
    ]  # fmt: skip
    path.write_text(NOTE, encoding="utf-8")
    reply(job)
    steps.ingest(job)
    prose, said = job.ledger.scenes("Plans.md")
    assert (prose.trust, prose.train, prose.source.lines) == ("own", True, (1, 3))
    assert (said.trust, said.train) == ("generated", False)
    built = dataset.build(job.ledger.scenes(), val=0.1, ours=job.ledger.ours())
    assert "samovar" not in str(built.examples)
    assert "Friday evening" in str(built.examples)
    found = answer.ask(job.workspace, job.ledger, "What is said of the samovar?", progress=silent)
    assert "samovar" not in str([source.quote for source in found.sources])


def test_it_grows_by_whole_paragraphs_and_none_is_written_twice(job, monkeypatch):
    states: list[bytes] = []
    path = note(job)
    right = vault.append

    def append(*given: Any) -> str:
        before = path.read_bytes()
        result = right(*given)
        states.append(path.read_bytes())
        assert states[-1].startswith(before)
        return result

    monkeypatch.setattr(vault, "append", append)
    says(monkeypatch)
    reply(job)
    assert len(states) >= 3
    assert [state.count(b"\n> The oven must be hot.") for state in states[-2:]] == [1, 1]
    assert all(state.endswith((b".\n", " †\n".encode(), b"-->\n")) for state in states)


def test_pieces_are_a_second_apart(job, monkeypatch):
    monkeypatch.setattr(conversing, "PACE", 0.2)
    at: list[float] = []
    right = vault.append
    monkeypatch.setattr(vault, "append", lambda *given: (at.append(time.monotonic()), right(*given))[1])
    says(monkeypatch, SAID, {number: lambda: time.sleep(0.06) for number in range(30)})
    note(job)
    reply(job)
    assert len(at) >= 2
    assert all(later - earlier >= 0.2 for earlier, later in itertools.pairwise(at))


LABELS = "User: Hello there, my friend.\n\nAssistant: Hello to you.\n\nUser: What of the river and its banks?\n"


def test_whatever_stands_around_questions_each_line_is_in_one_scene_and_whose_words_they_are_is_kept():
    """Prose, headings, lists, comments, questions, answers whole, unfinished and without their lines, in any order."""
    settings = config.Settings(vault_id="v")
    chance = random.Random(7)
    for _ in range(300):
        parts = []
        for number in range(chance.randint(1, 9)):
            uid = f"2026112221331{number % 10}-ab12cd3{number % 10}"
            said = f"> <!-- vaultllm {uid} -->\n> zqmodel{number} said a few words.\n"
            head = ">[!nexus_agent] **Assistant · tiny** - 22.11.2026 at 21:33:17\n"
            opening = f"<!-- vaultllm {uid}: delete this line to stop the answer -->\n\n"
            part = chance.choice(
                [
                    f"# Heading {number}\n", f"## Deeper {number}\n", f"Prose number {number} of the owner's own hand, and more of it.\n",
                    "- item\n- other\n", "%% a comment %%\n", "---\n", f"> [!ask] Question {number}?\n", f"> [!ask]+ Q\n> in {number}\n",
                    "> [!ask]\n",
                    f">[!nexus_user] **User**\n> Question {number}?\n",
                    f"> [!note] Callout {number}\n> of words\n", f"{opening}{head}{said}<!-- UID: {uid}-agent -->\n",
                    f"{opening}{head}{said}", f"{head}{said}", f"{head}{said}<!-- UID: {uid}-agent -->\n", "```\n> [!ask] code\n```\n",
                    LABELS,
                ]
            )  # fmt: skip
            parts.append(part)
        text = "\n".join(parts)
        read = markdown.parse("a.md", text.encode())
        reader, _, talks = chats.read(read, settings.scan, "")
        found, _ = scenes.cut(read, reader, talks, settings)
        lines = [line for scene in found for line in range(scene.source.lines[0], scene.source.lines[1] + 1)]
        assert len(lines) == len(set(lines)), text
        shown = read.text if reader in ("nexus", "ask") else nexus.without_answers(read).text
        filled = {number for number, line in enumerate(shown.split("\n"), 1) if line.strip() and number >= read.body_line}
        assert not found or filled <= set(lines), text
        for scene in found:
            said = [turn for turn in scene.turns if "zqmodel" in turn.text]
            assert all(turn.role == "assistant" and is_ours(turn, ()) for turn in said), text
            assert not said or reader == "nexus" or (scene.trust, scene.train) == ("generated", False), text
            assert not said or "-->" not in said[0].text
        prose = [turn.text for scene in found for turn in scene.turns]
        for number, part in enumerate(parts):
            if reader != "plain" and part.startswith(("Prose", "# Heading", "> [!note]")):
                assert any(part.strip() in one for one in prose), (number, text)


# -- whoever edits


def test_an_edit_elsewhere_is_waited_for_and_kept(job, monkeypatch):
    path = note(job)

    def edit() -> None:
        assert b"nexus_agent" in path.read_bytes()
        path.write_bytes(path.read_bytes().replace(b"on Friday", b"on Saturday"))

    says(monkeypatch, SAID, {14: edit})
    found = reply(job)
    text = path.read_text(encoding="utf-8")
    assert not found.stopped
    assert text.startswith(NOTE.replace("on Friday", "on Saturday"))
    assert "> One more word. †\n" in text


def without_opening(text: str) -> str:
    return "\n".join(line for line in text.split("\n") if ": delete this line" not in line)


@pytest.mark.parametrize(
    ("edit", "why"),
    [
        (without_opening, "line above"),
        (lambda text: text + "\nMine again.\n", "below"),
        (lambda text: text.replace("> Rye bread needs", "> Rye bread wants"), "edited"),
        (lambda text: text.rstrip("\n"), "edited"),
        (lambda text: NOTE, "line above"),
    ],
)
def test_who_deletes_the_line_edits_the_answer_or_writes_below_it_stops_it_and_the_model(job, monkeypatch, edit, why):
    path = note(job)
    left: list[bytes] = []

    def act() -> None:
        assert b"nexus_agent" in path.read_bytes()
        path.write_text(edit(path.read_text(encoding="utf-8")), encoding="utf-8")
        left.append(path.read_bytes())

    words = says(monkeypatch, SAID + " word" * 500, {14: act})
    found = reply(job)
    assert why in found.stopped
    assert path.read_bytes() == left[0]
    assert len(words) < 40
    steps.ingest(job)
    held = list(job.ledger.scenes("Plans.md"))
    assert not any("fourteen" in turn.text for scene in held for turn in scene.turns)
    built = dataset.build(job.ledger.scenes(), val=0.1, ours=job.ledger.ours())
    assert "Rye bread needs fourteen hours.\n" not in str(built.examples)
    codes = [problem.code for path_, problem in job.ledger.problems() if path_ == "Plans.md"]
    assert codes == ([] if edit(NOTE) == NOTE and left[0] == NOTE.encode() else ["W-UNFINISHED"])


def test_words_of_a_stopped_answer_are_ours_even_without_any_comment_around_them(job, monkeypatch):
    path = note(job, "# Rye\n\n>[!nexus_user] **User**\n> How long does rye bread proof?\n")
    says(monkeypatch, SAID, {14: lambda: path.write_text(without_opening(path.read_text(encoding="utf-8")), encoding="utf-8")})
    assert reply(job).stopped
    bare = "\n".join(line for line in path.read_text(encoding="utf-8").split("\n") if "<!--" not in line)
    path.write_text(bare, encoding="utf-8")
    steps.ingest(job)
    built = dataset.build(job.ledger.scenes(), val=0.1, ours=job.ledger.ours())
    assert any("our own answer" in one.reason for one in built.dropped)
    assert "Rye bread needs fourteen hours.\n" not in str(built.examples)


def test_a_question_that_is_typed_on_before_anything_is_written_is_answered_as_it_is_then(job, monkeypatch):
    path = note(job, NOTE.replace("How long does rye bread proof?", "How long"))
    says(monkeypatch, SAID, {1: lambda: path.write_text(NOTE, encoding="utf-8")})
    found = reply(job)
    assert found.question == "How long does rye bread proof?"
    assert path.read_text(encoding="utf-8").startswith(NOTE)
    assert path.read_text(encoding="utf-8").count("nexus_agent") == 1


@pytest.mark.parametrize("edit", [lambda path: path.write_text("# Plans\n", encoding="utf-8"), lambda path: path.unlink()])
def test_a_question_that_is_taken_back_is_not_answered(job, monkeypatch, edit):
    path = note(job)
    says(monkeypatch, SAID, {1: lambda: edit(path)})
    assert reply(job).stopped
    assert not path.exists() or path.read_text(encoding="utf-8") == "# Plans\n"


def test_who_asks_no_more_ends_the_model(job, monkeypatch):
    path, gone = note(job), threading.Event()
    words = says(monkeypatch, SAID + " word" * 500, {14: gone.set})
    assert reply(job, cancel=gone).stopped
    assert len(words) < 40
    assert path.read_text(encoding="utf-8").startswith(NOTE)


def test_what_is_forgotten_while_it_is_said_stops_it(job, monkeypatch):
    path = note(job)
    says(monkeypatch, SAID, {1: lambda: steps.forget(job, "Bread.md")})
    with pytest.raises(DataError, match="forgotten while"):
        reply(job)
    assert path.read_text(encoding="utf-8") == NOTE


def edits(path: Path, chance: random.Random, typed: list[str]) -> Callable[[], None]:
    """The owner types a word that nobody else writes, somewhere, in the way of an editor: reads all, writes all."""

    def edit() -> None:
        text = path.read_bytes().decode()
        word = f"zq{len(typed)}z"
        ours = text.find("<!-- vaultllm ")
        where = chance.choice(["top", "top", "top", "prose", "below", "within"])
        if where == "below":
            text += f"{word}\n"
        elif where == "within" and ours >= 0:
            place = text.find("fourteen", ours)
            text = text[:place] + word + text[place:] if place > 0 else word + text
        elif where == "prose":
            text = text.replace("The clay", f"{word} The clay", 1)
        else:
            text = f"{word}\n{text}"
        typed.append(word)
        path.write_bytes(text.encode())

    return edit


def interleaved(job: steps.Job, monkeypatch: pytest.MonkeyPatch, seed: int) -> tuple[list[str], bytes]:
    chance, typed = random.Random(seed), list[str]()
    path = note(job, NOTE)
    moments = chance.sample(range(18), 3)
    edit = edits(path, chance, typed)
    says(monkeypatch, SAID, dict.fromkeys(moments, edit))
    late = chance.random() < 0.5
    right = os.write

    def write(descriptor: int, data: bytes) -> int:
        nonlocal late
        if late and b"vaultllm" in bytes(data)[:60]:
            late = False
            edit()
        return right(descriptor, data)

    monkeypatch.setattr(os, "write", write)
    with contextlib.suppress(VaultllmError):
        reply(job)
    monkeypatch.setattr(os, "write", right)
    return typed, path.read_bytes()


def test_no_word_that_is_typed_while_an_answer_grows_is_lost(job, monkeypatch):
    for seed in range(25):
        typed, data = interleaved(job, monkeypatch, seed)
        assert typed
        assert [word for word in typed if word.encode() not in data] == [], seed
        agents = data.count(b"[!nexus_agent]")
        assert agents <= 1, seed


def test_a_writer_that_does_not_look_again_loses_words(job, monkeypatch):
    """The control: the same edits, and pieces that are written as an editor writes them."""

    def careless(root: Path, path: str, text: str, expected: str) -> str:
        held[0] = held[0] or (root / path).read_bytes()
        held[0] += text.encode()
        (root / path).write_bytes(held[0])
        return hashlib.sha256(held[0]).hexdigest()

    monkeypatch.setattr(vault, "append", careless)
    monkeypatch.setattr(conversing._Growing, "_look", lambda self: None)
    lost = 0
    for seed in range(25):
        held = [b""]
        typed, data = interleaved(job, monkeypatch, seed)
        lost += sum(word.encode() not in data for word in typed)
    assert lost


def test_two_who_are_asked_at_once_do_not_both_answer(job, monkeypatch):
    path, other = note(job), steps.Job(job.workspace)
    refused: list[str] = []

    def too() -> None:
        with pytest.raises(VaultllmError) as error:
            conversing.reply(job.workspace, other.ledger, "Plans.md", progress=silent)
        refused.append(error.value.code)

    says(monkeypatch, SAID, {14: too})
    assert not reply(job).stopped
    assert refused == ["E-LOCKED"]
    assert path.read_text(encoding="utf-8").count("nexus_agent") == 1
    other.close()


def test_who_was_about_to_write_when_another_began_steps_back(job, monkeypatch):
    path, other = note(job), steps.Job(job.workspace)
    says(monkeypatch, SAID, {1: lambda: (says(monkeypatch), conversing.reply(job.workspace, other.ledger, "Plans.md", progress=silent))})
    assert "is answered" in reply(job).stopped
    assert path.read_text(encoding="utf-8").count("nexus_agent") == 1
    other.close()


# -- what was not finished, and what cannot be


SLOW = """
import sys, time
from vaultllm import config, steps
from vaultllm.models import hf
hf.CAPABLE = 1
def generate(*_, made=None, **__):
    for number, word in enumerate({said!r}.split(" ")):
        made is None or made.append(number)
        yield word if number == 0 else f" {{word}}"
        time.sleep(0.15)
hf.generate = generate
from vaultllm import conversing
conversing.PACE = 0.1
"""


@pytest.mark.children
def test_a_killed_answer_is_told_unfinished_never_the_owners_and_can_be_asked_anew(job, monkeypatch, tmp_path):
    path = note(job)
    code = SLOW.format(said=SAID + " word" * 300) + "steps.reply(steps.Job(config.open_workspace(sys.argv[1], sys.argv[2])), 'Plans.md')"
    with subprocess.Popen([sys.executable, "-c", code, str(job.workspace.vault), str(job.workspace.state)]) as child:
        until(lambda: b"oven must be hot" in path.read_bytes(), 120.0)
        child.send_signal(signal.SIGKILL)
        child.wait(20)
    killed = path.read_bytes()
    assert killed.startswith(NOTE.encode())
    (lost,) = asked.interrupted(job.ledger)
    assert lost.encode() in killed
    assert asked.interrupted(job.ledger) == []
    steps.ingest(job)
    assert "W-UNFINISHED" in [problem.code for _, problem in job.ledger.problems()]
    assert not any("oven must" in turn.text for scene in job.ledger.scenes("Plans.md") for turn in scene.turns)
    assert asked.fresh(job.workspace, job.ledger, ["Plans.md"]) == []
    says(monkeypatch)
    result = steps.reply(job, "Plans.md")
    assert result["unfinished"] == 1
    data = path.read_bytes()
    assert data.startswith(killed)
    _, _, (held,) = talk(job, path)
    assert [turn.role for turn in held.turns] == ["user", "assistant"]
    assert "word word" not in held.turns[1].text


def until(true: Callable[[], Any], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_an_answer_in_a_nexus_talk_is_ours_where_no_ledger_knows_of_it(job, monkeypatch):
    note(job, "# Rye\n\n>[!nexus_user] **User**\n> How long does rye bread proof?\n")
    says(monkeypatch)
    reply(job)
    steps.ingest(job)
    built = dataset.build(job.ledger.scenes(), val=0.1, ours=frozenset())
    assert any("our own answer" in one.reason for one in built.dropped)
    assert "The oven must be hot" not in str(built.examples)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (f"---\nvaultllm: off\n---\n{NOTE}", "vaultllm: off"),
        (NOTE + "\n```python\nprint(1)\n", "code fence or comment open"),
        (NOTE + "\n%%\nhidden\n", "code fence or comment open"),
        (NOTE + "\n<!-- hidden\n", "code fence or comment open"),
    ],
)
def test_where_nothing_may_or_can_be_answered_the_way_out_is_said(job, monkeypatch, text, why):
    says(monkeypatch)
    path = note(job, text)
    with pytest.raises(DataError, match=why):
        reply(job)
    assert path.read_text(encoding="utf-8") == text


def test_a_silenced_note_is_read_as_ever(job):
    note(job, f"---\nvaultllm: off\n---\n{BREAD}", "silent.md")
    steps.ingest(job)
    (scene,) = job.ledger.scenes("silent.md")
    assert (scene.trust, scene.train) == ("own", True)


def test_a_note_that_cannot_be_written_keeps_no_trace(job, monkeypatch):
    def refuse(*_: Any) -> str:
        raise VaultError("the note cannot be written", code="E-WRITE")

    says(monkeypatch)
    path = note(job)
    monkeypatch.setattr(vault, "append", refuse)
    with pytest.raises(VaultError, match="cannot be written"):
        reply(job)
    assert path.read_text(encoding="utf-8") == NOTE
    monkeypatch.setattr("vaultllm.locks.is_there", lambda pid: False)
    assert asked.interrupted(job.ledger) == []


def test_a_note_that_is_changed_at_every_write_is_waited_for(job, monkeypatch):
    says(monkeypatch)
    path, right, refused = note(job), vault.append, []

    def append(*given: Any) -> str:
        if len(refused) < 3:
            refused.append(1)
            path.write_bytes(b"x\n" + path.read_bytes())
            raise OwnedNoteError("changed")
        return right(*given)

    monkeypatch.setattr(vault, "append", append)
    assert not reply(job).stopped
    assert path.read_bytes().startswith(b"x\nx\nx\n# Plans")


# -- what was asked just now


def fresh(job: steps.Job, *names: str) -> list[str]:
    return asked.fresh(job.workspace, job.ledger, names)


def test_what_is_asked_now_is_new_once(job, monkeypatch):
    path = note(job, "# Plans\n\nProse.\n")
    steps.ingest(job)
    assert fresh(job, "Plans.md") == []
    path.write_text(NOTE, encoding="utf-8")
    assert fresh(job, "Plans.md") == ["Plans.md"]
    steps.ingest(job)
    assert fresh(job, "Plans.md") == []
    path.write_text("Edited elsewhere.\n\n" + NOTE, encoding="utf-8")
    assert fresh(job, "Plans.md") == []
    says(monkeypatch)
    reply(job)
    assert fresh(job, "Plans.md") == []
    steps.ingest(job)
    path.write_text(path.read_text(encoding="utf-8") + "\n> [!ask] How long does rye bread proof?\n", encoding="utf-8")
    assert fresh(job, "Plans.md") == ["Plans.md"], "the same words, asked again"
    assert fresh(job, "Plans.md", "Bread.md", "a.md", "b.md") == [], "many notes at once"


def test_a_secret_in_a_question_does_not_make_it_new_for_ever(job):
    note(job, "> [!ask] Is password: hunter2hunter2 a good one? mail me at a.b@example.com\n")
    assert fresh(job, "Plans.md") == ["Plans.md"]
    steps.ingest(job)
    assert fresh(job, "Plans.md") == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Plans.md", f"---\nvaultllm: off\n---\n{NOTE}"),
        ("Plans.md", f"---\nvaultllm: answer\n---\n{NOTE}"),
        ("Plans.md", f"---\nprivate: true\n---\n{NOTE}"),
        ("Templates/Plans.md", NOTE),
        ("vaultllm/Answers/Plans.md", NOTE),
        ("Plans.md", ">[!nexus_user] **User** - 1.2.2023 at 10:00\n> Hello?\n<!-- UID: aaa-1 -->\n"),
        ("Plans.md", ">[!nexus_user] **User** - 1.2.2023 at 10:00\n> Hello?\n"),
        ("Plans.md", "User: Hello?\n\nAssistant: Yes\n\nUser: And?\n"),
        ("Plans.md", "```\n> [!ask] q\n```\n"),
        ("Plans.md", "> quoted\n> [!ask] q\n"),
        ("Plans.md", "> [!ask]\n"),
        ("Plans.canvas", "{}"),
    ],
)
def test_what_nobody_asks_us_now_is_not_answered_by_itself(job, name, text):
    note(job, text, name)
    assert fresh(job, name) == []


def test_old_files_renamed_ones_and_the_setting_are_left_alone(job):
    path = note(job)
    os.utime(path, (time.time() - 7200, time.time() - 7200))
    assert fresh(job, "Plans.md") == []
    os.utime(path)
    assert fresh(job, "Plans.md") == ["Plans.md"]
    settings = job.workspace.settings
    off = settings.model_copy(update={"answers": settings.answers.model_copy(update={"on_save": False})})
    assert asked.fresh(dataclasses.replace(job.workspace, settings=off), job.ledger, ["Plans.md"]) == []
    steps.ingest(job)
    path.rename(path.with_name("Other.md"))
    assert fresh(job, "Other.md") == []


# -- the daemon


CHILD = """
import sys, time
from vaultllm.models import hf
hf.CAPABLE = 1
def generate(loaded, ids, *_, made=None, **__):
    seen = loaded.tokenizer.decode(list(ids)).count("zebra")
    for number, word in enumerate(f"I have seen {seen} striped horses.\\n\\nThe oven must be hot.\\n\\nThat is all of it.".split(" ")):
        made is None or made.append(number)
        yield word if number == 0 else f" {word}"
        time.sleep(0.15)
hf.generate = generate
from vaultllm import conversing
conversing.PACE = 0.1
from vaultllm.hands import serve
serve()
"""
DAEMON = f"""
import sys
from vaultllm import cli, hands
hands.COMMAND = (sys.executable, "-c", {CHILD!r})
cli.main()
"""


class Daemon:
    """A real daemon of a real vault; its model is real, but what it says is told it, slowly."""

    def __init__(self, place: Path) -> None:
        self.vault, self.state, self.log = place / "vault", place / "state", list[dict[str, Any]]()
        arguments = ["--vault", str(self.vault), "--state", str(self.state), "--json", "watch"]
        repo = Path(__file__).resolve().parents[1]
        self.process = subprocess.Popen(
            [sys.executable, "-c", DAEMON, *arguments], cwd=repo, text=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self.process.stdout is not None
        lines = self.process.stdout
        self.reader = threading.Thread(target=lambda: self.log.extend(json.loads(line) for line in lines), daemon=True)
        self.reader.start()
        until(lambda: self.named("ingested"), 120.0)

    def named(self, event: str) -> list[dict[str, Any]]:
        return [one for one in self.log if one["event"] == event]

    def end(self, how: signal.Signals) -> None:
        self.process.send_signal(how)
        self.process.wait(30.0)
        self.reader.join(30.0)
        assert self.process.stdout is not None
        self.process.stdout.close()


@pytest.fixture
def place(tmp_path: Path, base: str) -> Path:
    (tmp_path / "vault").mkdir()
    (tmp_path / "vault" / "Bread.md").write_text(BREAD, encoding="utf-8")
    (tmp_path / "vault" / "Old.md").write_text("> [!ask] What of old?\n", encoding="utf-8")
    workspace = config.init_workspace(tmp_path / "vault", str(tmp_path / "state"), base)
    settings = workspace.vault / ".vaultllm" / "config.toml"
    settings.write_text(settings.read_text(encoding="utf-8") + "\n[watch]\nsettle = 0.3\n[answers]\nwait = 0.5\n", encoding="utf-8")
    return tmp_path


@pytest.mark.children
def test_the_daemon_answers_what_is_asked_now_once_and_nothing_else(place: Path) -> None:
    daemon = Daemon(place)
    path = daemon.vault / "Plans.md"
    doing = set()
    try:
        path.write_text(NOTE.replace("rye", "zebra rye"), encoding="utf-8")
        until(lambda: doing.add(heartbeat.look(daemon.state)["doing"]) or daemon.named("answered"), 120.0)
        first = path.read_bytes()
        assert "answering" in doing
        assert first.startswith(NOTE.replace("rye", "zebra rye").encode())
        assert f"<!-- UID: {daemon.named('answered')[0]['answer']}-agent -->\n".encode() in first
        assert b"> > [!quote]- Sources" in first

        # what was said before is known; an edit elsewhere is waited for
        path.write_bytes(first + b"\n> [!ask] And the zebra oven?\n")
        until(lambda: path.read_bytes().count(b"[!nexus_agent]") == 2, 60.0)
        path.write_bytes(b"Typed at the top.\n\n" + path.read_bytes())
        until(lambda: len(daemon.named("answered")) == 2, 60.0)
        second = path.read_bytes()
        assert second.startswith(b"Typed at the top.\n\n" + first + b"\n> [!ask] And the zebra oven?\n")
        one, two = (int(piece.split(b" ")[0]) for piece in second.split(b"I have seen ")[1:])
        assert two > one >= 1

        # a line that is deleted stops it
        path.write_bytes(second + b"\n> [!ask] And the wood?\n")
        until(lambda: path.read_bytes().count(b"[!nexus_agent]") == 3, 60.0)
        text = path.read_text(encoding="utf-8").split("\n")
        opening = max(number for number, line in enumerate(text) if ": delete this line" in line)
        path.write_text("\n".join(text[:opening] + text[opening + 1 :]), encoding="utf-8")
        stopped = path.read_bytes()
        until(lambda: daemon.named("answer_stopped"), 60.0)

        # a batch, a silenced note: nothing
        for number in range(20):
            (daemon.vault / f"chat {number}.md").write_text(f">[!nexus_user] **User**\n> Hello {number}?\n", encoding="utf-8")
        until(lambda: sum(one["read"] for one in daemon.named("ingested")) >= 20, 60.0)
        (daemon.vault / "off.md").write_text(f"---\nvaultllm: off\n---\n{NOTE}", encoding="utf-8")
        until(lambda: daemon.named("ingested")[-1]["notes"] >= 24, 60.0)
        time.sleep(2.0)  # whatever our own writing had started would be there by now
        assert path.read_bytes() == stopped
        others = [other for other in daemon.vault.glob("*.md") if other != path]
        assert len(others) == 23
        assert not any("nexus_agent" in other.read_text(encoding="utf-8") for other in others)
        assert (len(daemon.named("answered")), len(daemon.named("answer_stopped")), daemon.named("problem")) == (2, 1, [])
        status = Path(f"/proc/{daemon.process.pid}/status")
        if status.exists():
            (peak,) = [line for line in status.read_text(encoding="utf-8").split("\n") if line.startswith("VmRSS")]
            assert int(peak.split()[1]) < 80_000

        # killed in the middle
        path.write_bytes(stopped + b"\n> [!ask] And the stone?\n")
        until(lambda: path.read_bytes().count(b"[!nexus_agent]") == 4, 60.0)
    finally:
        daemon.end(signal.SIGKILL)
    time.sleep(1.5)  # its child hears of it
    killed = path.read_bytes()
    again = Daemon(place)
    try:
        (lost,) = again.named("interrupted")
        assert f"<!-- vaultllm {lost['answer']}: ".encode() in killed
        assert f"{lost['answer']}-agent".encode() not in killed
        time.sleep(2.0)
        assert path.read_bytes() == killed
        assert (again.named("answered"), again.named("answer_stopped")) == ([], [])
    finally:
        again.end(signal.SIGTERM)
    log = json.dumps([*daemon.log, *again.log], ensure_ascii=False)
    assert not any(word in log for word in ("zebra", "Plans", "oven"))


@pytest.mark.children
def test_what_cannot_be_answered_is_told_once_and_not_tried_for_ever(place: Path) -> None:
    daemon = Daemon(place)
    try:
        (daemon.vault / "Plans.md").write_text(NOTE + "\n```python\nprint(1)\n", encoding="utf-8")
        until(lambda: daemon.named("problem"), 120.0)
        assert heartbeat.look(daemon.state)["last"]["event"] == "problem"
        time.sleep(2.0)
        (told,) = daemon.named("problem")
        assert "fence or comment open" in told["message"]
        assert (daemon.vault / "Plans.md").read_text(encoding="utf-8").startswith(NOTE)
        assert "nexus_agent" not in (daemon.vault / "Plans.md").read_text(encoding="utf-8")
    finally:
        daemon.end(signal.SIGTERM)
