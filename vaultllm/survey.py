"""What the ledger's scenes are, counted: kinds, languages, lengths, why some are not learnt, what was taken out.

Answered from indexes and the small tables, never from the texts: a vault of 100,000 notes is surveyed in a second.
Knows nothing about how any of it came to be.
"""

from __future__ import annotations

import sqlite3
from bisect import bisect_right
from collections import Counter
from collections.abc import Mapping
from typing import Any

from vaultllm import chats, scenes

BOUNDS = (100, 200, 400, 800, 1_600, 3_200, 6_400, 12_800)
"""Where the buckets of the histogram end, in characters of a scene; the last bucket is open."""


def survey(db: sqlite3.Connection) -> dict[str, Any]:
    """Counts of the scenes by kind, language, trust and reason, their lengths, duplicates, redactions, and the account of messages."""
    names = ("kinds", "languages", "trust")
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    reasons: Counter[str] = Counter()
    lengths: Counter[int] = Counter()
    columns = "kind, language, trust, train, reason, length"  # the index scenes_survey holds them all
    for kind, language, trust, train, reason, length, count in db.execute(f"SELECT {columns}, count(*) FROM scenes GROUP BY {columns}"):
        for name, value in zip(names, (kind, language, trust), strict=True):
            counts[name][value] += count
        if not train:
            reasons[reason] += count
        lengths[length] += count
    total = lengths.total()
    (linked,) = db.execute("SELECT count(*) FROM twins").fetchone()
    return {
        "total": total,
        "trainable": total - reasons.total(),
        "reasons": _ranked(reasons),
        **{name: _ranked(counts[name]) for name in names},
        "lengths": _distribution(lengths),
        "duplicates": linked,
        "redactions": _redactions(db),
    }


def turns(db: sqlite3.Connection) -> dict[str, Any]:
    """The account of messages: seen in the talks = in scenes + left out, and why those are."""
    seen, left = db.execute("SELECT coalesce(sum(turns), 0), coalesce(sum(turns_left), 0) FROM notes").fetchone()
    marks = ",".join("?" * len(chats.LEFT_OUT))
    rows = db.execute(
        "SELECT p.code, sum(p.count) FROM problems p JOIN notes n ON n.path = p.path"
        f" WHERE p.code IN ({marks}) AND n.turns > 0 GROUP BY p.code ORDER BY 2 DESC, 1",
        sorted(chats.LEFT_OUT),
    )
    return {"seen": seen, "in_scenes": seen - left, "left_out": left, "why": dict(rows.fetchall())}


def _ranked(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda one: (-one[1], one[0])))


def _distribution(lengths: Mapping[int, int]) -> dict[str, Any]:
    """Histogram, median, 90th percentile and the most, of lengths that stand so many times."""
    buckets = [0] * (len(BOUNDS) + 1)
    for length, count in lengths.items():
        buckets[bisect_right(BOUNDS, length)] += count
    ends: tuple[int | None, ...] = (*BOUNDS, None)
    return {
        "unit": "characters",
        "median": _quantile(lengths, 0.5),
        "p90": _quantile(lengths, 0.9),
        "most": max(lengths, default=0),
        "buckets": [{"below": end, "scenes": count} for end, count in zip(ends, buckets, strict=True)],
    }


def _quantile(lengths: Mapping[int, int], share: float) -> int:
    """The smallest length that so large a share of all does not exceed; 0 when there are none."""
    total = sum(lengths.values())
    reached = 0
    for length in sorted(lengths):
        reached += lengths[length]
        if reached >= share * total:
            return length
    return 0


def _redactions(db: sqlite3.Connection) -> dict[str, int]:
    found: Counter[str] = Counter()
    for (message,) in db.execute("SELECT message FROM problems WHERE code = 'W-SECRET'"):
        found.update(scenes.redacted_kinds(message))
    return _ranked(found)
