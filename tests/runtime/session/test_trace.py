"""From notes to spans to JSON: clocks compared, instructions named, segments found; no clock and no process here."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.errors import RemoteProtocolError
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.plan.program import Join, Piece, Program, Recv, Run, Send
from edgedi.runtime.session.trace import (
    KINDS,
    ClockOffset,
    RequestTrace,
    Span,
    clock_offset,
    describe,
    instruction_segments,
    spans_of,
    trace_json,
)
from tests.partition.graphs import Builder
from tests.plans import random_plan


def rows(tensor: str, start: int, stop: int) -> Piece:
    return Piece(tensor, 2, Interval(start, stop))


PROGRAM = Program(
    participant=1,
    instructions=(
        Recv(rows("x", 3, 6), HOME),
        Run(rows("a", 3, 6), (rows("x", 3, 6),)),
        Send(rows("a", 3, 4), rows("a", 3, 6), 0),
        Join(rows("a", 2, 6), (rows("a", 2, 3), rows("a", 3, 6))),
    ),
)


def span(**changes: object) -> Span:
    values = {
        "participant": 0,
        "kind": "compute",
        "name": "a",
        "segment": 0,
        "start_s": 1.0,
        "stop_s": 2.0,
        "request": 7,
    }
    return Span(**(values | changes))  # type: ignore[arg-type]  # the test changes any of them


# --- spans -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "kind", "name"),
    [
        (0, "wait", "x@2[3:6] from home"),
        (1, "compute", "a@2[3:6]"),
        (2, "send", "a@2[3:4] to 0"),
        (3, "compute", "join a@2[2:6]"),
    ],
)
def test_an_instruction_says_what_its_span_is(number: int, kind: str, name: str) -> None:
    assert describe(PROGRAM.instructions[number]) == (kind, name)


def test_spans_are_in_order_and_count_from_the_beginning_of_the_request() -> None:
    notes = [(1, 103.0, 104.5), (0, 101.0, 102.0)]
    found = spans_of(PROGRAM, notes, (0, 0, 0, 1), request=7, began_s=100.0)
    assert found == (
        span(participant=1, kind="wait", name="x@2[3:6] from home", start_s=1.0, stop_s=2.0),
        span(participant=1, kind="compute", name="a@2[3:6]", start_s=3.0, stop_s=4.5),
    )


def test_a_worker_cannot_name_an_instruction_that_is_not_there() -> None:
    with pytest.raises(RemoteProtocolError, match="participant 1 noted instruction 4 of a program of 4"):
        spans_of(PROGRAM, [(4, 0.0, 1.0)], (0, 0, 0, 0), request=0, began_s=0.0)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"kind": "sleep"}, "kind 'sleep': accepted are compute, send, wait"),
        ({"stop_s": 0.5}, "before it starts at 1.0"),
    ],
)
def test_a_span_checks_itself(changes: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        span(**changes)


# --- segments --------------------------------------------------------------------------------------------------------


def chain() -> Builder:
    return Builder(1, 4, 12, 12)


def test_segments_of_instructions_by_hand() -> None:
    made = chain()
    last = made.conv(made.conv("x", 4, name="a"), 4, name="b")
    graph = made.graph(last)
    halves = (Interval(0, 6), Interval(6, 12))
    plan = Plan(
        num_workers=2,
        segments=tuple(Segment(layers=Interval(k, k + 1), axis="rows", length=12, shares=halves) for k in range(2)),
        graph_digest=graph.digest,
    )
    programs = lower(plan, graph).programs
    found = [
        (str(i).partition(" ")[0], segment)
        for i, segment in zip(programs[0].instructions, instruction_segments(programs[0], graph, plan), strict=True)
    ]
    assert found == [("RECV", 0), ("RUN", 0), ("SEND", 0), ("RECV", 1), ("JOIN", 1), ("RUN", 1), ("SEND", 1)]
    home = instruction_segments(programs[HOME], graph, plan)
    assert [segment for i, segment in zip(programs[HOME].instructions, home, strict=True) if isinstance(i, Send)] == [
        0,
        0,
    ]
    assert home[-1] == 1


@given(seed=st.integers(0, 10_000), num_workers=st.integers(1, 4))
def test_every_instruction_has_a_segment_and_runs_have_their_layers(seed: int, num_workers: int) -> None:
    made = chain()
    x = made.conv("x", 4)
    graph = made.graph(made.conv(made.conv(x, 4, plus=x), 4, stride=2))
    plan = random_plan(graph, num_workers, random.Random(seed))
    for program in lower(plan, graph).programs.values():
        segments = instruction_segments(program, graph, plan)
        assert len(segments) == len(program.instructions)
        for instruction, segment in zip(program.instructions, segments, strict=True):
            layers = plan.segments[segment].layers
            if isinstance(instruction, Run):
                assert layers.start <= graph.position[instruction.piece.tensor] < layers.stop


# --- clocks ----------------------------------------------------------------------------------------------------------


def test_the_shortest_round_trip_decides() -> None:
    assert clock_offset([(0.0, 1005.0, 2.0), (10.0, 1010.25, 10.5), (20.0, 1020.0, 29.0)]) == ClockOffset(
        ahead_s=1000.0, error_s=0.25
    )


@given(
    ahead_s=st.floats(-1e5, 1e5),
    trips=st.lists(st.tuples(st.floats(0, 1e4), st.floats(0, 0.1), st.floats(0, 0.1)), min_size=1, max_size=10),
)
def test_the_true_offset_is_within_the_stated_error(ahead_s: float, trips: list[tuple[float, float, float]]) -> None:
    readings = [(asked, asked + there + ahead_s, asked + there + back) for asked, there, back in trips]
    found = clock_offset(readings)
    assert abs(found.ahead_s - ahead_s) <= max(found.error_s, min(there + back for _, there, back in trips)) + 1e-9


@given(st.floats(0, 1e5), st.floats(0, 0.1), st.floats(0, 0.1))
def test_a_shared_clock_is_taken_as_it_is(asked_s: float, there_s: float, back_s: float) -> None:
    readings = [(asked_s, asked_s + there_s, asked_s + there_s + back_s)]
    assert clock_offset(readings) == ClockOffset(ahead_s=0.0, error_s=0.0)


# --- JSON ------------------------------------------------------------------------------------------------------------


def test_the_trace_is_what_perfetto_reads() -> None:
    spans = (
        span(start_s=0.001, stop_s=0.0025, segment=2),
        span(participant=HOME, kind="wait", name="a from 0", start_s=0.0, stop_s=0.003),
    )
    trace = RequestTrace(spans=spans, names={HOME: "home", 0: "0:pi"}, clock_error_s={HOME: 0.0, 0: 2e-4})
    read = json.loads(trace_json(trace))
    assert set(read) == {"traceEvents", "displayTimeUnit", "otherData"}
    assert read["otherData"]["clock_error_s"] == {"home": 0.0, "0:pi": 2e-4}
    events = [event for event in read["traceEvents"] if event["ph"] == "X"]
    assert events == [
        {
            "ph": "X", "pid": 1, "tid": 0, "cat": "compute", "name": "a", "ts": 1000.0, "dur": pytest.approx(1500.0),
            "args": {"kind": "compute", "segment": 2, "request": 7},
        },
        {
            "ph": "X", "pid": 0, "tid": 0, "cat": "wait", "name": "wait a from 0", "ts": 0.0, "dur": 3000.0,
            "args": {"kind": "wait", "segment": 0, "request": 7},
        },
    ]  # fmt: skip
    names = {event["pid"]: event["args"]["name"] for event in read["traceEvents"] if event["name"] == "process_name"}
    assert names == {0: "home", 1: "0:pi"}
    assert {event["cat"] for event in events} <= set(KINDS)
