"""Other words for a question, written by a language model before the search: a better query, its parts, or an answer as it could be.

`rewrite`: one query that is understood by itself (Ma et al. 2023, arXiv:2305.14283). `decompose`: up to three questions that it
consists of (Press et al. 2022, arXiv:2210.03350; all at once, nobody waits for the first answer). `hyde`: a passage that could answer
it, which lies nearer to the real one than the question does (Gao et al. 2022, arXiv:2212.10496). The question itself is always
searched too and counts most. What a model writes is data: it is cleaned, never parsed as filters, and dropped when it makes no
sense; a model that fails costs nothing but a notice. Knows nothing about how a query is searched.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, get_args

from vaultllm import prompts
from vaultllm import text as texts
from vaultllm import tokenizer as bpe
from vaultllm.config import MemorySettings
from vaultllm.memory.query import NAMES
from vaultllm.models import hf
from vaultllm.schema import Message

if TYPE_CHECKING:
    from vaultllm.models.hf import Loaded

Kind = Literal["rewrite", "decompose", "hyde"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MOST_PARTS = 3  # questions that one is taken apart into
MOST_QUERY, MOST_PASSAGE = 300, 1_000  # characters; a longer query is no query, a longer passage is cut
MOST_ASKED = 2_000  # characters of a question that the model reads
_TALK, _TALK_CHARS = 4, 400  # messages before the question, and characters of each, that it reads
_TOKENS: dict[Kind, int] = {"rewrite": 80, "decompose": 160, "hyde": 200}
_KEPT = 1_000  # questions whose rephrasings are remembered
_REPEATS, _DISTINCT = 8, 0.4  # of so many words or more this share must be distinct: small models run in circles
_LONGEST_WORD = 40

_ASKED: dict[Kind, dict[str, str]] = {
    "rewrite": {
        "en": "Write one search query for the question below. It must be clear without the talk before it, name things in full, and "
        "hold the words that a note with the answer would hold. Write only the query, on one line, in the language of the question.",
        "ru": "Напиши один поисковый запрос к вопросу ниже. Он должен быть понятен без разговора перед ним, называть всё полностью и "
        "состоять из слов, которые стоят в заметке с ответом. Напиши только запрос, одной строкой, на языке вопроса.",
        "bn": "নিচের প্রশ্নের জন্য একটি অনুসন্ধান-বাক্য লেখো। আগের কথাবার্তা ছাড়াই তা যেন বোঝা যায়, সব নাম যেন পুরো থাকে, আর "
        "উত্তর আছে এমন নোটের শব্দগুলো যেন থাকে। শুধু বাক্যটি লেখো, এক লাইনে, প্রশ্নের ভাষায়।",
    },
    "decompose": {
        "en": "Which simpler questions does the question below consist of? Write at most three, one on each line, each clear by itself, "
        "without numbers and without answers, in the language of the question. If it is simple already, repeat it.",
        "ru": "Из каких более простых вопросов состоит вопрос ниже? Напиши не больше трёх, каждый на своей строке, понятный сам по себе, "
        "без номеров и без ответов, на языке вопроса. Если он и так простой, повтори его.",
        "bn": "নিচের প্রশ্নটি কোন কোন সহজ প্রশ্ন দিয়ে তৈরি? সর্বাধিক তিনটি লেখো, প্রতি লাইনে একটি, প্রতিটি যেন একাই বোঝা যায়, "
        "নম্বর ও উত্তর ছাড়া, প্রশ্নের ভাষায়। প্রশ্নটি আগে থেকেই সহজ হলে সেটিই আবার লেখো।",
    },
    "hyde": {
        "en": "Write two or three sentences that could stand in my notes and answer the question below. Invent what you do not know: they "
        "only help to find the real note. Write only these sentences, in the language of the question.",
        "ru": "Напиши два-три предложения, которые могли бы стоять в моих заметках и отвечать на вопрос ниже. Чего не знаешь, придумай: "
        "они лишь помогут найти настоящую заметку. Напиши только эти предложения, на языке вопроса.",
        "bn": "দু-তিনটি বাক্য লেখো যা আমার নোটে থাকতে পারত এবং নিচের প্রশ্নের উত্তর দিত। যা জানো না তা বানিয়ে লেখো: এগুলো শুধু আসল "
        "নোটটি খুঁজতে সাহায্য করবে। শুধু এই বাক্যগুলো লেখো, প্রশ্নের ভাষায়।",
    },
}
_LABELS = {"en": ("Talk before", "Question"), "ru": ("Разговор до этого", "Вопрос"), "bn": ("আগের কথাবার্তা", "প্রশ্ন")}

_MARK = re.compile(r"(?:[-*•>#\s]|\d{1,2}[.)]\s)+")
_LABEL = re.compile(
    r"(?:(?:search )?query|(?:sub-?)?question|passage|(?:поисковый )?запрос|(?:под)?вопрос|отрывок|ответ|answer|প্রশ্ন|অনুসন্ধান|উত্তর)"
    r"(?: ?\d)?[:：]\s*",
    re.IGNORECASE,
)
_FILTER = re.compile(rf"(?<!\w)-?(?:{'|'.join(NAMES)}):(?:\"[^\"\n]{{0,300}}\"|\S+)", re.IGNORECASE)
_QUOTES = " \t\"'«»“”„`*"


class Writer(Protocol):
    """Who writes."""

    def write(self, prompt: str, most_tokens: int) -> str:
        """What follows a prompt, at most so many tokens. May raise whatever it likes: the question is then searched alone."""


class Query(NamedTuple):
    """What is looked for beside the question."""

    text: str
    """Plain words: nothing in it is a filter or a phrase."""
    weight: float
    """What its best passage counts, where the question's own best counts 1."""
    words: float
    """What its words count beside its vector, where 1 is what they do in a question."""

    def leaning(self, settings: MemorySettings) -> MemorySettings:
        """The settings with which it is looked for."""
        return settings.model_copy(update={"words": self.words * settings.words, "grams": self.words * settings.grams})


class Rephrased(NamedTuple):
    """What came of a question."""

    queries: tuple[Query, ...] = ()
    """Beside the question; none where there was nothing to rephrase, or the model failed."""
    notice: str = ""
    """Why nothing was written, for the user to read; "" when nothing is wrong."""


NOTHING = Rephrased()

_BOTH = 0.5  # of .25, .5 and 1 the one that lost least of either kind of question (`benchmarks/queries.py parts`)
# A query may be beside the point, so the question's own best passage stays ahead of its. What a passage invents are names and numbers,
# which words would look for; its vector is about the matter.
_WEIGHTS: dict[Kind, tuple[float, float]] = {"rewrite": (0.8, 1.0), "decompose": (0.9, 1.0), "hyde": (0.7, 0.2)}


class Rephraser:
    """Rephrases questions in one way; the same question is written for once."""

    def __init__(self, kind: Kind, writer: Writer, talk: Sequence[Message] = ()) -> None:
        """`talk`: what was said before the question, oldest first."""
        self.kind, self.writer, self.talk = kind, writer, tuple(talk)
        self._known: dict[str, Rephrased] = {}

    def after(self, talk: Sequence[Message]) -> Rephraser:
        """The same for a question that ends this talk."""
        return Rephraser(self.kind, self.writer, talk) if talk else self

    def rephrase(self, question: str) -> Rephrased:
        """What is to be looked for beside a question. Never raises what the writer does: the notice says what went wrong."""
        if not texts.words(question):
            return NOTHING
        if question not in self._known:
            try:
                written = self.writer.write(prompt(self.kind, question, self.talk), _TOKENS[self.kind])
            except Exception as error:  # whatever a model does, the search goes on
                why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
                return Rephrased(notice=f"memory.rewrite: {why} (searched by the question alone)")
            if len(self._known) >= _KEPT:
                self._known.clear()
            self._known[question] = self._read(question, written)
        return self._known[question]

    def _read(self, question: str, written: str) -> Rephrased:
        found = cleaned(self.kind, question, written)
        if found is None:
            why = "the model wrote nothing that could be searched"
            return Rephrased(notice=f"memory.rewrite: {why} (searched by the question alone)")
        return Rephrased(tuple(Query(text, *_WEIGHTS[self.kind]) for text in found))


def prompt(kind: Kind, question: str, talk: Sequence[Message] = ()) -> str:
    """What the model is asked, in the question's language (Russian, Bengali, else English)."""
    language = texts.language(question)
    language = language if language in _LABELS else "en"
    before, asked = _LABELS[language]
    said = [f"- {' '.join(prompts.printable(one.text).split())[:_TALK_CHARS]}" for one in talk[-_TALK:]]
    parts = [_ASKED[kind][language], *(["\n".join([f"{before}:", *said])] if said else [])]
    return "\n\n".join([*parts, f"{asked}: {' '.join(prompts.printable(question).split())[:MOST_ASKED]}"])


def cleaned(kind: Kind, question: str, written: str) -> list[str] | None:
    """The queries in what a model wrote, each once, without those that say what the question says; None when it makes no sense.

    Marks of lists, labels, quotes, invisible characters and filters are taken off; what is too long, has no word, runs in circles, or
    repeats the instruction is dropped.
    """
    lines = prompts.printable(written).split("\n")
    if kind == "hyde":
        passage = " ".join(_bare(line) for line in lines[:50])
        lines = [passage if len(passage) <= MOST_PASSAGE else passage[:MOST_PASSAGE].rpartition(" ")[0]]
    told = _worded(prompt(kind, ""))
    own = _worded(question)
    found: dict[str, str] = {}
    repeated = False
    for line in lines[:50]:
        query = " ".join(_bare(line).split())
        said = _worded(query)
        repeated |= said == own
        short = kind == "hyde" or len(query) <= MOST_QUERY
        if short and said not in (own, *found) and said not in told and _makes_sense(said.split()):
            found[said] = query
    if not found:
        return [] if repeated else None
    return list(found.values())[: MOST_PARTS if kind == "decompose" else 1]


def _bare(line: str) -> str:
    """A line without what is written around a query."""
    line = _FILTER.sub(" ", line).strip()
    for pattern in (_MARK, _LABEL, _MARK):
        if match := pattern.match(line.lstrip(_QUOTES)):
            line = line.lstrip(_QUOTES)[match.end() :]
    return line.strip(_QUOTES)


def _worded(text: str) -> str:
    """Folded words between blanks, as texts are compared."""
    return f" {' '.join(texts.words(text))} "


def _makes_sense(words: Sequence[str]) -> bool:
    circles = len(words) >= _REPEATS and len(set(words)) < _DISTINCT * len(words)
    return not circles and any(any(map(str.isalpha, word)) and len(word) <= _LONGEST_WORD for word in words)


def join(parts: defaultdict[int, dict[str, float]], others: Sequence[tuple[float, Mapping[int, dict[str, float]]]]) -> None:
    """Add what other queries found (weight, passage -> its parts) to what the question found, as the part `rewrite`; in place.

    Both were divided by their best. A passage counts what the question or its best query says of it, whichever is more (CombMAX, Fox &
    Shaw 1994: each part of a question asks for a passage of its own), and `_BOTH` of the lesser, by which the passage that both
    ask for passes one that only looks like the question; all of it divided so that the best is at most 1 again. A sum of all
    buries what only one part asks for.
    """
    best: dict[int, float] = {}
    for weight, found in others:
        for slot, why in found.items():
            best[slot] = max(best.get(slot, 0.0), weight * sum(why.values()))
    for slot, said in best.items():
        own = sum(parts[slot].values())
        parts[slot]["rewrite"] = max(own, said) + _BOTH * min(own, said) - own
    for slot, why in parts.items() if others else ():
        parts[slot] = {name: part / (1.0 + _BOTH) for name, part in why.items()}


class Model:
    """A causal language model that writes; greedy, so that the same question gives the same queries."""

    def __init__(self, load: Callable[[], Loaded]) -> None:
        """`load`: the model, asked for with each question; whoever hands it in keeps it. May raise."""
        self._load = load

    def write(self, prompt: str, most_tokens: int) -> str:
        """What the model answers. Raises ModelError when it cannot be loaded or the prompt is longer than it reads."""
        loaded = self._load()
        ids, _ = bpe.encode_chat(loaded.tokenizer, [Message("user", texts.encodable(prompt), False)], reply=True)
        stop = () if loaded.tokenizer.chat_template else ("\nUser:",)
        return prompts.spoken("".join(hf.generate(loaded, ids, max_new_tokens=most_tokens, stop=stop)))
