"""The ledger: one SQLite file that holds the truth about everything derived from the vault.

Notes and their fingerprints, scenes, passages, vectors, the words index, the outbox to Chroma, runs, answers.
Every method that changes several rows does so in one transaction; a killed process leaves the state before or
after, never between. Knows nothing about Markdown, Chroma or models; `memory/words.py` fills the tables of its words index.
"""

from __future__ import annotations

import json
import operator
import sqlite3
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

from vaultllm import imports, kept
from vaultllm.database import explained, marks
from vaultllm.imports import Talk
from vaultllm.memory import bags, scan, twins, words
from vaultllm.rows import PassageRow, SceneRow, scene_of
from vaultllm.schema import Problem, Run, Scene, from_dict, to_dict
from vaultllm.shelf import Shelf
from vaultllm.text import encodable, fold, sha

if TYPE_CHECKING:
    import numpy as np


class KnownNote(NamedTuple):
    """What the ledger remembers of a note: enough to see that it has not changed."""

    id: int
    """Row."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Modification time."""
    ctime_ns: int
    """Inode change time: catches an edit that kept size and mtime."""
    inode: int
    """Changes when a file is replaced."""
    sha256: str
    """Hash of the bytes."""
    parser: str
    """Version of the code that parsed it; another version parses again."""


@dataclass(frozen=True, slots=True)
class NoteRow:
    """A note as `put_note` takes it."""

    path: str
    """Vault-relative."""
    title: str
    """As shown."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Modification time."""
    ctime_ns: int
    """Inode change time."""
    inode: int
    """Inode."""
    sha256: str
    """Hash of the bytes."""
    parser: str
    """Version of the parsing code."""
    reader: str
    """The chat reader that took it; empty for an ordinary note."""
    why: str
    """Why that reader."""
    turns: int = 0
    """Messages that its talks hold."""
    turns_left: int = 0
    """Those of them that are in no scene."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one note changed."""

    added: int = 0
    """Scenes that are new."""
    changed: int = 0
    """Scenes whose words changed."""
    removed: int = 0
    """Scenes that are gone."""

    def __add__(self, other: Change) -> Change:
        """The sum, field by field."""
        return Change(self.added + other.added, self.changed + other.changed, self.removed + other.removed)


Counted = Literal["notes", "scenes", "trainable", "passages", "vectors", "outbox"]

_WORDS = "words"  # in the meta table: how the words index was made

_NOTE = (
    "path", "name", "title", "size", "mtime_ns", "ctime_ns", "inode", "sha256", "parser", "reader", "why", "turns", "turns_left",
)  # fmt: skip
_PASSAGE = "ordinal, first, last, uid, role, text, context, sha"
_SCENE = "id, sha, kind, language, trust, train, reason, length, at, record"


_FIELDS = operator.attrgetter("path", *_NOTE[2:])


def _values(note: NoteRow) -> tuple[Any, ...]:
    """A note as a row of `_NOTE`."""
    path, *rest = _FIELDS(note)
    return (path, note_key(path), *rest)


class _New:
    """Rows that wait to be inserted together, and the numbers they got."""

    def __init__(self, notes: int, scenes: int, passages: int) -> None:
        self.top = {"notes": notes, "scenes": scenes, "passages": passages}
        self.notes: list[tuple[Any, ...]] = []
        self.scenes: list[tuple[Any, ...]] = []
        self.links: list[tuple[int, str, str]] = []
        self.passages: list[tuple[Any, ...]] = []
        self.bags: list[tuple[int, bags.Bag]] = []

    def number(self, table: str) -> int:
        """The next free row of a table."""
        self.top[table] += 1
        return self.top[table]


class Ledger(Shelf):
    """An open ledger. Use as a context manager; one per thread."""

    def __init__(self, path: Path) -> None:
        """Open or create. Raises VaultError when it is damaged, not ours, or from a newer version."""
        super().__init__(path)
        self.index = words.Index(self.db)
        self.scan = scan.Scan(self.db)
        try:
            self._check_words()
        except sqlite3.Error as error:
            self.close()
            raise explained(error, path) from error

    def __enter__(self) -> Ledger:
        return self

    def _check_words(self) -> None:
        """A words index made by another version of ours or of the stemmer is made anew."""
        if self.get(_WORDS) == bags.version():
            return
        with self.transaction():
            if self.get(_WORDS) != bags.version():
                self.index.rebuild()
                self.set(_WORDS, bags.version())

    # -- notes, scenes, passages

    def known(self, only: Collection[str] | None = None) -> dict[str, KnownNote]:
        """Path -> fingerprint of every note, or of those of `only` that were ingested."""
        query = "SELECT path, id, size, mtime_ns, ctime_ns, inode, sha256, parser FROM notes"
        rows = self.db.execute(query) if only is None else self.among(f"{query} WHERE path IN ({{}})", tuple(only))
        return {row[0]: KnownNote._make(row[1:]) for row in rows}

    def knows(self, path: str) -> bool:
        """Whether a note of this path was ingested. None is whose name is no UTF-8."""
        return path == encodable(path) and self.db.execute("SELECT 1 FROM notes WHERE path = ?", (path,)).fetchone() is not None

    def touch(self, note_id: int, size: int, mtime_ns: int, ctime_ns: int, inode: int) -> None:
        """A note's stat changed, its bytes did not."""
        self.db.execute(
            "UPDATE notes SET size = ?, mtime_ns = ?, ctime_ns = ?, inode = ? WHERE id = ?", (size, mtime_ns, ctime_ns, inode, note_id)
        )

    def put_note(self, note: NoteRow, scenes: Sequence[SceneRow]) -> Change:
        """`put_notes` for one."""
        return self.put_notes([(note, scenes)])

    def put_notes(self, notes: Iterable[tuple[NoteRow, Sequence[SceneRow]]]) -> Change:
        """Store notes' scenes in place of the old ones, their words in the index, and what Chroma must hear in the outbox.

        What is new is inserted table by table at the end: in a first ingest that is everything, and a statement a row is slow.
        """
        change = Change()
        with self.transaction():
            new = _New(*(self._top(table, key) for table, key in (("notes", "id"), ("scenes", "slot"), ("passages", "slot"))))
            notes = list(notes)
            known = self._rows_of([note.path for note, _ in notes])
            for note, scenes in notes:
                change += self._put_note(note, scenes, known.get(note.path), new)
            self.db.executemany(f"INSERT INTO notes (id, {', '.join(_NOTE)}) VALUES ({marks(14)})", new.notes)
            self.db.executemany(f"INSERT INTO scenes (slot, note, ordinal, {_SCENE}) VALUES ({marks(13)})", new.scenes)
            self.db.executemany("INSERT INTO links (scene, target, written) VALUES (?, ?, ?)", new.links)
            self.db.executemany(f"INSERT INTO passages (slot, scene, {_PASSAGE}) VALUES ({marks(10)})", new.passages)
            self.index.add(new.bags)
            self._tell_outbox([(slot,) for slot, _ in new.bags])
        return change

    def _top(self, table: str, key: str) -> int:
        (top,) = self.db.execute(f"SELECT coalesce(max({key}), 0) FROM {table}").fetchone()
        return int(top)

    def _rows_of(self, paths: Sequence[str]) -> dict[str, int]:
        return dict(self.among("SELECT path, id FROM notes WHERE path IN ({})", paths))

    def _put_note(self, note: NoteRow, scenes: Sequence[SceneRow], number: int | None, new: _New) -> Change:
        row = _values(note)
        old: dict[str, tuple[int, str]] = {}
        is_known = number is not None
        if number is None:
            number = new.number("notes")
            new.notes.append((number, *row))
        else:
            self.db.execute(f"UPDATE notes SET {', '.join(f'{name} = ?' for name in _NOTE)} WHERE id = ?", (*row, number))
            old = {
                identity: (slot, said)
                for slot, identity, said in self.db.execute("SELECT slot, id, sha FROM scenes WHERE note = ?", (number,))
            }
        added = changed = 0
        for ordinal, scene in enumerate(scenes):
            slot, said = old.pop(scene.id, (0, ""))
            values = (number, ordinal, *scene[:10])
            if not slot:
                added += 1
                slot = new.number("scenes")
                new.scenes.append((slot, *values))
            else:
                changed += said != scene.sha
                self.db.execute(f"UPDATE scenes SET (note, ordinal, {_SCENE}) = ({marks(12)}) WHERE slot = ?", (*values, slot))
                self.db.execute("DELETE FROM links WHERE scene = ?", (slot,))
            new.links += [(slot, note_key(target), target) for target in scene.links]
            self._put_passages(slot, scene.passages, new, is_known)
        for slot, _ in old.values():
            self._bury("scene = ?", slot)
            self.db.execute("DELETE FROM scenes WHERE slot = ?", (slot,))
        return Change(added, changed, len(old))

    def _put_passages(self, scene_slot: int, passages: Sequence[PassageRow], new: _New, is_known: bool) -> None:
        """Update in place, so that a passage keeps its slot, its vector and its place in Chroma while its words stay."""
        old: dict[int, tuple[int, str]] = {}
        if is_known:
            query = "SELECT ordinal, slot, sha FROM passages WHERE scene = ?"
            old = {ordinal: (slot, said) for ordinal, slot, said in self.db.execute(query, (scene_slot,))}
        for passage in passages:
            slot, said = old.pop(passage.ordinal, (0, ""))
            if not slot:
                slot = new.number("passages")
                new.passages.append((slot, scene_slot, *passage[:8]))
                new.bags.append((slot, passage.bag))
                continue
            if said != passage.sha:
                self._bury("slot = ?", slot)
                new.bags.append((slot, passage.bag))
            self.db.execute(f"UPDATE passages SET ({_PASSAGE}) = ({marks(8)}) WHERE slot = ?", (*passage[:8], slot))
        for slot, _ in old.values():
            self._bury("slot = ?", slot)
            self.db.execute("DELETE FROM passages WHERE slot = ?", (slot,))

    def quarantine(self, note: NoteRow) -> None:
        """A note that could not be read: it is not tried again until its bytes or our code change; its scenes stay as they were."""
        values = _values(note)
        kept = ", ".join(f"{name} = excluded.{name}" for name in ("size", "mtime_ns", "ctime_ns", "inode", "sha256", "parser"))
        self.db.execute(
            f"INSERT INTO notes ({', '.join(_NOTE)}) VALUES ({marks(len(_NOTE))}) ON CONFLICT (path) DO UPDATE SET {kept}", values
        )

    def remove_note(self, path: str) -> int:
        """Take a note, its scenes, words and vectors out; returns how many scenes went."""
        with self.transaction():
            row = self.db.execute("SELECT id FROM notes WHERE path = ?", (path,)).fetchone()
            self.set_problems({path: ()})
            self.set_talks({path: ()})
            if row is None:
                return 0
            slots = [slot for (slot,) in self.db.execute("SELECT slot FROM scenes WHERE note = ?", row)]
            for slot in slots:
                self._bury("scene = ?", slot)
            self.db.execute("DELETE FROM notes WHERE id = ?", row)
            return len(slots)

    def _bury(self, where: str, value: int) -> None:
        """Before passages change or go: take their words out of the index, their vectors, and tell the outbox."""
        rows = self.db.execute(f"SELECT slot FROM passages WHERE {where}", (value,)).fetchall()
        self.index.remove(slot for (slot,) in rows)
        self.db.executemany("DELETE FROM vectors WHERE passage = ?", rows)
        self._tell_outbox(rows)

    def _tell_outbox(self, rows: Iterable[tuple[int]]) -> None:
        """A slot that waits already gets a new number: what was read of it before is no longer all."""
        self.db.executemany("INSERT OR REPLACE INTO outbox (passage) VALUES (?)", rows)

    def set_problems(self, found: Mapping[str, Sequence[Problem]]) -> None:
        """Replace what is wrong with these files (paths). Writes only what is different: a scan that finds nothing new changes no byte."""
        rows = {path: [(path, one.code, one.line, one.message, one.count) for one in problems] for path, problems in found.items()}
        self._replace("problems", "path, code, line, message, count", rows)

    def _replace(self, table: str, columns: str, rows: Mapping[str, Sequence[tuple[Any, ...]]]) -> None:
        """Put the rows of each path in place of those it has, where they differ. The first column is the path."""
        paths = list(rows)
        old: dict[str, list[tuple[Any, ...]]] = {}
        for row in self.among(f"SELECT {columns} FROM {table} WHERE path IN ({{}})", paths):
            old.setdefault(row[0], []).append(row)
        changed = [path for path in paths if sorted(old.get(path, ())) != sorted(rows[path])]
        if changed:
            with self.transaction():
                self.db.executemany(f"DELETE FROM {table} WHERE path = ?", [(path,) for path in changed if path in old])
                into = f"INSERT INTO {table} ({columns}) VALUES ({marks(columns.count(',') + 1)})"
                self.db.executemany(into, [row for path in changed for row in rows[path]])

    def problems(self) -> list[tuple[str, Problem]]:
        """All that is wrong, by path and line."""
        rows = self.db.execute("SELECT path, code, message, line, count FROM problems ORDER BY path, line, code")
        return [(path, Problem(*rest)) for path, *rest in rows]

    def told(self, codes: Collection[str]) -> set[str]:
        """Paths of the files of which one of these problems is told."""
        marks = ", ".join("?" * len(codes))
        return {path for (path,) in self.db.execute(f"SELECT path FROM problems WHERE code IN ({marks})", tuple(codes))}

    def set_talks(self, found: Mapping[str, Sequence[Talk]]) -> None:
        """Replace what is known of the talks of these notes (paths)."""
        rows = {
            path: [(path, talk.conversation, talk.joined, json.dumps(talk.uids, ensure_ascii=False)) for talk in talks]
            for path, talks in found.items()
        }
        self._replace("talks", "path, conversation, joined, uids", rows)

    def rejoin(self, path: str, joined: str) -> None:
        """A note could not be read with the other copies as they are now: it is not tried again until they change."""
        self.db.execute("UPDATE talks SET joined = ? WHERE path = ?", (joined, path))

    def talks(self, reader: str, named: Collection[str] | None = None) -> list[tuple[str, str, str]]:
        """(path, name of the talk, fingerprint of what it was joined with) of this reader's notes; of `named` talks alone."""
        query = "SELECT t.path, t.conversation, t.joined FROM talks t JOIN notes n ON n.path = t.path WHERE n.reader = ?"
        if named is None:
            return self.db.execute(f"{query} ORDER BY t.path", (reader,)).fetchall()
        return sorted(self.among(f"{query} AND t.conversation IN ({{}})", tuple(named), reader))

    def talks_in(self, paths: Collection[str]) -> set[str]:
        """The names of the talks that these notes hold."""
        return {name for (name,) in self.among("SELECT conversation FROM talks WHERE path IN ({})", tuple(paths))}

    def holders(self, conversation: str) -> dict[str, frozenset[str]]:
        """The notes of the vault that hold this conversation, and the UIDs of its messages in each."""
        query = "SELECT t.path, t.uids FROM talks t JOIN notes n ON n.path = t.path WHERE t.conversation = ? AND n.reader != ?"
        found: dict[str, frozenset[str]] = {}
        for path, uids in self.db.execute(query, (conversation, imports.READER)):
            found[path] = found.get(path, frozenset()) | frozenset(json.loads(uids))
        return found

    def notes_with_scenes(self) -> list[str]:
        """Paths of the notes that have scenes."""
        return [path for (path,) in self.db.execute("SELECT path FROM notes WHERE id IN (SELECT note FROM scenes) ORDER BY path")]

    def scenes(self, path: str | None = None) -> Iterator[Scene]:
        """All scenes, or one note's, in the order of notes and lines."""
        query = (
            "SELECT s.record, f.id FROM scenes s JOIN notes n ON n.id = s.note"
            " LEFT JOIN twins t ON t.scene = s.slot LEFT JOIN scenes f ON f.slot = t.first"
        )
        rows = (
            self.db.execute(query + " ORDER BY n.path, s.ordinal")
            if path is None
            else self.db.execute(query + " WHERE n.path = ? ORDER BY s.ordinal", (path,))
        )
        for record, first in rows:
            yield scene_of(record, first or "")

    def link_duplicates(self, most: int | None = None) -> int | None:
        """Find for each scene the first that says the same or nearly; how many links changed, None if over `most` scenes are to be read."""
        with self.transaction():
            return twins.update(self.db, most)

    def trainable(self) -> Iterator[tuple[str, str]]:
        """(id, sha) of every scene that may be trained on, without reading the records."""
        yield from self.db.execute("SELECT id, sha FROM scenes WHERE train = 1")

    def counts(self) -> dict[str, int]:
        """Notes, scenes (and those that may be trained on), passages, vectors, what waits for Chroma."""
        return {what: self.count(what) for what in get_args(Counted)}

    def count(self, what: Counted) -> int:
        """One of `counts`. A table's rows are counted by its pages, which takes as long as it is large: milliseconds for 100,000."""
        table = "scenes WHERE train = 1" if what == "trainable" else what
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    # -- vectors and the outbox

    def put_vectors(self, embedder: str, slots: Sequence[int], vectors: np.ndarray, *, tell: bool = True) -> None:
        """Store unit vectors (n, dims) float32 for passages, and put the passages into the outbox if Chroma is to be told.

        The embedder's name says how they are stored (`memory.scan.precision_of`).
        """
        from vaultllm.memory import embed

        stored = embed.pack(vectors, scan.precision_of(embedder))
        with self.transaction():
            self.db.executemany(  # a vector that is replaced gets a new stamp, higher than any that ever was
                "INSERT OR REPLACE INTO vectors (passage, embedder, vector) VALUES (?, ?, ?)",
                [(slot, embedder, vector) for slot, vector in zip(slots, stored, strict=True)],
            )
            if tell:
                self._tell_outbox((slot,) for slot in slots)

    def drop_vectors(self, *but: str) -> int:
        """Those of all embedders but these; how many there were."""
        kept = self.db.execute(f"DELETE FROM vectors WHERE embedder NOT IN ({marks(len(but))})", but)
        return int(kept.rowcount)

    def tell_all(self) -> None:
        """Put every passage into the outbox."""
        self.db.execute("INSERT OR REPLACE INTO outbox (passage) SELECT slot FROM passages ORDER BY slot")

    def outbox(self, limit: int = 1000) -> dict[int, int]:
        """Slots whose row in Chroma may differ from ours, the longest waiting first, each with the number under which it waits."""
        return dict(self.db.execute("SELECT passage, seq FROM outbox ORDER BY seq LIMIT ?", (limit,)).fetchall())

    def outbox_done(self, heard: Mapping[int, int]) -> None:
        """Chroma has heard of these (as `outbox` named them). One that has changed since waits under another number, and stays."""
        with self.transaction():
            self.db.executemany("DELETE FROM outbox WHERE seq = ?", [(seq,) for seq in heard.values()])

    # -- runs, answers, odds and ends

    def put_run(self, run: Run) -> None:
        """Store or replace a run."""
        record = json.dumps(to_dict(run), ensure_ascii=False)
        self.db.execute("INSERT OR REPLACE INTO runs (id, created, record) VALUES (?, ?, ?)", (run.id, run.created, record))

    def runs(self) -> list[Run]:
        """All runs, oldest first."""
        return [from_dict(Run, json.loads(record)) for (record,) in self.db.execute("SELECT record FROM runs ORDER BY created, id")]

    def put_answer(self, answer_id: str, path: str, sha256: str, created: str, record: dict[str, Any]) -> None:
        """Remember a note that we wrote, and its hash, so that it never counts as the user's; `kept` beside the ledger. Raises OSError."""
        kept.answer(self.path.parent, answer_id, path, sha256, created, record)
        self._put_answer(answer_id, path, sha256, created, record)

    def _put_answer(self, answer_id: str, path: str, sha256: str, created: str, record: Mapping[str, Any]) -> None:
        self.db.execute(
            "INSERT OR REPLACE INTO answers (id, path, sha256, created, record) VALUES (?, ?, ?, ?, ?)",
            (answer_id, path, sha256, created, json.dumps(record, ensure_ascii=False)),
        )

    def history(self) -> list[str]:
        """Ids of the runs that answered before the current one, oldest first; "" stands for the base alone."""
        found: list[str] = json.loads(self.get("promotions") or "[]")
        return found

    def put_history(self, ids: Sequence[str]) -> None:
        """Replace `history`; `kept` beside the ledger. Raises OSError."""
        kept.history(self.path.parent, ids)
        self.set("promotions", json.dumps(list(ids)))

    def take_back(self, runs: Path) -> int:
        """In a ledger that was made anew: what is not in the vault, from what was kept beside it and the runs' folder; how many rows.

        One from before anything was kept keeps it now. Raises OSError.
        """
        folder = self.path.parent
        if not (folder / kept.FILE).exists():
            for identity, path, digest, created, record in self.db.execute(
                "SELECT id, path, sha256, created, record FROM answers"
            ).fetchall():
                kept.answer(folder, identity, path, digest, created, json.loads(record))
            if before := self.history():
                kept.history(folder, before)
        tables = ("notes", "runs", "answers")
        if any(self.db.execute(f"SELECT 1 FROM {table} LIMIT 1").fetchone() for table in tables):
            return 0
        found, trained = kept.read(folder), kept.runs(runs)
        with self.transaction():
            for identity, (path, digest, created, about) in found.answers.items():
                self._put_answer(identity, path, digest, created, about)
            for run in trained:
                self.put_run(run)
            known = {run.id for run in trained}
            self.set("promotions", json.dumps([one for one in found.history if one in known or not one]))
        return len(found.answers) + len(trained)

    def answers(self, most: int) -> list[tuple[str, str]]:
        """(when, record as JSON) of the latest answers."""
        return self.db.execute("SELECT created, record FROM answers ORDER BY id DESC LIMIT ?", (most,)).fetchall()

    def written(self) -> dict[str, str]:
        """sha256 -> path of every note that we wrote."""
        return dict(self.db.execute("SELECT sha256, path FROM answers").fetchall())

    def ours(self) -> frozenset[str]:
        """How to know our own words in a note of the user's: the UIDs of our replies, and fingerprints of their texts."""
        marks: set[str] = set()
        for identity, record in self.db.execute("SELECT id, record FROM answers"):
            about = json.loads(record)  # where it quoted what was forgotten since, only the fingerprint is left
            marks |= {f"{identity}-agent", about.get("said_sha") or sha(about.get("said", "").strip())}
        return frozenset(marks)


def note_key(target: str) -> str:
    """How a link's target and a note's name are compared: the last part of the path, folded, without `.md`."""
    name = target.replace("\\", "/").rsplit("/", 1)[-1]
    return fold(name[:-3] if name.lower().endswith(".md") else name).strip()
