"""The records that pass between the stages: frozen, slotted, every field documented.

`to_dict` and `from_dict` are exact inverses for every record here (a test proves it).
Knows nothing about files, databases or models. Lines are 1-based and inclusive everywhere;
paths are vault-relative, with `/`, as they stand on disk (compare them through `text.nfc`).
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

Role = Literal["user", "assistant", "system"]
Kind = Literal["dialogue", "prose", "list", "table", "code"]
Trust = Literal["own", "imported", "clipped", "generated"]
BlockKind = Literal["heading", "paragraph", "list", "table", "code", "quote", "callout", "html", "rule", "math", "comment", "footnote"]
Lines = tuple[int, int]

# Kinds of secrets and personal data (`redact.py` finds them). Where two overlap the earlier one names the mark.
SECRET_KINDS: tuple[str, ...] = tuple(
    """private-key anthropic openrouter openai github gitlab slack slack-webhook aws-key aws-secret google gcp azure azure-sas stripe
    telegram-bot discord discord-webhook twilio sendgrid mailgun mailchimp npm pypi huggingface digitalocean heroku yandex vk groq xai
    perplexity replicate notion linear shopify docker figma airtable grafana databricks vault supabase postman age jwt wallet basic-auth
    bearer url-password card iban snils passport inn aadhaar pan nid ssn email phone password pin secret token login""".split()
)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong with a note: kept as a value, shown by `status`, never the end of a run."""

    code: str
    """Stable and searchable: `E-…` when text was lost to us, `W-…` when all text was kept."""
    message: str
    """What is wrong, why it matters, and what to do, in one sentence."""
    line: int = 0
    """The line in the file; 0 when it concerns the whole file."""
    count: int = 1
    """How many things of this kind it stands for (`37 tool messages left out` is one problem with count 37)."""


@dataclass(frozen=True, slots=True)
class Link:
    """One `[[wikilink]]`, `![[embed]]` or `[text](relative.md)` of a note's text (not of its code or comments)."""

    target: str
    """The note or file as written, without heading, block and alias; empty for a link within the note."""
    heading: str
    """The part after `#`, nested headings joined by `#`; empty if none."""
    block: str
    """The block id after `#^`; empty if none."""
    alias: str
    """The shown text; empty if none."""
    embed: bool
    """True for `![[…]]`."""
    line: int
    """The line it stands on."""


@dataclass(frozen=True, slots=True)
class Block:
    """One top-level block of a note."""

    kind: BlockKind
    """What it is; a callout is a quote whose first line is `[!type]`."""
    lines: Lines
    """First and last line in the file."""
    text: str
    """The source lines as they stand, without the final newline."""
    level: int = 0
    """1-6 for headings, else 0."""
    title: str = ""
    """A heading's text without marks; a callout's title; a code block's language."""
    block_id: str = ""
    """Obsidian's `^id` at its end, without the caret; empty if none."""


@dataclass(frozen=True, slots=True)
class Note:
    """A file of the vault, decoded and cut into blocks. Holds all of its text."""

    path: str
    """Vault-relative, `/`."""
    title: str
    """`title` property, else the first level-1 heading, else the file name without suffix."""
    text: str
    """The whole decoded file, newlines as `\\n`, without a BOM."""
    body_line: int
    """The line on which the body begins (after the front matter); 1 when there is none."""
    properties: dict[str, Any]
    """Front matter: str, int, float, bool, None and lists of them (dates stay strings)."""
    blocks: tuple[Block, ...]
    """Top-level blocks of the body, in order, covering every non-blank line."""
    links: tuple[Link, ...]
    """Links out, in order."""
    tags: tuple[str, ...]
    """Tags of properties and text, without `#`, first spelling kept, no repeats."""
    sha256: str
    """Hash of the file's bytes (hex)."""
    encoding: str
    """`utf-8`, `utf-8-sig`, `utf-16-le`, …"""
    problems: tuple[Problem, ...]
    """What was wrong, and where."""


@dataclass(frozen=True, slots=True)
class Turn:
    """One message of a talk; in a scene of prose, the whole text as one turn by the owner."""

    role: Role
    """Who speaks: the owner is `user`."""
    text: str
    """What was said, unquoted; never empty in a scene."""
    lines: Lines
    """The whole message in the file, its head and UID line included."""
    text_line: int = 0
    """The file's line of `text`'s first line (line i of `text` is line `text_line + i` of the file); 0 if that cannot be said (JSON)."""
    author: str = ""
    """The name as written (`User`, `Assistant`, `ChatGPT`); empty if none."""
    model: str = ""
    """The model that spoke, if the source says so."""
    at: str = ""
    """ISO 8601 with offset when the zone is known, without it when not; empty when the time cannot be known."""
    at_raw: str = ""
    """The time as written; kept so that a better reader can try again."""
    uid: str = ""
    """The message's id at its source; survives renames and re-imports."""
    attachments: tuple[str, ...] = ()
    """Names of attached files and artifacts."""
    parent: str = ""
    """UID of the message it follows, if the source says so (exports; mended notes)."""
    variant_of: str = ""
    """Set when it is not part of the talk as it went on (a regenerated answer, an edited prompt, what came below one): UID
    (`line N` if that has none) of the turn of the talk that stands where this abandoned branch begins. Never trained on."""
    lossy: bool = False
    """The importer damaged this text (collapsed indentation, cut words): its code blocks are not trained on."""


@dataclass(frozen=True, slots=True)
class Conversation:
    """One talk as a chat reader returns it. A Markdown note holds one; an export file holds many."""

    id: str
    """The conversation's own id; empty if the source has none."""
    title: str
    """As its source names it; empty if unknown."""
    provider: str
    """`chatgpt`, `claude`, `perplexity`, … or empty."""
    created: str
    """ISO 8601, or empty."""
    turns: tuple[Turn, ...]
    """In the order of the talk."""
    lines: Lines
    """The lines of the file that belong to it."""
    loose: tuple[Lines, ...] = ()
    """Line ranges between its messages that are the owner's own text (a `[[link]]` between two turns): prose, not talk."""
    problems: tuple[Problem, ...] = ()
    """What the reader met. Those whose code is in `chats.LEFT_OUT` stand for messages that are not among the turns."""
    seen: int = 0
    """How many messages the source holds: `len(turns)` plus the `count` of the problems that left some out."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where a scene stands."""

    path: str
    """The note, vault-relative."""
    lines: Lines
    """Its lines; the scenes of a note do not overlap and cover every non-blank line of its body."""
    uid: str = ""
    """Dialogues: the first turn's UID."""
    block: str = ""
    """Prose: the first block id (`^id`) within it, which a link can jump to."""
    heading: str = ""
    """Prose: the nearest heading above, as Obsidian writes it in a link (`H1#H2`)."""


@dataclass(frozen=True, slots=True)
class Scene:
    """The unit of everything: a stretch of talk or a section of prose that can be understood alone."""

    id: str
    """12 hex digits; a hash of *where it is* (first UID; else note and block id; else note, heading path, ordinal), never of its text."""
    sha: str
    """16 hex digits; a hash of what it says (turns: roles, texts)."""
    kind: Kind
    """`dialogue`, or what most of its text is."""
    title: str
    """The talk's or note's title, with the heading if there is one."""
    headings: tuple[str, ...]
    """Heading path, outermost first."""
    turns: tuple[Turn, ...]
    """Never empty; prose is one turn by the owner."""
    source: Source
    """File, lines, UID, block."""
    language: str
    """ISO 639-1 of most of its words (`ru`, `bn`, `en`), `und` when undecided."""
    trust: Trust
    """Who wrote it: `own`, `imported` chats, `clipped` web pages, `generated` by us."""
    train: bool = True
    """Whether it may be trained on."""
    reason: str = ""
    """Why not, when `train` is false."""
    at: str = ""
    """ISO 8601 time of its first turn, else of its note; empty if unknown."""
    tags: tuple[str, ...] = ()
    """Tags of the note and of its text."""
    links: tuple[str, ...] = ()
    """Targets of its links out, in order, no repeats."""
    prev: str = ""
    """Id of the scene before it in the note; empty for the first."""
    next: str = ""
    """Id of the scene after it; empty for the last."""
    field: tuple[str, ...] = ()
    """Its keywords (поле)."""
    anchor: str = ""
    """The sentence that stands for it (якорь)."""
    duplicate: str = ""
    """Id of the first scene that says the same, or nearly; filled by the ledger, which sees all notes."""


@dataclass(frozen=True, slots=True)
class Passage:
    """What is recalled: a turn of a dialogue (a long one in parts) or a part of a section."""

    scene: str
    """Id of its scene."""
    ordinal: int
    """Its place in the scene, from 0."""
    lines: Lines
    """Its lines in the file."""
    text: str
    """Its text."""
    uid: str = ""
    """Dialogues: the UID of its turn."""
    role: Role = "user"
    """Who speaks."""
    context: str = ""
    """Title, headings, date, tags: indexed with the text, never shown as the note's words."""


@dataclass(frozen=True, slots=True)
class Hit:
    """One scene that was recalled, and why."""

    scene: Scene
    """The scene as the ledger holds it."""
    path: str
    """Its note."""
    lines: Lines
    """The lines of its best passage."""
    text: str
    """The best passage's text."""
    uids: tuple[str, ...]
    """The turns it covers, best first."""
    score: float
    """0..1 within one answer of the memory; comparable only there."""
    why: dict[str, float]
    """What it is made of: `words`, `grams`, `dense`, `time`, and what resonance lent it (`near`, `links`, `tags`, …); or `filter`."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of an example, and whether its tokens are learnt."""

    role: Role
    """As the chat template knows it."""
    text: str
    """Plain text; control tokens typed in it stay text."""
    learn: bool
    """True when the loss counts its tokens."""


@dataclass(frozen=True, slots=True)
class Example:
    """What the model sees in one step of training."""

    id: str
    """Hash of its scene ids and texts."""
    scenes: tuple[str, ...]
    """The scenes it was made of."""
    path: str
    """Their note: the unit of the split and of the bootstrap."""
    form: Literal["dialogue", "prose", "task"]
    """Dialogues and tasks go through the chat template; prose is continued text. A task is a question about a note that was
    made of the note itself (`tasks.py`)."""
    messages: tuple[Message, ...]
    """At least one of them is learnt."""
    split: Literal["train", "val", "test"]
    """By note, never by example. `val` is measured and decided by, `test` is only reported."""
    weight: float = 1.0
    """Its share in the loss."""
    rejected: str = ""
    """The worse answer, for preference pairs; empty otherwise."""
    task: str = ""
    """The sort of a task (`definition`, `cloze`, …); empty for the other forms."""


@dataclass(frozen=True, slots=True)
class Run:
    """One training: kept for ever, promoted or not."""

    id: str
    """Sortable by time: `20251121T103000-lora-1a2b`."""
    kind: Literal["micro", "lora"]
    """A base trained from scratch, or an adapter."""
    base: str
    """Name or path of the base model; for `micro` its own name."""
    base_sha: str
    """Fingerprint of the base's weights and tokenizer."""
    dataset: str
    """Id of the dataset it was trained on."""
    options: dict[str, Any]
    """Everything that was set."""
    seed: int
    """Of data order and initialisation."""
    parent: str
    """The run it continued from; empty if from the base."""
    status: Literal["running", "done", "failed", "interrupted"]
    """Where it stands."""
    metrics: dict[str, Any]
    """What was measured (docs/on-disk-format.md)."""
    versions: dict[str, str]
    """Of the libraries that made it."""
    created: str
    """ISO 8601, UTC."""
    promoted: bool = False
    """Whether it ever became `current`."""
    reason: str = ""
    """Why it was or was not promoted."""
    revoked: str = ""
    """Why it may answer no more: something that it learnt was forgotten. Empty if it may."""


@dataclass(frozen=True, slots=True)
class Citation:
    """A quotation that was checked against its source."""

    path: str
    """The note."""
    lines: Lines
    """Where it stands."""
    uid: str
    """The turn's UID, if it is one."""
    quote: str
    """The exact words, as they stand in the note."""
    link: str
    """A wikilink that jumps there (heading or block when there is one)."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A question, what the vault says, and what the model says."""

    question: str
    """As asked."""
    text: str
    """The model's words, or empty when it did not speak."""
    capable: bool
    """Whether the model is trusted to answer (a micro model is not): decides what comes first in the note."""
    sources: tuple[Citation, ...]
    """Checked quotations, best first; empty when the vault says nothing of it."""
    model: str
    """Name and size of the model, as it is shown."""
    run: str
    """Id of the adapter's run; empty when the base spoke."""
    prompt_sha: str
    """Hash of the prompt."""
    created: str
    """ISO 8601 with offset."""
    seconds: float
    """From question to note."""
    stopped: str = ""
    """Why it ends before its end; empty when it is whole."""
    id: str = ""
    """Under which it was written into a note of the owner's, if it was given one before it was whole."""
    unfinished: int = 0
    """Answers of ours above it in the same talk that did not come to their end."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Where a long piece of work stands: what a progress bar and `metrics.jsonl` are made of."""

    phase: str
    """What is being done, as it is shown: `pretraining`, `LoRA`, `measuring`."""
    done: float
    """Share of the work, 0..1 (of the time budget, when there is one)."""
    step: int = 0
    """Optimiser steps so far."""
    loss: float | None = None
    """Nats per token, smoothed; None before the first."""
    tokens_per_s: float | None = None
    """Real tokens, without padding."""
    seconds_left: float | None = None
    """Estimate; None when unknown."""


Report = Callable[[Progress], None]
"""What long work is given to say where it stands."""


def silent(progress: Progress) -> None:
    """The `Report` of work that nobody watches."""


T = TypeVar("T")


_HINTS: dict[type, dict[str, Any]] = {}
_MAKERS: dict[type, dict[str, Callable[[Any], Any] | None]] = {}


def _fields(record: type) -> dict[str, Any]:
    """Field name -> resolved type; resolving is slow, so it is done once for each record."""
    if record not in _HINTS:
        hints = typing.get_type_hints(record)
        _HINTS[record] = {field.name: hints[field.name] for field in dataclasses.fields(record)}
    return _HINTS[record]


def to_dict(record: Any) -> dict[str, Any]:
    """A record as plain JSON types: tuples become lists, records become dicts."""
    return {name: _plain(getattr(record, name)) for name in _fields(type(record))}


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    return value


def from_dict(record: type[T], data: Mapping[str, Any]) -> T:
    """The inverse of `to_dict`. Raises TypeError on an unknown or missing field."""
    makers = _makers(record)
    unknown = set(data) - set(makers)
    if unknown:
        raise TypeError(f"{record.__name__} has no field {sorted(unknown)}")
    return record(**{name: make(value) if (make := makers[name]) else value for name, value in data.items()})


def _makers(record: type) -> dict[str, Callable[[Any], Any] | None]:
    """Field name -> what makes its value; types are not looked at again for each value of each scene."""
    if record not in _MAKERS:
        _MAKERS[record] = {name: _maker(hint) for name, hint in _fields(record).items()}
    return _MAKERS[record]


def _maker(hint: Any) -> Callable[[Any], Any] | None:
    """What makes a value of this type out of JSON's; None where it is that one."""
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return functools.partial(from_dict, hint)
    if typing.get_origin(hint) is not tuple:
        return None
    args = typing.get_args(hint)
    each = [_maker(arg) or (lambda item: item) for arg in args if arg is not Ellipsis]
    if args[-1] is not Ellipsis:
        return lambda value: tuple(make(item) for make, item in zip(each, value, strict=True))
    return (lambda value: tuple(map(each[0], value))) if _maker(args[0]) else tuple
