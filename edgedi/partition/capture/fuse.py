"""Exact simplification of captured layers: fewer layers, the same function.

Batch normalisation goes into the convolution before it (in float64), a residual add becomes the convolution's second
input, an activation becomes an attribute. Each only where the tensor in between has no other reader, so that
nothing is computed twice. The order matters: fold, then add, then activate, as the arithmetic does.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from edgedi.partition.graph.graph import Layer, TensorSpec

_ACTIVATED = frozenset({"conv", "linear", "affine"})
FUSED_ACTIVATIONS = frozenset("relu sigmoid tanh silu gelu hardswish hardsigmoid hardtanh leaky_relu".split())

Slots = tuple[str | None, ...]
Merge = Callable[[Layer, Layer, dict[str, Tensor]], Layer | None]


def fuse(
    inputs: Mapping[str, TensorSpec], layers: Sequence[Layer], weights: Mapping[str, Tensor], outputs: Slots
) -> tuple[list[Layer], dict[str, Tensor], Slots]:
    """Layers without what can be folded away and without what nobody reads; weights with the folded ones added."""
    kept, held = _reachable(layers, outputs), dict(weights)
    specs = {**inputs, **{layer.name: layer.spec for layer in layers}}

    def fuse_add(first: Layer, second: Layer, held: dict[str, Tensor]) -> Layer | None:
        return _fuse_add(first, second, specs)

    for merge in (_fold_affine, _fold_scale, fuse_add, _fuse_activation):
        kept = _merge_pairs(kept, held, outputs, merge)
    return kept, held, outputs


def _reachable(layers: Sequence[Layer], outputs: Slots) -> list[Layer]:
    wanted = {name for name in outputs if name is not None}
    kept = []
    for layer in reversed(layers):
        if layer.name in wanted:
            kept.append(layer)
            wanted.update(layer.inputs)
    return kept[::-1]


def _merge_pairs(layers: Sequence[Layer], weights: dict[str, Tensor], outputs: Slots, merge: Merge) -> list[Layer]:
    """Merge each layer into the one that reads it, where ``merge`` knows how; the reader's name stays."""
    readers = Counter(name for layer in layers for name in layer.inputs)
    readers.update(name for name in outputs if name is not None)
    made: dict[str, Layer] = {}
    for layer in layers:
        current = layer
        for name in layer.inputs[::-1]:  # the later operand is nearer in time: merge that one first
            first = made.get(name)
            merged = merge(first, current, weights) if first is not None and readers[name] == 1 else None
            if merged is not None:
                del made[name]
                current = merged
                break
        made[current.name] = current
    return list(made.values())


def _fold_affine(first: Layer, second: Layer, weights: dict[str, Tensor]) -> Layer | None:
    if first.op not in ("conv", "conv_transpose") or second.op != "affine" or len(first.inputs) > 1:
        return None
    if first.op == "conv_transpose" and first.attributes["groups"] != 1:
        return None
    scale, shift = (weights[second.weights[role]].double() for role in ("scale", "shift"))
    return _folded(first, second, scale, shift, weights)


def _fold_scale(first: Layer, second: Layer, weights: dict[str, Tensor]) -> Layer | None:
    """A multiplication by a number after a convolution without activation."""
    number = second.attribute("scalar")
    if first.op != "conv" or second.op != "binary" or len(first.inputs) > 1 or second.attribute("function") != "mul":
        return None
    if number is None or second.spec != first.spec:
        return None
    channels = first.spec.shape[1]
    scale = torch.full((channels,), float(number), dtype=torch.float64)
    return _folded(first, second, scale, torch.zeros(channels, dtype=torch.float64), weights)


def _folded(first: Layer, second: Layer, scale: Tensor, shift: Tensor, weights: dict[str, Tensor]) -> Layer:
    weight = weights[first.weights["weight"]]
    channel_dim = 1 if first.op == "conv_transpose" else 0
    shape = [-1 if dim == channel_dim else 1 for dim in range(weight.dim())]
    bias = weights[first.weights["bias"]].double() if "bias" in first.weights else torch.zeros_like(shift)
    names = {"weight": f"{second.name}.weight", "bias": f"{second.name}.bias"}
    weights[names["weight"]] = (weight.double() * scale.reshape(shape)).to(weight.dtype)
    weights[names["bias"]] = (bias * scale + shift).to(weight.dtype)
    return replace(second, op=first.op, inputs=first.inputs, attributes=first.attributes, weights=names)


def _fuse_add(first: Layer, second: Layer, specs: Mapping[str, TensorSpec]) -> Layer | None:
    """``conv(x) + y`` with y of the same shape (a broadcast one stays an addition), made when the addition runs."""
    if first.op != "conv" or len(first.inputs) > 1 or first.attribute("activation") is not None:
        return None
    plain = second.op == "binary" and second.attribute("function") == "add" and second.attribute("alpha") == 1
    if not plain or len(second.inputs) != 2 or second.inputs[0] == second.inputs[1] or second.spec != first.spec:
        return None
    other = next(name for name in second.inputs if name != first.name)
    if specs.get(other) != first.spec:
        return None
    attributes = {**first.attributes, "residual": True}
    return replace(second, op="conv", inputs=(*first.inputs, other), attributes=attributes, weights=first.weights)


def _fuse_activation(first: Layer, second: Layer, weights: dict[str, Tensor]) -> Layer | None:
    if second.op != "unary" or second.attribute("function") not in FUSED_ACTIVATIONS:
        return None
    if first.op not in _ACTIVATED or first.attribute("activation") is not None or second.spec != first.spec:
        return None
    attributes = {
        **first.attributes,
        "activation": second.attributes["function"],
        "activation_arguments": second.attributes["arguments"],
    }
    return replace(second, op=first.op, inputs=first.inputs, attributes=attributes, weights=first.weights)
