"""How the setting `memory.embedder` is written. Knows nothing about what it names."""

from __future__ import annotations

from typing import NamedTuple
from urllib.parse import urlsplit

from vaultllm.errors import ConfigError

KEYS = ("VAULTLLM_EMBED_KEY", "OPENAI_API_KEY")  # in the environment: what a server of vectors wants to be shown
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
