from __future__ import annotations

import pytest
from hypothesis import given, settings

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LinkProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.throughput.load import load_of
from tests.partition.graphs import Builder, clusters, graphs

GIVEN = DeviceProfile(name="a", seconds_per_flop=0, seconds_per_layer=1.0)
LINK = LinkProfile(latency_s=100.0, bytes_per_s=10.0, message_cpu_s=0.25)


def three() -> LayerGraph:
    b = Builder(1, 1, 4, 4)
    return b.graph(b.unary(b.unary(b.unary("x"))))


def whole(*cuts_and_workers: tuple[int, int, int]) -> Plan:
    segments = tuple(Segment(layers=Interval(a, b), axis="whole", on=worker) for a, b, worker in cuts_and_workers)
    return Plan(num_workers=2, segments=segments)


def test_a_pipeline_keeps_each_worker_busy_with_its_own_layers_and_messages() -> None:
    cluster = ClusterProfile(devices=(GIVEN, GIVEN.scaled(2)), link=LINK)
    load = load_of(CostModel(three(), cluster), whole((0, 2, 0), (2, 3, 1)))
    assert load.processors_s == {HOME: 0.5, 0: 2.0 + 0.5, 1: 2.0 + 0.5}  # a message in, a message out
    assert load.links_s == {(HOME, 0): 6.4, (0, 1): 6.4, (1, HOME): 6.4}  # 16 numbers of 4 bytes at 10 bytes a second
    assert load.bottleneck_s == 6.4  # latency does not count
    assert load.home_s == 0.5


def test_free_links_leave_the_slowest_worker() -> None:
    cluster = ClusterProfile(devices=(GIVEN, GIVEN.scaled(3)))
    load = load_of(CostModel(three(), cluster), whole((0, 2, 0), (2, 3, 1)))
    assert load.bottleneck_s == 3.0


def test_a_load_does_not_travel() -> None:
    load = load_of(CostModel(three(), ClusterProfile(devices=(GIVEN, GIVEN))), whole((0, 3, 1)))
    with pytest.raises(TypeError, match="does not travel"):
        load.__reduce__()


@settings(max_examples=40, deadline=None)
@given(graphs(opaque=False), clusters(max_workers=3))
def test_one_worker_alone_computes_everything_and_moves_inputs_and_outputs(
    graph: LayerGraph, cluster: ClusterProfile
) -> None:
    model = CostModel(graph, cluster)
    end = Interval(0, len(graph.layers))
    plan = Plan(
        num_workers=cluster.num_workers,
        segments=(Segment(layers=end, axis="whole", on=cluster.num_workers - 1),),
    )
    me, load = cluster.num_workers - 1, load_of(model, plan)
    down, up = cluster.link_between(HOME, me), cluster.link_between(me, HOME)
    outputs = set(graph.outputs)
    messages_s = down.message_cpu_s + len(outputs) * up.message_cpu_s
    assert load.processors_s[me] == pytest.approx(model.whole_compute(me, end) + messages_s)
    assert load.home_s == pytest.approx(messages_s)
    assert load.links_s[HOME, me] == pytest.approx(graph.inputs["x"].num_bytes / down.bytes_per_s)
    assert load.links_s[me, HOME] == pytest.approx(sum(graph.spec(t).num_bytes for t in outputs) / up.bytes_per_s)
    assert all(seconds == 0 for who, seconds in load.processors_s.items() if who not in (HOME, me))
