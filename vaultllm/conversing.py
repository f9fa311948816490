"""A talk within a note: what is asked there, by whom and since when, and an answer that grows at the note's end, paragraph by paragraph.

An answer is a region at the end of the file. It only grows: each piece is appended to the bytes that are known to stand there, and to no
others; whoever edits elsewhere is waited for, whoever edits it, or writes below it, or deletes the line above it, has stopped it. What is
stopped or killed lacks the UID at its end, by which the reader (`chats/nexus.py`) knows that it is no part of the talk; its first line
says for ever whose words it holds. Knows nothing about events, nor about the process that it runs in.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import hashlib
import os
import re
import threading
import time
from collections.abc import Callable
from time import perf_counter
from typing import TYPE_CHECKING

from vaultllm import answer, forgotten, markdown, registry, render, speaking, vault
from vaultllm.asked import GROWING, Asked, NothingAsked, opened, talk, writer
from vaultllm.chats.nexus_heads import fence_after
from vaultllm.config import Workspace
from vaultllm.errors import DataError, LockedError, OwnedNoteError, VaultError, VaultllmError
from vaultllm.inert import prefixed
from vaultllm.ledger import Ledger
from vaultllm.schema import Answer, Progress, Report
from vaultllm.text import language, sha

if TYPE_CHECKING:
    from vaultllm.speaking import Spoken

Lock = Callable[[], contextlib.AbstractContextManager[None]]

PACE = 1.0  # seconds between two pieces, at least: an editor that has the note open reads it again after each
LOOK = 0.5  # seconds between two looks at the note while the model speaks: each reads the file


class _Stopped(Exception):  # noqa: N818 - how an answer ends
    """The answer must not be written on; says why."""


class _Again(Exception):  # noqa: N818 - how an answer begins anew
    """Something else is asked now, and nothing is written yet."""


def reply(
    workspace: Workspace,
    ledger: Ledger,
    path: str,
    *,
    stream: Callable[[str], None] | None = None,
    progress: Report,
    lock: Lock = contextlib.nullcontext,
    cancel: threading.Event | None = None,
) -> Answer:
    """Answer the open turn at the end of a note by appending to it, in the form that its talk is in. Nothing that stands there is changed.

    In a nexus talk, and below `[!ask]`, it grows while the model speaks; if the question changes before anything stands there, it begins
    anew; `stopped` says why it ended early, if it did (`cancel` is one reason). `lock` is held for each piece, not while the model speaks.
    Raises what `opened` does, DataError when an answer would not be read as one, LockedError, VaultError when it cannot be written,
    OwnedNoteError when a note that gets its answer whole was changed meanwhile.
    """
    while True:
        asked = opened(workspace, path)
        _alone(ledger, path)
        if asked.form not in GROWING:
            return _whole(workspace, ledger, path, asked, stream, progress, lock)
        with contextlib.suppress(_Again):
            return _Growing(workspace, ledger, path, asked, progress, lock, cancel or threading.Event()).answered(stream)


def _whole(
    workspace: Workspace,
    ledger: Ledger,
    path: str,
    asked: Asked,
    stream: Callable[[str], None] | None,
    progress: Report,
    lock: Lock,
) -> Answer:
    """An answer at once, for talks in which a message has no end of its own."""
    known = forgotten.load(workspace.state)
    found = answer.composed(workspace, ledger, asked.question, asked.history, None, path, stream, progress)
    if asked.form == "plain":
        settings = workspace.settings.scan
        turns = asked.talk.turns
        label = next((turn.author for turn in reversed(turns) if turn.role == "assistant"), _label(found.question))
        is_quoted = asked.note.text.split("\n")[turns[-1].lines[0] - 1].lstrip().startswith(">")
        said = f"{label}: {render.reply_text(found, (*settings.labels_user, *settings.labels_assistant))}"
        addition = prefixed(said, "> ", "> ") if is_quoted else said
    else:
        addition = render.agent_message(found, answer.identity(found))
    # In a quoted transcript an empty line would end the quote, and with it the talk.
    addition = ("> \n" if asked.form == "plain" and addition.startswith("> ") else "\n") + addition + "\n"
    said = _heard(workspace, path, asked, addition)
    with lock():
        _unforgotten(workspace, known, path)
        written = vault.append(workspace.vault, path, addition, hashlib.sha256(asked.data).hexdigest())
        answer.remember(ledger, answer.identity(found), path, written, found, said)
    return found


def _label(question: str) -> str:
    return {"ru": "Ассистент", "bn": "সহকারী"}.get(language(question), "Assistant")


def _heard(workspace: Workspace, path: str, asked: Asked, addition: str) -> str:
    """What an answer says as it will be read. Raises DataError when it would not be read as one: Obsidian would show it as code, too."""
    joint = "" if asked.note.text.endswith("\n") or not asked.note.text else "\n"
    after = markdown.parse(path, (asked.note.text + joint + addition).encode("utf-8", "replace"))
    _, heard = talk(workspace, after)
    swallowed = any(problem.code == "W-FENCE" for problem in after.problems)
    if asked.form in GROWING:  # what is open hides all that follows, in Obsidian; only for us it hides nothing
        swallowed = swallowed or any(line.lstrip().startswith(("%%", "<!--")) for line in markdown.mask(asked.note.text).split("\n"))
    if swallowed or heard is None or len(heard.turns) != len(asked.talk.turns) + 1 or heard.turns[-1].role != "assistant":
        raise DataError("an answer here would not be read as one: is a code fence or comment open at the end? close it", path=path)
    return heard.turns[-1].text


def _unforgotten(workspace: Workspace, known: forgotten.Forgotten, path: str) -> None:
    if forgotten.load(workspace.state) != known:
        raise DataError("something was forgotten while the answer was made, which may quote it; run it again", path=path)


def _alone(ledger: Ledger, path: str, but: str = "") -> None:
    if other := writer(ledger, path, but):
        why = f"an answer is being written into this note (pid {other}); wait for it, or delete the line above it"
        raise LockedError(why, path=path)


class _Growing:
    """One answer while it grows: what stands in the note as it was left, and what is still to be written."""

    def __init__(
        self, workspace: Workspace, ledger: Ledger, path: str, asked: Asked, progress: Report, lock: Lock, cancel: threading.Event
    ) -> None:
        self.workspace, self.ledger, self.path, self.asked = workspace, ledger, path, asked
        self.progress, self.lock, self.cancel = progress, lock, cancel
        self.known = forgotten.load(workspace.state)
        self.began, self.created = perf_counter(), dt.datetime.now().astimezone().isoformat(timespec="seconds")
        self.id = re.sub(r"\D", "", self.created[:19]) + "-" + sha(path, asked.question, str(time.time_ns()), digits=8)
        self.left = asked.data  # the note, as we know it
        self.region = b""  # of it what is ours, from the line that stops us on
        self.opening = b""  # that line
        self.kept = False  # whether the ledger knows of it
        self.said = ""  # all of the answer so far
        self.written = 0  # characters of it that stand in the note
        self.wrote = self.looked = -PACE  # of the monotonic clock

    def answered(self, stream: Callable[[str], None] | None) -> Answer:
        """The answer, when it stands there or was stopped. Raises _Again, and as `reply`."""
        self._must_be_heard("")  # before a model is loaded for nothing
        speaker = self._speaker()
        made = speaking.converse(
            self.workspace, self.ledger, self.asked.question, self.asked.history,
            without=self.path, cancel=self.cancel, progress=self.progress,
        )  # fmt: skip

        def told(piece: str) -> None:
            self._uncancelled()
            self.said += piece
            if stream is not None and piece:
                stream(piece)
            self._step(speaker)

        try:
            spoken = speaking.heard(made, told)
            self._uncancelled()
            while (soon := self.wrote + PACE - time.monotonic()) > 0:
                self._rest(soon)
            return self._write(self.said[self.written :], speaker, spoken)
        except _Stopped as stopped:
            return self._left(str(stopped))
        except _Again:
            self._left("something else was asked")
            raise
        except VaultllmError as error:
            self._left(error.message)
            raise

    def _left(self, why: str) -> Answer:
        """An answer that ends here."""
        found = self._answer(None, why)
        if self.kept:
            with contextlib.suppress(VaultllmError), self.lock():
                self._remember(found)
        return found

    def _speaker(self) -> str:
        """The model's name, which stands above its words; empty when there is none to speak."""
        try:
            serving = registry.serving(self.workspace, self.ledger)
            if serving is None:
                return ""
            self.progress(Progress("loading the model", 0.1))
            return answer.described(self.ledger, answer.load(*serving[:2]), serving[2])
        except answer.SILENT:  # the answer will say so
            return ""

    def _answer(self, spoken: Spoken | None, stopped: str = "") -> Answer:
        capable = spoken is None or spoken.capable
        said = self.said if capable else spoken.text if spoken else ""
        sources, model, run, asked_sha = (spoken.sources, spoken.model, spoken.run, spoken.prompt_sha) if spoken else ((), "", "", "")
        seconds = perf_counter() - self.began
        question = self.asked.question
        here = (stopped, self.id, self.asked.unfinished)
        return Answer(question, said.strip(), capable, sources, model, run, asked_sha, self.created, seconds, *here)

    def _remember(self, found: Answer, pid: int = 0) -> None:
        """Keep it, with its words as they are read: they are known by these too, whoever takes the comments away from around them."""
        uid = f"{self.id}-agent"
        ended = self.left + vault.addition(self.path, self.left, render.closing(self.id, self.asked.question, ()))
        _, held = talk(self.workspace, markdown.parse(self.path, ended))
        said = next((turn.text for turn in held.turns if turn.uid == uid), "") if held else ""
        answer.remember(self.ledger, self.id, self.path, hashlib.sha256(self.left).hexdigest(), found, said, pid)

    # -- what is written

    def _step(self, speaker: str) -> None:
        """Between two words: write what is whole, if it is time; look whether we are still wanted."""
        now = time.monotonic()
        ready = _paragraphs(self.said)
        if ready > self.written and now - self.wrote >= PACE and self.said[self.written : ready].strip():
            self._write(self.said[self.written : ready], speaker)
            self.written = ready
        elif now - self.looked >= LOOK:
            self.progress(Progress("answering", 0.5))
            self._look()

    def _write(self, text: str, speaker: str, spoken: Spoken | None = None) -> Answer:
        """Append paragraphs, after the beginning if nothing stands there, before the end if it is `spoken`. Raises as `reply`, _Stopped."""
        question, begins = self.asked.question, not self.region
        opening = f"\n{render.opening(self.id, question, speaker, self.created)}" if begins else ""
        text = text.strip("\n")
        said = f"{prefixed(text, '> ', '> ')}\n" if text.strip() else ""
        closing = render.closing(self.id, question, spoken.sources) if spoken else ""
        self._look()
        if begins:
            self._must_be_heard(speaker)
        found = self._answer(spoken)
        while True:
            with self.lock():
                _unforgotten(self.workspace, self.known, self.path)
                if not self.kept:  # before it is written: after a kill it must be known that there was one
                    _alone(self.ledger, self.path, self.id)
                    self.kept = True
                    self._remember(found, os.getpid())
                addition = opening + ("" if begins or not said else "> \n") + said + closing
                new = vault.addition(self.path, self.left, addition)
                with contextlib.suppress(OwnedNoteError):  # this very moment it was changed: what became of it, the next look says
                    vault.append(self.workspace.vault, self.path, addition, hashlib.sha256(self.left).hexdigest())
                    self.left += new
                    self.region += new
                    self.wrote = time.monotonic()
                    if begins:
                        self.opening = vault.addition(self.path, self.left, opening.strip().split("\n")[0])
                        self.region = self.region[self.region.index(self.opening) :]
                    if spoken:
                        self._remember(found)
                    return found
            self._look()

    def _must_be_heard(self, speaker: str) -> None:
        """Raises DataError when what is written here would not be read as an answer."""
        opening = render.opening(self.id, self.asked.question, speaker, self.created)
        _heard(self.workspace, self.path, self.asked, f"\n{opening}> …\n{render.closing(self.id, self.asked.question, ())}")

    # -- what others write

    def _look(self) -> None:
        """Go on if the note is as we left it; if it was changed elsewhere, when it rests. Raises _Stopped, _Again."""
        self.looked = time.monotonic()
        data = self._read()
        while data != self.left:
            self._must_be_ours(data)
            self.progress(Progress("waiting for the note to rest", 0.5))
            settings = self.workspace.settings
            self._rest(settings.watch.settle if self.region else settings.answers.wait)
            again = self._read()
            if again == data:
                self._take_up(data)
            data = again
        self.looked = time.monotonic()

    def _must_be_ours(self, data: bytes) -> None:
        if self.region and self.opening not in data:
            raise _Stopped("the line above the answer was deleted")
        if self.region and not data.endswith(self.region):
            raise _Stopped("the answer was edited, or something was written below it")

    def _take_up(self, data: bytes) -> None:
        """What the note is now; the same must be asked in it as long as nothing is answered."""
        if not self.region:
            try:
                asked = opened(self.workspace, self.path)
            except NothingAsked as error:
                raise _Stopped("the question was taken back, or is answered") from error
            _alone(self.ledger, self.path, self.id)
            if asked.data != data or (asked.question, asked.history, asked.form) != (
                self.asked.question, self.asked.history, self.asked.form,
            ):  # fmt: skip
                raise _Again
            self.asked = asked
        self.left = data

    def _read(self) -> bytes:
        try:
            return vault.read(self.workspace.vault, self.path, self.workspace.settings.scan.max_bytes)
        except VaultError as error:
            raise _Stopped(f"the note cannot be read any more ({error.message})") from error

    def _rest(self, seconds: float) -> None:
        self.cancel.wait(seconds)
        self._uncancelled()

    def _uncancelled(self) -> None:
        if self.cancel.is_set():
            raise _Stopped("whoever asked has gone")


def _paragraphs(text: str) -> int:
    """How many characters at a text's beginning are whole paragraphs: up to its last empty line outside code."""
    end = at = 0
    fence = None
    for line in text.split("\n")[:-1]:
        fence = fence_after(fence, line)
        at += len(line) + 1
        if fence is None and not line.strip():
            end = at
    return end
