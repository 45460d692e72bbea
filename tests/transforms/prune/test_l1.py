"""The published rule against a plain reading of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from edgedi.errors import CompactionError
from edgedi.transforms.compact import compact
from edgedi.transforms.measure import answer_of
from edgedi.transforms.prune.groups import groups_of
from edgedi.transforms.prune.l1 import norms_of, prune_by_l1
from edgedi.transforms.score import Score
from edgedi.transforms.store import EVERY_S, Store
from edgedi.transforms.task import Budget, Outcome, Task
from tests.transforms.planted import Residual, image, widths


class Small(nn.Module):
    """Two layers to choose filters of, a flatten, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 5, 3), nn.Conv2d(5, 4, 3), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(torch.flatten(F.relu(self.second(F.relu(self.first(x)))), 1))


@pytest.fixture
def model() -> Small:
    torch.manual_seed(3)
    return Small().eval()


def labelled(model: nn.Module) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(200, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    return [(x, answer_of(model, (x,)).argmax(1))]


def accuracy_without(model: Small, gone: dict[str, list[int]], x: Tensor, labels: Tensor) -> float:
    """A filter that is gone reads as zeros: its output after the activation is set to zero."""
    with torch.no_grad():
        a = F.relu(model.first(x))
        a[:, gone["first"]] = 0
        b = F.relu(model.second(a))
        b[:, gone["second"]] = 0
        return float((model.last(torch.flatten(b, 1)).argmax(1) == labels).float().mean())


def by_hand(model: Small, x: Tensor, labels: Tensor, least: float) -> dict[str, list[int]]:
    layers = {"first": model.first, "second": model.second}
    order = {name: layer.weight.detach().abs().flatten(1).sum(1).argsort().tolist() for name, layer in layers.items()}
    gone: dict[str, list[int]] = {name: [] for name in layers}
    locked: set[str] = set()
    while len(locked) < len(layers):
        for name in layers:
            if name in locked:
                continue
            after = {**gone, name: order[name][: len(gone[name]) + 1]}
            if accuracy_without(model, after, x, labels) < least:
                locked.add(name)
            else:
                gone = after
            if len(gone[name]) == len(order[name]) - 1:
                locked.add(name)
    return gone


@pytest.mark.parametrize("tolerance", [0.05, 0.2, 0.5])
def test_the_rule(model: Small, tolerance: float):
    ((x, labels),) = validate = labelled(model)
    gone = by_hand(model, x, labels, 1 - tolerance)
    kept = {name: [i for i in range(many) if i not in gone[name]] for name, many in (("first", 5), ("second", 4))}
    small = compact(model, x[:2], calibration=x, validate=validate, tolerance=tolerance, method="l1", steps=("prune",))
    assert torch.equal(small.first.weight, model.first.weight[kept["first"]])
    assert torch.equal(small.second.weight, model.second.weight[kept["second"]][:, kept["first"]])
    columns = model.last.weight.view(3, 4, 16)[:, kept["second"]].flatten(1)
    assert torch.equal(small.last.weight, columns)
    assert small.compaction.steps[-1].score.value >= 1 - tolerance


def test_it_stops_at_the_target(model: Small):
    ((x, _),) = validate = labelled(model)
    small = compact(
        model, x[:2], calibration=x, validate=validate, tolerance=0.99, method="l1", target={"macs": 0.5},
        steps=("prune",),
    )  # fmt: skip
    step = small.compaction.steps[-1]
    before = small.compaction.curve[-3].macs
    assert step.after.macs <= 0.5 * step.before.macs < before
    assert widths(small)["last"][1] == 3


def test_it_stops_at_a_target_of_parameters(model: Small):
    ((x, _),) = validate = labelled(model)
    whole, lines = sum(tensor.numel() for tensor in model.parameters()), list[str]()
    small = compact(
        model, x[:2], calibration=x, validate=validate, tolerance=0.99, method="l1", target={"parameters": 0.6},
        steps=("prune",), progress=lines.append,
    )  # fmt: skip
    left = sum(tensor.numel() for tensor in small.parameters())
    assert left == small.compaction.steps[-1].after.parameters <= 0.6 * whole
    # Filters go in turn, those of the first layer first; as by hand, of (first, second) widths.
    assert (widths(small)["first"][1], widths(small)["second"][1]) == (3, 2)
    assert parameters_of(3, 2) == left
    assert parameters_of(3, 3) > 0.6 * whole


def parameters_of(first: int, second: int) -> int:
    return (27 + 1) * first + (9 * first + 1) * second + (16 * second + 1) * 3


def test_a_target_that_it_misses_is_an_error(model: Small):
    """With time over at once: a target takes as long as it needs."""
    ((x, labels),) = validate = labelled(model)
    lines: list[str] = []
    with pytest.raises(CompactionError) as raised:
        compact(
            model, x[:2], calibration=x, validate=validate, tolerance=0.05, method="l1", target={"macs": 0.01},
            steps=("prune",), budget_s=1e-9, progress=lines.append,
        )  # fmt: skip
    gone = by_hand(model, x, labels, 0.95)
    best = raised.value.best
    assert widths(best)["first"] == (3, 5 - len(gone["first"]))
    assert widths(best)["second"][1] == 4 - len(gone["second"])
    assert str(raised.value).endswith("or it has but one: a larger tolerance goes further")
    judged = [point.score for point in raised.value.curve[1:-1]]
    told = [line for line in lines if " of the MACs score " in line]
    assert [f"score {score:.2%} [" in line for score, line in zip(judged, told, strict=True)] == [True] * len(told)
    assert len(told) == 3


def test_killed_it_goes_on_where_it_was(model: Small, tmp_path: Path):
    """And judges no network twice but those since the last save."""
    ((x, labels),) = labelled(model)
    now_s, judged = 0.0, 0

    def judge(network: nn.Module) -> Score:
        nonlocal now_s, judged
        judged += 1
        if judged == 4:
            raise KeyboardInterrupt
        now_s += EVERY_S
        return Score(value=float((answer_of(network, (x,)).argmax(1) == labels).float().mean()), count=len(x))

    def outcome() -> Outcome:
        task = Task(
            original=model, arguments=(x[:2],), say=lambda line: None, budget=Budget(None), judge=judge,
            least_score=0.6, store=Store(tmp_path, clock=lambda: now_s),
        )  # fmt: skip
        return prune_by_l1(model, task)

    with pytest.raises(KeyboardInterrupt):
        outcome()
    found = outcome()
    expected = by_hand(model, x, labels, 0.6)
    assert judged == len(found.curve) + 1
    assert sum(map(len, expected.values())) > 3
    assert {name: outputs for name, (_, outputs) in widths(found.model).items() if name != "last"} == {
        "first": 5 - len(expected["first"]),
        "second": 4 - len(expected["second"]),
    }


def test_layers_that_hang_together_are_scored_by_all_their_filters():
    model = Residual().eval()
    groups, _ = groups_of(model, (image(),))
    stem = next(group for group in groups if group.name == "stem")
    sums = [layer.weight.detach().double().abs().flatten(1).sum(1) for layer in (model.stem, model.outer)]
    assert torch.allclose(torch.from_numpy(norms_of(model, stem)), sums[0] + sums[1])
