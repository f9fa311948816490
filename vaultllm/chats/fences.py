"""Which lines of a transcript lie in code fences, so that a head quoted in code never begins a message.

CommonMark alone is not enough here: an answer that was cut off (a limit of tokens) leaves its fence open, and would swallow
every head up to the closing mark of some later, whole code block. So a fence that is still open where the next message would
begin is a real one only if the marks that follow say so (`outside_fences` has the rule). Knows backtick and tilde fences
indented by at most three spaces; not those inside lists (deeper) or quotes. Linear in the number of lines.
"""

from __future__ import annotations

import bisect
import re
from collections.abc import Sequence
from dataclasses import dataclass

_MARK = re.compile(r" {0,3}(`{3,}|~{3,})(.*)$", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Mark:
    row: int
    char: str
    length: int
    bare: bool  # nothing follows it: only such a mark closes


def fence_mark(line: str) -> tuple[str, str] | None:
    """The mark (its backticks or tildes) and the text after it of a line that can open or close a fence; None for any other."""
    found = _MARK.match(line)
    if found is None or (found[1][0] == "`" and "`" in found[2]):
        return None
    return found[1], found[2].strip()


def outside_fences(lines: Sequence[str], first: int, heads: Sequence[int]) -> list[int]:
    """Those of `heads` (rows in order, from 0) that don't stand in a fence; `first` is the row on which the text begins.

    Heads cut the text into stretches. A fence that its own stretch leaves open hides the heads up to its closing mark,
    unless the first mark that could close it opens a block of its own: it names a language, or it and the rest of its
    stretch make up whole blocks (and the rest without it doesn't). A fence without any such mark hides nothing.
    """
    marks = _marks(lines, first)
    if not marks or not heads:
        return list(heads)
    after, closing = _next_marks(marks)
    ends = [bisect.bisect_left(marks, head, key=lambda mark: mark.row) for head in heads] + [len(marks)]
    stretch_of = [0] * len(marks)  # the stretch in which a mark stands: the number of heads above it
    for stretch, end in enumerate(ends):
        for mark in range(ends[stretch - 1] if stretch else 0, end):
            stretch_of[mark] = stretch
    whole = _whole(marks, closing, ends, stretch_of)

    hidden: set[int] = set()
    stretch, mark = 0, 0
    while stretch < len(ends):
        end = ends[stretch]
        while mark < end and closing[mark] < end:
            mark = closing[mark] + 1
        other = after[mark] if mark < end else len(marks)
        if other < len(marks) and marks[other].bare:
            there = stretch_of[other]
            start = ends[there - 1]
            if whole[other + 1] or other + 1 == ends[there] or not whole[start]:
                hidden.update(range(stretch, there))
                stretch, mark = there, other + 1
                continue
        mark, stretch = end, stretch + 1
    return [head for number, head in enumerate(heads) if number not in hidden]


def _marks(lines: Sequence[str], first: int) -> list[_Mark]:
    found: list[_Mark] = []
    for row in range(first, len(lines)):
        line = lines[row]
        if ("```" in line or "~~~" in line) and (mark := fence_mark(line)):
            found.append(_Mark(row, mark[0][0], len(mark[0]), not mark[1]))
    return found


def _next_marks(marks: Sequence[_Mark]) -> tuple[list[int], list[int]]:
    """For each mark the next of its kind that is at least as long, and the next such one that is bare; `len(marks)` if none."""
    none = len(marks)
    after, closing = [none] * none, [none] * none
    for bare_only, found in ((False, after), (True, closing)):
        stacks: dict[str, list[tuple[int, int]]] = {"`": [], "~": []}  # (-length, place), the nearest and shortest last
        for place in range(none - 1, -1, -1):
            mark, stack = marks[place], stacks[marks[place].char]
            # The stack's lengths grow from its end to its start, so the nearest one that is long enough is found by bisection.
            fits = bisect.bisect_right(stack, (-mark.length, none))
            found[place] = stack[fits - 1][1] if fits else none
            if mark.bare or not bare_only:
                while stack and -stack[-1][0] <= mark.length:
                    stack.pop()
                stack.append((-mark.length, place))
    return after, closing


def _whole(marks: Sequence[_Mark], closing: Sequence[int], ends: Sequence[int], stretch_of: Sequence[int]) -> list[bool]:
    """Whether the marks from each one to the end of its stretch are whole blocks, one after the other."""
    whole = [True] * (len(marks) + 1)
    for place in range(len(marks) - 1, -1, -1):
        end = ends[stretch_of[place]]
        onward = closing[place] + 1
        whole[place] = onward <= end and (onward == end or whole[onward])
    return whole
