"""Whether a test case would notice a fault: zero one halo row at a layer, and see how far the answer moves."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from edgedi.partition.capture.capture import Capture
from edgedi.partition.graph.axes import axis_dims
from edgedi.partition.graph.geometry import Interval, Region, scale
from edgedi.partition.graph.graph import Layer, LayerGraph
from edgedi.partition.plan.program import Piece, Run
from edgedi.runtime.kernels import fused
from edgedi.runtime.kernels.prepare import Kernel, prepare
from tests.exactness import relative

SLIDING = frozenset({"conv", "conv_transpose", "max_pool", "avg_pool"})


def insensitive_layers(capture: Capture, maps: Mapping[str, Tensor], *, least: float) -> dict[str, float]:
    """Sliding-window layers at which a zeroed halo row moves no output by ``least`` of its largest value; how far."""
    kernels = _Kernels(capture)
    found = {}
    with torch.inference_mode():
        for layer in capture.graph.layers:
            faulty = _faulty(kernels, layer, maps)
            if faulty is not None:
                moved = kernels.moved(layer, faulty, maps)
                if moved < least:
                    found[layer.name] = moved
    return found


class _Kernels:
    def __init__(self, capture: Capture) -> None:
        self.graph: LayerGraph = capture.graph
        self.dims = axis_dims(capture.graph, "rows")
        self._capture = capture
        self._packer = fused.Packer() if fused.available() else None
        self._whole = {}
        for layer in self.graph.layers:
            if layer.op != "opaque":
                self._whole[layer.name] = self.kernel(Run(Piece(layer.name), tuple(map(Piece, layer.inputs))))

    def kernel(self, run: Run) -> Kernel:
        layer = self.graph.by_name[run.piece.tensor]
        weights = {role: self._capture.weights[name] for role, name in layer.weights.items()}
        return prepare(run, self.graph, weights, self._packer)

    def moved(self, layer: Layer, faulty: Tensor, maps: Mapping[str, Tensor]) -> float:
        """How far the outputs move when ``layer``'s map is ``faulty``."""
        changed = {layer.name: faulty}
        for other in self.graph.layers[self.graph.position[layer.name] + 1 :]:
            if any(name in changed for name in other.inputs):
                inputs = [changed.get(name, maps[name]) for name in other.inputs]
                whole = self._whole.get(other.name)
                changed[other.name] = whole(*inputs) if whole else self._capture.opaque[other.name](inputs)
        return max((relative(changed[name], maps[name]) for name in self.graph.outputs if name in changed), default=0.0)


def _faulty(kernels: _Kernels, layer: Layer, maps: Mapping[str, Tensor]) -> Tensor | None:
    """The layer's map when a row beside the middle cut was made with a halo row of zeros; ``None`` without a halo."""
    graph, dim = kernels.graph, kernels.dims.get(layer.name)
    if layer.op not in SLIDING or dim is None:
        return None
    length, cut = graph.input_shapes(layer)[0][dim], layer.spec.shape[dim] // 2
    inner = scale(Interval(0, cut), length, layer.spec.shape[dim]).stop
    for row, halo in ((cut - 1, range(inner, length)), (cut, range(inner - 1, -1, -1))):
        read = _rows_read(layer, dim, row)
        beyond = [position for position in halo if position in read]
        if beyond:
            return _with_row(kernels, layer, maps, Region(dim, Interval(row, row + 1)), Region(dim, _one(beyond[0])))
    return None


def _one(position: int) -> Interval:
    return Interval(position, position + 1)


def _rows_read(layer: Layer, dim: int, row: int) -> frozenset[int]:
    """Input rows that a sliding window reads for one output row, beyond the border too; dilation leaves gaps."""
    axis, values = dim - 2, layer.attributes
    kernel, stride, before = values["kernel"][axis], values["stride"][axis], values["pad_before"][axis]
    taps = [values["dilation"][axis] * tap for tap in range(kernel)]
    if layer.op == "conv_transpose":
        return frozenset((row + before - tap) // stride for tap in taps if (row + before - tap) % stride == 0)
    return frozenset(row * stride - before + tap for tap in taps)


def _with_row(kernels: _Kernels, layer: Layer, maps: Mapping[str, Tensor], out: Region, zeroed: Region) -> Tensor:
    source = maps[layer.inputs[0]].clone()
    source.narrow(zeroed.dim, zeroed.interval.start, 1).zero_()
    run = Run(Piece(layer.name, out.dim, out.interval), tuple(map(Piece, layer.inputs)))
    row = kernels.kernel(run)(source, *(maps[name] for name in layer.inputs[1:]))
    faulty = maps[layer.name].clone()
    faulty.narrow(out.dim, out.interval.start, 1).copy_(row)
    return faulty
