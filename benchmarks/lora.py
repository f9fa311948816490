"""Speed and memory of `vaultllm train` beside others who train the same adapter on the same records.

    python benchmarks/lora.py                                  # a Llama of 10M parameters: all arms
    python benchmarks/lora.py --shape 135M --records 64        # SmolLM2-135M's shape: vaultllm and plain peft
    python benchmarks/lora.py --shape 0.6B --records 16        # Qwen3-0.6B's shape
    python benchmarks/lora.py --threads 1 --clock cpu          # where other programs run besides

A base with random weights and made-up talks (no longer than a window, so nobody cuts any) are built in a temporary folder. Each arm
reads every record once, eight to a step, in a process of its own, so that peak memory is its own; arms take turns, and the median of
the rounds is taken. Tokens are those of the records: no padding. Loading, tokenising and measuring are not counted; starting a
trainer is. LoRA r16 on all linear layers, AdamW, the same learnt tokens for all.

Arms: `vaultllm` is `train.train_lora`. `plain packed`, `plain bucketed`: the shortest torch + peft loop with the model's own loss, over
packed rows whose positions begin anew (transformers isolates them), or batches of similar length. `Trainer padded`: its defaults
and a collator that pads; `Trainer packed`: its collator that flattens. `SFTTrainer`: TRL's defaults (`pip install trl`).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import multiprocessing
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from vaultllm import evaluate, tokenizer, train
from vaultllm.config import TrainSettings
from vaultllm.dataset import Dataset
from vaultllm.evaluate import Window
from vaultllm.models import hf
from vaultllm.schema import Example, Message, silent

WORDS = "дождь река вода насос колодец хлеб мука закваска лодка весло the pump water level soil bread river rain and is in of".split()
LONGEST = 1024
"""Tokens of a window, and of SFTTrainer's default."""
BATCH = 8
SHAPES: dict[str, dict[str, Any]] = {
    "10M": {"hidden_size": 320, "intermediate_size": 864, "num_hidden_layers": 6, "num_attention_heads": 5, "vocab_size": 8192},
    "135M": {
        **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
        "vocab_size": 49152,
    },
    "0.6B": {
        **{"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 16, "num_key_value_heads": 8},
        **{"head_dim": 128, "vocab_size": 151936},
    },
}
RECORDS = {"10M": 160, "135M": 32, "0.6B": 12}


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) + (draw.choice("абвгд") if draw.random() < 0.3 else "") for _ in range(words))


def corpus(n: int) -> Dataset:
    """Talks whose lengths vary as chats do: most are short, a few fill a window."""
    draw = random.Random(0)
    examples = []
    for i in range(n):
        answer = text(draw, min(700, 20 + int(draw.expovariate(1 / 150))))
        said = (Message("user", text(draw, draw.randint(4, 40)), False), Message("assistant", answer, True))
        examples.append(Example(f"{i}", (f"{i}",), f"{i}.md", "dialogue", said, "train"))
    return Dataset("benchmark", tuple(examples), ())


def build(folder: str, shape: str, dtype: str) -> None:
    """The base."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig, Qwen3Config

    hf.quiet()
    torch.manual_seed(0)
    words = tokenizer.train([message.text for example in corpus(600).examples for message in example.messages], 4096)
    kind = Qwen3Config if shape == "0.6B" else LlamaConfig
    ends = {"eos_token_id": words.token_to_id(tokenizer.TURN_END), "bos_token_id": None, "pad_token_id": None}
    config = kind(**SHAPES[shape], **ends, max_position_embeddings=2048, tie_word_embeddings=True)
    model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    model.save_pretrained(folder)
    tokenizer.save(words, folder)


# -- arms: each trains on all records once and returns its seconds by the clock and of the processor


class Watch:
    """The time between entering and leaving."""

    def __enter__(self) -> Watch:
        self.wall, self.cpu = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall, self.cpu = time.perf_counter() - self.wall, time.process_time() - self.cpu


def loaded(base: str, records: int) -> tuple[Any, list[Window]]:
    """The model with a fresh adapter, and the records as ids."""
    import torch

    found = hf.load(base)
    pieces = [window for example in corpus(records).examples for window in whole(found.tokenizer, example)]
    random.Random(0).shuffle(pieces)
    model = train.adapted(found.model, TrainSettings(), 0).train()
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(weight)
    return model, pieces


def whole(words: Any, example: Example) -> list[Window]:
    """The one window that a record fits into; what follows its last learnt token is left out."""
    found = evaluate.windows(*evaluate.encode(words, example), LONGEST)
    assert len(found) == 1, "a record is longer than a window: arms would not read the same tokens"
    return found


def labels(piece: Window) -> list[int]:
    return [one if learnt else -100 for one, learnt in zip(piece.ids, piece.learn, strict=True)]


def ours(base: str, records: int, run_folder: str) -> Watch:
    """As the user gets it."""
    from transformers import Trainer  # noqa: F401 - its import is not counted for the others either

    watch, real = Watch(), train.run

    def timed(*args: Any) -> int:
        with watch:
            return real(*args)

    train.run = timed
    settings = TrainSettings(minutes=600.0, epochs=1.0, max_tokens=LONGEST, rehearse=0.0)
    train.train_lora(base, corpus(records), Path(run_folder), settings, progress=silent)
    return watch


def plain(base: str, records: int, *, packed: bool) -> Watch:
    """The shortest loop."""
    import torch

    model, pieces = loaded(base, records)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-4, weight_decay=0.0)
    with Watch() as watch:
        for step in grouped(pieces, packed):
            learnt = sum(sum(piece.learn) for batch in step for piece in batch)
            for batch in step:
                model(**(flat(batch) if packed else padded(batch)), num_items_in_batch=learnt, use_cache=False).loss.backward()
            torch.nn.utils.clip_grad_norm_(weights, 1.0)
            optimizer.step()
            optimizer.zero_grad()
    return watch


def grouped(pieces: Sequence[Window], packed: bool) -> Iterator[list[list[Window]]]:
    """Steps of about eight records: each in as many batches as it takes to hold 1,024 tokens in one, 2,048 for buckets."""
    group = evaluate.packs if packed else evaluate.batches
    batches = group([len(piece.ids) for piece in pieces], tokens=LONGEST, rows=BATCH)
    random.Random(0).shuffle(batches)
    held: list[list[Window]] = []
    for batch in batches:
        held.append([pieces[i] for i in batch])
        if sum(map(len, held)) >= BATCH:
            yield held
            held = []
    if held:
        yield held


def flat(batch: Sequence[Window]) -> dict[str, Any]:
    import torch

    rows = {
        "input_ids": [one for piece in batch for one in piece.ids],
        "position_ids": [i for piece in batch for i in range(len(piece.ids))],
        "labels": [one for piece in batch for one in labels(piece)],
    }
    return {name: torch.tensor([row]) for name, row in rows.items()}


def padded(batch: Sequence[Window]) -> dict[str, Any]:
    return dict(zip(("input_ids", "attention_mask", "labels"), evaluate.pad(batch), strict=True))


QUIET: dict[str, Any] = {
    "num_train_epochs": 1, "save_strategy": "no", "report_to": "none", "disable_tqdm": True, "use_cpu": True,
    "log_level": "error", "logging_strategy": "no", "learning_rate": 2e-4,
}  # fmt: skip
"""What both Trainers are told: one pass, nothing saved or reported; all else as it comes."""


def rows_of(pieces: list[Window]) -> list[dict[str, list[int]]]:
    """The records as both Trainers take them."""
    return [{"input_ids": piece.ids, "labels": labels(piece)} for piece in pieces]


def padding_words(base: str) -> Any:
    """The tokenizer, which pads with its last token."""
    words = hf.load_tokenizer(base)
    words.pad_token = words.eos_token
    return words


def trainer(base: str, records: int, run_folder: str, *, packed: bool) -> Watch:
    """transformers' Trainer with its defaults."""
    from transformers import DataCollatorForSeq2Seq, DataCollatorWithFlattening, Trainer, TrainingArguments

    model, pieces = loaded(base, records)
    rows, words = rows_of(pieces), padding_words(base)
    arguments = TrainingArguments(run_folder, **QUIET)
    collator = DataCollatorWithFlattening() if packed else DataCollatorForSeq2Seq(words)
    with Watch() as watch:
        Trainer(model=model, args=arguments, train_dataset=rows, data_collator=collator).train()
    return watch


def sft(base: str, records: int, run_folder: str) -> Watch:
    """TRL's SFTTrainer with its defaults (bf16, gradient checkpointing, no packing)."""
    from datasets import Dataset as Rows
    from trl import SFTConfig, SFTTrainer

    model, pieces = loaded(base, records)
    rows, words = Rows.from_list(rows_of(pieces)), padding_words(base)
    arguments = SFTConfig(run_folder, **QUIET)
    made = SFTTrainer(model=model, args=arguments, train_dataset=rows, processing_class=words)
    with Watch() as watch:
        made.train()
    return watch


ARMS: dict[str, Callable[[str, int, str], Watch]] = {
    "vaultllm": ours,
    "plain packed": lambda base, records, folder: plain(base, records, packed=True),
    "plain bucketed": lambda base, records, folder: plain(base, records, packed=False),
    "Trainer packed": lambda base, records, folder: trainer(base, records, folder, packed=True),
    "Trainer padded": lambda base, records, folder: trainer(base, records, folder, packed=False),
    "SFTTrainer": sft,
}


def child(name: str, base: str, run_folder: str, records: int, threads: int, queue: Any) -> None:
    import torch

    torch.set_num_threads(threads)
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    with contextlib.redirect_stdout(sys.stderr):  # Trainers print what they like
        watch = ARMS[name](base, records, run_folder)
    words = hf.load_tokenizer(base)
    tokens = sum(len(piece.ids) for one in corpus(records).examples for piece in whole(words, one))
    queue.put(
        {
            "tokens": tokens,
            "tokens_per_s": round(tokens / watch.wall, 1),
            "tokens_per_cpu_s": round(tokens / watch.cpu, 1),
            "peak_rss_mb": train.peak_rss_mb(),
        }
    )


def in_process(work: Callable[..., None], *args: Any) -> Any:
    """What a fresh process puts into its queue (the last argument it is given)."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    worker = context.Process(target=work, args=(*args, queue))
    worker.start()
    worker.join()
    if worker.exitcode:
        raise SystemExit(f"{args[0]} failed")
    return queue.get(timeout=5)


def built(folder: str, shape: str, dtype: str, queue: Any) -> None:
    build(folder, shape, dtype)
    queue.put(True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="10M")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the checkpoint")
    parser.add_argument("--arms", nargs="+", choices=ARMS, help="all, or for the larger shapes vaultllm and plain")
    parser.add_argument("--records", type=int, help="how many talks")
    parser.add_argument("--rounds", type=int, default=2, help="how often they take turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="by which the ratios are; cpu with --threads 1")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    arms = options.arms or (list(ARMS) if options.shape == "10M" else ["vaultllm", "plain packed", "plain bucketed"])
    if importlib.util.find_spec("trl") is None:
        arms = [name for name in arms if name != "SFTTrainer"]
    records = options.records or RECORDS[options.shape]
    key = "tokens_per_s" if options.clock == "wall" else "tokens_per_cpu_s"
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as folder:
        base = f"{folder}/base"
        in_process(built, base, options.shape, options.dtype)
        for turn in range(options.rounds):
            for name in arms:
                run_folder = f"{folder}/{turn} {name}"
                found[name].append(in_process(child, name, base, run_folder, records, options.threads))
    speed = {name: statistics.median(one[key] for one in runs) for name, runs in found.items()}
    lines = [
        {
            "arm": name,
            key: speed[name],
            "rounds": [one[key] for one in runs],
            "vaultllm_times_as_fast": round(speed["vaultllm"] / speed[name], 2) if "vaultllm" in speed else None,
            "peak_rss_mb": max(one["peak_rss_mb"] for one in runs),
        }
        for name, runs in found.items()
    ]
    about = {name: getattr(options, name) for name in ("shape", "dtype", "threads", "clock", "rounds")}
    about |= {"records": records, "tokens": next(iter(found.values()))[0]["tokens"], "trl": importlib.util.find_spec("trl") is not None}
    if options.json:
        print(json.dumps(about | {"arms": lines}, indent=1))
        return
    print(", ".join(f"{name}: {value}" for name, value in about.items()))
    print(f"\n| arm | {key.replace('_', ' ')} (rounds) | vaultllm is so many times as fast | peak MB |\n|---|---|---|---|")
    for line in lines:
        rounds = ", ".join(f"{one:,.0f}" for one in line["rounds"])
        print(f"| {line['arm']} | {line[key]:,.0f} ({rounds}) | {line['vaultllm_times_as_fast']} | {line['peak_rss_mb']:,} |")


if __name__ == "__main__":
    main()
