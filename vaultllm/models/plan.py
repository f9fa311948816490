"""The plan of a micro training, before any tensor: sizes, schedule, budget, progress, the stream of tokens.

Pure arithmetic, the clock, and one thread for work that cannot report by itself. Knows nothing about torch.
"""

from __future__ import annotations

import dataclasses
import math
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

from vaultllm.schema import Example, Progress

T = TypeVar("T")

CONTEXT = 128
"""Tokens per training window."""
LONG_CONTEXT = 1024
"""Every `LONG_EVERY`-th step has windows of this length, so that long prompts do not break the model."""
LONG_EVERY = 8
POSITIONS = 2048
"""`max_position_embeddings`: what a prompt and its answer may fill."""
STEP_TOKENS = 1024
"""Tokens per optimiser step at least."""
STEP_GROWTH = 3.6
"""A step has about so many tokens times the root of all that are read: more text is read in larger steps, not only in more of them."""
TOKENS_PER_PARAMETER = 1.0
"""Far from what is best per operation (about 10): in minutes on a CPU a larger model learns more from each token than it costs, but
not with .25 (docs/log.md)."""
MAX_EPOCHS = 16.0
"""More passes over the same text make the model worse on other text; the run ends early instead."""
MIN_STEPS = 60
"""But never fewer steps than these, however short the text."""
MUON_LR, ADAM_LR = 0.02, 6e-3
ADAM_BETA2 = 0.99
"""Most tokens are rare: what is known of their gradients is old (docs/log.md: better than .95 by 2 %)."""
WEIGHT_DECAY = 1.0
"""Ten times the usual (docs/log.md: better than 0.1 at 2 and at 10 passes)."""
FEW_EPOCHS = 5.0
WEIGHT_DECAY_OFTEN, DROPOUT_OFTEN = 2.0, 0.15
"""For a text that is read more often than `FEW_EPOCHS` times."""
SAMPLES = (0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Shares of the training at which the model writes something, when somebody looks on; and at its end."""
SAMPLE_TOKENS = 60
WORTH_KEEPING = 0.2
"""What is stopped before this share of its training is not kept."""
WARMUP, DECAY = 0.02, 0.4
"""Shares of the budget in which the learning rate rises and falls."""


class Shape(NamedTuple):
    """Size of a model without its vocabulary."""

    width: int
    """Hidden size."""
    layers: int
    """Transformer blocks."""
    heads: int
    """Attention heads (as many for keys and values)."""
    inner: int
    """Inner size of the gated feed-forward layer, about 8/3 of the width."""

    def body(self) -> int:
        """Parameters of the matrices, without embeddings and norms."""
        return self.layers * (4 * self.width * self.width + 3 * self.width * self.inner)

    def total(self, vocabulary: int) -> int:
        """All parameters, the norms included; the output layer is the embedding table."""
        norms = self.layers * (2 * self.width + 2 * (self.width // self.heads)) + self.width
        return vocabulary * self.width + self.body() + norms


SHAPES = (
    Shape(128, 4, 2, 344),
    Shape(160, 4, 2, 424),
    Shape(192, 5, 3, 512),
    Shape(256, 6, 4, 688),
    Shape(320, 7, 5, 856),
    Shape(384, 8, 6, 1024),
    Shape(448, 8, 7, 1192),
    Shape(512, 8, 8, 1368),
)
"""0.8M to 25M parameters in the body."""


def slower(shape: Shape, vocabulary: int) -> float:
    """Speed of a shape beside that of the smallest: it falls with the 0.8th power of the size (measured, 1M-30M, two cores)."""
    return math.pow(SHAPES[0].total(vocabulary) / shape.total(vocabulary), 0.8)


class Recipe(NamedTuple):
    """What depends on the text and the time there is."""

    shape: Shape
    """The model's size."""
    weight_decay: float
    """Of the matrices, times the learning rate."""
    dropout: float
    """Share of the embeddings and of what each layer adds that is dropped in training."""
    step_tokens: int
    """Tokens of an optimiser step: `STEP_TOKENS` times a power of two."""


def pick(probe_tokens: float, text_tokens: int, vocabulary: int) -> Recipe:
    """The recipe for so much time and text: `probe_tokens` is how many tokens the smallest shape would read in the time.

    The shape is the largest that would read `TOKENS_PER_PARAMETER` tokens for each of its parameters, else the smallest; passes over
    the text beyond `MAX_EPOCHS` count for nothing. A text that is read more than `FEW_EPOCHS` times is read with dropout and more
    weight decay. Steps grow with the square root of what is read (docs/log.md: for 1.3M tokens 4,096 are 13 % better than 1,024).
    """
    readable = min(probe_tokens, MAX_EPOCHS * text_tokens)
    chosen = SHAPES[0]
    for shape in SHAPES[1:]:
        if readable * slower(shape, vocabulary) >= TOKENS_PER_PARAMETER * shape.total(vocabulary):
            chosen = shape
    could_read = max(probe_tokens, 0.0) * slower(chosen, vocabulary)  # it is less than nothing when starting took all the time
    often = could_read > FEW_EPOCHS * text_tokens
    read = min(could_read, MAX_EPOCHS * text_tokens)
    doublings = round(math.log2(max(1.0, STEP_GROWTH * math.sqrt(read) / STEP_TOKENS)))
    weight_decay, dropout = (WEIGHT_DECAY_OFTEN, DROPOUT_OFTEN) if often else (WEIGHT_DECAY, 0.0)
    return Recipe(chosen, weight_decay, dropout, STEP_TOKENS << doublings)


def lr_factor(done: float) -> float:
    """Share of the full learning rate when `done` (0..1) of the budget is used: up, constant, linearly down to 0."""
    if done < WARMUP:
        return max(done, 0.0) / WARMUP
    return min(1.0, max(0.0, 1.0 - done) / DECAY)


def pack(sequences: Iterable[Sequence[int]], end: int) -> list[int]:
    """One stream of the sequences, each followed by `end`; begins with `end` too, so that each has it before it."""
    stream = [end]
    for sequence in sequences:
        stream.extend(sequence)
        stream.append(end)
    return stream


def bits_per_byte(nats: float, n_bytes: int) -> float:
    """A summed negative log-likelihood in nats, as bits per UTF-8 byte of the text: comparable across tokenizers."""
    return nats / math.log(2) / n_bytes


@dataclasses.dataclass
class Budget:
    """Time or steps, and how much of them is used."""

    began: float
    seconds: float
    steps: int | None
    reserve: float = 1.0
    """Seconds kept back for measuring and saving."""

    def elapsed(self) -> float:
        return time.monotonic() - self.began

    def left(self) -> float:
        """Seconds until training must end; endless when steps are counted."""
        return math.inf if self.steps is not None else self.seconds - self.reserve - self.elapsed()

    def within(self, share: float) -> bool:
        """Whether preparing may go on: less than this share of the time is used."""
        return self.steps is not None or self.elapsed() < share * self.seconds


class Sample(NamedTuple):
    """What a model writes while it learns."""

    step: int
    """Optimiser steps so far."""
    done: float
    """Share of the training, 0..1."""
    loss: float | None
    """Nats per token, smoothed."""
    tokens_per_s: float | None
    """Read so far."""
    text: str
    """The beginning of a note of its own."""


class Watched(NamedTuple):
    """Who looks on while a model learns."""

    written: Callable[[Sample], None] | None = None
    """Given what the model writes."""
    stop: Callable[[], bool] = lambda: False
    """Whether to end now."""


class Reporter:
    """Calls `progress`, at most four times a second unless forced."""

    def __init__(self, progress: Callable[[Progress], None], budget: Budget) -> None:
        self.progress, self.budget = progress, budget
        self.last = -math.inf
        self.done = 0.0
        self.step = 0
        self.loss: float | None = None
        self.rate: float | None = None

    def __call__(self, phase: str, done: float | None = None, *, force: bool = False) -> None:
        now = time.monotonic()
        if not force and now - self.last < 0.25:
            return
        self.last = now
        timed = self.budget.steps is None
        if done is None:
            done = self.budget.elapsed() / self.budget.seconds if timed else 0.0
        done = self.done = max(self.done, min(1.0, done))  # never backwards: preparing counts the whole time, training its own
        left = self.budget.elapsed() * (1 - done) / done if done > 0.01 else None
        self.progress(Progress(phase, done, self.step, self.loss, self.rate, left))

    def during(self, phase: str, work: Callable[[], T]) -> T:
        """Run something that cannot report by itself in a thread, and report beside it."""
        result: list[T] = []
        failed: list[BaseException] = []

        def run() -> None:
            try:
                result.append(work())
            except BaseException as error:  # handed on below, in the caller's thread
                failed.append(error)

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        while thread.is_alive():
            self(phase)
            thread.join(0.3)
        if failed:
            raise failed[0]
        return result[0]


def in_notes_order(examples: Sequence[Example], seed: int) -> list[Example]:
    """Notes shuffled, so that any beginning is a fair sample; the scenes of one note stay together, as they were written."""
    notes: dict[str, list[Example]] = {}
    for example in examples:
        notes.setdefault(example.path, []).append(example)
    paths = sorted(notes)
    random.Random(seed).shuffle(paths)
    return [example for path in paths for example in notes[path]]


def sample(texts: Iterable[str], most: float) -> Iterator[str]:
    """The texts, until they hold `most` bytes."""
    n_bytes = 0
    for text in texts:
        yield text
        n_bytes += len(text.encode())
        if n_bytes >= most:
            return
