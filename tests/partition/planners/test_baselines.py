from __future__ import annotations

import pytest
from hypothesis import given, settings

from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.simulate import simulate
from edgedi.partition.planners.baselines import TOLERANCE, equal, ocbp, oodp_greedy, proportional, single
from edgedi.partition.planners.by_name import plan, planners
from tests.partition.graphs import Builder, clusters, graphs, residual, resnet50, vgg16, with_opaque

FREE = ClusterProfile(devices=ClusterProfile.uniform(2, seconds_per_layer=0).devices)


def split_shares(found: Plan) -> list[tuple[Interval, ...]]:
    return [segment.shares for segment in found.segments if segment.on is None]


@settings(max_examples=150, deadline=None)
@given(graphs(), clusters())
def test_every_planner_makes_plans_that_run(graph: LayerGraph, cluster: ClusterProfile) -> None:
    for name in planners():
        found = plan(graph, cluster, name)
        simulate(lower(found, graph))
        assert found.graph_digest == graph.digest
        assert found.planner == name
        assert found.num_workers == cluster.num_workers


def test_an_unknown_planner_is_answered_with_the_list() -> None:
    with pytest.raises(
        ValueError, match="'best'; accepted are oodp, oodp-greedy, ocbp, proportional, equal, deepthings, "
    ):
        plan(residual(), FREE, "best")


def test_single_takes_the_fastest() -> None:
    found = single(residual(), ClusterProfile.uniform(3).with_speeds((1, 3, 2)))
    assert [(segment.layers, segment.on) for segment in found.segments] == [(Interval(0, 17), 1)]


def test_opaque_layers_stay_with_the_coordinator() -> None:
    for name in planners():
        found = plan(with_opaque(), ClusterProfile.uniform(2, flops_per_s=1e3), name)
        assert any(segment.on == HOME and segment.layers.start <= 1 < segment.layers.stop for segment in found.segments)


def test_equal_shares_are_equal() -> None:
    cluster = FREE.with_speeds((1, 3))
    assert {abs(len(a) - len(b)) for a, b in split_shares(equal(vgg16(64), cluster))} == {0}


def test_proportional_shares_follow_speed_and_ignore_links() -> None:
    for cluster in (FREE, ClusterProfile.uniform(2, latency_s=1.0, seconds_per_layer=0)):
        shares = split_shares(proportional(vgg16(64), cluster.with_speeds((1, 3))))
        assert shares[0] == (Interval(0, 16), Interval(16, 64))


def test_layer_wise_planners_exchange_before_every_halo() -> None:
    found = equal(vgg16(64), FREE)
    assert sum(segment.on is None for segment in found.segments) == 13
    assert [segment.on for segment in found.segments[13:]] == [0]  # the linear layers


def test_fused_blocks_end_with_a_pool() -> None:
    found = oodp_greedy(vgg16(64), FREE)
    ends = [segment.layers.stop for segment in found.segments]
    assert ends == [3, 6, 10, 14, 18, 22]


def test_fused_blocks_end_with_a_residual_join() -> None:
    graph = resnet50(64, blocks=(2, 1, 0, 0))
    joins = {k + 1 for k, layer in enumerate(graph.layers) if layer.op == "conv" and len(layer.inputs) == 2}
    ends = {segment.layers.stop for segment in ocbp(graph, FREE).segments}
    assert joins <= ends
    assert len(ends) <= len(joins) + 4


def gap(found: Plan, graph: LayerGraph, cluster: ClusterProfile) -> float:
    speeds = [1 / device.seconds_per_flop for device in cluster.devices]
    seconds = [len(share) / speed for share, speed in zip(split_shares(found)[0], speeds, strict=True)]
    return (max(seconds) - min(seconds)) / max(seconds)


def test_moving_rows_evens_out_what_rounding_and_halos_did() -> None:
    b = Builder(1, 4, 100, 8)
    graph = b.graph(b.conv("x", 4, 1))
    cluster = FREE.with_speeds((1, 2.5))
    assert gap(ocbp(graph, cluster), graph, cluster) <= TOLERANCE
    assert gap(oodp_greedy(graph, cluster), graph, cluster) <= gap(proportional(graph, cluster), graph, cluster)


def test_the_greedy_rule_stops_at_its_first_local_best() -> None:
    """Three workers, the middle one with two halos: the published rule is never better than the exact one."""
    graph = vgg16(32)
    cluster = ClusterProfile.uniform(3, flops_per_s=1e9).with_speeds((1, 2, 3))
    assert plan(graph, cluster).predicted_s <= oodp_greedy(graph, cluster).predicted_s
