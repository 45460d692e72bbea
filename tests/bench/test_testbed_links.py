"""Shaped links: the relay's arithmetic and bytes, the kernel's namespaces, and that nothing of either is left."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgedi.bench.testbed import namespaces
from edgedi.bench.testbed.namespaces import LOCKS, NAMESPACES, Network, NoNamespaces, _take_token, shaping
from edgedi.bench.testbed.relay import Cable, Pipe
from edgedi.bench.testbed.spec import Link
from edgedi.bench.testbed.start import RelayProcess

LINK = Link(rate_bits_per_s=8e6)


# --- the relay --------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 0.1)), min_size=1, max_size=30))
def test_a_cable_never_carries_more_than_its_rate(sendings: list[tuple[int, float]]):
    cable, now_s, free_s = Cable(1000.0), 0.0, 0.0
    for num_bytes, pause_s in sendings:
        now_s += pause_s
        free_s = max(free_s, now_s) + num_bytes / 1000.0
        assert cable.through(num_bytes, now_s) == free_s


@pytest.mark.parametrize(("rate", "chunk"), [(1.25e8, 62_500), (1.25e10, 65_536), (1.0, 1_500)])
def test_a_chunk_is_half_a_millisecond_of_a_cable(rate: float, chunk: int):
    assert Cable(rate).chunk_bytes == chunk


def test_a_pipe_delivers_when_both_cables_have_had_time():
    (near, source), (target, far) = socket.socketpair(), socket.socketpair()
    with near, source, target, far:
        for end in (source, target, far):
            end.setblocking(False)
        pipe = Pipe(source, target, (Cable(1000.0), Cable(500.0)))
        near.sendall(b"x" * 1000)
        pipe.read(10.0)
        assert pipe.next_read_s == 11.0
        assert [at_s for at_s, _ in pipe.under_way] == [13.0]
        pipe.write(12.9)
        with pytest.raises(BlockingIOError):
            far.recv(2000)
        pipe.write(13.0)
        assert far.recv(2000) == b"x" * 1000
        near.close()
        pipe.read(14.0)
        assert pipe.ended


@pytest.fixture
def relay() -> Iterator[RelayProcess]:
    started = RelayProcess([1e9, 1e9, 1e9])
    yield started
    started.close()
    assert started._process.returncode == 0


def through_proxy(proxy: int, port: int, greeting: bytes = b"\5\1\0") -> socket.socket:
    """A connection to a port as libzmq makes it."""
    made = socket.create_connection(("127.0.0.1", proxy), 10)
    made.sendall(greeting)
    assert made.recv(2) == b"\5\0"
    made.sendall(b"\5\1\0\1" + bytes([127, 0, 0, 1]) + struct.pack(">H", port))
    assert made.recv(10) == b"\5\0\0\1" + bytes(6)
    return made


def received(connection: socket.socket, num_bytes: int) -> bytes:
    taken = b""
    while len(taken) < num_bytes:
        more = connection.recv(num_bytes - len(taken))
        assert more, f"ended after {len(taken)} bytes"
        taken += more
    return taken


def test_bytes_pass_both_ways_between_home_workers_and_the_share(relay: RelayProcess):
    assert (len(relay.doors), len(relay.proxies)) == (2, 3)
    with socket.create_server(("127.0.0.1", 0)) as worker, socket.create_server(("127.0.0.1", 0)) as share:
        relay.connect([worker.getsockname()[1], 1])
        content = os.urandom(300_000)
        for client, listener in (
            (lambda: socket.create_connection(("127.0.0.1", relay.doors[0]), 10), worker),
            (lambda: through_proxy(relay.proxies[2], relay.doors[0]), worker),
            (lambda: through_proxy(relay.proxies[1], share.getsockname()[1]), share),
        ):
            with client() as near, listener.accept()[0] as far:
                near.settimeout(10)
                far.settimeout(10)
                near.sendall(content)
                assert received(far, len(content)) == content
                far.sendall(content[:1000])
                assert received(near, 1000) == content[:1000]
                near.shutdown(socket.SHUT_RDWR)
                assert far.recv(1) == b""


def test_who_knocks_wrongly_is_turned_away_and_others_are_served(relay: RelayProcess):
    with socket.create_server(("127.0.0.1", 0)) as worker:
        relay.connect([worker.getsockname()[1], 1])
        with socket.create_connection(("127.0.0.1", relay.proxies[0]), 10) as wrong:
            wrong.sendall(b"\4\1\0\0GET / HTTP")
            assert wrong.recv(100) in (b"", b"\5\0")
        with socket.create_connection(("127.0.0.1", relay.doors[1]), 10) as nobody:  # no worker listens at port 1
            assert nobody.recv(100) == b""
        with through_proxy(relay.proxies[0], relay.doors[0]) as near, worker.accept()[0] as far:
            near.sendall(b"still here")
            assert received(far, 10) == b"still here"


# --- the kernel -------------------------------------------------------------------------------------------------------


def why_no_namespaces() -> str:
    try:
        Network([LINK]).close()
    except NoNamespaces as error:
        return str(error)
    return ""


WHY_NOT = why_no_namespaces()
needs_namespaces = pytest.mark.skipif(bool(WHY_NOT), reason=f"no network namespaces here: {WHY_NOT}")


def left() -> tuple[set[str], set[str]]:
    return {path.name for path in NAMESPACES.glob("edgedi-*")}, {path.name for path in LOCKS.glob("*")}


@needs_namespaces
def test_devices_reach_each_other_and_nobody_else_does():
    network = Network([LINK, LINK])
    try:
        with network.entered(1):
            listener = socket.create_server((network.address(1), 0))
        with listener:
            listener.settimeout(10)
            address = listener.getsockname()[:2]
            with pytest.raises(OSError):
                socket.create_connection(address, 0.2)
            with network.entered(0), socket.create_connection(address, 10) as near:
                far, (host, _) = listener.accept()
                with far:
                    near.sendall(b"x" * 50_000)
                    assert received(far, 50_000) == b"x" * 50_000
                assert host == network.address(0)
        shown = subprocess.run(
            ["tc", "-n", network.names[0], "-s", "qdisc", "show", "dev", "cable"],
            capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert "rate 8Mbit" in shown
        assert int(shown.split("Sent ")[1].split()[0]) > 50_000
        names = network.names
    finally:
        network.close()
        network.close()
    assert {*names} & left()[0] == set()


@needs_namespaces
def test_a_thread_is_back_where_it_was_whatever_happened():
    before = os.readlink("/proc/thread-self/ns/net")
    network = Network([LINK])
    try:
        with contextlib.suppress(KeyError), network.entered(0):
            assert os.readlink("/proc/thread-self/ns/net") != before
            raise KeyError
        assert os.readlink("/proc/thread-self/ns/net") == before
    finally:
        network.close()


OWNER = """
import subprocess, sys
from edgedi.bench.testbed.namespaces import Network
from edgedi.bench.testbed.spec import Link
network = Network([Link(rate_bits_per_s=1e9)])
child = subprocess.Popen([*network.prefix(0), "sleep", "600"], stdout=subprocess.DEVNULL)
print(network._token, child.pid, flush=True)
sys.stdin.read()
"""


@needs_namespaces
def test_what_a_killed_owner_left_is_removed_by_the_next_and_a_living_ones_is_not():
    living = Network([LINK])
    owner = subprocess.Popen([sys.executable, "-c", OWNER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        token, child = owner.stdout.readline().split()
        owner.send_signal(signal.SIGKILL)
        owner.wait(60)
        assert token in left()[1]
        assert f"edgedi-{token}-0" in left()[0]
        orphan = psutil.Process(int(child))
        Network([LINK]).close()
        found_namespaces, found_locks = left()
        assert [name for name in found_namespaces if token in name] == []
        assert token not in found_locks
        psutil.wait_procs([orphan], timeout=60)
        assert not orphan.is_running()
        assert {*living.names} <= found_namespaces
    finally:
        owner.kill()
        owner.wait()
        owner.stdin.close()
        owner.stdout.close()
        living.close()


@needs_namespaces
def test_a_network_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch):
    taken: list[str] = []

    def take_token() -> tuple[str, int]:
        token, lock = _take_token()
        taken.append(token)
        return token, lock

    monkeypatch.setattr(namespaces, "_take_token", take_token)
    monkeypatch.setattr(namespaces, "shaping", lambda link: ("no-such-qdisc",))
    with pytest.raises(NoNamespaces, match=r"'tc -n .* root no-such-qdisc' failed: Error"):
        Network([LINK])
    assert [name for names in left() for name in names if taken[0] in name] == []


def test_without_root_or_tools_it_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(NoNamespaces, match=r"^not root$"):
        Network([LINK])
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(namespaces.shutil, "which", lambda tool: None)
    with pytest.raises(NoNamespaces, match=r"^ip and tc not found: install iproute2$"):
        Network([LINK])


@pytest.mark.parametrize(("rate", "burst"), [(1e9, "12500"), (1e8, "3200"), (5e7, "3200")])
def test_next_to_nothing_comes_for_free(rate: float, burst: str):
    words = shaping(Link(rate_bits_per_s=rate))
    assert words[:3] == ("tbf", "rate", f"{int(rate)}bit")
    assert words[words.index("burst") + 1] == burst
