"""Walking a program: pieces in any order, nothing kept longer than needed, joins and cuts of neighbouring rows."""

from __future__ import annotations

import itertools

import pytest
import torch

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Join, Piece, Program, Recv, Run, Send
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun, Regroup

SPEC = TensorSpec((1, 2, 6, 3))
X = torch.randn(SPEC.shape, generator=torch.Generator().manual_seed(0))


def relu(name: str, source: str) -> Layer:
    return Layer(
        name=name, op="unary", inputs=(source,), spec=SPEC, attributes={"function": "relu", "arguments": ()}
    )  # fmt: skip


GRAPH = LayerGraph(inputs={"x": SPEC}, layers=(relu("a", "x"), relu("b", "a")), outputs=("b",))


def rows(tensor: str, start: int, stop: int) -> Piece:
    return Piece(tensor, 2, Interval(start, stop))


def load(
    *instructions: Recv | Send | Join | Run, participant: int = 0, regroup: Regroup | None = None
) -> LoadedProgram:
    program = Program(participant=participant, instructions=instructions)
    return LoadedProgram(program, GRAPH, lambda name, cut: pytest.fail("no layer here has weights"), regroup=regroup)


def test_pieces_arrive_in_any_order_and_a_run_waits_for_what_is_missing() -> None:
    parts = [rows("x", 0, 2), rows("x", 2, 5), rows("x", 5, 6)]
    loaded = load(
        *(Recv(part, 1) for part in parts), Join(rows("x", 0, 6), tuple(parts)),
        Run(rows("a", 0, 6), (rows("x", 0, 6),)), Send(rows("a", 1, 3), rows("a", 0, 6), 1),
    )  # fmt: skip
    sent: list[tuple[Piece, torch.Tensor, int]] = []
    for order in itertools.permutations(parts):
        run = ProgramRun(loaded)
        for part in order:
            done = run.advance(lambda *what: sent.append(what))
            assert not done
            assert run.current_layer == "x"
            run.deliver(part, 1, X.narrow(2, part.interval.start, len(part.interval)))
        assert run.advance(lambda *what: sent.append(what))
        piece, tensor, target = sent.pop()
        assert not sent
        assert (piece, target) == (rows("a", 1, 3), 1)
        assert torch.equal(tensor, X.relu()[:, :, 1:3])
        assert run.current_layer is None
        assert run.can_advance


def test_a_piece_of_another_source_is_not_what_is_waited_for() -> None:
    run = ProgramRun(load(Recv(Piece("x"), 1)))
    run.deliver(Piece("x"), 2, X)
    assert not run.can_advance
    assert not run.advance(lambda *what: None)
    run.deliver(Piece("x"), 1, X)
    assert run.advance(lambda *what: None)


def test_overlapping_pieces_are_joined_once() -> None:
    first, second = rows("x", 0, 4), rows("x", 2, 6)
    loaded = load(
        Recv(first, 1),
        Recv(second, 1),
        Join(rows("x", 0, 6), (first, second)),
        Send(rows("x", 0, 6), rows("x", 0, 6), 1),
    )
    run, sent = ProgramRun(loaded), []
    run.deliver(first, 1, X[:, :, :4])
    run.deliver(second, 1, X[:, :, 2:])
    assert run.advance(lambda piece, tensor, target: sent.append(tensor))
    assert torch.equal(sent[0], X)


def test_requests_of_one_program_do_not_see_each_other() -> None:
    loaded = load(Recv(Piece("x"), 1), Run(Piece("a"), (Piece("x"),)), Send(Piece("a"), Piece("a"), 1))
    first, second, sent = ProgramRun(loaded), ProgramRun(loaded), []
    first.deliver(Piece("x"), 1, X)
    assert not second.can_advance
    second.deliver(Piece("x"), 1, -X)
    for run in (second, first):
        assert run.advance(lambda piece, tensor, target: sent.append(tensor))
    assert torch.equal(sent[0], (-X).relu())
    assert torch.equal(sent[1], X.relu())


def test_maps_are_freed_after_their_last_use() -> None:
    loaded = load(
        Recv(Piece("x"), 1),
        Run(Piece("a"), (Piece("x"),)),
        Run(Piece("b"), (Piece("a"),)),
        Send(Piece("b"), Piece("b"), 1),
    )
    run, alive = ProgramRun(loaded), []
    run.deliver(Piece("x"), 1, X)
    assert run.advance(lambda *what: alive.append(sum(value is not None for value in run._values)))
    assert alive == [1]


def test_the_coordinator_finds_inputs_and_outputs_by_name() -> None:
    loaded = load(Run(Piece("a"), (Piece("x"),)), Run(Piece("b"), (Piece("a"),)), participant=HOME)
    run = ProgramRun(loaded, {"x": X})
    assert run.advance(lambda *what: None)
    assert torch.equal(run.output("b"), X.relu())
    with pytest.raises(KeyError):
        run.output("a")


def test_whoever_watches_sees_every_computed_piece() -> None:
    loaded = load(Recv(Piece("x"), 1), Run(Piece("a"), (Piece("x"),)), Run(Piece("b"), (Piece("a"),)))
    seen: list[Piece] = []
    loaded.watch = lambda piece, tensor: seen.append(piece)
    run = ProgramRun(loaded)
    run.deliver(Piece("x"), 1, X)
    assert run.advance(lambda *what: None)
    assert seen == [Piece("a"), Piece("b")]


def test_an_error_stays_at_its_layer() -> None:
    loaded = load(
        Recv(rows("x", 0, 2), 1), Recv(rows("x", 2, 4), 1), Join(rows("x", 0, 4), (rows("x", 0, 2), rows("x", 2, 4)))
    )
    run = ProgramRun(loaded)
    run.deliver(rows("x", 0, 2), 1, X[:, :, :2])
    run.deliver(rows("x", 2, 4), 1, X[:, :1, 2:4])
    with pytest.raises(RuntimeError, match="Sizes of tensors must match"):
        run.advance(lambda *what: None)
    assert run.current_layer == "x"
