"""``compact`` where no class is looked for: the caller's ``metric`` chooses, and ``loss`` says what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.transforms.compact import compact
from edgedi.transforms.recover import search, training
from tests.transforms.recover.toy import batches_of

Loss = Callable[[Tensor, Tensor], Tensor]
Metric = Callable[[nn.Module, Any], float]


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "STEPS_WITHOUT_BUDGET", 20)
    monkeypatch.setattr(search, "MOST_TRIALS", 1)


def spots(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy images [count, 1, 8, 8] with a bright spot each, and where it is, [count, 2], from -1 to 1."""
    generator = torch.Generator().manual_seed(seed)
    where = torch.rand(count, 2, generator=generator) * 2 - 1
    line = torch.linspace(-1, 1, 8)
    rows, columns = (torch.exp(-4 * (line - where[:, i, None]).square()) for i in (0, 1))
    image = rows[:, :, None] * columns[:, None, :] + 0.1 * torch.randn(count, 8, 8, generator=generator)
    return image[:, None], where


def discs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """The same images, and which pixels belong to the spot, [count, 8, 8]."""
    image, where = spots(count, seed)
    line = torch.linspace(-1, 1, 8)
    rows, columns = ((line - where[:, i, None]).square() for i in (0, 1))
    return image, (rows[:, :, None] + columns[:, None, :] < 0.4).long()


def body() -> list[nn.Module]:
    return [nn.Conv2d(1, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()]


def trained(head: list[nn.Module], x: Tensor, y: Tensor, loss: Loss) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*body(), *head)
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(60):
            optimizer.zero_grad()
            loss(model(x), y).backward()
            optimizer.step()
    return model.eval()


def overlap(model: nn.Module, validate: Any) -> float:
    """Intersection over union of the spots."""
    found, wanted = torch.cat([model(x).argmax(1) for x, _ in validate]), torch.cat([y for _, y in validate])
    return float((found & wanted).sum() / (found | wanted).sum())


def nearness(model: nn.Module, validate: Any) -> Tensor:
    """The mean squared error, less being more."""
    return -torch.stack([F.mse_loss(model(x), y) for x, y in validate]).mean()


SEGMENTATION = (discs, lambda: [nn.Conv2d(12, 2, 3, padding=1)], F.cross_entropy, overlap, 0.03)
REGRESSION = (spots, lambda: [nn.AvgPool2d(2), nn.Flatten(), nn.Linear(192, 2)], F.mse_loss, nearness, 0.003)


@pytest.mark.parametrize(
    ("data", "head", "loss", "metric", "tolerance"), [SEGMENTATION, REGRESSION], ids=["segmentation", "regression"]
)
def test_the_metric_chooses_and_holds(
    data: Callable[..., Any], head: Callable[[], list[nn.Module]], loss: Loss, metric: Metric, tolerance: float
):
    (x, y), validate = data(192, 0), batches_of(*data(96, 1))
    model, given = trained(head(), x, y, loss), list[float]()

    def noted(network: nn.Module, handed: Any) -> Any:
        assert handed is validate
        value = metric(network, handed)
        given.append(float(value))
        return value

    small = compact(
        model, x[:1], train=batches_of(x, y), validate=validate, metric=noted, loss=loss, tolerance=tolerance,
        steps=("simplify", "prune", "recover"),
    )  # fmt: skip
    report = small.compaction
    before, after = report.curve[0], report.curve[-1]
    with torch.no_grad():
        assert before.score == pytest.approx(float(metric(model, validate)))
        assert after.score == pytest.approx(float(metric(small, validate)))
    least = before.score - tolerance
    assert after.score >= least
    assert after.macs < 0.9 * before.macs
    # Every network was taken or not by what the metric said of it, and by nothing else.
    assert {point.score for point in report.curve} <= set(given)
    assert after.macs == min(point.macs for point in report.curve if point.score >= least)
    assert any(point.score < least for point in report.curve)
