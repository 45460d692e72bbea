"""An emulated device's time, told by clocks that the test moves."""

from __future__ import annotations

import contextlib
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.runtime.emulation.here import Emulation, emulating, emulation_here
from edgedi.runtime.emulation.pace import FullSpeed, Slowed, clock_of, pace_of
from edgedi.runtime.emulation.speed import MessagePrice, Speed
from edgedi.runtime.worker.device import fingerprint


class World:
    """Processor time and the wall clock of a machine that does nothing by itself."""

    def __init__(self, speed: Speed) -> None:
        self.now_s, self.used_s, self.slept_s = 100.0, 7.0, 0.0
        self.pace = Slowed(speed, cpu=lambda: self.used_s, clock=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now_s += seconds
        self.slept_s += seconds

    def compute(self, seconds: float, *, preempted_s: float = 0.0) -> None:
        self.used_s += seconds
        self.now_s += seconds + preempted_s

    def poll(self, *comes_after_s: float | None):
        """What polling gives: ``None`` for nothing there, else it is waited for."""
        answers = list(comes_after_s)

        def poll(timeout_ms: int) -> list[str]:
            after_s = answers.pop(0)
            if after_s is None:
                return []
            assert timeout_ms > 0 or after_s == 0
            self.now_s += after_s
            return ["message"]

        return poll


def test_a_device_ten_times_as_slow_takes_ten_times_as_long():
    world = World(Speed(slowdown=10))
    world.compute(0.003)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.03)
    assert world.slept_s == pytest.approx(0.027)
    assert world.pace.late_s == 0


def test_time_for_which_the_machine_ran_others_is_made_up_for():
    world = World(Speed(slowdown=10))
    world.compute(0.001, preempted_s=0.005)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.01)
    world.compute(0.001, preempted_s=0.02)  # more than there is to wait: late by 11 ms
    world.pace.settle()
    assert world.now_s == pytest.approx(100.031)
    assert world.pace.late_s == pytest.approx(0.011)
    world.compute(0.002)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.04)  # on its own time again


def test_what_finds_a_device_at_rest_is_heard_a_latency_later():
    world = World(Speed(slowdown=10, latency_s=0.001))
    assert world.pace.wait(world.poll(None, 0.5), 1000) == ["message"]
    assert world.now_s == pytest.approx(100.501)
    world.compute(0.001)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.511)  # rest is no work: it is not made up for


def test_a_busy_device_hears_at_once_of_what_came_meanwhile():
    world = World(Speed(slowdown=10, latency_s=0.001))
    world.compute(0.002)
    assert world.pace.wait(world.poll(0), 1000) == ["message"]
    assert world.now_s == pytest.approx(100.02)


def test_setting_up_is_not_slowed():
    world = World(Speed(slowdown=10))
    world.compute(5.0, preempted_s=20.0)
    world.pace.forget()
    world.pace.settle()
    assert world.slept_s == 0
    assert world.pace.late_s == 0


PRICED = Speed(slowdown=10, price=MessagePrice(message_s=2e-5, byte_s=1e-9))


def test_a_message_leaves_when_the_device_is_ready_with_it():
    world = World(PRICED)
    world.compute(0.003)
    with world.pace.sending(1_000):
        assert world.now_s == pytest.approx(100 + 10 * (0.003 + 2e-5 + 1e-6))
        world.compute(0.0005)  # packing with cold caches: in the price
    world.pace.settle()
    assert world.pace.late_s == pytest.approx(0.0005)
    world.compute(0.001)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.04021)  # and is made up for


def test_a_message_that_comes_counts_its_price_whatever_it_took_here():
    world = World(PRICED)
    assert world.pace.wait(world.poll(None, 0.5), 1000) == ["message"]
    world.compute(0.004)
    world.pace.heard(1_000)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.504)  # later than the 0.21 ms of the price, which is why
    assert world.pace.late_s == pytest.approx(0.004 - 10 * 2.1e-5)
    world.compute(0.001)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.5 + 10 * (2.1e-5 + 0.001))


PASSED = Speed(slowdown=10, price=PRICED.price, passing=MessagePrice(message_s=3e-5, byte_s=2e-9))


def test_a_message_that_finds_a_device_at_rest_had_to_be_passed_on():
    world = World(PASSED)
    world.pace.wait(world.poll(None, 0.5), 1000)
    world.pace.heard(1_000)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.5 + 10 * (2e-5 + 1e-6 + 3e-5 + 2e-6))


def test_a_busy_device_has_another_core_to_pass_messages_on():
    world = World(PASSED)
    world.compute(0.001)
    world.pace.wait(world.poll(0), 1000)
    world.pace.heard(1_000)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.01 + 10 * (2e-5 + 1e-6))


def test_what_comes_while_a_device_computes_finds_it_busy_though_it_rested_before():
    world = World(PASSED)
    world.pace.wait(world.poll(None, 0.5), 1000)
    world.pace.heard(1_000)
    world.pace.heard(1_000)  # was there as well
    world.pace.computed(0.01)
    world.pace.settle()
    world.pace.heard(1_000)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.5 + 10 * (3 * (2e-5 + 1e-6) + 2 * (3e-5 + 2e-6) + 0.01))


def test_what_comes_through_memory_is_passed_on_by_nobody():
    world = World(PASSED)
    world.pace.wait(world.poll(None, 0.5), 1000)
    world.pace.heard(1_000, passed=False)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.5 + 10 * (2e-5 + 1e-6))


def test_time_of_a_device_may_run_slowly(monkeypatch: pytest.MonkeyPatch):
    machine = {"now_s": 400.0, "used_s": 1.0}
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        machine["now_s"] += seconds

    monkeypatch.setattr("edgedi.runtime.emulation.pace.time.monotonic", lambda: machine["now_s"])
    monkeypatch.setattr("edgedi.runtime.emulation.pace.time.thread_time", lambda: machine["used_s"])
    monkeypatch.setattr("edgedi.runtime.emulation.pace.time.sleep", sleep)
    speed = Speed(slowdown=10, dilation=4)
    clock, pace = clock_of(speed), pace_of(speed)
    assert clock() == 100.0
    machine["used_s"] += 0.003
    machine["now_s"] += 0.003
    pace.settle()
    assert clock() == pytest.approx(100.03)
    assert slept == [pytest.approx(0.12 - 0.003)]
    started_s = pace.stopwatch()
    machine["used_s"] += 0.002
    assert pace.stopwatch() - started_s == pytest.approx(0.02)  # the device's own seconds
    assert clock_of(Speed(slowdown=10))() == machine["now_s"]


@pytest.mark.parametrize("dilation", [0.0, 0.9, 101.0, math.nan])
def test_a_dilation_that_is_none_is_refused(dilation: float):
    with pytest.raises(ValueError, match=re.escape(f"dilation is {dilation:g}: accepted are 1 (time as it is) to 100")):
        Speed(dilation=dilation)


def test_looking_for_messages_is_in_their_price():
    world = World(PRICED)

    def poll(timeout_ms: int) -> list[str]:
        world.compute(0.002)
        return ["message"]

    world.pace.wait(poll, 1000)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.002)


def test_without_a_price_messages_count_what_they_take():
    world = World(Speed(slowdown=10))
    with world.pace.sending(1_000):
        world.compute(0.0005)
    world.compute(0.0005)
    world.pace.heard(1_000)
    world.pace.settle()
    assert world.now_s == pytest.approx(100.01)


def test_what_was_rehearsed_counts_so_whatever_it_took_here():
    world = World(PRICED)
    world.compute(0.005)  # with cold caches
    world.pace.computed(0.002)
    world.pace.computed(0.001)
    world.compute(0.0005)  # what has no price
    world.pace.settle()
    assert world.now_s == pytest.approx(100 + 10 * (0.002 + 0.001 + 0.0005))


@pytest.mark.parametrize(
    ("speed", "warm"),
    [(PRICED, True), (Speed(slowdown=10), False), (Speed(price=PRICED.price), False), (Speed(), False)],
)
def test_work_counts_as_with_warm_caches_on_emulated_devices_with_a_price(speed: Speed, warm: bool):
    assert speed.counts_warm == warm


def test_a_price_is_read_back_as_it_was_written():
    price = MessagePrice(message_s=1.4172e-05, byte_s=3.38e-11)
    assert MessagePrice.parse(str(price)) == price
    assert price.seconds(1_000_000) == pytest.approx(4.7972e-05)
    with pytest.raises(ValueError, match=re.escape("message price '3': give SECONDS+SECONDS_A_BYTE")):
        MessagePrice.parse("3")
    with pytest.raises(ValueError, match="message_s is -1: accepted are 0 to 10 seconds"):
        MessagePrice(message_s=-1, byte_s=0)


def test_a_stopwatch_shows_processor_time_times_slowdown():
    world = World(Speed(slowdown=15))
    started_s = world.pace.stopwatch()
    world.compute(0.01, preempted_s=3.0)
    assert world.pace.stopwatch() - started_s == pytest.approx(0.15)


@given(st.lists(st.tuples(st.floats(0, 0.01), st.floats(0, 0.05)), max_size=20), st.floats(1, 50))
def test_a_device_is_never_early_and_late_only_by_what_others_took(work: list[tuple[float, float]], slowdown: float):
    world = World(Speed(slowdown=slowdown))
    owed_s = 0.0
    for seconds, preempted_s in work:
        world.compute(seconds, preempted_s=preempted_s)
        world.pace.settle()
        owed_s += slowdown * seconds
        assert world.now_s >= 100 + owed_s - 1e-9
        assert world.pace.late_s <= sum(p for _, p in work) + 1e-9
    assert world.now_s <= 100 + owed_s + sum(p for _, p in work) + 1e-9


def test_this_machine_itself_is_left_alone():
    pace = pace_of(Speed())
    assert isinstance(pace, FullSpeed)
    polled: list[int] = []
    assert pace.wait(lambda timeout_ms: polled.append(timeout_ms) or "ready", 250) == "ready"
    assert polled == [250]
    assert isinstance(pace_of(Speed(slowdown=2)), Slowed)
    assert isinstance(pace_of(Speed(latency_s=0.001)), Slowed)
    assert isinstance(pace_of(Speed(dilation=2)), Slowed)


@pytest.mark.parametrize("slowdown", [0.0, 0.5, -1.0, 1001.0, math.inf, math.nan])
def test_a_slowdown_that_is_none_is_refused(slowdown: float):
    with pytest.raises(ValueError, match=re.escape(f"slowdown is {slowdown:g}: accepted are 1")):
        Speed(slowdown=slowdown)


@pytest.mark.parametrize("latency_s", [-0.1, 11.0, math.nan])
def test_a_latency_that_is_none_is_refused(latency_s: float):
    with pytest.raises(ValueError, match=f"latency_s is {latency_s:g}: accepted are 0 to 10 seconds"):
        Speed(latency_s=latency_s)


def test_profiles_of_emulated_devices_are_kept_apart():
    names = {fingerprint("cpu", 1, "torch", slowdown) for slowdown in (1.0, 10.0, 15.0)}
    assert len(names) == 3
    assert fingerprint("cpu", 1, "torch", 1.0) == fingerprint("cpu", 1, "torch")
    assert fingerprint("cpu", 1, "torch", 10.0).endswith("-cpu-1t-torch-slowed10x")


def test_an_emulation_lasts_as_long_as_its_block():
    assert emulation_here() == Emulation()
    with contextlib.suppress(KeyError), emulating(Emulation(speed=Speed(slowdown=3), proxy="127.0.0.1:9")):
        assert emulation_here().speed.slowdown == 3
        raise KeyError
    assert emulation_here() == Emulation()
