"""Questions that a note answers in its own words, made without a model.

A heading asks for its text, a term for its definition, the beginning of a list or table for the rest, the words before a
link for its target, a gap in a sentence for the rare word that stood there, a day for what was written on it. Each answer
is a piece of the note, letter by letter; each question is asked in the note's language. Pure. Knows nothing about splits
and models.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from vaultllm import dates, examples, markdown
from vaultllm.schema import Block, Example, Message, Scene
from vaultllm.text import WORD, fold, nfc, sentences, sha, words

KINDS = ("heading", "definition", "list", "table", "link", "cloze", "dated")
"""The sorts of tasks."""
PER_NOTE = 6
"""So many tasks of one note are kept at most."""
WEIGHT = 1.0
"""Of a task in the loss. Half was no better (docs/log.md)."""

_LONGEST = 1200  # characters of an answer: more is continued text, which prose is learnt as
_QUESTION = 1200  # characters of what is shown with a question
_FEWEST = 6  # words of an answer that is text
_ITEMS = 4  # of a list, rows of a table, from which on it can be completed

_ASKED: dict[str, dict[str, str]] = {
    "en": {
        "heading": "What does the note “{note}” say under the heading “{about}”?",
        "said": "What does the note “{note}” say about “{about}”?",
        "definition": "What is “{about}”? Answer in the words of the note “{note}”.",
        "list": "Go on with this list from the note “{note}”:",
        "table": "Add the missing rows of this table from the note “{note}”:",
        "link": "Which note does the link point to that follows these words in the note “{note}”?",
        "cloze": "Which word is missing in this sentence from the note “{note}”?",
        "dated": "What did I write about “{about}” on {day}?",
    },
    "ru": {
        "heading": "Что написано в заметке «{note}» под заголовком «{about}»?",
        "said": "Что в заметке «{note}» сказано про «{about}»?",
        "definition": "Что такое «{about}»? Ответь словами заметки «{note}».",
        "list": "Продолжи этот список из заметки «{note}»:",
        "table": "Допиши недостающие строки таблицы из заметки «{note}»:",
        "link": "На какую заметку ведёт ссылка, которая стоит после этих слов в заметке «{note}»?",
        "cloze": "Какое слово пропущено в этом предложении из заметки «{note}»?",
        "dated": "Что я записал про «{about}» {day}?",
    },
    "bn": {
        "heading": "“{note}” নোটে “{about}” শিরোনামের নিচে কী লেখা আছে?",
        "said": "“{note}” নোটে “{about}” নিয়ে কী বলা আছে?",
        "definition": "“{about}” কী? “{note}” নোটের কথাতেই উত্তর দাও।",
        "list": "“{note}” নোটের এই তালিকার বাকিটা লেখো:",
        "table": "“{note}” নোটের এই ছকের বাকি সারিগুলো লেখো:",
        "link": "“{note}” নোটে এই কথাগুলোর পরে যে লিঙ্ক আছে, সেটা কোন নোটের?",
        "cloze": "“{note}” নোটের এই বাক্যে কোন শব্দটা বাদ পড়েছে?",
        "dated": "{day} তারিখে “{about}” নিয়ে আমি কী লিখেছিলাম?",
    },
}
_GAP = "____"

_MARK = re.compile(r"[ \t]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+(?:\[.\][ \t]+)?)?")
_ITEM = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ \t]")
_TASK = re.compile(r"(?:[-*+]|\d{1,9}[.)])[ \t]+\[[^ ]\]")
# `**Term** (other name) — text`, `**Term:** text`
_BOLD = re.compile(r"\*\*([^*\n]{2,60}?)(?::\*\*|\*\*[^\n—–:.]{0,40}?[ \t]*(?:[—–:]|-[ \t]))[ \t]*(?=\S)")
_COLON = re.compile(r"([^\W\d_][^\n:.!?…—–|\[\]`*<>$]{1,40}):[ \t]+(?=\S)")
# `X — это text`; `X is a text`; `X হল text`, `X মানে text`
_IS = {
    "ru": re.compile(r"([^\W\d_][^\n:.!?…—–|\[\]`*<>$,]{1,50}?)[ \t]+[—–-][ \t]+(?=это[ \t])"),
    "en": re.compile(r"(?:(?:The|An?) (?=[a-z])|(?=[A-Z]))([\w-]{2,30}(?: [\w-]{1,30}){0,2}) (?=(?:is|are) (?:an?|the) )"),
    "bn": re.compile(r"([^\W\d_][^\n:.!?।—–|\[\]`*<>$,]{1,50}?)[ \t]+(?:হল|হলো|মানে|অর্থ)[ \t]+(?=\S)"),
}
_NOBODY = frozenset("it this that these those there here he she they we you i what which who one that's".split())
_LINK = re.compile(r"(?<!!)\[\[([^\[\]|#^\n]{1,120})(?:[#^][^\[\]|\n]{0,200})?(?:\|[^\[\]\n]{0,200})?\]\]")
_MARKUP = re.compile(r"\[\[|\]\(|[`$|<>⟨⟩]|==|%%|\*\*|https?:")
_DELIMITER = re.compile(r"[ \t]*+\|?[ \t]*+:?-{2,}+[ \t|:-]*+")


class _Made(NamedTuple):
    """A task before it is an example."""

    kind: str
    wording: str
    about: str
    shown: str
    answer: str


def of(scene: Scene) -> list[Example]:
    """The tasks of a scene of the owner's own prose, in the order of its text; none of any other scene.

    None either where something was redacted: the text is no longer the note's. Each is an example of form `task` with
    the question as the user's message and a piece of the scene's text as the assistant's, which is learnt.
    """
    if scene.kind == "dialogue" or not scene.train or scene.trust != "own" or len(scene.turns) != 1:
        return []
    said = scene.turns[0].text
    if "⟨" in said or "⟨" in scene.title or not scene.title.strip():
        return []
    asked = _ASKED.get(scene.language, _ASKED["en"])
    day = _day(scene)
    found: list[Example] = []
    seen: set[str] = set()
    for made in _made(scene, said):
        answer = made.answer.strip()
        if not answer or answer not in said or answer in made.shown:
            continue
        question = asked[made.wording].format(note=scene.title.strip(), about=made.about, day=day)
        if made.shown:
            question += f"\n\n{made.shown}"
        messages = (Message("user", question, False), Message("assistant", answer, True))
        example = examples.example(scene, (scene.id,), "task", messages, task=made.kind, weight=WEIGHT)
        if example.id not in seen:
            seen.add(example.id)
            found.append(example)
    return found


def chosen(made: Sequence[Example], characters: float) -> tuple[list[Example], list[Example]]:
    """Which tasks are learnt and which are too many, both in the order given.

    At most `PER_NOTE` of a note, its sorts by turns; and so many in all that their answers have at most `characters`. A hash
    decides which: with more room none of those kept before is lost.
    """
    notes: dict[str, list[Example]] = {}
    for example in made:
        notes.setdefault(nfc(example.path), []).append(example)
    few: list[Example] = []
    for group in notes.values():
        turn: Counter[str] = Counter()
        ranked = []
        for example in sorted(group, key=_drawn):
            ranked.append((turn[example.task], _drawn(example), example))
            turn[example.task] += 1
        few += [example for _, _, example in sorted(ranked, key=lambda one: one[:2])[:PER_NOTE]]
    kept: set[str] = set()
    room = characters
    for example in sorted(few, key=_drawn):
        room -= learnt_characters(example)
        if room < 0:
            break
        kept.add(example.id)
    return [example for example in made if example.id in kept], [example for example in made if example.id not in kept]


def learnt_characters(example: Example) -> int:
    """Characters of the text that an example learns."""
    return sum(len(message.text) for message in example.messages if message.learn)


def _drawn(example: Example) -> str:
    return sha("task", example.id)


def _day(scene: Scene) -> str:
    """The day of the scene as its language writes it, without the weekday; empty when it is not known."""
    language = scene.language if scene.language in _ASKED else "en"
    return dates.words(scene.at, language).rpartition(" ")[0]


def _made(scene: Scene, said: str) -> Iterator[_Made]:
    note = markdown.parse("task.md", ("\n" + said).encode("utf-8", "replace"))  # so that a rule at its start is no front matter
    rows = note.text.split("\n")
    blocks = note.blocks
    yield from _headings(blocks, rows)
    for block in blocks:
        if block.kind in ("paragraph", "list") and "```" not in block.text and "~~~" not in block.text:
            lines = block.text.split("\n")
            yield from _definitions(lines if block.kind == "list" else lines[:1], scene.language)
            yield from _links(lines)
        if block.kind == "list":
            yield from _list(block)
        elif block.kind == "table":
            yield from _table(block)
    paragraphs = [block.text for block in blocks if block.kind == "paragraph"]
    yield from _clozes(scene, paragraphs)
    yield from _dated(scene, paragraphs)


def _headings(blocks: Sequence[Block], rows: Sequence[str]) -> Iterator[_Made]:
    """A heading -> what stands under it, its first whole blocks."""
    for place, heading in enumerate(blocks):
        title = heading.title.strip()
        if heading.kind != "heading" or not title or _MARKUP.search(title):
            continue
        first = last = place + 1
        size = 0
        while last < len(blocks) and blocks[last].kind in ("paragraph", "list", "table", "quote", "callout"):
            size += len(blocks[last].text)
            if size > _LONGEST:
                break
            last += 1
        text = "\n".join(rows[blocks[first].lines[0] - 1 : blocks[last - 1].lines[1]]) if last > first else ""
        if len(words(text)) >= _FEWEST:
            yield _Made("heading", "heading", title, "", text)


def _definitions(lines: Iterable[str], language: str) -> Iterator[_Made]:
    """`Term: …`, `**Term** — …`, `X — это …` at the beginning of a paragraph or an item -> the rest of the line."""
    for line in lines:
        row = line[_MARK.match(line).end() :].rstrip()  # type: ignore[union-attr]  # it matches the empty string
        if len(row) > _LONGEST:
            continue
        bold, colon = _BOLD.match(row), _COLON.match(row)
        stated = _IS[language].match(row) if language in _IS else None
        match = bold or stated or colon
        if match is None:
            continue
        term, rest = match[1].strip(), row[match.end() :]
        named = fold(term).split()
        if not named or len(named) > 5 or named[0] in _NOBODY or _MARKUP.search(term) or len(words(rest)) < 3:
            continue
        yield _Made("definition", "definition" if match is stated else "said", term, "", rest)


def _list(block: Block) -> Iterator[_Made]:
    """The first half of a list -> the rest of it."""
    rows = block.text.split("\n")
    starts = [number for number, row in enumerate(rows) if _ITEM.match(row)]
    if len(starts) < _ITEMS or len(block.text) > _QUESTION + _LONGEST or any(_TASK.match(rows[number]) for number in starts):
        return  # which tasks are done is no knowledge
    yield from _halves("list", rows, starts[len(starts) // 2])


def _table(block: Block) -> Iterator[_Made]:
    """The head and the first half of a table's rows -> the other rows."""
    rows = block.text.split("\n")
    if len(rows) - 2 >= _ITEMS and _DELIMITER.fullmatch(rows[1]):
        yield from _halves("table", rows, 2 + (len(rows) - 2) // 2)


def _halves(kind: str, rows: Sequence[str], at: int) -> Iterator[_Made]:
    shown, rest = "\n".join(rows[:at]), "\n".join(rows[at:])
    if len(shown) <= _QUESTION and len(rest) <= _LONGEST:
        yield _Made(kind, kind, "", shown, rest)


def _links(lines: Iterable[str]) -> Iterator[_Made]:
    """The words before the first link of a line -> the note that it names."""
    for line in lines:
        match = _LINK.search(line)
        if match is None:
            continue
        before = line[: match.start()][_MARK.match(line).end() :].rstrip(" (\t—–-«\"'“")  # type: ignore[union-attr]  # as above
        target = match[1].strip()
        if len(words(before)) >= _FEWEST and len(before) <= _QUESTION and fold(target) not in fold(before):
            yield _Made("link", "link", "", before, target)


def _clozes(scene: Scene, paragraphs: Sequence[str]) -> Iterator[_Made]:
    """A sentence without one of the scene's keywords -> the word. Keywords are frequent here and rare in the vault."""
    open_ = {fold(term) for term in scene.field if len(term) >= 4 and " " not in term}
    for sentence in (one.strip() for text in paragraphs for one in sentences(text)):
        if not open_:
            return
        if len(sentence) > 400 or "\n" in sentence or _MARKUP.search(sentence):
            continue
        found = list(WORD.finditer(sentence))
        counts = Counter(fold(match[0]) for match in found)
        if len(found) < _FEWEST:
            continue
        for match in found:
            word = fold(match[0])
            if word in open_ and counts[word] == 1:
                open_.discard(word)
                yield _Made("cloze", "cloze", "", sentence[: match.start()] + _GAP + sentence[match.end() :], match[0])
                break


def _dated(scene: Scene, paragraphs: Sequence[str]) -> Iterator[_Made]:
    """A day and the first keyword -> the first paragraph of that day with the word."""
    if not _day(scene):
        return
    for term in scene.field[:1]:
        for text in paragraphs:
            if len(text) <= _LONGEST and fold(term) in map(fold, WORD.findall(text)) and len(words(text)) >= _FEWEST:
                yield _Made("dated", "dated", term, "", text)
                return
