"""Scenes <-> YAML: what a person reads and diffs, one document per note, texts as literal blocks.

Written by hand because the YAML libraries refuse a literal block when a line ends in a space (every second line of
the nexus chats does) and escape emoji; read back with a library, and a property test holds the two together.
Pure: knows nothing about files.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from operator import attrgetter
from typing import Any

from vaultllm import text
from vaultllm.schema import Scene, Turn, from_dict

VERSION = 1  # of the YAML's schema

# A plain scalar that every YAML reader takes for a string: letters first, no indicator, not a word with a meaning.
_PLAIN = re.compile(rf"[^\W\d_][\w{text.MARKS} \-./,()«»–—…]*", re.UNICODE)
_MEANT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "none"})
_LONGEST = max(map(len, _MEANT))
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


def to_yaml(path: str, scenes: Sequence[Scene]) -> str:
    """The scenes of one note as YAML: empty fields left out."""
    out = [f"schema: {VERSION}", f"note: {scalar(path)}", "scenes:" if scenes else "scenes: []"]
    for scene in scenes:
        entries = _entries(_FIRST, scene)
        if not scene.train:  # the one field that is left out when it is true
            entries.append("train: false")
        entries += _entries(_LAST, scene)
        source = scene.source
        where = f"lines: [{source.lines[0]}, {source.lines[1]}]"
        for key, name in (("uid", source.uid), ("block", source.block), ("heading", source.heading)):
            if name:
                where += f", {key}: {_in_flow(name)}"
        out.append("- " + "\n  ".join(entries) + f"\n  source: {{{where}}}\n  turns:")
        for turn in scene.turns:
            entries = _entries(_TURN, turn)
            entries.append(f"text: {literal(turn.text, 6)}")
            out.append("  - " + "\n    ".join(entries))
    out.append("")
    return "\n".join(out)


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, str):
        return _in_flow(value)
    if type(value) is int:
        return str(value)
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join([flow(item) for item in value]) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join([f"{key}: {flow(item)}" for key, item in value.items()]) + "}"
    return json.dumps(value)


def scalar(value: str, flow: bool = False) -> str:
    """A string: plain where that is safe, else JSON's double quotes, which YAML reads alike."""
    if value.isprintable():
        begins = not "0" <= value[:1] <= "9" and not (flow and "," in value)  # what rules out most, sooner than the pattern does
        if begins and _PLAIN.fullmatch(value) and value[-1] != " " and (len(value) > _LONGEST or value.lower() not in _MEANT):
            return value
        if '"' not in value and "\\" not in value:
            return f'"{value}"'
    return _UNPRINTABLE.sub(_escape, json.dumps(value, ensure_ascii=False))


@functools.lru_cache(maxsize=20_000)  # names, tags and keywords come again and again
def _in_flow(value: str) -> str:
    return scalar(value, True)


# What reads some fields of a record, and what writes each of them.
_Fields = tuple[Callable[[Any], tuple[Any, ...]], list[Callable[[Any], str]]]


def _entries(chosen: _Fields, record: Scene | Turn) -> list[str]:
    """`key: value` of each field that is not empty."""
    read, writers = chosen
    return [write(value) for write, value in zip(writers, read(record), strict=True) if value]


def _fields(record: type[Scene] | type[Turn], names: Sequence[str]) -> _Fields:
    kinds = {field.name: str(field.type) for field in fields(record)}
    return attrgetter(*names), [_writer(name, kinds[name]) for name in names]


def _writer(name: str, kind: str) -> Callable[[Any], str]:
    """What writes a field: by its type, and by whether its values come again (roles, titles) or do not (hashes, anchors)."""
    if kind == "Lines":
        return lambda lines: f"{name}: [{lines[0]}, {lines[1]}]"
    if kind == "int":
        return lambda number: f"{name}: {number}"
    if kind.startswith("tuple"):
        return lambda values: f"{name}: [{', '.join(map(_in_flow, values))}]"
    if name in ("id", "sha", "prev", "next", "anchor"):
        return lambda value: f"{name}: {scalar(value, True)}"
    return functools.lru_cache(maxsize=2_000)(lambda value: f"{name}: {flow(value)}")


_NAMES = [field.name for field in fields(Scene) if field.name not in ("turns", "source")]
_FIRST = _fields(Scene, _NAMES[: _NAMES.index("train")])
_LAST = _fields(Scene, _NAMES[_NAMES.index("train") + 1 :])
_TURN = _fields(Turn, [field.name for field in fields(Turn) if field.name != "text"])


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def literal(value: str, indent: int, parent: int = 4) -> str:
    """A text as a literal block, which keeps every character as it stands; quoted when YAML could not keep it.

    `indent` is that of its lines, `parent` that of the mapping whose value it is.
    """
    if "\n" not in value and len(value) < 100:
        return scalar(value)
    if not value.replace("\n", "").isprintable() and _UNPRINTABLE.search(value):
        return scalar(value)
    if value.isspace() or value[0] == "\t" or "\n\t" in value:
        return scalar(value)
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
