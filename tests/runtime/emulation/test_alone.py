"""One device of this machine at a time."""

from __future__ import annotations

import fcntl

import pytest

from edgedi.runtime.emulation import alone as module
from edgedi.runtime.emulation.alone import alone


def test_whoever_is_alone_keeps_others_out() -> None:
    with open(module.__file__, "rb") as other:
        with alone(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_whoever_fails_lets_others_in() -> None:
    with pytest.raises(ZeroDivisionError), alone():
        1 / 0  # noqa: B018
    with alone():
        pass
