"""What a run of layers has to compute and to read so that certain regions come out: the walk behind halos and costs."""

from __future__ import annotations

from collections.abc import Mapping

from edgedi.partition.graph.geometry import WHOLE, Interval, Need, Region
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import needs


def backward(
    graph: LayerGraph,
    layers: Interval,
    wanted: Mapping[str, Need],
    dims: Mapping[str, int],
    over: Mapping[str, Region],
) -> dict[str, Need]:
    """The region of every tensor, inside and outside ``layers``, that ``wanted`` asks for.

    ``dims`` gives each tensor's dimension along the segment's axis: regions along any other become ``WHOLE``. ``over``
    gives the part of its input that each partial reduction adds up. Tensors that nobody needs are absent.
    """
    demand = {tensor: _settled(tensor, need, dims) for tensor, need in wanted.items()}
    for layer in reversed(graph.layers[layers.start : layers.stop]):
        if layer.name not in demand:
            continue
        shapes = graph.input_shapes(layer)
        parts = (over[layer.name],) if layer.name in over else needs(layer, shapes, demand[layer.name])
        if parts is None:
            demand[layer.name] = WHOLE
            parts = needs(layer, shapes, WHOLE)
            assert parts is not None, "every operator can make its whole output"
        for tensor, part in zip(layer.inputs, parts, strict=True):
            if part is not WHOLE and not len(part.interval):
                continue
            settled = _settled(tensor, part, dims)
            demand[tensor] = _merged(demand[tensor], settled) if tensor in demand else settled
    return demand


def _settled(tensor: str, need: Need, dims: Mapping[str, int]) -> Need:
    return need if need is not WHOLE and dims.get(tensor) == need.dim else WHOLE


def _merged(first: Need, second: Need) -> Need:
    if first is WHOLE or second is WHOLE:
        return WHOLE
    return Region(first.dim, first.interval.hull(second.interval))
