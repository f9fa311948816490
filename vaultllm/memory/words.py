"""The words index: BM25 over stems and over character 4-grams of words, from one inverted index of the words as they stand.

Stems and 4-grams are views of the vocabulary: what a stem or a gram counts in a passage is the sum over the words that have it. So
a passage is stored once, by its words, in the ledger's own database and in the same transaction; a query costs a look at the
postings of the words that share its stems and grams. A passage that changed gets a new document number, and postings of numbers
that no passage has count no more: nothing need be known of what it said before. A passage is scored by what it says, and more by
what the whole scene around it says: where it was cut is chance, and a question's words may stand on both sides. Not FTS5: its BM25
has no parameters, 4-grams in it take five times the room and the time, and a word must be removed with the very text it was added
with.
Knows nothing about what a slot means.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from vaultllm import keywords
from vaultllm import text as texts
from vaultllm.memory.bags import MOST_WORD, TEXT_WEIGHT, Bag, bag, cut, gram_keys, stem_keys, word_keys
from vaultllm.memory.documents import Documents, Leg, Seen

if TYPE_CHECKING:
    import numpy as np

    from vaultllm.memory import postings

MOST_STEMS, MOST_GRAMS = 48, 96  # of a query; a longer one is cut to its rarest terms: time grows with the postings read

_WHOLE = 0.7  # what the whole scene says of the question counts, beside what the passage says
_COMMON_WORTH = 0.4  # of words that say little about what a question is about
_MOST_LARGE = 12  # segments that are never merged by themselves
_SMALL, _MOST_SMALL = 4_096, 16  # rows of the vocabulary with fewer words are joined when there are so many
WORDS, PARTS = "words", "parts"  # families of postings: word -> documents; stem or gram -> words


class Index:
    """The index of an open database. Reads what changed before each query; segments that were read stay in memory."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self.db = db
        self._seen: Seen | None = None  # when what is kept here was as it is in the file
        self._known: tuple[tuple[int, int], np.ndarray] | None = None  # the vocabulary's state, and its keys
        self._spelled: dict[int, list[str]] = {}  # row of the vocabulary -> its words
        self._readers: tuple[postings.Reader, postings.Reader] | None = None
        self._documents: Documents

    # -- writing; the caller holds the transaction

    def add(self, rows: Sequence[tuple[int, Bag]]) -> None:
        """Index passages under their slots; what a slot held before counts no more."""
        if not rows:
            return
        import numpy as np

        from vaultllm.memory import postings

        db = self.db
        self.remove(slot for slot, _ in rows)
        (top,) = db.execute("SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'documents'").fetchone()
        documents = [(top + number, slot, said.length, said.grams) for number, (slot, said) in enumerate(rows, 1)]
        db.executemany("INSERT INTO documents (doc, slot, words, grams) VALUES (?, ?, ?, ?)", documents)
        said = " ".join([bag.words for _, bag in rows if bag.words])
        keys = np.frombuffer(b"".join([bag.keys for _, bag in rows]), "<u8")
        if len(keys):
            self._learn(keys, said)
        docs = np.repeat(np.arange(top + 1, top + 1 + len(rows), dtype=np.uint32), [len(bag.weights) for _, bag in rows])
        weights = np.frombuffer(b"".join([bag.weights for _, bag in rows]), np.uint8)
        postings.append(db, WORDS, keys, docs, weights, self._alive)

    def remove(self, slots: Iterable[int]) -> None:
        """Take passages out; unknown ones are no error."""
        self.db.executemany("DELETE FROM documents WHERE slot = ?", [(slot,) for slot in slots])

    def purge(self) -> None:
        """Write the index anew, so that words no passage holds leave the file too."""
        import numpy as np

        from vaultllm.memory import postings

        postings.compact(self.db, WORDS, self._alive)
        held = postings.Reader(WORDS)  # not the one that answers: this transaction may fail
        held.refresh(self.db)
        used = held.keys()
        rows = self.db.execute("SELECT keys, words FROM vocabulary").fetchall()
        self.db.execute("DELETE FROM vocabulary")
        self._write_words([entry for keys, words in rows for entry in _entries(keys, words)], used)
        postings.compact(self.db, PARTS, lambda values: np.isin(values, used))

    def tidy(self) -> None:
        """Join what a large ingest left in many large segments: a question looks into each."""
        from vaultllm.memory import postings

        for family, alive in ((WORDS, self._alive), (PARTS, None)):
            if postings.large(self.db, family) > _MOST_LARGE:
                postings.compact(self.db, family, alive)

    def check(self) -> str:
        """ "" when every passage is in the index and some of them are found by each of their words; else what is wrong, in a sentence.

        Reads all of it. Raises sqlite3.Error.
        """
        import numpy as np

        from vaultllm.memory.postings import DamagedIndexError

        self._readers = None  # as it is in the file
        try:
            slots = {slot for (slot,) in self.db.execute("SELECT slot FROM passages")}
            known = set(self.slots().tolist())
            if known != slots:
                return f"the words index lacks {len(slots - known)} passages and has {len(known - slots)} that are gone"
            for slot, text, context in self.db.execute(
                "SELECT slot, text, context FROM passages WHERE slot IN (SELECT slot FROM passages ORDER BY slot % 997, slot LIMIT 20)"
            ):
                said = list(dict.fromkeys(bag(text, context).words.split()))
                lacking = len(self._words(np.unique(word_keys(said)))) < len(said)
                if lacking or not all(slot in self.holding([word]) for word in said[:: len(said) // 8 + 1]):
                    return f"the words index does not find passage {slot} by its own words"
        except DamagedIndexError as error:
            return error.message.partition(";")[0]
        return ""

    def rebuild(self) -> None:
        """Write the index anew from the passages."""
        for table in ("postings", "documents", "vocabulary"):
            self.db.execute(f"DELETE FROM {table}")
        rows = self.db.execute("SELECT slot, text, context FROM passages ORDER BY slot").fetchall()
        for start in range(0, len(rows), 1_000):
            self.add([(slot, bag(text, context)) for slot, text, context in rows[start : start + 1_000]])
        self.tidy()

    def _alive(self, docs: np.ndarray) -> np.ndarray:
        import numpy as np

        if not len(docs):
            return np.zeros(0, bool)
        first, last = int(docs.min()), int(docs.max())
        there = np.zeros(last - first + 1, bool)
        found = self.db.execute("SELECT doc FROM documents WHERE doc BETWEEN ? AND ?", (first, last)).fetchall()
        there[np.array([doc - first for (doc,) in found], np.int64)] = True
        return there[docs.astype(np.int64) - first]

    def _learn(self, keys: np.ndarray, said: str) -> None:
        """Write the words (joined by spaces; keys (n,) uint64) that the vocabulary lacks, with their stems and grams."""
        import numpy as np

        from vaultllm.memory import postings

        known = self._vocabulary()
        distinct, first = np.unique(keys, return_index=True)
        at = np.minimum(np.searchsorted(known, distinct), max(0, len(known) - 1))
        fresh = np.flatnonzero(known[at] != distinct) if len(known) else np.arange(len(distinct))
        if not len(fresh):
            return
        every = said.split(" ")
        new, words = distinct[fresh], [every[place] for place in first[fresh].tolist()]
        self._write_words(list(zip(new.tolist(), words, strict=True)))
        grams, of = gram_keys([word if word[0] != "#" else "" for word in words])  # a tag is found by itself, its words stand beside it
        stems = [(place, stem) for place, word in enumerate(words) if (stem := texts.stem(word)) != word]  # else it is found by itself
        parts = np.concatenate([grams, stem_keys([stem for _, stem in stems])]).astype(np.uint64)
        of = np.concatenate([of, np.array([place for place, _ in stems], np.int64)])
        # A gram that stands twice in a word is one posting of weight 2.
        pairs, times = np.unique(parts << np.uint64(32) | of.astype(np.uint64), return_counts=True)
        values = new[(pairs & np.uint64(0xFFFFFFFF)).astype(np.int64)]
        postings.append(self.db, PARTS, (pairs >> np.uint64(32)).astype(np.uint32), values, np.minimum(times, 255))
        self._known = (self._vocabulary_state(), np.sort(np.concatenate([known, new])))

    def _write_words(self, words: list[tuple[int, str]], used: np.ndarray | None = None) -> None:
        """Put (key, word) into the vocabulary as a row, sorted; small rows are joined as they come to be many. `used`: only these keys."""
        import numpy as np

        small = "SELECT id, keys, words FROM vocabulary WHERE size < ?"
        rows = self.db.execute(small, (_SMALL,)).fetchall() if len(words) < _SMALL else []
        if len(rows) >= _MOST_SMALL:
            self.db.executemany("DELETE FROM vocabulary WHERE id = ?", [(number,) for number, _, _ in rows])
            for _, keys, said in rows:
                words += _entries(keys, said)
        words.sort()
        keys = np.array([key for key, _ in words], np.uint64)
        spelled = [word for _, word in words]
        if used is not None:
            kept = np.isin(keys, used)
            keys, spelled = keys[kept], [word for word, keep in zip(spelled, kept.tolist(), strict=True) if keep]
        if len(keys):
            row = (len(keys), keys.astype("<u8").tobytes(), "\n".join(spelled).encode("utf-8", "surrogatepass"))
            self.db.execute("INSERT INTO vocabulary (size, keys, words) VALUES (?, ?, ?)", row)

    def _vocabulary_state(self) -> tuple[int, int]:
        found: tuple[int, int] = self.db.execute("SELECT coalesce(max(id), 0), count(*) FROM vocabulary").fetchone()
        return found

    def _vocabulary(self) -> np.ndarray:
        """The keys of all words, (n,) uint64, rising."""
        import numpy as np

        state = self._vocabulary_state()
        if self._known is None or self._known[0] != state:  # nothing was read yet, another process has written, or a batch failed
            rows = [_keys(keys) for (keys,) in self.db.execute("SELECT keys FROM vocabulary")]
            self._known = (state, np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.uint64))
        return self._known[1]

    def _words(self, keys: np.ndarray) -> dict[int, str]:
        """Key -> word, of those keys (n,) that the vocabulary has."""
        import numpy as np

        found: dict[int, str] = {}
        spelled: dict[int, list[str]] = {}
        for number, held in self.db.execute("SELECT id, keys FROM vocabulary").fetchall():
            its = _keys(held)
            at = np.minimum(np.searchsorted(its, keys), len(its) - 1)
            there = its[at] == keys
            if there.any():
                if number not in self._spelled:
                    (said,) = self.db.execute("SELECT words FROM vocabulary WHERE id = ?", (number,)).fetchone()
                    self._spelled[number] = [word for _, word in _entries(held, said)]
                words = spelled[number] = self._spelled[number]
                found.update(zip(keys[there].tolist(), [words[place] for place in at[there].tolist()], strict=True))
        self._spelled = spelled | {number: words for number, words in self._spelled.items() if number not in spelled}
        return found

    # -- reading

    def stems(self, query: str, k1: float = 1.2, b: float = 0.75, also: Mapping[str, float] | None = None) -> Leg:
        """BM25 by stems of words; any string is a query. `also`: other folded words, and how much each counts (0..1)."""
        import numpy as np

        weights: dict[str, float] = {}
        for word in cut(query).counts:
            stem = texts.stem(word)
            weights[stem] = max(weights.get(stem, 0.0), _worth(word))
        for word, weight in (also or {}).items():
            weights.setdefault(texts.stem(word), weight)
        own = word_keys(list(weights))  # a word that is its own stem stands under no stem
        return self._bm25(stem_keys(list(weights)), np.array(list(weights.values())), "words", MOST_STEMS, k1, b, own)

    def grams(self, query: str, k1: float = 1.2, b: float = 0.75, also: Mapping[str, float] | None = None) -> Leg:
        """BM25 by character 4-grams of words; the arguments are those of `stems`."""
        import numpy as np

        own, other = list(cut(query).counts), list(also or ())
        keys, of = gram_keys(own + other)
        most = np.array([*map(_worth, own), *((also or {})[word] for word in other)])[of] if len(keys) else np.zeros(0)
        distinct, at = np.unique(keys, return_inverse=True)
        weights = np.zeros(len(distinct))
        np.maximum.at(weights, at, most)
        return self._bm25(distinct, weights, "grams", MOST_GRAMS, k1, b)

    def slots(self) -> np.ndarray:
        """The slots of all passages, (n,) int64, rising."""
        import numpy as np

        self._read()
        return np.sort(self._documents.slots)

    def holding(self, words: Iterable[str]) -> np.ndarray:
        """Slots of the passages that hold all of these folded words, (n,) int64, rising; without words all passages."""
        import numpy as np

        said, _ = self._read()
        kept = np.ones(len(self._documents.slots), bool)
        for key in word_keys(list(dict.fromkeys(words))):
            kept &= self._holding(said, np.array([key]))
        return np.sort(self._documents.slots[kept])

    def tagged(self, tag: str) -> np.ndarray:
        """Slots of the passages whose context names a folded tag (without `#`) or one below it, (n,) int64, rising.

        Not those where the tag is too long to be a word of the index, or is none as Obsidian knows them (`two words`, `a#b`).
        """
        import numpy as np

        said, _ = self._read()
        if "\n" in tag:  # what parts the words of the vocabulary is in none
            return np.zeros(0, np.int64)
        sought = f"\n#{tag}".encode("utf-8", "surrogatepass")
        found: set[str] = set()
        for (spelled,) in self.db.execute("SELECT words FROM vocabulary"):
            every = b"\n" + spelled + b"\n"
            at = every.find(sought)
            while at >= 0:
                end = at + len(sought)
                if every[end : end + 1] in (b"\n", b"/"):
                    found.update(_spelled(every[at + 1 : every.index(b"\n", end)]))
                at = every.find(sought, end)
        return np.sort(self._documents.slots[self._holding(said, word_keys(list(found)))])

    def _holding(self, said: postings.Reader, keys: np.ndarray) -> np.ndarray:
        """Of each document whether it holds one of these words: (n,) bool."""
        import numpy as np

        held = np.zeros(len(self._documents.slots) + 1, bool)
        held[self._documents.rows(said.lists(keys)[1])] = True  # the last one stands for all that count no more
        return held[:-1]

    def holders(self, word: str) -> list[int]:
        """Slots of the passages that hold this folded word."""
        found: list[int] = self.holding([word]).tolist()
        return found

    def rare(self, words: Iterable[str], most: int) -> dict[str, list[int]]:
        """Of these folded words those that at most so many passages hold, and their slots."""
        import numpy as np

        asked = list(dict.fromkeys(words))
        said, _ = self._read()
        keys = word_keys(asked)
        few = np.flatnonzero(said.counts(keys) <= 2 * most)  # a word may be there twice, in text and context
        which, docs, _ = said.lists(keys[few])
        rows = self._documents.rows(docs)
        found: dict[str, set[int]] = {}
        for place, row in zip(which[rows >= 0].tolist(), rows[rows >= 0].tolist(), strict=True):
            found.setdefault(asked[few[place]], set()).add(int(self._documents.slots[row]))
        return {word: sorted(slots) for word, slots in found.items() if len(slots) <= most}

    def similar(self, word: str, most: int = 20) -> list[tuple[str, float, int]]:
        """Words of the vocabulary that share 4-grams with a folded word: (word, Dice's coefficient, passages), the most alike first."""
        import numpy as np

        said, parts = self._read()
        keys = np.unique(gram_keys([word[:MOST_WORD]])[0])
        _, found, _ = parts.lists(keys)
        ids, shared = np.unique(found, return_counts=True)
        best = np.argsort(-shared, kind="stable")[: 10 * most]
        words = self._words(ids[best])
        alike = []
        for key, common, held in zip(ids[best].tolist(), shared[best].tolist(), said.counts(ids[best]).tolist(), strict=True):
            if key in words and held:
                grams = len(set(texts.word_grams(words[key])))
                alike.append((words[key], 2 * common / (len(keys) + grams), int(held)))
        return sorted(alike, key=lambda one: (-one[1], -one[2], one[0]))[:most]

    def frequent(self, most: int) -> list[str]:
        """At most so many words that stand in two passages or more, the most frequent first; what is gone may count until it is merged."""
        import numpy as np

        said, _ = self._read()
        keys = self._vocabulary()
        held = said.counts(keys)
        order = np.lexsort((keys, -held))
        chosen = keys[order[held[order] > 1][:most]]
        words = self._words(chosen)
        return [words[key] for key in chosen.tolist() if key in words]

    def df(self, word: str) -> int:
        """How many passages hold this folded word."""
        import numpy as np

        said, _ = self._read()
        return int(np.count_nonzero(self._holding(said, word_keys([word]))))

    def known(self, words: Iterable[str]) -> list[str]:
        """Those of these folded words that some passage holds; what is gone may count until it is merged."""
        said, _ = self._read()
        each = list(dict.fromkeys(words))
        return [word for word, count in zip(each, said.counts(word_keys(each)).tolist(), strict=True) if count]

    def stem_df(self, stem: str) -> int:
        """How many passages hold a word with this stem."""
        import numpy as np

        said, parts = self._read()
        words = np.unique(np.concatenate([parts.lists(stem_keys([stem]))[1].astype(np.uint64), word_keys([stem])]))
        return int(np.count_nonzero(self._holding(said, words)))

    def _bm25(self, keys: np.ndarray, worth: np.ndarray, unit: str, most: int, k1: float, b: float, own: np.ndarray | None = None) -> Leg:
        """BM25 (Robertson & Zaragoza 2009) with an idf that is never below zero, of what the keys (q,) stand for, times `worth` (q,).

        Of passages that hold any of it: their own, and that of their scenes as if each were one text, `_WHOLE` of the sum (Callan 1994
        found both together better than either for texts that are cut).
        """
        import numpy as np

        said, parts = self._read()
        docs = self._documents
        count = len(docs.slots)
        which, words, times = parts.lists(keys)
        if own is not None:
            which = np.concatenate([which, np.arange(len(own))])
            words = np.concatenate([words.astype(np.uint64), own])
            times = np.concatenate([times, np.ones(len(own), np.uint8)])
        if not count or not len(words):
            return Leg(np.zeros(0, np.int64), np.zeros(0))
        distinct, at = np.unique(words, return_inverse=True)
        if len(keys) > most:
            held = np.bincount(which, weights=said.counts(distinct)[at], minlength=len(keys))
            rarest = np.argsort(np.where(held > 0, held, np.inf), kind="stable")[:most]
            kept = np.isin(which, rarest)
            which, times, words = which[kept], times[kept], words[kept]
            distinct, at = np.unique(words, return_inverse=True)
        of, found, weights = said.lists(distinct)
        rows = docs.rows(found)
        order = np.argsort(of, kind="stable")
        order = order[rows[order] >= 0]
        of, rows, weights = of[order], rows[order], weights[order]
        begins = np.searchsorted(of, np.arange(len(distinct) + 1))
        lengths = docs.words if unit == "words" else docs.grams
        units = lengths, np.bincount(docs.wholes, weights=lengths)  # passages, and the scenes that they are parts of
        damps = [k1 * (1 - b + b * one / max(1.0, float(one.mean()))) for one in units]
        scores = [np.zeros(len(one)) for one in units]
        for key in np.unique(which):
            mine = which == key
            starts, ends = begins[at[mine]], begins[at[mine] + 1]
            sizes = ends - starts
            stops = np.cumsum(sizes)
            places = np.arange(stops[-1]) + np.repeat(starts - (stops - sizes), sizes)
            if not len(places):
                continue
            held = rows[places]
            counted = weights[places] * np.repeat(times[mine].astype(np.float64) / TEXT_WEIGHT, sizes)
            for into, damp in zip(scores, damps, strict=True):
                touched, tf = _summed(held, counted, len(into))
                idf = np.log1p((len(into) - len(touched) + 0.5) / (len(touched) + 0.5))
                into[touched] += worth[key] * idf * tf * (k1 + 1) / (tf + damp[touched])
                held, counted = docs.wholes[touched], tf
        alone, whole = scores
        best = np.flatnonzero(alone > 0)
        return Leg(docs.slots[best], (1 - _WHOLE) * alone[best] + _WHOLE * whole[docs.wholes[best]])

    def _read(self) -> tuple[postings.Reader, postings.Reader]:
        """The two families as they are now, and `_documents` with them."""
        from vaultllm.memory import postings

        seen = Seen.now(self.db)
        if self._readers is not None and seen == self._seen:
            return self._readers
        if self._readers is None or self._seen is None or self._seen.amid:
            self._readers, self._documents = (postings.Reader(WORDS), postings.Reader(PARTS)), Documents.none()
        for reader in self._readers:
            reader.refresh(self.db)
        self._documents = self._documents.now(self.db)
        self._seen = seen
        return self._readers


def _summed(places: np.ndarray, weights: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The distinct places (below `count`), rising, and the sums of their weights, which are above 0."""
    import numpy as np

    if len(places) and not (places[1:] < places[:-1]).any():  # of scenes mostly: they were numbered as their passages were
        begins = np.flatnonzero(np.concatenate([[True], places[1:] != places[:-1]]))
        return places[begins], np.add.reduceat(weights, begins)
    if 20 * len(places) < count:
        distinct, at = np.unique(places, return_inverse=True)
        return distinct, np.bincount(at, weights=weights)
    sums = np.bincount(places, weights=weights, minlength=count)
    distinct = np.flatnonzero(sums > 0)
    return distinct, sums[distinct]


def _keys(held: bytes) -> np.ndarray:
    """Keys of a row of the vocabulary, (n,) uint64."""
    import numpy as np

    from vaultllm.memory.postings import DamagedIndexError

    if not held or len(held) % 8:
        raise DamagedIndexError(f"keys of words have {len(held)} bytes")
    return np.frombuffer(held, "<u8")


def _entries(held: bytes, words: bytes) -> list[tuple[int, str]]:
    """(key, word) of a row of the vocabulary."""
    from vaultllm.memory.postings import DamagedIndexError

    keys, spelled = _keys(held), _spelled(words)
    if len(keys) != len(spelled):
        raise DamagedIndexError(f"{len(keys)} keys and {len(spelled)} words")
    return list(zip(keys.tolist(), spelled, strict=True))


def _spelled(words: bytes) -> list[str]:
    from vaultllm.memory.postings import DamagedIndexError

    try:
        return words.decode("utf-8", "surrogatepass").split("\n")
    except UnicodeDecodeError as error:
        raise DamagedIndexError("words that are no UTF-8") from error


def _worth(word: str) -> float:
    """What a word of a question counts: "which" and «почему» are rare in a vault that answers, and yet ask for nothing."""
    return _COMMON_WORTH if keywords.is_common(word) else 1.0
