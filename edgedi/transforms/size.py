"""What layers and networks hold and cost."""

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
