"""Times as chat programs write them, in any locale, and as ISO 8601.

Knows digits of every script, bidi marks, day-period words (`PM`, `রাত`, `오후`), the orders of day, month and year,
and how two spellings of one moment (local and UTC) give the zone. Does not know what a message is. Nothing is
guessed: a date whose day and month cannot be told apart stays unknown, and the caller keeps the raw string.
"""

from __future__ import annotations

import datetime as dt
import functools
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vaultllm.text import nfc

_DATE = re.compile(r"(\d{1,4})\s*([./-])\s*(\d{1,2})\s*[./-]\s*(\d{1,4})\.?\s*(?:at\b|T(?=\d)|,)?\s*(.*)", re.DOTALL)
_TIME = re.compile(r"(\d{1,2})[:.](\d{2})(?:[:.](\d{2})(?:[.,]\d+)?)?")
_ISO = re.compile(r"\d{4}-\d{2}-\d{2}[T ]\d{2}:\d{2}")
BIDI = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")
_SPACES = re.compile("[\u00a0\u2000-\u200a\u202f\u3000]")

# A day-period word names the hours [start, start + 12): রাত (night) runs from 16 to 3, so রাত 9 is 21 and রাত 2 is 2.
_PERIODS = {
    nfc(word).casefold(): start
    for start, names in {
        0: "am sa ekuseni sokallim 오전 ጥዋት πμ ص ཞོགས་ཀས ভোর সকাল सुबह बिहान बिहानको पहाटे सकाळी सकाळीं સવાર ਸਵੇਰ ఉదయం ಬೆಳಿಗ್ಗೆ രാവിലെ පෙව 上午 午前",
        5: "দুপুর",
        10: "दोपहर दिउँसो दिउँसोको બપોર ਦੁਪਹਿਰ మధ్యాహ్నం ಮಧ್ಯಾಹ್ನ ཉིན་གུང emini",
        12: "pm 오후 ከሰዓት μμ م ch বিকাল সন্ধ্যা शाम साँझ साँझको दुपारी दनपारां donparam सायंकाळी सांजे sanje સાંજ ਸ਼ਾਮ సాయంత్రం ಸಂಜೆ "
        "ഉച്ചകഴിഞ്ഞ് വൈകുന്നേരം පව དགོང་དག entsambama 下午 午後",
        16: "রাত रात राति रातिको राती rati रात्री રાત ਰਾਤ రాత్రి ರಾತ್ರಿ രാത്രി མཚན་མོ ebusuku",
    }.items()
    for word in names.split()
}
_NEUTRAL = {nfc(word) for word in ("সময়", "बजे", "वाजता", "वाजतां", "vazta", "વાગ્યે", "ਵਜੇ", "നു", "auer")}  # "o'clock"
_ENGLISH = ("am", "pm")

_Group = tuple[str, bool]  # separator, English AM/PM: what one locale writes in one way


@dataclass(frozen=True, slots=True)
class Clock:
    """How the times of one file are to be read."""

    orders: Mapping[_Group, str]
    """Spelling -> `dmy` or `mdy` where the file itself proves it; empty string where it contradicts itself."""
    zone: dt.tzinfo | None
    """Zone of its local times, None when unknown."""


@dataclass(frozen=True, slots=True)
class _Parts:
    """A written time, cut but not yet ordered."""

    numbers: tuple[int, int, int]
    year_first: bool
    group: _Group
    foreign: bool  # native digits or a day-period word that is not English
    hour: int
    minute: int
    second: int
    exact: bool  # seconds were written


@functools.lru_cache(maxsize=1024)  # a time is looked at for its order, its precision and its value
def _split(raw: str) -> _Parts | None:
    """The parts of a written time; None when it is not one, or when a word in it is unknown."""
    text, foreign = raw[:200].strip(), False
    if not text.isascii():
        text = _SPACES.sub(" ", BIDI.sub("", nfc(raw[:200]))).strip()
        foreign = any(char.isdecimal() and not char.isascii() for char in text)
        text = "".join(str(unicodedata.decimal(char)) if char.isdecimal() else char for char in text)
    date = _DATE.fullmatch(text)
    time = _TIME.search(date[5]) if date else None
    if date is None or time is None:
        return None
    if (len(date[1]) == 4) == (len(date[4]) == 4) or max(len(date[1]), len(date[4])) != 4:
        return None
    left = (date[5][: time.start()] + " " + date[5][time.end() :]).casefold()
    tokens = (token.strip(".-,;") for token in left.split())
    word = "".join(token.replace(".", "") for token in tokens if token and token not in _NEUTRAL)
    hour = int(time[1])
    if word:
        start = _PERIODS.get(word)
        if start is None:
            return None
        foreign = foreign or word not in _ENGLISH
        if hour <= 12:
            hour = (start + (hour - start) % 12) % 24
    numbers = (int(date[1]), int(date[3]), int(date[4]))
    group = (date[2], word in _ENGLISH)
    return _Parts(numbers, len(date[1]) == 4, group, foreign, hour, int(time[2]), int(time[3] or 0), time[3] is not None)


def _moment(parts: _Parts, order: str) -> dt.datetime | None:
    """The parts in an order, as local time; None when there is no such day, or when it is the epoch (unknown)."""
    a, b, c = parts.numbers
    year, month, day = {"ymd": (a, b, c), "dmy": (c, b, a), "mdy": (c, a, b)}[order]
    if year <= 1970:  # the importer writes a missing time as the epoch, which is 1969 west of Greenwich
        return None
    try:
        return dt.datetime(year, month, day, parts.hour, parts.minute, parts.second)
    except ValueError:
        return None


def _certain(parts: _Parts) -> str:
    """The order that the numbers alone prove; empty when they don't."""
    if parts.year_first:
        return "ymd"
    a, b, _ = parts.numbers
    return "dmy" if a > 12 >= b else "mdy" if b > 12 >= a else ""


def _habit(parts: _Parts) -> str:
    """The order that follows from the spelling: of all locales only English writes the month first, with `/` and AM/PM."""
    if parts.group[0] != "/" or parts.foreign:
        return "dmy"
    return "mdy" if parts.group[1] else ""


def make_clock(raws: Iterable[str], created: str = "", create_time: str = "", timezone: str = "") -> Clock:
    """How the times of one file read.

    `raws` are its times as written; `created` (local) and `create_time` (UTC, ISO) are one moment in two spellings:
    they settle the order and give the zone, to a quarter of an hour. Otherwise the zone is `timezone` (IANA name).
    """
    proofs: dict[_Group, set[str]] = {}
    for raw in raws:
        parts = _split(raw)
        if parts is not None and not parts.year_first and (order := _certain(parts)):
            proofs.setdefault(parts.group, set()).add(order)
    zone = named = find_zone(timezone)
    here, utc = _split(created), _aware(create_time)
    if here is not None and utc is not None:
        for order in [_certain(here)] if _certain(here) else _candidates(here, proofs):
            local = _moment(here, order)
            offset = None if local is None else _offset(local, utc)
            if local is None or offset is None:
                continue
            if order != "ymd" and here.group not in proofs:
                proofs[here.group] = {order}
            # A named zone that agrees knows summer time too, which one offset does not.
            agrees = named is not None and local.replace(tzinfo=named).utcoffset() == offset
            zone = named if agrees else dt.timezone(offset)
            break
    return Clock({group: orders.pop() if len(orders) == 1 else "" for group, orders in proofs.items()}, zone)


def _candidates(parts: _Parts, proofs: Mapping[_Group, set[str]]) -> list[str]:
    """Orders to try against the UTC spelling, the usual one first: day and month within 14 hours of each other can't both fit."""
    known = sorted(proofs.get(parts.group, ()))
    return known or ["dmy", "mdy"]


def _offset(local: dt.datetime, utc: dt.datetime) -> dt.timedelta | None:
    """Local minus UTC, rounded to 15 minutes; None when no zone on Earth is that far away."""
    quarters = round((local - utc.astimezone(dt.UTC).replace(tzinfo=None)) / dt.timedelta(minutes=15))
    return dt.timedelta(minutes=15 * quarters) if -12 * 4 <= quarters <= 14 * 4 else None


def read_time(raw: str, clock: Clock) -> str:
    """A written time as ISO 8601, with offset when the zone is known; empty when it cannot be known."""
    if not raw:
        return ""
    if (exact := _aware(raw)) is not None:
        return exact.isoformat(timespec="seconds") if exact.year > 1970 else ""
    parts = _split(raw)
    if parts is None:
        return ""
    order = _certain(parts)
    if not order:
        proved = clock.orders.get(parts.group)
        order = _habit(parts) if proved is None else proved
    local = _moment(parts, order) if order else None
    return "" if local is None else local.replace(tzinfo=clock.zone).isoformat(timespec="seconds")


def is_unknown(raw: str) -> bool:
    """Whether the writer itself did not know the time: nothing, or the epoch."""
    if not raw.strip():
        return True
    exact, parts = _aware(raw), _split(raw)
    year = exact.year if exact else max(parts.numbers) if parts else 9999
    return year <= 1970


def precision(raw: str) -> str:
    """`second` or `minute`, as a written time names it; empty when it is none. Equal minutes may be far apart."""
    parts = _split(raw)
    if _aware(raw) is not None:
        return "second"
    return "" if parts is None else "second" if parts.exact else "minute"


def cut_time(raw: str) -> tuple[str, str]:
    """A written time and the words behind it, where a formatter joined two lines; nothing is cut when no time begins it."""
    if not raw or _aware(raw) is not None or _split(raw) is not None:
        return raw, ""
    ends = [found.end() for _, found in zip(range(8), re.finditer(r"\S+", raw[:200]), strict=False)]
    end = next((end for end in reversed(ends) if _split(raw[:end]) is not None), len(raw))
    return raw[:end], raw[end:].strip()


def find_zone(name: str) -> dt.tzinfo | None:
    """The zone of an IANA name; None when the name is empty or unknown on this machine."""
    if not name:
        return None
    import zoneinfo

    try:
        return zoneinfo.ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def _aware(text: str) -> dt.datetime | None:
    """An ISO time that names its zone, in years that can be reckoned with."""
    if not _ISO.match(text.strip()):
        return None
    try:
        moment = dt.datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return moment if moment.tzinfo is not None and 1900 < moment.year < 9000 else None


def from_iso(value: object) -> str:
    """An ISO time with zone, as exports hold it, to the second; empty when it is none."""
    moment = _aware(value) if isinstance(value, str) else None
    return "" if moment is None or moment.year <= 1970 else moment.isoformat(timespec="seconds")


def from_epoch(value: object) -> str:
    """Seconds since 1970 as ISO 8601 in UTC; empty when absent, zero or not a time."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 86400:
        return ""
    try:
        return dt.datetime.fromtimestamp(value, dt.UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return ""
