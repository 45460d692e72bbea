"""A worker's ways in and out: a ROUTER for all, Unix sockets for pieces on this machine, and who may use them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import zmq

from edgedi.runtime.links import halo_links
from edgedi.runtime.links.halo_inbox import HaloInbox
from edgedi.runtime.links.peers import send_payload
from edgedi.runtime.links.security import Authenticator, apply_curve_server, apply_socket_options, peer_key, zmq_errors
from edgedi.runtime.wire.messages import Piece
from edgedi.runtime.wire.payloads import Buffer
from edgedi.runtime.worker.options import WorkerOptions

log = logging.getLogger("edgedi.worker")


class WorkerSockets:
    """Owned by the thread that serves. ``poller`` has all that may be read."""

    def __init__(self, options: WorkerOptions, context: zmq.Context[Any], home_endpoint: str | None) -> None:
        """``home_endpoint`` is a way in for the process that owns ``context`` alone (inproc)."""
        self._options, self._context, self._home_endpoint = options, context, home_endpoint
        self._authenticator: Authenticator | None = None
        self._socket = context.socket(zmq.ROUTER)
        self.poller = zmq.Poller()
        self.poller.register(self._socket, zmq.POLLIN)
        emulated = options.speed.is_emulated or options.proxy is not None  # no short ways, and no looking for halos
        self._halos = HaloInbox(self.poller, log) if halo_links.supported() and not emulated else None

    @property
    def is_home_inside(self) -> bool:
        """Whether the coordinator is in this process, reached through memory."""
        return self._home_endpoint is not None

    def bind(self) -> int:
        """Listen; returns the port. ``EdgediError`` where that is not possible."""
        options = self._options
        apply_socket_options(self._socket, ipv6=":" in options.host)
        if options.keypair is not None:
            self._authenticator = Authenticator(self._context, options.authorized).start()
            apply_curve_server(self._socket, options.keypair)
        host = f"[{options.host}]" if ":" in options.host else options.host
        with zmq_errors(f"listening on {options.host}:{options.port}"):
            self._socket.bind(f"tcp://{host}:{options.port or '*'}")
        endpoint = self._socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        if self._home_endpoint is not None:
            self._socket.bind(self._home_endpoint)
        return int(endpoint.decode().rsplit(":", 1)[1])

    def close(self) -> None:
        """Close every socket, and let nobody in any more."""
        self._socket.close(0)
        if self._halos is not None:
            self._halos.close()
        if self._authenticator is not None:
            self._authenticator.stop()

    # --- in ----------------------------------------------------------------------------------------------------------

    def is_message_there(self) -> bool:
        """Whether ``receive`` would give one."""
        return bool(self._socket.poll(0))

    def receive(self) -> tuple[bytes, list[zmq.Frame]] | None:
        """The next message and the link that it came over, ``None`` where none is there."""
        try:
            link, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None
        return link.bytes, frames

    def sender(self, frame: zmq.Frame) -> tuple[str | None, bool]:
        """The key proven by who sent it, and whether that key was let in as some session's peer alone."""
        if self._authenticator is None:
            return None, False
        key = peer_key(frame)
        # Links from outside all prove a key here; one without is this process's own, if it has a way in.
        from_home = key is None and self.is_home_inside
        return key, not from_home and (key is None or not self._authenticator.is_client(key))

    @property
    def has_halos(self) -> bool:
        """Whether there is a short way for pieces."""
        return self._halos is not None

    @property
    def halo_address(self) -> str | None:
        """Where processes of this machine send their pieces."""
        return self._halos.address if self._halos is not None else None

    def accept_halos(self) -> None:
        """Let one waiting process of this machine in."""
        if self._halos is not None:
            self._halos.accept()

    def take_halos(self, deliver: Callable[[Piece], None]) -> bool:
        """Deliver the pieces that processes of this machine have sent; whether there was any packet."""
        return self._halos is not None and self._halos.take(deliver)

    # --- out ---------------------------------------------------------------------------------------------------------

    def send(self, link: bytes, frames: Sequence[Buffer]) -> None:
        """Send an encoded message, or say in the log why not."""
        header, *payload = frames
        try:
            self._socket.send(link, zmq.SNDMORE | zmq.NOBLOCK)  # whoever does not read must not keep the others waiting
            self._socket.send(header, zmq.SNDMORE if payload else 0)
            if payload:
                send_payload(self._socket, payload[0])
        except zmq.ZMQError as error:  # whoever asked is gone, or has left a thousand answers unread
            log.info("could not answer: %s", error)

    # --- who may use them --------------------------------------------------------------------------------------------

    def admit(self, session: str, keys: Sequence[str]) -> None:
        """Let the other workers of a session in, by their public keys."""
        if self._authenticator is not None:
            self._authenticator.admit(session, keys)

    def dismiss(self, session: str) -> None:
        """No longer those that this session brought."""
        if self._authenticator is not None:
            self._authenticator.dismiss(session)
