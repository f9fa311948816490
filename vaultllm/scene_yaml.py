"""Scenes <-> YAML: what a person reads and diffs, one document per note, texts as literal blocks.

Written by hand because the YAML libraries refuse a literal block when a line ends in a space (every second line of
the nexus chats does) and escape emoji; read back with a library, and a property test holds the two together.
Pure: knows nothing about files.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

from vaultllm import text
from vaultllm.schema import Scene, Turn, from_dict

VERSION = 1  # of the YAML's schema

# A plain scalar that every YAML reader takes for a string: letters first, no indicator, not a word with a meaning.
_PLAIN = re.compile(rf"[^\W\d_][\w{text.MARKS} \-./,()«»–—…]*", re.UNICODE)
_MEANT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "none"})
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


_FIELDS = tuple(field.name for field in fields(Scene) if field.name not in ("turns", "source"))
_TURN = tuple(field.name for field in fields(Turn) if field.name != "text")
_EMPTY = ("", (), 0, None)  # False is among them: 0 == False


def to_yaml(path: str, scenes: Sequence[Scene]) -> str:
    """The scenes of one note as YAML: empty fields left out."""
    out = [f"schema: {VERSION}", f"note: {scalar(path)}", "scenes:" if scenes else "scenes: []"]
    for scene in scenes:
        lead = "- "
        for key in _FIELDS:
            value = getattr(scene, key)
            if key == "train":
                if value:
                    continue
            elif value in _EMPTY:
                continue
            out.append(f"{lead}{key}: {flow(value)}")
            lead = "  "
        source = scene.source
        where = f"lines: [{source.lines[0]}, {source.lines[1]}]"
        for key, name in (("uid", source.uid), ("block", source.block), ("heading", source.heading)):
            if name:
                where += f", {key}: {scalar(name, flow=True)}"
        out.append(f"  source: {{{where}}}\n  turns:")
        for turn in scene.turns:
            lead = "  - "
            for key in _TURN:
                value = getattr(turn, key)
                if value not in _EMPTY:
                    out.append(f"{lead}{key}: {flow(value)}")
                    lead = "    "
            out.append(f"    text: {literal(turn.text, 6)}")
    return "\n".join(out) + "\n"


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, str):
        return scalar(value, flow=True)
    if isinstance(value, list | tuple):
        return "[" + ", ".join([flow(item) for item in value]) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join([f"{key}: {flow(item)}" for key, item in value.items()]) + "}"
    return str(value) if type(value) is int else json.dumps(value)


@functools.lru_cache(maxsize=20_000)  # roles, names, titles, tags and keywords come again and again
def scalar(value: str, flow: bool = False) -> str:
    """A string: plain where that is safe, else JSON's double quotes, which YAML reads alike."""
    printable = value.isprintable()
    if printable and _PLAIN.fullmatch(value) and value.lower() not in _MEANT and value[-1] != " " and not (flow and "," in value):
        return value
    if printable and '"' not in value and "\\" not in value:
        return f'"{value}"'
    return _UNPRINTABLE.sub(_escape, json.dumps(value, ensure_ascii=False))


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def literal(value: str, indent: int, parent: int = 4) -> str:
    """A text as a literal block, which keeps every character as it stands; quoted when YAML could not keep it.

    `indent` is that of its lines, `parent` that of the mapping whose value it is.
    """
    if "\n" not in value and len(value) < 100:
        return scalar(value)
    if not value.replace("\n", "").isprintable() and _UNPRINTABLE.search(value):
        return scalar.__wrapped__(value)
    if value.isspace() or value[0] == "\t" or "\n\t" in value:
        return scalar.__wrapped__(value)
    body = value.rstrip("\n")
    ends = len(value) - len(body)
    chomp = "-" if ends == 0 else "" if ends == 1 else "+"
    pad = " " * indent
    rows = [pad + row if row else "" for row in value.split("\n")]
    if ends:
        rows.pop()
    # The indentation is always named (relative to the mapping's): a first line that begins with spaces would hide it.
    return f"|{indent - parent}{chomp}\n" + "\n".join(rows)


def from_yaml(document: str) -> tuple[str, tuple[Scene, ...]]:
    """The inverse of `to_yaml`: the note's path and its scenes. Raises ValueError when it is not such a document."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        data = YAML(typ="safe", pure=True).load(document)
    except YAMLError as error:
        raise ValueError(f"not YAML: {error}") from error
    if not isinstance(data, dict) or data.get("schema") != VERSION:
        raise ValueError(f"not a scene file of schema {VERSION}")
    try:
        scenes = []
        for entry in data["scenes"]:
            source = {"path": data["note"], **entry["source"]}
            scenes.append(from_dict(Scene, {"title": "", "headings": [], **entry, "source": source}))
        return data["note"], tuple(scenes)
    except (KeyError, TypeError) as error:
        raise ValueError(f"not a scene file of schema {VERSION}: {error}") from error
