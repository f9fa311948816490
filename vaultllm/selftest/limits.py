"""What a note can cost: a parser that is killed by it again and again, the limits of the child that reads, time and memory by size.

The ways of dying are real (a fault, memory, a hang), only their cause is planted, in the child alone. Knows nothing about what is in a note
that is read well. Linux: limits of address space and of CPU time are the system's own.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import resource
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

from vaultllm import config, ingest, reading, workers
from vaultllm.config import Settings
from vaultllm.ledger import Ledger
from vaultllm.schema import Problem
from vaultllm.selftest import Finding, Size

KILLS: dict[Size, int] = {"quick": 10, "soak": 100}
BYTES: dict[Size, int] = {"quick": 12_000, "soak": 400_000}  # of the smallest bomb
LONGEST = 2.6  # times the time that twice the size may take
MOST_MB = 512 + 300  # peak of a child: what notes may take by the settings, and the program itself

PLANTED = """
import os, signal, sys, time
from vaultllm import reading, workers
right = reading.read_note
def planted(path, data, *rest):
    if b"FAULT" in data:
        os.kill(os.getpid(), signal.SIGSEGV)
    if b"EAT" in data:
        hoard = [bytearray(2**20) for _ in range(4096)]
    if b"SPIN" in data:
        while True:
            pass
    if data == b"PEAK":
        # getrusage's peak is at least that of whoever started us
        peak = next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM:"))
        return reading.Reading(peak, "", "", (), "", (), 0, 0)
    return right(path, data, *rest)
reading.read_note = planted
workers.serve()
"""
_WAYS = (*[("FAULT", "E-CRASH")] * 4, ("EAT", "E-MEM"), *[("FAULT", "E-CRASH")] * 4, ("SPIN", "E-TIME"))
_LINE = "вода идёт по трубам в сад, "

BOMBS: dict[str, Callable[[int], str]] = {
    "one line": lambda size: _LINE * (size // 45),
    "quotes": lambda size: ">" * size + " a",
    "lists": lambda size: "- " * (size // 2) + "a",
    "brackets": lambda size: "[" * size,
    "embeds": lambda size: "![[" * (size // 3),
    "emphasis": lambda size: "*a_" * (size // 3),
    "comments": lambda size: "%%a <!-- " * (size // 9),
    "html": lambda size: "<div><!-- <a href='" * (size // 19),
    "table": lambda size: ("|" + "a|" * 20 + "\n") + ("|" + "-|" * 20 + "\n") + ("|" + "a|" * 20 + "\n") * (size // 42),
    "fences": lambda size: "```\na\n" * (size // 6) + "```",
    "properties": lambda size: "---\n" + "a: [\n" * (min(size, 60_000) // 5) + "---\n" + _LINE * (size // 45),
    "front matter": lambda size: "---\nа: &a [x]\nб: [" + "*a, " * (size // 4) + "]\n---\nтело\n",
    "links in a property": lambda size: '---\ns: "' + "[[a]] " * (size // 6) + '"\n---\nтело\n',
    "headings": lambda size: "# a\n\nb c d e\n\n" * (size // 14),
    "talk": lambda size: "User: a\n\nAssistant: b\n\n" * (size // 24),
}


def run(work: Path, size: Size, seed: int, told: Callable[[str], None]) -> Finding:
    """Kills, limits and bombs. Quick: 10 kills, bombs of 12 to 48 KB, about 8 CPU seconds; soak: 100 kills, bombs of 0.4 to 1.6 MB."""
    began = time.perf_counter()
    if not sys.platform.startswith("linux"):
        return Finding("limits of reading", ("R7", "R8"), 0, (), 0.0, {}, "limits of address space and CPU time are tried on Linux only")
    failures, figures = kills(work / "kills", KILLS[size], told)
    broken, limits_ = limited()
    failures += broken
    worst, broken = bombs(BYTES[size], told)
    failures += broken
    tried = KILLS[size] + 2 + 3 * len(BOMBS)
    return Finding("limits of reading", ("R7", "R8"), tried, failures, time.perf_counter() - began, figures | limits_ | worst)


@contextlib.contextmanager
def dying() -> Iterator[None]:
    """Children die of what a note's text says."""
    with mock.patch.object(workers, "COMMAND", (sys.executable, "-c", PLANTED)):
        yield


def kills(work: Path, times: int, told: Callable[[str], None]) -> tuple[list[str], dict[str, float | int | str]]:
    """A note is written again and again, and kills its reader each time; each time others are new. What broke, and what it cost."""
    vault = work / "vault"
    vault.mkdir(parents=True)
    (vault / ".vaultllm").mkdir()
    text = 'vault_id = "limits"\n[scan]\nmax_seconds = 0.5\nmax_memory_mb = 128\n'
    (vault / ".vaultllm" / "config.toml").write_text(text, encoding="utf-8")
    (vault / "плохая.md").write_text("# Была хорошей\n\nвода\n", encoding="utf-8")
    workspace = config.open_workspace(str(vault), str(work / "state"))
    failures: list[str] = []
    spent: dict[str, list[float]] = {}
    tried_again = True
    with contextlib.closing(Ledger(workspace.ledger)) as ledger:
        ingest.ingest(workspace, ledger)
        before, files = _children(), _open_files()
        with dying():
            for number in range(times):
                way, code = _WAYS[number % len(_WAYS)]
                (vault / "плохая.md").write_text(f"{way} {number}\n", encoding="utf-8")
                (vault / f"{number}.md").write_text(f"# Заметка {number}\n\nвода {number}\n", encoding="utf-8")
                at = _cpu()
                found = ingest.ingest(workspace, ledger)
                spent.setdefault(way, []).append(_cpu() - at)
                codes = [problem.code for path, problem in ledger.problems() if path == "плохая.md"]
                if codes != [code] or found.parsed != 1 or len(list(ledger.scenes(f"{number}.md"))) != 1:
                    failures.append(f"kill {number} by {way}: told {codes}, read {found.parsed}")
                if len(list(ledger.scenes("плохая.md"))) != 1:
                    failures.append(f"kill {number} by {way}: what was known of the note is gone")
                if _children() - before or _open_files() > files:
                    failures.append(f"kill {number} by {way}: a child or a pipe is left over")
                if number % 20 == 19:
                    told(f"{number + 1} of {times} kills")
        with contextlib.suppress(RuntimeError), mock.patch.object(workers, "COMMAND", (sys.executable, "-c", "raise SystemExit(9)")):
            ingest.ingest(workspace, ledger)  # raises when anything is to be read
            tried_again = False
        if tried_again:
            failures.append("a note that kills its reader is tried again though it is the same")
        (vault / "плохая.md").write_text("# Снова хорошая\n\nвода\n", encoding="utf-8")
        if ingest.ingest(workspace, ledger).parsed != 1 or any(path == "плохая.md" for path, _ in ledger.problems()):
            failures.append("a note that was mended is not read")
    return failures, {"kills": times, **{f"{way.lower()}_cpu_s": round(statistics.median(each), 2) for way, each in spent.items()}}


def limited() -> tuple[list[str], dict[str, float | int | str]]:
    """The system's own limits in the child: room beyond the program, and a note that spins ends by its CPU time, not by the clock."""
    settings = Settings.model_validate({"vault_id": "limits", "scan": {"max_seconds": 1.0, "max_memory_mb": 200}})
    failures: list[str] = []
    tasks = [workers.Task(path, path, data) for path, data in (("a.md", b"SPIN"), ("b.md", b"EAT"), ("c.md", "# вода\n".encode()))]
    at, clock = _cpu(), time.perf_counter()
    with dying():
        found = [result for _, result in workers.read_all(tasks, lambda: workers.Context(settings), 1)]
    codes = [result.code if isinstance(result, Problem) else "read" for result in found]
    if codes != ["E-TIME", "E-MEM", "read"]:
        failures.append(f"a note that spins, one that eats memory and a good one: {codes}")
    return failures, {"limits_cpu_s": round(_cpu() - at, 2), "limits_s": round(time.perf_counter() - clock, 1)}


def bombs(size: int, told: Callable[[str], None]) -> tuple[dict[str, float | int | str], list[str]]:
    """Each bomb at n, 2n, 4n: what grows faster than linearly, and the worst of all."""
    settings = Settings.model_validate({"vault_id": "limits"})
    failures: list[str] = []
    worst_ratio, worst_rate, of_ratio, of_rate = 0.0, 0.0, "", ""
    reading.read_note("warm.md", b"# a\n\nb\n", settings)
    for name, make in BOMBS.items():
        took, ratio = [math.inf] * 3, math.inf
        for _ in range(9):  # noise only adds, so the least counts; what is well at once is not tried again
            took = [min(before, _cost(make(size * times), settings)) for before, times in zip(took, (1, 2, 4), strict=True)]
            ratio = max(later / max(sooner, 0.005) for sooner, later in itertools.pairwise(took))
            if ratio <= 0.8 * LONGEST or max(took) > 1.0:
                break
        rate = max(seconds / (size * times / 1e6) for seconds, times in zip(took, (1, 2, 4), strict=True))
        if ratio > LONGEST:
            failures.append(f"{name}: {', '.join(f'{one:.3f}' for one in took)} s at n, 2n, 4n of {size:,}: x{ratio:.1f}")
        if ratio > worst_ratio:
            worst_ratio, of_ratio = ratio, name
        if rate > worst_rate:
            worst_rate, of_rate = rate, name
        told(f"{name}: x{ratio:.2f}, {rate:.2f} s/MB")
    peak = _peak(settings, [make(4 * size) for make in BOMBS.values()])
    if peak > MOST_MB:
        failures.append(f"reading took {peak:.0f} MB")
    figures: dict[str, float | int | str] = {
        "worst_ratio": round(worst_ratio, 2),
        "worst_ratio_of": of_ratio,
        "worst_cpu_s_per_mb": round(worst_rate, 2),
        "worst_rate_of": of_rate,
        "peak_rss_mb": round(peak),
    }
    return figures, failures


def _cost(text: str, settings: Settings) -> float:
    """CPU seconds of reading."""
    data, at = text.encode(), time.process_time()
    reading.read_note("a.md", data, settings)
    return time.process_time() - at


def _peak(settings: Settings, texts: list[str]) -> float:
    """MB of the child that read them all."""
    tasks = [workers.Task(place, f"{place}.md", text.encode()) for place, text in enumerate([*texts, "PEAK"])]
    with dying():
        found = [result for _, result in workers.read_all(tasks, lambda: workers.Context(settings), 1)]
    last = found[-1]
    return float("inf") if isinstance(last, Problem) else int(last.title) / 1024


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    mine, theirs = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime


def _children() -> set[str]:
    found: set[str] = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found.update((task / "children").read_text(encoding="ascii").split())
    return found


def _open_files() -> int:
    return len(os.listdir("/proc/self/fd"))
