"""Note -> Scenes -> Passages.

A scene is a stretch of talk (one exchange, or a run of short ones) or a section of prose (a heading and what stands
under it; small neighbours joined, long ones cut) that can be understood alone. Its id says *where* it begins and never
what it says, so it outlives edits. Secrets are taken out here, before anything else sees the text. Pure: knows nothing
about files, databases or models, and nothing about other notes.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import TYPE_CHECKING

from vaultllm import exchanges, keywords, markdown, redact, sections, text
from vaultllm.chats import ASKED, nexus
from vaultllm.drafts import Draft
from vaultllm.properties import is_silenced
from vaultllm.schema import Conversation, Note, Passage, Problem, Scene, Source, Trust, Turn

if TYPE_CHECKING:
    from vaultllm.config import RedactSettings, ScanSettings, Settings

PARSER = "3"  # raise it when parsing or cutting changes: every note is then parsed again
PASSAGE_CHARS = 1_000  # a turn longer than this is recalled in parts

# Names that say by themselves that the note is a copy. `name 1.md`, `name (1).md` and `name-HOST.md` do not: whether they
# are copies, their text tells (duplicates.py).
_CONFLICT = re.compile(
    r"sync-conflict-\d{8}|conflicted copy|\(pre-[\d.]+ backup\)|\(vaultllm conflict|конфликт(?:ующая|ная) копия"
    r"|copie en conflit|in konflikt stehende kopie|copia (?:en conflicto|in conflitto)|\.(?:bak|orig)\.md$",
    re.IGNORECASE,
)
_MERGE = re.compile(r"^(?:<{7} |>{7} )", re.MULTILINE)
# What is nobody's own words: links and embeds, plugin queries and scripts, addresses, headings, HTML tags.
_LINK = re.compile(
    r"!?\[\[[^\[\]\n]{0,2000}\]\]|!?\[[^\[\]\n]{0,1000}\]\([^()\n]{0,2000}\)|https?://\S+|^[ \t]*#{1,6}[ \t].*$|<[^<>\n]{1,500}>", re.M
)
_QUERY = re.compile(
    r"[ \t]*(?P<marks>`{3,}|~{3,})[ \t]*\{?(?:dataview(?:js)?|tasks|query|button|base|toc|meta-bind\S*|js-engine|templater)\b"
)
_NOBODY = frozenset(("user", "assistant", "system", "chatgpt", "claude", "agent", "you", "ai", "вы", "я", "пользователь", "ассистент"))
FEW_WORDS, FEW_LETTERS = 4, 20  # a scene of prose with fewer of both says nothing of its own


def cut(
    note: Note,
    reader: str,
    conversations: Sequence[Conversation],
    settings: Settings,
    statistics: keywords.Statistics | None = None,
) -> tuple[tuple[Scene, ...], tuple[Problem, ...]]:
    """The scenes of a note, in order, chained, and what was noticed on the way.

    `reader` is the chat reader that took the note ("" for an ordinary one), `statistics` the vault's document
    frequencies. The lines of the scenes of a Markdown note do not overlap and cover every non-blank line of its body.
    A private note has no scenes: one W-PRIVATE counts its messages.
    """
    problems: list[Problem] = [problem for conversation in conversations for problem in conversation.problems]
    if is_private(note, settings.scan):
        turns = sum(len(conversation.turns) for conversation in conversations)
        message = "private: neither learnt nor recalled; to have it so, take the property or its folder out of the settings"
        return (), (*problems, Problem("W-PRIVATE", message, count=turns if conversations else 1))
    trust, reason = _trust(note, reader, settings.scan)
    if reader not in ("nexus", ASKED):
        note = nexus.without_answers(note)
    canvas = note.path.lower().endswith(".canvas")
    talks = [conversation for conversation in conversations if conversation.turns]
    unfinished = not talks and any(problem.code == "W-UNFINISHED" for problem in problems)  # all that was said: nobody's prose
    if conversations and (reader == ASKED or unfinished):
        drafts = _asked(note, conversations[0], settings, statistics)
    elif talks:
        drafts = [draft for conversation in talks for draft in exchanges.talk(note, conversation, settings.scenes, statistics)]
        if note.blocks and not canvas:  # conversations of an export share lines of JSON
            drafts = exchanges.cover(note, drafts)
    else:
        drafts = list(sections.nodes(note)) if canvas else sections.prose(note, settings.scenes)
    scenes, noticed = _finish(note, drafts, trust, reason, settings.redact, statistics)
    return scenes, (*problems, *noticed)


def _asked(note: Note, talk: Conversation, settings: Settings, statistics: keywords.Statistics | None) -> list[Draft]:
    """The scenes of a note of prose with a talk in it: the prose as if the talk were not there, but that nothing is joined across it."""
    own = {row for first, last in talk.loose for row in range(first - 1, last)}
    rows = [line if row in own or row < note.body_line - 1 else "" for row, line in enumerate(note.text.split("\n"))]
    bare = replace(markdown.parse(note.path, "\n".join(rows).encode("utf-8", "surrogatepass")), title=note.title)
    said = list(exchanges.asked(note, talk, settings.scenes, statistics))
    return exchanges.cover(note, [*sections.prose(bare, settings.scenes, sorted(draft.lines[0] for draft in said)), *said])


def title(note: Note, settings: RedactSettings) -> str:
    """The note's title without secrets; the file's own name stands everywhere and stays."""
    return note.title if note.title in note.path else redact.redact(note.title, settings)[0]


def is_private(note: Note, settings: ScanSettings) -> bool:
    """Whether the note, or a folder it is in, is marked as private."""
    said = note.properties.get("private")
    if said is True or (isinstance(said, str) and said.strip().lower() in ("true", "yes", "да", "হ্যাঁ")):
        return True
    return in_private_folder(note.path, settings)


def in_private_folder(path: str, settings: ScanSettings) -> bool:
    """Whether the note lies in a folder that the settings call private."""
    path = text.nfc(path)
    folders = path.split("/")[:-1]
    return any(
        (folder := text.nfc(private).strip("/")) and (folder in folders or path.startswith(folder + "/")) for private in settings.private
    )


def _trust(note: Note, reader: str, settings: ScanSettings) -> tuple[Trust, str]:
    """Whose words these are, and why they may not be trained on ("" when they may)."""
    properties = note.properties
    source = properties.get("source") or properties.get("url") or ""
    if properties.get("vaultllm") is not None and not is_silenced(properties):
        return "generated", "written by vaultllm"
    trust: Trust = "own"
    if reader not in ("", ASKED):
        trust = "imported"
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        trust = "clipped"
    if reader == "nexus-backup" or _CONFLICT.search(note.path):
        return trust, "a copy of another note"
    if reader == "nexus-report":
        return trust, "an import report"
    if not set(note.path.split("/")[:-1]).isdisjoint(settings.templates):
        return trust, "a template"
    if any(problem.code == "W-GARBLED" for problem in note.problems):
        return trust, "garbled letters that could not be mended"
    if "<<<<<<< " in note.text and len(_MERGE.findall(markdown.mask(note.text))) >= 2:
        return trust, "git conflict markers in it"
    if trust == "clipped":
        return trust, "clipped from the web"
    return trust, ""


# -- what both have


def _finish(
    note: Note,
    drafts: Sequence[Draft],
    trust: Trust,
    reason: str,
    settings: RedactSettings,
    statistics: keywords.Statistics | None,
) -> tuple[tuple[Scene, ...], list[Problem]]:
    """Drafts -> scenes: redacted, named, chained, with what each is about."""
    names, problems = _names(drafts)
    safe = _Redacted(settings, _names_in(note, drafts), [turn.text for draft in drafts for turn in draft.turns])
    links = sorted([(link.line, link.target) for link in note.links if link.target], key=itemgetter(0))
    at_lines = [line for line, _ in links]
    scenes: list[Scene] = []
    for index, draft in enumerate(drafts):
        turns = tuple([safe.turn(turn) for turn in draft.turns])
        said = turns[0].text if len(turns) == 1 else "\n\n".join([turn.text for turn in turns if not turn.variant_of])
        first, last = bisect_left(at_lines, draft.lines[0]), bisect_right(at_lines, draft.lines[1])
        titled = draft.title if draft.title in note.path else safe.text(draft.title)
        headings = safe.all(draft.headings)
        parts = [part for turn in turns if not turn.variant_of or len(turns) == 1 for _, _, part in _parts(turn.text)]
        about = keywords.digest(said, statistics, (titled, *headings), parts=parts)
        why = reason or draft.reason
        if not why and draft.kind != "dialogue" and _says_little(said, about.words):
            why = "hardly any words of its own (links, headings or queries)"
        place = [markdown.link_heading(heading) for heading in safe.all(draft.place)]
        scenes.append(
            Scene(
                id=names[index],
                sha=text.sha(*[part for turn in turns for part in (turn.role, turn.text)]),
                kind=draft.kind,
                title=titled,
                headings=headings,
                turns=turns,
                source=Source(note.path, draft.lines, draft.uid, draft.block, "#".join(filter(None, place))),
                language=about.language,
                trust=draft.trust or trust,
                train=not why,
                reason=why,
                at=draft.at,
                tags=safe.all(note.tags),
                links=safe.all(dict.fromkeys([target for _, target in links[first:last]]) if draft.links is None else draft.links),
                prev=names[index - 1] if index else "",
                next=names[index + 1] if index + 1 < len(drafts) else "",
                field=about.field,
                anchor=about.anchor,
            )
        )
    return tuple(scenes), problems + safe.problems()


class _Redacted:
    """Takes secrets out of the texts of one note, and remembers how many of which kind, never the secrets."""

    def __init__(self, settings: RedactSettings, names: Iterable[str], texts: Sequence[str]) -> None:
        self._settings = settings
        self._kinds: Counter[str] = Counter()
        self._line = 0
        # Mostly a note is clean: seen at once for all of it. Titles, headings and targets come back with every scene and
        # are looked at, and counted, once.
        known = list(dict.fromkeys(names))
        self._clean = not redact.redact("\n\n".join([*known, *texts]), settings)[1]
        self._short = dict(zip(known, known, strict=True)) if self._clean else {}

    def turn(self, turn: Turn) -> Turn:
        """The turn, its text and the names of its attachments without secrets."""
        if self._clean:
            return turn
        said, found = redact.redact(turn.text, self._settings)
        if found:
            self._kinds.update(one.kind for one in found)
            first = min(one.line for one in found)
            line = turn.text_line + first - 1 if turn.text_line else turn.lines[0]
            self._line = min(self._line, line) if self._line else line
            turn = replace(turn, text=said)
        return replace(turn, attachments=self.all(turn.attachments)) if turn.attachments else turn

    def text(self, said: str) -> str:
        """A title, a heading, the target of a link without secrets."""
        clean = self._short.get(said)
        if clean is None:
            clean, found = redact.redact(said, self._settings)
            self._kinds.update(one.kind for one in found)
            self._short[said] = clean
        return clean

    def all(self, said: Iterable[str]) -> tuple[str, ...]:
        """`text` of each."""
        return tuple([self.text(one) for one in said])

    def problems(self) -> list[Problem]:
        """One for the note, when anything was taken out."""
        if not self._kinds:
            return []
        kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(self._kinds.items()))
        message = f"{kinds}{_TAKEN_OUT}; what is no secret, redact.allow in the settings lets through"
        return [Problem("W-SECRET", message, self._line, self._kinds.total())]


_TAKEN_OUT = " taken out of scenes, memory and training"


def redacted_kinds(message: str) -> dict[str, int]:
    """Kind -> how many, as the message of a W-SECRET problem says."""
    said, mark, _ = message.partition(_TAKEN_OUT)
    return {kind: int(count) for count, _, kind in (part.partition(" ") for part in said.split(", "))} if mark else {}


def _names_in(note: Note, drafts: Sequence[Draft]) -> Iterator[str]:
    """The short texts of a note's scenes: titles (but not the file's own name), headings, targets of links, tags, names of attachments."""
    for draft in drafts:
        if draft.title not in note.path:
            yield draft.title
        yield from draft.headings
        yield from draft.place
        for turn in draft.turns:
            yield from turn.attachments
    for link in note.links:
        yield link.target
    yield from note.tags


def _names(drafts: Sequence[Draft]) -> tuple[list[str], list[Problem]]:
    """An id for each. Two scenes of one note may not share one (a UID that stands twice, a block id typed twice)."""
    seen: Counter[str] = Counter()
    names: list[str] = []
    problems: list[Problem] = []
    for draft in drafts:
        name = text.sha(*draft.key, digits=12)
        seen[name] += 1
        if seen[name] > 1:
            what = f"UID {draft.uid}" if draft.uid else f"^{draft.block}" if draft.block else "this place"
            problems.append(Problem("W-TWICE", f"{what} stands twice in the note; the later one got an id of its own", draft.lines[0]))
            name = text.sha(name, str(seen[name]), digits=12)
        names.append(name)
    return names, problems


def _says_little(said: str, words: int) -> bool:
    """Whether prose is only links, embeds, headings, plugin queries and a word or two: the skeleton of a daily note."""
    if words > 500:  # if they are all links, so long a list of links was written by somebody
        return False
    found = letters = 0
    closing = ""
    for row in said.split("\n"):
        if closing:
            closing = "" if row.strip().startswith(closing) else closing
        elif ("```" in row or "~~~" in row) and (opened := _QUERY.match(row)):
            closing = opened["marks"]
        else:
            own = text.WORD.findall(_LINK.sub(" ", row) if "[" in row or "#" in row or "<" in row or "://" in row else row)
            found += len(own)
            letters += sum(map(len, own))
            if found >= FEW_WORDS or letters >= FEW_LETTERS:
                return False
    return True


# -- what is recalled


def passages(scene: Scene) -> tuple[Passage, ...]:
    """The scene's turns or section in parts of about `PASSAGE_CHARS`, with the lines that each part stands on."""
    context = " › ".join(dict.fromkeys((scene.title, *scene.headings)))
    if scene.at:
        context += "\n" + scene.at[:10]
    if scene.tags:
        context += "\n" + " ".join(f"#{tag}" for tag in scene.tags)
    found: list[Passage] = []
    for turn in scene.turns:
        about = f"{context}\n@{turn.author}" if turn.author and turn.author.lower() not in _NOBODY else context
        for first, last, part in _parts(turn.text):
            lines = (turn.text_line + first, turn.text_line + last) if turn.text_line else turn.lines
            found.append(Passage(scene.id, len(found), lines, part, turn.uid, turn.role, about))
    return tuple(found)


@functools.lru_cache(maxsize=128)  # asked for twice: what a scene is about, and what is recalled of it
def _parts(said: str) -> Sequence[tuple[int, int, str]]:
    """Cut a turn at its lines, best at an empty one; a single longer line is cut at a space. First and last line, from 0, and text."""
    rows = said.split("\n")
    found: list[tuple[int, int, str]] = []
    if len(said) <= PASSAGE_CHARS // 2:
        return [(0, len(rows) - 1, said.strip("\n"))] if said.strip() else found
    start, size = 0, 0
    for index, row in enumerate(rows):
        full = size + len(row) > PASSAGE_CHARS
        paragraph = size > PASSAGE_CHARS // 2 and not row.strip()
        if index > start and (full or paragraph):
            part = "\n".join(rows[start:index])
            if part.strip():
                found.append((start, index - 1, part.strip("\n")))
            start, size = index, 0
        size += len(row) + 1
        if len(row) > 2 * PASSAGE_CHARS:
            found += [(index, index, piece) for piece in _pieces(row)]
            start, size = index + 1, 0
    part = "\n".join(rows[start:])
    if part.strip():
        found.append((start, len(rows) - 1, part.strip("\n")))
    return found


def _pieces(row: str) -> Iterator[str]:
    position = 0
    while position < len(row):
        end = min(len(row), position + PASSAGE_CHARS)
        if end < len(row):
            space = row.rfind(" ", position + PASSAGE_CHARS // 2, end)
            end = space if space > 0 else end
        piece = row[position:end].strip()
        if piece:
            yield piece
        position = end
