"""Whether the exposure that `forget --retrain` measures tells notes that were learnt from notes that were not, and what to take off.

    vaultllm demo demo-out && python benchmarks/exposure.py demo-out/vault demo-out/state

Each note of the newest training, learnt or held out, is ranked as if it had been forgotten (docs/forgetting.md): the share of learnt
notes that are found to be known, and of held-out ones that are (false alarms, one in twenty at most), with nothing taken off their
cost and with what n-gram models of the training side say of it. A line of JSON each on standard output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

import numpy as np

from vaultllm import config, memorised, ngram, steps, yardsticks
from vaultllm import dataset as datasets
from vaultllm.memorised import Sentence
from vaultllm.models import hf
from vaultllm.unlearning import A_NOTE

LEAST = 3  # sentences of a note


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vault")
    parser.add_argument("state")
    options = parser.parse_args()
    job = steps.Job(config.open_workspace(options.vault, options.state))
    run = next(run for run in reversed(job.ledger.runs()) if run.status == "done")
    built = datasets.read(job.workspace.datasets / run.dataset)
    loaded = hf.load(run.base, job.workspace.runs / run.id / "adapter")
    train = built.written("train")
    learnt = memorised.asked(train, A_NOTE, memorised.MANY, bool)
    said = {one.text for one in learnt}
    unseen = memorised.asked([*built.split("val"), *built.split("test")], A_NOTE, memorised.MANY, lambda one: one not in said)
    costs = [np.array(memorised.costs(loaded, side)) for side in (learnt, unseen)]
    text = yardsticks.training_text(train, yardsticks.NGRAM_CHARACTERS)
    for order in (0, 3, 4, 8):
        model = ngram.train(text, order) if order else None
        mine, theirs = (cost if model is None else cost - of(model, side) for cost, side in zip(costs, (learnt, unseen), strict=True))
        found = {"taken off": f"n-grams of {order}" if order else "nothing", "known": known(learnt, mine, unseen, theirs)}
        found["false alarms"] = known(unseen, theirs, unseen, theirs)
        sys.stdout.write(json.dumps(found) + "\n")
    job.close()


def of(model: ngram.NGrams, lines: Sequence[Sentence]) -> np.ndarray:
    """Bits per byte of each sentence."""
    return np.array([-np.log2(ngram.probabilities(model, 0, line.text)).sum() / len(line.text.encode()) for line in lines])


def known(lines: Sequence[Sentence], mine: np.ndarray, unseen: Sequence[Sentence], theirs: np.ndarray) -> dict[str, float]:
    """Of so many notes, the share that is better known than nineteen of twenty others, their mean exposure and its spread."""
    notes: dict[str, list[int]] = {}
    for place, line in enumerate(lines):
        notes.setdefault(line.note, []).append(place)
    stands = []
    for note, places in notes.items():
        others = [place for place, line in enumerate(unseen) if line.note != note]
        if len(places) >= LEAST:
            those = [unseen[place] for place in others]
            stands.append(memorised.standing([lines[place] for place in places], mine[places].tolist(), those, theirs[others].tolist()))
    ranked = [one for one in stands if "mean" in one]
    means = np.array([one["mean"] for one in ranked])
    share = float(np.mean([one["p"] <= 0.05 for one in ranked]))
    return {
        "notes": len(ranked),
        "share": round(share, 3),
        "exposure": round(float(means.mean()), 2),
        "spread": round(float(means.std()), 2),
    }


if __name__ == "__main__":
    main()
