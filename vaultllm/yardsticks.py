"""What held-out notes cost those who only count and copy: an n-gram model and `xz`, both fed the training text.

Both are strong on little text; a model that costs more bits per byte than they has learnt less than could be had for
nothing. Their scores are `evaluate.Score`s of the same examples, so that any two can be compared note by note. Knows
nothing about neural models, runs or promotion.
"""

from __future__ import annotations

import itertools
import lzma
import time
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from vaultllm import evaluate, ngram
from vaultllm.errors import DataError
from vaultllm.evaluate import Score
from vaultllm.schema import Example
from vaultllm.text import encodable

NGRAM_CHARACTERS = 8_000_000
"""Training text that the n-gram model reads at most: about 20 MB of Bengali, 14 of Russian, 8 of English, and 0.6 GB of memory."""
XZ_BYTES = 20_000_000
"""Training text that `xz` is primed with at most."""
ORDER = ("base", "current", "candidate", "ngram", "xz")
"""In this order they are shown and compared: of two names the earlier one is `before`."""

_KINDS = {"prose": 0, "user": 1, "assistant": 2, "system": 3}
_BETWEEN = b"\n\n"


def training_text(examples: Iterable[Example], most: int) -> list[ngram.Sequenced]:
    """What examples are read as by an n-gram model: each different message once, with its kind; up to `most` characters.

    Notes are taken in an order that a hash of their paths gives, so that what is left out of a large vault is no one folder.
    """
    found: dict[ngram.Sequenced, None] = {}
    size = 0
    for example in sorted(examples, key=lambda one: zlib.crc32(one.path.encode("utf-8", "replace"))):
        for message in _messages(example):
            if message[0] in found:
                continue
            if size + len(message[0][1]) > most:
                return list(found)
            found[message[0]] = None
            size += len(message[0][1])
    return list(found)


def _messages(example: Example) -> list[tuple[ngram.Sequenced, bool]]:
    """An example's messages as kind and text, and whether each is learnt; what is learnt of prose is one text."""
    if example.form == "prose":
        parts = [
            (learn, "\n\n".join(encodable(one.text) for one in group))
            for learn, group in itertools.groupby(example.messages, key=lambda message: message.learn)
        ]
        return [((_KINDS["prose"], text), learn) for learn, text in parts]
    return [((_KINDS[message.role], encodable(message.text)), message.learn) for message in example.messages]


def ngram_scores(model: ngram.NGrams, examples: Sequence[Example]) -> list[Score]:
    """What the learnt text of each example costs an n-gram model; in talks the end of the turn counts, as it does for the others."""
    found = []
    for example in examples:
        bits, size = 0.0, 0
        for (kind, text), learn in _messages(example):
            if learn:
                bits -= float(np.log2(ngram.probabilities(model, kind, text, end=example.form == "dialogue")).sum())
                size += len(text.encode())
        found.append(Score(example.id, example.path, bits, evaluate.learnt_bytes(example) if size else 0))
    return found


def xz_scores(
    train: Sequence[Example], examples: Sequence[Example], seconds: float, clock: Callable[[], float] = time.monotonic
) -> tuple[list[Score], dict[str, int]]:
    """What the learnt text of each example adds to a file that `xz` (LZMA2, 9e, a dictionary that holds it all) makes of the training text.

    What an answer is answered with stands before it, and is not counted. `xz` cannot be stopped in the middle of a file and gone
    on with, so each note would cost the training text anew: linear in their product. So notes are put into as many groups as there
    is time for, each group is compressed at once, and what it adds is shared among its examples as they cost alone. In a group
    notes also help each other, as the training text does: with fewer groups `xz` looks a little better than it is. Takes about
    `seconds`; the training text is cut where even two groups take longer. Returns the scores (whole bytes of a file, hence whole
    bits for a group only) and {train_bytes, groups, notes}.
    """
    units: dict[tuple[str, str], list[Example]] = {}  # talks are measured by themselves: they are also shown by themselves
    for example in examples:
        if evaluate.learnt_bytes(example):
            units.setdefault((example.form, example.path), []).append(example)
    text = _BETWEEN.join(message[1].encode() for message in training_text(train, XZ_BYTES))[:XZ_BYTES]
    probe = text[-200_000:] or b"\n" * 1000
    began = clock()
    _compressed(probe)
    speed = len(probe) / max(clock() - began, 1e-4)
    left = max(seconds - (clock() - began), 0.1)
    # Priming alone, and a group twice: with and without what its answers answer.
    text = text[: max(int(left * speed / 5), 100_000)]
    whole = clock()
    alone = _compressed(text)
    each = max(clock() - whole, 1e-4)
    forms = sorted({form for form, _ in units})
    affordable = max(int((left - each) / (1.5 * each)), len(forms))
    bits: dict[str, float] = {}
    groups = 0
    for form in forms:
        names = sorted(name for name in units if name[0] == form)
        number = min(len(names), max(1, affordable * len(names) // len(units)))
        groups += number
        for i in range(number):
            bits |= _group([one for name in names[i::number] for one in units[name]], text, alone)
    scores = [Score(one.id, one.path, bits.get(one.id, 0.0), evaluate.learnt_bytes(one) if one.id in bits else 0) for one in examples]
    return scores, {"train_bytes": len(text), "groups": groups, "notes": len({path for _, path in units})}


def _group(examples: Sequence[Example], text: bytes, alone: int) -> dict[str, float]:
    """Bits of each example's learnt text, after the training text and what comes before the answers."""
    # An answer of one example may stand before the question of the next: it must not be told before it is counted.
    answers = {part for example in examples for part, learn in _messages(example) if learn}
    told = [part[1].encode() for example in examples for part, learn in _messages(example) if not learn and part not in answers]
    learnt = [_BETWEEN.join(part[1].encode() for part, learn in _messages(example) if learn) for example in examples]
    if told:
        text = _BETWEEN.join([text, *told])
        alone = _compressed(text)
    added = max(_compressed(_BETWEEN.join([text, *learnt])) - alone, 1)
    costs = [len(zlib.compress(one, 9)) for one in learnt]
    return {example.id: 8 * added * cost / sum(costs) for example, cost in zip(examples, costs, strict=True)}


def _compressed(data: bytes) -> int:
    """Bytes that `xz` makes of it, without the container."""
    size = max(1 << 16, 1 << (len(data) - 1).bit_length())
    method = {"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": size}
    return len(lzma.compress(data, lzma.FORMAT_RAW, filters=[method]))


def side_by_side(scores: Mapping[str, Sequence[Score]], examples: Sequence[Example]) -> dict[str, Any]:
    """Bits per byte of everybody on what all of them scored, of everything and of talks alone, and every pair's difference.

    `scores` are named as in `ORDER`. Returns {name: bits per byte, …, "dialogue": {name: …}, "intervals": {"base → candidate":
    {mean, low, high, notes, decided, words}}, "notes", "bytes"}; without a common example only `skipped`, which says so.
    """
    names = [name for name in ORDER if scores.get(name)]
    common = set.intersection(*({one.example for one in scores[name] if one.bytes} for name in names)) if names else set()
    kept = {name: [one for one in scores[name] if one.example in common] for name in names}
    if not common:
        return {"skipped": "nothing that all of them scored"}
    talks = {example.id for example in examples if example.form == "dialogue"} & common
    found: dict[str, Any] = {name: evaluate.bits_per_byte(kept[name]) for name in names}
    found["dialogue"] = {name: evaluate.bits_per_byte([one for one in kept[name] if one.example in talks]) for name in names if talks}
    found["intervals"] = {f"{one} → {other}": _interval(kept[one], kept[other]) for one, other in itertools.combinations(names, 2)}
    found["notes"] = len({one.path for one in kept[names[0]]})
    found["bytes"] = sum(one.bytes for one in kept[names[0]])
    return found


def _interval(before: Sequence[Score], after: Sequence[Score]) -> dict[str, Any]:
    interval = evaluate.paired_bootstrap(before, after)
    return asdict(interval) | {"decided": interval.decided, "words": interval.words}


def measure(train: Sequence[Example], examples: Sequence[Example], scores: Mapping[str, Sequence[Score]], seconds: float) -> dict[str, Any]:
    """`side_by_side` of `scores` (of models, by others) with the n-gram model and `xz`, and what those two were fed.

    Takes about `seconds`: a third of it for the n-gram model, which reads less and stops at a smaller order when it needs longer.
    """
    if not examples or not any(map(evaluate.learnt_bytes, examples)):
        return {"skipped": "no note is held out"}
    began = time.monotonic()
    text = training_text(train, min(NGRAM_CHARACTERS, max(500_000, int(seconds * 400_000))))
    if not text:
        raise DataError("there is no training text to count")
    model = ngram.train(text, go_on=lambda: time.monotonic() - began < seconds / 3)
    counted = ngram_scores(model, examples)
    copied, fed = xz_scores(train, examples, seconds - (time.monotonic() - began))
    found = side_by_side({**scores, "ngram": counted, "xz": copied}, examples)
    read = sum(len(part.encode()) for _, part in text)
    return found | {"ngram_order": model.order, "ngram_train_bytes": read, "xz_train_bytes": fed["train_bytes"], "xz_groups": fed["groups"]}
