"""What a program's instructions take on a device that does nothing else, for emulated devices to be charged with.

An emulated device sleeps most of its time, between one exchange and the next, and computes on with cold caches: small
layers then take up to a third more processor time than one after another (``bench/cold_caches.py``), which is how the
device that is emulated runs them. So a program is rehearsed when it is loaded, with all that it waits for already
there, and its runs are charged what that took (``PricedProgram``).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakValueDictionary

from edgedi.partition.plan.program import Join, Piece, Run
from edgedi.runtime.emulation.calm import CALM, Calm, calmly
from edgedi.runtime.execution.changed import Changed, Kernel
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun
from edgedi.runtime.execution.loading import expected_pieces
from edgedi.runtime.execution.tensors import Tensor, inference, noise_of

REPEATS = 5
"""Runs at calm moments, of which the median counts."""
MOST_S = 3.0
"""No longer than that for calm moments; who had none takes others."""


def rehearse(loaded: LoadedProgram, clock: Callable[[], float] = time.thread_time) -> dict[int, float]:
    """Processor seconds of each RUN and JOIN by the instruction's number, with what comes between it and the last."""
    expected = expected_pieces(loaded.program, loaded.graph)
    noise = {found: noise_of(*found) for found in set(expected.values())}  # nobody writes to what has come
    pieces = {key: noise[found] for key, found in expected.items()}
    with inference():
        return steady(lambda: _rehearsed(loaded, pieces, clock))


def steady(once: Callable[[], dict[int, float]], calm: Calm = CALM) -> dict[int, float]:
    """Seconds of the parts of what is done again and again: of the median run of some at calm moments.

    And not the median of each part: their sum would be less than that of any run.
    """
    once()  # warms up
    taken = calmly(once, enough=REPEATS, most_s=MOST_S, calm=calm)
    return sorted(taken, key=lambda seconds: sum(seconds.values()))[len(taken) // 2]


def _rehearsed(
    loaded: LoadedProgram, pieces: dict[tuple[Piece, int], Tensor], clock: Callable[[], float]
) -> dict[int, float]:
    """Seconds from the end of one instruction to the end of the next, of one run."""
    ends: dict[int, float] = {}

    def noted(number: int, kernel: Kernel) -> Kernel:
        def run(*inputs: Tensor) -> object:
            made = kernel(*inputs)
            ends[number] = clock()
            return made

        return run

    run = ProgramRun(Changed(loaded, noted))
    for (piece, source), tensor in pieces.items():
        run.deliver(piece, source, tensor)
    began_s = clock()
    if not run.advance(lambda piece, tensor, target: None):
        raise ValueError(f"the program waits for more than it says, at {run.current_layer}")
    starts = [began_s, *ends.values()]
    return {number: stop_s - start_s for (number, stop_s), start_s in zip(ends.items(), starts, strict=False)}


def computes(loaded: LoadedProgram) -> bool:
    """Whether there is anything to charge for; a program that passes on what it gets needs no rehearsal."""
    return any(step.kernel is not None and isinstance(step.instruction, (Run, Join)) for step in loaded.steps)


class Price:
    """What a program takes: the shorter of two rehearsals, the first when it is loaded and the last before somebody is
    told, as not all that disturbs a machine is seen. Then it stays: what requests are charged is what they are held
    against."""

    def __init__(self) -> None:
        self.total_s = math.inf
        self.is_told = False

    @property
    def is_known(self) -> bool:
        """Whether there was a rehearsal."""
        return self.total_s < math.inf

    def learn(self, parts_s: Mapping[int, float]) -> None:
        """Of one more rehearsal."""
        self.total_s = min(self.total_s, sum(parts_s.values()))


_PRICES: WeakValueDictionary[tuple[str, str, str], Price] = WeakValueDictionary()


def price_of(program: str, layers: Sequence[Mapping[str, Any]], computed_by: str) -> Price:
    """Of the program with this text and these descriptions of its layers, computed by these engines. A process is one
    device: whatever session of it has the same program has the same price."""
    return _PRICES.setdefault((program, repr(layers), computed_by), Price())


class PricedProgram(Changed):
    """The same program, whose every RUN and JOIN ends with ``charge(its seconds)``; together they are ``price``."""

    def __init__(self, loaded: LoadedProgram, price: Price, charge: Callable[[float], None]) -> None:
        self.price = price
        self._loaded, self._parts_s = loaded, rehearse(loaded)
        if not price.is_known:
            price.learn(self._parts_s)
        parts_s, sum_s = self._parts_s, sum(self._parts_s.values())

        def change(number: int, kernel: Kernel) -> Kernel:
            def run(*inputs: Tensor) -> object:
                made = kernel(*inputs)
                charge(parts_s[number] / sum_s * price.total_s)
                return made

            return run

        super().__init__(loaded, change)

    def told_s(self) -> float:
        """Seconds of all layers, without what joins their parts; before it is told, it is rehearsed once more."""
        if not self.price.is_told:
            self.price.learn(rehearse(self._loaded))
            self.price.is_told = True
        runs = {number for number, step in enumerate(self._loaded.steps) if isinstance(step.instruction, Run)}
        layers_s = sum(seconds for number, seconds in self._parts_s.items() if number in runs)
        return layers_s / sum(self._parts_s.values()) * self.price.total_s
