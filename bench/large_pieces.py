"""What a large piece costs between two processes of one machine: memory that is used again, and a new file for each.

    .venv/bin/python -m bench.large_pieces

Milliseconds of sending and receiving together, in turn, both ends in this process. New memory costs what the kernel
takes to find and clear its pages: little on a quiet machine of one's own, several times a copy where a virtual machine
gives freed pages back to its host.
"""

from __future__ import annotations

import mmap
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.table import Table

from edgedi.runtime.links.halo_links import HaloLink, HaloListener, supported
from edgedi.runtime.wire.payloads import Buffer

SIZES_BYTES = (200_000, 600_000, 1_600_000, 6_000_000)
ROUNDS, WARM = 300, 20

Pass = Callable[[bytes], Buffer]
"""A piece from one end to the other."""


@contextmanager
def used_again() -> Iterator[Pass]:
    """As pieces go: through the memory of a link."""
    listener = HaloListener()
    link = HaloLink(listener.address)
    peer = listener.accept()
    assert peer is not None

    def passed(payload: bytes) -> Buffer:
        if not link.send(b"header", payload):
            raise RuntimeError(f"a piece of {len(payload)} bytes is not sent")
        frames = peer.receive()
        assert frames
        return frames[1]

    try:
        yield passed
    finally:
        link.close()
        listener.close()


def new_file(payload: bytes) -> bytearray:
    """Written to a memory file of its own, and mapped from there."""
    file = os.memfd_create("edgedi-bench", os.MFD_CLOEXEC)
    try:
        os.write(file, payload)
        with mmap.mmap(file, len(payload), flags=mmap.MAP_SHARED | mmap.MAP_POPULATE, prot=mmap.PROT_READ) as mapped:
            return bytearray(mapped[:1])  # a receiver may read it where it lies
    finally:
        os.close(file)


def measured(passes: dict[str, Pass], size_bytes: int) -> dict[str, list[float]]:
    """Seconds of every round, by name."""
    payload, taken = os.urandom(size_bytes), {name: list[float]() for name in passes}
    for round_ in range(WARM + ROUNDS):
        for name, passed in passes.items():
            started_s = time.perf_counter()
            passed(payload)
            if round_ >= WARM:
                taken[name].append(time.perf_counter() - started_s)
    return taken


def main() -> int:
    if not supported():
        print("this system has no packet sockets with credentials, or no memory files", file=sys.stderr)
        return 2
    table = Table(box=box.SIMPLE_HEAD, title="milliseconds, median and 9 of 10", title_justify="left")
    table.add_column("bytes", justify="right")
    with used_again() as again:
        passes: dict[str, Pass] = {"used again": again, "a new file": new_file}
        for name in passes:
            table.add_column(name, justify="right")
        for size_bytes in SIZES_BYTES:
            found = measured(passes, size_bytes).values()
            cells = (f"{1e3 * statistics.median(s):.3f}  {1e3 * statistics.quantiles(s, n=10)[8]:.3f}" for s in found)
            table.add_row(f"{size_bytes:,}", *cells)
    Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
