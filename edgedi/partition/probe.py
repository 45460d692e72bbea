"""Programs that do little but exchange: how links are measured.

Two participants hand each other row after row of a tensor, one at a time, through everything that a halo of a real plan
passes: the executor, the messages, the transport, the peer's waiting. Before each send the sender computes on a map
that is larger than its nearest caches, as a network does: code and data that lie cold cost twice what they cost warm.
What is left when those computations are taken off is the price of the trips.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from edgedi.partition.geometry import Interval
from edgedi.partition.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.plan import HOME
from edgedi.partition.profile import LinkProfile
from edgedi.partition.program import Instruction, Piece, Program, ProgramSet, Recv, Run, Send

_WIDTH = 16
_ELEMENT_BYTES = 4
_MAP_SHAPE = (1, 64, 64, 128)
"""2 MB, and as much again for what is computed from it."""


def probe_programs(row_bytes: int, num_trips: int, *, home: bool = False) -> ProgramSet:
    """Worker 0 sends ``num_trips`` rows of ``row_bytes`` (a multiple of 64) to worker 1, each comes straight back.

    With ``home`` the coordinator does worker 0's part, and worker 0 that of worker 1, who is idle.
    """
    channels = row_bytes // (_WIDTH * _ELEMENT_BYTES)
    if row_bytes <= 0 or row_bytes != channels * _WIDTH * _ELEMENT_BYTES:
        raise ValueError(f"row_bytes is {row_bytes}; give a positive multiple of {_WIDTH * _ELEMENT_BYTES}")
    rows = [Piece("x", 2, Interval(row, row + 1)) for row in range(num_trips)]
    one, other = (HOME, 0) if home else (0, 1)
    there, back = _there(rows, other), _back(rows, one)
    if home:
        made = {0: (*_GET, *back, *_ANSWER), 1: (), HOME: (_give(_X, 0), _give(MAP, 0), *there, Recv(_Y, 0))}
    else:
        give = (_give(_X, 0), _give(MAP, 0), _give(_X, 1), _give(MAP, 1))
        made = {0: (*_GET, *there, *_ANSWER), 1: (*_GET, *back), HOME: (*give, Recv(_Y, 0))}
    programs = {number: Program(participant=number, instructions=steps) for number, steps in made.items()}
    return ProgramSet(graph=_graph(channels, num_trips), programs=programs)


def computation() -> ProgramSet:
    """What a participant computes between two trips, once, on worker 0: to be measured by itself."""
    steps = {0: (Recv(MAP, HOME), Run(_computed(0, 0), (MAP,))), HOME: (_give(MAP, 0),)}
    programs = {number: Program(participant=number, instructions=given) for number, given in steps.items()}
    return ProgramSet(graph=_graph(1, 1), programs=programs)


_X, _Y, MAP = Piece("x"), Piece("y"), Piece("map")
_GET = (Recv(_X, HOME), Recv(MAP, HOME))
_ANSWER = (Run(_Y, (_X,)), Send(_Y, _Y, HOME))


def _give(piece: Piece, worker: int) -> Send:
    return Send(piece, piece, worker)


def _computed(side: int, row: int) -> Piece:
    return Piece(f"map{side}_{row}")


def _there(rows: Sequence[Piece], other: int) -> tuple[Instruction, ...]:
    """Compute, send a row, wait for it to come back."""
    steps = ((Run(_computed(0, n), (MAP,)), Send(row, _X, other), Recv(row, other)) for n, row in enumerate(rows))
    return tuple(chain.from_iterable(steps))


def _back(rows: Sequence[Piece], one: int) -> tuple[Instruction, ...]:
    """Wait for a row, compute, send it back."""
    steps = ((Recv(row, one), Run(_computed(1, n), (MAP,)), Send(row, row, one)) for n, row in enumerate(rows))
    return tuple(chain.from_iterable(steps))


def _graph(channels: int, num_trips: int) -> LayerGraph:
    inputs = {"x": TensorSpec((1, channels, num_trips, _WIDTH)), "map": TensorSpec(_MAP_SHAPE)}
    maps = (
        Layer(
            name=f"map{side}_{row}", op="unary", inputs=("map",), spec=inputs["map"],
            attributes={"function": "relu", "arguments": ()},
        )
        for row in range(num_trips)
        for side in (0, 1)
    )  # fmt: skip
    answer = Layer(
        name="y", op="slice", inputs=("x",), spec=TensorSpec((1, channels, 1, _WIDTH)),
        attributes={"dim": 2, "start": 0, "step": 1},
    )  # fmt: skip
    return LayerGraph(inputs=inputs, layers=(*maps, answer), outputs=("y",))


def link_of_trips(one_way_s: Mapping[int, float]) -> LinkProfile:
    """The link over which a message of so many bytes takes so many seconds, from two sizes.

    A trip is latency, processor time at both ends, and bytes. The parts cannot be told apart from outside: half of what
    is not bytes is taken for processor time, which counts for each message, the rest for latency, which does not.
    """
    (small, small_s), (large, large_s) = sorted(one_way_s.items())
    per_byte_s = max((large_s - small_s) / (large - small), 1e-12)
    fixed_s = max(small_s - per_byte_s * small, 1e-7)
    return LinkProfile(latency_s=fixed_s / 2, bytes_per_s=1 / per_byte_s, message_cpu_s=fixed_s / 4)


def links_along(neighbours: Sequence[LinkProfile]) -> dict[tuple[int, int], LinkProfile]:
    """Links between all workers from those between neighbours: between others, the worst on the way."""
    links = {}
    for source in range(len(neighbours) + 1):
        for target in range(source + 1, len(neighbours) + 1):
            way = neighbours[source:target]
            links[source, target] = links[target, source] = LinkProfile(
                latency_s=max(link.latency_s for link in way),
                bytes_per_s=min(link.bytes_per_s for link in way),
                message_cpu_s=max(link.message_cpu_s for link in way),
            )
    return links
