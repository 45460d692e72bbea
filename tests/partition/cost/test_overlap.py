"""Where border rows are made first, and what that is priced at."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
from hypothesis import given, settings

from edgedi.partition.cost import settle
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.overlap import gain_s, lower_for, lower_hiding
from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LayerProfile, LinkProfile
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.borders import borders
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import Plan, Segment
from edgedi.partition.plan.program import Run
from edgedi.partition.plan.simulate import simulate
from edgedi.partition.planners.by_name import plan as make_plan
from tests.partition.graphs import Builder, clusters, graphs

A_ROW_S, A_CALL_S, OUT_S = 1.0, 0.5, 0.25
"""Of the first layer: so much for a row and for a call; of the second, for a row."""


def network() -> LayerGraph:
    b = Builder(1, 1, 8, 4)
    return b.graph(b.conv(b.conv("x", 1, name="a"), 1, name="b"))


def halves() -> Plan:
    shares = (Interval(0, 4), Interval(4, 8))
    segments = (Segment(layers=Interval(k, k + 1), axis="rows", length=8, shares=shares) for k in range(2))
    return Plan(num_workers=2, segments=tuple(segments))


def device(call_s: float = A_CALL_S, slow: float = 1.0, memory_bytes: int | None = None) -> DeviceProfile:
    def curve(call_s: float, row_s: float) -> LayerProfile:
        return LayerProfile(curves={"rows": tuple((rows, slow * (call_s + rows * row_s)) for rows in (1, 8))})

    layers = {"a": curve(call_s, A_ROW_S), "b": curve(0.0, OUT_S)}
    return DeviceProfile(name="device", layers=layers, memory_bytes=memory_bytes)


def model(link: LinkProfile, *devices: DeviceProfile) -> CostModel:
    cluster = ClusterProfile(devices=devices or (device(), device()), link=link)
    return CostModel(network(), cluster)


def first_runs(priced: CostModel, worker: int = 0) -> list[str]:
    program = lower_hiding(priced, halves()).programs[worker]
    return [str(i.piece) for i in program.instructions if isinstance(i, Run) and i.piece.tensor == "a"]


IN_PARTS, WHOLE = ["a@2[3:4]", "a@2[0:3]"], ["a@2[0:4]"]


@pytest.mark.parametrize(
    ("way_s", "call_s", "made", "exchange_s"),
    [
        (2.0, 0.5, IN_PARTS, 0.0),  # 3 s for the rest: all of it is hidden
        (5.0, 0.5, IN_PARTS, 1.5),  # all but 3.5 s
        (0.4, 0.5, WHOLE, 0.4),  # a call costs more than there is to hide
        (0.0, 0.0, WHOLE, 0.0),
        (5.0, 9.0, WHOLE, 5.0),
    ],
)
def test_a_way_is_hidden_by_the_rest(way_s: float, call_s: float, made: list[str], exchange_s: float) -> None:
    """A row is 16 bytes. The second segment waits for the halo, then 4 rows go home, 4 times as long each."""
    priced = model(LinkProfile(bytes_per_s=16 / way_s if way_s else float("inf")), device(call_s), device(call_s))
    assert first_runs(priced) == made
    first, second = settled(priced, halves()).segments
    assert first.cost.compute_s == pytest.approx(4 * A_ROW_S + call_s * len(made))
    assert second.cost.exchange_s == pytest.approx(exchange_s + 8 * way_s)


def test_the_processors_share_of_a_message_is_not_hidden() -> None:
    priced = model(LinkProfile(latency_s=1.0, message_cpu_s=2.0))
    assert first_runs(priced) == IN_PARTS
    assert settled(priced, halves()).segments[1].cost.exchange_s == pytest.approx(2 * 2.0 + (1.0 + 2 * 2 * 2.0))


def test_a_tensor_is_made_so_by_all_or_by_none() -> None:
    """The second device's calls cost more than there is to gain: the first waits for it anyway."""
    link = LinkProfile(latency_s=1.0)
    priced = model(link, device(), device(call_s=2.0))
    assert [first_runs(priced, worker) for worker in range(2)] == [WHOLE, ["a@2[4:8]"]]
    ways = [next(iter(borders(lower(halves(), network()).programs[worker], network()))) for worker in range(2)]
    together = {worker: way[0] for worker, way in enumerate(ways)}
    assert gain_s(priced, together) == pytest.approx(1.0 - 2.0)
    assert gain_s(model(link), together) == pytest.approx(1.0 - A_CALL_S)
    slow = model(LinkProfile(latency_s=10.0), device(), device(slow=0.1))
    assert gain_s(slow, together) == pytest.approx(0.1 * (3 * A_ROW_S + A_CALL_S) - A_CALL_S)  # the quick one's rest


def test_for_throughput_nothing_is_made_in_parts() -> None:
    priced = model(LinkProfile(latency_s=1.0))
    assert lower_for(priced, halves(), "latency") == lower_hiding(priced, halves()) != lower(halves(), network())
    assert lower_for(priced, halves(), "throughput") == lower(halves(), network())


def test_without_the_memory_nothing_is_made_in_parts() -> None:
    link = LinkProfile(latency_s=1.0)
    assert first_runs(model(link, device(memory_bytes=10_000), device())) == IN_PARTS
    assert first_runs(model(link, device(memory_bytes=10), device())) == WHOLE


@settings(max_examples=60, deadline=None)
@given(graphs(), clusters())
def test_no_plan_is_predicted_to_be_slower_for_it(graph: LayerGraph, cluster: ClusterProfile) -> None:
    slow = replace(cluster, link=LinkProfile(latency_s=1e-3, bytes_per_s=1e6))
    priced, found = CostModel(graph, slow), make_plan(graph, slow, "equal")
    simulate(lower_hiding(priced, found))
    with patch.object(settle, "lower_hiding", lambda model, plan: lower(plan, model.graph)):
        plain_s = settled(priced, found).predicted_s
    assert settled(priced, found).predicted_s <= plain_s * (1 + 1e-9)
