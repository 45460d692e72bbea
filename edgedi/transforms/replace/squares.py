"""The best last layer there is: least squares of ``restore`` and a bias, given what is inside a block."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from edgedi.transforms.scar import Scar

RIDGE = 1e-7
"""Of the mean square of what least squares reads: directions that hardly vary get no large weights."""
CHUNK = 1 << 22
"""Values of the output at a time."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Moments:
    """Sums over positions of products: f what ``restore`` reads with a 1 behind, y the output wanted. In float64."""

    gram: Tensor
    """f f^T, [channels inside + 1] squared."""
    cross: Tensor
    """f y^T, [channels inside + 1, outputs]."""
    square: Tensor
    """y^2, [outputs]."""

    @property
    def positions(self) -> Tensor:
        return self.gram[-1, -1]


def moments(block: Scar, inputs: Tensor, wanted: Tensor) -> Moments:
    """Of ``block`` on ``inputs`` [images, channels, rows, columns], where it should give ``wanted``."""
    middle, outputs = block.restore.in_channels, block.restore.out_channels
    options = {"dtype": torch.float64, "device": wanted.device}
    gram, cross = torch.zeros(middle + 1, middle + 1, **options), torch.zeros(middle + 1, outputs, **options)
    square = torch.zeros(outputs, **options)
    for x, y in _chunks(inputs, wanted):
        inside = _rows(block.gated(x)).double()
        features = torch.cat([inside, torch.ones_like(inside[:, :1])], 1)
        values = _rows(y).double()
        gram += features.T @ features
        cross += features.T @ values
        square += values.square().sum(0)
    return Moments(gram=gram, cross=cross, square=square)


def best(sums: Moments) -> Tensor:
    """Weights and bias [channels inside + 1, outputs] of the least squared error."""
    ridge = RIDGE * sums.gram.diagonal()[:-1].mean()
    damping = torch.full_like(sums.square[:1], float(ridge)).expand(len(sums.gram)).clone()
    damping[-1] = 0
    return torch.linalg.lstsq(sums.gram + damping.diag(), sums.cross).solution


def error(sums: Moments, columns: Tensor) -> float:
    """Squared difference over squared deviation from each output's mean; of outputs that never vary, 0 over 1."""
    off = sums.square.sum() - 2 * (columns * sums.cross).sum() + (columns * (sums.gram @ columns)).sum()
    spread = (sums.square - sums.cross[-1].square() / sums.positions).sum()
    return max(0.0, float(off)) / max(float(spread), 1e-30)


def _chunks(inputs: Tensor, wanted: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    images = max(1, CHUNK // wanted[0].numel())
    return zip(inputs.split(images), wanted.split(images), strict=True)


def _rows(maps: Tensor) -> Tensor:
    """[images, channels, rows, columns] to [positions, channels]."""
    return maps.permute(0, 2, 3, 1).flatten(0, 2)
