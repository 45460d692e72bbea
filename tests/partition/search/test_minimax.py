from __future__ import annotations

import math
from itertools import combinations_with_replacement, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.search.minimax import ALONE, FIRST, LAST, MIDDLE, ShareCost, feasible, minimax


@st.composite
def costs(draw: st.DrawFn, *, alone: bool = True) -> tuple[int, int, int, ShareCost]:
    """Workers, length, grain and a cost: any function that never falls as the share grows, another for every role."""
    num_workers, length = draw(st.integers(1, 4)), draw(st.integers(1, 9))
    work = [draw(st.integers(0, 5)) for _ in range(length)]
    speeds = [draw(st.sampled_from((1, 2, 5))) for _ in range(num_workers)]
    extra = [[draw(st.sampled_from((0, 0, 1, 7, 40))) for _ in range(4)] for _ in range(num_workers)]
    steps = [draw(st.sampled_from((1, 3))) for _ in range(num_workers)]

    def cost(worker: int, start: int, stop: int, role: int) -> float:
        assert 0 <= start < stop <= length, "never asked about nothing"
        if role == ALONE and not alone:
            return math.inf
        done = sum(work[start:stop]) + stop - start
        return -(-done // steps[worker]) * speeds[worker] + extra[worker][role]

    return num_workers, length, draw(st.integers(1, 3)), cost


def slowest(cuts: tuple[int, ...], cost: ShareCost) -> float:
    active = [k for k, (a, b) in enumerate(pairwise(cuts)) if b > a]
    roles = {active[0]: FIRST, active[-1]: LAST} if len(active) > 1 else {active[0]: ALONE}
    return max(cost(k, cuts[k], cuts[k + 1], roles.get(k, MIDDLE)) for k in active)


def brute_force(num_workers: int, length: int, grain: int, cost: ShareCost) -> float:
    """The best of all cut vectors."""
    borders = [*range(0, length, grain), length]
    return min(slowest((0, *inner, length), cost) for inner in combinations_with_replacement(borders, num_workers - 1))


@given(costs())
def test_no_cut_vector_is_better(case: tuple[int, int, int, ShareCost]) -> None:
    num_workers, length, grain, cost = case
    found = minimax(num_workers, length, cost, grain=grain)
    assert found is not None
    assert found.seconds == pytest.approx(brute_force(num_workers, length, grain, cost), rel=1e-8)
    cuts = (0, *(share.stop for share in found.shares))
    assert slowest(cuts, cost) == found.seconds
    assert [share.start for share in found.shares] == list(cuts[:-1])
    assert cuts[-1] == length


@given(costs(alone=False))
def test_two_workers_at_least_where_one_alone_is_forbidden(case: tuple[int, int, int, ShareCost]) -> None:
    num_workers, length, grain, cost = case
    found, best = minimax(num_workers, length, cost, grain=grain), brute_force(num_workers, length, grain, cost)
    assert (math.inf if found is None else found.seconds) == pytest.approx(best, rel=1e-8)


@given(costs(), st.floats(0.5, 1.5))
def test_a_limit_only_says_no(case: tuple[int, int, int, ShareCost], factor: float) -> None:
    num_workers, length, grain, cost = case
    best = brute_force(num_workers, length, grain, cost)
    found = minimax(num_workers, length, cost, grain=grain, limit=best * factor)
    assert (found is not None) == (best < best * factor)
    assert found is None or found.seconds == pytest.approx(best, rel=1e-8)
    assert feasible(num_workers, length, cost, grain=grain, limit=best * factor) == (best <= best * factor)


def test_a_worker_that_does_not_pay_is_left_out() -> None:
    def cost(worker: int, start: int, stop: int, role: int) -> float:
        return (stop - start) * (1.0, 100.0, 1.0)[worker]

    found = minimax(3, 10, cost)
    assert found is not None
    assert found.shares == (Interval(0, 5), Interval(5, 5), Interval(5, 10))


def test_the_first_may_be_idle_because_borders_are_dear() -> None:
    """A greedy pass that always begins with worker 0 ends at 12: worker 2 waits 10 for its halo above."""

    def cost(worker: int, start: int, stop: int, role: int) -> float:
        waiting = {0: 3.0, 1: 0.0, 2: 10.0}[worker] if role in (MIDDLE, LAST) else 0.0
        return (stop - start) * (9.0, 1.0, 1.0)[worker] + waiting

    found = minimax(3, 6, cost)
    assert found is not None
    assert found.seconds == brute_force(3, 6, 1, cost) == 6.0
