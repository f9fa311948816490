"""What the words index holds of a passage: its words, counted and weighed, and the keys that words, stems and 4-grams are known by.

Made where there is time for it (a worker), so it knows no database (`words.py`) and needs no numpy but for the keys of a query.
"""

from __future__ import annotations

import functools
import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from vaultllm import dates
from vaultllm import text as texts

if TYPE_CHECKING:
    import numpy as np

TEXT_WEIGHT, CONTEXT_WEIGHT = 2, 1  # a word in the title counts half of one in the text: it stands in all passages of a scene
MOST_WORD = 64  # characters of a word that count: a line of base64 is no word
_SAMPLE = """Заметки о нейросетях, ёжиках и прочитанных книгах, которыми пользовались; говорящий возвращался, сильнейший, хождение,
мудрость, вода, водами. Running generously, national relational conditional happiness, studies skies dying; naïve cafés.
আমার বইগুলো পড়েছিলাম ক্ষমতা 2025-06-15 x_y #тег don't 😀""".replace("\n", " ")
_SYMBOL = re.compile("[\u2600-\u27bf\U0001f000-\U0001faff]")  # emoji and dingbats: words of their own
_DATE = re.compile(r"^(\d{4}-\d\d-\d\d)$", re.MULTILINE)
_TAG = re.compile(r"(?<!\S)#[^\s#]+")


class Bag(NamedTuple):
    """A passage as the index holds it; made where there is time for it (a worker), added where the database is."""

    words: str
    """Its words, joined by spaces, each once or twice."""
    keys: bytes
    """What each is known by: 8 bytes of a hash."""
    weights: bytes
    """How much each counts: `TEXT_WEIGHT` for each time in the text, `CONTEXT_WEIGHT` in the context; at most 255."""
    length: int
    """The sum of the weights."""
    grams: int
    """The same, in 4-grams."""


def bag(text: str, context: str) -> Bag:
    """What the index holds of a passage."""
    return _both(_weighed(text, TEXT_WEIGHT), _about(context))


def _both(one: Bag, other: Bag) -> Bag:
    """Two bags as one; a word that stands in both is there twice, and its weights add up."""
    if not one.words or not other.words:
        return one if one.words else other
    return Bag(
        f"{one.words} {other.words}", one.keys + other.keys, one.weights + other.weights, one.length + other.length, one.grams + other.grams
    )


def _weighed(text: str, weight: int) -> Bag:
    counts, length, letters = cut(text)
    try:
        weights = bytes(counts.values()).translate(_TIMES[weight])
    except ValueError:
        weights = bytes([min(255, weight * count) for count in counts.values()])
    keys = b"".join(map(_KEYS.__getitem__, counts))
    return Bag(" ".join(counts), keys, weights, weight * length, weight * (letters - length))  # a word of n letters has n - 1 grams


class _Keys(dict[str, bytes]):
    """What words are known by; worked out once."""

    def __missing__(self, word: str) -> bytes:
        if len(self) >= 200_000:
            self.clear()
        key = self[word] = hashlib.blake2b(word.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return key


_KEYS = _Keys()


_TIMES = {weight: bytes(min(255, weight * count) for count in range(256)) for weight in (TEXT_WEIGHT, CONTEXT_WEIGHT)}


def cut(text: str) -> texts.Counted:
    """How often each word stands in a text, emoji among them."""
    found = texts.counted(text)
    symbols = [] if text.isascii() else _SYMBOL.findall(text)
    if symbols or (found.counts and len(max(found.counts, key=len)) > MOST_WORD):
        every: Counter[str] = Counter()
        for word, count in found.counts.items():
            every[word[:MOST_WORD]] += count
        every.update(symbols)
        return texts.Counted(every, every.total(), sum(len(word) * count for word, count in every.items()))
    return found


@functools.lru_cache(maxsize=1_000)
def _about(context: str) -> Bag:
    """A context as `scenes.passages` writes it: its words, its date in words of three languages, and each `#tag` as a word of its own."""
    bag = _weighed(context, CONTEXT_WEIGHT)
    if day := _DATE.search(context):
        bag = _both(bag, _told(day[1]))
    if "#" not in context:
        return bag
    tags = [tag for tag in dict.fromkeys(texts.fold(tag) for tag in _TAG.findall(context)) if len(tag) <= MOST_WORD]
    keys = b"".join([bag.keys, *(_KEYS[tag] for tag in tags)])
    return bag._replace(words=" ".join([bag.words, *tags]).strip(), keys=keys, weights=bag.weights + bytes([CONTEXT_WEIGHT] * len(tags)))


@functools.lru_cache(maxsize=1_000)
def _told(day: str) -> Bag:
    """A day in words of three languages."""
    return _weighed(" ".join(dates.words(day, language) for language in ("ru", "en", "bn")), CONTEXT_WEIGHT)


@functools.cache
def version() -> str:
    """Fingerprint of how texts become words and words stems, by what becomes of a sample: with another the index must be rebuilt.

    The first number is that of how the index is stored.
    """
    return texts.sha(bag(_SAMPLE, "x\n2025-06-15\n#тег").words, *texts.stems(_SAMPLE), str((3, TEXT_WEIGHT, CONTEXT_WEIGHT, MOST_WORD)))


def word_keys(words: Sequence[str]) -> np.ndarray:
    """Keys of folded words, (n,) uint64."""
    import numpy as np

    return np.frombuffer(b"".join([_KEYS[word] for word in words]), "<u8")


def stem_keys(stems: Sequence[str]) -> np.ndarray:
    """Keys of stems, (n,) uint32."""
    import numpy as np

    return np.array([zlib.crc32(b"=" + stem.encode("utf-8", "surrogatepass")) for stem in stems], np.uint32)


def gram_keys(words: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Keys of the 4-grams of `#word#` for each word, (n,) uint32, and which word each is of, (n,) int64.

    Hashes of the four code points (two keys of a vault collide about once in a million). A word of one letter is one gram. Words are
    not longer than `MOST_WORD`.
    """
    import numpy as np

    lengths = np.fromiter(map(len, words), np.int64, len(words))
    if len(words) and lengths.min() < 2:
        words = [word if len(word) != 1 else f"{word}#\0" for word in words]
    blocks = np.where(lengths == 1, 3, lengths) + 2
    counts = np.where(lengths == 1, 1, np.maximum(lengths - 1, 0))
    of = np.repeat(np.arange(len(words)), counts)
    if not len(of):
        return np.zeros(0, np.uint32), of
    at = np.repeat(np.cumsum(blocks) - blocks - (np.cumsum(counts) - counts), counts) + np.arange(len(of))
    points = np.frombuffer(f"#{'##'.join(words)}#".encode("utf-32-le", "surrogatepass"), "<u4")
    mixed = points[at]
    for step in (1, 2, 3):
        mixed = mixed * np.uint32(2_654_435_761) ^ (mixed >> np.uint32(15)) ^ points[at + step]
    mixed *= np.uint32(2_246_822_519)
    mixed ^= mixed >> np.uint32(13)
    return mixed, of
