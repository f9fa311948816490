"""Mojibake: what was surely broken comes back as it was, and clean text in any language is never touched."""

from __future__ import annotations

import random
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.timing import assert_linear
from vaultllm import markdown, mojibake
from vaultllm.text import decode

CODECS = tuple(mojibake.CODECS)


def broken(text: str, codec: str) -> str:
    """UTF-8 read in an 8-bit encoding, as browsers do it: bytes without a character become controls."""
    return "".join(bytes([byte]).decode(codec, "ignore") or chr(byte) for byte in text.encode())


RUSSIAN = """---
title: Заметка о саде
tags: [сад, дача]
---
# Наш сад весной

Вчера мы посадили яблоню — а потом долго пили чай. «Ёжик» пришёл к миске… И ушёл!

| Растение | Сколько | Когда |
|---|---|---|
| яблоня | 2 шт. | март |
| чеснок | 1 кг | 8 ч |

- [ ] полить
- да
- и ещё
"""
BENGALI = """# বাংলা নোট

আমি বাংলায় লিখি। আজ ২১ তারিখ, আকাশ মেঘলা।

### ১. Pretraining:
* ছোট মডেল, বড় স্বপ্ন — "ঠিক আছে"।
* Structured knowledge।
"""
ENGLISH = """# A week’s notes

It’s “fine” — isn’t it? We went to a café, naïve as ever…

```python
print("résumé")  # don’t
```

Done ✅ 🚀 – see you! 5 € each, 10 °C.
"""
MIXED = """# Модель и токены 🔥

Слово «токен» по-бенгальски টোকেন, по-английски token; 𝕏 и ½.

`код` и **LoRA и QLoRA**, → стрелка, ≤ 5.
"""
TEXTS = {"russian": RUSSIAN, "bengali": BENGALI, "english": ENGLISH, "mixed": MIXED}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("name", TEXTS)
def test_what_went_through_a_wrong_encoding_comes_back(name: str, codec: str) -> None:
    text = TEXTS[name]
    found = mojibake.repair(broken(text, codec))
    assert found.text == text
    assert found.lines == sum(not line.isascii() for line in text.split("\n"))
    assert found.garbled == 0
    # Latin-1 and Windows-1252 differ in 27 characters; a text without them went through either.
    assert found.codecs == (codec,)


@pytest.mark.parametrize(("first", "second"), list(product(CODECS, CODECS)))
def test_what_was_broken_twice_comes_back(first: str, second: str) -> None:
    found = mojibake.repair(broken(broken(RUSSIAN, first), second))
    assert found.text == RUSSIAN
    assert set(found.codecs) <= {first, second}


def test_the_owners_uploads_are_the_owners_notes(shared: Path) -> None:
    names = sorted(path.name for path in (shared / "real" / "user").iterdir())
    assert len(names) == 5
    for name in names:
        as_uploaded = (shared / "real" / "user_as_uploaded" / name).read_bytes().decode()
        found = mojibake.repair(as_uploaded)
        assert found.text == (shared / "real" / "user" / name).read_bytes().decode(), name
        assert found.codecs == (("cp866",) if name.endswith("-bn.md") else ("mac-roman",))
        assert found.garbled == 0
        assert broken(found.text, found.codecs[0]) == as_uploaded


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_in_a_note_of_both_only_the_broken_lines_change(codec: str, share: float) -> None:
    lines = [f"Строка {number}: сегодня мы говорили о погоде и о книгах." if number % 3 else "## Итог" for number in range(60)]
    chosen = random.Random(codec + str(share))
    mixed = [broken(line, codec) if chosen.random() < share else line for line in lines]
    found = mojibake.repair("\n".join(mixed))
    assert found.text.split("\n") == lines
    assert found.lines == sum(line != meant for line, meant in zip(mixed, lines, strict=True))


def test_clean_words_in_a_broken_line_stay_as_they_are() -> None:
    lines = broken(RUSSIAN, "cp1251").split("\n")
    lines.append("добавлено позже: " + broken("полить вечером", "cp1251"))
    found = mojibake.repair("\n".join(lines))
    assert found.text == RUSSIAN + "\nдобавлено позже: полить вечером"


@pytest.mark.parametrize(
    ("codec", "lost", "instead"), [("cp1252", "\xa0", " "), ("cp1251", "\xa0", " "), ("cp1251", "\x98", "?"), ("cp1251", "\x98", "\ufffd")]
)
def test_bytes_that_were_lost_are_known_from_what_stands_around_them(codec: str, lost: str, instead: str) -> None:
    text = "Иван и Роман — Испания, Рим.\nРека Иртыш и Иван\nобычная строка текста\n"
    damaged = broken(text, codec).replace(lost, instead)
    assert damaged != broken(text, codec)
    assert mojibake.repair(damaged).text == text


def test_an_emoji_whose_private_character_was_taken_out_comes_back() -> None:
    text = "Привет, мир 🚀\nНовая строка 🔥 и 😀\nОбычная строка\n"
    assert mojibake.repair(broken(text, "mac-roman").replace("\uf8ff", "")).text == text


def test_what_lost_its_bytes_is_reported_and_left() -> None:
    lines = [broken(line, "latin-1") for line in ("Сегодня была хорошая погода", "Вчера мы долго пили чай")]
    damaged = "\n".join("".join(char for number, char in enumerate(line) if number % 11 != 9) for line in lines)
    found = mojibake.repair(damaged + "\nчистая строка\nи ещё одна")
    assert (found.text.split("\n")[:2], found.lines) == (damaged.split("\n"), 0)
    assert (found.garbled, found.first_garbled) == (2, 1)
    everywhere = "\n".join("\ufffd" * 9 for _ in range(5))
    assert mojibake.repair(everywhere).garbled == 5
    assert mojibake.repair("Модель печатает \ufffd\ufffd вместо буквы.").garbled == 0


# -- clean text

CLEAN = {
    "ru": "Вчера мы пили чай. «СССР» и «США»; В\xa02020 году… МОЁ ДЕЛО. Ёжик — друг? ПОЁТ. «Эй!» — крикнул он, №\xa05, 5\xa0°С.",
    "ru caps": "ВСЁ О СЕБЕ: МОЁ, ТВОЁ, ЕЁ — «РЁВ». НЕЁ… С» Р» В… И… сПб, кВт·ч, В·А",
    "ru words": "чай\nшаг\nтам\nрек\n- чай, шок\n- рад\nсам\nред\nржа",
    "bn": "আমি বাংলায় লিখি। তুমি কেমন আছ? ১২৩ টাকা। «বই» — ভালো। LLMকে, API-এর",
    "el": "Καλημέρα κόσμε, τι κάνεις; Όλα καλά — «ναι»… ΆΛΦΑ Ωμέγα π",
    "zh": "今天天气很好，我们去公园散步吧。「你好」——世界！",
    "ja": "吾輩は猫である。名前はまだ無い。ｶﾀｶﾅ、「テスト」…",
    "ko": "안녕하세요, 오늘은 날씨가 좋습니다.",
    "he": "שלום עולם, מה שלומך? תודה רבה — ״כן״",
    "ar": "مرحبا بالعالم، كيف حالك؟ شكرا جزيلا ـ «نعم»",
    "fr": "« Voilà » – l’été, l’Église… « L’âme d’Émile » à\xa0Paris, «\xa0liberté\xa0» et l’œuvre.\n"
    "À… É» Ô» ÇA À L’ÉTÉ\nl’âme\nl’île\nd’Émile\nliberté\xa0»",
    "de": "„Ähnlich“ sagte er, ‚Ärger‘. Der Spaß“ – groß… über Öl, „Maß“, STRAßE “über” »Füße« «Übel»\nß“ ß” ß…",
    "pl": "Zażółć gęślą jaźń – „Łódź” i „Kraków”… ŻÓŁW ÓW Ó”",
    "cs": "Příliš žluťoučký kůň úpěl ďábelské ódy. „Šíře“ – ČŘŽ…",
    "tr": "Pijamalı hasta yağız şoföre çabucak güvendi. İSTANBUL’a, Ş… Ğ”",
    "vi": "Tiếng Việt rất đẹp: Đà Nẵng, ấy thế à? Ừ… “Ồ” Ậ Ế Â… Ê”",
    "pt": "“AMANHÔ e «AMANHû, não. AMANHÃ… São João: MAÇÃ, IRMÃ» ALEMÃ\xa0e LÃ–SEDA; NÃ‘O?\nMAÇÃ…\nIRMû\nLÔ",
    "es": "¿Qué? ¡Año! «Ñandú» — Él dijo: “Áéí”… Ó» Í”",
    "uk": "Ні, Ві, Ці дії: лінії, мрії, її надії. ҐАНОК, ЇЖАК, ЄВРОПА. Під’їзд — «Її».\nдії\nНі\nЦі дії",
    "sr": "Љубав, Њушка, Ђак, џеп, њихов, мој, његов, ћуприја. „Њ“ ЂЂ",
    "bg": "Здравей, свят! Ъгълът е остър — „да“… Щъркел",
    "emoji": "🚀🔥😀 👩‍👩‍👧 ❤️ ✅ — done 🇷🇺🇧🇩",
    "boxes": "┌──┬──┐\n│ a│ b│\n├──┼──┤\n└──┴──┘ ╔══╗ ║ ║ ╚══╝ ░▒▓█ ─┐ └─ ═╗ ╨╤╨\n├── src\n│   └── файл.py\n└── Тест",
    "mathematics": "∀x∈ℝ: √π ≈ 1.77, ∑∏∫ ≤ ≥ ± × ÷ ∞ ∂ √2 ¬A ∧ ¬B, x√π, ∆≈∂, Ω≠µ, …∞ «≤»",
    "currency": "5 € – 3 £, ¥ 10, ₽ 100, ₹, ¢5, §3, ©®™ • ‰ † ‡ ¶ ß",
    "ipa": "[ˈɪŋɡlɪʃ] /ʃəˈwɑː/ ðə θɪŋ ʒ ʊ æŋ ɔː",
    "caps": "ÀÉÎÕÜ ÇÑØÅÆŒ ÐÞß ÂÊÎÔÛ ÄËÏÖÜŸ ÃÑÕ É… Ä… Ö… Ü…",
    "north": "Það er ð og Þ, ÆÐI, ðÞ… Ð” Það“ Hej! ÅÄÖ «Å» ”Ö” –Ä… Äiti, Öljy ”Ä” Å… ÆØÅ «Å…» Ø”",
    "east": "Bună ziua, Țară, Știință, Ă… Â” ROMÂNĂ Árvíztűrő „Ő” Ű… Á” É» Salvē “Ā”",
    "en": "It’s “fine” — isn’t it? café naïve résumé… 10 °C ±5 µm ½ ¼ • † ™ “É” a—É",
}


@pytest.mark.parametrize("name", CLEAN)
def test_clean_text_is_never_touched(name: str) -> None:
    text = CLEAN[name]
    for piece in (text, *text.split("\n"), *text.split()):
        found = mojibake.repair(piece)
        assert found.text is piece or found.text == piece, piece
        assert (found.lines, found.garbled) == (0, 0), piece


@settings(max_examples=400)
@given(
    st.lists(st.sampled_from([word for text in CLEAN.values() for word in text.split()]), max_size=30), st.sampled_from([" ", "\n", "\xa0"])
)
def test_no_mixture_of_clean_words_is_touched(words: list[str], between: str) -> None:
    text = between.join(words)
    assert mojibake.repair(text).lines == 0


_LANGUAGES = [sorted(set(text) - {"\n"}) for text in CLEAN.values()]


@settings(max_examples=400)
@given(st.sampled_from(_LANGUAGES).flatmap(lambda letters: st.text(st.sampled_from([*letters, " ", "\n", "a"]), max_size=60)))
def test_hardly_any_heap_of_one_languages_letters_is_touched(text: str) -> None:
    # Letters in random order may happen to be UTF-8; a line that changes must then hold as much evidence as a proof.
    found = mojibake.repair(text)
    for line, meant in zip(text.split("\n"), found.text.split("\n"), strict=True):
        assert line == meant or broken(meant, found.codecs[0]) == line


def test_no_note_of_the_samples_is_touched(shared: Path) -> None:
    roots = [shared / "real" / "user", shared / "real" / "vaults", shared / "real" / "nexus_versions", shared]
    roots.append(Path(__file__).resolve().parents[1] / "vault_example")
    seen = 0
    for path in (path for root in roots for path in root.glob("*.md" if root == shared else "**/*.md")):
        text = decode(path.read_bytes()).text
        found = mojibake.repair(text)
        assert (found.lines, found.text is text) == (0, True), path
        seen += 1
    assert seen > 250


# -- texts about mojibake

ABOUT = [
    "Письмо пришло как `РџСЂРёРІРµС‚, РјРёСЂ`, а должно было «Привет, мир».",
    "Вместо «Привет» видно РџСЂРёРІРµС‚ — так бывает.",
    "You see cafÃ© instead of café.",
    "Seeing Ã© or â€™ in your page? UTF-8 was read as Latin-1.",
    'In the log it says "РџСЂРёРІРµС‚, РјРёСЂ" and nothing else.',
    "| Ð¿Ñ€Ð¸Ð²ÐµÑ‚ | привет |",
    "```\nРџСЂРёРІРµС‚, РјРёСЂ\n```",
    "~~~text\nÐŸÑ€Ð¸Ð²ÐµÑ‚, Ð¼Ð¸Ñ€\n~~~",
]


@pytest.mark.parametrize("quoted", ABOUT)
def test_quoted_mojibake_in_a_clean_text_stays(quoted: str) -> None:
    for text in (quoted, f"Разбираюсь с почтой.\n\n{quoted}\n\nТак бывает, когда программа путает байты.\n\nПотом всё прошло.\n"):
        assert mojibake.repair(text).text == text


def test_whole_lines_of_it_in_a_text_about_encodings_stay_and_are_reported() -> None:
    text = "Про кодировки.\n\nВот что пришло:\n\n> РџСЂРёРІРµС‚, РјРёСЂ\n\nЭто UTF-8, прочтённый как Windows-1251.\n"
    found = mojibake.repair(text)
    assert (found.text, found.lines, found.garbled, found.first_garbled) == (text, 0, 1, 5)


def test_a_broken_note_is_repaired_in_its_code_too() -> None:
    text = RUSSIAN + "\n```python\nprint('привет')  # код\n```\n"
    assert mojibake.repair(broken(text, "cp1252")).text == text


# -- cost


def test_nothing_heavy_is_imported_for_clean_text() -> None:
    kept = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "ftfy"}
    try:
        for text in (*CLEAN.values(), *(broken(text, "mac-roman") for text in TEXTS.values())):
            if not any(word in text for word in ("Ã", "Ð")):
                mojibake.repair(text)
        assert "ftfy" not in sys.modules
    finally:
        sys.modules.update(kept)


def test_one_broken_letter_between_small_ones_is_enough() -> None:
    assert mojibake.repair("We met in a cafÃ© yesterday.").text == "We met in a café yesterday."
    assert mojibake.repair("It isnâ€™t so.").text == "It isn’t so."


_PARTS = st.sampled_from(
    [
        "Ã©",
        "â€™",
        "Ð¿Ñ€Ð¸",
        "РџСЂРё",
        "–ü—Ä–∏",
        "╨Я╤А╨╕",
        "рзз",
        "ржХ",
        "\x80",
        "\xa0",
        "Р",
        "Р?",
        "é",
        "да",
        "`",
        '"',
        "\n",
        "```\n",
        "\ufffd",
        "a ",
        "\ud800",
    ]
)


@given(
    st.one_of(
        st.lists(_PARTS, max_size=40).map("".join), st.text(max_size=80), st.binary(max_size=200).map(lambda data: data.decode("latin-1"))
    )
)
def test_it_never_raises_and_keeps_the_lines(text: str) -> None:
    found = mojibake.repair(text)
    assert found.text.count("\n") == text.count("\n")
    changed = sum(line != before for line, before in zip(found.text.split("\n"), text.split("\n"), strict=True))
    assert found.lines == changed
    assert bool(found.lines) == bool(found.codecs) == bool(found.first)


@given(st.binary(max_size=400))
def test_no_bytes_make_reading_raise_or_lines_vanish(data: bytes) -> None:
    decoded = decode(data)
    note = markdown.parse("n.md", data)
    assert note.text.count("\n") == decoded.text.count("\n")


@given(st.text(min_size=4, max_size=60), st.sampled_from(CODECS))
def test_what_is_repaired_breaks_into_what_it_was(text: str, codec: str) -> None:
    line = broken(text.replace("\n", " "), codec)
    found = mojibake.repair(line)
    if found.lines and "\ufffd" not in line:
        said = found.text
        ways = product(CODECS, repeat=len(found.codecs))
        assert any(broken_through(said, way) == line for n in range(1, 4) for way in product(found.codecs, repeat=n)) or any(
            broken_through(said, way) == line for way in ways
        )


def broken_through(text: str, codecs: tuple[str, ...]) -> str:
    for codec in reversed(codecs):
        text = broken(text, codec)
    return text


@pytest.mark.parametrize(
    "unit",
    [
        "Ã©",
        "Ã© a\n",
        "Ð¿Ñ€Ð¸Ð²ÐµÑ‚ ",
        "Ã\x90Â¿Ã\x91Â\x80",
        "`РџСЂРё` ",
        "ржХ",
        "–ü—Ä–∏\n",
        "é\xa0»",
        "─┐",
        "«Р» ",
        '"Р?',
        "\x80",
        "cafÃ© x\n",
        "\ufffd\n",
    ],
)
def test_time_grows_with_length_only(unit: str) -> None:
    assert_linear(lambda length: unit * (length // len(unit)), mojibake.repair, 8_000)


# -- what a note says of it


def test_a_note_holds_the_repaired_text_and_says_how_to_mend_the_file() -> None:
    data = broken(RUSSIAN, "mac-roman").encode()
    note = markdown.parse("сад.md", data)
    assert note.text == RUSSIAN
    assert (note.title, note.tags) == ("Заметка о саде", ("сад", "дача"))
    (problem,) = note.problems
    assert (problem.code, problem.line, problem.count) == ("W-MOJIBAKE", 2, sum(not line.isascii() for line in RUSSIAN.split("\n")))
    for said in ("Mac Roman", "the file is not changed", "UTF-8"):
        assert said in problem.message


def test_a_note_that_cannot_be_repaired_is_garbled() -> None:
    damage: Callable[[str], str] = lambda text: broken(text, "cp1252").replace("\x81", "").replace("\x90", "").replace("‚", "")  # noqa: E731
    note = markdown.parse("n.md", damage("Сегодня с утра был туман\nА потом всё стало ясно\n").encode())
    assert [(problem.code, problem.count) for problem in note.problems] == [("W-GARBLED", 2)]
    assert "source" in note.problems[0].message
