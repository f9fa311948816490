"""The note of an answer is inert whatever stood in the model's words, the question, the sources and the names; prose stays prose."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from tests import browser, payloads
from tests.alive import alive
from vaultllm import markdown, render
from vaultllm.inert import inert, inert_line
from vaultllm.schema import Answer, Citation

KINDS = payloads.texts()
EXAMPLE = Path(__file__).resolve().parents[1] / "vault_example"
PLAIN = "слово"
SOURCE = Citation("Сад/Полив.md", (12, 12), "", PLAIN, "[[Сад/Полив#Насос|Полив › Насос]]")
ANSWER = Answer(PLAIN, PLAIN, True, (SOURCE,), "micro", "20251121T103000-lora-0", "ab", "2026-11-21T09:05:07+03:00", 1.5)


def named(text: str) -> str:
    """A path with this text in it, as far as a file system and UTF-8 take it."""
    kept = re.sub(r"[\ud800-\udfff\0/]", "", text)[:200]
    return f"a/{kept}.md"


def sourced(text: str, path: str = SOURCE.path) -> Citation:
    """A source whose heading is this text, as `quotes` makes it."""
    return replace(SOURCE, path=path, link=render.link(path, heading=markdown.link_heading(text)))


def of_talk(text: str) -> Citation:
    return replace(SOURCE, path=".vaultllm/x.json", link=render.talk_name(text, "chatgpt", "2026-01-01"))


CONTEXTS: dict[str, Callable[[str], Answer]] = {
    "words": lambda text: replace(ANSWER, text=text),
    "words of the micro model": lambda text: replace(ANSWER, text=text, capable=False),
    "question": lambda text: replace(ANSWER, question=text),
    "quotation": lambda text: replace(ANSWER, capable=False, sources=(replace(SOURCE, quote=text),)),
    "heading": lambda text: replace(ANSWER, capable=False, sources=(sourced(text),)),
    "path": lambda text: replace(ANSWER, capable=False, sources=(sourced(PLAIN, named(text)),)),
    "title of a talk": lambda text: replace(ANSWER, capable=False, sources=(of_talk(text),)),
    "model": lambda text: replace(ANSWER, model=text),
    "error": lambda text: replace(ANSWER, model=text, text="", capable=False),
}
# As many of them as fit into one note, so that each payload is looked at in three notes and not in nine.
TOGETHER: dict[str, Callable[[str], Answer]] = {
    "said": lambda text: replace(ANSWER, question=text, text=text, model=text, sources=(replace(sourced(text), quote=text),)),
    "quoted": lambda text: replace(
        ANSWER, question=text, text=text, capable=False, model=text,
        sources=(replace(sourced(PLAIN, named(text)), quote=text), of_talk(text)),
    ),
}  # fmt: skip
EVERY = CONTEXTS | TOGETHER


def note(context: str, text: str) -> str:
    return render.answer_note(EVERY[context](text), "id1")[1]


def extra(context: str, text: str) -> list[str]:
    """What lives in a note with this text and not in the same note with a word in its place, but for links to the sources themselves."""
    own = set(OWN)
    for source in EVERY[context](text).sources:
        if source.link != SOURCE.link and not source.path.startswith("."):
            own |= alive(source.link).keys()
            own |= {f"link in a property {one.target}" for one in markdown.parse("x.md", source.link.encode()).links}
    more = alive(note(context, text)) - BENIGN[context]
    return sorted(what for what in more if what not in own)


BENIGN = {context: alive(note(context, PLAIN)) for context in EVERY}
OWN = alive(SOURCE.link)  # a number that the model writes leads to its source


def living(text: str) -> list[tuple[str, list[str]]]:
    """Where a payload lives, and what of it."""
    if not any(extra(context, text) for context in TOGETHER):
        return []
    return [(context, found) for context in EVERY if (found := extra(context, text))]


def test_the_payloads_are_many_and_most_of_them_live_where_nothing_makes_them_inert() -> None:
    every = [text for some in KINDS.values() for text in some]
    assert len(set(every)) == len(every) >= 300
    lively = {kind: sum(bool(alive(text)) for text in some) / len(some) for kind, some in KINDS.items()}
    assert min(lively.values()) > 0.25, lively
    assert sum(bool(alive(text)) for text in every) > 0.75 * len(every)


@pytest.mark.parametrize("kind", KINDS)
def test_no_payload_lives_in_an_answers_note_wherever_it_stood(kind: str) -> None:
    assert [(text[:200], found) for text in KINDS[kind] if (found := living(text))] == []


def test_an_emitter_that_lets_html_through_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("vaultllm.inert._acts", lambda line, index, char, *rest: char != "<")
    assert any(extra("words", text) for text in KINDS["html"][:20])
    monkeypatch.setattr("vaultllm.render.inert", lambda text, **options: text)
    assert sum(bool(extra("words", text)) for some in KINDS.values() for text in some[::6]) > 60


def test_made_inert_twice_is_made_inert_once() -> None:
    for some in KINDS.values():
        for text in some:
            done = inert(text)
            assert inert(done) == done, text
            assert "\n" not in inert_line(text)


TOKENS = sorted({part for some in KINDS.values() for text in some for part in re.findall(r"\w+|\s|[^\w\s]{1,3}", text)[:40]})


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from(TOKENS) | st.sampled_from(["\n", "\n\n", " ", "> ", "- ", "```", "`", "\\"]), max_size=30).map("".join))
def test_no_mixture_of_their_parts_lives(text: str) -> None:
    for context in ("said", "quoted"):
        assert extra(context, text) == []


# -- ordinary text


def shown(text: str) -> str:
    """What a reader sees of a block: its words without marks and spaces; HTML is off, as in a note that is made inert."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["reference", "autolink"])
    words = [child.content for token in parser.parse(text) for child in [token, *(token.children or [])] if child.type in SEEN]
    return "".join("".join(words).split())


SEEN = ("text", "code_inline", "fence", "code_block", "image")


def test_ordinary_notes_in_three_languages_keep_what_a_reader_sees() -> None:
    blocks, altered, escaped = 0, [], 0
    for path in sorted(EXAMPLE.rglob("*.md")):
        for block in markdown.parse(path.name, path.read_bytes()).blocks:
            if block.kind not in ("paragraph", "list", "table", "heading", "quote", "code"):
                continue
            blocks += 1
            done = inert(block.text)
            escaped += done != block.text
            if "](" not in block.text and shown(done) != shown(block.text):
                altered.append((path.name, block.lines, block.text[:80], done[:80]))
    assert blocks > 500
    assert altered == []
    assert escaped < 0.45 * blocks, "most of it needs no escape at all"


# -- a browser


FIRES = "parent.fired.push(1); fetch('https://canary.example/js')"


def page(notes: list[str], in_one: int) -> str:
    """Notes as a careless reader would draw them: HTML alive, addresses loaded, what plugins run is run; so many in a frame."""
    parser = MarkdownIt("commonmark", {"html": True}).enable("table")
    bodies = []
    for text in notes:
        body = re.sub(
            r"\A---\n(.*?\n)---\n", r"<% parent.fired.push(1) %>\n\1", text, flags=re.DOTALL
        )  # a template plugin reads properties too
        body = re.sub(r"<%[*_+~-]?[ \n](.*?)%>", r"<script>\1</script>", body, flags=re.DOTALL)
        body = re.sub(r"!\[\[([^\]]*)\]\]", r"<img src='https://canary.example/embed/\1'>", body)
        body = parser.render(body)
        body = re.sub(
            r'<code class="language-(?:dataviewjs|js-engine|templater)">(.*?)</code>', r"<script>\1</script>", body, flags=re.DOTALL
        )
        bodies.append(re.sub(r"<code>\$= ?(.*?)</code>", r"<script>\1</script>", body).replace("&#39;", "'"))
    together = ["\n".join(bodies[at : at + in_one]) for at in range(0, len(bodies), in_one)]
    frames = ['<iframe srcdoc="' + one.replace("&", "&amp;").replace('"', "&quot;") + '"></iframe>' for one in together]
    ready = "<script>window.fired = []; onload = () => setTimeout(() => document.documentElement.dataset.ready = 1, 300)</script>"
    return f"<!DOCTYPE html><meta charset=utf-8>{ready}{''.join(frames)}"


def drawn(chromium: browser.Browser, path: Path, notes: list[str], in_one: int = 1) -> tuple[int, list[str]]:
    """(scripts that ran, addresses that were asked for) when these notes are drawn."""
    path.write_text(page(notes, in_one), encoding="utf-8", errors="replace")
    chromium.events.clear()
    chromium.open(path)
    asked = [event["params"]["request"]["url"] for event in chromium.events if event.get("method") == "Network.requestWillBeSent"]
    return chromium.js("fired.length"), [url for url in asked if not url.startswith(("file:", "about:", "data:"))]


@pytest.mark.skipif(browser.found() is None, reason="no Chromium here")
def test_a_browser_that_draws_the_notes_runs_nothing_and_asks_for_nothing(tmp_path: Path) -> None:
    kinds = payloads.texts(script=FIRES)
    some = [text for kind in ("fence languages", "fences", "code spans", "templates") for text in kinds[kind][::6]]
    some += [text for text in (*kinds["html"], *kinds["images"], *kinds["embeds and wikilinks"][:12]) if "refresh" not in text][::4]
    with browser.Browser(tmp_path / "profile") as chromium:
        ran, asked = drawn(chromium, tmp_path / "control.html", some)
        assert ran >= 8
        assert len(asked) >= 12
        notes = [note(context, text) for context in TOGETHER for text in some]
        assert drawn(chromium, tmp_path / "notes.html", notes, 20) == (len(notes), [])
