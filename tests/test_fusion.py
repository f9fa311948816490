"""What each leg of recall counts: chosen on a vault's own pairs where that surely helps, the default and the user's word elsewhere."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from tests.stored import put
from vaultllm import recall, remember
from vaultllm.bench import asking
from vaultllm.config import MemorySettings
from vaultllm.ledger import Ledger
from vaultllm.memory import embed, fusion
from vaultllm.memory.fusion import DEFAULT, Choice, Weights

SETTINGS = MemorySettings(dims=16)
NAME = "told-1"


class Told:
    """An embedder that is told what texts mean: the direction of a note for what holds one of its words, noise for the rest."""

    dims, fingerprint = 16, NAME

    def __init__(self, known: Mapping[str, int] | None = None) -> None:
        self.known = known or {}

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        rows = []
        for text in texts:
            note = next((self.known[word] for word in text.lower().replace(".", " ").split() if word in self.known), None)
            seed = sum(map(ord, text)) * 31 + len(text) if note is None else note
            rows.append(np.random.default_rng(seed).normal(size=self.dims))
        return embed.unit(np.array(rows, np.float32).reshape(-1, self.dims))


def stem(draw: random.Random, syllables: int = 4) -> str:
    return "".join(draw.choice("bdgklmnprst") + draw.choice("aeiou") for _ in range(syllables))


def headed(notes: Mapping[str, Sequence[tuple[str, str]]]) -> dict[str, str]:
    """Notes of sections."""
    return {path: "\n\n".join(f"## {heading}\n\n{body}" for heading, body in sections) + "\n" for path, sections in notes.items()}


def plain(count: int, said: bool = True) -> tuple[dict[str, str], dict[str, int]]:
    """Notes of two sections; a heading says a rare word of what is below (`said`), or another one for it, among words that all share.

    And of which section each rare word is.
    """
    draw = random.Random(3)
    shared = [stem(draw) for _ in range(40)]
    notes, known = {}, {}
    for number in range(count):
        sections = []
        for part in range(2):
            own = [stem(draw) for _ in range(2)]
            known |= dict.fromkeys(own, 2 * number + part)
            body = " ".join([*draw.sample(shared, 9), own[0], *draw.sample(shared, 6)])
            heading = " ".join([own[0 if said else 1], *draw.sample(shared, 5)])
            sections.append((heading, f"{body.capitalize()}."))
        notes[f"{number}.md"] = sections
    return headed(notes), known


def slipped(count: int) -> dict[str, str]:
    """As `plain`, but what a heading shares with its text is spelled otherwise each time, so that only pieces of words agree."""
    draw = random.Random(4)
    shared = [stem(draw) for _ in range(60)]
    notes = {}
    for number in range(count):
        sections = []
        for _ in range(2):
            own = [stem(draw, 5) for _ in range(5)]
            body = " ".join([*draw.sample(shared, 6), *(f"{stem(draw, 2)}{one}{stem(draw, 2)}" for one in own), *draw.sample(shared, 4)])
            heading = " ".join([*(f"{stem(draw, 2)}{one}{stem(draw, 2)}" for one in own), *draw.sample(shared, 3)])
            sections.append((heading, f"{body.capitalize()}."))
        notes[f"{number}.md"] = sections
    return headed(notes)


def filled(ledger: Ledger, notes: Mapping[str, str], embedder: embed.Embedder) -> None:
    for path, text in notes.items():
        put(ledger, path, text)
    rows = ledger.texts(ledger.without_vector(NAME))
    ledger.put_vectors(NAME, [slot for slot, _, _ in rows], embedder.embed([f"{context}\n{text}" for _, text, context in rows]), tell=False)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    with Ledger(tmp_path / "ledger.db") as opened:
        yield opened


def chosen(ledger: Ledger, notes: Mapping[str, str], embedder: embed.Embedder) -> Choice:
    filled(ledger, notes, embedder)
    return fusion.fit(ledger, embedder, NAME, SETTINGS)


# -- what is chosen


def test_vectors_that_know_nothing_give_way_to_words(ledger: Ledger) -> None:
    choice = chosen(ledger, plain(40)[0], Told())
    assert choice.is_learnt
    assert choice.weights.dense < DEFAULT.dense / sum(DEFAULT) < DEFAULT.words / sum(DEFAULT) < choice.weights.words
    assert choice.default < choice.chosen
    assert 0 < choice.low < choice.chosen - choice.default < choice.high
    assert (choice.pairs, choice.notes) == (80, 40)


def test_words_that_are_never_spelled_alike_give_way_to_their_pieces(ledger: Ledger) -> None:
    choice = chosen(ledger, slipped(30), Told())
    assert choice.weights.grams > max(0.5, choice.weights.words, choice.weights.dense)


def test_vectors_that_know_other_words_for_it_count_more(ledger: Ledger) -> None:
    notes, known = plain(30, said=False)
    assert chosen(ledger, notes, Told(known)).weights.dense >= 0.5


def test_no_leg_is_ever_left_out() -> None:
    points = fusion.grid()
    assert points[0].tolist() == pytest.approx([one / sum(DEFAULT) for one in DEFAULT])
    assert points[1:].tolist() == fusion.grid(fusion.OWN)[1:].tolist()
    assert points.min() == pytest.approx(0.1)
    assert points.sum(axis=1) == pytest.approx(1)
    assert len(points) == 37 == len({tuple(one.round(6)) for one in points})


def test_sentences_cut_from_their_passages_alone_choose_nothing(ledger: Ledger) -> None:
    notes, known = plain(60, said=False)
    bodies = {path: text.replace("## ", "").replace("\n\n", " ") for path, text in notes.items()}
    choice = chosen(ledger, bodies, Told(known))
    assert choice.pairs >= fusion.FEWEST_PAIRS
    assert (choice.weights, choice.chosen) == (DEFAULT, None)
    assert "no cut sentences" in choice.reason


def test_the_vaults_own_embedder_is_not_asked_for_what_it_has_read_together(ledger: Ledger) -> None:
    notes, _ = plain(40, said=False)  # nothing but chance joins a heading and its text, and having read both
    for path, text in notes.items():
        put(ledger, path, text)
        put(ledger, f"copy/{path}", text)  # which is read without the heading only in one place
    rows = [(slot, f"{context}\n{text}") for slot, text, context in ledger.texts(ledger.without_vector(NAME))]
    own = embed.VaultEmbedder.fit([text for _, text in rows], 64)
    ledger.put_vectors(NAME, [slot for slot, _ in rows], own.embed([text for _, text in rows]), tell=False)
    assert fusion.fit(ledger, own, NAME, SETTINGS, made="").weights.dense > 0.5  # the trap is there
    assert not fusion.fit(ledger, own, NAME, SETTINGS, made="lsa").is_learnt


@pytest.mark.parametrize("made", ["weights", "table"])
def test_an_embedder_that_learns_from_pairs_is_asked_those_of_notes_that_it_has_not_seen(ledger: Ledger, made: str) -> None:
    notes, _ = plain(120)
    for path, text in notes.items():
        put(ledger, path, text)
    own = embed.VaultEmbedder.fit([f"{context}\n{text}" for _, text, context in ledger.texts(ledger.without_vector(NAME))], 32)
    choice = fusion.fit(ledger, own, NAME, SETTINGS, made=made)
    held = {path for path in notes if fusion.pairs.is_held_out(path)}
    assert choice.notes == len(held) < 40
    assert choice.pairs == 2 * len(held)
    assert fusion.fit(ledger, own, NAME, SETTINGS, made="lsa").notes == 120


def test_the_same_vault_gives_the_same_choice(ledger: Ledger) -> None:
    first = chosen(ledger, plain(40)[0], Told())
    assert fusion.fit(ledger, Told(), NAME, SETTINGS) == first


@pytest.mark.parametrize(("notes", "most"), [(8, 300), (29, 300), (40, 59), (0, 300)])
def test_too_few_pairs_leave_the_default(ledger: Ledger, notes: int, most: int) -> None:
    filled(ledger, plain(notes)[0], Told())
    choice = fusion.fit(ledger, Told(), NAME, SETTINGS, most=most)
    assert (choice.weights, choice.default, choice.chosen) == (DEFAULT, None, None)
    assert choice.pairs < fusion.FEWEST_PAIRS
    assert "too few" in choice.reason


def test_pairs_of_few_notes_leave_the_default(ledger: Ledger) -> None:
    sections = [text for _, text in sorted(plain(40)[0].items())]
    filled(ledger, {f"{place}.md": "\n".join(sections[10 * place : 10 * place + 10]) for place in range(4)}, Told())
    choice = fusion.fit(ledger, Told(), NAME, SETTINGS)
    assert (choice.weights, choice.pairs, choice.notes) == (DEFAULT, 80, 4)


def pair(kind: str, note: str, number: int = 0, source: tuple[int, ...] = (1, 1)) -> fusion.pairs.Pair:
    return fusion.pairs.Pair(kind, f"{kind} {note} {number}", "", note, note, (1,), source)


def test_what_is_better_by_chance_is_seldom_kept() -> None:
    asked = [pair("question", str(number // 3), number) for number in range(120)]
    kept = [fusion._judged("", asked, np.random.default_rng(seed).random((120, 37))).is_learnt for seed in range(60)]
    assert sum(kept) <= 4


def test_what_is_a_little_better_everywhere_is_kept() -> None:
    asked = [pair("question", str(number // 3), number) for number in range(120)]
    found = np.tile(np.random.default_rng(0).random((120, 1)), 37)
    found[:, 9] += 0.05
    choice = fusion._judged("", asked, found)
    assert choice.weights == Weights(*fusion.grid()[9].tolist())
    assert (choice.low, choice.chosen - choice.default, choice.high) == pytest.approx((0.05, 0.05, 0.05))


def test_of_equally_good_weights_those_nearest_to_the_default_are_taken() -> None:
    asked = [pair("question", str(number), number) for number in range(80)]
    found = np.tile(np.random.default_rng(0).random((80, 1)), 37)
    away = np.linalg.norm(fusion.grid() - fusion.grid()[0], axis=1)
    far, near = int(away.argmax()), int(np.argsort(away)[20])
    found[:, [far, near]] += 0.2
    found[:2, far] += 0.2, -0.1  # the best, by a single question
    assert fusion._nearest(asked, found, fusion.grid()) == near


def test_each_kind_counts_alike_and_a_rare_one_by_its_number() -> None:
    asked = [pair("sentence", "a", number) for number in range(200)] + [pair("link", "b", number) for number in range(20)]
    asked += [pair("heading", "c", number) for number in range(40)] + [pair("heading", "c", number, (1,)) for number in range(10)]
    share, kinds = fusion._shares(asked), [fusion.kind_of(one) for one in asked]
    by_kind = {kind: sum(its for its, one in zip(share, kinds, strict=True) if one == kind) for kind in kinds}
    assert by_kind == pytest.approx({"sentence": 2 / 7, "link": 2 / 7, "heading": 2 / 7, "title": 1 / 7})


def test_all_kinds_are_asked_and_no_passage_twice_without_its_query(ledger: Ledger) -> None:
    about = "The pump starts when the soil is dry, and the tank on the roof is full by noon. "
    for number in range(30):
        put(
            ledger,
            f"{number}.md",
            f"# Bed {number}\n\n{about}Seedlings of row {number} are watered at dawn.\n\nSee [[{number + 1}]] for it.\n",
        )
    asked = fusion._asked(fusion.pairs.pairs(ledger, 1000), 30)
    cut = [one.slots[0] for one in asked if not one.hidden]
    assert len(cut) == len(set(cut))
    assert not set(cut) & {slot for one in asked if one.hidden for slot in one.slots}
    assert len(asked) <= 30
    assert {fusion.kind_of(one) for one in asked} >= {"link"}


@pytest.mark.parametrize(
    ("kind", "query", "note", "slots", "source", "hidden"),
    [
        ("heading", "Pump", "a.md", (1,), (1,), [2]),  # it stands in the context of 2, not of 3; what b.md says of it is said for itself
        ("heading", "Tank", "a.md", (3,), (2, 3), [2]),  # that begins in the passage before
        ("link", "pump of the neighbour", "b.md", (1,), (4,), [4, 5]),  # no passage of the note with the link
        ("question", "where is the tank?", "a.md", (3,), (2,), [2]),
        ("sentence", "dry soil", "a.md", (1,), (1,), []),
    ],
)
def test_what_holds_the_query_by_construction_is_no_rival(
    kind: str, query: str, note: str, slots: tuple[int, ...], source: tuple[int, ...], hidden: list[int]
) -> None:
    said = ["dry soil", "pump\nwhere is the", "noon", "the pump of the neighbour", "rain", "pump"]
    places = {"a.md": [0, 1, 2], "b.md": [3, 4], "c.md": [5]}
    nothing = np.zeros((6, 1))
    copy = fusion._Copy(np.arange(1, 7), places, said, None, nothing, nothing, SETTINGS)  # type: ignore[arg-type]
    out = copy.hidden(fusion.pairs.Pair(kind, query, "", note, note, slots, source))
    assert copy.slots[out].tolist() == hidden


# -- used


def test_what_was_chosen_counts_for_the_embedder_that_it_was_chosen_with(ledger: Ledger) -> None:
    fusion.save(ledger, Choice(NAME, Weights(0.7, 0.2, 0.1), 80, 40, 0.5, 0.6, 0.05, 0.15))
    assert fusion.weights(ledger, SETTINGS, NAME) == (0.7, 0.2, 0.1)
    assert fusion.weights(ledger, SETTINGS, "another") == fusion.OWN
    assert fusion.weights(ledger, SETTINGS, "") == fusion.OWN
    assert fusion.load(ledger, NAME).reason.startswith("chosen: +0.100 nDCG@10 (+0.050 … +0.150)")


@pytest.mark.parametrize(
    ("said", "expected"), [({"words": 0.9}, (0.9, 0.5, 0.3)), ({"dense": 0.3}, DEFAULT), ({"grams": 0.0}, (0.5, 0.0, 0.3))]
)
def test_a_weight_that_the_user_has_set_wins_though_it_be_the_default(ledger: Ledger, said: dict[str, float], expected: tuple) -> None:
    fusion.save(ledger, Choice(NAME, Weights(0.7, 0.2, 0.1), 80, 40, 0.5, 0.6, 0.05, 0.15))
    assert fusion.weights(ledger, MemorySettings.model_validate(said), NAME) == expected
    assert fusion.weights(ledger, SETTINGS.model_copy(update=said), NAME) == expected


GOOD = Choice(NAME, Weights(0.7, 0.2, 0.1), 80, 40, 0.5, 0.6, 0.05, 0.15).to_dict()


@pytest.mark.parametrize(
    "stored",
    [
        *["", "null", "[]", "{", "7", '"x"', "[" * 5000, json.dumps({})],
        *(json.dumps({**GOOD, "weights": one}) for one in (None, 7, [1, 2, 3], {"words": 1}, {"words": "a", "grams": 1, "dense": 1})),
        *(json.dumps({**GOOD, "weights": {"words": one, "grams": 1, "dense": 1}}) for one in (0, -1, float("nan"), float("inf"))),
        *(json.dumps({**GOOD, name: "x"}) for name in ("pairs", "notes", "default", "chosen", "low", "high", "version")),
        *(json.dumps({**GOOD, name: None}) for name in ("pairs", "low", "fingerprint")),
        json.dumps({**GOOD, "pairs": float("inf")}),
        json.dumps({**GOOD, "version": fusion.VERSION + 1}),
    ],
)
def test_damaged_meta_is_the_default(ledger: Ledger, stored: str) -> None:
    ledger.set("fusion", stored)
    assert fusion.weights(ledger, SETTINGS, NAME) == fusion.OWN
    assert fusion.described(ledger, NAME, MemorySettings())["learnt"] is False
    assert "default" in fusion.described(ledger, NAME, MemorySettings())["reason"]
    assert fusion.described(ledger, NAME, MemorySettings(dense=0.1))["reason"] == "as set in config.toml"


def test_what_is_stored_is_read_again() -> None:
    assert Choice.from_dict(json.loads(json.dumps(GOOD))).to_dict() == GOOD
    few = Choice(NAME, DEFAULT, 3, 2)
    assert Choice.from_dict(json.loads(json.dumps(few.to_dict()))) == few


# -- where it is used


@pytest.fixture
def memory(ledger: Ledger, tmp_path: Path) -> Path:
    """The folder of a memory of a few notes."""
    for path, text in plain(4)[0].items():
        put(ledger, path, text)
    remember.refresh(ledger, tmp_path / "memory", SETTINGS)
    return tmp_path / "memory"


def parts(ledger: Ledger, folder: Path, settings: MemorySettings) -> dict[str, float]:
    """What the best hit for its own text is made of: it is the best of each leg."""
    plainly = settings.model_copy(update={"near": 0.0, "links": 0.0, "tags": 0.0, "terms": 0.0, "heading": 0.0, "named": 0.0})
    (slot,) = ledger.without_vector("")[:1]
    ((_, text, _),) = ledger.texts([slot])
    return recall.ranked(ledger, folder, plainly, text, 1)[0].why


def test_recall_weighs_by_what_was_chosen(ledger: Ledger, memory: Path) -> None:
    fingerprint = remember.fitted(ledger)["fingerprint"]
    assert parts(ledger, memory, SETTINGS) == pytest.approx({"words": 5 / 11, "grams": 5 / 11, "dense": 1 / 11}, abs=1e-6)
    fusion.save(ledger, Choice(fingerprint, Weights(0.7, 0.2, 0.1), 80, 40, 0.5, 0.6, 0.05, 0.15))
    assert parts(ledger, memory, SETTINGS) == pytest.approx({"words": 0.7, "grams": 0.2, "dense": 0.1}, abs=1e-6)
    assert parts(ledger, memory, MemorySettings(dims=16, dense=0.0)) == pytest.approx({"words": 0.5, "grams": 0.5}, abs=1e-6)
    ledger.set("fusion", "{")
    assert parts(ledger, memory, SETTINGS)["words"] == pytest.approx(5 / 11, abs=1e-6)


def test_the_vaults_own_vectors_count_less_than_those_of_a_model_that_knows_more(ledger: Ledger, memory: Path) -> None:
    assert fusion.weights(ledger, SETTINGS, "another", "vault") == fusion.OWN
    assert fusion.weights(ledger, SETTINGS, "another", "st:e5") == DEFAULT
    assert parts(ledger, memory, SETTINGS)["dense"] == pytest.approx(1 / 11, abs=1e-6)
    assert parts(ledger, memory, MemorySettings(dims=16, dense=0.3))["dense"] == pytest.approx(3 / 13, abs=1e-6)  # who sets it gets it
    about = fusion.described(ledger, "another", SETTINGS, "st:e5")
    assert (about["dense"], about["learnt"]) == (0.3, False)
    assert fusion.described(ledger, "another", SETTINGS)["dense"] == 0.1


def test_the_benchmarks_arms_with_all_legs_have_what_was_chosen_and_one_leg_is_alone(ledger: Ledger, memory: Path) -> None:
    fusion.save(ledger, Choice(remember.fitted(ledger)["fingerprint"], Weights(0.7, 0.2, 0.1), 80, 40, 0.5, 0.6, 0.05, 0.15))
    arms = asking.halves(SETTINGS)
    assert parts(ledger, memory, arms["no resonance"]) == pytest.approx({"words": 0.7, "grams": 0.2, "dense": 0.1}, abs=1e-6)
    for name, legs in {"stems": {"words"}, "grams": {"grams"}, "dense": {"dense"}, "words": {"words", "grams"}}.items():
        assert set(parts(ledger, memory, arms[name])) == legs
    assert parts(ledger, memory, asking.only(SETTINGS, asking.LEGS, ("near",)))["words"] == pytest.approx(0.7, abs=0.1)


def test_a_memory_that_is_made_anew_says_what_came_of_it(ledger: Ledger, memory: Path) -> None:
    about = remember.described(ledger, SETTINGS)["fusion"]
    assert about == fusion.described(ledger, remember.fitted(ledger)["fingerprint"], SETTINGS)
    assert (about["learnt"], about["words"], about["default"]) == (False, 0.5, None)
    assert "too few held-out pairs" in about["reason"]
    assert json.dumps(about)
    assert json.loads(ledger.get("fusion"))["fingerprint"] == remember.fitted(ledger)["fingerprint"]


@pytest.mark.parametrize("made", ["", "lsa"])
def test_what_another_process_takes_away_meanwhile_is_no_error(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, made: str) -> None:
    filled(ledger, plain(40)[0], Told())
    read = fusion.pairs.pairs

    def then_gone(*args) -> list[fusion.pairs.Pair]:
        found = read(*args)
        for number in range(15):
            ledger.remove_note(f"{number}.md")
        return found

    monkeypatch.setattr(fusion.pairs, "pairs", then_gone)
    choice = fusion.fit(ledger, Told(), NAME, SETTINGS, made=made)
    assert (choice.notes, ledger.counts()["notes"]) == (40, 25)
