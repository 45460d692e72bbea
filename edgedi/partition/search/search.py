"""The search: dynamic programming over where segments end and how the maps lie, exact for the cost model's estimate.

    best[j, layout] = min over i < j, previous layout of best[i, previous] + cost(segment [i, j), layout | previous)

with ``layout`` an axis or "whole on worker k". The shares of a split segment are those of ``minimax``, or fixed
proportions. What is not looked at: split segments of more than ``max_depth`` layers; shares of channels that are no
multiples of up to 16; segments that begin with ``PATIENCE`` layers that every worker computes whole; and columns,
whose halos are never contiguous in memory, unless an input is wider than high. A split segment has at least two active
workers (one alone is "whole"). Of equal plans the one with fewer segments is taken: every split segment counts ``TIE``
of one device's time more than it costs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass

from edgedi.partition.cost.cost import CostModel, Layout
from edgedi.partition.graph.geometry import Interval, weighted_cuts
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.reach import Reach, may_split
from edgedi.partition.plan.plan import HOME, Segment
from edgedi.partition.search.estimate import SplitPricer
from edgedi.partition.search.minimax import ALONE, FIRST, LAST, MIDDLE, Split, feasible, minimax

Weights = tuple[float, ...]

MAX_DEPTH = 32
"""Layers of a split segment at most, unless the caller says otherwise."""

PATIENCE = {"rows": 6, "columns": 6, "channels": 3, "batch": 6}
"""Leading layers computed whole by everybody after which longer segments are given up."""

CHANNEL_GRAIN = 16

TIE = 1e-9
"""Share of the best device's time for the whole network that tips the balance between equal plans."""


def search(
    model: CostModel,
    *,
    max_depth: int = MAX_DEPTH,
    weights: Weights | None = None,
    axes: Sequence[str] | None = None,
    ends: Set[int] | None = None,
) -> tuple[list[Segment], float]:
    """The segments that the estimate calls fastest, outputs brought home, and their seconds.

    With ``weights`` every split segment is cut in these proportions instead of by ``minimax``. ``axes`` and ``ends``
    are the only axes to split along and the only places where segments may end (besides the last layer).
    """
    return _Search(model, max_depth, weights, axes_worth(model) if axes is None else axes, ends).run()


def best_segment(model: CostModel, layers: Interval, axis: str, layout: Layout) -> Segment | None:
    """These layers split along ``axis`` as is best after ``layout``; ``None`` where they cannot be."""
    if not may_split(model.graph, layers, axis, model.dims(axis)):
        return None
    reach = model.reach(layers.stop, axis, lowest=layers.start)
    split = _best_split(SplitPricer(model, reach), layers.start, layout, math.inf) if reach.length > 1 else None
    return Segment(layers=layers, axis=axis, length=reach.length, shares=split.shares) if split is not None else None


def axes_worth(model: CostModel) -> tuple[str, ...]:
    """The axes that a search looks at if not told otherwise."""
    return tuple(axis for axis in model.axes if axis != "columns" or _wider_than_high(model.graph))


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
    def __init__(
        self, model: CostModel, max_depth: int, weights: Weights | None, axes: Sequence[str], ends: Set[int] | None
    ) -> None:
        self._model, self._depth, self._weights, self._axes = model, max_depth, weights, axes
        self._graph = model.graph
        self._tie_s = TIE * model.whole_compute(model.fastest, Interval(0, len(model.graph.layers)))
        self._ends = ends
        self._best: list[dict[Layout, _Arrival]] = [{HOME: _Arrival(0.0)}]
        self._earliest = {0: 0.0}

    def run(self) -> tuple[list[Segment], float]:
        for stop in range(1, len(self._graph.layers) + 1):
            self._best.append({})
            if self._ends is not None and stop not in self._ends and stop < len(self._graph.layers):
                continue
            self._arrive_whole(stop)
            if len(self._model.workers) > 1:
                for axis in self._axes:
                    self._arrive_split(stop, axis)
            self._earliest[stop] = min((arrival.seconds for arrival in self._best[stop].values()), default=math.inf)
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
            if not self._best[start]:
                continue
            layers, earliest = Interval(start, stop), self._earliest[start]
            outside: tuple[str, ...] | None = None
            for target in targets:
                compute_s = self._model.whole_compute(target, layers)
                if self._open(stop, target, earliest) <= compute_s:
                    continue
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
        pricer = self._pricer(reach)
        for start in range(reach.highest, reach.lowest - 1, -1):
            arrivals = sorted(self._best[start].items(), key=lambda item: item[1].seconds)
            if not arrivals or not _worth_a_look(pricer, start, self._open(stop, axis, arrivals[0][1].seconds)):
                continue
            for layout, arrival in arrivals:
                limit = self._open(stop, axis, arrival.seconds + self._tie_s)
                split = self._split(pricer, start, layout, limit)
                if split is not None:
                    segment = Segment(layers=Interval(start, stop), axis=axis, length=reach.length, shares=split.shares)
                    self._best[stop][axis] = _Arrival(arrival.seconds + split.seconds + self._tie_s, layout, segment)

    def _pricer(self, reach: Reach) -> SplitPricer:
        """The prices of a reach, kept with the model: other searches ask for the same."""
        key = reach, 1 if self._weights is None else 0
        if key not in self._model.pricers:
            self._model.pricers[key] = SplitPricer(self._model, reach, moved=key[1])
        pricer: SplitPricer = self._model.pricers[key]
        return pricer

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
    size = grain(pricer.reach.axis, length)
    return minimax(len(pricer.model.workers), length, cost, grain=size, limit=limit)


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
