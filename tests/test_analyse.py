"""The report on the vectors: spectra that are known by hand, cuts whose price is known beforehand, and a recommendation that follows."""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.stored import put
from vaultllm.errors import DataError, UsageError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.memory import analyse, layout
from vaultllm.memory.embed import VaultEmbedder


def fill(ledger: Ledger, notes: int) -> None:
    """Notes of two sections, each note in ten words of its own."""
    rng = np.random.default_rng(7)
    parts = "ва ло ми ру се ты кон дор пал зем лис воз".split()
    words = ["".join(rng.choice(parts, 3)) for _ in range(10 * notes)]
    for number in range(notes):
        own = words[10 * number : 10 * number + 10]
        said = [" ".join(rng.choice(own, 6)) + "." for _ in range(8)]
        path = f"a/{number:03}.md"
        put(
            ledger, path, f"# {own[0]} {own[1]} {own[2]}\n\n{' '.join(said[:4])}\n\n## {own[3]} {own[4]} {own[5]}\n\n{' '.join(said[4:])}\n"
        )


class Words:
    """A text is the sum of its words, each a random direction of the `used` dimensions among `dims`."""

    def __init__(self, dims: int, used: int) -> None:
        self.dims, self.used, self.fingerprint = dims, used, f"words-{dims}-{used}"

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        out = np.zeros((len(texts), self.dims), dtype=np.float32)
        for row, text in enumerate(texts):
            for word in text.replace(".", " ").split():
                out[row, : self.used] += np.random.default_rng(zlib.crc32(word.encode())).normal(size=self.used)
        return layout.unit(out)


def remember(ledger: Ledger, embedder: Words | VaultEmbedder) -> None:
    slots = ledger.without_vector("")
    ledger.put_vectors(embedder.fingerprint, slots, embedder.embed([f"{context}\n{text}" for _, text, context in ledger.texts(slots)]))


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ledger]:
    with Ledger(tmp_path_factory.mktemp("vault") / "ledger.db") as opened:
        fill(opened, 120)
        yield opened


# -- the spectrum


@pytest.mark.parametrize("rank", [1, 3, 16])
def test_equal_directions_are_counted(rank: int) -> None:
    axes = np.concatenate([np.eye(16, dtype=np.float32)[:rank], -np.eye(16, dtype=np.float32)[:rank]])
    shape = analyse.spectrum(axes)
    assert shape["effective_rank"] == pytest.approx(rank, abs=0.01)
    assert shape["participation_ratio"] == pytest.approx(rank, abs=0.01)
    assert shape["dims_99"] == rank
    assert len(shape["explained"]) == 16
    assert shape["explained"][rank - 1 :] == pytest.approx([1.0] * (17 - rank))


def test_unequal_directions_are_weighed_as_by_hand() -> None:
    # Singular values 2 : 1, variances 4 : 1.
    vectors = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]], dtype=np.float32)
    shape = analyse.spectrum(vectors)
    entropy = -(2 / 3 * np.log(2 / 3) + 1 / 3 * np.log(1 / 3))
    assert shape["effective_rank"] == round(float(np.exp(entropy)), 2)
    assert shape["participation_ratio"] == round(25 / 17, 2)
    assert shape["explained"] == [0.8, 1.0]
    assert (shape["dims_90"], shape["dims_95"], shape["dims_99"]) == (2, 2, 2)


def test_the_mean_is_no_direction() -> None:
    vectors = np.array([[5, 0, 0], [5, 0, 0], [5, 0, 0]], dtype=np.float32)
    assert analyse.spectrum(vectors)["effective_rank"] == 0.0
    assert analyse.spectrum(vectors + np.array([[0, 1, 0], [0, -1, 0], [0, 0, 0]], dtype=np.float32))["effective_rank"] == 1.0


# -- smaller vectors


def test_principal_directions_keep_the_dot_products_of_vectors_of_low_rank() -> None:
    rng = np.random.default_rng(0)
    vectors = layout.unit((rng.normal(size=(300, 4)) @ rng.normal(size=(4, 32))).astype(np.float32))
    axes = analyse.principal(vectors, 4)
    np.testing.assert_allclose(axes.T @ axes, np.eye(4), atol=1e-5)
    small = analyse.cut(vectors, axes)
    assert small.shape == (300, 4)
    np.testing.assert_allclose(small @ small.T, vectors @ vectors.T, atol=1e-4)
    np.testing.assert_array_equal(axes, analyse.principal(vectors.copy(), 4))
    smaller = analyse.cut(vectors, axes[:, :2])
    assert np.abs(smaller @ smaller.T - vectors @ vectors.T).max() > 0.1


def test_int8_is_off_by_half_a_step_at_most() -> None:
    vectors = layout.unit(np.random.default_rng(0).normal(size=(50, 24)).astype(np.float32))
    vectors[7] = 0
    codes, scales = analyse.quantised(vectors)
    assert codes.dtype == np.int8
    assert (np.abs(codes.astype(int)).max(axis=1) == np.where(np.arange(50) == 7, 0, 127)).all()
    assert (np.abs(analyse.restored(codes, scales) - vectors) <= scales[:, None] / 2 + 1e-7).all()


# -- the price


def test_a_passage_does_not_compete_with_itself_and_equals_stand_in_the_middle() -> None:
    stored = np.array([[1, 0], [0.8, 0.6], [0, 1], [0.8, 0.6]], dtype=np.float32)
    queries = np.array([[1, 0], [1, 0], [0.8, 0.6]], dtype=np.float32)
    targets = np.array([[0.9, 0], [0.9, 0], [0.8, 0.6]], dtype=np.float32)
    assert analyse._ranks(stored, queries, targets, [[], [0], [1]]).tolist() == [2.0, 1.0, 1.5]


def test_dimensions_that_hold_nothing_are_recommended_away(ledger: Ledger) -> None:
    embedder = Words(128, 16)
    remember(ledger, embedder)
    report = analyse.report(ledger, embedder)
    by = {(one["dims"], one["precision"]): one for one in report["cuts"]}
    assert list(by) == [(dims, precision) for dims in (128, 64, 32, 16) for precision in ("float32", "int8")]
    assert by[16, "float32"]["lost@10"]["points"] == 0
    assert by[16, "float32"]["overlap@10"] > 0.99
    assert report["recommended"] == {"dims": 16, "precision": "int8"}
    assert report["spectrum"]["dims_99"] <= 16
    assert "memory.dims = 16 with memory.precision" in analyse.recommendation(report)
    assert by[128, "float32"]["recall@10"] > 0.5


def test_dimensions_that_all_count_are_not_cut(ledger: Ledger) -> None:
    embedder = Words(32, 32)
    remember(ledger, embedder)
    report = analyse.report(ledger, embedder)
    by = {(one["dims"], one["precision"]): one for one in report["cuts"]}
    assert list(by)[-1] == (8, "int8")
    assert by[8, "float32"]["lost@1"]["points"] > 5
    assert by[8, "float32"]["lost@1"]["low"] > 0
    assert by[8, "float32"]["overlap@10"] < by[16, "float32"]["overlap@10"] < by[32, "int8"]["overlap@10"]
    assert report["recommended"] == {"dims": 32, "precision": "int8"}
    assert by[32, "int8"]["bytes"] == report["vectors"] * (32 + 4)
    assert by[32, "int8"]["saved"] == report["vectors"] * (4 * 32 - 36)


def test_vectors_that_say_nothing_of_the_texts_find_nothing(ledger: Ledger) -> None:
    class Blind(Words):
        def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
            return np.full((len(texts), 16), 0.25, dtype=np.float32)

    embedder = Blind(16, 1)
    remember(ledger, embedder)
    report = analyse.report(ledger, embedder)
    assert report["cuts"][0]["recall@10"] == 0
    assert report["spectrum"]["effective_rank"] == 0


def test_the_report_is_plain_data_and_tells_what_it_asked(ledger: Ledger) -> None:
    embedder = Words(64, 64)
    remember(ledger, embedder)
    report = analyse.report(ledger, embedder)
    assert json.loads(json.dumps(report)) == report
    assert report == analyse.report(ledger, embedder)
    assert report["held_out"]
    assert report["questions"] == sum(report["kinds"].values()) >= analyse.FEW
    assert set(report["kinds"]) == {"heading", "sentence"}
    assert set(report["cuts"][0]["by_kind"]) == {"heading", "sentence"}
    assert (report["vectors"], report["sampled"], report["empty"], report["dims"]) == (ledger.counts()["passages"],) * 2 + (0, 64)
    assert report["cuts"][0]["lost@10"] == {"points": 0.0, "low": 0.0, "high": 0.0}


def test_a_large_vault_is_sampled(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(analyse, "SAMPLE", 50)
    embedder = Words(32, 32)
    remember(ledger, embedder)
    report = analyse.report(ledger, embedder)
    assert report["sampled"] <= 50 < report["vectors"]
    assert report["cuts"][0]["bytes"] == report["vectors"] * 128


def test_a_small_vault_gets_numbers_but_no_advice(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as small:
        fill(small, 8)
        embedder = VaultEmbedder.fit([text for _, text, _ in small.texts(small.without_vector(""))], 32)
        remember(small, embedder)
        report = analyse.report(small, embedder)
    assert 0 < report["questions"] < analyse.FEW
    assert not report["held_out"]
    assert report["recommended"] is None
    assert "too few" in analyse.lines(report)[-1]


def test_too_few_vectors_are_said(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as small:
        embedder = Words(16, 16)
        with pytest.raises(DataError, match="ingest"):
            analyse.report(small, embedder)
        fill(small, 2)
        remember(small, embedder)
        with pytest.raises(DataError, match="ten are the least"):
            analyse.report(small, embedder)


def test_the_embedder_that_answers_is_the_one_the_ledger_names(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as small:
        assert analyse.fingerprint_of(small) == ""
        fill(small, 3)
        slots = small.without_vector("")
        small.put_vectors("old", slots[:1], np.ones((1, 4), dtype=np.float32))
        small.put_vectors("new", slots[1:], np.ones((len(slots) - 1, 4), dtype=np.float32))
        for said, meant in (('{"fingerprint": "old"}', "old"), ('{"fingerprint": "gone"}', "new"), ("{", "new"), ("[1]", "new")):
            small.set("embedder", said)
            assert analyse.fingerprint_of(small) == meant


# -- shown


@pytest.fixture(scope="module")
def report(ledger: Ledger) -> dict:
    embedder = Words(64, 32)
    remember(ledger, embedder)
    return analyse.report(ledger, embedder)


def test_the_lines_hold_a_row_for_each_cut(report: dict) -> None:
    said = analyse.lines(report)
    assert f"{report['vectors']:,} vectors of 64 dimensions" in said[0]
    table = [line.split() for line in said if line.split()[0].isdigit() and line.split()[1] in ("float32", "int8")]
    assert [(int(row[0]), row[1]) for row in table] == [(one["dims"], one["precision"]) for one in report["cuts"]]
    header = next(line for line in said if line.split()[0] == "dims")
    assert len({len(line) for line in said if line == header or line.split()[1] in ("float32", "int8")}) == 1
    assert said[-1] == analyse.recommendation(report)


def test_the_advice_is_what_was_measured(report: dict) -> None:
    keep = report | {"recommended": {"dims": 64, "precision": "float32"}}
    assert analyse.recommendation(keep).startswith("Leave memory.dims = 64")
    only = report | {"recommended": {"dims": 64, "precision": "int8"}}
    assert analyse.recommendation(only).startswith('memory.precision = "int8"')
    dear = json.loads(json.dumps(only))
    dear["cuts"][1]["lost@1"]["points"] = 0.7
    assert "loses 0.7 points" in analyse.recommendation(dear)
    assert analyse._recommended([*dear["cuts"][:2]], 100) == {"dims": 64, "precision": "int8"}
    dear["cuts"][1]["lost@1"]["points"] = 1.0
    assert analyse._recommended([*dear["cuts"][:2]], 100) == {"dims": 64, "precision": "float32"}


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("sub/b.SVG", b"<?xml"), ("c.pdf", b"%PDF")])
def test_the_plot_is_a_private_picture(report: dict, tmp_path: Path, name: str, begins: bytes) -> None:
    analyse.plot(report, tmp_path / name)
    assert (tmp_path / name).read_bytes().startswith(begins)
    assert (tmp_path / name).stat().st_mode & 0o777 == 0o600


def test_a_plot_that_cannot_be_made_is_named(report: dict, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"\.png"):
        analyse.plot(report, tmp_path / "plot.txt")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    with pytest.raises(VaultError, match="--plot"):
        analyse.plot(report, tmp_path / "file" / "plot.png")


def test_a_report_without_questions_is_drawn_and_told(report: dict, tmp_path: Path) -> None:
    bare = json.loads(json.dumps(report)) | {"questions": 0, "kinds": {}, "recommended": None}
    for one in bare["cuts"]:
        one.update({"recall@1": None, "recall@10": None, "mrr": None, "lost@1": None, "lost@10": None, "by_kind": {}})
    analyse.plot(bare, tmp_path / "a.png")
    assert "0 questions" in "\n".join(analyse.lines(bare))
