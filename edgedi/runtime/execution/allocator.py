"""The C library's allocator, told how a worker uses memory. Elsewhere than on glibc nothing happens."""

from __future__ import annotations

import contextlib
import ctypes

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1  # glibc's malloc.h
_KEEP_BYTES = 1 << 30


def keep_freed_memory() -> None:
    """Keep freed maps instead of returning them to the kernel, which would clear the pages again for every layer."""
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(_MMAP_THRESHOLD, _KEEP_BYTES)
        libc.mallopt(_TRIM_THRESHOLD, _KEEP_BYTES)


def release_freed_memory() -> None:
    """Give back to the kernel what loading and measuring have freed: from here on memory is for requests."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)
