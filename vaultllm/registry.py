"""Which run answers, and the way back: promote, verify, roll back, revoke, keep only so many.

Runs live in the ledger and in `runs/<id>/`; `current` is a text file with the id of the run that answers. Knows nothing about how a
run is trained (`training.py`), nor about questions or notes' formats.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from vaultllm import lineage
from vaultllm.config import Workspace
from vaultllm.errors import ModelError, UsageError, nearest
from vaultllm.files import write_if_changed, write_whole
from vaultllm.ledger import Ledger
from vaultllm.schema import Run, to_dict

if TYPE_CHECKING:
    from vaultllm.memory.rerank import Judge

_CURRENT = "current"  # in the ledger's meta table: who was made to answer, by which a damaged `current` is known
_NEXT = "current_next"  # there too: who was about to, committed before the pointer is written, which is no part of a transaction
_REVOKED = "revoked"  # in a base's folder: why it is used no more


def current(workspace: Workspace) -> str:
    """Id of the run that answers; empty when none does. Of a file that cannot be read, what no run is called, so that `check` says so."""
    try:
        return workspace.current.read_text(encoding="utf-8", errors="replace").strip()
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"({error.strerror})"


def _point(workspace: Workspace, ledger: Ledger, run: str) -> None:
    ledger.set(_CURRENT, run)
    write_whole(workspace.current, run + "\n" if run else "", lasting=True)


def meant(ledger: Ledger) -> str | None:
    """Id of the run that was made to answer, "" for the base; None where the ledger does not know (it was made anew)."""
    return ledger.get(_CURRENT)


def is_astray(workspace: Workspace, ledger: Ledger) -> bool:
    """Whether `current` names another run than the one that was made to answer, or was about to when a kill came."""
    return meant(ledger) is not None and current(workspace) not in (meant(ledger), ledger.get(_NEXT))


def set_right(workspace: Workspace, ledger: Ledger) -> None:
    """Let `current` name the run that was made to answer. The caller holds the lock."""
    if is_astray(workspace, ledger):
        if workspace.current.is_dir():
            shutil.rmtree(workspace.current)
        _point(workspace, ledger, meant(ledger) or "")


def find(ledger: Ledger, run_id: str) -> Run:
    """The run of this id. Raises UsageError with the nearest right one."""
    runs = {run.id: run for run in ledger.runs()}
    if run_id not in runs:
        raise UsageError(f"there is no run '{run_id}'.{nearest(run_id, runs)} See: vaultllm runs")
    return runs[run_id]


def promote(workspace: Workspace, ledger: Ledger, run_id: str, reason: str = "", *, force: bool = False) -> str:
    """Let a finished run answer, once its adapter is what was trained; returns the id of the one before it.

    A run that the gate refused needs `force` and a `reason`, which is recorded beside the gate's. Raises UsageError,
    ModelError (the adapter is gone, changed, not finite, of another base, or does not say what it said after training).
    """
    run = find(ledger, run_id)
    reason = " ".join(reason.split())
    if run.status != "done":
        raise UsageError(f"run {run_id} is {run.status}, not done; only a finished run can answer")
    if run.revoked:
        raise UsageError(f"run {run_id} was revoked: {run.revoked}; train without it: vaultllm train")
    if force and not reason:
        raise UsageError('--force wants a reason, which is kept with the run: --reason "…"')
    refused = lineage.refused(run)
    if refused and not force:
        raise UsageError(
            f'run {run_id} was refused: {run.reason}; to let it answer all the same: vaultllm promote {run_id} --force --reason "…"'
        )
    verify(workspace, run)
    if refused:
        forced = {"reason": reason, "refused": run.reason, "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds")}
        run = dataclasses.replace(run, metrics=run.metrics | {"forced": forced}, reason=f"by force: {reason}; refused before: {run.reason}")
    elif reason or not run.reason:
        run = dataclasses.replace(run, reason=f"by hand: {reason}" if reason else "by hand")
    return let_answer(workspace, ledger, run)


def let_answer(workspace: Workspace, ledger: Ledger, run: Run) -> str:
    """Point at this run, which was checked; returns the id of the one before it. A kill leaves the one before it, or the way back to it."""
    with ledger.transaction():  # kept for itself, before the pointer, which is no part of a transaction
        before = _keep_way_back(workspace, ledger, run.id)
        ledger.set(_NEXT, run.id)
    with ledger.transaction():
        _keep_way_back(workspace, ledger, run.id)  # a promotion by hand and one by a training that ends must not lose each other's
        _point(workspace, ledger, run.id)
        record(workspace, ledger, dataclasses.replace(run, promoted=True))
    return before


def _keep_way_back(workspace: Workspace, ledger: Ledger, run_id: str) -> str:
    """Note the run that answers as what a rollback leads to, unless it is this one; returns its id."""
    before, history = current(workspace), _history(ledger)
    known = before if any(one.id == before for one in ledger.runs()) else ""  # else rollback would lead to nothing
    if before != run_id and history[-1:] != [known]:
        ledger.put_history([*history, known])
    return before


def verify(workspace: Workspace, run: Run) -> str:
    """Load a run's adapter as answering would and compare it with what was trained; returns what could not be compared, or "".

    Raises ModelError when it may not answer: gone, not the file that was written, not finite, its base, tokenizer or chat
    template changed, other logits than at the end of its training.
    """
    folder = workspace.runs / run.id
    if not has_adapter(workspace, run.id):
        raise ModelError(f"the adapter of run {run.id} is gone (train.keep says how many are kept); train again", path=str(folder))
    from vaultllm.models import hf, reload

    return reload.check(hf.load(run.base, folder / "adapter"), folder)


def has_adapter(workspace: Workspace, run_id: str) -> bool:
    """Whether the weights of a run are still there."""
    return (workspace.runs / run_id / "adapter" / "adapter_model.safetensors").is_file()


def prune(workspace: Workspace, ledger: Ledger, keep: int) -> list[str]:
    """Delete adapters that nobody needs; returns the ids of their runs, whose records stay.

    Kept are those of the newest `keep` finished runs, of the one that answers, and of the last `keep` that `rollback` leads to;
    beyond these it leads to the base alone.
    """
    with ledger.transaction():
        history = _history(ledger)
        way_back = history[-keep:]
        if len(way_back) < len(history):
            way_back = ["", *way_back] if way_back[0] else way_back
            ledger.put_history(way_back)
    for run in ledger.runs():
        if run.status == "failed":  # nothing goes on from there
            shutil.rmtree(workspace.runs / run.id / "checkpoints", ignore_errors=True)
    gone = []
    for run_id in lineage.spare(ledger.runs(), keep, {current(workspace), *way_back}):
        if (workspace.runs / run_id / "adapter").is_dir():
            _delete_adapter(workspace, run_id)
            gone.append(run_id)
    return gone


def _delete_adapter(workspace: Workspace, run_id: str) -> None:
    adapter = workspace.runs / run_id / "adapter"
    (adapter / "adapter_model.safetensors").unlink(missing_ok=True)  # first: what is left is known to be no adapter
    shutil.rmtree(adapter, ignore_errors=True)


def delete_revoked(workspace: Workspace, ledger: Ledger, ids: Collection[str], bases: Collection[str]) -> dict[str, list[str]]:
    """Delete the weights of revoked runs, checkpoints included, and of revoked micro bases; returns whose there were: {runs, bases}.

    A run's record stays. Killed in between, a base is still revoked, and is known to have read what it has, to the end.
    """
    gone: dict[str, list[str]] = {"runs": [], "bases": []}
    for run in ledger.runs():
        folder = workspace.runs / run.id
        if run.id in ids and run.revoked and ((folder / "adapter").exists() or (folder / "checkpoints").exists()):
            _delete_adapter(workspace, run.id)
            for rest in ("adapter.tmp", "checkpoints"):
                shutil.rmtree(folder / rest, ignore_errors=True)
            gone["runs"].append(run.id)
    for folder in (workspace.bases / name for name in sorted(bases)):
        if (folder / _REVOKED).is_file():
            last = {"seen.json": 1, _REVOKED: 2}
            for path in sorted(folder.iterdir(), key=lambda path: last.get(path.name, 0)):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
            folder.rmdir()
            gone["bases"].append(folder.name)
    return gone


def rollback(workspace: Workspace, ledger: Ledger) -> tuple[str, str]:
    """Let the run before the current one answer again; returns (the one that answered, the one that answers now).

    A run whose adapter is gone is passed over. Loads no model: it is a matter of milliseconds.
    """
    with ledger.transaction():
        history = _history(ledger)
        before = current(workspace)
        if not before or not history:
            raise UsageError("there is nothing to roll back: no run answers; see: vaultllm runs")
        now = history.pop()
        while now and (now == before or not has_adapter(workspace, now)):  # before: a kill came between pointer and ledger
            now = history.pop() if history else ""
        ledger.set(_NEXT, now)
    with ledger.transaction():
        _point(workspace, ledger, now)
        ledger.put_history(history)
    return before, now


def way_back(ledger: Ledger) -> str:
    """Id of the run that a rollback leads to; empty for the base alone."""
    return (_history(ledger) or [""])[-1]


def _history(ledger: Ledger) -> list[str]:
    """Ids that answered before the current one, oldest first; "" stands for the base alone."""
    return ledger.history()


def revoke(workspace: Workspace, ledger: Ledger, ids: Collection[str], reason: str) -> str:
    """Let these runs never answer again; the newest that answered before and is none of them does. Returns who answers now, or ""."""
    now, history = current(workspace), [one for one in _history(ledger) if one not in ids]
    if moves := now in ids:
        now = history.pop() if history else ""
        while now and not has_adapter(workspace, now):
            now = history.pop() if history else ""
        with ledger.transaction():
            ledger.set(_NEXT, now)
    with ledger.transaction():
        for run in ledger.runs():
            if run.id in ids and not run.revoked:
                record(workspace, ledger, dataclasses.replace(run, revoked=reason))
        if moves:
            _point(workspace, ledger, now)
        ledger.put_history(history)
    return now


def revoke_base(folder: Path, reason: str) -> None:
    """Let a micro base neither answer nor be trained on again; the next training makes another. What it said of itself goes."""
    write_whole(folder / _REVOKED, reason + "\n", lasting=True)
    for said in ("samples.json", "said.json"):
        (folder / said).unlink(missing_ok=True)


def judge(workspace: Workspace, ledger: Ledger) -> Judge | None:
    """Who reorders what the memory finds, as `memory.rerank` says; None: nobody. Raises VaultllmError when it cannot be had."""
    spec = workspace.settings.memory.rerank
    if not spec:
        return None
    from vaultllm.memory import rerank

    served = serving(workspace, ledger) if spec == "model" else None
    return rerank.create(spec, *(served[:2] if served else ()))


def serving(workspace: Workspace, ledger: Ledger) -> tuple[str, Path | None, str] | None:
    """(base, adapter, run id) of what answers: the current run, else a base alone; None when there is no model yet."""
    run_id = current(workspace)
    if run_id:
        run = find(ledger, run_id)
        return run.base, workspace.runs / run_id / "adapter", run_id
    if workspace.settings.train.base != "micro":
        return workspace.settings.train.base, None, ""
    base = newest_micro(workspace)
    return None if base is None else (str(base), None, "")


def check(workspace: Workspace, ledger: Ledger) -> str:
    """What is wrong with the run that answers, in one sentence; empty when it can answer."""
    run_id = current(workspace)
    if not run_id:
        return ""
    known = {run.id: run for run in ledger.runs()}
    if run_id not in known:
        return f"`current` names run {run_id}, which the ledger does not know; mend: vaultllm train, or promote one of: vaultllm runs"
    if not has_adapter(workspace, run_id):
        return f"the adapter of run {run_id} is gone; mend: vaultllm rollback"
    from vaultllm.models import hf

    try:
        altered = hf.altered(workspace.runs / run_id / "adapter")
    except (ModelError, OSError) as error:
        return f"the adapter of run {run_id} cannot be read ({error}); mend: vaultllm rollback"
    if altered:
        return f"{altered} of run {run_id} is not what was written after training; mend: vaultllm rollback"
    base = Path(known[run_id].base)
    if base.is_absolute() and not (base / "config.json").is_file():
        return f"the base of run {run_id} is gone ({base}); mend: vaultllm rollback, or train again"
    return ""


def new_scenes(workspace: Workspace, ledger: Ledger) -> int:
    """How many scenes may be trained on that the last finished run (but one that was revoked) has not seen as they are now."""
    seen: dict[str, str] = {}
    for run in reversed(ledger.runs()):
        manifest = workspace.datasets / run.dataset / "manifest.json"
        if run.status == "done" and not run.revoked and manifest.is_file():
            with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # damaged: an older one knows less, which is no harm
                data = json.loads(manifest.read_bytes())
                # A scene that stands in two notes is dropped in one and used in the other: used wins.
                seen = {one["scene"]: "" for one in data["dropped"] if one["whole"]} | dict(data["scenes"])
                break
    return sum(1 for scene, sha in ledger.trainable() if seen.get(scene) not in (sha, ""))


def newest_micro(workspace: Workspace) -> Path | None:
    """The youngest complete micro base that was not revoked; `seen.json` is written last."""
    found = sorted(path.parent for path in workspace.bases.glob("micro-*/seen.json") if not (path.parent / _REVOKED).exists())
    return found[-1] if found else None


def record(workspace: Workspace, ledger: Ledger, run: Run) -> None:
    """Into the ledger, and as `run.json` for people and for a ledger that is made anew."""
    ledger.put_run(run)
    with ledger.transaction():  # another process that writes one waits
        _write_record(workspace, run)


def write_records(workspace: Workspace, ledger: Ledger) -> None:
    """Let each `run.json` say what the ledger does: a kill between the two leaves an older one, or half of one."""
    with ledger.transaction():
        for run in ledger.runs():
            _write_record(workspace, run)


def _write_record(workspace: Workspace, run: Run) -> None:
    folder = workspace.runs / run.id
    if folder.is_dir():
        write_if_changed(folder / "run.json", json.dumps(to_dict(run), ensure_ascii=False, indent=1) + "\n")
