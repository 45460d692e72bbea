"""Two cores are two where steps on both take as long as on one; the two processes work in step."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from bench.both_cores import SHARED, STEPS, Second, main, measure, summary


class Clock:
    """Goes on by what a step is said to take."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def test_a_second_says_where_the_cores_were_shared():
    two, one = Second(alone_s=0.002, together_s=0.0022), Second(alone_s=0.002, together_s=0.0036)
    assert (round(two.ratio, 3), round(one.ratio, 3)) == (1.1, 1.8)
    assert str(two) == "   2.00      2.20   1.10"
    assert str(one) == "   2.00      3.60   1.80  these were not two cores"
    assert summary([two, one, two]) == (
        f"both at once: 1.10 to 1.80 times as long as one alone, median 1.10; in 1 of 3 seconds at least {SHARED} times"
    )


class Other:
    """The second core: what it is asked for; a step of its takes a millisecond longer than ours."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.asked = clock, list[bytes]()

    def send(self, word: bytes) -> None:
        self.asked.append(word)

    def recv(self, count: int) -> bytes:
        self.clock.now_s += 0.001
        return b"c" * count


def test_steps_alone_and_together_are_told_apart():
    clock = Clock()
    other = Other(clock)

    def compute() -> None:
        clock.now_s += 0.01

    found = list(measure(2, compute, other, clock))
    assert [round(second.alone_s, 6) for second in found] == [0.01] * 2
    assert [round(second.together_s, 6) for second in found] == [0.011] * 2
    # STEPS of both take 0.42 seconds: the third time they pass the second.
    assert other.asked == [b"c"] * (2 * 3 * STEPS) + [b"e"]


def test_an_other_that_ends_is_said():
    mine, theirs = socket.socketpair()
    theirs.close()
    with mine, pytest.raises(ConnectionError):
        list(measure(1, lambda: None, mine))


def test_too_few_seconds_are_refused(capsys: pytest.CaptureFixture[str]):
    assert main(["--seconds", "0"]) == 2
    assert "--seconds 1 or more" in capsys.readouterr().err


def test_two_processes_of_this_machine():
    done = subprocess.run(
        [sys.executable, "-m", "bench.both_cores", "--seconds", "1"], capture_output=True, text=True, check=True
    )
    head, _, second, last = done.stdout.splitlines()
    assert head == "milliseconds of a step"
    alone, together, ratio = map(float, second.split()[:3])
    assert alone > 0
    assert together == pytest.approx(alone * ratio, rel=0.05)
    assert last.startswith("both at once: ")
