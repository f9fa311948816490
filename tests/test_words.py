"""The words index finds what was indexed, forgets what was removed, and takes any string as a question."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import database, ledger, text
from vaultllm.memory import words


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    base = _base()
    yield base
    base.close()


def _base() -> sqlite3.Connection:
    base = sqlite3.connect(":memory:", isolation_level=None)
    for statement in database.MIGRATIONS[0].split(";"):
        if statement.strip():
            base.execute(statement)
    return base


PASSAGES = {
    1: ("Помпа включается, когда влажность почвы ниже 32 %.", "Теплица\n2025-07-19"),
    2: ("খিচুড়ি রান্নার আগে মুগ ডাল ভেজে নিতে হয়।", "দিদিমার রেসিপি"),
    3: ("The third rib leaked and was mended with epoxy.", "Kayak #лодка"),
    4: ("Ёжик поселился у бочки.", "Дача"),
    5: ("snake_case и C++ живут в одном файле 😀", "Код"),
}


def _fill(db: sqlite3.Connection) -> None:
    for slot, (body, context) in PASSAGES.items():
        words.add(db, [(slot, words.terms(body, context))])


def _best(found: list[tuple[int, float]]) -> int:
    return found[0][0]


@pytest.mark.parametrize(
    ("query", "slot"),
    [("влажности почв", 1), ("খিচুড়ি", 2), ("মুগ ডাল", 2), ("leaking ribs", 3), ("ежики", 4), ("ЁЖИК", 4), ("snake_case", 5), ("Теплица", 1)],
)
def test_stems_find_a_passage_in_any_of_its_languages(db: sqlite3.Connection, query: str, slot: int) -> None:
    _fill(db)
    assert _best(words.search_stems(db, query, 5)) == slot


@pytest.mark.parametrize(("query", "slot"), [("влажнасть", 1), ("খিচুড়ির", 2), ("epoxi", 3), ("бочкой", 4)])
def test_grams_find_a_passage_through_typos_and_endings(db: sqlite3.Connection, query: str, slot: int) -> None:
    _fill(db)
    assert _best(words.search_grams(db, query, 5)) == slot


def test_fts_cuts_only_at_our_spaces(db: sqlite3.Connection) -> None:
    sample = "খিচুড়ি যুক্তাক্ষর ক্‍ষ snake_case _x_ ёж é e\u0301 10² ٣ İx ﬁ 𞤀𞤁 ไทย"
    words.add(db, [(1, words.terms(sample, ""))])
    for table, cut in (("stems", text.stems), ("grams", text.grams)):
        stored = {term for (term,) in db.execute(f"SELECT term FROM {table}_terms")}
        assert stored == set(cut(sample))


def test_a_word_in_the_text_outweighs_one_in_the_title(db: sqlite3.Connection) -> None:
    for slot in range(1, 9):
        words.add(db, [(slot, words.terms("всякое разное", "другое"))])
    words.add(db, [(10, words.terms("всякое разное", "каяк"))])
    words.add(db, [(11, words.terms("каяк разное", "всякое"))])
    assert [slot for slot, _ in words.search_stems(db, "каяк", 5)] == [11, 10]


def test_scores_are_positive_and_fall(db: sqlite3.Connection) -> None:
    for slot in range(1, 6):  # a word that stands everywhere has an idf below zero
        words.add(db, [(slot, words.terms("вода " * slot + "лес", ""))])
    scores = [score for _, score in words.search_stems(db, "вода", 10)]
    assert len(scores) == 5
    assert min(scores) > 0
    assert scores == sorted(scores, reverse=True)


def test_removed_words_are_not_found_and_leave_the_vocabulary(db: sqlite3.Connection) -> None:
    _fill(db)
    words.remove(db, 3, words.terms(*PASSAGES[3]))
    assert words.search_stems(db, "epoxy", 5) == []
    assert all(slot != 3 for slot, _ in words.search_grams(db, "epoxy rib kayak", 5))
    assert not db.execute("SELECT 1 FROM stems_terms WHERE term = 'epoxi'").fetchall()
    db.execute("INSERT INTO stems (stems, rank) VALUES ('integrity-check', 0)")


def test_purge_takes_removed_words_out_of_the_file(tmp_path) -> None:
    base = ledger.Ledger(tmp_path / "l.db")
    words.add(base.db, [(1, words.terms("Zanzibarquux остаётся", ""))])
    words.add(base.db, [(2, words.terms("обычный текст", ""))])
    words.remove(base.db, 1, words.terms("Zanzibarquux остаётся", ""))
    words.purge(base.db)
    base.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    base.close()
    assert b"zanzibarquux" not in (tmp_path / "l.db").read_bytes()


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.text(), st.text(alphabet="\"'*^:(){}+-NEAR ORANDT_#ёа\u200d\x00\ud800"), st.sampled_from(["", '"', "OR", "NEAR(a b)", "text:a"])
    )
)
def test_any_string_is_a_question(query: str) -> None:
    base = _base()
    try:
        _fill(base)
        for found in (words.search_stems(base, query, 3), words.search_grams(base, query, 3)):
            assert len(found) <= 3
            assert all(score > 0 and slot in PASSAGES for slot, score in found)
    finally:
        base.close()


def test_a_very_long_question_is_answered_by_its_rarest_words(db: sqlite3.Connection) -> None:
    _fill(db)
    for slot in range(10, 40):
        words.add(db, [(slot, words.terms(" ".join(f"слово{n}" for n in range(60)), ""))])
    query = " ".join(f"слово{n}" for n in range(60)) + " epoxy"
    assert 3 in {slot for slot, _ in words.search_stems(db, query, 50)}
    assert words._rarest(db, "stems", text.stems(query), 1) == ["epoxi"]
