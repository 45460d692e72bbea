"""The interleaved run on contenders whose seconds are known, and the progress it shows."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console
from torch import Tensor

from edgedi.bench.measuring import EndedEarly, interleaved
from edgedi.bench.progress import Teller
from edgedi.errors import WorkerLost


class Fake:
    """Takes the seconds it is given, in turn; answers with ``value`` for every input."""

    def __init__(self, name: str, log: list[str], seconds: list[float], value: float = 1.0) -> None:
        self.name, self._log, self._left, self._value = name, log, iter(seconds), value

    def seconds(self, index: int) -> float:
        self._log.append(f"{self.name}{index}")
        return next(self._left)

    def answer(self, index: int) -> list[Tensor]:
        return [torch.full((3,), self._value)]


OWN = [[torch.ones(3)]]


def test_every_round_has_a_turn_for_each_and_begins_with_another():
    log: list[str] = []
    interleaved([Fake(name, log, [1.0] * 9) for name in "abc"], OWN, range(4))
    assert log[:3] == ["a0", "b0", "c0"]  # not counted
    assert "".join(log[3:]) == "a0b0c0" + "b0c0a0" + "c0a0b0" + "a0b0c0"


def test_inputs_take_turns_too():
    log: list[str] = []
    interleaved([Fake("a", log, [1.0] * 9)], OWN * 2, range(3))
    assert log == ["a0", "a1", "a0", "a1", "a0"]


def test_a_turn_counts_as_the_median_of_its_requests():
    log: list[str] = []
    (result,) = interleaved([Fake("a", log, [9.0, 1.0, 5.0, 2.0, 7.0, 8.0, 30.0])], OWN, range(2), repeat=3)
    assert result.seconds == (2.0, 8.0)


def test_a_wrong_answer_is_noticed():
    right, wrong = interleaved([Fake("a", [], [1.0] * 2), Fake("b", [], [1.0] * 2, 1.5)], OWN, range(1))
    assert (right.within_tolerance, right.difference) == (True, 0.0)
    assert (wrong.within_tolerance, wrong.difference) == (False, 0.5)


def test_progress_without_a_terminal_is_lines_every_few_seconds():
    now = [0.0]
    text = io.StringIO()
    teller = Teller(Console(file=text, width=100), clock=lambda: now[0])
    now[0] = 1.0
    teller.say("one step")
    for index, ends_s in zip(teller.rounds(4, "measuring"), [3.0, 6.0, 10.9, 11.5], strict=True):
        now[0] = ends_s
        assert index < 4
    assert text.getvalue().splitlines() == [
        "   1.0 s  one step",
        "   1.0 s  measuring: 4 rounds",
        "   6.0 s  measuring: 2 of 4",
        "  11.5 s  measuring: 4 of 4",
    ]


def test_progress_on_a_terminal_counts_the_rounds():
    text = io.StringIO()
    teller = Teller(Console(file=text, width=100, force_terminal=True, _environ={"TERM": "xterm"}))
    assert list(teller.rounds(3, "measuring")) == [0, 1, 2]
    assert "measuring" in text.getvalue()
    assert "3/3" in text.getvalue()


def test_a_terminal_that_cannot_draw_gets_lines():
    text = io.StringIO()
    teller = Teller(Console(file=text, width=100, force_terminal=True, _environ={"TERM": "dumb"}))
    assert list(teller.rounds(3, "measuring")) == [0, 1, 2]
    assert "measuring: 3 rounds" in text.getvalue()


def test_a_contender_that_fails_in_the_middle_leaves_the_complete_rounds():
    class Failing(Fake):
        def seconds(self, index: int) -> float:
            try:
                return super().seconds(index)
            except StopIteration:
                raise WorkerLost("worker local-1 closed the connection") from None

    steady, failing = Fake("a", [], [1.0] * 9), Failing("b", [], [9.0, 2.0, 3.0])
    with pytest.raises(EndedEarly, match="after 2 complete rounds: worker local-1 closed the connection") as ended:
        interleaved([steady, failing], OWN, range(5))
    assert [(result.name, result.seconds) for result in ended.value.results] == [("a", (1.0, 1.0)), ("b", (2.0, 3.0))]
    with pytest.raises(WorkerLost):
        interleaved([Fake("a", [], [1.0] * 9), Failing("b", [], [9.0])], OWN, range(5))
