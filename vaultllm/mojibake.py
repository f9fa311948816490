"""Mojibake: UTF-8 that some program once read in an 8-bit encoding and saved again -> the letters that were meant.

A line is taken back when *all* that is not ASCII in it is UTF-8 under one encoding, the result is plausible text, and
there is too much of it for chance; a few such lines make the encoding known, and then shorter ones follow. Clean text
costs one regular expression. Where a note is mostly clean, code, and texts about encodings, are left as they are.
Knows nothing about Markdown but its code marks; does not know the encodings of Central Europe, Greece, or the Mac's
Cyrillic, nor what was lost when a program wrote `?` for every letter.
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import product
from typing import NamedTuple

from vaultllm.schema import Problem

CODECS = {
    "latin-1": "Latin-1",
    "cp1252": "Windows-1252",
    "mac-roman": "Mac Roman",
    "cp1251": "Windows-1251",
    "cp866": "CP866 (DOS)",
    "koi8-r": "KOI8-R",
}
"""The encodings that are taken back, and their names for people."""
SURE = 4  # the weight at which chance is ruled out: four letters, two of three bytes, one mark of punctuation or an emoji
_DEPTH = 3  # how often a text may have been broken
_ASKED, _LONG = 200, 2_000  # ftfy is slow: so many lines are shown to it, and none longer than that
_LOST = {"cp1252": b" ", "latin-1": b" ", "cp1251": b" ?"}  # bytes that stand where NBSP (A0), and 98 of cp1251, were lost


def _characters(codec: str) -> dict[int, int]:
    """Code point -> byte above 7F, also of the bytes that an encoding leaves undefined (browsers keep them as controls)."""
    table = {ord(bytes([byte]).decode(codec, "ignore") or chr(byte)): byte for byte in range(0x80, 0x100)}
    extra = {"mac-roman": {0xA4: 0xDB, 0x2126: 0xBD}, "cp1251": {0xFFFD: 0x98}}  # of older tables; what decoders put for nothing
    return extra.get(codec, {}) | table


_TABLES = {codec: dict.fromkeys(range(0x80, 0x100), 0xFFFF) | _characters(codec) for codec in CODECS}


def _class(codec: str, first: int, last: int, without: str = "") -> str:
    """A regular expression's set of what bytes are under an encoding."""
    return "".join(re.escape(chr(char)) for char, byte in _characters(codec).items() if first <= byte <= last and chr(char) not in without)


def _hot() -> re.Pattern[str]:
    """Where broken text may be. It starts from what follows a lead byte and is rare in clean text, and only then looks back."""
    west, mac, koi = (_class(codec, 0x80, 0xBF) for codec in ("cp1252", "mac-roman", "koi8-r"))
    box = _class("cp866", 0xC2, 0xDF)
    mac2, mac3 = _class("mac-roman", 0xC2, 0xDF), _class("mac-roman", 0xE0, 0xEF)
    slav = _class("cp1251", 0x80, 0xBF, "ёЁ\xa0«»—–…“”„‘’")
    marks = "".join(sorted(set(re.sub(r"\\(.)", r"\1", west + mac + koi + slav)) - set("ёЁ")))
    return re.compile(
        f"[\x80-\x9f\uf8ffА-Я─-▓{re.escape(marks)}](?<=[^\x00-\x7f].)(?:(?<=[\x80-\x9f])"
        f"|(?<=[\xc2-\xdf][{west}])|(?<=[\xe0-\xef][{west}])(?=[{west}])|(?<=ðŸ)"
        f"|(?<=[{mac2}][{mac}])(?=[{mac2}{mac3}][{mac}])|(?<=[A-Za-z]√[{mac}])|(?<=[{mac3}][{mac}])(?=[{mac}])|(?<=\uf8ff)(?=[{mac}]{{3}})"
        f"|(?<=ü[{mac}])(?=[{mac}])"
        f"|(?<=[В-Я][{slav}])(?=[В-Яа-п])|(?<=[вр][Ђ„џ])|(?<=[а-п][{slav}])(?=[{slav}])"
        f"|(?<=[р-я][А-Я─-▓])|(?<=[р-я][а-п][А-Я─-▓])|(?<=ЁЯ)|(?<=[{box}][А-Яа-п─-▓])"
        f"|(?<=[пя][{koi}])(?=[пя])|(?<=Б[─-╬])"
        ")"
    )


_HOT = _hot()
_SEQUENCE = (
    rb"[\xc2-\xdf]C|\xe0(?:[\xa0-\xbf]|L)C|[\xe1-\xec\xee\xef]CC|\xed(?:[\x80-\x9f]|L)C"
    rb"|\xf0(?:[\x90-\xbf]|L)CC|[\xf1-\xf3]CCC|\xf4[\x80-\x8f]CC"
)
_FENCE = re.compile(r"[ \t>]*(?:(?:[-*+]|\d{1,9}[.)])[ \t]+)?(`{3,}|~{3,})")
_SET_APART = re.compile(r"`[^`\n]*`|\"[^\"\n]*\"")
_QUOTED = re.compile(r"“[^”\n]*”|«[^»\n]*»|„[^“”\n]*[“”]")
_CONTROLS = re.compile("[\x80\x82-\x8c\x8e\x91-\x9c\x9e\x9f]")  # Latin-1's where Windows-1252 has signs
_WEST = ("latin-1", "cp1252")
_CASE = re.compile("[a-z][À-ß√]")  # what clean text has not: a capital after a small letter
# A capital before a closing quote, a dash or an ellipsis may be chance («AMANHÃ»); before other signs it is not.
_PROOF = re.compile("[\xc2-\xf4](?=[^\x00-\x7f\xa0«»“”„‘’‚‹›–—…•\xc0-\xff])")
_ABOUT = re.compile(
    r"mojibake|character encoding|unicode|charset|utf-?8|latin-?1|cp-?(?:125\d|866)|windows-125\d|iso[- ]?8859|koi-?8|code ?page|ftfy"
    r"|кодировк|кракоз|юникод|ইউনিকোড",
    re.IGNORECASE,
)
# What Cyrillic text has not; without it a line may be words that happen to be UTF-8 («чай», «дії»: one Chinese character each).
_UNNATURAL = {
    "cp866": re.compile("[а-яё][А-ЯЁ]|[─-▓]|ЁЯ"),
    "cp1251": re.compile("[а-яёіїєґјљњћќўџђѓѕ][А-Я]|[А-Яа-п][°±µ¶·†‡‰€™‹›‚„¦§©¬®¤\xad\x98ЂЃЉЊЋЌЏЎЈҐЅ]|рџ"),
}
_SCRIPTS = re.compile(
    "(?P<latin>[\xaa\xba\xc0-\xd6\xd8-\xf6\xf8-\u024f\u1e00-\u1eff])|(?P<cyrillic>[\u0400-\u052f])|(?P<greek>[\u0370-\u03ff\u1f00-\u1fff])"
    "|(?P<hebrew>[\u0590-\u05ff])|(?P<arabic>[\u0600-\u06ff])|(?P<devanagari>[\u0900-\u0963\u0966-\u097f])"
    "|(?P<bengali>[\u0980-\u09ff])|(?P<indic>[\u0a00-\u0dff])|(?P<thai>[\u0e00-\u0eff])|(?P<armenian>[\u0531-\u058f])"
    "|(?P<georgian>[\u10a0-\u10ff])|(?P<hangul>[\u1100-\u11ff\uac00-\ud7af])|(?P<cjk>[\u3040-\u30ff\u3400-\u9fff\uff66-\uff9f])"
)
# Signs that go with any script: Latin-1's, IPA and combining marks, dandas, punctuation, arrows, mathematics, boxes, emoji.
_OTHER = "other"  # rare scripts, which chance likes and people use for a sign here and there
_SIGNS = re.compile(
    "[\u03a9\u03bc\xa0-\xbf\xd7\xf7\u0250-\u036f\u0964\u0965\u2000-\u2bff\u2e00-\u2e5f\u3000-\u303f\ufe00-\ufe0f\ufeff\uff00-\uff65\ufffd\U0001f000-\U0001fbff\U000e0020-\U000e007f\U0001d400-\U0001d7ff]"
)
_LETTERS = re.compile(r"[^\W\d_]+")
_FOREIGN = re.compile(r"[^\x00-\x7f]+")


class Repaired(NamedTuple):
    """A text with its mojibake taken back."""

    text: str
    """As many lines as before; the same object when nothing was to be done."""
    lines: int
    """How many lines changed."""
    codecs: tuple[str, ...]
    """The encodings it went through (Python's names), the most frequent first."""
    first: int
    """The first changed line; 0 when there is none."""
    garbled: int
    """How many lines look broken but could not be taken back surely."""
    first_garbled: int
    """The first of these; 0 when there is none."""


class _Undone(NamedTuple):
    """A line as it was before one or more wrong decodings."""

    text: str
    codecs: tuple[str, ...]
    weight: int
    scripts: frozenset[str]


def mend(text: str) -> tuple[str, tuple[Problem, ...]]:
    """The text without its mojibake, and `W-MOJIBAKE` for what was taken back, `W-GARBLED` for what was not."""
    found = repair(text)
    problems = []
    if found.lines:
        names = ", ".join(CODECS[codec] for codec in found.codecs)
        message = (
            f"UTF-8 that was read as {names} and saved again: {found.lines} lines are read as they were meant, the file is not changed;"
            f" to mend it for good, save it in an editor as {CODECS[found.codecs[0]]} and open it again as UTF-8"
        )
        problems.append(Problem("W-MOJIBAKE", message, found.first, found.lines))
    if found.garbled:
        message = (
            "letters look garbled (read in a wrong encoding, with losses) and cannot be restored surely; restore them from their source"
        )
        problems.append(Problem("W-GARBLED", message, found.first_garbled, found.garbled))
    return found.text, tuple(problems)


def repair(text: str) -> Repaired:
    """Take back wrong decodings of UTF-8 (also several in turn), line by line; clean text is returned as it is.

    The repair can be undone: encoding a repaired line as UTF-8 and decoding it by its codec gives the line as it was
    (but for bytes that were lost and are known from what stands around them). Time is linear in the text.
    """
    if text.isascii():
        return Repaired(text, 0, (), 0, 0, 0)
    lost = _replaced(text)
    if not _HOT.search(text):
        return Repaired(text, 0, (), 0, *lost)
    lines = text.split("\n")
    code = _fenced(lines)
    foreign = [number for number, line in enumerate(lines) if not line.isascii()]
    hot = [number for number in foreign if _HOT.search(lines[number])]
    undone = {number: found for number in hot if (found := _undo(lines[number]))}
    # Evidence is what stands neither in code nor in quotation marks: a text may quote mojibake.
    strong = {number: found for number, found in undone.items() if not code[number] and _strong(lines[number], found)}
    strong = strong or _mostly(lines, undone, code)
    if not strong:
        return Repaired(text, 0, (), 0, *_garbled(lines, hot, code, lost))
    about = _ABOUT.search(text) is not None
    if about and sum(found.weight for found in strong.values()) < 10 * SURE:  # a text that quotes it
        return Repaired(text, 0, (), 0, *_garbled(lines, hot, code, lost))
    chains = _chains(strong.values())
    scripts = frozenset().union(*(found.scripts for found in strong.values()))
    weak = {number: found for number in foreign if number not in strong and (found := _undo_known(lines[number], chains, scripts))}
    prose = [number for number in foreign if not code[number]]
    broken = sum(number in strong or number in weak for number in prose)
    whole = broken > len(prose) - broken
    if not whole:
        weak = {number: found for number, found in weak.items() if not (code[number] or _doubtful(lines[number], found))}
        clean = (line for number, line in enumerate(lines) if number not in strong and number not in weak)
        if about and (len(strong) < 10 or len(strong) < 0.2 * len(prose)) and any(_ABOUT.search(line) for line in clean):
            return Repaired(text, 0, (), 0, *_garbled(lines, hot, code, lost))
    chosen = strong | weak
    rest = [chosen[number].text if number in chosen else line for number, line in enumerate(lines)]
    if whole:
        for number in foreign:
            if number not in chosen:
                rest[number] = _runs(lines[number], chains, scripts)
    changed = [number for number in foreign if rest[number] != lines[number]]
    left = [number for number in hot if _HOT.search(rest[number])]
    used = Counter(codec for found in strong.values() for codec in found.codecs)
    west = "cp1252" if used["cp1252"] or not (_CONTROLS.search(text) or len(chains[0]) > 1) else "latin-1"
    names = tuple(dict.fromkeys(west if name in _WEST else name for name, _ in used.most_common()))
    return Repaired("\n".join(rest), len(changed), names, changed[0] + 1, *_garbled(rest, left, code, lost))


def _undo(line: str, depth: int = 1) -> _Undone | None:
    """The line before it was broken: the plausible reading with the most evidence; None when it is no mojibake as a whole."""
    best: _Undone | None = None
    for codec in CODECS:
        text = _decoded(line, codec)
        if text is None or text == line:
            continue
        deeper = _undo(text, depth + 1) if depth < _DEPTH and not text.isascii() and _HOT.search(text) else None
        if deeper and deeper.weight >= SURE:
            found = _Undone(deeper.text, (codec, *deeper.codecs), deeper.weight, deeper.scripts)
        elif codec in _UNNATURAL and not _UNNATURAL[codec].search(line):
            continue
        else:
            scripts = _scripts(text)
            if scripts is None:
                continue
            weight = min(_weight(text), deeper.weight if deeper else 1 << 30)  # broken still, perhaps: no proof of one turn only
            by_chance = codec in _WEST and not _PROOF.search(line)
            found = _Undone(text, (codec,), 0 if by_chance else weight, scripts)
        if best is None or found.weight > best.weight:
            best = found
    return best


def _chains(strong: Iterable[_Undone]) -> list[tuple[str, ...]]:
    """The ways that texts went, the longest first; those of the West both, since most lines have no character that tells them apart."""
    found: set[tuple[str, ...]] = set()
    for codecs, _ in Counter(undone.codecs for undone in strong).most_common(8):
        found.update(product(*(_WEST if codec in _WEST else (codec,) for codec in codecs)))
    return sorted(found, key=lambda chain: (-len(chain), chain))


def _undo_known(line: str, chains: Iterable[tuple[str, ...]], scripts: frozenset[str]) -> _Undone | None:
    """The line before it went one of the ways that other lines have proved; bytes that were lost on the way are filled in."""
    for chain in chains:
        text: str | None = line
        for codec in chain:
            text = _decoded(text, codec, lossy=True) if text is not None else None
        found = _scripts(text, known=True) if text is not None and text != line else None
        if text is not None and found is not None:
            weight = _weight(text)
            natural = chain[0] == "cp866" and not _UNNATURAL["cp866"].search(line)
            if found <= (scripts if natural else scripts | {_OTHER}) or (
                not natural and weight >= 2 * SURE and not found.isdisjoint(scripts)
            ):
                return _Undone(text, chain, weight, found)
    return None


def _doubtful(line: str, found: _Undone) -> bool:
    """Whether a line in a note that is mostly clean may as well be clean, or a quotation in code."""
    return "`" in line or _OTHER in found.scripts or (found.codecs[0] == "cp866" and not _UNNATURAL["cp866"].search(line))


def _decoded(line: str, codec: str, lossy: bool = False) -> str | None:
    """What the characters' bytes under an encoding say in UTF-8; None when there is something that cannot have come from it."""
    try:
        data = line.translate(_TABLES[codec]).encode("latin-1")
    except UnicodeEncodeError:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        if not lossy or codec not in (*_LOST, "mac-roman"):
            return None
    try:
        return _sequence(codec).sub(_with_lost(codec), data).decode("utf-8")
    except UnicodeDecodeError:
        return None


@functools.cache
def _sequence(codec: str) -> re.Pattern[bytes]:
    """One character of UTF-8, in which bytes that the encoding loses may be lost; Mac Roman loses F0, a private character."""
    lost = b"[" + _LOST.get(codec, b"\x80") + b"]"
    pattern = _SEQUENCE.replace(b"C", b"[\x80-\xbf" + _LOST.get(codec, b"") + b"]").replace(b"L", lost)
    return re.compile(pattern + (rb"|[\x9d\x9f][\x80-\xbf][\x80-\xbf]" if codec == "mac-roman" else b""))


def _with_lost(codec: str) -> Callable[[re.Match[bytes]], bytes]:
    if codec == "mac-roman":
        return lambda match: b"\xf0" + match[0] if match[0].startswith((b"\x9d", b"\x9f")) else match[0]
    return lambda match: match[0].replace(b" ", b"\xa0").replace(b"?", b"\x98")


def _scripts(text: str, *, known: bool = False) -> frozenset[str] | None:
    """The scripts of a text's letters outside ASCII; None when it is no plausible text.

    Letters by chance are of rare scripts, and stand inside words of another one.
    """
    found: Counter[str] = Counter()
    for run in _FOREIGN.findall(text):
        for char in _SIGNS.sub("", run):
            if unicodedata.category(char) in ("Cn", "Cc", "Co", "Cs"):
                return None
            found[_script(char)] += 1
    words = [word for word in _LETTERS.findall(text) if not word.isascii()]
    mixed = sum(len({_script(char) for char in word if not _SIGNS.match(char)}) > 1 for word in words)
    rare = 0 if known else 5 * found[_OTHER]
    if mixed * 2 > len(words) or len(found) > 2 + found.total() // 20 or rare > found.total():
        return None
    return frozenset(name for name, count in found.items() if count)


def _script(char: str) -> str:
    match = _SCRIPTS.match(char)
    return str(match.lastgroup) if match else "latin" if char.isascii() else _OTHER


def _weight(text: str) -> int:
    """How much a result says against chance: what is made of more bytes says more, a mark of punctuation or an emoji all."""
    return sum(
        SURE if "\u2010" <= char <= "\u2044" or char >= "\U0001f000" else 0 if char == "\ufffd" else 2 if char >= "\u0800" else 1
        for run in _FOREIGN.findall(text)
        for char in run
    )


def _strong(line: str, found: _Undone) -> bool:
    """Whether a line alone is proof, without what it sets apart as code or quotation."""
    if found.weight < SURE:
        return False
    if '"' in line or "`" in line:
        outside = _undo(_SET_APART.sub(" ", line))
        return outside is not None and outside.weight >= SURE
    return True


def _mostly(lines: list[str], undone: dict[int, _Undone], code: list[bool]) -> dict[int, _Undone]:
    """Lines with less evidence than a proof, as strong ones: when nothing in the note is clean, or ftfy agrees."""
    outside = {number: found for number, found in undone.items() if not code[number] and not _SET_APART.search(lines[number])}
    foreign = sum(not line.isascii() and not inside for line, inside in zip(lines, code, strict=True))
    if not outside or any(_ABOUT.search(line) for line in lines):
        return {}
    weights = [found.weight for found in outside.values()]
    same = len({found.codecs for found in outside.values()}) == 1
    if len(outside) == foreign and same and sum(weights) >= SURE:
        return outside
    single = [number for number in outside if len(lines[number]) < _LONG and _CASE.search(lines[number])][:_ASKED]
    if not single:
        return {}
    from ftfy import TextFixerConfig, fix_encoding

    plain = TextFixerConfig(restore_byte_a0=False, replace_lossy_sequences=False, decode_inconsistent_utf8=False, fix_c1_controls=False)
    return {number: outside[number] for number in single if fix_encoding(lines[number], plain) == outside[number].text}


def _runs(line: str, chains: list[tuple[str, ...]], scripts: frozenset[str]) -> str:
    """A line of a broken note of which only parts are broken: each run outside ASCII that is UTF-8 by itself.

    A run of one character is believed when a longer one stands beside it.
    """
    tried = ((run, _undo_known(run, chains, scripts)) for run in set(_FOREIGN.findall(line)))
    found = {run: undone for run, undone in tried if undone and not _doubtful(run, undone)}
    sure = any(undone.weight >= 2 for undone in found.values())
    return _FOREIGN.sub(lambda match: found[match[0]].text if sure and match[0] in found else match[0], line)


def _fenced(lines: list[str]) -> list[bool]:
    """For each line whether it is in a fence (or is its mark)."""
    inside = []
    mark = ""
    for line in lines:
        match = _FENCE.match(line) if "`" in line or "~" in line else None
        if mark:
            inside.append(True)
            if match and match[1].startswith(mark) and not line[match.end() :].strip():
                mark = ""
        else:
            inside.append(match is not None)
            mark = match[1] if match else ""
    return inside


def _garbled(lines: list[str], hot: Iterable[int], code: list[bool], lost: tuple[int, int]) -> tuple[int, int]:
    """How many lines still look broken, and the first: most of what is not ASCII would be UTF-8, or is a control character."""
    found = [number + 1 for number in hot if not code[number] and _looks_broken(_QUOTED.sub(" ", _SET_APART.sub(" ", lines[number])))]
    return (len(found) + lost[0], min([*found, *([lost[1]] if lost[0] else [])])) if found or lost[0] else (0, 0)


def _looks_broken(line: str) -> bool:
    foreign = sum(map(len, _FOREIGN.findall(line)))
    for codec, table in _TABLES.items():
        if codec in _UNNATURAL and not _UNNATURAL[codec].search(line):
            continue
        data = line.translate(table).encode("latin-1", "replace")
        pieces = re.findall(_sequence("koi8-r"), data)
        if len(pieces) >= SURE and sum(map(len, pieces)) > 0.6 * foreign:
            said = b" ".join(pieces).decode("utf-8", "ignore")
            if _scripts(said) is not None:
                return True
    return sum("\x80" <= char <= "\x9f" for char in line) >= 2


def _replaced(text: str) -> tuple[int, int]:
    """Lines with `\\ufffd`, which stands for lost letters, and the first, when it is much of what is not ASCII; else zeros."""
    count = text.count("\ufffd")
    if count < 20 or count < 0.1 * sum(map(len, _FOREIGN.findall(text))):
        return 0, 0
    found = [number for number, line in enumerate(text.split("\n"), 1) if "\ufffd" in line]
    return len(found), found[0]
