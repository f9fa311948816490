"""A file of questions -> questions, their evidence, and the notes that hold it (if the file brings them).

Two shapes. SQuAD's: {"data": [{"title", "paragraphs": [{"context", "qas": [{"question", "is_impossible"?, "category"?}]}]}]}:
each paragraph becomes a note under its article's title, and is the evidence of its questions. Or objects, one a line (or in one
JSON array): {"question", "uids" | "paths" | "evidence", "category"?, "group"?, "answerable"?} asks, {"path", "text"} is a note; without
such notes the evidence stands in a vault. {"question", "context", "title"?, "answers"?} is SQuAD's as the Hugging Face hub has
it, a question a line. What is malformed is left out and named, never guessed. Knows nothing about vaults.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from vaultllm.errors import DataError, UsageError
from vaultllm.text import encodable, nfc
from vaultllm.vault import is_note

_EVIDENCE = ("uids", "paths", "evidence")  # the first that is there counts: turns are finer than the notes they stand in
_SHOWN = 5  # places named of each reason


@dataclass(frozen=True, slots=True)
class Question:
    """One question and what answers it."""

    text: str
    """As asked."""
    evidence: tuple[str, ...]
    """UIDs of turns or paths of notes, as written, each once; empty when nothing answers it."""
    category: str = ""
    """As the file names it; empty if it does not."""
    group: str = ""
    """Its article; empty when unknown. Questions of one group are not independent."""

    @property
    def answerable(self) -> bool:
        """Whether anything answers it."""
        return bool(self.evidence)


@dataclass(slots=True)
class Skipped:
    """What was left out: reason -> where."""

    places: dict[str, list[str]] = field(default_factory=dict)
    """Reason -> places, in order (`line 7`, `item 2`, `data[0].paragraphs[3]`)."""

    def add(self, reason: str, where: str) -> None:
        """Something is left out."""
        self.places.setdefault(reason, []).append(where)

    def shown(self) -> list[dict[str, Any]]:
        """[{reason, count, where: the first places}] for `--json`."""
        return [{"reason": reason, "count": len(where), "where": where[:_SHOWN]} for reason, where in self.places.items()]

    def sentence(self) -> str:
        """The same as half a sentence; empty when nothing was left out."""
        return "; ".join(f"{where[0]}: {reason}" + (f" ({len(where)} times)" if where[1:] else "") for reason, where in self.places.items())


@dataclass(frozen=True, slots=True)
class Data:
    """What a file of questions holds."""

    squad: bool
    """Whether its notes are SQuAD's paragraphs."""
    notes: Mapping[str, str]
    """Path -> Markdown, of the notes that the file brings; empty when its evidence stands in a vault."""
    questions: tuple[Question, ...]
    """In the order of the file, answerable and not."""
    skipped: Skipped
    """What was malformed."""


def read(path: Path) -> Data:
    """Read a file of questions. Raises UsageError when it cannot be opened, DataError when it holds no questions."""
    try:
        said = path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError("this is not UTF-8; save the file as UTF-8", path=str(path), line=line) from error
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"the questions cannot be read ({why}); name a file of SQuAD's shape or JSON lines", path=str(path)) from error
    skipped = Skipped()
    whole, wrong = _json(said)
    articles = whole.get("data") if isinstance(whole, dict) else whole
    if isinstance(articles, list) and (articles is not whole or any(isinstance(one, dict) and "paragraphs" in one for one in articles)):
        found = _squad(articles, skipped)
    elif isinstance(whole, list):
        found = _objects(((f"item {number}", item) for number, item in enumerate(whole, 1)), skipped)
    elif isinstance(whole, dict) and not _is_ours(whole):
        raise DataError('neither "data" (SQuAD) nor "question" is in this object; see: vaultllm bench recall --help', path=str(path))
    else:
        rows = [(number, row) for number, row in enumerate(said.split("\n"), 1) if row.strip()]
        parsed = [(f"line {number}", _json(row)[0]) for number, row in rows]
        if not any(isinstance(one, dict) and _is_ours(one) for _, one in parsed):
            raise _no_questions(path, rows, wrong)
        found = _objects(parsed, skipped)
    if not found.questions:
        why = skipped.sentence() or "the file holds notes only" if found.notes else skipped.sentence() or "the file is empty"
        raise DataError(f"there is no question to ask: {why}", path=str(path))
    return found


def _json(said: str) -> tuple[Any, json.JSONDecodeError | None]:
    """The value, or None and where the text stops being JSON."""
    try:
        return json.loads(said, strict=False), None
    except json.JSONDecodeError as error:
        return None, error
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists in lists
        return None, None


def _is_ours(item: dict[str, Any]) -> bool:
    return "question" in item or ("path" in item and "text" in item)


def _no_questions(path: Path, rows: list[tuple[int, str]], error: json.JSONDecodeError | None) -> DataError:
    if not rows:
        return DataError("the file is empty; it needs questions", path=str(path))
    line = error.lineno if error is not None else rows[0][0]
    why = f"{error.msg} at column {error.colno}" if error is not None else "no object with a question is in it"
    return DataError(f"this is neither JSON nor JSON lines of questions: {why}; mend that place", path=str(path), line=line)


# -- SQuAD


def _squad(articles: list[Any], skipped: Skipped) -> Data:
    """Each distinct paragraph once as a note: some releases repeat it with every question, and a copy would take its rank."""
    notes: dict[str, str] = {}
    by_text: dict[str, str] = {}
    questions: list[Question] = []
    for a, article in enumerate(articles):
        where = f"data[{a}]"
        paragraphs = article.get("paragraphs") if isinstance(article, dict) else None
        if not isinstance(paragraphs, list):
            skipped.add("an article without a list of paragraphs", where)
            continue
        for p, paragraph in enumerate(paragraphs):
            context = paragraph.get("context") if isinstance(paragraph, dict) else None
            if not isinstance(context, str) or not context.strip():
                skipped.add("a paragraph without a context", f"{where}.paragraphs[{p}]")
                continue
            path = _paragraph(article.get("title"), context, f"{a:04d}/{p:04d}.md", notes, by_text)
            asked = paragraph.get("qas", [])
            for q, qa in enumerate(asked if isinstance(asked, list) else []):
                text = qa.get("question") if isinstance(qa, dict) else None
                if not isinstance(text, str) or not text.strip():
                    skipped.add("a question without text", f"{where}.paragraphs[{p}].qas[{q}]")
                    continue
                evidence = () if qa.get("is_impossible") is True else (path,)
                questions.append(Question(encodable(text.strip()), evidence, _category(qa), where))
    return Data(True, notes, tuple(questions), skipped)


def _paragraph(title: Any, context: str, path: str, notes: dict[str, str], by_text: dict[str, str]) -> str:
    """The path of the note that a paragraph is: a new one, or that of the same text."""
    path = by_text.setdefault(nfc(" ".join(context.split())), path)
    heading = " ".join(title.replace("_", " ").split()) if isinstance(title, str) else ""
    notes.setdefault(path, encodable((f"# {heading}\n\n" if heading else "") + context.strip("\n") + "\n"))
    return path


# -- objects


def _objects(items: Iterable[tuple[str, Any]], skipped: Skipped) -> Data:
    notes: dict[str, str] = {}
    by_text: dict[str, str] = {}
    questions: list[Question] = []
    for where, item in items:
        if not isinstance(item, dict):
            skipped.add("this is no JSON object", where)
        elif "question" in item:
            context = item.get("context")
            if isinstance(context, str) and context.strip() and not any(key in item for key in _EVIDENCE):
                path = _paragraph(item.get("title"), context, f"{len(by_text):06d}.md", notes, by_text)
                item = {**item, "paths": [path], "answerable": not _is_impossible(item), "group": item.get("title")}
            made = _question(item)
            if isinstance(made, str):
                skipped.add(made, where)
            else:
                questions.append(made)
        elif isinstance(item.get("path"), str) and isinstance(item.get("text"), str):
            if wrong := _wrong_path(item["path"], notes):
                skipped.add(wrong, where)
            else:
                notes[item["path"]] = encodable(item["text"])
        else:
            skipped.add("neither a question nor a note (path and text)", where)
    return Data(bool(by_text), notes, tuple(questions), skipped)


def _is_impossible(item: Mapping[str, Any]) -> bool:
    """Whether SQuAD's row says that its context does not answer: in words, or by a list of answers that holds none."""
    answers = item.get("answers")
    return item.get("is_impossible") is True or (isinstance(answers, dict) and answers.get("text") == [])


def _question(item: dict[str, Any]) -> Question | str:
    """The question, or why it is none."""
    text, answerable = item["question"], item.get("answerable", True)
    if not isinstance(text, str) or not text.strip():
        return "a question without text"
    if not isinstance(answerable, bool):
        return '"answerable" is neither true nor false'
    named: Any = next((item[key] for key in _EVIDENCE if key in item and item[key] not in (None, [])), [])
    evidence = _names(named)
    if evidence is None:
        return "evidence is a list of UIDs or paths, and this holds something else"
    if answerable and not evidence:
        return 'a question without evidence (say "answerable": false if nothing answers it)'
    group = item.get("group")
    return Question(encodable(text.strip()), evidence if answerable else (), _category(item), group if isinstance(group, str) else "")


def _names(value: Any) -> tuple[str, ...] | None:
    """Names of evidence, each once; None when something else is among them."""
    listed = value if isinstance(value, list) else [value]
    if not all(isinstance(one, str | int) and not isinstance(one, bool) and str(one).strip() for one in listed):
        return None
    return tuple(dict.fromkeys(str(one).strip() for one in listed))


def _category(item: dict[str, Any]) -> str:
    value = item.get("category")
    return str(value).strip() if isinstance(value, str | int | float) and not isinstance(value, bool) else ""


def _wrong_path(path: str, taken: Mapping[str, str]) -> str:
    """Why a note cannot be written under this path; empty when it can."""
    parts = PurePosixPath(path).parts
    if not parts or PurePosixPath(path).is_absolute() or ".." in parts or "\\" in path or "\0" in path or ":" in parts[0]:
        return "a note's path leads out of the vault"
    if any(part.startswith(".") for part in parts) or not is_note(parts[-1]):
        return "a note's path is no note's (hidden, or not .md)"
    if encodable(path) != path or any(len(part.encode()) > 250 for part in parts):
        return "a note's path cannot be a file's name"
    return "a note's path stands twice" if path in taken else ""


def write(notes: Mapping[str, str], vault: Path) -> Iterator[int]:
    """Write the notes below a folder; yields how many are written, after each. Raises DataError when the disk refuses one."""
    for count, (path, text) in enumerate(notes.items(), 1):
        try:
            (vault / path).parent.mkdir(parents=True, exist_ok=True)
            (vault / path).write_text(text, encoding="utf-8", newline="\n")
        except OSError as error:
            raise DataError(f"this note of the data cannot be written ({error.strerror}); rename it or make room", path=path) from error
        yield count
