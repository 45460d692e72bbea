"""Training is computed in another layout and, of classes, in bfloat16: what comes out does not show it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from edgedi.transforms.compact import compact
from edgedi.transforms.data import Batch, Data
from edgedi.transforms.exact.simplify import simplify
from edgedi.transforms.recover import distil as of_distil
from edgedi.transforms.recover import faster as of_faster
from edgedi.transforms.recover.distil import Recipe, distil
from edgedi.transforms.recover.faster import (
    TRIALS,
    as_usual,
    batch_channels_last,
    bfloat16_pays,
    channels_last,
    has_bfloat16,
    in_float32,
    may_be_halves,
)
from tests.transforms.recover.toy import accuracy, blobs, cut, network, same_weights, train_data, trained


def strides(model: nn.Module) -> list[tuple[int, ...]]:
    return [parameter.stride() for parameter in model.parameters()]


def test_the_layout_changes_and_comes_back_with_the_same_values():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2), nn.Conv3d(2, 4, 3), nn.Conv1d(2, 4, 3))
    before = copy.deepcopy(model)
    assert channels_last(model)[0].weight.stride() == (27, 1, 9, 3)
    assert same_weights(model, before)
    assert strides(as_usual(model)) == strides(before)


def test_maps_of_a_batch_are_laid_out_and_nothing_else():
    maps, vector, other = torch.randn(2, 3, 4, 4), torch.randn(2, 3), torch.randn(2, 3, 4, 4, 4)
    found = batch_channels_last(Batch((maps, {"more": (vector, other, 7)}), "labels"))
    assert found.arguments[0].stride() == (48, 1, 12, 3)
    assert torch.equal(found.arguments[0], maps)
    assert found.arguments[1]["more"] == (vector, other, 7)
    assert found.labels == "labels"


def test_only_bfloat16_is_widened():
    doubles, halves = torch.ones(2, dtype=torch.float64), torch.ones(2, dtype=torch.bfloat16)
    found = in_float32({"a": doubles, "b": [halves, 3]})
    assert found["a"] is doubles
    assert found["b"][0].dtype == torch.float32
    assert found["b"][1] == 3


def test_of_devices_that_are_not_known_bfloat16_is_not_expected():
    assert not has_bfloat16(torch.device("meta"))


@pytest.mark.parametrize(("half_s", "pays"), [(0.5, True), (0.8, True), (0.81, False), (1.6, False)])
def test_bfloat16_is_for_processors_that_take_less_time_by_it(half_s: float, pays: bool):
    """Every second reading of the clock ends a trial; trials are by turns, float32 first. A slow one does not count."""
    taken = [9.0, 9.0, *[1.0, half_s] * (TRIALS - 1), 5.0, 5.0]
    readings = [number for seconds in taken for number in (0.0, seconds)]
    assert bfloat16_pays(iter(readings).__next__) == pays


def test_where_it_does_not_pay_training_keeps_to_float32(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(of_faster, "has_bfloat16", lambda device: True)
    for pays in (True, False):
        monkeypatch.setattr(of_faster, "_pays_here", lambda num_threads, pays=pays: pays)
        assert may_be_halves([torch.zeros(2, 10)]) == pays


@pytest.fixture
def seen_precisions(monkeypatch: pytest.MonkeyPatch) -> set[torch.dtype]:
    """A processor with bfloat16, and what the answers of a training are computed in."""
    found: set[torch.dtype] = set()

    def widened(answer: torch.Tensor) -> torch.Tensor:
        found.add(answer.dtype)
        return in_float32(answer)

    monkeypatch.setattr(of_faster, "has_bfloat16", lambda device: True)
    monkeypatch.setattr(of_faster, "_pays_here", lambda num_threads: True)
    monkeypatch.setattr(of_distil, "in_float32", widened)
    return found


def test_classes_are_learnt_as_well_in_bfloat16_and_weights_stay_float32(seen_precisions: set[torch.dtype]):
    original = trained()
    damaged = cut(simplify(original, (blobs(8)[0],))[0], 2)
    small = distil(damaged, original, train_data(), num_steps=60).model
    assert seen_precisions == {torch.bfloat16}
    assert accuracy(small) >= accuracy(original) - 0.02
    assert {parameter.dtype for parameter in small.parameters()} == {torch.float32}
    assert strides(small) == strides(damaged)


def test_a_recipe_may_keep_to_float32(seen_precisions: set[torch.dtype]):
    original = network()
    distil(original, original, train_data(), num_steps=2, recipe=Recipe(halves=False))
    assert not seen_precisions


def test_answers_that_are_no_classes_are_learnt_in_float32(seen_precisions: set[torch.dtype]):
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 1)).eval()
    distil(copy.deepcopy(body), body, Data(torch.randn(64, 3, 8, 8), "train", labelled=False), num_steps=2)
    assert not seen_precisions


class Viewed(nn.Module):
    """Its view puts channels and positions together, which no map in the layout of training allows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6 * 16, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.second(torch.relu(self.first(x)))).view(len(x), 6 * 16))


def test_a_network_with_a_view_keeps_the_usual_layout_when_pruned_and_trained():
    torch.manual_seed(0)
    model, x = Viewed().eval(), torch.randn(16, 3, 8, 8)
    small = compact(model, x[:1], calibration=x, train=[(x, None)], target={"macs": 0.7}, progress=False)
    assert small.compaction.steps[-1].training_steps > 0
    assert small.first.out_channels < 8
    assert small(x).shape == (16, 4)


def test_a_loss_may_view_the_answer():
    body = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 2, 1)).eval()
    seen: list[tuple[int, ...]] = []

    def loss(answer: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(answer.view(len(answer), -1).shape))
        return (answer.view(len(answer), -1).mean(1) - labels).square().mean()

    data = Data([(torch.randn(4, 3, 8, 8), torch.zeros(4))] * 2, "train", labelled=True)
    distil(copy.deepcopy(body), body, data, num_steps=2, loss=loss)
    assert seen == [(4, 128)] * 2
