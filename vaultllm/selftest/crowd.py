"""Many processes at one vault at once: commands, a daemon, and their owner, who edits meanwhile.

Each command is a process of its own, as on the command line, forked from one that has imported all. Afterwards nothing may be lost:
the state is that of a vault which was read once by one process, and every answer, dataset, forgotten note and way back that a
command promised (exit 0) is there. Knows nothing about how the locks work.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import random
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import filelock

from vaultllm import canonical, config, dataset, forgotten, locks, registry, steps, target
from vaultllm.schema import Run
from vaultllm.selftest import Finding, Size, forks
from vaultllm.selftest.alike import difference, rebuilt
from vaultllm.traces import every_file

_SIZES = {"quick": (3, 8), "soak": (8, 50)}  # processes, commands of each
_DECK = ("ingest", "search", "ask", "forget", "dataset", "status", "rollback", "doctor", "ingest", "search", "runs", "repair")
_DEADLINE = 240.0  # seconds: a command waits 30 for the state, 60 for the memory, 30 for SQLite, and then has its work to do
_KILLED = 12  # one of so many commands that promise nothing is killed on its way
_CAN_DIE = frozenset(("ingest", "search", "dataset", "status", "doctor"))
_WAITS = 75  # exit code: another vaultllm is at work
_WHOM = re.compile(r"\(pid (\d+)\)")

_BASE = "nobody is to load a model here: not even a name"  # of the runs

_ABOUT = (
    ("Насос в теплице стоит у северной стены и включается, когда земля суше тридцати двух процентов.", "когда включается насос"),
    ("Rye wants fourteen hours of cold proof, a hot oven and a little patience.", "how long does rye want"),
    ("নৌকাটা ঘাটে বাঁধা আছে, কাল সকালে তাকে নীল রং করব।", "নৌকাটা কোথায় বাঁধা"),
    ("Плёнку меняю раз в три года, в апреле, пока нет листьев на берёзе.", "когда менять плёнку"),
)


def run(work: Path, size: Size, seed: int, told: Callable[[str], None]) -> Finding:
    """3 processes x 8 commands (about 10 CPU seconds), or 8 x 50 (about 5 minutes of two cores); beside a daemon."""
    return crowd(work, *_SIZES[size], seed, told)


def crowd(work: Path, processes: int, commands: int, seed: int, told: Callable[[str], None], *, locked: bool = True) -> Finding:
    """So many processes, so many commands of each. `locked`: with the locks, without which this must fail."""
    name = f"{processes} processes x {commands} commands beside a daemon"
    if not forks.CAN:
        return Finding(name, ("R19",), 0, (), 0.0, skipped="processes cannot be forked here")
    began = time.monotonic()
    plan = _Plan(str(work / "vault"), str(work / "state"), str(work), processes, commands, seed, locked)
    _prepare(plan)
    code = forks.lead(__name__, asdict(plan), work, lambda: told(f"{len(_read_lines(work)) - 1} of {processes * commands} commands"))
    failures = [f"the crowd ended with {code}"] if code else []
    done = [_Done(**one) for one in _read_lines(work, "commands-*.jsonl")]
    about = json.loads((work / "lead.json").read_text(encoding="utf-8")) if (work / "lead.json").exists() else {}
    failures += _said(plan, done, about)
    failures += _kept(plan, done)
    ran = Counter(one.kind for one in done)
    figures: dict[str, float | int | str] = {
        "commands": len(done),
        "kinds": ", ".join(f"{kind} {count}" for kind, count in sorted(ran.items())),
        "done": sum(one.code == 0 for one in done),
        "told_to_wait_75": sum(one.code == _WAITS for one in done),
        "killed": sum(one.killed for one in done),
        "longest_command_s": round(max((one.seconds for one in done), default=0.0), 1),
        "stale_lock_free_after_s": about.get("freed", -1.0),
    }
    return Finding(name, ("R19",), len(done), failures, time.monotonic() - began, figures)


@dataclass(frozen=True)
class _Plan:
    """What the lead is told."""

    vault: str
    state: str
    work: str
    processes: int
    commands: int
    seed: int
    locked: bool

    @property
    def workspace(self) -> config.Workspace:
        return config.open_workspace(self.vault, self.state)

    @property
    def ways_back(self) -> list[str]:
        return ["first", "second"] * (self.processes * self.commands)


@dataclass(frozen=True)
class _Done:
    """What became of a command."""

    pid: int
    kind: str
    about: str
    code: int
    seconds: float
    err: str
    killed: bool


# -- the vault


def _prepare(plan: _Plan) -> None:
    """A vault that was read, with things to forget, and two runs that answered in turn, so that there is a way back for everybody."""
    vault = Path(plan.vault)
    for number in range(24):
        said, _ = _ABOUT[number % len(_ABOUT)]
        _write(vault / f"Заметки/{number}.md", f"{said} Страница {number}, дальше в [[{number // 2}]].\n")
    for number in range(plan.processes * plan.commands):
        said = f"Ключ номер {number} лежит под камнем {_secret(plan, number)}, и это никого не касается."
        _write(vault / f"Ключи/{number}.md", f"{said}\n")
    _write(vault / config.CONFIG, 'vault_id = "crowd"\n\n[watch]\nsettle = 0.3\nreconcile = 5.0\n')
    with _job(plan.workspace) as job:
        steps.ingest(job)
        for name in ("first", "second"):
            folder = job.workspace.runs / name / "adapter"
            folder.mkdir(parents=True)
            (folder / "adapter_model.safetensors").write_bytes(b"no weights: nothing loads them")
            run = Run(name, "lora", _BASE, "", "", {}, 0, "", "done", {}, {}, f"2025-06-1{len(name)}T00:00:00+00:00", True)
            registry.record(job.workspace, job.ledger, run)
        job.ledger.set("promotions", json.dumps(plan.ways_back))
        (job.workspace.current).write_text("first\n", encoding="utf-8")


def _secret(plan: _Plan, number: int) -> str:
    return f"кварц{random.Random(f'{plan.seed} {number}').randrange(16**8):08x}"


def _write(path: Path, text: str) -> None:
    """As an editor does it: aside, and renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.tmp")
    aside.write_text(text, encoding="utf-8")
    aside.rename(path)


@contextlib.contextmanager
def _job(workspace: config.Workspace) -> Iterator[steps.Job]:
    job = steps.Job(workspace, wait=60.0)
    try:
        yield job
    finally:
        job.close()


# -- what must hold afterwards


def _said(plan: _Plan, done: Sequence[_Done], about: dict[str, Any]) -> list[str]:
    """What was wrong with how commands ended."""
    failures = []
    if len(done) != plan.processes * plan.commands:
        failures.append(f"{plan.processes * plan.commands - len(done)} commands are missing")
    pids = {str(one.pid) for one in done} | {str(about.get("daemon")), *map(str, about.get("others", ()))}
    for one in done:
        what = f"{one.kind} {one.about} (pid {one.pid})"
        if one.code == -signal.SIGKILL and one.killed:
            continue
        if one.code == -signal.SIGKILL:
            failures.append(f"{what} waited for ever: {one.err}")
        elif one.code not in (0, _WAITS):
            failures.append(f"{what} ended with {one.code}: {one.err}")
        elif one.code == _WAITS and not (named := _WHOM.findall(one.err)):
            failures.append(f"{what} does not say whom it waited for: {one.err}")
        elif one.code == _WAITS and not pids.intersection(named):
            failures.append(f"{what} waited for somebody who is not there: {one.err}")
    failures += about.get("failures", ["the lead has said nothing"])
    return failures


def _kept(plan: _Plan, done: Sequence[_Done]) -> list[str]:
    """What was lost."""
    workspace = plan.workspace
    promised = Counter(one.kind for one in done if one.code == 0)
    failures = []
    for path, text in itertools.chain.from_iterable(one.items() for one in _read_lines(Path(plan.work), "notes-*.jsonl")):
        if _text(Path(plan.vault) / path) != text:
            failures.append(f"the user's note {path} is not what it was")
    with _job(workspace) as job:
        for one in done:
            if one.kind == "forget" and one.code == _WAITS:  # as its message says: again
                steps.forget(job, one.about)
        steps.ingest(job)
        said = steps.doctor(job)
        failures += [f"doctor: {problem['message']}" for problem in said["problems"]]
        now = canonical.dump(workspace, job.ledger)
        if now != (clean := rebuilt(workspace.vault, workspace.state, Path(plan.work) / "clean")):
            failures.append(f"the state is not that of a clean rebuild: {difference(now, clean)}")
        answers = dict(job.ledger.db.execute("SELECT id, path FROM answers"))
        failures += [f"the answer {path} is not in the vault" for path in answers.values() if not (workspace.vault / path).is_file()]
        if len(answers) < promised["ask"]:
            failures.append(f"{promised['ask']} answers were promised, {len(answers)} are known")
        left = len(json.loads(job.ledger.get("promotions") or "[]"))
        if left != len(plan.ways_back) - promised["rollback"]:
            failures.append(f"{promised['rollback']} ways back were taken, {len(plan.ways_back) - left} are gone")
    failures += _forgotten(plan, workspace, [one.about for one in done if one.kind == "forget"])
    for folder in target.folders(workspace.datasets):
        if any(folder.glob("*.jsonl")):  # else what it held was forgotten
            try:
                dataset.read(folder)
            except Exception as error:  # whatever is wrong with it is what is looked for
                failures.append(f"the dataset {folder.name} cannot be read: {error}")
    return failures


def _forgotten(plan: _Plan, workspace: config.Workspace, paths: Sequence[str]) -> list[str]:
    """What is left of what was forgotten."""
    failures = []
    known = forgotten.load(workspace.state)
    for path in paths:
        if not known.path(path):
            failures.append(f"{path} was forgotten, and is not on the list")
    secrets = {_secret(plan, int(Path(path).stem)).encode(): path for path in paths}
    for file in every_file(workspace.state):
        data = file.read_bytes()
        failures += [f"{path} was forgotten, and stands in {file.name}" for secret, path in secrets.items() if secret in data]
    return failures


def _read_lines(work: Path, pattern: str = "*.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for file in sorted(work.glob(pattern)) for line in file.read_text(encoding="utf-8").splitlines()]


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


# -- the crowd itself, in a process that has imported all and has no threads


def lead(plan_of: Mapping[str, Any]) -> None:
    """Start the daemon and the crowd; wait until all is done. Results go into files."""
    forks.load(("chromadb", "scipy.sparse"))
    plan = _Plan(**plan_of)
    failures: list[str] = []
    daemon, said = _forked(plan, ["watch", "--json"]), Path(plan.work) / "watch.log"
    _until(lambda: '"ingested"' in (_text(said) or ""), failures, "the daemon does not start")
    second, other = _forked(plan, ["watch", "--json"], log="second.log"), Path(plan.work) / "second.log"
    _until(lambda: bool(_text(other)), failures, "the second daemon says nothing")
    code, err = forks.ended(second, 2.0 if '"started"' in (_text(other) or "") else 60.0), _text(other) or ""
    if code != _WAITS or f"(pid {daemon})" not in err:
        failures.append(f"a second daemon ended with {code}, and said: {err}")
    actors = [_actor(plan, number) for number in range(plan.processes)]
    for number, actor in enumerate(actors):
        if code := forks.ended(actor, _DEADLINE * plan.commands):
            failures.append(f"process {number} ended with {code}")
    os.kill(daemon, signal.SIGTERM)
    if code := forks.ended(daemon, 60.0):
        failures.append(f"the daemon ended with {code}")
    for line in (_text(said) or "").splitlines():
        event = json.loads(line) if line.startswith("{") else {"event": "problem", "message": line}
        is_grave = event["event"] == "problem" and event.get("code", "E-").startswith(("E-", "W-MEMORY"))
        if is_grave or (event["event"] == "waiting" and not _WHOM.search(event["message"])):
            failures.append(f"the daemon: {line}")
    freed, holder = _freed(plan)
    about = {"daemon": daemon, "others": [second, holder], "failures": failures, "freed": freed}
    (Path(plan.work) / "lead.json").write_text(json.dumps(about), encoding="utf-8")


def _freed(plan: _Plan) -> tuple[float, int]:
    """Seconds after which a lock is free whose holder was killed, and whose pid another program has by now; the holder."""
    path = Path(plan.state) / "lock"
    said, told = os.pipe()
    if not (holder := os.fork()):
        locks.take(path, 30.0)
        os.write(told, b"!")
        signal.pause()
    os.read(said, 1)
    os.kill(holder, signal.SIGKILL)
    os.waitpid(holder, 0)
    path.with_suffix(".pid").write_text(f"{os.getppid()} vaultllm ingest\n", encoding="utf-8")
    began = time.monotonic()
    locks.take(path, 30.0).release()
    return round(time.monotonic() - began, 3), holder


def _actor(plan: _Plan, number: int) -> int:
    """A process that runs one command after the other, and edits its own notes between them."""
    return forks.forked(lambda: _act(plan, number))


def _act(plan: _Plan, number: int) -> None:
    rng = random.Random(f"{plan.seed} {number}")
    mine: dict[str, str | None] = {}
    keys = iter(range(number * plan.commands, (number + 1) * plan.commands))
    deck: list[str] = []
    with open(Path(plan.work) / f"commands-{number}.jsonl", "w", encoding="utf-8") as log:
        for _ in range(plan.commands):
            _edit(plan, number, rng, mine)
            if not deck:
                deck = rng.sample(_DECK, len(_DECK))
            kind = deck.pop()
            about = f"Ключи/{next(keys)}.md" if kind == "forget" else rng.choice(_ABOUT)[1]
            dies = rng.uniform(0.0, 0.6) if kind in _CAN_DIE and not rng.randrange(_KILLED) else None
            began = time.monotonic()
            name = f"said-{number}.txt"
            pid = _forked(plan, _arguments(kind, about), log=name)
            code = forks.ended(pid, _DEADLINE if dies is None else dies)
            err = (_text(Path(plan.work) / name) or "").strip()[-600:] if code else ""
            done = _Done(pid, kind, about, code, round(time.monotonic() - began, 2), err, dies is not None)
            log.write(json.dumps(asdict(done), ensure_ascii=False) + "\n")
            log.flush()
    Path(plan.work, f"notes-{number}.jsonl").write_text(json.dumps(mine, ensure_ascii=False) + "\n", encoding="utf-8")


def _arguments(kind: str, about: str) -> list[str]:
    return {
        "ask": ["ask", about],
        "search": ["search", about],
        "forget": ["forget", about, "--yes"],
        "repair": ["doctor", "--repair"],
    }.get(kind, [kind])


def _edit(plan: _Plan, number: int, rng: random.Random, mine: dict[str, str | None]) -> None:
    """What the owner does to his notes: `mine` holds what each must be in the end, None for one that is gone."""
    vault, there = Path(plan.vault), sorted(path for path, text in mine.items() if text is not None)
    path = f"Дела {number}/{rng.randrange(10**6)}.md"
    what = rng.choice(("new", "new", "append", "rename", "delete")) if there else "new"
    old = rng.choice(there) if there else ""
    if what == "new":
        mine[path] = f"{rng.choice(_ABOUT)[0]} Это записано под номером {rng.randrange(10**6)}.\n"
        _write(vault / path, mine[path] or "")
    elif what == "append":
        mine[old] = f"{mine[old]}\n{rng.choice(_ABOUT)[0]}\n"
        _write(vault / old, mine[old] or "")
    elif what == "rename":
        mine[path], mine[old] = mine[old], None
        (vault / old).rename(vault / path)
    else:
        mine[old] = None
        (vault / old).unlink()


def _forked(plan: _Plan, arguments: Sequence[str], log: str = "watch.log") -> int:
    """A command in a process of its own, as the command line runs it; what it says goes into a file. Its pid."""

    def work() -> int:
        if not plan.locked:
            filelock.FileLock.acquire = _unlocked  # type: ignore[assignment]
        said = Path(plan.work) / log
        return forks.command(["--vault", plan.vault, "--state", plan.state, *arguments], said, said)

    return forks.forked(work)


def _unlocked(lock: filelock.FileLock, **_: Any) -> None:
    """Instead of taking a lock, for the trial that must fail."""


def _until(there: Callable[[], bool], failures: list[str], otherwise: str) -> None:
    until = time.monotonic() + 60.0
    while not there():
        if time.monotonic() > until:
            failures.append(otherwise)
            return
        time.sleep(0.02)
