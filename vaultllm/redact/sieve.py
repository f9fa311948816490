"""Whether a text can hold a secret at all: looser forms of the finders' patterns, because most texts hold none.

The engine is the one that pydantic checks patterns with, Rust's `regex`: linear in the text, and it reads all labels at
once where `re` tries one after the other at every place. It cannot look around, so less is asked than the finders ask:
a text that passes may hold nothing, one that does not pass holds nothing (a test compares the two). Why four patterns,
and why they repeat without bound what the finders repeat up to a bound: the engine makes a state of every count and of
every label that still waits for its value, and is slow when the states are too many to keep. Knows nothing about spans.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable
from typing import NamedTuple

from pydantic_core import SchemaValidator, core_schema

from vaultllm.redact import forms, labels
from vaultllm.redact.spans import LEFT


class Held(NamedTuple):
    """What a text may hold."""

    tokens: bool
    """What `forms.tokens` finds."""
    labelled: bool
    """What `labels.labelled` finds without numbers of a phone's length."""
    numbers: bool
    """What `numbers.numbers` finds, and `labels.labelled` with such numbers."""


_LOOKS = re.compile(r"\(\?<?[=!][^()]*\)|\\b")
_LONG = re.compile(r"\{(\d+)(?:,\d*)?\}\+?$")

# Behind a label: words up to a sign (`labels._TAIL`); a word or two, or none (`labels._BARE`); what may stand around a value.
_SIGN = r"(?::=|=>|->|[:=|>\x{ff1a}]|[-—–][ \t]|(?:это|is|was|হলো?)[ \t]*:?)"
_SIGNED = rf"(?:_[^\s!-/:-@]+|\d+)?[\"'`*_\])»”]*(?: [^\s:=|—–.,;!?\"'`«»()\[\]{{}}<>/]+)*[*_`]*(?: \([^()\n]+\))?[ \t]*{_SIGN}"
_BARE = r"[\"'`*_]*(?:'s)?(?: [^\s0-9!-/]+){0,2} [\"'`*_]*"
_OPENED = r"[ \t*_~\\\"'`«“-]*"
_RUN = rf"{_OPENED}\S*[a-z\d-]{{8}}"  # what `labels.is_random` asks for first

_PAIRED = rf"(?:[\"'`*_)\]]*[ \t]*[:=—–-]|{_SIGNED})"
_VALUES = {  # by tier
    "token": _SIGNED + _RUN,
    "secret": rf"(?:{_SIGNED}{_RUN}|{_BARE}\S*\d)",
    "password": rf"(?:{_SIGNED}|{_BARE}\S*\d)",
    "pin": rf"(?:{_SIGNED}{_OPENED}|{_BARE})\d(?:[ кk-]*\d){{2}}",
    "login": _PAIRED,
    "pair": _PAIRED,
    "phrase": _PAIRED,
}
_VALUES["pass"] = _VALUES["password"]
_PAN = r"[^a-z\n]*(?:(?:card|number|no|is)[^a-z\n]*)*[a-z]{5}\d{4}[a-z]"
_SIGNLESS = {"curl": r"[^\n]* (?:-u|--user)[ =]", "mysql": r"[^\n]* -p", "sshpass": " +-p", "pan": _PAN, "প্যান": _PAN}
_SEED = r"[^\n:=—]*[:=—][ \t\"'`*«]*(?:[a-z]{3,8}[ ,]{1,2}){4}"

_BEFORE = r"(?:^|[^a-z0-9а-яё\x{980}-\x{9ff}])"  # a label begins no later than where a word does (`labels._in_word`)

_SEP = r"[ \x{a0}().\x{2010}-\x{2013}-]"
_NUMBER = r"(?:[^\n]*\d){6}"
_AROUND = r"[ :.№#*_`\"—–=|-]*"
_PHONE = rf"[^ \n]*{_AROUND}(?:(?:номер|number|নম্বর|no|is|на|по|at|on|me){_AROUND})?[+(]?\d(?:{_SEP}*\d){{6}}"
_GROUPED = "|".join(  # eleven digits, or ten with the signs that a number of ten needs; an IBAN
    (
        rf"\d(?:{_SEP}{{0,3}}\d){{10}}",
        rf"\+\d(?:{_SEP}{{0,2}}\d){{9}}",
        r"8[ -]?\(\d{4}",
        r"\d{5}[ -]\d{5}",
        r"\d{3}(?:\) ?|-)\d{3}-\d{4}",
        r"[A-Z]{2}\d\d(?: ?[A-Z\d]){11}",
    )
)


def look(text: str) -> Held:
    """What a text may hold. Linear in it; a text that UTF-8 cannot hold (a lone surrogate) may hold anything."""
    tokens, chance, words, numbers, readable = _sieves()
    if not readable(text):
        return Held(True, True, True)
    return Held(tokens(text), chance(text) or words(text), numbers(text))


@functools.cache
def _sieves() -> tuple[Callable[[str], bool], ...]:
    """Whether a pattern is in a text: tokens, labels of what is drawn by chance, other labels, numbers, and one that is in any text.

    Compiled on first use: starting the program needs none of it.
    """
    patterns = (_tokens(), *_labelled(), _numbers(), "")
    return tuple(SchemaValidator(core_schema.str_schema(pattern=pattern)).isinstance_python for pattern in patterns)


def _tokens() -> str:
    """A looser form of `forms.tokens`."""
    patterns = [pattern for _, _, pattern in forms.FORMS] + [pattern.pattern for pattern in forms.OTHERS]
    return (
        rf"(?:^|[^A-Za-z0-9_⟩]|\\[nrt])(?:{'|'.join(_loose(pattern) for pattern in patterns)})"
        rf"|PRIVATE KEY|{forms.OPENSSH}|://[^\s/]*@|:[^\s@/:]+@\d"
    )


def _loose(pattern: str) -> str:
    """A pattern of `forms` without what looks around; of a long run at its end the first sixteen."""
    bare = _LOOKS.sub("", pattern.replace(LEFT, "")).replace(r"\w", "[[:word:]]")
    return _LONG.sub(lambda match: f"{{{min(int(match[1]), 16)}}}", bare)


def _labelled() -> tuple[str, str]:
    """Looser forms of `labels.labelled` without its numbers: for values drawn by chance, and for the others."""
    chance: list[tuple[str, str]] = []
    words: list[tuple[str, str]] = []
    for stem, rest, tier in labels.LABELS:
        if rest == labels.CODES:
            words.append((f"{stem} code", r"[^\n]*\d"))
        elif re.compile(rest).groups:
            words.append((stem + _LOOKS.sub("", rest), ""))
        else:
            (chance if tier in ("token", "secret") else words).append((stem + rest, _VALUES[tier]))
    words += [(stem, _SIGNLESS[stem]) for stem, _, _ in labels.SIGNLESS]
    words += [(stem, _SEED) for stem, _, _ in labels.SEEDS]
    opens = labels.OPENS.pattern.removesuffix("[ _-]?$").replace(r"\w", ".") + r"[ _-]?\n?"
    opened = "|".join(stem + rest for stem, rest, _ in labels.LABELS if stem in labels.OPENED)
    # A password may stand within a word; the Kelvin sign is a capital k.
    anywhere = rf"passw(?:or)?d{_VALUES['password']}|(?-i:\x{{212a}})"
    return f"{_behind(chance)}|(?:{opens}|_)(?:{opened}){_VALUES['secret']}", f"{_behind(words)}|{anywhere}"


def _numbers() -> str:
    """A looser form of `numbers.numbers`, and of the labels of numbers."""
    labelled = _behind((stem, _PHONE if kind == "phone" else _NUMBER) for stem, _, kind in labels.NUMBERED)
    return f"{labelled}|(?-i:{_GROUPED})"


def _behind(rows: Iterable[tuple[str, str]]) -> str:
    """Labels, each where a word begins or a capital (`dbPassword`), with what follows them; those of a kind share what follows."""
    kinds: dict[str, list[str]] = {}
    for label, value in rows:
        kinds.setdefault(value, []).append(label)
    parts = []
    for value, those in kinds.items():
        capitals = [f"(?-i:{label[0].upper()}){label[1:]}" for label in those if label[0].upper() != label[0]]
        inside = f"|(?-i:[a-z])(?:{'|'.join(capitals)})" if capitals else ""
        parts.append(f"(?:{_BEFORE}(?:{'|'.join(those)}){inside}){value}")
    return "(?i)" + "|".join(parts)
