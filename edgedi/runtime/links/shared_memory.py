"""Memory of two processes of one machine: the sender copies a piece in, the receiver copies it out, again and again.

A new memory file for each piece is simpler, but then the kernel finds and clears its pages each time: for 1.6 MB that
took 0.5 ms, and 4.7 ms where a virtual machine had given them back to its host. Both copies take 0.3 ms.

Files are sealed against growing and shrinking, and a receiver insists on that: a file that shrinks under a reader kills
the reader. What is in them may still change, as the sender may be of ill will, so nothing is read twice.
"""

from __future__ import annotations

import fcntl
import mmap
import os

from edgedi.runtime.wire.payloads import Buffer

MOST_BYTES = 32 << 20
"""Of all slots of one link together. Where that is too little, pieces take another way."""
MOST_SLOTS = 64
_STEP_BYTES = 1 << 16
"""Slots are so many bytes long, or some times that: a piece a little larger than the last one finds room."""
_SEALS = 0x0001 | 0x0002 | 0x0004
"""F_SEAL_SEAL, _SHRINK and _GROW of Linux; ``fcntl`` of Python 3.10 has them, its type stubs elsewhere not."""
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_MAP = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)  # all pages at once, not one fault for each


class Outgoing:
    """The sender's side. A slot that was filled is not to be used until the receiver has said that it is free."""

    def __init__(self) -> None:
        self._slots: dict[int, mmap.mmap] = {}
        self._free: set[int] = set()

    def put(self, payload: Buffer) -> tuple[int, int | None] | None:
        """Copy ``payload`` into a slot: its number, and its file if the receiver has none for that number, or another.

        The file is the caller's to close. ``None`` where all slots are taken, ``OSError`` where there is no memory.
        """
        size = memoryview(payload).nbytes
        number, file = self._with_room(size), None
        if number is None:
            number = self._new_number(size)
            if number is None:
                return None
            file = self._made(number, size)
        self._free.discard(number)
        self._slots[number][:size] = payload
        return number, file

    def freed(self, number: int) -> None:
        """The receiver has read slot ``number``, or what was put there was not sent."""
        if number in self._slots:
            self._free.add(number)

    def forget(self, number: int) -> None:
        """The receiver has never seen the slot's file."""
        self._slots.pop(number).close()

    def close(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()
        self._free.clear()

    def _with_room(self, size: int) -> int | None:
        """The smallest free slot that holds so many bytes."""
        return min(
            (number for number in self._free if len(self._slots[number]) >= size),
            key=lambda number: len(self._slots[number]),
            default=None,
        )

    def _new_number(self, size: int) -> int | None:
        """Where a slot of so many bytes may be made: a new one, or in place of free ones that are too small."""
        for number in sorted(self._free, key=lambda number: len(self._slots[number])):
            if self._may_hold(size, len(self._slots)):
                break
            self._free.discard(number)
            self._slots.pop(number).close()
        if not self._may_hold(size, len(self._slots)):
            return None
        return next(number for number in range(MOST_SLOTS) if number not in self._slots)

    def _may_hold(self, size: int, count: int) -> bool:
        return count < MOST_SLOTS and sum(map(len, self._slots.values())) + _rounded(size) <= MOST_BYTES

    def _made(self, number: int, size: int) -> int:
        file = os.memfd_create("edgedi-pieces", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(file, _rounded(size))
            fcntl.fcntl(file, _F_ADD_SEALS, _SEALS)
            self._slots[number] = mmap.mmap(file, _rounded(size), flags=_MAP)
        except (OSError, ValueError):
            os.close(file)
            raise
        return file


class Incoming:
    """The receiver's side of one link."""

    def __init__(self) -> None:
        self._slots: dict[int, mmap.mmap] = {}

    def open(self, number: int, file: int) -> None:
        """Slot ``number`` lies in ``file``, from now on. ``ValueError`` for what no honest sender does."""
        before = self._slots.pop(number, None)
        if before is not None:
            before.close()
        if fcntl.fcntl(file, _F_GET_SEALS) & _SEALS != _SEALS:
            raise ValueError("the file may still change its length")
        size, others = os.fstat(file).st_size, sum(map(len, self._slots.values()))
        if not (0 <= number < MOST_SLOTS and 0 < size <= MOST_BYTES - others):
            raise ValueError(f"slot {number} of {size} bytes, beside others of {others}")
        self._slots[number] = mmap.mmap(file, size, flags=_MAP, prot=mmap.PROT_READ)

    def take(self, number: int, size: int) -> bytearray:
        """A copy of the first ``size`` bytes of a slot. ``ValueError`` where it has not as many."""
        slot = self._slots.get(number)
        if slot is None or size > len(slot):
            raise ValueError(f"no slot {number} with {size} bytes")
        with memoryview(slot) as view:
            return bytearray(view[:size])

    def close(self) -> None:
        for slot in self._slots.values():
            slot.close()
        self._slots.clear()


def _rounded(size: int) -> int:
    return -(-size // _STEP_BYTES) * _STEP_BYTES
