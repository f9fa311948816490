"""A canvas is read as a board is: card by card, group by group; nothing that is wrong with it raises or goes unsaid."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from vaultllm import canvas, reading
from vaultllm.config import Settings
from vaultllm.schema import Note


def parse(board: Any) -> Note:
    data = board.encode() if isinstance(board, str) else json.dumps(board, ensure_ascii=False).encode()
    return canvas.parse("Доски/План.canvas", data)


def card(name: str, x: int, y: int, text: str = "", **more: Any) -> dict[str, Any]:
    return {"id": name, "type": "text", "x": x, "y": y, "width": 100, "height": 50, "text": text or name, **more}


def group(name: str, x: int, y: int, width: int, height: int, label: str = "") -> dict[str, Any]:
    return {"id": name, "type": "group", "x": x, "y": y, "width": width, "height": height, "label": label or name}


def codes(note: Note) -> list[tuple[str, int, int]]:
    return [(problem.code, problem.line, problem.count) for problem in note.problems]


def test_cards_are_read_group_by_group_from_the_top_then_from_the_left() -> None:
    nodes = [card("вне", 0, -900), card("b2", 1100, 0), card("a3", 300, 200), card("a2", 300, 0), card("a1", 0, 0), card("b1", 1100, -10)]
    note = parse({"nodes": [*nodes, group("Б", 1000, -50, 500, 500), group("А", -10, -50, 500, 500)], "edges": []})
    assert [(block.block_id, block.title) for block in note.blocks] == [
        ("a1", "А"),
        ("a2", "А"),
        ("a3", "А"),
        ("b1", "Б"),
        ("b2", "Б"),
        ("вне", ""),
    ]


def test_a_card_belongs_to_the_smallest_group_around_its_middle() -> None:
    groups = [group("все", 0, 0, 1000, 1000), group("малая", 0, 0, 300, 300)]
    note = parse({"nodes": [card("in", 10, 10), card("edge", 290, 10), *groups]})
    assert {block.block_id: block.title for block in note.blocks} == {"in": "малая", "edge": "все"}


def test_the_lines_of_a_card_are_those_of_its_node() -> None:
    one_a_line = (
        '{\n\t"nodes":[\n\t\t' + json.dumps(card("a", 0, 0, "x\ny")) + ",\n\t\t" + json.dumps(card("b", 0, 99)) + '\n\t],\n\t"edges":[]\n}'
    )
    assert [block.lines for block in parse(one_a_line).blocks] == [(3, 3), (4, 4)]
    spread = json.dumps({"edges": [{"nodes": []}], "nodes": [card("a", 0, 0), {"type": "link", "url": "u"}, card("b", 0, 99)]}, indent=1)
    first, second = (block.lines for block in parse(spread).blocks)
    rows = spread.split("\n")
    assert '"a"' in rows[first[0]]
    assert rows[first[1] - 1].strip() == "},"
    assert '"b"' in rows[second[0]]
    assert rows[second[1] - 1].strip() == "}"
    tricky = '{"a": "nodes", "nodes": [{"id": "{[\\"", "type": "text", "text": "x"}]}'
    assert [block.lines for block in parse(tricky).blocks] == [(1, 1)]


def test_links_of_cards_files_and_arrows_are_links() -> None:
    nodes = [
        card("t", 0, 0, "see [[Насос#Цена|цена]] and `[[no]]` #вода"),
        {"id": "f", "type": "file", "x": 0, "y": 100, "width": 9, "height": 9, "file": "Дача/Насос.md", "subpath": "#Ремонт#^id1"},
        {"id": "p", "type": "file", "x": 0, "y": 200, "width": 9, "height": 9, "file": "a.png"},
    ]
    edges = [
        {"id": "1", "fromNode": "t", "toNode": "p"},
        {"id": "2", "fromNode": "f", "toNode": "t"},
        {"id": "3", "fromNode": "f", "toNode": "p"},
    ]
    note = parse({"nodes": nodes, "edges": edges})
    assert [(link.target, link.heading, link.block, link.alias, link.embed) for link in note.links] == [
        ("Насос", "Цена", "", "цена", False),
        ("Дача/Насос.md", "Ремонт", "id1", "", True),
        ("a.png", "", "", "", True),
        ("a.png", "", "", "", False),
        ("Дача/Насос.md", "Ремонт", "id1", "", False),
    ]
    assert note.tags == ("вода",)


def test_keys_that_the_format_does_not_know_are_left_alone() -> None:
    board = {"nodes": [card("a", 0, 0, chat_role="assistant", styleAttributes={})], "edges": [], "metadata": {"version": "1.0"}}
    note = parse(board)
    assert (note.text, note.problems) == (json.dumps(board, ensure_ascii=False), ())
    assert [block.text for block in note.blocks] == ["a"]


@pytest.mark.parametrize("empty", ["", "\n", "{}", '{"nodes":[],"edges":[]}', "\ufeff{}"])
def test_an_empty_canvas_is_a_canvas(empty: str) -> None:
    note = parse(empty)
    assert (note.blocks, note.links, note.problems, note.title) == ((), (), (), "План")


@pytest.mark.parametrize(
    ("board", "expected"),
    [
        ('{"nodes": [\n{"id": "a"\n}}', [("E-JSON", 3, 1)]),
        ('{"nodes": [', [("E-JSON", 1, 1)]),
        ("[" * 100_000, [("E-JSON", 1, 1)]),
        ("[]", [("W-CANVAS", 1, 1)]),
        ("5", [("W-CANVAS", 1, 1)]),
        ('{"nodes": {}}', [("W-CANVAS", 1, 1)]),
        ('{"nodes": null}', [("W-CANVAS", 1, 1)]),
        ('{"nodes": [\n1,\n{"type": "text"},\n{"type": "new"},\n{"type": "file", "file": 5}\n], "edges": ["x"]}', [("W-CANVAS", 1, 5)]),
        ('{"nodes": [\n{"type": "text"}, {"type": "text", "text": "x", "x": "9", "y": NaN, "id": 7}]}', [("W-CANVAS", 2, 1)]),
    ],
)
def test_what_is_wrong_is_said_with_its_line_and_counted(board: str, expected: list[tuple[str, int, int]]) -> None:
    assert codes(parse(board)) == expected


def test_half_an_emoji_in_a_card_is_no_reason_to_fail() -> None:
    note = parse('{"nodes": [{"id": "a\\ud83d", "type": "text", "text": "x \\ud83d y"}]}')
    assert note.blocks[0].text.encode()
    assert note.blocks[0].block_id.encode()
    note = parse('{"nodes": [{"id": "a", "type": "file", "file": "\\ud83d.md"}]}')
    assert note.links[0].target.encode()


def test_a_large_board_is_read_in_time() -> None:
    nodes = [card(f"{n}", n % 400 * 120, n // 400 * 80, "слова " * 5) for n in range(20_000)]
    groups = [group(f"g{n}", n * 10, 0, 50_000, 50_000) for n in range(150)]
    started = time.process_time()
    note = parse({"nodes": nodes + groups, "edges": [{"fromNode": "1", "toNode": "2"}] * 20_000})
    assert time.process_time() - started < 8
    assert len(note.blocks) == 20_000
    assert codes(note) == [("W-CANVAS", 1, 50)]


def test_a_canvas_is_read_by_its_suffix_and_its_cards_become_scenes() -> None:
    board = {
        "nodes": [
            card("one", 0, 0, "Насос качает воду из колодца %%тайна%% в бочку."),
            card("two", 0, 99, "Вторая мысль о теплице и воде."),
        ]
    }
    read = reading.read_note("x/Доска.Canvas", json.dumps(board).encode(), Settings(vault_id="v"))
    assert read.problems == ()
    assert "Насос качает воду" in read.yaml
    assert "Вторая мысль" in read.yaml
    assert "тайна" not in read.yaml
