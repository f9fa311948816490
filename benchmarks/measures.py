"""All measures of a vault's trainings, with as much time as they want.

    vaultllm demo demo-out && python benchmarks/measures.py demo-out/vault demo-out/state [--seconds 120]

Every run whose adapter is still there is measured on the held-out notes of the dataset that it was trained on, as after a training
(docs/training.md), but not cut by its minutes. Nothing is written but the JSON on standard output, a line a run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from rich.console import Console

from vaultllm import config, evaluate, scorecard, steps, training, views
from vaultllm import dataset as datasets
from vaultllm.models import hf
from vaultllm.schema import Run, silent


def main() -> None:
    """Measure, print a line of JSON for each run, and tables on stderr."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vault")
    parser.add_argument("state")
    parser.add_argument("--seconds", type=float, default=120.0, help="for the measures of one run")
    options = parser.parse_args()
    job = steps.Job(config.open_workspace(options.vault, options.state), silent)
    shown = Console(stderr=True, width=120)
    try:
        for run in job.ledger.runs():
            if run.status == "done" and (job.workspace.runs / run.id / "adapter" / "adapter_model.safetensors").is_file():
                found = measure(job, run, options.seconds)
                sys.stdout.write(json.dumps({"run": run.id, **found}, ensure_ascii=False) + "\n")
                if "candidate" in found["yardsticks"]:
                    rows = views.yardstick_rows(found["yardsticks"])
                    shown.print(views.table(run.id, "bits per byte|", "answers|", "the new adapter beside it", rows=rows))
                shown.print(views.table("what else was measured", "base|", "adapter|", "", rows=views.measure_rows(found)))
    finally:
        job.close()


def measure(job: steps.Job, run: Run, seconds: float) -> dict[str, object]:
    """What `scorecard` says of one run; its held-out notes are scored anew."""
    frozen = datasets.read(job.workspace.datasets / run.dataset)
    built, _ = training.unseen(Path(run.base), frozen)
    loaded = hf.load(run.base, job.workspace.runs / run.id / "adapter")
    held_out = built.split("val")
    width = min(run.options["max_tokens"], loaded.context)
    with evaluate.base_only(loaded.model):
        scores = {"base": evaluate.score(loaded.model, loaded.tokenizer, held_out, max_tokens=width)}
    scores["candidate"] = evaluate.score(loaded.model, loaded.tokenizer, held_out, max_tokens=width)
    began = time.process_time()
    found = scorecard.measure(
        loaded, built.split("train"), held_out, scores, seconds, base_sha=run.base_sha, samples=None,
        recall=training.recaller(job.workspace, job.ledger), progress=silent,
    )  # fmt: skip
    return {**found, "cpu_seconds": round(time.process_time() - began, 1)}


if __name__ == "__main__":
    main()
