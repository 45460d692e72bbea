"""Who gets the next request, and what that comes to in a stream whose answers come out in order."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.placement import Replica
from edgedi.partition.plan.plan import Plan, Segment
from edgedi.partition.throughput.dealing import default_in_flight, finish_s, first_to_finish

WHOLE = Plan(num_workers=1, segments=(Segment(layers=Interval(0, 1), axis="whole", on=0),))


def replicas(*rates_per_s: float, latency_s: float | None = None) -> list[Replica]:
    """Single workers by their rates; a pipeline's latency is longer than one over its rate."""
    return [
        Replica(workers=(k,), plan=WHOLE, rate_per_s=rate, latency_s=1 / rate if latency_s is None else latency_s)
        for k, rate in enumerate(rates_per_s)
    ]


def streamed_s(fleet: Sequence[Replica], num_requests: int, in_flight: int) -> float:
    """Seconds for a stream: a caller that waits for the oldest answer while ``in_flight`` requests are not yielded."""
    free_s, ends_s = [0.0] * len(fleet), [deque[float]() for _ in fleet]
    waiting, now_s = deque[float](), 0.0
    for _ in range(num_requests):
        if len(waiting) >= in_flight:
            now_s = max(now_s, waiting.popleft())
        for ends in ends_s:
            while ends and ends[0] <= now_s:
                ends.popleft()
        chosen = first_to_finish(fleet, [len(ends) for ends in ends_s])
        free_s[chosen] = max(free_s[chosen], now_s) + 1 / fleet[chosen].rate_per_s
        ends_s[chosen].append(free_s[chosen])
        waiting.append(free_s[chosen])
    return max(free_s)


def test_what_is_before_a_request_comes_first() -> None:
    (replica,) = replicas(4.0, latency_s=0.5)
    assert [finish_s(replica, count) for count in (0, 1, 4)] == [0.5, 0.75, 1.5]


def test_a_replica_that_answers_nothing_is_asked_last() -> None:
    stuck, quick = Replica(workers=(0,), plan=WHOLE, rate_per_s=0.0, latency_s=0.1), replicas(1.0)[0]
    assert finish_s(stuck, 0) == 0.1
    assert finish_s(stuck, 1) == math.inf
    assert first_to_finish([stuck, quick], [1, 100]) == 1


@pytest.mark.parametrize(
    ("outstanding", "chosen"),
    [((0, 0), 1), ((0, 1), 1), ((0, 2), 0), ((1, 3), 1), ((1, 5), 0), ((0, 9), 0)],
)
def test_the_one_that_would_finish_first_gets_it(outstanding: tuple[int, int], chosen: int) -> None:
    """One worker takes 1 s, the other 0.375 s: the slow one is worth it once 2 requests are before the fast one."""
    assert first_to_finish(replicas(1.0, 8 / 3), outstanding) == chosen


def test_equal_replicas_take_turns() -> None:
    outstanding, order = [0, 0, 0], []
    for _ in range(7):
        order.append(first_to_finish(replicas(5.0, 5.0, 5.0), outstanding))
        outstanding[order[-1]] += 1
    assert order == [0, 1, 2, 0, 1, 2, 0]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from((1.0, 1.5, 2.0, 3.0, 4.0)), min_size=1, max_size=6))
@example([4.0, 4.0, 4.0, 1.0])
def test_a_stream_in_order_keeps_everybody_busy(rates_per_s: list[float]) -> None:
    """With the requests that a session lets be under way, unequal workers answer at nearly the sum of their rates.

    At nine tenths at least: three quick workers may wait for one slow answer, as in the example, at 0.918.
    """
    fleet = replicas(*rates_per_s)
    taken_s = streamed_s(fleet, 400, default_in_flight(len(fleet), "throughput"))
    assert 400 / taken_s >= 0.9 * sum(rates_per_s)


def test_too_few_under_way_leave_workers_idle() -> None:
    """Broken on purpose: what one request at a time, and one for each worker, would come to."""
    fleet = replicas(1.0, 4.0)
    assert [400 / streamed_s(fleet, 400, in_flight) for in_flight in (1, 2)] == pytest.approx([4.0, 4.0])


def test_how_many_are_under_way() -> None:
    assert [default_in_flight(count, "latency") for count in (1, 2, 8)] == [4, 4, 4]
    assert [default_in_flight(count, "throughput") for count in (1, 2, 8)] == [4, 6, 24]
