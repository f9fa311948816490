"""A small language model trained from scratch on the vault, within a time that the user names.

A Qwen3-shaped transformers model (QK-norm, tied embeddings) with the vault's own tokenizer, saved as an ordinary
transformers folder. How it learns is in `learning`, how much of what in `plan`. Knows nothing about the ledger, runs or promotion.

A run that is given time depends on the machine's speed and cannot be repeated exactly; a run that is given
`steps` gives the same weights for the same seed, version of torch and number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib
import json
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vaultllm import tokenizer as bpe
from vaultllm.errors import DataError
from vaultllm.files import saving
from vaultllm.models import hf, learning, plan
from vaultllm.models.plan import Budget, Reporter, Sample, Shape, Watched
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
    written: Callable[[Sample], None] | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Train tokenizer and model on the examples and write them as a transformers folder, with `micro.json` in it.

    `minutes` cover everything, saving included. It ends sooner when the text has been read `MAX_EPOCHS` times.
    With `steps` the time is not looked at: fp32, a size and an order that depend on the seed and the text alone.
    `progress` is called at least once a second. `val` is only measured, never trained on; the examples' weights
    are not looked at. The folder appears complete at the end (an older one of that name is replaced) or not at all.
    `written` is given what the model writes as it learns, at the shares `plan.SAMPLES` of the training and at its end; that changes
    nothing in what it learns, but takes time. Once `stop` says so, training ends within a twentieth of the time, annealed, and is saved;
    before `plan.WORTH_KEEPING` of it is done it raises KeyboardInterrupt instead.
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
        watched = Watched(written, stop)
        result = _pretrain(examples, work, n_bytes, budget, seed, report, [_encodable(example) for example in val], watched)
        result["minutes"] = round((time.monotonic() - began) / 60, 3)
        result["sha"] = hf.fingerprint(work)
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
    watched: Watched,
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
    with saving(work):
        tokenizer.save_pretrained(work)
    sequences = []
    used_bytes = 0
    share = max(0.25, budget.elapsed() / budget.seconds + 0.1)  # however long it took to start
    for example in examples:
        sequences.append(encode_example(tokenizer, example)[0])
        used_bytes += sum(len(message.text.encode()) for message in example.messages)
        report("reading")
        if not budget.within(share):
            break
    end = tokenizer.pad_token_id
    stream = torch.tensor(plan.pack(sequences, end))
    budget.reserve = 0.5 + min(2.0, 0.02 * budget.seconds)  # saving

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    vocabulary = len(tokenizer)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        dtype, speed, tokens = None, math.inf, float((budget.steps or 0) * plan.STEP_TOKENS)
        if budget.steps is None:
            dtype, speed = learning.faster_dtype(_model(plan.SHAPES[0], vocabulary, tokenizer).to(device), report)
            tokens = speed * budget.left()
        recipe = plan.pick(tokens, len(stream), vocabulary)
        speed *= plan.slower(recipe.shape, vocabulary)
        model = _model(recipe.shape, vocabulary, tokenizer).to(device)
        val_tokens = sum(map(_learnt_bytes, val)) * len(stream) / used_bytes
        # A forward pass is three times as fast as a training step; and each text costs something by itself.
        budget.reserve += min(0.15 * budget.seconds, 0.02 * len(val) + 0.5 * val_tokens / speed)
        write = functools.partial(learning.write, model, tokenizer, seed)
        with learning.dropout(model, recipe.dropout):
            trained = learning.train(model, stream, recipe, dtype, speed, budget, seed, report, watched, write)
    model.to("cpu").eval()
    result = {
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": vocabulary,
        "shape": recipe.shape._asdict(),
        "weight_decay": recipe.weight_decay,
        "dropout": recipe.dropout,
        "step_tokens": recipe.step_tokens,
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
    with _no_bars(), saving(work):
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
