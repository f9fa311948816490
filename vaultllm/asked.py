"""What is asked in notes: the open turn at a note's end, whether it was asked just now, and answers that nobody finished.

Reads notes and the ledger, writes nothing into a note. Knows nothing about how an answer is made.
"""

from __future__ import annotations

import datetime as dt
import json
import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from vaultllm import chats, forgotten, locks, markdown, properties, redact, scenes, vault
from vaultllm.chats import plain
from vaultllm.config import Workspace
from vaultllm.errors import DataError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.schema import Conversation, Message, Note
from vaultllm.text import decode, is_json, nfc

CROWD = 3  # notes saved at once, above which nobody asks: somebody imports, restores or synchronises
RECENT = 600.0  # seconds since a note was written, by its own time, after which what is asked there was not asked now
GROWING = ("nexus", chats.ASKED)
"""The forms of talk in which a message has an end of its own, so that an answer can grow."""
_SIGNS = ("[!ask]", "[!nexus_user]")


class NothingAsked(DataError):  # noqa: N818 - what the user is told
    """There is no open turn of the owner's in the note."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A note whose last turn is the owner's."""

    data: bytes
    """Its bytes."""
    note: Note
    """The note."""
    form: str
    """How its talk is written: the name of a reader of chats."""
    talk: Conversation
    """The talk."""
    question: str
    """What was asked last."""
    history: tuple[Message, ...]
    """What was said before."""
    unfinished: int
    """Answers of ours in it that did not come to their end."""


def opened(workspace: Workspace, path: str) -> Asked:
    """The open turn at the end of a note.

    Raises NothingAsked, DataError where nothing may be answered, VaultError when it cannot be read.
    """
    if is_json(path):
        raise DataError("an export is not answered; ask in a note", path=path)
    data = vault.read(workspace.vault, path, workspace.settings.scan.max_bytes)
    note = markdown.parse(path, data)
    if properties.is_silenced(note.properties):
        raise DataError("its property `vaultllm: off` says that nothing is answered here; take it out, then ask again", path=path)
    form, held = talk(workspace, note)
    if held is None or not held.turns:
        raise NothingAsked(
            "there is no chat in this note; begin one with a line `> [!ask] your question` at its end, or with "
            "`>[!nexus_user] **User**` and your question in `> ` lines below it",
            path=path,
        )
    last = held.turns[-1]
    if last.role != "user":
        raise NothingAsked(
            "the last turn is not yours; write your question as a new turn at the end of the note, then ask again",
            path=path, line=last.lines[0],
        )  # fmt: skip
    history = tuple(Message(turn.role, turn.text, False) for turn in held.turns[:-1] if turn.role != "system")
    unfinished = sum(problem.count for problem in held.problems if problem.code == "W-UNFINISHED")
    return Asked(data, note, form, held, last.text.strip(), history, unfinished)


def talk(workspace: Workspace, note: Note) -> tuple[str, Conversation | None]:
    """The form of a chat note and its conversation. A single labelled turn counts here, since the user asks for an answer to it."""
    settings = workspace.settings
    form, _, found = chats.read(note, settings.scan, settings.timezone)
    if not form:
        form, found = "plain", plain.read(note, settings.scan, settings.timezone)
    return form, found[0] if found and found[0].turns else None


def fresh(workspace: Workspace, ledger: Ledger, paths: Collection[str]) -> list[str]:
    """Those of some notes that were just saved in which something was asked just now: to be called before they are read anew.

    Never more than `CROWD`; nothing that an importer wrote, nothing in notes of ours, private ones, templates, or silenced ones.
    """
    if not workspace.settings.answers.on_save or not 0 < len(paths) <= CROWD:
        return []
    return [path for path in paths if _is_fresh(workspace, ledger, path)]


def _is_fresh(workspace: Workspace, ledger: Ledger, path: str) -> bool:
    settings = workspace.settings
    ours = tuple(f"{nfc(own).strip('/')}/" for own in settings.own_folders)
    if is_json(path) or not path.lower().endswith((".md", ".markdown")) or nfc(path).startswith(ours):
        return False
    if not set(path.split("/")[:-1]).isdisjoint(settings.scan.templates) or forgotten.load(workspace.state).path(path):
        return False
    try:
        said = decode(vault.read(workspace.vault, path, settings.scan.max_bytes)).text.lower()
        if not any(sign in said for sign in _SIGNS):
            return False
        asked = opened(workspace, path)
        age = time.time() - (workspace.vault / path).stat().st_mtime
    except (VaultError, DataError, OSError):
        return False
    if asked.form not in GROWING or "vaultllm" in asked.note.properties or scenes.is_private(asked.note, settings.scan):
        return False
    last = asked.talk.turns[-1]
    if last.uid or _is_old(last.at) or age > RECENT:  # importers write UIDs and times, the owner does not
        return False
    if not ledger.knows(path):  # if it was renamed, what is asked in it is as old as it was
        return ledger.db.execute("SELECT 1 FROM notes WHERE sha256 = ? LIMIT 1", (asked.note.sha256,)).fetchone() is None
    question = _safe(workspace, asked.question)
    now = Counter(_safe(workspace, turn.text) for turn in asked.talk.turns if turn.role == "user")
    before = Counter(turn.text.strip() for scene in ledger.scenes(path) if scene.kind == "dialogue" for turn in scene.turns)
    return now[question] > before[question]


def _is_old(at: str) -> bool:
    """Whether a time that stands in a note is none of today's, in whatever zone."""
    try:
        said = dt.datetime.fromisoformat(at)
    except ValueError:
        return False
    return dt.datetime.now(said.tzinfo) - said > dt.timedelta(days=1)


def _safe(workspace: Workspace, said: str) -> str:
    """As the ledger holds it."""
    return redact.redact(said, workspace.settings.redact)[0].strip()


def interrupted(ledger: Ledger) -> list[str]:
    """Ids of answers that a process left unfinished when it died, each told once. The caller holds the lock."""
    found = []
    for identity, path, digest, created, record in ledger.db.execute("SELECT id, path, sha256, created, record FROM answers").fetchall():
        about = json.loads(record)
        if (writer := about.pop("writer", 0)) and not locks.is_there(writer):
            ledger.put_answer(identity, path, digest, created, {**about, "stopped": "its process ended"})
            found.append(identity)
    return found


def writer(ledger: Ledger, path: str, but: str = "") -> int:
    """The process that is writing an answer, another one than `but`, into this note now; 0: none."""
    rows = ledger.db.execute("SELECT record FROM answers WHERE path = ? AND id != ?", (path, but)).fetchall()
    found = (int(json.loads(record).get("writer", 0)) for (record,) in rows)
    return next((pid for pid in found if pid and locks.is_there(pid)), 0)
