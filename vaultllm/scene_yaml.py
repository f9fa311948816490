"""Scenes <-> YAML: what a person reads and diffs, one document per note, texts as literal blocks.

Written by hand because the YAML libraries refuse a literal block when a line ends in a space (every second line of
the nexus chats does) and escape emoji; read back with a library, and a property test holds the two together.
Pure: knows nothing about files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from vaultllm import text
from vaultllm.schema import Scene, from_dict, to_dict

VERSION = 1  # of the YAML's schema

# A plain scalar that every YAML reader takes for a string: letters first, no indicator, not a word with a meaning.
_PLAIN = re.compile(rf"[^\W\d_][\w{text.MARKS} \-./,()«»–—…]*", re.UNICODE)
_MEANT = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n", "nan", "inf", "none"})
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff\ud800-\udfff\ufffe\uffff]")


def to_yaml(path: str, scenes: Sequence[Scene]) -> str:
    """The scenes of one note as YAML: empty fields left out."""
    out = [f"schema: {VERSION}", f"note: {scalar(path)}", "scenes:" if scenes else "scenes: []"]
    for scene in scenes:
        record = to_dict(scene)
        turns = record.pop("turns")
        source = record.pop("source")
        source.pop("path")
        first = True
        for key, value in record.items():
            if value in ("", []) or (key == "train" and value):
                continue
            out.append(f"{'- ' if first else '  '}{key}: {flow(value)}")
            first = False
        out.append(f"  source: {flow({key: value for key, value in source.items() if value != ''})}")
        out.append("  turns:")
        for turn in turns:
            said = turn.pop("text")
            head = {key: value for key, value in turn.items() if value not in ("", [], 0)}
            for index, (key, value) in enumerate(head.items()):
                out.append(f"  {'- ' if index == 0 else '  '}{key}: {flow(value)}")
            out.append(f"    text: {literal(said, 6)}")
    return "\n".join(out) + "\n"


def flow(value: Any) -> str:
    """A value on one line."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {flow(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(flow(item) for item in value) + "]"
    if isinstance(value, str):
        return scalar(value, flow=True)
    return json.dumps(value)


def scalar(value: str, flow: bool = False) -> str:
    """A string: plain where that is safe, else JSON's double quotes, which YAML reads alike."""
    plain = _PLAIN.fullmatch(value) and value.lower() not in _MEANT and value == value.strip() and not (flow and "," in value)
    if plain and not _UNPRINTABLE.search(value):
        return value
    return _UNPRINTABLE.sub(_escape, json.dumps(value, ensure_ascii=False))


def _escape(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def literal(value: str, indent: int, parent: int = 4) -> str:
    """A text as a literal block, which keeps every character as it stands; quoted when YAML could not keep it.

    `indent` is that of its lines, `parent` that of the mapping whose value it is.
    """
    if "\n" not in value and len(value) < 100:
        return scalar(value)
    if _UNPRINTABLE.search(value) or not value.strip("\n ") or "\n\t" in "\n" + value:
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
