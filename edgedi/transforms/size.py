"""What layers and networks hold and cost, and the most that a network may."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """What a layer or a network holds and costs."""

    parameters: int = 0
    macs: int = 0
    """Multiplications with additions of one run on the example inputs: convolutions and matrix products."""
    num_bytes: int = 0
    """Of parameters and buffers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerSize:
    """One module with parameters or buffers of its own."""

    name: str
    kind: str
    width: str
    """Inputs and outputs, "64 -> 128"; "" where the module has none."""
    size: Size


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The most that a network may cost and hold in the end; ``None`` where nothing is asked."""

    macs: int | None = None
    parameters: int | None = None

    def reached(self, size: Size) -> bool:
        """Whether a network of ``size`` is small enough."""
        return all(now <= most for now, most, _ in self.against(size))

    def against(self, size: Size) -> tuple[tuple[int, int, str], ...]:
        """Of all that is asked: what a network of ``size`` has, the most that it may have, and of what."""
        asked = ((size.macs, self.macs, "MACs"), (size.parameters, self.parameters, "parameters"))
        return tuple((now, most, unit) for now, most, unit in asked if most is not None)
