"""Whether a core of this machine computes as fast as it can at the moment.

Where somebody else uses the other thread of the same core, another virtual machine for instance, everything takes up to
half as long again, for tenths of seconds at a time, and our thread's processor time does not show why. A loop of Python
does: it is fast or slow, with little between. What emulated devices are charged is measured at calm moments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

SLOWER = 1.3
"""Times the fastest loop that was ever seen: then a moment is not calm."""
FIRST_LOOKS = 400
WAIT_S = 0.005
"""Until it is looked at once more."""
_LOOPS = 10_000


def loop_s(clock: Callable[[], float] = time.thread_time) -> float:
    """Processor seconds of a loop that needs no memory."""
    started_s, total = clock(), 0
    for number in range(_LOOPS):
        total += number
    return clock() - started_s


class Calm:
    """Called, it says whether this moment is calm."""

    def __init__(self, look: Callable[[], float] = loop_s) -> None:
        self._look = look
        self._best_s = math.inf

    def __call__(self) -> bool:
        if math.isinf(self._best_s):
            self._best_s = min(self._look() for _ in range(FIRST_LOOKS))
        taken_s = self._look()
        self._best_s = min(self._best_s, taken_s)
        return taken_s <= SLOWER * self._best_s


is_calm = Calm()
"""Of this process: the more often it looks, the better it knows the fastest loop."""


def calmly(
    once: Callable[[], Found],
    *,
    enough: int,
    most_s: float,
    calm: Callable[[], bool] = is_calm,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float], None] = time.sleep,
) -> list[Found]:
    """What ``once`` finds where it is calm before and after, ``enough`` times or until ``most_s`` are over; where it
    never was, what it finds at other moments."""
    found: list[Found] = []
    others: list[Found] = []
    until_s = clock() + most_s
    while len(found) < enough and clock() < until_s:
        if not calm():
            wait(WAIT_S)
            continue
        one = once()
        (found if calm() else others).append(one)
    while not found and len(others) < enough:
        others.append(once())
    return found or others
