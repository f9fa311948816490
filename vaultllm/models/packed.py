"""Many sequences in one row, each read as if it were alone: no padding, and no look from one into another.

Attention runs over each sequence by itself, positions begin anew, everything else works token by token. Whether that holds
for a model is tried before it is used (`proven`). Also here: LoRA layers that compute in the base's own type, and norms that
keep less for the backward pass. On a CPU only: there a batch with padding pays for every filler. Knows nothing about notes,
windows or steps.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator, Sequence
from typing import Any

from vaultllm.models.losses import unwrapped

NAME = "vaultllm_packed"
"""Of our attention in transformers' registry."""
BLOCK = 128
"""Queries at once: keys after the last of them are not looked at, so that little of what is causally hidden is computed."""
KEPT = 256
"""Tokens of a sequence up to which the attention's shares wait for the backward pass; of longer ones they are made again."""
TRIED = 24
"""Tokens of each sequence with which packing is tried."""


def on(model: Any) -> bool:
    """Whether this model reads packed rows now."""
    config = getattr(unwrapped(model), "config", None)
    return getattr(config, "_attn_implementation", None) == NAME


def cells(model: Any, mask: Any) -> int:
    """Tokens that a batch with this mask (B, T) costs: its fillers too, unless it is packed."""
    return int(mask.sum()) if on(model) else int(mask.numel())


def row(ids: Any, mask: Any) -> dict[str, Any]:
    """The model's arguments for a batch (B, T) of rows filled up on the right: one row of all that is not filler."""
    import torch

    lengths = mask.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    real = mask.bool()
    # A mask of four dimensions goes to the attention as it is (also when a block is run again): it carries the lengths.
    return {"input_ids": ids[real][None], "position_ids": positions[real][None], "attention_mask": lengths[None, None, None]}


def places(mask: Any) -> Any:
    """Where each cell (B, T) of a batch lies in its packed row; of fillers no meaning."""
    return (mask.flatten().cumsum(0) - 1).view_as(mask)


def proven(model: Any, sequences: Sequence[Sequence[int]]) -> bool:
    """Whether the model reads packed rows as it reads each sequence alone, tried with the beginnings of three of these.

    What one sequence says may not change a bit when the one before it changes (recurrence, convolutions and common attention
    do that), and must be what it says alone, but for rounding (which positions that do not begin anew are not).
    """
    import torch

    inner = unwrapped(model)
    where = next(inner.parameters())
    longest = max(map(len, sequences), default=0)
    config = inner.config.get_text_config() if hasattr(inner.config, "get_text_config") else inner.config
    limits = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    tried = [list(one[:TRIED]) for one in sequences if len(one) > 1][:3]
    if where.device.type != "cpu" or len(tried) < 2 or any(limit and limit < longest for limit in limits):
        return False
    training = model.training
    model.eval()
    try:
        with torch.no_grad():
            alone = torch.cat([model(input_ids=torch.tensor([one]), use_cache=False).logits[0].float() for one in tried])
            with applied(model):
                together = _logits(model, tried)
                beside = _logits(model, [[*reversed(tried[0])], *tried[1:]])
    except (AttributeError, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError):
        return False  # it takes no other attention, or no positions
    finally:
        model.train(training)
    rounding = 0.05 if where.dtype != torch.float32 else 1e-4
    first = len(tried[0])
    same = torch.equal(together[first:], beside[first:])
    return same and bool((together - alone).abs().max() <= rounding * alone.abs().max())


def _logits(model: Any, sequences: Sequence[Sequence[int]]) -> Any:
    import torch

    width = max(map(len, sequences))
    ids = torch.tensor([[*one, *[0] * (width - len(one))] for one in sequences])
    mask = torch.tensor([[1] * len(one) + [0] * (width - len(one)) for one in sequences])
    return model(**row(ids, mask), use_cache=False).logits[0].float()


@contextlib.contextmanager
def applied(model: Any, *, packs: bool = True) -> Iterator[None]:
    """The model with our LoRA layers and norms, and with our attention when it `packs`; afterwards as it was."""
    inner = unwrapped(model)
    before = inner.config._attn_implementation
    ways = [(part, way) for part in inner.modules() if (way := _way(part))] if next(inner.parameters()).device.type == "cpu" else []
    try:
        if packs:
            _register()
            inner.set_attn_implementation(NAME)
        for part, way in ways:
            part.forward = functools.partial(way, part)
        yield
    finally:
        for part, _ in ways:
            part.__dict__.pop("forward", None)
        if packs:
            inner.set_attn_implementation(before)


# -- attention


@functools.cache
def _register() -> None:
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(NAME, _attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


def _attend(
    module: Any, query: Any, key: Any, value: Any, attention_mask: Any, dropout: float = 0.0, scaling: float | None = None, **others: Any
) -> tuple[Any, None]:
    """transformers' attention (query (1, H, N, D), key and value (1, K, N, D)), by sequence where the mask holds lengths."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    if attention_mask is None or attention_mask.dtype != torch.int64:
        usual: tuple[Any, None] = sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **others
        )
        return usual
    if any(others.get(name) is not None for name in ("softcap", "s_aux", "position_bias")) or not getattr(module, "is_causal", True):
        raise ValueError("an attention that is more than causal cannot be packed")
    lengths = attention_mask.flatten().tolist()
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if dropout:
        made = [
            torch.nn.functional.scaled_dot_product_attention(
                *parts, is_causal=True, dropout_p=dropout, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            )
            for parts in zip(query.split(lengths, 2), key.split(lengths, 2), value.split(lengths, 2), strict=True)
        ]
        return torch.cat(made, 2).transpose(1, 2).contiguous(), None
    return _causal().apply(query[0], key[0], value[0], lengths, scale)[None], None


def _blocks(lengths: Sequence[int]) -> Iterator[tuple[int, int, int]]:
    """(begin of the sequence, begin and end of its queries) of each block of a row."""
    begin = 0
    for length in lengths:
        for first in range(begin, begin + length, BLOCK):
            yield begin, first, min(first + BLOCK, begin + length)
        begin += length


def _shares(query: Any, key: Any, scale: float) -> Any:
    """How queries (H, n, D), the last n of their sequence so far, divide their attention over its keys (K, m, D): (K, H/K x n, m)."""
    import torch

    heads, size, width = query.shape
    groups, read, _ = key.shape
    blank = query.new_empty(groups, heads // groups * size, read)  # scaled before it is rounded
    scores = torch.baddbmm(blank, query.reshape(groups, -1, width), key.transpose(1, 2), beta=0.0, alpha=scale)
    later = torch.ones(size, size, dtype=torch.bool).triu_(1)
    scores.view(heads, size, read)[:, :, read - size :].masked_fill_(later, -torch.inf)
    return torch.softmax(scores, -1)


@functools.cache
def _causal() -> Any:
    import torch

    class Causal(torch.autograd.Function):
        """Query (H, N, D), key and value (K, N, D), heads of one group sharing a key -> (N, H, D): causal, by sequence.

        Plain products in the type of the model: about twice as fast on a CPU in bf16 as its fused attention (docs/log.md).
        """

        @staticmethod
        def forward(ctx: Any, query: Any, key: Any, value: Any, lengths: Sequence[int], scale: float) -> Any:
            heads, tokens, _ = query.shape
            out = query.new_empty(tokens, heads, value.shape[-1])
            kept = []
            for begin, first, last in _blocks(lengths):
                shares = _shares(query[:, first:last], key[:, begin:last], scale)
                out[first:last] = torch.bmm(shares, value[:, begin:last]).view(heads, last - first, -1).transpose(0, 1)
                if any(ctx.needs_input_grad[:3]) and last - begin <= KEPT:
                    kept.append(shares)
            ctx.save_for_backward(query, key, value, *kept)
            ctx.lengths, ctx.scale = lengths, scale
            return out

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            query, key, value, *kept = ctx.saved_tensors
            heads, groups, waiting = len(query), len(key), iter(kept)
            # Blocks of one sequence add to the same keys: in fp32.
            to_query = torch.empty_like(query)
            to_key = torch.zeros(key.shape, dtype=torch.float32)
            to_value = torch.zeros(value.shape, dtype=torch.float32)
            for begin, first, last in _blocks(ctx.lengths):
                asked, keys = query[:, first:last], key[:, begin:last]
                shares = next(waiting) if last - begin <= KEPT else _shares(asked, keys, ctx.scale)
                back = gradients[0][first:last].transpose(0, 1).reshape(groups, -1, value.shape[-1])
                to_value[:, begin:last] += torch.bmm(shares.transpose(1, 2), back)
                to_shares = torch.bmm(back, value[:, begin:last].transpose(1, 2))
                to_scores = torch.ops.aten._softmax_backward_data(to_shares, shares, -1, shares.dtype).mul_(ctx.scale)
                to_query[:, first:last] = torch.bmm(to_scores, keys).view(heads, last - first, -1)
                to_key[:, begin:last] += torch.bmm(to_scores.transpose(1, 2), asked.reshape(groups, -1, query.shape[-1]))
            return to_query, to_key.to(key.dtype), to_value.to(value.dtype), None, None

    return Causal


# -- LoRA, norms


def _way(part: Any) -> Any:
    """How we compute what a part of a model does, where we have a way of our own."""
    if _plain_lora(part):
        return _adapted
    return _normed if type(part).__name__.endswith("RMSNorm") and _plain_norm(part) else None


def _plain_lora(layer: Any) -> bool:
    """Whether it is peft's adapter of an ordinary matrix, without dropout, bias or a variant (DoRA)."""
    import torch
    from peft.tuners.lora.layer import Linear

    if type(layer) is not Linear or type(layer.base_layer) is not torch.nn.Linear or layer.fan_in_fan_out or layer.lora_variant:
        return False
    return not any(layer.lora_bias.values()) and all(isinstance(one, torch.nn.Identity) for one in layer.lora_dropout.values())


def _adapted(layer: Any, given: Any, *args: Any, **named: Any) -> Any:
    """What peft's layer does, by `_product`; by peft itself where it is off, merged, or one of several."""
    active = [name for name in layer.active_adapters if name in layer.lora_A]
    if layer.disable_adapters or layer.merged or args or named or len(active) != 1:
        return type(layer).forward(layer, given, *args, **named)
    (name,) = active
    base = layer.base_layer
    down, up, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
    return _product().apply(given, base.weight, base.bias, down, up, scale)


@functools.cache
def _product() -> Any:
    import torch

    class Product(torch.autograd.Function):
        """x W' + bias + scale x A' B' with frozen W, in the type of x; A and B stay fp32, and so do their gradients.

        peft widens x for each adapter and keeps that copy for the backward pass: twice the memory, and slow products.
        """

        @staticmethod
        def forward(ctx: Any, given: Any, weight: Any, bias: Any, down: Any, up: Any, scale: float) -> Any:
            flat = given.reshape(-1, given.shape[-1])
            narrow_down, narrow_up = down.to(given.dtype), (up * scale).to(given.dtype)
            between = flat @ narrow_down.t()
            out = torch.nn.functional.linear(flat, weight, bias).addmm_(between, narrow_up.t())
            ctx.save_for_backward(flat, weight, narrow_down, narrow_up, between)
            ctx.scale, ctx.types = scale, (down.dtype, up.dtype)
            return out.view(*given.shape[:-1], -1)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            flat, weight, down, up, between = ctx.saved_tensors
            back = gradients[0].reshape(-1, gradients[0].shape[-1])
            inner = back @ up
            to_down = (inner.t() @ flat).to(ctx.types[0])
            to_up = (back.t() @ between).to(ctx.types[1]).mul_(ctx.scale)
            to_given = None
            if ctx.needs_input_grad[0]:
                to_given = (back @ weight).addmm_(inner, down).view(*gradients[0].shape[:-1], -1)
            return to_given, None, None, to_down, to_up, None

    return Product


def _plain_norm(part: Any) -> bool:
    """Whether it is x / sqrt(mean(x^2) + eps), computed in fp32, times a frozen weight: by its answers (Gemma's weights are 1 + w)."""
    import torch

    weight, small = getattr(part, "weight", None), getattr(part, "variance_epsilon", None)
    if weight is None or weight.ndim != 1 or weight.requires_grad or not isinstance(small, float):
        return False
    tried = torch.linspace(-3.0, 2.0, 4 * len(weight), device=weight.device).view(4, -1).to(weight.dtype)
    return torch.equal(part(tried), _normed(part, tried))


def _normed(part: Any, given: Any) -> Any:
    return _norm().apply(given, part.weight, part.variance_epsilon)


@functools.cache
def _norm() -> Any:
    import torch

    class Norm(torch.autograd.Function):
        """The same numbers as transformers', of which only the input is kept, not its copy in fp32: half the memory."""

        @staticmethod
        def forward(ctx: Any, given: Any, weight: Any, small: float) -> Any:
            wide = given.float()
            share = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + small)
            ctx.save_for_backward(given, weight, share)
            return weight * (wide * share).to(given.dtype)

        @staticmethod
        def backward(ctx: Any, *gradients: Any) -> Any:
            given, weight, share = ctx.saved_tensors
            unit = given.float() * share
            back = (gradients[0] * weight).float()
            along = (back * unit).mean(-1, keepdim=True)
            return back.sub_(unit.mul_(along)).mul_(share).to(given.dtype), None, None

    return Norm
