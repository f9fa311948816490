"""What a message of a nexus note says, unquoted line by line, and what stands in it besides: attachments, artifacts, phrases.

Knows the shapes of attachments in all versions of the plugin, as far as they were seen. Does not know what stands in the files
that they name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from vaultllm.chats.messages import unquoted
from vaultllm.chats.nexus_heads import Fence, Head, fence_after
from vaultllm.chats.times import precision

_FOREIGN = re.compile(r" {0,3}>[ \t]?\[!(?!nexus_)[^\]]+\]", re.IGNORECASE)
_BLOCK = re.compile(r" {0,3}(?:#{1,6}(?:[ \t]|$)|[-*+][ \t]|\d{1,9}[.)][ \t]|`{3}|~{3}|<|!?\[\[|\||%%|---|\*\*\*|___)")
_ATTACHED = re.compile(
    r"(?:\[!nexus_(?P<what>attachment|artifact|prompt|canvas)\][+-]?|\[!note\][+-]?[ \t]*📎|(?=\*\*📎[ \t]*(?:Missing[ \t]+)?Attachment:))"
    r"[ \t]*(?P<rest>.*)$",
    re.IGNORECASE,
)
_OLD_NAME = re.compile(
    r"\*\*(?:📎[ \t]*)?(?:Missing[ \t]+)?Attachment:\*\*[ \t]*(?P<name>.+?)(?:[ \t]+\([^()]*\))?(?:[ \t]+-[ \t]+[\d.,]+[ \t]*\w+)?[ \t]*$"
)
_TITLE_NAME = re.compile(r"\*\*(?P<name>[^*]+)\*\*")
_BOX = re.compile(r"[ \t]*<div class=\"nexus-(?:attachment|artifact)-box\"", re.IGNORECASE)
_LINK = re.compile(r"[ \t]*(?:🎨[ \t]*)?!?\[\[(?P<path>[^\[\]|#]+)[^\[\]]*\]\][ \t]*$")
_LABEL = re.compile(  # the plugin's own lines in an attachment
    r"[ \t]*(?:⚠️|\*\(|</?div\b|🎨|\[Open original conversation\]\(|\*\*(?:Link|Status|Note):\*\*"
    r"|\*\*(?:Content|Prompt):\*\*[ \t]*$|`{3,}[ \t]*$|$)"
)
_PHRASE = re.compile(
    r"[ \t]*(?:\[No content(?: found)?\]|\(Empty message\)|DALL-E Generated Image|Image générée par DALL-E"
    r"|DALL-E Image Generation(?: \((?:Failed|Interrupted)\))?|\*\(visit original conversation to download\)\*"
    r"|⚠️ (?:Not included in export|File not available in archive).*)[ \t]*$"
)
_ASIDE = " *(visit original conversation to download)*"  # the same behind a link in the text
# One of these stands in every attachment, HTML box and phrase: most messages have none of them, and all of their text was said.
_SIGNS = ("[!", "📎", '="', "[No content", "(Empty message)", "DALL-E", "*(visit original", "⚠️ ")


@dataclass(slots=True)
class Body:
    """What a message says, and what stands in it besides."""

    rows: list[str] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # of its attachments
    phrases: list[int] = field(default_factory=list)  # rows of the file with the plugin's own phrases
    attached: list[int] = field(default_factory=list)  # rows of the file with what an attachment holds
    moved: list[str] = field(default_factory=list)  # paths of files into which the plugin moved text
    own: str = ""  # the id under which vaultllm wrote it
    unfinished: bool = False  # vaultllm did not come to its end


def open_end(lines: Sequence[str], start: int, limit: int, said: bool = False) -> int:
    """Where a message without a UID ends: at text that is not quoted, or at another callout below an empty line.

    A line that only lost its quote mark goes on with the paragraph above it, as in every Markdown reader; `said`: the head is one.
    """
    fence: Fence | None = None
    goes_on = said
    for row in range(start, limit):
        line = lines[row]
        inner = unquoted(line)
        if inner is not None:
            if "[!" in line and _FOREIGN.match(line) and not lines[row - 1].strip():
                return row
            fence = fence_after(fence, inner)
            goes_on = fence is None and bool(inner.strip())
        elif line.strip():
            if not goes_on or _BLOCK.match(line):
                return row
        else:
            fence, goes_on = None, False
    return limit


def _without_marks(line: str, depth: int) -> tuple[bool, str]:
    """Whether a line is quoted, and what is left of it without its first `depth` quote marks."""
    inner = unquoted(line)
    if inner is None:
        return False, line
    for _ in range(depth - 1):
        deeper = unquoted(inner)
        if deeper is None:
            break
        inner = deeper
    return True, inner


def _stale_from(lines: Sequence[str], head: Head, end: int, version: tuple[int, ...]) -> int:
    """The row from which a message still has the two quote marks of 1.1 that an upgrade to 1.2 failed to convert; `end` if none.

    The upgrade stopped at the first `>>` whose trailing space an editor had trimmed: from there on all lines begin with `>>`,
    which 1.2.0 itself never writes. Later versions do, but their times have seconds.
    """
    if head.shape != "callout":
        return end
    tail = end
    for row in range(end - 1, head.body - 1, -1):
        line = lines[row].lstrip(" ")
        if line and (not line.startswith(">>") or "[!nexus_" in line):
            break
        tail = row if line else tail
    upgraded = bool(version) and version <= (1, 2, 0)
    if tail == end or not (upgraded or precision(head.at_raw) == "minute"):
        return end
    bare = not lines[tail].lstrip(" ").strip("> ")
    return tail if upgraded or bare else end


def read_body(lines: Sequence[str], head: Head, end: int, version: tuple[int, ...]) -> Body:
    """A message's text line by line, what is not said in it left empty, and what that was."""
    body = Body(rows=[head.said] if head.said else [])
    stale = _stale_from(lines, head, end, version)
    whole = "\n".join(lines[head.body : end])
    if not any(map(whole.__contains__, _SIGNS)):
        body.rows += [_without_marks(lines[row], head.depth + (row >= stale))[1] for row in range(head.body, end)]
        return body
    fence: Fence | None = None
    state = ""  # "attachment": in its quote; "kept": in that of an artifact or canvas; "rest": in one after which only others follow
    box = head.body  # row after the HTML box of an attachment
    for row in range(head.body, end):
        raw = lines[row]
        quoted, inner = _without_marks(raw, head.depth + (row >= stale))
        said = ""
        if not quoted:
            fence = None  # a quote's end closes its fences
        if row >= box and fence is None and "<" in inner and _BOX.match(inner):
            box = _box_end(lines, row, end)
        if row < box:
            _add(body, row, inner.lstrip(" "))
        elif not quoted:
            if inner.startswith("**📎") and _ATTACHED.match(inner):
                state = "rest"
            if state:  # unquoted below an attachment, it is the attachment's content, of which only the first line was quoted
                state = "rest" if inner.strip() else state
                _add(body, row, inner)
            else:
                said = inner
        else:
            nested = unquoted(inner)
            if state == "kept" and nested is None:
                fence = None
            if state == "rest" or fence is None:
                starts = not lines[row - 1].strip() or raw.lstrip(" ").startswith(">[")
                state, begun = _attachment(inner, state, starts)
            else:
                begun = None
            held = nested if nested is not None and state in ("attachment", "kept") else inner
            if begun is not None:
                body.names.append(begun)
            elif state in ("attachment", "rest") or (state == "kept" and fence is None and (_LINK.match(held) or not held.strip())):
                _add(body, row, held)
            elif fence is None and _PHRASE.match(held):
                body.phrases.append(row)
            else:
                fence = fence_after(fence, held)
                if fence is None and _ASIDE in held:
                    body.phrases.append(row)
                    held = held.replace(_ASIDE, "")
                said = held
        body.rows.append(said)
    body.names = [name for name in body.names if name]
    return body


def _box_end(lines: Sequence[str], row: int, end: int) -> int:
    """The row after the one on which the HTML box that begins on a row is closed; `end` when nothing closes it."""
    depth = 0
    for last in range(row, end):
        depth += lines[last].count("<div") - lines[last].count("</div")
        if depth <= 0:
            return last + 1
    return end


def _attachment(inner: str, state: str, starts: bool) -> tuple[str, str | None]:
    """Whether an unquoted line belongs to an attachment (see `read_body`), and the attachment's name if it begins here.

    `starts`: the line stands where a callout of its own can begin.
    """
    own = _ATTACHED.match(inner) if "[!" in inner or "📎" in inner else None
    if own and (starts or state == "rest" or inner.startswith("**📎")):
        return "rest", _name(own["rest"])
    nested = unquoted(inner)
    below = _ATTACHED.match(nested) if nested is not None else None
    if state == "rest":
        return "rest", _name(below["rest"]) if below else None
    if nested is not None:
        if below:
            return "kept" if (below["what"] or "").lower() in ("artifact", "canvas") else "attachment", _name(below["rest"])
        return state, None
    return "", None


def _add(body: Body, row: int, inner: str) -> None:
    """Take up a line of an attachment: its name, a link to where it lies, or what it holds."""
    if link := _LINK.match(inner):
        path = link["path"].strip()
        if "/documents/" in path:
            body.moved.append(path)
            if body.names and body.names[-1] == path.rsplit("/", 1)[-1]:
                body.names.pop()
            body.names.append(path)
        elif body.names and not body.names[-1]:
            body.names[-1] = path
    elif inner.startswith("**📎"):
        body.names.append(_name(inner))
    elif not _LABEL.match(inner):
        body.attached.append(row)


def _name(rest: str) -> str:
    found = _OLD_NAME.match(rest[:500]) or _TITLE_NAME.match(rest[:500])
    return found["name"].strip() if found else ""
