"""When a night may train: on mains, while others leave room; what it had to leave it goes on with."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.stored import write_rivers
from vaultllm import config, dataset, loop, power, registry, steps, training, training_views
from vaultllm.schema import Progress, silent


def supply(root: Path, name: str, **values: str) -> None:
    (root / name).mkdir(parents=True)
    for key, value in values.items():
        (root / name / key).write_text(value + "\n")


@pytest.mark.parametrize(
    ("supplies", "expected"),
    [
        ({}, False),  # a desktop
        ({"BAT0": {"type": "Battery", "status": "Discharging"}, "AC": {"type": "Mains", "online": "0"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Charging"}, "AC": {"type": "Mains", "online": "1"}}, False),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}, "AC": {"type": "Mains", "online": "1"}}, False),  # a weak charger
        ({"BAT0": {"type": "Battery", "status": "Unknown"}, "AC": {"type": "Mains", "online": "0"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}, "usb": {"type": "USB", "online": "0"}}, True),
        ({"BAT0": {"type": "Battery", "status": "Discharging"}, "usb": {"type": "USB", "online": "1"}}, False),
        ({"BAT0": {"type": "Battery", "status": "Full"}}, False),
        ({"BAT0": {"type": "Battery", "status": "Full"}, "BAT1": {"type": "Battery", "status": "Discharging"}}, True),
        ({"hidpp_battery_0": {"type": "Battery", "scope": "Device", "status": "Discharging"}}, False),  # a mouse
        ({"BAT0": {}, "AC": {"type": "Mains"}}, False),  # a driver that says nothing
    ],
)
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="what Linux says")
def test_what_feeds_the_computer(tmp_path: Path, supplies: dict[str, dict[str, str]], expected: bool):
    for name, values in supplies.items():
        supply(tmp_path, name, **values)
    assert power.on_battery(tmp_path) is expected
    assert power.on_battery(tmp_path / "absent") is False


class Machine:
    """A machine whose load is averaged as Linux does it: `own` busy threads of ours, `others` of others."""

    def __init__(self, own: int, others: float, share: float = 1.0) -> None:
        self.now, self.own, self.others, self.average = 0.0, own, others, others
        self.spent = dict.fromkeys(range(own + 3), 0.0)  # three of ours only wait
        self.share = share
        self.watch = power.Others(lambda: self.now, lambda: self.average, lambda: dict(self.spent))

    def go(self, seconds: float) -> float:
        fades = math.exp(-seconds / 60.0)
        self.average = self.average * fades + (self.own + self.others) * (1 - fades)
        self.now += seconds
        for thread in range(self.own):
            self.spent[thread] += seconds * self.share
        return self.watch.per_core() * (os.cpu_count() or 1)


@pytest.mark.parametrize("share", [1.0, 0.1])  # ten to one against those who stepped back: they still want a core
@pytest.mark.parametrize(("own", "others"), [(4, 0.0), (4, 1.5), (1, 3.0), (0, 2.0)])
def test_what_a_training_adds_to_the_load_is_not_held_against_it(own: int, others: float, share: float):
    machine = Machine(own, others, share)
    for seconds in (1.0, 29.0, 30.0, 30.0, 300.0):
        assert machine.go(seconds) == pytest.approx(others, abs=1e-9)
    machine.own = 0  # it pauses: the load fades, and so does what is subtracted
    assert machine.go(30.0) == pytest.approx(others, abs=1e-9)


def test_threads_that_come_and_go_are_counted_while_they_work():
    machine = Machine(2, 1.0)
    machine.spent[99] = 0.0
    machine.go(30.0)
    del machine.spent[1]
    machine.own = 1
    assert machine.go(600.0) == pytest.approx(1.0, abs=1e-3)


def test_a_busy_process_sees_its_own_threads():
    watch = power.Others(load=lambda: 1.0)
    end = watch.clock() + 0.4
    while watch.clock() < end:
        sum(range(1000))
    watch.per_core()
    assert watch.own > 0
    idle = power.Others(load=lambda: 1.0, threads=lambda: {1: 5.0})
    idle.looked -= 60.0
    idle.per_core()
    assert idle.own == 0


def test_the_settings_decide_what_is_asked():
    class Busy(power.Others):
        def per_core(self) -> float:
            return 0.6

    def never() -> bool:
        raise AssertionError("nobody wants to know")

    others = Busy(load=lambda: 0.0, threads=dict)
    assert power.asked(True, 0.0, lambda: False, others)() is None
    assert power.asked(False, 0.7, never, others)() is None
    busy = power.asked(False, 0.5, never, others)()
    assert busy is not None
    assert busy.status == "busy"
    assert "60%" in busy.reason
    assert "50%" in busy.reason
    assert "train.max_load" in busy.reason
    battery = power.asked(True, 0.5, lambda: True, others)()
    assert battery is not None
    assert (battery.status, "train.only_on_ac" in battery.reason) == ("on battery", True)


@pytest.mark.skipif(sys.platform == "win32", reason="no nice there")
def test_stepping_back_reaches_every_thread_and_is_not_added_to_what_cron_did():
    code = (
        "import os, threading, time\nfrom vaultllm import power\n"
        "thread = threading.Thread(target=time.sleep, args=(0.5,))\nthread.start()\nos.nice(4)\n"
        "power.step_back(0)\nassert os.nice(0) == 4\n"
        "power.step_back(7)\nassert os.nice(0) == 7\n"
        "power.step_back(3)\nassert os.nice(0) == 7\n"
        "print(*sorted({os.getpriority(os.PRIO_PROCESS, int(one)) for one in os.listdir('/proc/self/task')}"
        " if os.path.isdir('/proc/self/task') else {7}))\n"
    )
    start = os.nice(0)
    if start > 4:
        pytest.skip("somebody else made these tests step back already")
    done = subprocess.run([sys.executable, "-c", code.replace("os.nice(4)", f"os.nice({4 - start})")], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "7"), done.stderr


# -- a retraining that has to wait


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    vault = tmp_path / "vault"
    vault.mkdir()
    write_rivers(vault, 24, 12)
    made = config.init_workspace(vault, str(tmp_path / "state"), str(models.build(tmp_path / "base", "llama")))
    settings = made.settings.train.model_copy(update={"min_new": 1, "val": 0.3, "max_tokens": 128, "epochs": 2.0})
    found = steps.Job(config.Workspace(made.vault, made.state, made.settings.model_copy(update={"train": settings})))
    monkeypatch.setattr(power, "step_back", lambda nice: None)  # the tests after this one shall not be slow
    monkeypatch.setattr(training, "_scorecard", lambda *args: {})  # measured elsewhere
    monkeypatch.setattr(training, "_proven", lambda metrics, limit, promoted, reason: (promoted, reason))
    yield found
    found.close()


def on_battery_from(ask: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    asked: list[int] = []

    def battery() -> bool:
        asked.append(len(asked) + 1)
        return len(asked) >= ask

    monkeypatch.setattr(power, "on_battery", battery)
    monkeypatch.setattr(loop, "ASK_SECONDS", 0.0)
    return asked


def test_on_battery_nothing_is_begun(job: steps.Job, monkeypatch: pytest.MonkeyPatch):
    on_battery_from(1, monkeypatch)
    result = steps.retrain(job, report=False)
    assert result == {
        "status": "on battery",
        "reason": "the battery feeds this machine; training waits for mains power (train.only_on_ac)",
        "run": None,
        "step": None,
        "new_scenes": 24,
    }
    assert not job.ledger.runs()
    assert json.loads(json.dumps(result)) == result
    assert str(training_views.train(result)).startswith("on battery: the battery feeds")
    train = job.workspace.settings.train.model_copy(update={"min_new": 500})
    job.workspace = config.Workspace(job.workspace.vault, job.workspace.state, job.workspace.settings.model_copy(update={"train": train}))
    assert steps.retrain(job, report=False)["status"] == "nothing new"  # which is so whatever feeds the machine


def test_a_night_that_is_cut_short_goes_on_though_the_vault_has_changed(job: steps.Job, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as night:
        asked = on_battery_from(4, night)
        result = steps.retrain(job, report=False)
    assert asked == [1, 2, 3, 4]  # before it began, and after each step until it had to stop
    assert (result["status"], result["step"], result["new_scenes"]) == ("on battery", 3, 24)
    assert f"run {result['run']} goes on at step 3" in str(training_views.train(result))
    run = job.ledger.runs()[-1]
    assert (run.id, run.status) == (result["run"], "interrupted")
    assert "goes on at step 3" in run.reason
    folder = job.workspace.runs / run.id
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["checkpoint-3"]
    assert not (folder / "adapter").exists()

    with monkeypatch.context() as night:  # still on battery: nothing is lost
        on_battery_from(1, night)
        again = steps.retrain(job, report=False)
        assert (again["status"], again["run"], again["step"]) == ("on battery", run.id, None)
    (job.workspace.vault / "Новая.md").write_text("# Новая\n\n" + "Ночью выпал первый снег, и насос замёрз. " * 8, encoding="utf-8")
    seen: list[int] = []
    monkeypatch.setattr(power, "on_battery", lambda: False)
    monkeypatch.setattr(loop.Job, "speak", lambda job, step: job.progress(Progress("LoRA", 0.5, step)))
    job.progress = lambda one: seen.append(one.step or 0) if one.phase == "LoRA" else None
    done = steps.retrain(job, report=False)
    assert (done["status"], done["run"]) == ("done", run.id)
    assert min(seen) >= 3
    assert [one.id for one in job.ledger.runs()] == [run.id]
    assert registry.new_scenes(job.workspace, job.ledger) == 1  # the night after learns what came since
    assert training.unfinished(job.workspace, job.ledger, job.workspace.settings.train) is None

    data, train = dataset.read(job.workspace.datasets / run.dataset), job.workspace.settings.train
    whole = training.train(job.workspace, job.ledger, data, train, silent, resume=False, fresh=False, gate=False)  # in one go
    assert whole["metrics"]["adapter_sha256"] == done["metrics"]["adapter_sha256"]
    assert whole["metrics"]["tokens"] == done["metrics"]["tokens"]


def test_what_may_no_longer_be_learnt_or_is_to_be_learnt_otherwise_is_begun_anew(job: steps.Job, monkeypatch: pytest.MonkeyPatch):
    with monkeypatch.context() as night:
        on_battery_from(3, night)
        stopped = steps.retrain(job, report=False)["run"]
    train = job.workspace.settings.train
    known = training.unfinished(job.workspace, job.ledger, train)
    assert known is not None
    assert known[0] == stopped
    for same in ({"minutes": 3.0}, {"nice": 0}, {"max_load": 0.5}, {"keep": 2}):
        assert training.unfinished(job.workspace, job.ledger, train.model_copy(update=same)) is not None
    for other in ({"rank": 4}, {"seed": 3}, {"base": "micro"}, {"learn": "user"}, {"epochs": 9.0}):
        assert training.unfinished(job.workspace, job.ledger, train.model_copy(update=other)) is None
    learnt = job.workspace.vault / next(one.path for one in known[1].split("train"))
    text = learnt.read_text(encoding="utf-8")
    learnt.write_text("---\nprivate: true\n---\n" + text, encoding="utf-8")
    steps.ingest(job)
    assert training.unfinished(job.workspace, job.ledger, train) is None
    learnt.unlink()
    steps.ingest(job)
    assert training.unfinished(job.workspace, job.ledger, train) is None
    monkeypatch.setattr(power, "on_battery", lambda: False)
    done = steps.retrain(job, report=False)
    assert (done["status"], done["run"] != stopped) == ("done", True)
