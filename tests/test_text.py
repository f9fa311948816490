"""Text: bytes to words in three scripts, and nothing guessed."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

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
    assert text.decode(b"\x89PNG".replace(b"\x89", b"P") + b"\0" * 50).problems[0].code == "E-BINARY"
    found = text.decode(b"one\ntwo\0\n")
    assert (found.text, found.problems[0].code, found.problems[0].line) == ("one\ntwo\n", "W-NUL", 2)


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
