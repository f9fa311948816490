"""Benchmarks of the memory: what is read, what is counted (against numbers made by hand), what is left alone."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vaultllm import bench, config, recall, steps
from vaultllm.bench import asking, data, hidden, recalled
from vaultllm.config import MemorySettings, Settings, Workspace
from vaultllm.errors import DataError, UsageError, VaultError, VaultllmError
from vaultllm.links import Resolver
from vaultllm.markdown import parse

ARTICLES = {
    "Дождевая_вода": {
        "Бочка под водостоком вмещает двести литров и наполняется за один хороший ливень.": ["Сколько литров вмещает бочка?"],
        "Фильтр из гравия и песка стоит перед насосом, его промывают каждую весну.": ["Чем наполнен фильтр перед насосом?"],
    },
    "River gauge": {
        "The gauge at the old bridge is read at seven every morning, before the ferry leaves.": ["When is the gauge at the bridge read?"],
        "In April the flood reached four metres and the lower meadow stood under water for a week.": ["How high was the flood in April?"],
    },
    "খিচুড়ি": {
        "মুগ ডাল আগে শুকনো খোলায় ভেজে নিতে হয়, তারপর গোবিন্দভোগ চাল মেশাতে হয়।": ["কোন ডাল আগে ভেজে নিতে হয়?"],
    },
}
TALK = """---
nexus: nexus-ai-chat-importer
provider: chatgpt
conversation_id: c{number}
---

# Title: {title}

{turns}
"""
TURN = ">[!nexus_{kind}] **{name}** - 16.06.2025 at 21:{minute}\n> {text}\n<!-- UID: {uid} -->\n"


def squad(articles: dict[str, dict[str, list[str]]] = ARTICLES, impossible: tuple[str, ...] = ()) -> dict[str, Any]:
    """The articles in SQuAD's shape; questions that nothing answers stand with the first paragraph."""
    found: list[dict[str, Any]] = []
    for title, paragraphs in articles.items():
        entries = [
            {"context": context, "qas": [{"id": f"{context[:9]}{n}", "question": text, "answers": []} for n, text in enumerate(asked)]}
            for context, asked in paragraphs.items()
        ]
        found.append({"title": title, "paragraphs": entries})
    for text in impossible:
        found[0]["paragraphs"][0]["qas"].append({"question": text, "is_impossible": True, "answers": []})
    return {"version": "1", "data": found}


def written(path: Path, value: Any) -> Path:
    """A file with a JSON value, or with the lines of a list of rows (strings as they are)."""
    if isinstance(value, list):
        value = "\n".join(row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in value)
    path.write_text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), encoding="utf-8")
    return path


def uid(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def talk(number: int, title: str, *said: str) -> str:
    """A nexus note; its turns have the UIDs 100 * number, 100 * number + 1, …"""
    turns = [
        TURN.format(
            kind=("user", "agent")[turn % 2],
            name=("User", "Assistant")[turn % 2],
            minute=10 + turn,
            text=text,
            uid=uid(100 * number + turn),
        )
        for turn, text in enumerate(said)
    ]
    return TALK.format(number=number, title=title, turns="\n\n".join(turns))


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    """Two talks and a note of prose, not set up."""
    folder = tmp_path / "vault"
    folder.mkdir()
    (folder / "Насос.md").write_text(
        talk(
            1,
            "Насос",
            "Почему насос в теплице включается ночью?",
            "Ночью падает температура, и датчик влажности показывает меньше.",
            "А какой порог у датчика?",
            "Порог тридцать два процента, ниже него реле включает насос.",
        ),
        encoding="utf-8",
    )
    (folder / "Bread.md").write_text(
        talk(2, "Bread", "How long does the rye dough rest?", "The rye dough rests for sixteen hours in a cold cellar."), encoding="utf-8"
    )
    (folder / "Лодка.md").write_text("# Лодка\n\nТретье ребро каяка течёт, его залили эпоксидной смолой.\n", encoding="utf-8")
    return folder


def snapshot(folder: Path) -> dict[str, tuple[int, bytes]]:
    return {
        str(path.relative_to(folder)): (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else b"")
        for path in sorted(folder.rglob("*"))
    }


# -- reading the data


def test_a_squad_paragraph_is_a_note_under_its_articles_title(tmp_path: Path) -> None:
    read = data.read(written(tmp_path / "q.json", squad()))
    assert read.squad
    assert len(read.notes) == len(read.questions) == 5
    first = read.questions[0]
    assert read.notes[first.evidence[0]].startswith("# Дождевая вода\n\nБочка под водостоком")
    assert len({question.group for question in read.questions}) == 3


def test_a_paragraph_that_is_repeated_with_each_question_is_one_note_and_one_unit(tmp_path: Path) -> None:
    context = "Бочка вмещает двести литров."
    rows = [
        {"context": text, "qas": [{"question": q}]} for text, q in ((context, "Сколько?"), (context.replace(" ", "  "), "Что вмещает?"))
    ]
    read = data.read(written(tmp_path / "q.json", {"data": [{"title": "A", "paragraphs": rows}]}))
    assert len(read.notes) == 1
    assert {question.evidence for question in read.questions} == {tuple(read.notes)}


def test_articles_may_stand_in_an_array_of_their_own(tmp_path: Path) -> None:
    read = data.read(written(tmp_path / "q.json", json.dumps(squad()["data"])))
    assert (read.squad, len(read.notes), len(read.questions)) == (True, 5, 5)


def test_rows_of_the_hub_are_squad_too_each_context_once(tmp_path: Path) -> None:
    context, other = "Бочка вмещает двести литров.", "The ferry leaves at eight."
    rows = [
        {
            "id": "1",
            "title": "Дождевая_вода",
            "context": context,
            "question": "Сколько?",
            "answers": {"text": ["двести"], "answer_start": [14]},
        },
        {"id": "2", "title": "Дождевая_вода", "context": context, "question": "Какого цвета?", "answers": {"text": [], "answer_start": []}},
        {"id": "3", "title": "Ferry", "context": other, "question": "When?", "answers": {"text": ["eight"], "answer_start": [21]}},
    ]
    read = data.read(written(tmp_path / "q.jsonl", rows))
    assert list(read.notes.values()) == [f"# Дождевая вода\n\n{context}\n", f"# Ferry\n\n{other}\n"]
    assert [question.evidence for question in read.questions] == [("000000.md",), (), ("000001.md",)]
    assert [question.group for question in read.questions] == ["Дождевая_вода", "Дождевая_вода", "Ferry"]
    assert bench.recall_bench(tmp_path / "q.jsonl", (1,))["unit"] == "paragraph"


def test_impossible_questions_have_no_evidence(tmp_path: Path) -> None:
    read = data.read(written(tmp_path / "q.json", squad(impossible=("Кто построил маяк?",))))
    assert [question.text for question in read.questions if not question.answerable] == ["Кто построил маяк?"]


def test_what_is_malformed_in_squad_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    value = squad()
    value["data"][1]["paragraphs"] += [{"context": 7}, "x", {"context": "Alone.", "qas": [{"question": ""}, {"q": 1}, 5]}]
    value["data"].append({"title": "Empty"})
    read = data.read(written(tmp_path / "q.json", value))
    assert len(read.questions) == 5
    assert len(read.notes) == 6
    assert {one["reason"]: (one["count"], one["where"][0]) for one in read.skipped.shown()} == {
        "a paragraph without a context": (2, "data[1].paragraphs[2]"),
        "a question without text": (3, "data[1].paragraphs[4].qas[0]"),
        "an article without a list of paragraphs": (1, "data[3]"),
    }


@pytest.mark.parametrize("key", ["uids", "paths", "evidence"])
@pytest.mark.parametrize("as_array", [False, True])
def test_objects_are_read_from_lines_and_from_an_array(tmp_path: Path, key: str, as_array: bool) -> None:
    rows: list[Any] = [
        {"question": "Где лодка?", key: ["a", "b", "a"], "category": 3},
        {"question": "Which one?", key: "c"},
        {"question": "Nothing?", "answerable": False, key: ["a"]},
        {"path": "Сарай/a.md", "text": "# A\n\nЛодка в сарае."},
    ]
    read = data.read(written(tmp_path / "q.jsonl", json.dumps(rows) if as_array else rows))
    assert [(question.evidence, question.category) for question in read.questions] == [(("a", "b"), "3"), (("c",), ""), ((), "")]
    assert dict(read.notes) == {"Сарай/a.md": "# A\n\nЛодка в сарае."}
    assert read.skipped.shown() == []


def test_a_malformed_line_names_its_line(tmp_path: Path) -> None:
    rows = [
        {"question": "Где лодка?", "uids": ["a"]},
        '{"question": "cut o',
        "",
        {"question": " ", "uids": ["a"]},
        {"question": "no evidence"},
        {"question": "x", "uids": [["a"]]},
        {"question": "x", "uids": ["a"], "answerable": "no"},
        {"path": "a.md"},
        "[1]",
    ]
    read = data.read(written(tmp_path / "q.jsonl", rows))
    assert len(read.questions) == 1
    places = {where: one["reason"] for one in read.skipped.shown() for where in one["where"]}
    assert sorted(places) == [f"line {number}" for number in (2, 4, 5, 6, 7, 8, 9)]
    assert places["line 2"] == places["line 9"] == "this is no JSON object"
    assert "without evidence" in places["line 5"]


def test_one_line_alone_is_a_question_and_lines_may_hold_any_line_separator(tmp_path: Path) -> None:
    read = data.read(written(tmp_path / "q.jsonl", '{"question": "a\u2028b\u0085c", "uids": ["x"]}\n'))
    assert [question.text for question in read.questions] == ["a\u2028b\u0085c"]


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (b"", None, "empty"),
        (b"\n \n", None, "empty"),
        (b'{"data": [\n{"title": "A",\n oops}]}', 3, "column"),
        (b"question;answer\n", 1, "neither JSON nor JSON lines"),
        (b'{"question": "\xff\xfe"}', 1, "UTF-8"),
        (b'{"a": 1}\n', None, "neither"),
        (b'{"data": []}', None, "no question to ask"),
        (b'[{"path": "a.md", "text": "b"}]', None, "notes only"),
        (b"[" * 100_000, 1, "neither JSON"),
        (b'{"question": "x"}', None, "line 1: a question without evidence"),
        (b"5", 1, "no object with a question"),
    ],
)
def test_a_file_without_questions_is_an_error_with_its_place(tmp_path: Path, content: bytes, line: int | None, says: str) -> None:
    path = tmp_path / "q.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.read(path)
    assert says in caught.value.message
    assert (caught.value.path, caught.value.line) == (str(path), line)


def test_a_file_that_is_not_there_is_an_error_of_usage(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path, tmp_path / "a\0b"):
        with pytest.raises(UsageError, match="cannot be read"):
            data.read(path)


@pytest.mark.parametrize(
    "path",
    ["../out.md", "/etc/out.md", "a/../../out.md", ".hidden/a.md", "a.exe", "", "C:\\a.md", "c:/a.md", "\ud800.md", "я" * 200 + ".md"],
)
def test_a_note_of_the_data_cannot_lead_out_of_the_vault(tmp_path: Path, path: str) -> None:
    rows = [
        {"path": path, "text": "x"},
        {"path": "a.md", "text": "Лодка."},
        {"path": "a.md", "text": "twice"},
        {"question": "q", "paths": ["a.md"]},
    ]
    read = data.read(written(tmp_path / "q.jsonl", "\n".join(json.dumps(row) for row in rows)))
    assert dict(read.notes) == {"a.md": "Лодка."}
    assert sorted(one["where"][0] for one in read.skipped.shown()) == ["line 1", "line 3"]


def test_half_an_emoji_in_the_data_reaches_the_memory_as_a_question_mark(tmp_path: Path) -> None:
    path = written(
        tmp_path / "q.jsonl", '{"question": "лодка \\ud83d?", "paths": ["a.md"]}\n{"path": "a.md", "text": "Лодка \\ud83d в сарае."}'
    )
    assert bench.recall_bench(path)["recall@1"] == 1.0


# -- counting


def passages(*found: tuple[str, str]) -> list[Any]:
    """Passages of (path, UID), each with a lower score than the one before."""
    return [
        SimpleNamespace(stored=SimpleNamespace(path=path, slot=slot, passage=SimpleNamespace(uid=uid)), score=1 / slot)
        for slot, (path, uid) in enumerate(found, 1)
    ]


def answering(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, MemorySettings], list[Any]]) -> list[tuple[str, int]]:
    """The memory says what the test says; returns what it was asked."""
    asked: list[tuple[str, int]] = []

    def say(ledger: Any, folder: Any, settings: Any, question: str, most: int, **options: Any) -> list[Any]:
        assert options == {"plain": True, "rephraser": None}
        asked.append((question, most))
        return answer(question, settings)[:most]

    monkeypatch.setattr(recall, "ranked", say)
    monkeypatch.setattr(recall, "recall", lambda *args, **options: [])
    monkeypatch.setattr(recall, "confidence", lambda ledger, question, found, plain: (found[0].score if found else 0.0, bool(found)))
    return asked


def ask(by: asking.By, depth: int, without: Collection[str] = ()) -> asking.Asked:
    return asking.ask(None, Path(), MemorySettings(), "q", by, depth, without)  # type: ignore[arg-type]


def test_turns_are_counted_in_their_order_each_once_and_prose_takes_a_place(monkeypatch: pytest.MonkeyPatch) -> None:
    found = passages(("a.md", "u2"), ("a.md", "u1"), ("b.md", ""), ("a.md", "u2"), ("c.md", "u1"), ("c.md", "u3"), ("b.md", ""))
    answering(monkeypatch, lambda question, settings: found)
    assert ask("uid", 10).ranking == ("u2", "u1", "b.md:3", "u3", "b.md:7")
    assert ask("uid", 3).ranking == ("u2", "u1", "b.md:3")
    assert ask("path", 10).ranking == ("a.md", "b.md", "c.md")
    assert ask("path", 10, {"a.md"}).ranking == ("b.md", "c.md")
    assert ask("path", 10).confidence == 1.0


def test_where_one_note_crowds_out_the_others_more_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    crowd = passages(*[("long.md", "")] * 700, *[(f"{number}.md", "") for number in range(800)])
    asked = answering(monkeypatch, lambda question, settings: crowd)
    assert ask("path", 10).ranking == ("long.md", *(f"{number}.md" for number in range(9)))
    assert [most for _, most in asked] == [recall.CANDIDATES * 2**times for times in range(4)]
    asked.clear()
    crowd = crowd[:50]
    assert ask("path", 10).ranking == ("long.md",)
    assert len(asked) == 1  # there is no more


def test_when_one_note_holds_everything_the_memory_is_not_asked_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    everything = passages(*[("long.md", "")] * 20_000)
    asked = answering(monkeypatch, lambda question, settings: everything)
    assert ask("path", 10).ranking == ("long.md",)
    assert asked[-1][1] == asking.MOST


def test_nothing_found_is_an_empty_ranking_without_confidence(monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, lambda question, settings: [])
    found = ask("path", 10)
    assert (found.ranking, found.confidence) == ((), 0.0)


def test_the_numbers_are_those_made_by_hand(vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(
        tmp_path / "q.jsonl",
        [
            {"question": "one", "uids": [uid(100)], "category": "single"},  # at rank 1
            {"question": "two", "uids": [uid(101), uid(201)], "category": "multi"},  # at ranks 2 and 4
            {"question": "none", "evidence": [uid(103)], "category": 7},  # not found
            {"question": "never", "answerable": False},
        ],
    )
    first = passages(("Насос.md", uid(100)), ("Насос.md", uid(101)), ("Насос.md", uid(100)), ("Лодка.md", ""), ("Bread.md", uid(201)))
    answering(monkeypatch, lambda question, settings: [] if question in ("none", "never") else first)
    found = bench.recall_bench(path, (1, 2, 5), workspace=bench.workspace_of(str(vault), None))
    log3, log5 = 1.5849625007211562, 2.321928094887362
    assert (found["questions"], found["unanswerable"], found["unit"], found["units"], found["missing"]) == (3, 1, "turn", 7, 0)
    assert found["recall@1"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["recall@2"] == pytest.approx((1 + 0.5) / 3, abs=1e-6)
    assert found["recall@5"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["hit@2"] == pytest.approx(2 / 3, abs=1e-6)
    assert found["mrr"] == pytest.approx((1 + 0.5) / 3, abs=1e-6)
    assert found["ndcg@10"] == pytest.approx((1 + (1 / log3 + 1 / log5) / (1 + 1 / log3)) / 3, abs=1e-6)
    assert found["auroc"] == pytest.approx((1 + 1 + 0.5) / 3, abs=1e-6)  # none and never: both 0.0, a tie
    assert {name: (row["questions"], row["recall@1"]) for name, row in found["by_category"].items()} == {
        "7": (1, 0.0),
        "multi": (1, 0.0),
        "single": (1, 1.0),
    }
    assert found["skipped"] == []
    assert json.loads(json.dumps(found)) == found


def test_evidence_that_the_memory_lacks_counts_as_not_found_and_is_counted(
    vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path / "q.jsonl", [{"question": "one", "uids": [uid(100), "no-such-uid"]}])
    answering(monkeypatch, lambda question, settings: passages(("Насос.md", uid(100))))
    found = bench.recall_bench(path, workspace=bench.workspace_of(str(vault), None))
    assert (found["recall@50"], found["missing"], found["hit@1"]) == (0.5, 1, 1.0)


def test_what_looks_like_a_filter_or_a_phrase_is_words_in_a_data_set(vault: Path, tmp_path: Path) -> None:
    rows = [
        {"question": f"{said} третье ребро каяка?", "paths": ["Лодка.md"]} for said in ("tgs:x", "path:Bread", '"как назвали"', "-ребро")
    ]
    found = bench.recall_bench(written(tmp_path / "q.jsonl", rows), workspace=bench.workspace_of(str(vault), None))
    assert (found["questions"], found["recall@1"], found["skipped"]) == (4, 1.0, [])


def test_a_question_whose_evidence_is_turns_and_notes_is_left_out(vault: Path, tmp_path: Path) -> None:
    rows = [{"question": "лодка", "evidence": ["Лодка.md", uid(100)]}, {"question": "ребро каяка", "evidence": ["лодка"]}]
    found = bench.recall_bench(written(tmp_path / "q.jsonl", rows), workspace=bench.workspace_of(str(vault), None))
    assert (found["questions"], found["recall@1"]) == (1, 1.0)
    assert found["skipped"][0]["where"] == ["question 1"]


# -- the real memory


def test_squad_is_asked_of_the_real_memory_in_three_languages(tmp_path: Path) -> None:
    path = written(tmp_path / "q.json", squad(impossible=("Кто построил маяк на острове?",)))
    found = bench.recall_bench(path, halves=True, folds=2)
    assert (found["questions"], found["units"], found["unit"], found["unanswerable"], found["missing"]) == (5, 5, "paragraph", 1, 0)
    assert found["recall@5"] == 1.0
    assert found["recall@1"] >= 0.8
    assert 0 < found["latency_ms_p50"] <= found["latency_ms_p95"]
    assert 0 <= found["auroc"] <= 1
    assert set(found["halves"]) == {"stems", "grams", "words", "dense", "no resonance"}
    assert found["halves"]["words"]["recall@5"] == 1.0
    gain = found["halves"]["dense"]["gain"]
    assert gain["ndcg@10"]["mean"] == pytest.approx(found["ndcg@10"] - found["halves"]["dense"]["ndcg@10"], abs=1e-5)
    assert set(gain) == {"ndcg@10", "recall@10"}
    assert [row["questions"] for row in found["folds"]] in ([3, 2], [2, 3], [4, 1], [1, 4])
    assert sum(row["questions"] * row["recall@1"] for row in found["folds"]) == pytest.approx(5 * found["recall@1"], abs=1e-5)
    assert json.loads(json.dumps(found)) == found


def test_without_unanswerable_questions_there_is_no_auroc(tmp_path: Path) -> None:
    assert bench.recall_bench(written(tmp_path / "q.json", squad()), (1,))["auroc"] is None


def test_turns_of_a_vault_are_found_by_uid_and_the_vault_is_not_touched(vault: Path, tmp_path: Path) -> None:
    before = snapshot(vault)
    rows = [
        {"question": "Какой порог у датчика влажности?", "uids": [uid(102), uid(103)], "category": "ru"},
        {"question": "How long does the rye dough rest?", "uids": [uid(201)], "category": "en"},
    ]
    found = bench.recall_bench(written(tmp_path / "q.jsonl", rows), (1, 5), workspace=bench.workspace_of(str(vault), None))
    assert (found["questions"], found["unit"], found["units"]) == (2, "turn", 7)
    assert found["recall@5"] == 1.0
    assert set(found["by_category"]) == {"en", "ru"}
    assert snapshot(vault) == before


def test_a_file_that_brings_its_own_talks_needs_no_vault(tmp_path: Path) -> None:
    rows = [
        {"path": "Чаты/Насос.md", "text": talk(1, "Насос", "Какой порог у датчика?", "Порог тридцать два процента, так решило реле.")},
        {"path": "Bread.md", "text": talk(2, "Bread", "How long does the rye dough rest?", "Sixteen hours in a cold cellar.")},
        {"question": "порог датчика", "uids": [uid(100), uid(101)]},
        {"question": "rye dough in the cellar", "evidence": [uid(201)]},
    ]
    found = bench.recall_bench(written(tmp_path / "q.jsonl", rows), (2, 5))
    assert (found["questions"], found["units"], found["unit"], found["recall@5"]) == (2, 4, "turn", 1.0)
    assert found["recall@2"] == 1.0


def test_a_vault_that_is_set_up_keeps_its_state_and_gives_its_settings(
    vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.init_workspace(vault, str(tmp_path / "state"))
    (vault / config.CONFIG).write_text((vault / config.CONFIG).read_text("utf-8") + "\n[memory]\ndims = 16\nlinks = 0.0\n", "utf-8")
    workspace = bench.workspace_of(str(vault), str(tmp_path / "state"))
    assert workspace is not None
    before, state = snapshot(vault), snapshot(tmp_path / "state")
    seen: list[Settings] = []
    ingest = steps.ingest

    def watched(job: steps.Job, **options: Any) -> dict[str, Any]:
        seen.append(job.workspace.settings)
        return ingest(job, **options)

    monkeypatch.setattr(steps, "ingest", watched)
    bench.recall_bench(written(tmp_path / "q.jsonl", [{"question": "лодка", "paths": ["Лодка.md"]}]), workspace=workspace)
    bench.recall_bench(written(tmp_path / "q.json", squad()), (1,), workspace=workspace)
    assert [(one.memory.dims, one.memory.links) for one in seen] == [(16, 0.0)] * 2
    assert (snapshot(vault), snapshot(tmp_path / "state")) == (before, state)


def test_talks_that_were_imported_are_in_the_memory_too(vault: Path, tmp_path: Path) -> None:
    export = tmp_path / "conversations.json"
    message = {
        "id": uid(900), "author": {"role": "user"}, "create_time": 1750000000.0,
        "content": {"content_type": "text", "parts": ["Как хранить семена огурцов до весны?"]},
    }  # fmt: skip
    node = {"id": uid(900), "parent": None, "children": [], "message": message}
    export.write_text(
        json.dumps(
            [
                {
                    "title": "Семена",
                    "create_time": 1750000000.0,
                    "conversation_id": "c9",
                    "mapping": {uid(900): node},
                    "current_node": uid(900),
                }
            ]
        )
    )
    with contextlib.closing(steps.Job(config.init_workspace(vault, str(tmp_path / "state")))) as job:
        steps.import_(job, [export])
        workspace = job.workspace
    found = bench.recall_bench(
        written(tmp_path / "q.jsonl", [{"question": "Как хранить семена огурцов?", "uids": [uid(900)]}]), (1,), workspace=workspace
    )
    assert (found["recall@1"], found["missing"]) == (1.0, 0)


def test_the_wrong_vault_is_an_error_that_says_so(vault: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", [{"question": "x", "uids": ["stranger"]}])
    with pytest.raises(DataError, match=r"none of the 1 pieces of evidence .*stranger.*right vault"):
        bench.recall_bench(path, workspace=bench.workspace_of(str(vault), None))
    with pytest.raises(DataError, match="no vault is here"):
        bench.recall_bench(path)


def test_only_unanswerable_questions_are_nothing_to_measure_recall_on(vault: Path, tmp_path: Path) -> None:
    path = written(tmp_path / "q.jsonl", [{"question": "x", "answerable": False}])
    with pytest.raises(DataError, match="all questions are unanswerable"):
        bench.recall_bench(path, workspace=bench.workspace_of(str(vault), None))


@pytest.mark.parametrize(("ks", "folds"), [((), 0), ((0,), 0), ((1001,), 0), ((1,), 1), ((1,), -1)])
def test_wrong_options_are_refused_before_anything_is_read(tmp_path: Path, ks: tuple[int, ...], folds: int) -> None:
    with pytest.raises(UsageError):
        bench.recall_bench(tmp_path / "none.json", ks, folds=folds)


def test_ks_are_read_as_they_are_typed() -> None:
    assert bench.ks_of("1,5, 10,5") == (1, 5, 10)
    for wrong in ("", "x", "0", "1;5", "1.5", ","):
        with pytest.raises(UsageError, match="--k 1,5"):
            bench.ks_of(wrong)


def test_nothing_is_left_behind_also_after_an_error(vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    aside = tmp_path / "tmp"
    aside.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(aside))
    bench.recall_bench(written(tmp_path / "q.json", squad()), (1,))
    with pytest.raises(VaultllmError):
        bench.recall_bench(
            written(tmp_path / "q.jsonl", [{"question": "x", "uids": ["no"]}]), workspace=bench.workspace_of(str(vault), None)
        )
    assert list(aside.iterdir()) == []


def test_the_workspace_is_the_named_vault_or_the_one_around_us_or_none(
    vault: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(vault)
    assert bench.workspace_of(None, None) is None
    named = bench.workspace_of(str(vault), None)
    assert named is not None
    assert named.vault == vault.resolve()
    config.init_workspace(vault, str(tmp_path / "state"))
    around = bench.workspace_of(None, str(tmp_path / "state"))
    assert around is not None
    assert around.state == (tmp_path / "state").resolve()
    with pytest.raises(VaultError):
        bench.workspace_of(str(tmp_path / "nowhere"), None)
    monkeypatch.setenv("VAULTLLM_VAULT", str(tmp_path / "nowhere"))
    with pytest.raises(VaultError):
        bench.workspace_of(None, None)


# -- choosing settings


def test_parts_keep_an_article_together_and_hold_every_question_once() -> None:
    groups = [f"article {number % 7}" for number in range(40)]
    right = [SimpleNamespace(group=group, evidence={f"{number}"}) for number, group in enumerate(groups)]
    parts = recalled._parts(right, 3)  # type: ignore[arg-type]
    assert sorted(number for part in parts for number in part) == list(range(40))
    assert all(len({place for place, part in enumerate(parts) for number in part if groups[number] == group}) == 1 for group in set(groups))
    assert len(parts) == 3


def test_with_one_article_only_its_paragraphs_are_the_parts() -> None:
    right = [SimpleNamespace(group="one", evidence={f"{number // 2}"}) for number in range(20)]
    parts = recalled._parts(right, 5)  # type: ignore[arg-type]
    assert [len(part) for part in parts] == [4] * 5


def test_the_choice_of_settings_is_judged_on_articles_it_has_not_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good, bad = MemorySettings(near=0.5), MemorySettings(near=0.0)
    real = recall.ranked

    def say(ledger: Any, folder: Any, settings: MemorySettings, question: str, most: int, **options: Any) -> list[Any]:
        return real(ledger, folder, settings, question, most, **options) if settings.near else []

    monkeypatch.setattr(recall, "ranked", say)
    found = bench.tune(written(tmp_path / "q.json", squad()), {"bad": bad, "good": good}, folds=3)
    assert found["best"] == "good"
    assert [fold["chosen"] for fold in found["folds"]] == ["good"] * 3
    assert sum(fold["questions"] for fold in found["folds"]) == 5
    assert found["candidates"]["bad"]["recall@1"] == 0.0
    assert found["held_out"] == found["candidates"]["good"]
    for candidates, measure, folds in (({}, "mrr", 5), ({"good": good}, "recall", 5), ({"good": good}, "mrr", 0)):
        with pytest.raises(UsageError):
            bench.tune(tmp_path / "q.json", candidates, measure=measure, folds=folds)


def test_no_fold_is_answered_by_settings_that_were_chosen_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = written(tmp_path / "q.json", squad())
    evidence = {question.text: question.evidence for question in data.read(path).questions}
    first = next(iter(evidence.values()))[0].partition("/")[0]

    def say(question: str, settings: MemorySettings) -> list[Any]:
        knows_it = evidence[question][0].startswith(first) == bool(settings.near)
        return passages((evidence[question][0], "")) if knows_it else []

    answering(monkeypatch, say)
    found = bench.tune(path, {"rest": MemorySettings(near=0.0), "first": MemorySettings(near=0.5)}, folds=3, measure="mrr")
    assert found["candidates"]["first"]["mrr"] == 0.4
    assert [fold for fold in found["folds"] if fold["chosen"] == "rest" and fold["mrr"] == 0.0]


def test_each_half_alone_has_its_own_legs_and_nothing_else() -> None:
    settings = MemorySettings(words=0.7, grams=0.0, dense=0.2, near=0.3)
    found = asking.halves(settings)
    weights = {name: {leg: getattr(one, leg) for leg in (*asking.LEGS, "near", "links")} for name, one in found.items()}
    assert weights["stems"] == {"words": 0.7, "grams": 0.0, "dense": 0.0, "near": 0.0, "links": 0.0}
    assert weights["dense"] == {"words": 0.0, "grams": 0.0, "dense": 0.2, "near": 0.0, "links": 0.0}
    assert weights["grams"]["grams"] > 0  # off in the settings, measured all the same
    assert weights["no resonance"] == {"words": 0.7, "grams": 0.0, "dense": 0.2, "near": 0.0, "links": 0.0}


# -- hidden links


LINKED = {
    "Теплица.md": '---\nrelated: "[[Насос]]"\n---\n# Теплица\n\nВода идёт по капельному шлангу, см. [[Насос|тихий насос]] и [[Бочка]].\n',
    "Насос.md": "# Насос\n\nНасос качает воду по капельному шлангу. Назад: [[Теплица]].\n",
    "Бочка.md": "# Бочка\n\nДождевая вода стоит в бочке. ![[Насос#Порог]] рядом с [лестницей](Лестница.md).\n",
    "Лестница.md": "# Лестница\n\nСтарая лестница ведёт на чердак, `[[Насос]]` здесь код, а [[Нет такой]] никуда.\n",
    "Bread.md": "# Bread\n\nRye dough rests sixteen hours. It belongs to [[Лестница]].\n",
}


@pytest.fixture
def linked(tmp_path: Path) -> Workspace:
    folder = tmp_path / "linked"
    folder.mkdir()
    for path, text in LINKED.items():
        (folder / path).write_text(text, encoding="utf-8")
    found = bench.workspace_of(str(folder), None)
    assert found is not None
    return found


def test_links_between_notes_are_found_with_their_lines(linked: Workspace) -> None:
    found = hidden._pairs(linked, list(LINKED), Resolver(LINKED), data.Skipped(), lambda progress: None)
    assert found == {
        ("Bread.md", "Лестница.md"): 3,
        ("Бочка.md", "Лестница.md"): 3,
        ("Бочка.md", "Насос.md"): 3,
        ("Насос.md", "Теплица.md"): 3,
        ("Теплица.md", "Бочка.md"): 6,
        ("Теплица.md", "Насос.md"): 6,
    }


def test_a_hidden_link_leaves_the_text_with_its_shown_words_and_lines_keep_their_numbers() -> None:
    note = parse("Теплица.md", LINKED["Теплица.md"].encode())
    text = hidden.without(note, {"Насос.md"}, Resolver(LINKED))
    assert text.split("\n")[1] == 'related: ""'
    assert text.split("\n")[5] == "Вода идёт по капельному шлангу, см.  и [[Бочка]]."
    assert text.count("\n") == note.text.count("\n")


@pytest.mark.parametrize(
    ("said", "left"),
    [
        ("см. ![[Насос#Порог|схема]] тут", "см.  тут"),
        ("[качает](Насос.md) воду", " воду"),
        ("[![[Насос]]](Насос.md) воду", " воду"),
        ("[[Насос]][[Бочка]][[насос]]", "[[Бочка]]"),
        ("| a | [[Насос\\|б]] |", "| a |  |"),
        ("[[Бочка]] и [[Нет такой]]", "[[Бочка]] и [[Нет такой]]"),
    ],
)
def test_every_form_of_a_link_is_cut_and_nothing_else(said: str, left: str) -> None:
    table = "| x | y |\n|---|---|\n" if said.startswith("|") else ""
    note = parse("a.md", f"{table}{said}\n".encode())
    assert hidden.without(note, {"Насос.md"}, Resolver(LINKED)) == f"{table}{left}\n"


def test_both_directions_of_a_pair_are_hidden_so_that_the_link_back_says_nothing(linked: Workspace, tmp_path: Path) -> None:
    resolver = Resolver(LINKED)
    hidden._copy(linked, list(LINKED), resolver, {("Насос.md", "Теплица.md")}, tmp_path / "copy", lambda progress: None)
    assert "[[" not in (tmp_path / "copy" / "Насос.md").read_text("utf-8")
    assert "Насос" not in (tmp_path / "copy" / "Теплица.md").read_text("utf-8")
    for path in ("Бочка.md", "Лестница.md", "Bread.md"):
        assert (tmp_path / "copy" / path).read_bytes() == (linked.vault / path).read_bytes()


def test_hidden_links_are_asked_for_with_everything_on_and_off(linked: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot(linked.vault)
    asked: list[str] = []
    real = recall.ranked

    def watched(ledger: Any, folder: Any, settings: Any, question: str, most: int, **options: Any) -> list[Any]:
        asked.append(question)
        return real(ledger, folder, settings, question, most, **options)

    monkeypatch.setattr(recall, "ranked", watched)
    found = bench.links_bench(linked, share=1.0)
    assert (found["links"], found["hidden"], found["questions"], found["notes"]) == (6, 6, 6, 5)
    assert {"stems", "grams", "words", "dense", "no resonance", "only near", "only links", "all", "all but near"} <= set(found["arms"])
    assert found["arms"]["all"]["recall@10"] >= 0.5  # all but the English note have words in common with what they linked
    assert 0 < found["arms"]["words"]["mrr"] < 1
    assert not any("[[" in question or "тихий" in question for question in asked)
    assert found["better_half"] in ("words", "dense")
    assert found["gain"]["groups"] == 4
    assert snapshot(linked.vault) == before
    assert json.loads(json.dumps(found)) == found


def test_the_source_and_its_other_targets_are_no_answers(linked: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[frozenset[str], set[str]] = {}
    ask = asking.ask

    def watched(ledger: Any, folder: Any, settings: Any, text: str, by: Any, depth: int, without: frozenset[str]) -> asking.Asked:
        found = ask(ledger, folder, settings, text, by, depth, without)
        seen.setdefault(without, set()).update(found.ranking)
        return found

    monkeypatch.setattr(asking, "ask", watched)
    bench.links_bench(linked, share=1.0)
    assert frozenset({"Теплица.md", "Бочка.md"}) in seen  # asking for the pump: not the note itself, not the barrel it links to
    assert all(known.isdisjoint(ranking) for known, ranking in seen.items())


def test_the_same_seed_hides_the_same_links_and_a_share_of_them_is_asked_for(linked: Workspace) -> None:
    once, again = (bench.links_bench(linked, share=0.5, most=2, seed=4) for _ in range(2))
    assert once["hidden"] == again["hidden"] < 6
    assert once["questions"] == 2
    measures = [{name: row["mrr"] for name, row in one["arms"].items()} for one in (once, again)]
    assert measures[0] == measures[1]


def test_a_vault_without_links_is_an_error_that_counts_them(tmp_path: Path) -> None:
    (tmp_path / "a.md").write_text("# A\n\nНи одной ссылки, кроме [[нет такой]].\n", encoding="utf-8")
    with pytest.raises(DataError, match="0 links between notes"):
        bench.links_bench(bench.workspace_of(str(tmp_path), None))  # type: ignore[arg-type]


def test_the_question_is_the_passage_around_the_link_not_the_whole_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    far = "\n\n".join(f"Совсем другое стоит в абзаце {number}: " + "доски и гвозди " * 20 for number in range(8))
    (tmp_path / "a.md").write_text(f"# Дом\n\nКапельный шланг лежит у [[b|насоса]] за теплицей.\n\n{far}\n", encoding="utf-8")
    (tmp_path / "b.md").write_text("Насос качает воду.\n", encoding="utf-8")
    asked = answering(monkeypatch, lambda question, settings: [])
    bench.links_bench(bench.workspace_of(str(tmp_path), None), share=1.0)  # type: ignore[arg-type]
    assert len({question for question, _ in asked}) == 1
    assert "Капельный шланг лежит у за теплицей" in asked[0][0]
    assert "абзаце 7" not in asked[0][0]


def test_links_that_cannot_be_asked_for_are_counted_with_their_reason(tmp_path: Path) -> None:
    notes = {
        "a.md": "[[b]]\n",
        "b.md": "---\nprivate: true\n---\nТайна про насос и бочку.\n",
        "c.md": "Лестница ведёт на чердак, см. [[b]].\n",
    }
    for path, text in notes.items():
        (tmp_path / path).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match="has no scenes"):
        bench.links_bench(bench.workspace_of(str(tmp_path), None), share=1.0)  # type: ignore[arg-type]
    (tmp_path / "d.md").write_text("Чердак полон старых досок, а ещё есть [[c]].\n", encoding="utf-8")
    found = bench.links_bench(bench.workspace_of(str(tmp_path), None), share=1.0)  # type: ignore[arg-type]
    assert found["questions"] == 1
    assert {one["reason"]: one["where"] for one in found["skipped"]} == {
        "the linked note has no scenes (empty, private)": ["a.md:1", "c.md:1"]
    }


# -- showing


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    row = {"recall@1": 0.5, "recall@10": 0.75, "hit@1": 0.5, "ndcg@10": 0.6, "mrr": 0.55, "latency_ms_p50": 3.0, "latency_ms_p95": 5.0}
    gain = {"mean": 0.05, "low": -0.01, "high": 0.1, "groups": 12}
    return {
        "bench": "recall", "data": "q.json", "questions": 1234, "unanswerable": 5, "units": 240, "unit": "paragraph", "missing": 2,
        "seconds_to_ingest": 3.2, **row, "auroc": 0.7, "by_category": {"multi": {"questions": 7, **row}},
        "halves": {"words": {**row, "by_category": {"multi": row}, "gain": {"ndcg@10": gain}}}, "folds": [{"questions": 600, **row}],
        "skipped": [{"reason": "this is no JSON object", "count": 12, "where": ["line 3"]}],
    }  # fmt: skip


def test_the_table_is_aligned_and_everything_measured_stands_in_it(result: dict[str, Any]) -> None:
    said = bench.lines(result)
    table = said[2:8]
    assert table[0].split() == ["questions", "recall@1", "recall@10", "ndcg@10", "mrr"]
    assert len({len(row) for row in table}) == 1
    assert table[1].split() == ["all", "1,234", "0.500", "0.750", "0.600", "0.550"]
    rest = "\n".join(said)
    for words in (
        "1,234 questions, 240 paragraphs",
        "p95 5.0 ms",
        "+0.050 (95 %: -0.010 to +0.100",
        "AUROC 0.700",
        "line 3",
        "2 pieces of evidence",
    ):
        assert words in rest


def test_links_are_shown_arm_by_arm(linked: Workspace) -> None:
    said = bench.lines(bench.links_bench(linked, share=1.0))
    assert said[0].startswith("5 notes, 6 links between them: 6 hidden, 6 asked")
    assert any(row.startswith("all but near") for row in said)
    assert any("the better half" in row for row in said)


def test_a_picture_is_drawn_of_both_and_a_wrong_place_is_an_error(result: dict[str, Any], tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    arms = {name: {"recall@10": 0.5} for name in ("words", "dense", "all")}
    for number, one in enumerate((result, {"bench": "links", "k": 10, "arms": arms, "questions": 5, "notes": 9})):
        bench.plot(one, tmp_path / f"{number}.png")
        assert (tmp_path / f"{number}.png").read_bytes().startswith(b"\x89PNG")
    for wrong in (tmp_path / "no" / "x.png", tmp_path / "x.doc"):
        with pytest.raises(UsageError, match="cannot be written"):
            bench.plot(result, wrong)
