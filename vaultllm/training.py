"""One training of a vault: the base, the adapter, its measures, the gate; what passes may answer (`registry.py`).

Knows which base a run stands on and which notes that base has seen; knows nothing about questions or notes' formats.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import functools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaultllm import dataset as datasets
from vaultllm import origin as origins
from vaultllm import registry
from vaultllm.config import TrainSettings, Workspace
from vaultllm.dataset import Dataset
from vaultllm.errors import DataError, ModelError
from vaultllm.files import write_whole
from vaultllm.ledger import Ledger
from vaultllm.power import Wait
from vaultllm.schema import Example, Progress, Report, Run
from vaultllm.splits import SPLITS

if TYPE_CHECKING:
    from vaultllm.models.hf import Loaded

BASE_SHARE = 0.6  # of the minutes, when the micro base has to be trained first
ARM_EXAMPLES = 24  # held-out answers on which the four arms are measured: enough to see, few enough to wait for
MEASURES = 0.2  # of the minutes: what the measures of `scorecard` may take beyond the training
GATE_EXAMPLES = 200  # held-out examples on which the current run and the new one are compared
# Settings that may change between two nights of one training.
_OF_A_NIGHT = {"from_", "minutes", "min_new", "leak_limit", "keep", "only_on_ac", "max_load", "nice"}
SAMPLE_EXAMPLES = 400  # that are encoded to tell how many tokens all have


# -- the micro base


def micro_base(
    workspace: Workspace, built: Dataset, *, minutes: float, seed: int, progress: Report, fresh: bool, **watched: Any
) -> tuple[Path, bool]:
    """The micro base for this dataset, and whether it had to be trained: when there is none, or the text has doubled.

    `watched`: `pretrain`'s `written` and `stop`.
    """
    from vaultllm.models import micro

    found = registry.newest_micro(workspace)
    train = built.written("train")
    size = sum(len(message.text.encode()) for example in train for message in example.messages)
    if found is not None and not fresh:
        about = json.loads((found / "micro.json").read_text(encoding="utf-8"))
        if size < 2 * about["text_bytes"]:
            return found, False
    folder = workspace.bases / f"micro-{_stamp()}"
    workspace.bases.mkdir(exist_ok=True)
    for left in workspace.bases.glob("micro-*"):
        if left.is_dir() and not (left / "seen.json").is_file():  # of a training that was killed
            shutil.rmtree(left, ignore_errors=True)
    micro.pretrain(train, folder, minutes=minutes, seed=seed, progress=progress, val=built.split("val"), **watched)
    seen = {"paths": sorted({example.path for example in train}), "scenes": sorted({id_ for example in train for id_ in example.scenes})}
    write_whole(folder / "seen.json", json.dumps(seen, ensure_ascii=False, indent=1) + "\n")  # last: now the base is there
    return folder, True


def unseen(base: Path, built: Dataset) -> tuple[Dataset, int]:
    """The dataset without held-out examples that the base was trained on (a note that was renamed), and how many they were."""
    path = base / "seen.json"
    if not path.is_file():
        return built, 0
    seen = json.loads(path.read_text(encoding="utf-8"))
    paths, scenes = set(seen["paths"]), set(seen["scenes"])
    kept = tuple(
        example for example in built.examples if example.split == "train" or not (example.path in paths or scenes & set(example.scenes))
    )
    return dataclasses.replace(built, examples=kept), len(built.examples) - len(kept)


def tokens(workspace: Workspace, ledger: Ledger, built: Dataset) -> dict[str, int] | None:
    """How many tokens of each side are learnt and how many are context, by the base's tokenizer; None before there is a base here."""
    from vaultllm import evaluate
    from vaultllm.models import hf

    if registry.check(workspace, ledger):  # what answers is broken: `doctor` says how, and counting needs it not
        return None
    serves = registry.serving(workspace, ledger)
    if serves is None or not Path(serves[0]).is_dir():  # a hub id is not fetched for counting
        return None
    tokenizer = hf.load_tokenizer(serves[0])
    counts = {f"{split}_{what}": 0 for split in SPLITS for what in ("learnt", "context")}
    for example in built.examples:
        _, learnt = evaluate.encode(tokenizer, example)
        counts[f"{example.split}_learnt"] += sum(learnt)
        counts[f"{example.split}_context"] += len(learnt) - sum(learnt)
    return counts


def pass_tokens(workspace: Workspace, ledger: Ledger, built: Dataset) -> tuple[int, bool]:
    """About how many tokens one pass over the training side reads, context included, and whether a tokenizer said so.

    A sample of the examples is encoded by the tokenizer of the base that is here; without one a token counts four bytes.
    """
    examples = built.split("train")
    sample = sample_of(examples, SAMPLE_EXAMPLES)
    of_sample, of_all = (
        sum(len(message.text.encode("utf-8", "replace")) for one in some for message in one.messages) for some in (sample, examples)
    )
    found = tokens(workspace, ledger, dataclasses.replace(built, examples=tuple(sample)))
    if found is None:
        return of_all // 4, False
    return round((found["train_learnt"] + found["train_context"]) * of_all / max(of_sample, 1)), True


# -- one training


def train(
    workspace: Workspace,
    ledger: Ledger,
    built: Dataset,
    settings: TrainSettings,
    progress: Report,
    *,
    resume: bool,
    fresh: bool,
    gate: bool = True,
    ask: Callable[[], Wait | None] = lambda: None,
    go_on: bool = False,
) -> dict[str, Any]:
    """Train an adapter within the minutes, measure it, and promote it if held-out text did not get dearer.

    An interrupted training of the same base, data and seed is gone on with when `resume`. `gate` off: measured,
    never promoted. `ask` may stop it (`loop.Paused`). `go_on`: it begins where `train.from` says, else at the base.
    Returns {run, status, metrics, promoted, reason, plot}.
    """
    from vaultllm import train as lora
    from vaultllm.models import hf

    began = time.monotonic()
    minutes = whole = settings.minutes
    registry.write_records(workspace, ledger)
    frozen = datasets.write(built, workspace.datasets)
    if settings.base == "micro":
        base_path, trained_now = micro_base(
            workspace, built, minutes=minutes * BASE_SHARE, seed=settings.seed, progress=progress, fresh=fresh
        )
        base = str(base_path)
        if trained_now:
            minutes = max(minutes * (1 - BASE_SHARE), minutes - (time.monotonic() - began) / 60)
    else:
        base = hf.resolve(settings.base)
    built, leaked = unseen(Path(base), built)
    settings = settings.model_copy(update={"minutes": minutes})
    base_sha = hf.fingerprint(base)
    run, again = _open_run(workspace, ledger, base, base_sha, built, settings, resume)
    origin = origins.of(workspace, run)
    if not again and go_on and settings.from_ == "adapter":
        origin = origins.find(workspace, ledger, settings, base_sha, built)
        run = dataclasses.replace(run, options=run.options | origin.recorded)
    built, known = origins.unseen(built, origin.learnt)
    taught, mixture = origins.taught(built, origin, settings)
    folder = workspace.runs / run.id
    folder.mkdir(parents=True, exist_ok=True)
    candidate = functools.cache(lambda: hf.load(base, folder / "adapter"))  # as answering would, once for all that is measured
    registry.record(workspace, ledger, run)
    learnt = json.dumps({**origin.learnt, **taught.learnt()}, indent=1, sort_keys=True) + "\n"
    write_whole(folder / "scenes.json", learnt, lasting=True)  # before it learns them: what was learnt can be told even if it is killed
    stopped = "stopped; the same command goes on"
    try:
        if run.metrics and registry.has_adapter(workspace, run.id):  # stopped while it was compared
            metrics = dict(run.metrics)
        else:
            metrics = lora.train_lora(
                base, taught, folder, settings, progress=progress, resume=again, seed=settings.seed, ask=ask,
                parent=workspace.runs / origin.run / "adapter" if origin.run else None,
                said=_beside(workspace, Path(base), base_sha, "said"),
            )  # fmt: skip
    except KeyboardInterrupt as stop:
        registry.record(workspace, ledger, dataclasses.replace(run, status="interrupted", reason=str(stop) or stopped))
        raise
    except OSError as error:  # the disk: when it is mended, the last checkpoint is as good as it was
        registry.record(workspace, ledger, dataclasses.replace(run, status="interrupted", reason=f"{error}; {stopped}"[:500]))
        raise
    except BaseException as error:
        registry.record(workspace, ledger, dataclasses.replace(run, status="failed", reason=str(error)[:500]))
        raise
    metrics |= {"val_seen_by_base": leaked, "val_seen_by_adapter": known, "dataset": str(frozen)}
    metrics |= {"origin": {"run": origin.run or None, "why": origin.why, **mixture}}
    if settings.base == "micro":
        metrics["base"] = json.loads((Path(base) / "micro.json").read_text(encoding="utf-8"))
    run = dataclasses.replace(run, versions=lora.versions(), metrics=metrics)
    promoted, reason = False, "not asked for"
    if gate:
        registry.record(workspace, ledger, run)  # trained, but not yet compared: a kill from here on costs only the comparison
        try:
            promoted, reason = _gate(workspace, ledger, run, candidate, built, metrics, progress)
            promoted, reason = _reloaded(candidate, folder, metrics, promoted, reason)
            metrics |= _scorecard(workspace, ledger, run, candidate, built, whole * 60 * MEASURES, progress)
            promoted, reason = _proven(metrics, settings.leak_limit, promoted, reason)
            metrics["arms"] = arms(workspace, ledger, candidate, built, progress)
        except (KeyboardInterrupt, OSError):
            registry.record(workspace, ledger, dataclasses.replace(run, status="interrupted", reason=stopped))
            raise
        except BaseException as error:  # the adapter is whole; whoever wants to may promote it
            registry.record(workspace, ledger, dataclasses.replace(run, status="done", reason=f"not compared: {error}"[:500]))
            raise
    run = dataclasses.replace(run, status="done", metrics=metrics, reason=reason if gate else "")
    registry.record(workspace, ledger, run)
    if promoted:
        registry.let_answer(workspace, ledger, run)
    registry.prune(workspace, ledger, settings.keep)
    metrics["seconds_all"] = round(time.monotonic() - began, 1)
    return {
        "run": run.id,
        "status": "done",
        "metrics": metrics,
        "promoted": promoted,
        "reason": reason,
        "plot": str(folder / "plot.png"),
        "adapter": str(folder / "adapter"),
    }


def _open_run(
    workspace: Workspace, ledger: Ledger, base: str, base_sha: str, built: Dataset, settings: TrainSettings, resume: bool
) -> tuple[Run, bool]:
    """A new run, or the interrupted one of the same base, data and seed."""
    options = settings.model_dump()
    for run in reversed(ledger.runs()):
        same = (run.base, run.base_sha, run.dataset, run.seed) == (base, base_sha, built.id, settings.seed)
        if resume and same and run.status in ("interrupted", "running") and not run.revoked:
            return dataclasses.replace(run, status="running", options=run.options | options), True  # it began where it began
    now = dt.datetime.now(dt.UTC)
    run_id = f"{_stamp(now)}-lora-{settings.seed}"
    parent = registry.current(workspace)
    return Run(
        run_id, "lora", base, base_sha, built.id, options, settings.seed, parent, "running", {}, {}, now.isoformat(timespec="seconds")
    ), False  # fmt: skip


def unfinished(workspace: Workspace, ledger: Ledger, settings: TrainSettings) -> tuple[str, Dataset] | None:
    """Id and data of the newest training, when it was stopped and these settings would go on with it; None: begin another.

    Its data are those that it began with: the vault changes daily, and each change would throw away what a night has learnt.
    Not when it learns from a scene that is gone or may no longer be trained on.
    """
    run = next(reversed(ledger.runs()), None)
    if run is None or run.status not in ("interrupted", "running") or run.revoked:
        return None
    wanted = settings.model_dump()
    if any(wanted[key] != run.options.get(key) for key in wanted.keys() - _OF_A_NIGHT):
        return None
    try:
        built = datasets.read(workspace.datasets / run.dataset)
    except DataError:
        return None
    allowed = {scene for scene, _ in ledger.trainable()}
    return (run.id, built) if built.learnt().keys() <= allowed else None


def _stamp(now: dt.datetime | None = None) -> str:
    """A time that sorts as text and differs between two trainings of the same second."""
    return (now or dt.datetime.now(dt.UTC)).strftime("%Y%m%dT%H%M%S%f")[:-3]


def _gate(
    workspace: Workspace,
    ledger: Ledger,
    run: Run,
    candidate: Callable[[], Loaded],
    built: Dataset,
    metrics: dict[str, Any],
    progress: Report,
) -> tuple[bool, str]:
    """Whether the run may answer, and why in one sentence. Writes `bpb_current` into the metrics."""
    from vaultllm import evaluate
    from vaultllm.models import hf

    before, after = metrics["bpb_before"], metrics["bpb_after"]
    if before is None or after is None:
        metrics["bpb_current"] = None
        return False, "not enough to decide: no held-out note; it was kept but does not answer (vaultllm promote ID --force --reason …)"
    serving_id = registry.current(workspace)
    if not any(one.id == serving_id for one in ledger.runs()):  # none, or one that the ledger lost: nothing to compare with
        metrics["bpb_current"] = None
        if after <= before:
            return True, f"held-out notes cost {after:.3f} bits per byte, {before:.3f} without it"
        return False, f"held-out notes cost {after:.3f} bits per byte, {before:.3f} without it: it got worse"
    sample = sample_of(built.split("val"), GATE_EXAMPLES)
    costs: list[float] = []
    base, adapter, _ = registry.serving(workspace, ledger) or ("", None, "")
    for load in functools.partial(hf.load, base, adapter), candidate:
        try:
            loaded = load()
        except ModelError as error:
            if load is candidate:
                return False, f"the new adapter cannot be loaded again: {error.message}"
            return after <= before, f"the run before cannot be loaded any more ({error.message})"
        scores = evaluate.score(
            loaded.model, loaded.tokenizer, sample, max_tokens=min(run.options.get("max_tokens", 512), loaded.context),
            progress=lambda share: progress(Progress("comparing with the current run", share)),
        )  # fmt: skip
        if not costs:
            kept = workspace.runs / run.id / "scores.json"
            evaluate.write_scores(kept, {**evaluate.read_scores(kept), "current": scores})
        costs.append(evaluate.bits_per_byte(scores))
        del loaded  # two large models at once may not fit
    metrics["bpb_current"], metrics["bpb_gate"] = costs
    words = f"held-out notes cost {costs[1]:.3f} bits per byte, {costs[0]:.3f} with the run that answered"
    return costs[1] <= costs[0], words if costs[1] <= costs[0] else words + ": it got worse"


def _reloaded(candidate: Callable[[], Loaded], folder: Path, metrics: dict[str, Any], promoted: bool, reason: str) -> tuple[bool, str]:
    """The gate's verdict, but that no adapter answers which is not what was trained. Writes `reload` into the metrics."""
    from vaultllm.models import reload

    if not promoted:
        return promoted, reason
    try:
        skipped = reload.check(candidate(), folder)
    except ModelError as error:
        metrics["reload"] = error.message
        return False, f"the new adapter cannot be used: {error.message}"
    metrics["reload"] = f"not compared: {skipped}" if skipped else "equal"
    return promoted, reason


def _scorecard(
    workspace: Workspace,
    ledger: Ledger,
    run: Run,
    candidate: Callable[[], Loaded],
    built: Dataset,
    seconds: float,
    progress: Report,
) -> dict[str, Any]:
    """What `scorecard.measure` says of a run, loading the model included in its time."""
    from vaultllm import evaluate, scorecard

    began = time.monotonic()
    try:
        loaded = candidate()
    except ModelError as error:
        return {name: {"skipped": error.message} for name in scorecard.SHARES}
    samples = _beside(workspace, loaded.folder, run.base_sha, "samples")
    return scorecard.measure(
        loaded, built.written("train"), built.split("val"), evaluate.read_scores(workspace.runs / run.id / "scores.json"),
        max(seconds - (time.monotonic() - began), seconds / 2), base_sha=run.base_sha, samples=samples,
        recall=recaller(workspace, ledger), progress=progress,
    )  # fmt: skip


def _beside(workspace: Workspace, base: Path, base_sha: str, name: str) -> Path:
    """Where samples of a base are kept. Those of a micro base may repeat notes: they go when it goes."""
    workspace.bases.mkdir(exist_ok=True)
    return base / f"{name}.json" if (base / "micro.json").is_file() else workspace.bases / f"{name}-{base_sha[:16]}.json"


def _proven(metrics: dict[str, Any], leak_limit: float, promoted: bool, reason: str) -> tuple[bool, str]:
    """The gate's verdict, but that no adapter answers which recites notes; and whether it is more than "not worse"."""
    from vaultllm import evaluate, memorised

    leaks = memorised.leaks(metrics["memorised"], leak_limit)
    if promoted and leaks:
        return False, leaks
    interval = metrics["yardsticks"].get("intervals", {}).get("current → candidate") or metrics["interval"]
    if promoted and interval and not interval["decided"]:
        few = interval["notes"] < evaluate.MIN_NOTES
        why = f"{interval['notes']} held-out notes, it takes {evaluate.MIN_NOTES}" if few else "the interval reaches zero"
        reason += f"; not worse, but not enough to decide that it is better ({why})"
    return promoted, reason


def recaller(workspace: Workspace, ledger: Ledger) -> Callable[[str, str], str]:
    """What memory finds for a question (question, path), never in the note that is measured."""
    from vaultllm import recall

    def found(question: str, path: str) -> str:
        def elsewhere(scene: Any) -> bool:
            return bool(scene.source.path != path)

        hits = recall.recall(ledger, workspace.memory, workspace.settings.memory, question, 3, allow=elsewhere, plain=True)
        return "\n\n".join(hit.text for hit in hits)

    return found


def sample_of(examples: Sequence[Example], most: int) -> list[Example]:
    """At most so many, spread evenly."""
    count = min(most, len(examples))
    return [examples[i * len(examples) // count] for i in range(count)]


def arms(workspace: Workspace, ledger: Ledger, candidate: Callable[[], Loaded], built: Dataset, progress: Report) -> dict[str, Any]:
    """Bits per byte of held-out answers by base, base+memory, trained and trained+memory; empty when there are none.

    What memory recalls never comes from the note that is measured.
    """
    from vaultllm import evaluate

    talks = [example for example in built.split("val") if example.form == "dialogue"]
    if not talks:
        return {}
    loaded = candidate()
    sample = sample_of(talks, ARM_EXAMPLES if loaded.parameters < 100_000_000 else 6)
    remembered = recaller(workspace, ledger)
    recalled = {}
    for example in sample:
        question = next((message.text for message in reversed(example.messages) if message.role == "user"), "")
        recalled[example.id] = remembered(question, example.path)
    found = evaluate.arms(
        loaded.model, loaded.tokenizer, sample, recalled, max_tokens=min(512, loaded.context // 2),
        progress=lambda share: progress(Progress("measuring the four arms", share)),
    )  # fmt: skip
    return {"examples": len(sample), **{name: evaluate.bits_per_byte(scores) for name, scores in found.items()}}
