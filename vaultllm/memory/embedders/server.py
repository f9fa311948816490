"""Vectors from a server that speaks OpenAI's `/embeddings`: Ollama, LM Studio, llama.cpp, or one on the net.

Speaks to the address that the user named and to no other: no redirect is followed, and to this machine no proxy is used.
Knows nothing about passages or Chroma.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from vaultllm.errors import VaultllmError
from vaultllm.memory.choice import KEYS
from vaultllm.memory.embedders.texts import fingerprint, in_batches, prompts_by_name

TIMEOUT = 60.0  # seconds a server may take for a batch
_RETRIES = (0.5, 2.0)  # seconds before asking a busy server again
_LARGEST = 64 << 20  # bytes of one answer


class EmbedderError(VaultllmError):
    """An embedder cannot answer now: its server is away or speaks otherwise. Its code is `E-EMBED`."""

    code = "E-EMBED"


class ServerEmbedder:
    """Vectors from a server that speaks OpenAI's `/embeddings`."""

    def __init__(self, url: str, model: str, dims: int = 0) -> None:
        """`url`: up to `/embeddings`, as `http://127.0.0.1:11434/v1`. `dims`: 0 when not known. Asks nothing yet."""
        self.url, self.model, self._dims = url, model, dims
        self.prompts = prompts_by_name(model)

    @property
    def dims(self) -> int:
        """Length of a vector. Raises EmbedderError when it is not known and the server does not say."""
        if not self._dims:
            self.embed(["."])
        return self._dims

    @property
    def fingerprint(self) -> str:
        """Of address, model, length and prompts; what the server does behind one name cannot be known. Raises as `dims`."""
        return fingerprint("openai", self.url, self.model, str(self.dims), *self.prompts)

    def embed(self, texts: Sequence[str], query: bool = False) -> np.ndarray:
        """(n, dims) float32, unit rows; a zero row for an empty text. Raises EmbedderError that names the address and what to do."""
        before = self.prompts.query if query else self.prompts.passage
        return in_batches(texts, lambda some: self._vectors([before + text for text in some]))

    def _vectors(self, texts: list[str]) -> np.ndarray:
        answer = self._asked({"model": self.model, "input": texts, "encoding_format": "float"})
        try:
            rows = sorted(answer["data"], key=lambda one: int(one["index"]))
            if [int(one["index"]) for one in rows] != list(range(len(texts))):
                raise ValueError("other texts than were asked for")
            vectors = np.array([one["embedding"] for one in rows], dtype=np.float32)
        except (KeyError, TypeError, ValueError) as error:
            raise self._error(f"its answer is none of OpenAI's embeddings ({type(error).__name__}: {error})") from error
        if vectors.ndim != 2 or not vectors.shape[1] or not np.isfinite(vectors).all():
            raise self._error("its vectors are of different lengths, empty, or not finite")
        if self._dims and vectors.shape[1] != self._dims:
            raise self._error(f"its vectors have {vectors.shape[1]} dimensions and not {self._dims}: another model answers to that name")
        self._dims = vectors.shape[1]
        return vectors

    def _asked(self, body: dict[str, Any]) -> Any:
        """The answer as JSON; a busy or broken connection is tried again a few times."""
        from urllib.error import HTTPError, URLError
        from urllib.request import HTTPRedirectHandler, ProxyHandler, Request, build_opener

        class Stay(HTTPRedirectHandler):
            """A redirect could carry texts and key to a host that nobody named."""

            def redirect_request(self, *_: Any, **__: Any) -> None:
                return None

        local = urlsplit(self.url).hostname in ("127.0.0.1", "::1", "localhost")
        opener = build_opener(Stay, *([ProxyHandler({})] if local else []))
        headers = {"Content-Type": "application/json", "Accept": "application/json"} | self._key(local)
        request = Request(f"{self.url}/embeddings", json.dumps(body).encode(), headers)
        for wait in (*_RETRIES, None):
            try:
                with opener.open(request, timeout=TIMEOUT) as answer:
                    data = answer.read(_LARGEST + 1)
                if len(data) > _LARGEST:
                    raise self._error("its answer is larger than vectors can be")
                return json.loads(data)
            except HTTPError as error:
                said = " ".join(error.read(2_000).decode("utf-8", "replace").split())[:200]
                if wait is None or error.code not in (429, 500, 502, 503, 504):
                    hint = f"; is its key in {KEYS[0]}?" if error.code in (401, 403) else ""
                    raise self._error(f"it answers {error.code} {said}{hint}") from error
            except ValueError as error:
                raise self._error("its answer is no JSON") from error
            except (URLError, OSError) as error:  # refused, reset, too slow
                if wait is None or isinstance(getattr(error, "reason", error), ConnectionRefusedError):
                    raise self._error(f"it does not answer ({getattr(error, 'reason', error)})") from error
            time.sleep(wait or 0.0)
        raise AssertionError("the last try returns or raises")

    def _key(self, local: bool) -> dict[str, str]:
        """The key in the environment; OpenAI's own is not sent over an open line."""
        own, general = (os.environ.get(name, "").strip() for name in KEYS)
        key = own or (general if local or self.url.startswith("https:") else "")
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _error(self, what: str) -> EmbedderError:
        way = "start it and look at its address and model"
        return EmbedderError(f'{self.model}: {what}; {way} (memory.embedder), or set memory.embedder = "vault"', path=self.url)
