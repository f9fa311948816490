"""What the vectors of the memory hold, and what recall costs when they are made smaller.

How many directions they use (effective rank: Roy, Vetterli 2007; participation ratio), how fast their variance is explained,
and, for vectors cut to 1/2, 1/4 and 1/8 of their dimensions (principal components) and rounded to int8, how many questions
still find their passage and how many neighbours stay. The questions are the vault's own (`pairs.py`): a sentence for the rest
of its passage, a heading for its text, a question for its answer, a link for its note. Of all four kinds, because sentences
alone are found by their very words, and would call a step better that loses the sense. They judge vectors, not recall as a whole.
Knows nothing about how an embedder is opened, nor who applies what it recommends (`memory.dims`, `memory.precision`).
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from vaultllm import files
from vaultllm.errors import DataError, UsageError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.memory import layout, measures, pairs
from vaultllm.schema import Progress, Report, silent

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from vaultllm.memory.embed import Embedder

Precision = Literal["float32", "int8"]

SAMPLE = 20_000  # passages of a larger vault whose vectors are looked at
QUERIES = 1_000
LOSS = 1.0  # points of recall that a recommended cut may lose
FEW = 50  # fewer questions decide nothing
PICTURES = (".png", ".svg", ".pdf")
_NEIGHBOURS = 10
_SHARES = (1, 2, 4, 8)
_LEAST_DIMS = 8  # what `memory.dims` accepts
_EQUAL = 1e-6  # of dot products: what float32 rounding makes of equal vectors
_ROWS = 250  # of a matrix of scores in memory at once


@dataclass(frozen=True, slots=True)
class _Questions:
    """What is asked, and the vectors among which it is looked for."""

    vectors: np.ndarray
    """(n, dims) unit rows: the sampled passages."""
    queries: np.ndarray
    """(q, dims) unit rows."""
    targets: np.ndarray
    """(q, dims) unit rows: what each question asks for, without the question itself."""
    aside: list[list[int]]
    """For each question the rows of `vectors` that do not compete: those of its target and those that hold the question."""
    kinds: list[str]
    """The kind of each question."""
    notes: list[str]
    """The note of each question."""
    held_out: bool
    """Whether they come from notes that no embedder learns pairs from."""


def fingerprint_of(ledger: Ledger) -> str:
    """The embedder whose vectors answer now: the one the ledger names, else the one of most vectors; "" when there are none."""
    try:
        about = json.loads(ledger.get("embedder") or "null")
    except ValueError:
        about = None
    named = about.get("fingerprint") if isinstance(about, dict) else None
    if named and ledger.db.execute("SELECT 1 FROM vectors WHERE embedder = ? LIMIT 1", (named,)).fetchone():
        return str(named)
    row = ledger.db.execute("SELECT embedder FROM vectors GROUP BY embedder ORDER BY count(*) DESC, embedder LIMIT 1").fetchone()
    return "" if row is None else str(row[0])


def report(ledger: Ledger, embedder: Embedder, *, seed: int = 0, progress: Report = silent) -> dict[str, Any]:
    """What the vectors of this embedder hold, and the price of smaller ones; a plain dict, ready for JSON.

    embedder, dims, vectors (all), sampled, empty (of the sample: zero vectors), questions, kinds (how many of each), held_out
    (whether they are of notes that pairs are not learnt from);
    spectrum: effective_rank, participation_ratio, dims_90, dims_95, dims_99, explained (cumulative share of the variance, per dimension);
    cuts: one per dims and precision, the first unchanged: dims, precision, bytes (all vectors), saved (bytes), recall@1, recall@10,
    mrr (None without questions), by_kind (recall@10), overlap@10 (neighbours that stay), lost@1 and lost@10 (points, low, high: 95 %);
    recommended: dims and precision of the smallest cut that loses less than a point at 1 and at 10, None when there are too few questions.
    Raises DataError when there are fewer than ten vectors that say anything.
    """
    progress(Progress("reading the vectors", 0.0))
    slots = ledger.with_vector(embedder.fingerprint)
    known, vectors = ledger.vectors(embedder.fingerprint, slots[:: -(-len(slots) // SAMPLE) or 1])
    says = vectors.any(axis=1) if known else np.zeros(0, dtype=bool)
    if says.sum() < 10:
        raise DataError(f"there are {int(says.sum())} vectors to look at, and ten are the least; write more, then run: vaultllm ingest")
    rows = np.flatnonzero(says)
    kept = vectors[rows]
    asked = _questions(ledger, embedder, [known[row] for row in rows], kept, seed, progress)
    cuts = _cuts(asked, len(slots), progress)
    return {
        "embedder": embedder.fingerprint,
        "dims": int(kept.shape[1]),
        "vectors": len(slots),
        "sampled": len(known),
        "empty": len(known) - len(rows),
        "questions": len(asked.kinds),
        "kinds": dict(Counter(asked.kinds)),
        "held_out": asked.held_out,
        "spectrum": spectrum(kept),
        "cuts": cuts,
        "recommended": _recommended(cuts, len(asked.kinds)),
    }


def spectrum(vectors: np.ndarray) -> dict[str, Any]:
    """How many directions vectors (n, dims) use around their mean.

    effective_rank: exp of the entropy of the singular values' shares; participation_ratio: (sum of variances)^2 / sum of their
    squares; both 1 when all lie on a line, dims when every direction counts alike. dims_90, …: principal components that
    explain so much of the variance; explained: the cumulative share. Vectors that are all the same use no direction: rank 0.
    """
    centred = (vectors - vectors.mean(axis=0)).astype(np.float64)
    variances = np.clip(np.linalg.eigvalsh(centred.T @ centred)[::-1], 0.0, None)
    total = float(variances.sum())
    if total <= 1e-9 * len(vectors):
        explained = np.ones(len(variances))
        return {
            "effective_rank": 0.0,
            "participation_ratio": 0.0,
            "dims_90": 0,
            "dims_95": 0,
            "dims_99": 0,
            "explained": explained.tolist(),
        }
    singular = np.sqrt(variances)
    share = singular[singular > 0] / singular.sum()
    explained = np.cumsum(variances) / total
    return {
        "effective_rank": round(float(np.exp(-(share * np.log(share)).sum())), 2),
        "participation_ratio": round(float(total**2 / (variances**2).sum()), 2),
        **{f"dims_{percent}": int(np.searchsorted(explained, percent / 100 - 1e-12) + 1) for percent in (90, 95, 99)},
        "explained": [round(float(part), 5) for part in explained],
    }


def principal(vectors: np.ndarray, dims: int) -> np.ndarray:
    """(d, dims) float32: the orthonormal directions that keep most of the dot products of vectors (n, d), strongest first.

    Not centred: what is compared is the angle from zero, and a shift would change it. The same vectors give the same directions.
    """
    axes = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))[1][:, ::-1][:, :dims]
    return layout.signed(axes).astype(np.float32)


def cut(vectors: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """(n, dims) float32 unit rows: vectors (n, d) along the directions (d, dims); a row that has nothing of them stays zero."""
    return layout.unit((vectors @ axes).astype(np.float32))


def quantised(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(n, dims) int8 and (n,) float32 scales: `codes * scales[:, None]` is nearly the vectors; each row's largest number is 127."""
    scales = (np.abs(vectors).max(axis=1) / 127).astype(np.float32)
    codes = np.round(np.divide(vectors, scales[:, None], out=np.zeros_like(vectors), where=scales[:, None] > 0))
    return codes.astype(np.int8), scales


def restored(codes: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """(n, dims) float32: what `quantised` kept."""
    vectors: np.ndarray = codes.astype(np.float32) * scales[:, None]
    return vectors


# -- the questions


def _questions(ledger: Ledger, embedder: Embedder, slots: Sequence[int], vectors: np.ndarray, seed: int, progress: Report) -> _Questions:
    """The vault's own questions about the sampled passages, of each kind as many."""
    progress(Progress("choosing questions", 0.1))
    row_of = {slot: row for row, slot in enumerate(slots)}
    able = [pair for pair in pairs.pairs(ledger, seed=seed) if pair.slots[0] in row_of]
    judged = [pair for pair in able if pairs.held_out(pair)]
    held_out = len(judged) >= FEW
    chosen = [
        pair
        for kind in pairs.KINDS
        for pair in [one for one in (judged if held_out else able) if one.kind == kind][: QUERIES // len(pairs.KINDS)]
    ]
    contexts = {slot: context for slot, _, context in ledger.texts([pair.slots[0] for pair in chosen if pair.kind == "sentence"])}
    progress(Progress("embedding questions", 0.2))
    queries = embedder.embed([pair.query for pair in chosen], query=True)
    targets = vectors[[row_of[pair.slots[0]] for pair in chosen]]
    # A passage that holds its question would be found by it; a heading stands in its passage's context as well.
    bare = [place for place, pair in enumerate(chosen) if not pair.hidden]
    said = [chosen[place] for place in bare]
    targets[bare] = embedder.embed([f"{contexts[one.slots[0]]}\n{one.target}" if one.slots[0] in contexts else one.target for one in said])
    fair = np.flatnonzero(queries.any(axis=1) & targets.any(axis=1)).tolist()
    return _Questions(
        vectors,
        queries[fair],
        targets[fair],
        [[row_of[slot] for slot in {*chosen[one].slots, *chosen[one].source} if slot in row_of] for one in fair],
        [chosen[one].kind for one in fair],
        [chosen[one].note for one in fair],
        held_out,
    )


def _cuts(asked: _Questions, count: int, progress: Report) -> list[dict[str, Any]]:
    """Each size and precision, judged by the questions and by the neighbours of a sample of the vectors."""
    dims = asked.vectors.shape[1]
    sizes = [dims] + [dims // share for share in _SHARES[1:] if dims // share >= _LEAST_DIMS]
    probes = np.unique(np.linspace(0, len(asked.vectors) - 1, min(500, len(asked.vectors))).astype(np.int64))
    axes = principal(asked.vectors, dims)
    found: list[dict[str, Any]] = []
    whole: tuple[np.ndarray, np.ndarray] | None = None
    for size in sizes:
        three = (asked.vectors, asked.queries, asked.targets)
        stored, queries, targets = three if size == dims else (cut(rows, axes[:, :size]) for rows in three)
        for precision in ("float32", "int8"):
            held, wanted = (rows if precision == "float32" else restored(*quantised(rows)) for rows in (stored, targets))
            ranks, near = _ranks(held, queries, wanted, asked.aside), _near(held, stored, probes)
            if whole is None:
                whole = ranks, near
            size_of_one = 4 * size if precision == "float32" else size + 4
            found.append(
                {
                    "dims": size,
                    "precision": precision,
                    "bytes": size_of_one * count,
                    "saved": (4 * dims - size_of_one) * count,
                    "recall@1": _share(ranks <= 1),
                    "recall@10": _share(ranks <= 10),
                    "mrr": round(float((1.0 / ranks).mean()), 4) if len(ranks) else None,
                    "by_kind": {kind: _share(ranks[[one == kind for one in asked.kinds]] <= 10) for kind in dict.fromkeys(asked.kinds)},
                    "overlap@10": round(float(np.mean([np.isin(one, other).mean() for one, other in zip(near, whole[1], strict=True)])), 4),
                    "lost@1": _lost(whole[0] <= 1, ranks <= 1, asked.notes),
                    "lost@10": _lost(whole[0] <= 10, ranks <= 10, asked.notes),
                }
            )
            progress(Progress("measuring cuts", 0.3 + 0.7 * len(found) / (2 * len(sizes))))
    return found


def _ranks(stored: np.ndarray, queries: np.ndarray, targets: np.ndarray, aside: Sequence[Sequence[int]]) -> np.ndarray:
    """(q,) the rank of each question's target among the stored rows that compete, from 1; among equals it stands in their middle."""
    ranks = np.zeros(len(queries))
    for start in range(0, len(queries), _ROWS):
        scores = queries[start : start + _ROWS] @ stored.T
        for row, others in enumerate(aside[start : start + _ROWS]):
            scores[row, others] = -np.inf
        own = (queries[start : start + _ROWS] * targets[start : start + _ROWS]).sum(axis=1)[:, None]
        equal = np.abs(scores - own) <= _EQUAL
        ranks[start : start + _ROWS] = 1 + ((scores > own) & ~equal).sum(axis=1) + equal.sum(axis=1) / 2
    return ranks


def _near(held: np.ndarray, stored: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """(p, k) the nearest stored rows of each probe, itself left out."""
    k = min(_NEIGHBOURS, len(held) - 1)
    found = np.zeros((len(probes), k), dtype=np.int64)
    for start in range(0, len(probes), _ROWS):
        part = probes[start : start + _ROWS]
        scores = stored[part] @ held.T
        scores[np.arange(len(part)), part] = -np.inf
        found[start : start + _ROWS] = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    return found


def _share(found: np.ndarray) -> float | None:
    return round(float(found.mean()), 4) if len(found) else None


def _lost(before: np.ndarray, after: np.ndarray, notes: Sequence[str]) -> dict[str, float] | None:
    """Points of recall lost, and the 95 % interval over notes; None without questions."""
    if not len(before):
        return None
    change = measures.paired_bootstrap(after.astype(float).tolist(), before.astype(float).tolist(), notes)
    return {"points": round(100 * change.mean, 2), "low": round(100 * change.low, 2), "high": round(100 * change.high, 2)}


def _recommended(cuts: Sequence[dict[str, Any]], questions: int) -> dict[str, Any] | None:
    if questions < FEW:
        return None
    able = [one for one in cuts if one["lost@1"]["points"] < LOSS and one["lost@10"]["points"] < LOSS]
    best = min(able, key=lambda one: (one["bytes"], -one["dims"]))
    return {"dims": best["dims"], "precision": best["precision"]}


# -- shown


def lines(report: dict[str, Any]) -> list[str]:
    """The report for a terminal: the spectrum, a table of the cuts, and what is recommended."""
    shape = report["spectrum"]
    said = [
        f"{report['vectors']:,} vectors of {report['dims']} dimensions, {_size(report['cuts'][0]['bytes'])} ({report['embedder']})",
        f"effective rank {shape['effective_rank']:.0f}, participation ratio {shape['participation_ratio']:.0f}; "
        f"90 % of the variance in {shape['dims_90']} dimensions, 95 % in {shape['dims_95']}, 99 % in {shape['dims_99']}",
    ]
    if report["empty"]:
        said.append(f"{report['empty']:,} of the {report['sampled']:,} looked at say nothing (zero vectors)")
    source = "held-out notes" if report["held_out"] else "all notes (too few are held out)"
    kinds = ", ".join(f"{count} by {kind}" for kind, count in report["kinds"].items())
    said.append(f"{report['questions']:,} questions that {source} ask themselves: {kinds or 'none'}")
    names = "".join(f"{kind:>10}" for kind in report["kinds"])
    said.append(f"{'dims':>6}  {'precision':<9} {'size':>9} {'R@1':>7} {'R@10':>7}  {'lost @10 (95 %)':<22} {'overlap@10':>10}{names}")
    for one in report["cuts"]:
        lost = one["lost@10"]
        interval = f"{lost['points']:+5.1f} ({lost['low']:+.1f} … {lost['high']:+.1f})" if lost else "-"
        kinds = "".join(f"{_recall(value):>10}" for value in one["by_kind"].values())
        said.append(
            f"{one['dims']:>6}  {one['precision']:<9} {_size(one['bytes']):>9} {_recall(one['recall@1']):>7} {_recall(one['recall@10']):>7}"
            f"  {interval:<22} {one['overlap@10']:>10.3f}{kinds}"
        )
    return [*said, recommendation(report)]


def recommendation(report: dict[str, Any]) -> str:
    """One sentence: which settings lose less than a point of recall, and what they save."""
    best, first = report["recommended"], report["cuts"][0]
    if best is None:
        return (
            f"{report['questions']} questions are too few to recommend anything ({FEW} are needed): leave memory.dims and memory.precision."
        )
    if (best["dims"], best["precision"]) == (first["dims"], first["precision"]):
        return (
            f"Leave memory.dims = {best['dims']} and memory.precision = float32: every smaller form loses {LOSS:g} point of recall or more."
        )
    chosen = next(one for one in report["cuts"] if (one["dims"], one["precision"]) == (best["dims"], best["precision"]))
    changed = [f'memory.precision = "{best["precision"]}"'] if best["precision"] != first["precision"] else []
    if best["dims"] != first["dims"]:
        changed.insert(0, f"memory.dims = {best['dims']}")
    price = max(chosen["lost@1"]["points"], chosen["lost@10"]["points"])
    cost = f"loses {price:.1f} points of recall" if price >= 0.05 else "loses no recall"
    return f"{' with '.join(changed)} {cost} and saves {_size(chosen['saved'])} of {_size(first['bytes'])}."


def _recall(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _size(count: int) -> str:
    size = float(count)
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def plot(report: dict[str, Any], path: Path) -> None:
    """Draw the report (explained variance; recall and overlap against size) to a .png, .svg or .pdf, readable by its owner alone.

    Raises UsageError for another suffix, VaultError when it cannot be written.
    """
    if path.suffix.lower() not in PICTURES:
        raise UsageError(f"a plot is written as {', '.join(PICTURES)}, not '{path.suffix or path.name}'", path=str(path))
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.hashsalt": "vaultllm", "font.family": "DejaVu Sans"}):
        figure = Figure(figsize=(11, 5), layout="constrained")
        left, right = figure.subplots(1, 2)
        _draw_spectrum(left, report)
        _draw_cuts(right, report)
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix.lower()[1:], dpi=144)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_whole(path, picture.getvalue())
    except OSError as error:
        raise VaultError(f"the plot cannot be written ({error.strerror}); name another file with --plot", path=str(path)) from error


def _draw_spectrum(axes: Axes, report: dict[str, Any]) -> None:
    shape = report["spectrum"]
    axes.plot(range(1, len(shape["explained"]) + 1), [100 * part for part in shape["explained"]], color="#2f6fdb", linewidth=2)
    for percent in (90, 95, 99):
        at = shape[f"dims_{percent}"]
        axes.plot([0, at, at], [percent, percent, 0], color="#989da6", linewidth=0.8, linestyle=":")
    rank, ratio = shape["effective_rank"], shape["participation_ratio"]
    axes.axvline(rank, color="#dd7a1f", linewidth=1.2, label=f"effective rank {rank:.0f}")
    axes.axvline(ratio, color="#2c9a57", linewidth=1.2, label=f"participation ratio {ratio:.0f}")
    explained = "90, 95, 99 % in {dims_90}, {dims_95}, {dims_99} dimensions".format(**shape)
    axes.set(xlabel=f"principal components ({explained})", ylabel="variance explained, %", ylim=(0, 102), title="What the vectors hold")
    axes.set_xlim(0, len(shape["explained"]) + 1)
    axes.legend(loc="lower center", fontsize=8)


def _draw_cuts(axes: Axes, report: dict[str, Any]) -> None:
    names = [("recall@10", "R@10", "#2f6fdb"), ("recall@1", "R@1", "#8757c9"), ("overlap@10", "neighbours that stay", "#989da6")]
    for precision, line, mark in (("float32", "-", "o"), ("int8", "--", "s")):
        rows = [one for one in report["cuts"] if one["precision"] == precision]
        for name, label, colour in names:
            if rows[0][name] is not None:
                axes.plot(
                    [one["bytes"] / max(1, report["vectors"]) for one in rows],
                    [one[name] for one in rows],
                    linestyle=line,
                    marker=mark,
                    markersize=4,
                    color=colour,
                    label=f"{label}, {precision}",
                )
    axes.set_xscale("log", base=2)
    ticks = sorted({4 * one["dims"] for one in report["cuts"]} | {one["dims"] for one in report["cuts"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(xlabel="bytes per vector", ylim=(0, 1.03), title=f"What smaller vectors cost ({report['questions']} questions)")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, fontsize=8, frameon=False)
