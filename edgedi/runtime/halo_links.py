"""Halos between workers on one machine: Unix sockets that carry one piece as one packet, beside ZeroMQ.

ZeroMQ moves bytes in a thread of its own, which on a one-core worker takes the core from the computation, several times
for every halo; a packet on a Unix socket is one system call of the thread that computes. A packet is sent whole or not
at all, so a full buffer never blocks anybody: the caller then takes ZeroMQ's link, as it does for large pieces. Order
does not matter, pieces are named.

Only processes of the same user may connect: both sides ask the kernel whose process the other is. Names are abstract,
so a worker that is killed leaves nothing behind, and no network namespace sees another's.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import socket
import struct
from pathlib import Path

from edgedi.runtime.messages import Buffer

MOST_BYTES = 131_072
"""Largest packet: some of them must fit into a socket's buffer (208 kB by default on Linux)."""
SCHEME = "unix:"
_LENGTH = struct.Struct("<H")
_ALIGNMENT = 16
_BUFFER_BYTES = 4 << 20
_CREDENTIALS = struct.Struct("3i")


def supported() -> bool:
    """Whether this system has packet sockets with peer credentials (Linux)."""
    return hasattr(socket, "AF_UNIX") and hasattr(socket, "SOCK_SEQPACKET") and hasattr(socket, "SO_PEERCRED")


def machine_name() -> str | None:
    """The same for two processes exactly when they can reach each other's Unix sockets and share a network.

    Processes in different network namespaces are different machines: that is what namespaces are for.
    """
    if not supported():
        return None
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        network = os.readlink("/proc/self/ns/net")
        return hashlib.sha256(f"{boot}/{network}/{os.getuid()}".encode()).hexdigest()[:16]
    except OSError:
        return None


class HaloListener:
    """Takes packets from peers. ``sockets`` are to be polled; ``receive`` then gives what is there, without waiting."""

    def __init__(self) -> None:
        name = f"edgedi-{secrets.token_hex(16)}"
        self.address = f"{SCHEME}@{name}"
        self.listener = _packet_socket()
        self.listener.bind(f"\0{name}")
        self.listener.listen(64)
        self.peers: list[socket.socket] = []

    def accept(self) -> socket.socket | None:
        """Take one waiting connection; ``None`` if it is another user's."""
        try:
            peer, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError):
            return None
        if _user_of(peer) != os.getuid():
            peer.close()
            return None
        peer.setblocking(False)
        self.peers.append(peer)
        return peer

    def forget(self, peer: socket.socket) -> None:
        """Drop a connection that has ended."""
        self.peers.remove(peer)
        peer.close()

    def close(self) -> None:
        """Close everything."""
        for peer in [*self.peers, self.listener]:
            peer.close()
        self.peers.clear()


class HaloLink:
    """Sends packets to one peer."""

    def __init__(self, address: str) -> None:
        self._socket = _packet_socket()
        self._socket.setblocking(True)
        self._socket.settimeout(5.0)
        try:
            self._socket.connect(address.removeprefix(SCHEME).replace("@", "\0", 1))
            if _user_of(self._socket) != os.getuid():
                raise PermissionError(f"{address} belongs to another user")
        except OSError:
            self._socket.close()
            raise
        self._socket.setblocking(False)

    def send(self, header: Buffer, payload: Buffer) -> bool:
        """Send one piece; ``False`` where it is too large or the buffer is full, and nothing was sent."""
        start = _LENGTH.size + len(header)
        gap = -start % _ALIGNMENT
        if start + gap + len(payload) > MOST_BYTES:
            return False
        try:
            self._socket.sendmsg([_LENGTH.pack(len(header)), header, bytes(gap), payload])
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def close(self) -> None:
        self._socket.close()


def receive(peer: socket.socket) -> list[memoryview] | None:
    """One packet as (header, payload), an empty list for none waiting, ``None`` when the peer has gone."""
    try:
        packet = peer.recv(MOST_BYTES)
    except (BlockingIOError, InterruptedError):
        return []
    except OSError:
        return None
    if len(packet) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(packet)
    start = _LENGTH.size + length
    view = memoryview(packet)
    return [view[_LENGTH.size : start], view[start + (-start % _ALIGNMENT) :]]


def _user_of(connected: socket.socket) -> int:
    """User number of the process at the other end, by the kernel's word."""
    credentials = connected.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return int(_CREDENTIALS.unpack(credentials)[1])


def _packet_socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    with contextlib.suppress(OSError):  # more than the system allows is cut to what it does
        made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    return made
