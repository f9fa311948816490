"""Vectors for passages without downloading a model: an embedder that is fitted on the vault itself.

Latent semantic analysis (Deerwester et al. 1990): stems and character 3- to 5-grams, sublinear TF-IDF, truncated SVD.
Words that are used in the same notes come to lie near each other, in any language that the vault is written in.
Any other embedder has to be an `Embedder`. Knows nothing about where passages come from or vectors go.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from vaultllm import text as texts

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

VERSION = 1  # of the features and of the folder's layout; another version is fitted anew
FIT_TEXTS = 20_000  # of a larger vault, so many evenly spread passages are fitted on
MOST_FEATURES = 50_000  # the most frequent ones: bounds the folder at 2 * MOST_FEATURES * dims bytes
_WHOLE = 0.5  # a feature of more than this share of the passages tells nothing
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
    """Latent semantic analysis of one vault; immutable once fitted."""

    def __init__(self, features: np.ndarray, idf: np.ndarray, projection: np.ndarray) -> None:
        """`features` (f,) uint32, sorted hashes; `idf` (f,) float32; `projection` (f, dims) float16."""
        self.features, self.idf, self.projection = features, idf, projection
        self._wide = projection.astype(np.float32)
        digest = hashlib.sha256(f"vault-lsa {VERSION}".encode())
        for array in (features, idf, projection):
            digest.update(np.ascontiguousarray(array).tobytes())
        self.fingerprint = f"vault-lsa-{VERSION}-{digest.hexdigest()[:16]}"

    @property
    def dims(self) -> int:
        """Length of a vector; less than what was asked for when the vault is small."""
        return int(self.projection.shape[1])

    @classmethod
    def fit(cls, passages: Sequence[str], dims: int) -> VaultEmbedder:
        """Fit on passages; the same passages give the same embedder. A small vault gives fewer dimensions."""
        step = max(1, -(-len(passages) // FIT_TEXTS))
        sample = passages[::step]
        counted = [_features(passage) for passage in sample]
        hashes = np.concatenate([found for found, _ in counted]) if counted else np.zeros(0, np.uint32)
        features, df = np.unique(hashes, return_counts=True)
        # What stands in one passage only joins nothing; a handful of passages has nothing to spare.
        keep = (df >= (2 if len(sample) >= 20 else 1)) & (df <= max(1, int(_WHOLE * len(sample))))
        keep |= (len(sample) < 20) & (df <= len(sample))
        features, df = features[keep], df[keep]
        if len(features) > MOST_FEATURES:
            most = np.sort(np.argsort(-df, kind="stable")[:MOST_FEATURES])
            features, df = features[most], df[most]
        idf = np.log((1.0 + len(sample)) / (1.0 + df)).astype(np.float32) + 1.0
        if not len(features):
            return cls(features.astype(np.uint32), idf, np.zeros((0, 1), np.float16))
        right = _right_vectors(_matrix(counted, features, idf), dims)
        return cls(features, idf, right.astype(np.float16))

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, dims) float32, unit rows; a zero row for a text without a known feature. Questions are embedded like texts."""
        vectors = np.zeros((len(texts), self.dims), dtype=np.float32)
        if not len(self.features):
            return vectors
        for start in range(0, len(texts), 1000):
            rows = _matrix([_features(text) for text in texts[start : start + 1000]], self.features, self.idf)
            vectors[start : start + 1000] = rows @ self._wide
        return _unit(vectors)

    def save(self, folder: Path) -> None:
        """Write the folder aside and rename it: it is complete or absent. Replaces what is there."""
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir(mode=0o700)
        with open(aside / "arrays.npz", "wb") as file:
            np.savez(file, features=self.features, idf=self.idf, projection=self.projection)
            file.flush()
            os.fsync(file.fileno())
        about = {
            "kind": "vault-lsa",
            "version": VERSION,
            "fingerprint": self.fingerprint,
            "dims": self.dims,
            "features": len(self.features),
        }
        (aside / "embedder.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(aside, folder)

    @classmethod
    def load(cls, folder: Path) -> VaultEmbedder:
        """Read what `save` wrote. Raises ValueError when it is missing, damaged, or of another version."""
        try:
            about: dict[str, Any] = json.loads((folder / "embedder.json").read_text(encoding="utf-8"))
            with open(folder / "arrays.npz", "rb") as file, np.load(file, allow_pickle=False) as arrays:
                embedder = cls(arrays["features"], arrays["idf"], arrays["projection"])
        except Exception as error:  # numpy and zipfile raise a dozen kinds for a damaged file
            raise ValueError(f"{folder.name} cannot be read: {error}") from error
        if about.get("version") != VERSION or about.get("fingerprint") != embedder.fingerprint:
            raise ValueError(f"{folder.name} is damaged or of another version")
        return embedder


@functools.lru_cache(maxsize=100_000)
def _word_features(word: str) -> np.ndarray:
    """Hashes of a word's stem and of its 3- to 5-grams. `crc32` because `hash` differs between processes."""
    names = {f"={texts.stem(word)}", *(gram for n in (3, 4, 5) for gram in texts.word_grams(word, n))}
    return np.array(sorted(zlib.crc32(name.encode("utf-8", "surrogatepass")) for name in names), dtype=np.uint32)


def _features(text: str) -> tuple[np.ndarray, np.ndarray]:
    """A text's distinct feature hashes, sorted, and how often each stands in it."""
    found = [_word_features(word[:64]) for word in texts.words(text)]
    if not found:
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    return np.unique(np.concatenate(found), return_counts=True)


def _matrix(counted: Sequence[tuple[np.ndarray, np.ndarray]], features: np.ndarray, idf: np.ndarray) -> csr_matrix:
    """(texts, features) sublinear TF-IDF, unit rows."""
    from scipy.sparse import csr_matrix

    columns, values, ends = [], [], [0]
    for hashes, counts in counted:
        places = np.searchsorted(features, hashes)
        places[places == len(features)] = 0
        known = features[places] == hashes
        places = places[known]
        weights = (1.0 + np.log(counts[known])).astype(np.float32) * idf[places]
        norm = float(np.sqrt(np.dot(weights, weights)))
        columns.append(places.astype(np.int32))
        values.append(weights / norm if norm else weights)
        ends.append(ends[-1] + len(places))
    return csr_matrix(
        (np.concatenate(values), np.concatenate(columns), np.array(ends)), shape=(len(counted), len(features)), dtype=np.float32
    )


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


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: np.ndarray = np.divide(vectors, norms, out=np.zeros_like(vectors), where=norms > 1e-6)
    return unit
