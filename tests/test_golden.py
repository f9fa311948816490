"""Each numbered trap of the formats is a file with its expectation beside it (`tests/golden.py` says how they are made)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import golden


@pytest.mark.parametrize("path", golden.cases(), ids=lambda path: path.relative_to(golden.FOLDER).as_posix())
def test_what_is_read_is_what_is_expected(path: Path) -> None:
    expected = path.parent / (path.name + golden.SUFFIX)
    assert expected.is_file(), f"no expectation: python -m tests.golden '{path}', then read it"
    assert golden.document(path) == expected.read_text(encoding="utf-8")


def test_no_expectation_is_left_without_its_input() -> None:
    inputs = {path.name + golden.SUFFIX for path in golden.cases()}
    assert {path.name for path in golden.FOLDER.rglob("*" + golden.SUFFIX)} <= inputs
