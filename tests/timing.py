"""That something takes time in proportion to its size, told by CPU time and at little cost."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import TypeVar

_ENOUGH = 0.006  # seconds: what takes less is noise, what takes more tells no more

Made = TypeVar("Made")


def assert_linear(make: Callable[[int], Made], work: Callable[[Made], object], size: int) -> None:
    """Work on what is made four times as large takes at most 2.6 times four times the CPU (a square takes sixteen times).

    The smaller of the two is of at most this size, and so much less as can still be told from noise, down to a sixteenth.
    """

    def seconds(of: Made) -> float:
        started = time.process_time()
        work(of)
        return time.process_time() - started

    gc.disable()  # its full collections walk all that the tests hold, which has nothing to do with the work
    try:
        work(make(100))  # what is done once in a process
        some = size // 16
        while seconds(made := make(some)) < _ENOUGH and some < size:
            some = min(2 * some, size)
        # Noise only adds: the least of three is what the small size costs, and the large one need be quick enough but once.
        small = max(_ENOUGH, min(seconds(made) for _ in range(3)))
        made, tries = make(4 * some), [9e9]
        while tries[-1] > 4 * 2.6 * small:
            assert len(tries) < 4, (some, small, tries)
            tries.append(seconds(made))
    finally:
        gc.enable()
