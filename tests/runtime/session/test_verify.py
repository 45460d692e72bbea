"""Comparing answers, and naming the layer where two of them part."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from edgedi.partition.capture.capture import Capture, capture_model
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LinkProfile
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.program import ProgramSet
from edgedi.partition.planners.by_name import plan
from edgedi.runtime.execution.reference import InProcess
from edgedi.runtime.session import verify as module
from edgedi.runtime.session.verify import TOLERANCES, compare, first_difference, relative_difference
from tests.runtime.networks import image, small

X = torch.tensor([1.0, -2.0, 4.0])
INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("tensor", "other", "difference"),
    [
        (X, X, 0.0),
        (X + torch.tensor([0.0, 0.0, 0.5]), X, 0.125),
        (X, X + torch.tensor([1.0, 0.0, 0.0]), 0.25),
        (torch.zeros(3), torch.zeros(3), 0.0),
        (torch.full((2,), 0.5), torch.zeros(2), 0.5),
        (torch.tensor([NAN, 1.0]), torch.tensor([NAN, 1.0]), 0.0),
        (torch.tensor([INF, 1.0]), torch.tensor([INF, 1.0]), 0.0),
        (torch.tensor([INF, 1.0]), torch.tensor([-INF, 1.0]), INF),
        (torch.tensor([NAN, 1.0]), torch.tensor([2.0, 1.0]), INF),
        (torch.tensor([1.0, 1.0]), torch.tensor([NAN, 1.0]), INF),
        (torch.tensor([INF, 1.5]), torch.tensor([INF, 2.0]), 0.25),
        (torch.empty(0), torch.empty(0), 0.0),
        (torch.tensor([True]), torch.tensor([False]), 1.0),
        (torch.tensor([3, 4]), torch.tensor([3, 5]), 0.2),
    ],
)
def test_relative_difference(tensor: torch.Tensor, other: torch.Tensor, difference: float) -> None:
    assert relative_difference(tensor, other) == difference


@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES.items())
def test_each_type_has_its_tolerance(dtype: torch.dtype, tolerance: float) -> None:
    own = torch.tensor([1.0], dtype=torch.float64)
    for factor, equal in ((0.5, True), (20.0, False)):
        found = module._compare_tensors((own + factor * tolerance).to(dtype), own.to(dtype))
        assert (found.equal, found.tolerance) == (equal, tolerance)


def test_whole_numbers_must_be_equal() -> None:
    assert compare(torch.tensor([5]), torch.tensor([5])).equal
    assert not compare(torch.tensor([1_000_000]), torch.tensor([1_000_001])).equal


@pytest.mark.parametrize(
    ("answer", "own"),
    [
        (X, [X]), ([X], (X,)), ([X, X], [X]), ({"a": X}, {"b": X}), (X, X.double()), (X, X[:2]), (X, X.reshape(1, 3)),
        ({"a": X, "n": None}, {"a": X, "n": X}),
    ],
)  # fmt: skip
def test_another_structure_shape_or_type_is_infinitely_different(answer: Any, own: Any) -> None:
    found = compare(answer, own)
    assert not found.equal
    assert found.difference == INF


def test_the_worst_leaf_counts_and_one_wrong_leaf_spoils_all() -> None:
    wrong, right = X + 1.0, X * (1 + 1e-7)
    found = compare({"a": [right, wrong], "n": None}, {"a": [X, X], "n": None})
    assert not found.equal
    assert found.difference == 0.25
    nested = compare({"a": [right, X], "n": None}, {"a": [X, X], "n": None})
    assert nested.equal
    assert 0 < nested.difference < 1e-6
    exact_type = compare([X + 1e-5, torch.tensor([1])], [X, torch.tensor([2])])
    assert not exact_type.equal


@pytest.fixture(scope="module")
def parts() -> tuple[Capture, ProgramSet]:
    capture = capture_model(small(), (image(),))
    device = DeviceProfile(name="d", fingerprint="d", layers={}, seconds_per_flop=1e-9, seconds_per_layer=1e-6)
    cluster = ClusterProfile(
        devices=(device, device), link=LinkProfile(latency_s=1e-6, bytes_per_s=1e10, message_cpu_s=1e-7)
    )
    return capture, lower(plan(capture.graph, cluster, planner="equal"), capture.graph)


def test_equal_programs_point_at_workers_and_links(parts: tuple[Capture, ProgramSet]) -> None:
    capture, programs = parts
    assert first_difference(capture, programs, (image(),)) == (
        "unknown: the same programs give the right answer in this process, so a worker, a link, or what the worker "
        "lets compute (session.statistics() says it) is at fault"
    )


@pytest.mark.parametrize("position", [0, 2, -1])
def test_the_first_layer_that_differs_is_named(
    parts: tuple[Capture, ProgramSet], position: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One layer's weights are falsified in the split run only."""
    capture, programs = parts
    heavy = [layer for layer in capture.graph.layers if "weight" in layer.weights]
    wrong = heavy[position]

    class Falsified(InProcess):
        def __init__(self, given: Capture, programs: ProgramSet, *, fast: bool = True) -> None:
            if fast:
                weights = dict(given.weights)
                weights[wrong.weights["weight"]] = weights[wrong.weights["weight"]] * 1.01
                given = _with_weights(given, weights)
            super().__init__(given, programs, fast=fast)

    monkeypatch.setattr(module, "InProcess", Falsified)
    assert first_difference(capture, programs, (image(),)) == wrong.name


def _with_weights(capture: Capture, weights: dict[str, torch.Tensor]) -> Capture:
    import copy

    changed = copy.copy(capture)
    object.__setattr__(changed, "weights", weights)
    return changed
