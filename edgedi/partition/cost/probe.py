"""Programs that do nothing but exchange: how links are measured.

Two participants hand each other row after row of a tensor, one at a time, through everything that a halo of a real plan
passes: the executor, the messages, the transport, the peer's waiting. What two programs of different length differ by
is the price of their trips and nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain

from edgedi.partition.cost.profile import LinkProfile
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import Layer, LayerGraph, TensorSpec
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Instruction, Piece, Program, ProgramSet, Recv, Run, Send

_WIDTH = 16
_ELEMENT_BYTES = 4


COLD = 5.0
"""How many times what it takes here a message takes in a network, where code and data of an exchange lie cold in the
caches, and the others are not done at the same moment. With a computation on 4 MB before each send a trip took two to
three times as long, but that must be subtracted again, and what is left is mostly noise; with twice, plans for local
workers took up to a quarter longer than predicted, and longer than plans with fewer exchanges. Not so on emulated
devices whose work counts what it takes with warm caches."""
COLD_AT_MOST_S = 3e-4
"""No more is added than this: it is the processors' and the caches' time, and a slow link is slow by itself."""

_X, _Y = Piece("x"), Piece("y")


def probe_programs(row_bytes: int, num_trips: int, *, home: bool = False) -> ProgramSet:
    """Worker 0 sends ``num_trips`` rows of ``row_bytes`` (a multiple of 64) to worker 1, each comes straight back.

    With ``home`` the coordinator does worker 0's part, and worker 0 that of worker 1, who is idle.
    """
    channels = row_bytes // (_WIDTH * _ELEMENT_BYTES)
    if row_bytes <= 0 or row_bytes != channels * _WIDTH * _ELEMENT_BYTES:
        raise ValueError(f"row_bytes is {row_bytes}; give a positive multiple of {_WIDTH * _ELEMENT_BYTES}")
    rows = [Piece("x", 2, Interval(row, row + 1)) for row in range(num_trips)]
    one, other = (HOME, 0) if home else (0, 1)
    there: tuple[Instruction, ...] = tuple(
        chain.from_iterable((Send(row, _X, other), Recv(row, other)) for row in rows)
    )
    back: tuple[Instruction, ...] = tuple(chain.from_iterable((Recv(row, one), Send(row, row, one)) for row in rows))
    get, answer, give = Recv(_X, HOME), (Run(_Y, (_X,)), Send(_Y, _Y, HOME)), Send(_X, _X, 0)
    steps: dict[int, tuple[Instruction, ...]]
    if home:
        steps = {0: (get, *back, *answer), 1: (), HOME: (give, *there, Recv(_Y, 0))}
    else:
        steps = {0: (get, *there, *answer), 1: back, HOME: (give, Recv(_Y, 0))}
    programs = {number: Program(participant=number, instructions=given) for number, given in steps.items()}
    first = Layer(
        name="y", op="slice", inputs=("x",), spec=TensorSpec((1, channels, 1, _WIDTH)),
        attributes={"dim": 2, "start": 0, "step": 1},
    )  # fmt: skip
    graph = LayerGraph(inputs={"x": TensorSpec((1, channels, num_trips, _WIDTH))}, layers=(first,), outputs=("y",))
    return ProgramSet(graph=graph, programs=programs)


MOST_BYTES_PER_S = 2e10
LEAST_S = 1e-5
"""No message is cheaper than this, whatever noise says."""


def link_of_trips(one_way_s: Mapping[int, float], *, cold: float = COLD) -> LinkProfile:
    """The link over which a message of so many bytes takes so many seconds, from two sizes.

    A trip is latency, processor time at both ends, and bytes. The parts cannot be told apart from outside: half of what
    is not bytes is taken for processor time, which counts for each message, the rest for latency, which does not.
    """
    (small, small_s), (large, large_s) = sorted(one_way_s.items())
    per_byte_s = max((large_s - small_s) / (large - small), 1 / MOST_BYTES_PER_S)
    warm_s = max(small_s - per_byte_s * small, LEAST_S)
    fixed_s = min(cold * warm_s, warm_s + COLD_AT_MOST_S)
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
