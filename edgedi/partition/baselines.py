"""Planners to compare with (first, unpriced version)."""

from __future__ import annotations

from itertools import groupby

from edgedi.partition.axes import axis_dims
from edgedi.partition.geometry import Interval, even_cuts
from edgedi.partition.graph import LayerGraph
from edgedi.partition.plan import HOME, Plan, Segment
from edgedi.partition.profile import ClusterProfile


def single(graph: LayerGraph, cluster: ClusterProfile) -> Plan:
    """Everything on worker 0; operators that only the coordinator knows stay with it."""
    return _plan(graph, cluster, [None] * len(graph.layers), "single")


def equal(graph: LayerGraph, cluster: ClusterProfile) -> Plan:
    """Every layer that has rows is its own segment, cut into equal parts; the rest runs on worker 0."""
    dims = axis_dims(graph, "rows")
    lengths = [layer.spec.shape[dims[layer.name]] if layer.name in dims else None for layer in graph.layers]
    return _plan(graph, cluster, lengths, "equal")


def _plan(graph: LayerGraph, cluster: ClusterProfile, lengths: list[int | None], planner: str) -> Plan:
    segments: list[Segment] = []
    keys = [(lengths[k], layer.op == "opaque", k if lengths[k] else -1) for k, layer in enumerate(graph.layers)]
    position = 0
    for (length, opaque, _), group in groupby(keys):
        layers = Interval(position, position + len(list(group)))
        position = layers.stop
        if length is None or opaque:
            segments.append(Segment(layers=layers, axis="whole", on=HOME if opaque else 0))
        else:
            shares = even_cuts(length, cluster.num_workers)
            segments.append(Segment(layers=layers, axis="rows", length=length, shares=shares))
    return Plan(num_workers=cluster.num_workers, segments=tuple(segments), graph_digest=graph.digest, planner=planner)
