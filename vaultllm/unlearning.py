"""Trained anew without what was forgotten, and the proof: how well the old weights know it, and how well the new ones do.

Exact unlearning (Bourtoule et al. 2021, arXiv:1912.03817): nothing is taken out of weights, they are made again without it. The
measure wants the forgotten text when it stands nowhere any more, so it is held by this process alone; on the disk only numbers
are left. Killed anywhere, the same command goes on: docs/forgetting.md. Knows nothing about terminals, nor about how a text is
taken out of everything (`forget.py`).
"""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vaultllm import dataset as datasets
from vaultllm import memorised, registry, training
from vaultllm.config import Workspace
from vaultllm.dataset import Dataset
from vaultllm.errors import DataError, VaultllmError
from vaultllm.forget import Derived
from vaultllm.ledger import Ledger
from vaultllm.memorised import Sentence
from vaultllm.schema import Example, Message, Progress, Report, Run
from vaultllm.target import Target

A_NOTE, OF_IT = 16, 16
"""Sentences of one held-out note, and of what was forgotten: as many, so that both vary alike."""
NOTES = 64
"""Held-out notes that it is compared with, about."""


@dataclass(frozen=True, slots=True)
class Held:
    """What is forgotten, as long as this process lives."""

    name: str
    """The mark of its name (`forgotten.mark`): no word of it."""
    sentences: tuple[Sentence, ...]
    """Of what was learnt of it: those that nothing else says."""
    examples: tuple[Example, ...]
    """What was learnt of it, as it was learnt; what something else says too is marked as not learnt."""
    runs: tuple[str, ...]
    """Ids of the runs that saw it."""
    bases: tuple[str, ...]
    """Micro bases that read it."""
    before: tuple[str, Path | None, str] | None
    """(base, adapter, run id) of the weights that are asked first: what answered, else the newest that are left; None: none are."""


def hold(workspace: Workspace, ledger: Ledger, goal: Target, found: Derived) -> Held:
    """What is about to be forgotten, for the measures that follow: `forget`'s witness."""
    saw = [run for run in ledger.runs() if run.id in found.runs and registry.has_adapter(workspace, run.id)]
    answers = registry.current(workspace)
    before: tuple[str, Path | None, str] | None = None
    learnt: list[Example] = []
    if saw:
        run = next((run for run in saw if run.id == answers), saw[-1])
        before = run.base, workspace.runs / run.id / "adapter", run.id
        try:
            built = datasets.read(workspace.datasets / run.dataset)
            learnt = [one for one in built.written("train") if one.path in goal.paths or not goal.scenes.isdisjoint(one.scenes)]
        except DataError:  # its examples went with something that was forgotten before
            learnt = []
    elif found.bases:
        before = str(workspace.bases / found.bases[-1]), None, ""
    learnt = learnt or [Example("", (), "", "prose", (Message("user", text, True),), "train") for text in goal.texts]
    sentences = memorised.asked(learnt, OF_IT, OF_IT, goal.owns)
    own = [one for one in (_own(example, goal) for example in learnt) if any(message.learn for message in one.messages)]
    return Held(goal.named, tuple(sentences), tuple(own), found.runs, found.bases, before)


def _own(example: Example, goal: Target) -> Example:
    """The example, of which only what nothing else says counts as learnt: of prose by paragraphs, of a talk by messages."""
    messages: list[Message] = []
    for message in example.messages:
        # `evaluate.encode` puts an empty line between the messages of prose: they are read as the text was.
        parts = message.text.split("\n\n") if example.form == "prose" else [message.text]
        messages += [replace(message, text=part, learn=message.learn and goal.owns(part)) for part in parts]
    return replace(example, messages=tuple(messages))


def again(
    workspace: Workspace, ledger: Ledger, held: Held, built: Dataset, learn: Callable[[], dict[str, Any]], progress: Report
) -> dict[str, Any]:
    """Train without what was forgotten, unless that is done already; measure before and after; delete the weights that saw it.

    `built` are the data without it, `learn` trains on them from the base and returns what `training.train` does. The caller holds the
    lock of training from the forgetting on. Returns that and `exposure` (`judged`, or {skipped: why}), `deleted` {runs, bases}. What
    `learn` raises passes: then the old weights, revoked, are still there, and the same command goes on.
    """
    done = _successor(ledger, held)
    known = _recorded(done, held)
    exposure = known or {}
    unseen = _unseen(workspace, held, built) if known is None else []
    before = _look(held.before, held, unseen, progress) if known is None else None
    trained = learn() if done is None else {"run": done.id, "status": "was trained before", "metrics": done.metrics, "reason": done.reason}
    run = registry.find(ledger, str(trained["run"]))
    if before is not None:
        own, _ = training.unseen(Path(run.base), built)
        allowed = {example.path for example in own.examples if example.split != "train"}
        after = _look((run.base, workspace.runs / run.id / "adapter", run.id), held, unseen, progress)
        exposure = judged(held.sentences, unseen, [one.note in allowed for one in unseen], before, after)
        entry = {"name": held.name, "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), **exposure}
        metrics = run.metrics | {"forgotten": [*run.metrics.get("forgotten", ()), entry]}
        registry.record(workspace, ledger, replace(run, metrics=metrics))
        trained["metrics"] = metrics
    deleted = registry.delete_revoked(workspace, ledger, held.runs, held.bases)
    return trained | {"exposure": exposure, "deleted": deleted}


def _successor(ledger: Ledger, held: Held) -> Run | None:
    """The newest finished training after all those that saw it: a command that was killed has come so far."""
    runs = ledger.runs()
    last = max((place for place, run in enumerate(runs) if run.id in held.runs), default=-1)
    return next((run for run in reversed(runs[last + 1 :]) if run.status == "done" and not run.revoked), None)


def _recorded(run: Run | None, held: Held) -> dict[str, Any] | None:
    """What was measured of this run for the same text."""
    entries = run.metrics.get("forgotten", ()) if run is not None else ()
    return next((dict(entry) for entry in reversed(entries) if entry["name"] == held.name), None)


def _unseen(workspace: Workspace, held: Held, built: Dataset) -> list[Sentence]:
    """Sentences of held-out notes that neither the old weights nor the new ones learnt: the level of unseen text."""
    scenes: set[str] = set()
    paths: set[str] = set()
    for file in [workspace.runs / run / "scenes.json" for run in held.runs] + [workspace.bases / base / "seen.json" for base in held.bases]:
        try:
            seen = json.loads(file.read_text(encoding="utf-8", errors="surrogatepass"))
        except (OSError, ValueError):
            continue
        scenes.update(seen["scenes"] if file.name == "seen.json" else seen)
        paths.update(seen["paths"] if file.name == "seen.json" else ())
    others = [one for one in built.examples if one.split != "train" and one.path not in paths and scenes.isdisjoint(one.scenes)]
    said = {one for _, one in memorised.sentences(built.split("train"), memorised.MANY)} | {one.text for one in held.sentences}
    return memorised.asked(others, A_NOTE, NOTES * A_NOTE, lambda one: one not in said)


@dataclass(frozen=True, slots=True)
class Look:
    """What some weights say of it."""

    run: str
    """Whose; empty: of a base alone."""
    costs: tuple[float, ...] = ()
    """Of its sentences (`memorised.costs`)."""
    unseen: tuple[float, ...] = ()
    """Of the held-out ones."""
    passages: int = 0
    """That were asked for."""
    recited: int = 0
    """That came word for word."""
    skipped: str = ""
    """Why there is nothing of all this."""


def _look(model: tuple[str, Path | None, str] | None, held: Held, unseen: Sequence[Sentence], progress: Report) -> Look:
    from vaultllm.models import hf

    if model is None:
        return Look("", skipped="no weights are left that saw it")
    base, adapter, run = model
    if not held.sentences:
        return Look(run, skipped="nothing is known any more that it alone said (40 to 200 characters a sentence)")
    progress(Progress("measuring what is known of it", 0.0))
    try:
        loaded = hf.load(base, adapter)
        shown = memorised.passages(loaded.tokenizer, held.examples, memorised.PASSAGES)
        costs = memorised.costs(loaded, held.sentences), memorised.costs(loaded, unseen)
        return Look(run, tuple(costs[0]), tuple(costs[1]), len(shown), memorised.verbatim(loaded, shown))
    except (VaultllmError, RuntimeError, OSError, MemoryError) as error:
        return Look(run, skipped=(str(error).strip().split("\n") or [type(error).__name__])[0])


def judged(sentences: Sequence[Sentence], unseen: Sequence[Sentence], allowed: Sequence[bool], before: Look, after: Look) -> dict[str, Any]:
    """What two looks at a text say, and what follows: {before, after, verdict, words}.

    before, after: {run, passages, recited} and what `memorised.standing` says, or {run, skipped}. `allowed`: which of the unseen
    sentences are still unseen by the new base. verdict: `fell`, `not fallen`, `at the level` (it is; of before nothing is known),
    `never above`, `not enough`. `words` says it in a sentence.
    """
    kept = [place for place, one in enumerate(allowed) if one]
    population = [unseen[place] for place in kept]
    found: dict[str, Any] = {}
    for name, look in (("before", before), ("after", after)):
        if look.skipped:
            found[name] = {"run": look.run, "skipped": look.skipped}
            continue
        stands = memorised.standing(sentences, look.costs, population, [look.unseen[place] for place in kept])
        found[name] = {"run": look.run, "passages": look.passages, "recited": look.recited, **stands}
    verdict, words = _verdict(found["before"], found["after"])
    return {**found, "verdict": verdict, "words": words}


def _above(stands: dict[str, Any]) -> bool:
    """Whether it is recited, or better known than nineteen of twenty notes that nobody learnt."""
    return bool(stands.get("recited")) or stands.get("p", 1.0) <= 0.05


def _verdict(before: dict[str, Any], after: dict[str, Any]) -> tuple[str, str]:
    if after.get("recited"):
        recited = f"the new weights recite {after['recited']} of {after['passages']} passages of it"
        return "not fallen", f"{recited}: something that stays says it, or nearly"
    if "skipped" in after:
        return "not enough", f"not enough to say: {after['skipped']}"
    now = f"{after['as_well']} of {after['unseen']['notes']} notes that nobody learnt are known as well"
    if _above(after):
        why = "something that stays says nearly the same, or it is easy to guess"
        return "not fallen", f"it has not fallen to the level of unseen text ({now}): {why}"
    if "skipped" in before and not before.get("recited"):
        return "at the level", f"it is at the level of unseen text ({now}); of before nothing is known: {before['skipped']}"
    if not _above(before):
        return "never above", f"it was no better known than unseen text before, and is not now ({now})"
    was = f", before {before['as_well']}" if "as_well" in before else ""
    return "fell", f"it fell to the level of unseen text ({now}{was})"
