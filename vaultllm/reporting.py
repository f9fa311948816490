"""The report of a run: what is known of it gathered, five questions asked, pictures drawn, a note written.

Composition: registry, dataset, models, recall, report, charts, vault, ledger. Decides nothing; a report that cannot be
made costs no training. Knows nothing about terminals.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime as dt
import hashlib
import json
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from vaultllm import charts, lineage, quotes, recall, registry, report, tokenizer, training, vault, wording
from vaultllm import dataset as datasets
from vaultllm.answer import MICRO_REPETITION
from vaultllm.config import Workspace
from vaultllm.dataset import Dataset
from vaultllm.errors import DataError, ModelError, UsageError, VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.report import Asked, Changes, Facts, Learnt
from vaultllm.schema import Example, Message, Progress, Report, Run, Scene
from vaultllm.text import language, sentences, sha

if TYPE_CHECKING:
    from vaultllm.models.hf import Loaded

QUESTIONS, NEW_TOKENS = 5, 80
ASK_SECONDS = 120.0
"""Time for all answers together; what does not fit is said to be missing."""
TEST_EXAMPLES = 60
"""Examples of the notes that only a report looks at; six with a large model."""
_LONGEST_QUESTION = 300


class Probe(NamedTuple):
    """A question that a held-out note answers."""

    question: str
    """As it is put."""
    path: str
    """The note."""
    truth: str
    """The beginning of what stands there."""


def latest(ledger: Ledger) -> str:
    """Id of the newest finished run, best one that was judged. Raises UsageError when there is none."""
    done = [run for run in reversed(ledger.runs()) if run.status == "done"]
    for run in sorted(done, key=lambda run: lineage.decision(run) == "not judged"):
        return run.id
    raise UsageError("there is no finished training to report on; start one with: vaultllm train")


def known(workspace: Workspace, ledger: Ledger, run_id: str) -> str:
    """The note that was written about a run, vault-relative, if it is still where it was written; else ""."""
    written = [(created, json.loads(record)) for created, record in ledger.answers(1_000_000)]
    found = [(created, str(about["note"])) for created, about in written if about.get("kind") == "report" and about.get("run") == run_id]
    return next((note for _, note in sorted(found, reverse=True) if (workspace.vault / note).is_file()), "")


def collect(workspace: Workspace, ledger: Ledger, run_id: str, progress: Report, built: Dataset | None = None) -> Facts:
    """All that a report of a finished run says; `built` is its dataset, read from the state when None.

    Loads the model and asks it, within `ASK_SECONDS`. What is gone (dataset, adapter, base) is left out and said. Raises
    UsageError when the run is not known or not finished.
    """
    runs = ledger.runs()
    run = registry.find(ledger, run_id)
    if run.status != "done":
        raise UsageError(f"run {run_id} is {run.status}, not done; there is nothing to report yet")
    progress(Progress("writing the report", 0.0))
    if built is None:
        with contextlib.suppress(DataError):
            built = datasets.read(workspace.datasets / run.dataset)
    if built is not None:
        built, _ = training.unseen(Path(run.base), built)
    learnt, unit = _sizes(run, built)
    spoken = main_language(built.split("train") if built else ())
    asked, test, why_not = _asked(workspace, ledger, run, built, spoken, progress)
    folder = workspace.runs / run.id
    return Facts(
        run=run,
        created=dt.datetime.now().astimezone().isoformat(timespec="microseconds"),
        language=spoken,
        answers=registry.current(workspace) == run.id,
        before=registry.way_back(ledger),
        learnt=learnt,
        unit=unit,
        held_out=len({example.path for example in built.examples if example.split != "train"}) if built else 0,
        dropped=dict(Counter(one.reason.partition(" scene ")[0] for one in built.dropped).most_common()) if built else {},
        changes=_changes(workspace, runs, run, built),
        asked=asked,
        not_asked=why_not,
        curve="",
        losses=_ends(list(_losses(folder / "metrics.jsonl"))),
        arms="",
        adapter=_shown(folder / "adapter") if registry.has_adapter(workspace, run.id) else "",
        test=test,
    )


def write(workspace: Workspace, ledger: Ledger, facts: Facts) -> dict[str, Any]:
    """Draw the pictures, write them and the note into the folder of reports, and remember the note as ours.

    Returns {run, note, pictures, questions}. The caller holds the lock. Raises VaultError.
    """
    folder, title = workspace.settings.answers.reports, report.title(facts)
    drawn = {}
    for name, picture in _pictures(workspace, facts).items():
        drawn[name] = vault.write_new(workspace.vault, folder, f"{title} {name}", picture, ".svg")
    facts = dataclasses.replace(facts, curve=drawn.get("curve", ""), arms=drawn.get("arms", ""))
    report_id = facts.run.id + "-report-" + sha(facts.run.id, facts.created, *drawn.values(), digits=8)
    name, text = report.note(facts, report_id)
    path = vault.write_new(workspace.vault, folder, name, text)
    digest = hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()
    # No words of the vault: what is forgotten must not be left here.
    about = {"kind": "report", "run": facts.run.id, "note": path, "pictures": list(drawn.values()), "said": f"vaultllm {report_id}"}
    ledger.put_answer(report_id, path, digest, facts.created, about)
    return {"run": facts.run.id, "note": path, "pictures": list(drawn.values()), "questions": len(facts.asked)}


def main_language(examples: Sequence[Example]) -> str:
    """The language of most of the learnt text, by letters (a sample of 2,000 examples)."""
    counts: Counter[str] = Counter()
    for example in examples[:: max(1, len(examples) // 2000)]:
        said = " ".join(message.text[:2000] for message in example.messages if message.learn)
        counts[language(said)] += len(said)
    return counts.most_common(1)[0][0] if counts else "en"


def _shown(path: Path) -> str:
    """A path without the name of the user's home folder."""
    with contextlib.suppress(ValueError, RuntimeError):
        return f"~/{path.relative_to(Path.home()).as_posix()}"
    return str(path)


# -- what it learnt from, and what changed


def _sizes(run: Run, built: Dataset | None) -> tuple[tuple[Learnt, ...] | None, str]:
    """Each note of the training side with what of it is learnt, in tokens of the base, or in bytes when the base is gone."""
    from vaultllm import evaluate
    from vaultllm.models import hf

    if built is None:
        return None, "tokens"
    try:
        tokens = hf.load_tokenizer(run.base) if Path(run.base).is_dir() else None
    except ModelError:
        tokens = None
    sizes: Counter[str] = Counter()
    for example in built.split("train"):
        sizes[example.path] += evaluate.learnt_bytes(example) if tokens is None else sum(evaluate.encode(tokens, example)[1])
    ordered = sorted(sizes.items(), key=lambda one: (-one[1], one[0]))
    return tuple(Learnt(path, size) for path, size in ordered), "bytes" if tokens is None else "tokens"


def _changes(workspace: Workspace, runs: Sequence[Run], run: Run, built: Dataset | None) -> Changes | str:
    """What of the training side is another than in the finished run before this one."""
    before = [one for one in runs if one.status == "done" and (one.created, one.id) < (run.created, run.id)]
    if not before:
        return "first"
    if built is None:
        return "unknown_before"
    if before[-1].dataset == run.dataset:
        return Changes((), (), ())
    try:
        old = _texts(datasets.read(workspace.datasets / before[-1].dataset))
    except DataError:
        return "unknown_before"
    new = _texts(built)
    edited = [path for path in new.keys() & old.keys() if new[path] != old[path]]
    return Changes(tuple(sorted(new.keys() - old.keys())), tuple(sorted(edited)), tuple(sorted(old.keys() - new.keys())))


def _texts(built: Dataset) -> dict[str, set[str]]:
    """Note of the training side -> fingerprints of the scenes that are learnt of it."""
    found: dict[str, set[str]] = {}
    for example in built.split("train"):
        found.setdefault(example.path, set()).update(f"{scene} {built.scenes.get(scene, '')}" for scene in example.scenes)
    return found


# -- what is asked


def probes(examples: Sequence[Example], spoken: str, most: int = QUESTIONS) -> list[Probe]:
    """Questions from held-out notes, one a note, always the same for the same notes: talks first, then tasks, then notes' titles."""
    found: dict[str, Probe] = {}
    order = sorted(examples, key=lambda example: sha("probe", example.path, example.id))
    for form in ("dialogue", "task", "prose"):
        for example in order:
            if len(found) == most:
                break
            if example.form == form and example.path not in found and (probe := _probe(example, spoken)) is not None:
                found[example.path] = probe
    return list(found.values())


def _probe(example: Example, spoken: str) -> Probe | None:
    if example.form == "prose":
        name = example.path.rpartition("/")[2].removesuffix(".md")
        lines = (line.strip() for line in example.messages[-1].text.split("\n"))
        text = "\n".join(line for line in lines if line and line != name and not line.startswith("#"))
        said = wording.words(spoken)["about"].format(title=name)
        body = " ".join(sentences(text)[:2])
        return Probe(said, example.path, body) if body and len(name) <= 100 else None
    for first, second in zip(example.messages, example.messages[1:], strict=False):
        if first.role == "user" and second.role == "assistant" and second.learn and 8 <= len(first.text.strip()) <= _LONGEST_QUESTION:
            return Probe(first.text.strip(), example.path, " ".join(sentences(second.text)[:2]))
    return None


def _asked(
    workspace: Workspace, ledger: Ledger, run: Run, built: Dataset | None, spoken: str, progress: Report
) -> tuple[tuple[Asked, ...], dict[str, Any], str]:
    """The probe questions with their answers, what the test notes cost, and why nothing was asked."""
    from vaultllm import evaluate
    from vaultllm.models import hf

    if built is None:
        return (), {}, "the data of this training are gone"
    held_out = [example for example in built.examples if example.split != "train"]
    asked = probes(held_out, spoken)
    test = [example for example in held_out if example.split == "test"]
    if not asked and not test:
        return (), {}, ""
    if not registry.has_adapter(workspace, run.id):
        return (), {}, "the adapter of this training is gone"
    try:
        loaded = hf.load(run.base, workspace.runs / run.id / "adapter")
    except (VaultllmError, RuntimeError, OSError, MemoryError) as error:
        return (), {}, (str(error).strip().split("\n") or [type(error).__name__])[0]
    source, until = quotes.Sources(workspace), time.monotonic() + ASK_SECONDS
    answered = []
    for place, probe in enumerate(asked):
        progress(Progress("asking the trained model", place / (len(asked) + 1)))
        quote, link = _remembered(workspace, ledger, probe, source)
        with evaluate.base_only(loaded.model):
            before = _said(loaded, probe.question, until)
        after = _said(loaded, probe.question, until)
        answered.append(Asked(probe.question, probe.path, probe.truth, before, after, quote, link))
    return tuple(answered), _tested(loaded, test, progress), ""


def _said(loaded: Loaded, question: str, until: float) -> str | None:
    """What the model says, greedy, without the memory; None when the time is over."""
    from vaultllm.models import hf

    ids, _ = tokenizer.encode_chat(loaded.tokenizer, [Message("user", question, False)], reply=True)
    room = min(NEW_TOKENS, loaded.context - len(ids) - 1)
    if room < 1 or time.monotonic() > until:
        return None
    stop = () if loaded.tokenizer.chat_template else ("\nUser:",)
    repetition = 1.0 if loaded.capable else MICRO_REPETITION
    pieces: list[str] = []
    for piece in hf.generate(loaded, ids, max_new_tokens=room, repetition=repetition, stop=stop):
        pieces.append(piece)
        if time.monotonic() > until:
            break
    return "".join(pieces).strip()


def _remembered(workspace: Workspace, ledger: Ledger, probe: Probe, source: quotes.Sources) -> tuple[str, str]:
    """A sentence of another note that speaks of the question, and its link; empty when there is none."""

    def elsewhere(scene: Scene) -> bool:
        return scene.source.path != probe.path and scene.trust != "generated"

    hits = recall.recall(ledger, workspace.memory, workspace.settings.memory, probe.question, 3, allow=elsewhere, plain=True)
    found = quotes.choose(probe.question, hits, source, most=1)
    return (found[0].citation.quote, found[0].citation.link) if found else ("", "")


def _tested(loaded: Loaded, examples: Sequence[Example], progress: Report) -> dict[str, Any]:
    """Bits per byte of the notes that nothing but a report looks at, without and with the adapter."""
    from vaultllm import evaluate

    if not examples:
        return {}
    sample = training.sample_of(examples, TEST_EXAMPLES if loaded.parameters < 100_000_000 else 6)
    limit = min(512, loaded.context)

    def show(share: float) -> None:
        progress(Progress("measuring the test notes", share))

    with evaluate.base_only(loaded.model):
        before = evaluate.score(loaded.model, loaded.tokenizer, sample, max_tokens=limit, progress=show)
    after = evaluate.score(loaded.model, loaded.tokenizer, sample, max_tokens=limit, progress=show)
    if not any(one.bytes for one in before):
        return {}
    interval = evaluate.paired_bootstrap(before, after)
    figures = {"bpb_before": evaluate.bits_per_byte(before), "bpb_after": evaluate.bits_per_byte(after)}
    return {**figures, "interval": dataclasses.asdict(interval), "verdict": interval.words, "examples": len(sample)}


# -- pictures


def _pictures(workspace: Workspace, facts: Facts) -> dict[str, str]:
    """Name -> SVG of what there is to draw."""
    said = report.labels(facts.language)
    drawn = {}
    points = list(_losses(workspace.runs / facts.run.id / "metrics.jsonl"))
    if points:
        drawn["curve"] = charts.curve(points, x=said["x"], y=said["y"], smooth=said["smooth"])
    arms = facts.run.metrics.get("arms") or {}
    rows = [(said[name], float(arms[name])) for name in report.ARMS if isinstance(arms.get(name), int | float)]
    if rows:
        drawn["arms"] = charts.bars(rows, title=said["arms_title"])
    return drawn


def _ends(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The mean loss of the first and of the last fifth: single steps differ by their texts."""
    losses = [loss for _, loss in points] or [0.0]
    fifth = max(1, len(losses) // 5)
    return sum(losses[:fifth]) / fifth, sum(losses[-fifth:]) / fifth


def _losses(path: Path) -> Iterator[tuple[float, float]]:
    """(step, loss) of each line that has both; a line that is no JSON is passed over: a kill may have cut the last one."""
    with contextlib.suppress(OSError):
        for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                one = json.loads(line)
                yield float(one["step"]), float(one["loss"])
