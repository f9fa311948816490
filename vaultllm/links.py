"""Which file a link means, and which lines of it: as Obsidian resolves links.

Known from Obsidian's help and API: a path from the vault's root; else a name that is unique; case does not count. Known from
its behaviour only: a path's end is enough (`b/note` finds `a/b/note.md`); of several notes with one name that one wins
which lies in the folder of the linking note, or below it, then the one with the shortest path. Our choice: of those
still equal the first in alphabetical order, and names compare in NFC (macOS may list them in NFD). An alias (a property)
is never a target: Obsidian writes `[[Note|alias]]` for it. Pure: knows paths, not files.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from urllib.parse import unquote

from vaultllm.schema import Block, Lines, Note
from vaultllm.text import nfc

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")
_NO_WORD = re.compile(r"[!\"#$%&()*+,.:;<=>?@^`{|}~/\[\]\\\r\n]")
_ITEM = re.compile(r"[ \t>]*(?:[-+*]|[0-9]{1,9}[.)])(?:[ \t]|$)")


def path_key(path: str) -> str:
    """How paths are compared: NFC, lower case, `/`, without `.md`."""
    key = nfc(path).replace("\\", "/").lower().strip()
    return key[:-3] if key.endswith(".md") else key


class Resolver:
    """Which of a vault's files a link means. Building it reads the paths once; a path can be added or taken out later."""

    def __init__(self, paths: Iterable[str] = ()) -> None:
        """`paths`: vault-relative, of notes and attachments, as they stand on disk."""
        self._by_name: dict[str, list[tuple[str, str]]] = defaultdict(list)  # last part of the key -> (key, path)
        for path in paths:
            self.add(path)

    def add(self, path: str) -> None:
        """A file is there now."""
        key = path_key(path)
        self._by_name[key.rsplit("/", 1)[-1]].append((key, path))

    def remove(self, path: str) -> None:
        """A file is gone."""
        key = path_key(path)
        same_name = self._by_name.get(key.rsplit("/", 1)[-1], [])
        if (key, path) in same_name:
            same_name.remove((key, path))

    def resolve(self, target: str, source: str) -> str | None:
        """The path of the file that a link means; None when there is none.

        `target`: a link's address as written (`Note`, `folder/Note.md`, `../x.png`, `Note%20x`), with or without heading and
        block; `source`: the path of the note that it stands in. An empty target is the note itself.
        """
        if _SCHEME.match(target):
            return None
        target = target.partition("#")[0].strip()
        if not target:
            return source or None
        found = self._resolved(target, source)
        if found is None and "%" in target and (decoded := unquote(target)) != target:
            found = self._resolved(decoded, source)
        return found

    def _resolved(self, target: str, source: str) -> str | None:
        key = path_key(target)
        folder = path_key(source).rpartition("/")[0]
        rooted = key.startswith("/")
        if key.startswith(("./", "../")):
            joined = _joined(folder, key)
            if joined is None:
                return None
            key, rooted = joined, True
        key = key.strip("/")
        candidates = self._by_name.get(key.rsplit("/", 1)[-1], ())
        exact = [path for other, path in candidates if other == key]
        if exact:  # `a.md` before a file `a`, the path as written before one in other case
            written = nfc(target).lstrip("/")
            return min(exact, key=lambda path: (nfc(path) not in (written, written + ".md"), not path.lower().endswith(".md"), path))
        if rooted:
            return None
        ends = ((other, path) for other, path in candidates if "/" not in key or other.endswith("/" + key))
        nearest = min(ends, key=lambda one: _nearness(one[0], one[1], folder), default=None)
        return nearest[1] if nearest else None


def _nearness(key: str, path: str, folder: str) -> tuple[bool, bool, int, str]:
    """The order of files with one name, for a link in this folder: its own first, then those below it, then the shortest path."""
    own = key.rpartition("/")[0]
    return own != folder, bool(folder) and not own.startswith(folder + "/"), len(path), nfc(path)


def _joined(folder: str, relative: str) -> str | None:
    """A path relative to a folder as a path of the vault; None when it leaves the vault."""
    parts = folder.split("/") if folder else []
    for part in relative.split("/"):
        if part == "..":
            if not parts:
                return None
            parts.pop()
        elif part not in ("", "."):
            parts.append(part)
    return "/".join(parts)


def heading_key(heading: str) -> str:
    """How headings compare in links: punctuation and runs of blanks are one blank, case does not count, NFC."""
    return " ".join(_NO_WORD.sub(" ", nfc(heading)).split()).casefold()


def locate(note: Note, heading: str = "", block: str = "") -> Lines | None:
    """The lines of a note (first and last, from 1) that a link's heading path or block id points to; None when it has none.

    `heading`: `H`, or nested `H1#H2` (other headings may stand between them); its section ends before the next heading of its
    level. `block`: an id without the caret, case ignored; in a list, its item. Neither: the whole note.
    """
    rows = note.text.split("\n")
    if block:
        return _block(note, block.lower().removeprefix("^"), rows)
    if not heading:
        return (1, len(rows))
    wanted = [heading_key(part) for part in heading.split("#")]
    wanted = [part for part in wanted if part]
    headings = [one for one in note.blocks if one.kind == "heading"]
    for index, found in enumerate(headings):
        if not wanted or wanted[-1] not in _keys(found) or not _under(wanted[:-1], headings[:index], found.level):
            continue
        after = next((one.lines[0] for one in headings[index + 1 :] if one.level <= found.level), len(rows) + 1)
        last = after - 1
        while last > found.lines[1] and not rows[last - 1].strip():
            last -= 1
        return (found.lines[0], last)
    return None


def _keys(heading: Block) -> tuple[str, str]:
    """A heading as Obsidian compares it, and without its emphasis (`a*b*` as `ab`), as our own links write it."""
    from vaultllm.metadata import heading_text  # a question resolves links too, and need not wait for a Markdown parser

    return heading_key(heading_text(heading)), heading_key(heading.title)


def _under(wanted: list[str], before: list[Block], level: int) -> bool:
    """Whether the headings above one, nearest first, hold the wanted ones in this order."""
    left = list(wanted)
    for one in reversed(before):
        if not left:
            break
        if one.level < level:
            level = one.level
            if left[-1] in _keys(one):
                left.pop()
    return not left


def _block(note: Note, block: str, rows: list[str]) -> Lines | None:
    mark = re.compile(rf"(?:^|[ \t])\^{re.escape(block)}[ \t]*$", re.I)
    for one in note.blocks:
        if one.block_id.lower() == block and (one.kind != "list" or rows[one.lines[1] - 1].strip().lower() == f"^{block}"):
            return one.lines
        if one.kind in ("list", "quote", "callout") and "^" in one.text:
            for number in range(one.lines[0], one.lines[1] + 1):
                if mark.search(rows[number - 1]):
                    return _item(rows, one.lines, number)
    return None


def _item(rows: list[str], span: Lines, number: int) -> Lines:
    """The lines of the list item (or the line of the quote) that an id stands in."""
    first = number
    while first > span[0] and not _ITEM.match(rows[first - 1]):
        first -= 1
    return (first, number) if _ITEM.match(rows[first - 1]) else (number, number)
