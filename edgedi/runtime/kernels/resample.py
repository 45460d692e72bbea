"""Resizing and adaptive average pooling of a part of a map.

Both are linear along each dimension. Whole, they are torch's own operator. Along a cut dimension the weights that
torch itself uses are read off once, by running its operator on the unit vectors of that dimension; a part of the output
is then a few weighted rows. So every mode, rounding and border is torch's, whatever the cut.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedi.partition.graph.geometry import WHOLE
from edgedi.runtime.kernels.task import Kernel, Task

_ADAPTIVE = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
_PROBED = {"float64": torch.float64}


def resample(task: Task) -> Kernel:
    """The kernel of ``resize`` and ``adaptive_avg_pool`` layers."""
    num_spatial = len(task.layer.attribute("size", (0, 0)))
    size, out = task.layer.spec.shape[-num_spatial:], task.out
    first = task.layer.spec.rank - num_spatial
    if out is WHOLE or out.dim < first:
        return _native(task, size)
    part, dim = task.parts[0], out.dim
    if part is WHOLE:
        return _whole_then_cut(task, size)
    index, weight = _taps(task, dim - first, size)
    offset = part.interval.start
    index, weight = (
        index[out.interval.start : out.interval.stop] - offset,
        weight[out.interval.start : out.interval.stop],
    )
    along = _along(dim, index, weight, task.layer.spec.rank)
    others = [task.in_shape(0)[first + axis] for axis in range(num_spatial)]
    others[dim - first] = len(out.interval)
    rest = _native(
        task, tuple(others[a] if a == dim - first else size[a] for a in range(num_spatial)), fixed=dim - first
    )
    return lambda x: rest(along(x))


def _whole_then_cut(task: Task, size: tuple[int, ...]) -> Kernel:
    out, whole = task.out, _native(task, size)
    assert out is not WHOLE
    keep = (out.dim, out.interval.start, len(out.interval))
    return lambda x: whole(x).narrow(*keep)


def _native(task: Task, size: tuple[int, ...], fixed: int | None = None) -> Callable[[Tensor], Tensor]:
    """torch's own operator to ``size``; dimension ``fixed`` keeps its length, at which every mode is the identity."""
    attributes = task.layer.attributes
    if task.layer.op == "adaptive_avg_pool":
        function = _ADAPTIVE[len(size)]
        return lambda x: function(x, size)
    scales = attributes["scales"]
    if scales is not None and fixed is not None:
        scales = tuple(1.0 if axis == fixed else scale for axis, scale in enumerate(scales))
    operator = _resize_operator(attributes["mode"], attributes["antialias"])
    corners = _corners(attributes)
    factors = (None, None) if scales is None else tuple(scales)
    if attributes["antialias"] and fixed == 1 and size[1] == 1:
        # torch (seen in 2.15) resizes the rows of a single contiguous column wrongly: give it two, keep one
        twice = (size[0], 2)
        return lambda x: operator(x.expand(-1, -1, -1, 2), twice, *corners, *factors).narrow(3, 0, 1)
    return lambda x: operator(x, size, *corners, *factors)


def _corners(attributes: Mapping[str, Any]) -> tuple[bool, ...]:
    """The argument that the nearest modes do not have."""
    return () if attributes["mode"].startswith("nearest") else (attributes["align_corners"],)


def _resize_operator(mode: str, antialias: bool) -> Callable[..., Tensor]:
    if antialias:
        return {
            "bilinear": torch.ops.aten._upsample_bilinear2d_aa.default,
            "bicubic": torch.ops.aten._upsample_bicubic2d_aa.default,
        }[mode]
    return {
        "nearest": torch.ops.aten.upsample_nearest2d.default,
        "nearest-exact": torch.ops.aten._upsample_nearest_exact2d.default,
        "bilinear": torch.ops.aten.upsample_bilinear2d.default,
        "bicubic": torch.ops.aten.upsample_bicubic2d.default,
    }[mode]


def _taps(task: Task, axis: int, size: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """For every output position along ``axis``: which inputs it reads and with what weights, [outputs, taps] each."""
    first, spatial = task.layer.spec.rank - len(size), len(size)
    length = task.shapes[0][first + axis]
    unit = torch.eye(length, dtype=_PROBED.get(task.layer.spec.dtype, torch.float32))
    # The other dimensions are 2 long, constant and kept: at length 1 torch's antialiased kernels mistake the scale.
    unit = unit.reshape([1, length, *(length if a == axis else 1 for a in range(spatial))])
    unit = unit.expand([1, length, *(length if a == axis else 2 for a in range(spatial))]).contiguous()
    target = tuple(size[axis] if a == axis else 2 for a in range(spatial))
    probed = _native_probe(task, target, axis)(unit)
    for other in reversed([a + 2 for a in range(spatial) if a != axis]):
        probed = probed.select(other, 0)
    table = probed.reshape(length, size[axis]).T
    taps = int((table != 0).sum(1).max())
    order = (table != 0).to(torch.int8).argsort(dim=1, descending=True, stable=True)[:, :taps]
    weight = table.gather(1, order)
    used = order[:, :1]  # absent taps weigh nothing; point them at one that is held
    order = torch.where(weight != 0, order, used)
    return order, weight


def _native_probe(task: Task, target: tuple[int, ...], axis: int) -> Callable[[Tensor], Tensor]:
    scales = task.layer.attribute("scales")
    if task.layer.op == "resize" and scales is not None:
        operator = _resize_operator(task.layer.attributes["mode"], task.layer.attributes["antialias"])
        corners = _corners(task.layer.attributes)
        only = tuple(scale if a == axis else 1.0 for a, scale in enumerate(scales))
        return lambda x: operator(x, target, *corners, *only)
    return _native(task, target)


def _along(dim: int, index: Tensor, weight: Tensor, rank: int) -> Kernel:
    shape = [1] * rank
    shape[dim] = -1
    columns = [(index[:, tap].contiguous(), weight[:, tap].reshape(shape)) for tap in range(index.shape[1])]

    def run(x: Tensor) -> Tensor:
        total = x.index_select(dim, columns[0][0]) * columns[0][1]
        for rows, factor in columns[1:]:
            total = total + x.index_select(dim, rows) * factor
        return total.to(
            x.dtype
        )  # weights are float32 at least, and so is the sum: half precision rounds once, as torch does

    return run
