"""`retrain` in a child process: answering goes on, the child steps back, and who asks is told how far it is.

Knows nothing about HTTP, nor about what a training does.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from vaultllm import config, steps
from vaultllm.config import Workspace
from vaultllm.errors import LockedError, VaultllmError
from vaultllm.schema import Progress

COMMAND: tuple[str, ...] = (sys.executable, "-c", "from vaultllm.api.training import child; child()")
_PATIENCE = 15.0  # seconds for a checkpoint, when it is stopped


class Training:
    """The one training that this process has started."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._state: dict[str, Any] = {"state": "idle"}
        self._lock = threading.Lock()

    def start(self, minutes: float | None = None, min_new: int | None = None) -> dict[str, Any]:
        """Begin, and say how it stands. Raises LockedError when one is under way here."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                raise LockedError("a training is under way; see how far it is, or stop it")
            root = str(Path(__file__).resolve().parents[2])
            path = os.pathsep.join(filter(None, (root, os.environ.get("PYTHONPATH"))))
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                cwd=self.workspace.state,  # chromadb reads a `.env` of the folder that it starts in
                env=os.environ | {"PYTHONPATH": path, "PYTHONUTF8": "1"},
                start_new_session=True,  # Ctrl-C in our terminal is ours; we tell it
            )
            if self._process.stdin is None:
                raise RuntimeError("no pipe to the child")
            asked = {"vault": str(self.workspace.vault), "state": str(self.workspace.state), "minutes": minutes, "min_new": min_new}
            with contextlib.suppress(OSError), self._process.stdin as pipe:
                pipe.write(json.dumps(asked).encode() + b"\n")
            self._state = {"state": "running", "phase": "starting", "done": 0.0}
            self._reader = threading.Thread(target=self._read, args=(self._process,), daemon=True, name="vaultllm-training")
            self._reader.start()
        return self.state()

    def state(self) -> dict[str, Any]:
        """How it stands: {state: idle, running, done or failed} and phase, done, loss, …; or result; or error."""
        return dict(self._state)

    def stop(self) -> dict[str, Any]:
        """Stop it; what it has learnt is kept, and the next one goes on there."""
        process = self._process
        if process is not None and process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            if self._reader is not None:
                self._reader.join(_PATIENCE)
        return self.state()

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        if process.stdout is None:
            raise RuntimeError("no pipe from the child")
        with process.stdout as said:
            for line in said:
                with contextlib.suppress(ValueError):
                    self._state = json.loads(line)
        code = process.wait()
        if self._state.get("state") == "running":
            why = "it was stopped; the next one goes on where it was" if code in (-signal.SIGTERM, 130) else f"its process ended ({code})"
            self._state = {"state": "failed", "error": {"code": "E-STOPPED", "message": why}}


def child() -> None:
    """The child: one line of JSON in, lines of JSON out, the last one with the result."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no line of ours

    def tell(**facts: Any) -> None:
        out.write(json.dumps(facts, ensure_ascii=False) + "\n")
        out.flush()

    def told(at: Progress) -> None:
        tell(state="running", **{name: value for name, value in dataclasses.asdict(at).items() if value is not None})

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stopped)
    asked = json.loads(sys.stdin.readline())
    try:
        job = steps.Job(config.open_workspace(asked["vault"], asked["state"]), progress=told)
        try:
            tell(state="done", result=steps.retrain(job, asked["minutes"], asked["min_new"]))
        finally:
            job.close()
    except VaultllmError as error:
        tell(state="failed", error={"code": error.code, "message": str(error).removeprefix(error.code).lstrip()})
    except KeyboardInterrupt:
        raise SystemExit(130) from None
    except Exception as error:  # the text could hold a note's words
        tell(state="failed", error={"code": "E-INTERNAL", "message": type(error).__name__})
