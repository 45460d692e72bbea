"""Pieces between processes on one machine: Unix sockets that carry one piece as one packet, beside ZeroMQ.

ZeroMQ moves bytes in a thread of its own, which on a one-core worker takes the core from the computation, several times
for every halo; a packet on a Unix socket is one system call of the thread that computes. A packet is sent whole or not
at all, so a full buffer never blocks anybody: the caller then takes ZeroMQ's link. Order does not matter, pieces are
named. A piece too large for a packet is written to a memory file, sealed, and its descriptor is the packet's: one copy
in, none out. The seals are what a receiver insists on, as a file that shrinks under a reader kills the reader.

Only processes of the same user may connect: both sides ask the kernel whose process the other is. Names are abstract,
so a worker that is killed leaves nothing behind, and no network namespace sees another's.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import mmap
import os
import secrets
import socket
import struct
from pathlib import Path

from edgedi.runtime.wire.codec import LIMITS
from edgedi.runtime.wire.payloads import Buffer

MOST_BYTES = 131_072
"""Largest packet: some of them must fit into a socket's buffer (208 kB by default on Linux). Larger ones are files."""
SCHEME = "unix:"
_LENGTH = struct.Struct("<H")
_ALIGNMENT = 16
_BUFFER_BYTES = 4 << 20
_CREDENTIALS = struct.Struct("3i")
_SEALS = 0x0001 | 0x0002 | 0x0004 | 0x0008
"""F_SEAL_SEAL, _SHRINK, _GROW and _WRITE of Linux; ``fcntl`` of Python 3.10 has them, its type stubs elsewhere not."""
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034


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
        """Send one piece; ``False`` where the buffer is full or there is no memory, and nothing was sent."""
        start = _LENGTH.size + len(header)
        gap = -start % _ALIGNMENT
        if start + gap + len(payload) > MOST_BYTES:
            return self._send_as_file(header, payload)
        try:
            self._socket.sendmsg([_LENGTH.pack(len(header)), header, bytes(gap), payload])
        except (BlockingIOError, InterruptedError):
            return False
        return True

    def _send_as_file(self, header: Buffer, payload: Buffer) -> bool:
        try:
            file = _sealed(payload)
        except OSError:
            return False
        try:
            socket.send_fds(self._socket, [_LENGTH.pack(len(header)), header], [file])
        except (BlockingIOError, InterruptedError):
            return False
        finally:
            os.close(file)
        return True

    def close(self) -> None:
        self._socket.close()


def receive(peer: socket.socket) -> list[memoryview] | None:
    """One packet as (header, payload), an empty list for none waiting, ``None`` when the peer has gone or errs."""
    try:
        packet, files, _, _ = socket.recv_fds(peer, MOST_BYTES, 1, socket.MSG_CMSG_CLOEXEC)
    except (BlockingIOError, InterruptedError):
        return []
    except OSError:
        return None
    try:
        return _frames(packet, files)
    except (OSError, ValueError):
        return None
    finally:
        for file in files:
            os.close(file)


def _frames(packet: bytes, files: list[int]) -> list[memoryview] | None:
    if len(packet) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack_from(packet)
    start = _LENGTH.size + length
    view = memoryview(packet)
    payload = _opened(files[0]) if files else view[start + (-start % _ALIGNMENT) :]
    return [view[_LENGTH.size : start], payload]


def _sealed(payload: Buffer) -> int:
    """A memory file of these bytes that nobody can change any more. ``OSError`` where there is no room for it."""
    file = os.memfd_create("edgedi-piece", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        rest = memoryview(payload).cast("B")
        while len(rest):
            rest = rest[os.write(file, rest) :]
        fcntl.fcntl(file, _F_ADD_SEALS, _SEALS)
    except OSError:
        os.close(file)
        raise
    return file


def _opened(file: int) -> memoryview:
    """The bytes of a memory file, not copied. ``ValueError`` if it could still change or is too large."""
    if fcntl.fcntl(file, _F_GET_SEALS) & _SEALS != _SEALS:
        raise ValueError("the file is not sealed")
    size = os.fstat(file).st_size
    if not 0 < size <= LIMITS["payload_bytes"]:
        raise ValueError(f"a file of {size} bytes")
    flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all pages at once, not one fault for each
    return memoryview(mmap.mmap(file, size, flags=flags, prot=mmap.PROT_READ))


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
