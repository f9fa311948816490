"""Models on this machine: a text encoder (`st:`), or a causal model's hidden states (`model:`).

Their files are looked at when one is made; the model is loaded when the first text is embedded. No code that comes with a
model is run, and no pickle is loaded. Knows nothing about passages or Chroma.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vaultllm.config import path_of
from vaultllm.errors import ModelError
from vaultllm.memory.embedders.texts import Prompts, fingerprint, in_batches, prompts_by_name
from vaultllm.models import hf

MOST_TOKENS = 512  # of a text; passages are shorter
_OURS = frozenset({"Transformer", "Pooling", "Normalize"})  # modules of sentence-transformers that need no more than transformers
_POOLINGS = ("mean", "cls", "lasttoken")


class EncoderEmbedder:
    """A text encoder by path or hub id; transformers runs it, and sentence-transformers what has more than pooling behind it."""

    def __init__(self, named: str) -> None:
        """Looks at its files only. A hub id is taken from the cache, and downloaded when it is not there. Raises ModelError."""
        self.folder = encoder_folder(named)
        modules = [str(one.get("type", "")).rpartition(".")[2] for one in _list(self.folder / "modules.json")]
        self._pooling, simple = _pooling(self.folder)
        self._outside = not simple or bool(set(modules) - _OURS)
        if self._outside and importlib.util.find_spec("sentence_transformers") is None:
            what = ", ".join(sorted(set(modules) - _OURS)) or "its pooling"
            raise ModelError(f"it needs sentence-transformers ({what}): pip install sentence-transformers", path=str(self.folder))
        self.prompts = _prompts(self.folder, named)
        self.fingerprint = fingerprint("st", _files_sha(self.folder), self._pooling, *self.prompts)

    @functools.cached_property
    def dims(self) -> int:
        """Length of a vector."""
        config = {} if self._outside else _json(self.folder / "config.json")
        size = next((config[key] for key in ("hidden_size", "d_model", "dim", "n_embd") if isinstance(config.get(key), int)), 0)
        return int(size) or int(self.embed(["a"]).shape[1])

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, dims) float32, unit rows; a zero row for an empty text. Raises ModelError when it cannot be loaded."""
        before = self.prompts.query if query else self.prompts.passage
        return in_batches(texts, lambda some: self._vectors([before + text for text in some]))

    def _vectors(self, texts: list[str]) -> np.ndarray:
        if self._outside:
            model = self._sentence_transformer
            return np.asarray(model.encode(texts, prompt="", show_progress_bar=False, convert_to_numpy=True), dtype=np.float32)
        tokenizer, model, longest = self._loaded
        return _hidden(model, tokenizer, texts, longest, self._pooling)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """Tokenizer, model, most tokens of a text."""
        hf.quiet()
        from transformers import AutoModel, AutoTokenizer

        tokenizer = _load(AutoTokenizer.from_pretrained, self.folder)
        model, report = _load(AutoModel.from_pretrained, self.folder, use_safetensors=True, dtype="float32", output_loading_info=True)
        missing = sorted(key for key in report["missing_keys"] if "pooler" not in key)  # a pooler is nobody's here
        if missing:  # they would be random numbers
            raise ModelError(f"{missing[0]} and {len(missing) - 1} other weights are missing; download it again", path=str(self.folder))
        model = model.to(hf.device()).eval()
        model.requires_grad_(False)  # no gradients, no graph
        said = _json(self.folder / "sentence_bert_config.json").get("max_seq_length")
        # Counted from 1 or from the padding token on (RoBERTa): two positions may be missing.
        limits = [MOST_TOKENS, said, tokenizer.model_max_length, (getattr(model.config, "max_position_embeddings", None) or 514) - 2]
        return tokenizer, model, int(min(limit for limit in limits if isinstance(limit, int) and limit > 0))

    @functools.cached_property
    def _sentence_transformer(self) -> Any:
        hf.quiet()
        make = importlib.import_module("sentence_transformers").SentenceTransformer  # not among our own requirements
        return _load(make, self.folder, device=hf.device(), model_kwargs={"use_safetensors": True})


class CausalEmbedder:
    """The mean of a causal model's last hidden states: better than nothing to compare others with, worse than `vault` for small models."""

    def __init__(self, named: str) -> None:
        """Looks at its files only. Raises ModelError."""
        self.folder = Path(hf.resolve(named))
        self.fingerprint = fingerprint("model", hf.fingerprint(self.folder))

    @property
    def dims(self) -> int:
        """Length of a vector."""
        config = self._loaded.model.config
        return int((config.get_text_config() if hasattr(config, "get_text_config") else config).hidden_size)

    @functools.cached_property
    def _loaded(self) -> hf.Loaded:
        return hf.load(str(self.folder))

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, dims) float32, unit rows; a zero row for an empty text. Raises ModelError when it cannot be loaded."""
        loaded = self._loaded
        longest = min(MOST_TOKENS, loaded.context)
        return in_batches(texts, lambda some: _hidden(loaded.model.base_model, loaded.tokenizer, some, longest, "mean"))


def _hidden(model: Any, tokenizer: Any, texts: list[str], longest: int, pooling: str) -> np.ndarray:
    """(n, dims): the last hidden states, pooled over each text's own tokens."""
    ids = [tokenizer(text, truncation=True, max_length=longest)["input_ids"] or [0] for text in texts]
    width = max(map(len, ids))
    lengths = np.array([len(row) for row in ids])
    mask = (np.arange(width) < lengths[:, None]).astype(np.int64)
    filled = np.full((len(ids), width), tokenizer.pad_token_id or 0, dtype=np.int64)  # on the right: what is masked changes nothing
    for row, found in zip(filled, ids, strict=True):
        row[: len(found)] = found
    from transformers import BatchEncoding

    out = model(**BatchEncoding({"input_ids": filled, "attention_mask": mask}, tensor_type="pt").to(model.device))
    states: np.ndarray = out.last_hidden_state.detach().float().cpu().numpy()
    pooled: np.ndarray
    if pooling == "cls":
        pooled = states[:, 0]
    elif pooling == "lasttoken":
        pooled = states[np.arange(len(ids)), lengths - 1]
    else:
        pooled = (states * mask[:, :, None]).sum(axis=1) / lengths[:, None].astype(np.float32)
    return pooled


def _load(make: Callable[..., Any], folder: Path, **options: Any) -> Any:
    """`make` on a folder, from its files alone. Raises ModelError for whatever a damaged or unknown model makes it raise."""
    try:
        return make(str(folder), local_files_only=True, trust_remote_code=False, **options)
    except Exception as error:  # transformers, tokenizers and safetensors raise kinds of their own for damaged files
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ModelError(f"cannot be loaded ({why}); download the model again, or set memory.embedder", path=str(folder)) from error


_WANTED = ("config.json", "*.safetensors", "*.safetensors.index.json", "tokenizer*", "vocab*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "sentencepiece*", "spiece.model", "modules.json", "sentence_bert_config.json", "config_sentence_transformers.json", "*/config.json", "*/*.safetensors")  # fmt: skip  # noqa: E501


def encoder_folder(named: str) -> Path:
    path = path_of(named)
    if path.exists():
        return _checked(path.resolve())
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", named):
        raise ModelError("there is no such folder; name a folder with a model or a hub id like intfloat/multilingual-e5-small", path=named)
    hf.quiet()
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return _checked(Path(snapshot_download(named, allow_patterns=list(_WANTED), local_files_only=True)))
    except (LocalEntryNotFoundError, OSError, ValueError):
        pass
    try:
        return _checked(Path(snapshot_download(named, allow_patterns=list(_WANTED))))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
        way = f"While online run: hf download {named}; or name a folder with a model"
        raise ModelError(f"it is not on this machine and could not be downloaded ({why}). {way}", path=named) from error


def _checked(folder: Path) -> Path:
    """The folder, if what is in it can be loaded safely."""
    if not (folder / "config.json").is_file():
        raise ModelError("there is no model here: config.json is missing", path=str(folder))
    hf.refuse_code(folder)
    _check_modules(folder)
    weights = sorted(folder.rglob("*.safetensors"))
    pickled = sorted(path for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for path in folder.glob(f"*/{pattern}"))
    if not any(path.parent == folder for path in weights) or any(path.with_name("model.safetensors") not in weights for path in pickled):
        raise ModelError("it has no model.safetensors for all of its weights, and pickles can run code; choose or convert to one that has", path=str(folder))  # fmt: skip  # noqa: E501
    return folder


_MODULES = frozenset({*_OURS, "Dense", "LayerNorm", "Dropout", "WeightedLayerPooling", "StaticEmbedding"})


def _check_modules(folder: Path) -> None:
    """Raise ModelError for a part that is not plain: sentence-transformers would import any class that is named, and load its file."""
    listed = _read(folder / "modules.json")
    for one in [] if listed is None else listed if isinstance(listed, list) else [listed]:
        kind, where = (str(one.get("type", "")), one.get("path", "")) if isinstance(one, dict) else ("", "")
        inside = isinstance(where, str) and (folder / where).resolve().is_relative_to(folder.resolve())
        if not re.fullmatch(r"sentence_transformers(\.\w+)+", kind) or kind.rpartition(".")[2] not in _MODULES or not inside:
            raise ModelError(
                f"modules.json names {kind or 'no class'!r} in {where!r}, which is not loaded; choose another", path=str(folder)
            )
    for path in sorted(folder.glob("*/config.json")):
        acts = _json(path).get("activation_function")
        if acts and not re.fullmatch(r"torch\.nn\.modules\.\w+\.\w+", str(acts)):
            raise ModelError(f"{path.parent.name}/config.json names {acts!r}, which is not loaded; choose another", path=str(folder))


def _json(path: Path) -> dict[str, Any]:
    """A JSON object; {} when there is no such file. Raises ModelError for a damaged one."""
    found = _read(path)
    if found is not None and not isinstance(found, dict):
        raise ModelError("is not a JSON object; download the model again", path=str(path))
    return found or {}


def _list(path: Path) -> list[dict[str, Any]]:
    found = _read(path)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read ({error}); download the model again", path=str(path)) from error


def _pooling(folder: Path) -> tuple[str, bool]:
    """How token vectors become one, and whether we do that here. Without a pooling module: the mean."""
    said = _json(folder / "1_Pooling" / "config.json")
    named = said.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    old = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls", "pooling_mode_lasttoken": "lasttoken"}
    modes = modes or [old.get(key, key) for key, on in said.items() if key.startswith("pooling_mode_") and on is True] or ["mean"]
    simple = len(modes) == 1 and modes[0] in _POOLINGS and said.get("include_prompt", True) is True
    return "+".join(map(str, modes)), simple


def _prompts(folder: Path, named: str) -> Prompts:
    """What the model wants before its texts: as its folder says, else by its name."""
    said = _json(folder / "config_sentence_transformers.json").get("prompts")
    if isinstance(said, dict) and any(isinstance(value, str) and value for value in said.values()):
        passage = next((said[key] for key in ("passage", "document", "corpus") if isinstance(said.get(key), str)), "")
        return Prompts(said["query"] if isinstance(said.get("query"), str) else "", passage)
    path = path_of(named)
    if not path.exists():
        return prompts_by_name(named)
    # In the hub's cache a model is models--somebody--its-name/snapshots/REVISION.
    return prompts_by_name(folder.parent.parent.name if folder.parent.name == "snapshots" else path.name)


def _files_sha(folder: Path) -> str:
    """A hash of all that decides an encoder's vectors; the files of the hub's cache are named by their hash already."""
    lines = []
    for path in sorted({path for pattern in _WANTED for path in folder.glob(pattern) if path.is_file()}):
        blob = path.resolve()
        if blob.parent.name == "blobs" and re.fullmatch(r"[0-9a-f]{64}", blob.name):
            lines.append(f"{path.relative_to(folder).as_posix()} {blob.name}")
        else:
            facts = path.stat()
            lines.append(f"{path.relative_to(folder).as_posix()} {_file_sha(str(path), facts.st_size, facts.st_mtime_ns)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


@functools.lru_cache(maxsize=256)
def _file_sha(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
