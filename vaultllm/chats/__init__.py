"""Chat formats: which one a note is in, and its conversations.

One line per format in `READERS`, tried in order, the cheap and certain first; a new format is one file and one line.
Four names mean that the file comes from a chat program and yet holds no conversation: `nexus-artifact` and `nexus-report`
are imported prose, a `nexus-backup` repeats another note and is to be left out, a `claudian-meta` holds settings; `read` returns
no conversations for them.
Readers return what they met as problems of a conversation and raise nothing. Knows nothing about files and scenes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vaultllm.chats import chatgpt_md, claude_code, claudian, clipper, copilot, exports, headed, nexus, plain, smart_chat, smart_threads
from vaultllm.schema import Conversation, Note

if TYPE_CHECKING:
    from vaultllm.config import ScanSettings

LEFT_OUT = frozenset(
    {
        *("E-MESSAGE", "W-EMPTY", "W-FORGOTTEN", "W-HIDDEN", "W-TOOL", "W-SERVICE", "W-PRIVATE", "W-COPY", "W-MISSING"),
        "W-UNFINISHED",
    }
)
"""Codes of problems that stand for messages left out of a talk, `count` of them: nothing goes without a count and a reason."""


@dataclass(frozen=True, slots=True)
class Reader:
    """One chat format."""

    name: str
    """Its name, shown to the user and stored."""
    detect: Callable[[Note, ScanSettings], str]
    """Why it takes the note (`3 nexus heads`); empty when it doesn't."""
    read: Callable[[Note, ScanSettings, str], list[Conversation]]
    """Note, settings, IANA name of the time zone for times without one (or empty) -> its conversations."""
    only_json: bool = False
    """Whether all that it takes are files with one of `exports.SUFFIXES`: it need not be asked about others."""


ASKED = "ask"
"""The reader of notes in which the owner asks by `[!ask]`: prose with a talk in it, all of it the owner's but the answers."""

READERS: tuple[Reader, ...] = (
    Reader("nexus-backup", nexus.backup_why, nexus.read_none),
    Reader("nexus-artifact", nexus.artifact_why, nexus.read_none),
    Reader("nexus-report", nexus.report_why, nexus.read_none),
    Reader("nexus", nexus.detect, nexus.read),
    Reader("claudian-meta", claudian.meta_why, claudian.read_none, only_json=True),
    Reader("claudian", claudian.detect, claudian.read, only_json=True),
    Reader("claude-code", claude_code.detect, claude_code.read, only_json=True),
    Reader("smart-threads", smart_threads.detect, smart_threads.read, only_json=True),
    *(Reader(name, functools.partial(exports.detect, name), exports.read, only_json=True) for name in exports.NAMES),
    Reader("copilot", copilot.detect, copilot.read),
    Reader("chatgpt-md", chatgpt_md.detect, chatgpt_md.read),
    Reader("smart-chat", smart_chat.detect, smart_chat.read),
    Reader("chatgpt-exporter", headed.exported_why, headed.read_exported),
    Reader("chatgpt-page", headed.copied_why, headed.read_copied),
    Reader("numbered", headed.numbered_why, headed.read_numbered),
    Reader("clipper", clipper.detect, clipper.read),
    Reader("plain", plain.detect, plain.read),
    Reader(ASKED, nexus.asked_why, nexus.read),
)
_OTHERS = tuple(reader for reader in READERS if not reader.only_json)


def read(note: Note, settings: ScanSettings, timezone: str) -> tuple[str, str, list[Conversation]]:
    """The name of the reader that takes the note (empty: an ordinary note), why it does, and the conversations."""
    bare = nexus.without_answers(note)
    for reader in READERS if note.path.lower().endswith(exports.SUFFIXES) else _OTHERS:
        seen = note if reader.read is nexus.read else bare
        if why := reader.detect(seen, settings):
            return reader.name, why, reader.read(seen, settings, timezone)
    return "", "", []
