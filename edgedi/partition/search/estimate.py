"""The estimate that the search uses: prices of segments that depend on the layout before them alone (see ``cost``)."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from itertools import accumulate

from edgedi.partition.cost.cost import CostModel, Fetch, Layout
from edgedi.partition.graph.geometry import Interval, scale
from edgedi.partition.graph.reach import NOTHING, Reach
from edgedi.partition.plan.plan import HOME, Cost, Plan, Segment
from edgedi.partition.search.minimax import ALONE, FIRST, LAST, MIDDLE


def segment_cost(model: CostModel, segment: Segment, layout: Layout) -> Cost:
    """A segment that follows one of ``layout`` (``HOME`` for the first)."""
    layers = segment.layers
    if segment.on is not None:
        return model.whole_cost(layers, segment.on, layout)
    return SplitPricer(model, model.reach(layers.stop, segment.axis, lowest=layers.start)).segment_cost(segment, layout)


def estimated(model: CostModel, plan: Plan) -> Plan:
    """``plan`` with every segment's estimate filled in; the outputs' way home is in the last one's exchange."""
    layout: Layout = HOME
    segments: list[Segment] = []
    for segment in plan.segments:
        segments.append(replace(segment, cost=segment_cost(model, segment, layout)))
        layout = segment.axis if segment.on is None else segment.on
    if segments:
        last = segments[-1].cost
        last = replace(last, exchange_s=last.exchange_s + model.outputs_home(layout))
        segments[-1] = replace(segments[-1], cost=last)
    return replace(plan, segments=tuple(segments))


@dataclass(frozen=True, slots=True)
class Exchange:
    """One worker's exchange at a segment's start: a fixed part by role, and seconds per byte of groups of inputs."""

    fixed_s: tuple[float, float, float, float]
    per_byte_s: tuple[tuple[int, float], ...]


@dataclass(frozen=True, slots=True)
class _Input:
    """A tensor that a segment reads: whole, or cut along the axis with so many halo elements on each side."""

    tensor: str
    from_home: bool
    num_bytes: int
    element_bytes: float = 0.0
    above: int = 0
    below: int = 0
    cut: bool = False


class SplitPricer:
    """Prices shares of all segments that end at one layer and are split along one axis.

    ``moved`` is how many elements at least cross an inner border between two segments of the same axis: 0 where all
    segments are cut in the same proportions.
    """

    def __init__(self, model: CostModel, reach: Reach, *, moved: int = 1) -> None:
        self.model, self.reach, self._moved = model, reach, moved
        self._sums: dict[tuple[int, int, int], list[float]] = {}
        self._exchanges: dict[tuple[int, Layout, int], Exchange] = {}
        self._inputs: dict[int, list[_Input]] = {}
        self._numbers: dict[tuple[_Input, ...], int] = {}
        self._groups: list[tuple[_Input, ...]] = []
        self._edges: dict[tuple[int, int, int, int], float] = {}

    def total(self, first: int, layout: Layout, worker: int, start: int, stop: int, role: int) -> float:
        """Seconds of one worker: non-decreasing in its share for a given role."""
        return self.compute(first, worker, start, stop) + self.exchange_s(first, layout, worker, start, stop, role)

    def cost(self, first: int, layout: Layout, worker: int, start: int, stop: int, role: int) -> Cost:
        """The same, with its parts."""
        return Cost(
            compute_s=self.compute(first, worker, start, stop),
            exchange_s=self.exchange_s(first, layout, worker, start, stop, role),
        )

    def segment_cost(self, segment: Segment, layout: Layout) -> Cost:
        """The slowest worker's, for the shares of a segment that follows one of ``layout``."""
        first, active = segment.layers.start, segment.workers
        roles = {active[0]: FIRST, active[-1]: LAST} if len(active) > 1 else {active[0]: ALONE}
        shares = ((worker, segment.shares[worker]) for worker in active)
        costs = (
            self.cost(first, layout, worker, share.start, share.stop, roles.get(worker, MIDDLE))
            for worker, share in shares
        )
        return max(costs, key=lambda cost: cost.total_s)

    def compute(self, first: int, worker: int, start: int, stop: int) -> float:
        """Seconds of computing for the share ``[start, stop)`` in a segment that begins at layer ``first``."""
        model = self.model
        key = (model.kind_of(worker), start, stop)
        sums = self._sums.get(key)
        if sums is None:
            top, axis = self.reach.stop - 1, self.reach.axis
            counts = self.reach.counts(start, stop)
            sums = list(accumulate(model.table(worker, top - d, axis)[count] for d, count in enumerate(counts)))
            self._sums[key] = sums
        return sums[self.reach.stop - 1 - first]

    def exchange_s(self, first: int, layout: Layout, worker: int, start: int, stop: int, role: int) -> float:
        """Seconds of exchange before a segment that begins at ``first`` and follows one of ``layout``."""
        key = (first, layout, worker)
        exchange = self._exchanges.get(key)
        if exchange is None:
            exchange = self._exchanges[key] = self._exchange(first, layout, worker)
        seconds = exchange.fixed_s[role]
        for group, per_byte_s in exchange.per_byte_s:
            seconds += per_byte_s * self._cut_bytes(first, group, start, stop)
        return seconds

    def _cut_bytes(self, first: int, group: int, start: int, stop: int) -> float:
        """Bytes that a share reads of a group of inputs: the bytes up to its end, less those before its start."""
        reach = self.reach
        if not reach.separable:
            reads = ((read, reach.read(first, read.tensor, start, stop)) for read in self._groups[group])
            return sum(read.element_bytes * (high - low) for read, (low, high) in reads)
        return self._edge_bytes(first, group, stop, 1) - self._edge_bytes(first, group, start, 0)

    def _edge_bytes(self, first: int, group: int, cut: int, side: int) -> float:
        key = (first, group, cut, side)
        if key not in self._edges:
            start, stop = (0, cut) if side else (cut, self.reach.length)
            self._edges[key] = sum(
                read.element_bytes * self.reach.read(first, read.tensor, start, stop)[side]
                for read in self._groups[group]
            )
        return self._edges[key]

    def _exchange(self, first: int, layout: Layout, worker: int) -> Exchange:
        halos = _Halos(self.model, worker)
        by_rate: dict[float, list[_Input]] = defaultdict(list)
        for read in self._inputs_of(first):
            if read.cut and layout == self.reach.axis and not read.from_home:
                halos.add(read)
                continue
            fetch = self.model.fetch(read.tensor, worker, layout)
            halos.add_fetch(fetch, 0.0 if read.cut else read.num_bytes)
            if read.cut and fetch.per_byte_s:
                by_rate[fetch.per_byte_s].append(read)
        return Exchange(halos.fixed(), tuple((self._group(reads), rate) for rate, reads in by_rate.items()))

    def _group(self, reads: list[_Input]) -> int:
        """The number of a group of inputs; equal groups have equal numbers, so that their bytes are counted once."""
        key = tuple(reads)
        if key not in self._numbers:
            self._numbers[key] = len(self._groups)
            self._groups.append(key)
        return self._numbers[key]

    def _inputs_of(self, first: int) -> list[_Input]:
        """What shares of a segment that begins at ``first`` read from before it."""
        if first not in self._inputs:
            self._inputs[first] = [
                self._input(first, tensor, high - low) for tensor, (low, high) in self._reads_at_middle(first).items()
            ]
        return self._inputs[first]

    def _input(self, first: int, tensor: str, count: int) -> _Input:
        num_bytes, extent = self.model.graph.spec(tensor).num_bytes, self.reach.whole_of(tensor) - 1
        from_home = tensor in self.model.graph.inputs
        if tensor not in self.reach.dims or count > extent:
            return _Input(tensor, from_home, num_bytes=num_bytes)
        above, below = (0, 0) if from_home else self._halo_at_middle(first, tensor)
        return _Input(tensor, from_home, num_bytes, num_bytes / extent, above, below, cut=True)

    def _middle(self) -> int:
        return self.reach.length // 2

    def _reads_at_middle(self, first: int) -> dict[str, tuple[int, int]]:
        """Every tensor that any share reads, whole if one of the halves reads it whole."""
        middle, reach = self._middle(), self.reach
        reads = reach.inputs(first, 0, middle)
        for tensor, (low, high) in reach.inputs(first, middle, reach.length).items():
            if tensor not in reads or high - low == reach.whole_of(tensor):
                reads[tensor] = (low, high)
        return reads

    def _halo_at_middle(self, first: int, tensor: str) -> tuple[int, int]:
        """Elements above and below the owned part that a share beginning, or ending, near the middle reads."""
        reach, extent = self.reach, self.reach.whole_of(tensor) - 1
        above = below = self._moved
        for cut in {self._middle(), min(self._middle() + 1, reach.length - 1)}:
            border = scale(Interval(cut, cut), extent, reach.length).start
            lower, upper = reach.read(first, tensor, cut, reach.length), reach.read(first, tensor, 0, cut)
            above = max(above, border - lower[0]) if lower != NOTHING else above
            below = max(below, upper[1] - border)
        return above, below


class _Halos:
    """Adds up what one worker waits for: what comes to it in any role, and what only a neighbour sends."""

    def __init__(self, model: CostModel, worker: int) -> None:
        between, last = model.cluster.link_between, len(model.workers) - 1
        self._above = between(worker - 1, worker) if worker else None
        self._below = between(worker + 1, worker) if worker < last else None
        self._latency = self._seconds = 0.0
        self._above_s = self._below_s = 0.0
        self._latency_above = self._latency_below = 0.0

    def add(self, read: _Input) -> None:
        if self._above is not None and read.above > 0:
            self._latency_above = self._above.latency_s
            self._above_s += 2 * self._above.message_cpu_s + read.above * read.element_bytes / self._above.bytes_per_s
        if self._below is not None and read.below > 0:
            self._latency_below = self._below.latency_s
            self._below_s += 2 * self._below.message_cpu_s + read.below * read.element_bytes / self._below.bytes_per_s

    def add_fetch(self, fetch: Fetch, num_bytes: float) -> None:
        self._latency = max(self._latency, fetch.latency_s)
        self._seconds += fetch.messages_s + fetch.per_byte_s * num_bytes

    def fixed(self) -> tuple[float, float, float, float]:
        """For the roles FIRST, MIDDLE, LAST and ALONE."""
        above, below = max(self._latency, self._latency_above), max(self._latency, self._latency_below)
        return (
            below + self._seconds + self._below_s,
            max(above, below) + self._seconds + self._above_s + self._below_s,
            above + self._seconds + self._above_s,
            self._latency + self._seconds,
        )
