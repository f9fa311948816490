"""A vault of ours with a real `vaultllm watch` beside it, commands that are called meanwhile, and whether it ends as a clean rebuild does.

Knows nothing about what happens to the vault.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vaultllm import config, steps
from vaultllm.selftest import forks
from vaultllm.selftest.alike import difference, rebuilt

PROGRAM: tuple[str, ...] = (sys.executable, "-m", "vaultllm")
_CONFIG = 'vault_id = "selftest"\n[watch]\nsettle = {settle}\nreconcile = {reconcile}\n[train]\nonly_on_ac = false\nmin_new = 1\n'
_PATIENCE = 240.0  # seconds in which the daemon must have caught up


class Watched:
    """The vault `vault`, its state `state` and what went wrong with them (`failures`), all below one folder."""

    def __init__(
        self, work: Path, program: Sequence[str], *, settle: float, reconcile: float, environment: Mapping[str, str] | None = None
    ) -> None:
        """Make the vault. `program`: what is started as the daemon; `environment`: what its processes have besides ours."""
        self.vault, self.state, self.program = work / "vault", work / "state", tuple(program)
        (self.vault / ".vaultllm").mkdir(parents=True)
        self.settings = self.vault / config.CONFIG
        self.settings.write_text(_CONFIG.format(settle=settle, reconcile=reconcile), encoding="utf-8")
        self.log = work / "watch.log"
        self.failures: list[str] = []
        self.commands = 0
        self._environment = environment or {}

    def environment(self) -> dict[str, str]:
        """Of the processes: they find this vaultllm, nobody's settings, and no hub."""
        own = forks.environment(self._environment.get("PYTHONPATH", ""))
        return own | {name: value for name, value in self._environment.items() if name != "PYTHONPATH"}

    @contextlib.contextmanager
    def running(self) -> Iterator[subprocess.Popen[bytes]]:
        """The daemon, from its first ingest on; killed at the end if it still lives."""
        with self.log.open("ab") as said, (self.log.with_suffix(".err")).open("ab") as wrong:
            line = [*self.program, "--vault", str(self.vault), "--state", str(self.state), "--json", "watch"]
            daemon = subprocess.Popen(line, stdout=said, stderr=wrong, env=self.environment(), start_new_session=True)
            try:
                end = time.monotonic() + _PATIENCE
                while b'"ingested"' not in self.log.read_bytes() and time.monotonic() < end and daemon.poll() is None:
                    time.sleep(0.2)
                yield daemon
            finally:
                if daemon.poll() is None:
                    os.killpg(daemon.pid, signal.SIGCONT)
                    os.killpg(daemon.pid, signal.SIGKILL)
                daemon.wait()

    def line(self, *words: str) -> list[str]:
        """A command of this vault, as it is started."""
        return [sys.executable, "-m", "vaultllm", "--vault", str(self.vault), "--state", str(self.state), "--json", *words]

    def command(self, *words: str, fine: Sequence[int] = (0,), seconds: float = 600.0) -> dict[str, Any]:
        """One command beside the daemon, and what it printed; where it waits for another process in vain (75) it is called again."""
        line = self.line(*words)
        for _ in range(5):
            self.commands += 1
            try:
                done = subprocess.run(line, capture_output=True, env=self.environment(), timeout=seconds, check=False)
            except subprocess.TimeoutExpired:
                self.failures.append(f"{words[0]} did not end in {seconds:g} s")
                return {}
            if done.returncode != 75:
                break
        if done.returncode not in fine:
            self.failures.append(f"{words[0]} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-300:]}")
        with contextlib.suppress(ValueError):
            found = json.loads(done.stdout)
            return found if isinstance(found, dict) else {}
        return {}

    def ended_alike(self, work: Path, patience: float = _PATIENCE) -> str:
        """ "" when the daemon's state becomes that of a clean rebuild in so many seconds; else what differs. Raises VaultllmError."""
        workspace = config.open_workspace(str(self.vault), str(self.state))
        wanted = rebuilt(self.vault, self.state, work / "rebuilt")
        deadline = time.monotonic() + patience
        while True:
            has = _dumped(workspace)
            if has == wanted or time.monotonic() > deadline:
                break
            time.sleep(2.0)
        return "" if has == wanted else difference(has, wanted)

    def ended(self, daemon: subprocess.Popen[bytes]) -> list[str]:
        """Tell the daemon to end; what was wrong with how it did, and the errors of ours that it has told of."""
        daemon.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            daemon.wait(timeout=60.0)
        found = []
        if daemon.poll() != 0:
            found.append(f"the daemon ended with {daemon.poll()}: {self.log.with_suffix('.err').read_text(errors='replace')[-400:]}")
        told = set()
        for line in self.log.read_bytes().splitlines():
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if event.get("event") == "problem" and event.get("code") == "E-INTERNAL":
                    told.add(f"the daemon had an error of its own: {event.get('message')}")
        return found + sorted(told)


def _dumped(workspace: config.Workspace) -> dict[str, Any]:
    with contextlib.closing(steps.Job(workspace, wait=120.0)) as job:
        return steps.dump(job)
