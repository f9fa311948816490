"""Whether this machine may train now: on mains or on its battery, and how busy others keep it.

Asked before a retraining and about twice a minute while it runs. Knows nothing about trainings.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

SUPPLIES = Path("/sys/class/power_supply")
"""Where Linux lists chargers and batteries."""
MINUTE = 60.0
"""Seconds over which the system's load is averaged."""
ACTIVE = 0.05
"""A thread that got this share of a core between two looks wanted one: those who step back get no more on a busy machine."""


class Wait(NamedTuple):
    """Why nothing may be trained now."""

    status: str
    """`on battery` or `busy`."""
    reason: str
    """In a sentence, with the setting that decides."""


def on_battery(supplies: Path = SUPPLIES) -> bool:
    """Whether the battery feeds this machine; False where there is none, or nobody knows.

    On Linux read from `supplies`: batteries of mice and headsets (`scope` Device) feed no computer.
    """
    if not sys.platform.startswith("linux"):
        import psutil

        battery = psutil.sensors_battery()
        return battery is not None and battery.power_plugged is False
    charger = discharging = battery_found = False
    for supply in supplies.glob("*"):
        kind = _said(supply / "type")
        if kind == "Battery" and _said(supply / "scope") != "Device":
            battery_found = True
            discharging = discharging or _said(supply / "status") == "Discharging"
        elif kind in ("Mains", "USB"):
            if _said(supply / "online") == "1":
                return False
            charger = charger or kind == "Mains"
    return battery_found and (charger or discharging)


def _said(path: Path) -> str:
    """What a file of the system says; empty when it cannot be read."""
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # drivers refuse single values
        return ""


def _thread_seconds() -> dict[int, float]:
    """Processor seconds of each thread of this process, by its id."""
    import psutil

    return {one.id: one.user_time + one.system_time for one in psutil.Process().threads()}


def _load() -> float:
    """How many threads of the whole system wanted a core, over the last minute."""
    import psutil

    return float(psutil.getloadavg()[0])


class Others:
    """The load that others make: the system's, less what this process adds to it."""

    def __init__(
        self,
        clock: Callable[[], float] = time.monotonic,
        load: Callable[[], float] = _load,
        threads: Callable[[], dict[int, float]] = _thread_seconds,
    ) -> None:
        """Begin to count what this process adds. The three say the time in seconds, the system's load, seconds by thread."""
        self.clock, self.load, self.threads = clock, load, threads
        self.looked, self.seconds, self.own = clock(), threads(), 0.0

    def per_core(self) -> float:
        """Threads of others that want a core, by core, over the last minute.

        A training keeps all cores busy by itself, so the system's load alone would stop every training. What this process adds
        is averaged just as the system does it: each second counts e^(-1/60) of the one after it.
        """
        now, seconds = self.clock(), self.threads()
        passed = now - self.looked
        if passed > 0:
            active = sum(1 for id_, spent in seconds.items() if spent - self.seconds.get(id_, 0.0) > ACTIVE * passed)
            fades = math.exp(-passed / MINUTE)
            self.own = self.own * fades + active * (1 - fades)
            self.looked, self.seconds = now, seconds
        return max(0.0, self.load() - self.own) / (os.cpu_count() or 1)


def asked(
    only_on_ac: bool, max_load: float, battery: Callable[[], bool] | None = None, others: Others | None = None
) -> Callable[[], Wait | None]:
    """What says whether to wait: a function to call again and again, that returns None as long as one may train.

    `max_load` 0: the load is not looked at. `battery`, `others`: what is asked; None: this machine.
    """
    others = (others or Others()) if max_load else None

    def wait() -> Wait | None:
        if only_on_ac and (battery or on_battery)():
            return Wait("on battery", "the battery feeds this machine; training waits for mains power (train.only_on_ac)")
        busy = others.per_core() if others is not None else 0.0
        if busy > max_load:
            return Wait("busy", f"other programs keep each core {busy:.0%} busy, more than {max_load:.0%} (train.max_load)")
        return None

    return wait


def step_back(nice: int) -> None:
    """Let other programs go first from now on (0: no change; 19: all of them); never takes back what cron or systemd did."""
    if nice <= 0:
        return
    if sys.platform == "win32":
        import psutil

        psutil.Process().nice(psutil.BELOW_NORMAL_PRIORITY_CLASS)
        return
    tasks = Path("/proc/self/task")  # on Linux each thread has a priority of its own; new ones inherit that of their maker
    for thread in [int(path.name) for path in tasks.glob("*")] or [0]:
        try:
            os.setpriority(os.PRIO_PROCESS, thread, max(nice, os.getpriority(os.PRIO_PROCESS, thread)))
        except ProcessLookupError:  # it has ended
            continue
