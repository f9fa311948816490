"""Dialogues written by the Obsidian plugin NEXUS AI Chat Importer, every version and locale, whole notes or parts cut out of them.

A line scanner: a head (`>[!nexus_user] **User** - TIME`, the README's two-line form, or the old `### User, on TIME;`) opens a
message; its `<!-- UID: … -->` closes it. A head counts at quote depth 1 only, outside fences and comments and only where a
callout can begin, so a dialogue quoted inside a message stays text. Each head says by itself how its body is quoted: one note
may hold messages of several versions. Attachments and the plugin's own phrases are replaced by empty lines, so that line i of
`text` is line `text_line + i` of the file; what an artifact or canvas holds was said by the assistant and stays text.

Files of the plugin that are no conversations have detectors of their own and yield no conversation:
`backup_why` (an exact copy of another note: to be left out), `artifact_why` and `report_why` (to be read as imported prose).

Knows nothing about vaults, scenes or other formats. Does not know which of several branches the owner went on with: neighbours
of one role are marked as variants, the last one stands (`flattened.py`). Does not repair what the plugin did to the text: it
says which messages are damaged (`Turn.lossy`), as far as ChatGPT's talks of the versions from 1.0.8 on are concerned.
"""

from __future__ import annotations

import functools
import re
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from vaultllm.chats.flattened import holds_code, mark_variants, strip_citations, survived, untie
from vaultllm.chats.messages import first_filled, last_filled, unquoted
from vaultllm.chats.nexus_bodies import Body, open_end, read_body
from vaultllm.chats.nexus_heads import OLD, OWN_MARK, OWN_OPEN, Head, Uid, scan
from vaultllm.chats.times import Clock, from_iso, is_unknown, make_clock, read_time
from vaultllm.schema import Conversation, Lines, Note, Problem, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_SOURCES = re.compile(r"> \[!quote\]- ")
_RULE = re.compile(r" {0,3}---+[ \t]*$")
_HEADER = re.compile(r"#[ \t]+(?:Title|Topic):(?P<title>.*)|Created:(?P<created>.*)|Last Updated:|Chat URL:(?P<url>.*)")
_URL = re.compile(r"[ \t]*https?://(?:www\.)?(?P<host>[a-z.]+)/(?P<kind>[a-z]+)/(?P<id>[\w-]+)", re.IGNORECASE)
_RESTORED = re.compile(r" {0,3}>[ \t]?\[!info\][+-]?[ \t]*Restored Artifacts", re.IGNORECASE)
_BACKUP_ID = re.compile(r"-pre-[\d.]+-backup$")
_BACKUP_PATH = re.compile(r"\(pre-[\d.]+ backup\)\.md$")
_REPORT = re.compile(r"# Nexus AI Chat Importer (?:Summary|Report)\b")
_REPORT_KEYS = {"importdate", "zipFile", "totalSuccessfulImports"}
_HOSTS = {"chatgpt.com": "chatgpt", "chat.openai.com": "chatgpt", "claude.ai": "claude", "chat.mistral.ai": "lechat"}
_HOSTS |= {"perplexity.ai": "perplexity", "grok.com": "grok"}
_WITH_ID = {("chatgpt.com", "c"), ("chat.openai.com", "c"), ("claude.ai", "chat"), ("grok.com", "c")}  # whose URL ends with the id


def backup_why(note: Note, settings: ScanSettings) -> str:
    """Why the note is a copy that the plugin made before it upgraded a conversation; empty when it is none."""
    named = str(note.properties.get("conversation_id", ""))
    by_id = "-backup" in named and _BACKUP_ID.search(named)
    by_path = "backup)" in note.path and _BACKUP_PATH.search(note.path) and "nexus" in note.properties
    return "a backup made by the nexus plugin" if by_id or by_path else ""


def artifact_why(note: Note, settings: ScanSettings) -> str:
    """Why the note is a document that an assistant made in a conversation; empty when it is none."""
    found = "artifact_id" in note.properties and ("nexus" in note.properties or "version_number" in note.properties)
    return f"nexus artifact {note.properties['artifact_id']}" if found else ""


def report_why(note: Note, settings: ScanSettings) -> str:
    """Why the note is a report of an import; empty when it is none."""
    if "nexus" in note.properties:
        return ""
    found = len(_REPORT_KEYS & note.properties.keys()) >= 2
    if not found and "# Nexus AI Chat Importer" in note.text:
        first = next((line for line in note.text.split("\n")[note.body_line - 1 :] if line.strip()), "")
        found = _REPORT.match(first) is not None
    return "a nexus import report" if found else ""


def read_none(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The conversations of a backup, an artifact or a report: none."""
    return []


def detect(note: Note, settings: ScanSettings) -> str:
    """`3 nexus heads`; empty when the note is no nexus dialogue (heads in fences, comments or quotes don't count)."""
    text = note.text
    callouts = "[!nexus_" in text or any(callout[:6].lower() == "nexus_" for callout in text.split("[!")[1:])
    if not callouts and not (", on " in text and OLD.search(text)):
        return ""
    lines, heads, uids = _scanned(note.text, note.body_line - 1)
    if _is_asked(note, lines, heads):
        return ""
    # An old head is an ordinary heading; only together with the plugin's other marks it is no accident.
    if not heads or not (callouts or uids or "nexus" in note.properties or len(heads) >= 2):
        return ""
    return f"{len(heads)} nexus head{'s' * (len(heads) > 1)}"


def asked_why(note: Note, settings: ScanSettings) -> str:
    """`2 questions in a note`: the owner asks in `[!ask]` callouts, and all else but the answers is prose; empty when nobody does."""
    if "<!-- vaultllm " not in note.text and not any(callout[:4].lower() == "ask]" for callout in note.text.split("[!")[1:]):
        return ""
    lines, heads, _ = _scanned(note.text, note.body_line - 1)
    asked = sum(head.shape == "ask" for head in heads)
    return f"{asked} question{'s' * (asked != 1)} in a note" if _is_asked(note, lines, heads) else ""


def _is_asked(note: Note, lines: Sequence[str], heads: Sequence[Head]) -> bool:
    """Whether nobody but the owner asks, by `[!ask]`, and nobody but vaultllm, or who is taken for it, answers."""
    asked = any(head.shape == "ask" or _own(lines[head.body : head.body + 1]) for head in heads)
    return asked and "nexus" not in note.properties and all(head.shape == "ask" or _answers(head) for head in heads)


def without_answers(note: Note) -> Note:
    """The note with vaultllm's own answers blank, whole or not: in no other format of a talk they are anybody's words."""
    if "<!-- vaultllm " not in note.text:
        return note
    lines, heads, uids = _scanned(note.text, note.body_line - 1)
    rows = list(lines)
    for head in heads:
        row = head.row
        if _own(lines[head.body : head.body + 1]):
            while row < len(rows) and (row in uids or unquoted(lines[row]) is not None):
                rows[row] = ""
                row += 1
    return replace(note, text="\n".join(rows))


def _answers(head: Head) -> bool:
    return head.role == "assistant" and head.shape == "callout"


def _own(rows: Sequence[str]) -> str:
    """The id under which vaultllm wrote a message whose first row this is; empty when it did not."""
    mark = OWN_MARK.match((unquoted(rows[0]) or "") if rows and "<!--" in rows[0] else "")
    return mark["id"] if mark else ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of a nexus note. `timezone` is used where the note itself does not give its zone."""
    first = note.body_line - 1
    lines, heads, uids = _scanned(note.text, first)
    _scanned.cache_clear()
    top = heads[0].row if heads else len(lines)
    header = [match for line in lines[first:top] if ":" in line and (match := _HEADER.match(line))]
    created_raw = next((match["created"] for match in header if match["created"]), "")
    created_raw = created_raw.partition("Last Updated:")[0].strip()  # Prettier joins the two lines
    create_time = str(note.properties.get("create_time") or "")
    clock = make_clock([*(head.at_raw for head in heads), created_raw, create_time], created_raw, create_time, timezone)
    url = next((parts for match in header if match["url"] and (parts := _URL.match(match["url"]))), None)
    provider = str(note.properties.get("provider") or "") or (_HOSTS.get(url["host"].lower(), "") if url else "")
    version = _version(note)
    # A Perplexity or Gemini talk without front matter is known by its ids.
    flat = provider.lower() == "chatgpt" or (not provider and not any(uid.endswith(("-user", "-assistant")) for uid, _ in uids.values()))
    cleaned = _cleaned(heads, version) if flat else [False] * len(heads)

    found: list[Turn | None] = []
    bodies: list[Body] = []
    problems: list[Problem] = []
    taken: list[Lines] = []  # rows of messages, the end excluded
    models = note.properties.get("models")
    only_model = str(models[0]) if isinstance(models, (list, tuple)) and len(models) == 1 else ""
    uid_rows = list(uids)
    for head, following, is_cleaned in zip(heads, [*(head.row for head in heads[1:]), len(lines)], cleaned, strict=True):
        closing = bisect_left(uid_rows, head.body)
        uid_row = uid_rows[closing] if closing < len(uid_rows) and uid_rows[closing] < following else None
        turn, end, body = _message(lines, head, following, uid_row, uids, clock, only_model, version, is_cleaned)
        taken.append((head.row, end))
        bodies.append(body)
        found.append(turn if turn.text and not body.unfinished else None)
        if body.unfinished:
            message = "this answer of vaultllm's was stopped before its end, so it is no part of the talk; delete it, or ask again below"
            problems.append(Problem("W-UNFINISHED", message, head.row + 1))
        elif not turn.text:
            problems.append(Problem("W-EMPTY", "this message has no text (an attachment or an image only); it is left out", head.row + 1))
    ordered = untie(found)
    turns = [turn for turn in (mark_variants(ordered) if flat else ordered) if turn is not None]
    loose, restored = _prose(lines, first, taken) if _is_asked(note, lines, heads) else _between(lines, first, taken, uids)
    problems += [*_doubts(turns), *_besides(heads, bodies, restored)]
    last = max(first, last_filled(lines, first, len(lines)))
    by_url = url["id"] if url and (url["host"].lower(), url["kind"]) in _WITH_ID else ""
    conversation = Conversation(
        id=str(note.properties.get("conversation_id") or "") or by_url,
        title=_title(note, header),
        provider=provider,
        created=from_iso(create_time) or read_time(created_raw, clock) or read_time(create_time, clock),
        turns=tuple(turns),
        lines=(note.body_line, max(note.body_line, last + 1)),
        loose=tuple(loose),
        problems=tuple(problems),
        seen=len(heads),
    )
    return [conversation]


@functools.lru_cache(maxsize=1)
def _scanned(text: str, first: int) -> tuple[list[str], list[Head], dict[int, Uid]]:
    """Lines, heads and UIDs: looked for once, though `detect` and `read` both need them."""
    lines = text.split("\n")
    return lines, *scan(lines, first)


def _title(note: Note, header: Sequence[re.Match[str]]) -> str:
    """The title in the note's header: the plugin mangles it in file names and aliases."""
    written = next((match["title"].strip() for match in header if match["title"]), "")
    if written:
        return written
    # An empty `# Title:` is the note's first heading.
    return note.path.rsplit("/", 1)[-1].removesuffix(".md") if note.title.strip() in ("Title:", "Topic:") else note.title


def _version(note: Note) -> tuple[int, ...]:
    """The plugin's version as the note names it; empty when it doesn't."""
    numbers = re.findall(r"\d+", str(note.properties.get("plugin_version") or "")[:40])
    return tuple(min(int(number[:6]), 999) for number in numbers)


def _cleaned(heads: Sequence[Head], version: tuple[int, ...]) -> list[bool]:
    """Which messages of a ChatGPT talk the importer's patterns ran over: those that 1.0.8 or a later version wrote.

    `#### ChatGPT` and `#### Unknown` are older, and so is a question that one of them answers, even where an upgrade has
    made a callout of it. The README's shape is nobody's but where the note names a version.
    """
    if version and version < (1, 0, 8):
        return [False] * len(heads)
    named = ("User", "Assistant")  # what these versions write; without a version only that shows whose callout it is
    own = [
        head.author == "Assistant"
        if head.shape == "old"
        else head.shape != "ask" and (bool(version) or (head.shape == "callout" and head.author in named))
        for head in heads
    ]
    below: list[bool | None] = []  # whether the next answer is of such a version; None: there is none
    for head, modern in zip(reversed(heads), reversed(own), strict=True):
        below.append(modern if head.role == "assistant" else below[-1] if below else None)
    above: bool | None = None
    cleaned: list[bool] = []
    for head, modern, answer in zip(heads, own, reversed(below), strict=True):
        if head.role == "assistant":
            above = modern
            cleaned.append(modern)
        elif head.shape == "old":  # its own head looks the same in all versions
            cleaned.append(bool(above if answer is None else answer))
        else:
            cleaned.append(modern and answer is not False)
    return cleaned


def _doubts(turns: Sequence[Turn]) -> Iterator[Problem]:
    """What is odd about the messages, although all of their text was kept."""
    seen: dict[str, int] = {}
    for turn in turns:
        seen[turn.uid] = times = seen.get(turn.uid, 0) + 1
        if times == 2 and turn.uid:
            yield Problem("W-UID", f"message {turn.uid} stands here for the second time; delete one of the two", turn.lines[0])
    unread = [turn for turn in turns if not turn.at and not is_unknown(turn.at_raw)]
    if unread:
        message = f"{len(unread)} of {len(turns)} times cannot be read (the first: {unread[0].at_raw[:80]!r}); they stay unknown"
        yield Problem("W-TIME", message, unread[0].lines[0], len(unread))
    damaged = [turn for turn in turns if turn.lossy and holds_code(turn.text)]
    if damaged:
        message = (
            f"the importer collapsed white space and cut words in this talk; {len(damaged)} of its messages hold code, which is not "
            "learnt; mend them with: vaultllm repair --from conversations.json"
        )
        yield Problem("W-LOSSY", message, damaged[0].lines[0], len(damaged))


def _besides(heads: Sequence[Head], bodies: Sequence[Body], restored: Sequence[int]) -> Iterator[Problem]:
    """What stands in the messages and is not said in them: one problem for each kind, with how often and where first."""
    strange = [head for head in heads if head.strange]
    if strange:
        message = f"the plugin writes no role {strange[0].strange!r}; kept as a message of the system, which is not learnt as an answer"
        yield Problem("W-ROLE", message, strange[0].row + 1, len(strange))
    rows = [row for body in bodies for row in body.phrases]
    if rows:
        message = "the plugin's own phrases (a missing image, a file to download) are nobody's words; they are left out of the messages"
        yield Problem("W-BOILERPLATE", message, rows[0] + 1, len(rows))
    rows = [row for body in bodies for row in body.attached]
    if rows:
        message = "lines of attached files stand in the messages; nobody said them, they are left out; make notes of them to keep them"
        yield Problem("W-ATTACHED", message, rows[0] + 1, len(rows))
    moved = [(head.row, path) for head, body in zip(heads, bodies, strict=True) for path in body.moved]
    if moved:
        message = f"the plugin moved long lines into files beside the note, which are not read (the first: {moved[0][1][:200]})"
        yield Problem("W-MOVED", message + "; paste them back to keep them", moved[0][0] + 1, len(moved))
    if restored:
        message = "the plugin lists artifacts at the note's end and does not say who made them when; their own notes are read instead"
        yield Problem("W-RESTORED", message, restored[0] + 1, len(restored))


def _message(
    lines: Sequence[str],
    head: Head,
    following: int,
    uid_row: int | None,
    uids: Mapping[int, Uid],
    clock: Clock,
    only_model: str,
    version: tuple[int, ...],
    is_cleaned: bool,
) -> tuple[Turn, int, Body]:
    """The message of a head that reaches at most to row `following`, and the row after it (its `---` included).

    `uid_row` is the row of its UID; None when it has none.
    """
    if uid_row is None or head.shape == "ask":  # the owner writes no UID; one further down is that of an answer that lost its head
        uid_row, end = None, open_end(lines, head.body, following, head.shape == "ask" and bool(head.said))
    else:
        end = uid_row
    body = read_body(lines, head, end, version)
    if head.role == "assistant" and (own := _own(lines[head.body : end])):
        body.own, body.unfinished = own, uid_row is None
        body.rows = _said(body.rows)
    damaged = is_cleaned and not body.own and not survived(body.rows)
    text = strip_citations(body.rows, head.role == "assistant") if damaged else body.rows
    top = first_filled(text, 0, len(text))
    last = last_filled(lines, head.body, end)
    uid, behind = ("", "") if uid_row is None else uids[uid_row]
    if uid_row is not None and not behind:  # else somebody wrote behind it: that line is loose
        last = uid_row
    after = first_filled(lines, last + 1, following)
    if after < following and _RULE.match(lines[after]):
        last = after
    turn = Turn(
        role=head.role,
        text="\n".join(text[top : last_filled(text, top, len(text)) + 1]),
        lines=(head.row + 1, last + 1),
        text_line=head.body - bool(head.said) + top + 1 if top < len(text) else 0,
        author=head.author,
        model=(head.model or only_model) if head.role == "assistant" else "",
        at=read_time(head.at_raw, clock),
        at_raw=head.at_raw,
        uid=uid or (f"{body.own}-agent" if body.own else ""),
        attachments=tuple(dict.fromkeys(body.names)),
        lossy=damaged,
    )
    return turn, last + 1, body


def _said(rows: Sequence[str]) -> list[str]:
    """What an answer of vaultllm's says: without its mark and without the sources at its end, which are quotations."""
    kept = ["" if OWN_MARK.match(row) else row for row in rows]
    sources = next((at for at, row in enumerate(kept) if _SOURCES.match(row)), len(kept))
    return kept[:sources] + [""] * (len(kept) - sources)


# -- what lies between the messages


def _prose(lines: Sequence[str], first: int, taken: Sequence[Lines]) -> tuple[list[Lines], list[int]]:
    """As `_between`, of a note in which all that is no message is prose: but for the line above an answer, by which it is stopped."""
    starts = [first, *(end for _, end in taken)]
    ends = [*(start for start, _ in taken), len(lines)]
    found = []
    for start, end in zip(starts, ends, strict=True):
        rows = [row for row in range(start, end) if lines[row].strip() and not OWN_OPEN.match(lines[row])]
        found += [(rows[0] + 1, rows[-1] + 1)] if rows else []
    return found, []


def _between(lines: Sequence[str], first: int, taken: Sequence[Lines], uids: Mapping[int, Uid]) -> tuple[list[Lines], list[int]]:
    """Line ranges outside the messages that hold text: without header, rules and stray UIDs. And the rows of restored artifacts."""
    starts = [first, *(end for _, end in taken)]
    ends = [*(start for start, _ in taken), len(lines)]
    loose: list[Lines] = []
    artifacts: list[int] = []
    for region, (start, end) in enumerate(zip(starts, ends, strict=True)):
        own: list[int] = []
        is_restored = False
        for row in range(start, end):
            line = lines[row]
            is_restored = ("[!" in line and bool(_RESTORED.match(line))) or (is_restored and unquoted(line) is not None)
            if is_restored or (row in uids and not uids[row][1]) or (region == 0 and ":" in line and _HEADER.match(line)):
                artifacts += [row] if is_restored and "[!nexus_" in line else []
                loose += _range(lines, own) if own else []
                own = []
            elif line.strip():
                own.append(row)
        loose += _range(lines, own) if own else []
    return loose, artifacts


def _range(lines: Sequence[str], rows: list[int]) -> list[Lines]:
    """The line range of rows of text, rules at its ends left out."""
    first, last = 0, len(rows)
    while last > first and _RULE.match(lines[rows[last - 1]]):
        last -= 1
    while first < last and _RULE.match(lines[rows[first]]):
        first += 1
    return [(rows[first] + 1, rows[last - 1] + 1)] if first < last else []
