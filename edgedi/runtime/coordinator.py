"""The coordinator's side of the wire: one background thread that owns every socket, and the requests in flight.

Callers hand it commands through a queue and hold futures; nothing else touches a socket. A link that is lost ends every
conversation and every request over it at once: libzmq's monitor tells of a closed connection, its heartbeats of a
silent one.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import zmq
from zmq.utils.monitor import parse_monitor_message

from edgedi.errors import DeadlineExceeded, EdgediError, RemoteProtocolError, SecurityError, WorkerLost
from edgedi.partition.geometry import Interval
from edgedi.partition.plan import HOME
from edgedi.partition.program import Piece as ProgramPiece
from edgedi.runtime import halo_links
from edgedi.runtime.emulation import Emulation, emulation_here
from edgedi.runtime.executor import LoadedProgram, ProgramRun
from edgedi.runtime.frames import joined
from edgedi.runtime.halo_links import HaloLink, HaloListener
from edgedi.runtime.keys import KeyPair, WorkerAddress, fingerprint
from edgedi.runtime.local_share import LocalShare
from edgedi.runtime.messages import Abort, Close, Failed, Message, Piece, Ping, Pong, Refused
from edgedi.runtime.pace import Pace, pace_of
from edgedi.runtime.peers import send_payload
from edgedi.runtime.security import apply_curve_client, apply_socket_options, map_zmq_error
from edgedi.runtime.tensors import Tensor, from_wire, inference, to_wire
from edgedi.runtime.wire import decode, encode

log = logging.getLogger("edgedi.coordinator")
MOST_GREETINGS = 3
"""How often an open link may break off before both sides know each other; each time libzmq tries again by itself."""
PING_EVERY_S = 5.0
"""So that workers know that the session lives (they close it after a minute of silence)."""
_MONITORED = (
    zmq.EVENT_DISCONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
)


@dataclass(slots=True)
class _Link:
    address: WorkerAddress
    socket: zmq.Socket[bytes]
    monitor: zmq.Socket[bytes]
    asked: list[tuple[tuple[type, ...], Future[Any]]]
    lost: EdgediError | None = None
    shook_hands: bool = False
    broken_greetings: int = 0
    pinged_s: float = 0.0
    sent_bytes: int = 0
    received_bytes: int = 0
    halo: HaloLink | None = None
    """The short way for pieces to a worker on this machine."""


@dataclass(slots=True, kw_only=True)
class Request:
    """One request in flight: the coordinator's own program walking, and where its outcome goes."""

    session: str
    epoch: int
    number: int
    run: ProgramRun
    outputs: Sequence[str]
    links: Sequence[int]
    """Link of each participant, in the order of participants."""
    deadline_s: float
    started_s: float
    done: Callable[[Mapping[str, Tensor] | None, EdgediError | None], None]
    """Called once, in the coordinator's thread, with outputs by name or with the reason why there are none."""


def answer_of(future: Future[Any], timeout_s: float, doing: str) -> Any:
    """The answer to a question. ``WorkerLost`` if it does not come in time: no wait is without an end."""
    try:
        return future.result(timeout_s)
    except TimeoutError:
        raise WorkerLost(f"no answer within {timeout_s:.0f} s while {doing}") from None


def new_run(loaded: LoadedProgram, inputs: Mapping[str, Tensor]) -> ProgramRun:
    """The coordinator's program for one request, with the graph's inputs in place."""
    return ProgramRun(loaded, inputs)


class Coordinator:
    """Links to workers by number, in the order of ``addresses``."""

    def __init__(
        self,
        addresses: Sequence[WorkerAddress],
        keypair: KeyPair | None,
        *,
        share: LocalShare | None = None,
        clock: Callable[[], float] = time.monotonic,
        pace: Pace | None = None,
    ) -> None:
        """With ``share`` worker 0 is in this process and is reached within it."""
        self._clock = clock
        self._pace = pace_of(emulation_here().speed) if pace is None else pace
        self._context = zmq.Context() if share is None else share.context
        self._owns_context = share is None
        self._poller = zmq.Poller()
        self._keypair = keypair
        try:
            inside = {0: share.endpoint} if share is not None else {}
            self._links = [self._connect(a, keypair, inside.get(index)) for index, a in enumerate(addresses)]
        except BaseException:
            self._context.destroy(0)
            raise
        self._commands: deque[Callable[[], None]] = deque()
        self._requests: dict[tuple[str, int, int], Request] = {}
        emulated = emulation_here() != Emulation()  # no short ways: links are what is emulated
        self._halos = HaloListener() if halo_links.supported() and not emulated else None
        if self._halos is not None:
            self._poller.register(self._halos.listener, zmq.POLLIN)
        self._retiring: dict[tuple[str, int], tuple[int, ...]] = {}
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)
        self._poller.register(self._wake_out.fileno(), zmq.POLLIN)
        self._closing = False
        self._lock = threading.Lock()
        """Held while a command is queued and while the thread decides that there are no more."""
        self._thread = threading.Thread(target=self._serve, name="edgedi-coordinator", daemon=True)
        self._thread.start()

    def _connect(self, address: WorkerAddress, keypair: KeyPair | None, inside: str | None) -> _Link:
        made = self._context.socket(zmq.DEALER)
        apply_socket_options(made, ipv6=":" in address.host)
        made.setsockopt(zmq.IMMEDIATE, 0)  # the greeting waits for the connection; a lost link is closed, not retried
        if address.public_key is not None and inside is None:
            if keypair is None:
                raise SecurityError(f"worker {address} has a key, so you need one too: edgedi-keygen, then key=FILE")
            apply_curve_client(made, keypair, address.public_key)
        monitor = made.get_monitor_socket(_MONITORED)
        try:
            made.connect(inside or address.endpoint)
        except zmq.ZMQError as error:
            raise map_zmq_error(error, f"connecting to {address}") from error
        self._poller.register(made, zmq.POLLIN)
        self._poller.register(monitor, zmq.POLLIN)
        return _Link(address, made, monitor, [], pinged_s=self._clock())  # the first word is the greeting

    # --- for callers, from any thread --------------------------------------------------------------------------------

    def tell(self, worker: int, message: Message) -> None:
        """Send without expecting an answer."""
        self._call(lambda: self._send(self._links[worker], message))

    def ask(self, worker: int, message: Message | None, *answers: type) -> Future[Any]:
        """Send ``message`` (or nothing) and wait for the next message of a kind in ``answers``."""
        future: Future[Any] = Future()

        def start() -> None:
            link = self._links[worker]
            if link.lost is not None:
                future.set_exception(link.lost)
                return
            link.asked.append((answers, future))
            if message is not None:
                self._send(link, message)

        self._call(start)
        return future

    @property
    def halo_address(self) -> str | None:
        """Where workers of this machine send pieces for the coordinator."""
        return self._halos.address if self._halos is not None else None

    def use_halo(self, worker: int, address: str) -> None:
        """Send pieces to a worker of this machine the short way."""
        self._call(lambda: self._use_halo(self._links[worker], address))

    def start_request(self, request: Request) -> None:
        """Begin a request; its ``done`` hears of the end."""
        self._call(lambda: self._begin(request))

    def retire(self, session: str, epoch: int, links: Sequence[int]) -> None:
        """Free an epoch on its workers as soon as its last request has ended."""
        self._call(lambda: self._retire(session, epoch, tuple(links)))

    def lost(self, worker: int) -> EdgediError | None:
        """Why a worker's link is lost, ``None`` while it stands."""
        return self._links[worker].lost

    def link_bytes(self) -> list[tuple[int, int]]:
        """(sent, received) payload bytes per worker."""
        return [(link.sent_bytes, link.received_bytes) for link in self._links]

    def close(self) -> None:
        """End the thread; requests in flight end with ``WorkerLost``. Idempotent."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._wake()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _call(self, command: Callable[[], None]) -> None:
        with self._lock:
            if self._closing:
                raise WorkerLost("the session is closed")
            self._commands.append(command)
            self._wake()

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError, OSError):  # a full pipe wakes as well as a fuller one
            self._wake_in.send(b"\0")

    # --- the thread --------------------------------------------------------------------------------------------------

    def _serve(self) -> None:
        self._pace.forget()
        try:
            with inference():
                while not self._closing or self._commands:
                    ready = dict(self._pace.wait(self._poller.poll, self._timeout_ms()))
                    self._take_commands()
                    self._take_halos()
                    for index, link in enumerate(self._links):
                        if link.lost is None and link.socket in ready:
                            self._receive_all(index, link)
                        if link.lost is None and link.monitor in ready:
                            self._monitor(index, link)
                    self._keep_time()
        except Exception:  # a thread must not die in silence: whoever waits would wait for ever
            log.exception("the coordinator's thread failed")
        finally:
            self._shut()

    def _timeout_ms(self) -> int:
        soonest = min((request.deadline_s for request in self._requests.values()), default=None)
        wait_s = PING_EVERY_S if soonest is None else min(PING_EVERY_S, max(0.0, soonest - self._clock()))
        return int(wait_s * 1000) + 1

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(4096)
        while self._commands:
            self._commands.popleft()()

    def _receive_all(self, index: int, link: _Link) -> None:
        while link.lost is None:
            try:
                frames = link.socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            try:
                self._received(index, link, decode(joined([frame.buffer for frame in frames])))
            except RemoteProtocolError as error:
                self._lose(index, WorkerLost(f"worker {link.address} sent nonsense: {error}", worker=str(link.address)))

    def _received(self, index: int, link: _Link, message: Message) -> None:
        match message:
            case Piece():
                link.received_bytes += len(message.payload)
                self._piece(message)
            case Pong() if not any(Pong in answers for answers, _ in link.asked):
                pass
            case Failed(request=number) if number is not None:
                request = self._requests.get((message.session, message.epoch, number))
                if request is not None:
                    where = f" at layer {message.layer}" if message.layer else ""
                    error = WorkerLost(
                        f"worker {link.address} failed{where}: {message.text}", worker=str(link.address), request=number
                    )
                    self._end(request, None, error)
            case _:
                self._answer(link, message)

    def _answer(self, link: _Link, message: Message) -> None:
        """Give an answer to the oldest question that it answers; a refusal ends every conversation over the link."""
        if isinstance(message, (Failed, Refused)):
            text = message.reason if isinstance(message, Refused) else message.text
            refused = WorkerLost(f"worker {link.address} refused: {text}", worker=str(link.address))
            for _, future in link.asked:
                future.set_exception(refused)
            link.asked.clear()
            return
        for position, (answers, future) in enumerate(link.asked):
            if isinstance(message, answers):
                del link.asked[position]
                future.set_result(message)
                return
        log.info("worker %s said %s unasked", link.address, type(message).__name__)

    def _send(self, link: _Link, message: Message) -> None:
        if link.lost is not None:
            return
        header, *payload = encode(message)
        self._pace.settle()
        try:
            link.socket.send(header, zmq.NOBLOCK | (zmq.SNDMORE if payload else 0))
            if payload:
                send_payload(link.socket, payload[0], zmq.NOBLOCK)
                link.sent_bytes += len(payload[0])
        except zmq.Again:
            self._refused_message(self._links.index(link), link)

    def _refused_message(self, index: int, link: _Link) -> None:
        """The socket takes no message: it is full, or libzmq gave the connection up. It says why before it does so,
        so its word comes first; else whose key was refused would depend on which of the two is looked at first.
        """
        self._monitor(index, link)
        text = f"worker {link.address} takes no more messages"
        if link.address.public_key is None:  # how an open greeting ends at a worker with keys is not always said
            text += f"; if it wants keys, {_keys_wanted(link.address)}"
        self._lose(index, WorkerLost(text, worker=str(link.address)))

    # --- pieces on this machine ------------------------------------------------------------------------------------

    @staticmethod
    def _use_halo(link: _Link, address: str) -> None:
        try:
            link.halo = HaloLink(address)
        except OSError as error:
            log.info("no Unix socket to worker %s (%s): its pieces take TCP", link.address, error)

    def _take_halos(self) -> None:
        if self._halos is None:
            return
        peer = self._halos.accept()
        if peer is not None:
            self._poller.register(peer, zmq.POLLIN)
        for peer in list(self._halos.peers):
            while frames := halo_links.receive(peer):
                self._received_halo(frames)
            if frames is None:
                self._poller.unregister(peer)
                self._halos.forget(peer)

    def _received_halo(self, frames: list[memoryview]) -> None:
        """A worker's own process sent it, or another of this user's; it can be a piece and nothing else."""
        try:
            message = decode(frames)
        except RemoteProtocolError as error:
            log.warning("dropped a packet: %s", error)
            return
        if isinstance(message, Piece):
            request = self._requests.get((message.session, message.epoch, message.request))
            if request is not None and 0 <= message.source < len(request.links):
                self._links[request.links[message.source]].received_bytes += len(message.payload)
                self._piece(message)

    # --- requests ----------------------------------------------------------------------------------------------------

    def _begin(self, request: Request) -> None:
        lost = next((e for link in request.links if (e := self._links[link].lost) is not None), None)
        if lost is not None:
            request.done(None, lost)
            return
        self._requests[request.session, request.epoch, request.number] = request
        self._advance(request)

    def _piece(self, piece: Piece) -> None:
        request = self._requests.get((piece.session, piece.epoch, piece.request))
        if request is None:
            return  # late: its request has ended
        tensor = from_wire(piece.payload, piece.dtype, piece.shape, piece.layout, own=True)
        named = ProgramPiece(piece.tensor, piece.dim, Interval(piece.start, piece.stop))
        request.run.deliver(named, piece.source, tensor)
        self._advance(request)

    def _advance(self, request: Request) -> None:
        try:
            if not request.run.advance(lambda piece, tensor, target: self._send_piece(request, piece, tensor, target)):
                return
            outputs = {name: request.run.output(name) for name in request.outputs}
        except Exception as error:  # whatever an operator of the user's model raises belongs to the request
            self._end(request, None, WorkerLost(f"the coordinator failed at {request.run.current_layer}: {error}"))
            return
        self._end(request, outputs, None)

    def _send_piece(self, request: Request, piece: ProgramPiece, tensor: Tensor, target: int) -> None:
        payload, dtype, shape, layout = to_wire(tensor)
        message = Piece(
            session=request.session,
            epoch=request.epoch,
            request=request.number,
            tensor=piece.tensor,
            dim=piece.dim,
            start=piece.interval.start,
            stop=piece.interval.stop,
            source=HOME,
            deadline_s=max(0.0, request.deadline_s - self._clock()),
            dtype=dtype,
            shape=shape,
            layout=layout,
            payload=payload,
        )
        self._pace.settle()
        link = self._links[request.links[target]]
        if link.halo is not None and link.lost is None and self._send_halo(link, link.halo, message):
            return
        self._send(link, message)

    @staticmethod
    def _send_halo(link: _Link, halo: HaloLink, message: Piece) -> bool:
        header, payload = encode(message)
        try:
            sent = halo.send(header, payload)
        except OSError:  # the worker has gone; its link will tell
            return False
        link.sent_bytes += len(payload) if sent else 0
        return sent

    def _end(self, request: Request, outputs: Mapping[str, Tensor] | None, error: EdgediError | None) -> None:
        if self._requests.pop((request.session, request.epoch, request.number), None) is None:
            return
        if error is not None:
            for index in request.links:
                abort = Abort(session=request.session, epoch=request.epoch, request=request.number)
                self._send(self._links[index], abort)
        self._pace.settle()
        request.done(outputs, error)
        if self._retiring:
            self._free_retired()

    def _retire(self, session: str, epoch: int, links: tuple[int, ...]) -> None:
        self._retiring[session, epoch] = links
        self._free_retired()

    def _free_retired(self) -> None:
        busy = {(request.session, request.epoch) for request in self._requests.values()}
        for session, epoch in [key for key in self._retiring if key not in busy]:
            for index in self._retiring.pop((session, epoch)):
                self._send(self._links[index], Close(session=session, epoch=epoch))

    # --- time and loss -----------------------------------------------------------------------------------------------

    def _keep_time(self) -> None:
        now_s = self._clock()
        for request in [r for r in self._requests.values() if r.deadline_s <= now_s]:
            waited_s = now_s - request.started_s
            waiting = request.run.current_layer
            error = DeadlineExceeded(
                f"request {request.number} did not finish in {waited_s:.1f} s (waiting for {waiting})",
                request=request.number,
                waited_s=waited_s,
            )
            self._end(request, None, error)
        for link in self._links:
            if link.lost is None and now_s - link.pinged_s >= PING_EVERY_S:
                link.pinged_s = now_s
                self._send(link, Ping(token=0))

    def _monitor(self, index: int, link: _Link) -> None:
        while True:
            try:
                event = parse_monitor_message(link.monitor.recv_multipart(zmq.NOBLOCK))["event"]
            except zmq.Again:
                return
            if event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
                link.shook_hands = True
                continue
            address = link.address
            closed = WorkerLost(f"worker {address} closed the connection", worker=str(address))
            error = closed if link.shook_hands else self._why_no_handshake(link, event)
            if error is not None:
                self._lose(index, error)
                return

    def _why_no_handshake(self, link: _Link, event: int) -> EdgediError | None:
        """libzmq says that the two sides did not come together; which keys they have says why. ``None``: not yet clear,
        as when the worker's end of the line came before its word.
        """
        address = link.address
        if address.public_key is None:
            keys = _keys_wanted(address)
            if event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
                return SecurityError(f"worker {address} wants keys: {keys}")
            link.broken_greetings += event == zmq.EVENT_DISCONNECTED
            if link.broken_greetings < MOST_GREETINGS:
                return None
            text = f"{address} breaks off the greeting: is that an edgedi-worker? If it wants keys, {keys}"
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

    def _lose(self, index: int, error: EdgediError) -> None:
        link = self._links[index]
        if link.lost is not None:
            return
        link.lost = error
        log.warning("%s", error)
        self._poller.unregister(link.socket)
        self._poller.unregister(link.monitor)
        link.socket.disable_monitor()
        link.socket.close(0)
        if link.halo is not None:
            link.halo.close()
        for _, future in link.asked:
            future.set_exception(error)
        link.asked.clear()
        for request in [r for r in self._requests.values() if index in r.links]:
            self._end(request, None, error)

    def _shut(self) -> None:
        closed = WorkerLost("the session was closed")
        with self._lock:
            self._closing = True
        for request in list(self._requests.values()):
            self._requests.pop((request.session, request.epoch, request.number), None)
            request.done(None, closed)
        for link in self._links:
            for _, future in link.asked:
                future.set_exception(closed)
            if link.lost is None:
                link.lost = closed
                link.socket.disable_monitor()
                link.socket.close(200)  # milliseconds for a last word
                if link.halo is not None:
                    link.halo.close()
        if self._halos is not None:
            self._halos.close()
        while self._commands:  # queued as the thread ended: each hears that its link is lost
            self._commands.popleft()()
        self._wake_in.close()
        self._wake_out.close()
        if self._owns_context:
            self._context.destroy(200)


def _keys_wanted(address: WorkerAddress) -> str:
    return f"give key=FILE, and {address}#<its public key>"
