"""What in a note could do something when Obsidian opens it: read from the text by rules of our own, not by those that made it inert.

Three looks: markdown-it with HTML on (its token tree), the raw text with code and escapes blanked (what Obsidian and its plugins look
for with patterns of their own), and vaultllm's reader of notes and chats. Nothing is imported from `inert`.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from typing import Any

import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

from vaultllm import chats, markdown
from vaultllm.config import ScanSettings

_FULL = MarkdownIt("commonmark", {"html": True, "maxNesting": 200}).enable(["table", "strikethrough"])
_COLOURED = frozenset(
    "bash c c++ cpp cs csharp css diff go html ini java javascript js json kotlin lua makefile markdown md php python py r ruby rust sh sql swift text toml ts typescript txt xml yaml yml".split()  # noqa: E501
)
_RUN = re.compile(
    r"\s*(?:\$?=|\+=|INPUT\[|VIEW\[|BUTTON\[|button-|dice|\{|<%|js[ :]|query[ :]|dv\.|tp\.|embed\b)|.*%%", re.IGNORECASE | re.DOTALL
)
# Anywhere in the file, code or not: Templater and template plugins read the raw text.
_RAW = {"templater": re.compile(r"<%|%>"), "template": re.compile(r"\{\{"), "uid": re.compile(r"<!--\s*UID:\s*(.*?)\s*-->")}
# Outside code, where no backslash stands before.
_LOUD = {
    "comment": re.compile(r"%%"),
    "html": re.compile(r"<(?=[A-Za-z/!?])"),
    "entity of a mark": re.compile(
        r"&(?:lt|gt|amp|num|excl|lbrack|lsqb|grave|percnt|dollar|#0*(?:33|35|36|37|60|91|96)|#x0*(?:21|23|24|25|3c|5b|60));", re.IGNORECASE
    ),
    "embed": re.compile(r"!\[\["),
    "image": re.compile(r"!\[[^\]\n]*\]\("),
    "footnote": re.compile(r"\[\^|\^\["),
    "address": re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://"),
    "definition": re.compile(r"^[ \t>]*\[[^\]\n]+\]:", re.MULTILINE),
    "callout": re.compile(r"^[ \t]*(?:>[ \t]*)+\[!([^\]\n]*)\]", re.MULTILINE),
    "task": re.compile(r"^[ \t>]*(?:(?:[-*+]|\d+[.)])[ \t]+)+\[[^\]\n]\](?=\s|$)", re.MULTILINE),
    "tag": re.compile(r"(?<![\w\\&/])#(?=[^\s#\\])[^\s#]*[^\W\d]"),
    "block id": re.compile(r"(?:^|[ \t])\^[A-Za-z0-9-]+[ \t]*$", re.MULTILINE),
    "field": re.compile(r"::"),
    "math": re.compile(r"\$[^$\n]+\$|\$\$"),
    "old chat head": re.compile(r"^[ \t>]*#{1,6} (?:User|ChatGPT|Assistant), on ", re.MULTILINE),
}  # fmt: skip
_LINKED = re.compile(r"(?<!!)\[\[([^\]\[|#]*)|(?<!!)\[[^\]\n]*\]\(([^()\s]*)\)")
_IGNORABLE = frozenset(
    (
        *(0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2065, 0x2800, 0x3164, 0xFFA0, 0x1D159),
        *(*range(0x180B, 0x1810), *range(0xFE00, 0xFE0E), *range(0xFFF0, 0xFFFC), *range(0xE0000, 0xE1000)),
    )
)  # of Unicode's Default_Ignorable_Code_Point what nobody writes, and two blanks


def alive(text: str) -> Counter[str]:
    """What could act in the text of a note (from its first byte on), and how often."""
    found: Counter[str] = Counter()
    found.update(f"hidden U+{ord(char):04X}" for char in re.findall(r"[^ -~\n\t\u0400-\u045f]", text) if _hidden(char))
    for name, pattern in _RAW.items():
        found.update(f"{name} {match[1] if pattern.groups else match[0]}" for match in pattern.finditer(text))
    properties, body = _front(text)
    for key, value in properties.items():
        found[f"property {key}"] += 1
        for one in value if isinstance(value, list) else [value]:
            found.update(f"link in a property {match[1].strip()}" for match in re.finditer(r"\[\[([^\]|#]*)", str(one)))
            if key != "vaultllm_sources":
                found.update(_tokens(str(one)))  # a table of properties draws them as Markdown
    found.update(_tokens(body))
    quiet = _without_code(body)
    for name, pattern in _LOUD.items():
        found.update(name if not pattern.groups else f"{name} {match[1]}" for match in pattern.finditer(quiet))
    found.update(f"link to {match[1] if match[1] is not None else match[2]}" for match in _LINKED.finditer(quiet))
    found.update(_ours(text))
    return found


def _hidden(char: str) -> bool:
    if char in "\n\t\u200c\u200d" or (ord(char) < 0x300 and char.isprintable()):
        return False
    return ord(char) in _IGNORABLE or unicodedata.category(char) in ("Cc", "Cf", "Co", "Cs")


def _front(text: str) -> tuple[dict[str, Any], str]:
    match = re.match(r"---\n(.*?\n)---\n", text, re.DOTALL)
    if match is None:
        return {}, text
    return yaml.load(match[1], Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader)), text[match.end() :]


def _tokens(body: str) -> Counter[str]:
    found: Counter[str] = Counter()

    def look(tokens: list[Token]) -> None:
        for token in tokens:
            if token.type in ("html_block", "html_inline"):
                found[f"token {token.type} {' '.join(token.content.split())}"] += 1
            if token.type == "fence" and token.info not in _COLOURED | {""}:
                found[f"fence {token.info}"] += 1
            if token.type == "link_open":
                found[f"token link {token.attrs.get('href')}"] += 1
            if token.type == "image":
                found["token image"] += 1
            if token.type == "code_inline" and _RUN.match(token.content):
                found[f"span {token.content}"] += 1
            look(token.children or [])

    look(_FULL.parse(body))
    return found


def _without_code(body: str) -> str:
    """The body with code blanked, and with each escaped mark taken out: by lines and marks, not by a parser of Markdown."""
    kept: list[str] = []
    fence, depth = "", 0
    for line in body.split("\n"):
        inner = re.sub(r"^(?:[ \t]*(?:>|[-*+][ \t]|\d{1,9}[.)][ \t]))*[ \t]*", "", line)
        quotes = re.match(r"[ \t>]*", line)[0].count(">")  # type: ignore[index]
        if fence and quotes < depth:
            fence = ""  # the quote that it stands in has ended
        opens = re.match(r"(`{3,})[^`]*$|(~{3,})", inner)
        if fence:
            if re.fullmatch(re.escape(fence[0]) + "{" + str(len(fence)) + r",}[ \t]*", inner):
                fence = ""
            kept.append("")
        elif opens:
            fence, depth = opens[1] or opens[2], quotes
            kept.append("")
        else:
            kept.append(_without_spans(line))
    return "\n".join(kept)


def _without_spans(line: str) -> str:
    line = line.replace("\\\\", "·")
    line = re.sub(r"\\[!-/:-@\[-`{-~]", "·", line)
    out, at = "", 0
    while (begin := re.compile("`+").search(line, at)) is not None:
        end = re.compile(rf"(?<!`){begin[0]}(?!`)").search(line, begin.end())
        out += line[at : begin.start()]
        at = end.end() if end else begin.end()
        out += "C" if end else begin[0]
    return out + line[at:]


def _ours(text: str) -> Counter[str]:
    """What vaultllm itself would take out of this note."""
    found: Counter[str] = Counter()
    note = markdown.parse("x.md", text.encode("utf-8", "replace"))
    found.update(f"read link {link.target} {'embed' if link.embed else ''}" for link in note.links)
    found.update(f"read tag {tag}" for tag in note.tags)
    found.update(f"read id {block.block_id}" for block in note.blocks if block.block_id)
    found.update(f"read {block.kind}" for block in note.blocks if block.kind in ("comment", "footnote", "math", "html"))
    found.update(f"read problem {problem.code}" for problem in note.problems)
    reader, _, talks = chats.read(note, ScanSettings(), "")
    found.update(f"read turn {turn.role} {turn.uid}" for talk in talks for turn in talk.turns if reader)
    return found
