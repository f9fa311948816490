"""Which scenes say the same, or nearly the same, as an earlier one: kept in the ledger's own database.

The tables (`signatures`: what a scene's text is known by; `twins`: scene -> the first one that is like it) are made by the
ledger's migration. A signature is made once for each text; the links are then found anew for all scenes, which takes less
time than reading the signatures, so that what is found never depends on the order of changes. Knows nothing about notes
beyond their order.
"""

from __future__ import annotations

import json
import sqlite3

from vaultllm import duplicates
from vaultllm.text import nfc, sha

_DONE = "twins"  # key of the meta table: fingerprint of the scenes that were linked last


def update(db: sqlite3.Connection, most: int | None = None) -> int | None:
    """Bring `twins` to what the scenes are now; returns how many links changed. To be called in a transaction.

    None, and nothing is done, when more than `most` scenes would have to be read for it.

    A scene's first is the smallest of those like it by: may be trained on (so that of a note and its conflict copy the
    note counts), path (NFC), place in the note.
    """
    rows = db.execute("SELECT n.path, s.ordinal, s.train, s.slot, s.sha FROM notes n JOIN scenes s ON s.note = n.id").fetchall()
    rows.sort(key=lambda row: (not row[2], nfc(row[0]), row[0], row[1]))
    state = sha(duplicates.FORM, *[f"{slot} {digest}" for _, _, _, slot, digest in rows])
    if db.execute("SELECT 1 FROM meta WHERE key = ? AND value = ?", (_DONE, state)).fetchone():
        return 0
    slots = [row[3] for row in rows]
    shas = [row[4] for row in rows]
    signatures = _signed(db, slots, shas, most)
    if signatures is None:
        return None
    new = {slots[place]: slots[first] for place, first in enumerate(duplicates.firsts(shas, signatures)) if place != first}
    old = dict(db.execute("SELECT scene, first FROM twins"))
    gone = [(slot,) for slot, first in old.items() if new.get(slot) != first]
    added = [(slot, first) for slot, first in new.items() if old.get(slot) != first]
    db.executemany("DELETE FROM twins WHERE scene = ?", gone)
    db.executemany("INSERT INTO twins (scene, first) VALUES (?, ?)", added)
    db.execute("INSERT OR REPLACE INTO meta (key, value) VALUES (?, ?)", (_DONE, state))
    return len({slot for slot, *_ in (*gone, *added)})


def _signed(db: sqlite3.Connection, slots: list[int], shas: list[str], most: int | None) -> list[bytes] | None:
    """The signatures of these scenes; those that are missing, or of an older text, are made and kept, unless they are too many."""
    known = {slot: (mark, signature) for slot, mark, signature in db.execute("SELECT scene, sha, signature FROM signatures")}
    found: dict[int, bytes] = {}
    stale: dict[int, str] = {}
    for slot, digest in zip(slots, shas, strict=True):
        mark = f"{duplicates.FORM} {digest}"
        if slot in known and known[slot][0] == mark:
            found[slot] = known[slot][1]
        else:
            stale[slot] = mark
    wanted = list(stale)
    if most is not None and len(wanted) > most:
        return None
    for start in range(0, len(wanted), 500):
        part = wanted[start : start + 500]
        marks = ",".join("?" * len(part))
        for slot, record in db.execute(f"SELECT slot, record FROM scenes WHERE slot IN ({marks})", part).fetchall():
            turns = json.loads(record)["turns"]
            found[slot] = duplicates.signature("\n".join([turn["text"] for turn in turns if not turn.get("variant_of")]))
        db.executemany(
            "INSERT OR REPLACE INTO signatures (scene, sha, signature) VALUES (?, ?, ?)",
            [(slot, stale[slot], found[slot]) for slot in part],
        )
    return [found[slot] for slot in slots]
