"""Vectors laid out in the plane, and names for the regions that come about: numbers and words only.

Principal components first, then the forces of t-SNE (van der Maaten, Hinton 2008) along the edges of the graph of nearest
neighbours; what pushes is a sample drawn at every step, so that the time grows with the vectors and not their square
(cf. Damrich, Boehm, Hamprecht, Kobak 2023). Regions are named by the words that stand out in them (class-based TF-IDF,
Grootendorst 2022). Knows nothing about scenes, nor about how a map is drawn (`map.py`).
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from vaultllm import text
from vaultllm.schema import Progress, Report, silent

SIDE = 65_535  # places are whole numbers from 0 to this
_EXACT = 15_000  # vectors: up to here every pair is compared, above it only those of neighbouring cells
_CELL = 400  # vectors in a cell, about
_NEAR_CELLS = 16  # cells in which a vector's neighbours are looked for
_LABELS = 80


def unit(rows: np.ndarray) -> np.ndarray:
    """Rows of length 1; a row of zeros stays one."""
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    scaled: np.ndarray = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 1e-6)
    return scaled


def signed(axes: np.ndarray) -> np.ndarray:
    """Axes (d, m) each turned so that its largest number is positive: an eigenvector has no sign of its own."""
    turned: np.ndarray = axes * np.where(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])] < 0, -1.0, 1.0)
    return turned


def places(vectors: np.ndarray, near: np.ndarray, *, seed: int = 0, progress: Report = silent) -> np.ndarray:
    """(n, 2) int32 places from 0 to `SIDE` of unit vectors (n, dims) float32, of which `near` (n, k) names the nearest.

    Near in space is near in the plane; the same arguments give the same places.
    """
    rng = np.random.default_rng(seed)
    start = _principal_plane(vectors, rng)
    if len(vectors) > 3:
        start = _forces(start, *_graph(near), rng, progress)
    return _boxed(start)


def _principal_plane(vectors: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The first two principal components, spread 1 in the first; a little noise parts what is the same."""
    centred = vectors - vectors.mean(axis=0)
    axes = signed(np.linalg.eigh((centred.T @ centred).astype(np.float64))[1][:, ::-1][:, :2])
    places = np.zeros((len(vectors), 2))
    places[:, : axes.shape[1]] = centred @ axes
    scale = places[:, 0].std()
    return (places / (scale or 1.0) + rng.normal(0, 1e-2, places.shape)).astype(np.float32)


def neighbours(vectors: np.ndarray, k: int, *, seed: int = 0, progress: Report = silent) -> np.ndarray:
    """(n, k) int32: of each unit vector the k others with the highest dot product, best first.

    Exact up to 15,000 vectors; above, only the vectors of the sixteen cells around each one's own are compared (an inverted
    file: Jegou, Douze, Schmid 2011, without its codes).
    """
    n = len(vectors)
    found = np.zeros((n, k), dtype=np.int32)
    if n <= _EXACT:
        everyone = np.arange(n, dtype=np.int32)
        for start in range(0, n, 1000):
            rows = everyone[start : start + 1000]
            found[rows] = _nearest(vectors, rows, everyone, k)
            progress(Progress("finding neighbours", start / n))
        return found
    centres, cell = _cells(vectors, n // _CELL, seed)
    members = np.split(np.argsort(cell, kind="stable").astype(np.int32), np.cumsum(np.bincount(cell, minlength=len(centres)))[:-1])
    beside = np.argsort(-(centres @ centres.T), axis=1, kind="stable")
    for number, rows in enumerate(members):
        if not len(rows):
            continue
        around = [rows]
        for other in beside[number]:
            if other != number:
                around.append(members[other])
            if len(around) >= _NEAR_CELLS and sum(map(len, around)) > k:
                break
        others = np.concatenate(around)
        others = others[:: -(-len(others) // _EXACT)]  # one cell may hold all the vectors, when they are alike
        for start in range(0, len(rows), 1000):
            found[rows[start : start + 1000]] = _nearest(vectors, rows[start : start + 1000], others, k)
        progress(Progress("finding neighbours", (number + 1) / len(members)))
    return found


def _nearest(vectors: np.ndarray, rows: np.ndarray, others: np.ndarray, k: int) -> np.ndarray:
    scores = vectors[rows] @ vectors[others].T
    scores[rows[:, None] == others[None, :]] = -np.inf
    best = np.argpartition(-scores, k - 1, axis=1)[:, :k]
    order = np.argsort(-np.take_along_axis(scores, best, axis=1), axis=1, kind="stable")
    return others[np.take_along_axis(best, order, axis=1)]


def _cells(vectors: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Unit centres (count, dims) and each vector's cell, by a few rounds of spherical k-means over a sample."""
    rng = np.random.default_rng(seed)
    sample = vectors[np.sort(rng.choice(len(vectors), min(len(vectors), 100 * count), replace=False))]
    centres = sample[rng.choice(len(sample), count, replace=False)].copy()

    def own(rows: np.ndarray) -> np.ndarray:
        return np.concatenate([(rows[i : i + 5000] @ centres.T).argmax(axis=1) for i in range(0, len(rows), 5000)])

    for _ in range(5):
        cell = own(sample)
        order = np.argsort(cell, kind="stable")
        held, starts = np.unique(cell[order], return_index=True)
        centres[held] = unit(np.add.reduceat(sample[order], starts, axis=0))
    return centres, own(vectors)


def _graph(near: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The neighbour lists made mutual: row pointers (n + 1) and partners; every row has some."""
    n, k = near.shape
    one, other = np.repeat(np.arange(n, dtype=np.int64), k), near.ravel().astype(np.int64)
    pairs = np.unique(np.concatenate([one * n + other, other * n + one]))
    return np.searchsorted(pairs // n, np.arange(n + 1)), pairs % n


def _forces(places: np.ndarray, pointers: np.ndarray, partners: np.ndarray, rng: np.random.Generator, progress: Report) -> np.ndarray:
    """The gradient of t-SNE whose likenesses are the graph's edges, all alike; likeness in the plane is 1 / (1 + d^2)."""
    n = len(places)
    steps = 400 if n <= 5_000 else 300 if n <= 20_000 else 160
    others = min(n - 1, 40, max(8, 240_000 // n))  # that push each scene at a step, drawn anew: bounds a step's time and memory
    degree = np.diff(pointers).astype(np.float32)[:, None]
    sources = np.repeat(np.arange(n), np.diff(pointers))
    first, second, normal = np.zeros_like(places), np.zeros_like(places), 0.0
    for step in range(steps):
        apart = places[sources] - places[partners]
        pull = np.add.reduceat(apart / (1.0 + (apart**2).sum(axis=1, keepdims=True)), pointers[:-1], axis=0) / degree
        away = places[:, None, :] - places[rng.integers(0, n, (n, others))]
        alike = 1.0 / (1.0 + (away**2).sum(axis=2, keepdims=True))
        mean = float(alike.mean())
        normal = 0.9 * normal + 0.1 * mean if step else mean
        slope = pull - (alike**2 * away).mean(axis=1) / normal
        first, second = 0.9 * first + 0.1 * slope, 0.99 * second + 0.01 * slope**2
        moved = (first / (1 - 0.9 ** (step + 1))) / (np.sqrt(second / (1 - 0.99 ** (step + 1))) + 1e-8)
        places = places - np.float32(1.0 - step / steps) * moved.astype(np.float32)
        if step % 20 == 0:
            progress(Progress("placing the scenes", step / steps))
    return places


def _boxed(places: np.ndarray) -> np.ndarray:
    """Places as whole numbers in the square, in their proportions; the few that flew far are drawn in to its edge."""
    centred = places - places.mean(axis=0)
    places = centred @ signed(np.linalg.eigh(centred.T @ centred)[1][:, ::-1])  # the longer side lies across: screens are wide
    low, high = np.percentile(places, [0.5, 99.5], axis=0)
    width = float(np.max(high - low)) or 1.0
    square = np.clip((places - (low + high) / 2) / (1.06 * width) + 0.5, 0.0, 1.0)
    boxed: np.ndarray = np.round(square * SIDE).astype(np.int32)
    return boxed


# -- names of regions


def labels(places: np.ndarray, notes: Sequence[str], spoken: Sequence[Sequence[str]], *, seed: int = 0) -> list[dict[str, Any]]:
    """What the regions of the map are about: x, y, top (y of its upper edge), text (one or two words), size (scenes), the largest first.

    `places` (n, 2); of each scene its note and the words that may name it. A word counts once for a note, in all its forms
    together, and names one region only.
    """
    count = min(_LABELS, round(math.sqrt(len(places) / 2)))
    if count < 2:
        return []
    centres, region = _regions(places.astype(np.float32), count, seed)
    said: dict[tuple[int, str], set[str]] = defaultdict(set)
    for own, note, words in zip(region.tolist(), notes, spoken, strict=True):
        said[own, note].update(words)
    forms: dict[str, Counter[str]] = defaultdict(Counter)
    held = [Counter[str]() for _ in range(count)]
    for (own, _), terms in said.items():
        roots = {term: text.stem(text.fold(term)) for term in sorted(terms)}
        held[own].update(set(roots.values()))
        for term, root in roots.items():
            forms[root][term] += 1
    everywhere = sum(held, Counter[str]())
    mean = sum(everywhere.values()) / count
    used: set[str] = set()
    found = []
    for own, size in sorted(enumerate(np.bincount(region, minlength=count).tolist()), key=lambda entry: (-entry[1], entry[0])):
        weight = {root: tf * math.log1p(mean / everywhere[root]) for root, tf in held[own].items() if root not in used}
        best = sorted(weight, key=lambda root: (-weight[root], root))[:2]
        if best:
            used.update(best)
            x, y = centres[own].round().astype(int).tolist()
            top = round(float(np.percentile(places[region == own, 1], 5)))
            name = " · ".join(min(forms[root], key=lambda form: (-forms[root][form], form)) for root in best)
            found.append({"x": x, "y": y, "top": top, "text": name, "size": size})
    return found


def _regions(places: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means in the plane: centres (count, 2), each that of a place, and the region of every place."""
    rng = np.random.default_rng(seed)
    sample = places[rng.choice(len(places), min(len(places), 10_000), replace=False)]
    centres = sample[:1]
    nearest = ((sample - centres[0]) ** 2).sum(axis=1)
    while len(centres) < count:  # the next one stands farthest from all before it
        centres = np.vstack([centres, sample[nearest.argmax()]])
        nearest = np.minimum(nearest, ((sample - centres[-1]) ** 2).sum(axis=1))

    def own(rows: np.ndarray) -> np.ndarray:
        return np.concatenate(
            [((rows[i : i + 5000, None, :] - centres) ** 2).sum(axis=2).argmin(axis=1) for i in range(0, len(rows), 5000)]
        )

    for _ in range(12):
        region = own(sample)
        size = np.maximum(np.bincount(region, minlength=count), 1)[:, None]
        moved = np.stack([np.bincount(region, sample[:, axis], count) for axis in (0, 1)], axis=1) / size
        centres = np.where((np.bincount(region, minlength=count) > 0)[:, None], moved, centres).astype(np.float32)
    return centres, own(places)
