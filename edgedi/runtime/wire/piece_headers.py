"""Headers of pieces, without packing and reading the same words again for every request.

From request to request nothing in the header of a halo changes but its last two fields, ``request`` and ``deadline_s``.
Both are sent at full width, so they are the header's last 18 bytes; what stands before them, the head, is packed and
checked once and then only looked up. On a small device, whose caches the layers between two exchanges have emptied,
packing and reading a header cost as much as sending it.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import msgpack

from edgedi.runtime.wire.messages import Piece
from edgedi.runtime.wire.payloads import Buffer, buffer_bytes

TAIL = struct.Struct(">BQBd")
"""``request`` as msgpack's uint 64 and ``deadline_s`` as its float 64, each behind its marker."""
_UINT_64, _FLOAT_64 = 0xCF, 0xCB
_MOST_HEADS = 4_096
"""More than the halos of many sessions; then all are forgotten, and packed or read once more."""
_MOST_HEAD_BYTES = 1_024
_NAMES = ("session", "epoch", "tensor", "dim", "start", "stop", "source", "dtype", "shape", "layout")
_values_of = attrgetter(*_NAMES)
_SETTERS = tuple(getattr(Piece, name).__set__ for name in (*_NAMES, "request", "deadline_s", "payload"))


class PieceHeaders:
    """Both directions. ``pack`` is the slow way to a header, with its checks, of which every head is made once."""

    def __init__(self, pack: Callable[[Piece], bytes]) -> None:
        self._pack = pack
        self._heads: dict[tuple[Any, ...], bytes] = {}
        self._known: dict[bytes, tuple[tuple[Any, ...], int]] = {}

    def pack(self, piece: Piece) -> bytes:
        """The header of ``piece``. ``ValueError`` for what the other side would refuse."""
        values = _values_of(piece)
        head = self._heads.get(values)
        if head is None:
            packed = self._pack(piece)
            head = packed[: len(packed) - len(msgpack.packb(piece.request)) - len(msgpack.packb(piece.deadline_s))]
            _keep(self._heads, values, head)
        try:
            return head + TAIL.pack(_UINT_64, piece.request, _FLOAT_64, piece.deadline_s)
        except struct.error as error:
            raise ValueError(f"request or deadline_s: {error}") from None

    def unpack(self, frames: Sequence[Buffer]) -> Piece | None:
        """The piece that ``frames`` are, if its head is known and it is in order; else the slow way is to say."""
        split = _split(frames)
        if split is None:
            return None
        head, request, deadline_s = split
        known = self._known.get(head)
        if known is None or known[1] != buffer_bytes(frames[1]) or not 0 <= deadline_s < math.inf:
            return None
        piece = object.__new__(Piece)  # its checks were made when its head was first read, and just now
        for set_value, value in zip(_SETTERS, (*known[0], request, deadline_s, frames[1]), strict=True):
            set_value(piece, value)
        return piece

    def remember(self, frames: Sequence[Buffer], piece: Piece) -> None:
        """``frames`` were read the slow way, and are ``piece``."""
        split = _split(frames)
        if split is not None:
            _keep(self._known, split[0], (_values_of(piece), buffer_bytes(piece.payload)))


def _split(frames: Sequence[Buffer]) -> tuple[bytes, int, float] | None:
    """(head, request, deadline_s) of a header whose last two fields are at full width.

    In a header that is a piece's these 18 bytes are those fields and nothing else: ``layout``, a text of four letters,
    stands before them, and no two numbers of msgpack are longer.
    """
    if len(frames) != 2:
        return None
    header = memoryview(frames[0])
    start = header.nbytes - TAIL.size
    if not 0 < start <= _MOST_HEAD_BYTES:
        return None
    first, request, second, deadline_s = TAIL.unpack_from(header, start)
    if first != _UINT_64 or second != _FLOAT_64:
        return None
    return bytes(header[:start]), request, deadline_s


def _keep(known: dict[Any, Any], key: Any, value: Any) -> None:
    if len(known) >= _MOST_HEADS:
        known.clear()
    known[key] = value
