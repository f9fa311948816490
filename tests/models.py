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
