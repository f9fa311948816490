"""States of older versions: opened, copied, brought up to date in one transaction; or refused untouched.

`golden/ledgers/N.sql` is the ledger that the last commit with schema N made of four notes (and a run that it was given), as SQL; no commit
with schema 3 could read notes: its ledger is that of 2 after the third migration.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest

from vaultllm import canonical, config, database, forget, steps
from vaultllm.database import APPLICATION_ID, MIGRATIONS, Database, backups, remove_backups
from vaultllm.errors import ConfigError, DataError, VaultError
from vaultllm.ledger import Ledger

LEDGERS = Path(__file__).parent / "golden" / "ledgers"
OLD = range(1, len(MIGRATIONS))
SECRET = "sk-proj-Zx81kQm2vNp7Lr4Ts9Wd3Bh6Yc5Ga0Ef"
NOTES = {
    "Дневник/Колодец.md": "---\ntags: [сад, вода]\n---\n# Колодец\n\nНасос поднимает воду с девяти метров, если его залить до краёв. См."
    " [[Pump log]].\n\n## Зима\n\nНа зиму трубу снимаем и вешаем под навес, иначе её разорвёт первым же морозом.\n",
    "Pump log.md": f"# Pump log\n\n- 3 May: two bars after the valve was cleaned. ^may\n\nThe key is {SECRET} and must not be kept.\n",
    "নদী.md": "# নদী\n\nসকালে নদীর ধারে হাঁটতে গিয়ে দেখি জল অনেক নেমে গেছে, চরে ছেলেরা খেলছে।\n",
    "Chat.md": "User: How deep may the well be before this pump stops drawing water?\n\nAssistant: About eight metres in practice.\n",
}

pytestmark = pytest.mark.usefixtures("learns_later")


@functools.cache
def _made(version: int) -> bytes:
    """The bytes of a ledger of this schema."""
    db = sqlite3.connect(":memory:")
    db.executescript((LEDGERS / f"{version}.sql").read_text(encoding="utf-8"))
    data = db.serialize()
    db.close()
    return data


def old_state(state: Path, version: int) -> Path:
    """A state folder with such a ledger; the ledger's path."""
    state.mkdir(mode=0o700)
    (state / "vault_id").write_text("upgrade\n", encoding="utf-8")
    path = state / "ledger.db"
    path.write_bytes(_made(version))
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
    db.close()
    return path


def contents(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """Every row of every table, and the version."""
    db = sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)
    tables = [name for (name,) in db.execute("SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'")]
    found = {name: sorted(db.execute(f'SELECT * FROM "{name}"').fetchall(), key=repr) for name in sorted(tables)}
    found["the version"] = db.execute("PRAGMA user_version").fetchall()
    db.close()
    return found


def files(folder: Path) -> dict[str, str]:
    """All files but SQLite's shared memory, which says nothing that lasts."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.iterdir() if not file.name.endswith("-shm")}


@pytest.fixture
def vault(tmp_path: Path) -> Path:
    folder = tmp_path / "vault"
    for path, text in {**NOTES, ".vaultllm/config.toml": 'vault_id = "upgrade"\n'}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return folder


# -- brought up to date


def test_there_is_a_ledger_of_each_schema() -> None:
    assert sorted(int(file.stem) for file in LEDGERS.glob("*.sql")) == list(OLD)
    for version in OLD:
        db = sqlite3.connect(":memory:")
        db.deserialize(_made(version))
        assert db.execute("PRAGMA user_version").fetchone() == (version,)
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
        assert [db.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in ("notes", "runs", "answers")] == [4, 1, 1]
        db.close()


@pytest.mark.parametrize("version", OLD)
def test_an_old_ledger_is_copied_and_then_keeps_what_the_vault_does_not_hold(tmp_path: Path, version: int) -> None:
    path = old_state(tmp_path / "state", version)
    before = contents(path)
    with Ledger(path) as ledger:
        assert ledger.db.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
        assert ledger.db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert not ledger.db.execute("PRAGMA foreign_key_check").fetchall()
        (run,) = ledger.runs()
        assert (run.id, run.promoted, run.metrics["bpb_after"]) == ("20251121T103000-lora-1a2b", True, 2.25)
        assert ledger.count("notes") == 4
        assert [row[1:3] for row in before["answers"]] == ledger.db.execute("SELECT path, sha256 FROM answers").fetchall()
    (copy,) = backups(path)
    assert copy.name == f"ledger-schema-{version}.db"
    assert copy.stat().st_mode & 0o777 == 0o600
    assert contents(copy) == before
    with sqlite3.connect(copy) as db:
        assert db.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    db.close()


@pytest.mark.parametrize("version", [1, 4, 7])
def test_after_the_next_ingest_it_is_a_clean_rebuild_without_the_secrets_of_then(tmp_path: Path, vault: Path, version: int) -> None:
    old_state(tmp_path / "state", version)
    dumps = []
    for state in ("state", "new"):
        job = steps.Job(config.open_workspace(str(vault), str(tmp_path / state)))
        steps.ingest(job)
        kept = steps.doctor(job)["backups"]
        assert kept == ([f"ledger-schema-{version}.db"] if state == "state" else [])
        assert steps.doctor(job, repair=True)["backups"] == []  # and the scene files, which these states lack
        dumps.append(canonical.dump(job.workspace, job.ledger))
        job.close()
    assert dumps[0] == dumps[1]
    assert dumps[0]["without_vector"] == dumps[0]["without_words"] == []
    left = [file for file in (tmp_path / "state").rglob("*") if file.is_file() and SECRET.encode() in file.read_bytes()]
    assert left == []


def _killed(path: Path, at: int) -> bool:
    """Open a ledger in another process that dies before its `at`-th statement. Whether it did."""
    child = os.fork()
    if child == 0:
        seen = 0

        def count(statement: str) -> None:
            nonlocal seen
            seen += 1
            if seen == at:
                os._exit(9)

        connect = sqlite3.connect

        def watched(*args: object, **named: object) -> sqlite3.Connection:
            db = connect(*args, **named)  # type: ignore[call-overload]
            db.set_trace_callback(count)
            return db  # type: ignore[no-any-return]

        sqlite3.connect = watched  # type: ignore[assignment]
        try:
            Database(path).close()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9


def test_a_kill_at_any_statement_leaves_the_old_ledger_whole_or_the_new_one(tmp_path: Path) -> None:
    fresh = old_state(tmp_path / "fresh", 1)
    old = contents(fresh)
    Database(fresh).close()
    new = contents(fresh)
    at = 0
    was_killed = True
    while was_killed:
        at += 1
        path = old_state(tmp_path / "state", 1)
        was_killed = _killed(path, at)
        now = contents(path)
        assert now in (old, new), f"killed at statement {at}"
        assert now == old or [contents(copy) for copy in backups(path)] == [old], f"killed at statement {at}: changed without a copy"
        if at % 20 == 0:
            Database(path).close()
            assert contents(path) == new, f"killed at statement {at}: not brought up to date afterwards"
            assert not list(path.parent.glob("*.tmp")), f"killed at statement {at}: half a copy is left"
        shutil.rmtree(path.parent)
    assert at > 60


def test_the_kills_find_a_migration_that_is_not_one_transaction(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_by_one(self: Database) -> None:
        for number in range(self._version(), len(MIGRATIONS)):
            for statement in database._statements(MIGRATIONS[number]):
                self.db.execute(statement)
            self.db.execute(f"PRAGMA user_version = {number + 1}")

    monkeypatch.setattr(Database, "_migrate", one_by_one)
    path = old_state(tmp_path / "state", 7)
    old = contents(path)
    for at in range(16, 80, 4):
        path.write_bytes(_made(7))
        _killed(path, at)
        now = contents(path)
        if now != old and now["the version"] == old["the version"]:
            return
        for log in path.parent.glob("ledger.db-*"):
            log.unlink()
    pytest.fail("none was found")


def test_without_room_for_the_copy_nothing_is_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_state(tmp_path / "state", 7)
    before = contents(path)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(database, "_back_up", full)
    with pytest.raises(VaultError, match="No space left"):
        Ledger(path)
    assert contents(path) == before
    monkeypatch.undo()

    class Full:
        def execute(self, *_: object) -> None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        def close(self) -> None: ...

    connect = sqlite3.connect
    monkeypatch.setattr(
        sqlite3, "connect", lambda *args, **named: connect(*args, **named) if named.get("isolation_level", 0) is None else Full()
    )
    with pytest.raises(VaultError, match=r"bytes free, [\d,]+ needed"):
        Ledger(path)
    monkeypatch.undo()
    assert contents(path) == before
    (path.parent / database._ASIDE).mkdir()  # what cannot be written over
    with pytest.raises(VaultError):
        Ledger(path)
    assert contents(path) == before


def test_only_the_copy_of_the_last_update_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = old_state(tmp_path / "state", 3)
    Ledger(path).close()
    monkeypatch.setattr(database, "MIGRATIONS", (*MIGRATIONS, "CREATE TABLE later (x)"))
    Ledger(path).close()
    assert [copy.name for copy in backups(path)] == [f"ledger-schema-{len(MIGRATIONS)}.db"]
    assert remove_backups(path) == 1
    assert backups(path) == []


def test_a_new_ledger_needs_no_copy_and_what_the_user_put_beside_it_is_none(tmp_path: Path) -> None:
    (tmp_path / "ledger-schema-old.db").write_text("mine", encoding="utf-8")
    Ledger(tmp_path / "ledger.db").close()
    assert backups(tmp_path / "ledger.db") == []
    assert remove_backups(tmp_path / "ledger.db") == 0
    assert (tmp_path / "ledger-schema-old.db").exists()


def test_the_copy_put_back_is_the_state_before(tmp_path: Path) -> None:
    path = old_state(tmp_path / "state", 5)
    before = contents(path)
    Ledger(path).close()
    (copy,) = backups(path)
    for file in path.parent.glob("ledger.db*"):
        file.unlink()
    copy.rename(path)
    assert contents(path) == before


def test_forget_leaves_no_copy_however_short_the_text(tmp_path: Path, vault: Path) -> None:
    """Of eleven letters no fragment is looked for; they stand in the copy all the same."""
    (vault / "Chat.md").write_text("User: kurzes Wort\n\nAssistant: zwei Wörter\n", encoding="utf-8")
    path = old_state(tmp_path / "state", 7)
    job = steps.Job(config.open_workspace(str(vault), str(tmp_path / "state")))
    steps.ingest(job)
    assert len(backups(path)) == 1
    with job.lock():
        forget.forget(job.workspace, job.ledger, "Chat.md")
    job.close()
    assert backups(path) == []
    assert b"zwei W" not in b"".join(file.read_bytes() for file in path.parent.rglob("*") if file.is_file())


# -- refused


def _newer(path: Path) -> None:
    Database(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()


def _newer_in_its_log(path: Path) -> None:
    """As a newer one leaves it that was killed: the file's own header still says the version before."""
    Database(path).close()
    child = os.fork()
    if child == 0:
        db = sqlite3.connect(path, isolation_level=None)
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
        os._exit(0)
    os.waitpid(child, 0)


def _foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("CREATE TABLE theirs (x)")
        db.execute("PRAGMA user_version = 3")
    db.close()


def _garbage(path: Path) -> None:
    path.write_bytes(os.urandom(4096))


@pytest.mark.parametrize("make", [_newer, _newer_in_its_log, _foreign, _garbage])
def test_what_cannot_be_opened_is_refused_and_no_byte_is_changed(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "ledger.db"
    make(path)
    path.chmod(0o640)
    before = files(tmp_path)
    with pytest.raises(VaultError) as caught:
        Ledger(path)
    assert files(tmp_path) == before
    assert path.stat().st_mode & 0o777 == 0o640
    assert re.search(r"update vaultllm|choose another --state|vaultllm ingest", caught.value.message)
    assert caught.value.path == str(path)


def test_who_goes_back_to_an_older_version_is_told_of_the_copy(tmp_path: Path) -> None:
    path = old_state(tmp_path / "state", 7)
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    db.close()
    with pytest.raises(VaultError, match="put an older ledger back"):
        Ledger(path)


# -- the other files that carry a version


def test_a_list_of_what_was_forgotten_from_a_newer_version_is_refused(tmp_path: Path) -> None:
    from vaultllm import forgotten

    file = tmp_path / "forgotten.json"
    file.write_text(json.dumps({"format": "vaultllm forgotten 99", "entries": []}), encoding="utf-8")
    before = file.read_bytes()
    with pytest.raises((VaultError, DataError)):
        forgotten.load(tmp_path)
    assert file.read_bytes() == before


def test_a_stored_talk_from_a_newer_version_is_reported_and_no_import_writes_over_it(tmp_path: Path, vault: Path) -> None:
    export = tmp_path / "export.json"
    turns = [{"role": role, "content": f"{role} of the talk about wells and pumps"} for role in ("user", "assistant")]
    export.write_text(json.dumps([{"id": "talk-1", "messages": turns}]), encoding="utf-8")
    job = steps.Job(config.open_workspace(str(vault), str(tmp_path / "state")))
    assert steps.import_(job, [export])["conversations"]["new"] == 1
    (stored,) = (job.workspace.state / "imports").rglob("*.json")
    newer = stored.read_text(encoding="utf-8").replace("vaultllm talk 1", "vaultllm talk 2")
    stored.write_text(newer, encoding="utf-8")
    result = steps.ingest(job)
    assert any("vaultllm talk 2" in failed["message"] for failed in result["notes"]["failed"])
    with pytest.raises(VaultError, match="update vaultllm"):
        steps.import_(job, [export])
    job.close()
    assert stored.read_text(encoding="utf-8") == newer


def test_a_setting_of_a_newer_version_is_named_with_its_line_and_stays(tmp_path: Path, vault: Path) -> None:
    file = vault / config.CONFIG
    file.write_text('vault_id = "upgrade"\n[watch]\nsettle_longer = 3\n', encoding="utf-8")
    with pytest.raises(ConfigError, match="settle_longer") as caught:
        config.open_workspace(str(vault), str(tmp_path / "state"))
    assert caught.value.line == 3
    assert "settle_longer" in file.read_text(encoding="utf-8")
