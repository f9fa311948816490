"""What takes the memory long (another embedder, learning from a large vault): done beside the ingests, in a child that steps back.

It answers when it is done; the daemon looks now and then. Knows nothing about events or notes, and logs no text of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from vaultllm.config import Workspace
from vaultllm.errors import VaultllmError
from vaultllm.hands import Ended, Hands

NICE = 10  # an ingest of a saved note, and whoever asks, go first


class Follower:
    """The child that follows, and what is known of its work."""

    def __init__(self, workspace: Workspace, say: Callable[..., None], wake: Callable[[], object] = lambda: None) -> None:
        self.say, self.pause = say, workspace.settings.watch.reconcile
        self.hands = Hands(workspace, wake, NICE)
        self.owed = False  # whether there is something to do; the ingests tell
        self.not_before = 0.0  # of the monotonic clock: what failed is not tried again at every saved note
        self.trouble = ""

    def begin(self) -> None:
        """Something is owed: start, unless it is under way or has just been tried."""
        if not self.hands.is_busy and time.monotonic() >= self.not_before:
            self.hands.begin("follow")

    def look(self, seconds: float = 0.0) -> None:
        """Log what came of it, if anything has within this time; then the child goes, with all that it holds."""
        try:
            done = self.hands.look(seconds)
        except VaultllmError as error:
            self.failed(error.code, error.message)
        except Ended as error:
            self.failed("E-INTERNAL", str(error))
        else:
            if done is None:
                return
            self.owed = done["owed"]
            if done["refitted"]:
                self.trouble = ""
                self.say("embedder", **{name: done[name] for name in ("name", "embedded", "reason")})
            self.failed("E-EMBED", done["away"])
        self.not_before = time.monotonic() + self.pause
        self.hands.end()

    def failed(self, code: str, message: str) -> None:
        """Log why, once."""
        if message and message != self.trouble:
            self.trouble = message
            self.say("problem", code=code, message=message)

    def end(self) -> None:
        """Stop it, within about a second; what it has done so far is kept."""
        self.hands.end()
