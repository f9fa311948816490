"""Causal language models of transformers, by path or hub id: the only place that loads them.

Runs no code that comes with a model: no pickled weights, no `trust_remote_code`; an adapter is loaded only onto
the base that it was trained on. Knows nothing about notes, scenes or prompts.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import inspect
import json
import os
import re
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vaultllm.config import path_of
from vaultllm.errors import ModelError
from vaultllm.models import nf4

CAPABLE = 300_000_000
"""From so many parameters on a model is trusted to answer, not only to find."""

_IDENTITY = (
    *("config.json", "*.safetensors", "tokenizer.json", "tokenizer.model", "tokenizer_config.json"),
    *("vocab.*", "merges.txt", "added_tokens.json", "chat_template.jinja"),
)
_FILES = (*_IDENTITY, "generation_config.json", "*.safetensors.index.json", "special_tokens_map.json", "*.model", "*.jinja")
_ENDS = ("<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<end_of_turn>", "</s>")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to answer or to be trained."""

    model: Any
    """A transformers causal LM, or peft's wrapper around it; in eval mode, on `device()`."""
    tokenizer: Any
    """Its tokenizer."""
    name: str
    """As it is shown: the last part of the path or id."""
    folder: Path
    """Where the base lies."""
    parameters: int
    """Of the base."""
    context: int
    """The longest sequence it can read, in tokens."""
    capable: bool
    """Whether it is trusted to answer: 300M parameters or more, and not trained from scratch on the vault."""


def device() -> str:
    """Where models run: `cuda`, `mps` or `cpu`."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


@functools.cache
def probe_bf16() -> bool:
    """Whether bf16 matrix products are clearly faster than fp32 on this CPU (up to 85 times slower on some); about 50 ms."""
    import torch

    def seconds(dtype: Any) -> float:
        left, right = torch.ones(256, 1024, dtype=dtype), torch.ones(1024, 1024, dtype=dtype)
        best = float("inf")
        for _ in range(4):  # the first one warms up
            start = time.perf_counter()
            left @ right
            best = min(best, time.perf_counter() - start)
        return best

    return seconds(torch.bfloat16) * 1.3 < seconds(torch.float32)


def fast_bf16(where: str) -> bool:
    """Whether a model is read in bf16 on this device (when its checkpoint is not fp32): measured on a CPU, known of others."""
    import torch

    return probe_bf16() if where == "cpu" else where == "mps" or torch.cuda.is_bf16_supported()


def resolve(base: str) -> str:
    """The folder of a base model named by path or hub id, checked without loading it.

    A hub id is taken from the local cache, and downloaded when it is not there. Raises ModelError when it is
    missing, incomplete, not a causal language model, has only pickled weights, or brings its own code.
    """
    path = path_of(base)
    if path.exists():
        return str(_checked(path.resolve()))
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", base):
        raise ModelError("there is no such folder; name a folder with a model or a hub id like Qwen/Qwen3-0.6B", path=base)
    return str(_from_hub(base))


def _from_hub(name: str) -> Path:
    quiet()
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    with contextlib.suppress(LocalEntryNotFoundError, FileNotFoundError, OSError, ModelError):
        return _checked(Path(snapshot_download(name, allow_patterns=list(_FILES), local_files_only=True)))
    offline = "it is not on this machine and could not be downloaded ({}). While online run: hf download {}; or name a folder with a model"
    try:
        _check_config(Path(hf_hub_download(name, "config.json")).parent)  # before gigabytes of what cannot be used
        return _checked(Path(snapshot_download(name, allow_patterns=list(_FILES))))
    except (LocalEntryNotFoundError, HfHubHTTPError, OSError, ValueError) as error:
        why = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise ModelError(offline.format(why, name), path=name) from error


def _checked(folder: Path) -> Path:
    """The folder, if it holds a causal language model that can be loaded safely."""
    _check_config(folder)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        missing = sorted({name for name in _json(index).get("weight_map", {}).values() if not (folder / name).is_file()})
        if missing:
            raise ModelError(f"{missing[0]} of its weights is missing ({len(missing)} files); download it again", path=str(folder))
    elif not (folder / "model.safetensors").is_file():
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt*")):
            raise ModelError(
                "its weights are pickles, which can run code when loaded; choose a model with model.safetensors "
                "or convert it on a machine you trust",
                path=str(folder),
            )
        raise ModelError("it has no weights (model.safetensors); download the model again", path=str(folder))
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")):
        raise ModelError("it has no tokenizer (tokenizer.json); download the model again", path=str(folder))
    return folder


def _check_config(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        adapter = " (this is an adapter: name its base)" if (folder / "adapter_config.json").is_file() else ""
        raise ModelError(f"there is no model here: config.json is missing{adapter}", path=str(folder))
    config = _json(folder / "config.json")
    refuse_code(folder)
    quiet()
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    classes = {name for value in KNOWN.values() for name in ([value] if isinstance(value, str) else value)}
    named = [str(name) for name in config.get("architectures") or ()]
    if (named and not classes.intersection(named)) or (not named and config.get("model_type") not in KNOWN):
        what = ", ".join(named) or f"model_type {config.get('model_type')!r}"
        raise ModelError(
            f"{what} is not a causal language model (one that continues text); choose one like Qwen/Qwen3-0.6B", path=str(folder)
        )


def refuse_code(folder: Path) -> None:
    """Raise ModelError when a file of a model's folder names code that its loading would run or fetch."""
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json", "adapter_config.json"):
        found = _code_named(_json(folder / name)) if (folder / name).is_file() else ""
        if found:
            raise ModelError(
                f"the model brings its own Python code ({found} in {name}), which is never run; choose one that transformers knows",
                path=str(folder),
            )


def _code_named(value: Any, depth: int = 0) -> str:
    """The key of a configuration that names code: classes of the model's own, or kernels that transformers fetches from the hub."""
    if depth > 20 or not isinstance(value, dict | list):
        return ""
    if isinstance(value, list):
        return next(filter(None, (_code_named(one, depth + 1) for one in value)), "")
    for key, one in value.items():
        kernel = "implementation" in key and any(
            "/" in said for said in (one.values() if isinstance(one, dict) else [one]) if isinstance(said, str)
        )
        if kernel or (one and key in _CODE_KEYS):
            return str(key)
        if found := _code_named(one, depth + 1):
            return found
    return ""


_CODE_KEYS = frozenset("auto_map auto_mapping trust_remote_code custom_generate custom_pipelines use_kernels kernel_config".split())


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"cannot be read ({error}); download the model again", path=str(path)) from error
    if not isinstance(data, dict):
        raise ModelError("is not a JSON object; download the model again", path=str(path))
    return data


def fingerprint(folder: str | Path) -> str:
    """SHA-256 (hex) over what decides the model's answers: config, weights, tokenizer, chat template."""
    root = Path(folder)
    digest = hashlib.sha256()
    for path in sorted({path for pattern in _IDENTITY for path in root.glob(pattern)}):
        facts = path.stat()
        digest.update(f"{path.name}\0{_file_sha(str(path), facts.st_size, facts.st_mtime_ns)}\n".encode())
    return digest.hexdigest()


@functools.lru_cache(maxsize=256)
def _file_sha(path: str, size: int, mtime_ns: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def quiet() -> None:
    """No telemetry, no bars and no chatter from the libraries: stdout and stderr belong to the caller."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from huggingface_hub.utils import logging as hub
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    hub.set_verbosity_error()  # type: ignore[no-untyped-call]  # each retry without a network would be a line


@contextlib.contextmanager
def library_warnings_ignored() -> Iterator[None]:
    """peft and transformers warn each other of deprecations that no user of ours can mend."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        yield


def load(base: str, adapter: Path | None = None, dtype: Any = None, quantize: str | None = None) -> Loaded:
    """The model of `base` (path or hub id), with a peft adapter on it.

    `dtype` (torch's, or its name) None: bf16 where it is faster and the checkpoint is not fp32, else fp32. `quantize`: `nf4`, empty,
    or None: as the adapter was trained. Raises ModelError, also when the adapter was trained on another base or was changed since,
    or nf4 does not work here.
    """
    folder = Path(resolve(base))
    quiet()
    import torch
    from safetensors import SafetensorError
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    where = device()
    if quantize is None:
        quantize = _provenance(adapter).get("quantize", "") if adapter is not None else ""
    if quantize:
        nf4.checked(where, str(folder))
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        if dtype is None:
            half = getattr(config, "dtype", None) in (torch.bfloat16, torch.float16)
            dtype = torch.bfloat16 if half and fast_bf16(where) else torch.float32
        dtype = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        model, report = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, trust_remote_code=False, output_loading_info=True,
            **(nf4.settings(where, dtype) if quantize else {}),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError, ImportError, SafetensorError) as error:
        raise ModelError(f"cannot be loaded ({_first_line(error)}); download the model again", path=str(folder)) from error
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ModelError(f"{missing[0]} and {len(missing) - 1} other weights are missing; download the model again", path=str(folder))
    parameters = model.num_parameters()
    context = _context(config, tokenizer)
    if adapter is not None:
        model = _with_adapter(model, folder, adapter)
    if not quantize or adapter is not None:  # one in nf4 is there already; its adapter may not be
        model = model.to(where)
    model.eval()
    model.requires_grad_(False)
    micro = (folder / "micro.json").is_file()
    if micro and _json(folder / "micro.json").get("sha", fingerprint(folder)) != fingerprint(folder):
        raise ModelError("it is not what was written after training; train it again: vaultllm train --fresh", path=str(folder))
    name = folder.name if path_of(base).exists() else base.rpartition("/")[2]
    return Loaded(model, tokenizer, name, folder, parameters, context, parameters >= CAPABLE and not micro)


def out_of_memory(error: BaseException) -> bool:
    """Whether torch said so: CUDA has an error of its own for it, CPU and MPS only a message."""
    import torch

    said = str(error)
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "can't allocate memory" in said or "out of memory" in said


def checkpoint_blocks(model: Any) -> None:
    """Run each block again in the backward pass instead of keeping what it computed (Chen et al. 2016, arXiv:1604.06174).

    Only while the model trains. torch's form without reentrance, which needs no input that wants a gradient: with peft none does.
    """
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    with library_warnings_ignored():
        if hasattr(inner, "activation_checkpointing_enable"):  # its name since transformers 5.2x
            inner.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        else:
            inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})


def load_tokenizer(folder: str | Path) -> Any:
    """The tokenizer alone of a model's folder. Raises ModelError."""
    from transformers import AutoTokenizer

    quiet()
    try:
        return AutoTokenizer.from_pretrained(_checked(Path(folder)), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"its tokenizer cannot be loaded ({_first_line(error)}); download the model again", path=str(folder)) from error


def _context(config: Any, tokenizer: Any) -> int:
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    limits = [getattr(text, "max_position_embeddings", None), getattr(text, "n_positions", None), tokenizer.model_max_length]
    return min(int(limit) for limit in limits if limit)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _with_adapter(model: Any, folder: Path, adapter: Path) -> Any:
    """peft's wrapper, after every check that needs no forward pass."""
    import torch
    from peft import PeftModel
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    weights = adapter / "adapter_model.safetensors"
    if not (adapter / "adapter_config.json").is_file() or not weights.is_file():
        pickled = " (adapter_model.bin is a pickle and is never loaded)" if (adapter / "adapter_model.bin").is_file() else ""
        raise ModelError(f"there is no adapter here: adapter_model.safetensors is missing{pickled}", path=str(adapter))
    refuse_code(adapter)
    about = _json(adapter / "adapter_config.json")
    odd = [name for name in ("megatron_config", "loftq_config", "corda_config", "eva_config") if about.get(name)]
    if odd or about.get("peft_type") != "LORA" or not isinstance(about.get("target_modules"), list):
        what = odd[0] if odd else "its kind, or its modules by a pattern"
        raise ModelError(f"the adapter is none that is trained here ({what}); train it again", path=str(adapter))
    noted = _provenance(adapter)
    if noted.get("base_sha", fingerprint(folder)) != fingerprint(folder):
        raise ModelError(f"it was trained on another base than {folder}, or the base was changed since; train it again", path=str(adapter))
    if name := altered(adapter):
        raise ModelError(f"{name} is not what was written after training; roll back or train again", path=str(adapter))
    try:
        if not all(bool(torch.isfinite(tensor).all()) for tensor in load_file(weights).values()):
            raise ModelError("the adapter holds numbers that are not finite; roll back or train again", path=str(adapter))
        with library_warnings_ignored():
            return PeftModel.from_pretrained(model, str(adapter))
    except (SafetensorError, RuntimeError, ValueError, KeyError, TypeError, OSError) as error:
        raise ModelError(f"the adapter does not fit this base ({_first_line(error)}); train it again", path=str(adapter)) from error


def altered(adapter: Path) -> str:
    """The first file of an adapter that is not what was written after training, or ""; loads nothing. Raises ModelError, OSError."""
    noted = _provenance(adapter)
    for name, key in (("adapter_model.safetensors", "adapter_sha256"), ("adapter_config.json", "config_sha256")):
        if key in noted:
            facts = (adapter / name).stat()
            if _file_sha(str(adapter / name), facts.st_size, facts.st_mtime_ns) != noted[key]:
                return name
    return ""


def _provenance(adapter: Path) -> dict[str, str]:
    """What is noted beside an adapter: `base_sha`, `adapter_sha256`, `config_sha256`, `quantize`; what was not noted is left out.

    Raises ModelError when `vaultllm.json` does not say whose adapter it is, which it always says when it is written.
    """
    ours = adapter.parent / "vaultllm.json"
    if ours.is_file():
        data = _json(ours)
        wanted = {1: ("base_sha", "adapter_sha256"), 2: ("base_sha", "adapter_sha256", "config_sha256")}.get(data.get("schema", 1))
        if wanted is None or not all(data.get(key) for key in wanted):
            raise ModelError("does not say what the adapter was trained on; roll back or train again", path=str(ours))
    elif (path := adapter.parent / "run.json").is_file():
        record = _json(path)
        metrics = record.get("metrics")
        data = {**(metrics if isinstance(metrics, dict) else {}), **record}
    else:
        data = {}
    return {key: str(data[key]) for key in ("base_sha", "adapter_sha256", "config_sha256", "quantize") if data.get(key)}


def configuration(folder: Path) -> Any:
    """A model's transformers configuration. Raises ModelError."""
    from transformers import AutoConfig

    quiet()
    try:
        return AutoConfig.from_pretrained(_checked(folder), local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"its config.json cannot be used ({_first_line(error)}); download the model again", path=str(folder)) from error


def end_ids(loaded: Loaded) -> set[int]:
    """The tokens that end an answer."""
    base = loaded.model.get_base_model() if hasattr(loaded.model, "get_base_model") else loaded.model
    named = getattr(base.generation_config, "eos_token_id", None)
    ids = set(named if isinstance(named, list) else [named]) | {loaded.tokenizer.eos_token_id}
    known = loaded.tokenizer.get_vocab()
    return {int(one) for one in ids if one is not None} | {known[end] for end in _ENDS if end in known}


def generate(
    loaded: Loaded,
    ids: Sequence[int],
    *,
    max_new_tokens: int,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    repetition: float = 1.0,
    cancel: threading.Event | None = None,
    made: list[int] | None = None,
) -> Iterator[str]:
    """The continuation of `ids`, piece by piece as it is made; ends at an end token, at a `stop` string or when full.

    Temperature 0 is greedy; else a token is drawn among the likeliest that together have `top_p` of the chance (Holtzman et al.
    2020, arXiv:1904.09751). `repetition` above 1 makes tokens of this answer less likely again (Keskar et al. 2019,
    arXiv:1909.05858). `made` is filled with the answer's tokens. No piece holds half a character. Raises ModelError when the
    prompt leaves no room.
    """
    import torch

    if not ids or len(ids) >= loaded.context:
        raise ModelError(f"the prompt has {len(ids)} tokens; this model reads 1 to {loaded.context - 1}", path=loaded.name)
    model, ends = loaded.model, end_ids(loaded)
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    last_only = {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
    where = next(model.parameters()).device
    random = torch.Generator().manual_seed(seed)
    made = [] if made is None else made
    pieces = _Pieces(loaded.tokenizer, stop)
    feed = torch.tensor([list(ids)], device=where)
    past = None
    for _ in range(min(max_new_tokens, loaded.context - len(ids))):
        if cancel is not None and cancel.is_set():
            break
        with torch.inference_mode():
            out = model(input_ids=feed, past_key_values=past, use_cache=True, **last_only)
        past = out.past_key_values
        logits = out.logits[0, -1].float().cpu().clone()  # an inference tensor cannot be written to
        if bool(logits.isnan().any()):
            raise ModelError("it computes what is no number: its weights are damaged; download or train it again", path=str(loaded.folder))
        if repetition != 1.0 and made:
            seen = torch.tensor(sorted(set(made)))
            logits[seen] = torch.where(logits[seen] > 0, logits[seen] / repetition, logits[seen] * repetition)
        if temperature > 0:
            token = int(torch.multinomial(_nucleus(torch.softmax(logits / temperature, -1), top_p), 1, generator=random))
        else:
            token = int(logits.argmax())
        if token in ends:
            break
        made.append(token)
        piece = pieces.add(token)
        if piece:
            yield piece
        if pieces.stopped:
            return
        feed = torch.tensor([[token]], device=where)
    rest = pieces.rest()
    if rest:
        yield rest


def _nucleus(chances: Any, top_p: float) -> Any:
    """The chances of the fewest tokens that have `top_p` of it together, 0 for the others; they need not sum to 1."""
    if top_p >= 1.0:
        return chances
    best, order = chances.sort(descending=True)
    best[best.cumsum(-1) - best >= top_p] = 0.0  # the first always stays
    return chances.new_zeros(chances.shape).scatter(-1, order, best)


class _Pieces:
    """Tokens in, whole characters out; holds back what may be half a character or the beginning of a stop string."""

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        self.tokenizer, self.stop = tokenizer, [one for one in stop if one]
        self.ids: list[int] = []
        self.begin = self.end = 0  # ids[begin:end] are out already; they are decoded again so that spaces come out right
        self.held = ""
        self.stopped = False

    def _text(self, ids: Sequence[int]) -> str:
        text: str = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text

    def add(self, token: int) -> str:
        """What can be shown now."""
        self.ids.append(token)
        known, text = self._text(self.ids[self.begin : self.end]), self._text(self.ids[self.begin :])
        if len(text) <= len(known) or text.endswith("\ufffd"):
            return ""
        self.begin, self.end = self.end, len(self.ids)
        return self._release(text[len(known) :].replace("\ufffd", ""))

    def _release(self, text: str) -> str:
        self.held += text
        at = min((self.held.find(one) for one in self.stop if one in self.held), default=-1)
        if at >= 0:
            self.stopped, out, self.held = True, self.held[:at], ""
            return out
        keep = max((n for one in self.stop for n in range(1, len(one)) if self.held.endswith(one[:n])), default=0)
        out, self.held = self.held[: len(self.held) - keep], self.held[len(self.held) - keep :]
        return out

    def rest(self) -> str:
        """What was held back, without a half character, when the answer is over."""
        known, text = self._text(self.ids[self.begin : self.end]), self._text(self.ids[self.begin :])
        out = self._release(text[len(known) :].replace("\ufffd", "")) + self.held
        self.held = ""
        return out
