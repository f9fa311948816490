"""A small vault with a tiny real model behind a real server on loopback."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import httpx
import pytest

from tests import models, stored
from vaultllm import config, steps, workers
from vaultllm.api import keys, server
from vaultllm.memory import live

NOTES = {
    "Сад/Полив.md": "# Полив\n\n## Насос\n\nНасос включается, когда влажность почвы ниже тридцати двух процентов.\n",
    "Bread.md": "# Rye\n\nRye bread needs fourteen hours of cold proof and a hot oven. The starter is fed twice a day. #bread\n",
    "নদী.md": "# নদী\n\nআজ সকালে বৃষ্টি হয়েছে। নদীর জল দুই মিটার বেড়েছে।\n",
    "Oven.md": "# Oven\n\nThe clay oven is heated for an hour. Rye bread goes into the hot oven with [[Bread]] steam.\n",
    "Chats/oven.md": "# Title: Oven\n\n>[!nexus_user] **User** - 15.06.2025 at 6:20\n> Which temperature does the oven need for pizza?\n"
    "<!-- UID: u1 -->\n\n>[!nexus_agent] **Assistant** - 15.06.2025 at 6:21\n> It must reach four hundred degrees.\n<!-- UID: a1 -->\n",
    "Chats/open.md": "# Title: Bread\n\n>[!nexus_user] **User** - 16.06.2025 at 6:20\n> How long does rye bread proof?\n<!-- UID: u9 -->\n",
}


class Served(NamedTuple):
    """A server that runs."""

    url: str
    token: str
    workspace: config.Workspace

    def client(self, **headers: str) -> httpx.Client:
        """One with the token."""
        headers = {"Authorization": f"Bearer {self.token}"} | headers
        return httpx.Client(base_url=self.url, headers=headers, timeout=300, trust_env=False)


def workspace(folder: Path, *, model: bool = True, context: int = 256, tokens: int = 8) -> config.Workspace:
    """The vault, read; with a model that makes at most so many tokens."""
    vault = folder / "vault"
    for path, text in NOTES.items():
        (vault / path).parent.mkdir(parents=True, exist_ok=True)
        (vault / path).write_text(text, encoding="utf-8")
    base = str(models.build(folder / "tiny", context=context)) if model else "micro"
    config.init_workspace(vault, str(folder / "state"), base)
    with open(vault / ".vaultllm" / "config.toml", "a", encoding="utf-8") as file:
        file.write(f"\n[answers]\nmax_new_tokens = {tokens}\n")
    opened = config.open_workspace(str(vault), str(folder / "state"))
    job = steps.Job(opened)
    with pytest.MonkeyPatch.context() as patch:  # a fixture of a module comes before that of a test
        patch.setattr(workers, "read_all", stored.read_here)
        patch.setattr(live, "LEARN_AT_ONCE", 0)
        steps.ingest(job)
    job.close()
    return opened


@contextlib.contextmanager
def open_server(opened: config.Workspace, *, max_queue: int = 8, idle_minutes: float = 10.0) -> Iterator[Served]:
    """It listens while the block lasts."""
    with server.serving(opened, port=0, max_queue=max_queue, idle_minutes=idle_minutes) as (host, port):
        yield Served(f"http://{host}:{port}", keys.token(opened.state), opened)
