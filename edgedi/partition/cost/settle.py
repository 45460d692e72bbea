"""The price of a finished plan: the cost model's formulae on what its programs really compute, wait for and receive.

Differs from the search's estimate (``cost``) where tensors really lie: borders that moved between two segments, skips
from older layouts, idle workers, halos from several owners. This is the cost that plans report.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Cost, Plan
from edgedi.partition.plan.program import Program, Recv, Run


def settled(model: CostModel, plan: Plan) -> Plan:
    """``plan`` with every segment's cost as lowered; ``PlanError`` where it cannot be lowered."""
    tally = _Tally(model, plan)
    for program in lower(plan, model.graph).programs.values():
        tally.add(program)
    segments = (replace(segment, cost=tally.cost(k)) for k, segment in enumerate(plan.segments))
    return replace(plan, segments=tuple(segments))


class _Tally:
    """Adds up, per segment and participant, what programs compute and receive."""

    def __init__(self, model: CostModel, plan: Plan) -> None:
        self._model, self._plan = model, plan
        self._of_layer = [k for k, segment in enumerate(plan.segments) for _ in range(len(segment.layers))]
        self._compute: dict[tuple[int, int], float] = defaultdict(float)
        self._received: dict[tuple[int, int], list[Recv]] = defaultdict(list)

    def add(self, program: Program) -> None:
        me, waiting = program.participant, list[Recv]()
        for instruction in program.instructions:
            if isinstance(instruction, Recv):
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
        latency = seconds = 0.0
        for message in self._received[segment, me]:
            link = self._model.cluster.link_between(message.source, me)
            latency = max(latency, link.latency_s)
            seconds += 2 * link.message_cpu_s + self._model.num_bytes(message.piece) / link.bytes_per_s
        return Cost(compute_s=self._compute.get((segment, me), 0.0), exchange_s=latency + seconds)
