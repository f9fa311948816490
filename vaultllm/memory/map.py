"""A picture of the memory: every scene as a point of one HTML file, near to those that say alike.

The file opens without a network, and what notes say reaches it as data only. The page is `map.html`, the places are found
by `layout.py`. Knows nothing about where the file should lie, nor how a browser is opened.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, Literal

import numpy as np

from vaultllm import files, imports, text
from vaultllm.errors import DataError, OwnedNoteError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.links import Resolver
from vaultllm.memory import layout
from vaultllm.memory.analyse import fingerprint_of
from vaultllm.schema import Progress, Report, silent

MOST_SCENES = 150_000  # of a larger vault, so many evenly spread scenes are drawn: a browser must hold them
NEIGHBOURS = 10  # of each scene in the graph
_MARK = "<!doctype html><!-- vaultllm memory map -->"  # how we know our own file
_FOLDERS = 10  # folders with a colour of their own
_BATCH = 10_000
_ALIKE = 6  # scenes that are named as saying most like one
_ANCHOR = 240  # letters of a scene's sentence
_OWN = re.compile(r"<(script|style)>(.*?)</\1>", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A scene as it is drawn."""

    slot: int
    path: str
    title: str
    heading: str
    anchor: str
    field: tuple[str, ...]
    lines: tuple[int, int]
    at: str


def build(
    ledger: Ledger,
    path: Path,
    *,
    vault: Path | None = None,
    colour: Literal["folder", "time"] = "folder",
    seed: int = 0,
    progress: Report = silent,
) -> dict[str, Any]:
    """Write the map of all scenes to `path`, one private file (0600) that loads nothing else. The same ledger, the same bytes.

    `vault`: its folder, for the links that open a note in Obsidian; without it there are none. `colour`: what the colours
    mean when it is opened (the page can change it). Returns path, scenes, left_out (of too large a vault), without_vector,
    notes, links (between notes), bytes.
    Raises DataError when there is nothing to draw, OwnedNoteError when another's file lies there, VaultError when it cannot be written.
    """
    _refuse_foreign(path)
    progress(Progress("reading the scenes", 0.0))
    scenes, left_out = _scenes(ledger)
    if not scenes:
        raise DataError("there are no scenes to draw; run: vaultllm ingest")
    vectors = _scene_vectors(ledger, [scene.slot for scene in scenes], progress)
    known = np.flatnonzero(vectors.any(axis=1))
    if not len(known):
        raise DataError("the scenes have no vectors yet; run: vaultllm ingest")
    near = layout.neighbours(vectors[known], min(NEIGHBOURS, len(known) - 1), seed=seed, progress=progress)
    places = _around(layout.places(vectors[known], near, seed=seed, progress=progress), known, scenes, seed)
    notes = list(dict.fromkeys(scene.path for scene in scenes))
    links = _links(ledger, scenes, notes)
    page = _page(
        {
            "about": {"name": vault.name if vault else "", "vault": str(vault) if vault else "", "colour": colour, "left_out": left_out},
            "notes": notes,
            "outside": _outside(notes),
            **_columns(scenes, notes),
            "x": places[:, 0].tolist(),
            "y": places[:, 1].tolist(),
            "near": _near(near, known, len(scenes)),
            "links": [number for link in links for number in link],
            "labels": layout.labels(places, [scene.path for scene in scenes], [_words(scene) for scene in scenes], seed=seed),
        }
    )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, page)
    except OSError as error:
        raise VaultError(f"the map cannot be written ({error.strerror}); name another file with --out", path=str(path)) from error
    progress(Progress("drawing the map", 1.0))
    return {
        "path": str(path),
        "scenes": len(scenes),
        "left_out": left_out,
        "without_vector": len(scenes) - len(known),
        "notes": len(notes),
        "links": len(links),
        "bytes": len(page),
    }


def lines(report: dict[str, Any]) -> list[str]:
    """What `build` made, for a terminal."""
    said = [f"{report['path']}: {report['scenes']:,} scenes of {report['notes']:,} notes, {report['links']:,} links between notes"]
    if report["left_out"]:
        said.append(f"{report['left_out']:,} scenes are left out: a browser could not hold them all")
    if report["without_vector"]:
        said.append(f"{report['without_vector']:,} scenes have no vector; they stand beside their note, or at the edge")
    return said


def _refuse_foreign(path: Path) -> None:
    """What lies at `path` is ours, or nothing does."""
    if path.is_dir():
        raise VaultError("is a folder; name a file with --out", path=str(path))
    try:
        with open(path, "rb") as file:
            ours = file.read(len(_MARK)) == _MARK.encode()
    except FileNotFoundError:
        return
    except OSError as error:
        raise VaultError(f"cannot be read ({error.strerror}); name another file with --out", path=str(path)) from error
    if not ours:
        raise OwnedNoteError("this file is there already and is no map of ours; name another with --out", path=str(path))


# -- what is drawn


def _scenes(ledger: Ledger) -> tuple[list[_Drawn], int]:
    """Scenes in the order of notes and lines, at most `MOST_SCENES` of them; how many are left out."""
    # Only what is drawn is taken out of the records: reading them whole takes thirteen times as long.
    taken = "'$.title', '$.headings', '$.anchor', '$.field', '$.source.lines'"
    (count,) = ledger.db.execute("SELECT count(*) FROM scenes").fetchone()
    step = -(-count // MOST_SCENES) if count > MOST_SCENES else 1
    found: list[_Drawn] = []
    rows = ledger.db.execute(
        f"SELECT s.slot, n.path, s.at, json_extract(s.record, {taken}) FROM scenes s"
        " JOIN notes n ON n.id = s.note ORDER BY n.path, s.ordinal"
    )
    for number, (slot, path, at, record) in enumerate(rows):
        if number % step == 0:
            title, headings, anchor, field, span = json.loads(record)
            heading = headings[-1] if headings and headings[-1] != title else ""
            found.append(_Drawn(slot, path, title, heading, anchor[:_ANCHOR], tuple(field), (span[0], span[1]), at))
    return found, max(0, count - len(found))


def _scene_vectors(ledger: Ledger, slots: Sequence[int], progress: Report) -> np.ndarray:
    """(scenes, dims) float32, unit rows: the mean of a scene's passages; a zero row where none says anything."""
    fingerprint = fingerprint_of(ledger)
    row_of = {slot: row for row, slot in enumerate(slots)}
    scene_of = dict(ledger.db.execute("SELECT slot, scene FROM passages"))
    passages = sorted(slot for slot, scene in scene_of.items() if scene in row_of)
    sums = np.zeros((len(slots), 0), dtype=np.float32)
    for start in range(0, len(passages), _BATCH):
        known, vectors = ledger.vectors(fingerprint, passages[start : start + _BATCH])
        if not known:
            continue
        if not sums.shape[1]:
            sums = np.zeros((len(slots), vectors.shape[1]), dtype=np.float32)
        np.add.at(sums, [row_of[scene_of[slot]] for slot in known], vectors)
        progress(Progress("reading the vectors", min(1.0, (start + _BATCH) / len(passages))))
    return layout.unit(sums)


def _links(ledger: Ledger, scenes: Sequence[_Drawn], notes: Sequence[str]) -> list[tuple[int, int]]:
    """(scene, note it links to), both by their place in the page's lists; a note's links to itself are left out."""
    place = {scene.slot: index for index, scene in enumerate(scenes)}
    number = {path: index for index, path in enumerate(notes)}
    resolver = Resolver(path for (path,) in ledger.db.execute("SELECT path FROM notes ORDER BY path"))
    meant: dict[tuple[str, str], int | None] = {}
    found: dict[tuple[int, int], None] = {}
    for slot, target, written in ledger.db.execute("SELECT scene, target, written FROM links ORDER BY scene, rowid"):
        if (scene := place.get(slot)) is None:
            continue
        source, name = scenes[scene].path, written or target
        if (name, source) not in meant:
            meant[name, source] = number.get(resolver.resolve(name, source) or "")
        note = meant[name, source]
        if note is not None and notes[note] != source:
            found[scene, note] = None
    return list(found)


def _outside(notes: Sequence[str]) -> list[int]:
    """The notes that are imported copies and no files of the vault: Obsidian cannot open them."""
    return [index for index, path in enumerate(notes) if imports.is_stored(path)]


def _near(near: np.ndarray, known: np.ndarray, count: int) -> list[list[int]]:
    """For each scene those that say most like it; none for one of which nothing is known."""
    found: list[list[int]] = [[] for _ in range(count)]
    for index, others in zip(known.tolist(), known[near[:, :_ALIKE]].tolist(), strict=True):
        found[index] = others
    return found


def _columns(scenes: Sequence[_Drawn], notes: Sequence[str]) -> dict[str, Any]:
    """The scenes, field by field; names that many share are told once, and by their number afterwards."""
    number = {path: index for index, path in enumerate(notes)}
    titles = {title: index for index, title in enumerate(dict.fromkeys(scene.title for scene in scenes))}
    names, folder_of = folders([scene.path for scene in scenes])
    return {
        "titles": list(titles),
        "folders": names,
        "note": [number[scene.path] for scene in scenes],
        "title": [titles[scene.title] for scene in scenes],
        "heading": [scene.heading for scene in scenes],
        "first": [scene.lines[0] for scene in scenes],
        "last": [scene.lines[1] for scene in scenes],
        "day": [_day(scene.at) for scene in scenes],
        "folder": folder_of,
        "anchor": [scene.anchor for scene in scenes],
        "field": ["\n".join(scene.field) for scene in scenes],
    }


def _day(at: str) -> int | None:
    """Days since 1970 of an ISO time, as it stands there; None when it is unknown."""
    try:
        return date.fromisoformat(at[:10]).toordinal() - date(1970, 1, 1).toordinal()
    except ValueError:
        return None


def folders(paths: Sequence[str]) -> tuple[list[str], list[int]]:
    """Names of at most ten folders, the fullest first (then `…` for all others), and for each path the number of its own.

    The fullest folder is told apart by its subfolders as long as that leaves no more than ten; `/` is the vault's top.
    """
    parts = [tuple(path.split("/")[:-1]) for path in paths]
    groups: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for index, part in enumerate(parts):
        groups[part[:1]].append(index)
    while divided := _divided(parts, groups):
        name, below = divided
        del groups[name]
        groups.update(below)
    order = sorted(groups, key=lambda name: (-len(groups[name]), name))
    number = {index: min(place, _FOLDERS) for place, name in enumerate(order) for index in groups[name]}
    names = ["/".join(name) or "/" for name in order[:_FOLDERS]] + (["…"] if len(order) > _FOLDERS else [])
    return names, [number[index] for index in range(len(paths))]


_Groups = dict[tuple[str, ...], list[int]]


def _divided(parts: Sequence[tuple[str, ...]], groups: _Groups) -> tuple[tuple[str, ...], _Groups] | None:
    """The fullest folder (of a fifth of all, at least) that can be told apart, and what it falls into; None when none can."""
    for name in sorted(groups, key=lambda name: (-len(groups[name]), name)):
        if 5 * len(groups[name]) < len(parts):
            return None
        below: _Groups = defaultdict(list)
        for index in groups[name]:
            below[parts[index][: len(name) + 1]].append(index)
        if list(below) != [name] and len(groups) - 1 + len(below) <= _FOLDERS:
            return name, below
    return None


def _words(scene: _Drawn) -> tuple[str, ...]:
    """What may name a scene's region: its keywords and the longer words of its title."""
    return (*scene.field, *(word for word in text.words(scene.title) if len(word) > 3 and word.isalpha()))


def _around(placed: np.ndarray, known: np.ndarray, scenes: Sequence[_Drawn], seed: int) -> np.ndarray:
    """(n, 2) places of all scenes: those of which nothing is known stand beside their note's others, else at the lower edge."""
    rng = np.random.default_rng(seed)
    places = np.full((len(scenes), 2), -1, dtype=np.int64)
    places[known] = placed
    of_note: dict[str, list[int]] = defaultdict(list)
    for index in known.tolist():
        of_note[scenes[index].path].append(index)
    for index in np.flatnonzero(places[:, 0] < 0).tolist():
        mates = of_note.get(scenes[index].path)
        spot = places[mates].mean(axis=0) if mates else np.array([layout.SIDE * rng.random(), layout.SIDE])
        places[index] = np.clip(np.round(spot + rng.normal(0, layout.SIDE / 200, 2)), 0, layout.SIDE)
    return places.astype(np.int32)


# -- the page


def _page(data: dict[str, Any]) -> bytes:
    """The whole file. Its policy names its own script and style by hash: nothing else runs in it, whatever a note says."""
    template = Path(__file__).with_name("map.html").read_text(encoding="utf-8")
    hashes = defaultdict(list)
    for tag, content in _OWN.findall(template):
        hashes[tag].append(f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'")
    own = f"style-src {' '.join(hashes['style'])}; script-src {' '.join(hashes['script'])}"
    policy = f"default-src 'none'; {own}; base-uri 'none'; form-action 'none'"
    page = template.replace("{{policy}}", policy, 1).replace("{{data}}", _inert(data), 1)
    return page.encode("utf-8", "replace")  # a name that is no text (a lone surrogate) is drawn as `?`


def _inert(data: dict[str, Any]) -> str:
    """JSON that ends no element, opens no comment, and breaks no line of a script."""
    written = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        written = written.replace(letter, f"\\u{ord(letter):04x}")
    return written
