"""One RUN instruction with everything that is fixed before the first request: the input to every kernel maker."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from edgedi.partition.graph.geometry import WHOLE, Need, Region
from edgedi.partition.graph.graph import Layer, Shapes
from edgedi.partition.plan.program import UNSPLIT, Piece

Kernel = Callable[..., Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """``layer`` for region ``out``; ``parts`` is what it reads of each input, ``pieces`` what the inputs hold.

    ``shapes`` are the whole shapes of the inputs; ``weights`` are cut to what ``out`` needs.
    """

    layer: Layer
    shapes: Shapes
    out: Need
    parts: tuple[Need, ...]
    pieces: tuple[Piece, ...]
    weights: Mapping[str, Tensor]
    overwrite: bool = False
    """Whether the result may be written over the residual, see ``partition.reuse``."""

    @property
    def out_shape(self) -> tuple[int, ...]:
        """Shape of the region that is made."""
        return region_shape(self.layer.spec.shape, self.out)

    def in_shape(self, index: int) -> tuple[int, ...]:
        """Shape of the region that is read of one input."""
        return region_shape(self.shapes[index], self.parts[index])

    def present(self, index: int) -> bool:
        """Whether anything at all is read of this input."""
        part = self.parts[index]
        return part is WHOLE or len(part.interval) > 0

    def cut(self, index: int) -> tuple[int, int, int] | None:
        """How to narrow the held piece to the part that is read: (dim, start, length), ``None`` for all of it."""
        part, piece = self.parts[index], self.pieces[index]
        if part is WHOLE:
            return None
        start = part.interval.start - (piece.interval.start if piece.dim == part.dim else 0)
        held = len(piece.interval) if piece.dim == part.dim else self.shapes[index][part.dim]
        if piece.dim == UNSPLIT:
            start, held = part.interval.start, self.shapes[index][part.dim]
        return None if (start, len(part.interval)) == (0, held) else (part.dim, start, len(part.interval))


def region_shape(shape: tuple[int, ...], region: Region | None) -> tuple[int, ...]:
    """``shape`` with the region's dimension at the region's length."""
    if region is WHOLE:
        return shape
    return tuple(len(region.interval) if dim == region.dim else size for dim, size in enumerate(shape))
