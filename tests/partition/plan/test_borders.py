"""Borders first: the same work and the same messages, the border ready before the rest."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.borders import borders, with_borders_first
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.memory import program_bytes
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.plan.program import Program, ProgramSet, Recv, Send
from edgedi.partition.plan.simulate import simulate
from tests.partition.graphs import Builder, graphs, vgg16
from tests.plans import axis_plan, lower_borders_first, random_plan


def rows(start: int, stop: int, *cuts: int) -> Segment:
    shares = tuple(Interval(a, b) for a, b in zip((0, *cuts), cuts, strict=False))
    return Segment(layers=Interval(start, stop), axis="rows", length=cuts[-1], shares=shares)


def lines(programs: ProgramSet, worker: int) -> list[str]:
    return str(programs.programs[worker]).splitlines()


def test_a_border_is_made_and_sent_before_the_rest() -> None:
    b = Builder(1, 1, 12, 4)
    graph = b.graph(b.conv(b.conv("x", 1, name="a"), 1, name="b"))
    plan = Plan(num_workers=3, segments=(rows(0, 1, 4, 8, 12), rows(1, 2, 4, 8, 12)))
    assert lines(lower_borders_first(plan, graph), 1) == [
        "program 1",
        "RECV x@2[3:9] from home",
        "RUN a@2[4:5] <- x@2[3:9]",
        "RUN a@2[7:8] <- x@2[3:9]",
        "SEND a@2[4:5] of a@2[4:5] to 0",
        "SEND a@2[7:8] of a@2[7:8] to 2",
        "RUN a@2[5:7] <- x@2[3:9]",
        "RECV a@2[3:4] from 0",
        "RECV a@2[8:9] from 2",
        "JOIN a@2[3:9] <- a@2[3:4] a@2[4:5] a@2[5:7] a@2[7:8] a@2[8:9]",
        "RUN b@2[4:8] <- a@2[3:9]",
        "SEND b@2[4:8] of b@2[4:8] to home",
    ]


def pooled() -> tuple[LayerGraph, Plan]:
    """Convolution and pooling, then a convolution that wants a row of the pooled."""
    b = Builder(1, 1, 16, 4)
    pooled = b.max_pool(b.conv("x", 1, name="a"))
    graph = b.graph(b.conv(pooled, 1, name="b"))
    return graph, Plan(num_workers=2, segments=(rows(0, 2, 4, 8), rows(2, 3, 4, 8)))


def test_what_is_read_by_the_layer_alone_is_made_in_the_same_parts() -> None:
    graph, plan = pooled()
    shallow, deep = next(iter(borders(lower(plan, graph).programs[0], graph)))
    assert [str(run) for run in shallow.rest] == ["RUN max_pool1@2[0:3] <- a@2[0:8]"]
    assert [str(run) for run in deep.rest] == ["RUN a@2[0:6] <- x@2[0:9]", "RUN max_pool1@2[0:3] <- a@2[0:6]"]
    assert [str(run) for run in deep.wholes] == ["RUN a@2[0:8] <- x@2[0:9]", "RUN max_pool1@2[0:4] <- a@2[0:8]"]
    assert [line for line in lines(lower_borders_first(plan, graph), 0) if not line.startswith("RECV")] == [
        "program 0",
        "RUN a@2[6:8] <- x@2[0:9]",
        "RUN max_pool1@2[3:4] <- a@2[6:8]",
        "SEND max_pool1@2[3:4] of max_pool1@2[3:4] to 1",
        "RUN a@2[0:6] <- x@2[0:9]",
        "RUN max_pool1@2[0:3] <- a@2[0:6]",
        "JOIN max_pool1@2[0:5] <- max_pool1@2[0:3] max_pool1@2[3:4] max_pool1@2[4:5]",
        "RUN b@2[0:4] <- max_pool1@2[0:5]",
        "SEND b@2[0:4] of b@2[0:4] to home",
    ]


def test_overlapping_windows_are_not_computed_twice() -> None:
    b = Builder(1, 1, 12, 4)
    graph = b.graph(b.conv(b.conv(b.conv("x", 1, name="a"), 1, name="b"), 1, name="c"))
    plan = Plan(num_workers=2, segments=(rows(0, 2, 6, 12), rows(2, 3, 6, 12)))
    (ways,) = borders(lower(plan, graph).programs[0], graph)
    assert [[str(run.piece) for run in way.wholes] for way in ways] == [["b@2[0:6]"]]


def test_what_is_read_whole_as_well_stays_whole() -> None:
    """A residual: the map is joined for a convolution, and read as it is by the addition in another segment."""
    b = Builder(1, 1, 12, 4)
    a = b.conv("x", 1, name="a")
    graph = b.graph(b.binary(b.conv(a, 1, name="b"), a))
    plan = Plan(num_workers=2, segments=(rows(0, 1, 6, 12), rows(1, 2, 6, 12), rows(2, 3, 6, 12)))
    program = lower(plan, graph).programs[0]
    assert any(isinstance(i, Send) and i.target != HOME for i in program.instructions)
    assert list(borders(program, graph)) == []


@pytest.mark.parametrize("cuts", [(1, 12), (2, 12)])
def test_a_share_that_is_all_border_is_made_at_once(cuts: tuple[int, ...]) -> None:
    b = Builder(1, 1, 12, 4)
    graph = b.graph(b.conv(b.conv("x", 1, name="a"), 1, name="b", kernel=5))
    plan = Plan(num_workers=2, segments=(rows(0, 1, *cuts), rows(1, 2, *cuts)))
    assert list(borders(lower(plan, graph).programs[0], graph)) == []
    assert len(list(borders(lower(plan, graph).programs[1], graph))) == 1


def sends_and_work(program: Program) -> list[tuple[str, int]]:
    return sorted((str(i.piece), i.target) for i in program.instructions if isinstance(i, Send))


def check_same_but_earlier(plan: Plan, graph: LayerGraph) -> None:
    plain, first = lower(plan, graph), lower_borders_first(plan, graph)
    before, after = simulate(plain), simulate(first)
    assert (after.bytes_per_link, after.messages_per_link) == (before.bytes_per_link, before.messages_per_link)
    assert after.flops == pytest.approx(before.flops)
    for who, program in plain.programs.items():
        assert sends_and_work(first.programs[who]) == sends_and_work(program)
        received = [[str(i) for i in p.instructions if isinstance(i, Recv)] for p in (program, first.programs[who])]
        assert received[0] == received[1]
        for ways in borders(program, graph):
            assert [len(way.wholes) for way in ways] == list(range(1, len(ways) + 1))
            for way in ways:
                made = with_borders_first(program, [way]).instructions
                last_send = max(made.index(i) for i in way.instructions if isinstance(i, Send))
                assert all(made.index(run) > last_send for run in way.rest)
                assert len(way.rest) == len(way.wholes)


@settings(max_examples=80, deadline=None)
@given(graphs(), st.integers(2, 4), st.sampled_from(("rows", "columns")), st.integers(1, 4))
def test_the_same_work_and_messages(graph: LayerGraph, workers: int, axis: str, depth: int) -> None:
    check_same_but_earlier(axis_plan(graph, workers, axis, depth=depth), graph)


@settings(max_examples=80, deadline=None)
@given(graphs(), st.integers(1, 4), st.integers(0, 10**6))
def test_the_same_work_and_messages_of_any_plan(graph: LayerGraph, workers: int, seed: int) -> None:
    check_same_but_earlier(random_plan(graph, workers, random.Random(seed)), graph)


def test_memory_stays_what_it_was() -> None:
    graph = vgg16(112)
    plan = axis_plan(graph, 4, depth=2)
    plain, first = lower(plan, graph), lower_borders_first(plan, graph)
    assert sum(len(list(borders(program, graph))) for program in plain.programs.values()) > 10
    for worker in range(4):
        before, after = (program_bytes(programs.programs[worker], graph)[0] for programs in (plain, first))
        assert after <= 1.1 * before
