"""Which of two kernels for the same layer is faster on this device: found out once for each geometry."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Sequence

import torch
from torch import Tensor

from edgedi.runtime.kernels.task import Kernel

log = logging.getLogger("edgedi.worker")

FASTER_BY = 0.9
"""A challenger is taken where it needs at most this share of the time: it also takes memory, and less is noise."""
REPEATS = 3


class Trials:
    """What was found, by geometry: all programs of a device choose alike, those that are only measured, too."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._won: dict[Hashable, bool] = {}

    def wins(
        self, geometry: Hashable, challenger: Callable[[], Kernel], holder: Kernel, shapes: Sequence[tuple[int, ...]]
    ) -> bool:
        """Whether ``challenger()`` is clearly faster than ``holder`` on float32 inputs of ``shapes``, channels last.

        One that fails loses: without it the program runs as well.
        """
        if geometry not in self._won:
            try:
                with torch.inference_mode():
                    inputs = [_input(shape) for shape in shapes]
                    self._won[geometry] = self._is_faster(challenger(), holder, inputs)
            except Exception as error:  # such as no memory for it
                log.warning("a kernel is left out for %s: %s: %s", geometry, type(error).__name__, error)
                self._won[geometry] = False
        return self._won[geometry]

    def _is_faster(self, challenger: Kernel, holder: Kernel, inputs: Sequence[Tensor]) -> bool:
        """By the least of some runs in turn, after one that warms up: what disturbs the device disturbs both."""
        rounds = [[self._seconds(kernel, inputs) for kernel in (challenger, holder)] for _ in range(1 + REPEATS)]
        challenger_s, holder_s = map(min, zip(*rounds[1:], strict=True))
        return challenger_s <= FASTER_BY * holder_s

    def _seconds(self, kernel: Kernel, inputs: Sequence[Tensor]) -> float:
        started_s = self._clock()
        kernel(*inputs)
        return self._clock() - started_s


def _input(shape: tuple[int, ...]) -> Tensor:
    """How long a kernel takes does not depend on the values."""
    return torch.full(shape, 0.5, dtype=torch.float32).to(memory_format=torch.channels_last)
