"""Splits: what is held out stays held out as a vault grows, in the words in which it is promised."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vaultllm import splits

SHARES = {"val": 0.1, "test": 0.05, "newest": 0.1}
DAYS = st.one_of(st.just(""), st.dates().map(lambda day: day.isoformat()))
VAULTS = st.dictionaries(st.text("абвxyz /", min_size=1, max_size=12), DAYS, max_size=60)


def test_each_part_gets_about_its_share():
    sides = [splits.split_of(f"Заметки/{number}.md", 0.1, 0.05) for number in range(4000)]
    assert 0.08 < sides.count("val") / 4000 < 0.12
    assert 0.035 < sides.count("test") / 4000 < 0.065


def test_changing_one_share_moves_no_note_into_or_out_of_the_other_part():
    for number in range(500):
        path = f"{number}.md"
        assert (splits.split_of(path, 0.1, 0.05) == "test") == (splits.split_of(path, 0.3, 0.05) == "test")
        assert (splits.split_of(path, 0.1, 0.05) == "val") == (splits.split_of(path, 0.1, 0.2) == "val")


def test_the_newest_tenth_is_not_trained_on_and_undated_notes_are_never_new():
    times = {f"{number}.md": f"2025-{number // 28 + 1:02}-{number % 28 + 1:02}" for number in range(100)} | {"undated.md": ""}
    parts = splits.parts(times, val=0.0, test=0.0, newest=0.1)
    assert {note for note, part in parts.items() if part.split == "val"} == {f"{number}.md" for number in range(90, 100)}
    assert all(part.new == (part.split == "val") for part in parts.values())
    assert {part.split for part in splits.parts(times, val=0.0, test=0.0, newest=0.0).values()} == {"train"}


@given(VAULTS, VAULTS)
def test_what_the_hash_holds_out_stays_there_whatever_else_comes_or_goes(vault: dict[str, str], more: dict[str, str]):
    before, after = splits.parts(vault, **SHARES), splits.parts(vault | more, **SHARES)
    for note, part in before.items():
        if part.split != "train" and not part.new:
            assert after[note] == part
        if after[note].split == "train":
            assert part.split == "train" or part.new


@given(VAULTS, VAULTS)
def test_when_newer_notes_come_no_note_goes_from_train_to_held_out(vault: dict[str, str], more: dict[str, str]):
    last = max(vault.values(), default="")
    newer = {note: f"{last or '2020-01-01'}T23:59:{number % 60:02}" for number, note in enumerate(more) if note not in vault}
    before, after = splits.parts(vault, **SHARES), splits.parts(vault | newer, **SHARES)
    for note, part in before.items():
        if part.split == "train":
            assert after[note].split == "train"


@given(VAULTS, VAULTS)
def test_when_undated_notes_come_nothing_moves(vault: dict[str, str], more: dict[str, str]):
    grown = vault | {note: "" for note in more if note not in vault}
    after = splits.parts(grown, **SHARES)
    assert all(after[note] == part for note, part in splits.parts(vault, **SHARES).items())


@given(VAULTS)
def test_with_two_notes_or_more_neither_side_is_empty_and_what_falls_right_is_left_alone(vault: dict[str, str]):
    parts = splits.parts(vault, **SHARES)
    settled = splits.settled(parts, list(vault))
    assert settled.keys() == vault.keys()
    if len(vault) > 1:
        assert {"train", "val"} <= set(settled.values())
    elif vault:
        assert set(settled.values()) == {"train"}
    moved = [note for note, part in parts.items() if settled[note] != part.split]
    assert len(moved) <= 2
    if {"train", "val"} <= {part.split for part in parts.values()}:
        assert not moved


@given(st.lists(st.integers(0, 10_000), max_size=30), st.sampled_from([0.05, 0.1, 0.3]))
def test_sources_cut_to_the_largest_share_hold_no_more_than_it(sizes: list[int], share: float):
    most = splits.largest(sizes, share)
    cut = [min(size, most) for size in sizes]
    if most < float("inf"):
        assert max(cut) == pytest.approx(share * sum(cut))
        assert max(sizes) > most
    elif sum(sizes):  # nothing to cut, or not possible: fewer sources with text than 1 / share, or next to nothing in the others
        fits = max(sizes) <= share * sum(sizes)
        assert fits or len([size for size in sizes if size]) * share <= 1.0 + 1e-9
