"""Whether a model's answers look like answers: in the question's language, without loops, echoes and marks, ended by themselves.

No judgement of what they say. Knows nothing about runs; the pure checks know nothing about models.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from vaultllm import evaluate
from vaultllm import tokenizer as bpe
from vaultllm.models import batched, hf
from vaultllm.schema import Example, Message
from vaultllm.text import encodable, fold, language

QUESTIONS = 12
"""Held-out questions that are asked, at most."""
NEW = 64
"""Tokens of an answer, at most."""
CHECKS = ("language", "loop", "echo", "marks", "ended", "empty")
"""What is counted; `language` and `ended` are good, the others are not."""
ECHO = 40
"""Characters of the question that, repeated, are an echo (or all of it, when it has half as many)."""
ROWS = 4
"""Questions that are asked at once."""

_MARK = re.compile(
    r"^[ \t]*(?:#{1,6} |\*\*)?(?:user|assistant|system|human)(?:\*\*)?[ \t]*:|<\|?[a-z_]{2,20}\|>|\[/?INST\]|<<SYS>>", re.I | re.M
)


def loops(ids: Sequence[int]) -> bool:
    """Whether some four tokens in a row stand there three times or more."""
    seen = Counter(tuple(ids[i : i + 4]) for i in range(len(ids) - 3))
    return max(seen.values(), default=0) >= 3


def echoes(question: str, answer: str) -> bool:
    """Whether the answer repeats the question: all of one of 20 characters or more, or any 40 of it."""
    asked, said = " ".join(fold(question).split()), " ".join(fold(answer).split())
    if len(asked) < ECHO:
        return len(asked) >= ECHO // 2 and asked in said
    parts = {asked[i : i + ECHO] for i in range(len(asked) - ECHO + 1)}
    return any(said[i : i + ECHO] in parts for i in range(len(said) - ECHO + 1))


def marks(answer: str) -> bool:
    """Whether control tokens or names of roles stand in the text of an answer."""
    return _MARK.search(answer) is not None


def keeps_language(question: str, answer: str) -> bool | None:
    """Whether both are written in one language; None when the question's is not known or there is no answer."""
    wanted = language(question)
    return None if wanted == "und" or not answer.strip() else language(answer) in (wanted, "und")


def check(question: str, answer: str, ids: Sequence[int], *, ended: bool, special: bool = False) -> dict[str, bool | None]:
    """All of `CHECKS` for one answer: its text, its ids without the end, whether it ended by itself, whether a control token is in it."""
    return {
        "language": keeps_language(question, answer),
        "loop": loops(ids),
        "echo": echoes(question, answer),
        "marks": special or marks(answer),
        "ended": ended,
        "empty": not answer.strip(),
    }


def rates(checks: Sequence[dict[str, bool | None]]) -> dict[str, float | None]:
    """The share of answers for which each check holds, of those where it can be told; None where it never can."""
    found: dict[str, float | None] = {}
    for name in CHECKS:
        told = [one[name] for one in checks if one[name] is not None]
        found[name] = sum(map(bool, told)) / len(told) if told else None
    return found


def questions(examples: Sequence[Example], most: int = QUESTIONS) -> list[tuple[Message, ...]]:
    """At most so many talks up to a question that was answered, one a note as long as there are notes."""
    notes: dict[str, list[tuple[Message, ...]]] = {}
    for example in examples:
        if example.form == "dialogue":
            at = next((i for i, message in enumerate(example.messages) if message.learn and message.role == "assistant"), 0)
            if at and example.messages[at - 1].role == "user":
                notes.setdefault(example.path, []).append(example.messages[:at])
    longest = max(map(len, notes.values()), default=0)
    return [talks[i] for i in range(longest) for talks in notes.values() if i < len(talks)][:most]


def measure(loaded: hf.Loaded, held_out: Sequence[Example], seconds: float) -> dict[str, Any]:
    """How the base and the adapter on it answer held-out questions, greedily: {questions, of, base: rates, trained: rates}.

    {skipped: why} without a question. Where time is short fewer are asked, at least one; `of` says how many there were.
    """
    asked = questions(held_out)
    if not asked:
        return {"skipped": "no held-out question"}
    names = ("base", "trained") if hasattr(loaded.model, "disable_adapter") else ("base",)
    found: dict[str, list[dict[str, bool | None]]] = {name: [] for name in names}
    began = time.monotonic()
    took, at, rows = 0.0, 0, ROWS if loaded.parameters < 100_000_000 else 1
    while at < len(asked) and (not at or time.monotonic() - began + took <= seconds):
        started = time.monotonic()
        some = asked[at : at + rows]
        if "trained" in found:
            found["trained"] += _answers(loaded, some)
        with evaluate.base_only(loaded.model):
            found["base"] += _answers(loaded, some)
        took, at = time.monotonic() - started, at + len(some)
    return {"questions": at, "of": len(asked), **{name: rates(checks) for name, checks in found.items()}}


def _answers(loaded: hf.Loaded, asked: Sequence[tuple[Message, ...]]) -> list[dict[str, bool | None]]:
    prompts = [
        bpe.encode_chat(loaded.tokenizer, [Message(m.role, encodable(m.text), False) for m in talk], reply=True)[0] for talk in asked
    ]
    most = min(NEW, loaded.context // 2)
    ends = hf.end_ids(loaded)
    special = set(loaded.tokenizer.all_special_ids) - ends
    found = []
    for talk, ids in zip(asked, batched.continuations(loaded, prompts, most), strict=True):
        ended = bool(ids) and ids[-1] in ends
        said = ids[:-1] if ended else ids
        answer = loaded.tokenizer.decode(said, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        found.append(check(talk[-1].text, answer, said, ended=ended, special=bool(special & set(said))))
    return found
