"""Every fragment of a text is found in any file, however it is written there, and nothing else is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import traces
from vaultllm.traces import Needles, fragments

LINE = "Под третьей доской лежит штуковина, завёрнутая в клеёнку."


@pytest.mark.parametrize(
    "data",
    [
        LINE.encode(),
        LINE.encode("utf-16-le"),
        b"x" + LINE.encode("utf-16-be"),
        json.dumps({"text": LINE}).encode(),
        json.dumps({"text": f'"{LINE}"\n'}, ensure_ascii=False).encode(),
    ],
)
def test_a_line_is_found_however_it_is_spelled(data: bytes) -> None:
    wanted = Needles(fragments(LINE))
    assert wanted.within(b"\0" * 7 + data + b"\0" * 5) == wanted.fragments != set()


def test_quotes_and_backslashes_are_found_as_json_escapes_them() -> None:
    line = 'he said "a\\b" to the man who was not there at all'
    assert Needles(fragments(line)).within(json.dumps([line]).encode())


def test_short_lines_and_rows_of_dashes_are_nobodys_words() -> None:
    assert fragments("коротко\n" + "-" * 60 + "\n| --- | --- | --- | --- | --- |\n") == set()


def test_a_long_sentence_that_was_cut_is_found_by_its_parts() -> None:
    long = " ".join(f"слово{number}" for number in range(60))
    assert Needles(fragments(long)).within(long[100:260].encode())
    assert max(map(len, fragments(long))) < traces.MOST + traces.LEAST


def test_what_lies_across_two_chunks_of_a_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traces, "_CHUNK", 64)
    for shift in range(0, 130, 7):
        (tmp_path / "file").write_bytes(b"." * shift + LINE.encode() + b"." * 50)
        found, size = Needles(fragments(LINE)).within_file(tmp_path / "file")
        assert found == fragments(LINE)
        assert size == shift + len(LINE.encode()) + 50


def test_a_folder_is_searched_whole_and_links_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_text(LINE, encoding="utf-8")
    (tmp_path / "d").write_text("nothing of it", encoding="utf-8")
    (tmp_path / "e").symlink_to(tmp_path / "a" / "b" / "c")
    found, files, size = Needles(fragments(LINE)).within_folder(tmp_path)
    assert (sorted(found), files) == (["a/b/c"], 2)
    assert size == len(LINE.encode()) + 13


words = st.text("абвгд ез", min_size=24, max_size=60).filter(lambda said: len(said.strip()) >= 24)


@settings(max_examples=60)
@given(st.lists(words, min_size=1, max_size=8), st.lists(words, max_size=8), st.binary(max_size=40))
def test_it_finds_what_plain_comparing_finds(wanted: list[str], there: list[str], noise: bytes) -> None:
    data = noise.join([noise, *(line.encode() for line in there), wanted[0].encode(), noise])
    found = Needles(wanted).within(data)
    assert found == {one for one in wanted if any(form in data for form in traces.spelled(one))}


def test_nothing_wanted_is_nothing_found(tmp_path: Path) -> None:
    (tmp_path / "file").write_text(LINE, encoding="utf-8")
    assert Needles(()).within_folder(tmp_path) == ({}, 1, len(LINE.encode()))
