from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from edgedi.partition.cost.cost import CostModel, Layout
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LayerProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.reach import may_split
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.plan.simulate import simulate
from edgedi.partition.planners.by_name import plan, planners
from edgedi.partition.planners.oodp import oodp
from edgedi.partition.search import search as module
from edgedi.partition.search.estimate import estimated, segment_cost
from edgedi.partition.search.minimax import PRECISION
from edgedi.partition.search.search import grain, search
from tests.partition.graphs import Builder, chain, clusters, graphs, residual, vgg16


def splits(model: CostModel, layers: Interval, axis: str) -> Iterator[Segment]:
    """Every cut vector with two active workers at least."""
    length = model.reach(layers.stop, axis, lowest=layers.start).length
    borders = [*range(0, length, grain(axis, length)), length]
    for inner in combinations_with_replacement(borders, len(model.workers) - 1):
        shares = tuple(Interval(a, b) for a, b in pairwise((0, *inner, length)))
        if sum(len(share) > 0 for share in shares) > 1:
            yield Segment(layers=layers, axis=axis, length=length, shares=shares)


def choices(model: CostModel, layers: Interval, axes: tuple[str, ...]) -> Iterator[Segment]:
    inside = model.graph.layers[layers.start : layers.stop]
    opaque = any(layer.op == "opaque" for layer in inside)
    for participant in (HOME,) if opaque else model.workers:
        yield Segment(layers=layers, axis="whole", on=participant)
    for axis in axes:
        if may_split(model.graph, layers, axis):
            yield from splits(model, layers, axis)


def brute_force(model: CostModel, axes: tuple[str, ...]) -> float:
    """All boundaries, axes, workers and cut vectors, priced by the same model one by one."""
    end = len(model.graph.layers)

    @cache
    def cheapest(start: int, stop: int, before: Layout) -> dict[Layout, float]:
        best: dict[Layout, float] = {}
        for segment in choices(model, Interval(start, stop), axes):
            after: Layout = segment.axis if segment.on is None else segment.on
            seconds = segment_cost(model, segment, before).total_s
            best[after] = min(best.get(after, seconds), seconds)
        return best

    def rest(start: int, before: Layout) -> float:
        if start == end:
            return model.outputs_home(before)
        return min(
            seconds + rest(stop, after)
            for stop in range(start + 1, end + 1)
            for after, seconds in cheapest(start, stop, before).items()
        )

    return rest(0, HOME)


@settings(max_examples=60, deadline=None)
@given(graphs(max_steps=2, max_size=8), clusters(max_workers=3), st.sampled_from((1, 2)))
def test_no_plan_is_estimated_faster(graph: LayerGraph, cluster: ClusterProfile, num_axes: int) -> None:
    assume(len(graph.layers) <= 6)
    model = CostModel(graph, cluster)
    model.axes = tuple(axis for axis in model.axes if axis in ("rows", "channels")[:num_axes])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PATIENCE", dict.fromkeys(module.PATIENCE, None))
        segments, seconds = search(model)
    best = brute_force(model, model.axes)
    assert seconds == pytest.approx(best, rel=1e-7)
    found = Plan(num_workers=cluster.num_workers, segments=tuple(segments))
    assert estimated(model, found).predicted_s == pytest.approx(best, rel=10 * PRECISION + 1e-7)


@settings(max_examples=60, deadline=None)
@given(graphs(), clusters())
def test_no_planner_is_predicted_faster(graph: LayerGraph, cluster: ClusterProfile) -> None:
    best = oodp(graph, cluster)
    simulate(lower(best, graph))
    assert all(best.predicted_s <= plan(graph, cluster, name).predicted_s for name in planners())


def test_slow_links_leave_one_device_alone() -> None:
    cluster = ClusterProfile.uniform(3, latency_s=1.0).with_speeds((1, 3, 2))
    found = oodp(chain(), cluster)
    assert [segment.on for segment in found.segments] == [1]


def test_free_links_use_everybody() -> None:
    cluster = ClusterProfile(devices=ClusterProfile.uniform(3, seconds_per_layer=0).devices)
    found = oodp(chain(rows=48, channels=16), cluster)
    assert all(len(segment.workers) == 3 for segment in found.segments if segment.axis == "rows")
    assert found.segments[0].axis == "rows"


def test_a_device_that_does_not_pay_is_left_out() -> None:
    cluster = ClusterProfile.uniform(3, seconds_per_layer=0).with_speeds((1, 1e-6, 1))
    assert all(1 not in segment.workers for segment in oodp(vgg16(64), cluster).segments)


def test_linear_layers_are_split_along_channels() -> None:
    b = Builder(1, 512)
    graph = b.graph(b.linear(b.linear("x", 512), 512))
    found = oodp(graph, ClusterProfile.uniform(2, flops_per_s=1e6))
    assert {segment.axis for segment in found.segments} == {"channels"}


def test_batches_are_split_where_that_is_best() -> None:
    b = Builder(8, 4, 9, 9)
    graph = b.graph(b.conv(b.conv("x", 16, 5), 16, 5))
    found = oodp(graph, ClusterProfile.uniform(2, flops_per_s=1e8))
    assert [segment.axis for segment in found.segments] == ["batch"]


def test_columns_are_for_inputs_wider_than_high() -> None:
    b = Builder(1, 4, 4, 256)
    wide = b.graph(b.conv(b.conv("x", 16, 3), 16, 3))
    assert {s.axis for s in oodp(wide, ClusterProfile.uniform(2, flops_per_s=1e8)).segments} == {"columns"}


@pytest.mark.parametrize("axis", ["rows", "channels"])
def test_measured_profiles_decide(axis: str) -> None:
    """A device that was measured to gain from one axis only is given parts along that one."""
    b = Builder(1, 16, 16, 16)
    graph = b.graph(b.conv("x", 16, 1))
    curves = {other: ((8, 0.5 if other == axis else 1.0), (16, 1.0)) for other in ("rows", "channels")}
    layers = {graph.layers[0].name: LayerProfile(curves=curves)}
    found = oodp(graph, ClusterProfile(devices=tuple(DeviceProfile(name=str(k), layers=layers) for k in range(2))))
    assert [segment.axis for segment in found.segments] == [axis]
    assert found.predicted_s == pytest.approx(0.5)


def test_depth_is_limited() -> None:
    found, _ = search(CostModel(vgg16(32), ClusterProfile.uniform(2, latency_s=1e-3)), max_depth=2)
    assert max(len(segment.layers) for segment in found if segment.on is None) <= 2


def test_squeeze_excite_is_split_around_its_reduction() -> None:
    cluster = ClusterProfile.uniform(2, flops_per_s=1e8, latency_s=1e-6, message_cpu_s=0)
    found = oodp(residual(rows=64, channels=16), cluster)
    assert sum(segment.on is None for segment in found.segments) >= 2
    simulate(lower(found, residual(rows=64, channels=16)))
