"""Noted runs: every instruction that takes time is noted, by a clock that the test moves, and answers stay the same."""

from __future__ import annotations

from dataclasses import replace

import torch

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.program import Piece, Recv, Run, Send
from edgedi.runtime.execution.executor import Step
from edgedi.runtime.worker.noting import Note, NotedRun
from tests.runtime.execution.test_executor import X, load, rows


class Clock:
    """Every look at it takes a second."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += 1.0
        return self.now_s


UPPER, LOWER = rows("x", 0, 3), rows("x", 3, 6)
PROGRAM = (
    Recv(UPPER, 1),
    Run(rows("a", 0, 3), (UPPER,)),
    Send(rows("a", 1, 3), rows("a", 0, 3), 1),
    Recv(LOWER, 2),
    Run(rows("a", 3, 6), (LOWER,)),
)


def upper() -> torch.Tensor:
    return X.narrow(2, 0, 3)


def lower() -> torch.Tensor:
    return X.narrow(2, 3, 3)


def test_computing_sending_and_waiting_are_noted() -> None:
    notes: list[Note] = []
    run = NotedRun(load(*PROGRAM), notes=notes, clock=Clock())
    run.deliver(UPPER, 1, upper())  # there before anybody missed it: no waiting
    assert not run.advance(lambda *what: None)
    assert notes == [(1, 1.0, 2.0), (2, 3.0, 4.0)]
    assert not run.advance(lambda *what: None)  # still missing, since 5 s
    run.deliver(LOWER, 2, lower())
    assert run.advance(lambda *what: None)
    assert notes[2:] == [(3, 5.0, 6.0), (4, 7.0, 8.0)]


def test_waiting_ends_with_the_piece_that_was_missing_and_no_other() -> None:
    notes: list[Note] = []
    run = NotedRun(load(*PROGRAM), notes=notes, clock=Clock())
    assert not run.advance(lambda *what: None)  # misses the upper piece since 1 s
    run.deliver(LOWER, 2, lower())
    assert notes == []
    run.deliver(UPPER, 1, upper())
    assert notes == [(0, 1.0, 2.0)]
    assert run.advance(lambda *what: None)
    assert [number for number, _, _ in notes] == [0, 1, 2, 4]


def test_noting_changes_no_answer_and_not_the_program_either() -> None:
    loaded = load(Recv(Piece("x", 2, Interval(0, 6)), 1), Run(rows("a", 0, 6), (rows("x", 0, 6),)), Send(
        rows("a", 0, 6), rows("a", 0, 6), 0))  # fmt: skip
    kernels = [step.kernel for step in loaded.steps]
    sent: list[torch.Tensor] = []
    notes: list[Note] = []
    for run in (NotedRun(loaded, notes=notes), NotedRun(loaded, notes=[])):
        run.deliver(rows("x", 0, 6), 1, X)
        assert run.advance(lambda piece, tensor, target: sent.append(tensor))
    assert all(torch.equal(tensor, X.relu()) for tensor in sent)
    assert [number for number, _, _ in notes] == [1, 2]
    assert [step.kernel for step in loaded.steps] == kernels


def test_layers_that_another_step_computes_for_are_not_noted() -> None:
    """As of a chain that an engine computes: its last step does all of it."""

    def regrouped(steps: tuple[Step, ...], *_: object) -> tuple[Step, ...]:
        return (steps[0], replace(steps[1], kernel=None, reads=(), frees=()), *steps[2:])

    loaded = load(*(each for each in PROGRAM if not isinstance(each, Send)), regroup=regrouped)
    notes = list[Note]()
    run = NotedRun(loaded, notes=notes)
    run.deliver(UPPER, 1, upper())
    run.deliver(LOWER, 2, lower())
    assert run.advance(lambda *what: None)
    assert [number for number, _, _ in notes] == [3]
