"""What a process knows of its own memory: the marks of the system, and not those of the process it was started from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from edgedi.runtime.worker.device import memory_bytes, peak_memory_bytes

COUNTED_LATE_BYTES = 2_000_000
"""Linux adds up what each processor counted only now and then."""
HAS_MARKS = Path("/proc/self/status").exists()
SAY = "from edgedi.runtime.worker.device import *; print(memory_bytes(), peak_memory_bytes())"


def test_the_peak_follows_what_is_taken_and_does_not_come_down():
    before = peak_memory_bytes()
    assert memory_bytes() <= before + COUNTED_LATE_BYTES
    taken = bytearray(200_000_000)
    taken[::4096] = bytes(len(range(0, len(taken), 4096)))  # touched, or it would not be resident
    high = peak_memory_bytes()
    assert high >= memory_bytes() > 200_000_000
    del taken
    assert peak_memory_bytes() >= high - COUNTED_LATE_BYTES


@pytest.mark.skipif(not HAS_MARKS, reason="only Linux tells a program's own peak apart from its parent's")
def test_a_process_is_not_as_large_as_its_parent_was():
    """``ru_maxrss`` says so on Linux, which would make every local worker as large as its coordinator."""
    taken = b"x" * 300_000_000
    said = subprocess.run([sys.executable, "-c", SAY], capture_output=True, text=True, check=True).stdout
    now, peak = map(int, said.split())
    assert 0 < now <= peak < len(taken)
