"""Code, comments and display math: the quick way for what closes on its line, and the slow one, are the same."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import assert_linear
from vaultllm import stretches
from vaultllm.stretches import Span, filled

PARTS = (
    *("`", "`", "``", "```", "~~~", "\\", "\n", "\n", "\n\n", " ", "a", "b c", "> ", "- ", "1. ", "# "),
    *("%%", "<!--", "<!--", "-->", "-->", "-", "--", ">", "$$", "$", "%", "<", "`x`", "``y`z``", "<!-- c-d -->", "^id", "|"),
)
OPENINGS = re.compile(r"`+|~~~+|%%|<!--|\$\$")


@given(st.lists(st.sampled_from(PARTS), max_size=25))
@settings(max_examples=500, deadline=None)
def test_what_closes_on_its_line_is_found_as_the_slow_way_finds_it(parts: list[str]) -> None:
    text = "".join(parts)
    quick = stretches.stretches(text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stretches, "_HOT", OPENINGS)  # openings alone: every end is looked for
        assert stretches.stretches(text) == quick


def test_a_comment_too_long_for_the_quick_way_is_found() -> None:
    for inner in ("a-" * 300, "x" * 3_000, "- " * 3_000):
        text = f"a <!--{inner}--> b"
        assert stretches.stretches(text) == [Span(2, len(text) - 2, "comment")]


@pytest.mark.parametrize(("text", "shown"), [("a `b", "a `b"), ("a `b` ^c", "a `b`"), ("a `^c`", "a `^c`"), ("a <!-- b --> ^c\n", "a\n")])
def test_ids_and_comments_are_not_shown(text: str, shown: str) -> None:
    assert stretches.visible(text) == shown


def test_spans_may_touch_and_overlap_and_lines_stay() -> None:
    assert filled("abcdef\ng", [(1, 2), (2, 3), (2, 5), (4, 8)], "x") == "axxxxx\nx"
    assert filled("abc", [(0, 2), (1, 2)], "") == "c"


@pytest.mark.parametrize(
    "unit", ["<!--", "<!-- - ", "`a", "`` ` ", "``a`\n", "\\`", "%% ", "$$\n", "~~~", "a-->", "`<!--", "<!--" + "-" * 40]
)
def test_time_grows_with_length_only(unit: str) -> None:
    def read(text: str) -> None:
        stretches.stretches(text)
        stretches.visible(text + "^id")

    assert_linear(lambda size: unit * (size // len(unit)), read, 50_000)
