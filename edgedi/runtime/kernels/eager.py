"""Every operator of the table through plain torch operators: right for any element type and device.

Makers run once, when a program is loaded; what they return runs once per request. Inputs arrive already narrowed to
the parts that the operator's rule names.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from edgedi.errors import LocalProtocolError
from edgedi.partition.graph.geometry import WHOLE, Interval
from edgedi.partition.graph.operator_rules import covering_groups, pad_source
from edgedi.runtime.kernels import windows
from edgedi.runtime.kernels.resample import resample
from edgedi.runtime.kernels.task import Kernel, Task

TORCH_DTYPES = {
    "float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16,
    "uint8": torch.uint8, "int64": torch.int64, "int32": torch.int32, "bool": torch.bool,
}  # fmt: skip

_UNARY: dict[str, Callable[..., Tensor]] = {
    "relu": torch.relu, "sigmoid": torch.sigmoid, "tanh": torch.tanh, "silu": F.silu, "hardswish": F.hardswish,
    "hardsigmoid": F.hardsigmoid, "hardtanh": F.hardtanh, "leaky_relu": F.leaky_relu, "selu": F.selu,
    "celu": F.celu, "mish": F.mish, "softplus": F.softplus, "exp": torch.exp, "log": torch.log, "sqrt": torch.sqrt,
    "rsqrt": torch.rsqrt, "abs": torch.abs, "neg": torch.neg, "erf": torch.erf, "sin": torch.sin, "cos": torch.cos,
    "square": torch.square, "reciprocal": torch.reciprocal, "pow": torch.pow, "clamp": torch.clamp,
    "gelu": lambda x, approximate="none": F.gelu(x, approximate=approximate),
    "elu": torch.ops.aten.elu.default, "log_sigmoid": F.logsigmoid, "threshold": F.threshold,
}  # fmt: skip

_BINARY = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "maximum": torch.maximum, "minimum": torch.minimum,
}  # fmt: skip

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_ADAPTIVE_MAX = {1: F.adaptive_max_pool1d, 2: F.adaptive_max_pool2d, 3: F.adaptive_max_pool3d}
_AVG_POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


def make(task: Task) -> Kernel:
    """The kernel of ``task``. ``LocalProtocolError`` for an operator that is not in the table."""
    maker = _MAKERS.get(task.layer.op)
    if maker is None:
        raise LocalProtocolError(f"operator {task.layer.op!r} of layer {task.layer.name} is not in the table")
    return maker(task)


# --- activations and element-wise -------------------------------------------------------------------------------------


def activation(task: Task) -> Callable[[Tensor], Tensor] | None:
    """The activation fused into the layer, if there is one."""
    name = task.layer.attribute("activation")
    return None if name is None else _bound(name, task.layer.attribute("activation_arguments", ()))


def _bound(name: str, arguments: Sequence[Any]) -> Callable[[Tensor], Tensor]:
    function = _UNARY[name]
    if name == "gelu":
        return lambda x: F.gelu(x, approximate=arguments[0] or "none")
    if name == "clamp":
        return lambda x: torch.clamp(x, arguments[0], arguments[1])
    given = tuple(argument for argument in arguments if argument is not None)
    return (lambda x: function(x, *given)) if given else function


def then_activate(kernel: Kernel, task: Task) -> Kernel:
    """``kernel`` followed by the fused activation, if there is one."""
    act = activation(task)
    return kernel if act is None else lambda *inputs: act(kernel(*inputs))


def _unary(task: Task) -> Kernel:
    return _bound(task.layer.attributes["function"], task.layer.attribute("arguments", ()))


def _binary(task: Task) -> Kernel:
    name, scalar = task.layer.attributes["function"], task.layer.attribute("scalar")
    function, alpha = _BINARY[name], task.layer.attribute("alpha", 1)
    if alpha != 1:
        if scalar is not None:
            return lambda x: function(x, scalar, alpha=alpha)
        return lambda x, y: function(x, y, alpha=alpha)
    if scalar is not None:
        return lambda x: function(x, scalar)
    return function


def _per_channel(weight: Tensor, rank: int) -> Tensor:
    return weight.reshape([1, -1] + [1] * (rank - 2))


def _affine(task: Task) -> Kernel:
    rank = task.layer.spec.rank
    scale, shift = (_per_channel(task.weights[role], rank) for role in ("scale", "shift"))
    return then_activate(lambda x: torch.addcmul(shift, x, scale), task)


def _prelu(task: Task) -> Kernel:
    weight = task.weights["weight"]
    return lambda x: torch.prelu(x, weight)


def _cast(task: Task) -> Kernel:
    dtype = TORCH_DTYPES[task.layer.spec.dtype]
    return lambda x: x.to(dtype)


def _constant(task: Task) -> Kernel:
    value = task.weights["value"]
    return lambda: value


# --- convolution and linear -------------------------------------------------------------------------------------------


def conv_groups(task: Task) -> tuple[int, tuple[int, int] | None]:
    """Groups to run for a channel split, and (first, number) of output channels to keep where groups are cut in two."""
    groups, out = task.layer.attributes["groups"], task.out
    if out is WHOLE or out.dim != 1 or groups == 1:
        return groups, None
    covering, per_group = covering_groups(task.layer, out.interval), task.layer.spec.shape[1] // groups
    first, made = out.interval.start - covering.start * per_group, len(covering) * per_group
    return len(covering), None if made == len(out.interval) else (first, len(out.interval))


def _conv(task: Task) -> Kernel:
    attributes, weights = task.layer.attributes, task.weights
    found = windows.borders(task)
    groups, keep = conv_groups(task)
    function, weight, bias = _CONV[len(found)], weights["weight"], weights.get("bias")
    stride, dilation, padding = attributes["stride"], attributes["dilation"], windows.symmetric(found)

    def conv(x: Tensor) -> Tensor:
        y = function(x, weight, bias, stride, padding, dilation, groups)
        return y if keep is None else y.narrow(1, *keep)

    padded = windows.wrap(conv, found)
    if attributes.get("residual"):
        return then_activate(lambda x, other: padded(x) + other, task)
    return then_activate(padded, task)


def _conv_transpose(task: Task) -> Kernel:
    """Run without padding or bias, then take the outputs that are wanted: beyond the last tap there is only bias."""
    attributes, bias = task.layer.attributes, task.weights.get("bias")
    rank = len(attributes["kernel"])
    function, weight = _CONV_TRANSPOSE[rank], task.weights["weight"]
    stride, dilation, groups = attributes["stride"], attributes["dilation"], attributes["groups"]
    shift = None if bias is None else _per_channel(bias, rank + 2)
    crops = [_transpose_crop(task, axis) for axis in range(rank)]
    pads = [pad for crop in reversed(crops) for pad in crop]

    def run(x: Tensor) -> Tensor:
        y = windows.pad_or_crop(function(x, weight, None, stride, 0, 0, groups, dilation), pads)
        return y if shift is None else y + shift

    return then_activate(run, task)


def _transpose_crop(task: Task, axis: int) -> tuple[int, int]:
    """(before, after) to add (negative: crop) so that the unpadded result becomes the wanted output interval."""
    attributes, dim, out = task.layer.attributes, axis + 2, task.out
    interval = out.interval if out is not WHOLE and out.dim == dim else Interval(0, task.layer.spec.shape[dim])
    part = task.parts[0]
    first = part.interval.start if part is not WHOLE and part.dim == dim else 0
    stride, before = attributes["stride"][axis], attributes["pad_before"][axis]
    made = (task.in_shape(0)[dim] - 1) * stride + attributes["dilation"][axis] * (attributes["kernel"][axis] - 1) + 1
    start = interval.start + before - first * stride
    return -start, start + len(interval) - made


def _linear(task: Task) -> Kernel:
    weight, bias = task.weights["weight"], task.weights.get("bias")
    return then_activate(lambda x: F.linear(x, weight, bias), task)


# --- pooling and reductions -------------------------------------------------------------------------------------------


def _max_pool(task: Task) -> Kernel:
    attributes = task.layer.attributes
    found = windows.borders(task)
    function, kernel, stride = _MAX_POOL[len(found)], attributes["kernel"], attributes["stride"]
    dilation, padding = attributes["dilation"], windows.symmetric(found)
    return windows.wrap(lambda x: function(x, kernel, stride, padding, dilation), found, value=-math.inf)


def _avg_pool(task: Task) -> Kernel:
    """Sums over explicitly padded windows, divided by what torch would divide by at the true border."""
    attributes, rank = task.layer.attributes, len(task.layer.attributes["kernel"])
    found = windows.borders(task, most_symmetric=(0,) * rank)
    kernel, stride = list(attributes["kernel"]), list(attributes["stride"])
    divisor = _avg_divisor(task)
    uniform = float(divisor.flatten()[0]) if bool((divisor == divisor.flatten()[0]).all()) else None
    function = _AVG_POOL[max(rank, 2)]

    def pool(x: Tensor) -> Tensor:
        if rank == 1:
            return function(x.unsqueeze(-1), [*kernel, 1], [*stride, 1], divisor_override=1).squeeze(-1)
        return function(x, kernel, stride, divisor_override=1)

    summed = windows.wrap(pool, found)
    return (lambda x: summed(x) / uniform) if uniform is not None else (lambda x: summed(x) / divisor)


def _avg_divisor(task: Task) -> Tensor:
    attributes, rank = task.layer.attributes, len(task.layer.attributes["kernel"])
    if attributes.get("divisor"):
        return torch.full((1,) * (rank + 2), float(attributes["divisor"]), dtype=torch.float64)
    counts = torch.ones((1,) * (rank + 2), dtype=torch.float64)
    for axis in range(rank):
        shape = [1] * (rank + 2)
        shape[axis + 2] = -1
        counts = counts * torch.tensor(_avg_counts(task, axis), dtype=torch.float64).reshape(shape)
    return counts.to(TORCH_DTYPES[task.layer.spec.dtype])


def _avg_counts(task: Task, axis: int) -> list[int]:
    attributes, dim, out = task.layer.attributes, axis + 2, task.out
    length, before = task.shapes[0][dim], attributes["pad_before"][axis]
    interval = out.interval if out is not WHOLE and out.dim == dim else Interval(0, task.layer.spec.shape[dim])
    counts = []
    for position in range(interval.start, interval.stop):
        start = position * attributes["stride"][axis] - before
        stop = min(start + attributes["kernel"][axis], length + before)
        if not attributes["count_include_pad"]:
            start, stop = max(start, 0), min(stop, length)
        counts.append(stop - start)
    return counts


def _adaptive_max(task: Task) -> Kernel:
    """Row by row: windows overlap when sizes do not divide."""
    size = task.layer.attributes["size"]
    function, out = _ADAPTIVE_MAX[len(size)], task.out
    if out is WHOLE or out.dim < task.layer.spec.rank - len(size):
        return lambda x: function(x, size)
    dim, length, total = out.dim, task.shapes[0][out.dim], task.layer.spec.shape[out.dim]
    part = task.parts[0]
    assert part is not WHOLE
    others = [1 if axis + 2 == dim else item for axis, item in enumerate(size)]
    spans = [
        (i * length // total - part.interval.start, -(-(i + 1) * length // total) - i * length // total)
        for i in range(out.interval.start, out.interval.stop)
    ]
    return lambda x: torch.cat([function(x.narrow(dim, *span), others) for span in spans], dim)


def _partial(task: Task) -> Kernel:
    dims = list(task.layer.attributes["dims"])
    if task.layer.attributes["function"] == "max":
        return lambda x: x.amax(dims, keepdim=True).unsqueeze(0)
    return lambda x: x.sum(dims, keepdim=True).unsqueeze(0)


def _combine(task: Task) -> Kernel:
    """Parts are added in the order of workers and in float64: the same plan gives the same bits."""
    scale, dtype = task.layer.attributes["scale"], TORCH_DTYPES[task.layer.spec.dtype]
    if task.layer.attributes["function"] == "max":
        return lambda parts: parts.amax(0)
    return lambda parts: (parts.sum(0, dtype=torch.float64) * scale).to(dtype)


# --- shapes -----------------------------------------------------------------------------------------------------------


def _cat(task: Task) -> Kernel:
    dim = task.layer.attributes["dim"]
    return lambda *tensors: torch.cat(tensors, dim) if len(tensors) > 1 else tensors[0]


def _slice(task: Task) -> Kernel:
    attributes, out = task.layer.attributes, task.out
    dim, step = attributes["dim"], attributes["step"]
    cut = out is not WHOLE and out.dim == dim
    start = 0 if cut else attributes["start"]
    count = task.out_shape[dim]
    if step == 1:
        return lambda x: x.narrow(dim, start, count)
    index = torch.arange(start, start + count * step, step)[:count]
    return lambda x: x.index_select(dim, index)


def _permute(task: Task) -> Kernel:
    dims = task.layer.attributes["dims"]
    return lambda x: x.permute(dims)


def _reshape(task: Task) -> Kernel:
    """The covering block of the input, flattened along the cut, narrowed to the wanted part, in the target's shape."""
    shape, out, part = task.out_shape, task.out, task.parts[0]
    if out is WHOLE or part is WHOLE:
        return lambda x: x.reshape(shape)
    after = math.prod(task.layer.spec.shape[out.dim + 1 :])
    inner = math.prod(task.shapes[0][part.dim + 1 :])
    start = out.interval.start * after - part.interval.start * inner
    wanted = len(out.interval) * after
    if (start, wanted) == (0, len(part.interval) * inner):
        return lambda x: x.reshape(shape)
    lead = math.prod(task.shapes[0][: part.dim])
    return lambda x: x.reshape(lead, -1).narrow(1, start, wanted).reshape(shape)


def _expand(task: Task) -> Kernel:
    shape = task.out_shape
    return lambda x: x.expand(shape)


def _pad(task: Task) -> Kernel:
    """Along the cut dimension positions are looked up in the whole map; the others are padded as torch does it."""
    attributes, out, rank = task.layer.attributes, task.out, task.layer.spec.rank
    mode, value = attributes["mode"], attributes.get("value", 0.0)
    before, after = list(attributes["before"]), list(attributes["after"])
    along = None
    if out is not WHOLE and (before[out.dim] or after[out.dim]):
        along = _pad_along(task, before[out.dim])
        before[out.dim] = after[out.dim] = 0
    pads = [pad for dim in reversed(range(rank)) for pad in (before[dim], after[dim])]
    last = max((dim for dim in range(rank) if before[dim] or after[dim]), default=-1)
    first = min((dim for dim in range(rank) if before[dim] or after[dim]), default=rank)
    if mode == "constant":
        rest: Kernel | None = (lambda x: F.pad(x, pads, value=value)) if last >= 0 else None
    else:
        rest = _mirror_all(before, after, mode, first, last, task)
    steps = [step for step in (along, rest) if step is not None]
    if len(steps) == 1:
        return steps[0]
    return lambda x: steps[1](steps[0](x)) if steps else x


def _mirror_all(before: list[int], after: list[int], mode: str, first: int, last: int, task: Task) -> Kernel | None:
    if last < 0:
        return None
    shape = task.in_shape(0)
    indices = {
        dim: torch.tensor([pad_source(i, shape[dim], mode) for i in range(-before[dim], shape[dim] + after[dim])])
        for dim in range(first, last + 1)
        if before[dim] or after[dim]
    }

    def run(x: Tensor) -> Tensor:
        for dim, index in indices.items():
            x = x.index_select(dim, index)
        return x

    return run


def _pad_along(task: Task, before: int) -> Kernel:
    out, part, attributes = task.out, task.parts[0], task.layer.attributes
    assert out is not WHOLE
    assert part is not WHOLE
    dim, length, rank = out.dim, task.shapes[0][out.dim], task.layer.spec.rank
    wanted = out.interval.shift(-before)
    if attributes["mode"] == "constant":
        pads = [0] * (2 * (rank - dim))
        pads[-2], pads[-1] = part.interval.start - wanted.start, wanted.stop - part.interval.stop
        return lambda x: windows.pad_or_crop(x, pads, attributes.get("value", 0.0))
    sources = [
        pad_source(i, length, attributes["mode"]) - part.interval.start for i in range(wanted.start, wanted.stop)
    ]
    index = torch.tensor(sources)
    return lambda x: x.index_select(dim, index)


def _pixel_shuffle(task: Task) -> Kernel:
    factor, out = task.layer.attributes["factor"], task.out
    if out is WHOLE or out.dim < task.layer.spec.rank - 2:
        return lambda x: F.pixel_shuffle(x, factor)
    part = task.parts[0]
    assert part is not WHOLE
    keep = (out.dim, out.interval.start - part.interval.start * factor, len(out.interval))
    return lambda x: F.pixel_shuffle(x, factor).narrow(*keep)


def _roll(task: Task) -> Kernel:
    shifts, dims = task.layer.attributes["shifts"], task.layer.attributes["dims"]
    return lambda x: torch.roll(x, shifts, dims)


# --- mixing along a dimension -----------------------------------------------------------------------------------------


def _softmax(task: Task) -> Kernel:
    dim = task.layer.attributes["dim"]
    function = torch.log_softmax if task.layer.attributes["log"] else torch.softmax
    return lambda x: function(x, dim)


def _layer_norm(task: Task) -> Kernel:
    attributes, weights = task.layer.attributes, task.weights
    shape = task.layer.spec.shape[-attributes["num_dims"] :]
    weight, bias, eps = weights.get("weight"), weights.get("bias"), attributes["eps"]
    return lambda x: F.layer_norm(x, shape, weight, bias, eps)


def _group_norm(task: Task) -> Kernel:
    attributes, weights = task.layer.attributes, task.weights
    num_groups, eps = attributes["num_groups"], attributes["eps"]
    weight, bias = weights.get("weight"), weights.get("bias")
    return lambda x: F.group_norm(x, num_groups, weight, bias, eps)


def _matmul(task: Task) -> Kernel:
    return torch.matmul


def _attention(task: Task) -> Kernel:
    scale = task.layer.attribute("scale")
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, scale=scale)


_MAKERS: dict[str, Callable[[Task], Kernel]] = {
    "conv": _conv, "conv_transpose": _conv_transpose, "linear": _linear, "affine": _affine, "unary": _unary,
    "binary": _binary, "prelu": _prelu, "cast": _cast, "constant": _constant, "max_pool": _max_pool,
    "avg_pool": _avg_pool, "adaptive_avg_pool": resample, "adaptive_max_pool": _adaptive_max, "partial": _partial,
    "combine": _combine, "cat": _cat, "slice": _slice, "permute": _permute, "reshape": _reshape, "expand": _expand,
    "pad": _pad, "pixel_shuffle": _pixel_shuffle, "roll": _roll, "softmax": _softmax, "layer_norm": _layer_norm,
    "group_norm": _group_norm, "matmul": _matmul, "attention": _attention, "resize": resample,
}  # fmt: skip
