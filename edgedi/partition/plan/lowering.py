"""Lowering: a Plan becomes one Program per participant.

The rules:
1. In a split segment every worker computes the regions that its owned part of each live tensor asks for; what it needs
   from outside the segment and does not hold, it receives from the owner.
2. A piece is received right before the first layer that reads it, and sent right after the layer that made it. Sending
   never blocks, and every receive at layer k waits only for sends placed at layers before k: no deadlock.
3. A tensor without the segment's axis is computed by every worker of the segment, whole (the small tensors behind
   squeeze-excite), so that nobody waits for it.
4. A partial reduction adds up exactly what its worker owns: parts never overlap, and whoever combines them has all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgedi.errors import PlanError
from edgedi.partition.graph.axes import axis_dims
from edgedi.partition.graph.demand import backward
from edgedi.partition.graph.geometry import WHOLE, Interval, IntervalSet, Need, Region
from edgedi.partition.graph.graph import Layer, LayerGraph
from edgedi.partition.plan.plan import HOME, Plan, Segment, owned
from edgedi.partition.plan.program import UNSPLIT, Instruction, Join, Piece, Program, ProgramSet, Recv, Run, Send

_RECV, _JOIN, _RUN, _SEND = range(4)
PARTS_DIM = 0
"""A partial reduction's output has its parts along dimension 0."""


@dataclass(frozen=True, slots=True)
class _Home:
    """Where a tensor lives: cut along ``dim`` (``length`` long) among owners, or unsplit with every owner."""

    dim: int
    length: int
    owners: Mapping[int, Interval]


def lower(plan: Plan, graph: LayerGraph) -> ProgramSet:
    """The programs that carry out ``plan``; ``PlanError`` where the plan does not fit the graph."""
    covered = plan.segments[-1].layers.stop if plan.segments else 0
    if covered != len(graph.layers):
        raise PlanError(f"the plan has {covered} layers, the graph {len(graph.layers)}", grid=str(plan))
    if plan.graph_digest and plan.graph_digest != graph.digest:
        raise PlanError(f"the plan is for graph {plan.graph_digest[:12]}, not {graph.digest[:12]}")
    lowering = _Lowering(graph)
    for index, segment in enumerate(plan.segments):
        try:
            lowering.add_segment(segment)
        except PlanError as error:
            raise PlanError(str(error), segment=index, grid=str(plan)) from None
    lowering.collect_outputs()
    return ProgramSet(graph=graph, programs=lowering.programs(plan.num_workers), plan_digest=plan.digest)


def lower_alone(segment: Segment, graph: LayerGraph, dims: Mapping[str, int]) -> Mapping[int, Program]:
    """The programs of one segment by itself, all that it reads coming from HOME; ``dims`` are those of its axis."""
    read = {tensor for layer in graph.layers[segment.layers.start : segment.layers.stop] for tensor in layer.inputs}
    before = (tensor for tensor in read if graph.position[tensor] < segment.layers.start)
    lowering = _Lowering(graph, at_home=before, dims={segment.axis: dims})
    lowering.add_segment(segment)
    return lowering.programs(max(segment.workers) + 1)


class _Lowering:
    def __init__(
        self, graph: LayerGraph, *, at_home: Iterable[str] = (), dims: Mapping[str, Mapping[str, int]] | None = None
    ) -> None:
        self._graph = graph
        self._dims: dict[str, Mapping[str, int]] = {**(dims or {}), "whole": {}}
        home = _Home(UNSPLIT, 1, {HOME: Interval(0, 1)})
        self._homes = dict.fromkeys((*graph.inputs, *at_home), home)
        self._held: dict[tuple[int, str], list[Piece]] = defaultdict(list)
        for name in self._homes:
            self._held[HOME, name].append(Piece(name))
        self._lines: dict[int, list[tuple[int, int, int, Instruction]]] = defaultdict(list)
        self._count = 0

    def programs(self, num_workers: int) -> dict[int, Program]:
        return {
            participant: Program(
                participant=participant,
                instructions=tuple(line[3] for line in sorted(self._lines[participant], key=lambda line: line[:3])),
            )
            for participant in (*range(num_workers), HOME)
        }

    def add_segment(self, segment: Segment) -> None:
        homes = self._segment_homes(segment)
        for worker in segment.workers:
            self._add_worker(segment, worker, homes)
        self._homes.update(homes)

    def collect_outputs(self) -> None:
        end = len(self._graph.layers)
        for tensor in dict.fromkeys(self._graph.outputs):
            self._acquire(HOME, tensor, WHOLE, end)

    # --- one segment --------------------------------------------------------------------------------------------------

    def _axis_dims(self, axis: str) -> Mapping[str, int]:
        if axis not in self._dims:
            self._dims[axis] = axis_dims(self._graph, axis)
        return self._dims[axis]

    def _segment_homes(self, segment: Segment) -> dict[str, _Home]:
        """Ownership of every tensor that outlives the segment."""
        layers = self._graph.layers[segment.layers.start : segment.layers.stop]
        return {
            layer.name: self._home(segment, layer)
            for layer in layers
            if self._graph.last_use[layer.name] >= segment.layers.stop
        }

    def _home(self, segment: Segment, layer: Layer) -> _Home:
        dims = self._axis_dims(segment.axis)
        if layer.name in dims:
            dim = dims[layer.name]
            length = layer.spec.shape[dim]
            owners = {worker: owned(segment, worker, length) for worker in segment.workers}
            return _Home(dim, length, {w: interval for w, interval in owners.items() if len(interval)})
        shares = self._partial_shares(segment, layer)
        if len(shares) > 1:
            return _Home(PARTS_DIM, len(shares), {w: Interval(k, k + 1) for k, w in enumerate(shares)})
        return _Home(UNSPLIT, 1, dict.fromkeys(shares or segment.workers, Interval(0, 1)))

    def _partial_shares(self, segment: Segment, layer: Layer) -> dict[int, Region]:
        """For a partial reduction along the segment's axis: what each worker adds up. Otherwise empty."""
        dims = self._axis_dims(segment.axis)
        if layer.op != "partial" or dims.get(layer.inputs[0]) not in layer.attributes["dims"]:
            return {}
        dim = dims[layer.inputs[0]]
        length = self._graph.spec(layer.inputs[0]).shape[dim]
        shares = {worker: owned(segment, worker, length) for worker in segment.workers}
        return {worker: Region(dim, share) for worker, share in shares.items() if len(share)}

    def _add_worker(self, segment: Segment, worker: int, homes: Mapping[str, _Home]) -> None:
        graph, dims = self._graph, self._axis_dims(segment.axis)
        wanted: dict[str, Need] = {}
        for tensor, home in homes.items():
            if worker in home.owners:
                cut = tensor in dims and home.dim == dims[tensor]
                wanted[tensor] = Region(home.dim, home.owners[worker]) if cut else WHOLE
        over = self._over(segment, worker)
        demand = backward(graph, segment.layers, wanted, dims, over)
        for position in range(segment.layers.start, segment.layers.stop):
            layer = graph.layers[position]
            if layer.name not in demand:
                continue
            inputs = tuple(
                self._input(worker, layer, tensor, demand, position, segment.layers) for tensor in layer.inputs
            )
            parts = homes[layer.name] if layer.name in over else None
            piece = self._made_piece(layer.name, demand[layer.name], parts, worker)
            self._emit(worker, position, _RUN, Run(piece, inputs, over.get(layer.name)))
            self._held[worker, layer.name].append(piece)

    def _over(self, segment: Segment, worker: int) -> dict[str, Region]:
        over: dict[str, Region] = {}
        for layer in self._graph.layers[segment.layers.start : segment.layers.stop]:
            shares = self._partial_shares(segment, layer)
            if len(shares) < 2:
                continue
            inside = self._graph.layers[segment.layers.start : segment.layers.stop]
            if any(layer.name in other.inputs for other in inside):
                raise PlanError(f"{layer.name} is combined in the segment that makes its parts; end the segment at it")
            if worker in shares:
                over[layer.name] = shares[worker]
        return over

    @staticmethod
    def _made_piece(tensor: str, need: Need, parts: _Home | None, worker: int) -> Piece:
        """What a RUN makes: a region, all, or (with ``parts``, a partial reduction's home) the worker's own part."""
        if need is not WHOLE:
            return Piece(tensor, need.dim, need.interval)
        if parts is not None:
            return Piece(tensor, PARTS_DIM, parts.owners[worker])
        return Piece(tensor)

    def _input(
        self, worker: int, layer: Layer, tensor: str, demand: Mapping[str, Need], position: int, layers: Interval
    ) -> Piece:
        if tensor not in demand:  # nothing of it is read here: a part of a concatenation that lies elsewhere
            return Piece(tensor, 0, Interval(0, 0))
        if self._graph.position[tensor] >= layers.start:
            return self._held[worker, tensor][-1]
        return self._acquire(worker, tensor, demand[tensor], position)

    # --- getting what one does not hold -------------------------------------------------------------------------------

    def _acquire(self, worker: int, tensor: str, need: Need, position: int) -> Piece:
        """The held piece that covers ``need``, received and joined at ``position`` where necessary."""
        home = self._homes[tensor]
        dim, interval = self._wanted_of(home, need)
        for piece in self._held[worker, tensor]:
            if piece.holds(dim, interval, self._length(tensor, piece.dim)):
                return piece
        if home.dim == UNSPLIT:
            piece = Piece(tensor) if need is WHOLE else Piece(tensor, need.dim, need.interval)
            self._transfer(min(home.owners), worker, piece, position)
            return piece
        return self._gather(worker, tensor, home, interval, position)

    @staticmethod
    def _wanted_of(home: _Home, need: Need) -> tuple[int, Interval]:
        if home.dim == UNSPLIT:
            return (UNSPLIT, Interval(0, 1)) if need is WHOLE else (need.dim, need.interval)
        if need is not WHOLE and need.dim == home.dim:
            return home.dim, need.interval
        return home.dim, Interval(0, home.length)

    def _length(self, tensor: str, dim: int) -> int:
        """How long the tensor is along a piece's dimension; -1 for a dimension that its home does not cut."""
        if dim == UNSPLIT:
            return 1
        home = self._homes[tensor]
        return home.length if home.dim == dim else self._graph.spec(tensor).shape[dim]

    def _gather(self, worker: int, tensor: str, home: _Home, interval: Interval, position: int) -> Piece:
        held = IntervalSet.of(*(p.interval for p in self._held[worker, tensor] if p.dim == home.dim))
        missing = IntervalSet.of(interval).minus(held)
        for owner, share in sorted(home.owners.items()):
            for part in missing.intersect(share):
                self._transfer(owner, worker, Piece(tensor, home.dim, part), position)
        piece = Piece(tensor, home.dim, interval)
        sources = _cover(interval, (p for p in self._held[worker, tensor] if p.dim == home.dim))
        if len(sources) == 1 and sources[0].interval == interval:
            return sources[0]
        self._emit(worker, position, _JOIN, Join(piece, sources))
        self._held[worker, tensor].append(piece)
        return piece

    def _transfer(self, source: int, target: int, piece: Piece, position: int) -> None:
        held = next(
            p
            for p in self._held[source, piece.tensor]
            if p.holds(piece.dim, piece.interval, self._length(piece.tensor, p.dim))
        )
        # Worker 0 may be in the coordinator's process, where it takes the core once it has its input: served last.
        order = -target if source == HOME else None
        self._emit(source, self._graph.position[piece.tensor], _SEND, Send(piece, held, target), order)
        self._emit(target, position, _RECV, Recv(piece, source))
        self._held[target, piece.tensor].append(piece)

    def _emit(
        self, participant: int, position: int, phase: int, instruction: Instruction, order: int | None = None
    ) -> None:
        """Note an instruction; those of one position and phase stay in the order given, else as they came."""
        self._count += 1
        self._lines[participant].append((position, phase, self._count if order is None else order, instruction))


def _cover(interval: Interval, pieces: Iterable[Piece]) -> tuple[Piece, ...]:
    """A shortest run of pieces that covers ``interval`` from its start on."""
    candidates, chosen, position = list(pieces), [], interval.start
    while position < interval.stop:
        best = max((p for p in candidates if p.interval.start <= position), key=lambda p: p.interval.stop)
        assert best.interval.stop > position, f"nothing held covers element {position} of {interval}"
        chosen.append(best)
        position = best.interval.stop
    return tuple(chosen)
