"""A toy problem that a small network solves in a second: which of three blobs a point is of; and clocks for tests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from edgedi.transforms.data import Data


class Clock:
    """Seconds that pass only when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class Killed(Exception):
    """What a test's hook raises in the middle of a run."""


class Batches:
    """A list of batches; reading one takes a second of ``clock``, and the read after ``kill_after`` others fails."""

    def __init__(self, batches: list[Any], clock: Clock | None = None, each_s: float = 1.0) -> None:
        self.batches, self.clock, self.each_s = batches, clock, each_s
        self.num_read, self.kill_after = 0, -1

    def __iter__(self) -> Iterator[Any]:
        for place in torch.randperm(len(self.batches)).tolist():
            if self.num_read == self.kill_after:
                raise Killed
            self.num_read += 1
            if self.clock is not None:
                self.clock.now_s += self.each_s
            yield self.batches[place]


def blobs(count: int = 240, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Images [count, 2, 4, 4] around one of three patterns, and which."""
    generator = torch.Generator().manual_seed(seed)
    patterns = torch.randn(3, 2, 4, 4, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % 3
    return patterns[labels] + 1.2 * torch.randn(count, 2, 4, 4, generator=generator), labels


def batches_of(x: Tensor, y: Tensor, size: int = 24) -> list[tuple[Tensor, Tensor]]:
    return list(zip(x.split(size), y.split(size), strict=True))


def train_data(**options: Any) -> Data:
    return Data(Batches(batches_of(*blobs()), **options), "train", labelled=True)


def network(width: int = 12, seed: int = 0, norm: bool = True) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(2, width, 3, padding=1),
            nn.BatchNorm2d(width) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(width, 8, 3, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
            nn.Linear(32, 3),
        ).eval()


def trained(width: int = 12) -> nn.Module:
    """``network``, which has learnt the blobs."""
    model, (x, y) = network(width), blobs()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model.eval()


@torch.no_grad()
def cut(model: nn.Module, keep: int) -> nn.Module:
    """A folded ``network`` with the first ``keep`` channels of its first layer."""
    small = network(keep, norm=False)
    small.load_state_dict(
        {
            name: value[:keep] if name.startswith("0.") else value[:, :keep] if name == "3.weight" else value
            for name, value in model.state_dict().items()
        }
    )
    return small


def accuracy(model: nn.Module, seed: int = 1) -> float:
    x, y = blobs(300, seed)
    with torch.no_grad():
        return float((model(x).argmax(1) == y).float().mean())


def same_weights(one: nn.Module, other: nn.Module) -> bool:
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
