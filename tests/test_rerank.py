"""Reranking: a model that reads question and passage together changes the order of the best ones, and only of those."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from vaultllm.errors import ConfigError, ModelError
from vaultllm.memory import rerank
from vaultllm.models import hf
from vaultllm.recall import Ranked
from vaultllm.schema import Passage
from vaultllm.shelf import StoredPassage

WORDS = ["насос", "хлеб", "река", "kayak", "bread", "вода", "ছাদ", "বৃষ্টি", "wind", "закваска"]


def found(texts: Sequence[str], context: str = "Заметка") -> list[Ranked]:
    """As recall found them: the first best, 1.0, then less and less."""
    ranked = []
    for place, text in enumerate(texts):
        passage = Passage(f"sc_{place}", 0, (1, 1), text, f"uid-{place}", "user", context)
        score = 1.0 - 0.01 * place
        stored = StoredPassage(place + 1, place + 1, f"{place}.md", "sha", passage)
        ranked.append(Ranked(stored, score, {"words": 0.75 * score, "dense": 0.25 * score}))
    return ranked


def texts_of(ranked: Sequence[Ranked]) -> list[str]:
    return [one.stored.passage.text for one in ranked]


class Says:
    """A judge that says what it is told to."""

    def __init__(self, scores: Sequence[float], weight: float = 0.5) -> None:
        self.scores, self.weight, self.asked = list(scores), weight, []

    def judge(self, question: str, texts: Sequence[str]) -> np.ndarray:
        self.asked.append((question, list(texts)))
        return np.array(self.scores[: len(texts)])


# -- reorder


def test_the_judge_moves_up_what_it_prefers_and_says_by_how_much() -> None:
    before = found(["a", "b", "c"])
    after = rerank.reorder(before, "q", Says([-3.0, 1.0, 5.0]))
    assert texts_of(after) == ["c", "b", "a"]
    assert [one.why.get("rerank") for one in after] == [0.5, 0.25, None]
    assert after[0].score == pytest.approx(0.5 * 0.98 + 0.5)
    assert texts_of(before) == ["a", "b", "c"]  # what was handed in stays as it was


def test_scores_stay_in_order_within_one_and_are_the_sum_of_their_parts() -> None:
    random.seed(1)
    after = rerank.reorder(found([str(n) for n in range(30)]), "q", Says([random.gauss(0, 9) for _ in range(20)]))
    scores = [one.score for one in after]
    assert scores == sorted(scores, reverse=True)
    assert 0 < scores[-1] <= scores[0] <= 1
    assert all(one.score == pytest.approx(sum(one.why.values())) for one in after)


def test_only_the_best_twenty_are_read_and_the_others_stay_behind_them_in_their_order() -> None:
    judge = Says([float(n) for n in range(50)])
    after = rerank.reorder(found([str(n) for n in range(30)]), "q", judge)
    assert [len(texts) for _, texts in judge.asked] == [rerank.FIRST] == [20]
    assert {*texts_of(after)[:20]} == {str(n) for n in range(20)}
    assert texts_of(after)[0] == "19"
    assert texts_of(after)[20:] == [str(n) for n in range(20, 30)]
    assert all("rerank" not in one.why for one in after[20:])


def test_a_judge_of_little_weight_does_not_turn_a_clear_order() -> None:
    before = found(["a", *[str(n) for n in range(60)]])
    far = [before[0], *(Ranked(one.stored, 0.3, {"words": 0.3}) for one in before[1:])]
    assert texts_of(rerank.reorder(far, "q", Says([0.0] + [1.0] * 19, weight=0.2)))[0] == "a"
    assert texts_of(rerank.reorder(far, "q", Says([0.0] + [1.0] * 19, weight=0.7)))[0] == "0"


@pytest.mark.parametrize(("texts", "question", "scores"), [([], "q", []), (["a"], "q", [1.0]), (["a", "b"], " \n", [0.0, 1.0])])
def test_where_there_is_nothing_to_order_nobody_is_asked(texts: list[str], question: str, scores: list[float]) -> None:
    judge = Says(scores)
    assert rerank.reorder(found(texts), question, judge) == found(texts)
    assert judge.asked == []


def test_a_judge_that_cannot_tell_them_apart_changes_nothing() -> None:
    assert rerank.reorder(found(["a", "b"]), "q", Says([0.7, 0.7])) == found(["a", "b"])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_an_error_with_a_way_out(wrong: float) -> None:
    with pytest.raises(ModelError, match=r"empty memory\.rerank"):
        rerank.reorder(found(["a", "b"]), "q", Says([wrong, 0.0]))


def test_a_passage_is_read_under_its_title_and_headings_only() -> None:
    judge = Says([1.0, 0.0])
    rerank.reorder(found(["текст", "b"], "Дача › Насос\n2025-06-15\n#сад\n@Марта"), "q", judge)
    assert judge.asked == [("q", ["Дача › Насос\nтекст", "Дача › Насос\nb"])]


# -- the setting


def test_nothing_named_is_nobody() -> None:
    assert rerank.create("") is None
    assert rerank.create("  ") is None


@pytest.mark.parametrize("spec", ["cross", "cross:", "cross: ", "model:x", "llm", "bge-reranker", ":", "MODEL"])
def test_a_setting_that_makes_no_sense_says_how_it_is_written(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"cross:PATH_OR_ID"):
        rerank.create(spec, base="somewhere")


def test_the_model_needs_one_to_be_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no model yet"):
        rerank.create("model")
    with pytest.raises(ModelError):
        rerank.create("model", base=str(tmp_path / "none"))


# -- a cross-encoder


def tiny(folder: Path, labels: int = 1, positions: int = 66) -> tuple[Any, Any]:
    """A random BERT that classifies pairs, with a tokenizer of whole words; saved as safetensors, and returned."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

    hf.quiet()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate([*special, *WORDS])}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1", [("[CLS]", 2), ("[SEP]", 3)])
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, **names)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "hidden_act": "relu"}
    sizes |= {"initializer_range": 0.2, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # learns within 300 steps
    vocabulary = len(special) + len(WORDS)
    model = BertForSequenceClassification(BertConfig(vocab_size=vocabulary, max_position_embeddings=positions, num_labels=labels, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model, tokenizer


@pytest.fixture(scope="module")
def random_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("random") / "cross"
    tiny(folder)
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One that learnt, in a few seconds, to prefer the passage that holds the question's word."""
    import torch

    folder = tmp_path_factory.mktemp("trained") / "cross"
    model, tokenizer = tiny(folder)
    choose = random.Random(3)
    rates = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(1_000):  # some 250 are enough
        asked = [choose.choice(WORDS) for _ in range(48)]
        said = []
        for place, word in enumerate(asked):
            others = choose.sample([one for one in WORDS if one != word], 2)
            if place % 2:
                others[choose.randrange(2)] = word
            said.append(" ".join(others))
        batch = tokenizer(asked, said, padding=True, return_tensors="pt")
        right = torch.tensor([float(place % 2) for place in range(len(asked))])
        loss = torch.nn.functional.binary_cross_entropy_with_logits(model(**batch).logits[:, 0], right)
        rates.zero_grad()
        loss.backward()
        rates.step()
        if float(loss.detach()) < 0.01:
            break
    else:
        pytest.fail("it has not learnt")
    model.eval().save_pretrained(folder)
    return folder


def test_a_trained_cross_encoder_brings_the_passage_with_the_word_to_the_top(trained: Path) -> None:
    judge = rerank.create(f"cross:{trained}")
    choose = random.Random(11)
    for word in WORDS:
        others = [" ".join(choose.sample([one for one in WORDS if one != word], 2)) for _ in range(7)]
        right = " ".join([*choose.sample([one for one in WORDS if one != word], 1), word])
        after = rerank.reorder(found([*others, right], context=""), word, judge)
        assert texts_of(after)[0] == right
        assert after[0].why["rerank"] == pytest.approx(judge.weight)


def test_logits_do_not_depend_on_what_stands_in_the_same_batch(random_encoder: Path) -> None:
    judge = rerank.create(f"cross:{random_encoder}")
    texts = [" ".join(WORDS[:n]) for n in (1, 3, 9, 2, 7, 5, 4, 8, 6, 10, 1)]
    together = judge.judge("вода хлеб", texts)
    alone = np.concatenate([judge.judge("вода хлеб", [text]) for text in texts])
    assert together.dtype == np.float64
    assert len(set(together[:-1].round(4).tolist())) == 10
    np.testing.assert_allclose(together, alone, atol=1e-6)


def test_the_logit_is_the_models_own(random_encoder: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(random_encoder)
    model = AutoModelForSequenceClassification.from_pretrained(random_encoder).eval()
    with torch.no_grad():
        right = float(model(**tokenizer("вода", "река насос", return_tensors="pt")).logits[0, 0])
    assert rerank.CrossEncoder(str(random_encoder)).judge("вода", ["река насос"])[0] == pytest.approx(right, abs=1e-6)


def test_of_two_classes_the_second_is_relevant(tmp_path: Path) -> None:
    import torch

    model, tokenizer = tiny(tmp_path / "two", labels=2)
    with torch.no_grad():
        logits = model.eval()(**tokenizer("вода", "река", return_tensors="pt")).logits[0]
    said = rerank.CrossEncoder(str(tmp_path / "two")).judge("вода", ["река"])
    assert said[0] == pytest.approx(float(logits[1] - logits[0]), abs=1e-6)


def test_texts_longer_than_the_model_reads_are_cut_and_the_question_leaves_room(random_encoder: Path) -> None:
    judge = rerank.CrossEncoder(str(random_encoder))
    assert np.isfinite(judge.judge("вода", ["река " * 5_000, ""])).all()
    long = judge.judge("вода " * 5_000, ["река", "хлеб"])
    assert np.isfinite(long).all()
    assert long[0] != long[1]  # the passages are still read
    assert np.isfinite(judge.judge("\ud800 вода", ["\ud800"])).all()


def test_a_classifier_of_many_classes_is_no_reranker(tmp_path: Path) -> None:
    tiny(tmp_path / "many", labels=5)
    with pytest.raises(ModelError, match="5 classes"):
        rerank.CrossEncoder(str(tmp_path / "many")).judge("вода", ["река"])


def test_an_encoder_without_a_classifier_is_refused_instead_of_guessing(tmp_path: Path) -> None:
    model, _ = tiny(tmp_path / "encoder")
    model.bert.save_pretrained(tmp_path / "encoder")
    with pytest.raises(ModelError, match="no cross-encoder"):
        rerank.CrossEncoder(str(tmp_path / "encoder")).judge("вода", ["река"])


def test_pickles_code_and_damage_are_refused(random_encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError):
        rerank.create(f"cross:{tmp_path / 'none'}")
    code = tmp_path / "code"
    shutil.copytree(random_encoder, code)
    config = json.loads((code / "config.json").read_text())
    (code / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModelForSequenceClassification": "evil.Model"}}))
    with pytest.raises(ModelError, match="own Python code"):
        rerank.create(f"cross:{code}")
    pickled = tmp_path / "pickled"
    shutil.copytree(random_encoder, pickled)
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickles"):
        rerank.create(f"cross:{pickled}")
    broken = tmp_path / "broken"
    shutil.copytree(random_encoder, broken)
    (broken / "model.safetensors").write_bytes((broken / "model.safetensors").read_bytes()[:100])
    with pytest.raises(ModelError, match="cannot be loaded"):
        rerank.create(f"cross:{broken}").judge("вода", ["река"])


# -- the local model's own likelihood


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("causal") / "tiny", "qwen3")


def by_hand(folder: Path, before: str, question: str) -> float:
    """Log-probability of the question, in nats, the whole sequence at once."""
    import torch

    from vaultllm import tokenizer as bpe

    loaded = hf.load(str(folder))
    start = [loaded.tokenizer.get_vocab()[bpe.END_OF_TEXT]]
    first = start + (bpe.encode_text(loaded.tokenizer, before) if before else [])
    asked = bpe.encode_text(loaded.tokenizer, "\n\n" + question)
    with torch.no_grad():
        logits = loaded.model(input_ids=torch.tensor([first + asked])).logits[0].float().log_softmax(-1)
    return sum(float(logits[len(first) + place - 1, token]) for place, token in enumerate(asked))


def test_the_likelihood_is_what_the_passage_adds_per_byte_of_the_question(causal: Path) -> None:
    question = "Когда включается насос?"
    texts = [*models.TEXTS, "Насос включается, когда сухо."]
    said = rerank.create("model", base=str(causal)).judge(question, texts)
    size = len(question.encode())
    right = [max(0.0, (by_hand(causal, text, question) - by_hand(causal, "", question)) / size) for text in texts]
    np.testing.assert_allclose(said, right, atol=1e-5)
    assert np.count_nonzero(said) > 0


def test_a_model_that_learnt_a_talk_prefers_the_passage_that_leads_to_the_question(causal: Path, tmp_path: Path) -> None:
    import torch

    from vaultllm import tokenizer as bpe

    pairs = [(models.TEXTS[1], "When does the насос run?"), (models.TEXTS[4], "How long does the bread proof?")]
    loaded = hf.load(str(causal))
    model = loaded.model.requires_grad_(True).train()
    start = [loaded.tokenizer.get_vocab()[bpe.END_OF_TEXT]]
    rates = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for _ in range(60):
        for text, question in pairs:
            ids = torch.tensor([[*start, *bpe.encode_text(loaded.tokenizer, text), *bpe.encode_text(loaded.tokenizer, "\n\n" + question)]])
            rates.zero_grad()
            model(input_ids=ids, labels=ids).loss.backward()
            rates.step()
    shutil.copytree(causal, tmp_path / "learnt")
    model.save_pretrained(tmp_path / "learnt")
    judge = rerank.create("model", base=str(tmp_path / "learnt"))
    for text, question in pairs:
        passages = [one.stored.passage.text for one in found(models.TEXTS)]
        said = judge.judge(question, passages)
        assert passages[int(said.argmax())] == text


def test_a_long_passage_and_a_long_question_fit_the_models_context(causal: Path) -> None:
    judge = rerank.create("model", base=str(causal))
    assert np.isfinite(judge.judge("насос", ["вода " * 5_000, ""])).all()
    assert np.isfinite(judge.judge("насос " * 5_000, ["вода", "\ud800"])).all()
