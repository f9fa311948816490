"""One question -> ranked, explained hits; and the memory brought up to date with the ledger.

Two halves, fused by normalised scores (rank fusion with a weak half wrecks the result): words (BM25 over stems and
over 4-grams) and vectors; then one step of resonance, in which a hit lends some of its score to the scenes next to
it and to those it is linked with (spreading activation; PageRank over the same graph was not better). Works with
whatever is there: without vectors by words alone. Knows nothing about prompts or models that speak.
"""

from __future__ import annotations

import functools
import json
import shutil
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from filelock import FileLock, Timeout

from vaultllm.config import MemorySettings
from vaultllm.errors import LockedError, VaultError
from vaultllm.ledger import Ledger, StoredPassage
from vaultllm.memory import chroma, embed
from vaultllm.schema import Hit, Progress, Report, Scene, silent

Dense = Literal["auto", "chroma", "exact"]

EXACT_BELOW = 2_000  # passages: up to here a scan of all vectors is done before chromadb is imported
CANDIDATES = 200  # passages that each half may name
SEEDS = 50  # scenes that lend to others
_BATCH = 500
_SCAN = 20_000  # vectors of a scan that are in memory at once
_GRAVES = "chroma_deleted"  # in the ledger's meta table: how many deleted slots still lie in the live generation
_META = "embedder"  # in the ledger's meta table: fingerprint, version, dims asked for, passages it was fitted on


# -- keeping up to date


def refresh(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report = silent) -> dict[str, Any]:
    """Give every passage a vector and Chroma every vector. Killed anywhere, the next call ends in the same state.

    Fits the embedder first if there is none, or if the passages have doubled since. Touches nothing when nothing
    has changed. Returns embedded, upserted, deleted (passages), refitted, generation (0: no Chroma yet).
    """
    counts = ledger.counts()
    about = _about(ledger)
    refitted = _must_fit(about, folder, settings, counts["passages"])
    if refitted:
        about = _fit(ledger, folder, settings, progress)
    if about is None:  # no passage has ever been seen
        if counts["outbox"]:
            ledger.outbox_done(ledger.outbox(counts["outbox"]))
        return {"embedded": 0, "upserted": 0, "deleted": 0, "refitted": False, "generation": 0}
    fingerprint = about["fingerprint"]
    embedded = _embed(ledger, folder, fingerprint, progress)
    upserted = deleted = 0
    live = chroma.current(folder)
    if refitted or embedded or counts["outbox"] or not chroma.whole(folder):
        with _only(folder):
            try:
                with chroma.ChromaMemory(folder, fingerprint) as memory:
                    upserted, deleted = _drain(ledger, memory, fingerprint)
                    wrong = _probe(ledger, memory, fingerprint)
                    live = memory.generation
                if wrong:
                    raise chroma.MemoryBroken(wrong)
                graves = int(ledger.get(_GRAVES) or 0) + deleted
                if graves > counts["passages"] + 1000:
                    raise chroma.MemoryBroken("more has been deleted than is alive, and Chroma keeps all of it")
                if deleted:
                    ledger.set(_GRAVES, str(graves))
                chroma.sweep(folder)
            except chroma.MemoryBroken:
                live, upserted = _rebuild(ledger, folder, fingerprint, progress)
        for path in folder.glob("embedder-*"):
            if path != _embedder_folder(folder, fingerprint):
                shutil.rmtree(path, ignore_errors=True)
    return {"embedded": embedded, "upserted": upserted, "deleted": deleted, "refitted": refitted, "generation": live}


def rebuild(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report = silent) -> None:
    """A new Chroma generation from the ledger's vectors, in place of the old one, whose files are removed; a new words index.

    What was forgotten leaves the disk with it. Raises VaultError when it cannot be written.
    """
    refresh(ledger, folder, settings, progress)  # an embedder and all vectors first
    about = _about(ledger)
    if about is not None:
        with _only(folder):
            _rebuild(ledger, folder, about["fingerprint"], progress)
    with ledger.transaction():
        ledger.index.purge()
    ledger.db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()


def check(ledger: Ledger, folder: Path) -> str:
    """ "" when Chroma and the ledger agree (embedder, count, a sample of vectors); else what is wrong, in a sentence."""
    try:
        counts = ledger.counts()
        about = _about(ledger)
        if about is None:
            return "no passage has a vector yet" if counts["passages"] else ""
        fingerprint = about["fingerprint"]
        try:
            _embedder(_embedder_folder(folder, fingerprint))
        except ValueError as error:
            return f"the embedder is damaged: {error}"
        missing = counts["passages"] - len(_slots(ledger, fingerprint))
        if missing or counts["outbox"]:
            return f"{missing} passages have no vector, {counts['outbox']} changes wait for Chroma"
        with _only(folder), chroma.ChromaMemory(folder, fingerprint) as memory:
            return _probe(ledger, memory, fingerprint)
    except Exception as error:  # a check reports whatever it meets
        return f"the memory cannot be checked: {error}"


def _about(ledger: Ledger) -> dict[str, Any] | None:
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
    where = _embedder_folder(folder, about["fingerprint"])
    try:
        return not (where.is_dir() and _embedder(where))
    except ValueError:
        return True


def _embedder_folder(folder: Path, fingerprint: str) -> Path:
    return folder / f"embedder-{fingerprint.rsplit('-', 1)[-1]}"


@functools.lru_cache(maxsize=2)
def _embedder(folder: Path) -> embed.Embedder:
    """The embedder of a folder, whose name holds its fingerprint: one name never means two of them. Raises ValueError."""
    return embed.VaultEmbedder.load(folder)


def _fit(ledger: Ledger, folder: Path, settings: MemorySettings, progress: Report) -> dict[str, Any]:
    """Fit on all passages, write the folder, then say so in the ledger: vectors of the old one then count as missing."""
    progress(Progress("learning the vault's words", 0.0))
    slots = ledger.without_vector("")  # of no embedder: all passages
    sample = ledger.texts(slots[:: -(-len(slots) // embed.FIT_TEXTS)])  # no more texts in memory than are fitted on
    fitted = embed.VaultEmbedder.fit([_said(text, context) for _, text, context in sample], settings.dims)
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    fitted.save(_embedder_folder(folder, fitted.fingerprint))
    about = {"fingerprint": fitted.fingerprint, "version": embed.VERSION, "dims": settings.dims, "passages": len(slots)}
    ledger.set(_META, json.dumps(about))
    return about


def _said(text: str, context: str) -> str:
    return f"{context}\n{text}"


def _embed(ledger: Ledger, folder: Path, fingerprint: str, progress: Report) -> int:
    """Vectors for the passages that have none, a batch a transaction."""
    slots = ledger.without_vector(fingerprint)
    if not slots:
        return 0
    embedder = _embedder(_embedder_folder(folder, fingerprint))
    for start in range(0, len(slots), _BATCH):
        part = ledger.texts(slots[start : start + _BATCH])
        vectors = embedder.embed([_said(text, context) for _, text, context in part])
        ledger.put_vectors(fingerprint, [slot for slot, _, _ in part], vectors)
        progress(Progress("remembering", min(1.0, (start + _BATCH) / len(slots))))
    return len(slots)


@contextmanager
def _only(folder: Path, wait: float = 60.0) -> Iterator[None]:
    """Be the only one that has Chroma open. Raises LockedError."""
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


def _drain(ledger: Ledger, memory: chroma.ChromaMemory, fingerprint: str) -> tuple[int, int]:
    """Tell Chroma what waits in the outbox. A kill between the two stores repeats a batch, which changes nothing."""
    upserted = deleted = 0
    while slots := ledger.outbox(_BATCH):
        known, vectors, labels = _records(ledger, fingerprint, slots)
        memory.upsert(known, vectors, labels)
        gone = sorted(set(slots) - set(known))
        memory.delete(gone)
        ledger.outbox_done(slots)
        upserted += len(known)
        deleted += len(gone)
    return upserted, deleted


def _records(ledger: Ledger, fingerprint: str, slots: Sequence[int]) -> tuple[list[int], np.ndarray, list[dict[str, str]]]:
    """What Chroma holds of these slots; zero vectors, which have no direction, are left out."""
    known, vectors = ledger.vectors(fingerprint, slots)
    labels = ledger.labels(known)
    keep = [row for row, slot in enumerate(known) if slot in labels and vectors[row].any()]
    return [known[row] for row in keep], vectors[keep], [labels[known[row]] for row in keep]


def _slots(ledger: Ledger, fingerprint: str) -> list[int]:
    """Slots that have a vector of this embedder, in order."""
    return [slot for (slot,) in ledger.db.execute("SELECT passage FROM vectors WHERE embedder = ? ORDER BY passage", (fingerprint,))]


def _probe(ledger: Ledger, memory: chroma.ChromaMemory, fingerprint: str) -> str:
    slots = _slots(ledger, fingerprint)
    known, vectors, _ = _records(ledger, fingerprint, slots[:: max(1, len(slots) // 16)])
    return memory.probe(ledger.nonzero_vectors(fingerprint), known, vectors)


def _rebuild(ledger: Ledger, folder: Path, fingerprint: str, progress: Report) -> tuple[int, int]:
    """A new generation from the ledger; returns its number and how many vectors went in. The caller holds the lock."""
    waiting = ledger.outbox(ledger.counts()["outbox"])
    slots = _slots(ledger, fingerprint)
    written = 0

    def batches() -> Iterator[chroma.Records]:
        nonlocal written
        for start in range(0, len(slots), _BATCH):
            records = _records(ledger, fingerprint, slots[start : start + _BATCH])
            written += len(records[0])
            yield records
            progress(Progress("rebuilding the memory", min(1.0, (start + _BATCH) / len(slots))))

    try:
        number = chroma.rebuild(folder, fingerprint, batches())
    except (chroma.MemoryBroken, OSError) as error:
        raise VaultError(f"the memory cannot be written ({error}); make room or mend the folder's rights", path=str(folder)) from error
    with ledger.transaction():
        ledger.outbox_done(waiting)
        ledger.set(_GRAVES, "0")
    return number, written


# -- recall


def recall(
    ledger: Ledger,
    folder: Path,
    settings: MemorySettings,
    query: str,
    k: int,
    *,
    allow: Callable[[Scene], bool] | None = None,
    dense: Dense = "auto",
) -> list[Hit]:
    """The best k scenes for a question, best first; [] when the memory is empty or holds nothing of it.

    `allow` leaves scenes out. `dense` says where near vectors are looked for: `exact` scans the ledger's, `chroma`
    asks Chroma (and scans if it is broken or another process has it open), `auto` chooses by size.
    """
    reach = max(CANDIDATES, 10 * k)
    legs: dict[str, tuple[float, dict[int, float]]] = {}
    if settings.words:
        legs["words"] = (settings.words, _relative(dict(ledger.index.stems(query).best(reach))))
    if settings.grams:
        legs["grams"] = (settings.grams, _relative(dict(ledger.index.grams(query).best(reach))))
    seen = {slot for _, found in legs.values() for slot in found}
    cosines = _cosines(ledger, folder, query, reach, seen, dense) if settings.dense else None
    if cosines is not None:
        legs["dense"] = (settings.dense, _relative(cosines))
    whole = sum(weight for weight, _ in legs.values())
    if not whole:
        return []
    parts: dict[int, dict[str, float]] = defaultdict(dict)  # passage -> leg -> its share of the score before resonance
    for name, (weight, found) in legs.items():
        for slot, score in found.items():
            if score > 0:
                parts[slot][name] = weight / whole * score
    found_passages = ledger.passages(list(parts))
    best: dict[int, StoredPassage] = {}  # scene -> its best passage
    base: dict[int, float] = {}
    for slot, passage in sorted(found_passages.items()):
        score = sum(parts[slot].values())
        if score > base.get(passage.scene_slot, 0.0):
            best[passage.scene_slot], base[passage.scene_slot] = passage, score
    scale = 1.0 / (1.0 + settings.near + settings.links)
    why = {scene: {name: part * scale for name, part in parts[passage.slot].items()} for scene, passage in best.items()}
    lent = _resonance(ledger, base)
    for name, weight in (("near", settings.near), ("links", settings.links)):
        for scene, amount in lent[name].items():
            if weight:
                why.setdefault(scene, {})[name] = weight * amount * scale
    for passage in ledger.passages(ledger.first_passages([scene for scene in why if scene not in best])).values():
        best[passage.scene_slot] = passage
    order = {slot: sum(shares.values()) for slot, shares in parts.items()}
    return _hits(ledger, best, why, order, k, allow)


def _relative(scores: dict[int, float]) -> dict[int, float]:
    """Min-max over the vault: what does not match at all is 0, the best is 1."""
    most = max(scores.values(), default=0.0)
    return {slot: max(0.0, score) / most for slot, score in scores.items()} if most > 0 else {}


def _cosines(ledger: Ledger, folder: Path, query: str, k: int, also: set[int], dense: Dense) -> dict[int, float] | None:
    """Cosines of the nearest k passages and of `also`; None when the vectors cannot say anything of this question."""
    about = _about(ledger)
    if about is None:
        return None
    fingerprint = about["fingerprint"]
    try:
        (vector,) = _embedder(_embedder_folder(folder, fingerprint)).embed([query], query=True)
    except ValueError:  # missing or damaged: by words alone, until the next refresh fits it again
        return None
    if not vector.any():
        return None
    size = ledger.counts()["vectors"]
    near = None
    if dense == "chroma" or (dense == "auto" and size >= EXACT_BELOW):
        near = _ask_chroma(folder, fingerprint, vector, k)
    if near is None:
        near = _scan(ledger, fingerprint, vector, k)
    # Once more from the ledger, exactly, for what the words found too; and Chroma may be a step behind the ledger.
    slots, vectors = ledger.vectors(fingerprint, sorted({*near, *also}))
    return dict(zip(slots, (vectors @ vector).tolist(), strict=True)) if slots else None


def _scan(ledger: Ledger, fingerprint: str, vector: np.ndarray, k: int) -> list[int]:
    """Slots of the nearest k vectors, exactly, the smaller slot first of equals; a part of the vectors in memory at a time."""
    slots = _slots(ledger, fingerprint)
    best: list[tuple[float, int]] = []
    for start in range(0, len(slots), _SCAN):
        found, vectors = ledger.vectors(fingerprint, slots[start : start + _SCAN])
        best = sorted([*best, *zip((-(vectors @ vector)).tolist(), found, strict=True)])[:k]
    return [slot for _, slot in best]


def _ask_chroma(folder: Path, fingerprint: str, vector: np.ndarray, k: int) -> list[int] | None:
    """Slots near a vector; None when Chroma is absent, broken, or open in another process."""
    if not chroma.whole(folder):
        return None
    try:
        with _only(folder, wait=0.0), chroma.ChromaMemory(folder, fingerprint) as memory:
            return [slot for slot, _ in memory.query(vector, k)]
    except (LockedError, chroma.MemoryBroken, OSError):
        return None


def _resonance(ledger: Ledger, base: dict[int, float]) -> dict[str, dict[int, float]]:
    """One step of spreading activation: what the best scenes lend to those beside them and linked with them, at most 1 each.

    What a scene lends over links is shared among them, so that a note that links to everything says nothing.
    """
    seeds = sorted(base, key=lambda scene: (-base[scene], scene))[:SEEDS]
    lent: dict[str, dict[int, float]] = {"near": defaultdict(float), "links": defaultdict(float)}
    for scene, beside in ledger.neighbours(seeds):
        lent["near"][beside] = min(1.0, lent["near"][beside] + base[scene])
    linked = ledger.linked(seeds)
    degree = Counter(scene for scene, _ in linked)
    for scene, other in linked:
        lent["links"][other] = min(1.0, lent["links"][other] + base[scene] / degree[scene])
    return lent


def _hits(
    ledger: Ledger,
    best: dict[int, StoredPassage],
    why: dict[int, dict[str, float]],
    order: dict[int, float],
    k: int,
    allow: Callable[[Scene], bool] | None,
) -> list[Hit]:
    """The best k scenes as hits; a scene that stands in two notes once, in the note with the smallest path.

    Of two notes with one UID that say different things (a copy that went on, a UID that is none) both are hits.
    """
    score = {scene: sum(why[scene].values()) for scene in best if scene in why}
    same: dict[tuple[str, str], list[int]] = defaultdict(list)
    for scene in score:
        same[best[scene].passage.scene, best[scene].scene_sha].append(scene)
    ranked = sorted(same.values(), key=lambda twins: (-max(score[scene] for scene in twins), min(best[scene].path for scene in twins)))
    hits: list[Hit] = []
    for twins in ranked:
        if len(hits) >= k:
            break
        records = ledger.scenes_at(twins)
        allowed = [scene for scene in twins if scene in records and (allow is None or allow(records[scene]))]
        if allowed:
            chosen = min(allowed, key=lambda scene: best[scene].path)
            hits.append(_hit(ledger, chosen, records[chosen], best[chosen], why[chosen], order))
    return hits


def _hit(ledger: Ledger, slot: int, scene: Scene, stored: StoredPassage, why: dict[str, float], order: dict[int, float]) -> Hit:
    """One hit, the turns of its scene by the score of their best passage, those without one after them in their own order."""
    passage = stored.passage
    rows = ledger.db.execute("SELECT slot, uid FROM passages WHERE scene = ? ORDER BY ordinal", (slot,)).fetchall()
    ranked = sorted(rows, key=lambda row: -order.get(row[0], 0.0))
    uids = dict.fromkeys([passage.uid, *(uid for _, uid in ranked), *(turn.uid for turn in scene.turns)])
    return Hit(scene, stored.path, passage.lines, passage.text, tuple(filter(None, uids)), sum(why.values()), dict(why))
