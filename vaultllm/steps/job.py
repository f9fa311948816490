"""What every step is given, and what several of them need: a note's path as the vault knows it, the model that answers."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from vaultllm import config, locks
from vaultllm.ledger import Ledger
from vaultllm.schema import Problem, Report, silent
from vaultllm.text import nfc

if TYPE_CHECKING:
    from vaultllm.memory.rephrase import Rephraser
    from vaultllm.memory.rerank import Judge


@dataclass
class Job:
    """What every step is given."""

    workspace: config.Workspace
    """Vault, state, settings."""
    progress: Report = silent
    """Called with where the work stands."""
    stream: Callable[[str], None] | None = None
    """Called with pieces of an answer as they are made; None: nobody reads along."""
    wait: float = 30.0
    """Seconds to wait for another process that writes."""
    background: bool = False
    """Whether what takes the memory long (another embedder, learning) is left to somebody else: the daemon's own thread, a later ingest."""
    cancel: threading.Event | None = None
    """Set when nobody waits for an answer any more; None: somebody always does."""
    _ledger: Ledger | None = field(default=None, repr=False)

    @property
    def ledger(self) -> Ledger:
        """The open ledger."""
        if self._ledger is None:
            self._ledger = Ledger(self.workspace.ledger)
        return self._ledger

    @functools.cached_property
    def judge(self) -> Judge | None:
        """Who reorders what was found, as `memory.rerank` says; kept, for it may hold a model."""
        if not self.workspace.settings.memory.rerank:
            return None
        from vaultllm import registry

        return registry.judge(self.workspace, self.ledger)

    @functools.cached_property
    def rephraser(self) -> Rephraser | None:
        """Who writes what else to look for, as `memory.rewrite` says; kept, for it remembers what it wrote."""
        if not self.workspace.settings.memory.rewrite:
            return None
        from vaultllm import answer

        return answer.rephraser(self.workspace, self.ledger)

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    @contextlib.contextmanager
    def lock(self, name: Literal["lock", "train.lock", "watch.lock"] = "lock", wait: float | None = None) -> Iterator[None]:
        """Be the only writer. Raises LockedError naming the holder, pid and command, when it does not become free in time."""
        with locks.held(self.workspace.state / name, self.wait if wait is None else wait, waiting=self.progress):
            yield


def answering_base(job: Job) -> str:
    """The model that answers, for a memory whose embedder it is; else ""."""
    from vaultllm import registry
    from vaultllm.memory import live

    if not live.is_plain_model(job.workspace.settings.memory):
        return ""
    serving = registry.serving(job.workspace, job.ledger)
    return "" if serving is None else serving[0]


def problem_entry(path: str, problem: Problem) -> dict[str, Any]:
    """A problem as every `--json` shows it."""
    return {"path": path, "line": problem.line, "code": problem.code, "count": problem.count, "message": problem.message}


def relative(job: Job, path: str) -> str:
    """A note's path as the vault knows it; taken too: absolute, from the folder one stands in, in another form of Unicode."""
    vault = job.workspace.vault
    given = config.path_of(path)
    if given.is_absolute() or (not (vault / given).exists() and given.exists()):
        whole = given.resolve()
        given = whole.relative_to(vault) if whole.is_relative_to(vault) else given
    path = given.as_posix()
    if job.ledger.knows(path):
        return path
    # Also when the file is there: macOS opens a name in any form of Unicode, the ledger knows only the one on disk.
    other = next((known for known in job.ledger.known() if nfc(known) == nfc(path)), path)
    is_another = (vault / path).exists() and (vault / other).exists() and not (vault / path).samefile(vault / other)
    return path if is_another else other
