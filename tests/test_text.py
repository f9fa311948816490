"""Text: bytes to words in three scripts, and nothing guessed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.timing import assert_linear
from vaultllm import text


@pytest.mark.parametrize(
    ("data", "expected", "encoding"),
    [
        ("ёж".encode(), "ёж", "utf-8"),
        (b"\xef\xbb\xbfa\r\nb", "a\nb", "utf-8-sig"),
        ("আমি".encode("utf-16"), "আমি", "utf-16-le"),
        (b"\xfe\xff" + "да".encode("utf-16-be"), "да", "utf-16-be"),
        (b"a\rb\r\nc", "a\nb\nc", "utf-8"),
        (b"", "", "utf-8"),
    ],
)
def test_bytes_are_decoded_by_their_marks(data: bytes, expected: str, encoding: str) -> None:
    assert text.decode(data)[:2] == (expected, encoding)


def test_another_encoding_is_reported_with_its_place_and_a_hint_but_never_guessed() -> None:
    found = text.decode("строка\nпривет мир".encode("cp1251"))
    assert found.text == ""
    assert found.problems[0].code == "E-ENC"
    assert "byte 0" in found.problems[0].message
    assert "Windows-1251" in found.problems[0].message


def test_a_binary_file_is_no_text_and_a_stray_nul_costs_only_itself() -> None:
    assert text.decode(b"PNG" + b"\0" * 50 + b"IEND").problems[0].code == "E-BINARY"
    assert text.decode(b"\0" * 50).problems[0].code == "E-BINARY"
    padded = text.decode("конец".encode() + b"\0" * 50)
    assert (padded.text, padded.problems[0].code, padded.problems[0].count) == ("конец", "W-NUL", 50)
    found = text.decode(b"one\ntwo\0\n")
    assert (found.text, found.problems[0].code, found.problems[0].line) == ("one\ntwo\n", "W-NUL", 2)


RUSSIAN = "Привет, это обычная заметка о саде.\nВчера мы посадили яблоню, а потом пили чай.\nЁжик и мышь дружат.\n"


@pytest.mark.parametrize("codec", ["cp1251", "koi8-r", "cp866"])
@pytest.mark.parametrize("change", [str, str.upper, lambda said: said[:6]])
def test_the_encoding_of_russian_is_named_with_both_ways_out(codec: str, change: Callable[[str], str]) -> None:
    said = change(RUSSIAN)
    problem = text.decode(said.encode(codec)).problems[0]
    assert (problem.code, problem.line) == ("E-ENC", 1)
    assert f'scan.encoding = "{codec}"' in problem.message
    assert "save the note as UTF-8" in problem.message
    assert text.decode(said.encode(codec), codec) == (said, codec, ())


@pytest.mark.parametrize(
    ("said", "codec"),
    [("Été à la plage, où l'on dit: déjà vu", "latin-1"), ("Müller läuft\n", "latin-1"), ("He said: “café”", "cp1252")],
)
def test_accents_between_plain_letters_are_western(said: str, codec: str) -> None:
    assert f'"{codec}"' in text.decode(said.encode(codec)).problems[0].message
    assert text.decode(said.encode(codec), codec).text == said


def test_greek_in_8_bits_is_reported_without_a_guess() -> None:
    problem = text.decode("Καλημέρα κόσμε".encode("cp1253")).problems[0]
    assert problem.code == "E-ENC"
    assert "looks like" not in problem.message


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("said", [RUSSIAN, "আমি বাংলায় লিখি।\n", "漢字と仮名\n本\n", "Just words\nin two lines\n"])
def test_utf16_without_a_mark_is_named_and_read_only_when_set(said: str, codec: str) -> None:
    found = text.decode(said.encode(codec))
    assert (found.text, found.problems[0].code) == ("", "E-ENC")
    assert codec.upper() in found.problems[0].message
    assert f"byte {said.encode(codec).index(0)} " in found.problems[0].message
    assert text.decode(said.encode(codec), "cp1251").text == ""
    assert text.decode(said.encode(codec), codec) == (said, codec, ())


def test_the_set_encoding_is_for_what_is_no_utf_only() -> None:
    assert text.decode("да".encode(), "cp1251")[:2] == ("да", "utf-8")
    assert text.decode("да".encode("utf-16"), "cp1251")[:2] == ("да", "utf-16-le")
    assert text.decode("да".encode("utf-16")[:-1], "cp1251").problems[0].code == "E-ENC"
    assert text.decode(b"\x89PNG\r\n\x1a\n" + bytes(range(256)), "cp1251").problems[0].code == "E-BINARY"
    assert text.decode(b"\x98" * 9, "cp1251").problems[0].code == "E-ENC"  # no letter there in Windows-1251
    assert text.decode("да".encode("cp1251"), "no-such-encoding").problems[0].code == "E-ENC"


@pytest.mark.parametrize(
    ("damage", "why"),
    [(b"\xed\xa0\xbd", "surrogate"), (b"\xc0\xaf", "overlong"), (b"\xe0\x80\xaf", "overlong"), (b"\xff", "damaged")],
)
def test_damaged_utf8_is_no_other_encoding(damage: bytes, why: str) -> None:
    data = "первая\nкот и ".encode() + damage + " ещё кот\n".encode()
    for fallback in ("", "cp1251"):
        found = text.decode(data, fallback)
        assert (found.text, found.problems[0].code, found.problems[0].line) == ("", "E-ENC", 2)
        assert why in found.problems[0].message
        assert f"byte {data.index(damage)} " in found.problems[0].message
    assert "cut off" in text.decode("кот и пёс".encode()[:-1]).problems[0].message


@pytest.mark.parametrize("start", [b"\x89PNG\r\n\x1a\n\0\0", b"\xff\xd8\xff\xe0\0", b"PK\x03\x04\0\0", b"%PDF-1.7\n\xe2\xe3\xcf\xd3\n\0"])
def test_pictures_and_archives_are_named(start: bytes) -> None:
    problem = text.decode(start + bytes(range(256)) * 4).problems[0]
    assert problem.code == "E-BINARY"
    assert "the file is a " in problem.message


def test_line_ends_of_three_kinds_end_lines_and_unicode_ones_do_not() -> None:
    assert text.decode("a\rb\r\nc\nd\u2028e\x85f".encode()).text == "a\nb\nc\nd\u2028e\x85f"
    assert text.decode("\ufeff\ufeff---\na: 1".encode()) == ("---\na: 1", "utf-8-sig", ())
    assert text.decode("ёж".encode("utf-32"))[:2] == ("ёж", "utf-32-le")


@given(st.binary(max_size=300), st.sampled_from(["", "cp1251", "utf-16-le", "utf-16", "shift_jis", "idna", "hex", "no-such"]))
def test_no_bytes_and_no_setting_make_decoding_raise(data: bytes, fallback: str) -> None:
    found = text.decode(data, fallback)
    assert bool(found.encoding) != any(problem.code.startswith("E-") for problem in found.problems)
    assert "\r" not in found.text
    assert "\0" not in found.text


@pytest.mark.parametrize(
    "unit", [b"\xff\xfe\x00", b"a\0", b"\0", b"\xd0", b"\xd0\xbf\xff", b"\xef\xbb\xbf", b"\r\n\r", "яблоко ".encode("cp1251")]
)
def test_decoding_takes_time_by_length_only(unit: bytes) -> None:
    assert_linear(lambda length: unit * (length // len(unit)), text.decode, 200_000)


def test_bengali_vowel_signs_stay_with_their_letters() -> None:
    assert text.words("আমি বাংলায় লিখি।") == ["আমি", "বাংলায়", "লিখি"]
    assert text.words("যুক্তাক্ষর") == [text.nfc("যুক্তাক্ষর")]


def test_forms_of_a_word_share_a_stem() -> None:
    assert text.stems("токенизация") == text.stems("токенизации")
    assert text.stems("ёлка") == text.stems("елку")
    assert text.stems("embedding") == text.stems("Embeddings")


def test_grams_survive_a_typo() -> None:
    right, wrong = set(text.grams("эмбеддинги")), set(text.grams("эмбединги"))
    assert len(right & wrong) >= 4
    assert text.word_grams("я") == ("#я#",)


@pytest.mark.parametrize(
    ("said", "code"),
    [("Привет, мир! LoRA", "ru"), ("আমি বাংলায় LLM শিখি", "bn"), ("just English", "en"), ("123 — 45", "und"), ("日本語です", "ja")],
)
def test_the_language_is_that_of_most_letters(said: str, code: str) -> None:
    assert text.language(said) == code


def test_sentences_keep_their_marks_and_quotes() -> None:
    assert text.sentences("Он сказал: «Да!» И ушёл. আমি যাই। Нет") == ["Он сказал: «Да!»", "И ушёл.", "আমি যাই।", "Нет"]
    assert text.sentences("- раз\n- два\n\nтри") == ["- раз", "- два", "три"]


def test_the_boundaries_between_the_parts_of_a_fingerprint_count() -> None:
    assert text.sha("ab", "c") != text.sha("a", "bc")
    assert len(text.sha("x", digits=12)) == 12


@given(st.binary(max_size=200))
def test_decode_never_raises(data: bytes) -> None:
    found = text.decode(data)
    assert found.encoding or found.problems


@given(st.text(max_size=200))
def test_utf8_text_loses_only_line_ends_and_nuls(said: str) -> None:
    if said.startswith("\ufeff") or said.count("\0"):
        return
    found = text.decode(said.encode("utf-8", "ignore"))
    assert found.text == said.encode("utf-8", "ignore").decode().replace("\r\n", "\n").replace("\r", "\n")
