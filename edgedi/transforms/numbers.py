"""Random numbers that belong to a seed, whoever draws them, and leave everybody else's alone."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def seed_of(*words: object) -> int:
    """A seed for whatever ``words`` say."""
    return int.from_bytes(hashlib.sha256(repr(words).encode()).digest()[:4], "big")


def generator_of(*words: object) -> torch.Generator:
    """Random numbers of their own for whatever ``words`` say."""
    return torch.Generator().manual_seed(seed_of(*words))


class Numbers:
    """The global generators of torch, numpy and random, set to a seed while one is inside, and set back after."""

    def __init__(self, seed: int, other: torch.Generator | None = None) -> None:
        """``other``: one more generator, treated alike."""
        self._generators = [torch.default_generator, *([] if other is None else [other])]
        outside = self._state()
        for generator in self._generators:
            generator.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        self._inside = self._state()
        self._set(outside)

    @contextmanager
    def inside(self) -> Iterator[None]:
        """From where the last one inside left off."""
        outside = self._state()
        self._set(self._inside)
        try:
            yield
        finally:
            self._inside = self._state()
            self._set(outside)

    def _state(self) -> tuple[Any, ...]:
        return [generator.get_state() for generator in self._generators], np.random.get_state(), random.getstate()

    def _set(self, state: tuple[Any, ...]) -> None:
        for generator, own in zip(self._generators, state[0], strict=True):
            generator.set_state(own)
        np.random.set_state(state[1])
        random.setstate(state[2])
