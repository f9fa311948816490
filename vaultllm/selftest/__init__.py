"""What the promises of `docs/reliability.md` are tried with, on this machine and on vaults made for it: never on the user's own.

Each module tries one kind of harm and returns a `Finding`; `vaultllm selftest` runs them and prints the table. Knows nothing about
how the harm is done.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

Size = Literal["quick", "soak"]
"""How much is tried: what fits into a test, or what a night is for."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one kind of harm did."""

    name: str
    """What was tried, in a few words: `kill points`."""
    promises: Sequence[str]
    """The promises that it is about: `("R1",)`."""
    tried: int
    """How often."""
    failures: Sequence[str]
    """What broke a promise: for each what happened, and what does it again (a seed, a point)."""
    seconds: float
    """Of the clock."""
    figures: Mapping[str, float | int | str] = field(default_factory=dict)
    """What else was measured, by name with its unit: `slowest_s`."""
    skipped: str = ""
    """Why nothing could be tried here; "" when it was."""

    @property
    def holds(self) -> bool:
        """Whether it was tried and nothing broke."""
        return self.tried > 0 and not self.failures
