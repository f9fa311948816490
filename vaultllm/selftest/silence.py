"""Commands are run and every attempt to reach a network is noted: none may be made, for nothing in these settings names a server.

Python's own audit events (PEP 578: connecting, asking for a name, sending, binding, opening an address; programs that are started)
are written down by a hook in every Python process, children included. In the soak each command also runs in a network namespace of
its own, with no network in it at all, and under strace, which sees what libraries in C and Rust do. Environment variables that
keep libraries offline are taken away first. Knows nothing about what the commands do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from vaultllm.selftest import Finding, Size, forks, small_vault

_HOOK = """
import json, os, sys
_LOG = os.environ.get("VAULTLLM_SELFTEST_SOCKETS")
_NAMED = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto", "socket.sendmsg", "socket.bind",
          "socket.getnameinfo", "urllib.Request", "http.client.connect", "ftplib.connect", "smtplib.connect")
def _note(event, args):
    if event not in _NAMED:
        return
    where = args[1] if event.startswith("socket.") and event not in ("socket.getaddrinfo", "socket.gethostbyname") else args
    if isinstance(where, (str, bytes)) and event in ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.bind"):
        return  # a path: a socket between processes of this machine
    if event == "socket.sendmsg" and where is None:
        return
    line = json.dumps([event, repr(where)[:200], os.path.basename(sys.argv[0] if sys.argv else "")]) + "\\n"
    descriptor = os.open(_LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(descriptor, line.encode())
    os.close(descriptor)
if _LOG:
    sys.addaudithook(_note)
"""
_CONTROLS = {
    "an address": "import socket; socket.socket(socket.AF_INET, socket.SOCK_STREAM).connect_ex(('192.0.2.1', 9))",
    "a name": "import socket; socket.getaddrinfo('canary.invalid', 80)",
    "a datagram": "import socket; socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('192.0.2.1', 9))",
    "a page": "import urllib.request; urllib.request.urlopen('http://canary.invalid/', timeout=1)",
    "a child's address": "import subprocess, sys; subprocess.run([sys.executable, '-c', "
    "'import socket; socket.socket().connect_ex((\\'192.0.2.1\\', 9))'])",
}
"""Each must be noted, or the hook is deaf: the addresses are of RFC 5737 and RFC 2606, where nobody answers."""

_ASKED = small_vault.QUESTION
_QUICK: tuple[tuple[str, ...], ...] = (
    ("ingest",),
    ("search", _ASKED),
    ("search", "folder:Work насос"),
    ("ask", _ASKED),
    ("scenes", "Теплица.md"),
    ("scenes", "--explain", "Теплица.md"),
    ("dataset",),
    ("status",),
    ("doctor",),
    ("runs",),
    ("schedule", "print"),
    ("run", "nightly", "--dry-run"),
    ("memory", "map"),
    ("forget", small_vault.FORGOTTEN, "--dry-run"),
)
_SOAK: tuple[tuple[str, ...], ...] = (
    *_QUICK,
    ("init", "{vault}"),
    ("train", "--minutes", "0.3"),
    ("report", "--again"),
    ("ask", _ASKED),
    ("doctor", "--probe"),
    ("doctor", "--bundle", "{work}/bundle.zip"),
    ("micro", "--minutes", "0.1"),
    ("bench", "links"),
    ("memory", "analyse"),
    ("retrain",),
    ("rollback",),
    ("forget", small_vault.FORGOTTEN, "--yes"),
    ("ingest", "--full", "--learn"),
    ("watch",),
)
_WATCH_SECONDS = 8.0
_CALLS = re.compile(r"\b(connect|sendto|sendmsg|sendmmsg|bind)\(.*(?:AF_INET6?|sin6?_addr)")
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE", "ANONYMIZED_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "NO_PROXY")

# In one process, one command after another: what most of them cost is the start.
_TOGETHER = """
import contextlib, io, json, sys
from vaultllm import cli
ended = []
for command in json.loads(sys.argv[1]):
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            cli.main(command)
        ended.append(0)
    except SystemExit as stop:
        ended.append(stop.code or 0)
print(json.dumps(ended))
"""


def run(work: Path, size: Size, seed: int, told: Callable[[str], None], *, controls: Mapping[str, str] = _CONTROLS) -> Finding:
    """Try it below the empty folder `work`: quick: 14 commands in one process, about 5 CPU seconds; soak: 28, one by one, minutes.

    Nothing depends on `seed`. `controls` are programs that reach for a network and must be caught.
    """
    began = time.monotonic()
    vault, state = work / "vault", work / "state"
    small_vault.make(vault)
    site = work / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(_HOOK, encoding="utf-8")
    log = work / "sockets.jsonl"
    env = {name: value for name, value in forks.environment(str(site)).items() if name not in _OFFLINE}
    env |= {"VAULTLLM_SELFTEST_SOCKETS": str(log), "HOME": str(work), "XDG_DATA_HOME": str(work / "data")}
    failures = []
    told("whether an attempt is noted at all")
    for name, code in controls.items():
        subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, timeout=120, check=False)
        if not _noted(log):
            failures.append(f"the control was not noted: {name}")
        log.unlink(missing_ok=True)
    common = ["--vault", str(vault), "--state", str(state), "-q", "--json"]
    commands = [[*common, *(one.format(vault=vault, work=work) for one in command)] for command in (_QUICK if size == "quick" else _SOAK)]
    if size == "quick":
        told(f"{len(commands)} commands in one process")
        done = subprocess.run(
            [sys.executable, "-c", _TOGETHER, json.dumps(commands)],
            env=env,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
            cwd=work,
        )
        ended = json.loads(done.stdout.splitlines()[-1]) if done.stdout.strip() else [done.stderr[-300:]] * len(commands)
        failures += [f"{' '.join(command[6:])} ended with {code}" for command, code in zip(commands, ended, strict=True) if code != 0]
        alone, traced = False, False
    else:
        alone, traced = _can(["unshare", "-rn", "true"]), _can(["strace", "-o", os.devnull, "true"])
        for command in commands:
            told(" ".join(command[6:]))
            failures += _alone(command, env, work, alone=alone, traced=traced)
    attempts = _noted(log)
    failures += [f"{event} {where} in {program}" for event, where, program in attempts]
    figures: dict[str, float | int | str] = {
        "attempts": len(attempts), "controls": len(controls),
        "without_network": "yes" if alone else "no", "traced": "yes" if traced else "no",
    }  # fmt: skip
    return Finding("commands that reach for a network", ("R20",), len(commands), failures, time.monotonic() - began, figures)


def _noted(log: Path) -> list[list[str]]:
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()] if log.exists() else []


def _can(command: Sequence[str]) -> bool:
    """Whether this works here: namespaces may be forbidden, tracing too."""
    if shutil.which(command[0]) is None:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _alone(command: Sequence[str], env: Mapping[str, str], work: Path, *, alone: bool, traced: bool) -> list[str]:
    """What is wrong with one command in a process of its own."""
    seen = work / "calls"
    before = ["unshare", "-rn"] if alone else []
    before += ["strace", "-f", "-qq", "-e", "trace=network", "-e", "signal=none", "-o", str(seen)] if traced else []
    shown = " ".join(command[6:])
    process = subprocess.Popen(
        [*before, sys.executable, "-m", "vaultllm.cli", *command],
        env=dict(env), cwd=work, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    if "watch" in command:
        time.sleep(_WATCH_SECONDS)
        os.killpg(process.pid, signal.SIGTERM)
    try:
        error = process.communicate(timeout=1200)[1]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        error = process.communicate()[1]
    wrong = []
    expected = (0, 130, -signal.SIGTERM, 128 + signal.SIGTERM) if "watch" in command else (0, 1, 3) if "doctor" in command else (0, 3)
    if process.returncode not in expected or "Traceback" in error:
        wrong.append(f"{shown} ended with {process.returncode}: {error.strip()[-300:]}")
    if traced and seen.exists():
        calls = [line for line in seen.read_text(encoding="utf-8", errors="replace").splitlines() if _CALLS.search(line)]
        wrong += [f"{shown} called {line[:160]}" for line in calls]
        seen.unlink()
    return wrong
