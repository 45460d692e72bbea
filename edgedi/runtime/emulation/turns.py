"""Emulated devices share the cores and caches of one machine: what they measure, they measure one after another."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

try:
    import fcntl
except ImportError:  # a system that has no such locks has no testbed either
    fcntl = None  # type: ignore[assignment]

MOST_S, LOOK_S = 120.0, 0.01
"""Nobody waits longer than that, who was stopped in its turn keeps nobody for ever; and how often it is looked."""


@contextlib.contextmanager
def one_at_a_time(
    clock: Callable[[], float] = time.monotonic, wait: Callable[[float], None] = time.sleep
) -> Iterator[None]:
    """Nobody else who uses this file is in here meanwhile. Not to be entered twice."""
    with open(__file__, "rb") as file:  # any file that all of them have; the kernel drops the lock of who dies
        until_s = clock() + MOST_S
        while fcntl is not None and clock() < until_s:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                wait(LOOK_S)
        yield
