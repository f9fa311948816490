"""The words index finds what was indexed, forgets what was removed, and takes any string as a question."""

from __future__ import annotations

import contextlib
import math
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.stored import put
from vaultllm import ledger, remember, text
from vaultllm.config import MemorySettings
from vaultllm.errors import VaultError
from vaultllm.memory import bags, documents, postings, words
from vaultllm.memory.words import Index

PASSAGES = {
    1: ("Помпа включается, когда влажность почвы ниже 32 %.", "Теплица\n2025-07-19"),
    2: ("খিচুড়ি রান্নার আগে মুগ ডাল ভেজে নিতে হয়।", "দিদিমার রেসিপি"),
    3: ("The third rib leaked and was mended with epoxy.", "Kayak #лодка"),
    4: ("Ёжик поселился у бочки.", "Дача"),
    5: ("snake_case и C++ живут в одном файле 😀", "Код"),
}


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with ledger.Ledger(tmp_path / "l.db") as base:
        yield base.index


def _fill(index: Index, passages: dict[int, tuple[str, str]] = PASSAGES) -> None:
    for slot, said in passages.items():
        index.add([(slot, bags.bag(*said))])


@pytest.mark.parametrize(
    ("query", "slot"),
    [
        *[("влажности почв", 1), ("খিচুড়ি", 2), ("মুগ ডাল", 2), ("leaking ribs", 3), ("ежики", 4), ("ЁЖИК", 4), ("snake_case", 5)],
        *[("Теплица", 1), ("😀", 5), ("32", 1), ("лодки", 3)],
    ],
)
def test_stems_find_a_passage_in_any_of_its_languages(index: Index, query: str, slot: int) -> None:
    _fill(index)
    assert index.stems(query).best(5)[0][0] == slot


@pytest.mark.parametrize(("query", "slot"), [("влажнасть", 1), ("খিচুড়ির", 2), ("epoxi", 3), ("бочкой", 4), ("snake", 5)])
def test_grams_find_a_passage_through_typos_and_endings(index: Index, query: str, slot: int) -> None:
    _fill(index)
    assert index.grams(query).best(5)[0][0] == slot


def _plain_bm25(cut, passages: dict[int, tuple[str, str]], query: str, k1: float, b: float) -> dict[int, float]:
    """BM25 by its formula, over the terms themselves; a word of one letter is a gram, and counts none in a length in grams."""
    held, lengths = {}, {}
    for slot, (said, context) in passages.items():
        counts = Counter({term: float(count) for term, count in Counter(cut(said)).items()})
        for term in cut(context):
            counts[term] += bags.CONTEXT_WEIGHT / bags.TEXT_WEIGHT
        held[slot] = counts
        lengths[slot] = sum(count for term, count in counts.items() if cut is text.stems or len(term) > 3)
    mean = sum(lengths.values()) / len(held)
    scores: dict[int, float] = {}
    for term in set(cut(query)):
        df = sum(term in bag for bag in held.values())
        idf = math.log(1 + (len(held) - df + 0.5) / (df + 0.5))
        for slot, bag in held.items():
            if tf := bag[term]:
                damp = k1 * (1 - b + b * lengths[slot] / mean)
                scores[slot] = scores.get(slot, 0.0) + idf * tf * (k1 + 1) / (tf + damp)
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.2, 0.75), (0.9, 0.4), (2.0, 0.0)])
@pytest.mark.parametrize("query", ["вода бочки", "mended ribs epoxy rib", "মুগ ডাল", "банан бананы ананас"])
def test_both_views_of_the_words_score_as_bm25_over_the_terms_themselves(index: Index, query: str, k1: float, b: float) -> None:
    passages = {slot: (said, "Дом и сад") for slot, (said, _) in PASSAGES.items() if "😀" not in said} | {
        6: ("Вода, вода и ещё вода у бочки с водой.", "Бочка"),
        7: ("ананас банан бананы", "mended ribs"),
    }
    _fill(index, passages)
    assert dict(index.stems(query, k1, b).best(99)) == pytest.approx(_plain_bm25(text.stems, passages, query, k1, b))
    assert dict(index.grams(query, k1, b).best(99)) == pytest.approx(_plain_bm25(text.grams, passages, query, k1, b))


def _parts(base: ledger.Ledger, scenes: dict[int, list[tuple[int, str]]]) -> None:
    """Passages of several scenes, indexed."""
    base.db.execute("PRAGMA foreign_keys = OFF")  # of the scenes only their numbers count here
    rows = [(slot, scene, number, said) for scene, parts in scenes.items() for number, (slot, said) in enumerate(parts)]
    base.db.executemany(
        "INSERT INTO passages (slot, scene, ordinal, first, last, uid, role, text, context, sha) VALUES (?, ?, ?, 1, 1, '', '', ?, '', '')",
        rows,
    )
    _fill(base.index, {slot: (said, "") for slot, _, _, said in rows})


_SCENES = {
    10: [(1, "Насос качает воду из бочки."), (2, "Таймер включает капельницу утром."), (3, "Соседи спят.")],
    20: [(4, "Насос гудит и гудит, соседи сердятся.")],
    30: [(5, "Бочка протекла."), (6, "Грядки сухие.")],
}


def test_a_passage_counts_with_the_scene_that_it_is_a_part_of(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as base:
        _parts(base, _SCENES)
        passages = {slot: (said, "") for parts in _SCENES.values() for slot, said in parts}
        whole = {scene: (" ".join(said for _, said in parts), "") for scene, parts in _SCENES.items()}
        of = {slot: scene for scene, parts in _SCENES.items() for slot, _ in parts}
        for query in ("насос таймер", "бочка соседи", "сухие грядки"):
            for cut, leg in ((text.stems, base.index.stems(query)), (text.grams, base.index.grams(query))):
                alone, together = (_plain_bm25(cut, held, query, 1.2, 0.75) for held in (passages, whole))
                right = {slot: (1 - words._WHOLE) * score + words._WHOLE * together[of[slot]] for slot, score in alone.items()}
                assert dict(leg.best(99)) == pytest.approx(right)
        # Passage 4 says more of it by itself than either of those that only together say it all; 3 says nothing of it.
        assert [slot for slot, _ in base.index.stems("насос и таймер").best(9)] == [2, 1, 4]


def test_a_part_that_was_written_anew_stays_with_its_scene(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as base:
        _parts(base, _SCENES)
        base.index.stems("насос")
        _fill(base.index, {2: ("Таймер включает свет.", "")})  # its document is the last one now, far from those beside it
        asked = dict(base.index.stems("насос таймер").best(9))
        assert asked == pytest.approx(dict(Index(base.db).stems("насос таймер").best(9)))
        assert min(asked[1], asked[2]) > asked[4]
        base.index.remove([2])
        assert dict(base.index.stems("насос таймер").best(9))[1] < asked[1]


def test_a_day_is_found_in_words_and_a_tag_by_itself(index: Index) -> None:
    _fill(index, {1: ("Пошёл дождь.", "Погода\n2025-06-15\n#сад/грядки"), 2: ("Дождя нет.", "Погода\n2025-07-16\n#дом")})
    for query in ("15 июня", "June 15", "জুন", "воскресенье"):
        assert [slot for slot, _ in index.stems(query).best(1)] == [1], query
    assert index.holders("#сад/грядки") == [1]
    assert index.holders("#дом") == [2]
    assert all(not word.startswith("#") for word, _, _ in index.similar("грядки"))


def test_other_words_count_as_much_as_they_are_worth(index: Index) -> None:
    _fill(index, {1: ("токенизация", ""), 2: ("разное", "")})
    (whole,) = index.stems("токенизация").best(5)
    (half,) = index.stems("tokenizaciya", also={"токенизация": 0.5}).best(5)
    assert half == (1, pytest.approx(0.5 * whole[1]))
    assert index.grams("tokenizaciya", also={"токенизация": 0.5}).best(5)[0][0] == 1


def test_function_words_count_little_and_yet_find(index: Index) -> None:
    _fill(index, {1: ("когда когда когда", ""), 2: ("помпа", ""), 3: ("разное", "")})
    assert [slot for slot, _ in index.stems("когда помпа").best(5)] == [2, 1]
    assert [slot for slot, _ in index.grams("когда помпа").best(5)] == [2, 1]
    assert [slot for slot, _ in index.stems("когда").best(5)] == [1]


def test_a_word_in_the_text_outweighs_one_in_the_title(index: Index) -> None:
    _fill(index, dict.fromkeys(range(1, 9), ("всякое разное", "другое")))
    _fill(index, {10: ("всякое разное", "каяк"), 11: ("каяк разное", "всякое")})
    assert [slot for slot, _ in index.stems("каяк").best(5)] == [11, 10]


def test_scores_are_positive_and_fall(index: Index) -> None:
    _fill(index, {slot: ("вода " * slot + "лес", "") for slot in range(1, 6)})  # a word that stands everywhere
    scores = [score for _, score in index.stems("вода").best(10)]
    assert len(scores) == 5
    assert min(scores) > 0
    assert scores == sorted(scores, reverse=True)


def test_removed_words_are_not_found_and_leave_the_vocabulary_with_a_purge(index: Index) -> None:
    _fill(index)
    index.remove([3, 77])
    assert index.stems("epoxy").best(5) == []
    assert all(slot != 3 for slot, _ in index.grams("epoxy rib kayak").best(5))
    assert index.df("epoxy") == 0
    index.purge()
    assert b"epoxy" not in b" ".join(words for (words,) in index.db.execute("SELECT words FROM vocabulary"))
    assert index.similar("epoxy") == []
    assert index.stems("ежики").best(5)[0][0] == 4
    _fill(index, {3: PASSAGES[3]})
    assert index.grams("epoxi").best(5)[0][0] == 3


def test_a_slot_that_is_filled_again_says_only_the_new(index: Index) -> None:
    _fill(index)
    index.add([(3, bags.bag("Весло высохло.", ""))])
    assert index.stems("epoxy").best(5) == []
    assert index.stems("вёсла").best(5)[0][0] == 3


def test_many_small_additions_are_one_index_and_few_segments(index: Index) -> None:
    for slot in range(1, 400):
        index.add([(slot, bags.bag(f"слово{slot} общее", ""))])
    index.remove(range(1, 100))
    assert [slot for slot, _ in index.stems("слово250").best(5)] == [250]
    assert index.stems("слово50").best(5) == []
    assert len(index.stems("общее").best(500)) == 300
    assert index.db.execute("SELECT count(*) FROM vocabulary").fetchone()[0] < 20
    for family in (words.WORDS, words.PARTS):
        (count,) = index.db.execute("SELECT count(*) FROM postings WHERE family = ?", (family,)).fetchone()
        assert count < 4 * postings.FAN


def test_what_a_large_ingest_left_is_joined(index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "MOST", 64)
    for slot in range(1, 40):
        index.add([(slot, bags.bag(" ".join(f"слово{slot}x{n}" for n in range(9)), ""))])
    before = index.stems("слово20x3").best(3), index.grams("слово20x3").best(3)
    assert postings.large(index.db, words.WORDS) > 12
    index.remove([39])
    index.tidy()
    assert index.db.execute("SELECT count(*) FROM postings").fetchone() == (2,)
    assert [slot for slot, _ in index.stems("слово20x3").best(3)] == [slot for slot, _ in before[0]] == [20]
    assert index.grams("слово20x3").best(1)[0][0] == 20
    assert index.stems("слово39x3").best(1) == []


def test_an_index_that_is_made_anew_is_joined_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postings, "MOST", 8)  # nothing is merged by itself
    with ledger.Ledger(tmp_path / "l.db") as base:
        monkeypatch.setattr(base.index, "add", lambda rows, add=base.index.add: [add([row]) for row in rows])
        for number in range(20):
            put(base, f"{number}.md", f"Слово{number} стоит у колодца.\n")
        base.index.rebuild()
        assert base.db.execute("SELECT count(*) FROM postings").fetchone() == (2,)
        assert len(base.index.holders("стоит")) == 20


def test_another_connection_sees_what_was_added(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as one, ledger.Ledger(tmp_path / "l.db") as other:
        _fill(one.index)
        assert other.index.stems("epoxy").best(1)[0][0] == 3
        _fill(other.index, {6: ("Каяк плывёт.", "")})
        _fill(one.index, {7: ("Каяки плывут, помпа молчит.", "")})
        assert {slot for slot, _ in one.index.stems("каяк").best(5)} == {6, 7}
        one.index.remove([3])
        assert other.index.stems("epoxy").best(1) == []


def test_what_a_failed_transaction_added_is_not_there(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as base:
        _fill(base.index)
        base.db.execute("BEGIN IMMEDIATE")
        _fill(base.index, {6: ("Каяк плывёт.", "")})
        base.db.execute("ROLLBACK")
        assert base.index.stems("каяк").best(5) == []
        _fill(base.index, {7: ("Плывёт весло.", ""), 8: ("Каяк стоит.", "")})
        assert [slot for slot, _ in base.index.stems("каяк").best(5)] == [8]
        assert [slot for slot, _ in base.index.stems("плывёт").best(5)] == [7]


def test_purge_takes_removed_words_out_of_the_file(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as base:
        base.index.add([(1, bags.bag("Zanzibarquux остаётся", "")), (2, bags.bag("обычный текст", ""))])
        base.index.remove([1])
        with base.transaction():
            base.index.purge()
        base.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    assert b"zanzibarquux" not in (tmp_path / "l.db").read_bytes()


def test_words_that_look_alike_are_named_with_how_often_they_stand(index: Index) -> None:
    _fill(index, {1: ("токенизация", ""), 2: ("токенизация и токенизации", ""), 3: ("станция", "")})
    alike = index.similar("токинизация", 3)
    assert alike[0][0] == "токенизация"
    assert alike[0][2] == 2
    assert index.df("токенизация") == 2
    assert index.known(["токенизация", "токенизациа", "", "токенизация"]) == ["токенизация"]
    assert index.stem_df(text.stem("токенизацией")) == 2


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(), st.text(alphabet="\"'*^:(){}+-NEAR ORANDT_#ёа\u200d\x00\ud800"), st.sampled_from(["", '"', "OR", "NEAR(a b)", "text:a"])
    )
)
def test_any_string_is_a_question(query: str) -> None:
    base = _memory()
    _fill(base)
    for found in (base.stems(query).best(3), base.grams(query).best(3)):
        assert len(found) <= 3
        assert all(score > 0 and slot in PASSAGES for slot, score in found)
    base.similar(query)
    base.db.close()


def _memory() -> Index:
    from vaultllm.database import MIGRATIONS

    db = sqlite3.connect(":memory:", isolation_level=None)
    for migration in MIGRATIONS:
        db.executescript(migration)
    return Index(db)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 99), st.integers(1, 255)), max_size=300), st.integers(1, 60))
def test_postings_come_back_as_they_were_put_in_whatever_was_merged(triples: list[tuple[int, int, int]], step: int) -> None:
    index = _memory()
    for start in range(0, len(triples), step):
        keys, values, weights = (np.array(column, np.uint64) for column in zip(*triples[start : start + step], strict=True))
        postings.append(index.db, "x", keys, values, weights)
    reader = postings.Reader("x")
    reader.refresh(index.db)
    asked = np.arange(51, dtype=np.uint64)
    which, values, weights = reader.lists(asked)
    assert sorted(zip(which.tolist(), values.tolist(), weights.tolist(), strict=True)) == sorted(triples)
    assert reader.counts(asked).tolist() == [sum(key == one for key, _, _ in triples) for one in range(51)]
    assert reader.keys().tolist() == sorted({key for key, _, _ in triples})
    index.db.close()


@pytest.mark.parametrize(("kind", "size"), [(np.uint32, 5), (np.uint64, 5)])
def test_a_posting_takes_five_bytes_also_where_its_value_takes_eight(kind: type[np.unsignedinteger[Any]], size: int) -> None:
    values = np.array([10**9, 7, 4 * 10**9], kind).repeat(1000)
    keys = np.tile(np.arange(1000, dtype=np.uint32), 3)
    made = postings.segment(keys, values, np.ones(3000, np.uint8))
    data = made.to_bytes()
    assert len(data) < 3000 * size + 8 * 1000 + 100
    back = postings.Segment.from_bytes(data)
    assert [column.tolist() for column in back.triples()] == [column.tolist() for column in made.triples()]
    assert back.triples()[1].dtype == kind


def test_a_damaged_segment_says_so() -> None:
    with pytest.raises(postings.DamagedIndexError, match="bytes"):
        postings.Segment.from_bytes(b"\1\0\0\0\1\0\0\0\4\0\0\0\4\0\0\0\0")


def test_a_very_long_question_is_answered_by_its_rarest_words(index: Index) -> None:
    _fill(index)
    long = " ".join(f"слово{n}" for n in range(words.MOST_STEMS + 10))
    index.add([(slot, bags.bag(long, "")) for slot in range(10, 40)])
    assert 3 in {slot for slot, _ in index.stems(f"{long} epoxy").best(50)}


def test_a_line_of_base64_is_one_short_word(index: Index) -> None:
    index.add([(1, bags.bag("A" * 100_000 + " весло", ""))])
    (held,) = index.db.execute("SELECT words FROM vocabulary").fetchone()
    assert max(map(len, held.decode().split("\n"))) == bags.MOST_WORD
    assert index.stems("A" * 100_000).best(1)[0][0] == 1


def test_what_was_looked_at_amid_a_transaction_that_failed_is_not_kept(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as base:
        _fill(base.index)
        base.db.execute("BEGIN IMMEDIATE")
        _fill(base.index, {6: ("Каяк плывёт.", "")})
        assert base.index.holders("каяк") == [6]
        base.db.execute("ROLLBACK")
        _fill(base.index, {7: ("Весло стоит.", "")})  # gets the numbers that the other one had
        assert (base.index.holders("каяк"), base.index.holders("весло")) == ([], [7])


def test_an_index_that_has_been_asked_says_what_one_that_is_opened_now_says(tmp_path: Path) -> None:
    draw = np.random.default_rng(3)
    with ledger.Ledger(tmp_path / "l.db") as base, ledger.Ledger(tmp_path / "l.db") as other:
        for step in range(30):
            slots = draw.integers(1, 20, size=draw.integers(1, 4)).tolist()
            if step % 3 == 2:
                (base, other)[step % 2].index.remove(slots)
            else:
                said = {slot: (f"слово{step % 5} вода {'река ' * int(draw.integers(1, 4))}", f"Заметка {step}") for slot in slots}
                _fill((base, other)[step % 2].index, said)
            with ledger.Ledger(tmp_path / "l.db") as now:
                for query in ("река вода", "слово1 заметка", f"слово{step % 5}"):
                    for name in ("stems", "grams"):
                        found, right = (getattr(one.index, name)(query).best(50) for one in (base, now))
                        assert [slot for slot, _ in found] == [slot for slot, _ in right]
                        assert [score for _, score in found] == pytest.approx([score for _, score in right], rel=1e-12)


def test_to_index_one_more_passage_no_other_one_is_read_again(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as base:
        _fill(base.index, {slot: (f"слово{slot} вода", "") for slot in range(1, 60)})
        assert len(base.index.holders("вода")) == 59
        _fill(base.index, {60: ("вода", ""), 7: ("ветер", "")})
        statements: list[str] = []
        base.db.set_trace_callback(statements.append)
        assert len(base.index.holders("вода")) == 59
        rows = [one for one in statements if "FROM documents d" in one]
        assert [len(base.db.execute(one).fetchall()) for one in rows] == [2]
        assert not any("group_concat" in one for one in statements)


def test_a_passage_that_came_and_went_between_two_questions_does_no_harm(tmp_path: Path) -> None:
    with ledger.Ledger(tmp_path / "l.db") as base:
        _fill(base.index, {1: ("вода", ""), 2: ("вода и река", "")})
        assert len(base.index.holders("вода")) == 2
        _fill(base.index, {3: ("вода", ""), 4: ("вода", "")})
        base.index.remove([3, 4])  # its postings stay in the segments until they are merged
        assert len(base.index.holders("вода")) == 2
        assert [slot for slot, _ in base.index.stems("вода").best(5)] == [1, 2]


@given(st.lists(st.integers(-3, 3), min_size=0, max_size=40), st.integers(0, 45))
def test_the_best_are_those_that_sorting_all_puts_first(scores: list[int], k: int) -> None:
    slots = np.random.default_rng(len(scores)).permutation(len(scores)).astype(np.int64)
    right = sorted(zip(slots.tolist(), map(float, scores), strict=True), key=lambda one: (-one[1], one[0]))[:k]
    assert documents.Leg(slots, np.array(scores, float)).best(k) == right


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE postings SET data = substr(data, 1, length(data) - 1)",
        "UPDATE postings SET data = x'00'",
        "UPDATE vocabulary SET keys = substr(keys, 9)",
        "UPDATE vocabulary SET keys = x'0102'",
        "UPDATE vocabulary SET words = substr(words, 1, 3)",
        "DELETE FROM documents WHERE doc = (SELECT max(doc) FROM documents)",
        "DELETE FROM postings WHERE family = 'words'",
    ],
)
def test_a_damaged_index_is_an_error_that_names_the_way_out_and_is_made_anew(tmp_path: Path, damage: str) -> None:
    with ledger.Ledger(tmp_path / "ledger.db") as opened:
        for number in range(30):
            put(opened, f"{number}.md", f"Насос качает воду в бак номер {number}, вечером и утром.\n")
        assert opened.index.check() == ""
        right = opened.index.stems("насос вечером").best(40)
        opened.db.execute(damage)
    with ledger.Ledger(tmp_path / "ledger.db") as opened:
        assert "words index" in opened.index.check()
        with contextlib.suppress(VaultError):  # what is merely lacking is not seen by a question
            opened.index.stems("насос вечером")
        assert "words index" in remember.check(opened, tmp_path / "memory", MemorySettings())
        remember.rebuild(opened, tmp_path / "memory", MemorySettings(dims=8))
        assert opened.index.check() == ""
        assert opened.index.stems("насос вечером").best(40) == right
