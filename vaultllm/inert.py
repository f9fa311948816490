"""Markdown from a model made inert: no HTML, script, query, embed, tag, task, template or foreign link is left alive.

An allow list of the token tree is re-emitted, everything else is escaped with backslashes, so that a reader sees the
same words. Pure: knows nothing about notes, models or where the text came from.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token

from vaultllm.prompts import printable

MAX_NESTING = 20
_ROUNDS = 6

# Code blocks keep a language that only colours them; plugins run or draw many others (dataview, tasks, mermaid, run-…).
_LANGUAGES = frozenset(
    """bash c c++ cpp cs csharp css diff fortran go golang haskell html ini java javascript js json json5 julia kotlin kt
    lua makefile markdown matlab md objectivec pascal perl php plaintext powershell ps1 py python r rb rs ruby rust scala sh shell
    sql swift text toml ts tsx txt typescript vb xml yaml yml zsh""".split()
)
# What plugins evaluate inside `code`: Dataview (`=`, `$=`), Meta Bind, Buttons, Dice Roller, inline scripts.
_LIVE_CODE = re.compile(
    r"\s*(?:\$?=|\+=|INPUT\[|VIEW\[|BUTTON\[|button-|dice[\w-]*:|\{|<%|js[ :]|query[ :]|dv\.|tp\.|embed\b|[^\n]*%%)", re.IGNORECASE
)
_OLD_HEAD = re.compile(r"(?:User|ChatGPT|Assistant|Unknown), on .*\d", re.IGNORECASE)
_WIKI = re.compile(r"(?<!!)\[\[([^\[\]|#^\\`*<>%{}\n]+)((?:#[^\[\]|\\`*<>%{}\n]*)?)((?:\|[^\[\]|\\`*<>%{}\n]*)?)\]\]")
_CITED = re.compile(r"[ \t]?\[(\d{1,3})\]")
_ENTITY = re.compile(r"&(?:#\d{1,8}|#[xX][0-9a-fA-F]{1,7}|[A-Za-z][A-Za-z0-9]{1,40});")
_DELIMITER_ROW = re.compile(r"[ \t]*[|:-][-|: \t]*\Z")

Cite = Callable[[int], str]


def inert(markdown_text: str, *, allow: Collection[str] = (), cite: Cite | None = None, plain_names: Collection[str] = ()) -> str:
    """A model's text made safe for a note; what it says stays readable, plain prose stays as it is; idempotent.

    Kept: paragraphs, headings, lists, quotes, code, tables, emphasis, code spans. Wikilinks only to a target in `allow`;
    other links and images become their text and address. With `cite`, a number `[n]` in prose becomes `cite(n)` (an empty
    string removes it); the result is final and need not be made inert again. A line that begins with one of `plain_names`
    and a colon gets its colon escaped, since a transcript would read it as somebody's turn. Display math and `$…$` become
    text: their macros can hold links.
    """
    if cite is not None:
        markdown_text = inert(markdown_text, allow=allow)
    text = printable(markdown_text)
    for _ in range(_ROUNDS):
        again = printable(_once(text, allow, None))  # an entity may have become what nobody sees
        if again == text:
            break
        text = again
    else:
        text = printable(_once(_literal(text), allow, None))
    if cite is not None:
        text = _once(text, allow, cite)
    return without_labels(text, plain_names) if plain_names else text


def inert_line(text: str, most: int = 300, *, start: bool = False) -> str:
    """The same for one line without any structure: titles, names. `start`: it begins a block (an item of a list, a paragraph)."""
    line = " ".join(printable(text).split())
    cut = line if len(line) <= most else line[: most - 1].rstrip() + "…"
    return _escaped(cut, start=start, heading=True, math=True)  # what stands beside it on its line may hold another dollar


def _once(text: str, allow: Collection[str], cite: Cite | None) -> str:
    emitter = _Emitter(frozenset(allow), cite)
    return emitter.blocks(_tree(_parser().parse(text)))


def _literal(text: str) -> str:
    """Every mark escaped: for text on which emphasis never settles."""
    return re.sub(r"([!-/:-@\[-`{-~])", r"\\\1", text.replace("\t", " "))


def without_labels(text: str, names: Collection[str]) -> str:
    """No line begins with one of these names and a colon, as a turn in a transcript does: the colon is escaped."""
    known = "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True) if name)
    spoken = re.compile(rf"^([ \t>]*(?:\[\d[\d:]*\][ \t]*)?(?:\*\*|__)?(?:{known})(?:\*\*|__)?[ \t]*)([:：])", re.IGNORECASE | re.MULTILINE)
    return spoken.sub(lambda match: match[1] + ("\\:" if match[2] == ":" else " —"), text)  # a wide colon has no escape


@functools.cache
def _parser() -> MarkdownIt:
    """CommonMark and tables. HTML and link definitions are off, so that both arrive as text."""
    return MarkdownIt("commonmark", {"html": False, "maxNesting": MAX_NESTING}).enable("table").disable(["reference", "autolink"])


@dataclass(slots=True)
class _Node:
    token: Token
    children: list[_Node]


def _tree(tokens: Sequence[Token]) -> list[_Node]:
    """Flat open/close tokens as a tree."""
    root: list[_Node] = []
    stack = [root]
    for token in tokens:
        if token.nesting < 0:
            stack.pop()
            continue
        node = _Node(token, [])
        stack[-1].append(node)
        if token.nesting > 0:
            stack.append(node.children)
    return root


class _Emitter:
    """Writes the allowed part of a token tree as Markdown."""

    def __init__(self, allow: frozenset[str], cite: Cite | None) -> None:
        self.allow, self.cite = allow, cite

    def blocks(self, nodes: Sequence[_Node], tight: bool = False) -> str:
        """Blocks below each other, an empty line between them unless they are a tight list's."""
        parts = [part for node in nodes if (part := self.block(node))]
        return ("\n" if tight else "\n\n").join(parts)

    def block(self, node: _Node) -> str:
        """One block without its final newline; empty when nothing of it is left."""
        kind, token = node.token.type, node.token
        if kind == "paragraph_open":
            return self.inline(node.children[0].token, start=True)
        if kind == "heading_open":
            said = self.inline(node.children[0].token, start=False, heading=True).replace("\n", " ").strip()
            if _OLD_HEAD.match(said):
                return said
            return f"{token.markup if token.markup[:1] == '#' else '#' * int(token.tag[1])} {said}" if said else ""
        if kind in ("fence", "code_block"):
            return _fenced(token)
        if kind == "blockquote_open":
            return prefixed(self.blocks(node.children), "> ", "> ")
        if kind in ("bullet_list_open", "ordered_list_open"):
            return self.list(node)
        if kind == "table_open":
            return self.table(node)
        if kind == "hr":
            return "***"
        return self.inline(token, start=True) if kind == "inline" else ""

    def list(self, node: _Node) -> str:
        """Items with their own marks; a task's box is text."""
        number = int(node.token.attrs.get("start", 1))
        tight = all(child.token.hidden for item in node.children for child in item.children if child.token.type == "paragraph_open")
        items = []
        for item in node.children:
            mark = item.token.markup if node.token.type == "bullet_list_open" else f"{number}{item.token.markup}"
            number += 1
            body = self.blocks(item.children, tight)
            body = re.sub(r"^\[(?=[^\n]\\?\])", r"\\[", body)
            items.append(prefixed(body, mark + " ", " " * (len(mark) + 1), blank="") if body else mark)
        return ("\n" if tight else "\n\n").join(items)

    def table(self, node: _Node) -> str:
        """A GFM table."""
        rows = [row for part in node.children for row in part.children]
        lines = []
        for index, row in enumerate(rows):
            cells = [self.inline(cell.children[0].token, start=False, cell=True) if cell.children else "" for cell in row.children]
            lines.append(f"| {' | '.join(cells)} |")
            if index == 0:
                aligned = [str(cell.token.attrs.get("style", "")).rpartition(":")[2] for cell in row.children]
                marks = {"left": ":---", "right": "---:", "center": ":---:"}
                lines.append(f"| {' | '.join(marks.get(one, '---') for one in aligned)} |")
        return "\n".join(lines)

    def inline(self, token: Token, *, start: bool, heading: bool = False, cell: bool = False) -> str:
        """Text, emphasis and code spans; links and images as text."""
        out: list[str] = []
        pending = ""
        dollars = sum(child.content.count("$") for child in token.children or [] if child.type in ("text", "image", "code_inline"))

        def flush(after: str = "") -> None:
            nonlocal pending
            if pending:
                before = out[-1] if out else ""
                out.append(
                    self.text(pending, start=start and not out, heading=heading, cell=cell, math=dollars > 1, around=(before, after))
                )
            pending = ""

        addresses: list[str] = []
        for child in token.children or []:
            if child.type == "text":
                pending += child.content
            elif child.type in ("softbreak", "hardbreak"):
                pending += "\n"
            elif child.type == "image":
                source = str(child.attrs.get("src", ""))
                pending += f"{child.content} ({source})" if child.content else source
            elif child.type == "link_open":
                addresses.append(str(child.attrs.get("href", "")))
            elif child.type == "link_close":
                pending += f" ({addresses.pop()})" if addresses else ""
            elif child.type == "code_inline":
                said = child.content
                # A backslash before the closing mark escapes it for some readers, for others not.
                if not said.strip() or _LIVE_CODE.match(said) or "\n" in said or said.endswith("\\"):
                    pending += said
                else:
                    flush("`")
                    out.append(_code_span(said, cell))
            elif child.type in ("em_open", "em_close", "strong_open", "strong_close"):
                flush(child.markup)
                out.append(child.markup)
            else:
                pending += child.content
        flush()
        return "".join(out).strip("\n")

    def text(self, text: str, *, start: bool, heading: bool, cell: bool, math: bool, around: tuple[str, str]) -> str:
        """A run of text with its allowed wikilinks and its citations; the rest escaped."""
        parts: list[str] = []
        last = 0
        for match in re.finditer(f"{_WIKI.pattern}|{_CITED.pattern}" if self.cite else _WIKI.pattern, text):
            link = ""
            if match[1] is not None:
                if match[1].strip() not in self.allow:
                    continue
                link = match[0]
            elif self.cite is not None:
                link = self.cite(int(match[4]))
                link = match[0][: match[0].index("[")] + link if link else ""
            parts.append(_escaped(text[last : match.start()], start and not parts, heading, cell, math, (around[0], "[" if link else "")))
            parts.append(link.replace("|", "\\|") if cell else link)
            last = match.end()
            around = (parts[-1][-1:], around[1])
        parts.append(_escaped(text[last:], start and not parts, heading, cell, math, around))
        return "".join(parts)


def _escaped(
    text: str, start: bool = True, heading: bool = False, cell: bool = False, math: bool = False, around: tuple[str, str] = ("", "")
) -> str:
    """Plain text as Markdown that shows it and does nothing else. Only what could act is escaped, so prose stays as it is."""
    lines = text.split("\n")
    out = []
    for index, line in enumerate(lines):
        first, last = index == 0, index == len(lines) - 1
        left = around[0][-1:] if first else ""
        right = around[1][:1] if last else ""
        body = _escaped_line(line, left, right, math or line.count("$") > 1, cell)
        if heading and last and not right:
            body = re.sub(r"#(#*\s*)\Z", r"\\#\1", body)
        if (start if first else True) and not left:
            body = _line_start(body.lstrip(" \t"))
        if not last:
            body = body.rstrip(" \t")
        out.append(body)
    if len(out) > 1:
        out[1:] = [line if line.strip() or index == len(out) - 2 else "" for index, line in enumerate(out[1:])]
    return "\n".join(out)


def _line_start(line: str) -> str:
    """What would open a block at a line's start is escaped."""
    if re.match(r"(?:[-+](?=[ \t]|\Z)|#{1,6}(?=[ \t]|\Z)|>|~~~|=+[ \t]*\Z|-[-\s]*\Z|:::)", line) or _DELIMITER_ROW.match(line):
        return "\\" + line
    return re.sub(r"^(\d{1,9})([.)])(?=[ \t]|\Z)", r"\1\\\2", line)


def _escaped_line(line: str, left: str, right: str, math: bool, cell: bool) -> str:
    out: list[str] = []
    for index, char in enumerate(line):
        before = line[index - 1] if index else left
        after = line[index + 1] if index + 1 < len(line) else right
        out.append("\\" + char if char in _MARKS and _acts(line, index, char, before, after, math, cell) else char)
    return "".join(out)


_MARKS = frozenset("\\`*_[](<>!&%{}#^|$:/~")


def _acts(line: str, index: int, char: str, before: str, after: str, math: bool, cell: bool) -> bool:
    """Whether this mark could do something in Markdown, Obsidian or a plugin where it stands."""
    if char in "\\`":
        return True
    if char == "$":
        return math
    if char == "|":
        return cell
    if char == "*":
        return not ((before in ("", " ", "\t") and index > 0) and after in (" ", "\t"))
    if char == "_":
        return not (before.isalnum() and after.isalnum())
    if char == "[":
        return after in ("[", "^", "!", "") or before in ("[", "!", "^") or (index == 0 and line[2:3] == "]" and line[3:4] in (" ", ""))
    if char == "]":
        return after in ("(", "[", ":", "]") or before == "]"
    if char == "<":
        return after.isalpha() or after in ("/", "!", "?", "%", "`", "")
    if char == "&":
        return bool(_ENTITY.match(line, index)) or (after == "")
    if char == "%":
        return before in ("%", "<") or after in ("%", ">")
    if char == "{":
        return before in ("{", "$", "%") or after in ("{", "%", "")
    if char == "}":
        return before == "}" or after == "}"
    if char == "#":
        return bool(after.strip()) and not before.isalnum()
    if char == "(":
        return before == "]"
    if char == ">":
        return before == "%"
    if char == "!":
        return before == "<" or after == "["
    if char == "^":
        return before == "[" or (before in ("", " ", "\t") and bool(re.match(r"\^[A-Za-z0-9-]+[ \t]*\Z", line[index:])))
    if char == ":":
        return before == ":"
    if char == "/":
        return before == ":" and after == "/"
    return char == "~" and index == 0 and line.startswith("~~~")


def _code_span(content: str, cell: bool) -> str:
    content = quiet_code(content)
    longest = max((len(run) for run in re.findall("`+", content)), default=0)
    marks = "`" * (longest + 1 if longest else 1)
    space = " " if content.startswith("`") or content.endswith("`") or (content[:1] == content[-1:] == " " and content.strip()) else ""
    span = f"{marks}{space}{content}{space}{marks}"
    return span.replace("|", "\\|") if cell else span


def _fenced(token: Token) -> str:
    """A fence longer than any in it; a language that is only coloured, else `text`."""
    named = (token.info.split() or [""])[0].lower()
    name = named if named in _LANGUAGES else "text" if named else ""
    body = quiet_code(token.content.removesuffix("\n"))
    longest = max((len(run) for run in re.findall(r"^[ \t>]*(`{3,})", body, re.M)), default=0)
    marks = "`" * max(3, longest + 1)
    return f"{marks}{name}\n{body}\n{marks}"


def quiet_code(code: str) -> str:
    """Template marks act in code and properties too (Templater reads the raw file), where nothing can be escaped: they are spaced."""
    code = re.sub(r"<(?=%)", "< ", code)
    code = re.sub(r"%(?=>)", "% ", code)
    code = re.sub(r"\{(?=\{)", "{ ", code)
    return re.sub(r"<!--(?=[ \t]*UID:)", "<! --", code)


def prefixed(text: str, first: str, rest: str, blank: str | None = None) -> str:
    """Lines with a prefix; empty ones with `blank` (default: the prefix of the rest)."""
    lines = text.split("\n")
    head = first + lines[0]
    return "\n".join([head, *((rest + line) if line or blank is None else blank for line in lines[1:])])
