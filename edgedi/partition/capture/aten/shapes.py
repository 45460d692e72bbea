"""Operators that move, cut or resample elements without mixing channels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from edgedi.partition.capture.aten.call import Call, Handler, Made
from edgedi.partition.capture.builder import Symbol

# --- shapes ----------------------------------------------------------------------------------------------------------


def _reshape(call: Call) -> Made:
    return call.input if call.shape == call.input.shape else call.add("reshape")


def _permute(call: Call) -> Made:
    dims = tuple(dim % call.input.rank for dim in call["dims"])
    return call.add("permute", attributes={"dims": dims})


def _transpose(call: Call) -> Made:
    rank = call.input.rank
    first, second = (call["dim0"] % rank, call["dim1"] % rank) if "dim0" in call.args else (rank - 2, rank - 1)
    dims = list(range(rank))
    dims[first], dims[second] = second, first
    return call.add("permute", attributes={"dims": tuple(dims)})


def _cat(call: Call) -> Made:
    tensors = [item for item in call["tensors"] if math.prod(item.shape)]
    inputs = tuple(call.builder.symbol(item, call.target.dtype) for item in tensors)
    if any(item.dtype != call.target.dtype for item in inputs):
        return None
    if len(inputs) == 1:
        return inputs[0]
    return call.add("cat", inputs, attributes={"dim": call["dim"] % inputs[0].rank})


def _stack(call: Call) -> Made:
    dim, parts = call["dim"] % len(call.shape), []
    for index, item in enumerate(call["tensors"]):
        x = call.builder.symbol(item, call.target.dtype)
        if x.dtype != call.target.dtype:
            return None
        shape = (*x.shape[:dim], 1, *x.shape[dim:])
        parts.append(call.builder.add(f"{call.name}.{index}", "reshape", (x,), shape))
    return parts[0] if len(parts) == 1 else call.add("cat", parts, attributes={"dim": dim})


def _rearranged(call: Call, view: Sequence[int], dims: Sequence[int]) -> Symbol:
    """View, permute, flatten back: the three steps of the shuffles."""
    x = call.builder.add(f"{call.name}.view", "reshape", (call.input,), view)
    moved = tuple(view[dim] for dim in dims)
    x = call.builder.add(f"{call.name}.moved", "permute", (x,), moved, attributes={"dims": tuple(dims)})
    return call.builder.add(call.name, "reshape", (x,), call.shape)


def _channel_shuffle(call: Call) -> Made:
    batch, channels, *rest = call.input.shape
    groups = call["groups"]
    view = (batch, groups, channels // groups, *rest)
    return _rearranged(call, view, (0, 2, 1, *range(3, len(view))))


def _pixel_unshuffle(call: Call) -> Made:
    if call.input.rank != 4:
        return None
    factor = call["downscale_factor"]
    batch, channels, rows, columns = call.input.shape
    view = (batch, channels, rows // factor, factor, columns // factor, factor)
    return _rearranged(call, view, (0, 1, 3, 5, 2, 4))


def sliced(call: Call, name: str, dim: int, start: int, stop: int, step: int = 1) -> Symbol:
    """Elements ``start`` to ``stop`` of the call's input along ``dim``; the input itself if that is all of it."""
    x = call.input
    shape = list(x.shape)
    shape[dim] = -(-(stop - start) // step)
    if shape[dim] == x.shape[dim]:
        return x
    return call.builder.add(name, "slice", (x,), shape, attributes={"dim": dim, "start": start, "step": step})


def _slice(call: Call) -> Made:
    dim = call["dim"] % call.input.rank
    length = call.input.shape[dim]
    start, stop, _ = slice(call.get("start"), call.get("end")).indices(length)
    return sliced(call, call.name, dim, start, max(start, stop), call["step"]) if stop > start else None


def _select(call: Call) -> Made:
    dim = call["dim"] % call.input.rank
    index = call["index"] % call.input.shape[dim]
    one = sliced(call, f"{call.name}.kept", dim, index, index + 1)
    return call.builder.add(call.name, "reshape", (one,), call.shape)


def _split(call: Call) -> Made:
    """``split``, ``split_with_sizes`` and ``chunk``: the exported results say where each part ends."""
    dim = call["dim"] % call.input.rank
    parts, start = [], 0
    for index, part in enumerate(call.value):
        stop = start + int(part.shape[dim])
        parts.append(sliced(call, f"{call.name}.{index}", dim, start, stop))
        start = stop
    return parts


def _unbind(call: Call) -> Made:
    dim = call["dim"] % call.input.rank
    kept = [sliced(call, f"{call.name}.kept{i}", dim, i, i + 1) for i in range(call.input.shape[dim])]
    return [call.builder.add(f"{call.name}.{i}", "reshape", (one,), call.shape) for i, one in enumerate(kept)]


def _pad(call: Call) -> Made:
    pads = list(call.get("pad") or call.get("padding"))
    return _padded(call, pads, call.get("mode", "constant"), call.get("value") or 0.0)


def _padded(call: Call, pads: list[int], mode: str, value: float) -> Made:
    rank = call.input.rank
    if min(pads, default=0) < 0:
        return None
    if not any(pads):
        return call.input
    before, after = [0] * rank, [0] * rank
    for index in range(len(pads) // 2):
        before[rank - 1 - index], after[rank - 1 - index] = pads[2 * index], pads[2 * index + 1]
    attributes = {"mode": mode, "before": tuple(before), "after": tuple(after), "value": value}
    return call.add("pad", attributes=attributes)


def _pad_mode(mode: str) -> Handler:
    return lambda call: _padded(call, list(call["padding"]), mode, 0.0)


def _resize(mode: str, antialias: bool = False) -> Handler:
    def handle(call: Call) -> Made:
        if call.input.rank != 4 or not call.input.dtype.is_floating_point:
            return None
        scales = call.get("scale_factors") or (call.get("scales_h"), call.get("scales_w"))
        attributes = {
            "mode": mode,
            "align_corners": bool(call.get("align_corners")),
            "antialias": antialias,
            "scales": None,
        }
        if all(scales) and not attributes["align_corners"]:  # torch then samples by the factors, not by the sizes
            attributes["scales"] = tuple(map(float, scales))
        return call.add("resize", attributes=attributes)

    return handle


def _expand(call: Call) -> Made:
    return call.input if call.shape == call.input.shape else call.add("expand")


def _roll(call: Call) -> Made:
    if not call["dims"]:
        return None
    dims = tuple(dim % call.input.rank for dim in call["dims"])
    return call.add("roll", attributes={"shifts": tuple(call["shifts"]), "dims": dims})


def _pixel_shuffle(call: Call) -> Made:
    return call.add("pixel_shuffle", attributes={"factor": call["upscale_factor"]})


# --- the table ---

HANDLERS: dict[str, Handler] = {
    **dict.fromkeys(
        (
            "aten.view.default", "aten._unsafe_view.default", "aten.reshape.default", "aten.flatten.using_ints",
            "aten.unsqueeze.default", "aten.squeeze.default", "aten.squeeze.dim", "aten.squeeze.dims",
            "aten.unflatten.int",
        ),
        _reshape,
    ),
    "aten.permute.default": _permute,
    "aten.transpose.int": _transpose,
    "aten.t.default": _transpose,
    "aten.cat.default": _cat,
    "aten.stack.default": _stack,
    "aten.channel_shuffle.default": _channel_shuffle,
    "aten.pixel_unshuffle.default": _pixel_unshuffle,
    "aten.slice.Tensor": _slice,
    "aten.select.int": _select,
    "aten.split.Tensor": _split,
    "aten.split_with_sizes.default": _split,
    "aten.chunk.default": _split,
    "aten.unbind.int": _unbind,
    "aten.pad.default": _pad,
    "aten.constant_pad_nd.default": _pad,
    **{f"aten.reflection_pad{n}d.default": _pad_mode("reflect") for n in (1, 2, 3)},
    **{f"aten.replication_pad{n}d.default": _pad_mode("replicate") for n in (1, 2, 3)},
    "aten.upsample_nearest2d.vec": _resize("nearest"),
    "aten.upsample_nearest2d.default": _resize("nearest"),
    "aten._upsample_nearest_exact2d.vec": _resize("nearest-exact"),
    "aten._upsample_nearest_exact2d.default": _resize("nearest-exact"),
    "aten.upsample_bilinear2d.vec": _resize("bilinear"),
    "aten.upsample_bilinear2d.default": _resize("bilinear"),
    "aten.upsample_bicubic2d.vec": _resize("bicubic"),
    "aten.upsample_bicubic2d.default": _resize("bicubic"),
    "aten._upsample_bilinear2d_aa.vec": _resize("bilinear", antialias=True),
    "aten._upsample_bilinear2d_aa.default": _resize("bilinear", antialias=True),
    "aten._upsample_bicubic2d_aa.vec": _resize("bicubic", antialias=True),
    "aten.expand.default": _expand,
    "aten.roll.default": _roll,
    "aten.pixel_shuffle.default": _pixel_shuffle,
}  # fmt: skip
