"""Scenes and passages as the ledger's rows: made by the processes that read notes, so that the one that holds the database only inserts.

Pure: knows the shape of the tables, not the database.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import NamedTuple

from vaultllm.errors import VaultError
from vaultllm.memory import bags
from vaultllm.schema import Passage, Scene, from_dict, to_dict
from vaultllm.text import sha


class PassageRow(NamedTuple):
    """What is recalled, and its words."""

    ordinal: int
    """Its place in the scene."""
    first: int
    """First line in the file."""
    last: int
    """Last line."""
    uid: str
    """Of its turn."""
    role: str
    """Who speaks."""
    text: str
    """Its text."""
    context: str
    """What is indexed with it."""
    sha: str
    """Of text and context: while it stays, so do slot, words and vector."""
    bag: bags.Bag
    """What the words index holds of it."""


class SceneRow(NamedTuple):
    """A scene."""

    id: str
    """Its id."""
    sha: str
    """Of what it says."""
    kind: str
    """`dialogue`, `prose`, …"""
    language: str
    """ISO 639-1."""
    trust: str
    """Who wrote it."""
    train: bool
    """Whether it may be trained on."""
    reason: str
    """Why not."""
    length: int
    """Characters of its turns."""
    at: str
    """Its time."""
    record: str
    """All of it, as JSON."""
    links: tuple[str, ...]
    """Targets of its links."""
    passages: tuple[PassageRow, ...]
    """What is recalled of it."""


def row(scene: Scene, passages: Sequence[Passage]) -> SceneRow:
    """The rows of a scene."""
    return SceneRow(
        scene.id,
        scene.sha,
        scene.kind,
        scene.language,
        scene.trust,
        scene.train,
        scene.reason,
        sum(len(turn.text) for turn in scene.turns),
        scene.at,
        record(scene),
        scene.links,
        tuple(_passage(passage) for passage in passages),
    )


def _passage(passage: Passage) -> PassageRow:
    said, context = passage.text, passage.context
    return PassageRow(
        passage.ordinal, *passage.lines, passage.uid, passage.role, said, context, sha(said, context), bags.bag(said, context)
    )


def record(scene: Scene) -> str:
    """A scene as JSON."""
    import orjson

    try:
        return orjson.dumps(scene).decode()
    except TypeError:  # a lone surrogate, which UTF-8 cannot hold: the standard library writes it as an escape
        return json.dumps(to_dict(scene), separators=(",", ":"))


def scene_of(record: str, duplicate: str = "") -> Scene:
    """A scene from its row's `record`. Raises VaultError (E-LEDGER) for one that a bad disk has changed."""
    try:
        return from_dict(Scene, json.loads(record) | {"duplicate": duplicate})
    except (ValueError, TypeError, KeyError) as error:
        said = f"a scene of the ledger is damaged ({type(error).__name__}); mend: vaultllm doctor --repair"
        raise VaultError(said, code="E-LEDGER") from error
