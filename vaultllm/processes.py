"""One training in several processes, as `accelerate launch` and torchrun start them: who leads, and what the others are told.

The first process reads the vault, holds the locks, measures, writes and decides, as if it were alone; the others wait until they are
told of a training, take part in it, and end with the first. They trust one another, and the network between them, as
torch.distributed does. Knows nothing about models and data.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

from vaultllm.errors import UsageError
from vaultllm.models import hf

# As torchrun names them, and the three kinds of mpirun.
_RANK = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
_COUNT = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_PATIENCE = dt.timedelta(days=30)  # while the first makes a base, measures, or asks whether it may
FILLER = -1
"""In place of a batch, where the last ones of a pass do not come out even."""

_others: Any = None  # the group in which the others wait to be told; a group of gloo's, which waits without work
_busy = False  # whether they are in a training, where they hear nothing


def count() -> int:
    """How many processes train together; 1 without a launcher."""
    return max(1, _first(_COUNT, 1))


def rank() -> int:
    """Which of them this one is; 0 leads."""
    return _first(_RANK, 0)


def _first(names: Sequence[str], otherwise: int) -> int:
    found = next((os.environ[name] for name in names if name in os.environ), "")
    return int(found) if found.isdecimal() else otherwise


@contextlib.contextmanager
def joined() -> Iterator[None]:
    """Find the others, and leave them at the end; the first sends them home. Alone nothing happens.

    Raises UsageError where several processes cannot train.
    """
    global _others, _busy
    if count() == 1 or _others is not None:
        yield
        return
    import torch.distributed as dist

    where = hf.device()
    divided = os.environ.get("ACCELERATE_USE_FSDP", "").lower() == "true" or os.environ.get("ACCELERATE_DEEPSPEED_ZERO_STAGE") == "3"
    if divided:
        raise UsageError(
            "FSDP and ZeRO-3 divide the base among the processes, and the first one could not measure with its part; launch without them "
            "(docs/hardware.md says what to do with a base that is too large)"
        )
    if where == "mps":
        raise UsageError("several processes train on CUDA or on the CPU, not on MPS; run it without a launcher")
    if where == "cuda":
        import torch

        torch.cuda.set_device(_first(("LOCAL_RANK",), rank()))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29500")
    try:
        dist.init_process_group("nccl" if where == "cuda" else "gloo", rank=rank(), world_size=count(), timeout=dt.timedelta(hours=1))
        _others, _busy = dist.new_group(backend="gloo", timeout=_PATIENCE), False
    except (RuntimeError, ValueError) as error:
        why = str(error).strip().partition("\n")[0][:200]
        raise UsageError(f"the {count()} processes do not find one another ({why}); start them with one launcher, or none") from error
    try:
        yield
    finally:
        # In a training they would not hear it: whoever launched them ends them when this one ends.
        if rank() == 0 and not _busy:
            with contextlib.suppress(RuntimeError):  # one of them is gone already
                dist.broadcast_object_list([None], group=_others)
        if not _busy:
            dist.destroy_process_group()
        _others = None


def tell(part: Any) -> None:
    """The others begin with this (plain data); only the first may call it, and `home` when all have come to the end together."""
    global _busy
    if _others is not None:
        import torch.distributed as dist

        dist.broadcast_object_list([part], group=_others)
        _busy = True


def home() -> None:
    """The others wait again."""
    global _busy
    _busy = False


def told() -> Any:
    """What the first says, whenever that is; None: it is over."""
    import torch.distributed as dist

    said = [None]
    dist.broadcast_object_list(said, group=_others)
    return said[0]


def most(values: Sequence[float]) -> list[float]:
    """For each place the largest number that any process has there: the slowest clock, and whether anybody was told to stop."""
    return _all(values, "MAX")


def total(values: Sequence[float]) -> list[float]:
    """For each place the sum over all processes."""
    return _all(values, "SUM")


def _all(values: Sequence[float], how: str) -> list[float]:
    if _others is None:
        return list(values)
    import torch
    import torch.distributed as dist

    numbers = torch.tensor(values, dtype=torch.float64)
    dist.all_reduce(numbers, op=getattr(dist.ReduceOp, how), group=_others)
    return [float(number) for number in numbers]


def lost(error: BaseException) -> bool:
    """Whether an error says that another process is gone."""
    said = str(error)
    return count() > 1 and any(part in said for part in ("Connection closed by peer", "Connection reset", "Broken pipe", "NCCL", "gloo"))


def by_rows(accumulate: int) -> bool:
    """Whether each batch is divided among the processes, row by row, as a step's batches cannot be dealt evenly."""
    return accumulate % count() != 0


def dealt(batches: int, accumulate: int, epoch: int, seed: int) -> list[int]:
    """The batches that this process reads in one pass, in the order of the seed and the pass.

    A step is made of the same ones however many processes there are: they are dealt out one by one, or all read all (`by_rows`).
    At the end of a pass some may get a `FILLER`.
    """
    order = list(range(batches))
    random.Random(f"{seed} {epoch}").shuffle(order)
    if by_rows(accumulate):
        return order
    mine: list[int] = []
    for start in range(0, batches, accumulate):
        step = order[start : start + accumulate]
        share = step[rank() :: count()]
        mine += share + [FILLER] * (-(-len(step) // count()) - len(share))
    return mine


def rows(batch: Sequence[int], accumulate: int) -> list[int]:
    """What of a batch is this process's own; may be nothing."""
    return list(batch[rank() :: count()]) if by_rows(accumulate) else list(batch)


def each(accumulate: int) -> int:
    """How many batches, or parts of batches, of a step one process reads."""
    return accumulate if by_rows(accumulate) else accumulate // count()
