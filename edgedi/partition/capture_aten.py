"""ATen operators as rows of the operator table: one handler per family.

A handler takes a ``Call`` (the node's arguments by schema name, resolved) and returns the symbol it made, a list of
symbols for operators with several outputs, or ``None`` where this use of the operator is not expressible: then it
becomes opaque. ``HANDLERS`` maps the printed name of the exported target to its handler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edgedi.partition.capture_builder import Builder, Symbol, dtype_name

Made = Symbol | list[Symbol] | None
_ONES = (1.0,)


@dataclass(frozen=True, slots=True)
class Call:
    """One exported call: its arguments by schema name (defaults filled in) and the shape of its result."""

    builder: Builder
    name: str
    args: dict[str, Any]
    value: Any

    @classmethod
    def of(cls, node: torch.fx.Node, builder: Builder) -> Call:
        schema = node.target._schema  # exported targets are operator overloads
        given = dict(zip((a.name for a in schema.arguments), node.args, strict=False)) | dict(node.kwargs)
        named = {a.name: given.get(a.name, a.default_value) for a in schema.arguments}  # in the schema's order
        return cls(builder, node.name, builder.resolve(named), node.meta["val"])

    def __getitem__(self, name: str) -> Any:
        return self.args[name]

    def get(self, name: str, default: Any = None) -> Any:
        return self.args.get(name, default)

    @property
    def input(self) -> Symbol:
        """The first argument, a tensor of the graph (constants become one)."""
        return self.builder.symbol(next(iter(self.args.values())))

    @property
    def target(self) -> Any:
        """The result as the exporter saw it; the first of several."""
        return self.value[0] if isinstance(self.value, (tuple, list)) else self.value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(size) for size in self.target.shape)

    def add(self, op: str, inputs: Sequence[Symbol] | None = None, **fields: Any) -> Symbol:
        """The layer that this call is."""
        inputs = (self.input,) if inputs is None else inputs
        return self.builder.add(self.name, op, inputs, self.shape, self.target.dtype, **fields)


def _pair(value: Any, rank: int, default: int = 1) -> tuple[int, ...]:
    """``value`` (a number, a list of 1 or ``rank``, or an empty list) as ``rank`` numbers."""
    items = [value] if isinstance(value, int) else list(value)
    items = items or [default]
    return tuple(items * rank if len(items) == 1 else items)


# --- convolution and linear ------------------------------------------------------------------------------------------


def _conv(call: Call) -> Made:
    x, weight = call["input"], call["weight"]
    bias, rank = call.get("bias"), len(call.shape) - 2
    if not isinstance(weight, Tensor) or isinstance(bias, Symbol) or weight.dim() != rank + 2:
        return None  # a computed weight, or a map without a batch dimension
    x = call.builder.symbol(x)
    kernel, dilation = tuple(weight.shape[2:]), _pair(call["dilation"], rank)
    before, after = _conv_padding(call["padding"], kernel, dilation)
    attributes = {
        "kernel": kernel,
        "stride": _pair(call["stride"], rank),
        "dilation": dilation,
        "groups": call["groups"],
        "pad_before": before,
        "pad_after": after,
    }
    return call.add("conv", (x,), attributes=attributes, weights={"weight": weight, "bias": bias})


def _conv_padding(padding: Any, kernel: tuple[int, ...], dilation: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return tuple(t // 2 for t in total), tuple(t - t // 2 for t in total)
    both = (0,) * len(kernel) if padding == "valid" else _pair(padding, len(kernel))
    return both, both


def _conv_transpose(call: Call) -> Made:
    weight, bias, rank = call["weight"], call.get("bias"), len(call.shape) - 2
    if not isinstance(weight, Tensor) or isinstance(bias, Symbol) or weight.dim() != rank + 2:
        return None
    attributes = {
        "kernel": tuple(weight.shape[2:]),
        "stride": _pair(call["stride"], rank),
        "dilation": _pair(call["dilation"], rank),
        "groups": call["groups"],
        "pad_before": _pair(call["padding"], rank),
    }
    return call.add("conv_transpose", attributes=attributes, weights={"weight": weight, "bias": bias})


def _convolution(call: Call) -> Made:
    return _conv_transpose(call) if call["transposed"] else _conv(call)


def _linear(call: Call) -> Made:
    weight, bias, x = call["weight"], call.get("bias"), call["input"]
    if not isinstance(weight, Tensor) or isinstance(bias, Symbol) or not isinstance(x, Symbol) or weight.dim() != 2:
        return None
    return call.add("linear", weights={"weight": weight, "bias": bias})


def _batch_norm(call: Call) -> Made:
    """Evaluation-mode batch normalisation is one multiplication and addition per channel, computed in float64."""
    mean, variance = call["running_mean"], call["running_var"]
    if call.get("training") or not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
        return None
    gamma = torch.ones_like(mean) if call.get("weight") is None else call["weight"]
    beta = torch.zeros_like(mean) if call.get("bias") is None else call["bias"]
    scale = gamma.double() / torch.sqrt(variance.double() + call["eps"])
    shift = beta.double() - mean.double() * scale
    dtype = call.target.dtype
    made = call.add("affine", weights={"scale": scale.to(dtype), "shift": shift.to(dtype)})
    return [made] if isinstance(call.value, (tuple, list)) else made


# --- element by element ----------------------------------------------------------------------------------------------


def _unary(function: str, *names: str) -> Callable[[Call], Made]:
    def handle(call: Call) -> Made:
        values = tuple(call.get(name) for name in names)
        return call.add("unary", attributes={"function": function, "arguments": values})

    return handle


def _pow(call: Call) -> Made:
    return call.add("unary", attributes={"function": "pow", "arguments": (call["exponent"],)})


def _clamp_min(call: Call) -> Made:
    return call.add("unary", attributes={"function": "clamp", "arguments": (call["min"], None)})


def _binary(function: str) -> Callable[[Call], Made]:
    """Two tensors, or a tensor and a number; ``alpha`` scales the second. Integer results stay opaque."""

    def handle(call: Call) -> Made:
        first, second = call.get("self", call.get("input")), call["other"]
        if call.get("rounding_mode") or not call.target.dtype.is_floating_point:
            return None
        attributes = {"function": function, "alpha": call.get("alpha") or 1}
        if isinstance(second, (int, float)):
            return call.add("binary", (call.builder.symbol(first),), attributes=attributes | {"scalar": second})
        inputs = tuple(call.builder.symbol(item, call.target.dtype) for item in (first, second))
        return call.add("binary", inputs, attributes=attributes)

    return handle


def _rsub(call: Call) -> Made:
    """``other - alpha * x`` as ``-alpha * x + other``, which rounds the same way."""
    other, alpha = call["other"], call.get("alpha") or 1
    if not isinstance(other, (int, float)) or not call.target.dtype.is_floating_point:
        return None
    negative = call.builder.add(
        f"{call.name}.negative", "binary", (call.input,), call.shape, attributes={"function": "mul", "scalar": -alpha}
    )
    return call.add("binary", (negative,), attributes={"function": "add", "alpha": 1, "scalar": other})


def _prelu(call: Call) -> Made:
    """One slope for all channels is a leaky ReLU: a weight of one element could not be cut along the channels."""
    weight = call["weight"]
    if not isinstance(weight, Tensor):
        return None
    if weight.numel() == 1:
        return call.add("unary", attributes={"function": "leaky_relu", "arguments": (float(weight),)})
    return call.add("prelu", weights={"weight": weight.reshape(-1)})


def _glu(call: Call) -> Made:
    dim = call["dim"] % call.input.rank
    half = call.shape[dim]
    first, second = (_sliced(call, f"{call.name}.{k}", dim, k * half, (k + 1) * half) for k in range(2))
    gate = call.builder.add(
        f"{call.name}.gate", "unary", (second,), call.shape, attributes={"function": "sigmoid", "arguments": ()}
    )
    return call.add("binary", (first, gate), attributes={"function": "mul", "alpha": 1})


def _shaped(value: float) -> Callable[[Call], Made]:
    """``zeros_like`` and its kind read the shape of their input and nothing of its content: constants."""

    def handle(call: Call) -> Any:
        return torch.full(call.shape, value, dtype=call.target.dtype)

    return handle


def _cast(call: Call) -> Made:
    if not isinstance(call.target, Tensor) or dtype_name(call.target.dtype) is None:
        return None
    if call.target.dtype == call.input.dtype:
        return call.input
    return call.add("cast")


# --- pooling and reductions -----------------------------------------------------------------------------------------


def _pool(op: str) -> Callable[[Call], Made]:
    def handle(call: Call) -> Made:
        rank = len(call["kernel_size"]) if not isinstance(call["kernel_size"], int) else len(call.shape) - 2
        if call.input.rank != rank + 2:
            return None
        kernel = _pair(call["kernel_size"], rank)
        attributes = {
            "kernel": kernel,
            "stride": _pair(call["stride"], rank) if call["stride"] else kernel,
            "dilation": _pair(call.get("dilation", 1), rank),
            "pad_before": _pair(call["padding"], rank),
            "ceil_mode": bool(call["ceil_mode"]),
        }
        if op == "avg_pool":
            attributes |= {
                "count_include_pad": bool(call["count_include_pad"]),
                "divisor": call.get("divisor_override"),
            }
        made = call.add(op, attributes=attributes)
        return [made] if isinstance(call.value, (tuple, list)) else made

    return handle


def _adaptive(op: str, function: str) -> Callable[[Call], Made]:
    def handle(call: Call) -> Made:
        size = call.shape[2:]
        if call.input.rank != len(call.shape) or len(size) != len(_pair(call["output_size"], len(size))):
            return None
        if size == call.input.shape[2:] and op == "adaptive_avg_pool":
            return call.input
        if set(size) == {1}:
            made = _reduction(call, function, tuple(range(2, len(call.shape))), keep=True)
        else:
            made = call.add(op, attributes={"size": size})
        return [made] if isinstance(call.value, (tuple, list)) else made

    return handle


def _reduction(call: Call, function: str, dims: Sequence[int], *, keep: bool) -> Symbol:
    """A reduction as two layers, so that workers can each reduce their own part and exchange only the results."""
    x = call.input
    dims = tuple(sorted(dim % x.rank for dim in dims))
    kept = tuple(1 if dim in dims else size for dim, size in enumerate(x.shape))
    count = math.prod(x.shape[dim] for dim in dims)
    kind = "max" if function == "max" else "sum"
    partial = call.builder.add(
        f"{call.name}.partial", "partial", (x,), (1, *kept), attributes={"function": kind, "dims": dims}
    )
    attributes = {"function": kind, "scale": 1.0 / count if function == "mean" else 1.0}
    if keep:
        return call.builder.add(call.name, "combine", (partial,), kept, attributes=attributes)
    total = call.builder.add(f"{call.name}.total", "combine", (partial,), kept, attributes=attributes)
    return call.builder.add(call.name, "reshape", (total,), call.shape)


def _reduce(function: str) -> Callable[[Call], Made]:
    def handle(call: Call) -> Made:
        if call.get("dtype") not in (None, call.input.dtype) or not call.input.dtype.is_floating_point:
            return None
        dims = call.get("dim")
        dims = [dims] if isinstance(dims, int) else list(dims or range(call.input.rank))
        return _reduction(call, function, dims, keep=bool(call.get("keepdim", False)))

    return handle


def _amin(call: Call) -> Made:
    """The minimum is the negated maximum of the negated."""
    x, dims = call.input, list(call["dim"] or range(call.input.rank))
    if not x.dtype.is_floating_point:
        return None
    negative = call.builder.add(f"{call.name}.negative", "unary", (x,), x.shape, attributes={"function": "neg"})
    inner = Call(call.builder, f"{call.name}.max", {"self": negative}, call.value)
    largest = _reduction(inner, "max", dims, keep=bool(call.get("keepdim", False)))
    return call.add("unary", (largest,), attributes={"function": "neg"})


def _vector_norm(call: Call) -> Made:
    """The Euclidean norm: the root of the sum of squares."""
    x = call.input
    if call["ord"] != 2 or call.get("dtype") not in (None, x.dtype) or not x.dtype.is_floating_point:
        return None
    dims = call.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(x.rank))
    square = call.builder.add(f"{call.name}.square", "unary", (x,), x.shape, attributes={"function": "square"})
    inner = Call(call.builder, f"{call.name}.sum", {"self": square}, call.value)
    total = _reduction(inner, "sum", dims, keep=bool(call.get("keepdim", False)))
    return call.add("unary", (total,), attributes={"function": "sqrt"})


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


def _sliced(call: Call, name: str, dim: int, start: int, stop: int, step: int = 1) -> Symbol:
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
    return _sliced(call, call.name, dim, start, max(start, stop), call["step"]) if stop > start else None


def _select(call: Call) -> Made:
    dim = call["dim"] % call.input.rank
    index = call["index"] % call.input.shape[dim]
    one = _sliced(call, f"{call.name}.kept", dim, index, index + 1)
    return call.builder.add(call.name, "reshape", (one,), call.shape)


def _split(call: Call) -> Made:
    """``split``, ``split_with_sizes`` and ``chunk``: the exported results say where each part ends."""
    dim = call["dim"] % call.input.rank
    parts, start = [], 0
    for index, part in enumerate(call.value):
        stop = start + int(part.shape[dim])
        parts.append(_sliced(call, f"{call.name}.{index}", dim, start, stop))
        start = stop
    return parts


def _unbind(call: Call) -> Made:
    dim = call["dim"] % call.input.rank
    kept = [_sliced(call, f"{call.name}.kept{i}", dim, i, i + 1) for i in range(call.input.shape[dim])]
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


def _pad_mode(mode: str) -> Callable[[Call], Made]:
    return lambda call: _padded(call, list(call["padding"]), mode, 0.0)


def _resize(mode: str, antialias: bool = False) -> Callable[[Call], Made]:
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


# --- mixing along a dimension -----------------------------------------------------------------------------------------


def _softmax(log: bool) -> Callable[[Call], Made]:
    def handle(call: Call) -> Made:
        if call.get("dtype") not in (None, call.input.dtype) or call.get("half_to_float"):
            return None
        return call.add("softmax", attributes={"dim": call["dim"] % call.input.rank, "log": log})

    return handle


def _layer_norm(call: Call) -> Made:
    weight, bias = call.get("weight"), call.get("bias")
    if isinstance(weight, Symbol) or isinstance(bias, Symbol):
        return None
    attributes = {"num_dims": len(call["normalized_shape"]), "eps": call["eps"]}
    made = call.add("layer_norm", attributes=attributes, weights={"weight": weight, "bias": bias})
    return [made] if isinstance(call.value, (tuple, list)) else made


def _group_norm(call: Call) -> Made:
    if isinstance(call.get("weight"), Symbol) or isinstance(call.get("bias"), Symbol):
        return None
    attributes = {"num_groups": call["num_groups"], "eps": call["eps"]}
    return call.add(
        "group_norm", attributes=attributes, weights={"weight": call.get("weight"), "bias": call.get("bias")}
    )


def _instance_norm(call: Call) -> Made:
    """Instance normalisation with its own statistics is group normalisation with one channel a group."""
    constant = not any(isinstance(call.get(name), Symbol) for name in ("weight", "bias"))
    if not call["use_input_stats"] or call.get("running_mean") is not None or not constant:
        return None
    attributes = {"num_groups": call.shape[1], "eps": call["eps"]}
    return call.add(
        "group_norm", attributes=attributes, weights={"weight": call.get("weight"), "bias": call.get("bias")}
    )


def _matmul(call: Call) -> Made:
    first, second = (call.builder.symbol(item) for item in list(call.args.values())[:2])
    return call.add("matmul", (first, second)) if min(first.rank, second.rank) >= 2 else None


def _einsum(call: Call) -> Made:
    """A product of two tensors over one letter, all other letters in common: a matrix product up to transposition."""
    equation, tensors = call["equation"].replace(" ", ""), call["tensors"]
    terms, arrow, result = equation.partition("->")
    letters = terms.split(",")
    if not arrow or len(letters) != 2 or "." in equation or len(set(map(len, [*letters, result]))) != 1:
        return None
    batch, rows, columns = result[:-2], result[-2:-1], result[-1:]
    inner = "".join(set(letters[0]) - set(result))
    orders = [(batch + rows + inner, batch + inner + rows), (batch + inner + columns, batch + columns + inner)]
    if len(inner) != 1 or any(len(set(term)) != len(term) for term in letters):
        return None
    if any(term not in accepted for term, accepted in zip(letters, orders, strict=True)):
        return None
    first, second = (
        _matrix(call, f"{call.name}.{index}", tensors[index], swapped=letters[index] != orders[index][0])
        for index in range(2)
    )
    return call.add("matmul", (first, second))


def _matrix(call: Call, name: str, tensor: Any, *, swapped: bool) -> Symbol:
    """``tensor`` as a symbol, its last two dimensions exchanged if asked."""
    x = call.builder.symbol(tensor)
    if not swapped:
        return x
    dims = (*range(x.rank - 2), x.rank - 1, x.rank - 2)
    shape = tuple(x.shape[dim] for dim in dims)
    return call.builder.add(name, "permute", (x,), shape, attributes={"dims": dims})


def _attention(call: Call) -> Made:
    plain = call.get("attn_mask") is None and not call.get("dropout_p") and not call.get("is_causal")
    if not plain or call.get("enable_gqa"):
        return None
    inputs = tuple(call.builder.symbol(call[name]) for name in ("query", "key", "value"))
    return call.add("attention", inputs, attributes={"scale": call.get("scale")})


# --- the table -------------------------------------------------------------------------------------------------------

_UNARY: dict[str, tuple[str, ...]] = {
    "relu": (), "sigmoid": (), "tanh": (), "silu": (), "hardswish": (), "hardsigmoid": (), "selu": (), "mish": (),
    "exp": (), "log": (), "sqrt": (), "rsqrt": (), "abs": (), "neg": (), "erf": (), "sin": (), "cos": (),
    "square": (), "reciprocal": (),
    "gelu": ("approximate",), "hardtanh": ("min_val", "max_val"), "leaky_relu": ("negative_slope",),
    "elu": ("alpha", "scale", "input_scale"), "celu": ("alpha",), "softplus": ("beta", "threshold"),
    "clamp": ("min", "max"), "log_sigmoid": (), "threshold": ("threshold", "value"),
}  # fmt: skip

HANDLERS: dict[str, Callable[[Call], Made]] = {
    **{f"aten.{name}.default": _unary(name, *arguments) for name, arguments in _UNARY.items()},
    **{f"aten.{name}.{kind}": _binary(name) for name in ("add", "sub", "mul", "div") for kind in ("Tensor", "Scalar")},
    "aten.relu6.default": lambda c: c.add("unary", attributes={"function": "hardtanh", "arguments": (0.0, 6.0)}),
    "aten.maximum.default": _binary("maximum"),
    "aten.minimum.default": _binary("minimum"),
    "aten.max.other": _binary("maximum"),
    "aten.min.other": _binary("minimum"),
    "aten.rsub.Scalar": _rsub,
    "aten.glu.default": _glu,
    "aten.pow.Tensor_Scalar": _pow,
    "aten.clamp_min.default": _clamp_min,
    "aten.prelu.default": _prelu,
    "aten._prelu_kernel.default": _prelu,
    **{f"aten.conv{n}d.{kind}": _conv for n in (1, 2, 3) for kind in ("default", "padding")},
    "aten.conv_transpose1d.default": _conv_transpose,
    "aten.conv_transpose2d.input": _conv_transpose,
    "aten.conv_transpose3d.input": _conv_transpose,
    "aten.convolution.default": _convolution,
    "aten.linear.default": _linear,
    "aten._native_batch_norm_legit_no_training.default": _batch_norm,
    "aten.batch_norm.default": _batch_norm,
    **{f"aten.max_pool{n}d.default": _pool("max_pool") for n in (1, 2, 3)},
    **{f"aten.avg_pool{n}d.default": _pool("avg_pool") for n in (1, 2, 3)},
    **{f"aten.adaptive_avg_pool{n}d.default": _adaptive("adaptive_avg_pool", "mean") for n in (1, 2, 3)},
    **{f"aten.adaptive_max_pool{n}d.default": _adaptive("adaptive_max_pool", "max") for n in (1, 2, 3)},
    "aten.mean.dim": _reduce("mean"),
    "aten.mean.default": _reduce("mean"),
    "aten.sum.dim_IntList": _reduce("sum"),
    "aten.sum.default": _reduce("sum"),
    "aten.amax.default": _reduce("max"),
    "aten.amin.default": _amin,
    "aten.linalg_vector_norm.default": _vector_norm,
    **dict.fromkeys(("aten.zeros_like.default", "aten.new_zeros.default"), _shaped(0)),
    **dict.fromkeys(("aten.ones_like.default", "aten.new_ones.default"), _shaped(1)),
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
    "aten.softmax.int": _softmax(log=False),
    "aten._softmax.default": _softmax(log=False),
    "aten.log_softmax.int": _softmax(log=True),
    "aten._log_softmax.default": _softmax(log=True),
    "aten.layer_norm.default": _layer_norm,
    "aten.native_layer_norm.default": _layer_norm,
    "aten.group_norm.default": _group_norm,
    "aten.instance_norm.default": _instance_norm,
    "aten.einsum.default": _einsum,
    "aten.matmul.default": _matmul,
    "aten.bmm.default": _matmul,
    "aten.scaled_dot_product_attention.default": _attention,
    "aten.to.dtype": _cast,
    "aten._to_copy.default": _cast,
}  # fmt: skip

IDENTITIES = frozenset(
    "aten.alias.default aten.detach.default aten.clone.default aten.contiguous.default "
    "aten.lift_fresh_copy.default aten.detach_.default".split()
)
"""Operators that pass their first argument on unchanged."""
DROPOUTS = frozenset(
    "aten.dropout.default aten.feature_dropout.default aten.alpha_dropout.default "
    "aten.feature_alpha_dropout.default".split()
)
"""Operators that do so unless their last argument, ``train``, is true."""
