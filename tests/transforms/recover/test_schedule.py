"""The number of steps: given, or found from the seconds that there are."""

from __future__ import annotations

import pytest

from edgedi.transforms.recover.schedule import WARM_STEPS, Schedule


def test_a_given_number_of_steps():
    schedule, fractions, rates = Schedule(steps_left=4), [], []
    while not schedule.done:
        rates.append(schedule.rate)
        schedule = schedule.after_step()
        fractions.append(schedule.fraction)
    assert fractions == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert rates == pytest.approx([1.0, 0.8535534, 0.5, 0.1464466])
    assert (schedule.step, schedule.part) == (4, 10)


def run(budget_s: float, *seconds: float, first_s: float = 5.0) -> tuple[Schedule, float]:
    """A run whose steps take ``seconds[0]``, after half of the budget ``seconds[-1]``; and the seconds it took."""
    schedule, used_s = Schedule(), 0.0
    while not schedule.done:
        used_s += first_s if schedule.step == 0 else seconds[0] if used_s < budget_s / 2 else seconds[-1]
        before, schedule = schedule, schedule.after_step()
        if schedule.is_to_be_timed(before):
            schedule = schedule.timed(used_s, max(0.0, budget_s - used_s))
    return schedule, used_s


def test_seconds_are_used_up_but_for_what_comes_after():
    schedule, used_s = run(1000.0, 0.5)
    assert used_s == pytest.approx(980.0, abs=1.0)
    assert schedule.step == pytest.approx((980 - 5) / 0.5, abs=2)
    assert schedule.fraction == pytest.approx(1.0)


@pytest.mark.parametrize("seconds", [(1.0, 2.0), (2.0, 1.0), (1.0, 3.0)])
def test_a_pace_that_changes_is_followed(seconds: tuple[float, float]):
    schedule, used_s = run(2000.0, *seconds)
    assert 0.9 * 2000 <= used_s <= 1.1 * 2000
    assert schedule.done


def test_a_budget_shorter_than_the_first_steps_ends_with_them():
    schedule, used_s = run(1.0, 1.0)
    assert (schedule.step, used_s) == (WARM_STEPS, 8.0)


def test_a_run_taken_up_is_timed_by_the_new_clock():
    schedule = Schedule(step=50, steps_left=50, fraction=0.5, since_step=40, since_s=900.0).resumed(3.0)
    schedule = schedule.after_step().timed(5.0, 100.0)
    assert schedule.steps_left == (100 - 0.02 * 105) // 2
    assert schedule.fraction == pytest.approx(0.51)


def test_the_first_step_is_not_counted_as_it_is_slower():
    schedule = Schedule().after_step()
    assert schedule.is_to_be_timed(Schedule())
    assert schedule.timed(30.0, 70.0) == Schedule(step=1, since_step=1, since_s=30.0)
