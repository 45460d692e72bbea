"""Reach: for segments that end at one layer, what a share of the output asks of every earlier layer, for all starts.

``demand.backward`` walks one segment for one worker. Planning asks for thousands of segments and cuts, but the walk
down from a segment's end does not depend on where the segment begins: one walk serves every start. Moreover nearly all
operators read ``[f(start), g(stop))``: then the two borders of a share are walked apart (from the share to the map's
end, and from the map's start to the share), so that ``L`` positions need ``2 L`` walks instead of ``L^2 / 2``.
Operators for which that does not hold (see ``_separable``) are walked share by share. All of it is ours.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from edgedi.partition.axes import axis_dims
from edgedi.partition.geometry import Interval, scale
from edgedi.partition.graph import Layer, LayerGraph
from edgedi.partition.operators import WHOLE, Need, Region, needs

NOTHING = (0, 0)
"""The range of a layer that a share does not ask for."""

Range = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Walk:
    """One walk down. ``made[d]`` is the range that layer ``stop - 1 - d`` computes; ``asked`` gives for every tensor
    the range that layers down to a depth read of it, noted as (depth, range) whenever it may have grown.

    Ranges are (start, stop) along the axis; all of a tensor is one more than its length, see ``Reach.whole_of``.
    """

    made: list[Range]
    asked: dict[str, list[tuple[int, Range]]]

    def read(self, tensor: str, depth: int) -> Range:
        """The range of ``tensor`` that a segment read whose first layer is at ``depth``."""
        for noted, found in reversed(self.asked.get(tensor, ())):
            if noted <= depth:
                return found
        return NOTHING


class Reach:
    """Segments ``[i, stop)`` split along ``axis``, for every ``i`` from ``lowest`` (which may be raised) on.

    ``length`` is that of the reference tensor, made by layer ``highest``; 0 where nothing of the run has the axis.
    ``lowest`` ends up at the first layer that a segment ending at ``stop`` may begin with. With ``patience``, segments
    that do nothing but repeat work on every worker for that many layers at their beginning are left out.
    """

    def __init__(
        self,
        graph: LayerGraph,
        stop: int,
        axis: str,
        *,
        lowest: int,
        dims: Mapping[str, int],
        patience: int | None = None,
    ) -> None:
        self.graph, self.stop, self.axis, self.dims = graph, stop, axis, dims
        position = _reference_position(graph, Interval(lowest, stop), dims)
        self.highest = position if position is not None else -1
        self.length = self._extent(graph.layers[self.highest].name) if position is not None else 0
        self.lowest = first_splittable(graph, Interval(lowest, stop), dims) if self.length else stop
        self.separable = self.length > 0 and self._check_separable()
        self._walks: dict[Range, Walk] = {}
        self._whole: dict[str, int] = {}
        self._shapes = {p: graph.input_shapes(graph.layers[p]) for p in range(self.lowest, stop)}
        if self.length > 1 and patience is not None:
            self._give_up_after(patience)

    def _extent(self, tensor: str) -> int:
        return self.graph.spec(tensor).shape[self.dims[tensor]]

    def whole_of(self, tensor: str) -> int:
        """The count that stands for all of ``tensor``: its length along the axis, and one."""
        if tensor not in self._whole:
            self._whole[tensor] = self._whole_of(tensor)
        return self._whole[tensor]

    def _whole_of(self, tensor: str) -> int:
        layer = self.graph.by_name.get(tensor)
        if layer is not None and reduces(layer, self.dims):
            return self._extent(layer.inputs[0]) + 1
        return self._extent(tensor) + 1 if tensor in self.dims else 1

    def counts(self, start: int, stop: int) -> list[int]:
        """How many elements each layer computes for the share ``[start, stop)``, from the segment's last layer down."""
        if not self.separable:
            return [b - a for a, b in self._walk(start, stop).made]
        lower, upper = self._walk(start, self.length).made, self._walk(0, stop).made
        return [b - a for (a, _), (_, b) in zip(lower, upper, strict=True)]

    def inputs(self, first: int, start: int, stop: int) -> dict[str, Range]:
        """What a segment beginning at layer ``first`` reads of earlier tensors, for the share ``[start, stop)``."""
        position = self.graph.position
        asked = self._walk(start, stop).asked
        reads = {tensor: self.read(first, tensor, start, stop) for tensor in asked if position[tensor] < first}
        return {tensor: found for tensor, found in reads.items() if found != NOTHING}

    def read(self, first: int, tensor: str, start: int, stop: int) -> Range:
        """What such a segment reads of one earlier tensor."""
        depth = self.stop - 1 - first
        if not self.separable:
            return self._walk(start, stop).read(tensor, depth)
        return self._walk(start, self.length).read(tensor, depth)[0], self._walk(0, stop).read(tensor, depth)[1]

    def _give_up_after(self, patience: int) -> None:
        """Raise ``lowest`` to where ``patience`` layers in a row are computed whole by every worker."""
        in_a_row = 0
        for depth, count in enumerate(self.counts(0, self.length // 2)):
            layer = self.graph.layers[self.stop - 1 - depth]
            in_a_row = in_a_row + 1 if count == self.whole_of(layer.name) else 0
            if in_a_row >= patience and self.stop - 1 - depth < self.highest:
                self.lowest = self.stop - 1 - depth
                self._walks.clear()
                return

    def _walk(self, start: int, stop: int) -> Walk:
        key = (start, stop)
        if key not in self._walks:
            self._walks[key] = self._walk_down(Interval(start, stop))
        return self._walks[key]

    def _walk_down(self, share: Interval) -> Walk:
        walk, demand = Walk([], {}), dict[str, Need]()
        for position in range(self.stop - 1, self.lowest - 1, -1):
            layer, over = self.graph.layers[position], None
            if self.graph.last_use[layer.name] >= self.stop:
                over = self._want(layer, share, demand)
            made = self._make(layer, demand.pop(layer.name), over, demand, walk) if layer.name in demand else NOTHING
            walk.made.append(made)
        return walk

    def _want(self, layer: Layer, share: Interval, demand: dict[str, Need]) -> Region | None:
        """Add the worker's own part of a tensor that outlives the segment; of a reduction, return what it adds up."""
        if reduces(layer, self.dims):
            source = layer.inputs[0]
            own = scale(share, self._extent(source), self.length)
            if not len(own):
                return None
            demand[layer.name] = WHOLE
            return Region(self.dims[source], own)
        wanted: Need = WHOLE
        if layer.name in self.dims:
            wanted = Region(self.dims[layer.name], scale(share, self._extent(layer.name), self.length))
            if not len(wanted.interval):
                return None
        demand[layer.name] = _merged(demand[layer.name], wanted) if layer.name in demand else wanted
        return None

    def _make(self, layer: Layer, need: Need, over: Region | None, demand: dict[str, Need], walk: Walk) -> Range:
        """Ask for what ``layer`` reads to make ``need``; the range that it makes (all, where it cannot split)."""
        shapes = self._shapes[self.graph.position[layer.name]]
        parts = (over,) if over is not None else needs(layer, shapes, need)
        if parts is None:
            need, parts = WHOLE, needs(layer, shapes, WHOLE)
            assert parts is not None, "every operator can make its whole output"
        for tensor, part in zip(layer.inputs, parts, strict=True):
            if part is not WHOLE and not len(part.interval):
                continue
            asked = part if part is not WHOLE and self.dims.get(tensor) == part.dim else WHOLE
            demand[tensor] = _merged(demand[tensor], asked) if tensor in demand else asked
            walk.asked.setdefault(tensor, []).append((len(walk.made), self._range(tensor, demand[tensor])))
        return self._range(layer.name, need if over is None else over)

    def _range(self, tensor: str, need: Need) -> Range:
        return (0, self.whole_of(tensor)) if need is WHOLE else (need.interval.start, need.interval.stop)

    def _check_separable(self) -> bool:
        return all(
            _separable(layer, self.dims)
            and (
                self.graph.last_use[layer.name] < self.stop
                or layer.name not in self.dims
                or self._extent(layer.name) >= self.length
            )
            for layer in self.graph.layers[self.lowest : self.stop]
        )


def reduces(layer: Layer, dims: Mapping[str, int]) -> bool:
    """Whether ``layer`` is a partial reduction along the axis: its parts differ from worker to worker."""
    return layer.op == "partial" and dims.get(layer.inputs[0]) in layer.attributes["dims"]


def may_split(graph: LayerGraph, layers: Interval, axis: str, dims: Mapping[str, int] | None = None) -> bool:
    """Whether the run ``layers`` can be one segment split along ``axis``.

    Some tensor of it has the axis, no operator is opaque, and no partial reduction along the axis is combined in the
    same run (its parts have to be exchanged first).
    """
    known = axis_dims(graph, axis) if dims is None else dims
    found = _reference_position(graph, layers, known) is not None
    return found and first_splittable(graph, layers, known) == layers.start


def first_splittable(graph: LayerGraph, layers: Interval, dims: Mapping[str, int]) -> int:
    """The first layer from which on ``layers`` has no opaque operator and combines no reduction of its own."""
    used: set[str] = set()
    for position in range(layers.stop - 1, layers.start - 1, -1):
        layer = graph.layers[position]
        if layer.op == "opaque" or (layer.name in used and reduces(layer, dims)):
            return position + 1
        used.update(layer.inputs)
    return layers.start


def _reference_position(graph: LayerGraph, layers: Interval, dims: Mapping[str, int]) -> int | None:
    return next((p for p in range(layers.stop - 1, layers.start - 1, -1) if graph.layers[p].name in dims), None)


def _separable(layer: Layer, dims: Mapping[str, int]) -> bool:
    """Whether the range a layer reads starts where its output's start says, and stops where its stop says."""
    if layer.name not in dims:
        return True
    dim = dims[layer.name]
    if layer.op == "cat":
        return bool(layer.attributes["dim"] != dim)
    if layer.op == "pad":
        padded = layer.attributes["before"][dim] or layer.attributes["after"][dim]
        return layer.attributes["mode"] == "constant" or not padded
    if layer.op == "conv_transpose":
        axis = dim - 2
        reach = layer.attributes["dilation"][axis] * (layer.attributes["kernel"][axis] - 1)
        return axis < 0 or bool(layer.attributes["stride"][axis] <= reach + 1)
    return True


def _merged(first: Need, second: Need) -> Need:
    if first is WHOLE or second is WHOLE:
        return WHOLE
    return Region(first.dim, first.interval.hull(second.interval))
