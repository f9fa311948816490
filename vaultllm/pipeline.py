"""One YAML file is one job: a flat list of steps with options, checked against the steps' own signatures before anything runs.

YAML is data here: no tags, no objects, no expressions; the one thing that is replaced is `$question`.
Knows nothing about what a step does, nor about who starts a job when (`when` is said, not acted on).
"""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import re
import time
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import Field, TypeAdapter, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import YAMLError
from ruamel.yaml.tokens import (
    BlockEndToken,
    BlockMappingStartToken,
    BlockSequenceStartToken,
    FlowMappingEndToken,
    FlowMappingStartToken,
    FlowSequenceEndToken,
    FlowSequenceStartToken,
    TagToken,
)

from vaultllm import steps
from vaultllm.config import path_of
from vaultllm.errors import ConfigError, UsageError, VaultllmError, nearest

STEPS: dict[str, Callable[..., dict[str, Any]]] = {
    "ingest": steps.ingest,
    "dataset": steps.dataset,
    "train": steps.train,
    "retrain": steps.retrain,
    "ask": steps.ask,
    "reply": steps.reply,
    "search": steps.search,
    "status": steps.status,
    "doctor": steps.doctor,
    "promote": steps.promote,
    "rollback": steps.rollback,
}
FOLDERS = (Path(__file__).with_name("_pipelines"), Path(__file__).resolve().parents[1] / "pipelines")  # installed; a checkout
KEYS = ("name", "when", "steps")
VALUES = ("question",)
WHEN = re.compile(r"save|question|manual|daily (?:[01]\d|2[0-3]):[0-5]\d|every [1-9]\d{0,3}h")
_STARTS = (BlockMappingStartToken, BlockSequenceStartToken, FlowMappingStartToken, FlowSequenceStartToken)
_ENDS = (BlockEndToken, FlowMappingEndToken, FlowSequenceEndToken)
MAX_DEPTH = 10  # a right one has 4; the parser is slow on thousands
MAX_BYTES = 64 * 1024  # a job is a page of text; more is a mistake, or meant to harm


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a plan, checked."""

    name: str
    """A key of STEPS."""
    options: dict[str, Any]
    """Parameter -> value of its type; `$question` stands as it is written."""
    line: int
    """Where it stands in the file."""


@dataclass(frozen=True, slots=True)
class Plan:
    """A job, checked."""

    name: str
    """As the file says, else the file's name."""
    when: str
    """`save`, `question`, `manual`, `daily HH:MM` or `every Nh`."""
    steps: tuple[Step, ...]
    """In the order in which they run; never empty."""
    path: str
    """The file."""


def load(name_or_path: str) -> Plan:
    """Read and check a pipeline: a path to a file, or the name of one of ours.

    Raises UsageError when there is no such pipeline, ConfigError with file and line when it is wrong.
    """
    path = _find(name_or_path)
    try:
        data = path.read_bytes()
        text = data[: MAX_BYTES + 1].decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot be read: {error}", path=str(path)) from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"is larger than {MAX_BYTES // 1024} KB; this is no pipeline", path=str(path))
    reader = YAML(typ="rt", pure=True)
    try:
        depth = 0
        for token in reader.scan(text):
            depth += isinstance(token, _STARTS) - isinstance(token, _ENDS)
            if isinstance(token, TagToken) or depth > MAX_DEPTH:
                why = "tags (!…) have no place in a pipeline" if depth <= MAX_DEPTH else "is nested too deeply for a pipeline"
                raise ConfigError(why, path=str(path), line=token.start_mark.line + 1)
        tree = reader.load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        why = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise ConfigError(f"is not YAML: {why}", path=str(path), line=mark.line + 1 if mark is not None else None) from error
    except (RecursionError, ValueError) as error:  # nested without end; a date or number that is none
        raise ConfigError(f"is not YAML that can be read ({type(error).__name__})", path=str(path)) from error
    return _Checker(path).plan(tree)


def _find(name_or_path: str) -> Path:
    path = path_of(name_or_path)
    if path.suffix in (".yaml", ".yml") or path.is_file() or len(path.parts) > 1:
        if not path.is_file():
            raise UsageError("there is no such pipeline file", path=str(path))
        return path
    known = {file.stem: file for folder in reversed(FOLDERS) for file in folder.glob("*.yaml")}
    if name_or_path not in known:
        raise UsageError(f"there is no pipeline '{name_or_path}'.{nearest(name_or_path, known)}")
    return known[name_or_path]


class _Checker:
    """Turns a YAML tree into a plan; knows the file for its messages."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def fail(self, message: str, line: int | None) -> NoReturn:
        raise ConfigError(message, path=str(self.path), line=line)

    def keys(self, tree: CommentedMap) -> dict[str, int]:
        """Key -> its line; a key that is not text is wrong."""
        lines = {}
        for key in tree:
            line = tree.lc.key(key)[0] + 1 if key in tree.lc.data else tree.lc.line + 1  # merged keys have no line of their own
            if not isinstance(key, str):
                self.fail(f"the key {key!r} is not text; put it in quotes", line)
            lines[key] = line
        return lines

    def plan(self, tree: Any) -> Plan:
        if not isinstance(tree, CommentedMap):
            self.fail("a pipeline has the keys name, when and steps", 1)
        lines = self.keys(tree)
        for key, line in lines.items():
            if key not in KEYS:
                self.fail(f"there is no key '{key}' in a pipeline.{nearest(key, KEYS)}", line)
        name, when = tree.get("name", self.path.stem), tree.get("when", "manual")
        if not isinstance(name, str) or not name.strip():
            self.fail("'name' must be text", lines["name"])
        if not isinstance(when, str) or WHEN.fullmatch(when) is None:
            self.fail(f"'when: {when}' is not one of: save, question, manual, daily HH:MM, every Nh", lines["when"])
        items = tree.get("steps")
        if not isinstance(items, CommentedSeq) or not items:
            self.fail("'steps' must be a list with at least one step", lines.get("steps", 1))
        return Plan(str(name), str(when), tuple(self.step(item, items.lc.item(at)[0] + 1) for at, item in enumerate(items)), str(self.path))

    def step(self, item: Any, line: int) -> Step:
        if isinstance(item, CommentedMap):
            names = list(self.keys(item))
            if len(names) != 1:
                self.fail(f"one step per item of the list, its options indented below it; here are {', '.join(names) or 'none'}", line)
            name, given = names[0], item[names[0]]
        else:
            name, given = item, None
        if not isinstance(name, str):
            self.fail("a step is a name, or a name with options", line)
        if name not in STEPS:
            self.fail(f"there is no step '{name}'.{nearest(name, STEPS)}", line)
        if given is not None and not isinstance(given, CommentedMap):
            self.fail(f"the options of '{name}' must be `option: value` lines, indented below it", line)
        given = given if given is not None else CommentedMap()
        lines = self.keys(given)
        known = options(name)
        values = {}
        for key, at in lines.items():
            if key not in known:
                self.fail(f"there is no option '{key}' in step '{name}'.{nearest(key, known)}", at)
            values[key] = self.value(f"{name}.{key}", given[key], known[key][0], at)
        missing = [key for key, (_, required) in known.items() if required and key not in values]
        if missing:
            self.fail(f"step '{name}' needs the option '{missing[0]}'", line)
        return Step(name, values, line)

    def value(self, where: str, value: Any, adapter: TypeAdapter[Any], line: int) -> Any:
        if value is not None and not isinstance(value, (str, int, float)):  # dates, lists, tags: no option takes any of them
            self.fail(f"{where}: an option is one text, number, true or false; put other things in quotes", line)
        if isinstance(value, float) and not math.isfinite(value):
            self.fail(f"{where}: must be a finite number", line)
        if isinstance(value, str) and re.fullmatch(r"\$\w+", value) and value[1:] not in VALUES:
            self.fail(f"{where}: there is no value '{value}'.{nearest(value[1:], VALUES)}", line)
        try:  # as JSON: strict about types, yet a path may be text and a float may be a whole number
            return adapter.validate_json(json.dumps(str(value) if isinstance(value, str) else value), strict=True)
        except ValidationError as error:
            self.fail(f"{where}: {error.errors()[0]['msg']}", line)


@functools.cache
def options(step: str) -> dict[str, tuple[TypeAdapter[Any], bool]]:
    """Option -> (the check of its type and limits, whether it must be given), from the step's signature."""
    found = {}
    for parameter in inspect.signature(STEPS[step], eval_str=True).parameters.values():
        if parameter.name == "job":
            continue
        hint: Any = parameter.annotation
        if typing.get_origin(hint) is Annotated:
            hint, option = typing.get_args(hint)[:2]
            limits = {"ge": getattr(option, "min", None), "le": getattr(option, "max", None)}
            limited: Any = Field(**{key: limit for key, limit in limits.items() if limit is not None})
            hint = Annotated[hint, limited]
        found[parameter.name] = (TypeAdapter[Any](hint), parameter.default is inspect.Parameter.empty)
    return found


def plan(plan: Plan) -> dict[str, Any]:
    """What a plan will do, JSON-ready: name, when, steps with their options."""
    return {
        "name": plan.name,
        "when": plan.when,
        "steps": [
            {"step": step.name, "options": {key: str(value) if isinstance(value, Path) else value for key, value in step.options.items()}}
            for step in plan.steps
        ],
    }


def run(job: steps.Job, plan: Plan, values: Mapping[str, str]) -> dict[str, Any]:
    """Run the steps one after the other; `values` fills `$question`.

    Returns name and steps (step, status, seconds, result). A step that fails ends the job with its error; what was
    done until then, without any text of notes, is in `pipelines.log` of the state folder (one JSON document a line).
    Raises UsageError before the first step when a value is missing, or given and not used.
    """
    wanted = {value[1:] for step in plan.steps for value in step.options.values() if isinstance(value, str) and _is_value(value)}
    if missing := sorted(wanted - set(values)):
        raise UsageError(f"the pipeline '{plan.name}' needs --{missing[0]}")
    if unused := sorted(set(values) - wanted):
        raise UsageError(f"the pipeline '{plan.name}' has no use for --{unused[0]}")
    done = []
    for step in plan.steps:
        given = {key: values[value[1:]] if isinstance(value, str) and _is_value(value) else value for key, value in step.options.items()}
        started, status, result = time.perf_counter(), "failed", {}
        code = "E-INTERNAL"
        try:
            result = STEPS[step.name](job, **given)
            status, code = "done", ""
        except VaultllmError as error:
            code = error.code
            raise
        except KeyboardInterrupt:
            status, code = "interrupted", ""
            raise
        finally:
            seconds = round(time.perf_counter() - started, 3)
            record = {"pipeline": plan.name, "step": step.name, "status": status, "code": code, "seconds": seconds}
            _log(job, {**record, "result": _counts(result)})
        done.append({"step": step.name, "status": status, "seconds": seconds, "result": result})
    return {"name": plan.name, "steps": done}


def _is_value(text: str) -> bool:
    return text.startswith("$") and text[1:] in VALUES


def _counts(value: Any, key: str = "") -> Any:
    """A result without its text: numbers, truths, ids and states stay, lists become their lengths."""
    if isinstance(value, dict):
        kept = {name: _counts(part, name) for name, part in value.items()}
        return {name: part for name, part in kept.items() if part is not None}
    if isinstance(value, list):
        return len(value)
    if isinstance(value, str):
        return value if key in ("id", "run", "status", "current", "before") else None
    return value


def _log(job: steps.Job, record: dict[str, Any]) -> None:
    line = json.dumps({"at": datetime.now().astimezone().isoformat(timespec="seconds"), **record}, ensure_ascii=False)
    path = job.workspace.state / "pipelines.log"
    with open(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8") as file:
        file.write(line + "\n")
