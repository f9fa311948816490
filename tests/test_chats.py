"""Chat formats: what is read, what stays an ordinary note, and that nothing ever raises."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import chats, markdown
from vaultllm.chats.times import find_zone, make_clock, read_time
from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Note, Turn

SCAN = ScanSettings()


def note(text: str, path: str = "Chats/talk.md") -> Note:
    """A note as the Markdown reader makes it, as far as chats look at it (front matter: flat `key: value` lines)."""
    properties: dict[str, Any] = {}
    body_line = 1
    lines = text.split("\n")
    if lines[0] == "---" and "---" in lines[1:]:
        body_line = lines.index("---", 1) + 2
        for line in lines[1 : body_line - 2]:
            key, _, value = line.partition(": ")
            if line.startswith("  - "):
                properties.setdefault("models", []).append(line[4:].strip("\"'"))
            elif value:
                properties[key] = value.strip("\"'")
    return Note(path, Path(path).stem, text, body_line, properties, (), (), (), "", "utf-8", ())


def read(text: str, path: str = "Chats/talk.md", timezone: str = "") -> tuple[str, list[Conversation]]:
    name, why, found = chats.read(note(text, path), SCAN, timezone)
    assert bool(name) == bool(why)
    return name, found


def nexus(text: str, timezone: str = "") -> Conversation:
    name, found = read(text, timezone=timezone)
    assert name == "nexus"
    (conversation,) = found
    check_lines(text, conversation)
    return conversation


def check_lines(text: str, conversation: Conversation) -> None:
    """Turns and loose ranges don't overlap, and each line of a turn's text is found on its line of the file."""
    lines = text.split("\n")
    ranges = sorted([turn.lines for turn in conversation.turns] + list(conversation.loose))
    assert all(first <= last for first, last in ranges)
    assert all(one[1] < two[0] for one, two in itertools.pairwise(ranges))
    for turn in conversation.turns:
        assert turn.text == turn.text.strip("\n")
        assert turn.text.strip()
        for offset, said in enumerate(turn.text.split("\n")):
            row = turn.text_line + offset
            assert turn.lines[0] <= row <= turn.lines[1]
            if not turn.lossy:  # else leftovers of citations were cut out of it
                assert lines[row - 1].rstrip().endswith(said.rstrip())
            else:
                assert all(word in lines[row - 1] for word in said.split())


def shape(turns: tuple[Turn, ...]) -> str:
    return " ".join(f"{turn.role[0]}:{turn.uid}" for turn in turns)


# -- real notes of every version of the plugin

FIRST = """Привет! Посмотри:

> цитата
>> двойная

```python
def f(x):
 if x:
 return {"": 1}
```"""


def samples(shared: Path) -> Path:
    return shared / "real" / "nexus_versions"


def test_every_version_gives_the_same_turns_and_texts(shared: Path) -> None:
    texts: dict[str, set[str]] = {}
    for path in sorted(samples(shared).glob("out-*.md")):
        talk = nexus(path.read_text(encoding="utf-8"))
        tool = " a:tool" if "1.0.8" in path.name else ""
        assert shape(talk.turns) == f"u:u1 a:a1 a:a1b u:u2 a:a2 u:u2e{tool} a:a2e", path.name
        assert talk.id == "6850657c-0000-8000-9000-000000000001"
        assert talk.title == 'Генерируй "раздел": токены'
        assert talk.provider == "chatgpt"
        assert [(problem.code, problem.count) for problem in talk.problems] == [("W-LOSSY", 1)]
        assert talk.seen == len(talk.turns)
        assert talk.loose == ()
        assert talk.turns[0].text == FIRST
        assert all(turn.lossy for turn in talk.turns)
        assert [turn.uid for turn in talk.turns if turn.variant_of] == (["a1", "tool"] if tool else ["a1"])
        for turn in talk.turns:
            plain = turn.text.replace("\\(x^2\\)", "$x^2$").replace("\\[y=1\\]", "$$y=1$$")
            texts.setdefault(turn.uid, set()).add(plain)
    assert len(texts) == 8
    assert all(len(variants) == 1 for variants in texts.values())
    assert "> [!note] вложенный callout\n> текст" in next(iter(texts["a1"]))
    assert next(iter(texts["a1"])).endswith("Источник. See .")


def test_times_are_equal_in_every_locale(shared: Path) -> None:
    for version, expected in (("1.2.0", "2025-06-16T21:34:00"), ("1.6.3", "2025-06-16T21:34:40+03:00")):
        for locale in ("bn", "en", "ko", "ru", "sr"):
            talk = nexus((samples(shared) / f"out-{version}-{locale}.md").read_text(encoding="utf-8"))
            assert talk.turns[0].at == expected, locale
    assert nexus((samples(shared) / "out-1.6.3-bn.md").read_text(encoding="utf-8")).created == "2025-06-16T18:34:40+00:00"


def test_the_model_is_read_from_the_head(shared: Path) -> None:
    talk = nexus((samples(shared) / "out-1.6.3-ru.md").read_text(encoding="utf-8"))
    assert [turn.model for turn in talk.turns] == ["", "gpt-4o", "gpt-4o", "", "o3", "", "o3"]
    assert {turn.author for turn in talk.turns} == {"User", "Assistant"}


@pytest.mark.parametrize("version", ["1.2.0", "1.3.0", "1.6.3"])
def test_attachments_and_leaked_lines_are_no_text(shared: Path, version: str) -> None:
    talk = nexus((samples(shared) / f"claude-{version}-en.md").read_text(encoding="utf-8"))
    assert shape(talk.turns) == "u:m1 a:m2 u:m3 a:m4"
    said = [" ".join(turn.text.split()) for turn in talk.turns]
    assert said == ["Write a script", "Here it is: Done.", "Change it", "Updated."]
    assert [turn.attachments for turn in talk.turns] == [("notes.pdf",), ("My script",), (), ("my_script",)]
    assert [(problem.code, problem.count) for problem in talk.problems] == [
        ("W-EMPTY", 1),
        ("W-EMPTY", 1),
        ("W-BOILERPLATE", 2),
        ("W-ATTACHED", 2),
    ]
    assert talk.seen == 6
    assert talk.loose == ()
    assert not any(turn.lossy or turn.variant_of for turn in talk.turns)


def test_related_queries_are_no_turn_but_loose_text(shared: Path) -> None:
    talk = nexus((samples(shared) / "perplexity-1.6.3-en.md").read_text(encoding="utf-8"))
    assert shape(talk.turns) == "u:p1-user a:p1"
    assert talk.turns[1].text.endswith("   - An algorithm")
    assert talk.loose == ((33, 34),)
    assert talk.title == "What is BPE?"


def test_artifacts_are_imported_prose_not_talk(shared: Path) -> None:
    for path in samples(shared).glob("artifact-*.md"):
        assert read(path.read_text(encoding="utf-8")) == ("nexus-artifact", [])


def test_backups_and_reports_are_no_talk() -> None:
    talk = "---\nnexus: x\nconversation_id: {id}\n---\n>[!nexus_user] **User** - 16.06.2025 at 21:34\n> a\n<!-- UID: 1 -->\n"
    assert read(talk.format(id="abc-pre-1.7.0-backup"))[0] == "nexus-backup"
    assert read(talk.format(id="abc"), path="a (pre-1.7.0 backup).md")[0] == "nexus-backup"
    assert read(talk.format(id="abc"))[0] == "nexus"
    assert read("---\nimportdate: x\nzipFile: y.zip\n---\ntext\n")[0] == "nexus-report"
    assert read("\n# Nexus AI Chat Importer Report\n")[0] == "nexus-report"


def test_the_users_own_dialogues(shared: Path) -> None:
    text = (shared / "real" / "user" / "nexus-semantic-tokens-ru.md").read_text(encoding="utf-8")
    talk = nexus(text, timezone="Europe/Moscow")
    user, answer = talk.turns
    assert user.uid == "8db2f0f0-5565-45b2-89ff-d816f3582685"
    assert user.at == "2025-06-15T06:20:00+03:00"
    assert user.text.startswith("Генерируй раздел")
    assert user.text.endswith("контекстные поля.")
    assert answer.uid == "2618127d-98ab-4091-b503-8856a9e8cbc4"
    assert answer.text.startswith("Вот структура")
    assert answer.text.endswith("Продолжим?")
    ((first, last),) = talk.loose
    assert text.split("\n")[first - 1 : last] == ["[[55_генерируй_раздел_в_виде]]"]

    talk = nexus((shared / "real" / "user" / "nexus-learn-llm-ru.md").read_text(encoding="utf-8"))
    assert shape(talk.turns) == "u:2bcd07df-5316-453d-be04-d2c8c01fa257 a:7fb9125e-f5c4-4330-950c-7c78ea93690c"
    assert talk.turns[0].at == "2025-06-16T21:34:00"
    assert talk.turns[1].text.endswith("на твоём железе.")
    assert "> Твоя сила — не в том" in talk.turns[1].text


def test_only_furniture_lies_outside_turns_and_loose_text(shared: Path) -> None:
    furniture = ("# Title: ", "Created: ", "Last Updated: ", "Chat URL: ", "---")
    for path in sorted(samples(shared).glob("[cop]*-1.*.md")):
        text = path.read_text(encoding="utf-8")
        talk = nexus(text)
        inside = {row for first, last in [turn.lines for turn in talk.turns] + list(talk.loose) for row in range(first, last + 1)}
        empty = min((problem.line for problem in talk.problems), default=10**6)  # the samples end with messages without text
        for row, line in enumerate(text.split("\n")[: empty - 1], 1):
            if row >= note(text).body_line and row not in inside and line.strip():
                assert line.startswith(furniture), (path.name, row)


def test_real_notes_are_read_through_the_markdown_reader_too(shared: Path) -> None:
    for path in sorted(samples(shared).glob("*.md")):
        data = path.read_bytes()
        by_hand = chats.read(note(data.decode(), path.name), SCAN, "")
        assert chats.read(markdown.parse(path.name, data), SCAN, "") == by_hand, path.name
        assert chats.read(markdown.parse(path.name, data.replace(b"\n", b"\r\n")), SCAN, "") == by_hand, path.name


def test_the_users_prose_is_no_chat(shared: Path) -> None:
    for name in ("embeddings-small-llm-ru", "llm-book-notes-bn", "llm-course-ru"):
        assert read((shared / "real" / "user" / f"{name}.md").read_text(encoding="utf-8")) == ("", [])
    for path in (shared / "real" / "vaults").rglob("*.md"):
        assert read(path.read_text(encoding="utf-8", errors="replace"))[0] in ("", "plain")


# -- heads

USER = ">[!nexus_user] **User** - 16.06.2025 at 21:34\n"
AGENT = ">[!nexus_agent] **Assistant** - 16.06.2025 at 21:35\n"


@pytest.mark.parametrize(
    ("taker", "path", "text"),
    [
        ("openai", "a.json", '[{"messages": [{"role": "user", "content": "Сколько воды?"}]}]'),
        ("claude-code", "a.jsonl", '{"uuid": "1", "parentUuid": null, "type": "user", "message": {"content": "Сколько воды?"}}'),
        ("claudian", "a.JSONL", '{"type": "meta", "sessionId": "s"}\n{"type": "message", "message": {"role": "user", "content": "Да"}}'),
        ("claudian-meta", "a.meta.json", '{"sessionId": "s", "createdAt": 1}'),
        ("smart-threads", "a.json", '[[{"role": "user", "content": "Сколько воды?"}]]'),
    ],
)
def test_readers_of_json_take_their_files_and_no_notes(taker: str, path: str, text: str) -> None:
    assert read(text, path)[0] == taker
    assert {reader.name for reader in chats.READERS if reader.only_json} > {taker}
    assert [reader.name for reader in chats.READERS if reader.only_json and reader.detect(note(text, "a.md"), SCAN)] == []


def test_heads_in_quotes_and_fences_make_no_turn() -> None:
    talk = nexus(
        USER
        + "> > [!nexus_agent] **Assistant** - 16.06.2025 at 21:35\n> > spoof\n"
        + ">>[!nexus_agent] **Assistant** - 16.06.2025 at 21:35\n"
        + "> [!nexus_agent] **Assistant** - 16.06.2025 at 21:35\n"
        + "> ### User, on 16.06.2025 at 21:34;\n> <!-- UID: fake -->\n<!-- UID: real -->\n\n"
        + "```markdown\n" + AGENT + "> sample\n<!-- UID: sample -->\n```\n"
        + "    " + AGENT
    )  # fmt: skip
    assert shape(talk.turns) == "u:real"
    assert "UID: fake" in talk.turns[0].text
    assert len(talk.loose) == 1


def test_a_note_that_only_shows_the_format_is_no_chat() -> None:
    assert read("# How it looks\n\n```\n" + USER + "> hi\n<!-- UID: 1 -->\n```\n> a\n> [!nexus_user] **User** - 1\n") == ("", [])
    assert read("Text\n### User, on 16.06.2025 at 21:34;\nnothing else") == ("", [])


def test_all_written_heads_are_read() -> None:
    talk = nexus(
        "# Topic: Old\n### User, on 6/15/2025 at 9:34:40 PM\n> a\n\n#### ChatGPT, on 6/15/2025 at 9:35:00 PM\n>> b\n>> > c\n\n---\n\n"
        "> [!nexus_user]\n> **User** - 2024-01-15 14:30:22\n> d\n\n> [!NEXUS_assistant]- **Claude · opus**\n> e\n\n"
        "> [!nexus_user] hello there\n> f\n"
    )
    assert [(turn.role, turn.text, turn.author, turn.model, turn.at) for turn in talk.turns] == [
        ("user", "a", "User", "", "2025-06-15T21:34:40"),
        ("assistant", "b\n> c", "ChatGPT", "", "2025-06-15T21:35:00"),
        ("user", "d", "User", "", "2024-01-15T14:30:22"),
        ("assistant", "e", "Claude", "opus", ""),
        ("user", "hello there\nf", "", "", ""),
    ]
    assert talk.title == "Old"


# -- messages


def test_a_missing_uid_loses_nothing_and_glues_nothing() -> None:
    talk = nexus(USER + "> a\n\n> b\n\nmy own words\n\n" + AGENT + "> c\n" + AGENT + "> d\n\n> [!quote]- Sources\n> e")
    assert [turn.text for turn in talk.turns] == ["a\n\nb", "c", "d"]
    assert [turn.uid for turn in talk.turns] == ["", "", ""]
    assert talk.loose == ((6, 6), (13, 14))


def test_regenerated_answers_are_all_kept_in_order() -> None:
    talk = nexus(USER + "> a\n<!-- UID: 1 -->\n" + AGENT + "> b\n<!-- UID: 2 -->\n\n---\n" + AGENT + "> c\n<!-- UID: 3 -->")
    assert shape(talk.turns) == "u:1 a:2 a:3"
    assert talk.turns[1].lines == (4, 8)


def test_old_attachments_and_their_content_are_no_text() -> None:
    talk = nexus(
        "---\nnexus: x\n---\n### User, on 16.06.2025 at 21:34;\n> look\n\n> **📎 Attachment:** a b.txt (text/plain) - 1.6 MB\n"
        "> **Content:** one\n```\ntwo\n```\n<!-- UID: 1 -->\n\n> own quote\n"
    )
    assert talk.turns[0].text == "look"
    assert talk.turns[0].attachments == ("a b.txt",)
    assert talk.loose == ((14, 14),)


def test_text_after_an_artifact_stays_and_a_quote_is_none() -> None:
    artifact = ">>[!nexus_artifact]- **story.md**\n>> [[x]]\n>\n>> said\n> ```\n> >[!nexus_artifact] **no**\n> ```\n"
    talk = nexus(AGENT + "> a\n>\n" + artifact + "<!-- UID: 1 -->")
    assert talk.turns[0].text == "a\n\n\n\n\n> said\n```\n>[!nexus_artifact] **no**\n```"
    assert talk.turns[0].attachments == ("story.md",)


def test_a_stray_fence_in_leaked_content_hides_no_later_message() -> None:
    leak = "\n>[!nexus_attachment] **a.md** (text/plain)\n> one\n```\n<!-- UID: "
    talk = nexus(USER + "> a\n" + leak + "1 -->\n" + AGENT + "> b\n" + leak + "2 -->\n" + USER + "> c\n<!-- UID: 3 -->\n")
    assert shape(talk.turns) == "u:1 a:2 u:3"
    assert [turn.text for turn in talk.turns] == ["a", "b", "c"]


def test_a_fence_ends_with_its_quote() -> None:
    talk = nexus(USER + "> a\n> ```\n> b\n\n>[!nexus_attachment] **f**\n> c\n<!-- UID: 1 -->\n" + AGENT + "> d\n<!-- UID: 2 -->")
    assert [turn.text for turn in talk.turns] == ["a\n```\nb", "d"]
    talk = nexus(USER + "> a\n> ```\n" + AGENT + "> ```\n> b\n" + AGENT + "> c\n")
    assert [turn.text for turn in talk.turns] == ["a\n```\n" + AGENT[1:] + "```\nb", "c"]


def test_a_half_upgraded_tail_loses_both_marks_only_in_old_notes() -> None:
    body = AGENT + "> a\n>> b\n>>\n>> > c\n<!-- UID: 1 -->"
    assert nexus("---\nplugin_version: 1.2.0\n---\n" + body).turns[0].text == "a\nb\n\n> c"
    assert nexus("---\nplugin_version: 1.6.3\n---\n" + body).turns[0].text == "a\n> b\n>\n> > c"


def test_boilerplate_is_dropped_but_quoted_phrases_are_kept() -> None:
    link = "> *(visit original conversation to download)*\n"
    talk = nexus(AGENT + "> DALL-E Generated Image\n> I say [No content found] here\n" + link + "<!-- UID: 1 -->")
    assert [turn.text for turn in talk.turns] == ["I say [No content found] here"]
    assert talk.turns[0].text_line == 3


def test_a_uid_that_comes_twice_is_reported() -> None:
    talk = nexus(USER + "> a\n<!-- UID: 1 -->\n" + USER + "> a\n<!-- UID: 1 -->\n")
    assert [(problem.code, problem.line) for problem in talk.problems] == [("W-UID", 4)]


def test_restored_artifacts_belong_to_no_message() -> None:
    talk = nexus(USER + "> a\n<!-- UID: 1 -->\n\n> [!info] Restored Artifacts\n>>[!nexus_artifact] **x**\n")
    assert talk.loose == ()
    assert talk.turns[0].lines == (1, 3)


# -- times


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("16.06.2025 at 21:34:40", "2025-06-16T21:34:40"),
        ("১৬/০৬/২০২৫ at রাত ৯:৩৪ সময়", "2025-06-16T21:34:00"),
        ("০৩/০৬/২০২৫ at রাত ২:০৪ সময়", "2025-06-03T02:04:00"),
        ("০৩/০৬/২০২৫ at দুপুর ১২:০৪ সময়", "2025-06-03T12:04:00"),
        ("2025.06.16. at 오후 9:34", "2025-06-16T21:34:00"),
        ("16/06/2025 at 9:34 ΜΜ", "2025-06-16T21:34:00"),
        ("16/06/2025 at 12:34 ከሰዓት", "2025-06-16T12:34:00"),
        ("16. 6. 2025. at 21:34", "2025-06-16T21:34:00"),
        ("16/\u200f6/\u200f2025 at 21:34", "2025-06-16T21:34:00"),
        ("06/05/2025 at 12:34\u202fAM", "2025-06-05T00:34:00"),
        ("16/05/2025 at 9:34 AM", "2025-05-16T09:34:00"),
        ("16.06.2025 at 21.34", "2025-06-16T21:34:00"),
        ("2025-06-16 21:34:40", "2025-06-16T21:34:40"),
        ("2025-06-16T18:34:40.000Z", "2025-06-16T18:34:40+00:00"),
        ("01/01/1970 at 3:00 AM", ""),
        ("03/04/2025 at 10:00", ""),
        ("16.06.2025 at 9:34 что-то", ""),
        ("31.02.2025 at 9:34", ""),
        ("16.06.2025", ""),
        ("", ""),
    ],
)
def test_a_time_reads_alone(raw: str, expected: str) -> None:
    assert read_time(raw, make_clock([raw])) == expected


def test_one_clear_date_or_the_utc_time_settles_the_order() -> None:
    assert read_time("03/04/2025 at 10:00", make_clock(["03/04/2025 at 10:00", "13/04/2025 at 10:00"])) == "2025-04-03T10:00:00"
    clock = make_clock([], "03/04/2025 at 10:00", "2025-03-04T04:30:00.000Z")
    assert read_time("03/04/2025 at 10:00", clock) == "2025-03-04T10:00:00+05:30"
    clock = make_clock(["13/04/2025 at 10:00", "04/13/2025 at 10:00"])
    assert read_time("03/04/2025 at 10:00", clock) == ""
    assert read_time("04/13/2025 at 10:00", clock) == "2025-04-13T10:00:00"


def test_a_named_zone_that_agrees_knows_summer_time() -> None:
    if find_zone("Europe/Berlin") is None:
        pytest.skip("no time zone data on this machine")
    clock = make_clock([], "16.01.2025 at 21:34:40", "2025-01-16T20:34:40.000Z", "Europe/Berlin")
    assert read_time("16.06.2025 at 21:34:40", clock).endswith("+02:00")
    clock = make_clock([], "16.01.2025 at 21:34:40", "2025-01-16T18:34:40.000Z", "Europe/Berlin")
    assert read_time("16.06.2025 at 21:34:40", clock).endswith("+03:00")


def test_times_that_cannot_be_read_are_one_problem() -> None:
    talk = nexus(USER.replace("16.06.2025", "03/04/2025") + "> a\n<!-- UID: 1 -->")
    assert talk.turns[0].at == ""
    assert talk.turns[0].at_raw == "03/04/2025 at 21:34"
    assert [problem.code for problem in talk.problems] == ["W-TIME"]


# -- transcripts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# Речь\n\nПользователь: привет\n\nАссистент: да\nвторая\n\nПользователь: пока\n", ["привет", "да\nвторая", "пока"]),
        ("ব্যবহারকারী: টোকেন কী?\nসহকারী: একটি অংশ।\nব্যবহারকারী: ধন্যবাদ\n", ["টোকেন কী?", "একটি অংশ।", "ধন্যবাদ"]),
        ("**User:** hi\n\n**Assistant**: hello\n\n---\n\n**User:**\nbye", ["hi", "hello", "bye"]),
        ("> [21:34] You: hi\n> more\n\n> [21:35] AI： hello\n> [21:36] You: bye", ["hi\nmore", "hello", "bye"]),
    ],
)
def test_transcripts_are_read(text: str, expected: list[str]) -> None:
    name, (talk,) = read(text)
    assert name == "plain"
    assert [turn.text for turn in talk.turns] == expected
    assert [turn.role for turn in talk.turns] == ["user", "assistant", "user"]
    check_lines(text, talk)


@pytest.mark.parametrize(
    "text",
    [
        "Заметка о токенах.\n\nВопрос: что такое токен?\nОтвет: часть слова.\n\nИ дальше обычный текст.",
        "a\n\nb\n\nc\n\nd\n\ne\n\nUser: x\nAssistant: y\nUser: z\n",
        "```\nUser: x\nAssistant: y\nUser: z\n```\n",
        "User: x\nUser: y\nUser: z\n",
        "A long text about something else, longer than the talk that follows it here.\nUser: x\nAI: y\nUser: z\n",
        "> User: x\n> AI: y\n> User: z\n\nand then much more text of my own than they said in all of their talk\n",
    ],
)
def test_prose_with_labels_stays_a_note(text: str) -> None:
    assert read(text) == ("", [])


def test_labels_are_a_setting() -> None:
    text = "Мастер: а\nУченик: б\nМастер: в\n"
    assert chats.read(note(text), SCAN, "")[0] == ""
    named = ScanSettings(labels_user=("Мастер",), labels_assistant=("Ученик",))  # type: ignore[call-arg]
    assert chats.read(note(text), named, "")[0] == "plain"


# -- exports


def chatgpt_node(name: str, parent: str | None, children: list[str], role: str = "", text: Any = "", **message: Any) -> dict[str, Any]:
    content = {"content_type": "text", "parts": text if isinstance(text, list) else [text]}
    said = {"id": f"m-{name}", "author": {"role": role}, "content": content, "create_time": 1750098880.5}
    whole = {**said, "recipient": "all", "metadata": {}, **message}
    return {"id": name, "parent": parent, "children": children, "message": whole if role else None}


def chatgpt_export() -> dict[str, Any]:
    nodes = [
        chatgpt_node("root", None, ["s"]),
        chatgpt_node("s", "root", ["u"], "system", "be kind"),
        chatgpt_node("u", "s", ["a", "b"], "user", "what?", metadata={"attachments": [{"name": "a.pdf"}]}),
        chatgpt_node("a", "u", [], "assistant", "first answer"),
        chatgpt_node("b", "u", ["t"], "assistant", "second \ue200cite\ue202turn0search1\ue201answer", metadata={"model_slug": "gpt-4o"}),
        chatgpt_node("t", "b", ["h"], "assistant", "search()", recipient="browser"),
        chatgpt_node("h", "t", ["v"], "user", "hidden", metadata={"is_visually_hidden_from_conversation": True}),
        chatgpt_node("v", "h", ["x"], "user", [{"content_type": "audio_transcription", "text": "spoken"}, {"content_type": "image"}]),
        chatgpt_node("x", "v", [], "assistant", "", content={"content_type": "thoughts", "thoughts": []}),
    ]
    return {"id": "c1", "title": "T", "create_time": 1750098880, "current_node": "x", "mapping": {node["id"]: node for node in nodes}}


def test_the_chatgpt_tree_is_read_along_its_current_branch() -> None:
    name, (talk,) = read(json.dumps([chatgpt_export()], indent=1), path="x/conversations-000.json")
    assert name == "chatgpt"
    assert [(turn.role, turn.text, turn.uid, turn.model) for turn in talk.turns if not turn.variant_of] == [
        ("user", "what?", "m-u", ""),
        ("assistant", "second answer", "m-b", "gpt-4o"),
        ("user", "spoken", "m-v", ""),
    ]
    assert (talk.id, talk.title, talk.created) == ("c1", "T", "2025-06-16T18:34:40+00:00")
    assert talk.turns[0].at == "2025-06-16T18:34:40+00:00"
    assert talk.turns[0].attachments == ("a.pdf",)


def test_a_circle_in_the_chatgpt_tree_ends() -> None:
    data = chatgpt_export()
    data["mapping"]["root"]["parent"] = "x"
    data["current_node"] = None
    (talk,) = read(json.dumps(data), path="conversations.json")[1]
    assert len(talk.turns) >= 2


def claude_export(uuid: str = "c1") -> dict[str, Any]:
    hello, there = ({"type": "text", "text": text} for text in ("hello", "there"))
    content = [{"type": "thinking", "thinking": "hm"}, hello, {"type": "tool_use"}, there]
    time = "2025-06-16T18:34:40.123456Z"
    messages = [
        {"uuid": "1", "sender": "human", "text": "hi", "created_at": time, "attachments": [{"file_name": "a.txt"}]},
        {"uuid": "2", "sender": "assistant", "text": "whole", "content": content, "created_at": None, "files": [{"file_name": "b.png"}]},
        {"uuid": "3", "sender": "human", "text": "", "content": []},
    ]
    return {"uuid": uuid, "name": "Talk", "created_at": "2025-06-16T18:34:40Z", "chat_messages": messages}


def test_a_claude_export_is_read() -> None:
    name, (talk,) = read(json.dumps([claude_export()]), path="conversations.json")
    assert name == "claude"
    assert [(turn.role, turn.text, turn.uid, turn.at, turn.attachments) for turn in talk.turns] == [
        ("user", "hi", "1", "2025-06-16T18:34:40+00:00", ("a.txt",)),
        ("assistant", "hello\n\nthere", "2", "", ("b.png",)),
    ]
    assert [problem.code for problem in talk.problems] == ["W-BLOCKS", "W-EMPTY"]


def test_one_broken_conversation_costs_only_itself() -> None:
    parts = [json.dumps(claude_export(f"c{number}"), indent=1) for number in range(4)]
    whole = "[\n" + ",\n".join(parts) + "\n]"
    for broken, kept in (
        (whole.replace('"uuid": "c1"', '"uuid": c1'), ["c0", "", "c2", "c3"]),
        (whole[: whole.index('"c2"')], ["c0", "c1", ""]),
        ("[\n" + parts[0] + ",\n", ["c0", ""]),
        (whole.replace("},\n{", "}\n{", 1), ["c0", "", "c1", "c2", "c3"]),
        ("[\n" + ",\n".join([*parts[:2], "[1, 2]"]) + "]", ["c0", "c1", ""]),
    ):
        _, found = read(broken, path="conversations.json")
        assert [talk.id for talk in found] == kept
        assert all(bool(talk.id) != bool(talk.problems and talk.problems[0].code.startswith("E-")) for talk in found)


def test_broken_json_names_its_line_and_column() -> None:
    _, (talk,) = read('[\n {"uuid": "1",\n  "chat_messages": oops}]', path="conversations.json")
    assert talk.turns == ()
    assert talk.problems[0].line == 3
    assert "3:20" in talk.problems[0].message


def test_lines_of_an_export_are_those_of_the_conversation() -> None:
    text = "[\n" + ",\n".join(json.dumps(claude_export(name), indent=1) for name in "ab") + "\n]"
    one, two = read(text, path="conversations.json")[1]
    assert one.lines[0] == 2
    assert two.lines == (one.lines[1] + 1, text.count("\n"))
    assert two.turns[0].lines == two.lines
    assert two.turns[0].text_line == 0


# -- nothing raises

VALID = (
    "---\nnexus: x\nplugin_version: 1.2.0\ncreate_time: 2025-06-16T18:34:40.000Z\n---\n# Title: T\n\nCreated: 16.06.2025 at 21:34\n\n"
    + USER + "> a\n> ```\n> b\n\n>[!nexus_attachment] **f** (x)\n> c\nd\n```\n<!-- UID: 1 -->\n\nown\n\n"
    + AGENT + "> > q\n>> w\n<!-- UID: 2 -->\n\n---\n### User, on 16.06.2025 at 21:34;\n> e\n#### ChatGPT, on ১৬/০৬/২০২৫ at রাত ৯:৩৪\n>> f\n"
)  # fmt: skip
PLAIN = "User: a\n**AI:** b\n> User: c\n```\nUser: d\n"
INSERTED = ["", "\n", ">", "> ", "`" * 3, "<!-- UID: x -->", "**", "১", "---\n", "}", '"', ",{"]
EDIT = st.tuples(st.integers(0, 2000), st.integers(0, 40), st.sampled_from(INSERTED))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([VALID, PLAIN, json.dumps([claude_export()]), json.dumps([chatgpt_export()])]), st.lists(EDIT, max_size=6))
def test_reading_an_edited_note_never_raises_and_lines_stay_true(text: str, edits: list[tuple[int, int, str]]) -> None:
    for start, length, inserted in edits:
        start %= len(text) + 1
        text = text[:start] + inserted + text[start + length :]
    path = "conversations.json" if text[:1] == "[" else "a.md"
    name, found = read(text, path=path)
    if name in ("nexus", "plain"):
        (talk,) = found
        check_lines(text, talk)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet="0123456789./-: atAPMরাত৯T\u200fZ+", max_size=40))
def test_reading_a_time_never_raises(raw: str) -> None:
    assert isinstance(read_time(raw, make_clock([raw], raw, raw)), str)


def test_hostile_notes_are_read_in_linear_time() -> None:
    start = USER + "> a\n"
    for text in (
        start + "```x\n" * 50_000,
        start + "> ```x\n" * 50_000 + "<!-- UID: 1 -->",
        USER * 20_000,
        start + "<!-- UID: x" + " " * 100_000 + "\n",
        "### User, on 1" + " " * 100_000 + "x\n" + start,
        "~~~\n```\n" * 20_000 + start,
    ):
        chats.read(note(text), SCAN, "")
    chats.read(note('[{"chat_messages": ' + "[" * 100_000, "a.json"), SCAN, "")


def test_a_reformatted_note_is_read() -> None:
    talk = nexus(
        "---\ntags: x\n---\n\n# Title: T\n\nCreated: 16.06.2025 at 21:34 Last Updated: 17.06.2025 at 21:34\n\n"
        "> [!nexus_user] **User** - 16.06.2025 at 21:34\n\n> a\n>\n> > q\n\n<!-- UID: 1 -->\n\n#### ChatGPT, on 16.06.2025 at 21:35;\n\n"
        "> > b\n\n<!-- UID: 2 -->\n\n---\n"
    )
    assert shape(talk.turns) == "u:1 a:2"
    assert [turn.text for turn in talk.turns] == ["a\n\n> q", "b"]
    assert talk.created == "2025-06-16T21:34:00"
    assert talk.loose == ()
