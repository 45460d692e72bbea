"""Convolution, linear layers, normalisation with kept statistics, pooling and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from edgedi.partition.capture.aten.call import Call, Handler, Made, pair
from edgedi.partition.capture.builder import Symbol

# --- convolution and linear ------------------------------------------------------------------------------------------


def _conv(call: Call) -> Made:
    x, weight = call["input"], call["weight"]
    bias, rank = call.get("bias"), len(call.shape) - 2
    if not isinstance(weight, Tensor) or isinstance(bias, Symbol) or weight.dim() != rank + 2:
        return None  # a computed weight, or a map without a batch dimension
    x = call.builder.symbol(x)
    kernel, dilation = tuple(weight.shape[2:]), pair(call["dilation"], rank)
    before, after = _conv_padding(call["padding"], kernel, dilation)
    attributes = {
        "kernel": kernel,
        "stride": pair(call["stride"], rank),
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
    both = (0,) * len(kernel) if padding == "valid" else pair(padding, len(kernel))
    return both, both


def _conv_transpose(call: Call) -> Made:
    weight, bias, rank = call["weight"], call.get("bias"), len(call.shape) - 2
    if not isinstance(weight, Tensor) or isinstance(bias, Symbol) or weight.dim() != rank + 2:
        return None
    attributes = {
        "kernel": tuple(weight.shape[2:]),
        "stride": pair(call["stride"], rank),
        "dilation": pair(call["dilation"], rank),
        "groups": call["groups"],
        "pad_before": pair(call["padding"], rank),
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


# --- pooling and reductions -----------------------------------------------------------------------------------------


def _pool(op: str) -> Handler:
    def handle(call: Call) -> Made:
        rank = len(call["kernel_size"]) if not isinstance(call["kernel_size"], int) else len(call.shape) - 2
        if call.input.rank != rank + 2:
            return None
        kernel = pair(call["kernel_size"], rank)
        attributes = {
            "kernel": kernel,
            "stride": pair(call["stride"], rank) if call["stride"] else kernel,
            "dilation": pair(call.get("dilation", 1), rank),
            "pad_before": pair(call["padding"], rank),
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


def _adaptive(op: str, function: str) -> Handler:
    def handle(call: Call) -> Made:
        size = call.shape[2:]
        if call.input.rank != len(call.shape) or len(size) != len(pair(call["output_size"], len(size))):
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


def _reduce(function: str) -> Handler:
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


# --- the table ---

HANDLERS: dict[str, Handler] = {
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
}  # fmt: skip
