"""The words index: BM25 over stems and over character 4-grams, in two FTS5 tables of the ledger's own database.

So it changes in the same transaction as the passages. The tables (`stems`, `grams`, and `stems_terms`, `grams_terms`
over their vocabularies) are made by the ledger's migration. They are contentless (the text is stored once, in the
passages), hence a row must be removed with the very text it was added with. We cut the words ourselves and join
them with spaces; FTS5's `ascii` tokenizer, told that `_` and `#` are letters, then cuts nowhere else: every
character beyond ASCII is a letter to it, so Bengali vowel signs, ZWNJ and scripts newer than its tables survive.
Knows nothing about what a slot means.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Iterable
from typing import Literal, NamedTuple

from vaultllm import text as texts

Table = Literal["stems", "grams"]

_SAMPLE = """Заметки о нейросетях, ёжиках и прочитанных книгах, которыми пользовались; говорящий возвращался, сильнейший, хождение,
мудрость, вода, водами. Running generously, national relational conditional happiness, studies skies dying; naïve cafés.
আমার বইগুলো পড়েছিলাম ক্ষমতা 2025-06-15 x_y #тег don't""".replace("\n", " ")

CONTEXT_WEIGHT = 0.5  # a word in the title counts half of one in the text: it stands in all passages of a scene
MOST_TERMS = {"stems": 32, "grams": 64}  # a longer query is cut to its rarest terms: time grows with the postings read
_TINY = 1e-9


class Terms(NamedTuple):
    """A passage as the index holds it; made where there is time for it (a worker), added where the database is."""

    stems: str
    """Stems of its text, in order, joined by spaces."""
    stems_context: str
    """Stems of its context."""
    grams: str
    """Character 4-grams of its text."""
    grams_context: str
    """Character 4-grams of its context."""


_GRAMS = texts.ByWord(lambda word: " ".join(texts.word_grams(word)), most=100_000)


def terms(text: str, context: str) -> Terms:
    """What the index holds of a passage."""
    stems, grams = _joined(text)
    stems_context, grams_context = _joined(context)
    return Terms(stems, stems_context, grams, grams_context)


def _joined(text: str) -> tuple[str, str]:
    found = texts.words(text)
    return " ".join(texts.stems_of(found)), " ".join(map(_GRAMS.__getitem__, found))


@functools.cache
def version() -> str:
    """Fingerprint of how texts become terms, by what becomes of a sample: with another one the index must be rebuilt."""
    return texts.sha(*terms(_SAMPLE, ""))


def add(db: sqlite3.Connection, rows: Iterable[tuple[int, Terms]]) -> None:
    """Index passages under their slots, which must be free."""
    rows = list(rows)
    db.executemany(
        "INSERT INTO stems (rowid, text, context) VALUES (?, ?, ?)", [(slot, said.stems, said.stems_context) for slot, said in rows]
    )
    db.executemany(
        "INSERT INTO grams (rowid, text, context) VALUES (?, ?, ?)", [(slot, said.grams, said.grams_context) for slot, said in rows]
    )


def remove(db: sqlite3.Connection, slot: int, said: Terms) -> None:
    """Take a passage out; its terms must be those that it was added with, else the index is damaged."""
    db.execute("INSERT INTO stems (stems, rowid, text, context) VALUES ('delete', ?, ?, ?)", (slot, said.stems, said.stems_context))
    db.execute("INSERT INTO grams (grams, rowid, text, context) VALUES ('delete', ?, ?, ?)", (slot, said.grams, said.grams_context))


def rebuild(db: sqlite3.Connection) -> None:
    """Write both indexes anew from the passages."""
    db.execute("INSERT INTO stems (stems) VALUES ('delete-all')")
    db.execute("INSERT INTO grams (grams) VALUES ('delete-all')")
    add(db, ((slot, terms(text, context)) for slot, text, context in db.execute("SELECT slot, text, context FROM passages").fetchall()))


def purge(db: sqlite3.Connection) -> None:
    """Write both indexes anew, so that removed words leave the file too (FTS5 only marks them as removed until then)."""
    db.execute("INSERT INTO stems (stems) VALUES ('optimize')")
    db.execute("INSERT INTO grams (grams) VALUES ('optimize')")


def search_stems(db: sqlite3.Connection, query: str, k: int) -> list[tuple[int, float]]:
    """The best k (slot, BM25 > 0) by stems of words, best first; any string is a query."""
    return _search(db, "stems", texts.stems(query), k)


def search_grams(db: sqlite3.Connection, query: str, k: int) -> list[tuple[int, float]]:
    """The best k (slot, BM25 > 0) by character 4-grams of words, best first; any string is a query."""
    return _search(db, "grams", texts.grams(query), k)


def _search(db: sqlite3.Connection, table: Table, terms: list[str], k: int) -> list[tuple[int, float]]:
    distinct = list(dict.fromkeys(terms))
    if len(distinct) > MOST_TERMS[table]:
        distinct = _rarest(db, table, distinct[:1000], MOST_TERMS[table])
    if not distinct or k < 1:
        return []
    # A quoted string is one term to FTS5, whatever operators it spells; our terms hold no quotes and no spaces.
    match = " OR ".join(f'"{term}"' for term in distinct)
    rows = db.execute(
        f"SELECT rowid, -bm25({table}, 1.0, {CONTEXT_WEIGHT}) AS score FROM {table}"
        f" WHERE {table} MATCH ? ORDER BY score DESC, rowid LIMIT ?",
        (match, k),
    )
    # FTS5 gives words that stand in half of the rows next to no weight; found is still better than not found.
    return [(int(slot), max(float(score), _TINY)) for slot, score in rows]


def _rarest(db: sqlite3.Connection, table: Table, terms: list[str], most: int) -> list[str]:
    """The terms that stand in the fewest passages; those that stand in none are of no use."""
    counted = []
    for term in terms:
        row = db.execute(f"SELECT doc FROM {table}_terms WHERE term = ?", (term,)).fetchone()
        if row is not None:
            counted.append((int(row[0]), term))
    return [term for _, term in sorted(counted)[:most]]
