"""The schedules hold any path, and the systems they are for can read them."""

from __future__ import annotations

import os
import plistlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vaultllm import schedule
from vaultllm.errors import UsageError

NAME = 'Мой «vault» 100% o\'clock "q" $HOME $(id) a\\b &<x>'
REPO = Path(__file__).resolve().parents[1]


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    vault, state = tmp_path / NAME / "vault", tmp_path / NAME / "state"
    vault.mkdir(parents=True)
    state.mkdir()
    return vault, state


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An executable called vaultllm that writes its arguments, one a line, and counts as the running one."""
    program = tmp_path / "bin dir" / "vaultllm"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(program), "schedule", "print"])
    return program


def test_the_cron_line_runs_with_the_arguments_that_were_meant(places, tmp_path, monkeypatch):
    vault, state = places
    pretend(tmp_path, monkeypatch)
    text = schedule.render("cron", vault, state, "3:05")
    (line,) = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert line.startswith("5 3 * * * ")
    command = line.split(" ", 5)[5]
    assert not re.search(r"(?<!\\)%", command)  # cron would cut the command here
    command = command.replace(r"\%", "%")  # as cron does
    subprocess.run(["/bin/sh", "-c", command], check=True, env={"PATH": "/usr/bin:/bin", "HOME": "/"}, cwd="/")
    written = (state / "retrain.log").read_text(encoding="utf-8").splitlines()
    assert written == ["--vault", str(vault), "--state", str(state), "--json", "retrain"]


def sections(text: str) -> dict[str, str]:
    parts = re.split(r"^# ---- (\S+)\n", text, flags=re.M)
    return {Path(name).name: body for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def test_systemd_accepts_the_units(places, tmp_path, monkeypatch):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    pretend(tmp_path, monkeypatch)
    files = sections(schedule.render("systemd", *places, "03:30"))
    assert len(files) == 3
    for name, body in files.items():
        (tmp_path / name).write_text(body, encoding="utf-8")
    timer = next(name for name in files if name.endswith(".timer"))
    watch = next(name for name in files if "-watch-" in name)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([analyze, "verify", "--user", timer, watch], cwd=tmp_path, env=environment, capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "vaultllm" in line]
    assert not complaints
    calendar = re.search(r"OnCalendar=(.*)", files[timer])
    assert calendar is not None
    assert "03:30:00" in subprocess.run([analyze, "calendar", calendar[1]], check=True, capture_output=True, text=True).stdout


def unquoted(start: str) -> list[str]:
    """ExecStart= as systemd.syntax(7) reads quoted words, specifiers and variables."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', start)
    return [re.sub(r"\\(.)", r"\1", quoted or bare).replace("%%", "%").replace("$$", "$") for quoted, bare in words]


def test_systemd_gets_every_argument_whole(places, tmp_path, monkeypatch):
    vault, state = places
    program = pretend(tmp_path, monkeypatch)
    files = sections(schedule.render("systemd", vault, state, "03:30"))
    for verb in ("retrain", "watch"):
        service = next(body for name, body in files.items() if f"-{verb}-" in name and name.endswith(".service"))
        start = re.search(r"^ExecStart=(.*)$", service, re.M)
        assert start is not None
        assert unquoted(start[1]) == [str(program), "--vault", str(vault), "--state", str(state), "--json", verb]
        assert not re.search(r"(?<!%)%(?!%)", start[1].replace("%%", ""))


def test_launchd_gets_two_agents_that_a_plist_reader_understands(places, tmp_path, monkeypatch):
    vault, state = places
    program = pretend(tmp_path, monkeypatch)
    text = schedule.render("launchd", vault, state, "23:05")
    retrain, watch = (plistlib.loads(part.encode()) for part in re.split(r"(?=<\?xml)", text) if part)
    assert retrain["ProgramArguments"] == [str(program), "--vault", str(vault), "--state", str(state), "--json", "retrain"]
    assert retrain["StartCalendarInterval"] == {"Hour": 23, "Minute": 5}
    assert retrain["StandardOutPath"] == str(state / "retrain.log")
    assert watch["ProgramArguments"][-1] == "watch"
    assert watch["KeepAlive"] == {"SuccessfulExit": False}
    assert f"{watch['Label']}.plist" in text


def test_a_program_that_is_not_called_vaultllm_is_started_as_a_module(monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(REPO / "vaultllm" / "cli.py")])
    assert schedule.program() == [sys.executable, "-m", "vaultllm.cli"]
    done = subprocess.run([*schedule.program(), "--version"], cwd=REPO, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("vaultllm ")


def test_a_program_found_by_its_bare_name_becomes_absolute(tmp_path, monkeypatch):
    program = pretend(tmp_path, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["vaultllm"])
    monkeypatch.setenv("PATH", str(program.parent))
    assert schedule.program() == [str(program)]


def test_two_vaults_have_different_units(places, tmp_path):
    vault, state = places
    one, other = (set(sections(schedule.render("systemd", path, state, "03:30"))) for path in (vault, tmp_path))
    assert not one & other


@pytest.mark.parametrize("at", ["24:00", "3:60", "noon", "03:30:00", "-1:00", "03:30\n"])
def test_a_time_that_is_none_is_refused(places, at):
    with pytest.raises(UsageError, match="HH:MM"):
        schedule.render("cron", *places, at)


def test_an_unknown_kind_names_the_nearest(places):
    with pytest.raises(UsageError, match="Did you mean 'systemd'"):
        schedule.render("sytemd", *places, "03:30")


@pytest.mark.parametrize("kind", ["cron", "systemd", "launchd"])
def test_a_path_with_a_line_break_is_refused(tmp_path, kind):
    with pytest.raises(UsageError, match="rename the folder"):
        schedule.render(kind, tmp_path / "a\n* * * * * id", tmp_path, "03:30")
