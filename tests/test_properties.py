"""Front matter: nothing raises, nothing is lost, ordinary blocks cost next to nothing, and both ways of reading agree."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import assert_linear
from vaultllm import properties
from vaultllm.properties import front_matter
from vaultllm.text import decode


def read(block: str) -> dict[str, Any]:
    return front_matter(f"---\n{block}\n---\nbody\n").properties


def codes(block: str) -> list[tuple[str, int]]:
    return [(problem.code, problem.line) for problem in front_matter(f"---\n{block}\n---\nbody\n").problems]


def full(block: str) -> dict[str, Any] | None:
    """What the YAML parser makes of a block; None when it cannot read it, or has something to say about it."""
    handler = properties._Properties()
    try:
        found = handler.load(block)
    except properties._UnreadableError:
        return None
    return None if handler.problems else found


def same(left: Any, right: Any) -> bool:
    """Equal also in types: 1, 1.0 and True are not the same property; the order of the names counts."""
    return repr(left) == repr(right)


# -- the two ways of reading

_CHARS = st.sampled_from("abyзщёআমিé𝕏日09 .,:;#-_/\\|\"'[]{}()<>=+*&!?%@`~^$\xa0\u2028\t\x07\ufeff")
_TEXT = st.text(_CHARS, max_size=12)
_WORD = st.sampled_from(
    [
        "a",
        "да",
        "নোট",
        "2024-02-30",
        "12:30:45",
        "017",
        "no",
        "null",
        "~",
        "true",
        "1.5",
        "-3",
        ".5",
        "1_000",
        "a b",
        "x#y",
        "c:d",
        "0x1F",
        "<<",
        "=",
    ]
)
_SCALAR = st.one_of(_WORD, _TEXT, _WORD.map(lambda said: f'"{said}"'), _WORD.map(lambda said: f"'{said}' "), st.just('"[[A|b]]"'))
_FLOW = st.lists(_SCALAR, max_size=4).flatmap(lambda parts: st.sampled_from([", ", ","]).map(lambda comma: f"[{comma.join(parts)}]"))
_LIST = st.tuples(st.lists(_SCALAR, min_size=1, max_size=3), st.sampled_from(["", "  ", "    "])).map(
    lambda found: "\n" + "\n".join(f"{found[1]}- {item}" for item in found[0])
)
_KEY = st.one_of(st.sampled_from(["a", "b", "тег", "ট্যাগ", "two words", "k-1", "1", "content", "yes"]), _TEXT)
_LINE = st.one_of(
    st.tuples(_KEY, st.one_of(_SCALAR, _FLOW).map(lambda said: " " + said)).map(":".join),
    st.tuples(_KEY, st.one_of(_LIST, st.just(""))).map(":".join),
    st.sampled_from(["", "# a comment", "  indented", "- x", " # comment", "---", "..."]),
)


@settings(max_examples=300)
@given(st.lists(_LINE, min_size=1, max_size=6).map("\n".join))
def test_the_recogniser_reads_what_the_parser_reads_or_leaves_it_to_it(block: str) -> None:
    plain = properties._plain(block)
    if plain is not None:
        assert same(plain, full(block)), block


@pytest.mark.parametrize(
    "block",
    [
        "title: Обычная заметка",
        'tags: [a, \'b c\', "d", 5]\nempty: []\naliases:\n  - раз\n  - "[[Два]]"\nnone:\n\n# comment\nurl: https://example.org/a#b\n',
        "created: 2025-03-16\nat: 12:30:45\nupdated: 2025-08-09T16:42:45.869Z\nn: -5\nf: 1.5\nyes: true\nকী: মান",
        "tags:\n- a\n- b\nup: '[[A]]' ",
        'aliases: ""\nshow: \nquote: it\'s "fine" [x] {y} & z\n',
    ],
)
def test_ordinary_blocks_are_recognised(block: str) -> None:
    assert properties._plain(block) is not None
    assert same(properties._plain(block), full(block))


@pytest.mark.parametrize(
    "block",
    [
        "a: 1\na: 2",
        "a: b: c",
        "a: x #y",
        "a: |\n  text",
        "a: &x 1\nb: *x",
        "a: !!str 1",
        'a: "x\\n"',
        "a:\n  b: 1",
        "a:\n- x: 1",
        "a:\n  - x\n - y",
        "a: one\n  two",
        "a: 1\n- b",
        "a:\tb",
        "a: [[A]]",
        "a: [b: c]",
        "a: [b,]",
        "a: x\u2028y",
        "a: x\x07",
        "<<: 1",
        "? a",
        "a: @home",
        "a: {{date}}",
        "a: 'it''s'",
        "a:\n  -\n  - b",
    ],
)
def test_what_is_not_plain_is_left_to_the_parser(block: str) -> None:
    assert properties._plain(block) is None


def test_both_ways_read_every_real_note_alike(shared: Path) -> None:
    vaults = [shared / "real", Path(__file__).resolve().parents[1] / "vault_example"]
    plain = seen = 0
    for path in (path for vault in vaults for path in sorted(vault.rglob("*.md"))):
        text = decode(path.read_bytes()).text
        end = text.find("\n---", 4)
        if text.startswith("---\n") and end > 0 and (parsed := full(text[4 : end + 1])) is not None:
            seen += 1
            found = properties._plain(text[4 : end + 1])
            plain += found is not None
            assert found is None or same(found, parsed), path.name
    assert seen > 150
    assert plain > 0.95 * seen


def test_ordinary_front_matter_does_not_reach_the_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(properties, "_Properties", None)
    assert read("title: Заметка\ntags: [a, b]") == {"title": "Заметка", "tags": ["a", "b"]}


# -- what people write


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        ("tags: a, b", "a, b"),
        ("tags: [a, b]", ["a", "b"]),
        ("tags:\n  - a\n  - b", ["a", "b"]),
        ("tags:", None),
        ("tags: []", []),
        ("tags: 2024", 2024),
        ("tags: [2024, a]", [2024, "a"]),
    ],
)
def test_tags_are_what_is_written(block: str, expected: Any) -> None:
    assert same(read(block), {"tags": expected})


def test_a_value_that_yaml_takes_for_a_comment_is_said() -> None:
    assert codes("title: x\ntags: #idea #plan") == [("W-FM-HASH", 3)]
    assert codes("title: x # a comment\ntags: # none yet\n") == []


def test_front_matter_of_other_programs_is_text_with_a_warning() -> None:
    found = front_matter('+++\ntitle = "x"\n+++\nbody')
    assert (found.properties, found.body_line, found.problems[0].code) == ({}, 1, "W-FM-TOML")
    found = front_matter('{\n  "title": "x"\n}\n\nbody')
    assert (found.properties, found.body_line, found.problems[0].code) == ({}, 1, "W-FM-JSON")
    assert front_matter("+++\nnot closed, and no properties").problems == ()
    assert front_matter("{\nset: of things}\n").problems == ()


def test_a_property_that_only_looks_like_ours_is_a_property_and_nothing_else() -> None:
    assert read("vaultllm: answer\nvaultllm_id: 0123456789ab") == {"vaultllm": "answer", "vaultllm_id": "0123456789ab"}


def test_a_megabyte_of_properties_is_read_line_by_line() -> None:
    block = "\n".join(f"key{number}: {'x' * 90}" for number in range(11_000))
    started = time.process_time()
    found = front_matter(f"---\n{block}\n---\nbody")
    assert time.process_time() - started < 2
    assert len(found.properties) == 11_000
    assert (found.body_line, [problem.code for problem in found.problems]) == (11_003, ["W-FM-YAML"])


@pytest.mark.parametrize(
    "block",
    [
        "a: " + "[" * 100_000,
        "a: " + "{" * 100_000,
        "- " * 50_000,
        "a: &l0 [x, x, x, x, x, x, x, x, x]\n"
        + "\n".join(f"l{n}: &l{n} [" + ", ".join([f"*l{n - 1}" if n > 1 else "*l0"] * 9) + "]" for n in range(1, 10)),
        "a: !!python/object/apply:os.system [x]",
        "a: !!binary \x00",
        "? [a, b]\n: c",
        "a: \ud83d",
        "\ufeffa: 1",
        "%YAML 9.9\n---\na: 1",
    ],
)
def test_hostile_blocks_cost_no_crash_and_no_lines(block: str) -> None:
    started = time.process_time()
    found = front_matter(f"---\n{block}\n---\nbody")
    assert time.process_time() - started < 2
    assert found.problems or found.properties or found.body_line == 1
    assert found.body_line <= block.count("\n") + 4


@given(st.text(max_size=300).map(lambda text: f"---\n{text}\n---\nbody"))
def test_no_text_makes_it_raise(text: str) -> None:
    found = front_matter(text)
    assert 1 <= found.body_line <= text.count("\n") + 2


@pytest.mark.parametrize(
    "unit", ["a: b\n", "- x\n", "a: [b, c]\n", "a: 'b\n", "a: x#y:z \n", "{", "a: [[b]]\n", "  x\n", "# c\n", "a::::", "k" * 9 + " "]
)
def test_time_grows_with_length_only(unit: str) -> None:
    assert_linear(lambda size: "---\n" + unit * (size // len(unit)) + "\n---\n", front_matter, 60_000)
