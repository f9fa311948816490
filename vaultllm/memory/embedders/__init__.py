"""The choice `memory.embedder`: which embedder makes the vault's vectors.

`vault` (fitted on the vault, nothing downloaded), `st:PATH_OR_ID` (a model of sentence-transformers or transformers),
`openai:URL#MODEL` (any server with OpenAI's `/embeddings`: Ollama, LM Studio, llama.cpp), `model` or `model:PATH_OR_ID`
(the mean of a causal model's last hidden states). Making one is cheap; a model is loaded, and a server asked, when the first
text is embedded. Knows nothing about passages, the ledger or Chroma.
"""

from __future__ import annotations

from pathlib import Path

from vaultllm.errors import ConfigError
from vaultllm.memory.choice import Choice, parse
from vaultllm.memory.embed import Embedder, VaultEmbedder
from vaultllm.memory.embedders.local import CausalEmbedder, EncoderEmbedder
from vaultllm.memory.embedders.server import EmbedderError, ServerEmbedder

__all__ = ["CausalEmbedder", "Choice", "EmbedderError", "EncoderEmbedder", "ServerEmbedder", "create", "parse"]


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
