"""What a living process takes, read from Linux' /proc, and whether it takes more and more.

Knows nothing about what the process does.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_BLOCKS = 16  # means of so many stretches are compared: single samples hang together, and would make the interval too narrow


@dataclass(frozen=True, slots=True)
class Sample:
    """A process at one moment."""

    at: float
    """When: in whatever the caller counts (hours of events)."""
    rss_mb: float
    """Resident memory, in 2**20 bytes, what it shares with others counted whole."""
    tree_mb: float
    """Its memory and that of all processes below it, what they share counted once (PSS); 0 where the kernel does not tell."""
    files: int
    """Open file descriptors."""
    threads: int
    """Its threads."""
    children: int
    """Processes below it that live."""
    cpu_s: float
    """Processor seconds until now, those of ended children too."""
    wal_mb: float
    """The write-ahead log beside the ledger."""
    log_mb: float
    """What the process has said."""


@dataclass(frozen=True, slots=True)
class Slope:
    """How fast a value grows."""

    per: float
    """A unit of the sample's `at`."""
    low: float
    """The lower end of the 95 % interval."""
    high: float
    """The upper end."""


def sample(pid: int, at: float, wal: Path, log: Path) -> Sample | None:
    """Look at a process; None when it is gone, or where there is no /proc."""
    own = _PROC / str(pid)
    try:
        facts = dict(line.split(":", 1) for line in (own / "status").read_text().splitlines() if ":" in line)
        files = len(os.listdir(own / "fd"))
        times = (own / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    if "VmRSS" not in facts:  # a zombie
        return None
    below = descendants(pid)
    ticks = os.sysconf("SC_CLK_TCK")
    return Sample(
        at,
        _kilobytes(facts["VmRSS"]) / 1024,
        (_pss(own) + sum(_pss(_PROC / str(child)) for child in below)) / 1024,
        files,
        int(facts["Threads"]),
        len(below),
        sum(map(int, times[11:15])) / ticks,
        _size(wal) / 2**20,
        _size(log) / 2**20,
    )


def descendants(pid: int) -> list[int]:
    """The processes that it has started, and those that these have, as far as they live."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in (_PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found + [one for child in found for one in descendants(child)]


def _kilobytes(said: str) -> float:
    return float(said.split()[0])


def _pss(own: Path) -> float:
    with contextlib.suppress(OSError, ValueError):
        for line in (own / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return _kilobytes(line.partition(":")[2])
    return 0.0


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0


def slope(points: Sequence[tuple[float, float]]) -> Slope | None:
    """Least squares through the means of stretches of the points (ordered), with Student's interval; None for fewer than 48 points."""
    if len(points) < 3 * _BLOCKS:
        return None
    edges = [round(i * len(points) / _BLOCKS) for i in range(_BLOCKS + 1)]
    blocks = [points[a:b] for a, b in itertools.pairwise(edges)]
    xs = [statistics.fmean(x for x, _ in block) for block in blocks]
    ys = [statistics.fmean(y for _, y in block) for block in blocks]
    grows, start = statistics.linear_regression(xs, ys)
    mean = statistics.fmean(xs)
    left = sum((y - start - grows * x) ** 2 for x, y in zip(xs, ys, strict=True)) / (_BLOCKS - 2)
    wide = _student(_BLOCKS - 2) * math.sqrt(left / sum((x - mean) ** 2 for x in xs))
    return Slope(grows, grows - wide, grows + wide)


def _student(freedom: int) -> float:
    """The 97.5 % point of Student's t (Abramowitz & Stegun 1964, 26.7.5)."""
    z = statistics.NormalDist().inv_cdf(0.975)
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def grown(values: Sequence[float]) -> float:
    """How much higher the middle of the last quarter is than that of the second one; 0 for fewer than 8 values."""
    if len(values) < 8:
        return 0.0
    quarter = len(values) // 4
    return statistics.median(values[-quarter:]) - statistics.median(values[quarter : 2 * quarter])
