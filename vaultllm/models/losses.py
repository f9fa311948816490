"""What a causal language model's tokens cost, without holding the logits of all of them at once.

Logits are a model's largest tensor: with 150,000 words a thousand tokens take 0.3 GB in bf16, and three times 0.6 GB more in
the usual loss. Here only the tokens that count get any, a chunk at a time, and what goes back through them is made beside the
loss, so that the chunk can be forgotten (cut cross-entropy, Wijmans et al. 2024, arXiv:2411.09009, keeps as little).
`of` is for a frozen output layer, `mean` for one that learns too.
Knows nothing about batches, windows or training.
"""

from __future__ import annotations

import contextlib
import functools
import weakref
from collections.abc import Iterator, Mapping
from typing import Any

CHUNK, CHUNK_GPU = 2**21, 2**27
"""Logits at once: 8 MiB in fp32, which a CPU's cache can hold; on a GPU half a GiB."""
ROWS = 128
"""But of so many tokens at least: a product of fewer rows costs more than a full cache does (docs/log.md)."""

_PLAIN: weakref.WeakKeyDictionary[Any, bool] = weakref.WeakKeyDictionary()


def at_once(words: int, device: str) -> int:
    """Of how many tokens the logits are held at a time."""
    return max(ROWS, CHUNK // words) if device == "cpu" else max(32, CHUNK_GPU // words)


def unwrapped(model: Any) -> Any:
    """transformers' model itself: without the wrapper for several processes, without peft's; anything else as it is."""
    if type(model).__name__ == "DistributedDataParallel":
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def of(model: Any, given: Mapping[str, Any], places: Any, targets: Any) -> Any:
    """Negative log-likelihood in nats, fp32, of each target (N,).

    `given`: the model's arguments; `places` (N,): where in its rows, laid end to end, each target is predicted.
    """
    import torch

    head = plain_head(model)
    if head is None:
        logits = model(**given, use_cache=False).logits.flatten(0, 1).index_select(0, places)
        return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="none")
    with _left_out(head):
        hidden = model(**given, use_cache=False).logits.flatten(0, 1).index_select(0, places)
    costs: Any = _chunked().apply(hidden, head.weight, head.bias, targets)
    return costs


def plain_head(model: Any) -> Any:
    """The frozen output layer, when logits are its product and nothing else; None for others (scaled, capped, trained, sharded).

    Found out once for each model, by two tokens.
    """
    inner = unwrapped(model)
    head = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if not _usable(head):
        return None
    if inner not in _PLAIN:
        _PLAIN[inner] = _is_plain(inner, head)
    return head if _PLAIN[inner] else None


def _usable(head: Any) -> bool:
    import torch

    if type(head) is not torch.nn.Linear or head.weight.requires_grad or hasattr(head.weight, "placements"):
        return False
    return tuple(head.weight.shape) == (head.out_features, head.in_features) and head.weight.is_floating_point()


def _is_plain(inner: Any, head: Any) -> bool:
    """Whether the model hands on what its last block says when its output layer is left out, and the product when it is not."""
    import torch

    ids = torch.tensor([[0, 1]], device=head.weight.device)
    training = inner.training
    inner.eval()
    try:
        with torch.no_grad():
            logits = inner(input_ids=ids, use_cache=False).logits
            with _left_out(head):
                hidden = inner(input_ids=ids, use_cache=False).logits
            if hidden.shape[-1] != head.in_features or logits.shape[-1] != head.out_features:
                return False
            return torch.equal(logits, head(hidden).to(logits.dtype))
    finally:
        inner.train(training)


@contextlib.contextmanager
def _left_out(head: Any) -> Iterator[None]:
    """The output layer hands on what it is given."""
    before = head.__dict__.get("forward")
    head.forward = lambda given: given
    try:
        yield
    finally:
        if before is None:
            del head.forward
        else:
            head.forward = before


@functools.cache
def _chunked() -> Any:
    import torch

    class Chunked(torch.autograd.Function):
        """Hidden states (N, d), weight (V, d), bias (V,) or None, targets (N,) -> cost of each (N,).

        A row's gradient is its own cost's gradient times a vector that is known with the cost: d numbers are kept, not V.
        """

        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, bias: Any, targets: Any) -> Any:
            words = weight.shape[0]
            size = at_once(words, hidden.device.type)
            costs = torch.empty(len(hidden), dtype=torch.float32, device=hidden.device)
            back = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
            for begin in range(0, len(hidden), size):
                some = slice(begin, begin + size)
                told = targets[some, None]
                wide = torch.nn.functional.linear(hidden[some], weight, bias).float()
                chosen = wide.gather(1, told)
                top = wide.amax(1, keepdim=True)
                total = wide.sub_(top).exp_().sum(1, keepdim=True)
                costs[some] = (total.log() + top - chosen)[:, 0]
                if back is not None:
                    wide.div_(total).scatter_add_(1, told, torch.full_like(chosen, -1.0))
                    torch.mm(wide.to(weight.dtype), weight, out=back[some])
            if back is not None:
                ctx.save_for_backward(back)
            return costs

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            (back,) = ctx.saved_tensors
            return back * gradients[0][:, None].to(back.dtype), None, None, None

    return Chunked


def mean(hidden: Any, weight: Any, targets: Any, dtype: Any = None) -> Any:
    """Mean negative log-likelihood in nats, fp32 scalar, of targets (N,) after hidden states (N, d), by an output layer (V, d) that learns.

    The products are computed in `dtype` (None: as given), the gradients of both beside the loss, a chunk of tokens at a time.
    """
    return _averaged().apply(hidden, weight, targets, dtype)


@functools.cache
def _averaged() -> Any:
    import torch

    class Averaged(torch.autograd.Function):
        """As `mean`. The mean's gradient is one number, so all that waits for it is (N, d) and (V, d)."""

        @staticmethod
        def forward(ctx: Any, hidden: Any, weight: Any, targets: Any, dtype: Any) -> Any:
            kind = dtype or hidden.dtype
            narrow, table = hidden.to(kind), weight.to(kind)
            size = 2 * at_once(len(weight), hidden.device.type)  # in half the bytes, and each is added to (V, d)
            total = torch.zeros((), dtype=torch.float32, device=hidden.device)
            to_hidden = torch.empty_like(narrow)
            to_weight = torch.zeros_like(weight, dtype=torch.float32)
            for begin in range(0, len(narrow), size):
                some = slice(begin, begin + size)
                share = torch.softmax(torch.nn.functional.linear(narrow[some], table), -1)
                told = share.gather(1, targets[some, None]).float()
                total -= told.clamp_min(torch.finfo(torch.float32).tiny).log().sum()
                torch.mm(share, table, out=to_hidden[some])
                to_weight += torch.mm(share.t(), narrow[some])
            # What each target itself pulls, apart from the shares, whose type is too coarse near one.
            to_hidden -= table.index_select(0, targets)
            to_weight.index_add_(0, targets, narrow.float(), alpha=-1)
            ctx.save_for_backward(to_hidden, to_weight)
            ctx.kinds = hidden.dtype, weight.dtype
            return total / len(targets)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            to_hidden, to_weight = ctx.saved_tensors
            scale = gradients[0] / len(to_hidden)
            return (to_hidden * scale).to(ctx.kinds[0]), (to_weight * scale).to(ctx.kinds[1]), None, None

    return Averaged
