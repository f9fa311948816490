"""`vaultllm selftest`: every part is in the table, none hides another, and what breaks is told with what does it again."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from vaultllm import selftest
from vaultllm.errors import UsageError
from vaultllm.selftest import Finding, Size, table

PACKAGE = Path(selftest.__file__).parent
REPO = Path(__file__).resolve().parents[1]


def quiet(_: str) -> None:
    """Nobody listens."""


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[..., Finding]]:
    """Parts of our own in place of the real ones: filled by the test."""
    made: dict[str, Callable[..., Finding]] = {}
    known: dict[str, str] = {"good": "what holds", "bad": "what breaks", "ugly": "what raises", "absent": "what cannot be tried"}
    monkeypatch.setattr(table, "PARTS", known)
    real = importlib.import_module
    monkeypatch.setattr(
        importlib,
        "import_module",
        lambda name, *rest: SimpleNamespace(run=made[name.rpartition(".")[2]]) if name.rpartition(".")[2] in known else real(name, *rest),
    )

    def good(work: Path, size: Size, seed: int, told: Callable[[str], None], *, minutes: float = 0) -> Finding:
        told("half")
        assert work.is_dir()
        assert not any(work.iterdir())
        return Finding("good things", ("R1", "R2"), 1200, (), 1.5, {"minutes": minutes, "which": "all", "seed": seed})

    def bad(work: Path, size: Size, seed: int, told: Callable[[str], None]) -> Finding:
        return Finding("bad things", ("R3",), 7, (f"broke at point 4 (seed {seed})",), 0.2)

    def ugly(work: Path, size: Size, seed: int, told: Callable[[str], None]) -> Finding:
        raise ValueError("no such thing")

    def absent(work: Path, size: Size, seed: int, told: Callable[[str], None]) -> Finding:
        return Finding("absent things", ("R4",), 0, (), 0.0, skipped="there is none here")

    made |= {"good": good, "bad": bad, "ugly": ugly, "absent": absent}
    return made


def test_every_module_with_a_run_is_in_the_table_imports_and_takes_what_the_others_take() -> None:
    def has_run(path: Path) -> bool:
        found = ast.parse(path.read_text(encoding="utf-8")).body
        return any(isinstance(one, ast.FunctionDef) and one.name == "run" for one in found)

    assert {path.stem for path in PACKAGE.glob("*.py") if has_run(path)} == set(table.PARTS)
    for name in table.PARTS:
        run = importlib.import_module(f"vaultllm.selftest.{name}").run
        assert list(inspect.signature(run).parameters)[:4] == ["work", "size", "seed", "told"], name


@pytest.mark.usefixtures("parts")
def test_a_part_that_raises_is_its_own_failure_and_the_next_one_is_tried(tmp_path: Path) -> None:
    said: list[str] = []
    found = list(table.each(tmp_path, "soak", 5, said.append, minutes=2.0))
    assert [(one.part, one.status) for one in found] == [("good", "holds"), ("bad", "FAILED"), ("ugly", "FAILED"), ("absent", "skipped")]
    assert found[0].finding.figures == {"minutes": 2.0, "which": "all", "seed": 5}
    assert "ValueError: no such thing (test_selftest.py:" in found[2].finding.failures[0]
    assert said == ["good: what holds", "good: half", "bad: what breaks", "ugly: what raises", "absent: what cannot be tried"]
    assert table.exit_code(found) == 1


@pytest.mark.usefixtures("parts")
def test_the_table_says_how_often_what_broke_and_how_to_do_it_again(tmp_path: Path) -> None:
    found = list(table.each(tmp_path, "quick", 5, quiet, minutes=2.0))
    said = table.lines(found)
    assert said[0].split() == ["part", "what", "was", "tried", "promises", "times", "failures", "seconds"]
    assert said[1].split() == ["good", "good", "things", "R1", "R2", "1,200", "0", "2", "holds"]
    assert "good: minutes 0, which all, seed 5" in said
    assert "bad: FAILED: broke at point 4 (seed 5)" in said
    assert "bad: again: vaultllm selftest --only bad --seed 5" in said
    assert "absent: skipped: there is none here" in said
    told = table.record(found)
    assert [one["status"] for one in told["parts"]] == ["holds", "FAILED", "FAILED", "skipped"]
    assert told["holds"] is False


@pytest.mark.usefixtures("parts")
def test_what_does_a_soak_again_names_its_minutes_and_only_what_takes_them(tmp_path: Path) -> None:
    found = list(table.each(tmp_path, "soak", 0, quiet, only=["bad", "good"], minutes=3))
    assert [one.again for one in found] == [
        "vaultllm selftest --soak --only good --seed 0 --minutes 3",
        "vaultllm selftest --soak --only bad --seed 0",
    ]


@pytest.mark.parametrize(("only", "code"), [(["good"], 0), (["good", "absent"], 0), (["absent"], 1), (["bad"], 1)])
@pytest.mark.usefixtures("parts")
def test_the_exit_code_is_0_only_if_something_was_tried_and_nothing_broke(tmp_path: Path, only: list[str], code: int) -> None:
    found = list(table.each(tmp_path, "quick", 0, quiet, only=only))
    assert table.exit_code(found) == code


def test_a_part_that_tried_nothing_without_a_reason_has_failed(tmp_path: Path, parts: dict[str, Callable[..., Finding]]) -> None:
    parts["good"] = lambda work, size, seed, told: Finding("nothing", ("R1",), 0, (), 0.0)
    (one,) = table.each(tmp_path, "quick", 0, quiet, only=["good"])
    assert one.status == "FAILED"
    assert "good: FAILED: nothing was tried" in table.lines([one])


def test_an_unknown_part_is_named_before_anything_is_tried(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'crush'.*Did you mean 'crash'"):
        table.each(tmp_path, "quick", 0, quiet, only=["crush"])
    assert not any(tmp_path.iterdir())


def test_a_folder_with_something_in_it_is_refused_and_left_alone(tmp_path: Path) -> None:
    assert table.emptied(tmp_path / "new" / "one") == (tmp_path / "new" / "one").resolve()
    note = tmp_path / "note.md"
    note.write_text("mine", encoding="utf-8")
    for folder in (tmp_path, note):
        with pytest.raises(UsageError, match="--dir"):
            table.emptied(folder)
    assert note.read_text(encoding="utf-8") == "mine"


def test_the_document_has_each_promise_once_and_every_test_file_and_part_that_it_names_exists() -> None:
    text = (REPO / "docs" / "reliability.md").read_text(encoding="utf-8")
    promises = [line.split(" | ") for line in text.splitlines() if re.match(r"\| R\d+ \|", line)]
    assert [cells[0].strip("| ") for cells in promises] == [f"R{number}" for number in range(1, 27)]
    for cells in promises:
        assert len(cells) == 5, cells[0]
        assert re.search(r"`(vaultllm selftest|pytest) ", cells[4]), cells[0]
    files = re.findall(r"tests/test_\w+\.py", text)
    assert [file for file in files if not (REPO / file).is_file()] == []
    assert len(set(files)) > 15
    assert set(re.findall(r"--only (\w+)", text)) == set(table.PARTS)
    tried = {name: (REPO / "vaultllm" / "selftest" / f"{name}.py").read_text(encoding="utf-8") for name in table.PARTS}
    for cells in promises:
        for name in re.findall(r"selftest --soak --only (\w+)", cells[4]):
            assert f'"{cells[0].strip("| ")}"' in tried[name], f"{name} does not say that it tries {cells[0]}"
