"""Pairs from the vault's own structure: which are found, what is left out, and that no note is on both sides of the split."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.stored import put
from tests.timing import assert_linear
from vaultllm import rows, scenes
from vaultllm.config import Settings
from vaultllm.ledger import Ledger, NoteRow
from vaultllm.links import Resolver
from vaultllm.memory import pairs
from vaultllm.memory.pairs import Pair
from vaultllm.schema import Scene, Source, Turn

PUMP = "Помпа включается, когда влажность почвы ниже тридцати двух процентов, и молчит после дождя до самого вечера."
BREAD = "The dough rests for fourteen hours in the cold. Steam makes the crust thin. The oven is as hot as it gets at home."
RICE = "মুগ ডাল আগে শুকনো ভাজতে হয়। তারপর গোবিন্দভোগ চাল ধুয়ে দিতে হয় হাঁড়িতে। শেষে ঘি আর একটু আদা বাটা পড়ে।"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def store(ledger: Ledger, path: str, title: str, cut: tuple[Scene, ...]) -> None:
    row = NoteRow(path, title, 1, 0, 0, 0, path, scenes.PARSER, "", "")
    ledger.put_note(row, [rows.row(scene, scenes.passages(scene)) for scene in cut])


def talk(path: str, *said: tuple[str, str]) -> Scene:
    turns = tuple(Turn(role, text, (n, n), n, uid=f"{path}-{n}") for n, (role, text) in enumerate(said, 1))
    return Scene(f"talk-{path}", f"sha-{path}", "dialogue", "Talk", (), turns, Source(path, (1, len(said)), turns[0].uid), "en", "imported")


def found(ledger: Ledger, kind: str, **options: int) -> list[Pair]:
    return [pair for pair in pairs.pairs(ledger, **options) if pair.kind == kind]


def text_of(ledger: Ledger, slot: int) -> str:
    return ledger.texts([slot])[0][1]


def test_a_heading_asks_for_the_text_below_it_without_itself(ledger: Ledger) -> None:
    put(ledger, "Теплица.md", f"# Теплица\n\n## Полив грядок\n\n{PUMP}\n\n## Bread ##\n\n{BREAD}\n\n### রান্না\n\n{RICE}\n")
    asked = {pair.query: pair for pair in found(ledger, "heading")}
    assert set(asked) == {"Теплица", "Полив грядок", "Bread", "রান্না"}
    assert asked["Полив грядок"].target == PUMP
    assert asked["Bread"].target == BREAD
    assert asked["রান্না"].target == RICE
    for pair in asked.values():
        assert pair.query not in pair.target
        assert pair.note == pair.target_note == "Теплица.md"
        assert pair.target in text_of(ledger, pair.slots[0])
        assert not pair.hidden
        assert pair.text == pair.target  # title and headings are what it asks with


def test_headings_of_joined_sections_and_of_long_ones_name_the_right_passage(ledger: Ledger) -> None:
    long = "\n\n".join(f"{PUMP} Запись номер {n}." for n in range(30))
    put(
        ledger,
        "Сад.md",
        f"# Сад\n\n## Начало\n\n{long}\n\n## Конец\n\n{BREAD}\n",
        Settings.model_validate({"vault_id": "test", "scenes": {"min_chars": 200}}),
    )
    asked = {pair.query: pair for pair in found(ledger, "heading")}
    assert asked["Начало"].target.startswith(PUMP)
    assert asked["Конец"].target == BREAD
    assert asked["Начало"].slots != asked["Конец"].slots
    assert all(len(pair.target) <= pairs.TARGET_CHARS for pair in asked.values())


def test_a_heading_in_a_code_block_and_one_that_stands_everywhere_ask_nothing(ledger: Ledger) -> None:
    put(ledger, "Код.md", f"# Код\n\n```sh\n# install the pump driver\n{BREAD}\n```\n\n{PUMP}\n")
    for n in range(6):
        put(ledger, f"{n}.md", f"# День номер {n}{n}\n\n## Итоги\n\n{PUMP} {n}\n")
    asked = {pair.query for pair in found(ledger, "heading")}
    assert "install the pump driver" not in asked
    assert "Итоги" not in asked
    assert "Код" in asked


def test_a_question_asks_for_the_answer_and_stands_elsewhere(ledger: Ledger) -> None:
    said = (("user", "> why does the **rye crumb** crack?"), ("assistant", BREAD), ("user", "ok"), ("assistant", PUMP))
    store(ledger, "talk.md", "Talk", (talk("talk.md", *said),))
    (pair,) = found(ledger, "question")
    assert pair.query == "why does the rye crumb crack?"
    assert pair.target == BREAD
    assert [text_of(ledger, slot) for slot in pair.slots] == [BREAD]
    assert pair.text == f"Talk\n{BREAD}"
    assert [text_of(ledger, slot) for slot in pair.source] == ["> why does the **rye crumb** crack?"]
    assert pair.hidden


def test_all_parts_of_a_long_answer_are_its_slots(ledger: Ledger) -> None:
    store(ledger, "talk.md", "Talk", (talk("talk.md", ("user", "how is the bread baked?"), ("assistant", f"{BREAD}\n\n" * 20)),))
    (pair,) = found(ledger, "question")
    assert len(pair.slots) > 1
    assert pair.target.startswith(BREAD)


def test_a_sentence_with_a_link_asks_for_the_beginning_of_the_linked_note(ledger: Ledger) -> None:
    put(ledger, "a/Хлеб.md", f"# Хлеб\n\n{BREAD}\n\n## Дальше\n\n{PUMP}\n")
    put(
        ledger,
        "Пикник.md",
        "Мы взяли ржаной [[Хлеб|каравай]] и чай. Потом [шли к реке](a/%D0%A5%D0%BB%D0%B5%D0%B1.md) весь день. ![[Хлеб]] тут же.\n",
    )
    asked = {pair.query: pair for pair in found(ledger, "link")}
    assert set(asked) == {"Мы взяли ржаной каравай и чай.", "Потом шли к реке весь день."}
    for pair in asked.values():
        assert (pair.note, pair.target_note, pair.target) == ("Пикник.md", "a/Хлеб.md", BREAD)
        assert pair.text.startswith("Хлеб\n")
        assert pair.hidden


def test_links_to_nothing_to_itself_and_to_a_part_ask_nothing(ledger: Ledger) -> None:
    put(ledger, "Хлеб.md", f"# Хлеб\n\n{BREAD} This very note is called [[Хлеб]] by everyone.\n")
    put(ledger, "Б.md", f"{PUMP} There is no such [[Пирог]] anywhere here. See the part [[Хлеб#Дальше]] of that note.\n")
    assert found(ledger, "link") == []


def test_a_line_of_many_links_takes_time_by_its_length_only() -> None:
    def row(size: int) -> pairs._Row:
        return pairs._Row(2, 2, "n.md", "n", "prose", "", "", "слово и ещё слово " + "[[a]] " * (size // 6), "")

    starts = {"a.md": (1, 1), "n.md": (2, 2)}
    assert len(list(pairs._links([row(120)], Resolver(starts), starts))) == 20
    assert_linear(row, lambda one: list(pairs._links([one], Resolver(starts), starts)), 60_000)


def test_to_a_hub_only_a_few_pairs_lead(ledger: Ledger) -> None:
    put(ledger, "Hub.md", f"# Hub\n\n{BREAD}\n")
    for n in range(30):
        put(ledger, f"{n}.md", f"Today we went back to the [[Hub]] number {n}.\n")
    assert 0 < len(found(ledger, "link")) <= 10


def test_a_sentence_asks_for_the_rest_of_its_passage(ledger: Ledger) -> None:
    put(ledger, "খিচুড়ি.md", f"{RICE}\n")
    (pair,) = found(ledger, "sentence")
    assert pair.query in RICE
    assert pair.query not in pair.target
    assert set(pair.query.split()) | set(pair.target.split()) == set(RICE.split())


def test_another_seed_chooses_other_sentences(ledger: Ledger) -> None:
    for n in range(20):
        put(ledger, f"{n}.md", f"{BREAD} It was loaf number {n} of that long winter.\n")
    assert [pair.query for pair in found(ledger, "sentence")] != [pair.query for pair in found(ledger, "sentence", seed=1)]


def test_copies_templates_and_our_own_words_are_left_out(ledger: Ledger) -> None:
    put(ledger, "Хлеб.md", f"# Хлеб\n\n{BREAD}\n")
    put(ledger, "Я копия/Хлеб.md", f"# Хлеб\n\n{BREAD}\n")
    put(ledger, "Ответ.md", f"---\nvaultllm: answer\n---\n# Ответ\n\n{PUMP}\n")
    put(ledger, "Templates/Т.md", f"# Шаблон дня\n\n{PUMP}\n")
    assert {pair.note for pair in pairs.pairs(ledger)} == {"Хлеб.md"}


def test_scenes_that_say_nearly_the_same_count_once(ledger: Ledger) -> None:
    long = " ".join(f"{'абвгдежз'[n % 8]}ок{n} стоял у дороги номер {n * 7}." for n in range(40))
    put(ledger, "Ряд.md", f"# Ряд столбов\n\n{long}\n")
    put(ledger, "Ряд (копия).md", f"# Ряд столбов\n\n{long} И ещё один.\n")
    assert {pair.note for pair in pairs.pairs(ledger)} == {"Ряд.md", "Ряд (копия).md"}
    ledger.link_duplicates()
    assert len({pair.note for pair in pairs.pairs(ledger)}) == 1


def test_the_number_of_pairs_is_bounded_and_each_kind_has_its_share(ledger: Ledger) -> None:
    for n in range(30):
        put(ledger, f"{n}.md", f"# Loaf number {n}\n\n{BREAD} Its number was {n} in my book.\n")
        store(ledger, f"t{n}.md", "T", (talk(f"t{n}.md", ("user", f"what about loaf number {n}?"), ("assistant", f"{BREAD} {n}")),))
    counted = Counter(pair.kind for pair in pairs.pairs(ledger, most=40))
    assert counted == {"heading": 10, "question": 10, "sentence": 10}
    assert pairs.pairs(ledger, most=0) == []
    with pytest.raises(ValueError, match="-1"):
        pairs.pairs(ledger, most=-1)


def test_of_many_scenes_a_part_is_read(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    for n in range(20):
        put(ledger, f"{n}.md", f"# Loaf number {n}\n\n{BREAD} Its number was {n} in my book.\n")
    monkeypatch.setattr(pairs, "MOST_SCENES", 5)
    assert len({pair.note for pair in pairs.pairs(ledger)}) == 5


def test_the_same_ledger_gives_the_same_pairs_in_another_process(ledger: Ledger) -> None:
    for n in range(12):
        put(ledger, f"{n}.md", f"# Loaf number {n}\n\n{BREAD} Its number was {n}. See [[{(n + 1) % 12}]] for the next one.\n")
    code = (
        "import sys; from pathlib import Path; from vaultllm.ledger import Ledger; from vaultllm.memory import pairs;"
        "print(repr(pairs.pairs(Ledger(Path(sys.argv[1])), most=24)))"
    )
    ran = subprocess.run([sys.executable, "-c", code, str(ledger.path)], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == repr(pairs.pairs(ledger, most=24))


def test_nothing_of_a_held_out_note_is_learnt_from() -> None:
    names = [f"Note {n}.md" for n in range(200)]
    pair = Pair("link", "q", "t", "", "", (1,), (2,))
    made = [replace(pair, note=source, target_note=target) for source in names[::5] for target in names[::7]]
    learnt, judged = pairs.split(made)
    assert learnt
    assert judged
    assert not {note for one in learnt for note in (one.note, one.target_note)} & {one.target_note for one in judged}
    held = sum(map(pairs.is_held_out, names))
    assert 20 <= held <= 60
    assert all(pairs.held_out(one) for one in judged)


def test_composed_and_decomposed_names_are_one_note() -> None:
    assert all(pairs.is_held_out(f"Чай{n}.md") == pairs.is_held_out(f"Чай{n}.md".replace("й", "й")) for n in range(100))


def test_strange_texts_break_nothing(ledger: Ledger) -> None:
    for n, text in enumerate(["[[" * 5000, "](" * 5000, "[a](" * 5000, "# " * 3000, "```\n" * 999, "**" * 5000, "- " * 3000, ". " * 5000]):
        put(ledger, f"{n}.md", f"Some words before it. {text}\n")
    assert isinstance(pairs.pairs(ledger), list)
