"""Tensors as bytes: the order of elements on the wire, and between torch and buffers.

A map of rank 4 travels as [batch, rows, columns, channels] (``nhwc``), everything else as it is indexed (``nchw``).
Rows of a channels-last map are then one run of memory at batch 1, so a halo is a view and is sent without a copy.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor

from edgedi.partition.graph.graph import LayerGraph
from edgedi.partition.plan.program import Piece
from edgedi.runtime.kernels.eager import TORCH_DTYPES
from edgedi.runtime.wire.payloads import Buffer

__all__ = ["Tensor", "as_wide_as", "device_available", "from_wire", "inference", "made_on", "set_up_torch", "to_wire"]

_NAMES = {dtype: name for name, dtype in TORCH_DTYPES.items()}


def set_up_torch(threads: int, device: str) -> None:
    """What a worker sets once: threads per operator, and float32 that is float32 on every device."""
    torch.set_num_threads(threads)
    if device == "cpu":
        return  # and in a user's own process the settings below are the user's
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


@contextmanager
def as_wide_as(threads: int) -> Iterator[None]:
    """Within it torch's operators use so many threads: in the calling thread, and in those that it starts meanwhile."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def device_available(device: str) -> bool:
    """Whether torch can run on ``device`` (``cuda`` or ``mps``) here."""
    return bool(torch.cuda.is_available() if device == "cuda" else torch.backends.mps.is_available())


def inference() -> AbstractContextManager[object]:
    """Within it torch keeps no books for gradients; for the calling thread only."""
    return torch.inference_mode()


def made_on(device: str) -> AbstractContextManager[object]:
    """Within it new tensors are made on ``device``: tables that kernels read lie where they run."""
    return nullcontext() if device == "cpu" else torch.device(device)


def in_wire_order(tensor: Tensor) -> Tensor:
    """``tensor`` in host memory and in the wire's order of elements, so that pieces of it are sent as views."""
    if not tensor.is_cpu or tensor.requires_grad:
        tensor = tensor.detach().cpu()
    return tensor.contiguous(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor.contiguous()


def to_wire(tensor: Tensor) -> tuple[memoryview, str, tuple[int, ...], str]:
    """(bytes, element type, shape, layout) of ``tensor``; a view of its own memory where that is one run.

    Every halo comes through here, with cold caches: no call of torch that is not needed.
    """
    layout = "nhwc" if tensor.dim() == 4 else "nchw"
    stored = tensor.permute(0, 2, 3, 1) if layout == "nhwc" else tensor
    if not stored.is_cpu or stored.requires_grad:
        stored = stored.detach().cpu()
    if not stored.is_contiguous():
        stored = stored.contiguous()
    if stored.dtype == torch.bfloat16:  # numpy has none
        stored = stored.view(torch.int16)
    raw = memoryview(stored.numpy()).cast("B") if stored.numel() else memoryview(b"")
    return raw, _NAMES[tensor.dtype], tuple(tensor.shape), layout


def from_wire(buffer: Buffer, dtype: str, shape: Sequence[int], layout: str, *, own: bool) -> Tensor:
    """The tensor of ``shape`` that ``to_wire`` sent; with ``own`` in memory of its own, else a view of ``buffer``.

    A ``bytearray`` was put together for this message and is the tensor's own already.
    """
    stored_shape = [shape[0], *shape[2:], shape[1]] if layout == "nhwc" else shape
    flat = (
        torch.empty(0, dtype=TORCH_DTYPES[dtype]) if 0 in shape else torch.frombuffer(buffer, dtype=TORCH_DTYPES[dtype])
    )
    stored = (flat.clone() if own and not isinstance(buffer, bytearray) else flat).view(stored_shape)
    return stored.permute(0, 3, 1, 2) if layout == "nhwc" else stored


def _hear_of_read_only_buffers() -> None:
    """torch warns, once in a process, of a view of a read-only buffer; ours are never written. So it is done here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        torch.frombuffer(b"\0", dtype=torch.uint8)


_hear_of_read_only_buffers()


def noise(shape: Sequence[int]) -> Tensor:
    """Random float32 in the wire's order of elements, for measurements."""
    return in_wire_order(torch.rand(tuple(shape)))


def random_piece(piece: Piece, graph: LayerGraph) -> Tensor:
    """Noise in the shape and memory order of a piece of a tensor of ``graph``."""
    spec = graph.spec(piece.tensor)
    shape = [len(piece.interval) if dim == piece.dim else size for dim, size in enumerate(spec.shape)]
    return noise_of(shape, spec.dtype)


def noise_of(shape: Sequence[int], dtype: str) -> Tensor:
    """Noise of an element type."""
    return noise(shape).to(TORCH_DTYPES[dtype])


def element_type(tensor: Tensor) -> str:
    """Name of a tensor's element type, as specs and messages have it."""
    return _NAMES[tensor.dtype]
