"""The memory's upkeep when its embedder changes: the old one answers until the new one can, whatever happens in between."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.stored import kill_refresh, put
from tests.test_recall import fill, same
from vaultllm import hands, recall, remember, steps
from vaultllm.config import MemorySettings, init_workspace
from vaultllm.errors import DataError
from vaultllm.ledger import Ledger
from vaultllm.memory import choice, embed, embedders, live
from vaultllm.memory.embedders import EmbedderError
from vaultllm.schema import Hit, Progress

SETTINGS = MemorySettings(dims=32)
AFTER = MemorySettings(dims=16, precision="int8")
SERVER = MemorySettings(dims=32, embedder="openai:http://127.0.0.1:9/v1#letters")
PATHS = [f"n{n}.md" for n in range(40)]
WORDS = """kayak paddle river wood stove winter bread flour yeast oven tomato greenhouse pump sensor garden quartz jazz violin
bicycle chain oil gear map compass zenith honey bee hive wax candle ink paper book shelf lamp glass window каяк весло река дрова печь
зима хлеб мука закваска теплица помпа датчик огород скрипка цепь карта мёд улей воск свеча бумага книга лампа стекло окно""".split()


class Letters:
    """Another's embedder: letters of a text, counted. `away`: its server does not answer."""

    fingerprint = "letters-1"
    dims = 26
    away = False
    asked = 0

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        if self.away:
            raise EmbedderError("letters: it does not answer")
        self.asked += len(texts)
        counts = np.array([[text.lower().count(chr(97 + n)) for n in range(26)] for text in texts], dtype=np.float32)
        return embed.unit(counts.reshape(len(texts), 26))


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Iterator[Letters]:
    made = Letters()
    monkeypatch.setattr(embedders, "create", lambda spec, **options: made)
    live._theirs.cache_clear()
    live._embedder.cache_clear()
    yield made
    live._theirs.cache_clear()
    live._embedder.cache_clear()


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        rng = random.Random(1)
        for path in PATHS:
            put(opened, path, f"{' '.join(rng.sample(WORDS, 9)).capitalize()}.\n")
        yield opened


@pytest.fixture
def memory(ledger: Ledger, tmp_path: Path) -> Path:
    remember.refresh(ledger, tmp_path / "memory", SETTINGS)
    return tmp_path / "memory"


def fingerprint(ledger: Ledger) -> str:
    about = remember.fitted(ledger)
    assert about is not None
    return str(about["fingerprint"])


def ask(ledger: Ledger, folder: Path, question: str = "kayak paddle", dense: recall.Dense = "exact") -> list[Hit]:
    return recall.recall(ledger, folder, SETTINGS, question, 5, dense=dense)


def dense(hits: list[Hit]) -> bool:
    return any("dense" in hit.why for hit in hits)


# -- one follows another


def test_another_embedder_takes_over_with_all_its_vectors_and_nothing_of_the_old_one_stays(
    ledger: Ledger, memory: Path, letters: Letters
) -> None:
    done = remember.refresh(ledger, memory, SERVER)
    assert (done["refitted"], done["embedded"], done["generation"], done["away"]) == (True, 40, 2, "")
    assert fingerprint(ledger) == "letters-1"
    assert ledger.embedders() == ["letters-1"]
    assert not list(memory.glob("*embedder-*"))
    assert ledger.counts()["outbox"] == 0
    assert remember.check(ledger, memory, SERVER) == ""
    assert dense(ask(ledger, memory, "wood", "chroma"))
    back = remember.refresh(ledger, memory, SETTINGS)
    assert back["embedder"]["name"] == "vault"
    assert same(ledger, memory)


def test_the_old_one_answers_and_serves_new_notes_until_the_last_passage_has_a_vector_of_the_new_one(
    ledger: Ledger, memory: Path, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process asks and ingests at every step of the way."""
    old, seen = fingerprint(ledger), []
    gone = next(hit for hit in ledger.passages(range(1, 41)).values() if hit.path == "n5.md").passage.text

    def meanwhile(progress: Progress) -> None:
        with Ledger(ledger.path) as other:
            if fingerprint(other) != old or len(seen) >= 6:
                return
            seen.append(progress.phase)
            number = len(seen)
            put(other, "n3.md", f"Изменено {number} раз, abc.\n")
            put(other, f"new{number}.md", f"Bread and honey for bee number {number}, муравей.\n")
            if number == 2:
                other.remove_note("n5.md")
            done = remember.refresh(other, memory, SERVER, background=True)
            assert done["embedded"] == 2
            assert other.without_vector(old) == []
            hits = ask(other, memory, f"муравей honey {number}")
            assert dense(hits)
            assert f"new{number}.md" in {hit.path for hit in hits}
            assert dense(ask(other, memory, "kayak", "chroma"))

    done = remember.follow(ledger, memory, SERVER, meanwhile)
    assert set(seen) >= {"remembering", "rebuilding the memory"}
    assert done["refitted"]
    assert fingerprint(ledger) == "letters-1"
    assert ledger.without_vector("letters-1") == []
    remember.refresh(ledger, memory, SERVER)  # Chroma hears of what was written while its generation was
    assert remember.check(ledger, memory, SERVER) == ""
    slots, vectors = ledger.vectors("letters-1")
    texts = ledger.texts(slots)
    np.testing.assert_allclose(vectors, letters.embed([live.said(text, context) for _, text, context in texts]), atol=1e-6)
    assert not any(hit.path == "n5.md" for hit in ask(ledger, memory, gone))


def test_one_asker_with_the_old_embedder_in_hand_finds_the_new_one(
    ledger: Ledger, memory: Path, letters: Letters, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, turns = live.embedder, []

    def swapped_just_then(about: live.About, folder: Path) -> embed.Embedder:
        found = real(about, folder)
        if not turns:
            turns.append(1)
            with Ledger(ledger.path) as other:
                remember.refresh(other, memory, SERVER)
        return found

    monkeypatch.setattr(live, "embedder", swapped_just_then)
    assert dense(ask(ledger, memory, "wood"))
    assert turns


def test_only_one_at_a_time_lets_another_follow(ledger: Ledger, memory: Path, letters: Letters) -> None:
    with remember.only(memory, 0.0, "following"):
        assert remember.follow(ledger, memory, SERVER) == {}
        done = remember.refresh(ledger, memory, SERVER)
        assert (done["refitted"], done["away"], done["embedder"]["name"]) == (False, "", "vault")


def test_the_name_of_a_follower_that_was_killed_goes_with_the_next_refresh(ledger: Ledger, memory: Path) -> None:
    named = memory / "following.pid"
    named.write_text("999999999 vaultllm watch\n", encoding="utf-8")
    remember.refresh(ledger, memory, MemorySettings())
    assert not named.exists()


def test_settings_that_change_back_leave_nothing_of_the_one_that_was_to_follow(ledger: Ledger, memory: Path, letters: Letters) -> None:
    def stop(progress: Progress) -> None:
        if progress.phase == "rebuilding the memory":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remember.follow(ledger, memory, SERVER, stop)
    assert remember.described(ledger, SETTINGS)["next"] == {"name": SERVER.embedder, "fingerprint": "letters-1", "vectors": 40}
    remember.refresh(ledger, memory, SETTINGS)
    assert remember.described(ledger, SETTINGS)["next"] is None
    assert same(ledger, memory)


@pytest.mark.parametrize(
    ("where", "name", "nth"),
    [
        ("Ledger", "set", 1),  # its folder is saved, the ledger has not heard that it follows
        ("Ledger", "put_vectors", 3),  # some vectors are there
        ("Ledger", "tell_all", 1),  # all of them
        ("chroma", "_upsert", 2),  # its generation is half written
        ("Ledger", "set", 2),  # it is written, and the old one still answers
        ("chroma", "write_whole", 2),  # it is the live one, and Chroma's old generation too
        ("Ledger", "drop_vectors", 1),  # the old vectors are still there
    ],
)
def test_a_change_of_embedder_killed_anywhere_answers_and_converges(
    ledger: Ledger, memory: Path, tmp_path: Path, where: str, name: str, nth: int
) -> None:
    kill_refresh(tmp_path, AFTER, where, name, nth)
    assert dense(ask(ledger, memory))
    put(ledger, "n7.md", "Изменено после того, как всё упало.\n")
    remember.refresh(ledger, memory, AFTER)
    assert remember.check(ledger, memory, AFTER) == ""
    assert same(ledger, memory)
    assert fingerprint(ledger).endswith("+int8")
    assert ledger.vectors(fingerprint(ledger))[1].shape == (40, 16)
    assert dense(ask(ledger, memory, "kayak", "chroma"))


# -- precision, dims


def test_vectors_that_are_only_stored_smaller_are_not_made_again(ledger: Ledger, memory: Path, letters: Letters) -> None:
    remember.refresh(ledger, memory, SERVER)
    before = ask(ledger, memory, "wood")
    letters.asked = 0
    small = SERVER.model_copy(update={"precision": "int8"})
    done = remember.refresh(ledger, memory, small)
    assert letters.asked == 0
    assert (done["embedded"], done["embedder"]["precision"]) == (40, "int8")
    assert ledger.db.execute("SELECT DISTINCT length(vector) FROM vectors").fetchall() == [(30,)]
    assert remember.check(ledger, memory, small) == ""
    assert [hit.path for hit in ask(ledger, memory, "wood")][:3] == [hit.path for hit in before][:3]
    assert remember.opened(ledger, memory).fingerprint == fingerprint(ledger) == "letters-1+int8"
    remember.refresh(ledger, memory, SERVER)
    assert letters.asked >= 40  # what was rounded away has to be made again


def test_anothers_embedder_is_cut_to_the_dims_once_there_are_passages_enough(ledger: Ledger, memory: Path, letters: Letters) -> None:
    cut = SERVER.model_copy(update={"dims": 8})
    done = remember.refresh(ledger, memory, cut)
    assert done["embedder"]["dims"] == 8
    assert fingerprint(ledger).startswith("reduced-")
    assert same(ledger, memory)
    live._embedder.cache_clear()  # as another process opens it
    assert dense(ask(ledger, memory, "wood"))
    assert remember.refresh(ledger, memory, cut)["refitted"] is False
    few = SERVER.model_copy(update={"dims": 11})  # 44 passages would be needed
    assert remember.refresh(ledger, memory, few)["embedder"]["dims"] == 26


# -- what cannot be used


def test_a_server_that_is_away_leaves_the_old_embedder_in_its_place(ledger: Ledger, memory: Path, letters: Letters) -> None:
    letters.away = True
    old = fingerprint(ledger)
    done = remember.refresh(ledger, memory, SERVER)
    assert "does not answer" in done["away"]
    assert fingerprint(ledger) == old
    assert dense(ask(ledger, memory))
    letters.away = False
    assert remember.refresh(ledger, memory, SERVER)["away"] == ""
    assert fingerprint(ledger) == "letters-1"
    letters.away = True
    put(ledger, "neu.md", "Wood for the winter, oak.\n")
    done = remember.refresh(ledger, memory, SERVER)
    assert "does not answer" in done["away"]
    hits = ask(ledger, memory, "oak winter")
    assert hits[0].path == "neu.md"
    assert not dense(hits)  # by words alone
    letters.away = False
    remember.refresh(ledger, memory, SERVER)
    assert (ledger.without_vector("letters-1"), ledger.counts()["outbox"]) == ([], 0)
    assert dense(ask(ledger, memory, "oak winter"))


def test_a_first_embedder_that_cannot_be_used_leaves_words(ledger: Ledger, tmp_path: Path, letters: Letters) -> None:
    letters.away = True
    done = remember.refresh(ledger, tmp_path / "memory", SERVER)
    assert "does not answer" in done["away"]
    assert ask(ledger, tmp_path / "memory")
    letters.away = False
    remember.refresh(ledger, tmp_path / "memory", SERVER)
    assert remember.check(ledger, tmp_path / "memory", SERVER) == ""


def test_a_model_folder_that_does_not_exist_is_said_and_no_error(ledger: Ledger, memory: Path, tmp_path: Path) -> None:
    settings = MemorySettings(dims=32, embedder=f"st:{tmp_path / 'nowhere'}")
    done = remember.refresh(ledger, memory, settings)
    assert "nowhere" in done["away"]
    assert dense(ask(ledger, memory))


def test_without_an_embedder_there_is_none_to_open(ledger: Ledger, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="vaultllm ingest"):
        remember.opened(ledger, tmp_path / "memory")


def test_the_model_that_answers_may_be_the_embedder(ledger: Ledger, memory: Path, letters: Letters) -> None:
    settings = MemorySettings(dims=32, embedder="model")
    assert live.is_plain_model(settings)
    assert not live.is_plain_model(MemorySettings(embedder="model:x"))
    assert choice.parse(settings.embedder).kind == "model"
    remember.refresh(ledger, memory, settings, base="/models/a")
    assert remember.fitted(ledger)["base"] == "/models/a"
    assert not remember.owed(ledger, settings, base="/models/a")
    assert remember.owed(ledger, settings, base="/models/b")


# -- learning


def test_a_large_vault_learns_later_and_a_small_one_at_once(ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "memory"
    monkeypatch.setattr(live, "LEARN_AT_ONCE", 10)
    done = remember.refresh(ledger, folder, SETTINGS)
    assert (done["embedder"]["learnt"], done["embedder"]["verdict"]) == (False, None)
    assert "--learn" in done["embedder"]["reason"]
    assert remember.refresh(ledger, folder, SETTINGS)["refitted"] is False  # nothing to do stays cheap
    assert remember.owed(ledger, SETTINGS, learn=True)
    done = remember.refresh(ledger, folder, SETTINGS, learn=True)
    assert done["embedder"]["learnt"]
    assert "too few pairs" in done["embedder"]["reason"]
    assert json.dumps(done["embedder"]["verdict"])
    assert not remember.owed(ledger, SETTINGS, learn=True)
    assert same(ledger, folder)
    monkeypatch.undo()
    with Ledger(tmp_path / "small.db") as small:
        fill(small)
        assert remember.refresh(small, tmp_path / "small", SETTINGS)["embedder"]["learnt"]


def test_the_daemons_children_tell_what_is_owed_and_let_it_follow(tmp_path: Path, letters: Letters) -> None:
    vault = tmp_path / "vault"
    vault.mkdir()
    (vault / "a.md").write_text("# Wood\n\nWood for the winter, and water.\n", encoding="utf-8")
    job = steps.Job(init_workspace(vault, str(tmp_path / "state")), background=True)
    object.__setattr__(job.workspace.settings, "memory", SERVER)
    assert hands._ingest(job, None, check=True)["owed"]  # the vault's own is soon there
    assert fingerprint(job.ledger) != "letters-1"
    done = hands._follow(job)
    assert (done["refitted"], done["owed"], done["away"], done["name"]) == (True, False, "", SERVER.embedder)
    assert fingerprint(job.ledger) == "letters-1"
    assert not hands._ingest(job, ["a.md"], check=False)["owed"]
    job.close()


def test_of_a_large_vault_a_few_changes_wait_until_it_is_worth_opening_chroma(
    ledger: Ledger, memory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remember, "_LATE", 10)  # of 40 passages fewer than four may wait
    put(ledger, "new.md", "Kayak paddle kayak paddle.\n")
    done = remember.refresh(ledger, memory, SETTINGS, background=True)
    assert (done["embedded"], done["upserted"], ledger.counts()["outbox"]) == (1, 0, 1)
    for dense in ("exact", "chroma"):  # by its vector, wherever one looks
        alone = SETTINGS.model_copy(update={"words": 0.0, "grams": 0.0, "near": 0.0})
        assert recall.recall(ledger, memory, alone, "kayak paddle", 1, dense=dense)[0].path == "new.md"
    assert remember.check(ledger, memory, SETTINGS) == ""  # which tells Chroma
    assert ledger.counts()["outbox"] == 0
    for number in range(5):
        put(ledger, f"new{number}.md", f"Bee hive {WORDS[number]}.\n")
    assert remember.refresh(ledger, memory, SETTINGS, background=True)["upserted"] == 5
    put(ledger, "last.md", "Wax candle.\n")
    assert remember.refresh(ledger, memory, SETTINGS)["upserted"] == 1  # whoever is not in the background waits


def test_a_few_vectors_are_drawn_from_all_over_the_vault(ledger: Ledger, memory: Path) -> None:
    name = remember.opened(ledger, memory).fingerprint
    every = ledger.with_vector(name)
    drawn = ledger.sampled(name, 8)
    assert len(drawn) == 8
    assert set(drawn) <= set(every)
    assert (drawn[0], drawn[-1]) == (every[0], every[-1])
    assert ledger.sampled(name, 1000) == every
    assert ledger.sampled("nobody", 8) == []


def test_passages_without_a_vector_are_found_whether_or_not_they_wait_for_chroma(ledger: Ledger, memory: Path) -> None:
    name = remember.opened(ledger, memory).fingerprint
    put(ledger, "a.md", "Honey.\n")
    put(ledger, "b.md", "Wax.\n")
    new = ledger.without_vector(name)
    assert len(new) == 2 == len(set(new) - set(ledger.with_vector(name)))
    ledger.outbox_done(ledger.outbox())
    assert ledger.without_vector(name) == new
    assert ledger.without_vector("another") == ledger.without_vector("")
