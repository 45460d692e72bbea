"""Who gets in: real sockets on loopback, strangers of every kind, and the one with the right key.

No test sleeps: each waits, at most PATIENCE_S, for what must happen, which for a stranger is that libzmq gives it up.
"""

from __future__ import annotations

import dataclasses
import errno
import socket as tcp
from collections.abc import Iterator
from typing import Any

import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st
from zmq.utils.monitor import recv_monitor_message

from edgedi.errors import DeadlineExceeded, EdgediError, LocalProtocolError, SecurityError, WorkerLost
from edgedi.runtime.links import security
from edgedi.runtime.links.keys import generate_keypair
from edgedi.runtime.links.security import (
    ROUTER_OPTIONS,
    SOCKET_OPTIONS,
    Authenticator,
    apply_curve_client,
    apply_curve_server,
    apply_socket_options,
    check_bind,
    is_loopback,
    map_zmq_error,
    peer_key,
    zmq_errors,
)

PATIENCE_S = 10
WORKER, FRIEND, STRANGER = generate_keypair(), generate_keypair(), generate_keypair()


@dataclasses.dataclass
class Door:
    """A worker's socket on a free port of loopback, with somebody who listens to its handshakes."""

    context: zmq.Context[Any]
    socket: security.Socket
    monitor: security.Socket
    clients: list[security.Socket]

    @property
    def endpoint(self) -> str:
        return self.socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()

    @property
    def port(self) -> int:
        return int(self.endpoint.rpartition(":")[2])

    def client(self) -> security.Socket:
        client = self.context.socket(zmq.DEALER)
        client.setsockopt(zmq.LINGER, 0)
        self.clients.append(client)
        return client

    def friend(self, keypair: Any = FRIEND) -> security.Socket:
        client = self.client()
        apply_curve_client(client, keypair, WORKER.public)
        return client

    def knock(self, client: security.Socket) -> None:
        client.connect(self.endpoint)
        client.send(b"let me in")

    def wait_for(self, *events: int) -> None:
        while self.monitor.poll(PATIENCE_S * 1000):
            if recv_monitor_message(self.monitor)["event"] in events:
                return
        pytest.fail(f"none of the events {events} within {PATIENCE_S} s")

    def turns_away(self, client: security.Socket) -> None:
        self.knock(client)
        self.wait_for(
            zmq.EVENT_HANDSHAKE_FAILED_AUTH,
            zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL,
            zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL,
        )
        assert not self.socket.poll(0)
        assert not client.poll(0)

    def lets_in(self, client: security.Socket) -> zmq.Frame:
        self.knock(client)
        assert self.socket.poll(PATIENCE_S * 1000), "the right key did not get in"
        routing, frame = self.socket.recv_multipart(copy=False)
        assert frame.bytes == b"let me in"
        self.socket.send_multipart([routing, b"welcome"])
        assert client.poll(PATIENCE_S * 1000)
        assert client.recv() == b"welcome"
        return frame


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    with zmq.Context() as made:
        yield made


def open_door(context: zmq.Context[Any], *, curve: bool) -> Door:
    socket = context.socket(zmq.ROUTER)
    apply_socket_options(socket)
    if curve:
        apply_curve_server(socket, WORKER)
    monitor = socket.get_monitor_socket()
    socket.bind("tcp://127.0.0.1:*")
    return Door(context, socket, monitor, [])


def shut(door: Door) -> None:
    for client in door.clients:
        client.close(0)
    door.socket.disable_monitor()
    door.monitor.close(0)
    door.socket.close(0)


@pytest.fixture
def authenticator(context: zmq.Context[Any]) -> Iterator[Authenticator]:
    with Authenticator(context, [FRIEND.public]) as started:
        yield started


@pytest.fixture
def door(context: zmq.Context[Any], authenticator: Authenticator) -> Iterator[Door]:
    made = open_door(context, curve=True)
    yield made
    shut(made)


# --- who gets in ------------------------------------------------------------------------------------------------------


def test_the_right_key_gets_in_and_is_named_on_every_message(door: Door, authenticator: Authenticator):
    assert peer_key(door.lets_in(door.friend())) == FRIEND.public
    assert authenticator.statistics().num_accepted == 1


def test_a_wrong_key_stays_out(door: Door, authenticator: Authenticator):
    door.turns_away(door.friend(STRANGER))
    assert authenticator.statistics().num_refused == 1
    door.lets_in(door.friend())


def test_the_right_key_for_another_worker_stays_out(door: Door):
    client = door.client()
    apply_curve_client(client, FRIEND, STRANGER.public)
    door.turns_away(client)
    door.lets_in(door.friend())


def test_a_client_without_a_mechanism_stays_out(door: Door):
    door.turns_away(door.client())
    door.lets_in(door.friend())


def test_a_client_with_a_password_stays_out(door: Door):
    client = door.client()
    client.setsockopt(zmq.PLAIN_USERNAME, b"admin")
    client.setsockopt(zmq.PLAIN_PASSWORD, b"admin")
    door.turns_away(client)
    door.lets_in(door.friend())


GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x01"
RAW = {
    "nothing at all": b"",
    "http": b"GET / HTTP/1.1\r\nHost: worker\r\n\r\n",
    "256 bytes": bytes(range(256)),
    "half a greeting": GREETING[:10],
    "a greeting without a handshake": GREETING + b"CURVE".ljust(20, b"\0") + bytes(32),
    "a greeting and a made-up handshake": GREETING
    + b"CURVE".ljust(20, b"\0")
    + bytes(32)
    + b"\x04\xc8\x05HELLO"
    + bytes(194),
    "a greeting that asks for no mechanism": GREETING + b"NULL".ljust(20, b"\0") + bytes(32) + b"\x04\x06\x05READY",
    "a message of the oldest version": b"\x01\x00\x0a\x00let me in",
}


@pytest.mark.parametrize("name", RAW)
def test_a_raw_connection_gets_nothing_and_is_closed(
    context: zmq.Context[Any], authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch, name: str
):
    monkeypatch.setitem(SOCKET_OPTIONS, zmq.HANDSHAKE_IVL, 200)
    door = open_door(context, curve=True)
    try:
        with tcp.create_connection(("127.0.0.1", door.port), timeout=PATIENCE_S) as raw:
            raw.sendall(RAW[name])
            answer = read_to_end(raw)
        assert len(answer) <= 64, "a greeting of ZMTP is all that a stranger may see"
        assert not door.socket.poll(0)
        door.lets_in(door.friend())
    finally:
        shut(door)


def read_to_end(raw: tcp.socket) -> bytes:
    """Read until the other side closes; a TimeoutError, which fails the test, if it never does."""
    answer = b""
    try:
        while chunk := raw.recv(4096):
            answer += chunk
    except ConnectionResetError:
        pass
    return answer


def test_without_an_authenticator_nobody_gets_in(context: zmq.Context[Any]):
    """libzmq by itself lets everybody in who knows the server's public key."""
    door = open_door(context, curve=True)
    try:
        door.turns_away(door.friend())
    finally:
        shut(door)


def test_an_open_link_has_no_key(context: zmq.Context[Any], authenticator: Authenticator):
    door = open_door(context, curve=False)
    try:
        assert peer_key(door.lets_in(door.client())) is None
    finally:
        shut(door)


def test_a_session_lets_its_peers_in_while_it_lasts(door: Door, authenticator: Authenticator):
    authenticator.admit("session", [STRANGER.public])
    assert peer_key(door.lets_in(door.friend(STRANGER))) == STRANGER.public
    authenticator.dismiss("session")
    door.turns_away(door.friend(STRANGER))
    authenticator.authorize([STRANGER.public])
    door.lets_in(door.friend(STRANGER))


# --- the authenticator's book-keeping ---------------------------------------------------------------------------------

KEYS = [generate_keypair().public for _ in range(4)]
key_sets = st.sets(st.sampled_from(KEYS))
steps = st.lists(st.tuples(st.sampled_from("abc"), key_sets | st.none()), max_size=20)


@settings(deadline=None)
@given(key_sets, steps)
def test_a_key_is_allowed_while_anything_allows_it(authorized: set[str], history: list[tuple[str, set[str] | None]]):
    authenticator = Authenticator(zmq.Context.instance(), authorized)
    sessions: dict[str, set[str]] = {}
    for session, keys in history:
        if keys is None:
            authenticator.dismiss(session)
            sessions.pop(session, None)
        else:
            authenticator.admit(session, keys)
            sessions[session] = keys
        allowed = authorized.union(*sessions.values())
        assert {key for key in KEYS if authenticator.is_allowed(key)} == allowed
        assert authenticator.statistics().num_keys == len(allowed)


def test_what_is_no_key_is_not_allowed_by_mistake():
    with pytest.raises(ValueError, match="40 characters of Z85"):
        Authenticator(zmq.Context.instance(), ["admin"])
    authenticator = Authenticator(zmq.Context.instance())
    assert not authenticator.is_allowed("")
    with pytest.raises(ValueError, match="40 characters of Z85"):
        authenticator.admit("session", ["admin"])


def test_one_authenticator_for_each_context(context: zmq.Context[Any], authenticator: Authenticator):
    with pytest.raises(LocalProtocolError, match="another authenticator runs in this context"):
        Authenticator(context).start()
    with pytest.raises(LocalProtocolError, match="runs already"):
        authenticator.start()


def test_an_authenticator_stops_twice_and_starts_again(context: zmq.Context[Any]):
    authenticator = Authenticator(context, [FRIEND.public])
    authenticator.stop()
    for _ in range(2):
        authenticator.start()
        authenticator.stop()
        authenticator.stop()
    with authenticator:
        door = open_door(context, curve=True)
        try:
            door.lets_in(door.friend())
        finally:
            shut(door)


# --- where to listen --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.8.9.10", "::1", "[::1]"])
def test_loopback(host: str):
    assert is_loopback(host)
    check_bind(host, authorized=False, insecure=False)


@pytest.mark.parametrize("host", ["0.0.0.0", "*", "::", "[::]", "10.0.0.11", "pi.local", "localhost.example.org", ""])
def test_beyond_loopback_a_worker_needs_keys_or_an_express_word(host: str):
    assert not is_loopback(host)
    check_bind(host, authorized=True, insecure=False)
    check_bind(host, authorized=False, insecure=True)
    with pytest.raises(SecurityError, match=r"without authorised keys.*--authorized-keys FILE.*--insecure-no-auth"):
        check_bind(host, authorized=False, insecure=False)


# --- options and errors -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [zmq.ROUTER, zmq.DEALER])
def test_every_socket_gets_the_table(context: zmq.Context[Any], kind: int):
    with context.socket(kind) as socket:
        apply_socket_options(socket, ipv6=True)
        readable = {zmq.RCVHWM: 0} if kind == zmq.ROUTER else {}  # that it is mandatory cannot be read back
        assert {option: socket.getsockopt(option) for option in SOCKET_OPTIONS} == SOCKET_OPTIONS | readable
        assert socket.getsockopt(zmq.IPV6) == 1


def test_sending_to_nobody_is_an_error(context: zmq.Context[Any]):
    assert zmq.ROUTER_MANDATORY in ROUTER_OPTIONS
    with context.socket(zmq.ROUTER) as socket:
        apply_socket_options(socket)
        with (
            pytest.raises(WorkerLost, match="sending to worker 2: no link to the peer stands"),
            zmq_errors("sending to worker 2"),
        ):
            socket.send_multipart([b"nobody", b"hello"])


def test_a_frame_over_the_limit_closes_its_link_and_no_other(
    context: zmq.Context[Any], authenticator: Authenticator, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(SOCKET_OPTIONS, zmq.MAXMSGSIZE, 1_000)
    door = open_door(context, curve=True)
    try:
        client = door.friend()
        door.lets_in(client)
        client.send(bytes(2_000))
        door.wait_for(zmq.EVENT_DISCONNECTED)
        assert not door.socket.poll(0)
        door.lets_in(door.friend())
    finally:
        shut(door)


def test_a_port_in_use_is_named(context: zmq.Context[Any]):
    with context.socket(zmq.ROUTER) as first, context.socket(zmq.ROUTER) as second:
        first.bind("tcp://127.0.0.1:*")
        endpoint = first.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()
        with (
            pytest.raises(EdgediError, match=f"listening on {endpoint}: the port is in use"),
            zmq_errors(f"listening on {endpoint}"),
        ):
            second.bind(endpoint)


def test_errors_of_zeromq_become_ours(context: zmq.Context[Any]):
    socket = context.socket(zmq.DEALER)
    with pytest.raises(DeadlineExceeded, match="asking: the peer took too long"), zmq_errors("asking"):
        socket.recv(zmq.NOBLOCK)
    with (
        pytest.raises(EdgediError, match="calling nowhere: ZeroMQ does not take this address"),
        zmq_errors("calling nowhere"),
    ):
        socket.connect("tcp://:::")
    socket.close(0)
    with pytest.raises(LocalProtocolError, match="late: the socket is closed"), zmq_errors("late"):
        socket.send(b"x")
    assert str(map_zmq_error(zmq.ZMQError(errno.ENOMEM), "asking")).startswith("asking: ")
