"""What every embedder of other people's models does with texts: what is put before them, batches, fingerprints.

Knows nothing of models and servers.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from vaultllm.memory.embed import unit

BATCH = 32  # texts per forward pass or request
_E5_ASKS = "Instruct: Given a web search query, retrieve relevant passages that answer the query\nQuery: "


class Prompts(NamedTuple):
    """What is put before a text."""

    query: str
    """Before a question."""
    passage: str
    """Before what is remembered."""


_BY_NAME = (  # as their model cards say, for folders and servers that do not say it themselves
    (re.compile(r"(?:^|[-_/])e5[-_][\w-]*instruct", re.I), Prompts(_E5_ASKS, "")),
    (re.compile(r"(?:^|[-_/])e5(?:[-_.:/]|$)", re.I), Prompts("query: ", "passage: ")),
    (re.compile(r"(?:^|[-_/])nomic-embed-text", re.I), Prompts("search_query: ", "search_document: ")),
)


def prompts_by_name(name: str) -> Prompts:
    """What models of this name want before their texts; mostly nothing."""
    return next((prompts for pattern, prompts in _BY_NAME if pattern.search(name)), Prompts("", ""))


def fingerprint(kind: str, *parts: str) -> str:
    """`kind-` and 16 hex digits; the boundaries between the parts count."""
    framed = json.dumps([kind, *parts], ensure_ascii=True)
    return f"{kind}-{hashlib.sha256(framed.encode()).hexdigest()[:16]}"


def in_batches(texts: Sequence[str], vectors: Callable[[list[str]], np.ndarray]) -> np.ndarray:
    """Unit vectors of the texts, those of like length together; an empty text has a zero one."""
    order = sorted((number for number, text in enumerate(texts) if text.strip()), key=lambda number: len(texts[number]))
    found: np.ndarray | None = None
    for start in range(0, len(order), BATCH):
        part = order[start : start + BATCH]
        made = vectors([texts[number] for number in part])
        if found is None:
            found = np.zeros((len(texts), made.shape[1]), dtype=np.float32)
        found[part] = made
    if found is None:  # nothing but empty texts: the length is not known without asking
        found = np.zeros((len(texts), vectors(["."]).shape[1]), dtype=np.float32)
    return unit(found)
