"""Planning for requests a second: copies of the network, pipelines, shared stages, or one plan with several in flight.

With many requests under way, dividing one of them among workers is no aim in itself: every worker that runs whole
requests alone gives the sum of the rates without any exchange. That stops being best where the way home is slow, where
a device has too little memory for all weights, or where devices differ in what they are good at. So four kinds of
candidates are priced, and the one with the most predicted requests a second is taken, of equal ones the faster:

    alone      every worker a replica of its own
    pipelines  the workers divided into sets, each set a pipeline of single workers (alone is one of these divisions)
    stages     the same with teams of neighbouring workers that share a stage, each planned by ``planner``
    together   the plan for latency, on all workers, several requests in flight

The rate of a replica is one over its busiest resource as lowered (``load``); the coordinator's processor is shared by
all replicas, and where it cannot follow, all rates shrink alike. Divisions are exact for the estimate of ``pipelines``:
more than ``MOST_TOGETHER`` workers are first cut into groups of that many neighbours. What does not fit into a worker's
memory is no candidate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations

from edgedi.errors import PlanError
from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.memory import weights_bytes
from edgedi.partition.plan.placement import Placement, Replica
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.planners.baselines import single
from edgedi.partition.planners.by_name import plan as make_plan
from edgedi.partition.planners.oodp import contenders
from edgedi.partition.search.by_rows import merged
from edgedi.partition.search.fitting import limits_of, memories, require_fit
from edgedi.partition.throughput.load import load_of
from edgedi.partition.throughput.pipelines import Pipeline, Pipelines, Stage, Team, neighbours, singles

SHIPPING_S = 5.0
"""A plan is not worth a trial where its weights would take longer to send."""
OBJECTIVES = ("latency", "throughput")
"""What ``place`` accepts: the time of one request, or requests a second."""

MOST_TOGETHER = 8
"""Workers among which divisions are searched at once."""

ROUNDS = 4
"""So often replicas are chosen anew where the maps of one did not fit."""

Choice = Callable[[Pipelines, Sequence[int]], list[Pipeline]]

EQUAL = 1e-9
"""Rates that differ by less of themselves are equal: the placement of lower latency, or of fewer workers, is better."""


def place(
    graph: LayerGraph, cluster: ClusterProfile, *, planner: str = "oodp", objective: str = "latency"
) -> Placement:
    """The placement of ``graph`` on ``cluster`` for an objective; for latency one replica, by the named planner.

    ``PlanError`` names a worker that lacks memory where nothing fits.
    """
    if objective not in OBJECTIVES:
        raise ValueError(f"objective={objective!r}: accepted are {', '.join(OBJECTIVES)}")
    several = objective == "throughput" and cluster.num_workers > 1
    candidates = divided(graph, cluster, planner) if several else []
    try:
        candidates.append(together(graph, cluster, make_plan(graph, cluster, planner)))
    except PlanError:
        if not candidates:
            raise
    return better(candidates)


def better(candidates: Iterable[Placement]) -> Placement:
    """The placement with the highest rate, among equal ones that of lowest latency."""
    found = list(candidates)
    most = max(placement.rate_per_s for placement in found) * (1 - EQUAL)
    return min((p for p in found if p.rate_per_s >= most), key=lambda p: p.latency_s)


def divided(graph: LayerGraph, cluster: ClusterProfile, planner: str = "oodp") -> list[Placement]:
    """The candidates whose workers do not all serve every request together, best by estimate of each kind."""
    if any(layer.op == "opaque" for layer in graph.layers):  # these run at the coordinator: no worker's pipeline
        made = [_alone(graph, cluster, worker) for worker in range(cluster.num_workers)]
        return _placements([[one for one in made if not one.lacking_bytes]])
    model = CostModel(graph, cluster)
    groups = [model.workers[k : k + MOST_TOGETHER] for k in range(0, len(model.workers), MOST_TOGETHER)]
    return _placements(
        _fitting(model, [team for group in groups for team in teams(group)], groups, planner, choose)
        for teams, choose in ((singles, everybody_alone), (singles, division), (neighbours, division))
    )


def _fitting(
    model: CostModel, teams: Sequence[Team], groups: Sequence[Team], planner: str, choose: Choice
) -> list[_Priced]:
    """The replicas chosen; where maps make one too large after all, chosen again with less room for weights."""
    limits = list(limits_of(model.cluster))
    made = list[_Priced]()
    for _ in range(ROUNDS):
        pipelines = Pipelines(model, teams, limits)
        made = [_replica(model, found, planner) for group in groups for found in choose(pipelines, group)]
        lacking = [pair for one in made for pair in one.lacking_bytes.items()]
        for worker, missing in lacking:
            limits[worker] -= missing
        if not lacking:
            break
    return [one for one in made if not one.lacking_bytes]


def everybody_alone(pipelines: Pipelines, workers: Sequence[int]) -> list[Pipeline]:
    """Each of ``workers`` with a copy of its own, where it fits."""
    found = [pipelines.best(frozenset({worker})) for worker in workers]
    return [pipeline for pipeline in found if pipeline is not None]


def division(pipelines: Pipelines, workers: Sequence[int]) -> list[Pipeline]:
    """``workers`` divided into the pipelines that together answer most; one that does not help is left idle."""

    @cache
    def best(left: tuple[int, ...]) -> tuple[float, tuple[Pipeline, ...]]:
        if not left:
            return 0.0, ()
        chosen = best(left[1:])
        for members in _with_first(left):
            pipeline = pipelines.best(frozenset(members))
            if pipeline is not None:
                rate, others = best(tuple(worker for worker in left if worker not in members))
                rate += 1 / max(pipeline.bottleneck_s, 1e-30)
                if rate > chosen[0] * (1 + EQUAL):
                    chosen = rate, (pipeline, *others)
        return chosen

    return list(best(tuple(workers))[1])


def _with_first(workers: Sequence[int]) -> Iterator[Team]:
    """Every set that has the first of ``workers``, small ones first."""
    first, *rest = workers
    for size in range(len(workers)):
        for others in combinations(rest, size):
            yield (first, *others)


# --- replicas ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _Priced:
    """A replica, the coordinator's seconds for each of its requests, and the bytes that workers lack for it."""

    replica: Replica
    home_s: float
    lacking_bytes: dict[int, float]


def _placements(made: Iterable[Sequence[_Priced]]) -> list[Placement]:
    return [_side_by_side(replicas) for replicas in made if replicas]


def _side_by_side(made: Sequence[_Priced]) -> Placement:
    """All replicas slowed down alike where the coordinator cannot follow."""
    share = max(1.0, sum(one.replica.rate_per_s * one.home_s for one in made))
    return Placement(replicas=tuple(replace(p.replica, rate_per_s=p.replica.rate_per_s / share) for p in made))


def place_to_try(graph: LayerGraph, cluster: ClusterProfile) -> tuple[Placement, ...]:
    """For latency, placements of which only a trial tells the fastest, the best predicted first; see ``contenders``.

    A plan whose weights would take long to send is left out, unless it is the best. ``PlanError`` names a worker that
    lacks memory where nothing fits.
    """
    plans = contenders(graph, cluster)
    require_fit(graph, cluster, plans[0])
    soon = [plan for plan in plans[1:] if ships_soon(graph, cluster, plan)]
    return tuple(together(graph, cluster, plan) for plan in (plans[0], *soon))


def ships_soon(graph: LayerGraph, cluster: ClusterProfile, plan: Plan) -> bool:
    """Whether every worker could have all weights of its program soon: else trying a plan costs more than it gives."""
    programs = lower(plan, graph).programs
    return all(
        weights_bytes(programs[worker], graph) <= SHIPPING_S * cluster.link_between(HOME, worker).bytes_per_s
        for worker in range(plan.num_workers)
    )


def together(graph: LayerGraph, cluster: ClusterProfile, plan: Plan) -> Placement:
    """The placement of one replica on all workers."""
    return _side_by_side([_priced(CostModel(graph, cluster), tuple(range(cluster.num_workers)), plan)])


def _alone(graph: LayerGraph, cluster: ClusterProfile, worker: int) -> _Priced:
    model = CostModel(graph, cluster.subset([worker]))
    return _priced(model, (worker,), single(graph, model.cluster, model=model))


def _replica(whole: CostModel, pipeline: Pipeline, planner: str) -> _Priced:
    graph, workers = whole.graph, tuple(sorted(worker for stage in pipeline.stages for worker in stage.team))
    model = whole.on(whole.cluster.subset(workers))
    segments = [segment for stage in pipeline.stages for segment in _segments(model, stage, workers, planner)]
    name = "single" if len(workers) == 1 else "pipeline"
    plan = Plan(num_workers=len(workers), segments=merged(segments), graph_digest=graph.digest, planner=name)
    return _priced(model, workers, settled(model, plan))


def _priced(model: CostModel, workers: Team, plan: Plan) -> _Priced:
    load, limits = load_of(model, plan), limits_of(model.cluster)
    replica = Replica(
        workers=workers, plan=plan, rate_per_s=1 / max(load.bottleneck_s, 1e-30), latency_s=plan.predicted_s
    )
    needed = [] if min(limits) == math.inf else memories(model.graph, plan)
    missing = [memory.total_bytes - limit for memory, limit in zip(needed, limits, strict=False)]
    lacking = {worker: count for worker, count in zip(workers, missing, strict=False) if count > 0}
    return _Priced(replica=replica, home_s=load.home_s, lacking_bytes=lacking)


def _segments(model: CostModel, stage: Stage, workers: Sequence[int], planner: str) -> list[Segment]:
    """What a stage is in a plan for ``workers``: whole on a worker alone, or a team's own plan for these layers."""
    members = [workers.index(worker) for worker in stage.team]
    if len(members) == 1:
        return [Segment(layers=stage.layers, axis="whole", on=members[0])]
    cluster = model.cluster.subset(members)
    roomy = replace(cluster, devices=tuple(replace(device, memory_bytes=None) for device in cluster.devices))
    part = make_plan(part_of(model.graph, stage.layers), roomy, planner)  # whether it fits, the whole plan says
    return [_among(segment, stage.layers.start, members, len(workers)) for segment in part.segments]


def _among(segment: Segment, offset: int, members: Sequence[int], num_workers: int) -> Segment:
    """A segment of a part's plan for neighbouring ``members`` as one of the whole network's plan for all workers."""
    layers = Interval(segment.layers.start + offset, segment.layers.stop + offset)
    if segment.on is not None:
        return Segment(layers=layers, axis="whole", on=members[segment.on])
    before, after = members[0], num_workers - members[-1] - 1
    nothing, rest = Interval(0, 0), Interval(segment.length, segment.length)
    shares = (nothing,) * before + segment.shares + (rest,) * after
    return Segment(layers=layers, axis=segment.axis, length=segment.length, shares=shares)


def part_of(graph: LayerGraph, layers: Interval) -> LayerGraph:
    """A run of layers as a graph of its own: what it reads from before is input, what is read after it is output."""
    inside = graph.layers[layers.start : layers.stop]
    made = {layer.name for layer in inside}
    read = dict.fromkeys(name for layer in inside for name in layer.inputs if name not in made)
    later = {name for layer in graph.layers[layers.stop :] for name in layer.inputs} | set(graph.outputs)
    outputs = tuple(layer.name for layer in inside if layer.name in later)
    inputs = {name: graph.spec(name) for name in read}
    return LayerGraph(inputs=inputs, layers=inside, outputs=outputs, weights=graph.weights)
