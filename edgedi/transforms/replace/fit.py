"""Fit a block to the layer that it replaces, by that layer's own inputs: from the factors of its weights, then by Adam.

The last word has least squares: given what is inside the block, ``restore`` and the bias have one best answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from edgedi.transforms.replace import squares
from edgedi.transforms.replace.block import stand_in
from edgedi.transforms.replace.start import start
from edgedi.transforms.scar import Scar

STEPS = 200
RATE = 3e-3
POSITIONS = 16_384
"""Of the output in a step of Adam, about."""
HELD = 8
"""One image of so many is held back from the fit, and tells its error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fitted:
    """A block whose function is near its layer's.

    Errors are squared differences over the squared deviation from each channel's mean, on inputs that the fit has not
    seen (where there is but one image, on that): 0 is the layer itself, 1 a constant.
    """

    block: Scar
    start_error: float
    """Of the factors of the weights, before any fitting."""
    error: float


def fit(convolution: nn.Conv2d, inputs: Tensor, ratio: int, *, seed: int, steps: int = STEPS) -> Fitted:
    """A block for ``convolution`` on ``inputs`` [images, channels, rows, columns], in evaluation mode.

    Same arguments, same result; torch's own random numbers are not used, and ``convolution`` is not changed.
    """
    generator, dtype = torch.Generator().manual_seed(seed), torch.promote_types(inputs.dtype, torch.float32)
    block = stand_in(convolution, ratio).to(dtype=dtype)
    with torch.no_grad():
        x, y = inputs.to(dtype), torch.cat([convolution(images) for images in inputs.split(32)]).to(dtype)
        seen, held = _seen(x), _held(x)
        start(block, convolution, x[seen], generator)
        start_error = squares.error(squares.moments(block, x[held], y[held]), _columns(block))
        _put(block, squares.best(squares.moments(block, x[seen], y[seen])))
    _descend(block, x[seen], y[seen], generator, steps)
    with torch.no_grad():
        _put(block, squares.best(squares.moments(block, x[seen], y[seen])))
        error = squares.error(squares.moments(block, x[held], y[held]), _columns(block))
    return Fitted(block=block.to(dtype=convolution.weight.dtype).eval(), start_error=start_error, error=error)


def _seen(images: Tensor) -> slice:
    return slice(0, max(1, len(images) - max(1, len(images) // HELD)))


def _held(images: Tensor) -> slice:
    return slice(len(images) - max(1, len(images) // HELD), None)


def _descend(block: Scar, x: Tensor, y: Tensor, generator: torch.Generator, steps: int) -> None:
    """Adam on all parts of ``block``, its rate falling to 0 along a cosine."""
    images = min(len(x), max(1, POSITIONS // y[0, 0].numel()))
    spread = (y - y.mean((0, 2, 3), keepdim=True)).square().mean().clamp(min=1e-30)
    optimiser = torch.optim.Adam(block.parameters(), lr=RATE)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = RATE * (1 + math.cos(math.pi * step / steps)) / 2
        chosen = torch.randint(len(x), (images,), generator=generator).to(x.device)
        with torch.enable_grad():
            loss = (block(x[chosen]) - y[chosen]).square().mean() / spread
            optimiser.zero_grad()
            loss.backward()
        optimiser.step()
    optimiser.zero_grad()


def _columns(block: Scar) -> Tensor:
    """``restore`` and its bias as ``squares`` has them."""
    restore: Any = block.restore
    return torch.cat([restore.weight[:, :, 0, 0].T, restore.bias[None]]).double()


def _put(block: Scar, columns: Tensor) -> None:
    restore: Any = block.restore
    restore.weight.copy_(columns[:-1].T[:, :, None, None])
    restore.bias.copy_(columns[-1])
