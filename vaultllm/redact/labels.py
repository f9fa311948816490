"""Values behind a label (`password: …`, «пароль — …», `| পাসওয়ার্ড | … |`), by the form of the value.

The rule: what follows the label and its sign (`:`, `=`, `|`, a dash, «это», `is`, «হলো») is a secret when no person
would write it in a sentence. An ordinary word stays («пароль: должен быть длинным», «ключ — это идея»), save a single
one at the end of a `password: …` line, and one in quotes. A bare `key` or `token` asks for most: a run of letters and
digits that looks drawn by chance. Placeholders, code and types stay. Each place is tried once, within bounds.
"""

from __future__ import annotations

import functools
import itertools
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator

from vaultllm.redact.numbers import is_inn, is_phone, is_snils, is_verhoeff, numerals
from vaultllm.redact.spans import SEP, Span

_BN = "\u0980-\u09ff"

# Codes for the day when a second factor is lost: as many as stand there.
_CODE_FORM = r"(?:[a-z0-9]{3,8}(?:-[a-z0-9]{3,8}){1,6}|\d{6,10})"
CODES = rf"[ ]codes?[^\w\n⟨⟩]{{1,5}}({_CODE_FORM}(?:[ ,;]{{1,2}}{_CODE_FORM}){{0,15}})(?![\w⟨])"

# stem (lower case), how it goes on, tier: what form the value must have (`_is_secret`). Of one stem the first that fits.
LABELS: tuple[tuple[str, str, str], ...] = (
    ("парол", r"ьная фраза", "phrase"),
    ("парол", r"(?:ь|я|ем|ю|и)", "password"),
    ("код", r"(?:овое слово|ового слова|а? доступа)", "password"),
    ("код", r"овая фраза", "phrase"),
    ("pass", r"phrase", "phrase"),
    ("pass", r"(?:word|wd|code)", "password"),
    ("pass", "", "pass"),
    ("pwd", "", "password"),
    ("pw", "", "pass"),
    ("пасс", "", "password"),
    ("код", r"(?: от| для| из)? (?:подъезда|домофона|двери|сейфа|замка|калитки|ворот|карты|смс|sms|сигнализации)", "pin"),
    ("домофон", "а?", "pin"),
    ("door", r"[ ]code", "pin"),
    ("gate", r"[ ]code", "pin"),
    ("alarm", r"[ ]code", "pin"),
    ("পাস", rf"(?:ও(?:\u09df|\u09af\u09bc)ার্ড|কোড|ফ্রেজ)[{_BN}]{{0,4}}", "password"),
    ("গোপন", rf"[ ](?:চাবি|কোড|শব্দ)[{_BN}]{{0,4}}", "password"),
    ("пин", r"(?:[ -]?код(?:а|ом)?)?", "pin"),
    ("pin", r"(?:[ _-]?(?:code|number))?", "pin"),
    ("পিন", rf"(?:[ -]?(?:কোড|নম্বর))?[{_BN}]{{0,4}}", "pin"),
    ("cv", r"(?:v2?|c2?)[ ](\d{3,4})(?![\w⟨])", "pin"),
    ("cv", "(?:v2?|c2?)", "pin"),
    ("recovery", CODES, "secret"),
    ("backup", CODES, "secret"),
    ("licen", r"[cs]e(?:[ _-]?(?:key|code|no|number))?", "secret"),
    ("serial", r"(?:[ _-]?(?:key|number|no))?", "secret"),
    ("лицензи", r"[яию](?: на)?", "secret"),
    ("секрет", r"(?:н(?:ый|ого) (?:ключ|код)а?|ное слово|а|ом)?", "secret"),
    ("secret", r"(?:[ _-]?access)?(?:[ _-]?(?:key|token|value))?", "secret"),
    ("токен", r"(?:а|ом|у)?[ ](?:доступа|бота|api|апи)", "secret"),
    ("токен", r"(?:а|ом|у)?", "token"),
    ("ключ", r"(?:а|ом|у)?[ ](?:сети|от сети|безопасности сети|wi-?fi|вайфая)", "password"),
    ("ключ", r"(?:а|ом|у)?[ ](?:доступа|api|апи|шифрования|лицензии)", "secret"),
    ("ключ", r"(?:а|ом|у)?", "token"),
    ("token", "", "token"),
    ("key", "", "token"),
    ("টোকেন", rf"[{_BN}]{{0,4}}", "token"),
    ("চাবি", rf"[{_BN}]{{0,4}}", "token"),
    ("логин", r"(?:а|ом)?[ ]?(?:/|и|,|&|\+)[ ]?парол[ья]", "pair"),
    ("логин", r"(?:а|ом)?", "login"),
    ("login", r"[ ]?(?:/|and|,|&|\+)[ ]?pass(?:word|wd)?", "pair"),
    ("login", "", "login"),
    ("এপিআই", r"[ -](?:কী|কি)", "secret"),
    ("লগইন", rf"[{_BN}]{{0,4}}", "login"),
)
OPENED = ("key", "token", "ключ", "токен", "চাবি", "টোকেন")
# Before one of these: then it opens something, and a UUID or a hex digest is a secret too.
OPENS = re.compile(
    r"(?:api|access|auth|refresh|private|signing|encryption|account|client|bot|апи|приватн\w\w|закрыт\w\w|секретн\w\w"
    r"|лицензионн\w\w|এপিআই|গোপন)[ _-]?$"
)
# stem, how it goes on with the number in a group, kind.
NUMBERED: tuple[tuple[str, str, str], ...] = (
    ("номер карты", r"[^\d\n⟨⟩]{0,20}(\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4})(?![\d⟨])", "card"),
    ("card number", r"[^\d\n⟨⟩]{0,20}(\d{4}[ -]?\d{4}[ -]?\d{4}[ -]?\d{4})(?![\d⟨])", "card"),
    ("паспорт", r"[а-я]{0,3}[^\d\n⟨⟩]{0,40}(\d\d[ ]?\d\d[^\d\n⟨⟩]{0,12}\d{6}|\d\d[ №]{0,3}\d{7})(?![\d⟨])", "passport"),
    ("загранпаспорт", r"[а-я]{0,3}[^\d\n⟨⟩]{0,25}?((?:\b[a-z]{1,2}[ ]?)?\d{6,9})(?![\d⟨])", "passport"),
    ("passport", r"[^\d\n⟨⟩]{0,25}?((?:\b[a-z]{1,2}[ ]?)?\d{6,9})(?![\d⟨])", "passport"),
    ("পাসপোর্ট", rf"[{_BN}]{{0,4}}[^\d\n⟨⟩]{{0,25}}?((?:\b[a-z]{{1,2}}[ ]?)?\d{{6,9}})(?![\d⟨])", "passport"),
    ("снилс", r"[^\d\n⟨⟩]{0,20}(\d{3}[ -]?\d{3}[ -]?\d{3}[ -]?\d\d)(?![\d⟨])", "snils"),
    ("инн", r"[^\d\n⟨⟩]{0,20}(\d{10}(?:\d\d)?)(?![\d⟨])", "inn"),
    ("aadha", r"ar[^\d\n⟨⟩]{0,20}(\d{4}[ -]?\d{4}[ -]?\d{4})(?![\d⟨])", "aadhaar"),
    ("আধার", r"[^\d\n⟨⟩]{0,20}(\d{4}[ -]?\d{4}[ -]?\d{4})(?![\d⟨])", "aadhaar"),
    ("ssn", r"[^\d\n⟨⟩]{0,20}(\d{3}[ -]\d\d[ -]\d{4}|\d{9})(?![\d⟨])", "ssn"),
    ("social security", r"[^\d\n⟨⟩]{0,20}(\d{3}[ -]\d\d[ -]\d{4}|\d{9})(?![\d⟨])", "ssn"),
    ("nid", r"(?:[^\d\w\n⟨⟩]{0,4}(?:card|number|no|is|নম্বর)){0,2}[^\d\w\n⟨⟩]{0,4}(\d{17}|\d{13}|\d{10})(?![\d⟨])", "nid"),
    ("এনআইডি", r"[^\d\n⟨⟩]{0,20}(\d{17}|\d{13}|\d{10})(?![\d⟨])", "nid"),
    ("জাতীয়", r"[ ]পরিচয়পত্র[^\d\n⟨⟩]{0,20}(\d{17}|\d{13}|\d{10})(?![\d⟨])", "nid"),
    *(
        (
            stem,
            rf"[\w{_BN}]{{0,6}}[ :.№#*_`\"—–=|-]{{0,5}}(?:(?:номер|number|নম্বর|no|is|на|по|at|on|me)[ :.№#*_`\"—–-]{{0,5}})?"
            rf"((?!\d{{4}}[-./]\d\d?[-./]\d|\d\d?[./]\d\d?[./]\d\d)[+(]?\d(?:{SEP}\d){{6,14}})(?![\w⟨])",
            "phone",
        )
        for stem in (
            "телефон",
            "тел",
            "моб",
            "phone",
            "mobile",
            "tel",
            "whatsapp",
            "viber",
            "звони",
            "позвони",
            "call",
            "вотсап",
            "ফোন",
            "মোবাইল",
        )
    ),
)
SIGNLESS = (
    ("curl", r"[^\n⟨⟩]{0,200}? (?:-u|--user)[ =][\"']?[\w.@-]{1,64}:([^\s\"'⟨⟩]{4,200})", "password"),
    ("mysql", r"[^\n⟨⟩]{0,200}? -p([^\s\"'⟨⟩=-][^\s\"'⟨⟩]{3,200})", "password"),
    ("sshpass", r"[ ]{1,3}-p[ ]{0,3}[\"']?([^\s\"'⟨⟩]{4,200})", "password"),
    # so short a number that nothing else in the text says that it may be there
    ("pan", r"[^\w\n⟨⟩]{0,4}(?:(?:card|number|no|is)[^\w\n⟨⟩]{0,4}){0,2}([a-z]{3}[abcfghljpt][a-z]\d{4}[a-z])(?!\w)", "pan"),
    ("প্যান", r"[^a-z\n⟨⟩]{0,20}([a-z]{3}[abcfghljpt][a-z]\d{4}[a-z])(?!\w)", "pan"),
)
SEEDS = tuple(
    (stem, r"[^\n:=—⟨]{0,30}[:=—][ \t\"'`*«]{0,4}((?:[a-z]{3,8}[ ,]{1,2}){11,23}[a-z]{3,8})(?![a-z⟨])", "wallet")
    for stem in ("seed", "сид", "мнемони", "mnemonic", "recovery phrase", "фраза восстановления", "সিড")
)
_PROOFS: dict[str, Callable[[str], bool]] = {
    "snils": lambda found: is_snils(numerals(found)),
    "inn": lambda found: is_inn(numerals(found)),
    "aadhaar": lambda found: is_verhoeff(numerals(found)),
    "phone": is_phone,
    "secret": lambda found: len(numerals(found)) >= 3,
    "password": lambda found: not is_placeholder(found) and not is_code(found),
}

_DIGITS = "0123456789"
_SIGNS = (":", "=", "|", "- ", "— ", "– ", "это", " is ", " was ", "হল", "->", "\uff1a")
_TAIL = re.compile(
    r"""(?:_(?!file|path|name|field|len|count|type|url|dir|hash|FILE|PATH|NAME|FIELD|LEN|TYPE|URL|DIR)\w{1,30}|\d{1,2})?["'`*_\])»”]{0,4}
    (?P<words>(?:[ ](?!это[ ]|is[ ]|was[ ]|হলো?[ ]|-)[^\s:=|—–.,;!?"'`«»()\[\]{}<>⟨⟩/]{1,24}){0,4})[*_`]{0,3}
    (?:[ ]\([^()\n⟨⟩]{1,40}\))?[ \t]{0,3}
    (?P<sign>:=|=>|->|[:=|\uff1a]|[-—–](?=[ \t])|(?:это|is|was|হলো|হল)(?=[ \t:])[ \t]{0,3}:?|>(?=[^\s<>]{1,200}</))
    [ \t]{0,4}[*_~]{0,3}[ \t]{0,2}\\?
    (?:(?P<quote>["'`«“])(?P<quoted>(?:(?!(?P=quote)|[»”])[^\n⟨⟩]){1,200})(?:(?P=quote)|[»”])
      |(?P<bare>(?:[^\s|`"«»“”<>\[\]⟨⟩]|\[(?!\[)|\](?!\])){1,300}+)(?!⟨))""",
    re.VERBOSE,
)
# Without a sign only what is drawn by chance: `пароль 4yhnMKO0`, `my password's Tr0ub4dor`, `пин карты 4821`.
_BARE = re.compile(
    r"""(?:["'`*_]{0,3}(?:'s)?(?:[ ](?!это[ ]|is[ ])[^\W\d_]{1,14}[\u0980-\u09ff]{0,6}){0,2}[ ]["'`*_]{0,3})
    (?:(?P<digits>\d{4}|\d{6}|\d{1,3}[кk]\d{3,5})(?![\w⟨%]|[.,:-]\d)|(?P<mixed>[^\s|`"«»“”<>\[\]⟨⟩()]{6,64}+)(?!⟨))""",
    re.VERBOSE | re.IGNORECASE,
)
_REST = re.compile(r"[^\s|`\"«»“”<>\[\]⟨⟩]*+")
_PAIR = re.compile(
    r"[\"`*_)\]]{0,4}[ \t]{0,2}[:=—–-][ \t]{0,3}[\"`*_]{0,3}([^\s|`\"«»<>⟨⟩/:,;]{2,64})(?:[ \t]{0,2}[/|:,;][ \t]{0,2}|[ \t]{1,3})"
    r"([^\s|`\"«»<>⟨⟩]{4,100})(?![^\s|`\"«»<>])"
)
_PHRASE = re.compile(r"[\"'*_]{0,4}[ \t]{0,2}[:=—–-][ \t]{0,3}([\"'`«“])((?:[^\W\d_]{2,20}[ -]){3,11}[^\W\d_]{2,20})[\"'`»”]")

_PLACEHOLDER = re.compile(
    r"x{4,}|\.{3}|…|\*{3}|•{3}|your|example|placeholder|change_?me|redacted|dummy|insert|ваш|пример|\bтут\b|здесь|_here$|^my[_-]"
    r"|^<.*>$|^\W+$|^(?:user(?:name)?|login|pass(?:word)?|pwd|secret|token|key|пароль|токен|ключ)$",
    re.IGNORECASE,
)
_TYPES = frozenset(
    """str string none null nil true false undefined bytes bool text varchar char int number any optional required object self
    pending empty unset missing неверный верный нет есть да обязателен обязательно неизвестен пустой забыт забыла забыл неправильный
    изменён изменен сброшен yes unknown incorrect invalid wrong reset changed forgotten never always""".split()
)
_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_HEX = re.compile(r"(?:0x|sha\d+[:-])?[0-9a-f]+", re.IGNORECASE)
_CODE = re.compile(r"[$%@#&~\\][^\W\d]+(?!\w)|[<({\[]|[.~]{0,2}/|[\w.]+[(\[{]|https?:|www\.|\w+://")
_NAME = re.compile(r"[^\W\d]+(?:[._-][^\W\d]+)*")
_OF_CODE = re.compile(r"[_.]|pass|secret|token|key|value|string", re.IGNORECASE)
_COUNTED = re.compile(r"\d{1,3}-[^\W\d_]+|\d{1,3}[-–]\d{1,3}|\d+(?:[.,]\d+)?(?:%|k|m|мс|с|gb|mb|кб|мб)?", re.IGNORECASE)
_MOMENT = re.compile(r"\d{4}[-./]\d\d?[-./]\d\d?|\d\d?[-./]\d\d?[-./]\d{2,4}|\d\d?:\d\d")
_DOOR = re.compile(r"\d{1,4}[кkKК]\d{2,5}[#*]?|\d{3,6}[#*]")
_PIN = re.compile(r"\d[\d -]{1,10}\d(?!\w)")
_RUNS = re.compile(r"[A-Za-z0-9]+")


def labelled(text: str, *, worded: bool = True, numeric: bool = True) -> Iterator[Span]:
    """Values behind a label that have the form of a secret.

    Not looked for: without `worded`, values that are no long numbers; without `numeric`, numbers as long as a phone's.
    """
    lowered = text.lower()
    if len(lowered) != len(text):  # a letter whose lower case is two: offsets must stay
        lowered = "".join(letter.lower() if len(letter.lower()) == 1 else letter for letter in text)
    words, numbered, signless = _stems(text.isascii())
    signs = worded and any(sign in lowered for sign in _SIGNS)
    tried = (
        (words if signs else ())
        + (numbered if numeric else ())
        + (signless if signs or (worded and any(digit in text for digit in _DIGITS)) else ())
    )
    places: list[tuple[int, str]] = []
    for stem in tried:
        at = lowered.find(stem)
        while at >= 0:
            places.append((at, stem))
            at = lowered.find(stem, at + len(stem))
    done = 0
    for at, stem in sorted(places):
        if at < done:
            continue
        for span in _behind(text, lowered, at, stem):
            yield span
            done = max(done, span.end)


@functools.cache
def _stems(ascii_only: bool) -> tuple[tuple[str, ...], ...]:
    """The stems that can stand in a text: those that need a sign, those that need a number, those that need neither."""
    bare = ("password", "phrase", "pass", "pin")
    signed = tuple(row for row in LABELS if row[2] not in bare)
    tables = ((*signed, *SEEDS), NUMBERED, (*SIGNLESS, *(row for row in LABELS if row[2] in bare)))
    return tuple(tuple(dict.fromkeys(stem for stem, _, _ in table if stem.isascii() or not ascii_only)) for table in tables)


@functools.cache
def _rules(stem: str) -> tuple[tuple[re.Pattern[str], str], ...]:
    """How a stem may go on, and the tier or kind."""
    every = (*LABELS, *SEEDS, *NUMBERED, *SIGNLESS)
    return tuple((re.compile(rest), tier) for name, rest, tier in every if name == stem)


def _behind(text: str, lowered: str, at: int, stem: str) -> Iterator[Span]:
    """What is secret behind the label at this place."""
    before = text[at - 1] if at else " "
    opens = stem in OPENED and (OPENS.search(lowered, max(0, at - 16), at) is not None or (before == "_" and text[at].isupper()))
    if before == "⟨" or (not opens and _in_word(before, text[at]) and not lowered.startswith(("password", "passwd"), at)):
        return
    for rest, tier in _rules(stem):
        label = rest.match(lowered, at + len(stem))
        if not label:
            continue
        if rest.groups:
            if _PROOFS.get(tier, bool)(label[1]):
                yield Span(*label.span(1), tier)
            return
        end = label.end()
        if end < len(text) and (text[end].isalpha() or "\u0980" <= text[end] <= "\u09ff"):
            continue
        if tier == "pair" and (pair := _PAIR.match(text, end)):
            if _is_secret(pair[2].rstrip(".,;:)"), "password", False, True):
                yield from (Span(*pair.span(1), "login"), Span(*pair.span(2), "password"))
            return
        if tier == "phrase" and (phrase := _PHRASE.match(text, end)):
            yield Span(*phrase.span(2), "password")
            return
        if span := _value(text, end, "secret" if opens else tier):
            yield span
        return


def _in_word(before: str, first: str) -> bool:
    """Whether a label begins inside another word; `db_password` and `dbPassword` count as labels."""
    return (before.isalnum() or "\u0980" <= before <= "\u09ff") and not (first.isupper() and before.islower() and before.isascii())


def _value(text: str, at: int, tier: str) -> Span | None:
    """The value behind a label that ends here, if it has the form of a secret."""
    tail = _TAIL.match(text, at)
    if tail is None:
        return _signless(text, at, tier)
    direct = tail["sign"] in (":", "=", ":=", ">", "\uff1a")
    if (tail["words"] and not direct and tier in ("token", "login")) or (tier == "pass" and not direct):
        return None
    quoted = tail["quoted"] is not None
    start, end = tail.span("quoted" if quoted else "bare")
    value = text[start:end] if quoted else text[start:end].rstrip("*_~,;:)]}.।'")
    if tier == "pin" and (number := _PIN.match(value)):  # whatever marks (`%%`, `==`) close the text around it
        value = number[0]
    line_end = text.find("\n", end, end + 8)
    after = text[end : line_end if line_end >= 0 else end + 8]
    direct = direct and not (tail["sign"] == "=" and text[start - 1].isspace())  # `password = split` is code
    alone = direct and not quoted and not tail["words"] and not after.strip(" \t\r*_`|.")
    kind = "password" if tier in ("pass", "phrase", "pair") else tier
    if not _is_secret(value, kind, quoted, alone):
        return _signless(text, at, tier)
    if not quoted and end - start >= 300:  # a run without white space: all of it
        rest = _REST.match(text, end)
        return Span(start, rest.end() if rest else end, kind)
    return Span(start, start + len(value), kind)


def _signless(text: str, at: int, tier: str) -> Span | None:
    """The value right behind a label, without a sign, when it is digits for a door or drawn by chance."""
    if tier not in ("password", "pass", "pin", "secret") or not (found := _BARE.match(text, at)):
        return None
    if tier == "pin":
        return Span(*found.span("digits"), "pin") if found["digits"] else None
    value = (found["mixed"] or "").rstrip(".,;:!?)'*_")
    if tier == "secret" and not is_random(value, strict=True):
        return None
    digits = sum(letter.isdecimal() for letter in value)
    letters = sum(letter.isalpha() and letter.isascii() for letter in value)
    if digits < 2 or letters < 2 or is_placeholder(value) or is_code(value) or _COUNTED.fullmatch(value) or "=" in value or "/" in value:
        return None
    return Span(found.start("mixed"), found.start("mixed") + len(value), "secret" if tier == "secret" else "password")


def _is_secret(value: str, tier: str, quoted: bool, alone: bool) -> bool:
    """Whether what stands behind a label has the form of a secret. `alone`: right behind the label and the last of its line."""
    plain = value.rstrip(".,;:!?)…")
    if is_placeholder(plain) or plain.lower() in _TYPES or _MOMENT.match(plain):
        return False
    digits = sum(letter.isdecimal() for letter in plain)
    if tier == "pin":
        if _DOOR.fullmatch(plain):
            return True
        return 3 <= len(plain) <= 12 and digits >= 3 and digits == len(plain.replace("-", "").replace(" ", ""))
    if (
        len(plain) < 4
        or (is_code(plain) if not quoted else plain.startswith("$") and is_code(plain))
        or (not quoted and "(" in plain)
        or "{{" in plain
        or "${" in plain
    ):
        return False
    if tier in ("token", "secret"):
        return is_random(plain, strict=tier == "token")
    if any(letter.isspace() for letter in plain):  # in quotes: a sentence, unless a word of it is one
        return tier == "password" and any(_is_secret(word, tier, False, False) and not word.isdecimal() for word in plain.split())
    if tier == "login":
        return not _NAME.fullmatch(plain) and any(letter.isalpha() for letter in plain) and not _COUNTED.fullmatch(plain)
    if _NAME.fullmatch(plain):
        if _OF_CODE.search(plain):
            return quoted
        as_in_prose = plain.islower() or plain.isupper() or plain.istitle() or not plain.isascii()
        return not as_in_prose or quoted or alone
    return digits == len(plain) or not _COUNTED.fullmatch(plain)


def is_placeholder(value: str) -> bool:
    """Whether a value only holds the place of a secret (`YOUR_API_KEY`, `xxxx`, `<token>`, `password`)."""
    return _PLACEHOLDER.search(value) is not None


def is_code(value: str) -> bool:
    """Whether a value is a variable, a call, a path or an address rather than a secret."""
    return _CODE.match(value) is not None


def is_random(value: str, strict: bool) -> bool:
    """Whether a value looks drawn by chance: a run of letters and digits that changes between them often enough.

    `strict` (after a bare `key` or `token`): UUIDs and hex digests are ids there, not secrets.
    """
    if any(letter.isspace() for letter in value):
        return False
    if _UUID.fullmatch(value):
        return not strict
    if _HEX.fullmatch(value):
        return not strict and len(value) >= 16
    runs = _RUNS.findall(value)
    longest = max(runs, key=len, default="")
    if not strict and len(longest) < 10 and len(runs) > 1 and re.fullmatch(r"[A-Za-z0-9-]+", value):  # groups joined by dashes
        longest = "".join(runs)
        if sum(a.isdigit() != b.isdigit() for a, b in itertools.pairwise(longest)) < 4:
            return False
    least = 12 if strict else 8
    if len(value) < least or len(longest) < min(10, least):
        return False
    changes = sum(a.isdigit() != b.isdigit() for a, b in itertools.pairwise(longest))
    cases = sum(a.isupper() != b.isupper() for a, b in itertools.pairwise(longest))
    entropy = -sum(n / len(longest) * math.log2(n / len(longest)) for n in Counter(longest).values())
    return entropy >= 2.5 and (changes >= (3 if strict else 2) or (changes > 0 and cases >= 5 and len(longest) >= 16))
