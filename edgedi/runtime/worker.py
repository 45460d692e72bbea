"""A worker process: one thread that polls its socket, asks the state machine what to do, and runs programs inline.

One thread and not two: a request's own instructions decide when it needs the network, libzmq's I/O thread moves bytes
meanwhile, and a second Python thread would only contend for the interpreter and, on a one-core device, for the core.
Requests run in the order in which they began; one that waits for a halo lets the next one go on.
"""

from __future__ import annotations

import ctypes
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import zmq
from torch import Tensor

from edgedi.errors import EdgediError, ProtocolError, RemoteProtocolError
from edgedi.partition.geometry import Interval
from edgedi.partition.plan import HOME
from edgedi.partition.program import Piece as ProgramPiece
from edgedi.partition.program import participant_name
from edgedi.runtime import device as device_facts
from edgedi.runtime import halo_links
from edgedi.runtime import worker_state as state
from edgedi.runtime.halo_links import HaloListener
from edgedi.runtime.executor import LoadedProgram, ProgramRun
from edgedi.runtime.kernels import fused
from edgedi.runtime.keys import KeyPair
from edgedi.runtime.loading import WorkerMemoryError, digests_of, load
from edgedi.runtime.measure import measure_program
from edgedi.runtime.messages import Deploy, Failed, Measured, Message, Piece, Ready, Refused, Statistics, Welcome
from edgedi.runtime.peers import PeerLinks
from edgedi.runtime.security import (
    Authenticator,
    apply_curve_server,
    apply_socket_options,
    peer_key,
    zmq_errors,
)
from edgedi.runtime.tensors import from_wire, to_wire
from edgedi.runtime.version import software_version
from edgedi.runtime.weights import WeightStore
from edgedi.runtime.wire import WIRE_VERSION, decode, encode

log = logging.getLogger("edgedi.worker")
COPY_BYTES = 65_536
"""Payloads below this are copied when they are sent: cheaper than keeping track of them."""
_IDLE_POLL_MS = 1_000
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
_KEEP_BYTES = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What a worker is started with. ``authorized`` are the public keys of coordinators that may use it."""

    host: str = "127.0.0.1"
    port: int = 0
    name: str = "worker"
    threads: int = 1
    device: str = "cpu"
    memory_limit_bytes: int | None = None
    keypair: KeyPair | None = None
    authorized: tuple[str, ...] = ()


@dataclass(slots=True)
class _Installed:
    deploy: Deploy
    program: LoadedProgram
    digests: tuple[str, ...]
    links: PeerLinks


@dataclass(slots=True)
class _Request:
    run: ProgramRun
    installed: _Installed
    deadline_s: float


class Worker:
    """Serves until ``stop`` is called (from a signal handler or another thread)."""

    def __init__(self, options: WorkerOptions, clock: Callable[[], float] = time.monotonic) -> None:
        self._options, self._clock = options, clock
        self._store = WeightStore(options.memory_limit_bytes)
        self._packer = fused.Packer() if fused.available() and options.device == "cpu" else None
        self._state = state.WorkerState(self._store.missing)
        self._epochs: dict[state.Epoch, _Installed] = {}
        self._requests: dict[state.Request, _Request] = {}
        self._stopped = False
        self._context = zmq.Context()
        self._authenticator: Authenticator | None = None
        self._socket = self._context.socket(zmq.ROUTER)
        self._halos = HaloListener() if halo_links.supported() else None
        self._poller = zmq.Poller()
        self._counts = {"requests": 0, "busy_s": 0.0, "sent_bytes": 0, "received_bytes": 0}
        self._perform: dict[type, Callable[[Any], None]] = {
            state.Reply: lambda a: self._send(a.link, a.message),
            state.Greet: self._greet,
            state.Store: self._keep,
            state.Install: self._install,
            state.Uninstall: self._uninstall,
            state.Deliver: self._deliver,
            state.Forget: lambda a: self._requests.pop(a.request, None) and None,
            state.RunMeasure: self._measure,
            state.TellStatistics: self._tell,
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
        return int(endpoint.decode().rsplit(":", 1)[1])

    def serve(self) -> None:
        """Serve until stopped; everything is closed afterwards."""
        torch.set_num_threads(self._options.threads)
        keep_freed_memory()
        self._poller.register(self._socket, zmq.POLLIN)
        if self._halos is not None:
            self._poller.register(self._halos.listener, zmq.POLLIN)
        try:
            with torch.inference_mode():
                while not self._stopped:
                    self._poller.poll(_IDLE_POLL_MS)
                    self._accept_peers()
                    self._drain()
                    self._do(state.Tick(self._clock()))
        finally:
            self.close()

    def stop(self) -> None:
        """End ``serve`` after what it is doing."""
        self._stopped = True

    def close(self) -> None:
        """Close sockets and links."""
        for installed in self._epochs.values():
            installed.links.close()
        self._epochs.clear()
        self._socket.close(0)
        if self._halos is not None:
            self._halos.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.destroy(0)

    # --- events in, actions out ----------------------------------------------------------------------------------------

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
            self._do(state.Received(b"", message, self._clock()))

    def _receive(self, link: bytes, frames: list[zmq.Frame]) -> None:
        try:
            message = decode([frame.buffer for frame in frames])
        except RemoteProtocolError as error:
            log.warning("refused a message: %s", error)
            self._send(link, Refused(reason=str(error)[:500]))
            return
        if isinstance(message, Piece):
            self._counts["received_bytes"] += len(message.payload)
        self._do(state.Received(link, message, self._clock()))

    def _do(self, event: state.Event) -> None:
        for action in self._state.handle(event):
            self._perform[type(action)](action)

    def _send(self, link: bytes, message: Message) -> None:
        header, *payload = encode(message)
        try:
            self._socket.send(link, zmq.SNDMORE)
            self._socket.send(header, zmq.SNDMORE if payload else 0)
            if payload:
                self._socket.send(payload[0], copy=len(payload[0]) < COPY_BYTES)
        except zmq.ZMQError as error:  # whoever asked is gone
            log.info("could not answer: %s", error)

    # --- actions -----------------------------------------------------------------------------------------------------

    def _greet(self, action: state.Greet) -> None:
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
            fingerprint=device_facts.fingerprint(options.device, options.threads),
        )
        self._send(action.link, welcome)

    def _keep(self, action: state.Store) -> None:
        weights = action.weights
        tensor = from_wire(weights.payload, weights.dtype, weights.shape, _layout(weights.shape), own=True)
        try:
            self._store.add(weights.digest, tensor)
        except ValueError as error:
            self._send(action.link, Refused(reason=str(error)))
            return
        self._do(state.Stored(weights.digest))

    def _install(self, action: state.Install) -> None:
        deploy, started_s = action.deploy, self._clock()
        epoch = (deploy.session, deploy.epoch)
        digests = digests_of(deploy.layers)
        self._store.use(digests)
        try:
            limit = self._options.memory_limit_bytes
            program = load(deploy.program, deploy.layers, self._store, self._packer, limit_bytes=limit)
            links = PeerLinks(self._context, deploy.peers, self._options.keypair)
        except EdgediError as error:
            self._store.release(digests)
            layer = error.layer if isinstance(error, WorkerMemoryError) else None
            kind = "memory" if isinstance(error, WorkerMemoryError) else "program"
            self._send(action.link, Failed(
                session=deploy.session, epoch=deploy.epoch, request=None, error=kind, text=str(error)[:2000], layer=layer
            ))  # fmt: skip
            self._do(state.InstallFailed(epoch))
            return
        self._admit(deploy)
        self._epochs[epoch] = _Installed(deploy, program, digests, links)
        self._store.trim()
        seconds, weight_bytes = self._clock() - started_s, self._bytes_of(digests)
        self._send(
            action.link,
            Ready(session=deploy.session, epoch=deploy.epoch, seconds=seconds, weight_bytes=weight_bytes),
        )
        self._do(state.Installed(epoch))

    def _admit(self, deploy: Deploy) -> None:
        """Let the session's other workers in, by the keys that the coordinator vouches for."""
        if self._authenticator is not None:
            keys = [peer["public_key"] for peer in deploy.peers if peer["public_key"] is not None]
            self._authenticator.admit(deploy.session, keys)

    def _bytes_of(self, digests: tuple[str, ...]) -> int:
        return sum(self._store[d].numel() * self._store[d].element_size() for d in digests)

    def _uninstall(self, action: state.Uninstall) -> None:
        installed = self._epochs.pop(action.epoch, None)
        if installed is not None:
            installed.links.close()
            self._store.release(installed.digests)
        session = action.epoch[0]
        if self._authenticator is not None and session not in self._state.sessions:
            self._authenticator.dismiss(session)

    def _deliver(self, action: state.Deliver) -> None:
        piece, key = action.piece, action.request
        request = self._requests.get(key)
        if request is None:
            installed = self._epochs[key[0], key[1]]
            request = _Request(ProgramRun(installed.program), installed, self._clock() + piece.deadline_s)
            self._requests[key] = request
        tensor = from_wire(piece.payload, piece.dtype, piece.shape, piece.layout, own=False)
        request.run.deliver(ProgramPiece(piece.tensor, piece.dim, Interval(piece.start, piece.stop)), piece.source, tensor)

    def _measure(self, action: state.RunMeasure) -> None:
        message = action.message
        installed = self._epochs.get((message.session, message.epoch))
        if installed is None:
            self._send(action.link, Refused(reason=f"epoch {message.epoch} is not installed"))
            return
        seconds = measure_program(installed.program, message.repeats)
        self._send(action.link, Measured(session=message.session, epoch=message.epoch, seconds=seconds))

    def _tell(self, action: state.TellStatistics) -> None:
        values = {**self._counts, "weight_bytes": self._store.num_bytes, "dropped_pieces": self._state.num_dropped}
        values["peak_memory_bytes"] = device_facts.peak_memory_bytes()
        self._send(action.link, Statistics(session=action.session, values=values))

    # --- running -------------------------------------------------------------------------------------------------------

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

    def _advance(self, key: state.Request, request: _Request) -> None:
        started_s = self._clock()
        try:
            done = request.run.advance(lambda piece, tensor, target: self._send_piece(key, request, piece, tensor, target))
        except (RuntimeError, EdgediError, zmq.ZMQError, IndexError, TypeError, ValueError) as error:
            self._fail(key, request, error)
            done = True
        self._counts["busy_s"] += self._clock() - started_s
        if done:
            self._counts["requests"] += 1
            self._end(key)

    def _end(self, key: state.Request) -> None:
        self._requests.pop(key, None)
        self._do(state.Ended(key))

    def _fail(self, key: state.Request, request: _Request, error: Exception) -> None:
        log.warning("request %d of session %s failed at %s: %s", key[2], key[0], request.run.current_layer, error)
        owner = self._state.owner(key[0])
        if owner is not None:
            kind = "memory" if "alloc" in str(error).lower() else "request"
            text = f"{type(error).__name__}: {error}"[:2000]
            self._send(owner, Failed(
                session=key[0], epoch=key[1], request=key[2], error=kind, text=text, layer=request.run.current_layer
            ))  # fmt: skip

    def _send_piece(
        self, key: state.Request, request: _Request, piece: ProgramPiece, tensor: Tensor, target: int
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
        if target == HOME:
            owner = self._state.owner(key[0])
            if owner is not None:
                self._send(owner, message)
            return
        try:
            request.installed.links.send(target, message)
        except zmq.ZMQError as error:
            raise ProtocolError(f"worker {participant_name(target)} does not take {piece}: {error}") from error


def _layout(shape: tuple[int, ...]) -> str:
    return "nhwc" if len(shape) == 4 else "nchw"


def keep_freed_memory() -> None:
    """Have glibc keep freed maps instead of returning them to the kernel, which would clear them again for every layer.

    Measured on VGG-16, one core: 148.9 ms before, 136.5 ms after. Elsewhere than glibc nothing happens.
    """
    try:
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)
    except OSError:
        log.debug("no glibc: allocator left as it is")


def peer_of(frame: zmq.Frame) -> str | None:
    """Public key of whoever sent a frame, ``None`` on an open link."""
    return peer_key(frame)
