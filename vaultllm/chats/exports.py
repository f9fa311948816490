"""What the readers of chat exports (`conversations.json`) share: the elements of a large JSON array, one by one, with their lines.

One broken element costs only itself where the next one can be found. Knows nothing about any program's fields.
"""

from __future__ import annotations

import bisect
import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from vaultllm.schema import Conversation, Lines, Note, Problem, Turn
from vaultllm.text import encodable

_NEXT = re.compile(r"[\[,}]\s*(?=\{\s*\")")
_SPACE = re.compile(r"[ \t\n\r]*")
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_DECODER = json.JSONDecoder(strict=False)  # raw control characters in strings are met in real exports
_ATTEMPTS = 2000  # places tried after an error, so that a hostile file ends too

Reading = Callable[[dict[str, Any], Lines], Conversation]


def is_export(note: Note, key: str) -> bool:
    """Whether a `.json` file has an object or an array at its top and the key anywhere (a quoted one inside a string is escaped)."""
    return note.path.lower().endswith(".json") and note.text[:64].lstrip()[:1] in ("[", "{") and f'"{key}"' in note.text


def read_export(note: Note, key: str, read: Reading) -> list[Conversation]:
    """The conversations of an export: objects that have `key`, through `read`; what is broken is a conversation without turns."""
    found: list[Conversation] = []
    for value, lines, problem in _elements(note.text, key):
        if problem is not None:
            found.append(no_conversation(lines, problem))
        elif isinstance(value, dict) and key in value:
            found.append(read(value, lines))
        else:
            message = f"this element is not a conversation (it has no '{key}'); it is left out"
            found.append(no_conversation(lines, Problem("E-SHAPE", message, lines[0])))
    return found


def no_conversation(lines: Lines, problem: Problem) -> Conversation:
    """A conversation that could not be read: it carries its problem."""
    return Conversation("", "", "", "", (), lines, problems=(problem,))


def with_turns(id: str, title: str, provider: str, created: str, lines: Lines, turns: Sequence[Turn]) -> Conversation:
    """A conversation of the turns that have a text; the others (an image only) are counted in a problem."""
    kept = tuple(turn for turn in turns if turn.text)
    empty = len(turns) - len(kept)
    problems = (Problem("W-EMPTY", f"{empty} messages have no text (files or images only); they are left out", lines[0]),) if empty else ()
    return Conversation(id, title, provider, created, kept, lines, problems=problems)


def _elements(text: str, key: str) -> Iterator[tuple[Any, Lines, Problem | None]]:
    """Each element of the top-level array (or the one object) with its lines, or what is wrong there."""
    newlines = [match.start() for match in re.finditer("\n", text)]

    def lines(start: int, end: int) -> Lines:
        return bisect.bisect_left(newlines, start) + 1, bisect.bisect_left(newlines, max(start, end - 1)) + 1

    halves = _SURROGATE.search(text) is not None
    place = _skip(text, 0)
    in_array = text[place : place + 1] == "["
    place = _skip(text, place + 1) if in_array else place
    while place < len(text) and not (in_array and text[place] == "]"):
        start = place
        try:
            value, end = _DECODER.raw_decode(text, place)
            yield (_encodable(value) if halves else value), lines(place, end), None
            place = _skip(text, end)
            if not in_array or text[place : place + 1] == "]":
                return
            if text[place : place + 1] != ",":
                raise json.JSONDecodeError("expecting ',' or ']'", text, end - 1)
            place = _skip(text, place + 1)
            if place == len(text):
                raise json.JSONDecodeError("the file ends here", text, place)
        except (ValueError, RecursionError) as error:
            broken = error.pos if isinstance(error, json.JSONDecodeError) else start
            what = error.msg if isinstance(error, json.JSONDecodeError) else type(error).__name__
            onward = _resume(text, max(broken, start), key)
            row = bisect.bisect_left(newlines, broken)
            column = broken - (newlines[row - 1] if row else -1)
            message = f"the JSON is broken at {row + 1}:{column} ({what}); the conversation there is left out, export it again"
            yield None, lines(start, onward), Problem("E-JSON", message, row + 1)
            place = onward


def _encodable(value: Any) -> Any:
    """A decoded value whose strings have no lone surrogates: an export that cut an emoji in half spells them as escapes."""
    if isinstance(value, str):
        return encodable(value)
    if isinstance(value, list):
        return [_encodable(item) for item in value]
    if isinstance(value, dict):
        return {encodable(key): _encodable(item) for key, item in value.items()}
    return value


def _skip(text: str, place: int) -> int:
    match = _SPACE.match(text, place)
    return match.end() if match else place


def _resume(text: str, place: int, key: str) -> int:
    """Where the next object with the key begins after an error; the end of the text when none does."""
    for _ in range(_ATTEMPTS):
        found = _NEXT.search(text, place)
        if found is None:
            break
        try:
            value, end = _DECODER.raw_decode(text, found.end())
        except (ValueError, RecursionError):
            place = found.end() + 1
            continue
        if isinstance(value, dict) and key in value:
            return found.end()
        place = end
    return len(text)
