"""From seconds to numbers: order, exact small cases, and intervals that hold what they claim."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.bench.numbers import apart_times_as_fast, spread, times_as_fast

SECONDS = st.lists(st.floats(1e-4, 10), min_size=1, max_size=30)


def test_a_spread_of_known_seconds():
    found = spread([5.0, 1.0, 3.0, 2.0, 4.0])
    assert (found.min_s, found.low_s, found.median_s, found.high_s) == (1.0, 2.0, 3.0, 4.0)


@given(SECONDS)
def test_a_spread_is_in_order(seconds: list[float]):
    found = spread(seconds)
    assert min(seconds) == found.min_s <= found.low_s <= found.median_s <= found.high_s <= max(seconds)


def test_a_ratio_pairs_the_rounds():
    # Both are disturbed in the same rounds: their own medians would say 2, every round says 3.
    base, fast = [3.0, 3.0, 300.0, 300.0, 300.0], [1.0, 1.0, 100.0, 100.0, 100.0]
    found = times_as_fast(fast, base)
    assert (found.median, found.low, found.high) == (3.0, 3.0, 3.0)


@given(SECONDS)
def test_nothing_is_faster_than_itself(seconds: list[float]):
    found = times_as_fast(seconds, seconds)
    assert (found.low, found.median, found.high) == (1.0, 1.0, 1.0)


@given(SECONDS, st.floats(0.1, 10))
def test_the_interval_holds_the_median_and_comes_again(seconds: list[float], factor: float):
    base = [factor * value * (1 + 0.1 * index % 0.5) for index, value in enumerate(seconds)]
    found = times_as_fast(seconds, base)
    assert found.low <= found.median <= found.high
    assert times_as_fast(seconds, base) == found


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    draw = random.Random(1)
    hits = 0
    for _ in range(200):
        fast = [draw.lognormvariate(0, 0.2) for _ in range(40)]
        base = [2 * draw.lognormvariate(0, 0.2) for _ in range(40)]
        found = times_as_fast(fast, base)
        hits += found.low <= 2 <= found.high
    assert 180 <= hits <= 200  # 95 % of 200 is 190; seeded


@pytest.mark.parametrize(("seconds", "base"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_that_make_no_pairs_are_refused(seconds: list[float], base: list[float]):
    with pytest.raises(ValueError, match="make no pairs"):
        times_as_fast(seconds, base)


def test_no_seconds_are_refused():
    with pytest.raises(ValueError, match="no seconds"):
        spread([])


def test_a_ratio_of_runs_apart_is_that_of_their_medians():
    found = apart_times_as_fast([1.0, 2.0, 3.0], [8.0, 8.0, 6.0, 8.0, 9.0])
    assert found.median == 4.0
    assert 6 / 3 <= found.low < 4.0 < found.high <= 9 / 1
    with pytest.raises(ValueError, match="no seconds"):
        apart_times_as_fast([1.0], [])


def test_the_interval_of_runs_apart_holds_the_truth_as_often_as_it_says():
    """Two runs of noise around 1 and 3: of 300 such pairs at least nine in ten have 3 within."""
    generator, held = random.Random(0), 0
    for _ in range(300):
        fast, base = ([middle * generator.lognormvariate(0, 0.1) for _ in range(15)] for middle in (1.0, 3.0))
        found = apart_times_as_fast(fast, base)
        held += found.low <= 3.0 <= found.high
    assert 0.9 <= held / 300 <= 0.99
