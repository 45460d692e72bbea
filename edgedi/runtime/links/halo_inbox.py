"""Where pieces from processes of this machine arrive: their Unix sockets, beside the other sockets of a poller."""

from __future__ import annotations

import logging
from collections.abc import Callable, Container, Iterable

import zmq

from edgedi.errors import RemoteProtocolError
from edgedi.runtime.links.halo_links import HaloListener, HaloPeer
from edgedi.runtime.wire.codec import decode
from edgedi.runtime.wire.messages import Piece
from edgedi.runtime.wire.payloads import Buffer


class HaloInbox:
    """Of the thread that owns ``poller``; ``log`` hears of packets that are no message."""

    def __init__(self, poller: zmq.Poller, log: logging.Logger) -> None:
        self._poller, self._log = poller, log
        self._listener = HaloListener()
        self._poller.register(self._listener.listener, zmq.POLLIN)

    @property
    def address(self) -> str:
        """Where processes of this machine send to."""
        return self._listener.address

    def accept(self) -> None:
        """Let one waiting process in."""
        peer = self._listener.accept()
        if peer is not None:
            self._poller.register(peer, zmq.POLLIN)

    def take(self, deliver: Callable[[Piece], None]) -> bool:
        """Deliver the pieces that are there; whether there was any packet."""
        return self._take(list(self._listener.peers), deliver)

    def serve(self, ready: Container[object], deliver: Callable[[Piece], None]) -> None:
        """What ``accept`` and ``take`` do, for those alone that the poller found ``ready``, by number of file."""
        if self._listener.listener.fileno() in ready:
            self.accept()
        self._take([peer for peer in self._listener.peers if peer.fileno() in ready], deliver)

    def _take(self, peers: Iterable[HaloPeer], deliver: Callable[[Piece], None]) -> bool:
        took = False
        for peer in peers:
            while frames := peer.receive():
                took = True
                self._read(frames, deliver)
            if frames is None:
                self._poller.unregister(peer)
                self._listener.forget(peer)
        return took

    def _read(self, frames: list[Buffer], deliver: Callable[[Piece], None]) -> None:
        """A worker's own process sent it, or another of this user's; it can be a piece and nothing else."""
        try:
            message = decode(frames)
        except RemoteProtocolError as error:
            self._log.warning("dropped a packet: %s", error)
            return
        if isinstance(message, Piece):
            deliver(message)

    def close(self) -> None:
        """Close every socket."""
        self._listener.close()
