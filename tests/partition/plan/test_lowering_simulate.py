"""Programs do what the plan says, and a dry-run catches every way that we know of to break them."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedi.errors import PlanError
from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import flops
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.plan.program import Instruction, Join, Piece, Program, ProgramSet, Recv, Run, Send
from edgedi.partition.plan.simulate import simulate, split_flops
from tests.partition.graphs import Builder, chain, concat, graphs, residual, with_opaque
from tests.plans import random_plan


def rows(graph: LayerGraph, start: int, stop: int, *shares: tuple[int, int]) -> Segment:
    return Segment(
        layers=Interval(start, stop), axis="rows", length=shares[-1][1], shares=tuple(Interval(*s) for s in shares)
    )


def two_segments() -> ProgramSet:
    """Two convolutions on two workers: scatter, a halo row each way, gather."""
    b = Builder(1, 1, 8, 4)
    graph = b.graph(b.conv(b.conv("x", 1, name="a"), 1, name="b"))
    shares = (0, 4), (4, 8)
    return lower(Plan(num_workers=2, segments=(rows(graph, 0, 1, *shares), rows(graph, 1, 2, *shares))), graph)


def reduction() -> ProgramSet:
    """A convolution and a sum over its rows on two workers, the total on worker 0."""
    b = Builder(1, 1, 8, 4)
    total = b.mean(b.conv("x", 1, name="a"))
    graph = b.graph(total)
    whole = Segment(layers=Interval(2, 3), axis="whole", on=0)
    return lower(Plan(num_workers=2, segments=(rows(graph, 0, 2, (0, 4), (4, 8)), whole)), graph)


def change(programs: ProgramSet, worker: int, edit: Callable[[list[Instruction]], None]) -> ProgramSet:
    instructions = list(programs.programs[worker].instructions)
    edit(instructions)
    changed = Program(participant=worker, instructions=tuple(instructions))
    return replace(programs, programs={**programs.programs, worker: changed})


def find(instructions: list[Instruction], text: str) -> int:
    return next(k for k, instruction in enumerate(instructions) if str(instruction).startswith(text))


def drop(text: str) -> Callable[[list[Instruction]], None]:
    return lambda instructions: instructions.__delitem__(find(instructions, text))


def put(text: str, new: Callable[[Instruction], Instruction]) -> Callable[[list[Instruction]], None]:
    def edit(instructions: list[Instruction]) -> None:
        place = find(instructions, text)
        instructions[place] = new(instructions[place])

    return edit


def test_programs_by_hand() -> None:
    assert str(two_segments().programs[0]).splitlines() == [
        "program 0",
        "RECV x@2[0:5] from home",
        "RUN a@2[0:4] <- x@2[0:5]",
        "SEND a@2[3:4] of a@2[0:4] to 1",
        "RECV a@2[4:5] from 1",
        "JOIN a@2[0:5] <- a@2[0:4] a@2[4:5]",
        "RUN b@2[0:4] <- a@2[0:5]",
        "SEND b@2[0:4] of b@2[0:4] to home",
    ]
    assert str(reduction().programs[1]).splitlines()[-2:] == [
        "RUN partial1@0[1:2] <- a@2[4:8] over 2[4:8]",
        "SEND partial1@0[1:2] of partial1@0[1:2] to 0",
    ]


def test_a_simulation_counts_bytes_messages_and_work() -> None:
    programs = two_segments()
    seen = simulate(programs)
    assert seen.bytes_per_link == {(HOME, 0): 80, (HOME, 1): 80, (0, 1): 16, (1, 0): 16, (0, HOME): 64, (1, HOME): 64}
    assert set(seen.messages_per_link.values()) == {1}
    graph = programs.graph
    assert sum(seen.flops.values()) == sum(flops(layer, graph.input_shapes(layer)) for layer in graph.layers)
    assert split_flops(graph, programs, frozenset({"conv"})) == 1.0


def send_late(instructions: list[Instruction]) -> None:
    """The halo leaves only after the neighbour's has come."""
    place = find(instructions, "SEND a")
    instructions.insert(place + 1, instructions.pop(place))


def shrink(instruction: Instruction) -> Instruction:
    assert isinstance(instruction, Join)
    return Join(instruction.piece, instruction.sources[:-1])


def narrow(instruction: Instruction) -> Instruction:
    assert isinstance(instruction, Run)
    return replace(instruction, inputs=(Piece("a", 2, Interval(0, 4)),))


def wrong_rows(instruction: Instruction) -> Instruction:
    assert isinstance(instruction, Send)
    return replace(instruction, piece=Piece("a", 2, Interval(2, 3)))


def not_owned(instruction: Instruction) -> Instruction:
    assert isinstance(instruction, Send)
    return replace(instruction, piece=Piece("a", 2, Interval(4, 5)))


def over(start: int, stop: int) -> Callable[[Instruction], Instruction]:
    def edit(instruction: Instruction) -> Instruction:
        assert isinstance(instruction, Run)
        return replace(instruction, over=Region(2, Interval(start, stop)))

    return edit


def to_nobody(instruction: Instruction) -> Instruction:
    assert isinstance(instruction, Send)
    return replace(instruction, target=7)


@pytest.mark.parametrize(
    ("worker", "edit", "message"),
    [
        (0, drop("RECV a"), "not held"),
        (0, drop("RECV x"), "not held"),
        (1, drop("SEND a"), "deadlock: 0"),
        (0, drop("SEND b"), "deadlock: home"),
        (HOME, drop("SEND x"), "deadlock"),
        (HOME, drop("RECV b"), "not held"),
        (HOME, drop("JOIN b"), "does not end with all of b"),
        (0, drop("RUN a"), "not held"),
        (0, drop("JOIN a"), "not held"),
        (0, put("JOIN a", shrink), "nothing covers 4:5"),
        (0, put("RUN b", narrow), "needs 0:5 along dimension 2 of a"),
        (0, put("SEND a", wrong_rows), "deadlock"),
        (0, put("SEND a", not_owned), "does not hold it"),
        (0, put("SEND a", to_nobody), "no such other participant"),
        (0, lambda instructions: instructions.append(instructions[2]), "never received"),
        (0, lambda instructions: instructions.append(Recv(Piece("b", 2, Interval(4, 8)), 1)), "deadlock: 0"),
        (0, lambda instructions: instructions.append(Run(Piece("c"), ())), "no such layer"),
        (0, put("RUN b", lambda run: replace(run, inputs=())), "0 inputs for 1"),
        (0, put("RUN b", lambda run: replace(run, inputs=(Piece("x", 2, Interval(0, 5)),))), "where the layer reads a"),
    ],
)
def test_a_broken_program_is_caught(worker: int, edit: Callable[[list[Instruction]], None], message: str) -> None:
    programs = two_segments()
    simulate(programs)
    with pytest.raises(PlanError, match=message) as caught:
        simulate(change(programs, worker, edit))
    assert "program home" in str(caught.value), "the error prints the grid"
    if not message.startswith(("never", "does not end")):
        assert ">>" in str(caught.value), "and marks where every participant stands"


def test_two_workers_that_wait_for_each_other_are_a_deadlock() -> None:
    programs = change(change(two_segments(), 0, send_late), 1, send_late)
    with pytest.raises(PlanError, match="deadlock"):
        simulate(programs)


def test_one_late_sender_is_not() -> None:
    simulate(change(two_segments(), 0, send_late))


@pytest.mark.parametrize(
    ("start", "stop", "message"),
    [(3, 8, "hole or overlap|needs"), (5, 8, "hole or overlap at 4"), (4, 7, "end at 7")],
)
def test_parts_of_a_reduction_cover_everything_once(start: int, stop: int, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        simulate(change(reduction(), 1, put("RUN partial", over(start, stop))))


def test_overlapping_parts_are_caught_even_when_their_rows_are_held() -> None:
    """Worker 1 holds rows 3:8 for a later halo; adding row 3 up as well would count it twice."""
    programs = change(reduction(), 0, put("RUN partial", over(0, 3)))
    programs = change(programs, 1, put("RUN partial", over(4, 8)))
    with pytest.raises(PlanError, match="hole or overlap at 3"):
        simulate(programs)


def test_a_part_is_added_up_once() -> None:
    programs = change(reduction(), 0, lambda lines: lines.insert(3, lines[find(lines, "RUN partial")]))
    with pytest.raises(PlanError, match="added up twice"):
        simulate(programs)


def test_a_reduction_is_not_combined_in_the_segment_that_makes_its_parts() -> None:
    b = Builder(1, 1, 8, 4)
    graph = b.graph(b.mean(b.conv("x", 1)))
    with pytest.raises(PlanError, match="end the segment at it"):
        lower(Plan(num_workers=2, segments=(rows(graph, 0, 3, (0, 4), (4, 8)),)), graph)


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_plan_lowers_and_simulates(graph: LayerGraph, num_workers: int, rng: random.Random) -> None:
    programs = lower(random_plan(graph, num_workers, rng), graph)
    assert min(simulate(programs).flops.values(), default=0) >= 0


@settings(max_examples=200, deadline=None)
@given(graphs(), st.integers(2, 4), st.randoms(use_true_random=False), st.data())
def test_no_send_or_receive_can_be_spared(
    graph: LayerGraph, num_workers: int, rng: random.Random, data: st.DataObject
) -> None:
    programs = lower(random_plan(graph, num_workers, rng), graph)
    lines = [
        (who, place)
        for who, program in programs.programs.items()
        for place, instruction in enumerate(program.instructions)
        if isinstance(instruction, (Send, Recv))
    ]
    if not lines:
        return
    who, place = data.draw(st.sampled_from(lines))
    with pytest.raises(PlanError):
        simulate(change(programs, who, lambda instructions: instructions.pop(place)))


@pytest.mark.parametrize(
    "graph", [chain(), residual(), concat(), with_opaque()], ids=("chain", "residual", "concat", "opaque")
)
def test_more_workers_than_rows(graph: LayerGraph) -> None:
    for seed in range(20):
        simulate(lower(random_plan(graph, 30, random.Random(seed)), graph))


def test_who_has_every_layer_answers_alone_and_nobody_else_does() -> None:
    graph = residual()
    everything = Segment(layers=Interval(0, len(graph.layers)), axis="whole", on=1)
    whole = lower(Plan(num_workers=2, segments=(everything,)), graph)
    assert [whole.answers_alone(worker) for worker in (0, 1)] == [False, True]
    for worker in (0, 1):
        assert not two_segments().answers_alone(worker)


def test_who_waits_for_an_opaque_layer_does_not_answer_alone() -> None:
    for seed in range(20):
        assert not lower(random_plan(with_opaque(), 1, random.Random(seed)), with_opaque()).answers_alone(0)
