"""When a plan is made anew: noise never does it, a steady slowdown always and once, recovery brings the first back."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedi.runtime.session.balance_state import (
    CONFIRMATIONS,
    COOL_DOWN,
    EVERY_REQUESTS,
    LEAST_PREDICTED_S,
    MOST_COOL_DOWN,
    NOISE,
    PROBE_EVERY,
    REPLAN_WITHIN_REQUESTS,
    THRESHOLD,
    Balance,
    Busy,
    Decision,
    Keep,
    Probe,
    Reading,
    Replan,
    new_slowdowns,
)

LITTLE_NOISE = 0.1
"""Under which one estimate of a slowdown is good enough to stand."""


class Cluster:
    """Devices of which the session thinks something, planned so that all are busy equally long by what it thinks.

    ``idle`` workers get no share; that stays as it is.
    """

    def __init__(self, num_workers: int, *, bias: float = 1.0, idle: tuple[int, ...] = ()) -> None:
        self.true = dict.fromkeys(range(num_workers), 1.0)
        self.thought = dict(self.true)
        self.balance, self.bias, self.idle = Balance(), bias, idle
        self.num_plans = 1

    def read(self, noise: Callable[[int], float] = lambda k: 0.0) -> Decision:
        """A reading with the devices as they are; what is decided is done."""
        workers = {
            k: Busy(
                predicted_s=0.0 if k in self.idle else 0.01,
                measured_s=None if k in self.idle else 0.01 * self.bias * self.true[k] / slowdown * (1 + noise(k)),
                slowdown=slowdown,
            )
            for k, slowdown in self.thought.items()
        }
        decision = self.balance.handle(Reading(plan=str(self.num_plans), workers=workers))
        if isinstance(decision, Replan):
            self.thought = dict(decision.slowdowns)
            self.num_plans += 1
        return decision

    def reads(self, count: int, noise: Callable[[int], float] = lambda k: 0.0) -> int:
        """So many readings; how often they changed the plan."""
        before = self.num_plans
        for _ in range(count):
            self.read(noise)
        return self.num_plans - before


num_workers = st.integers(2, 8)
biases = st.floats(0.5, 2.0)
seeds = st.integers(0, 2**32)


def within(limit: float, seed: int) -> Callable[[int], float]:
    rng = random.Random(seed)
    return lambda k: rng.uniform(-limit, limit)


# --- noise -----------------------------------------------------------------------------------------------------------


@given(num_workers, biases, seeds)
def test_noise_never_plans_anew(count: int, bias: float, seed: int) -> None:
    assert Cluster(count, bias=bias).reads(100, within(0.999 * NOISE, seed)) == 0


@given(num_workers, biases)
def test_noise_that_alternates_as_far_as_it_may_never_plans_anew(count: int, bias: float) -> None:
    cluster, sign = Cluster(count, bias=bias), 1
    for _ in range(100):
        sign = -sign
        limit = 0.999 * NOISE * sign
        assert cluster.read(lambda k, limit=limit: limit if k % 2 else -limit) == Keep()


def test_one_bad_reading_is_forgotten_however_bad() -> None:
    cluster = Cluster(2)
    for bad in (10.0, 100.0, 3.0):
        assert cluster.reads(3) == 0
        assert cluster.read(lambda k, bad=bad: bad * k) == Keep()


def test_bad_readings_of_one_worker_and_then_the_other_are_noise() -> None:
    cluster = Cluster(2)
    for number in range(50):
        assert cluster.read(lambda k, number=number: 5.0 if k == number % 2 else 0.0) == Keep()


# --- slowdowns -------------------------------------------------------------------------------------------------------


@given(num_workers, biases, st.floats(3, 20), seeds, st.data())
def test_a_slow_device_is_found_in_time_and_once(
    count: int, bias: float, slowdown: float, seed: int, data: st.DataObject
) -> None:
    cluster, noise = Cluster(count, bias=bias), within(LITTLE_NOISE, seed)
    assert cluster.reads(10, noise) == 0
    slow = data.draw(st.integers(0, count - 1))
    cluster.true[slow] = slowdown
    assert cluster.reads(CONFIRMATIONS, noise) == 1
    for k, thought in cluster.thought.items():
        assert thought == pytest.approx(cluster.true[k] if k == slow else 1.0, rel=0.35)
    assert cluster.reads(200, noise) == 0


def test_a_slowdown_in_the_middle_of_a_window_is_found_within_the_stated_number_of_requests() -> None:
    for part in (0.0, 0.05, 0.5, 0.95):
        cluster = Cluster(2)
        cluster.reads(5)
        cluster.read(lambda k, part=part: 2 * part * k)  # the device was slow for this part of the window
        cluster.true[1] = 3.0
        assert cluster.reads(CONFIRMATIONS) == 1
        assert REPLAN_WITHIN_REQUESTS == (1 + CONFIRMATIONS) * EVERY_REQUESTS
        assert cluster.thought == {0: 1.0, 1: 3.0}


@given(num_workers, biases, st.floats(3, 20), seeds)
def test_after_recovery_the_first_plan_comes_back(count: int, bias: float, slowdown: float, seed: int) -> None:
    cluster, noise = Cluster(count, bias=bias), within(0.03, seed)
    cluster.true[0] = slowdown
    assert cluster.reads(50, noise) == 1
    cluster.true[0] = 1.0
    assert cluster.reads(CONFIRMATIONS, noise) == 1
    assert cluster.thought == dict.fromkeys(range(count), 1.0)
    assert cluster.reads(200, noise) == 0


@given(num_workers, biases, st.floats(1, 20))
def test_what_slows_all_alike_changes_nothing(count: int, bias: float, slowdown: float) -> None:
    cluster = Cluster(count, bias=bias)
    cluster.reads(5)
    cluster.true = dict.fromkeys(cluster.true, slowdown)
    assert cluster.reads(50) == 0


def test_a_small_difference_changes_nothing_and_one_above_the_threshold_does() -> None:
    for slowdown, expected in ((0.99 * THRESHOLD, 0), (1.01 * THRESHOLD, 1)):
        cluster = Cluster(3)
        cluster.true[1] = slowdown
        assert cluster.reads(20) == expected


# --- no flapping -----------------------------------------------------------------------------------------------------


@settings(max_examples=50)
@given(num_workers, seeds)
def test_plans_change_rarely_whatever_devices_do(count: int, seed: int) -> None:
    """Devices that change their speed at random with every reading: cool-downs grow until plans hardly change."""
    rng, cluster = random.Random(seed), Cluster(count)
    for _ in range(1000):
        cluster.true = {k: rng.choice((1.0, 5.0)) for k in cluster.true}
        cluster.read()
    assert cluster.num_plans <= 40


def test_a_device_that_changes_as_soon_as_the_plan_did_waits_longer_each_time() -> None:
    cluster, at = Cluster(2), list[int]()
    for number in range(1500):
        if isinstance(cluster.read(), Replan):
            at.append(number)
            cluster.true[1] = 4.0 if cluster.true[1] == 1.0 else 1.0
        elif number == 0:
            cluster.true[1] = 4.0
    gaps = [b - a for a, b in itertools.pairwise(at)]
    assert gaps[:5] == [COOL_DOWN + 1, 2 * COOL_DOWN + 1, 4 * COOL_DOWN + 1, 8 * COOL_DOWN + 1, 16 * COOL_DOWN + 1]
    assert max(gaps) == MOST_COOL_DOWN + 1


def test_after_quiet_times_the_cool_down_is_short_again() -> None:
    cluster = Cluster(2)
    for number in range(300):  # as above: cool-downs grow
        if isinstance(cluster.read(), Replan) or number == 0:
            cluster.true[1] = 4.0 if cluster.true[1] == 1.0 else 1.0
    cluster.true[1] = cluster.thought[1]
    assert cluster.reads(5 * MOST_COOL_DOWN) == 0
    cluster.true[1] = 5.0 - cluster.true[1]
    assert cluster.reads(CONFIRMATIONS) == 1
    cluster.true[1] = 5.0 - cluster.true[1]
    assert cluster.reads(COOL_DOWN + CONFIRMATIONS) == 1


# --- workers without a share -----------------------------------------------------------------------------------------


def test_the_only_busy_worker_is_compared_with_what_it_took_before() -> None:
    cluster = Cluster(2, bias=1.3, idle=(1,))
    assert cluster.reads(5) == 0
    cluster.true[0] = 3.0
    assert cluster.reads(CONFIRMATIONS) == 1
    assert cluster.thought == {0: pytest.approx(3.0), 1: 1.0}


def test_what_ratios_were_before_a_decision_does_not_count_after_it() -> None:
    """While worker 1 was thought slow and had recovered, its ratio was small; that is nobody's ratio any more."""
    cluster = Cluster(2)
    for slowdown in (4.0, 1.0):
        cluster.true[1] = slowdown
        assert cluster.reads(20) == 1
    cluster.idle = (1,)
    assert cluster.reads(100) == 0


@pytest.mark.parametrize("bias", [0.5, 1.0, 2.0])
def test_a_slow_worker_without_a_share_is_probed_and_comes_back(bias: float) -> None:
    cluster = Cluster(2, bias=bias)
    cluster.true[0] = 5.0
    assert cluster.reads(CONFIRMATIONS) == 1
    cluster.idle = (0,)
    decisions = [cluster.read() for _ in range(2 * PROBE_EVERY)]
    assert decisions == [*[Keep()] * (PROBE_EVERY - 1), Probe((0,))] * 2
    cluster.balance.probed(0, 5.2)  # as slow as before
    assert cluster.reads(4) == 0
    cluster.balance.probed(0, 1.02)
    assert cluster.reads(CONFIRMATIONS) == 1
    assert cluster.thought == {0: 1.0, 1: 1.0}
    assert cluster.reads(50) == 0


def test_a_share_too_small_to_measure_says_nothing() -> None:
    assert Busy(predicted_s=LEAST_PREDICTED_S / 2, measured_s=1.0).ratio is None
    assert Busy(predicted_s=LEAST_PREDICTED_S, measured_s=None).ratio is None
    assert Busy(predicted_s=0.01, measured_s=0.02).ratio == pytest.approx(2.0)


def test_nobody_measured_is_no_reason_for_anything() -> None:
    idle = Busy(predicted_s=0.0, measured_s=None)
    assert Balance().handle(Reading(plan="a", workers={0: idle, 1: idle})) == Keep()
    assert Balance().handle(Reading(plan="a", workers={})) == Keep()


def test_a_slowdown_is_positive() -> None:
    with pytest.raises(ValueError, match="slowdown 0: a positive number"):
        Busy(predicted_s=1.0, measured_s=1.0, slowdown=0)


@given(st.dictionaries(st.integers(0, 9), st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1), st.data())
def test_new_slowdowns_keep_the_proportions(values: dict[int, tuple[float, float]], data: st.DataObject) -> None:
    old = {k: slowdown for k, (slowdown, _) in values.items()}
    known = data.draw(st.sets(st.sampled_from(sorted(values)), min_size=1))
    ratios = {k: values[k][1] for k in known}
    found = new_slowdowns(old, ratios)
    least = min(old[k] * ratios[k] for k in known)
    for k in values:
        expected = old[k] * ratios[k] / least if k in known else old[k]
        assert found[k] == pytest.approx(expected) or (found[k] == 1.0 and k in known)
    assert min(found[k] for k in known) == 1.0
