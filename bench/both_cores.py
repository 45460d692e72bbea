"""Whether two cores of this machine are two: how long each computes while the other does, against one alone.

    python -m bench.both_cores [--seconds 60]

Two virtual processors may be two threads of one physical core for seconds or minutes: whoever runs the virtual machine
places them anew as they wake. Then each takes up to twice as long while both compute, and the speedup of two workers
says nothing of what they run. Two processes work here like two workers: both compute for some milliseconds and one
waits for the other's word, again and again; in between the first computes as often alone. Each line is a second.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from edgedi.bench.cores import usable_cores

SIZE, PRODUCTS = 256, 10
"""A step: so many products of square matrices that stay in a core's own cache."""
STEPS = 20
"""Together, one after the other, before the first computes as many alone."""
SHARED = 1.4
"""From so many times as long on, steps were not on cores of their own; a wake-up takes a few per cent."""
_COMPUTE, _END = b"c", b"e"


@dataclass(frozen=True, slots=True, kw_only=True)
class Second:
    """Median seconds of a step."""

    alone_s: float
    together_s: float

    @property
    def ratio(self) -> float:
        return self.together_s / self.alone_s

    def __str__(self) -> str:
        said = "  these were not two cores" if self.ratio >= SHARED else ""
        return f"{1e3 * self.alone_s:7.2f} {1e3 * self.together_s:9.2f} {self.ratio:6.2f}{said}"


def summary(seconds: Sequence[Second]) -> str:
    """What to make of them."""
    shared = sum(second.ratio >= SHARED for second in seconds)
    ratios = sorted(second.ratio for second in seconds)
    return (
        f"both at once: {ratios[0]:.2f} to {ratios[-1]:.2f} times as long as one alone, median "
        f"{statistics.median(ratios):.2f}; in {shared} of {len(seconds)} seconds at least {SHARED} times"
    )


class Core:
    """One core's work: this process is pinned to it."""

    def __init__(self, core: int) -> None:
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, {core})
        torch.set_num_threads(1)
        self._left, self._right = torch.rand(2, SIZE, SIZE)
        self._product = torch.empty(SIZE, SIZE)
        self.compute()

    def compute(self) -> None:
        for _ in range(PRODUCTS):
            torch.mm(self._left, self._right, out=self._product)


def serve(core: int, first: socket.socket) -> None:
    """The second core: computes whenever the first says so, and tells it."""
    work = Core(core)
    first.send(_COMPUTE)  # ready
    while first.recv(1) == _COMPUTE:
        work.compute()
        first.send(_COMPUTE)


def measure(
    seconds: int, compute: Callable[[], None], other: socket.socket, clock: Callable[[], float] = time.perf_counter
) -> Iterator[Second]:
    """What the first core sees, each second as it ends; ``other`` is a socket to who runs ``serve``."""

    def together() -> None:
        other.send(_COMPUTE)
        compute()
        if not other.recv(1):
            raise ConnectionError("the process on the second core has ended")

    def taken(step: Callable[[], None]) -> float:
        started_s = clock()
        step()
        return clock() - started_s

    for _ in range(seconds):
        stop_s, alone, both = clock() + 1.0, list[float](), list[float]()
        while not both or clock() < stop_s:
            both += [taken(together) for _ in range(STEPS)]
            alone += [taken(compute) for _ in range(STEPS)]
        yield Second(alone_s=statistics.median(alone), together_s=statistics.median(both))
    other.send(_END)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.both_cores", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=int, default=60, metavar="N")
    parser.add_argument("--serve", nargs=2, type=int, help=argparse.SUPPRESS)  # core and socket of the second process
    given = parser.parse_args(arguments)
    if given.serve is not None:
        core, file = given.serve
        with contextlib.suppress(KeyboardInterrupt), socket.socket(fileno=file) as first:
            serve(core, first)
        return 0
    cores = usable_cores()
    if len(cores) < 2 or given.seconds < 1:
        print("it takes two cores that this process may use, and --seconds 1 or more", file=sys.stderr)
        return 2
    mine, theirs = socket.socketpair()
    command = [sys.executable, "-m", "bench.both_cores", "--serve", str(cores[1]), str(theirs.fileno())]
    print("milliseconds of a step\n  alone  together  ratio")
    found = list[Second]()
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
    with contextlib.suppress(KeyboardInterrupt), process, mine:  # which is closed before that process is waited for
        theirs.close()
        work = Core(cores[0])
        mine.recv(1)
        for second in measure(given.seconds, work.compute, mine):
            print(second, flush=True)
            found.append(second)
    if found:
        print(summary(found))
    return 0 if len(found) == given.seconds else 130


if __name__ == "__main__":
    sys.exit(main())
