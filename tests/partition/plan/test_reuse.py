"""Results written over a residual: only where nobody else can see the memory."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from edgedi.partition.capture.capture import capture_model
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Join, Piece, Program, Recv, Run, Send
from edgedi.partition.plan.reuse import overwriting
from edgedi.runtime.execution.reference import InProcess
from tests.plans import axis_plan

SPEC = TensorSpec((1, 4, 6, 6))
X, SKIP, SUM, LAST = map(Piece, ("x", "skip", "sum", "last"))


def conv(name: str, *inputs: str) -> Layer:
    return Layer(name=name, op="conv", inputs=inputs, spec=SPEC, attributes={"residual": len(inputs) == 2})


def graph(*layers: Layer, outputs: tuple[str, ...] = ("last",)) -> LayerGraph:
    return LayerGraph(inputs={"x": SPEC}, layers=layers, outputs=outputs)


RESIDUAL = graph(conv("skip", "x"), conv("other", "x"), conv("sum", "other", "skip"), conv("last", "sum"))
RUNS = (
    Run(SKIP, (X,)),
    Run(Piece("other"), (X,)),
    Run(SUM, (Piece("other"), SKIP)),
    Run(LAST, (SUM,)),
)


def program(*instructions: Recv | Send | Join | Run) -> Program:
    return Program(participant=0, instructions=instructions)


def test_the_last_reader_of_a_convolutions_result_may_write_over_it() -> None:
    assert overwriting(program(Recv(X, HOME), *RUNS, Send(LAST, LAST, HOME)), RESIDUAL) == {SUM}


@pytest.mark.parametrize(
    ("why", "instructions"),
    [
        ("it was received", (Recv(X, HOME), Recv(SKIP, 1), *RUNS[1:])),
        ("it is sent", (Recv(X, HOME), *RUNS[:2], Send(SKIP, SKIP, 1), *RUNS[2:])),
        ("it is sent later", (Recv(X, HOME), *RUNS, Send(SKIP, SKIP, 1))),
        ("it is read later", (Recv(X, HOME), *RUNS, Run(Piece("more"), (SKIP,)))),
        ("it is joined later", (Recv(X, HOME), *RUNS, Join(Piece("more"), (SKIP,)))),
        ("it is what the convolution reads", (Recv(X, HOME), RUNS[0], Run(SUM, (SKIP, SKIP)), RUNS[3])),
        ("a view of it may live", (Recv(X, HOME), RUNS[0], Run(Piece("view"), (SKIP,)), *RUNS[1:])),
    ],
)
def test_it_may_not_where(why: str, instructions: tuple[Recv | Send | Join | Run, ...]) -> None:
    view = Layer(name="view", op="reshape", inputs=("skip",), spec=SPEC)
    known = graph(*RESIDUAL.layers, conv("more", "skip"), view)
    assert overwriting(program(*instructions), known) == set(), why


def test_an_output_of_the_graph_stays() -> None:
    known = graph(*RESIDUAL.layers, outputs=("last", "skip"))
    assert overwriting(program(Recv(X, HOME), *RUNS), known) == set()


def test_a_part_of_the_input_is_not_ours() -> None:
    known = graph(conv("other", "x"), conv("sum", "other", "x"), conv("last", "sum"))
    runs = (Run(Piece("other"), (X,)), Run(SUM, (Piece("other"), X)), Run(LAST, (SUM,)))
    assert overwriting(program(Recv(X, HOME), *runs), known) == set()


def test_a_joined_residual_is_ours() -> None:
    parts = Piece("skip", 2, Interval(0, 3)), Piece("skip", 2, Interval(3, 6))
    join = Join(SKIP, parts)
    assert overwriting(program(Recv(X, HOME), *(Recv(p, 1) for p in parts), join, *RUNS[1:]), RESIDUAL) == {SUM}


class Bottleneck(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.body = nn.ModuleList(
            nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 8, 1))
            for _ in range(3)
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x))
        for body in self.body:
            x = torch.relu(body(x) + x)
        return x


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_answers_stay_the_models_own_and_blocks_do_overwrite(num_workers: int) -> None:
    torch.manual_seed(0)
    model, x = Bottleneck().eval(), torch.randn(1, 3, 23, 17)
    capture = capture_model(model, (x,))
    programs = lower(axis_plan(capture.graph, num_workers, "rows", depth=2), capture.graph)
    counts = {k: len(overwriting(p, capture.graph)) for k, p in programs.programs.items()}
    each = 3 if num_workers == 1 else 2  # of a split plan, one residual is sent to the neighbours first
    assert counts == {HOME: 0, **dict.fromkeys(range(num_workers), each)}
    run = InProcess(capture, programs, fast=True)  # two are its residual's last readers
    with torch.inference_mode():
        own = model(x)
    for _ in range(2):  # a second request starts from memory of its own
        assert (run(x) - own).abs().max() <= 2e-5 * own.abs().max()
