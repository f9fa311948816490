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
from vaultllm.errors import DataError, UsageError

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
    text = crontab(vault, state, "3:05")
    line, watching = [line for line in text.splitlines() if line and not line.startswith("#")]
    assert watching.startswith("@reboot ")
    assert line.startswith("5 3 * * * ")
    command = line.split(" ", 5)[5]
    assert not re.search(r"(?<!\\)%", command)  # cron would cut the command here
    command = command.replace(r"\%", "%")  # as cron does
    subprocess.run(["/bin/sh", "-c", command], check=True, env={"PATH": "/usr/bin:/bin", "HOME": "/"}, cwd="/")
    written = (state / "retrain.log").read_text(encoding="utf-8").splitlines()
    assert written == ["--vault", str(vault), "--state", str(state), "--json", "retrain"]


def files(kind: str, vault: Path, state: Path, at: str = "03:30") -> dict[str, str]:
    return {path.name: content for path, content in schedule.plan(kind, vault, state, at).files}


def crontab(vault: Path, state: Path, at: str) -> str:
    return schedule.plan("cron", vault, state, at).crontab


def test_systemd_accepts_the_units(places, tmp_path, monkeypatch):
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not here")
    pretend(tmp_path, monkeypatch)
    units = files("systemd", *places)
    assert len(units) == 3
    for name, body in units.items():
        (tmp_path / name).write_text(body, encoding="utf-8")
    timer = next(name for name in units if name.endswith(".timer"))
    watch = next(name for name in units if "-watch-" in name)
    environment = {**os.environ, "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run([analyze, "verify", "--user", timer, watch], cwd=tmp_path, env=environment, capture_output=True, text=True)
    complaints = [line for line in done.stderr.splitlines() if "vaultllm" in line]
    assert not complaints
    calendar = re.search(r"OnCalendar=(.*)", units[timer])
    assert calendar is not None
    assert "03:30:00" in subprocess.run([analyze, "calendar", calendar[1]], check=True, capture_output=True, text=True).stdout


def unquoted(start: str) -> list[str]:
    """ExecStart= as systemd.syntax(7) reads quoted words, specifiers and variables."""
    words = re.findall(r'"((?:[^"\\]|\\.)*)"|(\S+)', start)
    return [re.sub(r"\\(.)", r"\1", quoted or bare).replace("%%", "%").replace("$$", "$") for quoted, bare in words]


def test_systemd_gets_every_argument_whole(places, tmp_path, monkeypatch):
    vault, state = places
    program = pretend(tmp_path, monkeypatch)
    units = files("systemd", vault, state)
    for verb in ("retrain", "watch"):
        service = next(body for name, body in units.items() if f"-{verb}-" in name and name.endswith(".service"))
        start = re.search(r"^ExecStart=(.*)$", service, re.M)
        assert start is not None
        assert unquoted(start[1]) == [str(program), "--vault", str(vault), "--state", str(state), "--json", verb]
        assert not re.search(r"(?<!%)%(?!%)", start[1].replace("%%", ""))


def test_launchd_gets_two_agents_that_a_plist_reader_understands(places, tmp_path, monkeypatch):
    vault, state = places
    program = pretend(tmp_path, monkeypatch)
    agents = files("launchd", vault, state, "23:05")
    retrain, watch = (plistlib.loads(text.encode()) for text in agents.values())
    assert retrain["ProgramArguments"] == [str(program), "--vault", str(vault), "--state", str(state), "--json", "retrain"]
    assert retrain["StartCalendarInterval"] == {"Hour": 23, "Minute": 5}
    assert retrain["StandardOutPath"] == str(state / "retrain.log")
    assert watch["ProgramArguments"][-1] == "watch"
    assert watch["KeepAlive"] == {"SuccessfulExit": False}
    assert f"{watch['Label']}.plist" in agents


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
    one, other = (set(files("systemd", path, state)) for path in (vault, tmp_path))
    assert not one & other


@pytest.mark.parametrize("at", ["24:00", "3:60", "noon", "03:30:00", "-1:00", "03:30\n"])
def test_a_time_that_is_none_is_refused(places, at):
    with pytest.raises(UsageError, match="HH:MM"):
        crontab(*places, at)


def test_an_unknown_kind_names_the_nearest(places):
    with pytest.raises(UsageError, match="Did you mean 'systemd'"):
        schedule.plan("sytemd", *places, "03:30")


@pytest.mark.parametrize("kind", ["cron", "systemd", "launchd"])
def test_a_path_with_a_line_break_is_refused(tmp_path, kind):
    with pytest.raises(UsageError, match="rename the folder"):
        schedule.plan(kind, tmp_path / "a\n* * * * * id", tmp_path, "03:30")


# -- put in place, and taken away


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home of our own, with a `systemctl` and a `launchctl` that write down how they were called, and a crontab in a file."""
    folder = tmp_path / "home"
    programs = folder / "bin"
    programs.mkdir(parents=True)
    (programs / "systemctl").write_text('#!/bin/sh\necho "$(basename "$0") $@" >> "$HOME/called"\nexit "$(cat "$HOME/code" || echo 0)"\n')
    (programs / "launchctl").write_text((programs / "systemctl").read_text())
    (programs / "crontab").write_text(
        '#!/bin/sh\nif [ "$1" = -l ]; then [ -f "$HOME/tab" ] && cat "$HOME/tab" || { echo "no crontab for you" >&2; exit 1; }\n'
        'else cat > "$HOME/tab"; fi\n'
    )
    for program in programs.iterdir():
        program.chmod(0o755)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setenv("PATH", f"{programs}:/usr/bin:/bin")
    return folder


def everything(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["systemd", "launchd"])
def test_what_is_installed_is_what_was_shown_and_uninstalling_removes_exactly_that(places, home, kind):
    before = everything(home)
    wanted = schedule.plan(kind, *places, "03:30")
    for path, _ in wanted.files:
        path.parent.mkdir(parents=True, exist_ok=True)
    stranger = wanted.files[0][0].with_name("stranger.service")
    stranger.write_text("mine", encoding="utf-8")
    text = schedule.shown(wanted)
    schedule.install(wanted)
    for path, content in wanted.files:
        assert path.read_text(encoding="utf-8") == content
        assert path.stat().st_mode & 0o777 == 0o600
        assert content in text
        assert f"# ---- {path}\n" in text
    first = everything(home)
    schedule.install(schedule.plan(kind, *places, "04:00"))  # at another time: in place of the first
    assert everything(home).keys() == first.keys()
    called = (home / "called").read_text(encoding="utf-8").splitlines()
    assert any("enable --now vaultllm-retrain" in line or "bootstrap" in line for line in called)
    schedule.uninstall(wanted)
    left = everything(home)
    assert left.pop("called").splitlines()[len(called) :]
    assert left == before | {str(stranger.relative_to(home)): "mine"}
    assert schedule.uninstall(wanted) == []


@pytest.mark.parametrize("kind", ["systemd", "launchd"])
def test_a_file_that_is_not_ours_or_was_edited_stays(places, home, kind):
    wanted = schedule.plan(kind, *places, "03:30")
    path = wanted.files[1][0]
    path.parent.mkdir(parents=True)
    path.write_text("[Unit]\n", encoding="utf-8")
    with pytest.raises(DataError, match="move it away"):
        schedule.install(wanted)
    assert everything(home).keys() == {"bin/systemctl", "bin/launchctl", "bin/crontab", str(path.relative_to(home))}
    path.unlink()
    schedule.install(wanted)
    path.write_text(path.read_text(encoding="utf-8").replace("vaultllm", "vaultllm "), encoding="utf-8")
    there = everything(home)
    with pytest.raises(DataError, match="edited since"):
        schedule.uninstall(wanted)
    assert everything(home) == there


def test_a_command_that_fails_says_what_is_in_place_and_the_way_back(places, home):
    (home / "code").write_text("1", encoding="utf-8")
    wanted = schedule.plan("systemd", *places, "03:30")
    with pytest.raises(DataError, match="schedule uninstall"):
        schedule.install(wanted)
    assert all(path.exists() for path, _ in wanted.files)
    schedule.uninstall(wanted)
    assert not any(path.exists() for path, _ in wanted.files)


@pytest.mark.parametrize("mine", [None, "", "0 1 * * * echo 'мой'\n", "# no newline at the end"])
def test_the_lines_of_a_crontab_that_are_not_ours_stay_byte_for_byte(places, home, mine):
    if mine is not None:
        (home / "tab").write_text(mine, encoding="utf-8")
    wanted = schedule.plan("cron", *places, "03:30")
    other = schedule.plan("cron", places[1], places[1], "05:00")
    schedule.install(wanted)
    schedule.install(other)
    schedule.install(schedule.plan("cron", *places, "04:15"))
    text = (home / "tab").read_text(encoding="utf-8")
    assert text.startswith(mine or "")
    assert len([line for line in text.splitlines() if line.startswith("15 4 ")]) == 1
    assert not [line for line in text.splitlines() if line.startswith("30 3 ")]
    schedule.uninstall(wanted)
    assert (home / "tab").read_text(encoding="utf-8").rstrip("\n") == ((mine or "").rstrip("\n") + "\n" + other.crontab).strip("\n")
    schedule.uninstall(other)
    assert (home / "tab").read_text(encoding="utf-8").rstrip("\n") == (mine or "").rstrip("\n")


def test_a_crontab_that_cannot_be_read_is_not_written(places, home):
    (home / "bin" / "crontab").write_text('#!/bin/sh\n[ "$1" = -l ] && { echo "not allowed" >&2; exit 1; }\ntouch "$HOME/written"\n')
    with pytest.raises(DataError, match="not allowed"):
        schedule.install(schedule.plan("cron", *places, "03:30"))
    assert not (home / "written").exists()


def test_a_retraining_on_battery_is_put_off_by_systemd_only_where_the_settings_say_so(places):
    for only_on_ac in (True, False):
        units = dict(schedule.plan("systemd", *places, "03:30", only_on_ac=only_on_ac).files)
        service = next(text for path, text in units.items() if path.name.startswith("vaultllm-retrain") and path.suffix == ".service")
        assert ("\nConditionACPower=true\n" in service) is only_on_ac


def test_without_watching_only_the_night_is_planned(places):
    for kind in schedule.KINDS:
        wanted = schedule.plan(kind, *places, "03:30", watch=False)
        assert not [path for path, _ in wanted.files if "watch" in path.name]
        assert "@reboot" not in wanted.crontab


@pytest.mark.parametrize("kind", ["systemd", "launchd"])
def test_what_is_installed_is_found_with_its_time(places, tmp_path, monkeypatch, kind):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))

    def refused(command, text):
        return subprocess.CompletedProcess(command, 1, "", "no crontab for you")

    assert schedule.found(*places, refused) is None
    for path, content in schedule.plan(kind, *places, "4:05").files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    assert schedule.found(*places, refused) == {"kind": kind, "at": "04:05"}
    assert schedule.found(tmp_path, places[1], refused) is None  # another vault's is another's
    assert schedule.found(tmp_path / "a\nb", places[1], refused) is None  # no schedule can name it


def test_lines_in_the_crontab_are_found_with_their_time(places, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    lines = "0 5 * * * backup\n" + crontab(*places, "23:40") + "1 6 * * * other\n"

    def listed(command, text):
        assert list(command) == ["crontab", "-l"]
        return subprocess.CompletedProcess(command, 0, lines, "")

    assert schedule.found(*places, listed) == {"kind": "cron", "at": "23:40"}
    lines = "0 5 * * * backup\n"
    assert schedule.found(*places, listed) is None
