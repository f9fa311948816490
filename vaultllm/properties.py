"""Front matter: the `---` block at the top of a note -> properties.

Decides by content whether a leading `---` is front matter or a thematic break, bounds the block before any YAML
parser sees it, and falls back to reading it line by line, so that no note is lost to its properties. Ordinary blocks
never reach the YAML parser, which takes most of the time of a note (and is imported with the first that does): a strict
recogniser reads what it is sure of.
Knows nothing about Markdown or what the properties mean.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vaultllm.schema import Problem
from vaultllm.text import encodable

if TYPE_CHECKING:
    from ruamel.yaml.nodes import MappingNode, Node

MAX_CHARS = 64 * 1024
MAX_DEPTH = 50
MAX_ALIASES = 50
MAX_NODES = 20_000  # aliases multiply: fifty of them can stand for millions of values
PLAIN_CHARS = 16 * 1024  # a plain block of this length cannot hold MAX_NODES values

_CLOSE = re.compile(r"\n(?:---|\.\.\.)[ \t]*$", re.M)
_KEY = re.compile(r"""(?:"[^"\n]{0,200}"|'[^'\n]{0,200}'|(?![-+][ \t])[^\s:#>|*<!\["'][^:\n]{0,200}?)[ \t]*:(?=\s|$)""")
_ITEM = re.compile(r"[ \t]*-(?:[ \t]+|$)")
_COMMENT = re.compile(r"[ \t]*#(?!#)")
_ALIAS = re.compile(r"(?:^|[\s\[{,:-])\*[^\s*,\]}]", re.M)
_TOML = re.compile(r"""[\w."'-]{1,100}[ \t]*=""")
_JSON = re.compile(r'[ \t]*"[^"\n]{1,200}"[ \t]*:')
_HASHED = re.compile(r"^([^\s:#]{1,50}):[ \t]{1,20}#[^\s#]", re.M)
_WIKILINK = re.compile(r"\[\[[^\[\]\n]+\]\]")
_INT = re.compile(r"[-+]?(?:0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"[-+]?(?:[0-9]{1,17}\.[0-9]{0,17}|\.[0-9]{1,17}|[0-9]{1,17}(?=[eE]))(?:[eE][-+]?[0-9]{1,2})?")
# What the recogniser of plain blocks is sure of. A value starts with no sign of YAML's and holds neither `: ` nor ` #`;
# tabs, control characters and the Unicode line ends (which YAML counts as line ends) are the parser's business.
_ODD = re.compile("[\0-\t\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff\ufffe\uffff]")
_FIRST = r"[^ \-?:,\[\]{}#&*!|>'\"%@`]"
_QUOTED = r"""\"[^"\\]*+"|'[^']*+'"""
_SAID = rf"(?P<said>(?:{_FIRST}|-(?=[\d.]))[^:#]*+(?:(?::(?=[^ ])|(?<=[^ ])#)[^:#]*+)*+)"
_FLOW_ITEM = rf"(?:{_QUOTED}|{_FIRST}[^,\[\]{{}}:#]*+) *+"
_FLOW = rf"(?P<flow>\[ *+(?:{_FLOW_ITEM}(?:, *+{_FLOW_ITEM})*+)?\])"
_SCALAR = rf"(?:(?P<quoted>{_QUOTED}) *+|{_SAID})"
_PLAIN_LINE = re.compile(
    rf"(?P<key>(?![<=~]){_FIRST}[^:#\[\]{{}},&*!|>'\"%@`]{{0,200}}+)(?<! ):(?: ++(?:{_FLOW} *+|{_SCALAR})?)?"
    rf"|(?P<indent> {{0,20}}+)-(?P<item> ++{_SCALAR.replace('<quoted>', '<item_quoted>').replace('<said>', '<item_said>')})"
    r"|#.*+"
)
_FLOW_ITEMS = re.compile(rf"({_QUOTED})|({_FIRST}[^,\[\]{{}}:#]*+)")
_WORDS: dict[str, bool | None] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}


def is_silenced(properties: Mapping[str, Any]) -> bool:
    """Whether the owner has written `vaultllm: off`: in this note nothing is answered."""
    said = properties.get("vaultllm")
    return said is False or (isinstance(said, str) and said.strip().lower() in ("off", "no", "false", "нет", "না"))


@dataclass(frozen=True, slots=True)
class FrontMatter:
    """The properties of a note, and where its body begins."""

    properties: dict[str, Any]
    """By name; strings, numbers, booleans, None, and lists (or, rarely, dicts) of them."""
    body_line: int
    """The first line after the closing `---`; 1 when there is no front matter."""
    problems: tuple[Problem, ...]
    """`W-FM-…`: what could not be read as meant."""


class _UnreadableError(Exception):
    """The block cannot be read as YAML properties: why, and on which of its lines (from 0)."""

    def __init__(self, why: str, line: int = 0) -> None:
        super().__init__(why)
        self.why = why
        self.line = line


def front_matter(text: str) -> FrontMatter:
    """The front matter of a decoded note (newlines as `\\n`). Never raises; what is not front matter stays body."""
    first = text.find("\n")
    if first < 0 or text[:first].rstrip() != "---":
        return FrontMatter({}, 1, _foreign(text, first))
    close = _CLOSE.search(text, first)
    block = text[first + 1 : close.start() + 1 if close else first + 1 + MAX_CHARS]
    lines = block.split("\n")
    said = [line for line in lines if line and not line.isspace() and not ("#" in line and _COMMENT.match(line))]
    tight = bool(lines[0].strip())
    likely = bool(said) and _KEY.match(said[0]) is not None
    if close is None:
        return FrontMatter(
            {}, 1, _unclosed() if tight and likely and _share(lines[: lines.index("")] if "" in lines else lines) == 1 else ()
        )
    body_line = len(lines) + 2
    if not said:
        # Only comments could as well be a heading between two rules: as body, nothing of it is lost.
        return FrontMatter({}, 1 if block.strip() else body_line, ())
    if not likely and not said[0].startswith("{"):
        whole = tight and all(line.strip() for line in lines[:-1]) and len(said) <= 20
        return FrontMatter({}, 1, _no_mapping() if whole else ())
    plain = _plain(block)
    if plain is not None:
        return FrontMatter(plain, body_line, ()) if likely and _share(said) > 0.5 else FrontMatter({}, 1, ())
    import frontmatter

    handler = _Properties()
    try:
        properties, _ = frontmatter.parse("---\n" + block + "---\n", handler=handler)
    except _UnreadableError as error:
        if not likely or _share(said) < 0.5:
            return FrontMatter({}, 1, _no_mapping() if tight else ())
        message = f"the front matter is not valid YAML ({error.why}); its lines were read one by one; mend that line"
        return FrontMatter(_by_line(lines), body_line, (Problem("W-FM-YAML", message, error.line + 2),))
    if likely and _share(said) <= 0.5:  # text between two rules that happens to parse: `Note: …`, and headings as comments
        return FrontMatter({}, 1, ())
    return FrontMatter(properties, body_line, (*_hashed(block), *handler.problems))


def _plain(block: str) -> dict[str, Any] | None:
    """The properties of a block that holds only plain and quoted scalars and lists of them; None: the YAML parser's business.

    Exactly what the full path gives, at a thirtieth of its time (tests/test_properties.py compares them).
    """
    if len(block) > PLAIN_CHARS or block.count("[") + block.count("{") > MAX_DEPTH or block.count("*") > MAX_ALIASES or _ODD.search(block):
        return None
    found: dict[str, Any] = {}
    items: list[Any] | None = None  # the list under the last key, as long as items may follow
    key, indent = "", -1
    for line in block.split("\n"):
        if not line:
            continue
        match = _PLAIN_LINE.fullmatch(line)
        if match is None:
            return None
        name, flow, quoted, said, margin, item, item_quoted, item_said = match.groups()
        if name is not None:
            if name in found:
                return None
            items = None
            if flow is not None:
                found[name] = [
                    part[1:-1] if part else scalar(plain.rstrip(" ")) for part, plain in _FLOW_ITEMS.findall(flow, 1, len(flow) - 1)
                ]
            elif quoted is not None:
                found[name] = quoted[1:-1]
            elif said is not None:
                found[name] = scalar(said.rstrip(" "))
            else:
                found[name], key, items, indent = None, name, [], -1
        elif item is not None:
            if items is None or indent not in (-1, len(margin)):
                return None
            indent = len(margin)
            items.append(item_quoted[1:-1] if item_quoted is not None else scalar(item_said.rstrip(" ")))
            found[key] = items
    return found or None


def _share(lines: list[str]) -> float:
    """Share of lines that look like properties: `key:`, `- item`, or indented under one."""
    return len([1 for line in lines if line[0] in " \t]}" or _KEY.match(line) or _ITEM.match(line)]) / len(lines)


def _unclosed() -> tuple[Problem, ...]:
    return (Problem("W-FM-OPEN", "the front matter is not closed, so it is read as text; put --- on the line after the properties", 1),)


def _foreign(text: str, first: int) -> tuple[Problem, ...]:
    """A warning for front matter of other programs (TOML, JSON), whose first line ends at `first`: to Obsidian it is text."""
    second = text[first + 1 : first + 300]
    if text.startswith("+++") and text[:first].rstrip() == "+++" and _TOML.match(second) and "\n+++" in text:
        code, kind = "W-FM-TOML", "TOML between +++ lines"
    elif text.startswith("{") and text[:first].rstrip() == "{" and _JSON.match(second) and "\n}" in text:
        code, kind = "W-FM-JSON", "JSON"
    else:
        return ()
    message = f"properties in {kind} are kept as text, as in Obsidian; write them as YAML between --- lines to have them read"
    return (Problem(code, message, 1),)


def _hashed(block: str) -> tuple[Problem, ...]:
    """A warning for `tags: #idea`: YAML takes what follows the # for a comment, and so does Obsidian."""
    found = _HASHED.search(block)
    if found is None:
        return ()
    message = f"what follows # on this line is a comment in YAML, so '{found[1]}' has no value; leave the # out, or quote the value"
    return (Problem("W-FM-HASH", message, block.count("\n", 0, found.start()) + 2),)


def _no_mapping() -> tuple[Problem, ...]:
    return (Problem("W-FM-YAML", "the block between the --- lines holds no `key: value` properties; it is kept as text", 1),)


class _Properties:
    """A handler for python-frontmatter on ruamel.yaml's pure-Python YAML 1.2 (the C loader can be crashed by brackets)."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def split(self, text: str) -> tuple[str, str]:
        """The block without its `---` lines, which `front_matter` found."""
        return text[4 : text.rindex("---")], ""

    def load(self, fm: str, **_: object) -> dict[str, Any]:
        """The properties. Raises _UnreadableError, also for what no parser should see."""
        if len(fm) > MAX_CHARS:
            raise _UnreadableError(f"longer than {MAX_CHARS // 1024} KB")
        depth = 0
        for at, char in enumerate(fm):
            depth += (char in "[{") - (char in "]}")
            if depth > MAX_DEPTH:
                raise _UnreadableError(f"brackets nested deeper than {MAX_DEPTH}", fm.count("\n", 0, at))
        if len(_ALIAS.findall(fm)) > MAX_ALIASES:
            raise _UnreadableError(f"more than {MAX_ALIASES} aliases")
        from ruamel.yaml import YAML
        from ruamel.yaml.error import MarkedYAMLError, YAMLError

        try:
            node = YAML(typ="safe", pure=True).compose(fm)
            value = _Builder(fm, self.problems).value(node, 0)
        except MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise _UnreadableError(str(error.problem or error.context or "syntax"), mark.line if mark else 0) from error
        except YAMLError as error:
            raise _UnreadableError(str(error).split("\n")[0]) from error
        except RecursionError as error:
            raise _UnreadableError("nested too deeply") from error
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError, NotImplementedError) as error:
            raise _UnreadableError(f"{type(error).__name__}: {error}") from error
        if not isinstance(value, dict):
            raise _UnreadableError("no `key: value` at the top")
        return value


class _Builder:
    """YAML nodes -> plain values: our own rules for scalars, duplicate keys and unquoted links, and a bound on the size."""

    def __init__(self, source: str, problems: list[Problem]) -> None:
        self.source = source
        self.problems = problems
        self.left = MAX_NODES

    def value(self, node: Node | None, depth: int) -> Any:
        """The value of a node. Raises _UnreadableError when it is too deep, too large, or keyed by something else than a scalar."""
        from ruamel.yaml.nodes import MappingNode, ScalarNode, SequenceNode

        if node is None:
            return None
        self.left -= 1
        if depth > MAX_DEPTH or self.left < 0:
            raise _UnreadableError("nested too deeply" if depth > MAX_DEPTH else "too many values", node.start_mark.line)
        tag = str(node.tag)
        if not tag.startswith("tag:yaml.org,2002:") or "python" in tag:
            message = f"the YAML tag {tag} is not acted on; its text is kept"
            self.problems.append(Problem("W-FM-TAG", message, node.start_mark.line + 2))
        if isinstance(node, MappingNode):
            return self.mapping(node, depth)
        if isinstance(node, SequenceNode):
            written = self.source[node.start_mark.index : node.end_mark.index]
            if _WIKILINK.fullmatch(written):  # `up: [[Note]]`: YAML sees a list in a list, its owner meant a link
                return written
            return [self.value(item, depth + 1) for item in node.value]
        assert isinstance(node, ScalarNode)
        said = encodable(str(node.value))
        return said if node.style else scalar(said)

    def mapping(self, node: MappingNode, depth: int) -> dict[str, Any]:
        """A mapping; the last of two equal keys wins, with a problem that names both lines; `<<` lends what is missing."""
        from ruamel.yaml.nodes import ScalarNode

        result: dict[str, Any] = {}
        lines: dict[str, int] = {}
        lent: dict[str, Any] = {}
        for key, item in node.value:
            if not isinstance(key, ScalarNode):
                raise _UnreadableError("a property's name or value in braces, as in a template", key.start_mark.line)
            name, line = encodable(str(key.value)), key.start_mark.line + 2
            value = self.value(item, depth + 1)
            if name == "<<" and not key.style:
                for other in value if isinstance(value, list) else [value]:
                    lent = {**other, **lent} if isinstance(other, dict) else lent
                continue
            if name in result:
                message = f"the property '{name}' stands on lines {lines[name]} and {line}; the last one is taken"
                self.problems.append(Problem("W-FM-DUP", message, line))
            result[name] = value
            lines[name] = line
        return {**lent, **result}


def scalar(written: str) -> str | int | float | bool | None:
    """An unquoted YAML 1.2 scalar: null, true/false, plain numbers; all else (dates, `no`, `12:30`, `017`, `.inf`) as written."""
    if written in _WORDS:
        return _WORDS[written]
    if written[0] not in "+-.0123456789":
        return written
    if _INT.fullmatch(written):
        return int(written)
    return float(written) if _FLOAT.fullmatch(written) else written


def _by_line(lines: list[str]) -> dict[str, Any]:
    """Properties of a block that is no YAML: `key: value` and `- item` lines; any other line continues the value above it."""
    found: dict[str, list[tuple[bool, list[str]]]] = {}  # per key: is it a list item, and its lines
    key = ""
    for line in lines:
        if not line.strip() or _COMMENT.match(line):
            continue
        if match := _KEY.match(line):
            key = _unquoted(match[0][:-1].rstrip())
            found.setdefault(key, []).append((False, [line[match.end() :].strip()]))
        elif item := _ITEM.match(line):
            found.setdefault(key, []).append((True, [line[item.end() :].strip()]))
        else:
            found.setdefault(key, [(False, [])])[-1][1].append(line.strip())
    return {name: _value(entries) for name, entries in found.items()}


def _value(entries: list[tuple[bool, list[str]]]) -> Any:
    values = [_simple("\n".join(filter(None, lines))) for _, lines in entries]
    if not entries[0][0]:
        if len(values) == 1:
            return values[0]
        values = values[values[0] is None :]
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _unquoted(written: str) -> str:
    return written[1:-1] if len(written) > 1 and written[0] == written[-1] and written[0] in "\"'" else written


def _simple(written: str) -> Any:
    """A value as written: quoted, `[a, b]`, or a scalar."""
    if written[:1] in ("'", '"'):
        return _unquoted(written)
    if written.startswith("[") and written.endswith("]") and "[" not in written[1:]:
        return [_simple(part.strip()) for part in written[1:-1].split(",") if part.strip()]
    return scalar(written)
