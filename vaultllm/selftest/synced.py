"""A vault that two machines hold, moved by two real syncthing processes while the daemon works on one side.

Both sides edit at once, some notes the same ones, so that conflict copies come; after each round both must be alike, every text that was
written on either side must stand in a file, and at the end the daemon's state must be that of a clean rebuild. The processes talk over
loopback alone: no discovery, relays, reports or updates. Quick: one round, 5 s of a processor; soak: 5 minutes, or those that are
given. Knows nothing about syncthing but its settings file and four addresses of its REST API.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import subprocess
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultllm.errors import VaultllmError
from vaultllm.selftest import Finding, Size
from vaultllm.selftest.life import Life
from vaultllm.selftest.watched import PROGRAM, Watched

NAME = "two machines"
PROMISES = ("R3", "R4", "R6")
_FOLDER = "vault"
_PATIENCE = 180.0  # seconds until both sides must be alike
_CLOSED = {  # nothing leaves the machine
    "globalAnnounceEnabled": "false",
    "localAnnounceEnabled": "false",
    "relaysEnabled": "false",
    "natEnabled": "false",
    "announceLANAddresses": "false",
    "crashReportingEnabled": "false",
    "startBrowser": "false",
    "stunKeepaliveStartS": "0",
    "autoUpgradeIntervalH": "0",
    "urAccepted": "-1",
    "reconnectionIntervalS": "2",
}


@dataclass(frozen=True, slots=True)
class Device:
    """One of the two syncthings."""

    home: Path
    """Its settings and keys."""
    folder: Path
    """Its side of the vault."""
    identity: str
    """What the other one knows it by."""
    talks: int
    """The port at which it hears the other one."""
    answers: int
    """The port of its REST API."""
    key: str
    """Of the API."""

    def ask(self, address: str, method: str = "GET") -> Any:
        """What its API says. Raises OSError, ValueError, http.client.HTTPException."""
        with contextlib.closing(http.client.HTTPConnection("127.0.0.1", self.answers, timeout=10)) as line:
            line.request(method, address, headers={"X-API-Key": self.key})
            said = line.getresponse()
            body = said.read()
            if said.status != 200:
                raise OSError(f"{address}: {said.status}")
            return json.loads(body) if body else None


def made(home: Path, folder: Path) -> Device:
    """A device with a key of its own and no settings but the file's. Raises OSError, subprocess.SubprocessError."""
    line = ["syncthing", "generate", f"--home={home}", "--no-default-folder"]
    subprocess.run(line, check=True, capture_output=True, env=_environment(), timeout=120)
    found = ET.parse(home / "config.xml").getroot()
    return Device(home, folder, str(found.find("device").get("id")), _free(), _free(), str(found.findtext("gui/apikey")))  # type: ignore[union-attr]


def joined(ours: Device, theirs: Device) -> None:
    """Write the settings of one device: it shares its folder with the other one, over loopback, and knows nobody else."""
    tree = ET.parse(ours.home / "config.xml")
    root = tree.getroot()
    options = root.find("options")
    assert options is not None
    for name, value in {**_CLOSED, "listenAddress": f"tcp://127.0.0.1:{ours.talks}"}.items():
        place = options.find(name)
        place = ET.SubElement(options, name) if place is None else place
        place.text = value
    root.find("gui/address").text = f"127.0.0.1:{ours.answers}"  # type: ignore[union-attr]
    other = ET.SubElement(root, "device", id=theirs.identity, name="other")
    ET.SubElement(other, "address").text = f"tcp://127.0.0.1:{theirs.talks}"
    how = {
        "id": _FOLDER,
        "label": _FOLDER,
        "path": str(ours.folder),
        "type": "sendreceive",
        "rescanIntervalS": "20",
        "fsWatcherEnabled": "true",
        "fsWatcherDelayS": "1",
        "ignorePerms": "true",
    }
    folder = ET.SubElement(root, "folder", how)
    for one in (ours, theirs):
        ET.SubElement(folder, "device", id=one.identity)
    ET.SubElement(folder, "maxConflicts").text = "-1"
    tree.write(ours.home / "config.xml", encoding="unicode")


@contextlib.contextmanager
def serving(device: Device) -> Iterator[subprocess.Popen[bytes]]:
    """The device at work. Raises OSError."""
    with (device.home / "said.log").open("wb") as said:
        line = ["syncthing", "serve", f"--home={device.home}", "--no-browser", "--no-restart"]
        process = subprocess.Popen(line, stdout=said, stderr=subprocess.STDOUT, env=_environment(), start_new_session=True)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "STNOUPGRADE": "1", "GOMAXPROCS": "1"}


def _free() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def tree(folder: Path) -> dict[str, bytes]:
    """Path -> bytes of every file that is moved: all but hidden ones and those that are still coming."""
    found = {}
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if not any(part.startswith(".") for part in parts):
            with contextlib.suppress(OSError):
                if path.is_file():
                    found["/".join(parts)] = path.read_bytes()
    return found


def alike(devices: tuple[Device, Device], seconds: float) -> str:
    """ "" when both sides came to hold the same, and have nothing more to do; else what differs after so many seconds."""
    deadline = time.monotonic() + seconds
    said, quiet = "", 0
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
            for one in devices:
                one.ask(f"/rest/db/scan?folder={_FOLDER}", "POST")
            states = [one.ask(f"/rest/db/status?folder={_FOLDER}") for one in devices]
            other = [one.ask(f"/rest/db/completion?folder={_FOLDER}&device={two.identity}") for one, two in (devices, devices[::-1])]
            is_still = all(state["state"] == "idle" and not state["needTotalItems"] for state in states)
            ours, theirs = (tree(one.folder) for one in devices)
            said = f"{sorted(path for path in ours.keys() | theirs.keys() if ours.get(path) != theirs.get(path))[:5]}"
            quiet = quiet + 1 if is_still and ours == theirs and all(one["completion"] == 100 for one in other) else 0
            if quiet == 2:
                return ""
        time.sleep(0.5)
    return said or "a syncthing does not answer"


class _Side:
    """What one machine's user does in a round."""

    def __init__(self, device: Device, name: str, seed: int) -> None:
        self.device, self.name = device, name
        self.life = Life(device.folder, seed)
        self.life.name = name
        self.written: list[bytes] = []

    def round(self, both: list[str], own: list[str]) -> None:
        """Edit the notes that both edit, then others, make a new one, rename one."""
        self.life.holds = {path: data for path, data in tree(self.device.folder).items() if path.endswith(".md")}
        for path in [*both, *own[:-1]]:
            self.life.write(path, self.life.holds[path].decode() + f"{self.name}: {self.life.sentence()}\n")
        paths = [*both, *own[:-1], self.life.create()]
        self.written = [self.life.holds[path] for path in paths]
        old, new = own[-1], self.life.new_path()
        (self.life.vault / new).parent.mkdir(parents=True, exist_ok=True)
        (self.life.vault / old).rename(self.life.vault / new)
        self.life.changes += 1
        self.written.append(self.life.holds[old])


def run(
    work: Path,
    size: Size,
    seed: int,
    told: Callable[[str], None],
    *,
    minutes: float | None = None,
    program: tuple[str, ...] = PROGRAM,
) -> Finding:
    """One round, or as many as fit into the minutes. `program`: what is started as `vaultllm`, for a control that must fail."""
    if not shutil.which("syncthing"):
        return Finding(NAME, PROMISES, 0, (), 0.0, skipped="syncthing is not installed (Debian: apt install syncthing)")
    began = time.monotonic()
    until = began + (0.0 if size == "quick" else 60.0 * (5.0 if minutes is None else minutes))
    watched = Watched(work, program, settle=0.5, reconcile=10.0)
    there = work / "other machine"
    there.mkdir()
    devices = made(work / "home-a", watched.vault), made(work / "home-b", there)
    for ours, theirs in (devices, devices[::-1]):
        joined(ours, theirs)
        (ours.folder / ".stfolder").mkdir()
    sides = _Side(devices[0], "a", seed), _Side(devices[1], "b", seed + 1)
    for _ in range(12):
        sides[0].life.create()
    failures: list[str] = []
    rounds = conflicts = 0
    chance = random.Random(seed)
    with serving(devices[0]), serving(devices[1]), watched.running() as daemon:
        differs = alike(devices, _PATIENCE)
        while not differs and (not rounds or time.monotonic() < until):
            rounds += 1
            failures += [f"{what} (seed {seed}, round {rounds})" for what in _round(devices, sides, chance)]
            if rounds % 5 == 1:
                watched.command("ask", sides[0].life.sentence())
            differs = alike(devices, _PATIENCE)
            failures += [f"{what} (seed {seed}, round {rounds})" for what in _missing(devices[0].folder, sides)]
            conflicts = sum(".sync-conflict-" in path for path in tree(there))
            told(f"round {rounds}: {len(tree(there))} files, {conflicts} conflict copies, {len(failures)} failures")
        if differs:
            failures.append(f"both sides never came to be alike (seed {seed}, round {rounds}): {differs}")
        try:
            other = watched.ended_alike(work)
        except VaultllmError as error:
            other = str(error)
        failures += [f"the state is not that of a clean rebuild (seed {seed}): {other}"] if other else []
        failures += watched.ended(daemon)
    figures = {"rounds": rounds, "conflict_copies": conflicts, "files": len(tree(there)), "answers": _answers(there)}
    changes = sum(side.life.changes for side in sides)
    return Finding(NAME, PROMISES, changes, [*failures, *watched.failures], time.monotonic() - began, figures)


def _answers(folder: Path) -> int:
    return sum(path.startswith("vaultllm/Answers/") for path in tree(folder))


def _round(devices: tuple[Device, Device], sides: tuple[_Side, _Side], chance: random.Random) -> list[str]:
    """Both users at work at once. Not on conflict copies: of these syncthing makes no copy, so that it loses one of two edits itself."""
    left_out = "vaultllm/", ".sync-conflict-"
    there = [path for path in tree(devices[0].folder) if path.endswith(".md") and not any(part in path for part in left_out)]
    if len(there) < 8:
        return [f"only {len(there)} notes are left"]
    chosen = chance.sample(there, 8)
    for side, own in zip(sides, (chosen[2:5], chosen[5:8]), strict=True):
        side.round(chosen[:2], own)
    return []


def _missing(folder: Path, sides: tuple[_Side, _Side]) -> list[str]:
    """Texts of this round that stand in no file."""
    held = set(tree(folder).values())
    return [f"a text that {side.name} wrote is lost" for side in sides for data in side.written if data not in held]
