"""A talk -> what a model says to it, piece by piece, with what was counted: for those who ask over a wire.

`converse` is `answer.ask` for a talk: memory first, citations checked, text inert, nothing written. `plain` is the model alone.
Whoever has heard enough closes the generator or sets `cancel`. Knows nothing about wires.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import random
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from vaultllm import answer, lineage, prompts, registry, render
from vaultllm.config import Workspace
from vaultllm.errors import DataError, ModelError, UsageError
from vaultllm.ledger import Ledger
from vaultllm.schema import Answer, Citation, Message, Report, Run, silent

if TYPE_CHECKING:
    from vaultllm.models.hf import Loaded


@dataclass(frozen=True, slots=True)
class Wish:
    """How the asker wants it said; what is None is as the settings say."""

    max_tokens: int | None = None
    """Longest answer, in tokens of the model."""
    temperature: float | None = None
    """0 is greedy."""
    top_p: float = 1.0
    """Share of the chance that is drawn from."""
    seed: int | None = None
    """None: another draw each time."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer."""


@dataclass(frozen=True, slots=True)
class Spoken:
    """What was said, when it is over."""

    sources: tuple[Citation, ...]
    """What it cites, checked, by its numbers from 1."""
    model: str
    """As it is shown; why it did not speak, if it did not."""
    run: str
    """Id of the adapter's run; empty without one."""
    prompt_tokens: int
    """Tokens that the model read; 0 when it did not speak."""
    tokens: int
    """Tokens that it made."""
    finish: Literal["stop", "length"]
    """Whether it came to its end, or was cut."""
    capable: bool = True
    """Whether the model is trusted to answer: a micro model is not."""
    text: str = ""
    """The model's own words, when they were not trusted and stand folded below those of the notes."""
    prompt_sha: str = ""
    """Hash of the messages that it was asked with."""


Speech = Generator[str, None, Spoken]


def heard(speech: Speech, tell: Callable[[str], object]) -> Spoken:
    """Listen to the end, `tell` each piece, many of which are empty. What `tell` raises ends the model too."""
    with contextlib.closing(speech):
        while True:
            try:
                piece = next(speech)
            except StopIteration as end:
                spoken: Spoken = end.value
                return spoken
            tell(piece)


def runs(workspace: Workspace, ledger: Ledger) -> list[Run]:
    """The trainings that may be asked by their id, oldest first: finished, neither refused nor revoked, their adapter still there."""
    return [
        run
        for run in ledger.runs()
        if run.status == "done" and not run.revoked and not lineage.refused(run) and registry.has_adapter(workspace, run.id)
    ]


def served(workspace: Workspace, ledger: Ledger, which: str) -> tuple[str, Path | None, str]:
    """(base, adapter, run id) of what is to speak: `current`, `base`, or the id of one of `runs`. Raises ModelError, UsageError."""
    if which not in ("current", "base"):
        for run in runs(workspace, ledger):
            if run.id == which:
                return run.base, workspace.runs / run.id / "adapter", run.id
        raise UsageError(f"run {which} cannot be asked: there is no such training, or it was refused or revoked; see: vaultllm runs")
    serving = registry.serving(workspace, ledger)
    if serving is None:
        raise ModelError("there is no model yet; train one: vaultllm train, or set train.base")
    return serving if which == "current" else (serving[0], None, "")


def converse(
    workspace: Workspace,
    ledger: Ledger,
    question: str,
    history: Sequence[Message] = (),
    wish: Wish | None = None,
    *,
    which: str = "current",
    without: str | None = None,
    cancel: threading.Event | None = None,
    progress: Report = silent,
) -> Speech:
    """Answer from memory and, if there is one, with a model; each piece is final and inert, many are empty.

    `without`: the note in which it is asked, whose talk is left out. A model that cannot be used is told in `model`; the memory answers
    all the same. Raises DataError when the question is empty, UsageError when `which` cannot be asked.
    """
    question = question.strip()
    if not question:
        raise DataError("the question is empty; write what you want to know")
    if which not in ("current", "base"):
        served(workspace, ledger, which)
    hits, told = answer.recalled(workspace, ledger, question, history, None, without, progress)
    created = dt.datetime.now().astimezone().isoformat(timespec="seconds")
    model, run, said, begun, count, capable, asked_sha = render.NO_MODEL, "", "", False, _Count(), False, ""
    gap = "\n\n"

    def parts() -> list[str]:
        return render.reply_parts(Answer(question, said, False, tuple(told.citations), model, run, "", created, 0.0))

    base = ""
    try:
        if which not in ("current", "base") or registry.serving(workspace, ledger) is not None:
            base, adapter, run = served(workspace, ledger, which)
            loaded = answer.load(base, adapter)
            model = answer.described(ledger, loaded, run)
            if not loaded.capable:
                gap = ""
                yield f"{parts()[0]}\n\n"
            asked = answer.prompt(workspace, loaded, question, hits, history)
            asked_sha, capable, kept = asked.sha, loaded.capable, list[str]()
            for word in _made(loaded, asked, workspace, wish or Wish(), cancel, count):
                kept.append(word)
                shown = told.add(word) if capable else ""  # who listens may go at every word
                begun = begun or bool(shown)
                yield shown
            if capable:
                rest = told.end()
                if begun or rest:
                    yield rest
                    return Spoken(tuple(told.citations), model, run, count.prompt, len(count.made), count.finish, prompt_sha=asked_sha)
            said = prompts.spoken("".join(kept))
    except answer.SILENT as error:
        model = answer.silence(Path(base).name if base else "", error)
    yield "\n\n".join(parts()) if gap and not begun else gap + "\n\n".join(parts()[1:])
    return Spoken(tuple(told.citations), model, run, count.prompt, len(count.made), count.finish, False, said, asked_sha)


def plain(
    workspace: Workspace,
    ledger: Ledger,
    messages: Sequence[Message],
    wish: Wish | None = None,
    *,
    which: str = "current",
    cancel: threading.Event | None = None,
) -> Speech:
    """What the model alone says to these messages, as it says it: no memory, nothing made inert.

    Of a talk that is too long the beginning is left out, system messages last. Raises ModelError without a model, DataError when the
    last message alone does not fit.
    """
    from vaultllm import tokenizer

    base, adapter, run = served(workspace, ledger, which)
    loaded = answer.load(base, adapter)
    wish, kept = wish or Wish(), [Message(one.role, prompts.printable(one.text), False) for one in messages]
    room = loaded.context - min(wish.max_tokens or workspace.settings.answers.max_new_tokens, loaded.context // 2)
    while len(ids := tokenizer.encode_chat(loaded.tokenizer, kept, reply=True)[0]) > room and len(kept) > 1:
        talk = [at for at, one in enumerate(kept[:-1]) if one.role != "system"]
        del kept[talk[0] if talk else 0]
    if len(ids) > room:
        raise DataError(f"the message has {len(ids)} tokens; this model reads {room} beside its answer", code="E-LONG")
    asked = answer.Prompt(ids, loaded.context - len(ids), 1.0, answer.stops(loaded), "")
    if wish.max_tokens is None:
        wish = replace(wish, max_tokens=workspace.settings.answers.max_new_tokens)
    yield from _made(loaded, asked, workspace, wish, cancel, count := _Count())
    return Spoken((), answer.described(ledger, loaded, run), run, count.prompt, len(count.made), count.finish)


@dataclass
class _Count:
    """What is known of an answer's tokens."""

    prompt: int = 0
    made: list[int] = field(default_factory=list)
    finish: Literal["stop", "length"] = "stop"


def _made(
    loaded: Loaded, asked: answer.Prompt, workspace: Workspace, wish: Wish, cancel: threading.Event | None, count: _Count
) -> Iterator[str]:
    """The model's words as they are made; `count` is filled."""
    from vaultllm.models import hf

    most = asked.most if wish.max_tokens is None else min(wish.max_tokens, loaded.context - len(asked.ids))
    count.prompt = len(asked.ids)
    yield from hf.generate(
        loaded,
        asked.ids,
        max_new_tokens=most,
        temperature=workspace.settings.answers.temperature if wish.temperature is None else wish.temperature,
        top_p=wish.top_p,
        seed=random.getrandbits(62) if wish.seed is None else wish.seed,
        stop=(*asked.stop, *wish.stop),
        repetition=asked.repetition,
        cancel=cancel,
        made=count.made,
    )
    count.finish = "length" if len(count.made) >= most else "stop"
