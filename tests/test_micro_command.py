"""`vaultllm micro`: what it shows while the model learns, and how it ends."""

from __future__ import annotations

import json
import signal
from pathlib import Path

import pytest

from tests.test_cli import Shell
from vaultllm.models import learning, plan


@pytest.fixture(scope="module")
def vault(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(tmp_path_factory.mktemp("micro"))
    made.here("init", ".")
    made.here("ingest")
    return made


@pytest.fixture
def shell(vault: Shell, monkeypatch: pytest.MonkeyPatch):
    """Models and trainings small enough for a test; Ctrl-C is again what it was."""
    import torch

    tiny = {
        "SHAPES": (plan.Shape(32, 2, 2, 64),),
        "CONTEXT": 64,
        "LONG_CONTEXT": 128,
        "STEP_TOKENS": 512,
        "MIN_STEPS": 20,
        "MAX_EPOCHS": 1.0,
    }
    for name, value in tiny.items():
        monkeypatch.setattr(plan, name, value)
    threads, handler = torch.get_num_threads(), signal.getsignal(signal.SIGINT)
    torch.set_num_threads(1)
    yield vault
    torch.set_num_threads(threads)
    assert signal.getsignal(signal.SIGINT) == handler


def _bases(shell: Shell) -> list[Path]:
    return sorted(shell.state.glob("bases/micro-*"))


def _interrupted(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C while the model writes its sample of this number."""
    asked = iter(range(100))
    plain = learning.write

    def write(*given) -> str:
        if next(asked) == at:
            signal.raise_signal(signal.SIGINT)
        return plain(*given)

    monkeypatch.setattr(learning, "write", write)


def test_samples_are_lines_of_json_and_the_last_line_is_the_result(shell: Shell):
    out, _ = shell.here("--json", "micro", "--minutes", "1", "--seed", "5")
    *samples, result = [json.loads(line) for line in out.splitlines()]
    assert len(samples) >= 8
    assert all(one["event"] == "sample" and one.keys() >= {"step", "done", "loss", "tokens_per_s", "text"} for one in samples)
    assert [one["step"] for one in samples] == sorted(one["step"] for one in samples)
    assert (samples[-1]["step"], samples[-1]["done"]) == (result["steps"], 1.0)
    assert (result["seed"], result["stopped"]) == (5, False)
    assert _bases(shell) == [Path(result["base"])]


def test_a_person_reads_samples_beside_the_result(shell: Shell):
    out, err = shell.here("micro", "--minutes", "1")
    assert "── step" in err
    assert "tokens/s" in err
    assert "── step" not in out
    assert out.startswith("micro model ")


def test_ctrl_c_ends_the_training_and_keeps_the_model(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    _interrupted(monkeypatch, 4)
    before = _bases(shell)
    result = json.loads(shell.here("--json", "micro", "--minutes", "1")[0].splitlines()[-1])
    assert result["stopped"]
    assert result["steps"] < 15
    assert result["last_lr_factor"] < 0.6
    assert len(_bases(shell)) == len(before) + 1


def test_ctrl_c_at_the_beginning_keeps_nothing(shell: Shell, monkeypatch: pytest.MonkeyPatch):
    _interrupted(monkeypatch, 0)
    before = _bases(shell)
    shell.here("micro", "--minutes", "1", code=130)
    assert _bases(shell) == before
