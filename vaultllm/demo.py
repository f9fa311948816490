"""`vaultllm demo`: the whole way of a note, on a copy of the example vault, every number computed in this run.

Uses the same functions as the commands; knows nothing that they don't.
"""

from __future__ import annotations

import dataclasses
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vaultllm import config, steps, training
from vaultllm.dataset import Dataset
from vaultllm.errors import UsageError
from vaultllm.schema import Progress, Report

SEEDS = (0, 1, 2)
QUESTIONS = (
    "При какой влажности почвы включается и выключается насос в теплице?",
    "ঠাকুমাকে চিঠি কবে পাঠানো হয়েছিল, আর তাতে কটা ভুল ছিল?",
    "When did the spring flood of 2025 peak, and how large was the forecast error?",
)
# The example is small: with the newest tenth, this share holds out 31 notes with 11 talks; a tenth would be too few to measure on.
SETTINGS = 'timezone = "Europe/Moscow"\n\n[train]\nbase = "micro"\nval = 0.15\n'


def example_vault() -> Path:
    """The example vault: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).resolve().parent
    for folder in (package.parent / "vault_example", package / "_vault_example"):
        if folder.is_dir():
            return folder
    raise UsageError("the example vault was not installed with this package; run the demo from a checkout")


def fresh_folder() -> Path:
    """`demo-out`, or the first of `demo-out-2`, … that is free."""
    number = 1
    while (folder := Path("demo-out" if number == 1 else f"demo-out-{number}")).exists():
        number += 1
    return folder


def run(folder: Path | None, minutes: float, progress: Report, say: Callable[[str], None]) -> dict[str, Any]:
    """Copy, ingest, pretrain, train with three seeds, measure, answer; returns what the table at the end shows."""
    began = time.perf_counter()
    folder = (folder or fresh_folder()).resolve()
    if folder.exists():
        raise UsageError(f"{folder} exists already; name a folder that does not")
    vault = folder / "vault"
    shutil.copytree(example_vault(), vault)
    workspace = config.init_workspace(vault, str(folder / "state"))
    path = vault / config.CONFIG
    path.write_text(path.read_text(encoding="utf-8") + SETTINGS, encoding="utf-8")
    workspace = config.open_workspace(str(vault), str(folder / "state"))
    job = steps.Job(workspace, progress)
    try:
        return _run(job, folder, minutes, say, began)
    finally:
        job.close()


def _run(job: steps.Job, folder: Path, minutes: float, say: Callable[[str], None], began: float) -> dict[str, Any]:
    from vaultllm import dataset as datasets
    from vaultllm.train import peak_rss_mb

    workspace, ledger = job.workspace, job.ledger
    say(f"1/4  reading the notes of {workspace.vault}")
    found = steps.ingest(job)
    say(f"     {found['notes']['seen']} notes, {found['scenes']['total']} scenes, {found['memory']['embedded']} passages in the memory")

    settings = workspace.settings.train
    built = datasets.prepare(ledger.scenes(), settings)
    counts = datasets.counts(built)
    held_out = f"{counts['val_notes']} held out, {counts['test_notes']} kept for the report"
    say(f"2/4  training a small model from nothing on {counts['train_notes']} notes ({minutes / 2:.1f} minutes; {held_out})")
    base, _ = training.micro_base(workspace, built, minutes=minutes / 2, seed=0, progress=job.progress, fresh=False)

    say(f"3/4  training the adapter, three times with different seeds ({minutes / 6:.1f} minutes each)")
    trained = []
    for seed in SEEDS:
        chosen = settings.model_copy(update={"minutes": minutes / 6, "seed": seed})
        trained.append(training.train(workspace, ledger, built, chosen, job.progress, resume=False, fresh=False, gate=seed == SEEDS[0]))
    verdict = _verdict(workspace, built, str(base), [one["run"] for one in trained], job.progress)
    for line in (
        verdict["words"],
        f"run {trained[0]['run']} is {'promoted' if trained[0]['promoted'] else 'not promoted'}: {trained[0]['reason']}",
    ):
        say(f"     {line}")

    say("4/4  answering three questions as notes")
    answers = [steps.ask(job, question) for question in QUESTIONS]
    for answer in answers:
        quote = answer["sources"][0]["quote"].replace("**", "") if answer["sources"] else "nothing in the vault speaks of this"
        say(f"     {answer['question']}\n       → {quote}")

    report = steps.report(job, trained[0]["run"])
    metrics = trained[0]["metrics"]
    micro, yard = metrics["base"], metrics["yardsticks"]
    peak = peak_rss_mb()
    rows = [
        ("notes", f"{found['notes']['seen']} ({counts['train_notes']} to train on, {held_out})"),
        ("scenes", f"{found['scenes']['total']}, as YAML in {workspace.scenes}"),
        ("memory", f"{found['memory']['embedded']} passages, vectors in SQLite and Chroma"),
        (
            "base model",
            f"{micro['parameters'] / 1e6:.1f} million parameters, vocabulary {micro['vocabulary']}, {micro['tokens_seen']:,} tokens read",
        ),
        ("adapter", f"{metrics['tokens']['learnt']:,} tokens learnt, {metrics['tokens_per_s']:,.0f} tokens/s"),
        (
            "before → after",
            f"{verdict['before']:.4f} → {verdict['after']:.4f} bits per byte of held-out answers ({verdict['notes']} notes, 3 seeds)",
        ),
        ("difference", f"{verdict['mean']:+.4f}, 95 % interval {verdict['low']:+.4f} … {verdict['high']:+.4f}"),
        *(
            (f"  {name}", f"{yard[key]:.4f} bits per byte of all held-out notes; the adapter: {yard['candidate']:.4f}")
            for key, name in (("ngram", "n-gram model"), ("xz", "xz"))
            if key in yard and "candidate" in yard
        ),
        *((f"  {name}", f"{metrics['arms'][name]:.4f} bits per byte") for name in ("base", "base+memory", "trained", "trained+memory")),
        ("time, memory", f"{time.perf_counter() - began:.0f} s, {peak:,} MB at most"),
    ]
    lines = [
        "",
        "Open in Obsidian: " + str(workspace.vault),
        *(f"  answer      {answer['note']}" for answer in answers),
        f"  report      {report['note']}",
        "Look at:",
        f"  loss curve  {trained[0]['plot']}",
        *(f"  its scenes  {workspace.scenes / (source['path'] + '.yaml')}" for source in answers[0]["sources"][:1]),
        "Then with your own notes:  vaultllm init PATH  (the vault was a copy; nothing else was touched)",
    ]
    return {
        "folder": str(folder),
        "vault": str(workspace.vault),
        "ingest": found,
        "runs": [one["run"] for one in trained],
        "metrics": metrics,
        "verdict": verdict,
        "answers": answers,
        "report": report["note"],
        "seconds": round(time.perf_counter() - began, 1),
        "peak_rss_mb": peak,
        "table": rows,
        "lines": lines,
    }


def _verdict(workspace: config.Workspace, built: Dataset, base: str, runs: list[str], progress: Report) -> dict[str, Any]:
    """Held-out answers before and after: the seeds averaged for each example, notes resampled in pairs."""
    from vaultllm import evaluate
    from vaultllm.models import hf

    talks = [example for example in training.unseen(Path(base), built)[0].split("val") if example.form == "dialogue"]
    scored = []
    for number, adapter in enumerate([None, *(workspace.runs / run_id / "adapter" for run_id in runs)]):
        loaded = hf.load(base, adapter)

        def show(share: float, number: int = number) -> None:
            progress(Progress("measuring all seeds", (number + share) / (len(runs) + 1)))

        scored.append(evaluate.score(loaded.model, loaded.tokenizer, talks, max_tokens=512, progress=show))
    before, after = scored[0], scored[1:]
    mean = [dataclasses.replace(scores[0], bits=sum(one.bits for one in scores) / len(scores)) for scores in zip(*after, strict=True)]
    interval = evaluate.paired_bootstrap(before, mean)
    words = "the adapter helps: held-out answers cost less, and the whole interval is below zero"
    if not interval.decided:
        few = f"{interval.notes} notes are too few to decide (it takes {evaluate.MIN_NOTES})"
        words = f"held-out answers cost less with the adapter, and the whole interval is below zero; but {few}"
    if interval.high >= 0:
        words = "the adapter did not prove itself: the interval of the difference reaches zero; trust the memory, not the adapter"
    return {
        "before": evaluate.bits_per_byte(before),
        "after": evaluate.bits_per_byte(mean),
        "mean": interval.mean,
        "low": interval.low,
        "high": interval.high,
        "notes": interval.notes,
        "seeds": len(runs),
        "helps": interval.decided and interval.high < 0,
        "words": words,
    }
