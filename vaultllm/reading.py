"""A file's bytes -> all that the ledger keeps of it: reader, scenes, passages, YAML, problems, and the account of its messages.

Pure but for one look into the folder of exports that mend damaged notes. Runs in a process of its own
(`workers.py`), so that a note that crashes the parser costs only itself. Knows nothing about databases.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from vaultllm import canvas, chats, imports, markdown, rows, scene_yaml, scenes
from vaultllm.config import Settings
from vaultllm.imports import Talk
from vaultllm.keywords import Statistics
from vaultllm.rows import SceneRow
from vaultllm.schema import Note, Problem
from vaultllm.text import is_json, sha


@dataclass(frozen=True, slots=True)
class Reading:
    """A note that was read, before anything of it is stored."""

    title: str
    """As shown."""
    reader: str
    """The chat reader that took it; empty for an ordinary note."""
    why: str
    """Why that reader did."""
    scenes: tuple[SceneRow, ...]
    """Its scenes, each with what is recalled of it, as the ledger stores them."""
    yaml: str
    """The scenes as a document."""
    problems: tuple[Problem, ...]
    """What was met on the way."""
    turns: int
    """Messages that its talks hold."""
    turns_left: int
    """Those of them that are in no scene, each counted by a problem."""
    talks: tuple[Talk, ...] = ()
    """Its talks that can stand elsewhere too (in a note, in an export), and the stored talk that mended each."""


def version(settings: Settings) -> str:
    """What a note's scenes depend on besides its bytes: our code, and the settings that reading looks at."""
    looked_at = (settings.scan, settings.scenes, settings.redact)
    return f"{scenes.PARSER}-{sha(settings.timezone, *(part.model_dump_json() for part in looked_at), digits=8)}"


def parse(path: str, data: bytes, settings: Settings) -> Note:
    """The file as a Note, by its kind."""
    if is_json(path):
        return markdown.plain_note(path, data, settings.scan.encoding)
    if path.lower().endswith(".canvas"):
        return canvas.parse(path, data, settings.scan.encoding)
    return markdown.parse(path, data, settings.scan.encoding)


def read_note(path: str, data: bytes, settings: Settings, exports: Path | None = None, statistics: Statistics | None = None) -> Reading:
    """Bytes -> note -> turns -> scenes and passages.

    `exports` is the folder of imported talks that mend damaged ones, `statistics` the vault's document frequencies.
    """
    note = parse(path, data, settings)
    if imports.is_stored(path):
        (note, conversations), reader, why = imports.as_note(note), imports.READER, "vaultllm import"
    else:
        reader, why, conversations = chats.read(note, settings.scan, settings.timezone)
    conversations, talks = imports.joined(exports, reader, conversations)
    cut, noticed = scenes.cut(note, reader, conversations, settings, statistics)
    if is_json(path) and not reader:
        message = "no chats of a known format are in it (is it whole?); export it again, or rename the file"
        noticed = (*noticed, Problem("W-EXPORT", message))
    if not cut and not note.problems and not noticed:
        noticed = (Problem("W-BLANK", "there is no text in it beyond properties and comments, so nothing to learn or recall"),)
    stored = tuple(rows.row(scene, scenes.passages(scene)) for scene in cut)
    told = [problem for conversation in conversations for problem in conversation.problems]
    turns = sum(len(conversation.turns) for conversation in conversations)
    turns += sum(problem.count for problem in told if problem.code in chats.LEFT_OUT)
    left = sum(problem.count for problem in noticed if problem.code in chats.LEFT_OUT) if conversations else 0
    title = scenes.title(note, settings.redact) if noticed else note.title
    return Reading(title, reader, why, stored, scene_yaml.to_yaml(path, cut), (*note.problems, *noticed), turns, left, talks)


def as_copy(read: Reading, holders: Mapping[str, Collection[str]]) -> Reading:
    """A stored talk that notes of the vault hold (path -> UIDs): no scenes of its own, every message of it accounted for."""
    there = {uid for uids in holders.values() for uid in uids}
    held = sum(uid in there for talk in read.talks for uid in talk.uids)
    lacking = read.turns - read.turns_left - held
    note = min(holders)
    problems = [problem for problem in read.problems if problem.code in chats.LEFT_OUT]
    if held:
        problems.append(Problem("W-COPY", f"this talk is read from the note {note}; the imported copy only mends it", count=held))
    if lacking:
        message = (
            f"the note {note} lacks {lacking} messages of the imported talk «{read.title}»; "
            "update it by its importer, or delete it and all are read from here"
        )
        problems.append(Problem("W-MISSING", message, count=lacking))
    return replace(read, scenes=(), yaml="", problems=tuple(problems), turns_left=read.turns)
