"""Inputs of layers, recorded while a network runs: whole maps, as a block's attention is a mean over the map."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from edgedi.transforms.data import Data
from edgedi.transforms.numbers import seed_of

NUM_BYTES = 64_000_000
"""Of inputs and outputs of one layer together: large maps are few, small maps many."""
IMAGES = 4096


def record(model: nn.Module, names: Sequence[str], data: Data, seed: int, num_bytes: int = NUM_BYTES) -> list[Tensor]:
    """Inputs [images, channels, rows, columns] of the convolutions ``names``: as many of ``data`` as fit, by chance.

    At least one image of each; of maps of several sizes those of the first size. ``seed`` says which.
    """
    reels = {name: _Reel(num_bytes) for name in names}
    handles = [model.get_submodule(name).register_forward_hook(reel.keep) for name, reel in reels.items()]
    seen = 0
    try:
        with torch.no_grad():
            for batch in data.epoch(seed_of(seed, "record")):
                model(*batch.arguments)
                seen += batch.size
                if seen >= IMAGES or all(reel.room == 0 for reel in reels.values()):
                    break
    finally:
        for handle in handles:
            handle.remove()
    return [torch.cat(reel.inputs) for reel in reels.values()]


class _Reel:
    """The inputs of one layer."""

    def __init__(self, num_bytes: int) -> None:
        self.inputs: list[Tensor] = []
        self.room: int | None = None
        """How many images still fit; ``None`` before the first."""
        self._num_bytes = num_bytes

    def keep(self, module: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        x = arguments[0]
        if self.room is None:
            one = (x[0].numel() + output[0].numel()) * x.element_size()
            self.room = max(1, min(IMAGES, self._num_bytes // one))
        if self.room and (not self.inputs or x.shape[1:] == self.inputs[0].shape[1:]):
            self.inputs.append(x[: self.room].clone())
            self.room -= len(self.inputs[-1])
