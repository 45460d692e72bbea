"""The price of a finished plan: the cost model's formulae on what its programs really compute, wait for and receive.

Differs from the search's estimate (``cost``) where tensors really lie: borders that moved between two segments, skips
from older layouts, idle workers, halos from several owners. This is the cost that plans report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.overlap import lower_hiding
from edgedi.partition.plan.plan import HOME, Cost, Plan
from edgedi.partition.plan.program import Piece, Program, ProgramSet, Recv, Run, Send


def settled(model: CostModel, plan: Plan) -> Plan:
    """``plan`` with every segment's cost as lowered; ``PlanError`` where it cannot be lowered."""
    programs = lower_hiding(model, plan)
    tally = _Tally(model, plan, _head_starts(model, plan, programs))
    in_process = model.cluster.local and programs.answers_alone(0)
    for program in programs.programs.values():
        tally.add(program, receives=not in_process)
    segments = (replace(segment, cost=tally.cost(k)) for k, segment in enumerate(plan.segments))
    return replace(plan, segments=tuple(segments))


_Sent = tuple[int, int, Piece]
"""Source, target, and what."""


def _head_starts(model: CostModel, plan: Plan, programs: ProgramSet) -> dict[_Sent, float]:
    """How many seconds each message's sender goes on computing in the segment of it."""
    of_layer = _segment_of_layers(plan)
    found: dict[_Sent, float] = {}
    for me, program in programs.programs.items():
        after_s: dict[int, float] = defaultdict(float)
        for instruction in reversed(program.instructions):
            if isinstance(instruction, Run):
                segment = of_layer[model.graph.position[instruction.piece.tensor]]
                after_s[segment] += model.run_seconds(me, instruction, plan.segments[segment].axis)
            elif isinstance(instruction, Send) and instruction.piece.tensor in model.graph.by_name:
                segment = of_layer[model.graph.position[instruction.piece.tensor]]
                found[me, instruction.target, instruction.piece] = after_s[segment]
    return found


def _segment_of_layers(plan: Plan) -> list[int]:
    return [k for k, segment in enumerate(plan.segments) for _ in range(len(segment.layers))]


class _Tally:
    """Adds up, per segment and participant, what programs compute and receive."""

    def __init__(self, model: CostModel, plan: Plan, head_starts_s: Mapping[_Sent, float]) -> None:
        self._model, self._plan, self._head_starts_s = model, plan, head_starts_s
        self._of_layer = _segment_of_layers(plan)
        self._compute: dict[tuple[int, int], float] = defaultdict(float)
        self._received: dict[tuple[int, int], list[Recv]] = defaultdict(list)

    def add(self, program: Program, *, receives: bool = True) -> None:
        """``receives``: whether what it receives has a price; within one process it has none."""
        me, waiting = program.participant, list[Recv]()
        for instruction in program.instructions:
            if isinstance(instruction, Recv) and receives:
                waiting.append(instruction)
            elif isinstance(instruction, Run):
                segment = self._of_layer[self._model.graph.position[instruction.piece.tensor]]
                axis = self._plan.segments[segment].axis
                self._compute[segment, me] += self._model.run_seconds(me, instruction, axis)
                self._received[segment, me] += waiting
                waiting = []
        self._received[len(self._plan.segments), me] = waiting

    def cost(self, segment: int) -> Cost:
        """The slowest participant's; the outputs' way home is in the last segment's exchange."""
        participants = [who for index, who in self._compute if index == segment]
        worst = max((self._of(segment, who) for who in participants), key=lambda cost: cost.total_s, default=Cost())
        if segment == len(self._plan.segments) - 1:
            worst = replace(worst, exchange_s=worst.exchange_s + self._of(segment + 1, HOME).exchange_s)
        return worst

    def _of(self, segment: int, me: int) -> Cost:
        """A message that was sent early is waited for as long as it travels beyond that; the others, as they travel."""
        messages = self._received[segment, me]
        cpu_s = sum(2 * self._model.cluster.link_between(message.source, me).message_cpu_s for message in messages)
        heads_s = [self._head_starts_s.get((message.source, me, message.piece), 0.0) for message in messages]
        late = [message for message, head_s in zip(messages, heads_s, strict=True) if not head_s]
        least_s = min((head_s for head_s in heads_s if head_s), default=0.0)
        waits_s = max(self._way_s(me, late), self._way_s(me, messages) - least_s)
        compute_s = self._model.alone_share(self._plan, me) * self._compute.get((segment, me), 0.0)
        return Cost(compute_s=compute_s, exchange_s=cpu_s + waits_s)

    def _way_s(self, me: int, messages: Sequence[Recv]) -> float:
        """How long messages travel that are all sent at once."""
        ways = [(self._model.cluster.link_between(message.source, me), message.piece) for message in messages]
        latency_s = max((link.latency_s for link, _ in ways), default=0.0)
        return latency_s + sum(self._model.num_bytes(piece) / link.bytes_per_s for link, piece in ways)
