"""The speed of a device: as fast as this machine, or emulated as a slower one.

An emulated device has one core, ``slowdown`` times as slow as this machine's. It computes at full speed and then waits
until the slow one would have been ready: before everything that others can see (``settle``) and before it rests
(``wait``). Rules:

* What counts is the processor time of the thread that computes and talks. Moving bytes is done by libzmq's thread and
  the kernel: a link's rate stands for it.
* A process that sleeps nine tenths of its time finds its caches cold, and wakes another core for every message: small
  layers take up to a third more than on a device that is busy, work on messages several times as much. So with a price
  of messages (``Speed.price``) both count what they take with warm caches: messages their price, layers what they took
  when the program was rehearsed (``computed``). Without one they count as measured in their place, cold caches and all.
* Time for which the machine ran somebody else does not count, so that eight such devices fit on two cores.
* The device's own time (``_at_s``) goes on by slowdown times the processor time used. If the machine was late, the
  device makes up for it until it rests; ``late_s`` keeps how far behind it was at worst, until somebody sets it to 0.
* Waiting burns no processor time and, the process having one thread that computes, holds up nothing that a busy core
  would not: libzmq's thread and the kernel go on receiving.
* What comes to a device at rest is heard ``latency_s`` later, and by ``Speed.passing`` after that: what the network
  libraries at both ends did meanwhile, on cores of their own. A busy one hears of it when it looks, as it does anyhow.
* A device has a time of its own (``clock_of``): under a ``dilation`` of 4 all of it, waiting and links too, takes four
  times as long here, so that this machine has four times as long for what it does besides, and late it is by less.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

from edgedi.runtime.emulation.speed import Speed

_Ready = TypeVar("_Ready")


class Pace(Protocol):
    """What a loop that computes and talks calls so that its device has the speed that it shall have."""

    late_s: float

    def wait(self, poll: Callable[[int], _Ready], timeout_ms: int) -> _Ready:
        """``poll(timeout_ms)``, as the device hears of what comes."""
        ...

    def forget(self) -> None:
        """What was used up to now was no work of the device's, but setting up; or another thread called before."""
        ...

    def settle(self) -> None:
        """Return when the device is ready with all that has been computed up to now."""
        ...

    def sending(self, num_bytes: int) -> AbstractContextManager[None]:
        """Within it a message is packed and sent: it leaves when the device is ready with all before it and with it."""
        ...

    def heard(self, num_bytes: int, *, passed: bool = True) -> None:
        """What was done since the device was last ready was taking in a message of so many bytes; ``passed`` on by a
        network library, or else through memory."""
        ...

    def computed(self, cpu_s: float) -> None:
        """What was done since the device was last ready counts so many processor seconds of this machine."""
        ...

    def stopwatch(self) -> float:
        """Seconds of a clock by which to time what the device computes."""
        ...


class FullSpeed:
    """This machine itself."""

    late_s = 0.0

    def wait(self, poll: Callable[[int], _Ready], timeout_ms: int) -> _Ready:
        """See ``Pace``."""
        return poll(timeout_ms)

    def forget(self) -> None:
        """See ``Pace``."""

    def settle(self) -> None:
        """See ``Pace``."""

    def sending(self, num_bytes: int) -> AbstractContextManager[None]:
        """See ``Pace``."""
        return _AT_ONCE

    def heard(self, num_bytes: int, *, passed: bool = True) -> None:
        """See ``Pace``."""

    def computed(self, cpu_s: float) -> None:
        """See ``Pace``."""

    def stopwatch(self) -> float:
        """See ``Pace``."""
        return time.perf_counter()


_AT_ONCE = nullcontext()


class Slowed:
    """An emulated device. ``cpu`` is this machine's, ``clock`` and ``sleep`` are of the device's own seconds."""

    def __init__(
        self,
        speed: Speed,
        *,
        cpu: Callable[[], float],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self._speed, self._cpu, self._clock, self._sleep = speed, cpu, clock, sleep
        self._at_s, self._used_s = clock(), cpu()
        self._rested = False
        self.late_s = 0.0

    def wait(self, poll: Callable[[int], Any], timeout_ms: int) -> Any:
        """See ``Pace``."""
        self.settle()
        ready = poll(0)
        self._rested = not ready
        if self._rested:
            ready = poll(timeout_ms)
            self._at_s = self._clock() + self._speed.latency_s
            self._sleep_until(self._at_s)
        if self._speed.price is not None:
            self._used_s = self._cpu()  # looking is in the price
        return ready

    def forget(self) -> None:
        """See ``Pace``."""
        self._at_s, self._used_s, self.late_s = self._clock(), self._cpu(), 0.0

    def settle(self) -> None:
        """See ``Pace``."""
        used_s = self._cpu()
        self._at_s += self._speed.slowdown * (used_s - self._used_s)
        self._used_s = used_s
        self._rested = False
        self._sleep_until(self._at_s)

    @contextmanager
    def sending(self, num_bytes: int) -> Iterator[None]:
        """See ``Pace``."""
        self.settle()
        price = self._speed.price
        if price is None:
            yield
            return
        self._at_s += self._speed.slowdown * price.seconds(num_bytes)
        self._sleep_until(self._at_s)
        yield
        self._used_s = self._cpu()

    def heard(self, num_bytes: int, *, passed: bool = True) -> None:
        """See ``Pace``."""
        price, passing = self._speed.price, self._speed.passing
        if passing is not None and passed and self._rested:
            self._at_s += self._speed.slowdown * passing.seconds(num_bytes)
        if price is not None:
            self.computed(price.seconds(num_bytes))

    def computed(self, cpu_s: float) -> None:
        """See ``Pace``."""
        self._at_s += self._speed.slowdown * cpu_s
        self._used_s = self._cpu()

    def stopwatch(self) -> float:
        """See ``Pace``: processor time alone, so that whoever else the machine runs is not measured."""
        return self._speed.slowdown * self._cpu()

    def _sleep_until(self, due_s: float) -> None:
        left_s = due_s - self._clock()
        self.late_s = max(self.late_s, -left_s)
        if left_s > 0:
            self._sleep(left_s)


def pace_of(speed: Speed) -> Pace:
    """The pace of a device of this speed, for the thread that calls."""
    if not speed.is_emulated:
        return FullSpeed()
    return Slowed(
        speed, cpu=time.thread_time, clock=clock_of(speed), sleep=lambda seconds: time.sleep(speed.dilation * seconds)
    )


def clock_of(speed: Speed) -> Callable[[], float]:
    """The time of devices of this speed, in seconds: this machine's, but for the dilation."""
    dilation = speed.dilation
    return time.monotonic if dilation == 1 else lambda: time.monotonic() / dilation
