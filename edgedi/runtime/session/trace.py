"""Traces: what every participant of a request did, and when, as spans of one clock; JSON that Perfetto opens.

Participants note the number of an instruction and when it started and stopped by their own clocks (``noting``). The
programs say what each instruction is, so neither names nor kinds travel, and a worker cannot put words into a trace.

Clocks are compared by round trips: where a worker's clock was read between ``asked_s`` and ``heard_s``, it is ahead by
the reading less the middle of the two, give or take half the trip. The shortest trip of several is taken. Workers on
one machine share a clock with the coordinator: one that reads as ours could have at that moment is taken as ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from edgedi.errors import RemoteProtocolError
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import Instruction, Join, Program, Recv, Run, Send, participant_name

KINDS = ("compute", "send", "wait")
"""What a participant can do. Waiting is the time between missing a piece and its arrival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that a participant did from ``start_s`` to ``stop_s``, seconds since its request began.

    Participants are numbered as in plans, ``HOME`` (-1) is the coordinator. ``name`` says which piece of which layer.
    """

    participant: int
    kind: str
    name: str
    segment: int
    start_s: float
    stop_s: float
    request: int

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: accepted are {', '.join(KINDS)}")
        if not self.start_s <= self.stop_s:
            raise ValueError(f"span {self.name} stops at {self.stop_s} s, before it starts at {self.start_s} s")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClockOffset:
    """How far a clock is ahead of the coordinator's, and by how much that may be wrong."""

    ahead_s: float
    error_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestTrace:
    """The spans of one request, the participants' names, and how well their clocks are known."""

    spans: tuple[Span, ...]
    names: Mapping[int, str]
    clock_error_s: Mapping[int, float]
    """For each participant; 0 where its clock is the coordinator's."""


def clock_offset(readings: Iterable[tuple[float, float, float]]) -> ClockOffset:
    """From (asked, the other clock, heard) of several round trips."""
    asked_s, there_s, heard_s = min(readings, key=lambda reading: reading[2] - reading[0])
    if asked_s <= there_s <= heard_s:
        return ClockOffset(ahead_s=0.0, error_s=0.0)
    return ClockOffset(ahead_s=there_s - (asked_s + heard_s) / 2, error_s=(heard_s - asked_s) / 2)


def spans_of(
    program: Program,
    notes: Sequence[tuple[int, float, float]],
    segments: Sequence[int],
    *,
    request: int,
    began_s: float,
) -> tuple[Span, ...]:
    """The spans of one participant. ``began_s`` is when the request began, by the participant's own clock;
    ``segments`` has the segment of each of its instructions.

    Raises ``RemoteProtocolError`` for an instruction that the program does not have.
    """
    spans = []
    for number, start_s, stop_s in notes:
        if not number < len(program.instructions):
            who, count = participant_name(program.participant), len(program.instructions)
            raise RemoteProtocolError(f"participant {who} noted instruction {number} of a program of {count}")
        kind, name = describe(program.instructions[number])
        spans.append(
            Span(
                participant=program.participant,
                kind=kind,
                name=name,
                segment=segments[number],
                start_s=start_s - began_s,
                stop_s=stop_s - began_s,
                request=request,
            )
        )
    return tuple(sorted(spans, key=lambda span: span.start_s))


def describe(instruction: Instruction) -> tuple[str, str]:
    """(kind, name) of the spans of an instruction."""
    match instruction:
        case Recv(piece=piece, source=source):
            return "wait", f"{piece} from {participant_name(source)}"
        case Send(piece=piece, target=target):
            return "send", f"{piece} to {participant_name(target)}"
        case Join(piece=piece):
            return "compute", f"join {piece}"
        case Run(piece=piece):
            return "compute", str(piece)


def instruction_segments(program: Program, graph: LayerGraph, plan: Plan) -> tuple[int, ...]:
    """The segment of every instruction: what a RUN computes for, what a SEND was made in, what the next RUN waits for.

    Inputs are sent in the segment that first reads them; outputs are received and joined in the last.
    """
    of_layer = [number for number, segment in enumerate(plan.segments) for _ in range(len(segment.layers))]
    of_tensor = {layer.name: of_layer[position] for position, layer in enumerate(graph.layers)}
    for layer in reversed(graph.layers):
        of_tensor.update((name, of_tensor[layer.name]) for name in layer.inputs if name in graph.inputs)
    coming, found = max(of_layer, default=0), []
    for instruction in reversed(program.instructions):
        if isinstance(instruction, Run):
            coming = of_tensor[instruction.piece.tensor]
        found.append(of_tensor.get(instruction.piece.tensor, 0) if isinstance(instruction, Send) else coming)
    return tuple(reversed(found))


# --- JSON ------------------------------------------------------------------------------------------------------------


def trace_json(trace: RequestTrace) -> str:
    """Chrome's trace event format, one process for each participant: https://ui.perfetto.dev opens it."""
    events = [event for participant in sorted(trace.names) for event in _head(participant, trace.names[participant])]
    events += map(_event, trace.spans)
    errors = {trace.names[participant]: error for participant, error in sorted(trace.clock_error_s.items())}
    other = {"clock_error_s": errors, "made_by": "edgedi"}
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms", "otherData": other}, indent=1)


def _head(participant: int, name: str) -> list[dict[str, Any]]:
    """A participant's name, and its place from top to bottom: the coordinator first."""
    place = participant - HOME
    return [
        {"ph": "M", "pid": place, "tid": 0, "name": "process_name", "args": {"name": name}},
        {"ph": "M", "pid": place, "tid": 0, "name": "process_sort_index", "args": {"sort_index": place}},
        {"ph": "M", "pid": place, "tid": 0, "name": "thread_name", "args": {"name": "program"}},
    ]


def _event(span: Span) -> dict[str, Any]:
    return {
        "ph": "X",
        "pid": span.participant - HOME,
        "tid": 0,
        "cat": span.kind,
        "name": span.name if span.kind == "compute" else f"{span.kind} {span.name}",
        "ts": span.start_s * 1e6,
        "dur": (span.stop_s - span.start_s) * 1e6,
        "args": {"kind": span.kind, "segment": span.segment, "request": span.request},
    }
