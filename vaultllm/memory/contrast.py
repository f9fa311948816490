"""Makes the vault's own embedder better with pairs from the vault's structure, and keeps that only when it is seen to help.

The table of the LSA (features x dims) is the start; a small contrastive model goes on from there: of a batch of pairs each
query is to find its own text among all texts of the batch, and each text its query (InfoNCE: van den Oord et al. 2018;
symmetric with in-batch negatives: Radford et al. 2021). Batches go note by note, so that many of the negatives are other
passages of the very same note. Two sizes are tried: one weight per feature (few pairs are enough), and weights and the
whole table. Row-wise Adagrad (Duchi et al. 2011): rare features take large steps, and nothing is touched that is not there.
Knows nothing of how pairs were found or of what else recall does. The outcome is an ordinary table: embedding costs the same.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vaultllm.memory import measures, pairs
from vaultllm.memory.pairs import Pair
from vaultllm.schema import Progress, Report, silent

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from vaultllm.memory.embed import VaultEmbedder

Size = Literal["weights", "table"]
SIZES: tuple[Size, ...] = ("weights", "table")

FEWEST_LEARNT, FEWEST_JUDGED = 50, 20  # pairs; with fewer the LSA stays as it is
MOST_PAIRS = 30_000  # learnt from in one pass; more are thinned evenly
POOL = 5_000  # texts among which a held-out query must find its own
_KIND_COUNTS = 10  # a kind with fewer held-out pairs has no say
EPOCHS, BATCH, TEMPERATURE = 4, 1_024, 0.03
_PHASE = "learning from the vault's own headings, questions and links"
_WEIGHT_RATE, _TABLE_RATE = 0.3, 1.0  # the latter in units of the table's root mean square


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was learnt, and what the held-out pairs said of it: stored beside the table."""

    kept: Literal["lsa", "weights", "table"]
    """What the embedder is."""
    reason: str
    """Why, in a sentence."""
    learnt: int = 0
    """Pairs whose notes were learnt from while it was judged."""
    judged: int = 0
    """Held-out pairs, one for each passage; the LSA beside it was fitted with their targets, not with their queries."""
    mrr: dict[str, float] | None = None
    """Mean reciprocal rank of `lsa`, `weights`, `table`: the mean over the kinds of pairs."""
    recall: dict[str, float] | None = None
    """Recall@1, as `mrr`."""
    by_kind: dict[str, dict[str, float]] | None = None
    """Kind -> pairs, and mean reciprocal rank of each."""
    gain: dict[str, list[float]] | None = None
    """Size -> gain in `mrr` over the LSA, and its 95 % interval (paired bootstrap over notes)."""
    seconds: float = 0.0
    """Processor time of fitting, learning and judging."""

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON types."""
        return asdict(self)


def improve(
    fit: Callable[[Sequence[str]], VaultEmbedder],
    passages: Sequence[str],
    notes: Sequence[str],
    found: Sequence[Pair],
    progress: Report = silent,
) -> VaultEmbedder:
    """The vault's embedder, learnt from `found` where held-out pairs say that this helps, else as it is fitted; `.verdict` says which.

    `fit` makes an embedder of passages; `notes` names each passage's note. In the trial nothing is learnt of the held-out notes,
    and their queries are not in the fit; what won it is then learnt anew from everything. The same input gives the same
    embedder. Raises ValueError when `notes` does not go with `passages`.
    """
    if len(notes) != len(passages):
        raise ValueError(f"{len(passages)} passages and {len(notes)} notes")
    started = time.process_time()
    learnt, judged = pairs.split(found)
    judged = _one_by_passage(judged)
    judged = judged[:: -(-len(judged) // POOL)] if judged else judged
    if len(learnt) < FEWEST_LEARNT or len(judged) < FEWEST_JUDGED:
        reason = (
            f"too few pairs to learn from: {len(learnt)} (at least {FEWEST_LEARNT}) and {len(judged)} held out (at least {FEWEST_JUDGED})"
        )
        return fit(passages).saying(Verdict("lsa", reason, len(learnt), len(judged)))
    pool = list(dict.fromkeys(pair.text for pair in (*judged, *learnt)))[:POOL]
    # As it is in use: the embedder has seen what is to be found, and not the question.
    own = [passage for passage, note in zip(passages, notes, strict=True) if not pairs.is_held_out(note)]
    base = fit([*own, *dict.fromkeys(pair.text for pair in judged)])
    ranks = {"lsa": ranking(base, judged, pool, found)}
    for number, size in enumerate(SIZES):
        progress(Progress(_PHASE, 0.3 + 0.2 * number))
        ranks[size] = ranking(learn(base, learnt, size), judged, pool, found)
    verdict = replace(_verdict(judged, ranks), learnt=len(learnt), judged=len(judged))
    progress(Progress(_PHASE, 0.7))
    final = fit(passages)
    if verdict.kept != "lsa":
        final = learn(final, found, verdict.kept)
    return final.saying(replace(verdict, seconds=round(time.process_time() - started, 2)))


def _one_by_passage(judged: Sequence[Pair]) -> list[Pair]:
    """Of pairs whose different targets stand in one passage the first, rare kinds before frequent ones.

    A section under a heading may hold the very sentence that another pair asks with: seen together in the fit they would
    know each other.
    """
    said: dict[int, str] = {}
    kept = []
    for pair in sorted(judged, key=lambda pair: ("question", "link", "heading", "sentence").index(pair.kind)):
        if all(said.get(slot, pair.text) == pair.text for slot in pair.slots):
            said.update(dict.fromkeys(pair.slots, pair.text))
            kept.append(pair)
    return kept


def _verdict(judged: Sequence[Pair], ranks: dict[str, np.ndarray]) -> Verdict:
    """Which to keep: the better of those whose gain is above 0 with its whole interval (two of them: 2.5 % each is 5 % for both)."""
    kinds = np.array([pair.kind for pair in judged])
    counted = [kind for kind in pairs.KINDS if np.sum(kinds == kind) >= _KIND_COUNTS]
    if not counted:
        return Verdict("lsa", f"no kind of pairs has {_KIND_COUNTS} that are held out")
    share = np.zeros(len(judged))  # each kind weighs the same, however many pairs it has
    for kind in counted:
        share[kinds == kind] = len(judged) / len(counted) / np.sum(kinds == kind)
    mrr = {name: float(np.mean(share / rank)) for name, rank in ranks.items()}
    recall = {name: float(np.mean(share * (rank == 1))) for name, rank in ranks.items()}
    by_kind = {
        str(kind): {"pairs": int(np.sum(kinds == kind)), **{name: _round(np.mean(1 / rank[kinds == kind])) for name, rank in ranks.items()}}
        for kind in pairs.KINDS
        if kind in kinds
    }
    notes = [pair.note for pair in judged]
    gain: dict[str, list[float]] = {}
    kept: Literal["lsa", "weights", "table"] = "lsa"
    for size in SIZES:
        told = measures.paired_bootstrap(list(share / ranks["lsa"]), list(share / ranks[size]), notes)
        gain[size] = [_round(told.mean), _round(told.low), _round(told.high)]
        if told.low > 0 and mrr[size] > mrr[kept]:
            kept = size
    best = max(SIZES, key=lambda size: mrr[size])
    said = f"mean reciprocal rank on held-out pairs {mrr['lsa']:.3f} with LSA, {mrr[best]:.3f} with learnt {best}"
    why = said if kept == best else f"{said}: not surely better" if kept == "lsa" else f"{said}, but only {kept} are surely better"
    return Verdict(kept, why, mrr=_rounded(mrr), recall=_rounded(recall), by_kind=by_kind, gain=gain)


def _round(value: Any) -> float:
    return round(float(value), 4)


def _rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: _round(value) for name, value in values.items()}


# -- learning


def learn(embedder: VaultEmbedder, found: Sequence[Pair], size: Size) -> VaultEmbedder:
    """The embedder with weights per feature learnt, or weights and table. Deterministic."""
    found = found[:: -(-len(found) // MOST_PAIRS)] if found else found
    generator = np.random.default_rng(0)
    queries, targets = embedder.weighted([pair.query for pair in found]), embedder.weighted([pair.text for pair in found])
    asked, held = _incidence(found)
    table = embedder.table.copy()
    rate = _TABLE_RATE * float(np.sqrt(np.mean(table**2))) if size == "table" and table.size else 0.0
    row_sums, weight_sums = np.full(len(table), 1e-20, np.float32), np.full(len(table), 1e-20, np.float32)
    batches = [batch for _ in range(EPOCHS) for batch in _batches(found, generator)]
    for number, batch in enumerate(batches):
        columns, compact = _columns(queries[batch], targets[batch])
        rows = table[columns]
        apart = (asked[batch] @ held[batch].T).toarray() > 0
        gradient = _gradient(compact, rows, apart)
        slow = 1.0 - number / len(batches)
        along = np.einsum("fd,fd->f", gradient, rows)  # the gradient of the logarithm of each row's length
        weight_sums[columns] += along**2
        by = np.exp(np.clip(-_WEIGHT_RATE * slow * along / np.sqrt(weight_sums[columns]), -0.5, 0.5))
        if rate:
            row_sums[columns] += np.mean(gradient**2, axis=1)
            rows -= rate * slow * gradient / np.sqrt(row_sums[columns])[:, None]
        table[columns] = rows * by[:, None]
    return embedder.with_table(table)


def _batches(found: Sequence[Pair], generator: np.random.Generator) -> list[np.ndarray]:
    """All pairs once, in batches: the notes shuffled, the pairs of a note together; a last pair alone teaches nothing and is left out."""
    by_note: dict[str, list[int]] = defaultdict(list)
    for number, pair in enumerate(found):
        by_note[pair.target_note].append(number)
    notes = list(by_note.values())
    order = np.array([number for place in generator.permutation(len(notes)) for number in notes[place]])
    return [order[start : start + BATCH] for start in range(0, len(order), BATCH) if len(order) - start > 1]


def _incidence(found: Sequence[Pair]) -> tuple[csr_matrix, csr_matrix]:
    """(pairs, slots) twice: where a pair's query or target stands; where its target stands. What meets is no negative."""
    from scipy.sparse import csr_matrix

    known = {slot: place for place, slot in enumerate(dict.fromkeys(slot for pair in found for slot in (*pair.slots, *pair.source)))}

    def matrix(rows: list[set[int]]) -> csr_matrix:
        columns = [known[slot] for row in rows for slot in sorted(row)]
        ends = np.cumsum([0, *map(len, rows)])
        return csr_matrix((np.ones(len(columns), np.float32), columns, ends), shape=(len(rows), len(known)))

    return matrix([{*pair.slots, *pair.source} for pair in found]), matrix([set(pair.slots) for pair in found])


def _columns(queries: csr_matrix, targets: csr_matrix) -> tuple[np.ndarray, csr_matrix]:
    """The features of a batch, and its rows (queries, then targets) over these alone."""
    from scipy.sparse import csr_matrix

    indices = np.concatenate([queries.indices, targets.indices])
    columns, places = np.unique(indices, return_inverse=True)
    ends = np.concatenate([queries.indptr, targets.indptr[1:] + queries.indptr[-1]])
    values = np.concatenate([queries.data, targets.data])
    return columns, csr_matrix((values, places, ends), shape=(len(ends) - 1, len(columns)))


def _gradient(texts: csr_matrix, rows: np.ndarray, apart: np.ndarray) -> np.ndarray:
    """Of the symmetric InfoNCE of a batch by the rows of the table: (features, dims).

    `texts` (2n, features): n queries, then their targets. `apart` (n, n): no negatives; the diagonal is the pairs themselves.
    """
    n = len(apart)
    vectors = texts @ rows
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-6)
    units = vectors / norms
    scores = units[:n] @ units[n:].T / TEMPERATURE
    own = np.arange(n)
    kept = scores[own, own].copy()
    scores[apart] = -1e4
    scores[own, own] = kept
    pull = _softmax(scores, 1) + _softmax(scores, 0)
    pull[own, own] -= 2.0
    pull /= 2.0 * n * TEMPERATURE
    towards = np.concatenate([pull @ units[n:], pull.T @ units[:n]])
    towards -= units * np.sum(units * towards, axis=1, keepdims=True)  # a unit vector can only turn
    gradient: np.ndarray = texts.T @ (towards / norms)
    return gradient


def _softmax(scores: np.ndarray, axis: int) -> np.ndarray:
    shares: np.ndarray = np.exp(scores - scores.max(axis=axis, keepdims=True))
    shares /= shares.sum(axis=axis, keepdims=True)
    return shares


# -- judging


def ranking(embedder: VaultEmbedder, judged: Sequence[Pair], pool: Sequence[str], found: Sequence[Pair]) -> np.ndarray:
    """The rank (from 1) of each pair's target among the texts of `pool`, which hold it; of equals it is the last.

    Texts of the passages in which a pair's query or target stands are no rivals: `found` (all pairs) says which those are.
    """
    place = {text: number for number, text in enumerate(pool)}
    standing: dict[int, set[int]] = defaultdict(set)  # slot -> texts of the pool that stand there
    for pair in found:
        if pair.text in place:
            for slot in pair.slots:
                standing[slot].add(place[pair.text])
    texts = embedder.embed(pool)
    ranks = np.ones(len(judged))
    for start in range(0, len(judged), 500):
        part = judged[start : start + 500]
        scores = embedder.embed([pair.query for pair in part], query=True) @ texts.T
        for row, pair in enumerate(part):
            own = place[pair.text]
            score = scores[row, own]
            rivals = {text for slot in (*pair.slots, *pair.source) for text in standing[slot]}
            scores[row, list({own, *rivals})] = -np.inf
            ranks[start + row] = 1 + np.sum(scores[row] >= score)
    return ranks
