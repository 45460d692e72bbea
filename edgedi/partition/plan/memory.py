"""How much memory a program takes: all its weights, and its maps where most of them are alive at once."""

from __future__ import annotations

import math
from dataclasses import dataclass

from edgedi.partition.graph.geometry import WHOLE, Interval, Region
from edgedi.partition.graph.graph import ITEM_BYTES, LayerGraph
from edgedi.partition.graph.operators import weight_interval
from edgedi.partition.plan.program import UNSPLIT, Instruction, Join, Piece, Program, Run, Send


def piece_bytes(piece: Piece, graph: LayerGraph) -> int:
    """Bytes of a piece of a tensor of ``graph``."""
    spec = graph.spec(piece.tensor)
    if piece.dim == UNSPLIT:
        return spec.num_bytes
    count = len(piece.interval) * ITEM_BYTES[spec.dtype]
    for dim, size in enumerate(spec.shape):
        count *= 1 if dim == piece.dim else size
    return count


def reads(instruction: Instruction) -> tuple[Piece, ...]:
    """The held pieces that an instruction reads."""
    match instruction:
        case Run(inputs=inputs):
            return inputs
        case Join(sources=sources):
            return sources
        case Send(held=held):
            return (held,)
    return ()


def program_bytes(program: Program, graph: LayerGraph) -> tuple[int, str]:
    """(bytes, layer): the largest sum of pieces alive at one instruction, and the tensor made there."""
    known = set(graph.position)
    last = {piece: index for index, i in enumerate(program.instructions) for piece in (*reads(i), i.piece)}
    alive = peak = 0
    layer, made = "", set()
    for index, instruction in enumerate(program.instructions):
        piece = instruction.piece
        if not isinstance(instruction, Send) and piece not in made and piece.tensor in known:
            made.add(piece)
            alive += piece_bytes(piece, graph)
        if alive > peak:
            peak, layer = alive, piece.tensor
        ended = {p for p in (*reads(instruction), piece) if last[p] == index and p in made}
        alive -= sum(piece_bytes(p, graph) for p in ended)
        made -= ended
    return peak, layer


@dataclass(frozen=True, slots=True, kw_only=True)
class Memory:
    """What a program takes: its weights, and its maps at ``layer``, where they take most."""

    weights_bytes: int = 0
    maps_bytes: int = 0
    layer: str = ""

    @property
    def total_bytes(self) -> int:
        return self.weights_bytes + self.maps_bytes


def program_memory(program: Program, graph: LayerGraph) -> Memory:
    """The memory that one participant needs for its program."""
    maps_bytes, layer = program_bytes(program, graph)
    return Memory(weights_bytes=weights_bytes(program, graph), maps_bytes=maps_bytes, layer=layer)


def weights_bytes(program: Program, graph: LayerGraph) -> int:
    """Bytes of the weights of all layers that a program runs, cut where it makes some of the channels only."""
    parts = set[tuple[str, Interval | None]]()
    for run in (instruction for instruction in program.instructions if isinstance(instruction, Run)):
        layer, piece = graph.by_name[run.piece.tensor], run.piece
        made = WHOLE if piece.dim == UNSPLIT else Region(piece.dim, piece.interval)
        cut = weight_interval(layer, made)
        parts.update((weight, cut) for weight in layer.weights.values() if weight in graph.weights)
    total = 0
    for weight, cut in parts:
        spec = graph.weights[weight]
        rows = spec.shape[0] if cut is None else len(cut)
        total += rows * math.prod(spec.shape[1:]) * ITEM_BYTES[spec.dtype] if spec.rank else spec.num_bytes
    return total
