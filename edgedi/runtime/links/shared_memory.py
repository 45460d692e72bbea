"""Memory of two processes of one machine: the sender copies a piece in, the receiver copies it out, again and again.

A new memory file for each piece is simpler, but then the kernel finds and clears its pages each time, which takes
several times as long as both copies (``bench/large_pieces.py`` says how long here).

One file for each link and direction. It is sealed against growing and shrinking, and a receiver insists on that: a file
that shrinks under a reader kills the reader. What is in it may still change, so nothing is read twice.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from edgedi.runtime.wire.payloads import Buffer

NUM_BYTES = 32 << 20
"""Of the file; pages that were never used take no memory. Where that is too little, pieces take another way."""
_ALIGNMENT = mmap.PAGESIZE
_SEALS = 0x0001 | 0x0002 | 0x0004
"""F_SEAL_SEAL, _SHRINK and _GROW of Linux; ``fcntl`` of Python 3.10 has them, its type stubs elsewhere not."""
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034


class Outgoing:
    """The sender's side. A place that was filled stays as it is until the receiver has said that it is free.

    ``OSError`` where the system has no memory files, or no room for one.
    """

    def __init__(self) -> None:
        self.file = os.memfd_create("edgedi-pieces", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.file, NUM_BYTES)
            fcntl.fcntl(self.file, _F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self.file, NUM_BYTES)
        except OSError:
            os.close(self.file)
            raise
        self._taken: dict[int, int] = {}
        """Length of each place that is in use, by where it begins."""
        self._backed = 0
        """Up to here the file has pages: writing where there is no memory for one would kill this process."""

    def put(self, payload: Buffer) -> int | None:
        """Copy ``payload`` in; where it begins, or ``None`` where there is no gap. ``OSError`` if memory runs out."""
        size = memoryview(payload).nbytes
        start = self._gap(size)
        if start is None:
            return None
        stop = start + size
        if stop > self._backed:
            os.posix_fallocate(self.file, self._backed, stop - self._backed)
            self._backed = stop
        self._memory[start:stop] = payload
        self._taken[start] = size
        return start

    def freed(self, start: int) -> None:
        """The receiver has read the place, or what was put there was not sent."""
        self._taken.pop(start, None)

    def close(self) -> None:
        self._memory.close()
        os.close(self.file)

    def _gap(self, size: int) -> int | None:
        """The first one: pages at the beginning are used again and again, those behind them perhaps never."""
        start = 0
        for taken in sorted(self._taken):
            if start + size <= taken:
                break
            start = -(-(taken + self._taken[taken]) // _ALIGNMENT) * _ALIGNMENT
        return start if start + size <= NUM_BYTES else None


class Incoming:
    """The receiver's side."""

    def __init__(self, file: int) -> None:
        """``file`` remains the caller's to close. ``ValueError`` for what no honest sender gives."""
        try:
            sealed = fcntl.fcntl(file, _F_GET_SEALS) & _SEALS == _SEALS
        except OSError:
            sealed = False
        if not sealed or os.fstat(file).st_size != NUM_BYTES:
            raise ValueError("the file is no memory, not as long as it should be, or may still change its length")
        self._memory = mmap.mmap(file, NUM_BYTES, prot=mmap.PROT_READ)

    def take(self, start: int, size: int) -> bytearray:
        """A copy of so many bytes from ``start`` on. ``ValueError`` where there are none."""
        if start + size > NUM_BYTES:
            raise ValueError(f"{size} bytes from {start} on are more than there are")
        with memoryview(self._memory) as view:
            return bytearray(view[start : start + size])

    def close(self) -> None:
        self._memory.close()
