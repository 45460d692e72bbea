"""Plans that fit into the workers' memories.

The search (``search``) is blind to memory, and most plans fit. Where the fastest does not, the programme here looks
again, over coarser choices: segments end where the fastest plan's do (anywhere in networks of up to ``SMALL`` layers),
and the parts of a split are in proportion to speed or to memory, among few subsets of the workers (any parts where
there are ``FEW``). What it adds is that a way to compute the first layers is not only its seconds, but also the weights
that it has put on every worker and the most that its maps took there: a way is dropped only for one that is no worse in
any of these, and, beyond ``WAYS`` of them, for being slow and large. [Ours: a shortest path under constraints by
labels, as known from routing.]

Maps that live on from segment to segment are seen only in finished plans. If ``TRIALS`` are too large after all, limits
are tightened by what was missing at least, up to ``ROUNDS`` times.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement, islice, pairwise
from operator import le

from edgedi.errors import PlanError
from edgedi.partition.cost.cost import CostModel, Layout
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.geometry import Interval, weighted_cuts
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.reach import Reach
from edgedi.partition.plan.lowering import lower, lower_alone
from edgedi.partition.plan.memory import Memory, program_memory
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.search.by_rows import settled_plan
from edgedi.partition.search.estimate import SplitPricer
from edgedi.partition.search.search import MAX_DEPTH, PATIENCE, grain

SMALL = 12
"""Up to so many layers, segments may end anywhere."""

SPAN = 3
"""So many of the given segments may become one."""

WAYS = 16
"""Ways kept for each position and layout, twice as many while they are collected."""

FEW = 40
"""Up to so many ways to cut a map are all tried."""

TRIALS = 16
"""So many ways are finished and looked at before limits are tightened."""

ROUNDS = 4

Limits = tuple[float, ...]


def limits_of(cluster: ClusterProfile) -> Limits:
    """What every worker's memory may hold, in bytes."""
    return tuple(math.inf if device.memory_bytes is None else device.memory_bytes for device in cluster.devices)


def memories(graph: LayerGraph, plan: Plan) -> list[Memory]:
    """What ``plan`` takes on every worker."""
    programs = lower(plan, graph).programs
    return [program_memory(programs[worker], graph) for worker in range(plan.num_workers)]


def fits(graph: LayerGraph, cluster: ClusterProfile, plan: Plan) -> bool:
    """Whether every worker has the memory that ``plan`` takes there."""
    limits = limits_of(cluster)
    if min(limits) == math.inf:
        return True
    return all(needed.total_bytes <= limit for needed, limit in zip(memories(graph, plan), limits, strict=True))


def fastest(model: CostModel, plans: Iterable[Plan]) -> Plan:
    """The plan of least predicted time among those that fit; among all of them where none does."""
    ranked = sorted(plans, key=lambda plan: plan.predicted_s)
    return next((plan for plan in ranked if fits(model.graph, model.cluster, plan)), ranked[0])


def require_fit(graph: LayerGraph, cluster: ClusterProfile, plan: Plan) -> None:
    """``PlanError`` names the worker that lacks most, what it needs and what would help."""
    if fits(graph, cluster, plan):
        return
    limits, needed = limits_of(cluster), memories(graph, plan)
    worker = max(range(plan.num_workers), key=lambda k: needed[k].total_bytes - limits[k])
    memory, other = needed[worker], "" if plan.planner == "oodp" else "use planner oodp, "
    raise PlanError(
        f"worker {worker} ({cluster.devices[worker].name}) has not the memory for the plan of {plan.planner}: it needs "
        f"{memory.total_bytes / 1e6:.3f} MB ({memory.weights_bytes / 1e6:.3f} MB of weights, and most maps at layer "
        f"{memory.layer}), its limit is {limits[worker] / 1e6:.3f} MB; {other}raise the limit or add workers",
        grid=str(plan),
    )


def fitted(model: CostModel, plan: Plan) -> Iterator[Plan]:
    """Plans that fit, made with an eye on memory from the segments of one that does not, the best first."""
    limits = allowed = limits_of(model.cluster)
    for _ in range(ROUNDS):
        lacking = [math.inf] * len(limits)
        for segments in islice(_Ways(model, plan, allowed).run(), TRIALS):
            found = settled_plan(plan.planner, model, segments)
            needed = [memory.total_bytes for memory in memories(model.graph, found)]
            excess = [max(0.0, size - limit) for size, limit in zip(needed, limits, strict=True)]
            if not any(excess):
                yield found
                return
            lacking = [min(pair) for pair in zip(lacking, excess, strict=True)]
        allowed = tuple(limit - missing for limit, missing in zip(allowed, lacking, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Way:
    """One way to have computed the layers before a position: seconds, and bytes on every worker."""

    seconds: float
    weights: tuple[int, ...]
    maps: tuple[int, ...]
    segments: tuple[Segment, ...] = ()

    def beats(self, other: _Way) -> bool:
        """Whether this one is no worse in anything."""
        return (
            self.seconds <= other.seconds
            and all(map(le, self.weights, other.weights))
            and all(map(le, self.maps, other.maps))
        )


class _Ways:
    def __init__(self, model: CostModel, plan: Plan, limits: Limits) -> None:
        self._model, self._limits = model, limits
        self._pricers: dict[tuple[int, str], SplitPricer] = {}
        self._given = {segment.layers: segment for segment in plan.segments}
        num_layers = len(model.graph.layers)
        ends = {segment.layers.stop for segment in plan.segments}
        self._ends = sorted({0, *(range(num_layers) if num_layers <= SMALL else ()), *ends})

    def run(self) -> list[tuple[Segment, ...]]:
        """The ways to the end that keep to the limits, the fastest first."""
        nothing = (0,) * len(self._model.workers)
        known: dict[int, dict[Layout, list[_Way]]] = {0: {HOME: [_Way(seconds=0.0, weights=nothing, maps=nothing)]}}
        for place in range(1, len(self._ends)):
            stop = self._ends[place]
            known[stop] = {}
            span = place if len(self._model.graph.layers) <= SMALL else SPAN
            for start in self._ends[max(0, place - span) : place]:
                for segment in self._choices(Interval(start, stop)):
                    self._extend(known[start], known[stop], segment)
        ends = [
            (way.seconds + self._model.outputs_home(layout), way.segments)
            for layout, ways in known[self._ends[-1]].items()
            for way in ways
        ]
        return [segments for _, segments in sorted(ends, key=lambda end: end[0])]

    def _extend(self, before: dict[Layout, list[_Way]], after: dict[Layout, list[_Way]], segment: Segment) -> None:
        """Add what ``segment`` makes of the ways before it."""
        needed = self._needed(segment)
        if needed is None:
            return
        target: Layout = segment.axis if segment.on is None else segment.on
        for layout, ways in before.items():
            seconds = self._seconds(segment, layout)
            for way in ways:
                found = _Way(
                    seconds=way.seconds + seconds,
                    weights=tuple(a + b.weights_bytes for a, b in zip(way.weights, needed, strict=True)),
                    maps=tuple(max(a, b.maps_bytes) for a, b in zip(way.maps, needed, strict=True)),
                    segments=(*way.segments, segment),
                )
                if all(a + b <= limit for a, b, limit in zip(found.weights, found.maps, self._limits, strict=True)):
                    _keep(after.setdefault(target, []), found)

    def _seconds(self, segment: Segment, layout: Layout) -> float:
        if segment.on is not None:
            return self._model.whole_cost(segment.layers, segment.on, layout).total_s
        key = (segment.layers.stop, segment.axis)
        if key not in self._pricers:
            self._pricers[key] = SplitPricer(self._model, self._reach(*key))
        return self._pricers[key].segment_cost(segment, layout).total_s

    def _reach(self, stop: int, axis: str) -> Reach:
        return self._model.reach(stop, axis, lowest=max(0, stop - MAX_DEPTH), patience=PATIENCE[axis])

    def _needed(self, segment: Segment) -> list[Memory] | None:
        """What the segment takes by itself on every worker; ``None`` if that is too much for one."""
        model = self._model
        dims = {} if segment.on is not None else model.dims(segment.axis)
        programs = lower_alone(segment, model.graph, dims)
        needed = [program_memory(programs[k], model.graph) if k in programs else Memory() for k in model.workers]
        return needed if all(n.total_bytes <= limit for n, limit in zip(needed, self._limits, strict=True)) else None

    def _choices(self, layers: Interval) -> Iterator[Segment]:
        model = self._model
        if layers in self._given:
            yield self._given[layers]
        opaque = any(layer.op == "opaque" for layer in model.graph.layers[layers.start : layers.stop])
        for participant in (HOME,) if opaque else model.workers:
            yield Segment(layers=layers, axis="whole", on=participant)
        for axis in () if opaque else model.axes:
            reach = self._reach(layers.stop, axis)
            if reach.lowest <= layers.start <= reach.highest:
                yield from self._splits(layers, axis, reach.length)

    def _splits(self, layers: Interval, axis: str, length: int) -> Iterator[Segment]:
        size = grain(axis, length)
        for cuts in dict.fromkeys(self._cuts(length // size)):
            borders = (0, *(length if cut == length // size else cut * size for cut in cuts), length)
            shares = tuple(Interval(start, stop) for start, stop in pairwise(borders))
            if sum(len(share) > 0 for share in shares) > 1:
                yield Segment(layers=layers, axis=axis, length=length, shares=shares)

    def _cuts(self, length: int) -> Iterator[tuple[int, ...]]:
        """Where one worker's part ends and the next one's begins: everywhere if there are ``FEW`` ways, else some."""
        num_cuts = len(self._model.workers) - 1
        if math.comb(length + num_cuts, num_cuts) <= FEW:
            yield from combinations_with_replacement(range(length + 1), num_cuts)
        else:
            for weights in self._proportions():
                yield tuple(share.stop for share in weighted_cuts(length, weights))[:-1]

    def _proportions(self) -> Iterator[tuple[float, ...]]:
        """By speed and by memory, among all pairs of workers, and the so many that have most memory, or are fastest."""
        speeds = self._model.speed_shares
        room = tuple(max(1.0, min(limit, 1e15)) for limit in self._limits)
        for chosen in _subsets(room, speeds):
            for measure in (speeds, room):
                yield tuple(measure[k] if k in chosen else 0.0 for k in self._model.workers)


def _subsets(room: Sequence[float], speeds: Sequence[float]) -> set[frozenset[int]]:
    workers = range(len(room))
    ranked = (sorted(workers, key=lambda k: -room[k]), sorted(workers, key=lambda k: -speeds[k]))
    first = {frozenset(order[:count]) for order in ranked for count in range(2, len(room) + 1)}
    return first | {frozenset(pair) for pair in combinations(workers, 2)}


def _keep(ways: list[_Way], found: _Way) -> None:
    """Add ``found`` unless one is no worse; drop what it is no worse than, and too many that are slow and large."""
    if any(way.beats(found) for way in ways):
        return
    ways[:] = [*(way for way in ways if not found.beats(way)), found]
    if len(ways) > 2 * WAYS:
        ways.sort(key=lambda way: way.seconds)
        ways[:] = ways[: WAYS // 2] + sorted(ways[WAYS // 2 :], key=lambda way: sum(way.weights))[: WAYS // 2]
