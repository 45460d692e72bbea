"""Which of two kernels for the same layer is faster on this device: found out once for each geometry, on noise."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from edgedi.runtime.kernels.task import Kernel

FASTER_BY = 0.9
"""A challenger is taken where it needs at most this share of the time: it also takes memory, and less is noise."""
CLEARLY = 2.0
"""So many times on one side of the bar, one run of each is enough: what disturbs a device rarely slows it more."""
REPEATS = 3


class Trials:
    """What was found, by geometry: programs that load later choose alike."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._won: dict[Hashable, bool] = {}

    def lost(self, geometry: Hashable) -> bool:
        """Whether a challenger is known to be slower."""
        return self._won.get(geometry) is False

    def wins(
        self, geometry: Hashable, challenger: Callable[[], Kernel], holder: Kernel, shapes: Sequence[tuple[int, ...]]
    ) -> bool:
        """Whether ``challenger()`` is clearly faster than ``holder`` on channels-last inputs of ``shapes``."""
        if geometry not in self._won:
            with torch.inference_mode():
                inputs = [torch.rand(shape).to(memory_format=torch.channels_last) for shape in shapes]
                self._won[geometry] = self._is_faster(challenger(), holder, inputs)
        return self._won[geometry]

    def _is_faster(self, challenger: Kernel, holder: Kernel, inputs: Sequence[Tensor]) -> bool:
        """By the least of some runs in turn, after one that warms up: what disturbs the device disturbs both."""
        kernels, least_s = (challenger, holder), [math.inf, math.inf]
        for kernel in kernels:
            kernel(*inputs)
        for _ in range(REPEATS):
            now_s = [self._seconds(kernel, inputs) for kernel in kernels]
            least_s = list(map(min, least_s, now_s))
            share = least_s[0] / (FASTER_BY * least_s[1])
            if not 1 / CLEARLY < share < CLEARLY:
                break
        return least_s[0] <= FASTER_BY * least_s[1]

    def _seconds(self, kernel: Kernel, inputs: Sequence[Tensor]) -> float:
        started_s = self._clock()
        kernel(*inputs)
        return self._clock() - started_s
