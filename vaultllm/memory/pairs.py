"""Pairs of a query and the text that it asks for, read from the vault's own structure: nobody has to label anything.

A heading asks for the text under it, a title for the note's beginning, a question for its answer, a sentence with a link
for the note that it links to, a sentence for the rest of its passage (the inverse cloze task: Lee, Chang, Toutanova 2019).
What learns from them learns from `training`; what is judged by them is judged by `held_out`, and no note is on both sides.
Knows the ledger's tables and Markdown's marks; knows nothing of embedders, of how recall works, or of any language.
"""

from __future__ import annotations

import heapq
import re
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise
from typing import TYPE_CHECKING, Literal, NamedTuple, get_args

from vaultllm import text as texts
from vaultllm.links import Resolver

if TYPE_CHECKING:
    from vaultllm.ledger import Ledger

Kind = Literal["heading", "question", "link", "sentence"]
KINDS: tuple[Kind, ...] = get_args(Kind)
MOST_SCENES = 30_000  # of a larger vault, so many scenes are read, chosen by hash
QUERY_CHARS, TARGET_CHARS = 400, 1_000
HELD_OUT = 5  # one note in so many is held out
_FEW_WORDS, _FEW_CHARS = 3, 60  # a query of fewer words, a target of fewer characters asks and says nothing
_COMMON = 3  # a heading over more sections than these ("Links", "Итоги") asks for none of them

_HEADING = re.compile(r"[ \t]{0,3}#{1,6}[ \t]+(?P<title>\S.{0,300})")
_WIKI = re.compile(r"(?P<embed>!?)\[\[(?P<target>[^\[\]|#^\n]{1,300})(?P<part>#[^\[\]|\n]{0,300})?(?:\|(?P<shown>[^\[\]\n]{1,300}))?\]\]")
_MARKDOWN = re.compile(r"(?P<embed>!?)\[(?P<shown>[^\[\]\n]{1,300})\]\((?P<target>[^()#\s]{1,300})(?P<part>#[^()\s]{0,300})?\)")
_MARKS = re.compile(r"^[ \t]*(?:>[ \t]?|[-*+][ \t]+(?:\[.\][ \t]+)?|\d{1,9}[.)][ \t]+)|\*\*|__|==|`", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Pair:
    """A query and the text that it asks for."""

    kind: Kind
    """Which structure says so."""
    query: str
    """At most `QUERY_CHARS` characters, without marks of links and lists."""
    target: str
    """At most `TARGET_CHARS` characters of a passage's text; the query, or the heading, is not in it."""
    note: str
    """Path of the note in which the query stands."""
    target_note: str
    """Path of the note in which the target stands."""
    slots: tuple[int, ...]
    """Slots of the passages that hold the target, best first: what recall should find."""
    source: tuple[int, ...]
    """Slots of the passages that hold the query: recall finds them too, and they are to be left out of its list. For a heading or a
    sentence they are the target's own."""

    context: str = ""
    """What is indexed with the target's passage (title, headings, date, tags); empty for a heading, which it would give away."""

    @property
    def text(self) -> str:
        """The target as a passage is embedded: its context, a line break, its words."""
        return f"{self.context}\n{self.target}" if self.context else self.target

    @property
    def hidden(self) -> bool:
        """Whether no target passage, as it is indexed, holds the query's words by construction: a fair test of recall as it is."""
        return not set(self.slots) & set(self.source)


class _Row(NamedTuple):
    """A passage as it is read here."""

    slot: int
    scene: int
    path: str
    title: str
    kind: str
    uid: str
    role: str
    text: str
    context: str


def pairs(ledger: Ledger, most: int = 20_000, seed: int = 0) -> list[Pair]:
    """At most `most` pairs, a quarter of them of each kind, chosen by hash (`seed`): the same ledger gives the same list.

    Left out: second copies of a scene, templates, reports, and what vaultllm wrote. Raises ValueError when `most` is negative.
    """
    if most < 0:
        raise ValueError(f"most is {most}")
    share = most // len(KINDS)
    found: dict[Kind, list[Pair]] = {kind: [] for kind in KINDS}
    headed: Counter[str] = Counter()
    starts = _starts(ledger)
    resolver = Resolver(starts)
    for rows in _notes(ledger, seed):
        headings: list[Pair] = []
        for scene, group in groupby(rows, key=lambda row: row.scene):
            passages = list(group)
            if passages[0].kind == "dialogue":
                found["question"] += _questions(passages)
            else:
                headings += _headings(passages)
            if starts.get(passages[0].path, (0, 0))[0] == scene:
                headings += _title(passages)
            found["link"] += _links(passages, resolver, starts)
            found["sentence"] += _sentences(passages, seed)
        headed.update(texts.fold(pair.query) for pair in headings)
        found["heading"] += headings
        for kind in KINDS:  # no more in memory than some multiple of what is wanted
            if len(found[kind]) > 8 * share + 1000:
                found[kind] = _chosen(found[kind], 4 * share, seed)
    found["heading"] = [pair for pair in found["heading"] if headed[texts.fold(pair.query)] <= _COMMON]
    found["link"] = _with_targets(ledger, found["link"], share, seed)
    return [pair for kind in KINDS for pair in _chosen(found[kind], share, seed)]


def held_out(pair: Pair) -> bool:
    """Whether a pair is kept for judging: by the note of its target, of which then nothing is learnt."""
    return is_held_out(pair.target_note)


def split(found: Iterable[Pair]) -> tuple[list[Pair], list[Pair]]:
    """(to learn from, to judge by). A link from a held-out note to another one is in neither: each would know the other's text."""
    learnt: list[Pair] = []
    judged: list[Pair] = []
    for pair in found:
        if held_out(pair):
            judged.append(pair)
        elif not is_held_out(pair.note):
            learnt.append(pair)
    return learnt, judged


def is_held_out(path: str) -> bool:
    """Whether a note is held out: one in `HELD_OUT`, by the hash of its path."""
    return _number(texts.nfc(path)) % HELD_OUT == 0


def _number(*parts: object) -> int:
    """A hash that is the same in every process, well mixed (the low bits of CRC-32 are not)."""
    return zlib.crc32("\x1f".join(map(str, parts)).encode("utf-8", "surrogatepass")) * 2_654_435_761 % 2**32 >> 8


def _chosen(found: list[Pair], most: int, seed: int) -> list[Pair]:
    """At most so many of them, those with the smallest hashes, in their order."""
    found = list({(pair.query, pair.target, pair.target_note): pair for pair in found}.values())  # what is said twice counts once
    if len(found) <= most:
        return found
    ranked = heapq.nsmallest(most, ((_number(seed, pair.kind, pair.note, pair.query), place) for place, pair in enumerate(found)))
    return [found[place] for place in sorted(place for _, place in ranked)]


# -- what is read

_USED = (  # exact copies are known at once, near ones when the ledger has looked for them
    "(s.train = 1 OR s.trust = 'clipped') AND s.trust != 'generated' AND s.slot NOT IN (SELECT scene FROM twins)"
    " AND s.slot IN (SELECT min(slot) FROM scenes WHERE train = 1 OR trust = 'clipped' GROUP BY sha)"
)


def _starts(ledger: Ledger) -> dict[str, tuple[int, int]]:
    """Path -> (scene, passage) with which the note begins."""
    query = (
        "SELECT n.path, s.slot, p.slot FROM scenes s JOIN notes n ON n.id = s.note JOIN passages p ON p.scene = s.slot"
        f" WHERE p.ordinal = 0 AND s.ordinal = (SELECT min(o.ordinal) FROM scenes o WHERE o.note = s.note) AND {_USED}"
    )
    return {path: (scene, slot) for path, scene, slot in ledger.db.execute(query)}


def _notes(ledger: Ledger, seed: int) -> Iterator[list[_Row]]:
    """The passages of each note, in order; of a large vault, of a part of its scenes."""
    scenes = ledger.db.execute(f"SELECT s.slot, s.id FROM scenes s JOIN notes n ON n.id = s.note WHERE {_USED} ORDER BY n.path, s.ordinal")
    slots = [(slot, identity) for slot, identity in scenes]
    if len(slots) > MOST_SCENES:
        kept = heapq.nsmallest(MOST_SCENES, ((_number(seed, identity), slot) for slot, identity in slots))
        known = {slot for _, slot in kept}
        slots = [one for one in slots if one[0] in known]
    rows: list[_Row] = []
    query = (
        "SELECT p.slot, p.scene, n.path, n.title, s.kind, p.uid, p.role, p.text, p.context"
        " FROM passages p JOIN scenes s ON s.slot = p.scene"
        " JOIN notes n ON n.id = s.note WHERE p.scene IN ({}) ORDER BY n.path, s.ordinal, p.ordinal"
    )
    for row in map(_Row._make, ledger.among(query, [slot for slot, _ in slots])):
        if rows and row.path != rows[0].path:
            yield rows
            rows = []
        rows.append(row)
    if rows:
        yield rows


# -- the four structures


def _title(passages: Sequence[_Row]) -> Iterator[Pair]:
    """A note's title, or a talk's, and what it begins with."""
    row = passages[0]
    said = _prose(row.text)
    title = row.title.strip()
    if _asks(title, 1) and _says(said) and texts.fold(title) not in texts.fold(said):
        yield Pair("heading", title[:QUERY_CHARS], said[:TARGET_CHARS], row.path, row.path, (row.slot,), (row.slot,))


def _headings(passages: Sequence[_Row]) -> Iterator[Pair]:
    """Each heading and the text below it, up to the next one or to the end of the passage."""
    heading, source = "", 0
    for row in passages:
        for title, body in _sections(row.text):
            if title:
                heading, source = title, row.slot
            if heading and body.strip():
                if _asks(heading, 1) and _says(body):
                    slots = (row.slot,)
                    yield Pair("heading", heading[:QUERY_CHARS], body.strip()[:TARGET_CHARS], row.path, row.path, slots, (source, row.slot))
                heading = ""


def _sections(text: str) -> Iterator[tuple[str, str]]:
    """(heading or "", what stands below it); a heading in a code block is none."""
    heading = ""
    body: list[str] = []
    for line, code in _lines(text):
        match = None if code else _HEADING.match(line)
        if match:
            yield heading, "\n".join(body)
            heading, body = _plain(match["title"].rstrip(" \t#")), []
        else:
            body.append(line)
    yield heading, "\n".join(body)


def _lines(text: str) -> Iterator[tuple[str, bool]]:
    """Each line, and whether it is code or its fence."""
    fence = ""
    for line in text.split("\n"):
        mark = line.lstrip(" \t>")[:3]
        if fence:
            yield line, True
            fence = "" if mark == fence else fence
        else:
            fence = mark if mark in ("```", "~~~") else ""
            yield line, bool(fence)


def _questions(passages: Sequence[_Row]) -> Iterator[Pair]:
    """Each turn of the user and the assistant's turn after it."""
    turns = [list(turn) for _, turn in groupby(passages, key=lambda row: (row.uid, row.role))]
    for asked, answered in pairwise(turns):
        if (asked[0].role, answered[0].role) != ("user", "assistant"):
            continue
        question = _plain(" ".join(_prose(row.text) for row in asked))[:QUERY_CHARS]
        if _asks(question) and _says(answered[0].text):
            path, slots = asked[0].path, tuple(row.slot for row in answered)
            source = tuple(row.slot for row in asked)
            yield Pair("question", question, answered[0].text[:TARGET_CHARS], path, path, slots, source, answered[0].context)


def _links(passages: Sequence[_Row], resolver: Resolver, starts: dict[str, tuple[int, int]]) -> Iterator[Pair]:
    """Each sentence with a link to another note (not to a part of it), and that note; its text is filled in by `_with_targets`."""
    for row in passages:
        if "](" not in row.text and "[[" not in row.text:
            continue
        for sentence in texts.sentences(_prose(row.text)):
            links = [link for link in (*_WIKI.finditer(sentence), *_MARKDOWN.finditer(sentence)) if not link["embed"] and not link["part"]]
            query = _plain(sentence) if links else ""  # once: a line may hold a thousand links
            if len(query) > QUERY_CHARS or not _asks(query):
                continue
            for link in links:
                target = resolver.resolve(link["target"], row.path)
                if target and target != row.path:
                    yield Pair("link", query, "", row.path, target, (starts[target][1],), (row.slot,))


def _with_targets(ledger: Ledger, found: list[Pair], most: int, seed: int) -> list[Pair]:
    """The chosen ones with the first passage of the linked note as their target; to one note at most a few, else a hub is all there is."""
    by_target: dict[str, list[Pair]] = defaultdict(list)
    for pair in found:
        by_target[pair.target_note].append(pair)
    few = [pair for linking in by_target.values() for pair in _chosen(linking, 2 * _COMMON, seed)]
    chosen = _chosen(sorted(few, key=lambda pair: (pair.note, pair.source, pair.query)), most, seed)
    stored = ledger.texts(sorted({pair.slots[0] for pair in chosen}))
    said = {slot: (_prose(text)[:TARGET_CHARS], context) for slot, text, context in stored}
    filled = [replace(pair, target=said[pair.slots[0]][0], context=said[pair.slots[0]][1]) for pair in chosen]
    return [pair for pair in filled if _says(pair.target)]


def _sentences(passages: Sequence[_Row], seed: int) -> Iterator[Pair]:
    """One sentence of each passage, chosen by hash, and the rest of the passage."""
    for row in passages:
        if row.kind == "code":
            continue
        sentences = texts.sentences(_prose(row.text))
        able = [place for place, one in enumerate(sentences) if len(one) <= QUERY_CHARS and _asks(_plain(one), _FEW_WORDS + 1)]
        if len(sentences) < 2 or not able:
            continue
        place = able[_number(seed, row.path, sentences[0], len(sentences)) % len(able)]
        rest = "\n".join(sentences[:place] + sentences[place + 1 :])
        if _says(rest) and sentences[place] not in rest:
            slots = (row.slot,)
            yield Pair("sentence", _plain(sentences[place]), rest[:TARGET_CHARS], row.path, row.path, slots, slots, row.context)


# -- texts


def _prose(text: str) -> str:
    """A passage without its headings and code."""
    if "#" not in text and "```" not in text and "~~~" not in text:
        return text.strip()
    return "\n".join("" if code or _HEADING.match(line) else line for line, code in _lines(text)).strip()


def _plain(text: str) -> str:
    """A text as one writes a question: links as they are shown, no marks of lists and emphasis, one line."""
    shown = _MARKDOWN.sub(lambda link: link["shown"], _WIKI.sub(lambda link: link["shown"] or link["target"].rpartition("/")[2], text))
    return " ".join(_MARKS.sub("", shown).split())


def _asks(query: str, words: int = _FEW_WORDS) -> bool:
    """Whether a query has so many words that hold a letter."""
    return sum(any(map(str.isalpha, word)) and len(word) > 1 for word in texts.words(query)) >= words


def _says(target: str) -> bool:
    return len(target.strip()) >= _FEW_CHARS
