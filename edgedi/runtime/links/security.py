"""Who may talk to whom: the sockets, and who answers for the keys of those who knock.

Rules:

* Beyond loopback a socket speaks CURVE only, and only to keys that it was given: ``check_bind`` refuses the rest.
* The key of a client is judged by an ``Authenticator`` that runs before the socket is bound. Where none runs, a CURVE
  socket of ours lets nobody in (libzmq by itself would let everybody in who knows the server's public key).
* A key taken back stops new connections; links that stand already stay until they close.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import threading
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

import zmq
from zmq.utils import z85

from edgedi.errors import DeadlineExceeded, EdgediError, LocalProtocolError, SecurityError, WorkerLost
from edgedi.runtime.links.keys import KeyPair, check_key
from edgedi.runtime.wire.codec import LIMITS

Socket: TypeAlias = "zmq.Socket[bytes]"

ZAP_ENDPOINT = "inproc://zeromq.zap.01"  # fixed by ZeroMQ RFC 27
ZAP_DOMAIN = b"edgedi"

SOCKET_OPTIONS: dict[int, int] = {
    zmq.SNDHWM: 1_000,  # messages: a peer that does not read cannot fill our memory
    zmq.RCVHWM: 1_000,
    zmq.SNDBUF: 262_144,  # bytes: what waits in the kernel delays signs of life as well
    zmq.LINGER: 0,  # ms: closing never waits for a peer that is gone
    zmq.IMMEDIATE: 1,  # queue for links that stand, not for addresses that may never answer
    zmq.MAXMSGSIZE: LIMITS["payload_bytes"],  # bytes of one frame, refused before room is made for it
    zmq.HANDSHAKE_IVL: 5_000,  # ms: a connection that does not say who it is goes
    zmq.HEARTBEAT_IVL: 1_000,  # ms
    zmq.HEARTBEAT_TIMEOUT: 3_000,  # ms without a sign of life until a link counts as lost
    zmq.HEARTBEAT_TTL: 3_000,  # ms, what we ask the peer to wait for ours
}
"""What every socket gets. TCP_NODELAY is not here: libzmq always sets it."""

ROUTER_OPTIONS: dict[int, int] = {
    zmq.ROUTER_MANDATORY: 1,  # sending to nobody is an error, not silence
    # No bound in messages: libzmq (4.3.5, its issue 4841) aborts the process when a link closes while its queue is full
    # and answers wait, so that one coordinator killed at a bad moment would take the worker from all others.
    zmq.RCVHWM: 0,
}
"""What a ROUTER gets besides."""


def is_loopback(host: str) -> bool:
    """Return whether ``host`` reaches this machine only; names other than localhost are not looked up."""
    if host == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host.strip("[]"))
    except ValueError:
        return False
    return address.is_loopback


def check_bind(host: str, *, authorized: bool, insecure: bool) -> None:
    """Raise ``SecurityError`` where a worker would listen beyond loopback without knowing whom it may let in."""
    if authorized or insecure or is_loopback(host):
        return
    raise SecurityError(
        f"will not listen on {host} without authorised keys: anybody in reach could use this worker. Give it "
        "--authorized-keys FILE, one line of edgedi-keygen's for each client; or listen on --host 127.0.0.1; or, where "
        "you trust everybody in reach, --insecure-no-auth"
    )


# ---------------------------------------------------------------- sockets


def apply_socket_options(socket: Socket, *, ipv6: bool = False) -> None:
    """Set SOCKET_OPTIONS, before the socket is bound or connected; ``ipv6`` where its address is one."""
    for option, value in SOCKET_OPTIONS.items():
        socket.setsockopt(option, value)
    if socket.type == zmq.ROUTER:
        for option, value in ROUTER_OPTIONS.items():
            socket.setsockopt(option, value)
    # Only where asked for: with it, the name localhost means ::1, where no worker listens by default.
    socket.setsockopt(zmq.IPV6, int(ipv6))


def apply_curve_server(socket: Socket, keypair: KeyPair) -> None:
    """Let in CURVE clients only, and of those only whom the context's ``Authenticator`` allows; before bind."""
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keypair.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keypair.secret.encode())
    socket.setsockopt(zmq.ZAP_DOMAIN, ZAP_DOMAIN)
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # without it, no authenticator would mean no question asked


def apply_curve_client(socket: Socket, keypair: KeyPair, server_public_key: str) -> None:
    """Prove ``keypair`` to a server that must prove ``server_public_key``; before connect."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, keypair.public.encode())
    socket.setsockopt(zmq.CURVE_SECRETKEY, keypair.secret.encode())
    socket.setsockopt(zmq.CURVE_SERVERKEY, check_key(server_public_key).encode())


def peer_key(frame: zmq.Frame) -> str | None:
    """Return the public key that the sender of ``frame`` proved, None on an open link."""
    try:
        return str(frame.get("User-Id")) or None
    except zmq.ZMQError:  # EINVAL: the link has no such property
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuthenticatorStatistics:
    """A snapshot: handshakes since the start, and keys allowed now."""

    num_accepted: int
    num_refused: int
    num_keys: int


class Authenticator:
    """Answers libzmq's question, for every handshake in one context, whether the client's key may come in (RFC 27).

    One thread of its own owns the ZAP socket; the key set may be changed from any thread. ``start`` before any socket
    of the context is bound; one per context.
    """

    def __init__(self, context: zmq.Context[Any], authorized: Iterable[str] = ()) -> None:
        self._context = context
        self._lock = threading.Lock()
        self._authorized = {check_key(key) for key in authorized}
        self._sessions: dict[str, frozenset[str]] = {}
        self._num_sessions: Counter[str] = Counter()
        self._answers: Counter[bool] = Counter()
        self._thread: threading.Thread | None = None
        self._stop: Socket | None = None
        self._bell_endpoint = f"inproc://edgedi-authenticator-{id(self)}"

    def start(self) -> Authenticator:
        """Begin to answer; ``LocalProtocolError`` if something answers in this context already."""
        if self._thread is not None:
            raise LocalProtocolError("this authenticator runs already")
        questions = self._context.socket(zmq.REP)
        try:
            questions.bind(ZAP_ENDPOINT)
        except zmq.ZMQError as error:
            questions.close(0)
            raise LocalProtocolError("another authenticator runs in this context") from error
        self._stop = self._context.socket(zmq.PAIR)
        bell = self._context.socket(zmq.PAIR)
        # Connected from the side that stays, bound by the thread's, which frees both names before it ends.
        bell.bind(self._bell_endpoint)
        self._stop.connect(self._bell_endpoint)
        self._thread = threading.Thread(
            target=self._serve, args=(questions, bell), name="edgedi-authenticator", daemon=True
        )
        self._thread.start()
        return self

    def stop(self) -> None:
        """End the thread and free its sockets; nobody new comes in after that. Idempotent."""
        if self._thread is None or self._stop is None:
            return
        with contextlib.suppress(zmq.ContextTerminated):  # then the thread has ended by itself
            self._stop.send(b"")
        self._thread.join()
        self._stop.close(0)
        self._thread = self._stop = None

    def __enter__(self) -> Authenticator:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def authorize(self, keys: Iterable[str]) -> None:
        """Allow ``keys`` for good."""
        checked = {check_key(key) for key in keys}
        with self._lock:
            self._authorized |= checked

    def admit(self, session: str, keys: Iterable[str]) -> None:
        """Allow ``keys`` while ``session`` lasts; the latest set of a session counts."""
        checked = frozenset(check_key(key) for key in keys)
        with self._lock:
            self._forget(session)
            self._sessions[session] = checked
            self._num_sessions.update(checked)

    def dismiss(self, session: str) -> None:
        """Take back what ``session`` was allowed; keys of other sessions stay. Unknown sessions are no error."""
        with self._lock:
            self._forget(session)

    def _forget(self, session: str) -> None:
        self._num_sessions -= Counter(self._sessions.pop(session, ()))  # entries at zero vanish

    def is_allowed(self, key: str) -> bool:
        """Return whether a client of this public key would be let in now."""
        with self._lock:
            return key in self._authorized or key in self._num_sessions

    def is_client(self, key: str) -> bool:
        """Return whether this key was authorised for good, and not only admitted for a session."""
        with self._lock:
            return key in self._authorized

    def statistics(self) -> AuthenticatorStatistics:
        """Return counts, all taken at one moment."""
        with self._lock:
            return AuthenticatorStatistics(
                num_accepted=self._answers[True],
                num_refused=self._answers[False],
                num_keys=len(self._authorized | self._num_sessions.keys()),
            )

    def _serve(self, questions: Socket, bell: Socket) -> None:
        poller = zmq.Poller()
        poller.register(questions, zmq.POLLIN)
        poller.register(bell, zmq.POLLIN)
        try:
            while bell not in dict(poller.poll()):
                questions.send_multipart(self._answer(questions.recv_multipart()))
            # Closing frees a name some time later, unbinding at once: another authenticator may start after this one.
            questions.unbind(ZAP_ENDPOINT)
            bell.unbind(self._bell_endpoint)
        except zmq.ContextTerminated:
            pass  # the process is ending; with nobody to answer, nobody comes in
        finally:
            questions.close(0)
            bell.close(0)

    def _answer(self, question: list[bytes]) -> list[bytes]:
        """Version and request come back, then status, text and the user, who is the key: see ``peer_key``."""
        version, request, domain, _address, _identity, mechanism, *credentials = question
        key = ""
        if domain == ZAP_DOMAIN and mechanism == b"CURVE" and len(credentials) == 1:
            key = z85.encode(credentials[0]).decode()
        allowed = self.is_allowed(key)
        with self._lock:
            self._answers[allowed] += 1
        if allowed:
            return [version, request, b"200", b"OK", key.encode(), b""]
        return [version, request, b"400", b"key not authorised", b"", b""]


# ---------------------------------------------------------------- errors of ZeroMQ


_ERRORS: dict[int, tuple[type[EdgediError], str]] = {
    zmq.EADDRINUSE: (EdgediError, "the port is in use: choose another, or stop what listens there"),
    zmq.EADDRNOTAVAIL: (EdgediError, "this machine has no such address to listen on"),
    errno.EACCES: (EdgediError, "this user may not listen there: choose a port from 1024 up"),
    errno.ENODEV: (EdgediError, "this machine has no such address to listen on"),
    zmq.EINVAL: (EdgediError, "ZeroMQ does not take this address or option"),
    zmq.EHOSTUNREACH: (WorkerLost, "no link to the peer stands"),
    zmq.EAGAIN: (DeadlineExceeded, "the peer took too long to take or give a message"),
    zmq.ETERM: (LocalProtocolError, "the context is closed already"),
    zmq.ENOTSOCK: (LocalProtocolError, "the socket is closed already"),
    zmq.EFSM: (LocalProtocolError, "the socket is in no state for this"),
}
"""What libzmq's error numbers mean to a user of edgedi."""


def map_zmq_error(error: zmq.ZMQError, doing: str) -> EdgediError:
    """Return our error for libzmq's; ``doing`` names act and address, such as ``listening on 127.0.0.1:5555``."""
    make, reason = _ERRORS.get(error.errno or 0, (EdgediError, error.strerror or "unknown error of ZeroMQ"))
    return make(f"{doing}: {reason}")


@contextlib.contextmanager
def zmq_errors(doing: str) -> Iterator[None]:
    """Raise libzmq's errors as ours within the block; not for the path of halos, where it would cost."""
    try:
        yield
    except zmq.ZMQError as error:
        raise map_zmq_error(error, doing) from error
