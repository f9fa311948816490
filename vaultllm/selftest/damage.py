"""Every file of the state, damaged in every way: what is asked then, what `doctor` says of it, and whether all is as it was in the end.

A state is made once and copied for each damage. In the copy questions are asked as if nothing were, then `doctor` looks, `doctor
--repair` mends, and `ingest` starts anew; a ledger is moved away when the error says so. Then the canonical state, the answers
and `doctor` must be those of the whole state; and where `doctor` finds nothing, they must have been all along. Knows nothing
about what is in the files.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vaultllm import config, forgotten, heartbeat, registry, steps
from vaultllm.schema import Run
from vaultllm.selftest import Finding, Size, forks
from vaultllm.traces import every_file

_PLACES = {"quick": 1, "soak": 16}  # bits that are flipped, one a damage, in each file
_QUICK = 9  # damages
_TRIES = 3  # processes that may die over a damage, one after the other, until it is mended
_SECONDS = 240.0  # for what is done with one damage
_ROUNDED = 0.02  # scores that differ by less are the same
_LEFT_ALONE = ("lock", "following")
_LIKE = 2  # of the scene files, and of the datasets' files, each like the others, so many are damaged
_INDEX = "data_level0"  # the largest file of a Chroma index
_FORGOTTEN = "Заметки/13.md"
_WORDS = (
    "насос теплица бочка плёнка апрель сосна дятел камень сарай сосед колодец байдарка весло шпангоут печь тесто рассада вишня улей воск "
    "забор калитка фонарь лестница чердак крыша гроза туман иней родник".split(),
    "rye oven crust proof relay sensor wire board pump greenhouse ladder attic kettle violin harbour anchor compass lantern orchard cider "
    "saddle bridle meadow otter heron willow quarry slate chimney ember".split(),
    "নৌকা ঘাট নদী বৃষ্টি মাছ চা আদা এলাচ ঠাকুমা উঠোন আম কাঁঠাল পাখি জোনাকি ধান খড় গোয়াল বাঁশ সাঁকো হাট মাটি কলসি প্রদীপ পুকুর শাপলা".split(),
)
_QUESTIONS = (
    "где сосна и дятел у колодца", "насос теплица", "which lantern hangs in the orchard", "otter and heron", "নৌকা কোন ঘাট",
    "folder:Заметки улей воск", "чердак ladder attic",
)  # fmt: skip


def run(work: Path, size: Size, seed: int, told: Callable[[str], None]) -> Finding:
    """Nine damages (about 11 CPU seconds), or every file in every way (about 600 damages, 15 minutes of a core), and those of an index
    to a program that does not look for damage, which must not withstand them.
    """
    found = sweep(work, size, seed, told)
    if size == "quick" or found.skipped:
        return found
    blind = sweep(work / "blind", "quick", seed, told, only=_INDEX, blind=True)
    told(f"control: {len(blind.failures)} of {blind.tried} damages were not withstood, as it must be")
    nothing = "the control withstood all: what does not look for damage was not found out, so nothing is proved"
    failures = [*found.failures, *(() if blind.failures else (nothing,))]
    figures = {**found.figures, "control_damages": blind.tried, "control_not_withstood": len(blind.failures)}
    return replace(found, failures=failures, seconds=found.seconds + blind.seconds, figures=figures)


def sweep(work: Path, size: Size, seed: int, told: Callable[[str], None], *, only: str = "", blind: bool = False) -> Finding:
    """`run`; `only` files whose path holds this. `blind`: without seals, sums and probes, with which this must fail."""
    name = "damaged files of the state"
    if not forks.CAN:
        return Finding(name, ("R18",), 0, (), 0.0, skipped="processes cannot be forked here")
    began = time.monotonic()
    plan = _Plan(str(work), size, seed, only, blind)
    _prepare(plan)
    code = forks.lead(__name__, asdict(plan), work, lambda: told(f"{len(_read_lines(work))} damages"))
    tried = _read_lines(work)
    failures = [f"the sweep ended with {code}"] if code else []
    failures += [f"{one['damage']}: {one['wrong']}" for one in tried if one["wrong"]]
    count = Counter(one["became"] for one in tried)
    figures: dict[str, float | int | str] = {
        **{became: count[became] for became in ("found", "mended by itself", "harmless")},
        "files": len({one["damage"].partition(": ")[0] for one in tried}),
        "kinds": ", ".join(f"{kind} {n}" for kind, n in sorted(Counter(one["kind"] for one in tried).items())),
        "processes_died": sum(one["died"] for one in tried),
        "by_the_way_out_that_the_error_names": sum(one["way_out"] for one in tried),
    }
    return Finding(name, ("R18",), len(tried), failures, time.monotonic() - began, figures)


@dataclass(frozen=True)
class _Plan:
    """What the lead is told."""

    work: str
    size: Size
    seed: int
    only: str
    blind: bool

    def at(self, *names: str) -> Path:
        return Path(self.work, *names)


# -- the state that is damaged


def _prepare(plan: _Plan) -> None:
    """A vault that was read twice (the state after the first time is the older version of each file), asked, frozen, with a run."""
    vault = plan.at("vault")
    _write(vault / config.CONFIG, 'vault_id = "damage"\n')
    rng = random.Random(0)
    for number in range(40):
        said = [" ".join(rng.sample(_WORDS[number % len(_WORDS)], 7)) + "." for _ in range(3)]
        _write(vault / f"Заметки/{number}.md", f"{' '.join(said)} [[{number // 2}]]\n")
        if number == 17:
            _made(plan)
            shutil.copytree(plan.at("whole"), plan.at("older"))
    _made(plan)


def _made(plan: _Plan) -> None:
    _small_syncs()
    workspace = config.open_workspace(str(plan.at("vault")), str(plan.at("whole")))
    job = steps.Job(workspace)
    try:
        steps.ingest(job)
        steps.forget(job, _FORGOTTEN)
        steps.ask(job, _QUESTIONS[0])
        steps.dataset(job)
        folder = workspace.runs / "20250615-1" / "adapter"
        folder.mkdir(parents=True, exist_ok=True)
        weights = b"no weights: nothing loads them"
        (folder / "adapter_model.safetensors").write_bytes(weights)
        noted: dict[str, Any] = {"adapter_sha256": hashlib.sha256(weights).hexdigest()}
        base, at = "nobody is to load a model here", "2025-06-15T00:00:00+00:00"
        run = Run("20250615-1", "lora", base, "", "", {}, 0, "", "done", noted, {}, at, True)
        registry.record(workspace, job.ledger, run)
        registry.let_answer(workspace, job.ledger, run)
        (workspace.state / heartbeat.FILE).write_text('{"pid": 1, "started": "", "vault": "", "doing": "", "last": null}', encoding="utf-8")
    finally:
        job.close()


def _small_syncs() -> None:
    """Chroma writes its index's files after so many vectors: here it must do so for a few."""
    from vaultllm.memory import vectors

    vectors.HNSW.update(sync_threshold=10, batch_size=10)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


# -- damages


@dataclass(frozen=True)
class _Damage:
    """One file, and what is done to it."""

    path: str
    kind: str
    place: int = 0

    def __str__(self) -> str:
        return f"{self.path}: {self.kind}{f' at {self.place}' if self.kind == 'flipped' else ''}"


def _damages(plan: _Plan) -> list[_Damage]:
    """All of them, or a few: of each kind one, and of each kind of file."""
    rng, found = random.Random(plan.seed), []
    whole, older = plan.at("whole"), plan.at("older")
    like: Counter[str] = Counter()
    for file in every_file(whole):
        path = file.relative_to(whole).as_posix()
        like[kin := file.suffix if path.startswith(("scenes", "datasets")) else path] += 1
        if like[kin] > _LIKE or file.name in _LEFT_ALONE or file.suffix == ".pid" or plan.only not in path:
            continue
        size = file.stat().st_size
        found += [_Damage(path, kind) for kind in ("deleted", "emptied", "garbage", "folder")]
        found += [_Damage(path, "halved")] if size > 1 else []
        found += [_Damage(path, "older")] if (older / path).is_file() and (older / path).read_bytes() != file.read_bytes() else []
        found += [_Damage(path, "flipped", rng.randrange(8 * size)) for _ in range(_PLACES[plan.size]) if size]
    for folder in sorted(path for path in whole.rglob("*") if path.is_dir()):
        if plan.only in folder.relative_to(whole).as_posix():
            found.append(_Damage(folder.relative_to(whole).as_posix(), "deleted"))
    if plan.size == "soak":
        return found
    chosen: dict[str, _Damage] = {}
    for damage in rng.sample(found, len(found)):
        chosen.setdefault(damage.kind, damage)
    rest = [damage for damage in rng.sample(found, len(found)) if damage not in chosen.values()]
    return [*chosen.values(), *rest][:_QUICK]


def _done_to(state: Path, older: Path, damage: _Damage) -> None:
    path = state / damage.path
    data = path.read_bytes() if path.is_file() else b""
    if damage.kind == "flipped":
        flipped = bytearray(data)
        flipped[damage.place // 8] ^= 1 << damage.place % 8
        data = bytes(flipped)
    elif damage.kind == "garbage":
        data = random.Random(len(data)).randbytes(max(100, len(data)))
    elif damage.kind == "older":
        data = (older / damage.path).read_bytes()
    elif damage.kind in ("halved", "emptied"):
        data = data[: len(data) // 2] if damage.kind == "halved" else b""
    elif path.is_dir():
        shutil.rmtree(path)
        return
    else:
        path.unlink()
        if damage.kind == "folder":
            path.mkdir()
        return
    path.write_bytes(data)


# -- what becomes of them, in a process that has imported all and has no threads


def lead(plan_of: Mapping[str, Any]) -> None:
    """Try one damage after the other; what became of each goes into a file."""
    import chromadb  # noqa: F401
    import scipy.sparse  # noqa: F401

    importlib.import_module("vaultllm.cli")

    plan = _Plan(**plan_of)
    _small_syncs()
    truth = _tried(plan, None)
    assert all(truth[name]["code"] == 0 for name in ("ask", "chroma", "check", "dump")), truth
    with open(plan.at("tried.jsonl"), "w", encoding="utf-8") as log:
        for damage in _damages(plan):
            came = _tried(plan, damage)
            became, wrong = _judged(truth, came)
            told = {
                "damage": str(damage),
                "kind": damage.kind,
                "became": became,
                "wrong": wrong,
                "died": came["died"],
                "way_out": "way out" in came,
            }
            log.write(json.dumps(told, ensure_ascii=False) + "\n")
            log.flush()


def _tried(plan: _Plan, damage: _Damage | None) -> dict[str, Any]:
    """Step -> how it ended (`code`, `out`, `err`); `died`: how many processes did; `way out`, if one was gone."""
    state = plan.at("state")
    shutil.rmtree(state, ignore_errors=True)
    shutil.copytree(plan.at("whole"), state)
    if damage is not None:
        _done_to(state, plan.at("older"), damage)
    plan.at("steps.jsonl").write_text("", encoding="utf-8")
    died: list[int] = []
    while len(died) < _TRIES:
        code = forks.ended(forks.forked(lambda: _steps(plan)), _SECONDS)
        if code == 0:
            break
        died.append(code)
    came: dict[str, Any] = {one.pop("step"): one for one in _read_lines(plan.at(), "steps.jsonl")}
    return {"died": len(died), **came} | ({"dead": died} if len(died) == _TRIES else {})


def _steps(plan: _Plan) -> int:
    """In the child: what the user does. Goes on where one that died had come to."""
    done = [one["step"] for one in _read_lines(plan.at(), "steps.jsonl")]
    if plan.blind:
        _blinded()
    with open(plan.at("steps.jsonl"), "a", encoding="utf-8") as log:

        def step(name: str, *arguments: str, exact: bool = True) -> dict[str, Any]:
            from vaultllm import recall

            recall.EXACT_BELOW = 10**9 if exact else 0
            given = "\n".join(_QUESTIONS) if arguments[0] == "search" else ""
            out, err = plan.at("out.txt"), plan.at("err.txt")
            code = forks.command(
                ["--vault", str(plan.at("vault")), "--state", str(plan.at("state")), "--json", *arguments], out, err, given
            )
            came: dict[str, Any] = {
                "step": name,
                "code": code,
                "out": out.read_text(encoding="utf-8"),
                "err": err.read_text(encoding="utf-8"),
            }
            if arguments[0] == "search":
                came["out"] = [_hits(line) for line in came["out"].splitlines()]
            log.write(json.dumps(came, ensure_ascii=False) + "\n")
            log.flush()
            return came

        for name, arguments in (("ask", ("search", "-", "-k", "4")), ("chroma", ("search", "-", "-k", "4")), ("check", ("doctor",))):
            if name not in done:
                step(name, *arguments, exact=name != "chroma")
        if "mend" not in done:
            came = step("mend", "doctor", "--repair")
            said = came["out"] + came["err"]
            if "mend: vaultllm rollback" in said:  # an adapter is gone, and nothing has another copy of it
                step("go back", "rollback")
                log.write(json.dumps({"step": "way out", "code": 0, "out": "", "err": ""}) + "\n")
            elif _way_out(plan, said):
                log.write(json.dumps({"step": "way out", "code": 0, "out": "", "err": ""}) + "\n")
                step("mend again", "doctor", "--repair")
        for name, said in (
            ("ingest", ("ingest",)),
            ("whole", ("doctor",)),
            ("ask again", ("search", "-", "-k", "4")),
            ("chroma again", ("search", "-", "-k", "4")),
            ("status", ("status",)),
            ("dataset", ("dataset",)),
            ("dump", ("doctor", "--dump")),
        ):
            if name not in done:
                step(name, *said, exact=name != "chroma again")
    return 0


def _way_out(plan: _Plan, said: str) -> bool:
    """Do what an error says that helps; whether there was something to do."""
    state = plan.at("state")
    gone = [*state.glob("ledger.db*")] if "move it away" in said else [state / "vault_id"] if "vault_id" in said else []
    if "put back an older copy" in said:
        gone = [state / forgotten.FILE]
    for path in gone:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    if "put back an older copy" in said:
        shutil.copy2(plan.at("whole", forgotten.FILE), state)
    return bool(gone)


def _hits(line: str) -> list[Any]:
    return [[hit["path"], hit["lines"], round(hit["score"], 4)] for hit in json.loads(line)["hits"]]


def _blinded() -> None:
    """Without what finds a damage, for the trial that must fail."""
    from vaultllm import remember
    from vaultllm.memory import chroma

    chroma._mend_seal = lambda path: True
    chroma._sealed = lambda path: {}
    remember._probe = lambda *_, **__: ""


def _judged(truth: Mapping[str, Any], came: Mapping[str, Any]) -> tuple[str, str]:
    """What became of a damage, and what was wrong with that, if anything."""
    if "dead" in came:
        return "lost", f"{_TRIES} processes died over it: {came['dead']}"
    for name, one in came.items():
        if isinstance(one, dict) and (one["code"] == 1 or "E-INTERNAL" in one["err"]):
            return "lost", f"{name}: {one['err'][-400:]}"
    for name, like in (("ask again", "ask"), ("chroma again", "chroma")):
        if not _alike(truth[like]["out"], came[name]["out"]):
            return "lost", f"{name}: other answers than before: {came[name]['err'][-300:]}"
    if came["whole"]["code"]:
        return "lost", f"doctor still says: {came['whole']['out'][-300:]}{came['whole']['err'][-300:]}"
    for name in ("status", "dataset"):
        if came[name]["code"]:
            return "lost", f"{name}: {came[name]['err'][-300:]}"
    if came["dump"]["out"] != truth["dump"]["out"]:
        return "lost", f"the state is not what it was: {_other(truth['dump'], came['dump'])}"
    if came["check"]["code"]:
        return "found", ""
    for name in ("ask", "chroma"):
        if came[name]["code"] or not any(came[name]["out"]):  # an error, or a memory that is empty until the next ingest
            return "mended by itself", ""
        if not _alike(truth[name]["out"], came[name]["out"]):
            return "lost", "other answers, and doctor finds nothing"
    return "harmless", ""


def _alike(truth: Sequence[Any], came: Sequence[Any]) -> bool:
    """Whether answers name the same places with nearly the same scores: an embedder that is made anew rounds otherwise."""
    return len(truth) == len(came) and all(_near(ours, theirs) for ours, theirs in zip(truth, came, strict=True))


def _near(truth: Sequence[Any], came: Sequence[Any]) -> bool:
    found = {(path, *lines): score for path, lines, score in came}
    least = min((score for _, _, score in truth), default=0.0) + _ROUNDED  # whether one at the edge is among them may be chance
    return len(truth) == len(came) and all(
        abs(found.get((path, *lines), 0.0) - score) < _ROUNDED for path, lines, score in truth if score > least
    )


def _other(truth: Mapping[str, Any], came: Mapping[str, Any]) -> str:
    if came["code"]:
        return str(came["err"][-300:])
    one, other = json.loads(truth["out"]), json.loads(came["out"])
    return ", ".join(f"{key}: {str(one[key])[:100]} / {str(other[key])[:100]}" for key in one if one[key] != other[key])


def _read_lines(work: Path, name: str = "tried.jsonl") -> list[dict[str, Any]]:
    path = work / name
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
