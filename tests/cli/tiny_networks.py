"""Networks that the tests of edgedi-bench name on a command line."""

from __future__ import annotations

import torch
from torch import Tensor, nn

not_callable = 3


def chain() -> nn.Module:
    """Two convolutions and a head: [n, 3, h, w] -> [n, 5]."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    )  # fmt: skip


class Nested(nn.Module):
    """Two inputs, and an answer in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(1, 4, 1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        joined = torch.relu(self.first(x) + self.second(y))
        return {"map": joined, "mean": joined.mean((2, 3))}


def nested() -> nn.Module:
    return Nested()


def broken() -> nn.Module:
    raise RuntimeError("no such weights")


def number() -> int:
    return 3
