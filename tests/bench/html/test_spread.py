"""Labels beside curves that end close together."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.bench.html.charts import spread


@pytest.mark.parametrize(
    ("places", "expected"),
    [
        ([20.0, 60.0, 100.0], [20.0, 60.0, 100.0]),
        ([50.0, 50.0, 52.0], [50.0, 60.0, 70.0]),
        ([52.0, 50.0], [60.0, 50.0]),
        ([95.0, 96.0, 97.0], [80.0, 90.0, 100.0]),
    ],
)
def test_labels_move_no_more_than_they_must(places: list[float], expected: list[float]):
    assert spread(places, 10, 100) == expected


@given(st.lists(st.floats(0, 200), max_size=12))
def test_labels_keep_their_order_and_stand_apart(places: list[float]):
    found = spread(places, 14, 280)
    order = sorted(range(len(places)), key=lambda index: places[index])
    heights = [found[index] for index in order]
    assert all(b - a >= 14 - 1e-9 for a, b in itertools.pairwise(heights))
    assert max(heights, default=0) <= 280
