"""Sessions over CURVE links, with real worker processes: who is let in, who is not, and what each is told."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import zmq

from edgedi import distribute
from edgedi.cli import keygen
from edgedi.errors import SecurityError, WorkerLost
from edgedi.partition.graph.operators import OPERATOR_TABLE_VERSION
from edgedi.runtime.coordinator import deployment as deployment_module
from edgedi.runtime.coordinator.coordinator import Coordinator
from edgedi.runtime.links.keys import (
    KeyPair,
    fingerprint,
    generate_keypair,
    load_keypair,
    parse_worker_address,
    save_keypair,
)
from edgedi.runtime.links.security import apply_curve_client, apply_socket_options
from edgedi.runtime.session.verify import relative_difference
from edgedi.runtime.version import software_version
from edgedi.runtime.wire.codec import WIRE_VERSION, decode, encode
from edgedi.runtime.wire.messages import AskStatistics, Deploy, Hello, Message, Need, Refused, Welcome
from edgedi.runtime.worker.local_workers import LocalWorkers
from tests.runtime.networks import image, small

TOLERANCE = 2e-5
WAIT_MS = 10_000


@dataclass(frozen=True, kw_only=True)
class Keyed:
    """Two workers with a key each, and the key file of the one who may use them."""

    addresses: list[str]
    keypairs: list[KeyPair]
    key: Path

    @property
    def with_keys(self) -> list[str]:
        return [f"{a}#{k.public}" for a, k in zip(self.addresses, self.keypairs, strict=True)]


@pytest.fixture(scope="module")
def keyed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keyed]:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("me", "worker-0", "worker-1"):
        assert keygen.main(["--out", str(folder / f"{name}.key")]) == 0
    me = load_keypair(folder / "me.key")
    allowed = folder / "authorized"
    allowed.write_text(f"{me.public} me@here\n")
    allowed.chmod(0o600)
    started = [
        LocalWorkers(1, options=("--key", str(folder / f"worker-{n}.key"), "--authorized-keys", str(allowed)))
        for n in range(2)
    ]
    yield Keyed(
        addresses=[address for one in started for address in one.addresses],
        keypairs=[load_keypair(folder / f"worker-{n}.key") for n in range(2)],
        key=folder / "me.key",
    )
    for one in started:
        one.stop()


@pytest.fixture(autouse=True)
def no_known_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of its own for every test: nobody's known workers but those that the test writes."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path / ".edgedi" / "known_workers"


def check_session(workers: list[str], key: Path) -> None:
    model, x = small(), image(height=64, width=64)
    with torch.inference_mode():
        own = model(x)
    with distribute(model, x, workers, key=key, planner="equal") as session:
        assert relative_difference(session(x), own) <= TOLERANCE
        statistics = session.statistics()
        assert statistics.local_answers == 0
        assert any(segment.axis == "rows" for segment in session.plan.segments)
        assert all(values["sent_bytes"] > 0 for values in statistics.workers.values())


# --- those who may ---------------------------------------------------------------------------------------------------


def test_keyed_workers_exchange_halos_and_answer_rightly(keyed: Keyed) -> None:
    check_session(keyed.with_keys, keyed.key)
    check_session(keyed.with_keys, keyed.key)  # the first session's keys are taken back, the second's let in


def test_halos_over_encrypted_tcp(keyed: Keyed, monkeypatch: pytest.MonkeyPatch) -> None:
    """As between machines: without Unix sockets, by the keys that the coordinator vouches for."""
    peers = deployment_module.Deployer._peers

    def on_other_machines(
        deployer: deployment_module.Deployer, alive: list[int], me: int
    ) -> tuple[dict[str, object], ...]:
        found = [{**peer, "halo_address": None} for peer in peers(deployer, alive, me)]
        others = [link for link in alive if link != alive[me]]
        assert [peer["public_key"] for peer in found] == [keyed.keypairs[link].public for link in others]
        return tuple(found)

    monkeypatch.setattr(deployment_module.Deployer, "_peers", on_other_machines)
    check_session(keyed.with_keys, keyed.key)
    check_session(keyed.with_keys, keyed.key)


def test_known_workers_need_no_key_in_the_address(keyed: Keyed, no_known_workers: Path) -> None:
    for address in keyed.with_keys:
        assert keygen.main(["--trust", address]) == 0
    assert no_known_workers.exists()
    check_session(keyed.addresses, keyed.key)


def test_two_sessions_at_once_over_keyed_links(keyed: Keyed) -> None:
    model, x = small(), image(height=64, width=64)
    with torch.inference_mode():
        own = model(x)
    with (
        distribute(model, x, keyed.with_keys, key=keyed.key, planner="equal") as first,
        distribute(model, x, keyed.with_keys[::-1], key=keyed.key, planner="equal") as second,
    ):
        futures = [session.submit(x) for _ in range(3) for session in (first, second)]
        for future in futures:
            assert relative_difference(future.result(60), own) <= TOLERANCE
        assert first.statistics().local_answers == second.statistics().local_answers == 0


# --- those who may not -----------------------------------------------------------------------------------------------


def test_an_unknown_worker_names_the_command_that_adds_it(keyed: Keyed) -> None:
    address = keyed.addresses[0]
    with pytest.raises(SecurityError, match=rf"no public key is known for {address}.*edgedi-keygen --trust"):
        distribute(small(), image(), [address], key=keyed.key)


def test_a_key_that_differs_from_the_known_one_shows_both_fingerprints(keyed: Keyed) -> None:
    assert keygen.main(["--trust", keyed.with_keys[0]]) == 0
    other = generate_keypair()
    with pytest.raises(SecurityError) as caught:
        distribute(small(), image(), [f"{keyed.addresses[0]}#{other.public}"], key=keyed.key)
    assert fingerprint(other.public) in str(caught.value)
    assert fingerprint(keyed.keypairs[0].public) in str(caught.value)
    assert "edgedi-keygen --force --trust" in str(caught.value)


def test_a_coordinator_whose_key_is_not_authorised_is_told_so(keyed: Keyed, tmp_path: Path) -> None:
    stranger = generate_keypair()
    save_keypair(tmp_path / "stranger.key", stranger)
    with pytest.raises(SecurityError, match=r"does not know our key .*--authorized-keys") as caught:
        distribute(small(), image(), keyed.with_keys, key=tmp_path / "stranger.key")
    assert fingerprint(stranger.public) in str(caught.value)
    check_session(keyed.with_keys, keyed.key)


def test_a_refused_key_is_told_of_even_when_the_next_message_meets_it_first(keyed: Keyed) -> None:
    """The thread is held until libzmq has given the connection up, so that sending finds out before the monitor."""
    worker = parse_worker_address(keyed.with_keys[0])
    coordinator = Coordinator([worker], generate_keypair())
    try:

        def hold() -> None:
            link = coordinator._links[0].socket
            while link.get(zmq.EVENTS) & zmq.POLLOUT:
                pass

        coordinator._call(hold)
        answer = coordinator.ask(0, Hello(wire_version=WIRE_VERSION, software_version=software_version()), Welcome)
        with pytest.raises(SecurityError, match="does not know our key"):
            answer.result(WAIT_MS / 1000)
    finally:
        coordinator.close()


def test_a_worker_with_another_key_than_given_is_not_trusted(keyed: Keyed) -> None:
    other = generate_keypair()
    with pytest.raises(SecurityError, match="does not prove the key") as caught:
        distribute(small(), image(), [f"{keyed.addresses[0]}#{other.public}"], key=keyed.key)
    assert fingerprint(other.public) in str(caught.value)


def test_a_keyed_worker_wants_a_key_of_us(keyed: Keyed) -> None:
    with pytest.raises(SecurityError, match=r"has a key, so you need one too: edgedi-keygen"):
        distribute(small(), image(), keyed.with_keys)


def test_a_keyed_worker_does_not_talk_in_the_open(keyed: Keyed) -> None:
    with pytest.raises((SecurityError, WorkerLost), match=r"wants keys.* give key=FILE"):  # how it ends is a race
        distribute(small(), image(), keyed.addresses)


def test_an_open_worker_does_not_prove_a_key(keyed: Keyed) -> None:
    started = LocalWorkers(1)
    try:
        with pytest.raises(SecurityError, match="does not prove the key"):
            distribute(small(), image(), [f"{started.addresses[0]}#{keyed.keypairs[0].public}"], key=keyed.key)
    finally:
        started.stop()


@pytest.mark.parametrize("words", ["no key file", "a key file has one line"])
def test_a_bad_key_file_is_named(keyed: Keyed, tmp_path: Path, words: str) -> None:
    bad = tmp_path / "bad.key"
    bad.write_text("public x\nsecret y\n" if words == "no key file" else "hello\n")
    bad.chmod(0o600)
    with pytest.raises(SecurityError, match=rf"{re.escape(str(bad))}.*{words}"):
        distribute(small(), image(), keyed.with_keys, key=bad)


def test_a_key_file_that_others_can_read_is_refused(keyed: Keyed, tmp_path: Path) -> None:
    loose = tmp_path / "loose.key"
    save_keypair(loose, generate_keypair())
    loose.chmod(0o644)
    with pytest.raises(SecurityError, match="chmod 600"):
        distribute(small(), image(), keyed.with_keys, key=loose)


def test_an_address_where_nobody_speaks_zeromq_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deployment_module, "HELLO_TIMEOUT_S", 5.0)
    import socket
    import threading

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]

        def answer() -> None:
            while True:
                try:
                    link, _ = server.accept()
                except OSError:
                    return
                link.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")
                link.close()

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(WorkerLost, match=rf"127\.0\.0\.1:{port} breaks off the greeting: is that an edgedi-worker"):
            distribute(small(), image(), [f"127.0.0.1:{port}"])


# --- those who may send pieces, and nothing else ---------------------------------------------------------------------


class Client:
    """Speaks to a keyed worker as one key or another."""

    def __init__(self, address: str, keypair: KeyPair, server_key: str) -> None:
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.DEALER)
        apply_socket_options(self._socket)
        self._socket.setsockopt(zmq.IMMEDIATE, 0)
        apply_curve_client(self._socket, keypair, server_key)
        self._socket.connect(f"tcp://{address}")

    def ask(self, message: Message) -> Message:
        self._socket.send_multipart(encode(message))
        assert self._socket.poll(WAIT_MS), f"no answer to {type(message).__name__}"
        return decode(self._socket.recv_multipart())

    def close(self) -> None:
        self._context.destroy(0)


def deploy(session: str, peer: KeyPair) -> Deploy:
    """An idle program with one peer."""
    vouched = {"participant": 1, "address": "127.0.0.1:9", "public_key": peer.public, "halo_address": None}
    return Deploy(
        session=session, epoch=0, participant=0, num_participants=2, program="program 0", layers=(), weights=(),
        peers=(vouched,), graph_digest="0" * 16, plan_digest="0" * 16, operator_table_version=OPERATOR_TABLE_VERSION,
        precision="float32",
    )  # fmt: skip


def test_a_sessions_peer_may_send_pieces_and_nothing_else(keyed: Keyed) -> None:
    peer = generate_keypair()
    hello = Hello(wire_version=WIRE_VERSION, software_version=software_version())
    owner = Client(keyed.addresses[0], load_keypair(keyed.key), keyed.keypairs[0].public)
    assert isinstance(owner.ask(hello), Welcome)
    assert isinstance(owner.ask(deploy("vouching", peer)), Need)
    guest = Client(keyed.addresses[0], peer, keyed.keypairs[0].public)  # let in because the owner vouched for it
    for message in (hello, deploy("of-its-own", peer), AskStatistics(session="vouching")):
        answer = guest.ask(message)
        assert isinstance(answer, Refused)
        assert answer.reason == "a session's peer may send pieces and nothing else"
    guest.close()
    owner.close()
    check_session(keyed.with_keys, keyed.key)
