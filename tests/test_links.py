"""Links mean the files and lines that Obsidian takes them for."""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultllm import markdown, reading
from vaultllm.config import Settings
from vaultllm.ledger import Ledger, NoteRow
from vaultllm.links import Resolver, heading_key, locate

PATHS = (
    "Дом.md",
    "Проекты/Дом.md",
    "Проекты/Сад/Дом.md",
    "Проекты/Сад/План.md",
    "Архив/2024/План.md",
    "Архив/План старый.md",
    "notes/Readme.md",
    "notes/deep/Readme.md",
    "z/one.md",
    "a/one.md",
    "Картинки/схема.png",
    "Доска.canvas",
    "notes/100% готово.md",
    "notes/v1.2.md",
    "схема",
)


@pytest.mark.parametrize(
    ("target", "source", "path"),
    [
        ("Дом", "Архив/x.md", "Дом.md"),  # the vault's root first
        ("Дом", "Проекты/Сад/x.md", "Дом.md"),
        ("Проекты/Дом", "Архив/x.md", "Проекты/Дом.md"),
        ("проекты/ДОМ.md", "Архив/x.md", "Проекты/Дом.md"),  # case does not count
        ("План", "Архив/x.md", "Архив/2024/План.md"),  # below the folder of the linking note
        ("План", "Проекты/Сад/x.md", "Проекты/Сад/План.md"),  # in its folder
        ("План", "x.md", "Архив/2024/План.md"),  # the shortest path
        ("Сад/План", "x.md", "Проекты/Сад/План.md"),  # the end of a path is enough
        ("2024/План", "Проекты/Сад/x.md", "Архив/2024/План.md"),
        ("ад/План", "x.md", None),  # but only whole folders
        ("one", "x.md", "a/one.md"),  # alphabetical when all else is equal
        ("readme", "x.md", "notes/Readme.md"),
        ("readme", "notes/deep/x.md", "notes/deep/Readme.md"),
        ("./Readme", "notes/deep/x.md", "notes/deep/Readme.md"),
        ("../Readme.md", "notes/deep/x.md", "notes/Readme.md"),
        ("../../Дом", "notes/deep/x.md", "Дом.md"),
        ("../../../Дом", "notes/deep/x.md", None),  # out of the vault
        ("./Дом", "notes/deep/x.md", None),  # a relative path is not looked for elsewhere
        ("/notes/Readme", "x.md", "notes/Readme.md"),
        ("/Readme", "x.md", None),
        ("схема.png", "x.md", "Картинки/схема.png"),  # attachments by name
        ("Картинки/схема.png", "x.md", "Картинки/схема.png"),
        ("схема", "x.md", "схема"),
        ("Доска.canvas", "x.md", "Доска.canvas"),
        ("Доска", "x.md", None),  # other kinds need their suffix
        ("План%20старый.md", "x.md", "Архив/План старый.md"),
        ("100% готово", "x.md", "notes/100% готово.md"),  # a percent sign that encodes nothing
        ("v1.2", "x.md", "notes/v1.2.md"),
        ("План#Глава 1#^id", "Проекты/Сад/x.md", "Проекты/Сад/План.md"),
        ("  Дом  ", "x.md", "Дом.md"),
        ("#Глава", "Архив/x.md", "Архив/x.md"),  # within the note
        ("", "Архив/x.md", "Архив/x.md"),
        ("https://x.y/Дом", "x.md", None),
        ("mailto:a@b", "x.md", None),
        ("нет такой", "x.md", None),
    ],
)
def test_a_link_means_what_it_means_in_obsidian(target: str, source: str, path: str | None) -> None:
    assert Resolver(PATHS).resolve(target, source) == path


def test_names_compare_in_nfc_and_paths_stay_as_on_disk() -> None:
    on_disk = unicodedata.normalize("NFD", "Йод/ёлка.md")
    assert Resolver([on_disk]).resolve("Ёлка", "x.md") == on_disk
    assert Resolver(["ёлка.md"]).resolve(unicodedata.normalize("NFD", "ёлка"), "x.md") == "ёлка.md"
    assert Resolver(["елка.md"]).resolve("ёлка", "x.md") is None  # ё is not е in a name


def test_an_alias_is_no_target() -> None:
    note = markdown.parse("Насос.md", b"---\naliases: [Pump]\n---\n")
    assert Resolver([note.path]).resolve("Pump", "x.md") is None


def test_of_two_names_that_differ_in_case_the_one_as_written_wins() -> None:
    resolver = Resolver(["note.md", "Note.md"])
    assert (resolver.resolve("Note", "x.md"), resolver.resolve("note", "x.md")) == ("Note.md", "note.md")


def test_files_come_and_go() -> None:
    resolver = Resolver(["a/x.md"])
    resolver.add("x.md")
    assert resolver.resolve("x", "n.md") == "x.md"
    resolver.remove("x.md")
    assert resolver.resolve("x", "n.md") == "a/x.md"
    resolver.remove("never/there.md")


def test_a_hundred_thousand_paths_take_moments() -> None:
    started = time.process_time()
    resolver = Resolver(f"{number % 500}/Заметка {number}.md" for number in range(100_000))
    assert all(resolver.resolve(f"Заметка {number}", "x.md") for number in range(0, 100_000, 10))
    assert time.process_time() - started < 3


TEXT = """# Книга

вступление

## Глава 1: *начало*

первое

### Итог

a

## Глава 2 [[Дом|дома]]

второе ^Para-2

### Итог

b

- пункт
- ещё
  строка ^item
  - внутри

- c

^list

> цитата ^q
> дальше

# Конец
"""


@pytest.mark.parametrize(
    ("heading", "block", "lines"),
    [
        ("", "", (1, 34)),
        ("Книга", "", (1, 31)),
        ("глава 1 начало", "", (5, 11)),  # punctuation, emphasis and case are ignored
        ("Глава 1: начало", "", (5, 11)),
        ("Итог", "", (9, 11)),  # the first of two
        ("Глава 2 Дом дома#Итог", "", (17, 31)),
        ("Книга#Глава 2 Дом дома#Итог", "", (17, 31)),
        ("Книга#Итог", "", (9, 11)),  # levels between may be left out
        ("Итог#Книга", "", None),
        ("Нет", "", None),
        ("Конец", "", (33, 33)),
        ("", "para-2", (15, 15)),
        ("", "item", (22, 23)),
        ("", "list", (21, 28)),
        ("", "q", (30, 30)),
        ("", "none", None),
    ],
)
def test_headings_and_blocks_are_found(heading: str, block: str, lines: tuple[int, int] | None) -> None:
    assert locate(markdown.parse("n.md", TEXT.encode()), heading, block) == lines


def test_our_own_links_to_headings_are_found_again() -> None:
    for title in ("A: [[B|c]] #d ^e %%x%%\\ **f** `g`", "2 * 3 * 4", "C++ / C#?", "a*b*c", "«Ёж» — это …"):
        note = markdown.parse("n.md", f"# {title}\n\ntext\n".encode())
        assert locate(note, markdown.link_heading(note.blocks[0].title)) == (1, 3), title


def test_headings_compare_without_punctuation_and_case() -> None:
    assert heading_key("Что — это?  (2024)") == heading_key("что — это 2024")
    assert heading_key("a-b_c") == "a-b_c"


# -- in the ledger: what a scene is linked with


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def put(ledger: Ledger, path: str, text: str) -> int:
    """Store a note; the slot of its first scene."""
    read = reading.read_note(path, text.encode(), Settings(vault_id="v"))
    ledger.put_note(NoteRow(path, read.title, 1, 1, 1, 1, "x", "1", "", ""), read.scenes)
    (slot,) = ledger.db.execute(
        "SELECT s.slot FROM scenes s JOIN notes n ON n.id = s.note WHERE n.path = ? ORDER BY s.ordinal", (path,)
    ).fetchone()
    return int(slot)


def test_of_notes_with_one_name_the_folders_say_which_is_linked(ledger: Ledger) -> None:
    words = "Насос качает воду из колодца в бочку у теплицы."
    town, garden = put(ledger, "Город/План.md", words), put(ledger, "Дача/Сад/План.md", words)
    by_folder = put(ledger, "a.md", f"{words} [[Сад/план]]")
    nearest = put(ledger, "Город/b.md", f"{words} [[ПЛАН]]")
    relative = put(ledger, "Дача/c.md", f"{words} [план](Сад/План.md) и [[../Город/План]]")
    decomposed = put(ledger, "d.md", words + unicodedata.normalize("NFD", " [[Ёж]] [[й]]"))
    assert set(ledger.linked([by_folder])) == {(by_folder, garden)}
    assert set(ledger.linked([nearest])) == {(nearest, town)}
    assert set(ledger.linked([relative])) == {(relative, garden), (relative, town)}
    assert set(ledger.linked([garden])) == {(garden, by_folder), (garden, relative)}
    assert set(ledger.linked([town])) == {(town, nearest), (town, relative)}
    hedgehog = put(ledger, "Ёж.md", words)
    assert set(ledger.linked([decomposed])) == {(decomposed, hedgehog)}
    assert set(ledger.linked([hedgehog])) == {(hedgehog, decomposed)}


def test_a_note_that_comes_later_takes_the_links_that_mean_it(ledger: Ledger) -> None:
    words = "Насос качает воду из колодца в бочку у теплицы."
    far = put(ledger, "z/y/План.md", words)
    linking = put(ledger, "Дача/a.md", f"{words} [[План]]")
    assert ledger.linked([linking]) == [(linking, far)]
    near = put(ledger, "Дача/План.md", words)
    assert ledger.linked([linking]) == [(linking, near)]
    assert ledger.linked([far]) == []
