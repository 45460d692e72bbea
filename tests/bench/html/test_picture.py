"""The picture of a plan: whatever the plan, shares are the map, halos are what programs make and receive besides."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.bench.html.picture import NO_SEGMENT, FeatureMap, Halo, feature_maps, lanes
from edgedi.bench.html.plan_figure import plan_figure
from edgedi.partition.graph.geometry import Interval, IntervalSet
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import Recv
from tests.bench.html.reading import read
from tests.partition import graphs
from tests.plans import axis_plan, random_plan


def picture(plan: Plan, graph: LayerGraph) -> tuple[FeatureMap, ...]:
    return feature_maps(plan, lower(plan, graph))


def written(graph: LayerGraph, *segments: str) -> Plan:
    head = f"plan 2 workers, {len(graph.layers)} layers, predicted 0 s"
    return Plan.parse("\n".join([head, *segments]), graph_digest=graph.digest)


CHAIN = graphs.chain(rows=16, channels=4, depth=1)
"""conv and activation on 16 rows, pool to 8 rows, flatten, linear."""


def test_two_workers_on_a_chain_computed_by_hand():
    plan = written(CHAIN, "segment 0  layers 0:3  rows 8  0:4  4:8", "segment 1  layers 3:5  whole on 1")
    image, conv, active, pooled, flat, _ = picture(plan, CHAIN)
    assert (image.segment, image.axis, image.length) == (NO_SEGMENT, "rows", 16)
    assert [(share.worker, str(share.interval)) for share in image.shares] == [(HOME, "0:16")]
    assert [(h.worker, str(h.interval), h.kind) for h in image.halos] == [
        (0, "0:9", "received"),
        (1, "7:16", "received"),
    ]
    for feature_map in (conv, active):
        assert [(share.worker, str(share.interval)) for share in feature_map.shares] == [(0, "0:8"), (1, "8:16")]
        assert feature_map.halos == ()
    assert [(h.worker, str(h.interval), h.kind) for h in pooled.halos] == [(1, "0:4", "received")]
    assert [(share.worker, flat.segment) for share in flat.shares] == [(1, 1)]


def test_a_halo_that_is_computed_twice_by_hand():
    graph = graphs.chain(rows=16, channels=4, depth=2)
    plan = written(graph, "segment 0  layers 0:5  rows 8  0:4  4:8", "segment 1  layers 5:7  whole on 0")
    maps = picture(plan, graph)
    assert [(h.worker, str(h.interval), h.kind) for h in maps[1].halos] == [
        (0, "8:9", "computed"),
        (1, "7:8", "computed"),
    ]


def check(maps: tuple[FeatureMap, ...]) -> None:
    for each in maps:
        if not each.everyone:
            assert each.shares[0].interval.start == 0
            assert sum(len(share.interval) for share in each.shares) == each.length
            assert IntervalSet.of(*(share.interval for share in each.shares)).covers(Interval(0, each.length))
        own = {share.worker: share.interval for share in each.shares}
        for halo in each.halos:
            assert 0 <= halo.interval.start < halo.interval.stop <= each.length
            assert not len(own.get(halo.worker, Interval(0, 0)).intersect(halo.interval))


@given(graphs.graphs(), st.integers(1, 4), st.integers(0, 2**32))
def test_shares_are_the_map_and_halos_are_not(graph: LayerGraph, num_workers: int, seed: int):
    plan = random_plan(graph, num_workers, random.Random(seed))
    maps = picture(plan, graph)
    check(maps)
    assert [each.tensor for each in maps] == [*graph.inputs, *(layer.name for layer in graph.layers)]


@given(graphs.graphs(opaque=False), st.integers(2, 4))
def test_what_is_received_is_in_the_picture(graph: LayerGraph, num_workers: int):
    plan = axis_plan(graph, num_workers)
    programs = lower(plan, graph)
    maps = {each.tensor: each for each in feature_maps(plan, programs)}
    for participant, program in programs.programs.items():
        received = (
            {i.piece.tensor for i in program.instructions if isinstance(i, Recv)} if participant != HOME else set()
        )
        for tensor in received:
            if not maps[tensor].everyone:
                assert any(halo.worker == participant for halo in maps[tensor].halos), (tensor, participant)


INTERVALS = st.tuples(st.integers(0, 20), st.integers(1, 9)).map(lambda pair: Interval(pair[0], pair[0] + pair[1]))


@given(st.lists(INTERVALS, max_size=12))
def test_halos_of_one_lane_do_not_overlap_and_no_lane_is_wasted(intervals: list[Interval]):
    halos = tuple(Halo(worker=0, interval=interval, kind="received") for interval in intervals)
    numbers = lanes(halos)
    for i in range(len(halos)):
        for j in range(i):
            if numbers[i] == numbers[j]:
                assert not len(intervals[i].intersect(intervals[j]))
    deepest = max((sum(k in range(i.start, i.stop) for i in intervals) for k in range(30)), default=0)
    assert max(numbers, default=-1) + 1 == deepest


@pytest.mark.parametrize("axis", ["rows", "channels"])
def test_drawn_parts_are_as_high_as_their_intervals(axis: str):
    graph = graphs.residual()
    plan = axis_plan(graph, 3, axis)
    maps = picture(plan, graph)
    columns = read(str(plan_figure(plan, maps))).all("g")
    assert [column.attributes["data-tensor"] for column in columns] == [each.tensor for each in maps]
    for column, each in zip(columns, maps, strict=True):
        parts = [rect for rect in column.all("rect") if "data-start" in rect.attributes]
        assert len(parts) == len(each.shares) + len(each.halos)
        if not parts:
            continue
        total = sum(rect.number("height") for rect in parts if "data-halo" not in rect.attributes)
        top = min(rect.number("y") for rect in parts)
        for rect in parts:
            length = rect.number("data-stop") - rect.number("data-start")
            assert rect.number("height") == pytest.approx(total * length / each.length, abs=0.02)
            assert rect.number("y") == pytest.approx(top + total * rect.number("data-start") / each.length, abs=0.02)


def test_whole_segments_are_marked():
    graph = graphs.chain()
    plan = written(graph, f"segment 0  layers 0:{len(graph.layers)}  whole on 1")
    drawn = read(str(plan_figure(plan, picture(plan, graph))))
    whole = [rect for rect in drawn.all("rect") if rect.has_class("whole")]
    assert len(whole) == len(graph.layers)
    assert all(rect.has_class("w1") for rect in whole)
    assert "on 1" in drawn.text


def test_a_large_network_for_many_workers_is_drawn():
    graph = graphs.resnet50(64)
    plan = axis_plan(graph, 9)
    drawn = read(str(plan_figure(plan, picture(plan, graph))))
    assert len(drawn.all("g")) == len(graph.layers) + 1
    assert {rect.attributes.get("data-worker") for rect in drawn.all("rect")} >= {str(k) for k in range(9)}


def test_the_last_lengths_label_ends_within_the_figure():
    graph = graphs.resnet50(64)
    plan = axis_plan(graph, 2, "channels")
    first, conv, *_, classes = picture(plan, graph)
    drawn = read(str(plan_figure(plan, [first, *[conv] * 120, replace(classes, segment=conv.segment)])))
    right = float(drawn.all("svg")[0].attributes["viewbox"].split()[2])
    labels = [label for label in drawn.all("text") if label.attributes["text-anchor"] == "start"]
    assert labels[-1].text == "1000"
    assert all(label.number("x") + 6.0 * len(label.text) <= right for label in labels)
