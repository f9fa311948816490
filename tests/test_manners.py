"""What an answer looks like: each check holds where it should and not where it should not; rates are of real answers."""

from __future__ import annotations

import pytest

from tests import models
from vaultllm import manners
from vaultllm.models import hf
from vaultllm.schema import Example, Message


def talk(name: str, question: str, answer: str, path: str = "") -> Example:
    messages = (Message("user", question, False), Message("assistant", answer, True))
    return Example(name, (name,), path or f"{name}.md", "dialogue", messages, "val")


def test_a_loop_is_four_tokens_in_a_row_three_times() -> None:
    assert manners.loops([1, 2, 3, 4] * 3)
    assert manners.loops([7] * 6)
    assert not manners.loops([1, 2, 3, 4, 5, 1, 2, 3, 4, 6])
    assert not manners.loops(range(64))
    assert not manners.loops([1, 2])


@pytest.mark.parametrize(
    ("question", "answer", "echo"),
    [
        ("Когда включается насос?", "Вы спросили: когда  включается НАСОС? В шесть.", True),
        ("Когда включается насос?", "Насос включается в шесть.", False),
        ("Когда?", "Когда? В шесть.", False),
        (
            "Расскажи, сколько воды было в колодце в июне и сколько осталось теперь",
            "Сколько воды было в колодце в июне и сколько осталось",
            True,
        ),
        ("Расскажи, сколько воды было в колодце в июне и сколько осталось теперь", "Воды было три метра.", False),
    ],
)
def test_an_echo_is_the_question_or_a_long_part_of_it(question: str, answer: str, echo: bool) -> None:
    assert manners.echoes(question, answer) == echo


@pytest.mark.parametrize(
    "mark", ["<|im_start|>", "\nUser: и что", "\nassistant: да", "**Human**: hi", "### System: be", "[INST] x", "</s> <|eot_id|>"]
)
def test_names_of_roles_and_control_tokens_in_text_are_marks(mark: str) -> None:
    assert manners.marks("Ответ.\n" + mark)


@pytest.mark.parametrize("text", ["The user: a person", "the assistant said: yes", "a < b | c > d", "Система: насос и труба", "x <- y", ""])
def test_ordinary_text_is_no_mark(text: str) -> None:
    assert not manners.marks(text)


def test_the_language_is_the_questions() -> None:
    assert manners.keeps_language("Когда насос?", "В шесть утра.") is True
    assert manners.keeps_language("Когда насос?", "At six in the morning") is False
    assert manners.keeps_language("নদীর জল কত?", "তিন মিটার বেড়েছে") is True
    assert manners.keeps_language("Сколько сантиметров?", "32") is True
    assert manners.keeps_language("2+2?", "четыре") is None
    assert manners.keeps_language("Когда насос?", " ") is None


def test_rates_are_of_those_where_it_can_be_told() -> None:
    good = manners.check("Когда насос?", "В шесть.", [1, 2], ended=True)
    odd = manners.check("2+2?", "четыре\nUser: ещё", [3] * 9, ended=False)
    assert manners.rates([good, odd]) == {"language": 1.0, "loop": 0.5, "echo": 0.0, "marks": 0.5, "ended": 0.5, "empty": 0.0}
    assert manners.rates([odd])["language"] is None
    assert manners.check("Когда?", "", [], ended=True, special=True)["marks"]


def test_questions_are_one_a_note_before_a_second_of_any() -> None:
    examples = [talk(f"{note}{i}", f"{note}{i}?", "да", f"{note}.md") for note in "abc" for i in range(3)]
    prose = Example("p", ("p",), "p.md", "prose", (Message("user", "Дождь.", True),), "val")
    asked = [said[-1].text for said in manners.questions([prose, *examples], 5)]
    assert asked == ["a0?", "b0?", "c0?", "a1?", "b1?"]
    assert all(not message.learn for said in manners.questions(examples) for message in said)


def test_a_model_is_asked_with_its_adapter_and_without(tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = models.learnt(tmp_path_factory.mktemp("manners") / "base", models.TEXTS, steps=2)
    examples = [talk(f"q{i}", text, "Да.") for i, text in enumerate(models.TEXTS * 2)]
    found = manners.measure(loaded, examples, 60)
    assert (found["questions"], found["of"]) == (10, 10)
    for name in ("base", "trained"):
        assert set(found[name]) == set(manners.CHECKS)
        assert all(rate is None or 0 <= rate <= 1 for rate in found[name].values())
    assert found["trained"] != found["base"]
    cut = manners.measure(loaded, examples, 0.0)
    assert (cut["questions"], cut["of"]) == (manners.ROWS, 10)
    assert manners.measure(loaded, [], 60) == {"skipped": "no held-out question"}


def test_an_answer_ends_by_itself_when_the_model_says_so(tmp_path_factory: pytest.TempPathFactory) -> None:
    loaded = models.learnt(tmp_path_factory.mktemp("ends") / "base", models.TEXTS, steps=0)
    import torch

    head = loaded.model.base_model.model.lm_head.modules_to_save["default"]
    end = min(hf.end_ids(loaded))
    with torch.no_grad():  # the adapter's head says nothing but the end, whatever comes in
        head.weight.zero_()
        head.bias = torch.nn.Parameter(torch.zeros(head.weight.shape[0]))
        head.bias[end] = 9.0
    found = manners.measure(loaded, [talk("q", "Когда насос?", "Да.")], 60)
    assert (found["trained"]["ended"], found["trained"]["empty"]) == (1.0, 1.0)
    assert found["base"]["ended"] == 0.0
