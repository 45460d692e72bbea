"""Links to a session's other workers: the short way where there is one, ZeroMQ where it is full or has ended."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import zmq

from edgedi.errors import WorkerLost
from edgedi.runtime.coordinator.worker_link import WorkerLink
from edgedi.runtime.links import halo_links, shared_memory
from edgedi.runtime.links.halo_inbox import HaloInbox
from edgedi.runtime.links.keys import parse_worker_address
from edgedi.runtime.links.peers import PeerLinks, send_payload
from edgedi.runtime.wire.codec import decode
from edgedi.runtime.wire.frames import FRAME_BYTES, joined
from edgedi.runtime.wire.messages import Piece

pytestmark = pytest.mark.skipif(not halo_links.supported(), reason="this system has no packet sockets with credentials")
LOG = logging.getLogger("edgedi.test")


def piece(size: int, request: int) -> Piece:
    return Piece(
        session="s", epoch=1, request=request, tensor="t", dim=2, start=0, stop=size, source=1, deadline_s=1.0,
        dtype="uint8", shape=(size,), layout="nchw", payload=memoryview(bytes([request]) * size),
    )  # fmt: skip


@dataclass
class End:
    """A worker's ends: the inbox of the short way, and its ZeroMQ socket."""

    poller: zmq.Poller
    inbox: HaloInbox
    router: zmq.Socket[bytes]
    address: str

    def short(self) -> list[int]:
        """The requests of the pieces that came the short way."""
        came: list[Piece] = []
        self.inbox.accept()
        self.inbox.take(came.append)
        assert all(bytes(one.payload) == bytes([one.request]) * one.shape[0] for one in came)
        return [one.request for one in came]

    def long(self) -> int:
        """The request of the piece that comes by ZeroMQ."""
        assert self.router.poll(5_000)
        _, *frames = self.router.recv_multipart()
        message = decode(joined(frames))
        assert isinstance(message, Piece)
        return message.request


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made = zmq.Context()
    yield made
    made.destroy(0)


@pytest.fixture
def end(context: zmq.Context[zmq.Socket[bytes]]) -> Iterator[End]:
    router = context.socket(zmq.ROUTER)
    poller = zmq.Poller()
    inbox = HaloInbox(poller, LOG)
    yield End(poller, inbox, router, f"127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}")
    inbox.close()


def links_to(end: End, context: zmq.Context[zmq.Socket[bytes]]) -> PeerLinks:
    peer = {"address": end.address, "public_key": None, "participant": 0, "halo_address": end.inbox.address}
    return PeerLinks(context, [peer], None, end.inbox.address)


def test_pieces_of_any_size_go_the_short_way(context: zmq.Context[zmq.Socket[bytes]], end: End) -> None:
    links = links_to(end, context)
    for request, size in enumerate((1, 9 << 20, 9 << 20, 20 << 20, 100, 30 << 20)):
        links.send(0, piece(size, request))
        assert end.short() == [request]
    links.close()


def test_a_piece_too_large_for_the_short_way_takes_the_other(context: zmq.Context[zmq.Socket[bytes]], end: End) -> None:
    links = links_to(end, context)
    for request, size in enumerate((1, shared_memory.NUM_BYTES + 1, 300_000)):
        links.send(0, piece(size, request))
    assert not links.send_home(piece(shared_memory.NUM_BYTES + 1, 9))
    assert end.short() == [0, 2]
    assert end.long() == 1
    links.close()


def test_those_that_the_poller_found_are_served_and_nobody_else(
    context: zmq.Context[zmq.Socket[bytes]], end: End
) -> None:
    came: list[Piece] = []

    def ready() -> set[int]:
        return {source for source, _ in end.poller.poll(5_000)}

    one, other = links_to(end, context), links_to(end, context)
    for request, links in enumerate((one, other)):
        links.send(0, piece(300_000, request))
        end.inbox.serve(set(), came.append)
        assert len(came) == request  # the one before, and not this one
        end.inbox.serve(ready(), came.append)  # lets it in
        end.inbox.serve(ready(), came.append)
        assert [found.request for found in came] == list(range(request + 1))
    one.close()
    end.inbox.serve(ready(), came.append)  # forgets it
    assert not end.poller.poll(0)
    other.send(0, piece(1, 2))
    end.inbox.serve(ready(), came.append)
    assert [found.request for found in came] == [0, 1, 2]
    other.close()


@pytest.mark.parametrize("size", [100, 300_000])
def test_where_the_short_way_ends_pieces_take_the_other(
    context: zmq.Context[zmq.Socket[bytes]], end: End, size: int
) -> None:
    links = links_to(end, context)
    links.send(0, piece(size, 0))
    assert links.send_home(piece(size, 1))
    assert end.short() == [0]
    end.inbox.accept()
    end.inbox.close()
    for request in (2, 3):
        links.send(0, piece(size, request))
        assert end.long() == request
        assert not links.send_home(piece(size, request))
    links.close()


@pytest.mark.parametrize("size", [100, 300_000])
def test_the_coordinator_forgets_a_short_way_that_has_ended(
    context: zmq.Context[zmq.Socket[bytes]], end: End, size: int
) -> None:
    link = WorkerLink(context, parse_worker_address(end.address), None, now_s=0.0)
    link.use_halo(end.inbox.address)
    assert link.send_halo(piece(size, 0))
    assert end.short() == [0]
    end.inbox.close()
    assert [link.send_halo(piece(size, request)) for request in (1, 2)] == [False, False]
    link.lose(WorkerLost("over", worker=""))


def test_a_worker_of_this_process_gets_a_payload_as_one_frame(context: zmq.Context[zmq.Socket[bytes]]) -> None:
    router = context.socket(zmq.ROUTER)
    router.bind("inproc://inside")
    link = WorkerLink(context, parse_worker_address("127.0.0.1:1"), None, now_s=0.0, inside="inproc://inside")
    assert link.send([b"header", bytes(3 * FRAME_BYTES)])
    assert [len(frame) for frame in router.recv_multipart()[1:]] == [6, 3 * FRAME_BYTES]
    link.lose(WorkerLost("over", worker=""))


@pytest.mark.parametrize(("whole", "count"), [(False, 3), (True, 1)])
def test_within_a_process_a_payload_is_one_frame(
    context: zmq.Context[zmq.Socket[bytes]], whole: bool, count: int
) -> None:
    near, far = context.socket(zmq.PAIR), context.socket(zmq.PAIR)
    near.bind("inproc://x")
    far.connect("inproc://x")
    payload = bytearray(FRAME_BYTES * 2 + 1)
    send_payload(near, payload, whole=whole)
    frames = far.recv_multipart(copy=False)
    payload[0] = 7
    assert [frame.buffer[0] for frame in frames] == [7] + [0] * (count - 1)  # seen here: nothing was copied
