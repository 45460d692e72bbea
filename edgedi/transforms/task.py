"""What a step of ``compact`` is given besides the network, and what it gives back."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

from torch import Tensor, nn

from edgedi.transforms.data import Data
from edgedi.transforms.score import Judge, Score
from edgedi.transforms.size import Target
from edgedi.transforms.store import NOWHERE, Store

Prices = Mapping[str, float]
"""Module -> cost of one multiplication, 1 on the average of all multiplications; a module that is missing costs 1."""
SAME: Prices = MappingProxyType({})
Say = Callable[[str], None]
Loss = Callable[[Any, Any], Tensor]
"""``loss(outputs, labels)``, a scalar."""


class Budget:
    """Seconds from now on; ``None`` is without end. ``clock`` is an argument for tests."""

    def __init__(
        self, seconds: float | None, clock: Callable[[], float] = time.monotonic, *, used_s: float = 0.0
    ) -> None:
        """``used_s``: seconds that an earlier run, which this one goes on from, took already."""
        self.seconds, self._clock = seconds, clock
        self._started_s = clock() - used_s

    @property
    def used_s(self) -> float:
        """Seconds since it was made."""
        return self._clock() - self._started_s

    @property
    def left_s(self) -> float:
        """Seconds left, infinite without end, never below 0."""
        return float("inf") if self.seconds is None else max(0.0, self.seconds - self.used_s)

    def part(self, seconds: float | None) -> Budget:
        """So many seconds from now on by the same clock, and no more than are left here."""
        left_s = None if self.seconds is None else self.left_s
        given = [value for value in (seconds, left_s) if value is not None]
        return Budget(min(given, default=None), self._clock)

    def but(self, seconds: float) -> Budget:
        """What is left, by the same clock, but for the last ``seconds``, which something else needs."""
        return self.part(None if self.seconds is None else max(0.0, self.left_s - seconds))

    def until(self, second: float) -> Budget:
        """The same seconds from the same start, ending at ``second`` at the latest."""
        ending = copy.copy(self)
        ending.seconds = second if self.seconds is None else min(second, self.seconds)
        return ending


class Edit(Protocol):
    """One change of a network's structure, as a value: kept in a checkpoint, and done again when a run goes on.

    A frozen dataclass whose fields are numbers, text, tensors, tuples, lists and dicts of them, or dataclasses of its
    kind; all of them named in ``edits.EDITS``. Weights are not part of it.
    """

    def apply(self, model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
        """The changed network; ``model`` may be changed in place."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """One network on the way, for the curve of score against cost."""

    macs: int
    score: float
    step: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """The same for every step. ``original`` is in evaluation mode and never changed."""

    original: nn.Module
    arguments: tuple[Any, ...]
    say: Say
    budget: Budget
    calibration: Data | None = None
    """Inputs without labels."""
    train: Data | None = None
    """Labelled, or not where ``loss`` reads no labels."""
    validate: Data | None = None
    judge: Judge | None = None
    """By ``validate`` and the metric; without ``validate`` by likeness to the original on ``calibration``."""
    judge_s: float = 0.0
    """Seconds that a judgement takes, as the original's did: whoever judges after a training leaves time for it."""
    score: Score | None = None
    """Of the original."""
    least_score: float = float("-inf")
    """What a step's result must score: the original's score less the tolerance."""
    loss: Loss | None = None
    target: Target | None = None
    """To be reached whatever that scores."""
    prices: Prices = field(default_factory=lambda: SAME)
    """What a multiplication costs in each layer: where to save first."""
    scar_ratio: int | None = None
    """``None``: each layer its own, 4 or 8."""
    method: str = "reconstruct"
    seed: int = 0
    narrows: bool = False
    """Whether "recover" may narrow layers further: where "prune" is among the steps, by the method that fits."""
    recovers: bool = False
    """Whether "recover" follows, which trains what the step at hand makes."""
    exact: bool = False
    """Whether the steps before changed nothing but by proof: the network computes what the original does."""
    store: Store = NOWHERE
    """Where a step may keep what it has so far, in slots of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a step made of the network it was given, which itself stays as it was."""

    model: nn.Module
    edits: Sequence[Edit] = ()
    """In order, from the network it was given; none where that came back."""
    num_steps: int = 0
    """Of the trainings that the network comes from."""
    note: str = ""
    left_alone: Sequence[str] = ()
    """Layers whose channels stay, each with the reason in brackets."""
    curve: Sequence[Point] = field(default=())
