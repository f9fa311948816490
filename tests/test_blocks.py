"""The quick rules for blocks and markdown-it's rules must agree on every text; and what either takes is linear."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import assert_linear
from vaultllm import blocks
from vaultllm.blocks import Piece

LINES = (
    *("", "", "text", "text more", "   three", "    code", "\tcode", "   \t", "#tag", "# H", "#", "==h==", "**b**", "_a_", "`c` x"),
    *("- x", "- ", "-", "* b", "+ c", "  - n", "    - m", "      deep", "   - r", "\t- tab", "-\tx", "- [ ] t", "-     code"),
    *("1. x", "2) y", "1.", "2. z", "01. k", "10. w", "    w", "1)  x", "5.", "- a\n\n  p", "- a\n  b", "1. ```"),
    *("> q", ">", ">> z", "> - a", "> # h", "> ```", "   > q3", "    > q4", "- > q", "  > q2", "> <!--"),
    *("```", "~~~", "````py", "``` a`b", "   ```", "`````", "---", "* * *", "===", "--", "-"),
    *("|a|b|", "|-|-|", "| :-: |", "|a\\|b|", "|x|y|z|", "|", "|--|--", " |a|b|", "|a|b| "),
    *("a | b", "--- | ---", "a|", ":-", ":-:", "-:", "- :", "<div>", "</div>", "<!-- x -->", "<!--", "-->", "<b>x</b>"),
)


def by_the_rules(lines: list[str]) -> list[Piece]:
    slow = blocks._Slow(lines)
    found: list[Piece] = []
    at = 0
    while at < len(lines):
        if lines[at].strip(" \t"):
            found.append(slow.at(at))
            at = found[-1].end
        else:
            at += 1
    return found


def trimmed(pieces: list[Piece], lines: list[str]) -> list[Piece]:
    ends = [max(n for n in range(p.start, p.end) if lines[n].strip(" \t")) + 1 for p in pieces]
    return [piece._replace(end=end) for piece, end in zip(pieces, ends, strict=True)]


@given(st.lists(st.sampled_from(LINES), max_size=10))
@settings(max_examples=500, deadline=None)
def test_the_quick_rules_agree_with_the_full_ones(parts: list[str]) -> None:
    lines = "\n".join(parts).split("\n")
    assert trimmed(blocks.split(lines)[0], lines) == trimmed(by_the_rules(lines), lines)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("> ```\n> x\n> ```\ntext", [("quote", 0, 3), ("paragraph", 3, 4)]),
        ("> # h\ntext", [("quote", 0, 1), ("paragraph", 1, 2)]),
        ("> - a\nlazy", [("quote", 0, 2)]),
        ("> a\n- b", [("quote", 0, 1), ("list", 1, 2)]),
        ("- > ```\n  > x\ntext", [("list", 0, 2), ("paragraph", 2, 3)]),
        ("- a\n\n  b\n\ntext", [("list", 0, 3), ("paragraph", 4, 5)]),
        ("text\n- list", [("paragraph", 0, 1), ("list", 1, 2)]),
        ("text\n- - -\n- ", [("paragraph", 0, 1), ("rule", 1, 2), ("list", 2, 3)]),
        ("|a|b|\n|-|-|\n|c\n|\n> q", [("table", 0, 4), ("quote", 4, 5)]),
        ("|a|b|\n|-|-|\nlazy\n\n|x|", [("table", 0, 3), ("paragraph", 4, 5)]),
        ("text\n2. no list", [("paragraph", 0, 2)]),
        ("text\n1. list", [("paragraph", 0, 1), ("list", 1, 2)]),
        ("Set\next\n---\n---", [("heading", 0, 3), ("rule", 3, 4)]),
        ("````md\n```\nx\n```\n````\ny", [("code", 0, 5), ("paragraph", 5, 6)]),
        ("text\na | b\n--|--\n1 | 2\n\nend", [("paragraph", 0, 1), ("table", 1, 4), ("paragraph", 5, 6)]),
    ],
)
def test_where_blocks_end(text: str, expected: list[tuple[str, int, int]]) -> None:
    assert [piece[:3] for piece in blocks.split(text.split("\n"))[0]] == expected


@pytest.mark.parametrize(
    "unit",
    [
        "> ",
        "- ",
        "- a\nb\n",
        "> a\nb\n",
        "- > - > a\n",
        "a\n- b\n",
        "* a\n\n - b\n",
        "1. a\n  b\n",
        "|a|\n",
        "|-|-|\n",
        "text\n- \n",
        "> ```\nb\n",
        "  > ```\n  b\n",
    ],
)
def test_time_grows_with_length_only(unit: str) -> None:
    def read(lines: list[str]) -> None:
        blocks.split(lines)
        blocks.tokens(lines)

    for begin, end in (("", ""), ("- x\n", "\nlazy")):
        assert_linear(lambda size: (begin + unit * (size // len(unit)) + end).split("\n"), read, 15_000)  # noqa: B023


def test_what_is_nested_too_deep_for_the_rules_is_said() -> None:
    deep = ["  " * depth + "- x" for depth in range(250)]
    assert blocks.split(deep) == ([Piece("list", 0, 250)], False)
    pieces, too_deep = blocks.split([*deep, "lazy"])
    assert (pieces[0].start, pieces[-1].end, too_deep) == (0, 251, True)
