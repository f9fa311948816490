"""What a person reads on the terminal: the right hint in the right place."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from vaultllm import lineage, training_views, views
from vaultllm.schema import Run


def shown(view: Any) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(view)
    return capture.get()


def problems(number: int) -> list[dict[str, Any]]:
    warnings = [{"code": "W-KIND", "path": f"a{i}.base", "line": 0, "message": "holds no notes"} for i in range(number)]
    return [*warnings, {"code": "E-ENC", "path": "z.md", "line": 3, "message": "save it as UTF-8"}]


def test_what_could_not_be_read_is_shown_before_warnings() -> None:
    lines = views._problem_lines(problems(60))
    assert lines[0] == "E-ENC z.md:3: save it as UTF-8"
    assert lines[-1] == "… and 51 more: vaultllm status"


def surveyed(**more: Any) -> dict[str, Any]:
    """What `status` says of 90 scenes."""
    buckets = [{"below": 100, "scenes": 60}, {"below": 200, "scenes": 30}, {"below": None, "scenes": 0}]
    lengths = {"median": 80, "p90": 150, "most": 190, "buckets": buckets}
    counts = {"kinds": {"dialogue": 90}, "languages": {"ru": 90}, "trust": {"own": 90}, "reasons": {"a [template]": 3}}
    return {"total": 90, "trainable": 87, "lengths": lengths, "duplicates": 2, "redactions": {"email": 4}, **counts, **more}


def status_of(scenes: dict[str, Any], **more: Any) -> str:
    memory = {"vectors": 1, "passages": 1, "waiting": 0}
    result = {
        "vault": "v",
        "state": "s",
        "notes": 1,
        "daemon": None,
        "behind": {"new": 0, "changed": 0, "gone": 0},
        "memory": memory,
        "current": None,
        "problems": [],
        "forgotten": {"entries": 0, "unfinished": 0},
    }
    result |= {"turns": {"seen": 9, "in_scenes": 6, "left_out": 3, "why": {"W-TOOL": 3}}, "scenes": scenes}
    return shown(views.status(result | {"dataset": {"new_scenes": 1, "min_new": 20}} | more))


def test_status_draws_the_lengths_of_scenes_and_says_why_some_are_not_learnt() -> None:
    said = status_of(surveyed())
    rows = {row.split()[1]: row.count("█") for row in said.splitlines() if row.startswith("below")}
    assert rows == {"100": 40, "200": 20}
    assert "median 80" in said
    assert "a [template]" in said
    assert "9 in talks: 6 in scenes, 3 left out (3 W-TOOL)" in said
    assert "4 secrets and personal data (4 email)" in said
    assert "not counted yet" in status_of(surveyed(duplicates=None))


def test_status_of_an_empty_vault_draws_nothing() -> None:
    assert "█" not in status_of(surveyed(total=0))


def test_status_says_whether_a_daemon_lives_what_it_did_and_how_far_the_memory_is_behind() -> None:
    daemon = {"pid": 7, "doing": "watching", "silent": 3.0, "alive": True, "last": {"at": "2026-01-01", "read": 2, "removed": 1}}
    alive = status_of(surveyed(), daemon=daemon, behind={"new": 1, "changed": 2, "gone": 0})
    assert "process 7 is watching, alive 3 s ago; last at 2026-01-01: 2 read, 1 removed" in alive
    assert "since they were read: 1 new, 2 changed " in alive
    silent = status_of(surveyed(), daemon={**daemon, "silent": 999.0, "alive": False}, behind={"new": 1, "changed": 0, "gone": 0})
    assert "silent for 999 s" in silent
    assert "read them with: vaultllm ingest" in silent
    assert "vaultllm watch" in status_of(surveyed())
    assert "is its disk mounted?" in status_of(surveyed(), behind=None)


def test_status_names_a_command_that_shows_more_than_itself() -> None:
    assert "… and 21 more: vaultllm status --json" in status_of(surveyed(), problems=problems(60))


def test_a_run_that_was_not_promoted_offers_its_promotion_and_no_rollback() -> None:
    metrics = {
        "verdict": "worse",
        "tokens": {"learnt": 1, "context": 0, "padding": 0},
        "tokens_per_s": 1.0,
        "seconds": 1.0,
        "peak_rss_mb": 1,
    }
    result = {"run": "r1", "status": "done", "promoted": False, "reason": "it got worse", "metrics": metrics, "plot": "p", "adapter": "a"}
    assert "vaultllm promote r1" in shown(training_views.train(result))
    assert "rollback" not in shown(training_views.train(result))
    assert "rollback" in shown(training_views.train(result | {"promoted": True}))


def test_without_a_model_no_words_of_it_are_announced() -> None:
    result = {"answer": "", "sources": [], "model": "no model yet", "capable": False, "note": None, "seconds": 0.1}
    assert "no model yet:" not in shown(views.answer(result))
    assert "base:" in shown(views.answer(result | {"answer": "да", "model": "base"}))


def test_runs_are_a_line_with_what_was_refused_hanging_on_it() -> None:
    def run(name: str, parent: str, *, promoted: bool, reason: str) -> Run:
        metrics = {"bpb_before": 2.0, "bpb_after": 1.9}
        return Run(
            name, "lora", "/bases/Qwen3", "", "abcdef0123456789", {}, 0, parent, "done", metrics, {}, f"2025-01-{name}", promoted, reason
        )

    found = [
        run("01", "", promoted=True, reason="better"), run("02", "01", promoted=False, reason="it got worse"),
        run("03", "01", promoted=True, reason="better again"),
    ]  # fmt: skip
    records = [{"id": one.id, "adapter": one.id != "02"} for one in found]
    said = shown(training_views.runs({"runs": records, "current": "03", "descent": lineage.descent(found, "03")}))
    assert [line.split("  ")[0].rstrip() for line in said.split("\n")[1:5]] == ["Qwen3", "● 01", "├─○ 02", "● 03"]
    assert "refused (adapter removed)" in said
    assert "answers" in said
    assert "2.000 → 1.900" in said
    assert "abcdef01 " in said
    assert "no run yet" in shown(training_views.runs({"runs": [], "current": None, "descent": []}))


def test_the_note_about_a_training_is_named_or_why_there_is_none() -> None:
    assert "report      a.md" in training_views._report_line({"report": "a.md"})
    assert "no report   disk full" in training_views._report_line({"report": None, "report_error": "disk full"})
    assert training_views._report_line({}) == ""
    about = {"run": "r1", "decision": "refused", "reason": "it got worse", "note": "a.md"}
    assert shown(training_views.reported(about | {"written": False})) == "run r1: refused: it got worse\nnote     a.md\n"
    assert "written  a.md" in shown(training_views.reported(about | {"written": True}))


def test_a_search_says_what_a_model_looked_for_besides_and_what_it_could_not() -> None:
    found = {"query": "дом", "answerable": True, "confidence": 1.0, "hits": []}
    said = shown(views.search(found | {"rewritten": ["Где стоит дом?"], "notice": ""}))
    assert "also looked for: Где стоит дом?" in said
    said = shown(views.search(found | {"rewritten": [], "notice": "the micro model cannot write queries"}))
    assert "the micro model cannot write queries" in said
    assert "also looked for" not in said
