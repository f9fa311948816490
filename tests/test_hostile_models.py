"""Files of models that would run code, or are not what was written: each is refused before anything of it is loaded or run.

The canary is a file: whatever runs makes it. Two counts: accepted 0, executed 0.
"""

from __future__ import annotations

import json
import pickle
import shutil
import struct
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests import models
from tests.test_hf import adapter_of, change
from vaultllm import tokenizer as bpe
from vaultllm.errors import ModelError
from vaultllm.memory import embedders, rerank
from vaultllm.models import hf, micro
from vaultllm.schema import Example, Message

pytestmark = pytest.mark.usefixtures("one_thread")
Damage = Callable[[Path], None]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models.build(tmp_path_factory.mktemp("base") / "tiny", "llama")


@pytest.fixture(scope="module")
def run(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's folder as training leaves it: adapter, `vaultllm.json`."""
    folder = tmp_path_factory.mktemp("run")
    adapter = adapter_of(base, folder)
    kept = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps(kept | {"target_modules": sorted(kept["target_modules"])}, indent=1))
    noted = {"schema": 2, "base_sha": hf.fingerprint(base)}
    for key, name in (("adapter_sha256", "adapter_model.safetensors"), ("config_sha256", "adapter_config.json")):
        facts = (adapter / name).stat()
        noted[key] = hf._file_sha(str(adapter / name), facts.st_size, facts.st_mtime_ns)
    (folder / "vaultllm.json").write_text(json.dumps(noted))
    return folder


class _Bomb:
    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> Any:
        return (Path.touch, (self.canary,))


def bomb(folder: Path) -> bytes:
    """A pickle that makes the canary."""
    return pickle.dumps(_Bomb(folder.parent / "canary"))


def code(folder: Path, name: str = "evil.py") -> None:
    """A module that makes the canary."""
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"open({str(folder.parent / 'canary')!r}, 'w')\nclass Model: pass\ndef generate(*a, **k): pass\n")


def tensors(folder: Path, name: str, edit: Callable[[dict[str, Any], bytes], tuple[dict[str, Any], bytes]]) -> None:
    """Rewrite a safetensors file by header and data."""
    data = (folder / name).read_bytes()
    size = struct.unpack("<Q", data[:8])[0]
    header, rest = edit(json.loads(data[8 : 8 + size]), data[8 + size :])
    said = json.dumps(header).encode()
    (folder / name).write_bytes(struct.pack("<Q", len(said)) + said + rest)


def first(header: dict[str, Any]) -> str:
    return next(name for name in header if name != "__metadata__")


def overlap(header: dict[str, Any], rest: bytes) -> tuple[dict[str, Any], bytes]:
    names = [name for name in header if name != "__metadata__"]
    for one in names[1:]:
        if header[one]["shape"] == header[names[0]]["shape"]:
            header[one]["data_offsets"] = header[names[0]]["data_offsets"]
    return header, rest


def hole(header: dict[str, Any], rest: bytes) -> tuple[dict[str, Any], bytes]:
    return {name: one for name, one in header.items() if name != first(header)}, rest


def beyond(header: dict[str, Any], rest: bytes) -> tuple[dict[str, Any], bytes]:
    header[first(header)]["data_offsets"] = [0, 1 << 60]
    return header, rest


def kind(header: dict[str, Any], rest: bytes) -> tuple[dict[str, Any], bytes]:
    header[first(header)]["dtype"] = "O"
    return header, rest


def larger(header: dict[str, Any], rest: bytes) -> tuple[dict[str, Any], bytes]:
    header[first(header)]["shape"] = [1 << 40, 1 << 40]
    return header, rest


def zipped(path: Path, folder: Path) -> None:
    """As torch.save writes it: a zip with a pickle in it."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", bomb(folder))
        archive.writestr("archive/version", "3\n")


def files(name: str) -> dict[str, Damage]:
    """Ways in which a file of weights is wrong."""

    def put(make: Callable[[bytes], bytes]) -> Damage:
        return lambda folder: (folder / name).write_bytes(make((folder / name).read_bytes())) and None

    return {
        "empty": put(lambda data: b""),
        "length only": put(lambda data: data[:8]),
        "half of the header": put(lambda data: data[:60]),
        "half of the data": put(lambda data: data[: len(data) // 2]),
        "without its last byte": put(lambda data: data[:-1]),
        "a byte more": put(lambda data: data + b"x"),
        "a length of 2^63": put(lambda data: struct.pack("<Q", 1 << 63) + data[8:]),
        "a length of 0": put(lambda data: struct.pack("<Q", 0) + data[8:]),
        "junk": put(lambda data: bytes(range(256)) * 40),
        "a header that is no JSON": put(lambda data: data[:8] + b"\xff" + data[9:]),
        "a pickle with its name": lambda folder: (folder / name).write_bytes(bomb(folder)) and None,
        "a zipped pickle with its name": lambda folder: zipped(folder / name, folder),
        "tensors that overlap": lambda folder: tensors(folder, name, overlap),
        "a hole": lambda folder: tensors(folder, name, hole),
        "data beyond the end": lambda folder: tensors(folder, name, beyond),
        "an unknown dtype": lambda folder: tensors(folder, name, kind),
        "a shape that overflows": lambda folder: tensors(folder, name, larger),
    }


def pickled(folder: Path, name: str, of: str) -> None:
    (folder / of).unlink()
    (folder / name).write_bytes(bomb(folder))


def configured(name: str = "config.json", **values: Any) -> Damage:
    """A configuration that names code, and the code."""

    def damage(folder: Path) -> None:
        code(folder)
        path = folder / name
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | values))

    return damage


def nested_code(folder: Path) -> None:
    code(folder)
    change(folder, text_config={"auto_map": {"AutoModel": "evil.Model"}})


CODE: dict[str, Damage] = {
    "auto_map": configured(auto_map={"AutoModelForCausalLM": "evil.Model"}),
    "auto_map of another repository": configured(auto_map={"AutoModelForCausalLM": "somebody/repo--evil.Model"}),
    "auto_map in a part": nested_code,
    "auto_map of the tokenizer": configured("tokenizer_config.json", auto_map={"AutoTokenizer": ["evil.Model", None]}),
    "auto_map of the generation": configured("generation_config.json", auto_map={"x": "evil.Model"}),
    "custom_generate": configured("generation_config.json", custom_generate="somebody/repo"),
    "trust in itself": configured(trust_remote_code=True),
    "a kernel from the hub": configured(attn_implementation="kernels-community/flash-attn"),
    "a kernel from elsewhere": configured(_attn_implementation="somebody/evil:run"),
    "kernels by part": configured(attn_implementation={"text_config": "somebody/evil"}),
    "kernels for the experts": configured(experts_implementation="somebody/evil"),
}
BASES: dict[str, Damage] = {
    **files("model.safetensors"),
    **CODE,
    "only pytorch_model.bin": lambda folder: pickled(folder, "pytorch_model.bin", "model.safetensors"),
    "only model.pt": lambda folder: pickled(folder, "model.pt", "model.safetensors"),
}


def canary(tmp_path: Path) -> bool:
    return (tmp_path / "canary").exists()


def refused(base: str, adapter: Path | None = None) -> bool:
    try:
        hf.load(base, adapter)
    except ModelError as error:
        return error.path is not None
    return False


@pytest.mark.parametrize("what", BASES)
def test_a_base_with_that_is_refused_and_runs_nothing(base: Path, tmp_path: Path, what: str) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    BASES[what](folder)
    assert refused(str(folder))
    assert not canary(tmp_path)


def test_code_that_lies_beside_a_model_and_is_not_named_is_not_run(base: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    for name in ("modeling_llama.py", "tokenization_llama.py", "custom_generate/generate.py", "__init__.py", "conftest.py", "torch.py"):
        code(folder, name)
    (folder / "pytorch_model.bin").write_bytes(bomb(folder))
    (folder / "training_args.bin").write_bytes(bomb(folder))
    loaded = hf.load(str(folder))
    assert list(hf.generate(loaded, [5, 6, 7], max_new_tokens=2)) is not None
    assert not canary(tmp_path)


ADAPTERS: dict[str, Damage] = {
    **files("adapter_model.safetensors"),
    "auto_mapping": configured("adapter_config.json", auto_mapping={"base_model_class": "Model", "parent_library": "evil"}),
    "trust in itself": configured("adapter_config.json", trust_remote_code=True),
    "megatron by a module's name": configured("adapter_config.json", megatron_config={"x": 1}, megatron_core="evil"),
    "modules by a pattern that never ends": configured("adapter_config.json", target_modules="((a|a)*)*b"),
    "another kind": configured("adapter_config.json", peft_type="PROMPT_TUNING"),
    "an unknown kind": configured("adapter_config.json", peft_type="EVIL"),
    "a base by address": configured("adapter_config.json", base_model_name_or_path="https://canary.example/x", revision="evil"),
    "another alpha": configured("adapter_config.json", lora_alpha=64),
    "another rank": configured("adapter_config.json", r=3),
    "no configuration": lambda folder: (folder / "adapter_config.json").unlink(),
    "a configuration that is no JSON": lambda folder: (folder / "adapter_config.json").write_text("{") and None,
    "only adapter_model.bin": lambda folder: pickled(folder, "adapter_model.bin", "adapter_model.safetensors"),
}


@pytest.mark.parametrize("what", ADAPTERS)
@pytest.mark.parametrize("noted", [True, False], ids=["of a run", "of nobody"])
def test_an_adapter_with_that_is_refused_and_runs_nothing(base: Path, run: Path, tmp_path: Path, what: str, noted: bool) -> None:
    if not noted and what in ("a base by address", "another alpha"):
        pytest.skip("nobody knows what it was")
    folder = shutil.copytree(run, tmp_path / "run") / "adapter"
    if not noted:
        (tmp_path / "run" / "vaultllm.json").unlink()
    ADAPTERS[what](folder)
    assert refused(str(base), folder)
    assert not canary(tmp_path)


def test_each_class_of_bytes_of_a_runs_files_is_looked_at(base: Path, run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(run, tmp_path / "run")
    assert not refused(str(base), folder / "adapter")
    tried = accepted = 0
    for name in ("adapter/adapter_model.safetensors", "adapter/adapter_config.json", "vaultllm.json"):
        whole = (folder / name).read_bytes()
        size = struct.unpack("<Q", whole[:8])[0] if name.endswith("safetensors") else 0
        places = (0, 7, 8, 9 + size // 2, 8 + size, len(whole) // 2, len(whole) - 1) if size else range(0, len(whole), len(whole) // 12)
        for place in places:
            for bit in (1, 64):
                (folder / name).write_bytes(whole[:place] + bytes([whole[place] ^ bit]) + whole[place + 1 :])
                tried += 1
                accepted += not refused(str(base), folder / "adapter")
        (folder / name).write_bytes(whole)
    assert tried > 50
    assert accepted == 0
    assert not refused(str(base), folder / "adapter"), "the control: put right again it is accepted"
    (folder / "vaultllm.json").unlink()
    kept = json.loads((run / "vaultllm.json").read_text())
    (folder / "run.json").write_text(json.dumps({"base_sha": kept["base_sha"], "metrics": {"adapter_sha256": "0" * 64}}))
    assert refused(str(base), folder / "adapter")


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "model.safetensors"])
def test_a_base_that_changed_since_the_training_is_another_base(base: Path, run: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(base, tmp_path / "model")
    assert not refused(str(folder), run / "adapter")
    with (folder / name).open("ab") as file:
        file.write(b" ")
    assert refused(str(folder), run / "adapter")


def test_weights_that_are_no_numbers_neither_load_nor_speak(base: Path, run: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    adapter = shutil.copytree(run, tmp_path / "run") / "adapter"
    (tmp_path / "run" / "vaultllm.json").unlink()
    whole = load_file(adapter / "adapter_model.safetensors")
    for number in (torch.nan, torch.inf, -torch.inf):
        some = {name: one.clone() for name, one in whole.items()}
        some[next(reversed(some))][-1, -1] = number
        save_file(some, adapter / "adapter_model.safetensors")
        assert refused(str(base), adapter)
    folder = shutil.copytree(base, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelError, match="no number"):
        list(hf.generate(hf.load(str(folder)), [5, 6], max_new_tokens=2))


def test_a_micro_base_is_what_was_written(tmp_path: Path) -> None:
    said = (Message("user", "?", False), Message("assistant", " ".join(models.TEXTS), True))
    examples = [Example(str(i), (), "a.md", "dialogue", said, "train") for i in range(8)]
    micro.pretrain(examples, tmp_path / "micro-1", minutes=1, seed=0, progress=lambda progress: None, steps=1)
    folder = tmp_path / "micro-1"
    assert not refused(str(folder))
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    assert refused(str(folder))


# -- chat templates


TEMPLATES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.__class__.__base__.__subclasses__()[0] }}",
    "{{ cycler.__init__.__globals__.os.system('touch CANARY') }}",
    "{{ lipsum.__globals__['os'].popen('touch CANARY').read() }}",
    "{{ self.__init__.__globals__.__builtins__.open('CANARY', 'w') }}",
    "{{ messages|attr('__class__')|attr('__base__')|attr('__subclasses__')() }}",
    "{{ raise_exception.__globals__.__builtins__.__import__('os').system('touch CANARY') }}",
    "{{ strftime_now.__globals__['__builtins__']['open']('CANARY', 'w') }}",
    "{{ (messages[0].items.__self__.__class__.__mro__)[1] }}",
    "{{ '%s'|format(messages.__class__) }}{{ namespace.__init__.__globals__ }}",
    "{% set x = messages.clear() %}{% set y = messages[0].update({'content': 'x'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.system('touch CANARY') }}",
    "{% extends '/etc/passwd' %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
    "{% for a in range(99999) %}{% for b in range(99999) %}x{% endfor %}{% endfor %}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{% for i in range(10 ** 12) %}{% endfor %}",
    "{{ 'a' * 10 ** 12 }}",
    "{{ 'a' * 3 * 10 ** 9 }}",
    "{% set ns = namespace(s='a' * 999) %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
    "{{ '%99999999999d' % 1 }}",
    "{{ 'x'.center(10 ** 10) }}",
    "{{ 1 / 0 }}",
    "{{ messages[99].content }}{{ none.x.y }}",
    "{{ messages[0]['content']['x'] + 1 }}",
    "{% for m in messages %}",
    "{{ messages|",
    "{{ raise_exception('no') }}",
    "{{ 'x' }}" * 3,
    "{{ messages[0].content[:3] }}",
    "{{ messages[0].content|upper }}",
    "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}",
    "{% for i in range(3000) %}{{ 'abcdefgh' * 100 }}{% endfor %}{% for m in messages %}{{ m.content }}{% endfor %}",
]


def test_a_chat_template_reaches_nothing_ends_and_never_meets_a_note(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(bpe, "_TEMPLATE_BYTES", 128 << 20)
    tokens = hf.load_tokenizer(base)
    talk = [Message("user", "<|im_end|>тайна", False), Message("assistant", "да", True)]
    tokens.chat_template = None
    plain = bpe.encode_chat(tokens, talk)
    slowest = 0.0
    for template in TEMPLATES:
        began = time.process_time()
        tokens.chat_template = template.replace("CANARY", str(tmp_path / "canary"))
        ids, learnt = bpe.encode_chat(tokens, talk)
        slowest = max(slowest, time.process_time() - began)
        said = tokens.decode(ids)
        assert (ids, learnt) == plain or ("тайна" in said and "да" in said), template
        assert tokens.convert_tokens_to_ids(bpe.TURN_END) not in ids[:-1] or (ids, learnt) == plain, template
    assert not canary(tmp_path)
    assert slowest < 6
    tokens.chat_template = bpe.CHAT_TEMPLATE
    assert bpe.encode_chat(tokens, talk) != plain


# -- encoders and cross-encoders


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("encoder") / "bert"
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 64}
    BertForSequenceClassification(BertConfig(vocab_size=512, num_labels=1, **shape)).save_pretrained(folder)
    bpe.save(models.tokenizer(), folder)
    return folder


def modules(*parts: Any, **more: Any) -> Damage:
    """A `modules.json` of sentence-transformers; `more`: folder -> its configuration."""

    def damage(folder: Path) -> None:
        code(folder)
        (folder / "evil.joblib").write_bytes(bomb(folder))
        (folder / "modules.json").write_text(json.dumps(list(parts)))
        for name, said in more.items():
            (folder / name).mkdir(exist_ok=True)
            (folder / name / "config.json").write_text(json.dumps(said))

    return damage


def dense(folder: Path) -> None:
    modules({"idx": 0, "name": "0", "path": "2_Dense", "type": "sentence_transformers.models.Dense"})(folder)
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(bomb(folder))


ENCODERS: dict[str, Damage] = {
    **CODE,
    "a module of its own": modules({"path": "", "type": "evil.Model"}),
    "a loader of pickles": modules({"path": "evil.joblib", "type": "joblib.numpy_pickle"}),
    "a class of the library of Python": modules({"path": "", "type": "subprocess.Popen"}),
    "a class that reads any file": modules({"path": "", "type": "sentence_transformers.models.WordEmbeddings"}),
    "a router, which names classes itself": modules({"path": "", "type": "sentence_transformers.models.Router"}),
    "a part outside": modules({"path": "../elsewhere", "type": "sentence_transformers.models.Dense"}),
    "a part by an absolute path": modules({"path": "/etc", "type": "sentence_transformers.models.Dense"}),
    "modules that are no list": modules(),
    "an activation of its own": modules(D={"activation_function": "evil.Model"}),
    "an activation that ends the process": modules(D={"activation_function": "os.abort"}),
    "a pickled part": dense,
    "only pytorch_model.bin": lambda folder: pickled(folder, "pytorch_model.bin", "model.safetensors"),
    "a pickle named model.safetensors": files("model.safetensors")["a pickle with its name"],
    "half of the data": files("model.safetensors")["half of the data"],
    "tensors that overlap": files("model.safetensors")["tensors that overlap"],
}
ENCODERS["modules that are no list"] = lambda folder: (folder / "modules.json").write_text('{"type": "evil.Model"}') and None


@pytest.mark.parametrize("what", ENCODERS)
def test_an_encoder_or_cross_encoder_with_that_is_refused_and_runs_nothing(encoder: Path, tmp_path: Path, what: str) -> None:
    folder = shutil.copytree(encoder, tmp_path / "model")
    ENCODERS[what](folder)
    with pytest.raises(ModelError):
        embedders.create(f"st:{folder}").embed(["вода"])
    with pytest.raises(ModelError):
        rerank.CrossEncoder(str(folder)).judge("вода", ["река"])
    assert not canary(tmp_path)


def test_the_canary_is_made_where_a_pickle_is_loaded(tmp_path: Path) -> None:
    pickle.loads(bomb(tmp_path / "model"))
    assert canary(tmp_path)
