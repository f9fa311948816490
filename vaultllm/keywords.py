"""What a text is about: its keywords (the field of a scene), the sentence that stands for it (its anchor), its language.

A keyword is a word that is frequent here and rare in the vault: term frequency x inverse document frequency (Sparck
Jones 1972) over stems, with the vault's own document frequencies where they are known. Every word is folded, stemmed
and looked up once; the three answers share that work. Pure: knows nothing about scenes, files or Markdown's blocks.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from math import log
from operator import itemgetter, mul
from typing import Any, NamedTuple

from vaultllm import text

SAMPLE = 20_000  # characters of a text that are looked at: a field of six words needs no more
MOST_STEMS = 20_000  # of the vault's document frequencies: some 400 KB, and rarer stems are as good as unknown
_EVERYWHERE = 0.25  # a stem of more notes than this share tells none of them from the others
_ENOUGH_NOTES = 20  # fewer say nothing about what stands everywhere

# Words that say little about what a text is about; only for keywords, never for search.
_COMMON = frozenset(
    """это эта эти этот этой этом этого этим этих как так что чтобы для или при про под над без если уже есть еще был была было были
    быть будет будут меня мне мной мою мое моя мой мои тебя тебе твой его ему она оно они ней нее них ним ними нас нам вас вам ваш
    вот все всех всем весь всю вся всего раз два три один одна одно одни того тоже там тут где когда тогда потом затем теперь сейчас
    только лишь даже именно просто очень можно нужно надо может могут могу хочу хотя чем кто кого чего чему какой какая какие какое
    каких который которая которые которое которых которой свой свою свои свое себя себе сам сама само сами самый такой такая такие
    такое более менее лучше также после перед между через около почему потому поэтому здесь сразу пока снова опять каждый каждая
    каждое каждые другой другая другие другое нет либо ведь разве ли же бы не ни туда сюда оттуда отсюда откуда куда вон наверное
    почти ровно совсем всегда никогда иногда ничего никто нибудь кажется например кстати итак значит хорошо спасибо пожалуйста
    извини давай дальше больше меньше много мало сколько столько подскажи скажи расскажи несколько вместо кроме вообще обычно вдруг
    вроде хоть тем уж лет день дня дней сегодня вчера завтра the and for with that this these those from have has had were was been
    being are they them their then than when what where which while who whom whose why how will would should could can may might
    must shall there here about into over under after before between through your you yours our ours his her hers him she its not
    but also only very just more most some such any all each every both few many much other another one two own same too does did
    doing done yes let get got use used using via per etc back nothing something anything everything never always still even again
    maybe please thanks thank well now today yesterday tomorrow day days because though although এবং একটি একটা এটি এটা এই সেই তার
    তাঁর তাদের আমার আমাদের আমি আমরা তুমি আপনি আপনার সে তারা কিন্তু জন্য থেকে করে করা করতে করি করেন হয় হয়ে হতে হলে হবে আছে ছিল যদি
    তবে আর বা না কি কী যে যা যখন তখন সব খুব এক দিয়ে নিয়ে মধ্যে সঙ্গে সাথে কোনো কোন কিছু এখন পরে আগে মতো শুধু আরও যায় নয় নেই যেন
    যেমন তেমন এমন কেন কেমন কোথায় এবার আবার একবার দুটো তিনটে করলে বলে বলল গেল গেছে দেয় নিজের নিজে অথচ তাই তাও http https www com
    org html""".split()
)
_LONGER = tuple(length**0.3 for length in range(32))  # longer words say more; by a stem's length
_LETTER = re.compile(r"[^\W\d_]")
_DIGITS = re.compile(r"\d")
_URL = re.compile(r"(?:https?://|www\.)[^\s<>)\]]+|⟨[a-z-]{2,20}⟩")
_FENCE = re.compile(r"[ \t>]*(?:`{3}|~{3})")
# It begins with a set of characters, which the search skips to.
_END = re.compile(r"[.!?…।\n](?:(?<!\n)[\"'»”)\]]?(?=\s)|(?<=\n)(?=[ \t]*(?:\n|[-*+][ \t]|\d{1,9}[.)][ \t])))")
_LEAD = re.compile(r"^(?:[#>\-*+\s]|\d{1,9}[.)]\s|\[[ xX]\]\s|\[![^\]\n]{1,40}\][+-]?)+")
_QUOTED = re.compile(r"\n[ \t>]*>")
_WIKI = re.compile(r"!?\[\[([^\[\]|\n]{1,500})(?:\|([^\[\]\n]{0,500}))?\]\]")
_INLINE = re.compile(r"!?\[([^\[\]\n]{0,500})\]\([^()\n]{0,500}\)")
_MARKS = re.compile(r"[*`]+|==|~~|__")


@dataclass(frozen=True, slots=True, eq=False)  # told apart by identity, so that what is worked out from them can be kept
class Statistics:
    """In how many notes of the vault a stem stands."""

    notes: int
    """Notes that were counted."""
    df: Mapping[str, int]
    """Stem -> notes that hold it; only those of two notes or more, at most `MOST_STEMS`."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"notes": self.notes, "df": dict(self.df)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Statistics:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError when it is something else."""
        return Statistics(int(data["notes"]), {str(stem): int(count) for stem, count in dict(data["df"]).items()})


class Digest(NamedTuple):
    """What a text is about."""

    field: tuple[str, ...]
    """Its keywords, the best first, each in the form it takes most often."""
    anchor: str
    """The sentence that stands for it, without marks; empty when there is no word."""
    language: str
    """ISO 639-1 code of the script of most letters of its words; `und` when there are fewer than three."""
    words: int
    """How many words were looked at."""


_Known = tuple[str, str, int]  # of a folded word: its stem, its language, its length if it may be a keyword, else 0


def statistics(texts: Iterable[str]) -> Statistics:
    """Document frequencies of a sample of the vault's notes (their source texts). The order of the texts does not matter."""
    counts: Counter[str] = Counter()
    notes = 0
    for said in texts:
        notes += 1
        counts.update(content(said))
    frequent = sorted(((count, stem) for stem, count in counts.items() if count >= 2), key=lambda one: (-one[0], one[1]))
    return Statistics(notes, {stem: count for count, stem in frequent[:MOST_STEMS]})


def content(said: str) -> frozenset[str]:
    """The distinct stems of a text that could be keywords."""
    return frozenset([known[0] for word in set(text.words(_prose(said[:SAMPLE])[0])) if (known := _KNOWN[word])[2]])


def is_common(word: str) -> bool:
    """Whether a folded word says little about what a text is about (function and question words)."""
    return word in _COMMON or (len(word) < 3 and word.isalpha())


def weight(stem: str, statistics: Statistics | None) -> float:
    """The inverse document frequency of a stem, 0 for one that stands everywhere; 1 when nothing is known of the vault."""
    if statistics is None:
        return 1.0
    return _idf(statistics.notes, statistics.df.get(stem, 1))


def digest(said: str, statistics: Statistics | None = None, about: Iterable[str] = (), most: int = 6, parts: Sequence[str] = ()) -> Digest:
    """Keywords, anchor and language of a text in one pass; its words that its titles (`about`) hold too weigh more.

    Code in fences counts only when there is little else, addresses and the targets of links not at all. `parts`: the text in
    pieces that the words index cuts into words as well, where it is known so.
    """
    said = said[:SAMPLE]
    prose, gone = _prose(said)
    counts: Mapping[str, int]
    if gone is not None and parts and len(said) < SAMPLE:
        counts, said_words, _ = text.counted(parts[0])
        if len(parts) > 1 or gone:
            counts = every = dict(counts)
            for part in parts[1:]:
                more, number, _ = text.counted(part)
                said_words += number
                for word, count in more.items():
                    every[word] = every.get(word, 0) + count
            for piece in gone:
                for word in text.words(piece):
                    count = every.get(word, 0)  # none: an address that was cut in two has words that no part has
                    said_words -= count > 0
                    if count > 1:
                        every[word] = count - 1
                    elif count:
                        del every[word]
    else:
        found = text.words(prose)
        counts, said_words = Counter(found), len(found)
    terms = _terms(counts, shortest=4 if statistics is None else 3)
    for title in about:
        for stem in _stems_of(title):
            if stem in terms.tf:
                terms.tf[stem] += 1
    weights = _weights(terms.tf, statistics, most)
    return Digest(_shown(weights, terms, counts), _anchor(prose, weights, terms), terms.language, said_words)


def keywords(words: Sequence[str], statistics: Statistics | None = None, most: int = 6) -> tuple[str, ...]:
    """The keywords of folded words (`text.words`), the best first: tf x idf with the vault's df; without it, longer words win."""
    counts = Counter(words)
    terms = _terms(counts, shortest=4 if statistics is None else 3)
    return _shown(_weights(terms.tf, statistics, most), terms, counts)


def anchor(said: str, statistics: Statistics | None = None) -> str:
    """The sentence of a text that holds most of the weight of its keywords for its length; the first of equals."""
    return digest(said, statistics).anchor


class _Terms(NamedTuple):
    tf: dict[str, int]  # stem -> how often
    form: dict[str, str]  # stem -> the first word that has it
    others: dict[str, list[str]]  # stem -> the other words, where there are any
    language: str  # of all words


def _terms(counts: Mapping[str, int], shortest: int) -> _Terms:
    """The stems that may be keywords, and the language.

    `shortest`: short words are mostly function words; only the vault's own counts know which are not.
    """
    tf: dict[str, int] = {}
    form: dict[str, str] = {}
    others: dict[str, list[str]] = {}
    known = list(map(_KNOWN.__getitem__, counts))
    for (word, count), (stem, _, worth) in zip(counts.items(), known, strict=True):
        if worth >= shortest:
            if stem in tf:
                tf[stem] += count
                others.setdefault(stem, []).append(word)
            else:
                tf[stem] = count
                form[stem] = word
    codes = list(map(_CODE, known))
    spoken = set(codes) - {"und"}
    if len(spoken) == 1 and codes.count(code := max(spoken)) > 2:  # most texts are in one language
        return _Terms(tf, form, others, code)
    sizes = list(map(mul, map(len, counts), counts.values()))
    letters = {code: sum(compress(sizes, map(code.__eq__, codes))) for code in sorted(spoken)}
    if "ja" in letters:  # Japanese mixes its syllables with Han characters; Chinese has only these
        letters["ja"] += letters.pop("zh", 0)
    code = max(letters, key=lambda one: letters[one], default="und")
    return _Terms(tf, form, others, code if letters.get(code, 0) >= 3 else "und")


def _weights(tf: Mapping[str, int], statistics: Statistics | None, most: int) -> dict[str, float]:
    """Stem -> tf x idf of the best stems, the best first."""
    if statistics is None:
        scored = [(-count * len(stem) ** 0.5, stem) for stem, count in tf.items()]
    else:
        table = _table(statistics)
        # A word that is said once here and nowhere else joins this text to nothing.
        scored = [
            (-count * worth if (worth := table[stem]) >= 0 else (count if count > 1 else 0.5) * worth, stem) for stem, count in tf.items()
        ]
    scored.sort()
    best = scored[:most]
    if best and not best[-1][0]:  # what stands everywhere, only when there is nothing else
        best = [one for one in best if one[0]] or sorted([(-float(count), stem) for stem, count in tf.items()])[:most]
    return {stem: -score for score, stem in best}


@functools.lru_cache(maxsize=4)
def _table(statistics: Statistics) -> _Table:
    known = {stem: _idf(statistics.notes, count) * _LONGER[min(len(stem), 31)] for stem, count in statistics.df.items()}
    return _Table(known, _idf(statistics.notes, 1))


class _Table(dict[str, float]):
    """Stem -> its idf, more for a longer one; below zero for a stem that the vault is not known to have."""

    def __init__(self, known: Mapping[str, float], unknown: float) -> None:
        super().__init__(known)
        self.unknown, self.most = unknown, len(known) + _MOST_KNOWN

    def __missing__(self, stem: str) -> float:
        worth: float = -self.unknown * _LONGER[min(len(stem), 31)]
        if len(self) < self.most:
            self[stem] = worth
        return worth


def _idf(notes: int, count: int) -> float:
    """log((N + 2) / (n + 1)); 0 for what stands everywhere."""
    return log((notes + 2) / (count + 1)) if notes < _ENOUGH_NOTES or count <= _EVERYWHERE * notes else 0.0


def _shown(weights: Mapping[str, float], terms: _Terms, counts: Mapping[str, int]) -> tuple[str, ...]:
    """Each stem in its most frequent form, the first of equals."""
    return tuple(
        [
            max((terms.form[stem], *terms.others[stem]), key=counts.__getitem__) if stem in terms.others else terms.form[stem]
            for stem in weights
        ]
    )


def _anchor(prose: str, weights: Mapping[str, float], terms: _Terms, longest: int = 200) -> str:
    """The sentence with most of the weight for its length."""
    folded = text.fold(prose)
    ends = [match.end() for match in _END.finditer(folded)]
    ends.append(len(folded))
    sought = [(weight, (terms.form[stem], *terms.others.get(stem, ()))) for stem, weight in weights.items()]
    best, best_score, start = -1, 0.0, 0
    apart = _APART
    for number, end in enumerate(ends):
        sentence = folded[start:end]
        start = end
        held = 0.0
        for weight, forms in sought:
            for form in forms:
                at = sentence.find(form)
                if at >= 0:
                    after = at + len(form)
                    around = sentence[at - 1 : at] in apart and sentence[after : after + 1] in apart
                    if around or _stands(form, sentence):
                        held += weight
                        break
        if held <= best_score * _SHORTEST:
            continue
        sentence = sentence.strip()
        length = sentence.count(" ") + 1
        if length < 12:  # marks count for something in a short one
            length = len(text.WORD.findall(sentence))
        if length < 4 or sentence[0] == "|":
            continue
        score = held / (8 + length) ** 0.5
        if sentence[0] == "#" and "\n" not in sentence:
            score *= 0.5  # a heading names the place, a sentence says something
        if score > best_score:
            best, best_score = number, score
    plain = ""
    if best >= 0:
        if len(folded) != len(prose):  # a letter whose small form is two
            ends = [*(match.end() for match in _END.finditer(prose)), len(prose)]
        plain = _plain(prose[ends[best - 1] if best else 0 : ends[best]].strip())
    plain = plain or _first(prose)
    return plain if len(plain) <= longest else plain[: longest - 1].rsplit(" ", 1)[0] + "…"


def _stands(form: str, sentence: str) -> bool:
    """Whether a word that is a part of a sentence stands there as a word."""
    at = sentence.find(form)
    while at >= 0:
        after = at + len(form)
        if (sentence[at - 1 : at] in _APART or not _IN_WORD(sentence, at - 1)) and (
            sentence[after : after + 1] in _APART or not _IN_WORD(sentence, after)
        ):
            return True
        at = sentence.find(form, after)
    return False


def _first(prose: str) -> str:
    """The first sentence of four words, else of any, else the cells of a table's first row."""
    short = row = ""
    for sentence in _sentences(prose):
        length = len(text.WORD.findall(sentence))
        if length and sentence[0] == "|":
            row = row or sentence.partition("\n")[0]
        elif length >= 4 and (plain := _plain(sentence)):
            return plain
        elif length:
            short = short or _plain(sentence)
    return short or ", ".join(filter(None, map(_plain, row.split("|"))))


def _plain(sentence: str) -> str:
    """A sentence of Markdown on one line, without marks and the targets of links."""
    if sentence.startswith("#") and "\n" in sentence:
        sentence = sentence.partition("\n")[2]
    if "](" in sentence:
        sentence = _INLINE.sub(r"\1", sentence)
    if ">" in sentence:
        sentence = _QUOTED.sub("\n", sentence)
    return " ".join(_MARKS.sub("", _LEAD.sub("", sentence)).split())


_SHORTEST = (8 + 4) ** 0.5  # what a sentence's weight is divided by at least
_APART = frozenset(("", *" \n.,;:!?()[]*`\"'«»—-|"))  # what mostly stands around a word
_IN_WORD = text.WORD.match
_CODE = itemgetter(1)
_MOST_KNOWN = 200_000  # words that are remembered: some 40 MB


class _Words(dict[str, _Known]):
    """What is always so of a folded word; remembered."""

    def __missing__(self, word: str) -> _Known:
        if len(self) >= _MOST_KNOWN:
            self.clear()
        known = self[word] = _look(word)
        return known


_KNOWN = _Words()


def _look(word: str) -> _Known:
    first = word[0]
    if "а" <= first <= "я":
        language = "ru"
    elif "a" <= first <= "z":
        language = "en"
    elif "\u0980" <= first <= "\u09ff":
        language = "bn"
    elif word.isdecimal():
        language = "und"
    else:
        language = text.language(word * 3)  # thrice, for a word of one letter is a word of its script too
    worth = len(word) >= 3 and word not in _COMMON
    if worth and not word.isalpha():
        # A word of digits, or one that is mostly digits (a piece of a UUID, a measure), names nothing.
        worth = len(_DIGITS.findall(word)) * 3 < len(word) and _LETTER.match(word) is not None
    return word if word[-1].isdecimal() else text.stem(word), language, len(word) if worth else 0


def _sentences(said: str) -> list[str]:
    """As `text.sentences`, a little coarser and in half the time: no sentence is empty, and each line of it keeps its marks."""
    found = []
    start = 0
    for match in _END.finditer(said):
        end = match.end()
        if sentence := said[start:end].strip():
            found.append(sentence)
        start = end
    if sentence := said[start:].strip():
        found.append(sentence)
    return found


@functools.lru_cache(maxsize=1_000)
def _stems_of(about: str) -> frozenset[str]:
    return content(about)


def _prose(said: str) -> tuple[str, list[str] | None]:
    """The text without addresses, marks of what was redacted and targets of links, and without fenced code if enough is left.

    And the pieces that are gone; None when that was code.
    """
    gone: list[str] = []

    def shown(link: re.Match[str]) -> str:
        target, alias = link.groups()
        kept: str = alias or target.partition("#")[0]
        gone.append(target if alias else target[len(kept) :])
        return kept

    def blank(address: re.Match[str]) -> str:
        gone.append(address[0])
        return " "

    if "[[" in said:
        said = _WIKI.sub(shown, said)
    if "://" in said or "www." in said or "⟨" in said:
        said = _URL.sub(blank, said)
    if "```" not in said and "~~~" not in said:
        return said, gone
    kept: list[str] = []
    inside = False
    for row in said.split("\n"):
        if _FENCE.match(row):
            inside = not inside
            kept.append("")
        elif not inside:
            kept.append(row)
    prose = "\n".join(kept)
    return (prose, None) if len(text.WORD.findall(prose)) >= 3 else (said, gone)
