"""3 x 3 convolutions of stride 1 by a quarter of the multiplications: Winograd's F(4 x 4, 3 x 3).

A. Lavin, S. Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016. The map is cut into tiles of 6 x 6
that overlap by two; a tile is evaluated at 36 points, where convolution is multiplication, channel by channel: 36
products of matrices, which oneDNN's grouped convolution computes at full speed; 4 x 4 outputs come from each tile's
products.

The points are 0, +-1/sqrt(2), +-sqrt(2) and infinity: F(4 x 4) on the usual ones (0, +-1, +-2) is four times less exact
(``python -m bench.winograd``). As sums and differences of a whole tile are taken, a value rounds its tile by its own
size, and one that is infinite makes NaN of a tile, where the direct convolution keeps both to the pixels that see it.

The weights at the points take four times the room, the tiles pass memory, and maps that are no multiple of four are
computed beyond their border, so each geometry is tried where programs load (``Packer.trials``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgedi.partition.graph.operators import padding_at
from edgedi.runtime.kernels import windows
from edgedi.runtime.kernels.eager import activation, conv_groups
from edgedi.runtime.kernels.fused import Packer, plain_conv, reordered
from edgedi.runtime.kernels.task import Kernel, Task

TILE, TAPS = 4, 3
REACH = TILE + TAPS - 1
POINTS = (0.0, 0.5**0.5, -(0.5**0.5), 2.0**0.5, -(2.0**0.5))
"""And infinity."""
LEAST_CHANNELS = 32
"""With fewer the tiles cost more than the multiplications spare."""
LEAST_CHUNK_BYTES, MOST_CHUNK_BYTES = 1_500_000, 16_000_000
"""Of tiles at the points that are computed at once: they should stay in a cache between one product and the next, but
all weights are read for every chunk, so it is no less than those (``python -m bench.winograd --chunks 1,2,4,8,16``)."""
_BLOCK = 16
"""Outputs whose weights are taken to the points at once: all of them in float64 would fill memory, not a cache."""


def toom_cook(points: tuple[float, ...] = POINTS, tile: int = TILE) -> tuple[Tensor, Tensor, Tensor]:
    """(of the tile, of the weights, of the outputs): matrices of the one-dimensional algorithm, ``float64``.

    Outputs = ``outputs @ ((weights @ taps) * (of_tile @ tile))``.
    """
    reach = tile + TAPS - 1
    powers = {columns: _vandermonde(points, columns) for columns in (tile, TAPS, reach)}
    of_tile = torch.linalg.inv(powers[reach]).T
    largest = of_tile.abs().amax(1, keepdim=True)  # rows of like size round alike
    return of_tile / largest, powers[TAPS] * largest, powers[tile].T


def _vandermonde(points: tuple[float, ...], columns: int) -> Tensor:
    finite = [[point**power for power in range(columns)] for point in points]
    return torch.tensor([*finite, [0.0] * (columns - 1) + [1.0]], dtype=torch.float64)


def at_points(weight: Tensor) -> Tensor:
    """(outputs, inputs, 3, 3) -> (36 x outputs, inputs, 1, 1): weights of a convolution with 36 groups."""
    _, matrix, _ = toom_cook()
    both, points, inputs = torch.kron(matrix, matrix), REACH * REACH, weight.shape[1]
    made = weight.new_empty(points, *weight.shape[:2])
    for block, result in zip(weight.split(_BLOCK), made.split(_BLOCK, 1), strict=True):
        taps = block.double().permute(2, 3, 0, 1).reshape(TAPS * TAPS, -1)
        result.copy_((both @ taps).view(points, -1, inputs))
    return made.view(-1, inputs, 1, 1)


def points_bytes(weight_bytes: int) -> int:
    """Of what ``at_points`` makes of weights of so many bytes."""
    return REACH * REACH * weight_bytes // (TAPS * TAPS)


def wanted_bytes(attributes: Mapping[str, Any], weight_bytes: int) -> int:
    """What a convolution of such attributes may want to hold besides its weights of so many bytes."""
    narrow = weight_bytes < 4 * (TAPS * LEAST_CHANNELS) ** 2
    return points_bytes(weight_bytes) if fits(attributes) and not narrow else 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Tiling:
    """How a map is cut: ``rows`` x ``columns`` tiles, ``at_once`` rows of them at a time; ``pads`` as for ``F.pad``."""

    rows: int
    columns: int
    at_once: int
    pads: tuple[int, int, int, int]

    @property
    def num_at_once(self) -> int:
        return self.at_once * self.columns


def tiling_of(task: Task, chunk_bytes: int | None = None) -> Tiling:
    """The tiles that cover what ``task`` makes, and the padding that makes up for what its input lacks of them."""
    (top, _), (left, _) = padding_at(task.layer, task.shapes, task.out)
    _, channels, height, width = task.in_shape(0)
    rows, columns = (-(-count // TILE) for count in task.out_shape[2:])
    bottom, right = (count * TILE + TAPS - 1 for count in (rows, columns))
    row_bytes = 4 * REACH * REACH * columns * max(channels, task.out_shape[1])
    if chunk_bytes is None:
        chunk_bytes = min(MOST_CHUNK_BYTES, max(LEAST_CHUNK_BYTES, points_bytes(task.weights["weight"].nbytes)))
    return Tiling(
        rows=rows, columns=columns, at_once=min(rows, max(1, chunk_bytes // row_bytes)),
        pads=(left, right - width - left, top, bottom - height - top),
    )  # fmt: skip


def takes(task: Task) -> bool:
    """Whether it is a convolution that this computes."""
    layer, attributes = task.layer, task.layer.attributes
    if layer.op != "conv" or layer.spec.dtype != "float32" or layer.spec.rank != 4 or 0 in task.in_shape(0):
        return False
    _, keep = conv_groups(task)
    return fits(attributes) and keep is None


def fits(attributes: Mapping[str, Any]) -> bool:
    """Whether a convolution of such attributes may be computed so."""
    geometry = tuple(tuple(attributes[name]) for name in ("kernel", "stride", "dilation"))
    return geometry == ((TAPS, TAPS), (1, 1), (1, 1)) and attributes["groups"] == 1


def make(task: Task, packer: Packer, direct: Kernel) -> Kernel | None:
    """The kernel of ``task`` where it is faster than ``direct`` and there is room for its weights, else ``None``."""
    if not takes(task) or min(task.in_shape(0)[1], task.out_shape[1]) < LEAST_CHANNELS:
        return None
    tiling, weight, residual = tiling_of(task), task.weights["weight"], bool(task.layer.attribute("residual"))
    if not packer.has_room(weight, points_bytes(weight.nbytes)):
        return None
    arguments = _arguments(weight.shape[1], tiling)

    def on_any_weights() -> Kernel:
        some = weight.new_full((REACH * REACH * weight.shape[0], weight.shape[1], 1, 1), 0.01)
        return _kernel(task, tiling, reordered(some, arguments))

    tiles = (tiling.rows, tiling.columns, tiling.at_once)  # regions that need as many take as long
    geometry = (task.out_shape[0], *weight.shape[:2], *tiles, residual, torch.get_num_threads())
    shapes = [task.in_shape(0)] + [task.out_shape] * residual
    if not packer.trials.wins(geometry, on_any_weights, direct, shapes):
        return None
    packer.by_winograd.append(task.layer.name)
    return _kernel(task, tiling, packer.pack_points(weight, at_points, arguments))


def always(task: Task, packer: Packer, *, chunk_bytes: int | None = None) -> Kernel:
    """The kernel of a ``task`` that it ``takes``, whatever is faster."""
    tiling, weight = tiling_of(task, chunk_bytes), task.weights["weight"]
    return _kernel(task, tiling, packer.pack_points(weight, at_points, _arguments(weight.shape[1], tiling)))


def _arguments(inputs: int, tiling: Tiling) -> tuple[Any, ...]:
    """Padding, stride, dilation, groups, input size of the products as a grouped convolution."""
    groups = REACH * REACH
    return ([0, 0], [1, 1], [1, 1], groups, [1, groups * inputs, 1, tiling.num_at_once])


def _kernel(task: Task, tiling: Tiling, weight: Tensor) -> Kernel:
    """``weight`` as oneDNN wants it."""
    bias, act = task.weights.get("bias"), activation(task)
    of_tile, _, outputs = (torch.kron(matrix, matrix).float() for matrix in toom_cook())
    multiply = plain_conv(weight, _arguments(task.in_shape(0)[1], tiling))
    residual, relu = bool(task.layer.attribute("residual")), task.layer.attribute("activation") == "relu"
    *_, height, width = task.out_shape
    channels, ragged = task.out_shape[1], bool(height % TILE or width % TILE)

    def made(tiles: Tensor) -> Tensor:
        """(tiles, 36, inputs) -> (tiles, 16, outputs)."""
        count, points, inputs = tiles.shape
        evaluated = torch.bmm(of_tile.expand(count, points, points), tiles)
        flat = evaluated.view(1, 1, count, points * inputs).permute(0, 3, 1, 2)
        products = multiply(flat).permute(0, 2, 3, 1).reshape(count, points, channels)
        matrices = outputs.expand(count, TILE * TILE, points)
        return torch.bmm(matrices, products) if bias is None else torch.baddbmm(bias, matrices, products)

    def conv(x: Tensor, *others: Tensor) -> Tensor:
        padded = windows.pad_or_crop(x.permute(0, 2, 3, 1), (0, 0, *tiling.pads)).contiguous()
        batch, row, column, inputs = padded.stride()[0], padded.stride()[1], padded.stride()[2], padded.shape[3]
        y = padded.new_empty(padded.shape[0], tiling.rows, TILE, tiling.columns, TILE, channels)
        for image in range(padded.shape[0]):
            for first in range(0, tiling.rows, tiling.at_once):
                count = min(tiling.at_once, tiling.rows - first)
                tiles = padded.as_strided(
                    (count, tiling.columns, REACH, REACH, inputs), (TILE * row, TILE * column, row, column, 1),
                    padded.storage_offset() + image * batch + first * TILE * row,
                )  # fmt: skip
                found = made(tiles.reshape(count * tiling.columns, REACH * REACH, inputs))
                found = found.view(count, tiling.columns, TILE, TILE, channels).transpose(1, 2)
                if relu and not residual:
                    torch.clamp_min(found, 0, out=y[image, first : first + count])
                else:
                    y[image, first : first + count] = found
        y = y.view(padded.shape[0], tiling.rows * TILE, tiling.columns * TILE, channels)
        if ragged:
            y = y[:, :height, :width].contiguous()
        y = y.permute(0, 3, 1, 2)
        if residual:
            y.add_(*others)
        elif relu:
            return y
        return y if act is None else act(y)

    return conv
