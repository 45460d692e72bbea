"""How long each worker is busy with one request, as the cost model has it: what measurements are compared with."""

from __future__ import annotations

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import Plan
from edgedi.partition.plan.program import Program, ProgramSet, Run, Send


def busy_seconds(graph: LayerGraph, cluster: ClusterProfile, plan: Plan, programs: ProgramSet) -> tuple[float, ...]:
    """Per worker: seconds of its layers, and the processor time of sending its pieces; waiting is not among them."""
    model = CostModel(graph, cluster)
    axes = [segment.axis for segment in plan.segments for _ in range(len(segment.layers))]
    return tuple(
        _busy(model, axes, programs.programs[worker], model.alone_share(plan, worker))
        for worker in range(cluster.num_workers)
    )


def _busy(model: CostModel, axes: list[str], program: Program, share: float) -> float:
    me, seconds = program.participant, 0.0
    for instruction in program.instructions:
        if isinstance(instruction, Run):
            axis = axes[model.graph.position[instruction.piece.tensor]]
            seconds += share * model.run_seconds(me, instruction, axis)
        elif isinstance(instruction, Send):
            seconds += model.cluster.link_between(me, instruction.target).message_cpu_s
    return seconds
