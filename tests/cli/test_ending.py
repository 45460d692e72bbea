"""What signals do to a command: one ends it, those that follow neither disturb its end nor change its exit code."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from edgedi.cli.ending import PATIENCE_S, ended_by_signals

BOTH = (signal.SIGINT, signal.SIGTERM)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[dict[int, object]]:
    """What was there before, and is there again after a test."""
    before = {number: signal.getsignal(number) for number in BOTH}
    yield dict(before)
    for number, handler in before.items():
        signal.signal(number, handler)


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def interrupted(clock: Clock, later: int, after_s: float, cleaned: list[bool], first: int = signal.SIGINT) -> None:
    """A body that is interrupted, and again ``after_s`` later, before it has cleaned up."""
    with ended_by_signals(clock):
        try:
            send(first)
        finally:
            clock.now_s += after_s
            send(later)
            cleaned.append(True)


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.mark.parametrize("number", BOTH)
@pytest.mark.parametrize("later", BOTH)
def test_a_second_signal_leaves_the_cleaning_up_alone(number: int, later: int) -> None:
    cleaned: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(Clock(), later, PATIENCE_S - 1e-6, cleaned, first=number)
    assert cleaned == [True]


def test_a_cleaning_up_that_hangs_can_be_interrupted_again() -> None:
    cleaned: list[bool] = []
    with pytest.raises(KeyboardInterrupt):
        interrupted(Clock(), signal.SIGTERM, PATIENCE_S, cleaned)
    assert cleaned == []


def test_after_an_interrupted_body_no_signal_changes_the_end_for_a_while() -> None:
    clock = Clock()
    with pytest.raises(KeyboardInterrupt), ended_by_signals(clock):
        send(signal.SIGINT)
    for number in BOTH:
        send(number)  # would end this process, or raise
    clock.now_s += PATIENCE_S
    with pytest.raises(KeyboardInterrupt):
        send(signal.SIGTERM)


def test_what_a_shell_has_a_background_process_ignore_stays_ignored() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with ended_by_signals():
        send(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


def test_after_a_body_that_ended_by_itself_all_is_as_before(handlers: dict[int, object]) -> None:
    with ended_by_signals():
        assert {number: signal.getsignal(number) for number in BOTH} != handlers
    assert {number: signal.getsignal(number) for number in BOTH} == handlers
    with pytest.raises(ValueError, match="of its own"), ended_by_signals():
        raise ValueError("of its own")
    assert {number: signal.getsignal(number) for number in BOTH} == handlers
