"""From the base or from the adapter: what a night learns, and what it forgets, after a fifth of the notes came.

    python benchmarks/retrain.py [--minutes 0.5] [--seeds 2] [--base 1.5] [--parent 0.5] [--arms base adapter …]

A micro base and an adapter are trained on four fifths of `vault_example`'s notes (by a hash); then each arm trains for `--minutes` with
all of them there. Minutes are processor minutes in one thread: other programs change nothing but the waiting. Printed for each arm: bits
per byte of held-out new and old notes and of learnt ones, and how far it is from the base on samples of the base that nobody learnt.
"""

# ruff: noqa: E402 - the clock is set before anything asks it

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

time.monotonic = time.process_time  # type: ignore[assignment]

from vaultllm import config, dataset, demo, drift, evaluate, ingest, replay, train
from vaultllm.dataset import Dataset
from vaultllm.ledger import Ledger
from vaultllm.models import hf, micro
from vaultllm.schema import Example, silent
from vaultllm.text import sha

ARMS: dict[str, dict[str, Any]] = {
    "parent": {},  # what there was the day before
    "base": {"from_": "base", "rehearse": 0.0},
    "base, rehearsed": {"from_": "base", "rehearse": 0.1},
    "adapter, no replay": {"from_": "adapter", "replay": 0.0, "rehearse": 0.0},
    "adapter": {"from_": "adapter", "replay": 0.25, "rehearse": 0.0},
    "adapter, replay 0.5": {"from_": "adapter", "replay": 0.5, "rehearse": 0.0},
    "adapter, own samples": {"from_": "adapter", "replay": 0.25, "rehearse": 0.1, "kl": 0.0},
    "adapter, own samples, KL": {"from_": "adapter", "replay": 0.25, "rehearse": 0.1, "kl": 1.0},
    "adapter, own samples, KL x 5": {"from_": "adapter", "replay": 0.25, "rehearse": 0.1, "kl": 5.0},
    "adapter, own samples 0.25, KL": {"from_": "adapter", "replay": 0.25, "rehearse": 0.25, "kl": 1.0},
}


def late(path: str) -> bool:
    """Whether a note came later."""
    return int(sha("night", path), 16) / 16.0**16 < 0.2


def notes(root: Path) -> tuple[Dataset, Dataset]:
    """What there was to learn the day before, and what there is now; a quarter of each is held out."""
    vault = Path(shutil.copytree(demo.example_vault(), root / "vault"))
    workspace = config.init_workspace(vault, str(root / "state"))
    ledger = Ledger(workspace.ledger)
    try:
        ingest.ingest(workspace, ledger)
        ledger.link_duplicates()
        scenes = list(ledger.scenes())
    finally:
        ledger.close()
    settings = workspace.settings.train.model_copy(update={"val": 0.25, "test": 0.0, "newest": 0.0})
    return dataset.prepare([one for one in scenes if not late(one.source.path)], settings), dataset.prepare(scenes, settings)


def learn(root: Path, name: str, built: Dataset, minutes: float, seed: int, **options: Any) -> tuple[Path, dict[str, Any]]:
    """Train, and measure nothing: a single held-out example is left to it."""
    parent = options.pop("parent", None)
    settings = config.TrainSettings().model_copy(update={"minutes": minutes, **options})
    built = dataclasses.replace(built, examples=built.split("train") + built.split("val")[:1])
    folder = root / f"{name}-{seed}"
    said = root / f"said-{name}-{seed}.json"
    metrics = train.train_lora(str(root / "base"), built, folder, settings, progress=silent, seed=seed, parent=parent, said=said)
    return folder / "adapter", metrics


def arm(root: Path, name: str, before: Dataset, now: Dataset, parent: Path, minutes: float, seed: int) -> dict[str, Any]:
    """One row of the table."""
    options, built = dict(ARMS[name]), now
    began = time.process_time()
    if options.get("from_") == "adapter":
        chosen = replay.chosen(now.split("train"), now.scenes, before.learnt(), options["replay"], f"run{seed}")
        built = dataclasses.replace(now, examples=chosen.new + chosen.again + now.split("val"))
        options["parent"] = parent
    adapter, metrics = (parent, {}) if not options else learn(root, name, built, minutes, seed, **options)
    spent = time.process_time() - began
    loaded = hf.load(str(root / "base"), adapter)

    def bits(examples: list[Example]) -> float:
        return round(evaluate.bits_per_byte(evaluate.score(loaded.model, loaded.tokenizer, examples, max_tokens=512)), 4)

    far = drift.measure(loaded, hf.fingerprint(root / "base"), root / "samples.json", 1e9)
    return {
        "arm": name,
        "seed": seed,
        "seconds": round(spent, 1),
        "steps": metrics.get("steps"),
        "planned": metrics.get("steps_planned"),
        "held_out_new": bits([one for one in now.split("val") if late(one.path)]),
        "held_out_old": bits([one for one in now.split("val") if not late(one.path)]),
        "learnt_new": bits([one for one in now.written("train") if late(one.path)]),
        "learnt_old": bits([one for one in now.written("train") if not late(one.path)][::2]),
        "kl_bits": round(far["kl_bits"], 4),
        "bpb_base": round(far["bpb_base"], 4),
        "bpb_trained": round(far["bpb_trained"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=0.5, help="of each arm")
    parser.add_argument("--base", type=float, default=1.5, help="minutes of the micro base")
    parser.add_argument("--parent", type=float, default=0.5, help="minutes of the adapter of the day before")
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    options = parser.parse_args()
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        before, now = notes(root)
        micro.pretrain(before.written("train"), root / "base", minutes=options.base, seed=0, progress=silent)
        drift.TOKENS = 2048
        for seed in range(options.seeds):
            parent, _ = learn(root, "parent", before, options.parent, seed)
            for name in options.arms:
                print(json.dumps(arm(root, name, before, now, parent, options.minutes, seed)), flush=True)


if __name__ == "__main__":
    main()
