"""Dialogues written by the Obsidian plugin NEXUS AI Chat Importer, every version and locale, whole notes or parts cut out of them.

A line scanner: a head (`>[!nexus_user] **User** - TIME`, the README's two-line form, or the old `### User, on TIME;`) opens a
message; its `<!-- UID: … -->` closes it. A head counts at quote depth 1 only, outside fences and only where a callout can begin,
so a dialogue quoted inside a message stays text. The body loses as many quote marks as its head's kind has; attachments,
artifacts and the plugin's own phrases are replaced by empty lines, so that line i of `text` is line `text_line + i` of the file.

Files of the plugin that are no conversations have detectors of their own and yield no conversation:
`backup_why` (an exact copy of another note: to be left out), `artifact_why` and `report_why` (to be read as imported prose).

Knows nothing about vaults, scenes or other formats. Does not know which answer of several the user went on with: the plugin
writes all branches in the order of time, and they are kept so. Does not repair what the plugin did to the text (lost indentation).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from vaultllm.chats.times import Clock, from_iso, is_unknown, make_clock, read_time
from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Lines, Note, Problem, Role, Turn

_QUOTE = re.compile(r" {0,3}>[ \t]?")
_CALL = re.compile(r" {0,3}>(?P<space>[ \t]?)\[!nexus_(?P<who>user|agent|assistant)\][+-]?[ \t]*(?P<title>.*)$", re.IGNORECASE)
_NAMED = re.compile(r"\*\*(?P<author>[^*\n]+?)\*\*[ \t]*(?:[-–—][ \t]*(?P<at>.*))?$")
_OLD = re.compile(r"^#{3,4}[ \t]+(?P<author>User|ChatGPT|Assistant|Unknown), on (?P<at>.*\d.*)$", re.MULTILINE)
_UID = re.compile(r"[ \t]*<!--[ \t]*UID:(?P<uid>.*)-->[ \t]*$")
_FENCE = re.compile(r" {0,3}(?P<marks>`{3,}|~{3,})(?P<info>.*)$")
_RULE = re.compile(r" {0,3}---+[ \t]*$")
_FOREIGN = re.compile(r" {0,3}>[ \t]?\[!(?!nexus_)[^\]]+\]", re.IGNORECASE)
_HEADER = re.compile(r"# (?:Title|Topic):(?P<title>.*)|Created:(?P<created>.*)|Last Updated:|Chat URL:")
_RELATED = re.compile(r"## Related Queries[ \t]*$")
_RESTORED = re.compile(r" {0,3}>[ \t]?\[!info\][+-]?[ \t]*Restored Artifacts", re.IGNORECASE)
_ATTACHED = re.compile(
    r"(?:\[!nexus_(?:attachment|artifact|prompt|canvas)\][+-]?|\[!note\][+-]?[ \t]*📎|(?=\*\*📎[ \t]*Attachment:))[ \t]*(?P<rest>.*)$",
    re.IGNORECASE,
)
_NESTED = re.compile(r" {0,3}>[ \t]?(?P<inner>.*)$")
_OLD_NAME = re.compile(r"\*\*(?:📎[ \t]*)?Attachment:\*\*[ \t]*(?P<name>.+?)(?:[ \t]+\([^()]*\))?(?:[ \t]+-[ \t]+[\d.,]+[ \t]*\w+)?[ \t]*$")
_TITLE_NAME = re.compile(r"\*\*(?P<name>[^*]+)\*\*")
_BOX = re.compile(r"[ \t]*<div class=\"nexus-(?:attachment|artifact)-box\"", re.IGNORECASE)
_PHRASE = re.compile(
    r"[ \t]*(?:\[No content(?: found)?\]|\(Empty message\)|DALL-E Generated Image|Image générée par DALL-E"
    r"|DALL-E Image Generation(?: \((?:Failed|Interrupted)\))?|\*\(visit original conversation to download\)\*"
    r"|⚠️ (?:Not included in export|File not available in archive).*)[ \t]*$"
)
_BACKUP_ID = re.compile(r"-pre-[\d.]+-backup$")
_BACKUP_PATH = re.compile(r"\(pre-[\d.]+ backup\)\.md$")
_REPORT = re.compile(r"# Nexus AI Chat Importer (?:Summary|Report)\b")
_REPORT_KEYS = {"importdate", "zipFile", "totalSuccessfulImports"}

Fence = tuple[str, int]  # its character, its length


@dataclass(frozen=True, slots=True)
class _Head:
    """The head of a message. Rows are indexes of lines, from 0."""

    row: int
    body: int  # row at which its text begins
    depth: int  # quote marks before its text
    role: Role
    author: str
    model: str
    at_raw: str
    said: str  # text that stands on the head's own line, where a name was expected


def backup_why(note: Note, settings: ScanSettings) -> str:
    """Why the note is a copy that the plugin made before it upgraded a conversation; empty when it is none."""
    by_id = _BACKUP_ID.search(str(note.properties.get("conversation_id", "")))
    by_path = _BACKUP_PATH.search(note.path) and "nexus" in note.properties
    return "a backup made by the nexus plugin" if by_id or by_path else ""


def artifact_why(note: Note, settings: ScanSettings) -> str:
    """Why the note is a document that an assistant made in a conversation; empty when it is none."""
    found = "artifact_id" in note.properties and ("nexus" in note.properties or "version_number" in note.properties)
    return f"nexus artifact {note.properties['artifact_id']}" if found else ""


def report_why(note: Note, settings: ScanSettings) -> str:
    """Why the note is a report of an import; empty when it is none."""
    if "nexus" in note.properties:
        return ""
    first = next((line for line in _lines(note)[note.body_line - 1 :] if line.strip()), "")
    return "a nexus import report" if len(_REPORT_KEYS & note.properties.keys()) >= 2 or _REPORT.match(first) else ""


def read_none(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The conversations of a backup, an artifact or a report: none."""
    return []


def detect(note: Note, settings: ScanSettings) -> str:
    """`3 nexus heads`; empty when the note is no nexus dialogue (heads in fences or quotes don't count)."""
    text = note.text
    callouts = "[!nexus_" in text or "[!nexus_" in text.lower()
    if not callouts and not _OLD.search(text):
        return ""
    heads, uids = _scan(_lines(note), note.body_line - 1)
    # An old head is an ordinary heading; only together with the plugin's other marks it is no accident.
    if not heads or not (callouts or uids or "nexus" in note.properties or len(heads) >= 2):
        return ""
    return f"{len(heads)} nexus head{'s' * (len(heads) > 1)}"


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of a nexus note. `timezone` is used where the note itself does not give its zone."""
    lines = _lines(note)
    first = note.body_line - 1
    heads, uids = _scan(lines, first)
    top = heads[0].row if heads else len(lines)
    header = [match for line in lines[first:top] if (match := _HEADER.match(line))]
    title = next((match["title"].strip() for match in header if match["title"]), "") or note.title
    created_raw = next((match["created"] for match in header if match["created"]), "")
    created_raw = created_raw.partition("Last Updated:")[0].strip()  # Prettier joins the two lines
    create_time = str(note.properties.get("create_time") or "")
    clock = make_clock([*(head.at_raw for head in heads), created_raw, create_time], created_raw, create_time, timezone)

    turns: list[Turn] = []
    problems: list[Problem] = []
    taken: list[Lines] = []  # rows of messages, the end excluded
    models = note.properties.get("models")
    only_model = str(models[0]) if isinstance(models, (list, tuple)) and len(models) == 1 else ""
    deep_tail = _version(note) <= (1, 2, 0)
    for head, following in zip(heads, [*(head.row for head in heads[1:]), len(lines)], strict=True):
        turn, end = _message(lines, head, following, uids, clock, only_model, deep_tail)
        taken.append((head.row, end))
        if turn.text:
            turns.append(turn)
        else:
            problems.append(Problem("W-EMPTY", "this message has no text (an attachment or an image only); it is left out", head.row + 1))
    problems += _doubts(turns)
    last = max((row for row in range(first, len(lines)) if lines[row].strip()), default=first)
    conversation = Conversation(
        id=str(note.properties.get("conversation_id") or ""),
        title=title,
        provider=str(note.properties.get("provider") or ""),
        created=from_iso(create_time) or read_time(created_raw, clock) or read_time(create_time, clock),
        turns=tuple(turns),
        lines=(note.body_line, max(note.body_line, last + 1)),
        loose=tuple(_loose(lines, first, taken, uids)),
        problems=tuple(problems),
    )
    return [conversation]


def _lines(note: Note) -> list[str]:
    return note.text.split("\n")


def _version(note: Note) -> tuple[int, ...]:
    """The plugin's version as the note names it; higher than any when it doesn't."""
    numbers = re.findall(r"\d+", str(note.properties.get("plugin_version") or ""))
    return tuple(min(int(number[:6]), 999) for number in numbers) or (999,)


def _doubts(turns: Sequence[Turn]) -> Iterator[Problem]:
    """What is odd about the messages, although all of their text was kept."""
    seen: Counter[str] = Counter()
    for turn in turns:
        seen[turn.uid] += 1
        if turn.uid and seen[turn.uid] == 2:
            yield Problem("W-UID", f"message {turn.uid} stands here for the second time; delete one of the two", turn.lines[0])
    unread = [turn for turn in turns if not turn.at and not is_unknown(turn.at_raw)]
    if unread:
        message = f"{len(unread)} of {len(turns)} times cannot be read (the first: {unread[0].at_raw!r}); they stay unknown"
        yield Problem("W-TIME", message, unread[0].lines[0])


# -- heads


def _uid(line: str) -> str:
    """The UID of a UID line; empty when the line is none."""
    found = _UID.match(line)
    uid = found["uid"].strip() if found else ""
    return "" if "-->" in uid else uid


def _scan(lines: Sequence[str], first: int) -> tuple[list[_Head], dict[int, str]]:
    """The heads of all messages, in order, and the UIDs by row; none from inside a fence or a deeper quote."""
    marks = [row for row in range(first, len(lines)) if _uid(lines[row]) or _OLD.match(lines[row]) or _CALL.match(lines[row])]
    heads: list[_Head] = []
    uids: dict[int, str] = {}
    hopeless: dict[tuple[str, int], int] = {}  # (fence character, limit) -> length for which no end was found
    quoted_fence: Fence | None = None
    is_open = False  # a message whose UID has not come yet
    row, mark = first, 0
    while row < len(lines):
        line = lines[row]
        if not _QUOTE.match(line):
            quoted_fence = None
        if head := None if quoted_fence else _head(lines, row, first):
            heads.append(head)
            is_open, row = True, head.body
            continue
        if (inner := _NESTED.match(line)) is not None:
            quoted_fence = _fence_after(quoted_fence, inner["inner"])
        elif uid := _uid(line):
            uids[row] = uid
            is_open = False
        elif fence := _fence_after(None, line):
            # Between messages a fence is the owner's. Inside one it is content that lost its quote marks, perhaps half
            # of a pair: when the message's UID comes next, the fence only counts if it ends before.
            while mark < len(marks) and marks[mark] <= row:
                mark += 1
            cut = is_open and mark < len(marks) and _uid(lines[marks[mark]])
            row = _fence_end(lines, row, fence, marks[mark] if cut else len(lines), hopeless)
        row += 1
    return heads, uids


def _fence_after(fence: Fence | None, line: str) -> Fence | None:
    """The fence that is open after a line, given the one before it."""
    mark = _FENCE.match(line)
    if mark is None:
        return fence
    char, length = mark["marks"][0], len(mark["marks"])
    if fence is None:
        return None if char == "`" and "`" in mark["info"] else (char, length)
    return None if char == fence[0] and length >= fence[1] and not mark["info"].strip() else fence


def _fence_end(lines: Sequence[str], row: int, fence: Fence, limit: int, hopeless: dict[tuple[str, int], int]) -> int:
    """The row of the line that closes a fence before `limit`; `row` itself when nothing does."""
    key = (fence[0], limit)
    if hopeless.get(key, fence[1] + 1) <= fence[1]:
        return row
    for end in range(row + 1, limit):
        if _fence_after(fence, lines[end]) is None:
            return end
    hopeless[key] = fence[1]
    return row


def _head(lines: Sequence[str], row: int, first: int) -> _Head | None:
    """The head that begins on a row, if one does."""
    line = lines[row]
    if old := _OLD.match(line):
        user, at = old["author"] == "User", old["at"].strip().removesuffix(";")
        return _Head(row, row + 1, 1 if user else 2, "user" if user else "assistant", old["author"], "", at, "")
    call = _CALL.match(line)
    if call is None:
        return None
    # A callout begins where its quote begins. The plugin writes heads without a space and body lines with one, so a
    # head without a space counts even right below a body that lost its UID.
    if call["space"] and row > first and _QUOTE.match(lines[row - 1]):
        return None
    role: Role = "user" if call["who"].lower() == "user" else "assistant"
    title, body = call["title"].strip(), row + 1
    if not title and body < len(lines) and (second := _NESTED.match(lines[body])):  # the README's shape
        title, body = (second["inner"].strip(), body + 1) if _NAMED.match(second["inner"].strip()) else ("", body)
    named = _NAMED.match(title)
    if named is None:
        return _Head(row, body, 1, role, "", "", "", title)
    author, _, model = named["author"].partition("·")
    return _Head(row, body, 1, role, author.strip(), model.strip(), (named["at"] or "").strip(), "")


# -- messages


def _message(
    lines: Sequence[str], head: _Head, following: int, uids: Mapping[int, str], clock: Clock, only_model: str, deep_tail: bool
) -> tuple[Turn, int]:
    """The message of a head that reaches at most to row `following`, and the row after it (its `---` included)."""
    uid_row = next((row for row in range(head.body, following) if row in uids), None)
    end = _open_end(lines, head.body, following) if uid_row is None else uid_row
    text, attachments = _text(lines, head, end, deep_tail)
    rows = [row for row in range(len(text)) if text[row].strip()]
    last = end if uid_row is not None else max((row for row in range(head.body, end) if lines[row].strip()), default=head.body - 1)
    after = next((row for row in range(last + 1, following) if lines[row].strip()), None)
    if after is not None and _RULE.match(lines[after]):
        last = after
    turn = Turn(
        role=head.role,
        text="\n".join(text[rows[0] : rows[-1] + 1]) if rows else "",
        lines=(head.row + 1, last + 1),
        text_line=(head.row if head.said else head.body) + rows[0] + 1 if rows else 0,
        author=head.author,
        model=(head.model or only_model) if head.role == "assistant" else "",
        at=read_time(head.at_raw, clock),
        at_raw=head.at_raw,
        uid="" if uid_row is None else uids[uid_row],
        attachments=tuple(dict.fromkeys(attachments)),
    )
    return turn, last + 1


def _open_end(lines: Sequence[str], start: int, limit: int) -> int:
    """Where a message without a UID ends: at text that is not quoted, or at another callout below an empty line."""
    for row in range(start, limit):
        line = lines[row]
        if line.strip() and (not _QUOTE.match(line) or (_FOREIGN.match(line) and not lines[row - 1].strip())):
            return row
    return limit


def _unquote(line: str, depth: int) -> str:
    for _ in range(depth):
        line = _QUOTE.sub("", line, count=1) if _QUOTE.match(line) else line
    return line


def _text(lines: Sequence[str], head: _Head, end: int, deep_tail: bool) -> tuple[list[str], list[str]]:
    """A message's text line by line, what is not said in it left empty, and the names of its attachments."""
    text = [head.said, *[""] * (head.body - head.row - 1)] if head.said else []
    names: list[str] = []
    fence: Fence | None = None
    state = ""  # "nested": in an attachment's quote; "box": in its HTML; "rest": in one after which only others follow
    for row in range(head.body, end):
        raw = lines[row]
        said = ""
        if not raw.strip() or not _QUOTE.match(raw):
            fence = None  # a quote's end closes its fences
            if raw.strip() and not state:  # unquoted below an attachment, it is the attachment's content
                said = raw
        else:
            # What an upgrade from 1.1 left unconverted: native 1.2.0 never writes two marks without a space.
            stale = deep_tail and head.depth == 1 and raw.lstrip(" ").startswith(">>")
            inner = _unquote(raw, head.depth + stale)
            if state == "rest" or fence is None:
                state, name = _attachment(inner, state, starts=not lines[row - 1].strip() or raw.lstrip(" ").startswith(">["))
                names += [name] if name else []
            if not state:
                phrase = fence is None and _PHRASE.match(inner)
                fence = _fence_after(fence, inner)
                said = "" if phrase else inner
            elif state == "box" and "</div>" in inner:
                state = ""
        text.append(said)
    return text, names


def _attachment(inner: str, state: str, starts: bool) -> tuple[str, str]:
    """Whether an unquoted line belongs to an attachment (see `_text`), and the attachment's name if it begins here.

    `starts`: the line stands where a callout of its own can begin.
    """
    own = _ATTACHED.match(inner)
    if own and (starts or state == "rest" or inner.startswith("**📎")):
        return "rest", _name(own["rest"])
    nested = _NESTED.match(inner)
    if nested and state != "rest":
        below = _ATTACHED.match(nested["inner"])
        return ("nested", _name(below["rest"])) if below else ("nested" if state == "nested" else "", "")
    if state == "rest":
        return "rest", ""
    if _BOX.match(inner) or (state == "box" and inner.strip()):
        return "box", ""
    return "", ""


def _name(rest: str) -> str:
    found = _OLD_NAME.match(rest[:500]) or _TITLE_NAME.match(rest[:500])
    return found["name"].strip() if found else ""


# -- what lies between the messages


def _loose(lines: Sequence[str], first: int, taken: Sequence[Lines], uids: Mapping[int, str]) -> Iterator[Lines]:
    """Line ranges outside the messages that somebody wrote: without header, related queries, rules and stray UIDs."""
    starts = [first, *(end for _, end in taken)]
    ends = [*(start for start, _ in taken), len(lines)]
    for region, (start, end) in enumerate(zip(starts, ends, strict=True)):
        own: list[int] = []
        related = restored = False
        for row in range(start, end):
            line = lines[row]
            related = bool(_RELATED.match(line)) or (related and (not line.strip() or line.startswith("- ")))
            restored = bool(_RESTORED.match(line)) or (restored and bool(_QUOTE.match(line)))
            plugin = related or restored or row in uids or (region == 0 and bool(_HEADER.match(line)))
            if plugin:
                yield from _range(lines, own)
                own = []
            elif line.strip():
                own.append(row)
        yield from _range(lines, own)


def _range(lines: Sequence[str], rows: list[int]) -> Iterator[Lines]:
    """The line range of rows of text, rules at its ends left out."""
    while rows and _RULE.match(lines[rows[-1]]):
        rows = rows[:-1]
    while rows and _RULE.match(lines[rows[0]]):
        rows = rows[1:]
    if rows:
        yield rows[0] + 1, rows[-1] + 1
