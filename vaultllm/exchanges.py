"""A talk -> drafts of scenes: one exchange, or a run of short ones, apart where a pause, another topic or the length says so.

Knows nothing about formats of chats and nothing about prose.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from typing import TYPE_CHECKING

from vaultllm import keywords, markdown, text
from vaultllm.drafts import HAS_WORD, Draft
from vaultllm.schema import Conversation, Note, Turn

if TYPE_CHECKING:
    from vaultllm.config import SceneSettings

TOPIC_STEMS = 6  # a question with fewer stems worth a keyword says nothing about a change of topic
TOPIC_SHARE = 0.05  # of the weight of a question's stems that the talk before it must share, or the topic is another

# What an importer put between the messages is nobody's words: questions that Perplexity would have one ask next, half a UID.
_OFFERED = re.compile(r"\s*(?:## Related Queries[ \t]*$|<!--[ \t]*UID:[^\n]*\s*\Z)", re.MULTILINE)
_LOOSE_LINK = re.compile(r"!?\[\[[^\]]*\]\]")


def talk(note: Note, talk: Conversation, settings: SceneSettings, statistics: keywords.Statistics | None) -> Iterator[Draft]:
    """Exchanges, or runs of short ones, as drafts.

    Decided from the front, each boundary by what stands before it and by the first turn after it, so that a turn
    appended to the talk changes its last scene only.
    """
    people = talk.provider == "telegram"
    turns = [turn for turn in _with_loose(note, talk) if not turn.variant_of or note.blocks]
    exchanges = _exchanges(turns, settings, people)
    if not note.blocks:  # in a file of JSON a branch that was left stands where it belongs; in a note it stays on its lines
        _put_variants(exchanges, talk.turns)
    run: list[Turn] = []
    first = size = 0
    for ordinal, exchange in enumerate(exchanges):
        more = _size(exchange)
        if run and not (_fits(size, more, settings) and _goes_on(run, exchange[0], settings, statistics)):
            yield _talked(note, talk, run, first, people)
            run, first, size = [], ordinal, 0
        run += exchange
        size += more
    if run:
        yield _talked(note, talk, run, first, people)


def asked(note: Note, told: Conversation, settings: SceneSettings, statistics: keywords.Statistics | None) -> Iterator[Draft]:
    """The talk that stands in a note of prose (`chats.ASKED`), as drafts; none goes on past prose.

    Where vaultllm has answered, the scene is not the owner's.
    """
    stretches: list[list[Turn]] = []
    for turn in told.turns:
        if not stretches or any(stretches[-1][-1].lines[1] < first and last < turn.lines[0] for first, last in told.loose):
            stretches.append([])
        stretches[-1].append(turn)
    for number, turns in enumerate(stretches):
        part = replace(told, id=f"{text.nfc(note.path)} asked {number}", turns=tuple(turns), loose=())
        for draft in talk(note, part, settings, statistics):
            if any(turn.role == "assistant" for turn in draft.turns):
                draft.trust, draft.reason = "generated", "an answer of vaultllm's"
            yield draft


def _talked(note: Note, talk: Conversation, turns: Sequence[Turn], ordinal: int, people: bool) -> Draft:
    uid = next((turn.uid for turn in turns if turn.uid and not turn.variant_of), "") or next((turn.uid for turn in turns if turn.uid), "")
    key: tuple[str, ...]
    if uid:
        key = ("uid", uid)
    elif talk.id:
        key = ("conversation", talk.id, str(ordinal))
    else:
        key = ("talk", text.nfc(note.path), str(ordinal))
    lines = (min(turn.lines[0] for turn in turns), max(turn.lines[1] for turn in turns))
    at = next((turn.at for turn in turns if turn.at), talk.created)
    reason = "a talk between people" if people else ""
    return Draft(key, "dialogue", talk.title or note.title, (), tuple(turns), lines, at, uid, reason=reason)


def _exchanges(turns: Sequence[Turn], settings: SceneSettings, people: bool) -> list[list[Turn]]:
    """What the owner said and all that was answered to it. Between people every message may begin something new."""
    exchanges: list[list[Turn]] = []
    size, answered = 0, False
    for turn in turns:
        if not exchanges:
            exchanges.append([])
        elif not turn.variant_of:
            asks = turn.role == "user" and (answered or size > settings.max_chars or _paused(exchanges[-1], turn, settings))
            if people or asks:
                exchanges.append([])
                size, answered = 0, False
        exchanges[-1].append(turn)
        size += len(turn.text)
        answered = answered or turn.role == "assistant"
    return exchanges


def _put_variants(exchanges: list[list[Turn]], turns: Sequence[Turn]) -> None:
    """Each variant among the turns into the exchange of the turn it belongs to, behind it; without a name: where it stands."""
    by_uid = {turn.uid: exchange for exchange in exchanges for turn in exchange if turn.uid}
    by_turn = {id(turn): exchange for exchange in exchanges for turn in exchange}
    here = exchanges[0] if exchanges else []
    if not exchanges:
        exchanges.append(here)
    for turn in turns:
        if turn.variant_of:
            by_uid.get(turn.variant_of, here).append(turn)
        else:
            here = by_turn.get(id(turn), here)


def _fits(before: int, after: int, settings: SceneSettings) -> bool:
    """Whether two stretches of talk, of so many characters, are one by their lengths: one of them is short."""
    return min(before, after) < settings.min_chars and before + after <= settings.max_chars


def _goes_on(run: Sequence[Turn], turn: Turn, settings: SceneSettings, statistics: keywords.Statistics | None) -> bool:
    """Whether a turn goes on with what was said before it: no long pause, no other topic."""
    return not _paused(run, turn, settings) and not _other_topic(run, turn, statistics)


def _size(turns: Iterable[Turn]) -> int:
    return sum(len(turn.text) for turn in turns if not turn.variant_of)


def _paused(before: Sequence[Turn], turn: Turn, settings: SceneSettings) -> bool:
    """Whether a turn comes more than `gap_minutes` after the last one before it whose time is known."""
    earlier = next((one.at for one in reversed(before) if one.at), "")
    if not earlier or not turn.at:
        return False
    try:
        start, end = datetime.fromisoformat(earlier), datetime.fromisoformat(turn.at)
    except ValueError:
        return False
    if (start.tzinfo is None) != (end.tzinfo is None):
        start, end = start.replace(tzinfo=None), end.replace(tzinfo=None)
    return (end - start).total_seconds() > 60 * settings.gap_minutes


def _other_topic(run: Sequence[Turn], question: Turn, statistics: keywords.Statistics | None) -> bool:
    """Whether a question shares next to no words with the talk before it: lexical cohesion between neighbouring blocks (Hearst 1997).

    Unlike TextTiling, which looks for valleys between what stands on both sides, against a fixed share: what is said
    later must not move an earlier boundary. A short question ("and why?") has no words to tell by and goes on.
    """
    asked = keywords.content(question.text)
    if len(asked) < TOPIC_STEMS:
        return False
    said = keywords.content("\n\n".join(turn.text for turn in run))
    if len(said) < TOPIC_STEMS:
        return False
    total = sum(keywords.weight(stem, statistics) for stem in asked)
    return sum(keywords.weight(stem, statistics) for stem in asked & said) < TOPIC_SHARE * total


def _with_loose(note: Note, talk: Conversation) -> list[Turn]:
    """The turns, and between them the owner's own lines as turns of the owner's, unless they are bare links or offered questions."""
    if not talk.loose:
        return list(talk.turns)
    rows = note.text.split("\n")
    turns = list(talk.turns)
    for first, last in talk.loose:
        own = markdown.visible("\n".join(rows[first - 1 : last]))
        if HAS_WORD.search(_LOOSE_LINK.sub("", own)) and not _OFFERED.match(own):
            lead = len(own) - len(own.lstrip("\n"))
            turns.append(Turn("user", own.strip("\n"), (first, last), first + lead, author="note"))
    return sorted(turns, key=lambda turn: turn.lines[0]) if len(turns) > len(talk.turns) else turns


def cover(note: Note, drafts: list[Draft]) -> list[Draft]:
    """Stretch the scenes of a talk over the lines between them (header, rules, bare links): a line belongs to the scene before it."""
    rows = note.text.split("\n")
    filled = [number for number in range(note.body_line, len(rows) + 1) if rows[number - 1].strip()]
    if not filled:
        return drafts
    drafts = sorted(drafts, key=lambda draft: draft.lines[0])
    for index, draft in enumerate(drafts):
        start = min(filled[0], draft.lines[0]) if index == 0 else draft.lines[0]
        end = max(start, drafts[index + 1].lines[0] - 1 if index + 1 < len(drafts) else filled[-1])
        while end > start and not rows[end - 1].strip():
            end -= 1
        draft.lines = (start, end)
    return drafts
