"""Recall: the memory converges with the ledger whatever happens to it, and finds what was asked for, saying why."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock

from tests.stored import kill_refresh, put
from vaultllm import recall, remember
from vaultllm.config import MemorySettings
from vaultllm.ledger import Ledger
from vaultllm.memory import chroma, embed, live, resonance
from vaultllm.schema import Hit, Progress

SETTINGS = MemorySettings(dims=32)

NOTES = {
    "Дача/Теплица.md": "# Теплица\n\nПомпа включается, когда влажность почвы ниже 32 %.\n\n## Датчик\n\nОкислились контакты.\n",
    "Хлеб.md": "# Ржаной хлеб\n\nЗакваска «Борис» стоит в банке с осени. Выпечка при 250 градусах с паром.\n",
    "Kayak.md": "# Kayak\n\nThe third rib leaked; it was mended with epoxy. See [[Хлеб]] for the picnic.\n",
    "খিচুড়ি.md": "# খিচুড়ি\n\nমুগ ডাল আগে ভেজে নিতে হয়, তারপর গোবিন্দভোগ চাল আর শেষে ঘি।\n",
    "Журнал.md": "# Журнал\n\n## Утро\n\nВода в колодце низкая.\n\n## День\n\nПриехала сестра на велосипеде.\n\n## Вечер\n\nПекли пирог.\n",
}


def fill(ledger: Ledger) -> None:
    for path, text in NOTES.items():
        put(ledger, path, text)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


@pytest.fixture
def memory(ledger: Ledger, tmp_path: Path) -> Path:
    """The folder of a memory that knows the notes."""
    fill(ledger)
    remember.refresh(ledger, tmp_path / "memory", SETTINGS)
    return tmp_path / "memory"


def ask(ledger: Ledger, folder: Path, query: str, k: int = 3, **options) -> list[Hit]:
    return recall.recall(ledger, folder, SETTINGS, query, k, **options)


def same(ledger: Ledger, folder: Path) -> bool:
    """Every vector of the ledger is in Chroma, and nothing else; nothing is left over in the folder."""
    assert remember.check(ledger, folder, SETTINGS) == ""
    fingerprint = remember.fitted(ledger)["fingerprint"]
    slots, vectors = ledger.vectors(fingerprint)
    assert len(slots) == ledger.counts()["passages"]
    told = [row for row in range(len(slots)) if vectors[row].any()]
    with chroma.ChromaMemory(folder, fingerprint) as opened:
        assert opened.probe(len(told), [slots[row] for row in told], vectors[told]) == ""
    live = f"gen-{chroma.current(folder)}"
    assert ledger.embedders() == [fingerprint]
    names = {path.name for path in folder.iterdir()} - {"lock", "following"}
    return names == {"CURRENT", live, remember.embedder_folder(folder, fingerprint).name}


# -- refresh


def test_refresh_gives_every_passage_a_vector_and_chroma_every_vector(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    seen: list[Progress] = []
    done = remember.refresh(ledger, tmp_path / "m", SETTINGS, seen.append)
    n = ledger.counts()["passages"]
    assert done.pop("embedder") == remember.described(ledger, SETTINGS)
    assert done == {"embedded": n, "upserted": n, "deleted": 0, "refitted": True, "generation": 1, "away": ""}
    assert seen
    assert all(0 <= progress.done <= 1 for progress in seen)
    assert same(ledger, tmp_path / "m")


def test_refresh_of_an_empty_ledger_makes_nothing(ledger: Ledger, tmp_path: Path) -> None:
    assert remember.refresh(ledger, tmp_path / "m", SETTINGS)["generation"] == 0
    assert not (tmp_path / "m").exists()
    assert ask(ledger, tmp_path / "m", "вода") == []
    assert remember.check(ledger, tmp_path / "m", SETTINGS) == ""


def test_refresh_with_nothing_new_opens_and_writes_nothing(ledger: Ledger, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError("Chroma was opened")

    monkeypatch.setattr(chroma, "_client", refuse)
    changes = ledger.db.total_changes
    before = {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in memory.rglob("*")}
    done = remember.refresh(ledger, memory, SETTINGS)
    assert done.pop("embedder") == remember.described(ledger, SETTINGS)
    assert done == {"embedded": 0, "upserted": 0, "deleted": 0, "refitted": False, "generation": 1, "away": ""}
    assert ledger.db.total_changes == changes
    assert {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in memory.rglob("*")} == before


def test_a_changed_note_changes_only_its_passages(ledger: Ledger, memory: Path) -> None:
    put(ledger, "Хлеб.md", "# Ржаной хлеб\n\nМука кончилась, купили гречку.\n")
    done = remember.refresh(ledger, memory, SETTINGS)
    assert (done["embedded"], done["upserted"], done["refitted"], done["generation"]) == (1, 1, False, 1)
    ledger.remove_note("Kayak.md")
    done = remember.refresh(ledger, memory, SETTINGS)
    assert (done["embedded"], done["upserted"], done["deleted"]) == (0, 0, 1)
    assert same(ledger, memory)
    assert all(hit.path != "Kayak.md" for hit in ask(ledger, memory, "epoxy rib", 20))


def test_the_embedder_is_fitted_again_when_the_vault_has_doubled(ledger: Ledger, memory: Path) -> None:
    old = remember.fitted(ledger)["fingerprint"]
    for n in range(ledger.counts()["passages"]):
        put(ledger, f"new{n}.md", f"Новая заметка номер {n} про грибы и лес.\n")
    done = remember.refresh(ledger, memory, SETTINGS)
    assert done["refitted"]
    assert done["embedded"] == ledger.counts()["passages"]
    assert remember.fitted(ledger)["fingerprint"] != old
    assert same(ledger, memory)


def test_other_dims_fit_again(ledger: Ledger, memory: Path) -> None:
    done = remember.refresh(ledger, memory, MemorySettings(dims=8))
    assert done["refitted"]
    assert same(ledger, memory)
    assert ledger.vectors(remember.fitted(ledger)["fingerprint"])[1].shape[1] <= 8


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])


@pytest.mark.parametrize("damage", ["memory", "generation", "CURRENT", "no sqlite", "died", "seal"])
def test_a_refresh_with_nothing_new_still_sees_that_chroma_is_gone(ledger: Ledger, memory: Path, damage: str) -> None:
    if damage == "memory":
        shutil.rmtree(memory)
    elif damage == "generation":
        shutil.rmtree(memory / "gen-1")
    elif damage == "CURRENT":
        (memory / "CURRENT").unlink()
    elif damage == "no sqlite":
        (memory / "gen-1" / "chroma.sqlite3").unlink()
    elif damage == "seal":
        (memory / "gen-1" / "seal.json").unlink()
    else:
        (memory / "OPEN").write_text("1")
    remember.refresh(ledger, memory, SETTINGS)
    assert same(ledger, memory)


@pytest.mark.parametrize("damage", ["memory", "generation", "CURRENT", "sqlite", "embedder", "count", "vector", "died"])
def test_a_damaged_memory_is_mended_by_the_next_refresh(ledger: Ledger, memory: Path, damage: str) -> None:
    fingerprint = remember.fitted(ledger)["fingerprint"]
    if damage == "memory":
        shutil.rmtree(memory)
    elif damage == "generation":
        shutil.rmtree(memory / "gen-1")
    elif damage == "CURRENT":
        (memory / "CURRENT").write_text("gen-77")
    elif damage == "sqlite":
        _cut(memory / "gen-1" / "chroma.sqlite3")
    elif damage == "embedder":
        live._embedder.cache_clear()
        _cut(remember.embedder_folder(memory, fingerprint) / "arrays.npz")
    elif damage == "count":
        with chroma.ChromaMemory(memory, fingerprint) as opened:
            opened.delete([1])
    elif damage == "vector":
        with chroma.ChromaMemory(memory, fingerprint) as opened:
            opened.upsert([1], -ledger.vectors(fingerprint, [1])[1], [{"path": "x"}])
    else:
        (memory / "OPEN").write_text("2")
    assert remember.check(ledger, memory, SETTINGS) != ""
    assert ask(ledger, memory, "epoxy", dense="chroma")[0].path == "Kayak.md"  # a broken memory still answers
    put(ledger, "neu.md", "Ещё одна заметка.\n")
    remember.refresh(ledger, memory, SETTINGS)
    assert same(ledger, memory)


def test_rebuild_leaves_nothing_of_a_removed_note_on_the_disk(ledger: Ledger, memory: Path) -> None:
    ledger.remove_note("Kayak.md")
    remember.rebuild(ledger, memory, SETTINGS)
    assert same(ledger, memory)
    assert chroma.current(memory) == 2
    for path in (*memory.rglob("chroma.sqlite3"), ledger.path):
        data = path.read_bytes().lower()
        assert b"kayak" not in data, path
        assert b"epoxi" not in data, path


def test_check_says_that_changes_wait(ledger: Ledger, memory: Path) -> None:
    put(ledger, "neu.md", "Ещё одна заметка.\n")
    assert "1 passages have no vector" in remember.check(ledger, memory, SETTINGS)


def test_check_does_not_raise_on_a_closed_ledger(ledger: Ledger, memory: Path) -> None:
    ledger.close()
    assert "cannot be checked" in remember.check(ledger, memory, SETTINGS)


@pytest.mark.parametrize(
    ("first", "where", "name", "nth"),
    [
        (True, "Ledger", "set", 1),  # the embedder is saved, the ledger has not heard
        (True, "Ledger", "put_vectors", 3),  # some vectors are there
        (True, "chroma", "_upsert", 2),  # a generation is half written
        (True, "chroma", "sweep", 1),  # it is live, the outbox is still full
        (False, "Ledger", "outbox_done", 2),  # Chroma has heard, the ledger doesn't know
    ],
)
def test_a_refresh_killed_anywhere_converges(ledger: Ledger, tmp_path: Path, first: bool, where: str, name: str, nth: int) -> None:
    folder = tmp_path / "memory"
    for n in range(40):
        put(ledger, f"n{n}.md", f"Заметка {n} про воду, лес и каяк номер {n * 7}.\n")
    if not first:
        remember.refresh(ledger, folder, SETTINGS)
        for n in range(10, 35):
            put(ledger, f"n{n}.md", f"Другая заметка {n} про хлеб {n * 3}.\n")
        ledger.remove_note("n1.md")
    kill_refresh(tmp_path, SETTINGS, where, name, nth)
    remember.refresh(ledger, folder, SETTINGS)
    assert same(ledger, folder)
    assert ask(ledger, folder, "хлеб" if not first else "каяк", dense="chroma")


# -- recall


@pytest.mark.parametrize("dense", ["exact", "chroma"])
@pytest.mark.parametrize(
    ("query", "path"),
    [
        ("при какой влажности включается помпа?", "Дача/Теплица.md"),
        ("what was mended with epoxy?", "Kayak.md"),
        ("মুগ ডাল কখন ভাজতে হয়?", "খিচুড়ি.md"),
        ("заквазка для хлепа", "Хлеб.md"),
    ],
)
def test_a_question_finds_its_note_and_says_why(ledger: Ledger, memory: Path, query: str, path: str, dense: recall.Dense) -> None:
    hits = ask(ledger, memory, query, dense=dense)
    assert hits[0].path == path
    scores = [hit.score for hit in hits]
    assert scores == sorted(scores, reverse=True)
    for hit in hits:
        assert 0 < hit.score <= 1.0 + 1e-6
        assert sum(hit.why.values()) == pytest.approx(hit.score)
        assert set(hit.why) <= {"words", "grams", "dense", *resonance.EDGES}
        first, last = hit.lines
        source = NOTES[hit.path].split("\n")[first - 1 : last]
        assert hit.text.strip() in "\n".join(source)


def test_chroma_and_the_exact_scan_agree(ledger: Ledger, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = chroma.nearest
    monkeypatch.setattr(chroma, "nearest", lambda *rest: asked.append(1) or real(*rest))
    for query in ("вода в колодце", "epoxy", "ঘি"):
        assert ask(ledger, memory, query, dense="chroma") == ask(ledger, memory, query, dense="exact")
    assert len(asked) == 3


def test_what_chroma_names_is_what_counts(ledger: Ledger, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (slot,) = (slot for text, slot in ledger.db.execute("SELECT text, slot FROM passages") if "Датчик" in text)
    monkeypatch.setattr(chroma, "nearest", lambda *asked: [(slot, 1.0), (4711, 1.0)])
    alone = MemorySettings(dims=32, words=0, grams=0, near=0, links=0)
    (hit,) = recall.recall(ledger, memory, alone, "датчик и хлеб", 5, dense="chroma")
    assert "Датчик" in hit.text
    assert hit.why == {"dense": pytest.approx(1.0)}
    assert len(recall.recall(ledger, memory, alone, "датчик и хлеб", 5, dense="exact")) > 1


def test_size_decides_whether_chroma_is_asked(ledger: Ledger, memory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = chroma.nearest
    monkeypatch.setattr(chroma, "nearest", lambda *rest: asked.append(1) or real(*rest))
    ask(ledger, memory, "вода")
    assert asked == []
    monkeypatch.setattr(recall, "EXACT_BELOW", 2)
    ask(ledger, memory, "вода")
    assert asked == [1]


def test_recall_answers_while_another_has_the_memory_open(ledger: Ledger, memory: Path) -> None:
    expected = ask(ledger, memory, "epoxy", dense="exact")
    with FileLock(memory / "gen-1" / "lock"):
        assert ask(ledger, memory, "epoxy", dense="chroma") == expected


def test_without_an_embedder_words_alone_answer(ledger: Ledger, tmp_path: Path) -> None:
    fill(ledger)
    hits = ask(ledger, tmp_path / "absent", "epoxy")
    assert hits[0].path == "Kayak.md"
    assert "dense" not in hits[0].why
    assert not (tmp_path / "absent").exists()


@pytest.mark.parametrize("query", ["", "   ", "???", '"', "ქართული", "NEAR(a b)", "\x00"])
@pytest.mark.parametrize("settings", [SETTINGS, MemorySettings(words=0, grams=0, dense=0)])
def test_a_question_that_matches_nothing_has_no_hits(ledger: Ledger, memory: Path, query: str, settings: MemorySettings) -> None:
    assert recall.recall(ledger, memory, settings, query, 3) == []


def test_a_neighbour_is_pulled_in_and_says_so(ledger: Ledger, memory: Path) -> None:
    hits = {hit.text.split("\n")[-1]: hit for hit in ask(ledger, memory, "приехала сестра на велосипеде", 10)}
    evening = hits["Пекли пирог."]
    assert evening.why["near"] > 0
    still = recall.recall(ledger, memory, MemorySettings(dims=32, near=0, links=0), "приехала сестра на велосипеде", 10)
    assert all("near" not in hit.why and "links" not in hit.why for hit in still)


def test_links_lend_both_ways(ledger: Ledger, memory: Path) -> None:
    forward = {hit.path: hit for hit in ask(ledger, memory, "epoxy", 10)}
    assert forward["Хлеб.md"].why["links"] > 0
    back = {hit.path: hit for hit in ask(ledger, memory, "закваска", 10)}
    assert back["Kayak.md"].why["links"] > 0


def test_a_hub_lends_little_to_each(ledger: Ledger, tmp_path: Path) -> None:
    for n in range(30):
        put(ledger, f"цель{n}.md", f"Пустяк {n}.\n")
    put(ledger, "hub.md", "Оглавление: " + " ".join(f"[[цель{n}]]" for n in range(30)) + "\n")
    put(ledger, "one.md", "Предисловие [[цель0]]\n")
    settings = MemorySettings(links=1.0)
    hub, one = (resonance.lend(ledger, {slot: 1.0}, "", settings)["links"] for slot in (31, 32))
    assert max(hub.values()) == pytest.approx(1 / 30)
    assert one == {1: 1.0}


def test_allow_leaves_scenes_out(ledger: Ledger, memory: Path) -> None:
    hits = ask(ledger, memory, "epoxy", 10, allow=lambda scene: scene.source.path != "Kayak.md")
    assert all(hit.path != "Kayak.md" for hit in hits)


def test_a_scene_in_two_notes_is_found_once_in_the_smallest_path(ledger: Ledger, tmp_path: Path, shared: Path) -> None:
    data = (shared / "real/user/nexus-semantic-tokens-ru.md").read_bytes()
    put(ledger, "b/copy.md", data)
    put(ledger, "a/copy.md", data)
    hits = ask(ledger, tmp_path / "none", "сцепка токенизатор", 5)
    assert [hit.path for hit in hits] == ["a/copy.md"]
    elsewhere = ask(ledger, tmp_path / "none", "сцепка токенизатор", 5, allow=lambda scene: scene.source.path != "a/copy.md")
    assert [hit.path for hit in elsewhere] == ["b/copy.md"]


def test_two_talks_that_share_a_uid_and_not_a_word_are_two_hits(ledger: Ledger, tmp_path: Path) -> None:
    asked = ">[!nexus_user] **User** - 16.06.2025 at 21:34\n> {}\n<!-- UID: m1 -->\n\n\n\n\n"
    talk = asked + ">[!nexus_agent] **Assistant**\n> {}\n<!-- UID: m2 -->\n"
    put(ledger, "a/script.md", talk.format("Write a script", "Here it is, in Python."))
    put(ledger, "b/coffee.md", talk.format("Как варить кофе в джезве?", "Медленно, до подъёма пены."))
    assert [hit.path for hit in ask(ledger, tmp_path / "none", "кофе в джезве", 5)][:1] == ["b/coffee.md"]
    assert [hit.path for hit in ask(ledger, tmp_path / "none", "script python", 5)][:1] == ["a/script.md"]


# -- the real samples


@pytest.fixture(scope="module")
def real(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Path]]:
    root = tmp_path_factory.mktemp("real")
    with Ledger(root / "ledger.db") as opened:
        for file in sorted((shared / "real/user").glob("*.md")):
            put(opened, file.name, file.read_bytes())
        remember.refresh(opened, root / "memory", MemorySettings())
        yield opened, root / "memory"


@pytest.mark.parametrize(
    ("query", "path", "uid"),
    [
        (
            "Какие области стоит изучать, чтобы сделать свою LLM?",
            {"nexus-learn-llm-ru.md"},
            "7fb9125e-f5c4-4330-950c-7c78ea93690c",
        ),
        ("Что такое сцепка в новом токенизаторе?", {"nexus-semantic-tokens-ru.md"}, ""),
        ("Почему эмбеддинги важны для маленьких моделей?", {"embeddings-small-llm-ru.md"}, ""),
        ("Чем QLoRA отличается от LoRA?", {"llm-course-ru.md", "nexus-learn-llm-ru.md"}, ""),
        ("প্রি-ট্রেনিং আর ফাইন-টিউনিংয়ের পার্থক্য কী?", {"llm-book-notes-bn.md"}, ""),
        ("pretraining এবং finetuning কীভাবে আলাদা?", {"llm-book-notes-bn.md"}, ""),
        ("মডেলের প্রাক-প্রশিক্ষণ কীভাবে হয়?", {"llm-book-notes-bn.md"}, ""),
    ],
)
def test_real_questions_find_their_notes_among_the_first_three(real: tuple[Ledger, Path], query: str, path: set[str], uid: str) -> None:
    hits = recall.recall(*real, MemorySettings(), query, 3)
    assert hits[0].path in path
    assert not uid or any(uid in hit.uids for hit in hits)


def test_vectors_are_those_of_the_embedder(real: tuple[Ledger, Path]) -> None:
    ledger, folder = real
    fingerprint = remember.fitted(ledger)["fingerprint"]
    loaded = embed.VaultEmbedder.load(remember.embedder_folder(folder, fingerprint))
    slots, vectors = ledger.vectors(fingerprint)
    stored = ledger.passages(slots[:5])
    again = loaded.embed([live.said(stored[slot].passage.text, stored[slot].passage.context) for slot in slots[:5]])
    np.testing.assert_allclose(again, vectors[:5], atol=1e-5)
