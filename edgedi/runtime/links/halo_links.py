"""Pieces between processes on one machine: Unix sockets that carry one piece as one packet, beside ZeroMQ.

ZeroMQ moves bytes in a thread of its own, which on a one-core worker takes the core from the computation, several times
for every halo; a packet on a Unix socket is one system call of the thread that computes. A packet is sent whole or not
at all, so a full buffer never blocks anybody: the caller then takes ZeroMQ's link. Order does not matter, pieces are
named. A piece too large for a packet goes through memory that both processes share, and the packet names the slot that
it lies in; the receiver copies it out and says, by a packet back, that the slot is free (``shared_memory``).

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

from edgedi.runtime.links.shared_memory import Incoming, Outgoing
from edgedi.runtime.wire.payloads import Buffer

MOST_BYTES = 131_072
"""Largest packet: some of them must fit into a socket's buffer (208 kB by default on Linux)."""
SCHEME = "unix:"
_HEAD = struct.Struct("<HHI")
"""The header's length; in which slot of shared memory the payload lies, counted from 1, or 0; how long it is there."""
_FREED = struct.Struct("<H")
_ALIGNMENT = 16
_BUFFER_BYTES = 4 << 20
_CREDENTIALS = struct.Struct("3i")


def supported() -> bool:
    """Whether this system has packet sockets with peer credentials, and memory files (Linux)."""
    needed = ("AF_UNIX", "SOCK_SEQPACKET", "SO_PEERCRED", "send_fds")
    return all(hasattr(socket, name) for name in needed) and hasattr(os, "memfd_create")


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


class HaloPeer:
    """A process that sends us packets. To be polled by its ``fileno``."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket, self._slots = connected, Incoming()
        connected.setblocking(False)

    def fileno(self) -> int:
        return self._socket.fileno()

    def receive(self) -> list[Buffer] | None:
        """One packet as [header, payload], an empty list for none waiting, ``None`` when the peer has gone or errs."""
        try:
            packet, files, _, _ = socket.recv_fds(self._socket, MOST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError:
            return None
        try:
            return self._frames(packet, files)
        except (OSError, ValueError, struct.error):
            return None
        finally:
            for file in files:
                os.close(file)

    def _frames(self, packet: bytes, files: list[int]) -> list[Buffer] | None:
        if not packet:
            return None
        length, place, size = _HEAD.unpack_from(packet)
        start, view = _HEAD.size + length, memoryview(packet)
        header = view[_HEAD.size : start]
        if not place:
            return [header, view[start + (-start % _ALIGNMENT) :]]
        number = place - 1
        if files:
            self._slots.open(number, files[0])
        payload = self._slots.take(number, size)
        with contextlib.suppress(OSError):  # whoever has gone needs no slot
            self._socket.send(_FREED.pack(number))
        return [header, payload]

    def close(self) -> None:
        self._socket.close()
        self._slots.close()


class HaloListener:
    """Takes packets from peers. They and ``listener`` are to be polled."""

    def __init__(self) -> None:
        name = f"edgedi-{secrets.token_hex(16)}"
        self.address = f"{SCHEME}@{name}"
        self.listener = _packet_socket()
        self.listener.bind(f"\0{name}")
        self.listener.listen(64)
        self.peers: list[HaloPeer] = []

    def accept(self) -> HaloPeer | None:
        """Take one waiting connection; ``None`` if it is another user's."""
        try:
            connected, _ = self.listener.accept()
        except (BlockingIOError, InterruptedError):
            return None
        if _user_of(connected) != os.getuid():
            connected.close()
            return None
        peer = HaloPeer(connected)
        self.peers.append(peer)
        return peer

    def forget(self, peer: HaloPeer) -> None:
        """Drop a connection that has ended."""
        self.peers.remove(peer)
        peer.close()

    def close(self) -> None:
        """Close everything."""
        self.listener.close()
        for peer in self.peers:
            peer.close()
        self.peers.clear()


class HaloLink:
    """Sends packets to one peer."""

    def __init__(self, address: str) -> None:
        self._socket, self._slots = _packet_socket(), Outgoing()
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
        """Send one piece; ``False`` where the buffer is full or there is no memory, and nothing was sent."""
        start = _HEAD.size + len(header)
        gap = -start % _ALIGNMENT
        if start + gap + len(payload) > MOST_BYTES:
            return self._send_by_slot(header, payload)
        try:
            self._socket.sendmsg([_HEAD.pack(len(header), 0, 0), header, bytes(gap), payload])
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def _send_by_slot(self, header: Buffer, payload: Buffer) -> bool:
        self._hear()
        try:
            found = self._slots.put(payload)
        except OSError:
            return False
        if found is None:
            return False
        number, file = found
        packet = [_HEAD.pack(len(header), number + 1, len(payload)), header]
        try:
            if file is None:
                self._socket.sendmsg(packet)
            else:
                socket.send_fds(self._socket, packet, [file])
        except (BlockingIOError, InterruptedError):
            if file is None:
                self._slots.freed(number)
            else:
                self._slots.forget(number)
            return False
        finally:
            if file is not None:
                os.close(file)
        return True

    def _hear(self) -> None:
        """Which slots the peer has read."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while len(said := self._socket.recv(_FREED.size)) == _FREED.size:
                self._slots.freed(*_FREED.unpack(said))

    def close(self) -> None:
        self._socket.close()
        self._slots.close()


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
