"""Whether and how a base is held in 4 bits: QLoRA's nf4 (Dettmers et al. 2023, arXiv:2305.14314), by bitsandbytes.

bitsandbytes is optional (`pip install "vaultllm[nf4]"`) and is tried, not believed: where its kernels do not run, or give other
numbers, `why_not` says so. Knows nothing about adapters and training.
"""

from __future__ import annotations

import functools
import logging
from typing import Any

from vaultllm.errors import ModelError

ERROR = 0.2
"""Most that a product with weights in nf4 may be off, relative to the exact one; on such weights it is off by 0.1."""


@functools.cache
def why_not(where: str) -> str:
    """Why nf4 does not work on this device (`cuda`, `mps`, `cpu`); empty when it does. Takes a moment the first time."""
    import torch

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it tells of kernels that it could do without
    try:
        import bitsandbytes
    except ImportError:
        return 'bitsandbytes is not installed (pip install "vaultllm[nf4]")'
    except Exception as error:  # its libraries are loaded on import, and fail in ways of their own
        return f"bitsandbytes cannot be loaded ({_first_line(error)})"
    try:
        exact = torch.randn(128, 128, generator=torch.Generator().manual_seed(0))
        layer = bitsandbytes.nn.Linear4bit(128, 128, bias=False, quant_type="nf4", compute_dtype=torch.float32)
        layer.weight = bitsandbytes.nn.Params4bit(exact.clone(), requires_grad=False, quant_type="nf4")
        layer = layer.to(where)
        left = torch.randn(16, 128, generator=torch.Generator().manual_seed(1)).to(where)
        said = layer(left.requires_grad_())
        (back,) = torch.autograd.grad(said.sum(), left)
        wanted, slope = left.detach().cpu() @ exact.T, exact.sum(0).expand(16, 128)
        for found, true in ((said.detach().cpu(), wanted), (back.cpu(), slope)):
            if not float((found - true).norm() / true.norm()) < ERROR:
                return f"bitsandbytes computes something else on {where}"
    except Exception as error:  # a kernel that is missing is an AttributeError here, a RuntimeError there
        return f"bitsandbytes does not work on {where} ({_first_line(error)})"
    return ""


def checked(where: str, path: str) -> None:
    """Raises ModelError with the reason and the way out when nf4 does not work on this device."""
    if why := why_not(where):
        raise ModelError(f'a base in nf4 cannot be used here: {why}; or train with train.quantize = ""', path=path)


def settings(where: str, dtype: Any) -> dict[str, Any]:
    """What `from_pretrained` is told: nf4 with its scales quantised too, products computed in `dtype`, all of it on one device."""
    from transformers import BitsAndBytesConfig

    how = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
    )  # fmt: skip
    return {"quantization_config": how, "device_map": {"": where}}


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
