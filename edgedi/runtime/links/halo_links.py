"""Pieces between processes on one machine: Unix sockets that carry one piece as one packet, beside ZeroMQ.

ZeroMQ moves bytes in a thread of its own, which on a one-core worker takes the core from the computation, several times
for every halo; a packet on a Unix socket is one system call of the thread that computes. A packet is sent whole or not
at all, so a full buffer never blocks anybody: the caller then takes ZeroMQ's link. Order does not matter, pieces are
named. A piece too large for a packet goes through memory that both processes share (``shared_memory``), and the packet
names its place there; the receiver copies it out and says, by a packet back, that the place is free.

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
_HEAD = struct.Struct("<HHII")
"""The header's length, where the payload is; of one in shared memory where it begins, and its length."""
_HERE, _SHARED, _SHARED_FIRST = range(3)
"""In the packet; in the memory whose file came before; in the memory whose file comes with the packet."""
_FREED = struct.Struct("<I")
"""Where the place began that may be used again."""
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
        self._socket = connected
        self._memory: Incoming | None = None
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
        except (OSError, ValueError, struct.error, MemoryError):
            return None
        finally:
            for file in files:
                os.close(file)

    def _frames(self, packet: bytes, files: list[int]) -> list[Buffer] | None:
        if not packet:
            return None
        length, where, start, size = _HEAD.unpack_from(packet)
        stop, view = _HEAD.size + length, memoryview(packet)
        header = view[_HEAD.size : stop]
        if where == _HERE:
            return [header, view[stop + (-stop % _ALIGNMENT) :]]
        if where == _SHARED_FIRST and self._memory is None and files:
            self._memory = Incoming(files[0])
        elif where != _SHARED or self._memory is None:
            raise ValueError("a file that was not announced, or none that was, or a second one")
        payload = self._memory.take(start, size)
        with contextlib.suppress(OSError):  # whoever has gone needs no place
            self._socket.send(_FREED.pack(start))
        return [header, payload]

    def close(self) -> None:
        self._socket.close()
        if self._memory is not None:
            self._memory.close()


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
        """Take one waiting connection; ``None`` if it is another user's, or this process may open no more files."""
        try:
            connected, _ = self.listener.accept()
        except OSError:
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
        self._socket = _packet_socket()
        self._memory: Outgoing | None = None
        self._is_known = False
        """Whether the peer has the memory's file."""
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
        """Send one piece; ``False`` where the buffer is full or there is no memory, and nothing was sent.

        Other errors, ``OSError``, say that the peer has gone.
        """
        start = _HEAD.size + len(header)
        gap = -start % _ALIGNMENT
        if start + gap + len(payload) > MOST_BYTES:
            return self._send_shared(header, payload)
        try:
            self._socket.sendmsg([_HEAD.pack(len(header), _HERE, 0, 0), header, bytes(gap), payload])
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def _send_shared(self, header: Buffer, payload: Buffer) -> bool:
        start = self._put(payload)
        if self._memory is None or start is None:
            return False
        where = _SHARED if self._is_known else _SHARED_FIRST
        packet = [_HEAD.pack(len(header), where, start, len(payload)), header]
        try:
            if self._is_known:
                self._socket.sendmsg(packet)
            else:
                socket.send_fds(self._socket, packet, [self._memory.file])
        except (BlockingIOError, InterruptedError):
            self._memory.freed(start)
            return False
        self._is_known = True
        return True

    def _put(self, payload: Buffer) -> int | None:
        """Where in shared memory it lies now; ``None`` where there is no room."""
        try:
            if self._memory is None:
                self._memory = Outgoing()
            self._hear(self._memory)
            return self._memory.put(payload)
        except ConnectionError:  # the peer has gone
            raise
        except OSError:
            return None

    def _hear(self, memory: Outgoing) -> None:
        """Which places the peer has read."""
        with contextlib.suppress(BlockingIOError, InterruptedError):
            while len(said := self._socket.recv(_FREED.size)) == _FREED.size:
                memory.freed(*_FREED.unpack(said))

    def close(self) -> None:
        self._socket.close()
        if self._memory is not None:
            self._memory.close()


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
