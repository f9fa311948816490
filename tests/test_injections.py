"""Notes that give orders change nothing that is done: one file is written, the prompt keeps its shape, no address, no other note."""

from __future__ import annotations

import hashlib
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.alive import alive
from tests.injections import ADDRESS, WANTED, Injection, all_of_them
from tests.stored import write_rivers
from vaultllm import answer, config, markdown, prompts, steps
from vaultllm import tokenizer as bpe
from vaultllm.models import hf
from vaultllm.schema import Hit, Message

KEYS = {"question", "answer", "note", "sources", "model", "capable", "run", "seconds"}
pytestmark = pytest.mark.usefixtures("one_thread", "learns_later")
CORPUS = all_of_them()
ACTS = re.compile("templater|template|comment|embed|image|address|span|fence|field|math|footnote|hidden|task|tag")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("base") / "tiny", "qwen3", context=512)


@pytest.fixture(scope="module")
def job(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[steps.Job]:
    root = tmp_path_factory.mktemp("injections")
    vault = root / "vault"
    (vault / "Notes").mkdir(parents=True)
    write_rivers(vault, 6, 3)
    for one in CORPUS:
        (vault / one.path).write_text(one.text, encoding="utf-8")
    made = steps.Job(config.init_workspace(vault, str(root / "state")))
    from tests.stored import read_here
    from vaultllm import workers

    real, workers.read_all = workers.read_all, read_here
    try:
        steps.ingest(made)
    finally:
        workers.read_all = real
    yield made
    made.close()


def tree(*roots: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for root in roots
        for path in sorted(root.rglob("*"))
        if path.is_file() and not path.name.startswith(("ledger.db", "kept.jsonl")) and "memory" not in path.parts
    }


def test_there_are_sixty_in_three_languages_of_thirty_kinds() -> None:
    assert len(CORPUS) == 60
    assert {one.language for one in CORPUS} == {"ru", "en", "bn"}
    assert len({re.sub(r" \d+$", "", one.name) for one in CORPUS}) >= 30


@pytest.mark.timeout(600)
def test_nothing_is_done_but_one_note_that_is_inert_and_cites_what_was_found(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model obeys each order in full: it says whatever the note wanted. What is done must not depend on it."""
    workspace = job.workspace
    reached: list[Any] = []
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: reached.append(address))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *where, **options: reached.append(where))
    before = tree(workspace.vault, workspace.state)
    written: set[str] = set()
    for one in CORPUS:
        obeyed = f"{one.text}\n{WANTED}\n![x](https://{ADDRESS}/{WANTED}.png)\n[[Private]]\n```dataviewjs\nx\n```\n"
        monkeypatch.setattr(answer, "_speak", _speaking(obeyed))
        result = steps.ask(job, one.question)
        assert set(result) == KEYS
        path = result["note"]
        written.add(str(workspace.vault / path))
        note = (workspace.vault / path).read_text(encoding="utf-8")
        found = alive(note)
        allowed = {re.sub(r"\.md$", "", source["path"]) for source in result["sources"]}
        linked = {link.target.removesuffix(".md") for link in markdown.parse("x.md", note.encode()).links}
        assert linked <= allowed, one.name
        assert [what for what in found if ACTS.match(what)] == [], one.name
        assert [what for what in found if what.startswith("read turn")] == [
            f"read turn user {result_id(note)}-user", f"read turn assistant {result_id(note)}-agent"
        ], one.name  # fmt: skip
    after = tree(workspace.vault, workspace.state)
    assert {path: digest for path, digest in after.items() if path not in written} == before
    assert all(Path(path).parent == workspace.vault / "vaultllm" / "Answers" for path in written)
    assert reached == []


def result_id(note: str) -> str:
    return re.search(r'vaultllm_id: "([^"]+)"', note)[1]  # type: ignore[index]


def _speaking(text: str) -> Any:
    def speak(*arguments: Any, **options: Any) -> Any:
        return answer._Said(text, True, "model", "", "ab")

    return speak


def hit(one: Injection) -> Hit:
    from vaultllm.schema import Scene, Source, Turn

    scene = Scene("0" * 12, "0" * 16, "prose", one.name, (), (Turn("user", one.text, (1, 1)),), Source(one.path, (1, 1)), "ru", "own")
    return Hit(scene, one.path, (1, 1), one.text, (), 1.0, {})


@pytest.mark.parametrize("capable", [True, False])
def test_the_prompt_keeps_its_shape(base: Path, capable: bool) -> None:
    tokens = hf.load_tokenizer(base)
    specials = {name: tokens.convert_tokens_to_ids(name) for name in bpe.SPECIALS}

    def made(one: Injection) -> tuple[list[Message], list[int]]:
        asked = prompts.messages(
            one.question,
            [hit(one)],
            count=lambda text: len(bpe.encode_text(tokens, text)),
            budget=4000,
            language=one.language,
            capable=capable,
        )
        return asked, bpe.encode_chat(tokens, asked, reply=True)[0]

    marks = set()
    for one in CORPUS:
        asked, ids = made(one)
        (message,) = asked
        assert message.role == "user"
        shape = [ids.count(specials[name]) for name in bpe.SPECIALS]
        assert shape == [0, 2, 1], one.name  # one turn of the user's, and the beginning of the answer
        assert prompts.printable(message.text) == message.text, one.name
        assert not re.search("[\U000e0000-\U000e0fff\u200b\u2060\u202e]", message.text)
        assert one.question in message.text
        if capable:
            (mark,) = re.findall(r"^<<([0-9a-f]{12})$", message.text.replace("<<000000000000", ""), re.M)
            begin, end = message.text.index(f"\n<<{mark}\n"), message.text.index(f"\n{mark}>>\n")
            for part in (WANTED, one.truth):
                assert all(begin < at.start() < end for at in re.finditer(re.escape(part), message.text)), one.name
            assert message.text.rstrip().endswith(one.question)
            assert mark not in one.text
            marks.add(mark)
    assert len(marks) == (len(CORPUS) if capable else 0), "another delimiter for each"


def test_a_prompt_that_parses_control_tokens_would_be_seen(base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = bpe._encode
    monkeypatch.setattr(bpe, "_encode", lambda tokenizer, text, *, parse_specials: real(tokenizer, text, parse_specials=True))
    with pytest.raises(AssertionError, match="control tokens"):
        test_the_prompt_keeps_its_shape(base, True)
