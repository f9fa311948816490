"""Other words for a word of a question that the vault does not know as it stands, each one a word that the vault does know.

Slips of the hand (4-grams propose, edit distance decides; Damerau 1964), the other alphabet (`privet`, `tokenizaciya`, `khichuri`), the
wrong keyboard layout (`ghbdtn`), letters of two alphabets in one word, figures of another script, parts of identifiers and of
compounds. No dictionary: the vault's own words are the only measure. Pure but for the vocabulary it is given; knows nothing about
how that is stored, nor what becomes of the words.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from vaultllm import edits
from vaultllm.memory import spelling
from vaultllm.text import WORD, fold, stem

if TYPE_CHECKING:
    import numpy as np

RARE = 2  # a word that stands in no more passages may be a slip itself
MOST = 4  # variants of a word, its parts not counted
MOST_WORDS = 5  # of a question are looked at closely: its time is bounded
_MOST_TYPED = 100  # words of a question: what is longer was pasted
_SIMILAR = 16  # words that share most 4-grams, which are then compared letter by letter
_LONGEST = 40  # letters: longer words are addresses and keys
_SHORT = 5  # letters: in words up to here one slip may leave no 4-gram whole, so all words a slip away are tried
_MORE = 8  # a slip of a word that the vault has (rarely) must stand in so many times as many passages


class Vocabulary(Protocol):
    """The words of the vault."""

    def df(self, word: str, /) -> int:
        """In how many passages a folded word stands; 0 when in none. Asked some hundred times, mostly for words that are not there."""

    def stem_df(self, stem: str, /) -> int:
        """In how many passages a word of this stem stands; a sum over its words will do."""

    def similar(self, word: str, n: int, /) -> list[tuple[str, float, int]]:
        """The n words that share most 4-grams of `#word#`: word, Dice coefficient, df."""


class Variant(NamedTuple):
    """Another word to look for."""

    word: str
    """Folded; it or its stem is in the vocabulary."""
    weight: float
    """How much it counts beside the word itself, above 0, at most 1."""
    why: str
    """`typo`, `alphabet`, `layout`, `figures` or `part`."""


# What each way is trusted: a word that the vault knows and that is spelled by other keys is hardly chance, a slip may be.
_LAYOUT, _ALPHABET, _PART = 0.95, 0.9, 0.5
_DOUBTED = 0.5  # of all that: what another word for a word is worth that the vault has, though rarely
_PER_LETTER = 2.5  # trust lost by each slip, by its share of the letters
_LEAST = 0.3  # below it a slip is more likely a word of its own
_SURE = 0.6  # from here on a slip is believed in a word that was spelled anew
_ENDING = 0.5  # slips that another ending counts for
_FIRST = 0.5  # slips that another first letter is worse by: people seldom miss it


def expand(text: str, vocabulary: Vocabulary) -> list[tuple[str, list[Variant]]]:
    """The words of a question (folded, in order) that have variants, with them.

    Only `MOST_WORDS` are looked at closely, those first that the vault lacks; of the others only parts of identifiers are found.
    """
    found: dict[str, list[Variant]] = {}
    typed: dict[str, str] = {}
    for chunk in text.split()[:_MOST_TYPED]:
        whole = WORD.fullmatch(chunk) is not None
        retyped = [] if whole else [word for word in spelling.retyped(chunk) if WORD.fullmatch(word) and vocabulary.df(word)]
        if retyped:  # `k.,jdm` is one word
            found[fold(chunk)] = [Variant(word, _LAYOUT, "layout") for word in retyped]
            continue
        for match in WORD.finditer(chunk):
            typed.setdefault(fold(match[0]), match[0])
            found.setdefault(fold(match[0]), [])
        if not whole and (joined := _joined(chunk, vocabulary)):
            found[fold(chunk)] = [joined]
    seen = {word: _seen(word, vocabulary) for word in typed}
    closely = set(sorted((word for word in typed if len(word) > 2 and seen[word] <= RARE), key=seen.__getitem__)[:MOST_WORDS])
    for word, raw in typed.items():
        plain = word not in closely and seen[word] <= RARE
        found[word] = parts(raw, vocabulary) if plain else variants(raw, vocabulary)
    return [(word, others) for word, others in found.items() if others]


def variants(word: str, vocabulary: Vocabulary) -> list[Variant]:
    """Other words for a word as it was typed (its case tells the parts of `camelCase`), the surest first; [] for most words.

    A word that stands in more than `RARE` passages, by itself or by its stem, only gets its parts and figures.
    """
    folded = fold(word)
    found = parts(word, vocabulary)
    figures = spelling.figures(folded)
    if figures != folded and _seen(figures, vocabulary):
        found.append(Variant(figures, 1.0, "figures"))
    known = _seen(folded, vocabulary)
    if known > RARE or not 3 <= len(folded) <= _LONGEST or folded.isdecimal():
        return found
    other = _respelled(folded, vocabulary, known)
    if not any(char.isdecimal() for char in folded):  # 2024 is no slip of 2023
        other += _typos(folded, vocabulary, known)
        if not other and not known:
            other = _far(folded, vocabulary)
            found += [] if other or found else _halves(folded, vocabulary)
    best: dict[str, Variant] = {}
    for variant in sorted(other, key=lambda one: (-one.weight, -vocabulary.df(one.word), one.word)):
        if variant.word != folded:
            best.setdefault(variant.word, variant._replace(weight=variant.weight * _DOUBTED) if known else variant)
    return found + list(best.values())[:MOST]


def parts(word: str, vocabulary: Vocabulary) -> list[Variant]:
    """The parts of an identifier (`snake_case`, `camelCase`, `HTTPServer2`) that the vault knows, as words; [] for a plain word."""
    pieces = list(dict.fromkeys(fold(piece) for piece in _pieces(word)))
    if len(pieces) < 2:
        return []
    return [Variant(piece, _PART, "part") for piece in pieces if len(piece) > 1 and _seen(piece, vocabulary)]


def neighbours(words: Sequence[str], vectors: np.ndarray, vector: np.ndarray, most: int = 5, least: float = 0.6) -> list[tuple[str, float]]:
    """The words whose vectors lie nearest to one, with their cosines, best first; those below `least` are no synonyms.

    `words`: n of them; `vectors`: (n, d), a row each; `vector`: (d,). Lengths do not matter; zero vectors have no neighbours.
    """
    import numpy as np

    lengths = np.linalg.norm(vectors, axis=1) * np.linalg.norm(vector)
    cosines = np.divide(vectors @ vector, lengths, out=np.zeros(len(words), dtype=np.float64), where=lengths > 0)
    near = np.flatnonzero((cosines >= least) & (lengths > 0))
    order = near[np.argsort(-cosines[near], kind="stable")][:most]
    return [(words[place], float(cosines[place])) for place in order]


def _seen(word: str, vocabulary: Vocabulary) -> int:
    return vocabulary.df(word) or vocabulary.stem_df(stem(word))


# -- parts


_BOUNDARY = re.compile(r"[\W_]+")


def _pieces(word: str) -> Iterable[str]:
    """An identifier cut at `_`, `-`, between letters and figures, before a capital after a small letter and before the last of several."""
    for plain in _BOUNDARY.split(word) if not WORD.fullmatch(word) else word.split("_"):
        begin = 0
        for place in range(1, len(plain)):
            left, right = plain[place - 1], plain[place]
            after = plain[place + 1 : place + 2]
            camel = right.isupper() and (left.islower() or (left.isupper() and after.islower()))
            if camel or left.isdecimal() != right.isdecimal():
                yield plain[begin:place]
                begin = place
        if plain[begin:]:
            yield plain[begin:]


def _joined(chunk: str, vocabulary: Vocabulary) -> Variant | None:
    """`e-mail` as `email`, when the vault writes it so."""
    pieces = [piece for piece in _BOUNDARY.split(fold(chunk)) if piece]
    word = "".join(pieces)
    return Variant(word, _ALPHABET, "part") if len(pieces) > 1 and len(word) <= _LONGEST and _seen(word, vocabulary) else None


def _halves(word: str, vocabulary: Vocabulary) -> list[Variant]:
    """The two words of a compound that the vault writes apart; of several cuts the one whose rarer half is the most frequent."""
    best: tuple[int, int] = (0, 0)
    for place in range(4, len(word) - 3):
        left = vocabulary.df(word[:place])
        if left > best[0]:
            best = max(best, (min(left, vocabulary.df(word[place:])), place))
    return [Variant(half, _PART, "part") for half in (word[: best[1]], word[best[1] :])] if best[0] else []


# -- other letters


def _respelled(word: str, vocabulary: Vocabulary, known: int) -> list[Variant]:
    """The word on another keyboard, in another alphabet, with its letters of one alphabet."""
    found = []
    for retyped in spelling.retyped(word):
        if _seen(retyped, vocabulary) > known and WORD.fullmatch(retyped):
            found.append(Variant(retyped, _LAYOUT, "layout"))
    for plain in spelling.unmixed(word):
        if _seen(plain, vocabulary) > known:
            found.append(Variant(plain, _LAYOUT, "alphabet"))
    for ways in spelling.alphabets(word):
        there = [way for way in ways if vocabulary.df(way) > known]
        there = there or [way for way in ways[:8] if vocabulary.stem_df(stem(way)) > known][:1]  # of one stem all say the same
        found += [Variant(way, _ALPHABET * 0.95**rank, "alphabet") for rank, way in enumerate(there[:MOST])]
    return found


def _far(word: str, vocabulary: Vocabulary) -> list[Variant]:
    """Slips in another alphabet (`bolshoy` has lost the soft sign) or on another keyboard: what is near to the likeliest spelling."""
    found = []
    for why, ways in [("alphabet", ways[:1]) for ways in spelling.alphabets(word)] + [("layout", spelling.retyped(word)[:1])]:
        for way in ways:
            if WORD.fullmatch(way) and len(way) > _SHORT:
                found += [Variant(one.word, one.weight * _ALPHABET, why) for one in _typos(way, vocabulary, 0) if one.weight > _SURE]
    return found


# -- slips


def _typos(word: str, vocabulary: Vocabulary, known: int) -> list[Variant]:
    """The words of the vault that the fewest slips lead to; what they are trusted is shared among their stems."""
    most = 0 if len(word) < 4 else 1 if len(word) < 8 else 2 if len(word) < 13 else 3
    if not most:
        return []
    enough = _MORE * known
    own = stem(word)
    slips: dict[str, float] = {}
    for other, _, df in vocabulary.similar(word, _SIMILAR):
        if other == word or df <= enough:
            continue
        far = edits.distance(word, other, most)
        if far is not None:
            slips[other] = far
        elif len(own) > 4 and (far := edits.distance(own, stem(other), most)) is not None:
            slips[other] = max(far, 1) + _ENDING
    if len(word) <= _SHORT:
        slips.update({other: 1.0 for other in spelling.one_slip(word) if vocabulary.df(other) > enough})
    for other in slips:
        slips[other] += _FIRST * (other[0] != word[0] and other[:2] != word[1::-1])
    fewest = min(slips.values(), default=0.0)
    trust = 1.0 - _PER_LETTER * fewest / len(word)
    if not slips or trust < _LEAST:
        return []
    nearest = [other for other, count in slips.items() if count == fewest]
    return [Variant(other, trust / len(set(map(stem, nearest))), "typo") for other in nearest]
