"""A model's words as they are shown while they come: nothing is lost, nothing acts, and what is cited was checked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import models, timing
from vaultllm import answer, config, inert, prompts, speaking, steps
from vaultllm.errors import DataError, UsageError
from vaultllm.models import hf
from vaultllm.saying import Units
from vaultllm.schema import Message

PARTS = [
    "Rye bread rises. ",
    "How? ",
    "One [1]. ",
    "\n\n",
    "\n",
    "- item\n",
    "1. first\n",
    "```js\ncode. More\n\n",
    "```\n",
    "**b. still** ",
]
PARTS += ["<think>", "</think>", "a < b. ", "| a | b |\n", "# Head\n", "নদী বাড়ে। ", " "]


def units(text: str, cuts: list[int]) -> list[str]:
    splitter, out, before = Units(), [], 0
    for cut in [*sorted(cut % (len(text) + 1) for cut in cuts), len(text)]:
        out += splitter.add(text[before:cut])
        before = cut
    return out + splitter.end()


@given(st.lists(st.sampled_from(PARTS), max_size=25), st.lists(st.integers(0, 400), max_size=30))
@settings(max_examples=150)
def test_units_hold_all_that_is_said_wherever_it_is_cut(parts: list[str], cuts: list[int]) -> None:
    text = "".join(parts)
    assert "".join(units(text, cuts)).strip() == prompts.spoken(text).strip()


def test_a_sentence_is_shown_when_the_next_begins_and_a_block_when_it_ends() -> None:
    splitter = Units()
    assert splitter.add("Rye bread rises. ") == []
    assert splitter.add("[1]") == []  # the number may belong to it
    assert splitter.add(" It") == ["Rye bread rises. [1]"]
    assert splitter.add(" needs time. T") == [" It needs time."]
    assert splitter.add("hen **bake. it** now. Yes") == []  # emphasis may span sentences
    assert splitter.add("\n\n```\ncode.\n\nmore. ") == [" Then **bake. it** now. Yes"]
    assert splitter.add("x\n```\n") == ["\n\n```\ncode.\n\nmore. x\n```"]
    assert splitter.add("<thi") == []
    assert splitter.add("nk>secret</think>End") == []
    assert splitter.end() == ["\nEnd"]


def test_units_are_told_in_linear_time() -> None:
    def told(text: str) -> None:
        splitter = Units()
        for at in range(0, len(text), 8):
            splitter.add(text[at : at + 8])
        splitter.end()

    timing.assert_linear(lambda size: "Rye bread rises. Then it is baked.\n\n" * (size // 32), told, 2**14)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[steps.Job]:
    vault = tmp_path / "vault"
    vault.mkdir()
    (vault / "Bread.md").write_text("# Rye\n\nRye bread needs fourteen hours of cold proof and a hot oven.\n", encoding="utf-8")
    (vault / "Tank.md").write_text("# Tank\n\nThe tank on the roof holds forty litres for rye bread dough.\n", encoding="utf-8")
    monkeypatch.setattr("vaultllm.memory.live.LEARN_AT_ONCE", 0)
    monkeypatch.setattr(hf, "CAPABLE", 1)
    opened = steps.Job(config.init_workspace(vault, str(tmp_path / "state"), str(models.build(tmp_path / "tiny", context=1024))))
    steps.ingest(opened)
    yield opened
    opened.close()


def says(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    def generate(*_: Any, made: list[int] | None = None, cancel: threading.Event | None = None, **__: Any) -> Iterator[str]:
        for at in range(0, len(text), 5):
            if cancel is not None and cancel.is_set():
                return
            if made is not None:
                made.append(at)
            yield text[at : at + 5]

    monkeypatch.setattr(hf, "generate", generate)


def heard(speech: speaking.Speech) -> tuple[list[str], speaking.Spoken]:
    pieces = []
    while True:
        try:
            pieces.append(next(speech))
        except StopIteration as end:
            return pieces, end.value


@pytest.mark.usefixtures("one_thread")
def test_a_capable_model_is_heard_by_sentences_with_checked_numbers_and_marks(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "<think>Hm. What now?</think>Rye bread needs fourteen hours of cold proof [1]. The tank holds forty litres [2]. Nothing [9].\n\n"
        "The moon was built of green cheese.\n\n```dataviewjs\ndv.pages()\n```\n\n<iframe src=x></iframe> ![[Tank]]"
    )
    says(monkeypatch, text)
    pieces, spoken = heard(speaking.converse(job.workspace, job.ledger, "How long does rye bread proof?"))
    whole = "".join(pieces)
    assert len([piece for piece in pieces if piece]) >= 5
    assert "Hm." not in whole
    assert "[9]" not in whole
    assert "green cheese. †" in whole
    assert whole.endswith("† the model's own words: not in the excerpts.")
    assert "dataviewjs" not in whole
    assert "<iframe" not in whole.replace("\\<iframe", "")
    assert "![[" not in whole
    cited = {source.path: number for number, source in enumerate(spoken.sources, 1)}
    assert set(cited) == {"Bread.md", "Tank.md"}
    for path, number in cited.items():
        assert f"|{number}]]" in whole, path
        quote = spoken.sources[number - 1].quote
        assert quote in (job.workspace.vault / path).read_text(encoding="utf-8")
    assert (spoken.finish, spoken.tokens) == ("stop", -(-len(text) // 5))
    note = answer.ask(job.workspace, job.ledger, "How long does rye bread proof?", progress=lambda at: None)
    assert note.text.count("†") == whole.count("†")  # the note says the same
    assert inert.inert(whole.replace("[[", "").replace("]]", ""))


@pytest.mark.usefixtures("one_thread")
def test_it_is_heard_while_it_is_made(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def generate(*_: Any, **__: Any) -> Iterator[str]:
        for number in range(1000):
            made.append(number)
            yield "Rye bread rises. "

    monkeypatch.setattr(hf, "generate", generate)
    speech = speaking.converse(job.workspace, job.ledger, "How long does rye bread proof?")
    while not next(speech):
        pass
    assert len(made) < 10
    speech.close()


@pytest.mark.usefixtures("one_thread")
def test_a_model_that_fails_or_says_nothing_leaves_the_answer_to_memory(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Iterator[str]:
        yield "Half a "
        raise RuntimeError("out of memory")

    for generate in (lambda *_, **__: iter(()), broken):
        monkeypatch.setattr(hf, "generate", generate)
        pieces, spoken = heard(speaking.converse(job.workspace, job.ledger, "How long does rye bread proof?"))
        assert "fourteen hours" in "".join(pieces)
        assert spoken.sources
    assert "out of memory" in spoken.model


@pytest.mark.usefixtures("one_thread")
def test_who_has_heard_enough_ends_it(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, "word " * 1000)
    enough = threading.Event()
    speech = speaking.plain(job.workspace, job.ledger, [Message("user", "Say words", False)], cancel=enough)
    assert next(speech) == "word "
    enough.set()
    pieces, spoken = heard(speech)
    assert (pieces, spoken.tokens) == ([], 1)


def test_what_cannot_be_asked_is_told(job: steps.Job) -> None:
    with pytest.raises(DataError, match="empty"):
        next(speaking.converse(job.workspace, job.ledger, " "))
    with pytest.raises(UsageError, match="cannot be asked"):
        next(speaking.converse(job.workspace, job.ledger, "bread?", which="no-such-run"))
