"""Operators that work element by element, and those that mix along a dimension: softmax, norms, products."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edgedi.partition.capture.aten.call import Call, Handler, Made
from edgedi.partition.capture.aten.shapes import sliced
from edgedi.partition.capture.builder import Symbol, dtype_name

# --- element by element ----------------------------------------------------------------------------------------------


def _unary(function: str, *names: str) -> Handler:
    def handle(call: Call) -> Made:
        values = tuple(call.get(name) for name in names)
        return call.add("unary", attributes={"function": function, "arguments": values})

    return handle


def _pow(call: Call) -> Made:
    return call.add("unary", attributes={"function": "pow", "arguments": (call["exponent"],)})


def _clamp_min(call: Call) -> Made:
    return call.add("unary", attributes={"function": "clamp", "arguments": (call["min"], None)})


def _binary(function: str) -> Handler:
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
    first, second = (sliced(call, f"{call.name}.{k}", dim, k * half, (k + 1) * half) for k in range(2))
    gate = call.builder.add(
        f"{call.name}.gate", "unary", (second,), call.shape, attributes={"function": "sigmoid", "arguments": ()}
    )
    return call.add("binary", (first, gate), attributes={"function": "mul", "alpha": 1})


def _shaped(value: float) -> Handler:
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


# --- mixing along a dimension -----------------------------------------------------------------------------------------


def _softmax(log: bool) -> Handler:
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


# --- the table ---

_UNARY: dict[str, tuple[str, ...]] = {
    "relu": (), "sigmoid": (), "tanh": (), "silu": (), "hardswish": (), "hardsigmoid": (), "selu": (), "mish": (),
    "exp": (), "log": (), "sqrt": (), "rsqrt": (), "abs": (), "neg": (), "erf": (), "sin": (), "cos": (),
    "square": (), "reciprocal": (),
    "gelu": ("approximate",), "hardtanh": ("min_val", "max_val"), "leaky_relu": ("negative_slope",),
    "elu": ("alpha", "scale", "input_scale"), "celu": ("alpha",), "softplus": ("beta", "threshold"),
    "clamp": ("min", "max"), "log_sigmoid": (), "threshold": ("threshold", "value"),
}  # fmt: skip

HANDLERS: dict[str, Handler] = {
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
    **dict.fromkeys(("aten.zeros_like.default", "aten.new_zeros.default"), _shaped(0)),
    **dict.fromkeys(("aten.ones_like.default", "aten.new_ones.default"), _shaped(1)),
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
