from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.partition.graph.geometry import Interval, IntervalSet, clip, even_cuts, scale, weighted_cuts, window

intervals = st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda ends: Interval(min(ends), max(ends)))
interval_sets = st.lists(intervals, max_size=5).map(lambda members: IntervalSet.of(*members))


def elements(value: Interval | IntervalSet) -> set[int]:
    members = (value,) if isinstance(value, Interval) else value.members
    return {element for member in members for element in range(member.start, member.stop)}


def test_an_interval_does_not_run_backwards() -> None:
    with pytest.raises(ValueError, match="starts at 3 after its stop 2"):
        Interval(3, 2)


@given(intervals)
def test_an_interval_parses_back(interval: Interval) -> None:
    assert Interval.parse(str(interval)) == interval


@given(intervals, intervals)
def test_intervals_are_sets_of_elements(one: Interval, other: Interval) -> None:
    assert elements(one.intersect(other)) == elements(one) & elements(other)
    assert elements(one.hull(other)) >= elements(one) | elements(other)
    assert one.contains(other) == (elements(other) <= elements(one))


@given(interval_sets, interval_sets, intervals)
def test_interval_sets_are_sets_of_elements(one: IntervalSet, other: IntervalSet, interval: Interval) -> None:
    assert elements(one.union(other)) == elements(one) | elements(other)
    assert elements(one.minus(other)) == elements(one) - elements(other)
    assert elements(one.intersect(interval)) == elements(one) & elements(interval)
    assert one.covers(interval) == (elements(interval) <= elements(one))
    assert len(one) == len(elements(one))


@given(interval_sets, interval_sets)
def test_equal_sets_are_equal_values(one: IntervalSet, other: IntervalSet) -> None:
    assert (one == other) == (elements(one) == elements(other))


@given(intervals, *(st.integers(1, 4) for _ in range(3)), st.integers(0, 5))
def test_a_window_is_what_the_kernel_touches(
    out: Interval, kernel: int, stride: int, dilation: int, before: int
) -> None:
    if not len(out):
        return
    read = {o * stride - before + k * dilation for o in elements(out) for k in range(kernel)}
    assert window(out, kernel=kernel, stride=stride, dilation=dilation, before=before) == Interval(
        min(read), max(read) + 1
    )


@given(st.integers(-10, 30), st.integers(1, 10), st.integers(1, 20))
def test_clipping_leaves_an_element(start: int, size: int, length: int) -> None:
    clipped = clip(Interval(start, start + size), length)
    assert len(clipped) >= 1
    assert Interval(0, length).contains(clipped)
    inside = {element for element in range(start, start + size) if 0 <= element < length}
    assert not inside or elements(clipped) == inside


@given(st.integers(0, 60), st.lists(st.floats(0, 10), min_size=1, max_size=6).filter(lambda w: sum(w) > 1e-3))
def test_weighted_cuts_cover_once_and_come_near_the_weights(length: int, weights: list[float]) -> None:
    cuts = weighted_cuts(length, weights)
    assert [element for cut in cuts for element in range(cut.start, cut.stop)] == list(range(length))
    assert all(abs(len(c) - length * w / sum(weights)) <= 1 + 1e-6 for c, w in zip(cuts, weights, strict=True))


def test_weights_must_be_positive() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        weighted_cuts(8, [1, -1, 2])
    with pytest.raises(ValueError, match="non-negative"):
        weighted_cuts(8, [0, 0])


@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 6))
def test_scaled_cuts_stay_neighbours(length: int, reference: int, parts: int) -> None:
    cuts = [scale(cut, length, reference) for cut in even_cuts(reference, parts)]
    assert [element for cut in cuts for element in range(cut.start, cut.stop)] == list(range(length))
