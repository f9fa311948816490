"""Ctrl-C and SIGTERM, taken by somebody for a while. Knows nothing about what is stopped by them."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def taken(by: Callable[[int, Any], None]) -> Iterator[None]:
    """SIGINT and SIGTERM call `by` (number, frame); then whoever had them before. In another thread than the main one nothing."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, by) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
