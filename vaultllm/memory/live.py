"""Which embedder the memory's vectors are of, and which is to follow it: chosen by the settings, made, opened.

The ledger's meta table describes both, each by a dict: `fingerprint` (under which its vectors are stored; it ends in `+int8` where
these are), `spec` and `base` (what was chosen), `asked` (dims), `dims`, `source_dims` (of another's embedder before it was cut; 0: the
vault's own), `reduced`, `precision`, `version`, `passages` (on how many it was fitted), `learnt` (whether it has tried to learn from
pairs), `verdict` (what came of that). Knows nothing about Chroma, nor how vectors get into the ledger.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vaultllm.config import MemorySettings
from vaultllm.errors import DataError, VaultllmError
from vaultllm.ledger import Ledger
from vaultllm.memory import choice, embed, pairs
from vaultllm.memory.scan import INT8
from vaultllm.schema import Progress, Report, silent

if TYPE_CHECKING:
    import numpy as np

LIVE, NEXT = "embedder", "embedder_next"  # in the ledger's meta table
LEARN_AT_ONCE = 8_000  # passages; of more, learning takes up to a minute: it waits until somebody has the time
_SAMPLE = 2_000  # passages by which the strongest directions of another's embedder are told
_FEW = 4  # passages for each dimension, with fewer of them nothing is cut
_KEYS = {"fingerprint", "spec", "base", "asked", "dims", "source_dims", "reduced", "precision", "version", "passages", "learnt", "verdict"}

About = dict[str, Any]


def fitted(ledger: Ledger, which: str = LIVE) -> About | None:
    """What the ledger knows of the live embedder (or of `NEXT`); None when there is none, or the entry makes no sense."""
    try:
        about = json.loads(ledger.get(which) or "null")
    except ValueError:
        return None
    return about if isinstance(about, dict) and set(about) >= _KEYS else None


def described(ledger: Ledger) -> dict[str, Any] | None:
    """The live embedder as `--json` shows it: name, fingerprint, dims, precision, vectors, learnt, reason, verdict, next; None without one.

    `next` is the one that follows, None or name, fingerprint and vectors: it answers when each passage has one.
    """
    about, after = fitted(ledger), fitted(ledger, NEXT)
    if about is None:
        return None
    verdict = about["verdict"] or {}
    following = after and {"name": after["spec"], "fingerprint": after["fingerprint"], "vectors": ledger.embedded(after["fingerprint"])}
    return {
        "name": about["spec"],
        **{name: about[name] for name in ("fingerprint", "dims", "precision")},
        "vectors": ledger.embedded(about["fingerprint"]),
        "learnt": bool(about["learnt"]),
        "reason": verdict.get("reason", "" if about["learnt"] else _LATER),
        "verdict": about["verdict"],
        "next": following,
    }


_LATER = "nothing learnt from the vault's structure yet: vaultllm watch does it by itself, or run vaultllm ingest --learn"


# -- opened


def embedder_folder(folder: Path, fingerprint: str) -> Path:
    """Where the embedder of this fingerprint is kept, if it has files of its own."""
    return folder / f"embedder-{fingerprint.removesuffix(INT8).rsplit('-', 1)[-1]}"


def opened(ledger: Ledger, folder: Path) -> embed.Embedder:
    """The live embedder; its fingerprint is that of its vectors. One instance a process.

    Raises DataError when there is none or it is damaged, ModelError when its model cannot be used. Asks no server.
    """
    about = fitted(ledger)
    try:
        if about is not None:
            return embedder(about, folder)
    except ValueError:
        pass
    raise DataError("the memory has no vectors yet; run: vaultllm ingest")


def embedder(about: About, folder: Path) -> embed.Embedder:
    """The embedder of a description. Raises ValueError when it is missing, damaged, or another one by now; ModelError."""
    fields = [about[name] for name in ("fingerprint", "spec", "base", "source_dims", "reduced")]
    return _embedder(embedder_folder(folder, about["fingerprint"]), *fields)


@functools.lru_cache(maxsize=2)
def _embedder(folder: Path, fingerprint: str, spec: str, base: str, source_dims: int, reduced: bool) -> embed.Embedder:
    """One name never means two: each holds a fingerprint."""
    found: embed.Embedder
    if spec == "vault":
        found = embed.VaultEmbedder.load(folder)
    else:
        found = _theirs(spec, base, source_dims if spec.startswith("openai:") else 0)
        if reduced:
            found = embed.Reduced.load(folder, found)
    if found.fingerprint != fingerprint.removesuffix(INT8):
        raise ValueError(f"{spec} is not the embedder that it was")
    return found if found.fingerprint == fingerprint else _Rounded(found, fingerprint)


@functools.lru_cache(maxsize=2)
def _theirs(spec: str, base: str, dims: int) -> embed.Embedder:
    from vaultllm.memory import embedders

    return embedders.create(spec, base=base, dims=dims)


@dataclass(frozen=True)
class _Rounded:
    """An embedder whose vectors are rounded when they are stored: its questions are not."""

    inner: embed.Embedder
    fingerprint: str

    @property
    def dims(self) -> int:
        return self.inner.dims

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        return self.inner.embed(texts, query)


def release() -> None:
    """Let go of the embedders that were kept."""
    _embedder.cache_clear()
    _theirs.cache_clear()


def usable(about: About, folder: Path) -> bool:
    """Whether a question can be embedded as the vectors were: files whole, model there. Asks no server."""
    try:
        if (about["spec"] == "vault" or about["reduced"]) and not embedder_folder(folder, about["fingerprint"]).is_dir():
            return False
        return bool(embedder(about, folder))
    except (ValueError, VaultllmError):
        return False


def excuse(error: VaultllmError) -> str:
    """Why an embedder cannot be used now, which is no reason to fail: words go on answering. Raises any other error again."""
    if error.code not in ("E-EMBED", "E-MODEL", "E-CONFIG"):
        raise error
    return str(error)


# -- chosen and made


def wants(about: About, settings: MemorySettings, base: str, passages: int) -> bool:
    """Whether another embedder is to take the place of this one: other settings, or the vault has outgrown it."""
    chosen = (settings.embedder, settings.precision, embed.VERSION)
    if (about["spec"], about["precision"], about["version"]) != chosen or (base and about["base"] not in ("", base)):
        return True
    doubled = passages >= 2 * about["passages"]
    if settings.embedder == "vault":
        return bool(about["asked"] != settings.dims or doubled)
    cut = settings.dims < about["source_dims"]
    if about["reduced"]:
        return bool(not cut or about["asked"] != settings.dims or (doubled and about["passages"] < _SAMPLE))
    return cut and passages >= _FEW * settings.dims


def owed(about: About | None, settings: MemorySettings, base: str, passages: int, *, learn: bool) -> bool:
    """Whether another is to follow the live one; with `learn` also if it could learn from pairs and has not tried."""
    return about is not None and bool(passages) and (wants(about, settings, base, passages) or (learn and not about["learnt"]))


def make(ledger: Ledger, folder: Path, settings: MemorySettings, base: str, learn: bool, progress: Report = silent) -> About:
    """The embedder that the settings name, its folder written; its description, which the ledger is not told.

    `base`: the model that answers, for `model`. A small vault's own learns from pairs at once, a larger one's with `learn`.
    Raises ModelError, ConfigError, and EmbedderError when a server does not answer.
    """
    live = fitted(ledger)
    slots = ledger.without_vector("")
    rounded = INT8 if settings.precision == "int8" else ""
    if live is not None and not (learn and not live["learnt"]) and usable(live, folder):
        other = {**live, "precision": settings.precision, "fingerprint": live["fingerprint"].removesuffix(INT8) + rounded}
        if not wants(other, settings, base, len(slots)):
            return other
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = {
        "spec": settings.embedder,
        "base": base if settings.embedder == "model" else "",
        "asked": settings.dims,
        "source_dims": 0,
        "reduced": False,
        "precision": settings.precision,
        "version": embed.VERSION,
        "passages": len(slots),
        "learnt": True,
        "verdict": None,
    }
    if settings.embedder == "vault":
        learn = learn or len(slots) <= LEARN_AT_ONCE
        own = _fit(ledger, slots, settings.dims, learn, progress)
        own.save(embedder_folder(folder, own.fingerprint))
        verdict = own.verdict.to_dict() if own.verdict else None
        return {**about, "fingerprint": own.fingerprint + rounded, "dims": own.dims, "learnt": learn, "verdict": verdict}
    found = _theirs(settings.embedder, about["base"], 0)
    about["source_dims"] = found.dims
    if settings.dims < found.dims and len(slots) >= _FEW * settings.dims:
        progress(Progress("looking at what the embedder tells apart", 0.0))
        sample = ledger.texts(_spread(slots, _SAMPLE))
        cut = embed.Reduced.fit(found, found.embed([said(text, context) for _, text, context in sample]), settings.dims)
        cut.save(embedder_folder(folder, cut.fingerprint))
        found, about["reduced"] = cut, True
    return {**about, "fingerprint": found.fingerprint + rounded, "dims": found.dims}


def _fit(ledger: Ledger, slots: Sequence[int], dims: int, learn: bool, progress: Report) -> embed.VaultEmbedder:
    progress(Progress("learning the vault's words", 0.0))
    sample = ledger.texts(_spread(slots, embed.FIT_TEXTS))  # no more texts in memory than are fitted on
    texts = [said(text, context) for _, text, context in sample]
    if not learn:
        return embed.VaultEmbedder.fit(texts, dims)
    where = ledger.labels([slot for slot, _, _ in sample])
    notes = [where[slot]["path"] if slot in where else "" for slot, _, _ in sample]  # one may be gone this very moment
    return embed.VaultEmbedder.fit(texts, dims, pairs.pairs(ledger), notes, progress)


def _spread(slots: Sequence[int], most: int) -> Sequence[int]:
    return slots[:: max(1, -(-len(slots) // most))]


def said(text: str, context: str) -> str:
    """A passage as it is embedded."""
    return f"{context}\n{text}"


def is_plain_model(settings: MemorySettings) -> bool:
    """Whether the settings name the model that answers, whichever that is."""
    return choice.parse(settings.embedder) == choice.Choice("model", "")
