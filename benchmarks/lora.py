"""Tokens per second of `train_lora` against a plain torch + peft loop over the same batches.

    python benchmarks/lora.py --seconds 30 --rounds 2

A Llama-shaped model of about 30M random parameters and made-up talks are built in a temporary folder. The two take
turns, each in its own process, so that peak memory is its own. Real tokens are counted, without padding; loading
and measuring are not counted. Prints one JSON document.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from vaultllm import loop, tokenizer, train
from vaultllm.config import TrainSettings
from vaultllm.dataset import Dataset
from vaultllm.models import hf
from vaultllm.schema import Example, Message

WORDS = "дождь река вода насос колодец хлеб мука закваска лодка весло the pump water level soil bread river rain and is in of".split()


def text(draw: random.Random, words: int) -> str:
    return " ".join(draw.choice(WORDS) + (draw.choice("абвгд") if draw.random() < 0.3 else "") for _ in range(words))


def corpus(n: int = 600) -> Dataset:
    """Talks whose lengths vary as chats do: most are short, a few fill several windows."""
    draw = random.Random(0)
    examples = []
    for i in range(n):
        answer = text(draw, min(900, 15 + int(draw.expovariate(1 / 110))))
        said = (Message("user", text(draw, draw.randint(4, 40)), False), Message("assistant", answer, True))
        examples.append(Example(f"{i}", (f"{i}",), f"{i}.md", "dialogue", said, "train"))
    return Dataset("benchmark", tuple(examples), ())


def build(folder: Path) -> None:
    """The base."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    hf.quiet()
    torch.manual_seed(0)
    words = tokenizer.train([message.text for example in corpus().examples for message in example.messages], 4096)
    sizes = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "max_position_embeddings": 1024}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": True}
    config = LlamaConfig(**sizes, **heads, vocab_size=8192, eos_token_id=words.token_to_id(tokenizer.TURN_END), bos_token_id=None)
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save(words, folder)


def ours(base: str, run: str, settings: TrainSettings) -> dict[str, Any]:
    """`train_lora` as the user gets it."""
    metrics = train.train_lora(base, corpus(), Path(run), settings, progress=lambda progress: None)
    return {key: metrics[key] for key in ("tokens_per_s", "peak_rss_mb", "steps", "parameters", "loss_first", "loss_last")} | {
        "padding": metrics["tokens"]["padding"] / sum(metrics["tokens"].values())
    }


def plain(base: str, run: str, settings: TrainSettings) -> dict[str, Any]:
    """The shortest loop that learns the same: peft, AdamW, the model's own loss, the same batches."""
    import torch

    loaded = hf.load(base)
    data = train._data(loaded, corpus().split("train"), settings.max_tokens, 0)
    model = train.adapted(loaded.model, settings, 0).train()
    collate = loop._collator(data)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=2e-4, weight_decay=0.0, fused=True)
    order = list(range(len(data.batches)))
    random.Random(0).shuffle(order)
    tokens = steps = 0
    begun = time.monotonic()
    while time.monotonic() - begun < settings.minutes * 60:
        chosen = [order[(steps * data.accumulate + i) % len(order)] for i in range(data.accumulate)]
        batches = [collate([data.batches[i]]) for i in chosen]
        learnt = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        for batch in batches:
            batch.pop("weights")
            batch = {name: tensor.to(loaded.model.device) for name, tensor in batch.items()}
            model(**batch, num_items_in_batch=learnt, use_cache=False).loss.backward()
            tokens += int(batch["attention_mask"].sum())
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        steps += 1
    speed = round(tokens / (time.monotonic() - begun), 1)
    return {"tokens_per_s": speed, "peak_rss_mb": train._peak_rss_mb(), "steps": steps}


def child(name: str, base: str, run: str, settings: TrainSettings, threads: int, queue: Any) -> None:
    import torch

    torch.set_num_threads(threads)
    queue.put({"ours": ours, "plain": plain}[name](base, run, settings))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=30.0, help="training time of each")
    parser.add_argument("--rounds", type=int, default=2, help="how often they take turns")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    settings = TrainSettings(minutes=options.seconds / 60, epochs=1000.0, max_tokens=512)
    context = multiprocessing.get_context("spawn")
    found: dict[str, list[dict[str, Any]]] = {"plain": [], "ours": []}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        build(base)
        for turn in range(options.rounds):
            for name in found:
                queue = context.Queue()
                worker = context.Process(target=child, args=(name, str(base), f"{folder}/run{turn}", settings, options.threads, queue))
                worker.start()
                found[name].append(queue.get(timeout=options.seconds * 3 + 120))
                worker.join()
    speed = {name: statistics.median(one["tokens_per_s"] for one in runs) for name, runs in found.items()}
    result = {"seconds": options.seconds, "threads": options.threads, "ratio": round(speed["ours"] / speed["plain"], 3)}
    print(json.dumps(result | {"tokens_per_s": speed, "runs": found}, indent=1))


if __name__ == "__main__":
    main()
