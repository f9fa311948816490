"""Continuations of many prompts at once, for measuring: whole, not streamed, and only the ids.

transformers' `generate` does the work. Knows nothing about notes, nor what is measured.
"""

from __future__ import annotations

from collections.abc import Sequence

from vaultllm.errors import ModelError
from vaultllm.models import hf


def continuations(
    loaded: hf.Loaded, prompts: Sequence[Sequence[int]], most: int, *, sample: bool = False, seed: int = 0, seconds: float | None = None
) -> list[list[int]]:
    """At most `most` ids after each prompt, the end token included when there is one; greedy, or with `sample` as the model thinks likely.

    Prompts of different lengths are padded on the left and read as if they stood alone. A prompt is cut at its beginning
    where it would leave no room. After `seconds` all of them end where they are, with one id at least. Out of memory, they are made
    in two halves; raises ModelError when one prompt alone does not fit.
    """
    import torch
    from transformers import GenerationConfig

    if not prompts:
        return []
    room = loaded.context - most
    if room < 1 or any(not prompt for prompt in prompts):
        raise ValueError(f"{most} ids after a prompt do not fit, or a prompt is empty: the model reads {loaded.context}")
    kept = [list(prompt)[-room:] for prompt in prompts]
    width = max(map(len, kept))
    ends = sorted(hf.end_ids(loaded))
    filler = ends[0] if ends else 0
    where = next(loaded.model.parameters()).device
    ids = torch.tensor([[filler] * (width - len(one)) + one for one in kept], device=where)
    mask = torch.tensor([[0] * (width - len(one)) + [1] * len(one) for one in kept], device=where)
    # All of it is named: a checkpoint may bring its own temperature or penalties.
    choice = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0} if sample else {"do_sample": False}
    how = GenerationConfig(max_new_tokens=most, eos_token_id=ends or None, pad_token_id=filler, max_time=seconds, **choice)
    inner = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    theirs, inner.generation_config = inner.generation_config, GenerationConfig()
    try:
        with torch.random.fork_rng(devices=[where] if where.type == "cuda" else []), torch.inference_mode():
            torch.manual_seed(seed)
            out = loaded.model.generate(input_ids=ids, attention_mask=mask, generation_config=how)[:, width:].tolist()
    except (RuntimeError, MemoryError) as error:
        if not hf.out_of_memory(error):
            raise
        out = None
    finally:
        inner.generation_config = theirs
    if out is None:  # the error is over, and what it held on to is free
        if len(kept) == 1:
            raise ModelError(f"the memory is not enough to go on from {width} tokens; choose a smaller base", path=loaded.name)
        half = len(kept) // 2
        parts = (kept[:half], kept[half:])
        return [row for part in parts for row in continuations(loaded, part, most, sample=sample, seed=seed, seconds=seconds)]
    return [_ended(row, set(ends)) for row in out]


def _ended(ids: list[int], ends: set[int]) -> list[int]:
    """Without the padding after its end."""
    at = next((i for i, one in enumerate(ids) if one in ends), len(ids))
    return ids[: at + 1]
