"""Emulated devices share the cores and caches of one machine: what they measure, they measure one after another."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

try:
    import fcntl
except ImportError:  # a system that has no such locks has no testbed either
    fcntl = None  # type: ignore[assignment]


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Nobody else on this machine is in here meanwhile. Not to be entered twice."""
    with open(__file__, "rb") as file:  # any file that all of them have; the kernel drops the lock of who dies
        if fcntl is not None:
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
