"""A talk that an importer damaged, and the same talk from its export: joined message by message, by UID.

The plugin NEXUS AI Chat Importer ran patterns over ChatGPT's messages that collapse indentation and cut words
(`as_imported`); the export still has the exact text, the model, the time and the tree. What the owner changed by hand in
the note wins over the export. Pure; knows nothing about files, and never adds a message that the note does not hold.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from vaultllm.chats.flattened import holds_code
from vaultllm.schema import Conversation, Problem, Turn

# What the plugin does to every part of a ChatGPT message, code included, in this order.
_CLEANUP: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"cite[a-zA-Z0-9_-]+"), ""),
    (re.compile(r"link[a-zA-Z0-9_-]+"), ""),
    (re.compile(r"turn\d+search\d+", re.ASCII), ""),
    (re.compile("[\ue000-\uf8ff]"), ""),
    (re.compile(r" {2,}"), " "),
    (re.compile(r"\n{3,}"), "\n\n"),
)
# What its patterns leave of a citation, and the delimiters of formulas, which it rewrites: neither is an edit by hand.
_LEFTOVER = re.compile(r"(?:file)?cite|turn\d+[a-z]+\d+", re.ASCII)
_ENTITY = re.compile(r'entity\["[^"\n]{0,100}","([^"\n]{0,200})"[^\]\n]{0,400}\]')
_IGNORED = re.compile("\\s+|[\ue000-\uf8ff$]|\\\\[()\\[\\]]")


@dataclass(frozen=True, slots=True)
class Mended:
    """A talk after it was joined with its export. mended + same + edited + unknown = its turns."""

    conversation: Conversation
    """The note's talk: its turns in their order and places, with all that the export knows of them."""
    mended: int
    """Turns that got their exact text back."""
    same: int
    """Turns whose text was exact already."""
    edited: int
    """Turns that say something else than the export: the note's words were kept (W-EDITED)."""
    unknown: int
    """Turns that the export does not hold."""
    lacking: int
    """Messages of the export that the note does not hold."""
    variants: int
    """Turns that are now known to be no part of the talk as it went on."""


def as_imported(text: str) -> str:
    """What the plugin makes of a ChatGPT message (1.0.8 to 1.7): the damage that is no edit of the owner's."""
    for pattern, replacement in _CLEANUP:
        text = pattern.sub(replacement, text)
    return text.strip()


def mend(conversation: Conversation, export: Conversation) -> Mended:
    """Join the export's knowledge into a note's talk, by UID. Turns keep their places; none is added, none is lost."""
    known: dict[str, Turn] = {}
    for turn in export.turns:
        if turn.uid:
            known.setdefault(turn.uid, turn)
    turns: list[Turn] = []
    problems: list[Problem] = []
    mended = same = variants = 0
    for turn in conversation.turns:
        exact = known.get(turn.uid)
        if exact is None:
            turns.append(turn)
            continue
        joined = _joined(turn, exact)
        variants += bool(exact.variant_of)
        if turn.text == exact.text:
            same += 1
            joined = dataclasses.replace(joined, lossy=False)
        elif _is_damage(turn.text, exact.text):
            mended += 1
            place = turn.text_line if _same_rows(turn.text, exact.text) else 0
            joined = dataclasses.replace(joined, text=exact.text, text_line=place, lossy=False)
        else:
            message = (
                "this message is not what the export says (edited by hand?); the note's words are kept; nothing to do if you wrote them"
            )
            problems.append(Problem("W-EDITED", message, turn.lines[0]))
        turns.append(joined)
    there = {turn.uid for turn in conversation.turns}
    found = sum(turn.uid in known for turn in conversation.turns)
    conversation = dataclasses.replace(
        conversation,
        provider=conversation.provider or export.provider,
        created=export.created or conversation.created,
        turns=tuple(turns),
        problems=(*_still_damaged(conversation.problems, turns), *problems),
    )
    lacking = sum(not turn.uid or turn.uid not in there for turn in export.turns)
    return Mended(conversation, mended, same, len(problems), len(turns) - found, lacking, variants)


def _still_damaged(problems: Iterable[Problem], turns: Iterable[Turn]) -> Iterator[Problem]:
    """The problems of a talk, what is said of its damage brought up to what is left of that."""
    left = [turn for turn in turns if turn.lossy and holds_code(turn.text)]
    for problem in problems:
        if problem.code != "W-LOSSY":
            yield problem
        elif left:
            message = (
                f"{len(left)} messages with code stay as the importer damaged them, and are not learnt: the export does not hold them so"
            )
            yield Problem("W-LOSSY", message, left[0].lines[0], len(left))


def _joined(turn: Turn, exact: Turn) -> Turn:
    """What the export knows of a message besides its text."""
    return dataclasses.replace(
        turn,
        model=exact.model or turn.model,
        at=exact.at or turn.at,
        attachments=tuple(dict.fromkeys((*turn.attachments, *exact.attachments))),
        parent=exact.parent or turn.parent,
        variant_of=exact.variant_of,  # the tree knows better than the order in the note, whatever that says
    )


def _is_damage(text: str, exact: str) -> bool:
    """Whether a text differs from the exact one by no more than what importers do."""
    said = _letters(text)
    return said in (_letters(exact), _letters(as_imported(exact)))


def _same_rows(text: str, exact: str) -> bool:
    """Whether row i of the one is row i of the other, so that the rows of the exact text have lines in the note."""
    rows, exact_rows = text.split("\n"), exact.split("\n")
    return len(rows) == len(exact_rows) and all(map(_is_damage, rows, exact_rows))


def _letters(text: str) -> str:
    """A text without white space, leftovers of citations and delimiters of formulas."""
    return _IGNORED.sub("", _LEFTOVER.sub("", _ENTITY.sub(r"\1", text)))
