"""Days as people write them: a date in words, and what a word may say of time. Russian, Bengali and English.

Pure tables and their look-up. Knows nothing about what words say together (`spans.py`), nor about scenes.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from datetime import date

from vaultllm.text import fold

_MONTHS = {
    "ru": "января февраля марта апреля мая июня июля августа сентября октября ноября декабря",
    "bn": "জানুয়ারি ফেব্রুয়ারি মার্চ এপ্রিল মে জুন জুলাই আগস্ট সেপ্টেম্বর অক্টোবর নভেম্বর ডিসেম্বর",
    "en": "January February March April May June July August September October November December",
}
_WEEKDAYS = {
    "ru": "понедельник вторник среда четверг пятница суббота воскресенье",
    "bn": "সোমবার মঙ্গলবার বুধবার বৃহস্পতিবার শুক্রবার শনিবার রবিবার",
    "en": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday",
}
_BENGALI_DIGITS = str.maketrans("0123456789", "০১২৩৪৫৬৭৮৯")

# What a word may be: kind, value, words; `стем+а/ы` is the stem with each ending, `-` none. Under kinds with a `?` stand words that
# are something else too (`may`, `зима`), which need a word of time beside them.
_TABLE = """
month 1: январ+ь/я/ю/ем/е january জানুয়ারি জানুয়ারী জানুয়ারির জানুয়ারিতে জানুয়ারীতে
month 2: феврал+ь/я/ю/ем/е february ফেব্রুয়ারি ফেব্রুয়ারী ফেব্রুয়ারির ফেব্রুয়ারিতে ফেব্রুয়ারীতে
month 3: март+-/у/ом/е মার্চ+-/ে/ের
month? 3: марта march mar
month 4: апрел+ь/я/ю/ем/е april এপ্রিল+-/ে/ের
month 5: ма+й/я/ю/ем/е মে মের
month? 5: may
month 6: июн+ь/я/ю/ем/е june জুন+-/ে/ের/েই
month 7: июл+ь/я/ю/ем/е july জুলাই+-/র/এর/তে/এ/য়ে/য়ের
month 8: август+-/а/у/ом/е august আগস্ট+-/ে/ের অগাস্ট+-/ে/ের আগষ্ট+-/ে/ের
month 9: сентябр+ь/я/ю/ем/е september সেপ্টেম্বর+-/ে/ের
month 10: октябр+ь/я/ю/ем/е october অক্টোবর+-/ে/ের
month 11: ноябр+ь/я/ю/ем/е november নভেম্বর+-/ে/ের
month 12: декабр+ь/я/ю/ем/е december ডিসেম্বর+-/ে/ের
month? 1: jan
month? 2: feb
month? 4: apr апр
month? 6: jun
month? 7: jul
month? 8: aug авг
month? 9: sep sept сент
month? 10: oct окт
month? 11: nov нояб
month? 12: dec дек
weekday 0: সোমবার+-/ে/ের
weekday 1: মঙ্গলবার+-/ে/ের
weekday 2: বুধবার+-/ে/ের
weekday 3: বৃহস্পতিবার+-/ে/ের
weekday 4: শুক্রবার+-/ে/ের
weekday 5: শনিবার+-/ে/ের
weekday 6: রবিবার+-/ে/ের
weekday? 0: понедельник+-/а/у/ом/е monday
weekday? 1: вторник+-/а/у/ом/е tuesday
weekday? 2: сред+а/ы/е/у/ой wednesday
weekday? 3: четверг+-/а/у/ом/е thursday
weekday? 4: пятниц+а/ы/е/у/ей friday
weekday? 5: суббот+а/ы/е/у/ой saturday
weekday? 6: воскресень+е/я/ю/ем sunday
season 1: зимой
season 2: весной
season 3: летом
season 4: осенью
season 11: গ্রীষ্মে গ্রীষ্মকালে গরমকালে
season 12: বর্ষায় বর্ষাকালে
season 13: শরতে শরৎকালে
season 14: হেমন্তে হেমন্তকালে
season 15: শীতে শীতকালে
season 16: বসন্তে বসন্তকালে
season? 1: зим+а/ы/е/у winter
season? 2: весн+а/ы/е/у spring
season? 3: лет+о/а/у/е summer
season? 4: осень осени autumn fall
season? 11: গ্রীষ্ম গ্রীষ্মের গ্রীষ্মকাল
season? 12: বর্ষা বর্ষার বর্ষাকাল
season? 13: শরৎ শরতের শরৎকাল
season? 14: হেমন্ত হেমন্তের
season? 15: শীত শীতের শীতকাল
season? 16: বসন্ত বসন্তের বসন্তকাল
unit 0: выходные выходных weekend
unit 1: день дня дней день days day দিন+-/ে/ের
unit 7: недел+я/и/ю/е/ь/ей/ями/ях week weeks সপ্তাহ+-/ে/ের হপ্তা
unit 30: месяц+-/а/ев/е/ем/ы month months মাস+-/ে/ের
unit 183: полгода полугода
unit 365: год+-/а/у/ом/е/ы лет year years বছর+-/ে/ের
hours 0: час+-/а/ов hour hours минут+-/у/ы minute minutes ঘণ্টা মিনিট
shift 0: сегодня сегодняшн+ий/ие/яя/ее/ем/ей/его/их/юю today tonight আজ আজকে আজকের
shift -1: вчера вчерашн+ий/ие/яя/ее/ем/ей/его/их/юю yesterday গতকাল গতকালের
shift -2: позавчера позавчерашн+ий/ие/яя/ее/ем/ей/его/их/юю গতপরশু
lately 30: недавно recently lately সম্প্রতি ইদানীং
number 1: один одну одного a an one এক একটি
number 2: два две двух пару пара two couple দুই দু দুটি
number 3: три трех three তিন
number 4: четыре четырех four চার
number 5: пять пяти five পাঁচ
number 6: шесть шести six ছয়
number 7: семь семи seven সাত
number 8: восемь восьми eight আট
number 9: девять девяти nine নয়
number 10: десять десяти ten দশ
few 3: несколько нескольких few several কয়েক
last 0: прошл+ый/ая/ое/ые/ого/ой/ом/ую/ых/ым предыдущий предыдущем last previous গত বিগত
past 0: последн+ий/яя/ее/ие/его/ей/ем/юю/их past
this 0: эт+от/а/о/и/ой/ом/у/ого/их/им текущем this current এই চলতি
ago 0: назад ago আগে পূর্বে
in 0: в во за на in on during for at over
of 0: of the
part 0: начале начала early beginning start
part 1: середине середины mid middle
part 2: конце конца late end
part_behind 0: শুরুতে শুরুর প্রথমে
part_behind 1: মাঝামাঝি মাঝে
part_behind 2: শেষে শেষের
from 0: from between между от
since 0: с со начиная since
after 0: после after
before 0: до before until till
to 0: по до to till until through
and 0: and и এবং
from_behind 0: থেকে
until_behind 0: পর্যন্ত
before_behind 0: আগে পূর্বে
after_behind 0: পর পরে
yearmark 0: год+-/а/у/е г সাল+-/ে/ের খ্রিস্টাব্দ
monthmark 0: মাস+-/ে/ের
daymark 0: го е ое ого й তারিখ তারিখে
dayparts 0: вечером утром днем ночью morning afternoon evening night সকালে বিকেলে সন্ধ্যায় রাতে
"""
_FIGURES = re.compile(r"(\d{1,4})(?:st|nd|rd|th|ই|শে|লা|রা|ঠা|го|е|й)?")


def day(at: str) -> date | None:
    """The day of an ISO 8601 date or time, as written (its own zone); None when it has none."""
    try:
        return date.fromisoformat(at[:10]) if len(at) >= 10 else None
    except ValueError:
        return None


def words(iso: str, language: str) -> str:
    """A date as people write it (`15 июня 2025 воскресенье`, `June 15 2025 Sunday`), to be indexed; "" for what is no date.

    Unknown languages get English.
    """
    return _words(iso[:10], language if language in _MONTHS else "en")


@functools.lru_cache(maxsize=20_000)
def _words(iso: str, language: str) -> str:
    when = day(iso)
    if when is None:
        return ""
    month = _MONTHS[language].split()[when.month - 1]
    weekday = _WEEKDAYS[language].split()[when.weekday()]
    first, second = (month, str(when.day)) if language == "en" else (str(when.day), month)
    said = f"{first} {second} {when.year} {weekday}"
    return said.translate(_BENGALI_DIGITS) if language == "bn" else said


def meanings(word: str) -> Mapping[str, int]:
    """What a word may say of time, kind -> value (`june` -> {"month": 6}); {} for most words.

    Numbers of up to three figures, of any script, are `number` and `digits`; those of four are `year`.
    """
    if len(word) > 24:
        return {}
    number = _FIGURES.fullmatch(word)
    if number:
        value = int(number[1])
        return {"number": value, "digits": value} if len(number[1]) < 4 else {"year": value}
    return _lexicon().get(fold(word), {})


@functools.cache
def _lexicon() -> Mapping[str, Mapping[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for line in fold(_TABLE).strip().split("\n"):
        head, _, said = line.partition(": ")
        kind, _, value = head.partition(" ")
        for entry in said.split():
            stem, plus, endings = entry.partition("+")
            for ending in endings.split("/") if plus else ("",):
                found.setdefault(stem + ending.replace("-", ""), {})[kind] = int(value)
    return found
