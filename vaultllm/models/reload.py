"""Whether a saved adapter, loaded again, is the model that was trained: the logits of one fixed prompt, then and now.

Written beside the adapter at the end of training, compared before it may answer. Finite weights, the file's hash and the
base's fingerprint are checked by `hf.load`. Knows nothing about runs or who answers.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vaultllm import tokenizer
from vaultllm.errors import ModelError
from vaultllm.files import write_whole
from vaultllm.models.hf import Loaded

PROMPT = "1, 2, 3. Water finds its way; вода дырочку найдёт; জল তার পথ খুঁজে নেয়।"
FILE = "reload.json"
MOST = 256
"""So many logits are kept, evenly over the vocabulary."""
TOLERANCE, HALF_TOLERANCE = 1e-5, 2e-2
"""Of a logit, relative above 1: in fp32; in half precision, where another number of threads already rounds otherwise."""


def record(model: Any, tokens: Any, folder: Path) -> None:
    """Write `folder/reload.json`: the logits (nats, last position) of the fixed prompt by the model as it was trained."""
    ids = tokenizer.encode_text(tokens, PROMPT)
    logits = _logits(model, ids)
    places = [int(i * len(logits) / min(MOST, len(logits))) for i in range(min(MOST, len(logits)))]
    about = {"schema": 1, "ids": ids, "places": places, "logits": [logits[place] for place in places], **_conditions(model)}
    write_whole(folder / FILE, json.dumps(about) + "\n", lasting=True)


def check(loaded: Loaded, folder: Path) -> str:
    """Why the comparison with `folder/reload.json` was skipped; empty when the logits are equal within the tolerance.

    Skipped for an adapter that was trained before this was recorded, and where the numbers come from another device, dtype or
    version of torch. Raises ModelError when the tokenizer or the logits differ, or when the record is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return "its logits were not recorded when it was trained"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        ids, places, expected = list(about["ids"]), list(about["places"]), [float(one) for one in about["logits"]]
        conditions = {name: str(about[name]) for name in ("device", "dtype", "torch")}
        if not all(map(math.isfinite, expected)) or len(expected) != len(places) or not expected:
            raise ValueError("its numbers are not whole")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the record of its logits cannot be read ({error}); train again, or roll back", path=str(path)) from error
    if tokenizer.encode_text(loaded.tokenizer, PROMPT) != ids:
        raise ModelError("the base's tokenizer cuts text in another way than when the adapter was trained; train again", path=str(folder))
    now = _conditions(loaded.model)
    if other := [f"{name} {conditions[name]}, now {now[name]}" for name in now if now[name] != conditions[name]]:
        return f"its logits were recorded with {'; '.join(other)}"
    logits = _logits(loaded.model, ids)
    if max(places) >= len(logits):
        raise ModelError("the base has another vocabulary than when the adapter was trained; train again", path=str(folder))
    tolerance = TOLERANCE if now["dtype"] == "float32" else HALF_TOLERANCE
    worst = max(_apart(then, logits[place]) for then, place in zip(expected, places, strict=True))
    if not worst <= tolerance:  # also when it is no number
        raise ModelError(f"loaded again it does not say what it said after training (logits differ by {worst:.2g}); train again",
                         path=str(folder))  # fmt: skip
    return ""


def _apart(then: float, now: float) -> float:
    return abs(then - now) / max(1.0, abs(then))


def _conditions(model: Any) -> dict[str, str]:
    """What may change the numbers without anything being wrong."""
    import torch

    weight = next(model.parameters())
    # In nf4 too little differences are no sign of damage: bitsandbytes has other products for learning and for use.
    dtype = "nf4" if getattr(model.config, "quantization_config", None) else str(weight.dtype).removeprefix("torch.")
    return {"device": weight.device.type, "dtype": dtype, "torch": torch.__version__}


def _logits(model: Any, ids: Sequence[int]) -> list[float]:
    """Of the last position, fp32; dropout off, the model's mode restored."""
    import torch

    was_training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            out = model(input_ids=torch.tensor([list(ids)], device=next(model.parameters()).device), use_cache=False)
        found: list[float] = out.logits[0, -1].float().cpu().tolist()
    finally:
        model.train(was_training)
    return found
