"""The verbs: one function each. Its signature is the command's options, the pipeline's keys and their check.

Every step takes a `Job` (workspace, progress, how long to wait for a lock) and returns one JSON-ready dict;
`cli.py` shows it, `pipeline.py` runs it, `watch.py` calls it. Knows nothing about terminals.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from filelock import FileLock, Timeout

from vaultllm import config
from vaultllm.errors import DataError, LockedError, UsageError, VaultError, VaultllmError
from vaultllm.files import write_whole
from vaultllm.ledger import Change, KnownNote, Ledger, NoteRow
from vaultllm.schema import Answer, Hit, Passage, Problem, Progress, Report, Scene, silent, to_dict
from vaultllm.text import nfc, sha

if TYPE_CHECKING:
    from vaultllm import vault
    from vaultllm.dataset import Dataset

BATCH = 200  # notes per transaction: a kill costs at most so many notes' parsing


@dataclass(slots=True)
class Job:
    """What every step is given."""

    workspace: config.Workspace
    """Vault, state, settings."""
    progress: Report = silent
    """Called with where the work stands."""
    stream: Callable[[str], None] | None = None
    """Called with pieces of an answer as they are made; None: nobody reads along."""
    wait: float = 30.0
    """Seconds to wait for another process that writes."""
    _ledger: Ledger | None = field(default=None, repr=False)

    @property
    def ledger(self) -> Ledger:
        """The open ledger."""
        if self._ledger is None:
            self._ledger = Ledger(self.workspace.ledger)
        return self._ledger

    def close(self) -> None:
        """Close the ledger."""
        if self._ledger is not None:
            self._ledger.close()
            self._ledger = None

    @contextlib.contextmanager
    def lock(self, name: Literal["lock", "train.lock", "watch.lock"] = "lock", wait: float | None = None) -> Iterator[None]:
        """Be the only writer. Raises LockedError naming the holder's pid when it does not become free in time."""
        path = self.workspace.state / name
        holder = path.with_suffix(".pid")
        lock = FileLock(path, mode=0o600)
        try:
            lock.acquire(timeout=self.wait if wait is None else wait, poll_interval=0.05)
        except Timeout:
            pid = "unknown"
            with contextlib.suppress(OSError):  # it may have ended this very moment
                pid = holder.read_text(encoding="utf-8").strip() or pid
            raise LockedError(f"another vaultllm (pid {pid}) is at work on this state; try again when it is done", path=str(path)) from None
        try:
            holder.write_text(f"{os.getpid()}\n", encoding="utf-8")
            yield
        finally:
            holder.unlink(missing_ok=True)
            lock.release()


# -- ingest


def ingest(
    job: Job,
    full: Annotated[bool, typer.Option("--full", help="Parse every note again, changed or not.")] = False,
    confirm: Annotated[bool, typer.Option("--confirm", help="Go on even if many notes have vanished from the vault.")] = False,
) -> dict[str, Any]:
    """Scan the vault; parse what changed into scenes; bring the memory up to date."""
    from vaultllm import recall, vault

    started = time.perf_counter()
    settings = job.workspace.settings
    with job.lock():
        scan = vault.scan(job.workspace.vault, settings.scan, settings.answers.folder)
        known = job.ledger.known()
        gone = _gone(known, scan)
        if not confirm and len(gone) > 20 and len(gone) > len(known) / 5:
            raise VaultError(
                f"{len(gone)} of {len(known)} known notes have vanished; nothing was removed. "
                "If the vault is complete, run: vaultllm ingest --confirm",
                path=str(job.workspace.vault),
                code="E-VANISHED",
            )
        parsed, unchanged, change = _ingest_files(job, scan.files, known, full)
        for path in gone:
            _scene_file(job, path).unlink(missing_ok=True)
            change += Change(removed=job.ledger.remove_note(path))
        _keep_problems(job.ledger, scan)
        memory = recall.refresh(job.ledger, job.workspace.memory, settings.memory, job.progress)
    return {
        "notes": {
            "seen": len(scan.files),
            "parsed": parsed,
            "unchanged": unchanged,
            "removed": len(gone),
            "failed": [_problem(path, problem) for path, problem in job.ledger.problems() if problem.code.startswith("E-")],
        },
        "scenes": {
            "added": change.added,
            "changed": change.changed,
            "removed": change.removed,
            "total": job.ledger.counts()["scenes"],
        },
        "memory": memory,
        "seconds": round(time.perf_counter() - started, 3),
    }


def _ingest_files(job: Job, files: Sequence[vault.FileStat], known: dict[str, KnownNote], full: bool) -> tuple[int, int, Change]:
    """Parse what changed, a batch a transaction. Returns how many were parsed, how many had not changed, and the change."""
    from vaultllm import vault

    parser = _parser(job)
    todo = []
    for file in files:
        old = known.get(file.path)
        same = old is not None and _stat(file) == (old.size, old.mtime_ns, old.ctime_ns, old.inode) and old.parser == parser
        if full or not same:
            todo.append((file, old))
    parsed, unchanged, change = 0, len(files) - len(todo), Change()
    for start in range(0, len(todo), BATCH):
        with job.ledger.transaction():
            for file, old in todo[start : start + BATCH]:
                try:
                    data = vault.read(job.workspace.vault, file.path, job.workspace.settings.scan.max_bytes)
                except VaultllmError as error:  # what was known of it stays; the problem says why it is not newer
                    _set_problems(job.ledger, file.path, (Problem(error.code, error.message),))
                    continue
                digest = hashlib.sha256(data).hexdigest()
                if old is not None and not full and old.sha256 == digest and old.parser == parser:
                    job.ledger.touch(old.id, *_stat(file))
                    unchanged += 1
                    continue
                try:
                    read = _read_note(job, file.path, data)
                except Exception as error:  # a bug of ours in one note must not keep all others out of the memory
                    message = f"the note could not be read ({type(error).__name__}); please report this bug of ours; its last state is kept"
                    _set_problems(job.ledger, file.path, (Problem("E-BUG", message),))
                    continue
                change += _store_note(job, file, digest, parser, read)
                parsed += 1
        job.progress(Progress("reading notes", min(1.0, (start + BATCH) / len(todo))))
    return parsed, unchanged, change


def _gone(known: Iterable[str], scan: vault.Scan) -> list[str]:
    """Known notes that left the vault. One that is only unreadable now (or below a folder that is) has not left."""
    hidden = [path for path, problem in scan.skipped if problem.code not in ("W-KIND", "W-LINK")]
    present = {file.path for file in scan.files} | set(hidden)
    folders = tuple(path + "/" for path in hidden)
    return sorted(path for path in known if path not in present and not path.startswith(folders))


def _stat(file: vault.FileStat) -> tuple[int, int, int, int]:
    return file.size, file.mtime_ns, file.ctime_ns, file.inode


def _parser(job: Job) -> str:
    """What a note's scenes depend on besides its bytes: our code, and the settings that reading looks at."""
    from vaultllm import scenes

    settings = job.workspace.settings
    return f"{scenes.PARSER}-{sha(settings.timezone, settings.scan.model_dump_json(), digits=8)}"


@dataclass(frozen=True, slots=True)
class _Read:
    """A note that was read, before anything of it is stored."""

    title: str
    reader: str
    why: str
    scenes: list[tuple[Scene, tuple[Passage, ...]]]
    yaml: str
    problems: tuple[Problem, ...]


def _read_note(job: Job, path: str, data: bytes) -> _Read:
    """Bytes -> note -> turns -> scenes and passages."""
    from vaultllm import chats, markdown, scenes

    settings = job.workspace.settings
    parse = markdown.plain_note if path.lower().endswith(".json") else markdown.parse
    note = parse(path, data)
    reader, why, conversations = chats.read(note, settings.scan, settings.timezone)
    cut, noticed = scenes.cut(note, reader, conversations, templates=settings.scan.templates)
    if parse is markdown.plain_note and not reader:
        message = "no chats of ChatGPT or Claude are in it (is it whole?); export it again, or rename the file"
        noticed = (*noticed, Problem("W-EXPORT", message))
    parts = [(scene, scenes.passages(scene)) for scene in cut]
    return _Read(note.title, reader, why, parts, scenes.to_yaml(path, cut), (*note.problems, *noticed))


def _store_note(job: Job, file: vault.FileStat, digest: str, parser: str, read: _Read) -> Change:
    """Scenes -> YAML and ledger."""
    # The YAML first: were it last, a kill between the two would leave a ledger that believes it was written.
    if read.scenes:
        _write_if_changed(_scene_file(job, file.path), read.yaml)
    else:
        _scene_file(job, file.path).unlink(missing_ok=True)
    row = NoteRow(file.path, read.title, *_stat(file), digest, parser, read.reader, read.why)
    change = job.ledger.put_note(row, read.scenes)
    _set_problems(job.ledger, file.path, read.problems)
    return change


def _scene_file(job: Job, path: str) -> Path:
    """Where a note's scenes are written; a name too long for the file system is cut and marked with a hash."""
    name = path + ".yaml"
    parts = [
        part if len(part.encode()) <= 250 else part.encode()[:200].decode("utf-8", "ignore") + "~" + sha(part, digits=8) + ".yaml"
        for part in name.split("/")
    ]
    return job.workspace.scenes.joinpath(*parts)


def _write_if_changed(path: Path, content: str) -> None:
    data = content.encode("utf-8")
    if path.exists() and path.read_bytes() == data:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, data)


def _set_problems(ledger: Ledger, path: str, problems: Sequence[Problem]) -> None:
    """Write only what is different: a scan that finds nothing new leaves the ledger's file untouched."""
    if sorted(ledger.problems_of(path), key=repr) != sorted(problems, key=repr):
        ledger.set_problems(path, problems)


def _keep_problems(ledger: Ledger, scan: vault.Scan) -> None:
    """The problems of files that were skipped; those of files that are gone are dropped."""
    skipped = dict(scan.skipped)
    for path, problem in skipped.items():
        _set_problems(ledger, path, (problem,))
    present = {file.path for file in scan.files} | set(skipped)
    for path in {path for path, _ in ledger.problems()} - present:
        ledger.set_problems(path, ())


def _problem(path: str, problem: Problem) -> dict[str, Any]:
    return {"path": path, "line": problem.line, "code": problem.code, "message": problem.message}


# -- look


def show_scenes(
    job: Job,
    path: Annotated[str | None, typer.Argument(help="A note, vault-relative; all notes when left out.")] = None,
) -> dict[str, Any]:
    """Show the scenes of a note, or of the vault."""
    path = None if path is None else _relative(job, path)
    if path is not None and not job.ledger.knows(path):
        raise DataError("this note is not known; name it as it stands in the vault, or run: vaultllm ingest", path=path)
    return {"scenes": [to_dict(scene) for scene in job.ledger.scenes(path)]}


def search(
    job: Job,
    query: Annotated[str, typer.Argument(help="What to look for; `-` reads one query per line.")],
    k: Annotated[int, typer.Option("-k", "--hits", min=1, max=1000, help="How many hits.")] = 8,
) -> dict[str, Any]:
    """Find scenes by words and by meaning, and say why each was found."""
    from vaultllm import recall

    started = time.perf_counter()
    hits = recall.recall(job.ledger, job.workspace.memory, job.workspace.settings.memory, query, k)
    return {"query": query, "hits": [_hit(hit) for hit in hits], "seconds": round(time.perf_counter() - started, 3)}


def _hit(hit: Hit) -> dict[str, Any]:
    return {
        "scene": hit.scene.id,
        "path": hit.path,
        "title": hit.scene.title,
        "headings": list(hit.scene.headings),
        "at": hit.scene.at,
        "lines": list(hit.lines),
        "uids": list(hit.uids),
        "text": hit.text,
        "score": round(hit.score, 4),
        "why": {name: round(part, 4) for name, part in hit.why.items()},
    }


def _relative(job: Job, path: str) -> str:
    """A note's path as the vault knows it; taken too: absolute, from the folder one stands in, in another form of Unicode."""
    vault = job.workspace.vault
    given = config.path_of(path)
    if given.is_absolute() or (not (vault / given).exists() and given.exists()):
        whole = given.resolve()
        given = whole.relative_to(vault) if whole.is_relative_to(vault) else given
    path = given.as_posix()
    if job.ledger.knows(path):
        return path
    # Also when the file is there: macOS opens a name in any form of Unicode, the ledger knows only the one on disk.
    other = next((known for known in job.ledger.known() if nfc(known) == nfc(path)), path)
    is_another = (vault / path).exists() and (vault / other).exists() and not (vault / path).samefile(vault / other)
    return path if is_another else other


def status(job: Job) -> dict[str, Any]:
    """What is known, what answers, what waits, what is wrong and how to mend it."""
    from vaultllm import registry

    counts = job.ledger.counts()
    kinds = job.ledger.kinds()
    current = registry.current(job.workspace)
    new = registry.new_scenes(job.workspace, job.ledger)
    return {
        "vault": str(job.workspace.vault),
        "state": str(job.workspace.state),
        "vault_id": job.workspace.settings.vault_id,
        "notes": counts["notes"],
        "scenes": {"total": counts["scenes"], "trainable": counts["trainable"], "kinds": kinds},
        "memory": {"passages": counts["passages"], "vectors": counts["vectors"], "waiting": counts["outbox"]},
        "dataset": {"new_scenes": new, "min_new": job.workspace.settings.train.min_new},
        "current": current or None,
        "problems": [_problem(path, problem) for path, problem in job.ledger.problems()],
    }


# -- train


def dataset(
    job: Job,
    to: Annotated[Literal["jsonl", "sharegpt", "alpaca"], typer.Option("--to", help="Format of --out.")] = "jsonl",
    out: Annotated[Path | None, typer.Option("--out", help="Folder to export to, outside the vault.")] = None,
) -> dict[str, Any]:
    """Freeze a dataset; show its counts, what was dropped, and why."""
    from vaultllm import dataset as datasets
    from vaultllm import registry

    out = None if out is None else config.path_of(out)
    if out is not None and out.resolve().is_relative_to(job.workspace.vault):
        raise UsageError("--out lies in the vault, where we write no data; name a folder outside of it", path=str(out))
    built = _dataset(job)
    folder = datasets.write(built, job.workspace.datasets)
    try:
        exported = [str(path) for path in datasets.export(built, to, out)] if out is not None else []
    except OSError as error:
        raise UsageError(f"--out cannot be written ({error.strerror}); name another folder", path=str(out)) from error
    why = Counter(one.reason.partition(" scene ")[0] for one in built.dropped)
    return {
        "id": built.id,
        "counts": datasets.counts(built),
        "dropped": dict(why.most_common()),
        "tokens": registry.tokens(job.workspace, job.ledger, built),
        "folder": str(folder),
        "exported": exported,
    }


def _dataset(job: Job) -> Dataset:
    from vaultllm import dataset as datasets

    built = datasets.build(job.ledger.scenes(), val=job.workspace.settings.train.val, ours=job.ledger.ours())
    if not built.examples:
        counts = job.ledger.counts()
        raise DataError(
            f"nothing to train on: {counts['notes']} notes, {counts['scenes']} scenes, {counts['trainable']} of them may be trained on; "
            "run: vaultllm ingest, then: vaultllm status",
        )
    return built


def train(
    job: Job,
    base: Annotated[str | None, typer.Option("--base", help="`micro`, a folder, or a Hugging Face id; default: the settings.")] = None,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.05, help="Time for it all; default: the settings.")] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Of data order and initialisation.")] = None,
    resume: Annotated[bool, typer.Option("--resume/--new", help="Go on with an interrupted training of the same data.")] = True,
    fresh: Annotated[bool, typer.Option("--fresh", help="Train the micro base again, even if there is one.")] = False,
) -> dict[str, Any]:
    """Train an adapter (and the micro base, if there is none), measure it, promote it if it is not worse."""
    from vaultllm import registry

    settings = job.workspace.settings.train
    chosen: dict[str, Any] = {"base": base, "minutes": minutes, "seed": seed}
    settings = settings.model_copy(update={key: value for key, value in chosen.items() if value is not None})
    with job.lock("train.lock"):
        return registry.train(job.workspace, job.ledger, _dataset(job), settings, job.progress, resume=resume, fresh=fresh)


def retrain(
    job: Job,
    minutes: Annotated[float | None, typer.Option("--minutes", min=0.05, help="Time for it all; default: the settings.")] = None,
    min_new: Annotated[int | None, typer.Option("--min-new", min=1, help="Scenes that must be new; default: the settings.")] = None,
) -> dict[str, Any]:
    """What cron calls: read the vault, and train if enough is new. One at a time; exit 75 when one is at work."""
    from vaultllm import registry

    with job.lock("train.lock", wait=0.0):
        ingest(job)
        needed = min_new or job.workspace.settings.train.min_new
        new = registry.new_scenes(job.workspace, job.ledger)
        if new < needed:
            return {"status": "nothing new", "new_scenes": new, "min_new": needed}
        settings = job.workspace.settings.train
        if minutes is not None:
            settings = settings.model_copy(update={"minutes": minutes})
        result = registry.train(job.workspace, job.ledger, _dataset(job), settings, job.progress, resume=True, fresh=False)
        return {**result, "new_scenes": new}


def runs(job: Job) -> dict[str, Any]:
    """The trainings, oldest first, and which one answers."""
    from vaultllm import registry

    return {"runs": [to_dict(run) for run in job.ledger.runs()], "current": registry.current(job.workspace) or None}


def promote(job: Job, run: Annotated[str, typer.Argument(help="Id of the run that shall answer.")]) -> dict[str, Any]:
    """Let this run answer from now on."""
    from vaultllm import registry

    with job.lock():
        before = registry.promote(job.workspace, job.ledger, run)
    return {"current": run, "before": before or None}


def rollback(job: Job) -> dict[str, Any]:
    """Let the run before the current one answer again (or the base, if there was none)."""
    from vaultllm import registry

    with job.lock():
        before, now = registry.rollback(job.workspace, job.ledger)
    return {"current": now or None, "before": before}


# -- answer


def ask(
    job: Job,
    question: Annotated[str, typer.Argument(help="The question; `-` reads it from standard input.")],
    note: Annotated[str | None, typer.Option("--note", help="The note it is asked about, vault-relative: its scenes come first.")] = None,
    write: Annotated[bool, typer.Option("--write/--no-write", help="Write the answer as a note.")] = True,
) -> dict[str, Any]:
    """Answer a question as a note: what the vault says, with links to its lines, and what the model says."""
    from vaultllm import answer

    if not question.strip():
        raise UsageError("the question is empty")
    if note is not None:
        note = _relative(job, note)
        with contextlib.suppress(VaultllmError):  # the note as it is now; when it cannot be read, the answer says so
            ingest(job)
    found = answer.ask(job.workspace, job.ledger, question.strip(), note=note, stream=job.stream, progress=job.progress)
    path = None
    if write:
        with job.lock():
            path = answer.write(job.workspace, job.ledger, found)
    return _answered(found, path)


def reply(job: Job, path: Annotated[str, typer.Argument(help="A chat note whose last turn is yours, vault-relative.")]) -> dict[str, Any]:
    """Answer the open turn at the end of a chat note, by appending to it."""
    from vaultllm import answer

    path = _relative(job, path)
    found = answer.reply(job.workspace, job.ledger, path, stream=job.stream, progress=job.progress, lock=job.lock)
    return _answered(found, path)


def _answered(found: Answer, path: str | None) -> dict[str, Any]:
    return {
        "question": found.question,
        "answer": found.text,
        "note": path,
        "sources": [
            {"path": source.path, "lines": list(source.lines), "uid": source.uid, "quote": source.quote, "link": source.link}
            for source in found.sources
        ],
        "model": found.model,
        "capable": found.capable,
        "run": found.run or None,
        "seconds": round(found.seconds, 3),
    }


# -- mend


def doctor(
    job: Job, repair: Annotated[bool, typer.Option("--repair", help="Mend what can be mended, from the vault and the ledger.")] = False
) -> dict[str, Any]:
    """Check the ledger, the scene files, the memory and the current run."""
    from vaultllm import recall, registry

    found: list[dict[str, Any]] = []  # what begins with W- can be mended here
    with job.lock():
        (integrity,) = job.ledger.db.execute("PRAGMA integrity_check").fetchone()
        if integrity != "ok":
            found.append({"code": "E-LEDGER", "message": f"the ledger is damaged: {integrity}; move it away and run: vaultllm ingest"})
        missing = [path for path in job.ledger.notes_with_scenes() if not _scene_file(job, path).is_file()]
        if missing:
            found.append({"code": "W-SCENES", "message": f"{len(missing)} scene files are missing; mend: vaultllm doctor --repair"})
            if repair:
                from vaultllm import scenes

                for path in missing:
                    _write_if_changed(_scene_file(job, path), scenes.to_yaml(path, list(job.ledger.scenes(path))))
        memory = recall.check(job.ledger, job.workspace.memory)
        if memory:
            found.append({"code": "W-MEMORY", "message": f"{memory}; mend: vaultllm doctor --repair"})
            if repair:
                recall.rebuild(job.ledger, job.workspace.memory, job.workspace.settings.memory, job.progress)
        broken = registry.check(job.workspace, job.ledger)
        if broken:
            found.append({"code": "E-RUN", "message": broken})
    left = [one for one in found if not (repair and one["code"].startswith("W-"))]
    return {"problems": found, "repaired": len(left) < len(found), "ok": not left}
