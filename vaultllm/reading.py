"""A file's bytes -> all that the ledger keeps of it: reader, scenes, passages, YAML, problems, and the account of its messages.

Pure but for one look into the folder of exports that mend damaged notes. Runs in a process of its own
(`workers.py`), so that a note that crashes the parser costs only itself. Knows nothing about databases.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vaultllm import chats, markdown, scene_yaml, scenes
from vaultllm.config import Settings
from vaultllm.schema import Note, Passage, Problem, Scene
from vaultllm.text import sha


@dataclass(frozen=True, slots=True)
class Reading:
    """A note that was read, before anything of it is stored."""

    title: str
    """As shown."""
    reader: str
    """The chat reader that took it; empty for an ordinary note."""
    why: str
    """Why that reader did."""
    scenes: tuple[tuple[Scene, tuple[Passage, ...]], ...]
    """Its scenes, each with what is recalled of it."""
    yaml: str
    """The scenes as a document."""
    problems: tuple[Problem, ...]
    """What was met on the way."""
    turns: int
    """Messages that its talks hold."""
    turns_left: int
    """Those of them that are in no scene, each counted by a problem."""


def version(settings: Settings) -> str:
    """What a note's scenes depend on besides its bytes: our code, and the settings that reading looks at."""
    looked_at = (settings.scan, settings.scenes, settings.redact)
    return f"{scenes.PARSER}-{sha(settings.timezone, *(part.model_dump_json() for part in looked_at), digits=8)}"


def parse(path: str, data: bytes, settings: Settings) -> Note:
    """The file as a Note, by its kind."""
    if path.lower().endswith(".json"):
        return markdown.plain_note(path, data)
    return markdown.parse(path, data)


def read_note(path: str, data: bytes, settings: Settings, exports: Path | None = None) -> Reading:
    """Bytes -> note -> turns -> scenes and passages. `exports` is the folder of imported talks that mend damaged ones."""
    note = parse(path, data, settings)
    reader, why, conversations = chats.read(note, settings.scan, settings.timezone)
    cut, noticed = scenes.cut(note, reader, conversations, templates=settings.scan.templates)
    if path.lower().endswith(".json") and not reader:
        message = "no chats of a known format are in it (is it whole?); export it again, or rename the file"
        noticed = (*noticed, Problem("W-EXPORT", message))
    parts = tuple((scene, scenes.passages(scene)) for scene in cut)
    left = sum(problem.count for problem in noticed if problem.code in chats.LEFT_OUT)
    turns = left + sum(len(conversation.turns) for conversation in conversations)
    return Reading(note.title, reader, why, parts, scene_yaml.to_yaml(path, cut), (*note.problems, *noticed), turns, left)
