"""An answer as the text of a note: flat properties, the dialogue in the nexus form, the quoted sources with their links.

Pure. What a model or a note said goes through `inert`; only links that we make ourselves are live.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Sequence
from urllib.parse import quote as url_quote

from vaultllm.inert import inert, inert_line, prefixed, quiet_code, without_labels
from vaultllm.prompts import printable
from vaultllm.schema import Answer, Citation
from vaultllm.text import language

__all__ = ["NO_MODEL", "agent_message", "answer_note", "closing", "head", "inert", "link", "opening", "reply_text", "words_of"]

NO_MODEL = "no model yet"
"""`Answer.model` when nothing has been trained and no base is named: memory answers alone."""


def link(path: str, *, heading: str = "", block: str = "", alias: str = "") -> str:
    """A link that jumps to a note, its heading (`H1#H2`) or its block; the shown text is the alias or the note's name.

    The address is the vault-relative path without `.md`, which is unique whatever else is called so. A path or heading that no
    wikilink can hold (brackets, what HTML, code, math or a template could begin with, what nobody sees) becomes a Markdown link.
    """
    target = path.removesuffix(".md")
    name = target.rpartition("/")[2]
    where = f"#^{block}" if block else f"#{heading}" if heading else ""
    shown = alias or (f"{name} › {heading.rpartition('#')[2]}" if heading and not block else name)
    shown = re.sub(r"[\s|\[\]\\`<>%{}]+|::+|(?<!\w)#(?=\S)|(?<=&)(?=#?\w+;)", " ", printable(shown)).strip() or "…"
    if re.search("[#^]", target) or _UNWRITABLE.search(target + where) or printable(target + where) != target + where:
        address = url_quote(path, safe="/", errors="replace") + url_quote(where, safe="#^", errors="replace")
        return f"[{shown.replace('$', chr(92) + '$')}]({address})"
    return f"[[{target}{where}|{shown.replace('$', '')}]]"


_UNWRITABLE = re.compile(r"[|\[\]%\\\t\n<>`{}$]|::")


def talk_name(title: str, provider: str, at: str) -> str:
    """What stands in a link's place for an imported talk, which no note holds: its title, provider and day."""
    where = ", ".join(filter(None, (_PROVIDERS.get(provider, provider), at[:10])))
    return f"«{inert_line(title, 120) or '…'}»" + (f" ({inert_line(where)})" if where else "")


_PROVIDERS = {"chatgpt": "ChatGPT", "claude": "Claude", "openwebui": "Open WebUI", "lechat": "Le Chat"}


def _is_note(path: str) -> bool:
    """Whether a link can lead there: imported talks lie under a dot folder, where Obsidian sees nothing."""
    return not path.startswith(".")


# -- our note


_WORDS = {
    "en": {
        "sources": "Sources",
        "lines": "lines",
        "line": "line",
        "notes": "From your notes:",
        "nothing": "Your notes say nothing about this.",
        "own": "The model's own words",
        "unsure": "not a fact source",
        "none": "There is no model yet: memory answers alone. Train one with:",
        "silent": "The model did not answer",
        "memory": "memory",
        "stop": "delete this line to stop the answer",
    },
    "ru": {
        "sources": "Источники",
        "lines": "строки",
        "line": "строка",
        "notes": "Из заметок:",
        "nothing": "В ваших заметках об этом ничего нет.",
        "own": "Слова самой модели",
        "unsure": "не источник фактов",
        "none": "Модели ещё нет: отвечает одна память. Обучить модель:",
        "silent": "Модель не ответила",
        "memory": "память",
        "stop": "удалите эту строку, чтобы остановить ответ",
    },
    "bn": {
        "sources": "উৎস",
        "lines": "লাইন",
        "line": "লাইন",
        "notes": "নোট থেকে:",
        "nothing": "আপনার নোটে এ বিষয়ে কিছু নেই।",
        "own": "মডেলের নিজের কথা",
        "unsure": "তথ্যের উৎস নয়",
        "none": "এখনও কোনো মডেল নেই: শুধু স্মৃতি উত্তর দিচ্ছে। মডেল শেখাতে:",
        "silent": "মডেল উত্তর দেয়নি",
        "memory": "স্মৃতি",
        "stop": "উত্তর থামাতে এই লাইনটি মুছুন",
    },
}


def words_of(question: str) -> dict[str, str]:
    """The words of our notes in the question's language (ru, bn; else en)."""
    return _WORDS.get(language(question), _WORDS["en"])


def answer_note(answer: Answer, answer_id: str) -> tuple[str, str]:
    """(title of the file, text) of an answer's note: flat properties, the dialogue in the nexus form, the quoted sources.

    `vaultllm_sha` is the SHA-256 of everything after the front matter's closing line, as UTF-8.
    """
    words = words_of(answer.question)
    day, _, clock = answer.created.partition("T")
    title = " ".join(printable(answer.question).split())
    question = "\n".join(
        (
            head("user", "User", answer.created),
            prefixed(inert(answer.question), "> ", "> "),
            f"<!-- UID: {answer_id}-user -->",
        )
    )
    reply = agent_message(answer, answer_id)
    parts = [f"# Title: {inert_line(title, 200)}", question, reply]
    if answer.sources:
        parts.append(_sources(answer.sources, words))
    body = "\n" + "\n\n".join(parts) + "\n"
    links = list(dict.fromkeys(_source_property(source) for source in answer.sources))
    front = [
        "---",
        "tags: [vaultllm/answer]",
        f"created: {day}T{clock[:8]}",
        "vaultllm: answer",
        f"vaultllm_id: {property_text(answer_id)}",
        f"vaultllm_model: {property_text(answer.model)}",
        f"vaultllm_run: {property_text(answer.run)}",
        f"vaultllm_question: {property_text(title)}",
        "vaultllm_sources:" + ("".join(f"\n  - {one}" for one in links) if links else " []"),
        "vaultllm_rating:",
        f"vaultllm_sha: {hashlib.sha256(body.encode('utf-8', 'replace')).hexdigest()}",
        "---",
    ]
    return f"{day} {title}", "\n".join(front) + "\n" + body


def head(role: str, name: str, created: str) -> str:
    """The head of a nexus message: `>[!nexus_user] **User** - 21.11.2026 at 9:05:00`."""
    day, _, clock = created.partition("T")
    year, month, date = day.split("-")
    shown = " ".join(re.sub(r"[*·\n]+", " ", printable(name)).split()) if role == "user" else name
    return f">[!nexus_{role}] **{shown}** - {date}.{month}.{year} at {int(clock[:2])}{clock[2:8]}"


def agent_message(answer: Answer, answer_id: str) -> str:
    """The answer as one nexus message, with its UID."""
    speaker = answer.model if answer.text else words_of(answer.question)["memory"]
    body = prefixed(reply_text(answer), "> ", "> ")
    return f"{_agent_head(speaker, answer.created)}\n{body}\n{_uid(answer_id)}"


def _agent_head(speaker: str, created: str) -> str:
    name = " ".join(re.sub(r"[^\w.,()+'’-]+", " ", printable(speaker)).split())  # no mark has an escape there
    return head("agent", f"Assistant · {name}", created)


def _uid(answer_id: str) -> str:
    return f"<!-- UID: {answer_id}-agent -->"


def opening(answer_id: str, question: str, speaker: str, created: str) -> str:
    """How an answer begins that grows within a note: a line to delete if it is to stop, its head, and the mark of whose words they are.

    Comments, which nobody sees who reads. `speaker` is empty when memory answers alone. The reader knows both (`chats.nexus_heads`).
    """
    words = words_of(question)
    above = f"<!-- vaultllm {answer_id}: {words['stop']} -->"
    return f"{above}\n\n{_agent_head(speaker or words['memory'], created)}\n> <!-- vaultllm {answer_id} -->\n"


def closing(answer_id: str, question: str, sources: Sequence[Citation]) -> str:
    """How it ends: its sources, folded, within the message; then its UID, without which it counts as unfinished."""
    words = words_of(question)
    quoted_ = f"> \n{prefixed(_sources(sources, words), '> ', '> ')}\n" if sources else ""
    return f"{quoted_}{_uid(answer_id)}\n"


def reply_text(answer: Answer, plain_names: Collection[str] = ()) -> str:
    """What the assistant says: its own words first if it can be trusted to answer, else the notes' words and its own folded below."""
    return "\n\n".join(reply_parts(answer, plain_names))


def reply_parts(answer: Answer, plain_names: Collection[str] = ()) -> list[str]:
    """`reply_text` in the parts that it has: the first holds the notes' words alone, unless the model can be trusted to answer."""
    words = words_of(answer.question)
    said = inert(answer.text, cite=lambda number: cited(answer.sources, number), plain_names=plain_names) if answer.text.strip() else ""
    if said and answer.capable:
        return [said]
    parts = []
    if answer.sources:
        lines = [f"- {quoted(source.quote, plain_names)} — {source.link}" for source in answer.sources]
        parts.append(words["notes"] + "\n\n" + "\n".join(lines))
    else:
        parts.append(words["nothing"])
    if said:
        label = f"{words['own']} ({inert_line(answer.model)}): {words['unsure']}"
        parts.append(prefixed(f"[!warning]- {label}\n{said}", "> ", "> "))
    elif answer.model == NO_MODEL:
        parts.append(f"{words['none']} `vaultllm train`")
    else:
        parts.append(f"{words['silent']}: {inert_line(answer.model, 500)}")
    return parts


def quoted(quote: str, plain_names: Collection[str] = ()) -> str:
    """A quotation on one line, for reading: no emphasis, links as their text, a row as its cells. The exact words stand below."""
    line = re.sub(r"!?\[\[(?:[^\[\]|]*\|)?([^\[\]|]+)\]\]", r"\1", quote)
    line = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*\)", r"\1", line)
    line = re.sub(r"\*\*|__|==|~~|`", "", line).strip()
    if line.startswith("|"):
        line = " — ".join(cell.strip() for cell in line.strip("|").split("|") if cell.strip())
    said = inert_line(line, 400, start=True)
    return without_labels(said, plain_names) if plain_names else said


def cited(sources: Sequence[Citation], number: int) -> str:
    """A citation's number as a link to what it cites; empty when there is no such source."""
    if not 1 <= number <= len(sources):
        return ""
    target = sources[number - 1].link
    if not _is_note(sources[number - 1].path):
        return f"\\[{number}\\]"
    if target.startswith("[["):
        return f"{target.removesuffix(']]').partition('|')[0]}|{number}]]"
    return f"[{number}]({target.partition('](')[2]}"


def _sources(sources: Sequence[Citation], words: dict[str, str]) -> str:
    """The folded callout that holds them."""
    return f"> [!quote]- {words['sources']}\n" + "\n>\n".join(_source(number, one, words) for number, one in enumerate(sources, 1))


def _source(number: int, source: Citation, words: dict[str, str]) -> str:
    first, last = source.lines
    where = f"{words['line']} {first}" if first == last else f"{words['lines']} {first}-{last}"
    place = f"{source.link}, {where}" if _is_note(source.path) else source.link
    return f"> **{number}.** {place}\n" + prefixed(inert(source.quote), "> > ", "> > ")


def _source_property(source: Citation) -> str:
    """What was cited, as a property's value: a link of ours as it stands, spaces in a name included; a talk's title as text."""
    return json.dumps(source.link, ensure_ascii=False) if _is_note(source.path) else property_text(source.link)


def property_text(text: str) -> str:
    """A double-quoted YAML string on one line: no link for Obsidian, nothing to run for a template plugin, no HTML, image or code.

    The last for tables of properties (Dataview), which draw a value as Markdown.
    """
    line = quiet_code(" ".join(printable(text[:_LONGEST_PROPERTY]).split()))
    line += "…" if len(text) > _LONGEST_PROPERTY else ""
    if line.count("[") + line.count("{") > _MOST_BRACKETS:
        line = line.translate(str.maketrans("[]{}", "()()"))
    line = re.sub(r"\[(?=\[)|\](?=\()|<(?=[A-Za-z/!?])", r"\g<0> ", line)
    return json.dumps(re.sub("~{3,}", "~~", line.replace("`", "'")), ensure_ascii=False)


_LONGEST_PROPERTY = 2000  # characters; the whole question stands in the note
_MOST_BRACKETS = 20  # unclosed ones look like deep nesting, and the whole front matter would not be read
