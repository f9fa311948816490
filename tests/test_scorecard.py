"""All measures of a training: together, within the time, and never at the training's expense; what recites is not let in."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import evaluate, manners, memorised, scorecard, training, training_views
from vaultllm.errors import DataError, ModelError
from vaultllm.evaluate import Score
from vaultllm.models import hf
from vaultllm.schema import Example, Message, Progress


def talk(i: int, split: Any) -> Example:
    said = (
        Message("user", f"Сколько воды было {i} числа?", False),
        Message("assistant", f"Вода поднялась на {i} сантиметров утром.", True),
    )
    return Example(f"{split}{i}", (), f"{split}{i}.md", "dialogue", said, split)


TRAIN = [talk(i, "train") for i in range(40)]
HELD_OUT = [talk(i, "val") for i in range(40, 75)]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> hf.Loaded:
    return models.learnt(tmp_path_factory.mktemp("scorecard") / "base", [one.messages[1].text for one in TRAIN[:4]], steps=20)


@pytest.fixture(scope="module")
def scores(loaded: hf.Loaded) -> dict[str, list[Score]]:
    with evaluate.base_only(loaded.model):
        base = evaluate.score(loaded.model, loaded.tokenizer, HELD_OUT, max_tokens=128)
    return {"base": base, "candidate": evaluate.score(loaded.model, loaded.tokenizer, HELD_OUT, max_tokens=128)}


def measured(loaded: hf.Loaded, scores: dict[str, list[Score]], seconds: float, seen: list[str] | None = None) -> dict[str, Any]:
    def progress(one: Progress) -> None:
        if seen is not None:
            seen.append(one.phase)

    return scorecard.measure(
        loaded, TRAIN, HELD_OUT, scores, seconds, base_sha="s", samples=None, recall=lambda question, path: "", progress=progress
    )


def test_every_measure_is_there_and_shown_side_by_side(loaded: hf.Loaded, scores: dict[str, list[Score]]) -> None:
    seen: list[str] = []
    found = measured(loaded, scores, 30, seen)
    assert list(found) == [*scorecard.SHARES, "measured_seconds"]
    assert [one.removeprefix("measuring: ") for one in seen] == list(scorecard.SHARES)
    assert found["yardsticks"]["notes"] == 35
    assert found["yardsticks"]["base"] == pytest.approx(evaluate.bits_per_byte(scores["base"]))
    assert found["memorised"]["recited"] == {"skipped": "no learnt text is long enough to be recited"}
    assert found["probes"]["headings"] == {"skipped": "fewer than 4 held-out sections of one language"}
    assert found["drift"]["kl_bits"] > 0
    rows = {row[0]: row for row in training_views.yardstick_rows(found["yardsticks"])}
    assert set(rows) == {"base", "the new adapter", "n-gram model", "xz"}
    assert rows["the new adapter"][3] == ""
    gain = found["yardsticks"]["intervals"]["candidate → ngram"]
    assert rows["n-gram model"][3].startswith(f"{-gain['mean']:+.3f} ({-gain['high']:+.3f} to {-gain['low']:+.3f})")
    said = {row[0]: row for row in training_views.measure_rows(found)}
    assert said["drift"][3].endswith(f"KL {found['drift']['kl_bits']:.3f} bits a token")
    assert said["answers that loop"][3] == f"of {found['manners']['questions']} questions"


def test_little_time_is_kept_to_and_said(loaded: hf.Loaded, scores: dict[str, list[Score]]) -> None:
    began = time.process_time()
    found = measured(loaded, scores, 0.5)
    assert time.process_time() - began < 8  # a step of each at least
    assert found["manners"]["questions"] < found["manners"]["of"]


def test_a_measure_that_fails_is_skipped_with_its_reason_and_the_others_are_not(
    loaded: hf.Loaded, scores: dict[str, list[Score]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: Any, **options: Any) -> None:
        raise DataError("no such thing")

    monkeypatch.setattr(manners, "measure", broken)
    found = measured(loaded, scores, 1.0)
    assert found["manners"] == {"skipped": "it failed: E-DATA no such thing"}
    assert "skipped" not in found["drift"]
    assert ("answers", "", "", "skipped: it failed: E-DATA no such thing") in training_views.measure_rows(found)


def test_an_interrupt_is_no_failure_of_a_measure(
    loaded: hf.Loaded, scores: dict[str, list[Score]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*args: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(memorised, "measure", stop)
    with pytest.raises(KeyboardInterrupt):
        measured(loaded, scores, 1.0)


def metrics(new: int, notes: int = 40, decided: bool = True, **yard: Any) -> dict[str, Any]:
    told = {"passages": 20, "base": 0, "trained": new, "new": new, "share": new / 20}
    return {"memorised": {"recited": told}, "yardsticks": yard, "interval": {"notes": notes, "decided": decided, "mean": -0.1}}


def test_what_recites_notes_does_not_answer_and_what_is_only_not_worse_says_so() -> None:
    assert training._proven(metrics(2), 0.1, True, "cheaper") == (True, "cheaper")
    refused, why = training._proven(metrics(3), 0.1, True, "cheaper")
    assert not refused
    assert "3 of 20 passages" in why
    assert training._proven(metrics(3), 0.1, False, "dearer") == (False, "dearer")
    allowed, why = training._proven(metrics(0, notes=28, decided=False), 0.1, True, "cheaper")
    assert allowed
    assert why == "cheaper; not worse, but not enough to decide that it is better (28 held-out notes, it takes 30)"
    assert training._proven(metrics(0, decided=False), 0.1, True, "cheaper")[1].endswith("better (the interval reaches zero)")
    with_current = metrics(0, intervals={"current → candidate": {"notes": 9, "decided": False}})
    assert "9 held-out notes" in training._proven(with_current, 0.1, True, "cheaper")[1]


def test_scores_are_read_as_they_were_written_and_damaged_ones_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "scores.json"
    assert evaluate.read_scores(path) == {}
    several = {"base": [Score("a", "Река/«Вода».md", 12.25, 40)], "candidate": []}
    evaluate.write_scores(path, several)
    assert evaluate.read_scores(path) == several
    for damaged in ("", "[]", '{"base": [["a", "b"]]}', '{"base": [["a", "b", "x", 1]]}'):
        path.write_text(damaged, encoding="utf-8")
        with pytest.raises(DataError, match="cannot be read"):
            evaluate.read_scores(path)


def test_an_adapter_that_cannot_be_loaded_is_measured_by_nobody(tmp_path: Path) -> None:
    def gone() -> Any:
        raise ModelError("it is gone", path="x")

    run = type("R", (), {"id": "r", "base": "b", "base_sha": "s"})
    workspace = type("W", (), {"runs": tmp_path, "bases": tmp_path})
    found = training._scorecard(workspace, None, run, gone, None, 1.0, lambda progress: None)  # type: ignore[arg-type]
    assert found == {name: {"skipped": "it is gone"} for name in scorecard.SHARES}
