"""A job is checked before it runs, says where it is wrong, and leaves a log without text."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from vaultllm import config, pipeline, steps
from vaultllm.errors import ConfigError, DataError, UsageError

REPO = Path(__file__).resolve().parents[1]


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return str(path)


def wrong(tmp_path: Path, text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        pipeline.load(written(tmp_path, text))
    assert caught.value.path == str(tmp_path / "job.yaml")
    return caught.value


@pytest.fixture
def job(tmp_path: Path) -> steps.Job:
    vault = tmp_path / "vault"
    vault.mkdir()
    return steps.Job(config.init_workspace(vault, str(tmp_path / "state")))


def test_every_pipeline_that_we_ship_is_right():
    names = sorted(path.stem for path in (REPO / "pipelines").glob("*.yaml"))
    assert names == ["ask", "micro", "nightly", "watch"]
    plans = {name: pipeline.load(name) for name in names}
    assert [step.name for step in plans["nightly"].steps] == ["ingest", "retrain"]
    assert plans["nightly"].when == "daily 03:30"
    assert plans["micro"].steps[1].options == {"base": "micro"}
    readme = (REPO / "pipelines" / "README.md").read_text(encoding="utf-8")
    for block in re.findall(r"```yaml\n(.*?)```", readme, re.S):
        path = REPO / "pipelines" / "README.md"
        assert pipeline._Checker(path).plan(pipeline.YAML(typ="rt", pure=True).load(block)).steps


def test_options_get_the_types_of_the_steps_parameters(tmp_path):
    text = """\
when: every 6h
steps:
- status
- ingest: {full: true}
- train:
    minutes: 2
    seed: 7
    base: Qwen/Qwen3-0.6B
- train: {minutes: 1.5e+0}
- dataset: {to: alpaca, out: /tmp/x}
- doctor:
"""
    plan = pipeline.load(written(tmp_path, text))
    assert plan.name == "job"
    assert [step.line for step in plan.steps] == [3, 4, 5, 9, 10, 11]
    assert plan.steps[2].options == {"minutes": 2.0, "seed": 7, "base": "Qwen/Qwen3-0.6B"}
    assert plan.steps[4].options == {"to": "alpaca", "out": Path("/tmp/x")}
    shown = pipeline.plan(plan)
    assert shown["when"] == "every 6h"
    assert shown["steps"][4] == {"step": "dataset", "options": {"to": "alpaca", "out": str(Path("/tmp/x"))}}
    json.dumps(shown)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("steps:\n- ingest\n- trian\n", 3, "no step 'trian'. Did you mean 'train'?"),
        ("steps:\n- train:\n    base: micro\n    minuts: 3\n", 4, "no option 'minuts' in step 'train'. Did you mean 'minutes'?"),
        ("stepz: []\n", 1, "no key 'stepz' in a pipeline. Did you mean 'steps'?"),
        ("name: x\n", 1, "'steps' must be a list"),
        ("name: x\nsteps: []\n", 2, "'steps' must be a list"),
        ("name: x\nsteps:\n  ingest: {}\n", 2, "'steps' must be a list"),
        ("steps:\n- ingest:\n  full: true\n", 2, "one step per item"),
        ("steps:\n- ingest: true\n", 2, "must be `option: value` lines"),
        ("steps:\n- ingest: {full: 'yes'}\n", 2, "ingest.full: Input should be a valid boolean"),
        ("steps:\n- ingest: {full: yes}\n", 2, "ingest.full: Input should be a valid boolean"),
        ("steps:\n- train:\n    seed: 1.5\n", 3, "train.seed: Input should be a valid integer"),
        ("steps:\n- train:\n    seed: 12:30\n", 3, "train.seed: Input should be a valid integer"),
        ("steps:\n- train:\n    minutes: 0\n", 3, "train.minutes: Input should be greater than or equal to 0.05"),
        ("steps:\n- train:\n    minutes: -.inf\n", 3, "train.minutes: must be a finite number"),
        ("steps:\n- train:\n    minutes: .nan\n", 3, "train.minutes: must be a finite number"),
        ("steps:\n- train:\n    minutes: 1e-5\n", 3, "train.minutes: Input should be greater than or equal to 0.05"),
        ("steps:\n- dataset: {to: jsn}\n", 2, "dataset.to: Input should be 'jsonl', 'sharegpt' or 'alpaca'"),
        ("steps:\n- search: {query: x, k: 1001}\n", 2, "search.k: Input should be less than or equal to 1000"),
        ("steps:\n- search: {query: [a]}\n", 2, "search.query: an option is one text"),
        ("steps:\n- search: {query: 2024-01-01}\n", 2, "search.query: an option is one text"),
        ("steps:\n- search: {query: 017}\n", 2, "search.query: Input should be a valid string"),
        ("steps:\n- search\n", 2, "step 'search' needs the option 'query'"),
        ("steps:\n- ask: {question: $qestion}\n", 2, "no value '$qestion'. Did you mean 'question'?"),
        ("steps:\n- ask: {job: x, question: y}\n", 2, "no option 'job'"),
        ("when: daily 24:00\nsteps: [ingest]\n", 1, "is not one of"),
        ("name: a\nwhen: 12:30\nsteps: [ingest]\n", 2, "is not one of"),
        ("name: a\nname: b\nsteps: [ingest]\n", 2, "duplicate key"),
        ("steps:\n- train:\n    seed: 1\n    seed: 2\n", 4, "duplicate key"),
        ("name: a\non: save\nsteps: [ingest]\n", 2, "no key 'on'"),
        ("%YAML 1.1\n---\nname: a\non: save\nsteps: [ingest]\n", 4, "is not text"),
        ("steps:\n- 5\n", 2, "a step is a name"),
        ("steps:\n- ingest: [\n", 3, "is not YAML"),
        ("steps:\n\t- ingest\n", 2, "is not YAML"),
        ("steps: [ingest]\n---\nsteps: [ingest]\n", 2, "is not YAML"),
        ("- ingest\n", 1, "has the keys"),
        ("", 1, "has the keys"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path, text, line, said):
    error = wrong(tmp_path, text)
    assert said in error.message
    assert error.line == line


@pytest.mark.parametrize(
    "text",
    [
        'steps: !!python/object/apply:os.system ["touch SENTINEL"]\n',
        'steps:\n- !!python/object/apply:os.system ["touch SENTINEL"]\n',
        'steps:\n- ask: {question: !!python/object/apply:os.system ["touch SENTINEL"]}\n',
        "steps:\n- ask: {question: !!python/name:os.system x}\n",
        "steps:\n- !!python/object/new:os.system [touch SENTINEL]: {}\n",
    ],
)
def test_no_code_runs_from_a_file(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    wrong(tmp_path, text)
    assert not (tmp_path / "SENTINEL").exists()


def test_expressions_stay_text(tmp_path):
    plan = pipeline.load(written(tmp_path, "steps:\n- ask: {question: '$(id) {{7*7}} ${HOME} $question'}\n"))
    assert plan.steps[0].options["question"] == "$(id) {{7*7}} ${HOME} $question"


@pytest.mark.parametrize(
    "text",
    [
        "steps: " + "[" * 20_000,
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\n"
        + "".join(f"{chr(c)}: &{chr(c)} [{','.join(['*' + chr(c - 1)] * 9)}]\n" for c in range(ord("c"), ord("n")))
        + "steps: *m\n",
        "steps: [ingest]\n#" + "x" * 70_000,
        "steps:\n- search: {query: 2024-99-99}\n",
        "\0",
    ],
    ids=["deep", "aliases", "large", "date", "nul"],
)
def test_a_hostile_file_is_an_error_and_not_a_crash(tmp_path, text):
    assert len(wrong(tmp_path, text).message) < 400


def test_a_name_that_does_not_exist_names_the_nearest():
    with pytest.raises(UsageError, match="Did you mean 'nightly'"):
        pipeline.load("nigtly")
    with pytest.raises(UsageError, match="no such pipeline file"):
        pipeline.load("../etc/nightly")


def test_steps_run_in_order_and_their_results_come_back(job, tmp_path, monkeypatch):
    calls: list[Any] = []

    def ingest(job: steps.Job, full: bool = False) -> dict[str, Any]:
        calls.append(("ingest", full))
        return {"seconds": 0.1}

    def ask(job: steps.Job, question: str) -> dict[str, Any]:
        calls.append(("ask", question))
        return {"answer": "тайна", "sources": [{"quote": "тайна"}], "seconds": 0.2, "run": "r1"}

    monkeypatch.setitem(pipeline.STEPS, "ingest", ingest)
    monkeypatch.setitem(pipeline.STEPS, "ask", ask)
    pipeline.options.cache_clear()
    plan = pipeline.load(written(tmp_path, "name: both\nsteps:\n- ingest: {full: true}\n- ask: {question: $question}\n"))
    result = pipeline.run(job, plan, {"question": "где река?"})
    pipeline.options.cache_clear()
    assert calls == [("ingest", True), ("ask", "где река?")]
    assert [(step["step"], step["status"]) for step in result["steps"]] == [("ingest", "done"), ("ask", "done")]
    assert result["steps"][1]["result"]["answer"] == "тайна"
    log = job.workspace.state / "pipelines.log"
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    assert [record["step"] for record in records] == ["ingest", "ask"]
    assert records[1]["result"] == {"sources": 1, "seconds": 0.2, "run": "r1"}
    assert "тайна" not in log.read_text(encoding="utf-8")
    assert "река" not in log.read_text(encoding="utf-8")
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_failing_step_ends_the_job_and_the_log_says_how_far_it_came(job, tmp_path, monkeypatch):
    def fails(job: steps.Job) -> dict[str, Any]:
        raise DataError("nothing to train on: секрет")

    reached = []
    monkeypatch.setitem(pipeline.STEPS, "status", lambda job: {"notes": 3})
    monkeypatch.setitem(pipeline.STEPS, "retrain", fails)
    monkeypatch.setitem(pipeline.STEPS, "doctor", lambda job: reached.append(1))
    pipeline.options.cache_clear()
    plan = pipeline.load(written(tmp_path, "steps: [status, retrain, doctor]\n"))
    with pytest.raises(DataError):
        pipeline.run(job, plan, {})
    pipeline.options.cache_clear()
    text = (job.workspace.state / "pipelines.log").read_text(encoding="utf-8")
    records = [json.loads(line) for line in text.splitlines()]
    assert [(record["step"], record["status"], record["code"]) for record in records] == [
        ("status", "done", ""),
        ("retrain", "failed", "E-DATA"),
    ]
    assert "секрет" not in text
    assert not reached


def test_a_missing_or_unused_question_is_said_before_the_first_step(job, tmp_path, monkeypatch):
    monkeypatch.setitem(pipeline.STEPS, "ingest", lambda job: pytest.fail("it ran"))
    pipeline.options.cache_clear()
    with pytest.raises(UsageError, match="needs --question"):
        pipeline.run(job, pipeline.load(written(tmp_path, "steps:\n- ingest\n- ask: {question: $question}\n")), {})
    with pytest.raises(UsageError, match="no use for --question"):
        pipeline.run(job, pipeline.load(written(tmp_path, "steps: [ingest]\n")), {"question": "x"})
    pipeline.options.cache_clear()


def test_every_step_has_options_that_can_be_checked():
    for name in pipeline.STEPS:
        assert all(adapter is not None for adapter, _ in pipeline.options(name).values())
    assert pipeline.options("ask")["question"][1]
    assert not pipeline.options("train")["minutes"][1]
