"""The vault's own embedder: deterministic, small vaults included, complete on disk or absent."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from vaultllm import text as texts
from vaultllm.memory import embed
from vaultllm.memory.embed import Reduced, VaultEmbedder, pack, unpack

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


def test_a_vector_is_the_sum_of_its_texts_features() -> None:
    passages = [text for _, text in _passages(60)]
    embedder = VaultEmbedder.fit(passages, 16)
    row = {int(feature): number for number, feature in enumerate(embedder.features)}
    text = "Ёжик и теплица теплица; rye-bread নদী নদী নদী x"
    counts: Counter[int] = Counter()
    for word in texts.words(text):
        names = {f"={texts.stem(word)}", *(gram for n in (3, 4, 5) for gram in texts.word_grams(word, n))}
        counts.update({zlib.crc32(name.encode()) for name in names})
    expected = np.zeros(embedder.dims)
    for feature, count in counts.items():
        if feature in row:
            number = row[feature]
            expected += (1 + math.log(count)) * float(embedder.idf[number]) * embedder.projection[number].astype(float)
    np.testing.assert_allclose(embedder.embed([text])[0], expected / np.linalg.norm(expected), atol=1e-5)


def test_a_text_has_the_very_same_vector_in_any_company(monkeypatch: pytest.MonkeyPatch) -> None:
    passages = [text for _, text in _passages(60)]
    embedder = VaultEmbedder.fit(passages, 16)
    together = embedder.embed(passages)
    alone = np.concatenate([embedder.embed([text]) for text in passages])
    np.testing.assert_array_equal(alone, together)
    monkeypatch.setattr(embed, "MOST_WORDS", 3)  # the words are forgotten again and again
    np.testing.assert_array_equal(np.concatenate([embedder.embed([text]) for text in passages]), together)
    assert len(embedder._words._ids) <= 3 + 5  # a passage has five words


def test_a_question_has_the_vector_of_its_text() -> None:
    passages = [text for _, text in _passages(90)]
    embedder = VaultEmbedder.fit(passages, 32)
    asked = [*passages[:9], "полив полив грядка " * 40, "неслыханное", "", "নদী-জল"]
    assert np.allclose(embedder.embed(asked, query=True), embedder.embed(asked), atol=1e-5)
    assert embedder.embed([], query=True).shape == (0, embedder.dims)


def test_fewer_dimensions_keep_the_strongest_directions(tmp_path: Path) -> None:
    passages = [text for _, text in _passages(90)]
    whole = VaultEmbedder.fit(passages, 32)
    vectors = whole.embed(passages)
    reduced = Reduced.fit(whole, vectors, 8)
    cut = reduced.embed(passages)
    assert cut.shape == (90, reduced.dims) == (90, 8)
    np.testing.assert_allclose(np.linalg.norm(cut, axis=1), 1.0, atol=1e-4)
    random, _ = np.linalg.qr(np.random.default_rng(0).standard_normal((whole.dims, 8)))

    def lost(some: np.ndarray) -> float:
        return float(np.abs(some @ some.T - vectors @ vectors.T).mean())

    assert lost(cut) < 0.5 * lost(Reduced(whole, random.astype(np.float32)).embed(passages))
    same = Reduced.fit(whole, vectors, 999)
    np.testing.assert_allclose(same.embed(passages) @ same.embed(passages).T, vectors @ vectors.T, atol=1e-4)
    reduced.save(tmp_path / "r")
    loaded = Reduced.load(tmp_path / "r", whole)
    assert loaded.fingerprint == reduced.fingerprint != same.fingerprint
    np.testing.assert_array_equal(loaded.embed(passages), cut)


@pytest.mark.parametrize("damage", ["missing", "flipped", "other", "json"])
def test_damaged_or_foreign_directions_are_refused(tmp_path: Path, damage: str) -> None:
    passages = [text for _, text in _passages(90)]
    inner = VaultEmbedder.fit(passages, 32)
    Reduced.fit(inner, inner.embed(passages), 8).save(tmp_path / "r")
    file = tmp_path / "r" / "turn.npy"
    if damage == "missing":
        file.unlink()
    elif damage == "flipped":
        data = bytearray(file.read_bytes())
        data[-5] ^= 0xFF
        file.write_bytes(data)
    elif damage == "json":
        (tmp_path / "r" / "embedder.json").write_text("[]")
    else:
        inner = VaultEmbedder.fit(passages[1:], 32)
    with pytest.raises(ValueError, match="r "):
        Reduced.load(tmp_path / "r", inner)


def test_int8_is_a_quarter_of_the_bytes_and_hardly_another_vector() -> None:
    vectors = embed.unit(np.random.default_rng(0).standard_normal((200, 256)).astype(np.float32))
    vectors[7] = 0.0
    stored = pack(vectors, "int8")
    assert {len(row) for row in stored} == {260}
    assert {len(row) for row in pack(vectors)} == {1024}
    back = unpack(stored, "int8")
    assert back.dtype == np.float32
    assert not back[7].any()
    others = np.arange(200) != 7
    np.testing.assert_allclose(np.linalg.norm(back[others], axis=1), 1.0, atol=1e-5)
    assert (back[others] * vectors[others]).sum(axis=1).min() > 0.9998
    np.testing.assert_array_equal(unpack(pack(vectors)), vectors)


@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_nothing_packed_is_nothing_and_mixed_lengths_are_refused(precision: embed.Precision) -> None:
    assert pack(np.zeros((0, 4), np.float32), precision) == []
    assert unpack([], precision).shape == (0, 0)
    with pytest.raises(ValueError, match="different lengths"):
        unpack([bytes(8), bytes(12)], precision)
