"""The coordinator's side of the wire: one background thread that owns every socket, and the requests in flight.

Callers hand it commands through a queue and hold futures; nothing else touches a socket. A link that is lost ends every
request over it at once.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout  # the builtin one only from Python 3.11 on
from dataclasses import dataclass
from typing import Any

import zmq

from edgedi.errors import DeadlineExceeded, EdgediError, RemoteProtocolError, WorkerLost
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Piece as ProgramPiece
from edgedi.runtime.coordinator.worker_link import WorkerLink
from edgedi.runtime.emulation.here import Emulation, emulation_here
from edgedi.runtime.emulation.pace import Pace, clock_of, pace_of
from edgedi.runtime.execution.executor import LoadedProgram, ProgramRun
from edgedi.runtime.execution.pieces import message_of, piece_of, tensor_of
from edgedi.runtime.execution.tensors import Tensor, inference
from edgedi.runtime.links import halo_links
from edgedi.runtime.links.halo_inbox import HaloInbox
from edgedi.runtime.links.keys import KeyPair, WorkerAddress
from edgedi.runtime.wire.codec import decode, encode
from edgedi.runtime.wire.frames import joined
from edgedi.runtime.wire.messages import Abort, Close, Failed, Message, Piece, Ping, Pong
from edgedi.runtime.wire.payloads import Buffer
from edgedi.runtime.worker.local_share import LocalShare

log = logging.getLogger("edgedi.coordinator")
PING_EVERY_S = 5.0
"""So that workers know that the session lives (they close it after a minute of silence)."""


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
    except FutureTimeout:
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
        clock: Callable[[], float] | None = None,
        pace: Pace | None = None,
    ) -> None:
        """With ``share`` worker 0 is in this process and is reached within it."""
        self.speed = emulation_here().speed
        """Of the device that this process is."""
        self.clock = clock or clock_of(self.speed)
        """By which deadlines are, and requests are timed."""
        self._pace = pace_of(self.speed) if pace is None else pace
        self._context = zmq.Context() if share is None else share.context
        self._owns_context = share is None
        self._poller = zmq.Poller()
        try:
            inside = {0: share.endpoint} if share is not None else {}
            self._links = [self._connect(a, keypair, inside.get(index)) for index, a in enumerate(addresses)]
        except BaseException:
            self._context.destroy(0)
            raise
        self._commands: deque[Callable[[], None]] = deque()
        self._requests: dict[tuple[str, int, int], Request] = {}
        emulated = emulation_here() != Emulation()  # no short ways: links are what is emulated
        self._halos = HaloInbox(self._poller, log) if halo_links.supported() and not emulated else None
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

    def _connect(self, address: WorkerAddress, keypair: KeyPair | None, inside: str | None) -> WorkerLink:
        link = WorkerLink(self._context, address, keypair, inside=inside, now_s=self.clock())
        self._poller.register(link.socket, zmq.POLLIN)
        self._poller.register(link.monitor, zmq.POLLIN)
        return link

    # --- for callers, from any thread --------------------------------------------------------------------------------

    def tell(self, worker: int, message: Message) -> None:
        """Send without expecting an answer."""
        self._call(lambda: self._send(self._links[worker], message))

    def waiting_s(self, seconds: float) -> float:
        """How long this machine waits where its workers may take so many seconds of theirs."""
        return self.speed.dilation * seconds

    def ask(self, worker: int, message: Message | None, *answers: type) -> Future[Any]:
        """Send ``message`` (or nothing) and wait for the next message of a kind in ``answers``."""
        future: Future[Any] = Future()

        def start() -> None:
            link = self._links[worker]
            if link.lost is not None:
                future.set_exception(link.lost)
                return
            link.ask(answers, future)
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
        self._call(lambda: self._links[worker].use_halo(address))

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
                    # Looking in vain is an exception each time, in code that is no longer in the cache.
                    if self._wake_out.fileno() in ready:
                        self._take_commands()
                    if self._halos is not None:
                        self._halos.serve(ready, self._received_halo)
                    for index, link in enumerate(self._links):
                        if link.lost is None and link.socket in ready:
                            self._receive_all(index, link)
                        if link.lost is None and link.monitor in ready:
                            self._lose_if_broken(index, link)
                    self._keep_time()
        except Exception:  # a thread must not die in silence: whoever waits would wait for ever
            log.exception("the coordinator's thread failed")
        finally:
            self._shut()

    def _timeout_ms(self) -> int:
        soonest = min((request.deadline_s for request in self._requests.values()), default=None)
        wait_s = PING_EVERY_S if soonest is None else min(PING_EVERY_S, max(0.0, soonest - self.clock()))
        return int(wait_s * 1000) + 1

    def _take_commands(self) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wake_out.recv(4096)
        while self._commands:
            self._commands.popleft()()

    def _receive_all(self, index: int, link: WorkerLink) -> None:
        while link.lost is None and (frames := link.receive()) is not None:
            try:
                self._received(link, decode(joined([frame.buffer for frame in frames])))
            except RemoteProtocolError as error:
                self._lose(index, WorkerLost(f"worker {link.address} sent nonsense: {error}", worker=str(link.address)))

    def _received(self, link: WorkerLink, message: Message) -> None:
        match message:
            case Piece():
                link.received_bytes += len(message.payload)
                self._piece(message)
            case Pong() if not link.awaits(Pong):
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
                link.answer(message)

    def _send(self, link: WorkerLink, message: Message) -> None:
        if link.lost is not None:
            return
        frames = encode(message)
        with self._pace.sending(sum(map(len, frames))):
            self._hand_over(link, frames)

    def _hand_over(self, link: WorkerLink, frames: Sequence[Buffer]) -> None:
        if link.lost is None and not link.send(frames):
            self._lose(self._links.index(link), link.why_full())

    def _received_halo(self, piece: Piece) -> None:
        request = self._requests.get((piece.session, piece.epoch, piece.request))
        if request is not None and 0 <= piece.source < len(request.links):
            self._links[request.links[piece.source]].received_bytes += len(piece.payload)
            self._piece(piece)

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
        request.run.deliver(piece_of(piece), piece.source, tensor_of(piece, own=True))
        sent_from = request.links[piece.source : piece.source + 1]  # none, where it names a participant that is none
        self._pace.heard(len(piece.payload), passed=not any(self._links[link].is_inside for link in sent_from))
        self._advance(request)

    def _advance(self, request: Request) -> None:
        try:
            ended = request.run.advance(lambda piece, tensor, target: self._send_piece(request, piece, tensor, target))
            self._pace.settle()
            if not ended:
                return
            outputs = {name: request.run.output(name) for name in request.outputs}
        except Exception as error:  # whatever an operator of the user's model raises belongs to the request
            self._end(request, None, WorkerLost(f"the coordinator failed at {request.run.current_layer}: {error}"))
            return
        self._end(request, outputs, None)

    def _send_piece(self, request: Request, piece: ProgramPiece, tensor: Tensor, target: int) -> None:
        key, left_s = (request.session, request.epoch, request.number), request.deadline_s - self.clock()
        link = self._links[request.links[target]]
        with self._pace.sending(tensor.nbytes):
            message = message_of(key, piece, tensor, source=HOME, deadline_s=left_s)
            if not link.send_halo(message):
                self._hand_over(link, encode(message))

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
        now_s = self.clock()
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

    def _lose_if_broken(self, index: int, link: WorkerLink) -> None:
        error = link.why_broken()
        if error is not None:
            self._lose(index, error)

    def _lose(self, index: int, error: EdgediError) -> None:
        link = self._links[index]
        if link.lost is not None:
            return
        log.warning("%s", error)
        self._poller.unregister(link.socket)
        self._poller.unregister(link.monitor)
        link.lose(error)
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
            if link.lost is None:
                link.lose(closed, linger_ms=200)  # for a last word
        if self._halos is not None:
            self._halos.close()
        while self._commands:  # queued as the thread ended: each hears that its link is lost
            self._commands.popleft()()
        self._wake_in.close()
        self._wake_out.close()
        if self._owns_context:
            self._context.destroy(200)
