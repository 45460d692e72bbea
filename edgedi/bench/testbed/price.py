"""What a message costs the processor of one of its ends here, measured while caches are warm."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import zmq

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.program import Piece
from edgedi.runtime.emulation.speed import MessagePrice
from edgedi.runtime.execution.pieces import message_of, piece_of, tensor_of
from edgedi.runtime.execution.tensors import Tensor, inference, noise
from edgedi.runtime.links.peers import send_payload
from edgedi.runtime.wire.codec import decode, encode
from edgedi.runtime.wire.frames import joined
from edgedi.runtime.wire.messages import Piece as Message

_ROWS = (1, 64)
"""Of a map 56 wide with 64 channels: 14 kB, a halo, and 918 kB, a map that is gathered."""
_BATCHES, _WARM, _REPEATS = 5, 20, 60


def measured_price(clock: Callable[[], float] = time.thread_time) -> MessagePrice:
    """From messages of two sizes over ZeroMQ on the loopback device, packed, sent, taken in and unpacked as in a run.

    Sends and receives together: who exchanges a halo does one of each. The least median of some batches, as whatever
    else the machine does only adds.
    """
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    inbox, outbox = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    try:
        outbox.connect(f"tcp://127.0.0.1:{inbox.bind_to_random_port('tcp://127.0.0.1')}")
        with inference():
            small, large = (
                min(_end_seconds(noise((1, 64, rows, 56)), outbox, inbox, clock) for _ in range(_BATCHES))
                for rows in _ROWS
            )
    finally:
        context.destroy(0)
    num_bytes = [64 * rows * 56 * 4 for rows in _ROWS]
    byte_s = max(0.0, (large - small) / (num_bytes[1] - num_bytes[0]))
    return MessagePrice(message_s=max(0.0, small - num_bytes[0] * byte_s), byte_s=byte_s)


def _end_seconds(
    tensor: Tensor, outbox: zmq.Socket[bytes], inbox: zmq.Socket[bytes], clock: Callable[[], float]
) -> float:
    """Processor seconds of one end of a message that carries ``tensor``."""
    piece, poller = Piece("map", 2, Interval(0, tensor.shape[2])), zmq.Poller()
    poller.register(inbox, zmq.POLLIN)
    taken: list[float] = []
    for number in range(_WARM + _REPEATS):
        started_s = clock()
        message = message_of(("0" * 32, 1, number), piece, tensor, source=0, deadline_s=1.0)
        header, payload = encode(message)
        outbox.send(header, zmq.SNDMORE)
        send_payload(outbox, payload)
        sent_s = clock()
        inbox.poll()  # waiting is no work
        came_s = clock()
        poller.poll(0)
        _, *frames = inbox.recv_multipart(zmq.NOBLOCK, copy=False)
        received = decode(joined([frame.buffer for frame in frames]))
        assert isinstance(received, Message)
        piece_of(received), tensor_of(received, own=False)
        taken.append((sent_s - started_s + clock() - came_s) / 2)
    return statistics.median(taken[_WARM:])
