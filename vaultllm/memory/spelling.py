"""How a word looks in other letters: the other alphabet, the other keyboard layout, other figures, one slip of the hand away.

Tables and pure functions; what they give are guesses, of which most are no words. Transliteration is a search for the cheapest
ways through a table of letter groups, several for each, because people mix schemes (GOST, ISO 9, BGN, Avro, chat). Knows nothing
about which words exist.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from heapq import nsmallest
from operator import itemgetter

from vaultllm.text import fold

MOST_WAYS = 24  # spellings of a word in another alphabet, the likeliest first
_BEAM = 16
_LONGEST = 20  # letters: a longer word has too many spellings to be among the first

Table = Mapping[str, tuple[str, ...]]


def _table(said: str) -> Table:
    """`from:to,to` entries; of several the first is the likeliest."""
    return {left: tuple(right.split(",")) for left, _, right in (entry.partition(":") for entry in fold(said).split())}


_TO_CYRILLIC = _table(
    """a:а b:б,бь v:в,вь w:в,у g:г d:д,дь e:е,э yo:е jo:е io:ио,е zh:ж,жь j:й,ж,дж z:з,зь i:и,й y:ы,й,и k:к l:л,ль m:м,мь n:н,нь o:о
    p:п,пь r:р,рь s:с,сь t:т,ть u:у,ю f:ф h:х,г kh:х x:кс,х c:ц,к,с ck:к ts:ц,тс tz:ц cz:ц ch:ч,чь sh:ш,шь,сх shh:щ sch:щ,ш shch:щ
    yu:ю ju:ю iu:ю ya:я ja:я ia:я,иа ye:е je:е iy:ий ij:ий yj:ый yi:ый eh:э ph:ф th:т q:к qu:кв ':ь ’:ь `:ь 4:ч 6:ш ee:и oo:у"""
)
_FROM_CYRILLIC = _table(
    """а:a,u б:b в:v,w г:g,h д:d е:e,ye ж:zh,j,g з:z,s и:i,e,y й:y,i,j к:k,c,ck кс:x,ks л:l,ll м:m н:n о:o п:p р:r с:s,c,ss т:t,th у:u,oo
    ф:f,ph х:h,kh,x ц:ts,c,tz ч:ch ш:sh щ:shch,sch ъ:,' ы:y,i ь:,' э:e,a ю:yu,u,ju я:ya,ia,ja дж:j,g ий:y,iy,ij кв:qu,kv"""
)
_TO_BENGALI = _table(
    """k:ক kh:খ g:গ gh:ঘ ng:ং,ঙ c:চ,ক ch:চ,ছ chh:ছ j:জ,য jh:ঝ t:ত,ট th:থ,ঠ d:দ,ড dh:ধ,ঢ n:ন,ণ,ঞ p:প f:ফ ph:ফ b:ব v:ভ bh:ভ m:ম r:র,ড়
    l:ল s:স,শ,ষ sh:শ,ষ,স kkh:ক্ষ,খ ks:ক্স,ক্ষ h:হ y:য়,য z:জ,য q:ক x:ক্স w:ও a:আ,অ aa:আ i:ই,ঈ ee:ই,ঈ u:উ,ঊ oo:উ,ঊ e:এ o:অ,ও oi:ঐ ou:ঔ ri:ঋ
    sht:ষ্ট st:স্ট,স্ত nch:ঞ্চ nd:ন্দ,ন্ড jn:জ্ঞ"""
)
_FROM_BENGALI = _table(
    """ক:k খ:kh গ:g ঘ:gh ঙ:ng চ:ch,c ছ:chh,ch জ:j,z ঝ:jh ঞ:n ট:t ঠ:th ড:d ঢ:dh ণ:n ত:t থ:th দ:d ধ:dh ন:n প:p ফ:f,ph ব:b ভ:bh,v
    ম:m য:j,y য়:y,e র:r ল:l শ:sh,s ষ:sh,s স:s,sh হ:h ড়:r ঢ়:rh ৎ:t ং:ng,n ঃ:h, ঁ:, অ:o,,a আ:a,aa ই:i,ee ঈ:i,ee উ:u,oo ঊ:u,oo
    ঋ:ri এ:e ঐ:oi ও:o,w ঔ:ou"""
)
_SIGNS = dict(zip("আইঈউঊঋএঐওঔ", "ািীুূৃেৈোৌ", strict=True))
_VOWELS = {sign: vowel for vowel, sign in _SIGNS.items()}
_INHERENT = "\0"  # the vowel that Bengali does not write, kept until the word is whole
_HASANTA, _NUKTA = "\u09cd", "\u09bc"
_BENGALI_CONSONANTS = frozenset("কখগঘঙচছজঝঞটঠডঢণতথদধনপফবভমযরলশষসহ" + _NUKTA)

_LATIN, _CYRILLIC = "abcdefghijklmnopqrstuvwxyz", "абвгдежзийклмнопрстуфхцчшщъыьэюя"
_BENGALI = "কখগঘঙচছজঝঞটঠডঢণতথদধনপফবভমযরলশষসহঅআইঈউঊএওািীুূৃেৈোৌংঁৎ়্"
_ENGLISH_KEYS = "qwertyuiop[]asdfghjkl;'zxcvbnm,.{}:\"<>`~"
_RUSSIAN_KEYS = "йцукенгшщзхъфывапролджэячсмитьбюхъжэбюее"
_KEYS = dict(zip(_ENGLISH_KEYS, _RUSSIAN_KEYS, strict=True))  # ё is е here too
_LETTERS = {letter: key for key, letter in reversed(_KEYS.items())}  # of several keys the first
_ALIKE = dict(zip("aceopxykmthb", "асеорхукмтнв", strict=True))
_FIGURES = str.maketrans("০১২৩৪৫৬৭৮৯0123456789", "0123456789০১২৩৪৫৬৭৮৯")


def _script(word: str) -> str:
    """The letters of the alphabet that a word is in by its first known letter; "" for others."""
    for char in word:
        for letters in (_LATIN, _CYRILLIC, _BENGALI):
            if char in letters:
                return letters
    return ""


def retyped(word: str) -> list[str]:
    """A word as the same keys give it in the other layout, English and Russian: `ghbdtn` -> `привет`; [] when it has no such keys."""
    folded = fold(word)
    for keys in (_KEYS, _LETTERS):
        other = "".join([keys.get(char, "") for char in folded])
        if len(other) == len(folded):
            return [fold(other)]
    return []


def unmixed(word: str) -> list[str]:
    """A word with Latin and Cyrillic letters in either alphabet, where all the others have a twin that looks the same."""
    has = [any(char in letters for char in word) for letters in (_LATIN, _CYRILLIC)]
    if not all(has):
        return []
    back = {cyrillic: latin for latin, cyrillic in _ALIKE.items()}
    ways = ["".join([table.get(char, char) for char in word]) for table in (_ALIKE, back)]
    return [way for way in ways if not any(char in _LATIN for char in way) or not any(char in _CYRILLIC for char in way)]


def figures(word: str) -> str:
    """A number in the figures of the other script, Bengali or European; other words as they are."""
    return word.translate(_FIGURES) if word.isdecimal() else word


def one_slip(word: str) -> Iterator[str]:
    """All words one slip away: two letters swapped, one left out, changed or put in. Some 70 for each letter."""
    letters = _script(word)
    for place in range(len(word)):
        yield word[:place] + word[place + 1 :]
        if place:
            yield word[: place - 1] + word[place] + word[place - 1] + word[place + 1 :]
    for place in range(len(word) + 1):
        for letter in letters:
            yield word[:place] + letter + word[place:]
            if place < len(word):
                yield word[:place] + letter + word[place + 1 :]


@functools.lru_cache(maxsize=256)
def alphabets(word: str) -> list[list[str]]:
    """The spellings of a folded word in each other alphabet it may be meant in, the likeliest first.

    Latin as Cyrillic and as Bengali, either of them as Latin.
    """
    if len(word) > _LONGEST:
        return []
    script = _script(word)
    if script == _LATIN:
        return [_ways(word, _TO_CYRILLIC, _follow), [way.replace(_INHERENT, "") for way in _ways(word, _TO_BENGALI, _follow_bengali)]]
    if script == _CYRILLIC:
        return [_ways(word, _FROM_CYRILLIC, _follow)]
    return [_ways(_spoken(word), _FROM_BENGALI, _follow)] if script == _BENGALI else []


def _ways(word: str, table: Table, follow: Callable[[str, str], tuple[str, ...]]) -> list[str]:
    """The cheapest ways to spell a word by a table: each group of letters costs 1, a rarer reading of it a little more."""
    longest = max(map(len, table))
    reached: list[dict[str, float]] = [{} for _ in range(len(word) + 1)]
    reached[0][""] = 0.0
    for place in range(len(word)):
        begun = nsmallest(_BEAM, reached[place].items(), key=itemgetter(1))
        for length in range(1, min(longest, len(word) - place) + 1):
            group = word[place : place + length]
            readings = table.get(group, (group,) if length == 1 else ())
            there = reached[place + length]
            for rank, reading in enumerate(readings):
                more = 1.0 + 0.6 * rank
                for said, cost in begun:
                    for spelled in follow(said, reading):
                        more_here = cost + more
                        if more_here < there.get(spelled, 1e9):
                            there[spelled] = more_here
    return [spelled for spelled, _ in nsmallest(MOST_WAYS, reached[-1].items(), key=itemgetter(1)) if spelled]


def _follow(said: str, reading: str) -> tuple[str, ...]:
    return (said + reading,)


def _follow_bengali(said: str, reading: str) -> tuple[str, ...]:
    """A vowel after a consonant is its sign; two consonants are joined, or have the unwritten vowel between them."""
    if said[-1:] not in _BENGALI_CONSONANTS:
        return (said + reading,) if reading != "ঋ" or not said else ()
    if reading == "অ":
        return (said + _INHERENT,)
    if reading in _SIGNS:
        return (said + _SIGNS[reading],)
    return (said + reading, said + _HASANTA + reading) if reading[0] in _BENGALI_CONSONANTS else (said + reading,)


def _spoken(word: str) -> str:
    """A Bengali word with all its vowels as letters of their own, the unwritten one (not at the end) among them."""
    spoken = ""
    for place, char in enumerate(word):
        after = word[place + 1 : place + 2]
        spoken += "" if char == _HASANTA else _VOWELS.get(char, char)
        bare = char in _BENGALI_CONSONANTS and after in _BENGALI_CONSONANTS | frozenset("ৎংঁ") and after != _NUKTA
        if bare and after:
            spoken += "অ"
    return spoken
