"""The memory brought up to date with the ledger: an embedder fitted on the vault, a vector for every passage, Chroma told of each.

Killed anywhere, the next call ends in the same state. Knows nothing about questions (`recall.py`).
"""

from __future__ import annotations

import functools
import json
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from vaultllm.config import MemorySettings
from vaultllm.errors import DataError, LockedError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.memory import embed, server
from vaultllm.memory.vectors import Memory, MemoryBroken, Records, Store
from vaultllm.schema import Progress, Report, silent

_BATCH = 500
_GRAVES = "chroma_deleted"  # in the ledger's meta table: how many deleted slots still lie in the live generation
_STORE = "store"  # in the ledger's meta table: its name on a Chroma server
_META = "embedder"  # in the ledger's meta table: fingerprint, version, dims asked for, passages it was fitted on


def refresh(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report = silent) -> dict[str, Any]:
    """Give every passage a vector and Chroma every vector. Killed anywhere, the next call ends in the same state.

    Fits the embedder first if there is none, or if the passages have doubled since. Touches nothing when nothing
    has changed. Returns embedded, upserted, deleted (passages), refitted, generation (0: no Chroma yet), and away: why a
    Chroma server could not be told ("" when it was), which is no error: the outbox waits, and recall scans the ledger.
    """
    counts = ledger.counts()
    if counts["outbox"]:
        with ledger.transaction():
            ledger.index.tidy()
    about = fitted(ledger)
    refitted = _must_fit(about, folder, settings, counts["passages"])
    if refitted:
        about = _fit(ledger, folder, settings, progress)
    if about is None:  # no passage has ever been seen
        if counts["outbox"]:
            ledger.outbox_done(ledger.outbox(counts["outbox"]))
        return {"embedded": 0, "upserted": 0, "deleted": 0, "refitted": False, "generation": 0, "away": ""}
    fingerprint = about["fingerprint"]
    embedded = _embed(ledger, folder, fingerprint, progress)
    upserted = deleted = 0
    away = ""
    where = _place(ledger, folder, settings)
    live = where.live()
    if refitted or embedded or counts["outbox"] or not where.whole():
        with only(folder):
            try:
                live, upserted, deleted = _tell(ledger, where, fingerprint)
            except server.MemoryAway as error:
                away = str(error)
            except MemoryBroken:
                try:
                    live, upserted = _rebuild(ledger, where, fingerprint, progress)
                except server.MemoryAway as error:
                    away = str(error)
        for path in folder.glob("embedder-*"):
            if path != embedder_folder(folder, fingerprint):
                shutil.rmtree(path, ignore_errors=True)
    return {"embedded": embedded, "upserted": upserted, "deleted": deleted, "refitted": refitted, "generation": live, "away": away}


def rebuild(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report = silent) -> None:
    """A new Chroma generation from the ledger's vectors, in place of the old one, whose files are removed; a new words index.

    What was forgotten leaves the disk with it. Raises VaultError when it cannot be written.
    """
    refresh(ledger, folder, settings, progress)  # an embedder and all vectors first
    about = fitted(ledger)
    if about is not None:
        with only(folder):
            try:
                _rebuild(ledger, _place(ledger, folder, settings), about["fingerprint"], progress)
            except server.MemoryAway as error:
                raise VaultError(str(error)) from error
    with ledger.transaction():
        ledger.index.purge()
    ledger.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def check(ledger: Ledger, folder: Path, settings: MemorySettings) -> str:
    """ "" when Chroma and the ledger agree (embedder, count, a sample of vectors); else what is wrong, in a sentence."""
    try:
        counts = ledger.counts()
        about = fitted(ledger)
        if about is None:
            return "no passage has a vector yet" if counts["passages"] else ""
        fingerprint = about["fingerprint"]
        try:
            embedder(embedder_folder(folder, fingerprint))
        except ValueError as error:
            return f"the embedder is damaged: {error}"
        missing = counts["passages"] - len(slots_of(ledger, fingerprint))
        if missing or counts["outbox"]:
            return f"{missing} passages have no vector, {counts['outbox']} changes wait for Chroma"
        with only(folder), _place(ledger, folder, settings).open(fingerprint) as memory:
            return _probe(ledger, memory, fingerprint, thorough=True)
    except Exception as error:  # a check reports whatever it meets
        return f"the memory cannot be checked: {error}"


def fitted(ledger: Ledger) -> dict[str, Any] | None:
    """What the ledger knows of the embedder; None when nothing was fitted yet (or the entry makes no sense)."""
    try:
        about = json.loads(ledger.get(_META) or "null")
        return about if isinstance(about, dict) and {"fingerprint", "version", "dims", "passages"} <= set(about) else None
    except ValueError:
        return None


def _must_fit(about: dict[str, Any] | None, folder: Path, settings: MemorySettings, passages: int) -> bool:
    if passages == 0:
        return False
    if about is None or about["version"] != embed.VERSION or about["dims"] != settings.dims or passages >= 2 * about["passages"]:
        return True
    where = embedder_folder(folder, about["fingerprint"])
    try:
        return not (where.is_dir() and embedder(where))
    except ValueError:
        return True


def opened(ledger: Ledger, folder: Path) -> embed.Embedder:
    """The embedder whose vectors the memory holds. Raises DataError when there is none yet."""
    about = fitted(ledger)
    try:
        if about is not None:
            return embedder(embedder_folder(folder, about["fingerprint"]))
    except ValueError:
        pass
    raise DataError("the memory has no vectors yet; run: vaultllm ingest")


def embedder_folder(folder: Path, fingerprint: str) -> Path:
    """Where the embedder of this fingerprint is kept."""
    return folder / f"embedder-{fingerprint.rsplit('-', 1)[-1]}"


@functools.lru_cache(maxsize=2)
def embedder(folder: Path) -> embed.Embedder:
    """The embedder of a folder, whose name holds its fingerprint: one name never means two of them. Raises ValueError."""
    return embed.VaultEmbedder.load(folder)


def _fit(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report) -> dict[str, Any]:
    """Fit on all passages, write the folder, then say so in the ledger: vectors of the old one then count as missing."""
    progress(Progress("learning the vault's words", 0.0))
    slots = ledger.without_vector("")  # of no embedder: all passages
    sample = ledger.texts(slots[:: -(-len(slots) // embed.FIT_TEXTS)])  # no more texts in memory than are fitted on
    learnt = embed.VaultEmbedder.fit([_said(text, context) for _, text, context in sample], settings.dims)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    learnt.save(embedder_folder(folder, learnt.fingerprint))
    about = {"fingerprint": learnt.fingerprint, "version": embed.VERSION, "dims": settings.dims, "passages": len(slots)}
    ledger.set(_META, json.dumps(about))
    return about


def _said(text: str, context: str) -> str:
    return f"{context}\n{text}"


def _embed(ledger: Ledger, folder: Path, fingerprint: str, progress: Report) -> int:
    """Vectors for the passages that have none, a batch a transaction."""
    slots = ledger.without_vector(fingerprint)
    if not slots:
        return 0
    chosen = embedder(embedder_folder(folder, fingerprint))
    for start in range(0, len(slots), _BATCH):
        part = ledger.texts(slots[start : start + _BATCH])
        vectors = chosen.embed([_said(text, context) for _, text, context in part])
        ledger.put_vectors(fingerprint, [slot for slot, _, _ in part], vectors)
        progress(Progress("remembering", min(1.0, (start + _BATCH) / len(slots))))
    return len(slots)


@contextmanager
def only(folder: Path, wait: float = 60.0) -> Iterator[None]:
    """Be the only one that has Chroma open, within `wait` seconds. Raises LockedError."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    lock = FileLock(folder / "lock", mode=0o600)
    try:
        lock.acquire(timeout=wait, poll_interval=0.05)
    except Timeout:
        raise LockedError("another vaultllm has the memory open; try again when it is done", path=str(folder)) from None
    try:
        yield
    finally:
        lock.release()


def store(ledger: Ledger, folder: Path, settings: MemorySettings) -> Store:
    """Where the vectors are asked for: in the folder, or on the server that the settings name. Raises ConfigError."""
    return server.store(folder, settings.chroma, ledger.get(_STORE) or "unnamed")


def _place(ledger: Ledger, folder: Path, settings: MemorySettings) -> Store:
    """`store`, the ledger named first: two ledgers on one server must not share a name."""
    if settings.chroma and not ledger.get(_STORE):
        ledger.set(_STORE, secrets.token_hex(8))
    return store(ledger, folder, settings)


def _tell(ledger: Ledger, where: Store, fingerprint: str) -> tuple[int, int, int]:
    """Tell Chroma what has changed; which generation, how many were upserted and deleted. Raises MemoryBroken, MemoryAway."""
    with where.open(fingerprint) as memory:
        upserted, deleted = _drain(ledger, memory, fingerprint)
        wrong = _probe(ledger, memory, fingerprint)
    if wrong:
        raise MemoryBroken(wrong)
    graves = int(ledger.get(_GRAVES) or 0) + deleted
    if graves > ledger.counts()["passages"] + 1000:
        raise MemoryBroken("more has been deleted than is alive, and Chroma keeps all of it")
    if deleted:
        ledger.set(_GRAVES, str(graves))
    where.sweep()
    return memory.generation, upserted, deleted


def _drain(ledger: Ledger, memory: Memory, fingerprint: str) -> tuple[int, int]:
    """Tell Chroma what waits in the outbox. A kill between the two stores repeats a batch, which changes nothing."""
    upserted = deleted = 0
    while waiting := ledger.outbox(_BATCH):
        known, vectors, _ = _records(ledger, fingerprint, list(waiting))
        memory.upsert(known, vectors)
        gone = sorted(set(waiting) - set(known))
        memory.delete(gone)
        ledger.outbox_done(waiting)
        upserted += len(known)
        deleted += len(gone)
    return upserted, deleted


def _records(ledger: Ledger, fingerprint: str, slots: Sequence[int]) -> Records:
    """What Chroma holds of these slots; zero vectors, which have no direction, are left out. No labels: filters ask the ledger."""
    known, vectors = ledger.vectors(fingerprint, slots)
    keep = [row for row in range(len(known)) if vectors[row].any()]
    return [known[row] for row in keep], vectors[keep], ()


def slots_of(ledger: Ledger, fingerprint: str) -> list[int]:
    """Slots that have a vector of this embedder, in order."""
    return [slot for (slot,) in ledger.db.execute("SELECT passage FROM vectors WHERE embedder = ? ORDER BY passage", (fingerprint,))]


def _probe(ledger: Ledger, memory: Memory, fingerprint: str, *, thorough: bool = False) -> str:
    slots = slots_of(ledger, fingerprint)
    known, vectors, _ = _records(ledger, fingerprint, slots[:: max(1, len(slots) // 16)])
    return memory.probe(ledger.nonzero_vectors(fingerprint), known, vectors, thorough=thorough)


def _rebuild(ledger: Ledger, where: Store, fingerprint: str, progress: Report) -> tuple[int, int]:
    """A new generation from the ledger; returns its number and how many vectors went in. The caller holds the lock.

    Raises MemoryAway, and VaultError when it cannot be written.
    """
    waiting = ledger.outbox(ledger.counts()["outbox"])
    slots = slots_of(ledger, fingerprint)
    written = 0

    def batches() -> Iterator[Records]:
        nonlocal written
        for start in range(0, len(slots), _BATCH):
            records = _records(ledger, fingerprint, slots[start : start + _BATCH])
            written += len(records[0])
            yield records
            progress(Progress("rebuilding the memory", min(1.0, (start + _BATCH) / len(slots))))

    try:
        number = where.rebuild(fingerprint, batches())
    except server.MemoryAway:
        raise
    except (MemoryBroken, OSError) as error:
        said = f"the memory cannot be written ({error}); make room or mend the folder's rights"
        raise VaultError(said, path=str(where.folder)) from error
    with ledger.transaction():
        ledger.outbox_done(waiting)
        ledger.set(_GRAVES, "0")
    return number, written
