"""What a contender notes beside its seconds: how late emulated devices were, in which turn."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from edgedi.bench.contenders import SessionContender
from edgedi.bench.numbers import spread
from edgedi.bench.progress import Teller
from edgedi.bench.report import Late
from edgedi.bench.running import Run, Task
from edgedi.bench.settings import Settings


class FakeSession:
    """Takes half a second by its own clock for each request; ``late_s`` are what its two workers tell after each."""

    def __init__(self, *late_s: tuple[float, float]) -> None:
        self.now_s, self._late_s = 0.0, iter(late_s)
        self.plan = SimpleNamespace(num_workers=2)
        self.asked = 0

    def __call__(self, x: float) -> float:
        self.now_s += 0.5
        return x

    def statistics(self) -> Any:
        self.asked += 1
        told: Mapping[str, Any] = {str(index): {"late_s": late} for index, late in enumerate(next(self._late_s))}
        return SimpleNamespace(workers=told)


def contender(session: FakeSession, *, emulated: bool = True) -> SessionContender:
    return SessionContender("oodp", session, [(1.0,)], lambda: session.now_s, emulated=emulated)  # type: ignore[arg-type]  # a fake


def test_each_turn_has_its_own_lateness_and_it_is_not_timed() -> None:
    session = FakeSession((0.0, 0.001), (0.02, 0.0))
    made = contender(session)
    assert [made.seconds(0), made.seconds(0)] == [0.5, 0.5]
    late = made.take_late()
    assert late == [Late(late_s=0.001, taken_s=0.5), Late(late_s=0.02, taken_s=0.5)]
    assert [each.share for each in late] == pytest.approx([0.002, 0.04])
    assert made.take_late() == []


def test_real_devices_are_not_asked() -> None:
    session = FakeSession()
    made = contender(session, emulated=False)
    made.seconds(0)
    assert (made.take_late(), session.asked) == ([], 0)


class Rounds(Run[None]):
    def report(self) -> None:
        """See ``Run``."""


def test_what_came_before_the_rounds_does_not_count_and_late_rounds_are_marked() -> None:
    """The request that warms up was late by most of itself; of the rounds, only the second by more than 2 %."""
    session = FakeSession((0.4, 0.0), (0.001, 0.0), (0.0, 0.03), (0.0, 0.01))
    settings = Settings(model="m:n", workers=("there:1",), rounds=3)
    task = Task(
        settings=settings, machine=SimpleNamespace(num_cores=2), network=None, inputs=(), own=[], missing={},
    )  # type: ignore[arg-type]  # nothing of it is run  # fmt: skip
    measured = Rounds(task, None, Teller())  # type: ignore[arg-type]  # nothing to end
    result = measured.rounds([contender(session)], [])["oodp"]
    assert spread(result.seconds).median_s == 0.5
    assert measured.late_s == 0.03
    assert [(each.round, each.late_share) for each in measured.disturbed_of(3)] == [(1, pytest.approx(0.06))]
    assert measured.disturbed_of(1) == ()
