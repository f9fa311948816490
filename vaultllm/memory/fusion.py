"""How much each leg of recall counts (`memory.words`, `memory.grams`, `memory.dense`), chosen on the vault's own held-out pairs.

Each pair's query is asked of the three legs once, in a copy of the vault (of a large one, a part) in which the passages that are
asked for do not hold the query: a heading is to be found by the text under it without that heading. The vault's own embedder has
seen both together and remembers it, so another is made of the copy, the same way. Then every point of a grid of weights orders
what the legs said, and is worth the nDCG@10 of the right passage, each kind of pair counting alike. Of the points within one
standard error of the best the one nearest to the default is chosen (the rule of Breiman et al. 1984), for each part of the notes by
the others; only if what they gain that way is surely above zero, the choice over all replaces the default. Keeping it is the
usual end.
Knows the ledger's passages and vectors; knows nothing about resonance, filters or which embedder made the vectors.
"""

from __future__ import annotations

import functools
import json
import math
import sqlite3
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from vaultllm import database
from vaultllm import text as texts
from vaultllm.config import MemorySettings
from vaultllm.memory import contrast, embed, expand, pairs
from vaultllm.memory.bags import bag
from vaultllm.memory.documents import Leg
from vaultllm.memory.words import Index
from vaultllm.schema import Progress, Report, silent

if TYPE_CHECKING:
    from vaultllm.ledger import Ledger
    from vaultllm.memory.embed import Embedder
    from vaultllm.memory.pairs import Pair

VERSION = 2  # of the way it is chosen: what another version chose is not used
MOST_PAIRS = 300  # that are asked
FEWEST_PAIRS, FEWEST_NOTES = 60, 20  # with fewer the default stays
MOST_PASSAGES = 4_000  # that are searched: a part of a larger vault, so that it takes seconds
# Pairs of a kind, from which on it counts as much as any other. So many must be no sentences cut from a passage: these share few
# words with the rest of it, and alone they choose vectors, whatever people ask.
FULL = 20
POOL = 200  # passages that each leg names
STEPS = 10  # of the grid, along each side
FOLDS = 5  # parts of the notes, each judged by what the others chose
SAMPLES = 2_000  # of the bootstrap
_READ = 4_000  # pairs that are read: those that are asked are drawn from them, the others are learnt from
_META = "fusion"  # in the ledger's meta table


class Weights(NamedTuple):
    """What the legs count, by the names of their settings; only their proportions matter."""

    words: float
    """Stems."""
    grams: float
    """Character 4-grams."""
    dense: float
    """Vectors."""


DEFAULT = Weights(*(float(MemorySettings.model_fields[name].default) for name in Weights._fields))
"""What the settings say when nobody sets them."""
OWN = DEFAULT._replace(dense=0.1)
"""The default beside the vault's own embedder, which knows no more than the vault: it adds little to the words."""


def default(spec: str) -> Weights:
    """What the legs count as long as nobody sets or chooses them: `spec` names the embedder (`memory.embedder`)."""
    return OWN if spec == "vault" else DEFAULT


@dataclass(frozen=True, slots=True)
class Choice:
    """What came of choosing."""

    fingerprint: str
    """Of the embedder whose vectors were the dense leg."""
    weights: Weights
    """What is used: the default, unless something else is surely better."""
    pairs: int
    """How many were asked."""
    notes: int
    """From how many notes they ask for something."""
    default: float | None = None
    """nDCG@10 of the default on them; None when there were too few pairs."""
    chosen: float | None = None
    """nDCG@10, on each part of the notes, of what the other parts chose."""
    low: float = 0.0
    """2.5 % of the resampled gains of `chosen` over `default` lie below."""
    high: float = 0.0
    """97.5 % lie below."""

    @property
    def is_learnt(self) -> bool:
        """Whether something else than the default is used."""
        return self.weights not in (DEFAULT, OWN)

    @property
    def reason(self) -> str:
        """Why the weights are what they are, in a sentence."""
        if self.default is None or self.chosen is None:
            few = f"{self.pairs} from {self.notes} notes (at least {FEWEST_PAIRS} from {FEWEST_NOTES}, {FULL} no cut sentences)"
            return f"the default: too few held-out pairs to choose by, {few}"
        gain = f"{self.chosen - self.default:+.3f} nDCG@10 ({self.low:+.3f} … {self.high:+.3f}) over the default"
        said = f"{gain} on {self.pairs} held-out pairs from {self.notes} notes"
        return f"chosen: {said}" if self.is_learnt else f"the default: others gain {said}, which is not surely more"

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Choice:
        """Of plain JSON types. Raises KeyError, TypeError or ValueError when it is something else, or of another version."""
        if data["version"] != VERSION:
            raise ValueError(f"weights of version {data['version']}")
        weights = Weights(*(float(data["weights"][name]) for name in Weights._fields))
        default, chosen = (None if data[name] is None else float(data[name]) for name in ("default", "chosen"))
        low, high = float(data["low"]), float(data["high"])
        if not all(math.isfinite(number) for number in (*weights, default, chosen, low, high) if number is not None) or min(weights) <= 0:
            raise ValueError("a weight is no number above 0")
        return Choice(str(data["fingerprint"]), weights, int(data["pairs"]), int(data["notes"]), default, chosen, low, high)

    def to_dict(self) -> dict[str, Any]:
        """The inverse of `from_dict`."""
        return {"version": VERSION, **asdict(self), "weights": self.weights._asdict()}


# -- used


def weights(ledger: Ledger, settings: MemorySettings, fingerprint: str, spec: str = "vault") -> Weights:
    """What each leg counts: the settings, as soon as the user has set one of the three; else what was chosen for this embedder.

    Where nothing was, its default.

    That a value was set is told by its standing in `config.toml` (`model_fields_set`), not by its differing from the default: who
    writes the default there wants it kept. `fingerprint`: of the live embedder, "" for none; `spec`: what it is.
    """
    if is_set(settings):
        return Weights(settings.words, settings.grams, settings.dense)
    choice = load(ledger, fingerprint)
    return default(spec) if choice is None else choice.weights


def is_set(settings: MemorySettings) -> bool:
    """Whether the user has set one of the three weights."""
    return not settings.model_fields_set.isdisjoint(Weights._fields)


def load(ledger: Ledger, fingerprint: str) -> Choice | None:
    """What was chosen for this embedder; None when nothing was, or what is stored makes no sense."""
    choice = _known(ledger.get(_META) or "")
    return choice if choice is not None and choice.fingerprint == fingerprint else None


@functools.lru_cache(maxsize=4)
def _known(stored: str) -> Choice | None:
    try:
        return Choice.from_dict(json.loads(stored))
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError):  # nothing yet, of another version, or not ours
        return None


def save(ledger: Ledger, choice: Choice) -> None:
    """Keep a choice in the ledger."""
    ledger.set(_META, json.dumps(choice.to_dict()))


def described(ledger: Ledger, fingerprint: str, settings: MemorySettings, spec: str = "vault") -> dict[str, Any]:
    """What the legs count, for `--json`: words, grams, dense, learnt; pairs, notes, default, chosen (nDCG@10), low, high; reason."""
    choice = load(ledger, fingerprint)
    if is_set(settings):
        reason = "as set in config.toml"
    else:
        reason = "the default: nothing was asked of this embedder yet" if choice is None else choice.reason
    said = choice or Choice(fingerprint, default(spec), 0, 0)
    return {
        **weights(ledger, settings, fingerprint, spec)._asdict(),
        "learnt": said.is_learnt,
        **{name: getattr(said, name) for name in ("pairs", "notes", "default", "chosen", "low", "high")},
        "reason": reason,
    }


# -- chosen


def fit(
    ledger: Ledger,
    embedder: Embedder,
    stored: str,
    settings: MemorySettings,
    *,
    made: str = "",
    most: int = MOST_PAIRS,
    progress: Report = silent,
) -> Choice:
    """Choose on the vault's own pairs, at most `most`; the default when they are too few or say nothing for sure. Writes nothing.

    `embedder`: the one whose vectors the ledger holds under the name `stored`. `made`: how, if it is the vault's own
    (`Verdict.kept`), "" for another's; one that learns from pairs is asked those of held-out notes only, any other all. Of `settings`
    k1 and b count. The same ledger gives the same choice. Raises what the embedder raises.
    """
    said = "choosing how words and vectors count"
    progress(Progress(said, 0.0))
    start = OWN if made else DEFAULT
    every = pairs.pairs(ledger, _READ)
    learnt, fair = pairs.split(every) if made in contrast.SIZES else ([], every)
    asked = _asked(fair, most)
    notes = len({pair.target_note for pair in asked})
    if len(asked) < FEWEST_PAIRS or notes < FEWEST_NOTES or sum(pair.kind != "sentence" for pair in asked) < FULL:
        return Choice(stored, start, len(asked), notes)
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as db:
        copy = _Copy.of(ledger, db, embedder, stored, settings, asked, made, learnt)
        found = _gained(copy, asked, grid(start), lambda share: progress(Progress(said, share)))
    return _judged(stored, asked, found, start)


def kind_of(pair: Pair) -> str:
    """The kind as which a pair counts here: a note's title is none of its headings."""
    return "title" if pair.kind == "heading" and len(pair.source) == 1 else pair.kind


def _asked(fair: Sequence[Pair], most: int) -> list[Pair]:
    """The pairs that are asked, of all kinds alike, as many as there are of each.

    A passage that is asked for without the query it holds is so for everybody: then it is asked for once, and by no other pair.
    """
    found: dict[str, list[Pair]] = defaultdict(list)
    taken: set[int] = set()
    for pair in sorted(fair, key=lambda pair: (not pair.hidden, texts.sha(pair.kind, pair.target_note, pair.query))):
        if pair.hidden or taken.isdisjoint(pair.slots):
            found[kind_of(pair)].append(pair)
            taken.update(pair.slots)
    chosen: list[Pair] = []
    for left, kind in zip(range(len(found), 0, -1), sorted(found, key=lambda one: (len(found[one]), one)), strict=True):
        chosen += found[kind][: (most - len(chosen)) // left]
    return chosen


_ONCE = (  # what is said twice would be found by its query in the other place
    "SELECT p.slot FROM passages p JOIN scenes s ON s.slot = p.scene WHERE s.slot NOT IN (SELECT scene FROM twins)"
    " AND s.slot IN (SELECT min(slot) FROM scenes GROUP BY sha) ORDER BY p.slot"
)


class _Copy(NamedTuple):
    """The vault as it is searched here: (n) passages, those that were cut from their queries without them."""

    slots: np.ndarray  # (n,) int64, rising
    places: dict[str, list[int]]  # path of a note -> which of them are its
    said: list[str]  # (n,) folded
    bm25: Index
    vectors: np.ndarray  # (n, d) unit rows, or zeros
    queries: np.ndarray  # (pairs, d)
    settings: MemorySettings

    @staticmethod
    def of(
        ledger: Ledger,
        db: sqlite3.Connection,
        embedder: Embedder,
        stored: str,
        settings: MemorySettings,
        asked: Sequence[Pair],
        made: str,
        learnt: Sequence[Pair],
    ) -> _Copy:
        """Copied, the words index into an empty database."""
        needed = {slot for pair in asked for slot in (*pair.slots, *pair.source)}
        every = [slot for (slot,) in ledger.db.execute(_ONCE)]
        chosen = sorted(needed.union(every[:: max(1, -(-len(every) // MOST_PASSAGES))]))
        held = ledger.texts(chosen)
        there = {slot for slot, _, _ in held}  # another may have written since the pairs were read
        instead = {pair.slots[0]: pair for pair in asked if not pair.hidden and pair.slots[0] in there}
        rows = [
            (slot, instead[slot].target, instead[slot].context) if slot in instead else (slot, text, context)
            for slot, text, context in held
        ]
        for migration in database.MIGRATIONS:
            db.executescript(migration)
        index = Index(db)
        index.add([(slot, bag(text, context)) for slot, text, context in rows])
        slots = np.array([slot for slot, _, _ in rows], np.int64)
        said = [f"{context}\n{text}" for _, text, context in rows]
        if made:
            asking = {slot for pair in asked if pair.hidden for slot in pair.source}
            embedder = embed.VaultEmbedder.fit(
                [text for slot, text in zip(slots.tolist(), said, strict=True) if slot not in asking], embedder.dims
            )
            for size in contrast.SIZES:
                if size == made:
                    embedder = contrast.learn(embedder, learnt, size)
            vectors = embedder.embed(said)
        else:
            vectors = np.zeros((len(slots), embedder.dims), np.float32)
            known, those = ledger.vectors(stored, slots.tolist())
            vectors[np.searchsorted(slots, known)] = those
            vectors[np.searchsorted(slots, list(instead))] = embedder.embed([pair.text for pair in instead.values()])
        queries = embedder.embed([pair.query for pair in asked], query=True)
        where = ledger.labels(slots.tolist())
        places: dict[str, list[int]] = defaultdict(list)
        for place, slot in enumerate(slots.tolist()):
            if slot in where:
                places[where[slot]["path"]].append(place)
        return _Copy(slots, places, [texts.fold(one) for one in said], index, vectors, queries, settings)

    def hidden(self, pair: Pair) -> np.ndarray:
        """(n,) bool: passages that hold the query by construction, and so are no rivals of the right one."""
        mine = np.isin(self.slots, pair.slots)
        out = np.isin(self.slots, pair.source)
        query = texts.fold(pair.query)
        for place in self.places.get(pair.note, ()):
            # A title stands in the context of its whole note. The note with a link is no answer to it, as in `bench links`.
            if pair.kind == "link" or (pair.kind == "heading" and query in self.said[place]):
                out[place] = True
        return out & ~mine

    def scores(self, number: int, pair: Pair, out: np.ndarray) -> np.ndarray:
        """(3, n): what each leg gives each passage for a pair's query, 0..1 as in recall; what is hidden gets nothing."""
        also = {variant.word: variant.weight for _, variants in expand.expand(pair.query, self.bm25) for variant in variants}
        found = np.zeros((3, len(self.slots)))
        for row, search in enumerate((self.bm25.stems, self.bm25.grams)):
            found[row] = self._relative(search(pair.query, self.settings.k1, self.settings.b, also), out)
        near = self.vectors @ self.queries[number]
        found[2] = self._relative(Leg(self.slots, near), out, np.asarray(found.any(axis=0)))
        return found

    def _relative(self, leg: Leg, out: np.ndarray, also: np.ndarray | None = None) -> np.ndarray:
        """(n,) the best `POOL` of a leg, and `also` (n,) bool, divided by the best one."""
        row = np.zeros(len(self.slots))
        row[np.searchsorted(self.slots, leg.slots)] = leg.scores
        row[out | (row < 0)] = 0.0
        if len(row) > POOL:
            kept = np.zeros(len(row), bool)
            kept[np.argsort(-row, kind="stable")[:POOL]] = True
            row[~(kept if also is None else kept | also)] = 0.0
        best = float(row.max())
        scaled: np.ndarray = row / best if best > 0 else row
        return scaled


def grid(first: Weights = DEFAULT) -> np.ndarray:
    """(points, 3) weights that sum to 1, the default first.

    No leg is left out: questions unlike the pairs may need it, and the verdict of `answerable` looks at cosines.
    """
    steps = range(1, STEPS)
    rest = [(words / STEPS, grams / STEPS, (STEPS - words - grams) / STEPS) for words in steps for grams in steps if words + grams < STEPS]
    whole = sum(first)
    return np.array([[one / whole for one in first], *rest])


def _gained(copy: _Copy, asked: Sequence[Pair], points: np.ndarray, told: Callable[[float], None]) -> np.ndarray:
    """(pairs, points) nDCG@10 of each pair's passage at each point of a grid."""
    found = np.zeros((len(asked), len(points)))
    for number, pair in enumerate(asked):
        out = copy.hidden(pair)
        totals = points @ copy.scores(number, pair, out)
        mine = np.isin(copy.slots, pair.slots)
        best = totals[:, mine].max(axis=1, initial=0.0)
        # Other passages of the same answer are no rivals; of equals the right one is taken to be the last.
        rank = 1 + (totals[:, ~mine] >= best[:, None] - 1e-12).sum(axis=1)
        found[number] = np.where((best > 0) & (rank <= 10), 1 / np.log2(rank + 1), 0.0)
        told((number + 1) / len(asked))
    return found


# -- judged


def _judged(stored: str, asked: Sequence[Pair], found: np.ndarray, start: Weights = DEFAULT) -> Choice:
    """The choice that these pairs (and their nDCG@10 at each point, (pairs, points)) make; `start`: the first point."""
    points = grid(start)
    notes = [pair.target_note for pair in asked]
    share = _shares(asked)
    ordered = sorted(set(notes), key=lambda path: texts.sha(path))
    unseen = np.zeros(len(asked))
    for fold in range(FOLDS):
        out = np.isin(notes, ordered[fold::FOLDS])
        point = _nearest([pair for pair, its in zip(asked, out, strict=True) if not its], found[~out], points)
        unseen[out] = found[out, point]
    gains = _resampled((unseen - found[:, 0])[:, None], share, notes)[:, 0]
    low, high = (float(one) for one in np.percentile(gains, [2.5, 97.5]))
    point = _nearest(asked, found, points) if low > 0 else 0
    weights = Weights(*points[point].tolist()) if point else start
    before, chosen = (float(share @ one) for one in (found[:, 0], unseen))
    return Choice(stored, weights, len(asked), len(ordered), before, chosen, low, high)


def _shares(asked: Sequence[Pair]) -> np.ndarray:
    """(pairs,) what each counts, 1 together: each kind alike, one of fewer than `FULL` pairs by their number."""
    kinds = [kind_of(pair) for pair in asked]
    share = np.array([min(1.0, kinds.count(kind) / FULL) / kinds.count(kind) for kind in kinds])
    weighed: np.ndarray = share / share.sum()
    return weighed


def _nearest(asked: Sequence[Pair], found: np.ndarray, points: np.ndarray) -> int:
    """The point nearest to the default of those that are worse than the best by less than one standard error of the difference."""
    share = _shares(asked)
    worth = share @ found
    best = int(worth.argmax())
    lost = _resampled(found[:, [best]] - found, share, [pair.target_note for pair in asked])
    able = np.flatnonzero(worth[best] - worth <= lost.std(axis=0))
    away = np.linalg.norm(points[able] - points[0], axis=1)
    return int(able[np.lexsort((-worth[able], away.round(9)))[0]])


def _resampled(rows: np.ndarray, share: np.ndarray, notes: Sequence[str]) -> np.ndarray:
    """(SAMPLES, columns) weighted means of `rows` (pairs, columns), whole notes drawn (Field & Welsh 2007)."""
    numbers = {note: number for number, note in enumerate(dict.fromkeys(notes))}
    of = np.zeros((len(numbers), len(notes)))
    of[[numbers[note] for note in notes], np.arange(len(notes))] = share
    drawn = np.random.default_rng(0).multinomial(len(numbers), np.full(len(numbers), 1 / len(numbers)), size=SAMPLES).astype(float)
    means: np.ndarray = (drawn @ (of @ rows)) / (drawn @ of.sum(axis=1))[:, None]
    return means
