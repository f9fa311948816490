"""The confidence that the vault speaks of a question: its features, its fit, its threshold, and what recall and ask make of it."""

# ruff: noqa: E501 - a note stays on its lines

from __future__ import annotations

import itertools
import json
import math
import random
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from vaultllm import answer, config, recall, remember, steps
from vaultllm.memory import answerable, embed
from vaultllm.memory.answerable import DEFAULT, FEATURES, Calibration, Seen

NOTES = {
    "Сад/Полив.md": "# Полив\n\n## Насос\n\nНасос включается, когда влажность почвы ниже тридцати двух процентов. Бак на крыше держит сорок литров.\n\n"
    "## Рассада\n\nРассаду томатов поливают утром, перцы любят тепло и свет.\n",
    "Сад/Теплица.md": "# Теплица\n\nПоликарбонат на дугах, форточка открывается при двадцати трёх градусах, дверь смотрит на запад.\n",
    "Bread.md": "# Rye\n\nRye bread needs fourteen hours of cold proof and a hot oven. The starter is fed twice a day with warm water.\n",
    "Boat.md": "# Boat\n\nThe kayak leaks at the third rib; epoxy and a strip of birch plywood close the crack before spring.\n",
    "নদী.md": "# নদী\n\nআজ সকালে বৃষ্টি হয়েছে। নদীর জল দুই মিটার বেড়েছে। নৌকা ঘাটে বাঁধা আছে।\n",
    "ছাদ.md": "# ছাদ\n\nঠাকুমার ছাদে তেইশটা টব আছে, একটা টব সবসময় খালি থাকে।\n",
    "Дневник/2024-06-15.md": "# 2024-06-15\n\nКрасил забор зелёной краской, к вечеру устал и уснул на веранде.\n",
}
SPOKEN = (
    "Когда включается насос?",
    "При скольких градусах открывается форточка?",
    "How long does rye bread proof?",
    "Where does the kayak leak?",
    "নদীর জল কত বেড়েছে?",
    "ছাদে কটা টব আছে?",
)
UNSPOKEN = (
    "Какая столица Монголии?",
    "Как поменять масло в коробке передач?",
    "How do I renew my passport?",
    "Who painted the ceiling of the chapel?",
    "পাসপোর্ট কীভাবে নবায়ন করব?",
    "বিশ্বকাপ ফুটবল কে জিতেছিল?",
)


def opened(root: Path, notes: dict[str, str]) -> steps.Job:
    for path, text in notes.items():
        (root / "vault" / path).parent.mkdir(parents=True, exist_ok=True)
        (root / "vault" / path).write_text(text, encoding="utf-8")
    job = steps.Job(config.init_workspace(root / "vault", str(root / "state")))
    steps.ingest(job)
    return job


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[steps.Job]:
    job = opened(tmp_path_factory.mktemp("small"), NOTES)
    yield job
    job.close()


def topics(count: int) -> dict[str, str]:
    """Notes of words of their own, among words that all share: every sentence of a note speaks of its topic."""
    draw = random.Random(5)
    shared = "когда потом вода утром дом дорога рука время город стол книга окно зима лето река".split()
    notes = {}
    for number in range(count):
        own = ["".join(draw.choice("бвгдклмнпрст") + draw.choice("аеиоу") for _ in range(3)) for _ in range(10)]
        sentences = []
        for _ in range(8):
            words = draw.sample(own, 4) + draw.sample(shared, 4)
            draw.shuffle(words)
            sentences.append(" ".join(words).capitalize() + ".")
        notes[f"Тема {number}.md"] = (
            f"# {own[0]} {own[1]} {own[2]}\n\n{' '.join(sentences[:4])}\n\n## {own[3]} {own[4]} {own[5]}\n\n{' '.join(sentences[4:])}\n"
        )
    return notes


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[steps.Job]:
    job = opened(tmp_path_factory.mktemp("large"), topics(80))
    yield job
    job.close()


def find(job: steps.Job, question: str, **options: object) -> recall.Found:
    return recall.find(job.ledger, job.workspace.memory, job.workspace.settings.memory, question, 5, **options)  # type: ignore[arg-type]


def own_embedder(job: steps.Job) -> embed.Embedder:
    return remember.opened(job.ledger, job.workspace.memory)


# -- one question


def test_what_the_vault_speaks_of_is_surer_than_what_it_does_not_in_three_languages(small: steps.Job) -> None:
    sure = {question: find(small, question).confidence for question in (*SPOKEN, *UNSPOKEN)}
    assert all(0.0 <= one <= 1.0 for one in sure.values())
    assert min(sure[question] for question in SPOKEN) > max(sure[question] for question in UNSPOKEN), sure


@pytest.mark.parametrize("question", SPOKEN)
def test_the_fixed_weights_say_that_the_vault_speaks_of_it(small: steps.Job, question: str) -> None:
    assert find(small, question).answerable


@pytest.mark.parametrize("question", UNSPOKEN)
def test_the_fixed_weights_say_that_nothing_speaks_of_it(small: steps.Job, question: str) -> None:
    assert not find(small, question).answerable


def test_a_note_that_is_gone_takes_its_answer_with_it(tmp_path: Path) -> None:
    job = opened(tmp_path, NOTES)
    before = find(job, "Where does the kayak leak?")
    (tmp_path / "vault/Boat.md").unlink()
    steps.ingest(job)
    after = find(job, "Where does the kayak leak?")
    job.close()
    assert before.answerable
    assert not after.answerable
    assert after.confidence < before.confidence


def test_a_slip_of_the_hand_costs_less_than_a_word_that_is_not_there(small: steps.Job) -> None:
    right, slip, wrong = (find(small, f"Когда включается {word}?").confidence for word in ("насос", "насосс", "трактор"))
    assert right > slip > wrong


def test_function_words_ask_for_nothing() -> None:
    assert set(answerable._asked("Когда и почему включается насос?").values()) == {"включается", "насос"}
    assert set(answerable._asked("what about them").values()) == {"what", "about", "them"}  # all that there is


def test_nothing_found_is_no_confidence_and_a_question_without_words_is_answered_by_what_was_found(small: steps.Job) -> None:
    assert answerable.confidence(small.ledger, DEFAULT, "насос", []) == 0.0
    assert answerable.confidence(small.ledger, DEFAULT, "", [Seen(1, "x", None)]) == 1.0
    assert find(small, "path:Сад").answerable
    assert recall.find(small.ledger, small.workspace.memory, small.workspace.settings.memory, "насос", 0) == recall.Found(
        [], 0.0, False, False
    )


def test_more_of_the_rare_words_is_surer_and_an_unknown_word_less(small: steps.Job) -> None:
    def sure(question: str, said: str) -> float:
        return answerable.confidence(small.ledger, DEFAULT, question, [Seen(1, said, None)])

    said = NOTES["Сад/Полив.md"]
    assert sure("насос влажность", said) > sure("насос", "насос") - 1e-9
    assert sure("насос влажность почвы", said) > sure("насос влажность зебры", said) > sure("насос жирафы зебры", said)
    assert sure("насос", "пусто") < sure("насос", said)


def test_only_passages_that_are_shown_count(small: steps.Job) -> None:
    whole = find(small, "Where does the kayak leak?")
    left = find(small, "Where does the kayak leak?", allow=lambda scene: scene.source.path != "Boat.md")
    assert whole.answerable
    assert not left.answerable
    assert "Boat.md" not in {hit.path for hit in left.hits}


def test_a_passage_of_the_time_that_is_asked_for_need_not_say_so(small: steps.Job) -> None:
    when = date(2025, 6, 1)
    named = find(small, "Что я красил в июне 2024?", today=when)
    other = find(small, "Что я красил в марте 2019?", today=when)
    assert named.hits[0].path == "Дневник/2024-06-15.md"
    assert named.confidence > other.confidence
    assert named.answerable


def test_find_gives_the_hits_of_recall(small: steps.Job) -> None:
    where = (small.ledger, small.workspace.memory, small.workspace.settings.memory)
    for question in (SPOKEN[0], UNSPOKEN[0]):
        assert find(small, question).hits == recall.recall(*where, question, 5)


# -- the calibration


def made(**changes: object) -> Calibration:
    values = {"fingerprint": "e-1", "weights": dict.fromkeys(FEATURES, 1.5), "bias": -1.0, "threshold": 0.4, "pairs": 50, "auroc": 0.9}
    return Calibration(**(values | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize("calibration", [made(), made(auroc=None), DEFAULT])
def test_a_calibration_comes_back_as_it_was(calibration: Calibration) -> None:
    assert Calibration.from_dict(json.loads(json.dumps(calibration.to_dict()))) == calibration


@pytest.mark.parametrize(
    "change",
    [{"version": 0}, {"version": None}, {"weights": {}}, {"weights": {**made().weights, "held": math.nan}}, {"threshold": "much"}],
)
def test_something_else_is_no_calibration(change: dict[str, object]) -> None:
    with pytest.raises((KeyError, TypeError, ValueError)):
        Calibration.from_dict({**made().to_dict(), **change})


@pytest.mark.parametrize("stored", ["", "null", "[]", "{", '{"version": 1}', '"x"', "12"])
def test_a_damaged_entry_means_the_fixed_weights(small: steps.Job, stored: str) -> None:
    before = small.ledger.get("answerable") or ""
    try:
        small.ledger.set("answerable", stored)
        assert answerable.load(small.ledger, "e-1") == DEFAULT
    finally:
        small.ledger.set("answerable", before)


def test_a_calibration_counts_for_its_embedder_only(small: steps.Job) -> None:
    before = small.ledger.get("answerable") or ""
    try:
        answerable.save(small.ledger, made())
        assert answerable.load(small.ledger, "e-1") == made()
        assert answerable.load(small.ledger, "e-2") == DEFAULT
        answerable.save(small.ledger, DEFAULT)
        assert answerable.load(small.ledger, "e-1") == DEFAULT
    finally:
        small.ledger.set("answerable", before)


def test_where_no_vector_speaks_the_fixed_weights_do(small: steps.Job) -> None:
    seen = [Seen(1, NOTES["Сад/Полив.md"], None)]
    fixed = answerable.confidence(small.ledger, DEFAULT, "насос", seen)
    assert answerable.confidence(small.ledger, made(bias=-9.0), "насос", seen) == fixed
    near = [seen[0]._replace(cosine=0.9)]
    assert answerable.confidence(small.ledger, made(bias=-9.0), "насос", near) != fixed


def test_the_threshold_itself_is_enough() -> None:
    assert answerable.speaks(made(threshold=0.4), 0.4)
    assert not answerable.speaks(made(threshold=0.4), 0.3999)


# -- the fit


def test_a_regression_finds_the_side_and_never_takes_a_wrong_sign() -> None:
    draw = np.random.default_rng(1)
    right = draw.random(400) < 0.5
    good, bad, noise = right + 0.5 * draw.normal(size=400), 0.5 * draw.normal(size=400) - right, draw.normal(size=400)
    rows = np.stack([good, bad, noise, np.ones(400)], axis=1)
    weights, bias = answerable.regress(rows, right, np.array([1.0, 1.0, 1.0, 1.0]), 1.0)
    assert weights[0] > 1
    assert weights[1] == 0.0  # it would be negative
    assert weights[3] == 0.0  # it never changes
    free, _ = answerable.regress(rows, right, np.array([1.0, -1.0, 0.0, 0.0]), 1.0)
    assert free[1] < -1
    assert abs(free[2]) < 0.6
    scores = rows @ weights + bias
    assert scores[right].mean() > 0 > scores[~right].mean()
    again = answerable.regress(rows, right, np.array([1.0, 1.0, 1.0, 1.0]), 1.0)
    assert np.array_equal(again[0], weights)


def test_a_stronger_ridge_makes_weights_smaller() -> None:
    draw = np.random.default_rng(2)
    right = np.arange(200) % 2 == 0
    rows = right[:, None] + draw.normal(size=(200, 1))
    weak, strong = (answerable.regress(rows, right, np.ones(1), ridge)[0][0] for ridge in (0.1, 400.0))
    assert 0 < strong < weak / 2


def test_few_pairs_leave_the_fixed_weights(small: steps.Job) -> None:
    assert answerable.fit(small.ledger, own_embedder(small)) == DEFAULT


def test_the_fit_tells_what_is_there_from_what_is_not_and_is_the_same_each_time(large: steps.Job) -> None:
    embedder = own_embedder(large)
    phases: list[float] = []
    fitted = answerable.fit(large.ledger, embedder, progress=lambda one: phases.append(one.done))
    assert fitted == answerable.fit(large.ledger, embedder)
    assert fitted.fingerprint == embedder.fingerprint
    assert fitted.pairs >= answerable.FEWEST_PAIRS
    assert fitted.auroc is not None
    assert fitted.auroc > 0.85
    assert 0 < fitted.threshold < 1
    assert all(fitted.weights[name] * sign >= 0 for name, sign in FEATURES.items())
    assert (phases[0], phases[-1]) == (0.0, 1.0)
    assert phases == sorted(phases)


def test_a_calibration_is_for_the_vectors_that_are_stored(large: steps.Job) -> None:
    """They may be stored with less precision, under another name than the embedder's own."""
    fitted = answerable.fit(large.ledger, own_embedder(large), "elsewhere")
    assert fitted.fingerprint == "elsewhere"
    assert fitted.weights["cosine"] != answerable.fit(large.ledger, own_embedder(large)).weights["cosine"]


def test_without_an_embedder_cosines_weigh_nothing(large: steps.Job) -> None:
    fitted = answerable.fit(large.ledger, None)
    assert fitted.fingerprint == ""
    assert fitted.pairs >= answerable.FEWEST_PAIRS
    assert fitted.weights["cosine"] == 0.0
    assert fitted.weights["held"] > 0


def test_what_was_fitted_speaks_for_its_own_topics_and_not_for_words_of_many(large: steps.Job) -> None:
    before = large.ledger.get("answerable") or ""
    answerable.save(large.ledger, answerable.fit(large.ledger, own_embedder(large)))
    try:
        bodies = [text.split("\n\n") for text in topics(80).values()]
        own = [" ".join(body[1].split()[:5]).strip(".") for body in bodies[:20]]
        firsts = [body[0].split()[1] for body in bodies]
        mixed = [" ".join(firsts[(7 * place + step) % 80] for step in range(0, 60, 15)) for place in range(20)]
        spoken, unspoken = ([find(large, question).answerable for question in asked] for asked in (own, mixed))
    finally:
        large.ledger.set("answerable", before)
    assert sum(spoken) >= 18  # a false alarm in twenty is what the threshold allows
    assert sum(unspoken) <= 6


def test_the_fit_writes_nothing(large: steps.Job) -> None:
    before = large.ledger.db.total_changes
    answerable.fit(large.ledger, own_embedder(large))
    assert large.ledger.db.total_changes == before


def test_what_is_left_out_is_not_looked_at(large: steps.Job) -> None:
    """The same words, asked once of the whole memory and once with their note left out."""
    chosen = answerable._chosen(large.ledger, 40)
    examples = list(answerable._examples(large.ledger, chosen))
    rows = [row for _, row in answerable._measured(large.ledger, None, "", examples)]
    held = list(FEATURES).index("held")
    there, gone = [], []
    for (one, whole), (other, rest) in itertools.pairwise(zip(examples, rows, strict=True)):
        if one.question == other.question and one.spoken and not other.spoken and whole is not None and rest is not None:
            there.append(whole[held])
            gone.append(rest[held])
    assert len(there) > 20
    assert sum(gone) < 0.7 * sum(there)


# -- what ask makes of it


def test_ask_quotes_nothing_when_the_memory_is_not_sure(small: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(question: str, **options: str) -> answer.Answer:
        return answer.ask(small.workspace, small.ledger, question, progress=lambda progress: None, **options)

    assert ask("Когда включается насос?").sources
    monkeypatch.setattr(answerable, "speaks", lambda calibration, sure: False)
    assert ask("Когда включается насос?").sources  # not enough to say so in a list, too much to be silent
    monkeypatch.setattr(answerable, "confidence", lambda ledger, calibration, question, found: answer.DOUBTED / 2)
    assert ask("Когда включается насос?").sources  # nothing was learnt from so small a vault
    for auroc, silent in ((0.5, False), (0.9, True)):
        learnt = replace(DEFAULT, pairs=100, auroc=auroc)
        monkeypatch.setattr(answerable, "load", lambda ledger, fingerprint, learnt=learnt: learnt)
        assert (ask("Когда включается насос?").sources == ()) is silent
    assert ask("Когда включается насос?", note="Сад/Полив.md").sources  # the user has said where
