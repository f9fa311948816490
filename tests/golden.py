"""Golden cases: an input file and, beside it, `<file>.expected.yaml` with what is to be read from it.

    python -m tests.golden PATH...      write the expectation of each file (then read it: it is the claim)

What an expectation holds depends on the folder: `golden/scenes/**` the scenes; everywhere else what the parser saw:
for a chat its turns, for a note its properties, blocks, links and tags. Empty fields are left out. A file named
`settings.toml` in a folder sets the settings of its cases.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vaultllm import chats, reading, scene_yaml
from vaultllm.config import Settings
from vaultllm.schema import Conversation, Note, Problem, to_dict

FOLDER = Path(__file__).parent / "golden"
SUFFIX = ".expected.yaml"


def cases() -> list[Path]:
    """Every input file below tests/golden, in order."""
    found = (path for path in sorted(FOLDER.rglob("*")) if path.is_file())
    return [
        path
        for path in found
        if not path.name.endswith(SUFFIX) and path.name not in ("settings.toml", "README.md") and path.suffix != ".sql"
    ]


def settings(path: Path) -> Settings:
    """The settings of a case: `settings.toml` of its folder, else the defaults."""
    file = path.parent / "settings.toml"
    data: dict[str, Any] = tomllib.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return Settings.model_validate({"vault_id": "golden", **data})


def document(path: Path) -> str:
    """What we read from a case now, as YAML."""
    with_settings = settings(path)
    name = path.relative_to(FOLDER).as_posix()
    data = path.read_bytes()
    if path.is_relative_to(FOLDER / "scenes"):
        found = reading.read_note(path.name, data, with_settings)
        head = {"reader": found.reader, "turns": found.turns, "turns_left": found.turns_left, "problems": _problems(found.problems)}
        return _yaml(_kept(head)) + found.yaml
    note = reading.parse(path.name, data, with_settings)
    reader, why, conversations = chats.read(note, with_settings.scan, with_settings.timezone)
    shown = {"case": name, "reader": reader, "why": why, "problems": _problems(note.problems)}
    shown |= {"conversations": [_conversation(one) for one in conversations]} if reader else _note(note)
    return _yaml(_kept(shown))


def _problems(problems: tuple[Problem, ...]) -> list[dict[str, Any]]:
    return [{"code": one.code, "line": one.line, "count": one.count} for one in problems]


def _conversation(conversation: Conversation) -> dict[str, Any]:
    found = to_dict(conversation)
    return {**found, "problems": _problems(conversation.problems), "turns": found["turns"]}


def _note(note: Note) -> dict[str, Any]:
    found = to_dict(note)
    names = ("title", "encoding", "body_line", "properties", "blocks", "links", "tags")
    return {name: found[name] for name in names}


def _kept(value: Any) -> Any:
    """Without empty fields."""
    if isinstance(value, Mapping):
        return {key: _kept(item) for key, item in value.items() if item not in ("", [], 0, {}, None, False) or key == "count"}
    return [_kept(item) for item in value] if isinstance(value, list) else value


def _yaml(value: Mapping[str, Any], indent: int = 0) -> str:
    pad = " " * indent
    rows = []
    for key, item in value.items():
        name = scene_yaml.scalar(str(key), flow=True)
        if isinstance(item, Mapping) and indent == 0:
            rows.append(f"{pad}{name}:\n{_yaml(item, indent + 2)}")
        elif key in ("conversations", "turns", "blocks") and isinstance(item, list):
            entries = (_yaml(one, indent + 2) for one in item)
            rows.append(f"{pad}{name}:\n" + "".join(f"{pad}- {entry[indent + 2 :]}" for entry in entries))
        elif isinstance(item, str) and key == "text":
            rows.append(f"{pad}{name}: {scene_yaml.literal(item, indent + 2, indent)}\n")
        else:
            rows.append(f"{pad}{name}: {scene_yaml.flow(item)}\n")
    return "".join(rows)


def main() -> None:
    """Write expectations."""
    for name in sys.argv[1:]:
        path = Path(name).resolve()
        (path.parent / (path.name + SUFFIX)).write_text(document(path), encoding="utf-8")


if __name__ == "__main__":
    main()
