"""The ledger: migrates, refuses what is not its own, stores a note incrementally, all or nothing."""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from vaultllm import rows
from vaultllm.database import APPLICATION_ID, MIGRATIONS, explained
from vaultllm.errors import VaultError
from vaultllm.ledger import Change, Ledger, NoteRow, note_key
from vaultllm.memory import bags
from vaultllm.schema import Passage, Problem, Scene, Source, Turn
from vaultllm.text import sha


def row(path: str = "a.md") -> NoteRow:
    return NoteRow(path, "A", 1, 2, 3, 4, "00", "1", "", "")


def pair(name: str, *texts: str, path: str = "a.md", line: int = 1, links: tuple[str, ...] = ()) -> tuple[Scene, list[Passage]]:
    """A scene with one passage per text."""
    turns = tuple(Turn("user", text, (line + n, line + n)) for n, text in enumerate(texts))
    made = Scene(
        id=sha(name, digits=12),
        sha=sha(*texts),
        kind="prose",
        title=name,
        headings=(),
        turns=turns,
        source=Source(path, (line, line + len(texts) - 1)),
        language="ru",
        trust="own",
        links=links,
    )
    return made, [Passage(made.id, n, turn.lines, turn.text, context=name) for n, turn in enumerate(turns)]


def scene(name: str, *texts: str, path: str = "a.md", line: int = 1, links: tuple[str, ...] = ()) -> rows.SceneRow:
    """The same as the ledger takes it."""
    return rows.row(*pair(name, *texts, path=path, line=line, links=links))


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def slots(ledger: Ledger) -> dict[str, int]:
    return dict(ledger.db.execute("SELECT text, slot FROM passages").fetchall())


def _vectors(ledger: Ledger) -> None:
    missing = ledger.without_vector("e")
    ledger.put_vectors("e", missing, np.eye(len(missing), 8, dtype=np.float32))
    ledger.outbox_done(ledger.outbox())


# -- opening


def test_a_new_ledger_is_private_and_has_the_newest_schema(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        assert ledger.db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert ledger.db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert ledger.db.execute("PRAGMA foreign_keys").fetchone() == (1,)
        assert (tmp_path / "l.db").stat().st_mode & 0o777 == 0o600


def test_a_ledger_opens_again_with_what_was_put(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        ledger.put_note(row(), [scene("s", "слово")])
    with Ledger(tmp_path / "l.db") as ledger:
        assert [found.title for found in ledger.scenes()] == ["s"]


def test_migration_goes_on_from_where_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(tmp_path / "l.db").close()
    monkeypatch.setattr("vaultllm.database.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (x); CREATE TABLE still_later (x)"))
    with Ledger(tmp_path / "l.db") as ledger:
        assert ledger.db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS) + 1,)
        ledger.db.execute("SELECT * FROM later, still_later")


def test_a_migration_that_fails_leaves_the_version_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Ledger(tmp_path / "l.db").close()
    monkeypatch.setattr("vaultllm.database.MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (x); CREATE TABLE notes (x)"))
    with pytest.raises(VaultError, match="already exists"):
        Ledger(tmp_path / "l.db")
    db = sqlite3.connect(tmp_path / "l.db")
    assert db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    assert not db.execute("SELECT 1 FROM sqlite_master WHERE name = 'later'").fetchall()
    db.close()


def test_a_newer_ledger_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    Ledger(path).close()
    db = sqlite3.connect(path)
    db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    before = path.read_bytes()
    with pytest.raises(VaultError, match="update vaultllm"):
        Ledger(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("version", [0, 1])
def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path, version: int) -> None:
    path = tmp_path / "l.db"
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE theirs (x)")
    db.execute(f"PRAGMA user_version = {version}")
    db.commit()
    db.close()
    path.chmod(0o644)
    before = path.read_bytes()
    with pytest.raises(VaultError, match="not a ledger"):
        Ledger(path)
    assert path.read_bytes() == before
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_file_of_garbage_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "l.db"
    path.write_bytes(b"# not a database\n" * 100)
    with pytest.raises(VaultError, match="vaultllm ingest"):
        Ledger(path)
    assert path.read_bytes() == b"# not a database\n" * 100


def test_several_may_make_the_ledger_at_once(tmp_path: Path) -> None:
    import threading

    errors: list[BaseException] = []

    def make() -> None:
        try:
            Ledger(tmp_path / "l.db").close()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=make) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_an_index_made_by_another_stemmer_is_made_anew(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        ledger.put_note(row(), [scene("a", "каяк течёт", "весло")])
        ledger.index.add([(1, bags.Bag("иначе", bags.word_keys(["иначе"]).tobytes(), b"\2", 2, 8))])  # as if it cut words in another way
        ledger.set("words", "another version")
    with Ledger(tmp_path / "l.db") as ledger:
        assert ledger.index.stems("иначе").best(5) == []
        assert len(ledger.index.stems("каяки").best(5)) == 1
        ledger.remove_note("a.md")
        assert ledger.index.stems("каяки").best(5) == []


# -- put_note


def test_put_note_counts_what_it_changed(ledger: Ledger) -> None:
    assert ledger.put_note(row(), [scene("a", "раз"), scene("b", "два")]) == Change(2, 0, 0)
    assert ledger.put_note(row(), [scene("a", "раз"), scene("b", "два")]) == Change(0, 0, 0)
    assert ledger.put_note(row(), [scene("a", "раз"), scene("b", "иначе"), scene("c", "три")]) == Change(1, 1, 0)
    assert ledger.put_note(row(), [scene("c", "три")]) == Change(0, 0, 2)
    assert [found.title for found in ledger.scenes("a.md")] == ["c"]


def test_a_passage_whose_lines_moved_keeps_its_slot_and_its_vector(ledger: Ledger) -> None:
    ledger.put_note(row(), [scene("a", "раз", "два")])
    _vectors(ledger)
    before = slots(ledger)
    ledger.put_note(row(), [scene("new", "сверху"), scene("a", "раз", "два", line=7)])
    assert {text: slot for text, slot in slots(ledger).items() if text != "сверху"} == before
    assert [text for _, text, _ in ledger.texts(ledger.without_vector("e"))] == ["сверху"]
    assert list(ledger.outbox()) == [slots(ledger)["сверху"]]
    moved = ledger.passages([before["два"]])[before["два"]]
    assert moved.passage.lines == (8, 8)


def test_a_passage_that_changed_loses_its_vector_and_its_old_words(ledger: Ledger) -> None:
    ledger.put_note(row(), [scene("a", "каяк течёт", "весло")])
    _vectors(ledger)
    slot = slots(ledger)["каяк течёт"]
    ledger.put_note(row(), [scene("a", "теплица стоит", "весло")])
    assert slots(ledger)["теплица стоит"] == slot
    assert ledger.index.stems("каяк").best(5) == []
    assert [found for found, _ in ledger.index.stems("теплица").best(5)] == [slot]
    assert list(ledger.outbox()) == [slot]
    assert ledger.vectors("e")[0] == [slots(ledger)["весло"]]


def test_a_removed_note_leaves_no_words_no_vectors_and_tells_the_outbox(ledger: Ledger) -> None:
    ledger.put_note(row("a.md"), [scene("a", "каяк", "весло")])
    ledger.put_note(row("b.md"), [scene("b", "хлеб", path="b.md")])
    ledger.set_problems({"a.md": [Problem("W-X", "x")]})
    _vectors(ledger)
    gone = {slots(ledger)["каяк"], slots(ledger)["весло"]}
    assert ledger.remove_note("a.md") == 1
    assert ledger.index.stems("каяк весло").best(5) == []
    assert ledger.index.grams("каяк весло").best(5) == []
    assert set(ledger.outbox()) == gone
    assert ledger.counts() == {"notes": 1, "scenes": 1, "trainable": 1, "passages": 1, "vectors": 1, "outbox": 2}
    assert ledger.problems() == []
    assert ledger.db.execute("SELECT count(*) FROM links").fetchone() == (0,)
    assert ledger.db.execute("SELECT slot FROM documents").fetchall() == [(slots(ledger)["хлеб"],)]
    assert ledger.remove_note("a.md") == 0


def test_what_was_removed_is_not_on_the_disk(tmp_path: Path) -> None:
    with Ledger(tmp_path / "l.db") as ledger:
        ledger.put_note(row(), [scene("a", "Абракадабрикус")])
        ledger.remove_note("a.md")
        with ledger.transaction():
            ledger.index.purge()
        ledger.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    data = (tmp_path / "l.db").read_bytes()
    assert "Абракадабрикус".encode() not in data
    assert "абракадабрикус".encode() not in data


def test_a_failed_transaction_leaves_everything_as_it_was(ledger: Ledger) -> None:
    ledger.put_note(row(), [scene("a", "каяк")])
    broken = scene("b", "хлеб")
    before = list(ledger.db.iterdump())
    with pytest.raises(sqlite3.IntegrityError):
        ledger.put_note(row(), [scene("a", "теплица"), broken._replace(passages=broken.passages * 2)])
    assert list(ledger.db.iterdump()) == before
    assert ledger.index.stems("теплица хлеб").best(5) == []
    assert len(ledger.index.stems("каяк").best(5)) == 1


def test_a_transaction_within_one_is_part_of_it(ledger: Ledger) -> None:
    def put_and_fail() -> None:
        with ledger.transaction():
            ledger.put_note(row(), [scene("a", "каяк")])
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        put_and_fail()
    assert ledger.counts()["notes"] == 0


def test_scenes_come_back_exactly(ledger: Ledger) -> None:
    made, passages = pair("a", "каяк «Выдра» 🛶", links=("Дом",))
    made = dataclasses.replace(made, field=("каяк",), train=False, reason="private: true")
    ledger.put_note(row(), [rows.row(made, passages)])
    assert list(ledger.scenes()) == [made]
    (stored,) = ledger.passages([1, 99]).values()
    assert stored.passage == passages[0]
    assert ledger.labels([1, 99]) == {1: {"scene": made.id, "path": "a.md", "kind": "prose", "language": "ru"}}


# -- vectors, resonance, links


def test_vectors_come_back_by_embedder_and_zero_ones_are_told_apart(ledger: Ledger) -> None:
    ledger.put_note(row(), [scene("a", "раз", "два", "три")])
    vectors = np.array([[1, 0], [0, 0], [0.6, 0.8]], dtype=np.float32)
    ledger.put_vectors("e", [1, 2, 3], vectors)
    found, got = ledger.vectors("e")
    assert found == [1, 2, 3]
    np.testing.assert_array_equal(got, vectors)
    assert ledger.vectors("other")[0] == []
    assert ledger.nonzero_vectors("e") == 2
    assert ledger.without_vector("other") == [1, 2, 3]


@pytest.mark.parametrize("name", ["e", "e+int8"])
def test_vectors_are_stored_as_the_name_of_their_embedder_says(ledger: Ledger, name: str) -> None:
    ledger.put_note(row(), [scene("a", *map(str, range(40)))])
    vectors = np.random.default_rng(0).normal(size=(40, 64)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors[7] = 0
    ledger.put_vectors(name, list(range(1, 41)), vectors)
    ((length,),) = ledger.db.execute("SELECT DISTINCT length(vector) FROM vectors")
    assert length == (68 if name == "e+int8" else 256)
    _, got = ledger.vectors(name)
    np.testing.assert_allclose(got, vectors, atol=0.01 if name == "e+int8" else 0)
    np.testing.assert_allclose(ledger.scan.cosines(name, vectors[3]).scores, vectors @ vectors[3], atol=0.02)
    assert ledger.nonzero_vectors(name) == 39


def test_the_scan_sees_a_vector_that_was_replaced_again_and_again(ledger: Ledger) -> None:
    ledger.put_note(row(), [scene("a", "раз", "два")])
    _vectors(ledger)
    asked = np.eye(1, 8, dtype=np.float32)[0]
    assert ledger.scan.cosines("e", asked).best(1) == [(1, 1.0)]
    for said, expected in (("иначе", 0.5), ("опять иначе", 0.25), ("и опять", 1.0)):
        ledger.put_note(row(), [scene("a", "раз", said)])
        ledger.put_vectors("e", ledger.without_vector("e"), np.full((1, 8), expected, dtype=np.float32))
        assert dict(ledger.scan.cosines("e", asked).best(2))[2] == expected


def test_whose_vectors_are_there_and_only_the_named_ones_are_kept(ledger: Ledger) -> None:
    ledger.put_note(row(), [scene("a", "раз", "два")])
    for name in ("b", "a", "c"):
        ledger.put_vectors(name, [1, 2], np.eye(2, dtype=np.float32), tell=False)
    assert ledger.embedders() == ["a", "b", "c"]
    assert ledger.drop_vectors("a", "c") == 2
    assert ledger.embedders() == ["a", "c"]
    assert (ledger.embedded("a"), ledger.embedded("b")) == (2, 0)
    assert ledger.drop_vectors() == 4


def test_a_slot_that_changes_while_chroma_is_told_of_it_goes_on_waiting(ledger: Ledger) -> None:
    ledger.put_note(row(), [scene("a", "раз", "два")])
    told = ledger.outbox()
    ledger.put_note(row(), [scene("a", "иначе", "два")])
    ledger.outbox_done(told)
    assert list(ledger.outbox()) == [slots(ledger)["иначе"]]


def test_what_waited_for_chroma_before_the_outbox_had_numbers_still_waits(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "l.db") as old:
        for version, script in enumerate(MIGRATIONS[:7], 1):
            old.executescript(script)
            old.execute(f"PRAGMA user_version = {version}")
        old.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        old.executemany("INSERT INTO outbox (passage) VALUES (?)", [(7,), (3,)])
    with Ledger(tmp_path / "l.db") as opened:
        assert sorted(opened.outbox()) == [3, 7]


def test_beside_a_passage_stand_those_of_its_scene_and_of_the_scenes_around_it(ledger: Ledger) -> None:
    ledger.put_note(row("a.md"), [scene("a", "1"), scene("b", "2", "3"), scene("c", "4"), scene("d", "5")])
    ledger.put_note(row("b.md"), [scene("e", "6", path="b.md")])
    places = ledger.places([6, 2, 99])
    assert list(places) == [6, 2]
    assert ledger.beside(places[2]) == [1, 2, 3, 4]
    assert ledger.beside(places[6]) == [6]
    assert ledger.passages_in([places[2].scene, places[6].scene]) == [(2, 2), (3, 2), (6, 5)]


def test_links_are_followed_both_ways_by_the_note_name(ledger: Ledger) -> None:
    ledger.put_note(row("Дом/Каяк.md"), [scene("a", "1", path="Дом/Каяк.md", links=("Хлеб", "Хлеб", "нет такой"))])
    ledger.put_note(row("хлеб.md"), [scene("b", "2", path="хлеб.md"), scene("c", "3", path="хлеб.md")])
    assert ledger.linked([1]) == [(1, 2)]
    assert ledger.linked([2]) == [(2, 1)]
    assert ledger.linked([3]) == [(3, 1)]  # what links to its note


@pytest.mark.parametrize(("target", "key"), [("A/Б/Ёлка.md", "елка"), ("й", note_key("и\u0306")), ("x.y", "x.y"), ("B\\C ", "c")])
def test_a_link_and_a_note_are_compared_by_folded_name(target: str, key: str) -> None:
    assert note_key(target) == key


def test_counting_reads_no_texts_and_no_vectors(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.db.execute("CREATE TEMP TABLE asked (query TEXT)")
        asked: list[str] = []
        ledger.db.set_trace_callback(asked.append)
        ledger.counts(), ledger.nonzero_vectors("e"), list(ledger.trainable())
        ledger.db.set_trace_callback(None)
        plans = [ledger.db.execute("EXPLAIN QUERY PLAN " + query).fetchall() for query in asked if query.startswith("SELECT")]
        steps = [row[3] for plan in plans for row in plan]
        assert len(steps) >= 9
        assert not [step for step in steps if " USING " not in step and "notes" not in step and "outbox" not in step]


def test_a_failure_inside_leaves_no_transaction_open_and_the_old_state(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.set("a", "1")

        def work() -> None:
            with ledger.transaction():
                ledger.set("a", "2")
                ledger.db.execute("ROLLBACK")  # what SQLite does by itself when the disk is full
                raise sqlite3.OperationalError("gone")

        with pytest.raises(sqlite3.OperationalError, match="gone"):
            work()
        assert not ledger.db.in_transaction
        assert ledger.get("a") == "1"


def test_a_ledger_that_another_process_holds_is_not_called_damaged(tmp_path: Path) -> None:
    error = sqlite3.OperationalError("database is locked")
    error.sqlite_errorcode = sqlite3.SQLITE_BUSY
    assert explained(error).exit_code == 75
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    assert "move it away" in explained(error).message
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    assert "make room" in explained(error).message
    assert "move it away" not in explained(error).message
