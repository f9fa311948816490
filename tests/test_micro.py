"""The model that is trained from scratch: its plan, its learning, its folder."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest

from vaultllm import tokenizer as bpe
from vaultllm.errors import DataError
from vaultllm.models import learning, micro, plan
from vaultllm.schema import Example, Message, Progress

SENTENCES = [
    "Нейросеть читает заметки и отвечает новой заметкой.",
    "আমি প্রতিদিন বাংলায় নোট লিখি।",
    "The vault is the truth; everything else can be rebuilt.",
    "Память находит абзац, на котором стоит ответ.",
]


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Tiny matrices gain nothing from threads, and lose much on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _examples(n: int = 12) -> list[Example]:
    """Prose and talks over a few sentences."""
    prose = [Example(f"p{i}", (f"p{i}",), f"{i}.md", "prose", (Message("user", " ".join(SENTENCES), True),), "train") for i in range(n)]
    talk = (Message("user", SENTENCES[0], False), Message("assistant", SENTENCES[2], True))
    return [*prose, Example("d", ("d",), "talk.md", "dialogue", talk, "train")]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch):
    """Models and steps small enough for a test."""
    monkeypatch.setattr(plan, "SHAPES", (plan.Shape(32, 2, 2, 64), plan.Shape(64, 2, 2, 160)))
    monkeypatch.setattr(plan, "CONTEXT", 64)
    monkeypatch.setattr(plan, "LONG_CONTEXT", 128)
    monkeypatch.setattr(plan, "STEP_TOKENS", 512)


def _quiet(progress: Progress) -> None:
    pass


# -- the plan


def test_the_rate_rises_stays_and_falls_to_nothing():
    assert plan.lr_factor(0.0) == 0.0
    assert plan.lr_factor(plan.WARMUP / 2) == pytest.approx(0.5)
    assert plan.lr_factor(0.3) == plan.lr_factor(0.59) == 1.0
    assert plan.lr_factor(0.8) == pytest.approx(0.5)
    assert plan.lr_factor(1.0) == plan.lr_factor(1.5) == 0.0


def test_more_time_gives_a_larger_model_between_the_smallest_and_the_largest():
    sizes = [plan.pick(10.0**power, 10**11, 2048).shape.body() for power in range(4, 13)]
    assert sizes == sorted(sizes)
    assert sizes[0] == plan.SHAPES[0].body()
    assert sizes[-1] == plan.SHAPES[-1].body()
    assert len(set(sizes)) > 3


def test_steps_grow_with_the_root_of_what_is_read_and_no_further_when_the_text_is_used_up():
    steps = [plan.pick(4.0**power, 10**11, 2048).step_tokens for power in range(4, 16)]
    assert steps == sorted(steps)
    assert steps[0] == plan.STEP_TOKENS
    assert 1.5 < steps[-1] / steps[-3] < 4.5  # sixteen times the text, at another size of the model
    assert plan.pick(-1000.0, 100_000, 2048).step_tokens == plan.STEP_TOKENS  # starting took longer than there was
    assert plan.pick(10.0**12, 100_000, 2048).step_tokens == plan.pick(plan.MAX_EPOCHS * 10**5, 10**5, 2048).step_tokens


def test_more_time_than_the_text_is_worth_gives_no_larger_model_but_one_that_forgets_more():
    text = 100_000
    once, often = plan.pick(text, text, 2048), plan.pick(1000 * text, text, 2048)
    assert once == plan.Recipe(plan.SHAPES[0], plan.WEIGHT_DECAY, 0.0, plan.STEP_TOKENS)
    assert often.shape == plan.pick(plan.MAX_EPOCHS * text, text, 2048).shape
    assert (often.weight_decay, often.dropout) == (plan.WEIGHT_DECAY_OFTEN, plan.DROPOUT_OFTEN)


def test_the_counted_parameters_are_the_models():
    import torch

    tokenizer = bpe.wrap(bpe.train(SENTENCES, 300))
    for shape in plan.SHAPES:
        with torch.device("meta"):  # shapes without numbers
            model = micro._model(shape, 300, tokenizer)
        assert sum(p.numel() for p in model.parameters()) == shape.total(300)
        assert shape.width % shape.heads == 0


def test_every_text_in_the_stream_has_the_end_mark_before_and_after_it():
    assert plan.pack([[5, 6], [], [7]], 0) == [0, 5, 6, 0, 0, 7, 0]
    assert plan.pack([], 0) == [0]


def test_bits_per_byte_of_known_numbers():
    assert plan.bits_per_byte(math.log(2) * 16, 8) == pytest.approx(2.0)
    assert plan.bits_per_byte(math.log(256) * 10, 10) == pytest.approx(8.0)


def test_notes_are_shuffled_whole():
    examples = [Example(f"{note}{i}", (), f"{note}.md", "prose", (), "train") for note in "abcdefgh" for i in range(3)]
    order = [example.id for example in plan.in_notes_order(examples, 1)]
    assert sorted(order) == sorted(example.id for example in examples)
    assert order != [example.id for example in examples]
    assert all(order[i : i + 3] == [f"{order[i][0]}{k}" for k in range(3)] for i in range(0, 24, 3))


# -- learning


@pytest.fixture(scope="module")
def trained(one_thread, tmp_path_factory: pytest.TempPathFactory):
    """One small training: its folder, its report, its progress."""
    patch = pytest.MonkeyPatch()
    for name, value in {"SHAPES": (plan.Shape(32, 2, 2, 64),), "CONTEXT": 64, "LONG_CONTEXT": 128, "STEP_TOKENS": 512}.items():
        patch.setattr(plan, name, value)
    folder = tmp_path_factory.mktemp("bases") / "micro"
    seen: list[Progress] = []
    held = [Example("v", ("v",), "v.md", "prose", (Message("user", " ".join(SENTENCES[::-1]), True),), "val")]
    result = micro.pretrain(_examples(), folder, minutes=1, seed=1, progress=seen.append, val=held, steps=80)
    patch.undo()
    return folder, result, seen


def test_it_learns_more_than_how_often_each_token_occurs(trained):
    from transformers import AutoTokenizer

    folder, result, _ = trained
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = plan.pack([micro.encode_example(tokenizer, example)[0] for example in _examples()], tokenizer.pad_token_id)
    counts = Counter(ids)
    unigram = -sum(n / len(ids) * math.log(n / len(ids)) for n in counts.values())
    assert result["train_loss"] < 0.5 * unigram
    assert 0 < result["val_bits_per_byte"] < 2.0
    assert result["val_bytes"] == len(" ".join(SENTENCES).encode())


def test_the_folder_is_an_ordinary_one_and_says_how_it_was_made(trained):
    folder, result, _ = trained
    names = {path.name for path in folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "generation_config.json", "tokenizer.json", "chat_template.jinja", "micro.json"}
    assert json.loads((folder / "micro.json").read_text(encoding="utf-8")) == result
    assert result["steps"] == 80
    assert result["tokens_seen"] == 80 * 512
    assert result["text_bytes"] == sum(len(m.text.encode()) for e in _examples() for m in e.messages)
    assert list(folder.parent.iterdir()) == [folder]


def test_a_reloaded_model_gives_the_same_logits_and_the_reported_bits_per_byte(trained):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, result, _ = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    again = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor([bpe.encode_text(tokenizer, SENTENCES[0])])
    assert torch.equal(model(ids).logits, again(ids).logits)
    text = " ".join(SENTENCES[::-1])
    row = torch.tensor([[tokenizer.pad_token_id, *bpe.encode_text(tokenizer, text), tokenizer.pad_token_id]])
    with torch.no_grad():
        mean = model(input_ids=row, labels=row).loss.item()
    assert result["val_bits_per_byte"] == pytest.approx(mean * (row.shape[1] - 1) / math.log(2) / len(text.encode()), rel=1e-3)


def test_it_continues_a_sentence_it_has_read(trained):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = torch.tensor([[tokenizer.pad_token_id, *bpe.encode_text(tokenizer, SENTENCES[0])]])
    text = tokenizer.decode(model.generate(ids, max_new_tokens=40, do_sample=False)[0, ids.shape[1] :])
    assert text.startswith(" " + SENTENCES[1][:5])


def test_progress_grows_and_ends_at_one(trained):
    _, _, seen = trained
    done = [progress.done for progress in seen]
    assert done[-1] == 1.0
    assert done == sorted(done)
    assert seen[-1].step == 80


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tiny, tmp_path: Path):
    import torch

    state = torch.get_rng_state()
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        micro.pretrain(_examples(), tmp_path / name, minutes=1, seed=seed, progress=_quiet, steps=4)
    a, b, c = ((tmp_path / name / "model.safetensors").read_bytes() for name in "abc")
    assert a == b
    assert a != c
    assert (tmp_path / "a" / "tokenizer.json").read_bytes() == (tmp_path / "c" / "tokenizer.json").read_bytes()
    assert torch.equal(torch.get_rng_state(), state)


# -- the budget


def _clock(monkeypatch: pytest.MonkeyPatch, tick) -> SimpleNamespace:
    """A clock that moves by `tick(now)` each time it is read."""
    clock = SimpleNamespace(now=0.0)

    def monotonic() -> float:
        clock.now += tick(clock.now)
        return clock.now

    # The thread that reports beside work reads the clock as often as the real machine lets it.
    monkeypatch.setattr(plan.Reporter, "during", lambda self, phase, work: work())
    for module in (micro, learning, plan):
        monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=monotonic))
    return clock


@pytest.mark.parametrize(
    "tick",
    [lambda now: 0.08, lambda now: 0.02 if now < 15 else 0.2, lambda now: 12.0 if 15 < now < 16 else 0.05],
    ids=["steady", "ten times slower halfway", "one stall over the whole decay"],
)
def test_a_timed_run_ends_annealed_and_in_time_whatever_the_machine_does(tiny, tmp_path: Path, monkeypatch, tick):
    monkeypatch.setattr(plan, "MAX_EPOCHS", 1e9)
    clock = _clock(monkeypatch, tick)
    result = micro.pretrain(_examples(), tmp_path / "m", minutes=0.5, seed=0, progress=_quiet)
    assert result["last_lr_factor"] < 0.2
    assert result["steps"] > 10
    assert 15 < clock.now < 33


def test_a_short_text_ends_the_run_early_and_annealed(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(plan, "MIN_STEPS", 12)
    clock = _clock(monkeypatch, lambda now: 0.001)
    result = micro.pretrain(_examples(2), tmp_path / "m", minutes=10, seed=0, progress=_quiet)
    assert result["steps"] in (12, 13)
    assert result["last_lr_factor"] < 0.15
    assert clock.now < 60


def test_a_real_minute_is_kept(tiny, tmp_path: Path, monkeypatch):
    import time

    monkeypatch.setattr(plan, "MAX_EPOCHS", 1e9)
    seen: list[float] = []
    began = time.monotonic()
    micro.pretrain(_examples(), tmp_path / "m", minutes=0.06, seed=0, progress=lambda p: seen.append(time.monotonic()))
    assert time.monotonic() - began < 0.06 * 60 * 1.1 + 1.0
    assert max(b - a for a, b in zip([began, *seen], seen, strict=False)) < 1.5


# -- looking on


def _base(tmp_path: Path, name: str, steps: int = 6, **options) -> tuple[dict, bytes]:
    result = micro.pretrain(_examples(), tmp_path / name, minutes=1, seed=3, progress=_quiet, steps=steps, **options)
    return result, (tmp_path / name / "model.safetensors").read_bytes()


def test_what_it_writes_is_shown_as_it_learns_and_changes_nothing_in_what_it_learns(tiny, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(plan, "FEW_EPOCHS", 0.0)  # with dropout, which draws random numbers too
    seen: list[plan.Sample] = []
    _, alone = _base(tmp_path, "alone")
    _, watched = _base(tmp_path, "watched", written=seen.append)
    assert watched == alone
    assert [one.step for one in seen] == [1, 2, 3, 4, 5, 6, 6]  # after some of the steps, and at the end
    assert seen[-1].done == 1.0
    assert all(0 < one.loss < 10 and one.tokens_per_s > 0 for one in seen)
    assert len({one.text for one in seen}) > 1


def test_a_trained_model_writes_what_it_has_read(trained):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder, _, _ = trained
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    text = learning.write(model, tokenizer, 0)
    assert text == learning.write(model, tokenizer, 0)
    assert any(sentence[:12] in text for sentence in SENTENCES)


def test_who_says_stop_gets_an_annealed_model_of_what_was_learnt_so_far(tiny, tmp_path: Path):
    from transformers import AutoModelForCausalLM

    asked = iter([False] * 29 + [True] * 9)
    result, _ = _base(tmp_path, "m", steps=100, stop=lambda: next(asked))
    assert result["stopped"]
    assert 30 < result["steps"] < 40
    assert result["last_lr_factor"] < 0.3
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "m").config.hidden_size == 32


def test_dropout_ends_with_the_training(tiny):
    import torch

    tokenizer = bpe.wrap(bpe.train(SENTENCES, 300))
    model = micro._model(plan.SHAPES[0], 300, tokenizer)
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = model(ids).logits
    with learning.dropout(model, 0.5):
        assert not torch.equal(model(ids).logits, plain)
    assert torch.equal(model(ids).logits, plain)


# -- what can go wrong


def test_an_interrupt_leaves_nothing_and_spares_the_older_model(tiny, tmp_path: Path):
    def interrupt(progress: Progress) -> None:
        if progress.step >= 1:
            raise KeyboardInterrupt

    folder = tmp_path / "bases" / "micro"
    with pytest.raises(KeyboardInterrupt):
        micro.pretrain(_examples(), folder, minutes=1, seed=0, progress=interrupt, steps=2000)
    assert list(folder.parent.iterdir()) == []
    folder.mkdir()
    (folder / "micro.json").write_text("older")
    with pytest.raises(KeyboardInterrupt):
        micro.pretrain(_examples(), folder, minutes=1, seed=0, progress=interrupt, steps=2000)
    assert [path.name for path in folder.parent.rglob("*")] == ["micro", "micro.json"]
    assert (folder / "micro.json").read_text() == "older"


def test_an_older_model_is_replaced_and_leftovers_of_a_kill_are_swept(tiny, tmp_path: Path):
    folder = tmp_path / "micro"
    for stale in (folder, tmp_path / "micro.tmp", tmp_path / "micro.old"):
        stale.mkdir()
        (stale / "stale").write_text("x")
    micro.pretrain(_examples(), folder, minutes=1, seed=0, progress=_quiet, steps=1)
    assert [path.name for path in tmp_path.iterdir()] == ["micro"]
    assert not (folder / "stale").exists()


def test_too_little_text_is_said(tmp_path: Path):
    with pytest.raises(DataError, match="too few"):
        micro.pretrain([], tmp_path / "m", minutes=1, seed=0, progress=_quiet)
    assert list(tmp_path.iterdir()) == []


def test_lone_surrogates_do_not_end_the_run(tiny, tmp_path: Path):
    broken = Example("x", ("x",), "x.md", "prose", (Message("user", "из \ud83d JSON", True),), "train")
    assert micro.pretrain([*_examples(), broken], tmp_path / "m", minutes=1, seed=0, progress=_quiet, steps=1)["steps"] == 1
