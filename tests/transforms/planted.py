"""Small networks of every structure, and faults planted in them: channels that are dead, equal or constant."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.transforms.compact import compact
from edgedi.transforms.measure import difference


def randomised(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in evaluation mode, its normalisations with statistics and scales that leave no channel out."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor, low, high in ((module.weight, 0.5, 1.5), (module.bias, -0.5, 0.5)):
                tensor.data.uniform_(low, high, generator=generator)
            module.running_mean.uniform_(-0.3, 0.3, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@torch.no_grad()
def kill(layer: nn.Module, channels: Sequence[int], value: float = 0.0) -> None:
    """These outputs of ``layer`` are ``value`` everywhere."""
    for channel in channels:
        layer.weight[channel] = 0
        if layer.bias is not None:
            layer.bias[channel] = value
        else:
            assert value == 0.0


@torch.no_grad()
def repeat(layer: nn.Module, first: int, channels: Sequence[int]) -> None:
    """These outputs of ``layer``, and what normalises them, are equal to its output ``first``."""
    for tensor in (*layer.parameters(), *layer.buffers()):
        if tensor.dim():
            for channel in channels:
                tensor[channel] = tensor[first]


def widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of every convolution and linear layer."""
    return {
        name: (module.in_features, module.out_features)
        if isinstance(module, nn.Linear)
        else (module.in_channels, module.out_channels)
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Linear))
    }


def image(channels: int = 3, size: tuple[int, int] = (13, 11), batch: int = 2) -> Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(7))


def compacted(model: nn.Module, x: Tensor, *, limit: float = 1e-6) -> nn.Module:
    """``compact(model, x)``, compared on other inputs than the example, too, in float64: no rounding to hide in."""
    small = compact(model, x)
    other = torch.randn(x.shape, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    with torch.no_grad():
        found, expected = small.double()(other), model.double()(other)
    assert difference(found, expected) <= limit
    model.float()
    return small.float()


class Residual(nn.Module):
    """Two branches and a skip: channels of the three convolutions and of the sum hang together."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.inner = nn.Conv2d(width, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.outer = nn.Conv2d(12, width, 3, padding=1)
        self.head = nn.Conv2d(width, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = self.outer(F.relu(self.norm(self.inner(x))))
        return self.head(F.relu(x + y))


class Concat(nn.Module):
    """Two branches side by side, one of them pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.head = nn.Conv2d(13, 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        right = F.max_pool2d(F.relu(self.right(x)), 3, 1, 1)
        return self.head(torch.cat([F.relu(self.left(x)), x, right], 1))


class Excited(nn.Module):
    """Squeeze and excitation: every channel times a number made of all of them."""

    def __init__(self, width: int = 8, middle: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.down, self.up = nn.Conv2d(width, middle, 1), nn.Conv2d(middle, width, 1)
        self.head = nn.Conv2d(width, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        scale = torch.sigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))
        return self.head(x * scale)


class Shuffled(nn.Module):
    """A grouped convolution between two shuffles, as ShuffleNet writes them."""

    def __init__(
        self, width: int = 12, groups: int = 2, shuffle: Callable[[Tensor, int], Tensor] | None = None
    ) -> None:
        super().__init__()
        self.groups, self.shuffle = groups, shuffle or by_hand
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Conv2d(width, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.shuffle(F.relu(self.stem(x)), self.groups))


def by_hand(x: Tensor, groups: int) -> Tensor:
    batch, channels, rows, columns = x.size()
    x = x.view(batch, groups, channels // groups, rows, columns)
    return torch.transpose(x, 1, 2).contiguous().view(batch, channels, rows, columns)


class Halves(nn.Module):
    """Half of the channels through a layer, half past it."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.body = nn.Conv2d(width // 2, 6, 3, padding=1)
        self.head = nn.Conv2d(6 + width // 2, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        first, second = F.relu(self.stem(x)).chunk(2, dim=1)
        return self.head(torch.cat([first, F.relu(self.body(second))], 1))


class Padded(nn.Module):
    """A residual block whose shortcut is narrower: every other position, between channels of zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, stride=2, padding=1)
        self.outer, self.head = nn.Conv2d(6, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        return self.head(F.relu(self.outer(F.relu(self.inner(x))) + shortcut))


class Flattened(nn.Module):
    """A classifier on the flattened map."""

    def __init__(self, width: int = 6, size: int = 4) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, width, 3, padding=1), nn.AdaptiveAvgPool2d(size)
        self.first, self.second = nn.Linear(width * size * size, 10), nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(F.relu(self.stem(x)))
        return self.second(F.relu(self.first(torch.flatten(x, 1))))
