"""A scene before it is redacted, named and chained: what `exchanges.py` and `sections.py` hand to `scenes.py`.

Knows nothing about how it was cut out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from vaultllm import markdown
from vaultllm.schema import Kind, Lines, Trust, Turn

HAS_WORD = re.compile(r"\w")


@dataclass(slots=True)
class Draft:
    """A scene before it is redacted, named and chained."""

    key: tuple[str, ...]
    kind: Kind
    title: str
    headings: tuple[str, ...]
    turns: tuple[Turn, ...]
    lines: Lines
    at: str = ""
    uid: str = ""
    block: str = ""
    place: tuple[str, ...] = ()  # heading path at its beginning, for links
    reason: str = ""
    trust: Trust | None = None  # where it is not that of the note
    links: tuple[str, ...] | None = None  # targets, where the lines of the file do not tell


def visible(said: str) -> str:
    """`markdown.visible`, which only comments and block ids concern."""
    return markdown.visible(said) if "^" in said or "%%" in said or "<!--" in said else said
