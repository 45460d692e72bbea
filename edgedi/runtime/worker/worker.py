"""A worker process: one thread that polls its socket, asks the state machine what to do, and runs programs inline.

One thread and not two: a request's own instructions decide when it needs the network, libzmq's I/O thread moves bytes
meanwhile, and a second Python thread would only contend for the interpreter and, on a one-core device, for the core.
Requests run in the order in which they began; one that waits for a halo lets the next one go on.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import zmq

from edgedi.errors import EdgediError, ProtocolError, RemoteProtocolError
from edgedi.partition.plan.plan import HOME
from edgedi.partition.plan.program import Piece as ProgramPiece
from edgedi.partition.plan.program import participant_name
from edgedi.runtime.emulation.pace import clock_of, pace_of
from edgedi.runtime.execution.allocator import keep_freed_memory
from edgedi.runtime.execution.executor import ProgramRun, answer_alone
from edgedi.runtime.execution.loading import WorkerMemoryError
from edgedi.runtime.execution.pieces import message_of, piece_of, tensor_of
from edgedi.runtime.execution.tensors import Tensor, inference, set_up_torch
from edgedi.runtime.links import halo_links
from edgedi.runtime.links.peers import PeerLinks
from edgedi.runtime.version import software_version
from edgedi.runtime.wire.codec import WIRE_VERSION, decode, encode
from edgedi.runtime.wire.frames import joined
from edgedi.runtime.wire.messages import (
    Clock,
    Failed,
    Message,
    Piece,
    Ready,
    Refused,
    Statistics,
    Traced,
    Welcome,
)
from edgedi.runtime.worker import actions, events
from edgedi.runtime.worker import device as device_facts
from edgedi.runtime.worker.noting import Notebook
from edgedi.runtime.worker.options import WorkerOptions
from edgedi.runtime.worker.patience import Patience
from edgedi.runtime.worker.programs import Installed, WorkerPrograms
from edgedi.runtime.worker.sockets import WorkerSockets
from edgedi.runtime.worker.state import WorkerState

log = logging.getLogger("edgedi.worker")
_IDLE_POLL_MS = 1_000
MOST_AT_ONCE = 16
"""Messages after which a worker computes, however many more there are: who floods it must not keep others waiting."""


@dataclass(slots=True)
class _Request:
    run: ProgramRun
    installed: Installed
    deadline_s: float
    busy_s: float = 0.0


class Worker:
    """Serves until ``stop`` is called (from a signal handler or another thread)."""

    def __init__(
        self,
        options: WorkerOptions,
        clock: Callable[[], float] | None = None,
        *,
        context: zmq.Context[Any] | None = None,
        home_endpoint: str | None = None,
    ) -> None:
        """``context`` is its owner's and stays open; ``home_endpoint`` is a way in for that process alone (inproc)."""
        self._options, self._clock = options, clock or clock_of(options.speed)
        self._baseline_memory_bytes = device_facts.memory_bytes()
        """After the imports, before anything is served: ``import torch`` alone is half a gigabyte on some machines."""
        self._pace = self._charged = pace_of(options.speed)
        self._programs = WorkerPrograms(options, self._charge)
        self._state = WorkerState(self._programs.missing)
        self._requests: dict[events.Request, _Request] = {}
        self._computing = threading.Lock()
        """Held while anything is computed: kernels have memory of their own, and ``answer`` is another thread's."""
        self._notebook = Notebook(self._settled_clock)
        self._stopped = False
        self._owns_context = context is None
        self._context = zmq.Context() if context is None else context
        self._sockets = WorkerSockets(options, self._context, home_endpoint)
        self._patience = Patience()
        self._counts: dict[str, int | float] = {"requests": 0, "busy_s": 0.0, "sent_bytes": 0, "received_bytes": 0}
        self._perform: dict[type, Callable[[Any], None]] = {
            actions.Reply: lambda a: self._send(a.link, a.message),
            actions.Greet: self._greet,
            actions.Store: self._keep,
            actions.Expect: self._expect,
            actions.Install: self._install,
            actions.Uninstall: self._uninstall,
            actions.Deliver: self._deliver,
            actions.Forget: self._forget,
            actions.RunMeasure: self._measure,
            actions.TellStatistics: self._tell,
            actions.NoteRequest: self._note,
            actions.TellTraced: self._tell_traced,
        }

    # --- life ------------------------------------------------------------------------------------------------------

    def bind(self) -> int:
        """Listen; returns the port. ``EdgediError`` where that is not possible."""
        return self._sockets.bind()

    def serve(self) -> None:
        """Serve until stopped, or until a signal handler raises ``KeyboardInterrupt``; then everything is closed."""
        set_up_torch(self._options.threads, self._options.device)
        keep_freed_memory()
        self._pace.forget()
        try:
            with inference(), contextlib.suppress(KeyboardInterrupt):
                is_more = False
                while not self._stopped:
                    if not is_more and not self._spin():
                        self._pace.wait(self._sockets.poller.poll, _IDLE_POLL_MS)
                    self._sockets.accept_halos()
                    is_more = self._drain()
                    self._do(events.Tick(self._clock()))
        finally:
            self.close()

    def stop(self) -> None:
        """End ``serve`` after what it is doing."""
        self._stopped = True

    def answer(self, epoch: events.Epoch, inputs: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
        """The outputs of a program that needs no other worker, computed in the calling thread and without messages.

        ``None`` where the program is not here, or a request is being computed. An operator may raise anything.
        """
        installed = self._programs.get(epoch)
        if installed is None:
            return None
        is_mine = False
        try:  # around the lock as well: Ctrl-C may come at any time
            is_mine = self._computing.acquire(blocking=False)
            if not is_mine:
                return None
            started_s, pace = self._clock(), pace_of(self._options.speed)  # of the calling thread's processor time
            self._charged = pace
            with inference():
                outputs = answer_alone(installed.program, inputs)
            pace.settle()
            busy_s = self._clock() - started_s
            installed.count(busy_s)
            self._counts["requests"] += 1
            self._counts["busy_s"] += busy_s
            self._pace.late_s = max(self._pace.late_s, pace.late_s)
        finally:
            if is_mine:
                self._charged = self._pace
                self._computing.release()
        return outputs

    def close(self) -> None:
        """Close sockets and links."""
        self._programs.close()
        self._sockets.close()
        if self._owns_context:
            self._context.destroy(0)

    def _spin(self) -> bool:
        """Look for what running requests wait for, for as long as it may soon be there; whether something has come."""
        if not self._requests or not self._sockets.has_halos:
            return False
        stop_s = self._clock() + self._patience.spin_s
        while self._clock() < stop_s:
            if self._take_halos() or self._sockets.is_message_there():
                self._patience.came()
                return True
        self._patience.did_not_come()
        return False

    # --- events in, actions out ---------------------------------------------------------------------------------------

    def _drain(self) -> bool:
        """Take the messages that are there, then run what can run; again until neither gives anything.

        True where it stopped before that, as there were ``MOST_AT_ONCE`` messages: something ran after them all the
        same, and now it is the turn of what else a worker does.
        """
        left = MOST_AT_ONCE
        while not self._stopped:
            took = self._take_halos()
            received = self._sockets.receive()
            if received is not None:
                self._receive(*received)
                left -= 1
                if not left:
                    self._run_requests()
                    return True
            elif not took and not self._run_requests():
                return False
        return False

    def _take_halos(self) -> bool:
        return self._sockets.take_halos(self._receive_halo)

    def _receive_halo(self, piece: Piece) -> None:
        self._counts["received_bytes"] += len(piece.payload)
        self._do(events.Received(events.SAME_USER, piece, self._clock()))

    def _receive(self, link: bytes, frames: list[zmq.Frame]) -> None:
        try:
            message = decode(joined([frame.buffer for frame in frames]))
        except RemoteProtocolError as error:
            log.warning("refused a message: %s", error)
            self._send(link, Refused(reason=str(error)[:500]))
            return
        if isinstance(message, Piece):
            self._counts["received_bytes"] += len(message.payload)
        key, only_peer = self._sockets.sender(frames[-1])
        self._do(events.Received(link, message, self._clock(), key, only_peer))

    def _do(self, event: events.Event) -> None:
        for action in self._state.handle(event):
            try:
                self._perform[type(action)](action)
            except Exception:  # a bug of ours that one session met must not end the others
                log.exception("%s failed", type(action).__name__)

    def _send(self, link: bytes, message: Message) -> None:
        frames = encode(message)
        with self._pace.sending(sum(map(len, frames))):
            self._sockets.send(link, frames)

    # --- actions -----------------------------------------------------------------------------------------------------

    def _greet(self, action: actions.Greet) -> None:
        options = self._options
        welcome = Welcome(
            wire_version=WIRE_VERSION,
            software_version=software_version(),
            name=options.name,
            device=options.device,
            threads=options.threads,
            memory_limit_bytes=options.memory_limit_bytes,
            machine=halo_links.machine_name(),
            halo_address=self._sockets.halo_address,
            fingerprint=device_facts.fingerprint(
                options.device,
                options.threads,
                self._programs.engine_name,
                options.speed.slowdown,
                options.memory_limit_bytes,
                warm=options.speed.counts_warm,
            ),
        )
        self._send(action.link, welcome)

    def _keep(self, action: actions.Store) -> None:
        weights = action.weights
        try:
            self._programs.keep(weights)
        except (ValueError, RuntimeError) as error:  # other content than named; no room on the device
            self._send(action.link, Refused(reason=str(error)))
            return
        self._pace.forget()
        self._do(events.Stored(weights.digest))

    def _expect(self, action: actions.Expect) -> None:
        """Pin what is here of a program's weights, and let the session's other workers in: the coordinator vouches."""
        deploy = action.deploy
        self._programs.expect(deploy)
        keys = [peer["public_key"] for peer in deploy.peers if peer["public_key"] is not None]
        self._sockets.admit(deploy.session, keys)

    def _install(self, action: actions.Install) -> None:
        deploy, started_s = action.deploy, self._clock()
        session, epoch = deploy.session, deploy.epoch
        try:
            with self._computing:  # engines are timed
                weight_bytes = self._programs.install(deploy)
        except EdgediError as error:
            layer = error.layer if isinstance(error, WorkerMemoryError) else None
            kind = "memory" if isinstance(error, WorkerMemoryError) else "program"
            text = str(error)[:2000]
            self._send(
                action.link, Failed(session=session, epoch=epoch, request=None, error=kind, text=text, layer=layer)
            )
            self._do(events.InstallFailed((session, epoch)))
            return
        self._pace.forget()
        seconds = self._clock() - started_s
        self._send(action.link, Ready(session=session, epoch=epoch, seconds=seconds, weight_bytes=weight_bytes))
        self._do(events.Installed((session, epoch)))

    def _uninstall(self, action: actions.Uninstall) -> None:
        self._programs.uninstall(action.epoch)
        self._notebook.forget(action.epoch)
        session = action.epoch[0]
        if session not in self._state.sessions:
            self._sockets.dismiss(session)

    def _forget(self, action: actions.Forget) -> None:
        self._requests.pop(action.request, None)

    def _deliver(self, action: actions.Deliver) -> None:
        piece, key = action.piece, action.request
        request = self._requests.get(key)
        if request is None:
            installed = self._programs[key[0], key[1]]
            request = _Request(self._notebook.run(key, installed.program), installed, self._clock() + piece.deadline_s)
            self._requests[key] = request
        named = piece_of(piece)
        expected = request.installed.expected.get((named, piece.source))
        if expected != (piece.shape, piece.dtype):
            given = f"{piece.dtype}{list(piece.shape)}"
            error = RemoteProtocolError(f"{named} of participant {piece.source} came as {given}, not as {expected}")
            self._fail(key, request, error)
            self._end(key)
            return
        request.run.deliver(named, piece.source, tensor_of(piece, own=False).to(self._options.device))
        self._pace.heard(len(piece.payload), passed=piece.source != HOME or not self._sockets.is_home_inside)

    def _charge(self, cpu_s: float) -> None:
        self._charged.computed(cpu_s)

    def _drop_between(self) -> None:
        """What is done between two instructions counts with the second, where they count as rehearsed."""
        if self._options.speed.counts_warm:
            self._pace.computed(0.0)

    def _settled_clock(self) -> float:
        """What an emulated device's clock shows once it is ready with what it did."""
        self._drop_between()
        self._pace.settle()
        return self._clock()

    def _measure(self, action: actions.RunMeasure) -> None:
        try:
            with self._computing:
                measured = self._programs.measure(action.message, self._pace.stopwatch)
        except Exception as error:  # whatever an operator raises over a description of a stranger's
            self._send(action.link, Refused(reason=f"measuring failed: {type(error).__name__}: {error}"[:500]))
            return
        self._pace.forget()
        self._send(action.link, measured)

    def _tell(self, action: actions.TellStatistics) -> None:
        late_s, self._pace.late_s = self._pace.late_s, 0.0  # told once: whoever asks often knows when it was late
        values = {
            **self._counts,
            **self._programs.statistics(action.session),
            "dropped_pieces": self._state.num_dropped,
            "peak_memory_bytes": device_facts.peak_memory_bytes(),
            "baseline_memory_bytes": self._baseline_memory_bytes,
            "late_s": late_s,
        }
        self._send(action.link, Statistics(session=action.session, values=values))

    def _note(self, action: actions.NoteRequest) -> None:
        self._notebook.begin(action.request)
        self._send(action.link, Clock(now_s=self._clock()))

    def _tell_traced(self, action: actions.TellTraced) -> None:
        session, epoch, number = action.request
        notes = self._notebook.take(session)
        self._send(action.link, Traced(session=session, epoch=epoch, request=number, notes=tuple(notes)))

    # --- running ------------------------------------------------------------------------------------------------------

    def _run_requests(self) -> bool:
        """Give every request a turn, oldest first, until one moves; whether any did."""
        for key, request in list(self._requests.items()):
            if not request.run.can_advance:
                if self._clock() > request.deadline_s:
                    self._end(key)
                continue
            self._advance(key, request)
            return True
        return False

    def _advance(self, key: events.Request, request: _Request) -> None:
        with self._computing:
            done = self._run(key, request)
        if done:
            self._end(key)

    def _run(self, key: events.Request, request: _Request) -> bool:
        """As far as it goes; whether the request is over."""
        started_s = self._clock()
        try:
            self._connect_peers(request.installed)
            done = request.run.advance(
                lambda piece, tensor, target: self._send_piece(key, request, piece, tensor, target)
            )
        except Exception as error:  # of an operator, a link or a peer: it belongs to this request
            self._fail(key, request, error)
            done = True
        self._drop_between()
        self._pace.settle()
        busy_s = self._clock() - started_s
        self._counts["busy_s"] += busy_s
        request.busy_s += busy_s
        if done:
            self._counts["requests"] += 1
            request.installed.count(request.busy_s)
        return done

    def _connect_peers(self, installed: Installed) -> None:
        if installed.links is None:
            deploy, options = installed.deploy, self._options
            installed.links = PeerLinks(
                self._context, deploy.peers, options.keypair, deploy.home_halo_address, proxy=options.proxy
            )

    def _end(self, key: events.Request) -> None:
        self._requests.pop(key, None)
        self._do(events.Ended(key))

    def _fail(self, key: events.Request, request: _Request, error: Exception) -> None:
        log.warning("request %d of session %s failed at %s: %s", key[2], key[0], request.run.current_layer, error)
        owner = self._state.owner(key[0])
        if owner is not None:
            kind = "memory" if "alloc" in str(error).lower() else "request"
            text = f"{type(error).__name__}: {error}"[:2000]
            self._send(owner, Failed(
                session=key[0], epoch=key[1], request=key[2], error=kind, text=text, layer=request.run.current_layer
            ))  # fmt: skip

    def _send_piece(
        self, key: events.Request, request: _Request, piece: ProgramPiece, tensor: Tensor, target: int
    ) -> None:
        left_s = request.deadline_s - self._clock()
        self._drop_between()
        with self._pace.sending(tensor.nbytes):
            message = message_of(key, piece, tensor, source=request.installed.deploy.participant, deadline_s=left_s)
            self._counts["sent_bytes"] += len(message.payload)
            self._send_message(key, request, message, target)

    def _send_message(self, key: events.Request, request: _Request, message: Piece, target: int) -> None:
        links = request.installed.links
        assert links is not None, "connected before the run"
        if target == HOME:
            if links.send_home(message):
                return
            owner = self._state.owner(key[0])
            if owner is not None:
                self._sockets.send(owner, encode(message))
            return
        try:
            links.send(target, message)
        except zmq.ZMQError as error:
            named = piece_of(message)
            raise ProtocolError(f"worker {participant_name(target)} does not take {named}: {error}") from error
