"""Layers with weights: which inputs they need once equal channels are added up, and what is known of their outputs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgedi.transforms.exact.facts import Array, Channels, settled, weighted_sum
from edgedi.transforms.exact.flow import Flow, Link, Weights
from edgedi.transforms.exact.traced import LINEAR, NORMS, Layer, shape_of


def layer_rule(flow: Flow, layer: Layer, source: Channels) -> Channels | None:
    """The output of a convolution, a linear layer or a normalisation; ``None`` where its input has another form."""
    rank = len(shape_of(layer.source) or ())
    kind = str(layer.node.target)
    if source.num_dims != 1 or rank < 2:
        return None
    if kind in NORMS:
        return _norm(flow, layer, source)
    if rank != layer.module.weight.dim():  # a linear layer over the last of more dimensions, a map without batch
        return None
    weights = _weights_of(layer)
    padded = kind != LINEAR and _is_padded(layer)
    if weights.groups == 1:
        weights = _rewritten(weights, source, padded)
    flow.weights[layer] = weights
    made = _outputs(flow, layer, source, weights, padded)
    if weights.groups == 1:
        flow.links.append(Link(inputs=source.members, outputs=made.members, reads=_any_weight(weights.weight, 2)))
    else:
        _join_groups(flow, source, made, weights.groups)
    return made


def array_of(tensor: Tensor) -> Array:
    """The values, in float32 at least; float64 stays."""
    wide = tensor.dtype if tensor.dtype == torch.float64 else torch.float32
    return np.asarray(tensor.detach().to(device="cpu", dtype=wide).numpy())


def scale_and_shift(norm: Any) -> tuple[Array, Array]:
    """A batch normalisation as ``scale * x + shift``, both [channels], in float64."""
    scale = 1 / np.sqrt(array_of(norm.running_var).astype(np.float64) + norm.eps)
    if norm.weight is not None:
        scale = scale * array_of(norm.weight)
    shift = -array_of(norm.running_mean) * scale
    return scale, shift if norm.bias is None else shift + array_of(norm.bias)


def _weights_of(layer: Layer) -> Weights:
    module = layer.module
    bias = None if module.bias is None else array_of(module.bias)
    return Weights(weight=array_of(module.weight), bias=bias, groups=getattr(module, "groups", 1))


def _is_padded(layer: Layer) -> bool:
    """Whether zeros stand around the map; a module that pads otherwise has done so before."""
    bound = dict(
        zip((argument.name for argument in layer.node.target._schema.arguments), layer.node.args, strict=False)
    )
    padding = {**bound, **layer.node.kwargs}.get("padding", 0)
    if isinstance(padding, str):
        return padding == "same" and any(size > 1 for size in layer.module.kernel_size)
    return any(padding) if isinstance(padding, (list, tuple)) else bool(padding)


def _rewritten(weights: Weights, source: Channels, padded: bool) -> Weights:
    """The same sums with fewer columns: constants in the bias, equal channels in the first of them.

    A constant other than zero stays where zeros are padded: at the border the layer sees the padding and not it.
    """
    folded = source.constant & ((source.low == 0) if padded else True)
    _, first, inverse = np.unique(source.ids, return_index=True, return_inverse=True)
    again = (first[inverse] != np.arange(len(source))) & ~folded
    if not (folded.any() or again.any()):
        return weights
    weight, bias = weights.weight.copy(), weights.bias
    numbers = source.low[folded]
    if numbers.any():
        bias = (0 if bias is None else bias) + _sum(weight[:, folded]) @ numbers
    for index in np.flatnonzero(again):
        weight[:, first[inverse[index]]] += weight[:, index]
    weight[:, folded | again] = 0
    return Weights(weight=weight, bias=bias)


def _outputs(flow: Flow, layer: Layer, source: Channels, weights: Weights, padded: bool) -> Channels:
    count, per_group = weights.weight.shape[:2]
    seen = source.with_zero() if padded else source
    low, high = np.empty(count), np.empty(count)
    for start, stop, group in _blocks(count, weights.groups):
        inputs = slice(group * per_group, (group + 1) * per_group)
        positive, negative = (_sum(limit(weights.weight[start:stop], 0)) for limit in (np.maximum, np.minimum))
        low[start:stop], high[start:stop] = weighted_sum(positive, negative, seen.low[inputs], seen.high[inputs])
    if weights.bias is not None:
        low, high = low + weights.bias, high + weights.bias
    return settled(low, high, _ids(flow, layer, source, weights), flow.groups.add(count), flow.known)


def _blocks(count: int, groups: int) -> Iterator[tuple[int, int, int]]:
    """Outputs ``start`` to ``stop`` of one group, few enough that what is made of their weights stays in the cache."""
    step = count // groups
    for group in range(groups):
        for start in range(group * step, (group + 1) * step, 64):
            yield start, min(start + 64, (group + 1) * step), group


def _sum(kernels: Array) -> Array:
    """[outputs, inputs, ...] added up to [outputs, inputs], in float64."""
    return np.asarray(kernels.sum(axis=tuple(range(2, kernels.ndim)), dtype=np.float64))


def _ids(flow: Flow, layer: Layer, source: Channels, weights: Weights) -> Array:
    """Outputs get one id where they add the same maps with the same kernels, in whatever order."""
    weight = weights.weight
    options = (str(layer.node.target), repr(layer.node.args[3:]), repr(layer.node.kwargs))
    geometry = (*options, weight.shape[2:], (shape_of(layer.source) or ())[2:])
    name, per_group = flow.known.of(geometry), weight.shape[1]
    made = np.empty(len(weight), dtype=np.int64)
    for group in range(weights.groups):
        ids = source.ids[group * per_group : (group + 1) * per_group]
        step = len(weight) // weights.groups
        for output in range(group * step, (group + 1) * step):
            bias = 0.0 if weights.bias is None else float(weights.bias[output])
            made[output] = flow.known.of((name, bias, _digest(weight[output], ids)))
    return made


def _digest(kernels: Array, ids: Array) -> bytes:
    """Of one output's kernels [inputs, ...], in the order of the inputs' ids, without those that are zero."""
    used = _any_weight(kernels, 1)
    if not used.all():
        kernels, ids = kernels[used], ids[used]
    if (ids[1:] < ids[:-1]).any():
        order = np.argsort(ids, kind="stable")
        kernels, ids = kernels[order], ids[order]
    digest = hashlib.blake2b(ids.tobytes(), digest_size=16)
    digest.update(np.ascontiguousarray(kernels).data)
    return digest.digest()


def _any_weight(weight: Array, num_dims: int) -> Array:
    """Along the first ``num_dims`` dimensions: whether any element is not zero."""
    return np.asarray((weight != 0).any(axis=tuple(range(num_dims, weight.ndim))))


def _join_groups(flow: Flow, source: Channels, made: Channels, groups: int) -> None:
    """A group of a grouped convolution goes as a whole, inputs and outputs, or stays."""
    for members in (source.members, made.members):
        parts = members.reshape(groups, -1)
        flow.groups.join(np.repeat(parts[:, 0], parts.shape[1] - 1), parts[:, 1:].ravel())
    flow.groups.join(source.members.reshape(groups, -1)[:, 0], made.members.reshape(groups, -1)[:, 0])


def _norm(flow: Flow, layer: Layer, source: Channels) -> Channels:
    scale, shift = scale_and_shift(layer.module)
    flow.weights[layer] = Weights(weight=scale, bias=shift)
    with np.errstate(invalid="ignore"):
        ends = [np.where(scale == 0, 0, scale * end) + shift for end in (source.low, source.high)]
    rows = [flow.known.of(("affine", a, b)) for a, b in zip(scale.tolist(), shift.tolist(), strict=True)]
    ids = flow.named(("norm",), np.array(rows), source.ids)
    return settled(np.minimum(*ends), np.maximum(*ends), ids, source.members, flow.known)
