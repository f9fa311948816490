"""Vectors for passages without downloading a model: an embedder that is fitted on the vault itself.

Latent semantic analysis (Deerwester et al. 1990): stems and character 3- to 5-grams, sublinear TF-IDF, truncated SVD.
Words that are used in the same notes come to lie near each other, in any language that the vault is written in.
Pairs of texts from the vault's structure then improve it, where they do (`contrast.py`). Any other embedder has to be an
`Embedder` (`embedders.py`). Knows nothing about where passages come from or vectors go.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np

from vaultllm import text as texts
from vaultllm.memory import contrast
from vaultllm.schema import Report, silent

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

    from vaultllm.memory.contrast import Verdict
    from vaultllm.memory.pairs import Pair

VERSION = 2  # of the features and of the folder's layout; another version is fitted anew
FIT_TEXTS = 20_000  # of a larger vault, so many evenly spread passages are fitted on
MOST_FEATURES = 50_000  # the most frequent ones: bounds the folder at 2 * MOST_FEATURES * dims bytes
_WHOLE = 0.5  # a feature of more than this share of the passages tells nothing
MOST_WORDS = 200_000  # whose features are remembered while texts are embedded
_OVERSAMPLE = 16
_POWER = 3


class Embedder(Protocol):
    """Turns texts into vectors that can be compared by their dot product."""

    @property
    def fingerprint(self) -> str:
        """Changes whenever the vectors would; vectors of different fingerprints are never compared."""

    @property
    def dims(self) -> int:
        """Length of a vector."""

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, dims) float32, unit rows; a zero row for a text that it knows nothing of. `query`: these are questions."""


class VaultEmbedder:
    """Latent semantic analysis of one vault, perhaps improved by pairs of its texts; immutable."""

    def __init__(self, features: np.ndarray, idf: np.ndarray, projection: np.ndarray, verdict: Verdict | None = None) -> None:
        """`features` (f,) uint32, sorted hashes; `idf` (f,) float32; `projection` (f, dims) float16; `verdict`: of what was learnt."""
        self.features, self.idf, self.projection, self.verdict = features, idf, projection, verdict
        digest = hashlib.sha256(f"vault {VERSION}".encode())
        for array in (features, idf, projection):
            digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = f"vault-{VERSION}-{digest.hexdigest()[:16]}"

    # What only texts by the thousand need is made when they come; a question does without, and without scipy.

    @functools.cached_property
    def _order(self) -> np.ndarray:
        """Frequent features first, so that the rows of the table that are read most lie together."""
        return np.argsort(self.idf, kind="stable")

    @functools.cached_property
    def table(self) -> np.ndarray:
        """(features, dims) float32: `projection`, in that order."""
        table: np.ndarray = self.projection[self._order].astype(np.float32)
        return table

    @functools.cached_property
    def _words(self) -> _Words:
        place = np.empty_like(self._order)
        place[self._order] = np.arange(len(place))
        return _Words(self.features, place)

    @property
    def dims(self) -> int:
        """Length of a vector; less than what was asked for when the vault is small."""
        return int(self.projection.shape[1])

    @classmethod
    def fit(
        cls,
        passages: Sequence[str],
        dims: int,
        pairs: Sequence[Pair] | None = None,
        notes: Sequence[str] | None = None,
        progress: Report = silent,
    ) -> VaultEmbedder:
        """Fit on passages; the same passages give the same embedder. A small vault gives fewer dimensions.

        With `pairs` of the vault's texts it goes on learning, and what was learnt is kept only when held-out ones say that it
        helps (`verdict`); `notes` then names the note of each passage. Raises ValueError when the notes do not go with the
        passages.
        """
        if pairs is not None:
            return contrast.improve(lambda some: cls.fit(some, dims), passages, notes or (), pairs, progress)
        step = max(1, -(-len(passages) // FIT_TEXTS))
        sample = passages[::step]
        features, counts = _counted(sample)
        df = np.bincount(counts.indices, minlength=len(features))
        # What stands in one passage only joins nothing; a handful of passages has nothing to spare.
        keep = (df >= (2 if len(sample) >= 20 else 1)) & (df <= max(1, int(_WHOLE * len(sample))))
        keep |= (len(sample) < 20) & (df <= len(sample))
        kept = np.flatnonzero(keep)
        if len(kept) > MOST_FEATURES:
            kept = np.sort(kept[np.argsort(-df[kept], kind="stable")[:MOST_FEATURES]])
        features, df = features[kept], df[kept]
        idf = np.log((1.0 + len(sample)) / (1.0 + df)).astype(np.float32) + 1.0
        if not len(features):
            return cls(features.astype(np.uint32), idf, np.zeros((0, 1), np.float16))
        right = _right_vectors(_weighted(counts[:, kept], idf), dims)
        return cls(features, idf, right.astype(np.float16))

    def weighted(self, texts: Sequence[str]) -> csr_matrix:
        """(n, features) sublinear TF-IDF, unit rows; the columns go with the rows of `table` (features, dims) float32."""
        return _weighted(self._words.counts(texts), self.idf[self._order])

    def with_table(self, table: np.ndarray) -> VaultEmbedder:
        """The same features with another table, in the order of `table`."""
        projection = np.empty_like(self.projection)
        # Only the directions of vectors count; at this size nothing is lost in half precision.
        projection[self._order] = table / max(float(np.abs(table).max(initial=0.0)), 1e-12)
        return VaultEmbedder(self.features, self.idf, projection, self.verdict)

    def saying(self, verdict: Verdict) -> VaultEmbedder:
        """The same embedder with what is known of how it came about."""
        return VaultEmbedder(self.features, self.idf, self.projection, verdict)

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, dims) float32, unit rows; a zero row for a text without a known feature. Questions are embedded like texts."""
        vectors = np.zeros((len(texts), self.dims), dtype=np.float32)
        if not len(self.features):
            return vectors
        if query:
            return unit(np.stack([self._asked(text) for text in texts]) if texts else vectors)
        for start in range(0, len(texts), 1000):
            vectors[start : start + 1000] = self.weighted(texts[start : start + 1000]) @ self.table
        return unit(vectors)

    def _asked(self, text: str) -> np.ndarray:
        """(dims,) float32: what `weighted` and the table make of a text, for one that is short."""
        hashes = np.concatenate([*[_word_features(word[:64]) for word in texts.words(text)], np.zeros(0, np.uint32)])
        found, counts = np.unique(hashes, return_counts=True)
        places = np.minimum(np.searchsorted(self.features, found), len(self.features) - 1)
        known = self.features[places] == found
        weights = (1.0 + np.log(counts[known].astype(np.float32))) * self.idf[places[known]]
        vector: np.ndarray = (weights / max(float(np.linalg.norm(weights)), 1e-12)) @ self.projection[places[known]].astype(np.float32)
        return vector

    def save(self, folder: Path) -> None:
        """Write the folder aside and rename it: it is complete or absent. Replaces what is there."""
        with _whole_folder(folder) as aside:
            with open(aside / "arrays.npz", "wb") as file:
                np.savez(file, features=self.features, idf=self.idf, projection=self.projection)
                file.flush()
                os.fsync(file.fileno())
            about = {
                "kind": "vault",
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "dims": self.dims,
                "features": len(self.features),
                "verdict": None if self.verdict is None else self.verdict.to_dict(),
            }
            (aside / "embedder.json").write_text(json.dumps(about, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> VaultEmbedder:
        """Read what `save` wrote. Raises ValueError when it is missing, damaged, or of another version."""
        try:
            about: dict[str, Any] = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
            with open(folder / "arrays.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
                verdict = None if about.get("verdict") is None else contrast.Verdict(**about["verdict"])
                embedder = cls(arrays["features"], arrays["idf"], arrays["projection"], verdict)
        except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
            raise ValueError(f"{folder.name} cannot be read: {error}") from error
        if about.get("version") != VERSION or about.get("fingerprint") != embedder.fingerprint:
            raise ValueError(f"{folder.name} is damaged or of another version")
        return embedder


class Reduced:
    """Another embedder's vectors on their strongest directions: fewer dimensions, as much of the cosines as fits (uncentred PCA).

    For embedders that come as they are; the vault's own is fitted with as many dimensions as are wanted.
    """

    def __init__(self, inner: Embedder, turn: np.ndarray) -> None:
        """`turn` (inner.dims, dims) float32, orthonormal columns."""
        self.inner, self.turn = inner, turn
        digest = hashlib.sha256(inner.fingerprint.encode() + np.ascontiguousarray(turn, "<f4").tobytes())
        self.fingerprint = f"reduced-{digest.hexdigest()[:16]}"

    @property
    def dims(self) -> int:
        """Length of a vector."""
        return int(self.turn.shape[1])

    @classmethod
    def fit(cls, inner: Embedder, vectors: np.ndarray, dims: int) -> Reduced:
        """Directions from a sample of `inner`'s vectors (n, inner.dims); a few thousand are enough, fewer give fewer dimensions."""
        values, turn = np.linalg.eigh((vectors.T @ vectors).astype(np.float64))
        rank = max(1, int(np.sum(values > 1e-9 * max(values[-1], 1e-30))))
        return cls(inner, np.ascontiguousarray(turn[:, ::-1][:, : min(dims, rank)], dtype=np.float32))

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, dims) float32, unit rows; as `inner` does it, then cut."""
        return unit(self.inner.embed(texts, query) @ self.turn)

    def save(self, folder: Path) -> None:
        """Write the directions; the inner embedder is not in there. The folder is complete or absent."""
        with _whole_folder(folder) as aside:
            with open(aside / "turn.npy", "wb") as file:
                np.save(file, self.turn)
                file.flush()
                os.fsync(file.fileno())
            about = {
                "kind": "reduced",
                "version": VERSION,
                "fingerprint": self.fingerprint,
                "inner": self.inner.fingerprint,
                "dims": self.dims,
            }
            (aside / "embedder.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: Path, inner: Embedder) -> Reduced:
        """Read what `save` wrote. Raises ValueError when it is missing, damaged, or of another embedder."""
        try:
            about: dict[str, Any] = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
            found = cls(inner, np.load(folder / "turn.npy", allow_pickle=False))
            whole = about["fingerprint"] == found.fingerprint
        except Exception as error:  # as in VaultEmbedder.load
            raise ValueError(f"{folder.name} cannot be read: {error}") from error
        if not whole:
            raise ValueError(f"{folder.name} is damaged or of another embedder")
        return found


Precision = Literal["float32", "int8"]


def pack(vectors: np.ndarray, precision: Precision = "float32") -> list[bytes]:
    """Unit vectors (n, dims) as they are stored: float32 4 bytes a dimension; int8 1, with 4 more bytes for the scale.

    int8: each row by its own largest value (symmetric scalar quantisation); the scale makes what is read a unit row again.
    """
    if precision == "float32":
        return [row.tobytes() for row in np.ascontiguousarray(vectors, "<f4")]
    most = np.abs(vectors).max(axis=1, keepdims=True, initial=0.0)
    steps = np.rint(np.divide(vectors * 127.0, most, out=np.zeros(vectors.shape, np.float32), where=most > 0)).astype(np.int8)
    lengths = np.linalg.norm(steps.astype(np.float32), axis=1)
    scales = np.divide(1.0, lengths, out=np.zeros(len(lengths), np.float32), where=lengths > 0).astype("<f4")
    return [scale.tobytes() + row.tobytes() for scale, row in zip(scales, steps, strict=True)]


def unpack(stored: Sequence[bytes], precision: Precision = "float32") -> np.ndarray:
    """(n, dims) float32, unit rows: the inverse of `pack`, to 1 % of a component for int8. (0, 0) for nothing.

    Raises ValueError when the rows are not of one length.
    """
    if not stored:
        return np.zeros((0, 0), dtype=np.float32)
    if len({len(row) for row in stored}) > 1:
        raise ValueError("vectors of different lengths")
    joined = b"".join(stored)
    if precision == "float32":
        return np.frombuffer(joined, dtype="<f4").reshape(len(stored), -1).astype(np.float32, copy=False)
    rows = np.frombuffer(joined, dtype=np.int8).reshape(len(stored), -1)
    scales = np.ascontiguousarray(rows[:, :4]).view("<f4")
    return np.asarray(rows[:, 4:] * scales, dtype=np.float32)


@contextmanager
def _whole_folder(folder: Path) -> Iterator[Path]:
    """A folder beside it to write into, which then takes its name and its place: it is complete or absent."""
    folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    aside = folder.with_name(f".{folder.name}.tmp")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(mode=0o700)
    yield aside
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(aside, folder)


class _Words:
    """Which features each word fills, as the rows of a sparse matrix that grows with the words met.

    A text is then a row of word counts, and its features are one sparse product away: nobody looks at each text's features.
    """

    def __init__(self, features: np.ndarray, order: np.ndarray | None = None) -> None:
        """`features` (f,) uint32, sorted: their hashes. `order` (f,): the column of each; None: its place."""
        self._features, self._order = features, order
        self._ids: dict[str, int] = {}
        self._table: csr_matrix | None = None

    def counts(self, passages: Sequence[str]) -> csr_matrix:
        """(passages, features) float32: how often each feature stands in each passage. The order in a row depends on its text alone."""
        from scipy.sparse import csr_matrix

        said = [texts.words(passage) for passage in passages]
        if len(self._ids) > MOST_WORDS:
            self._ids, self._table = {}, None
        self._learn(list(set(itertools.chain.from_iterable(said)).difference(self._ids)))
        ids = np.fromiter(map(self._ids.__getitem__, itertools.chain.from_iterable(said)), np.int32)
        ends = np.cumsum([0, *map(len, said)])
        found: csr_matrix = csr_matrix((np.ones(len(ids), np.float32), ids, ends), shape=(len(said), len(self._ids))) @ self._table
        return found

    def _learn(self, words: list[str]) -> None:
        """Add the rows of new words."""
        from scipy.sparse import csr_matrix, vstack

        hashes = [_word_features(word[:64]) for word in words]
        flat = np.concatenate([*hashes, np.zeros(0, np.uint32)])
        places = np.searchsorted(self._features, flat)
        places[places == len(self._features)] = 0
        known = self._features[places] == flat if len(self._features) else np.zeros(len(flat), bool)
        ends = np.concatenate([[0], np.cumsum(known)])[np.cumsum([0, *map(len, hashes)])]
        columns = places[known] if self._order is None else self._order[places[known]]
        rows = csr_matrix((np.ones(len(columns), np.float32), columns.astype(np.int32), ends), shape=(len(words), len(self._features)))
        self._ids.update(zip(words, range(len(self._ids), len(self._ids) + len(words)), strict=True))
        self._table = rows if self._table is None else vstack([self._table, rows], format="csr") if words else self._table


@functools.lru_cache(maxsize=MOST_WORDS)
def _word_features(word: str) -> np.ndarray:
    """Hashes of a word's stem and of its 3- to 5-grams, sorted. `crc32` because `hash` differs between processes."""
    marked = f"#{word}#"
    size = len(marked)
    names = {marked[i : i + n] for n in (3, 4, 5) for i in range(max(1, size - n + 1))}
    names.add(f"={texts.stem(word)}")
    return np.array(sorted([zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names]), dtype=np.uint32)


def _counted(passages: Sequence[str]) -> tuple[np.ndarray, csr_matrix]:
    """All features of these passages, sorted, and (passages, features) how often each stands in each."""
    features = features_of(set(itertools.chain.from_iterable(map(texts.words, passages))))
    return features, _Words(features).counts(passages)


def features_of(words: Iterable[str]) -> np.ndarray:
    """The features (hashes) that any of these folded words has, sorted, (f,) uint32."""
    return np.unique(np.concatenate([*[_word_features(word[:64]) for word in words], np.zeros(0, np.uint32)]))


def _weighted(counts: csr_matrix, idf: np.ndarray) -> csr_matrix:
    """Sublinear TF-IDF, unit rows, in place of counts."""
    counts.data = (1.0 + np.log(counts.data)) * idf[counts.indices]
    squares = counts.copy()
    squares.data = counts.data**2
    norms = np.sqrt(np.asarray(squares.sum(axis=1), dtype=np.float32).ravel())
    counts.data /= np.repeat(norms, np.diff(counts.indptr))
    return counts


def _right_vectors(matrix: csr_matrix, dims: int) -> np.ndarray:
    """The right singular vectors (features, at most dims) by randomised subspace iteration (Halko, Martinsson, Tropp 2011, alg. 4.4)."""
    transposed = matrix.T.tocsr()
    width = min(dims + _OVERSAMPLE, *matrix.shape)
    start = np.random.default_rng(0).standard_normal((matrix.shape[1], width), dtype=np.float32)
    basis = _orthonormal(matrix @ start)
    for _ in range(_POWER):
        basis = _orthonormal(matrix @ _orthonormal(transposed @ basis))
    return np.ascontiguousarray(_orthonormal(transposed @ basis)[:, :dims])


def _orthonormal(columns: np.ndarray) -> np.ndarray:
    """An orthonormal basis of what the columns span, strongest direction first; directions of rounding noise are left out.

    Through the eigenvectors of the small Gram matrix: on a busy machine LAPACK's QR of the tall matrix took 5 to 100
    times as long, and we need the singular values' order anyway.
    """
    values, turn = np.linalg.eigh((columns.T @ columns).astype(np.float64))
    values, turn = values[::-1], turn[:, ::-1]
    rank = max(1, int(np.sum(values > 1e-6 * values[0])))
    basis: np.ndarray = columns @ (turn[:, :rank] / np.sqrt(np.maximum(values[:rank], 1e-30))).astype(np.float32)
    return basis


def unit(vectors: np.ndarray) -> np.ndarray:
    """Rows (n, dims) at length 1; next to nothing becomes a zero row."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    rows: np.ndarray = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)
    return rows
