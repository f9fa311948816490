"""Nexus notes: what the goldens beside this file cannot say: tables of times and citations, accounts over real notes, linear time."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import chats, markdown
from vaultllm.chats.flattened import holds_code, mark_variants, strip_citations, survived, untie
from vaultllm.chats.times import cut_time, find_zone, make_clock, precision, read_time
from vaultllm.config import ScanSettings
from vaultllm.schema import Conversation, Note, Role, Turn

SCAN = ScanSettings()
USER = ">[!nexus_user] **User** - 16.06.2025 at 21:34\n"
AGENT = ">[!nexus_agent] **Assistant** - 16.06.2025 at 21:35\n"


def parse(text: str) -> Note:
    return markdown.parse("Chats/talk.md", text.encode())


def talk(text: str, timezone: str = "") -> Conversation:
    name, _, (conversation,) = chats.read(parse(text), SCAN, timezone)
    assert name == "nexus"
    return conversation


# -- times

# The 16th of June 2025 as moment 2.31 writes it in these locales: `L at LTS` at 21:34:40, `L at LT` at 6:05.
LOCALES = [
    ("ru", "16.06.2025 at 21:34:40", "16.06.2025 at 6:05"),
    ("pl", "16.06.2025 at 21:34:40", "16.06.2025 at 06:05"),
    ("de", "16.06.2025 at 21:34:40", "16.06.2025 at 06:05"),
    ("en", "06/16/2025 at 9:34:40 PM", "06/16/2025 at 6:05 AM"),
    ("en-ca", "2025-06-16 at 9:34:40 PM", "2025-06-16 at 6:05 AM"),
    ("en-in", "16/06/2025 at 9:34:40 PM", "16/06/2025 at 6:05 AM"),
    ("fr", "16/06/2025 at 21:34:40", "16/06/2025 at 06:05"),
    ("es", "16/06/2025 at 21:34:40", "16/06/2025 at 6:05"),
    ("nl", "16-06-2025 at 21:34:40", "16-06-2025 at 06:05"),
    ("ja", "2025/06/16 at 21:34:40", "2025/06/16 at 06:05"),
    ("zh-cn", "2025/06/16 at 21:34:40", "2025/06/16 at 06:05"),
    ("ko", "2025.06.16. at 오후 9:34:40", "2025.06.16. at 오전 6:05"),
    ("sv", "2025-06-16 at 21:34:40", "2025-06-16 at 06:05"),
    ("lv", "16.06.2025. at 21:34:40", "16.06.2025. at 06:05"),
    ("hu", "2025.06.16. at 21:34:40", "2025.06.16. at 6:05"),
    ("sl", "16. 06. 2025 at 21:34:40", "16. 06. 2025 at 6:05"),
    ("sr", "16. 6. 2025. at 21:34:40", "16. 6. 2025. at 6:05"),
    ("fi", "16.06.2025 at 21.34.40", "16.06.2025 at 06.05"),
    ("id", "16/06/2025 at 21.34.40", "16/06/2025 at 06.05"),
    ("ar", "١٦/\u200f٦/\u200f٢٠٢٥ at ٢١:٣٤:٤٠", "١٦/\u200f٦/\u200f٢٠٢٥ at ٠٦:٠٥"),
    ("fa", "۱۶/۰۶/۲۰۲۵ at ۲۱:۳۴:۴۰", "۱۶/۰۶/۲۰۲۵ at ۰۶:۰۵"),
    ("bn", "১৬/০৬/২০২৫ at রাত ৯:৩৪:৪০ সময়", "১৬/০৬/২০২৫ at সকাল ৬:০৫ সময়"),
    ("hi", "१६/०६/२०२५ at रात ९:३४:४० बजे", "१६/०६/२०२५ at सुबह ६:०५ बजे"),
    ("mr", "१६/०६/२०२५ at रात्री ९:३४:४० वाजता", "१६/०६/२०२५ at सकाळी ६:०५ वाजता"),
    ("ne", "१६/०६/२०२५ at रातिको ९:३४:४० बजे", "१६/०६/२०२५ at बिहानको ६:०५ बजे"),
    ("gu", "૧૬/૦૬/૨૦૨૫ at રાત ૯:૩૪:૪૦ વાગ્યે", "૧૬/૦૬/૨૦૨૫ at સવાર ૬:૦૫ વાગ્યે"),
    ("pa-in", "੧੬/੦੬/੨੦੨੫ at ਰਾਤ ੯:੩੪:੪੦ ਵਜੇ", "੧੬/੦੬/੨੦੨੫ at ਸਵੇਰ ੬:੦੫ ਵਜੇ"),
    ("kn", "೧೬/೦೬/೨೦೨೫ at ರಾತ್ರಿ ೯:೩೪:೪೦", "೧೬/೦೬/೨೦೨೫ at ಬೆಳಿಗ್ಗೆ ೬:೦೫"),
    ("te", "16/06/2025 at రాత్రి 9:34:40", "16/06/2025 at ఉదయం 6:05"),
    ("ml", "16/06/2025 at രാത്രി 9:34:40 -നു", "16/06/2025 at രാവിലെ 6:05 -നു"),
    ("si", "2025/06/16 at ප.ව. 9:34:40", "2025/06/16 at පෙ.ව. 6:05"),
    ("ta", "௧௬/௦௬/௨௦௨௫ at ௨௧:௩௪:௪௦", "௧௬/௦௬/௨௦௨௫ at ௦௬:௦௫"),
    ("km", "១៦/០៦/២០២៥ at ២១:៣៤:៤០", "១៦/០៦/២០២៥ at ០៦:០៥"),
    ("my", "၁၆/၀၆/၂၀၂၅ at ၂၁:၃၄:၄၀", "၁၆/၀၆/၂၀၂၅ at ၀၆:၀၅"),
    ("el", "16/06/2025 at 9:34:40 ΜΜ", "16/06/2025 at 6:05 ΠΜ"),
    ("bo", "༡༦/༠༦/༢༠༢༥ at མཚན་མོ ༩:༣༤:༤༠", "༡༦/༠༦/༢༠༢༥ at ཞོགས་ཀས ༦:༠༥"),
    ("gom-latn", "16-06-2025 at rati 9:34:40 vazta", "16-06-2025 at sokallim 6:05 vazta"),
    ("lb", "16.06.2025 at 21:34:40 Auer", "16.06.2025 at 6:05 Auer"),
    ("ss", "16/06/2025 at 9:34:40 ebusuku", "16/06/2025 at 6:05 ekuseni"),
    ("vi", "16/06/2025 at 21:34:40", "16/06/2025 at 06:05"),
    ("he", "16/06/2025 at 21:34:40", "16/06/2025 at 06:05"),
    ("am", "16/06/2025 at 9:34:40 ከሰዓት", "16/06/2025 at 6:05 ጥዋት"),
]


@pytest.mark.parametrize(("locale", "evening", "morning"), LOCALES, ids=[locale for locale, _, _ in LOCALES])
def test_a_date_reads_in_every_locale(locale: str, evening: str, morning: str) -> None:
    clock = make_clock([evening, morning])
    assert read_time(evening, clock) == "2025-06-16T21:34:40"
    assert read_time(morning, clock) == "2025-06-16T06:05:00"
    assert (precision(evening), precision(morning)) == ("second", "minute")
    assert cut_time(f"{evening} three more words") == (evening, "three more words")


@pytest.mark.parametrize(
    "raw",
    ["2025-06-16 21:34:40", "06/16/2025 at 9:34:40 PM", "16/06/2025 at 21:34:40", "16.06.2025 21:34:40", "2025/06/16 21:34:40"],
    ids=["iso", "us", "eu", "de", "jp"],
)
def test_the_formats_that_the_plugin_offers_read_alone(raw: str) -> None:
    (turn,) = talk(USER.replace("16.06.2025 at 21:34", raw) + "> a\n").turns
    assert (turn.at, turn.at_raw) == ("2025-06-16T21:34:40", raw)


def test_the_table_of_locales_is_long_and_without_repeats() -> None:
    assert len({locale for locale, _, _ in LOCALES}) == len(LOCALES) >= 25


@pytest.mark.parametrize(
    ("hour", "written"),
    [
        (0, "রাত ১২:০৫"),
        (2, "রাত ২:০৫"),
        (6, "সকাল ৬:০৫"),
        (12, "দুপুর ১২:০৫"),
        (13, "দুপুর ১:০৫"),
        (16, "বিকাল ৪:০৫"),
        (21, "রাত ৯:০৫"),
        (0, "12:05 AM"),
        (12, "12:05 PM"),
        (12, "ഉച്ച കഴിഞ്ഞ് 12:05 -നു"),
        (15, "ഉച്ച കഴിഞ്ഞ് 3:05 -നു"),
        (23, "མཚན་མོ ༡༡:༠༥"),
        (3, "མཚན་མོ ༣:༠༥"),
        (9, "9:05 a.m."),
        (21, "9:05\u202fp.\u00a0m."),
        (21, "下午9:05"),
        (21, "21.05"),
        (21, "21:05 Auer"),
    ],
)
def test_a_day_period_names_its_hours(hour: int, written: str) -> None:
    raw = f"16/06/2025 at {written}"
    assert read_time(raw, make_clock([raw])) == f"2025-06-16T{hour:02}:05:00"


@pytest.mark.parametrize(
    ("raw", "others", "expected"),
    [
        ("2025/04/03 at 10:00", [], "2025-04-03T10:00:00"),
        ("03.04.2025 at 10:00", [], "2025-04-03T10:00:00"),
        ("03-04-2025 at 10:00", [], "2025-04-03T10:00:00"),
        ("03/04/2025 at 10:00 AM", [], "2025-03-04T10:00:00"),
        ("03/04/2025 at 10:00 AM", ["13/04/2025 at 9:00 AM"], "2025-04-03T10:00:00"),
        ("03/04/2025 at 10:00", ["04/13/2025 at 10:00"], "2025-03-04T10:00:00"),
        ("03/04/2025 at 10:00", ["13/04/2025 at 10:00"], "2025-04-03T10:00:00"),
        ("03/04/2025 at 10:00", [], ""),
        ("٣/٤/٢٠٢٥ at ١٠:٠٠", [], "2025-04-03T10:00:00"),
        ("13/13/2025 at 10:00", [], ""),
        ("31.02.2025 at 10:00", [], ""),
        ("01/01/1970 at 3:00 AM", [], ""),
        ("12/31/1969 at 7:00:00 PM", [], ""),
        ("Invalid date at Invalid date", [], ""),
        ("6:20", [], ""),
    ],
)
def test_the_order_of_day_and_month_is_proved_or_unknown(raw: str, others: list[str], expected: str) -> None:
    assert read_time(raw, make_clock([raw, *others])) == expected


@pytest.mark.parametrize(
    ("created", "create_time", "offset"),
    [
        ("16.06.2025 at 21:34:40", "2025-06-16T18:34:40.000Z", "+03:00"),
        ("17.06.2025 at 00:04:40", "2025-06-16T18:34:40.123Z", "+05:30"),
        ("17.06.2025 at 00:20", "2025-06-16T18:34:59.000Z", "+05:45"),
        ("16.06.2025 at 8:34:40", "2025-06-16T18:34:40.000Z", "-10:00"),
        ("17.06.2025 at 8:34:40", "2025-06-16T18:34:40.000Z", "+14:00"),
        ("18.06.2025 at 21:34:40", "2025-06-16T18:34:40.000Z", ""),
        ("", "2025-06-16T18:34:40.000Z", ""),
        ("16.06.2025 at 21:34:40", "16.06.2025 at 21:34", ""),
    ],
)
def test_the_zone_is_local_minus_utc_to_a_quarter_of_an_hour(created: str, create_time: str, offset: str) -> None:
    clock = make_clock([created], created, create_time)
    assert read_time("16.06.2025 at 12:00", clock) == f"2025-06-16T12:00:00{offset}"


def test_the_vaults_zone_is_used_where_the_note_gives_none() -> None:
    if find_zone("Asia/Kolkata") is None:
        pytest.skip("no time zone data on this machine")
    assert talk(USER + "> a\n", "Asia/Kolkata").turns[0].at == "2025-06-16T21:34:00+05:30"
    assert talk(USER + "> a\n").turns[0].at == "2025-06-16T21:34:00"


@pytest.mark.parametrize(
    ("written", "cut"),
    [
        ("16.06.2025 at 21:34", ("16.06.2025 at 21:34", "")),
        ("06/16/2025 at 9:34 PM am I right", ("06/16/2025 at 9:34 PM", "am I right")),
        ("2025-06-16T18:34:40.000Z", ("2025-06-16T18:34:40.000Z", "")),
        ("no time at all", ("no time at all", "")),
        ("", ("", "")),
    ],
)
def test_words_joined_to_a_time_are_cut_off(written: str, cut: tuple[str, str]) -> None:
    assert cut_time(written) == cut


def test_an_unknown_day_period_is_no_text_of_the_message() -> None:
    (turn,) = talk(USER.replace("21:34", "9:34 abends") + "> a\n<!-- UID: 1 -->").turns
    assert (turn.text, turn.at, turn.at_raw) == ("a", "", "16.06.2025 at 9:34 abends")


# -- what the importer did to the text


@pytest.mark.parametrize(
    ("row", "left"),
    [
        ("Fast at compile-time. cite", "Fast at compile-time."),
        ("Река глубока cite", "Река глубока"),
        ("গভীর নদী। cite", "গভীর নদী।"),
        ("End. cite cite Next", "End. Next"),
        ("**Bold** cite", "**Bold**"),
        ("| fast. cite | slow |", "| fast. | slow |"),
        ("cite", ""),
        ("Дождь.citeturn0view2", "Дождь."),
        ("It rains citeturn0view2turn1news3.", "It rains."),
        ("See turn0news3 now", "See now"),
        ("fileciteturn0file0L3-L9 says", "says"),
        ("из файла filecite", "из файла"),
        ("we cite Smith", "we cite Smith"),
        ("please cite", "please cite"),
        ("papers that we cite", "papers that we cite"),
        ("Always do it. cite your sources", "Always do it. cite your sources"),
        ("e.g. cite Smith", "e.g. cite Smith"),
        ("excited, cited, citeable, recite", "excited, cited, citeable, recite"),
        ("\\cite{smith} and natbib.cite", "\\cite{smith} and natbib.cite"),
        ("call cite(x)", "call cite(x)"),
        ("my turn2 now", "my turn2 now"),
        ("return0x1", "return0x1"),
    ],
)
def test_leftovers_of_citations_go_and_the_word_cite_stays(row: str, left: str) -> None:
    assert strip_citations([row], words=True) == [left]


def test_citations_in_code_and_of_the_owner_stay() -> None:
    rows = ["```", "x. cite turn0view2", "````", "x. cite", "~~~", "x. cite", "~~~"]
    assert strip_citations(rows, words=True) == ["```", "x. cite turn0view2", "````", "x.", "~~~", "x. cite", "~~~"]
    assert strip_citations(["So it is. cite", "a turn0view2"], words=False) == ["So it is. cite", "a"]


@settings(max_examples=200)
@given(st.lists(st.text(alphabet="cite turn0vw.Яa`~|", max_size=30), max_size=6))
def test_stripping_citations_keeps_the_number_of_lines_and_adds_nothing(rows: list[str]) -> None:
    left = strip_citations(rows, words=True)
    assert len(left) == len(rows)
    for before, after in zip(rows, left, strict=True):
        letters = iter(before)
        assert all(letter in letters for letter in after)


def test_indentation_proves_that_a_text_is_whole() -> None:
    assert survived(["a", "  - b"])
    assert not survived(["a", " - b", "", "   "])
    assert holds_code("a\n~~~\nb")
    assert not holds_code("a `b`")


def front(version: str, provider: str) -> str:
    return f"---\nnexus: x\nplugin_version: {version}\nprovider: {provider}\n---\n"


CODE = "> ```\n> if x:\n>  y\n> ```\n<!-- UID: 1 -->\n"


@pytest.mark.parametrize(
    ("text", "lossy"),
    [
        (front("1.6.3", "chatgpt") + AGENT + CODE, True),
        (front("1.0.8", "chatgpt") + "#### Assistant, on 16.06.2025 at 21:35;\n" + CODE, True),
        (front("1.0.5", "chatgpt") + "#### ChatGPT, on 16.06.2025 at 21:35;\n" + CODE, False),
        (front("1.2.0", "chatgpt") + "#### ChatGPT, on 16.06.2025 at 21:35;\n" + CODE, False),
        (front("1.6.3", "claude") + AGENT + CODE, False),
        (front("1.6.3", "perplexity") + AGENT + CODE, False),
        (AGENT + CODE, True),
        (AGENT + CODE.replace("UID: 1", "UID: p1-assistant"), False),
        ("Chat URL: https://claude.ai/chat/1\n\n" + AGENT + CODE, False),
        ("> [!nexus_agent]\n> **Assistant** - 2025-06-16 21:35:00\n" + CODE, False),
        ("> [!nexus_agent] here it is\n" + CODE, False),
        (front("1.6.3", "chatgpt") + AGENT + CODE.replace(">  y", ">     y"), False),
    ],
)
def test_only_what_the_importers_patterns_ran_over_is_lossy(text: str, lossy: bool) -> None:
    conversation = talk(text)
    assert [turn.lossy for turn in conversation.turns] == [lossy]
    assert [problem.code for problem in conversation.problems] == ["W-LOSSY"] * lossy


@pytest.mark.parametrize(
    ("heads", "lossy"),
    [
        ("User ChatGPT User Assistant", [False, False, True, True]),
        ("User Assistant User", [True, True, True]),
        ("User ChatGPT User", [False, False, False]),
        ("User", [False]),
        ("call ChatGPT call", [False, False, True]),
        ("call call Assistant", [True, True, True]),
        ("User Unknown", [False, False]),
    ],
)
def test_a_question_is_as_old_as_its_answer(heads: str, lossy: list[bool]) -> None:
    written = {"call": USER, "User": "### User, on 16.06.2025 at 21:34;\n"}
    texts = [
        written.get(head, f"#### {head}, on 16.06.2025 at 21:35;\n") + f"> a\n<!-- UID: {head}-{row} -->\n\n"
        for row, head in enumerate(heads.split())
    ]
    assert [turn.lossy for turn in talk("---\nnexus: x\n---\n" + "".join(texts)).turns] == lossy


def test_w_lossy_counts_the_damaged_messages_that_hold_code() -> None:
    text = front("1.6.3", "chatgpt") + USER + "> a\n<!-- UID: 0 -->\n" + AGENT + CODE + USER + CODE.replace("1", "2")
    (problem,) = talk(text).problems
    assert (problem.code, problem.count, problem.line) == ("W-LOSSY", 2, 9)
    assert "repair --from conversations.json" in problem.message


# -- branches


def turns(shape: str) -> list[Turn | None]:
    """`u0 a5 - s9`: role and second of each message; `-` is one that was left out; a capital has no UID."""
    roles: dict[str, Role] = {"u": "user", "a": "assistant", "s": "system"}
    found: list[Turn | None] = []
    for line, word in enumerate(shape.split(), 1):
        role, second = word[0], word[1:]
        at, raw = (f"2025-06-16T21:34:0{second}", f"16.06.2025 at 21:34:0{second}") if second else ("", "")
        uid = word + str(line) if role.islower() else ""
        found.append(None if word == "-" else Turn(roles[role.lower()], "x", (line, line), at=at, at_raw=raw, uid=uid))
    return found


@pytest.mark.parametrize(
    ("shape", "variants"),
    [
        ("u a u a", ["", "", "", ""]),
        ("u a a a", ["", "a4", "a4", ""]),
        ("u u a", ["u2", "", ""]),
        ("u u a a", ["u2", "", "a4", ""]),
        ("u a A", ["", "line 3", ""]),
        ("u - u a", ["", "", ""]),
        ("a - a", ["", ""]),
        ("s s u", ["", "", ""]),
        ("a5 a3", ["", ""]),
        ("a3 a5", ["a52", ""]),
        ("a a5", ["a52", ""]),
    ],
)
def test_the_last_of_neighbours_of_one_role_stands(shape: str, variants: list[str]) -> None:
    assert [turn.variant_of for turn in mark_variants(turns(shape)) if turn] == variants


def test_a_tool_is_no_answer_that_was_given_anew() -> None:
    tool = Turn("assistant", "x", (1, 1), author="Unknown", uid="t")
    answer = Turn("assistant", "y", (2, 2), author="ChatGPT", uid="a")
    assert [turn.variant_of for turn in mark_variants([tool, answer, tool]) if turn] == ["", "", ""]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ("a5 u5", "ua"),
        ("u1 a2 a5 u5 u6", "uauau"),
        ("u1 a2 a5 u6", "uaau"),
        ("u1 a5 u5", "uau"),
        ("u1 a2 a5 u5 a6", "uaaua"),
        ("u1 a2 - a5 u5", "uaau"),
        ("a5 u5 -", "au"),
        ("a u", "au"),
    ],
)
def test_a_question_goes_before_its_answer_only_when_that_is_certain(shape: str, expected: str) -> None:
    assert "".join(turn.role[0] for turn in untie(turns(shape)) if turn) == expected


def test_equal_minutes_are_no_tie() -> None:
    conversation = talk(AGENT.replace("21:35", "21:34") + "> b\n<!-- UID: 2 -->\n" + USER + "> a\n<!-- UID: 1 -->\n")
    assert [turn.role for turn in conversation.turns] == ["assistant", "user"]


# -- nothing is lost

HEADER = ("# Title:", "# Topic:", "Created:", "Last Updated:", "Chat URL:")
HEADS = (">[!nexus_user]", ">[!nexus_agent]", "### User, on", "#### Assistant, on")


def unaccounted(text: str, conversation: Conversation) -> list[str]:
    """The non-blank lines of a note's body that are in no turn, in no loose text, no header and no message that was left out."""
    note = parse(text)
    rows = note.text.split("\n")
    covered = [turn.lines for turn in conversation.turns] + list(conversation.loose)
    starts = [*sorted(first for first, _ in covered), len(rows) + 1]
    for problem in conversation.problems:
        if problem.code in chats.LEFT_OUT:
            covered.append((problem.line, next(first for first in starts if first > problem.line) - 1))
    inside = {row for first, last in covered for row in range(first, last + 1)}
    outside = [rows[row - 1] for row in range(note.body_line, len(rows) + 1) if rows[row - 1].strip() and row not in inside]
    furniture = re.compile(r"---+$|<!-- UID: \w+ -->$|" + "|".join(HEADER))
    return [line for line in outside if not furniture.match(line)]


def left_out(conversation: Conversation) -> int:
    return sum(problem.count for problem in conversation.problems if problem.code in chats.LEFT_OUT)


def test_every_message_and_line_of_real_notes_is_accounted_for(shared: Path) -> None:
    paths = sorted((shared / "real" / "nexus_versions").glob("*.md")) + sorted((shared / "real" / "user").glob("*.md"))
    read = 0
    for path in paths:
        text = path.read_text(encoding="utf-8")
        name, _, found = chats.read(markdown.parse(path.name, text.encode()), SCAN, "")
        if name != "nexus":
            continue
        (conversation,) = found
        heads = sum(line.startswith(HEADS) for line in text.split("\n"))
        assert heads == conversation.seen == len(conversation.turns) + left_out(conversation), path.name
        assert unaccounted(text, conversation) == [], path.name
        read += 1
    assert read >= 20


PIECES = [
    USER,
    AGENT,
    "### User, on 16.06.2025 at 21:34;\n",
    "#### ChatGPT, on 16.06.2025 at 21:34;\n",
    "> [!nexus_user]\n> **User** - 2025-06-16 21:34:00\n",
    ">[!nexus_system] **System** - 16.06.2025 at 21:34\n",
    "> said\n",
    ">> deeper\n",
    ">\n",
    "\n",
    "own\n",
    "<!-- UID: 1 -->\n",
    "<!-- UID: 2 --> and more\n",
    "<!-- UID: 3\n",
    "```\n",
    "> ```\n",
    "<!--\n",
    "-->\n",
    "%%\n",
    "---\n",
    "    code\n",
    ">[!nexus_attachment] **f.txt** (text/plain)\n",
    ">>[!nexus_artifact]- **g.py**\n",
    ">> [[Nexus/Attachments/x/documents/y/z.txt]]\n",
    '<div class="nexus-attachment-box">\n',
    "**📎 Attachment:** h.png\n",
    "</div>\n",
    "> [No content found]\n",
    "> [!note] mine\n",
    "## Related Queries\n",
    "- a query\n",
    "# Title: T\n",
]


SPOKEN = ("> said", ">> deeper", "own", "    code", "- a query", "## Related Queries", "> [!note] mine")


@settings(max_examples=400)
@given(st.lists(st.sampled_from(PIECES), max_size=14))
def test_every_line_of_any_note_is_accounted_for(pieces: list[str]) -> None:
    text = "".join(pieces)
    name, _, found = chats.read(parse(text), SCAN, "")
    if name != "nexus":
        return
    (conversation,) = found
    assert conversation.seen == len(conversation.turns) + left_out(conversation)
    assert unaccounted(text, conversation) == []
    rows = text.split("\n")
    silent = 0  # lines of messages that are in no text
    for turn in conversation.turns:
        texts = {turn.text_line + row for row, said in enumerate(turn.text.split("\n")) if said.strip()}
        silent += sum(rows[row - 1] in SPOKEN and row not in texts for row in range(turn.lines[0], turn.lines[1] + 1))
        assert turn.text == turn.text.strip("\n")
        assert turn.text.strip()
        for row, said in enumerate(turn.text.split("\n"), turn.text_line):
            assert turn.lines[0] <= row <= turn.lines[1]
            assert rows[row - 1].rstrip().endswith(said.rstrip())
    assert silent <= sum(problem.count for problem in conversation.problems if problem.code == "W-ATTACHED")


def test_what_a_note_without_front_matter_names_in_its_url_is_kept() -> None:
    conversation = talk("Chat URL: https://chatgpt.com/c/6850-1\n\n" + USER + "> a\n")
    assert (conversation.provider, conversation.id) == ("chatgpt", "6850-1")
    conversation = talk("Chat URL: https://www.perplexity.ai/search/what-is-bpe\n\n" + USER + "> a\n")
    assert (conversation.provider, conversation.id) == ("perplexity", "")


# -- time


def falling_fences(size: int) -> str:
    """Fences that are each a mark shorter than the one before, so that none closes another, above many lines."""
    longest = int(size**0.5)
    return USER + "> a\n" + "".join("`" * (longest + 3 - row) + "x\n" for row in range(longest)) + "a\n" * size


def short_closers(size: int) -> str:
    """Fences above as many lines that would close only shorter ones."""
    return USER + "> a\n" + "``````x\n" * size + "```\n" * size


HOSTILE: dict[str, Callable[[int], str]] = {
    "heads without UID": lambda size: (USER + "> a\n" + AGENT + "> b\n") * (size // 4),
    "unreadable times": lambda size: (">[!nexus_user] **User** - 1 2 3 4 5 6 7 8 9\n> a\n") * (size // 4),
    "falling fences": falling_fences,
    "short closers": short_closers,
    "unclosed fences in messages": lambda size: (USER + "> a\n```x\nleak\n<!-- UID: 1 -->\n") * (size // 4),
    "deep quotes": lambda size: USER + ("> " + ">" * 50 + " a\n") * size,
    "tails": lambda size: (">[!nexus_agent] **A** - 16.06.2025 at 21:34\n> a\n>>\n>> b\n") * (size // 4),
    "unclosed comments": lambda size: USER + "> a\n<!-- UID: 1 -->\n" + "<!-- x\n%% y\n" * size,
    "unclosed boxes": lambda size: USER + "> a\n" + '<div class="nexus-attachment-box">\n' * size,
    "attachments": lambda size: USER + "> a\n" + ">>[!nexus_attachment] **a\n>> **📎 Attachment:** x (\n" * size,
    "UIDs": lambda size: USER + "> a\n" + "<!-- UID: 1 -->\n" * size,
    "citations": lambda size: AGENT + "> " + "turn0a1" * size + "x cite a. cite " * size + "\n",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_notes_cost_time_in_proportion(name: str) -> None:
    seconds = []
    for size in (500, 1_000, 2_000):
        text = HOSTILE[name](size)
        note = Note("a.md", "a", text, 1, {}, (), (), (), "", "utf-8", ())
        best = float("inf")
        for _ in range(3):
            start = time.process_time()
            chats.read(note, SCAN, "")
            best = min(best, time.process_time() - start)
        seconds.append(best)
    # Two doublings; what takes less than a millisecond more is noise.
    assert seconds[2] < 2.6 * 2.6 * seconds[0] + 0.001, seconds
