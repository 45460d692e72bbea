"""SCAR: squeeze, convolution, attention, restore. What stands in for one wide convolution at a fraction of its work.

A convolution of C to C channels with a 3x3 kernel takes 9 C^2 MACs at each position, the block 2 C^2 / r + 9 C^2 / r^2:
23 times fewer at r = 8. It computes another function, so it has to be trained; nothing here does that.
"""

from __future__ import annotations

from math import gcd

import torch
from torch import Tensor, nn


class Scar(nn.Module):
    """Stands in for a convolution of ``in_channels`` to ``out_channels``, whose activation and normalisation follow it.

    With m = ``out_channels / ratio``: 1x1 to m channels; the convolution proper, m to m; every channel times its own
    attention, sigmoid(W z), z the mean of each channel over the whole map and W a square m x m layer; 1x1 to
    ``out_channels``. No part has a bias, nothing stands in between; ``compact`` gives ``restore`` one, for what
    normalisation leaves when it is folded into it. Maps are [batch, channels, rows, columns].

    ``ValueError`` where ``ratio`` does not divide ``out_channels``, or ``groups`` does not divide m.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        *,
        ratio: int = 8,
        stride: int | tuple[int, int] = 1,
        padding: int | str | tuple[int, int] = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
    ) -> None:
        super().__init__()
        if ratio < 1 or out_channels % ratio:
            raise ValueError(f"ratio is {ratio}; it must be positive and divide the {out_channels} output channels")
        middle = out_channels // ratio
        if middle % groups:
            nearest = gcd(middle, groups)
            raise ValueError(f"{middle} channels between do not make {groups} groups; {nearest} groups would do")
        self.squeeze = nn.Conv2d(in_channels, middle, 1, bias=False)
        self.convolution = nn.Conv2d(
            middle, middle, kernel_size, stride, padding, dilation, groups, bias=False, padding_mode=padding_mode
        )
        self.attention = nn.Linear(middle, middle, bias=False)
        self.restore = nn.Conv2d(middle, out_channels, 1, bias=False)

    @classmethod
    def like(cls, convolution: nn.Conv2d, ratio: int = 8) -> Scar:
        """A block, untrained, that takes and gives maps of the shapes that ``convolution`` does, on its device.

        Stride, padding, dilation and groups are the convolution's own; its bias is left out.
        """
        block = cls(
            convolution.in_channels,
            convolution.out_channels,
            convolution.kernel_size,
            ratio=ratio,
            stride=convolution.stride,
            padding=convolution.padding,
            dilation=convolution.dilation,
            groups=convolution.groups,
            padding_mode=convolution.padding_mode,
        )
        weight = convolution.weight
        return block.to(device=weight.device, dtype=weight.dtype).train(convolution.training)

    def forward(self, x: Tensor) -> Tensor:
        """[batch, in_channels, rows, columns] to [batch, out_channels, ...] of the convolution it stands in for."""
        return self.restore(self.gated(x))

    def gated(self, x: Tensor) -> Tensor:
        """What ``restore`` reads: [batch, m, ...]."""
        x = self.convolution(self.squeeze(x))
        attention = torch.sigmoid(self.attention(x.mean((2, 3))))
        return x * attention[:, :, None, None]
