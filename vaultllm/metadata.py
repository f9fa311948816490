"""The facts that Obsidian's `CachedMetadata` holds of a note, under the same names and in the same shapes.

Checked against caches that Obsidian 1.7 and 1.8 wrote (fixtures of public plugins); what could not be seen there and is our
choice: blocks are keyed by their id in lower case; a link's heading search (`[[##x]]`) keeps its marks; a list item that
begins behind a tab starts at that tab. Obsidian's last two sections of some notes, an empty `text` and `element`, are left out.
Not Obsidian's: `inlineFields`, the fields that the Dataview plugin reads (`key:: value`, `[key:: value]`, `(key:: value)`).

Knows nothing about files and other notes: links are not resolved here (`links.py` does).
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterator
from typing import Any, NamedTuple

from vaultllm import blocks, markdown, stretches
from vaultllm.schema import Block, Link, Note

Fact = dict[str, Any]

_TYPES = {"quote": "blockquote", "rule": "thematicBreak", "footnote": "footnoteDefinition"}
_HELD = {"list", "quote", "callout"}  # kinds of blocks that list items are looked for in
_LONE_ID = re.compile(r"[ \t]*\^[A-Za-z0-9-]+[ \t]*")
_END_ID = re.compile(r"(?:^|[ \t])\^([A-Za-z0-9-]+)[ \t]*$")
_MARK = re.compile(r"(?:[-+*]|[0-9]{1,9}[.)])([ \t]*)")
_TASK = re.compile(r"\[(.)\](?:[ \t]|$)")
_NOTE_REF = re.compile(r"(?<!\[)\[\^([^\]\s^][^\]\s]{0,200})\]")
_INLINE_NOTE = re.compile(r"\^\[((?:[^\[\]\n]|\[[^\[\]\n]{0,300}\]){1,2000}+)\]")
_DEFINITION = re.compile(r" {0,3}\[([^\]\[^][^\]\[]{0,200})\]:[ \t]*(?:<([^<>\n]*)>|(\S+))")
_LINE_FIELD = re.compile(
    r"[ \t>]*+(?:(?:[-+*]|[0-9]{1,9}[.)])[ \t]+(?:\[.\][ \t]+)?)?(?:\*\*|__)?"  # quotes, an item's mark, bold
    r"([^\s\[\]():*_`#>|][^\[\]():*`#>|\n]{0,80}?)(?:\*\*|__)?[ \t]{0,8}+::(?:[ \t]+(\S.*))?$"
)
_FIELD = re.compile(r"\[([^\[\]():\n]{1,80})::([^\[\]\n]{0,500})\]|\(([^\[\]():\n]{1,80})::([^()\n]{0,500})\)")
_WHOLE_LINK = re.compile(r"\s*!?(\[\[[^\[\]\n]+\]\]|\[[^\[\]\n]*\]\((?:<[^<>\n]*>|[^()\s]*)\))\s*")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")


def metadata(note: Note) -> Fact:
    """What Obsidian knows of a Markdown note: only the keys that have something to say, as in Obsidian.

    `links`, `embeds`: {link, original, displayText, position}; links in `%%` comments count, those in code, HTML comments
    and formulas do not. `tags`: {tag with `#`, position}, of the text alone. `headings`: {heading, level, position}, none of
    quotes and lists. `sections`: {type, id?, position}. `listItems`: {parent, task?, id?, position}: `parent` is the line of
    the item above it, or minus the line on which the list begins (-1 for line 0); an item ends where its nested list
    begins. `footnotes`, `footnoteRefs`: {id, position}. `referenceLinks`: {id, link, position}. `blocks`: id -> {id,
    position}. `frontmatter`, `frontmatterPosition`, `frontmatterLinks`: {key, link, original, displayText}, list items as
    `key.0`. `inlineFields` (Dataview's): {key, value, position}.

    A `position` is {start, end}, each {line, col, offset}: `line` from 0, `col` and `offset` in UTF-16 units. They refer to
    the decoded text (`note.text`): newlines as `\\n`, no BOM. Obsidian counts so too, but for files with CRLF, where its
    offsets count both characters.
    """
    text = _Text(note)
    found: Fact = {
        **text.references(),
        "headings": [
            {"heading": heading_text(block), "level": block.level, "position": text.lines(block.lines)}
            for block in note.blocks
            if block.kind == "heading"
        ],
        "sections": [],
        "listItems": [],
        "blocks": {},
    }
    if note.body_line > 1:
        position = text.lines((1, note.body_line - 1))
        found["sections"].append({"type": "yaml", "position": position})
        found |= {"frontmatter": note.properties, "frontmatterPosition": position}
        found["frontmatterLinks"] = list(_property_links("", note.properties))
    for block in note.blocks:
        section, items = text.section(block), list(text.items(block)) if block.kind in _HELD else []
        if not (block.kind == "comment" and section in found["sections"][-1:]):  # cut at its blank lines, it is one section still
            found["sections"].append(section)
        found["listItems"] += items
        for one in (section, *items):
            if "id" in one:
                found["blocks"].setdefault(one["id"].lower(), {"id": one["id"], "position": one["position"]})
    found["footnotes"].sort(key=lambda one: one["position"]["start"]["offset"])
    return {name: value for name, value in found.items() if value or name in ("frontmatter", "frontmatterPosition")}


class _Item(NamedTuple):
    """A list item that is open while the lines of a block are gone through."""

    line: int
    """Its first line in the block, from 0."""
    width: int
    """Columns from where its container's text begins to its own text."""
    text: int
    """The character of its first line at which its text begins."""


class _Text:
    """A note's text with the places in it."""

    def __init__(self, note: Note) -> None:
        self.note = note
        self.rows = note.text.split("\n")
        self.starts = [0]
        for row in self.rows:
            self.starts.append(self.starts[-1] + len(row) + 1)
        wide = not note.text.isascii() and max(note.text) > "\uffff"
        self.astral = [at for at, char in enumerate(note.text) if char > "\uffff"] if wide else []
        first = note.body_line
        body = "\n".join(self.rows[first - 1 :])
        self.spans = stretches.stretches(body)
        # As the block rules see it, so that what a comment holds is no list item.
        self.masked = [""] * (first - 1) + stretches.for_blocks(body, self.spans).split("\n")
        # Obsidian reads links and tags in `%%` comments, not in HTML's.
        prose = [span[:2] for span in self.spans if span.kind != "comment" or body.startswith("<!--", span.start)]
        self.prose = [""] * (first - 1) + stretches.filled(body, prose, " ").split("\n")
        markdown.hide_blocks(self.prose, note.blocks, 1)
        self.comments = dict(self._comments(body))

    def _comments(self, body: str) -> Iterator[tuple[int, tuple[int, int, bool]]]:
        """For each line (from 1) that a comment is on: the comment's first and last line, and whether it is HTML's."""
        line, at = self.note.body_line, 0
        for span in self.spans:
            first = line + body.count("\n", at, span.start)
            line, at = first + body.count("\n", span.start, span.end), span.end
            if span.kind == "comment":
                for number in range(first, line + 1):
                    yield number, (first, line, body.startswith("<!--", span.start))

    def place(self, line: int, char: int) -> Fact:
        """A character of a line (from 0) as Obsidian says it."""
        start = self.starts[line]
        before = bisect_left(self.astral, start)
        col = char + bisect_left(self.astral, start + char) - before
        return {"line": line, "col": col, "offset": start + before + col}

    def part(self, line: int, start: int, end: int) -> Fact:
        """A stretch of a line."""
        return {"start": self.place(line, start), "end": self.place(line, end)}

    def lines(self, span: tuple[int, int]) -> Fact:
        """Whole lines (numbers from 1, both inclusive)."""
        return {"start": self.place(span[0] - 1, 0), "end": self.place(span[1] - 1, len(self.rows[span[1] - 1]))}

    # -- what stands in lines

    def references(self) -> Fact:
        """Links, embeds, tags, footnotes, reference links and fields, in order."""
        found: Fact = {name: [] for name in ("links", "embeds", "tags", "footnotes", "footnoteRefs", "referenceLinks", "inlineFields")}
        for line, (prose, raw) in enumerate(zip(self.prose, self.rows, strict=True)):
            if "[" in prose or "#" in prose:
                for start, end, what in markdown.inlines(prose, raw, line + 1):
                    if isinstance(what, str):
                        found["tags"].append({"tag": "#" + what, "position": self.part(line, start, end)})
                    else:
                        fact = {**_link(what, raw[start:end]), "position": self.part(line, start, end)}
                        found["embeds" if what.embed else "links"].append(fact)
                if definition := _DEFINITION.match(prose):
                    link = definition[2] if definition[2] is not None else definition[3]
                    fact = {"id": definition[1].strip(), "link": link, "position": self.part(line, 0, len(raw.rstrip()))}
                    found["referenceLinks"].append(fact)
                self._footnotes(line, prose, found)
            if "::" in prose:
                found["inlineFields"] += self._fields(line, prose, raw)
        for block in self.note.blocks:
            if block.kind == "footnote":
                fact = {"id": block.text.strip()[2:].partition("]")[0], "position": self.lines(block.lines)}
                found["footnotes"].append(fact)
        return found

    def _footnotes(self, line: int, prose: str, found: Fact) -> None:
        defined = re.match(r" {0,3}\[\^[^\]\s]+\]:", prose)
        begin = defined.end() if defined else 0
        refs = [(match.start(), match) for match in _NOTE_REF.finditer(prose, begin)] if "[^" in prose else []
        inline = [(match.start(), match) for match in _INLINE_NOTE.finditer(prose, begin)] if "^[" in prose else []
        for start, match in sorted((*refs, *inline), key=lambda one: one[0]):
            if match.re is _INLINE_NOTE:
                # The id that Obsidian gives it: its number among all marks of footnotes.
                number = len(found["footnoteRefs"]) + len(found["footnotes"])
                position = self.part(line, match.start(1), match.end(1))
                found["footnotes"].append({"id": f"[inline{number}", "position": position})
            else:
                found["footnoteRefs"].append({"id": match[1], "position": self.part(line, start, match.end())})

    def _fields(self, line: int, prose: str, raw: str) -> Iterator[Fact]:
        if whole := _LINE_FIELD.match(prose):
            value = raw[whole.start(2) : whole.end(2)].strip() if whole[2] else ""
            yield {"key": whole[1].strip(), "value": value, "position": self.part(line, whole.start(1), len(raw.rstrip()))}
            return
        for match in _FIELD.finditer(prose):
            group = 1 if match[1] is not None else 3
            value = raw[match.start(group + 1) : match.end(group + 1)].strip()
            yield {"key": match[group].strip(), "value": value, "position": self.part(line, *match.span())}

    # -- blocks and list items

    def section(self, block: Block) -> Fact:
        """A block as one of Obsidian's sections."""
        first, last = block.lines
        kind = _TYPES.get(block.kind, block.kind)
        if block.kind == "comment":
            first, _, html = self.comments.get(first, (first, last, False))
            last = max(last, self.comments.get(last, (0, 0, False))[1])
            kind = "html" if html else kind
        block_id = block.block_id
        if block_id and last > first and _LONE_ID.fullmatch(self.rows[last - 1]):
            last -= 1  # an id on a line of its own is in no section
            while last > first and not self.rows[last - 1].strip():
                last -= 1
        elif block.kind == "list":
            block_id = ""  # it is its last item's
        found: Fact = {"type": kind, "position": self.lines((first, last))}
        return {**found, "id": block_id} if block_id else found

    def items(self, block: Block) -> Iterator[Fact]:
        """The list items in a list, quote or callout, in order."""
        first = block.lines[0] - 1
        rows = self.masked[first : block.lines[1]]
        containers: list[_Item | None] = []  # from outside; None is a quote
        lists: list[int] = []  # the first lines of the lists that are open
        tokens = blocks.tokens(rows)
        for index, token in enumerate(tokens):
            if token.type == "blockquote_open":
                containers.append(None)
            elif token.type in ("bullet_list_open", "ordered_list_open") and token.map:
                lists.append(token.map[0])
            elif token.type in ("bullet_list_close", "ordered_list_close"):
                lists.pop()
            elif token.type in ("list_item_close", "blockquote_close"):
                containers.pop()
            elif token.type == "list_item_open" and token.map:
                line = token.map[0]
                above = next((item for item in reversed(containers) if item is not None), None)
                item, start, task = _opened(rows[line], line, containers)
                position = {"start": self.place(first + line, start), "end": self._item_end(tokens, index, first, rows)}
                fact: Fact = {"parent": first + above.line if above else -(first + lists[-1]) or -1, "position": position}
                fact |= {"task": task} if task else {}
                end = position["end"]["line"]
                if named := _END_ID.search(self.rows[end if position["end"]["col"] else end - 1]):
                    fact["id"] = named[1]
                yield fact
                containers.append(item)

    def _item_end(self, tokens: list[Any], index: int, first: int, rows: list[str]) -> Fact:
        """Where an item's own text ends: before its nested list; at the first blank line when another item follows that."""
        level, end = tokens[index].level, tokens[index].map[1]
        after = index + 1
        while tokens[after].level > level:
            nested = tokens[after]
            if nested.type in ("bullet_list_open", "ordered_list_open") and nested.level == level + 1 and nested.map:
                end = nested.map[0]
                break
            after += 1
        nested_list = tokens[after].level > level
        last = max(end, tokens[index].map[0] + 1)
        while last > tokens[index].map[0] + 1 and not rows[last - 1].strip(" \t>"):
            last -= 1
        followed = not nested_list and after + 1 < len(tokens) and tokens[after + 1].type == "list_item_open"
        if followed and last < end:
            return self.place(first + last, 0)
        return self.place(first + last - 1, len(self.rows[first + last - 1]))


def _opened(row: str, line: int, containers: list[_Item | None]) -> tuple[_Item, int, str]:
    """An item that begins on a row: itself, the character where it starts, its task's mark."""
    at = 0
    for container in containers:
        if container is None:
            quote = row.find(">", at)
            at = quote + 1 + (row[quote + 1 : quote + 2] == " ")
        else:
            at = container.text if container.line == line else _past(row, at, container.width)
    start = at
    while at < len(row) and row[at] in " \t":
        at += 1
    mark = _MARK.match(row, at)
    assert mark is not None  # the block rules found one
    said = mark.end()
    space = len((row[start : mark.start(1)] + mark[1]).expandtabs(4)) - len(row[start : mark.start(1)].expandtabs(4))
    if not row[said:].strip() or space > 4:
        said = min(mark.start(1) + 1, len(row))
        space = 1
    width = len(row[start : mark.start(1)].expandtabs(4)) + space
    task = _TASK.match(row, said)
    return _Item(line, width, said), start, task[1] if task else ""


def _past(row: str, at: int, width: int) -> int:
    """The character behind at most so many columns of white space."""
    column = 0
    while at < len(row) and row[at] in " \t":
        column += 4 - column % 4 if row[at] == "\t" else 1
        if column > width:
            break
        at += 1
    return at


def heading_text(block: Block) -> str:
    """A heading's source without its marks and its block id: what Obsidian calls its heading."""
    rows = block.text.split("\n")
    said = " ".join(row.strip() for row in rows)
    if rows[0].lstrip().startswith("#" * block.level) and len(rows) == 1:
        said = re.sub(r"(?:^|[ \t]+)#+[ \t]*$", "", said[block.level :].strip())
    else:
        said = " ".join(row.strip() for row in rows[:-1])
    return _END_ID.sub("", said).strip() if block.block_id else said.strip()


def _link(link: Link, original: str) -> Fact:
    """A link as Obsidian names its parts."""
    where = link.target + "".join(
        f"#{part}" for part in (*filter(None, link.heading.split("#")), *(["^" + link.block] if link.block else []))
    )
    if re.match(r"!?\[\[\s*##", original):
        where = "#" + where
    shown = link.alias or " > ".join(part for part in where.split("#") if part)
    return {"link": where, "original": original, "displayText": shown}


def _property_links(key: str, value: Any) -> Iterator[Fact]:
    """Properties (or items of them) that are a link and nothing else."""
    if isinstance(value, str):
        match = _WHOLE_LINK.fullmatch(value)
        for one in markdown.inlines(value, value, 1) if match else ():
            if isinstance(one.what, Link):
                yield {"key": key, **_link(one.what, match[1] if match else value)}
    elif isinstance(value, dict):
        for name, item in value.items():
            yield from _property_links(f"{key}.{name}" if key else name, item)
    elif isinstance(value, list):
        for number, item in enumerate(value):
            yield from _property_links(f"{key}.{number}", item)
