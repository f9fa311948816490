"""Near-duplicates: the estimate is near the exact similarity, the first of a group wins, and the past does not matter."""

from __future__ import annotations

import json
import random
import sqlite3
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import duplicates, text
from vaultllm.memory import twins

RNG = random.Random(1)
WORDS = [f"слово{i}" for i in range(3000)] + [f"word{i}" for i in range(3000)]


def said(seed: int, count: int = 120) -> str:
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(count))


def edited(original: str, changes: int, seed: int = 0) -> str:
    """The text with so many of its words replaced."""
    rng = random.Random(seed)
    words = original.split()
    for place in rng.sample(range(len(words)), changes):
        words[place] = f"иное{rng.randrange(10**6)}"
    return " ".join(words)


def exact(one: str, other: str) -> float:
    sets = []
    for part in (one, other):
        words = text.words(part)
        sets.append({tuple(words[i : i + duplicates.SHINGLE]) for i in range(len(words) - duplicates.SHINGLE + 1)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(45, 400), st.integers(0, 40))
def test_the_estimate_is_within_four_standard_errors_of_the_exact_similarity(seed: int, count: int, changes: int) -> None:
    one = said(seed, count)
    other = edited(one, min(changes, count), seed)
    estimate = duplicates.jaccard(duplicates.signature(one), duplicates.signature(other))
    assert abs(estimate - exact(one, other)) <= 4 / 16


def test_the_estimate_has_no_bias() -> None:
    errors = []
    for seed in range(300):
        one = said(seed)
        other = edited(one, seed % 12, seed)
        errors.append(duplicates.jaccard(duplicates.signature(one), duplicates.signature(other)) - exact(one, other))
    assert abs(sum(errors) / len(errors)) < 0.015


def test_strangers_are_not_alike_and_short_texts_have_no_signature() -> None:
    assert duplicates.jaccard(duplicates.signature(said(1)), duplicates.signature(said(2))) < 0.1
    assert duplicates.signature("спасибо " * 39) == b""
    assert duplicates.jaccard(b"", b"") == 0.0
    assert len(duplicates.signature(said(3))) == 4 * duplicates.SIZE


def test_case_and_punctuation_do_not_matter_and_a_lone_surrogate_is_no_crash() -> None:
    one = said(5)
    assert duplicates.signature(one) == duplicates.signature(one.upper().replace(" ", ",  "))
    assert duplicates.signature("\ud800 " + one)


def firsts(texts: list[str]) -> list[int]:
    return duplicates.firsts([text.sha(one) for one in texts], [duplicates.signature(one) for one in texts])


def test_each_text_names_the_first_that_is_like_it() -> None:
    a, b = said(1), said(2)
    assert firsts([a, b, edited(a, 1), a, "спасибо", edited(b, 2), "спасибо", "пожалуйста", edited(a, 60)]) == [0, 1, 0, 0, 4, 1, 4, 7, 8]
    assert firsts([]) == []


def test_nearly_all_pairs_above_the_limit_are_found() -> None:
    texts, wanted = [], []
    for seed in range(300):
        one = said(seed)
        other = edited(one, seed % 3 + 1, seed)
        if exact(one, other) >= 0.85:
            wanted.append(len(texts))
            texts += [one, other]
    found = firsts(texts)
    assert len(wanted) > 100
    assert sum(found[place + 1] == place for place in wanted) >= 0.93 * len(wanted)


def test_thousands_of_like_texts_take_linear_time() -> None:
    base = said(7, 150)

    def cost(count: int) -> float:
        texts = [edited(base, 1, seed) for seed in range(count)]
        shas, signatures = [text.sha(one) for one in texts], [duplicates.signature(one) for one in texts]
        started = time.process_time()
        found = duplicates.firsts(shas, signatures)
        assert len(set(found)) < count / 4
        return time.process_time() - started

    cost(200)
    assert cost(4000) < 8 * max(cost(1000), 0.005)


# -- in the ledger's database

SCHEMA = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE notes (id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE);
CREATE TABLE scenes (slot INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES notes(id) ON DELETE CASCADE, ordinal INTEGER NOT NULL,
    sha TEXT NOT NULL, train INTEGER NOT NULL, record TEXT NOT NULL, kind TEXT, language TEXT, trust TEXT, reason TEXT, length INTEGER);
"""


def database() -> sqlite3.Connection:
    from vaultllm import database

    db = sqlite3.connect(":memory:")
    db.execute("PRAGMA foreign_keys = ON")
    db.executescript(SCHEMA)
    (migration,) = [one for one in database.MIGRATIONS if "CREATE TABLE signatures" in one]
    db.executescript(migration)
    return db


def put(db: sqlite3.Connection, path: str, texts: list[str], train: bool = True) -> None:
    """A note in place of what was there, slots of scenes that stay kept as the ledger does."""
    db.execute("INSERT OR IGNORE INTO notes (path) VALUES (?)", (path,))
    (note,) = db.execute("SELECT id FROM notes WHERE path = ?", (path,)).fetchone()
    slots = [slot for (slot,) in db.execute("SELECT slot FROM scenes WHERE note = ? ORDER BY ordinal", (note,))]
    for ordinal, one in enumerate(texts):
        record = json.dumps({"turns": [{"text": one}, {"text": "ветвь", "variant_of": "u"}]})
        values = (note, ordinal, text.sha(one), int(train), record)
        if slots:
            db.execute("UPDATE scenes SET note=?, ordinal=?, sha=?, train=?, record=? WHERE slot=?", (*values, slots.pop(0)))
        else:
            db.execute("INSERT INTO scenes (note, ordinal, sha, train, record) VALUES (?,?,?,?,?)", values)
    db.executemany("DELETE FROM scenes WHERE slot = ?", [(slot,) for slot in slots])


def links(db: sqlite3.Connection) -> dict[tuple[str, int], tuple[str, int]]:
    place = "SELECT n.path, s.ordinal FROM scenes s JOIN notes n ON n.id = s.note WHERE s.slot = ?"
    rows = db.execute("SELECT scene, first FROM twins").fetchall()
    return {db.execute(place, (scene,)).fetchone(): db.execute(place, (first,)).fetchone() for scene, first in rows}


def test_the_note_that_may_be_learnt_comes_before_its_conflict_copy() -> None:
    db = database()
    put(db, "a (Conflicted copy).md", [said(1)], train=False)
    put(db, "a.md", [edited(said(1), 1)])
    twins.update(db)
    assert links(db) == {("a (Conflicted copy).md", 0): ("a.md", 0)}


def test_nothing_is_written_when_nothing_changed() -> None:
    db = database()
    put(db, "a.md", [said(1), said(1)])
    assert twins.update(db) == 1
    before = db.total_changes
    assert twins.update(db) == 0
    assert db.total_changes == before


CHANGES = st.lists(
    st.tuples(st.sampled_from(["a.md", "b.md", "в.md", "г.md"]), st.none() | st.lists(st.integers(0, 7), max_size=4), st.booleans()),
    min_size=1,
    max_size=8,
)
TEXTS = [said(1), edited(said(1), 1, 1), edited(said(1), 1, 2), said(2), edited(said(2), 1), "спасибо", "да", said(3)]


@settings(max_examples=60, deadline=None)
@given(CHANGES)
def test_after_any_history_the_links_are_those_of_a_new_start(changes: list[tuple[str, list[int] | None, bool]]) -> None:
    db = database()
    for path, numbers, train in changes:
        if numbers is None:
            db.execute("DELETE FROM notes WHERE path = ?", (path,))
        else:
            put(db, path, [TEXTS[number] for number in numbers], train)
        twins.update(db)
    fresh = database()
    for path, _ in sorted(db.execute("SELECT path, id FROM notes").fetchall()):
        rows = db.execute(
            "SELECT s.record, s.train FROM scenes s JOIN notes n ON n.id = s.note WHERE n.path = ? ORDER BY s.ordinal", (path,)
        ).fetchall()
        put(fresh, path, [json.loads(record)["turns"][0]["text"] for record, _ in rows], bool(rows[0][1]) if rows else True)
    twins.update(fresh)
    assert links(db) == links(fresh)


@pytest.mark.parametrize("count", [4000])
def test_cold_and_again(count: int) -> None:
    """20,000 scenes take less than 3 s of CPU; here a fifth of it, with room for a busy machine."""
    db = database()
    for number in range(count // 4):
        put(db, f"{number}.md", [said(number * 4 + place if number % 10 else place, 150) for place in range(4)])
    started = time.process_time()
    twins.update(db)
    assert time.process_time() - started < 2.5
    assert len(links(db)) == 4 * (count // 40 - 1)
