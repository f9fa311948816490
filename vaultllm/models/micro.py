"""A small language model trained from scratch on the vault, within a time that the user names.

A Qwen3-shaped transformers model (QK-norm, tied embeddings) with the vault's own tokenizer, saved as an ordinary
transformers folder. Muon (Jordan et al. 2024; `torch.optim.Muon`) for the matrices, AdamW for the rest, and a
warm-up/constant/decay schedule (Hu et al. 2024, arXiv:2404.06395) driven by the share of the budget that is
used, so that a run always ends annealed. Knows nothing about the ledger, runs or promotion.

A run that is given time depends on the machine's speed and cannot be repeated exactly; a run that is given
`steps` gives the same weights for the same seed, version of torch and number of threads.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import importlib
import json
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vaultllm import tokenizer as bpe
from vaultllm.errors import DataError
from vaultllm.models import plan
from vaultllm.models.plan import Budget, Reporter, Shape
from vaultllm.schema import Example, Message, Report
from vaultllm.text import encodable


def encode_example(tokenizer: Any, example: Example) -> tuple[list[int], list[bool]]:
    """Ids of an example, and which of them its loss counts (not for pretraining, where all are learnt)."""
    if example.form != "prose":
        ids, learnt = bpe.encode_chat(tokenizer, example.messages)
        return ids, learnt
    ids, learnt = [], []
    for i, message in enumerate(example.messages):
        piece = bpe.encode_text(tokenizer, ("\n\n" if i else "") + message.text)
        ids += piece
        learnt += [message.learn] * len(piece)
    return ids, learnt


def pretrain(
    examples: Sequence[Example],
    folder: Path,
    *,
    minutes: float,
    seed: int,
    progress: Report,
    val: Sequence[Example] = (),
    steps: int | None = None,
) -> dict[str, Any]:
    """Train tokenizer and model on the examples and write them as a transformers folder, with `micro.json` in it.

    `minutes` cover everything, saving included. It ends sooner when the text has been read `MAX_EPOCHS` times.
    With `steps` the time is not looked at: fp32, a size and an order that depend on the seed and the text alone.
    `progress` is called at least once a second. `val` is only measured, never trained on; the examples' weights
    are not looked at. The folder appears complete at the end (an older one of that name is replaced) or not at all.
    Returns what `micro.json` holds.
    Raises DataError when the examples hold too little text to train on.
    """
    began = time.monotonic()
    budget = Budget(began, minutes * 60, steps)
    examples = [_encodable(example) for example in examples]
    n_bytes = sum(len(message.text.encode()) for example in examples for message in example.messages)
    if n_bytes < 200:
        raise DataError(f"{n_bytes} bytes of text in {len(examples)} examples are too few to train a model; write more notes")
    report = Reporter(progress, budget)
    work = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(work, ignore_errors=True)
    try:
        work.mkdir(parents=True)
        result = _pretrain(examples, work, n_bytes, budget, seed, report, [_encodable(example) for example in val])
        result["minutes"] = round((time.monotonic() - began) / 60, 3)
        (work / "micro.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        _publish(work, folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    report("pretraining", 1.0, force=True)
    return result


def _encodable(example: Example) -> Example:
    """The example without lone surrogates, which no tokenizer can encode."""
    messages = tuple(Message(message.role, encodable(message.text), message.learn) for message in example.messages)
    return dataclasses.replace(example, messages=messages)


def _pretrain(
    examples: Sequence[Example],
    work: Path,
    n_bytes: int,
    budget: Budget,
    seed: int,
    report: Reporter,
    val: Sequence[Example],
) -> dict[str, Any]:
    report.during("starting", lambda: importlib.import_module("transformers").Qwen3ForCausalLM)  # seconds
    import tokenizers
    import torch
    import transformers

    examples = plan.in_notes_order(examples, seed)
    texts = (message.text for example in examples for message in example.messages)
    # BPE reads about 2 MB/s: this sample takes a tenth of the time, however large the vault is.
    sample = list(plan.sample(texts, math.inf if budget.steps is not None else 200_000 * budget.seconds))
    size = bpe.vocabulary_size(n_bytes)
    tokenizer = bpe.wrap(report.during("tokenizer", lambda: bpe.train(sample, size)))
    tokenizer.save_pretrained(work)
    sequences = []
    used_bytes = 0
    for example in examples:
        sequences.append(encode_example(tokenizer, example)[0])
        used_bytes += sum(len(message.text.encode()) for message in example.messages)
        report("reading")
        if not budget.within(0.25):
            break
    end = tokenizer.pad_token_id
    stream = torch.tensor(plan.pack(sequences, end))
    budget.reserve = 0.5 + min(2.0, 0.02 * budget.seconds)  # saving

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = len(tokenizer)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        if budget.steps is not None:
            shape = plan.pick_shape(budget.steps * plan.STEP_TOKENS, vocabulary)
        else:
            speed = _speed(_model(plan.SHAPES[0], vocabulary, tokenizer).to(device), None, report)
            shape = plan.pick_shape(min(speed * budget.left(), plan.MAX_EPOCHS * len(stream)), vocabulary)
        model = _model(shape, vocabulary, tokenizer).to(device)
    dtype, speed = (None, math.inf) if budget.steps is not None else _faster_dtype(model, report)
    val_tokens = sum(map(_learnt_bytes, val)) * len(stream) / used_bytes
    # A forward pass is three times as fast as a training step; and each text costs something by itself.
    budget.reserve += min(0.15 * budget.seconds, 0.02 * len(val) + 0.5 * val_tokens / speed)
    trained = _train(model, stream, dtype, speed, budget, seed, report)
    model.to("cpu").eval()
    result = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": vocabulary,
        "shape": shape._asdict(),
        "text_bytes": n_bytes,
        "text_bytes_read": used_bytes,
        "text_tokens": len(stream) - 1,
        "dtype": "bf16" if dtype is torch.bfloat16 else "fp32",
        "device": device.type,
        "seed": seed,
        **trained,
        "val_bits_per_byte": None,
        "val_bytes": 0,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__},
    }
    if val:
        enough = math.inf if budget.steps is not None else budget.seconds - 1.0 - 0.02 * budget.seconds
        nats, result["val_bytes"] = _measure(model, tokenizer, plan.in_notes_order(val, seed), lambda: budget.elapsed() < enough, report)
        if result["val_bytes"]:
            result["val_bits_per_byte"] = plan.bits_per_byte(nats, result["val_bytes"])
    report("saving", force=True)
    with _no_bars():
        model.save_pretrained(work)
    return result


def _model(shape: Shape, vocabulary: int, tokenizer: Any) -> Any:
    """A freshly initialised model, in training mode."""
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.inner,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        head_dim=shape.width // shape.heads,
        max_position_embeddings=plan.POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen3ForCausalLM(config)
    # Prose ends with <|endoftext|>, a turn with <|im_end|>: either ends an answer.
    ends = [tokenizer.eos_token_id, tokenizer.pad_token_id]
    model.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=tokenizer.pad_token_id)
    return model.train()


def _optimizers(model: Any) -> list[Any]:
    """Muon for the matrices of the blocks, AdamW for embeddings and norms."""
    import torch

    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=plan.MUON_LR, momentum=0.95, weight_decay=plan.WEIGHT_DECAY, adjust_lr_fn="original"),
        torch.optim.AdamW(rest, lr=plan.ADAM_LR, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def _loss(model: Any, windows: Any, dtype: Any) -> Any:
    """Mean cross-entropy (nats per token) of windows [rows, length + 1]; `dtype` None: no autocast."""
    import torch

    with torch.autocast(windows.device.type, dtype=dtype, enabled=dtype is not None):
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), windows[:, 1:].flatten())


def _speed(model: Any, dtype: Any, report: Reporter) -> float:
    """Tokens per second of whole training steps on random tokens, on a copy of the model; about half a second."""
    import torch

    model = copy.deepcopy(model)
    optimizers = _optimizers(model)
    windows = torch.zeros(4, plan.CONTEXT + 1, dtype=torch.long, device=model.device)
    windows.random_(0, model.config.vocab_size, generator=torch.Generator(model.device).manual_seed(0))
    best, began = 0.0, math.inf
    for i in range(6):
        report("measuring speed")
        started = time.monotonic()
        _loss(model, windows, dtype).backward()
        report("measuring speed")
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        now = time.monotonic()
        if i:  # the first step allocates
            best = max(best, 4 * plan.CONTEXT / (now - started))
            if now - began > 0.5:
                break
        else:
            began = now
    return best


def _faster_dtype(model: Any, report: Reporter) -> tuple[Any, float]:
    """bfloat16 when it is faster here, else None (fp32); and its tokens per second. Never assumed: many CPUs emulate it."""
    import torch

    plain = _speed(model, None, report)
    try:
        short = _speed(model, torch.bfloat16, report)
    except RuntimeError:  # no kernel for it on this machine
        return None, plain
    return (torch.bfloat16, short) if short > 1.05 * plain else (None, plain)


def _train(model: Any, stream: Any, dtype: Any, speed: float, budget: Budget, seed: int, report: Reporter) -> dict[str, Any]:
    """Train until time, steps or text are used up; says what was seen and how it ended."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    optimizers = _optimizers(model)
    groups = [(group, group["lr"]) for optimizer in optimizers for group in optimizer.param_groups]
    started, training_time = time.monotonic(), budget.left()
    tokens = 0

    def step(factor: float, done: float) -> None:
        """One step at a share of the full learning rate."""
        nonlocal tokens
        for group, rate in groups:
            group["lr"] = rate * factor
        length = plan.LONG_CONTEXT if report.step % plan.LONG_EVERY == plan.LONG_EVERY - 1 else plan.CONTEXT
        length = min(length, len(stream) - 1)
        starts = torch.randint(len(stream) - length, (max(1, plan.STEP_TOKENS // length),), generator=generator)
        windows: Any = torch.stack([stream[at : at + length + 1] for at in starts.tolist()]).to(model.device)
        loss = 0.0
        # In parts of about half a second, so that there is something to report.
        rows = max(1, int(min(0.5 * speed, 0.5 * (report.rate or speed), plan.STEP_TOKENS)) // length)
        for part in windows.split(rows):
            partial = _loss(model, part, dtype) * (len(part) / len(windows))
            partial.backward()
            loss += partial.item()
            report("pretraining", done)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        report.step += 1
        tokens += windows[:, 1:].numel()
        report.loss = loss if report.loss is None else 0.9 * report.loss + 0.1 * loss
        report.rate = tokens / max(1e-9, time.monotonic() - started)

    enough = max(plan.MAX_EPOCHS * (len(stream) - 1), plan.MIN_STEPS * plan.STEP_TOKENS)
    seconds, factor = plan.STEP_TOKENS / speed, 1.0
    durations: list[float] = []
    while budget.left() > seconds or report.step == 0:
        # What will be used in the middle of this step.
        if budget.steps is not None:
            done = (report.step + 0.5) / budget.steps
        else:
            done = max((time.monotonic() - started + 0.5 * seconds) / training_time, (tokens + 0.5 * plan.STEP_TOKENS) / enough)
        if done >= 1:
            if report.step:
                break
            done = 0.5  # the machine is too slow for the time: still one step, in the middle of the schedule
        factor = plan.lr_factor(done)
        began = time.monotonic()
        step(factor, done)
        durations.append(time.monotonic() - began)
        seconds = durations[0] if len(durations) == 1 else 0.8 * seconds + 0.2 * durations[-1]
    if budget.steps is None and factor > 0.1:
        # The machine stalled through the decay: catch up in a few steps, a twentieth of the time over it at most.
        spare = 0.05 * budget.seconds
        began, few = time.monotonic(), max(1, min(len(durations) // 10, int(spare / statistics.median(durations))))
        hot = factor
        for i in range(few):
            factor = hot * (few - i - 0.5) / few
            step(factor, 1.0)
            if time.monotonic() - began > spare:
                break
    return {
        "steps": report.step,
        "tokens_seen": tokens,
        "epochs": round(tokens / (len(stream) - 1), 2),
        "tokens_per_s": None if report.rate is None else round(report.rate, 1),
        "train_loss": report.loss,
        "last_lr_factor": factor,
    }


def _measure(model: Any, tokenizer: Any, examples: Sequence[Example], go_on: Callable[[], bool], report: Reporter) -> tuple[float, int]:
    """Summed loss in nats and the bytes of the learnt text of examples, each in windows of LONG_CONTEXT that know nothing of each other.

    What ends a turn or a text counts in the nats, not in the bytes. Stops when time is up: the bytes say how much was measured.
    """
    import torch

    nats, n_bytes = 0.0, 0
    with torch.no_grad():
        for example in examples:
            if not go_on():
                break
            ids, learnt = encode_example(tokenizer, example)
            end = tokenizer.pad_token_id
            row = [end, *ids, end]
            counts = [*learnt, example.form == "prose"]
            for at in range(0, len(counts), plan.LONG_CONTEXT):
                window = torch.tensor([row[at : at + plan.LONG_CONTEXT + 1]])
                logits = model(input_ids=window[:, :-1], use_cache=False).logits[0].float()
                losses = torch.nn.functional.cross_entropy(logits, window[0, 1:], reduction="none")
                nats += losses[torch.tensor(counts[at : at + plan.LONG_CONTEXT])].sum().item()
                report("measuring")
            n_bytes += _learnt_bytes(example)
    return nats, n_bytes


def _learnt_bytes(example: Example) -> int:
    return sum(len(message.text.encode()) for message in example.messages if message.learn)


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    """Without transformers' progress bars, which would write over ours; its setting is restored."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _publish(work: Path, folder: Path) -> None:
    """Put a complete folder in place, in the stead of an older one; its bytes are on the disk first."""
    for path in sorted(work.rglob("*")):
        if path.is_file():
            with path.open("rb+") as file:
                os.fsync(file.fileno())
    old = folder.with_name(folder.name + ".old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    work.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
