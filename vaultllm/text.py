"""Text: decoding bytes, words, stems, character n-grams, sentences, the language of a passage, fingerprints.

Pure functions of strings and bytes. Knows nothing about Markdown or scenes.
"""

from __future__ import annotations

import codecs
import functools
import hashlib
import re
import struct
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from itertools import pairwise
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

# A sentence ends at its mark (danda and ellipsis included) with its closing quotes, before white space.
_SENTENCE_END = re.compile(r"(?:(?<=[.!?…।])|(?<=[.!?…।][\"'»”)\]]))\s+|\n\s*\n|\n(?=\s*(?:[-*+]|\d+[.)])\s)")


_MARKS = (  # UTF-32 before UTF-16: its little-endian BOM begins with theirs
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\0\0", "utf-32-le"),
    (b"\0\0\xfe\xff", "utf-32-be"),
    (b"\xff\xfe", "utf-16-le"),
    (b"\xfe\xff", "utf-16-be"),
)
_KINDS = (
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF picture"),
    (b"RIFF", "a RIFF file (WebP, WAV)"),
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive (also .docx, .xlsx, .epub)"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"SQLite format 3\0", "an SQLite database"),
)
_SAMPLE = 64 * 1024
_CONTROLS = bytes(byte for byte in range(0x20) if byte not in b"\t\n\v\f\r\x1b") + b"\x7f"
_LINE_END = re.compile(r"\r\n?|\n")
_HIGH = re.compile(rb"[\x80-\xff]+")
_CYRILLIC = {"cp1251": "Windows-1251", "koi8-r": "KOI8-R", "cp866": "CP866 (DOS)"}
_COMMON = frozenset("оеаинтсрвл")


class Decoded(NamedTuple):
    """A file's text and how it was read."""

    text: str
    """Newlines as `\\n`, without a BOM; empty when the bytes could not be read."""
    encoding: str
    """Python's name of the encoding; empty when unreadable."""
    problems: tuple[Problem, ...]
    """Why it is unreadable, or what is odd about it."""


def decode(data: bytes, fallback: str = "") -> Decoded:
    """Bytes of a note as text: UTF-8 with or without BOM, UTF-16 and UTF-32 by BOM. Never raises, never guesses.

    `fallback` (the setting `scan.encoding`, a name Python knows) is tried only for what is none of these, nor damaged
    UTF-8, nor binary; without it such files are a problem that names the place and what they look like.
    """
    encoding, mark = next(((name, len(mark)) for mark, name in _MARKS if data.startswith(mark)), ("utf-8", 0))
    try:
        text = str(data[mark:], encoding.removesuffix("-sig"))
    except UnicodeDecodeError as error:
        return _undecodable(data, mark, encoding, error, fallback)
    if "\0" in text:
        # English and Russian in UTF-16 are ASCII of which every other byte is a control character.
        if (
            not mark
            and text.isascii()
            and len(data[:_SAMPLE].translate(None, _CONTROLS)) < 0.8 * len(data[:_SAMPLE])
            and (wide := _wide(data))
        ):
            return _wide_text(data, wide, fallback)
        said = text.rstrip("\0")  # a crash may pad a file with NULs up to its old length
        if not said.strip() or said.count("\0") > max(8, len(said) // 100):
            return _binary(data)
    return _text(text, encoding)


def _text(text: str, encoding: str) -> Decoded:
    """What was decoded, with newlines as `\\n`, without BOMs (a second one comes from joined files) and NUL bytes."""
    problems: tuple[Problem, ...] = ()
    text = text.lstrip("\ufeff")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        problems = (Problem("W-NUL", "NUL bytes (a write was cut off?); they are left out", line, text.count("\0")),)
        text = text.replace("\0", "")
    return Decoded(text, encoding, problems)


def _undecodable(data: bytes, mark: int, encoding: str, error: UnicodeDecodeError, fallback: str) -> Decoded:
    """What to say of bytes that are not in their encoding; their text when the user has named another that fits."""
    if mark:
        return _damaged(mark, encoding, error)
    if wide := _wide(data):
        return _wide_text(data, wide, fallback)
    if _kind(data) or len(data[:_SAMPLE].translate(None, _CONTROLS)) < 0.95 * len(data[:_SAMPLE]):
        return _binary(data)
    shown = data.decode("utf-8", "replace")
    if len(shown) - len(shown.encode("ascii", "ignore")) > 2 * shown.count("\ufffd"):  # most of it is UTF-8 all the same
        return _damaged(mark, encoding, error)
    line = _line(error, encoding)
    if fallback and not fallback.lower().startswith("utf"):
        try:
            return _text(data.decode(fallback), codecs.lookup(fallback).name)
        except (ValueError, LookupError):  # among them UnicodeError
            message = f"byte {error.start} is not UTF-8, and the note is not {fallback} (scan.encoding) either; save it as UTF-8"
            return Decoded("", "", (Problem("E-ENC", message, line),))
    name, codec = _guess(data)
    looks = f"; it looks like {name}" if name else ""
    way = f', or set scan.encoding = "{codec}" in .vaultllm/config.toml' if codec else ""
    return Decoded("", "", (Problem("E-ENC", f"byte {error.start} is not UTF-8{looks}: save the note as UTF-8{way}", line),))


def _damaged(mark: int, encoding: str, error: UnicodeDecodeError) -> Decoded:
    """A file that is in its encoding but for some place; it is left out, because what stood there cannot be known."""
    name = encoding.removesuffix("-sig").upper()
    message = f"byte {mark + error.start} is not {name} ({_damage(error)}), all before it is; mend that place or save the note again"
    return Decoded("", "", (Problem("E-ENC", message, _line(error, encoding)),))


def _line(error: UnicodeDecodeError, encoding: str) -> int:
    before = error.object[: error.start].decode(encoding.removesuffix("-sig"), "ignore")
    return len(_LINE_END.findall(before)) + 1


def _damage(error: UnicodeDecodeError) -> str:
    """What stands where a file stops being in its encoding."""
    here = error.object[error.start : error.start + 3]
    if "end of data" in error.reason or "truncated" in error.reason:
        return "the last character is cut off"
    if "surrogate" in error.reason or (len(here) > 1 and here[0] == 0xED and 0xA0 <= here[1] <= 0xBF):
        return "half of a surrogate pair, often of an emoji"
    if here[:1] in (b"\xc0", b"\xc1") or (len(here) > 1 and (here[0], here[1] < 0xA0) == (0xE0, True) and here[1] >= 0x80):
        return "an overlong form"
    return "a damaged character"


def _binary(data: bytes) -> Decoded:
    kind = _kind(data) or "binary"
    at = data.find(b"\0")
    line = data.count(b"\n", 0, at) + 1 if at >= 0 else 1
    return Decoded(
        "", "", (Problem("E-BINARY", f"the file is {kind}, not text; give it its own suffix or move it out of the notes", line),)
    )


def _kind(data: bytes) -> str:
    return next((kind for start, kind in _KINDS if data.startswith(start)), "")


def _wide(data: bytes) -> str:
    """`utf-16-le` or `-be` when the bytes are UTF-16 without a BOM: zeros on one side only, and text when read so."""
    sample = data[: _SAMPLE & ~1]
    low, high = sample[0::2].count(0), sample[1::2].count(0)
    if bool(low) == bool(high) or 12 * (low + high) < len(sample) // 2:  # a few zeros are damage: in UTF-16 each blank holds one
        return ""
    encoding = "utf-16-le" if high else "utf-16-be"
    text = sample[: len(sample) & ~1].decode(encoding, "replace")
    odd = sum(char == "\ufffd" or (not char.isprintable() and char not in "\n\r\t\f\xa0\u200d\u200c\ufeff") for char in text)
    return encoding if len(text) > 3 and odd <= len(text) // 100 and sum(map(str.isalpha, text)) > len(text) // 3 else ""


def _wide_text(data: bytes, encoding: str, fallback: str) -> Decoded:
    """UTF-16 without a BOM: a problem, unless it is what the user has named."""
    if fallback and fallback.lower().replace("_", "-") in ("utf-16", encoding):
        try:
            return _text(data.decode(encoding), encoding)
        except UnicodeDecodeError as error:
            return _damaged(0, encoding, error)
    message = (
        f"byte {data.index(0)} is NUL: it looks like {encoding.upper()} without a byte order mark;"
        f' save the note as UTF-8, or set scan.encoding = "{encoding}" in .vaultllm/config.toml'
    )
    return Decoded("", "", (Problem("E-ENC", message, 1),))


def _guess(data: bytes) -> tuple[str, str]:
    """The name of an 8-bit encoding and Python's name of it, for the message only; empty when nothing fits.

    Cyrillic letters stand side by side, accented Latin ones between ASCII letters; among the Cyrillic encodings that
    one is right in which most letters are the frequent ones of Russian, in lower case.
    """
    sample = data[:_SAMPLE]
    high = _HIGH.findall(sample)
    count = sum(map(len, high))
    if count == 0:
        return "", ""
    if sum(len(run) for run in high if len(run) > 2) < 0.5 * count:
        codec = "cp1252" if any(0x80 <= byte < 0xA0 for run in high for byte in run) else "latin-1"
        try:
            sample.decode(codec)
        except UnicodeDecodeError:
            return "", ""
        return ("Windows-1252" if codec == "cp1252" else "Latin-1 (ISO 8859-1)"), codec
    words = b" ".join(high)
    best = max(_CYRILLIC, key=lambda codec: _russian(words.decode(codec, "replace")))  # the first of equals
    return (_CYRILLIC[best], best) if _russian(words.decode(best, "replace")) >= 0.35 * count else ("", "")


def _russian(words: str) -> float:
    """How much words look like Russian: frequent letters count for it; what is no letter, and capitals after small ones, against it."""
    common = sum(1.0 if char in _COMMON else 0.8 if char.lower() in _COMMON else 0.0 for char in words)
    strange = sum(not "А" <= char <= "я" for char in words) - words.count(" ")
    return common - strange - sum(left.islower() and right.isupper() for left, right in pairwise(words))


# Every character of these ranges is its own NFC and composes with none of them, so most texts need no look at each.
_COMPOSABLE = re.compile("[^\x00-\u02ff\u0400-\u0482\u048a-\u052f\u2010-\u2027\u2030-\u205e\u2190-\u22ff\u2500-\u27ff]")


def nfc(text: str) -> str:
    """Unicode NFC: how names and words are compared."""
    return unicodedata.normalize("NFC", text) if _COMPOSABLE.search(text) else text


def is_json(path: str) -> bool:
    """Whether a file's name says that its text is JSON, whose strings are not as they are spelled."""
    return path.lower().endswith((".json", ".jsonl"))


def encodable(text: str) -> str:
    """The text with lone surrogates (half an emoji as `"\\ud83d"` in a JSON export) as `?`: UTF-8 and SQLite cannot hold them."""
    return text.encode("utf-8", "replace").decode("utf-8")


def fold(text: str) -> str:
    """NFC, lower case, ё as е: what search compares."""
    return nfc(text).lower().replace("ё", "е")


def words(text: str) -> list[str]:
    """The folded words of a text, in order; combining marks stay with their letters."""
    return WORD.findall(fold(text))


class Counted(NamedTuple):
    """A text's words."""

    counts: Mapping[str, int]
    """How often each stands in it, in the order of their first places."""
    words: int
    """How many there are."""
    letters: int
    """How long they are together."""


@functools.lru_cache(maxsize=256)  # what a passage is about and how it is found are two looks at one text
def counted(text: str) -> Counted:
    """The folded words of a text, counted."""
    found = words(text)
    return Counted(Counter(found), len(found), len("".join(found)))


@functools.cache
def _stemmer(algorithm: str) -> object:
    return snowballstemmer.stemmer(algorithm)


class ByWord(dict[str, str]):
    """What is worked out once for each word; a look-up costs a dict's, and what grows too large is begun anew."""

    def __init__(self, work: Callable[[str], str], most: int = 200_000) -> None:
        super().__init__()
        self.work, self.most = work, most

    def __missing__(self, word: str) -> str:
        if len(self) >= self.most:
            self.clear()
        found = self[word] = self.work(word)
        return found


def _stem(word: str) -> str:
    if word[-1:].isdecimal():  # no ending to take away
        return word
    first = word[:1]
    if "\u0400" <= first <= "\u052f":
        algorithm = "russian"
    elif "a" <= first <= "z" or "A" <= first <= "Z" or "\u00c0" <= first <= "\u024f":
        algorithm = "english"
    else:
        return word
    stemmed: str = _stemmer(algorithm).stemWord(word)  # type: ignore[attr-defined]
    return stemmed


_STEMS = ByWord(_stem)


def stem(word: str) -> str:
    """The Snowball stem of a folded word, by its own script: Cyrillic as Russian, Latin as English, others as they are."""
    return _STEMS[word]


def stems(text: str) -> list[str]:
    """The stems of a text's words, in order."""
    return stems_of(words(text))


def stems_of(words: Iterable[str]) -> list[str]:
    """The stems of folded words, in order."""
    return list(map(_STEMS.__getitem__, words))


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
    encoded = [part.encode("utf-8", "surrogatepass") for part in parts]
    return hashlib.sha256(b"".join([piece for data in encoded for piece in (_LENGTH(len(data)), data)])).hexdigest()[:digits]


_LENGTH = struct.Struct(">Q").pack
