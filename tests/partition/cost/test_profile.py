from __future__ import annotations

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LayerProfile, LinkProfile
from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.operators import flops
from tests.partition.graphs import chain, clusters

GRAPH = chain(rows=16, channels=4, depth=1)
CONV = GRAPH.layers[0]
SHAPES = GRAPH.input_shapes(CONV)


def rows(count: int) -> Region:
    return Region(2, Interval(0, count))


def measured(**curves: tuple[tuple[float, float], ...]) -> DeviceProfile:
    return DeviceProfile(name="d", layers={CONV.name: LayerProfile(curves=curves)})


def test_lines_join_the_measured_points() -> None:
    device = measured(rows=((4, 1.0), (8, 3.0), (16, 5.0)))
    assert device.seconds(CONV, SHAPES, rows(4)) == 1.0
    assert device.seconds(CONV, SHAPES, rows(6)) == 2.0
    assert device.seconds(CONV, SHAPES, rows(12)) == 4.0
    assert device.seconds(CONV, SHAPES) == 5.0
    assert device.seconds(CONV, SHAPES, rows(2)) == 0.0  # the line of the first two points, not below zero


def test_one_point_is_proportional() -> None:
    assert measured(rows=((16, 4.0),)).seconds(CONV, SHAPES, rows(4)) == 1.0


def test_more_work_never_takes_less_time() -> None:
    device = measured(rows=((4, 3.0), (8, 1.0), (16, 5.0)))
    assert device.seconds(CONV, SHAPES, rows(8)) == 3.0


def test_an_unmeasured_axis_is_the_like_fraction_of_a_measured_one() -> None:
    device = measured(rows=((8, 3.0), (16, 5.0)))
    half_of_the_channels = Region(1, Interval(0, 2))
    assert device.seconds(CONV, SHAPES, half_of_the_channels) == 3.0
    assert measured(whole=((1, 8.0),)).seconds(CONV, SHAPES, half_of_the_channels) == 4.0


def test_an_unmeasured_layer_is_priced_by_its_operations() -> None:
    device = DeviceProfile(name="d", seconds_per_flop=1e-9, seconds_per_layer=1e-3)
    assert device.seconds(CONV, SHAPES, rows(4)) == pytest.approx(flops(CONV, SHAPES, rows(4)) * 1e-9 + 1e-3)


@given(
    st.lists(st.tuples(st.integers(1, 16), st.floats(0, 10)), min_size=1, max_size=5),
    st.integers(1, 16),
    st.integers(1, 16),
)
def test_seconds_never_fall(points: list[tuple[int, float]], one: int, other: int) -> None:
    device = measured(rows=tuple(points))
    low, high = sorted((one, other))
    assert device.seconds(CONV, SHAPES, rows(low)) <= device.seconds(CONV, SHAPES, rows(high)) * (1 + 1e-9)


def test_a_scaled_device_takes_that_much_longer() -> None:
    device = measured(rows=((8, 3.0), (16, 5.0))).scaled(2.0, name="slow")
    assert device.name == "slow"
    assert device.seconds(CONV, SHAPES, rows(8)) == 6.0
    assert device.seconds_per_flop == 2e-10


@given(clusters())
def test_a_cluster_travels_as_json(cluster: ClusterProfile) -> None:
    assert ClusterProfile.from_json(cluster.to_json()) == cluster


def test_measurements_travel_as_json() -> None:
    device = measured(rows=((8, 3.0), (16, 5.0)), whole=((1, 6.0),))
    assert DeviceProfile.from_json(device.to_json()) == device
    cluster = ClusterProfile(devices=(device,), link=LinkProfile(bytes_per_s=math.inf), home=device)
    assert ClusterProfile.from_json(cluster.to_json()) == cluster


def _device(**changes: object) -> str:
    return json.dumps({**json.loads(measured(rows=((8, 3.0),)).to_json()), **changes})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "JSON"),
        ("[]", "edgedi_profile"),
        ('{"edgedi_profile": "cluster", "version": 1}', "edgedi_profile"),
        (_device(version=99), "version 99"),
        (_device(name=7), "name"),
        (_device(seconds_per_flop="fast"), "seconds_per_flop"),
        (_device(seconds_per_flop=-1), "not negative"),
        (_device(layers={"a": 3}), "axis -> "),
        (_device(layers={"a": {"rows": [1, 2]}}), "axis -> "),
        (_device(layers={"a": {"depth": [[1, 2]]}}), "depth"),
        (_device(layers={"a": {"rows": []}}), "at least one point"),
        (_device(layers={"a": {"rows": [[0, 1]]}}), "positive"),
        (_device(layers={"a": {"rows": [[1, -1]]}}), "positive"),
    ],
)
def test_another_text_is_refused_with_the_reason(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeviceProfile.from_json(text)


def test_a_missing_field_is_named() -> None:
    values = json.loads(ClusterProfile.uniform(2).to_json())
    del values["link"]["latency_s"]
    with pytest.raises(ValueError, match="'latency_s'"):
        ClusterProfile.from_json(json.dumps(values))


def test_links_join_two_participants() -> None:
    with pytest.raises(ValueError, match="no link from 0 to 2"):
        ClusterProfile.uniform(2).with_links({(0, 2): LinkProfile()})
    with pytest.raises(ValueError, match="at least one device"):
        ClusterProfile(devices=())
    with pytest.raises(ValueError, match="bytes_per_s"):
        LinkProfile(bytes_per_s=0)
    with pytest.raises(ValueError, match="2 positive speeds"):
        ClusterProfile.uniform(2).with_speeds((1, 0))


def test_an_overridden_link_is_one_direction_only() -> None:
    slow = LinkProfile(latency_s=1.0)
    cluster = ClusterProfile.uniform(2).with_links({(0, 1): slow})
    assert cluster.link_between(0, 1) == slow
    assert cluster.link_between(1, 0) == cluster.link


def test_a_subset_keeps_its_devices_and_links_under_new_numbers() -> None:
    slow, slower = LinkProfile(bytes_per_s=10.0), LinkProfile(bytes_per_s=5.0)
    cluster = ClusterProfile.uniform(3).with_speeds((1, 2, 3)).with_links({(-1, 2): slow, (2, 1): slower, (0, 1): slow})
    found = cluster.subset((2, 1))
    assert found.devices == (cluster.devices[2], cluster.devices[1])
    assert dict(found.links) == {(-1, 0): slow, (0, 1): slower}
    assert cluster.subset((0, 1, 2)) == cluster


def test_the_coordinators_own_process_stays_so_where_it_is_the_first() -> None:
    cluster = replace(ClusterProfile.uniform(3), local=True)
    assert [cluster.subset(workers).local for workers in ((0, 2), (2, 0), (1, 2))] == [True, False, False]
    assert ClusterProfile.from_json(cluster.to_json()) == cluster
    with pytest.raises(ValueError, match="'local' of a cluster profile cannot be 1"):
        ClusterProfile.from_json(cluster.to_json().replace('"local": true', '"local": 1'))
