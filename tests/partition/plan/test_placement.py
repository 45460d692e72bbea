from __future__ import annotations

from dataclasses import replace

import pytest

from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.placement import Placement, Replica
from edgedi.partition.plan.plan import Cost, Plan, Segment
from edgedi.partition.throughput.throughput import place
from tests.partition.graphs import residual

COST = Cost(compute_s=0.5)
ALONE = Plan(num_workers=1, segments=(Segment(layers=Interval(0, 3), axis="whole", on=0, cost=COST),))
PAIR = Plan(
    num_workers=2,
    segments=(
        Segment(layers=Interval(0, 2), axis="whole", on=1, cost=COST),
        Segment(layers=Interval(2, 3), axis="rows", length=7, shares=(Interval(0, 3), Interval(3, 7)), cost=COST),
    ),
    planner="pipeline",
)
TWO = Placement(
    replicas=(
        Replica(workers=(2,), plan=ALONE, rate_per_s=2.0, latency_s=0.5),
        Replica(workers=(0, 1), plan=PAIR, rate_per_s=3.0, latency_s=1.0),
    )
)


def test_it_prints_and_parses() -> None:
    assert str(TWO) == (
        "placement 2 replicas, 5 requests/s, latency 0.8 s\n"
        "replica on 2  2 requests/s, latency 0.5 s\n"
        "plan 1 workers, 3 layers, predicted 0.5 s\n"
        "segment 0  layers 0:3  whole on 0  compute 0.5 exchange 0\n"
        "replica on 0 1  3 requests/s, latency 1 s\n"
        "plan 2 workers, 3 layers, predicted 1 s, planner pipeline\n"
        "segment 0  layers 0:2  whole on 1  compute 0.5 exchange 0\n"
        "segment 1  layers 2:3  rows 7  0:3  3:7  compute 0.5 exchange 0"
    )
    assert Placement.parse(str(TWO)) == TWO


def test_a_planned_one_parses_to_the_same_text() -> None:
    found = place(residual(), ClusterProfile.uniform(3), objective="throughput")
    again = Placement.parse(str(found))
    assert [str(replica) for replica in again.replicas] == [str(replica) for replica in found.replicas]
    assert again.rate_per_s == pytest.approx(found.rate_per_s, rel=1e-5)  # six digits are printed


def test_rates_add_up_and_latency_is_their_mean() -> None:
    assert TWO.rate_per_s == 5.0
    assert TWO.latency_s == pytest.approx((2.0 * 0.5 + 3.0 * 1.0) / 5.0)
    still = Placement(replicas=tuple(replace(replica, rate_per_s=0.0) for replica in TWO.replicas))
    assert still.latency_s == 1.0


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Placement(replicas=()), "at least one"),
        (lambda: Placement(replicas=(TWO.replicas[0], TWO.replicas[0])), r"workers \[2\] are in several"),
        (lambda: replace(TWO.replicas[1], workers=(0,)), r"workers \(0,\): the plan is for 2"),
        (lambda: replace(TWO.replicas[1], workers=(1, 1)), "named once"),
        (lambda: replace(TWO.replicas[0], rate_per_s=-1.0), "0 or more"),
        (lambda: replace(TWO.replicas[0], latency_s=float("nan")), "0 or more"),
        (lambda: Placement.parse("plan 1 workers"), "begins no placement"),
        (lambda: Placement.parse(str(TWO).splitlines()[0]), "follows the head"),
        (lambda: Placement.parse("\n".join(str(TWO).splitlines()[:2])), "begins no replica"),
        (lambda: Placement.parse(str(TWO).replace("replica on 2", "replica on two")), "begins no replica"),
        (lambda: Placement.parse(str(TWO).replace("whole on 0", "whole of 0")), "is not a segment"),
    ],
)
def test_what_is_wrong_is_named(make, words: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(ValueError, match=words):
        make()
