"""The one table of operators: what each reads, how it splits, what it costs.

A row holds the operator's rule (``operator_rules``: which part of each input a part of the output reads), its FLOPs,
and how a channel split cuts its weights. Halos, axes, programs and costs follow from it.

The table is closed. A program names operators, functions and modes of the table only, and a kernel is looked up in a
dictionary, never by a name that came from the wire. What capture meets outside the table becomes ``opaque``: it runs in
the coordinator's process, on its own captured module, and a worker refuses it (REVIEW.md, A6). So a new operator is
added in four places: its rule, its row here, in ``aten`` (how it is recognised), in ``runtime.kernels`` (how it runs);
better still, capture expresses it by rows that are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from edgedi.partition.graph import operator_rules as rules
from edgedi.partition.graph.geometry import WHOLE, Interval, Need, Region, clip
from edgedi.partition.graph.graph import Layer, Shapes
from edgedi.partition.graph.operator_rules import Rule, covering_groups, unclipped

OPERATOR_TABLE_VERSION = 1
"""Raised whenever an operator's meaning or attributes change: coordinator and worker must agree on it."""

WeightRule = Callable[[Layer, Interval], Interval]


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
        "conv": Operator(rules.conv, _conv_flops, _conv_weights, makes_channels=True),
        "conv_transpose": Operator(rules.conv_transpose, _conv_transpose_flops),
        "linear": Operator(rules.linear, _linear_flops, _leading, makes_channels=True),
        "affine": Operator(rules.same, weights=_leading),
        "unary": Operator(rules.same),
        "binary": Operator(rules.same),
        "prelu": Operator(rules.same, weights=_leading),
        "max_pool": Operator(rules.pool, _pool_flops),
        "avg_pool": Operator(rules.pool, _pool_flops),
        "adaptive_avg_pool": Operator(rules.adaptive_pool, _ratio_flops),
        "adaptive_max_pool": Operator(rules.adaptive_pool, _ratio_flops),
        "partial": Operator(rules.partial, _ratio_flops),
        "combine": Operator(rules.combine, _one_flop),
        "cat": Operator(rules.cat, _no_flops),
        "slice": Operator(rules.slice_, _no_flops),
        "reshape": Operator(rules.reshape, _no_flops),
        "permute": Operator(rules.permute, _no_flops),
        "pad": Operator(rules.pad, _no_flops),
        "resize": Operator(rules.resize, _ratio_flops),
        "softmax": Operator(rules.along("dim")),
        "roll": Operator(rules.along("dims"), _no_flops),
        "layer_norm": Operator(rules.layer_norm),
        "group_norm": Operator(rules.group_norm),
        "pixel_shuffle": Operator(rules.pixel_shuffle, _no_flops),
        "matmul": Operator(rules.matmul, _matmul_flops),
        "attention": Operator(rules.attention, _attention_flops),
        "expand": Operator(rules.expand, _no_flops),
        "cast": Operator(rules.same, _no_flops),
        "constant": Operator(rules.constant, _no_flops),
        "opaque": Operator(rules.never),
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
