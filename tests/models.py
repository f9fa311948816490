"""Tiny models of three shapes with a tokenizer, built from a seed: what tests train and load instead of downloads."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from vaultllm import tokenizer as bpe
from vaultllm.models import hf

Shape = Literal["qwen3", "llama", "gpt2"]
SHAPES: tuple[Shape, ...] = ("qwen3", "llama", "gpt2")

TEXTS = [
    "Дождь идёт над рекой. Вода в колодце поднялась.",
    "Насос включается, когда влажность ниже тридцати двух процентов.",
    "The pump starts when the soil is dry and stops when it is wet.",
    "আজ সকালে বৃষ্টি হয়েছে। নদীর জল বেড়েছে।",
    "Rye bread needs fourteen hours of cold proof and a hot oven.",
]


def tokenizer(texts: list[str] | None = None, size: int = 512) -> Any:
    """A `tokenizers.Tokenizer` trained on these texts."""
    return bpe.train((texts or TEXTS) * 3, size)


def build(folder: Path, shape: Shape = "qwen3", *, seed: int = 0, width: int = 32, layers: int = 2, context: int = 256) -> Path:
    """A random causal LM as an ordinary transformers folder; returns it."""
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

    hf.quiet()
    torch.manual_seed(seed)
    words = tokenizer()
    common = {"vocab_size": words.get_vocab_size(), "eos_token_id": words.token_to_id(bpe.TURN_END), "bos_token_id": None}
    if shape == "gpt2":
        config: Any = GPT2Config(n_embd=width, n_layer=layers, n_head=2, n_positions=context, **common)
    else:
        kind = Qwen3Config if shape == "qwen3" else LlamaConfig
        sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "max_position_embeddings": context}
        heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": width // 2}
        config = kind(**sizes, **heads, tie_word_embeddings=shape == "qwen3", **common)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    bpe.save(words, folder)
    return folder


def learnt(folder: Path, texts: list[str], *, steps: int = 100, shape: Shape = "llama") -> hf.Loaded:
    """A random base of width 64 with an adapter that knows these texts by heart; its own base knows none of them."""
    import dataclasses
    import warnings

    import torch
    from peft import LoraConfig, get_peft_model

    from vaultllm import evaluate

    torch.set_num_threads(1)
    loaded = hf.load(str(build(folder, shape, width=64)))
    # A random head cannot say anything clearly: it is trained too.
    config = LoraConfig(
        r=32, lora_alpha=64, target_modules="all-linear", modules_to_save=["lm_head", "embed_tokens"], task_type="CAUSAL_LM"
    )
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = get_peft_model(loaded.model, config)
    rows = []
    for text in texts:
        ids = [*evaluate.start_of_text(loaded.tokenizer), *bpe.encode_text(loaded.tokenizer, text)]
        rows.append(evaluate.Window(ids, [False] + [True] * (len(ids) - 1)))
    batch = evaluate.pad(rows)
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=3e-3)
    for _ in range(steps):
        evaluate.token_losses(model, *batch)[0].mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return dataclasses.replace(loaded, model=model.eval())
