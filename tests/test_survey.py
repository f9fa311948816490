"""What is counted in the ledger: every scene and every message once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from vaultllm import config, steps, survey

TALK = """---
nexus: nexus-ai-chat-importer
provider: chatgpt
conversation_id: c1
---

>[!nexus_user] **User** - 16.06.2025 at 21:34
> Когда включается насос и сколько воды остаётся в бочке?
<!-- UID: u1 -->

>[!nexus_agent] **Assistant** - 16.06.2025 at 21:34
> Ниже тридцати двух процентов.
<!-- UID: a1 -->

>[!nexus_user] **User** - 16.06.2025 at 21:35
> [No content found]
<!-- UID: u2 -->
"""
NOTE = (
    "Насос включается ниже тридцати двух процентов и молчит ночью, чтобы не будить соседей. Бочки на двести литров хватает на три дня, "
    "если не поливать огурцы дважды. Датчик стоит у забора, провод закопан на ладонь, коробка закрыта крышкой от банки. В сухую неделю "
    "уровень колодца падает на палец за сутки, после дождя поднимается на четыре. Запись веду в тетради, потом переношу сюда, потому что "
    "тетрадь однажды уже упала в ту же самую бочку вместе с карандашом и линейкой."
)


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Any:
    tmp_path = tmp_path_factory.mktemp("survey")
    vault = tmp_path / "vault"
    files = {
        "chat.md": TALK,
        "скрыто.md": TALK.replace("u1", "u9").replace("---\n\n", "private: true\n---\n\n", 1),
        "a.md": NOTE,
        "b.md": NOTE.replace("соседей", "собаку", 1),
        "Шаблоны/день.md": "План на день: {{date}} и ещё немного слов.",
        "mail.md": "Пишите мне: password: Zx9Qw3Er5Ty7 и password: Ui1OpAs2Df3G, буду рад.",
    }
    for name, text in files.items():
        (vault / name).parent.mkdir(parents=True, exist_ok=True)
        (vault / name).write_text(text, encoding="utf-8")
    made = steps.Job(config.init_workspace(vault, str(tmp_path / "state")))
    steps.ingest(made)
    yield made
    made.close()


def test_every_scene_is_counted_once_in_each_way(job: steps.Job) -> None:
    scenes = steps.status(job)["scenes"]
    found = list(job.ledger.scenes())
    assert scenes["total"] == len(found) == 5
    for name in ("kinds", "languages", "trust"):
        assert sum(scenes[name].values()) == scenes["total"]
    assert sum(bucket["scenes"] for bucket in scenes["lengths"]["buckets"]) == scenes["total"]
    assert scenes["reasons"] == {"a template": 1}
    assert scenes["trainable"] == 4
    lengths = sorted(sum(len(turn.text) for turn in scene.turns) for scene in found)
    assert (scenes["lengths"]["median"], scenes["lengths"]["p90"], scenes["lengths"]["most"]) == (lengths[2], lengths[4], lengths[-1])


def test_near_duplicates_are_counted_and_named_and_learnt_once(job: steps.Job) -> None:
    assert steps.status(job)["scenes"]["duplicates"] == 1
    first, again = list(job.ledger.scenes("a.md")), list(job.ledger.scenes("b.md"))
    assert (first[0].duplicate, again[0].duplicate) == ("", first[0].id)
    assert "nearly the same as" in steps.dataset(job)["dropped"]


def test_a_large_change_is_not_read_by_status(job: steps.Job, monkeypatch: pytest.MonkeyPatch) -> None:
    job.ledger.db.execute("DELETE FROM signatures")
    job.ledger.db.execute("DELETE FROM meta WHERE key = 'twins'")
    monkeypatch.setattr(steps.looking, "STATUS_READS", 2)
    assert steps.status(job)["scenes"]["duplicates"] is None
    job.ledger.link_duplicates()
    assert steps.status(job)["scenes"]["duplicates"] == 1


def test_redactions_are_counted_by_kind(job: steps.Job) -> None:
    assert steps.status(job)["scenes"]["redactions"] == {"password": 2}


def test_the_account_of_messages_adds_up(job: steps.Job) -> None:
    turns = steps.status(job)["turns"]
    assert turns == {"seen": 6, "in_scenes": 2, "left_out": 4, "why": {"W-EMPTY": 2, "W-PRIVATE": 2}}
    assert sum(turns["why"].values()) == turns["left_out"]


def test_what_a_survey_reads_stands_in_an_index(job: steps.Job) -> None:
    seen: list[str] = []
    job.ledger.db.set_trace_callback(seen.append)
    survey.survey(job.ledger.db)
    job.ledger.db.set_trace_callback(None)
    (query,) = (one for one in seen if "FROM scenes" in one)
    plan = " ".join(row[3] for row in job.ledger.db.execute(f"EXPLAIN QUERY PLAN {query}"))
    assert "COVERING INDEX scenes_survey" in plan


def test_an_empty_ledger_is_surveyed(tmp_path: Path) -> None:
    (tmp_path / "vault").mkdir()
    job = steps.Job(config.init_workspace(tmp_path / "vault", str(tmp_path / "state")))
    scenes = survey.survey(job.ledger.db)
    assert (scenes["total"], scenes["lengths"]["median"], scenes["duplicates"]) == (0, 0, 0)
    job.close()
