"""A worker process: one thread that polls its socket, asks the state machine what to do, and runs programs inline.

One thread and not two: a request's own instructions decide when it needs the network, libzmq's I/O thread moves bytes
meanwhile, and a second Python thread would only contend for the interpreter and, on a one-core device, for the core.
Requests run in the order in which they began; one that waits for a halo lets the next one go on.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import zmq

from edgedi.errors import EdgediError, ProtocolError, RemoteProtocolError, SecurityError
from edgedi.partition.geometry import Interval
from edgedi.partition.plan import HOME
from edgedi.partition.program import Piece as ProgramPiece
from edgedi.partition.program import participant_name
from edgedi.runtime import device as device_facts
from edgedi.runtime import halo_links
from edgedi.runtime import worker_actions as actions
from edgedi.runtime import worker_events as events
from edgedi.runtime.allocator import keep_freed_memory, release_freed_memory
from edgedi.runtime.executor import LoadedProgram, ProgramRun
from edgedi.runtime.frames import joined
from edgedi.runtime.groups import EngineGroups
from edgedi.runtime.halo_links import HaloListener
from edgedi.runtime.kernels import fused, openvino_graph
from edgedi.runtime.keys import KeyPair, parse_worker_address
from edgedi.runtime.loading import Expected, WorkerMemoryError, expected_pieces, load
from edgedi.runtime.measure import measure_described
from edgedi.runtime.messages import (
    Clock,
    Deploy,
    Failed,
    Measured,
    Message,
    Piece,
    Ready,
    Refused,
    Statistics,
    Traced,
    Welcome,
    busy_s_of,
    requests_of,
)
from edgedi.runtime.noting import Note, NotedRun
from edgedi.runtime.pace import pace_of
from edgedi.runtime.patience import Patience
from edgedi.runtime.peers import PeerLinks, send_payload
from edgedi.runtime.security import (
    Authenticator,
    apply_curve_server,
    apply_socket_options,
    peer_key,
    zmq_errors,
)
from edgedi.runtime.speed import Speed
from edgedi.runtime.tensors import Tensor, from_wire, inference, set_up_torch, to_wire
from edgedi.runtime.version import software_version
from edgedi.runtime.weights import WeightStore
from edgedi.runtime.wire import WIRE_VERSION, decode, encode
from edgedi.runtime.worker_state import WorkerState

log = logging.getLogger("edgedi.worker")
_IDLE_POLL_MS = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker is started with. ``authorized`` are the public keys of coordinators that may use it.

    ``engine`` is ``auto``, which lets OpenVINO, where it is installed, compute the chains of layers that it is faster
    at, or ``torch``.
    ``speed`` and ``proxy`` (``host:port`` of a SOCKS proxy, the only way to its peers) are for emulated devices.
    """

    host: str = "127.0.0.1"
    port: int = 0
    name: str = "worker"
    threads: int = 1
    device: str = "cpu"
    engine: str = "auto"
    memory_limit_bytes: int | None = None
    keypair: KeyPair | None = None
    authorized: tuple[str, ...] = ()
    speed: Speed = Speed()  # noqa: RUF009  # it is frozen
    proxy: str | None = None


@dataclass(slots=True)
class _Installed:
    deploy: Deploy
    program: LoadedProgram
    expected: Expected
    requests: int = 0
    busy_s: float = 0.0
    """Spent on the requests counted in ``requests``: computing and sending, not waiting."""
    links: PeerLinks | None = None
    """Made by the first request: only then have all workers of the session let each other in."""


@dataclass(slots=True)
class _Request:
    run: ProgramRun
    installed: _Installed
    deadline_s: float
    busy_s: float = 0.0


class Worker:
    """Serves until ``stop`` is called (from a signal handler or another thread)."""

    def __init__(
        self,
        options: WorkerOptions,
        clock: Callable[[], float] = time.monotonic,
        *,
        context: zmq.Context[Any] | None = None,
        home_endpoint: str | None = None,
    ) -> None:
        """``context`` is its owner's and stays open; ``home_endpoint`` is a way in for that process alone (inproc)."""
        self._options, self._clock = options, clock
        self._home_endpoint = home_endpoint
        self._baseline_memory_bytes = device_facts.memory_bytes()
        """After the imports, before anything is served: ``import torch`` alone is half a gigabyte on some machines."""
        self._pace = pace_of(options.speed)
        self._pinned: dict[events.Epoch, tuple[str, ...]] = {}
        self._packer = fused.Packer() if fused.available() and options.device == "cpu" else None
        self._store = WeightStore(options.memory_limit_bytes, device=options.device, packer=self._packer)
        self._state = WorkerState(self._store.missing)
        self._epochs: dict[events.Epoch, _Installed] = {}
        self._engines: dict[events.Epoch, str] = {}
        self._requests: dict[events.Request, _Request] = {}
        self._notes: dict[str, tuple[events.Request, list[Note]]] = {}
        """The traced request of each session that has one."""
        self._stopped = False
        self._owns_context = context is None
        self._context = zmq.Context() if context is None else context
        self._authenticator: Authenticator | None = None
        self._socket = self._context.socket(zmq.ROUTER)
        emulated = options.speed.is_emulated or options.proxy is not None  # no short ways, and no looking for halos
        self._halos = HaloListener() if halo_links.supported() and not emulated else None
        self._poller = zmq.Poller()
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

    def serve(self) -> None:
        """Serve until stopped, or until a signal handler raises ``KeyboardInterrupt``; then everything is closed."""
        set_up_torch(self._options.threads, self._options.device)
        keep_freed_memory()
        self._pace.forget()
        self._poller.register(self._socket, zmq.POLLIN)
        if self._halos is not None:
            self._poller.register(self._halos.listener, zmq.POLLIN)
        try:
            with inference(), contextlib.suppress(KeyboardInterrupt):
                while not self._stopped:
                    if not self._spin():
                        self._pace.wait(self._poller.poll, _IDLE_POLL_MS)
                    self._accept_peers()
                    self._drain()
                    self._do(events.Tick(self._clock()))
        finally:
            self.close()

    def stop(self) -> None:
        """End ``serve`` after what it is doing."""
        self._stopped = True

    def close(self) -> None:
        """Close sockets and links."""
        for installed in self._epochs.values():
            if installed.links is not None:
                installed.links.close()
        self._epochs.clear()
        self._socket.close(0)
        if self._halos is not None:
            self._halos.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        if self._owns_context:
            self._context.destroy(0)

    def _spin(self) -> bool:
        """Look for what running requests wait for, for as long as it may soon be there; whether something has come."""
        if not self._requests or self._halos is None:
            return False
        stop_s = self._clock() + self._patience.spin_s
        while self._clock() < stop_s:
            if self._take_halos() or self._socket.poll(0):
                self._patience.came()
                return True
        self._patience.did_not_come()
        return False

    # --- events in, actions out ---------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Take every message that is there, then run what can run; again until neither gives anything."""
        while not self._stopped:
            took = self._take_halos()
            try:
                link, *frames = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                if not took and not self._run_requests():
                    return
                continue
            self._receive(link.bytes, frames)

    def _accept_peers(self) -> None:
        if self._halos is not None:
            peer = self._halos.accept()
            if peer is not None:
                self._poller.register(peer, zmq.POLLIN)

    def _take_halos(self) -> bool:
        """Take the packets that peers on this machine have sent; whether there were any."""
        if self._halos is None:
            return False
        took = False
        for peer in list(self._halos.peers):
            frames = halo_links.receive(peer)
            while frames:
                took = True
                self._receive_halo(peer, frames)
                frames = halo_links.receive(peer)
            if frames is None:
                self._poller.unregister(peer)
                self._halos.forget(peer)
        return took

    def _receive_halo(self, peer: socket.socket, frames: list[memoryview]) -> None:
        try:
            message = decode(frames)
        except RemoteProtocolError as error:
            log.warning("dropped a packet: %s", error)
            return
        if isinstance(message, Piece):  # a halo link carries nothing else
            self._counts["received_bytes"] += len(message.payload)
            self._do(events.Received(b"", message, self._clock()))

    def _receive(self, link: bytes, frames: list[zmq.Frame]) -> None:
        try:
            message = decode(joined([frame.buffer for frame in frames]))
        except RemoteProtocolError as error:
            log.warning("refused a message: %s", error)
            self._send(link, Refused(reason=str(error)[:500]))
            return
        if isinstance(message, Piece):
            self._counts["received_bytes"] += len(message.payload)
        key, only_peer = None, False
        if self._authenticator is not None:
            key = peer_key(frames[-1])
            # Links from outside all prove a key here; one without is this process's own, if it has a way in.
            from_home = key is None and self._home_endpoint is not None
            only_peer = not from_home and (key is None or not self._authenticator.is_client(key))
        self._do(events.Received(link, message, self._clock(), key, only_peer))

    def _do(self, event: events.Event) -> None:
        for action in self._state.handle(event):
            try:
                self._perform[type(action)](action)
            except Exception:  # a bug of ours that one session met must not end the others
                log.exception("%s failed", type(action).__name__)

    def _send(self, link: bytes, message: Message) -> None:
        header, *payload = encode(message)
        self._pace.settle()
        try:
            self._socket.send(link, zmq.SNDMORE | zmq.NOBLOCK)  # whoever does not read must not keep the others waiting
            self._socket.send(header, zmq.SNDMORE if payload else 0)
            if payload:
                send_payload(self._socket, payload[0])
        except zmq.ZMQError as error:  # whoever asked is gone, or has left a thousand answers unread
            log.info("could not answer: %s", error)

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
            halo_address=self._halos.address if self._halos is not None else None,
            fingerprint=device_facts.fingerprint(
                options.device, options.threads, self._engine_name(), options.speed.slowdown
            ),
        )
        self._send(action.link, welcome)

    def _keep(self, action: actions.Store) -> None:
        weights = action.weights
        tensor = from_wire(weights.payload, weights.dtype, weights.shape, _layout(weights.shape), own=True)
        try:
            self._store.add(weights.digest, tensor)
        except (ValueError, RuntimeError) as error:  # other content than named; no room on the device
            self._send(action.link, Refused(reason=str(error)))
            return
        self._pace.forget()
        self._do(events.Stored(weights.digest))

    def _expect(self, action: actions.Expect) -> None:
        """Pin what is here of a program's weights, and let the session's other workers in: the coordinator vouches."""
        deploy = action.deploy
        digests = tuple(weight["digest"] for weight in deploy.weights)
        self._pinned[deploy.session, deploy.epoch] = digests
        self._store.use(digests)
        if self._authenticator is not None:
            keys = [peer["public_key"] for peer in deploy.peers if peer["public_key"] is not None]
            self._authenticator.admit(deploy.session, keys)

    def _install(self, action: actions.Install) -> None:
        deploy, started_s = action.deploy, self._clock()
        epoch = (deploy.session, deploy.epoch)
        groups = self._groups()
        try:
            self._check_peers(deploy)
            program = load(
                deploy.program, deploy.layers, self._store, self._packer,
                limit_bytes=self._options.memory_limit_bytes, device=self._options.device, regroup=groups,
            )  # fmt: skip
        except EdgediError as error:
            self._store.settle(())
            layer = error.layer if isinstance(error, WorkerMemoryError) else None
            kind = "memory" if isinstance(error, WorkerMemoryError) else "program"
            text = str(error)[:2000]
            failed = Failed(
                session=deploy.session, epoch=deploy.epoch, request=None, error=kind, text=text, layer=layer
            )  # fmt: skip
            self._send(action.link, failed)
            self._do(events.InstallFailed(epoch))
            return
        self._epochs[epoch] = _Installed(deploy, program, expected_pieces(program.program, program.graph))
        self._engines[epoch] = str(groups) if groups is not None else "torch"
        self._store.settle(self._pinned[epoch])
        self._store.trim()
        release_freed_memory()
        self._pace.forget()
        seconds, weight_bytes = self._clock() - started_s, self._store.bytes_of(self._pinned[epoch])
        self._send(
            action.link,
            Ready(session=deploy.session, epoch=deploy.epoch, seconds=seconds, weight_bytes=weight_bytes),
        )
        self._do(events.Installed(epoch))

    def _engine_name(self) -> str:
        return "torch" if self._groups() is None else f"torch-{openvino_graph.version()}"

    def _groups(self) -> EngineGroups | None:
        """Chains of layers for an engine: it holds weights a second time, so not where memory is limited."""
        options = self._options
        if options.engine != "auto" or options.device != "cpu" or options.memory_limit_bytes is not None:
            return None
        if options.speed.is_emulated:  # an engine computes in threads whose processor time a pace does not see
            return None
        return EngineGroups(options.threads) if openvino_graph.available() else None

    def _check_peers(self, deploy: Deploy) -> None:
        """Links between workers are as this worker's own: all with keys, or all open."""
        for peer in deploy.peers:
            try:
                parse_worker_address(peer["address"])
            except ValueError as error:
                raise RemoteProtocolError(f"a peer has no address: {error}") from error
            if peer["public_key"] is not None and self._options.keypair is None:
                raise SecurityError("the session's links need keys, and this worker has none: start it with --key")
            if peer["public_key"] is None and self._options.keypair is not None:
                raise SecurityError(f"no public key is given for peer {peer['address']}, and this worker wants one")

    def _uninstall(self, action: actions.Uninstall) -> None:
        installed = self._epochs.pop(action.epoch, None)
        self._engines.pop(action.epoch, None)
        if installed is not None and installed.links is not None:
            installed.links.close()
        self._store.release(self._pinned.pop(action.epoch, ()))
        session = action.epoch[0]
        if session in self._notes and self._notes[session][0][:2] == action.epoch:
            del self._notes[session]
        if self._authenticator is not None and session not in self._state.sessions:
            self._authenticator.dismiss(session)

    def _forget(self, action: actions.Forget) -> None:
        self._requests.pop(action.request, None)

    def _deliver(self, action: actions.Deliver) -> None:
        piece, key = action.piece, action.request
        request = self._requests.get(key)
        if request is None:
            installed = self._epochs[key[0], key[1]]
            request = _Request(self._new_run(key, installed.program), installed, self._clock() + piece.deadline_s)
            self._requests[key] = request
        named = ProgramPiece(piece.tensor, piece.dim, Interval(piece.start, piece.stop))
        expected = request.installed.expected.get((named, piece.source))
        if expected != (piece.shape, piece.dtype):
            given = f"{piece.dtype}{list(piece.shape)}"
            error = RemoteProtocolError(f"{named} of participant {piece.source} came as {given}, not as {expected}")
            self._fail(key, request, error)
            self._end(key)
            return
        tensor = from_wire(piece.payload, piece.dtype, piece.shape, piece.layout, own=False)
        request.run.deliver(named, piece.source, tensor.to(self._options.device))

    def _new_run(self, key: events.Request, program: LoadedProgram) -> ProgramRun:
        traced, notes = self._notes.get(key[0], (None, []))
        return NotedRun(program, notes=notes, clock=self._settled_clock) if traced == key else ProgramRun(program)

    def _settled_clock(self) -> float:
        """What an emulated device's clock shows once it is ready with what it did."""
        self._pace.settle()
        return self._clock()

    def _measure(self, action: actions.RunMeasure) -> None:
        """Time a program on noise; nothing of it stays."""
        message, options = action.message, self._options
        try:
            seconds, engine_factor = measure_described(
                message.program,
                message.layers,
                message.weights,
                message.repeats,
                fast=self._packer is not None,
                limit_bytes=options.memory_limit_bytes,
                device=options.device,
                groups=self._groups(),
                clock=self._pace.stopwatch,
            )
        except Exception as error:  # whatever an operator raises over a description of a stranger's
            self._send(action.link, Refused(reason=f"measuring failed: {type(error).__name__}: {error}"[:500]))
            return
        release_freed_memory()
        self._pace.forget()
        self._send(action.link, Measured(seconds=seconds, engine_factor=engine_factor))

    def _tell(self, action: actions.TellStatistics) -> None:
        values: dict[str, int | float | str] = {
            **self._counts,
            "weight_bytes": self._store.num_bytes,
            "dropped_pieces": self._state.num_dropped,
            "peak_memory_bytes": device_facts.peak_memory_bytes(),
            "engine": max(
                (text for (session, _), text in self._engines.items() if session == action.session), default=""
            ),
            "baseline_memory_bytes": self._baseline_memory_bytes,
            "late_s": self._pace.late_s,
        }
        for (session, epoch), installed in self._epochs.items():
            if session == action.session:
                values |= {requests_of(epoch): installed.requests, busy_s_of(epoch): installed.busy_s}
        self._send(action.link, Statistics(session=action.session, values=values))

    def _note(self, action: actions.NoteRequest) -> None:
        session = action.request[0]
        if session not in self._notes or self._notes[session][0] != action.request:
            self._notes[session] = (action.request, [])
        self._send(action.link, Clock(now_s=self._clock()))

    def _tell_traced(self, action: actions.TellTraced) -> None:
        session, epoch, number = action.request
        _, notes = self._notes.pop(session)
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
        started_s = self._clock()
        try:
            self._connect_peers(request.installed)
            done = request.run.advance(
                lambda piece, tensor, target: self._send_piece(key, request, piece, tensor, target)
            )
        except Exception as error:  # of an operator, a link or a peer: it belongs to this request
            self._fail(key, request, error)
            done = True
        busy_s = self._clock() - started_s
        self._counts["busy_s"] += busy_s
        request.busy_s += busy_s
        if done:
            self._counts["requests"] += 1
            request.installed.requests += 1
            request.installed.busy_s += request.busy_s
            self._end(key)

    def _connect_peers(self, installed: _Installed) -> None:
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
        payload, dtype, shape, layout = to_wire(tensor)
        message = Piece(
            session=key[0],
            epoch=key[1],
            request=key[2],
            tensor=piece.tensor,
            dim=piece.dim,
            start=piece.interval.start,
            stop=piece.interval.stop,
            source=request.installed.deploy.participant,
            deadline_s=max(0.0, request.deadline_s - self._clock()),
            dtype=dtype,
            shape=shape,
            layout=layout,
            payload=payload,
        )
        self._counts["sent_bytes"] += len(payload)
        links = request.installed.links
        assert links is not None, "connected before the run"
        self._pace.settle()
        if target == HOME:
            if links.send_home(message):
                return
            owner = self._state.owner(key[0])
            if owner is not None:
                self._send(owner, message)
            return
        try:
            links.send(target, message)
        except zmq.ZMQError as error:
            raise ProtocolError(f"worker {participant_name(target)} does not take {piece}: {error}") from error


def _layout(shape: tuple[int, ...]) -> str:
    return "nhwc" if len(shape) == 4 else "nchw"
