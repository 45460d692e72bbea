"""What a message costs the processors of its ends here, measured while caches are warm."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import zmq

from edgedi.partition.graph.geometry import Interval
from edgedi.partition.plan.program import Piece
from edgedi.runtime.emulation.calm import CALM, Calm, calmly
from edgedi.runtime.emulation.speed import MessagePrice
from edgedi.runtime.execution.pieces import message_of, piece_of, tensor_of
from edgedi.runtime.execution.tensors import Tensor, inference, noise
from edgedi.runtime.links.keys import KeyPair, generate_keypair
from edgedi.runtime.links.peers import send_payload
from edgedi.runtime.wire.codec import decode, encode
from edgedi.runtime.wire.frames import joined
from edgedi.runtime.wire.messages import Piece as Message

_ROWS = (1, 64)
"""Of a map 56 wide with 64 channels: 14 kB, a halo, and 918 kB, a map that is gathered."""
_BATCHES, _WARM, _REPEATS = 8, 20, 60
_MOST_S = 10.0
"""Of all batches, and of waiting for calm moments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ends:
    """Processor seconds of a message: of the thread at one of its ends, and of all other threads at both together."""

    end_s: float
    others_s: float


def measured_price(
    *,
    keys: bool,
    thread: Callable[[], float] = time.thread_time,
    process: Callable[[], float] = time.process_time,
    calm: Calm = CALM,
) -> tuple[MessagePrice, MessagePrice]:
    """(at each end, passing it on) from messages of two sizes over ZeroMQ on the loopback device, packed, sent, taken
    in and unpacked as in a run, encrypted if there are ``keys``.

    Sends and receives together: who exchanges a halo does one of each. The least of some batches at calm moments, as
    whatever else the machine does only adds; and on one core, as waking another is dear on virtual machines.
    """
    with _on_one_core():
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        inbox, outbox = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        try:
            if keys:
                use_keys(inbox, outbox)
            outbox.connect(f"tcp://127.0.0.1:{inbox.bind_to_random_port('tcp://127.0.0.1')}")
            with inference():
                batches = calmly(
                    lambda: [_ends(noise((1, 64, rows, 56)), outbox, inbox, thread, process) for rows in _ROWS],
                    enough=_BATCHES, most_s=_MOST_S, calm=calm,
                )  # fmt: skip
        finally:
            context.destroy(0)
    small, large = zip(*batches, strict=True)
    return (
        _price(min(each.end_s for each in small), min(each.end_s for each in large)),
        _price(min(each.others_s for each in small), min(each.others_s for each in large)),
    )


@contextlib.contextmanager
def _on_one_core() -> Iterator[None]:
    """This thread, and those that it starts meanwhile, where a system pins threads."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def _price(small_s: float, large_s: float) -> MessagePrice:
    """From the seconds of messages of ``_ROWS`` rows."""
    small_bytes, large_bytes = (64 * rows * 56 * 4 for rows in _ROWS)
    byte_s = max(0.0, (large_s - small_s) / (large_bytes - small_bytes))
    return MessagePrice(message_s=max(0.0, small_s - small_bytes * byte_s), byte_s=byte_s)


def use_keys(server: zmq.Socket[bytes], client: zmq.Socket[bytes]) -> None:
    """Encrypt what goes between two sockets that are not bound or connected yet."""
    server_keys, client_keys = generate_keypair(), generate_keypair()
    server.curve_server, server.curve_publickey, server.curve_secretkey = True, *_bytes(server_keys)
    client.curve_publickey, client.curve_secretkey = _bytes(client_keys)
    client.curve_serverkey = server_keys.public.encode()


def _bytes(keys: KeyPair) -> tuple[bytes, bytes]:
    return keys.public.encode(), keys.secret.encode()


def _ends(
    tensor: Tensor,
    outbox: zmq.Socket[bytes],
    inbox: zmq.Socket[bytes],
    thread: Callable[[], float],
    process: Callable[[], float],
) -> Ends:
    """Of a message that carries ``tensor``: the median of the thread's, the mean of the others'."""
    piece, poller = Piece("map", 2, Interval(0, tensor.shape[2])), zmq.Poller()
    poller.register(inbox, zmq.POLLIN)
    taken: list[float] = []
    others_s = 0.0
    for number in range(_WARM + _REPEATS):
        if number == _WARM:
            others_s = process() - thread()
        started_s = thread()
        message = message_of(("0" * 32, 1, number), piece, tensor, source=0, deadline_s=1.0)
        header, payload = encode(message)
        outbox.send(header, zmq.SNDMORE)
        send_payload(outbox, payload)
        sent_s = thread()
        inbox.poll()  # waiting is no work
        came_s = thread()
        poller.poll(0)
        _, *frames = inbox.recv_multipart(zmq.NOBLOCK, copy=False)
        received = decode(joined([frame.buffer for frame in frames]))
        assert isinstance(received, Message)
        piece_of(received), tensor_of(received, own=False)
        taken.append((sent_s - started_s + thread() - came_s) / 2)
    others_s = process() - thread() - others_s
    return Ends(end_s=statistics.median(taken[_WARM:]), others_s=max(0.0, others_s / _REPEATS))
