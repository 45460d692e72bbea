"""Plans that are predicted alike are tried out, and the fastest stays."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import nn

from edgedi import distribute
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.planners.by_name import plan
from edgedi.partition.planners.oodp import AT_WORST, MOST_CONTENDERS, NEARLY, contenders, oodp
from edgedi.partition.throughput.throughput import ships_soon
from edgedi.runtime.coordinator import deployment as deployment_module
from edgedi.runtime.coordinator.trial import ENOUGH_S, ROUNDS, answer_seconds, may_be_tried, quickest
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.partition.graphs import resnet50, vgg16
from tests.runtime.networks import image, small

FLOATS, NUMBERS = TensorSpec((1, 3, 4, 4)), TensorSpec((1, 4), "int64")


def runs(*seconds: list[float]) -> tuple[list[Callable[[], float]], list[int]]:
    """Functions that tell these seconds in turn, and who was called."""
    called: list[int] = []

    def one(index: int) -> Callable[[], float]:
        told = iter(seconds[index])

        def run() -> float:
            called.append(index)
            return next(told)

        return run

    return [one(index) for index in range(len(seconds))], called


def still() -> float:
    return 0.0


def test_the_one_with_the_least_median_wins_whatever_the_first_round_took() -> None:
    made, called = runs([0.1, *[3.0] * ROUNDS], [9.0, *[2.0] * (ROUNDS - 1), 50.0], [1.0, *[4.0] * ROUNDS])
    assert quickest(made, still) == 1
    assert called == [0, 1, 2] * (ROUNDS + 1)


def test_only_what_is_answered_here_has_taken_seconds() -> None:
    def fails() -> None:
        raise RuntimeError("no memory")

    readings = iter([1.0, 3.5, 7.0, 9.0])
    assert answer_seconds(lambda: {"y": 1}, lambda: next(readings)) == 2.5
    assert answer_seconds(lambda: None, lambda: next(readings)) is None
    assert answer_seconds(fails, lambda: 0.0) is None


def test_slow_ones_get_few_rounds() -> None:
    readings = iter([0.0, *(k * ENOUGH_S for k in range(1, 9))])
    made, called = runs([1.0] * 9, [2.0] * 9)
    assert quickest(made, lambda: next(readings) * 1.01) == 0
    assert called == [0, 1] * 2


def graph(spec: TensorSpec, op: str = "unary") -> LayerGraph:
    layer = Layer(name="y", op=op, inputs=("x",), spec=spec, attributes={"function": "relu", "arguments": ()})
    return LayerGraph(inputs={"x": spec}, layers=(layer,), outputs=("y",))


def test_noise_is_no_input_for_numbers_or_for_the_users_own_code() -> None:
    assert may_be_tried(graph(FLOATS))
    assert not may_be_tried(graph(NUMBERS))
    assert not may_be_tried(graph(FLOATS, "opaque"))


@pytest.mark.parametrize("num_workers", [2, 3])
@pytest.mark.parametrize("make", [vgg16, resnet50])
def test_contenders_are_few_near_and_of_different_kinds(make: Callable[[int], LayerGraph], num_workers: int) -> None:
    network, cluster = make(64), ClusterProfile.uniform(num_workers)
    found = contenders(network, cluster)
    assert 1 <= len(found) <= MOST_CONTENDERS + 1
    assert found[0] == oodp(network, cluster)
    assert found[0].predicted_s == min(plan.predicted_s for plan in found)
    near = [plan for plan in found if plan.predicted_s <= NEARLY * found[0].predicted_s]
    alone = [plan for plan in found if {s.on for s in plan.segments} in ({0}, {1}, {2})]
    assert set(map(str, found)) == set(map(str, [*near, *alone]))
    assert len({plan.digest for plan in found}) == len(found)
    assert {plan.planner for plan in found} == {"oodp"}


def test_one_device_alone_is_tried_unless_it_is_predicted_to_be_much_slower() -> None:
    def kinds(latency_s: float) -> tuple[float, bool]:
        found = contenders(vgg16(64), ClusterProfile.uniform(2, latency_s=latency_s))
        alone = [plan for plan in found if len(plan.segments) == 1 and plan.segments[0].on is not None]
        return found[0].predicted_s, bool(alone)

    one_s = plan(vgg16(64), ClusterProfile.uniform(1)).predicted_s
    for latency_s in (1e-6, 1e-3, 3e-3, 1e-2, 1e-1):
        best_s, tried = kinds(latency_s)
        if one_s < 0.95 * AT_WORST * best_s:
            assert tried, latency_s
        if one_s > 1.05 * AT_WORST * best_s:
            assert not tried, latency_s


def test_a_plan_whose_weights_would_take_long_is_not_tried() -> None:
    network, plans = vgg16(64), {}
    for bytes_per_s in (1e6, 1e9):
        cluster = ClusterProfile.uniform(2, bytes_per_s=bytes_per_s)
        plans[bytes_per_s] = ships_soon(network, cluster, plan(network, cluster, "single"))
    assert plans == {1e6: False, 1e9: True}


@pytest.fixture(scope="module")
def workers() -> Iterator[LocalWorkers]:
    started = LocalWorkers(2)
    yield started
    started.stop()


@pytest.mark.parametrize("winner", [0, 1])
def test_a_session_keeps_the_plan_that_was_fastest(
    workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch, winner: int
) -> None:
    """Two plans are installed, each answers once, the winner stays and the other's memory is free again."""
    tried: list[int] = []

    def choose(made: list[Callable[[], float]], *_: object) -> int:
        for index, run in enumerate(made):
            assert run() > 0
            tried.append(index)
        return winner

    def two_plans(network: LayerGraph, cluster: ClusterProfile) -> tuple[object, ...]:
        planners = ("equal", "proportional", "single")  # on one machine nothing but the first and one worker alone
        return tuple(deployment_module.place(network, cluster, planner=planner) for planner in planners)

    monkeypatch.setattr(deployment_module, "quickest", choose)
    monkeypatch.setattr(deployment_module, "place_to_try", two_plans)
    model, x = small(), image(height=64, width=64)
    with distribute(model, x, workers.addresses) as session:
        with torch.inference_mode():
            own = model(x)
        assert relative_difference(session(x), own) <= 2e-5
        assert session.plan.planner == ("equal", "single")[winner]
        assert session.statistics().local_answers == 0
        assert session.statistics().requests == 1
        for _ in range(3):
            assert relative_difference(session(x), own) <= 2e-5
    assert tried == [0, 1]


def test_with_a_profile_the_prediction_is_believed(workers: LocalWorkers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_module, "quickest", lambda *_: pytest.fail("nothing is to be tried out"))
    model, x = nn.Sequential(nn.Conv2d(3, 4, 3)).eval(), image()
    with distribute(model, x, workers.addresses, profile=ClusterProfile.uniform(2)) as session:
        assert relative_difference(session(x), model(x)) <= 2e-5
