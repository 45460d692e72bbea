"""The cost model: predicted seconds of segments and plans. Every planner is priced by these formulae and no others.

Notation: worker ``k``, layer ``l``, link ``(s, t)`` from participant s to t, all times in seconds.

    plan      = sum of its segments, then the outputs' way home (counted with the last segment)
    segment   = max over workers of compute + exchange
    compute   = sum over layers of seconds_k(l, the region that demand.backward asks of l)     halo rows counted again
                times alone_share_k where k alone computes the whole network
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
    graph inputs      come from HOME whenever they are read, outputs are gathered at HOME; a plan that a worker in the
                      coordinator's own process answers alone has no messages (known of a finished plan only)

Tensors without the layout's axis lie with every worker and cost nothing; parts of a reduction go from each worker to
each.

The published models (EdgeLD, EdgeDI) have one straight line per device and bytes over bandwidth; measured curves, the
fixed cost of messages, unequal links and layouts that change between segments are ours.

Where this is an *estimate*: every tensor alive at a boundary is taken to lie in the layout of the segment just before
(a long skip may lie in an older one), cut in the proportion of the segment that reads it (equal axis) or of the
devices' speeds (other axis); moving a border by more than an element between two segments of the same axis is therefore
free; a halo wider than the neighbour's share counts as one message. In return the price of a segment depends on the
layout before it alone, which makes dynamic programming over segments exact for the estimate (``estimate``). A finished
plan is priced again, without these approximations, on the messages and pieces that lowering really emits
(``settle``); planners compare their candidates by that price, and plans report it. There, borders that are sent before
the rest is computed are waited for that much less (``overlap``); the estimate has all of their way.

Approximate in both: a sender's other messages, and links that share one wire, do not slow each other down. Memory has
no price, it is a limit (``fitting``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Any

from edgedi.partition.cost.profile import ClusterProfile, DeviceProfile
from edgedi.partition.graph.axes import AXES
from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.reach import Reach, Reaches, reduces
from edgedi.partition.plan.plan import HOME, Cost, Plan
from edgedi.partition.plan.program import UNSPLIT, Piece, Run

Layout = str | int
"""Where tensors lie before a segment: split along an axis (its name), or whole on a participant (its number)."""


@dataclass(frozen=True, slots=True)
class Fetch:
    """Getting one tensor from where it lies: latency, processor seconds of its messages, seconds per byte of it."""

    latency_s: float = 0.0
    messages_s: float = 0.0
    per_byte_s: float = 0.0


class CostModel:
    """Prices for one graph on one cluster, with the tables that make asking often cheap."""

    def __init__(self, graph: LayerGraph, cluster: ClusterProfile, *, reaches: Reaches | None = None) -> None:
        self.graph, self.cluster = graph, cluster
        self.workers = tuple(range(cluster.num_workers))
        self._reaches = reaches or Reaches(graph)
        self.axes = tuple(axis for axis in AXES if any(layer.name in self.dims(axis) for layer in graph.layers))
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
        self._tables: dict[tuple[int, int, str], _Table] = {}
        self.pricers: dict[tuple[Reach, int], Any] = {}
        """What searches have priced, by walks and how far borders move: kept here, as these are this model's prices."""

    def on(self, cluster: ClusterProfile) -> CostModel:
        """Prices for the same graph on another cluster; the graph is not walked again."""
        return CostModel(self.graph, cluster, reaches=self._reaches)

    def dims(self, axis: str) -> Mapping[str, int]:
        """The dimension of ``axis`` in each tensor that has one."""
        return self._reaches.dims(axis)

    def kind_of(self, worker: int) -> int:
        """A number that participants with equal profiles share."""
        return self._kind[worker]

    def _whole_seconds(self, device: DeviceProfile) -> tuple[float, ...]:
        graph = self.graph
        return tuple(device.seconds(layer, graph.input_shapes(layer)) for layer in graph.layers)

    # --- compute ------------------------------------------------------------------------------------------------------

    def whole_compute(self, worker: int, layers: Interval) -> float:
        """Seconds for all of ``layers`` on one participant, which are less than their sum if they are the network."""
        prefix = self._prefix_s[self._kind[worker]]
        share = self._alone_share(worker) if len(layers) == len(self.graph.layers) else 1.0
        return share * (prefix[layers.stop] - prefix[layers.start])

    def layer_compute(self, worker: int, position: int) -> float:
        """Seconds for all of one layer on one participant."""
        return self._whole_s[self._kind[worker]][position]

    def alone_share(self, plan: Plan, worker: int) -> float:
        """What ``run_seconds`` are multiplied with under ``plan``: 1 unless the worker computes all of it."""
        return self._alone_share(worker) if [segment.on for segment in plan.segments] == [worker] else 1.0

    def _alone_share(self, worker: int) -> float:
        return self.cluster.devices[self._kind[worker]].alone_share if worker != HOME else 1.0

    def table(self, worker: int, position: int, axis: str) -> Mapping[int, float]:
        """Seconds that a worker takes for 0, 1, ... elements of a layer along ``axis``; one more than it has: all."""
        kind = self._kind[worker]
        key = (kind, position, axis)
        if key not in self._tables:
            device = self.cluster.devices[kind]
            self._tables[key] = _Table(self.graph, device, position, self.dims(axis), self._whole_s[kind][position])
        return self._tables[key]

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
        if tensor in self.dims(layout):
            return dict(enumerate(self.speed_shares))
        if reduces(self.graph.by_name[tensor], self.dims(layout)):
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
        return self._reaches.of(stop, axis, lowest=lowest, patience=patience)

    def run_seconds(self, worker: int, run: Run, axis: str) -> float:
        """Seconds of one RUN instruction in a segment of ``axis``."""
        position = self.graph.position[run.piece.tensor]
        if axis == "whole":
            return self._whole_s[self._kind[worker]][position]
        if run.over is not None:
            return self.table(worker, position, axis)[len(run.over.interval)]
        if run.piece.dim == UNSPLIT:
            return self._whole_s[self._kind[worker]][position]
        return self.table(worker, position, axis)[len(run.piece.interval)]

    def num_bytes(self, piece: Piece) -> int:
        """Bytes of a piece; a part of a reduction is as large as the tensor's spec says one part is."""
        spec = self.graph.spec(piece.tensor)
        if piece.dim == UNSPLIT:
            return spec.num_bytes
        return spec.num_bytes // max(1, spec.shape[piece.dim]) * len(piece.interval)


class _Table(dict[int, float]):
    """Seconds of one layer on one device by how many elements it makes, priced when first asked for."""

    __slots__ = ("_device", "_dim", "_layer", "_reduced", "_shapes", "_whole_s")

    def __init__(
        self, graph: LayerGraph, device: DeviceProfile, position: int, dims: Mapping[str, int], whole_s: float
    ) -> None:
        layer = graph.layers[position]
        self._device, self._layer, self._shapes = device, layer, graph.input_shapes(layer)
        self._dim, self._whole_s = dims.get(layer.name), whole_s
        self._reduced = graph.spec(layer.inputs[0]).shape[dims[layer.inputs[0]]] if reduces(layer, dims) else 0
        super().__init__({0: 0.0})

    def __missing__(self, count: int) -> float:
        self[count] = seconds = self._seconds(count)
        return seconds

    def _seconds(self, count: int) -> float:
        if self._reduced:
            return self._whole_s * min(count, self._reduced) / self._reduced
        if self._dim is None or count > self._layer.spec.shape[self._dim]:
            return self._whole_s
        return self._device.seconds(self._layer, self._shapes, Region(self._dim, Interval(0, count)))


def _alike(one: DeviceProfile, other: DeviceProfile) -> bool:
    return replace(one, name="", fingerprint="", memory_bytes=None) == replace(
        other, name="", fingerprint="", memory_bytes=None
    )
