"""Note -> Scenes -> Passages.

A scene is a stretch of talk (the owner's words and what was answered to them) or a section of prose (a heading
and what stands under it). Its id says *where* it is and never what it says, so it outlives edits. Pure: knows
nothing about files, databases or models.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from vaultllm import markdown, text
from vaultllm.schema import Block, Conversation, Kind, Lines, Note, Passage, Problem, Scene, Source, Trust, Turn

PARSER = "1"  # raise it when parsing or cutting changes: every note is then parsed again
SCENE_CHARS = 1_600  # a section longer than this is cut at its blocks
PASSAGE_CHARS = 1_000  # a turn longer than this is recalled in parts

_DATE = re.compile(r"(?<!\d)((?:19|20)\d\d)-(\d\d)-(\d\d)(?!\d)")
_CONFLICT = re.compile(r"sync-conflict-\d{8}|conflicted copy|\(pre-[\d.]+ backup\)|\(vaultllm conflict", re.IGNORECASE)
_HAS_WORD = re.compile(r"\w")
_LOOSE_LINK = re.compile(r"!?\[\[[^\]]*\]\]")
# Words that say little about what a text is about; only for the keywords of a scene, never for search.
_COMMON = frozenset(
    """это как что чтобы для или при если так уже есть только еще был была было были быть меня мне его она они оно
    этот эта эти того тоже там тут где когда потом можно нужно надо очень без над под про после перед между через
    чем всё все весь раз два один одна одно этого этом этой свой свою свои себя который которая которые которое
    может будет лучше просто сам самый более менее даже вот тогда сейчас почему какой какая какие
    with that this from have has had were was they them then than when what where which while will would should could there their
    about into over under after before your you are for and the not but can its also only very just more most some such been
    এবং একটি এটি এই সেই তার আমার আমি তুমি আপনি কিন্তু জন্য থেকে করে করা হয় হয়ে হলে আছে ছিল যদি তবে আর বা না কি কী যে যা সব খুব একটা""".split()
)


def cut(
    note: Note, reader: str, conversations: Sequence[Conversation], *, templates: Iterable[str] = ()
) -> tuple[tuple[Scene, ...], tuple[Problem, ...]]:
    """The scenes of a note, in order, chained, and what was noticed on the way.

    `reader` is the chat reader that took the note ("" for an ordinary one). The lines of the scenes of a Markdown
    note do not overlap and cover every non-blank line of its body.
    """
    trust, reason = _trust(note, reader, templates)
    problems: list[Problem] = [problem for conversation in conversations for problem in conversation.problems]
    talks = [conversation for conversation in conversations if conversation.turns]
    if not talks:
        scenes = _prose(note, trust)
    elif note.blocks:
        scenes = [scene for conversation in talks for scene in _talk(note, conversation, trust)]
        scenes = _cover(note, scenes)
    else:  # an export: its conversations share lines of JSON
        scenes = [scene for conversation in talks for scene in _talk(note, conversation, trust)]
    scenes, doubled = _distinct(scenes)
    problems += doubled
    common: dict[str, Any] = {"train": not reason, "reason": reason}
    chained = []
    for index, scene in enumerate(scenes):
        chained.append(
            dataclasses.replace(
                scene,
                prev=scenes[index - 1].id if index else "",
                next=scenes[index + 1].id if index + 1 < len(scenes) else "",
                **common,
            )
        )
    return tuple(chained), tuple(problems)


def _trust(note: Note, reader: str, templates: Iterable[str]) -> tuple[Trust, str]:
    """Whose words these are, and why they may not be trained on ("" when they may)."""
    properties = note.properties
    folders = note.path.split("/")[:-1]
    source = properties.get("source") or properties.get("url") or ""
    if properties.get("vaultllm") is not None:
        return "generated", "written by vaultllm"
    trust: Trust = "own"
    if reader:
        trust = "imported"
    elif isinstance(source, str) and source.startswith(("http://", "https://")):
        trust = "clipped"
    if properties.get("private") in (True, "true", "yes"):
        return trust, "private: true"
    if reader == "nexus-backup" or _CONFLICT.search(note.path):
        return trust, "a copy of another note"
    if reader == "nexus-report":
        return trust, "an import report"
    if set(folders) & set(templates):
        return trust, "a template"
    if any(problem.code == "W-MOJIBAKE" for problem in note.problems):
        return trust, "garbled letters (mojibake)"
    if trust == "clipped":
        return trust, "clipped from the web"
    return trust, ""


# -- dialogues


def _talk(note: Note, conversation: Conversation, trust: Trust) -> Iterator[Scene]:
    """One scene per exchange: what the owner said and all that was answered to it."""
    exchanges: list[list[Turn]] = []
    for turn in _with_loose(note, conversation):
        if not exchanges or (turn.role == "user" and any(t.role == "assistant" for t in exchanges[-1])):
            exchanges.append([])
        exchanges[-1].append(turn)
    for ordinal, turns in enumerate(exchanges):
        first = next((turn.uid for turn in turns if turn.uid), "")
        key: tuple[str, ...]
        if first:
            key = ("uid", first)
        elif conversation.id:
            key = ("conversation", conversation.id, str(ordinal))
        else:
            key = ("talk", text.nfc(note.path), str(ordinal))
        words = "\n".join(turn.text for turn in turns)
        span = (min(turn.lines[0] for turn in turns), max(turn.lines[1] for turn in turns))
        yield _scene(
            key,
            "dialogue",
            conversation.title or note.title,
            (),
            tuple(turns),
            Source(note.path, span, uid=first),
            trust,
            at=next((turn.at for turn in turns if turn.at), conversation.created),
            tags=note.tags,
            links=_links(note, span),
            words=words,
        )


def _with_loose(note: Note, conversation: Conversation) -> list[Turn]:
    """The turns, and between them the owner's own lines as turns of the owner's, unless they are bare links."""
    rows = note.text.split("\n")
    turns = list(conversation.turns)
    for first, last in conversation.loose:
        own = "\n".join(rows[first - 1 : last])
        if _HAS_WORD.search(_LOOSE_LINK.sub("", markdown.visible(own))):
            lead = len(own) - len(own.lstrip("\n"))
            turns.append(Turn("user", markdown.visible(own).strip("\n"), (first, last), first + lead, author="note"))
    return sorted(turns, key=lambda turn: turn.lines[0]) if len(turns) > len(conversation.turns) else turns


def _cover(note: Note, scenes: list[Scene]) -> list[Scene]:
    """Stretch the scenes of a talk over the lines between them (header, rules, bare links): a line belongs to the scene before it."""
    rows = note.text.split("\n")
    filled = [number for number in range(note.body_line, len(rows) + 1) if rows[number - 1].strip()]
    if not filled:
        return scenes
    scenes = sorted(scenes, key=lambda scene: scene.source.lines[0])
    stretched = []
    for index, scene in enumerate(scenes):
        start = filled[0] if index == 0 else scene.source.lines[0]
        end = scenes[index + 1].source.lines[0] - 1 if index + 1 < len(scenes) else filled[-1]
        start, end = min(start, scene.source.lines[0]), max(start, end)
        while end > start and not rows[end - 1].strip():
            end -= 1
        span = (start, end)
        source = dataclasses.replace(scene.source, lines=span)
        stretched.append(dataclasses.replace(scene, source=source, links=_links(note, span)))
    return stretched


# -- prose


def _prose(note: Note, trust: Trust) -> list[Scene]:
    """One scene per section; a bare heading goes with what follows it; a long section is cut at its blocks."""
    rows = note.text.split("\n")
    date = _note_date(note)
    ordinals: Counter[tuple[str, ...]] = Counter()
    scenes: list[Scene] = []
    for headings, blocks in _sections(note, rows):
        span = (blocks[0].lines[0], blocks[-1].lines[1])
        words = markdown.visible("\n".join(rows[span[0] - 1 : span[1]]))
        lead = len(words) - len(words.lstrip("\n"))
        block_id = next((block.block_id for block in blocks if block.block_id), "")
        ordinal = ordinals[headings]
        ordinals[headings] += 1
        path = text.nfc(note.path)
        key = ("block", path, block_id) if block_id else ("section", path, *headings, str(ordinal))
        linked = [markdown.link_heading(heading) for heading in headings]
        scenes.append(
            _scene(
                key,
                _kind(blocks),
                note.title,
                headings,
                (Turn("user", words.strip("\n"), span, span[0] + lead),),
                Source(note.path, span, block=block_id, heading="#".join(filter(None, linked))),
                trust,
                at=date,
                tags=note.tags,
                links=_links(note, span),
                words=words,
            )
        )
    return scenes


def _sections(note: Note, rows: list[str]) -> Iterator[tuple[tuple[str, ...], list[Block]]]:
    """(heading path, blocks) of each section or part of one; blocks that say nothing go with their neighbours."""
    path: list[tuple[int, str]] = []
    pending: list[Block] = []  # bare headings, comments and rules that wait for something to say
    section: list[Block] = []
    sections: list[tuple[tuple[str, ...], list[Block]]] = []

    def size(blocks: list[Block]) -> int:
        return sum(len(block.text) for block in blocks)

    def close() -> None:
        nonlocal section
        if section:
            sections.append((tuple(title for _, title in path), section))
            section = []

    for block in note.blocks:
        if block.kind == "heading":
            if section:
                close()
            while path and path[-1][0] >= block.level:
                path.pop()
            path.append((block.level, block.title))
            pending.append(block)
        elif not _HAS_WORD.search(markdown.visible("\n".join(rows[block.lines[0] - 1 : block.lines[1]]))):
            (section or pending).append(block)
        else:
            if section and size(section) + len(block.text) > SCENE_CHARS:
                close()
            section += [*pending, block]
            pending = []
    close()
    if pending:
        speaks = any(_HAS_WORD.search(markdown.visible(block.text)) for block in pending)
        if speaks:  # headings with nothing under them still say something
            sections.append((tuple(title for _, title in path), pending))
        elif sections:
            sections[-1][1].extend(pending)
    yield from sections


def _kind(blocks: Sequence[Block]) -> Kind:
    """What most of the characters are."""
    sizes: Counter[str] = Counter()
    for block in blocks:
        if block.kind != "heading":
            sizes[block.kind if block.kind in ("list", "table", "code") else "prose"] += len(block.text)
    if not sizes:
        return "prose"
    kind, most = sizes.most_common(1)[0]
    kinds: dict[str, Kind] = {"list": "list", "table": "table", "code": "code"}
    return kinds.get(kind, "prose") if most > 0.6 * sum(sizes.values()) else "prose"


def _note_date(note: Note) -> str:
    """The note's own date: a property, else its file name; ISO or empty."""
    for key in ("date", "created", "create_time", "дата"):
        value = note.properties.get(key)
        found = _DATE.search(value) if isinstance(value, str) else None
        if found:
            return found[0]
    found = _DATE.search(note.path.rsplit("/", 1)[-1])
    return found[0] if found else ""


# -- what both have


def _scene(
    key: Sequence[str],
    kind: Kind,
    title: str,
    headings: tuple[str, ...],
    turns: tuple[Turn, ...],
    source: Source,
    trust: Trust,
    *,
    at: str,
    tags: tuple[str, ...],
    links: tuple[str, ...],
    words: str,
) -> Scene:
    field = keywords(words)
    return Scene(
        id=text.sha(*key, digits=12),
        sha=text.sha(*(part for turn in turns for part in (turn.role, turn.text))),
        kind=kind,
        title=title,
        headings=headings,
        turns=turns,
        source=source,
        language=text.language(words),
        trust=trust,
        at=at,
        tags=tags,
        links=links,
        field=field,
        anchor=anchor(words, field),
    )


def _distinct(scenes: list[Scene]) -> tuple[list[Scene], list[Problem]]:
    """Two scenes of one note may not share an id (a UID that stands twice, a block id typed twice): the later one is renamed."""
    seen: Counter[str] = Counter()
    distinct: list[Scene] = []
    problems: list[Problem] = []
    for scene in scenes:
        seen[scene.id] += 1
        if seen[scene.id] > 1:
            what = f"UID {scene.source.uid}" if scene.source.uid else f"^{scene.source.block}" if scene.source.block else "this place"
            line = scene.source.lines[0]
            problems.append(Problem("W-TWICE", f"{what} stands twice in the note; the later one got an id of its own", line))
            scene = dataclasses.replace(scene, id=text.sha(scene.id, str(seen[scene.id]), digits=12))
        distinct.append(scene)
    return distinct, problems


def _links(note: Note, span: Lines) -> tuple[str, ...]:
    """Targets of the links that stand on these lines, in order, no repeats."""
    targets = (link.target for link in note.links if span[0] <= link.line <= span[1] and link.target)
    return tuple(dict.fromkeys(targets))


def keywords(words: str, most: int = 6) -> tuple[str, ...]:
    """The scene's field: its most repeated long words, each in the form it first takes, joined by stem."""
    counts: Counter[str] = Counter()
    forms: dict[str, str] = {}
    for word in text.words(words[:20_000]):
        if len(word) < 4 or word in _COMMON or word.isdigit():
            continue
        stem = text.stem(word)
        counts[stem] += 1
        forms.setdefault(stem, word)
    ranked = sorted(counts, key=lambda stem: (-counts[stem] * len(stem) ** 0.5, stem))
    return tuple(forms[stem] for stem in ranked[:most])


def anchor(words: str, field: Sequence[str], longest: int = 200) -> str:
    """The sentence that stands for the scene: the one that holds most of its keywords; the first of equals."""
    stems = {text.stem(word) for word in field}
    best, best_score = "", -1.0
    for sentence in text.sentences(words[:20_000]):
        plain = " ".join(re.sub(r"^[#>\-*+\s]+|[*`]+", "", sentence).split())
        if not _HAS_WORD.search(plain) or plain.startswith("|"):
            continue
        found = text.stems(plain)
        score = len(stems & set(found)) / (8 + len(found)) ** 0.5
        if len(found) >= 4 and score > best_score:
            best, best_score = plain, score
        elif not best:
            best = plain
    return best if len(best) <= longest else best[: longest - 1].rsplit(" ", 1)[0] + "…"


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
        for lines, part in _parts(turn):
            found.append(Passage(scene.id, len(found), lines, part, turn.uid, turn.role, context))
    return tuple(found)


def _parts(turn: Turn) -> Iterator[tuple[Lines, str]]:
    """Cut a turn at its lines, best at an empty one; a single longer line is cut at a space."""
    rows = turn.text.split("\n")

    def span(first: int, last: int) -> Lines:
        return (turn.text_line + first, turn.text_line + last) if turn.text_line else turn.lines

    start, size = 0, 0
    for index, row in enumerate(rows):
        full = size + len(row) > PASSAGE_CHARS
        paragraph = size > PASSAGE_CHARS // 2 and not row.strip()
        if index > start and (full or paragraph):
            part = "\n".join(rows[start:index])
            if part.strip():
                yield span(start, index - 1), part.strip("\n")
            start, size = index, 0
        size += len(row) + 1
        if len(row) > 2 * PASSAGE_CHARS:
            for piece in _pieces(row):
                yield span(index, index), piece
            start, size = index + 1, 0
    part = "\n".join(rows[start:])
    if part.strip():
        yield span(start, len(rows) - 1), part.strip("\n")


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
