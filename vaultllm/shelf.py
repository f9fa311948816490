"""What the ledger can be asked about passages: where they stand, what is beside, what is linked with them, their vectors.

Reads only; `ledger.py` writes. Knows nothing about Markdown, Chroma or models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from vaultllm.database import Database
from vaultllm.links import Resolver
from vaultllm.memory import scan
from vaultllm.rows import scene_of
from vaultllm.schema import Passage, Scene

if TYPE_CHECKING:
    import numpy as np


_FEW = 5_000  # passages whose times are looked up one by one; more of them are soon found among the latest of all


@dataclass(frozen=True, slots=True)
class StoredPassage:
    """A passage with its rows."""

    slot: int
    """Its stable number: the id in Chroma, the rowid in the words index."""
    scene_slot: int
    """Row of its scene."""
    path: str
    """Its note."""
    scene_sha: str
    """Hash of what its scene says."""
    passage: Passage
    """The record."""


class Place(NamedTuple):
    """Where a passage stands."""

    scene: int
    """Row of its scene."""
    note: int
    """Row of its note."""
    scene_ordinal: int
    """The scene's place in the note."""
    ordinal: int
    """The passage's place in the scene."""
    is_talk: bool
    """Whether it is of a talk."""


class Looked(NamedTuple):
    """A passage as filters and phrases look at it."""

    slot: int
    """Its number."""
    scene: int
    """Row of its scene."""
    path: str
    """Its note."""
    tags: tuple[str, ...]
    """Of its scene."""
    at: str
    """Of its scene: ISO 8601, or ""."""
    kind: str
    """Of its scene."""
    trust: str
    """Of its scene."""
    language: str
    """Of its scene."""
    text: str
    """Its text, with its context before it."""


class Shelf(Database):
    """An open ledger, to be read."""

    def passages(self, slots: Sequence[int]) -> dict[int, StoredPassage]:
        """The passages of these slots; unknown slots are left out."""
        query = (
            "SELECT p.slot, p.scene, n.path, s.sha, s.id, p.ordinal, p.first, p.last, p.text, p.uid, p.role, p.context"
            " FROM passages p JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note WHERE p.slot IN ({})"
        )
        return {
            slot: StoredPassage(slot, scene_slot, path, scene_sha, Passage(scene, ordinal, (first, last), text, uid, role, context))
            for slot, scene_slot, path, scene_sha, scene, ordinal, first, last, text, uid, role, context in self.among(query, slots)
        }

    def places(self, slots: Sequence[int]) -> dict[int, Place]:
        """Where these passages stand; unknown slots are left out."""
        query = (
            "SELECT p.slot, p.scene, s.note, s.ordinal, p.ordinal, s.kind = 'dialogue'"
            " FROM passages p JOIN scenes s ON s.slot = p.scene WHERE p.slot IN ({})"
        )
        found = {slot: Place(*rest) for slot, *rest in self.among(query, slots)}
        return {slot: found[slot] for slot in slots if slot in found}

    def beside(self, place: Place) -> list[int]:
        """Slots of the passages of a place's scene and of the scenes before and after it in the note, in their order."""
        query = (
            "SELECT p.slot FROM scenes s JOIN passages p ON p.scene = s.slot WHERE s.note = ? AND s.ordinal BETWEEN ? AND ?"
            " ORDER BY s.ordinal, p.ordinal"
        )
        return [slot for (slot,) in self.db.execute(query, (place.note, place.scene_ordinal - 1, place.scene_ordinal + 1))]

    def under(self, note: int, path: str, most: int) -> list[int]:
        """Slots of the passages of a note (row) whose context begins with this path of headings."""
        query = (
            "SELECT p.slot FROM scenes s JOIN passages p ON p.scene = s.slot WHERE s.note = ? AND substr(p.context, 1, ?) = ?"
            " ORDER BY s.ordinal, p.ordinal LIMIT ?"
        )
        return [slot for (slot,) in self.db.execute(query, (note, len(path), path, most))]

    def dated(self, first: str, end: str, most: int) -> list[int]:
        """Slots of the passages of scenes whose time (ISO 8601) is from `first` on and before `end`, the latest first."""
        query = (
            "SELECT p.slot FROM scenes s JOIN passages p ON p.scene = s.slot WHERE s.at >= ? AND s.at < ? AND s.at != ''"
            " ORDER BY s.at DESC, s.slot, p.ordinal LIMIT ?"
        )
        return [slot for (slot,) in self.db.execute(query, (first, end, most))]

    def latest(self, among: Sequence[int] | None = None) -> Iterator[int]:
        """Slots of passages (of all, or of these), those of the latest scenes first, those without a time last."""
        if among is not None and len(among) <= _FEW:
            rows = self.among(
                "SELECT p.slot, p.scene, p.ordinal, s.at FROM passages p JOIN scenes s ON s.slot = p.scene WHERE p.slot IN ({})", among
            )
            in_place = sorted(rows, key=lambda row: (row[1], row[2]))
            yield from (slot for slot, _, _, _ in sorted(in_place, key=lambda row: row[3], reverse=True))
            return
        wanted = None if among is None else set(among)
        for query in (
            "SELECT p.slot FROM scenes s JOIN passages p ON p.scene = s.slot WHERE s.at != '' ORDER BY s.at DESC, s.slot, p.ordinal",
            # Not by the scenes themselves, whose records would be read: both of these are answered by an index.
            "SELECT slot FROM passages WHERE scene NOT IN (SELECT slot FROM scenes WHERE at != '') ORDER BY scene, ordinal",
        ):
            yield from (slot for (slot,) in self.db.execute(query) if wanted is None or slot in wanted)

    def looked_at(self, slots: Sequence[int], *, tags: bool = True, text: bool = True) -> list[Looked]:
        """What filters and phrases look at, of these passages, in their order; unknown slots are left out.

        Without `tags` none are read, without `text` no text: both lie deep in the rows.
        """
        columns = f"{'s.record' if tags else 'NULL'}, {'p.context, p.text' if text else 'NULL, NULL'}"
        query = (
            f"SELECT p.slot, p.scene, n.path, s.at, s.kind, s.trust, s.language, {columns} FROM passages p"
            " JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note WHERE p.slot IN ({})"
        )
        found: dict[int, Looked] = {}
        for slot, scene, path, at, kind, trust, language, record, context, said in self.among(query, slots):
            its = scene_of(record).tags if tags else ()
            found[slot] = Looked(slot, scene, path, its, at, kind, trust, language, f"{context}\n{said}" if text else "")
        return [found[slot] for slot in slots if slot in found]

    def passages_in(self, scene_slots: Sequence[int]) -> list[tuple[int, int]]:
        """(passage, scene) of all passages of these scenes, in the order of scenes and passages."""
        query = "SELECT slot, scene FROM passages WHERE scene IN ({}) ORDER BY scene, ordinal"
        return [(slot, scene) for slot, scene in self.among(query, scene_slots)]

    def labels(self, slots: Sequence[int]) -> dict[int, dict[str, str]]:
        """Scene id, path, kind and language of these passages: what stands beside their vectors in Chroma."""
        query = (
            "SELECT p.slot, s.id, n.path, s.kind, s.language FROM passages p JOIN scenes s ON s.slot = p.scene"
            " JOIN notes n ON n.id = s.note WHERE p.slot IN ({})"
        )
        return {
            slot: {"scene": scene, "path": path, "kind": kind, "language": language}
            for slot, scene, path, kind, language in self.among(query, slots)
        }

    def texts(self, slots: Sequence[int]) -> list[tuple[int, str, str]]:
        """(slot, text, context) of these passages, by slot; unknown slots are left out."""
        rows = self.among("SELECT slot, text, context FROM passages WHERE slot IN ({})", slots)
        return sorted((slot, text, context) for slot, text, context in rows)

    def scenes_at(self, scene_slots: Sequence[int]) -> dict[int, Scene]:
        """The scenes of these rows."""
        rows = self.among("SELECT slot, record FROM scenes WHERE slot IN ({})", scene_slots)
        return {slot: scene_of(record) for slot, record in rows}

    def linked(self, scene_slots: Sequence[int]) -> list[tuple[int, int]]:
        """(scene, first scene of a note it links to) and (scene, scene that links to its note) pairs for these scenes.

        Names are found by an index; which of several notes with one name is meant, `links.Resolver` says from the folders.
        """
        pairs: list[tuple[int, int]] = []
        for slot in scene_slots:
            out = self.db.execute(
                "SELECT l.written, l.target, f.path, n.path, s.slot FROM links l JOIN scenes o ON o.slot = l.scene"
                " JOIN notes f ON f.id = o.note JOIN notes n ON n.name = l.target"
                " JOIN scenes s ON s.note = n.id AND s.ordinal = 0 WHERE l.scene = ? AND s.slot != l.scene",
                (slot,),
            )
            meant: dict[tuple[str, str], dict[str, int]] = {}
            for written, name, source, path, other in out:
                meant.setdefault((written or name, source), {})[path] = other
            for (written, source), slots in meant.items():
                found = Resolver(slots).resolve(written, source)
                pairs += [(slot, slots[found])] if found else []
            back = self.db.execute(
                "SELECT l.scene, l.written, l.target, f.path, n.path FROM scenes s JOIN notes n ON n.id = s.note"
                " JOIN links l ON l.target = n.name JOIN scenes o ON o.slot = l.scene JOIN notes f ON f.id = o.note"
                " WHERE s.slot = ? AND l.scene != s.slot",
                (slot,),
            ).fetchall()
            named = self.db.execute("SELECT path FROM notes WHERE name = ?", (back[0][2],)) if back else ()
            resolver = Resolver(path for (path,) in named)
            pairs += [(slot, scene) for scene, written, name, source, path in back if resolver.resolve(written or name, source) == path]
        return list(dict.fromkeys(pairs))

    def without_vector(self, embedder: str) -> list[int]:
        """Slots of passages that have no vector of this embedder; for "" all."""
        if embedder:
            missing = self.db.execute("SELECT count(*) FROM passages").fetchone()[0] - self.embedded(embedder)
            if not missing:
                return []
            # What is new or was changed waits for Chroma too: mostly that is all, and nobody need look at the others.
            waiting = self.db.execute(
                "SELECT o.passage FROM outbox o CROSS JOIN passages p ON p.slot = o.passage"  # in this order: few wait
                " WHERE NOT EXISTS (SELECT 1 FROM vectors v WHERE v.embedder = ? AND v.passage = o.passage) ORDER BY o.passage",
                (embedder,),
            ).fetchall()
            if len(waiting) == missing:
                return [slot for (slot,) in waiting]
        rows = self.db.execute(
            "SELECT slot FROM passages WHERE slot NOT IN (SELECT passage FROM vectors WHERE embedder = ?) ORDER BY slot", (embedder,)
        )
        return [slot for (slot,) in rows]

    def embedders(self) -> list[str]:
        """Whose vectors are there. Finds each by a look into an index: there are few."""
        found: list[str] = []
        while (row := self.db.execute("SELECT min(embedder) FROM vectors WHERE embedder > ?", found[-1:] or [""]).fetchone())[0]:
            found.append(row[0])
        return found

    def embedded(self, embedder: str) -> int:
        """How many passages have a vector of this embedder."""
        # All rows of a table are counted by its pages, some of them one by one: mostly there is one embedder.
        which = "" if self.embedders() == [embedder] else "WHERE embedder = ?"
        (count,) = self.db.execute(f"SELECT count(*) FROM vectors {which}", (embedder,) if which else ()).fetchone()
        return int(count)

    def sampled(self, embedder: str, most: int) -> list[int]:
        """At most so many slots of passages that have a vector of this embedder, spread over all of them, in order."""
        ends = [
            self.db.execute(f"SELECT {end}(passage) FROM vectors WHERE embedder = ?", (embedder,)).fetchone()[0] for end in ("min", "max")
        ]
        if ends[0] is None:
            return []
        query = "SELECT min(passage) FROM vectors WHERE embedder = ? AND passage >= ?"
        aims = [ends[0] + (ends[1] - ends[0]) * place // max(1, most - 1) for place in range(most)]
        found = {self.db.execute(query, (embedder, aim)).fetchone()[0] for aim in aims}
        return sorted(found - {None})

    def with_vector(self, embedder: str) -> list[int]:
        """Slots of passages that have a vector of this embedder, in order."""
        rows = self.db.execute("SELECT passage FROM vectors WHERE embedder = ? ORDER BY passage", (embedder,))
        return [slot for (slot,) in rows]

    def vectors(self, embedder: str, slots: Sequence[int] | None = None) -> tuple[list[int], np.ndarray]:
        """Slots and their unit vectors (n, dims) float32 of one embedder; all of them when no slots are named."""
        from vaultllm.memory import embed

        if slots is None:
            rows = self.db.execute("SELECT passage, vector FROM vectors WHERE embedder = ? ORDER BY passage", (embedder,)).fetchall()
        else:
            rows = list(self.among("SELECT passage, vector FROM vectors WHERE embedder = ? AND passage IN ({})", slots, embedder))
        return [slot for slot, _ in rows], embed.unpack([vector for _, vector in rows], scan.precision_of(embedder))

    def nonzero_vectors(self, embedder: str) -> int:
        """How many passages have a vector of this embedder that says anything (a zero vector has no direction)."""
        # Two counts that indexes answer: to look at each vector would read a gigabyte in a large vault, at every saved note.
        query = "SELECT count(*) FROM vectors WHERE embedder = ? AND vector = zeroblob(length(vector))"
        (empty,) = self.db.execute(query, (embedder,)).fetchone()
        return self.embedded(embedder) - int(empty)
