"""Reranking: the best passages are read once more, each together with the question, by a model that knows nothing of the index.

`memory.rerank` names who reads: a cross-encoder (`cross:PATH_OR_ID`, Nogueira & Cho 2019, arXiv:1901.04085), or the causal model
that answers (`model`): how much likelier the question becomes to it when it has read the passage (query likelihood, Ponte & Croft
1998). What it says is mixed with what recall said, so that a weak reader cannot wreck a good order. Off by default: it costs a
model and seconds. Runs no code that comes with a model and loads no pickle. Knows nothing about how the passages were found.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeVar

import numpy as np

from vaultllm import tokenizer as bpe
from vaultllm.errors import ConfigError, ModelError
from vaultllm.models import hf
from vaultllm.text import encodable

if TYPE_CHECKING:
    from vaultllm.shelf import StoredPassage

FIRST = 20
"""So many of the best passages are read again."""
MOST_TOKENS = 512  # of a question and a passage together
_BATCH = 8  # passages that a cross-encoder reads at once
_FORMS = "write cross:PATH_OR_ID, model, or nothing"


class Judge(Protocol):
    """Who reads passages again."""

    weight: float
    """What it counts beside recall, 0..1."""

    def judge(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """(n,) float64, comparable within this one question only: the higher, the better a text answers it. Raises ModelError."""


class Found(Protocol):
    """A passage that recall found (`recall.Ranked`, a dataclass)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def stored(self) -> StoredPassage:
        """With its rows."""

    @property
    def score(self) -> float:
        """0..1, the best first."""

    @property
    def why(self) -> dict[str, float]:
        """Its parts."""


T = TypeVar("T", bound=Found)


def create(spec: str, base: str = "", adapter: Path | None = None) -> Judge | None:
    """Who reads again, as `memory.rerank` names it; None when that is empty. Models are loaded with the first question.

    `base`, `adapter`: the model that answers (`registry.serving`), for `model`. Raises ConfigError for a setting that makes no
    sense, ModelError for a model that cannot be used.
    """
    kind, colon, named = spec.strip().partition(":")
    if not kind and not colon:
        return None
    if kind == "cross" and named.strip():
        return CrossEncoder(named.strip())
    if kind == "model" and not colon:
        if not base:
            raise ConfigError("memory.rerank = 'model': there is no model yet; train one first, or write cross:PATH_OR_ID")
        return Likelihood(base, adapter)
    raise ConfigError(f"memory.rerank = {spec!r} is no reranker; {_FORMS}")


def reorder(found: Sequence[T], question: str, judge: Judge, first: int = FIRST) -> list[T]:
    """`found` (best first) with the best `first` in a new order, each with `why["rerank"]`, where that is above 0.

    The judge's words, from 0 (the worst of these passages) to 1 (the best), are mixed with the scores by its weight. The rest is
    scaled with them and stays behind, so that scores remain in order and what `why` holds still sums to them.
    """
    head = list(found[:first])
    if not question.strip() or len(head) < 2:
        return list(found)
    said = judge.judge(question, [_read(one.stored) for one in head])
    low, high = float(said.min()), float(said.max())
    if not np.isfinite(said).all():
        raise ModelError("the reranker's scores are not numbers; choose another model, or empty memory.rerank", path="memory.rerank")
    if low == high:  # it cannot tell them apart
        return list(found)
    kept = 1.0 - judge.weight
    mixed: list[T] = []
    for one, raw in zip(head, said.tolist(), strict=True):
        part = judge.weight * (raw - low) / (high - low)
        mixed.append(_scaled(one, kept, {"rerank": part} if part > 0 else {}))
    order = sorted(range(len(head)), key=lambda place: (-mixed[place].score, place))
    return [*(mixed[place] for place in order), *(_scaled(one, kept, {}) for one in found[first:])]


def _scaled(one: T, by: float, also: dict[str, float]) -> T:
    """A passage whose score and parts are scaled, and more parts added."""
    why = {name: by * part for name, part in one.why.items() if by * part > 0} | also
    return replace(one, score=by * one.score + sum(also.values()), why=why)


def _read(stored: StoredPassage) -> str:
    """A passage as it is read: under its title and headings, without date, tags and speaker."""
    return f"{stored.passage.context.partition(chr(10))[0]}\n{stored.passage.text}".strip()


class CrossEncoder:
    """A sequence classifier of transformers that reads question and passage together."""

    weight = 0.7

    def __init__(self, named: str) -> None:
        """Looks at its files only. A hub id is taken from the cache, and downloaded when it is not there. Raises ModelError."""
        from vaultllm.memory.embedders import local

        self.folder = local.encoder_folder(named)

    @functools.cached_property
    def _loaded(self) -> tuple[Any, Any, int]:
        """Tokenizer, model, most tokens of a pair."""
        hf.quiet()
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        options = {"local_files_only": True, "trust_remote_code": False}
        try:
            tokenizer = AutoTokenizer.from_pretrained(str(self.folder), **options)
            model, report = AutoModelForSequenceClassification.from_pretrained(
                str(self.folder), use_safetensors=True, dtype="float32", output_loading_info=True, **options
            )
        except Exception as error:  # transformers, tokenizers and safetensors raise kinds of their own for damaged files
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"cannot be loaded ({why}); download it again, or empty memory.rerank", path=str(self.folder)) from error
        if missing := sorted(report["missing_keys"]):  # they would be random numbers: this is an encoder, no classifier
            more = f"{missing[0]} and {len(missing) - 1} other weights are missing"
            raise ModelError(f"it is no cross-encoder: {more}; choose one for reranking", path=str(self.folder))
        if model.config.num_labels > 2:
            what = f"it tells {model.config.num_labels} classes apart"
            raise ModelError(f"{what}, and a cross-encoder for reranking one or two; choose another", path=str(self.folder))
        model = model.to(hf.device()).eval()
        model.requires_grad_(False)  # no gradients, no graph
        # Counted from 1 or from the padding token on (RoBERTa): two positions may be missing.
        limits = [MOST_TOKENS, tokenizer.model_max_length, (getattr(model.config, "max_position_embeddings", None) or 514) - 2]
        return tokenizer, model, int(min(limits))

    def judge(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """(n,) float64: the logit of "relevant", or by how much it exceeds that of "not". Raises ModelError."""
        tokenizer, model, longest = self._loaded
        # A question of any length leaves half of the room to the passage.
        asked = tokenizer(encodable(question), add_special_tokens=False, truncation=True, max_length=longest // 2)
        question = tokenizer.decode(asked["input_ids"]) if len(asked["input_ids"]) >= longest // 2 else encodable(question)
        said = [tokenizer(question, encodable(text), truncation="longest_first", max_length=longest) for text in texts]
        logits = [self._logits(model, tokenizer, said[start : start + _BATCH]) for start in range(0, len(said), _BATCH)]
        every = np.concatenate(logits) if logits else np.zeros((0, 1))
        return every[:, 0] if every.shape[1] == 1 else every[:, 1] - every[:, 0]

    def _logits(self, model: Any, tokenizer: Any, some: Sequence[Any]) -> np.ndarray:
        """(n, labels) of encoded pairs, padded on the right."""
        from transformers import BatchEncoding

        width = max(len(one["input_ids"]) for one in some)
        fill = {"input_ids": tokenizer.pad_token_id or 0, "attention_mask": 0, "token_type_ids": 0}
        padded = {
            name: np.array([list(one[name]) + [fill[name]] * (width - len(one[name])) for one in some], dtype=np.int64)
            for name in fill
            if name in some[0]
        }
        try:
            out = model(**BatchEncoding(padded, tensor_type="pt").to(model.device))
        except (RuntimeError, IndexError, ValueError, TypeError) as error:
            why = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
            raise ModelError(f"cannot read ({why}); choose another, or empty memory.rerank", path=str(self.folder)) from error
        found: np.ndarray = out.logits.detach().float().cpu().numpy().astype(np.float64)
        return found


class Likelihood:
    """A causal language model: a passage is as good as the question is likely after it. A micro model knows too little to help."""

    weight = 0.1

    def __init__(self, base: str, adapter: Path | None = None) -> None:
        """Looks at its files only. Raises ModelError."""
        self.folder, self._adapter = Path(hf.resolve(base)), adapter

    @functools.cached_property
    def _loaded(self) -> hf.Loaded:
        return hf.load(str(self.folder), self._adapter)

    def judge(self, question: str, texts: Sequence[str]) -> np.ndarray:
        """(n,) float64: log-probability of the question in nats per byte after each text, minus that without one. Raises ModelError.

        Below 0, a text that makes the question less likely, counts as 0: it says nothing of it, and no more.
        """
        loaded = self._loaded
        longest = min(MOST_TOKENS, loaded.context)
        asked = bpe.encode_text(loaded.tokenizer, "\n\n" + encodable(question.strip()))[: longest // 2]
        size = max(1, len(question.strip().encode("utf-8", "replace")))
        start = _start(loaded.tokenizer)
        alone = self._log_probability(start, asked)
        found = []
        for text in texts:
            room = longest - len(asked) - len(start)
            before = bpe.encode_text(loaded.tokenizer, encodable(text))[:room]
            found.append(max(0.0, (self._log_probability([*start, *before], asked) - alone) / size))
        return np.array(found, dtype=np.float64)

    def _log_probability(self, before: Sequence[int], asked: Sequence[int]) -> float:
        """Of the tokens `asked` after `before`, in nats; without anything before, of all but the first."""
        from transformers import BatchEncoding

        model = self._loaded.model
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        # Only the question's own logits: with 150k tokens in the vocabulary those of the passage would take most of the memory.
        only = {"logits_to_keep": len(asked) + 1} if "logits_to_keep" in inspect.signature(inner.forward).parameters else {}
        batch = BatchEncoding({"input_ids": np.array([[*before, *asked]], dtype=np.int64)}, tensor_type="pt").to(model.device)
        logits = model(**batch, use_cache=False, **only).logits[0, -len(asked) - 1 : -1].detach().float()
        targets = batch["input_ids"][0, -len(logits) :]
        return float(logits.log_softmax(-1).gather(1, targets[:, None]).sum())


def _start(tokenizer: Any) -> list[int]:
    """What stands before a text, so that its first token is predicted too: BOS, else the separator that texts were trained with."""
    if tokenizer.bos_token_id is not None:
        return [tokenizer.bos_token_id]
    between = tokenizer.get_vocab().get(bpe.END_OF_TEXT, tokenizer.eos_token_id)
    return [] if between is None else [between]
