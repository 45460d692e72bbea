"""Where a block starts: low-rank factors of the convolution that it stands in for.

A weight [outputs, inputs, rows, columns] is nearly U * core * V^T, U the main directions of its outputs and V those of
its inputs (Tucker, 1966; for convolutions Kim et al., ICLR 2016): restore, convolution and squeeze of a block.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from edgedi.transforms.scar import Scar


def start(block: Scar, convolution: nn.Conv2d, inputs: Tensor, generator: torch.Generator) -> None:
    """Set the weights of ``block``, a ``stand_in``, in place.

    Each group of ``convolution`` has its own share of the channels inside. The attention starts at 0: half of every
    channel, which ``restore`` makes up for. On ``inputs`` all channels inside have a mean square of 1, so that one
    learning rate serves all layers.
    """
    squeeze, inner, restore = block.squeeze.weight, block.convolution.weight, block.restore.weight
    bias: Any = block.restore.bias
    bias.copy_(torch.zeros_like(bias) if convolution.bias is None else convolution.bias)
    for weight in (squeeze, inner):  # where there are more channels inside than factors, the rest can still learn
        weight.copy_(_noise(weight, generator))
    nn.init.zeros_(block.attention.weight)
    nn.init.zeros_(restore)
    groups = convolution.groups
    shares = zip(*(_shares(tensor, groups) for tensor in (convolution.weight, squeeze, inner, restore)), strict=True)
    for group, (weight, rows, core, columns) in enumerate(shares):
        middle, reads = len(core), weight.shape[1]
        out, mixed, into = _factors(weight.to(core.dtype), middle)
        others = torch.ones(squeeze.shape[1], dtype=torch.bool)
        others[group * reads : (group + 1) * reads] = False
        rows[:, others] = 0
        rows[: into.shape[1], ~others, 0, 0] = into.T
        core[: len(mixed)] = 0
        core[: len(mixed), : mixed.shape[1]] = mixed
        columns[:, group * middle : group * middle + len(mixed), 0, 0] = 2 * out
    _even_out(block, inputs)


def _factors(weight: Tensor, middle: int) -> tuple[Tensor, Tensor, Tensor]:
    """U [outputs, <= middle], core [<= middle, <= middle, rows, columns], V [inputs, <= middle]."""
    exact = weight.double()
    out = torch.linalg.svd(exact.flatten(1), full_matrices=False).U[:, :middle]
    into = torch.linalg.svd(exact.transpose(0, 1).flatten(1), full_matrices=False).U[:, :middle]
    core = torch.einsum("oihw,om,in->mnhw", exact, out, into)
    return out.to(weight.dtype), core.to(weight.dtype), into.to(weight.dtype)


def _even_out(block: Scar, inputs: Tensor) -> None:
    """Mean squares of 1 after ``squeeze`` and after ``convolution``, the block's function as it was."""
    squeezed = block.squeeze(inputs)
    size = _size(squeezed)
    squeeze, inner, restore = block.squeeze.weight, block.convolution.weight, block.restore.weight
    squeeze /= size[:, None, None, None]
    of_group = size.view(block.convolution.groups, 1, -1).expand(-1, len(inner) // block.convolution.groups, -1)
    inner *= of_group.reshape(len(inner), -1)[:, :, None, None]
    size = _size(block.convolution(block.squeeze(inputs)))
    inner /= size[:, None, None, None]
    restore *= size[None, :, None, None]


def _size(maps: Tensor) -> Tensor:
    """Root of the mean square of each channel; 1 where that is 0."""
    size = maps.square().mean((0, 2, 3)).sqrt()
    return torch.where(size > 0, size, torch.ones_like(size))


def _shares(weight: Any, groups: int) -> list[Tensor]:
    """Views of a weight's outputs, group by group."""
    return list(weight.chunk(groups))


def _noise(weight: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(weight.shape, generator=generator, dtype=torch.float32)
    return noise / weight[0].numel() ** 0.5
