"""LoRA training of a causal language model on a dataset, within a time that the user names.

LoRA (Hu et al. 2021, arXiv:2106.09685) on every linear layer, by peft, through transformers' Trainer, so that
`accelerate launch` carries it to many GPUs. A run that is interrupted leaves a complete checkpoint and goes on from
it; on a CPU, when its passes fit into the time, to the same weights bit by bit. Knows neither the vault nor the
ledger, and decides nothing about promotion.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import math
import platform
import random
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from vaultllm import checkpoints, evaluate, fit, power, processes, replay
from vaultllm.config import TrainSettings
from vaultllm.dataset import Dataset
from vaultllm.errors import DataError, ModelError
from vaultllm.evaluate import Score, Window
from vaultllm.files import saving, write_whole
from vaultllm.loop import Data, Job, Log, Pace, go_on, run
from vaultllm.models import hf, packed, reload
from vaultllm.power import Wait
from vaultllm.schema import Example, Progress, Report, silent
from vaultllm.text import sha

MICRO_RATE, RATE = 1e-3, 2e-4
"""Learning rates when none is set: for a base trained on the vault, for others."""
FIT = "fit.json"
"""Beside the checkpoints, as long as they are there: what was chosen to fit the memory."""
REHEARSE = 0.1
"""Share of what is learnt that the base has said, when none is set and a training goes on from an adapter."""
SPEAK = 0.1
"""Share of the time that the base may take to say it."""
MEASURE = 0.1
"""Share of the time that may go into measuring the base on held-out notes; the adapter takes as long again."""


@dataclass(frozen=True, slots=True)
class Part:
    """What the other processes of a training are told: the same as the first one knows when it begins with the steps."""

    base: str
    taken: fit.Fit
    settings: TrainSettings
    seed: int
    parent: Path | None
    identity: dict[str, Any]
    rate: float
    data: Data
    run_folder: Path
    checkpoint: Path | None
    seconds: float
    steps: int


def take_part(*, step_back: bool) -> None:
    """What a process does that does not lead: wait to be told of a training, make its share of the steps, until it is over.

    `step_back`: let other programs go first, as far as the settings say. Writes nothing but its random state into checkpoints.
    """
    with processes.joined():
        while (part := processes.told()) is not None:
            if step_back:
                power.step_back(part.settings.nice)
            loaded = hf.load(part.base, dtype=part.taken.dtype, quantize=part.taken.quantize)
            model = adapted(loaded.model, part.settings, part.seed, part.parent)
            if part.taken.checkpointing:
                hf.checkpoint_blocks(model)
            pace = Pace(part.seconds, part.steps)
            job = Job(part.run_folder, part.identity, pace, Log(), silent, part.rate, part.seed, part.data, kl=part.settings.kl)
            with contextlib.suppress(KeyboardInterrupt):  # together with the first, which says what comes next
                run(model, job, part.checkpoint)


def train_lora(
    base: str,
    dataset: Dataset,
    run_folder: Path,
    settings: TrainSettings,
    *,
    progress: Report,
    resume: bool = False,
    seed: int | None = None,
    ask: Callable[[], Wait | None] = go_on,
    parent: Path | None = None,
    said: Path | None = None,
) -> dict[str, Any]:
    """Train an adapter on the dataset's training side and measure it on the other; returns the metrics.

    `parent`: the folder of the adapter whose weights it begins with (the optimiser begins anew); None: it begins at the base.
    `said`: the file in which the base's own samples are kept for the next training (`settings.rehearse`).

    Writes into `run_folder` only: `adapter/` (plain peft), `vaultllm.json` (what it belongs to), `metrics.jsonl`,
    `scores.json` (of each held-out example, before and after), `plot.png`, and `checkpoints/` while it runs. `settings.minutes`
    covers measuring too; the learning rate has fallen to nothing when they are over. `seed` None: the one of the settings.
    `resume` goes on from the newest complete checkpoint, if there is one. Raises DataError when there is nothing to learn,
    ModelError when the base cannot be used or the loss is no longer a number, KeyboardInterrupt after Ctrl-C or SIGTERM, with a
    checkpoint written; `loop.Paused` likewise when `ask`, called about twice a minute, says to wait.
    """
    begun = time.monotonic()
    seed = settings.seed if seed is None else seed
    train, held_out = dataset.split("train"), dataset.split("val")
    if not train:
        raise DataError(f"there is nothing to train on: {len(dataset.examples)} examples, {len(dataset.dropped)} scenes or turns dropped")
    progress(Progress("loading", 0.0))
    kept = run_folder / "checkpoints"
    taken = _fit(Path(hf.resolve(base)), settings, run_folder / FIT if resume else None)
    loaded = hf.load(base, dtype=taken.dtype, quantize=taken.quantize)
    limit = min(settings.max_tokens, loaded.context)
    data = _data(loaded, train, min(limit, taken.sequence), seed, taken.tokens)
    base_sha = hf.fingerprint(loaded.folder)
    run_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    share = settings.rehearse if settings.rehearse is not None else REHEARSE if parent is not None else 0.0
    if share > 0.0:
        progress(Progress("the base speaks", 0.0))
        wanted, seconds = int(data.tokens()["learnt"] * share / (1.0 - share)), settings.minutes * 60 * SPEAK
        own = replay.own(loaded, base_sha, said or run_folder / "said.json", run_folder, wanted, seconds, resume)
        data = _with_own(data, [Window(piece.ids[:limit], piece.learn[:limit]) for piece in own], taken.tokens // 2)  # two models read them
    model = adapted(loaded.model, settings, seed, parent)
    if taken.checkpointing:
        hf.checkpoint_blocks(model)
    rate = settings.learning_rate or (MICRO_RATE if (loaded.folder / "micro.json").is_file() else RATE)
    identity = {"base_sha": base_sha, "dataset": dataset.id, "seed": seed, "limit": limit, "rate": rate, "epochs": settings.epochs}
    identity |= {"rank": settings.rank, "alpha": settings.alpha, "batches": len(data.batches), "accumulate": data.accumulate}
    identity |= {"dtype": taken.dtype, "quantize": taken.quantize, "checkpointing": taken.checkpointing, "tokens": taken.tokens}
    identity["packed"] = data.packed
    ancestor = "" if parent is None else _sha(parent / "adapter_model.safetensors")
    identity |= {"parent": ancestor, "kl": settings.kl if data.own else 0.0}
    identity["own"] = sha(*(str(piece.ids) for piece in data.pieces[len(data.pieces) - data.own :]))

    checkpoint = checkpoints.newest(kept, identity) if resume else None
    if checkpoint is None:
        shutil.rmtree(kept, ignore_errors=True)
        (run_folder / "metrics.jsonl").unlink(missing_ok=True)
        write_whole(run_folder / FIT, json.dumps({"asked": _asked(settings), "fit": asdict(taken)}) + "\n")

    budget = settings.minutes * 60
    measured, before, took = _measure(model, loaded.tokenizer, held_out, limit, budget * MEASURE, progress)
    steps = math.ceil(settings.epochs * math.ceil(len(data.batches) / data.accumulate))
    pace = Pace(max(budget - (time.monotonic() - begun) - 1.1 * took, budget / 2), steps)
    job = Job(run_folder, identity, pace, Log(), progress, rate, seed, data, ask, settings.kl)
    processes.tell(Part(base, taken, settings, seed, parent, identity, rate, data, run_folder, checkpoint, pace.seconds, steps))
    step = run(model, job, checkpoint)

    about = {"base": base, "base_sha": base_sha, "dataset": dataset.id, "quantize": taken.quantize, "parent": ancestor}
    adapter = _save_adapter(model, run_folder, about)
    reload.record(model, loaded.tokenizer, run_folder)
    after = evaluate.score(
        model,
        loaded.tokenizer,
        measured,
        max_tokens=limit,
        progress=lambda share: progress(Progress("measuring", share, step, job.log.loss)),
    )
    evaluate.write_scores(run_folder / "scores.json", {"base": before, "candidate": after})
    log = job.log
    metrics: dict[str, Any] = {
        **_quality(measured, before, after),
        "val_left_out": len(held_out) - len(measured),
        "tokens": {"learnt": log.learnt, "context": log.context, "padding": log.padding},
        "tokens_per_s": round((log.learnt + log.context) / max(log.seconds, 1e-9), 1),
        "seconds": round(time.monotonic() - begun, 2),
        "training_seconds": round(log.seconds, 2),
        "peak_rss_mb": peak_rss_mb(),
        "steps": step,
        "steps_planned": steps,
        "loss_first": log.loss_first,
        "loss_last": log.loss,
        "examples": len(train),
        "windows": len(data.pieces),
        "own_samples": data.own,
        "own_tokens": sum(sum(piece.learn) for piece in data.pieces[len(data.pieces) - data.own :]),
        "examples_cut": data.cut,
        "examples_empty": data.empty,
        "tokens_one_pass": data.tokens(),
        "learning_rate": rate,
        "parameters": loaded.parameters,
        "trained_parameters": sum(weight.numel() for weight in model.parameters() if weight.requires_grad),
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "device": hf.device(),
        "chosen": _chosen(taken, data, log),
        "adapter_sha256": adapter,
        "versions": versions(),
    }
    _plot(run_folder / "plot.png", log.losses, metrics)
    shutil.rmtree(kept, ignore_errors=True)
    for name in (FIT, replay.NOTED):
        (run_folder / name).unlink(missing_ok=True)
    return metrics


def _chosen(taken: fit.Fit, data: Data, log: Log) -> dict[str, Any]:
    """What was taken to fit this machine; `out_of_memory` when the batches turned out to be too large for it."""
    largest = max(map(data.cells, data.batches))
    return {
        "dtype": taken.dtype,
        "quantize": taken.quantize,
        "checkpointing": taken.checkpointing,
        "batch_tokens": min(largest, log.fits or largest),
        "sequence": data.sequence,
        "packed": data.packed,
        "accumulate": data.accumulate,
        "out_of_memory": log.fits > 0,
        "memory_mb": taken.memory_mb,
        "free_mb": taken.free_mb,
        "why": list(taken.reasons),
    }


def _asked(settings: TrainSettings) -> dict[str, Any]:
    """The settings that a choice depends on, beside the machine."""
    return {"max_tokens": settings.max_tokens, "rank": settings.rank, "quantize": settings.quantize}


def _fit(folder: Path, settings: TrainSettings, before: Path | None) -> fit.Fit:
    """What fits this machine; what was chosen before, where a training goes on: other batches would make it another one."""
    if before is not None and before.is_file():
        with contextlib.suppress(ValueError, KeyError, TypeError):  # torn, or of another version
            known = json.loads(before.read_text(encoding="utf-8"))
            if known["asked"] == _asked(settings):
                return fit.Fit(**(known["fit"] | {"reasons": tuple(known["fit"]["reasons"])}))
    import peft  # noqa: F401 - what the libraries take is taken before what is free is looked at

    config = hf.configuration(folder)
    where = fit.machine()
    return fit.choose(
        fit.of(config, folder.name), device=where["device"], bf16=where["bf16"],
        free_mb=where["free_mb"] // (1 if where["device"] == "cuda" else processes.count()),  # each process holds the base
        sequence=min(settings.max_tokens, getattr(config, "max_position_embeddings", None) or settings.max_tokens),
        rank=settings.rank, quantize=settings.quantize, held_mb=0,
    )  # fmt: skip


def versions() -> dict[str, str]:
    """Of Python and the libraries that decide a training's result."""
    return {"python": platform.python_version()} | {
        name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "accelerate")
    }


def _data(loaded: hf.Loaded, examples: Sequence[Example], limit: int, seed: int, tokens: int | None = None) -> Data:
    pieces: list[Window] = []
    weights: list[float] = []
    cut = empty = 0
    for example in examples:
        found = evaluate.windows(*evaluate.encode(loaded.tokenizer, example), limit)
        pieces += found
        weights += [example.weight] * len(found)
        cut += len(found) > 1
        empty += not found
    if not pieces:
        raise DataError(f"{len(examples)} examples hold no token to learn; see what was dropped with: vaultllm dataset")
    # Mixed first: the windows of one note would share a batch otherwise, and pull in one direction.
    order = list(range(len(pieces)))
    random.Random(seed).shuffle(order)
    pieces, weights = [pieces[i] for i in order], [weights[i] for i in order]
    if tokens is None:
        tokens = fit.tokens_per_pass(loaded.model.get_input_embeddings().weight.shape[0], loaded.parameters, hf.device())
    packs = packed.proven(loaded.model, [piece.ids for piece in pieces])
    batches = (evaluate.packs if packs else evaluate.batches)([len(piece.ids) for piece in pieces], tokens=tokens, rows=fit.BATCH)
    accumulate = max(1, round(fit.BATCH * len(batches) / len(pieces))) if len(pieces) > fit.BATCH else len(batches)
    return Data(pieces, weights, batches, accumulate, cut, empty, sequence=limit, packed=packs)


def _with_own(data: Data, own: Sequence[Window], tokens: int) -> Data:
    """The data with the base's own samples behind it, in batches of their own, of at most so many tokens."""
    first = len(data.pieces)
    group = evaluate.packs if data.packed else evaluate.batches
    batches = group([len(piece.ids) for piece in own], tokens=tokens, rows=fit.BATCH)
    return replace(
        data,
        pieces=[*data.pieces, *own],
        weights=data.weights + [1.0] * len(own),
        batches=data.batches + [[first + i for i in batch] for batch in batches],
        own=len(own),
    )


def adapted(model: Any, settings: TrainSettings, seed: int, parent: Path | None = None) -> Any:
    """peft's wrapper with a fresh adapter, which changes nothing yet, or with the weights of the adapter in the folder `parent`.

    Raises ModelError when these are of another rank or of other layers.
    """
    import torch
    from peft import LoraConfig, get_peft_model, load_peft_weights, set_peft_model_state_dict
    from safetensors import SafetensorError
    from transformers.pytorch_utils import Conv1D

    torch.manual_seed(seed)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        fan_in_fan_out=any(isinstance(module, Conv1D) for module in model.modules()),  # GPT-2 stores its weights transposed
        task_type="CAUSAL_LM",
    )
    with hf.library_warnings_ignored():
        made = get_peft_model(model, config)
        made.create_or_update_model_card = _no_card
        if parent is None:
            return made
        try:
            found = set_peft_model_state_dict(made, load_peft_weights(str(parent), device=str(next(model.parameters()).device)))
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            raise ModelError(
                f"the adapter to go on from does not fit ({error}); train from the base: vaultllm train", path=str(parent)
            ) from error
    other = [*found.unexpected_keys, *(name for name in found.missing_keys if "lora_" in name)]
    if other:
        raise ModelError(f"the adapter to go on from has other layers ({other[0]}); train from the base: vaultllm train", path=str(parent))
    return made


def _no_card(folder: str) -> None:
    """Instead of peft's README.md, empty but for the base's path: a tenth of a small training went into writing it at each checkpoint."""


def _measure(
    model: Any, tokenizer: Any, examples: Sequence[Example], limit: int, seconds: float, progress: Report
) -> tuple[list[Example], list[Score], float]:
    """Held-out examples as the base scores them, whole notes at a time until the time is used up; and how long it took."""
    notes: dict[str, list[Example]] = {}
    for example in examples:
        notes.setdefault(example.path, []).append(example)
    order = sorted(notes, key=lambda path: hashlib.sha256(path.encode("utf-8", "replace")).digest())  # a fair sample when cut
    kept: list[Example] = []
    scores: list[Score] = []
    begun = time.monotonic()
    with evaluate.base_only(model):
        while order and (not kept or time.monotonic() - begun < seconds):
            group: list[Example] = []
            while order and len(group) < 32:
                group += notes[order.pop(0)]
            done = len(kept)

            def share(part: float, done: int = done, size: int = len(group)) -> None:
                progress(Progress("measuring", (done + part * size) / len(examples)))

            scores += evaluate.score(model, tokenizer, group, max_tokens=limit, progress=share)
            kept += group
    return kept, scores, time.monotonic() - begun


def _quality(examples: Sequence[Example], before: Sequence[Score], after: Sequence[Score]) -> dict[str, Any]:
    """Bits per byte before and after, of everything and of the assistant's turns alone; None where nothing is held out."""
    talks = {example.id for example in examples if example.form == "dialogue"}
    found: dict[str, Any] = {"val_examples": len(examples), "val_notes": len({example.path for example in examples})}
    for name, scores in (("before", before), ("after", after)):
        spoken = [one for one in scores if one.example in talks]
        found[f"bpb_{name}"] = evaluate.bits_per_byte(scores) if any(one.bytes for one in scores) else None
        found[f"bpb_dialogue_{name}"] = evaluate.bits_per_byte(spoken) if any(one.bytes for one in spoken) else None
    if found["bpb_before"] is None:
        return found | {"interval": None, "verdict": "not enough to decide: no note is held out"}
    interval = evaluate.paired_bootstrap(before, after)
    return found | {"interval": asdict(interval) | {"decided": interval.decided}, "verdict": interval.words}


def _save_adapter(model: Any, folder: Path, about: dict[str, str]) -> str:
    """Write `adapter/` whole, then `vaultllm.json` beside it; returns the hash of its weights."""
    aside, target = folder / "adapter.tmp", folder / "adapter"
    shutil.rmtree(aside, ignore_errors=True)
    with hf.library_warnings_ignored(), saving(aside):
        model.save_pretrained(str(aside), save_embedding_layers=False)
    config = json.loads((aside / "adapter_config.json").read_text(encoding="utf-8"))
    config["target_modules"] = sorted(config["target_modules"])  # peft writes a set: its order would change the file
    (aside / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
    digest = _sha(aside / "adapter_model.safetensors")
    shutil.rmtree(target, ignore_errors=True)
    aside.rename(target)
    hashes = {"adapter_sha256": digest, "config_sha256": _sha(target / "adapter_config.json")}
    note = json.dumps({"schema": 2, **about, **hashes}, ensure_ascii=False, indent=1)
    (folder / "vaultllm.json").write_text(note + "\n", encoding="utf-8")
    return digest


def _sha(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def peak_rss_mb() -> int:
    """The most memory that this process has held since its start, in MiB."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset) // 2**20
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak // (2**20 if sys.platform == "darwin" else 2**10)


def _plot(path: Path, losses: Sequence[tuple[int, float]], metrics: dict[str, Any]) -> None:
    """The loss curve: each step, a smoothed line, and what came of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    steps, values = [step for step, _ in losses], [loss for _, loss in losses]
    width = max(1, len(values) // 25)
    smooth = [sum(values[max(0, i - width + 1) : i + 1]) / len(values[max(0, i - width + 1) : i + 1]) for i in range(len(values))]
    axes.plot(steps, values, color="#b8c4d6", linewidth=1, marker="." if len(values) < 3 else "", label="each step")
    axes.plot(steps, smooth, color="#2456a6", linewidth=2, label=f"mean of {width} steps")
    axes.set(xlabel="optimiser steps", ylabel="training loss (nats per token)")
    title = f"LoRA: {metrics['steps']} steps in {metrics['training_seconds']:.0f} s, {metrics['tokens_per_s']:.0f} tokens/s"
    if metrics["bpb_before"] is not None:
        title += f"\nheld-out notes: {metrics['bpb_before']:.3f} → {metrics['bpb_after']:.3f} bits per byte"
    axes.set_title(title, loc="left", fontsize=11)
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path)
