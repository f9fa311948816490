"""The choice of embedders: encoders on disk, a causal model, a server that speaks OpenAI's embeddings; what is refused, and how."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import models
from vaultllm.errors import ConfigError, ModelError
from vaultllm.memory import embedders
from vaultllm.memory.embed import VaultEmbedder
from vaultllm.memory.embedders import EmbedderError, local, server
from vaultllm.models import hf

TEXTS = ["Насос включается ночью.", "Rye bread", "আজ সকালে বৃষ্টি হয়েছে। নদীর জল বেড়েছে।", "one two three four five six seven"]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random BERT of E5's shape with a WordPiece tokenizer trained here, saved as safetensors."""
    import torch
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    words.normalizer = normalizers.BertNormalizer()
    words.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words.train_from_iterator([*TEXTS, "query: passage: Q> D>"] * 5, trainers.WordPieceTrainer(vocab_size=300, special_tokens=special))
    words.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 2), ("[SEP]", 3)])
    hf.quiet()
    folder = tmp_path_factory.mktemp("models") / "multilingual-e5-tiny"
    torch.manual_seed(0)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48, "max_position_embeddings": 42}
    config = BertConfig(vocab_size=300, **sizes)
    BertModel(config).save_pretrained(folder)
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
    return folder


def _copy(encoder: Path, to: Path, files: dict[str, Any]) -> Path:
    to.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(encoder, to)
    for name, content in files.items():
        (to / name).parent.mkdir(exist_ok=True)
        (to / name).write_text(json.dumps(content))
    return to


def _by_hand(folder: Path, texts: list[str], pool: Callable[[Any], Any]) -> np.ndarray:
    """Each text alone through the model: no padding, no batches."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    rows = []
    with torch.no_grad():
        for text in texts:
            states = model(**tokenizer(text, return_tensors="pt", truncation=True, max_length=40)).last_hidden_state[0]
            rows.append(pool(states).numpy())
    found = np.stack(rows)
    return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_an_e5_model_is_pooled_over_its_own_tokens_with_its_prefixes(encoder: Path) -> None:
    embedder = embedders.create(f"st:{encoder}")
    assert embedder.dims == 24
    passages, questions = embedder.embed(TEXTS), embedder.embed(TEXTS, query=True)
    assert passages.dtype == np.float32
    np.testing.assert_allclose(passages, _by_hand(encoder, ["passage: " + text for text in TEXTS], lambda s: s.mean(0)), atol=1e-5)
    np.testing.assert_allclose(questions, _by_hand(encoder, ["query: " + text for text in TEXTS], lambda s: s.mean(0)), atol=1e-5)
    assert np.abs(passages - questions).max() > 1e-3


@pytest.mark.parametrize(
    ("config", "pool"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, lambda s: s[0]),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, lambda s: s.mean(0)),
        ({"pooling_mode": "lasttoken"}, lambda s: s[-1]),
        ({"pooling_mode": ["cls"]}, lambda s: s[0]),
    ],
)
def test_pooling_is_what_the_folder_says(encoder: Path, tmp_path: Path, config: dict[str, Any], pool: Callable[[Any], Any]) -> None:
    folder = _copy(encoder, tmp_path / "plain", {"1_Pooling/config.json": config})
    embedder = embedders.create(f"st:{folder}")
    np.testing.assert_allclose(embedder.embed(TEXTS), _by_hand(folder, TEXTS, pool), atol=1e-5)


def test_prompts_of_the_folder_win_over_those_of_its_name(encoder: Path, tmp_path: Path) -> None:
    said = {"config_sentence_transformers.json": {"prompts": {"query": "Q> ", "document": "D> "}}}
    embedder = embedders.create(f"st:{_copy(encoder, tmp_path / 'my-e5', said)}")
    np.testing.assert_allclose(embedder.embed(TEXTS), _by_hand(encoder, ["D> " + text for text in TEXTS], lambda s: s.mean(0)), atol=1e-5)
    asked = embedder.embed(TEXTS, query=True)
    np.testing.assert_allclose(asked, _by_hand(encoder, ["Q> " + text for text in TEXTS], lambda s: s.mean(0)), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "query"),
    [
        ("multilingual-e5-small", "query: "),
        ("intfloat/e5-base-v2", "query: "),
        ("nomic-embed-text:v1.5", "search_query: "),
        ("bge-m3", ""),
        ("some-e50-model", ""),
    ],
)
def test_prefixes_by_name(name: str, query: str) -> None:
    assert embedders.ServerEmbedder("http://127.0.0.1:1/v1", name).prompts.query == query


def test_instructed_e5_models_want_an_instruction_before_questions_only() -> None:
    prompts = embedders.ServerEmbedder("http://127.0.0.1:1/v1", "multilingual-e5-large-instruct").prompts
    assert prompts.query.startswith("Instruct: ")
    assert prompts.query.endswith("\nQuery: ")
    assert prompts.passage == ""


def test_long_and_empty_texts_have_vectors_too(encoder: Path) -> None:
    embedder = embedders.create(f"st:{encoder}")
    long, empty, blank = embedder.embed(["слово " * 500, "", " \n"])
    assert np.linalg.norm(long) == pytest.approx(1.0, abs=1e-5)
    assert not empty.any()
    assert not blank.any()
    assert embedder.embed([""]).shape == (1, 24)


def test_a_text_has_the_same_vector_in_any_company(encoder: Path) -> None:
    embedder = embedders.create(f"st:{encoder}")
    many = [f"{text} {number}" for number in range(20) for text in TEXTS]
    together = embedder.embed(many)
    np.testing.assert_allclose(together[[3, 40, 79]], embedder.embed([many[3], many[40], many[79]]), atol=1e-5)


def test_a_fingerprint_follows_weights_pooling_and_prompts_and_nothing_else(encoder: Path, tmp_path: Path) -> None:
    def of(name: str, files: dict[str, Any]) -> str:
        return embedders.create(f"st:{_copy(encoder, tmp_path / name / encoder.name, files)}").fingerprint

    same = of("a", {"README.md": "words"})
    assert same == embedders.create(f"st:{encoder}").fingerprint
    assert of("b", {"1_Pooling/config.json": {"pooling_mode": "cls"}}) != same
    assert of("c", {"config_sentence_transformers.json": {"prompts": {"query": "q "}}}) != same
    other = tmp_path / "d" / encoder.name
    shutil.copytree(encoder, other)
    weights = bytearray((other / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (other / "model.safetensors").write_bytes(weights)
    assert embedders.create(f"st:{other}").fingerprint != same


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("none", "there is no such folder"),
        ("empty", "config.json is missing"),
        ("pickle", "pickles"),
        ("pickled part", "pickles"),
        ("code", "auto_map"),
        ("json", "cannot be read"),
        ("weights", "cannot be loaded"),
        ("a layer", "weights are missing"),
        ("dense", "pip install sentence-transformers"),
    ],
)
def test_a_model_that_cannot_be_used_is_refused_with_its_reason(encoder: Path, tmp_path: Path, damage: str, said: str) -> None:
    folder = tmp_path / "m"
    shutil.copytree(encoder, folder)
    if damage == "none":
        folder = tmp_path / "no such"
    elif damage == "empty":
        (folder / "config.json").unlink()
    elif damage == "pickle":
        (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    elif damage == "pickled part":
        (folder / "2_Dense").mkdir()
        (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"\x80")
    elif damage == "code":
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, "auto_map": {"AutoModel": "evil.Model"}}))
    elif damage == "json":
        (folder / "config.json").write_text("{")
    elif damage == "weights":
        (folder / "model.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0garbage!")
    elif damage == "a layer":
        from safetensors.numpy import load_file, save_file

        kept = {name: weight for name, weight in load_file(folder / "model.safetensors").items() if "layer.1.output" not in name}
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
    else:
        if local.importlib.util.find_spec("sentence_transformers"):
            pytest.skip("sentence-transformers is installed")
        (folder / "modules.json").write_text(json.dumps([{"type": "sentence_transformers.models.Dense"}]))
    with pytest.raises(ModelError, match=said) as told:
        embedders.create(f"st:{folder}").embed(["x"])
    assert str(folder) in str(told.value)


def test_a_hub_id_that_is_not_here_names_the_command_that_gets_it() -> None:
    with pytest.raises(ModelError, match="hf download somebody/e5-of-theirs"):
        embedders.create("st:somebody/e5-of-theirs")


def test_sentence_transformers_itself_gives_the_same_vectors(encoder: Path, tmp_path: Path) -> None:
    library = pytest.importorskip("sentence_transformers")
    folder = tmp_path / "st"
    modules = library.sentence_transformer.modules
    transformer = modules.Transformer(str(encoder))
    library.SentenceTransformer(modules=[transformer, modules.Pooling(24, "cls"), modules.Normalize()]).save(str(folder))
    ours = embedders.create(f"st:{folder}").embed(TEXTS)
    np.testing.assert_allclose(ours, library.SentenceTransformer(str(folder)).encode(TEXTS), atol=1e-5)
    dense = modules.Dense(24, 8)
    library.SentenceTransformer(modules=[transformer, modules.Pooling(24, "mean"), dense]).save(str(tmp_path / "dense"))
    outside = embedders.create(f"st:{tmp_path / 'dense'}")
    theirs = library.SentenceTransformer(str(tmp_path / "dense")).encode(TEXTS)
    assert outside.dims == 8
    np.testing.assert_allclose(outside.embed(TEXTS), theirs / np.linalg.norm(theirs, axis=1, keepdims=True), atol=1e-5)


def test_a_causal_model_gives_the_mean_of_its_last_states(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = models.build(tmp_path / "causal")
    embedder = embedders.create("model", base=str(folder))
    found = embedder.embed(TEXTS)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    states = model.base_model(**tokenizer(TEXTS[2], return_tensors="pt")).last_hidden_state[0].mean(0).detach().numpy()
    np.testing.assert_allclose(found[2], states / np.linalg.norm(states), atol=1e-4)
    assert found.shape == (4, embedder.dims)
    assert embedder.fingerprint == embedders.create(f"model:{folder}").fingerprint
    assert embedder.fingerprint != embedders.create(f"model:{models.build(tmp_path / 'b', seed=1)}").fingerprint


def test_a_causal_model_in_half_precision_reads_the_same_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import AutoModelForCausalLM

    folder = models.build(tmp_path / "full")
    whole = embedders.create(f"model:{folder}").embed(TEXTS)
    half = shutil.copytree(folder, tmp_path / "half")
    AutoModelForCausalLM.from_pretrained(folder, dtype="bfloat16").save_pretrained(half)
    monkeypatch.setattr(hf, "probe_bf16", lambda: True)
    assert (embedders.create(f"model:{half}").embed(TEXTS) * whole).sum(axis=1).min() > 0.999


def test_a_model_in_the_hubs_cache_is_known_by_its_name(encoder: Path, tmp_path: Path) -> None:
    folder = _copy(encoder, tmp_path / "models--intfloat--multilingual-e5-small" / "snapshots" / "0a1b", {})
    assert embedders.EncoderEmbedder(str(folder)).prompts == ("query: ", "passage: ")


def test_the_vaults_own_embedder_is_read_from_its_folder(tmp_path: Path) -> None:
    fitted = VaultEmbedder.fit(TEXTS, 4)
    fitted.save(tmp_path / "e")
    assert embedders.create("vault", fitted=tmp_path / "e").fingerprint == fitted.fingerprint
    with pytest.raises(ValueError, match="not been fitted"):
        embedders.create("vault")


@pytest.mark.parametrize(
    "spec",
    ["", "vaults", "vault:x", "st:", "st", "openai:", "openai:http://127.0.0.1:1/v1", "openai:ftp://x#m", "openai:http://#m", "openai:#m",
     "openai:http://h:99999/v1#m", "model:", "http://x#m"],
)  # fmt: skip
def test_a_setting_that_names_no_embedder_is_refused(spec: str) -> None:
    with pytest.raises(ConfigError, match=r"memory\.embedder"):
        embedders.create(spec, base="")


def test_a_password_in_the_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError, match="VAULTLLM_EMBED_KEY") as told:
        embedders.parse("openai:https://me:hunter2@example.org/v1#m")
    assert "hunter2" not in str(told.value)


def test_a_model_to_be_used_must_be_there() -> None:
    with pytest.raises(ConfigError, match="model:PATH_OR_ID"):
        embedders.create("model")


# -- servers


@dataclass
class Fake:
    """A server of embeddings on loopback: what it was asked, and what it is to answer."""

    url: str = ""
    seen: list[tuple[dict[str, str], dict[str, Any]]] = field(default_factory=list)
    answers: list[tuple[int, bytes, dict[str, str]]] = field(default_factory=list)
    dims: int = 3

    def vectors(self, inputs: list[str]) -> bytes:
        data = [
            {"object": "embedding", "index": place, "embedding": [float(len(text)), 1.0, *[0.5] * (self.dims - 2)]}
            for place, text in enumerate(inputs)
        ]
        return json.dumps({"object": "list", "data": data[::-1], "model": "m"}).encode()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Iterator[Fake]:
    told = Fake()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            told.seen.append((dict(self.headers.items()) | {"path": self.path}, body))
            status, data, headers = told.answers.pop(0) if told.answers else (200, told.vectors(body["input"]), {})
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST  # noqa: N815 - the library's name

        def log_message(self, *_: Any) -> None:
            pass

    for key in server.KEYS:
        monkeypatch.delenv(key, raising=False)
    monkeypatch.setattr(server, "_RETRIES", (0.0, 0.0))
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    told.url = f"http://127.0.0.1:{httpd.server_address[1]}/v1"
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield told
    httpd.shutdown()
    httpd.server_close()
    thread.join()


def test_a_servers_vectors_come_back_in_the_order_of_the_texts(fake: Fake) -> None:
    embedder = embedders.create(f"openai:{fake.url}/#e5-small")
    texts = ["x" * (number % 7 + 1) for number in range(50)] + [""]
    found = embedder.embed(texts)
    expected = np.array([[len("passage: " + text), 1.0, 0.5] for text in texts])
    np.testing.assert_allclose(found[:-1], (expected / np.linalg.norm(expected, axis=1, keepdims=True))[:-1], atol=1e-6)
    assert not found[-1].any()
    assert embedder.dims == 3
    assert [len(body["input"]) for _, body in fake.seen] == [32, 18]
    assert {(headers["path"], body["model"], body["encoding_format"]) for headers, body in fake.seen} == {
        ("/v1/embeddings", "e5-small", "float")
    }
    embedder.embed(["вопрос"], query=True)
    assert fake.seen[-1][1]["input"] == ["query: вопрос"]


def test_nothing_is_asked_until_a_vector_is_wanted_and_known_dims_need_no_asking(fake: Fake) -> None:
    embedder = embedders.create(f"openai:{fake.url}#m")
    assert fake.seen == []
    fingerprint = embedder.fingerprint
    assert len(fake.seen) == 1
    assert embedders.create(f"openai:{fake.url}#m", dims=3).fingerprint == fingerprint
    assert embedders.create(f"openai:{fake.url}#other", dims=3).fingerprint != fingerprint
    assert len(fake.seen) == 1


@pytest.mark.parametrize(
    ("environment", "sent"),
    [({}, None), ({"OPENAI_API_KEY": "b"}, "Bearer b"), ({"VAULTLLM_EMBED_KEY": "a", "OPENAI_API_KEY": "b"}, "Bearer a")],
)
def test_the_key_comes_from_the_environment(
    fake: Fake, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], sent: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    embedders.create(f"openai:{fake.url}#m").embed(["x"])
    assert fake.seen[-1][0].get("Authorization") == sent


def test_openais_key_is_not_sent_over_an_open_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.delenv("VAULTLLM_EMBED_KEY", raising=False)
    assert embedders.ServerEmbedder("http://192.0.2.1/v1", "m")._key(False) == {}
    assert embedders.ServerEmbedder("https://example.org/v1", "m")._key(False) == {"Authorization": "Bearer secret"}


def test_a_busy_server_is_asked_again(fake: Fake) -> None:
    fake.answers = [(503, b"loading", {}), (429, b"slow down", {})]
    assert embedders.create(f"openai:{fake.url}#m").embed(["x"]).shape == (1, 3)
    assert len(fake.seen) == 3


@pytest.mark.parametrize(
    ("answer", "said", "asked"),
    [
        ((500, b"out of memory", {}), "it answers 500 out of memory", 3),
        ((404, b'{"error": "model not found"}', {}), "model not found", 1),
        ((401, b"who are you", {}), "is its key in VAULTLLM_EMBED_KEY", 1),
        ((200, b"<html>", {}), "no JSON", 1),
        ((200, b"[]", {}), "none of OpenAI's embeddings", 1),
        ((200, b'{"data": []}', {}), "other texts than were asked for", 1),
        ((200, b'{"data": [{"index": 0, "embedding": ["a"]}]}', {}), "none of OpenAI's embeddings", 1),
        ((200, b'{"data": [{"index": 0, "embedding": [NaN, 1.0]}]}', {}), "not finite", 1),
        ((200, b'{"data": [{"index": 0, "embedding": []}]}', {}), "empty", 1),
        ((200, b'{"data": [{"index": 0, "embedding": [1.0, 2.0]}]}', {}), "2 dimensions and not 3", 1),
    ],
)
def test_what_a_server_does_wrong_is_said_with_its_address_and_a_way_out(
    fake: Fake, answer: tuple[int, bytes, dict[str, str]], said: str, asked: int
) -> None:
    fake.answers = [answer] * 3
    with pytest.raises(EmbedderError, match=said) as told:
        embedders.create(f"openai:{fake.url}#m", dims=3).embed(["x"])
    assert fake.url in str(told.value)
    assert 'memory.embedder = "vault"' in told.value.message
    assert len(fake.seen) == asked


def test_no_redirect_is_followed(fake: Fake) -> None:
    fake.answers = [(302, b"", {"Location": f"{fake.url}/elsewhere"})]
    with pytest.raises(EmbedderError, match="it answers 302"):
        embedders.create(f"openai:{fake.url}#m").embed(["private text"])
    assert len(fake.seen) == 1


def test_no_proxy_is_asked_for_this_machine(fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    assert embedders.create(f"openai:{fake.url}#m").embed(["x"]).shape == (1, 3)


def test_a_server_that_is_not_there_is_named(fake: Fake) -> None:
    with pytest.raises(EmbedderError, match="it does not answer") as told:
        embedders.create("openai:http://127.0.0.1:9/v1#m").embed(["x"])
    assert (told.value.code, told.value.exit_code) == ("E-EMBED", 3)
