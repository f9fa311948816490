"""Words that the vault does not know lead to words that it does, by the way they were mistyped; all others are left alone."""

from __future__ import annotations

import json
import random
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests import stored
from vaultllm import recall, remember, text
from vaultllm.config import MemorySettings
from vaultllm.ledger import Ledger
from vaultllm.memory import embed, expand, live, spelling

EXAMPLE = Path(__file__).resolve().parents[1] / "vault_example"


class Words:
    """The vocabulary of some texts, each a passage."""

    def __init__(self, passages: list[str]) -> None:
        self.count = Counter(word for said in passages for word in set(text.words(said)))
        self.stems: Counter[str] = Counter()
        self.grams: dict[str, list[str]] = defaultdict(list)
        for word, count in self.count.items():
            self.stems[text.stem(word)] += count
            for gram in set(text.word_grams(word)):
                self.grams[gram].append(word)
        self.asked = 0

    def df(self, word: str) -> int:
        self.asked += 1
        return self.count.get(word, 0)

    def known(self, words: Iterable[str]) -> list[str]:
        return [word for word in words if word in self.count]

    def stem_df(self, stem: str) -> int:
        self.asked += 1
        return self.stems.get(stem, 0)

    def similar(self, word: str, n: int) -> list[tuple[str, float, int]]:
        mine = set(text.word_grams(word))
        shared = Counter(other for gram in mine for other in self.grams.get(gram, ()))
        found = [(other, 2 * same / (len(mine) + len(set(text.word_grams(other)))), self.count[other]) for other, same in shared.items()]
        return sorted(found, key=lambda one: (-one[1], -one[2], one[0]))[:n]


SAID = """Токенизация режет слова на части: токенизатор учится на заметках. Влажность почвы в теплице. Привет, большой мир, это письмо.
Помпа включается летом. Я кормил модель заметками; трансформатор гудел. Обучение. Любовь. Яблоко. Ёжик.
Строка кода. Печать. Кошка спит.
Hello world, the greenhouse pump. Tokenization of language; retrieval from memory. Docker, linux, github. Water level. An email came. email,
get the user name in HTTP code; a snake, a case. The number 2025 and the part 7. খিচুড়ি রান্না, আমরা বাংলা লিখি, কলকাতা শহর, বৃষ্টি ২০২৪ সালে"""


@pytest.fixture(scope="module")
def vault() -> Words:
    return Words([SAID])


@pytest.fixture(scope="module")
def example() -> Words:
    return Words([path.read_text(encoding="utf-8") for path in sorted(EXAMPLE.rglob("*.md"))])


def _best(word: str, vault: Words) -> tuple[str, str]:
    found = expand.variants(word, vault)
    return (found[0].word, found[0].why) if found else ("", "")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("токенезация", "токенизация"), ("токенизацыя", "токенизация"), ("влажнасть", "влажность"), ("влажнсоть", "влажность"),
        ("теплеца", "теплице"),
        ("tokenizaton", "tokenization"), ("retreival", "retrieval"), ("langauge", "language"), ("grenhouse", "greenhouse"),
        ("кожка", "кошка"),
        ("বাংলঅ", "বাংলা"), ("খিচুড়ী", "খিচুড়ি"), ("ТОКЕНЕЗАЦИЯ", "токенизация"),
    ],
)  # fmt: skip
def test_slips_of_the_hand_lead_to_the_word_that_was_meant(vault: Words, typed: str, meant: str) -> None:
    assert _best(typed, vault) == (meant, "typo")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("tokenizaciya", "токенизация"), ("tokenizatsiya", "токенизация"), ("tokenizacija", "токенизация"), ("privet", "привет"),
        ("teplitse", "теплице"), ("teplice", "теплице"), ("bolshoy", "большой"), ("bol'shoj", "большой"), ("pismo", "письмо"),
        ("lyubov", "любовь"),
        ("ljubov", "любовь"), ("yabloko", "яблоко"), ("jabloko", "яблоко"), ("yozhik", "ежик"), ("obu4enie", "обучение"),
        ("докер", "docker"),
        ("гитхаб", "github"), ("линукс", "linux"), ("khichuri", "খিচুড়ি"), ("amra", "আমরা"), ("bangla", "বাংলা"), ("kolkata", "কলকাতা"),
        ("brishti", "বৃষ্টি"), ("ranna", "রান্না"),
    ],
)  # fmt: skip
def test_words_in_another_alphabet_are_found_by_several_schemes(vault: Words, typed: str, meant: str) -> None:
    assert _best(typed, vault) == (meant, "alphabet")


@pytest.mark.parametrize(("typed", "scheme"), [("খিচুড়ি", "khichuri"), ("কলকাতা", "kolkata"), ("বৃষ্টি", "brishti"), ("আমরা", "amra")])
def test_bengali_is_found_where_the_vault_writes_it_in_latin(typed: str, scheme: str) -> None:
    assert _best(typed, Words([scheme])) == (scheme, "alphabet")


@pytest.mark.parametrize(("typed", "meant"), [("ghbdtn", "привет"), ("Vjltkm", "модель"), ("руддщ", "hello"), ("[", ""), ("zz", "")])
def test_the_wrong_keyboard_layout_is_undone(vault: Words, typed: str, meant: str) -> None:
    assert _best(typed, vault) == (meant, "layout" if meant else "")


@given(st.text("абвгдежзийклмнопрстуфхцчшщъыьэюя", min_size=1))
def test_retyping_twice_gives_the_word_again(word: str) -> None:
    (once,) = spelling.retyped(word)
    assert spelling.retyped(once) == [word]


def test_letters_of_two_alphabets_that_look_alike_are_made_one(vault: Words) -> None:
    assert _best("cтрока", vault) == ("строка", "alphabet")  # a Latin c
    assert _best("hеllo", vault) == ("hello", "alphabet")  # a Cyrillic е


def test_figures_of_either_script_find_the_other_and_are_never_corrected(vault: Words) -> None:
    assert _best("২০২৫", vault) == ("2025", "figures")
    assert _best("2024", vault) == ("২০২৪", "figures")
    assert expand.variants("2026", vault) == []
    assert expand.variants("gpt4", vault) == []


@pytest.mark.parametrize(
    ("typed", "found"),
    [
        ("getUserName", ["get", "user", "name"]),
        ("get_user_name", ["get", "user", "name"]),
        ("HTTPCode", ["http", "code"]),
        ("snake_case", ["snake", "case"]),
        ("part2025", ["part", "2025"]),
        ("waterlevel", ["water", "level"]),
    ],
)
def test_identifiers_and_compounds_are_also_looked_for_by_their_parts(vault: Words, typed: str, found: list[str]) -> None:
    parts = [variant.word for variant in expand.variants(typed, vault) if variant.why == "part"]
    assert parts == found


def test_a_known_identifier_keeps_its_parts_but_no_guesses() -> None:
    vault = Words(["snake_case of a snake in a case"] * 5)
    assert [(one.word, one.why) for one in expand.variants("snake_case", vault)] == [("snake", "part"), ("case", "part")]


def test_a_word_that_the_vault_knows_well_has_no_variants_however_near_another_is() -> None:
    vault = Words(["кошка"] * 3 + ["кошки и ложка"] * 50)
    assert expand.variants("кошка", vault) == []
    assert expand.variants("кошкой", vault) == []  # known by its stem
    assert expand.variants("кошкою", Words(["кошкою"] + ["кошки"] * 3 + ["мошкою"] * 50)) == []
    assert _best("кощка", vault) == ("кошка", "typo")


def test_a_rare_word_is_a_slip_only_of_a_far_more_frequent_one_and_then_counts_less() -> None:
    vault = Words(["влажнасть"] + ["влажность"] * 20)
    (rare,) = expand.variants("влажнасть", vault)
    (unknown,) = expand.variants("влажнусть", Words(["влажность"] * 20))
    assert rare.word == unknown.word == "влажность"
    assert rare.weight < unknown.weight
    assert expand.variants("влажнасть", Words(["влажнасть"] + ["влажность"] * 5)) == []


def test_what_is_like_no_word_of_the_vault_stays_alone(vault: Words) -> None:
    for word in ("гиппопотам", "xylophone", "हिन्दी", "日本語", "😀", "", "_", "a", "42", "x" * 500, "\ud800", "ব"):
        assert expand.variants(word, vault) == []


def test_weights_fall_with_slips_and_are_shared_among_candidates(vault: Words) -> None:
    one, two = (expand.variants(word, vault)[0].weight for word in ("токенезация", "токенезацыя"))
    assert one > two > 0
    alone = expand.variants("кожка", Words(["кошка"]))[0].weight
    assert expand.variants("кожка", Words(["кошка кожа"]))[0].weight == pytest.approx(alone / 2)


def test_of_words_as_near_the_one_with_the_same_first_letter_is_meant() -> None:
    assert [one.word for one in expand.variants("мошка", Words(["кошка мышка"]))] == ["мышка"]
    assert _best("окшка", Words(["кошка"])) == ("кошка", "typo")  # the first two letters swapped


def test_a_question_is_expanded_word_by_word_in_its_order(vault: Words) -> None:
    found = expand.expand("что такое tokenizaciya, ghbdtn? и k.,jdm в e-mail", vault)
    assert [(word, others[0].word) for word, others in found] == [
        ("tokenizaciya", "токенизация"), ("ghbdtn", "привет"), ("k.,jdm", "любовь"), ("e-mail", "email"),
    ]  # fmt: skip


def test_each_variant_is_a_word_or_a_stem_of_the_vault(example: Words) -> None:
    rng = random.Random(7)
    for word in rng.sample(sorted(example.count), 150):
        for variant in expand.variants(_slip(rng, word), example):
            assert example.df(variant.word) or example.stem_df(text.stem(variant.word))
            assert 0 < variant.weight <= 1


def _slip(rng: random.Random, word: str) -> str:
    letter, place = rng.choice(word), rng.randrange(len(word))
    return rng.choice([word[:place] + word[place + 1 :], word[:place] + letter + word[place + 1 :], word[:place] + letter + word[place:]])


@pytest.mark.parametrize(("shortest", "longest", "least"), [(5, 6, 0.6), (7, 30, 0.9)])
def test_most_slips_in_the_words_of_a_real_vault_are_undone(example: Words, shortest: int, longest: int, least: float) -> None:
    rng = random.Random(3)
    pool = [word for word, count in example.count.items() if count > 2 and shortest <= len(word) <= longest and word.isalpha()]
    tried = undone = 0
    for word in rng.choices(pool, k=200):
        typed = _slip(rng, word)
        if example.df(typed) or example.stem_df(text.stem(typed)):
            continue  # a word again, or the same word with another ending
        tried += 1
        undone += any(text.stem(variant.word) == text.stem(word) for variant in expand.variants(typed, example))
    assert tried > 100
    assert undone / tried > least


@pytest.mark.parametrize("letters", [spelling._LATIN, spelling._CYRILLIC, spelling._BENGALI])
def test_one_slip_gives_all_words_a_letter_away(letters: str) -> None:
    word = letters[:4]
    near = set(spelling.one_slip(word))
    assert {word[1:], word[1] + word[0] + word[2:], letters[5] + word, word[:-1] + letters[6], word + letters[7]} <= near


@given(st.text(max_size=30))
def test_any_question_has_variants_or_none(said: str) -> None:
    for word, others in expand.expand(said, Words([SAID])):
        assert word
        assert others


@pytest.mark.parametrize(
    "said", ["zhshchyuya" * 5, "a" * 10_000, "k.," * 3_000, "qwertyuiop " * 2_000, "ক্ষ" * 8, "aB" * 3_000, "a_" * 3_000, "е-" * 3_000]
)
def test_odd_questions_cost_bounded_work(vault: Words, said: str) -> None:
    start, vault.asked = time.process_time(), 0
    expand.expand(said, vault)
    assert time.process_time() - start < 0.5
    assert vault.asked < 20_000


def test_a_question_of_unknown_words_is_expanded_in_milliseconds(example: Words) -> None:
    def spent(number: int) -> float:
        said = f"vosproizvedenie{'abcdef'[number]} токенезацы{'абвгде'[number]} predstavlen{'abcdef'[number]} kolichest{'abcdef'[number]}"
        start = time.process_time()
        expand.expand(said, example)
        return time.process_time() - start

    assert sorted(map(spent, range(6)))[2] < 0.03  # 5 ms on an idle core; ours may be shared


# -- synonyms


def test_neighbours_are_the_words_above_the_threshold_best_first() -> None:
    words = ["вода", "река", "хлеб", "ноль", "ручей"]
    vectors = embed.unit(np.array([[2, 0], [1, 1], [0, 3], [0, 0], [5, 1]], np.float32))
    found = expand.neighbours(words, vectors, np.array([7, 0], np.float32))
    assert [word for word, _ in found] == ["вода", "ручей", "река"]
    assert found[0][1] == pytest.approx(1.0)
    assert [word for word, _ in expand.neighbours(words, vectors, np.array([1, 0], np.float32), most=1)] == ["вода"]
    assert [word for word, _ in expand.neighbours(words, vectors, np.array([1, 0], np.float32), least=0.9)] == ["вода", "ручей"]
    assert expand.neighbours(words, vectors, np.zeros(2, np.float32)) == []
    assert expand.neighbours([], np.zeros((0, 2), np.float32), np.ones(2, np.float32)) == []


class Near:
    """An embedder of words by a table, which counts how often it is asked."""

    def __init__(self, fingerprint: str, table: dict[str, tuple[float, ...]]) -> None:
        self.fingerprint, self.table, self.asked = fingerprint, table, 0

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        self.asked += 1
        return embed.unit(np.array([self.table.get(word, (0.0, 0.0)) for word in texts], np.float32).reshape(len(texts), 2))


class Held:
    """A lexicon of these words, the most frequent first."""

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)

    def frequent(self, most: int) -> list[str]:
        return self.words[:most]


TABLE = {
    "мука": (1, 0),
    "закваска": (1, 0.1),
    "мукой": (1, 0),
    "ржаная": (1, 0.5),
    "который": (1, 0),
    "2025": (1, 0),
    "#мука": (1, 0),
    "река": (0, 1),
}


def synonyms(text: str, table: dict[str, tuple[float, ...]] = TABLE, least: float = 0.6) -> dict[str, float]:
    return expand.synonyms(text, Held(list(table)), Near(repr(sorted(table.items())), table), least)


def test_synonyms_are_near_words_that_share_no_4_gram_with_the_word_and_say_something() -> None:
    found = synonyms("Мука?")
    assert list(found) == ["закваска", "ржаная"]  # мукой is another form, который and 2025 say nothing
    assert found["закваска"] == pytest.approx(1 / 1.01**0.5)
    assert list(synonyms("мука", least=0.95)) == ["закваска"]
    assert synonyms("мука и закваска") == {"ржаная": pytest.approx(found["ржаная"], abs=0.1)}  # what is asked for is no synonym


@pytest.mark.parametrize(
    "said", ["", "?!", "который", "2025", "неизвестное", "ab", " ".join(f"слово{'абвгдежзиклмн'[n]}" for n in range(13)) + " мука"]
)
def test_what_has_no_synonyms_has_none(said: str) -> None:
    assert synonyms(said) == {}
    assert synonyms(said, {}) == {}


def test_a_word_has_few_synonyms_and_the_nearest() -> None:
    table: dict[str, tuple[float, ...]] = {"мука": (1, 0)} | {f"{'бвгджзклмн'[n] * 5}": (1, n / 10) for n in range(9)}
    assert list(synonyms("мука", table)) == ["ббббб", "ввввв", "ггггг"]


def test_the_words_of_the_vault_are_embedded_once_for_each_embedder() -> None:
    first, second = Near("first", TABLE), Near("second", {**TABLE, "закваска": (0.0, 1.0)})
    for _ in range(3):
        assert "закваска" in expand.synonyms("мука", Held(list(TABLE)), first)
    assert first.asked == 4  # three questions and the vault
    assert "закваска" not in expand.synonyms("мука", Held(list(TABLE)), second)


SENTENCES = [
    "Мука и закваска лежат в погребе рядом.",
    "Закваска любит тёплую воду, мука тоже.",
    "Хлеб: мука, закваска, соль.",
    "Насос гудит у колодца.",
]


@pytest.fixture
def kitchen(tmp_path: Path) -> Iterator[tuple[Ledger, Path, MemorySettings]]:
    settings = MemorySettings(dims=16, grams=0, dense=0, near=0, used=0, diversity=0)
    with Ledger(tmp_path / "ledger.db") as ledger:
        for number, said in enumerate(SENTENCES * 2):
            stored.put(ledger, f"n{number}.md", f"{said} Запись {number}.")
        stored.put(ledger, "только.md", "Закваска поднялась за ночь.")
        stored.put(ledger, "лодка.md", "Лодка стоит у причала.")
        remember.refresh(ledger, tmp_path / "memory", settings)
        yield ledger, tmp_path / "memory", settings


def test_the_most_frequent_words_are_those_of_several_passages(kitchen: tuple[Ledger, Path, MemorySettings]) -> None:
    index = kitchen[0].index
    every = index.frequent(1_000)
    assert every.index("закваска") < every.index("соль")
    assert "поднялась" not in every
    assert index.frequent(3) == every[:3]
    assert index.frequent(0) == []


def test_a_synonym_finds_what_the_word_does_not_but_only_if_it_is_asked_for(kitchen: tuple[Ledger, Path, MemorySettings]) -> None:
    ledger, folder, settings = kitchen
    plain = {hit.path: hit.score for hit in recall.recall(ledger, folder, settings, "мука", 20)}
    wider = {hit.path: hit.score for hit in recall.recall(ledger, folder, settings.model_copy(update={"synonyms": 0.5}), "мука", 20)}
    assert "только.md" not in plain
    assert 0 < wider["только.md"] < min(score for path, score in wider.items() if path in plain)
    assert "лодка.md" not in wider
    assert MemorySettings().synonyms == 0.0


def test_only_the_vaults_own_embedder_has_synonyms(kitchen: tuple[Ledger, Path, MemorySettings], monkeypatch: pytest.MonkeyPatch) -> None:
    ledger, folder, settings = kitchen
    settings = settings.model_copy(update={"synonyms": 0.5})
    monkeypatch.setattr(live, "embedder", lambda *given: (_ for _ in ()).throw(ValueError("damaged")))
    assert "только.md" not in {hit.path for hit in recall.recall(ledger, folder, settings, "мука", 20)}
    monkeypatch.undo()
    about = json.loads(ledger.get(live.LIVE) or "")
    ledger.set(live.LIVE, json.dumps({**about, "spec": "st:some"}))
    monkeypatch.setattr(live, "embedder", lambda *given: object())
    monkeypatch.setattr(expand, "synonyms", lambda *given: pytest.fail("asked"))
    assert recall.recall(ledger, folder, settings, "мука", 20)
