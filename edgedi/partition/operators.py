"""The one table of operators: what each reads, how it splits, what it costs.

The rule of an operator answers one question: *to compute ``interval`` of output dimension ``dim``, which part of each
input is read?* The answer is a ``Region`` per input, ``WHOLE`` for an input that is read entirely, or ``None`` instead
of all answers where the operator cannot be split along that dimension. Halos, axes, programs and costs follow from it.

Regions are clipped to the true border of the map; padding is whatever clipping cut off, applied per layer by the
kernel. A rule may return more than is read (the hull), never less.

The table is closed. A program names operators, functions and modes of the table only, and a kernel is looked up in a
dictionary, never by a name that came from the wire. What capture meets outside the table becomes ``opaque``: it runs in
the coordinator's process, on its own captured module, and a worker refuses it (REVIEW.md, A6). So a new operator is
added in three places: here (rule), in ``aten`` (how it is recognised), in ``runtime.kernels`` (how it runs);
better still, capture expresses it by rows that are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgedi.partition.geometry import EMPTY, Interval, clip, window
from edgedi.partition.graph import Layer

OPERATOR_TABLE_VERSION = 1
"""Raised whenever an operator's meaning or attributes change: coordinator and worker must agree on it."""


@dataclass(frozen=True, slots=True)
class Region:
    """``interval`` along dimension ``dim`` of a tensor, everything along the others."""

    dim: int
    interval: Interval


WHOLE = None
Need = Region | None
Shapes = tuple[tuple[int, ...], ...]
Rule = Callable[[Layer, Shapes, Region], "tuple[Need, ...] | None"]
WeightRule = Callable[[Layer, Interval], Interval]

UNARY = frozenset(
    "relu sigmoid tanh silu gelu hardswish hardsigmoid hardtanh leaky_relu elu selu celu mish softplus exp log sqrt "
    "rsqrt abs neg erf sin cos square reciprocal pow clamp log_sigmoid threshold".split()
)
BINARY = frozenset("add sub mul div maximum minimum".split())


# --- rules -----------------------------------------------------------------------------------------------------------


def _same(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Element by element, with broadcasting: dimensions align from the right, size 1 is read whole."""
    return tuple(_broadcast(shape, layer.spec.shape, out) for shape in shapes)


def _broadcast(shape: tuple[int, ...], out_shape: tuple[int, ...], out: Region) -> Need:
    dim = out.dim - (len(out_shape) - len(shape))
    return WHOLE if dim < 0 or shape[dim] != out_shape[out.dim] else Region(dim, out.interval)


def _never(layer: Layer, shapes: Shapes, out: Region) -> None:
    return None


def _constant(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    return ()


def _conv(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Inputs: the map and, when fused with a residual add, the tensor added to the result."""
    rest = tuple(Region(out.dim, out.interval) for _ in shapes[1:])
    return (_conv_map(layer, shapes[0], out), *rest)


def _conv_map(layer: Layer, shape: tuple[int, ...], out: Region) -> Need:
    if out.dim == 0:
        return out
    if out.dim == 1:
        if layer.attributes["groups"] == 1:
            return WHOLE
        per_group = shape[1] // layer.attributes["groups"]
        groups = covering_groups(layer, out.interval)
        return Region(1, Interval(groups.start * per_group, groups.stop * per_group))
    return Region(out.dim, clip(unclipped(layer, out), shape[out.dim]))


def covering_groups(layer: Layer, channels: Interval) -> Interval:
    """The convolution groups that make output ``channels``."""
    per_group = layer.spec.shape[1] // layer.attributes["groups"]
    return Interval(channels.start // per_group, -(-channels.stop // per_group))


def unclipped(layer: Layer, out: Region) -> Interval:
    """Input positions that a sliding window reads, as if the map went on beyond its border."""
    axis = out.dim - 2
    return window(
        out.interval,
        kernel=layer.attributes["kernel"][axis],
        stride=layer.attributes["stride"][axis],
        dilation=layer.attributes["dilation"][axis],
        before=layer.attributes["pad_before"][axis],
    )


def _conv_transpose(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    if out.dim == 0:
        return (out,)
    if out.dim == 1:
        return None
    axis = out.dim - 2
    stride, before = layer.attributes["stride"][axis], layer.attributes["pad_before"][axis]
    reach = layer.attributes["dilation"][axis] * (layer.attributes["kernel"][axis] - 1)
    first = -(-(out.interval.start + before - reach) // stride)
    last = (out.interval.stop - 1 + before) // stride
    return (Region(out.dim, clip(Interval(first, max(first, last + 1)), shapes[0][out.dim])),)


def _pool(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    if out.dim < 2:
        return (out,)
    return (Region(out.dim, clip(unclipped(layer, out), shapes[0][out.dim])),)


def _adaptive_pool(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    if out.dim < layer.spec.rank - len(layer.attributes["size"]):
        return (out,)
    size, length = layer.spec.shape[out.dim], shapes[0][out.dim]
    start = out.interval.start * length // size
    return (Region(out.dim, clip(Interval(start, max(start, -(-out.interval.stop * length // size))), length)),)


def _resize(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """A resampling window around the scaled position; the margin covers every mode and torch's own float32 rounding."""
    if out.dim < 2:
        return (out,)
    length, size = shapes[0][out.dim], layer.spec.shape[out.dim]
    if length == 1:
        return (WHOLE,)
    if length == size and layer.attribute("scales") is None:
        return (out,)
    ratio = max(length / size, (length - 1) / max(size - 1, 1))
    margin = 2 + math.ceil(2 * max(ratio, 1.0)) if layer.attributes["mode"] == "bicubic" else 2 + math.ceil(ratio)
    low = min(out.interval.start * length / size, out.interval.start * (length - 1) / max(size - 1, 1))
    high = max(out.interval.stop * length / size, out.interval.stop * (length - 1) / max(size - 1, 1))
    return (Region(out.dim, clip(Interval(math.floor(low) - margin, math.ceil(high) + margin), length)),)


def _linear(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    return (WHOLE if out.dim == layer.spec.rank - 1 else out,)


def _cat(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    if out.dim != layer.attributes["dim"]:
        return tuple(out for _ in shapes)
    needs, offset = [], 0
    for shape in shapes:
        common = out.interval.intersect(Interval(offset, offset + shape[out.dim]))
        needs.append(Region(out.dim, common.shift(-offset) if len(common) else EMPTY))
        offset += shape[out.dim]
    return tuple(needs)


def _slice(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    if out.dim != layer.attributes["dim"]:
        return (out,)
    start, step = layer.attributes["start"], layer.attributes["step"]
    return (Region(out.dim, Interval(start + out.interval.start * step, start + (out.interval.stop - 1) * step + 1)),)


def _permute(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    return (Region(layer.attributes["dims"][out.dim], out.interval),)


def _reshape(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """A dimension survives where the elements before it number the same; merged or split ones map by blocks."""
    shape, target = shapes[0], layer.spec.shape
    before = math.prod(target[: out.dim])
    after = math.prod(target[out.dim + 1 :])
    for dim in range(len(shape)):
        if math.prod(shape[:dim]) != before or shape[dim] == 1:
            continue
        inner = math.prod(shape[dim + 1 :])
        first = out.interval.start * after // inner
        last = -(-out.interval.stop * after // inner)
        if inner % after and after % inner:
            return None
        return (Region(dim, Interval(first, last)),)
    return None


def _pad(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    """Constant padding shifts; wrapped padding reads the far border, so there the hull is the whole map."""
    before, after = layer.attributes["before"][out.dim], layer.attributes["after"][out.dim]
    length = shapes[0][out.dim]
    inside = out.interval.shift(-before)
    if layer.attributes["mode"] == "constant" or not (before or after):
        return (Region(out.dim, clip(inside, length)),)
    if inside.start >= 0 and inside.stop <= length:
        return (Region(out.dim, inside),)
    if layer.attributes["mode"] == "circular":
        return (Region(out.dim, Interval(0, length)),)
    mirrored = [pad_source(position, length, layer.attributes["mode"]) for position in range(inside.start, inside.stop)]
    return (Region(out.dim, Interval(min(mirrored), max(mirrored) + 1)),)


def pad_source(position: int, length: int, mode: str) -> int:
    """Input index that non-constant padding shows at ``position`` (negative before the map)."""
    if mode == "circular":
        return position % length
    if mode == "replicate":
        return min(max(position, 0), length - 1)
    return length - 1 - abs(length - 1 - abs(position))  # reflect, border not repeated


def _along(attribute: str) -> Rule:
    """An operator that mixes along the listed dimensions and is element-wise along all others."""

    def rule(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
        mixed = layer.attributes[attribute]
        mixed = mixed if isinstance(mixed, tuple) else (mixed,)
        return None if out.dim in mixed else tuple(out for _ in shapes)

    return rule


def _layer_norm(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    return None if out.dim >= layer.spec.rank - layer.attributes["num_dims"] else (out,)


def _group_norm(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    return (out,) if out.dim == 0 else None


def _partial(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """Output: [parts, *input shape with reduced dimensions at 1]. Which part of the input a part sums follows from
    ownership, not from demand, so lowering says it; along dimensions that are not reduced it is element-wise."""
    if out.dim == 0 or out.dim - 1 in layer.attributes["dims"]:
        return None
    return (Region(out.dim - 1, out.interval),)


def _combine(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    return (Region(out.dim + 1, out.interval),)


def _pixel_shuffle(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    factor = layer.attributes["factor"]
    if out.dim == layer.spec.rank - 3:
        squared = factor * factor
        return (Region(out.dim, Interval(out.interval.start * squared, out.interval.stop * squared)),)
    if out.dim < layer.spec.rank - 3:
        return (out,)
    return (Region(out.dim, Interval(out.interval.start // factor, -(-out.interval.stop // factor))),)


def _matmul(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    rank = layer.spec.rank
    if min(map(len, shapes)) < 2:
        return None
    if out.dim >= rank - 2:
        moved = Region(out.dim - (rank - len(shapes[0])), out.interval)
        return (moved, WHOLE) if out.dim == rank - 2 else (WHOLE, Region(len(shapes[1]) - 1, out.interval))
    return tuple(_broadcast(shape, layer.spec.shape, out) for shape in shapes)


def _attention(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...] | None:
    """Scaled dot-product attention over [..., tokens, features]: independent along every leading dimension."""
    if out.dim >= layer.spec.rank - 2:
        return None
    return tuple(_broadcast(shape, layer.spec.shape, out) for shape in shapes)


def _expand(layer: Layer, shapes: Shapes, out: Region) -> tuple[Need, ...]:
    return _same(layer, shapes, out)


# --- work ------------------------------------------------------------------------------------------------------------


def _conv_flops(layer: Layer, shapes: Shapes) -> float:
    taps: int = math.prod(layer.attributes["kernel"])
    return 2.0 * taps * int(shapes[0][1] // layer.attributes["groups"])


def _conv_transpose_flops(layer: Layer, shapes: Shapes) -> float:
    """Per output element on average: every input element meets the whole kernel once."""
    taps: int = math.prod(layer.attributes["kernel"])
    per_input: float = 2.0 * taps * layer.spec.shape[1] / layer.attributes["groups"]
    return per_input * math.prod(shapes[0]) / max(1, math.prod(layer.spec.shape))


def _linear_flops(layer: Layer, shapes: Shapes) -> float:
    return 2.0 * shapes[0][-1]


def _pool_flops(layer: Layer, shapes: Shapes) -> float:
    return float(math.prod(layer.attributes["kernel"]))


def _matmul_flops(layer: Layer, shapes: Shapes) -> float:
    return 2.0 * shapes[0][-1]


def _attention_flops(layer: Layer, shapes: Shapes) -> float:
    return 4.0 * shapes[1][-2]


def _one_flop(layer: Layer, shapes: Shapes) -> float:
    return 1.0


def _no_flops(layer: Layer, shapes: Shapes) -> float:
    return 0.0


def _ratio_flops(layer: Layer, shapes: Shapes) -> float:
    return math.prod(shapes[0]) / max(1, math.prod(layer.spec.shape))


# --- weights under a channel split -----------------------------------------------------------------------------------


def _leading(layer: Layer, channels: Interval) -> Interval:
    return channels


def _conv_weights(layer: Layer, channels: Interval) -> Interval:
    if layer.attributes["groups"] == 1:
        return channels
    groups = covering_groups(layer, channels)
    per_group = layer.spec.shape[1] // layer.attributes["groups"]
    return Interval(groups.start * per_group, groups.stop * per_group)


# --- the table -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Operator:
    """One row: the rule, FLOPs per output element, and how a channel split cuts the weights (None: not along dim 0)."""

    rule: Rule
    flops: Callable[[Layer, Shapes], float] = _one_flop
    weights: WeightRule | None = None
    makes_channels: bool = False
    """Whether the operator makes a new channel dimension (convolution, linear) instead of passing its input's on."""


TABLE: Mapping[str, Operator] = MappingProxyType(
    {
        "conv": Operator(_conv, _conv_flops, _conv_weights, makes_channels=True),
        "conv_transpose": Operator(_conv_transpose, _conv_transpose_flops),
        "linear": Operator(_linear, _linear_flops, _leading, makes_channels=True),
        "affine": Operator(_same, weights=_leading),
        "unary": Operator(_same),
        "binary": Operator(_same),
        "prelu": Operator(_same, weights=_leading),
        "max_pool": Operator(_pool, _pool_flops),
        "avg_pool": Operator(_pool, _pool_flops),
        "adaptive_avg_pool": Operator(_adaptive_pool, _ratio_flops),
        "adaptive_max_pool": Operator(_adaptive_pool, _ratio_flops),
        "partial": Operator(_partial, _ratio_flops),
        "combine": Operator(_combine, _one_flop),
        "cat": Operator(_cat, _no_flops),
        "slice": Operator(_slice, _no_flops),
        "reshape": Operator(_reshape, _no_flops),
        "permute": Operator(_permute, _no_flops),
        "pad": Operator(_pad, _no_flops),
        "resize": Operator(_resize, _ratio_flops),
        "softmax": Operator(_along("dim")),
        "roll": Operator(_along("dims"), _no_flops),
        "layer_norm": Operator(_layer_norm),
        "group_norm": Operator(_group_norm),
        "pixel_shuffle": Operator(_pixel_shuffle, _no_flops),
        "matmul": Operator(_matmul, _matmul_flops),
        "attention": Operator(_attention, _attention_flops),
        "expand": Operator(_expand, _no_flops),
        "cast": Operator(_same, _no_flops),
        "constant": Operator(_constant, _no_flops),
        "opaque": Operator(_never),
    }
)
"""Every operator a program may name. ``opaque`` runs in the coordinator's process only (workers refuse it)."""


def needs(layer: Layer, shapes: Shapes, out: Need) -> tuple[Need, ...] | None:
    """What ``layer`` reads of each input to make ``out``; ``None`` where it cannot be split along ``out.dim``.

    ``shapes`` are the whole shapes of the inputs. The whole output reads every input whole.
    """
    if out is WHOLE:
        return tuple(WHOLE for _ in shapes)
    return TABLE[layer.op].rule(layer, shapes, out)


def flops(layer: Layer, shapes: Shapes, out: Need = WHOLE) -> float:
    """Floating-point operations for ``out`` (multiply and add count two)."""
    elements = math.prod(layer.spec.shape)
    if out is not WHOLE:
        elements = elements // max(1, layer.spec.shape[out.dim]) * len(out.interval)
    return TABLE[layer.op].flops(layer, shapes) * elements


def weight_interval(layer: Layer, out: Need) -> Interval | None:
    """Leading-dimension part of every weight that ``out`` needs; ``None`` for all of it."""
    rule = TABLE[layer.op].weights
    if rule is None or out is WHOLE or out.dim != channel_dim(layer):
        return None
    return rule(layer, out.interval)


def channel_dim(layer: Layer) -> int:
    """The dimension that a layer's weights run along: the last for linear layers, 1 for maps."""
    return layer.spec.rank - 1 if layer.op == "linear" else 1


def padding_at(layer: Layer, shapes: Shapes, out: Need) -> tuple[tuple[int, int], ...]:
    """For a sliding-window layer: zeros (before, after) each spatial dimension of the regions that ``needs`` returns.

    A negative number is elements to crop: those that the region holds beyond what the window reads.
    """
    pads = []
    for axis in range(len(layer.attributes["kernel"])):
        dim = axis + 2
        full = Interval(0, layer.spec.shape[dim])
        interval = out.interval if out is not WHOLE and out.dim == dim else full
        read = unclipped(layer, Region(dim, interval))
        held = clip(read, shapes[0][dim]) if out is not WHOLE and out.dim == dim else Interval(0, shapes[0][dim])
        pads.append((held.start - read.start, read.stop - held.stop))
    return tuple(pads)
