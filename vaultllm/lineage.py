"""The trainings as a line of descent: what was decided of each, which stands on which, whose adapter is needed no more.

Pure: records in, records out. Knows nothing about files, models or the ledger.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from vaultllm.schema import Run


def refused(run: Run) -> bool:
    """Whether the gate looked at a finished run and did not let it answer. One that was trained without the gate has no reason."""
    return run.status == "done" and not run.promoted and bool(run.reason)


def decision(run: Run) -> str:
    """What was decided: `promoted`, `forced` (by hand, against the gate), `refused`, `not judged`, or why there is nothing to decide.

    `revoked`: what it learnt was forgotten since.
    """
    if run.revoked:
        return "revoked"
    if run.status != "done":
        return run.status
    if run.promoted:
        return "forced" if "forced" in run.metrics else "promoted"
    return "refused" if refused(run) else "not judged"


def descent(runs: Sequence[Run], current: str) -> list[dict[str, Any]]:
    """The runs as rows of a tree, a parent before its children; the trunk (runs that followed each other as answers) stays flat.

    {run, parent, continued, depth, last, base, base_name, dataset, decision, answers, bpb_before, bpb_after, reason}. `parent` is who
    answered when it began, `continued` the run whose adapter it began with, if it did not begin at the base. `depth` is 0 for
    the trunk; `last` says whether nothing follows on the same branch. Runs whose parent is unknown stand on their base; the
    rows of one base lie together, bases in the order of their first run.
    """
    known = {run.id for run in runs}
    children: dict[tuple[str, str], list[Run]] = {}  # (base, parent) -> runs; a run on another base than its parent begins anew
    by_id = {run.id: run for run in runs}
    for run in runs:
        parent = run.parent if run.parent in known and run.parent != run.id and by_id[run.parent].base == run.base else ""
        children.setdefault((run.base, parent), []).append(run)
    rows: list[dict[str, Any]] = []
    for base in dict.fromkeys(run.base for run in runs):
        # A stack instead of recursion: a hundred nights make a chain a hundred long.
        stack = [(run, 0, False) for run in reversed(_trunk_last(children.get((base, ""), [])))]
        while stack:
            run, depth, last = stack.pop()
            rows.append(_row(run, depth, last, current))
            below = _trunk_last(children.pop((base, run.id), []))
            follower = below[-1:] if below and below[-1].promoted else []
            hanging = below[: len(below) - len(follower)]
            stack += [(one, depth, False) for one in follower]
            stack += [(one, depth + 1, one is hanging[-1] and not follower) for one in reversed(hanging)]
    return rows


def _trunk_last(runs: Sequence[Run]) -> list[Run]:
    """In their order, but the newest that was promoted last: it goes on with the line."""
    promoted = [run for run in runs if run.promoted][-1:]
    return [run for run in runs if run not in promoted] + promoted


def _row(run: Run, depth: int, last: bool, current: str) -> dict[str, Any]:
    return {
        "run": run.id,
        "parent": run.parent or None,
        "continued": run.options.get("continued") or None,
        "depth": depth,
        "last": last,
        "base": run.base,
        "base_name": Path(run.base).name or run.base,
        "dataset": run.dataset,
        "decision": decision(run),
        "answers": run.id == current,
        "bpb_before": run.metrics.get("bpb_before"),
        "bpb_after": run.metrics.get("bpb_after"),
        "reason": run.reason,
    }


def spare(runs: Sequence[Run], keep: int, needed: Collection[str]) -> list[str]:
    """Ids of finished runs whose adapters may go, oldest first: neither among the newest `keep` nor `needed`. `runs`: oldest first."""
    done = [run.id for run in runs if run.status == "done"]
    return [run_id for run_id in done[: max(0, len(done) - keep)] if run_id not in needed]
