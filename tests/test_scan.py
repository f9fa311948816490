"""The scan of all vectors: the same cosines as numpy's over the ledger, whatever was written in between, reading only what is new."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.test_recall import put
from vaultllm.ledger import Ledger
from vaultllm.memory.scan import Scan

DIMS = 16


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """Ten notes of one passage each, no vectors yet."""
    with Ledger(tmp_path / "ledger.db") as opened:
        for number in range(10):
            put(opened, f"{number}.md", f"# Заметка {number}\n\nВода в колодце номер {number} стоит низко с прошлой осени.\n")
        yield opened


def slots(ledger: Ledger) -> list[int]:
    return [slot for (slot,) in ledger.db.execute("SELECT slot FROM passages ORDER BY slot")]


def units(count: int, seed: int = 0, dims: int = DIMS) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(count, dims)).astype(np.float32)
    return drawn / np.linalg.norm(drawn, axis=1, keepdims=True)


def same(scan: Scan, ledger: Ledger, embedder: str = "one", dims: int = DIMS) -> None:
    """What the scan says is what numpy says of `ledger.vectors`."""
    asked = units(1, seed=99, dims=dims)[0]
    leg = scan.cosines(embedder, asked)
    held, vectors = ledger.vectors(embedder)
    assert len(set(leg.slots.tolist())) == len(leg.slots) == len(leg.scores)
    found = dict(zip(leg.slots.tolist(), leg.scores.tolist(), strict=True))
    right = dict(zip(held, (vectors @ asked).tolist(), strict=True)) if held else {}
    assert found == pytest.approx(right, abs=1e-6)


class Reads:
    """How many rows of vectors a connection was asked for: every statement that reads `vector`, from after which stamp."""

    def __init__(self, ledger: Ledger) -> None:
        self.statements: list[str] = []
        ledger.db.set_trace_callback(self.statements.append)

    def of_vectors(self) -> list[str]:
        return [one for one in self.statements if one.startswith("SELECT passage, vector")]


def test_cosines_equal_numpys_over_the_ledgers_vectors(ledger: Ledger) -> None:
    ledger.put_vectors("one", slots(ledger), units(10))
    same(ledger.scan, ledger)
    assert ledger.scan.cosines("one", units(1)[0]).scores.dtype == np.float64
    assert ledger.scan.cosines("one", units(10)[3]).best(1)[0] == (slots(ledger)[3], pytest.approx(1.0, abs=1e-6))


def test_without_vectors_there_is_nothing_and_no_error(ledger: Ledger) -> None:
    leg = ledger.scan.cosines("one", units(1)[0])
    assert (leg.slots.tolist(), leg.scores.tolist()) == ([], [])
    ledger.put_vectors("one", slots(ledger)[:2], units(2))
    same(ledger.scan, ledger)


def test_what_is_added_later_is_found(ledger: Ledger) -> None:
    every = slots(ledger)
    for start in range(0, 10, 3):
        ledger.put_vectors("one", every[start : start + 3], units(len(every[start : start + 3]), seed=start))
        same(ledger.scan, ledger)
    assert len(ledger.scan.cosines("one", units(1)[0]).slots) == 10


def test_a_vector_that_was_replaced_counts_and_the_old_one_no_more(ledger: Ledger) -> None:
    every = slots(ledger)
    ledger.put_vectors("one", every, units(10))
    same(ledger.scan, ledger)
    ledger.put_vectors("one", every[4:6], units(2, seed=7))  # their number stays, only the stamp tells
    same(ledger.scan, ledger)


def test_what_was_removed_is_gone_also_when_as_many_are_new(ledger: Ledger) -> None:
    every = slots(ledger)
    ledger.put_vectors("one", every[:8], units(8))
    same(ledger.scan, ledger)
    ledger.remove_note("0.md")
    same(ledger.scan, ledger)
    ledger.remove_note("7.md")  # one of the latest
    ledger.put_vectors("one", every[8:9], units(1, seed=3))
    same(ledger.scan, ledger)
    assert set(ledger.scan.cosines("one", units(1)[0]).slots.tolist()) == {*every[1:7], every[8]}


def test_a_passage_whose_words_changed_has_no_vector_until_it_gets_one(ledger: Ledger) -> None:
    every = slots(ledger)
    ledger.put_vectors("one", every, units(10))
    same(ledger.scan, ledger)
    put(ledger, "3.md", "# Заметка 3\n\nТеперь здесь написано о ржаном хлебе, а не о воде в колодце.\n")
    same(ledger.scan, ledger)
    assert every[3] not in ledger.scan.cosines("one", units(1)[0]).slots
    ledger.put_vectors("one", every[3:4], units(1, seed=5))
    same(ledger.scan, ledger)


def test_all_vectors_may_go_and_come_back(ledger: Ledger) -> None:
    every = slots(ledger)
    ledger.put_vectors("one", every, units(10))
    same(ledger.scan, ledger)
    ledger.drop_vectors("another")
    same(ledger.scan, ledger)
    assert len(ledger.scan.cosines("one", units(1)[0]).slots) == 0
    ledger.put_vectors("one", every, units(10, seed=2))  # the stamps begin at 1 again
    same(ledger.scan, ledger)


def test_another_embedder_of_other_dimensions_takes_its_place_and_back(ledger: Ledger) -> None:
    every = slots(ledger)
    ledger.put_vectors("one", every, units(10))
    same(ledger.scan, ledger)
    ledger.put_vectors("two", every[:6], units(6, dims=5))
    same(ledger.scan, ledger, "two", dims=5)
    same(ledger.scan, ledger)
    ledger.drop_vectors("two")
    same(ledger.scan, ledger, "two", dims=5)
    assert len(ledger.scan.cosines("one", units(1)[0]).slots) == 0


def test_a_connection_sees_what_another_one_writes(ledger: Ledger, tmp_path: Path) -> None:
    every = slots(ledger)
    ledger.put_vectors("one", every[:5], units(5))
    same(ledger.scan, ledger)
    with Ledger(tmp_path / "ledger.db") as other:
        same(other.scan, other)
        other.put_vectors("one", every[5:], units(5, seed=1))
        other.put_vectors("one", every[:1], units(1, seed=2))
        other.remove_note("2.md")
        same(other.scan, other)
        same(ledger.scan, ledger)
        assert len(ledger.scan.cosines("one", units(1)[0]).slots) == 9


def test_only_what_is_new_is_read(ledger: Ledger) -> None:
    every = slots(ledger)
    ledger.put_vectors("one", every[:9], units(9))
    reads = Reads(ledger)
    asked = units(1)[0]
    ledger.scan.cosines("one", asked)
    assert len(reads.of_vectors()) == 1
    for _ in range(5):
        ledger.scan.cosines("one", asked)
    assert len(reads.of_vectors()) == 1, "nothing changed, and vectors were read again"
    ledger.put_vectors("one", every[9:], units(1, seed=1))
    ledger.scan.cosines("one", asked)
    assert len(reads.of_vectors()) == 2
    again = reads.of_vectors()[1]
    assert ledger.db.execute(again).fetchall() == [(every[9], ledger.vectors("one", every[9:])[1][0].tobytes())]


def test_what_was_removed_makes_no_vector_be_read(ledger: Ledger) -> None:
    ledger.put_vectors("one", slots(ledger), units(10))
    ledger.scan.cosines("one", units(1)[0])
    ledger.remove_note("4.md")
    reads = Reads(ledger)
    ledger.scan.cosines("one", units(1)[0])
    assert all(not ledger.db.execute(one).fetchall() for one in reads.of_vectors())
    ledger.db.set_trace_callback(None)
    same(ledger.scan, ledger)


def test_vectors_that_were_looked_at_amid_a_transaction_that_failed_are_gone(ledger: Ledger) -> None:
    ledger.put_vectors("one", slots(ledger)[:5], units(5))
    same(ledger.scan, ledger)
    ledger.db.execute("BEGIN IMMEDIATE")
    ledger.put_vectors("one", slots(ledger)[5:7], units(2, seed=1))
    same(ledger.scan, ledger)
    ledger.db.execute("ROLLBACK")
    ledger.put_vectors("one", slots(ledger)[7:9], units(2, seed=2))  # under the stamps that the others had
    same(ledger.scan, ledger)


def test_any_run_of_changes_leaves_what_the_ledger_holds(ledger: Ledger) -> None:
    draw = np.random.default_rng(5)
    for step in range(40):
        some = draw.choice(slots(ledger), size=int(draw.integers(1, 6)), replace=False).tolist()
        if draw.random() < 0.4:
            ledger.db.executemany("DELETE FROM vectors WHERE passage = ?", [(slot,) for slot in some])
        else:
            ledger.put_vectors("one", some, units(len(some), seed=step))
        if draw.random() < 0.7:
            same(ledger.scan, ledger)
    same(ledger.scan, ledger)
