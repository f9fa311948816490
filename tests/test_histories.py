"""Any history of a vault: no file of its owner's is touched, and the state is what a ledger made from nothing holds."""

from __future__ import annotations

import contextlib
import random
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from vaultllm import ingest, vault
from vaultllm.selftest import histories
from vaultllm.selftest.owner import THINGS, World


class Vault(RuleBasedStateMachine):
    """The operations of `selftest.histories`, in the order that Hypothesis chooses."""

    def __init__(self) -> None:
        super().__init__()
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(histories.reading_here())
        self.work = Path(tempfile.mkdtemp(prefix="history"))
        self.stack.callback(shutil.rmtree, self.work)
        self.world = World(self.work, random.Random(0))
        self.stack.callback(self.world.close)

    @rule(thing=st.sampled_from(THINGS), rng=st.randoms(use_true_random=False))
    def the_owner_does(self, thing: Callable[[World], None], rng: random.Random) -> None:
        self.world.rng = rng
        thing(self.world)

    @rule(ours=st.sampled_from(histories.OURS), rng=st.randoms(use_true_random=False))
    def we_do(self, ours: Callable[[World], None], rng: random.Random) -> None:
        self.world.rng = rng
        ours(self.world)

    @rule(rng=st.randoms(use_true_random=False))
    def the_state_is_what_a_rebuild_gives(self, rng: random.Random) -> None:
        self.world.rng = rng
        histories.check(self.world)

    @invariant()
    def every_file_is_as_its_last_writer_left_it(self) -> None:
        self.world.check_files()

    def teardown(self) -> None:
        with self.stack:
            histories.check(self.world)


TestVault = Vault.TestCase
TestVault.settings = settings(max_examples=12, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck))


def broken(work: Path, promise: str) -> bool:
    """Whether the histories find that a program which is broken on purpose breaks this promise."""
    with histories.reading_here():
        for seed in range(20):
            world = World(work / str(seed), random.Random(seed))
            with contextlib.closing(world):
                if promise in histories.live(world, 50):
                    return True
    return False


def test_no_history_breaks_a_promise(tmp_path: Path) -> None:
    found = histories.run(tmp_path, "quick", 0, lambda _: None)
    assert found.failures == []
    assert found.holds
    assert {"saved_in_our_midst", "answers", "replies", "refused", "comparisons"} <= {
        name for name, count in found.figures.items() if count
    }


def test_a_writer_that_does_not_look_again_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It writes what it had read, and its text: what the owner saved in between is gone."""
    had: dict[str, bytes] = {}
    read = vault.read

    def reading(root: Path, path: str, most: int) -> bytes:
        had[path] = read(root, path, most)
        return had[path]

    def writing(root: Path, path: str, text: str, _: str) -> str:
        (root / path).write_bytes(had[path] + text.encode())
        return ""

    monkeypatch.setattr(vault, "read", reading)
    monkeypatch.setattr(vault, "append", writing)
    assert broken(tmp_path, "R3: a reply changed what stood in")


@pytest.mark.parametrize(
    ("module", "name", "instead"),
    [
        (ingest, "_kept", lambda file, now: (file.size, file.mtime_ns, file.size, 0)),  # with the next: size and time are believed
        (ingest, "_gone", lambda known, scan: []),
        (vault, "UNREAD", ()),
    ],
    ids=["size and time alone", "nothing ever goes", "what was told for a while stays"],
)
def test_an_ingest_that_overlooks_something_is_found_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, instead: Any
) -> None:
    monkeypatch.setattr(module, name, instead)
    if name == "_kept":
        monkeypatch.setattr(ingest, "_stat", lambda file: (file.size, file.mtime_ns, file.size, 0))
    assert broken(tmp_path, "R6: ")
