"""A training is killed wherever it stands, its checkpoints are damaged: it goes on to the adapter that an uninterrupted one makes."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.test_train import corpus, settings, silent
from vaultllm import checkpoints, loop, train
from vaultllm.config import TrainSettings
from vaultllm.errors import ModelError
from vaultllm.schema import Progress

pytestmark = pytest.mark.usefixtures("one_thread")


class Continued:
    """A training that goes on from an adapter and rehearses what its base says; GPT-2 has dropout, so the random state counts."""

    def __init__(self, root: Path) -> None:
        self.root, self.base = root, str(models.build(root / "base", "gpt2"))
        train.train_lora(self.base, corpus(24), root / "parent", settings(epochs=1.0), progress=silent)
        data = corpus(84)
        self.data = replace(data, examples=data.examples[24:])
        self.settings: TrainSettings = settings(rehearse=0.3, kl=2.0, epochs=3.0)
        self.whole = self.run("whole")

    def run(self, name: str, **options: Any) -> dict[str, Any]:
        said = self.root / f"said-{name}.json"
        given = {"progress": silent, "parent": self.root / "parent" / "adapter", "said": said} | options
        return train.train_lora(self.base, self.data, self.root / name, self.settings, **given)


@pytest.fixture(scope="module")
def continued(tmp_path_factory: pytest.TempPathFactory) -> Continued:
    return Continued(tmp_path_factory.mktemp("continued"))


def in_a_child(work: Any) -> int:
    """Do it in a process of its own; how that ended (minus the signal). It inherits what is loaded: starting anew would take seconds."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            random.seed()  # another process would have other random numbers
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="forks with torch loaded")
def test_killed_at_ten_random_places_it_comes_to_the_same_adapter(continued: Continued, monkeypatch: pytest.MonkeyPatch):
    steps, root = continued.whole["steps"], continued.root / "killed" / "checkpoints"
    assert steps > 12
    assert continued.whole["own_samples"] > 0
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))
    real, chance = os.fsync, random.Random(5)
    for number, step in enumerate(sorted(chance.sample(range(1, steps), 10))):
        left = [chance.randrange(6)]

        def after(one: Progress, step: int = step) -> None:  # the step is done, its checkpoint not begun
            if one.phase == "LoRA" and one.step >= step:
                die()

        def while_written(descriptor: int, step: int = step, left: list[int] = left) -> None:
            real(descriptor)
            if (root / "writing.tmp" / f"checkpoint-{step}").exists():
                left[0] -= 1
                if left[0] < 0:
                    die()

        with monkeypatch.context() as night:
            if number % 2:
                night.setattr(os, "fsync", while_written)
            progress = silent if number % 2 else after
            assert in_a_child(lambda progress=progress: continued.run("killed", resume=True, progress=progress)) == -signal.SIGKILL
        kept = [int(path.name.rpartition("-")[2]) for path in root.glob("checkpoint-*")]
        assert max(kept, default=0) == step - 1
    metrics = continued.run("killed", resume=True)
    for name in ("adapter_sha256", "tokens", "steps", "own_tokens", "bpb_after"):
        assert metrics[name] == continued.whole[name]


def test_a_damaged_newest_checkpoint_is_passed_over(continued: Continued, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))

    def full_disk(one: Progress) -> None:
        if one.phase == "LoRA" and one.step >= 6:
            raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        continued.run("damaged", progress=full_disk)
    root = continued.root / "damaged" / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["checkpoint-4", "checkpoint-5"]
    weights = root / "checkpoint-5" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-3] ^= 1  # as a bad disk does it
    weights.write_bytes(data)
    with pytest.raises(ModelError, match=r"adapter_model\.safetensors of the checkpoint is not what was written"):
        checkpoints.read(root / "checkpoint-5")
    assert checkpoints.newest(root, checkpoints.read(root / "checkpoint-4")["identity"]) == root / "checkpoint-4"
    assert continued.run("damaged", resume=True)["adapter_sha256"] == continued.whole["adapter_sha256"]


def sealed(root: Path, step: int) -> Path:
    made = root / "writing.tmp" / f"checkpoint-{step}"
    made.mkdir(parents=True)
    (made / "weights").write_bytes(b"w" * step)
    return checkpoints.put(made, root, {"identity": {"seed": 1}, "step": step})


def test_the_newest_two_are_kept_and_the_newest_whole_one_is_found(tmp_path: Path):
    for step in (8, 9, 10):
        sealed(tmp_path, step)
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-9"]
    (tmp_path / "checkpoint-draft").mkdir()
    found = checkpoints.newest(tmp_path, {"seed": 1})
    assert found == tmp_path / "checkpoint-10"
    assert checkpoints.read(found)["step"] == 10
    with pytest.raises(ModelError, match=r"another training \(seed changed\)"):
        checkpoints.newest(tmp_path, {"seed": 2})
    (tmp_path / "checkpoint-10" / "weights").unlink()
    assert checkpoints.newest(tmp_path, {"seed": 1}) == tmp_path / "checkpoint-9"
    for damage in ("", "[]", "{}", json.dumps({"identity": {}, "files": {"../../x": "0"}})):
        (tmp_path / "checkpoint-9" / checkpoints.STATE).write_text(damage, encoding="utf-8")
        assert checkpoints.newest(tmp_path, {"seed": 1}) is None
    assert checkpoints.newest(tmp_path / "nothing", {}) is None


def test_sigterm_in_the_middle_of_a_slow_step_ends_it_at_once_with_the_steps_before_kept(
    continued: Continued, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(loop, "SLOW_STEP", 0.0)  # each step is a slow one
    told: list[float] = []

    def collated(data: loop.Data) -> Any:
        made = real(data)

        def batch(chosen: Any) -> Any:
            if len(list(root.glob("checkpoint-5"))) and not told:
                told.append(time.monotonic())
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(60)  # the rest of the step, were it not ended
            return made(chosen)

        return batch

    real, root = loop._collator, continued.root / "told" / "checkpoints"
    with monkeypatch.context() as night:
        night.setattr(loop, "_collator", collated)
        with pytest.raises(KeyboardInterrupt):
            continued.run("told")
    assert time.monotonic() - told[0] < 10
    assert (root / "checkpoint-5").is_dir()
    assert continued.run("told", resume=True)["adapter_sha256"] == continued.whole["adapter_sha256"]
