"""What takes a convolution's place, and the edit that puts it there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from edgedi.transforms.scar import Scar


def stand_in(convolution: nn.Conv2d, ratio: int) -> Scar:
    """An untrained block whose ``restore`` has a bias: the published block with its normalisation folded into it.

    The published block has no bias; its layer's normalisation follows it. Of a network that comes from the exact step
    that normalisation has been folded into the convolution, so that the bias holds what it did, and would be lost with
    the layer. Training puts normalisations back where the original has them, behind blocks as behind convolutions, and
    folds them again: into ``restore``, which then has a bias in any case.
    """
    with torch.random.fork_rng(devices=[]):  # these weights are replaced: they use up nobody's random numbers
        block = Scar.like(convolution, ratio)
    block.restore.bias = nn.Parameter(convolution.weight.new_zeros(convolution.out_channels))
    return block


@dataclass(frozen=True, slots=True, kw_only=True)
class Replace:
    """Blocks for convolutions, as an ``Edit``: ``ratios`` by the layers' names."""

    ratios: Mapping[str, int]

    def apply(self, model: nn.Module, arguments: tuple[Any, ...]) -> nn.Module:
        """``model`` itself, changed; the weights of the blocks are untrained."""
        for name, ratio in self.ratios.items():
            convolution: Any = model.get_submodule(name)
            model.set_submodule(name, stand_in(convolution, ratio))
        return model
