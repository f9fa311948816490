"""`bench recall`: a file of questions with known evidence -> recall@k, nDCG, MRR, AUROC, latency; cross-validated choice of settings.

Knows nothing about the file's shapes (`data.py`) and nothing about terminals.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultllm import answer, config, imports, recall, steps
from vaultllm.bench import asking, data
from vaultllm.bench.asking import Asked, By, Scores
from vaultllm.bench.data import Data, Question
from vaultllm.config import MemorySettings, Workspace
from vaultllm.errors import DataError, UsageError, VaultError
from vaultllm.ledger import Ledger
from vaultllm.links import path_key
from vaultllm.memory import measures
from vaultllm.memory.rephrase import Rephraser
from vaultllm.schema import Progress, Report, silent

KS = (1, 5, 10, 25, 50)
FIRST = 10  # nDCG looks so far down whatever k is


@dataclass(frozen=True, slots=True)
class Posed:
    """A question whose evidence was looked up in the memory."""

    question: Question
    """As the file has it."""
    by: By
    """What its units are."""
    evidence: frozenset[str]
    """Units as the memory names them; those that it does not hold stay as written, and are never found."""
    group: str
    """Its article, else the note of its first evidence."""


def workspace_of(named: str | None, state: str | None) -> Workspace | None:
    """The vault whose notes and settings are measured: the named one, set up or not, or the one around us; None when there is none.

    One that is not set up gets the default settings, and nothing is written into it. Raises VaultError for a wrong name.
    """
    try:
        vault = config.find_vault(named)
    except VaultError:
        if named or os.environ.get("VAULTLLM_VAULT"):
            raise
        return None
    if (vault / config.CONFIG).is_file():
        return config.open_workspace(str(vault), state)
    return Workspace(vault, vault / config.CONFIG.parent / "state", config.Settings(vault_id="bench"))


def recall_bench(
    path: Path,
    ks: Sequence[int] = KS,
    *,
    workspace: Workspace | None = None,
    halves: bool = False,
    folds: int = 0,
    progress: Report = silent,
) -> dict[str, Any]:
    """Ask every question of a file and compare what is found with its evidence.

    `workspace`: its settings count, and its notes where the file brings none; never touched. `halves`: words alone, vectors
    alone, both without resonance too, each with what the whole gains over it (nDCG@10, R@10; paired bootstrap over articles).
    `folds`: the measures of so many parts of the articles too, to see how much they differ.
    Returns `questions` (answerable), `unanswerable`, `units` (that could be found), `missing` (pieces of evidence that the
    memory does not hold: they count as not found), `recall@k`, `hit@k`, `ndcg@10`, `mrr` (to the largest k, at least 10),
    `latency_ms_p50`, `latency_ms_p95` (ten hits with their scenes, warm), `auroc` (None without unanswerable questions),
    `by_category`, `skipped`, `seconds_to_ingest`, and `halves`, `folds` when asked for; with `memory.rewrite` also `rewritten`
    (`questions` for which the model wrote something, `notice` why not; its time is not in the latencies, and `halves` go without it).
    Raises UsageError, DataError, VaultError.
    """
    ks = _checked(ks, folds)
    read = data.read(path)
    with _memory(path, read, workspace, progress) as (job, posed, found):
        memory = job.workspace.settings.memory
        spent = _latencies(job, posed, progress)
        with _rephraser(workspace, job) as writer:
            asked = _ask(job, memory, posed, ks, "asking", progress, writer)
            if writer is not None:
                found["rewritten"] = _written(writer, posed)
        right = [one for one in posed if one.question.answerable]
        rows = _scores(posed, asked, ks)
        found |= asking.means(rows) | asking.latencies(spent)
        found["auroc"] = _auroc(posed, asked)
        found["by_category"] = _by_category(right, rows)
        if halves:
            found["halves"] = {}
            for name, settings in asking.halves(memory).items():
                alone = _ask(job, settings, right, ks, f"asking {name} alone", progress)
                part = _scores(right, alone, ks)
                gained = {one: asking.gain(part, rows, _groups(right, 8), one) for one in ("ndcg@10", f"recall@{FIRST}") if one in rows[0]}
                found["halves"][name] = asking.means(part) | {"by_category": _by_category(right, part), "gain": gained}
        if folds:
            parts = _parts(right, folds)
            found["folds"] = [{"questions": len(part), **asking.means([rows[number] for number in part])} for part in parts]
    return found | {"skipped": read.skipped.shown()}


def tune(
    path: Path,
    candidates: Mapping[str, MemorySettings],
    *,
    workspace: Workspace | None = None,
    folds: int = 5,
    measure: str = "ndcg@10",
    progress: Report = silent,
) -> dict[str, Any]:
    """Choose among settings of recall without fitting them to the file: k-fold over articles.

    For each fold the candidate that is best on all other folds answers it, so `held_out` is what the choice is worth on articles
    that it has not seen. The candidates may differ in weights only (one memory is made, with the workspace's settings).
    Returns `candidates` (name -> measures over all), `folds` ([{chosen, questions, measure}]), `held_out` (measures), `best`.
    Raises as `recall_bench` does.
    """
    ks = _checked(KS, folds)
    known = asking.scores((), ("",), ks)
    if not candidates or folds < 2 or measure not in known:
        raise UsageError(f"choosing needs settings to choose from, 2 folds or more, and one of the measures {', '.join(known)}")
    read = data.read(path)
    with _memory(path, read, workspace, progress) as (job, posed, found):
        right = [one for one in posed if one.question.answerable]
        rows = {name: _scores(right, _ask(job, one, right, ks, f"asking {name}", progress), ks) for name, one in candidates.items()}

    def worth(name: str, numbers: Sequence[int]) -> float:
        return sum(rows[name][number][measure] for number in numbers) / len(numbers)

    parts = _parts(right, folds)
    chosen, unseen = [], []
    for part in parts:
        others = [number for other in parts if other is not part for number in other] or part
        best = max(rows, key=lambda name: worth(name, others))
        chosen.append({"chosen": best, "questions": len(part), measure: round(worth(best, part), 6)})
        unseen += [rows[best][number] for number in part]
    everything = range(len(right))
    return found | {
        "candidates": {name: asking.means(one) for name, one in rows.items()},
        "folds": chosen,
        "held_out": asking.means(unseen),
        "best": max(rows, key=lambda name: worth(name, everything)),
    }


def ks_of(said: str) -> tuple[int, ...]:
    """`1,5,10` as numbers. Raises UsageError."""
    try:
        return _checked([int(part) for part in said.split(",") if part.strip()], 0)
    except ValueError:
        return _checked((), 0)


def _checked(ks: Sequence[int], folds: int) -> tuple[int, ...]:
    if not ks or not all(1 <= k <= 1000 for k in ks):
        raise UsageError("k is a list of numbers from 1 to 1000, for example: --k 1,5,10,25,50")
    if folds < 0 or folds == 1:
        raise UsageError("--folds is 2 or more, for example: --folds 5")
    return tuple(sorted(set(ks)))


# -- the memory that is asked


@contextlib.contextmanager
def temporary(settings: config.Settings, fill: Callable[[Path], Path], progress: Report) -> Iterator[tuple[steps.Job, float]]:
    """A job on an ingested vault, its state in a folder that is gone afterwards; and the seconds that reading it took.

    `fill` gets the folder, puts there what it wants, and returns the vault, which may lie elsewhere and is only read.
    """
    with tempfile.TemporaryDirectory(prefix="vaultllm-bench-", ignore_cleanup_errors=True) as made:
        folder = Path(made).resolve()
        state = folder / "state"
        state.mkdir(mode=0o700)
        vault = fill(folder)
        job = steps.Job(Workspace(vault, state, settings), progress)
        try:
            read = steps.ingest(job, learn=True)
            yield job, float(read["seconds"])
        finally:
            job.close()


@contextlib.contextmanager
def _memory(
    path: Path, read: Data, workspace: Workspace | None, progress: Report
) -> Iterator[tuple[steps.Job, list[Posed], dict[str, Any]]]:
    """The memory of the data's notes or the vault's, the questions with their evidence looked up, and what is known so far."""
    if not read.notes and workspace is None:
        raise DataError(
            "the file brings no notes, and no vault is here that could hold its evidence; name one with --vault", path=str(path)
        )

    def fill(folder: Path) -> Path:
        if workspace is None or read.notes:
            (folder / "vault").mkdir()
            for written in data.write(read.notes, folder / "vault"):
                if written % 1000 == 0:
                    progress(Progress("writing the notes", written / len(read.notes)))
            return config.init_workspace(folder / "vault", str(folder / "state")).vault
        if (talks := imports.root_of(workspace.state)).is_dir():
            shutil.copytree(talks, imports.root_of(folder / "state"))
        return workspace.vault

    settings = config.Settings(vault_id="bench") if workspace is None else workspace.settings
    if read.notes:  # which files of the vault are notes says nothing of these
        settings = settings.model_copy(update={"scan": config.ScanSettings(), "answers": config.AnswerSettings()})
    with temporary(settings, fill, progress) as (job, seconds):
        posed, missing = _posed(path, read, job.ledger)
        by: By = "uid" if any(one.by == "uid" for one in posed) else "path"
        answerable = sum(one.question.answerable for one in posed)
        if not answerable:
            why = read.skipped.sentence() or "all questions are unanswerable"
            raise DataError(f"there is nothing to measure recall on: {why}", path=str(path))
        yield (
            job,
            posed,
            {
                "bench": "recall",
                "data": str(path),
                "questions": answerable,
                "unanswerable": len(posed) - answerable,
                "units": _units(job.ledger, by),
                "unit": "paragraph" if read.squad else "turn" if by == "uid" else "note",
                "missing": missing,
                "seconds_to_ingest": seconds,
            },
        )


def _posed(path: Path, read: Data, ledger: Ledger) -> tuple[list[Posed], int]:
    """The questions, their evidence in the memory's own names, and how many pieces of evidence it does not hold."""
    rows = ledger.db.execute(
        "SELECT p.uid, min(n.path) FROM passages p JOIN scenes s ON s.slot = p.scene JOIN notes n ON n.id = s.note"
        " WHERE p.uid != '' GROUP BY p.uid"
    )
    turns: dict[str, str] = dict(rows.fetchall())
    held = ledger.notes_with_scenes()
    exact, alike = frozenset(held), {path_key(one): one for one in reversed(held)}
    found: list[Posed] = []
    missing = known = 0
    for number, question in enumerate(read.questions, 1):
        names: dict[str, By] = {}
        lacking: list[str] = []
        for name in question.evidence:
            note = name if name in exact else alike.get(path_key(name.removeprefix("./")))
            if name in turns:
                names[name] = "uid"
            elif note is not None:
                names[note] = "path"
            else:
                lacking.append(name)
        if len(set(names.values())) > 1:
            read.skipped.add("its evidence names turns and notes; k counts one of them", f"question {number}")
            continue
        missing, known = missing + len(lacking), known + len(names)
        by: By = next(iter(names.values()), "path")
        group = question.group or next((turns.get(name, name) for name in names), f"question {number}")
        found.append(Posed(question, by, frozenset([*names, *lacking]), group))
    if not known and any(question.answerable for question in read.questions):
        raise DataError(
            f"none of the {missing} pieces of evidence is in the memory (the first: {_first(read)}); is it the right vault, and are its "
            "notes read (vaultllm scenes --explain NOTE says why not)?",
            path=str(path),
        )
    return found, missing


def _first(read: Data) -> str:
    return next(name for question in read.questions for name in question.evidence)


def _units(ledger: Ledger, by: By) -> int:
    """How many units could be found: notes; or turns, and passages of prose, which take a place among them."""
    if by == "path":
        return len(ledger.notes_with_scenes())
    query = "SELECT count(DISTINCT CASE uid WHEN '' THEN '#' || slot ELSE uid END) FROM passages"
    (count,) = ledger.db.execute(query).fetchone()
    return int(count)


# -- asking and counting


@contextlib.contextmanager
def _rephraser(workspace: Workspace | None, job: steps.Job) -> Iterator[Rephraser | None]:
    """Who writes what else to look for, as the settings say: the model that answers in the vault whose settings are measured."""
    if workspace is None or not workspace.settings.memory.rewrite or not workspace.ledger.exists():
        yield job.rephraser
        return
    with contextlib.closing(Ledger(workspace.ledger)) as ledger:
        yield answer.rephraser(workspace, ledger)


def _written(writer: Rephraser, posed: Sequence[Posed]) -> dict[str, Any]:
    """{questions: for how many something was written, notice: why not, of the first where it failed}; nothing is written again."""
    made = [writer.rephrase(one.question.text) for one in posed]
    return {"questions": sum(bool(one.queries) for one in made), "notice": next((one.notice for one in made if one.notice), "")}


def _latencies(job: steps.Job, posed: Sequence[Posed], progress: Report) -> list[float]:
    """Seconds of each question for what `search` and `ask` wait for: ten hits with their scenes; after a few that are not timed."""
    memory = job.workspace.settings.memory
    found: list[float] = []
    for one in (*posed[: asking.WARM_UP], *posed):
        began = time.perf_counter()
        recall.recall(job.ledger, job.workspace.memory, memory, one.question.text, FIRST, plain=True)
        found.append(time.perf_counter() - began)
        progress(Progress("timing", len(found) / (len(posed) + asking.WARM_UP)))
    return found[-len(posed) :]


def _ask(
    job: steps.Job,
    memory: MemorySettings,
    posed: Sequence[Posed],
    ks: Sequence[int],
    phase: str,
    progress: Report,
    rephraser: Rephraser | None = None,
) -> list[Asked]:
    """The memory's answers, in the order of the questions."""
    depth = max(FIRST, *ks)
    found: list[Asked] = []
    for one in posed:
        found.append(asking.ask(job.ledger, job.workspace.memory, memory, one.question.text, one.by, depth, (), rephraser))
        progress(Progress(phase, len(found) / len(posed)))
    return found


def _scores(posed: Sequence[Posed], asked: Sequence[Asked], ks: Sequence[int]) -> list[Scores]:
    """Scores of the answerable questions, in their order."""
    pairs = zip(posed, asked, strict=True)
    return [asking.scores(said.ranking, one.evidence, ks) for one, said in pairs if one.question.answerable]


def _auroc(posed: Sequence[Posed], asked: Sequence[Asked]) -> float | None:
    """How well the memory's confidence tells answerable questions from others."""
    sure: dict[bool, list[float]] = {True: [], False: []}
    for one, said in zip(posed, asked, strict=True):
        sure[one.question.answerable].append(said.confidence)
    area = measures.auroc(sure[True], sure[False])
    return None if area is None else round(area, 6)


def _by_category(right: Sequence[Posed], rows: Sequence[Scores]) -> dict[str, Any]:
    grouped: dict[str, list[Scores]] = {}
    for one, row in zip(right, rows, strict=True):
        if one.question.category:
            grouped.setdefault(one.question.category, []).append(row)
    return {name: {"questions": len(part), **asking.means(part)} for name, part in sorted(grouped.items())}


def _groups(right: Sequence[Posed], fewest: int) -> list[str]:
    """Each question's group: its article, or, with fewer articles than `fewest` (some files have one), its evidence."""
    groups = [one.group for one in right]
    return groups if len(set(groups)) >= fewest else [min(one.evidence) for one in right]


def _parts(right: Sequence[Posed], folds: int, seed: int = 0) -> list[list[int]]:
    """Indices of the questions in at most `folds` parts, none empty; a group lies in one part."""
    groups = _groups(right, folds)
    order = sorted(set(groups))
    random.Random(seed).shuffle(order)
    of = {group: place % folds for place, group in enumerate(order)}
    parts: list[list[int]] = [[] for _ in range(folds)]
    for number, group in enumerate(groups):
        parts[of[group]].append(number)
    return [part for part in parts if part]
