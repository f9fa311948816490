from __future__ import annotations

from pathlib import Path

import pytest

from vaultllm.selftest import crowd

pytestmark = pytest.mark.skipif(not hasattr(crowd.os, "fork"), reason="processes cannot be forked here")


def test_many_processes_at_one_vault_lose_nothing_and_nobody_waits_for_ever(tmp_path: Path) -> None:
    found = crowd.run(tmp_path, "quick", 0, lambda said: None)
    assert list(found.failures) == []
    assert found.tried == 24
    assert float(found.figures["stale_lock_free_after_s"]) < 2.0


def test_without_locks_the_same_trial_fails(tmp_path: Path) -> None:
    found = crowd.crowd(tmp_path, 1, 1, 0, lambda said: None, locked=False)
    assert any("a second daemon ended with -9" in failure for failure in found.failures), found.failures
