"""The vault's own embedder: deterministic, small vaults included, complete on disk or absent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from vaultllm.memory import embed
from vaultllm.memory.embed import VaultEmbedder

TOPICS = {
    "теплица": "помидоры огурцы полив теплица почва влажность насос датчик бочка грядка",
    "bread": "rye bread flour hydration starter loaf oven crust steam dough",
    "নদী": "নদী বৃষ্টি জল বন্যা পূর্বাভাস মাপ নৌকা তীর স্রোত",
}


def _passages(n: int) -> list[tuple[str, str]]:
    rng = np.random.default_rng(1)
    names = list(TOPICS)
    out = []
    for index in range(n):
        name = names[index % len(names)]
        out.append((name, " ".join(rng.choice(TOPICS[name].split(), 5))))
    return out


def test_texts_of_one_topic_lie_together() -> None:
    passages = _passages(90)
    embedder = VaultEmbedder.fit([text for _, text in passages], 32)
    vectors = embedder.embed([text for _, text in passages])
    cosines = vectors @ vectors.T
    same = np.array([[a == b for b, _ in passages] for a, _ in passages])
    assert cosines[same].mean() > cosines[~same].mean() + 0.3
    assert vectors.shape == (90, embedder.dims)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-4)


def test_words_that_share_no_letter_but_company_are_near() -> None:
    texts = ["кот мурлычет диван", "мурлычет диван пушистый", "пушистый зверь диван"] * 5 + ["steel bridge river", "bridge river water"] * 5
    embedder = VaultEmbedder.fit(texts, 2)
    cat, beast, steel = embedder.embed(["кот", "зверь", "steel"])
    assert cat @ beast > 0.5 > cat @ steel


@pytest.mark.parametrize("passages", [["одна заметка"], ["a", "a", "a"], ["раз два", "два три", "три раз", "b", ""], [""], []])
def test_a_tiny_vault_is_embedded(passages: list[str]) -> None:
    embedder = VaultEmbedder.fit(passages, 256)
    vectors = embedder.embed(passages)
    assert vectors.shape == (len(passages), embedder.dims)
    assert np.isfinite(vectors).all()
    for text, row in zip(passages, vectors, strict=True):
        assert np.linalg.norm(row) == pytest.approx(1.0 if text else 0.0, abs=1e-3)


def test_a_text_of_unknown_words_is_a_zero_row() -> None:
    embedder = VaultEmbedder.fit([text for _, text in _passages(30)], 16)
    unknown, empty = embedder.embed(["ქართული", ""], query=True)
    assert not unknown.any()
    assert not empty.any()


def test_the_same_passages_give_the_same_embedder_in_another_process() -> None:
    passages = [text for _, text in _passages(40)]
    code = (
        "import json, sys; from vaultllm.memory.embed import VaultEmbedder;"
        "print(VaultEmbedder.fit(json.loads(sys.stdin.read()), 16).fingerprint)"
    )
    ran = subprocess.run([sys.executable, "-c", code], input=json.dumps(passages), capture_output=True, text=True, check=True)
    embedder = VaultEmbedder.fit(passages, 16)
    assert ran.stdout.strip() == embedder.fingerprint
    assert VaultEmbedder.fit(passages[1:], 16).fingerprint != embedder.fingerprint


def test_a_saved_embedder_gives_the_same_vectors(tmp_path: Path) -> None:
    passages = [text for _, text in _passages(40)]
    embedder = VaultEmbedder.fit(passages, 16)
    embedder.save(tmp_path / "e")
    embedder.save(tmp_path / "e")
    loaded = VaultEmbedder.load(tmp_path / "e")
    assert loaded.fingerprint == embedder.fingerprint
    np.testing.assert_array_equal(loaded.embed(passages), embedder.embed(passages))
    assert [path.name for path in tmp_path.iterdir()] == ["e"]


@pytest.mark.parametrize("damage", ["missing", "cut", "flipped", "json", "foreign"])
def test_a_damaged_embedder_is_refused(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "e"
    VaultEmbedder.fit([text for _, text in _passages(40)], 16).save(folder)
    arrays = folder / "arrays.npz"
    data = bytearray(arrays.read_bytes())
    if damage == "missing":
        arrays.unlink()
    elif damage == "cut":
        arrays.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        data[len(data) // 2] ^= 0xFF
        arrays.write_bytes(data)
    elif damage == "json":
        (folder / "embedder.json").write_text("{")
    else:
        about = json.loads((folder / "embedder.json").read_text())
        (folder / "embedder.json").write_text(json.dumps({**about, "version": embed.VERSION + 1}))
    with pytest.raises(ValueError, match="e "):
        VaultEmbedder.load(folder)


def test_the_projection_is_as_good_as_an_exact_svd() -> None:
    from scipy.sparse import random as sparse_random
    from scipy.sparse.linalg import svds

    matrix = sparse_random(300, 900, density=0.03, random_state=0, dtype=np.float32, format="csr")
    right = embed._right_vectors(matrix, 40)
    _, values, _ = svds(matrix, 40, random_state=0)
    np.testing.assert_allclose(right.T @ right, np.eye(40), atol=1e-4)
    assert np.linalg.norm(matrix @ right) ** 2 > 0.97 * float((values**2).sum())
