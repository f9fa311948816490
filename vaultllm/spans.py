"""The time that a question speaks of, found in its words: `вчера`, `last spring`, `15 июня`, `in 2024`, `গত সপ্তাহে`.

Russian, Bengali and English, without a model. What is asked of a vault lies in its past, so a month without a year is the latest
that has begun. Seasons are the northern ones; the six of Bengal go by the calendar of Bangladesh. Pure: knows nothing about a
question's other words, nor about what is done with a span.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import date, timedelta
from typing import NamedTuple

from vaultllm.dates import day, meanings
from vaultllm.text import WORD

EARLIEST = 1990  # a number is read as a year from here to the next one: before it no notes were kept on computers
_REACH = 400  # words of a question that are looked at

# First day and the first day after it, as month and day. Bengali seasons are pairs of months of the calendar of Bangladesh.
_SEASONS = {
    1: ((12, 1), (3, 1)),
    2: ((3, 1), (6, 1)),
    3: ((6, 1), (9, 1)),
    4: ((9, 1), (12, 1)),
    11: ((4, 14), (6, 15)),
    12: ((6, 15), (8, 16)),
    13: ((8, 16), (10, 17)),
    14: ((10, 17), (12, 16)),
    15: ((12, 16), (2, 14)),
    16: ((2, 14), (4, 14)),
}

_DATE = r"(?<![\w.-])(?:\d{4}([-/.])\d{1,2}\1\d{1,2}|\d{4}-\d\d|\d{1,2}\.\d{1,2}\.\d{4})(?=$|[^\w-]|T\d)"
_TOKEN = re.compile(f"{_DATE}|{WORD.pattern}")
_BETWEEN = re.compile(r"[\s,.'’–—-]{0,4}")  # what may stand between the words of one time


class Span(NamedTuple):
    """A stretch of time that some words of a text name."""

    first: date
    """Its first day; `date.min` when it has none (`before June`)."""
    last: date
    """Its last day, itself within; `date.max` when it has none (`since June`)."""
    words: str
    """The words it was read from, as they stand, their preposition with them."""
    start: int
    """Where they begin in the text, in characters."""

    def holds(self, at: str) -> bool:
        """Whether the day of an ISO 8601 time lies in it; False when the time is unknown."""
        when = day(at)
        return when is not None and self.first <= when <= self.last


class _Token(NamedTuple):
    kinds: Mapping[str, int]  # what it may be -> value
    letter: str  # its first
    start: int
    end: int
    apart: bool  # whether something parts it from the word before, so that no time goes on over it
    dash: bool  # whether a dash stands before it
    exact: tuple[date, date] | None  # a date in figures


def _tokens(text: str) -> list[_Token]:
    found: list[_Token] = []
    end = 0
    for match in _TOKEN.finditer(text):
        between = text[end : match.start()]
        apart = not found or _BETWEEN.fullmatch(between) is None
        exact = _figures(match[0])
        kinds = {} if exact else meanings(match[0])
        found.append(
            _Token(kinds, match[0][0], match.start(), match.end(), apart, not apart and any(dash in between for dash in "-–—"), exact)
        )
        end = match.end()
        if len(found) == _REACH:
            break
    return found


def _figures(said: str) -> tuple[date, date] | None:
    """`2025-06-15`, `2025/6/15`, `15.06.2025`, `2025-06`; None for what is no date of the calendar."""
    parts = re.split(r"[-/.]", said)
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        return None
    numbers = [int(part) for part in parts]
    if len(parts[0]) < 4:
        numbers.reverse()
    try:
        return _month(*numbers) if len(numbers) == 2 else (date(*numbers), date(*numbers))
    except ValueError:
        return None


# -- what the words say together; each function returns the days and the place of the next word, or None


_Days = tuple[date, date]
_Read = tuple[date, date, int] | None
_CUES = ("in", "since", "from", "after", "before", "part")
_RELATIVE = ("shift", "lately", "last", "past", "this", "ago")
_LENGTHS = {1: (1.0, 0), 7: (7.0, 3), 30: (30.44, 15), 183: (182.6, 45), 365: (365.25, 183)}  # days; how far `ago` may be off


def find(text: str, today: date) -> Span | None:
    """The time that a text speaks of; None when it names none.

    Of several the first that is told from today (`yesterday`, `last week`) wins, for it can be nothing else; then the first.
    Without a year it is the latest that has begun, with `last` the latest that is over. `Two weeks ago` is met with half
    a unit to either side, days and all calendar dates exactly.
    """
    reader = _Reader(text, today)
    best: Span | None = None
    place = 0
    while place < len(reader.tokens):
        found = reader.span(place)
        if found is None:
            place += 1
            continue
        first, last, after = found
        relative = any(kind in token.kinds for token in reader.tokens[place:after] for kind in _RELATIVE)
        if best is None or relative:
            start, end = reader.tokens[reader.begin(place)].start, reader.tokens[after - 1].end
            best = Span(first, max(first, last), text[start:end], start)  # «вчера» of two languages at once may end before it begins
        if relative:
            break
        place = after
    return best


def read(said: str, today: date) -> _Days | None:
    """The days that a text names when it names nothing else (`2024`, `2024-06`, `15 июня`, `last week`); else None."""
    said = said.strip()
    if len(said) == 4 and said.isdecimal() and int(said):  # whoever names a year here means one
        return date(int(said), 1, 1), date(int(said), 12, 31)
    reader = _Reader(said, today)
    found = reader.span(0, bare=True) if reader.tokens else None
    if found is None or found[2] < len(reader.tokens) or reader.tokens[0].start or reader.tokens[-1].end < len(said):
        return None
    return None if found[0] == date.min or found[1] == date.max else found[:2]


class _Reader:
    """The words of one text, read as times."""

    def __init__(self, text: str, today: date) -> None:
        self.today = today
        self.tokens = _tokens(text)
        self.start = 0  # where the present attempt began

    def get(self, place: int, *kinds: str) -> int | None:
        """The value of a word as one of these kinds; None when it is none of them, or is parted from what was read before."""
        if place >= len(self.tokens) or (place > self.start and self.tokens[place].apart):
            return None
        return next((self.tokens[place].kinds[kind] for kind in kinds if kind in self.tokens[place].kinds), None)

    def skip(self, place: int, *kinds: str) -> int:
        """The place after words of these kinds, at most two."""
        for _ in range(2):
            place += self.get(place, *kinds) is not None
        return place

    def begin(self, place: int) -> int:
        """Where a time begins when its preposition is counted in (`в июне`, `in the last week`)."""
        for _ in range(2):
            if place and not self.tokens[place].apart and any(kind in self.tokens[place - 1].kinds for kind in ("in", "from", "of")):
                place -= 1
        return place

    def cue(self, place: int) -> bool:
        """Whether the word before says that a time follows."""
        if not place or self.tokens[place].apart:
            return False
        return any(kind in self.tokens[place - 1].kinds for kind in _CUES)

    def span(self, place: int, bare: bool = False) -> _Read:
        """A time, a range of times, or an open one."""
        self.start = place
        try:
            return self._open(place) or self._range(place, bare)
        except (ValueError, OverflowError):  # a day that no calendar has
            return None

    def _open(self, place: int) -> _Read:
        """`since June`, `after 2023`, `до июня`; a range may begin with the same words."""
        inner = self.skip(place + 1, "of")
        found = self.date(inner, bare=True) if self.get(place, "since", "after", "before") is not None else None
        if found is None:
            return None
        first, last, after = found
        if self.get(place, "since") is not None:
            both = self._range(inner, bare=True)
            if both is not None and (both[2] > after or (self.get(inner, "digits") and first < last)):
                return both
            return first, date.max, after
        if self.get(place, "after") is not None:
            return last + timedelta(1), date.max, after
        return date.min, first - timedelta(1), after

    def _range(self, place: int, bare: bool = False) -> _Read:
        between = self.get(place, "from") is not None
        begin = self.date(self.skip(place + 1, "of") if between else place, bare or between)
        if begin is None:
            return None
        first, last, after = begin
        behind = self.get(after, "from_behind") is not None
        joined = behind or self.get(after, *(("to", "and") if between else ("to",))) is not None
        end = self.date(after + joined, bare=True) if joined or self._dash(after) else None
        if end is not None:
            if first > end[0]:  # from November to February
                first = first.replace(year=first.year - 1)
            if first <= end[0]:
                return first, end[1], self.skip(end[2], "until_behind")
        if behind:
            return first, date.max, after + 1
        if self.get(after, "until_behind") is not None:
            return date.min, last, after + 1
        if self.get(after, "before_behind") is not None:
            return date.min, first - timedelta(1), after + 1
        if self.get(after, "after_behind") is not None:
            return last + timedelta(1), date.max, after + 1
        return begin

    def _dash(self, place: int) -> bool:
        return place < len(self.tokens) and self.tokens[place].dash

    def date(self, place: int, bare: bool = False) -> _Read:
        """One time. `bare`: words that are something else too (`may`, `зима`, `2024`) are taken for it without a cue."""
        if place >= len(self.tokens) or (place > self.start and self.tokens[place].apart):
            return None
        exact = self.tokens[place].exact
        if exact is not None:
            return *exact, place + 1
        bare = bare or self.cue(place)
        found = (
            self._shift(place)
            or self._ago(place)
            or self._modified(place)
            or self._part(place)
            or self._days(place)
            or self._named(place, bare)
            or self._year(place, bare)
        )
        if found and (part := self.get(found[2], "part_behind")) is not None:
            return *_third(found[0], found[1], part), found[2] + 1
        return found

    def _shift(self, place: int) -> _Read:
        """`yesterday evening`, `недавно`."""
        shift, lately = self.get(place, "shift"), self.get(place, "lately")
        if shift is not None:
            when = self.today + timedelta(shift)
            return when, when, self.skip(place + 1, "dayparts")
        return (self.today - timedelta(lately), self.today, place + 1) if lately else None

    def _count(self, place: int) -> tuple[int, bool, int] | None:
        """`two`, `a couple of`, `несколько`: how many, whether vaguely, and the next place."""
        if self.get(place, "number") == 1 and self.get(place + 1, "number", "few") is not None:
            place += 1  # `a couple`, `a few`
        few, number = self.get(place, "few"), self.get(place, "number")
        if few is None and number is None:
            return None
        return (few or number or 0), few is not None, self.skip(place + 1, "of")

    def _ago(self, place: int) -> _Read:
        """`two weeks ago`, `неделю назад`, `৩ দিন আগে`."""
        number, vague, unit_place = self._count(place) or (1, False, place)
        if self.get(unit_place + 1, "ago") is None or (unit_place == place > 0 and self.tokens[place - 1].letter.isdecimal()):
            return None  # a number before it that was not understood changes what it says
        if self.get(unit_place, "hours") is not None:
            return self.today - timedelta(-(-number // 24)), self.today, unit_place + 2
        unit = self.get(unit_place, "unit")
        if not unit:
            return None
        days, width = _LENGTHS[unit]
        if vague:
            return self.today - timedelta(round(5 * days)), self.today - timedelta(round(2 * days)), unit_place + 2
        middle = self.today - timedelta(round(number * days))
        return middle - timedelta(width), middle + timedelta(width), unit_place + 2

    def _modified(self, place: int) -> _Read:
        """`last week`, `этой весной`, `последние три дня`, `গত সোমবার`."""
        over = self.get(place, "last", "past") is not None
        if not over and self.get(place, "this") is None:
            return None
        if over and (counted := self._count(place + 1)) and (unit := self.get(counted[2], "unit")):
            days = round((counted[0] + 2 * counted[1]) * _LENGTHS[unit][0])
            return self.today - timedelta(days), self.today, counted[2] + 1
        if self.get(place + 1, "dayparts") is not None:  # the last night began yesterday
            return self.today - timedelta(over), self.today, place + 2
        unit = self.get(place + 1, "unit")
        if unit is not None:
            rolling = over and self.get(place, "last") is None and unit
            days_ = (self.today - timedelta(round(_LENGTHS[unit][0])), self.today) if rolling else _calendar(self.today, unit, over)
            return *days_, place + 2
        if not over and self.get(place + 1, "month?") is not None and self.tokens[place + 1].letter.islower():
            return None  # `this may be`
        return self._named(place + 1, bare=True, over=over)

    def _part(self, place: int) -> _Read:
        """`early June`, `в конце прошлого года`."""
        part = self.get(place, "part")
        found = None if part is None else self.date(self.skip(place + 1, "of", "in"), bare=True)
        if part is None or found is None or (found[1] - found[0]).days < 6:
            return None
        return *_third(found[0], found[1], part), found[2]

    def _days(self, place: int) -> _Read:
        """A day or some days of a month: `15 июня 2025`, `June 15th`, `10-15 июня`, `১৫ই জুন`."""
        month = self.get(place, "month", "month?")
        month_first = month is not None and not "Ѐ" <= self.tokens[place].letter <= "ӿ"  # Russian never says `июня 15`
        first = self.get(place + month_first, "digits")
        if first is None:
            return None
        after = self.skip(place + month_first + 1, "daymark")
        last = first
        joined = self.get(after, "to") is not None
        if (joined or self._dash(after)) and (second := self.get(after + joined, "digits")) is not None:
            last, after = second, self.skip(after + joined + 1, "daymark")
        if month_first:
            if self.get(after, "unit") is not None:  # `in June 5 days …`
                return None
        else:
            after = self.skip(after, "of")
            month = self.get(after, "month", "month?")
            after += 1
        if month is None or not 1 <= first <= last <= 31:
            return None
        after = self.skip(after, "monthmark")
        year = self._year_after(after)
        if year is not None:
            return date(year[0], month, first), date(year[0], month, last), year[1]
        return *_latest(self.today, lambda year: (date(year, month, first), date(year, month, last))), after

    def _named(self, place: int, bare: bool, over: bool = False) -> _Read:
        """A month, a season or a weekday; `over`: one that has ended."""
        weekday = self.get(place, "weekday", *(("weekday?",) if bare else ()))
        if weekday is not None:
            when = self.today - timedelta((self.today.weekday() - weekday - 1) % 7 + 1)
            return when, when, place + 1
        month, season = self.get(place, "month", "month?"), self.get(place, "season", "season?")
        if month is None and season is None:
            return None
        after = self.skip(place + 1, "monthmark")
        year = self._year_after(after)
        if year is None and not bare and self.get(place, "month", "season") is None:
            return None
        if month is not None:
            found = _month(year[0], month) if year else _latest(self.today, lambda year: _month(year, month), over)
        elif year:
            found = max((_season(year[0] - 1, season or 0), _season(year[0], season or 0)), key=lambda days: _within(days, year[0]))
        else:
            found = _latest(self.today, lambda year: _season(year, season or 0), over)
        return *found, year[1] if year else after

    def _year_after(self, place: int) -> tuple[int, int] | None:
        """The year that a month or a day is followed by, and the next place: `2025 года`, `of last year`."""
        place = self.skip(place, "of")
        year = self.get(place, "year")
        if year is not None:
            return (year, self.skip(place + 1, "yearmark")) if EARLIEST <= year <= self.today.year + 1 else None
        over = self.get(place, "last") is not None
        if (over or self.get(place, "this") is not None) and self.get(place + 1, "unit") == 365:
            return self.today.year - over, place + 2
        return None

    def _year(self, place: int, bare: bool) -> _Read:
        """`в 2024`, `2024 год`, `২০২৪ সালে`."""
        year = self.get(place, "year")
        marked = self.get(place + 1, "yearmark") is not None
        if year is None or not (bare or marked) or not EARLIEST <= year <= self.today.year + 1:
            return None
        return date(year, 1, 1), date(year, 12, 31), place + 1 + marked


# -- the calendar


def _month(year: int, month: int) -> _Days:
    first = date(year, month, 1)
    return first, date(year + month // 12, month % 12 + 1, 1) - timedelta(1)


def _season(year: int, season: int) -> _Days:
    """The season that begins in a year."""
    begin, end = _SEASONS[season]
    return date(year, *begin), date(year + (end < begin), *end) - timedelta(1)


def _within(days: _Days, year: int) -> int:
    """How many of these days are of a year."""
    return (min(days[1], date(year, 12, 31)) - max(days[0], date(year, 1, 1))).days


def _latest(today: date, made: Callable[[int], _Days], over: bool = False) -> _Days:
    """The latest such days that have begun, or, if `over`, ended. Raises ValueError when no year has them."""
    for year in range(today.year, max(0, today.year - 9), -1):  # eight years may lie between two 29ths of February
        try:
            days = made(year)
        except ValueError:
            continue
        if (days[1] < today) if over else (days[0] <= today):
            return days
    raise ValueError("no year has such a day")


def _calendar(today: date, unit: int, over: bool) -> _Days:
    """This day, week, month, half-year, year or weekend, or the one before it."""
    if unit == 0:  # Saturday and Sunday; a weekend that is going on is not the last one
        saturday = today - timedelta((today.weekday() - 5) % 7)
        if over and saturday + timedelta(1) >= today:
            saturday -= timedelta(7)
        return saturday, saturday + timedelta(1)
    if unit == 1:
        return today - timedelta(over), today - timedelta(over)
    if unit == 7:
        monday = today - timedelta(today.weekday() + 7 * over)
        return monday, monday + timedelta(6)
    if unit == 30:
        first, last = _month(today.year, today.month)
        return _month((first - timedelta(1)).year, (first - timedelta(1)).month) if over else (first, last)
    if unit == 183:
        return today - timedelta(183), today
    return date(today.year - over, 1, 1), date(today.year - over, 12, 31)


def _third(first: date, last: date, part: int) -> _Days:
    """The beginning, the middle or the end of some days."""
    third = ((last - first).days + 1) / 3
    return first + timedelta(round(part * third)), first + timedelta(round((part + 1) * third) - 1)
