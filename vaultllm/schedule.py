"""What the computer needs to watch the vault and to retrain every night: files for systemd or launchd, lines for cron.

`plan` says all of it and `shown` prints it, before `install` writes any; `uninstall` removes exactly what was written. A
file that is not ours, or that was edited since, is left as it is. Knows how each system quotes a path, and nothing about
what a retraining does.
"""

from __future__ import annotations

import hashlib
import os
import plistlib
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vaultllm.errors import DataError, UsageError, nearest
from vaultllm.files import write_whole

Run = Callable[[Sequence[str], str], "subprocess.CompletedProcess[str]"]

_UNFIT = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")  # line breaks, control characters, names that are not UTF-8
_SIGNED = re.compile(r"^.*vaultllm schedule install, ([0-9a-f]{16})\b.*\n", re.MULTILINE)
_AT = re.compile(
    r"^OnCalendar=\*-\*-\* (?P<h>\d+):(?P<m>\d+)|<key>Hour</key>\s*<integer>(?P<hour>\d+)</integer>\s*"
    r"<key>Minute</key>\s*<integer>(?P<minute>\d+)|^(?P<cron_minute>\d+) (?P<cron_hour>\d+) \* \* \* ",
    re.MULTILINE,
)
WATCHDOG = 600  # seconds without a sign of life after which systemd starts the daemon again; one step of its work may take minutes


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be put in place for one vault."""

    kind: str
    """cron, systemd or launchd."""
    files: tuple[tuple[Path, str], ...]
    """Absolute path and content of each file."""
    enable: tuple[tuple[str, ...], ...]
    """Commands that make the system read and start them."""
    disable: tuple[tuple[str, ...], ...]
    """Commands that stop them; run before the files are removed. One that fails has nothing to stop."""
    reload: tuple[tuple[str, ...], ...]
    """Commands after the files are gone."""
    crontab: str
    """Lines for the user's crontab between two marks of ours; empty for other kinds."""
    advice: str
    """What to know, and where its log is."""


def plan(kind: str, vault: Path, state: Path, at: str, *, watch: bool = True, only_on_ac: bool = True) -> Plan:
    """What `kind` (auto, cron, systemd, launchd) needs: retrain daily at `at` (HH:MM, local time), and `watch` from the start on.

    Raises UsageError for an unknown kind, a time that is none, and a path that such a file cannot hold.
    """
    kind = _usual() if kind == "auto" else kind
    if kind not in KINDS:
        raise UsageError(f"there is no kind of schedule '{kind}'.{nearest(kind, KINDS)}")
    clock = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at)
    if clock is None:
        raise UsageError(f"'{at}' is no time of day; write it as HH:MM, for example 03:30")
    for path in (vault, state):
        if _UNFIT.search(str(path)):
            raise UsageError("the path holds characters that a schedule cannot; rename the folder", path=ascii(str(path)))
    command = [*program(), "--vault", str(vault), "--state", str(state), "--json"]
    return KINDS[kind](_Wanted(command, vault, state, int(clock[1]), int(clock[2]), watch, only_on_ac))


def shown(wanted: Plan) -> str:
    """The plan as text: every file, line and command."""
    parts = [f"# {line}\n" for line in wanted.advice.splitlines()]
    parts += [f"\n# ---- {path}\n{content}" for path, content in wanted.files]
    parts += ["\n# ---- lines of your crontab (crontab -e)\n", wanted.crontab] if wanted.crontab else []
    parts += ["\n# ---- then\n", *(f"# {shlex.join(command)}\n" for command in wanted.enable)] if wanted.enable else []
    return "".join(parts)


def install(wanted: Plan, run: Run | None = None) -> list[str]:
    """Write the files and start what they describe; returns what was done, a line each. Installing again changes nothing.

    Raises DataError when a file in its place is not ours or was edited, and when a command fails: the files are there then.
    """
    run = run or _run
    for path, _ in wanted.files:
        if path.exists() and not _is_ours(path):
            raise DataError("this file was not written by `schedule install`, or was edited since; move it away first", path=str(path))
    done = []
    for command in wanted.disable if any(path.exists() for path, _ in wanted.files) else ():
        run(command, "")  # what runs is started again, as it is now
    for path, content in wanted.files:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content)
        done.append(f"wrote {path}")
    if wanted.crontab:
        _set_crontab(_outside(_crontab(run), wanted.crontab) + wanted.crontab, run)
        done.append("added lines to your crontab")
    for command in wanted.enable:
        _must(run, command, "the files are in place; run it when you are logged in, or undo all with: vaultllm schedule uninstall")
        done.append(shlex.join(command))
    return done


def uninstall(wanted: Plan, run: Run | None = None) -> list[str]:
    """Stop it and remove exactly what `install` wrote; returns what was done, a line each. What is not there is no error.

    Raises DataError when a file was edited since: it stays, as do the others.
    """
    run = run or _run
    there = [path for path, _ in wanted.files if path.exists()]
    for path in there:
        if not _is_ours(path):
            raise DataError("this file was edited since it was installed; remove it yourself, or put it back as it was", path=str(path))
    done = []
    for command in wanted.disable if there else ():
        if not run(command, "").returncode:
            done.append(shlex.join(command))
    for path in there:
        path.unlink()
        done.append(f"removed {path}")
    if there:
        done += [shlex.join(command) for command in wanted.reload if not run(command, "").returncode]
    if wanted.crontab and shutil.which("crontab"):
        before = _crontab(run)
        after = _outside(before, wanted.crontab)
        if after != before:
            _set_crontab(after, run)
            done.append("removed the lines from your crontab")
    return done


def found(vault: Path, state: Path, run: Run | None = None) -> dict[str, str] | None:
    """What is installed for this vault: {kind, at (HH:MM)}; None when nothing is. A crontab that cannot be read tells nothing."""
    run = run or _run
    if any(_UNFIT.search(str(path)) for path in (vault, state)):
        return None  # no schedule can name it
    for kind in KINDS:
        wanted = plan(kind, vault, state, "03:30")
        texts = [path.read_text(encoding="utf-8", errors="replace") for path, _ in wanted.files if path.is_file()]
        if wanted.crontab and shutil.which("crontab"):
            crontab = run(["crontab", "-l"], "").stdout
            first, *_, last = wanted.crontab.splitlines()
            texts.append(crontab.partition(first)[2].partition(last)[0])
        for text in texts:
            if at := _AT.search(text):
                hour, minute = (at["h"] or at["hour"] or at["cron_hour"]), (at["m"] or at["minute"] or at["cron_minute"])
                return {"kind": kind, "at": f"{int(hour):02}:{int(minute):02}"}
    return None


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


# -- what is ours


def _signed(content: str, comment: str) -> str:
    """The content with a line that says whose it is, and by which an edit is seen; `comment` has a place for it."""
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    head = content.index("\n") + 1 if content.startswith("<?xml") else 0  # before it nothing may stand
    line = comment.format(f"written by vaultllm schedule install, {digest}; `vaultllm schedule uninstall` removes it")
    return f"{content[:head]}{line}\n{content[head:]}"


def _is_ours(path: Path) -> bool:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError):
        return False
    found = _SIGNED.search(text)
    return found is not None and hashlib.sha256((text[: found.start()] + text[found.end() :]).encode()).hexdigest()[:16] == found[1]


def _outside(crontab: str, block: str) -> str:
    """A crontab without the lines between our two marks for this vault."""
    first, last = block.splitlines()[0], block.splitlines()[-1]
    return re.sub(rf"^{re.escape(first)}\n(?:.*\n)*?{re.escape(last)}\n?", "", crontab, flags=re.MULTILINE)


def _crontab(run: Run) -> str:
    """The user's crontab; empty when there is none. Raises DataError when it cannot be read: it would be lost by writing."""
    found = run(["crontab", "-l"], "")
    if found.returncode and "no crontab" not in found.stderr:
        raise DataError(f"your crontab cannot be read ({found.stderr.strip() or found.returncode}); nothing was changed")
    text = "" if found.returncode else found.stdout
    return text if not text or text.endswith("\n") else text + "\n"


def _set_crontab(text: str, run: Run) -> None:
    _must(run, ["crontab", "-"], "your crontab is as it was", text)


def _must(run: Run, command: Sequence[str], otherwise: str, text: str = "") -> None:
    done = run(command, text)
    if done.returncode:
        said = " ".join((done.stderr or done.stdout).split()) or f"code {done.returncode}"
        raise DataError(f"`{shlex.join(command)}` failed ({said}); {otherwise}")


def _run(command: Sequence[str], text: str) -> subprocess.CompletedProcess[str]:
    try:
        # In English and UTF-8: `crontab -l` tells only in words that there is none.
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        return subprocess.run(list(command), input=text, capture_output=True, text=True, encoding="utf-8", env=environment, timeout=60)
    except FileNotFoundError:
        return subprocess.CompletedProcess(list(command), 127, "", f"there is no program '{command[0]}' here")
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(list(command), 124, "", "no answer within a minute")


# -- the three systems


@dataclass(frozen=True, slots=True)
class _Wanted:
    command: list[str]
    vault: Path
    state: Path
    hour: int
    minute: int
    watch: bool
    only_on_ac: bool


def _usual() -> str:
    """What this computer uses."""
    if sys.platform == "darwin":
        return "launchd"
    return "systemd" if Path("/run/systemd/system").is_dir() else "cron"


def _cron(wanted: _Wanted) -> Plan:
    def line(when: str, verb: str) -> str:
        log = shlex.quote(str(wanted.state / f"{verb}.log"))
        run = shlex.join(["nice", "-n", "10", *wanted.command, verb])
        return f"{when} {run} >> {log} 2>&1".replace("%", r"\%") + "\n"  # cron reads a bare % as the end of the line

    name = unit_name(wanted.vault)
    lines = line(f"{wanted.minute} {wanted.hour} * * *", "retrain") + (line("@reboot", "watch") if wanted.watch else "")
    return Plan(
        kind="cron",
        files=(),
        enable=(),
        disable=(),
        reload=(),
        crontab=f"# >>> vaultllm {name}: `vaultllm schedule uninstall` removes these lines\n{lines}# <<< vaultllm {name}\n",
        advice="cron does not catch up on a night that the computer slept through, and starts `watch` when the computer starts.\n"
        "vaultllm waits for nobody: while another one trains, it ends with code 75 and tries again the next night.",
    )


def _systemd_word(word: str) -> str:
    """One argument of ExecStart=: quoted, with specifiers and variables as plain characters."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"'


# What works for a user's own service without a namespace of its own. Not MemoryDenyWriteExecute: torch compiles as it runs.
_HARDENED = """\
NoNewPrivileges=yes
LockPersonality=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6
SystemCallArchitectures=native
UMask=0077
Nice=10
IOSchedulingClass=idle
"""


def _systemd(wanted: _Wanted) -> Plan:
    name = unit_name(wanted.vault)
    start = " ".join(map(_systemd_word, wanted.command))
    shown_vault, folder = (str(path).replace("%", "%%") for path in (wanted.vault, wanted.state))
    place = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "systemd" / "user"
    timer, service, watching = f"vaultllm-retrain-{name}.timer", f"vaultllm-retrain-{name}.service", f"vaultllm-watch-{name}.service"
    files = {
        service: f"""\
[Unit]
Description=vaultllm: learn what is new in {shown_vault}
{"ConditionACPower=true" if wanted.only_on_ac else "# also on battery: train.only_on_ac is off"}

[Service]
Type=oneshot
ExecStart={start} retrain
WorkingDirectory={folder}
# 75: another training is at work
SuccessExitStatus=75
{_HARDENED}""",
        timer: f"""\
[Unit]
Description=vaultllm: every night at {wanted.hour:02}:{wanted.minute:02}

[Timer]
OnCalendar=*-*-* {wanted.hour:02}:{wanted.minute:02}:00
RandomizedDelaySec=5min
# A night that the computer slept through is caught up
Persistent=true

[Install]
WantedBy=timers.target
""",
    }
    if wanted.watch:
        files[watching] = f"""\
[Unit]
Description=vaultllm: watch {shown_vault}
StartLimitIntervalSec=600
StartLimitBurst=5

[Service]
Type=notify
NotifyAccess=main
WatchdogSec={WATCHDOG}
TimeoutStartSec=120
ExecStart={start} watch
WorkingDirectory={folder}
Restart=on-failure
RestartSec=30
# 2: wrong usage, 75: another one watches; to start again would not help
RestartPreventExitStatus=2 75
{_HARDENED}
[Install]
WantedBy=default.target
"""
    started = [timer, watching] if wanted.watch else [timer]
    control = ("systemctl", "--user")
    return Plan(
        kind="systemd",
        files=tuple((place / name, _signed(content, "# {}")) for name, content in files.items()),
        enable=((*control, "daemon-reload"), (*control, "enable", "--now", *started)),
        disable=((*control, "disable", "--now", *started),),
        reload=((*control, "daemon-reload"),),
        crontab="",
        advice=f"To go on while you are logged out: loginctl enable-linger. The log: journalctl --user -u {service} -u {watching}",
    )


def _launchd(wanted: _Wanted) -> Plan:
    name = unit_name(wanted.vault)
    place = Path.home() / "Library" / "LaunchAgents"

    def agent(verb: str, **more: object) -> tuple[Path, str]:
        label = f"vaultllm.{verb}.{name}"
        log = str(wanted.state / f"{verb}.log")
        facts = {
            "Label": label,
            "ProgramArguments": [*wanted.command, verb],
            "WorkingDirectory": str(wanted.state),
            "StandardOutPath": log,
            "StandardErrorPath": log,
            "ProcessType": "Background",
            "LowPriorityIO": True,
            "Nice": 10,
            "Umask": 0o077,
            **more,
        }
        return place / f"{label}.plist", _signed(plistlib.dumps(facts, sort_keys=False).decode(), "<!-- {} -->")

    files = [agent("retrain", StartCalendarInterval={"Hour": wanted.hour, "Minute": wanted.minute})]
    if wanted.watch:
        files.append(agent("watch", RunAtLoad=True, KeepAlive={"SuccessfulExit": False}, ThrottleInterval=30))
    domain = f"gui/{os.getuid() if hasattr(os, 'getuid') else 501}"
    return Plan(
        kind="launchd",
        files=tuple(files),
        enable=tuple(("launchctl", "bootstrap", domain, str(path)) for path, _ in files),
        disable=tuple(("launchctl", "bootout", f"{domain}/{path.stem}") for path, _ in files),
        reload=(),
        crontab="",
        advice=f"The logs: {wanted.state}/retrain.log, {wanted.state}/watch.log. A missed night is caught up once.",
    )


KINDS: dict[str, Callable[[_Wanted], Plan]] = {"cron": _cron, "systemd": _systemd, "launchd": _launchd}
