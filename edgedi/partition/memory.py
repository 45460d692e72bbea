"""How much memory the maps of a program take at most: a walk over its instructions with every piece's last use."""

from __future__ import annotations

from edgedi.partition.graph import ITEM_BYTES, LayerGraph
from edgedi.partition.program import UNSPLIT, Instruction, Join, Piece, Program, Run, Send


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
