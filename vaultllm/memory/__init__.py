"""The memory: `words.py` finds by words (SQLite FTS5), `embed.py` makes vectors, `chroma.py` keeps and searches them.

`recall.py` puts them together. Nothing here knows notes, scenes or the ledger.
"""
