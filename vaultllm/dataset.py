"""Scenes -> a dataset: what is learnt, what is held out, what is left out and why; frozen to files.

Pure apart from `write` and `read`. Every scene that comes in is either used or named in `dropped` with its reason; the same
scenes in any order give the same dataset id. Knows nothing about tokens or models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from vaultllm import examples, locks, splits, tasks
from vaultllm.config import TrainSettings
from vaultllm.errors import DataError
from vaultllm.examples import Dropped, Learnt
from vaultllm.files import write_whole
from vaultllm.schema import Example, Scene, from_dict, to_dict
from vaultllm.splits import SPLITS, Part, Split
from vaultllm.text import nfc, sha

SCHEMA = 2
"""Of a frozen dataset; 1 had neither tasks nor a test part, and is read too."""
ROOM = 20_000
"""Characters that every note or talk may give, however little the others hold: quotas are for large sources."""

_OURS = "our own answer: a model does not learn from itself"


@dataclass(frozen=True, slots=True)
class Dataset:
    """What one training sees."""

    id: str
    """Hash of the examples and their split."""
    examples: tuple[Example, ...]
    """By path, then by place in the note; the tasks of a scene behind it."""
    dropped: tuple[Dropped, ...]
    """What was left out, in the same order."""
    scenes: Mapping[str, str] = field(default_factory=dict)
    """Id -> sha of every scene whose text is in an example."""

    def split(self, name: Split) -> tuple[Example, ...]:
        """The examples of `train`, `val` or `test`."""
        return tuple(example for example in self.examples if example.split == name)

    def written(self, name: Split) -> tuple[Example, ...]:
        """The examples of a part without the tasks: each text of the vault once."""
        return tuple(example for example in self.split(name) if example.form != "task")

    def learnt(self) -> dict[str, str]:
        """Id -> sha of every scene that a training on it sees, as context too."""
        ids = {scene for example in self.examples if example.split == "train" for scene in example.scenes}
        return {scene: sha for scene, sha in self.scenes.items() if scene in ids}


def prepare(scenes: Iterable[Scene], settings: TrainSettings, *, ours: Collection[str] = ()) -> Dataset:
    """`build` as the settings say."""
    return build(
        scenes,
        val=settings.val,
        test=settings.test,
        newest=settings.newest,
        learn=settings.learn,
        tasks_share=settings.tasks,
        quota=settings.quota,
        ours=ours,
    )


def build(
    scenes: Iterable[Scene],
    *,
    val: float,
    test: float = 0.0,
    newest: float = 0.0,
    learn: Learnt = "assistant",
    tasks_share: float = 0.0,
    quota: float = 1.0,
    ours: Collection[str] = (),
) -> Dataset:
    """The dataset of these scenes, the shares `val`, `test` and `newest` of the notes held out (`splits.parts`).

    A talk learns the turns of `learn`; prose is learnt whole, under its title. A text that occurs twice, or nearly
    (`Scene.duplicate`), is used once: where it is held out, else in the first note by path, so that what is trained on
    repeats nothing that is held out. Scenes that may not be trained on, clipped pages and our own answers are left out;
    `ours` are the UIDs and fingerprints of replies that we appended to the user's own talks (`Ledger.ours`). Answers that a
    talk did not go on with are left out too; the last one of those to the question of an example's last message is its
    `rejected`. Answers whose code an importer damaged are context, not learnt.

    Of a note or talk that would be more than the share `quota` of what is learnt (and more than `ROOM`) a sample is
    learnt. `tasks_share` of what is learnt may be tasks (`tasks.py`), which only notes that are trained on have.
    """
    ordered = sorted(scenes, key=lambda scene: (nfc(scene.source.path), scene.source.path, scene.source.lines, scene.id, scene.sha))
    dropped: list[Dropped] = []
    allowed = list(_allowed(ordered, ours, dropped))
    times: dict[str, str] = {}
    for scene in allowed:
        note = nfc(scene.source.path)
        times[note] = max(times.get(note, ""), scene.at)
    parts = splits.parts(times, val=val, test=test, newest=newest)
    kept = _once(allowed, parts, dropped)

    by_id = {(scene.source.path, scene.id): scene for scene in kept}
    made: list[Example] = []
    for scene in kept:
        before = by_id.get((scene.source.path, scene.prev))
        example, lost = examples.dialogue(scene, before, learn) if scene.kind == "dialogue" else examples.prose(scene)
        dropped += lost
        if example is not None:
            made.append(example)
    split = splits.settled(parts, {nfc(example.path) for example in made})
    made = [replace(example, split=split[nfc(example.path)]) for example in made]
    made = _within(made, by_id, quota, dropped)
    made = _with_tasks(made, by_id, tasks_share, dropped)

    used = {part: by_id[example.path, part].sha for example in made for part in example.scenes}
    order = {(scene.id, scene.source.path): place for place, scene in enumerate(ordered)}
    dropped.sort(key=lambda one: (order[one.scene, one.path], one.whole, one.task, one.reason))
    return Dataset(sha(*(f"{example.id} {example.split}" for example in made)), tuple(made), tuple(dropped), used)


def _allowed(scenes: Iterable[Scene], ours: Collection[str], dropped: list[Dropped]) -> Iterable[Scene]:
    """The scenes that may be learnt, without our own replies."""
    for scene in scenes:
        reason = _refused(scene)
        if not reason and any(examples.is_ours(turn, ours) for turn in scene.turns):
            reason, scene = _OURS, replace(scene, turns=examples.without(scene.turns, ours))
            if scene.turns:  # what was said before and after may be learnt
                dropped.append(Dropped(scene.id, scene.source.path, reason, whole=False))
                reason = ""
        if reason:
            dropped.append(Dropped(scene.id, scene.source.path, reason))
        else:
            yield scene


def _refused(scene: Scene) -> str:
    """Why a scene may not be learnt; empty if it may."""
    if not scene.train:
        return scene.reason or "it may not be trained on"
    if scene.trust == "generated":
        return _OURS
    if scene.trust == "clipped":
        return "a clipped page: somebody else's words"
    return ""


def _once(scenes: Sequence[Scene], parts: Mapping[str, Part], dropped: list[Dropped]) -> list[Scene]:
    """Each text once, in the order given: of scenes that say the same, the one whose note is held out by its path first."""
    said: dict[str, Scene] = {}  # sha -> the scene that is used
    copies: dict[tuple[str, str], Scene] = {}  # the same message in two notes
    like: dict[str, Scene] = {}  # ids of scenes that are used, or are nearly the same as one
    named: dict[str, Scene] = {}  # of the latter alone: an id may stand for another message in another note
    kept: set[int] = set()
    for place, scene in sorted(enumerate(scenes), key=lambda one: (parts[nfc(one[1].source.path)].precedence, one[0])):
        message = (scene.id, scene.turns[0].text)
        if first := said.get(scene.sha):
            reason = f"the same text as scene {first.id} in {first.source.path}"
        elif first := copies.get(message):
            reason = f"another copy of scene {first.id} in {first.source.path}"
        elif first := like.get(scene.duplicate) or named.get(scene.id):
            reason = f"nearly the same as scene {first.id} in {first.source.path}"
        else:
            kept.add(place)
            said[scene.sha] = copies[message] = scene
            if scene.duplicate:
                like.setdefault(scene.duplicate, scene)
                named.setdefault(scene.duplicate, scene)
            like.setdefault(scene.id, scene)
            continue
        dropped.append(Dropped(scene.id, scene.source.path, reason))
    return [scene for place, scene in enumerate(scenes) if place in kept]


class _Source(NamedTuple):
    """A note, or one talk of a file that holds many."""

    path: str
    talk: str


def _within(made: Sequence[Example], by_id: Mapping[tuple[str, str], Scene], quota: float, dropped: list[Dropped]) -> list[Example]:
    """The examples without what is too much of one source; a hash decides what stays, the same as the vault grows."""
    sources: dict[_Source, list[Example]] = {}
    for example in made:
        if example.split == "train":
            title = by_id[example.path, example.scenes[-1]].title if example.form == "dialogue" else ""
            sources.setdefault(_Source(nfc(example.path), title), []).append(example)
    sizes = {source: sum(map(tasks.learnt_characters, group)) for source, group in sources.items()}
    most = max(ROOM, splits.largest(sizes.values(), quota)) if quota < 1.0 else float("inf")
    gone: set[str] = set()
    for source, group in sources.items():
        if sizes[source] <= most:
            continue
        room = most
        for example in sorted(group, key=_drawn):
            room -= tasks.learnt_characters(example)
            if room < 0:
                gone.add(example.id)
                reason = "beyond the share that one note or talk may have of what is learnt (train.quota)"
                dropped.append(Dropped(example.scenes[-1], example.path, reason))
    return [example for example in made if example.id not in gone]


def _drawn(example: Example) -> tuple[bool, str]:
    """Long ones come last: one that does not fit would else leave no room for the others."""
    return tasks.learnt_characters(example) > ROOM // 4, sha("quota", example.id)


def _with_tasks(made: Sequence[Example], by_id: Mapping[tuple[str, str], Scene], share: float, dropped: list[Dropped]) -> list[Example]:
    """The examples, and behind each that is trained on its tasks, so many that they are `share` of what is learnt."""
    if share <= 0.0:
        return list(made)
    learnt = [example for example in made if example.split == "train"]
    offered = [task for example in learnt for task in tasks.of(by_id[example.path, example.scenes[-1]])]
    room = share / (1.0 - share) * sum(map(tasks.learnt_characters, learnt))
    chosen, beyond = tasks.chosen(offered, room)
    reason = "a task beyond the share of tasks (train.tasks)"
    dropped += [Dropped(task.scenes[0], task.path, reason, whole=False, task=task.task) for task in beyond]
    behind: dict[tuple[str, str], list[Example]] = {}
    for task in chosen:
        behind.setdefault((task.path, task.scenes[0]), []).append(task)
    return [one for example in made for one in (example, *behind.pop((example.path, example.scenes[-1]), ()))]


def counts(dataset: Dataset) -> dict[str, int]:
    """What a person wants to know at a glance; `scenes` = `used` + `dropped_scenes`.

    Then examples, notes and learnt characters of each part; examples of each form (a scene is one example, tasks come on top);
    preference pairs; parts of scenes that were left out; tasks that were too many.
    """
    whole = sum(one.whole for one in dataset.dropped)
    used = sum(example.form != "task" for example in dataset.examples)
    found = {"scenes": used + whole, "used": used, "dropped_scenes": whole}
    for name in SPLITS:
        part = dataset.split(name)
        found[name] = len(part)
        found[f"{name}_notes"] = len({example.path for example in part})
        found[f"{name}_characters"] = sum(map(tasks.learnt_characters, part))
    for form in ("dialogue", "prose", "task"):
        found[form] = sum(example.form == form for example in dataset.examples)
    found["pairs"] = sum(bool(example.rejected) for example in dataset.examples)
    found["dropped_turns"] = sum(not one.whole and not one.task for one in dataset.dropped)
    found["dropped_tasks"] = sum(bool(one.task) for one in dataset.dropped)
    return found


def write(dataset: Dataset, folder: Path) -> Path:
    """Freeze it as `folder/<id>/{train,val,test}.jsonl` and `manifest.json` (last: its existence means complete).

    A complete one is left as it is. Returns `folder/<id>`. Raises LockedError when another process writes datasets for too long.
    """
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locks.held(folder / "lock", 60.0, "writes a dataset"):
        return _write(dataset, folder / dataset.id)


def _write(dataset: Dataset, target: Path) -> Path:
    if (target / "manifest.json").is_file():
        try:
            read(target)
            return target
        except DataError:
            (target / "manifest.json").unlink()  # damaged: written anew
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {f"{name}.jsonl": lines(map(to_dict, dataset.split(name))) for name in SPLITS}
    for name, data in files.items():
        write_whole(target / name, data, lasting=True)
    manifest = {
        "schema": SCHEMA,
        "id": dataset.id,
        "counts": counts(dataset),
        "files": {name: hashlib.sha256(data).hexdigest() for name, data in files.items()},
        "order": [example.id for example in dataset.examples],
        "scenes": dict(dataset.scenes),
        "dropped": [to_dict(one) for one in dataset.dropped],
    }
    said = json.dumps(manifest, ensure_ascii=False, indent=1).encode("utf-8", "surrogatepass")
    write_whole(target / "manifest.json", said, lasting=True)
    return target


def read(path: Path) -> Dataset:
    """The dataset that `write` froze at `path` (its own folder).

    Raises DataError when it is incomplete, was changed, or was written by a newer version.
    """
    try:
        manifest = json.loads((path / "manifest.json").read_bytes().decode("utf-8", "surrogatepass"))
        if manifest["schema"] > SCHEMA:
            raise DataError(f"it was written by a newer version (schema {manifest['schema']}); build the dataset again", path=str(path))
        found: dict[str, Example] = {}
        for name, expected in manifest["files"].items():
            data = (path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != expected:
                raise DataError(f"{name} is not what was written; build the dataset again", path=str(path))
            text = data.decode("utf-8", "surrogatepass")
            for line in text.split("\n")[:-1]:
                example = from_dict(Example, json.loads(line))
                found[example.id] = example
        made = tuple(found[identity] for identity in manifest["order"])
        dropped = tuple(from_dict(Dropped, one) for one in manifest["dropped"])
        return Dataset(manifest["id"], made, dropped, manifest["scenes"])
    except FileNotFoundError as error:
        raise DataError("the dataset is not complete; build it again", path=str(path)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the dataset cannot be read ({error}); build it again", path=str(path)) from error


def lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    """JSON Lines, UTF-8; lone surrogates survive."""
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode("utf-8", "surrogatepass")
