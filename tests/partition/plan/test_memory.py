"""How much memory a program's maps take, against a walk that looks ahead for every piece at every instruction."""

from __future__ import annotations

import pytest

from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile, LinkProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import ITEM_BYTES, Layer, LayerGraph, TensorSpec
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.memory import piece_bytes, program_bytes, reads
from edgedi.partition.plan.program import Join, Piece, Program, Recv, Run, Send
from edgedi.partition.planners.by_name import plan, planners
from tests.partition import graphs


def slow_program_bytes(program: Program, graph: LayerGraph) -> int:
    """At each instruction: every piece that has been made and that this or a later one still touches."""
    most, instructions = 0, program.instructions
    for index in range(len(instructions)):
        made = {i.piece for i in instructions[: index + 1] if not isinstance(i, Send)}
        wanted = {piece for i in instructions[index:] for piece in (*reads(i), i.piece)}
        most = max(most, sum(piece_bytes(piece, graph) for piece in made & wanted))
    return most


def chain() -> LayerGraph:
    spec = TensorSpec((1, 2, 8, 4))  # 256 bytes; a row of it 32
    layers = tuple(
        Layer(name=name, op="relu", inputs=(source,), spec=spec)
        for source, name in (("x", "a"), ("a", "b"), ("b", "c"))
    )
    return LayerGraph(inputs={"x": spec}, layers=layers, outputs=("c",))


def test_bytes_of_a_piece() -> None:
    graph = chain()
    assert piece_bytes(Piece("a"), graph) == 256
    assert piece_bytes(Piece("a", 2, Interval(3, 5)), graph) == 64
    assert piece_bytes(Piece("a", 1, Interval(0, 1)), graph) == 128
    for dtype, size in ITEM_BYTES.items():
        other = LayerGraph(inputs={"x": TensorSpec((3, 5), dtype)}, layers=(), outputs=("x",))
        assert piece_bytes(Piece("x"), other) == 15 * size
        assert piece_bytes(Piece("x", 0, Interval(1, 2)), other) == 5 * size


def test_a_chain_holds_two_maps_at_a_time() -> None:
    run = tuple(Run(Piece(name), (Piece(source),)) for source, name in (("x", "a"), ("a", "b"), ("b", "c")))
    program = Program(participant=0, instructions=(Recv(Piece("x"), -1), *run, Send(Piece("c"), Piece("c"), -1)))
    assert program_bytes(program, chain()) == (512, "a")


def test_a_map_that_is_wanted_later_stays() -> None:
    rows = Piece("x", 2, Interval(0, 8))
    program = Program(
        participant=0,
        instructions=(
            Recv(rows, -1), Run(Piece("a"), (rows,)), Run(Piece("b"), (Piece("a"),)), Run(Piece("c"), (Piece("b"),)),
            Join(Piece("x"), (rows,)), Send(Piece("c"), Piece("c"), -1),
        ),
    )  # fmt: skip
    peak, layer = program_bytes(program, chain())
    assert (peak, layer) == (768, "b")
    assert peak == slow_program_bytes(program, chain())


def test_an_idle_program_holds_nothing() -> None:
    assert program_bytes(Program(participant=1, instructions=()), chain()) == (0, "")


GRAPHS = [graphs.chain(), graphs.residual(), graphs.concat(), graphs.with_opaque(), graphs.resnet50(64, (1, 2, 1, 1))]


@pytest.mark.parametrize("planner", planners())
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_every_lowered_program_holds_what_the_slow_walk_says(planner: str, count: int) -> None:
    device = DeviceProfile(name="d", fingerprint="d", layers={}, seconds_per_flop=1e-9, seconds_per_layer=1e-6)
    cluster = ClusterProfile(
        devices=(device,) * count, link=LinkProfile(latency_s=1e-6, bytes_per_s=1e10, message_cpu_s=1e-7)
    )
    for graph in GRAPHS:
        for program in lower(plan(graph, cluster, planner=planner), graph).programs.values():
            peak, layer = program_bytes(program, graph)
            assert peak == slow_program_bytes(program, graph)
            assert (layer == "") == (peak == 0)
