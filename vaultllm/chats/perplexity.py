"""Perplexity's threads, as the Thread Exporter extension writes them (`perplexity_*.json`), in both of its shapes.

One entry is a question and its answer; their UIDs are those of the nexus importer (`<uuid>-user`, `<uuid>`). Sources and related
questions are not part of the talk. Does not know the official export, whose shape we have not seen.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from vaultllm.chats.turns import conversation, listed, make_turn, mapping, moment, name, raw_time
from vaultllm.schema import Conversation, Lines, Turn

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

_TIMES = ("timestamp", "entry_created_datetime", "entry_updated_datetime", "updated_datetime")


def takes(value: dict[str, Any]) -> bool:
    """Whether the object is a thread."""
    entries = [mapping(entry) for entry in listed(value.get("entries"))[:3]]
    if any("query_str" in entry or "blocks" in entry for entry in entries):
        return True
    asked = [mapping(entry) for entry in listed(value.get("conversations"))[:3]]
    return isinstance(value.get("metadata"), dict) and any("query" in entry or "answer" in entry for entry in asked)


def read(data: dict[str, Any], lines: Lines, settings: ScanSettings, timezone: str) -> Conversation:
    """The conversation, all on the lines of the whole."""
    older = "entries" not in data
    entries = [mapping(entry) for entry in listed(data.get("conversations" if older else "entries"))]
    if not older:
        entries.sort(key=lambda entry: _time(entry)[0])
    left: Counter[str] = Counter()
    turns: list[Turn] = []
    for entry in entries:
        uid = name(entry.get("uuid")) or name(entry.get("backend_uuid"))
        at, raw = _time(entry)
        model = name(entry.get("model")) or name(entry.get("display_model")) or name(entry.get("user_selected_model"))
        asked = entry.get("query") if older else entry.get("query_str")
        answer = entry.get("answer") if older else _answer(entry)
        if not isinstance(asked, str) and not isinstance(answer, str):
            left["E-MESSAGE"] += 1
            continue
        if isinstance(asked, str):
            turns.append(make_turn("user", asked, lines, at=at, at_raw=raw, uid=f"{uid}-user" if uid else ""))
        if isinstance(answer, str):
            turns.append(make_turn("assistant", answer, lines, model=model, at=at, at_raw=raw, uid=uid))
    head = mapping(data.get("metadata" if older else "thread_metadata"))
    first = entries[0] if entries else {}
    identity = (
        name(head.get("thread_id")) or name(first.get("context_uuid")) or name(first.get("thread_url_slug")) or name(first.get("uuid"))
    )
    title = name(head.get("thread_title")) or name(head.get("title")) or name(first.get("thread_title"))
    created = moment(head.get("thread_created_at") or head.get("created_at")) or next((turn.at for turn in turns if turn.at), "")
    return conversation(identity, title, "perplexity", created, lines, turns, left)


def _time(entry: dict[str, Any]) -> tuple[str, str]:
    """The first of the entry's times that can be read, as ISO and as written."""
    for key in _TIMES:
        if at := moment(entry.get(key)):
            return at, raw_time(entry.get(key))
    return "", ""


def _answer(entry: dict[str, Any]) -> str | None:
    """The text of the first Markdown block that has one."""
    for block in listed(entry.get("blocks")):
        shown = mapping(mapping(block).get("markdown_block"))
        chunks = [chunk for chunk in listed(shown.get("chunks")) if isinstance(chunk, str)]
        answer = shown.get("answer")
        if isinstance(answer, str) and answer.strip():
            return answer
        if "".join(chunks).strip():
            return "".join(chunks)
    return None
