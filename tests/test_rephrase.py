"""What a model writes before a search helps where it can, is cleaned of everything but words, and never costs the search."""

from __future__ import annotations

import json
import shutil
import time
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import models, stored
from vaultllm import answer, bench, config, recall, remember, steps
from vaultllm.config import MemorySettings
from vaultllm.errors import ModelError
from vaultllm.ledger import Ledger
from vaultllm.memory import query, rephrase
from vaultllm.memory.rephrase import KINDS, Kind, Rephraser, cleaned
from vaultllm.models import hf
from vaultllm.schema import Message

SETTINGS = MemorySettings(dims=32, near=0)
NOTES = {
    "Лодка.md": "Лодку строил мастер Еремей, обшивка из кедра.",
    "Еремей.md": "Еремей переехал в деревню Сухая Падь в прошлом году.",
    "Баня.md": "Баню ставила артель, брус привезли из города.",
    "Хлеб.md": "Ржаной хлеб стоит в погребе шестнадцать часов.",
    "Печь.md": "Дрова в печь кладут берёзовые, золу выносят вечером.",
    "Pump.md": "The greenhouse pump starts when the soil is dry.",
}
BRIDGE = "В какой деревне живёт тот, кто строил лодку?"


class Says:
    """A writer that says what it is told to, and remembers what it was asked."""

    def __init__(self, *said: str | Exception) -> None:
        self.said, self.asked = list(said), []

    def write(self, prompt: str, most_tokens: int) -> str:
        self.asked.append((prompt, most_tokens))
        said = self.said[min(len(self.asked), len(self.said)) - 1]
        if isinstance(said, Exception):
            raise said
        return said


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Ledger, Path]]:
    folder = tmp_path_factory.mktemp("rephrase")
    with Ledger(folder / "ledger.db") as ledger:
        for path, text in NOTES.items():
            stored.put(ledger, path, f"# {path[:-3]}\n\n{text}\n")
        remember.refresh(ledger, folder / "memory", SETTINGS)
        yield ledger, folder / "memory"


def found(memory: tuple[Ledger, Path], question: str, rephraser: Rephraser | None = None, k: int = 3, **options: Any) -> recall.Found:
    return recall.find(*memory, SETTINGS, question, k, rephraser=rephraser, **options)


def paths(said: recall.Found) -> list[str]:
    return [hit.path for hit in said.hits]


# -- what is asked of the model


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("question", "label"),
    [("Где лодка?", "Вопрос: "), ("নৌকা কোথায়?", "প্রশ্ন: "), ("Where is the boat?", "Question: "), ("船はどこ？", "Question: ")],
)
def test_the_model_is_asked_in_the_language_of_the_question(kind: Kind, question: str, label: str) -> None:
    asked = rephrase.prompt(kind, question)
    assert asked.endswith(f"\n\n{label}{question}")
    assert len({rephrase.prompt(one, question) for one in KINDS}) == len(KINDS)


def test_the_talk_before_a_question_is_told_but_not_all_of_it_and_nothing_unseen() -> None:
    talk = [Message("user", f"message {number} \u202e\u0007" + "x" * 1_000, False) for number in range(9)]
    asked = rephrase.prompt("rewrite", "And where\nis it now?", talk)
    assert "message 8" in asked
    assert "message 4" not in asked
    assert len(asked) < 3_000
    assert "\u202e" not in asked
    assert "\u0007" not in asked
    assert asked.endswith("Question: And where is it now?")
    writer = Says("Where is Vera's boat now?")
    rephraser = Rephraser("rewrite", writer)
    rephraser.after(talk).rephrase("And where is it?")
    assert "message 8" in writer.asked[0][0]
    assert rephraser.after([]) is rephraser


def test_a_question_of_any_length_makes_a_prompt_that_a_model_can_read() -> None:
    assert len(rephrase.prompt("hyde", "word " * 100_000)) < rephrase.MOST_ASKED + 500


# -- what is taken of what it writes


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("Who built the boat?\nWhere does the builder live?", ["Who built the boat?", "Where does the builder live?"]),
        ("1. Who built the boat?\n2) Where does he live?", ["Who built the boat?", "Where does he live?"]),
        ("- Question 1: Who built the boat?\n* «Где он живёт?»", ["Who built the boat?", "Где он живёт?"]),
        ("Подвопрос: кто строил лодку?\nЗапрос: где он живёт", ["кто строил лодку?", "где он живёт"]),
        ("प्रश्न\nপ্রশ্ন: নৌকা কে বানিয়েছে?", ["प्रश्न", "নৌকা কে বানিয়েছে?"]),
        ("one boat\nTwo boats\nthree boats\nfour boats\nfive", ["one boat", "Two boats", "three boats"]),
        ("Who built it?\nwho  built it\nWHO BUILT IT!", ["Who built it?"]),
        ("boat path:secret/x tag:work -folder:\"My notes\" kind:table", ["boat"]),
        ("b\u202eo\u200bat\u0000 of Vera\r\nkayak\u2028oar", ["boat of Vera", "kayak", "oar"]),
        ("boat \ud800 of Vera", ["boat of Vera"]),
    ],
)  # fmt: skip
def test_queries_are_taken_out_of_what_is_written_around_them(written: str, kept: list[str]) -> None:
    assert cleaned("decompose", "where does the one live who built the boat", written) == kept


@pytest.mark.parametrize(
    "written",
    ["", " \n \n", "...", "1.\n2.\n3.", "path:x tag:y", "река " * 40, "a b " * 30, "x" * 5_000, "12 34", "word " * 100 + "other", "\0\0"],
)
def test_what_makes_no_sense_is_dropped(written: str) -> None:
    assert cleaned("rewrite", "where is the boat", written) is None


def test_an_echo_of_the_instruction_is_no_query_and_an_echo_of_the_question_no_failure() -> None:
    told, _, _ = rephrase.prompt("rewrite", "where is the boat").partition("\n")
    assert cleaned("rewrite", "where is the boat", told) is None
    assert cleaned("rewrite", "where is the boat", "Where is the boat?") == []
    writer = Says("Where is the BOAT")
    assert Rephraser("decompose", writer).rephrase("where is the boat") == rephrase.NOTHING


def test_only_the_first_line_is_the_query_and_all_lines_are_the_passage() -> None:
    written = "The boat is built of cedar.\nIt lies at the pier."
    assert cleaned("rewrite", "boat?", written) == ["The boat is built of cedar."]
    assert cleaned("hyde", "boat?", written) == ["The boat is built of cedar. It lies at the pier."]
    (long,) = cleaned("hyde", "boat?", " ".join(f"word{number}" for number in range(900))) or [""]
    assert rephrase.MOST_PASSAGE - 20 < len(long) <= rephrase.MOST_PASSAGE


@given(st.text(max_size=400), st.sampled_from(KINDS))
def test_whatever_is_written_gives_few_short_queries_without_filters_or_unseen_signs(written: str, kind: Kind) -> None:
    for text in cleaned(kind, "where is the boat", written) or []:
        assert text == " ".join(text.split())
        assert len(text) <= rephrase.MOST_PASSAGE
        assert not {"Cc", "Cf", "Cs"} & set(map(unicodedata.category, text)) or "\u200c" in text or "\u200d" in text  # joiners may stay
        assert not any(f"{name}:x" in text for name in query.NAMES)
    assert len(cleaned(kind, "where is the boat", written) or []) <= rephrase.MOST_PARTS


@pytest.mark.parametrize("written", ["path:" * 50_000, "- " * 100_000, '"' * 100_000, "1. " * 80_000, "\n" * 200_000, 'tag:"' * 40_000])
def test_reading_what_was_written_takes_time_in_proportion_to_it(written: str) -> None:
    began = time.process_time()
    cleaned("decompose", "where", written)
    assert time.process_time() - began < 0.5


# -- what becomes of it in a search


def test_the_parts_of_a_question_find_what_the_question_alone_does_not(memory: tuple[Ledger, Path]) -> None:
    alone = found(memory, "Где живёт строитель судна?", k=6)
    parts = found(memory, "Где живёт строитель судна?", Rephraser("decompose", Says("Кто строил лодку?\nКуда переехал Еремей?")), k=2)
    assert set(paths(parts)) == {"Лодка.md", "Еремей.md"}
    assert set(paths(alone)[:2]) != {"Лодка.md", "Еремей.md"}
    assert [one.text for one in parts.rephrased.queries] == ["Кто строил лодку?", "Куда переехал Еремей?"]
    assert parts.rephrased.notice == ""


@pytest.mark.parametrize("kind", KINDS)
def test_the_question_itself_is_always_asked_and_stays_ahead_of_what_leads_astray(memory: tuple[Ledger, Path], kind: Kind) -> None:
    astray = found(memory, "Сколько часов стоит ржаной хлеб в погребе?", Rephraser(kind, Says("The greenhouse pump starts when it is dry")))
    assert paths(astray)[0] == "Хлеб.md"
    assert "Pump.md" in paths(astray)


def test_a_hit_says_what_it_owes_to_other_queries_and_its_score_is_still_the_sum_of_its_parts(memory: tuple[Ledger, Path]) -> None:
    said = found(memory, BRIDGE, Rephraser("decompose", Says("Куда переехал Еремей?")))
    assert "rewrite" in next(hit for hit in said.hits if hit.path == "Еремей.md").why
    for hit in said.hits:
        assert hit.score == pytest.approx(sum(hit.why.values()))
        assert 0 < hit.score <= 1
    assert all("rewrite" not in hit.why for hit in found(memory, BRIDGE).hits)


def test_filters_hold_for_everything_that_is_looked_for_and_are_not_told_to_the_model(memory: tuple[Ledger, Path]) -> None:
    writer = Says("Еремей деревня path:Хлеб")
    said = found(memory, "path:Лодка кто строил лодку", Rephraser("rewrite", writer))
    assert paths(said) == ["Лодка.md"]
    assert "path:" not in writer.asked[0][0]
    assert [one.text for one in said.rephrased.queries] == ["Еремей деревня"]


def test_a_question_of_filters_only_asks_no_model(memory: tuple[Ledger, Path]) -> None:
    writer = Says("something")
    assert paths(found(memory, "path:Лодка", Rephraser("rewrite", writer))) == ["Лодка.md"]
    assert writer.asked == []


@pytest.mark.parametrize(
    "error", [ModelError("the weights are gone", path="m"), RuntimeError("out of memory"), MemoryError(), KeyError("x")]
)
def test_a_model_that_fails_costs_nothing_but_a_notice(memory: tuple[Ledger, Path], error: Exception) -> None:
    writer = Says(error, error, "Еремей")
    rephraser = Rephraser("rewrite", writer)
    said = found(memory, BRIDGE, rephraser)
    assert said.hits == found(memory, BRIDGE).hits
    assert said.rephrased.queries == ()
    assert said.rephrased.notice.startswith("memory.rewrite: ")
    assert (str(error) or type(error).__name__) in said.rephrased.notice
    found(memory, BRIDGE, rephraser)
    assert found(memory, BRIDGE, rephraser).rephrased.notice == ""  # it is asked again: it may be well by now


def test_what_makes_no_sense_is_said_too(memory: tuple[Ledger, Path]) -> None:
    said = found(memory, BRIDGE, Rephraser("rewrite", Says("река " * 50)))
    assert said.hits == found(memory, BRIDGE).hits
    assert "nothing that could be searched" in said.rephrased.notice


def test_a_question_is_written_for_once(memory: tuple[Ledger, Path]) -> None:
    writer = Says("Еремей деревня")
    rephraser = Rephraser("rewrite", writer)
    first = found(memory, BRIDGE, rephraser)
    assert found(memory, BRIDGE, rephraser) == first
    assert len(writer.asked) == 1
    assert writer.asked[0][1] < 200


def test_how_sure_the_memory_is_depends_on_the_question_and_not_on_what_a_model_wrote(memory: tuple[Ledger, Path]) -> None:
    unknown = "Когда улетают журавли с болота?"
    said = found(memory, unknown, Rephraser("hyde", Says("Ржаной хлеб стоит в погребе шестнадцать часов.")))
    assert "Хлеб.md" in paths(said)
    assert said.confidence < found(memory, "Сколько часов стоит ржаной хлеб в погребе?").confidence / 2


def parts_of(scores: dict[int, float]) -> defaultdict[int, dict[str, float]]:
    return defaultdict(dict, {slot: {"words": 0.75 * score, "dense": 0.25 * score} for slot, score in scores.items()})


def joined(own: dict[int, float], *others: tuple[float, dict[int, float]]) -> dict[int, float]:
    parts = parts_of(own)
    rephrase.join(parts, [(weight, parts_of(scores)) for weight, scores in others])
    return {slot: sum(why.values()) for slot, why in parts.items()}


def test_a_passage_counts_what_its_better_query_says_and_half_of_what_the_other_does() -> None:
    found = joined({1: 1.0, 2: 0.4}, (0.5, {1: 0.8, 2: 1.0, 3: 1.0}))
    assert found == pytest.approx({1: (1.0 + 0.5 * 0.4) / 1.5, 2: (0.5 + 0.5 * 0.4) / 1.5, 3: 0.5 / 1.5})


def test_of_several_queries_the_one_that_fits_best_counts_and_no_score_passes_one() -> None:
    once = joined({1: 1.0}, (0.9, {1: 1.0, 2: 0.5}))
    assert joined({1: 1.0}, (0.9, {1: 1.0, 2: 0.5}), (0.9, {1: 0.7, 2: 0.2})) == pytest.approx(once)
    assert max(joined({1: 1.0}, *[(1.0, {1: 1.0})] * 3).values()) == pytest.approx(1.0)


def test_without_other_queries_nothing_changes() -> None:
    parts = parts_of({1: 1.0, 2: 0.3})
    rephrase.join(parts, [])
    assert parts == parts_of({1: 1.0, 2: 0.3})


@pytest.mark.parametrize("kind", KINDS)
def test_the_best_of_the_question_stays_ahead_of_the_best_of_a_query_that_knows_nothing_of_it(kind: Kind) -> None:
    (query,) = Rephraser(kind, Says("something else entirely")).rephrase("where is the boat").queries
    found = joined({1: 1.0}, (query.weight, {2: 1.0}))
    assert found[1] > found[2] > 0


def test_a_passage_that_is_made_up_is_looked_for_by_its_vector_more_than_by_its_words() -> None:
    (query,) = Rephraser("hyde", Says("The boat lies at the pier since 1987.")).rephrase("where is the boat").queries
    leaning = query.leaning(MemorySettings())
    assert leaning.words < MemorySettings().words / 2
    assert leaning.grams < MemorySettings().grams / 2
    assert leaning.dense == MemorySettings().dense
    (query,) = Rephraser("rewrite", Says("boat place")).rephrase("where is the boat").queries
    assert query.leaning(MemorySettings()) == MemorySettings()


COMPARED = "Что построили раньше: лодку Веры или баню Ивана?"


def test_of_a_question_about_two_things_the_parts_put_the_two_right_notes_first(tmp_path: Path) -> None:
    """The parts are given: what a perfect model could gain (benchmarks/queries.py has more of them)."""
    with Ledger(tmp_path / "ledger.db") as ledger:
        for person in ("Веры", "Ивана", "Олега", "Клары"):
            for thing in ("лодку", "баню", "печь"):
                stored.put(ledger, f"{thing}-{person}.md", f"# Запись\n\nЗа год построили {thing} {person}.\n")
        remember.refresh(ledger, tmp_path / "memory", SETTINGS)
        given = Rephraser("decompose", Says("Когда построили лодку Веры?\nКогда построили баню Ивана?"))
        right = {"лодку-Веры.md", "баню-Ивана.md"}
        alone = [hit.score for hit in found((ledger, tmp_path / "memory"), COMPARED, k=4).hits]
        assert alone[2] > 0.9 * alone[0]  # the baths of Vera, Ivan's boat: to words they are as good
        together = found((ledger, tmp_path / "memory"), COMPARED, given, k=4).hits
        assert {hit.path for hit in together[:2]} == right
        assert together[2].score < 0.95 * together[1].score


# -- a real model, end to end


def vault_with(tmp_path: Path, kind: str, base: str) -> config.Workspace:
    vault = tmp_path / "vault"
    vault.mkdir()
    for path, text in NOTES.items():
        (vault / path).write_text(text + "\n", encoding="utf-8")
    workspace = config.init_workspace(vault, str(tmp_path / "state"))
    toml = f'vault_id = "{workspace.settings.vault_id}"\n\n[memory]\nrewrite = "{kind}"\ndims = 32\n\n[train]\nbase = {json.dumps(base)}\n'
    (vault / config.CONFIG).write_text(toml, encoding="utf-8")
    return config.open_workspace(str(vault), str(tmp_path / "state"))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("model") / "tiny", context=2_048)


@pytest.mark.parametrize("kind", KINDS)
def test_search_has_a_small_model_write_and_finds_whatever_it_wrote(tmp_path: Path, model: Path, kind: Kind) -> None:
    job = steps.Job(vault_with(tmp_path, kind, str(model)))
    try:
        steps.ingest(job)
        result = steps.search(job, "кто строил лодку", k=3)
        assert result["hits"][0]["path"] == "Лодка.md"
        # A model of random weights writes anything; what counts is that it was asked, and that either way is said.
        assert bool(result["rewritten"]) != bool(result["notice"])
        assert "cannot" not in result["notice"]
        assert json.dumps(result)
        again = steps.search(job, "кто строил лодку", k=3)
        assert again["rewritten"] == result["rewritten"]  # greedy
        assert job.rephraser is not None
        assert len(job.rephraser._known) == 1
    finally:
        job.close()


def test_a_model_that_writes_well_is_heard_in_search_and_ask(tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rephrase.Model, "write", lambda self, prompt, most: (self._load(), "Куда переехал Еремей?")[1])
    workspace = vault_with(tmp_path, "decompose", str(model))
    job = steps.Job(workspace)
    try:
        steps.ingest(job)
        result = steps.search(job, "Где живёт строитель судна?", k=6)
        assert result["rewritten"] == ["Куда переехал Еремей?"]
        hit = next(one for one in result["hits"] if one["path"] == "Еремей.md")
        assert hit["why"]["rewrite"] > 0
        told: list[str] = []
        hits, _ = answer._recall(workspace, job.ledger, "Где живёт строитель судна?", (), None, None, lambda one: told.append(one.phase))
        assert "rewrite" in next(one for one in hits if one.path == "Еремей.md").why
        assert told == []
    finally:
        job.close()


def _no_model(tmp_path: Path, model: Path) -> str:
    return "micro"


def _micro(tmp_path: Path, model: Path) -> str:
    shutil.copytree(model, tmp_path / "micro")
    (tmp_path / "micro" / "micro.json").write_text("{}", encoding="utf-8")
    return str(tmp_path / "micro")


def _damaged(tmp_path: Path, model: Path) -> str:
    shutil.copytree(model, tmp_path / "damaged")
    (tmp_path / "damaged" / "model.safetensors").write_bytes(b"no weights")
    return str(tmp_path / "damaged")


@pytest.mark.parametrize(
    ("make", "said"),
    [(_no_model, "there is no model yet"), (_micro, "the micro model cannot write"), (_damaged, "download the model again")],
)
def test_search_goes_on_without_a_model_that_can_write_and_says_so(
    tmp_path: Path, model: Path, make: Callable[[Path, Path], str], said: str
) -> None:
    workspace = vault_with(tmp_path, "rewrite", make(tmp_path, model))
    job = steps.Job(workspace)
    try:
        steps.ingest(job)
        result = steps.search(job, "кто строил лодку", k=3)
        assert result["hits"][0]["path"] == "Лодка.md"
        assert said in result["notice"]
        assert result["rewritten"] == []
        told: list[str] = []
        hits, _ = answer._recall(workspace, job.ledger, "кто строил лодку", (), None, None, lambda one: told.append(one.phase))
        assert hits[0].path == "Лодка.md"
        assert len(told) == 1
        assert said in told[0]
    finally:
        job.close()


def test_a_prompt_longer_than_the_model_reads_is_a_notice(tmp_path: Path) -> None:
    small = models.build(tmp_path / "small", context=64)
    said = Rephraser("rewrite", rephrase.Model(lambda: answer.load(str(small), None))).rephrase("кто строил лодку")
    assert "this model reads 1 to 63" in said.notice


def test_nothing_is_written_and_no_model_looked_for_unless_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert MemorySettings().rewrite == ""
    monkeypatch.setattr(rephrase.Rephraser, "rephrase", lambda *given: pytest.fail("rephrased"))
    job = steps.Job(vault_with(tmp_path, "", "micro"))
    try:
        steps.ingest(job)
        result = steps.search(job, "кто строил лодку", k=3)
        assert job.rephraser is None
        assert (result["rewritten"], result["notice"]) == ([], "")
    finally:
        job.close()


def test_the_benchmark_asks_as_the_settings_say_with_the_model_of_the_vault(
    tmp_path: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def write(self: rephrase.Model, prompt: str, most: int) -> str:
        asked.append(prompt)
        assert self._load().folder == model
        return "Куда переехал Еремей?"

    monkeypatch.setattr(rephrase.Model, "write", write)
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps({"question": "Где обитает строитель судна?", "paths": ["Еремей.md"]}) + "\n", encoding="utf-8")
    measured = {}
    for kind in ("", "rewrite"):
        folder = tmp_path / f"of-{kind}"
        folder.mkdir()
        workspace = vault_with(folder, kind, str(model))
        job = steps.Job(workspace)
        steps.ingest(job)
        job.close()
        measured[kind] = bench.recall_bench(questions, (1, 5), workspace=workspace)
    assert "rewritten" not in measured[""]
    assert measured["rewrite"]["rewritten"] == {"questions": 1, "notice": ""}
    assert len(asked) == 1
    assert measured["rewrite"]["mrr"] > measured[""]["mrr"]


@pytest.mark.parametrize("written", ["<think>Let me see: path</think>\nwhere the boat lies", "where the boat lies\n<think>or does it"])
def test_what_a_model_thinks_aloud_is_no_query(written: str, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setattr(hf, "generate", lambda *given, **options: iter([written[:9], written[9:]]))
    rephraser = Rephraser("decompose", rephrase.Model(lambda: answer.load(str(model), None)))
    assert [one.text for one in rephraser.rephrase("where is it").queries] == ["where the boat lies"]
