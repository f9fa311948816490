"""How sure the memory is that the vault speaks of a question: 0..1, comparable from one question to the next.

The scores of a ranking are divided by the best one, so they say nothing of that. Here the best passages are looked at against the
whole vault: what share of the question's rare words they hold, what the vault has never heard of, how near the nearest vector is.
A logistic regression weighs these; it is fitted on the vault's own pairs and on simulated known-item questions
(Azzopardi, de Rijke & Balog 2007), each once with what it asks for and once with it left out. No weight may have the sign that
makes no sense (a question is never less answered for sharing a rare word), so that few and odd pairs do little harm.
Knows nothing about fusion, resonance, models or what is done with the verdict.
"""

from __future__ import annotations

import functools
import json
import math
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vaultllm import keywords
from vaultllm import text as texts
from vaultllm.memory import measures, pairs
from vaultllm.schema import Progress, Report, silent

if TYPE_CHECKING:
    from vaultllm.ledger import Ledger
    from vaultllm.memory.documents import Leg
    from vaultllm.memory.embed import Embedder
    from vaultllm.memory.pairs import Pair

VERSION = 1  # of the features: another version is fitted anew
LOOKED_AT = 10  # passages of a ranking
MOST_PAIRS = 150  # that are fitted on; each makes four to five questions
FEWEST_PAIRS = 40  # with fewer the fixed weights are kept
FALSE_ALARM = 0.05  # share of answerable questions of which it may be said that nothing speaks of them
_CLOSELY = 5  # passages whose 4-grams are looked at
_MOST_WORDS = 32  # of a question
_SATURATION = 1.2  # BM25's k1: how fast a word that is said again counts less
_RIDGE = 2.0  # for each example: the queries of pairs are not how people ask, so each feature weighs nearly as it does alone
_STEPS = 2_000
_META = "answerable"  # in the ledger's meta table

FEATURES = {"held": 1, "grams": 1, "unknown": -1, "cosine": 1}
"""What is looked at, and the sign that its weight may have.

`held`: the share of the question's words, weighed by rarity, that the best passage holds (BM25 without lengths, by what a passage
full of them would get). `grams`: the same by the 4-grams of each word, for slips and for languages without a stemmer.
`unknown`: the share of the words that the vault has nowhere. `cosine`: of the nearest passage. Tried and left out, since they told
natural questions apart no better or worse: the same in the scene around or in all passages together, the margin of the best cosine,
whether words and vectors agree, the sum of idf, the number of words.
"""


class Seen(NamedTuple):
    """A passage of a ranking, as it is looked at."""

    slot: int
    """Of the passage."""
    said: str
    """Its text and context."""
    cosine: float | None
    """With the question; None when no vector speaks."""


LEAST_AUROC = 0.7  # on held-out pairs, below which what was learnt says little


@dataclass(frozen=True, slots=True)
class Calibration:
    """What the features weigh, and from where on the vault is said to speak of a question."""

    fingerprint: str
    """Of the embedder whose cosines were weighed; "" when none was."""
    weights: Mapping[str, float]
    """By the names of `FEATURES`, on the features as they are."""
    bias: float
    """What is added."""
    threshold: float
    """Least confidence with which the vault speaks of a question."""
    pairs: int = 0
    """On how many it was fitted; 0: the fixed weights."""
    auroc: float | None = None
    """How well it tells apart what was held out; None without."""
    false_alarm: float = FALSE_ALARM
    """Share of held-out answerable questions below the threshold."""

    @property
    def is_measured(self) -> bool:
        """Whether it was learnt from the vault and tells apart what was held out: where all notes say alike, nothing can."""
        return self.pairs > 0 and (self.auroc or 0.0) >= LEAST_AUROC

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return {"version": VERSION, **{name: getattr(self, name) for name in self.__slots__}, "weights": dict(self.weights)}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Calibration:
        """The inverse of `to_dict`. Raises KeyError, TypeError or ValueError when it is something else, or of another version."""
        if data["version"] != VERSION:
            raise ValueError(f"a calibration of version {data['version']}")
        numbers = [float(data["bias"]), float(data["threshold"]), float(data["false_alarm"])]
        weights = {name: float(data["weights"][name]) for name in FEATURES}
        auroc = None if data["auroc"] is None else float(data["auroc"])
        if not all(map(math.isfinite, (*numbers, *weights.values()))):
            raise ValueError("a weight is not a number")
        return Calibration(str(data["fingerprint"]), weights, numbers[0], numbers[1], int(data["pairs"]), auroc, numbers[2])


# Without cosines: those of two embedders cannot be compared. Rounded means of what five vaults in three languages were fitted to.
DEFAULT = Calibration("", {"held": 2.8, "grams": 2.2, "unknown": -0.8, "cosine": 0.0}, -2.0, 0.24)
"""The fixed weights, for vaults of few pairs and until the first fit."""


# -- one question


def confidence(ledger: Ledger, calibration: Calibration, question: str, found: Sequence[Seen]) -> float:
    """How sure it is, 0..1, that the vault speaks of a question, from the first passages of its ranking, best first.

    0.0 when nothing was found; 1.0 when something was, and the question has no word (nothing but filters).
    """
    if not found:
        return 0.0
    words = _asked(question)
    if not words:
        return 1.0
    (count,) = ledger.db.execute("SELECT count(*) FROM documents").fetchone()
    holding = {stem: ledger.index.stem_df(stem) for stem in words}
    row = _features(words, holding, count, found[:LOOKED_AT])
    if calibration.fingerprint and all(one.cosine is None for one in found[:LOOKED_AT]):
        calibration = DEFAULT  # what was fitted counts on cosines
    return _squashed(calibration.bias + sum(calibration.weights[name] * value for name, value in zip(FEATURES, row, strict=True)))


def speaks(calibration: Calibration, sure: float) -> bool:
    """Whether the vault speaks of a question, by its confidence."""
    return sure >= calibration.threshold


def load(ledger: Ledger, fingerprint: str) -> Calibration:
    """What was fitted for this embedder ("" for none); the fixed weights when nothing was."""
    return _known(ledger.get(_META) or "", fingerprint)


@functools.lru_cache(maxsize=4)
def _known(stored: str, fingerprint: str) -> Calibration:
    try:
        calibration = Calibration.from_dict(json.loads(stored))
    except (ValueError, TypeError, KeyError):  # nothing yet, of another version, or not ours
        return DEFAULT
    return calibration if calibration.fingerprint == fingerprint else DEFAULT


def _asked(question: str) -> dict[str, str]:
    """Stem -> word of what a question asks for; all of its words when they say little each."""
    words = list(dict.fromkeys(texts.words(question)))
    kept = [word for word in words if not keywords.is_common(word)] or words
    stems: dict[str, str] = {}
    for word in kept:
        stems.setdefault(texts.stem(word), word)
    return dict(list(stems.items())[:_MOST_WORDS])


def _features(words: Mapping[str, str], holding: Mapping[str, int], count: int, found: Sequence[Seen]) -> list[float]:
    """The features, in the order of `FEATURES`, of asked words that so many of `count` passages hold, and the passages found."""
    idf = {stem: math.log1p(max(0.5, count - holding[stem] + 0.5) / (holding[stem] + 0.5)) for stem in words}
    whole = sum(idf.values())
    grams = {stem: frozenset(texts.word_grams(word)) for stem, word in words.items()}
    held = alike = 0.0
    for rank, one in enumerate(found):
        said = Counter(texts.words(one.said))
        stems: Counter[str] = Counter()
        for word, times in said.items():
            stems[texts.stem(word)] += times
        held = max(held, sum(idf[stem] * stems[stem] / (stems[stem] + _SATURATION) for stem in words if stem in stems))
        if rank < _CLOSELY:
            every = frozenset(gram for word in said for gram in texts.word_grams(word))
            alike = max(alike, sum(idf[stem] * len(own & every) / len(own) for stem, own in grams.items()))
    unknown = sum(idf[stem] for stem in words if not holding[stem])
    nearest = max((one.cosine for one in found if one.cosine is not None), default=0.0)
    return [held / whole, alike / whole, unknown / whole, nearest]


def _squashed(value: float) -> float:
    return 1 / (1 + math.exp(-max(-50.0, min(50.0, value))))


# -- the fit


class _Example(NamedTuple):
    """A question and whether what was searched speaks of it."""

    question: str
    spoken: bool
    hidden: frozenset[int]  # slots that are left out of what is searched
    instead: tuple[int, str] | None  # a passage that is searched as if it said only this
    target: frozenset[int]  # for a pair's own query: slots one of which must be found, else it is no example
    held_out: bool


def fit(ledger: Ledger, embedder: Embedder | None, stored: str = "", *, most: int = MOST_PAIRS, progress: Report = silent) -> Calibration:
    """Fit on the vault's own pairs; `DEFAULT` when there are fewer than `FEWEST_PAIRS`. Writes nothing.

    A pair's query speaks for yes where recall, its own source left out, finds the target; so do words drawn from the target.
    For no: these words with the target's whole note left out, and questions whose words are each another note's. The threshold is set
    on notes that were held out. `embedder`: the one whose vectors the ledger holds; `stored`: under which fingerprint, when it is not its
    own. The same ledger gives the same calibration.
    """
    progress(Progress("learning what the vault does not speak of", 0.0))
    chosen = _chosen(ledger, most)
    if len(chosen) < FEWEST_PAIRS:
        return DEFAULT
    rows, spoken, judged = [], [], []
    examples = list(_examples(ledger, chosen))
    stored = "" if embedder is None else stored or embedder.fingerprint
    for number, (example, row) in enumerate(_measured(ledger, embedder, stored, examples), 1):
        if row is not None:
            rows.append(row)
            spoken.append(example.spoken)
            judged.append(example.held_out)
        progress(Progress("learning what the vault does not speak of", number / len(examples)))
    features, right, out = np.array(rows), np.array(spoken), np.array(judged)
    if min(int(right[~out].sum()), int((~right[~out]).sum())) < FEWEST_PAIRS // 2:
        return DEFAULT
    signs = np.array(list(FEATURES.values()), float)
    if embedder is None:
        features[:, list(FEATURES).index("cosine")] = 0.0
    weights, _ = regress(features[~out], right[~out], signs, _RIDGE * int((~out).sum()))
    if min(int(right[out].sum()), int((~right[out]).sum())) < FEWEST_PAIRS // 2:  # too few notes were held out to judge by
        out = np.ones_like(out)
    scores = features @ weights
    # The ridge has made all weights small: what a score is worth as a chance is asked of the others (Platt 1999).
    (scale,), bias = regress(scores[out, None], right[out], np.ones(1), 1.0)
    weights = scale * weights
    sure = 1 / (1 + np.exp(-(scale * scores + bias)))
    threshold = float(np.quantile(sure[out & right], FALSE_ALARM))
    return Calibration(
        fingerprint=stored,
        weights=dict(zip(FEATURES, weights.tolist(), strict=True)),
        bias=bias,
        threshold=threshold,
        pairs=len(chosen),
        auroc=measures.auroc(sure[out & right].tolist(), sure[out & ~right].tolist()),
    )


def save(ledger: Ledger, calibration: Calibration) -> None:
    """Keep a calibration in the ledger; the fixed one leaves no entry."""
    ledger.set(_META, json.dumps(calibration.to_dict()) if calibration.pairs else "")


def regress(features: np.ndarray, right: np.ndarray, signs: np.ndarray, ridge: float) -> tuple[np.ndarray, float]:
    """Weights (d,) and bias of a logistic regression with L2 on standardised features (n, d); both answers (n,) bool count alike.

    `signs` (d,): a weight of the other sign is 0. Projected accelerated gradient (Beck & Teboulle 2009); no chance in it.
    """
    mean, spread = features.mean(axis=0), features.std(axis=0)
    spread[spread < 1e-9] = np.inf  # what never changes tells nothing
    rows = np.hstack([(features - mean) / spread, np.ones((len(features), 1))])
    share = np.where(right, 0.5 / max(1, int(right.sum())), 0.5 / max(1, int((~right).sum()))) * len(right)
    decay = np.append(np.full(features.shape[1], ridge), 0.0)
    free = np.append(signs, 0.0)
    step = 1.0 / (np.linalg.norm(rows * np.sqrt(share)[:, None], 2) ** 2 / 4 + ridge)
    weights = ahead = np.zeros(rows.shape[1])
    pace = 1.0
    for _ in range(_STEPS):
        slope = rows.T @ (share * (1 / (1 + np.exp(-np.clip(rows @ ahead, -50, 50))) - right)) + decay * ahead
        moved = ahead - step * slope
        moved[moved * free < 0] = 0.0
        faster = (1 + math.sqrt(1 + 4 * pace * pace)) / 2
        ahead = moved + (pace - 1) / faster * (moved - weights)
        settled = np.abs(moved - weights).max() < 1e-9
        weights, pace = moved, faster
        if settled:
            break
    plain = weights[:-1] / spread
    return plain, float(weights[-1] - plain @ mean)


def _chosen(ledger: Ledger, most: int) -> list[Pair]:
    """Pairs of all kinds alike, as many as there are of each."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs.pairs(ledger, 2 * most):
        found.setdefault(pair.kind, []).append(pair)
    chosen: list[Pair] = []
    for left, kind in zip(range(len(found), 0, -1), sorted(found, key=lambda one: len(found[one])), strict=True):
        share = (most - len(chosen)) // left
        every = max(1.0, len(found[kind]) / share) if share else math.inf
        chosen += [found[kind][int(place * every)] for place in range(min(share, len(found[kind])))]
    return chosen


def _examples(ledger: Ledger, chosen: Sequence[Pair]) -> Iterator[_Example]:
    """The questions that pairs make."""
    notes: dict[str, frozenset[int]] = {}
    for path in {path for pair in chosen for path in (pair.note, pair.target_note)}:
        query = "SELECT p.slot FROM passages p JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note WHERE n.path = ?"
        notes[path] = frozenset(slot for (slot,) in ledger.db.execute(query, (path,)))
    others = [(pair.target_note, word) for pair in chosen for word in _asked(f"{pair.query} {pair.target[:200]}").values()]
    draw = np.random.default_rng(0)

    def borrowed(count: int, note: str) -> list[str]:
        """Words of other notes, one by one, so that they hardly stand together anywhere."""
        drawn = [others[place] for place in draw.integers(len(others), size=4 * count)]
        return [word for where, word in drawn if where != note][:count]

    for pair in chosen:
        out = pairs.held_out(pair)
        own = frozenset(pair.source)
        instead = None if pair.hidden else (pair.slots[0], pair.text)
        gone = own - frozenset(pair.slots) if instead else own
        yield _Example(pair.query, True, gone, instead, frozenset(pair.slots), out)
        if swapped := borrowed(len(_asked(pair.query)), pair.note):
            yield _Example(" ".join([*_common(pair.query, draw), *swapped]), False, frozenset(), None, frozenset(), out)
        words = _drawn(pair.target, draw)
        if len(words) > 1:
            noise = borrowed(int(draw.integers(3)), pair.target_note)  # people say it in words of their own, too
            known = " ".join([*_common(pair.target, draw), *words, *noise])
            yield _Example(known, True, frozenset(), None, frozenset(), out)
            yield _Example(known, False, notes[pair.note] | notes[pair.target_note], None, frozenset(), out)


def _drawn(target: str, draw: np.random.Generator) -> list[str]:
    """Two to five words of two sentences that stand together."""
    sentences = texts.sentences(target)
    if not sentences:
        return []
    at = int(draw.integers(len(sentences)))
    words = list(_asked(" ".join(sentences[at : at + 2])).values())
    count = min(len(words), int(draw.integers(2, 6)))
    return [words[place] for place in sorted(draw.choice(len(words), count, replace=False))] if words else []


def _common(said: str, draw: np.random.Generator) -> list[str]:
    """Up to four words of a text that say little: a question has such, and its vector is drawn aside by them."""
    words = [word for word in texts.words(said) if keywords.is_common(word)]
    return [words[place] for place in draw.integers(len(words), size=int(draw.integers(1, 5)))] if words else []


def _measured(
    ledger: Ledger, embedder: Embedder | None, stored: str, examples: Sequence[_Example]
) -> Iterator[tuple[_Example, list[float] | None]]:
    """Each example with its features; None where it is none."""
    (count,) = ledger.db.execute("SELECT count(*) FROM documents").fetchone()
    holders = functools.lru_cache(maxsize=10_000)(lambda word: ledger.index.stems(word).slots)
    asked = said = None
    if embedder is not None:
        asked = embedder.embed([one.question for one in examples], query=True)
        said = embedder.embed([one.instead[1] if one.instead else "" for one in examples])
    for number, one in enumerate(examples):
        words = _asked(one.question)
        if not words:
            yield one, None
            continue
        legs = [ledger.index.stems(one.question)]
        if embedder is not None and asked is not None and said is not None:
            near = ledger.scan.cosines(stored, asked[number])
            if one.instead:
                near.scores[near.slots == one.instead[0]] = float(asked[number] @ said[number])
            legs.append(near)
        found = _best(legs, one.hidden)
        if one.target and not one.target & set(found):  # recall does not see it: then it cannot be told from what is not there
            yield one, None
            continue
        out = np.array(sorted(one.hidden | ({one.instead[0]} if one.instead else set())), np.int64)
        holding = {stem: int((~np.isin(holders(word), out)).sum()) for stem, word in words.items()}
        if one.instead:
            for stem in set(texts.stems(one.instead[1])) & set(words):
                holding[stem] += 1
        passages = {slot: f"{context}\n{text}" for slot, text, context in ledger.texts(found)}
        if one.instead:
            passages[one.instead[0]] = one.instead[1]
        cosines: dict[int, float] = {}
        if len(legs) > 1:
            there = np.isin(legs[1].slots, found)
            cosines = dict(zip(legs[1].slots[there].tolist(), legs[1].scores[there].tolist(), strict=True))
        seen = [Seen(slot, passages[slot], cosines.get(slot)) for slot in found if slot in passages]
        yield one, _features(words, holding, max(1, count - len(one.hidden)), seen)


def _best(legs: Sequence[Leg], hidden: Collection[int]) -> list[int]:
    """The first passages of a ranking by words and cosines; what is hidden is not there."""
    totals: dict[int, float] = {}
    for leg in legs:
        most = 10 * LOOKED_AT + len(hidden)
        high = np.argpartition(-leg.scores, most)[:most] if len(leg.scores) > most else np.arange(len(leg.scores))
        found = zip(leg.slots[high].tolist(), leg.scores[high].tolist(), strict=True)
        there = {slot: score for slot, score in found if slot not in hidden and score > 0}
        best = max(there.values(), default=1.0)
        for slot, score in there.items():
            totals[slot] = totals.get(slot, 0.0) + score / best
    return sorted(totals, key=lambda slot: (-totals[slot], slot))[:LOOKED_AT]
