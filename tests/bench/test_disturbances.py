"""Which rounds count as disturbed: the counters read, the limits at their edges, and the rounds left alone."""

from __future__ import annotations

import os

import pytest

from edgedi.bench.disturbances import Reading, judged, machine_seconds, others_share, process_seconds, reader, watched
from edgedi.bench.report import Disturbance

STAT = "cpu  100 20 30 4000 50 6 7 8 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\nintr 1\n"
PROCESS = "12 (a (strange) name) S 1 1 1 0 -1 4194560 1 0 0 0 250 50 0 0 20 0 3 0 1 2 3"


def reading(clock_s: float, busy_s: float = 0.0, steal_s: float = 0.0, own_s: float = 0.0) -> Reading:
    return Reading(clock_s=clock_s, busy_s=busy_s, steal_s=steal_s, own_s=own_s)


def test_busy_is_everything_but_idle_waiting_and_stolen():
    assert machine_seconds(STAT, 100.0) == pytest.approx((1.63, 0.08))


def test_the_name_of_a_process_may_hold_anything():
    assert process_seconds(PROCESS, 100.0) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("busy_s", "steal_s", "own_s", "expected"),
    [
        (1.9, 0.0, 1.9, None),
        (1.9, 0.0, 1.81, None),  # 4.5 % foreign
        (1.9, 0.0, 1.79, (0.0, 0.055)),
        (1.9, 0.039, 1.9, None),  # under 2 % stolen
        (1.9, 0.041, 1.9, (0.0205, 0.0)),
        (1.0, 0.0, 1.2, None),  # our own, counted a tick late
    ],
)
def test_a_round_is_marked_from_two_per_cent_stolen_or_five_foreign(
    busy_s: float, steal_s: float, own_s: float, expected: tuple[float, float] | None
):
    found = judged(4, reading(10.0), reading(11.0, busy_s, steal_s, own_s), num_cores=2)
    if expected is None:
        assert found is None
    else:
        assert found == Disturbance(
            round=4, steal_share=pytest.approx(expected[0]), foreign_share=pytest.approx(expected[1])
        )


def test_a_short_round_is_not_marked_for_a_tick_or_two():
    assert judged(0, reading(0.0), reading(0.05, 0.02, 0.02), num_cores=2) is None
    assert judged(0, reading(0.0), reading(0.05, 0.03), num_cores=2) is not None


def test_who_else_uses_the_machine_is_looked_up_for_a_while():
    readings = iter([reading(5.0, 10.0, 1.0, 2.0), reading(6.0, 10.9, 1.1, 2.5)])
    paused: list[float] = []
    assert others_share(lambda: next(readings), 2, paused.append) == pytest.approx((0.4 + 0.1) / 2)
    assert paused == [1.0]
    assert others_share(lambda: None, 2, paused.append) == 0.0


@pytest.mark.parametrize(("late_share", "expected"), [(0.02, None), (0.021, Disturbance(round=3, late_share=0.021))])
def test_a_round_in_which_a_device_was_late_is_marked_with_or_without_counters(
    late_share: float, expected: Disturbance | None
):
    quiet = reading(0.0), reading(1.0, 0.5, own_s=0.5)
    assert judged(3, *quiet, 2, late_share) == expected
    assert judged(3, None, None, 2, late_share) == expected


def test_both_reasons_stand_beside_each_other():
    found = judged(3, reading(0.0), reading(1.0, steal_s=0.2), 2, 0.5)
    assert found == Disturbance(round=3, steal_share=pytest.approx(0.1), late_share=0.5)


def test_every_round_comes_and_only_disturbed_ones_are_noted():
    readings = iter([reading(0), reading(1, 0.1, own_s=0.1), reading(1), reading(2, 1.0), reading(2), None, None, None])
    noted: list[Disturbance] = []
    assert list(watched(range(4), lambda: next(readings), 1, noted.append)) == [0, 1, 2, 3]
    assert [disturbance.round for disturbance in noted] == [1]


@pytest.mark.skipif(not os.path.exists("/proc/stat"), reason="counters are read where there is a /proc")
def test_counters_of_this_machine_only_grow_and_ours_are_part_of_them():
    read = reader([os.getppid()])
    before = read()
    assert sum(k * k for k in range(300_000)) > 0
    after = read()
    assert before is not None
    assert after is not None
    assert after.clock_s > before.clock_s
    assert after.busy_s >= before.busy_s
    assert after.own_s >= before.own_s > 0


def test_a_process_that_is_gone_leaves_the_rounds_unmarked():
    assert reader([2**22 + 1])() is None
