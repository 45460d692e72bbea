"""Planners to compare with: published rules, and the two that need none.

    single        everything on the one device that is fastest at it
    equal         equal rows for every worker
    proportional  rows in proportion to speed, blind to links: MoDNN's BODP [published]
    ocbp          EdgeLD's rule [published]: from proportional on, move one row from the slowest to the fastest worker
                  until they differ by less than a tolerance
    oodp-greedy   EdgeDI's rule [published, and read in the authors' code]: the same moves while the gap between the
                  slowest and the fastest shrinks; the last shares before it grew

Where segments end is part of each method. ``equal`` and ``proportional`` exchange before every layer that reads halo
rows, as MoDNN does layer by layer. ``ocbp`` and ``oodp-greedy`` fuse blocks: up to a layer that changes the height of
the map (a pool of VGG) or that joins branches (the end of a residual block), where one tensor is alive. That reading of
"block" for networks which the papers do not treat is ours. The published costs have no latency and no cost per message,
and neither have the moves here; all plans are priced alike afterwards. The published code scatters and gathers rows
around every block through the leader; here workers keep their rows and exchange halos, for all planners alike.

What has no rows runs whole on the best device, opaque operators at HOME. Squeeze-excite's small layers are computed by
every worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import groupby

from edgedi.partition.cost import CostModel, Layout
from edgedi.partition.estimate import SplitPricer
from edgedi.partition.geometry import Interval, even_cuts, weighted_cuts
from edgedi.partition.graph import LayerGraph
from edgedi.partition.minimax import FIRST, LAST, MIDDLE
from edgedi.partition.operators import WHOLE, Region, needs
from edgedi.partition.plan import HOME, Plan, Segment
from edgedi.partition.profile import ClusterProfile, LinkProfile
from edgedi.partition.reach import first_splittable, may_split, reduces
from edgedi.partition.settle import settled

TOLERANCE = 0.05
"""Relative gap between the slowest and the fastest worker at which ``ocbp`` stops."""

AXIS = "rows"

Shares = tuple[Interval, ...]
ShareRule = Callable[[CostModel, Interval, Layout, int], Shares]
"""(model, layers, layout before, length of the reference) -> shares."""


def single(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Everything on one worker, the one predicted fastest; operators that only the coordinator knows run there."""
    prices = model or CostModel(graph, cluster)
    opaque = [layer.op == "opaque" for layer in graph.layers]
    plans = [_whole_plan(prices, [HOME if known else worker for known in opaque]) for worker in prices.workers]
    if any(opaque):  # once at the coordinator, it may be best to stay
        first, last = opaque.index(True), len(opaque) - opaque[::-1].index(True)
        middle = [HOME] * (last - first)
        plans += [_whole_plan(prices, [k] * first + middle + [k] * (len(opaque) - last)) for k in prices.workers]
        plans.append(_whole_plan(prices, [HOME] * len(opaque)))
    return min(plans, key=lambda plan: plan.predicted_s)


def equal(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Equal rows for every worker, an exchange before every layer that needs a halo."""
    return _split_plan("equal", model or CostModel(graph, cluster), _halo_ends, _equal_shares)


def proportional(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Rows in proportion to each device's speed, an exchange before every layer that needs a halo."""
    return _split_plan("proportional", model or CostModel(graph, cluster), _halo_ends, _speed_shares)


def ocbp(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """EdgeLD: fused blocks, rows moved until all workers finish within ``TOLERANCE`` of each other."""
    rule = _Mover(cluster, TOLERANCE).shares
    return _split_plan("ocbp", model or CostModel(graph, cluster), _block_ends, rule)


def oodp_greedy(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """EdgeDI as published: fused blocks, rows moved while the gap shrinks."""
    rule = _Mover(cluster, 0.0).shares
    return _split_plan("oodp-greedy", model or CostModel(graph, cluster), _block_ends, rule)


# --- plans from a segmentation and a rule for shares -----------------------------------------------------------------


def merged(segments: Iterable[Segment]) -> tuple[Segment, ...]:
    """Neighbouring segments that run whole on the same participant, as one."""
    result: list[Segment] = []
    for segment in segments:
        if result and segment.on is not None and result[-1].on == segment.on:
            layers = Interval(result[-1].layers.start, segment.layers.stop)
            result[-1] = Segment(layers=layers, axis="whole", on=segment.on)
        else:
            result.append(segment)
    return tuple(result)


def _whole_plan(model: CostModel, participants: list[int]) -> Plan:
    segments, position = [], 0
    for participant, group in groupby(participants):
        layers = Interval(position, position + len(list(group)))
        segments.append(Segment(layers=layers, axis="whole", on=participant))
        position = layers.stop
    return _settled("single", model, segments)


def _settled(planner: str, model: CostModel, segments: Iterable[Segment]) -> Plan:
    plan = Plan(
        num_workers=model.cluster.num_workers,
        segments=merged(segments),
        graph_digest=model.graph.digest,
        planner=planner,
    )
    return settled(model, plan)


def _split_plan(planner: str, model: CostModel, ends: Callable[[CostModel], set[int]], rule: ShareRule) -> Plan:
    segments: list[Segment] = []
    layout: Layout = HOME
    for layers in _segmentation(model, ends(model)):
        segment = _segment(model, layers, layout, rule)
        layout = segment.axis if segment.on is None else segment.on
        segments.append(segment)
    return _settled(planner, model, segments)


def _segment(model: CostModel, layers: Interval, layout: Layout, rule: ShareRule) -> Segment:
    graph = model.graph
    if any(layer.op == "opaque" for layer in graph.layers[layers.start : layers.stop]):
        return Segment(layers=layers, axis="whole", on=HOME)
    best = model.fastest
    if may_split(graph, layers, AXIS, model.dims(AXIS)):
        length = model.reach(layers.stop, AXIS, lowest=layers.start).length
        shares = rule(model, layers, layout, length)
        active = [worker for worker, share in enumerate(shares) if len(share)]
        if len(active) > 1:
            return Segment(layers=layers, axis=AXIS, length=length, shares=shares)
        best = active[0]
    return Segment(layers=layers, axis="whole", on=best)


def _segmentation(model: CostModel, ends: set[int]) -> list[Interval]:
    """Runs of layers that end at ``ends``, wherever rows end, around opaque layers, and where parts are combined."""
    graph, runs, start = model.graph, list[Interval](), 0
    cuts = sorted(ends | _forced_ends(graph, model.dims(AXIS)) | {len(graph.layers)})
    for stop in cuts:
        runs += reversed(_pieces(graph, Interval(start, stop), model.dims(AXIS)))
        start = stop
    return runs


def _pieces(graph: LayerGraph, layers: Interval, dims: Mapping[str, int]) -> list[Interval]:
    """``layers`` in the longest runs that may be segments, the last one first."""
    found, stop = list[Interval](), layers.stop
    while stop > layers.start:
        opaque = graph.layers[stop - 1].op == "opaque"
        first = stop - 1 if opaque else first_splittable(graph, Interval(layers.start, stop), dims)
        found.append(Interval(first, stop))
        stop = first
    return found


def _forced_ends(graph: LayerGraph, dims: Mapping[str, int]) -> set[int]:
    """Before a layer that has no rows and reads one that has: the end of the part worth splitting."""
    return {
        position
        for position, layer in enumerate(graph.layers)
        if layer.name not in dims and not reduces(layer, dims) and any(tensor in dims for tensor in layer.inputs)
    }


def _halo_ends(model: CostModel) -> set[int]:
    """Before every layer that reads more rows than it makes, at the middle of the map."""
    return {position for position in range(len(model.graph.layers)) if _reads_halo(model, position)}


def _reads_halo(model: CostModel, position: int) -> bool:
    graph, dims = model.graph, model.dims(AXIS)
    layer = graph.layers[position]
    if layer.name not in dims:
        return False
    dim, shapes = dims[layer.name], graph.input_shapes(layer)
    middle = layer.spec.shape[dim] // 2
    parts = needs(layer, shapes, Region(dim, Interval(middle, middle + 1))) or ()
    return any(
        part is not WHOLE and len(part.interval) * layer.spec.shape[dim] > shape[part.dim]
        for part, shape in zip(parts, shapes, strict=False)
    )


def _block_ends(model: CostModel) -> set[int]:
    """After layers that change the map's height or join branches, where nothing else is alive."""
    graph, dims = model.graph, model.dims(AXIS)
    ends = set()
    for position, layer in enumerate(graph.layers):
        known = [graph.spec(t).shape[dims[t]] for t in layer.inputs if t in dims]
        ends_block = layer.name in dims and (len(known) > 1 or known[:1] != [layer.spec.shape[dims[layer.name]]])
        if ends_block and not _others_alive(graph, position):
            ends.add(position + 1)
    return ends


def _others_alive(graph: LayerGraph, position: int) -> bool:
    made = (*graph.inputs, *(layer.name for layer in graph.layers[:position]))
    return any(position < graph.last_use[tensor] < len(graph.layers) for tensor in made)


# --- rules for shares ------------------------------------------------------------------------------------------------


def _equal_shares(model: CostModel, layers: Interval, layout: Layout, length: int) -> Shares:
    return even_cuts(length, len(model.workers))


def _speed_shares(model: CostModel, layers: Interval, layout: Layout, length: int) -> Shares:
    return weighted_cuts(length, model.speed_shares)


class _Mover:
    """Moves single rows from the slowest to the fastest worker, by costs without latency or cost per message."""

    def __init__(self, cluster: ClusterProfile, tolerance: float) -> None:
        links = {ends: _bandwidth_only(link) for ends, link in cluster.links.items()}
        self._cluster = replace(cluster, link=_bandwidth_only(cluster.link), links=links)
        self._model: CostModel | None = None
        self._tolerance = tolerance

    def shares(self, model: CostModel, layers: Interval, layout: Layout, length: int) -> Shares:
        self._model = self._model or CostModel(model.graph, self._cluster)
        pricer = SplitPricer(self._model, self._model.reach(layers.stop, AXIS, lowest=layers.start))
        counts = [len(share) for share in _speed_shares(model, layers, layout, length)]
        times = _times(pricer, layers.start, layout, counts)
        while max(times) - min(times) > self._tolerance * max(times):
            moved = list(counts)
            moved[times.index(max(times))] -= 1
            moved[times.index(min(times))] += 1
            after = _times(pricer, layers.start, layout, moved)
            if max(after) - min(after) >= max(times) - min(times):
                break
            counts, times = moved, after
        return _from_counts(counts)


def _times(pricer: SplitPricer, first: int, layout: Layout, counts: list[int]) -> list[float]:
    shares = _from_counts(counts)
    active = [worker for worker, count in enumerate(counts) if count]
    roles = {active[0]: FIRST, active[-1]: LAST}
    return [
        pricer.total(first, layout, worker, share.start, share.stop, roles.get(worker, MIDDLE)) if len(share) else 0.0
        for worker, share in enumerate(shares)
    ]


def _from_counts(counts: list[int]) -> Shares:
    position, shares = 0, []
    for count in counts:
        shares.append(Interval(position, position + count))
        position += count
    return tuple(shares)


def _bandwidth_only(link: LinkProfile) -> LinkProfile:
    return LinkProfile(bytes_per_s=link.bytes_per_s)
