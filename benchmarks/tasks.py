"""Do tasks help? Adapters learnt with and without them, on the example vault, by what held-out notes cost.

    python benchmarks/tasks.py --shares 0 0.25 --seeds 2 --minutes 1.5

A micro base is pretrained on the training side (`--base` takes one that is there). Then an adapter is trained per share and
seed: with tasks in one pass, without them in as many optimiser steps as the first share with tasks took. Bits per byte of
held-out text and talks, seeds averaged, and the difference to the first share with its interval over notes. Prints one JSON
document.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaultllm import config, dataset, demo, evaluate, steps, train, training
from vaultllm.evaluate import Score
from vaultllm.models import hf, micro
from vaultllm.schema import Progress, Scene


def quiet(progress: Progress) -> None:
    """Nobody watches."""


def scenes(folder: Path) -> list[Scene]:
    """Of a copy of the example vault."""
    shutil.copytree(demo.example_vault(), folder / "vault")
    job = steps.Job(config.init_workspace(folder / "vault", str(folder / "state")))
    steps.ingest(job)
    job.ledger.link_duplicates()
    found = list(job.ledger.scenes())
    job.close()
    return found


def mean(rows: Sequence[Sequence[Score]]) -> list[Score]:
    """The seeds' costs of each example, averaged."""
    return [dataclasses.replace(row[0], bits=sum(one.bits for one in row) / len(row)) for row in zip(*rows, strict=True)]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--shares", type=float, nargs="+", default=[0.0, 0.25], help="train.tasks of each arm")
    options.add_argument("--seeds", type=int, default=2)
    options.add_argument("--minutes", type=float, default=1.5, help="of pretraining")
    options.add_argument("--epochs", type=float, default=1.0, help="passes of the arms with tasks")
    options.add_argument("--base", type=Path, help="a micro base that has not read the held-out notes")
    chosen = options.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        known = scenes(folder)
        base = chosen.base or folder / "base"
        settings = config.TrainSettings(val=0.2, newest=0.0, test=0.0, minutes=600.0)
        plain = dataset.prepare(known, settings.model_copy(update={"tasks": 0.0}))
        if chosen.base is None:
            micro.pretrain(plain.split("train"), base, minutes=chosen.minutes, seed=0, progress=quiet, val=plain.split("val"))
        held_out = training.unseen(base, plain)[0].split("val")
        talks = {example.id for example in held_out if example.form == "dialogue"}
        arms: list[dict[str, Any]] = []
        costs: dict[float, list[Score]] = {}
        wanted = 0  # steps
        for share in sorted(chosen.shares, key=lambda share: share == 0.0):
            built = dataset.prepare(known, settings.model_copy(update={"tasks": share}))
            built = dataclasses.replace(built, examples=tuple(one for one in built.examples if one.split == "train"))
            scores, arm = [], {"share": share, **{key: dataset.counts(built)[key] for key in ("task", "train_characters")}}
            for seed in range(chosen.seeds):
                epochs = chosen.epochs
                if share == 0.0 and wanted:
                    probe = train._data(hf.load(str(base)), built.examples, settings.max_tokens, seed)
                    epochs = wanted / -(-len(probe.batches) // probe.accumulate)
                began = time.process_time()
                run = folder / f"{share}-{seed}"
                one = settings.model_copy(update={"epochs": epochs, "seed": seed})
                metrics = train.train_lora(str(base), built, run, one, progress=quiet)
                arm |= {"steps": metrics["steps"], "tokens": metrics["tokens"]["learnt"], "cpu_s": round(time.process_time() - began)}
                wanted = wanted or metrics["steps"]
                loaded = hf.load(str(base), run / "adapter")
                scores.append(evaluate.score(loaded.model, loaded.tokenizer, held_out, max_tokens=512))
            costs[share] = mean(scores)
            arms.append(arm)
        first = costs[chosen.shares[0]]
        for arm in arms:
            for what, ids in (("all", {one.example for one in first}), ("talks", talks)):
                old, new = ([one for one in some if one.example in ids] for some in (first, costs[arm["share"]]))
                difference = evaluate.paired_bootstrap(old, new)
                arm[what] = {"bpb": round(evaluate.bits_per_byte(new), 4), "difference": dataclasses.asdict(difference)}
        print(json.dumps({"notes": len({example.path for example in held_out}), "arms": arms}, indent=1))


if __name__ == "__main__":
    main()
