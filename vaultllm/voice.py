"""What is asked in notes is answered beside the ingests, in a child that keeps the model for a while.

One answer at a time, each note once: what failed is told, and tried again only when something else is asked. Knows nothing about notes
but their paths, and logs neither these nor any text.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from vaultllm.config import Workspace
from vaultllm.errors import VaultllmError
from vaultllm.hands import Ended, Hands
from vaultllm.heartbeat import Heart

IDLE = 600.0  # seconds without a question after which the model is let go, as `serve` does


class Voice:
    """The child that answers, what waits for it, and what is known of its work. For one thread."""

    def __init__(self, workspace: Workspace, say: Callable[..., None], heart: Heart, wake: Callable[[], object]) -> None:
        self.say, self.heart = say, heart
        self.rest = max(0.0, workspace.settings.answers.wait - workspace.settings.watch.settle)  # seconds; it has settled already
        self.hands = Hands(workspace, wake, idle=IDLE)
        self.waiting: dict[str, float] = {}  # note -> when it may be answered, by the monotonic clock
        self.path = ""
        """The note that is being answered in; empty: none."""

    def saved(self, saved: Collection[str], asked: Collection[str]) -> None:
        """These notes were saved and have settled; in some of them something was `asked`."""
        now = time.monotonic()
        self.waiting |= {path: now + self.rest for path in saved if path in self.waiting or path in asked}

    def wait(self, now: float) -> float | None:
        """Seconds until there is something to begin; None when there is nothing, or an answer is under way."""
        return None if self.path or not self.waiting else max(0.0, min(self.waiting.values()) - now)

    def turn(self, now: float, unsettled: Callable[[], Collection[str]]) -> None:
        """Look what became of an answer; begin the next, in a note that rests: that is not `unsettled`."""
        if self.path:
            self.look()
        due = [] if self.path else [path for path, when in self.waiting.items() if when <= now]
        moving = unsettled() if due else ()
        if (rests := next((path for path in due if path not in moving), None)) is not None:
            self.path = rests
            del self.waiting[rests]
            self.hands.begin("reply", path=rests)
        self.hands.rest()

    def look(self) -> None:
        """Log what became of it, if anything has."""
        try:
            done = self.hands.look()
        except VaultllmError as error:
            self.failed(error.code, error.message)
        except Ended as error:
            self.failed("E-INTERNAL", f"no answer: {error}")
        else:
            if done is None:
                return
            if done["stopped"]:
                self.tell("answer_stopped", answer=done["answer"], why=done["stopped"], seconds=done["seconds"])
            elif done["answer"]:
                self.tell("answered", answer=done["answer"], sources=done["sources"], seconds=done["seconds"])
        self.path = ""

    def failed(self, code: str, message: str) -> None:
        """Tell why a question in a note was not answered."""
        self.tell("problem", code=code, message=f"a question in a note was not answered: {message}")

    def tell(self, event: str, **facts: object) -> None:
        """In the log, and for `status`."""
        self.say(event, **facts)
        self.heart.beat(last={"event": event, **facts})

    def end(self) -> None:
        """Stop it, within about a second; an answer that is under way stays unfinished."""
        self.hands.end()
