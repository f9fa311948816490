"""Which passages a question's filters, phrases and unwanted words leave, looked up before anything is ranked.

So each leg names the best of what may pass, and a rare filter finds all there is, however faintly it is like the question. What is
given is never too little and may be a little too much: `query.Filters.allows` and `Query.matches_text` decide. Reads what indexes of
the ledger answer, no texts and no records. Knows nothing about ranking.
"""

from __future__ import annotations

import functools
import itertools
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from vaultllm.database import marks
from vaultllm.memory import bags, query
from vaultllm.text import fold

if TYPE_CHECKING:
    from vaultllm.ledger import Ledger

_COLUMNS = {"kind": "kind", "trust": "trust", "lang": "language"}  # of the scenes, by the name of the filter
_PLACES = ("path", "folder")
_TAGGED = re.compile(
    r"[^#\n]*\n(?:[^#\n]*\n)?#[^\s#]+(?: #[^\s#]+)*(?:\n@[^#\n]*)?"
)  # a context: titles, perhaps a day, tags, perhaps a name


def slots(ledger: Ledger, asked: query.Query) -> np.ndarray | None:
    """Slots of the passages that may pass, (n,) int64, rising; None where nothing narrows.

    Exact for `path:`, `folder:`, `kind:`, `trust:`, `lang:`, `before:`, `after:` and unwanted single words. Passages whose title holds
    `#tag` count as tagged by it, those with all words of a phrase as holding it. Unwanted phrases narrow nothing.
    """
    groups = asked.filters.groups()
    tags = [group for group in groups if group.name == "tag"]
    phrases = [words for phrase in asked.phrases if (words := bags.cut(phrase).counts)]
    unwanted = [word for phrase in asked.without if 0 < len(word := query.word_of(phrase)) < bags.MOST_WORD]  # the index cuts longer ones
    scenes = _scenes(ledger, groups)
    some = [] if scenes is None else [_of_scenes(ledger, scenes)]
    some += [_union(_tagged(ledger, tag) for tag in group.values) for group in tags if not group.negated]
    some += [ledger.index.holding(words) for words in phrases]
    none = [_surely_tagged(ledger, tag) for group in tags if group.negated for tag in group.values]
    none += [ledger.index.holding([word]) for word in unwanted]
    if not some and not none:
        return None
    left = functools.reduce(_both, some) if some else ledger.index.slots()
    return np.setdiff1d(left, _union(none), assume_unique=True)


def _scenes(ledger: Ledger, groups: Sequence[query.Group]) -> np.ndarray | None:
    """Rows of the scenes that pass all filters but `tag:`; None where there are none."""
    columns = [group for group in groups if group.name in _COLUMNS]
    times = [group for group in groups if group.days]
    places = [group for group in groups if group.name in _PLACES]
    found = [_by_column(ledger, columns)] if columns else []
    found += [_by_time(ledger, times)] if times else []
    found += [_by_place(ledger, places)] if places else []
    return functools.reduce(_both, found) if found else None


def _by_column(ledger: Ledger, groups: Sequence[query.Group]) -> np.ndarray:
    clauses = [f"{_COLUMNS[group.name]} {'NOT ' * group.negated}IN ({marks(len(group.values))})" for group in groups]
    values = [value for group in groups for value in group.values]
    return _column(ledger, f"SELECT slot FROM scenes WHERE {' AND '.join(clauses)}", values)


def _by_time(ledger: Ledger, groups: Sequence[query.Group]) -> np.ndarray:
    """A scene's time begins with its day as written (`2025-06-15T…`), which is the day that counts: so texts can be compared."""
    clauses, values = ["at != ''"], []
    for group in groups:
        is_before = group.name == "before"
        clauses.append("at < ?" if is_before != group.negated else "at >= ?")
        values.append((max if is_before else min)(group.days).isoformat())
    return _column(ledger, f"SELECT slot FROM scenes WHERE {' AND '.join(clauses)}", values)


def _by_place(ledger: Ledger, groups: Sequence[query.Group]) -> np.ndarray:
    rows = ledger.db.execute("SELECT id, path FROM notes").fetchall()
    paths = fold("\0".join([path for _, path in rows])).split("\0")  # at once: one by one it takes several times as long
    passing = zip(rows, paths, strict=False)  # of no note there is one path, an empty one
    notes = [note for (note, _), path in passing if all(query.lies(group.name, path, group.values) != group.negated for group in groups)]
    return _column(ledger, "SELECT slot FROM scenes WHERE note IN (SELECT value FROM json_each(?))", [json.dumps(notes)])


def _of_scenes(ledger: Ledger, scenes: np.ndarray) -> np.ndarray:
    return _column(ledger, "SELECT slot FROM passages WHERE scene IN (SELECT value FROM json_each(?))", [json.dumps(scenes.tolist())])


def _tagged(ledger: Ledger, tag: str) -> np.ndarray:
    """Passages with a tag or one below it, also those whose tag is no word of the index (a very long one): their contexts tell."""
    known = ledger.index.tagged(tag)
    words = bags.cut(tag).counts if fold(tag) == tag else {}
    others = np.setdiff1d(ledger.index.holding(words), known, assume_unique=True)
    sought = "SELECT slot, context FROM passages WHERE slot IN (SELECT value FROM json_each(?)) AND instr(context, '#')"
    rows = ledger.db.execute(sought, [json.dumps(others.tolist())])
    return _union([known, np.array([slot for slot, context in rows if f"#{tag}" in fold(context)], np.int64)])


def _surely_tagged(ledger: Ledger, tag: str) -> np.ndarray:
    """Passages of a tag or one below it, but none whose titles or speaker name a tag too, or whose tags hold blanks."""
    known = ledger.index.tagged(tag)
    rows = ledger.db.execute(
        "SELECT slot, context FROM passages WHERE slot IN (SELECT value FROM json_each(?))", [json.dumps(known.tolist())]
    )
    return np.array([slot for slot, context in rows if _TAGGED.fullmatch(context)], np.int64)


def _column(ledger: Ledger, query: str, values: Sequence[Any]) -> np.ndarray:
    """The numbers that a query gives, (n,) int64, rising."""
    return np.sort(np.fromiter(itertools.chain.from_iterable(ledger.db.execute(query, values).fetchall()), np.int64))


def _both(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.intersect1d(one, other, assume_unique=True)


def _union(parts: Iterable[np.ndarray]) -> np.ndarray:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *parts]))
