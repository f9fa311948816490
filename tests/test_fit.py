"""What fits the memory: the fastest first, cut texts last, never more than is free; and each choice with its reason."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from vaultllm import fit, hardware
from vaultllm.fit import Fit, Shape

BASE = hardware.BASES[2]


def choose(free_mb: int, shape: Shape = BASE, **changes: Any) -> Fit:
    return fit.choose(shape, **({"device": "cuda", "free_mb": free_mb, "bf16": True, "sequence": 1024, "rank": 16} | changes))


def test_what_is_given_up_comes_in_order_and_the_estimate_is_never_above_what_is_free():
    seen: list[tuple[bool, int, bool, int]] = []
    for free in range(60_000, 0, -100):
        taken = choose(free)
        assert taken.fits is (taken.memory_mb <= free)
        needed = BASE.memory(taken.tokens, taken.sequence, 16, True, device="cuda", checkpointing=taken.checkpointing)
        assert taken.memory_mb == -(-needed // 2**20)
        assert taken.sequence <= taken.tokens <= fit.BATCH * taken.sequence
        rung = (taken.fits, taken.sequence, taken.checkpointing, taken.tokens)
        if not seen or seen[-1] != rung:
            seen.append(rung)
    usual = fit.tokens_per_pass(BASE.vocabulary, BASE.parameters(), "cuda")
    assert seen[0] == (True, 1024, False, min(usual, 8192))
    assert seen == sorted(seen, key=lambda rung: (-rung[0], -rung[1], rung[2], -rung[3]))  # fewer tokens, checkpointing, shorter
    assert [rung for rung in seen if rung[:3] == (True, 1024, False)][-1][3] == 1024
    with_checkpoints = [rung for rung in seen if rung[:3] == (True, 1024, True)]
    assert with_checkpoints[0][3] > 1024  # as many as then fit again
    assert {rung[1] for rung in seen if rung[0]} == {1024, 512, 256, 128}
    assert seen[-1] == (False, fit.SHORTEST, True, fit.SHORTEST)


def test_each_choice_says_why():
    usual = choose(60_000)
    assert usual.reasons == ("bf16: the base is published so and it is fast here",)
    less = choose(next(free for free in range(60_000, 0, -100) if choose(free).checkpointing))
    assert [reason.partition(" ")[0] for reason in less.reasons] in (["bf16:", "gradient"], ["bf16:", f"{less.tokens:,}", "gradient"])
    assert "GB would be needed" in less.reasons[-1]
    least = choose(10)
    assert not least.fits
    said = " ".join(least.reasons)
    for part in ("sequences of 128 tokens instead of 1,024", "gradient checkpointing", "may be stopped", "smaller base", "train.quantize"):
        assert part in said
    assert "train.quantize" not in " ".join(choose(10, quantize="nf4").reasons)


def test_the_type_is_that_of_the_checkpoint_where_it_is_fast_and_bf16_comes_last_where_it_is_slow():
    assert choose(60_000).dtype == "bfloat16"
    assert choose(60_000, BASE._replace(half=False)).dtype == "float32"
    assert choose(60_000, BASE._replace(half=False)).reasons == ("fp32: the base is published so",)
    slow = choose(60_000, bf16=False)
    assert (slow.dtype, slow.reasons[0]) == ("float32", "fp32: bf16 is slow here")
    taken = [choose(free, bf16=False) for free in range(20_000, 0, -50)]
    halves = [one for one in taken if one.dtype == "bfloat16" and one.fits]
    assert halves
    assert taken[taken.index(halves[0]) - 1].sequence == fit.SHORTEST  # fp32 was tried down to the shortest
    assert "slow here" in halves[0].reasons[0]


def test_nf4_and_checkpointing_take_less_memory_and_more_of_everything_takes_more():
    shape = Shape("7B", 28, 3584, 28, 4, 128, 18944, 152_064, True, tied=False)
    usual: dict[str, Any] = {"tokens": 512, "sequence": 512, "rank": 16, "half": True, "device": "cuda"}
    plain = shape.memory(**usual)
    assert shape.memory(**usual, checkpointing=True) < plain
    assert shape.memory(**usual, nf4=True) < 0.6 * plain
    assert shape.weights(True, True) > 0.5 * shape.layers * shape.linear() + 2 * shape.width * shape.vocabulary * 2
    for more in ({"tokens": 1024}, {"rank": 64}, {"half": False}):
        assert shape.memory(**(usual | more)) > plain
    assert shape.memory(**usual, held_mb=0) == plain - fit.LIBRARIES_MB * 2**20


def test_a_small_model_with_room_gets_what_it_always_got():
    tiny = Shape("tiny", 2, 32, 2, 1, 16, 64, 400, False)
    taken = choose(2_000, tiny, device="cpu", sequence=128, held_mb=0)
    assert (taken.tokens, taken.sequence, taken.checkpointing, taken.dtype) == (fit.BATCH * 128, 128, False, "float32")


@pytest.mark.parametrize("kind", ["qwen3", "llama", "gpt2"])
def test_the_shape_of_a_configuration_counts_the_models_parameters(kind: str):
    import torch
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, Qwen3Config

    sizes = {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = {
        "qwen3": lambda: Qwen3Config(vocab_size=4000, head_dim=32, tie_word_embeddings=True, dtype=torch.bfloat16, **sizes),
        "llama": lambda: LlamaConfig(vocab_size=4000, tie_word_embeddings=False, **sizes),
        "gpt2": lambda: GPT2Config(vocab_size=4000, n_embd=64, n_layer=2, n_head=4, n_positions=8),
    }[kind]()
    shape = fit.of(config, "named")
    assert (shape.name, shape.layers, shape.width, shape.heads, shape.half) == ("named", 2, 64, 4, kind == "qwen3")
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    counted = sum(weight.numel() for weight in model.parameters())
    assert shape.parameters() == pytest.approx(counted, rel=0.15 if kind == "gpt2" else 1e-2)  # its feed-forward layer has no gate


def test_a_container_has_what_it_may_use_and_no_more(tmp_path: Path):
    gb = 2**30
    assert fit.within_container(16 * gb, 8 * gb, tmp_path) == (16 * gb, 8 * gb)  # none
    (tmp_path / "memory.current").write_text(f"{3 * gb}\n")
    (tmp_path / "memory.stat").write_text(f"anon {2 * gb}\ninactive_file {gb}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert fit.within_container(16 * gb, 8 * gb, tmp_path) == (16 * gb, 8 * gb)
    (tmp_path / "memory.max").write_text(f"{4 * gb}\n")
    assert fit.within_container(16 * gb, 8 * gb, tmp_path) == (4 * gb, 2 * gb)
    assert fit.within_container(16 * gb, gb, tmp_path) == (4 * gb, gb)
    (tmp_path / "memory.current").write_text(f"{6 * gb}\n")
    assert fit.within_container(16 * gb, 8 * gb, tmp_path)[1] == 0


def test_a_fit_is_plain_data():
    assert dataclasses.asdict(choose(60_000))["dtype"] == "bfloat16"


@pytest.mark.parametrize("name", ["zero2.yaml", "fsdp.yaml"])
def test_the_configurations_in_the_documents_are_read_by_accelerate(tmp_path: Path, name: str):
    from accelerate.commands.config.config_args import ClusterConfig, load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    text = (Path(__file__).parents[1] / "docs" / "hardware.md").read_text(encoding="utf-8")
    block = next(part.partition("```")[0] for part in text.split("```yaml\n") if part.startswith(f"# {name}"))
    (tmp_path / name).write_text(block)
    read = load_config_from_file(str(tmp_path / name))  # raises for a key that it does not know
    assert isinstance(read, ClusterConfig)
    given = {"zero2.yaml": read.deepspeed_config, "fsdp.yaml": read.fsdp_config}[name]
    assert read.num_processes > 1
    known = {option.removeprefix("--") for action in launch_command_parser()._actions for option in action.option_strings}
    assert given.keys() <= known
