"""What to put where so that the computer runs `vaultllm retrain` every night: text for cron, systemd or launchd.

Renders only; installs nothing. Knows how each of the three quotes a path, and nothing about what a retraining does.
"""

from __future__ import annotations

import hashlib
import plistlib
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from vaultllm.errors import UsageError, nearest

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks, control characters, names that are not UTF-8


def render(kind: str, vault: Path, state: Path, at: str) -> str:
    """The text for `kind` (cron, systemd, launchd): retrain daily at `at` (HH:MM, local time), with where to put it.

    Raises UsageError for an unknown kind, a time that is none, and a path that such a file cannot hold.
    """
    if kind not in KINDS:
        raise UsageError(f"there is no kind of schedule '{kind}'.{nearest(kind, KINDS)}")
    clock = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at)
    if clock is None:
        raise UsageError(f"'{at}' is no time of day; write it as HH:MM, for example 03:30")
    for path in (vault, state):
        if _UNFIT.search(str(path)):
            raise UsageError("the path holds characters that a schedule cannot; rename the folder", path=ascii(str(path)))
    command = [*program(), "--vault", str(vault), "--state", str(state), "--json"]
    return KINDS[kind](command, vault, state, int(clock[1]), int(clock[2]))


def program() -> list[str]:
    """How to start this vaultllm again from anywhere: its executable, or this Python with the module. Absolute."""
    started = sys.argv[0] if sys.argv and sys.argv[0] else ""
    if Path(started).stem == "vaultllm":
        found = shutil.which(started)
        if found is not None:
            return [str(Path(found).absolute())]
    return [sys.executable, "-m", "vaultllm.cli"]


def unit_name(vault: Path) -> str:
    """A part of a name that differs for each vault, so that two vaults of one user do not overwrite each other's files."""
    return hashlib.sha256(str(vault).encode()).hexdigest()[:8]


def _cron(command: list[str], vault: Path, state: Path, hour: int, minute: int) -> str:
    def line(when: str, verb: str) -> str:
        log = shlex.quote(str(state / f"{verb}.log"))
        run = shlex.join(["nice", "-n", "10", *command, verb])
        return f"{when} {run} >> {log} 2>&1".replace("%", r"\%")  # cron reads a bare % as the end of the line

    return (
        "# Add the line to your crontab (crontab -e). cron does not catch up on a night that the computer slept through;\n"
        "# vaultllm waits for nobody: while another one trains, it ends with code 75 and tries again the next night.\n"
        f"{line(f'{minute} {hour} * * *', 'retrain')}\n"
        "# To watch the vault from the start of the computer on, add this one too, without its #:\n"
        f"# {line('@reboot', 'watch')}\n"
    )


def _systemd_word(word: str) -> str:
    """One argument of ExecStart=: quoted, with specifiers and variables as plain characters."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


def _systemd(command: list[str], vault: Path, state: Path, hour: int, minute: int) -> str:
    name = unit_name(vault)
    start = " ".join(map(_systemd_word, command))
    shown, folder = (str(path).replace("%", "%%") for path in (vault, state))
    place = "~/.config/systemd/user"
    return f"""\
# Three files. Then: systemctl --user daemon-reload
#   systemctl --user enable --now vaultllm-retrain-{name}.timer vaultllm-watch-{name}.service
# To go on while you are logged out: loginctl enable-linger. The log: journalctl --user -u vaultllm-retrain-{name}

# ---- {place}/vaultllm-retrain-{name}.service
[Unit]
Description=vaultllm: learn what is new in {shown}

[Service]
Type=oneshot
ExecStart={start} retrain
WorkingDirectory={folder}
# 75: another training is at work
SuccessExitStatus=75
UMask=0077
Nice=10
IOSchedulingClass=idle

# ---- {place}/vaultllm-retrain-{name}.timer
[Unit]
Description=vaultllm: every night at {hour:02}:{minute:02}

[Timer]
OnCalendar=*-*-* {hour:02}:{minute:02}:00
# A night that the computer slept through is caught up
Persistent=true

[Install]
WantedBy=timers.target

# ---- {place}/vaultllm-watch-{name}.service
[Unit]
Description=vaultllm: watch {shown}

[Service]
ExecStart={start} watch
WorkingDirectory={folder}
Restart=on-failure
RestartSec=30
# 2: wrong usage, 75: another one watches; to start again would not help
RestartPreventExitStatus=2 75
UMask=0077
Nice=10
IOSchedulingClass=idle

[Install]
WantedBy=default.target
"""


def _launchd(command: list[str], vault: Path, state: Path, hour: int, minute: int) -> str:
    name = unit_name(vault)

    def agent(verb: str, **more: object) -> str:
        label = f"vaultllm.{verb}.{name}"
        log = str(state / f"{verb}.log")
        facts = {
            "Label": label,
            "ProgramArguments": [*command, verb],
            "WorkingDirectory": str(state),
            "StandardOutPath": log,
            "StandardErrorPath": log,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            **more,
        }
        where = f"~/Library/LaunchAgents/{label}.plist"
        note = f"<!-- Save as {where}, then: launchctl bootstrap gui/$(id -u) {where} -->\n"
        head, plist = plistlib.dumps(facts, sort_keys=False).decode().split("<plist", 1)
        return f"{head}{note}<plist{plist}"

    return agent("retrain", StartCalendarInterval={"Hour": hour, "Minute": minute}) + agent(
        "watch", RunAtLoad=True, KeepAlive={"SuccessfulExit": False}, ThrottleInterval=30
    )


KINDS: dict[str, Callable[[list[str], Path, Path, int, int], str]] = {"cron": _cron, "systemd": _systemd, "launchd": _launchd}
