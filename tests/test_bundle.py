"""What may be sent holds nothing of the vault; what is dumped is equal for equal vaults."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from vaultllm import bundle, canonical, config, steps
from vaultllm import ingest as ingesting
from vaultllm.errors import VaultError
from vaultllm.schema import Run

CONFIG = """vault_id = "sekretnyivault"
[scan]
ignore = ["Zapretnaya"]
me = ["Ottilie Quandt"]
[train]
base = "/home/quandt/modelle/gemeim"
min_new = 7
"""
NOTES = {
    "Дневник/Опись.md": "---\ntags: [тайник]\n---\n# Опись\n\nКлюч лежит под третьим кирпичом.\n\nsecret words: marzipan obelisk\n",
    "projektalpha.md": "# Projektalpha\n\nquartz zither [[Опись]]\n",
    "broken.md": "---\nx: [\n---\n# Kaputt\n\nkolibri\n",
}
PLANTED = (
    "кирпич опись дневник тайник marzipan obelisk quartz zither kolibri kaputt projektalpha sekretnyivault zapretnaya ottilie quandt "
    "modelle gemeim geheimvault staat klartext"
).split()


@pytest.fixture
def job(tmp_path: Path) -> Iterator[steps.Job]:
    vault = tmp_path / "geheimvault"
    for name, text in NOTES.items():
        (vault / name).parent.mkdir(parents=True, exist_ok=True)
        (vault / name).write_text(text, encoding="utf-8")
    (vault / ".vaultllm").mkdir()
    (vault / config.CONFIG).write_text(CONFIG, encoding="utf-8")
    made = steps.Job(config.open_workspace(str(vault), str(tmp_path / "staat")))
    ingesting.ingest(made.workspace, made.ledger)
    yield made
    made.close()


def test_a_bundle_holds_versions_and_counts_and_no_word_or_name_of_the_vault(job: steps.Job, tmp_path: Path) -> None:
    metrics = {"bpb": 1.5, "marzipan": {"obelisk": 1}, "verdict": "quartz"}
    job.ledger.put_run(Run("r", "lora", "/home/quandt/b", "", "", {"base": "/home/quandt"}, 0, "", "done", metrics, {}, "2026-01-01"))
    log = job.workspace.state / "watch.log"
    line = {"at": "2026-01-01T10:00:00+00:00", "event": "problem", "code": "E-READ", "message": "Опись.md", "Projektalpha": 1}
    log.write_text(json.dumps(line, ensure_ascii=False) + "\nKlartext marzipan\n", encoding="utf-8")
    path = tmp_path / "b.zip"
    names = bundle.write(path, job.workspace, job.ledger, [{"code": "W-SCENES", "message": "projektalpha.md"}])
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == names
        said = {name: archive.read(name).decode() for name in names}
    everything = "\n".join(said.values())
    for word in PLANTED:
        assert word.casefold() not in everything.casefold(), word
    assert json.loads(said["counts.json"])["notes"] == 3
    assert sum(json.loads(said["problems.json"]).values()) == len(job.ledger.problems()) > 0
    assert json.loads(said["versions.json"])["packages"]["numpy"]
    assert json.loads(said["runs.json"])[0]["metrics"] == {"bpb": 1.5}
    assert json.loads(said["settings.json"])["changed"] == ["scan.ignore", "scan.me", "train.base", "train.min_new"]
    assert json.loads(said["watch.log.json"]) == [
        {"at": "2026-01-01T10:00:00+00:00", "event": "problem", "code": "E-READ", "message": "…", "… 4": 1},
        "…",
    ]
    assert json.loads(said["findings.json"]) == ["W-SCENES"]


def test_a_file_that_is_there_is_not_replaced(job: steps.Job, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    path.write_text("mine", encoding="utf-8")
    with pytest.raises(VaultError, match="name another"):
        bundle.write(path, job.workspace, job.ledger, [])
    with pytest.raises(VaultError, match="cannot be written"):
        bundle.write(tmp_path / "no" / "b.zip", job.workspace, job.ledger, [])
    assert path.read_text(encoding="utf-8") == "mine"


def test_the_canonical_state_is_that_of_a_vault_read_from_nothing_and_shows_every_difference(job: steps.Job, tmp_path: Path) -> None:
    note = job.workspace.vault / "projektalpha.md"
    before = note.read_text(encoding="utf-8")
    first = canonical.dump(job.workspace, job.ledger)
    note.write_text("# Anders\n", encoding="utf-8")
    ingesting.ingest(job.workspace, job.ledger, only=["projektalpha.md"])
    note.write_text(before, encoding="utf-8")
    ingesting.ingest(job.workspace, job.ledger)
    again = canonical.dump(job.workspace, job.ledger)
    other = steps.Job(config.open_workspace(str(job.workspace.vault), str(tmp_path / "anderer")))
    ingesting.ingest(other.workspace, other.ledger)
    fresh = canonical.dump(other.workspace, other.ledger)
    other.close()
    for one in (first, again, fresh):
        one["waiting"] = 0  # for Chroma, which nobody told here
    assert first == again == fresh
    assert "marzipan" not in json.dumps(first)
    damages = (
        "DELETE FROM documents WHERE doc = (SELECT min(doc) FROM documents)",
        "UPDATE scenes SET record = json_set(record, '$.title', 'Anders') WHERE slot = (SELECT min(slot) FROM scenes)",
        "UPDATE scenes SET record = substr(record, 2) WHERE slot = (SELECT min(slot) FROM scenes)",
        "UPDATE notes SET sha256 = '' WHERE path = 'projektalpha.md'",
        "DELETE FROM links",
        "DELETE FROM problems",
        "INSERT INTO vectors (passage, embedder, vector) VALUES (9999, '', x'')",
        "INSERT INTO documents (slot, words, grams) VALUES (9999, 0, 0)",
    )
    for damage in damages:
        job.ledger.db.execute("SAVEPOINT before")
        job.ledger.db.execute(damage)
        assert {**canonical.dump(job.workspace, job.ledger), "waiting": 0} != first, damage
        job.ledger.db.execute("ROLLBACK TO before")
        job.ledger.db.execute("RELEASE before")
    file = next(job.workspace.scenes.rglob("*.yaml"))
    file.write_text(file.read_text(encoding="utf-8").replace("kind:", "Kind:"), encoding="utf-8")
    assert canonical.dump(job.workspace, job.ledger)["files"] != first["files"]
    file.unlink()
    assert canonical.dump(job.workspace, job.ledger)["files"] != first["files"]


def test_the_canonical_state_does_not_depend_on_when_the_words_of_the_vault_were_counted(job: steps.Job, tmp_path: Path) -> None:
    """A vault that grew from 20 notes and one that was read at once have other keywords, until their notes are read again."""
    vault = job.workspace.vault
    for number in range(38):
        (vault / f"{number}.md").write_text(
            f"# Notiz {number}\n\nGarten und Brunnen {'Leiter' if number < 21 else 'Pumpe Leiter'} {number}.\n"
        )
        if number in (21, 37):
            ingesting.ingest(job.workspace, job.ledger)
    other = steps.Job(config.open_workspace(str(vault), str(tmp_path / "anderer")))
    ingesting.ingest(other.workspace, other.ledger)
    records = [list(one.ledger.db.execute("SELECT record FROM scenes ORDER BY id")) for one in (job, other)]
    grown, fresh = (canonical.dump(one.workspace, one.ledger) for one in (job, other))
    other.close()
    assert records[0] != records[1]
    assert {**grown, "waiting": 0} == {**fresh, "waiting": 0}


def test_the_canonical_state_does_not_depend_on_whether_twins_were_looked_for(job: steps.Job) -> None:
    said = "# Zwilling\n\n" + "Der Brunnen im Garten ist neun Meter tief, und die Pumpe zieht nur acht davon herauf. " * 8
    for name in ("eins.md", "zwei.md"):
        (job.workspace.vault / name).write_text(said, encoding="utf-8")
    ingesting.ingest(job.workspace, job.ledger)
    before = canonical.dump(job.workspace, job.ledger)
    assert job.ledger.link_duplicates()
    assert canonical.dump(job.workspace, job.ledger) == before
