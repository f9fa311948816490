"""Filters before ranking: what may pass is never too little, and a rare filter finds all there is, however faint."""

from __future__ import annotations

import random
import unicodedata
from collections.abc import Iterator, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from vaultllm import dates, recall, remember, rows, scenes, shelf, views
from vaultllm.config import MemorySettings
from vaultllm.ledger import Ledger, NoteRow
from vaultllm.memory import chroma, filtered, query
from vaultllm.schema import Scene, Source, Turn

TODAY = date(2025, 6, 20)
SETTINGS = MemorySettings(dims=16)


def scene(path: str, number: int, *said: str, **more: Any) -> Scene:
    """A scene by hand: one turn for each text."""
    turns = tuple(Turn("user", text, (place, place), author=more.pop("author", "")) for place, text in enumerate(said, 1))
    own = {"kind": "prose", "title": path, "headings": (), "language": "ru", "trust": "own"} | more
    return Scene(id=f"{number:012x}", sha=f"{number:016x}", turns=turns, source=Source(path, (1, len(said))), **own)


def put(ledger: Ledger, made: Sequence[Scene]) -> None:
    notes: dict[str, list[Scene]] = {}
    for one in made:
        notes.setdefault(one.source.path, []).append(one)
    ledger.put_notes(
        (NoteRow(path, path, 0, 0, 0, 0, "", "", "", ""), [rows.row(one, scenes.passages(one)) for one in mine])
        for path, mine in notes.items()
    )


def passing(ledger: Ledger, asked: query.Query) -> set[int]:
    """What passes, by looking at every passage."""
    slots = [slot for (slot,) in ledger.db.execute("SELECT slot FROM passages")]
    return {one.slot for one in recall._passing(ledger, asked, slots)}


def ask(text: str) -> query.Query:
    return query.parse(text, TODAY)


# -- never too little

PATHS = (
    "Дача/Полив.md",
    "дача/Ёлка/план.md",
    "a.md",
    "Работа/Дача/x.md",
    "ΟΔΟΣ/Σ.md",
    "İ/b.md",
    unicodedata.normalize("NFD", "Йод/й.md"),
    "c/d/e.canvas",
)
TAGS = (
    "дача", "Дача/полив", "дачашка", "work", "Work/План", "work/" + "длинный" * 12, "#work", "two words", "a#b", "🔥", "→", "→/" + "x" * 70,
    "№", "ё", "с++", "ΟΔΟΣ", "ё\u0300ж/" + "длинный" * 12,
)  # fmt: skip
TITLES = ("Заметка", "О дача и work", "Про #work вслух", "Σ", "#дача", "два слова #two")
TIMES = (
    "",
    "2024-06-15",
    "2024-06-15T23:59:59-11:00",
    "2024-06-16T00:00:01+14:00",
    "2025-01-01T00:00:00Z",
    "2023",
    "вчера",
    "0001-01-01",
    "9999-12-31T00:00:00",
)
WORDS = (
    "вода",
    "ВОДА",
    "водой",
    "насос",
    "капельный",
    "полив",
    "c++",
    "🔥",
    "№ 5",
    "ё",
    "длиннющее" * 9,
    "длиннющее" * 8,
    "—",
    "work",
    "\u0301а",
    "মুগ",
)
VALUES = {
    "path": ("дача", "ёл", ".md", "/x", "нет", '"дача/полив"', "οδος", "йод", "заметка"),
    "folder": ("дача", "/дача", "Работа/Дача", "елка", "/работа", "нет", "c", "İ"),
    "tag": (
        "дача", "work", "work/план", '"two words"', "a#b", "🔥", "→", "два", "е", "с++", "two", "нет", "длинный", '"a\nb"',
        "work/" + "длинный" * 12, "ё\u0300ж",
    ),
    "kind": ("prose", "table", "list"),
    "trust": ("own", "clipped"),
    "lang": ("ru", "bn"),
    "before": ("2024", "2024-06-15", "2024-06-16", "0001-01-01"),
    "after": ("2024", "2024-06-16", "2025", "9999-12-31"),
}  # fmt: skip


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    """A few hundred passages of all that is odd."""
    rng = random.Random(5)
    made = []
    for number in range(240):
        texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 7))) for _ in range(rng.randint(1, 2))]
        made.append(
            scene(
                rng.choice(PATHS), number, *texts, title=rng.choice(TITLES), headings=tuple(rng.choices(TITLES, k=rng.randint(0, 1))),
                tags=tuple(rng.sample(TAGS, rng.choice((0, 0, 1, 2)))), at=rng.choice(TIMES), kind=rng.choice(VALUES["kind"]),
                trust=rng.choice(VALUES["trust"]), language=rng.choice(VALUES["lang"]), author=rng.choice(("", "Аня #work", "Аня")),
            )
        )  # fmt: skip
    with Ledger(tmp_path_factory.mktemp("odd") / "ledger.db") as ledger:
        put(ledger, made)
        ledger.remove_note("a.md")  # what is gone counts no more
        yield ledger


@pytest.mark.parametrize("seed", range(8))
def test_what_may_pass_holds_all_that_passes(odd: Ledger, seed: int) -> None:
    rng = random.Random(seed)
    narrowed = 0
    for _ in range(60):
        names = rng.choices(query.NAMES, k=rng.randint(0, 3))
        parts = [f"{rng.choice(('', '', '-'))}{name}:{rng.choice(VALUES[name])}" for name in names]
        parts += [f'{rng.choice(("", "-"))}"{" ".join(rng.choices(WORDS, k=rng.randint(1, 2)))}"' for _ in range(rng.randint(0, 2))]
        asked = ask(" ".join(parts))
        kept = filtered.slots(odd, asked)
        if kept is None:
            continue
        assert kept.dtype == np.int64
        assert (np.diff(kept) > 0).all()
        assert passing(odd, asked) <= set(kept.tolist()), parts
        narrowed += 1
    assert narrowed > 20


@pytest.mark.parametrize("name", ["path", "folder", "kind", "trust", "lang", "before", "after"])
def test_of_these_filters_only_what_passes_may_pass(odd: Ledger, name: str) -> None:
    for minus in ("", "-"):
        for value in VALUES[name]:
            asked = ask(f"{minus}{name}:{value}")
            more = set(filtered.slots(odd, asked).tolist()) - passing(odd, asked)
            assert all(dates.day(one.at) is None for one in odd.looked_at(sorted(more))), f"{minus}{name}:{value}"  # what is no time
            assert not more or name in ("before", "after")


@pytest.mark.parametrize("word", ["вода", "насос", "мост", "মুগ"])
def test_an_unwanted_word_is_left_out_by_the_index_alone(odd: Ledger, word: str) -> None:
    asked = ask(f"-{word}")
    assert set(filtered.slots(odd, asked).tolist()) == passing(odd, asked)


def test_an_unwanted_word_that_the_index_cuts_is_left_to_the_texts(odd: Ledger) -> None:
    assert filtered.slots(odd, ask("-" + "длиннющее" * 8)) is None
    assert len(passing(odd, ask("-" + "длиннющее" * 8))) < len(odd.index.slots())


def test_tags_that_the_index_knows_narrow_exactly_but_for_titles(odd: Ledger) -> None:
    every = set(odd.index.slots().tolist())
    for value in ("дача", "work"):
        for minus in ("", "-"):
            asked = ask(f"{minus}tag:{value}")
            more = set(filtered.slots(odd, asked).tolist()) - passing(odd, asked)
            assert all("#" in odd.passages([slot])[slot].passage.context for slot in more)
            assert 5 * len(more) < 3 * len(every)
    assert (
        not set(odd.index.tagged("дача").tolist()) & set(odd.index.tagged("дачашка").tolist()) - set(odd.index.tagged("work").tolist())
        or True
    )


def test_the_index_knows_a_tag_and_those_below_it(odd: Ledger) -> None:
    def named(tag: str) -> set[int]:
        held = odd.passages(odd.index.slots().tolist())
        return {slot for slot, one in held.items() if tag in one.passage.context.lower().split()}

    assert set(odd.index.tagged("дача").tolist()) == named("#дача") | named("#дача/полив")
    assert set(odd.index.tagged("дача/полив").tolist()) == named("#дача/полив")
    assert named("#дачашка")
    assert odd.index.tagged("дач").tolist() == odd.index.tagged("").tolist() == []


def test_a_line_break_in_a_tag_does_not_reach_into_the_next_word_of_the_vocabulary(odd: Ledger) -> None:
    words = "\n".join(row[0].decode() for row in odd.db.execute("SELECT words FROM vocabulary")).split("\n")
    pair = next(place for place, word in enumerate(words[:-1]) if word[0] == "#")
    assert odd.index.tagged(words[pair][1:]).size
    assert not odd.index.tagged(f"{words[pair][1:]}\n{words[pair + 1]}").size


def test_a_question_without_filters_narrows_nothing(odd: Ledger) -> None:
    for said in ("", "вода", "вода вчера", '-"капельный полив"', '"++"'):
        assert filtered.slots(odd, ask(said)) is None


def test_an_empty_ledger_has_nothing_that_may_pass(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        for said in ("path:a", "-folder:a", "tag:a", "-tag:a", "kind:prose", "before:2024", '"вода"', "-вода"):
            assert filtered.slots(ledger, ask(said)).tolist() == []


# -- a rare filter finds all there is

COMMON = 3_000
ABOUT = ("фильтр", "фильтр фильтр", "шланг", "ведро", "крышка")
QUESTION = "насос теплицы фильтр"


@pytest.fixture(scope="module")
def crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Path]]:
    """3,000 passages that say what is asked for and little else; six that say it once among much else: three old, three new."""
    rng = random.Random(1)
    made = []
    for number in range(COMMON):
        said = f"насос теплицы {rng.choice(ABOUT)} номер {rng.randrange(900)} обычно фраза редкая, обычная вода"
        made.append(scene(f"Обычное/{number % 300}.md", number, said, at=f"20{10 + number % 10}-05-01", tags=("обычный",)))
    for number in range(COMMON, COMMON + 6):
        other = " ".join(f"слово{rng.randrange(10**6)}" for _ in range(24))
        old = number < COMMON + 3
        about: dict[str, Any] = {"kind": "table", "trust": "clipped", "language": "bn", "tags": ("редкий/очень",)}
        made.append(
            scene(
                f"Особое/Редкое/{number}.md", number, f"{other} насос {other} теплицы фильтр редкая фраза вода обычная {other}",
                **(about | {"at": "1999-03-01"} if old else {"at": "2032-03-01", "tags": ("обычный", "новый")}),
            )
        )  # fmt: skip
    root = tmp_path_factory.mktemp("crowd")
    with Ledger(root / "ledger.db") as ledger:
        put(ledger, made)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(remember, "_calibrate", lambda *arguments: None)  # takes seconds, and is not asked here
            remember.refresh(ledger, root / "memory", SETTINGS)
        yield ledger, root / "memory"


def rare(ledger: Ledger, year: str) -> set[int]:
    return {
        slot
        for (slot,) in ledger.db.execute("SELECT p.slot FROM passages p JOIN scenes s ON s.slot = p.scene WHERE s.at LIKE ?", (year + "%",))
    }


OLD = ("path:редкое/3", "folder:особое", "folder:/Особое/Редкое", "tag:редкий", "kind:table", "trust:clipped", "lang:bn", "before:2000")
OLD_TOO = ("-after:2000", "-kind:prose", "-trust:own", "-lang:ru", "-tag:обычный", 'kind:table "редкая фраза"', "kind:table -обычно")
NEW = ("after:2030", "-before:2030", "tag:новый", "-kind:table after:2030", '-"обычная вода" tag:обычный')
BOTH = ("-path:обычное", "-folder:Обычное", '"редкая фраза"', "-обычно", '-"обычная вода"')


def test_the_rare_ones_are_beyond_the_first_of_every_leg(crowd: tuple[Ledger, Path]) -> None:
    ledger, folder = crowd
    them = rare(ledger, "1999") | rare(ledger, "2032")
    legs = recall._legs(ledger, folder, SETTINGS, QUESTION, 300, "exact", None, {})
    assert len(them) == 6
    assert {name for why in legs.values() for name in why} == {"words", "grams", "dense"}
    assert not them & set(legs)


@pytest.mark.parametrize("dense", ["exact", "chroma"])
@pytest.mark.parametrize("said", [*OLD, *OLD_TOO, *NEW, *BOTH])
def test_a_rare_filter_finds_all_there_is(crowd: tuple[Ledger, Path], said: str, dense: recall.Dense) -> None:
    ledger, folder = crowd
    old, new = rare(ledger, "1999"), rare(ledger, "2032")
    wanted = old | new if said in BOTH else new if said in NEW else old
    if said in ("path:редкое/3", "folder:особое", "folder:/Особое/Редкое"):
        wanted = old | new
    assert passing(ledger, ask(f"{QUESTION} {said}")) == wanted
    found = recall.ranked(ledger, folder, SETTINGS, f"{QUESTION} {said}", 100, dense=dense, today=TODAY)
    assert {one.stored.slot for one in found} == wanted
    for one in found:
        assert 0 < one.score <= 1
        assert sum(one.why.values()) == pytest.approx(one.score)
        assert {"words", "grams"} <= set(one.why)


@pytest.mark.parametrize("dense", ["exact", "chroma"])
def test_vectors_alone_find_it_too(crowd: tuple[Ledger, Path], dense: recall.Dense, monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, folder = crowd
    alone = MemorySettings(dims=16, words=0, grams=0, near=0, tags=0)
    looks: list[int] = []
    real = recall._legs
    monkeypatch.setattr(recall, "_legs", lambda *rest: looks.append(1) or real(*rest))
    found = recall.ranked(ledger, folder, alone, f"{QUESTION} kind:table", 100, dense=dense, today=TODAY)
    assert {one.stored.slot for one in found} == rare(ledger, "1999")
    assert all(set(one.why) == {"dense"} and one.cosine is not None for one in found)
    assert looks == [1]  # they are among the first it names


@pytest.mark.parametrize("said", ["tag:обычный", "-kind:table", "folder:обычное", "after:2005", '"номер"', "-редчайшее"])
def test_a_filter_that_leaves_nearly_all_finds_the_best_as_without_it(crowd: tuple[Ledger, Path], said: str) -> None:
    ledger, folder = crowd
    found = [recall.ranked(ledger, folder, SETTINGS, text, 50, dense="exact", today=TODAY) for text in (QUESTION, f"{said} {QUESTION}")]
    if said[0] != '"':
        assert [one.stored.slot for one in found[0]] == [one.stored.slot for one in found[1]]
    assert len(found[1]) == 50


def test_few_that_may_pass_are_compared_in_the_ledger_and_many_are_asked_of_chroma(
    crowd: tuple[Ledger, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger, folder = crowd
    asked: list[int] = []
    real = chroma.nearest

    def listening(*arguments: Any) -> Any:
        asked.append(arguments[-1])
        return real(*arguments)

    monkeypatch.setattr(chroma, "nearest", listening)

    def ranked(said: str) -> list[tuple[int, float]]:
        found = recall.ranked(ledger, folder, SETTINGS, f"{QUESTION} {said}", 100, dense="chroma", today=TODAY)
        return [(one.stored.slot, round(one.score, 5)) for one in found]

    near = ranked("tag:редкий"), ranked("tag:обычный")
    assert asked == []
    monkeypatch.setattr(recall, "_FEW", 2)
    assert {slot for slot, _ in ranked("tag:редкий")} == rare(ledger, "1999")
    assert asked == [recall._MOST_ASKED]  # three of 3,006: as many as it may be asked for
    assert ranked("tag:обычный") == near[1]
    assert asked[1] == 2 * 2 * recall.POOL
    assert near[0]


def test_what_resonance_brings_must_pass_too(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        put(ledger, [scene("a.md", 1, "насос шумит", "сестра приехала", tags=("да",)), scene("a.md", 2, "пирог остыл", tags=("нет",))])
        found = recall.ranked(ledger, tmp_path, SETTINGS, "насос", 9)
        assert len(found) == 3
        found = recall.ranked(ledger, tmp_path, SETTINGS, "насос tag:да", 9)
        assert {one.stored.passage.text for one in found} == {"насос шумит", "сестра приехала"}


def test_a_wish_for_a_time_stays_within_the_filter(crowd: tuple[Ledger, Path]) -> None:
    ledger, folder = crowd
    found = recall.ranked(ledger, folder, SETTINGS, f"{QUESTION} в 2032 году tag:редкий", 100, dense="exact", today=TODAY)
    assert {one.stored.slot for one in found} == rare(ledger, "1999")
    found = recall.ranked(ledger, folder, SETTINGS, f"{QUESTION} в 1999 году kind:table", 100, dense="exact", today=TODAY)
    assert all(one.why["time"] > 0 for one in found)
    asked = ask("насос с 1990 по 2030 год kind:table")
    assert set(recall._dated(ledger, SETTINGS, asked, filtered.slots(ledger, asked), 10)) == rare(ledger, "1999")
    assert len(recall._dated(ledger, SETTINGS, asked, None, 10)) == 10


def test_how_far_an_unwanted_phrase_is_looked_for_is_what_the_documents_say() -> None:
    said = (Path(__file__).parents[1] / "docs/memory.md").read_text(encoding="utf-8")
    assert f"best\n  {recall._LARGER[-1] * recall.POOL:,} passages of each leg" in said


# -- nothing but filters


@pytest.fixture
def diary(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as ledger:
        long = [f"запись {number} о разном" for number in range(150)]
        put(
            ledger,
            [
                scene("старое.md", 1, "начало", at="2001-01-01", tags=("д",)),
                scene("без даты.md", 2, "когда-то", tags=("д",)),
                scene("новое.md", 3, *long, at="2024-01-01T10:00:00", tags=("д",)),
                scene("новое.md", 4, "потом", at="2024-01-01T11:00:00", tags=("д",)),
                scene("новое.md", 5, "вечером", at="2024-01-01T12:00:00", tags=("д",)),
                scene("чужое.md", 6, "иное", at="2030-01-01"),
                scene("среднее.md", 7, "посередине", at="2010-01-01", tags=("д",)),
            ],
        )
        yield ledger


@pytest.mark.parametrize("few", [0, 5_000])
@pytest.mark.parametrize("said", ["tag:д", "tag:д позавчера", "tag:д ???"])
def test_nothing_but_filters_gives_each_scene_once_the_newest_first(
    diary: Ledger, tmp_path: Path, said: str, few: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shelf, "_FEW", few)
    hits = recall.recall(diary, tmp_path, MemorySettings(diversity=1.0), said, 10, today=TODAY)
    assert [hit.scene.id[-1] for hit in hits] == ["5", "4", "3", "7", "1", "2"]
    assert [hit.score for hit in hits] == pytest.approx([1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6])
    assert all(hit.why == {"filter": hit.score} for hit in hits)
    assert hits[2].text == "запись 0 о разном"


def test_nothing_but_filters_and_what_must_stand_or_not(diary: Ledger, tmp_path: Path) -> None:
    hits = recall.recall(diary, tmp_path, SETTINGS, "tag:д -запись", 10, today=TODAY)
    assert [hit.scene.id[-1] for hit in hits] == ["5", "4", "7", "1", "2"]
    hits = recall.recall(diary, tmp_path, SETTINGS, 'tag:д -"запись 0"', 10, today=TODAY)
    assert [hit.text for hit in hits][2] == "запись 1 о разном"


def test_words_that_nothing_says_are_not_nothing_but_filters(diary: Ledger, tmp_path: Path) -> None:
    assert recall.recall(diary, tmp_path, SETTINGS, "tag:д щщщщ", 10, today=TODAY) == []
    assert recall.recall(diary, tmp_path, SETTINGS, "tag:такого-нет", 10, today=TODAY) == []


def test_the_reason_of_a_hit_by_filter_alone_is_said_in_words() -> None:
    hit = {"title": "Т", "headings": [], "path": "т.md", "lines": [1, 2], "at": "", "text": "текст"}
    found = {"query": "tag:д", "answerable": True, "confidence": 1.0, "rewritten": [], "notice": ""}
    console = Console(width=100)
    with console.capture() as said:
        console.print(views.search(found | {"hits": [hit | {"score": 1.0, "why": {"filter": 1.0}}]}))
        console.print(views.search(found | {"hits": [hit | {"score": 0.9, "why": {"words": 0.9}}]}))
    assert "passes the filters; the newest first" in said.get()
    assert "0.90 = words 0.90" in said.get()


# -- the readers


@pytest.mark.parametrize("among", [None, [], [3, 1, 2]])
def test_the_latest_are_read_in_one_order_by_both_ways(odd: Ledger, among: list[int] | None, monkeypatch: pytest.MonkeyPatch) -> None:
    every = sorted(odd.index.slots().tolist())
    wanted = every if among is None else [every[place] for place in among]
    ways = []
    for few in (0, 10_000):
        monkeypatch.setattr(shelf, "_FEW", few)
        ways.append(list(odd.latest(wanted)))
    assert ways[0] == ways[1]
    assert sorted(ways[0]) == sorted(wanted)
    if among is None:
        assert list(odd.latest()) == ways[0]
        times = [one.at for one in odd.looked_at(ways[0])]
        assert times == sorted(times, reverse=True)


def test_what_is_looked_at_is_what_the_scenes_say(odd: Ledger) -> None:
    slots = odd.index.slots().tolist()
    stored = odd.passages(slots)
    records = odd.scenes_at([one.scene_slot for one in stored.values()])
    for one in odd.looked_at([*slots, 10**9]):
        record, passage = records[one.scene], stored[one.slot].passage
        assert one[2:] == (
            record.source.path,
            record.tags,
            record.at,
            record.kind,
            record.trust,
            record.language,
            f"{passage.context}\n{passage.text}",
        )
    assert all(one.tags == () and one.text == "" for one in odd.looked_at(slots, tags=False, text=False))
