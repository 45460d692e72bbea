"""The demo's first network: small, trained here and now on the handwritten digits that scikit-learn brings along."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgedi.errors import install

NUM_TEST = 360
EPOCHS = 10
_BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images of shape [n, 1, 8, 8] with values 0 to 1, labels 0 to 9: some to train with, others to test with."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


def need_demo_extra(error: ImportError) -> ValueError:
    """What to tell who lacks a library that only the demo needs."""
    return ValueError(f"the demo needs {error.name}: {install('demo')}")


def load_digits() -> Digits:
    """The 1,797 digits of 8 x 8 pixels (UCI optical recognition of handwritten digits), shuffled by a fixed seed."""
    try:
        from sklearn import datasets
    except ImportError as error:
        raise need_demo_extra(error) from error
    bundled = datasets.load_digits()
    order = torch.randperm(len(bundled.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(bundled.images, dtype=torch.float32)[order].unsqueeze(1) / 16
    labels = torch.tensor(bundled.target)[order]
    return Digits(
        train_images=images[NUM_TEST:], train_labels=labels[NUM_TEST:],
        test_images=images[:NUM_TEST], test_labels=labels[:NUM_TEST],
    )  # fmt: skip


class DigitNet(nn.Module):
    """Four convolutions with batch normalisation, one of them around a skip, a pool and a linear layer."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = _convolution(1, channels)
        self.body = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))
        self.pool = nn.MaxPool2d(2)
        self.last = _convolution(channels, 2 * channels)
        self.head = nn.Linear(2 * channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [n, 10] of images [n, 1, 8, 8]."""
        x = self.stem(x)
        x = self.pool(x + self.body(x))
        return self.head(self.last(x).mean((2, 3)))


def _convolution(channels: int, filters: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, filters, 3, padding=1, bias=False), nn.BatchNorm2d(filters), nn.ReLU())


def train(digits: Digits, say: Callable[[str], None]) -> nn.Module:
    """A trained ``DigitNet``, in evaluation mode. ``say`` hears of every second epoch."""
    torch.manual_seed(0)
    network = DigitNet()
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
    num_steps = EPOCHS * -(-len(digits.train_images) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=num_steps)
    for epoch in range(EPOCHS):
        loss = _one_epoch(network, digits, optimizer, schedule)
        if epoch % 2 == 1:
            say(f"training on {len(digits.train_images)} digits: epoch {epoch + 1} of {EPOCHS}, loss {loss:.4f}")
    return network.eval()


def _one_epoch(network: nn.Module, digits: Digits, optimizer: torch.optim.Optimizer, schedule: object) -> float:
    total = 0.0
    for batch in torch.randperm(len(digits.train_images)).split(_BATCH):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(digits.train_images[batch]), digits.train_labels[batch])
        loss.backward()
        optimizer.step()
        schedule.step()  # type: ignore[attr-defined]  # torch's schedulers have no public base in torch 2.6's types
        total += float(loss.detach()) * len(batch)
    return total / len(digits.train_images)
