"""How fast an emulated device is, as a value."""

from __future__ import annotations

from dataclasses import dataclass

MOST_SLOWDOWN = 1000.0
MOST_LATENCY_S = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """What is emulated: ``slowdown`` 1 and ``latency_s`` 0 are this machine itself."""

    slowdown: float = 1.0
    latency_s: float = 0.0

    def __post_init__(self) -> None:
        if not 1 <= self.slowdown <= MOST_SLOWDOWN:
            raise ValueError(f"slowdown is {self.slowdown:g}: accepted are 1 (this machine) to {MOST_SLOWDOWN:g}")
        if not 0 <= self.latency_s <= MOST_LATENCY_S:
            raise ValueError(f"latency_s is {self.latency_s:g}: accepted are 0 to {MOST_LATENCY_S:g} seconds")

    @property
    def is_emulated(self) -> bool:
        """Whether anything is other than on this machine."""
        return self != Speed()
