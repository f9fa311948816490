"""Transcripts of Claude Code (`~/.claude/projects/<folder>/<session>.jsonl`), also of talks that the plugin Claudian held with it.

One JSON object a line, a tree by `parentUuid`. The talk is the way from the last message that is not a subagent's up to the
root; over a compaction it goes on by `logicalParentUuid`. Lines of one `message.id` are one message. What else was said (a
question asked again, an answer made again) is kept as variants of the message that stands in its place. What Claudian puts
around a question (the open note, the selection) is taken off, the note's name becomes an attachment.

Left out, with a count: tool calls and results (W-TOOL), reasoning, context, subagents' talk and summaries of what came before
(W-HIDDEN), lines that the program wrote in the owner's name (W-SERVICE). Knows nothing about what tools did, nor about the
transcripts of other agents (Codex, Pi).
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaultllm.chats.messages import left_out, unread_times
from vaultllm.chats.times import from_iso
from vaultllm.chats.turns import json_object, plain
from vaultllm.schema import Conversation, Note, Problem, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_LOOKED_AT = 20  # lines with text at the top of a `.jsonl` among which the first message must be
_SERVICE = re.compile(
    r"\s*(?:<(?:command-name|command-message|local-command-stdout|local-command-stderr|local-command-caveat|bash-input|bash-stdout"
    r"|bash-stderr|system-reminder|task-notification)>|\[Request interrupted by user|Caveat: The messages below were generated)"
)
_CONTEXT = re.compile(r"\n\n<(?:current_note|editor_selection|editor_cursor|context_files)[\s>]")
_NOTES = re.compile(r"<(?:current_note|context_files)>\n([^<]*)\n</")


@dataclass(slots=True)
class _Said:
    """A message, gathered from its lines (numbers from 1)."""

    first: int
    last: int
    data: dict[str, Any]  # of its first line
    texts: list[str]
    names: list[str]


def detect(note: Note, settings: ScanSettings) -> str:
    """`a Claude Code transcript`; empty when no line near the top is a message of one."""
    if not note.path.lower().endswith(".jsonl") or '"uuid"' not in note.text:
        return ""
    looked_at = (line for line in note.text.split("\n") if line.strip())
    for line in itertools.islice(looked_at, _LOOKED_AT):
        data = json_object(line) if '"uuid"' in line else None
        if data and data.get("type") in ("user", "assistant") and "parentUuid" in data and isinstance(data.get("message"), dict):
            return "a Claude Code transcript"
    return ""


def read(note: Note, settings: ScanSettings, timezone: str) -> list[Conversation]:
    """The one conversation of the transcript: the talk as it went on, and each branch left behind as variants."""
    said: dict[str, _Said] = {}  # by message id, in the order of the file
    above: dict[str, str] = {}  # uuid of a line -> that of the line it follows
    owner: dict[str, str] = {}  # uuid of a line with text -> message id
    out: dict[str, list[int]] = {}  # code -> line of the first, how many
    broken: list[int] = []
    session = title = leaf = ""
    for number, line in enumerate(note.text.split("\n"), 1):
        data = json_object(line) if line.strip() else {}
        if data is None:
            broken.append(number)
            continue
        session = session or plain(data.get("sessionId"))
        title = (plain(data.get("summary")).strip() or title) if data.get("type") == "summary" else title
        uuid = plain(data.get("uuid"))
        if not uuid or uuid in above:  # no message, or one that a resumed session wrote once more
            continue
        above[uuid] = plain(data.get("parentUuid")) or plain(data.get("logicalParentUuid"))
        message = data.get("message")
        if data.get("type") not in ("user", "assistant") or not isinstance(message, dict):
            continue
        leaf = leaf if data.get("isSidechain") else uuid
        texts, names, left = _content(data, message.get("content"))
        for code, count in left.items():
            out.setdefault(code, [number, 0])[1] += count
        if not texts:
            continue
        key = plain(message.get("id")) or uuid
        if key in said and said[key].data["type"] == data["type"]:
            said[key].last = number
            said[key].texts += texts
            said[key].names += names
        else:
            key = uuid if key in said else key
            said[key] = _Said(number, number, data, texts, names)
        owner[uuid] = key
    turns = _turns(said, above, owner, leaf)
    problems = [left_out(code, line, count) for code, (line, count) in out.items()]
    if broken:
        what = f"{len(broken)} lines are no JSON (cut off, or joined by a sync?); what was said there is lost, copy the transcript again"
        problems.append(Problem("E-MESSAGE", what, broken[0], len(broken)))
    seen = len(turns) + sum(problem.count for problem in problems)
    problems += unread_times(turns)
    span = (1, max(1, note.text.rstrip("\n").count("\n") + 1))
    created = next((turn.at for turn in turns if turn.at), "")
    return [Conversation(session, title or note.title, "claude-code", created, tuple(turns), span, problems=tuple(problems), seen=seen)]


def _turns(said: Mapping[str, _Said], above: Mapping[str, str], owner: Mapping[str, str], leaf: str) -> list[Turn]:
    """The messages as turns in the order of the file; those off the way from the leaf to the root as variants."""
    below: dict[str, str] = {}  # uuid on the way -> the message that the talk went on with; empty at its end
    at, onward = leaf, ""
    while at and at not in below:
        below[at] = onward
        onward = owner.get(at, onward)
        at = above.get(at, "")
    active = {owner[uuid] for uuid in below if uuid in owner}
    talk = [key for key in said if key in active]
    forks: dict[str, str] = {}
    nearest: dict[str, str] = {}
    turns: list[Turn] = []
    for key, one in said.items():
        instead = ""
        if key not in active and talk:
            fork = _climb(plain(one.data.get("uuid")), above, below, forks)
            instead = plain(said[(below[fork] or talk[-1]) if fork else talk[0]].data.get("uuid"))
        follows = _climb(above.get(plain(one.data.get("uuid")), ""), above, owner, nearest)
        raw = plain(one.data.get("timestamp"))
        person = one.data.get("type") == "user"
        turns.append(
            Turn(
                role="user" if person else "assistant",
                text="\n\n".join(one.texts),
                lines=(one.first, one.last),
                author=plain(one.data.get("type")),
                model="" if person else plain(one.data["message"].get("model")),
                at=from_iso(raw),
                at_raw=raw,
                uid=plain(one.data.get("uuid")),
                attachments=tuple(dict.fromkeys(one.names)),
                parent=plain(said[owner[follows]].data.get("uuid")) if follows else "",
                variant_of=instead,
            )
        )
    return turns


def _climb(uuid: str, above: Mapping[str, str], wanted: Container[str], known: dict[str, str]) -> str:
    """The first uuid at or above the given one that is wanted; empty if none. `known` keeps what was found on the way."""
    way: list[str] = []
    seen: set[str] = set()
    while uuid and uuid not in wanted and uuid not in known and uuid not in seen:
        seen.add(uuid)
        way.append(uuid)
        uuid = above.get(uuid, "")
    found = uuid if uuid in wanted else known.get(uuid, "")
    known.update(dict.fromkeys(way, found))
    return found


def _content(data: Mapping[str, Any], content: object) -> tuple[list[str], list[str], Counter[str]]:
    """What a line says, the names of what was attached, and how much of it is left out by code."""
    blocks = content if isinstance(content, list) else [{"type": "text", "text": content}]
    blocks = [block for block in blocks if isinstance(block, dict)]
    left: Counter[str] = Counter()
    texts: list[str] = []
    names: list[str] = []
    if data.get("isSidechain") or data.get("isCompactSummary"):
        return [], [], Counter({"W-HIDDEN": 1})
    if data.get("isMeta"):
        return [], [], Counter({"W-SERVICE": 1})
    person = data.get("type") == "user"
    result = person and any(block.get("type") == "tool_result" for block in blocks)
    for block in blocks:
        kind, text = block.get("type"), plain(block.get("text"))
        if kind == "text" and person and (result or _SERVICE.match(text)):
            left["W-SERVICE"] += 1
        elif kind == "text":
            if person:
                text, shown = _asked(text)
                left["W-HIDDEN"] += bool(shown)
                names += [name.strip() for found in _NOTES.findall(shown) for name in found.split(", ")]
            if text.strip():
                texts.append(text.strip("\n").rstrip())
        elif kind in ("thinking", "redacted_thinking"):
            left["W-HIDDEN"] += 1
        elif kind in ("image", "document"):
            names.append(plain(block.get("title")) or str(kind))
        else:
            left["W-TOOL"] += 1
    left += Counter()  # without zeros
    if not texts and not left:
        left["W-EMPTY"] = 1
    return texts, names, left


def _asked(prompt: str) -> tuple[str, str]:
    """What the owner typed, and what Claudian put around it: tags before `<query>`, or tags at the end."""
    start, end = prompt.find("<query>"), prompt.rfind("</query>")
    if 0 <= start < end and (start == 0 or prompt.startswith("<")):
        return prompt[start + 7 : end].strip("\n"), prompt[:start] + prompt[end + 8 :]
    found = _CONTEXT.search(prompt)
    return (prompt[: found.start()], prompt[found.start() :]) if found else (prompt, "")
