"""One scene -> one example: what of it is learnt, what is context, what is left out and why.

Pure. Knows nothing about other notes, splits and quotas (`dataset.py`), nor about tokens and models.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from vaultllm.schema import Example, Message, Role, Scene, Turn
from vaultllm.text import nfc, sha

CONTEXT_CHARS = 1500
"""The exchanges before a scene go in as context when they fit in so many characters."""

Learnt = Literal["assistant", "user"]
"""Whose turns of a talk are learnt: the assistant's, or the owner's own voice."""

# Code in fences, or indented: what an importer that collapses white space breaks.
_CODE = re.compile(r"^(?:[ \t>]*(?:`{3}|~{3})|(?: {4}|\t)[ \t]*\S)", re.MULTILINE)


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
    """False when only a turn of it, or a task that was made of it, was left out and the scene is used."""
    task: str = ""
    """The sort of the task that was left out; empty when it is none."""


def is_ours(turn: Turn, ours: Collection[str]) -> bool:
    """Whether we wrote it: `ours` are UIDs and fingerprints of replies that we appended to the owner's talks.

    A UID of our own making says so too, where no ledger knows it: on another computer, or in a state that was made anew.
    """
    return turn.role == "assistant" and (turn.uid in ours or _OWN_UID.fullmatch(turn.uid) is not None or sha(turn.text.strip()) in ours)


_OWN_UID = re.compile(r"\d{14}-[0-9a-f]{8}-agent")


def without(turns: Sequence[Turn], ours: Collection[str]) -> tuple[Turn, ...]:
    """The turns but our replies and the questions they answer, which would else be joined with the next question."""
    kept: list[Turn] = []
    for turn in turns:
        if is_ours(turn, ours):
            while kept and kept[-1].role == "user":
                kept.pop()
        else:
            kept.append(turn)
    return tuple(kept)


def prose(scene: Scene) -> tuple[Example | None, list[Dropped]]:
    """The text of a note under its title, all of it learnt; None with the reason when there is none."""
    text = "\n\n".join(turn.text.strip("\n") for turn in scene.turns)
    if not text.strip():
        return None, [Dropped(scene.id, scene.source.path, "it has no text")]
    return example(scene, (scene.id,), "prose", (Message("user", _titled(scene.title, text), True),)), []


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


def dialogue(scene: Scene, before: Scene | None, learn: Learnt) -> tuple[Example | None, list[Dropped]]:
    """A talk whose `learn` turns are learnt, in the light of the scene `before` it; and what of it was left out.

    Roles alternate and a user begins. It ends with the last turn that is learnt: nothing is read that nobody needs.
    """
    messages, reasons, answer = _alternate(scene.turns, learn)
    lost = [Dropped(scene.id, scene.source.path, reason, whole=False) for reason in reasons]
    context: list[Message] = []
    if before is not None and before.kind == "dialogue" and before.title == scene.title:
        context = _context(before, messages)
    scenes = (before.id, scene.id) if context and before is not None else (scene.id,)
    if context and messages and context[-1].role == "user" and messages[0].role == "user":
        asked = context.pop().text
        if learn == "assistant":  # else it was learnt with the scene before, and is not learnt twice
            messages[0] = Message("user", f"{asked}\n\n{messages[0].text}", False)
    messages = context + messages
    if messages and messages[0].role == "assistant":
        messages = messages[1:]
        lost.append(Dropped(scene.id, scene.source.path, "an answer without its question", whole=False))
    if messages and messages[-1].role != learn:
        why = "a question without an answer" if learn == "assistant" else "the last answer: the owner says nothing after it"
        messages.pop()
        lost.append(Dropped(scene.id, scene.source.path, why, whole=False))
    if not any(message.learn for message in messages):
        nothing = "it has no answer" if learn == "assistant" else "the owner says nothing in it"
        why = "; ".join(dict.fromkeys(one.reason for one in lost)) or nothing
        return None, [Dropped(scene.id, scene.source.path, f"nothing to learn: {why}")]
    rejected = _rejected(scene, messages[-1], answer) if learn == "assistant" else ""
    return example(scene, scenes, "dialogue", tuple(messages), rejected=rejected), lost


def _alternate(turns: Sequence[Turn], learn: Role | None) -> tuple[list[Message], list[str], Turn | None]:
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
        learnt = turn.role == learn and bool(text)
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
            messages[-1] = Message("user", f"{last.text}\n\n{text}", last.learn and learnt)
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
    context, _, _ = _alternate(before.turns, None)
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


def example(
    scene: Scene,
    scenes: tuple[str, ...],
    form: Literal["dialogue", "prose", "task"],
    messages: tuple[Message, ...],
    *,
    rejected: str = "",
    task: str = "",
    weight: float = 1.0,
) -> Example:
    """An example of the scene's note, named by what it says; its split is the note's, which `dataset.py` knows."""
    said = (part for message in messages for part in (message.role, message.text, str(message.learn)))
    identity = sha(form, scene.source.path, *scenes, *said, *filter(None, [rejected]))
    return Example(identity, scenes, scene.source.path, form, messages, "train", weight, rejected, task)
