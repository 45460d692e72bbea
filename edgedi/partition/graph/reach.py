"""Reach: for segments that end at one layer, what a share of the output asks of every earlier layer, for all starts.

``demand.backward`` walks one segment for one worker. Planning asks for thousands of segments and cuts, but the walk
down from a segment's end does not depend on where the segment begins: one walk serves every start. Moreover nearly all
operators read ``[f(start), g(stop))``: then the two borders of a share are walked apart (from the share to the map's
end, and from the map's start to the share), so that ``L`` positions need ``2 L`` walks instead of ``L^2 / 2``.
Operators for which that does not hold (see ``_separable``) are walked share by share. All of it is ours.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from operator import itemgetter

from edgedi.partition.graph.axes import AXES, axis_dims
from edgedi.partition.graph.geometry import WHOLE, Interval, Need, Region, scale
from edgedi.partition.graph.graph import Layer, LayerGraph
from edgedi.partition.graph.operators import needs

NOTHING = (0, 0)
"""The range of a layer that a share does not ask for."""

Range = tuple[int, int]

Ask = tuple[Range, tuple[tuple[str, Range], ...]]
"""What a layer makes, and what it reads for that of each input of which it reads anything."""

Asks = dict[tuple[str, Range], Ask]
"""By layer and what is wanted of it: the same in all walks along an axis."""

_depth_of = itemgetter(0)


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
        asked = self.asked.get(tensor)
        if asked is None:
            return NOTHING
        place = bisect_right(asked, depth, key=_depth_of) if asked[-1][0] > depth else len(asked)
        return asked[place - 1][1] if place else NOTHING


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
        asks: Asks | None = None,
    ) -> None:
        self.graph, self.stop, self.axis, self.dims = graph, stop, axis, dims
        position = _reference_position(graph, Interval(lowest, stop), dims)
        self.highest = position if position is not None else -1
        self.length = self._extent(graph.layers[self.highest].name) if position is not None else 0
        self.lowest = first_splittable(graph, Interval(lowest, stop), dims) if self.length else stop
        self.separable = self.length > 0 and self._check_separable()
        self._walks: dict[Range, Walk] = {}
        self._whole: dict[str, int] = {}
        self._asks = {} if asks is None else asks
        self._layers = graph.layers[self.lowest : stop][::-1]
        self._tails: dict[tuple[int, frozenset[str]], tuple[list[Range], list[tuple[str, int]]]] = {}
        outlive = (depth for depth, layer in enumerate(self._layers) if graph.last_use[layer.name] >= stop)
        self._deepest_own = max(outlive, default=-1)
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
                self._layers = self._layers[: depth + 1]
                self._walks.clear()
                self._tails.clear()
                return

    def _walk(self, start: int, stop: int) -> Walk:
        key = (start, stop)
        if key not in self._walks:
            self._walks[key] = self._walk_down(Interval(start, stop))
        return self._walks[key]

    def _walk_down(self, share: Interval) -> Walk:
        made, asked, demand = list[Range](), dict[str, list[tuple[int, Range]]](), dict[str, Range]()
        for depth, layer in enumerate(self._layers):
            if depth > self._deepest_own and not self._parts_of(demand):
                self._add_tail(depth, demand, made, asked)
                break
            over = self._want(layer, share, demand) if self.graph.last_use[layer.name] >= self.stop else None
            wanted = demand.pop(layer.name, NOTHING)
            if wanted == NOTHING:
                made.append(NOTHING)
                continue
            makes, reads = self._ask(layer, wanted) if over is None else self._ask_over(layer, over)
            made.append(makes)
            for tensor, found in reads:
                demand[tensor] = _hull(demand[tensor], found) if tensor in demand else found
                asked.setdefault(tensor, []).append((depth, demand[tensor]))
        return Walk(made, asked)

    def _parts_of(self, demand: Mapping[str, Range]) -> bool:
        """Whether of some tensor that is still to be made not everything is wanted."""
        position = self.graph.position
        return any(
            wanted[1] - wanted[0] < self.whole_of(tensor) and position[tensor] >= self.lowest
            for tensor, wanted in demand.items()
        )

    def _add_tail(
        self, depth: int, demand: Mapping[str, Range], made: list[Range], asked: dict[str, list[tuple[int, Range]]]
    ) -> None:
        """The rest of a walk from where all that is wanted is wanted whole: the same for all shares, so walked once."""
        key = (depth, frozenset(tensor for tensor in demand if self.graph.position[tensor] >= self.lowest))
        if key not in self._tails:
            self._tails[key] = self._tail(depth, set(key[1]))
        makes, reads = self._tails[key]
        made += makes
        for tensor, noted in reads:
            asked.setdefault(tensor, []).append((noted, (0, self.whole_of(tensor))))

    def _tail(self, first: int, wanted: set[str]) -> tuple[list[Range], list[tuple[str, int]]]:
        """What is made, and which tensors are read at which depth, if all of ``wanted`` comes out."""
        made, reads = list[Range](), list[tuple[str, int]]()
        for depth, layer in enumerate(self._layers[first:], first):
            if layer.name not in wanted:
                made.append(NOTHING)
                continue
            makes, read = self._ask(layer, (0, self.whole_of(layer.name)))
            made.append(makes)
            reads += ((tensor, depth) for tensor, _ in read)
            wanted.update(tensor for tensor, _ in read)
        return made, reads

    def _want(self, layer: Layer, share: Interval, demand: dict[str, Range]) -> Interval | None:
        """Add the worker's own part of a tensor that outlives the segment; of a reduction, return what it adds up."""
        if reduces(layer, self.dims):
            own = scale(share, self._extent(layer.inputs[0]), self.length)
            if not len(own):
                return None
            demand[layer.name] = (0, self.whole_of(layer.name))
            return own
        wanted = (0, self.whole_of(layer.name))
        if layer.name in self.dims:
            own = scale(share, self._extent(layer.name), self.length)
            if not len(own):
                return None
            wanted = (own.start, own.stop)
        demand[layer.name] = _hull(demand[layer.name], wanted) if layer.name in demand else wanted
        return None

    def _ask(self, layer: Layer, wanted: Range) -> Ask:
        """What ``layer`` makes (all, where it cannot split) and reads so that ``wanted`` comes out."""
        key = (layer.name, wanted)
        if key not in self._asks:
            self._asks[key] = self._new_ask(layer, wanted)
        return self._asks[key]

    def _new_ask(self, layer: Layer, wanted: Range) -> Ask:
        shapes, whole = self.graph.input_shapes(layer), (0, self.whole_of(layer.name))
        need: Need = WHOLE if wanted == whole else Region(self.dims[layer.name], Interval(*wanted))
        parts = needs(layer, shapes, need)
        if parts is None:
            wanted, parts = whole, needs(layer, shapes, WHOLE)
            assert parts is not None, "every operator can make its whole output"
        return wanted, self._reads(layer, parts)

    def _ask_over(self, layer: Layer, own: Interval) -> Ask:
        """The same for a reduction that adds up ``own`` of its input."""
        return (own.start, own.stop), self._reads(layer, (Region(self.dims[layer.inputs[0]], own),))

    def _reads(self, layer: Layer, parts: Iterable[Need]) -> tuple[tuple[str, Range], ...]:
        read = ((tensor, self._range(tensor, part)) for tensor, part in zip(layer.inputs, parts, strict=True))
        return tuple((tensor, found) for tensor, found in read if found[0] < found[1])

    def _range(self, tensor: str, need: Need) -> Range:
        if need is WHOLE or (self.dims.get(tensor) != need.dim and len(need.interval)):
            return 0, self.whole_of(tensor)
        return need.interval.start, need.interval.stop

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


class Reaches:
    """The walks of one graph, each made once: they hang on no cluster, so that plans for several share them."""

    def __init__(self, graph: LayerGraph) -> None:
        self._graph = graph
        self._dims = {axis: axis_dims(graph, axis) for axis in AXES}
        self._asks: dict[str, Asks] = {axis: {} for axis in AXES}
        self._known: dict[tuple[int, str, int, int | None], Reach] = {}

    def dims(self, axis: str) -> Mapping[str, int]:
        """The dimension of ``axis`` in each tensor that has one."""
        return self._dims[axis]

    def of(self, stop: int, axis: str, *, lowest: int, patience: int | None) -> Reach:
        """All segments that end at ``stop``; see ``Reach``."""
        key = (stop, axis, lowest, patience)
        if key not in self._known:
            self._known[key] = Reach(
                self._graph, stop, axis, lowest=lowest, dims=self._dims[axis], patience=patience, asks=self._asks[axis]
            )
        return self._known[key]


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


def _hull(one: Range, other: Range) -> Range:
    """The smallest range that holds both; all of a tensor, which is one longer than its length, holds every other."""
    return min(one[0], other[0]), max(one[1], other[1])
