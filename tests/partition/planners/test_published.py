from __future__ import annotations

from itertools import chain as joined
from itertools import combinations, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.geometry import Interval, scale, weighted_cuts
from edgedi.partition.plan.plan import Plan, Segment
from edgedi.partition.planners.published import TILES_PER_WORKER, aofl, coedge, coedge_weights, deepthings, water_level
from edgedi.partition.search.estimate import estimated
from edgedi.partition.search.search import search
from tests.partition.graphs import Builder, chain, residual, vgg16, with_opaque

FREE = ClusterProfile(devices=ClusterProfile.uniform(3, seconds_per_layer=0).devices)


def parts(segment: Segment) -> list[float]:
    return [len(share) / segment.length for share in segment.shares]


# --- deepthings ------------------------------------------------------------------------------------------------------


def test_deepthings_is_one_fused_block_and_one_device() -> None:
    found = deepthings(vgg16(64), FREE.with_speeds((1, 2, 1)))
    assert [segment.axis for segment in found.segments] == ["rows", "whole"]
    assert found.segments[1].on == 1
    assert found.predicted_s < deepthings(vgg16(64), FREE).predicted_s


def test_deepthings_takes_the_depth_that_is_estimated_best() -> None:
    """Free messages, but rows computed twice: neither one layer nor all of them."""
    graph, model = vgg16(64), CostModel(vgg16(64), FREE)
    found = deepthings(graph, FREE)
    depth, times = found.segments[0].layers.stop, {}
    for stop in range(1, 19):
        length = graph.layers[stop - 1].spec.shape[2]
        tiles = weighted_cuts(min(length, TILES_PER_WORKER * 3), (1, 1, 1))
        shares = tuple(scale(tile, length, tiles[-1].stop) for tile in tiles)
        front = Segment(layers=Interval(0, stop), axis="rows", length=length, shares=shares)
        rest = Segment(layers=Interval(stop, 22), axis="whole", on=0)
        times[stop] = estimated(model, Plan(num_workers=3, segments=(front, rest))).predicted_s
    assert 1 < depth < 18
    assert times[depth] == min(times.values())


def test_deepthings_tiles_go_to_the_fast() -> None:
    found = deepthings(chain(rows=48), FREE.with_speeds((1, 2, 3)))
    assert parts(found.segments[0]) == pytest.approx([1 / 6, 1 / 3, 1 / 2])


def test_deepthings_ends_where_parts_are_combined() -> None:
    graph = residual()
    found = deepthings(graph, FREE)
    assert sum(segment.on is None for segment in found.segments) == 1
    assert found.segments[0].layers.stop <= [layer.op for layer in graph.layers].index("combine")


# --- aofl ------------------------------------------------------------------------------------------------------------


def blocks_of(model: CostModel, ends: tuple[int, ...], count: int) -> list[Segment]:
    """Rows in equal parts on the first ``count`` of three workers, one block up to each end."""
    segments = []
    for start, stop in pairwise((0, *ends)):
        length = model.graph.layers[stop - 1].spec.shape[2]
        shares = weighted_cuts(length, [1.0] * count + [0.0] * (3 - count))
        segments.append(Segment(layers=Interval(start, stop), axis="rows", length=length, shares=shares))
    return segments


@pytest.mark.parametrize("latency_s", [0.0, 2e-5, 2e-4, 1e-3])
def test_aofl_takes_the_best_blocks_and_number_of_devices(latency_s: float) -> None:
    """Against all blocks of a chain and every number of devices, one by one, and all on one device."""
    b = Builder(1, 2, 24, 24)
    x = "x"
    for _ in range(5):
        x = b.conv(x, 4)
    graph = b.graph(x)
    cluster = ClusterProfile.uniform(3, flops_per_s=1e9, latency_s=latency_s, message_cpu_s=1e-6)
    model = CostModel(graph, cluster)
    inner = joined.from_iterable(combinations(range(1, 5), count) for count in range(5))
    choices = [blocks_of(model, (*ends, 5), count) for ends in inner for count in (2, 3)]
    choices.append([Segment(layers=Interval(0, 5), axis="whole", on=0)])
    prices = [settled(model, Plan(num_workers=3, segments=tuple(segments))).predicted_s for segments in choices]
    assert aofl(graph, cluster).predicted_s <= min(prices) * (1 + 1e-9)


def test_aofl_leaves_slow_devices_out() -> None:
    found = aofl(vgg16(64), FREE.with_speeds((1, 1e-4, 1)))
    assert {segment.workers for segment in found.segments if segment.on is None} == {(0, 2)}


def test_search_keeps_to_its_ends_and_axes() -> None:
    model = CostModel(vgg16(64), FREE)
    segments, _ = search(model, axes=("rows",), ends={3, 10, 18})
    assert {segment.layers.stop for segment in segments} <= {3, 10, 18, 22}
    assert {segment.axis for segment in segments} <= {"rows", "whole"}


# --- coedge ----------------------------------------------------------------------------------------------------------


def test_coedge_divides_all_maps_alike() -> None:
    found = coedge(vgg16(224), FREE.with_speeds((1, 2, 1)))
    split = [segment for segment in found.segments if segment.on is None]
    assert len(split) == 13
    for segment in split:
        assert parts(segment) == pytest.approx([0.25, 0.5, 0.25], abs=1 / segment.length)


def test_coedge_gives_less_to_slow_links() -> None:
    slow = LinkProfile(bytes_per_s=1e6)
    thin = coedge_weights(CostModel(vgg16(64), FREE.with_links({(-1, 1): slow})))
    assert thin[1] < thin[0] == pytest.approx(thin[2])
    assert sum(thin) == pytest.approx(1)


def test_coedge_leaves_out_whoever_has_fewer_rows_than_a_halo() -> None:
    """Four rows at the end, a halo of one: a quarter is the least that a worker may have."""
    b = Builder(1, 3, 8, 8)
    graph = b.graph(b.conv(b.max_pool(b.conv("x", 4)), 4))
    assert coedge_weights(CostModel(graph, FREE.with_speeds((1, 2, 1)))) == pytest.approx((0.25, 0.5, 0.25))
    assert coedge_weights(CostModel(graph, FREE.with_speeds((1, 2, 0.9)))) == pytest.approx((1 / 3, 2 / 3, 0))


def test_coedge_runs_where_nothing_can_be_split() -> None:
    b = Builder(1, 8)
    assert [segment.axis for segment in coedge(b.graph(b.linear("x", 4)), FREE).segments] == ["whole"]
    assert [segment.on for segment in deepthings(b.graph(b.linear("x", 4)), FREE).segments] == [0]
    assert any(segment.on == -1 for segment in coedge(with_opaque(), FREE).segments)


amounts = st.lists(st.tuples(st.floats(0.01, 10), st.floats(0, 5)), min_size=1, max_size=5)


@given(amounts)
def test_the_water_level_is_the_programmes_optimum(workers: list[tuple[float, float]]) -> None:
    slopes, offsets = [slope for slope, _ in workers], [offset for _, offset in workers]
    level = water_level(slopes, offsets)

    def filled(seconds: float) -> float:
        """How much of the rows can be done by then: more than all of them only after the best time."""
        return sum(max(0.0, (seconds - offset) / slope) for slope, offset in workers)

    assert filled(level) == pytest.approx(1)
    assert filled(level * (1 - 1e-6)) < 1
