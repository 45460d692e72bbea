"""Padding at a cut: a sliding-window kernel with symmetric padding made to give asymmetric borders.

Two ways per dimension. *Junk*: run with the larger padding on both sides and drop the outputs that saw false padding;
costs those outputs. *Explicit*: write the padding into a copy; costs the copy. Junk is taken while it is under 4 % of
the rows, since copying a large map costs about as much as computing one row in thirty of a 3 x 3 convolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor
from torch.nn import functional as F

from edgedi.partition.graph.operators import padding_at
from edgedi.runtime.kernels.task import Kernel, Task

_MOST_JUNK = 0.04


@dataclass(frozen=True, slots=True)
class Border:
    """One dimension: ``explicit`` padding (before, after), then ``symmetric``; keep [drop, drop + count) of it."""

    symmetric: int
    explicit: tuple[int, int]
    drop: int
    produced: int
    count: int


def borders(task: Task, *, most_symmetric: tuple[int, ...] | None = None) -> tuple[Border, ...]:
    """How each spatial dimension of a sliding-window task is padded; the sizes follow from the task's regions."""
    attributes, size = task.layer.attributes, task.in_shape(0)[2:]
    return tuple(
        _border(
            pads,
            length=size[axis],
            count=task.out_shape[2 + axis],
            stride=attributes["stride"][axis],
            reach=attributes["dilation"][axis] * (attributes["kernel"][axis] - 1) + 1,
            most=attributes["pad_before"][axis] if most_symmetric is None else most_symmetric[axis],
        )
        for axis, pads in enumerate(padding_at(task.layer, task.shapes, task.out))
    )


def _border(pads: tuple[int, int], *, length: int, count: int, stride: int, reach: int, most: int) -> Border:
    before, after = pads
    for symmetric in sorted({max(before, 0), max(after, 0)}):
        if symmetric > most:
            continue
        produced = (length + 2 * symmetric - reach) // stride + 1
        drop, rest = divmod(symmetric - before, stride)
        junk = produced - count
        if rest == 0 and drop >= 0 and drop + count <= produced and (junk <= _MOST_JUNK * count or before == after):
            return Border(symmetric, (0, 0), drop, produced, count)
    return Border(0, pads, 0, count, count)


def wrap(kernel: Kernel, found: tuple[Border, ...], value: float = 0.0) -> Kernel:
    """``kernel`` with explicit padding (by ``value``) before it and junk dropped behind it, where there is any."""
    pads = [pad for border in reversed(found) for pad in border.explicit]
    keeps = [
        (axis + 2, border.drop, border.count) for axis, border in enumerate(found) if border.produced != border.count
    ]
    if not any(pads) and not keeps:
        return kernel

    def run(x: Tensor, *others: Tensor) -> Tensor:
        if any(pads):
            x = pad_or_crop(x, pads, value)
        y = kernel(x, *others)
        for keep in keeps:
            y = y.narrow(*keep)
        return y

    return run


def pad_or_crop(x: Tensor, pads: Sequence[int], value: float = 0.0) -> Tensor:
    """``F.pad``, except that all padding is added before anything is cropped: a crop may reach into the padding."""
    if any(pad < 0 for pad in pads):
        x = F.pad(x, [max(pad, 0) for pad in pads], value=value) if any(pad > 0 for pad in pads) else x
        for index in range(0, len(pads), 2):
            dim, first, last = x.dim() - 1 - index // 2, max(-pads[index], 0), max(-pads[index + 1], 0)
            x = x.narrow(dim, first, x.shape[dim] - first - last) if first or last else x
        return x
    return F.pad(x, pads, value=value)


def symmetric(found: tuple[Border, ...]) -> list[int]:
    """The padding argument for the operator itself."""
    return [border.symmetric for border in found]
