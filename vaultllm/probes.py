"""Questions that a vault asks of itself, answered by likelihood: what word stood here, which heading stands over this.

Nothing is generated and nobody writes the questions, so they measure any model, in any language, the same every time. Four
choices each, one of them right: 0.25 is chance. Knows nothing about runs or recall; what memory says is handed in.
"""

from __future__ import annotations

import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from vaultllm import evaluate, text
from vaultllm.models import hf
from vaultllm.schema import Example, Message

CHOICES = 4
"""Of which one is right."""
MOST = 48
"""Probes of each kind, at most."""
RARE = 5
"""A rare term stands in at most so many notes of the training side, and in one at least: it can be known."""
SENTENCE = (40, 300)
"""Characters of a sentence that is asked about."""
MEMORY_TOKENS = 256
"""Of what memory says, the most that is read."""

_WORD = re.compile(r"[^\W\d_][\w\u0300-\u036f\u0980-\u09ff\u200c\u200d-]{3,}")


@dataclass(frozen=True, slots=True)
class Probe:
    """One question: which of the choices costs the model least."""

    kind: str
    """`cloze` or `headings`."""
    path: str
    """The held-out note that it is made of."""
    choices: tuple[Example, ...]
    """The first one is right. Cloze: one sentence with another word each time; headings: one sentence under another heading."""
    asks: tuple[str, ...]
    """What memory is asked for each choice: the sentence without the word, or the heading."""


def make(train: Sequence[Example], held_out: Sequence[Example], most: int = MOST, seed: int = 0) -> list[Probe]:
    """The probes that held-out notes give, at most so many of each kind, spread over the notes; the same for the same notes."""
    found = [*_spread(_cloze(train, held_out, seed), most), *_spread(_headings(held_out, seed), most)]
    random.Random(seed).shuffle(found)  # what the time cuts off is no kind and no note
    return found


def _spread(probes: Iterator[Probe], most: int) -> list[Probe]:
    """The first of each note, then the second of each, …"""
    notes: dict[str, list[Probe]] = defaultdict(list)
    for probe in probes:
        notes[probe.path].append(probe)
    longest = max(map(len, notes.values()), default=0)
    return [several[i] for i in range(longest) for several in notes.values() if i < len(several)][:most]


def _learnt(examples: Sequence[Example]) -> Iterator[tuple[Example, str]]:
    for example in examples:
        for message in example.messages:
            if message.learn:
                yield example, text.encodable(message.text)


def _sentences(said: str) -> list[str]:
    low, high = SENTENCE
    return [one for one in text.sentences(said) if low <= len(one) <= high]


def _cloze(train: Sequence[Example], held_out: Sequence[Example], seed: int) -> Iterator[Probe]:
    """Held-out sentences with a rare word, and three other rare words of its script, length and ending in its place."""
    notes: dict[str, set[str]] = defaultdict(set)
    spelled: dict[str, Counter[str]] = defaultdict(Counter)
    for example, said in _learnt(train):
        for word in _WORD.findall(said):
            folded = text.fold(word)
            notes[folded].add(example.path)
            spelled[folded][word] += 1
    rare = {word for word, where in notes.items() if len(where) <= RARE}
    alike: dict[tuple[str, int], list[str]] = defaultdict(list)
    for word in sorted(rare):
        alike[text.language(word), len(word)].append(word)
    taken: set[str] = set()
    for example, said in _learnt(held_out):
        for sentence in _sentences(said):
            words = list(_WORD.finditer(sentence))
            here = {text.fold(match[0]) for match in words}
            # Not the first word: something must stand before it. The rarest, then the longest: it says most.
            asked = [match for match in words[1:] if text.fold(match[0]) in rare and text.fold(match[0]) not in taken]
            if not asked:
                continue
            chosen = min(asked, key=lambda match: (len(notes[text.fold(match[0])]), -len(match[0]), match.start()))
            right = text.fold(chosen[0])
            near = [one for length in range(-2, 3) for one in alike[text.language(right), len(right) + length] if one not in here]
            random.Random(f"{seed} {right}").shuffle(near)
            near.sort(key=lambda one: -_ending(one, right))  # an ending gives nothing away
            if len(near) < CHOICES - 1:
                continue
            taken.add(right)
            others = near[: CHOICES - 1]
            said_so = [chosen[0], *(_cased(spelled[one].most_common(1)[0][0], chosen[0]) for one in others)]
            begin, end = chosen.span()
            choices = [(Message("user", sentence[:begin] + word + sentence[end:], True),) for word in said_so]
            yield _probe("cloze", example.path, choices, [sentence[:begin] + "…" + sentence[end:]] * CHOICES)


def _ending(one: str, other: str) -> int:
    """How many of their last three letters are the same, from the last on."""
    return next((i for i in range(3) if one[-1 - i : len(one) - i] != other[-1 - i : len(other) - i]), 3)


def _cased(word: str, like: str) -> str:
    """With a capital where the word that it stands for has one, so that the case gives nothing away."""
    return word[:1].upper() + word[1:] if like[:1].isupper() else word[:1].lower() + word[1:]


def _headings(held_out: Sequence[Example], seed: int) -> Iterator[Probe]:
    """The first sentence of a held-out section under its heading, and under three others of the same language."""
    sections: dict[tuple[str, str], tuple[str, str]] = {}  # language and heading -> note, sentence
    for example in held_out:
        heading, body = headed(example)
        first = next(iter(_sentences(body)), "")
        if heading and first and text.fold(heading) not in text.fold(first):
            sections.setdefault((text.language(heading), heading), (example.path, first))
    by_language: dict[str, list[str]] = defaultdict(list)
    for language, heading in sections:
        by_language[language].append(heading)
    for (language, heading), (path, sentence) in sections.items():
        others = [one for one in by_language[language] if one != heading]
        if len(others) < CHOICES - 1:
            continue
        asks = [heading, *random.Random(f"{seed} {heading}").sample(others, CHOICES - 1)]
        choices = [(Message("user", one, False), Message("user", sentence, True)) for one in asks]
        yield _probe("headings", path, choices, asks)


def headed(example: Example) -> tuple[str, str]:
    """A prose example's heading and the text under it; empty strings when it has none."""
    if example.form != "prose":
        return "", ""
    body = "\n\n".join(text.encodable(message.text) for message in example.messages if message.learn)
    told = "\n\n".join(text.encodable(message.text) for message in example.messages if not message.learn).strip()
    if not told:
        told, _, body = body.partition("\n\n")
    heading = told.strip().splitlines()[-1].strip("# ") if told.strip() else ""
    return (heading, body) if 3 <= len(heading) <= 120 and body.strip() else ("", "")


def _probe(kind: str, path: str, choices: Sequence[tuple[Message, ...]], asks: Sequence[str]) -> Probe:
    made = [Example(text.sha(kind, path, *(one.text for one in said)), (), path, "prose", said, "val") for said in choices]
    return Probe(kind, path, tuple(made), tuple(asks))


def measure(
    loaded: hf.Loaded,
    train: Sequence[Example],
    held_out: Sequence[Example],
    recall: Callable[[str, str], str] | None,
    seconds: float,
    *,
    progress: Callable[[float], None] = lambda share: None,
) -> dict[str, Any]:
    """The share of probes that are answered rightly: {cloze: {asked, of, chance, base, base+memory, trained, trained+memory}, headings: …}.

    `recall` says what memory finds for a question without a note (question, path); None: no arms with memory. A kind without
    probes is {skipped: why}. Where time is short fewer are asked, the same by each arm.
    """
    made = make(train, held_out)
    began = time.monotonic()
    right: dict[str, Counter[str]] = defaultdict(Counter)
    asked: Counter[str] = Counter()
    took, size, at = 0.0, 8 if loaded.parameters < 100_000_000 else 2, 0
    while at < len(made) and (not at or time.monotonic() - began + took <= seconds):
        started = time.monotonic()
        some = made[at : at + size]
        for arm, answers in _answers(loaded, some, recall).items():
            for probe, answer in zip(some, answers, strict=True):
                right[probe.kind][arm] += answer
        asked.update(probe.kind for probe in some)
        took, at = time.monotonic() - started, at + size
        progress(min(1.0, at / len(made)))
    every = Counter(probe.kind for probe in made)
    return {
        kind: {"asked": asked[kind], "of": every[kind], "chance": 1 / CHOICES, **{arm: n / asked[kind] for arm, n in right[kind].items()}}
        if asked[kind]
        else {"skipped": "no time" if every[kind] else why}
        for kind, why in (
            ("cloze", "no held-out sentence holds a rare word that the training notes know"),
            ("headings", f"fewer than {CHOICES} held-out sections of one language"),
        )
    }


def _answers(loaded: hf.Loaded, probes: Sequence[Probe], recall: Callable[[str, str], str] | None) -> dict[str, list[int]]:
    """Arm -> 1 for each probe whose right choice costs least of all, else 0."""
    choices = [choice for probe in probes for choice in probe.choices]
    recalled = {}
    if recall is not None:
        known: dict[tuple[str, str], str] = {}
        for probe in probes:
            for choice, ask in zip(probe.choices, probe.asks, strict=True):
                if (ask, probe.path) not in known:
                    known[ask, probe.path] = recall(ask, probe.path)
                recalled[choice.id] = known[ask, probe.path]
    width = min(512, loaded.context)
    found = evaluate.four_arms(
        loaded.model,
        loaded.tokenizer,
        choices,
        recalled,
        max_tokens=width,
        memory_tokens=min(MEMORY_TOKENS, width // 2),
        memory=recall is not None,
    )
    right: dict[str, list[int]] = {}
    for arm, scores in found.items():
        bits = [[scores[i * CHOICES + j].bits for j in range(CHOICES)] for i in range(len(probes))]
        right[arm] = [int(own < min(others)) for own, *others in bits]
    return right
