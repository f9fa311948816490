"""Scenes -> examples: every scene is used or accounted for, and nothing that may not be learnt is."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vaultllm import dataset, exporting, splits
from vaultllm.errors import DataError
from vaultllm.schema import Role, Scene, Source, Turn
from vaultllm.text import sha


def turns(*said: tuple[Role, str]) -> tuple[Turn, ...]:
    return tuple(Turn(role, text, (i + 1, i + 1)) for i, (role, text) in enumerate(said))


def talk(name: str, *said: tuple[Role, str], path: str = "Chats/a.md", **more: Any) -> Scene:
    spoken = turns(*said)
    identity = sha(*(part for turn in spoken for part in (turn.role, turn.text)))
    return Scene(name, identity, "dialogue", more.pop("title", "A talk"), (), spoken, Source(path, (1, 2)), "en", "imported", **more)


def prose(name: str, text: str, path: str = "Notes/a.md", title: str = "", **more: Any) -> Scene:
    trust = more.pop("trust", "own")
    return Scene(name, sha(text), "prose", title, (), turns(("user", text)), Source(path, (1, 2)), "en", trust, **more)


def only(data: dataset.Dataset) -> list[tuple[str, str, bool]]:
    (example,) = data.examples
    return [(message.role, message.text, message.learn) for message in example.messages]


def test_only_the_assistants_turns_of_a_talk_are_learnt():
    data = dataset.build([talk("a", ("user", "q"), ("assistant", "r"), ("user", "q2"), ("assistant", "r2"))], val=0.1)
    assert only(data) == [("user", "q", False), ("assistant", "r", True), ("user", "q2", False), ("assistant", "r2", True)]
    assert data.examples[0].form == "dialogue"


def test_an_answer_given_anew_keeps_the_last_and_says_so():
    data = dataset.build([talk("a", ("user", "q"), ("assistant", "bad"), ("assistant", "good"))], val=0.1)
    assert only(data) == [("user", "q", False), ("assistant", "good", True)]
    (lost,) = data.dropped
    assert (lost.scene, lost.whole) == ("a", False)
    assert "anew" in lost.reason


def with_turns(scene: Scene, *changes: dict[str, Any]) -> Scene:
    """The scene with fields of its turns changed, in order."""
    return replace(scene, turns=tuple(replace(turn, **change) for turn, change in zip(scene.turns, changes, strict=True)))


def test_a_variant_is_neither_learnt_nor_context_and_the_last_one_is_the_rejected_answer():
    said = talk("a", ("user", "q"), ("assistant", "good"), ("assistant", "bad"), ("assistant", "worse"), ("user", "other q"))
    marks = {"variant_of": "u2"}
    data = dataset.build([with_turns(said, {"uid": "u1"}, {"uid": "u2"}, marks, marks, {"variant_of": "u1"})], val=0.1)
    assert only(data) == [("user", "q", False), ("assistant", "good", True)]
    assert data.examples[0].rejected == "worse"
    assert dataset.counts(data)["pairs"] == 1
    assert [lost.reason for lost in data.dropped] == ["a variant that the talk did not go on with"] * 3
    assert not any(lost.whole for lost in data.dropped)


def test_a_variant_of_an_earlier_answer_or_of_a_question_is_no_pair():
    said = talk("a", ("user", "q"), ("assistant", "r"), ("assistant", "v"), ("user", "q2"), ("assistant", "r2"), ("user", "v2"))
    marks = ({"uid": "u1"}, {"uid": "u2"}, {"variant_of": "u2"}, {"uid": "u3"}, {"uid": "u4"}, {"variant_of": "u4"})
    data = dataset.build([with_turns(said, *marks)], val=0.1)
    assert len(only(data)) == 4
    assert data.examples[0].rejected == ""


def test_the_rejected_answer_is_part_of_what_an_example_is():
    said = talk("a", ("user", "q"), ("assistant", "good"), ("assistant", "bad"))
    with_pair = dataset.build([with_turns(said, {}, {"uid": "u2"}, {"variant_of": "u2"})], val=0.1)
    without = dataset.build([with_turns(said, {}, {"uid": "u2"}, {"variant_of": "u1"})], val=0.1)
    assert with_pair.id != without.id


@pytest.mark.parametrize("code", ["See:\n```python\ndef f():\n return 1\n```", "See:\n\n    return 1", "- a\n  ~~~\n x\n  ~~~"])
def test_an_answer_whose_code_was_damaged_is_context_only(code: str):
    said = talk("a", ("user", "q"), ("assistant", code), ("user", "q2"), ("assistant", "r2"))
    data = dataset.build([with_turns(said, {}, {"lossy": True}, {}, {"lossy": True})], val=0.1)
    assert [(text, learn) for _, text, learn in only(data)] == [("q", False), (code, False), ("q2", False), ("r2", True)]
    assert [lost.reason for lost in data.dropped] == ["the importer damaged its code: read as context, not learnt"]
    sound = dataset.build([said], val=0.1)
    assert [learn for _, _, learn in only(sound)] == [False, True, False, True]


def test_nearly_the_same_is_learnt_once_and_the_reason_says_where():
    scenes = [prose("f", "one two", path="a.md"), prose("g", "one two!", path="b.md", duplicate="f"), prose("h", "three", path="c.md")]
    data = dataset.build(scenes, val=0.1)
    assert sorted(example.path for example in data.examples) == ["a.md", "c.md"]
    assert data.dropped[0].reason == "nearly the same as scene f in a.md"


def test_when_the_first_may_not_be_learnt_the_next_that_is_like_it_is():
    first = replace(prose("f", "one two", path="a.md"), train=False, reason="a template")
    scenes = [first, prose("g", "one two!", path="b.md", duplicate="f"), prose("h", "one two?", path="c.md", duplicate="f")]
    data = dataset.build(scenes, val=0.0001)
    assert [example.path for example in data.examples] == ["b.md"]
    assert {lost.reason for lost in data.dropped} == {"a template", "nearly the same as scene g in b.md"}


def test_two_user_turns_in_a_row_become_one():
    data = dataset.build([talk("a", ("user", "one"), ("user", "two"), ("assistant", "r"))], val=0.1)
    assert only(data) == [("user", "one\n\ntwo", False), ("assistant", "r", True)]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ((("assistant", "hello"),), "without its question"),
        ((("user", "hello"),), "without an answer"),
        ((("system", "be brief"),), "instructions"),
        ((("user", " "), ("assistant", "\n")), "empty"),
    ],
)
def test_a_talk_without_question_and_answer_is_dropped_with_its_reason(said: tuple[tuple[Role, str], ...], reason: str):
    data = dataset.build([talk("a", *said)], val=0.1)
    assert not data.examples
    (lost,) = data.dropped
    assert lost.whole
    assert reason in lost.reason


def test_the_exchange_before_is_context_that_is_not_learnt():
    first = talk("a", ("user", "q1"), ("assistant", "r1"), next="b")
    second = talk("b", ("user", "q2"), ("assistant", "r2"), prev="a")
    data = dataset.build([second, first], val=0.1)
    with_context = next(example for example in data.examples if "b" in example.scenes)
    assert [(m.text, m.learn) for m in with_context.messages] == [("q1", False), ("r1", False), ("q2", False), ("r2", True)]
    assert with_context.scenes == ("a", "b")


@pytest.mark.parametrize("change", [{"train": False, "reason": "private"}, {"trust": "generated"}, {"title": "another talk"}])
def test_a_scene_that_may_not_be_learnt_is_no_context_either(change: dict[str, Any]):
    first = replace(talk("a", ("user", "secret"), ("assistant", "r1"), next="b"), **change)
    second = talk("b", ("user", "q2"), ("assistant", "r2"), prev="a")
    data = dataset.build([first, second], val=0.1)
    b = next(example for example in data.examples if "b" in example.scenes)
    assert [m.text for m in b.messages] == ["q2", "r2"]


def test_a_long_exchange_before_is_left_out_but_its_open_question_is_kept():
    long = talk("a", ("user", "x" * 2000), ("assistant", "r"), ("user", "open?"), next="b")
    answer = talk("b", ("assistant", "closed"), ("user", "thanks"), ("assistant", "welcome"), prev="a")
    data = dataset.build([long, answer], val=0.1)
    b = next(example for example in data.examples if "b" in example.scenes)
    assert [m.text for m in b.messages] == ["open?", "closed", "thanks", "welcome"]
    asks = replace(answer, turns=turns(("user", "q"), ("assistant", "r9")), sha="other")
    b = next(example for example in dataset.build([long, asks], val=0.1).examples if "b" in example.scenes)
    assert [m.text for m in b.messages] == ["q", "r9"]


@pytest.mark.parametrize(
    ("title", "text", "learnt"),
    [
        ("Tea", "Boil water.", "Tea\n\nBoil water."),
        ("Tea", "# Tea\n\nBoil water.", "# Tea\n\nBoil water."),
        ("Tea > Green", "## Green\nBoil water.", "Tea > Green\n\nBoil water."),
        ("Tea", "## Other\nBoil water.", "Tea\n\n## Other\nBoil water."),
        ("", "Boil water.", "Boil water."),
    ],
)
def test_prose_begins_with_its_title_once(title: str, text: str, learnt: str):
    assert only(dataset.build([prose("a", text, title=title)], val=0.1)) == [("user", learnt, True)]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"trust": "generated"}, "our own answer"),
        ({"trust": "clipped"}, "clipped"),
        ({"train": False, "reason": "private note"}, "private note"),
    ],
)
def test_what_may_not_be_learnt_is_named(change: dict[str, Any], reason: str):
    data = dataset.build([replace(prose("a", "text"), **change)], val=0.1)
    assert not data.examples
    assert reason in data.dropped[0].reason


def test_a_text_that_occurs_twice_is_learnt_once_in_the_first_note():
    twice = [prose("z", "same", path="b.md"), prose("y", "same", path="a.md"), prose("x", "other", path="c.md")]
    data = dataset.build(twice, val=0.1)
    assert sorted(example.path for example in data.examples) == ["a.md", "c.md"]
    (lost,) = data.dropped
    assert (lost.scene, lost.path) == ("z", "b.md")
    assert "a.md" in lost.reason


def test_a_note_keeps_its_side_as_the_vault_grows():
    small = dataset.build([prose(f"{i}", f"text {i}", path=f"{i}.md") for i in range(40)], val=0.3)
    large = dataset.build([prose(f"{i}", f"text {i}", path=f"{i}.md") for i in range(400)], val=0.3)
    sides = {example.path: example.split for example in large.examples}
    assert all(sides[example.path] == example.split for example in small.examples)
    assert 0.2 < sum(side == "val" for side in sides.values()) / 400 < 0.4


def test_the_two_spellings_of_one_path_are_on_one_side():
    for i in range(50):
        composed, decomposed = (unicodedata.normalize(form, f"Журнал/й{i}.md") for form in ("NFC", "NFD"))
        assert composed != decomposed
        assert splits.split_of(composed, 0.5) == splits.split_of(decomposed, 0.5)


@pytest.mark.parametrize("share", [0.0001, 0.4999])
def test_neither_side_is_empty_with_two_notes(share: float):
    for i in range(30):
        data = dataset.build([prose("a", "one", path=f"{i}.md"), prose("b", "two", path=f"{i}x.md")], val=share)
        assert {example.split for example in data.examples} == {"train", "val"}


def test_a_single_note_is_trained_on():
    assert [example.split for example in dataset.build([prose("a", "one")], val=0.4999).examples] == ["train"]


SAID = st.lists(
    st.tuples(st.sampled_from(["user", "assistant", "system"]), st.sampled_from(["", "a", "b", "привет"])), min_size=1, max_size=5
)
SCENES = st.lists(
    st.tuples(SAID, st.sampled_from(["dialogue", "prose"]), st.sampled_from(["a.md", "b.md", "c.md"]), st.sampled_from(["own", "clipped"])),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(made=SCENES, seed=st.integers(0, 99))
def test_every_scene_is_used_or_dropped_and_order_does_not_matter(made: list[Any], seed: int):
    scenes = []
    for i, (said, kind, path, trust) in enumerate(made):
        before = f"{i - 1}" if i and made[i - 1][2] == path else ""
        scenes.append(replace(talk(f"{i}", *said, path=path, prev=before), kind=kind, trust=trust))
    data = dataset.build(scenes, val=0.3)
    used = [example.scenes[-1] for example in data.examples]
    gone = [one.scene for one in data.dropped if one.whole]
    assert sorted(used + gone) == sorted(scene.id for scene in scenes)
    assert all(any(message.learn for message in example.messages) for example in data.examples)
    assert all(data.scenes[part] for example in data.examples for part in example.scenes)
    for example in data.examples:
        if example.form == "dialogue":
            assert [m.role for m in example.messages] == ["user", "assistant"] * (len(example.messages) // 2)
    mixed = scenes[:]
    random.Random(seed).shuffle(mixed)
    assert dataset.build(mixed, val=0.3) == data


def sample() -> dataset.Dataset:
    scenes = [
        talk("a", ("user", "q1"), ("assistant", "r1"), next="b"),
        talk("b", ("user", "вопрос"), ("assistant", "ответ"), prev="a"),
        prose("c", "line one\u2028line two\x85 and \ud800 half", path="c.md"),
        prose("d", "clipped", trust="clipped"),
    ]
    return dataset.build(scenes, val=0.2)


def test_a_frozen_dataset_is_read_back_exactly(tmp_path: Path):
    data = sample()
    folder = dataset.write(data, tmp_path)
    assert folder == tmp_path / data.id
    assert dataset.read(folder) == data
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8", errors="surrogatepass"))
    assert manifest["counts"]["dropped_scenes"] == 1
    assert manifest["scenes"].keys() == {"a", "b", "c"}


def test_a_complete_dataset_is_left_as_it_is_and_a_damaged_one_written_anew(tmp_path: Path):
    data = sample()
    folder = dataset.write(data, tmp_path)
    stamp = (folder / "manifest.json").stat().st_mtime_ns
    dataset.write(data, tmp_path)
    assert (folder / "manifest.json").stat().st_mtime_ns == stamp
    (folder / "train.jsonl").write_text("{}\n")
    with pytest.raises(DataError, match=r"train\.jsonl"):
        dataset.read(folder)
    assert dataset.read(dataset.write(data, tmp_path)) == data


def test_an_unfinished_dataset_is_an_error(tmp_path: Path):
    folder = dataset.write(sample(), tmp_path)
    (folder / "manifest.json").unlink()
    with pytest.raises(DataError, match="not complete"):
        dataset.read(folder)


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8", errors="surrogatepass").split("\n") if line]


@pytest.mark.parametrize("form", ["jsonl", "sharegpt", "alpaca"])
def test_exports_hold_every_learnt_answer_once(tmp_path: Path, form: exporting.Form):
    files = exporting.export(sample(), form, tmp_path)
    talks = [record for file in files if not file.name.endswith(".text.jsonl") for record in records(file)]
    if form == "jsonl":
        learnt = [m["content"] for r in talks for m in r["messages"] if m.get("weight")]
    elif form == "sharegpt":
        learnt = [r["conversations"][-1]["value"] for r in talks]
        assert {m["from"] for r in talks for m in r["conversations"]} == {"human", "gpt"}
    else:
        learnt = [r["output"] for r in talks]
        assert [r["history"] for r in talks if r["output"] == "ответ"] == [[["q1", "r1"]]]
    assert sorted(learnt) == ["r1", "ответ"]
    assert sum(len(records(file)) for file in files if file.name.endswith(".text.jsonl")) == 1


# -- the owner's voice


def test_the_owners_turns_are_learnt_and_the_assistants_are_context():
    said = talk("a", ("user", "q"), ("assistant", "r"), ("user", "q2"), ("assistant", "r2"))
    data = dataset.build([said], val=0.1, learn="user")
    assert only(data) == [("user", "q", True), ("assistant", "r", False), ("user", "q2", True)]
    assert [(lost.reason, lost.whole) for lost in data.dropped] == [("the last answer: the owner says nothing after it", False)]
    assert data.id != dataset.build([said], val=0.1).id


def test_a_question_without_an_answer_is_the_owners_voice_too():
    data = dataset.build([talk("a", ("user", "just this"))], val=0.1, learn="user")
    assert only(data) == [("user", "just this", True)]
    assert not data.dropped


def test_a_talk_in_which_the_owner_says_nothing_is_dropped_with_its_reason():
    (lost,) = dataset.build([talk("a", ("assistant", "hello"))], val=0.1, learn="user").dropped
    assert lost.whole
    assert "an answer without its question" in lost.reason


def test_an_open_question_is_learnt_with_its_own_scene_only():
    first = talk("a", ("user", "q1"), ("assistant", "r1"), ("user", "open"), next="b")
    second = talk("b", ("user", "q2"), ("assistant", "r2"), ("user", "q3"), prev="a")
    learnt = [m.text for example in dataset.build([first, second], val=0.1, learn="user").examples for m in example.messages if m.learn]
    assert sorted(learnt) == ["open", "q1", "q2", "q3"]


def test_prose_is_learnt_whole_whoever_is_learnt():
    assert only(dataset.build([prose("a", "text")], val=0.1, learn="user")) == [("user", "text", True)]


# -- what is held out is repeated nowhere


def side(name: str, val: float = 0.2, test: float = 0.2) -> str:
    """A path that the hash puts on this side."""
    return next(path for path in (f"{number}.md" for number in range(1000)) if splits.split_of(path, val, test) == name)


SIDES = {name: side(name) for name in splits.SPLITS}


@pytest.mark.parametrize("held_out", ["val", "test"])
@pytest.mark.parametrize("near", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_of_two_texts_that_are_alike_the_held_out_one_is_used(held_out: str, near: bool, first: bool):
    learnt = prose("t", "one two", path=SIDES["train"], duplicate="h" if near and not first else "")
    held = prose("h", "one two!" if near else "one two", path=SIDES[held_out], duplicate="t" if near and first else "")
    more = [prose(f"{i}", f"text {i}", path=f"more/{i}.md") for i in range(20)]
    data = dataset.build([learnt, held, *more], val=0.2, test=0.2)
    assert {example.path: example.split for example in data.examples}.get(SIDES[held_out]) == held_out
    (lost,) = data.dropped
    assert (lost.scene, lost.path) == ("t", SIDES["train"])
    assert lost.reason == f"{'nearly the same as' if near else 'the same text as'} scene h in {SIDES[held_out]}"


def test_a_text_that_was_held_out_stays_so_when_its_copy_comes_to_a_note_that_is_learnt():
    vault = [prose(f"{i}", f"text {i}", path=f"notes/{i}.md") for i in range(40)]
    before = dataset.build(vault, val=0.2, test=0.2)
    copies = [prose(f"c{i}", f"text {i}", path=f"copies/{i}.md") for i in range(40)]
    after = dataset.build(vault + copies, val=0.2, test=0.2)
    held_out = {m.text for example in before.examples if example.split != "train" for m in example.messages}
    assert len(held_out) > 5
    assert not held_out & {m.text for example in after.split("train") for m in example.messages}


def test_a_new_note_that_repeats_an_old_one_takes_nothing_from_training():
    old = [prose(f"{i}", f"text {i}", path=f"{i}.md", at=f"2024-01-{i + 1:02}") for i in range(27)]
    new = [prose(f"n{i}", f"text {i if i < 2 else 'new'}", path=f"new/{i}.md", at=f"2025-01-{i + 1:02}") for i in range(3)]
    data = dataset.build(old + new, val=0.0001, newest=0.1)
    assert {example.path for example in data.split("train")} >= {"0.md", "1.md"}
    assert {lost.path for lost in data.dropped} == {"new/0.md", "new/1.md"}
    assert {example.path for example in data.split("val")} == {"new/2.md"}


def test_a_message_that_stands_in_two_notes_is_used_once():
    short = talk("a", ("user", "the same question"), ("assistant", "r"), path="a.md")
    longer = talk("a", ("user", "the same question"), ("assistant", "r"), ("user", "and more"), ("assistant", "r2"), path="b.md")
    data = dataset.build([short, longer], val=0.0001)
    assert len(data.examples) == 1
    assert data.dropped[0].reason == "another copy of scene a in a.md"
    other = talk("a", ("user", "another one's question"), ("assistant", "r3"), path="b.md")  # message ids of some programs repeat
    assert len(dataset.build([short, other], val=0.0001).examples) == 2


def test_the_newest_notes_are_measured_and_not_learnt():
    vault = [prose(f"{i}", f"text {i}", path=f"{i}.md", at=f"2025-{i // 28 + 1:02}-{i % 28 + 1:02}") for i in range(100)]
    data = dataset.build(vault, val=0.1, test=0.05, newest=0.1)
    sides = {example.path: example.split for example in data.examples}
    assert all(sides[f"{i}.md"] != "train" for i in range(90, 100))
    assert sum(side == "train" for side in sides.values()) > 60


# -- quotas


def test_of_a_note_that_would_drown_the_others_a_sample_is_learnt():
    huge = [replace(prose(f"h{i}", f"{i} " + "слово " * 500), source=Source("huge.md", (i + 1, i + 1))) for i in range(100)]
    others = [prose(f"o{i}", f"{i} " + "буква " * 500, path=f"{i}.md") for i in range(60)]
    free = dataset.build(huge + others, val=0.0001, quota=1.0)
    data = dataset.build(huge + others, val=0.0001, quota=0.1)
    sizes: dict[str, int] = {}
    for example in data.split("train"):
        sizes[example.path] = sizes.get(example.path, 0) + len(example.messages[0].text)
    assert 0.05 < sizes["huge.md"] / sum(sizes.values()) <= dataset.ROOM / sum(sizes.values()) + 0.1
    assert len([path for path in sizes if path != "huge.md"]) == 60 - 1  # one is held out
    gone = [lost for lost in data.dropped if "train.quota" in lost.reason]
    assert len(gone) == len(free.examples) - len(data.examples) > 0
    assert all(lost.whole and lost.path == "huge.md" for lost in gone)
    assert dataset.counts(data)["scenes"] == 160
    # with more room (a larger vault) nothing that was learnt is lost
    grown = dataset.build(
        huge + others + [replace(o, id=o.id + "x", sha=o.sha + "x", source=Source("x" + o.source.path, (1, 1))) for o in others],
        val=0.0001,
        quota=0.1,
    )
    assert {e.id for e in data.split("train") if e.path == "huge.md"} <= {e.id for e in grown.split("train") if e.path == "huge.md"}


def test_one_endless_message_does_not_keep_the_rest_of_its_note_from_being_learnt():
    endless = [replace(prose("e", "слово " * 20_000), source=Source("huge.md", (1, 1)))]
    rest = [replace(prose(f"h{i}", f"{i} " + "слово " * 200), source=Source("huge.md", (i + 2, i + 2))) for i in range(10)]
    others = [prose(f"o{i}", f"{i} " + "буква " * 300, path=f"{i}.md") for i in range(40)]
    data = dataset.build(endless + rest + others, val=0.0001, quota=0.1)
    assert sum(example.path == "huge.md" for example in data.split("train")) == 10
    (lost,) = data.dropped
    assert (lost.scene, lost.whole) == ("e", True)


def test_small_vaults_are_learnt_whole():
    vault = [prose(f"{i}", f"{i} " + "слово " * (300 if i else 3000), path=f"{i}.md") for i in range(6)]
    assert not dataset.build(vault, val=0.2, quota=0.1).dropped


# -- tasks


def glossary(number: int, path: str = "", **more: Any) -> Scene:
    text = (
        f"## Раздел {number}\n\nСлово{number} — это зазор номер {number} между двумя порогами, и больше ничего. "
        + "Вода идёт сверху вниз. " * 20
    )
    return prose(f"g{number}", text, path=path or f"g/{number}.md", title=f"Словарь {number}", **more)


def test_tasks_are_of_notes_that_are_trained_on_and_no_more_than_their_share():
    vault = [glossary(i) for i in range(60)] + [glossary(100, trust="imported"), talk("t", ("user", "q"), ("assistant", "r"))]
    data = dataset.build(vault, val=0.2, test=0.1, tasks_share=0.1)
    made = [example for example in data.examples if example.form == "task"]
    assert made
    assert {example.split for example in made} == {"train"}
    learnt = {split: sum(len(m.text) for e in data.split(split) for m in e.messages if m.learn) for split in splits.SPLITS}
    share = sum(len(e.messages[1].text) for e in made) / learnt["train"]
    assert 0.05 < share <= 0.1
    counts = dataset.counts(data)
    assert counts["task"] == len(made)
    assert counts["dropped_tasks"] == len([lost for lost in data.dropped if lost.task]) > 0
    assert counts["scenes"] == counts["used"] + counts["dropped_scenes"] == len(vault)
    assert dataset.build(vault, val=0.2, test=0.1).split("val") == data.split("val")  # what is measured does not change
    position = {example.id: place for place, example in enumerate(data.examples)}
    for example in made:  # behind the note itself, and of nothing else
        assert data.examples[position[example.id] - 1].path == example.path
        assert example.scenes[0] in data.scenes


def test_no_task_is_made_of_what_is_not_learnt():
    secret = glossary(1, path=SIDES["train"])
    refused = [replace(secret, train=False, reason="private"), replace(secret, trust="clipped"), replace(secret, trust="generated")]
    more = [prose(f"{i}", f"text {i}", path=f"more/{i}.md") for i in range(20)]
    for scene in refused:
        assert not any(e.form == "task" for e in dataset.build([scene, *more], val=0.2, test=0.2, tasks_share=0.5).examples)
    for name in ("val", "test"):
        held = replace(secret, source=Source(SIDES[name], (1, 2)))
        assert not any(e.form == "task" for e in dataset.build([held, *more], val=0.2, test=0.2, tasks_share=0.5).examples)
    assert any(e.form == "task" for e in dataset.build([secret, *more], val=0.2, test=0.2, tasks_share=0.5).examples)


# -- files and exports


def full() -> dataset.Dataset:
    vault = [glossary(i) for i in range(30)]
    talks = [talk(f"t{i}", ("user", f"q{i}"), ("assistant", f"r{i}"), ("user", f"p{i}"), path=f"t/{i}.md") for i in range(30)]
    return dataset.build([*vault, *talks], val=0.2, test=0.2, tasks_share=0.2, learn="user")


def test_a_dataset_with_tasks_and_a_test_part_is_read_back_exactly(tmp_path: Path):
    data = full()
    assert all(dataset.counts(data)[name] for name in (*splits.SPLITS, "task", "dialogue", "prose"))
    folder = dataset.write(data, tmp_path)
    assert dataset.read(folder) == data
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert (manifest["schema"], sorted(manifest["files"])) == (2, ["test.jsonl", "train.jsonl", "val.jsonl"])
    assert {scene for example in data.examples for scene in example.scenes} == manifest["scenes"].keys()


def test_a_dataset_of_the_first_schema_is_still_read_and_one_of_a_later_is_not(tmp_path: Path):
    folder = dataset.write(sample(), tmp_path)
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8", errors="surrogatepass"))
    del manifest["files"]["test.jsonl"]
    for one in manifest["dropped"]:
        del one["task"]
    for name in manifest["files"]:
        old = [{key: value for key, value in record.items() if key != "task"} for record in records(folder / name)]
        (folder / name).write_bytes(dataset.lines(old))
        manifest["files"][name] = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    for schema in (1, 3):
        said = json.dumps(manifest | {"schema": schema}, ensure_ascii=False)
        (folder / "manifest.json").write_bytes(said.encode("utf-8", "surrogatepass"))
        if schema == 1:
            assert dataset.read(folder) == sample()
        else:
            with pytest.raises(DataError, match="newer version"):
                dataset.read(folder)


def test_what_a_training_sees_is_told_apart_from_what_is_held_out():
    data = full()
    seen = data.learnt()
    assert seen.keys() == {scene for example in data.split("train") for scene in example.scenes}
    assert seen.keys() < data.scenes.keys()
    assert all(data.scenes[scene] == digest for scene, digest in seen.items())


@pytest.mark.parametrize("form", ["jsonl", "sharegpt", "alpaca"])
def test_exports_carry_tasks_the_owners_turns_and_the_test_part(tmp_path: Path, form: exporting.Form):
    data = full()
    files = {file.name: records(file) for file in exporting.export(data, form, tmp_path)}
    assert sorted(files) == sorted(f"{name}{kind}" for name in splits.SPLITS for kind in (".jsonl", ".text.jsonl"))
    for name in splits.SPLITS:
        talks = files[f"{name}.jsonl"]
        if form == "jsonl":
            learnt = [m["content"] for r in talks for m in r["messages"] if m.get("weight")]
        elif form == "sharegpt":
            learnt = [m["value"] for r in talks for m in r["conversations"] if m["weight"]]
        else:
            learnt = [r["output"] for r in talks]
        wanted = [m.text for example in data.split(name) if example.form != "prose" for m in example.messages if m.learn]
        assert learnt == wanted != []
        assert len(files[f"{name}.text.jsonl"]) == sum(example.form == "prose" for example in data.split(name))
    if form == "alpaca":
        said = {r["output"]: (r["instruction"], r["history"]) for name in splits.SPLITS for r in files[f"{name}.jsonl"]}
        assert said["q7"] == ("", [])
        assert said["p7"] == ("r7", [["", "q7"]])
