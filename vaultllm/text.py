"""Text: decoding bytes, words, stems, character n-grams, sentences, the language of a passage, fingerprints.

Pure functions of strings and bytes. Knows nothing about Markdown or scenes.
"""

from __future__ import annotations

import functools
import hashlib
import re
import unicodedata
from collections import Counter
from typing import NamedTuple

import snowballstemmer

from vaultllm.schema import Problem

# Combining marks are letters here: without them Bengali and Hindi vowel signs (category M, not matched by \w)
# would cut words in pieces. Blocks 0900-0DFF and 0E31-0FFF hold the Indic and South-East Asian scripts; the
# dandas 0964-0965 among them are full stops. ZWNJ and ZWJ join letters inside a word.
MARKS = "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff\u0e31-\u0fff"
WORD = re.compile(rf"[\w{MARKS}\u200c\u200d]+")

_SCRIPTS: tuple[tuple[str, str, str], ...] = (  # script name, language when nothing else decides, character class
    ("cyrillic", "ru", "\u0400-\u052f"),
    ("bengali", "bn", "\u0980-\u09ff"),
    ("latin", "en", "A-Za-z\u00c0-\u024f"),
    ("devanagari", "hi", "\u0900-\u097f"),
    ("greek", "el", "\u0370-\u03ff"),
    ("arabic", "ar", "\u0600-\u06ff"),
    ("hebrew", "he", "\u0590-\u05ff"),
    ("kana", "ja", "\u3040-\u30ff"),
    ("hangul", "ko", "\uac00-\ud7af"),
    ("han", "zh", "\u4e00-\u9fff"),
)
_LETTERS = {language: re.compile(f"[{letters}]") for _, language, letters in _SCRIPTS}
_STEMMED = {"ru": "russian", "en": "english"}

# A sentence ends at its mark (danda and ellipsis included) with its closing quotes, before white space.
_SENTENCE_END = re.compile(r"(?:(?<=[.!?…।])|(?<=[.!?…।][\"'»”)\]]))\s+|\n\s*\n|\n(?=\s*(?:[-*+]|\d+[.)])\s)")


class Decoded(NamedTuple):
    """A file's text and how it was read."""

    text: str
    """Newlines as `\\n`, without a BOM; empty when the bytes could not be read."""
    encoding: str
    """Python's name of the encoding; empty when unreadable."""
    problems: tuple[Problem, ...]
    """Why it is unreadable, or what is odd about it."""


def decode(data: bytes) -> Decoded:
    """Bytes of a note as text: UTF-8 with or without BOM, UTF-16 by BOM; anything else is a problem, never a guess."""
    if data.startswith(b"\xef\xbb\xbf"):
        encoding, body = "utf-8-sig", data[3:]
    elif data.startswith(b"\xff\xfe"):
        encoding, body = "utf-16-le", data[2:]
    elif data.startswith(b"\xfe\xff"):
        encoding, body = "utf-16-be", data[2:]
    else:
        encoding, body = "utf-8", data
    try:
        text = body.decode("utf-8" if encoding == "utf-8-sig" else encoding)
    except UnicodeDecodeError as error:
        line = body[: error.start].count(b"\n") + 1
        guess = _guess(body)
        message = f"byte {error.start} is not {encoding}{guess}; save the note as UTF-8"
        return Decoded("", "", (Problem("E-ENC", message, line),))
    problems: list[Problem] = []
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        if text.count("\0") > max(8, len(text) // 100):
            return Decoded("", "", (Problem("E-BINARY", "the file is binary, not text; move it out of the notes", line),))
        problems.append(Problem("W-NUL", "NUL bytes (a write was cut off?); they are left out", line))
        text = text.replace("\0", "")
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return Decoded(text, encoding, tuple(problems))


def _guess(data: bytes) -> str:
    """A hint for the message only: text in cp1251 has mostly high bytes that are Russian letters there."""
    high = sum(byte >= 0x80 for byte in data[:65536])
    letters = sum(byte >= 0xC0 for byte in data[:65536])
    return " (it looks like Windows-1251)" if high and letters / high > 0.9 else ""


def nfc(text: str) -> str:
    """Unicode NFC: how names and words are compared."""
    return unicodedata.normalize("NFC", text)


def encodable(text: str) -> str:
    """The text with lone surrogates (half an emoji as `"\\ud83d"` in a JSON export) as `?`: UTF-8 and SQLite cannot hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def fold(text: str) -> str:
    """NFC, lower case, ё as е: what search compares."""
    return nfc(text).lower().replace("ё", "е")


def words(text: str) -> list[str]:
    """The folded words of a text, in order; combining marks stay with their letters."""
    return WORD.findall(fold(text))


@functools.cache
def _stemmer(algorithm: str) -> object:
    return snowballstemmer.stemmer(algorithm)


@functools.lru_cache(maxsize=200_000)
def stem(word: str) -> str:
    """The Snowball stem of a folded word, by its own script: Cyrillic as Russian, Latin as English, others as they are."""
    for language, algorithm in _STEMMED.items():
        if _LETTERS[language].match(word):
            stemmed: str = _stemmer(algorithm).stemWord(word)  # type: ignore[attr-defined]
            return stemmed
    return word


def stems(text: str) -> list[str]:
    """The stems of a text's words, in order."""
    return [stem(word) for word in words(text)]


@functools.lru_cache(maxsize=100_000)
def word_grams(word: str, n: int = 4) -> tuple[str, ...]:
    """Character n-grams of `#word#`; a word shorter than n is one gram."""
    marked = f"#{word}#"
    return tuple(marked[i : i + n] for i in range(max(1, len(marked) - n + 1)))


def grams(text: str, n: int = 4) -> list[str]:
    """Character n-grams of a text's words, in order: find what stems miss (typos, languages without a stemmer)."""
    return [gram for word in words(text) for gram in word_grams(word, n)]


def language(text: str) -> str:
    """ISO 639-1 code by the script of most letters (`ru`, `bn`, `en`, …); `und` when there are fewer than three letters."""
    sample = text[:20_000]
    counts = Counter({code: len(letters.findall(sample)) for code, letters in _LETTERS.items()})
    if counts["ja"]:  # Japanese mixes its syllables with Han characters; Chinese has only these
        counts["ja"] += counts.pop("zh")
    code, most = counts.most_common(1)[0]
    return code if most >= 3 else "und"


def sentences(text: str) -> list[str]:
    """The sentences of a text, stripped, in order; list items and paragraphs end a sentence too."""
    return [part.strip() for part in _SENTENCE_END.split(text) if part and part.strip()]


def sha(*parts: str, digits: int = 16) -> str:
    """A hex fingerprint of strings; the boundaries between them count."""
    digest = hashlib.sha256()
    for part in parts:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big"))
        digest.update(data)
    return digest.hexdigest()[:digits]
