"""Commands killed, and told that the disk is full or broken, at their writes; what is left must be whole, and the next start mend the rest.

For each command the writes of an undisturbed run are counted by kind; a point is the n-th of a kind. Before it the process is killed,
or half of it is written and then it is killed, or it fails with an error, once or from there on. Judged: no byte of the user's notes
has changed, no half-written note is seen, the error is one line with a path and an exit code; and after the next start the state is
that of the undisturbed run (`canonical.py`), whose own is that of a rebuild from nothing. Knows nothing about how a process is
stopped at a call (`tracer.py`), nor how commands work.
"""

from __future__ import annotations

import hashlib
import json
import math
import random
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vaultllm.selftest import Finding, Size, small_vault, tracer
from vaultllm.selftest.alike import difference
from vaultllm.selftest.broken import BROKEN
from vaultllm.selftest.started import Ran, Starter
from vaultllm.selftest.tracer import ERRORS, Fault

Told = Callable[[str], None]
Facts = dict[str, Any]

_EXPECTED = (3, 75)  # exit codes of what the user can mend, and of a lock that is held
_OURS = re.compile(r"\.vaultllm-.*|.*\.tmp|OPEN|.*\.(?:old|pid)|.*-journal")
_MADE = re.compile(r"vaultllm/Answers/(?:\d{4}-\d\d-\d\d |\.vaultllm-)[^/]*|\.vaultllm/(?:config\.toml|\.[0-9a-f]{8}\.tmp)")
# Of a training, what is measured is not what is tried, nor what its base has learnt; and a vault of twelve notes need not learn an
# embedder of its own for seconds.
_BRIEF = {"vaultllm.training.MEASURES": 0.00001, "vaultllm.training.BASE_SHARE": 0.1, "vaultllm.memory.live.LEARN_AT_ONCE": 0}
_HEAVY = ("train", "promote")  # commands that load torch
_JSON = ("--json", "-q")


@dataclass(frozen=True, slots=True)
class Case:
    """A command, what it is begun on, and what tells how it ended."""

    name: str
    """As in the figures: `forget`."""
    start: str
    """The prepared state that it is begun on."""
    command: tuple[str, ...]
    """Its arguments."""
    again: tuple[tuple[str, ...], ...]
    """The next start, and what looks at what it led to; the last ones may end with 2."""
    facts: Callable[[Sequence[Ran], Path], Facts]
    """What must be the same after the next start, however the command ended, from what `again` said and the root folder."""
    same: Callable[[Facts, Facts], bool] = lambda found, wanted: found == wanted
    """Whether what was found is right, beside what the undisturbed run led to."""


@dataclass(slots=True)
class Trials:
    """What was tried, and what came of it."""

    points: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """(case, kind, kill | torn | an error, `…, lasting` where it stayed) → how often."""
    failures: list[str] = field(default_factory=list)
    """What broke, and the point that does it again."""
    missed: int = 0
    """Points that the command did not reach this time: threads of others may take turns."""
    unnoticed: int = 0
    """Errors over which the command ended with 0: of what it can do without."""


# -- what is seen of a state


def _dumped(ran: Sequence[Ran]) -> Facts:
    """The canonical state, and that the doctor has nothing to say."""
    return {"state": json.loads(ran[1].out), "doctor": json.loads(ran[2].out)["problems"]}


def _plain(ran: Sequence[Ran], root: Path) -> Facts:
    return _dumped(ran)


def _forgotten(ran: Sequence[Ran], root: Path) -> Facts:
    """Also: who answers, that the list is done, and that the words stand nowhere in the state."""
    said = small_vault.SECRET.encode()
    left = [path.name for path in root.joinpath("state").rglob("*") if path.is_file() and said in path.read_bytes()]
    status = json.loads(ran[3].out)
    return {**_dumped(ran), "left": left, "list": status["forgotten"], "current": status["current"]}


def _answered(ran: Sequence[Ran], root: Path) -> Facts:
    """One note, or two where the first was there already when the command was killed."""
    notes = sorted(root.joinpath("vault/vaultllm/Answers").glob("????-??-??*.md"))
    return {**_dumped(ran), "notes": len(notes) in (1, 2)}


def _trained(ran: Sequence[Ran], root: Path) -> Facts:
    """The newest training: its weights, bit by bit; who answers; that none is left unfinished."""
    found = json.loads(ran[3].out)
    runs = [run for run in found["runs"] if run["status"] == "done"]
    last = runs[-1] if runs else {"metrics": {}, "id": None, "promoted": None}
    unfinished = [run["status"] for run in found["runs"] if run["status"] not in ("done", "failed")]
    answers = found["current"] in [run["id"] for run in runs if run["promoted"]] or (found["current"] is None and not last["promoted"])
    return {**_dumped(ran), "adapter": last["metrics"].get("adapter_sha256"), "unfinished": unfinished, "answers": answers}


def _way_back(ran: Sequence[Ran], root: Path) -> Facts:
    """Who answers, and who does after each rollback, to the end."""
    chain = [json.loads(one.out)["current"] for one in ran[3:] if one.code == 0]
    return {**_dumped(ran), "chain": chain}


def _is_on_the_way(found: Facts, wanted: Facts) -> bool:
    """A rollback that was killed has happened or not: the way back is the same, from here or one step before."""
    rest = {**found, "chain": None} == {**wanted, "chain": None}
    return rest and found["chain"] in (wanted["chain"], [found["chain"][0], *wanted["chain"]])


def _cases(runs: Sequence[str]) -> dict[str, Case]:
    """All, by name; `runs`: the two trainings of the prepared state."""
    look: tuple[tuple[str, ...], ...] = (("doctor", "--dump"), ("doctor",))
    forget, ask = ("forget", small_vault.FORGOTTEN, "--yes"), ("ask", small_vault.QUESTION)
    train, promote = ("train", "--minutes", "5", "--no-report"), ("promote", runs[-1], "--force", "--reason", "trial")
    back = (("rollback",),) * 4
    found = (
        Case("init", "bare", ("init", "{vault}"), (("init", "{vault}"), *look), _plain),
        Case("ingest", "new", ("ingest",), (("ingest",), *look), _plain),
        Case("ingest again", "changed", ("ingest",), (("ingest",), *look), _plain),
        Case("answer", "read", ask, (("ingest",), *look, ask), _answered),
        Case("train", "based", train, (train, *look, ("runs",)), _trained),
        Case("promote", "trained", promote, (promote, *look, ("runs",), *back), _way_back),
        Case("rollback", "promoted", ("rollback",), (("ingest",), *look, ("runs",), *back), _way_back, _is_on_the_way),
        Case("forget", "promoted", forget, (forget, *look, ("status",)), _forgotten),
        Case(
            "train from nothing", "read", ("train", "--minutes", "0.05", "--no-report"), (train, *look, ("runs",)), _trained, _but_weights
        ),
    )
    return {case.name: case for case in found}


def _but_weights(found: Facts, wanted: Facts) -> bool:
    """A base that was trained by the clock has other weights each time."""
    return bool(found["adapter"]) and {**found, "adapter": None} == {**wanted, "adapter": None}


# -- the bench


class Bench:
    """Prepared states, and one place at which they are put up, tried and judged. Use as a context manager."""

    def __init__(self, work: Path, told: Told = lambda line: None) -> None:
        """Everything happens below `work`, an empty folder. Call `prepare` before anything else."""
        self.work = work.resolve()
        self.root = self.work / "here"  # the same path for all: states hold absolute paths
        self.root.mkdir()
        self.told = told
        self.starters: dict[bool, Starter] = {}
        self.options = ("--vault", str(self.root / "vault"), "--state", str(self.root / "state"), *_JSON)
        self.cases: dict[str, Case] = {}
        self.wanted: dict[str, Facts] = {}
        self.calls: dict[str, Counter[str]] = {}
        self.seconds: dict[str, float] = {}
        self.loaded: dict[bool, set[str]] = {True: set(), False: set()}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None:
        for starter in self.starters.values():
            starter.close()

    def starter(self, heavy: bool = False) -> Starter:
        """The process that starts commands; `heavy`: the one that has torch loaded, of which a copy takes several times as long."""
        if heavy not in self.starters:
            self.starters[heavy] = Starter(self.root, heavy=heavy)
        return self.starters[heavy]

    def cpu(self) -> float:
        """CPU seconds until now, those of the commands included."""
        return time.process_time() + sum(starter.cpu() for starter in self.starters.values())

    def prepare(self, cases: Sequence[str] | None = None) -> None:
        """Make the states that these cases begin on (None: all cases), run each undisturbed, and note what it does and leads to."""
        small_vault.make(self.root / "vault")
        self._keep("new")
        shutil.rmtree(self.root / "vault/.vaultllm")
        self._keep("bare")
        self._put("new")
        self._must("ingest")
        clean = self._look()
        small_vault.change(self.root / "vault")
        self._keep("changed")
        self._must("ingest")
        self._keep("read")
        shutil.rmtree(self.root / "state")
        self._must("ingest")
        rebuilt = self._look()
        self._put("read")
        later = {"train", "promote", "rollback", "forget"}
        runs = self._train() if cases is None or later & set(cases) else [""]
        self.cases = {name: case for name, case in _cases(runs).items() if cases is None or name in cases}
        for name, case in self.cases.items():
            self.told(f"{name}: undisturbed")
            self.calls[name] = self.undisturbed(name)
            found, wrong = self._next(case)
            if wrong:
                raise RuntimeError(f"{name}, run twice: {wrong}")
            self.wanted[name] = found
        for name, state in (("ingest", clean), ("ingest again", rebuilt)):
            if name in self.wanted and self.wanted[name]["state"] != state:
                raise RuntimeError(f"{name} does not lead to what a rebuild leads to: {difference(self.wanted[name]['state'], state)}")

    def undisturbed(self, name: str, patches: Mapping[str, Any] | None = None) -> Counter[str]:
        """Let a case's command run to its end: how many calls of each kind it makes."""
        self._put(self.cases[name].start)
        began = time.monotonic()
        ran, made = self._run([self.cases[name].command], patches=patches)
        self.seconds.setdefault(name, time.monotonic() - began)
        if made.status != 0:
            raise RuntimeError(f"{name} fails undisturbed: {ran[-1].err}")
        return Counter(call.kind for call in made.calls)

    def _train(self) -> list[str]:
        """The states with a base, with two trainings of which the first answers, and with the second answering. Returns their ids."""
        self._must("train", "--minutes", "0.05", "--no-report")
        shutil.copytree(self.root / "state/bases", self.work / "bases")
        self._put("read")
        shutil.copytree(self.work / "bases", self.root / "state/bases")
        self._keep("based")
        self._must("train", "--minutes", "5", "--no-report")
        self._must("train", "--minutes", "5", "--no-report", "--seed", "1")
        one, two = (run["id"] for run in json.loads(self._must("runs")[-1].out)["runs"])
        while json.loads(self._must("runs")[-1].out)["current"]:
            self._must("rollback")
        self._must("promote", one, "--force", "--reason", "first")
        self._keep("trained")
        self._must("promote", two, "--force", "--reason", "second")
        self._keep("promoted")
        return [one, two]

    # -- one point

    def trial(
        self, name: str, fault: Fault | None, trials: Trials, broken: Mapping[str, Any] | None = None, seconds: float = 300.0
    ) -> bool:
        """Try one point and judge it; whether it was reached and nothing broke. `seconds`: then it is killed, wherever it is."""
        case = self.cases[name]
        self._put(case.start)
        before = self._files()
        ran, made = self._run([case.command], fault=fault, patches=broken, seconds=seconds)
        if made.hit is None and not (made.late and seconds < 300.0):
            trials.missed += 1
            return False
        what = f"{fault.how}{', lasting' if fault.lasting else ''}" if fault else "at random"
        trials.points[name, made.hit.kind if made.hit else "any", what] += 1
        where = f"{made.hit.path.removeprefix(str(self.root))}" if made.hit else f"{seconds:.3f} s"
        point = f"{name}: {what} at {fault.kind} {fault.nth} ({where})" if fault else f"{name}: {what} ({where})"
        wrong = self._changed(before) + self._half()
        if fault and fault.how in ERRORS:
            trials.unnoticed += made.status == 0
            wrong += self._said(ran[-1] if ran else Ran(made.status, "", ""), fault.how)
        found, after = self._next(case)
        wrong += after
        wrong += self._changed(before)
        if not after and not case.same(found, self.wanted[name]):
            wrong.append(f"the next start leads elsewhere: {difference(found, self.wanted[name])}")
        trials.failures += [f"{point}: {one}" for one in wrong]
        return not wrong

    def _next(self, case: Case) -> tuple[Facts, list[str]]:
        """The next start: what is known of the state then, and what is wrong with it."""
        ran, made = self._run(case.again, traced=False)
        failed = [one for number, one in enumerate(ran) if one.code and not (one.code == 2 and number >= 4)]
        if failed or made.late:
            last = (failed or ran)[-1]
            return {}, [f"the next start ends with {made.status}: {(last.err.strip() or last.out.strip())[-300:]}"]
        left = [path.relative_to(self.root).as_posix() for path in self._all() if _OURS.fullmatch(path.name)]
        left += [f"{count} of memory/{kind}*" for kind in ("gen-", "embedder-", ".embedder-") if (count := self._count(kind)) > 1]
        wrong = [f"left behind: {', '.join(left)}"] if left else []
        return case.facts(ran, self.root), wrong + self._half()

    def _count(self, kind: str) -> int:
        return sum(1 for _ in self.root.joinpath("state/memory").glob(f"{kind}*"))

    def _all(self) -> Iterator[Path]:
        yield from self.root.rglob("*")

    def _files(self) -> dict[str, tuple[bytes, int]]:
        """Path → content and rights of all files of the vault."""
        vault = self.root / "vault"
        return {
            path.relative_to(vault).as_posix(): (path.read_bytes(), path.stat().st_mode)
            for path in sorted(vault.rglob("*"))
            if path.is_file()
        }

    def _changed(self, before: Mapping[str, tuple[bytes, int]]) -> list[str]:
        """What was done to the vault that nobody may do: to a file that was there before, or beside those that are ours to write."""
        now = self._files()
        wrong = [f"a file of the vault was changed: {path}" for path, held in before.items() if now.get(path) != held]
        return wrong + [f"a file was made in the vault: {path}" for path in now.keys() - before.keys() if not _MADE.fullmatch(path)]

    def _half(self) -> list[str]:
        """Notes of ours that can be seen this very moment and are not whole."""
        wrong = []
        for path in sorted(self.root.joinpath("vault/vaultllm").rglob("????-??-??*.md")):
            head, _, body = path.read_text(encoding="utf-8", errors="replace").partition("\n---\n")
            if f"vaultllm_sha: {hashlib.sha256(body.encode()).hexdigest()}" not in head:
                wrong.append(f"a half-written note is seen: {path.name}")
        return wrong

    def _said(self, ran: Ran, error: str) -> list[str]:
        """What is wrong with how a command told of an error; nothing, when it could do without and ended with 0."""
        lines = ran.err.strip().splitlines()
        if ran.code == 0:
            return []
        if ran.code not in _EXPECTED or len(lines) != 1 or not re.match(r"vaultllm: E-[A-Z]+ ", lines[0]) or "E-INTERNAL" in lines[0]:
            return [f"it ends with {ran.code} and says: {ran.err.strip()[-400:]!r}"]
        wrong = [] if str(self.root) in lines[0] or "vaultllm/Answers/" in lines[0] else [f"it names no path: {lines[0]}"]
        if error in ("ENOSPC", "EDQUOT") and not re.search(r"\bfree\b|make room", lines[0]):
            wrong.append(f"it does not say that room is wanted: {lines[0]}")
        return wrong

    # -- states

    def _keep(self, name: str) -> None:
        shutil.copytree(self.root, self.work / name, symlinks=True)

    def _put(self, name: str) -> None:
        for path in self.root.iterdir():
            shutil.rmtree(path)
        shutil.copytree(self.work / name, self.root, symlinks=True, dirs_exist_ok=True)

    def _must(self, *command: str) -> Sequence[Ran]:
        ran, made = self._run([command], traced=False)
        if made.status != 0:
            raise RuntimeError(f"{' '.join(command)} fails: {ran[-1].err}")
        return ran

    def _look(self) -> Facts:
        state: Facts = json.loads(self._must("doctor", "--dump")[-1].out)
        return state

    def _run(
        self,
        commands: Sequence[Sequence[str]],
        *,
        fault: Fault | None = None,
        patches: Mapping[str, Any] | None = None,
        seconds: float = 300.0,
        traced: bool = True,
    ) -> tuple[list[Ran], tracer.Traced]:
        given = [(*self.options, *(part.format(vault=self.root / "vault") for part in command)) for command in commands]
        heavy = any(command[0] in _HEAVY for command in commands)
        starter = self.starter(heavy)
        ran, made, modules = starter.run(*given, fault=fault, patches=_BRIEF | dict(patches or {}), seconds=seconds, traced=traced)
        if new := set(modules) - self.loaded[heavy]:  # what one child has imported the next ones find imported
            starter.prepare(new)
            self.loaded[heavy] |= new
        return ran, made


# -- which points


def points(calls: Counter[str], kills: int, errors: int, rng: random.Random) -> list[Fault]:
    """So many points to kill at and so many errors, drawn without repeats; a kind of many calls gets more of them, by their square root.

    Half of the kills that could be torn are, half of the errors last; six of seven are ENOSPC or EIO.
    """
    left = {kind: rng.sample(range(1, count + 1), count) for kind, count in sorted(calls.items())}
    found: list[Fault] = []
    for number in range(min(kills + errors, calls.total())):
        (kind,) = rng.choices([*left], [math.sqrt(calls[kind]) if places else 0.0 for kind, places in left.items()])
        half = rng.random() < 0.5
        if number < kills:
            found.append(Fault(kind, left[kind].pop(), "torn" if half and kind in tracer.SIZED else "kill"))
        else:
            told = {error: often for error, often in _OFTEN.items() if kind != "chmod" or error in ("EIO", "EROFS")}
            (error,) = rng.choices([*told], [*told.values()])
            found.append(Fault(kind, left[kind].pop(), error, lasting=half))
    return found


_OFTEN = {"ENOSPC": 6, "EIO": 6, "EDQUOT": 1, "EROFS": 1}
_SHARES: dict[Size, dict[str, tuple[int, int]]] = {  # kills, errors
    "quick": {
        "init": (3, 2), "ingest": (11, 7), "ingest again": (11, 7), "answer": (10, 8), "train": (2, 1), "promote": (4, 3),
        "rollback": (8, 5), "forget": (12, 8),
    },
    "soak": {
        "init": (15, 15), "ingest": (125, 80), "ingest again": (125, 80), "answer": (60, 55), "train": (24, 20), "promote": (40, 30),
        "rollback": (40, 35), "forget": (100, 75), "train from nothing": (4, 2),
    },
}  # fmt: skip
_ROUNDS: dict[Size, int] = {"quick": 1, "soak": 3}  # points that were not reached (a run has not always as many calls) are drawn anew
_CONTROL: dict[Size, int] = {"quick": 3, "soak": 20}
_RANDOM_SECONDS: dict[Size, float] = {"quick": 0.0, "soak": 180.0}


def run(work: Path, size: Size, seed: int, told: Told) -> Finding:
    """Kills and errors at the writes of every command; quick: 102 points, about 50 CPU seconds, soak: 925 points, about 13 CPU minutes."""
    began, rng = time.monotonic(), random.Random(seed)
    promises = ("R1", "R2")
    with Bench(work, told) as bench:
        if why := bench.starter().why_not():
            return Finding("crash and error points", promises, 0, (), time.monotonic() - began, skipped=why)
        shares, trials = _SHARES[size], Trials()
        bench.prepare(list(shares))
        spent = bench.cpu()
        for name, shared in shares.items():
            left = list(shared)
            for _ in range(_ROUNDS[size]):
                for fault in points(bench.calls[name], left[0], left[1], rng):
                    reached = sum(trials.points.values())
                    bench.trial(name, fault, trials)
                    left[fault.how in ERRORS] -= sum(trials.points.values()) - reached
                    if (done := sum(shared) - sum(left)) % 20 == 19:
                        told(f"{name}: {done + 1} of {sum(shared)} points, {len(trials.failures)} failures")
        tried = sum(trials.points.values())
        each = (bench.cpu() - spent) / max(tried, 1)
        _at_random(bench, trials, _RANDOM_SECONDS[size], rng, told)
        control = _control(bench, _CONTROL[size], rng, told)
        cpu = bench.cpu()
    unseen = [name for name, number in control.items() if not number]
    trials.failures += [f"{name} is 0: what was unsafe on purpose was not found out, so nothing is proved" for name in unseen]
    by = {
        f"{prefix}_{key}": number
        for prefix, index in (("case", 0), ("kind", 1), ("how", 2))
        for key, number in _sums(trials, index).items()
    }
    figures: dict[str, float | int | str] = {
        "unnoticed_errors": trials.unnoticed,
        "missed": trials.missed,
        "cpu_s_per_point": round(each, 3),
        "cpu_s": round(cpu, 1),
    }
    total = sum(trials.points.values())
    return Finding("crash and error points", promises, total, trials.failures, round(time.monotonic() - began, 1), figures | control | by)


def _at_random(bench: Bench, trials: Trials, seconds: float, rng: random.Random, told: Told) -> None:
    """Kills at any moment, whatever it is at."""
    until = time.monotonic() + seconds
    names = [name for name in bench.cases if name != "train from nothing"]
    while time.monotonic() < until:
        name = rng.choice(names)
        bench.trial(name, None, trials, seconds=rng.uniform(0.02, max(0.1, bench.seconds[name])))
    if seconds:
        told(f"at random: {sum(count for point, count in trials.points.items() if point[2] == 'at random')} kills")


def _control(bench: Bench, count: int, rng: random.Random, told: Told) -> dict[str, int]:
    """The same with parts that are unsafe on purpose: how many points were tried, and of each case how many broke something."""
    trials, broke = Trials(), Counter[str]()
    for name, (kind, patches) in BROKEN.items():
        if name in bench.cases:
            given = {target: {"function": f"vaultllm.selftest.broken.{made}"} for target, made in patches.items()}
            calls = bench.undisturbed(name, given)
            for fault in points(Counter({kind: calls[kind]}), count, 0, rng):
                broke[name] += not bench.trial(name, fault, trials, broken=given)
    tried = sum(trials.points.values())
    told(f"control: {broke.total()} of {tried} points diverged, as they must")
    return {"control_points": tried, **{f"control_diverged_{name}": number for name, number in broke.items()}}


def _sums(trials: Trials, index: int) -> dict[str, int]:
    found: Counter[str] = Counter()
    for point, count in trials.points.items():
        found[point[index].replace(" ", "_").replace(",", "")] += count
    return dict(sorted(found.items()))
