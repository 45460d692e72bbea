"""Three published systems as planners to compare with; where each differs from what was published is said at each.

    deepthings  one fused block of early layers in tiles without any exchange, the rest on one device
    aofl        fused blocks, where they end and how many devices take part chosen by cost
    coedge      one division of the rows for the whole network, by a linear programme

All three split rows only, and their plans are priced like everybody's (``settle``). The papers treat chains of layers;
that a block may end wherever one tensor is alive is our reading of them for networks with branches. Their leaders
scatter and gather maps around every block; here workers keep their rows and exchange halos, for all planners alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgedi.partition.cost.cost import CostModel, Layout
from edgedi.partition.cost.profile import ClusterProfile
from edgedi.partition.graph.geometry import Interval, scale, weighted_cuts
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.search.by_rows import (
    AXIS,
    Shares,
    halo_ends,
    lone_ends,
    one_segment,
    rows_read,
    segmentation,
    settled_plan,
    split_plan,
)
from edgedi.partition.search.estimate import estimated
from edgedi.partition.search.fitting import fastest
from edgedi.partition.search.search import search

TILES_PER_WORKER = 4
"""Tiles that ``deepthings`` cuts a map into for each worker."""


def deepthings(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Zhao, Mirzazad Barijough, Gerstlauer: "DeepThings", IEEE TCAD 37(11), 2018.

    As published: the early layers are one fused block of equal tiles that need no exchange (where tiles overlap, rows
    are computed twice), and one device computes what follows. Different here: tiles are rows, not cells of a grid; a
    worker's tiles are neighbours, so that it computes their overlap once (the paper caches it); instead of stealing
    work while it runs, workers get tiles in proportion to speed, which is where stealing ends up; the depth of the
    block, set by hand in the paper, is the one estimated fastest; and the fastest worker stands in for the gateway.
    """
    prices = model or CostModel(graph, cluster)
    fronts = [_front(prices, stop) for stop in _front_ends(prices)]
    plans = [estimated(prices, _unpriced(prices, segments)) for segments in fronts]
    return settled_plan("deepthings", prices, fastest(prices, plans).segments)


def aofl(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Zhou et al.: "Adaptive Parallel Execution of Deep Neural Networks on Heterogeneous Edge Devices", SEC 2019.

    As published: rows in proportion to speed, in fused blocks whose number and depth follow from computation and
    network, as does the number of devices. Different here: blocks come from this project's dynamic programme and cost
    model, with the latency and processor time of messages; the devices left out are the slowest; their number is one
    for the whole network; a block may also run whole on one worker; a split one has ``MAX_DEPTH`` layers at most.
    """
    prices = model or CostModel(graph, cluster)
    ends = lone_ends(graph) | {run.stop for run in segmentation(prices, set())}
    plans = []
    for count in range(1, cluster.num_workers + 1):
        segments, _ = search(prices, weights=_fastest(prices, count), axes=(AXIS,) if count > 1 else (), ends=ends)
        plans.append(settled_plan("aofl", prices, segments))
    return fastest(prices, plans)


def coedge(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Zeng et al.: "CoEdge", IEEE/ACM Transactions on Networking 29(2), 2021.

    As published: one division of the rows for all layers, halos exchanged layer by layer with direct neighbours only,
    so that whoever has fewer rows than a halo needs is left out and the linear programme solved again. Different here:
    the programme minimises the seconds of the slowest worker, not energy under a deadline (profiles know no energy),
    which has a closed form; as there, it knows speeds and bandwidths and no latency; layers without rows run whole on
    the fastest worker.
    """
    prices = model or CostModel(graph, cluster)
    weights = coedge_weights(prices)

    def shares(model: CostModel, layers: Interval, layout: Layout, length: int) -> Shares:
        return weighted_cuts(length, weights)

    return split_plan("coedge", prices, halo_ends, shares)


# --- deepthings ------------------------------------------------------------------------------------------------------


def _front_ends(model: CostModel) -> list[int]:
    """Where the fused block may end: in the first run of layers with rows, where one tensor is alive; 0: no block."""
    runs = segmentation(model, set())
    first = next((run for run in runs if _splits(model, run)), None)
    if first is None:
        return [0]
    return [end for end in sorted(lone_ends(model.graph)) if first.start < end < first.stop] + [first.stop]


def _splits(model: CostModel, layers: Interval) -> bool:
    return one_segment(model, layers, HOME, _tiles).on is None


def _front(model: CostModel, stop: int) -> list[Segment]:
    """The block up to ``stop`` in tiles, everything else whole."""
    runs = segmentation(model, {stop})
    return [one_segment(model, run, HOME, _tiles if run.stop <= stop else _on_fastest) for run in runs]


def _tiles(model: CostModel, layers: Interval, layout: Layout, length: int) -> Shares:
    count = min(length, TILES_PER_WORKER * len(model.workers))
    return tuple(scale(share, length, count) for share in weighted_cuts(count, model.speed_shares))


def _on_fastest(model: CostModel, layers: Interval, layout: Layout, length: int) -> Shares:
    return weighted_cuts(length, [float(worker == model.fastest) for worker in model.workers])


def _unpriced(model: CostModel, segments: Sequence[Segment]) -> Plan:
    return Plan(num_workers=len(model.workers), segments=tuple(segments))


# --- aofl ------------------------------------------------------------------------------------------------------------


def _fastest(model: CostModel, count: int) -> tuple[float, ...]:
    """Speeds of the ``count`` fastest workers, nothing for the others."""
    ranked = sorted(model.workers, key=lambda worker: -model.speed_shares[worker])[:count]
    return tuple(speed if worker in ranked else 0.0 for worker, speed in enumerate(model.speed_shares))


# --- coedge ----------------------------------------------------------------------------------------------------------


def coedge_weights(model: CostModel) -> tuple[float, ...]:
    """Every worker's part of the rows; 0 for those that would have fewer rows than a neighbour's halo needs."""
    rows = model.dims(AXIS)
    extents = {tensor: model.graph.spec(tensor).shape[dim] for tensor, dim in rows.items()}
    least = max((count / extents[tensor] for tensor, count in _halos(model)), default=0.0)
    slopes = [_seconds_of_rows(model, worker) for worker in model.workers]
    active = list(model.workers)
    while True:
        offsets = {worker: _seconds_of_halos(model, worker, active) for worker in active}
        level = water_level([slopes[k] for k in active], [offsets[k] for k in active])
        parts = {k: max(0.0, (level - offsets[k]) / slopes[k]) for k in active}
        smallest = min(active, key=lambda k: parts[k])
        if len(active) == 1 or parts[smallest] >= least:
            return tuple(parts.get(k, 0.0) for k in model.workers)
        active.remove(smallest)


def water_level(slopes: Sequence[float], offsets: Sequence[float]) -> float:
    """The least T with parts that sum to 1 and ``slope * part + offset <= T`` for every part above 0.

    That is the linear programme's optimum: whoever takes part finishes at T, and the others could not begin before.
    """
    rate = done = 0.0
    level = math.inf
    for offset, slope in sorted(zip(offsets, slopes, strict=True)):
        if level <= offset:
            break
        rate, done = rate + 1 / slope, done + offset / slope
        level = (1 + done) / rate
    return level


def _seconds_of_rows(model: CostModel, worker: int) -> float:
    """Seconds for all rows on one worker: computing them, and bringing the input."""
    graph, rows = model.graph, model.dims(AXIS)
    positions = [graph.position[layer.name] for layer in graph.layers if layer.name in rows]
    compute_s = sum(model.layer_compute(worker, position) for position in positions)
    link = model.cluster.link_between(HOME, worker)
    return max(1e-30, compute_s + sum(spec.num_bytes for spec in graph.inputs.values()) / link.bytes_per_s)


def _seconds_of_halos(model: CostModel, worker: int, active: Sequence[int]) -> float:
    """Seconds of waiting for the rows of both neighbours, however many rows the worker has itself."""
    graph, rows, place = model.graph, model.dims(AXIS), active.index(worker)
    neighbours = [*active[max(0, place - 1) : place], *active[place + 1 : place + 2]]
    num_bytes = sum(
        count * graph.spec(tensor).num_bytes / graph.spec(tensor).shape[rows[tensor]] for tensor, count in _halos(model)
    )
    return sum(num_bytes / model.cluster.link_between(other, worker).bytes_per_s for other in neighbours)


def _halos(model: CostModel) -> list[tuple[str, float]]:
    """Every tensor between layers that is read with a halo, once for each reader, and its rows on each side."""
    graph, rows = model.graph, model.dims(AXIS)
    found = []
    for layer in graph.layers:
        for tensor, count in rows_read(model, layer).items():
            own = graph.spec(tensor).shape[rows[tensor]] / layer.spec.shape[rows[layer.name]]
            if count > own and tensor not in graph.inputs:
                found.append((tensor, (count - own) / 2))
    return found
