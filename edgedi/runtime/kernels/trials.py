"""Which of two kernels for the same layer is faster on this device: found out for each geometry.

A few runs do not tell where something disturbs the device: seven or twelve of VGG-16's layers were found faster by
Winograd's convolution, a matter of the moment. So a geometry that is asked for again, as programs are measured first
and loaded later, is tried again a few times, and the least of all its runs counts. After that it is known for good.

Each run finds the caches as in a request: the layers before have filled them, with their weights too, and its input is
what the last of them made. Run again and again a layer finds its own weights there, and who reads four times as many
would seem faster than it is.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from edgedi.runtime.kernels.task import Kernel

log = logging.getLogger("edgedi.worker")

FASTER_BY = 0.9
"""A challenger is taken where it needs at most this share of the time: it also takes memory, and less is noise."""
REPEATS = 3
MOST_TRIALS = 4
"""Of a geometry, each of ``REPEATS`` runs: then what is known is known."""
OTHERS_BYTES = 16 << 20
"""What is read before each run, in the place of other layers: more than a core's own caches hold."""


@dataclass(slots=True)
class _Found:
    """The least seconds of each so far, in how many trials."""

    challenger_s: float = math.inf
    holder_s: float = math.inf
    trials: int = 0


class Trials:
    """What was found, by geometry: programs of a device choose by the same runs, those that are only measured, too."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._found: dict[Hashable, _Found] = {}

    def wins(
        self, geometry: Hashable, challenger: Callable[[], Kernel], holder: Kernel, shapes: Sequence[tuple[int, ...]]
    ) -> bool:
        """Whether ``challenger()`` is clearly faster than ``holder`` on float32 inputs of ``shapes``, channels last.

        One that fails loses: without it the program runs as well.
        """
        found = self._found.setdefault(geometry, _Found())
        if found.trials < MOST_TRIALS:
            try:
                with torch.inference_mode():
                    self._try(found, challenger(), holder, [_input(shape) for shape in shapes])
            except Exception as error:  # such as no memory for it
                log.warning("a kernel is left out for %s: %s: %s", geometry, type(error).__name__, error)
                found.challenger_s, found.holder_s, found.trials = math.inf, 0.0, MOST_TRIALS
        return found.challenger_s <= FASTER_BY * found.holder_s

    def _try(self, found: _Found, challenger: Kernel, holder: Kernel, inputs: Sequence[Tensor]) -> None:
        """Some runs in turn, after one that warms up: what disturbs the device disturbs both."""
        others = torch.ones(OTHERS_BYTES // 4)
        kernels, count = (challenger, holder), 1 + REPEATS
        rounds = [[self._seconds(kernel, inputs, others) for kernel in kernels] for _ in range(count)]
        challenger_s, holder_s = map(min, zip(*rounds[1:], strict=True))
        found.challenger_s = min(found.challenger_s, challenger_s)
        found.holder_s = min(found.holder_s, holder_s)
        found.trials += 1

    def _seconds(self, kernel: Kernel, inputs: Sequence[Tensor], others: Tensor) -> float:
        come_from_others(others, inputs)
        started_s = self._clock()
        kernel(*inputs)
        return self._clock() - started_s


def come_from_others(others: Tensor, inputs: Sequence[Tensor]) -> None:
    """Leave the caches to other layers' values, and then to the ``inputs`` that the last of them made."""
    others.sum()
    for given in inputs:
        given.mul_(1.0)


def _input(shape: tuple[int, ...]) -> Tensor:
    """How long a kernel takes does not depend on the values."""
    return torch.full(shape, 0.5, dtype=torch.float32).to(memory_format=torch.channels_last)
