"""A plan as a picture still without pixels: for every feature map, who owns which part of it and who has more."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from edgedi.partition.graph.axes import axis_dims
from edgedi.partition.graph.geometry import Interval, IntervalSet
from edgedi.partition.graph.graph import Layer
from edgedi.partition.plan.plan import HOME, Plan, Segment, owned
from edgedi.partition.plan.program import UNSPLIT, Piece, ProgramSet, Recv, Run

NO_SEGMENT = -1
"""Where graph inputs are."""
_AXIS_OF_DIM = {1: "channels", 2: "rows", 3: "columns"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """What one worker owns of a map."""

    worker: int
    interval: Interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Halo:
    """What one worker has of a map besides what it owns: ``kind`` is ``"computed"`` (by it too) or ``"received"``."""

    worker: int
    interval: Interval
    kind: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeatureMap:
    """One tensor. ``length`` is its extent along ``axis``, of which the shares and halos are parts.

    ``everyone`` are the workers that each make all of it, where it has no axis to be cut along.
    """

    tensor: str
    op: str
    shape: tuple[int, ...]
    segment: int
    axis: str
    length: int
    shares: tuple[Share, ...] = ()
    halos: tuple[Halo, ...] = ()
    everyone: tuple[int, ...] = ()


def feature_maps(plan: Plan, programs: ProgramSet) -> tuple[FeatureMap, ...]:
    """The graph's inputs, then every layer's map, in order of depth."""
    return _Painter(plan, programs).maps()


class _Painter:
    def __init__(self, plan: Plan, programs: ProgramSet) -> None:
        self._plan, self._graph = plan, programs.graph
        self._made: dict[str, dict[int, Piece]] = defaultdict(dict)
        self._received: dict[str, list[tuple[int, Piece]]] = defaultdict(list)
        for participant, program in programs.programs.items():
            for instruction in program.instructions:
                if isinstance(instruction, Run):
                    self._made[instruction.piece.tensor][participant] = instruction.piece
                elif isinstance(instruction, Recv) and participant != HOME:
                    self._received[instruction.piece.tensor].append((participant, instruction.piece))
        self._dims: dict[str, Mapping[str, int]] = {}

    def maps(self) -> tuple[FeatureMap, ...]:
        inputs = [self._whole(name, "input", spec.shape, NO_SEGMENT, HOME) for name, spec in self._graph.inputs.items()]
        layers = [
            self._map(layer, number, segment)
            for number, segment in enumerate(self._plan.segments)
            for layer in self._graph.layers[segment.layers.start : segment.layers.stop]
        ]
        return (*inputs, *layers)

    def _map(self, layer: Layer, number: int, segment: Segment) -> FeatureMap:
        shape = layer.spec.shape
        if segment.on is not None:
            return self._whole(layer.name, layer.op, shape, number, segment.on)
        dim = self._axis_dims(segment.axis).get(layer.name)
        if dim is None:
            makers = tuple(sorted(self._made[layer.name]))
            return FeatureMap(
                tensor=layer.name, op=layer.op, shape=shape, segment=number, axis="whole", length=1, everyone=makers
            )
        length = shape[dim]
        parts = {worker: owned(segment, worker, length) for worker in segment.workers}
        return FeatureMap(
            tensor=layer.name,
            op=layer.op,
            shape=shape,
            segment=number,
            axis=segment.axis,
            length=length,
            shares=tuple(Share(worker=worker, interval=part) for worker, part in parts.items() if len(part)),
            halos=self._halos(layer.name, dim, length, parts),
        )

    def _whole(self, tensor: str, op: str, shape: tuple[int, ...], number: int, on: int) -> FeatureMap:
        """A map that one participant has all of; its axis is the one along which parts of it are sent on."""
        dims = {piece.dim for _, piece in self._received[tensor]} - {UNSPLIT}
        dim = min(dims, default=2 if len(shape) == 4 else UNSPLIT)
        length = shape[dim] if dim != UNSPLIT else 1
        all_of_it = Interval(0, length)
        return FeatureMap(
            tensor=tensor,
            op=op,
            shape=shape,
            segment=number,
            axis=_AXIS_OF_DIM.get(dim, "whole"),
            length=length,
            shares=(Share(worker=on, interval=all_of_it),),
            halos=self._halos(tensor, dim, length, {on: all_of_it}),
        )

    def _axis_dims(self, axis: str) -> Mapping[str, int]:
        if axis not in self._dims:
            self._dims[axis] = axis_dims(self._graph, axis)
        return self._dims[axis]

    def _halos(self, tensor: str, dim: int, length: int, parts: Mapping[int, Interval]) -> tuple[Halo, ...]:
        """What workers make beyond their own, then what they receive beyond both."""
        has = {worker: IntervalSet.of(part) for worker, part in parts.items()}
        made = [(worker, piece) for worker, piece in sorted(self._made[tensor].items())]
        found = []
        for kind, pieces in (("computed", made), ("received", self._received[tensor])):
            for worker, piece in pieces:
                known, given = has.get(worker, IntervalSet()), IntervalSet.of(_along(piece, dim, length))
                found += [Halo(worker=worker, interval=part, kind=kind) for part in given.minus(known)]
                has[worker] = known.union(given)
        return tuple(found)


def _along(piece: Piece, dim: int, length: int) -> Interval:
    """The piece along ``dim``: all of it where it is cut along another dimension or not at all."""
    return piece.interval if piece.dim == dim != UNSPLIT else Interval(0, length)


def lanes(halos: tuple[Halo, ...]) -> tuple[int, ...]:
    """A lane for each halo, so that those of one lane do not overlap: the least free one, in order of their starts."""
    order = sorted(range(len(halos)), key=lambda index: halos[index].interval)
    ends: list[int] = []
    found = [0] * len(halos)
    for index in order:
        interval = halos[index].interval
        lane = next((number for number, end in enumerate(ends) if end <= interval.start), len(ends))
        ends[lane:] = [interval.stop, *ends[lane + 1 :]]
        found[index] = lane
    return tuple(found)
