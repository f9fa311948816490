"""The command line as a stranger uses it: real processes, one clear line for each mistake, exit codes, Ctrl-C, full pipes."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.stored import write_rivers
from tests.test_ingest import make_vault
from vaultllm import cli, terminal


class Shell:
    """Runs `vaultllm` on one vault."""

    def __init__(self, root: Path) -> None:
        self.vault = make_vault(root)
        self.state = root / "state"
        self.environment = os.environ | {"VAULTLLM_STATE": str(self.state), "LANG": "C", "LC_ALL": "C"}
        self.environment.pop("VAULTLLM_VAULT", None)

    def start(self, *arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "vaultllm.cli", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, "encoding": "utf-8"}
        folder = Path(__file__).resolve().parents[1]
        environment = self.environment | {"PYTHONPATH": str(folder)}
        return subprocess.Popen(command, cwd=self.vault, env=environment, **(pipes | options))

    def run(self, *arguments: str, code: int = 0, **options: Any) -> tuple[str, str]:
        with self.start(*arguments, **options) as process:
            out, err = process.communicate(timeout=100)
        assert process.returncode == code, f"{arguments}: {process.returncode}\n{out}\n{err}"
        return out, err

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run("--json", *arguments)[0])

    def here(self, *arguments: str, code: int = 0) -> tuple[str, str]:
        """As `run`, in this process: for what a process of its own tells nothing more about."""
        out, err, before = io.StringIO(), io.StringIO(), dataclasses.replace(terminal.GLOBALS)
        umask, on_term = os.umask(0o077), signal.getsignal(signal.SIGTERM)
        try:
            with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                patch.chdir(self.vault)
                patch.setenv("VAULTLLM_STATE", str(self.state))
                with pytest.raises(SystemExit) as ended:
                    cli.main(list(arguments))
        finally:
            os.umask(umask)
            signal.signal(signal.SIGTERM, on_term)
            vars(terminal.GLOBALS).update(vars(before))
        assert ended.value.code == code, f"{arguments}: {ended.value.code}\n{out.getvalue()}\n{err.getvalue()}"
        return out.getvalue(), err.getvalue()

    def json_here(self, *arguments: str) -> Any:
        return json.loads(self.here("--json", *arguments)[0])


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    made = Shell(tmp_path_factory.mktemp("a b"))
    made.run("init", ".")
    made.run("ingest")
    return made


def test_the_contract_of_ingest_search_and_status_in_json(shell: Shell) -> None:
    ingest = shell.json("ingest")
    assert ingest["notes"].keys() >= {"seen", "parsed", "unchanged", "removed", "failed"}
    assert ingest["scenes"].keys() >= {"added", "changed", "removed", "total"}
    # the options of every command may stand after it
    hit = json.loads(shell.run("search", "--json", "-k", "3", "датчик влажности")[0])["hits"][0]
    assert hit.keys() >= {"scene", "path", "lines", "uids", "text", "score", "why"}
    assert hit["path"] == "Чаты/датчик.md"
    assert set(hit["uids"]) == {"u1", "a1"}
    assert shell.json_here("status").keys() >= {"notes", "scenes", "memory", "dataset", "current", "problems"}
    assert shell.json_here("dataset").keys() >= {"id", "counts", "dropped", "tokens"}
    assert shell.json_here("runs") == {"runs": [], "current": None, "descent": []}


def test_queries_from_standard_input_give_one_document_each(shell: Shell) -> None:
    with shell.start("--json", "search", "-", "-k", "1", stdin=subprocess.PIPE) as process:
        out, _ = process.communicate("вода в колодце\n\nдатчик\n", timeout=60)
    assert [json.loads(line)["query"] for line in out.splitlines()] == ["вода в колодце", "датчик"]


def test_scenes_are_yaml_for_people_and_lines_of_json_for_programs(shell: Shell) -> None:
    assert shell.here("scenes", "Чаты/датчик.md")[0].startswith("schema: 1\nnote: Чаты/датчик.md\n")
    lines = shell.here("--json", "scenes")[0].splitlines()
    assert len(lines) == 7
    assert json.loads(lines[0])["turns"]


def test_cyrillic_is_printed_even_where_the_locale_knows_none(shell: Shell) -> None:
    assert "Контакты окислились" in shell.run("search", "окислились")[0]


@pytest.mark.parametrize(
    ("arguments", "code", "parts"),
    [
        (["--vault", "/no/such/vault", "ingest"], 3, ["E-VAULT", "/no/such/vault", "does not exist"]),
        (["serch", "x"], 2, ["E-USAGE", "serch"]),
        (["search"], 2, ["E-USAGE", "query"]),
        (["search", "x", "-k", "many"], 2, ["E-USAGE", "integer"]),
        (["ingest", "--fulll"], 2, ["E-USAGE", "--fulll"]),
        (["scenes", "нет такой.md"], 3, ["E-DATA", "нет такой.md", "not known"]),
        (["promote", "20990101"], 2, ["E-USAGE", "there is no run"]),
        (["rollback"], 2, ["E-USAGE", "nothing to roll back"]),
        (["ask", "  "], 2, ["E-USAGE", "empty"]),
        (["--vault", "~no-such-user", "status"], 3, ["E-VAULT", "~no-such-user", "does not exist"]),
        (["scenes", "~$x.md"], 3, ["E-DATA", "not known"]),
        (["dataset", "--out", "export"], 2, ["E-USAGE", "lies in the vault"]),
        (["dataset", "--out", "/dev/null/x"], 2, ["E-USAGE", "/dev/null/x", "cannot be written"]),
        (["schedule", "print", "--kind", "crom"], 2, ["E-USAGE", "Did you mean 'cron'"]),
        (["run", "nigthly"], 2, ["Did you mean 'nightly'"]),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(shell: Shell, arguments: list[str], code: int, parts: list[str]) -> None:
    run = shell.run if arguments[0] == "serch" else shell.here  # one in a process of its own
    out, err = run(*arguments, code=code)
    assert out == ""
    (line,) = [line for line in err.splitlines() if not line.startswith("…")]
    assert line.startswith("vaultllm: ")
    for part in parts:
        assert part in line


def test_a_pipeline_with_an_unknown_option_names_its_line(shell: Shell, tmp_path: Path) -> None:
    job = tmp_path / "nightly.yaml"
    job.write_text("name: nightly\nwhen: manual\nsteps:\n- ingest\n- train:\n    minuts: 3\n", encoding="utf-8")
    _, err = shell.here("run", str(job), code=3)
    assert f"{job}:6" in err
    assert "Did you mean 'minutes'" in err


def test_models_that_cannot_be_trained_are_refused_in_one_line(shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    _, err = shell.here("train", "--base", str(tmp_path / "empty"), "--minutes", "0.1", code=3)
    assert "E-MODEL" in err
    assert "config.json" in err
    (tmp_path / "bert").mkdir()
    config = {"model_type": "bert", "architectures": ["BertModel"]}
    (tmp_path / "bert" / "config.json").write_text(json.dumps(config), encoding="utf-8")
    _, err = shell.here("train", "--base", str(tmp_path / "bert"), "--minutes", "0.1", code=3)
    assert "E-MODEL" in err
    assert "Traceback" not in err


def test_a_reader_that_leaves_early_is_no_error(shell: Shell) -> None:
    with shell.start("--json", "scenes") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.stdout.close()
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (0, "")


def test_a_second_writer_waits_or_names_the_first(shell: Shell) -> None:
    from filelock import FileLock

    with FileLock(shell.state / "train.lock"):
        (shell.state / "train.pid").write_text(f"{os.getpid()} vaultllm train\n", encoding="utf-8")
        _, err = shell.here("retrain", code=75)
    assert f"vaultllm train (pid {os.getpid()})" in err


def test_retrain_has_nothing_to_do_when_little_is_new(shell: Shell) -> None:
    assert shell.json_here("retrain", "--min-new", "500")["status"] == "nothing new"


def test_training_survives_ctrl_c_and_the_same_command_goes_on(tmp_path: Path) -> None:
    shell = Shell(tmp_path)
    write_rivers(shell.vault, 30, 12)
    base = models.build(tmp_path / "base", "llama")
    shell.here("init", ".")
    shell.here("ingest")
    command = ("train", "--base", str(base), "--minutes", "0.1", "--no-report")
    with shell.start(*command) as process:
        deadline = time.monotonic() + 60
        while not list(shell.state.glob("runs/*/metrics.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "vaultllm: stopped; the same command goes on from here"
    (run,) = shell.json_here("runs")["runs"]
    assert run["status"] == "interrupted"
    result = shell.json_here(*command)
    assert (result["run"], result["status"]) == (run["id"], "done")
    assert result["metrics"]["bpb_after"] < result["metrics"]["bpb_before"]
    assert shell.json_here("status")["current"] == run["id"]
    tokens = shell.json_here("dataset")["tokens"]
    assert tokens["train_learnt"] > 1000
    assert tokens["val_learnt"] > 0
    # a worse adapter could not have come this far; and one command takes it back
    assert shell.json_here("rollback") == {"current": None, "before": run["id"]}
    assert shell.json_here("promote", run["id"])["current"] == run["id"]
    answer = shell.json_here("ask", "На сколько поднялась вода в реке?")
    assert answer["run"] == run["id"]
    assert answer["sources"]
    assert (shell.vault / answer["note"]).is_file()


def test_global_options_are_moved_to_the_front_up_to_the_double_dash() -> None:
    move = cli._globals_first
    assert move(["search", "-k", "3", "--json", "x"]) == ["--json", "search", "-k", "3", "x"]
    assert move(["ask", "x", "--vault", "a b"]) == ["--vault", "a b", "ask", "x"]
    assert move(["ask", "x", "--vault=a b", "-q"]) == ["--vault=a b", "-q", "ask", "x"]
    assert move(["ask", "--", "--json"]) == ["ask", "--", "--json"]


def test_every_command_has_help(shell: Shell) -> None:
    import typer

    commands = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    readme = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
    for name, command in commands.items():
        assert command.help, name
        assert f"`{name}" in readme, f"{name} is not in the README's table"


def test_an_error_of_ours_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def broken(**_: Any) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "parser", lambda: broken)
    with pytest.raises(SystemExit) as ended, contextlib.ExitStack():
        cli.main(["status"])
    assert ended.value.code == 1
    assert capsys.readouterr().err.startswith("vaultllm: E-INTERNAL RuntimeError: boom; this is our bug")


def test_an_answer_has_the_rights_of_the_users_other_notes_and_the_state_is_private(shell: Shell) -> None:
    note = json.loads(shell.run("--json", "ask", "датчик", umask=0o022)[0])["note"]
    assert (shell.vault / note).stat().st_mode & 0o777 == 0o644
    assert (shell.vault / note).parent.stat().st_mode & 0o777 == 0o755
    assert not [path for path in shell.state.rglob("*") if path.stat().st_mode & 0o077]


def test_a_closed_pipe_is_no_error_however_little_is_written(shell: Shell) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with shell.start("status", stdout=writer) as process:
        os.close(writer)
        _, err = process.communicate(timeout=100)
    assert (process.returncode, err) == (0, "")
