"""A training in several processes: the same steps however many they are, the same adapter, and none is left alone."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import models
from vaultllm import config, processes, steps
from vaultllm.errors import UsageError
from vaultllm.schema import Progress, silent
from vaultllm.selftest import forks

pytestmark = pytest.mark.usefixtures("one_thread")  # who has several cannot be forked
ROOT = Path(__file__).parents[1]
TIMES = {"minutes": 5.0, "epochs": 2.0, "rank": 4, "alpha": 8, "learning_rate": 1e-2, "max_tokens": 128}


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONWARNINGS": "error"}


def weights(run: Path) -> dict[str, Any]:
    from safetensors.torch import load_file

    found: dict[str, Any] = load_file(run / "adapter" / "adapter_model.safetensors")
    return found


def assert_same_adapter(one: Path, other: Path) -> None:
    import torch

    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    assert max(float(weight.abs().max()) for name, weight in ours.items() if "lora_B" in name) > 1e-3  # it has learnt
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], rtol=0.0, atol=2e-5)


@pytest.fixture
def of(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Be one of several."""

    def become(rank: int, count: int) -> None:
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", str(count))

    return become


@pytest.mark.parametrize(
    ("batches", "accumulate", "count"), [(8, 4, 2), (11, 4, 2), (9, 3, 2), (5, 1, 2), (6, 6, 3), (7, 8, 4), (10, 2, 1)]
)
def test_a_step_is_made_of_the_same_rows_however_many_processes_there_are(of: Any, batches: int, accumulate: int, count: int):
    content = [[10 * batch + row for row in range(1 + batch % 4)] for batch in range(batches)]

    def read(rank: int, all_: int) -> list[list[int]]:
        """Of each step what one process reads."""
        of(rank, all_)
        mine, each = processes.dealt(batches, accumulate, 3, seed=7), processes.each(accumulate)
        found = [[] if one == processes.FILLER else processes.rows(content[one], accumulate) for one in mine]
        return [[row for part in found[start : start + each] for row in part] for start in range(0, len(found), each)]

    alone = read(0, 1)
    together = [read(rank, count) for rank in range(count)]
    assert {len(one) for one in together} == {len(alone)}  # none waits for a step that the others do not make
    for number, step in enumerate(alone):
        assert sorted(step) == sorted(row for one in together for row in one[number])
    assert sorted(row for step in alone for row in step) == sorted(row for batch in content for row in batch)


def test_each_pass_and_seed_has_its_order():
    assert processes.dealt(20, 4, 0, 0) != processes.dealt(20, 4, 1, 0) != processes.dealt(20, 4, 0, 1)
    assert processes.dealt(20, 4, 0, 0) == processes.dealt(20, 4, 0, 0)


@pytest.mark.parametrize(
    ("names", "found"),
    [
        ({}, (0, 1)),
        ({"RANK": "1", "WORLD_SIZE": "2"}, (1, 2)),
        ({"OMPI_COMM_WORLD_RANK": "2", "OMPI_COMM_WORLD_SIZE": "3"}, (2, 3)),
        ({"RANK": "", "WORLD_SIZE": "x"}, (0, 1)),
    ],
)
def test_a_launcher_says_who_one_is(monkeypatch: pytest.MonkeyPatch, names: dict[str, str], found: tuple[int, int]):
    for name in ("RANK", "WORLD_SIZE", "PMI_RANK", "PMI_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert (processes.rank(), processes.count()) == found


def test_alone_nothing_is_opened_and_numbers_stay_what_they_are():
    with processes.joined():
        processes.tell("nobody")
        assert processes.most([1.0, -2.0]) == processes.total([1.0, -2.0]) == [1.0, -2.0]


def test_several_processes_on_mps_are_refused(of: Any, monkeypatch: pytest.MonkeyPatch):
    of(0, 2)
    monkeypatch.setattr("vaultllm.models.hf.device", lambda: "mps")
    with pytest.raises(UsageError, match="without a launcher"), processes.joined():
        pass


@pytest.mark.parametrize("setting", [("ACCELERATE_USE_FSDP", "true"), ("ACCELERATE_DEEPSPEED_ZERO_STAGE", "3")])
def test_a_divided_base_is_refused_before_anybody_waits(of: Any, monkeypatch: pytest.MonkeyPatch, setting: tuple[str, str]):
    of(0, 2)
    monkeypatch.setenv(*setting)
    with pytest.raises(UsageError, match=r"docs/hardware\.md"), processes.joined():
        pass


def test_other_commands_run_in_one_process(of: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    from vaultllm import cli

    of(0, 2)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--vault", "train", "status"])
    assert ended.value.code == 2
    assert "status runs in one process" in capsys.readouterr().err
    of(1, 2)
    with pytest.raises(SystemExit) as ended:
        cli.main(["--vault", "train", "status"])
    assert (ended.value.code, capsys.readouterr()) == (0, ("", ""))  # the first has said it


def test_accelerate_launch_with_two_processes_trains_the_same_adapter(tmp_path: Path):
    base = models.build(tmp_path / "base", "llama")
    runs = []
    for name in ("one", "two"):
        vault = tmp_path / name
        vault.mkdir()
        for number in range(12):
            text = f"# Река {number}\n\n" + f"Вода поднялась на {number} сантиметров. " * (1 + number % 4)
            (vault / f"{number}.md").write_text(text, encoding="utf-8")
        space = config.init_workspace(vault, str(tmp_path / f"state-{name}"), str(base))
        with (vault / config.CONFIG).open("a") as file:
            file.write("".join(f"{key} = {value}\n" for key, value in TIMES.items()))
        space = config.open_workspace(str(vault), str(space.state))
        job = steps.Job(space)
        steps.ingest(job)
        if name == "one":
            alone = steps.train(job, report=False)
        job.close()
        runs.append(space)
    launch = ["accelerate.commands.launch", "--multi_gpu", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no"]
    command = ["-m", *launch, "--num_processes", "2", "--main_process_port", free_port(), "-m", "vaultllm"]
    given = ["--vault", str(runs[1].vault), "--state", str(runs[1].state), "--json", "train", "--no-report"]
    done = subprocess.run([sys.executable, *command, *given], capture_output=True, text=True, timeout=110, env=environment())
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)  # one document: the second process says nothing
    assert told["metrics"]["tokens"] == alone["metrics"]["tokens"]
    assert told["metrics"]["steps"] == alone["metrics"]["steps"] > 2
    assert told["metrics"]["loss_last"] == pytest.approx(alone["metrics"]["loss_last"], rel=1e-5)
    assert told["metrics"]["bpb_after"] == pytest.approx(alone["metrics"]["bpb_after"], rel=1e-5)
    assert told["promoted"] == alone["promoted"]
    assert_same_adapter(runs[0].runs / alone["run"], runs[1].runs / told["run"])


def test_two_processes_stop_together_and_go_on_to_the_same_adapter(tmp_path: Path, of: Any, monkeypatch: pytest.MonkeyPatch):
    from tests.test_train import corpus
    from vaultllm import loop, train
    from vaultllm.config import TrainSettings

    base, wanted = str(models.build(tmp_path / "base", "qwen3")), TrainSettings(**TIMES)
    whole = train.train_lora(base, corpus(36), tmp_path / "whole", wanted, progress=silent)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", free_port())
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    of(0, 2)  # this process leads; the other one is as a launcher would start it
    for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"):  # accelerate sets them, and they must not stay
        monkeypatch.setenv(name, os.environ["RANK" if name == "LOCAL_RANK" else "WORLD_SIZE"])
    said = tmp_path / "said"

    def take_part() -> int:
        os.environ.update({"RANK": "1", "LOCAL_RANK": "1"})
        for number in (1, 2):
            os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        train.take_part(step_back=False)
        return 0

    other = forks.forked(take_part)  # it has all loaded: to start anew would take seconds

    def stop(progress: Progress) -> None:
        if progress.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    try:
        with processes.joined():
            with monkeypatch.context() as patched:
                patched.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))  # at every step
                with pytest.raises(KeyboardInterrupt):
                    train.train_lora(base, corpus(36), tmp_path / "run", wanted, progress=stop)
            assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} <= {"checkpoint-3", "checkpoint-4"}
            metrics = train.train_lora(base, corpus(36), tmp_path / "run", wanted, progress=silent, resume=True)
    finally:
        code = forks.ended(other, 60.0)
    assert (said.read_text(), code) == ("", 0)
    assert metrics["steps"] == whole["steps"] > 4
    assert metrics["tokens"] == whole["tokens"]
    assert_same_adapter(tmp_path / "whole", tmp_path / "run")
