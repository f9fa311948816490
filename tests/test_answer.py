"""Asking and replying in a real vault: checked quotations, untouched notes, a model that may be absent or broken."""

# ruff: noqa: E501 - a note of the sample vault stays on its lines

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultllm import answer, chats, config, conversing, markdown, render, saying, steps
from vaultllm.errors import DataError, VaultllmError
from vaultllm.schema import Example, Hit, Message, Scene, Source, Turn

NOTES = {
    "Сад/Полив.md": "# Полив\n\n## Насос\n\nНасос включается, когда влажность почвы ниже тридцати двух процентов. Бак на крыше держит сорок литров.\n\n"
    "## Рассада\n\n- Рассаду томатов поливают утром.\n- Перцы любят тепло.\n",
    "Bread.md": "# Rye\n\nRye bread needs fourteen hours of cold proof and a hot oven. The starter is fed twice a day. #bread\n",
    "নদী.md": "# নদী\n\nআজ সকালে বৃষ্টি হয়েছে। নদীর জল দুই মিটার বেড়েছে। নৌকা ঘাটে বাঁধা আছে।\n",
    "Chats/oven.md": "# Title: Oven\n\n>[!nexus_user] **User** - 15.06.2025 at 6:20\n> Which temperature does the clay oven need for pizza?\n"
    "<!-- UID: u1 -->\n\n>[!nexus_agent] **Assistant** - 15.06.2025 at 6:21\n> It must reach four hundred degrees before you slide it in.\n"
    "> \n> Wait an hour after lighting the fire.\n<!-- UID: a1 -->\n",
}


@pytest.fixture
def job(tmp_path: Path) -> Iterator[steps.Job]:
    vault = tmp_path / "vault"
    for path, text in NOTES.items():
        (vault / path).parent.mkdir(parents=True, exist_ok=True)
        (vault / path).write_text(text, encoding="utf-8")
    opened = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    steps.ingest(opened)
    yield opened
    opened.close()


def digest(job: steps.Job) -> dict[str, str]:
    return {path: hashlib.sha256((job.workspace.vault / path).read_bytes()).hexdigest() for path in NOTES}


def ask(job: steps.Job, question: str, **options: str) -> answer.Answer:
    return answer.ask(job.workspace, job.ledger, question, progress=lambda progress: None, **options)


@pytest.mark.parametrize(
    ("question", "path", "line", "quote"),
    [
        ("Когда включается насос?", "Сад/Полив.md", 5, "Насос включается, когда влажность почвы ниже тридцати двух процентов."),
        ("How long does rye bread proof?", "Bread.md", 3, "Rye bread needs fourteen hours of cold proof and a hot oven."),
        ("নদীর জল কত বেড়েছে?", "নদী.md", 3, "নদীর জল দুই মিটার বেড়েছে।"),
        ("Когда поливают рассаду?", "Сад/Полив.md", 9, "Рассаду томатов поливают утром."),
        ("temperature of the clay oven for pizza", "Chats/oven.md", 8, "It must reach four hundred degrees before you slide it in."),
    ],
)
def test_the_sentence_that_answers_is_quoted_with_its_line(job: steps.Job, question: str, path: str, line: int, quote: str) -> None:
    found = ask(job, question)
    assert found.model == render.NO_MODEL
    assert found.text == ""
    best = found.sources[0]
    assert (best.path, best.lines, best.quote) == (path, (line, line), quote)
    assert quote in (job.workspace.vault / path).read_text(encoding="utf-8").split("\n")[line - 1]
    assert found.created[-6] in "+-"


def test_a_quotation_links_to_its_heading_and_names_the_turn(job: steps.Job) -> None:
    assert ask(job, "Когда включается насос?").sources[0].link == "[[Сад/Полив#Полив#Насос|Полив › Насос]]"
    assert ask(job, "temperature of the clay oven for pizza").sources[0].uid == "a1"


def test_what_the_vault_does_not_speak_of_gets_no_quotation(job: steps.Job) -> None:
    assert ask(job, "Какая столица Монголии?").sources == ()


def test_a_sentence_that_was_changed_after_it_was_read_is_not_quoted(job: steps.Job) -> None:
    path = job.workspace.vault / "Bread.md"
    path.write_text(NOTES["Bread.md"].replace("fourteen", "sixteen"), encoding="utf-8")
    quotes = [source.quote for source in ask(job, "How long does rye bread proof?").sources]
    assert not any("fourteen" in quote for quote in quotes)
    path.unlink()
    assert not any(source.path == "Bread.md" for source in ask(job, "How long does rye bread proof?").sources)


def test_a_sentence_that_moved_is_quoted_where_it_stands_now(job: steps.Job) -> None:
    path = job.workspace.vault / "Bread.md"
    path.write_text("new line\n\n" + NOTES["Bread.md"], encoding="utf-8")
    assert ask(job, "How long does rye bread proof?").sources[0].lines == (5, 5)


def test_the_named_note_comes_first_and_an_unknown_one_is_an_error(job: steps.Job) -> None:
    assert ask(job, "Что с хлебом и насосом?", note="Сад/Полив.md").sources[0].path == "Сад/Полив.md"
    with pytest.raises(DataError, match="not known"):
        ask(job, "?", note="nowhere.md")
    with pytest.raises(DataError, match="empty"):
        ask(job, "  ")


def test_the_answer_is_a_new_note_that_we_know_and_no_other_file_changes(job: steps.Job) -> None:
    before = digest(job)
    found = ask(job, "Когда включается насос?")
    path = answer.write(job.workspace, job.ledger, found)
    again = answer.write(job.workspace, job.ledger, ask(job, "Когда включается насос?"))
    assert path != again
    assert path.startswith("vaultllm/Answers/")
    data = (job.workspace.vault / path).read_bytes()
    assert job.ledger.written()[hashlib.sha256(data).hexdigest()] == path
    assert "Из заметок:" in data.decode()
    assert "[[Сад/Полив#Полив#Насос|Полив › Насос]], строка 5" in data.decode()
    assert digest(job) == before
    assert steps.ingest(job)["notes"]["parsed"] == 0


def micro(job: steps.Job) -> Path:
    from vaultllm.models.micro import pretrain

    texts = [line for text in NOTES.values() for line in text.split("\n") if len(line) > 20]
    examples = [
        Example(str(i), (), "a.md", "dialogue", (Message("user", "?", False), Message("assistant", text, True)), "train")
        for i, text in enumerate(texts)
    ]
    folder = job.workspace.bases / "micro-1"
    pretrain(examples, folder, minutes=1, seed=0, progress=lambda progress: None, steps=3)
    (folder / "seen.json").write_text('{"paths": [], "scenes": []}')
    return folder


def test_a_micro_model_speaks_below_the_notes_and_a_broken_one_does_not_cost_the_answer(job: steps.Job) -> None:
    folder = micro(job)
    pieces: list[str] = []
    found = answer.ask(job.workspace, job.ledger, "Когда включается насос?", stream=pieces.append, progress=lambda progress: None)
    assert not found.capable
    assert found.text == "".join(pieces).strip()
    assert found.model.startswith("micro, 0.84M parameters")
    assert "parameters, trained here for" in found.model
    assert found.prompt_sha
    assert found.sources[0].path == "Сад/Полив.md"
    if found.text:
        assert (
            "> > [!warning]- Слова самой модели (micro-1"
            in (job.workspace.vault / answer.write(job.workspace, job.ledger, found)).read_text()
        )
    (folder / "model.safetensors").write_bytes(b"junk")
    broken = ask(job, "Когда включается насос?")
    assert broken.sources == found.sources
    assert broken.text == ""
    assert broken.model.startswith("micro-1: E-MODEL")


def test_numbers_lead_to_quotations_and_sentences_without_support_are_marked(job: steps.Job) -> None:
    from vaultllm import quotes

    def hit(path: str, text: str, line: int) -> Hit:
        turn = Turn("user", text, (line, line), line)
        return Hit(
            Scene("a", "b", "prose", "t", (), (turn,), Source(path, (line, line)), "en", "own"), path, (line, line), text, (), 1.0, {}
        )

    hits = [
        hit("Bread.md", "Rye bread needs fourteen hours of cold proof and a hot oven. The starter is fed twice a day.", 3),
        hit("Сад/Полив.md", "Бак на крыше держит сорок литров.", 5),
        hit("Bread.md", "This sentence is nowhere.", 3),
    ]
    source = quotes.Sources(job.workspace)
    found = quotes.choose("rye bread proof", hits, source, most=1)
    said = "Бак держит сорок литров [2]. Rye bread needs a cold proof [1]. Nothing [3], and no [8]. The moon was built of green cheese."
    shown = saying.Saying("rye bread proof", hits, found, source)
    text = shown.numbered(said)
    assert text == "Бак держит сорок литров [2]. Rye bread needs a cold proof [1]. Nothing, and no. The moon was built of green cheese."
    assert [one.path for one in shown.citations] == ["Bread.md", "Сад/Полив.md"]
    marked = saying.Saying("rye bread proof", hits, found, source).whole(said)
    assert "green cheese. †" in marked
    assert "литров [2]. †" not in marked
    assert marked.endswith("† the model's own words: not in the excerpts.")


OPEN = NOTES["Chats/oven.md"] + "\n>[!nexus_user] **User** - 15.06.2025 at 6:30\n> And how is rye bread proofed?\n<!-- UID: u2 -->"


def reply(job: steps.Job, path: str) -> answer.Answer:
    return conversing.reply(job.workspace, job.ledger, path, progress=lambda progress: None)


@pytest.mark.parametrize(
    ("name", "text", "reader"),
    [
        ("open.md", OPEN, "nexus"),
        ("crlf.md", OPEN.replace("\n", "\r\n"), "nexus"),
        ("plain.md", "User: Hello\n\nAssistant: Hi\n\nUser: How is rye bread proofed?\n", "plain"),
        ("bold.md", "**Вопрос:** Привет\n\n**Ответ:** Да\n\n**Вопрос:** How is rye bread proofed?", "plain"),
        ("quoted.md", "> User: Hello\n> \n> Assistant: Hi\n> \n> User: How is rye bread proofed?\n", "plain"),
    ],
)
def test_a_reply_is_appended_in_the_notes_own_form_and_nothing_before_it_changes(job: steps.Job, name: str, text: str, reader: str) -> None:
    path = job.workspace.vault / name
    path.write_bytes(text.encode())
    before = digest(job)
    found = reply(job, name)
    data = path.read_bytes()
    assert data.startswith(text.encode())
    assert data.count(b"\r") == (data.count(b"\n") if "\r" in text else 0)
    form, _, (talk,) = chats.read(markdown.parse(name, data), job.workspace.settings.scan, "")
    assert form == reader
    assert talk.turns[-1].role == "assistant"
    assert "fourteen hours" in talk.turns[-1].text
    assert found.question.endswith("rye bread proofed?")
    assert digest(job) == before
    with pytest.raises(DataError, match="not yours"):
        reply(job, name)
    assert path.read_bytes() == data


def test_what_is_forgotten_while_the_model_speaks_is_not_written(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    first, calls = answer.composed, []

    def slow(*args: object) -> answer.Answer:
        found = first(*args)
        calls.append(any("fourteen hours" in source.quote for source in found.sources))
        if len(calls) == 1:
            steps.forget(job, "Bread.md")
        return found

    monkeypatch.setattr(answer, "composed", slow)
    result = steps.ask(job, "How long does rye bread proof?")
    assert calls == [True, False]
    assert "fourteen hours" not in (job.workspace.vault / result["note"]).read_text(encoding="utf-8")
    steps.forget(job, "Bread.md", undo=True)
    steps.ingest(job)
    calls.clear()
    (job.workspace.vault / "plain.md").write_text("User: How is rye bread proofed?\n", encoding="utf-8")
    with pytest.raises(DataError, match="was forgotten while"):
        steps.reply(job, "plain.md")
    assert (job.workspace.vault / "plain.md").read_text(encoding="utf-8") == "User: How is rye bread proofed?\n"


def test_our_own_answer_can_be_talked_to(job: steps.Job) -> None:
    path = answer.write(job.workspace, job.ledger, ask(job, "Когда включается насос?"))
    file = job.workspace.vault / path
    with file.open("a", encoding="utf-8") as note:
        note.write("\n>[!nexus_user] **User**\n> How is rye bread proofed?\n")
    assert "fourteen hours" in reply(job, path).sources[0].quote


@pytest.mark.parametrize("name", ["Bread.md", "conversations.json", "missing.md"])
def test_a_note_without_a_chat_is_an_error_and_stays_as_it_is(job: steps.Job, name: str) -> None:
    before = digest(job)
    with pytest.raises(VaultllmError):
        reply(job, name)
    assert digest(job) == before


def test_an_open_fence_in_a_transcript_is_named_instead_of_answered_into(job: steps.Job) -> None:
    path = job.workspace.vault / "plain.md"
    text = "User: Hello\n\nAssistant: Hi\n\nUser: How is rye bread proofed?\n```\ncode\n"
    path.write_text(text)
    with pytest.raises(DataError, match="open at the end"):
        reply(job, "plain.md")
    assert path.read_text() == text


@pytest.mark.parametrize("form", ["nexus", "plain"])
def test_a_reply_of_ours_never_becomes_an_example(job: steps.Job, form: str) -> None:
    from vaultllm import dataset

    plain = "User: Когда включается насос?\n\nAssistant: Утром.\n\nUser: А точнее, при какой влажности?\n"
    body = CHAT_OPEN if form == "nexus" else plain
    path = job.workspace.vault / "Чаты" / "открытый.md"
    path.parent.mkdir(exist_ok=True)
    path.write_text(body, encoding="utf-8")
    steps.ingest(job)
    before = dataset.build(job.ledger.scenes(), val=0.1, ours=job.ledger.ours())
    steps.reply(job, "Чаты/открытый.md")
    steps.ingest(job)
    assert list(job.ledger.scenes("Чаты/открытый.md"))[-1].turns[-1].role == "assistant"
    after = dataset.build(job.ledger.scenes(), val=0.1, ours=job.ledger.ours())
    assert [example.id for example in after.examples] == [example.id for example in before.examples]
    assert any("our own answer" in one.reason for one in after.dropped)


CHAT_OPEN = """>[!nexus_user] **User** - 16.06.2025 at 21:34
> При какой влажности включается насос?
<!-- UID: open-1 -->
"""


def test_a_garbled_note_is_quoted_as_it_was_meant(job: steps.Job) -> None:
    from vaultllm import quotes

    meant = "# Полив\n\nНасос включается, когда влажность почвы ниже тридцати двух процентов.\n\nПотом он ждёт сорок минут.\n"
    (job.workspace.vault / "битая.md").write_text(meant.encode().decode("mac-roman"), encoding="utf-8")
    (job.workspace.vault / "старая.md").write_bytes("# Полив\n\nСтарый насос гудел в подвале.\n".encode("cp1251"))
    scan = job.workspace.settings.scan.model_copy(update={"encoding": "cp1251"})
    settings = job.workspace.settings.model_copy(update={"scan": scan})
    source = quotes.Sources(dataclasses.replace(job.workspace, settings=settings))
    assert source.find("битая.md", "Потом он ждёт сорок минут.", (1, 5)) == (5, 5)
    assert source.find("старая.md", "Старый насос гудел в подвале.", (1, 3)) == (3, 3)


def test_a_transcript_of_json_lines_is_quoted_as_it_is_spelled(job: steps.Job) -> None:
    from vaultllm import quotes

    (job.workspace.vault / "talk.jsonl").write_text('{"a": 1}\n{"said": "Он сказал: \\"тише\\"."}\n', encoding="utf-8")
    assert quotes.Sources(job.workspace).find("talk.jsonl", 'Он сказал: "тише".', (2, 2)) == (2, 2)
