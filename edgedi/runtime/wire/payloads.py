"""A tensor as bytes, without an engine: element types, orders of elements, and how many bytes that makes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

Buffer: TypeAlias = bytes | bytearray | memoryview

ITEM_BYTES = {
    "float32": 4,
    "float64": 8,
    "bfloat16": 2,
    "float16": 2,
    "uint8": 1,
    "int64": 8,
    "int32": 4,
    "bool": 1,
}
"""The closed list of element types, and the bytes of one element (little-endian)."""

LAYOUTS = ("nchw", "nhwc")
"""Order of a payload's bytes; shapes are always written batch, channels, rows, columns."""


def tensor_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Return the bytes of a dense tensor; ``ValueError`` for an unknown ``dtype`` or a negative size."""
    item_bytes = ITEM_BYTES.get(dtype)
    if item_bytes is None:
        raise ValueError(f"dtype must be one of {', '.join(ITEM_BYTES)}, not {dtype[:24]!r}")
    if shape and min(shape) < 0:
        raise ValueError(f"sizes of a shape must not be negative, not {tuple(shape)}")
    return math.prod(shape) * item_bytes


def buffer_bytes(payload: Buffer) -> int:
    """Return the bytes of a raw buffer; ``ValueError`` if they do not lie one after the other."""
    if type(payload) is bytes:
        return len(payload)
    view = memoryview(payload)
    if not view.c_contiguous:
        raise ValueError("a payload's bytes must lie one after the other (C-contiguous)")
    return view.nbytes
