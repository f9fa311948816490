"""The choice `memory.embedder`: which embedder makes the vault's vectors.

`vault` (fitted on the vault, nothing downloaded), `st:PATH_OR_ID` (a model of sentence-transformers or transformers),
`openai:URL#MODEL` (any server with OpenAI's `/embeddings`: Ollama, LM Studio, llama.cpp), `model` or `model:PATH_OR_ID`
(the mean of a causal model's last hidden states). Making one is cheap; a model is loaded, and a server asked, when the first
text is embedded. Knows nothing about passages, the ledger or Chroma.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from vaultllm.errors import ConfigError
from vaultllm.memory.embed import Embedder, VaultEmbedder
from vaultllm.memory.embedders.local import CausalEmbedder, EncoderEmbedder
from vaultllm.memory.embedders.server import KEYS, EmbedderError, ServerEmbedder

__all__ = ["CausalEmbedder", "Choice", "EmbedderError", "EncoderEmbedder", "ServerEmbedder", "create", "parse"]

_FORMS = "write vault, st:PATH_OR_ID, openai:URL#MODEL, model or model:PATH_OR_ID"


class Choice(NamedTuple):
    """A parsed `memory.embedder`."""

    kind: str
    """`vault`, `st`, `openai`, `model`."""
    where: str
    """Path, hub id or address; empty for `vault` and plain `model`."""
    model: str = ""
    """The model's name at a server."""


def parse(spec: str) -> Choice:
    """What a setting names, without looking for it. Raises ConfigError that says how it is written."""
    kind, colon, rest = spec.strip().partition(":")
    if kind == "vault" and not colon:
        return Choice(kind, "")
    if kind == "model" and (not colon or rest.strip()):
        return Choice(kind, rest.strip())
    if kind == "st" and rest.strip():
        return Choice(kind, rest.strip())
    if kind == "openai":
        url, _, model = rest.strip().partition("#")
        try:
            parts = urlsplit(url)
            named = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        except ValueError:
            named = False
        if not named or not model.strip() or parts.query:
            raise ConfigError(f"memory.embedder = {spec!r}: write it like openai:http://127.0.0.1:11434/v1#nomic-embed-text")
        if parts.username is not None or parts.password is not None:
            raise ConfigError(f"memory.embedder holds a user name or a password; put the key into the environment as {KEYS[0]}")
        return Choice(kind, url.rstrip("/"), model.strip())
    raise ConfigError(f"memory.embedder = {spec!r} is no embedder; {_FORMS}")


def create(spec: str, *, fitted: Path | None = None, base: str = "", dims: int = 0) -> Embedder:
    """The embedder that `memory.embedder` names.

    `fitted`: the folder that `VaultEmbedder.save` wrote, for `vault`. `base`: the model that answers, for `model`. `dims`: what
    a server's vectors are known to have; 0 asks it. Raises ConfigError for a setting that makes no sense, ModelError for a
    model that cannot be used, ValueError for a missing or damaged `fitted`; what a server does is said when it is asked.
    """
    choice = parse(spec)
    if choice.kind == "vault":
        if fitted is None:
            raise ValueError("the vault's embedder has not been fitted")
        return VaultEmbedder.load(fitted)
    if choice.kind == "openai":
        return ServerEmbedder(choice.where, choice.model, dims)
    if choice.kind == "st":
        return EncoderEmbedder(choice.where)
    if not (choice.where or base):
        raise ConfigError("memory.embedder = 'model': there is no model yet; train one, or write model:PATH_OR_ID")
    return CausalEmbedder(choice.where or base)
