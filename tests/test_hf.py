"""Loading: what is refused before it can do harm, and text that comes out whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests import models
from vaultllm import tokenizer as bpe
from vaultllm.errors import ModelError
from vaultllm.models import hf


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch

    torch.set_num_threads(1)
    return models.build(tmp_path_factory.mktemp("base") / "tiny")


@pytest.fixture(scope="module")
def loaded(base: Path) -> hf.Loaded:
    return hf.load(str(base))


def adapter_of(base: Path, run: Path, note: dict[str, Any] | None = None) -> Path:
    """A fresh adapter for `base` in `run/adapter`, as training leaves it."""
    from peft import LoraConfig, get_peft_model

    with hf.library_warnings_ignored():
        model = get_peft_model(hf.load(str(base)).model, LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
        model.save_pretrained(str(run / "adapter"), save_embedding_layers=False)
    if note is not None:
        (run / "vaultllm.json").write_text(json.dumps(note))
    return run / "adapter"


def change(folder: Path, name: str = "config.json", **values: Any) -> None:
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")


def list_config(folder: Path) -> None:
    (folder / "config.json").write_text("[]")


def an_adapter(folder: Path) -> None:
    no_config(folder)
    (folder / "adapter_config.json").write_text("{}")


def bert(folder: Path) -> None:
    change(folder, architectures=["BertModel"], model_type="bert")


def t5(folder: Path) -> None:
    change(folder, architectures=["T5ForConditionalGeneration"], model_type="t5")


def unknown_type(folder: Path) -> None:
    change(folder, architectures=None, model_type="nonsense")


def own_code(folder: Path) -> None:
    change(folder, auto_map={"AutoModelForCausalLM": "evil.Model"})


def own_tokenizer_code(folder: Path) -> None:
    change(folder, "tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Tokenizer", None]})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def missing_shard(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors"}}))


def no_tokenizer(folder: Path) -> None:
    for path in folder.glob("tokenizer*"):
        path.unlink()


REFUSED: list[tuple[Callable[[Path], None], str]] = [
    (no_config, "config.json is missing"),
    (broken_config, "cannot be read"),
    (list_config, "not a JSON object"),
    (an_adapter, "this is an adapter"),
    (bert, "BertModel is not a causal"),
    (t5, "T5ForConditionalGeneration is not a causal"),
    (unknown_type, "'nonsense' is not a causal"),
    (own_code, "auto_map"),
    (own_tokenizer_code, "auto_map"),
    (pickled, "pickles"),
    (no_weights, "no weights"),
    (missing_shard, "model-00001-of-00002.safetensors of its weights is missing"),
    (no_tokenizer, "no tokenizer"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[damage.__name__ for damage, _ in REFUSED])
def test_what_cannot_be_a_base_is_refused_by_name(base: Path, tmp_path: Path, damage: Callable[[Path], None], message: str):
    folder = shutil.copytree(base, tmp_path / "model")
    assert hf.resolve(str(folder)) == str(folder)
    damage(folder)
    with pytest.raises(ModelError, match=message) as caught:
        hf.resolve(str(folder))
    assert caught.value.path is not None


def test_truncated_junk_and_incomplete_weights_are_model_errors(base: Path, tmp_path: Path):
    from safetensors.torch import load_file, save_file

    weights = (base / "model.safetensors").read_bytes()
    for i, damaged in enumerate((weights[:-100], weights[:4], b"\x80\x04pickle" * 10)):
        folder = shutil.copytree(base, tmp_path / f"model{i}")
        (folder / "model.safetensors").write_bytes(damaged)
        with pytest.raises(ModelError, match="cannot be loaded"):
            hf.load(str(folder))
    folder = shutil.copytree(base, tmp_path / "less")
    tensors = load_file(base / "model.safetensors")
    tensors.pop("model.layers.0.mlp.up_proj.weight")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match=r"up_proj.* missing"):
        hf.load(str(folder))


def test_the_hub_says_nothing_on_its_own() -> None:
    from huggingface_hub.utils import logging as hub

    hub.set_verbosity_info()
    hf.quiet()
    assert hub.get_verbosity() == hub.ERROR  # below it, each retry without a network is a line on stderr


def test_a_hub_id_without_network_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match="hf download somebody/no-such-model") as caught:
        hf.resolve("somebody/no-such-model")
    assert "not on this machine" in caught.value.message


@pytest.mark.parametrize("named", ["/no/such/folder", "../nothing/here/at/all", "a b", ""])
def test_a_name_that_is_no_folder_and_no_id_is_said_to_be_so(named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no such folder|config\.json is missing"):
        hf.resolve(named)


def test_the_fingerprint_changes_with_every_file_that_matters_and_with_no_other(base: Path, tmp_path: Path):
    folder = shutil.copytree(base, tmp_path / "model")
    before = hf.fingerprint(folder)
    assert before == hf.fingerprint(base)
    (folder / "README.md").write_text("hello")
    assert hf.fingerprint(folder) == before
    for name in ("config.json", "model.safetensors", "tokenizer.json", "chat_template.jinja"):
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        assert hf.fingerprint(folder) != before, name
        (folder / name).write_bytes(data)


def test_a_small_or_vault_trained_model_is_not_trusted_to_answer(
    base: Path, loaded: hf.Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert not loaded.capable
    assert (loaded.name, loaded.context) == ("tiny", 256)
    assert loaded.parameters == sum(p.numel() for p in loaded.model.parameters())
    monkeypatch.setattr(hf, "CAPABLE", 1000)
    assert hf.load(str(base)).capable
    micro = shutil.copytree(base, tmp_path / "micro")
    (micro / "micro.json").write_text("{}")
    assert not hf.load(str(micro)).capable


def test_an_adapter_of_another_base_is_refused(base: Path, tmp_path: Path):
    adapter = adapter_of(base, tmp_path)
    weights = hashlib.sha256((adapter / "adapter_model.safetensors").read_bytes()).hexdigest()
    (tmp_path / "vaultllm.json").write_text(json.dumps({"base_sha": hf.fingerprint(base), "adapter_sha256": weights}))
    assert hf.load(str(base), adapter).model.peft_config
    other = models.build(tmp_path / "other", seed=7)
    with pytest.raises(ModelError, match="another base"):
        hf.load(str(other), adapter)
    (tmp_path / "vaultllm.json").unlink()
    (tmp_path / "run.json").write_text(json.dumps({"base_sha": "f" * 64}))
    with pytest.raises(ModelError, match="another base"):
        hf.load(str(base), adapter)


def test_an_adapter_that_does_not_fit_is_refused(base: Path, tmp_path: Path):
    adapter = adapter_of(models.build(tmp_path / "wide", width=64), tmp_path)
    with pytest.raises(ModelError, match="does not fit"):
        hf.load(str(base), adapter)


def test_a_damaged_adapter_is_refused(base: Path, tmp_path: Path):
    import torch
    from safetensors.torch import load_file, save_file

    adapter = adapter_of(base, tmp_path, {"base_sha": hf.fingerprint(base), "adapter_sha256": "0" * 64})
    with pytest.raises(ModelError, match="not what was written"):
        hf.load(str(base), adapter)
    (tmp_path / "vaultllm.json").unlink()
    weights = adapter / "adapter_model.safetensors"
    tensors = load_file(weights)
    tensors[next(iter(tensors))][0, 0] = torch.nan
    save_file(tensors, weights)
    with pytest.raises(ModelError, match="not finite"):
        hf.load(str(base), adapter)
    weights.rename(adapter / "adapter_model.bin")
    with pytest.raises(ModelError, match="pickle"):
        hf.load(str(base), adapter)
    with pytest.raises(ModelError, match="no adapter here"):
        hf.load(str(base), tmp_path / "nothing")


def prompt(loaded: hf.Loaded, text: str = "Дождь идёт") -> list[int]:
    return bpe.encode_text(loaded.tokenizer, text)


@pytest.mark.parametrize("shape", models.SHAPES)
def test_greedy_generation_gives_transformers_own_tokens(shape: models.Shape, tmp_path: Path):
    import torch

    loaded = hf.load(str(models.build(tmp_path / shape, shape, seed=3)))
    ids = prompt(loaded)
    theirs = loaded.model.generate(
        torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=sorted(hf.end_ids(loaded)), pad_token_id=0
    )
    wanted = [token for token in theirs[0, len(ids) :].tolist() if token not in hf.end_ids(loaded)]
    ours = "".join(hf.generate(loaded, ids, max_new_tokens=24))
    assert ours == loaded.tokenizer.decode(wanted, skip_special_tokens=True).replace("\ufffd", "")
    assert len(wanted) > 3


def test_sampling_repeats_with_its_seed_and_differs_with_another(loaded: hf.Loaded):
    def said(seed: int) -> str:
        return "".join(hf.generate(loaded, prompt(loaded), max_new_tokens=24, temperature=1.0, seed=seed))

    assert said(1) == said(1)
    assert len({said(seed) for seed in range(4)}) > 1


def test_a_repetition_penalty_breaks_a_loop(tmp_path: Path):
    import torch

    loaded = hf.load(str(models.build(tmp_path / "m", "llama", seed=1)))
    with torch.no_grad():  # every token looks the same, so the same one follows for ever
        loaded.model.model.embed_tokens.weight.fill_(0.5)
    looped = list(hf.generate(loaded, prompt(loaded), max_new_tokens=12))
    varied = list(hf.generate(loaded, prompt(loaded), max_new_tokens=12, repetition=5.0))
    assert len(set(looped)) == 1
    assert len(set(varied)) > 3


def test_generation_stops_at_a_stop_string_that_is_never_shown(loaded: hf.Loaded):
    ids = prompt(loaded)
    whole = "".join(hf.generate(loaded, ids, max_new_tokens=40))
    assert len(whole) > 12
    stop = whole[6:9]
    cut = "".join(hf.generate(loaded, ids, max_new_tokens=40, stop=[stop]))
    assert cut == whole[: whole.index(stop)]


def test_generation_ends_at_the_end_of_the_context_and_refuses_a_prompt_without_room(loaded: hf.Loaded):
    ids = (prompt(loaded) * 200)[: loaded.context - 3]
    assert len(list(hf.generate(loaded, ids, max_new_tokens=50))) <= 3
    for wrong in ([], ids + ids):
        with pytest.raises(ModelError, match="tokens; this model reads"):
            list(hf.generate(loaded, wrong, max_new_tokens=1))


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet="абв নদী 🙂é\n", min_size=1, max_size=30))
def test_pieces_put_together_are_the_text_and_none_holds_half_a_character(loaded: hf.Loaded, text: str):
    pieces = hf._Pieces(loaded.tokenizer, [])
    out = [pieces.add(token) for token in bpe.encode_text(loaded.tokenizer, text)] + [pieces.rest()]
    assert "".join(out) == text
    assert not any("\ufffd" in piece for piece in out)


def test_an_answer_that_ends_within_a_character_ends_before_it(loaded: hf.Loaded):
    ids = bpe.encode_text(loaded.tokenizer, "ab🙂")
    pieces = hf._Pieces(loaded.tokenizer, [])
    assert "".join([pieces.add(token) for token in ids[:-1]] + [pieces.rest()]) == "ab"


def test_the_probe_answers_and_remembers():
    assert hf.probe_bf16() is hf.probe_bf16()
    assert hf.device() in ("cpu", "cuda", "mps")


def test_out_of_memory_makes_continuations_in_halves(loaded: hf.Loaded, monkeypatch: pytest.MonkeyPatch):
    from vaultllm.models import batched

    prompts = [[5 + i, 6, 7 + i] for i in range(5)]
    whole = batched.continuations(loaded, prompts, 6)
    real, sizes = loaded.model.generate, []

    def small(input_ids: Any, **how: Any) -> Any:
        sizes.append(len(input_ids))
        if len(input_ids) > most:
            raise RuntimeError("CUDA out of memory")
        return real(input_ids=input_ids, **how)

    most = 2
    monkeypatch.setattr(loaded.model, "generate", small)
    assert batched.continuations(loaded, prompts, 6) == whole
    assert sorted(sizes) == [1, 2, 2, 3, 5]
    most = 0
    with pytest.raises(ModelError, match="memory is not enough"):
        batched.continuations(loaded, prompts, 6)


def test_top_p_draws_among_the_likeliest_alone_and_the_tokens_are_counted(loaded: hf.Loaded) -> None:
    made: list[int] = []
    greedy = "".join(hf.generate(loaded, prompt(loaded), max_new_tokens=12, made=made))
    assert 0 < len(made) <= 12
    assert bpe.encode_text(loaded.tokenizer, greedy)
    for seed in range(3):  # so small a share holds the first token alone
        assert "".join(hf.generate(loaded, prompt(loaded), max_new_tokens=12, temperature=1.0, top_p=1e-6, seed=seed)) == greedy
    free = {"".join(hf.generate(loaded, prompt(loaded), max_new_tokens=12, temperature=1.0, seed=seed)) for seed in range(3)}
    assert len(free) > 1
