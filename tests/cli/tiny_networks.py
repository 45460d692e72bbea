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


def heavy() -> nn.Module:
    """Four convolutions of 590 kB of weights each: too many for a worker of 2 MB, not for two."""
    return nn.Sequential(nn.Conv2d(3, 128, 3, padding=1), *(nn.Conv2d(128, 128, 3, padding=1) for _ in range(4)))


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


class Picky(nn.Module):
    """Refuses what it does not like as some networks of torchvision do."""

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[2] == 8, f"Wrong image height! Expected 8 but got {x.shape[2]}!"
        return x.relu()


def picky() -> nn.Module:
    return Picky()


def broken() -> nn.Module:
    raise RuntimeError("no such weights")


def number() -> int:
    return 3


# --- data for edgedi-compact ------------------------------------------------------------------------------------------


def dead() -> nn.Module:
    """[1, 3, 16, 16] -> [1, 5], with a channel that is zero whatever the input."""
    model = chain()
    with torch.no_grad():
        model[0].weight[3] = 0
        model[0].bias[3] = -1
    return model


def scored() -> dict[str, object]:
    """Images with labels that ``dead`` gives, and another metric."""
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    return {"validate": [(images, dead().eval()(images).argmax(1))], "example_inputs": images[:1]}


def taught() -> dict[str, object]:
    """The same, with something to learn from."""
    return {**scored(), "train": scored()["validate"]}


class Described:
    """The same as an object."""

    def __init__(self) -> None:
        for name, value in scored().items():
            setattr(self, name, value)
        self.metric = lambda model, batches: -float(model(batches[0][0]).detach().square().mean())


class Failing(Described):
    """With a metric that fails."""

    def __init__(self) -> None:
        super().__init__()
        self.metric = lambda model, batches: {}["scores"]


def lossy() -> dict[str, object]:
    """With a loss that fails."""

    def loss(outputs: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError("no such loss")

    return {**taught(), "loss": loss}


def misspelt() -> dict[str, object]:
    return {"validat": []}


def nothing() -> dict[str, object]:
    return {"metric": "accuracy"}


def foreign() -> nn.Module:
    """A network that cannot be saved: its answer is of a class of its own."""

    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cond(x.sum() > 0, torch.sin, torch.cos, (x,))

    return Odd()
