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

from vaultllm import edits, keywords
from vaultllm.memory import spelling
from vaultllm.text import WORD, fold, stem, word_grams

if TYPE_CHECKING:
    import numpy as np

RARE = 2  # a word that stands in no more passages may be a slip itself
MOST = 4  # variants of a word, its parts not counted
MOST_WORDS = 3  # of a question are looked at closely: its time is bounded
_MOST_TYPED = 100  # words of a question: what is longer was pasted
_SIMILAR = 16  # words that share most 4-grams, which are then compared letter by letter
_LONGEST = 40  # letters: longer words are addresses and keys
_SHORT = 5  # letters: in words up to here one slip may leave no 4-gram whole, so all words a slip away are tried
MOST_ASKED, MOST_SYNONYMS = 12, 3  # words of a question, and synonyms of each
MOST_LEXICON = 20_000  # words of the vault that may be synonyms: 20 MB of vectors
LEAST_COSINE = 0.6
_NEAREST = 40  # neighbours that are looked at: the nearest are other forms of the word itself
_MORE = 8  # a slip of a word that the vault has (rarely) must stand in so many times as many passages


class Vocabulary(Protocol):
    """The words of the vault."""

    def df(self, word: str, /) -> int:
        """In how many passages a folded word stands; 0 when in none."""

    def known(self, words: Iterable[str], /) -> list[str]:
        """Those of hundreds of folded words that may stand in a passage, asked at once: most are in none."""

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
_LAYOUT, _ALPHABET, _STEM, _PART = 0.95, 0.9, 0.7, 0.5
_DOUBTED = 0.5  # of all that: what another word for a word is worth that the vault has, though rarely
_PER_LETTER = 2.5  # trust lost by each slip, by its share of the letters
_LEAST = 0.3  # below it a slip is more likely a word of its own
_SURE = 0.6  # from here on a slip is believed in a word that was spelled anew
_ENDING = 0.5  # slips that another ending counts for
_FIRST = 0.5  # slips that another first letter is worse by: people seldom miss it


def expand(text: str, vocabulary: Vocabulary) -> list[tuple[str, list[Variant]]]:
    """The words of a question (folded, in order) that have variants, with them.

    Alphabets and slips, which take time, are looked at for `MOST_WORDS`, those first that the vault lacks and that are not explained
    otherwise.
    """
    found: dict[str, list[Variant]] = {}
    open_: dict[str, int] = {}
    for chunk in text.split()[:_MOST_TYPED]:
        whole = WORD.fullmatch(chunk) is not None
        retyped = [] if whole else [word for word in spelling.retyped(chunk) if WORD.fullmatch(word) and vocabulary.df(word)]
        if retyped:  # `k.,jdm` is one word
            found[fold(chunk)] = [Variant(word, _LAYOUT, "layout") for word in retyped]
            continue
        for match in WORD.finditer(chunk):
            word = fold(match[0])
            if word not in found:
                known = _seen(word, vocabulary)
                found[word] = _plain(match[0], word, known, vocabulary)
                if not found[word] and known <= RARE:
                    open_[word] = known
        if not whole and (joined := _joined(chunk, vocabulary)):
            found[fold(chunk)] = [joined]
    for word in sorted(filter(_guessable, open_), key=open_.__getitem__)[:MOST_WORDS]:
        found[word] = _guesses(word, open_[word], vocabulary)
    return [(word, others) for word, others in found.items() if others]


def variants(word: str, vocabulary: Vocabulary) -> list[Variant]:
    """Other words for a word as it was typed (its case tells the parts of `camelCase`), the surest first; [] for most words.

    A word that stands in more than `RARE` passages, by itself or by its stem, only gets its parts and figures. What explains a word
    for certain (its parts, another layout) ends the search.
    """
    folded = fold(word)
    known = _seen(folded, vocabulary)
    found = _plain(word, folded, known, vocabulary)
    return found or (_guesses(folded, known, vocabulary) if known <= RARE and _guessable(folded) else [])


def _plain(word: str, folded: str, known: int, vocabulary: Vocabulary) -> list[Variant]:
    """What takes no search: parts, figures, the other layout, letters of one alphabet."""
    found = parts(word, vocabulary)
    figures = spelling.figures(folded)
    if figures != folded and _seen(figures, vocabulary):
        found.append(Variant(figures, 1.0, "figures"))
    if found or known > RARE or not 3 <= len(folded) <= _LONGEST:
        return found
    for why, ways in (("layout", spelling.retyped(folded)), ("alphabet", spelling.unmixed(folded))):
        found += [Variant(way, _LAYOUT, why) for way in ways if WORD.fullmatch(way) and _seen(way, vocabulary) > known]
    return _ranked(found, folded, known, vocabulary)


def _guessable(word: str) -> bool:
    """Whether a word may be a slip or of another alphabet: not figures (2024 is no slip of 2023), an address or a key."""
    return 3 <= len(word) <= _LONGEST and not word.isdecimal()


def _guesses(word: str, known: int, vocabulary: Vocabulary) -> list[Variant]:
    """The word in another alphabet; else the words it may be a slip of; else both together, or its halves."""
    found = _respelled(word, vocabulary, known)
    if not any(char.isdecimal() for char in word):
        if not any(vocabulary.df(variant.word) for variant in found):
            found += _typos(word, vocabulary, known)
        if not found and not known:
            found = _far(word, vocabulary)
        if not found and not known:
            return _halves(word, vocabulary)
    return _ranked(found, word, known, vocabulary)


def _ranked(found: list[Variant], word: str, known: int, vocabulary: Vocabulary) -> list[Variant]:
    best: dict[str, Variant] = {}
    for variant in sorted(found, key=lambda one: (-one.weight, -vocabulary.df(one.word), one.word)) if len(found) > 1 else found:
        if variant.word != word:
            best.setdefault(variant.word, variant._replace(weight=variant.weight * _DOUBTED) if known else variant)
    return list(best.values())[:MOST]


def parts(word: str, vocabulary: Vocabulary) -> list[Variant]:
    """The parts of an identifier (`snake_case`, `camelCase`, `HTTPServer2`) that the vault knows, as words; [] for a plain word."""
    pieces = list(dict.fromkeys(fold(piece) for piece in _pieces(word)))
    if len(pieces) < 2:
        return []
    return [Variant(piece, _PART, "part") for piece in pieces if len(piece) > 1 and _seen(piece, vocabulary)]


class Lexicon(Protocol):
    """The words of the vault, by how often they stand in it."""

    def frequent(self, most: int, /) -> list[str]:
        """At most so many folded words that stand in two passages or more, the most frequent first."""


class Embedder(Protocol):
    """What makes vectors of words (`embed.VaultEmbedder`)."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the vectors would."""

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, d) float32, unit rows, or zero rows."""


def synonyms(text: str, lexicon: Lexicon, embedder: Embedder, least: float = LEAST_COSINE) -> dict[str, float]:
    """Words that the vault uses where it uses a word of the question -> their cosine with it, at least `least`.

    At most `MOST_SYNONYMS` for each word; {} for a question of more than `MOST_ASKED` words that say something: they say enough. A
    word that shares a 4-gram with one of the question's is none: that leg finds it anyway, and its vector, made of letters too, is near
    whatever it means. They are no dictionary's synonyms: what is used together is near (flour and leaven).
    """
    asked = [word for word in dict.fromkeys(map(fold, WORD.findall(text))) if _means(word)]
    if not asked or len(asked) > MOST_ASKED:
        return {}
    words, vectors = _vectors(lexicon, embedder)
    found: dict[str, float] = {}
    grams = {gram for word in asked for gram in word_grams(word)}
    for vector in embedder.embed(asked):
        near = neighbours(words, vectors, vector, _NEAREST, least)
        for other, cosine in [one for one in near if grams.isdisjoint(word_grams(one[0]))][:MOST_SYNONYMS]:
            found[other] = max(found.get(other, 0.0), cosine)
    return found


def neighbours(words: Sequence[str], vectors: np.ndarray, vector: np.ndarray, most: int = 5, least: float = 0.6) -> list[tuple[str, float]]:
    """The words whose vectors lie nearest to one, with their cosines, best first; those below `least` are no synonyms.

    `words`: n of them; `vectors`: (n, d), a unit row each, or a zero row, which has no neighbours; `vector`: (d,), of any length.
    """
    import numpy as np

    length = float(np.linalg.norm(vector))
    cosines = vectors @ (vector / length) if length > 0 else np.zeros(len(words))
    near = np.flatnonzero(cosines >= max(least, 1e-6))
    order = near[np.argsort(-cosines[near], kind="stable")][:most]
    return [(words[place], float(cosines[place])) for place in order]


def _means(word: str) -> bool:
    """Whether a folded word may have synonyms: no figure, tag, part of code, or word that says little."""
    return 3 <= len(word) <= _LONGEST and not any(char.isdecimal() or char in "_#" for char in word) and not keywords.is_common(word)


_known: tuple[str, list[str], np.ndarray] | None = None  # of the embedder that was asked last: one vault is asked at a time


def _vectors(lexicon: Lexicon, embedder: Embedder) -> tuple[list[str], np.ndarray]:
    """The vault's words that mean something, and their vectors; kept until another embedder, which is fitted when the vault has grown."""
    global _known
    kept = _known
    if kept is None or kept[0] != embedder.fingerprint:
        words = [word for word in lexicon.frequent(MOST_LEXICON) if _means(word)]
        _known = kept = (embedder.fingerprint, words, embedder.embed(words))
    return kept[1], kept[2]


def _seen(word: str, vocabulary: Vocabulary) -> int:
    """In how many passages a word stands, by itself or by its stem; not exact beyond `RARE`."""
    count = vocabulary.df(word)
    return count if count > RARE else max(count, vocabulary.stem_df(stem(word)))


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
    """The word in the other alphabets; where the vault has none of its spellings, one whose stem it has."""
    found = []
    for ways in spelling.alphabets(word):
        there = [way for way in ways if vocabulary.df(way) > known][:MOST]
        found += [Variant(way, _ALPHABET * 0.95**rank, "alphabet") for rank, way in enumerate(there)]
    if not found:
        stems: dict[str, str] = {}
        for way in [way for ways in spelling.alphabets(word) for way in ways[:8]]:
            if stem(way) != way:  # else its df has said it
                stems.setdefault(stem(way), way)
        found = [Variant(way, _STEM, "alphabet") for one, way in list(stems.items())[:4] if vocabulary.stem_df(one) > known][:1]
    return found


def _far(word: str, vocabulary: Vocabulary) -> list[Variant]:
    """Slips in another alphabet: what is near to the likeliest spelling in the first of them."""
    for way in [way for ways in spelling.alphabets(word)[:1] for way in ways[:1] if len(way) > _SHORT]:
        near = _typos(way, vocabulary, 0)
        return [Variant(one.word, one.weight * _ALPHABET, "alphabet") for one in near if one.weight > _SURE]
    return []


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
        slips.update({other: 1.0 for other in vocabulary.known(spelling.one_slip(word)) if vocabulary.df(other) > enough})
    for other in slips:
        slips[other] += _FIRST * (other[0] != word[0] and other[:2] != word[1::-1])
    fewest = min(slips.values(), default=0.0)
    trust = 1.0 - _PER_LETTER * fewest / len(word)
    if not slips or trust < _LEAST:
        return []
    nearest = [other for other, count in slips.items() if count == fewest]
    return [Variant(other, trust / len(set(map(stem, nearest))), "typo") for other in nearest]
