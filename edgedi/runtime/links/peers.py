"""Links to the other workers of a session: one DEALER per peer, for halos, owned by the thread that computes."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import zmq

from edgedi.errors import SecurityError
from edgedi.partition.plan.plan import HOME
from edgedi.runtime.links import halo_links
from edgedi.runtime.links.halo_links import SCHEME, HaloLink
from edgedi.runtime.links.keys import KeyPair, parse_worker_address
from edgedi.runtime.links.security import apply_curve_client, apply_socket_options
from edgedi.runtime.wire.codec import encode
from edgedi.runtime.wire.frames import split
from edgedi.runtime.wire.messages import Piece
from edgedi.runtime.wire.payloads import Buffer

log = logging.getLogger("edgedi.worker")
COPY_BYTES = 65_536
"""Payloads below this are copied when they are sent: cheaper than keeping track of them."""
_SEND_TIMEOUT_MS = 5_000


def send_payload(socket: zmq.Socket[bytes], payload: Buffer, flags: int = 0, *, whole: bool = False) -> None:
    """The rest of a message whose header has been sent; ``whole`` within one process, where nothing is copied."""
    *parts, last = [payload] if whole else split(payload)
    for part in parts:
        socket.send(part, flags | zmq.SNDMORE, copy=False)
    socket.send(last, flags, copy=bool(not parts and len(last) < COPY_BYTES))


class PeerLinks:
    """Connections are made at once; the first halo waits for them, at most five seconds."""

    def __init__(
        self,
        context: zmq.Context[Any],
        peers: Sequence[dict[str, Any]],
        keypair: KeyPair | None,
        home_halo_address: str | None = None,
        *,
        proxy: str | None = None,
    ) -> None:
        self._sockets: dict[int, zmq.Socket[bytes]] = {}
        self._halos: dict[int, HaloLink] = {}
        for peer in peers:
            address = parse_worker_address(peer["address"])
            socket = context.socket(zmq.DEALER)
            apply_socket_options(socket, ipv6=":" in address.host)
            socket.setsockopt(zmq.SNDTIMEO, _SEND_TIMEOUT_MS)
            if proxy is not None:
                socket.setsockopt(zmq.SOCKS_PROXY, proxy.encode())
            if peer["public_key"] is not None:
                if keypair is None:
                    raise SecurityError("the session's links need keys, and this worker has none: start it with --key")
                apply_curve_client(socket, keypair, peer["public_key"])
            socket.connect(address.endpoint)
            self._sockets[peer["participant"]] = socket
            if peer["halo_address"] is not None:
                self._connect_halo(peer["participant"], peer["halo_address"])

        if home_halo_address is not None:
            self._connect_halo(HOME, home_halo_address)

    def _connect_halo(self, participant: int, address: str) -> None:
        """The short way to who is on this machine, where there is one; without it everything takes ZeroMQ."""
        if not address.startswith(SCHEME) or not halo_links.supported():
            return
        try:
            self._halos[participant] = HaloLink(address)
        except OSError as error:
            log.info("no Unix socket to participant %d (%s): its pieces take TCP", participant, error)

    def send(self, target: int, piece: Piece) -> None:
        """Send without waiting for the peer to read. ``zmq.ZMQError`` where no link stands in time."""
        header, payload = encode(piece)
        if self._send_short(target, header, payload):
            return
        socket = self._sockets[target]
        socket.send(header, zmq.SNDMORE)
        send_payload(socket, payload)

    def send_home(self, piece: Piece) -> bool:
        """Send to a coordinator on this machine; ``False`` where there is no short way, or it is full."""
        return HOME in self._halos and self._send_short(HOME, *encode(piece))

    def _send_short(self, target: int, header: Buffer, payload: Buffer) -> bool:
        halo = self._halos.get(target)
        if halo is None:
            return False
        try:
            return halo.send(header, payload)
        except OSError as error:
            log.info("the Unix socket to participant %d has ended (%s): its pieces take TCP", target, error)
            self._halos.pop(target).close()
            return False

    def close(self) -> None:
        """Drop all links and what has not been sent."""
        for socket in self._sockets.values():
            socket.close(0)
        for halo in self._halos.values():
            halo.close()
        self._sockets.clear()
        self._halos.clear()
