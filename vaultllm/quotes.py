"""The sentences of recalled scenes that answer a question best, each checked to stand in its note as it is now.

Knows nothing about models. Does not paraphrase: a quotation is found verbatim in the file (quote marks at the line's
start aside) or it is dropped.
"""

from __future__ import annotations

import json
import math
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from vaultllm import imports, mojibake, render
from vaultllm.chats.mend import as_imported
from vaultllm.config import Workspace
from vaultllm.errors import VaultllmError
from vaultllm.markdown import visible
from vaultllm.schema import Citation, Hit, Lines, Turn
from vaultllm.text import decode, is_json, sentences, stem, stems, word_grams, words

MOST, LONGEST = 5, 300
LEAST = 0.3  # of the question's content, weighted by rarity, that a sentence must speak of
_MOST_UNITS = 400  # of one scene
_ALIKE = 0.6  # Dice overlap of 4-grams from which two words may be the same one

# Words that say nothing about what is asked for; stems, so that they are compared as such.
_FUNCTION = frozenset(
    stem(word)
    for word in """
    a an and are at be by can could did do does for from had has have how i in is it me my of on or our should tell that the their them
    there they this to was we were what when where which who whom whose why will with would you your about
    а без бы был была были было быть в вас ведь во вот все всё вы где да для до его ее её если есть еще ещё же за зачем и из или им их к
    как какая какие какой какое когда кого кто куда ли мне мной можно мой моя мои мы на над надо не него нее неё нет ни но ну о об он она
    они оно от очень по под почему при про с сколько со так такое там тебя то того тоже только тот ты у уже что чего чем чему чтобы эта эти
    это этот этого я расскажи скажи нужно отчего откуда куда
    আমি আমার আমাকে আমরা তুমি আপনি সে তা তার এই এটা এটি ওই সেই কি কী কে কার কাকে কেন কখন কোথায় কীভাবে কিভাবে কত কোন কোনটি কবে
    এবং ও আর বা কিন্তু যে যা যখন তখন না নয় নেই আছে ছিল হয় হয়েছে হবে করে করা করতে থেকে জন্য সঙ্গে সাথে মধ্যে উপর পর দিয়ে একটি বলো
    হয়েছিল হয়েছিলো হয়েছিলেন করেছিল তাতে এতে কটা কতটা কতগুলো কতক্ষণ ছিলাম ছিলে
    """.replace("ё", "е").split()
)
# Words that ask for a number or a date.
_COUNTS = frozenset(
    "when many much long large far often old когда сколько каком какой какая каких числа года কবে কত কটা কতটা কতগুলো কখন".split()
)
_FENCE = re.compile(r"[ \t>]*(`{3,}|~{3,})")
_ITEM = re.compile(r"[ \t>]*(?:[-*+]|\d{1,9}[.)])[ \t]+(?:\[[^\]]\][ \t]+)?")
_NO_TEXT = re.compile(r"[ \t>]*(?:#{1,6}[ \t].*|[-*_=|: \t]*|\[![^\]]*\].*)\Z")
_LINK = re.compile(r"\[\[[^\[\]|]*\]\]")
_MARKS = re.compile(r"^(?:[ \t]{0,3}>[ \t]?)+", re.MULTILINE)
_QUOTE_MARK = re.compile(r"^ {0,3}>[ \t]?", re.MULTILINE)


def content_stems(text: str) -> set[str]:
    """The stems of a text that say what it is about."""
    return {one for one in stems(text) if one not in _FUNCTION}


@dataclass(frozen=True, slots=True)
class Quote:
    """A chosen sentence."""

    citation: Citation
    """Checked."""
    hit: int
    """Index of its hit."""


class Sources:
    """The notes that quotations are checked against: each is read once, when it is first needed."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace
        self._texts: dict[str, list[str]] = {}

    def find(self, path: str, quote: str, near: Lines, *, mended: bool = False) -> Lines | None:
        """The lines on which the quote stands now: in the scene's lines if it is there, else its first place; None if nowhere.

        `mended`: the scene may be mended from an export, so the note may hold the quote as its importer damaged it.
        """
        if path not in self._texts:
            self._texts[path] = self._read(path)
        if is_json(path):
            spelled = [json.dumps(quote, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
        else:
            spelled = [quote]
            if mended and len(damaged := as_imported(quote)) > len(quote) / 2 and damaged != quote:
                spelled.append(damaged)
        for words_ in spelled:
            for text in self._texts[path]:
                starts = [0, *accumulate(len(line) + 1 for line in text.split("\n"))]
                begin = starts[min(near[0] - 1, len(starts) - 1)]
                at = text.find(words_, begin)
                if at < 0 or bisect_right(starts, at) > near[1]:
                    first = text.find(words_)
                    at = first if at < 0 else at
                if at >= 0:
                    return bisect_right(starts, at), bisect_right(starts, at + len(words_) - 1)
        return None

    def _read(self, path: str) -> list[str]:
        """The note's text with one level of quote marks taken off (as dialogues are), with none, and with two."""
        try:
            data = imports.read_known(self.workspace, path)
            text = mojibake.mend(decode(data, self.workspace.settings.scan.encoding).text)[0]  # as the scenes hold it
        except VaultllmError:  # gone or unreadable: nothing of it can be quoted
            return []
        once = _QUOTE_MARK.sub("", text)
        return [once, text, _QUOTE_MARK.sub("", once)]


@dataclass(slots=True)
class _Unit:
    """A sentence, list item or table row that may be quoted."""

    text: str
    hit: int
    turn: Turn
    place: int
    """Its place in the turn, from 0."""
    score: float = 0.0


def choose(question: str, hits: Sequence[Hit], sources: Sources, *, most: int = MOST, least: float = LEAST) -> list[Quote]:
    """At most `most` quotations that speak of what is asked, best first; empty when the hits say nothing of it.

    A sentence scores by the question's stems that it and its neighbours hold (words that look alike and words of the
    heading count less), weighted by their rarity among the sentences, by the question that it answers in its talk, by its
    scene's rank, and, when a number is asked for, by having one. The user's own questions are quoted only when there is
    nothing else.
    """
    units = [unit for index, hit in enumerate(hits) for unit in _units(index, hit)]
    asked = list(dict.fromkeys(stem(word) for word in words(question)))
    asked = [one for one in asked if one not in _FUNCTION] or asked
    if not units or not asked:
        return []
    cover = _coverage(asked, units)
    counts = bool(_COUNTS & set(words(question)))
    before: dict[tuple[int, str], float] = {}
    for index, unit in enumerate(units):
        hit = hits[unit.hit]
        titles = (hit.scene.title, *hit.scene.headings)
        own = cover(_LINK.sub(" ", unit.text), *titles)  # "see [[X]]" points at X and says nothing of it
        beside = [other.text for other in units[max(0, index - 1) : index + 2] if other.hit == unit.hit and other.turn is unit.turn]
        around = cover(" ".join(beside), *titles)
        if unit.turn.role == "assistant":
            turns = hit.scene.turns
            at = next((i for i, turn in enumerate(turns) if turn is unit.turn), 0)
            if at and turns[at - 1].role == "user":
                key = (unit.hit, turns[at - 1].text)
                if key not in before:
                    before[key] = cover(turns[at - 1].text[:2000])
                around = max(around, 0.5 * before[key])
        if max(own, around) < least:
            unit.score = -1.0
            continue
        unit.score = 0.6 * own + 0.4 * around + 0.4 * hit.score + 0.05 / (1 + unit.place)
        unit.score += 0.15 if unit.text in _unmarked(hit.text) else 0.0
        unit.score += 0.15 if counts and any(char.isdigit() for char in unit.text) else 0.0
        unit.score += 0.1 if hit.scene.trust == "own" else 0.0  # the owner's notes before what somebody answered them
        unit.score -= 0.3 if len(words(unit.text)) < 4 else 0.0
    useful = [unit for unit in units if unit.score > 0]
    useful = [unit for unit in useful if not _asks(unit)] or useful
    useful.sort(key=lambda unit: -unit.score)
    return list(_checked(useful, hits, sources, most))


def _checked(units: Sequence[_Unit], hits: Sequence[Hit], sources: Sources, most: int) -> Iterator[Quote]:
    """The best that stand in their notes, none twice, none much worse than the first."""
    said: list[set[str]] = []
    best = 0.0
    for unit in units:
        own = set(words(unit.text))
        if len(said) >= most or unit.score < best / 2:
            return
        if any(len(own & other) >= 0.8 * min(len(own), len(other)) for other in said):
            continue
        hit = hits[unit.hit]
        quote = unit.text if len(unit.text) <= LONGEST else unit.text[:LONGEST].rsplit(None, 1)[0]
        lines = sources.find(hit.path, quote, hit.scene.source.lines, mended=hit.scene.trust == "imported")
        if lines is None:
            continue
        source = hit.scene.source
        if imports.is_stored(hit.path):
            link = render.talk_name(hit.scene.title, imports.provider_of(hit.path), hit.scene.at)
        else:
            link = render.link(hit.path, heading=source.heading, block=source.block)
        said.append(own)
        best = best or unit.score
        yield Quote(Citation(hit.path, lines, unit.turn.uid, quote, link), unit.hit)


def _asks(unit: _Unit) -> bool:
    """Whether it is a question of the user in a talk."""
    return unit.turn.role == "user" and unit.text.rstrip(" \"'»”)*_").endswith(("?", "？"))


def _units(index: int, hit: Hit) -> Iterator[_Unit]:
    """The quotable parts of a hit's scene; of an over-long one those of the passage that was found."""
    found = [_Unit(part, index, turn, place) for turn in hit.scene.turns for place, part in enumerate(_parts(turn.text))]
    if len(found) > _MOST_UNITS:
        inside = [unit for unit in found if unit.text in hit.text]
        found = (inside or found)[:_MOST_UNITS]
    yield from found


def _parts(text: str) -> Iterator[str]:
    """Sentences, list items and table rows as they stand; no code, headings, rules and comments."""
    prose: list[str] = []
    fence = ""
    for line in [*visible(text).split("\n"), ""]:
        mark = _FENCE.match(line)
        item = _ITEM.match(line)
        row = line.strip().startswith("|")
        if fence or mark or item or row or _NO_TEXT.match(line):
            yield from sentences("\n".join(prose))
            prose = []
        if fence:
            fence = "" if mark and mark[1].startswith(fence) else fence
        elif mark:
            fence = mark[1]
        elif item:
            prose = [line[item.end() :]]
        elif row and not _NO_TEXT.match(line):
            yield line.strip()
        elif not _NO_TEXT.match(line):
            prose.append(_unmarked(line))


def _unmarked(text: str) -> str:
    """Text without the quote marks at the beginning of its lines."""
    return _MARKS.sub("", text)


class _coverage:  # noqa: N801 - called like the function that it is
    """How much of what is asked a text speaks of: 0..1, rare words weigh more."""

    def __init__(self, asked: Sequence[str], units: Sequence[_Unit]) -> None:
        self.asked = asked
        vocabularies = [frozenset(words(unit.text)) for unit in units]
        df = Counter(one for vocabulary in vocabularies for one in {stem(word) for word in vocabulary})
        known = [math.log((len(units) + 1) / (df[one] + 0.5)) + 0.1 if df[one] else 0.0 for one in asked]
        # A word that stands nowhere weighs as much as the rarest that does: that it is missing says something, not all.
        self.weights = [weight or max(known) or 1.0 for weight in known]
        self.known: dict[str, list[float]] = {}

    def _matches(self, word: str) -> list[float]:
        """For each asked stem how well a word matches it."""
        if word not in self.known:
            own = stem(word)
            self.known[word] = [1.0 if own == one else _alike(own, one) for one in self.asked]
        return self.known[word]

    def __call__(self, text: str, *titles: str) -> float:
        found = [0.0] * len(self.asked)
        for said, share in ((text, 1.0), (" ".join(titles), 0.6)):
            for word in set(words(said)):
                found = [max(old, share * new) for old, new in zip(found, self._matches(word), strict=True)]
        return sum(weight * match for weight, match in zip(self.weights, found, strict=True)) / sum(self.weights)


def _alike(one: str, other: str) -> float:
    """0.7 for words that share most of their 4-grams (endings, typos), else 0."""
    if min(len(one), len(other)) < 3:
        return 0.0
    left, right = set(word_grams(one, 3)), set(word_grams(other, 3))
    return 0.7 if 2 * len(left & right) >= _ALIKE * (len(left) + len(right)) else 0.0
