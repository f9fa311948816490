"""What the finders share: a found stretch of text, and the boundaries of a token. Knows nothing about kinds."""

from __future__ import annotations

from typing import NamedTuple

# Not within a longer word, and not beside one of our marks, which must stay as they are when a text is redacted twice;
# after `\n` typed as two characters (JSON in a note) a token does begin.
LEFT = r"(?:(?<![A-Za-z0-9_⟩])|(?<=\\[nrt]))"
END = r"(?![A-Za-z0-9_⟨])"
SEP = r"[ \u00a0().\u2010-\u2013-]{0,2}+"  # between the digits of a number as people group them


class Span(NamedTuple):
    """A stretch of a text that is a secret, by offsets."""

    start: int
    """First character."""
    end: int
    """One after the last."""
    kind: str
    """One of `schema.SECRET_KINDS`."""
