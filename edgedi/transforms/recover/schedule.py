"""How many steps a training takes, and how far it is: fixed by a number of steps, or by seconds that are left."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

WARM_STEPS = 4
"""With seconds, the first step is not counted, and the next three say how long a step takes."""

PARTS = 10
"""So often a training is scored and, where seconds rule, are the steps left counted anew."""

SPARE = 0.02
"""The share of the seconds that is kept for what comes after the last step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Where a training is. ``fraction`` goes from 0 to 1, also where ``steps_left`` is counted anew on the way."""

    step: int = 0
    """Steps done."""
    steps_left: int | None = None
    """``None`` until the first steps have shown how long one takes."""
    fraction: float = 0.0
    since_step: int = 0
    since_s: float = 0.0
    """The step and the second from which the time of a step is counted."""

    @property
    def done(self) -> bool:
        return self.steps_left == 0

    @property
    def part(self) -> int:
        """How many of the parts are through."""
        return math.floor(self.fraction * PARTS + 1e-9)

    def is_to_be_timed(self, before: Schedule) -> bool:
        """Whether, with seconds, the steps left are counted anew after this step."""
        unknown = self.steps_left is None and (self.step == 1 or self.step >= WARM_STEPS)
        return unknown or self.part > before.part

    def resumed(self, used_s: float) -> Schedule:
        """The same, its time counted from now on: the clock of the run before is not this one's."""
        return replace(self, since_step=self.step, since_s=used_s)

    @property
    def rate(self) -> float:
        """The learning rate's factor: half a cosine from 1 to 0."""
        return (1 + math.cos(math.pi * self.fraction)) / 2

    def after_step(self) -> Schedule:
        """One step further."""
        if self.steps_left is None:
            return replace(self, step=self.step + 1)
        fraction = 1.0 if self.steps_left == 1 else self.fraction + (1 - self.fraction) / self.steps_left
        return replace(self, step=self.step + 1, steps_left=self.steps_left - 1, fraction=fraction)

    def timed(self, used_s: float, left_s: float) -> Schedule:
        """With as many steps left as fit into ``left_s`` at the pace since the last time; ``used_s`` is now.

        The last steps before the end are not counted anew: nothing would change.
        """
        steps = self.step - self.since_step
        if self.done or not steps:
            return self
        if self.step == 1:
            return self.resumed(used_s)
        each_s = max((used_s - self.since_s) / steps, 1e-9)
        total_s = used_s + left_s
        steps_left = math.floor((left_s - SPARE * total_s) / each_s)
        return replace(self, steps_left=max(0, steps_left), since_step=self.step, since_s=used_s)
