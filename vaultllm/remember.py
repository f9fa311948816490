"""The memory brought up to date with the ledger: a vector for every passage, Chroma told of each, another embedder when it is due.

While one embedder follows another the old one's vectors and its Chroma generation answer, and new notes get vectors of it; when
every passage has a vector of the new one, one transaction makes it the live one, and the old vectors go. Killed anywhere, the next
call ends in the same state. Knows nothing about questions (`recall.py`), nor how an embedder is chosen (`memory/live.py`).
"""

from __future__ import annotations

import json
import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaultllm import locks
from vaultllm.config import MemorySettings
from vaultllm.errors import LockedError, VaultError, VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.memory import answerable, fusion, live, server
from vaultllm.memory.live import LIVE, NEXT, embedder_folder, fitted, opened
from vaultllm.memory.scan import INT8
from vaultllm.memory.vectors import Memory, MemoryBroken, Records, Store
from vaultllm.schema import Progress, Report, silent

if TYPE_CHECKING:
    import numpy as np

    from vaultllm.memory.embed import Embedder

__all__ = ["check", "described", "embedder_folder", "fitted", "follow", "only", "opened", "owed", "rebuild", "refresh", "store"]

_BATCH = 500
_SLOW_BATCH = 32  # passages that another's embedder is given at once
_LATE = 1_000  # one of so many passages may wait for Chroma, in the background: to open its index takes as long as the vault is large
_GRAVES = "chroma_deleted"  # in the ledger's meta table: how many deleted slots still lie in the live generation
_PROBED = 16  # vectors that Chroma is asked for
_STORE = "store"  # in the ledger's meta table: its name on a Chroma server


def refresh(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    progress: Report = silent,
    *,
    base: str = "",
    learn: bool = False,
    background: bool = False,
) -> dict[str, Any]:
    """Give every passage a vector and Chroma every vector. Killed anywhere, the next call ends in the same state.

    Makes the embedder first if there is none, and the one that follows it if the settings want another or the passages have
    doubled since. Touches nothing when nothing has changed. `base`: the model that answers, for the embedder `model`. `learn`: a
    large vault's own embedder learns from pairs too, which takes a minute. `background`: what takes long is left to `follow`, who
    has Chroma open is not waited for, and of a large vault a few changes wait until it is worth opening it. Returns embedded,
    upserted, deleted (passages), refitted, generation (0: no Chroma yet), embedder (`described`), and away: why an embedder or a
    Chroma server could not be asked ("" when they were), which is no error: words answer, the outbox waits, and recall scans the
    ledger.
    """
    passages, waiting = ledger.count("passages"), ledger.count("outbox")
    if waiting:
        with ledger.transaction():
            ledger.index.tidy()
    done: dict[str, Any] = {"embedded": 0, "upserted": 0, "deleted": 0, "refitted": False, "generation": 0, "embedder": None, "away": ""}
    about = fitted(ledger)
    if passages and not (about and live.usable(about, folder)):
        first = settings.model_copy(update={"embedder": "vault"}) if background else settings  # soon there, whatever is to follow
        try:
            about = live.make(ledger, folder, first, base, learn and not background, progress)
            ledger.set(LIVE, json.dumps(about))
            done["refitted"] = True
        except VaultllmError as error:
            done["away"] = live.excuse(error)
    if about is None:
        if waiting and not passages:
            ledger.outbox_done(ledger.outbox(waiting))
        return done
    before = ledger.embedded(about["fingerprint"])
    if not done["away"]:
        try:
            _embed(ledger, folder, about, progress)
        except VaultllmError as error:
            done["away"] = live.excuse(error)
        except ValueError as error:
            done["away"] = str(error)
    done["embedded"] = max(0, ledger.embedded(about["fingerprint"]) - before)
    where = _place(ledger, folder, settings)
    done["generation"] = where.live()
    waiting = ledger.count("outbox")
    can_wait = background and not settings.chroma and not done["refitted"] and waiting < passages // _LATE
    if not where.whole() or (not can_wait and (done["refitted"] or done["embedded"] or waiting)):
        try:
            with only(folder, 0.0 if background else 60.0, waiting=progress):
                done |= _told(ledger, where, about["fingerprint"], progress)
        except LockedError:
            if not background:
                raise
    if not done["away"] and not background and owed(ledger, settings, base=base, learn=learn):
        done |= follow(ledger, folder, settings, progress, base=base, learn=learn)
    else:
        after = fitted(ledger, NEXT)
        if after is not None and live.wants(after, settings, base, passages):
            ledger.set(NEXT, "null")
        _sweep(ledger, folder)
        if done["refitted"] and not background and (learn or passages <= live.LEARN_AT_ONCE):
            _calibrate(ledger, folder, settings, progress)
    return {**done, "embedder": described(ledger, settings)}


def described(ledger: Ledger, settings: MemorySettings) -> dict[str, Any] | None:
    """`live.described`, and `fusion` (`fusion.described`): what each leg was found to count beside these vectors."""
    about = live.described(ledger)
    return about and {**about, "fusion": fusion.described(ledger, about["fingerprint"], settings, about["name"])}


def owed(ledger: Ledger, settings: MemorySettings, *, base: str = "", learn: bool = False) -> bool:
    """Whether `follow` has something to do: another embedder is wanted, or (`learn`) the live one has not learnt yet."""
    return live.owed(fitted(ledger), settings, base, ledger.count("passages"), learn=learn)


def follow(
    ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report = silent, *, base: str = "", learn: bool = True
) -> dict[str, Any]:
    """Make the embedder that is to follow, give every passage a vector of it and Chroma a generation; then it is the live one.

    The old one answers meanwhile, and others may ingest and ask (with ledgers of their own). A kill anywhere loses no more than
    work: the next call goes on. Returns those of `refresh`'s entries that it has to do with; none when somebody else is at it.
    """
    try:
        with only(folder, 0.0, "following"):
            try:
                return _follow(ledger, folder, settings, progress, base, learn)
            except VaultllmError as error:
                return {"away": live.excuse(error)}
            finally:
                _sweep(ledger, folder, held=True)
    except LockedError as error:
        if error.path is None or Path(error.path).name != "following":
            raise
        return {}


def _follow(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report, base: str, learn: bool) -> dict[str, Any]:
    about, after = fitted(ledger), fitted(ledger, NEXT)
    passages = ledger.count("passages")
    if after is None or live.owed(after, settings, base, passages, learn=learn) or not live.usable(after, folder):
        after = live.make(ledger, folder, settings, base, learn, progress)
        if about is not None and after["fingerprint"] == about["fingerprint"]:  # it has seen more, and is the same
            ledger.set(LIVE, json.dumps(after))
            return {"refitted": True}
        ledger.set(NEXT, json.dumps(after))
    embedded = _embed(ledger, folder, after, progress, tell=False, old=about)

    def switch() -> None:
        nonlocal embedded
        while True:
            with ledger.transaction():
                if not ledger.without_vector(after["fingerprint"]):
                    ledger.set(LIVE, json.dumps(after))
                    ledger.set(NEXT, "null")
                    return
            embedded += _embed(ledger, folder, after, progress)  # what was written in the meantime

    where = _place(ledger, folder, settings)
    done: dict[str, Any] = {}
    with only(folder, waiting=progress):
        ledger.tell_all()  # until Chroma has heard of all, all of it waits
        try:
            number, upserted = _rebuild(ledger, where, after["fingerprint"], progress, switch)
            done = {"generation": number, "upserted": upserted}
        except server.MemoryAway as error:
            switch()
            done["away"] = str(error)
    _calibrate(ledger, folder, settings, progress)
    return {**done, "refitted": True, "embedded": embedded}


def _calibrate(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report) -> None:
    """Learn anew, for the vectors that answer now, what each leg counts and when nothing speaks of a question."""
    about = fitted(ledger)
    with suppress(VaultllmError, ValueError):  # without the embedder the weights that fit any vault serve
        if about is not None:
            chosen, name = opened(ledger, folder), about["fingerprint"]
            answerable.save(ledger, answerable.fit(ledger, chosen, name, progress=progress))
            made = (about["verdict"] or {}).get("kept", "lsa") if about["spec"] == "vault" else ""
            fusion.save(ledger, fusion.fit(ledger, chosen, name, settings, made=made, progress=progress))


def _sweep(ledger: Ledger, folder: Path, *, held: bool = False) -> None:
    """Remove vectors and folders of embedders that are neither live nor to follow, unless one is being made this moment."""

    def kept() -> list[str]:
        return [about["fingerprint"] for about in (fitted(ledger), fitted(ledger, NEXT)) if about]

    def left() -> list[Path]:
        names = {embedder_folder(folder, name).name for name in kept()}
        return [path for path in (*folder.glob("embedder-*"), *folder.glob(".embedder-*.tmp")) if path.name not in names]

    named = folder / "following.pid"  # of one that was killed: whoever takes the lock takes it away
    if not left() and set(ledger.embedders()) <= set(kept()) and (held or not named.exists()):
        return
    if not held:
        with suppress(LockedError), only(folder, 0.0, "following"):
            _sweep(ledger, folder, held=True)
        return
    ledger.drop_vectors(*kept())
    for path in left():
        shutil.rmtree(path, ignore_errors=True)


def rebuild(
    ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report = silent, *, base: str = "", background: bool = False
) -> None:
    """A new Chroma generation from the ledger's vectors, in place of the old one, whose files are removed; a new words index.

    What was forgotten leaves the disk with it. The arguments are those of `refresh`. Raises VaultError when it cannot be written.
    """
    is_damaged = bool(ledger.index.check())
    if is_damaged:
        with ledger.transaction():
            ledger.index.rebuild()
    refresh(ledger, folder, settings, progress, base=base, background=background)  # an embedder and all vectors first
    about = fitted(ledger)
    if about is not None:
        with only(folder, waiting=progress):
            try:
                _rebuild(ledger, _place(ledger, folder, settings), about["fingerprint"], progress)
            except server.MemoryAway as error:
                raise VaultError(str(error)) from error
    if not is_damaged:
        with ledger.transaction():
            ledger.index.purge()
    ledger.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def check(ledger: Ledger, folder: Path, settings: MemorySettings) -> str:
    """ "" when the words index, Chroma and the ledger agree (embedder, count, samples); else what is wrong, in a sentence."""
    try:
        if said := ledger.index.check():
            return said
        counts = ledger.counts()
        about = fitted(ledger)
        if about is None:
            return "no passage has a vector yet" if counts["passages"] else ""
        fingerprint = about["fingerprint"]
        try:
            live.embedder(about, folder)
        except ValueError as error:
            return f"the embedder is damaged: {error}"
        missing = counts["passages"] - ledger.embedded(fingerprint)
        if missing or counts["outbox"] > counts["passages"] // _LATE:
            return f"{missing} passages have no vector, {counts['outbox']} changes wait for Chroma"
        with only(folder), _place(ledger, folder, settings).open(fingerprint) as memory:
            _drain(ledger, memory, fingerprint)
            return _probe(ledger, memory, fingerprint, thorough=True)
    except Exception as error:  # a check reports whatever it meets
        return f"the memory cannot be checked: {error}"


def _embed(
    ledger: Ledger,
    folder: Path,
    about: live.About,
    progress: Report,
    *,
    tell: bool = True,
    old: live.About | None = None,
) -> int:
    """Vectors for the passages that have none, a batch a transaction; how many. `tell`: Chroma is to hear of them.

    Vectors of `old` that were stored whole and are to be stored rounded are taken as they are.
    """
    fingerprint = about["fingerprint"]
    slots = ledger.without_vector(fingerprint)
    if not slots:
        return 0
    chosen = live.embedder(about, folder)
    known = old["fingerprint"] if old and fingerprint == old["fingerprint"] + INT8 else ""
    size = _BATCH if about["spec"] == "vault" or known else _SLOW_BATCH
    count = 0
    for start in range(0, len(slots), size):
        part = ledger.texts(slots[start : start + size])
        vectors = _vectors(ledger, chosen, part, known)
        with ledger.transaction():
            now = set(ledger.texts([slot for slot, _, _ in part]))  # while we thought another may have written
            rows = [row for row, one in enumerate(part) if one in now]
            ledger.put_vectors(fingerprint, [part[row][0] for row in rows], vectors[rows], tell=tell)
        count += len(rows)
        progress(Progress("remembering", min(1.0, (start + size) / len(slots))))
    return count


def _vectors(ledger: Ledger, chosen: Embedder, part: Sequence[tuple[int, str, str]], known: str) -> np.ndarray:
    slots = [slot for slot, _, _ in part]
    if known:
        found, vectors = ledger.vectors(known, slots)
        if set(found) == set(slots):
            return vectors[[found.index(slot) for slot in slots]]
    return chosen.embed([live.said(text, context) for _, text, context in part])


@contextmanager
def only(folder: Path, wait: float = 60.0, name: str = "lock", waiting: Report = silent) -> Iterator[None]:
    """Be the only one that writes to Chroma (or does what another lock is for), within `wait` seconds; see `locks.take`."""
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with locks.held(folder / name, wait, "has the memory open", waiting):
        yield


def store(ledger: Ledger, folder: Path, settings: MemorySettings) -> Store:
    """Where the vectors are asked for: in the folder, or on the server that the settings name. Raises ConfigError."""
    return server.store(folder, settings.chroma, ledger.get(_STORE) or "unnamed")


def _place(ledger: Ledger, folder: Path, settings: MemorySettings) -> Store:
    """`store`, the ledger named first: two ledgers on one server must not share a name."""
    if settings.chroma and not ledger.get(_STORE):
        ledger.set(_STORE, secrets.token_hex(8))
    return store(ledger, folder, settings)


def _told(ledger: Ledger, where: Store, fingerprint: str, progress: Report) -> dict[str, Any]:
    """Tell Chroma, or build a new generation when it is broken; the entries of `refresh` that say what was done."""
    try:
        try:
            number, upserted, deleted = _tell(ledger, where, fingerprint)
        except server.MemoryAway:
            raise
        except MemoryBroken:
            number, upserted = _rebuild(ledger, where, fingerprint, progress)
            deleted = 0
    except server.MemoryAway as error:
        return {"away": str(error)}
    return {"generation": number, "upserted": upserted, "deleted": deleted}


def _tell(ledger: Ledger, where: Store, fingerprint: str) -> tuple[int, int, int]:
    """Tell Chroma what has changed; which generation, how many were upserted and deleted. Raises MemoryBroken, MemoryAway."""
    with where.open(fingerprint) as memory:
        upserted, deleted = _drain(ledger, memory, fingerprint)
        wrong = _probe(ledger, memory, fingerprint)
    if wrong:
        raise MemoryBroken(wrong)
    if int(ledger.get(_GRAVES) or 0) > ledger.count("passages") + 1000:
        raise MemoryBroken("more has been deleted than is alive, and Chroma keeps all of it")
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
        with ledger.transaction():
            ledger.outbox_done(waiting)
            if gone:
                ledger.set(_GRAVES, str(int(ledger.get(_GRAVES) or 0) + len(gone)))
        upserted += len(known)
        deleted += len(gone)
    return upserted, deleted


def _records(ledger: Ledger, fingerprint: str, slots: Sequence[int]) -> Records:
    """What Chroma holds of these slots; zero vectors, which have no direction, are left out. No labels: filters ask the ledger."""
    known, vectors = ledger.vectors(fingerprint, slots)
    keep = [row for row in range(len(known)) if vectors[row].any()]
    return [known[row] for row in keep], vectors[keep], ()


def _probe(ledger: Ledger, memory: Memory, fingerprint: str, *, thorough: bool = False) -> str:
    known, vectors, _ = _records(ledger, fingerprint, ledger.sampled(fingerprint, _PROBED))
    return memory.probe(ledger.nonzero_vectors(fingerprint), known, vectors, thorough=thorough)


def _rebuild(
    ledger: Ledger, where: Store, fingerprint: str, progress: Report, written_all: Callable[[], None] | None = None
) -> tuple[int, int]:
    """A new generation from the ledger; returns its number and how many vectors went in. The caller holds the lock.

    `written_all` is called when all is written and the old generation still answers. Raises MemoryAway, and VaultError when
    it cannot be written.
    """
    waiting = ledger.outbox(ledger.count("outbox"))
    slots = ledger.with_vector(fingerprint)
    written = 0

    def batches() -> Iterator[Records]:
        nonlocal written
        for start in range(0, len(slots), _BATCH):
            records = _records(ledger, fingerprint, slots[start : start + _BATCH])
            written += len(records[0])
            yield records
            progress(Progress("rebuilding the memory", min(1.0, (start + _BATCH) / len(slots))))
        if written_all is not None:
            written_all()

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
