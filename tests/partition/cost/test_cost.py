from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedi.partition.cost.busy import busy_seconds
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.demand import backward
from edgedi.partition.graph.geometry import WHOLE, Interval, Need, Region, scale
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.reach import may_split, reduces
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Cost, Plan, Segment
from edgedi.partition.planners.by_name import plan, planners
from edgedi.partition.search.estimate import SplitPricer, estimated, segment_cost
from edgedi.partition.search.minimax import FIRST, LAST, MIDDLE
from edgedi.partition.throughput.load import load_of
from tests.partition.graphs import Builder, chain, clusters, graphs, residual, with_opaque

FREE = LinkProfile()


@st.composite
def runs(draw: st.DrawFn) -> tuple[CostModel, Interval, str, Interval]:
    """A run of layers that may be split along an axis, and a share of it."""
    graph = draw(graphs(opaque=False))
    model = CostModel(graph, ClusterProfile.uniform(2))
    axis = draw(st.sampled_from(model.axes))
    start = draw(st.integers(0, len(graph.layers) - 1))
    layers = Interval(start, draw(st.integers(start + 1, len(graph.layers))))
    length = model.reach(layers.stop, axis, lowest=layers.start).length
    first = draw(st.integers(0, max(0, length - 1)))
    return model, layers, axis, Interval(first, draw(st.integers(min(first + 1, length), length)))


def demanded(model: CostModel, layers: Interval, axis: str, share: Interval, length: int) -> dict[str, Need]:
    """What demand.backward says of the share, as lowering asks it."""
    graph, dims = model.graph, model.dims(axis)
    wanted: dict[str, Need] = {}
    over: dict[str, Region] = {}
    for layer in graph.layers[layers.start : layers.stop]:
        source = layer.inputs[0] if reduces(layer, dims) else layer.name
        own = scale(share, graph.spec(source).shape[dims[source]], length) if source in dims else Interval(0, 1)
        if reduces(layer, dims) and len(own):
            over[layer.name] = Region(dims[source], own)
        if graph.last_use[layer.name] >= layers.stop and len(own):
            wanted[layer.name] = WHOLE if layer.name not in dims else Region(dims[layer.name], own)
    return backward(graph, layers, wanted, dims, over)


@settings(max_examples=300)
@given(runs())
def test_reach_walks_as_demand_does(run: tuple[CostModel, Interval, str, Interval]) -> None:
    model, layers, axis, share = run
    if not may_split(model.graph, layers, axis):
        return
    reach = model.reach(layers.stop, axis, lowest=layers.start)
    demand = demanded(model, layers, axis, share, reach.length)

    def count(tensor: str) -> int:
        if tensor not in demand:
            return 0
        need = demand[tensor]
        if need is not WHOLE:
            return len(need.interval)
        layer = model.graph.by_name.get(tensor)
        if layer is not None and reduces(layer, model.dims(axis)) and model.graph.position[tensor] >= layers.start:
            source = layer.inputs[0]
            return len(scale(share, model.graph.spec(source).shape[model.dims(axis)[source]], reach.length))
        return reach.whole_of(tensor)

    made = [layer.name for layer in reversed(model.graph.layers[layers.start : layers.stop])]
    assert dict(zip(made, reach.counts(share.start, share.stop), strict=True)) == {name: count(name) for name in made}
    reads = reach.inputs(layers.start, share.start, share.stop)
    assert {tensor: high - low for tensor, (low, high) in reads.items()} == {
        tensor: count(tensor) for tensor in demand if model.graph.position[tensor] < layers.start
    }


@given(runs(), st.data())
def test_seconds_never_fall_as_the_share_grows(
    run: tuple[CostModel, Interval, str, Interval], data: st.DataObject
) -> None:
    model, layers, axis, share = run
    if not may_split(model.graph, layers, axis) or not len(share):
        return
    reach = model.reach(layers.stop, axis, lowest=layers.start)
    if reach.length < 2:
        return
    pricer = SplitPricer(model, reach)
    start = data.draw(st.integers(0, share.start))
    stop = data.draw(st.integers(share.stop, reach.length))
    for layout in (*model.axes, HOME, 0, 1):
        for role in (FIRST, MIDDLE, LAST):
            small = pricer.total(layers.start, layout, 1, share.start, share.stop, role)
            large = pricer.total(layers.start, layout, 1, start, stop, role)
            assert small <= large * (1 + 1e-9)


def two_convolutions() -> LayerGraph:
    b = Builder(1, 1, 8, 4)
    return b.graph(b.conv(b.conv("x", 1, name="a"), 1, name="b"))


def cluster(latency_s: float = 0.0, bytes_per_s: float = float("inf"), message_cpu_s: float = 0.0) -> ClusterProfile:
    """One second for each of a convolution's 18 operations per element."""
    link = LinkProfile(latency_s=latency_s, bytes_per_s=bytes_per_s, message_cpu_s=message_cpu_s)
    base = ClusterProfile.uniform(2, flops_per_s=18, seconds_per_layer=0)
    return ClusterProfile(devices=base.devices, link=link)


def rows(start: int, stop: int) -> Segment:
    return Segment(layers=Interval(start, stop), axis="rows", length=8, shares=(Interval(0, 4), Interval(4, 8)))


def test_halo_rows_are_computed_again() -> None:
    model = CostModel(two_convolutions(), cluster())
    fused = segment_cost(model, rows(0, 2), HOME)
    assert fused == Cost(compute_s=4 * (4 + 5), exchange_s=0)
    apart = segment_cost(model, rows(0, 1), HOME).compute_s + segment_cost(model, rows(1, 2), "rows").compute_s
    assert apart == 4 * (4 + 4)


def test_a_network_on_one_device_takes_its_share_of_the_layers_sum() -> None:
    """An engine's long chain. Nothing of it where two workers share the network, whole segments or split ones."""
    graph, known = two_convolutions(), cluster()
    devices = tuple(
        replace(device, alone_share=share) for device, share in zip(known.devices, (0.75, 0.5), strict=True)
    )
    model, whole = CostModel(graph, replace(known, devices=devices)), Interval(0, 2)

    def priced(*segments: Segment) -> tuple[list[float], tuple[float, ...], Mapping[int, float]]:
        plan = Plan(num_workers=2, segments=segments)
        busy = busy_seconds(graph, model.cluster, plan, lower(plan, graph))
        return [s.cost.compute_s for s in settled(model, plan).segments], busy, load_of(model, plan).processors_s

    for worker, share in enumerate((0.75, 0.5)):
        segment = Segment(layers=whole, axis="whole", on=worker)
        busy = tuple(64 * share if k == worker else 0.0 for k in range(2))
        computed, counted, loaded = priced(segment)
        assert (computed, counted, loaded[worker]) == ([64 * share], busy, 64 * share)
        assert segment_cost(model, segment, HOME).compute_s == 64 * share
    first, second = (Segment(layers=Interval(k, k + 1), axis="whole", on=k) for k in range(2))
    computed, counted, loaded = priced(first, second)
    assert (computed, counted, loaded[0]) == ([32.0, 32.0], (32.0, 32.0), 32.0)
    assert priced(rows(0, 2))[0] == [4 * (4 + 5)]


@pytest.mark.parametrize(("price", "way"), [(estimated, 1), (settled, 0)])
def test_exchanges_by_hand(price: object, way: float) -> None:
    """In: rows 0 to 5 of x, 5 of 8 rows of 16 bytes, in one message. Between: one row, whose way the rows that are
    computed meanwhile hide in a finished plan's price. Out: 4 rows from each worker."""
    graph = two_convolutions()
    plan = Plan(num_workers=2, segments=(rows(0, 1), rows(1, 2)))
    for profile, scatter, halo, gather in (
        (cluster(latency_s=1), 1, way, 1),
        (cluster(message_cpu_s=1), 2, 2, 4),
        (cluster(bytes_per_s=16), 5, way, 8),
    ):
        first, second = price(CostModel(graph, profile), plan).segments  # type: ignore[operator]
        assert (first.cost.exchange_s, second.cost.exchange_s) == (scatter, halo + gather)


def test_what_the_coordinators_own_process_answers_alone_is_sent_nowhere() -> None:
    """Its link may be measured no better than another's; a plan that others take part in has the messages' price."""
    graph = two_convolutions()
    own = replace(cluster(latency_s=1), local=True)
    alone = [Plan(num_workers=2, segments=(Segment(layers=Interval(0, 2), axis="whole", on=on),)) for on in (0, 1)]
    both = Plan(num_workers=2, segments=(rows(0, 1), rows(1, 2)))
    exchanges = [[s.cost.exchange_s for s in settled(CostModel(graph, own), each).segments] for each in (*alone, both)]
    assert exchanges == [[0], [2], [1, 1]]
    assert plan(graph, own, planner="single").segments[0].on == 0
    assert sum(s.cost.exchange_s for s in settled(CostModel(graph, cluster(latency_s=1)), alone[0]).segments) == 2


def test_a_change_of_axis_is_a_gather() -> None:
    b = Builder(1, 1, 8, 4)
    graph = b.graph(b.conv(b.conv("x", 2, name="a"), 2, name="b"))
    model = CostModel(graph, cluster(bytes_per_s=16))
    channels = Segment(layers=Interval(1, 2), axis="channels", length=2, shares=(Interval(0, 1), Interval(1, 2)))
    half_of_a = 2 * 8 * 4 * 4 / 2
    assert segment_cost(model, channels, "rows").exchange_s == half_of_a / 16
    assert segment_cost(model, channels, 0).exchange_s == 2 * half_of_a / 16  # all of it to worker 1
    whole = Segment(layers=Interval(1, 2), axis="whole", on=1)
    assert segment_cost(model, whole, "rows").exchange_s == half_of_a / 16
    assert segment_cost(model, whole, 1).exchange_s == 0


def test_a_partial_reduction_and_its_combination_are_two_segments() -> None:
    graph = residual()
    position = [layer.op for layer in graph.layers].index("partial")
    assert may_split(graph, Interval(position - 1, position + 1), "rows")
    assert not may_split(graph, Interval(position - 1, position + 2), "rows")
    assert may_split(graph, Interval(position - 1, position + 2), "channels")


def test_opaque_layers_are_never_split() -> None:
    assert may_split(with_opaque(), Interval(0, 1), "rows")
    assert not may_split(with_opaque(), Interval(0, 2), "rows")


def test_what_has_no_rows_is_not_split_along_them() -> None:
    graph = chain()
    last = len(graph.layers)
    assert not may_split(graph, Interval(last - 2, last), "rows")
    assert may_split(graph, Interval(last - 2, last), "channels")


@settings(max_examples=60, deadline=None)
@given(graphs(), clusters())
def test_plans_carry_the_price_of_what_is_lowered(graph: LayerGraph, cluster: ClusterProfile) -> None:
    """Pricing a plan again changes nothing, and on free links nothing is left to wait for."""
    free = ClusterProfile(devices=cluster.devices, link=FREE)
    for name in planners():
        found = plan(graph, cluster, name)
        assert settled(CostModel(graph, cluster), found) == found
        assert sum(s.cost.exchange_s for s in settled(CostModel(graph, free), found).segments) == 0
