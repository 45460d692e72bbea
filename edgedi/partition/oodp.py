"""Optimal one-dimensional partition: segment boundaries, axes and shares that the cost model calls fastest.

EdgeDI publishes the idea (split one dimension of the maps, weighted by measured speed) and a greedy rule for the shares
(``baselines.oodp_greedy``). The exact version here is ours: ``minimax`` for the shares of one segment, and dynamic
programming over boundaries,

    best[j, layout] = min over i < j, previous layout of best[i, previous] + cost(segment [i, j), layout | previous)

with ``layout`` an axis or "whole on worker k". "Everything on the best device" is one of its paths, and workers may be
idle in any segment, so every subset of the devices is looked at.

Exact for the estimate of ``cost`` but for four stated limits: a split segment has at most ``max_depth`` layers; shares
of channels are cut at multiples of up to 16; segments that begin with ``PATIENCE`` layers that every worker computes
whole are not looked at; and columns, whose halos are never contiguous in memory, are tried only for inputs wider than
high. A split segment has at least two active workers (one alone is "whole"). Of equal plans the one with fewer segments
is taken: every split segment counts ``TIE`` of one device's time more than it costs.

The estimate lets borders move between segments almost for nothing. Small maps feel that (7 rows on 5 workers), so the
same programme also runs with every segment cut in the same proportions, and the finished plans, those of the other
planners among them, are compared by their settled price: no planner here is predicted to be faster than ``oodp``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, groupby

from edgedi.partition.baselines import equal, merged, ocbp, oodp_greedy, proportional, single
from edgedi.partition.cost import CostModel, Layout
from edgedi.partition.estimate import SplitPricer
from edgedi.partition.geometry import Interval, scale, weighted_cuts
from edgedi.partition.graph import LayerGraph
from edgedi.partition.minimax import ALONE, FIRST, LAST, MIDDLE, Split, feasible, minimax
from edgedi.partition.plan import HOME, Plan, Segment
from edgedi.partition.profile import ClusterProfile
from edgedi.partition.settle import settled

Weights = tuple[float, ...]

MAX_DEPTH = 32
"""Layers of a split segment at most, unless the caller says otherwise."""

PATIENCE = {"rows": 6, "columns": 6, "channels": 3, "batch": 6}
"""Leading layers computed whole by everybody after which longer segments are given up."""

CHANNEL_GRAIN = 16

TIE = 1e-9
"""Share of the best device's time for the whole network that tips the balance between equal plans."""


def oodp(graph: LayerGraph, cluster: ClusterProfile, *, max_depth: int = MAX_DEPTH) -> Plan:
    """The plan with the least predicted time of all candidates that the module's docstring names."""
    model = CostModel(graph, cluster)
    segments, _ = search(model, max_depth=max_depth)
    found = [aligned(model, settled(model, _plan(model, segments)))]
    if cluster.num_workers > 1:
        for weights in _proportions(model, segments):
            same, _ = search(model, max_depth=max_depth, weights=weights)
            found.append(settled(model, _plan(model, same)))
    found += [planner(graph, cluster, model=model) for planner in (single, equal, proportional, ocbp, oodp_greedy)]
    return replace(min(found, key=lambda plan: plan.predicted_s), planner="oodp")


def search(
    model: CostModel, *, max_depth: int = MAX_DEPTH, weights: Weights | None = None
) -> tuple[list[Segment], float]:
    """The segments that the estimate calls fastest, outputs brought home, and their seconds.

    With ``weights`` every split segment is cut in these proportions instead of by ``minimax``.
    """
    return _Search(model, max_depth, weights).run()


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


def _wider_than_high(graph: LayerGraph) -> bool:
    return any(spec.rank == 4 and spec.shape[3] > spec.shape[2] for spec in graph.inputs.values())


def grain(axis: str, length: int) -> int:
    """Shares are cut at multiples of this: 1, but for channels a power of two up to 16 that leaves 8 parts."""
    if axis != "channels":
        return 1
    size = CHANNEL_GRAIN
    while size > 1 and (length % size or length // size < 8):
        size //= 2
    return size


@dataclass(frozen=True, slots=True)
class _Arrival:
    """The cheapest way to have computed the layers before a position and end in one layout."""

    seconds: float
    previous: Layout = HOME
    segment: Segment | None = None


class _Search:
    def __init__(self, model: CostModel, max_depth: int, weights: Weights | None) -> None:
        self._model, self._depth, self._weights = model, max_depth, weights
        self._graph = model.graph
        self._tie_s = TIE * model.whole_compute(model.fastest, Interval(0, len(model.graph.layers)))
        self._axes = tuple(axis for axis in model.axes if axis != "columns" or _wider_than_high(model.graph))
        self._best: list[dict[Layout, _Arrival]] = [{HOME: _Arrival(0.0)}]

    def run(self) -> tuple[list[Segment], float]:
        for stop in range(1, len(self._graph.layers) + 1):
            self._best.append({})
            self._arrive_whole(stop)
            if len(self._model.workers) > 1:
                for axis in self._axes:
                    self._arrive_split(stop, axis)
        return self._trace()

    def _trace(self) -> tuple[list[Segment], float]:
        stop = len(self._graph.layers)
        ends = {last: arrival.seconds + self._model.outputs_home(last) for last, arrival in self._best[stop].items()}
        layout = min(ends, key=lambda last: ends[last])
        seconds = ends[layout]
        segments: list[Segment] = []
        while stop:
            arrival = self._best[stop][layout]
            assert arrival.segment is not None
            segments.append(arrival.segment)
            layout, stop = arrival.previous, arrival.segment.layers.start
        return segments[::-1], seconds

    def _open(self, stop: int, layout: Layout, before: float) -> float:
        """Seconds that a segment may take to be the best way to ``layout`` at ``stop`` so far."""
        known = self._best[stop].get(layout)
        return math.inf if known is None else known.seconds * (1 - 1e-12) - before

    # --- whole segments -----------------------------------------------------------------------------------------------

    def _arrive_whole(self, stop: int) -> None:
        """Runs of any depth on one participant: HOME exactly where an operator is opaque."""
        targets: tuple[int, ...] = self._model.workers
        for start in range(stop - 1, -1, -1):
            if self._graph.layers[start].op == "opaque":
                targets = (HOME,)
            layers = Interval(start, stop)
            outside: tuple[str, ...] | None = None
            for target in targets:
                compute_s = self._model.whole_compute(target, layers)
                for layout, arrival in self._best[start].items():
                    allowed = self._open(stop, target, arrival.seconds) - compute_s
                    if allowed <= 0:
                        continue
                    outside = self._model.outside(layers) if outside is None else outside
                    exchange_s = self._model.gather(outside, target, layout)
                    if exchange_s < allowed:
                        segment = Segment(layers=layers, axis="whole", on=target)
                        self._best[stop][target] = _Arrival(arrival.seconds + compute_s + exchange_s, layout, segment)

    # --- split segments -----------------------------------------------------------------------------------------------

    def _arrive_split(self, stop: int, axis: str) -> None:
        reach = self._model.reach(stop, axis, lowest=max(0, stop - self._depth), patience=PATIENCE[axis])
        if reach.length < 2:
            return
        pricer = SplitPricer(self._model, reach, moved=1 if self._weights is None else 0)
        for start in range(reach.highest, reach.lowest - 1, -1):
            arrivals = sorted(self._best[start].items(), key=lambda item: item[1].seconds)
            if not arrivals or not _worth_a_look(pricer, start, self._open(stop, axis, arrivals[0][1].seconds)):
                continue
            for layout, arrival in arrivals:
                split = self._split(pricer, start, layout, self._open(stop, axis, arrival.seconds + self._tie_s))
                if split is not None:
                    segment = Segment(layers=Interval(start, stop), axis=axis, length=reach.length, shares=split.shares)
                    self._best[stop][axis] = _Arrival(arrival.seconds + split.seconds + self._tie_s, layout, segment)

    def _split(self, pricer: SplitPricer, first: int, layout: Layout, limit: float) -> Split | None:
        """Shares for a segment after ``layout``; ``None`` if they do not take less than ``limit``."""
        if limit <= 0:
            return None
        if self._weights is None:
            return _best_split(pricer, first, layout, limit)
        return _fixed_split(pricer, first, layout, limit, self._weights)


def _worth_a_look(pricer: SplitPricer, first: int, limit: float) -> bool:
    """Whether computing alone, exchanges left out, could be done in less than ``limit``."""

    def cost(worker: int, start: int, stop: int, role: int) -> float:
        return math.inf if role == ALONE else pricer.compute(first, worker, start, stop)

    length = pricer.reach.length
    size = grain(pricer.reach.axis, length)
    return limit > 0 and feasible(len(pricer.model.workers), length, cost, grain=size, limit=limit)


def _best_split(pricer: SplitPricer, first: int, layout: Layout, limit: float) -> Split | None:
    """The best shares with two active workers at least; ``None`` if not under ``limit``."""

    def cost(worker: int, start: int, stop: int, role: int) -> float:
        return math.inf if role == ALONE else pricer.total(first, layout, worker, start, stop, role)

    length = pricer.reach.length
    return minimax(len(pricer.model.workers), length, cost, grain=grain(pricer.reach.axis, length), limit=limit)


def _fixed_split(pricer: SplitPricer, first: int, layout: Layout, limit: float, weights: Weights) -> Split | None:
    """Shares in proportion to ``weights``; ``None`` if not under ``limit`` or if only one worker gets anything."""
    length = pricer.reach.length
    size = grain(pricer.reach.axis, length)
    cuts = weighted_cuts(length // size, weights)
    shares = tuple(
        Interval(cut.start * size, length if k == len(cuts) - 1 else cut.stop * size) for k, cut in enumerate(cuts)
    )
    active = [worker for worker, share in enumerate(shares) if len(share)]
    if len(active) < 2:
        return None
    roles = {active[0]: FIRST, active[-1]: LAST}
    seconds = 0.0
    for worker in active:
        share = shares[worker]
        role = roles.get(worker, MIDDLE)
        seconds = max(seconds, pricer.total(first, layout, worker, share.start, share.stop, role))
        if seconds >= limit:
            return None
    return Split(shares, seconds)
