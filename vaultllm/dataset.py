"""Scenes -> examples: what is learnt, what is held out, what is left out and why; frozen to files.

Pure apart from `write`, `read` and `export`. Every scene that comes in is either used or named in `dropped`
with its reason; the same scenes in any order give the same dataset id. Knows nothing about tokens or models.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from vaultllm.errors import DataError
from vaultllm.files import write_whole
from vaultllm.schema import Example, Message, Scene, Turn, from_dict, to_dict
from vaultllm.text import nfc, sha

CONTEXT_CHARS = 1500
"""The exchanges before a scene go in as context when they fit in so many characters."""

# Code in fences, or indented: what an importer that collapses white space breaks.
_CODE = re.compile(r"^(?:[ \t>]*(?:`{3}|~{3})|(?: {4}|\t)[ \t]*\S)", re.MULTILINE)

_OURS = "our own answer: a model does not learn from itself"

Form = Literal["jsonl", "sharegpt", "alpaca"]
Split = Literal["train", "val"]


@dataclass(frozen=True, slots=True)
class Dropped:
    """A scene, or a part of one, that is not learnt."""

    scene: str
    """Its id."""
    path: str
    """Its note."""
    reason: str
    """Why."""
    whole: bool = True
    """False when only a turn of it was left out and the scene is used."""


@dataclass(frozen=True, slots=True)
class Dataset:
    """What one training sees."""

    id: str
    """Hash of the examples and their split."""
    examples: tuple[Example, ...]
    """By path, then by place in the note."""
    dropped: tuple[Dropped, ...]
    """What was left out, in the same order."""
    scenes: Mapping[str, str] = field(default_factory=dict)
    """Id -> sha of every scene whose text is in an example."""

    def split(self, name: Split) -> tuple[Example, ...]:
        """The examples of `train` or `val`."""
        return tuple(example for example in self.examples if example.split == name)


def split_of(path: str, share: float) -> Split:
    """`val` for about `share` of all paths, by a hash of the path (NFC): a note keeps its side as the vault grows."""
    return "val" if _place(path) < share else "train"


def _place(path: str) -> float:
    return int(sha("split", nfc(path)), 16) / 16.0**16


def build(scenes: Iterable[Scene], *, val: float, ours: Collection[str] = ()) -> Dataset:
    """The dataset of these scenes, `val` of the notes held out.

    A talk learns the assistant's turns; prose is learnt whole, under its title. A text that occurs twice, or nearly
    (`Scene.duplicate`), is used once, in the first note by path. Scenes that may not be trained on, clipped pages and
    our own answers are left out; `ours` are the UIDs and fingerprints of replies that we appended to the user's own
    talks (`Ledger.ours`). Answers that a talk did not go on with are left out too; the last one of those to the question
    of an example's last message is its `rejected`. Answers whose code an importer damaged are context, not learnt.

    With two notes or more neither side is empty: the note with the smallest hash is moved to `val`, or, when all of them
    fell there, all but that one are moved to `train`.
    """
    ordered = sorted(scenes, key=lambda scene: (nfc(scene.source.path), scene.source.path, scene.source.lines, scene.id, scene.sha))
    dropped: list[Dropped] = []
    first_with: dict[str, Scene] = {}
    like: dict[str, Scene] = {}  # id of the first of those that are nearly the same -> the one that is used
    kept: list[Scene] = []
    for scene in ordered:
        reason = _refused(scene)
        if not reason and any(_is_ours(turn, ours) for turn in scene.turns):
            reason, scene = _OURS, replace(scene, turns=_without(scene.turns, ours))
            if scene.turns:  # what was said before and after may be learnt
                dropped.append(Dropped(scene.id, scene.source.path, reason, whole=False))
                reason = ""
        if not reason and (first := first_with.get(scene.sha)):
            reason = f"the same text as scene {first.id} in {first.source.path}"
        elif not reason and scene.duplicate and (first := like.get(scene.duplicate)):
            reason = f"nearly the same as scene {first.id} in {first.source.path}"
        if reason:
            dropped.append(Dropped(scene.id, scene.source.path, reason))
        else:
            first_with[scene.sha] = scene
            like.setdefault(scene.duplicate or scene.id, scene)
            kept.append(scene)

    by_id = {(scene.source.path, scene.id): scene for scene in kept}
    made: list[Example] = []
    used: dict[str, str] = {}
    for scene in kept:
        before = by_id.get((scene.source.path, scene.prev))
        example, lost = _dialogue(scene, before) if scene.kind == "dialogue" else _prose(scene)
        dropped += lost
        if example is not None:
            made.append(example)
            used |= {part: by_id[scene.source.path, part].sha for part in example.scenes}

    held_out = _held_out({example.path for example in made}, val)
    examples = tuple(replace(example, split="val" if nfc(example.path) in held_out else "train") for example in made)
    order = {(scene.id, scene.source.path): place for place, scene in enumerate(ordered)}
    dropped.sort(key=lambda one: (order[one.scene, one.path], one.whole, one.reason))
    return Dataset(sha(*(f"{example.id} {example.split}" for example in examples)), examples, tuple(dropped), used)


def _is_ours(turn: Turn, ours: Collection[str]) -> bool:
    return turn.role == "assistant" and (turn.uid in ours or sha(turn.text.strip()) in ours)


def _without(turns: Sequence[Turn], ours: Collection[str]) -> tuple[Turn, ...]:
    """The turns but our replies and the questions they answer, which would else be joined with the next question."""
    kept: list[Turn] = []
    for turn in turns:
        if _is_ours(turn, ours):
            while kept and kept[-1].role == "user":
                kept.pop()
        else:
            kept.append(turn)
    return tuple(kept)


def _refused(scene: Scene) -> str:
    """Why a scene may not be learnt; empty if it may."""
    if not scene.train:
        return scene.reason or "it may not be trained on"
    if scene.trust == "generated":
        return _OURS
    if scene.trust == "clipped":
        return "a clipped page: somebody else's words"
    return ""


def _held_out(paths: Iterable[str], share: float) -> set[str]:
    """The notes (NFC) of `val`."""
    notes = sorted({nfc(path) for path in paths}, key=_place)
    held_out = {path for path in notes if split_of(path, share) == "val"}
    if len(notes) < 2:
        return set()
    return {notes[0]} if len(held_out) in (0, len(notes)) else held_out


def _prose(scene: Scene) -> tuple[Example | None, list[Dropped]]:
    text = "\n\n".join(turn.text.strip("\n") for turn in scene.turns)
    if not text.strip():
        return None, [Dropped(scene.id, scene.source.path, "it has no text")]
    return _example(scene, (scene.id,), "prose", (Message("user", _titled(scene.title, text), True),)), []


def _titled(title: str, text: str) -> str:
    """The text with its title as first line, unless it begins with it; a heading that the title repeats is not said twice."""
    title = title.strip()
    line, _, rest = text.partition("\n")
    bare = line.lstrip("#").strip()
    if not title or nfc(bare) == nfc(title):
        return text
    if line.startswith("#") and bare and nfc(bare) in nfc(title):
        text = rest.strip("\n")
    return f"{title}\n\n{text}" if text else title


def _dialogue(scene: Scene, before: Scene | None) -> tuple[Example | None, list[Dropped]]:
    messages, reasons, answer = _alternate(scene.turns, learn=True)
    lost = [Dropped(scene.id, scene.source.path, reason, whole=False) for reason in reasons]
    context: list[Message] = []
    if before is not None and before.kind == "dialogue" and before.title == scene.title:
        context = _context(before, messages)
    scenes = (before.id, scene.id) if context and before is not None else (scene.id,)
    if context and messages and context[-1].role == "user" and messages[0].role == "user":
        messages[0] = Message("user", f"{context.pop().text}\n\n{messages[0].text}", False)
    messages = context + messages
    if messages and messages[0].role == "assistant":
        messages = messages[1:]
        lost.append(Dropped(scene.id, scene.source.path, "an answer without its question", whole=False))
    if messages and messages[-1].role == "user":
        messages.pop()
        lost.append(Dropped(scene.id, scene.source.path, "a question without an answer", whole=False))
    if not any(message.learn for message in messages):
        why = "; ".join(dict.fromkeys(one.reason for one in lost)) or "it has no answer"
        return None, [Dropped(scene.id, scene.source.path, f"nothing to learn: {why}")]
    return _example(scene, scenes, "dialogue", tuple(messages), _rejected(scene, messages[-1], answer)), lost


def _alternate(turns: Sequence[Turn], *, learn: bool) -> tuple[list[Message], list[str], Turn | None]:
    """Turns as messages whose roles alternate, why some are left out or not learnt, and the turn of the last answer."""
    messages: list[Message] = []
    reasons: list[str] = []
    answer: Turn | None = None
    for turn in turns:
        text = turn.text.strip()
        last = messages[-1] if messages else None
        if turn.variant_of:
            reasons.append("a variant that the talk did not go on with")
            continue
        learnt = learn and turn.role == "assistant" and bool(text)
        if learnt and turn.lossy and _CODE.search(text):
            reasons.append("the importer damaged its code: read as context, not learnt")
            learnt = False
        if turn.role == "assistant" and text:
            answer = turn
        if turn.role == "system":
            reasons.append("instructions to another model")
        elif not text:
            reasons.append("an empty turn")
        elif last is not None and last.role == turn.role == "user":
            messages[-1] = Message("user", f"{last.text}\n\n{text}", False)
        elif last is not None and last.role == turn.role:
            messages[-1] = Message("assistant", text, learnt)
            reasons.append("an answer that was given anew: the last one counts")
        else:
            messages.append(Message(turn.role, text, learnt))
    return messages, reasons, answer


def _rejected(scene: Scene, last: Message, answer: Turn | None) -> str:
    """The last other answer to the question that an example's last message answers; empty when there is none."""
    if answer is None or not answer.uid or not last.learn:
        return ""
    others = (turn.text.strip() for turn in scene.turns if turn.role == "assistant" and turn.variant_of == answer.uid)
    return next((text for text in reversed(list(others)) if text and text != last.text), "")


def _context(before: Scene, messages: Sequence[Message]) -> list[Message]:
    """The scene before, not learnt, when it is short; at least its open question when the answer stands in this scene."""
    context, _, _ = _alternate(before.turns, learn=False)
    if not context or not messages:
        return []
    answers = messages[0].role == "assistant"
    if answers and context[-1].role == "assistant":
        return []  # both halves of one talk begin or end with an answer: the question in between is not known
    if sum(len(message.text) for message in context) > CONTEXT_CHARS:
        context = context[-1:] if answers else []
    while context and context[0].role == "assistant":
        context = context[1:]
    return context


def _example(
    scene: Scene, scenes: tuple[str, ...], form: Literal["dialogue", "prose"], messages: tuple[Message, ...], rejected: str = ""
) -> Example:
    said = (part for message in messages for part in (message.role, message.text, str(message.learn)))
    identity = sha(form, scene.source.path, *scenes, *said, *filter(None, [rejected]))
    return Example(identity, scenes, scene.source.path, form, messages, "train", rejected=rejected)


def counts(dataset: Dataset) -> dict[str, int]:
    """What a person wants to know at a glance: examples, notes, learnt characters of each side, dropped scenes and turns."""
    found: dict[str, int] = {}
    for name in ("train", "val"):
        part = [example for example in dataset.examples if example.split == name]
        found[name] = len(part)
        found[f"{name}_notes"] = len({example.path for example in part})
        found[f"{name}_characters"] = sum(len(message.text) for example in part for message in example.messages if message.learn)
    found["dialogue"] = sum(example.form == "dialogue" for example in dataset.examples)
    found["prose"] = sum(example.form == "prose" for example in dataset.examples)
    found["pairs"] = sum(bool(example.rejected) for example in dataset.examples)
    found["dropped_scenes"] = sum(one.whole for one in dataset.dropped)
    found["dropped_turns"] = sum(not one.whole for one in dataset.dropped)
    return found


def write(dataset: Dataset, folder: Path) -> Path:
    """Freeze it as `folder/<id>/{train,val}.jsonl` and `manifest.json` (last: its existence means complete).

    A complete one is left as it is. Returns `folder/<id>`.
    """
    target = folder / dataset.id
    if (target / "manifest.json").is_file():
        try:
            read(target)
            return target
        except DataError:
            (target / "manifest.json").unlink()  # damaged: written anew
    target.mkdir(parents=True, exist_ok=True, mode=0o700)
    files = {f"{name}.jsonl": _lines(map(to_dict, dataset.split(name))) for name in ("train", "val")}
    for name, data in files.items():
        write_whole(target / name, data, lasting=True)
    manifest = {
        "schema": 1,
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
    """The dataset that `write` froze at `path` (its own folder). Raises DataError when it is incomplete or was changed."""
    try:
        manifest = json.loads((path / "manifest.json").read_bytes().decode("utf-8", "surrogatepass"))
        found: dict[str, Example] = {}
        for name, expected in manifest["files"].items():
            data = (path / name).read_bytes()
            if hashlib.sha256(data).hexdigest() != expected:
                raise DataError(f"{name} is not what was written; build the dataset again", path=str(path))
            text = data.decode("utf-8", "surrogatepass")
            for line in text.split("\n")[:-1]:
                example = from_dict(Example, json.loads(line))
                found[example.id] = example
        examples = tuple(found[identity] for identity in manifest["order"])
        dropped = tuple(from_dict(Dropped, one) for one in manifest["dropped"])
        return Dataset(manifest["id"], examples, dropped, manifest["scenes"])
    except FileNotFoundError as error:
        raise DataError("the dataset is not complete; build it again", path=str(path)) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"the dataset cannot be read ({error}); build it again", path=str(path)) from error


def export(dataset: Dataset, form: Form, out: Path) -> list[Path]:
    """Write it for other trainers; returns the files.

    `<split>.jsonl` holds the talks: `jsonl` as OpenAI messages (`weight` 0 for answers that are context only),
    `sharegpt` as conversations, `alpaca` as one record per learnt answer with its history.
    `<split>.text.jsonl` holds prose as `{"text": …}`, the same in every form.
    """
    shape = {"jsonl": _openai, "sharegpt": _sharegpt, "alpaca": _alpaca}[form]
    out.mkdir(parents=True, exist_ok=True)
    files = []
    for name in ("train", "val"):
        part = dataset.split(name)
        talks = [record for example in part if example.form == "dialogue" for record in shape(example)]
        prose = [{"text": example.messages[0].text} for example in part if example.form == "prose"]
        for file, records in ((f"{name}.jsonl", talks), (f"{name}.text.jsonl", prose)):
            write_whole(out / file, _lines(records), lasting=True)
            files.append(out / file)
    return files


def _openai(example: Example) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for message in example.messages:
        weight = {"weight": int(message.learn)} if message.role == "assistant" else {}
        messages.append({"role": message.role, "content": message.text, **weight})
    return [{"messages": messages}]


def _sharegpt(example: Example) -> list[dict[str, Any]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"conversations": [{"from": names[message.role], "value": message.text} for message in example.messages]}]


def _alpaca(example: Example) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = []
    history: list[list[str]] = []
    for question, answer in zip(example.messages[::2], example.messages[1::2], strict=True):
        if answer.learn:
            records.append({"instruction": question.text, "input": "", "output": answer.text, "history": [list(pair) for pair in history]})
        history.append([question.text, answer.text])
    return records


def _lines(records: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode("utf-8", "surrogatepass")
