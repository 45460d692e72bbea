"""Fewer workers where fewer are faster."""

from __future__ import annotations

from itertools import combinations

from hypothesis import given, seed, settings
from hypothesis import strategies as st

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LinkProfile
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.simulate import simulate
from edgedi.partition.planners.oodp import oodp
from edgedi.partition.search.fewer import of_some
from edgedi.partition.search.search import search
from tests.partition.graphs import Builder, clusters, graphs, vgg16


def subsets(cluster: ClusterProfile) -> list[tuple[int, ...]]:
    return [chosen for n in range(1, cluster.num_workers) for chosen in combinations(range(cluster.num_workers), n)]


@seed(20261121)
@settings(max_examples=40, deadline=None)
@given(graphs(max_steps=3, max_size=9), clusters(max_workers=3))
def test_no_subset_of_the_workers_is_predicted_to_be_faster(graph: LayerGraph, cluster: ClusterProfile) -> None:
    found = oodp(graph, cluster).predicted_s
    for chosen in subsets(cluster):
        alone = oodp(graph, cluster.subset(chosen)).predicted_s
        assert found <= alone * (1 + 1e-9), chosen


def test_one_convolution_on_four_equal_devices() -> None:
    """Where the search itself did better on three of them, for a message that nobody sends."""
    b = Builder(1, 4, 16, 16)
    graph = b.graph(b.conv("x", 8, 3, name="a"))
    for latency_s in (1e-5, 1e-4, 1e-3):
        for flops_per_s in (1e8, 1e9, 1e10):
            cluster = ClusterProfile.uniform(4, latency_s=latency_s, flops_per_s=flops_per_s)
            found = oodp(graph, cluster).predicted_s
            assert found <= min(oodp(graph, cluster.subset(c)).predicted_s for c in subsets(cluster)) * (1 + 1e-9)


def test_a_worker_behind_a_slow_link_is_left_out() -> None:
    near, far = LinkProfile(latency_s=1e-4, bytes_per_s=1e8), LinkProfile(latency_s=5.0, bytes_per_s=1e4)
    ends = (HOME, 0, 1)
    links = {pair: far for other in ends for pair in ((other, 2), (2, other))}
    devices = tuple(DeviceProfile(name=f"d{k}", seconds_per_flop=1e-9, seconds_per_layer=1e-5) for k in range(3))
    cluster = ClusterProfile(devices=devices, link=near, links=links)
    found = oodp(vgg16(64), cluster)
    assert {worker for segment in found.segments for worker in segment.workers} == {0, 1}


def test_a_plan_without_a_worker_is_one_of_the_whole_cluster() -> None:
    graph, cluster = vgg16(32), ClusterProfile.uniform(4)
    model = CostModel(graph, cluster)
    plan = of_some(model, (0, 2, 3), lambda fewer: oodp(graph, fewer.cluster))
    assert plan.num_workers == 4
    assert all(not len(segment.shares[1]) for segment in plan.segments if segment.shares)
    assert all(segment.on != 1 for segment in plan.segments)
    simulate(lower(plan, graph))


def test_prices_on_another_cluster_are_those_of_a_model_made_for_it() -> None:
    """Walks are shared, prices are not: a model that has searched on one cluster searches alike on another."""
    graph = vgg16(32)
    used = CostModel(graph, ClusterProfile.uniform(4, latency_s=1e-3))
    search(used)
    for cluster in (ClusterProfile.uniform(3).with_speeds((1, 2, 5)), ClusterProfile.uniform(2, flops_per_s=1e8)):
        assert search(used.on(cluster)) == search(CostModel(graph, cluster))
        assert used.on(cluster).cluster is cluster
    assert search(used) == search(CostModel(graph, used.cluster))


def test_links_keep_their_ends() -> None:
    fast, slow = LinkProfile(latency_s=1.0), LinkProfile(latency_s=2.0)
    cluster = ClusterProfile(
        devices=ClusterProfile.uniform(3).devices, links={(0, 2): fast, (1, 2): slow, (HOME, 2): slow, (2, 0): fast}
    )
    part = cluster.subset((0, 2))
    assert dict(part.links) == {(0, 1): fast, (HOME, 1): slow, (1, 0): fast}
    assert part.num_workers == 2


@given(st.data())
@settings(max_examples=10, deadline=None)
def test_device_order_is_kept(data: st.DataObject) -> None:
    cluster = data.draw(clusters(max_workers=3))
    for chosen in subsets(cluster):
        assert cluster.subset(chosen).devices == tuple(cluster.devices[k] for k in chosen)
