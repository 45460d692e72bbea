"""Packets between workers of one machine: whole or not at all, from the same user only, never waiting."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgedi.runtime.links import halo_links, shared_memory
from edgedi.runtime.links.halo_links import MOST_BYTES, HaloLink, HaloListener, HaloPeer, machine_name

pytestmark = pytest.mark.skipif(not halo_links.supported(), reason="this system has no packet sockets with credentials")

Pair = tuple[HaloLink, HaloPeer]


def num_files() -> int:
    """Open ones of this process."""
    return len(os.listdir("/proc/self/fd"))


def received(peer: HaloPeer) -> bytes:
    """The payload of the packet that waits."""
    frames = peer.receive()
    assert frames
    return bytes(frames[1])


@contextmanager
def stranger_to(listener: HaloListener) -> Iterator[tuple[socket.socket, HaloPeer]]:
    """A socket to send anything by, and the listener's end of it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect("\0" + listener.address.removeprefix("unix:@"))
        accepted = listener.accept()
        assert accepted is not None
        yield stranger, accepted


def memory_file(size: int, seals: int) -> int:
    file = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
    os.ftruncate(file, size)
    fcntl.fcntl(file, 1033, seals)
    return file


@pytest.fixture
def listener() -> Iterator[HaloListener]:
    made = HaloListener()
    yield made
    made.close()


@pytest.fixture
def pair(listener: HaloListener) -> Iterator[Pair]:
    link = HaloLink(listener.address)
    peer = listener.accept()
    assert peer is not None
    yield link, peer
    link.close()


@pytest.mark.parametrize("header", [b"h", b"header", bytes(200)])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 57_344])
def test_a_packet_arrives_as_it_was_sent(pair: Pair, header: bytes, size: int) -> None:
    link, peer = pair
    payload = os.urandom(size)
    assert link.send(header, memoryview(payload))
    frames = peer.receive()
    assert frames is not None
    assert [bytes(frame) for frame in frames] == [header, payload]
    assert peer.receive() == []


def test_packets_keep_their_borders(pair: Pair) -> None:
    link, peer = pair
    for number in range(5):
        assert link.send(bytes([number]), bytes([number]) * 100)
    for number in range(5):
        frames = peer.receive()
        assert frames is not None
        assert bytes(frames[1]) == bytes([number]) * 100


@pytest.mark.parametrize("size", [MOST_BYTES, MOST_BYTES + 1, 3_000_001])
def test_a_large_piece_comes_as_it_was_when_it_was_sent(pair: Pair, size: int) -> None:
    link, peer = pair
    payload = bytearray(os.urandom(size))
    sent = bytes(payload)
    assert link.send(b"header", memoryview(payload))
    payload[:] = bytes(size)  # what is written later is not seen
    frames = peer.receive()
    assert frames is not None
    assert link.send(b"header", memoryview(payload))  # the same slot
    assert [bytes(frame) for frame in frames] == [b"header", sent]
    assert isinstance(frames[1], bytearray)


def test_large_pieces_take_the_same_memory_again(pair: Pair) -> None:
    """One file, of which each end has a descriptor or two."""
    link, peer = pair
    before = num_files()
    for number in range(200):
        payload = bytes([number]) * (300_000 + 1_000 * number)
        assert link.send(b"h", payload)
        assert received(peer) == payload
    assert num_files() <= before + 3
    assert link._memory is not None
    assert link._memory._backed <= 500_000


def test_large_pieces_that_wait_lie_beside_each_other(pair: Pair) -> None:
    link, peer = pair
    sent = [os.urandom(size) for size in (200_000, 1_000_000, 200_000, 131_072, 400_000)]
    for payload in sent:
        assert link.send(b"h", payload)
    assert [received(peer) for _ in sent] == sent


def test_a_slow_receiver_is_sent_no_more_than_fits_into_memory(pair: Pair) -> None:
    link, peer = pair
    size, sent = shared_memory.NUM_BYTES // 4, 0
    while link.send(b"h", bytes([sent]) * size):
        sent += 1
    assert sent == 4
    assert link.send(b"h", b"small")
    assert [received(peer)[0] for _ in range(sent)] == [0, 1, 2, 3]
    assert link.send(b"h", bytes([9]) * size)
    assert [received(peer)[:5] for _ in range(2)] == [b"small", bytes([9]) * 5]


def test_what_is_too_large_for_the_memory_leaves_it_as_it_was(pair: Pair) -> None:
    link, peer = pair
    assert link.send(b"h", b"1" * 200_000)
    assert not link.send(b"h", bytes(shared_memory.NUM_BYTES + 1))
    assert received(peer) == b"1" * 200_000
    whole = os.urandom(shared_memory.NUM_BYTES)
    assert link.send(b"h", whole)
    assert received(peer) == whole


def test_what_a_full_socket_refused_leaves_its_place_free(pair: Pair) -> None:
    link, peer = pair
    while link.send(b"h", bytes(100_000)):
        pass
    large = os.urandom(shared_memory.NUM_BYTES // 2)
    for _ in range(5):  # before the peer has heard of the memory, and after
        assert not link.send(b"large", large)
    while peer.receive():
        pass
    for _ in range(2):
        assert link.send(b"large", large)
    assert not link.send(b"large", large)
    assert [received(peer) for _ in range(2)] == [large, large]
    assert link.send(b"large", large)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.one_of(st.none(), st.integers(1, 12_000_000)), max_size=40))
def test_whatever_is_sent_comes_once_in_order_and_whole(listener: HaloListener, steps: list[int | None]) -> None:
    """Pieces of any size, taken out at any time: those that were refused are gone, all others are as they were."""
    link = HaloLink(listener.address)
    peer = listener.accept()
    assert peer is not None
    waiting: list[bytes] = []
    for number, size in enumerate([*steps, *([None] * len(steps))]):
        if size is None:
            assert received(peer) == waiting.pop(0) if waiting else peer.receive() == []
        elif link.send(b"h", payload := bytes([number]) * size):
            waiting.append(payload)
    link.close()
    listener.forget(peer)


def test_a_closed_link_leaves_no_files(listener: HaloListener) -> None:
    before = num_files()
    link = HaloLink(listener.address)
    peer = listener.accept()
    assert peer is not None
    assert link.send(b"h", bytes(200_000))
    assert peer.receive()
    link.close()
    assert peer.receive() is None
    listener.forget(peer)
    assert num_files() == before


def test_without_room_for_the_memory_pieces_take_another_way(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    link, peer = pair

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no room")

    with monkeypatch.context() as patched:
        patched.setattr(os, "posix_fallocate", full)
        assert not link.send(b"h", bytes(200_000))
        patched.setattr(os, "memfd_create", full)
        other = HaloLink(f"unix:@{peer._socket.getsockname()[1:].decode()}")
        assert not other.send(b"h", bytes(200_000))
        other.close()
    assert link.send(b"h", b"1" * 200_000)
    assert received(peer) == b"1" * 200_000


def test_a_receiver_without_memory_lives_on(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    link, peer = pair
    assert link.send(b"h", bytes(200_000))

    def full(*_: object) -> bytearray:
        raise MemoryError

    monkeypatch.setattr(shared_memory.Incoming, "take", full)
    assert peer.receive() is None


def test_a_sender_hears_that_its_peer_has_gone(listener: HaloListener) -> None:
    for size in (100, 200_000):
        link = HaloLink(listener.address)
        peer = listener.accept()
        assert peer is not None
        assert link.send(b"h", bytes(200_000))
        listener.forget(peer)
        with pytest.raises(OSError, match=r"[Pp]ipe|reset"):
            link.send(b"h", bytes(size))
        link.close()


SHRINK, GROW, SEAL = 0x0002, 0x0004, 0x0001
ALL, SIZE = SHRINK | GROW | SEAL, shared_memory.NUM_BYTES


@pytest.mark.parametrize(
    ("seals", "size", "packet"),
    [
        (0, SIZE, (1, 2, 0, 100)),
        (GROW | SEAL, SIZE, (1, 2, 0, 100)),
        (SHRINK | SEAL, SIZE, (1, 2, 0, 100)),
        (SHRINK | GROW, SIZE, (1, 2, 0, 100)),
        (ALL, SIZE - 1, (1, 2, 0, 100)),
        (ALL, 0, (1, 2, 0, 0)),
        (ALL, SIZE, (1, 2, 0, SIZE + 1)),
        (ALL, SIZE, (1, 2, SIZE, 1)),
        (ALL, SIZE, (1, 1, 0, 100)),
        (None, 0, (1, 2, 0, 100)),
        (None, 0, (1, 1, 0, 0)),
        (None, 0, (1, 3, 0, 0)),
    ],
)
def test_what_no_honest_sender_does_ends_the_connection(
    listener: HaloListener, pair: Pair, seals: int | None, size: int, packet: tuple[int, int, int, int]
) -> None:
    _, peer = pair
    with stranger_to(listener) as (stranger, accepted):
        files = [] if seals is None else [memory_file(size, seals)]
        socket.send_fds(stranger, [struct.pack("<HHII", *packet) + b"h"], files)
        for file in files:
            os.close(file)
        assert accepted.receive() is None
    assert peer.receive() == []


def test_a_second_file_is_refused(listener: HaloListener) -> None:
    """Or places of the first would be read from the second."""
    with stranger_to(listener) as (stranger, accepted):
        for number in range(2):
            file = memory_file(SIZE, ALL)
            socket.send_fds(stranger, [struct.pack("<HHII", 1, 2, 0, 100) + b"h"], [file])
            os.close(file)
            assert (accepted.receive() is None) == (number == 1)


def test_a_file_that_is_no_memory_is_refused(listener: HaloListener, tmp_path: Path) -> None:
    with stranger_to(listener) as (stranger, accepted), (tmp_path / "x").open("w+b") as file:
        file.truncate(SIZE)
        socket.send_fds(stranger, [struct.pack("<HHII", 1, 2, 0, 100) + b"h"], [file.fileno()])
        assert accepted.receive() is None


def test_a_full_buffer_refuses_and_waits_for_nobody(pair: Pair) -> None:
    link, peer = pair
    sent = 0
    while link.send(b"h", bytes(100_000)):
        sent += 1
        assert sent < 10_000
    assert sent > 0
    received = 0
    while peer.receive():
        received += 1
    assert received == sent
    assert link.send(b"h", b"again")


def test_a_peer_that_has_gone_is_told_from_one_that_is_silent(pair: Pair) -> None:
    link, peer = pair
    assert peer.receive() == []
    link.close()
    assert peer.receive() is None


def test_junk_ends_the_connection_only(listener: HaloListener, pair: Pair) -> None:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    raw.connect(listener.address.removeprefix("unix:").replace("@", "\0", 1))
    stranger = listener.accept()
    assert stranger is not None
    raw.send(b"x")
    assert stranger.receive() is None
    listener.forget(stranger)
    raw.close()
    link, peer = pair
    assert link.send(b"h", b"still here")
    assert peer.receive()


def test_another_user_is_not_let_in(listener: HaloListener, monkeypatch: pytest.MonkeyPatch) -> None:
    link = HaloLink(listener.address)
    monkeypatch.setattr(os, "getuid", lambda: 4242)
    assert listener.accept() is None
    assert listener.peers == []
    with pytest.raises(PermissionError, match="belongs to another user"):
        HaloLink(listener.address)
    link.close()


def test_nobody_there_is_an_error_at_once() -> None:
    with pytest.raises(OSError, match=r"refused|No such"):
        HaloLink("unix:@edgedi-nobody")


def test_a_closed_listener_leaves_its_name_free() -> None:
    first = HaloListener()
    first.close()
    with pytest.raises(OSError, match=r"refused"):
        HaloLink(first.address)


def test_processes_of_one_machine_agree_on_its_name() -> None:
    name = machine_name()
    assert name is not None
    assert name == machine_name()
    assert len(name) == 16
