"""Packets between workers of one machine: whole or not at all, from the same user only, never waiting."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgedi.runtime.links import halo_links, shared_memory
from edgedi.runtime.links.halo_links import MOST_BYTES, HaloLink, HaloListener, HaloPeer, machine_name

pytestmark = pytest.mark.skipif(not halo_links.supported(), reason="this system has no packet sockets with credentials")

Pair = tuple[HaloLink, HaloPeer]


def num_files() -> int:
    """Open ones of this process."""
    return len(os.listdir("/proc/self/fd"))


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
    """Files are opened for the first ones only; here each process has one for each slot."""
    link, peer = pair
    before = num_files()
    for number in range(20):
        payload = bytes([number]) * (300_000 + 1_000 * number)
        assert link.send(b"h", payload)
        frames = peer.receive()
        assert frames is not None
        assert frames[1] == payload
    assert num_files() <= before + 2 * 2


def test_large_pieces_that_wait_lie_beside_each_other(pair: Pair) -> None:
    link, peer = pair
    sent = [os.urandom(size) for size in (200_000, 1_000_000, 200_000, 131_072, 400_000)]
    for payload in sent:
        assert link.send(b"h", payload)
    assert [frames[1] for _ in sent if (frames := peer.receive())] == sent


def test_a_slow_receiver_is_sent_no_more_than_fits_into_memory(pair: Pair) -> None:
    link, peer = pair
    size, sent = shared_memory.MOST_BYTES // 4, 0
    while link.send(b"h", bytes([sent]) * size):
        sent += 1
    assert sent == 4
    assert link.send(b"h", b"small")
    assert [frames[1][0] for _ in range(sent) if (frames := peer.receive())] == [0, 1, 2, 3]
    assert link.send(b"h", bytes([9]) * size)
    assert [bytes(frames[1][:5]) for _ in range(2) if (frames := peer.receive())] == [b"small", bytes([9]) * 5]


def test_slots_too_small_make_room_for_larger_ones(pair: Pair) -> None:
    """The receiver hears of another file under the same number."""
    link, peer = pair
    before = num_files()
    for size in (shared_memory.MOST_BYTES // 2, shared_memory.MOST_BYTES // 2 + 1, shared_memory.MOST_BYTES):
        payload = os.urandom(size)
        assert link.send(b"h", payload)
        frames = peer.receive()
        assert frames is not None
        assert frames[1] == payload
    assert num_files() == before + 2
    assert not link.send(b"h", bytes(shared_memory.MOST_BYTES + 1))


def test_what_a_full_socket_refused_leaves_its_slot_free(pair: Pair) -> None:
    link, peer = pair
    payload = os.urandom(200_000)
    assert link.send(b"h", payload)
    assert peer.receive()
    while link.send(b"h", bytes(100_000)):
        pass
    for _ in range(shared_memory.MOST_SLOTS + 1):  # one slot that is known, or new ones: none is lost
        assert not link.send(b"large", payload)
        assert not link.send(b"large", payload * 2)
    while peer.receive():
        pass
    for one in (payload, payload * 2):
        assert link.send(b"large", one)
        frames = peer.receive()
        assert frames is not None
        assert frames[1] == one


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


SHRINK, GROW, SEAL = 0x0002, 0x0004, 0x0001


@pytest.mark.parametrize(
    ("seals", "size", "packet"),
    [
        (0, 65_536, (1, 1, 100)),
        (GROW | SEAL, 65_536, (1, 1, 100)),
        (SHRINK | SEAL, 65_536, (1, 1, 100)),
        (SHRINK | GROW, 65_536, (1, 1, 100)),
        (SHRINK | GROW | SEAL, 65_536, (1, 1, 65_537)),
        (SHRINK | GROW | SEAL, 65_536, (1, shared_memory.MOST_SLOTS + 1, 100)),
        (SHRINK | GROW | SEAL, shared_memory.MOST_BYTES + 1, (1, 1, 100)),
        (SHRINK | GROW | SEAL, 0, (1, 1, 0)),
        (None, 0, (1, 1, 100)),
        (None, 0, (1, 7, 0)),
    ],
)
def test_what_no_honest_sender_does_ends_the_connection(
    listener: HaloListener, pair: Pair, seals: int | None, size: int, packet: tuple[int, int, int]
) -> None:
    _, peer = pair
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect("\0" + listener.address.removeprefix("unix:@"))
        accepted = listener.accept()
        assert accepted is not None
        files = []
        if seals is not None:
            files.append(os.memfd_create("mine", os.MFD_ALLOW_SEALING))
            os.ftruncate(files[0], size)
            fcntl.fcntl(files[0], 1033, seals)
        socket.send_fds(stranger, [struct.pack("<HHI", *packet) + b"h"], files)
        for file in files:
            os.close(file)
        assert accepted.receive() is None
    assert peer.receive() == []


def test_a_file_that_is_no_memory_is_refused(listener: HaloListener, tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger, (tmp_path / "x").open("w+b") as file:
        stranger.connect("\0" + listener.address.removeprefix("unix:@"))
        accepted = listener.accept()
        assert accepted is not None
        file.write(bytes(70_000))
        file.flush()
        socket.send_fds(stranger, [struct.pack("<HHI", 1, 1, 100) + b"h"], [file.fileno()])
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
