"""Calm moments, told by a loop whose seconds the test scripts."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest

from edgedi.runtime.emulation.calm import FIRST_LOOKS, SLOWER, WAIT_S, Calm, calmly, loop_s


def looks(*seconds: float) -> Callable[[], float]:
    told = iter(seconds)
    return lambda: next(told)


class Machine:
    """Its time goes on by what it is asked to do; ``loops`` are the loop's seconds, one look after another."""

    def __init__(self, *loops: float, first: float = 1.0) -> None:
        self.now_s = 0.0
        self.waited_s = 0.0
        self._calm = Calm(looks(*[first] * FIRST_LOOKS, *loops))
        self._made = itertools.count()

    def clock(self) -> float:
        return self.now_s

    def wait(self, seconds: float) -> None:
        self.now_s += seconds
        self.waited_s += seconds

    def once(self) -> int:
        self.now_s += 1.0
        return next(self._made)

    def found(self, *, enough: int, most_s: float) -> list[int]:
        return calmly(self.once, enough=enough, most_s=most_s, calm=self._calm, clock=self.clock, wait=self.wait)


CALM, NOT = 1.0, 1.6


def test_a_moment_is_calm_where_the_loop_is_about_as_fast_as_ever() -> None:
    calm = Calm(looks(2.0, *[1.0] * (FIRST_LOOKS - 1), SLOWER, SLOWER + 0.01, 0.5, 1.0, 0.5 * SLOWER))
    assert [calm.is_calm(calm.look()) for _ in range(5)] == [True, False, True, False, True]
    assert not calm.is_calm(SLOWER), "by what is known now"


def test_who_starts_while_something_disturbs_knows_the_loop_of_others() -> None:
    calm = Calm(looks(NOT, CALM, 0.5, 0.5))
    calm.hears_of(CALM)
    assert [calm.is_calm(calm.look()) for _ in range(3)] == [False, True, True]
    calm.hears_of(CALM)
    assert calm.best_s == 0.5, "what it saw itself since is faster"


def test_who_hears_of_one_that_has_not_looked_yet_looks_itself() -> None:
    calm = Calm(looks(*[NOT] * FIRST_LOOKS, NOT))
    calm.hears_of(math.inf)
    assert calm.is_calm(calm.look())


@pytest.mark.parametrize("best_s", [0.0, -1.0, math.nan])
def test_a_loop_takes_time(best_s: float) -> None:
    with pytest.raises(ValueError, match="above 0"):
        Calm().hears_of(best_s)


def test_the_loop_is_timed_by_the_processor_time_of_the_thread() -> None:
    assert loop_s(looks(1.0, 3.5)) == 2.5
    assert 0 < loop_s() < 1


def test_only_what_is_calm_before_and_after_counts() -> None:
    machine = Machine(CALM, CALM, CALM, NOT, NOT, CALM, CALM)
    assert machine.found(enough=2, most_s=100) == [0, 2]
    assert machine.waited_s == WAIT_S


def test_few_calm_moments_are_better_than_many_others() -> None:
    machine = Machine(CALM, CALM, *[CALM, NOT] * 3)
    assert machine.found(enough=5, most_s=3.5) == [0]


def test_what_was_taken_for_calm_counts_no_more_once_the_loop_is_faster() -> None:
    """Somebody else was there from the first look on, and leaves."""
    machine = Machine(*[NOT] * 4, CALM, CALM, CALM, CALM, first=NOT)
    assert machine.found(enough=2, most_s=100) == [0, 1], "nothing better is known yet"
    machine = Machine(NOT, NOT, *[CALM] * 4, first=NOT)
    assert machine.found(enough=2, most_s=100) == [1, 2]


def test_where_it_is_never_calm_the_rest_is_taken() -> None:
    machine = Machine(*[NOT] * 1_000)
    assert machine.found(enough=3, most_s=10 * WAIT_S) == [0, 1, 2]
    assert machine.waited_s == pytest.approx(10 * WAIT_S, abs=WAIT_S)
