"""What is left of ChatGPT's tree and text after the plugin NEXUS AI Chat Importer wrote a talk down as a flat list of messages.

Branches: every regenerated answer and every edited prompt stands in the note, in the order of time and without a pointer to
what it follows; neighbours of one role are the only trace (`mark_variants`). Text: from 1.0.8 on its patterns collapse runs of
spaces and cut words out (`survived`), and leave pieces of citations behind (`strip_citations`). Pure; knows nothing about files.

Does not know which of two *separate* questions the owner went on with (`u1 a1 u2 a2 u2' a2'` looks like a talk that goes on),
nor what the cut words were: the talk's export knows both (`mend.py`).
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from vaultllm.chats.times import precision
from vaultllm.schema import Turn

_INDENTED = re.compile(r" {2,}\S")
_FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})")
# `citeturn0view2turn1news3`, `fileciteturn0file0L12-L20`, `turn0search1`: a reference whose delimiters were taken away.
_REFERENCE = re.compile(
    r"(?<![ \t])[ \t]*(?<![A-Za-z0-9_])(?:(?:file)?cite)?(?:turn\d+[a-z]+\d+(?:L\d+-L?\d+)?)+(?![A-Za-z0-9_])|(?<![ \t])[ \t]*\bfilecite\b"
)
_CITE = re.compile(r"(?<![ \t])[ \t]*(?<![\w\\-])cite(?:[ \t]+cite)*(?![\w(\[{-])")
_SENTENCE_ENDS = ".!?…।॥。！？"
_CLOSERS = _SENTENCE_ENDS + ')]»”"*'
_ABBREVIATIONS = ("e.g.", "i.e.", "etc.", "cf.", "vs.")


def survived(rows: Sequence[str]) -> bool:
    """Whether a text still has indentation, which the importer's patterns leave nowhere: they never ran over it."""
    return any(_INDENTED.match(row) for row in rows if row.startswith("  "))


def holds_code(text: str) -> bool:
    """Whether there is a fenced block of code in a text: what lost indentation hurts most."""
    return ("```" in text or "~~~" in text) and any(_FENCE.match(row) for row in text.split("\n"))


def strip_citations(rows: Sequence[str], words: bool) -> list[str]:
    """The rows without leftovers of citations, as many rows as before; code in fences stays as it is.

    A lone `cite` goes only if `words` is set (the assistant speaks) and only where a sentence has ended; elsewhere it is
    the English word.
    """
    if not [row for row in rows if "cite" in row or "turn" in row]:
        return list(rows)
    clean: list[str] = []
    fence = ""
    for row in rows:
        mark = _FENCE.match(row)
        if mark and (not fence or mark["marks"].startswith(fence)):
            fence = "" if fence else mark["marks"]
        elif not fence and ("cite" in row or "turn" in row):
            bare = _REFERENCE.sub("", row)
            bare = _CITE.sub(_without_cite, bare) if words else bare
            row = bare if row[:1] in " \t" else bare.lstrip(" \t")
        clean.append(row)
    return clean


def _without_cite(found: re.Match[str]) -> str:
    """Nothing when a `cite` is a leftover; the word itself when it may be English."""
    row, start, end = found.string, found.start(), found.end()
    after = end
    while after < len(row) and row[after] in " \t":
        after += 1
    at_end = after == len(row) or row[after] == "|"
    before = row[start - 1] if start else ""
    if not before:
        return "" if at_end else found[0]
    if found[0][0] == "c" and before == "." and row[max(0, start - 2)].isascii() and row[max(0, start - 2)].isalnum():
        return found[0]  # `natbib.cite` is a name
    if at_end:
        leftover = before in _CLOSERS or (before.isalpha() and not before.isascii())
    else:
        begins = row[after].isupper() or (row[after].isalpha() and not row[after].isascii()) or row[after] in "*•—"
        leftover = after > end and before in _SENTENCE_ENDS and begins and not row[max(0, start - 4) : start].endswith(_ABBREVIATIONS)
    return "" if leftover else found[0]


def untie(turns: Sequence[Turn | None]) -> list[Turn | None]:
    """Put a question before its answer where both carry the same second and nothing else can be meant.

    The importer orders ties by id. `None` is a message that was left out: next to one nothing is certain.
    """
    ordered = list(turns)
    for index in range(len(ordered) - 1):
        answer, question = ordered[index], ordered[index + 1]
        if answer is None or question is None or answer.role != "assistant" or question.role != "user":
            continue
        if not answer.at or answer.at != question.at or {precision(answer.at_raw), precision(question.at_raw)} != {"second"}:
            continue
        above = ordered[index - 1] if index else answer
        below = ordered[index + 2] if index + 2 < len(ordered) else question
        # An answer above means that this one answers nothing yet; a question below, that this one has no answer yet.
        if above is not None and above.role == "assistant" and below is not None and below.role == "user":
            ordered[index], ordered[index + 1] = question, answer
    return ordered


def mark_variants(turns: Sequence[Turn | None]) -> list[Turn | None]:
    """Name, in each run of neighbours of one role, the last one as what the earlier ones are variants of.

    A run ends at a message that was left out (an answer of which only an image is left is an answer), at one by `Unknown`
    (a tool), and where time runs backwards (a message that a later import appended at the end of the note).
    """
    marked = list(turns)
    if not any(one is not None and two is not None and one.role == two.role for one, two in pairwise(turns)):
        return marked
    times = Counter(turn.uid for turn in turns if turn is not None)
    standing = ""  # of the run's last message, seen from below
    for index in range(len(marked) - 1, -1, -1):
        turn, below = marked[index], marked[index + 1] if index + 1 < len(marked) else None
        if turn is None:
            continue
        together = below is not None and below.role == turn.role != "system" and "Unknown" not in (turn.author, below.author)
        if below is not None and together and not (turn.at and below.at and below.at < turn.at):
            marked[index] = dataclasses.replace(turn, variant_of=standing)
        else:
            standing = turn.uid if times[turn.uid] == 1 and turn.uid else f"line {turn.lines[0]}"
    return marked
