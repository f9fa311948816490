"""Where a training begins: at the base, or at the adapter that answers, which has learnt most of the notes already.

Knows what an adapter must be to be gone on from, and which notes it has seen. Knows nothing about how it is trained.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from vaultllm import registry, replay
from vaultllm.config import TrainSettings, Workspace
from vaultllm.dataset import Dataset
from vaultllm.errors import DataError
from vaultllm.ledger import Ledger
from vaultllm.schema import Run

SAME = ("rank", "alpha", "learn", "quantize")
"""Settings that an adapter to go on from must have been trained with."""


class Origin(NamedTuple):
    """Where a training begins."""

    run: str = ""
    """Id of the run whose adapter it goes on from; empty: the base."""
    learnt: Mapping[str, str] = {}
    """Scene -> sha of all that this adapter has learnt, and those that it went on from."""
    why: str = ""
    """Why it begins at the base though an adapter was asked for."""

    @property
    def recorded(self) -> dict[str, str]:
        """What a run keeps of it among its options."""
        return {"continued": self.run, "continued_not": self.why}


def of(workspace: Workspace, run: Run) -> Origin:
    """Where a run began that goes on now. Raises DataError when nobody knows any more what its adapter had learnt."""
    parent = run.options.get("continued", "")
    return Origin(parent, learnt(workspace, parent) if parent else {}, run.options.get("continued_not", ""))


def find(workspace: Workspace, ledger: Ledger, settings: TrainSettings, base_sha: str, built: Dataset) -> Origin:
    """The adapter that answers, when a training may go on from it; else the base, and why.

    It must stand on the same base, tokenizer and template and have the same rank, and nothing that it has learnt may be gone or
    private by now: what it holds would stay for ever.
    """
    run = next((one for one in ledger.runs() if one.id == registry.current(workspace)), None)
    if run is None:
        return Origin(why="no training answers yet")
    options = settings.model_dump()
    other = next((name for name in SAME if name in options and run.options.get(name, options[name]) != options[name]), None)
    if run.base_sha != base_sha:
        return Origin(why=f"run {run.id} stands on another base, or its tokenizer or template was changed")
    if other:
        return Origin(why=f"run {run.id} was trained with train.{other} = {run.options[other]}, now it is {options[other]}")
    if not _whole(workspace.runs / run.id):
        return Origin(why=f"the adapter of run {run.id} is gone, or not what was trained")
    try:
        known = learnt(workspace, run.id)
    except DataError as error:
        return Origin(why=error.message)
    now = dict(ledger.trainable())
    texts = set(now.values())  # what stands in another place now is not gone
    gone = sum(1 for scene, sha in known.items() if scene not in now and sha not in texts)
    if gone:
        return Origin(why=f"{gone} scenes that run {run.id} has learnt are gone or may no longer be learnt")
    if not replay.chosen(built.split("train"), built.scenes, known, 0.0, "").new:
        return Origin(why=f"run {run.id} has learnt all of it")
    return Origin(run.id, known)


def learnt(workspace: Workspace, run: str) -> dict[str, str]:
    """Scene -> sha of all that a run's adapter has learnt. Raises DataError when that cannot be read."""
    path = workspace.runs / run / "scenes.json"
    try:
        return {str(scene): str(sha) for scene, sha in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError) as error:
        raise DataError(
            f"what run {run} has learnt cannot be read ({error}); train from the base: vaultllm train", path=str(path)
        ) from error


def _whole(folder: Path) -> bool:
    """Whether a run's adapter is the file that was written when it was trained."""
    try:
        expected = json.loads((folder / "vaultllm.json").read_text(encoding="utf-8"))["adapter_sha256"]
        with (folder / "adapter" / "adapter_model.safetensors").open("rb") as file:
            return bool(hashlib.file_digest(file, "sha256").hexdigest() == expected)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def taught(built: Dataset, origin: Origin, settings: TrainSettings) -> tuple[Dataset, dict[str, Any]]:
    """What is learnt from there on, with all that is held out; and how many examples are `new`, learnt `again` and `left`."""
    if not origin.run:
        return built, {}
    chosen = replay.chosen(built.split("train"), built.scenes, origin.learnt, settings.replay, origin.run)
    ids = {one.id for one in (*chosen.new, *chosen.again)}
    kept = tuple(one for one in built.examples if one.split != "train" or one.id in ids)
    return dataclasses.replace(built, examples=kept), {"new": len(chosen.new), "again": len(chosen.again), "left": chosen.left}


def unseen(built: Dataset, seen: Mapping[str, str]) -> tuple[Dataset, int]:
    """The dataset without the held-out notes of which an adapter has learnt a scene, and how many examples they were."""
    texts = set(seen.values())
    known = {one.path for one in built.examples if any(scene in seen or built.scenes[scene] in texts for scene in one.scenes)}
    kept = tuple(one for one in built.examples if one.split == "train" or one.path not in known)
    return dataclasses.replace(built, examples=kept), len(built.examples) - len(kept)
