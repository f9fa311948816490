"""A question -> what the vault says (quotations checked against the notes as they are now) and what the model says.

Composition: recall, prompts, a model, render, vault and ledger. The memory's half never fails because the model's half
did. Knows nothing about terminals, servers or training.
"""

from __future__ import annotations

import datetime as dt
import functools
import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from vaultllm import prompts, quotes, render, saying
from vaultllm.config import Workspace
from vaultllm.errors import DataError, ModelError, VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.schema import Answer, Hit, Message, Progress, Report, Scene, to_dict
from vaultllm.text import language, sha

if TYPE_CHECKING:
    from vaultllm.memory.rephrase import Rephraser
    from vaultllm.models.hf import Loaded

Stream = Callable[[str], None]

MOST_PROMPT_TOKENS = 2048  # more excerpts cost seconds before the first word and, below 10B parameters, help little
MICRO_PROMPT_TOKENS = 256
MICRO_NEW_TOKENS = 120
MICRO_REPETITION = 1.3
DOUBTED = 0.05  # chance that the vault speaks of a question, below which nothing is quoted: to withhold costs more than to quote in vain


@dataclass(frozen=True, slots=True)
class _Said:
    """The model's half of an answer."""

    text: str = ""
    capable: bool = False
    model: str = render.NO_MODEL
    run: str = ""
    prompt_sha: str = ""


@dataclass(frozen=True, slots=True)
class Prompt:
    """What a model is asked with."""

    ids: list[int]
    """Its tokens."""
    most: int
    """Tokens that the answer may have."""
    repetition: float
    """As `hf.generate` takes it."""
    stop: tuple[str, ...]
    """What ends the answer, besides end tokens."""
    sha: str
    """Hash of the messages."""


def ask(
    workspace: Workspace, ledger: Ledger, question: str, *, note: str | None = None, stream: Stream | None = None, progress: Report
) -> Answer:
    """Answer a question from memory and, if there is one, with the model; writes nothing.

    `note` is a vault-relative path whose scenes come first. `stream` gets the model's words as they are made.
    Raises DataError when the question is empty or the note is not known.
    """
    if not question.strip():
        raise DataError("the question is empty; write what you want to know")
    if note is not None and not ledger.knows(note):
        raise DataError("this note is not known; name it as it stands in the vault, or run: vaultllm ingest", path=note)
    return composed(workspace, ledger, question.strip(), (), note, None, stream, progress)


def write(workspace: Workspace, ledger: Ledger, answer: Answer) -> str:
    """Write an answer as a new note and remember it as ours; returns its vault-relative path. Raises VaultError."""
    from vaultllm import vault

    answer_id = identity(answer)
    name, text = render.answer_note(answer, answer_id)
    path = vault.write_new(workspace.vault, workspace.settings.answers.folder, vault.note_name(name), text)
    written = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    remember(ledger, answer_id, path, written, answer, render.reply_text(answer))
    return path


def identity(answer: Answer) -> str:
    """An answer's id: sorts by time; the same for the same answer."""
    return re.sub(r"\D", "", answer.created[:19]) + "-" + sha(answer.question, answer.created, answer.text, str(answer.seconds), digits=8)


def remember(ledger: Ledger, answer_id: str, path: str, written: str, answer: Answer, said: str, writer: int = 0) -> None:
    """Keep an answer that stands in a note.

    `written`: the note's SHA-256; `said`: the words as they stand in it, by which the dataset knows them as ours; `writer`: the process
    that has not finished it.
    """
    ledger.put_answer(answer_id, path, written, answer.created, {**to_dict(answer), "said": said} | ({"writer": writer} if writer else {}))


def composed(
    workspace: Workspace,
    ledger: Ledger,
    question: str,
    history: Sequence[Message],
    note: str | None,
    without: str | None,
    stream: Stream | None,
    progress: Report,
) -> Answer:
    """A whole answer. `note`: its scenes come first; `without`: what was talked in it is left out (it is being answered)."""
    began = perf_counter()
    created = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    progress(Progress("remembering", 0.0))
    hits, told = recalled(workspace, ledger, question, history, note, without, progress)
    said = _speak(workspace, ledger, question, hits, history, stream, progress)
    if said.capable and said.text:
        said = replace(said, text=told.whole(said.text))
    progress(Progress("answered", 1.0))
    sources = tuple(told.citations)
    return Answer(question, said.text, said.capable, sources, said.model, said.run, said.prompt_sha, created, perf_counter() - began)


def rephraser(workspace: Workspace, ledger: Ledger) -> Rephraser | None:
    """Who writes what else to look for, as `memory.rewrite` says; None: nobody. The model is loaded with the first question.

    That there is no model, or only the micro one, which cannot do it, is said with each search and is no error: words go on answering.
    """
    kind = workspace.settings.memory.rewrite
    if not kind:
        return None
    from vaultllm import registry
    from vaultllm.memory import rephrase

    def chosen() -> Loaded:
        served = registry.serving(workspace, ledger)
        if served is None:
            raise ModelError("there is no model yet that could write; train one, or set train.base")
        if (Path(served[0]) / "micro.json").is_file():
            raise ModelError("the micro model cannot write questions; set train.base to a larger one, or empty memory.rewrite")
        return load(*served[:2])

    return rephrase.Rephraser(kind, rephrase.Model(chosen))


def recalled(
    workspace: Workspace,
    ledger: Ledger,
    question: str,
    history: Sequence[Message],
    note: str | None,
    without: str | None,
    progress: Report,
) -> tuple[list[Hit], saying.Saying]:
    """What a model is told for a question, and what will be shown of its words: so far, quotations checked against the notes.

    `note`: its scenes come first; `without`: what was talked in it is left out. Where the vault does not speak of the question, the
    model is told what the reader is: there is nothing.
    """
    hits, speaks = _recall(workspace, ledger, question, history, note, without, progress)
    hits = hits if speaks else []
    source = quotes.Sources(workspace)
    return hits, saying.Saying(question, hits, quotes.choose(question, hits, source), source)


def _recall(
    workspace: Workspace,
    ledger: Ledger,
    question: str,
    history: Sequence[Message],
    note: str | None,
    without: str | None,
    progress: Report,
) -> tuple[list[Hit], bool]:
    """The best scenes, those of `note` first, best first within each, never text that we wrote; and whether they speak of the question.

    Of a note that is named it need not be asked whether it does: the user says so.
    """
    from vaultllm import recall, registry

    k, settings = workspace.settings.answers.hits, workspace.settings.memory

    def elsewhere(scene: Scene) -> bool:
        return scene.trust != "generated" and (scene.source.path != without or scene.kind != "dialogue")

    def here(scene: Scene) -> bool:
        return scene.source.path == note

    judge = registry.judge(workspace, ledger)
    writer = rephraser(workspace, ledger)
    if writer is not None:
        writer = writer.after(history)
    found = recall.find(ledger, workspace.memory, settings, question, k, allow=elsewhere, plain=True, judge=judge, rephraser=writer)
    if found.rephrased.notice:
        progress(Progress(found.rephrased.notice, 0.1))
    if note is None:
        return found.hits, found.answerable or not found.measured or found.confidence >= DOUBTED
    first = recall.recall(ledger, workspace.memory, settings, question, k, allow=here, plain=True)
    if not first:  # "what is this note about?" shares no word with it
        first = [
            Hit(scene, note, scene.source.lines, "\n\n".join(turn.text for turn in scene.turns), (), 0.0, {})
            for scene in list(ledger.scenes(note))[: (k + 1) // 2]
        ]
    seen = {hit.scene.id for hit in first}
    return [*first, *(hit for hit in found.hits if hit.scene.id not in seen)][:k], True


# -- the model's half


def _speak(
    workspace: Workspace,
    ledger: Ledger,
    question: str,
    hits: Sequence[Hit],
    history: Sequence[Message],
    stream: Stream | None,
    progress: Report,
) -> _Said:
    """What the model says. What goes wrong with it is told in its name's place: the memory's answer must reach the note."""
    from vaultllm import registry

    name = ""
    try:
        serving = registry.serving(workspace, ledger)
        if serving is None:
            return _Said()
        base, adapter, run = serving
        name = Path(base).name
        progress(Progress("loading the model", 0.2))
        loaded = load(base, adapter)
        text, prompt_sha = _generate(workspace, loaded, question, hits, history, stream, progress)
        return _Said(text, loaded.capable, described(ledger, loaded, run), run, prompt_sha)
    except SILENT as error:
        return _Said(model=silence(name, error))


SILENT = (VaultllmError, RuntimeError, ValueError, OSError, MemoryError)
"""What a model can fail with, so that memory answers alone (RuntimeError: torch, out of memory too)."""


def silence(name: str, error: BaseException) -> str:
    """What stands in a model's name's place when it did not answer."""
    why = str(error).strip().split("\n")[0] or type(error).__name__
    return f"{name}: {why}" if name else why


def release() -> None:
    """Let go of the model that was kept."""
    _loaded.cache_clear()


def load(base: str, adapter: Path | None) -> Loaded:
    """The model, kept for the next question; loaded again when a file of it changes."""
    files = [path for folder in (Path(base), adapter) if folder is not None and folder.is_dir() for path in sorted(folder.iterdir())]
    return _loaded(base, adapter, tuple((path.name, path.stat().st_mtime_ns, path.stat().st_size) for path in files if path.is_file()))


@functools.lru_cache(maxsize=1)
def _loaded(base: str, adapter: Path | None, state: tuple[tuple[str, int, int], ...]) -> Loaded:
    from vaultllm.models import hf

    return hf.load(base, adapter)


def described(ledger: Ledger, loaded: Loaded, run: str) -> str:
    """Name, size and minutes of training, as a person reads them."""
    size = loaded.parameters
    about = f"{size / 1e9:.1f}B" if size >= 1e9 else f"{size / 1e6:.0f}M" if size >= 1e7 else f"{size / 1e6:.2g}M"
    name, minutes = loaded.name, 0.0
    if (loaded.folder / "micro.json").is_file():
        name = "micro"  # its folder is called by a time, which says nothing
        minutes += json.loads((loaded.folder / "micro.json").read_text(encoding="utf-8")).get("minutes") or 0.0
    for one in ledger.runs() if run else ():
        if one.id == run:
            minutes += (one.metrics.get("seconds") or 0.0) / 60
    trained = f", trained here for {minutes:.1f} minutes" if minutes else ""
    return f"{name}, {about} parameters{trained}"


def prompt(workspace: Workspace, loaded: Loaded, question: str, hits: Sequence[Hit], history: Sequence[Message]) -> Prompt:
    """What a model is asked with. Raises ValueError when its context is too short for any question."""
    from vaultllm import tokenizer

    settings = workspace.settings.answers
    if loaded.capable:
        new, most, repetition = settings.max_new_tokens, MOST_PROMPT_TOKENS, 1.0
    else:
        new, most, repetition = min(settings.max_new_tokens, MICRO_NEW_TOKENS), MICRO_PROMPT_TOKENS, MICRO_REPETITION
    new = min(new, loaded.context // 2)
    budget = min(most, loaded.context - new)
    while True:
        asked = prompts.messages(
            question, hits, count=lambda text: len(tokenizer.encode_text(loaded.tokenizer, text)), budget=budget,
            language=language(question), history=history, capable=loaded.capable,
        )  # fmt: skip
        ids, _ = tokenizer.encode_chat(loaded.tokenizer, asked, reply=True)
        if len(ids) <= loaded.context - new:
            break
        budget -= len(ids) - (loaded.context - new)  # this template writes more around a message than most do
    return Prompt(ids, new, repetition, stops(loaded), sha(*(f"{message.role}: {message.text}" for message in asked)))


def stops(loaded: Loaded) -> tuple[str, ...]:
    """What ends a turn of a model that knows no control tokens for it."""
    return () if loaded.tokenizer.chat_template else ("\nUser:",)


def _generate(
    workspace: Workspace,
    loaded: Loaded,
    question: str,
    hits: Sequence[Hit],
    history: Sequence[Message],
    stream: Stream | None,
    progress: Report,
) -> tuple[str, str]:
    """The model's text and the hash of the prompt."""
    from vaultllm.models import hf

    asked = prompt(workspace, loaded, question, hits, history)
    progress(Progress("answering", 0.4))
    pieces: list[str] = []
    temperature = workspace.settings.answers.temperature
    made = hf.generate(loaded, asked.ids, max_new_tokens=asked.most, temperature=temperature, repetition=asked.repetition, stop=asked.stop)
    for piece in made:
        pieces.append(piece)
        if stream is not None:
            stream(piece)
    return prompts.spoken("".join(pieces)), asked.sha
