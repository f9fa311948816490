"""Histories of a vault: what its owner does (`owner.py`) with our own work between and in the midst of it.

After each step every file is as its last writer left it (R3); whatever was looked at in whatever order, the state is the one that a
ledger made from nothing has (R5, R6). A seed does the same again. Notes are read in this process, and nobody embeds: knows nothing
about children, vectors and models.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

from vaultllm import (
    answer,
    canonical,
    config,
    conversing,
    forget,
    forgotten,
    importing,
    ingest,
    reading,
    remember,
    render,
    vault,
    workers,
)
from vaultllm.errors import VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.schema import Problem, silent
from vaultllm.selftest import Finding, Size
from vaultllm.selftest.alike import difference, take_along
from vaultllm.selftest.owner import THINGS, BrokenError, World

SIZES: dict[Size, tuple[int, int]] = {"quick": (8, 40), "soak": (3_000, 80)}  # histories, steps of each
_UID = re.compile(r"(?m)^> (.*)\n<!-- UID: (u\d+-\d+) -->")


# -- what must hold


def check(world: World) -> None:
    """R5, R6: what was not looked at yet is, by its events or by a scan; then the state is that of a ledger made from nothing."""
    world.counts["comparisons"] += 1
    if world.lost or world.rng.random() < 0.5:
        scan(world, meddled=False)
    else:
        named(world, lossy=False, meddled=False)
    have, want = _dump(world, world.workspace, world.ledger), rebuilt(world)
    if have != want:
        raise BrokenError(f"R6: {difference(have, want)}")
    twice = ingest.ingest(world.workspace, world.ledger)
    if twice.parsed or twice.removed or _dump(world, world.workspace, world.ledger) != have:
        raise BrokenError(f"R5: a second ingest did something: {twice}")


def rebuilt(world: World) -> dict[str, Any]:
    """The canonical state of a ledger made from nothing: of the vault, of what was imported, and of what was forgotten."""
    state = world.work / "rebuilt"
    take_along(world.workspace.state, state)
    workspace = config.Workspace(world.workspace.vault, state, world.workspace.settings)
    with contextlib.closing(Ledger(workspace.ledger)) as ledger:
        ingest.ingest(workspace, ledger)
        return _dump(world, workspace, ledger)


def _dump(world: World, workspace: config.Workspace, ledger: Ledger) -> dict[str, Any]:
    """The canonical state but for vectors; and but for notes in the cloud: what is known of them stays, and cannot be made anew."""
    found = canonical.dump(workspace, ledger)
    kept: dict[str, Any] = {}
    for kind in found.keys() - {"without_vector", "strays", "waiting"}:
        rows = found[kind]
        if isinstance(rows, dict):
            kept[kind] = {path: value for path, value in rows.items() if path.removesuffix(".yaml") not in world.offline}
        else:
            kept[kind] = [row for row in rows if row[0] not in world.offline]
    return kept


# -- what we do


@contextlib.contextmanager
def before(owner: Any, name: str, act: Callable[..., None], nth: int = 0, *, after: bool = False) -> Iterator[None]:
    """The owner acts right before (or after) we call `owner.name` for the nth time, from 0; `act` is given what it is called with."""
    right, left = getattr(owner, name), [nth]

    def called(*given: Any, **more: Any) -> Any:
        left[0] -= 1
        if left[0] == -1 and not after:
            act(*given)
        result = right(*given, **more)
        if left[0] == -1 and after:
            act(*given)
        return result

    with mock.patch.object(owner, name, called):
        yield


def scan(world: World, *, meddled: bool = True) -> None:
    """An ingest of all, at times of every note anew; at times the owner saves something while we read."""
    world.dirty.clear()
    world.lost = False
    with _meddled(world, meddled):
        ingest.ingest(world.workspace, world.ledger, full=world.rng.random() < 0.1)


def named(world: World, *, lossy: bool = True, meddled: bool = True) -> None:
    """Ingests of what events named: some lost, some twice, in any order, in batches of any size."""
    paths, world.dirty = world.dirty, []
    heard = [path for path in paths if not (lossy and world.rng.random() < 0.2)]
    world.lost = world.lost or len(heard) < len(paths)
    heard += [path for path in heard if world.rng.random() < 0.2]
    world.rng.shuffle(heard)
    while heard:
        size = world.rng.randint(1, 6)
        batch, heard = heard[:size], heard[size:]
        with _meddled(world, meddled):
            ingest.ingest(world.workspace, world.ledger, only=batch)


def _meddled(world: World, wanted: bool) -> contextlib.AbstractContextManager[None]:
    """The owner saves something right before or after we read a note: this one or another."""
    if not wanted or world.rng.random() < 0.5:
        return contextlib.nullcontext()
    same = world.rng.random() < 0.7
    act = lambda _, path, *__: world.meddle(path if same else "")  # noqa: E731 - one line of it
    return before(vault, "read", act, world.rng.randrange(3), after=world.rng.random() < 0.5)


def ask(world: World) -> None:
    """An answer as a note; at times another program takes its name the moment before."""
    found = answer.ask(world.workspace, world.ledger, _question(world), progress=silent)

    def taken(*_: Any) -> None:
        name = vault.note_name(render.answer_note(found, "x")[0])
        path = f"vaultllm/Answers/{name}.md"
        if path not in world.files:
            world.save(path, b"mine\n")

    with before(os, "link", taken if world.rng.random() < 0.5 else lambda *_: None):
        path = answer.write(world.workspace, world.ledger, found)
    if path in world.files:
        raise BrokenError(f"R3: an answer replaced {path}")
    if b"vaultllm_rating:" not in (world.root / path).read_bytes():
        raise BrokenError(f"R3: the answer is not whole: {path}")
    world.take(path)
    world.counts["answers"] += 1


def reply(world: World) -> None:
    """An answer into an open talk; at times the owner saves the note after it was read, or between our last look and our write."""
    open_ = [path for path in world.notes() if _is_open(world.files[path][0])] or world.notes()
    if not open_:
        return
    path = world.rng.choice(open_)

    @contextlib.contextmanager
    def lock() -> Iterator[None]:
        if moments and moments.pop() < 0.3:
            world.meddle(path)
        yield

    moment = world.rng.random()
    moments, settings = [moment], world.workspace.settings
    soon = {"answers": settings.answers.model_copy(update={"wait": 0.01}), "watch": settings.watch.model_copy(update={"settle": 0.01})}
    workspace = replace(world.workspace, settings=settings.model_copy(update=soon))
    late = before(os, "write", lambda *_: world.meddle(path)) if 0.3 <= moment < 0.6 else contextlib.nullcontext()
    try:
        with late:
            found = conversing.reply(workspace, world.ledger, path, progress=silent, lock=lock)
    except VaultllmError:
        world.counts["refused"] += 1
        return
    there, now = world.files.get(path, (b"", 0))[0], (world.root / path).read_bytes()
    if not now.startswith(there) or (len(now) == len(there) and not found.stopped):
        raise BrokenError(f"R3: a reply changed what stood in {path}: {there!r} became {now!r}")
    world.take(path)
    world.counts["refused" if found.stopped else "replies"] += 1


def _is_open(data: bytes) -> bool:
    return data.rstrip().endswith("Почему?".encode()) or data.rfind(b"[!nexus_user]") > data.rfind(b"[!nexus_agent]")


def forget_one(world: World) -> None:
    """A note or a scene is forgotten, or read again."""
    entries = forgotten.load(world.workspace.state).entries
    known = sorted(path for path in world.ledger.known() if path in world.files)
    if not known:
        return
    path = world.rng.choice(known)
    if entries and world.rng.random() < 0.7:
        with contextlib.suppress(VaultllmError):  # another one than was forgotten
            forget.undo(world.workspace, world.ledger, path)
            world.lost = True
        return
    scenes = [scene.id for scene in world.ledger.scenes(path)]
    what = world.rng.choice(scenes) if scenes and world.rng.random() < 0.3 else path

    def unembedded(ledger: Ledger, *_: Any, **__: Any) -> None:
        with ledger.transaction():
            ledger.index.purge()

    with mock.patch.object(remember, "rebuild", unembedded):
        try:
            forget.forget(world.workspace, world.ledger, what)
        except VaultllmError as error:  # a copy of it was saved since the last ingest
            if error.code != "E-FORGET":
                raise
            forget.forget(world.workspace, world.ledger, what)


def mend(world: World) -> None:
    """A scene file is lost and written again; a talk's export mends the note that holds it."""
    for path in world.ledger.notes_with_scenes()[:1]:
        ingest.scene_file(world.workspace, path).unlink(missing_ok=True)
        ingest.write_scenes(world.workspace, world.ledger, path)
    talks = [found for path in world.notes() if (found := _UID.findall(world.files[path][0].decode("utf-8", "replace")))]
    if talks:
        export = world.work / "conversations.json"
        export.write_text(json.dumps([_exported(world.rng.choice(talks))], ensure_ascii=False), encoding="utf-8")
        with contextlib.suppress(VaultllmError):  # a damaged note holds no talk any more
            importing.repair(world.workspace, [export])
            world.lost = True


def _exported(messages: list[tuple[str, str]]) -> dict[str, Any]:
    """A talk as ChatGPT exports it."""
    mapping: dict[str, Any] = {"root": {"id": "root", "message": None, "parent": None, "children": []}}
    above = "root"
    for place, (text, uid) in enumerate({uid: (text, uid) for text, uid in messages}.values()):
        role = "assistant" if place % 2 else "user"
        message = {
            "id": uid,
            "author": {"role": role},
            "content": {"content_type": "text", "parts": [f"{text}\n    и ещё"]},
            "create_time": 1.75e9,
        }
        mapping[uid] = {"id": uid, "message": message, "parent": above, "children": []}
        mapping[above]["children"].append(uid)
        above = uid
    return {"id": f"c-{messages[0][1]}", "title": "насос", "create_time": 1.75e9, "current_node": above, "mapping": mapping}


def _question(world: World) -> str:
    path = world.rng.choice(world.notes() or [""])
    words = re.findall(r"\w{4,}", world.files[path][0].decode("utf-8", "replace")) if path else []
    return " ".join(world.rng.sample(words, min(4, len(words)))) + "?"


OURS = (scan, scan, named, named, named, ask, reply, reply, forget_one, mend)
"""What we do."""


# -- histories


@contextlib.contextmanager
def reading_here() -> Iterator[None]:
    """Notes are read in this process, the same bytes once."""

    @functools.lru_cache(maxsize=4_096)
    def read(path: str, data: bytes) -> reading.Reading | Problem:
        return reading.read_note(path, data, plain[0].settings)

    plain: list[workers.Context] = []

    def read_all(tasks: Any, context: Callable[[], workers.Context], children: int) -> Iterator[tuple[Any, reading.Reading | Problem]]:
        said = context()
        alone = said.statistics is None and said.forgotten is None and not (said.exports and said.exports.exists())
        plain[:] = [said]
        for task in tasks:
            if alone:
                yield task, read(task.path, task.data)
            else:
                yield task, reading.read_note(task.path, task.data, said.settings, said.exports, said.statistics, said.forgotten)

    with mock.patch.object(workers, "read_all", read_all):
        yield


def live(world: World, steps: int) -> str:
    """One history; what was broken and when, or "". Every file is compared after each step, the state every ten or so."""
    trail: list[str] = []
    try:
        for _ in range(steps):
            act = world.rng.choice(THINGS if world.rng.random() < 0.6 else OURS)
            trail.append(act.__name__)
            world.counts["operations"] += 1
            act(world)
            world.check_files()
            if world.rng.random() < 0.1:
                trail.append("check")
                check(world)
        trail.append("check")
        check(world)
        world.check_files()
    except Exception as error:
        return f"after {' '.join(trail[-12:])} ({len(trail)} steps): {error!r}"
    return ""


def run(work: Path, size: Size, seed: int, told: Callable[[str], None]) -> Finding:
    """Live histories: quick 8 of 40 steps (about 4 CPU seconds), soak 3,000 of 80 (about an hour)."""
    began = time.perf_counter()
    histories, steps = SIZES[size]
    failures: list[str] = []
    sums: dict[str, int] = {}
    with reading_here():
        for number in range(histories):
            world = World(work / str(number), random.Random(f"{seed} {number}"))
            try:
                broken = live(world, steps)
            finally:
                world.close()
            failures += [f"history {number} of seed {seed}: {broken}"] if broken else []
            sums = {name: sums.get(name, 0) + count for name, count in world.counts.items()}
            shutil.rmtree(work / str(number))
            if number % 100 == 99:
                told(f"{number + 1} of {histories} histories, {len(failures)} broken")
    figures: dict[str, float | int | str] = {"steps_of_each": steps, **sums}
    return Finding("histories", ("R3", "R5", "R6"), histories, failures, time.perf_counter() - began, figures)
