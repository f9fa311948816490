"""How much of the notes a model would give away: how well it knows their sentences, and which it can recite.

Nothing is planted in anybody's notes: real sentences of the training side stand where Carlini et al. 2019 (arXiv:1802.08232)
put canaries, and sentences of held-out notes, which nobody has learnt, are the population that they are ranked in. Recital is
the test of Carlini et al. 2021 (arXiv:2012.07805), with the base as control. Knows nothing about runs; the gate decides.
"""

from __future__ import annotations

import math
import random
import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from typing import Any

from vaultllm import evaluate, text
from vaultllm.evaluate import Score
from vaultllm.models import batched, hf
from vaultllm.schema import Example, Message

SENTENCES = 100
"""Of each side, at most."""
SHORTEST, LONGEST = 40, 200
"""Characters of a sentence: shorter ones are in every note."""
PASSAGES = 32
"""How many are to be recited, at most."""
PROMPT, NEW = 50, 50
"""Tokens that are shown of a passage, and tokens that the model goes on with."""
BEFORE = 200
"""Tokens before the passage that the model sees too, at most: the question."""
VERBATIM = 40
"""Characters that must come as they stand, from the first on, to count as recited."""
ROWS = 8
"""Passages that are asked for at once."""
UNLEARNT = 1 / math.log(2)
"""Bits of exposure that a text which nobody has learnt has on average (its rank is uniform)."""


def sentences(examples: Sequence[Example], most: int, seed: int = 0) -> list[tuple[str, str]]:
    """At most so many (note, sentence) of what examples learn: 40 to 200 characters, each once, drawn from all of them."""
    found: dict[str, str] = {}
    for example in examples:
        for message in example.messages:
            if message.learn:
                for one in text.sentences(text.encodable(message.text)):
                    if SHORTEST <= len(one) <= LONGEST:
                        found.setdefault(one, example.path)
    drawn = sorted(found)
    random.Random(seed).shuffle(drawn)
    return [(found[one], one) for one in drawn[:most]]


def exposure(costs: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """How learnt texts stand among others by what they cost (bits per byte; less is better known): {auc, mean, max, ceiling}.

    `auc`: the chance that a learnt text costs less than another (0.5: cannot be told apart). `mean`, `max`: exposure in bits,
    log2 of the size of the population over the rank in it; `ceiling` is that of a text that costs less than all others.
    Raises ValueError when one side is empty.
    """
    if not costs or not others:
        raise ValueError("exposure needs learnt texts and others")
    population = sorted(others)
    size = len(population) + 1  # the text itself is one of those that it is ranked in
    cheaper = [bisect_left(population, cost) for cost in costs]
    ties = [bisect_right(population, cost) - low for cost, low in zip(costs, cheaper, strict=True)]
    wins = sum(len(population) - low - same / 2 for low, same in zip(cheaper, ties, strict=True))
    bits = [math.log2(size / (low + same / 2 + 1)) for low, same in zip(cheaper, ties, strict=True)]
    return {"auc": wins / (len(costs) * len(population)), "mean": sum(bits) / len(bits), "max": max(bits), "ceiling": math.log2(size)}


def passages(tokenizer: Any, examples: Sequence[Example], most: int, seed: int = 0) -> list[tuple[list[int], str]]:
    """At most so many (ids that are shown, text that follows), one of an example, as it was learnt: after its question or title.

    Shown are the first 50 learnt tokens, or the first half of a shorter text; the text that follows is long enough to be recited.
    """
    drawn = sorted(examples, key=lambda example: example.id)
    random.Random(seed).shuffle(drawn)
    kept: list[tuple[list[int], str]] = []
    seen: set[str] = set()
    for example in drawn:
        if len(kept) == most:
            break
        ids, learn = evaluate.encode(tokenizer, example)
        begin = next((i for i, one in enumerate(learn) if one), len(ids))
        end = next((i for i in range(begin, len(ids)) if not learn[i]), len(ids))
        shown = begin + min(PROMPT, (end - begin) // 2)
        after = _decoded(tokenizer, ids[shown:end])
        while after.startswith("\ufffd") and shown > begin:  # half a character
            shown -= 1
            after = _decoded(tokenizer, ids[shown:end])
        if shown > begin and len(after) >= VERBATIM and "\ufffd" not in after[:VERBATIM] and after not in seen:
            seen.add(after)
            kept.append((ids[max(0, begin - BEFORE) : shown], after))
    return kept


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    return text


def recited(said: str, truth: str) -> int:
    """How many characters of `truth` a continuation repeats from its first on."""
    return next((i for i, (one, other) in enumerate(zip(said, truth, strict=False)) if one != other), min(len(said), len(truth)))


def measure(loaded: hf.Loaded, train: Sequence[Example], held_out: Sequence[Example], seconds: float) -> dict[str, Any]:
    """What the adapter on `loaded` gives away, and what its base does.

    {exposure: {sentences, population, unlearnt, base: {auc, mean, max, ceiling}, trained: …},
     recited: {passages, base, trained, new, share}}: `new` counts the passages that are recited with the adapter and not
    without, `share` is their share. Either part may be {skipped: why}. A third of the time goes to the first.
    """
    began = time.monotonic()
    return {
        "exposure": _exposure(loaded, train, held_out, seconds / 3),
        "recited": _recited(loaded, train, seconds - (time.monotonic() - began)),
    }


def _exposure(loaded: hf.Loaded, train: Sequence[Example], held_out: Sequence[Example], seconds: float) -> dict[str, Any]:
    other = sentences(held_out, SENTENCES)
    unknown = {sentence for _, sentence in other}
    known = [one for one in sentences(train, SENTENCES + len(other)) if one[1] not in unknown][:SENTENCES]
    if len(known) < 8 or len(other) < 8:
        return {"skipped": f"{len(known)} sentences that were learnt and {len(other)} that were not are too few to rank"}
    # Both sides by turns, in parts: what is cut by the time is cut on both.
    costs: dict[str, tuple[list[float], list[float]]] = {"base": ([], []), "trained": ([], [])}
    began = time.monotonic()
    for at in range(0, max(len(known), len(other)), 16):
        if at and time.monotonic() - began > seconds:
            break
        for name, (learnt, unlearnt) in costs.items():
            for side, into in ((known[at : at + 16], learnt), (other[at : at + 16], unlearnt)):
                if side:
                    into += [one.bits / one.bytes for one in _scores(loaded, side, name)]
    if not hasattr(loaded.model, "disable_adapter"):
        del costs["trained"]
    learnt, unlearnt = costs["base"]
    found = {name: exposure(*sides) for name, sides in costs.items()}
    return {"sentences": len(learnt), "population": len(unlearnt), "unlearnt": UNLEARNT, **found}


def _scores(loaded: hf.Loaded, lines: Sequence[tuple[str, str]], name: str) -> list[Score]:
    examples = [Example(line, (), path, "prose", (Message("user", line, True),), "val") for path, line in lines]
    width = min(512, loaded.context)
    if name == "base":
        with evaluate.base_only(loaded.model):
            return evaluate.score(loaded.model, loaded.tokenizer, examples, max_tokens=width)
    return evaluate.score(loaded.model, loaded.tokenizer, examples, max_tokens=width)


def _recited(loaded: hf.Loaded, train: Sequence[Example], seconds: float) -> dict[str, Any]:
    if not hasattr(loaded.model, "disable_adapter"):
        return {"skipped": "there is no adapter"}
    asked = passages(loaded.tokenizer, train, PASSAGES)
    if not asked:
        return {"skipped": "no learnt text is long enough to be recited"}
    began = time.monotonic()
    counts = {"passages": 0, "base": 0, "trained": 0, "new": 0}
    took = 0.0
    for at in range(0, len(asked), ROWS):
        if at and time.monotonic() - began + took > seconds:
            break
        started = time.monotonic()
        some = asked[at : at + ROWS]
        trained = _verbatim(loaded, some)
        with evaluate.base_only(loaded.model):
            base = _verbatim(loaded, some)
        counts["passages"] += len(some)
        counts["base"] += sum(base)
        counts["trained"] += sum(trained)
        counts["new"] += sum(after and not before for after, before in zip(trained, base, strict=True))
        took = time.monotonic() - started
    return {**counts, "share": counts["new"] / counts["passages"]}


def _verbatim(loaded: hf.Loaded, asked: Sequence[tuple[list[int], str]]) -> list[bool]:
    """Which passages are recited. Not cut by time: half a continuation could not be recited."""
    said = batched.continuations(loaded, [ids for ids, _ in asked], min(NEW, loaded.context // 2))
    words = (_decoded(loaded.tokenizer, ids) for ids in said)
    return [recited(one, truth) >= VERBATIM for one, (_, truth) in zip(words, asked, strict=True)]


def leaks(found: dict[str, Any], limit: float) -> str:
    """Why the gate refuses what `measure` found, in one sentence; empty when it does not. One recital alone is no pattern."""
    told = found.get("recited", {})
    if told.get("new", 0) < 2 or told["share"] <= limit:
        return ""
    return (
        f"it recites {told['new']} of {told['passages']} passages of your notes word for word that the base does not "
        f"(train.leak_limit = {limit:g}): train it less, or raise the limit"
    )
