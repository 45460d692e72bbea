"""Large payloads as several frames of one message.

ZeroMQ's signs of life pass between two frames and never within one: over a slow link a single frame of half a gigabyte
would keep them waiting for a minute, and both ends would take each other for lost. Pure, like ``codec``.
"""

from __future__ import annotations

from collections.abc import Sequence

from edgedi.errors import RemoteProtocolError
from edgedi.runtime.wire.codec import LIMITS
from edgedi.runtime.wire.payloads import Buffer

FRAME_BYTES = 250_000
"""A tenth of a second at 20 Mbit/s. What comes in one frame is not copied: smaller ones would cost on fast links."""


def split(payload: Buffer) -> list[Buffer]:
    """``payload`` in parts of at most FRAME_BYTES, not copied; at least one part."""
    view = memoryview(payload)
    return [view[start : start + FRAME_BYTES] for start in range(0, max(1, view.nbytes), FRAME_BYTES)]


def joined(frames: Sequence[Buffer]) -> list[Buffer]:
    """A received message as ``codec.decode`` takes it: header and payload in a frame each.

    Several frames become one ``bytearray``, nobody else's. ``RemoteProtocolError`` where it would be too large.
    """
    if len(frames) <= 2:
        return list(frames)
    num_bytes = sum(memoryview(frame).nbytes for frame in frames[1:])
    if num_bytes > LIMITS["payload_bytes"]:
        raise RemoteProtocolError(f"payload of {num_bytes} bytes, at most {LIMITS['payload_bytes']} are allowed")
    whole, position = bytearray(num_bytes), 0
    for frame in frames[1:]:
        size = memoryview(frame).nbytes
        whole[position : position + size] = frame
        position += size
    return [frames[0], whole]
