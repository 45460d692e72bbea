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
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby

from edgedi.partition.cost.cost import CostModel, Layout
from edgedi.partition.cost.profile import ClusterProfile, LinkProfile
from edgedi.partition.graph.geometry import Interval, even_cuts, weighted_cuts
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.plan import HOME, Plan, Segment
from edgedi.partition.search.by_rows import AXIS, Shares, block_ends, halo_ends, settled_plan, split_plan
from edgedi.partition.search.estimate import SplitPricer
from edgedi.partition.search.fitting import fastest
from edgedi.partition.search.minimax import FIRST, LAST, MIDDLE

TOLERANCE = 0.05
"""Relative gap between the slowest and the fastest worker at which ``ocbp`` stops."""


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
    return fastest(prices, plans)


def equal(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Equal rows for every worker, an exchange before every layer that needs a halo."""
    return split_plan("equal", model or CostModel(graph, cluster), halo_ends, _equal_shares)


def proportional(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """Rows in proportion to each device's speed, an exchange before every layer that needs a halo."""
    return split_plan("proportional", model or CostModel(graph, cluster), halo_ends, _speed_shares)


def ocbp(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """EdgeLD: fused blocks, rows moved until all workers finish within ``TOLERANCE`` of each other."""
    rule = _Mover(cluster, TOLERANCE).shares
    return split_plan("ocbp", model or CostModel(graph, cluster), block_ends, rule)


def oodp_greedy(graph: LayerGraph, cluster: ClusterProfile, *, model: CostModel | None = None) -> Plan:
    """EdgeDI as published: fused blocks, rows moved while the gap shrinks."""
    rule = _Mover(cluster, 0.0).shares
    return split_plan("oodp-greedy", model or CostModel(graph, cluster), block_ends, rule)


def _whole_plan(model: CostModel, participants: list[int]) -> Plan:
    segments, position = [], 0
    for participant, group in groupby(participants):
        layers = Interval(position, position + len(list(group)))
        segments.append(Segment(layers=layers, axis="whole", on=participant))
        position = layers.stop
    return settled_plan("single", model, segments)


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
        self._model = self._model or model.on(self._cluster)
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
