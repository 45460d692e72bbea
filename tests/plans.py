"""Random valid plans for any layer graph: every axis, whole segments, random boundaries, unequal and zero shares."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace

from edgedi.partition.graph.axes import AXES, axis_dims
from edgedi.partition.graph.geometry import Interval, even_cuts, weighted_cuts
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.borders import borders, with_borders_first
from edgedi.partition.plan.lowering import lower
from edgedi.partition.plan.plan import HOME, Plan, Segment, reference
from edgedi.partition.plan.program import ProgramSet


def axis_plan(graph: LayerGraph, num_workers: int, axis: str = "rows", *, depth: int = 4) -> Plan:
    """All that has ``axis`` split evenly along it, in segments of at most ``depth`` layers; the rest whole, in turn."""
    dims, position = axis_dims(graph, axis), 0
    segments: list[Segment] = []
    while position < len(graph.layers):
        layers = _without_axis(graph, position, dims) or _with_axis(graph, _run(graph, position, depth, dims), dims)
        split = _split(graph, layers, axis, dims, even=num_workers)
        segments.append(split or _whole(graph, layers, len(segments) % num_workers))
        position = segments[-1].layers.stop
    return Plan(num_workers=num_workers, segments=tuple(segments), graph_digest=graph.digest, planner=axis)


def random_plan(
    graph: LayerGraph, num_workers: int, rng: random.Random, axes: Sequence[str] = (*AXES, "whole"), *, depth: int = 6
) -> Plan:
    """A plan whose every choice is ``rng``'s: axis, length, shares of each segment. One worker in four gets none."""
    known = {axis: axis_dims(graph, axis) for axis in axes if axis != "whole"}
    segments: list[Segment] = []
    position = 0
    while position < len(graph.layers):
        axis = rng.choice(list(axes))
        dims = known.get(axis, {})
        layers = _run(graph, position, rng.randint(1, depth), dims)
        segment = None if axis == "whole" else _split(graph, layers, axis, dims, weights=_weights(num_workers, rng))
        segments.append(segment or _whole(graph, layers, rng.randrange(-1, num_workers)))
        position = segments[-1].layers.stop
    return Plan(num_workers=num_workers, segments=tuple(segments), graph_digest=graph.digest, planner="random")


def lower_borders_first(plan: Plan, graph: LayerGraph, *, depth: int = -1) -> ProgramSet:
    """``plan``'s programs with the borders of every piece first that can be made so: of its ways the one of ``depth``,
    or the longest."""
    plain = lower(plan, graph)
    made = {
        who: with_borders_first(program, [ways[depth if depth < len(ways) else -1] for ways in borders(program, graph)])
        for who, program in plain.programs.items()
    }
    return replace(plain, programs=made)


def _without_axis(graph: LayerGraph, start: int, dims: Mapping[str, int]) -> Interval | None:
    """The layers from ``start`` on that do not have the axis; ``None`` where the first has it (or is special)."""
    stop = start
    while stop < len(graph.layers):
        layer = graph.layers[stop]
        if layer.name in dims or layer.op in ("opaque", "partial"):
            break
        stop += 1
    return Interval(start, stop) if stop > start else None


def _with_axis(graph: LayerGraph, layers: Interval, dims: Mapping[str, int]) -> Interval:
    """``layers`` up to one that loses the axis: all of its input, and of what that is made of, would be needed."""
    for position in range(layers.start + 1, layers.stop):
        layer = graph.layers[position]
        if layer.name not in dims and layer.op != "partial" and any(name in dims for name in layer.inputs):
            return Interval(layers.start, position)
    return layers


def _weights(num_workers: int, rng: random.Random) -> list[float]:
    weights = [0.0 if rng.random() < 0.25 else rng.random() + 0.01 for _ in range(num_workers)]
    return weights if any(weights) else [1.0] * num_workers


def _run(graph: LayerGraph, start: int, depth: int, dims: Mapping[str, int]) -> Interval:
    """Up to ``depth`` layers from ``start``, ended before an opaque layer and after a reduction along the axis."""
    stop = start
    while stop < min(start + depth, len(graph.layers)):
        layer = graph.layers[stop]
        if layer.op == "opaque":
            return Interval(start, max(stop, start + 1))
        stop += 1
        if layer.op == "partial" and dims.get(layer.inputs[0]) in layer.attributes["dims"]:
            break
    return Interval(start, stop)


def _split(
    graph: LayerGraph,
    layers: Interval,
    axis: str,
    dims: Mapping[str, int],
    *,
    even: int = 0,
    weights: Sequence[float] = (),
) -> Segment | None:
    if graph.layers[layers.start].op == "opaque":
        return None
    name = reference(graph, layers, axis, dims)
    if name is None:
        return None
    length = graph.spec(name).shape[dims[name]]
    shares = even_cuts(length, even) if even else weighted_cuts(length, weights)
    return Segment(layers=layers, axis=axis, length=length, shares=shares)


def _whole(graph: LayerGraph, layers: Interval, worker: int) -> Segment:
    """On ``worker``; one opaque layer alone is at home."""
    opaque = graph.layers[layers.start].op == "opaque"
    return Segment(layers=layers, axis="whole", on=HOME if opaque else worker)
