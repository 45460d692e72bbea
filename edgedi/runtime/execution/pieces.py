"""Pieces of a program as the messages that carry them: the same for a worker and for the coordinator."""

from __future__ import annotations

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.program import Piece as ProgramPiece
from edgedi.runtime.execution.tensors import Tensor, from_wire, to_wire
from edgedi.runtime.wire.messages import Piece


def message_of(
    request: tuple[str, int, int], piece: ProgramPiece, tensor: Tensor, *, source: int, deadline_s: float
) -> Piece:
    """What participant ``source`` sends of a request (session, epoch, number) that has ``deadline_s`` left."""
    session, epoch, number = request
    payload, dtype, shape, layout = to_wire(tensor)
    return Piece(
        session=session,
        epoch=epoch,
        request=number,
        tensor=piece.tensor,
        dim=piece.dim,
        start=piece.interval.start,
        stop=piece.interval.stop,
        source=source,
        deadline_s=max(0.0, deadline_s),
        dtype=dtype,
        shape=shape,
        layout=layout,
        payload=payload,
    )


def piece_of(message: Piece) -> ProgramPiece:
    """Which piece it is, as programs name it."""
    return ProgramPiece(message.tensor, message.dim, Interval(message.start, message.stop))


def tensor_of(message: Piece, *, own: bool) -> Tensor:
    """What it carries; with ``own`` in memory of its own, else a view of the message."""
    return from_wire(message.payload, message.dtype, message.shape, message.layout, own=own)
