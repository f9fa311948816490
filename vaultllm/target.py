"""What a `forget` is about: which notes, scenes and messages hold it, by what it is known later, what it says that nothing else says.

Reads the ledger, the datasets, the stored talks and the notes themselves; writes nothing (`forget.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultllm import forgotten, imports, workers
from vaultllm.config import Workspace
from vaultllm.errors import DataError, VaultllmError
from vaultllm.forgotten import Forgotten, Kind, mark
from vaultllm.ledger import Ledger
from vaultllm.reading import Reading
from vaultllm.schema import Conversation
from vaultllm.text import decode, encodable, nfc
from vaultllm.traces import Needles, fragments

_OWN = 64  # characters of a scene: a shorter one may be said by chance, so a renamed note's is not known again by what it says
_BATCH = 2**23  # bytes of scenes that are looked through at once


@dataclass(frozen=True, slots=True)
class Target:
    """What is to be forgotten."""

    kind: Kind
    """What was named."""
    named: str
    """The mark of its name."""
    marks: frozenset[str]
    """Fingerprints by which it is known from now on."""
    paths: frozenset[str]
    """Notes and stored talks that go as a whole."""
    touched: frozenset[str]
    """Notes and stored talks that hold any of it, these included: they are read again, without it."""
    scenes: frozenset[str]
    """Ids of the scenes that hold any of it."""
    wanted: frozenset[str]
    """Fragments of its text that nothing else says (`traces.fragments`)."""
    elsewhere: tuple[str, ...]
    """Notes that stay and say some of the same."""
    texts: tuple[str, ...] = ()
    """What it says, as it stands in notes, scenes, examples and talks; in memory alone."""

    def owns(self, text: str) -> bool:
        """Whether all of a text is its own: it has a line or sentence that is long enough to be looked for, and nothing else says any."""
        parts = fragments(text)
        return bool(parts) and parts <= self.wanted


def find(workspace: Workspace, ledger: Ledger, what: str, known: Forgotten) -> Target:
    """The note (vault-relative path), scene (id), message (UID) or conversation (id) that is called so.

    What was forgotten already is found again, as far as it still stands somewhere: a `forget` that was killed goes on with it.
    Raises DataError when nothing is called so, neither here nor among what was forgotten.
    """
    kind, named = _named(workspace, ledger, what, known)
    paths = frozenset(named) if kind in ("note", "talk") else frozenset()
    again = [entry.marks for entry in known.entries if entry.named in names_of(what)]
    touched = set(named)
    if again and not paths:
        touched |= {path for path, problem in ledger.problems() if problem.code == forgotten.CODE}
    found = _Found(ledger, dict(_read_now(workspace, sorted(touched))))
    marks = set(names_of(what, kind)).union(*again)
    if paths:
        marks |= _marks_of_notes(workspace, ledger, paths, found)
    elif kind == "scene":
        marks |= _marks_of_scene(ledger, found, touched, what)
    touched |= _holders(ledger, marks)
    records = [record for path in sorted(touched) for record in found.records(path)]
    scenes = {record["id"] for record in records if record["source"]["path"] in paths or is_in(record, marks)}
    texts = [text for record in records for text in _texts(record, marks, record["source"]["path"] in paths)]
    for path in sorted(paths):
        texts += _whole_text(workspace, path)
    for _, example in examples(workspace, paths):
        scenes.update(example["scenes"])
        texts += [message["text"] for message in example["messages"]]
    staying: list[str] = []
    for path, talk in stored(workspace):
        left = Forgotten.known_by(marks).without(talk, whole=path in paths)
        staying += [turn.text for turn in left.turns]
        if left is not talk:
            touched.add(path)
            kept = set(map(id, left.turns))
            texts += [turn.text for turn in talk.turns if id(turn) not in kept]
    wanted = Needles(part for text in texts for part in fragments(text))
    rows = ledger.db.execute("SELECT path, conversation, uids FROM talks").fetchall()
    ids = [name for path, conversation, uids in rows if path not in paths for name in (conversation, *json.loads(uids))]
    names = [*staying, *ids, *ledger.known(), *(path for path, _ in ledger.problems()), *paths, str(workspace.vault)]
    names += _links(ledger, paths)
    said = wanted.within("\n".join(names).encode("utf-8", "surrogatepass"))  # paths, ids and links are names, no text
    said |= _said(ledger, wanted, lambda path, record: path not in paths and (path not in touched or _left(record, marks)))
    elsewhere: set[str] = set()
    _said(ledger, Needles(said), lambda path, record: path not in touched, elsewhere)
    (name,) = names_of(what, kind)
    return Target(
        kind,
        name,
        frozenset(marks),
        paths,
        frozenset(touched),
        frozenset(scenes),
        wanted.fragments - said,
        tuple(sorted(elsewhere)),
        tuple(dict.fromkeys(texts)),
    )


def _links(ledger: Ledger, paths: Collection[str]) -> list[str]:
    """How our answers lead to notes that stay: a note in which we answered holds such links too."""
    cited = [source for (record,) in ledger.db.execute("SELECT record FROM answers") for source in json.loads(record).get("sources", ())]
    return sorted({source["link"] for source in cited if source["path"] not in paths})


def _named(workspace: Workspace, ledger: Ledger, what: str, known: Forgotten) -> tuple[Kind, list[str]]:
    """What kind of thing is called so, and the notes that it is or stands in."""
    if what != encodable(what):
        raise DataError("the name is not UTF-8, so nothing of it was ever read; rename the file", path=encodable(what))
    db = ledger.db
    inside = not Path(what).is_absolute() and ".." not in Path(what).parts
    if ledger.knows(what) or known.path(what) or (inside and (workspace.vault / what).is_file()):
        return "note", [what]
    rows = db.execute("SELECT DISTINCT n.path FROM scenes s JOIN notes n ON n.id = s.note WHERE s.id = ?", (what,)).fetchall()
    if rows or mark("scene", what) in known.marks:
        return "scene", [path for (path,) in rows]
    rows = db.execute(
        "SELECT DISTINCT n.path FROM passages p JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note WHERE p.uid = ?"
        " UNION SELECT t.path FROM talks t, json_each(t.uids) u WHERE u.value = ?",
        (what, what),
    ).fetchall()
    if what and (rows or mark("message", what) in known.marks):
        return "message", [path for (path,) in rows]
    rows = db.execute("SELECT DISTINCT path FROM talks WHERE conversation = ?", (what,)).fetchall()
    if rows or mark("talk", what) in known.marks:
        return "talk", [path for (path,) in rows]
    if next(examples(workspace, {what}), None) is not None:  # a note that is gone, and was learnt
        return "note", [what]
    raise DataError(
        "nothing is called so: name a note by its path in the vault, a scene by its id (vaultllm scenes PATH), or a message by its UID",
        path=what,
    )


def names_of(what: str, kind: Kind | None = None) -> frozenset[str]:
    """The marks of what is called so, of this kind or of any."""
    every: tuple[tuple[Kind, str], ...] = (
        ("note", mark("path", what)),
        ("scene", mark("scene", what)),
        ("message", mark("message", what)),
        ("talk", mark("talk", what)),
    )
    return frozenset(name for one, name in every if kind in (None, one))


class _Found:
    """Scenes of notes, as the ledger holds them and as they are read now; both may differ, and both are to go."""

    def __init__(self, ledger: Ledger, readings: Mapping[str, Reading]) -> None:
        self.ledger, self.readings = ledger, readings

    def records(self, path: str) -> Iterator[dict[str, Any]]:
        """The scenes of a note, as JSON."""
        query = "SELECT s.record FROM scenes s JOIN notes n ON n.id = s.note WHERE n.path = ? ORDER BY s.ordinal"
        for (record,) in self.ledger.db.execute(query, (path,)):
            yield json.loads(record)
        for scene in self.readings[path].scenes if path in self.readings else ():
            yield json.loads(scene.record)


def _read_now(workspace: Workspace, paths: Sequence[str]) -> Iterator[tuple[str, Reading]]:
    """The notes as they are now, forgotten or not, read as an ingest reads them; one that cannot be read is left out."""
    tasks = []
    for path in paths:
        with contextlib.suppress(VaultllmError):
            tasks.append(workers.Task(path, path, imports.read_known(workspace, path)))
    if not tasks:
        return
    context = workers.Context(workspace.settings, imports.root_of(workspace.state))
    with contextlib.closing(workers.read_all(tasks, lambda: context, workers.count(len(tasks)))) as results:
        for task, result in results:
            if isinstance(result, Reading):
                yield task.key, result


def _marks_of_notes(workspace: Workspace, ledger: Ledger, paths: Collection[str], found: _Found) -> set[str]:
    """By what whole notes are known: paths; and, unless another note has it too, bytes, conversations, messages, what scenes say.

    So a note that is renamed stays forgotten, and to forget one of two copies forgets neither the other nor its talk.
    """
    marks = {mark("path", path) for path in paths}
    others = [path for path in ledger.known() if path not in paths]
    in_vault = {path for path in others if not imports.is_stored(path)}
    digests = {known.sha256 for path, known in ledger.known().items() if path not in paths}
    rows = ledger.db.execute("SELECT n.path, s.sha FROM scenes s JOIN notes n ON n.id = s.note")
    also_said = {said for path, said in rows if path not in paths}
    talks: set[str] = set()
    uids: set[str] = set()
    kept_talks: set[str] = set()
    kept_uids: set[str] = set()
    for path, conversation, held in ledger.db.execute("SELECT path, conversation, uids FROM talks"):
        if path in paths:
            talks.add(conversation)
            uids.update(json.loads(held))
        elif path in in_vault:
            kept_talks.add(conversation)
            kept_uids.update(json.loads(held))
    for path in paths:
        with contextlib.suppress(VaultllmError):
            digest = hashlib.sha256(imports.read_known(workspace, path)).hexdigest()
            marks |= set() if digest in digests else {mark("bytes", digest)}
        for talk in found.readings[path].talks if path in found.readings else ():
            talks.add(talk.conversation)
            uids.update(talk.uids)
        for record in found.records(path):
            said = sum(len(turn["text"]) for turn in record["turns"])
            if said >= _OWN and record["sha"] not in also_said:
                marks.add(mark("said", record["sha"]))
    marks |= {mark("talk", talk) for talk in talks - kept_talks if talk and not talk.startswith(imports.BY_UID)}
    return marks | {mark("message", uid) for uid in uids - kept_uids if uid}


def _marks_of_scene(ledger: Ledger, found: _Found, paths: Iterable[str], identity: str) -> set[str]:
    """By what a scene is known: its id and what it says; a talk whose messages all have a UID by these, however it is cut later."""
    marks: set[str] = set()
    for record in (record for path in paths for record in found.records(path) if record["id"] == identity):
        turns = record["turns"]
        others = ledger.db.execute("SELECT 1 FROM scenes WHERE sha = ? AND id != ?", (record["sha"], identity)).fetchone()
        if sum(len(turn["text"]) for turn in turns) >= _OWN and others is None:
            marks.add(mark("said", record["sha"]))
        if record["kind"] == "dialogue" and all(turn["uid"] for turn in turns):
            marks |= {mark("message", turn["uid"]) for turn in turns}
    return marks


def is_in(record: Mapping[str, Any], marks: Collection[str]) -> bool:
    """Whether any of a scene is forgotten by these marks."""
    if mark("scene", record["id"]) in marks or mark("said", record["sha"]) in marks:
        return True
    return any(turn["uid"] and mark("message", turn["uid"]) in marks for turn in record["turns"])


def _texts(record: Mapping[str, Any], marks: Collection[str], whole: bool) -> list[str]:
    """What is forgotten of a scene: all of it, or the turns that are named."""
    whole = whole or mark("scene", record["id"]) in marks or mark("said", record["sha"]) in marks
    return [turn["text"] for turn in record["turns"] if whole or (turn["uid"] and mark("message", turn["uid"]) in marks)]


def _whole_text(workspace: Workspace, path: str) -> list[str]:
    """A note as it stands in the vault, properties and secrets too; nothing when it is gone or cannot be read."""
    if imports.is_stored(path):
        return []
    try:
        return [decode(imports.read_known(workspace, path), workspace.settings.scan.encoding).text]
    except VaultllmError:
        return []


def _holders(ledger: Ledger, marks: Collection[str]) -> set[str]:
    """Notes that hold a message or a scene of these marks, wherever they are."""
    found: set[str] = set()
    if any(one.startswith("message ") for one in marks):
        for path, uids in ledger.db.execute("SELECT path, uids FROM talks"):
            if any(mark("message", uid) in marks for uid in json.loads(uids)):
                found.add(path)
    for path, identity, said in ledger.db.execute("SELECT n.path, s.id, s.sha FROM scenes s JOIN notes n ON n.id = s.note"):
        if mark("scene", identity) in marks or mark("said", said) in marks:
            found.add(path)
    return found


def stored(workspace: Workspace) -> Iterator[tuple[str, Conversation]]:
    """(path, conversation) of every stored talk that is whole."""
    root = imports.root_of(workspace.state)
    for file in imports.scan(root).files:
        with contextlib.suppress(VaultllmError, ValueError):
            yield file.path, imports.load(imports.read(root, file.path))


def folders(root: Path) -> list[Path]:
    """The folders in a folder; none when it is not there."""
    return sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []


def examples(workspace: Workspace, paths: Collection[str]) -> Iterator[tuple[Path, dict[str, Any]]]:
    """(file of a dataset, example) of the examples made of these notes."""
    same = {nfc(path) for path in paths}
    for file in (file for folder in folders(workspace.datasets) if same for file in sorted(folder.glob("*.jsonl"))):
        with file.open("rb") as lines:
            for line in lines:
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    example = json.loads(line.decode("utf-8", "surrogatepass"))
                    if nfc(example["path"]) in same:
                        yield file, example


def _said(ledger: Ledger, wanted: Needles, stays: Callable[[str, str], bool | str], where: set[str] | None = None) -> set[str]:
    """The fragments that scenes say which stay; `stays(path, record)` is what of a scene does: all (True), none, or this text.

    `where` takes the paths of the notes that say any.
    """
    said: set[str] = set()
    batch: list[tuple[str, bytes]] = []
    size = 0

    def look() -> None:
        found = wanted.within(b"\n".join(data for _, data in batch))
        said.update(found)
        if found and where is not None:
            where.update(path for path, data in batch if path not in where and wanted.within(data))
        batch.clear()

    rows = ledger.db.execute("SELECT n.path, s.record FROM scenes s JOIN notes n ON n.id = s.note") if wanted.fragments else ()
    for path, record in rows:
        left = stays(path, record)
        if left:
            data = (record if left is True else left).encode("utf-8", "surrogatepass")
            batch.append((path, data))
            size += len(data)
            if size > _BATCH:
                look()
                size = 0
    look()
    return said


def _left(record: str, marks: Collection[str]) -> str:
    """What of a scene stays, as JSON: its other turns, its headings; empty when it goes."""
    scene = json.loads(record)
    if mark("scene", scene["id"]) in marks or mark("said", scene["sha"]) in marks:
        return ""
    turns = [turn["text"] for turn in scene["turns"] if not (turn["uid"] and mark("message", turn["uid"]) in marks)]
    return json.dumps([*scene["headings"], *turns], ensure_ascii=False) if turns else ""
