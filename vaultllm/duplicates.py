"""Texts that say nearly the same: MinHash signatures, and for each text the first that is like it.

MinHash (Broder 1997) estimates the Jaccard similarity of two sets of shingles from the least values of many hash
functions; banding (Leskovec, Rajaraman, Ullman, Mining of Massive Datasets, chapter 3) finds the pairs that are worth
comparing without comparing all. Pure functions of strings and bytes: `memory/twins.py` keeps what is found. Knows
nothing about scenes.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING
from zlib import crc32

from vaultllm import text

if TYPE_CHECKING:
    import numpy as np

FORM = "1"  # of signatures: raise it when they change, and all are made anew
SIZE = 64  # least values per signature: the standard error of the estimate is at most 1/16
BANDS, ROWS = 16, 4  # two texts of similarity 0.8 share a band with probability 0.9998, of 0.4 with 0.34
HEADS = 16  # how many texts of a band, the first of them, the others are compared with: keeps thousands of like texts linear
SHINGLE = 5  # words in a row
FEWEST_WORDS = 40  # shorter texts repeat by chance ("Thank you!"): only exact repetition counts there
MOST_WORDS = 4_000  # of a text that are looked at
SIMILAR = 0.8  # from here on two texts are nearly the same


def signature(said: str) -> bytes:
    """64 least hash values over the text's word 5-shingles, each a little-endian uint32; empty for a text under 40 words."""
    found = text.words(said)[:MOST_WORDS]
    if len(found) < FEWEST_WORDS:
        return b""
    import numpy as np

    # A polynomial of five words' hashes, mixed (the finaliser of MurmurHash3); then per function a linear permutation
    # (Broder, Charikar, Frieze, Mitzenmacher 1998) stands for a random order of all shingles. All modulo 2^32.
    hashes = np.fromiter(map(_hash, found), dtype=np.uint32, count=len(found))
    count = len(found) - SHINGLE + 1
    shingles = hashes[:count].copy()
    for place in range(1, SHINGLE):
        shingles *= np.uint32(0x9E3779B1)
        shingles += hashes[place : place + count]
    shingles ^= shingles >> np.uint32(16)
    shingles *= np.uint32(0x85EBCA6B)
    shingles ^= shingles >> np.uint32(13)
    shingles *= np.uint32(0xC2B2AE35)
    shingles ^= shingles >> np.uint32(16)
    factors, offsets = _permutations()
    orders = factors[:, None] * shingles
    orders += offsets[:, None]
    least: bytes = orders.min(axis=1).astype("<u4").tobytes()
    return least


def jaccard(one: bytes, other: bytes) -> float:
    """The estimated Jaccard similarity of the shingles of two texts, 0..1; 0 when a signature is empty."""
    if not one or not other:
        return 0.0
    import numpy as np

    return float((np.frombuffer(one, "<u4") == np.frombuffer(other, "<u4")).mean())


def firsts(shas: Sequence[str], signatures: Sequence[bytes]) -> list[int]:
    """For each text, in the order given, the place of the first that says the same (`shas`) or nearly (`signatures`); its own if none.

    A function of the texts and their order alone. Two texts are compared when they share a band, and with the first
    `HEADS` of a band only. About linear in the number of texts.
    """
    seen: dict[str, int] = {}
    found = [seen.setdefault(sha, place) for place, sha in enumerate(shas)]
    long = [place for place, signature in enumerate(signatures) if signature]
    if len(long) < 2:
        return found
    import numpy as np

    places = np.array(long)
    least = np.frombuffer(b"".join([signatures[place] for place in long]), "<u4").reshape(-1, SIZE)
    best = np.arange(len(long))
    pairs = np.ascontiguousarray(least).view("<u8").reshape(len(long), BANDS, ROWS // 2)
    for band in range(BANDS):
        keys = pairs[:, band, 0] * np.uint64(0x9E3779B97F4A7C15) ^ pairs[:, band, 1]
        order = np.argsort(keys, kind="stable")  # members of a band stay in the order of the texts
        new = np.r_[True, keys[order][1:] != keys[order][:-1]]
        start = np.maximum.accumulate(np.where(new, np.arange(len(order)), 0))
        offset = np.arange(len(order)) - start
        for head in range(HEADS):
            members = np.flatnonzero(offset > head)
            if not len(members):
                break
            one, other = order[members], order[start[members] + head]
            open_ = other < best[one]
            one, other = one[open_], other[open_]
            alike = (least[one] == least[other]).sum(axis=1) >= SIMILAR * SIZE
            best[one[alike]] = other[alike]
    for place, first in zip(long, places[best].tolist(), strict=True):
        found[place] = min(found[place], first)
    return found


@functools.lru_cache(maxsize=100_000)
def _hash(word: str) -> int:
    return crc32(word.encode("utf-8", "surrogatepass"))


@functools.cache
def _permutations() -> tuple[np.ndarray, np.ndarray]:
    """Odd factors and offsets, the same on every machine."""
    import numpy as np

    drawn = [int(text.sha("minhash", str(number), digits=8), 16) for number in range(2 * SIZE)]
    return np.array([number | 1 for number in drawn[:SIZE]], dtype=np.uint32), np.array(drawn[SIZE:], dtype=np.uint32)
