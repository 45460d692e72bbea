"""Which dimension of each tensor an axis runs along.

Rows are dimension 2 of an image, 1 after a permutation to channels-last, nothing after global pooling. The axis is
followed from the graph's inputs by asking each operator's rule; a tensor where it is lost has no entry and is
never split along that axis: whoever needs it computes or receives it whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from edgedi.partition.graph.geometry import Interval, Region
from edgedi.partition.graph.graph import Layer, LayerGraph
from edgedi.partition.graph.operators import TABLE, channel_dim, needs

AXES = ("rows", "columns", "channels", "batch")
"""What a segment can be split along, besides ``whole``."""

DIM_OF_IMAGE = {"batch": 0, "channels": 1, "rows": 2, "columns": 3}
"""Of a map [batch, channels, rows, columns]."""


def axis_dims(graph: LayerGraph, axis: str) -> Mapping[str, int]:
    """The dimension of ``axis`` in each tensor that has one (of size over 1)."""
    dims: dict[str, int] = {}
    for name, spec in graph.inputs.items():
        dim = DIM_OF_IMAGE[axis]
        enough = spec.rank == 4 or (axis == "channels" and spec.rank == 2) or (axis == "batch" and spec.rank > 0)
        if enough and spec.shape[dim] > 1:
            dims[name] = dim
    for layer in graph.layers:
        found = _dim_of(layer, graph, axis, dims)
        if found is not None:
            dims[layer.name] = found
    return MappingProxyType(dims)


def _dim_of(layer: Layer, graph: LayerGraph, axis: str, dims: Mapping[str, int]) -> int | None:
    if axis == "channels" and TABLE[layer.op].makes_channels:
        dim = channel_dim(layer)
        return dim if layer.spec.shape[dim] > 1 else None
    if layer.op == "resize" and axis in ("rows", "columns") and layer.inputs[0] not in dims:
        dim = DIM_OF_IMAGE[axis]  # a 1 x 1 map spread over an image begins the axis anew
        return dim if layer.spec.rank == 4 and layer.spec.shape[dim] > 1 else None
    shapes = graph.input_shapes(layer)
    for dim in range(layer.spec.rank):
        if layer.spec.shape[dim] > 1 and _follows(layer, shapes, dim, dims):
            return dim
    return None


def _follows(layer: Layer, shapes: tuple[tuple[int, ...], ...], dim: int, dims: Mapping[str, int]) -> bool:
    """Whether splitting output dimension ``dim`` splits every input along the dimension that it is known by."""
    parts = needs(layer, shapes, Region(dim, Interval(0, layer.spec.shape[dim])))
    if parts is None:
        return False
    known = [(part, dims[name]) for part, name in zip(parts, layer.inputs, strict=True) if name in dims]
    return bool(known) and all(part is not None and part.dim == expected for part, expected in known)
