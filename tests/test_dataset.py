"""Scenes -> examples: every scene is used or accounted for, and nothing that may not be learnt is."""

from __future__ import annotations

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
