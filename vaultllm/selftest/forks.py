"""Processes that are forked from one that has imported all and has no threads: a command costs milliseconds in place of a second.

Knows nothing about what they do.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

CAN = hasattr(os, "fork") and hasattr(os, "memfd_create")
"""Whether this system can do it at all."""


def environment(first: str = "") -> dict[str, str]:
    """What processes of a trial have: they find this vaultllm (and before it the modules of the folder `first`), nobody's settings, speak
    UTF-8, take one thread each, and ask no hub."""
    path = os.pathsep.join(filter(None, (first, str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH"))))
    own = {"PYTHONPATH": path, "PYTHONUTF8": "1", "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return {name: value for name, value in os.environ.items() if not name.startswith("VAULTLLM_")} | own


def lead(module: str, plan: Mapping[str, Any], work: Path, told: Callable[[], None]) -> int:
    """Run `lead(plan)` of a module of this package in a process of its own, which may fork; its exit code. `told` is called meanwhile."""
    command = (sys.executable, "-c", f"import json, sys; from {module} import lead; lead(json.load(sys.stdin))")
    with subprocess.Popen(command, stdin=subprocess.PIPE, text=True, cwd=work, env=environment()) as process:
        if process.stdin is not None:
            process.stdin.write(json.dumps(plan))
            process.stdin.close()
        while process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5.0)
            told()
    return process.returncode


def load(modules: Sequence[str]) -> None:
    """Import these modules, those that can be, and all that a command begins with: whoever is forked from here on has them."""
    for name in modules:
        with contextlib.suppress(Exception):  # whatever a module of somebody else's raises when it is imported by its name
            importlib.import_module(name)
    cli: Any = importlib.import_module("vaultllm.cli")  # it stands above this package
    cli.parser()
    if conversions := sys.modules.get("transformers.conversion_mapping"):
        conversions.get_checkpoint_conversion_mapping("")  # the first use compiles a thousand patterns
    gc.collect()
    gc.freeze()  # or the collector of each child writes to every page of it


def forked(work: Callable[[], int | None]) -> int:
    """A child that does this and ends with what it returns (1 when it raises); its pid."""
    if pid := os.fork():
        return pid
    code = 1
    try:
        code = work() or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(pid: int, seconds: float) -> int:
    """The exit code of a child, minus the signal that ended it; one that takes longer than so many seconds is killed."""
    until = time.monotonic() + seconds
    while True:
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found and time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            found, status = os.waitpid(pid, 0)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)


def command(arguments: Sequence[str], out: Path, err: Path, given: str = "") -> int:
    """Run a command as the command line runs it, in this process; what it says goes into files, or into one. Its exit code."""
    cli: Any = importlib.import_module("vaultllm.cli")  # it stands above this package

    source = os.memfd_create("given")
    os.pwrite(source, given.encode(), 0)
    said = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    wrong = os.dup(said) if err == out else os.open(err, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    for number, descriptor in enumerate((source, said, wrong)):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.argv = ["vaultllm", *arguments]
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115 - it is this process's from now on
    try:
        cli.main()
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
    return 0
