"""The demonstration on a part of the example vault: the same code, less time."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from vaultllm import demo, markdown, reporting
from vaultllm.errors import UsageError
from vaultllm.models import plan


@pytest.mark.usefixtures("learns_later", "one_thread")
def test_the_demo_goes_the_whole_way_and_leaves_the_example_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = demo.example_vault()
    part = tmp_path / "part"
    for folder in ("Work", "Дача", "বাংলা", "Nexus/Conversations/chatgpt/2025/02"):
        shutil.copytree(example / folder, part / folder)
    monkeypatch.setattr(demo, "example_vault", lambda: part)
    monkeypatch.setattr(demo, "SEEDS", (0, 1))  # to be averaged over
    monkeypatch.setattr(demo, "SETTINGS", demo.SETTINGS.replace("val = 0.15", "val = 0.05"))
    monkeypatch.setattr(plan, "SHAPES", (plan.Shape(64, 2, 2, 160),))
    monkeypatch.setattr("vaultllm.answer.MICRO_NEW_TOKENS", 24)
    monkeypatch.setattr(reporting, "NEW_TOKENS", 12)
    said: list[str] = []
    result = demo.run(tmp_path / "out", 0.06, lambda progress: None, said.append)
    assert len(result["runs"]) == 2
    assert {"base", "base+memory", "trained", "trained+memory"} <= result["metrics"]["arms"].keys()
    assert result["verdict"]["low"] <= result["verdict"]["mean"] <= result["verdict"]["high"]
    quoted = [" | ".join(source["quote"] for source in answer["sources"]) for answer in result["answers"]]
    assert "32 %" in quoted[0]
    assert "২১ সেপ্টেম্বর" in quoted[1]
    assert "2025-04-11" in quoted[2]
    assert "14 cm" in quoted[2]
    vault = Path(result["vault"])
    for answer in result["answers"]:
        note = markdown.parse(answer["note"], (vault / answer["note"]).read_bytes())
        assert note.properties["vaultllm"] == "answer"
        assert not note.problems
        for source in answer["sources"]:
            assert source["quote"].split("\n")[0] in (vault / source["path"]).read_text(encoding="utf-8").replace("> ", "")
    assert any(line.startswith("4/4") for line in said)
    report = markdown.parse(result["report"], (vault / result["report"]).read_bytes())
    assert (report.properties["vaultllm"], report.properties["vaultllm_run"]) == ("report", result["runs"][0])
    assert f"  report      {result['report']}" in result["lines"]
    for path in part.rglob("*.md"):
        assert (vault / path.relative_to(part)).read_bytes() == path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        demo.run(tmp_path / "out", 0.06, lambda progress: None, said.append)


def test_the_example_vault_is_what_the_readme_says() -> None:
    root = demo.example_vault()
    notes = list(root.rglob("*.md"))
    assert len(notes) >= 60
    assert sum(path.stat().st_size for path in notes) >= 300_000
    nexus = [path for path in notes if "[!nexus_" in path.read_text(encoding="utf-8") or ", on " in path.read_text(encoding="utf-8")]
    assert len(nexus) >= 15
    assert (root / ".obsidian" / "app.json").is_file()
    assert list(root.rglob("*.canvas"))
