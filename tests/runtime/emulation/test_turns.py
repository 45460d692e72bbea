"""One device of this machine at a time."""

from __future__ import annotations

import fcntl
import itertools

import pytest

from edgedi.runtime.emulation import turns
from edgedi.runtime.emulation.turns import LOOK_S, MOST_S, one_at_a_time


def test_whoever_has_its_turn_keeps_others_out() -> None:
    with open(turns.__file__, "rb") as other:
        with one_at_a_time(), pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_whoever_fails_lets_others_in() -> None:
    with pytest.raises(ZeroDivisionError), one_at_a_time():
        1 / 0  # noqa: B018
    with open(turns.__file__, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_others_of_the_same_process_wait_until_the_turn_is_over() -> None:
    """Each session has a worker of its own here."""
    waited = []
    with open(turns.__file__, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)

        def wait(seconds: float) -> None:
            waited.append(seconds)
            if len(waited) == 3:
                fcntl.flock(other, fcntl.LOCK_UN)

        with one_at_a_time(lambda: 0.0, wait):
            assert waited == [LOOK_S] * 3


def test_whoever_was_stopped_in_its_turn_keeps_nobody_for_ever() -> None:
    ticks = itertools.count(0.0, MOST_S / 4)
    with open(turns.__file__, "rb") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with one_at_a_time(lambda: next(ticks), lambda seconds: None):
            assert next(ticks) > MOST_S
