"""Numbers that prove themselves by form or checksum: phones, payment cards, IBAN, SNILS; and the checksums of others.

Digits are ASCII here: `ascii_digits` makes them so, without moving anything. Patterns are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from vaultllm.redact.spans import SEP, Span

_BEGIN = r"(?<![\w⟩+])(?<!\d[.,:-])"
_STOP = r"(?![\w⟨]|[.,-]\d)"
RUN = re.compile(r"[0-9][0-9 \u00a0().\u2010-\u2013-]{6,}+")
"""What every number that is found here holds, and where the others look: most texts have few such places."""
_PHONES = re.compile(
    "|".join(
        (
            # With a plus: as many digits as the country's numbers have, grouped in any way.
            rf"(?<![\w⟩+])\+(?:[17](?:{SEP}\d){{10}}|(?:880|91)(?:{SEP}\d){{10}}|(?![17]|880|91)[2-9](?:{SEP}\d){{9,13}})(?![\w⟨])",
            # Russia without it: 8 916 123-45-67, 7 (916) 1234567, 8 (4822) 12-34-56.
            rf"{_BEGIN}(?:8[ \u00a0.-]?\(?[3489]\d\d\)?|7[ -]?\(?9\d\d\)?)[ \u00a0.-]{{0,2}}\d{{3}}[ \u00a0.-]?\d\d[ \u00a0.-]?\d\d{_STOP}",
            rf"{_BEGIN}8[ -]?\(\d{{4,5}}\)[ -]?\d{{1,3}}[ -]?\d\d[ -]?\d\d{_STOP}",
            # Bangladesh: 01711-123456, 0171 123 4567; India: 98765 43210; North America: (555) 123-4567, 555-123-4567.
            rf"{_BEGIN}(?:880[ -]?1|01)[3-9]\d(?:\d[ -]?\d{{3}}[ -]?\d{{3}}|[ -]\d{{3}}[ -]?\d{{4}}|[ -]\d{{4}}[ -]?\d{{3}}){_STOP}",
            rf"{_BEGIN}[6-9]\d{{4}}[ -]\d{{5}}{_STOP}(?! \d)",
            rf"{_BEGIN}(?:\(\d{{3}}\)[ ]?|\d{{3}}-)\d{{3}}-\d{{4}}{_STOP}",
        )
    ),
    re.ASCII,
)
_CARD = re.compile(
    rf"{_BEGIN}(?:\d{{4}}([ \u00a0-]?)\d{{4}}\1\d{{4}}\1\d{{4}}(?:\1\d{{1,3}})?"
    rf"|3[47]\d\d([ -]?)\d{{6}}\2\d{{5}}|3[068]\d\d([ -]?)\d{{6}}\3\d{{4}}){_STOP}",
    re.ASCII,
)
_ISSUER = re.compile(r"(?:4\d|5[0-8]|6\d|2[2-7]|35|8[12])\d{14,17}|3[47]\d{13}|3[068]\d{12}")
_SNILS = re.compile(rf"{_BEGIN}\d{{3}}-\d{{3}}-\d{{3}}[ -]\d\d{_STOP}", re.ASCII)
# The look behind comes after the first letter: `re` is fast in finding one letter of a class, and slow in looking behind each.
_IBAN = re.compile(r"([A-Z](?<![A-Za-z0-9_⟩][A-Z])[A-Z])[0-9][0-9](?:[ ]?[A-Z0-9]){11,30}")
_IBAN_LENGTHS = dict(
    re.findall(
        r"([A-Z]{2})(\d\d)",
        "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BR29BY28CH21CR22CY28CZ24DE22DK18DO28EE20EG29ES24FI18FO18FR27GB22GE22GI23GL18GR27GT28"
        "HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21MC27MD24ME22MK19MR27MT31MU30NL18NO15PK24PL28PS29PT25QA29"
        "RO24RS22RU33SA24SC31SE24SI19SK24SM27ST25SV28TL23TN24TR26UA29VA22VG24XK20",
    )
)


_TO_ASCII = {zero + value: str(value) for zero in (0x09E6, 0x0966) for value in range(10)}
_INDIC_DIGITS = tuple(map(chr, _TO_ASCII))


def ascii_digits(text: str) -> str:
    """The text with Bengali and Devanagari digits as ASCII ones, each at its place."""
    return text.translate(_TO_ASCII) if not text.isascii() and any(digit in text for digit in _INDIC_DIGITS) else text


def numerals(text: str) -> str:
    """The ASCII digits of a text."""
    return "".join(letter for letter in text if "0" <= letter <= "9")


def _luhn(digits: str) -> bool:
    """ISO/IEC 7812-1: every second digit from the right doubled, the digit sum a multiple of ten."""
    doubled = sum(sum(divmod(2 * int(digit), 10)) for digit in digits[-2::-2])
    return (doubled + sum(map(int, digits[::-2]))) % 10 == 0


def is_verhoeff(digits: str) -> bool:
    """J. Verhoeff, Error Detecting Decimal Codes (1969): the check that Aadhaar numbers end with, over the dihedral group D5."""
    check = 0
    for place, digit in enumerate(reversed(digits)):
        value = int(digit)
        for _ in range(place % 8):
            value = (1, 5, 7, 6, 2, 8, 3, 0, 9, 4)[value]
        check = _d5(check, value)
    return check == 0


def _d5(a: int, b: int) -> int:
    turned = b % 5 if a < 5 else -b % 5
    return (a + turned) % 5 + 5 * ((a < 5) != (b < 5))


def _mod97(code: str) -> bool:
    """ISO 13616: the first four characters moved to the end, letters as 10-35, remainder 1."""
    return int("".join(str(int(letter, 36)) for letter in code[4:] + code[:4])) % 97 == 1


def is_snils(digits: str) -> bool:
    """The number of Russian pension insurance: nine digits, then their weighted sum modulo 101."""
    total = sum(int(digit) * (9 - place) for place, digit in enumerate(digits[:9])) % 101
    return len(digits) == 11 and total % 100 == int(digits[9:])


def is_inn(digits: str) -> bool:
    """The number of a Russian taxpayer: 10 digits of an organisation, 12 of a person, the last one or two of them checks."""

    def check(weights: str, upto: int) -> bool:
        ten = [10 if weight == "A" else int(weight) for weight in weights]
        return sum(int(digit) * weight for digit, weight in zip(digits, ten, strict=False)) % 11 % 10 == int(digits[upto])

    if len(digits) == 10:
        return check("24A359468", 9)
    return len(digits) == 12 and check("724A359468", 10) and check("3724A359468", 11)


def is_phone(found: str) -> bool:
    """Whether a number of a phone's form is no round sum of money and no filler."""
    digits = numerals(found)
    grouped = re.fullmatch(r"\+\d{1,3}(?:[ \u00a0]\d{3})+", found) is not None and digits.endswith("000")
    return not grouped and len(set(digits)) > 2


def _in_url(text: str, start: int) -> bool:
    """Whether a place lies within an address of the web, where numbers are ids (the addresses of chats by number are not)."""
    before = text[max(0, start - 300) : start]
    word = re.split(r"[\s(<\"']", before)[-1]
    return "://" in word and not re.search(r"wa\.me/|whatsapp|tel:|t\.me/\+", word)


def numbers(text: str) -> Iterator[Span]:
    """Numbers whose form or checksum says what they are. Digits are ASCII."""
    for run in RUN.finditer(text):
        # A plus or a bracket may stand before the run, and what follows it decides whether the number ends there.
        area = (max(0, run.start() - 2), run.end() + 2)
        for match in _CARD.finditer(text, *area):
            digits = numerals(match[0])
            fits = _luhn(digits) or (len(digits) > 16 and _luhn(digits[:16]))
            if fits and _ISSUER.fullmatch(digits) and not _in_url(text, match.start()):
                yield Span(*match.span(), "card")
        for match in _PHONES.finditer(text, *area):
            if is_phone(match[0]) and not _in_url(text, match.start()):
                yield Span(*match.span(), "phone")
        for match in _SNILS.finditer(text, *area):
            if is_snils(numerals(match[0])):
                yield Span(*match.span(), "snils")
    for match in _IBAN.finditer(text):
        code = match[0].replace(" ", "")[: int(_IBAN_LENGTHS.get(match[1], "0"))]
        if len(code) == int(_IBAN_LENGTHS.get(match[1], "-1")) and _mod97(code):
            letters = 0
            for end, letter in enumerate(match[0], match.start() + 1):
                letters += letter != " "
                if letters == len(code):
                    yield Span(match.start(), end, "iban")
                    break
