"""What a model says of excerpts -> what is shown of it: numbers of excerpts become citations, what none of them supports gets a †.

As a whole for a note, or piece by piece while it is made, each piece final and inert. Knows nothing about models.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from vaultllm import quotes, render
from vaultllm.inert import inert
from vaultllm.schema import Citation, Hit
from vaultllm.text import language, sentences, stems

SUPPORTED = 0.5  # share of a sentence's content words that one excerpt must hold
_OWN = {"en": "† the model's own words: not in the excerpts.", "ru": "† слова самой модели: в выдержках этого нет.",
        "bn": "† মডেলের নিজের কথা: উদ্ধৃতিতে এটি নেই।"}  # fmt: skip
_NUMBER = re.compile(r"[ \t]?\[(\d{1,3})\]")
_THINK, _THOUGHT = "<think>", "</think>"
_FENCE = re.compile(r"[ \t]{0,3}(```+|~~~+)")
_PLAIN = re.compile(r"(?![ \t]*(?:[-+*>#|]|\d{1,9}[.)]))(?:[^*_`~<>$|#\\=%!{}&^\[\]\n]|\[\d{1,3}\])*")
_END = re.compile(r"[.?…।](?:[\"»”)]*)(?:[ \t]?\[\d{1,3}\])*[ \t]+(?=[^\s\[])")


class Saying:
    """One answer: what it cites so far, and how its words are shown. Made once for each answer."""

    def __init__(self, question: str, hits: Sequence[Hit], found: Sequence[quotes.Quote], source: quotes.Sources) -> None:
        self.citations: list[Citation] = [one.citation for one in found]
        """Quotations, checked, by their number from 1; grows with what the model cites."""
        self._hits, self._source = hits, source
        self._by_hit = {one.hit: at for at, one in reversed(list(enumerate(found, 1)))}
        self._excerpts = [set(stems(f"{hit.scene.title} {' '.join(hit.scene.headings)} {hit.text}")) for hit in hits]
        self._legend = _OWN.get(language(question), _OWN["en"])
        self._marked = False
        self._units = Units()

    def whole(self, text: str) -> str:
        """A finished text for a note, which is yet to be made inert: numbers, marks, and what the marks mean."""
        text = self.marked(self.numbered(text))
        return f"{text}\n\n{self._legend}" if self._marked else text

    def add(self, piece: str) -> str:
        """What can be shown once the model has said this too: final and inert."""
        return "".join(self._shown(unit) for unit in self._units.add(piece))

    def end(self) -> str:
        """What is left to show when the model has said all."""
        rest = "".join(self._shown(unit) for unit in self._units.end())
        return f"{rest}\n\n{self._legend}" if self._marked else rest

    def _shown(self, unit: str) -> str:
        text = unit.strip()
        if not text:
            return unit
        at = unit.index(text)
        said = inert(self.marked(self.numbered(text)), cite=lambda number: render.cited(self.citations, number))
        return unit[:at] + said.strip() + unit[at + len(text) :]

    def numbered(self, text: str) -> str:
        """The text with its numbers of excerpts turned into numbers of citations.

        An excerpt that is cited and not quoted yet gets the quotation nearest to the sentence that cites it; a number
        without an excerpt, or whose excerpt has no sentence that still stands in its note, is removed.
        """

        def numbered(match: re.Match[str]) -> str:
            hit = int(match[1]) - 1
            if not 0 <= hit < len(self._hits):
                return ""
            if hit not in self._by_hit:
                sentence = sentences(text[: match.start()])[-1:] or [text]
                nearest = quotes.choose(sentence[0], [self._hits[hit]], self._source, most=1, least=0.0)
                if not nearest:
                    return ""
                self.citations.append(nearest[0].citation)
                self._by_hit[hit] = len(self.citations)
            space = match[0][: match[0].index("[")]
            return f"{space}[{self._by_hit[hit]}]"

        return _NUMBER.sub(numbered, text)

    def marked(self, text: str) -> str:
        """The text with a † after each sentence that no excerpt supports. Code is left alone."""
        parts = re.split(r"(^[ \t]*```.*?(?:^[ \t]*```[ \t]*$|\Z))", text, flags=re.MULTILINE | re.DOTALL)
        for index in range(0, len(parts), 2):
            for sentence in dict.fromkeys(sentences(parts[index])):
                said = quotes.content_stems(_NUMBER.sub("", sentence))
                best = max((len(said & excerpt) / len(said) for excerpt in self._excerpts), default=0.0) if said else 1.0
                if len(said) >= 3 and best < SUPPORTED and not sentence.lstrip().startswith(("#", "|")):
                    parts[index] = parts[index].replace(sentence, f"{sentence} †", 1)
                    self._marked = True
        return "".join(parts)


class Units:
    """Pieces of Markdown in, units out that can be shown alone: blocks, and sentences of paragraphs without any markup.

    Thoughts (`<think>…</think>`, closed or not) and white space at both ends are left out; the units joined are the text without them.
    """

    def __init__(self) -> None:
        self._raw = ""  # may hold a mark of a thought, or its beginning
        self._thinks = False
        self._text = ""  # the block that is being said
        self._begun = False
        self._gap = ""  # white space, shown when something follows it

    def add(self, piece: str) -> list[str]:
        """The units that are complete now."""
        self._raw += piece
        self._unthought(False)
        return self._taken(False)

    def end(self) -> list[str]:
        """The last ones."""
        self._unthought(True)
        return self._taken(True)

    def _unthought(self, ended: bool) -> None:
        while True:
            mark = _THOUGHT if self._thinks else _THINK
            before, found, after = self._raw.partition(mark)
            if not found:
                held = 0 if ended else max((n for n in range(1, len(mark)) if self._raw.endswith(mark[:n])), default=0)
                self._text += "" if self._thinks else self._raw[: len(self._raw) - held]
                self._raw = self._raw[len(self._raw) - held :]
                return
            self._text += "" if self._thinks else before
            self._raw, self._thinks = after, not self._thinks

    def _taken(self, ended: bool) -> list[str]:
        out = []
        while at := len(self._text) if ended else self._cut():
            unit, self._text = self._text[:at], self._text[at:]
            text = unit.rstrip()
            if not self._begun:
                text, unit = text.lstrip("\n"), unit.lstrip("\n")
            if text.strip():
                out.append(self._gap + text)
                self._gap, self._begun = unit[len(text) :], True
            else:
                self._gap += unit if self._begun else ""
        return out

    def _cut(self) -> int:
        """Where the first complete unit ends; 0: there is none yet."""
        if self._text.startswith("\n"):
            return len(self._text) - len(self._text.lstrip("\n"))
        first = _FENCE.match(self._text)
        if first:
            closing = re.compile(rf"^[ \t]{{0,3}}{re.escape(first[1])}[`~]*[ \t]*\n", re.MULTILINE).search(self._text, first.end())
            return closing.end() if closing else 0
        blank = self._text.find("\n\n")
        fence = re.search(r"\n(?=[ \t]{0,3}(?:```|~~~))", self._text)
        if blank >= 0 and (fence is None or blank < fence.start()):
            return blank + 2
        if fence is not None:
            return fence.end()
        plain = _PLAIN.match(self._text)
        ends = list(_END.finditer(self._text, 0, plain.end())) if plain else []
        return ends[-1].end() if ends else 0
