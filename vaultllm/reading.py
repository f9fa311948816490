"""A file's bytes -> all that the ledger keeps of it: reader, scenes, passages, YAML, problems, and the account of its messages.

Pure but for one look into the folder of exports that mend damaged notes. Runs in a process of its own
(`workers.py`), so that a note that crashes the parser costs only itself. Knows nothing about databases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from vaultllm import canvas, chats, imports, markdown, rows, scene_yaml, scenes
from vaultllm.forgotten import CODE, Forgotten, way_back
from vaultllm.imports import Talk
from vaultllm.keywords import Statistics
from vaultllm.rows import SceneRow
from vaultllm.schema import Conversation, Lines, Note, Problem, Scene
from vaultllm.text import is_json, sha

if TYPE_CHECKING:
    from vaultllm.config import Settings


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


def read_note(
    path: str,
    data: bytes,
    settings: Settings,
    exports: Path | None = None,
    statistics: Statistics | None = None,
    forgotten: Forgotten | None = None,
) -> Reading:
    """Bytes -> note -> turns -> scenes and passages.

    `exports` is the folder of imported talks that mend damaged ones, `statistics` the vault's document frequencies; what is
    `forgotten` is counted and goes no further.
    """
    note = parse(path, data, settings)
    if imports.is_stored(path):
        (note, conversations), reader, why = imports.as_note(note), imports.READER, "vaultllm import"
    else:
        reader, why, conversations = chats.read(note, settings.scan, settings.timezone)
    conversations, talks = imports.joined(exports, reader, conversations)
    if forgotten:
        note, conversations, talks = _without_messages(note, conversations, talks, forgotten)
    cut, noticed = scenes.cut(note, reader, conversations, settings, statistics)
    if forgotten and any(forgotten.scene(scene.id, scene.sha) for scene in cut):
        if note.blocks and not path.lower().endswith(".canvas"):
            gone = {line for scene in cut if forgotten.scene(scene.id, scene.sha) for line in _span(scene.source.lines)}
            bare = _blanked(note, gone)
            note = replace(note, title=bare.title, tags=bare.tags)  # they stand on every scene: none from what is forgotten
        cut, noticed = _without_scenes(*scenes.cut(note, reader, conversations, settings, statistics), conversations, forgotten)
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


def _without_messages(
    note: Note, conversations: Iterable[Conversation], talks: Sequence[Talk], forgotten: Forgotten
) -> tuple[Note, list[Conversation], tuple[Talk, ...]]:
    """A note and its talks without forgotten messages. Their lines are blank then, so that no tag, link or title comes from them."""
    lines: set[int] = set()
    kept: list[Conversation] = []
    title = note.title
    for conversation in conversations:
        left = forgotten.without(conversation)
        kept.append(left)
        if left is not conversation:
            there = {line for turn in left.turns for line in _span(turn.lines)}
            lines |= {line for turn in conversation.turns for line in _span(turn.lines)} - there
            title = left.title if title == conversation.title else title  # of a stored talk
    if lines and note.blocks:
        bare = _blanked(note, lines)
        about_bytes = tuple(problem for problem in note.problems if problem.code in ("W-GARBLED", "W-MOJIBAKE", "W-NUL"))
        note = replace(bare, problems=(*about_bytes, *bare.problems), encoding=note.encoding, sha256=note.sha256)
    elif lines:
        note = replace(note, title=title or PurePosixPath(note.path).stem)
    said = (talk._replace(uids=tuple(uid for uid in talk.uids if not forgotten.message(uid))) for talk in talks)
    return note, kept, tuple(talk for talk in said if talk.uids and not forgotten.talk(talk.conversation))


def _blanked(note: Note, lines: Collection[int]) -> Note:
    """A Markdown note as it would be were these lines (from 1) empty."""
    rows = ("" if number in lines else row for number, row in enumerate(note.text.split("\n"), 1))
    return markdown.parse(note.path, "\n".join(rows).encode("utf-8", "surrogatepass"))


def _without_scenes(
    cut: Sequence[Scene], noticed: tuple[Problem, ...], conversations: Iterable[Conversation], forgotten: Forgotten
) -> tuple[tuple[Scene, ...], tuple[Problem, ...]]:
    """The scenes that are not forgotten, chained, and a problem that counts the messages of the others, or them where none is a talk."""
    gone = [scene for scene in cut if forgotten.scene(scene.id, scene.sha)]
    kept = [scene for scene in cut if not forgotten.scene(scene.id, scene.sha)]
    told = {(turn.uid, turn.lines) for conversation in conversations for turn in conversation.turns}
    count = sum((turn.uid, turn.lines) in told for scene in gone for turn in scene.turns) if told else len(gone)
    what = f"{len(gone)} scenes of it were forgotten{way_back(gone[0].id)}"
    names = ["", *(scene.id for scene in kept), ""]
    chained = tuple(replace(scene, prev=names[place], next=names[place + 2]) for place, scene in enumerate(kept))
    return chained, (*noticed, Problem(CODE, what, gone[0].source.lines[0], count))


def _span(lines: Lines) -> range:
    return range(lines[0], lines[1] + 1)


def forgotten_note(path: str, problem: Problem) -> Reading:
    """What the ledger keeps of a note that is not to be read: that it is there, and why it has no scenes."""
    return Reading(PurePosixPath(path).stem, "", "", (), "", (problem,), 0, 0)


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
