"""Resonance: each kind of edge lends what it should, 0 switches it off, and what is shared by many lends little to each."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from vaultllm import chats, markdown, recall, rows, scenes
from vaultllm.config import MemorySettings, ScanSettings, Settings
from vaultllm.ledger import Ledger, NoteRow
from vaultllm.memory import resonance

NOW = datetime(2025, 6, 15, 12, tzinfo=UTC)
SETTINGS = MemorySettings(dims=32)


def put(ledger: Ledger, path: str, text: str, speaker: str = "", turns: bool = False) -> list[int]:
    """A note, each section or turn a passage; returns their slots. `speaker` says all of it; `turns`: it is a talk of Nexus."""
    note = markdown.parse(path, (talk(text) if turns else text).encode())
    reader, why, talks = chats.read(note, ScanSettings(), "")
    apart = {} if turns else {"min_chars": 0}
    cut, _ = scenes.cut(note, reader, talks, Settings.model_validate({"vault_id": "test", "scenes": apart}))
    made = []
    for scene in cut:
        passages = scenes.passages(scene)
        if speaker:
            passages = tuple(replace(one, context=f"{one.context}\n@{speaker}") for one in passages)
        made.append(rows.row(scene, passages))
    ledger.put_note(NoteRow(path, note.title, len(text), 0, 0, 0, note.sha256, scenes.PARSER, reader, why), made)
    query = "SELECT p.slot FROM passages p JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note WHERE n.path = ?"
    return [slot for (slot,) in ledger.db.execute(query + " ORDER BY s.ordinal, p.ordinal", (path,))]


def talk(text: str) -> str:
    """Lines as turns of the user and the assistant by turns."""
    parts = ["---\nnexus: nexus-ai-chat-importer\nprovider: chatgpt\n---\n\n# Title: Разговор\n"]
    for number, line in enumerate(text.strip().split("\n")):
        head = "### User" if number % 2 == 0 else "#### Assistant"
        mark = ">" if number % 2 == 0 else ">>"
        parts.append(f"{head}, on 17.12.2024 at 22:{number:02d};\n{mark} {line}\n<!-- UID: {number:08d}-aaaa-4bbb-8ccc-{number:012d} -->\n")
    return "\n".join(parts)


def prose(count: int, title: str = "Журнал") -> str:
    return f"# {title}\n\n" + "\n\n".join(f"## Раздел {n}\n\nЗдесь написано кое-что под номером {n}." for n in range(count)) + "\n"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def lent(ledger: Ledger, kind: str, seeds: dict[int, float], question: str = "", weight: float = 1.0) -> dict[int, float]:
    """What one kind of edge lends, when it alone is on."""
    weights = {name: weight if name == kind else 0.0 for name in resonance.EDGES}
    found = resonance.lend(ledger, seeds, question, SETTINGS.model_copy(update=weights), NOW)
    assert set(found) == {kind}
    return {slot: amount for slot, amount in found[kind].items() if amount}


def fill(ledger: Ledger) -> dict[int, float]:
    """A vault in which every kind of edge has something to lend; returns what was found."""
    put(ledger, "Колодец.md", "---\ntags: [вода]\n---\n# Колодец\n\nСм. [[Насос]].\n\n## Лето\n\n### Июнь\n\nСухо.\n\n### Июль\n\nДождь.\n")
    put(ledger, "Насос.md", "---\ntags: [вода]\n---\n# Насос\n\nСтучит подшипник.\n")
    put(ledger, "Чат.md", "Почему гудит трансформатор?\nТрансформатор гудит от магнитострикции.\nА тише можно?", turns=True)
    put(ledger, "Второй.md", "Опять трансформатор, магнитострикция.\nДа, трансформатор.", turns=True)
    ledger.put_answer("a-1", "Ответ.md", "sha", NOW.isoformat(), {"sources": [{"path": "Насос.md", "lines": [1, 9]}]})
    slots = [slot for (slot,) in ledger.db.execute("SELECT slot FROM passages ORDER BY slot")]
    return {slot: 1.0 - place / 100 for place, slot in enumerate(slots)}


def test_every_kind_of_edge_lends_where_there_is_one(ledger: Ledger) -> None:
    seeds = fill(ledger)
    some = dict(list(seeds.items())[:3]) | dict(list(seeds.items())[-3:-2])
    for kind in resonance.EDGES:
        assert lent(ledger, kind, seeds if kind in ("used", "named") else some, "что с колодец и насос"), kind


def test_weight_0_switches_each_off_and_a_weight_scales_it(ledger: Ledger) -> None:
    seeds = fill(ledger)
    whole = resonance.lend(ledger, seeds, "насос", SETTINGS, NOW)
    assert set(whole) == set(resonance.EDGES)
    for kind in resonance.EDGES:
        assert kind not in resonance.lend(ledger, seeds, "насос", SETTINGS.model_copy(update={kind: 0.0}), NOW)
        once, twice = lent(ledger, kind, seeds, "насос", 0.2), lent(ledger, kind, seeds, "насос", 0.4)
        assert twice == {slot: pytest.approx(2 * amount) for slot, amount in once.items()}


def test_nothing_found_lends_nothing(ledger: Ledger) -> None:
    fill(ledger)
    assert not any(resonance.lend(ledger, {}, "насос", SETTINGS, NOW).values())


# -- near


def test_a_turn_lends_to_the_three_beside_it_and_less_with_the_distance(ledger: Ledger) -> None:
    slots = put(ledger, "Чат.md", "\n".join(f"Реплика под номером {n}." for n in range(9)), turns=True)
    found = lent(ledger, "near", {slots[4]: 1.0})
    assert [found.get(slot, 0.0) for slot in slots] == pytest.approx([0, 0.5, 0.7, 1.0, 0, 1.0, 0.7, 0.5, 0])


def test_a_section_lends_less_than_a_turn(ledger: Ledger) -> None:
    turns = put(ledger, "Чат.md", "Раз, начали.\nДва, продолжаем.\nТри, закончили.", turns=True)
    sections = put(ledger, "Журнал.md", prose(3))
    assert lent(ledger, "near", {sections[1]: 1.0})[sections[2]] < lent(ledger, "near", {turns[1]: 1.0})[turns[2]]


def test_what_says_as_much_itself_is_lent_nothing(ledger: Ledger) -> None:
    slots = put(ledger, "Чат.md", "Раз, начали.\nДва, продолжаем.\nТри, закончили.", turns=True)
    assert lent(ledger, "near", dict.fromkeys(slots, 0.8)) == {}
    assert lent(ledger, "near", {slots[0]: 0.8, slots[1]: 0.5}) == {slots[1]: pytest.approx(0.3), slots[2]: pytest.approx(0.56)}


def test_many_neighbours_lend_no_more_than_the_best_of_them(ledger: Ledger) -> None:
    slots = put(ledger, "Чат.md", "\n".join(f"Реплика под номером {n}." for n in range(7)), turns=True)
    assert lent(ledger, "near", {slot: 0.9 for slot in slots if slot != slots[3]})[slots[3]] == pytest.approx(0.9)


def test_nobody_overtakes_the_one_that_lends_and_the_best_stays_the_best(ledger: Ledger) -> None:
    slots = put(ledger, "Чат.md", "\n".join(f"Реплика под номером {n}." for n in range(20)), turns=True)
    slots += put(ledger, "Журнал.md", prose(20))
    choose = random.Random(4)
    for _ in range(50):
        base = {slot: choose.random() for slot in choose.sample(slots, 25)}
        seeds = dict(sorted(base.items(), key=lambda one: -one[1]))
        found = lent(ledger, "near", seeds, weight=choose.uniform(0, 1))
        totals = {slot: seeds.get(slot, 0.0) + found.get(slot, 0.0) for slot in slots}
        best = next(iter(seeds))
        assert best not in found
        assert max(totals.values()) == totals[best]


def test_what_stands_in_another_note_is_not_beside(ledger: Ledger) -> None:
    first, second = put(ledger, "1.md", prose(2)), put(ledger, "2.md", prose(2))
    assert set(lent(ledger, "near", {first[1]: 1.0})) <= set(first)
    assert not set(lent(ledger, "near", {first[1]: 1.0})) & set(second)


def test_an_answer_without_a_word_of_the_question_is_found_beside_it(ledger: Ledger, tmp_path: Path) -> None:
    slots = put(ledger, "Чат.md", "Как назвать закваску для хлеба?\nПусть будет Борис.\nСпасибо, так и сделаю.", turns=True)
    for number in range(5):
        put(ledger, f"{number}.md", f"# Хлеб {number}\n\nЗакваска для хлеба номер {number} уже куплена.\n")

    def place(settings: MemorySettings) -> int:
        found = recall.ranked(ledger, tmp_path / "memory", settings, "как назвать закваску", 50)
        return next((place for place, one in enumerate(found) if one.stored.slot == slots[1]), 99)

    assert place(SETTINGS) == 1
    assert place(SETTINGS.model_copy(update={"near": 0.0})) > 1


# -- links, tags, terms, heading


def test_links_lend_both_ways(ledger: Ledger) -> None:
    (source,), (target,) = put(ledger, "А.md", "# А\n\nСмотри [[Б]].\n"), put(ledger, "Б.md", "# Б\n\nКолодец и ведро.\n")
    (other,) = put(ledger, "В.md", "# В\n\nНичья заметка.\n")
    assert lent(ledger, "links", {source: 0.5}) == {target: 0.5}
    assert lent(ledger, "links", {target: 0.5}) == {source: 0.5}
    assert lent(ledger, "links", {other: 1.0}) == {}


def test_of_a_linked_scene_the_passage_that_was_found_gets_it(ledger: Ledger) -> None:
    (source,) = put(ledger, "А.md", "# А\n\nСмотри [[Б]].\n")
    long = "\n\n".join(f"Абзац {n}. " + "Вода стоит низко. " * 30 for n in range(3))
    parts = put(ledger, "Б.md", f"# Б\n\n{long}\n")
    (scene,) = {place.scene for place in ledger.places(parts[:2]).values()}
    assert scene
    assert set(lent(ledger, "links", {source: 1.0})) == {parts[0]}
    assert parts[1] in lent(ledger, "links", {source: 1.0, parts[1]: 0.3})


@pytest.mark.parametrize("kind", ["links", "tags", "terms", "heading"])
def test_what_many_share_lends_little_to_each(ledger: Ledger, kind: str) -> None:
    few, many = hub(ledger, kind, 2, "малый"), hub(ledger, kind, 20, "большой")
    little, much = lent(ledger, kind, {many[0]: 1.0}), lent(ledger, kind, {few[0]: 1.0})
    assert much
    assert little
    assert max(little.values()) < 0.3 * max(much.values())
    assert sum(little.values()) <= sum(much.values()) + 1.01  # whatever their number, they share one


def hub(ledger: Ledger, kind: str, count: int, name: str) -> list[int]:
    """A passage that is joined with so many others by one kind of edge: its slot, then theirs."""
    if kind == "links":
        listed = " ".join(f"[[{name}-{n}]]" for n in range(count))
        return put(ledger, f"{name}.md", f"# {name}\n\n{listed}\n") + [
            slot for n in range(count) for slot in put(ledger, f"{name}-{n}.md", f"# {name}-{n}\n\nЗаметка.\n")
        ]
    if kind == "heading":
        under = "\n\n".join(f"### Часть {n}\n\nТекст части {n}." for n in range(count + 1))
        return put(ledger, f"{name}.md", f"# {name}\n\n## Общее\n\n{under}\n")
    if kind == "tags":
        notes = [f"---\ntags: [{name}]\n---\n# Т{n}\n\nЗаметка.\n" for n in range(count + 1)]
        return [slot for n, text in enumerate(notes) for slot in put(ledger, f"{name}-{n}.md", text)]
    said = {"малый": "трансформатор", "большой": "магнитострикция"}[name]
    found = [put(ledger, f"{name}-{n}.md", f"{said} {said}, {said}?\nДа.", turns=True)[0] for n in range(count + 1)]
    return found


def test_a_tag_or_keyword_of_more_than_thirty_passages_joins_nothing(ledger: Ledger) -> None:
    slots = hub(ledger, "tags", 31, "общий")
    assert lent(ledger, "tags", {slots[0]: 1.0}) == {}
    assert lent(ledger, "tags", {slots[0]: 1.0}, weight=0.2) == {}


def test_keywords_are_lent_on_by_turns_and_not_by_sections(ledger: Ledger) -> None:
    (turn, _) = put(ledger, "Чат.md", "Почему гудит трансформатор?\nТрансформатор гудит от нагрузки.", turns=True)
    (section,) = put(ledger, "Заметка.md", "# Заметка\n\nТрансформатор стоит в сарае, трансформатор гудит.\n")
    assert section in lent(ledger, "terms", {turn: 1.0})
    assert lent(ledger, "terms", {section: 1.0}) == {}


# -- named


def test_the_note_that_the_question_names_is_helped_in_any_form_of_the_word(ledger: Ledger) -> None:
    (pump,), (well,) = put(ledger, "Насос.md", "# Насос\n\nСтучит.\n"), put(ledger, "Колодец.md", "# Колодец\n\nСухо.\n")
    seeds = {pump: 0.5, well: 0.5}
    assert lent(ledger, "named", seeds, "что случилось с насосом?") == {pump: 1.0}
    assert lent(ledger, "named", seeds, "что случилось?") == {}


def test_of_a_title_of_several_words_the_question_must_say_all(ledger: Ledger) -> None:
    (slot,) = put(ledger, "Н.md", "# Ржаной хлеб\n\nМука, вода.\n")
    assert lent(ledger, "named", {slot: 1.0}, "как печь ржаной хлеб") == {slot: 1.0}
    assert lent(ledger, "named", {slot: 1.0}, "как печь хлеб") == {}


def test_the_speaker_that_the_question_names_is_helped(ledger: Ledger) -> None:
    said = "Поеду в Карелию.\nХорошо, и я с тобой."
    hers, his = put(ledger, "1.md", said, "Марта", turns=True), put(ledger, "2.md", said, "Олег", turns=True)
    seeds = dict.fromkeys([*hers, *his], 0.5)
    assert set(lent(ledger, "named", seeds, "куда поедет Марта?")) == set(hers)
    assert set(lent(ledger, "named", seeds, "куда Олег и Марта поедут?")) == {*hers, *his}


def test_a_name_of_fewer_than_four_letters_names_nothing(ledger: Ledger) -> None:
    (slot,) = put(ledger, "Н.md", "# Дом\n\nСтены.\n")
    assert lent(ledger, "named", {slot: 1.0}, "где мой дом?") == {}


# -- used


def cite(ledger: Ledger, number: int, path: str, lines: tuple[int, int], ago: timedelta) -> None:
    record = {"sources": [{"path": path, "lines": list(lines)}]}
    ledger.put_answer(f"a-{number}", f"Ответ {number}.md", f"sha{number}", (NOW - ago).isoformat(), record)


def test_what_answers_cited_often_and_lately_is_helped_more(ledger: Ledger) -> None:
    slots = {name: put(ledger, f"{name}.md", f"# {name}\n\nТекст.\n")[0] for name in ("лишь раз", "давно", "часто", "никогда")}
    cite(ledger, 1, "лишь раз.md", (1, 3), timedelta(days=1))
    cite(ledger, 2, "давно.md", (1, 3), timedelta(days=400))
    for number in range(3, 9):
        cite(ledger, number, "часто.md", (1, 3), timedelta(days=1))
    found = lent(ledger, "used", dict.fromkeys(slots.values(), 0.5))
    assert slots["никогда"] not in found
    assert 0 < found[slots["давно"]] < found[slots["лишь раз"]] < found[slots["часто"]] <= 1


def test_only_the_lines_that_were_cited_count(ledger: Ledger) -> None:
    slots = put(ledger, "Журнал.md", prose(3))
    first, last = ledger.passages(slots)[slots[1]].passage.lines
    cite(ledger, 1, "Журнал.md", (first, last), timedelta(hours=1))
    assert set(lent(ledger, "used", dict.fromkeys(slots, 0.5))) == {slots[1]}


def test_use_breaks_ties_and_no_more(ledger: Ledger, tmp_path: Path) -> None:
    put(ledger, "а.md", "# Первая\n\nВода в колодце.\n")
    (same,) = put(ledger, "б.md", "# Вторая\n\nВода в колодце.\n")
    (better,) = put(ledger, "в.md", "# Вода в колодце\n\nВода в колодце, вода в колодце, низкая вода в колодце.\n")

    def order() -> list[int]:
        return [one.stored.slot for one in recall.ranked(ledger, tmp_path / "memory", SETTINGS, "вода в колодце", 9)]

    assert order()[0] == better
    assert order().index(same) == 2
    for number in range(20):
        ledger.put_answer(f"a-{number}", "x.md", "s", datetime.now(UTC).isoformat(), {"sources": [{"path": "б.md", "lines": [1, 3]}]})
    assert order()[0] == better
    assert order().index(same) == 1
