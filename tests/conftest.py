"""What every test stands on: no sockets but loopback, no user folders, no children without need, the optional folder of real samples."""

from __future__ import annotations

import gc
import itertools
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import settings

from tests import stored
from vaultllm import train, workers

# Two slow cores and heavy imports make single examples slow; what is promised about time is measured in benchmarks/.
settings.register_profile("default", deadline=None)
settings.load_profile("default")

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("OMP_NUM_THREADS", "1" if "PYTEST_XDIST_WORKER" in os.environ else "2")


def _has_room(folder: str) -> bool:
    """Whether the tests' files can lie there: 2 GB (they take a tenth of it), and programs run from there."""
    if not os.path.isdir(folder) or not os.access(folder, os.W_OK):
        return False
    there = os.statvfs(folder)
    room = min(there.f_bavail * there.f_frsize, psutil.virtual_memory().available)
    return room > 2 * 2**30 and not there.f_flag & os.ST_NOEXEC


# In memory, where there is enough: a disk that is told again and again to write it all down takes a third of the tests' time, and what
# they claim does not hang on it, for nobody switches the machine off.
if "TMPDIR" not in os.environ and _has_room("/dev/shm"):
    tempfile.tempdir = os.environ["TMPDIR"] = "/dev/shm"

_connect = socket.socket.connect
_numbers = itertools.count()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "children: notes are read in child processes, as in the program")
    config.addinivalue_line("markers", "drawn: the loss is drawn after each training, as in the program")


# As Python has it, the collector looks again and again through all that torch and five thousand tests hold, for a tenth of the time.
gc.set_threshold(50_000, 10, 10)


# Modules whose tests need torch, those with the longest first.
TORCH = (
    *("processes", "unlearning", "cli", "demo", "report", "train", "micro", "registry", "evaluate", "checkpoints", "embedders", "hf"),
    *("origin", "packed", "fit", "memorised", "probes", "replay", "scorecard", "answer", "rerank", "rephrase", "power", "hardware"),
    *("drift", "losses", "manners", "micro_command", "nf4", "api", "api_guard", "conversing", "hostile_models", "injections", "mcp"),
    *("saying", "secrets"),
)

# Modules whose tests wait for processes: those that the second worker begins with, and the third.
LONG = (("crash", "crowd"), ("soak", "limits", "bursts", "chroma_server", "watch", "workers"))


def pytest_xdist_auto_num_workers() -> int:
    """Three on two cores: tests that wait for real processes leave a core idle."""
    return max(3, min(4, os.cpu_count() or 1))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Those with torch come first, so that one of xdist's workers has them all and torch is imported once; each other one begins with those
    that take long. What is left at the end, and taken from one another, is short."""
    order = {f"test_{name}.py": place for place, name in enumerate((*TORCH, *itertools.chain(*LONG)))}
    found = sorted(items, key=lambda item: order.get(item.path.name, len(order)))
    those = [[item for item in found if item.path.name in {f"test_{name}.py" for name in names}] for names in (TORCH, *LONG)]
    rest = found[sum(map(len, those)) :]
    many = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    items[:] = those[0]
    for number, block in enumerate(those[1:], 1):
        before = max(0, number * (len(found) // many + 1) - len(items)) if number < many else 0  # so many has each at the beginning
        items += rest[:before] + block
        rest = rest[before:]
    items += rest


_plot, _collect = train._plot, gc.collect


def _collected(*given: int) -> int:
    """accelerate calls the collector after each training, for 0.3 s of nothing found that memory is short of here."""
    return 0 if sys._getframe(1).f_globals["__name__"] == "accelerate.utils.memory" else _collect(*given)


gc.collect = _collected


def pytest_runtest_setup(item: pytest.Item) -> None:
    """No picture of the loss after a training, unless the test is marked `drawn`: it takes as long as a small training."""
    train._plot = _plot if item.get_closest_marker("drawn") else lambda *_: None


@pytest.fixture(scope="session")
def nobodys_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


def _guarded_connect(self: socket.socket, address: Any) -> None:
    """Refuse every address that is not on this machine."""
    if self.family in (socket.AF_INET, socket.AF_INET6) and address[0] not in ("127.0.0.1", "::1", "localhost"):
        raise AssertionError(f"a test tried to reach {address}")
    _connect(self, address)


@pytest.fixture(autouse=True)
def closed_world(monkeypatch: pytest.MonkeyPatch, nobodys_data: Path) -> None:
    """Loopback only; state folders under the test's own folder; no settings from outside."""
    monkeypatch.setattr(socket.socket, "connect", _guarded_connect)
    monkeypatch.setenv("XDG_DATA_HOME", str(nobodys_data / str(next(_numbers))))
    monkeypatch.delenv("VAULTLLM_VAULT", raising=False)
    monkeypatch.delenv("VAULTLLM_STATE", raising=False)


@pytest.fixture(autouse=True)
def reads_here(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Notes are read in this process unless a test is marked `children`: to start a child costs more than most tests."""
    if request.node.get_closest_marker("children") is None:
        monkeypatch.setattr(workers, "read_all", stored.read_here)


@pytest.fixture
def learns_later(monkeypatch: pytest.MonkeyPatch) -> None:
    """The memory is fitted and tries out nothing more, as in a large vault: of the example that takes ten seconds."""
    monkeypatch.setattr("vaultllm.memory.live.LEARN_AT_ONCE", 0)


@pytest.fixture(scope="module")
def one_thread() -> None:
    """Tiny matrices gain nothing from torch's threads, and lose much on a busy machine."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real samples beside the project; tests that want it are skipped where it is absent."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not (folder / "real").is_dir():
        pytest.skip("no samples beside the project")
    return folder
