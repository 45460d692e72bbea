"""What a plan keeps busy: seconds of each participant's processor and of each link for one request.

With enough requests in flight nobody waits for the others: while one request's halo travels, a worker computes another
request. What limits the rate is then not the plan's time but its most loaded resource,

    processor p   sum of the seconds of its RUN instructions, and of message_cpu for every message it sends or receives
    link (s, t)   sum of bytes / bytes_per_s over its messages: a transfer holds nobody up but the next transfer
    rate          1 / the largest of them; latencies do not count

counted on the programs that lowering really emits. As everywhere in the cost model, links that share one wire do not
slow each other down.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan
from edgedi.partition.plan.program import Program, Recv, Run, Send


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Busy seconds of one request, by participant and by link ``(source, target)``."""

    processors_s: Mapping[int, float]
    links_s: Mapping[tuple[int, int], float]

    def __post_init__(self) -> None:
        object.__setattr__(self, "processors_s", MappingProxyType(dict(self.processors_s)))
        object.__setattr__(self, "links_s", MappingProxyType(dict(self.links_s)))

    def __reduce__(self) -> Any:
        raise TypeError("a load is made from a plan where it is wanted: it does not travel")

    @property
    def home_s(self) -> float:
        """The coordinator's processor: the one resource that all replicas share."""
        return self.processors_s.get(HOME, 0.0)

    @property
    def bottleneck_s(self) -> float:
        """Seconds of the most loaded resource: between two requests there can be no less."""
        return max((*self.processors_s.values(), *self.links_s.values()), default=0.0)


def load_of(model: CostModel, plan: Plan) -> Load:
    """The load of ``plan`` as lowered; ``PlanError`` where it cannot be lowered."""
    processors: dict[int, float] = defaultdict(float)
    links: dict[tuple[int, int], float] = defaultdict(float)
    axes = [segment.axis for segment in plan.segments for _ in range(len(segment.layers))]
    for program in lower(plan, model.graph).programs.values():
        share = model.alone_share(plan, program.participant)
        processors[program.participant] += _processor_s(model, program, axes, share)
        for instruction in program.instructions:
            if isinstance(instruction, Send):
                ends = (program.participant, instruction.target)
                rate = model.cluster.link_between(*ends).bytes_per_s
                links[ends] += model.num_bytes(instruction.piece) / rate
    return Load(processors_s=processors, links_s=links)


def _processor_s(model: CostModel, program: Program, axes: list[str], share: float) -> float:
    me, seconds = program.participant, 0.0
    for instruction in program.instructions:
        match instruction:
            case Run(piece=piece):
                seconds += share * model.run_seconds(me, instruction, axes[model.graph.position[piece.tensor]])
            case Recv(source=source):
                seconds += model.cluster.link_between(source, me).message_cpu_s
            case Send(target=target):
                seconds += model.cluster.link_between(me, target).message_cpu_s
    return seconds
