"""Optimal one-dimensional partition: segment boundaries, axes and shares that the cost model calls fastest.

EdgeDI publishes the idea (split one dimension of the maps, weighted by measured speed) and a greedy rule for the shares
(``baselines.oodp_greedy``). The exact version here is ours: ``minimax`` for the shares of one segment, and dynamic
programming over boundaries and axes (``search``, which states its limits). "Everything on the best device" is one of
its paths, and workers may be idle in any segment. As the estimate counts messages from idle workers where maps are
gathered, plans made without some of the workers are candidates too (``fewer``).

The estimate lets borders move between segments almost for nothing. Small maps feel that (7 rows on 5 workers), so the
same programme also runs with every segment cut in the same proportions, and the finished plans, those of the other
planners among them, are compared by their settled price: of what one profile says, no planner here is predicted to be
faster than ``oodp``. A session may yet end with a plan that another planner's prediction beats: it tries out
``contenders``, plans predicted nearly alike, and keeps the one that was fastest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, groupby

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.geometry import scale
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.planners.baselines import equal, ocbp, oodp_greedy, proportional, single
from edgedi.partition.planners.published import aofl, coedge, deepthings
from edgedi.partition.search.by_rows import merged
from edgedi.partition.search.explain import explained
from edgedi.partition.search.fewer import with_fewer
from edgedi.partition.search.fitting import fastest, fits, fitted
from edgedi.partition.search.search import MAX_DEPTH, Weights, search

RIVALS = (single, equal, proportional, ocbp, oodp_greedy, deepthings, aofl, coedge)
"""The planners whose plans are candidates as well."""


MOST_CONTENDERS = 3
"""Of different kinds, and one device alone beside them."""
NEARLY = 1.25
"""Plans predicted to take up to so many times the least may well be faster: predictions are not better than that."""
AT_WORST = 1.4
"""One device alone is worth a trial up to here, whatever else is: a plan must not lose to it."""
OTHERWISE = 0.8
"""A plan of at most so many times another's segments, or the other way round, is another kind of plan."""


def oodp(graph: LayerGraph, cluster: ClusterProfile, *, max_depth: int = MAX_DEPTH) -> Plan:
    """The plan with the least predicted time of all candidates that the module's docstring names."""
    model = CostModel(graph, cluster)
    ranked, unfit = _ranked(model, max_depth)
    return _explained(model, ranked[:1], ranked, unfit)[0]


def contenders(graph: LayerGraph, cluster: ClusterProfile, *, max_depth: int = MAX_DEPTH) -> tuple[Plan, ...]:
    """The plan with the least predicted time, those of other kinds that are predicted to be nearly as fast, and one
    device alone.

    For whoever can try them: which of them is the fastest hangs on what no profile says.
    """
    model = CostModel(graph, cluster)
    ranked, unfit = _ranked(model, max_depth)
    if unfit is not None:
        return _explained(model, ranked, ranked, unfit)
    quickest, alone = ranked[0], next(plan for plan in ranked if plan.planner == "single")
    chosen: list[Plan] = []
    for each in ranked:
        near = each.predicted_s <= NEARLY * quickest.predicted_s and len(chosen) < MOST_CONTENDERS
        if near and all(_differs(each, other) for other in chosen) and fits(graph, cluster, each):
            chosen.append(each)
    missing = all(each.digest != alone.digest for each in chosen)
    if missing and alone.predicted_s <= AT_WORST * quickest.predicted_s and fits(graph, cluster, alone):
        chosen.append(alone)
    return _explained(model, chosen, ranked, None)


def _ranked(model: CostModel, max_depth: int) -> tuple[list[Plan], Plan | None]:
    """All candidates, the best predicted first; or, where the workers lack memory for that one, the best that fits, and
    the one that does not."""
    found = sorted(_candidates(model, max_depth), key=lambda plan: plan.predicted_s)
    if fits(model.graph, model.cluster, found[0]):
        return found, None
    return [fastest(model, [*found, *fitted(model, found[0])])], found[0]


def _explained(
    model: CostModel, plans: Sequence[Plan], ranked: Sequence[Plan], faster: Plan | None
) -> tuple[Plan, ...]:
    """``plans``, of all ``ranked``, with their reasons."""
    split = next((each for each in ranked if _num_busy(each) > 1), None)
    return tuple(explained(model, replace(each, planner="oodp"), faster=faster, split=split) for each in plans)


def _num_busy(plan: Plan) -> int:
    """How many workers do anything."""
    return len({worker for segment in plan.segments for worker in segment.workers if worker != HOME})


def _differs(one: Plan, other: Plan) -> bool:
    """Whether two plans split along other axes, or a fifth of the segments more or less."""
    fewer, more = sorted((len(one.segments), len(other.segments)))
    return fewer <= OTHERWISE * more or {s.axis for s in one.segments} != {s.axis for s in other.segments}


def _candidates(model: CostModel, max_depth: int) -> list[Plan]:
    found = _searched(model, max_depth)
    quickest = min(found, key=lambda plan: plan.predicted_s)
    found.append(with_fewer(model, quickest, lambda fewer: _best(fewer, max_depth)))
    return found + [planner(model.graph, model.cluster, model=model) for planner in RIVALS]


def _searched(model: CostModel, max_depth: int) -> list[Plan]:
    """What the search finds with shares chosen segment by segment, and in equal proportions for all."""
    segments, _ = search(model, max_depth=max_depth)
    found = [aligned(model, settled(model, _plan(model, segments)))]
    if model.cluster.num_workers > 1:
        for weights in _proportions(model, segments):
            same, _ = search(model, max_depth=max_depth, weights=weights)
            found.append(settled(model, _plan(model, same)))
    return found


def _best(model: CostModel, max_depth: int) -> Plan:
    return min(_searched(model, max_depth), key=lambda plan: plan.predicted_s)


def _proportions(model: CostModel, segments: Sequence[Segment]) -> list[Weights]:
    """Proportions to try for a whole plan: the devices' speeds, and what ``minimax`` chose on average by work done."""
    split = [segment for segment in segments if segment.on is None]
    found = [model.speed_shares]
    if split:
        work = [model.whole_compute(model.fastest, segment.layers) for segment in split]
        means = [
            sum(seconds * len(segment.shares[k]) / segment.length for seconds, segment in zip(work, split, strict=True))
            for k in model.workers
        ]
        if sum(means) > 0:  # nothing but reshapes may be priced at no time at all
            found.append(tuple(mean / sum(means) for mean in means))
    return found


def _plan(model: CostModel, segments: Sequence[Segment]) -> Plan:
    return Plan(
        num_workers=model.cluster.num_workers,
        segments=merged(segments),
        graph_digest=model.graph.digest,
        planner="oodp",
    )


def aligned(model: CostModel, plan: Plan) -> Plan:
    """``plan``, or a faster one in which segments of one axis that follow each other are cut at like places.

    The estimate lets a border move between two segments for the price of one element. Here each run of split segments
    takes over, from its most expensive segment to both sides, the cuts of its neighbour, if the plan then gets faster.
    """
    for run in _runs(plan.segments):
        anchor = max(run, key=lambda k: plan.segments[k].cost.compute_s)
        segments = list(plan.segments)
        for k in range(anchor + 1, run.stop):
            segments[k] = _cut_like(segments[k], segments[k - 1])
        for k in range(anchor - 1, run.start - 1, -1):
            segments[k] = _cut_like(segments[k], segments[k + 1])
        plan = min(plan, settled(model, replace(plan, segments=tuple(segments))), key=lambda plan: plan.predicted_s)
    return plan


def _runs(segments: Sequence[Segment]) -> list[range]:
    """Longest runs of segments that are split along the same axis."""
    groups = [(axis, len(list(group))) for axis, group in groupby(segment.axis for segment in segments)]
    stops = accumulate(count for _, count in groups)
    return [range(stop - n, stop) for (axis, n), stop in zip(groups, stops, strict=True) if n > 1 and axis != "whole"]


def _cut_like(segment: Segment, other: Segment) -> Segment:
    return replace(segment, shares=tuple(scale(share, segment.length, other.length) for share in other.shares))
