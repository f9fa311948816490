"""What fits: numbers' type, gradient checkpointing, tokens per pass and sequence length of a LoRA training in this memory.

`choose` is arithmetic on a model's shape and says why; `machine` looks at the machine. Knows nothing about datasets and runs,
and trains nothing.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from vaultllm import evaluate
from vaultllm.models import hf, losses

BATCH = 8
"""Windows per optimiser step: small batches suit LoRA (Schulman 2025, "LoRA Without Regret")."""
SHORTEST = 128
"""A base for which not even so many tokens fit cannot be trained here."""
LIBRARIES_MB = 900
"""What Python, torch, transformers and peft hold before any weight (measured on Linux: 0.7-0.9 GB; on a GPU its context)."""
SEEN = 256
"""Tokens whose share of attention waits, of those that a token looks back at on a CPU."""
RECOMPUTED = 1.5
"""Work of a step with gradient checkpointing, without it 1: frozen matrices cost one product forward and one backward, now one more."""
SPARE = 1.15
"""Allocators keep more than is used, and a system wants some for itself."""
NF4_BYTES = 0.516
"""Of a weight in nf4: half a byte, and its share of the scales, themselves quantised (Dettmers et al. 2023, arXiv:2305.14314)."""


class Shape(NamedTuple):
    """A Qwen3- or Llama-like base: what its memory and speed depend on."""

    name: str
    """As it is shown."""
    layers: int
    """Transformer blocks."""
    width: int
    """Hidden size."""
    heads: int
    """Attention heads of the queries."""
    shared: int
    """Heads of keys and values."""
    head: int
    """Size of one head."""
    inner: int
    """Inner size of the gated feed-forward layer."""
    vocabulary: int
    """Tokens."""
    half: bool
    """Whether its checkpoint is in half precision, so that it is read so where that is fast."""
    tied: bool = True
    """Whether the output layer is the embedding table."""

    def linear(self) -> int:
        """Parameters of one block's matrices."""
        return self.width * self.head * 2 * (self.heads + self.shared) + 3 * self.width * self.inner

    def parameters(self) -> int:
        """All weights, but the norms' few."""
        return self.vocabulary * self.width * (1 if self.tied else 2) + self.layers * self.linear()

    def adapter(self, rank: int) -> int:
        """Parameters of a LoRA adapter on every matrix of every block."""
        queries, keys = self.heads * self.head, self.shared * self.head
        ends = 2 * (self.width + queries) + 2 * (self.width + keys) + 3 * (self.width + self.inner)
        return self.layers * rank * ends

    def flops(self, sequence: int, rank: int) -> float:
        """Of one token in one training step: frozen matrices forward and backward, the adapter with its gradients, attention."""
        frozen = 4 * (self.layers * self.linear() + self.vocabulary * self.width)
        return frozen + 6 * self.adapter(rank) + 12 * self.layers * self.heads * self.head * sequence

    def kept(self, half: bool, device: str, sequence: int) -> int:
        """Bytes of one token in one block that wait for the backward pass, in sequences of such a length.

        Counted from what autograd saves in Qwen3 with adapters (docs/log.md). peft's widen their inputs to fp32; on a CPU ours do
        not, and packed rows keep what each token looked at (`models.packed`), of long sequences less than is said here.
        """
        queries, keys = self.heads * self.head, self.shared * self.head
        if device != "cpu":
            if half:
                return 28 * self.width + 13 * queries + 9 * keys + 10 * self.inner + 8 * self.heads
            return 16 * self.width + 13 * queries + 13 * keys + 16 * self.inner + 8 * self.heads
        seen = min(sequence, SEEN)
        if half:
            return int(8.5 * self.width + 6 * queries + 6.8 * keys + 8.2 * self.inner) + self.heads * (13 + 2 * seen)
        return int(16.3 * self.width + 12 * queries + 13.3 * keys + 16.3 * self.inner) + self.heads * (17 + 4 * seen)

    def waiting(self, half: bool, device: str, sequence: int, checkpointing: bool) -> int:
        """Bytes of one token in all blocks that wait; with checkpointing each block's input, and all of the block that is run again."""
        block = self.kept(half, device, sequence)
        if checkpointing:
            return self.layers * self.width * (2 if half else 4) + block
        return self.layers * block

    def weights(self, half: bool, nf4: bool) -> int:
        """Bytes of the frozen weights; in nf4 those of the blocks, of which one matrix at a time is widened."""
        size = 2 if half else 4
        if not nf4:
            return size * self.parameters()
        blocks = self.layers * self.linear()
        return int(NF4_BYTES * blocks) + size * (self.parameters() - blocks + self.width * self.inner)

    def memory(
        self, tokens: int, sequence: int, rank: int, half: bool, *, device: str, checkpointing: bool = False, nf4: bool = False,
        held_mb: int = LIBRARIES_MB,
    ) -> int:  # fmt: skip
        """Bytes of a training with so many tokens in one pass: weights, adapter with AdamW, what waits, logits, libraries (`held_mb`)."""
        # A chunk in fp32, twice, and its gradient; what enters them, and its gradient.
        logits = 12 * self.vocabulary * min(tokens, losses.at_once(self.vocabulary, device)) + 8 * self.width * tokens
        own = self.weights(half, nf4) + 16 * self.adapter(rank) + tokens * self.waiting(half, device, sequence, checkpointing) + logits
        return int(own * SPARE) + held_mb * 2**20


def of(config: Any, name: str = "") -> Shape:
    """The shape of a model by its transformers configuration; what another architecture has besides is not counted."""
    import torch

    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    width, heads = int(text.hidden_size), int(text.num_attention_heads)
    return Shape(
        name or str(text.model_type), int(text.num_hidden_layers), width, heads,
        int(getattr(text, "num_key_value_heads", None) or heads), int(getattr(text, "head_dim", None) or width // heads),
        int(getattr(text, "intermediate_size", None) or getattr(text, "n_inner", None) or 4 * width), int(text.vocab_size),
        getattr(text, "dtype", None) in (torch.bfloat16, torch.float16), bool(getattr(text, "tie_word_embeddings", True)),
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Fit:
    """What a training takes to fit its machine, and why."""

    dtype: Literal["bfloat16", "float32"]
    """Of the frozen weights and of what is computed with them; the adapter is fp32."""
    quantize: Literal["", "nf4"]
    """How the frozen matrices are stored."""
    checkpointing: bool
    """Whether blocks are run again in the backward pass instead of kept (Chen et al. 2016, arXiv:1604.06174): half as much work
    again, far less memory."""
    tokens: int
    """Most tokens, padding included, of one forward and backward pass."""
    sequence: int
    """Longest training sequence, in tokens."""
    memory_mb: int
    """What it comes to, in MiB, by estimate."""
    free_mb: int
    """What was free, in MiB."""
    fits: bool
    """Whether the one is within the other; when not, this is the least that there is."""
    reasons: tuple[str, ...]
    """One sentence for each choice that is not the usual one, and for the type."""


def tokens_per_pass(vocabulary: int, parameters: int, device: str) -> int:
    """How many tokens, with padding, one pass takes on a device (`cuda`, `mps`, `cpu`) with memory to spare; one sequence may be more."""
    tokens = evaluate.tokens_at_once(vocabulary, device) // 2  # the gradient of the logits is as large as they are
    return min(tokens, 1024) if device == "cpu" and parameters > 100_000_000 else tokens


def choose(
    shape: Shape, *, device: str, free_mb: int, bf16: bool, sequence: int, rank: int, quantize: Literal["", "nf4"] = "",
    held_mb: int = LIBRARIES_MB,
) -> Fit:  # fmt: skip
    """The first that fits, from what is fast and learns whole sequences to what is slow and cuts them.

    Given up in this order: tokens per pass, down to one sequence; memory for speed (gradient checkpointing, with as many tokens as
    then fit); the sequence, halved down to `SHORTEST`; at last fp32 for a base published in half precision where bf16 is slow.
    `bf16`: whether it is fast on the `device`; `held_mb`: what the libraries still take of the free memory, in MiB.
    """
    nf4 = quantize == "nf4"
    ladder = list(_ladder(shape, bf16, sequence, tokens_per_pass(shape.vocabulary, shape.parameters(), device)))

    def needed(rung: _Rung) -> int:
        held = shape.memory(
            rung.tokens, rung.sequence, rank, rung.half, device=device, checkpointing=rung.checkpointing, nf4=nf4, held_mb=held_mb
        )  # fmt: skip
        return -(-held // 2**20)

    rung = next((rung for rung in ladder if needed(rung) <= free_mb), ladder[-1])
    return Fit(
        "bfloat16" if rung.half else "float32", quantize, rung.checkpointing, rung.tokens, rung.sequence, needed(rung), free_mb,
        needed(rung) <= free_mb, _reasons(shape, bf16, nf4, ladder[0], rung, needed(ladder[0]), needed(rung), free_mb),
    )  # fmt: skip


class _Rung(NamedTuple):
    half: bool
    sequence: int
    checkpointing: bool
    tokens: int


def _ladder(shape: Shape, bf16: bool, sequence: int, usual: int) -> Iterator[_Rung]:
    """What can be chosen, the best first."""
    for half in (True,) if shape.half and bf16 else (False, True) if shape.half else (False,):
        length = sequence
        while True:
            for checkpointing in (False, True):
                tokens = min(max(usual, length), BATCH * length)
                while tokens > length:
                    yield _Rung(half, length, checkpointing, tokens)
                    tokens = max(length, tokens // 2)
                yield _Rung(half, length, checkpointing, length)
            if length <= SHORTEST:
                break
            length = max(SHORTEST, length // 2)


def _reasons(
    shape: Shape, bf16: bool, nf4: bool, wanted: _Rung, chosen: _Rung, wanted_mb: int, chosen_mb: int, free_mb: int
) -> tuple[str, ...]:  # fmt: skip
    """Why, as a person reads it."""
    short = f"{wanted_mb / 1024:.1f} GB would be needed, {free_mb / 1024:.1f} GB are free"
    if chosen.half:
        said = ["bf16: the base is published so and it is fast here" if bf16 else f"bf16, which is slow here: in fp32 {short}"]
    else:
        said = ["fp32: bf16 is slow here" if shape.half else "fp32: the base is published so"]
    if nf4:
        said.append("nf4: asked for; a matrix takes a quarter of its bf16, and is widened whenever it is used")
    if chosen.tokens < wanted.tokens:
        said.append(f"{chosen.tokens:,} tokens at once instead of {wanted.tokens:,}: {short}")
    if chosen.checkpointing:
        said.append(f"gradient checkpointing, which is half as much work again: {short}")
    if chosen.sequence < wanted.sequence:
        said.append(f"sequences of {chosen.sequence:,} tokens instead of {wanted.sequence:,}: {short}")
    if chosen_mb > free_mb:
        way = "close other programs or choose a smaller base" + ("" if nf4 else ', or train.quantize = "nf4"')
        said.append(f"even so it takes {chosen_mb / 1024:.1f} GB with {free_mb / 1024:.1f} GB free, and may be stopped for it: {way}")
    return tuple(said)


def machine() -> dict[str, Any]:
    """{device, name, cores, threads, memory_mb, free_mb, bf16}: where models run here, and the memory that they may use."""
    import psutil
    import torch

    device = hf.device()
    memory = psutil.virtual_memory()
    total, free = memory.total, memory.available
    if device == "cuda":
        free, total = torch.cuda.mem_get_info()
    else:
        total, free = within_container(total, free, Path("/sys/fs/cgroup"))
    if device == "mps":
        free = min(free, torch.mps.recommended_max_memory())
    return {
        "device": device,
        "name": torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine(),
        "cores": os.cpu_count() or 1,
        "threads": torch.get_num_threads(),
        "memory_mb": total // 2**20,
        "free_mb": free // 2**20,
        "bf16": hf.fast_bf16(device),
    }


def within_container(total: int, free: int, cgroup: Path) -> tuple[int, int]:
    """Bytes there are and bytes free, where a container (cgroup v2) allows less than the machine has; page cache counts as free."""
    try:
        limit = int((cgroup / "memory.max").read_text())
        used = int((cgroup / "memory.current").read_text())
        facts = dict(line.split() for line in (cgroup / "memory.stat").read_text().splitlines())
    except (OSError, ValueError):  # none, or "max"
        return total, free
    return min(total, limit), max(0, min(free, limit - used + int(facts.get("inactive_file", 0))))
