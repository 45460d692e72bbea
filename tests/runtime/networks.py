"""Small networks that the runtime's tests distribute."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Small(nn.Module):
    """Convolutions with stride, a residual, squeeze-excite and a linear head: one of everything that matters."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, 2, 1)
        self.body = nn.Sequential(nn.Conv2d(channels, channels, 3, 1, 1), nn.BatchNorm2d(channels), nn.ReLU())
        squeezed = (nn.AdaptiveAvgPool2d(1), nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))
        self.squeeze = nn.Sequential(*squeezed)
        self.last = nn.Conv2d(channels, channels, 5, 1, 2)
        self.head = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = x + self.body(x)
        x = x * torch.sigmoid(self.squeeze(x))
        x = torch.relu(self.last(x))
        return self.head(x.mean((2, 3)))


class Forked(nn.Module):
    """Two inputs, nested outputs: a dictionary with a list and a constant in it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(1, 8, 3, padding=1)

    def forward(self, x: Tensor, y: Tensor) -> dict[str, object]:
        joined = torch.relu(self.first(x) + self.second(y))
        return {"maps": [joined, joined.amax((2, 3))], "note": None}


def small(seed: int = 0, channels: int = 16) -> Small:
    torch.manual_seed(seed)
    return Small(channels).eval()


def image(batch: int = 1, height: int = 33, width: int = 41, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))
