"""vaultllm's commands in forked children of one process that has imported everything: a start costs milliseconds instead of seconds.

The process is asked in lines of JSON. Each command runs as the command line runs it, `main` and all, under the tracer
(`tracer.py`). Knows nothing about what is tried, nor what should come of it.
"""

from __future__ import annotations

import importlib
import json
import marshal
import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vaultllm import reading, workers
from vaultllm.schema import Problem
from vaultllm.selftest import forks, tracer
from vaultllm.selftest.tracer import Call, Fault, Traced

Main = Callable[[list[str]], None]

_LIGHT = ("chromadb", "scipy.sparse", "vaultllm.steps")
_HEAVY = ("peft", "torch", "transformers", "transformers.trainer", "vaultllm.training")


@dataclass(frozen=True, slots=True)
class Ran:
    """One command that has run."""

    code: int
    """Its exit code; -9 where it was killed."""
    out: str
    """Its standard output."""
    err: str
    """Its standard error."""


class Starter:
    """The process that starts commands. Use as a context manager."""

    def __init__(self, root: Path, *, heavy: bool = False, alone: bool = True) -> None:
        """`root`: below it calls are traced. `heavy`: torch is loaded. `alone`: notes are read in the command's own process."""
        self.root, self.alone = root.resolve(), alone
        env = forks.environment() | {"ANONYMIZED_TELEMETRY": "False", "TOKENIZERS_PARALLELISM": "false"}
        command = (
            sys.executable,
            "-c",
            f"from vaultllm import cli; from vaultllm.selftest.started import serve; serve({_LIGHT + heavy * _HEAVY!r}, cli.main)",
        )
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env, cwd=self.root)

    def __enter__(self) -> Starter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the process; what it has started ends with it."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()

    def cpu(self) -> float:
        """CPU seconds of it and of all that it has started and that has ended."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text(encoding="ascii").rpartition(") ")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")

    def why_not(self) -> str:
        """`tracer.why_not` of the process that would trace."""
        return str(self._ask({"why_not": True})["why_not"])

    def prepare(self, modules: Iterable[str]) -> None:
        """Import these modules before the next commands: what a command has loaded (`run`), the next one finds loaded."""
        self._ask({"modules": sorted(modules)})

    def run(
        self,
        *commands: Sequence[str],
        fault: Fault | None = None,
        seconds: float = 300.0,
        patches: Mapping[str, Any] | None = None,
        traced: bool = True,
    ) -> tuple[list[Ran], Traced, list[str]]:
        """Run these commands (their arguments) one after the other in one child, until one does not end with 0.

        `patches`: `module.name` → value, set in the child: a limit of time that would make a trial long; `{"function": "module.name"}`
        stands for that function. `traced` off: calls are not looked at, which is faster. Returns what ran, what was traced, and the
        modules that the child had loaded in the end.
        """
        answer = self._ask(
            {
                "commands": [list(command) for command in commands], "root": str(self.root), "alone": self.alone, "seconds": seconds,
                "fault": asdict(fault) if fault else None, "patches": dict(patches or {}), "traced": traced,
            }
        )  # fmt: skip
        calls = [Call(*call) for call in answer["calls"]]
        hit = Call(*answer["hit"]) if answer["hit"] else None
        return [Ran(*one) for one in answer["ran"]], Traced(answer["status"], calls, hit, answer["late"]), answer["modules"]

    def _ask(self, request: Mapping[str, Any]) -> dict[str, Any]:
        source, sink = self.process.stdout, self.process.stdin
        if source is None or sink is None:
            raise RuntimeError("the process that starts commands has no pipes")
        try:
            sink.write(json.dumps(request).encode() + b"\n")
            sink.flush()
            line = source.readline()
        except BaseException:  # whoever asked waits no longer: the answer would be taken for that to the next request
            self.process.kill()
            raise
        if not line:
            raise RuntimeError(f"the process that starts commands has ended (exit {self.process.wait()})")
        answer: dict[str, Any] = json.loads(line)
        return answer


# -- the process itself


def serve(modules: Sequence[str], main: Main) -> None:
    """Import these modules, then answer requests until standard input ends. `main`: the command line's."""
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(2, 1)
    os.umask(0o077)
    forks.load(modules)
    for line in source:
        request = json.loads(line)
        if "why_not" in request:
            answer: dict[str, Any] = {"why_not": tracer.why_not()}
        elif "modules" in request:
            forks.load(request["modules"])
            answer = {}
        else:
            answer = _run(request, main)
        sink.write(json.dumps(answer).encode() + b"\n")
        sink.flush()


def _run(request: dict[str, Any], main: Main) -> dict[str, Any]:
    files = [(os.memfd_create("out"), os.memfd_create("err")) for _ in request["commands"]]
    codes = os.memfd_create("codes")

    def work() -> int:
        for name, value in request["patches"].items():
            owner, attribute = _owner(name)
            setattr(owner, attribute, getattr(*_owner(value["function"])) if isinstance(value, dict) else value)
        if request["alone"]:
            workers.read_all = read_here  # type: ignore[assignment]
        code = 0
        for command, (out, err) in zip(request["commands"], files, strict=True):
            os.dup2(out, 1)
            os.dup2(err, 2)
            code = _ended(command, main)
            os.write(codes, b"%d\n" % code)
            if code:
                break
        os.write(codes, json.dumps(sorted(sys.modules)).encode())
        return code

    fault = Fault(**request["fault"]) if request["fault"] else None
    made = tracer.traced(work, request["root"] if request["traced"] else None, fault, seconds=request["seconds"])
    *said, last = _text(codes).split("\n")
    ran = [Ran(int(code), _text(out), _text(err)) for code, (out, err) in zip(said, files, strict=False)]
    if len(ran) < len(files) and not last:  # it died over this one
        ran.append(Ran(made.status, *map(_text, files[len(ran)])))
    for descriptor in (*(one for pair in files for one in pair), codes):
        os.close(descriptor)
    return {
        "status": made.status, "late": made.late, "calls": made.calls, "hit": made.hit, "modules": json.loads(last or "[]"),
        "ran": [[one.code, one.out, one.err] for one in ran],
    }  # fmt: skip


def _owner(name: str) -> tuple[Any, str]:
    """The module, or the class in it, that a dotted name's last part belongs to, and that part."""
    above, _, last = name.rpartition(".")
    try:
        return importlib.import_module(above), last
    except ModuleNotFoundError:
        return getattr(*_owner(above)), last


def _ended(command: Sequence[str], main: Main) -> int:
    """The exit code of a command."""
    code = 0
    try:
        main(list(command))
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


def _text(descriptor: int) -> str:
    size = os.fstat(descriptor).st_size
    return os.pread(descriptor, size, 0).decode("utf-8", "replace")


def read_here(
    tasks: Iterable[workers.Task[Any]], context: Callable[[], workers.Context], children: int
) -> Iterator[tuple[workers.Task[Any], reading.Reading | Problem]]:
    """`workers.read_all` in this process: all that a child is given and gives back is packed and unpacked as it is between the two."""
    said = context()
    given: workers.Context = pickle.loads(pickle.dumps(replace(said, settings=workers._plain(said.settings))))
    for task in tasks:
        answer = marshal.dumps(workers._packed(workers._read(task.path, task.data, given)))
        yield task, workers._unpacked(marshal.loads(answer))
