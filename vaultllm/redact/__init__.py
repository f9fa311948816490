"""Secrets and personal data in a text -> marks such as `⟨email⟩`; the text keeps its lines.

Three ways of finding, each linear in the text: tokens that carry their own mark (`forms.py`), numbers that prove
themselves (`numbers.py`), and values behind a label («пароль: …») that have the form of a secret (`labels.py`).
Most texts hold nothing, which a look tells sooner (`sieve.py`). What is found is neither stored nor named: a finding is
a kind and a line. Knows nothing about notes, scenes or files.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vaultllm.redact import forms, labels, numbers, sieve
from vaultllm.redact.spans import Span
from vaultllm.schema import SECRET_KINDS

if TYPE_CHECKING:
    from vaultllm.config import RedactSettings

KINDS: tuple[str, ...] = SECRET_KINDS
"""Every kind that is found, as `off` names them; where two overlap, the earlier one names the mark."""

_RANK = {kind: rank for rank, kind in enumerate(KINDS)}
_PICTURE = re.compile(r"data:[\w/+.-]{0,100}+;base64,[A-Za-z0-9+/=]*+")
_WIKILINK = re.compile(r"\[\[[^\[\]\n]{1,300}\]\]")


@dataclass(frozen=True, slots=True)
class Finding:
    """That something was redacted; what it was is deliberately not here."""

    kind: str
    """One of `KINDS`."""
    line: int
    """The line of the text on which it begins, from 1."""


def redact(text: str, settings: RedactSettings) -> tuple[str, tuple[Finding, ...]]:
    """The text with each secret replaced by `⟨kind⟩`, and what was found, in order.

    The lines of the text stay: a secret of many lines becomes a mark on each. Doing it again changes nothing. Left
    alone: the kinds in `settings.off`, and whatever an expression of `settings.allow` is found in. Linear in the text.
    """
    found = [span for span in _spans(text) if span.kind not in settings.off]
    if found and settings.allow:
        found = [span for span in found if not any(one.search(text[span.start : span.end]) for one in _allowed(settings.allow))]
    if not found:
        return text, ()
    parts: list[str] = []
    findings: list[Finding] = []
    at, line = 0, 1
    for span in _merged(found):
        line += text.count("\n", at, span.start)
        findings.append(Finding(span.kind, line))
        rows = text[span.start : span.end].split("\n")
        parts += (text[at : span.start], "\n".join(_mark(row, span.kind) for row in rows))
        at, line = span.end, line + len(rows) - 1
    return "".join((*parts, text[at:])), tuple(findings)


def _mark(row: str, kind: str) -> str:
    """A line of a secret as a mark behind the line's own indentation and quote marks; blank lines stay."""
    body = row.lstrip(" \t>")
    return row[: len(row) - len(body)] + f"⟨{kind}⟩" if body.strip() else row


@functools.lru_cache(8)
def _allowed(patterns: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    return tuple(re.compile(pattern) for pattern in patterns)


def _merged(spans: list[Span]) -> Iterator[Span]:
    """Overlapping spans as one, named by the kind that knows most."""
    spans = sorted(spans)
    start, end, kind = spans[0]
    for span in spans[1:]:
        if span.start < end:
            end, kind = max(end, span.end), min(kind, span.kind, key=_RANK.__getitem__)
        else:
            yield Span(start, end, kind)
            start, end, kind = span
    yield Span(start, end, kind)


def _spans(text: str) -> list[Span]:
    """All that looks like a secret, overlaps included."""
    held = sieve.look(text)
    sure = list(forms.tokens(text)) if held.tokens else []
    likely = list(forms.mails(text)) if "@" in text else []
    plain = numbers.ascii_digits(text) if held.labelled or held.numbers else ""
    numeric = held.numbers and numbers.RUN.search(plain) is not None
    if held.labelled or numeric:
        likely += labels.labelled(plain, worded=held.labelled, numeric=numeric)
    if numeric:
        likely += numbers.numbers(plain)
    if (sure or likely) and "base64," in text:  # the letters of an embedded picture are no secret, whatever they spell
        pictures = [match.span() for match in _PICTURE.finditer(text)]
        sure, likely = _outside(sure, pictures), _outside(likely, pictures)
    if likely and "[[" in text:  # the name of a note is how it is found
        likely = _outside(likely, [match.span() for match in _WIKILINK.finditer(text)])
    return sure + likely


def _outside(spans: list[Span], areas: list[tuple[int, int]]) -> list[Span]:
    """Those that do not begin within one of the areas (in order, apart)."""
    kept = []
    place = 0
    for span in sorted(spans):
        while place < len(areas) and areas[place][1] <= span.start:
            place += 1
        if place == len(areas) or span.start < areas[place][0]:
            kept.append(span)
    return kept
