"""The SQLite file of the ledger: opened, made private, brought to the newest schema; transactions; its meta table.

Before an older ledger is changed, a copy of it is laid beside it; then it is brought up to date in one transaction. Several processes
may open or make it at once. Knows the tables' shapes, not what is done with them (`ledger.py`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import sqlite3
import struct
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vaultllm import locks
from vaultllm.errors import LockedError, VaultError, VaultllmError
from vaultllm.files import explained as with_room
from vaultllm.text import sha

APPLICATION_ID = 0x76_6C_6C_6D  # "vllm" in the file's header: says whose database this is

# Each entry takes the schema one version up; never edit one that was released, append another.
MIGRATIONS: tuple[str, ...] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE notes (
        id INTEGER PRIMARY KEY, path TEXT NOT NULL UNIQUE, name TEXT NOT NULL, title TEXT NOT NULL,
        size INTEGER NOT NULL, mtime_ns INTEGER NOT NULL, ctime_ns INTEGER NOT NULL, inode INTEGER NOT NULL,
        sha256 TEXT NOT NULL, parser TEXT NOT NULL, reader TEXT NOT NULL, why TEXT NOT NULL
    );
    CREATE INDEX notes_name ON notes(name);
    CREATE TABLE problems (path TEXT NOT NULL, code TEXT NOT NULL, line INTEGER NOT NULL, message TEXT NOT NULL);
    CREATE INDEX problems_path ON problems(path);
    CREATE TABLE scenes (
        slot INTEGER PRIMARY KEY, note INTEGER NOT NULL REFERENCES notes(id) ON DELETE CASCADE, ordinal INTEGER NOT NULL,
        id TEXT NOT NULL, sha TEXT NOT NULL, kind TEXT NOT NULL, language TEXT NOT NULL, trust TEXT NOT NULL,
        train INTEGER NOT NULL, at TEXT NOT NULL, record TEXT NOT NULL, UNIQUE (note, id)
    );
    CREATE INDEX scenes_id ON scenes(id);
    CREATE TABLE links (scene INTEGER NOT NULL REFERENCES scenes(slot) ON DELETE CASCADE, target TEXT NOT NULL);
    CREATE INDEX links_scene ON links(scene);
    CREATE INDEX links_target ON links(target);
    CREATE TABLE passages (
        slot INTEGER PRIMARY KEY, scene INTEGER NOT NULL REFERENCES scenes(slot) ON DELETE CASCADE, ordinal INTEGER NOT NULL,
        first INTEGER NOT NULL, last INTEGER NOT NULL, uid TEXT NOT NULL, role TEXT NOT NULL,
        text TEXT NOT NULL, context TEXT NOT NULL, sha TEXT NOT NULL, UNIQUE (scene, ordinal)
    );
    CREATE TABLE vectors (passage INTEGER PRIMARY KEY, embedder TEXT NOT NULL, vector BLOB NOT NULL);
    CREATE TABLE outbox (passage INTEGER PRIMARY KEY);
    CREATE VIRTUAL TABLE stems USING fts5(text, context, content='', tokenize="ascii tokenchars '_#'");
    CREATE VIRTUAL TABLE grams USING fts5(text, context, content='', tokenize="ascii tokenchars '_#'");
    CREATE VIRTUAL TABLE stems_terms USING fts5vocab('stems', 'row');
    CREATE VIRTUAL TABLE grams_terms USING fts5vocab('grams', 'row');
    CREATE TABLE runs (id TEXT PRIMARY KEY, created TEXT NOT NULL, record TEXT NOT NULL) WITHOUT ROWID;
    CREATE TABLE answers (
        id TEXT PRIMARY KEY, path TEXT NOT NULL, sha256 TEXT NOT NULL, created TEXT NOT NULL, record TEXT NOT NULL
    ) WITHOUT ROWID;
    """,
    # What is counted at every ingest and every question must not read the texts and vectors themselves.
    """
    CREATE INDEX scenes_train ON scenes(train, id, sha);
    CREATE INDEX vectors_embedder ON vectors(embedder);
    CREATE INDEX vectors_empty ON vectors(embedder) WHERE vector = zeroblob(length(vector));
    """,
    # The account of messages: how many a note holds, how many of them are in no scene (each for a counted reason).
    """
    ALTER TABLE notes ADD COLUMN turns INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE notes ADD COLUMN turns_left INTEGER NOT NULL DEFAULT 0;
    ALTER TABLE problems ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
    ALTER TABLE scenes ADD COLUMN reason TEXT NOT NULL DEFAULT '';
    ALTER TABLE scenes ADD COLUMN length INTEGER NOT NULL DEFAULT 0;
    """,
    # Which talk stands in which note, and with what it was joined: so that a note is read again when its imported copy changes.
    """
    CREATE TABLE talks (path TEXT NOT NULL, conversation TEXT NOT NULL, joined TEXT NOT NULL, uids TEXT NOT NULL);
    CREATE INDEX talks_path ON talks(path);
    CREATE INDEX talks_conversation ON talks(conversation);
    UPDATE notes SET parser = '';
    """,
    # What a scene's text is known by, and which scenes say nearly the same as an earlier one (memory/twins.py).
    """
    CREATE TABLE signatures (
        scene INTEGER PRIMARY KEY REFERENCES scenes(slot) ON DELETE CASCADE, sha TEXT NOT NULL, signature BLOB NOT NULL
    );
    CREATE TABLE twins (
        scene INTEGER PRIMARY KEY REFERENCES scenes(slot) ON DELETE CASCADE,
        first INTEGER NOT NULL REFERENCES scenes(slot) ON DELETE CASCADE
    );
    CREATE INDEX twins_first ON twins(first);
    CREATE INDEX scenes_place ON scenes(note, ordinal, train, sha);
    CREATE INDEX scenes_survey ON scenes(kind, language, trust, train, reason, length);
    """,
    # A link as written: of notes with one name, its folders say which is meant.
    """
    ALTER TABLE links ADD COLUMN written TEXT NOT NULL DEFAULT '';
    UPDATE notes SET parser = '';
    """,
    # What a transaction adds to the words index waits in memory until so much is together: fewer pieces to be merged later.
    """
    INSERT INTO stems (stems, rank) VALUES ('hashsize', 33554432);
    INSERT INTO grams (grams, rank) VALUES ('hashsize', 33554432);
    """,
    # The words index is one inverted index of words, of which stems and 4-grams are views (memory/words.py); filled when it is opened.
    """
    DROP TABLE stems_terms;
    DROP TABLE grams_terms;
    DROP TABLE stems;
    DROP TABLE grams;
    CREATE TABLE vocabulary (id INTEGER PRIMARY KEY AUTOINCREMENT, size INTEGER NOT NULL, keys BLOB NOT NULL, words BLOB NOT NULL);
    CREATE TABLE documents (
        doc INTEGER PRIMARY KEY AUTOINCREMENT, slot INTEGER NOT NULL UNIQUE, words INTEGER NOT NULL, grams INTEGER NOT NULL
    );
    CREATE TABLE postings (id INTEGER PRIMARY KEY AUTOINCREMENT, family TEXT NOT NULL, size INTEGER NOT NULL, data BLOB NOT NULL);
    CREATE INDEX postings_family ON postings(family, size);
    CREATE INDEX scenes_at ON scenes(at) WHERE at != '';
    DROP TABLE vectors;
    CREATE TABLE vectors (
        stamp INTEGER PRIMARY KEY AUTOINCREMENT, passage INTEGER NOT NULL, embedder TEXT NOT NULL, vector BLOB NOT NULL,
        UNIQUE (embedder, passage)
    );
    CREATE INDEX vectors_stamp ON vectors(embedder);
    CREATE INDEX vectors_passage ON vectors(passage);
    CREATE INDEX vectors_empty ON vectors(embedder) WHERE vector = zeroblob(length(vector));
    ALTER TABLE outbox RENAME TO outbox_of_slots;
    CREATE TABLE outbox (seq INTEGER PRIMARY KEY AUTOINCREMENT, passage INTEGER NOT NULL UNIQUE);
    INSERT INTO outbox (passage) SELECT passage FROM outbox_of_slots;
    DROP TABLE outbox_of_slots;
    """,
)


WAY_OUT = "move it away and run: vaultllm ingest (it is rebuilt from the vault, and from what is kept beside it)"
"""What helps where a ledger is damaged."""

_PAGE = 16384  # bytes: a scene has some 2 KB, of which the usual 4096 would hold one and leave a third empty
_PART = 500  # values in one statement
_HEADER = struct.Struct(">16s44xi4xI")  # of SQLite's file format: the magic, user_version, application_id
_BACKUP = re.compile(r"ledger-schema-\d+\.db")


def marks(count: int) -> str:
    """So many placeholders of a statement."""
    return ", ".join("?" * count)


class Database:
    """The open file. Use as a context manager; one per thread."""

    def __init__(self, path: Path) -> None:
        """Open or create; migrate. Raises VaultError when it is damaged, not ours, or from a newer version."""
        self.path = path
        try:
            _refuse(path)
            self.db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            try:
                self._refuse_foreign()
                path.chmod(0o600)
                self.db.execute(f"PRAGMA page_size = {_PAGE}")  # of a new file
                self.db.execute("PRAGMA foreign_keys = ON")
                self.db.execute("PRAGMA secure_delete = ON")  # what is deleted leaves the disk too
                self._to_wal()
                self.db.execute("PRAGMA synchronous = NORMAL")
                self.db.execute("PRAGMA cache_size = -32768")  # KB
                (page,) = self.db.execute("PRAGMA page_size").fetchone()
                self.db.execute(f"PRAGMA wal_autocheckpoint = {2**24 // page}")  # 16 MB
                self._migrate()
            except BaseException:
                self.db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise explained(error, path) from error

    def _to_wal(self) -> None:
        """Write-ahead logging. SQLite does not wait its timeout for this switch when two make the same file, so we do."""
        for last in [False] * 40 + [True]:
            try:
                self.db.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if last:
                    raise
                time.sleep(0.05)

    def _refuse_foreign(self) -> None:
        """Before anything is written: is this file ours, and not newer than us?"""
        self.db.execute("BEGIN")  # one snapshot: another process may be making the file right now
        (tables,) = self.db.execute("SELECT count(*) FROM sqlite_master").fetchone()
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        (application,) = self.db.execute("PRAGMA application_id").fetchone()
        self.db.execute("COMMIT")
        _judge(self.path, version, application, tables > 0)

    def _migrate(self) -> None:
        """All that is missing, in one transaction; a ledger that holds something is copied first. Raises sqlite3.Error, OSError."""
        if self._version() == len(MIGRATIONS):
            return
        with self.transaction():
            # Read again under the lock: another process may have migrated while we waited for it.
            version = self._version()
            if version == len(MIGRATIONS):
                return
            if version:
                _back_up(self.path, version)
            for script in MIGRATIONS[version:]:
                for statement in _statements(script):
                    self.db.execute(statement)
            self.db.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self.db.execute(f"PRAGMA user_version = {len(MIGRATIONS)}")

    def _version(self) -> int:
        (version,) = self.db.execute("PRAGMA user_version").fetchone()
        return int(version)

    def close(self) -> None:
        """Close the file."""
        self.db.close()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing; joins the transaction that is already open."""
        if self.db.in_transaction:
            yield
            return
        self.db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self.db.execute("COMMIT")
        except BaseException:
            if self.db.in_transaction:  # a full disk has made SQLite roll back by itself
                self.db.execute("ROLLBACK")
            raise

    def among(self, query: str, values: Sequence[Any], *before: Any) -> Iterator[tuple[Any, ...]]:
        """Rows of a query in which `{}` stands for the placeholders of so many values, `before` for what is asked before them.

        For any number of values: SQLite takes so many in a statement, so a part of them is asked for at a time.
        """
        for start in range(0, len(values), _PART):
            part = values[start : start + _PART]
            yield from self.db.execute(query.format(marks(len(part))), (*before, *part))

    def get(self, key: str) -> str | None:
        """A value of the meta table."""
        row = self.db.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def set(self, key: str, value: str) -> None:
        """Set a value of the meta table."""
        self.db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (key, value))


def explained(error: sqlite3.Error | OSError, path: Path | None = None) -> VaultllmError:
    """What a failure of SQLite, or of the disk below it, means to the user."""
    where = None if path is None else str(path)
    code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_IOERR) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        who = "" if path is None else locks.at_work(path.parent)
        return LockedError(f"another vaultllm writes to the ledger{who and f' (at work: {who})'}; try again when it is done", path=where)
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or "decode to UTF-8" in str(error) or (path is not None and path.is_dir()):
        return VaultError(f"the ledger is damaged ({error}); {WAY_OUT}", path=where)
    return VaultError(f"the ledger cannot be used ({error}); make room on its disk, and the state folder writable", path=where)


def _refuse(path: Path) -> None:
    """Judge a file before SQLite opens it, which could change it: by its header, and by its log as one who may only read."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER.size)
    except FileNotFoundError:
        return
    if len(head) < _HEADER.size:
        return  # new, or cut off: SQLite says what is wrong
    magic, version, application = _HEADER.unpack(head)
    if magic != b"SQLite format 3\0":
        return
    log = path.with_name(f"{path.name}-wal")
    if log.exists() and log.stat().st_size:  # what was written last stands there alone, its header too
        with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30.0)) as db:
            (version,) = db.execute("PRAGMA user_version").fetchone()
            (application,) = db.execute("PRAGMA application_id").fetchone()
    _judge(path, version, application, is_used=False)


def _judge(path: Path, version: int, application: int, is_used: bool) -> None:
    """Raises VaultError for what is not ours, or newer than us. `is_used`: whether it has tables."""
    if application != APPLICATION_ID and (version or application or is_used):
        raise VaultError("this SQLite file is not a ledger of vaultllm; choose another --state", path=str(path))
    if version > len(MIGRATIONS):
        back = "; or put an older ledger back, as docs/on-disk-format.md says" if backups(path) else ""
        raise VaultError(
            f"the ledger has schema {version}, this vaultllm knows {len(MIGRATIONS)}; nothing was changed; update vaultllm{back}",
            path=str(path),
        )


def backups(path: Path) -> list[Path]:
    """The copies that were made of a ledger before it was brought up to date, the oldest schema first."""
    found = (file for file in path.parent.glob("ledger-schema-*.db") if _BACKUP.fullmatch(file.name))
    return sorted(found, key=lambda file: (len(file.name), file.name))


def remove_backups(path: Path) -> int:
    """Remove them all, and what a kill has left of one; how many there were. Raises OSError."""
    found = backups(path)
    for file in (*found, path.parent / _ASIDE):
        file.unlink(missing_ok=True)
    return len(found)


_ASIDE = f".{sha('ledger-schema', digits=8)}.tmp"  # a name that `forget` knows as one of ours that a kill left half written


def _back_up(path: Path, version: int) -> None:
    """A whole copy beside the ledger, as it was committed, in place of those that were made before. Raises sqlite3.Error, OSError."""
    aside, there = path.with_name(_ASIDE), path.with_name(f"ledger-schema-{version}.db")
    aside.unlink(missing_ok=True)
    try:
        os.close(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))  # SQLite takes an empty file, and its mode
        with contextlib.closing(sqlite3.connect(path, timeout=30.0)) as other:  # ours is in a transaction, which it does not see
            other.execute("VACUUM INTO ?", (str(aside),))
        with aside.open("rb") as copy:
            os.fsync(copy.fileno())
        aside.replace(there)
    except (sqlite3.Error, OSError) as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL:
            full = OSError(errno.ENOSPC, "No room for a copy of the ledger before it is brought up to date")
            raise with_room(full, there, path.stat().st_size) from error
        raise
    for file in backups(path):
        if file != there:
            file.unlink(missing_ok=True)


def _statements(script: str) -> list[str]:
    """The statements of a migration (none of ours holds a `;` within)."""
    return [statement for statement in script.split(";") if statement.strip()]
