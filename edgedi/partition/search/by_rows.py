"""Plans split by rows, from where segments end and a rule for shares: what the published planners have in common.

What has no rows runs whole on the best device, opaque operators at HOME. Squeeze-excite's small layers are computed by
every worker.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from edgedi.partition.cost.cost import CostModel, Layout
from edgedi.partition.cost.settle import settled
from edgedi.partition.graph.geometry import WHOLE, Interval, Region
from edgedi.partition.graph.graph import Layer, LayerGraph
from edgedi.partition.graph.operators import needs
from edgedi.partition.graph.reach import first_splittable, may_split, reduces
from edgedi.partition.plan.plan import HOME, Plan, Segment

AXIS = "rows"

Shares = tuple[Interval, ...]
ShareRule = Callable[[CostModel, Interval, Layout, int], Shares]
"""(model, layers, layout before, length of the reference) -> shares."""


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


def settled_plan(planner: str, model: CostModel, segments: Iterable[Segment]) -> Plan:
    """The plan of these segments, under the price of what it lowers to."""
    plan = Plan(
        num_workers=model.cluster.num_workers,
        segments=merged(segments),
        graph_digest=model.graph.digest,
        planner=planner,
    )
    return settled(model, plan)


def split_plan(planner: str, model: CostModel, ends: Callable[[CostModel], set[int]], rule: ShareRule) -> Plan:
    """Rows wherever there are any, in segments that stop at ``ends``, shared out by ``rule``."""
    segments: list[Segment] = []
    layout: Layout = HOME
    for layers in segmentation(model, ends(model)):
        segment = one_segment(model, layers, layout, rule)
        layout = segment.axis if segment.on is None else segment.on
        segments.append(segment)
    return settled_plan(planner, model, segments)


def one_segment(model: CostModel, layers: Interval, layout: Layout, rule: ShareRule) -> Segment:
    """``layers`` split by ``rule`` where that is possible, whole on one participant where not."""
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


def segmentation(model: CostModel, ends: set[int]) -> list[Interval]:
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


def halo_ends(model: CostModel) -> set[int]:
    """Before every layer that reads more rows than it makes, at the middle of the map."""
    graph, dims = model.graph, model.dims(AXIS)
    return {
        position
        for position, layer in enumerate(graph.layers)
        if any(
            rows * layer.spec.shape[dims[layer.name]] > graph.spec(tensor).shape[dims[tensor]]
            for tensor, rows in rows_read(model, layer).items()
        )
    }


def rows_read(model: CostModel, layer: Layer) -> dict[str, int]:
    """How many rows of each input one output row at the middle of the map reads; whole inputs are left out."""
    graph, dims = model.graph, model.dims(AXIS)
    if layer.name not in dims:
        return {}
    dim = dims[layer.name]
    middle = layer.spec.shape[dim] // 2
    parts = needs(layer, graph.input_shapes(layer), Region(dim, Interval(middle, middle + 1))) or ()
    read = zip(layer.inputs, parts, strict=False)
    return {tensor: len(part.interval) for tensor, part in read if part is not WHOLE and dims.get(tensor) == part.dim}


def block_ends(model: CostModel) -> set[int]:
    """After layers that change the map's height or join branches, where nothing else is alive."""
    graph, dims = model.graph, model.dims(AXIS)
    ends = set()
    for position, layer in enumerate(graph.layers):
        known = [graph.spec(t).shape[dims[t]] for t in layer.inputs if t in dims]
        ends_block = layer.name in dims and (len(known) > 1 or known[:1] != [layer.spec.shape[dims[layer.name]]])
        if ends_block:
            ends.add(position + 1)
    return ends & lone_ends(graph)


def lone_ends(graph: LayerGraph) -> set[int]:
    """After layers whose output is the only tensor that later layers read (what only waits to go home apart)."""
    ends, read_until = set[int](), -1
    for tensor, position in graph.position.items():
        if read_until <= position:
            ends.add(position + 1)
        last = graph.last_use[tensor]
        read_until = max(read_until, last if last < len(graph.layers) else -1)
    return ends - {0}
