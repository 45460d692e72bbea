"""Packets between workers of one machine: whole or not at all, from the same user only, never waiting."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator

import pytest

from edgedi.runtime.links import halo_links
from edgedi.runtime.links.halo_links import MOST_BYTES, HaloLink, HaloListener, machine_name, receive

pytestmark = pytest.mark.skipif(not halo_links.supported(), reason="this system has no packet sockets with credentials")


@pytest.fixture
def listener() -> Iterator[HaloListener]:
    made = HaloListener()
    yield made
    made.close()


@pytest.fixture
def pair(listener: HaloListener) -> Iterator[tuple[HaloLink, socket.socket]]:
    link = HaloLink(listener.address)
    peer = listener.accept()
    assert peer is not None
    yield link, peer
    link.close()


@pytest.mark.parametrize("header", [b"h", b"header", bytes(200)])
@pytest.mark.parametrize("size", [0, 1, 15, 16, 57_344])
def test_a_packet_arrives_as_it_was_sent(pair: tuple[HaloLink, socket.socket], header: bytes, size: int) -> None:
    link, peer = pair
    payload = os.urandom(size)
    assert link.send(header, memoryview(payload))
    frames = receive(peer)
    assert frames is not None
    assert [bytes(frame) for frame in frames] == [header, payload]
    assert receive(peer) == []


def test_packets_keep_their_borders(pair: tuple[HaloLink, socket.socket]) -> None:
    link, peer = pair
    for number in range(5):
        assert link.send(bytes([number]), bytes([number]) * 100)
    for number in range(5):
        frames = receive(peer)
        assert frames is not None
        assert bytes(frames[1]) == bytes([number]) * 100


@pytest.mark.parametrize("size", [MOST_BYTES, MOST_BYTES + 1, 3_000_001])
def test_a_large_piece_travels_as_a_sealed_file(pair: tuple[HaloLink, socket.socket], size: int) -> None:
    link, peer = pair
    payload = bytearray(os.urandom(size))
    sent = bytes(payload)
    before = len(os.listdir("/proc/self/fd"))
    assert link.send(b"header", memoryview(payload))
    payload[:] = bytes(size)  # what is written later is not seen
    frames = receive(peer)
    assert frames is not None
    assert [bytes(frame) for frame in frames] == [b"header", sent]
    assert frames[1].readonly
    frames.clear()
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("seals", [0, 0x0002, 0x0002 | 0x0008])
def test_a_file_that_could_still_change_is_refused(
    listener: HaloListener, pair: tuple[HaloLink, socket.socket], seals: int
) -> None:
    _, peer = pair
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        stranger.connect("\0" + listener.address.removeprefix("unix:@"))
        accepted = listener.accept()
        assert accepted is not None
        file = os.memfd_create("mine", os.MFD_ALLOW_SEALING)
        os.write(file, bytes(5_000))
        fcntl.fcntl(file, 1033, seals)
        socket.send_fds(stranger, [b"\x01\x00h"], [file])
        os.close(file)
        assert receive(accepted) is None
    assert receive(peer) == []


def test_a_full_buffer_refuses_and_waits_for_nobody(pair: tuple[HaloLink, socket.socket]) -> None:
    link, peer = pair
    sent = 0
    while link.send(b"h", bytes(100_000)):
        sent += 1
        assert sent < 10_000
    assert sent > 0
    received = 0
    while receive(peer):
        received += 1
    assert received == sent
    assert link.send(b"h", b"again")


def test_a_peer_that_has_gone_is_told_from_one_that_is_silent(pair: tuple[HaloLink, socket.socket]) -> None:
    link, peer = pair
    assert receive(peer) == []
    link.close()
    assert receive(peer) is None


def test_junk_ends_the_connection_only(listener: HaloListener, pair: tuple[HaloLink, socket.socket]) -> None:
    raw = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    raw.connect(listener.address.removeprefix("unix:").replace("@", "\0", 1))
    stranger = listener.accept()
    assert stranger is not None
    raw.send(b"x")
    assert receive(stranger) is None
    listener.forget(stranger)
    raw.close()
    link, peer = pair
    assert link.send(b"h", b"still here")
    assert receive(peer)


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
