"""Whether a core of this machine computes as fast as it can at the moment.

What is outside of a virtual machine may slow a core, such as somebody else on its other thread: then everything takes
longer, for tenths of seconds or for minutes, and our thread's processor time does not show why. A loop of Python does:
it is fast or slow, with little between. What emulated devices are charged is measured at calm moments.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TypeVar

Found = TypeVar("Found")

SLOWER = 1.3
"""Times the fastest loop that was ever seen: then a moment is not calm."""
FIRST_LOOKS = 2_000
"""About a second: disturbances are rarely longer without a gap, and a best that was none is found out later."""
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
    """``look`` at a moment, then ask whether what was seen ``is_calm``: by the best of all looks, also later ones, and
    of those of other processes of this machine that it ``hears_of``."""

    def __init__(self, loop: Callable[[], float] = loop_s) -> None:
        self._loop = loop
        self.best_s = math.inf

    def hears_of(self, best_s: float) -> None:
        """The fastest loop that somebody else saw, in seconds; infinity of who has not looked yet."""
        if not best_s > 0:
            raise ValueError(f"a loop of {best_s:g} seconds: accepted are seconds above 0")
        self.best_s = min(self.best_s, best_s)

    def look(self) -> float:
        """Seconds of the loop at this moment."""
        if math.isinf(self.best_s):
            self.best_s = min(self._loop() for _ in range(FIRST_LOOKS))
        taken_s = self._loop()
        self.best_s = min(self.best_s, taken_s)
        return taken_s

    def is_calm(self, taken_s: float) -> bool:
        """Whether the loop was about as fast as it ever was."""
        return taken_s <= SLOWER * self.best_s


CALM = Calm()
"""Of this process: the more often it looks, the better it knows the fastest loop. Those whom a testbed starts begin
with what it knows, so that a process which begins while something slows the machine does not take that for calm."""


def calmly(
    once: Callable[[], Found],
    *,
    enough: int,
    most_s: float,
    calm: Calm = CALM,
    clock: Callable[[], float] = time.perf_counter,
    wait: Callable[[float], None] = time.sleep,
) -> list[Found]:
    """What ``once`` finds where it is calm before and after, ``enough`` times or until ``most_s`` are over; where it
    never was, what it finds at other moments."""
    seen: list[tuple[float, Found]] = []
    until_s = clock() + most_s

    def found() -> list[Found]:
        return [one for slower_s, one in seen if calm.is_calm(slower_s)]

    while len(found()) < enough and clock() < until_s:
        before_s = calm.look()
        if not calm.is_calm(before_s):
            wait(WAIT_S)
            continue
        one = once()
        seen.append((max(before_s, calm.look()), one))
    others = [one for _, one in seen]
    while not found() and len(others) < enough:
        others.append(once())
    return found() or others
