"""Links mean the files and lines that Obsidian takes them for."""

from __future__ import annotations

import time
import unicodedata

import pytest

from vaultllm import markdown
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
