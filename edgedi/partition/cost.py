"""The cost model: predicted seconds of segments and plans. Every planner is priced by these formulae and no others.

Notation: worker ``k``, layer ``l``, link ``(s, t)`` from participant s to t, all times in seconds.

    plan      = sum of its segments, then the outputs' way home (counted with the last segment)
    segment   = max over workers of compute + exchange
    compute   = sum over layers of seconds_k(l, the region that demand.backward asks of l)     halo rows counted again
    exchange  = max of latency(s, k) over the messages that k waits for
              + sum over messages of message_cpu at both ends
              + sum over messages of bytes / bytes_per_s(s, k)

Which messages worker k waits for depends on where the segment's inputs lie, and that on the *layout* before it:

    the same axis     k owns the part of each input that is its own share in proportion; the rest is halo: one message
                      per input and inner border, from the neighbours k - 1 and k + 1, as wide as it is at the middle of
                      the map and at least one element, since two segments' borders seldom fall on the same one. The
                      first worker has no halo above, the last none below.
    another axis      every other worker owns a part in proportion to its speed: a gather of what k needs, less its own
    whole on worker m one message per input from m; nothing if k is m
    graph inputs      come from HOME whenever they are read, outputs are gathered at HOME

Tensors without the layout's axis lie with every worker and cost nothing; parts of a reduction go from each worker to
each.

The published models (EdgeLD, EdgeDI) have one straight line per device and bytes over bandwidth; measured curves, the
fixed cost of messages, unequal links and layouts that change between segments are ours.

Where this is an *estimate*: every tensor alive at a boundary is taken to lie in the layout of the segment just before
(a long skip may lie in an older one), cut in the proportion of the segment that reads it (equal axis) or of the
devices' speeds (other axis); moving a border by more than an element between two segments of the same axis is therefore
free; a halo wider than the neighbour's share counts as one message. In return the price of a segment depends on the
layout before it alone, which makes dynamic programming over segments exact for the estimate. A finished plan is priced
again, without these approximations, on the messages and pieces that lowering really emits (``settle.settled``);
planners compare their candidates by that price, and plans report it.

Approximate in both: waiting is not overlapped with work; a sender's other messages, and links that share one wire, do
not slow each other down; memory is not priced.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate

from edgedi.partition.axes import AXES, axis_dims
from edgedi.partition.geometry import Interval, scale
from edgedi.partition.graph import LayerGraph
from edgedi.partition.minimax import ALONE, FIRST, LAST, MIDDLE
from edgedi.partition.operators import Region
from edgedi.partition.plan import HOME, Cost, Plan, Segment
from edgedi.partition.profile import ClusterProfile, DeviceProfile
from edgedi.partition.program import UNSPLIT, Piece, Run
from edgedi.partition.reach import NOTHING, Reach, reduces

Layout = str | int
"""Where tensors lie before a segment: split along an axis (its name), or whole on a participant (its number)."""

_ABOVE, _BELOW = {MIDDLE, LAST}, {FIRST, MIDDLE}


@dataclass(frozen=True, slots=True)
class Fetch:
    """Getting one tensor from where it lies: latency, processor seconds of its messages, seconds per byte of it."""

    latency_s: float = 0.0
    messages_s: float = 0.0
    per_byte_s: float = 0.0


class CostModel:
    """Prices for one graph on one cluster, with the tables that make asking often cheap."""

    def __init__(self, graph: LayerGraph, cluster: ClusterProfile) -> None:
        self.graph, self.cluster = graph, cluster
        self.workers = tuple(range(cluster.num_workers))
        self._dims = {axis: axis_dims(graph, axis) for axis in AXES}
        self.axes = tuple(axis for axis in AXES if any(layer.name in self._dims[axis] for layer in graph.layers))
        devices = cluster.devices
        self._kind = {k: next(m for m in self.workers if _alike(devices[m], devices[k])) for k in self.workers}
        self._whole_s = {k: self._whole_seconds(devices[k]) for k in dict.fromkeys(self._kind.values())}
        speeds = [1.0 / max(1e-30, sum(self._whole_s[self._kind[k]])) for k in self.workers]
        self.speed_shares = tuple(speed / sum(speeds) for speed in speeds)
        self.fastest = max(self.workers, key=lambda k: speeds[k])
        home = cluster.home
        self._whole_s[HOME] = self._whole_seconds(home) if home else self._whole_s[self._kind[self.fastest]]
        self._kind[HOME] = HOME
        self._prefix_s = {kind: (0.0, *accumulate(times)) for kind, times in self._whole_s.items()}
        self._fetches: dict[tuple[str, int, Layout], Fetch] = {}
        self._tables: dict[tuple[int, int, str], list[float]] = {}
        self._reaches: dict[tuple[int, str, int, int | None], Reach] = {}

    def dims(self, axis: str) -> Mapping[str, int]:
        """The dimension of ``axis`` in each tensor that has one."""
        return self._dims[axis]

    def _whole_seconds(self, device: DeviceProfile) -> tuple[float, ...]:
        graph = self.graph
        return tuple(device.seconds(layer, graph.input_shapes(layer)) for layer in graph.layers)

    # --- compute ------------------------------------------------------------------------------------------------------

    def whole_compute(self, worker: int, layers: Interval) -> float:
        """Seconds for all of ``layers`` on one participant."""
        prefix = self._prefix_s[self._kind[worker]]
        return prefix[layers.stop] - prefix[layers.start]

    def table(self, worker: int, position: int, axis: str) -> list[float]:
        """Seconds that a worker takes for 0, 1, ... elements of a layer along ``axis``, at the end for all of it."""
        kind = self._kind[worker]
        key = (kind, position, axis)
        if key not in self._tables:
            self._tables[key] = self._make_table(kind, position, axis)
        return self._tables[key]

    def _make_table(self, kind: int, position: int, axis: str) -> list[float]:
        layer, dims, device = self.graph.layers[position], self._dims[axis], self.cluster.devices[kind]
        whole_s = self._whole_s[kind][position]
        if reduces(layer, dims):
            length = self.graph.spec(layer.inputs[0]).shape[dims[layer.inputs[0]]]
            return [whole_s * n / length for n in range(length + 1)] + [whole_s]
        if layer.name not in dims:
            return [0.0, whole_s]
        dim, shapes = dims[layer.name], self.graph.input_shapes(layer)
        lengths = range(1, layer.spec.shape[dim] + 1)
        parts = (device.seconds(layer, shapes, Region(dim, Interval(0, n))) for n in lengths)
        return [0.0, *accumulate(parts, max), whole_s]

    # --- exchange -----------------------------------------------------------------------------------------------------

    def fetch(self, tensor: str, target: int, layout: Layout) -> Fetch:
        """What it takes ``target`` to get ``tensor``, of which it holds what ``layout`` says."""
        key = (tensor, target, layout)
        if key not in self._fetches:
            sources = self._sources(tensor, target, layout)
            self._fetches[key] = self._fetch_from({s: part for s, part in sources.items() if s != target}, target)
        return self._fetches[key]

    def _sources(self, tensor: str, target: int, layout: Layout) -> Mapping[int, float]:
        """Which share of ``tensor`` each participant sends."""
        if tensor in self.graph.inputs:
            return {HOME: 1.0}
        if isinstance(layout, int):
            return {layout: 1.0}
        if tensor in self._dims[layout]:
            return dict(enumerate(self.speed_shares))
        if reduces(self.graph.by_name[tensor], self._dims[layout]):
            return dict.fromkeys(self.workers, 1.0)
        return {0: 1.0} if target == HOME else {}

    def _fetch_from(self, sources: Mapping[int, float], target: int) -> Fetch:
        links = {source: self.cluster.link_between(source, target) for source in sources}
        return Fetch(
            latency_s=max((link.latency_s for link in links.values()), default=0.0),
            messages_s=sum(2 * link.message_cpu_s for link in links.values()),
            per_byte_s=sum(part / links[source].bytes_per_s for source, part in sources.items()),
        )

    def gather(self, tensors: Iterable[str], target: int, layout: Layout) -> float:
        """Seconds until ``target`` has all of each tensor."""
        latency = seconds = 0.0
        for tensor in tensors:
            fetch = self.fetch(tensor, target, layout)
            latency = max(latency, fetch.latency_s)
            seconds += fetch.messages_s + fetch.per_byte_s * self.graph.spec(tensor).num_bytes
        return latency + seconds

    def outputs_home(self, layout: Layout) -> float:
        """Seconds until HOME has the graph's outputs after a last segment of ``layout``."""
        outputs = dict.fromkeys(self.graph.outputs)
        return self.gather((t for t in outputs if t not in self.graph.inputs), HOME, layout)

    def outside(self, layers: Interval) -> tuple[str, ...]:
        """Tensors that a run of layers reads and does not make."""
        graph = self.graph
        read = dict.fromkeys(t for layer in graph.layers[layers.start : layers.stop] for t in layer.inputs)
        return tuple(tensor for tensor in read if graph.position[tensor] < layers.start)

    def whole_cost(self, layers: Interval, worker: int, layout: Layout) -> Cost:
        """A segment that runs whole on one participant."""
        exchange = self.gather(self.outside(layers), worker, layout)
        return Cost(compute_s=self.whole_compute(worker, layers), exchange_s=exchange)

    # --- plans --------------------------------------------------------------------------------------------------------

    def reach(self, stop: int, axis: str, *, lowest: int = 0, patience: int | None = None) -> Reach:
        """The walks of all segments that end at ``stop``, made once."""
        key = (stop, axis, lowest, patience)
        if key not in self._reaches:
            self._reaches[key] = Reach(self.graph, stop, axis, lowest=lowest, dims=self._dims[axis], patience=patience)
        return self._reaches[key]

    def segment_cost(self, segment: Segment, layout: Layout) -> Cost:
        """A segment that follows one of ``layout`` (``HOME`` for the first)."""
        layers = segment.layers
        if segment.on is not None:
            return self.whole_cost(layers, segment.on, layout)
        pricer = SplitPricer(self, self.reach(layers.stop, segment.axis, lowest=layers.start))
        active = segment.workers
        costs = []
        for worker in active:
            role = ALONE if len(active) == 1 else {active[0]: FIRST, active[-1]: LAST}.get(worker, MIDDLE)
            costs.append(
                pricer.cost(
                    layers.start, layout, worker, segment.shares[worker].start, segment.shares[worker].stop, role
                )
            )
        return max(costs, key=lambda cost: cost.total_s)

    def estimated(self, plan: Plan) -> Plan:
        """``plan`` with every segment's estimate filled in; the outputs' way home is in the last one's exchange."""
        layout: Layout = HOME
        segments: list[Segment] = []
        for segment in plan.segments:
            segments.append(replace(segment, cost=self.segment_cost(segment, layout)))
            layout = segment.axis if segment.on is None else segment.on
        if segments:
            last = segments[-1].cost
            last = replace(last, exchange_s=last.exchange_s + self.outputs_home(layout))
            segments[-1] = replace(segments[-1], cost=last)
        return replace(plan, segments=tuple(segments))

    def run_seconds(self, worker: int, run: Run, axis: str) -> float:
        """Seconds of one RUN instruction in a segment of ``axis``."""
        position = self.graph.position[run.piece.tensor]
        if axis == "whole":
            return self._whole_s[self._kind[worker]][position]
        table = self.table(worker, position, axis)
        if run.over is not None:
            return table[len(run.over.interval)]
        return table[-1] if run.piece.dim == UNSPLIT else table[len(run.piece.interval)]

    def num_bytes(self, piece: Piece) -> int:
        """Bytes of a piece; a part of a reduction is as large as the tensor's spec says one part is."""
        spec = self.graph.spec(piece.tensor)
        if piece.dim == UNSPLIT:
            return spec.num_bytes
        return spec.num_bytes // max(1, spec.shape[piece.dim]) * len(piece.interval)


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

    def compute(self, first: int, worker: int, start: int, stop: int) -> float:
        """Seconds of computing for the share ``[start, stop)`` in a segment that begins at layer ``first``."""
        model = self.model
        key = (model._kind[worker], start, stop)
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
    """Adds up what one worker waits for, by role."""

    def __init__(self, model: CostModel, worker: int) -> None:
        between, last = model.cluster.link_between, len(model.workers) - 1
        self._above = between(worker - 1, worker) if worker else None
        self._below = between(worker + 1, worker) if worker < last else None
        self._latency, self._seconds = [0.0] * 4, [0.0] * 4

    def add(self, read: _Input) -> None:
        for link, count, roles in ((self._above, read.above, _ABOVE), (self._below, read.below, _BELOW)):
            if link is not None and count > 0:
                seconds = 2 * link.message_cpu_s + count * read.element_bytes / link.bytes_per_s
                for role in roles:
                    self._latency[role] = max(self._latency[role], link.latency_s)
                    self._seconds[role] += seconds

    def add_fetch(self, fetch: Fetch, num_bytes: float) -> None:
        for role in range(4):
            self._latency[role] = max(self._latency[role], fetch.latency_s)
            self._seconds[role] += fetch.messages_s + fetch.per_byte_s * num_bytes

    def fixed(self) -> tuple[float, float, float, float]:
        first, middle, last, alone = (a + b for a, b in zip(self._latency, self._seconds, strict=True))
        return first, middle, last, alone


def _alike(one: DeviceProfile, other: DeviceProfile) -> bool:
    return (one.layers, one.seconds_per_flop, one.seconds_per_layer) == (
        other.layers,
        other.seconds_per_flop,
        other.seconds_per_layer,
    )
