"""Plans for some of the workers only.

The search lets workers be idle, but its estimate counts messages from idle workers where maps are gathered, so that a
plan made without them can be better by the price of those. For small networks and clusters every subset is searched by
itself. For others two: those who do something in the best plan, and they without the one who does least.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations

from edgedi.partition.cost.cost import CostModel
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.plan import HOME, Plan, Segment

SMALL_LAYERS, SMALL_WORKERS = 32, 5
"""Up to so many layers and workers, every subset is tried."""

Search = Callable[[CostModel], Plan]


def with_fewer(model: CostModel, plan: Plan, search: Search) -> Plan:
    """``plan``, or one that ``search`` finds for fewer workers, if that is predicted to be faster."""
    if len(model.graph.layers) <= SMALL_LAYERS and len(model.workers) <= SMALL_WORKERS:
        chosen = _subsets(model)
    else:
        chosen = _two_subsets(model, plan)
    found = [of_some(model, workers, search) for workers in chosen]
    return min([plan, *found], key=lambda each: each.predicted_s)


def of_some(model: CostModel, workers: Sequence[int], search: Search) -> Plan:
    """What ``search`` finds for ``workers`` alone, as a plan of the whole cluster in which the others own nothing."""
    found = search(model.on(model.cluster.subset(workers)))
    segments = tuple(_widened(segment, workers, model.cluster.num_workers) for segment in found.segments)
    return settled(model, replace(found, num_workers=model.cluster.num_workers, segments=segments))


def _subsets(model: CostModel) -> Iterator[tuple[int, ...]]:
    """Subsets of two workers or more; where all links are alike, one of those whose devices are alike."""
    seen = set()
    for count in range(2, len(model.workers)):
        for chosen in combinations(model.workers, count):
            alike = tuple(model.kind_of(k) for k in chosen) if not model.cluster.links else chosen
            if alike not in seen:
                seen.add(alike)
                yield chosen


def _two_subsets(model: CostModel, plan: Plan) -> Iterator[tuple[int, ...]]:
    active = [worker for worker in model.workers if _part(plan, worker) > 0]
    rest = sorted(active, key=lambda worker: _part(plan, worker))[1:]
    for chosen in (active, sorted(rest)):
        if 2 <= len(chosen) < len(model.workers):  # one alone is a candidate of every search
            yield tuple(chosen)


def _widened(segment: Segment, workers: Sequence[int], num_workers: int) -> Segment:
    """A segment of the numbered-anew workers, for all: the others own nothing."""
    if segment.on is not None:
        return segment if segment.on == HOME else replace(segment, on=workers[segment.on])
    return replace(segment, shares=tuple(_shares(segment, workers, num_workers)))


def _shares(segment: Segment, workers: Sequence[int], num_workers: int) -> Iterator[Interval]:
    known, position = dict(zip(workers, segment.shares, strict=True)), 0
    for worker in range(num_workers):
        share = known.get(worker, Interval(position, position))
        position = share.stop
        yield share


def _part(plan: Plan, worker: int) -> float:
    """How much of the plan a worker does, by segments' seconds."""
    return sum(
        segment.cost.compute_s
        * (float(segment.on == worker) if segment.on is not None else len(segment.shares[worker]) / segment.length)
        for segment in plan.segments
    )
