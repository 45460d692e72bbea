"""Dry-run of programs: proves, before anything runs, that they finish and compute everything once.

What is checked: a piece is held before it is used, joins have no hole, every layer's inputs cover what its operator
reads, every receive meets its send, nobody waits for ever, nothing is sent for nobody, the parts of a reduction cover
its input exactly once, and the coordinator ends with every output whole.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from edgedi.errors import PlanError
from edgedi.partition.graph.geometry import WHOLE, Interval, Need, Region
from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.graph.operators import flops, needs
from edgedi.partition.plan.memory import piece_bytes
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import (
    UNSPLIT,
    Instruction,
    Join,
    Piece,
    Program,
    ProgramSet,
    Recv,
    Run,
    Send,
    participant_name,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Simulation:
    """What a dry-run saw: bytes and messages per (source, target) link, FLOPs per participant with recomputation."""

    bytes_per_link: Mapping[tuple[int, int], int]
    messages_per_link: Mapping[tuple[int, int], int]
    flops: Mapping[int, float]


def simulate(programs: ProgramSet) -> Simulation:
    """Run ``programs`` without data. ``PlanError`` shows every participant's program with the bad line marked."""
    return _Simulator(programs).run()


class _Simulator:
    def __init__(self, programs: ProgramSet) -> None:
        self._set, self._graph = programs, programs.graph
        self._counter = dict.fromkeys(programs.programs, 0)
        self._held: dict[int, set[Piece]] = {p: set() for p in programs.programs}
        self._held[HOME] = {Piece(name) for name in programs.graph.inputs}
        self._wire: dict[tuple[int, int, Piece], int] = defaultdict(int)
        self._bytes: dict[tuple[int, int], int] = defaultdict(int)
        self._messages: dict[tuple[int, int], int] = defaultdict(int)
        self._flops: dict[int, float] = defaultdict(float)
        self._parts: dict[str, dict[Interval, Region]] = defaultdict(dict)

    def run(self) -> Simulation:
        moved = [True]
        while any(moved):
            moved = [self._advance(program) for program in self._set.programs.values()]
        self._check_finished()
        self._check_outputs()
        return Simulation(
            bytes_per_link=dict(self._bytes), messages_per_link=dict(self._messages), flops=dict(self._flops)
        )

    def _advance(self, program: Program) -> bool:
        """Execute until the participant waits; whether anything happened."""
        me, moved = program.participant, False
        while self._counter[me] < len(program.instructions):
            instruction = program.instructions[self._counter[me]]
            if isinstance(instruction, Recv) and not self._wire[instruction.source, me, instruction.piece]:
                break
            try:
                self._execute(me, instruction)
            except ValueError as error:
                raise PlanError(str(error), worker=me, grid=self._grid()) from None
            self._counter[me] += 1
            moved = True
        return moved

    def _execute(self, me: int, instruction: Instruction) -> None:
        match instruction:
            case Recv(piece=piece, source=source):
                self._wire[source, me, piece] -= 1
            case Send(piece=piece, held=held, target=target):
                self._send(me, piece, held, target)
                return
            case Join(piece=piece, sources=sources):
                self._check_join(me, piece, sources)
            case Run():
                self._check_run(me, instruction)
        self._held[me].add(instruction.piece)

    def _send(self, me: int, piece: Piece, held: Piece, target: int) -> None:
        self._require_held(me, held)
        if held.tensor != piece.tensor or not held.holds(piece.dim, piece.interval, self._length(held)):
            raise ValueError(f"SEND {piece}: {held} does not hold it")
        if target not in self._set.programs or target == me:
            raise ValueError(f"SEND {piece} to {participant_name(target)}: no such other participant")
        self._wire[me, target, piece] += 1
        self._messages[me, target] += 1
        self._bytes[me, target] += piece_bytes(piece, self._graph)

    def _check_join(self, me: int, piece: Piece, sources: tuple[Piece, ...]) -> None:
        position = piece.interval.start
        for source in sources:
            self._require_held(me, source)
            if source.tensor != piece.tensor or source.dim != piece.dim:
                raise ValueError(f"JOIN {piece}: {source} is of another tensor or dimension")
            if source.interval.start > position:
                raise ValueError(f"JOIN {piece}: nothing covers {position}:{source.interval.start}")
            position = max(position, source.interval.stop)
        if position < piece.interval.stop:
            raise ValueError(f"JOIN {piece}: nothing covers {position}:{piece.interval.stop}")

    def _check_run(self, me: int, run: Run) -> None:
        if run.piece.tensor not in self._graph.by_name:
            raise ValueError(f"RUN {run.piece}: there is no such layer")
        layer = self._graph.by_name[run.piece.tensor]
        out = region_of(run.piece)
        if layer.op == "partial":
            self._note_part(run)
        shapes = self._graph.input_shapes(layer)
        parts = (run.over,) if layer.op == "partial" and run.over else needs(layer, shapes, out)
        if parts is None:
            raise ValueError(f"RUN {run.piece}: {layer.op} cannot be split along dimension {run.piece.dim}")
        if len(parts) != len(run.inputs):
            raise ValueError(f"RUN {run.piece}: {len(run.inputs)} inputs for {len(parts)}")
        for tensor, piece, part in zip(layer.inputs, run.inputs, parts, strict=True):
            self._check_input(me, run, tensor, piece, part)
        self._flops[me] += flops(layer, shapes, None if layer.op == "partial" else out)

    def _check_input(self, me: int, run: Run, tensor: str, piece: Piece, part: Need) -> None:
        if piece.tensor != tensor:
            raise ValueError(f"RUN {run.piece}: reads {piece} where the layer reads {tensor}")
        if part is not WHOLE and not len(part.interval):
            return
        self._require_held(me, piece)
        dim, interval = (UNSPLIT, Interval(0, 1)) if part is WHOLE else (part.dim, part.interval)
        if not piece.holds(dim, interval, self._length(piece)):
            wanted = "all" if part is WHOLE else f"{part.interval} along dimension {part.dim}"
            raise ValueError(f"RUN {run.piece}: needs {wanted} of {tensor}, {piece} does not cover it")

    def _note_part(self, run: Run) -> None:
        known = self._parts[run.piece.tensor]
        if run.over is None:
            return
        if run.piece.interval in known:
            raise ValueError(f"RUN {run.piece}: this part is added up twice")
        known[run.piece.interval] = run.over

    def _require_held(self, me: int, piece: Piece) -> None:
        if piece not in self._held[me]:
            raise ValueError(f"{piece} is not held here")

    def _length(self, piece: Piece) -> int:
        """How long the piece's tensor is along the piece's dimension."""
        if piece.dim == UNSPLIT:
            return 1
        if piece.dim == 0 and piece.tensor in self._graph.by_name and self._parts.get(piece.tensor):
            return len(self._parts[piece.tensor])
        return self._graph.spec(piece.tensor).shape[piece.dim]

    def _check_finished(self) -> None:
        stuck = [p for p, program in self._set.programs.items() if self._counter[p] < len(program.instructions)]
        if stuck:
            names = ", ".join(map(participant_name, stuck))
            raise PlanError(
                f"deadlock: {names} wait for pieces that nobody will send", worker=stuck[0], grid=self._grid()
            )
        lost = [key for key, count in self._wire.items() if count]
        if lost:
            source, target, piece = lost[0]
            raise PlanError(
                f"{piece} from {participant_name(source)} is never received by {participant_name(target)}",
                worker=target,
                grid=self._grid(),
            )
        for tensor, parts in self._parts.items():
            self._check_parts(tensor, parts)

    def _check_parts(self, tensor: str, parts: Mapping[Interval, Region]) -> None:
        source = self._graph.by_name[tensor].inputs[0]
        regions = sorted(parts.values(), key=lambda region: region.interval)
        position = 0
        for region in regions:
            if region.interval.start != position:
                raise PlanError(f"the parts of {tensor} leave a hole or overlap at {position}", grid=self._grid())
            position = region.interval.stop
        if regions and position != self._graph.spec(source).shape[regions[0].dim]:
            raise PlanError(f"the parts of {tensor} end at {position}", grid=self._grid())

    def _check_outputs(self) -> None:
        for tensor in self._graph.outputs:
            held = [p for p in self._held[HOME] if p.tensor == tensor]
            if not any(p.holds(UNSPLIT, Interval(0, 1), self._length(p)) for p in held):
                raise PlanError(f"the coordinator does not end with all of {tensor}", worker=HOME, grid=self._grid())

    def _grid(self) -> str:
        lines = []
        for participant, program in sorted(self._set.programs.items()):
            lines.append(f"program {participant_name(participant)}")
            for index, instruction in enumerate(program.instructions):
                mark = ">>" if index == self._counter[participant] else "  "
                lines.append(f"{mark} {instruction}")
        return "\n".join(lines)


def region_of(piece: Piece) -> Need:
    """The region that a piece is; ``WHOLE`` for an unsplit one."""
    return WHOLE if piece.dim == UNSPLIT else Region(piece.dim, piece.interval)


def split_flops(graph: LayerGraph, programs: ProgramSet, ops: frozenset[str]) -> float:
    """Share (0 to 1) of the FLOPs of layers of the given operators that at least two participants compute parts of."""
    makers: dict[str, set[int]] = defaultdict(set)
    whole: set[str] = set()
    for program in programs.programs.values():
        for instruction in program.instructions:
            if isinstance(instruction, Run):
                makers[instruction.piece.tensor].add(program.participant)
                if instruction.piece.dim == UNSPLIT:
                    whole.add(instruction.piece.tensor)
    total = split = 0.0
    for layer in graph.layers:
        if layer.op in ops:
            work = flops(layer, graph.input_shapes(layer))
            total += work
            split += work if len(makers[layer.name]) > 1 and layer.name not in whole else 0.0
    return split / total if total else 0.0
