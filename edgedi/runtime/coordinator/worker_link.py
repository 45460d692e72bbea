"""The coordinator's link to one worker: its socket, the questions that were asked over it, and why it was lost.

A link that is lost stays so, and every question over it hears of that at once: libzmq's monitor tells of a closed
connection, its heartbeats of a silent one.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from edgedi.errors import EdgediError, SecurityError, WorkerLost
from edgedi.runtime.links.halo_links import HaloLink
from edgedi.runtime.links.keys import KeyPair, WorkerAddress, fingerprint
from edgedi.runtime.links.peers import send_payload
from edgedi.runtime.links.security import apply_curve_client, apply_socket_options, map_zmq_error
from edgedi.runtime.wire.codec import encode
from edgedi.runtime.wire.messages import Failed, Message, Piece, Refused
from edgedi.runtime.wire.payloads import Buffer

log = logging.getLogger("edgedi.coordinator")
MOST_GREETINGS = 3
"""How often an open link may break off before both sides know each other; each time libzmq tries again by itself."""
_MONITORED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


class WorkerLink:
    """Owned by the coordinator's thread; ``socket`` and ``monitor`` are to be polled."""

    def __init__(
        self,
        context: zmq.Context[Any],
        address: WorkerAddress,
        keypair: KeyPair | None,
        *,
        now_s: float,
        inside: str | None = None,
    ) -> None:
        """``inside`` is where a worker of this process is reached. ``SecurityError`` where only one side has keys."""
        self.address = address
        self.lost: EdgediError | None = None
        self.pinged_s = now_s  # the first word is the greeting
        self.sent_bytes = self.received_bytes = 0
        self._keypair = keypair
        self._asked: list[tuple[tuple[type, ...], Future[Any]]] = []
        self._shook_hands, self._broken_greetings = False, 0
        self._halo: HaloLink | None = None
        self.is_inside = inside is not None
        """Whether it is this process's own share, reached through memory."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
        apply_socket_options(self.socket, ipv6=":" in address.host)
        self.socket.setsockopt(zmq.IMMEDIATE, 0)  # the greeting waits for the connection; a lost link is not retried
        if address.public_key is not None and inside is None:
            if keypair is None:
                raise SecurityError(f"worker {address} has a key, so you need one too: edgedi-keygen, then key=FILE")
            apply_curve_client(self.socket, keypair, address.public_key)
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(_MONITORED)
        try:
            self.socket.connect(inside or address.endpoint)
        except zmq.ZMQError as error:
            raise map_zmq_error(error, f"connecting to {address}") from error

    # --- messages ----------------------------------------------------------------------------------------------------

    def receive(self) -> list[zmq.Frame] | None:
        """The next message, ``None`` where none is there."""
        try:
            return self.socket.recv_multipart(zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return None

    def send(self, frames: Sequence[Buffer]) -> bool:
        """Send an encoded message; ``False`` where the socket takes none."""
        header, *payload = frames
        try:
            self.socket.send(header, zmq.NOBLOCK | (zmq.SNDMORE if payload else 0))
            if payload:
                send_payload(self.socket, payload[0], zmq.NOBLOCK, whole=self.is_inside)
                self.sent_bytes += len(payload[0])
        except zmq.Again:
            return False
        return True

    def use_halo(self, address: str) -> None:
        """Send pieces the short way to a worker on this machine, where there is one."""
        try:
            self._halo = HaloLink(address)
        except OSError as error:
            log.info("no Unix socket to worker %s (%s): its pieces take TCP", self.address, error)

    def send_halo(self, piece: Piece) -> bool:
        """Send a piece the short way; ``False`` where there is none, or it is full."""
        if self._halo is None or self.lost is not None:
            return False
        header, payload = encode(piece)
        try:
            sent = self._halo.send(header, payload)
        except OSError:  # if the worker has gone, its link will tell
            self._halo.close()
            self._halo = None
            return False
        self.sent_bytes += len(payload) if sent else 0
        return sent

    # --- questions ---------------------------------------------------------------------------------------------------

    def ask(self, answers: tuple[type, ...], future: Future[Any]) -> None:
        """Let ``future`` hear the next message of a kind in ``answers``."""
        self._asked.append((answers, future))

    def awaits(self, kind: type) -> bool:
        """Whether somebody asked for a message of this kind."""
        return any(kind in answers for answers, _ in self._asked)

    def answer(self, message: Message) -> None:
        """Give an answer to the oldest question that it answers; a refusal ends every conversation over the link."""
        if isinstance(message, (Failed, Refused)):
            text = message.reason if isinstance(message, Refused) else message.text
            self._end_questions(WorkerLost(f"worker {self.address} refused: {text}", worker=str(self.address)))
            return
        for position, (answers, future) in enumerate(self._asked):
            if isinstance(message, answers):
                del self._asked[position]
                future.set_result(message)
                return
        log.info("worker %s said %s unasked", self.address, type(message).__name__)

    def _end_questions(self, error: EdgediError) -> None:
        for _, future in self._asked:
            future.set_exception(error)
        self._asked.clear()

    # --- loss --------------------------------------------------------------------------------------------------------

    def lose(self, error: EdgediError, *, linger_ms: int = 0) -> None:
        """Close it, with so much time for what is still to be sent."""
        self.lost = error
        self.socket.disable_monitor()
        self.socket.close(linger_ms)
        if self._halo is not None:
            self._halo.close()
        self._end_questions(error)

    def why_broken(self) -> EdgediError | None:
        """By what libzmq has said since it was last asked; ``None`` while the link stands."""
        while True:
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return None
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                self._shook_hands = True
                continue
            closed = WorkerLost(f"worker {self.address} closed the connection", worker=str(self.address))
            error = closed if self._shook_hands else self._why_no_handshake(event)
            if error is not None:
                return error

    def why_full(self) -> EdgediError:
        """The socket takes no message: it is full, or libzmq gave the connection up. It says why before it does so,
        so its word comes first; else whose key was refused would depend on which of the two is looked at first.
        """
        said = self.why_broken()
        if said is not None:
            return said
        text = f"worker {self.address} takes no more messages"
        if self.address.public_key is None:  # how an open greeting ends at a worker with keys is not always said
            text += f"; if it wants keys, {self._keys_wanted}"
        return WorkerLost(text, worker=str(self.address))

    def _why_no_handshake(self, event: int) -> EdgediError | None:
        """libzmq says that the two sides did not come together; which keys they have says why. ``None``: not yet clear,
        as when the worker's end of the line came before its word.
        """
        address = self.address
        if address.public_key is None:
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                return SecurityError(f"worker {address} wants keys: {self._keys_wanted}")
            self._broken_greetings += event == zmq.EVENT_DISCONNECTED
            if self._broken_greetings < MOST_GREETINGS:
                return None
            text = f"{address} breaks off the greeting: is that an edgedi-worker? If it wants keys, {self._keys_wanted}"
            return WorkerLost(text, worker=str(address))
        if event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            ours = fingerprint(self._keypair.public) if self._keypair else "none"
            return SecurityError(
                f"worker {address} does not know our key ({ours}): put the line that edgedi-keygen --show prints for "
                "it into the worker's --authorized-keys file, and start the worker again"
            )
        return SecurityError(
            f"worker {address} does not prove the key that we have for it ({fingerprint(address.public_key)}): this "
            "may be another machine, or the worker has a new key, or none; it prints its public key at its start"
        )

    @property
    def _keys_wanted(self) -> str:
        return f"give key=FILE, and {self.address}#<its public key>"
